"""Engines for tests that every engine must pass, and a gmxapi that is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from ccg_gmx.engine.driver import find_engine
from ccg_gmx.engine.protocol import Engine
from ccg_gmx.engine.settings import EngineSettings
from ccg_gmx.errors import CcgError

FAKE_BINDINGS = '''
"""The few calls of gmxapi._gmxapi that the worker makes, carried out by the gmx program."""
import os, pathlib, subprocess, sys

class MDArgs:
    def set(self, params):
        self.words = []
        for name, value in params.items():
            values = [] if value is None else [value] if isinstance(value, str) else list(value)
            self.words += [name, *map(str, values)]

class Context:
    def setMDArgs(self, options):
        self.options = options

class Session:
    def __init__(self, command):
        self.command = command
    def run(self):
        os.execv(self.command[0], self.command)  # mdrun takes the process over, as libgromacs does
    def close(self):
        pass

class System:
    def __init__(self, tpr):
        self.tpr = tpr
    def launch(self, context):
        if pathlib.Path("raise").exists():
            raise RuntimeError(pathlib.Path("raise").read_text())
        return Session([{gmx!r}, "mdrun", *context.options.words, "-s", self.tpr])

def from_tpr(tpr):
    return System(tpr)
'''


def fake_gmxapi(folder: Path, gmx: Path | str, mpi: str = "tmpi") -> Path:
    """Write a package ``gmxapi`` whose runs the gmx program makes; return the folder to put on PYTHONPATH."""
    package = folder / "gmxapi"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text('__version__ = "0.4.2"\n')
    facts = {"gmx_executable": str(gmx), "gmx_mpi_type": mpi}
    (package / "utility.py").write_text(f"def config():\n    return {facts!r}\n")
    (package / "_gmxapi.py").write_text(FAKE_BINDINGS.replace("{gmx!r}", repr(str(gmx))))
    return folder


def engine_or_skip(driver: str) -> Engine:
    """Return the engine of this machine; skip the test with the reason where there is none."""
    try:
        return find_engine(EngineSettings(driver=driver))
    except CcgError as error:
        pytest.skip(str(error))
