"""Reading a YAML file that people write: plain values only, every key once, complaints with the line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from ccg_gmx.errors import SettingsError


def read_yaml(path: Path, what: str, remedy: str) -> tuple[dict[str, Any], yaml.Node | None]:
    """Read a file that holds one mapping.

    Args:
        path: the file.
        what: what it should be, for messages: ``workflow`` or ``mapping``.
        remedy: what to do about another file.

    Returns:
        The content, and its tree, which knows the lines.

    Raises:
        SettingsError: the file cannot be read, is no YAML, holds no mapping, or has a key twice.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SettingsError(f"cannot read {what} {path}: {reason}", remedy=remedy) from None
    try:
        document = yaml.safe_load(text)
        tree = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise SettingsError(f"{path} is not valid YAML: {error}", remedy=remedy) from None
    _refuse_duplicates(Path(path), tree)
    if not isinstance(document, dict):
        raise SettingsError(f"{path} holds no {what}", expected="a YAML mapping of keys and values", remedy=remedy)
    return document, tree


def _refuse_duplicates(path: Path, tree: yaml.Node | None) -> None:
    """YAML keeps the last of two equal keys without a word; a user who wrote both meant something by each."""
    pending, seen = [tree], set()
    while pending:
        node = pending.pop()
        if id(node) in seen:  # an alias
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            pending += node.value
        elif isinstance(node, yaml.MappingNode):
            lines: dict[str, int] = {}
            for key, value in node.value:
                line = key.start_mark.line + 1
                pending.append(value)
                if not isinstance(key, yaml.ScalarNode):
                    continue
                if key.value in lines:
                    raise SettingsError(
                        f"{path.name}, line {line}: {key.value} stands on line {lines[key.value]} already",
                        expected="every key once",
                        remedy="remove one of them",
                    )
                lines[key.value] = line
