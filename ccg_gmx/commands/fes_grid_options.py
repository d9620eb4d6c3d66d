"""Options of ``ccg fes colvar`` and ``hills`` that are small languages: variables, grids, boxes, umbrellas."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from ccg_gmx.engine.user_colvar import BiasColumn, Range, check_range
from ccg_gmx.errors import SettingsError
from ccg_gmx.free_energy.axes import Axis, Box, is_torsional
from ccg_gmx.free_energy.umbrella import Restraint
from ccg_gmx.molecule.plumed_table import plumed_number
from ccg_gmx.units import DEGREES_PER_RADIAN

MOST_BINS = 100_000


def parse_cv(text: str) -> Range:
    """``phi``, ``phi:100`` or ``d:0.2:1.5:130``: a column, its range in units of the file, its bins.

    Raises:
        SettingsError: another form.
    """
    name, *numbers = text.split(":")
    wrong = SettingsError(f"--cv {text}", expected="NAME, NAME:BINS or NAME:MIN:MAX:BINS, phi:-pi:pi:100 for instance")
    if not name.strip() or len(numbers) not in (0, 1, 3):
        raise wrong
    bins = _bins(numbers[-1], wrong) if numbers else None
    if len(numbers) < 3:
        return Range(name.strip(), bins=bins)
    low, high = (plumed_number(end) for end in numbers[:2])
    if not (math.isfinite(low) and math.isfinite(high)):
        raise wrong
    return Range(name.strip(), low, high, bins)


def _bins(text: str, wrong: SettingsError) -> int:
    if not text.strip().isdigit() or not 2 <= int(text) <= MOST_BINS:
        raise wrong
    return int(text)


def parse_grids(
    texts: Sequence[str], names: Sequence[str], domains: Sequence[tuple[float, float] | None]
) -> tuple[Axis, ...] | None:
    """One ``MIN:MAX:BINS`` (or ``BINS``, for periodic variables) of each variable, in order; None for none at all.

    Open axes have BINS + 1 points, both ends included, as PLUMED has them.

    Raises:
        SettingsError: another number of them, or another form.
    """
    if not texts:
        return None
    if len(texts) != len(names):
        raise SettingsError(
            f"{len(texts)} --grid for {', '.join(names)}", expected=f"{len(names)}, in the order of the file"
        )
    return tuple(_grid_axis(*given) for given in zip(texts, names, domains, strict=True))


def _grid_axis(text: str, name: str, domain: tuple[float, float] | None) -> Axis:
    parts = text.split(":")
    wrong = SettingsError(
        f"--grid {text} for {name}", expected="MIN:MAX:BINS" + ("" if domain is None else ", or BINS alone")
    )
    if len(parts) == 1 and domain is not None:
        return Axis(name, *domain, _bins(parts[0], wrong), True, domain[1] - domain[0])
    if len(parts) != 3:
        raise wrong
    low, high, bins = plumed_number(parts[0]), plumed_number(parts[1]), _bins(parts[2], wrong)
    if not (math.isfinite(low) and math.isfinite(high)):
        raise wrong
    period = None if domain is None else domain[1] - domain[0]
    check_range(name, low, high, period)
    if domain is not None and max(abs(low - domain[0]), abs(high - domain[1])) < 1e-6:
        return Axis(name, *domain, bins, True, period)
    return Axis(name, low, high, bins + 1, False, period)


def parse_boxes(texts: Sequence[str], axes: Sequence[Axis]) -> list[Box]:
    """``open=d:0.8:inf,phi:-180:0``: angles in degrees, other variables in units of the file.

    Raises:
        SettingsError: another form, an unknown variable, or a name twice.
    """
    boxes = [_parse_box(text, axes) for text in texts]
    names = [box.name for box in boxes]
    if len(set(names)) < len(names):
        raise SettingsError(f"basins named {', '.join(names)}", expected="names of their own")
    return boxes


def _parse_box(text: str, axes: Sequence[Axis]) -> Box:
    name, equals, body = text.partition("=")
    parts = [part.split(":") for part in body.split(",")]
    wrong = SettingsError(
        f"--basin {text}", expected="NAME=CV:FROM:TO,... (angles in degrees), C7eq=phi:-180:0 for instance"
    )
    if not (equals and name.strip() and all(len(part) == 3 for part in parts)):
        raise wrong
    ranges: dict[str, tuple[float, float]] = {}
    for cv, low, high in parts:
        axis = next((axis for axis in axes if axis.name == cv.strip()), None)
        if axis is None:
            known = ", ".join(axis.name for axis in axes)
            raise SettingsError(f"basin {name.strip()} names {cv.strip()}", expected=f"variables among {known}")
        ranges[axis.name] = _box_range(axis, plumed_number(low), plumed_number(high), wrong)
    if is_torsional(axes):  # as the other commands complete theirs, so that they know this box again
        ranges = {axis.name: ranges.get(axis.name, (-180.0, 180.0)) for axis in axes}
    return Box(name.strip(), ranges)


def _box_range(axis: Axis, low: float, high: float, wrong: SettingsError) -> tuple[float, float]:
    if math.isnan(low) or math.isnan(high) or low == high:
        raise wrong
    if axis.period is None:
        if high < low:
            raise wrong
        return low, high
    period = axis.period * (DEGREES_PER_RADIAN if axis.angle else 1.0)
    if not abs(high - low) <= period * (1 + 1e-9):
        raise SettingsError(
            f"a basin from {low:g} to {high:g} in {axis.name}", expected=f"at most one turn, {period:g}"
        )
    return low, high


def parse_widths(texts: Sequence[str], axes: Sequence[Axis]) -> tuple[float, ...] | None:
    """``10`` for all variables, or one ``phi=10`` of each: degrees for angles, else units of the file.

    Raises:
        SettingsError: another form, or a width that is too small for the bins or too large for the range.
    """
    if not texts:
        return None
    given: dict[str, float] = {}
    for text in texts:
        name, _, number = text.rpartition("=")
        width = plumed_number(number)
        known = [axis.name for axis in axes]
        if not (math.isfinite(width) and width > 0) or (name and name not in known):
            raise SettingsError(f"--kernel {text}", expected=f"a positive width, or NAME=WIDTH of {', '.join(known)}")
        given.update({one: width for one in ([name] if name else known)})
    widths = []
    for axis in axes:
        width = given.get(axis.name, 0.0) / (DEGREES_PER_RADIAN if axis.angle else 1.0)
        if width and not 0.5 * axis.spacing <= width <= 0.5 * axis.spacing * axis.points:
            raise SettingsError(
                f"a kernel of width {given[axis.name]:g} in {axis.name}",
                expected="at least half a bin and at most half the range",
                remedy="choose other bins in --cv",
            )
        widths.append(width)
    return tuple(widths)


def parse_bias_column(text: str) -> BiasColumn:
    """``metad.bias``, or ``A,B:metad.bias`` with a file for each COLVAR file.

    Raises:
        SettingsError: another form.
    """
    files, _, column = text.rpartition(":")
    if not column or text.startswith(":"):
        raise SettingsError(f"--bias {text}", expected="COLUMN or FILE:COLUMN")
    return BiasColumn(column, tuple(Path(file) for file in files.split(",")) if files else ())


def parse_umbrella(text: str) -> Restraint | str:
    """``phi:-1.2:200,psi:0:200`` (``at`` and ``kappa`` as in PLUMED's input), or the name of a column.

    Raises:
        SettingsError: another form.
    """
    if ":" not in text:
        return text
    centers, kappas = {}, {}
    for part in text.split(","):
        name, *numbers = part.split(":")
        at, kappa = (plumed_number(x) for x in numbers) if len(numbers) == 2 else (math.nan, math.nan)
        if not (name and math.isfinite(at) and math.isfinite(kappa) and kappa >= 0):
            raise SettingsError(
                f"an umbrella {text}", expected="CV:AT:KAPPA[,CV:AT:KAPPA], phi:-1.2:200 for instance, or a column"
            )
        centers[name], kappas[name] = at, kappa
    return Restraint(centers, kappas)


def read_windows(path: Path) -> tuple[tuple[Path, ...], tuple[Restraint | str, ...]]:
    """Lines ``COLVAR CV:AT:KAPPA[,...]`` of a list of windows; paths are relative to the list.

    Raises:
        SettingsError: no such file, or a line of another form.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} cannot be read ({error})", remedy="check --windows") from None
    files, umbrellas = [], []
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        if len(words) != 2:
            raise SettingsError(f"line {number} of {path} is '{line.strip()}'", expected="COLVAR CV:AT:KAPPA")
        files.append(path.parent / words[0])
        umbrellas.append(parse_umbrella(words[1]))
    if len(files) < 2:
        raise SettingsError(f"{path} lists {len(files)} windows", expected="at least two")
    return tuple(files), tuple(umbrellas)
