"""Builds the PLUMED plug-in (action TORCH_MODEL) into the user's cache, once for each PLUMED, torch and compiler.

The sources are in ``ccg_gmx/plugin_source``: in a wheel a folder, in a checkout a link to ``plumed_plugins/src``.
CCG_PLUGIN_SOURCE names another folder.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NoReturn

from ccg_gmx.engine.compiler import GET_COMPILER, Compiler, explain, find_compiler
from ccg_gmx.engine.plumed import GET_PLUMED, Kernel, find_kernel
from ccg_gmx.engine.process import Finished, capture
from ccg_gmx.engine.run_files import storing, writable_folder, write_text
from ccg_gmx.engine.settings import available_cores
from ccg_gmx.errors import PluginError, ToolMissingError

LIBRARY = "libccg_torch_model.so"
_RECORD = "build.json"
_TORCH_SOURCES = ("AotiBackend.cpp", "ScriptBackend.cpp")
# The last two keep loops over weights from being scalar, and change no result, NaN included.
_FLAGS = ("-std=c++17", "-O3", "-fPIC", "-DNDEBUG", "-fno-math-errno", "-fno-trapping-math")


@dataclass(frozen=True)
class Torch:
    """The libtorch of this Python.

    Attributes:
        version: its version.
        folder: the package's folder, with ``include`` and ``lib``.
    """

    version: str
    folder: Path


@dataclass(frozen=True)
class Plan:
    """What to build from what.

    Attributes:
        source: folder of the C++ files.
        kernel: PLUMED to build for.
        compiler: C++ compiler.
        torch: libtorch to link; None for the built-in evaluator alone.
    """

    source: Path
    kernel: Kernel
    compiler: Compiler
    torch: Torch | None

    @property
    def key(self) -> str:
        """Hash of all that decides what the library is; names its folder in the cache."""
        stat = self.kernel.library.resolve().stat()
        parts = [str(self.kernel.library.resolve()), self.kernel.version, stat.st_size, stat.st_mtime_ns]
        parts += [*self.compiler.command, self.compiler.version, *self.kernel.definitions, *self.kernel.openmp, *_FLAGS]
        parts += [self.torch.version, str(self.torch.folder)] if self.torch else ["no torch"]
        digest = hashlib.sha256(repr(parts).encode())
        for file in sorted(self.source.glob("*")):
            digest.update(file.name.encode() + file.read_bytes())
        return digest.hexdigest()[:16]

    @property
    def folder(self) -> Path:
        """Its folder in the cache."""
        return cache_folder() / self.key


@dataclass(frozen=True)
class Plugin:
    """A plug-in that was built.

    Attributes:
        library: the shared library, for ``LOAD FILE=``.
        kernel: kernel it was built for, for PLUMED_KERNEL.
        plumed: version of PLUMED.
        torch: version of torch; empty when built without.
        compiler: the compiler's banner.
        checks: what was tested, name -> result in words.
    """

    library: Path
    kernel: Path
    plumed: str
    torch: str
    compiler: str
    checks: dict[str, str]

    @property
    def words(self) -> str:
        """What it can do and what was tested, in a line."""
        reads = f"torch {self.torch}: .json, .pt2, TorchScript" if self.torch else "built without torch: .json only"
        tested = ", ".join(f"{name} {result}" for name, result in self.checks.items())
        return f"{reads}; {tested or 'not tested'}"

    def to_dict(self) -> dict[str, object]:
        """Return it as plain types for JSON."""
        return {**asdict(self), "library": str(self.library), "kernel": str(self.kernel)}


def cache_folder() -> Path:
    """Return the folder of all builds, below XDG_CACHE_HOME or ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "ccg_gmx" / "plumed"


def source_folder() -> Path:
    """Return the folder of the C++ sources.

    Raises:
        ToolMissingError: if they are not there.
    """
    given = os.environ.get("CCG_PLUGIN_SOURCE")
    folder = Path(given) if given else Path(__file__).resolve().parents[1] / "plugin_source"
    if not (folder / "TorchModel.cpp").is_file():
        raise ToolMissingError(
            f"the sources of the plug-in are not in {folder}",
            remedy="install ccg_gmx again, or set CCG_PLUGIN_SOURCE to plumed_plugins/src of a checkout",
        )
    return folder


def find_torch() -> Torch:
    """Return the libtorch of this Python.

    Raises:
        ToolMissingError: if its wheel has no headers or no libtorch_cpu.
    """
    import torch

    folder = Path(torch.__file__).parent
    if not (folder / "include" / "ATen").is_dir() or not (folder / "lib" / "libtorch_cpu.so").is_file():
        raise ToolMissingError(
            f"torch {torch.__version__} in {folder} has no C++ headers or no libtorch_cpu.so",
            remedy="`pip install torch==2.13.0`, or build without: `ccg plumed build --no-torch`",
        )
    return Torch(str(torch.__version__), folder)


def plan(*, with_torch: bool = True) -> Plan:
    """Find everything a build needs.

    Args:
        with_torch: link libtorch, for .pt2 and TorchScript models.

    Raises:
        ToolMissingError: if a part is missing.
        ToolVersionError: if PLUMED is too old.
    """
    kernel = find_kernel()
    kernel.check_version()
    if kernel.include is None:
        raise ToolMissingError(
            f"the headers of PLUMED are not beside {kernel.library}", remedy=f"install it whole: {GET_PLUMED}"
        )
    return Plan(source_folder(), kernel, find_compiler(), find_torch() if with_torch else None)


def find_plugin() -> Plugin:
    """Return the plug-in that fits this PLUMED and torch, with torch or without.

    Raises:
        ToolMissingError: if it is not built.
    """
    for with_torch in (True, False):
        found = read_record(plan(with_torch=with_torch).folder)
        if found is not None:
            return found
    raise ToolMissingError("not built for this PLUMED, torch and compiler", remedy="run `ccg plumed build`")


def read_record(folder: Path) -> Plugin | None:
    """Return the plug-in in a folder of the cache, None when there is none that is whole.

    Args:
        folder: the folder.
    """
    try:
        content = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
        built = Plugin(**{**content, "library": Path(content["library"]), "kernel": Path(content["kernel"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return built if built.library.is_file() else None


def write_record(built: Plugin) -> None:
    """Write the record beside the library.

    Args:
        built: the plug-in.
    """
    write_text(built.library.with_name(_RECORD), json.dumps(built.to_dict(), indent=1) + "\n")


def forget(built: Plugin) -> None:
    """Remove the record, so that the build does not count.

    Args:
        built: the plug-in.
    """
    built.library.with_name(_RECORD).unlink(missing_ok=True)


def build(chosen: Plan, log: Callable[[str], None] = lambda line: None) -> Plugin:
    """Compile and link; the library appears in the cache whole or not at all.

    Args:
        chosen: what to build.
        log: called with a line about each step.

    Returns:
        The plug-in, not tested yet.

    Raises:
        PluginError: with the compiler's complaint and its fix.
        StoreError: if the cache cannot be written.
    """
    folder = writable_folder(chosen.folder)
    sources = [file for file in sorted(chosen.source.glob("*.cpp")) if chosen.torch or file.name not in _TORCH_SOURCES]
    with storing(folder), TemporaryDirectory(dir=folder) as temporary:
        objects = Path(temporary)
        log(f"compiling {len(sources)} files with {chosen.compiler.banner}")
        with ThreadPoolExecutor(min(available_cores(), len(sources))) as pool:
            for _ in pool.map(lambda file: _compile(chosen, file, objects), sources):
                pass
        log(f"linking with {chosen.kernel.library}")
        _link(chosen, sorted(objects.glob("*.o")), objects / LIBRARY)
        os.replace(objects / LIBRARY, folder / LIBRARY)
    torch = chosen.torch.version if chosen.torch else ""
    version, banner = chosen.kernel.version, chosen.compiler.banner
    return Plugin(folder / LIBRARY, chosen.kernel.library, version, torch, banner, {})


def _compile(chosen: Plan, file: Path, objects: Path) -> None:
    kernel = chosen.kernel
    command = [*chosen.compiler.command, *_FLAGS, *kernel.openmp, *kernel.definitions, "-isystem", str(kernel.include)]
    if chosen.torch:
        include = chosen.torch.folder / "include"
        command += ["-DCCG_HAS_TORCH", "-isystem", str(include), "-isystem", str(include / "torch/csrc/api/include")]
    _step([*command, "-c", str(file), "-o", str(objects / f"{file.stem}.o")], f"compiling {file.name}", chosen)


def _link(chosen: Plan, objects: Sequence[Path], out: Path) -> None:
    # GROMACS loads the kernel with RTLD_LOCAL, so the plug-in must name it itself, or mdrun stops at an undefined
    # symbol where `plumed driver` works. After the objects: before them, --as-needed drops it.
    _step(
        [*chosen.compiler.command, "-shared", "-o", str(out), *map(str, objects), *link_options(chosen)],
        "linking",
        chosen,
    )


def link_options(chosen: Plan) -> list[str]:
    """Return what follows the objects on the link line.

    Args:
        chosen: what is built.
    """
    folder = chosen.kernel.library.parent
    options = [*chosen.kernel.openmp, f"-L{folder}", "-lplumedKernel", f"-Wl,-rpath,{folder}"]
    if chosen.torch:
        libraries = chosen.torch.folder / "lib"
        options += [f"-L{libraries}", "-ltorch_cpu", "-lc10", f"-Wl,-rpath,{libraries}"]
    # Never unloaded: PLUMED closes its plug-ins at the end of a run, and libtorch does not survive being closed while
    # its thread-local objects wait for the end of the process ("free(): invalid pointer").
    return [*options, "-Wl,-z,nodelete", "-Wl,--no-undefined"]


def _step(command: Sequence[str], what: str, chosen: Plan) -> None:
    done = capture(command, env={**os.environ, "LC_ALL": "C"})
    if done.returncode:
        fail(what, done, chosen.folder)


def fail(what: str, done: Finished, folder: Path) -> NoReturn:
    """Raise the error of a step of the build or of its test.

    Args:
        what: the step.
        done: its outcome.
        folder: where to keep the whole output.

    Raises:
        PluginError: always.
    """
    output = done.stderr + done.stdout
    log = folder / "failed.log"
    write_text(log, output)
    known = explain(output)
    lines = [line.strip() for line in output.splitlines() if "error" in line.lower()] or output.strip().splitlines()
    fallback = (lines[0][:300] if lines else f"exit status {done.returncode}", f"see the log; {GET_COMPILER}")
    reason, remedy = known or fallback
    raise PluginError(what, reason, log=log, remedy=remedy)
