"""The order in which atoms are placed on given beads, and the three atoms each is placed from.

Rounds grow outwards from the beads. Each round has three stages, and an atom refers only to atoms of earlier rounds or
stages (or to its siblings), so the number of levels does not grow with the length of a chain:

1. *gaps*: an atom x of a gap p - x - y - q between two placed atoms is placed on p, with its angle seen from q. So the
   far end stays within reach of y. This restores C and N of a peptide bond between C-alpha beads, and both S of a
   disulfide; small rings need no such care.
2. *bridges*: an atom with two placed neighbours gets its two bond lengths and one torsion about the line between them.
   So no bond is left to chance: rings, the peptide bond and disulfides close by construction.
3. *branches*: every other atom bonded to a placed one, with bond, angle and torsion; siblings share one torsion and are
   written as offsets from it. Planar atoms branch first, and angles are taken inside small rings where there is a
   choice, and torsions too where a planar atom is next to a tetrahedral one: so the stiff atoms of a ring have
   coordinates of their own, and it closes at a floppy one (proline at CG, whose place between CB and CD is the pucker).

References follow from bonds, residues and atom names, so equal residues between equal neighbours get equal references.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ccg_gmx.errors import TopologyError
from ccg_gmx.molecule.bond_graph import BondGraph
from ccg_gmx.molecule.placement.system import BondedSystem

Role = Literal["primary", "offset", "rotor", "bridge"]
N_NEAR = 8
"""So many of the nearest beads are tried as references where bonds offer none."""


@dataclass(frozen=True)
class Step:
    """How one atom is placed.

    Attributes:
        atom: the atom, 0-based.
        parent: the bond's other atom (not bonded only for the first atom of a molecule without beads).
        angle_ref: the angle is atom-parent-angle_ref. For a bridge it is the second bonded atom, and the second
            number is its distance instead of an angle.
        torsion_ref: third atom of the frame the atom is placed in.
        measured_from: the torsion is the dihedral atom-parent-angle_ref-measured_from. It is ``torsion_ref``, or the
            first among siblings in the same frame; then the torsion is the sibling's plus the offset.
        role: ``primary`` torsion; ``offset`` from a placed neighbour of the parent or from a sibling; one of three
            identical atoms (``rotor``); ``bridge`` between two bonded atoms.
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
    def shares_frame(self) -> bool:
        """Whether the torsion is the sum of a sibling's torsion and an offset."""
        return self.measured_from != self.torsion_ref


def order_atoms(
    system: BondedSystem, beads: Sequence[int], wanted: Collection[int], paths: BondGraph
) -> tuple[tuple[Step, ...], tuple[tuple[int, int, int], ...]]:
    """Place all wanted atoms on beads.

    Args:
        system: the bonds that may be walked.
        beads: atoms whose positions are given, 0-based; at least three, not on a line.
        wanted: atoms to place.
        paths: all bonds; the nearest beads are looked for along them.

    Returns:
        The steps, level by level; and the rotors, three identical terminal atoms each, in the order of increasing
        torsion in the reference.

    Raises:
        TopologyError: too few beads, or atoms on a line that no torsion can place.
    """
    planner = _Planner(system, beads, wanted, paths)
    planner.run()
    steps = sorted(planner.steps, key=lambda step: (step.level, step.role == "bridge"))
    return tuple(steps), tuple(planner.rotors)


class _Planner:
    """Rounds outwards from the beads; ``level`` holds what is placed so far."""

    def __init__(self, system: BondedSystem, beads: Sequence[int], wanted: Collection[int], paths: BondGraph) -> None:
        self.system, self.beads, self.paths = system, sorted(beads, key=lambda bead: system.rank[bead]), paths
        self.level = dict.fromkeys(self.beads, 0)
        self.missing = set(wanted) - set(self.beads)
        self.steps: list[Step] = []
        self.rotors: list[tuple[int, int, int]] = []
        self._is_bead = set(self.beads)
        self._near: dict[int, list[int]] = {}
        self._frontier: set[int] = set(self.beads)

    def run(self) -> None:
        while self.missing:
            frontier = self._ranked(atom for atom in self._frontier if self._open(atom))
            self._frontier = set(frontier)
            if frontier:
                self._gaps(frontier)
                self._bridges()
                self._branches(frontier)
            else:
                self._anchors()

    # --- what is placed ------------------------------------------------------------------------------------------

    def _ranked(self, atoms: Iterator[int] | Collection[int]) -> list[int]:
        return sorted(atoms, key=lambda atom: self.system.rank[atom])

    def _open(self, atom: int) -> list[int]:
        """Atoms bonded to ``atom`` that are still to be placed."""
        return self._ranked([other for other in self.system.neighbours(atom) if other in self.missing])

    def _placed(self, atom: int, placed: dict[int, int]) -> list[int]:
        """Placed atoms bonded to ``atom``: of its own residue first, then by level."""
        home = self.system.residues[atom]
        around = [other for other in self.system.neighbours(atom) if other in placed]
        key = self.system.rank
        return sorted(around, key=lambda other: (self.system.residues[other] != home, placed[other], key[other]))

    def _place(self, atom: int, references: tuple[int, int, int], measured_from: int, role: Role) -> None:
        level = 1 + max(self.level[reference] for reference in references)
        self.steps.append(Step(atom, *references, measured_from, role, level))
        self.level[atom] = level
        self.missing.remove(atom)
        self._frontier.add(atom)

    def _bent(self, *lines: tuple[int, int, int]) -> bool:
        return all(len(set(line)) == 3 and not self.system.collinear(*line) for line in lines)

    # --- stages --------------------------------------------------------------------------------------------------

    def _gaps(self, frontier: Sequence[int]) -> None:
        before = dict(self.level)
        for p in frontier:
            for x in self._open(p):
                if self.system.in_small_ring(p, x) or len(self._placed(x, self.level)) > 1:
                    continue
                references = self._gap_references(x, p, before)
                if references is not None:
                    self._place(x, references, references[2], "primary")

    def _gap_references(self, x: int, p: int, before: dict[int, int]) -> tuple[int, int, int] | None:
        far = [(q, y) for y in self._open(x) for q in self._placed(y, before) if q != p]
        for q, _ in sorted(far, key=lambda ends: (before[ends[0]], self.system.rank[ends[0]])):
            for t in (*self._placed(p, before), *self._near_beads(p)):
                if self._bent((p, q, t), (x, p, q)):
                    return p, q, t
        return None

    def _bridges(self) -> None:
        before = dict(self.level)
        for x in self._ranked({x for atom in self._frontier for x in self._open(atom)}):
            references = self._bridge_references(x, before)
            if references is not None:
                self._place(x, references, references[2], "bridge")

    def _bridge_references(self, x: int, before: dict[int, int]) -> tuple[int, int, int] | None:
        for p, a in itertools.combinations(self._placed(x, before), 2):
            bonded = [*self._placed(a, before), *self._placed(p, before)]
            bonded.sort(key=before.__getitem__)
            for t in (*bonded, *self._near_beads(p)):
                if self._bent((p, a, t), (x, p, a)):
                    return p, a, t
        return None

    def _branches(self, frontier: Sequence[int]) -> None:
        before = dict(self.level)
        for p in sorted(frontier, key=lambda atom: not self.system.trigonal(atom)):
            children = self._open(p)
            # An atom that has a second neighbour by now is a bridge of the next round; its siblings refer to it.
            if any(len(self._placed(x, before)) < len(self._placed(x, self.level)) for x in children):
                continue
            corners = self._corners(p, children)
            if children and not any(self.system.in_small_ring(a, x) for a in corners for x in self._open(a)):
                self._branch(p, children, before)

    def _corners(self, p: int, children: Sequence[int]) -> list[int]:
        """Placed tetrahedral neighbours of a planar atom p in a ring of a child: proline's CA, of N.

        Such a child is placed from the ring's next atom beyond the corner. Otherwise the width of the ring would hang
        on how its substituents turn, phi in proline, which no one knows so well.
        """
        ring = any(self.system.in_small_ring(p, child) for child in children)
        if not (ring and self.system.trigonal(p)):
            return []
        around = self._placed(p, self.level)
        return [a for a in around if self.system.in_small_ring(p, a) and not self.system.trigonal(a)]

    def _branch(self, p: int, children: list[int], before: dict[int, int]) -> None:
        graph, rank = self.paths, self.system.rank
        children.sort(key=lambda atom: (graph.degree(atom) == 1, -graph.masses[atom], rank[atom]))
        bonded = self._placed(p, before)
        if not bonded:  # the others refer to the first one in the next round: their offsets then carry the handedness
            children = children[:1]
        a, t, improper = self._branch_references(p, children, bonded, before)
        rotor = self._is_rotor(p, a, children)
        if rotor:
            children = self._counterclockwise(children, p, a)
            self.rotors.append((children[0], children[1], children[2]))
        for k, atom in enumerate(children):
            role: Role = "rotor" if rotor else ("offset" if improper or k else "primary")
            self._place(atom, (p, a, t), t if improper or k == 0 else children[0], role)

    def _branch_references(
        self, p: int, children: Sequence[int], bonded: Sequence[int], before: dict[int, int]
    ) -> tuple[int, int, bool]:
        ring = any(self.system.in_small_ring(p, child) for child in children)
        bonded = sorted(bonded, key=lambda atom: ring and not self.system.in_small_ring(p, atom))
        beyond = (
            (a, t, False)
            for a in self._corners(p, children)
            for t in self._placed(a, before)
            if t != p and self.system.in_small_ring(a, t)
        )
        for a, t, improper in (*beyond, *self._candidates(p, bonded, before)):
            bend = (a, p, t) if improper else (p, a, t)
            if self._bent(bend, *((child, p, a) for child in children)):
                return a, t, improper
        raise self._no_references(children[0], p)

    def _no_references(self, atom: int, p: int) -> TopologyError:
        return TopologyError(
            f"no three placed atoms carry a torsion for {self.system.label(atom)} on {self.system.label(p)}",
            expected="three beads that are not on a line",
            remedy="choose more beads, or another reference structure",
        )

    def _candidates(self, p: int, bonded: Sequence[int], before: dict[int, int]) -> Iterator[tuple[int, int, bool]]:
        """(angle_ref, torsion_ref, improper), best first; improper: both bonded to p, so offsets carry handedness."""
        yield from ((a, t, True) for a, t in itertools.permutations(bonded, 2))
        yield from ((a, t, False) for a in bonded for t in self._placed(a, before) if t != p)
        near = self._near_beads(p)
        yield from ((a, t, False) for a in bonded for t in near if t != a)
        beyond = [t for a in bonded for t in self._placed(a, before) if t != p]  # straight groups: nitriles, alkynes
        yield from ((a, t, False) for a, t in itertools.permutations([*beyond, *near], 2))

    def _is_rotor(self, p: int, a: int, children: Sequence[int]) -> bool:
        """Three identical terminal atoms on an atom with one other neighbour, the angle reference."""
        graph = self.paths
        leaves = all(graph.degree(atom) == 1 for atom in children)
        alone = len(children) == 3 and graph.degree(p) == 4 and self.system.bonded(p, a)
        return alone and leaves and graph.same_element(children)

    def _counterclockwise(self, atoms: Sequence[int], p: int, a: int) -> list[int]:
        """Order three atoms so that the second follows the first by less than pi in the reference."""
        first, second, third = atoms
        if self.system.dihedral(second, p, a, first) < 0:
            second, third = third, second
        return [first, second, third]

    # --- references that are not bonded --------------------------------------------------------------------------

    def _anchors(self) -> None:
        """First atom, the heaviest, of every molecule that has no bead, on the beads nearest in space."""
        molecules: dict[int, int] = {}
        for atom in self._ranked(self.missing):
            first = molecules.setdefault(int(self.system.molecules[atom]), atom)
            if self.system.graph.masses[atom] > self.system.graph.masses[first]:
                molecules[int(self.system.molecules[atom])] = atom
        for atom in molecules.values():
            near = self._nearest_in_space(atom, N_NEAR)
            triples = (t for t in itertools.permutations(near, 3) if self._bent(t, (atom, *t[:2])))
            references = next(triples, None)
            if references is None:
                raise self._no_references(atom, near[0])
            self._place(atom, references, references[2], "primary")

    def _near_beads(self, atom: int) -> list[int]:
        """Nearest beads: along bonds, then in space; of equal distance the earlier residue first."""
        if atom not in self._near:
            found: list[int] = []
            reached, frontier = {atom}, [atom]
            while frontier and len(found) < N_NEAR:
                frontier = list({j for i in frontier for j in self.paths.neighbours[i]} - reached)
                reached.update(frontier)
                found += self._ranked([j for j in frontier if j in self._is_bead])
            if len(found) < N_NEAR:
                found += [bead for bead in self._nearest_in_space(atom, N_NEAR) if bead not in found]
            self._near[atom] = found
        return self._near[atom]

    def _nearest_in_space(self, atom: int, count: int) -> list[int]:
        beads = np.array([bead for bead in self.beads if bead != atom], dtype=np.int64)
        distances = np.linalg.norm(self.system.reference[beads] - self.system.reference[atom], axis=1)
        return beads[np.argsort(distances, kind="stable")[:count]].tolist()
