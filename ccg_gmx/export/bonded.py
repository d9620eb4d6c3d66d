"""Bonded interactions of a coarse model one by one: their tables and GROMACS' own forms beside them.

mdrun stops when a coordinate leaves its table, so tables are padded (gromacs_tables.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ccg_gmx.export.analytic import AnalyticForm, analytic_dihedral, analytic_term
from ccg_gmx.export.gromacs_tables import (
    DIHEDRAL_INTERVALS,
    GromacsExportSettings,
    angle_points,
    angle_xvg,
    bead_numbers,
    bond_points,
    bond_xvg,
    circle_points,
    dihedral_xvg,
    table_file,
)
from ccg_gmx.potential.coarse import CoarsePotential


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
        return table_file(self.kind, self.table)

    @property
    def lines(self) -> tuple[str, tuple[str, ...]]:
        """Lines of the topology: with the table, and with GROMACS' own form."""
        numbers = bead_numbers(self.beads)
        return f"{numbers} 8 {self.table} 1.0", tuple(f"{numbers} {line}" for line in self.form.lines)


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
        return dihedral_xvg(*potential.term_table(i, circle_points()), name)
    if term.coordinate.kind == "bond":
        # Twice the data's end at least: the wall is steep, but mdrun stops where a table ends.
        r = bond_points(max(settings.bond_table_end_nm, 2.0 * term.hi), settings.bond_table_spacing_nm)
        return bond_xvg(r, *potential.term_table(i, r), name)
    angle = angle_points(settings.angle_table_points)
    return angle_xvg(angle, *potential.term_table(i, angle), name)


def _map_table(potential: CoarsePotential, k: int, name: str) -> str:
    value, slope = (potential.map_grid(k, DIHEDRAL_INTERVALS, (order,)) for order in (0, 1))
    return dihedral_xvg(value, slope, name)
