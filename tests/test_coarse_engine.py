"""Runs of coarse models: which engine and why, the same energies everywhere, temperature, pressure, restarts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from plumed_tools import columns
from pydantic import ValidationError
from soft_fluid import beads, known_pair

from ccg_gmx.engine import coarse_choice
from ccg_gmx.engine.coarse_choice import choose_engine
from ccg_gmx.engine.coarse_engine import CoarseEngineRun, CoarseRunSettings, run_coarse
from ccg_gmx.engine.coarse_settings import mean_and_error
from ccg_gmx.engine.gromacs import Gmx
from ccg_gmx.engine.mdp import coarse_run
from ccg_gmx.engine.plumed_build import Plugin
from ccg_gmx.errors import SettingsError, StoreError, ToolMissingError
from ccg_gmx.export.coarse_system import coarse_system
from ccg_gmx.export.gromacs_system import write_gromacs
from ccg_gmx.export.openmm_system import build_openmm_system
from ccg_gmx.export.plumed_pairs import INPUT, pair_files
from ccg_gmx.molecule.coarse_topology import BondedType, CoarseMoleculeType, CoarseTopology
from ccg_gmx.molecule.trajectory import read_frames
from ccg_gmx.potential.curves import Curve, TorsionMap
from ccg_gmx.potential.evaluate import energies_and_forces
from ccg_gmx.potential.model import CoarseModel
from ccg_gmx.records import BeadFrames, FloatArray
from ccg_gmx.units import BAR_PER_KJ_MOL_NM3

MISSING = ToolMissingError("not on this machine")


def lattice(count: int, spacing: float, seed: int = 0) -> BeadFrames:
    """Beads on a cubic lattice with a little noise, in a cubic box."""
    side = int(np.ceil(count ** (1 / 3)))
    grid = np.stack(np.meshgrid(*[np.arange(side)] * 3), axis=-1).reshape(-1, 3)[:count] * spacing
    grid = grid + np.random.default_rng(seed).normal(size=grid.shape) * 0.01
    return BeadFrames(grid[None], np.zeros(1), side * spacing * np.eye(3)[None])


def chains(count: int) -> tuple[CoarseModel, CoarseTopology, BeadFrames]:
    """Five-bead chains of two types with every kind of term, on a lattice."""
    bonded = (
        BondedType("b", "bond", ((0, 1), (1, 2), (2, 3), (3, 4))),
        BondedType("a", "angle", ((0, 1, 2), (1, 2, 3), (2, 3, 4))),
        BondedType("d", "dihedral", ((0, 1, 2, 3),)),
        BondedType("m", "cmap", ((0, 1, 2, 3, 4),)),
    )
    excluded = tuple((i, j) for i in range(5) for j in range(i + 1, min(i + 4, 5)))
    names, types = tuple(f"C{i}" for i in range(5)), ("A", "B", "B", "B", "A")
    molecule = CoarseMoleculeType("CH", names, types, (15.0,) * 5, ("CHN",) * 5, (1,) * 5, bonded, excluded)
    rng = np.random.default_rng(5)
    stiff = (np.linspace(-2, 2, 13) ** 2) * 5.0
    soft = known_pair(0.8).pairs["W", "W"]
    model = CoarseModel(
        300.0,
        {
            "b": Curve("bond", 0.12, 0.18, stiff, None, 1e4),
            "a": Curve("angle", 1.3, 2.7, stiff, None, 50.0),
            "d": Curve("dihedral", -np.pi, np.pi, 3.0 * rng.normal(size=12)),
        },
        {"m": TorsionMap(2.0 * rng.normal(size=(12, 12)))},
        {("A", "A"): soft, ("A", "B"): Curve("pair", 0.3, 0.7, np.append(rng.normal(size=12), np.zeros(3)), None, 5e3)},
    )
    # a zigzag with a twist, no angle straight
    one = np.array([[0.0, 0.0, 0.0], [0.12, 0.09, 0.0], [0.24, 0.0, 0.02], [0.36, 0.08, 0.06], [0.46, 0.0, 0.15]])
    origins = lattice(count, 0.9)
    positions = (origins.positions[0][:, None] + one).reshape(1, -1, 3)
    return model, CoarseTopology(((molecule, count),)), BeadFrames(positions, np.zeros(1), origins.box)


@pytest.fixture
def nothing_installed(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine without GROMACS, PLUMED and OpenMM; tests put back what they want."""

    def missing(*_: object, **__: object) -> None:
        raise MISSING

    monkeypatch.setattr(coarse_choice.Gmx, "find", missing)
    monkeypatch.setattr(coarse_choice, "make_plugin", missing)
    monkeypatch.setattr(coarse_choice, "import_openmm", missing)
    return monkeypatch


PLUGIN = Plugin(Path("plugin.so"), Path("kernel.so"), "2.10", "", "", {})


def test_auto_takes_what_is_there_and_says_why(nothing_installed: pytest.MonkeyPatch) -> None:
    fluid, single, bonded_only = beads(30), beads(1), CoarseModel(300.0)
    with pytest.raises(
        ToolMissingError, match=r"no engine .*GROMACS: not on this machine; OpenMM: not.*ccg plumed build"
    ):
        choose_engine(known_pair(), fluid)
    nothing_installed.setattr(coarse_choice, "import_openmm", lambda: None)
    choice = choose_engine(known_pair(), fluid)
    assert choice.engine == "openmm"
    assert "GROMACS: not on this machine" in choice.why
    nothing_installed.setattr(coarse_choice.Gmx, "find", lambda: None)
    choice = choose_engine(known_pair(), fluid)
    assert choice.engine == "openmm"
    assert "PLUMED plug-in: not on this machine" in choice.why
    nothing_installed.setattr(coarse_choice, "make_plugin", lambda **_: PLUGIN)
    choice = choose_engine(known_pair(), fluid)
    assert (choice.engine, choice.plugin) == ("gromacs+plumed", PLUGIN)
    assert "PAIR_TABLE" in choice.why
    for model, topology, words in ((bonded_only, fluid, "all terms are bonded"), (known_pair(), single, "type 9")):
        choice = choose_engine(model, topology)
        assert choice.engine == "gromacs"
        assert words in choice.why


def test_an_engine_that_cannot_run_the_model_is_refused(nothing_installed: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match="30 molecules of 30 beads"):
        choose_engine(known_pair(), beads(30), "gromacs")
    with pytest.raises(SettingsError, match="model without pairs"):
        choose_engine(CoarseModel(300.0), beads(30), "gromacs+plumed")
    for engine in ("gromacs+plumed", "openmm"):
        with pytest.raises(ToolMissingError):
            choose_engine(known_pair(), beads(30), engine)


def test_settings_that_do_not_fit_each_other() -> None:
    for wrong in ({"steps": 150}, {"steps": 200, "settle_steps": 200}, {"steps": 200, "pressure_every": 30}):
        with pytest.raises(ValidationError):
            CoarseRunSettings(output_every=100, **wrong)


def test_the_error_of_a_mean_knows_correlation() -> None:
    """AR(1) with rho = 0.9: the variance of the mean is (1 + rho) / (1 - rho) = 19 times that of independent values."""
    rng = np.random.default_rng(2)
    series, rho = np.zeros(40_000), 0.9
    for t in range(1, len(series)):
        series[t] = rho * series[t - 1] + np.sqrt(1 - rho**2) * rng.normal()
    mean, error = mean_and_error(series)
    assert error == pytest.approx(np.sqrt(19 / len(series)), rel=0.15)
    assert abs(mean) < 4 * error


def all_frames(run: CoarseEngineRun) -> BeadFrames:
    """The frames that count, at once."""
    pieces = list(run.frames())
    assert all(piece.box is not None for piece in pieces)
    return BeadFrames(
        *(np.concatenate([getattr(piece, name) for piece in pieces]) for name in ("positions", "time", "box"))
    )


def potential_of_frames(run: CoarseEngineRun, model: CoarseModel, topology: CoarseTopology) -> FloatArray:
    """``[T]`` kJ/mol by our own evaluation."""
    return energies_and_forces(model, topology, all_frames(run)).total


@pytest.mark.gmx
@pytest.mark.plumed
def test_energies_of_one_run_agree_in_every_engine(gmx: Gmx, plugin: Plugin, tmp_path: Path) -> None:
    """All terms at once, on frames of a run: within 1e-3 kJ/mol per molecule."""
    openmm = pytest.importorskip("openmm")
    model, topology, start = chains(27)
    settings = CoarseRunSettings(steps=400, output_every=100, pressure_every=100, dt_ps=0.001, engine="gromacs+plumed")
    run = run_coarse(model, topology, start, settings, tmp_path / "run")
    own = potential_of_frames(run, model, topology)
    bonded = gmx.energies(tmp_path / "run" / "run.edr")["Potential"][1:]
    line = (tmp_path / "run" / INPUT).read_text() + "PRINT ARG=pairs.bias STRIDE=100 FILE=again FMT=%.12g\n"
    # a second run of the same steps, since the input of the first is part of its record
    again = tmp_path / "again"
    system = write_gromacs(
        again, model, topology, start, (tmp_path / "run" / "grompp.mdp").read_text(), molecule_pairs=False
    )
    for name, text in pair_files(model, topology).items():
        (again / name).write_text(text)
    (again / INPUT).write_text(line)
    tpr = gmx.grompp(system.mdp.read_text(), system.structure, system.topology, again / "run.tpr")
    gmx.mdrun(tpr, again, tables=system.tables, plumed=again / INPUT)
    pairs = columns(again / "again")["pairs.bias"][1:]
    assert np.abs(bonded + pairs - own).max() / 27 < 1e-3
    context = openmm.Context(
        build_openmm_system(coarse_system(model, topology, start)),
        openmm.VerletIntegrator(0.001),
        openmm.Platform.getPlatformByName("Reference"),
    )
    for position, energy in zip(all_frames(run).positions, own, strict=True):
        context.setPositions(position)
        found = context.getState(energy=True).getPotentialEnergy()._value
        assert abs(found - energy) / 27 < 1e-3


@pytest.mark.gmx
def test_pairs_within_one_molecule_are_bonds(gmx: Gmx, tmp_path: Path) -> None:
    """One chain in a box of its own: GROMACS alone, energies as ours, no pressure where the start had no box."""
    model, topology, start = chains(1)
    start = BeadFrames(start.positions, start.time)
    settings = CoarseRunSettings(steps=2000, output_every=100, pressure_every=100, dt_ps=0.001)
    run = run_coarse(model, topology, start, settings, tmp_path)
    assert (run.engine, run.pressure_bar) == ("gromacs", None)
    potential = gmx.energies(tmp_path / "run.edr")["Potential"][1:]
    assert np.abs(potential - potential_of_frames(run, model, topology)).max() < 1e-3


@pytest.mark.gmx
@pytest.mark.plumed
def test_temperature_and_pressure_of_a_fluid(gmx: Gmx, plugin: Plugin, tmp_path: Path) -> None:
    """GROMACS' pressure holds PLUMED's virial: it is that of our own virial on the same frames, within errors."""
    model, topology, start = known_pair(0.8), beads(216), lattice(216, 0.42)
    settings = CoarseRunSettings(steps=15_000, settle_steps=3_000, output_every=50, friction_per_ps=2.0)
    run = run_coarse(model, topology, start, settings, tmp_path)
    energies = gmx.energies(tmp_path / "run.edr")
    late = energies["Time"] > run.settle_ps
    temperature, error = mean_and_error(energies["Temperature"][late])
    # the leap-frog Langevin integrator is hot by about dt friction / 4, which is 0.3 K, at this step
    assert abs(temperature - 300.0) < 4 * error + 0.5
    frames = all_frames(run)
    assert len(frames.positions) == 240
    volume = float(np.linalg.det(start.box[0]))
    traces = np.trace(energies_and_forces(model, topology, frames).virial, axis1=1, axis2=2)
    own = (216 * model.kT + traces / 3.0) / volume * BAR_PER_KJ_MOL_NM3
    # the very same frames, so the mean differs by GROMACS' float32 only, once samples are those of the frames
    assert run.pressure_bar == pytest.approx(own.mean(), rel=1e-4)
    assert run.pressure_error == pytest.approx(mean_and_error(own)[1], rel=1e-2)


@pytest.mark.gmx
@pytest.mark.plumed
def test_the_energy_is_conserved_without_a_thermostat(gmx: Gmx, plugin: Plugin, tmp_path: Path) -> None:
    """NVE: PLUMED's energy, printed, and GROMACS' kinetic energy; drift below 2e-5 kT per bead and ps."""
    model, topology, start = known_pair(0.8), beads(216), lattice(216, 0.42)
    steps, every = 8000, 20
    mdp = coarse_run(300.0, steps, 3, dt_ps=0.001, output_every=every, cutoff_nm=0.1)
    mdp = mdp.with_options(integrator="md-vv", tcoupl="no")
    system = write_gromacs(tmp_path / "nve", model, topology, start, mdp.text(), molecule_pairs=False)
    files = pair_files(model, topology, library=plugin.library, print_every=every)
    for name, text in files.items():
        (system.folder / name).write_text(text)
    tpr = gmx.grompp(mdp, system.structure, system.topology, tmp_path / "nve" / "run.tpr", maxwarn=1)
    done = gmx.mdrun(tpr, system.folder, plumed=system.folder / INPUT)
    kinetic = gmx.energies(done.edr)
    pairs = columns(system.folder / "pairs.energy")["pairs.bias"]
    total = (kinetic["Kinetic En."] + pairs)[50:]
    slope = np.polyfit(kinetic["Time"][50:], total, 1)[0]
    assert np.std(pairs[50:]) > 20.0  # kJ/mol: energy does flow between the two
    assert abs(slope) / 216 < 2e-5 * model.kT
    assert np.std(total) < 1e-3 * np.std(pairs[50:])


@pytest.mark.gmx
@pytest.mark.plumed
def test_a_finished_run_is_not_run_again_nor_mistaken_for_another(gmx: Gmx, plugin: Plugin, tmp_path: Path) -> None:
    """GROMACS and PLUMED read tables that are in no run input file, so the folder's own record must tell."""
    topology, start = beads(64), lattice(64, 0.45)
    settings = CoarseRunSettings(steps=200, output_every=100)
    first = run_coarse(known_pair(0.8), topology, start, settings, tmp_path)
    written = first.trajectory.stat().st_mtime_ns
    second = run_coarse(known_pair(0.8), topology, start, settings, tmp_path)
    assert second.trajectory.stat().st_mtime_ns == written
    assert second.pressure_bar == first.pressure_bar
    with pytest.raises(StoreError, match="another model"):
        run_coarse(known_pair(0.85), topology, start, settings, tmp_path)
    assert len(read_frames(first.trajectory, 64).time) == 3
    (tmp_path / "inputs.json").unlink()
    with pytest.raises(StoreError, match="says of what"):
        run_coarse(known_pair(0.8), topology, start, settings, tmp_path)


@pytest.mark.gmx
@pytest.mark.plumed
def test_a_stopped_run_goes_on_from_its_checkpoint(gmx: Gmx, plugin: Plugin, tmp_path: Path) -> None:
    model, topology, start = known_pair(0.8), beads(216), lattice(216, 0.42)
    settings = CoarseRunSettings(steps=6000, output_every=500)

    def stop(done: int, total: int) -> None:
        if done >= 500:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_coarse(model, topology, start, settings, tmp_path, progress=stop)
    run = run_coarse(model, topology, start, settings, tmp_path)
    np.testing.assert_allclose(all_frames(run).time, np.arange(1, 13) * 1.0, rtol=1e-6)
    assert "Restarting from checkpoint" in (tmp_path / "run.log").read_text()


def test_openmm_leaves_frames_and_the_pressure_of_an_ideal_gas(tmp_path: Path) -> None:
    """Beads that hardly meet: P V = N kT with a small, known correction."""
    pytest.importorskip("openmm")
    topology, start = beads(27), lattice(27, 1.5)
    settings = CoarseRunSettings(steps=1000, settle_steps=200, output_every=100, pressure_every=100, engine="openmm")
    run = run_coarse(known_pair(0.8), topology, start, settings, tmp_path)
    assert run.engine == "openmm"
    assert len(all_frames(run).time) == 8
    ideal = 27 * known_pair().kT / 4.5**3 * BAR_PER_KJ_MOL_NM3
    assert run.pressure_bar is not None
    assert abs(run.pressure_bar - ideal) < 0.5 * ideal
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.trr"]
