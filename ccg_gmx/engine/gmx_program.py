"""The gmx program: where it is and which GROMACS it is."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from ccg_gmx.engine.process import Finished
from ccg_gmx.errors import ToolMissingError, ToolVersionError

MINIMUM_VERSION = 2025
"""First GROMACS release with the PLUMED interface and everything else that the package uses."""

INSTALL_HINT = 'install it with `apt-get install gromacs` (Debian 13) or `conda install -c conda-forge "gromacs>=2025"`'


def locate_gmx(given: str | None) -> Path:
    """Find the program: the given path, then $GMXBIN (set by GROMACS' own GMXRC), then PATH.

    Args:
        given: path or name that the user gave.

    Raises:
        ToolMissingError: if there is none.
    """
    if given is not None:
        found = shutil.which(given)
        if found is None:
            raise ToolMissingError(f"no program at gmx: {given}", expected="GROMACS >= 2025", remedy=INSTALL_HINT)
        return Path(found).absolute()
    folder = os.environ.get("GMXBIN")
    found = (shutil.which("gmx", path=folder) if folder else None) or shutil.which("gmx")
    if found is None:
        raise ToolMissingError("no gmx on PATH", expected="GROMACS >= 2025", remedy=INSTALL_HINT)
    return Path(found).absolute()


def version_field(text: str, name: str) -> str | None:
    """Return one line of ``gmx --version``.

    Args:
        text: what it printed.
        name: start of the line, ``Precision`` for instance.
    """
    match = re.search(rf"^{name}:\s+(\S+)", text, re.M)
    return match[1] if match else None


def checked_version(path: Path, result: Finished) -> str:
    """Return the version that ``gmx --version`` states.

    Args:
        path: the program.
        result: what it answered.

    Raises:
        ToolVersionError: if it is too old or no GROMACS.
    """
    stated = version_field(result.stdout, "GROMACS version")
    if stated is None:  # releases before 2016 print another form
        old = re.search(r"VERSION (\d\S*)", result.stdout + result.stderr)
        stated = old[1] if old else None
    number = re.match(r"\d+(\.\d+)*", stated or "")
    if result.returncode or number is None:
        raise ToolVersionError(
            f"{path} --version says nothing about GROMACS", expected="GROMACS >= 2025", remedy=INSTALL_HINT
        )
    if int(number[0].split(".")[0]) < MINIMUM_VERSION:
        raise ToolVersionError(f"{path} is GROMACS {stated}", expected="GROMACS >= 2025", remedy=INSTALL_HINT)
    return number[0]
