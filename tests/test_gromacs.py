"""gmx by subprocess: finding it, running it, killing it, and going on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from ccg_gmx.engine.gromacs import EngineSettings, Gmx
from ccg_gmx.engine.mdp import Mdp, fine_run, minimise
from ccg_gmx.errors import (
    GmxDumpError,
    GmxEnergyError,
    GromppError,
    MdrunError,
    SettingsError,
    StoreError,
    ToolMissingError,
    ToolVersionError,
    TrajectoryError,
)

TERMS = ("Bond", "Angle", "Proper Dih.", "Per. Imp. Dih.", "LJ-14", "Coulomb-14", "LJ (SR)", "Coulomb (SR)")


def fake_gmx(folder: Path, text: str) -> Path:
    program = folder / "gmx"
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{text}\nEND\n")
    program.chmod(0o755)
    return program


# --- finding it -----------------------------------------------------------------------------------------------------


def test_no_gmx_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("GMXBIN", raising=False)
    with pytest.raises(ToolMissingError, match=r"no gmx on PATH.*2025.*conda install -c conda-forge"):
        Gmx.find()


def test_wrong_explicit_path_is_not_replaced_by_another_gmx(tmp_path: Path) -> None:
    with pytest.raises(ToolMissingError, match="nowhere"):
        Gmx.find(EngineSettings(gmx=str(tmp_path / "nowhere")))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("GROMACS version:    2024.5-conda_forge\nPrecision:          mixed", "GROMACS 2024.5"),
        ("VERSION 5.1.4", "GROMACS 5.1.4"),
        ("hello", "says nothing about GROMACS"),
    ],
)
def test_old_or_foreign_program_is_refused(tmp_path: Path, text: str, found: str) -> None:
    with pytest.raises(ToolVersionError, match=rf"{found}.*expected GROMACS >= 2025"):
        Gmx.find(EngineSettings(gmx=str(fake_gmx(tmp_path, text))))


def test_gmxbin_comes_before_path_and_precision_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "GROMACS version:    2026.1\nPrecision:          double\nGPU support:        CUDA"
    monkeypatch.setenv("GMXBIN", str(fake_gmx(tmp_path, text).parent))
    found = Gmx.find()
    assert (found.path.parent, found.version, found.precision, found.gpu_support) == (
        tmp_path,
        "2026.1",
        "double",
        "CUDA",
    )


def test_gpu_needs_a_build_that_has_one(tmp_path: Path) -> None:
    program = fake_gmx(tmp_path, "GROMACS version:    2025.2\nGPU support:        disabled")
    with pytest.raises(SettingsError, match="without GPU support"):
        Gmx.find(EngineSettings(gmx=str(program), gpu=True))


@pytest.mark.parametrize("flags", [("-nsteps", "5"), ("-rerun", "x.trr"), ("gpu",), ("-nb", "gpu", "-ntomp", "4")])
def test_mdrun_flags_that_change_results_are_refused(flags: tuple[str, ...]) -> None:
    with pytest.raises(ValidationError, match="mdrun"):
        EngineSettings(mdrun_flags=flags)


def test_runs_do_not_oversubscribe_the_cores() -> None:
    cores = len(os.sched_getaffinity(0))
    assert EngineSettings(workers=1000).runs_at_once == cores
    assert EngineSettings(workers=1000, threads_per_run=cores).runs_at_once == 1
    assert EngineSettings(mdrun_flags=("-update", "gpu", "-gpu_id", "0")).mdrun_flags[-1] == "0"


# --- running it -----------------------------------------------------------------------------------------------------


@pytest.mark.gmx
def test_fine_run_writes_what_its_preset_says(gmx: Gmx, alanine_tpr: Path, alanine_trr: Path) -> None:
    result = gmx.mdrun(alanine_tpr, alanine_tpr.parent, name="fine")
    assert result.trajectory == alanine_trr
    assert result.steps == 20_000
    assert result.ns_per_day > 10
    energies = gmx.energies(result.edr)
    np.testing.assert_allclose(energies["Time"], np.arange(201) * 0.1, atol=1e-4)
    kinetic = energies["Kinetic En."]
    # 66 degrees of freedom at 300 K: 82.3 kJ/mol; 20 ps hold about 10 independent values (tau_t = 1 ps), whose mean
    # has a standard deviation of 82.3 sqrt(2 / 66) / sqrt(10) = 4.5. Four of these.
    assert abs(kinetic[50:].mean() - 82.3) < 18


@pytest.mark.gmx
def test_progress_ends_at_the_last_step(gmx: Gmx, alanine_tpr: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    gmx.mdrun(alanine_tpr, tmp_path, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (20_000, 20_000)
    assert all(total == 20_000 for _, total in seen)
    assert seen == sorted(seen)


@pytest.mark.gmx
def test_finished_run_is_not_run_again(gmx: Gmx, alanine_tpr: Path, tmp_path: Path) -> None:
    first = gmx.mdrun(alanine_tpr, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert gmx.mdrun(alanine_tpr, tmp_path) == first
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


@pytest.mark.gmx
def test_run_of_another_input_is_not_mixed_in(
    gmx: Gmx, alanine_tpr: Path, alanine_dir: Path, alanine_trr: Path, tmp_path: Path
) -> None:
    other = gmx.grompp(
        fine_run(300.0, 1000, seed=8), alanine_dir / "conf.gro", alanine_dir / "topol.top", tmp_path / "other.tpr"
    )
    with pytest.raises(StoreError, match="another run input file"):
        gmx.mdrun(other, alanine_tpr.parent, name="fine")
    (tmp_path / "run.cpt").write_bytes(b"of some run")
    with pytest.raises(StoreError, match="whose checkpoint"):
        gmx.mdrun(other, tmp_path)


@pytest.mark.gmx
def test_grompp_is_reproducible(gmx: Gmx, alanine_dir: Path, tmp_path: Path) -> None:
    files = [
        gmx.grompp(mdp, alanine_dir / "conf.gro", alanine_dir / "topol.top", tmp_path / f"{name}.tpr")
        for name, mdp in {
            "a": fine_run(300.0, 1000, seed=1),
            "b": fine_run(300.0, 1000, seed=1).text(),
            "c": fine_run(300.0, 1000, seed=2),
        }.items()
    ]
    first, second, third = (path.read_bytes() for path in files)
    assert first == second
    assert first != third


@pytest.mark.gmx
def test_minimisation_lowers_the_energy(gmx: Gmx, alanine_dir: Path, alanine_trr: Path, tmp_path: Path) -> None:
    start = alanine_trr.parent / "fine.gro"
    tpr = gmx.grompp(minimise(), start, alanine_dir / "topol.top", tmp_path / "em.tpr")
    result = gmx.mdrun(tpr, tmp_path, name="em")
    potential = gmx.energies(result.edr)["Potential"]
    assert np.isnan(result.ns_per_day)
    assert potential[-1] < potential[0] - 20
    assert gmx.mdrun(tpr, tmp_path, name="em").steps == result.steps


@pytest.mark.gmx
def test_rerun_repeats_the_energies_of_the_run(gmx: Gmx, alanine_tpr: Path, alanine_trr: Path, tmp_path: Path) -> None:
    terms = gmx.rerun(alanine_tpr, alanine_trr, tmp_path)
    assert set(terms) == {*TERMS, "Potential"}
    np.testing.assert_allclose(sum(terms[name] for name in TERMS), terms["Potential"], atol=1e-3)
    run = gmx.energies(alanine_trr.with_name("fine.edr"))
    for name in TERMS:
        np.testing.assert_allclose(terms[name], run[name], atol=2e-3, err_msg=name)
    assert not np.array_equal(terms["Bond"], np.round(terms["Bond"], 4))  # more than the printed digits
    assert not list(tmp_path.glob("*.trr"))


@pytest.mark.gmx
@pytest.mark.parametrize("keep", [0.5, 40])
def test_truncated_trajectory_is_refused(
    gmx: Gmx, alanine_tpr: Path, alanine_trr: Path, tmp_path: Path, keep: float
) -> None:
    whole = alanine_trr.read_bytes()
    torn = tmp_path / "torn.trr"
    torn.write_bytes(whole[: int(keep) if keep > 1 else int(len(whole) * keep) - 17])
    with pytest.raises((TrajectoryError, MdrunError), match=r"truncated|Number of atoms in trajectory"):
        gmx.rerun(alanine_tpr, torn, tmp_path / "rerun")


@pytest.mark.gmx
def test_dump_reads_the_input_back(gmx: Gmx, alanine_tpr: Path, tmp_path: Path) -> None:
    text = gmx.dump(alanine_tpr)
    assert text.count("functype[") > 50
    assert "nsteps                         = 20000" in text
    broken = tmp_path / "broken.tpr"
    broken.write_bytes(alanine_tpr.read_bytes()[:300])
    with pytest.raises(GmxDumpError):
        gmx.dump(broken)
    (tmp_path / "broken.edr").write_bytes(b"no energies here, only text " * 20)
    with pytest.raises(GmxEnergyError):
        gmx.energies(tmp_path / "broken.edr")


@pytest.mark.gmx
def test_awh_surfaces_come_in_order_of_time(gmx: Gmx, alanine_dir: Path, tmp_path: Path) -> None:
    mdp = Mdp.read(alanine_dir / "reference" / "awh.mdp").with_options(
        nsteps=10_000, nstenergy=5000, awh_nstout=5000, nstlog=5000, nstcalcenergy=100
    )
    index = alanine_dir / "reference" / "index.ndx"
    tpr = gmx.grompp(mdp, alanine_dir / "conf.gro", alanine_dir / "topol.top", tmp_path / "awh.tpr", index=index)
    result = gmx.mdrun(tpr, tmp_path, name="awh")
    surfaces = gmx.awh(result.edr, tpr, tmp_path / "surface.xvg")
    assert [path.name for path in surfaces] == ["surface_t0.xvg", "surface_t5.xvg", "surface_t10.xvg"]
    columns = np.loadtxt(surfaces[-1], comments=("#", "@"))
    assert columns.shape[1] >= 3
    assert np.isfinite(columns[:, 2]).all()


@pytest.mark.gmx
def test_inputs_that_are_not_there(gmx: Gmx, alanine_dir: Path, alanine_tpr: Path, tmp_path: Path) -> None:
    mdp = fine_run(300.0, 1000, seed=1)
    with pytest.raises(SettingsError, match=r"structure .*no\.gro does not exist"):
        gmx.grompp(mdp, tmp_path / "no.gro", alanine_dir / "topol.top", tmp_path / "x.tpr")
    with pytest.raises(SettingsError, match=r"bonded table .*no_b0\.xvg does not exist"):
        gmx.mdrun(alanine_tpr, tmp_path, tables=[tmp_path / "no_b0.xvg"])
    with pytest.raises(SettingsError, match="run name"):
        gmx.mdrun(alanine_tpr, tmp_path, name="../x")
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be written"):
        gmx.mdrun(alanine_tpr, tmp_path / "file" / "sub")


@pytest.mark.gmx
def test_grompp_failure_leaves_no_tpr(gmx: Gmx, alanine_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(GromppError, match="nosuchkey") as caught:
        gmx.grompp("nosuchkey = 1\n", alanine_dir / "conf.gro", alanine_dir / "topol.top", tmp_path / "x.tpr")
    assert caught.value.log is not None
    assert caught.value.log.exists()
    assert not list(tmp_path.glob("*.tpr"))


# --- killing it -----------------------------------------------------------------------------------------------------

RUN_SCRIPT = """
import sys
from pathlib import Path
from ccg_gmx.engine.gromacs import Gmx
Gmx.find().mdrun(Path(sys.argv[1]), Path(sys.argv[2]), checkpoint_minutes=0.002)
"""


@pytest.fixture(scope="module")
def long_tpr(gmx: Gmx, alanine_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    mdp = fine_run(300.0, 100_000, seed=3, output_every=500)
    folder = tmp_path_factory.mktemp("long")
    return gmx.grompp(mdp, alanine_dir / "conf.gro", alanine_dir / "topol.top", folder / "long.tpr")


@pytest.fixture(scope="module")
def uninterrupted(gmx: Gmx, long_tpr: Path) -> bytes:
    return gmx.mdrun(long_tpr, long_tpr.parent).trajectory.read_bytes()


def start_and_wait_for_checkpoint(tpr: Path, folder: Path) -> tuple[subprocess.Popen[bytes], int]:
    """Start the run in a second Python; return it and the pid of its mdrun once a checkpoint is there."""
    python = subprocess.Popen([sys.executable, "-c", RUN_SCRIPT, str(tpr), str(folder)])
    deadline = time.monotonic() + 30
    while not (folder / "run.cpt").exists():
        assert python.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    (mdrun,) = children_of(python.pid)
    return python, mdrun


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def wait_gone(pid: int, seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.02)
    return False


@pytest.mark.gmx
@pytest.mark.parametrize("victim", ["python", "mdrun", "mdrun politely"])
def test_killed_run_goes_on_to_the_same_frames(
    gmx: Gmx, long_tpr: Path, uninterrupted: bytes, tmp_path: Path, victim: str
) -> None:
    python, mdrun = start_and_wait_for_checkpoint(long_tpr, tmp_path)
    if victim == "python":
        python.kill()
        python.wait()
        assert wait_gone(mdrun), "mdrun outlived its parent"
    else:
        os.kill(mdrun, signal.SIGKILL if victim == "mdrun" else signal.SIGTERM)
        assert python.wait(timeout=20) != 0
    assert (tmp_path / "run.trr").stat().st_size < len(uninterrupted)
    moved = tmp_path.rename(tmp_path.with_name(tmp_path.name + "_moved"))
    result = gmx.mdrun(long_tpr, moved)
    assert result.steps == 100_000
    assert "Restarting from checkpoint" in result.log.read_text()
    assert result.trajectory.read_bytes() == uninterrupted


@pytest.mark.gmx
def test_run_killed_between_its_end_and_its_record(gmx: Gmx, long_tpr: Path, uninterrupted: bytes) -> None:
    record = long_tpr.with_name("run.json")
    record.write_text(record.read_text().replace("true", "false"))
    assert gmx.mdrun(long_tpr, long_tpr.parent).trajectory.read_bytes() == uninterrupted


@pytest.mark.gmx
def test_exception_in_progress_stops_mdrun(gmx: Gmx, long_tpr: Path, tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    before = children_of(os.getpid())
    with pytest.raises(KeyboardInterrupt):
        gmx.mdrun(long_tpr, tmp_path, progress=interrupt)
    assert children_of(os.getpid()) == before
