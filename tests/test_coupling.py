"""What the maps of a force field leave out of the surface: its size, its fit, the command, and coarse MD under it."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from plumed_tools import columns, environment
from scipy import special, stats
from test_export_gromacs import place

from ccg_gmx.cli import main
from ccg_gmx.engine.gromacs import Gmx
from ccg_gmx.engine.mdp import coarse_run
from ccg_gmx.engine.plumed_build import Plugin
from ccg_gmx.engine.process import capture
from ccg_gmx.errors import SettingsError
from ccg_gmx.export import coupling_model
from ccg_gmx.export.coupling_model import CouplingSettings, coupling_grid, fit_coupling, maps_alone
from ccg_gmx.export.gromacs import CoarseMolecule, ForceField, GromacsExportSettings, write_forcefield
from ccg_gmx.export.static_bias import capped
from ccg_gmx.export.torch_model import read_perceptron
from ccg_gmx.free_energy.fourier import FourierBasis
from ccg_gmx.free_energy.surface_fit import MarginalRatio, SurfaceFit
from ccg_gmx.free_energy.torsion_grid import grid, shifted
from ccg_gmx.molecule.coordinate import Coordinate
from ccg_gmx.potential.basis import SeparableBasis, SplineTerm, TorsionGrid, TorsionMaps
from ccg_gmx.potential.coarse import CoarsePotential, FitResidual
from ccg_gmx.potential.coupling import Coupling, Points
from ccg_gmx.potential.pairing import marginal, pair_torsions, total_correlation
from ccg_gmx.records import FloatArray, FreeEnergySurface
from ccg_gmx.units import thermal_energy

NAMES = ("a", "b", "c")
KT = thermal_energy(300.0)
KAPPA = 2.0
"""Coupling of b and c, kT."""

N = 36
CENTRE = np.array([0.15] * 5 + [2.0] * 4)
SD = np.array([0.006] * 5 + [0.08] * 4)
KINDS = [("bond", "positive")] * 5 + [("angle", "polar")] * 4
TERMS = tuple(
    SplineTerm(Coordinate(f"{kind} {i}", kind, support), at - 5 * sd, at + 5 * sd, 10, 0.3 / sd**2)
    for i, ((kind, support), at, sd) in enumerate(zip(KINDS, CENTRE, SD, strict=True))
)
MOLECULE = CoarseMolecule(
    name="CHAIN",
    bead_names=tuple(f"B{i}" for i in range(6)),
    residue_names=("CHN",) * 6,
    residue_ids=(1,) * 6,
    masses=(40.0,) * 6,
    terms=(*((i, i + 1) for i in range(5)), *((i, i + 1, i + 2) for i in range(4))),
    torsions=tuple((i, i + 1, i + 2, i + 3) for i in range(3)),
)
SMALL = CouplingSettings(hidden=(24, 24), steps=500, batch=512, points=8192, learning_rate=1e-2)


def energy(s: FloatArray, kappa: float = KAPPA) -> FloatArray:
    """kT at ``s [..., 3]``; no symmetry that could hide a swapped torsion or sign."""
    a, b, c = s[..., 0], s[..., 1], s[..., 2]
    own = 1.2 * np.cos(a - 0.5) + 0.8 * np.cos(b + 1.0) + 1.1 * np.cos(a + 2 * b) + 0.5 * np.sin(2 * c)
    return own - kappa * np.cos(b - c + 0.7)


def surface_of(values: FloatArray, names: tuple[str, ...]) -> FreeEnergySurface:
    return shifted(values.reshape((N,) * len(names)), names, 300.0)


def potential_of(surface: FreeEnergySurface, maps: TorsionMaps) -> CoarsePotential:
    """Maps through the marginals of a surface; harmonic bonds and angles."""
    terms = TERMS if len(surface.names) == 3 else ()
    basis = SeparableBasis(terms, maps)
    coefficients = np.zeros(basis.size)
    for k, columns_of in enumerate(maps.columns):
        part = marginal(surface, columns_of).f
        design = maps.grids[k].design(grid(N, len(columns_of)))
        coefficients[basis.blocks[k]] = np.linalg.lstsq(design.toarray(), part.ravel(), rcond=None)[0]
    for i, term in enumerate(terms):
        x = np.linspace(term.lo, term.hi, 200)
        harmonic = 0.5 * ((x - CENTRE[i]) / SD[i]) ** 2
        block = basis.blocks[basis.n_maps + i]
        coefficients[block] = np.linalg.lstsq(term.design(x).toarray(), harmonic, rcond=None)[0]
    nothing = FitResidual(np.zeros(basis.n_s + basis.n_b), np.zeros(basis.n_s + basis.n_b), math.nan, 0.0, 0)
    return CoarsePotential(basis, coefficients, np.zeros((basis.size,) * 2), 300.0, nothing)


def fit_of(values: FloatArray, dims: int) -> SurfaceFit:
    """Fourier series through values on the grid ``[N ** dims]``."""
    basis = FourierBasis(3, dims)
    coefficients = np.linalg.lstsq(basis.grid_design(N), values.ravel(), rcond=None)[0] if dims < 3 else None
    if coefficients is None:
        basis = FourierBasis(3, dims, (3, 3, 0))
        s = np.random.default_rng(1).uniform(-math.pi, math.pi, (4 * basis.size, dims))
        coefficients = np.linalg.lstsq(basis.design(s), energy(s), rcond=None)[0]
    covariance = np.zeros((basis.size,) * 2)
    return SurfaceFit(3, dims, coefficients, covariance, 1.0, 1000, basis.size, basis.limits)


@pytest.fixture(scope="module")
def coupling() -> Coupling:
    """Three torsions: a map over (a, b), one over c, and the coupling of b with c lost between them."""
    surface = surface_of(energy(grid(N, 3)), NAMES)
    maps = pair_torsions(surface, (0, 1, 2))
    columns_of = ((0, 1), (2,))
    if maps.columns != columns_of:  # the pair that keeps most information; which one is not the matter here
        maps = TorsionMaps((TorsionGrid(NAMES[:2]), TorsionGrid(NAMES[2:])), columns_of)
    return Coupling(fit_of(energy(grid(N, 3)), 3), potential_of(surface, maps))


@pytest.fixture(scope="module")
def model(coupling: Coupling) -> coupling_model.CouplingModel:
    return fit_coupling(coupling, SMALL, seed=1)


# --- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kappa", [0.3, 2.0])
def test_quality_of_a_known_difference(kappa: float) -> None:
    """A cosine too many over a flat circle: KL is ln I0, the rms is that of a cosine."""
    s = grid(200, 1)
    flat = np.zeros(len(s))
    points = Points(s, flat, flat, np.full(len(s), 1 / len(s)))
    found = points.quality(kappa * np.cos(s[:, 0]) + 17.0)
    assert found.kl == pytest.approx(math.log(special.i0(kappa)), rel=1e-9)
    assert found.rms_kT == pytest.approx(kappa / math.sqrt(2), rel=1e-9)


def test_maps_lose_the_total_correlation(coupling: Coupling) -> None:
    surface = surface_of(energy(grid(N, 3)), NAMES)
    lost = total_correlation(surface, coupling.potential.basis.maps)
    assert lost > 0.3
    found = [maps_alone(coupling, seed, points=16_384).kl for seed in range(8)]
    error = np.std(found, ddof=1) / math.sqrt(8)
    assert abs(np.mean(found) - lost) < stats.t.ppf(1 - 5e-4, 7) * error + 1e-3  # 99.9 %, and the grid of 36 points
    assert error < 0.01


def test_caps_bound_the_sum_of_maps_and_correction() -> None:
    rng = np.random.default_rng(2)
    full, maps = rng.uniform(0, 40, (2, 2000))
    points = Points(np.zeros((2000, 1)), full, maps, np.full(2000, 1 / 2000))
    cap = partial(capped, cap_kT=15.0)
    total = maps + points.target(cap)
    low = maps < 14
    np.testing.assert_allclose(total[low], cap(full)[low], atol=1e-12)
    high = (full > 16) & (maps > 16)
    np.testing.assert_allclose(total[high], maps[high], atol=1e-12)
    assert (total[full > 16] > 15.0 - 1e-12).all()


def test_what_draws_say_beyond_the_fit_about_a_map_counts_once(coupling: Coupling) -> None:
    """A ratio over the torsions of a map is in the map, so it is in F; one between maps is not."""
    small = fit_of(0.1 * np.cos(grid(N, 2)[:, 0]), 2)
    s = np.random.default_rng(3).uniform(-math.pi, math.pi, (50, 3))
    for axes, counts in (((0, 1), True), ((1, 2), False)):
        other = replace(coupling, fit=coupling.fit.with_ratios([MarginalRatio(axes, small)]))
        expected = 0.1 * np.cos(s[:, 0]) if counts else 0.0
        np.testing.assert_allclose(other.full(s) - coupling.full(s), expected, atol=1e-9)


def test_network_restores_the_surface(coupling: Coupling, model: coupling_model.CouplingModel) -> None:
    assert model.quality.kl < 1e-3  # of 0.4 nats
    assert model.quality.rms_kT < 0.06
    s = coupling.points(4000, seed=9).s
    with torch.no_grad():
        v = model.network(torch.from_numpy(s))[:, 0].numpy() / KT
    off = v - (coupling.full(s) - coupling.maps(s))
    low = energy(s) < energy(s).min() + 6
    assert np.std(off[low]) < 0.1
    assert model.signature.temperature_K == 300.0
    assert [q.name for q in model.signature.arguments] == list(NAMES)


def test_the_same_seed_gives_the_same_network(coupling: Coupling) -> None:
    few = SMALL.model_copy(update={"steps": 5})
    first, again, other = (fit_coupling(coupling, few, seed).quality.rms_kT for seed in (1, 1, 2))
    assert first == again != other


def test_two_torsions_apart_get_an_exact_grid() -> None:
    """Two single maps; the grid holds all of the von Mises coupling between them."""
    values = -1.5 * np.cos(grid(N, 2) @ np.array([1.0, -1.0]))
    apart = TorsionMaps((TorsionGrid(("a",)), TorsionGrid(("b",))), ((0,), (1,)))
    coupling = Coupling(fit_of(values, 2), potential_of(surface_of(values, ("a", "b")), apart))
    assert maps_alone(coupling).kl > 0.1
    bias, quality = coupling_grid(coupling)
    assert quality.kl < 1e-9
    off = bias.values / KT + 1.5 * np.cos(np.subtract.outer(*(grid(len(bias.values), 1)[:, 0],) * 2))
    assert np.ptp(off) < 1e-6


def test_parts_of_two_runs_are_refused(coupling: Coupling) -> None:
    with pytest.raises(SettingsError, match="over 2 torsions and maps over 3"):
        Coupling(fit_of(np.zeros(N * N), 2), coupling.potential)


# --- the command -----------------------------------------------------------------------------------------------------


def forcefield(folder: Path, potential: CoarsePotential, copies: int, steps: int = 1000, seed: int = 1) -> ForceField:
    s, b = potential.sample(copies, seed)
    mdp = coarse_run(300.0, steps, seed, dt_ps=0.005, output_every=1000, tau_t_ps=0.2, cutoff_nm=0.5)
    return write_forcefield(folder, potential, MOLECULE, place(s, b), mdp.text(), GromacsExportSettings(box_nm=8.0))


def run_folder(folder: Path, coupling: Coupling) -> Path:
    """The parts of a finished run that a correction is made from; its beads are every second atom."""
    for stage in ("surface-1", "coarse_fit-1"):
        (folder / "stages" / stage).mkdir(parents=True)
    coupling.fit.save(folder / "stages/surface-1/fit.npz")
    coupling.potential.save(folder / "stages/coarse_fit-1/potential.npz")
    forcefield(folder / "forcefield", coupling.potential, 1)
    beads = {f"B{i}": 2 * i + 3 for i in range(6)}
    atoms = list(beads.values())
    torsions = {name: atoms[i : i + 4] for i, name in enumerate(NAMES)}
    packed = {"surface": "surface-1", "coarse_fit": "coarse_fit-1"}
    packed |= {"workflow": {"coarse": {"beads": beads, "torsions": torsions}}}
    (folder / "results.json").write_text(json.dumps(packed))
    return folder


@pytest.fixture
def run(tmp_path: Path, coupling: Coupling, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run folder, and a short training."""
    short = SMALL.model_copy(update={"steps": 50})
    small = partial(coupling_model.CouplingSettings, **short.model_dump(exclude={"cap_kT"}))
    monkeypatch.setattr(coupling_model, "CouplingSettings", small)
    return run_folder(tmp_path / "run", coupling)


def ccg(run: Path, *arguments: object) -> Result:
    command = ["plumed", "input", "--method", "static", "--run", run, "--target", "coarse", *arguments]
    return CliRunner().invoke(main, [str(part) for part in command], catch_exceptions=False)


def test_command_writes_input_and_model_into_the_force_field(run: Path) -> None:
    done = ccg(run, "--no-check", "--ntomp", 1)
    assert done.exit_code == 0, done.output
    folder = run / "forcefield"
    text = (folder / "plumed.dat").read_text()
    assert "a: TORSION ATOMS=1,2,3,4\nb: TORSION ATOMS=2,3,4,5\nc: TORSION ATOMS=3,4,5,6\n" in text
    assert "coupling: TORCH_MODEL FILE=plumed.json ARG=a,b,c BIAS\n" in text
    assert "PRINT ARG=a,b,c,coupling.bias" in text
    network = read_perceptron(folder / "plumed.json")
    assert network(torch.zeros(1, 3, dtype=torch.float64)).shape == (1, 1)
    assert "force field alone, over exp(-F): 0." in done.output
    assert "with the bias: " in done.output
    assert "gmx grompp -f tables.mdp && gmx mdrun -tableb *.xvg -plumed plumed.dat -ntmpi 1 -ntomp 1" in done.output
    again = ccg(run, "--no-check")
    assert again.exit_code == 2
    assert "plumed.dat and 1 more exists already" in again.output
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_one_map_needs_no_correction(run: Path, coupling: Coupling) -> None:
    """The same command where the surface is a map and a torsion that feels nothing of it."""
    values = energy(grid(N, 3), kappa=0.0)
    uncoupled = potential_of(surface_of(values, NAMES), coupling.potential.basis.maps)
    basis = FourierBasis(3, 3, (3, 3, 0))
    s = np.random.default_rng(1).uniform(-math.pi, math.pi, (4 * basis.size, 3))
    coefficients = np.linalg.lstsq(basis.design(s), energy(s, 0.0), rcond=None)[0]
    replace(coupling.fit, coefficients=coefficients).save(run / "stages/surface-1/fit.npz")
    uncoupled.save(run / "stages/coarse_fit-1/potential.npz")
    done = ccg(run)
    assert done.exit_code == 0, done.output
    assert "there is nothing to correct, no file written" in done.output
    assert not (run / "forcefield" / "plumed.dat").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--torsion", "phi=1,2,3,4"], "--target coarse with --torsion"),
        (["--through", "colvars"], "--target coarse with --method static --through colvars"),
        (["--method", "opes"], "--target coarse with --method opes"),
        (["--temperature", "310"], "expected 300 K"),
    ],
)
def test_what_makes_no_sense_is_one_line(run: Path, options: list[str], message: str) -> None:
    done = ccg(run, *options)
    assert done.exit_code == 2
    assert done.output.count("\n") == 1
    assert message in done.output


def test_stages_that_are_gone_are_named(run: Path) -> None:
    (run / "stages/surface-1/fit.npz").unlink()
    done = ccg(run)
    assert done.exit_code == 2
    assert "fit.npz is gone; `ccg run` with the same --out" in done.output


# --- coarse MD -------------------------------------------------------------------------------------------------------

COPIES, STEPS, SKIP = 16, 20_000, 40


def for_copies(text: str) -> str:
    """The input of one molecule for all copies in a box."""
    lines = text.splitlines()
    load = next(line for line in lines if line.startswith("LOAD"))
    out = [load]
    for k in range(COPIES):
        for i, name in enumerate(NAMES):
            out.append(f"{name}{k}: TORSION ATOMS={','.join(str(6 * k + i + j + 1) for j in range(4))}")
        line = next(line for line in lines if line.startswith("coupling:"))
        names = ",".join(f"{name}{k}" for name in NAMES)
        out.append(line.replace("coupling:", f"v{k}:").replace("ARG=a,b,c", f"ARG={names} ANY_NAMES"))
    return "\n".join([*out, "PRINT ARG=* STRIDE=100 FILE=COLVAR", ""])


def observables(s: FloatArray) -> FloatArray:
    """``[..., 5]``: the coupled pair, and single torsions."""
    a, b, c = (s[..., i] for i in range(3))
    return np.stack([np.cos(b - c + 0.7), np.sin(b - c + 0.7), np.cos(a - 0.5), np.cos(b + 1.0), np.sin(2 * c)], -1)


@pytest.mark.slow
@pytest.mark.plumed
@pytest.mark.gmx
def test_coarse_md_with_the_bias_samples_the_surface(
    gmx: Gmx, plugin: Plugin, run: Path, coupling: Coupling, model: coupling_model.CouplingModel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """16 chains started from what the maps alone give: means over the chains agree with exp(-F) at 99.9 % in all."""
    monkeypatch.setattr(coupling_model, "fit_coupling", lambda *_, **__: model)  # trained already
    done = ccg(run)
    assert done.exit_code == 0, done.output
    field = forcefield(run / "many", coupling.potential, COPIES, STEPS, seed=3)
    text = (
        (run / "forcefield" / "plumed.dat")
        .read_text()
        .replace("FILE=plumed.json", f"FILE={run}/forcefield/plumed.json")
    )
    (field.folder / "plumed.dat").write_text(for_copies(text))
    gmx.grompp(field.tables_mdp.read_text(), field.structure, field.topology, field.folder / "run.tpr", workdir=run)
    command = [str(gmx.path), "mdrun", "-s", "run.tpr", "-plumed", "plumed.dat", "-ntmpi", "1", "-ntomp", "1"]
    command += ["-pin", "off", "-tableb", *(table.name for table in field.tables)]
    ended = capture(command, cwd=field.folder, env=environment(plugin))
    assert ended.returncode == 0, ended.stderr[-2000:]
    found = columns(field.folder / "COLVAR")
    s = np.stack([np.stack([found[f"{name}{k}"] for name in NAMES], -1) for k in range(COPIES)])[:, SKIP:]
    means = observables(s).mean(axis=1)
    error = means.std(axis=0, ddof=1) / math.sqrt(COPIES)
    points = grid(60, 3)
    weights = {"full": np.exp(-energy(points)), "maps": np.exp(-coupling.maps(points))}
    exact = {name: w @ observables(points) / w.sum() for name, w in weights.items()}
    bound = stats.t.ppf(1 - 1e-3 / (2 * 5), COPIES - 1)
    off = (means.mean(axis=0) - exact["full"]) / error
    assert (np.abs(off) < bound).all(), off
    assert abs(means[:, 0].mean() - exact["maps"][0]) > 2 * bound * error[0]  # the maps alone would not do
