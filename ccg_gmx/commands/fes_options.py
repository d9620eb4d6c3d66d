"""Options of ``ccg fes`` that are small languages: torsions, basins, bias columns."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ccg_gmx.errors import SettingsError

if TYPE_CHECKING:
    from ccg_gmx.engine.user_frames import BiasColumn
    from ccg_gmx.free_energy.surface import Basin

BASIN = "NAME=TORSION:FROM:TO,..."
BASIN_HELP = "A named box in degrees, C7eq=phi:-180:0,psi:-180:180 for instance; repeat it."


def parse_torsions(texts: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """One to three of ``phi=5,7,9,15`` as names and four atom numbers.

    Raises:
        SettingsError: another form, a name twice, or more than three.
    """
    pairs = [_parse_torsion(text) for text in texts]
    if len(dict(pairs)) < len(pairs) or len(pairs) > 3:
        raise SettingsError(
            f"{len(pairs)} torsions named {', '.join(name for name, _ in pairs)}",
            expected="one to three with names of their own",
        )
    return dict(pairs)


def _parse_torsion(text: str) -> tuple[str, tuple[int, ...]]:
    """``phi=5,7,9,15`` as a name and four atom numbers."""
    match = re.fullmatch(r"([A-Za-z]\w*)=(\d+),(\d+),(\d+),(\d+)", text.replace(" ", ""))
    if match is None:
        raise SettingsError(f"--torsion {text}", expected="a name and four atom numbers, phi=5,7,9,15 for instance")
    return match[1], tuple(int(number) for number in match.groups()[1:])


def parse_basin(text: str, names: tuple[str, ...]) -> Basin:
    """``C7eq=phi:-180:0,psi:-180:180`` as a box; torsions of ``names`` that it leaves out are free."""
    from pydantic import ValidationError

    from ccg_gmx.free_energy.surface import Basin

    name, equals, body = text.partition("=")
    parts = [part.split(":") for part in body.split(",")]
    try:
        if not (equals and name.strip() and all(len(part) == 3 for part in parts)):
            raise ValueError
        given = {axis.strip(): (float(low), float(high)) for axis, low, high in parts}
    except ValueError:
        raise SettingsError(f"--basin {text}", expected=f"{BASIN} in degrees, C7eq=phi:-180:0 for instance") from None
    if unknown := [axis for axis in given if axis not in names]:
        raise SettingsError(f"basin {name.strip()} names {unknown[0]}", expected=f"torsions among {', '.join(names)}")
    try:
        return Basin(name=name.strip(), ranges={axis: given.get(axis, (-180.0, 180.0)) for axis in names})
    except ValidationError as error:
        raise SettingsError(f"--basin {text}: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None


def parse_bias(text: str) -> BiasColumn:
    """``COLVAR:opes.bias``, or ``A,B:opes.bias`` with a file for each trajectory."""
    from ccg_gmx.engine.user_frames import BiasColumn

    files, colon, column = text.rpartition(":")
    if not (colon and files and column):
        raise SettingsError(f"--bias {text}", expected="FILE:COLUMN, COLVAR:opes.bias for instance")
    return BiasColumn(tuple(Path(file) for file in files.split(",")), column)
