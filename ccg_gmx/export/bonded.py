"""Bonded interactions of a coarse model one by one: their tables and GROMACS' own forms beside them.

Tables hold the value and *minus* its slope, per degree for angles and torsions; mdrun stops when a coordinate leaves
its table, so tables are padded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import Field

from ccg_gmx.export.analytic import AnalyticForm, analytic_dihedral, analytic_term
from ccg_gmx.potential.coarse import CoarsePotential
from ccg_gmx.records import FloatArray
from ccg_gmx.settings import Settings
from ccg_gmx.units import DEGREES_PER_RADIAN

_TABLE_LETTERS = {"bond": "b", "angle": "a", "torsion": "d"}
_DIHEDRAL_INTERVALS = 3600


class GromacsExportSettings(Settings):
    """Resolution of the tables and the box."""

    bond_table_end_nm: float = Field(default=0.5, gt=0, description="bond tables run from 0 to at least here")
    bond_table_spacing_nm: float = Field(default=0.0002, gt=0, description="spacing of bond tables")
    angle_table_points: int = Field(default=1800, ge=180, description="intervals of an angle table over 180 degrees")
    cmap_refinement: int = Field(default=1, ge=1, le=8, description="CMAP points per knot of the torsion grid")
    box_nm: float = Field(default=6.0, gt=0, description="edge of the cubic box, longer than twice the cut-off")


@dataclass(frozen=True)
class BondedTerm:
    """One bond, angle or dihedral of the written topology.

    Attributes:
        kind: bond, angle or torsion.
        name: of the coordinate.
        beads: zero-based.
        table: number of its table, counted within the kind's letter.
        table_text: content of the table.
        form: GROMACS' own form of it.
    """

    kind: str
    name: str
    beads: tuple[int, ...]
    table: int
    table_text: str
    form: AnalyticForm

    @property
    def file(self) -> str:
        """Name of the table, as ``mdrun -tableb`` wants it."""
        return f"table_{_TABLE_LETTERS[self.kind]}{self.table}.xvg"

    @property
    def lines(self) -> tuple[str, tuple[str, ...]]:
        """Lines of the topology: with the table, and with GROMACS' own form."""
        numbers = bead_numbers(self.beads)
        return f"{numbers} 8 {self.table} 1.0", tuple(f"{numbers} {line}" for line in self.form.lines)


def bead_numbers(beads: Sequence[int]) -> str:
    """Beads as a topology counts them, from 1."""
    return " ".join(str(bead + 1) for bead in beads)


def bonded_terms(
    potential: CoarsePotential,
    terms: Sequence[tuple[int, ...]],
    torsions: Sequence[tuple[int, ...]],
    settings: GromacsExportSettings,
) -> tuple[BondedTerm, ...]:
    """Everything that is no CMAP: the potential's terms in their order, then the maps over a single torsion.

    Args:
        potential: fitted potential.
        terms: beads of each term.
        torsions: beads of each coarse torsion.
        settings: resolution of the tables.
    """
    made: list[BondedTerm] = []

    def add(kind: str, name: str, beads: tuple[int, ...], text: str, form: AnalyticForm) -> None:
        made.append(BondedTerm(kind, name, beads, sum(term.kind == kind for term in made), text, form))

    for i, term in enumerate(potential.basis.terms):
        text = _term_table(potential, i, settings)
        add(term.coordinate.kind, term.coordinate.name, terms[i], text, analytic_term(potential, i))
    for k, columns in enumerate(potential.basis.maps.columns):
        if len(columns) == 1:
            name = potential.basis.maps.grids[k].names[0]
            text = _map_table(potential, k, name)
            add("torsion", name, torsions[columns[0]], text, analytic_dihedral(potential, k))
    return tuple(made)


def _term_table(potential: CoarsePotential, i: int, settings: GromacsExportSettings) -> str:
    term, name = potential.basis.terms[i], potential.basis.terms[i].coordinate.name
    if term.coordinate.kind == "torsion":
        return _closed(*potential.term_table(i, _circle()), name)
    if term.coordinate.kind == "bond":
        # Twice the data's end at least: the wall is steep, but mdrun stops where a table ends.
        end = max(settings.bond_table_end_nm, 2.0 * term.hi)
        points = math.ceil(end / settings.bond_table_spacing_nm)
        r = np.linspace(0.0, points * settings.bond_table_spacing_nm, points + 1, dtype=np.float64)
        scale = 1.0
    else:
        r = np.linspace(0.0, math.pi, settings.angle_table_points + 1, dtype=np.float64)
        scale = DEGREES_PER_RADIAN
    value, slope = potential.term_table(i, r)
    return _xvg(r * scale, value, slope / scale, name)


def _map_table(potential: CoarsePotential, k: int, name: str) -> str:
    value, slope = (potential.map_grid(k, _DIHEDRAL_INTERVALS, (order,)) for order in (0, 1))
    return _closed(value, slope, name)


def _circle() -> FloatArray:
    return np.linspace(-math.pi, math.pi, _DIHEDRAL_INTERVALS, endpoint=False, dtype=np.float64)


def _closed(value: FloatArray, slope: FloatArray, name: str) -> str:
    """Dihedral table from values and slopes (per radian) around the circle: the last point is the first again."""
    degrees = np.linspace(-180.0, 180.0, len(value) + 1)
    wrap = np.append(np.arange(len(value)), 0)
    return _xvg(degrees, value[wrap], slope[wrap] / DEGREES_PER_RADIAN, name)


def _xvg(x: FloatArray, value: FloatArray, slope: FloatArray, title: str) -> str:
    rows = np.stack([x, value, -slope], axis=1)
    return f"# {title}: coordinate, potential (kJ/mol), minus its derivative\n" + "".join(
        f"{a:.10g} {b:.10e} {c:.10e}\n" for a, b, c in rows.tolist()
    )
