"""What this machine has of all the programs that the package can use: the content of ``ccg doctor``.

A part that is missing, too old or broken is a row of the answer, never an exception. Whatever could crash the process
(a compiled module built for other libraries) is asked in a child process with a time limit.
"""

from __future__ import annotations

import platform
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from ccg_gmx import __version__
from ccg_gmx.engine.compiler import find_compiler
from ccg_gmx.engine.gmxapi import find_bindings
from ccg_gmx.engine.gromacs import MINIMUM_VERSION, Gmx
from ccg_gmx.engine.plumed import find_kernel
from ccg_gmx.engine.plumed_build import find_plugin
from ccg_gmx.engine.probe import first_line, run
from ccg_gmx.engine.settings import EngineSettings, available_cores
from ccg_gmx.errors import CcgError

PLUMED_MODULES = ("opes", "pytorch", "annfunc")
"""Optional PLUMED modules that the package has a use for."""

_CONDA = "conda install -c conda-forge"


@dataclass(frozen=True)
class Part:
    """One thing the package can use.

    Attributes:
        name: what it is.
        found: whether it is there and usable.
        version: its version; empty when unknown.
        detail: where it is, what it can do, or why it is not usable.
        cost_when_missing: what cannot be done without it.
        how_to_get: how to install it.
    """

    name: str
    found: bool
    version: str
    detail: str
    cost_when_missing: str
    how_to_get: str


@dataclass(frozen=True)
class Toolchain:
    """All parts, the indispensable ones first.

    Attributes:
        package_version: version of ccg_gmx.
        python_version: version of the running Python.
        cores: cores this process may use.
        parts: what was looked for.
    """

    package_version: str
    python_version: str
    cores: int
    parts: tuple[Part, ...]

    def part(self, name: str) -> Part:
        """Return one part.

        Args:
            name: its name.

        Raises:
            KeyError: if nothing of that name was looked for.
        """
        for part in self.parts:
            if part.name == name:
                return part
        raise KeyError(name)

    @property
    def ready(self) -> bool:
        """Whether the cycle can run here: GROMACS and torch are usable."""
        return self.part("GROMACS").found and self.part("torch").found

    def to_dict(self) -> dict[str, object]:
        """Return the same as plain types for JSON."""
        return {
            "ready": self.ready,
            "package_version": self.package_version,
            "python_version": self.python_version,
            "cores": self.cores,
            "parts": [asdict(part) for part in self.parts],
        }


@dataclass(frozen=True)
class _Finding:
    """What was found of one part."""

    found: bool
    version: str = ""
    detail: str = ""


def inspect_toolchain() -> Toolchain:
    """Look for everything the package can use. Takes a few seconds, most of it the import of torch."""
    findings: dict[str, Callable[[], _Finding]] = {
        "GROMACS": _gromacs,
        "torch": _torch,
        "MDAnalysis": _mdanalysis,
        "gmxapi": _gmxapi,
        "PLUMED kernel": _find_kernel,
        "PLUMED modules": _plumed_modules,
        "PLUMED plug-in": _plugin,
        "C++ compiler": _compiler,
        "GPU": _gpu,
    }
    parts = tuple(_part(name, look) for name, look in findings.items())
    return Toolchain(__version__, platform.python_version(), available_cores(), parts)


def format_toolchain(toolchain: Toolchain) -> str:
    """Format the answer as a table, with cost and remedy under every missing part.

    Args:
        toolchain: what was found.

    Returns:
        Lines of text without a final newline.
    """
    head = f"ccg_gmx {toolchain.package_version}, Python {toolchain.python_version}, {toolchain.cores} cores"
    names = max(len(part.name) for part in toolchain.parts)
    versions = max(len(part.version) for part in toolchain.parts)
    lines = [head, ""]
    for part in toolchain.parts:
        mark = "yes" if part.found else "no "
        lines.append(f"  {mark}  {part.name:<{names}}  {part.version or '-':<{versions}}  {part.detail}".rstrip())
        if not part.found:
            indent = " " * (names + 9)
            lines += [f"{indent}without it: {part.cost_when_missing}", f"{indent}get it: {part.how_to_get}"]
    lines += ["", "ready: the cycle can run" if toolchain.ready else "not ready: the cycle needs GROMACS and torch"]
    return "\n".join(lines)


_COSTS: Mapping[str, tuple[str, str]] = {
    "GROMACS": (
        "nothing runs",
        f'`make setup` as root on Debian 12 or 13, or `{_CONDA} "gromacs>={MINIMUM_VERSION}"`; GMXBIN names its folder',
    ),
    "torch": ("nothing runs", "`make setup`, or `pip install torch==2.13.0`"),
    "MDAnalysis": ("no trajectory can be read", "`make setup`, or `pip install MDAnalysis`"),
    "gmxapi": (
        "GROMACS runs as a program instead of inside Python; results are the same",
        f'`{_CONDA} "gromacs>={MINIMUM_VERSION}"`, then `pip install gmxapi`; Debian leaves libgmxapi out',
    ),
    "PLUMED kernel": (
        "no PLUMED collective variables or biases in mdrun; the cycle needs none",
        f'`{_CONDA} "plumed>=2.10"`, then PLUMED_KERNEL=<folder>/libplumedKernel.so',
    ),
    "PLUMED modules": (
        "no OPES biases, no PYTORCH_MODEL or ANN models in PLUMED; the cycle needs none",
        "the conda-forge plumed, or a build of your own with `./configure --enable-modules=opes:annfunc:pytorch`",
    ),
    "PLUMED plug-in": ("no ccg_gmx models inside PLUMED; the cycle needs none", "`ccg plumed build`"),
    "C++ compiler": (
        "no models compiled for this processor and no PLUMED plug-in",
        f"`apt-get install g++`, or `{_CONDA} cxx-compiler`",
    ),
    "GPU": ("everything runs on the processor's cores", "nothing to do: small molecules do not need one"),
}


def _part(name: str, look: Callable[[], _Finding]) -> Part:
    try:
        finding = look()
    except Exception as error:  # a broken installation can raise anything, and doctor is there to say so
        finding = _Finding(False, detail=f"broken: {_one_line(error)}")
    cost, remedy = _COSTS[name]
    return Part(name, finding.found, finding.version, finding.detail, cost, remedy)


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__


# ---------------------------------------------------------------- Python side


def _gromacs() -> _Finding:
    try:
        gmx = Gmx.find()
    except CcgError as error:
        return _Finding(False, detail=error.found)
    return _Finding(True, gmx.version, f"{gmx.path}; {gmx.precision} precision, GPU support {gmx.gpu_support}")


def _torch() -> _Finding:
    import torch

    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU build"
    return _Finding(True, str(torch.__version__), f"{build}, {torch.get_num_threads()} threads")


def _mdanalysis() -> _Finding:
    import MDAnalysis

    return _Finding(True, str(MDAnalysis.__version__), str(Path(MDAnalysis.__file__).parent))


def _gmxapi() -> _Finding:
    bindings = find_bindings(sys.executable)
    if not bindings.usable:
        return _Finding(False, bindings.version, bindings.trouble)
    try:
        gmx = Gmx.find(EngineSettings(gmx=bindings.gmx)) if bindings.gmx else None
    except CcgError as error:
        return _Finding(False, bindings.version, f"importable, but of its GROMACS: {error.found}")
    stated = f"GROMACS {gmx.version}, {gmx.path}" if gmx else "a GROMACS that it does not name"
    return _Finding(True, bindings.version, f"importable; built for {stated}")


def _gpu() -> _Finding:
    listed = run(["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"])
    names = listed.stdout.strip().splitlines() if listed is not None and listed.returncode == 0 else []
    import torch

    if torch.cuda.is_available():
        return _Finding(True, str(torch.version.cuda or ""), torch.cuda.get_device_name(0))
    if names:
        return _Finding(False, detail=f"{names[0]} is there, but this torch cannot use it")
    return _Finding(False, detail="none")


# ---------------------------------------------------------------- PLUMED


def _find_kernel() -> _Finding:
    try:
        kernel = find_kernel()
    except CcgError as error:
        return _Finding(False, detail=error.found)
    if kernel.origin == "PLUMED_KERNEL":
        return _Finding(True, kernel.version, f"{kernel.library} (PLUMED_KERNEL)")
    advice = f"{kernel.library} ({kernel.origin}); set PLUMED_KERNEL to it for mdrun -plumed"
    return _Finding(True, kernel.version, advice)


def _plumed_program() -> list[str] | None:
    """The plumed program, told not to start MPI."""
    path = shutil.which("plumed")
    return [path, "--no-mpi"] if path else None


def _plumed_modules() -> _Finding:
    program = _plumed_program()
    if program is None:
        return _Finding(False, detail="cannot be asked: no plumed program on PATH")
    result = run([*program, "config", "module", *PLUMED_MODULES])
    if result is None:
        return _Finding(False, detail=f"{program[0]} config does not answer")
    # One line per module, "opes on"; the exit status is 1 as soon as one of them is off.
    answers = dict(line.split(maxsplit=1) for line in result.stdout.splitlines() if len(line.split()) >= 2)
    states = {name: "on" if answers.get(name) == "on" else "off" for name in PLUMED_MODULES}
    detail = ", ".join(f"{name} {state}" for name, state in states.items())
    version = first_line([*program, "info", "--long-version"])
    return _Finding(all(state == "on" for state in states.values()), version, detail)


def _plugin() -> _Finding:
    try:
        built = find_plugin()
    except CcgError as error:
        return _Finding(False, detail=error.found)
    return _Finding(True, f"for PLUMED {built.plumed or '?'}", f"{built.library}; {built.words}")


# ---------------------------------------------------------------- compiler


def _compiler() -> _Finding:
    try:
        compiler = find_compiler()
    except CcgError as error:
        return _Finding(False, detail=error.found)
    return _Finding(True, compiler.version, f"{compiler.command[0]}: {compiler.banner}")
