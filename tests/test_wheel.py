"""What a wheel holds: the sources of the PLUMED plug-in; and what to say where it lacks the files of a checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

import ccg_gmx

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "plumed_plugins" / "src"


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_the_package_reaches_every_source_of_the_plugin() -> None:
    """Through a link in a checkout, whose files the wheel then holds: those of the patterns in pyproject.toml."""
    inside = Path(ccg_gmx.__file__).parent / "plugin_source"
    assert names(inside) == names(SOURCES)
    assert "TorchModel.cpp" in names(inside)
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    patterns = setup["package-data"]["ccg_gmx.plugin_source"]
    assert all(any(fnmatch(name, pattern) for pattern in patterns) for name in names(SOURCES))


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package from a wheel, in a folder of its own."""
    pytest.importorskip("setuptools", minversion="77", reason="no setuptools to build a wheel with")
    folder = tmp_path_factory.mktemp("wheel")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "ccg_gmx", "plumed_plugins", "pyproject.toml", "README.md", "LICENSE"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in filter(None, listed.stdout.split("\0")):
        target = folder / "source" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_symlink():
            target.symlink_to(os.readlink(ROOT / name))
        elif (ROOT / name).is_file():
            target.write_bytes((ROOT / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    options = ["--no-deps", "--no-index"]
    pip_wheel = [*pip, "wheel", *options, "--no-build-isolation", "-w", str(folder), str(folder / "source")]
    done = subprocess.run(pip_wheel, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    pip_install = [*pip, "install", *options, "--target", str(folder / "site"), str(wheel)]
    subprocess.run(pip_install, capture_output=True, check=True)
    return folder / "site"


def python(installed: Path, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    environment.pop("CCG_PLUGIN_SOURCE", None)
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_a_wheel_brings_the_sources(installed: Path, tmp_path: Path) -> None:
    code = "from ccg_gmx.engine.plumed_build import source_folder; print(source_folder())"
    done = python(installed, "-c", code, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.strip())
    assert folder == installed / "ccg_gmx" / "plugin_source"
    assert not folder.is_symlink()
    assert {path.name for path in folder.glob("Torch*.cpp")} == {path.name for path in SOURCES.glob("Torch*.cpp")}
    assert names(folder) <= names(SOURCES) | {"__pycache__"}


@pytest.mark.slow
@pytest.mark.parametrize("command", ["free-energy", "plugin"])
def test_benchmarks_that_need_a_checkout_say_so(installed: Path, tmp_path: Path, command: str) -> None:
    done = python(installed, "-m", "ccg_gmx.cli", "bench", command, folder=tmp_path)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert "checkout of ccg_gmx" in done.stderr
