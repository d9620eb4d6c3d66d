"""The C++ compiler of this machine, and what to do about its usual complaints."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from dataclasses import dataclass

from ccg_gmx.engine.probe import first_line
from ccg_gmx.errors import ToolMissingError

GET_COMPILER = "`apt-get install g++`, or `conda install -c conda-forge cxx-compiler`"


@dataclass(frozen=True)
class Compiler:
    """A C++ compiler.

    Attributes:
        command: program (absolute path) and the arguments that $CXX gives it.
        version: its version.
        banner: the line it introduces itself with.
    """

    command: tuple[str, ...]
    version: str
    banner: str


def find_compiler() -> Compiler:
    """Find the compiler: $CXX, then c++, g++, clang++ along PATH.

    Raises:
        ToolMissingError: if there is none that answers.
    """
    wanted = shlex.split(os.environ.get("CXX", ""))
    for command in ([wanted] if wanted else []) + [["c++"], ["g++"], ["clang++"]]:
        path = shutil.which(command[0])
        line = first_line([path, *command[1:], "--version"]) if path else ""
        if path and line:
            version = first_line([path, *command[1:], "-dumpfullversion", "-dumpversion"])
            return Compiler((path, *command[1:]), version, line)
    raise ToolMissingError("none on PATH", expected="a C++17 compiler", remedy=GET_COMPILER)


_COMPLAINTS: tuple[tuple[str, str, str], ...] = (
    (
        r"fatal error: '?((?:core|tools|config)/[\w./]+)'?",
        "the PLUMED headers are incomplete: {0} is missing",
        "install PLUMED with its headers (conda-forge has them, `make install` too; clusters: a -devel package)",
    ),
    (
        r"fatal error: '?((?:torch|ATen|c10)/[\w./]+)'?",
        "torch came without its C++ headers: {0} is missing",
        "`pip install torch==2.13.0` into this Python (its wheel has them), or `ccg plumed build --no-torch`",
    ),
    (
        r"fatal error: '?([\w./]+)'?: No such file|fatal error: '([\w./]+)' file not found",
        "the header {0} is missing",
        f"the compiler has no standard library: {GET_COMPILER}",
    ),
    (
        r"(?:unrecognized|invalid|unknown)[^\n]*?(-std=c\+\+17|c\+\+17)",
        "the compiler does not know {0}",
        f"use a newer one (gcc >= 9, clang >= 10) and name it in CXX: {GET_COMPILER}",
    ),
    (
        r"#error[^\n]*C\+\+(\d+)",
        "the headers want C++{0}, which this compiler does not offer by default",
        f"use a newer compiler and name it in CXX: {GET_COMPILER}",
    ),
    (
        r"cannot find -l(\w+)",
        "the library {0} cannot be linked",
        "PLUMED_KERNEL must name a file called libplumedKernel.so, beside its own libraries",
    ),
    (
        r"undefined reference to `([^'\n]*__cxx11[^'\n]*)'|undefined symbol: (\S*cxx11\S*)",
        "the standard library's ABI differs: {0} is missing, so PLUMED or torch was built with the old one",
        "use torch >= 2.7 and a PLUMED built with gcc >= 5 without -D_GLIBCXX_USE_CXX11_ABI=0",
    ),
    (
        r"version `(GLIBCXX_[\d.]+)' not found",
        "the plug-in needs {0}, which the C++ library found at run time does not have",
        "name the compiler of PLUMED's own environment in CXX (conda: `conda install cxx-compiler`) and build again",
    ),
    (
        r"undefined symbol: (\S*(?:c10|torch|at\d|aoti)\S*)",
        "another libtorch than the one built against is loaded first: {0} is missing",
        "PLUMED's pytorch module and the plug-in must share one libtorch: build PLUMED against this Python's torch, or "
        "use a PLUMED without that module",
    ),
    (
        r"undefined (?:symbol:|reference to) [`']?(_ZT?[INV]*\w*4PLMD\S*|PLMD\S*)",
        "PLUMED's symbol {0} is missing",
        "the headers are of another PLUMED than the kernel, or the link lost libplumedKernel (--as-needed in CXX or "
        "LDFLAGS): let PLUMED_KERNEL and plumed on PATH be of one installation",
    ),
    (
        r"(Killed|virtual memory exhausted|out of memory)",
        "the machine ran out of memory ({0})",
        "torch's headers take 1 GB per file: free memory, or build without: `ccg plumed build --no-torch`",
    ),
)


def explain(output: str) -> tuple[str, str] | None:
    """Say what a compiler, linker or loader complained of.

    Args:
        output: what it printed.

    Returns:
        The reason and the fix, each in a sentence; None for an unknown complaint.
    """
    for pattern, reason, remedy in _COMPLAINTS:
        if found := re.search(pattern, output):
            subject = next((group for group in found.groups() if group), "")
            return reason.format(subject[:120]), remedy
    return None
