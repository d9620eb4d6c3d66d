"""Reading a workflow file: YAML into a validated model; every complaint names the file's line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from ccg_gmx.errors import SettingsError
from ccg_gmx.settings import Settings
from ccg_gmx.yaml_file import read_yaml

DEFAULT_KIND = "cycle"

Model = TypeVar("Model", bound=Settings)


def read_workflow(path: Path, overrides: tuple[str, ...], models: Mapping[str, type[Model]]) -> Model:
    """Read and validate a workflow file; paths in it stay as they are.

    Args:
        path: YAML file; its key ``kind`` (``cycle`` where there is none) says what it describes.
        overrides: ``a.b=value`` strings that replace single values (value is parsed as YAML).
        models: kind -> model of the kinds that may be read.

    Raises:
        SettingsError: naming the line of the file, what was found and what was expected.
    """
    document, tree = read_yaml(path, "workflow", "see workflows/ for examples")
    for override in overrides:
        _override(document, override)
    kind = document.get("kind", DEFAULT_KIND)
    if kind not in models:
        raise SettingsError(
            f"{path.name}, line {_line(tree, ('kind',))}: a workflow of kind {kind!r}",
            expected=f"kind: {' or '.join(models)}",
            remedy="see workflows/ for examples",
        )
    try:
        return models[kind].model_validate(document)
    except ValidationError as error:
        remedy = (
            "`ccg schema` prints every key" if kind == DEFAULT_KIND else f"`ccg schema --kind {kind}` prints every key"
        )
        raise SettingsError(_complaint(path, tree, error, overrides), remedy=remedy) from None


def resolve_input(path: Path, base: Path, key: str) -> Path:
    """Return a path of a workflow file as an absolute one.

    Args:
        path: as it stands in the file.
        base: folder of the file.
        key: where it stands, for the message.

    Raises:
        SettingsError: if there is no such file.
    """
    full = (base / path).resolve()
    if not full.is_file():
        raise SettingsError(f"{key}: no file {full}", expected="an existing file, relative to the workflow's folder")
    return full


def _override(document: dict[str, Any], override: str) -> None:
    key, sign, value = override.partition("=")
    if not sign or not key:
        raise SettingsError(f"--set {override}", expected="--set key.subkey=value")
    *parents, last = key.split(".")
    node = document
    for parent in parents:
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            raise SettingsError(
                f"--set {override}: {parent} is not a group of settings", remedy="`ccg schema` prints every key"
            )
    try:
        node[last] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise SettingsError(f"--set {override}: {error}", expected="a YAML value") from None


def _complaint(path: Path, tree: yaml.Node | None, error: ValidationError, overrides: tuple[str, ...]) -> str:
    """Put the first validation error in one line that names the file's line, or the override, and the key."""
    first = error.errors()[0]
    location = tuple(part for part in first["loc"] if part != "[key]")
    where = ".".join(map(str, location)) or "workflow"
    given = next((item for item in reversed(overrides) if f"{where}.".startswith(f"{item.partition('=')[0]}.")), None)
    place = f"--set {given}" if given else f"{path.name}, line {_line(tree, location)}"
    message = "unknown key" if first["type"] == "extra_forbidden" else first["msg"]
    shown = "" if isinstance(first["input"], dict) or first["type"] == "missing" else f" (found {first['input']!r})"
    more = f" and {error.error_count() - 1} more" if error.error_count() > 1 else ""
    return f"{place}: {where}: {message}{shown}{more}"


def _line(node: yaml.Node | None, location: tuple[Any, ...]) -> int:
    """Line (from 1) of the deepest key of ``location`` that stands in the file."""
    line = 1
    for part in location:
        if isinstance(node, yaml.MappingNode):
            match = [(key, value) for key, value in node.value if key.value == str(part)]
            if not match:
                break
            line, node = match[0][0].start_mark.line + 1, match[0][1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
    return line
