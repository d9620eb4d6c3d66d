"""Torsions of any four atoms straight from a trajectory: only the atoms needed, across periodic boundaries.

The vector between two atoms of a torsion is summed along the shortest chain of bonds between them, each bond by the
nearest image. So molecules need not be whole, and no other atom of a solvated system is looked at.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ccg_gmx.errors import TopologyError
from ccg_gmx.molecule.images import reduced_vectors
from ccg_gmx.molecule.topology import Topology
from ccg_gmx.records import FloatArray, IntArray


@dataclass(frozen=True)
class TorsionPaths:
    """Torsions as sums of steps between neighbouring atoms.

    Attributes:
        atoms: ``[m]`` atoms needed, 0-based, rising.
        steps: ``[S, 2]`` from and to, as places in ``atoms``.
        legs: ``[3 d, S]`` 1 where a step belongs to the first, second or third leg of a torsion.
        unbonded: ``[S]`` True for a step between atoms that no chain of bonds joins; its nearest image is searched.
    """

    atoms: IntArray
    steps: IntArray
    legs: FloatArray
    unbonded: np.ndarray

    @property
    def size(self) -> int:
        """Number of torsions."""
        return len(self.legs) // 3

    def values(self, positions: FloatArray, box: FloatArray | None) -> FloatArray:
        """The same as :meth:`angles`, the name that whatever is measured frame by frame has."""
        return self.angles(positions, box)

    def angles(self, positions: FloatArray, box: FloatArray | None) -> FloatArray:
        """Torsions (IUPAC sign, as GROMACS has it; 180 degrees is trans).

        Args:
            positions: ``[T, m, 3]`` nm, of ``atoms`` only.
            box: ``[T, 3, 3]`` nm, rows are box vectors in GROMACS' lower triangular form; None: no periodicity.

        Returns:
            ``[T, d]`` radians in [-pi, pi].
        """
        vectors = positions[:, self.steps[:, 1]] - positions[:, self.steps[:, 0]]
        if box is not None and np.any(box):
            vectors = reduced_vectors(vectors, box)
            if self.unbonded.any():
                vectors[:, self.unbonded] = _nearest(vectors[:, self.unbonded], box)
        legs = np.einsum("ls,tsx->tlx", self.legs, vectors).reshape(len(positions), -1, 3, 3)
        first, second, third = legs[:, :, 0], legs[:, :, 1], legs[:, :, 2]
        normal = np.cross(second, third)
        sine = np.linalg.norm(second, axis=-1) * (first * normal).sum(axis=-1)
        return np.arctan2(sine, (np.cross(first, second) * normal).sum(axis=-1))


def torsion_paths(topology: Topology, torsions: dict[str, Sequence[int]]) -> TorsionPaths:
    """Find the chains of bonds that join the atoms of torsions.

    Args:
        topology: atoms and bonds.
        torsions: name -> four atoms, 1-based.

    Raises:
        TopologyError: not four different atoms, or an atom beyond the topology.
    """
    quadruples = [_checked(topology, name, numbers) for name, numbers in torsions.items()]
    neighbours: dict[int, list[int]] = {}
    for one, other in topology.bonds.tolist():
        neighbours.setdefault(one, []).append(other)
        neighbours.setdefault(other, []).append(one)
    ends = [pair for quadruple in quadruples for pair in itertools.pairwise(quadruple)]
    chains = [_chain(neighbours, *pair) for pair in ends]
    walks = [chain or pair for chain, pair in zip(chains, ends, strict=True)]
    atoms = np.unique([atom for walk in walks for atom in walk])
    steps: list[tuple[int, int]] = []
    unbonded: list[bool] = []
    legs = np.zeros((len(walks), sum(len(walk) - 1 for walk in walks)))
    for leg, (walk, chain) in enumerate(zip(walks, chains, strict=True)):
        legs[leg, len(steps) : len(steps) + len(walk) - 1] = 1.0
        steps += itertools.pairwise(np.searchsorted(atoms, walk).tolist())
        unbonded += [not chain] * (len(walk) - 1)
    return TorsionPaths(atoms, np.array(steps, dtype=np.int64), legs, np.array(unbonded))


def _checked(topology: Topology, name: str, numbers: Sequence[int]) -> tuple[int, ...]:
    given, valid = ", ".join(map(str, numbers)), f"four different atoms numbered 1..{topology.n_atoms}"
    remedy = "count atoms from 1 as in the .gro file"
    if len(numbers) != 4 or len(set(numbers)) != 4:
        raise TopologyError(f"torsion {name} = {given}", expected=valid, remedy=remedy)
    outside = [number for number in numbers if not 1 <= number <= topology.n_atoms]
    if outside:
        found = f"torsion {name} = {given}, but there is no atom {', '.join(map(str, outside))} in the .tpr"
        raise TopologyError(found, expected=valid, remedy=remedy)
    return tuple(number - 1 for number in numbers)


def _chain(neighbours: dict[int, list[int]], start: int, end: int) -> tuple[int, ...] | None:
    """Shortest chain of bonded atoms from start to end, both included; None between molecules."""
    origin, queue = {start: start}, deque([start])
    while queue and end not in origin:
        atom = queue.popleft()
        for other in neighbours.get(atom, []):
            if other not in origin:
                origin[other] = atom
                queue.append(other)
    if end not in origin:
        return None
    chain = [end]
    while chain[-1] != start:
        chain.append(origin[chain[-1]])
    return tuple(reversed(chain))


def nearest_image(vectors: FloatArray, box: FloatArray) -> FloatArray:
    """Shortest image of vectors ``[T, S, 3]`` nm in boxes ``[T, 3, 3]`` nm, rows as in GROMACS' triangular form."""
    return _nearest(reduced_vectors(vectors, box), box)


def _nearest(vectors: FloatArray, box: FloatArray) -> FloatArray:
    """Nearest image of reduced vectors in any triclinic box: one of 27 neighbours."""
    cells = np.array(list(itertools.product((-1.0, 0.0, 1.0), repeat=3)))
    images = vectors[:, :, None, :] + (cells @ box)[:, None, :, :]
    best = np.argmin((images**2).sum(axis=-1), axis=-1)
    return np.take_along_axis(images, best[:, :, None, None], axis=2)[:, :, 0]
