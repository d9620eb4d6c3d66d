"""The road has one direction: a module imports only from packages to its left, read from the source and not run."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import ccg_gmx

ROOT = Path(ccg_gmx.__file__).parent
ORDER = (
    ("errors", "units", "records", "settings", "yaml_file"),
    ("molecule",),
    ("flow",),
    ("free_energy",),
    ("cv",),
    ("potential",),
    ("export",),
    ("engine",),
    ("backmap",),
    ("cycle",),
    ("report",),
    ("api",),
    ("bench",),
    ("commands",),
    ("cli",),
)
RANK = {name: rank for rank, names in enumerate(ORDER) for name in names}
PURE = ("molecule", "flow", "free_energy", "cv", "potential")
STARTS_PROCESSES = {"subprocess", "multiprocessing", "concurrent", "asyncio", "pty"}
MODULES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py") if path.name != "__init__.py")


def part_of(module: str) -> str:
    """Return the package a module belongs to: ``flow/train.py`` -> ``flow``, ``cli.py`` -> ``cli``."""
    return module.split("/")[0].removesuffix(".py")


def imported(source: str) -> list[str]:
    """Return the dotted names of everything a source imports, inside functions too."""
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def violations(module: str, source: str) -> list[str]:
    """Return the imports of a module that lead to its right."""
    own = part_of(module)
    parts = [name.split(".")[1] for name in imported(source) if name.startswith("ccg_gmx.")]
    known = [part for part in parts if part in RANK]  # `from ccg_gmx import __version__` names no part
    return [f"{module} imports {part}" for part in known if part != own and RANK[part] > RANK[own]]


@pytest.mark.parametrize("module", MODULES)
def test_module_imports_only_from_its_left(module: str) -> None:
    assert part_of(module) in RANK, f"{module} has no place in the order"
    assert violations(module, (ROOT / module).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("module", [name for name in MODULES if part_of(name) in PURE])
def test_pure_module_starts_no_process(module: str) -> None:
    tops = {name.split(".")[0] for name in imported((ROOT / module).read_text(encoding="utf-8"))}
    assert not tops & STARTS_PROCESSES


@pytest.mark.parametrize("index", range(len(ORDER[0])))
def test_leftmost_modules_import_only_those_before_them(index: int) -> None:
    needs = imported((ROOT / f"{ORDER[0][index]}.py").read_text(encoding="utf-8"))
    assert {name.split(".")[1] for name in needs if name.startswith("ccg_gmx.")} <= set(ORDER[0][:index])


@pytest.mark.parametrize(
    ("source", "caught"),
    [
        ("from ccg_gmx.cycle.store import Store", True),
        ("def f():\n    import ccg_gmx.report.html", True),
        ("from ccg_gmx import engine", True),
        ("from ccg_gmx.molecule.tree import Tree", False),
        ("from ccg_gmx import __version__", False),
    ],
)
def test_the_check_itself_catches_a_step_back(source: str, caught: bool) -> None:
    assert bool(violations("flow/train.py", source)) is caught
