"""Are the error bars honest? The whole estimation, repeated hundreds of times on a torus whose free energy is known.

Each repeat draws (b, y) from an imperfect flow at random coarse points, fits a surface and states 95 % intervals; the
intervals must hold the truth in 92 to 98 % of the repeats. 400 repeats know a coverage to 1.1 %.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from scipy.special import logsumexp
from systems import TorusLadder

from ccg_gmx.free_energy.combine import error_with_members
from ccg_gmx.free_energy.estimators import bar, global_average, relative_variance
from ccg_gmx.free_energy.fourier import FourierBasis
from ccg_gmx.free_energy.joint_fit import JointFitSettings, SurfaceFit, fit_surface
from ccg_gmx.free_energy.pareto import pareto_k
from ccg_gmx.free_energy.surface import Basin, grid
from ccg_gmx.free_energy.weights import draw_weights, forward_log_weights
from ccg_gmx.records import FloatArray, WeightedDraws

N = 40
NAMES = ("phi", "psi")
GRID = grid(N, 2)
A = Basin(name="A", ranges={"phi": (120, -120), "psi": (-180, 180)})
B = Basin(name="B", ranges={"phi": (-120, 120), "psi": (0, 120)})
F = TorusLadder().f(GRID)
F = F + logsumexp(-F)  # so that sum exp(-f) = 1 over the grid
POINTS = np.argsort(F)[[0, 50, 150, 300, 500, 700, 900, 1100, 1300]]  # from the minimum to 12 kT above it
DELTA_F = float(logsumexp(-F[B.mask(GRID, NAMES)]) - logsumexp(-F[A.mask(GRID, NAMES)]))
COSINE = float(np.exp(-F) @ np.cos(GRID[:, 0]))
Z_975 = 1.96


@dataclass(frozen=True)
class Case:
    """An imperfect flow, and how much is drawn from it."""

    system: TorusLadder
    points: int
    K: int
    order: int


CASES = {
    "chi2 = 1": Case(TorusLadder(widen=1.85), 400, 16, 3),
    "chi2 = 1, four draws": Case(TorusLadder(widen=1.85), 400, 4, 2),
    "chi2 = 5": Case(TorusLadder(widen=3.3), 400, 16, 2),
    "too narrow": Case(TorusLadder(widen=0.85, vary=0.08), 800, 16, 2),
    "too narrow, few points": Case(TorusLadder(widen=0.85, vary=0.08), 400, 16, 2),
}


def deviations_and_errors(fit: SurfaceFit) -> tuple[FloatArray, FloatArray]:
    """``[10]`` each: how far f at nine points, normalised over the torus, and delta_f are off, and stated errors."""
    f = fit.basis.on_grid(N, fit.coefficients).ravel()
    value, error = fit.delta_f(A, B, N, NAMES)
    off = np.append((f + logsumexp(-f) - F)[POINTS], value - DELTA_F)
    return off, np.append(fit.errors(GRID[POINTS]), error)


def coverage(z: object) -> float:
    return float((np.abs(np.asarray(z)) < Z_975).mean())


@pytest.fixture(scope="module", params=CASES)
def repeats(request: pytest.FixtureRequest) -> dict[str, FloatArray]:
    """Deviations over stated errors of 400 whole estimations."""
    case, found = CASES[request.param], {"f": [], "delta_f": [], "average": []}
    for seed in range(1000, 1400):
        draws = case.system.draws(case.points, case.K, seed)
        fit = fit_surface(draws, JointFitSettings(order=case.order))
        off, errors = deviations_and_errors(fit)
        found["f"].append((off / errors)[:9])
        found["delta_f"].append((off / errors)[9])
        cosine = np.broadcast_to(np.cos(draws.s[:, :1]), draws.log_w.shape)
        mean, error = global_average(draws.log_w - draws.log_rho[:, None], cosine)
        found["average"].append((mean - COSINE) / error)
    return {name: np.array(values) for name, values in found.items()}


@pytest.mark.parametrize("what", ["f", "delta_f", "average"])
def test_95_per_cent_interval_covers_the_truth(repeats: dict[str, FloatArray], what: str) -> None:
    assert 0.92 < coverage(repeats[what]) < 0.98


def test_no_bias_beside_the_error(repeats: dict[str, FloatArray]) -> None:
    """Means of 400 deviations: 0.05 is one standard error; a third of an error bar is all that coverage would bear."""
    assert np.abs(repeats["f"].mean(axis=0)).max() < 0.35
    assert abs(repeats["delta_f"].mean()) < 0.2


@pytest.mark.parametrize(("name", "count"), [("chi2 = 1", 100), ("chi2 = 5", 50), ("too narrow", 100)])
def test_95_per_cent_interval_of_bar(name: str, count: int) -> None:
    """1000 times: fine frames against draws at the same coarse points, normalised by the known f, so 0 is right."""
    system = CASES[name].system
    frames = system.frames(1000 * count, np.random.default_rng(1))
    forward = forward_log_weights(system.flow, frames) + system.f(frames.s)
    reverse = draw_weights(system.flow, system.target, frames.s, 1, seed=1)[:, 0] + system.f(frames.s)
    parts = zip(forward.reshape(1000, count), reverse.reshape(1000, count), strict=True)
    estimates = [bar(*part) for part in parts]
    assert 0.92 < coverage([estimate.f / estimate.error for estimate in estimates]) < 0.98


def test_flows_are_as_bad_as_intended() -> None:
    s = GRID[POINTS]
    assert CASES["chi2 = 1"].system.chi2(s) == pytest.approx(1.0, abs=0.05)
    assert CASES["chi2 = 5"].system.chi2(s) == pytest.approx(4.7, abs=0.1)
    assert CASES["too narrow"].system.chi2(np.zeros((1, 2)))[0] < 0.2
    measured = relative_variance(CASES["chi2 = 5"].system.draws(200, 1000, 0).log_w).mean()
    assert measured == pytest.approx(4.7, rel=0.1)


# Members


def with_own_errors(draws: WeightedDraws, size: float, rng: np.random.Generator) -> WeightedDraws:
    """Draws of a flow whose weights miss something: ln w is off by a smooth random function of s, of this RMS."""
    basis = FourierBasis(1, 2)
    coefficients = rng.normal(size=basis.size) * (basis.wave_number() > 0)
    field = basis.design(draws.s) @ (coefficients * size / np.sqrt(np.mean((basis.design(GRID) @ coefficients) ** 2)))
    return replace(draws, log_w=draws.log_w + field[:, None])


def ensemble(own: float) -> dict[str, float]:
    """Coverage of f and delta_f of three members' joint fit, 150 times, by the rule that makes the error."""
    settings, inside = JointFitSettings(order=2), {name: [] for name in RULES}
    for repeat in range(150):
        rng = np.random.default_rng([repeat, 3])
        parts = [with_own_errors(TorusLadder(widen=1.85).draws(250, 8, 3 * repeat + i), own, rng) for i in range(3)]
        off, errors = deviations_and_errors(fit_surface(parts, settings))
        members = np.array([deviations_and_errors(fit_surface(part, settings))[0] for part in parts])
        for name, rule in RULES.items():
            stated = [rule(error, values) for error, values in zip(errors, members.T, strict=True)]
            inside[name].append(np.abs(off) < Z_975 * np.array(stated))
    return {name: float(np.mean(hits)) for name, hits in inside.items()}


RULES = {
    "members": error_with_members,
    "draws": lambda error, members: error,
    "quadrature": lambda error, members: np.hypot(error, np.std(members, ddof=1) / np.sqrt(3)),
}


def test_three_members_without_errors_of_their_own() -> None:
    """The spread of the members is their sampling noise, which the fit knows: adding the two counts it twice."""
    covered = ensemble(own=0.0)
    assert 0.92 < covered["members"] < 0.98
    assert 0.92 < covered["draws"] < 0.98
    assert covered["quadrature"] > covered["members"]


def test_three_members_with_errors_of_their_own() -> None:
    """Each member is off by 0.3 kT in its own way, three times its sampling noise: the draws' error knows nothing."""
    covered = ensemble(own=0.3)
    assert 0.88 < covered["members"] < 0.98  # 93 % for Gaussian errors; three members cannot do better
    assert covered["draws"] < 0.75
    assert covered["quadrature"] < covered["members"]


# Where the bars fail


def test_bars_that_fail_are_announced_by_the_tails() -> None:
    """A flow too narrow by up to half, at random places: weights of infinite variance that hundreds of draws never see.

    The stated errors are then too small, and nothing within these draws can tell by how much; Pareto k-hat can tell
    that it is so.
    """
    system, z, bad = TorusLadder(member=1, rough=0.35), [], []
    for seed in range(60):
        draws = system.draws(400, 16, seed)
        off, errors = deviations_and_errors(fit_surface(draws, JointFitSettings(order=2)))
        z.append(off / errors)
        low = system.f(draws.s) < F.min() - logsumexp(-system.f(GRID)) + 8
        weights = (draws.log_w + system.f(draws.s)[:, None])[low]
        pooled = weights[: len(weights) // 7 * 7].reshape(-1, 7 * 16)
        bad.append((pareto_k(pooled) > 0.7).mean())
    assert coverage(z) < 0.9
    assert np.median(bad) > 0.1, "the verdict's threshold"
