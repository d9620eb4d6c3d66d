"""PLUMED on this machine: its kernel (the shared library that mdrun loads), its program and its headers."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ccg_gmx.engine.probe import first_line, run
from ccg_gmx.errors import ToolMissingError, ToolVersionError

MINIMUM = (2, 10)
"""First release whose classes the plug-in is written for."""

GET_PLUMED = "`conda install -c conda-forge plumed`, a cluster module, or a build of your own; PLUMED_KERNEL names its "
GET_PLUMED += "libplumedKernel.so"
_NAMES = ("libplumedKernel.so", "libplumedKernel.dylib")


@dataclass(frozen=True)
class Kernel:
    """One PLUMED installation.

    Attributes:
        library: its libplumedKernel.
        origin: how it was found, in words.
    """

    library: Path
    origin: str

    @cached_property
    def program(self) -> Path | None:
        """The plumed program that belongs to this kernel; None when only the library is there."""
        folder = self.library.resolve().parent
        on_path = shutil.which("plumed")
        candidates = [Path(on_path)] if on_path else []
        candidates += [folder.parent / "bin" / "plumed", folder / "plumed"]
        return next((path for path in candidates if path.is_file() and folder in _folders_of(path)), None)

    @property
    def command(self) -> list[str]:
        """Start of a command line of its program, told not to start MPI.

        Raises:
            ToolMissingError: if only the library is there.
        """
        if self.program is None:
            raise ToolMissingError(
                f"the plumed program that belongs to {self.library} is missing",
                remedy=f"install it whole: {GET_PLUMED}",
            )
        return [str(self.program), "--no-mpi"]

    @cached_property
    def version(self) -> str:
        """Its version; empty when there is no program to say it."""
        return first_line([*self.command, "info", "--long-version"]) if self.program else ""

    @cached_property
    def include(self) -> Path | None:
        """Folder with ``core/Action.h``: of an installation, or of the tree it was built in; None when not there."""
        folder = self.library.resolve().parent
        candidates = [folder.parent / "include" / "plumed", folder.parent]
        if self.program:
            said = first_line([*self.command, "info", "--include-dir"])
            candidates.insert(0, Path(said) / "plumed")
        return next((path for path in candidates if (path / "core" / "ActionAtomistic.h").is_file()), None)

    @cached_property
    def definitions(self) -> tuple[str, ...]:
        """Options ``-D__PLUMED_...`` it was built with; its headers declare members by them."""
        words = self._options("CPPFLAGS")
        return tuple(word for word in words if word.startswith("-D__PLUMED_") and '"' not in word)

    @cached_property
    def openmp(self) -> tuple[str, ...]:
        """The option that turns on OpenMP, where it was built with that: a plug-in may have threads where it has."""
        return tuple(word for word in self._options("CXXFLAGS") if word == "-fopenmp")

    def _options(self, variable: str) -> list[str]:
        """Compiler options that it was built with; none when there is no program to say them."""
        flags = re.search(rf"^{variable}=(.*)$", self._configuration, re.MULTILINE)
        return shlex.split(flags[1]) if flags else []

    @cached_property
    def _configuration(self) -> str:
        result = run([*self.command, "info", "--configuration"]) if self.program else None
        return result.stdout if result is not None and result.returncode == 0 else ""

    def check_version(self) -> None:
        """Refuse a PLUMED that is too old.

        Raises:
            ToolVersionError: if it says that it is older than 2.10.
        """
        numbers = tuple(int(number) for number in re.findall(r"\d+", self.version)[:2])
        if numbers and numbers < MINIMUM:
            raise ToolVersionError(
                f"{self.library} is PLUMED {self.version}", expected="PLUMED >= 2.10", remedy=GET_PLUMED
            )


def find_kernel() -> Kernel:
    """Find the kernel where GROMACS looks first (PLUMED_KERNEL), then where it usually is.

    Raises:
        ToolMissingError: if there is none, or PLUMED_KERNEL names no file.
    """
    named = os.environ.get("PLUMED_KERNEL", "")
    if named:
        if Path(named).is_file():
            return Kernel(Path(named), "PLUMED_KERNEL")
        raise ToolMissingError(f"PLUMED_KERNEL names {named}, which is not a file", remedy="correct it or unset it")
    program = shutil.which("plumed")
    for origin, folders in (
        ("plumed on PATH", _folders_of(Path(program)) if program else []),
        ("Python or conda prefix", [Path(prefix) / "lib" for prefix in _prefixes()]),
        ("library path", [Path(p) for p in os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep) if p]),
        ("ldconfig", _ldconfig_folders()),
    ):
        for file in (folder / name for folder in folders for name in _NAMES):
            if file.is_file():
                return Kernel(file, origin)
    raise ToolMissingError("no PLUMED kernel was found", expected="PLUMED >= 2.10", remedy=GET_PLUMED)


def _folders_of(program: Path) -> list[Path]:
    """Folders of the kernel that belongs to a plumed program: beside its root when installed, inside when not."""
    root = first_line([str(program), "--no-mpi", "info", "--root"])
    return [Path(root).resolve().parent, Path(root).resolve() / "src" / "lib"] if root else []


def _prefixes() -> list[str]:
    return list(dict.fromkeys(filter(None, (os.environ.get("CONDA_PREFIX"), sys.prefix))))


def _ldconfig_folders() -> list[Path]:
    # /sbin is not on every user's PATH.
    program = shutil.which("ldconfig") or shutil.which("ldconfig", path="/sbin:/usr/sbin")
    result = run([program, "-p"]) if program else None
    lines = result.stdout.splitlines() if result is not None and result.returncode == 0 else []
    return [Path(line.split("=>")[-1].strip()).parent for line in lines if "libplumedKernel" in line and "=>" in line]
