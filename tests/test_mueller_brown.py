"""THEORY section 8 (iii): the whole road on the Mueller-Brown surface, s = x, against quadrature over y.

Short walks in the two deep wells that never cross, a flow q(y | x) trained on them and then with energies, exact
weights, one fitted f(x). x is a line; the flow knows circles, so x becomes an angle on a part of one, and nothing is
ever drawn in the rest. At 0.2 per unit of energy the barrier is 12 kT high; at some x, y has two valleys.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from systems import MuellerBrown
from torch import Tensor

from ccg_gmx.flow.conditional import FlowSettings, LadderFlow
from ccg_gmx.flow.train import EnergySettings, LikelihoodSettings, train_energy, train_likelihood
from ccg_gmx.free_energy.estimators import relative_variance
from ccg_gmx.free_energy.joint_fit import JointFitSettings, SurfaceFit, fit_surface
from ccg_gmx.free_energy.weights import draw_gradients, draw_ladder
from ccg_gmx.molecule.coordinate import Coordinate
from ccg_gmx.molecule.langevin import Langevin
from ccg_gmx.records import CoarseSplit, FloatArray, WeightedDraws
from ccg_gmx.units import thermal_energy

SYSTEM = MuellerBrown(beta=0.2)
LOW, HIGH, REACH = -1.7, 1.2, 2.4
SCALE = 2 * REACH / (HIGH - LOW)
WELLS = np.array([[-0.558, 1.442], [0.623, 0.028]])
Y = Coordinate("y", "torsion", "window", centre=0.8, width=4.4)
X = np.linspace(LOW, HIGH, 146)[:, None]


def to_angle(x: FloatArray) -> FloatArray:
    return (x - 0.5 * (LOW + HIGH)) * SCALE


def target(s: Tensor, b: Tensor, y: Tensor) -> Tensor:
    """u per radian of s: a linear change of the coarse variable adds a constant to f."""
    return SYSTEM.target(s / SCALE + 0.5 * (LOW + HIGH), b, y) + np.log(SCALE)


def short_walks() -> CoarseSplit:
    """Langevin walks of mass 1 in both wells, 0.2 V taken as U / kT; a frame every 10 steps after 100."""
    kT = thermal_energy(300.0)

    def energy_and_gradient(positions: Tensor) -> tuple[Tensor, Tensor]:
        at = positions.detach().requires_grad_(True)
        energy = kT * SYSTEM.target(at[:, 0, :1], at[:, 0, :0], at[:, 0, 1:])
        return energy.detach(), torch.autograd.grad(energy.sum(), at)[0]

    walkers = Langevin(energy_and_gradient, [1.0], 300.0, friction_per_ps=5.0, dt_ps=0.01, seed=1)
    frames: list[Tensor] = []
    state = walkers.run(walkers.start(torch.from_numpy(np.repeat(WELLS, 32, axis=0)[:, None])), 100)
    walkers.run(state, 250, every=10, callback=lambda now, _: frames.append(now.positions[:, 0]))
    path = torch.stack(frames).numpy()
    # One walk of the right well tries the shallow valley at (-0.05, 0.47); the main barrier lies beyond.
    assert (path[:, :32, 1] > 0.9).all(), "no walk may cross the barrier"
    assert (path[:, 32:, 1] < 0.9).all(), "no walk may cross the barrier"
    x, y = path.transpose(1, 0, 2).reshape(-1, 2).T
    s, b = to_angle(x[:, None]), np.empty((len(x), 0))
    u = target(*(torch.from_numpy(part) for part in (s, b, y[:, None]))).numpy()
    return CoarseSplit(s, b, y[:, None], u, np.repeat(np.arange(64), 25))


@dataclass(frozen=True)
class Road:
    flow: LadderFlow
    draws: list[WeightedDraws]
    fits: list[SurfaceFit]


@pytest.fixture(scope="module")
def road() -> Road:
    """One trained flow, and twelve independent sets of draws with their fits."""
    split = short_walks()
    shape = FlowSettings(couplings=2, coupling_width=32, width=32, harmonics=6, bins=12)
    flow = LadderFlow(1, (), (Y,), shape).double()
    train_likelihood(flow, split, LikelihoodSettings(steps=100, batch=256, warm_up=20), seed=1)

    def propose(batch: int, generator: torch.Generator) -> Tensor:
        return REACH * (2 * torch.rand(batch, 1, generator=generator, dtype=torch.float64) - 1)

    recipe = {"temper_from": 1.0, "forward_fraction": 0.2, "forward_batch": 256, "own_weighted_fraction": 0.0}
    settings = EnergySettings(steps=300, batch=512, learning_rate=5e-3, warm_up=30, **recipe)
    train_energy(flow, target, propose, split, settings, seed=2)
    draws = []
    for seed in range(12):
        s = np.random.default_rng(seed).uniform(-REACH, REACH, (600, 1))
        log_w, _ = draw_ladder(flow, target, s, 32, seed)
        draws.append(WeightedDraws(s, log_w, np.full(600, -np.log(2 * REACH)), log_w.size))
    return Road(flow, draws, [fit_surface(part, JointFitSettings(order=24)) for part in draws])


def test_flow_reaches_where_no_walk_has_been(road: Road) -> None:
    chi2 = np.concatenate([relative_variance(part.log_w) for part in road.draws])
    assert np.median(chi2) < 0.5
    assert np.quantile(chi2, 0.95) < 4


def test_surface_is_that_of_quadrature(road: Road) -> None:
    exact, low = SYSTEM.f(X), SYSTEM.f(X) < SYSTEM.f(X).min() + 8
    for fit in road.fits:
        off = (fit.values(to_angle(X)) - exact - np.log(SCALE))[low]
        assert off.std() < 0.05
        assert abs(off.mean()) < 0.05, "the absolute -ln Z, not only its shape"
    barrier = (X[:, 0] > -0.6) & (X[:, 0] < 0.6)
    top = exact[barrier].max() - exact.min()
    assert top > 12
    mean = np.mean([fit.values(to_angle(X)) for fit in road.fits], axis=0) - np.log(SCALE)
    # At x = -0.16, 12 kT up, y changes valleys: f has a bend that waves follow to 0.2 kT.
    assert np.abs(mean - exact)[barrier].max() < 0.3


def test_errors_are_calibrated(road: Road) -> None:
    """Twelve fits: 95 % intervals of f at 10 points 0.2 apart; the difference of the wells has no bias."""
    x = np.linspace(-1.0, 0.8, 10)[:, None]
    dense = np.linspace(LOW, HIGH, 1001)[:, None]
    f_dense = SYSTEM.f(dense)
    p = np.exp(-f_dense - logsumexp(-f_dense))
    inside, differences = [], []
    left = dense[:, 0] < 0.0
    exact = float(logsumexp(-f_dense[left]) - logsumexp(-f_dense[~left]))
    for fit in road.fits:
        difference = fit.values(to_angle(x)) - SYSTEM.f(x) - p @ (fit.values(to_angle(dense)) - f_dense)
        inside.append(np.abs(difference) < 1.96 * fit.errors(to_angle(x)))
        f = fit.values(to_angle(dense))
        differences.append(float(logsumexp(-f[left]) - logsumexp(-f[~left])) - exact)
    # 120 intervals, neighbours somewhat correlated: at 95 % each, fewer than 104 are as rare as 4 sigma.
    assert np.sum(inside) >= 104
    spread = np.std(differences, ddof=1)
    assert abs(np.mean(differences)) < 4 * spread / np.sqrt(12)
    assert spread < 0.05


def test_mean_force_is_the_slope_of_quadrature(road: Road) -> None:
    s, h = np.linspace(-2.0, 2.0, 60)[:, None], 1e-4
    draws = draw_gradients(road.flow, target, s, K=128, seed=1)
    x = s / SCALE + 0.5 * (LOW + HIGH)
    exact = (SYSTEM.f(x + h) - SYSTEM.f(x - h)) / (2 * h * SCALE)
    z = (draws.gradient[:, 0] - exact) / draws.gradient_error[:, 0]
    assert (np.abs(z) < 1.96).mean() > 0.86, "of 60, at 95 %: fewer than 52 are as rare as 3.2 sigma"
