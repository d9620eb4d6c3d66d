"""``ccg plumed build``: what it finds, what it says when something is missing, what it builds and how it tests that."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from plumed_tools import TORSION_LINES, chain, driver, refused

from ccg_gmx.cli import main
from ccg_gmx.engine import plumed, plumed_build, plumed_check, plumed_setup
from ccg_gmx.engine.compiler import Compiler, explain
from ccg_gmx.engine.plumed import Kernel
from ccg_gmx.engine.plumed_build import Plugin, Torch, link_options
from ccg_gmx.errors import PluginError, ToolMissingError, ToolVersionError

REGTEST = Path(__file__).resolve().parent.parent / "plumed_plugins" / "regtest" / "run.sh"
AddProgram = Callable[[str, str], Path]

PLUMED = """\
case "$2 $3" in
"info --root") echo {prefix}/lib/plumed ;;
"info --include-dir") echo {prefix}/include ;;
"info --long-version") echo {version} ;;
"info --configuration") echo 'CPPFLAGS=-I/x -D__PLUMED_SOEXT=\\"s\\ o\\" -D__PLUMED_HAS_DLOPEN=1' ;;
esac
"""


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AddProgram:
    """A PLUMED 2.10.1 of empty files in ``prefix``, a cache of its own; the value puts programs on PATH."""
    prefix, programs = tmp_path / "prefix", tmp_path / "prefix" / "bin"
    for folder in (programs, prefix / "lib", prefix / "include/plumed/core"):
        folder.mkdir(parents=True)
    (prefix / "lib/libplumedKernel.so").touch()
    (prefix / "include/plumed/core/ActionAtomistic.h").touch()
    for name in ("PLUMED_KERNEL", "CONDA_PREFIX", "LD_LIBRARY_PATH", "CXX", "CCG_PLUGIN_SOURCE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}/usr/bin{os.pathsep}/bin")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def add(name: str, body: str) -> Path:
        path = programs / name
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)
        return path

    add("plumed", PLUMED.format(prefix=prefix, version="2.10.1"))
    add("ldconfig", "true")
    add("c++", 'case "$*" in *--version*) echo compiler 12;; *-dump*) echo 12;; *) exit 0;; esac')
    return add


def failing_compiler(machine: AddProgram, complaint: str) -> None:
    machine(
        "c++",
        f"case \"$*\" in *--version*) echo compiler 12;; *-dump*) echo 12;; *) echo '{complaint}' >&2; exit 1;; esac",
    )


@pytest.mark.usefixtures("machine")
def test_everything_a_build_needs_is_found(tmp_path: Path) -> None:
    chosen = plumed_build.plan()
    prefix = tmp_path / "prefix"
    assert chosen.kernel.library == prefix / "lib/libplumedKernel.so"
    assert chosen.kernel.version == "2.10.1"
    assert chosen.kernel.include == prefix / "include/plumed"
    assert chosen.kernel.definitions == ("-D__PLUMED_HAS_DLOPEN=1",)
    assert chosen.torch is not None
    assert (chosen.source / "TorchModel.cpp").is_file()
    assert chosen.folder.parent == tmp_path / "cache" / "ccg_gmx" / "plumed"


@pytest.mark.usefixtures("machine")
def test_the_key_follows_everything_that_decides_the_library(tmp_path: Path) -> None:
    chosen = plumed_build.plan()
    source = tmp_path / "source"
    source.mkdir()
    (source / "TorchModel.cpp").write_text("int a;")
    others = [
        replace(chosen, torch=None),
        replace(chosen, torch=Torch("9.9", Path("/nowhere"))),
        replace(chosen, compiler=Compiler(("/usr/bin/c++",), "99", "new")),
        replace(chosen, source=source),
    ]
    keys = {chosen.key, *(other.key for other in others)}
    (source / "TorchModel.cpp").write_text("int b;")
    keys.add(others[-1].key)
    (tmp_path / "prefix/lib/libplumedKernel.so").write_text("another kernel in the same place")
    keys.add(chosen.key)
    assert len(keys) == 7
    assert plumed_build.plan().key == chosen.key


@pytest.mark.usefixtures("machine")
def test_the_kernel_comes_after_the_objects(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In front of them, --as-needed drops it, and gmx stops at an undefined symbol where plumed driver works."""
    chosen, commands = plumed_build.plan(), []
    monkeypatch.setattr(plumed_build, "_step", lambda command, what, plan: commands.append(list(command)))
    plumed_build._link(chosen, [Path("a.o"), Path("b.o")], tmp_path / "out.so")
    command = commands[0]
    assert command.index("-lplumedKernel") > command.index("b.o")
    assert "-Wl,-z,nodelete" in command
    assert "-ltorch_cpu" not in link_options(replace(chosen, torch=None))


def remove_kernel(machine: AddProgram, prefix: Path) -> None:
    (prefix / "lib/libplumedKernel.so").unlink()


def remove_headers(machine: AddProgram, prefix: Path) -> None:
    (prefix / "include/plumed/core/ActionAtomistic.h").unlink()


def make_old(machine: AddProgram, prefix: Path) -> None:
    machine("plumed", PLUMED.format(prefix=prefix, version="2.9.3"))


def remove_compiler(machine: AddProgram, prefix: Path) -> None:
    for name in ("c++", "g++", "clang++"):
        machine(name, "exit 1")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove_kernel, "no PLUMED kernel was found; expected PLUMED >= 2.10; `conda install"),
        (remove_headers, "the headers of PLUMED are not beside"),
        (make_old, "is PLUMED 2.9.3; expected PLUMED >= 2.10"),
        (remove_compiler, "none on PATH; expected a C++17 compiler; `apt-get install g++`"),
    ],
)
def test_a_missing_part_is_one_line_and_exit_code_2(
    machine: AddProgram, tmp_path: Path, damage: Callable[[AddProgram, Path], None], message: str
) -> None:
    damage(machine, tmp_path / "prefix")
    result = CliRunner().invoke(main, ["plumed", "build"])
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.usefixtures("machine")
def test_a_kernel_that_is_named_and_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PLUMED_KERNEL", str(tmp_path / "nowhere.so"))
    with pytest.raises(ToolMissingError, match="which is not a file"):
        plumed.find_kernel()


@pytest.mark.usefixtures("machine")
def test_sources_that_are_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CCG_PLUGIN_SOURCE", str(tmp_path))
    with pytest.raises(ToolMissingError, match="install ccg_gmx again"):
        plumed_build.source_folder()


@pytest.mark.parametrize(
    ("complaint", "reason", "remedy"),
    [
        ("a.cpp:1: fatal error: core/Colvar.h: No such file or directory", "PLUMED headers are incomplete", "-devel"),
        ("fatal error: ATen/ATen.h: No such file or directory", "torch came without its C++ headers", "--no-torch"),
        ("fatal error: vector: No such file or directory", "the header vector is missing", "apt-get install g++"),
        ("c++: error: unrecognized command line option -std=c++17", "does not know -std=c++17", "gcc >= 9"),
        ("#error You need C++20 to compile PyTorch", "the headers want C++20", "newer compiler"),
        ("/usr/bin/ld: cannot find -lplumedKernel", "the library plumedKernel cannot be linked", "PLUMED_KERNEL"),
        ("undefined reference to `PLMD::f(std::__cxx11::basic_string)'", "ABI differs", "torch >= 2.7"),
        ("libstdc++.so.6: version `GLIBCXX_3.4.32' not found", "the plug-in needs GLIBCXX_3.4.32", "name the compiler"),
        ("undefined symbol: _ZN3c105ErrorE", "another libtorch", "share one libtorch"),
        ("undefined symbol: _ZTIN4PLMD6ActionE", "PLUMED's symbol _ZTIN4PLMD6ActionE is missing", "one installation"),
        ("c++: fatal error: Killed signal terminated program cc1plus", "out of memory", "free memory"),
    ],
)
def test_complaints_are_explained_with_their_fix(complaint: str, reason: str, remedy: str) -> None:
    found = explain(complaint)
    assert found is not None
    assert reason in found[0]
    assert remedy in found[1]


def test_an_unknown_complaint_shows_the_compilers_own_line(machine: AddProgram, tmp_path: Path) -> None:
    failing_compiler(machine, "note: x\na.cpp:3:1: error: the moon is full")
    result = CliRunner().invoke(main, ["plumed", "build", "--no-torch", "--no-test"])
    assert result.exit_code == 2
    last = result.stderr.strip().splitlines()[-1]
    assert "compiling" in last
    assert "error: the moon is full (whole output: " in last
    assert "Traceback" not in result.output
    log = next((tmp_path / "cache").rglob("failed.log"))
    assert "note: x" in log.read_text()
    assert not list((tmp_path / "cache").rglob("*.so"))


def test_a_plugin_counts_only_with_its_record(machine: AddProgram, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(
        "c++",
        'case "$*" in *--version*) echo compiler 12; exit;; *-dump*) echo 12; exit;; esac\n'
        'while [ "$1" != -o ]; do shift; done; touch "$2"',
    )
    with pytest.raises(ToolMissingError, match="not built for this PLUMED"):
        plumed_build.find_plugin()

    def wrong(built: Plugin, gmx: object, log: object) -> dict[str, str]:
        raise PluginError("the test", "7 instead of 8")

    monkeypatch.setattr(plumed_setup, "check_plugin", wrong)
    with pytest.raises(PluginError, match="7 instead of 8"):
        plumed_setup.make_plugin(with_torch=False)
    with pytest.raises(ToolMissingError):
        plumed_build.find_plugin()
    monkeypatch.setattr(plumed_setup, "check_plugin", lambda built, gmx, log: {"driver": "ok"})
    built = plumed_setup.make_plugin(with_torch=False)
    assert built.checks == {"driver": "ok"}
    assert plumed_build.find_plugin() == built
    assert built.words == "built without torch: .json only; driver ok"
    machine("c++", 'case "$*" in *--version*) echo compiler 12;; *-dump*) echo 12;; *) exit 1;; esac')
    assert plumed_setup.make_plugin(with_torch=False) == built  # from the cache: nothing is compiled
    with pytest.raises(PluginError):
        plumed_setup.make_plugin(with_torch=False, force=True)


def test_a_kernel_without_program_knows_neither_version_nor_options(tmp_path: Path) -> None:
    library = tmp_path / "lib" / "libplumedKernel.so"
    library.parent.mkdir()
    library.touch()
    kernel = Kernel(library, "here")
    assert (kernel.program, kernel.version, kernel.include, kernel.definitions) == (None, "", None, ())
    kernel.check_version()
    with pytest.raises(ToolMissingError, match="the plumed program that belongs to"):
        _ = kernel.command
    old = Kernel(library, "old")
    old.__dict__["version"] = "2.9"
    with pytest.raises(ToolVersionError, match=r"is PLUMED 2\.9"):
        old.check_version()


# ---------------------------------------------------------------- with a PLUMED


@pytest.mark.plumed
@pytest.mark.slow
def test_the_answer_of_a_built_plugin_is_compared(plugin: Plugin, monkeypatch: pytest.MonkeyPatch) -> None:
    gmx = plumed_check.try_gmx()
    checks = plumed_check.check_plugin(replace(plugin, torch=""), gmx)
    assert checks["driver"] == "ok"
    assert checks["mdrun"].startswith("ok" if gmx else "not tested")
    monkeypatch.setattr(plumed_check, "known_answer", lambda distance: (1.0, 1.0))
    with pytest.raises(PluginError, match=r"known\.json\) failed: .* instead of 1"):
        plumed_check.check_plugin(replace(plugin, torch=""), gmx)


@pytest.mark.plumed
def test_regression_tests_in_plumeds_format(kernel: Kernel, plugin: Plugin) -> None:
    variables = {"CCG_PLUGIN": str(plugin.library), "PLUMED": str(kernel.program), "PLUMED_KERNEL": str(kernel.library)}
    done = subprocess.run([REGTEST], capture_output=True, text=True, env={**os.environ, **variables}, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    names = {line.partition(":")[0] for line in done.stdout.splitlines() if line.endswith("agrees")}
    assert names == {path.name for path in REGTEST.parent.glob("rt-*")}
    assert done.stdout.count("agrees") == 5


@pytest.fixture(scope="module")
def small_plugin(kernel: Kernel, tmp_path_factory: pytest.TempPathFactory) -> Plugin:
    """The plug-in without libtorch, in a cache of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        try:
            return plumed_setup.make_plugin(with_torch=False, test=False)
        except ToolMissingError as error:
            pytest.skip(str(error))


@pytest.mark.plumed
@pytest.mark.slow
def test_without_torch_the_plugin_reads_perceptrons_alone(kernel: Kernel, small_plugin: Plugin, tmp_path: Path) -> None:
    checks = plumed_check.check_plugin(small_plugin, None)
    assert checks["driver"] == "ok"
    needed = subprocess.run(["ldd", str(small_plugin.library)], capture_output=True, text=True, check=False).stdout
    own = [line for line in needed.splitlines() if "libtorch" in line]
    if subprocess.run([*kernel.command, "config", "-q", "has", "libtorch"], check=False).returncode:
        assert own == []
    (tmp_path / "m.pt2").write_bytes(b"anything")
    done = driver(kernel, small_plugin, tmp_path, f"{TORSION_LINES}m: TORCH_MODEL FILE=m.pt2 ARG=phi,psi", chain(1))
    refused(done, r"built without libtorch and reads \.json perceptrons only")
