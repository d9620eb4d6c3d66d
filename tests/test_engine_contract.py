"""What ``engine/protocol.py`` promises, for both engines with a real GROMACS."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from engines import engine_or_skip

from ccg_gmx.engine.ensemble import Member, run_ensemble
from ccg_gmx.engine.failures import diagnose
from ccg_gmx.engine.gromacs import Gmx
from ccg_gmx.engine.mdp import Mdp, fine_run
from ccg_gmx.engine.plumed import Kernel
from ccg_gmx.engine.protocol import Engine
from ccg_gmx.errors import MdrunError, SettingsError, StoreError

DRIVERS = ["gmx", pytest.param("gmxapi", marks=pytest.mark.gmxapi)]
PLUMED_INPUT = """\
phi: TORSION ATOMS=5,7,9,15
r: RESTRAINT ARG=phi AT=-1.4 KAPPA=20
PRINT ARG=phi,r.bias FILE=COLVAR STRIDE=100
"""

pytestmark = pytest.mark.gmx


@pytest.fixture(params=DRIVERS)
def engine(request: pytest.FixtureRequest, gmx: Gmx) -> Engine:
    return engine_or_skip(request.param)


def test_it_has_what_the_protocol_names(engine: Engine, gmx: Gmx) -> None:
    assert isinstance(engine, Engine)
    assert engine.version == gmx.version
    assert engine.path.exists()


def test_same_seed_same_frames_and_energies_as_gmx(
    engine: Engine, gmx: Gmx, alanine_tpr: Path, alanine_trr: Path, tmp_path: Path
) -> None:
    """Equal bit by bit: same options, same library, and -reprod."""
    seen: list[tuple[int, int]] = []
    result = engine.mdrun(alanine_tpr, tmp_path, progress=lambda *state: seen.append(state))
    assert result.trajectory.read_bytes() == alanine_trr.read_bytes()
    ours, theirs = engine.energies(result.edr), gmx.energies(alanine_trr.with_suffix(".edr"))
    assert list(ours) == list(theirs)
    assert len(ours["Potential"]) == 201
    for name, values in theirs.items():
        np.testing.assert_array_equal(ours[name], values, err_msg=name)
    assert result.steps == 20_000
    assert result.ns_per_day > 10
    assert seen[-1] == (20_000, 20_000)


def test_files_are_those_that_are_named_and_no_others(engine: Engine, alanine_tpr: Path, tmp_path: Path) -> None:
    result = engine.mdrun(alanine_tpr, tmp_path, name="a")
    assert (result.trajectory, result.edr) == (tmp_path / "a.trr", tmp_path / "a.edr")
    names = {path.name for path in tmp_path.iterdir()}
    assert names - {"a_prev.cpt"} == {f"a.{end}" for end in ("trr", "edr", "log", "gro", "cpt", "out", "json")}
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert engine.mdrun(alanine_tpr, tmp_path, name="a") == result
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_a_checkpoint_of_somebody_else_is_not_taken(engine: Engine, alanine_tpr: Path, tmp_path: Path) -> None:
    """gmxapi looks for a state.cpt unless it is told a name."""
    (tmp_path / "state.cpt").write_bytes(b"of some run")
    assert engine.mdrun(alanine_tpr, tmp_path).steps == 20_000


def test_rerun(engine: Engine, gmx: Gmx, alanine_tpr: Path, alanine_trr: Path, tmp_path: Path) -> None:
    ours = engine.rerun(alanine_tpr, alanine_trr, tmp_path / "a")
    theirs = gmx.rerun(alanine_tpr, alanine_trr, tmp_path / "b")
    assert list(ours) == list(theirs)
    np.testing.assert_array_equal(ours["Potential"], theirs["Potential"])


# --- failures -------------------------------------------------------------------------------------------------------


def one_line(error: MdrunError) -> str:
    """Check that the log gives the class of failure that the message came from; return it."""
    assert "\n" not in str(error)
    assert error.log is not None
    failure = diagnose(error.log.read_text())
    assert failure is not None
    assert error.remedy
    return failure.kind


def test_overlapping_atoms(engine: Engine, alanine_dir: Path, tmp_path: Path) -> None:
    lines = (alanine_dir / "conf.gro").read_text().splitlines()
    lines[2] = lines[2][:20] + lines[17][20:]
    (tmp_path / "overlap.gro").write_text("\n".join(lines) + "\n")
    mdp = fine_run(300.0, 1000, seed=1)
    tpr = engine.grompp(mdp, tmp_path / "overlap.gro", alanine_dir / "topol.top", tmp_path / "x.tpr")
    with pytest.raises(MdrunError, match=r"mdrun failed: Step 0: The total potential energy is .*minimise") as caught:
        engine.mdrun(tpr, tmp_path)
    assert one_line(caught.value) == "blow-up"


def test_explosion_that_ends_in_a_crash(engine: Engine, alanine_dir: Path, tmp_path: Path) -> None:
    mdp = Mdp({**fine_run(300.0, 20_000, seed=1), "dt": "0.02"})
    tpr = engine.grompp(mdp, alanine_dir / "conf.gro", alanine_dir / "topol.top", tmp_path / "x.tpr", maxwarn=3)
    with pytest.raises(MdrunError, match=r"Listed nonbonded|potential energy is|Bond length") as caught:
        engine.mdrun(tpr, tmp_path)
    assert "shorter time step" in str(caught.value)


def test_missing_table(engine: Engine, alanine_dir: Path, tmp_path: Path) -> None:
    top = (alanine_dir / "topol.top").read_text().replace("    5     7     1\n", "    5     7     8   0  1000\n", 1)
    (tmp_path / "tab.top").write_text(top)
    tpr = engine.grompp(
        fine_run(300.0, 1000, seed=1), alanine_dir / "conf.gro", tmp_path / "tab.top", tmp_path / "x.tpr"
    )
    table = tmp_path / "tab_b1.xvg"
    rows = ((0.001 * i, 500 * (0.001 * i - 0.1335) ** 2, -1000 * (0.001 * i - 0.1335)) for i in range(400))
    table.write_text("".join(f"{x:.4f} {v:.8f} {f:.8f}\n" for x, v, f in rows))
    with pytest.raises(MdrunError, match=r"no table file whose name matched '_b0\.xvg'") as caught:
        engine.mdrun(tpr, tmp_path, tables=[table])
    assert one_line(caught.value) == "missing-table"
    right = table.rename(tmp_path / "tab_b0.xvg")
    assert engine.mdrun(tpr, tmp_path, tables=[right]).steps == 1000


def test_damaged_checkpoint(engine: Engine, alanine_tpr: Path, tmp_path: Path) -> None:
    engine.mdrun(alanine_tpr, tmp_path)
    record = tmp_path / "run.json"
    record.write_text(record.read_text().replace("true", "false"))
    whole = (tmp_path / "run.cpt").read_bytes()
    (tmp_path / "run.cpt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(MdrunError, match=r"Checkpoint file corrupted/truncated.*remove this run's files") as caught:
        engine.mdrun(alanine_tpr, tmp_path)
    assert one_line(caught.value) == "checkpoint"


def test_full_disk(engine: Engine, alanine_tpr: Path, tmp_path: Path) -> None:
    (tmp_path / "run.edr").symlink_to("/dev/full")
    with pytest.raises(MdrunError, match="free space on the disk") as caught:
        engine.mdrun(alanine_tpr, tmp_path)
    assert one_line(caught.value) == "disk-full"


def test_a_run_of_another_input_is_not_mixed_in(engine: Engine, alanine_tpr: Path, alanine_trr: Path) -> None:
    with pytest.raises(SettingsError, match="does not exist"):
        engine.mdrun(alanine_tpr.with_name("no.tpr"), alanine_tpr.parent, name="fine")
    with pytest.raises(StoreError, match="another run input file"):
        engine.mdrun(alanine_trr, alanine_tpr.parent, name="fine")


# --- resume ---------------------------------------------------------------------------------------------------------

RUN_SCRIPT = """
import sys
from pathlib import Path
from ccg_gmx.engine.driver import find_engine
from ccg_gmx.engine.settings import EngineSettings
engine = find_engine(EngineSettings(driver=sys.argv[3]))
engine.mdrun(Path(sys.argv[1]), Path(sys.argv[2]), checkpoint_minutes=0.002)
"""


@pytest.fixture(scope="module")
def long_tpr(gmx: Gmx, alanine_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    mdp = fine_run(300.0, 100_000, seed=3, output_every=500)
    folder = tmp_path_factory.mktemp("long")
    return gmx.grompp(mdp, alanine_dir / "conf.gro", alanine_dir / "topol.top", folder / "long.tpr")


@pytest.fixture(scope="module")
def uninterrupted(gmx: Gmx, long_tpr: Path) -> bytes:
    return gmx.mdrun(long_tpr, long_tpr.parent).trajectory.read_bytes()


def stopped_run(driver: str, tpr: Path, folder: Path, number: signal.Signals) -> None:
    """Start a run in a second Python and stop its mdrun once there is a checkpoint."""
    python = subprocess.Popen([sys.executable, "-c", RUN_SCRIPT, str(tpr), str(folder), driver])
    deadline = time.monotonic() + 60
    while not (folder / "run.cpt").exists():
        assert python.poll() is None, "the run ended before it could be stopped"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    children = Path(f"/proc/{python.pid}/task/{python.pid}/children").read_text().split()
    os.kill(int(children[0]), number)
    assert python.wait(timeout=30) != 0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "stopped"])
@pytest.mark.parametrize("other", [False, True], ids=["same engine", "the other engine"])
def test_a_stopped_run_goes_on_to_the_same_frames(
    request: pytest.FixtureRequest,
    engine: Engine,
    long_tpr: Path,
    uninterrupted: bytes,
    tmp_path: Path,
    number: signal.Signals,
    other: bool,
) -> None:
    first = engine.settings.driver
    second = {"gmx": "gmxapi", "gmxapi": "gmx"}[first] if other else first
    finisher = engine_or_skip(second)
    stopped_run(first, long_tpr, tmp_path, number)
    assert (tmp_path / "run.trr").stat().st_size < len(uninterrupted)
    moved = tmp_path.rename(tmp_path.with_name(tmp_path.name + "_moved"))
    result = finisher.mdrun(long_tpr, moved)
    assert "Restarting from checkpoint" in result.log.read_text()
    assert result.trajectory.read_bytes() == uninterrupted


# --- ensemble, PLUMED -----------------------------------------------------------------------------------------------


def test_ensemble(engine: Engine, gmx: Gmx, alanine_dir: Path, tmp_path: Path) -> None:
    members = []
    for seed in (1, 2, 3):
        mdp = fine_run(300.0, 2000, seed=seed, output_every=100)
        tpr = gmx.grompp(mdp, alanine_dir / "conf.gro", alanine_dir / "topol.top", tmp_path / f"{seed}.tpr")
        members.append(Member(tpr, tmp_path / f"run{seed}"))
    seen: list[float] = []
    results = run_ensemble(engine, members, lambda label, done, total: seen.append(done))
    assert seen[-1] == 3
    frames = [result.trajectory.read_bytes() for result in results]
    assert len(set(frames)) == 3
    for member, ours in zip(members, frames, strict=True):
        alone = gmx.mdrun(member.tpr, tmp_path / "alone", name=member.tpr.stem)
        assert alone.trajectory.read_bytes() == ours
    assert run_ensemble(engine, members) == results
    broken = [*members, Member(tmp_path / "no.tpr", tmp_path / "no")]
    with pytest.raises(SettingsError, match=r"no\.tpr does not exist"):
        run_ensemble(engine, broken)
    with pytest.raises(SettingsError, match="two runs of the ensemble write"):
        run_ensemble(engine, [members[0], members[0]])


@pytest.mark.plumed
def test_plumed(engine: Engine, gmx: Gmx, kernel: Kernel, alanine_tpr: Path, tmp_path: Path) -> None:
    source = tmp_path / "plumed.dat"
    source.write_text(PLUMED_INPUT)
    result = engine.mdrun(alanine_tpr, tmp_path / "a", plumed=source)
    same = gmx.mdrun(alanine_tpr, tmp_path / "b", plumed=source)
    assert result.trajectory.read_bytes() == same.trajectory.read_bytes()
    colvar = np.loadtxt(tmp_path / "a" / "COLVAR")
    np.testing.assert_array_equal(colvar, np.loadtxt(tmp_path / "b" / "COLVAR"))
    assert len(colvar) == 201
    np.testing.assert_allclose(colvar[:, 2], 10 * (colvar[:, 1] + 1.4) ** 2, atol=1e-3)
    source.write_text(PLUMED_INPUT.replace("20", "21"))
    with pytest.raises(StoreError, match="another PLUMED input"):
        engine.mdrun(alanine_tpr, tmp_path / "a", plumed=source)


@pytest.mark.plumed
def test_plumed_input_with_a_mistake(engine: Engine, kernel: Kernel, alanine_tpr: Path, tmp_path: Path) -> None:
    source = tmp_path / "plumed.dat"
    source.write_text("phi: TORSIONN ATOMS=5,7,9,15\n")
    with pytest.raises(MdrunError, match=r"PLUMED .*TORSIONN.* is not known.*; correct the PLUMED input") as caught:
        engine.mdrun(alanine_tpr, tmp_path / "a", plumed=source)
    assert one_line(caught.value) == "plumed"
