"""Stages of the coarse model with four coarse torsions (alanine tripeptide), from the fit to restored frames."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_pair_maps import NAMES, POSITIONS, energy, pair_energy
from tripeptide import BEADS, TORSIONS

from ccg_gmx.cycle.proposal import GridProposal, cells_per_torsion
from ccg_gmx.cycle.stages import coarse, fine, restore, surfaces
from ccg_gmx.cycle.store import Work, read_json
from ccg_gmx.cycle.system import System
from ccg_gmx.engine.gromacs import Gmx
from ccg_gmx.flow.checkpoint import save_flow
from ccg_gmx.flow.conditional import FlowSettings, LadderFlow
from ccg_gmx.free_energy.fourier import FourierBasis
from ccg_gmx.free_energy.surface import forward_kl, histogram_surface, shifted
from ccg_gmx.free_energy.surface_files import load_surface, save_surface
from ccg_gmx.free_energy.surface_fit import SurfaceFit
from ccg_gmx.molecule.supports import bead_torsions
from ccg_gmx.potential.coarse import CoarsePotential
from ccg_gmx.potential.fit import FitSettings
from ccg_gmx.potential.pairing import total_correlation
from ccg_gmx.records import CoarseRun, FloatArray

MOLECULE = Path(__file__).resolve().parent.parent / "topologies" / "alanine_tripeptide"
COUPLING = 1.0  # kT, of psi1 with phi2
MD = {"dt_ps": 0.002, "output_every": 100, "friction_time_ps": 0.2}
B_SD = np.array([0.003] * 7 + [0.05] * 6 + [0.1])

Stage = Callable[..., Path]


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    """Run a stage function in a folder of its own and return the folder."""

    def run(function: Callable[[Work], None], settings: dict[str, Any], inputs: dict[str, Path], seed: int = 1) -> Path:
        folder = tmp_path_factory.mktemp(function.__name__)
        function(Work(folder, settings, inputs, seed, {}, lambda *_: None))
        return folder

    return run


@pytest.fixture(scope="module")
def system_folder(gmx: Gmx, stage: Stage) -> Path:
    facts = {
        "temperature_K": 300.0,
        "beads": {f"B{i}": atom + 1 for i, atom in enumerate(BEADS)},
        "torsions": {name: [atom + 1 for atom in atoms] for name, atoms in TORSIONS.items()},
    }
    return stage(fine.make_system, facts, {"topology": MOLECULE / "topol.top", "structure": MOLECULE / "conf.gro"})


@pytest.fixture(scope="module")
def system(system_folder: Path) -> System:
    return System.load(system_folder)


@pytest.fixture(scope="module")
def surface_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What make_surface leaves: a Fourier fit of a known surface, and its grid."""
    folder = tmp_path_factory.mktemp("surface")
    basis = FourierBasis(3, 4, (3, 3, 0, 0))
    s = np.random.default_rng(1).uniform(-math.pi, math.pi, (4 * basis.size, 4))
    coefficients = np.linalg.lstsq(basis.design(s), energy(s, COUPLING), rcond=None)[0]
    fit = SurfaceFit(3, 4, coefficients, 1e-5 * np.eye(basis.size), 1.0, len(s), basis.size, basis.limits)
    fit.save(folder / "fit.npz")
    n = cells_per_torsion(4)
    save_surface(fit.surface(n, NAMES, 300.0), folder / "surface.npz")
    return folder


@pytest.fixture(scope="module")
def beads_folder(system: System, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bead draws of A(s, b) = F(s) + Gaussians of b around the starting structure, two draws with noise each."""
    folder, rng, m = tmp_path_factory.mktemp("beads"), np.random.default_rng(2), 3000
    _, centre, _ = system.coordinates.split(torch.from_numpy(system.structure)[None])
    s = rng.uniform(-math.pi, math.pi, (m, 4))
    z = 1.2 * rng.normal(size=(m, 14))
    a = energy(s, COUPLING) + 0.5 * np.sum(z**2, axis=1)
    step = 1e-5
    by_s = [(energy(s + d, COUPLING) - energy(s - d, COUPLING)) / (2 * step) for d in step * np.eye(4)]
    error = np.append(np.full(4, 0.3), 0.3 / B_SD)
    gradient = np.column_stack([*by_s, z / B_SD]) + error * rng.normal(size=(m, 18))
    np.savez(
        folder / "beads.npz",
        s=s,
        b=centre.numpy() + B_SD * z,
        log_w=-a[:, None] + 0.05 * rng.normal(size=(m, 4)),
        log_rho=-0.5 * np.sum((z / 1.2) ** 2, axis=1),
        gradient=gradient,
        gradient_error=np.tile(error, (m, 1)),
    )
    return folder


@pytest.fixture(scope="module")
def fit_folder(stage: Stage, system_folder: Path, surface_folder: Path, beads_folder: Path) -> Path:
    settings = {"coarse_fit": FitSettings().model_dump(mode="json"), "members": 1, "final_steps": 1000, **MD}
    inputs = {"system": system_folder, "surface": surface_folder, "beads0": beads_folder}
    return stage(coarse.fit_coarse, settings, inputs)


@pytest.fixture(scope="module")
def run_folder(stage: Stage, system_folder: Path, fit_folder: Path) -> Path:
    settings = {"steps": 10_000, "copies": 100, **MD}
    inputs = {"system": system_folder, "coarse_fit": fit_folder}
    runs = [stage(coarse.run_coarse, settings, inputs, seed) for seed in (1, 2)]
    return stage(coarse.gather_coarse, {"runs": 2}, {f"run{i}": run for i, run in enumerate(runs)})


# --- the pieces ------------------------------------------------------------------------------------------------------


def test_torsions_stand_where_the_pairing_expects_them(system: System) -> None:
    assert coarse.torsion_positions(system) == POSITIONS


def test_coarse_molecule_has_omega_among_its_terms(system: System) -> None:
    molecule = coarse.coarse_molecule(system)
    assert molecule.bead_names == ("C", "N", "CA", "C", "N", "CA", "C", "N")
    assert molecule.residue_ids == (1, 2, 2, 2, 3, 3, 3, 4)
    assert sum(molecule.masses) == pytest.approx(float(system.topology.masses.sum()), rel=1e-12)
    assert len(molecule.terms) == len(system.coordinates.b) == 14
    assert molecule.terms[-1] == (2, 3, 4, 5)
    assert molecule.torsions == ((0, 1, 2, 3), (1, 2, 3, 4), (3, 4, 5, 6), (4, 5, 6, 7))
    assert [len(beads) for beads in molecule.terms] == [2] * 7 + [3] * 6 + [4]
    chain = bead_torsions(system.coordinates.tree)[2]
    assert tuple(system.beads[i] for i in molecule.terms[-1]) == chain


def test_density_of_the_coarse_frames_in_four_dimensions() -> None:
    """Frames from one Gaussian well: the smoothed histogram is that well, widened by cell and kernel, within 10 %."""
    rng = np.random.default_rng(3)
    mean, sd, n = np.array([0.5, -2.0, 3.0, 1.0]), 0.5, 24
    s = np.mod(mean + sd * rng.normal(size=(40_000, 4)) + math.pi, 2 * math.pi) - math.pi
    run = CoarseRun(s, np.zeros((len(s), 0)), np.zeros((len(s), 0, 3)), 1.0, np.zeros(len(s), dtype=np.int64))
    density = coarse.coarse_density(run, shifted(np.zeros((n,) * 4), NAMES, 300.0))
    assert density.shape == (n,) * 4
    assert (density > 0).all()
    axis = -math.pi + 2 * math.pi / n * np.arange(n)
    wide = sd**2 + (2 * math.pi / n) ** 2 / 12 + math.radians(7.5) ** 2
    for i in range(4):
        p = density.sum(axis=tuple(j for j in range(4) if j != i))
        d = np.angle(np.exp(1j * (axis - mean[i])))
        assert abs(np.average(d, weights=p)) < 4 * sd / math.sqrt(len(s)) + 0.01
        assert np.average(d**2, weights=p) == pytest.approx(wide, rel=0.1)


# --- the stages ------------------------------------------------------------------------------------------------------


def test_fit_gives_two_maps_whose_marginals_are_those_of_the_surface(fit_folder: Path, surface_folder: Path) -> None:
    potential = CoarsePotential.load(fit_folder / "potential.npz")
    assert [grid.names for grid in potential.basis.maps.grids] == [NAMES[:2], NAMES[2:]]
    fit = SurfaceFit.load(surface_folder / "fit.npz")
    for k, columns in enumerate(potential.basis.maps.columns):
        part = fit.marginal(columns, 48, NAMES, 300.0)
        assert forward_kl(part, shifted(potential.map_grid(k, 48) / potential.kT, part.names, 300.0)) < 1e-4
    lost = total_correlation(load_surface(surface_folder / "surface.npz"), potential.basis.maps)
    assert potential.residual.surface_kl == pytest.approx(lost, abs=1e-3)
    assert lost > 0.05
    top = (fit_folder / "forcefield" / "topol.top").read_text()
    assert "[ cmap ]\n; beads function\n1 2 3 4 5 1\n4 5 6 7 8 1\n" in top


def test_starts_are_draws_of_the_density_in_which_every_map_holds_its_shares(fit_folder: Path) -> None:
    potential = CoarsePotential.load(fit_folder / "potential.npz")
    s, b = coarse.equilibrium_starts(potential, 400, seed=5)
    assert s.shape == (400, 4)
    assert b.shape == (400, 14)
    exact, _ = potential.sample(200_000, seed=6)
    for column in (0, 2):  # the thinned torsions: to about one copy in any half-circle
        for centre in np.linspace(-3, 3, 7):
            share, truth = (np.mean(np.cos(x[:, column] - centre) > 0) for x in (s, exact))
            assert abs(share - truth) < 2.5 / 400 + 4 * 0.5 / math.sqrt(200_000)
    for column in (1, 3):
        error = exact[:, column].std() / 20
        assert abs(np.cos(s[:, column]).mean() - np.cos(exact[:, column]).mean()) < 4 * error
    r = np.corrcoef(np.argsort(np.argsort(s[:, 0])), np.argsort(np.argsort(s[:, 2])))[0, 1]
    assert abs(r) < 4 / math.sqrt(400)  # thinned and sorted each, but joined at random


@pytest.mark.slow
def test_coarse_md_samples_the_models_density(run_folder: Path, fit_folder: Path, system: System) -> None:
    """200 copies: means over copies within 4.5 standard errors; omega never leaves its window."""
    run, potential = coarse.load_coarse_run(run_folder), CoarsePotential.load(fit_folder / "potential.npz")
    exact_s, exact_b = potential.sample(100_000, seed=7)
    frames = len(run.s) // 200
    assert run.walker.max() == 199
    assert system.coordinates.in_support_beads(torch.from_numpy(run.b)).all()

    def waves(s: FloatArray) -> list[FloatArray]:
        return [wave(s[:, i]) for i in range(4) for wave in (np.cos, np.sin)] + [np.cos(s[:, 1] + s[:, 2])]

    mine = [*waves(run.s), *run.b.T, *(run.b - exact_b.mean(axis=0)).T ** 2]
    truth = [*waves(exact_s), *exact_b.T, *(exact_b - exact_b.mean(axis=0)).T ** 2]
    for sampled, wanted in zip(mine, truth, strict=True):
        copies = sampled.reshape(200, frames).mean(axis=1)
        error = math.hypot(copies.std(ddof=1) / math.sqrt(200), wanted.std() / math.sqrt(len(wanted)))
        assert abs(sampled.mean() - wanted.mean()) < 4.5 * error + 0.01 * wanted.std()


@pytest.mark.slow
def test_next_proposal_holds_the_coarse_frames(stage: Stage, surface_folder: Path, run_folder: Path) -> None:
    settings = {
        "uniform_fraction": 0.2,
        "coarse_fraction": 0.8,
        "disagreement_fraction": 0.0,
        "temperature_factor": 2.0,
        "members": 0,
    }
    inputs = {"surface": surface_folder, "coarse": run_folder}
    proposal = GridProposal.load(stage(surfaces.next_proposal, settings, inputs) / "proposal.npz")
    grid = cells_per_torsion(4)
    first = GridProposal.load(stage(surfaces.first_proposal, {"grid": grid, "n_s": 4}, {}) / "proposal.npz")
    assert proposal.probability.shape == first.probability.shape
    s = coarse.load_coarse_run(run_folder).s
    gain = proposal.log_density(s) - first.log_density(s)
    assert gain.mean() > 1.0
    assert gain.min() >= math.log(0.2) - 1e-9
    pair = histogram_surface(s[:, [2, 3]], 36, NAMES[2:], 300.0, kde_degrees=6.0)
    axis = -math.pi + 2 * math.pi / 36 * np.arange(36)
    truth = shifted(pair_energy(-axis[:, None], axis[None] + 0.4), NAMES[2:], 300.0)
    assert forward_kl(truth, pair) < 0.1  # the coupling, kernel and few frames included


@pytest.mark.slow
def test_restored_frames_stand_on_their_beads(
    stage: Stage, system: System, system_folder: Path, run_folder: Path, fit_folder: Path, tmp_path: Path
) -> None:
    """An untrained flow: the geometry is right, whatever the weights are worth."""
    coordinates = system.coordinates
    generator = torch.Generator().manual_seed(8)
    r = torch.from_numpy(system.structure).repeat(400, 1, 1)
    r = coordinates.relabel(r + 0.002 * torch.randn(r.shape, generator=generator, dtype=r.dtype))
    s, b, y = coordinates.split(r)
    flow = LadderFlow(4, coordinates.b, coordinates.y, FlowSettings(couplings=1, bead_couplings=1, width=16)).double()
    flow.fit_scales(b, y)
    save_flow(flow, tmp_path / "flow.pt")
    arrays = {"s": s.numpy(), "b": b.numpy(), "y": y.numpy(), "u": np.zeros(400), "run": np.zeros(400, dtype=np.int64)}
    np.savez(tmp_path / "held_out.npz", **arrays)
    inputs = {"system": system_folder, "split": tmp_path, "flow": tmp_path, "coarse": run_folder}
    inputs |= {"coarse_fit": fit_folder, "structure": MOLECULE / "conf.gro"}
    folder = stage(restore.restore_frames, {"frames": 30}, inputs)
    facts = read_json(folder / "restored.json")
    assert facts["frames"] == 30
    assert facts["max_bead_deviation_nm"] == 0.0
    assert facts["chirality_errors"] == facts["bead_support_errors"] == 0
    with np.load(folder / "restored" / "restored.npz") as data:
        assert data["positions"].shape == (30, 32, 3)
        assert data["s"].shape == (30, 4)
        assert np.isfinite(data["log_w_total"]).all()
        again = coordinates.split(torch.from_numpy(data["positions"]))
        for value, name in zip(again, ("s", "b", "y"), strict=True):
            np.testing.assert_allclose(np.cos(value.numpy() - data[name]), 1.0, atol=1e-12)
