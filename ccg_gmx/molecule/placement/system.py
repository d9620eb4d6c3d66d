"""A bonded system of any number of molecules, as the placement of atoms on beads needs to see it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ccg_gmx.errors import TopologyError
from ccg_gmx.molecule.bond_graph import BondGraph, build_bond_graph, equivalence_classes, stereocentres
from ccg_gmx.molecule.tree import COLLINEAR_RADIANS, reference_dihedral
from ccg_gmx.records import FloatArray, IntArray

SMALL_RING = 7
"""Rings of up to so many atoms hold their own shape; longer ones (disulfides, stretches between beads) do not."""

STEREO_ROUNDS = 12
"""So many bonds around an atom are looked at for a difference between its branches."""

UNITED_CH_AMU = (13.0, 13.1)


@dataclass(frozen=True, eq=False)
class BondedSystem:
    """Atoms, bonds, residues and one structure.

    Attributes:
        graph: the bonds, of any number of molecules.
        molecules: ``[N]`` number of the molecule of each atom, from 0.
        residues: ``[N]`` number of the residue of each atom, from 0 in file order.
        residue_names: ``[N]`` residue name of each atom.
        rank: ``[N]`` place of each atom in the order by residue, then name: the same for equal residues, whatever
            the order of the atoms inside them.
        small_ring_bonds: bonds (i < j) that are part of a ring of at most :data:`SMALL_RING` atoms.
        reference: ``[N, 3]`` nm, the structure whose handedness and planar states the supports keep.
        straight_radians: three atoms within so little of a line carry no torsion.
    """

    graph: BondGraph
    molecules: IntArray
    residues: IntArray
    residue_names: tuple[str, ...]
    rank: IntArray
    small_ring_bonds: frozenset[tuple[int, int]]
    reference: FloatArray
    straight_radians: float = float(COLLINEAR_RADIANS)

    def __len__(self) -> int:
        return len(self.graph)

    def neighbours(self, atom: int) -> tuple[int, ...]:
        """Atoms bonded to ``atom``."""
        return self.graph.neighbours[atom]

    def bonded(self, one: int, other: int) -> bool:
        """Whether two atoms are bonded."""
        return other in self.graph.neighbours[one]

    def in_small_ring(self, one: int, other: int) -> bool:
        """Whether the bond of two atoms is part of a small ring."""
        return (min(one, other), max(one, other)) in self.small_ring_bonds

    def trigonal(self, atom: int) -> bool:
        """Whether an atom can be a planar centre: three neighbours, or two of them in a small ring."""
        around = self.neighbours(atom)
        return len(around) == 3 or (len(around) == 2 and all(self.in_small_ring(atom, other) for other in around))

    def united_ch(self, atom: int) -> bool:
        """Whether an atom is a CH group of a united-atom force field: three neighbours, and no flat centre."""
        return self.graph.degree(atom) == 3 and UNITED_CH_AMU[0] < self.graph.masses[atom] < UNITED_CH_AMU[1]

    def amide(self, one: int, other: int) -> bool:
        """Whether two bonded atoms are the carbon and the nitrogen of an amide."""
        masses = self.graph.masses
        nitrogen, carbon = sorted((one, other), key=masses.__getitem__, reverse=True)
        oxygens = (atom for atom in self.neighbours(carbon) if self.graph.degree(atom) == 1)
        near = (abs(masses[nitrogen] - 14.007) < 0.1, abs(masses[carbon] - 12.011) < 0.1)
        return all(near) and any(abs(masses[atom] - 15.999) < 0.1 for atom in oxygens)

    def handed_centres(self) -> IntArray:
        """Four atoms ``[n, 4]`` for each centre with different branches; a united CH stands for its own hydrogen."""
        centres = list(stereocentres(self.graph, STEREO_ROUNDS))
        colours = equivalence_classes(self.graph, STEREO_ROUNDS)
        for atom in range(len(self)):
            around = self.neighbours(atom)
            if self.united_ch(atom) and len({colours[other] for other in around}) == 3:
                centres.append((atom, around[0], around[1], around[2]))
        return np.array(centres, dtype=np.int64).reshape(-1, 4)

    def collinear(self, a: int, b: int, c: int) -> bool:
        """Whether three atoms lie on a line in the reference, so that they carry no torsion."""
        u, v = self.reference[a] - self.reference[b], self.reference[c] - self.reference[b]
        return bool((u @ v) ** 2 > math.cos(self.straight_radians) ** 2 * (u @ u) * (v @ v))

    def dihedral(self, a: int, b: int, c: int, d: int) -> float:
        """Dihedral a-b-c-d of the reference in radians."""
        return reference_dihedral(self.reference, a, b, c, d)

    def label(self, atom: int) -> str:
        """Residue, name and 1-based number for people: ``ALA2:CA9``."""
        return f"{self.residue_names[atom]}{self.residues[atom] + 1}:{self.graph.label(atom)}"

    def local_label(self, atom: int, home: int) -> str:
        """An atom's name as seen from residue ``home``: ``CA``, ``-1:C``, ``+1:N``; ``*:SG`` for one further away."""
        offset = int(self.residues[atom]) - home
        place = "" if offset == 0 else (f"{offset:+d}:" if abs(offset) <= 2 else "*:")
        return place + self.graph.names[atom]


def bonded_system(
    bonds: ArrayLike,
    *,
    names: Sequence[str],
    residue_names: Sequence[str],
    residue_ids: ArrayLike,
    masses: ArrayLike,
    reference: ArrayLike,
) -> BondedSystem:
    """Check and index a bonded system.

    Args:
        bonds: ``[n, 2]`` bonded atoms, 0-based.
        names: ``[N]`` atom names.
        residue_names: ``[N]`` residue name of each atom.
        residue_ids: ``[N]`` residue number of each atom; a residue ends where number, name or molecule changes.
        masses: ``[N]`` amu; equal masses mean the same element.
        reference: ``[N, 3]`` nm, one structure with whole molecules.

    Raises:
        TopologyError: lengths that differ, a bond to no atom, or a reference that is no structure.
    """
    n_atoms = len(names)
    graph = build_bond_graph(bonds, n_atoms, masses, names, connected=False)
    ids, positions = np.asarray(residue_ids), np.array(reference, dtype=np.float64)
    if len(residue_names) != n_atoms or ids.shape != (n_atoms,):
        raise TopologyError(
            f"{len(residue_names)} residue names and {ids.size} residue numbers for {n_atoms} atoms",
            expected="one of each per atom",
            remedy="take them from the same topology",
        )
    if positions.shape != (n_atoms, 3) or not np.isfinite(positions).all():
        raise TopologyError(
            f"a reference structure of shape {positions.shape}",
            expected=f"({n_atoms}, 3) finite coordinates in nm",
            remedy="give the structure file that belongs to the topology",
        )
    molecules = components(graph)
    residues = _residue_numbers(list(zip(ids.tolist(), residue_names, molecules.tolist(), strict=True)))
    order = sorted(range(n_atoms), key=lambda atom: (residues[atom], graph.names[atom], atom))
    rank = np.empty(n_atoms, dtype=np.int64)
    rank[order] = np.arange(n_atoms)
    rings = _small_ring_bonds(graph)
    return BondedSystem(graph, molecules, residues, tuple(residue_names), rank, rings, positions)


def components(graph: BondGraph) -> IntArray:
    """Number of the molecule of each atom ``[N]``, from 0 in the order of their first atoms."""
    found = np.full(len(graph), -1, dtype=np.int64)
    count = 0
    for start in range(len(graph)):
        if found[start] >= 0:
            continue
        found[start], frontier = count, [start]
        while frontier:
            frontier = [j for i in frontier for j in graph.neighbours[i] if found[j] < 0]
            found[frontier] = count
        count += 1
    return found


def _residue_numbers(tags: Sequence[tuple[object, ...]]) -> IntArray:
    changes = [0, *(int(one != other) for one, other in itertools.pairwise(tags))]
    return np.cumsum(changes[: len(tags)], dtype=np.int64)


def _small_ring_bonds(graph: BondGraph) -> frozenset[tuple[int, int]]:
    pairs = ((i, j) for i, around in enumerate(graph.neighbours) for j in around if i < j)
    return frozenset(pair for pair in pairs if _closes_small_ring(graph, *pair))


def _closes_small_ring(graph: BondGraph, start: int, end: int) -> bool:
    """Whether another way than their bond leads from ``start`` to ``end`` in at most SMALL_RING - 1 bonds."""
    reached, frontier = {start}, [other for other in graph.neighbours[start] if other != end]
    for _ in range(SMALL_RING - 2):
        reached.update(frontier)
        frontier = [j for i in frontier for j in graph.neighbours[i] if j not in reached]
        if end in frontier:
            return True
    return False
