"""n-Butane in vacuum: one torsion, from walks of 3 ps in each well to f(phi), against long biased walks.

The truth is an independent method: walkers of the package's integrator under a static bias that flattens the torsion,
reweighted (``topologies/make_reference.py n_butane``). Both use the package's energies, which other tests compare with
GROMACS. Mirror images have the same energy, so f(phi) = f(-phi) exactly: a check that needs no reference.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ccg_gmx.cycle.config import load_workflow
from ccg_gmx.cycle.system import System
from ccg_gmx.engine.gromacs import Gmx
from ccg_gmx.engine.mdp import Mdp
from ccg_gmx.flow.conditional import FlowSettings, LadderFlow
from ccg_gmx.flow.train import EnergySettings, LikelihoodSettings, train_energy, train_likelihood
from ccg_gmx.free_energy.combine import combine_fits
from ccg_gmx.free_energy.estimators import relative_variance
from ccg_gmx.free_energy.joint_fit import JointFitSettings, SurfaceFit, fit_surface
from ccg_gmx.free_energy.reference import load_reference
from ccg_gmx.free_energy.surface import Basin, delta_f, forward_kl, rmsd_kT
from ccg_gmx.free_energy.weights import draw_ladder
from ccg_gmx.molecule.langevin import Langevin
from ccg_gmx.molecule.structure import read_structure
from ccg_gmx.molecule.topology import parse_tpr_dump
from ccg_gmx.records import CoarseSplit, WeightedDraws

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "topologies" / "n_butane"
NAMES = ("phi",)
TRANS = Basin(name="trans", ranges={"phi": (120, -120)})
PLUS = Basin(name="gauche+", ranges={"phi": (0, 120)})
MINUS = Basin(name="gauche-", ranges={"phi": (-120, 0)})
WELLS = np.radians([180.0, 65.0, -65.0])
REFERENCE = FOLDER / "reference" / "surface.npz"


@dataclass(frozen=True)
class Butane:
    """One trained flow, with two independent sets of draws and their fits."""

    system: System
    split: CoarseSplit
    flow: LadderFlow
    draws: list[WeightedDraws]
    fits: list[SurfaceFit]


@pytest.fixture(scope="module")
def system(gmx: Gmx, tmp_path_factory: pytest.TempPathFactory) -> System:
    tpr = tmp_path_factory.mktemp("butane") / "fine.tpr"
    gmx.grompp(Mdp.read(FOLDER / "fine.mdp"), FOLDER / "conf.gro", FOLDER / "topol.top", tpr)
    coarse = load_workflow(ROOT / "workflows" / "n_butane.yaml").coarse
    torsions = {name: list(atoms) for name, atoms in coarse.torsions.items()}
    structure, _ = read_structure(FOLDER / "conf.gro")
    return System.build(parse_tpr_dump(gmx.dump(tpr)), structure, coarse.beads, torsions, 300.0)


def short_walks(system: System) -> CoarseSplit:
    """Sixteen walkers of 3 ps in each well, their last 2 ps: 40 frames each."""
    coordinates = system.coordinates
    _, b, y = coordinates.split(coordinates.relabel(torch.from_numpy(system.structure)[None]))
    s = torch.from_numpy(np.repeat(WELLS, 16)[:, None])
    walkers = Langevin(system.energy().energy_and_gradient, system.topology.masses, 300.0, 5.0, 0.001, seed=1)
    start = coordinates.join(s, b.expand(48, -1), y.expand(48, -1)).contiguous()
    frames: list[Tensor] = []
    state = walkers.run(walkers.start(start), 1000)
    walkers.run(state, 2000, every=50, callback=lambda now, _: frames.append(now.positions.clone()))
    s, b, y = coordinates.split(coordinates.relabel(torch.stack(frames, dim=1).flatten(0, 1)))
    u = system.target()(s, b, y)
    return CoarseSplit(*(part.numpy() for part in (s, b, y, u)), np.repeat(np.arange(48), 40))


@pytest.fixture(scope="module")
def butane(system: System) -> Butane:
    split, coordinates = short_walks(system), system.coordinates
    shape = FlowSettings(couplings=2, width=32, coupling_width=16, circle_width=16)
    flow = LadderFlow(coordinates.n_s, coordinates.b, coordinates.y, shape)
    train_likelihood(flow.float(), split, LikelihoodSettings(steps=100, batch=256, warm_up=20), seed=1)

    def propose(batch: int, generator: torch.Generator) -> Tensor:
        return np.pi * (2 * torch.rand(batch, 1, generator=generator, dtype=torch.float64) - 1)

    settings = EnergySettings(steps=150, batch=256, learning_rate=3e-3, warm_up=20)
    train_energy(flow, system.target(torch.float32), propose, split, settings, seed=2)
    flow = flow.double()
    draws = []
    for seed in range(2):
        s = np.random.default_rng(seed).uniform(-np.pi, np.pi, (300, 1))
        log_w, _ = draw_ladder(flow, system.target(), s, 64, seed)
        draws.append(WeightedDraws(s, log_w, np.full(300, -np.log(2 * np.pi)), log_w.size))
    return Butane(system, split, flow, draws, [fit_surface(part, JointFitSettings(order=8)) for part in draws])


def test_walks_know_their_wells_and_the_flow_covers_the_barriers(butane: Butane) -> None:
    phi = butane.split.s[:, 0].reshape(3, -1)
    away = np.abs((phi - WELLS[:, None] + np.pi) % (2 * np.pi) - np.pi)
    assert (away < np.radians(60)).mean() > 0.9, "populations of these frames are those of the starts, not of f"
    chi2 = np.concatenate([relative_variance(part.log_w) for part in butane.draws])
    assert np.median(chi2) < 4


def test_mirror_images_have_the_same_free_energy(butane: Butane) -> None:
    combined, agreement = combine_fits(butane.fits)
    assert agreement.p_value > 1e-3
    value, error = combined.delta_f(PLUS, MINUS, 180, NAMES)
    assert abs(value) < 3.3 * error
    assert error < 0.1
    s = np.linspace(0.1, 3.0, 12)[:, None]
    waves = combined.basis.design(s) - combined.basis.design(-s)
    spread = np.sqrt(np.einsum("mp,pq,mq->m", waves, combined.covariance, waves))
    z = (combined.values(s) - combined.values(-s)) / spread
    assert np.mean(z**2) < 3, "12 correlated pulls: 1 is expected"


def test_surface_is_that_of_long_biased_walks(butane: Butane) -> None:
    combined, _ = combine_fits(butane.fits)
    reference = load_reference(REFERENCE)
    surface = combined.surface(len(reference.surface.f), NAMES, 300.0)
    assert rmsd_kT(reference.surface, surface) < 0.1
    assert forward_kl(reference.surface, surface) < 3e-3 + reference.noise_floor


def test_difference_of_gauche_and_trans_is_that_of_long_biased_walks(butane: Butane) -> None:
    value, error = combine_fits(butane.fits)[0].delta_f(PLUS, TRANS, 120, NAMES)
    reference = load_reference(REFERENCE)
    # Two independent halves and two mirror images: four values of the same number.
    truth = [delta_f(half, well, TRANS) for half in (reference.half_a, reference.half_b) for well in (PLUS, MINUS)]
    assert abs(value - np.mean(truth)) < 3.3 * np.hypot(error, np.std(truth, ddof=1))
    assert error < 0.1
    assert np.std(truth, ddof=1) < 0.05
