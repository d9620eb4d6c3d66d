"""Atoms that only their labels tell apart: the two halves of a phenyl ring, the oxygens of a carboxylate.

Turning a planar group with two equal branches half around swaps the branches and changes nothing else, so which of them
is called CD1 is arbitrary, and where a simulation turns such groups rarely it is an accident of its start. Two equal
branches of a tetrahedral centre (the hydrogens of CH2, the methyls of valine) are not of this kind: swapping them turns
the centre over. Three equal atoms (CH3) have labels in a fixed order by :meth:`Placement.relabel`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from ccg_gmx.molecule.bond_graph import equivalence_classes
from ccg_gmx.molecule.placement.system import STEREO_ROUNDS, BondedSystem

LARGEST_BRANCH = 12
"""Branches of more atoms are no labels of one group, whatever their colours say."""


def pooled_names(system: BondedSystem) -> dict[int, str]:
    """Common names, such as ``CD*``, of atoms that planar groups with two equal branches make equivalent."""
    colours = equivalence_classes(system.graph, STEREO_ROUNDS)
    pool: dict[int, frozenset[int]] = {}
    for centre in range(len(system)):
        for pair in _equal_pairs(system, centre, colours):
            branches = [_branch(system, start, centre) for start in pair]
            if max(map(len, branches)) > LARGEST_BRANCH:
                continue
            groups: dict[tuple[int, int], set[int]] = {}
            for branch in branches:
                for atom, distance in branch.items():
                    groups.setdefault((distance, colours[atom]), set()).add(atom)
            for group in groups.values():
                joined = frozenset(group).union(*(pool.get(atom, ()) for atom in group))
                pool |= dict.fromkeys(joined, joined)
    return {atom: _common(system, group) for atom, group in pool.items() if len(group) > 1}


def _common(system: BondedSystem, atoms: frozenset[int]) -> str:
    """What the names of all atoms begin with, and a star."""
    letters = zip(*(system.graph.names[atom] for atom in atoms), strict=False)
    same = itertools.takewhile(lambda column: len(set(column)) == 1, letters)
    return "".join(column[0] for column in same) + "*"


def _equal_pairs(system: BondedSystem, centre: int, colours: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """Two equal neighbours of a planar centre whose third one differs."""
    around = system.neighbours(centre)
    if len(around) != 3 or system.united_ch(centre):
        return
    for k in range(3):
        first, second = around[(k + 1) % 3], around[(k + 2) % 3]
        if colours[first] == colours[second] != colours[around[k]]:
            yield first, second


def _branch(system: BondedSystem, start: int, without: int) -> dict[int, int]:
    """Atoms beyond ``without`` and how many bonds they are away from ``start``; stops where it is too large."""
    found, shell = {start: 0}, [start]
    while shell and len(found) <= LARGEST_BRANCH:
        shell = [j for i in shell for j in system.neighbours(i) if j not in found and j != without]
        found |= {atom: max(found.values()) + 1 for atom in shell}
    return found
