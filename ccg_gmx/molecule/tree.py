"""The spanning tree of a molecule that says which atoms each atom is placed from, beads first."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from ccg_gmx.errors import TopologyError
from ccg_gmx.molecule.bond_graph import BondGraph, build_bond_graph
from ccg_gmx.records import FloatArray

COLLINEAR_RADIANS = np.deg2rad(2.0)
"""Three atoms closer than this to a line cannot carry a torsion."""

Role = Literal["primary", "offset", "rotor"]


@dataclass(frozen=True)
class Row:
    """How one atom outside the beads is placed: bond to ``parent``, angle with ``angle_ref``, and one torsion.

    Attributes:
        atom: the atom, 0-based.
        parent: the atom it is bonded to.
        angle_ref: a placed neighbour of the parent; the torsion turns about parent - angle_ref.
        torsion_ref: third reference of the placement; bonded to ``angle_ref``, or, for an offset from an atom that
            is placed earlier, bonded to ``parent``.
        measured_from: the coordinate is the dihedral atom-parent-angle_ref-measured_from. It is ``torsion_ref``, or
            the primary among siblings that share all references; then the torsion is the primary's plus the offset.
        role: ``primary`` torsion, ``offset`` from a sibling, or one of three identical atoms (``rotor``).
        level: 1 + the highest level of the references (beads are level 0); atoms of a level are placed together.
    """

    atom: int
    parent: int
    angle_ref: int
    torsion_ref: int
    measured_from: int
    role: Role
    level: int

    @property
    def shares_references(self) -> bool:
        """Whether the torsion is the sum of a sibling's torsion and an offset."""
        return self.measured_from != self.torsion_ref


@dataclass(frozen=True)
class Tree:
    """Beads as an open chain, then every other atom.

    Attributes:
        graph: the molecule.
        beads: bead atoms, 0-based, in chain order; bead k is placed from beads k-1, k-2, k-3.
        rows: the other atoms, level by level.
        rotors: three identical terminal atoms each, in the order of increasing torsion in the reference.
        reference: ``[N, 3]`` nm, the structure whose handedness and cis/trans state the supports keep.
    """

    graph: BondGraph
    beads: tuple[int, ...]
    rows: tuple[Row, ...]
    rotors: tuple[tuple[int, int, int], ...]
    reference: FloatArray


def build_tree(
    bonds: ArrayLike,
    n_atoms: int,
    beads: Sequence[int],
    *,
    masses: ArrayLike,
    names: Sequence[str],
    reference: ArrayLike,
) -> Tree:
    """Span a molecule with a tree that starts from its beads.

    Args:
        bonds: ``[n, 2]`` bonded atoms, 0-based. A bond that closes a ring is left out of the tree.
        n_atoms: number of atoms N.
        beads: at least four atoms (0-based), each bonded to the next.
        masses: ``[N]`` amu; atoms of equal mass count as the same element.
        names: ``[N]`` atom names, for messages and coordinate names.
        reference: ``[N, 3]`` nm, one structure of the molecule, whole.

    Raises:
        TopologyError: unconnected molecule, beads that are no chain, or atoms on a line that no torsion can place.
    """
    graph = build_bond_graph(bonds, n_atoms, masses, names)
    positions = np.array(reference, dtype=np.float64)
    if positions.shape != (n_atoms, 3) or not np.isfinite(positions).all():
        raise TopologyError(
            f"a reference structure of shape {positions.shape}",
            expected=f"({n_atoms}, 3) finite coordinates in nm",
            remedy="give the structure file that belongs to the topology",
        )
    chain = tuple(int(bead) for bead in beads)
    _check_beads(graph, chain, positions)
    return _Builder(graph, chain, positions).build()


def _check_beads(graph: BondGraph, beads: tuple[int, ...], positions: FloatArray) -> None:
    chain = "an open chain of at least four different atoms, each bonded to the next"
    remedy = "list the bead atoms in the order of the bonds"
    outside = [bead for bead in beads if not 0 <= bead < len(graph)]
    if outside:
        raise TopologyError(f"bead atom {outside[0] + 1} of {len(graph)} atoms", expected=chain, remedy=remedy)
    if len(beads) < 4 or len(set(beads)) < len(beads):
        raise TopologyError(f"{len(set(beads))} different bead atoms", expected=chain, remedy=remedy)
    for left, right in itertools.pairwise(beads):
        if right not in graph.neighbours[left]:
            raise TopologyError(
                f"beads {graph.label(left)} and {graph.label(right)} are not bonded", expected=chain, remedy=remedy
            )
    for three in zip(beads, beads[1:], beads[2:], strict=False):
        if _collinear(positions, *three):
            raise TopologyError(
                f"beads {graph.labels(three)} lie on a line in the reference structure",
                expected="bent bead angles, which a torsion needs",
                remedy="leave one of them out of the beads, or choose another reference structure",
            )


def _collinear(positions: FloatArray, a: int, b: int, c: int) -> bool:
    u, v = positions[a] - positions[b], positions[c] - positions[b]
    theta = np.arctan2(np.linalg.norm(np.cross(u, v)), u @ v)
    return bool(min(theta, np.pi - theta) < COLLINEAR_RADIANS)


def reference_dihedral(positions: FloatArray, a: int, b: int, c: int, d: int) -> float:
    """Dihedral a-b-c-d of one structure ``[N, 3]``, in (-pi, pi]; same convention as :func:`nerf.dihedral`."""
    axis, u, v = positions[c] - positions[b], positions[b] - positions[a], positions[d] - positions[c]
    n = np.cross(axis, v)
    return float(np.arctan2((u @ n) * np.linalg.norm(axis), np.cross(u, axis) @ n))


class _Builder:
    """Breadth-first walk from the beads; holds what is placed so far."""

    def __init__(self, graph: BondGraph, beads: tuple[int, ...], positions: FloatArray) -> None:
        self.graph, self.beads, self.positions = graph, beads, positions
        self.order = {bead: k for k, bead in enumerate(beads)}
        self.level = dict.fromkeys(beads, 0)
        self.rows: list[Row] = []
        self.rotors: list[tuple[int, int, int]] = []

    def build(self) -> Tree:
        queue = deque(self.beads)
        while queue:
            queue.extend(self._place_children(queue.popleft()))
        rows = tuple(sorted(self.rows, key=lambda row: row.level))
        return Tree(self.graph, self.beads, rows, tuple(self.rotors), self.positions)

    def _place_children(self, parent: int) -> list[int]:
        children = [atom for atom in self.graph.neighbours[parent] if atom not in self.order]
        if not children:
            return []
        angle_ref, torsion_ref, improper = self._references(parent, children)
        level = 1 + max(self.level[atom] for atom in (parent, angle_ref, torsion_ref))
        children.sort(key=lambda atom: (self.graph.degree(atom) == 1, -self.graph.masses[atom], atom))
        rotor = not improper and self._is_rotor(parent, children)
        if rotor:
            children = self._counterclockwise(children, parent, angle_ref)
            self.rotors.append((children[0], children[1], children[2]))
        for k, atom in enumerate(children):
            role: Role = "rotor" if rotor else ("offset" if improper or k else "primary")
            measured_from = torsion_ref if improper or k == 0 else children[0]
            self.rows.append(Row(atom, parent, angle_ref, torsion_ref, measured_from, role, level))
        for atom in children:
            self.order[atom], self.level[atom] = len(self.order), level
        return children

    def _placed(self, atom: int) -> list[int]:
        placed = (other for other in self.graph.neighbours[atom] if other in self.order)
        return sorted(placed, key=self.order.__getitem__)

    def _references(self, parent: int, children: Sequence[int]) -> tuple[int, int, bool]:
        """First pair of references with no three atoms on a line, and whether it is improper."""
        for angle_ref, torsion_ref, improper in self._candidates(parent):
            bent = (angle_ref, parent, torsion_ref) if improper else (parent, angle_ref, torsion_ref)
            lines = [bent, *((child, parent, angle_ref) for child in children)]
            if not any(_collinear(self.positions, *line) for line in lines):
                return angle_ref, torsion_ref, improper
        raise TopologyError(
            f"atoms bonded to {self.graph.label(parent)} lie on a line with it in the reference structure",
            expected="bent angles: linear groups (nitriles, alkynes) have no torsion to be placed by",
            remedy="choose another reference structure if the group is bent, or another molecule",
        )

    def _candidates(self, parent: int) -> Iterator[tuple[int, int, bool]]:
        """(angle_ref, torsion_ref, improper), best first; improper: torsion_ref is bonded to the parent.

        A placed sibling as torsion reference comes first: the offset from it does not turn with the torsion, and
        carries the handedness of the parent. Among the angle references those inside the bead chain come first,
        so that the offset refers to a bead torsion (H on N to phi, not to omega).
        """
        placed = self._placed(parent)
        beads = set(self.beads)
        placed.sort(key=lambda atom: not (beads & set(self.graph.neighbours[atom]) - {parent}))
        for angle_ref in placed:
            for sibling in placed:
                if sibling != angle_ref:
                    yield angle_ref, sibling, True
        for angle_ref in placed:
            for torsion_ref in self._placed(angle_ref):
                if torsion_ref != parent:
                    yield angle_ref, torsion_ref, False

    def _is_rotor(self, parent: int, children: Sequence[int]) -> bool:
        """Three identical terminal atoms on an atom with one other neighbour: a methyl, an ammonium, a CF3."""
        leaves = all(self.graph.degree(atom) == 1 for atom in children)
        return leaves and len(children) == 3 and self.graph.degree(parent) == 4 and self.graph.same_element(children)

    def _counterclockwise(self, atoms: Sequence[int], parent: int, angle_ref: int) -> list[int]:
        """Order three atoms so that the second follows the first by less than pi in the reference."""
        first, second, third = atoms
        if reference_dihedral(self.positions, second, parent, angle_ref, first) < 0:
            second, third = third, second
        return [first, second, third]
