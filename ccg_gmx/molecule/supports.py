"""Which values each internal coordinate may take: handedness, planar centres, cis/trans and identical atoms.

These are assumptions about the ensemble (the molecule keeps the state of its reference structure in them), decided
from the bond graph and the reference alone, each with a sentence that says so.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

from ccg_gmx.molecule.coordinate import Coordinate
from ccg_gmx.molecule.tree import Row, Tree, reference_dihedral

PLANAR_OFFSET = math.radians(150.0)
"""Two siblings on a three-coordinate atom, further apart than this, make it a planar centre."""

PLANAR_TORSION = math.radians(30.0)
"""A torsion about a bond between two three-coordinate atoms, this close to 0 or pi, counts as cis or trans."""

TETRAHEDRAL_OFFSET = (math.radians(60.0), math.radians(165.0))
"""Range of the offset between siblings on a tetrahedral centre; others (square planar metals) stay free."""

GENERAL = ("Bond lengths are positive and bond angles lie in (0, 180) degrees.",)


@dataclass(frozen=True)
class Decision:
    """The support of one coordinate, and the assumption it makes in words (None: no assumption)."""

    coordinate: Coordinate
    sentence: str | None = None


def bead_coordinates(tree: Tree) -> tuple[tuple[Coordinate, ...], tuple[Coordinate, ...], tuple[Decision, ...]]:
    """Bonds, angles and torsions of the bead chain, each in chain order."""
    beads, label = tree.beads, tree.graph.labels
    bonds = tuple(Coordinate(f"bond {label(pair)}", "bond", "positive") for pair in itertools.pairwise(beads))
    angles = tuple(
        Coordinate(f"angle {label(three)}", "angle", "polar")
        for three in zip(beads, beads[1:], beads[2:], strict=False)
    )
    torsions = tuple(torsion_decision(tree, four) for four in bead_torsions(tree))
    return bonds, angles, torsions


def bead_torsions(tree: Tree) -> tuple[tuple[int, int, int, int], ...]:
    """Torsions of four consecutive beads (0-based atoms), in chain order."""
    beads = tree.beads
    return tuple(zip(beads, beads[1:], beads[2:], beads[3:], strict=False))


def row_coordinates(tree: Tree) -> tuple[tuple[Coordinate, ...], tuple[Coordinate, ...], tuple[Decision, ...]]:
    """Bonds, angles and torsions of the other atoms, each in the order of ``tree.rows``."""
    label = tree.graph.labels
    bonds = tuple(Coordinate(f"bond {label((row.atom, row.parent))}", "bond", "positive") for row in tree.rows)
    angles = tuple(
        Coordinate(f"angle {label((row.atom, row.parent, row.angle_ref))}", "angle", "polar") for row in tree.rows
    )
    rotors = {rotor[0]: rotor for rotor in tree.rotors}
    torsions = []
    for row in tree.rows:
        if row.atom in rotors:
            torsions.append(_rotor_decision(tree, row, rotors[row.atom]))
        elif row.role == "primary":
            torsions.append(torsion_decision(tree, (row.atom, row.parent, row.angle_ref, row.torsion_ref)))
        else:
            torsions.append(_offset_decision(tree, row))
    return bonds, angles, tuple(torsions)


def torsion_decision(tree: Tree, atoms: tuple[int, int, int, int]) -> Decision:
    """A torsion between two planar centres keeps the cis/trans state of the reference; any other is free."""
    graph, name = tree.graph, f"torsion {tree.graph.labels(atoms)}"
    value = reference_dihedral(tree.reference, *atoms)
    three_coordinate = graph.degree(atoms[1]) == graph.degree(atoms[2]) == 3
    flat = min(abs(value), math.pi - abs(value)) < PLANAR_TORSION
    if not (three_coordinate and flat):
        return Decision(Coordinate(name, "torsion", "circle"))
    centre = math.pi if abs(value) > math.pi / 2 else 0.0
    sentence = (
        f"The bond {graph.labels(atoms[1:3])} joins two planar centres: {name} stays within 90 degrees of "
        f"{round(math.degrees(centre))} ({'trans' if centre else 'cis'}, as in the reference)."
    )
    return Decision(Coordinate(name, "torsion", "window", centre, math.pi), sentence)


def _offset_decision(tree: Tree, row: Row) -> Decision:
    graph = tree.graph
    name = f"offset of {graph.label(row.atom)} from {graph.label(row.measured_from)} about "
    name += graph.labels((row.parent, row.angle_ref))
    value = reference_dihedral(tree.reference, row.atom, row.parent, row.angle_ref, row.measured_from)
    low, high = TETRAHEDRAL_OFFSET
    if graph.degree(row.parent) == 4 and low < abs(value) < high:
        centre = math.copysign(math.pi / 2, value)
        sentence = None  # of a rotor's atoms: the sentence of the rotor says it for all three
        if row.role != "rotor":
            sign = "positive" if centre > 0 else "negative"
            sentence = f"{graph.label(row.parent)} keeps the handedness of the reference: {name} stays {sign}."
        return Decision(Coordinate(name, "torsion", "window", centre, math.pi), sentence)
    if graph.degree(row.parent) == 3 and abs(value) > PLANAR_OFFSET:
        sentence = f"{graph.label(row.parent)} is a planar centre: {name} stays within 90 degrees of 180."
        return Decision(Coordinate(name, "torsion", "window", math.pi, math.pi), sentence)
    return Decision(Coordinate(name, "torsion", "circle"))


def _rotor_decision(tree: Tree, row: Row, rotor: tuple[int, int, int]) -> Decision:
    graph, period = tree.graph, 2.0 * math.pi / 3.0
    value, second, third = (
        reference_dihedral(tree.reference, atom, row.parent, row.angle_ref, base)
        for atom, base in zip(rotor, (row.torsion_ref, rotor[0], rotor[0]), strict=True)
    )
    mean = value + (second + third) / 3.0
    centre = mean - period * math.floor(mean / period + 0.5)
    atoms = graph.labels(rotor, ", ")
    name = f"rotor {atoms} about {graph.labels((row.parent, row.angle_ref))}"
    sentence = (
        f"{atoms} on {graph.label(row.parent)} are identical and keep their order around the bond to "
        f"{graph.label(row.angle_ref)}: their mean torsion covers one third of the circle, each arrangement once."
    )
    return Decision(Coordinate(name, "torsion", "rotor", centre, period), sentence)
