"""``inspect_toolchain`` on machines that are stood in for by a PATH of small scripts."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ccg_gmx.engine import probe, toolchain
from ccg_gmx.engine.toolchain import Part, Toolchain, format_toolchain, inspect_toolchain

PLUMED = """\
test "$1" = --no-mpi || exit 9
case "$2 $3" in
"info --root") echo {root} ;;
"info --long-version") echo 2.10.1 ;;
"config module") echo "opes on"; echo "pytorch {pytorch}"; echo "annfunc on"; test "{pytorch}" = on ;;
esac
"""

AddProgram = Callable[[str, str], Path]


@pytest.fixture
def add(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AddProgram:
    """An empty machine; the fixture's value puts a program on its PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "prefix"))
    for name in ("GMXBIN", "PLUMED_KERNEL", "CONDA_PREFIX", "LD_LIBRARY_PATH", "CXX"):
        monkeypatch.delenv(name, raising=False)

    def add_program(name: str, body: str) -> Path:
        path = folder / name
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)
        return path

    add_program("ldconfig", "true")  # hides the real one, which may know a PLUMED
    return add_program


def add_gmx(add: AddProgram, version: str) -> Path:
    return add(
        "gmx", f"echo 'GROMACS version:     {version}'\necho 'Precision:           mixed'\necho 'GPU support: CUDA'"
    )


def kernel_in(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    kernel = folder / "libplumedKernel.so"
    kernel.touch()
    return kernel


@pytest.mark.usefixtures("add")
def test_an_empty_machine_is_a_table_not_an_error() -> None:
    found = inspect_toolchain()
    assert not found.ready
    missing = {part.name for part in found.parts if not part.found}
    assert missing >= {"GROMACS", "PLUMED kernel", "PLUMED modules", "PLUMED plug-in", "C++ compiler"}
    assert found.part("torch").found
    assert found.part("MDAnalysis").found
    for part in found.parts:
        assert part.detail
        assert part.cost_when_missing
        assert part.how_to_get


def test_gmx_is_found_with_what_it_can_do(add: AddProgram) -> None:
    path = add_gmx(add, "2026.1")
    found = inspect_toolchain()
    gmx = found.part("GROMACS")
    assert found.ready
    assert (gmx.found, gmx.version) == (True, "2026.1")
    assert str(path) in gmx.detail
    assert "CUDA" in gmx.detail


@pytest.mark.parametrize("version", ["2022.5-Debian_2022.5_2", "none"])
def test_gmx_that_cannot_do_the_job_is_missing(add: AddProgram, version: str) -> None:
    add_gmx(add, version)
    found = inspect_toolchain()
    assert not found.ready
    assert not found.part("GROMACS").found
    assert "gmx" in found.part("GROMACS").detail


def test_plumed_kernel_from_the_environment(add: AddProgram, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = kernel_in(tmp_path / "own")
    monkeypatch.setenv("PLUMED_KERNEL", str(kernel))
    assert toolchain._find_kernel().detail == f"{kernel} (PLUMED_KERNEL)"
    assert toolchain._find_kernel().version == ""
    # The version of another installation's program must not be taken for the kernel's.
    add("plumed", PLUMED.format(root=tmp_path / "other/lib/plumed", pytorch="on"))
    assert toolchain._find_kernel().version == ""


def test_a_wrong_plumed_kernel_variable_is_told(
    add: AddProgram, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # mdrun would fail on it even when there is another kernel.
    kernel_in(tmp_path / "prefix/lib")
    monkeypatch.setenv("PLUMED_KERNEL", str(tmp_path / "nowhere.so"))
    finding = toolchain._find_kernel()
    assert not finding.found
    assert "nowhere.so, which is not a file" in finding.detail


@pytest.mark.parametrize("place", ["lib", "lib/plumed/src/lib"], ids=["installed", "build tree"])
def test_plumed_kernel_of_the_program_on_path(add: AddProgram, tmp_path: Path, place: str) -> None:
    kernel = kernel_in(tmp_path / place)
    add("plumed", PLUMED.format(root=tmp_path / "lib/plumed", pytorch="on"))
    finding = toolchain._find_kernel()
    assert (finding.found, finding.version) == (True, "2.10.1")
    assert str(kernel) in finding.detail
    assert "set PLUMED_KERNEL" in finding.detail


@pytest.mark.parametrize("origin", ["conda", "prefix", "library path", "ldconfig"])
def test_plumed_kernel_in_the_usual_places(
    add: AddProgram, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, origin: str
) -> None:
    folder = tmp_path / ("prefix/lib" if origin == "prefix" else "somewhere/lib")
    kernel = kernel_in(folder)
    if origin == "conda":
        monkeypatch.setenv("CONDA_PREFIX", str(folder.parent))
    elif origin == "library path":
        monkeypatch.setenv("LD_LIBRARY_PATH", f":{folder}")
    elif origin == "ldconfig":
        add("ldconfig", f"echo '1 libs found'; echo '	libplumedKernel.so (libc6,x86-64) => {kernel}'")
    finding = toolchain._find_kernel()
    assert finding.found
    assert str(kernel) in finding.detail


@pytest.mark.parametrize(("pytorch", "found"), [("on", True), ("off", False), ("not found", False)])
def test_plumed_modules(add: AddProgram, tmp_path: Path, pytorch: str, found: bool) -> None:
    add("plumed", PLUMED.format(root=tmp_path, pytorch=pytorch))
    finding = toolchain._plumed_modules()
    assert finding.found is found
    assert finding.detail == f"opes on, pytorch {'on' if found else 'off'}, annfunc on"


@pytest.mark.parametrize(
    "body", ["exit 1", "echo nonsense; kill -9 $$", "exec sleep 60"], ids=["fails", "dies", "hangs"]
)
def test_programs_that_misbehave_are_missing(add: AddProgram, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    monkeypatch.setattr(probe, "QUICK_S", 0.5)
    monkeypatch.setenv("PATH", f"{add('plumed', body).parent}:/bin")
    for look in (toolchain._find_kernel, toolchain._plumed_modules):
        assert not look().found


@pytest.mark.parametrize(
    ("body", "found", "text"),
    [
        ('echo banner; echo \'["0.4.2", "", "tmpi"]\'', True, "importable; built for a GROMACS that it does not name"),
        ("echo \"ModuleNotFoundError: No module named 'gmxapi'\" >&2; exit 1", False, "not installed"),
        ("echo 'ImportError: libgmxapi.so.0: cannot open' >&2; exit 1", False, "libgmxapi.so.0"),
        ("kill -11 $$", False, "exit status -11"),
        ("exit 0", False, "its import answers nothing"),
    ],
    ids=["works", "absent", "broken", "crashes", "silent"],
)
def test_gmxapi_is_tried_in_a_child(
    add: AddProgram, monkeypatch: pytest.MonkeyPatch, body: str, found: bool, text: str
) -> None:
    monkeypatch.setattr(sys, "executable", str(add("python", body)))
    finding = toolchain._gmxapi()
    assert finding.found is found
    assert text in finding.detail


def test_the_compiler_that_the_user_names_goes_first(add: AddProgram, monkeypatch: pytest.MonkeyPatch) -> None:
    body = 'case "$*" in *-dumpversion*) echo {0};; *) echo "compiler {0}"; echo more;; esac'
    add("c++", body.format("12.2.0"))
    assert toolchain._compiler().version == "12.2.0"
    cache = add("cache", 'test "$1" = mine && shift && exec mine "$@"')
    add("mine", body.format("15.1.0"))
    monkeypatch.setenv("CXX", "cache mine")
    assert toolchain._compiler().version == "15.1.0"
    assert toolchain._compiler().detail == f"{cache}: compiler 15.1.0"


def test_a_part_that_raises_is_broken_not_fatal(monkeypatch: pytest.MonkeyPatch) -> None:
    def explode() -> toolchain._Finding:
        raise OSError("libcudart.so.13:\n cannot open")

    monkeypatch.setattr(toolchain, "_torch", explode)
    part = toolchain._part("torch", toolchain._torch)
    assert not part.found
    assert part.detail == "broken: OSError: libcudart.so.13: cannot open"


def test_the_answer_goes_through_json(add: AddProgram) -> None:
    add_gmx(add, "2025.2")
    found = inspect_toolchain()
    answer = json.loads(json.dumps(found.to_dict()))
    assert answer["ready"] is True
    assert [part["name"] for part in answer["parts"]] == [part.name for part in found.parts]
    assert answer["parts"][0]["version"] == "2025.2"
    with pytest.raises(KeyError):
        found.part("abacus")


def test_the_table_tells_cost_and_remedy_of_missing_parts_only() -> None:
    there = Part("GROMACS", True, "2025.2", "somewhere", "COST-A", "GET-A")
    absent = Part("torch", False, "", "not installed", "COST-B", "GET-B")
    text = format_toolchain(Toolchain("0.1.0", "3.13.5", 2, (there, absent)))
    assert text.splitlines()[0] == "ccg_gmx 0.1.0, Python 3.13.5, 2 cores"
    assert "COST-A" not in text
    assert "without it: COST-B" in text
    assert "get it: GET-B" in text
    assert text.endswith("not ready: the cycle needs GROMACS and torch")
