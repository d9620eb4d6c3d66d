"""Choosing the engine, and what is the gmxapi engine's own, on a fake gmxapi; the real one: test_engine_contract.py."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from engines import fake_gmxapi
from pydantic import ValidationError
from test_gromacs import fake_gmx

from ccg_gmx.cycle.config import load_workflow
from ccg_gmx.engine import gmxapi_worker
from ccg_gmx.engine.driver import find_engine
from ccg_gmx.engine.failures import diagnose
from ccg_gmx.engine.gmxapi import GmxApi, find_bindings, runtime_args
from ccg_gmx.engine.gromacs import Gmx
from ccg_gmx.engine.protocol import Engine
from ccg_gmx.engine.settings import EngineSettings
from ccg_gmx.engine.toolchain import inspect_toolchain
from ccg_gmx.errors import MdrunError, SettingsError, ToolMissingError, ToolVersionError

WORKFLOW = Path(__file__).resolve().parent.parent / "workflows" / "alanine_dipeptide.yaml"
VERSION = "GROMACS version:    {}\nPrecision:          {}\nGPU support:        disabled"


@pytest.fixture(autouse=True)
def _asked_anew() -> Iterator[None]:
    """No answer of another test, and none of a fake left behind."""
    find_bindings.cache_clear()
    yield
    find_bindings.cache_clear()


@pytest.fixture
def no_gmx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose PATH is empty."""
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    monkeypatch.delenv("GMXBIN", raising=False)


@pytest.fixture
def no_gmxapi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gmxapi that cannot be imported, in front of one that may be installed."""
    (tmp_path / "gmxapi.py").write_text("raise ImportError('libgmxapi.so.0: cannot open')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


def gmxapi_for(version: str, folder: Path, monkeypatch: pytest.MonkeyPatch, mpi: str = "tmpi") -> Path:
    """Install a fake gmxapi that was built for a gmx of this version; return the gmx."""
    place = folder / f"gromacs_{version}"
    place.mkdir()
    gmx = fake_gmx(place, VERSION.format(version, "mixed")).absolute()
    monkeypatch.setenv("PYTHONPATH", str(fake_gmxapi(folder / "fake", gmx, mpi)))
    return gmx


# --- the choice -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("driver", ["gmx", "gmxapi", "auto"])
@pytest.mark.parametrize("form", ["name", "key"])
def test_workflow_files_name_the_driver(driver: str, form: str) -> None:
    setting = f"engine={driver}" if form == "name" else f"engine.driver={driver}"
    assert load_workflow(WORKFLOW, (setting,)).engine.driver == driver
    assert load_workflow(WORKFLOW).engine.driver == "auto"


@pytest.mark.parametrize("setting", ["engine=lammps", "engine.driver=lammps"])
def test_a_driver_that_is_none_is_named_in_one_line(setting: str) -> None:
    with pytest.raises(SettingsError, match=r"engine\.driver: .*'gmx', 'gmxapi' or 'auto' \(found 'lammps'\)"):
        load_workflow(WORKFLOW, (setting,))
    with pytest.raises(ValidationError):
        EngineSettings(driver="lammps")


def test_settings_survive_the_way_to_a_worker() -> None:
    settings = EngineSettings.model_validate("gmxapi")
    assert EngineSettings(**settings.model_dump(mode="json")) == settings


@pytest.mark.usefixtures("no_gmxapi")
@pytest.mark.parametrize("driver", ["gmx", "auto"])
def test_gmx_needs_no_gmxapi(tmp_path: Path, driver: str) -> None:
    program = fake_gmx(tmp_path, VERSION.format("2025.2", "mixed"))
    engine = find_engine(EngineSettings(driver=driver, gmx=str(program)))
    assert type(engine) is Gmx
    assert isinstance(engine, Engine)


def test_auto_prefers_the_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gmxapi_for("2025.3", tmp_path, monkeypatch)
    monkeypatch.setenv("GMXBIN", str(fake_gmx(tmp_path, VERSION.format("2026.1", "mixed")).parent))
    assert (type(find_engine()), find_engine().version) == (Gmx, "2026.1")


@pytest.mark.usefixtures("no_gmx")
def test_auto_without_gmx_takes_the_one_that_gmxapi_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/bin:/usr/sbin")  # for the shell of the fake gmx
    monkeypatch.setattr("ccg_gmx.engine.gmx_program.shutil.which", lambda name, path=None: which(name))

    def which(name: str) -> str | None:
        return name if Path(name).is_file() else None

    gmx = gmxapi_for("2025.3", tmp_path, monkeypatch)
    engine = find_engine()
    assert (type(engine), engine.path, engine.settings) == (GmxApi, gmx, EngineSettings())
    with pytest.raises(ToolMissingError, match="no gmx on PATH"):
        find_engine(EngineSettings(driver="gmx"))
    with pytest.raises(ToolMissingError, match="no program at gmx: nowhere"):
        find_engine(EngineSettings(gmx="nowhere"))


@pytest.mark.usefixtures("no_gmx", "no_gmxapi")
def test_with_neither_the_program_is_what_is_missed() -> None:
    with pytest.raises(ToolMissingError, match="no gmx on PATH"):
        find_engine()


@pytest.mark.usefixtures("no_gmxapi")
def test_gmxapi_that_cannot_be_imported_says_so_and_what_to_do() -> None:
    with pytest.raises(ToolMissingError, match=r"gmxapi: .*libgmxapi\.so\.0: cannot open; use engine: gmx, or install"):
        find_engine(EngineSettings(driver="gmxapi"))


def test_library_mpi_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gmxapi_for("2025.3", tmp_path, monkeypatch, mpi="library")
    with pytest.raises(ToolVersionError, match=r"library MPI.*expected thread-MPI"):
        GmxApi.find()


def test_gmx_and_gmxapi_of_two_releases_are_not_mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built_for = gmxapi_for("2025.3", tmp_path, monkeypatch)
    other = fake_gmx(tmp_path, VERSION.format("2026.1", "mixed"))
    with pytest.raises(ToolVersionError, match=r"GROMACS 2026\.1 \(mixed precision\), gmxapi was built for 2025\.3"):
        GmxApi.find(EngineSettings(gmx=str(other)))
    assert GmxApi.find(EngineSettings(gmx=str(built_for))).path == built_for


def test_gmxapi_for_an_old_gromacs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gmxapi_for("2024.5", tmp_path, monkeypatch)
    with pytest.raises(ToolVersionError, match=r"GROMACS 2024\.5; expected GROMACS >= 2025"):
        GmxApi.find()
    part = inspect_toolchain().part("gmxapi")
    assert not part.found
    assert "importable, but of its GROMACS" in part.detail


def test_doctor_says_which_gromacs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gmx = gmxapi_for("2025.3", tmp_path, monkeypatch)
    part = inspect_toolchain().part("gmxapi")
    assert (part.found, part.version) == (True, "0.4.2")
    assert part.detail == f"importable; built for GROMACS 2025.3, {gmx}"


# --- a run ----------------------------------------------------------------------------------------------------------


def test_options_become_runtime_args() -> None:
    words = "-ntmpi 1 -reprod -cpt 0.25 -tableb a_b0.xvg a_b1.xvg -pinoffset -1 -nb cpu -nb gpu -v"
    assert runtime_args(words.split()) == {
        "-ntmpi": "1",
        "-reprod": None,
        "-cpt": "0.25",
        "-tableb": ["a_b0.xvg", "a_b1.xvg"],
        "-pinoffset": "-1",
        "-nb": "gpu",
        "-v": None,
    }


def test_an_exception_reads_like_a_message_of_gmx() -> None:
    text = gmxapi_worker.as_gromacs_prints(RuntimeError("Checkpoint file corrupted/truncated, or maybe\nyou are out"))
    failure = diagnose("some output\n" + text)
    assert failure is not None
    assert (failure.kind, failure.reason) == ("checkpoint", "Checkpoint file corrupted/truncated, or maybe you are out")
    assert diagnose(gmxapi_worker.as_gromacs_prints(ValueError())).reason == "ValueError"  # type: ignore[union-attr]


@pytest.fixture
def engine(gmx: Gmx, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> GmxApi:
    """The engine on a fake gmxapi whose mdrun is the gmx of this machine."""
    monkeypatch.setenv("PYTHONPATH", str(fake_gmxapi(tmp_path / "fake", gmx.path)))
    return GmxApi.find(EngineSettings(driver="gmxapi"))


@pytest.mark.gmx
def test_a_run(engine: GmxApi, alanine_tpr: Path, alanine_trr: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    result = engine.mdrun(alanine_tpr, tmp_path / "run", progress=lambda *state: seen.append(state))
    assert result.trajectory.read_bytes() == alanine_trr.read_bytes()
    assert seen[-1] == (20_000, 20_000)
    assert not (tmp_path / "run" / "gmxapi").exists()
    rerun = engine.rerun(alanine_tpr, result.trajectory, tmp_path / "rerun")
    assert len(rerun["Potential"]) == 201


@pytest.mark.gmx
def test_it_goes_on_from_a_checkpoint(engine: GmxApi, alanine_tpr: Path, tmp_path: Path) -> None:
    command = engine._mdrun_process(alanine_tpr, ["-cpo", "run.cpt"])
    assert command[:2] == [sys.executable, "-P"]
    assert json.loads(command[-1]) == {"-cpo": "run.cpt", "-cpi": "run.cpt"}
    first = engine.mdrun(alanine_tpr, tmp_path)
    record = tmp_path / "run.json"
    record.write_text(record.read_text().replace("true", "false"))
    assert engine.mdrun(alanine_tpr, tmp_path).trajectory == first.trajectory
    assert "Restarting from checkpoint" in first.log.read_text()


@pytest.mark.gmx
@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("Checkpoint file corrupted/truncated", r"gmxapi mdrun failed: Checkpoint .*; .*remove this run's files"),
        ("unknown option -xyz", r"gmxapi mdrun failed: unknown option -xyz \(whole output: .*run\.out\)$"),
    ],
)
def test_what_gmxapi_raises_is_one_line(
    engine: GmxApi, alanine_tpr: Path, tmp_path: Path, message: str, expected: str
) -> None:
    (tmp_path / "raise").write_text(message)
    with pytest.raises(MdrunError, match=expected) as caught:
        engine.mdrun(alanine_tpr, tmp_path)
    assert "\n" not in str(caught.value)
