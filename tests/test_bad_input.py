"""A user's mistakes, through the command line: exit code 2, one clear line, nothing half-written."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from small_cycle import ROOT, ccg, settings, small_disk

from ccg_gmx.cli import main
from ccg_gmx.engine.gromacs import Gmx
from ccg_gmx.engine.mdp import fine_run

ALANINE = ROOT / "topologies" / "alanine_dipeptide"
WORKFLOW = {
    "system": "alanine dipeptide",
    "topology": "topol.top",
    "structure": "conf.gro",
    "coarse": {
        "beads": {"C1": 5, "N2": 7, "CA2": 9, "C2": 15, "N3": 17},
        "torsions": {"phi": [5, 7, 9, 15], "psi": [7, 9, 15, 17]},
    },
    "fine_md": {"starts": [{"name": "C7eq", "torsions": {"phi": -83, "psi": 75}}]},
}


@dataclass
class Case:
    """A folder with a topology, a structure and a workflow that a test spoils."""

    folder: Path

    @property
    def out(self) -> Path:
        return self.folder / "run"

    @property
    def topology(self) -> Path:
        return self.folder / "topol.top"

    def workflow(self, **changes: object) -> Path:
        path = self.folder / "workflow.yaml"
        path.write_text(yaml.safe_dump({**WORKFLOW, **changes}, sort_keys=False), encoding="utf-8")
        return path

    def run(self, *more: str, **changes: object) -> str:
        """Return the one line that ``ccg run`` wrote."""
        return refused("run", self.workflow(**changes), "--out", self.out, *settings(*more))

    def left(self) -> set[str]:
        """Return what is in the run folder, stages under way aside, and check that nothing is half-written."""
        if not self.out.exists():
            return set()
        stages = {path.name for path in self.out.glob("stages/*")}
        assert not [
            name for name in stages if not name.startswith(".partial-") and not whole(self.out / "stages" / name)
        ]
        assert {path.name for path in self.out.iterdir()} <= {".lock", "manifest.json", "stages"}
        return {name for name in stages if not name.startswith(".")}


def whole(stage: Path) -> bool:
    return (stage / "stage.json").is_file() and not list(stage.rglob(".*"))


def one_line(code: int, stderr: str, stdout: str = "") -> str:
    assert code == 2, stderr
    assert "Traceback" not in stderr + stdout
    lines = stderr.splitlines()
    assert len(lines) == 1, stderr
    assert lines[0].startswith("ccg: ")
    assert stdout == ""
    return lines[0]


def refused(*arguments: object) -> str:
    """Run the command in this process and return its one line."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    return one_line(result.exit_code, result.stderr, result.stdout)


@pytest.fixture
def case(tmp_path: Path) -> Case:
    for name in ("topol.top", "conf.gro"):
        shutil.copy(ALANINE / name, tmp_path / name)
    return Case(tmp_path)


# The tool


def test_no_gmx(case: Case) -> None:
    """In a process of its own, as a user would: no line from the interpreter's shutdown either."""
    empty = case.folder / "bin"
    empty.mkdir()
    environment = {"PATH": str(empty), "GMXBIN": ""}
    result = ccg("run", case.workflow(), "--out", case.out, env=environment)
    line = one_line(result.returncode, result.stderr, result.stdout)
    assert "no gmx on PATH" in line
    assert "apt-get install gromacs" in line
    assert not case.out.exists()


@pytest.mark.parametrize("text", ["GROMACS version:    2022.5", "gmx: command not understood"])
def test_gmx_too_old_or_something_else(case: Case, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    program = case.folder / "bin" / "gmx"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "{text}"\n', encoding="utf-8")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(program.parent))
    monkeypatch.delenv("GMXBIN", raising=False)
    line = case.run()
    assert "expected GROMACS >= 2025" in line
    assert ("2022.5" in line) is text.startswith("GROMACS")
    assert not case.out.exists()


def test_gmx_named_in_the_workflow_is_not_there(case: Case) -> None:
    assert "no/such/gmx" in case.run(engine={"gmx": "/no/such/gmx"})
    assert not case.out.exists()


# The workflow file


def test_unknown_key(case: Case) -> None:
    assert "workflow.yaml, line" in (line := case.run(temprature_K=300))
    assert "temprature_K: unknown key" in line
    assert not case.out.exists()


def test_negative_temperature(case: Case) -> None:
    line = case.run(temperature_K=-300)
    assert "temperature_K" in line
    assert "-300" in line
    assert not case.out.exists()


def test_workflow_that_is_not_there(case: Case) -> None:
    assert "nothing.yaml" in refused("run", case.folder / "nothing.yaml", "--out", case.out)
    assert not case.out.exists()


def test_structure_that_is_not_there(case: Case) -> None:
    assert "nothing.gro" in case.run(structure="nothing.gro")
    assert not case.out.exists()


@pytest.mark.gmx
def test_reference_at_another_temperature(case: Case, gmx: Gmx) -> None:
    shutil.copy(ALANINE / "reference" / "surface.npz", case.folder)
    line = case.run(temperature_K=310, reference="surface.npz")
    assert "310" in line
    assert "300" in line
    assert case.left() == set()


# The topology


@pytest.mark.gmx
def test_missing_topology_include(case: Case, gmx: Gmx) -> None:
    text = case.topology.read_text(encoding="utf-8")
    case.topology.write_text(
        text.replace("[ moleculetype ]", '#include "ligand.itp"\n[ moleculetype ]', 1), encoding="utf-8"
    )
    line = case.run()
    assert "ligand.itp" in line
    assert "GMXLIB" in line
    assert case.left() == set()


@pytest.mark.gmx
def test_structure_of_another_molecule(case: Case, gmx: Gmx) -> None:
    lines = (case.folder / "conf.gro").read_text(encoding="utf-8").splitlines()
    lines[1] = str(int(lines[1]) - 1)
    del lines[-2]
    (case.folder / "conf.gro").write_text("\n".join(lines) + "\n", encoding="utf-8")
    line = case.run()
    assert "gmx grompp failed" in line
    assert "number of coordinates" in line
    assert case.left() == set()


@pytest.mark.gmx
@pytest.mark.parametrize(
    ("torsions", "words"),
    [
        ({"phi": [5, 7, 9, 99]}, ("99", "1..22")),
        ({"phi": [0, 5, 7, 9]}, ("0", "1..22")),
        ({"phi": [5, 7, 9, 16]}, ("9 (CA of ALA 2)", "16 (O of ALA 2)", "not bonded")),
        ({"phi": [5, 7, 9, 5]}, ("four different",)),
        ({"phi": [6, 5, 7, 9]}, ("phi", "not a torsion of four consecutive beads")),
        ({"phi": [5, 7, 9, 15], "again": [5, 7, 9, 15]}, ("1 different coarse torsions of 2",)),
    ],
)
def test_wrong_atom_in_a_torsion(case: Case, gmx: Gmx, torsions: dict[str, list[int]], words: tuple[str, ...]) -> None:
    starts = {"starts": [{"name": "one", "torsions": dict.fromkeys(torsions, 60)}]}
    line = case.run(coarse={**WORKFLOW["coarse"], "torsions": torsions}, fine_md=starts)  # type: ignore[dict-item]
    assert all(word in line for word in words), line
    assert case.left() == set()


@pytest.mark.gmx
@pytest.mark.parametrize(
    ("beads", "words"),
    [
        ([5, 7, 9, 23], ("23",)),
        ([0, 5, 7, 9], ("0",)),
        ([5, 9, 15, 17], ("not bonded",)),
        ([5, 7, 9, 9], ("9",)),
    ],
)
def test_wrong_beads(case: Case, gmx: Gmx, beads: list[int], words: tuple[str, ...]) -> None:
    coarse = {"beads": {f"B{i}": atom for i, atom in enumerate(beads)}, "torsions": {"phi": [5, 7, 9, 15]}}
    line = case.run(coarse=coarse, fine_md={"starts": [{"name": "one", "torsions": {"phi": -83}}]})
    assert all(word in line for word in words), line
    assert case.left() == set()


def test_start_that_names_another_torsion(case: Case) -> None:
    assert "start one names ['omega', 'phi']" in case.run(
        fine_md={"starts": [{"name": "one", "torsions": {"phi": -83, "omega": 180}}]}
    )
    assert not case.out.exists()


@pytest.mark.gmx
def test_constraints_in_the_topology(case: Case, gmx: Gmx) -> None:
    text = case.topology.read_text(encoding="utf-8")
    section = "[ constraints ]\n    1     2    1    0.109\n\n[ pairs ]"
    assert "[ pairs ]" in text
    case.topology.write_text(text.replace("[ pairs ]", section, 1), encoding="utf-8")
    line = case.run()
    assert "1 constraints" in line
    assert case.left() == set()


# A trajectory of the user's own


@pytest.fixture(scope="module")
def constrained_tpr(gmx: Gmx, tmp_path_factory: pytest.TempPathFactory) -> Path:
    mdp = {**fine_run(300.0, 1000, seed=1, output_every=100), "constraints": "h-bonds"}
    out = tmp_path_factory.mktemp("constrained") / "run.tpr"
    return gmx.grompp(mdp, ALANINE / "conf.gro", ALANINE / "topol.top", out)


@pytest.fixture
def truncated(alanine_trr: Path, tmp_path: Path) -> Path:
    path = tmp_path / "truncated.trr"
    path.write_bytes(alanine_trr.read_bytes()[:-100])
    return path


def given(tpr: Path, trajectory: Path) -> dict[str, object]:
    return {"trajectories": [{"tpr": str(tpr), "trajectory": str(trajectory)}]}


@pytest.mark.gmx
def test_tpr_with_constraints(case: Case, constrained_tpr: Path, alanine_trr: Path) -> None:
    line = case.run(fine_md=given(constrained_tpr, alanine_trr))
    assert "constraints in the .tpr" in line
    assert "constraints = none" in line
    assert {name.split("-")[0] for name in case.left()} <= {"system"}


@pytest.mark.gmx
def test_truncated_trajectory(case: Case, alanine_tpr: Path, truncated: Path) -> None:
    line = case.run(fine_md=given(alanine_tpr, truncated))
    assert "truncated.trr" in line
    assert "truncated or damaged after 200 whole frames" in line
    assert {name.split("-")[0] for name in case.left()} <= {"system"}


@pytest.mark.gmx
def test_trajectory_at_another_temperature(case: Case, alanine_tpr: Path, alanine_trr: Path) -> None:
    line = case.run(fine_md=given(alanine_tpr, alanine_trr), temperature_K=310)
    assert "300 K" in line
    assert "310" in line


@pytest.mark.gmx
def test_trajectory_that_is_a_text_file(case: Case, alanine_tpr: Path) -> None:
    text = case.folder / "notes.trr"
    text.write_text("not a trajectory\n" * 100, encoding="utf-8")
    assert "notes.trr" in case.run(fine_md=given(alanine_tpr, text))


@pytest.mark.gmx
@pytest.mark.parametrize("check", [(), ("--check",)])
def test_energy_of_spoiled_files(
    alanine_tpr: Path, alanine_trr: Path, truncated: Path, constrained_tpr: Path, tmp_path: Path, check: tuple[str, ...]
) -> None:
    before = set(tmp_path.iterdir())
    assert "truncated or damaged" in refused("energy", alanine_tpr, truncated, *check)
    assert "constraints in the .tpr" in refused("energy", constrained_tpr, alanine_trr, *check)
    assert "gmx dump failed" in refused("energy", alanine_trr, alanine_trr, *check)
    assert "is a .tpr file" in refused("energy", alanine_tpr, alanine_tpr, *check)
    assert "does not exist" in refused("energy", tmp_path / "nothing.tpr", alanine_trr, *check)
    assert "nothing.trr" in refused("energy", alanine_tpr, tmp_path / "nothing.trr", *check)
    assert set(tmp_path.iterdir()) == before


# The run folder


def test_file_in_place_of_the_run_folder(case: Case) -> None:
    case.out.write_text("mine", encoding="utf-8")
    assert "cannot write in" in case.run()
    assert case.out.read_text(encoding="utf-8") == "mine"


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc, which nobody may write to")
def test_folder_that_cannot_be_made(case: Case) -> None:
    assert "cannot write in /proc/ccg" in refused("run", case.workflow(), "--out", "/proc/ccg")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write to any folder")
def test_folder_without_permission(case: Case) -> None:
    case.folder.chmod(0o555)
    try:
        assert "Permission denied" in refused("run", case.workflow(), "--out", case.out)
    finally:
        case.folder.chmod(0o755)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_disk_that_is_full_at_once(case: Case) -> None:
    case.out.mkdir()
    (case.out / ".manifest.json.partial").symlink_to("/dev/full")
    assert "No space left on device" in case.run()
    assert not (case.out / "manifest.json").exists()


def test_read_only_disk(case: Case) -> None:
    with small_disk(case.out, kilobytes=64) as disk:
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        assert "Read-only file system" in case.run()
        assert list(disk.iterdir()) == []


@pytest.mark.gmx
@pytest.mark.parametrize("kilobytes", [32, 64, 256, 512])
def test_disk_that_is_full_after_a_while(case: Case, gmx: Gmx, kilobytes: int) -> None:
    """Whatever is being written when the disk is full: grompp's files, a dump, frames, a checkpoint."""
    with small_disk(case.out, kilobytes):
        line = case.run("fine_md.discard_ps=2")
        assert "No space left on device" in line or "disk" in line, line
        case.left()


# Folders that hold no run


@pytest.mark.parametrize("command", ["status", "report"])
def test_folder_without_a_run(tmp_path: Path, command: str) -> None:
    line = refused(command, tmp_path)
    assert "ccg run" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["status", "report"])
def test_folder_that_is_not_there(tmp_path: Path, command: str) -> None:
    assert "nothing" in refused(command, tmp_path / "nothing")
    assert list(tmp_path.iterdir()) == []


def test_report_of_an_unfinished_run(tmp_path: Path) -> None:
    (tmp_path / "stages").mkdir()
    assert "expected the folder of a finished run" in refused("report", tmp_path)
