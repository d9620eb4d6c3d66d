"""What this machine has of all the programs that the package can use: the content of ``ccg doctor``.

A part that is missing, too old or broken is a row of the answer, never an exception. Whatever could crash the process
(a compiled module built for other libraries) is asked in a child process with a time limit.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ccg_gmx import __version__
from ccg_gmx.engine.gromacs import MINIMUM_VERSION, Gmx
from ccg_gmx.engine.settings import available_cores
from ccg_gmx.errors import CcgError

PLUMED_MODULES = ("opes", "pytorch", "annfunc")
"""Optional PLUMED modules that the package has a use for."""

_QUICK_S, _SLOW_S = 20.0, 120.0
_KERNEL_NAMES = ("libplumedKernel.so", "libplumedKernel.dylib")
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
        "PLUMED plug-in": lambda: _Finding(False, detail="not built; comes with step 4"),
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
    "PLUMED plug-in": ("no ccg_gmx models inside PLUMED; the cycle needs none", "a later version of this package"),
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


def _run(command: Sequence[str], timeout_s: float | None = None) -> subprocess.CompletedProcess[str] | None:
    """Run a program to its end; None when it cannot be started or takes too long."""
    try:
        return subprocess.run(
            list(command),
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            stdin=subprocess.DEVNULL,
            timeout=_QUICK_S if timeout_s is None else timeout_s,
            check=False,
            env={**os.environ, "LC_ALL": "C"},
        )
    except (OSError, subprocess.TimeoutExpired):
        return None


def _first_line(command: Sequence[str]) -> str:
    """First line a program prints, or an empty string when it fails."""
    result = _run(command)
    lines = result.stdout.strip().splitlines() if result is not None and result.returncode == 0 else []
    return lines[0].strip() if lines else ""


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
    # In a child: against the wrong GROMACS its import can end the process, and with some MPI builds it starts MPI.
    # -P: a folder of that name where the user happens to stand is not the module.
    result = _run([sys.executable, "-P", "-c", "import gmxapi; print(gmxapi.__version__)"], _SLOW_S)
    if result is None:
        return _Finding(False, detail="its import does not end")
    if result.returncode == 0:
        return _Finding(True, "".join(result.stdout.strip().splitlines()[-1:]), "importable")
    if "No module named 'gmxapi'" in result.stderr:
        return _Finding(False, detail="not installed")
    reason = (result.stderr.strip().splitlines() or [f"exit status {result.returncode}"])[-1]
    return _Finding(False, detail=f"installed, but its import fails: {reason[:200]}")


def _gpu() -> _Finding:
    listed = _run(["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"])
    names = listed.stdout.strip().splitlines() if listed is not None and listed.returncode == 0 else []
    import torch

    if torch.cuda.is_available():
        return _Finding(True, str(torch.version.cuda or ""), torch.cuda.get_device_name(0))
    if names:
        return _Finding(False, detail=f"{names[0]} is there, but this torch cannot use it")
    return _Finding(False, detail="none")


# ---------------------------------------------------------------- PLUMED


def _find_kernel() -> _Finding:
    """PLUMED's shared library, looked for where GROMACS looks first (PLUMED_KERNEL), then where it usually is."""
    named = os.environ.get("PLUMED_KERNEL", "")
    if named:
        if Path(named).is_file():
            return _Finding(True, _kernel_version(Path(named)), f"{named} (PLUMED_KERNEL)")
        return _Finding(False, detail=f"PLUMED_KERNEL names {named}, which is not a file")
    for origin, folders in (
        ("plumed on PATH", _plumed_folders()),
        ("Python or conda prefix", [Path(prefix) / "lib" for prefix in _prefixes()]),
        ("library path", [Path(p) for p in os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep) if p]),
        ("ldconfig", _ldconfig_folders()),
    ):
        for file in (folder / name for folder in folders for name in _KERNEL_NAMES):
            if file.is_file():
                advice = f"{file} ({origin}); set PLUMED_KERNEL to it for mdrun -plumed"
                return _Finding(True, _kernel_version(file), advice)
    return _Finding(False, detail="not found")


def _kernel_version(kernel: Path) -> str:
    """Version of the plumed program, when the kernel is that program's own; a kernel alone does not tell."""
    own = {folder.resolve() for folder in _plumed_folders()}
    return _plumed_version() if kernel.resolve().parent in own else ""


def _prefixes() -> list[str]:
    return list(dict.fromkeys(filter(None, (os.environ.get("CONDA_PREFIX"), sys.prefix))))


def _plumed_program() -> list[str] | None:
    """The plumed program, told not to start MPI."""
    path = shutil.which("plumed")
    return [path, "--no-mpi"] if path else None


def _plumed_version() -> str:
    program = _plumed_program()
    return _first_line([*program, "info", "--long-version"]) if program else ""


def _plumed_folders() -> list[Path]:
    """Folders of the kernel that belongs to the plumed program: beside its root when installed, inside when not."""
    program = _plumed_program()
    root = _first_line([*program, "info", "--root"]) if program else ""
    return [Path(root).parent, Path(root) / "src" / "lib"] if root else []


def _ldconfig_folders() -> list[Path]:
    # /sbin is not on every user's PATH.
    program = shutil.which("ldconfig") or shutil.which("ldconfig", path="/sbin:/usr/sbin")
    result = _run([program, "-p"]) if program else None
    lines = result.stdout.splitlines() if result is not None and result.returncode == 0 else []
    return [Path(line.split("=>")[-1].strip()).parent for line in lines if "libplumedKernel" in line and "=>" in line]


def _plumed_modules() -> _Finding:
    program = _plumed_program()
    if program is None:
        return _Finding(False, detail="cannot be asked: no plumed program on PATH")
    result = _run([*program, "config", "module", *PLUMED_MODULES])
    if result is None:
        return _Finding(False, detail=f"{program[0]} config does not answer")
    # One line per module, "opes on"; the exit status is 1 as soon as one of them is off.
    answers = dict(line.split(maxsplit=1) for line in result.stdout.splitlines() if len(line.split()) >= 2)
    states = {name: "on" if answers.get(name) == "on" else "off" for name in PLUMED_MODULES}
    detail = ", ".join(f"{name} {state}" for name, state in states.items())
    return _Finding(all(state == "on" for state in states.values()), _plumed_version(), detail)


# ---------------------------------------------------------------- compiler


def _compiler() -> _Finding:
    wanted = shlex.split(os.environ.get("CXX", ""))
    for command in ([wanted] if wanted else []) + [["c++"], ["g++"], ["clang++"]]:
        path = shutil.which(command[0])
        line = _first_line([path, *command[1:], "--version"]) if path else ""
        if path and line:
            version = _first_line([path, *command[1:], "-dumpfullversion", "-dumpversion"])
            return _Finding(True, version, f"{path}: {line}")
    return _Finding(False, detail="none on PATH")
