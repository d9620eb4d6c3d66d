"""Table files of LAMMPS in its units ``real``: kcal/mol and Angstrom, slopes of angles per degree.

1 kcal = 4.184 kJ and 1 nm = 10 Angstrom exactly. LAMMPS puts cubic splines through the points of a file and tabulates
them again, pairs evenly in r^2; all tables here are fine enough for both steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from ccg_gmx.export.gromacs_tables import circle_points
from ccg_gmx.potential.curves import Curve
from ccg_gmx.records import FloatArray
from ccg_gmx.units import DEGREES_PER_RADIAN

KJ_PER_KCAL = 4.184
ANGSTROM_PER_NM = 10.0

BOND_POINTS, ANGLE_POINTS, DIHEDRAL_POINTS, PAIR_POINTS = 5001, 3601, 3600, 20000
"""Points that LAMMPS keeps of each table."""

_PAIR_FILE_POINTS = 6001
_PAIR_START_NM = 0.001  # LAMMPS stops at distances below the first point, and divides by r there
_EMPTY = "NONE"


def curve_section(name: str) -> str:
    """Keyword of a table in its file; LAMMPS ends a keyword at white space."""
    return "_".join(name.split()) or "TABLE"


def bonded_file(kind: str, curves: Mapping[str, Curve]) -> str:
    """The table file of one kind.

    Args:
        kind: bond, angle or dihedral.
        curves: by name.
    """
    make = {"bond": _bond, "angle": _angle, "dihedral": _dihedral}[kind]
    title = f"# {kind} tables of a coarse model, units real: point, coordinate, energy, minus its slope\n"
    return title + "".join(make(name, curve) for name, curve in curves.items())


def pair_file(curves: Mapping[str, Curve], cutoff_nm: float) -> str:
    """The file of pair tables, with one of zeros for types that do not interact."""
    r = np.linspace(_PAIR_START_NM, cutoff_nm, _PAIR_FILE_POINTS, dtype=np.float64)
    text = "# pair tables of a coarse model, units real: point, distance, energy, force\n"
    tables = {name: curve.value_and_slope(r) for name, curve in curves.items()}
    tables[_EMPTY] = (np.zeros_like(r), np.zeros_like(r))
    x = r * ANGSTROM_PER_NM
    for name, (value, slope) in tables.items():
        energy, force = value / KJ_PER_KCAL, -slope / (KJ_PER_KCAL * ANGSTROM_PER_NM)
        ends = f"FPRIME {_number(-force[0])} {_number(-force[-1])}"
        text += _section(curve_section(name), f"N {len(x)} R {_number(x[0])} {_number(x[-1])} {ends}", x, energy, force)
    return text


def empty_pair() -> str:
    """Keyword of the pair table of zeros."""
    return _EMPTY


def _bond(name: str, curve: Curve) -> str:
    # LAMMPS stops at bonds outside their table
    r = np.linspace(0.0, max(2.0 * curve.hi, 0.5), BOND_POINTS, dtype=np.float64)
    value, slope = curve.value_and_slope(r)
    force = -slope / (KJ_PER_KCAL * ANGSTROM_PER_NM)
    return _section(curve_section(name), f"N {len(r)}", r * ANGSTROM_PER_NM, value / KJ_PER_KCAL, force)


def _angle(name: str, curve: Curve) -> str:
    angle = np.linspace(0.0, math.pi, ANGLE_POINTS, dtype=np.float64)
    value, slope = curve.value_and_slope(angle)
    force = -slope / (KJ_PER_KCAL * DEGREES_PER_RADIAN)
    return _section(curve_section(name), f"N {len(angle)}", angle * DEGREES_PER_RADIAN, value / KJ_PER_KCAL, force)


def _dihedral(name: str, curve: Curve) -> str:
    phi = circle_points(DIHEDRAL_POINTS)
    value, slope = curve.value_and_slope(phi)
    force = -slope / (KJ_PER_KCAL * DEGREES_PER_RADIAN)
    return _section(curve_section(name), f"N {len(phi)} DEGREES", phi * DEGREES_PER_RADIAN, value / KJ_PER_KCAL, force)


def _section(keyword: str, parameters: str, x: FloatArray, energy: FloatArray, force: FloatArray) -> str:
    rows = enumerate(zip(x.tolist(), energy.tolist(), force.tolist(), strict=True), start=1)
    lines = [f"{i} {_number(a)} {_number(b)} {_number(c)}" for i, (a, b, c) in rows]
    return "\n".join([f"\n{keyword}", parameters, "", *lines, ""])


def _number(x: float) -> str:
    return f"{x:.15g}"


def cmap_file(grids: Mapping[str, FloatArray]) -> str:
    """The file of ``fix cmap``: every grid ``[24, 24]`` kJ/mol from -180 degrees, first torsion slowest."""
    text = "# CMAP grids of a coarse model, kcal/mol\n"
    for name, grid in grids.items():
        rows = (grid / KJ_PER_KCAL).reshape(-1, 6).tolist()
        text += f"\n# {name}\n" + "".join(" ".join(_number(x) for x in row) + "\n" for row in rows)
    return text
