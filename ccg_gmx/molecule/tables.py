"""Tabulated bonds, angles and dihedrals: the tables that mdrun reads with ``-tableb``.

A file has three columns: distance (nm) or angle (degrees), energy, and minus its derivative (per nm or per degree); the
energy of an interaction is k times the table's. Between rows it is the cubic that takes values and derivatives of both.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ccg_gmx.errors import TopologyError
from ccg_gmx.molecule.interactions import Kernel, angle, by_angle, norm, torsion
from ccg_gmx.records import FloatArray, IntArray

_NAME = re.compile(r"_([bad])(\d+)\.xvg$")


@dataclass(frozen=True, eq=False)
class BondedTable:
    """One table.

    Attributes:
        start: first abscissa, nm or radians.
        step: spacing.
        values: ``[n]`` kJ/mol.
        slopes: ``[n]`` derivative times the step, kJ/mol.
    """

    start: float
    step: float
    values: FloatArray
    slopes: FloatArray


def read_bonded_tables(paths: Sequence[Path]) -> dict[str, BondedTable]:
    """Read tables named ``*_b0.xvg`` (bonds), ``*_a0.xvg`` (angles), ``*_d0.xvg`` (dihedrals), any number.

    Returns:
        ``b0``, ``a1``, ... -> table.

    Raises:
        TopologyError: file missing, wrongly named or not three columns on an even grid that covers what it must.
    """
    return {"".join(_identity(path)): _read_table(path) for path in map(Path, paths)}


def _identity(path: Path) -> tuple[str, str]:
    match = _NAME.search(path.name)
    if match is None:
        raise TopologyError(f"the name of table {path.name} has no kind and number", expected="one like table_b0.xvg")
    return match[1], str(int(match[2]))


def _read_table(path: Path) -> BondedTable:
    kind, _ = _identity(path)
    try:
        rows = np.loadtxt(path, comments=["#", "@"], ndmin=2)
    except (OSError, ValueError) as error:
        raise TopologyError(f"table {path} cannot be read: {error}", expected="three columns of numbers") from None
    if rows.shape[0] < 2 or rows.shape[1] != 3 or not np.isfinite(rows).all():
        raise TopologyError(f"table {path} has the shape {rows.shape}", expected="at least two rows of three numbers")
    x = rows[:, 0]
    step = (x[-1] - x[0]) / (len(x) - 1)
    start, end = {"b": (0.0, None), "a": (0.0, 180.0), "d": (-180.0, 180.0)}[kind]
    if np.abs(np.diff(x) - step).max() > 1e-3 * step or x[0] != start or (end is not None and x[-1] < end):
        raise TopologyError(
            f"table {path} runs from {x[0]:g} to {x[-1]:g}",
            expected=f"even steps from {start:g}" + (f" to {end:g} or beyond" if end else ""),
        )
    scale = 1.0 if kind == "b" else np.pi / 180
    return BondedTable(start * scale, step * scale, rows[:, 1], -rows[:, 2] * step)


class _Tabulated(nn.Module):
    """Cubic interpolation; the terms of one kind may use several tables, padded to the longest."""

    letter = ""
    values: Tensor
    slopes: Tensor
    start: Tensor
    step: Tensor
    table: Tensor

    def __init__(self, tables: dict[str, BondedTable], kinds: IntArray) -> None:
        super().__init__()
        numbers = sorted(set(kinds.tolist()))
        missing = [f"{self.letter}{number}" for number in numbers if f"{self.letter}{number}" not in tables]
        if missing:
            raise TopologyError(
                f"the topology uses the tables {', '.join(missing)}, which are not given",
                expected=f"files like table_{missing[0]}.xvg",
                remedy="give the files that mdrun gets with -tableb",
            )
        used = [tables[f"{self.letter}{number}"] for number in numbers]
        length = max(len(table.values) for table in used)
        pad = [(0, length - len(table.values)) for table in used]
        # nan past a table's end, where mdrun stops
        for name in ("values", "slopes"):
            padded = [np.pad(getattr(t, name), p, constant_values=np.nan) for t, p in zip(used, pad, strict=True)]
            self.register_buffer(name, torch.from_numpy(np.stack(padded)))
        place = torch.from_numpy(np.searchsorted(numbers, kinds))[:, None]
        self.register_buffer("table", place)
        for name in ("start", "step"):
            self.register_buffer(name, torch.tensor([getattr(t, name) for t in used], dtype=torch.float64)[place])

    def interpolate(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return value and derivative at ``x [n, B]``; nan beyond the table."""
        place = (x - self.start) / self.step
        last = self.values.shape[1] - 2
        row = place.nan_to_num().floor().long().clamp(0, last)
        t = place - row
        t = torch.where((place < 0) | (place > last + 1), torch.full_like(t, torch.nan), t)
        y0, y1 = self.values[self.table, row], self.values[self.table, row + 1]
        m0, m1 = self.slopes[self.table, row], self.slopes[self.table, row + 1]
        square, cubic = 3 * (y1 - y0) - 2 * m0 - m1, 2 * (y0 - y1) + m0 + m1
        value = y0 + t * (m0 + t * (square + t * cubic))
        return value, (m0 + t * (2 * square + 3 * t * cubic)) / self.step


class TabulatedBonds(_Tabulated):
    """k V(r)."""

    letter = "b"

    def forward(self, delta: Tensor, k: Tensor, derivatives: bool) -> Kernel:
        """Return energies and derivatives by ``delta``."""
        length = norm(delta)
        value, slope = self.interpolate(length)
        return k * value, (k * slope / length * delta,) if derivatives else ()


class TabulatedAngles(_Tabulated):
    """k V(theta)."""

    letter = "a"

    def forward(self, first: Tensor, second: Tensor, k: Tensor, derivatives: bool) -> Kernel:
        """Return energies and derivatives by both vectors."""
        product, sine, theta = angle(first, second)
        value, slope = self.interpolate(theta)
        return k * value, by_angle(first, second, product, sine, k * slope) if derivatives else ()


class TabulatedDihedrals(_Tabulated):
    """k V(phi)."""

    letter = "d"

    def forward(self, ij: Tensor, kj: Tensor, kl: Tensor, k: Tensor, derivatives: bool) -> Kernel:
        """Return energies and derivatives by the three vectors."""
        cosine, sine, spread = torsion(ij, kj, kl)
        value, slope = self.interpolate(torch.atan2(sine, cosine))
        return k * value, spread(k * slope) if derivatives else ()
