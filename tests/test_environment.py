"""environment.yml, for conda-forge, beside the requirements in pyproject.toml."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
CONDA = {"torch": "pytorch", "pymbar": "pymbar-core"}
"""Names that differ; pymbar-core is pymbar without JAX."""


def requirement(text: str) -> tuple[str, str]:
    """``torch>=2.11,<3`` as its name in conda-forge and the rest."""
    match = re.fullmatch(r"([\w-]+)(.*)", text.replace(" ", ""))
    assert match is not None, text
    return CONDA.get(match[1], match[1]).lower(), match[2]


def test_conda_gets_what_pip_gets() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    conda = dict(map(requirement, listed))
    assert len(conda) == len(listed)
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["analysis"], *extras["openmm"]]
    wanted += [one for one in extras["test"] if "[" not in one]
    for name, bounds in map(requirement, wanted):
        assert conda.get(name) == bounds, name
    assert conda["python"] == project["requires-python"]
    assert conda["plumed"] == dict(map(requirement, extras["plumed"]))["plumed"]
    assert {"gromacs", "pip", "setuptools"} <= set(conda)
