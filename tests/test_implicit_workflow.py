"""A cycle with implicit solvent: the workflow file, and the stages that make its frames."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_cycle import ROOT, WORKFLOW

from ccg_gmx.cycle.config import load_workflow
from ccg_gmx.cycle.kinds import json_schema
from ccg_gmx.cycle.run import Cycle
from ccg_gmx.cycle.stages import fine, fine_langevin
from ccg_gmx.cycle.store import Store, Work
from ccg_gmx.cycle.summary import count_evaluations
from ccg_gmx.cycle.system import System
from ccg_gmx.engine.gromacs import Gmx
from ccg_gmx.errors import SettingsError
from ccg_gmx.molecule.energy import ForceField
from ccg_gmx.molecule.implicit import ImplicitSolvent, ImplicitSolventSettings, SolvatedForceField
from ccg_gmx.molecule.trajectory import read_frames
from ccg_gmx.records import FloatArray
from ccg_gmx.units import thermal_energy

EXAMPLE = ROOT / "workflows" / "alanine_dipeptide_ff96_obc1.yaml"
SOLVENT = "implicit_solvent={model: obc1}"
SMALL = (
    SOLVENT,
    "fine_md.starts=[{name: C7eq, torsions: {phi: -83, psi: 75}}]",
    "fine_md.runs_per_start=1",
    "fine_md.walkers=8",
    "fine_md.steps=1000",
    "fine_md.output_every=50",
    "fine_md.discard_ps=0.4",
)


def test_the_example_is_a_valid_workflow():
    workflow = load_workflow(EXAMPLE)
    assert workflow.implicit_solvent == ImplicitSolventSettings(model="obc1")
    assert workflow.temperature_K == 300
    assert workflow.fine_md.walkers > 1
    assert "amber96" in workflow.topology.read_text()


def test_vacuum_stays_the_default():
    workflow = load_workflow(WORKFLOW)
    assert workflow.implicit_solvent is None
    assert workflow.fine_md.walkers == 1


def test_the_schema_describes_the_solvent():
    solvent = json_schema()["$defs"]["ImplicitSolventSettings"]["properties"]
    assert solvent["model"]["enum"] == ["obc1", "obc2"]
    assert solvent["solvent_dielectric"]["default"] == 78.5
    assert all("description" in field for field in solvent.values())


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("implicit_solvent={model: gbn}",), r"implicit_solvent\.model: Input should be 'obc1' or 'obc2'"),
        (("implicit_solvent={model: obc1, salt: 0.1}",), r"implicit_solvent\.salt: unknown key"),
        (("fine_md.walkers=4",), "walkers needs implicit_solvent"),
        (
            (SOLVENT, f"fine_md.trajectories=[{{tpr: {WORKFLOW}, trajectory: run.trr}}]"),
            "GROMACS runs have no such term",
        ),
    ],
)
def test_a_wrong_setting_is_refused_in_one_line(overrides: tuple[str, ...], words: str):
    with pytest.raises(SettingsError, match=words) as caught:
        load_workflow(WORKFLOW, overrides)
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def folders(gmx: Gmx, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """System, fine run and split of a cycle with implicit solvent, made by the cycle itself."""
    cycle = Cycle(load_workflow(WORKFLOW, SMALL), Store(tmp_path_factory.mktemp("cycle")))
    folders = cycle._prepare()
    (run,) = cycle.store.stages.glob("fine_md-*")
    return {**folders, "run": run}


@pytest.mark.gmx
def test_the_energy_of_the_system_has_the_solvent_term(folders: dict[str, Path]):
    system = System.load(folders["system"])
    energy = system.energy()
    assert isinstance(energy, SolvatedForceField)
    x = torch.from_numpy(system.structure)[None]
    solvation = ImplicitSolvent(system.topology, ImplicitSolventSettings(model="obc1"))(x)
    torch.testing.assert_close(energy(x), ForceField(system.topology)(x) + solvation, rtol=1e-12, atol=0)
    assert float(solvation) < -20  # kJ/mol


@pytest.mark.gmx
def test_the_fine_run_is_a_trajectory_of_all_walkers(folders: dict[str, Path]):
    frames = read_frames(folders["run"] / "run.trr", 22)
    assert len(frames.positions) == 20 * 8
    np.testing.assert_allclose(frames.time.reshape(20, 8), np.repeat(np.arange(1, 21)[:, None] * 0.05, 8, 1), rtol=1e-5)
    assert len(np.unique(frames.positions[-8:, 0, 0])) == 8
    assert not (folders["run"] / "langevin.pt").exists()


@pytest.mark.gmx
def test_the_split_weighs_frames_with_the_solvent(folders: dict[str, Path]):
    system = System.load(folders["system"])
    frames = read_frames(folders["run"] / "run.trr", 22, start_ps=0.4)
    split, held = (fine.load_split(folders["split"] / f"{part}.npz") for part in ("split", "held_out"))
    x = system.coordinates.relabel(torch.from_numpy(frames.positions))
    expected = system.energy()(x).numpy() / thermal_energy(300.0)
    _, b, y = system.coordinates.split(x)
    expected = expected - system.coordinates.log_jacobian(b, y).numpy()
    # .trr frames are float32: the split made them whole once more
    np.testing.assert_allclose(np.concatenate([split.u, held.u]), expected, atol=1e-2)
    assert len(held.u) == pytest.approx(0.15 * len(expected), abs=1)


@pytest.mark.gmx
def test_a_killed_run_goes_on_to_the_same_frames(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    settings = {"steps": 60, "output_every": 2, "dt_ps": 0.001, "friction_time_ps": 1.0, "walkers": 3}
    system = System.load(folders["system"])
    structure = ROOT / "topologies" / "alanine_dipeptide" / "conf.gro"

    def work(name: str, progress: Callable[..., Any]) -> Work:
        (tmp_path / name).mkdir(exist_ok=True)
        return Work(tmp_path / name, settings, {}, 5, {}, progress)

    def kill(done: int, total: int) -> None:
        if done >= 41:
            raise KeyboardInterrupt

    def frames(name: str) -> FloatArray:
        return read_frames(tmp_path / name / "run.trr", 22).positions

    fine_langevin.run_walkers(work("whole", lambda *_: None), system, structure)
    with pytest.raises(KeyboardInterrupt):
        fine_langevin.run_walkers(work("killed", kill), system, structure)
    assert (tmp_path / "killed" / "langevin.pt").exists()
    seen: list[int] = []
    fine_langevin.run_walkers(work("killed", lambda done, _: seen.append(done)), system, structure)
    assert seen[0] > 40, "it started again"
    assert seen[-1] == 60
    np.testing.assert_array_equal(frames("killed"), frames("whole"))


@pytest.mark.gmx
def test_walkers_count_as_energy_evaluations(folders: dict[str, Path]):
    frames = 20 * 8 - 8 * 7  # those before discard_ps are not weighed
    counts = count_evaluations([folders["run"], folders["split"]])
    minimisation = counts["fine_md_steps"] - 8000
    assert 0 < minimisation < 5000
    assert counts == {
        "fine_md_steps": 8000 + minimisation,
        "flow": frames,
        "checks": 0,
        "total": 8000 + minimisation + frames,
    }
