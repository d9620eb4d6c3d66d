"""Fixtures that several test files share, and a closing word on what could not be tested here."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from plumed_tools import FORMATS, MIXED, mixed_model, torsion_model, torsion_signature

from ccg_gmx.engine.gmxapi import find_bindings
from ccg_gmx.engine.gromacs import Gmx
from ccg_gmx.engine.mdp import fine_run
from ccg_gmx.engine.plumed import Kernel, find_kernel
from ccg_gmx.engine.plumed_build import Plugin
from ccg_gmx.engine.plumed_setup import make_plugin
from ccg_gmx.errors import CcgError, ToolMissingError
from ccg_gmx.export.torch_model import export_model

ALANINE = Path(__file__).resolve().parent.parent / "topologies" / "alanine_dipeptide"


@pytest.fixture(scope="session")
def gmx() -> Gmx:
    """The gmx of this machine; tests that ask for it are skipped where there is none."""
    try:
        return Gmx.find()
    except CcgError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def alanine_dir() -> Path:
    """Folder with conf.gro, topol.top and mdp files of alanine dipeptide in vacuum."""
    return ALANINE


@pytest.fixture(scope="session")
def alanine_tpr(gmx: Gmx, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run input of 20 ps (20,000 steps) of Langevin dynamics at 300 K, a frame every 0.1 ps."""
    folder = tmp_path_factory.mktemp("alanine")
    mdp = fine_run(300.0, 20_000, seed=7, output_every=100, forces=True)
    return gmx.grompp(mdp, ALANINE / "conf.gro", ALANINE / "topol.top", folder / "fine.tpr")


@pytest.fixture(scope="session")
def alanine_trr(gmx: Gmx, alanine_tpr: Path) -> Path:
    """Trajectory of that run: 201 full-precision frames with forces."""
    return gmx.mdrun(alanine_tpr, alanine_tpr.parent, name="fine").trajectory


@pytest.fixture(scope="session")
def kernel() -> Kernel:
    """The PLUMED of this machine with its program; tests that ask for it are skipped where there is none."""
    try:
        found = find_kernel()
        found.check_version()
        assert found.command
    except CcgError as error:
        pytest.skip(str(error))
    return found


@pytest.fixture(scope="session")
def plugin(kernel: Kernel) -> Plugin:
    """The plug-in for that PLUMED, built into the user's cache if it is not there."""
    try:
        return make_plugin(test=False)
    except ToolMissingError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory, plugin: Plugin) -> dict[str, Path]:
    """Models for the plug-in in every format: ``mixed_float64.pt2`` and so on."""
    folder = tmp_path_factory.mktemp("models")
    for suffix, dtype in FORMATS:
        if plugin.torch or suffix == "json":
            export_model(mixed_model(), MIXED, folder / f"mixed_{dtype}.{suffix}", dtype=dtype)
    export_model(torsion_model(), torsion_signature(), folder / "torsions.json")
    export_model(torsion_model(), torsion_signature(), folder / "torsions.pt", dtype="float64")
    return {path.name: path for path in folder.iterdir()}


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say which optional parts this run could test."""
    terminalreporter.section("optional parts")
    parts = {
        "gmx": _gmx,
        "PLUMED kernel": _plumed,
        "plumed for Python": _plumed_package,
        "gmxapi": _gmxapi,
        "CUDA": _cuda,
    }
    for name, look in parts.items():
        terminalreporter.write_line(f"{name}: {look()}")


def _gmx() -> str:
    try:
        found = Gmx.find()
    except CcgError as error:
        return f"skipped: {error}"
    return f"ran with GROMACS {found.version} ({found.precision} precision, GPU support {found.gpu_support})"


def _plumed() -> str:
    try:
        found = find_kernel()
    except CcgError as error:
        return f"skipped: {error}"
    return f"ran with {found.library} ({found.origin}, version {found.version or 'unknown'})"


def _plumed_package() -> str:
    found = importlib.util.find_spec("plumed")
    return (
        f"ran with {found.origin}"
        if found
        else "skipped: not installed; pip install -e '.[plumed]' with PLUMED_KERNEL set"
    )


def _gmxapi() -> str:
    found = find_bindings()
    return f"ran with gmxapi {found.version} for {found.gmx}" if found.usable else f"skipped: gmxapi is {found.trouble}"


def _cuda() -> str:
    if importlib.util.find_spec("torch") is None:
        return "skipped: torch is not installed"
    import torch

    return f"ran on {torch.cuda.get_device_name()}" if torch.cuda.is_available() else "skipped: no CUDA device"
