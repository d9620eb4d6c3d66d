"""The bond graph of one molecule: neighbours, connectedness, equivalent atoms, stereocentres."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ccg_gmx.errors import TopologyError

MASS_TOLERANCE_AMU = 1e-3
"""Atoms whose masses agree within this count as the same element (and isotope)."""


@dataclass(frozen=True)
class BondGraph:
    """Atoms and bonds of one molecule.

    Attributes:
        neighbours: for each atom its bonded atoms (0-based), ascending.
        masses: ``[N]`` amu; equal masses mean the same element.
        names: ``[N]`` atom names.
    """

    neighbours: tuple[tuple[int, ...], ...]
    masses: tuple[float, ...]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.neighbours)

    def degree(self, atom: int) -> int:
        """Number of atoms bonded to ``atom``."""
        return len(self.neighbours[atom])

    def same_element(self, atoms: Sequence[int]) -> bool:
        """Whether all ``atoms`` have the same mass."""
        masses = [self.masses[atom] for atom in atoms]
        return max(masses) - min(masses) <= MASS_TOLERANCE_AMU

    def label(self, atom: int) -> str:
        """Name and 1-based number: ``C5``, or ``CH3.1`` where the name itself ends in a digit."""
        name = self.names[atom]
        return f"{name}{'.' if name[-1:].isdigit() else ''}{atom + 1}"

    def labels(self, atoms: Sequence[int], separator: str = "-") -> str:
        """Labels of several atoms, joined."""
        return separator.join(self.label(atom) for atom in atoms)


def build_bond_graph(
    bonds: ArrayLike, n_atoms: int, masses: ArrayLike, names: Sequence[str], *, connected: bool = True
) -> BondGraph:
    """Check a bond list and index it by atom.

    Args:
        bonds: ``[n, 2]`` bonded atoms, 0-based; duplicates are allowed.
        n_atoms: number of atoms N.
        masses: ``[N]`` amu.
        names: ``[N]`` atom names.
        connected: whether several molecules are an error.

    Raises:
        TopologyError: an index outside the molecule, wrong lengths, or a molecule in several pieces.
    """
    pairs = np.asarray(bonds, dtype=np.int64).reshape(-1, 2)
    amu = np.asarray(masses, dtype=np.float64)
    if amu.shape != (n_atoms,) or len(names) != n_atoms:
        raise TopologyError(
            f"{amu.size} masses and {len(names)} names for {n_atoms} atoms",
            expected="one mass and one name per atom",
            remedy="take bonds, masses and names from the same topology",
        )
    if pairs.size and (pairs.min() < 0 or pairs.max() >= n_atoms):
        raise TopologyError(
            f"a bond between atoms {pairs.min() + 1} .. {pairs.max() + 1} in a molecule of {n_atoms} atoms",
            expected=f"atom numbers 1 .. {n_atoms}",
            remedy="take bonds and atoms from the same topology",
        )
    found: list[set[int]] = [set() for _ in range(n_atoms)]
    for i, j in pairs.tolist():
        if i != j:
            found[i].add(j)
            found[j].add(i)
    graph = BondGraph(tuple(tuple(sorted(atoms)) for atoms in found), tuple(amu.tolist()), tuple(names))
    if connected:
        _check_connected(graph)
    return graph


def _check_connected(graph: BondGraph) -> None:
    reached, frontier = {0}, [0]
    while frontier:
        new = {j for i in frontier for j in graph.neighbours[i]} - reached
        reached |= new
        frontier = sorted(new)
    if len(reached) < len(graph):
        missing = next(atom for atom in range(len(graph)) if atom not in reached)
        raise TopologyError(
            f"only {len(reached)} of {len(graph)} atoms are connected by bonds, {graph.label(missing)} is not",
            expected="one molecule",
            remedy="choose a single molecule, or add the missing bonds to its topology",
        )


def equivalence_classes(graph: BondGraph, rounds: int | None = None) -> tuple[int, ...]:
    """Colour the atoms so that atoms of different colour are constitutionally different.

    Colour refinement (one-dimensional Weisfeiler-Lehman, the core of the Morgan algorithm,
    doi:10.1021/c160017a018) from the masses, until it no longer splits a class.

    Args:
        graph: the molecule.
        rounds: bonds to look around an atom at most; None looks as far as the molecule reaches, which takes as many
            rounds as the molecule is long.

    Returns:
        ``[N]`` colours; equal colours mean equivalent atoms, up to what colour refinement can tell.
    """
    colours = _rank([(round(mass / MASS_TOLERANCE_AMU),) for mass in graph.masses])
    for _ in range(len(graph) if rounds is None else rounds):
        keys = [(colours[i], *sorted(colours[j] for j in graph.neighbours[i])) for i in range(len(graph))]
        refined = _rank(keys)
        if max(refined) == max(colours):
            return refined
        colours = refined
    return colours


def _rank(keys: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    order = {key: rank for rank, key in enumerate(sorted(set(keys)))}
    return tuple(order[key] for key in keys)


def stereocentres(graph: BondGraph, rounds: int | None = None) -> tuple[tuple[int, int, int, int], ...]:
    """Neighbours of every atom with four constitutionally different branches.

    Centres that differ in nothing but the handedness of their branches (meso forms) are not found.

    Args:
        graph: the molecule.
        rounds: as in :func:`equivalence_classes`.

    Returns:
        One tuple of four neighbours (0-based) per stereocentre.
    """
    colours = equivalence_classes(graph, rounds)
    return tuple(
        (around[0], around[1], around[2], around[3])
        for around in graph.neighbours
        if len(around) == 4 and len({colours[atom] for atom in around}) == 4
    )
