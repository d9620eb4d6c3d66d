"""Tables as GROMACS reads them, and sections of its topologies; for the cycle's model and for whole systems.

A bonded table holds coordinate, value and *minus* the slope: nm for bonds, degrees (slope per degree) for angles and
dihedrals. mdrun interpolates between its points with the cubic that both values and both slopes at the ends determine,
and stops when a coordinate leaves its table.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from pydantic import Field

from ccg_gmx.records import FloatArray
from ccg_gmx.settings import Settings
from ccg_gmx.units import DEGREES_PER_RADIAN

TABLE_LETTERS = {"bond": "b", "angle": "a", "torsion": "d", "dihedral": "d"}
DIHEDRAL_INTERVALS = 3600


class GromacsExportSettings(Settings):
    """Resolution of the tables and the box."""

    bond_table_end_nm: float = Field(default=0.5, gt=0, description="bond tables run from 0 to at least here")
    bond_table_spacing_nm: float = Field(default=0.0002, gt=0, description="spacing of bond tables")
    angle_table_points: int = Field(default=1800, ge=180, description="intervals of an angle table over 180 degrees")
    cmap_refinement: int = Field(default=1, ge=1, le=8, description="CMAP points per knot of the torsion grid")
    box_nm: float = Field(default=6.0, gt=0, description="edge of the cubic box, longer than twice the cut-off")


def table_file(kind: str, number: int) -> str:
    """Name of a bonded table, as ``mdrun -tableb`` wants it."""
    return f"table_{TABLE_LETTERS[kind]}{number}.xvg"


def bond_points(end_nm: float, spacing_nm: float) -> FloatArray:
    """Points ``[R]`` nm of a bond table: from 0 to ``end_nm`` or one point beyond."""
    points = math.ceil(end_nm / spacing_nm)
    return np.linspace(0.0, points * spacing_nm, points + 1, dtype=np.float64)


def angle_points(intervals: int) -> FloatArray:
    """Points ``[R]`` radians of an angle table, 0 to pi."""
    return np.linspace(0.0, math.pi, intervals + 1, dtype=np.float64)


def circle_points(n: int = DIHEDRAL_INTERVALS) -> FloatArray:
    """Points ``[n]`` radians around the circle from -pi on, the last before pi."""
    return np.linspace(-math.pi, math.pi, n, endpoint=False, dtype=np.float64)


def bond_xvg(r: FloatArray, value: FloatArray, slope: FloatArray, title: str) -> str:
    """Bond table from points (nm), values (kJ/mol) and slopes (kJ/mol/nm)."""
    return _xvg(r, value, slope, title)


def angle_xvg(angle: FloatArray, value: FloatArray, slope: FloatArray, title: str) -> str:
    """Angle table from points (radians), values (kJ/mol) and slopes (kJ/mol/radian)."""
    return _xvg(angle * DEGREES_PER_RADIAN, value, slope / DEGREES_PER_RADIAN, title)


def dihedral_xvg(value: FloatArray, slope: FloatArray, title: str) -> str:
    """Dihedral table of values and slopes (per radian) at :func:`circle_points`; the last point is the first again."""
    degrees = np.linspace(-180.0, 180.0, len(value) + 1)
    wrap = np.append(np.arange(len(value)), 0)
    return _xvg(degrees, value[wrap], slope[wrap] / DEGREES_PER_RADIAN, title)


def _xvg(x: FloatArray, value: FloatArray, slope: FloatArray, title: str) -> str:
    rows = np.stack([x, value, -slope], axis=1)
    return f"# {title}: coordinate, potential (kJ/mol), minus its derivative\n" + "".join(
        f"{a:.10g} {b:.10e} {c:.10e}\n" for a, b, c in rows.tolist()
    )


def section(name: str, lines: Sequence[str]) -> list[str]:
    """A section of a topology, with an empty line after it."""
    return [f"[ {name} ]", *lines, ""]


def bead_numbers(beads: Sequence[int]) -> str:
    """Beads as a topology counts them, from 1."""
    return " ".join(str(bead + 1) for bead in beads)


def cmap_type(types: Sequence[str], values: FloatArray) -> str:
    """A CMAP type: first torsion slowest, both from -180 degrees; a long line continued with backslashes.

    Args:
        types: of its five beads.
        values: ``[n, n]`` kJ/mol.
    """
    n, flat = len(values), values.ravel().tolist()
    rows = [" ".join(f"{v:.6f}" for v in flat[i : i + 8]) for i in range(0, len(flat), 8)]
    return "\\\n".join([f"{' '.join(types)} 1 {n} {n}", *rows])
