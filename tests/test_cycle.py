"""One small cycle through the command line: what it leaves, that it resumes, that kills do not change its numbers."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_cycle import ROOT, ccg, run_arguments

from ccg_gmx.cycle.status import run_status
from ccg_gmx.cycle.store import RECORD
from ccg_gmx.engine.gromacs import Gmx
from ccg_gmx.free_energy.surface import load_surface, read_plumed_grid
from ccg_gmx.molecule.trajectory import read_frames

pytestmark = [pytest.mark.gmx, pytest.mark.slow]

ONE_TURN = ("cycle.min_turns=1", "cycle.max_turns=1")
BEADS = [4, 6, 8, 14, 16]
KEYS = {  # DESIGN.md fixes these, so that scripts can rely on them
    "energy_evaluations": {"fine_md_steps", "flow", "total"},
    "free_energy": {
        *("kish_fraction_median", "kish_fraction_low", "kish_fraction_min", "forward_ess_fraction"),
        *("forward_ess_trimmed", "pareto_k_bad_fraction", "sandwich_gap_kT"),
    },
    "reference": {
        *("forward_kl", "noise_floor", "js", "rmsd_kT"),
        *("delta_f_kJ_mol", "delta_f_error", "reference_delta_f_kJ_mol"),
    },
    "coarse_md": {"forward_kl", "js", "ns_per_day"},
    "restored": {
        "frames",
        "max_bead_deviation_nm",
        "clash_fraction",
        "chirality_errors",
        "js_bonds_max",
        "js_angles_max",
        "js_torsions_max",
    },
}


@dataclass(frozen=True)
class Finished:
    """A run folder and what the command said."""

    folder: Path
    code: int
    stderr: str
    seconds: float

    @property
    def summary(self) -> dict[str, Any]:
        return strict_json(self.folder / "summary.json")


def run(folder: Path, *more: str) -> Finished:
    start = time.monotonic()
    result = ccg(*run_arguments(folder, *more))
    assert "Traceback" not in result.stderr, result.stderr
    assert result.returncode in (0, 3), result.stderr
    return Finished(folder, result.returncode, result.stderr, time.monotonic() - start)


def strict_json(path: Path) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{path.name} holds {constant}, which is not JSON")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def numbers(summary: dict[str, Any]) -> dict[str, Any]:
    """Return the summary without what the clock says."""
    kept = {key: value for key, value in summary.items() if key != "wall_s"}
    return {**kept, "coarse_md": {k: v for k, v in summary["coarse_md"].items() if k != "ns_per_day"}}


def stamps(folder: Path) -> dict[str, tuple[int, int]]:
    """Return stage folder -> inode and time of its record: a stage that is made again gets new ones."""
    records = (path / RECORD for path in (folder / "stages").glob("[!.]*"))
    return {path.parent.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in records}


def left_overs(folder: Path) -> list[Path]:
    """Return whatever has the name of a file or folder that is not whole yet."""
    return [path for path in folder.rglob(".*") if path != folder / ".lock"]


@pytest.fixture(scope="module")
def finished(gmx: Gmx, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Two turns, every stage in one process."""
    return run(tmp_path_factory.mktemp("cycle") / "run", "engine.workers=1")


@pytest.fixture(scope="module")
def one_turn(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """One turn only, begun in a copy of the finished run."""
    folder = tmp_path_factory.mktemp("one_turn") / "run"
    shutil.copytree(finished.folder, folder)
    return run(folder, "engine.workers=1", *ONE_TURN)


# What it leaves


def test_exit_code_says_whether_the_numbers_can_be_trusted(finished: Finished) -> None:
    assert finished.code == (0 if finished.summary["converged"] else 3)
    assert finished.code == 3  # so few draws are never to be trusted
    assert any(reason.startswith("not yet") for reason in finished.summary["verdict"]["reasons"])


def test_one_line_per_turn_on_stderr(finished: Finished) -> None:
    lines = [line.split(":")[0] for line in finished.stderr.splitlines() if "median kish fraction" in line]
    assert lines == ["turn 0", "turn 1", "final"]


def test_every_promised_file_is_there_and_nothing_half_written(finished: Finished) -> None:
    files = ["manifest.json", "summary.json", "fes.dat", "fes.npz", "fes.png", "report.html"]
    files += [f"forcefield/{name}" for name in ("topol.top", "conf.gro", "grompp.mdp", "README.md", "table_b0.xvg")]
    files += [f"restored/{name}" for name in ("restored.npz", "restored.trr", "restored.gro", "README")]
    assert [name for name in files if not (finished.folder / name).is_file()] == []
    assert left_overs(finished.folder) == []
    assert (finished.folder / "fes.png").read_bytes().startswith(b"\x89PNG")


def test_summary_has_every_fixed_key(finished: Finished) -> None:
    summary = finished.summary
    assert {"system", "temperature_K", "iterations", "converged", "wall_s", *KEYS} <= set(summary)
    for group, keys in KEYS.items():
        assert keys <= set(summary[group]), group
    assert summary["iterations"] == 2
    assert {"fine_md", "likelihood", "energy", "draws", "coarse_md", "restore"} <= set(summary["wall_s"])


def test_evaluations_are_counted_by_hand(finished: Finished) -> None:
    counts = finished.summary["energy_evaluations"]
    assert counts["total"] == counts["fine_md_steps"] + counts["flow"] + counts["checks"]
    training = 2 * (40 + 20) * 128  # members, steps of both turns (later ones half), batch
    weights = [np.load(path)["log_w"].size for path in (finished.folder / "stages").glob("draws-*/draws.npz")]
    rounds = len(weights) // 2 - 2
    assert min(weights) >= 64 * 32  # points of a member, fewest draws at each
    assert 1 <= rounds <= 3
    beads = 3 * 128 * 16
    frames = 4 * 181  # four fine runs, 200 frames less the 2 ps that are left out, and the first
    held_out = 2 * 4 * round(0.15 * frames)  # members, draws at the torsions of each held-out frame
    expected = training + sum(weights) + beads + frames + held_out + 40  # and the restored frames
    assert abs(counts["flow"] - expected) <= 2 * 4 * 4  # held-out parts are rounded in each run
    assert counts["fine_md_steps"] >= 4 * 20_000  # and the minimisations
    assert counts["checks"] == finished.summary["hidden_modes"]["evaluations"]


def test_manifest_says_how_to_repeat_the_run(finished: Finished) -> None:
    manifest = strict_json(finished.folder / "manifest.json")
    assert {"python", "gmx", "torch", "numpy"} <= set(manifest["versions"])
    assert manifest["seed"] == 1
    assert "fine_md.steps=20000" in manifest["command"]
    assert set(manifest["inputs"]) == {"topology", "structure", "reference"}
    assert all(re.fullmatch("[0-9a-f]{64}", entry["sha256"]) for entry in manifest["inputs"].values())


def test_surface_files_agree_and_plumed_reads_them(finished: Finished) -> None:
    surface = load_surface(finished.folder / "fes.npz")
    grid = read_plumed_grid(finished.folder / "fes.dat", 300.0)
    assert surface.names == grid.names == ("phi", "psi")
    assert surface.f.shape == (100, 100)
    np.testing.assert_allclose(grid.f, surface.f, atol=1e-8)  # nine decimals in kJ/mol
    assert surface.f.min() == 0
    assert (surface.error >= 0).all()


def test_restored_frames_hit_their_beads(finished: Finished) -> None:
    facts = finished.summary["restored"]
    assert facts["frames"] == 40
    assert facts["max_bead_deviation_nm"] <= 1e-6
    assert facts["chirality_errors"] == 0
    with np.load(finished.folder / "restored" / "restored.npz", allow_pickle=False) as data:
        positions, log_w, log_w_total = data["positions"], data["log_w"], data["log_w_total"]
    assert positions.dtype == np.float64
    assert np.isfinite(log_w).all()
    assert np.isfinite(log_w_total).all()
    assert bead_deviation(finished.folder, positions) <= 1e-6


def bead_deviation(folder: Path, positions: np.ndarray) -> float:
    """Return the distance of restored beads from the nearest frame of any coarse run, not trusting the stage."""
    runs = []
    for path in folder.glob("stages/coarse_frames-*/coarse.npz"):
        with np.load(path, allow_pickle=False) as data:
            runs.append(data["positions"])
    coarse = np.concatenate(runs).reshape(-1, 15)
    beads = positions[:, BEADS].reshape(-1, 15)
    return float(max(np.abs(coarse - frame).max(axis=1).min() for frame in beads))


def test_restored_trajectory_is_the_same_in_single_precision(finished: Finished) -> None:
    frames = read_frames(finished.folder / "restored" / "restored.trr", 22)
    with np.load(finished.folder / "restored" / "restored.npz", allow_pickle=False) as data:
        np.testing.assert_allclose(frames.positions, data["positions"], atol=1e-6)


@pytest.mark.parametrize("tables", [False, True])
def test_force_field_runs_as_its_readme_says(finished: Finished, gmx: Gmx, tmp_path: Path, tables: bool) -> None:
    folder = tmp_path / "forcefield"
    shutil.copytree(finished.folder / "forcefield", folder)
    grompp, mdrun = ["grompp"], ["mdrun"]
    if tables:
        grompp += ["-f", "tables.mdp"]
        mdrun += ["-tableb", *sorted(path.name for path in folder.glob("*.xvg"))]
    for arguments in (grompp, [*mdrun, "-nsteps", "2000", "-ntmpi", "1", "-ntomp", "1"]):
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [gmx.path, *arguments], cwd=folder, capture_output=True, text=True, env=environment, check=False
        )
        assert done.returncode == 0, done.stderr
    assert "Finished mdrun" in (folder / "md.log").read_text(encoding="utf-8")


def test_report_is_one_self_contained_file(finished: Finished) -> None:
    text = (finished.folder / "report.html").read_text(encoding="utf-8")
    assert "not yet" in text
    assert not re.search(r'(?:src|href)="(?!#|data:|https?://(?:doi|arxiv)\.org)', text)
    assert "<script src" not in text


# Status and report


def test_status_of_a_finished_run(finished: Finished) -> None:
    result = ccg("status", finished.folder)
    assert result.returncode == 0
    assert "finished, not converged" in result.stdout
    machine = strict(ccg("status", finished.folder, "--json").stdout)
    assert machine == run_status(finished.folder)
    assert machine["stages"]["fine_md"]["done"] == 4
    assert machine["under_way"] == []


def strict(text: str) -> Any:
    return json.loads(text)


def test_report_can_be_built_again_and_elsewhere(finished: Finished, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(finished.folder, moved)
    (moved / "report.html").unlink()
    result = ccg("report", moved)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == str(moved / "report.html")
    assert len((moved / "report.html").read_text(encoding="utf-8")) > 100_000


def test_report_of_a_run_with_a_stage_gone_is_one_line(finished: Finished, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(finished.folder, moved)
    shutil.rmtree(next((moved / "stages").glob("coarse_frames-*")))
    result = ccg("report", moved)
    assert result.returncode == 2
    assert "is gone" in result.stderr
    assert len(result.stderr.splitlines()) == 1


# Resuming


def test_second_call_does_no_stage_again(finished: Finished) -> None:
    before, summary = stamps(finished.folder), finished.summary
    again = run(finished.folder, "engine.workers=1")
    assert stamps(finished.folder) == before
    assert again.summary == summary  # wall_s and ns_per_day too: those of the stages
    assert again.seconds < finished.seconds
    assert left_overs(finished.folder) == []


def test_engine_settings_and_the_reference_make_no_stage_again(finished: Finished, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished.folder, folder)
    before = stamps(folder)
    summary = run(folder, "engine.workers=2", "reference=null", "basins=[]").summary
    assert stamps(folder) == before
    assert "reference" not in summary
    assert summary["coarse_md"]["against"] == "own surface"
    assert summary["free_energy"]["kish_fraction_median"] == finished.summary["free_energy"]["kish_fraction_median"]


def test_changed_settings_keep_every_stage_that_does_not_depend_on_them(finished: Finished, one_turn: Finished) -> None:
    before, after = stamps(finished.folder), stamps(one_turn.folder)
    assert set(before) < set(after)
    new = [name.rsplit("-", 1)[0] for name in set(after) - set(before)]
    final = {"draws", "plan", "surface", "beads", "coarse_fit", "coarse_md", "coarse_frames", "restore"}
    assert set(new) == final | {"held_out", "hidden_modes"}
    assert one_turn.summary["iterations"] == 1


# Other shapes of a cycle


def test_one_torsion_one_flow_and_a_trajectory_of_ones_own(
    gmx: Gmx, alanine_tpr: Path, alanine_trr: Path, tmp_path: Path
) -> None:
    done = run(
        tmp_path / "run",
        *("engine.workers=1", "reference=null", "cycle.members=1", *ONE_TURN),
        "coarse={beads: {C1: 5, N2: 7, CA2: 9, C2: 15}, torsions: {phi: [5, 7, 9, 15]}}",
        "basins=[{name: left, ranges: {phi: [-180, 0]}}, {name: right, ranges: {phi: [0, 180]}}]",
        f"fine_md={{trajectories: [{{tpr: {alanine_tpr}, trajectory: {alanine_trr}, start_ps: 2}}]}}",
    )
    assert load_surface(done.folder / "fes.npz").f.shape == (100,)
    assert read_plumed_grid(done.folder / "fes.dat", 300.0).names == ("phi",)
    assert done.summary["free_energy"]["delta_f"] == "right minus left"
    assert done.summary["energy_evaluations"]["fine_md_steps"] == 0
    assert done.summary["restored"]["max_bead_deviation_nm"] <= 1e-6
    assert (done.folder / "forcefield" / "table_d0.xvg").is_file()
    assert ccg("report", done.folder).returncode == 0


# Kills


def count_stages(folder: Path) -> int:
    return len(list((folder / "stages").glob(f"[!.]*/{RECORD}")))


def run_and_kill(folder: Path, stages: int, delay: float) -> int:
    """Start the run, wait for a number of finished stages and a moment more, ``kill -9``; return the exit status."""
    command = [sys.executable, "-m", "ccg_gmx.cli", *run_arguments(folder, "engine.workers=2", *ONE_TURN)]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    while process.poll() is None and count_stages(folder) < stages:
        time.sleep(0.02)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    return process.wait()


def test_killed_three_times_the_run_ends_with_the_same_numbers(one_turn: Finished, tmp_path: Path) -> None:
    """Also: two workers give what one process gives, and no stage is done twice."""
    folder, rng = tmp_path / "run", random.Random(20261122)
    seen: dict[str, tuple[int, int]] = {}
    for stages in sorted(rng.sample(range(1, 25), 3)):
        assert run_and_kill(folder, stages, delay=rng.uniform(0.0, 1.5)) == -signal.SIGKILL
        assert not (folder / "summary.json").exists()
        now = stamps(folder)
        assert seen.items() <= now.items()
        seen = now
        result = ccg("status", folder)
        assert "not finished" in result.stdout
    last = run(folder, "engine.workers=2", *ONE_TURN)
    final = stamps(folder)
    assert seen.items() <= final.items()
    assert set(final) <= set(stamps(one_turn.folder))
    assert numbers(last.summary) == numbers(one_turn.summary)
    assert left_overs(folder) == []
