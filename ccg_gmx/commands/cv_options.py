"""Options of ``ccg cv`` that are small languages: variables of trajectories, states, files of biases."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ccg_gmx.errors import SettingsError

if TYPE_CHECKING:
    from ccg_gmx.engine.user_frames import BiasColumn


def parse_atoms(texts: Sequence[str], count: int, option: str) -> dict[str, tuple[int, ...]]:
    """``phi=5,7,9,15`` as a name and so many atom numbers, from each text.

    Raises:
        SettingsError: another form, or a name twice.
    """
    out: dict[str, tuple[int, ...]] = {}
    for text in texts:
        match = re.fullmatch(rf"([A-Za-z]\w*)=(\d+(?:,\d+){{{count - 1}}})", text.replace(" ", ""))
        if match is None or match[1] in out:
            raise SettingsError(f"{option} {text}", expected=f"a name of its own and {count} atom numbers")
        out[match[1]] = tuple(int(number) for number in match[2].split(","))
    return out


def parse_columns(texts: Sequence[str]) -> tuple[str, ...]:
    """``phi,psi`` and ``chi`` as three names."""
    return tuple(name.strip() for text in texts for name in text.split(",") if name.strip())


def parse_groups(files: Sequence[Path], states: Sequence[str]) -> dict[str, tuple[Path, ...]]:
    """Files without states, or ``A=FILE,FILE`` for each state.

    Raises:
        SettingsError: another form, a state twice, or both.
    """
    if not states:
        return {"": tuple(files)}
    if files:
        raise SettingsError(f"{files[0]} belongs to no state", expected="all files in --state NAME=FILE,FILE")
    out: dict[str, tuple[Path, ...]] = {}
    for text in states:
        name, equals, names = text.partition("=")
        paths = tuple(Path(file) for file in names.split(",") if file)
        if not (equals and name.strip() and paths) or name.strip() in out:
            raise SettingsError(f"--state {text}", expected="a name of its own and files, folded=A.colvar,B.colvar")
        out[name.strip()] = paths
    return out


def parse_bias(text: str) -> BiasColumn:
    """``opes.bias``, or ``COLVAR,COLVAR2:opes.bias`` with files for the trajectories."""
    from ccg_gmx.engine.user_frames import BiasColumn

    files, _, column = text.rpartition(":")
    if not column:
        raise SettingsError(f"--bias {text}", expected="COLUMN, or FILE:COLUMN for trajectories")
    return BiasColumn(tuple(Path(file) for file in files.split(",") if file), column)


def parse_widths(text: str) -> tuple[int, ...]:
    """``32,32`` as widths of hidden layers.

    Raises:
        SettingsError: another form.
    """
    if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", text.replace(" ", "")):
        raise SettingsError(f"--hidden {text}", expected="widths of the hidden layers, 32,32 for instance")
    return tuple(int(width) for width in text.split(","))
