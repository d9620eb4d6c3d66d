"""GROMACS through its Python interface gmxapi: the engine of gromacs.py with another way to start mdrun.

mdrun runs in libgromacs inside a Python process of its own (``gmxapi_worker.py``), so everything around a run is that
of the gmx program: files, record, checkpoints, progress, signals, and failures in one line. Energies and frames are the
same bits, as options and library are the same. File tools (grompp, dump, energy, awh) exist as programs only.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from ccg_gmx.engine import gmxapi_worker
from ccg_gmx.engine.gromacs import Gmx
from ccg_gmx.engine.probe import run
from ccg_gmx.engine.settings import EngineSettings
from ccg_gmx.errors import ToolMissingError, ToolVersionError

INSTALL_HINT = "use engine: gmx, or install a GROMACS with libgmxapi (conda-forge, own build) and `pip install gmxapi`"

Argument = str | list[str] | None
"""Value of an option of mdrun, several values, or none for a switch."""

_IMPORT_S = 120.0
# The calls of the worker are checked here, so that another gmxapi is refused before a run and not in its middle.
_PROBE = """
import json
import gmxapi
import gmxapi._gmxapi as bindings
from gmxapi.utility import config
assert bindings.Context.setMDArgs and bindings.MDArgs.set and bindings.from_tpr
facts = dict(config())
print(json.dumps([gmxapi.__version__, facts.get("gmx_executable") or "", facts.get("gmx_mpi_type") or "none"]))
"""


@dataclass(frozen=True)
class Bindings:
    """The Python package gmxapi of this interpreter.

    Attributes:
        version: its version; empty when it cannot be imported.
        gmx: gmx program of the GROMACS it was built for; empty when it does not say.
        mpi: ``tmpi``, ``none`` or ``library``: MPI of that GROMACS.
        trouble: why it cannot be used; empty when it can.
    """

    version: str = ""
    gmx: str = ""
    mpi: str = ""
    trouble: str = ""

    @property
    def usable(self) -> bool:
        """Whether runs can go through it."""
        return not self.trouble


@cache
def find_bindings(python: str = "") -> Bindings:
    """Ask for gmxapi in a child process.

    Against the wrong GROMACS its import can end the process, and with some MPI builds it starts MPI.

    Args:
        python: interpreter to ask; empty for that of this process.
    """
    # -P: a folder of that name where the user happens to stand is not the module.
    result = run([python or sys.executable, "-P", "-c", _PROBE], _IMPORT_S)
    if result is None:
        return Bindings(trouble="its import does not end")
    lines = result.stdout.strip().splitlines()
    if result.returncode == 0 and not lines:
        return Bindings(trouble="its import answers nothing")
    if result.returncode == 0:
        version, gmx, mpi = json.loads(lines[-1])
        trouble = "its GROMACS is built with library MPI, which runs under mpirun only" if mpi == "library" else ""
        return Bindings(version, gmx, mpi, trouble)
    if "No module named 'gmxapi'" in result.stderr:
        return Bindings(trouble="not installed")
    reason = (result.stderr.strip().splitlines() or [f"exit status {result.returncode}"])[-1]
    return Bindings(trouble=f"installed, but its import fails: {reason[:200]}")


@dataclass(frozen=True)
class GmxApi(Gmx):
    """One GROMACS installation whose mdrun is called through gmxapi; all else is that of ``Gmx``."""

    tool = "gmxapi mdrun"

    @classmethod
    def find(cls, settings: EngineSettings | None = None) -> GmxApi:
        """Find gmxapi and the GROMACS it was built for, and check both.

        The gmx program is the one gmxapi was built for unless the settings name one.

        Args:
            settings: where to look and how to run; None for the defaults.

        Raises:
            ToolMissingError: if gmxapi cannot be imported, or there is no gmx.
            ToolVersionError: if gmxapi or its GROMACS is of no use, or the named gmx is another one.
            SettingsError: if a GPU is asked for and this GROMACS has no GPU support.
        """
        settings = settings or EngineSettings()
        bindings = find_bindings()
        if bindings.mpi == "library":
            raise ToolVersionError(f"gmxapi: {bindings.trouble}", expected="thread-MPI", remedy=INSTALL_HINT)
        if not bindings.usable:
            raise ToolMissingError(f"gmxapi: {bindings.trouble}", remedy=INSTALL_HINT)
        built_for = super().find(settings.model_copy(update={"gmx": bindings.gmx or settings.gmx}))
        if settings.gmx is None:
            return replace(built_for, settings=settings)
        named = super().find(settings)
        if (named.version, named.precision) != (built_for.version, built_for.precision):
            raise ToolVersionError(
                f"{named.path} is GROMACS {named.version} ({named.precision} precision), gmxapi was built for "
                f"{built_for.version} ({built_for.precision})",
                remedy="leave engine.gmx out, or build gmxapi for this GROMACS",
            )
        return named

    def _mdrun_process(self, tpr: Path, options: Sequence[str]) -> list[str]:
        arguments = runtime_args(options)
        # Left out, gmxapi takes a state.cpt that lies in the folder; one that does not exist starts a new run.
        arguments.setdefault("-cpi", arguments.get("-cpo", "none.cpt"))
        # -P: this file's own folder has a gmxapi.py
        return [sys.executable, "-P", gmxapi_worker.__file__, str(tpr), json.dumps(arguments)]


def runtime_args(options: Sequence[str]) -> dict[str, Argument]:
    """Turn words of a command line into what gmxapi takes as ``runtime_args``.

    Args:
        options: ``["-ntmpi", "1", "-reprod", "-tableb", "a_b0.xvg", "a_b1.xvg"]`` for instance; the last of equal
            options counts, as in gmx.

    Returns:
        ``{"-ntmpi": "1", "-reprod": None, "-tableb": ["a_b0.xvg", "a_b1.xvg"]}``.
    """
    values: dict[str, list[str]] = {}
    for word in options:
        if word.startswith("-") and not re.fullmatch(r"-[\d.]+", word):
            name = word
            values[name] = []
        else:
            values[name].append(word)
    return {name: _argument(words) for name, words in values.items()}


def _argument(words: list[str]) -> Argument:
    if not words:
        return None
    return words[0] if len(words) == 1 else words
