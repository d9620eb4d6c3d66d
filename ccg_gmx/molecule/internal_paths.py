"""Torsions and distances of any atoms straight from a trajectory, across periodic boundaries as PLUMED has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ccg_gmx.errors import TopologyError
from ccg_gmx.molecule.topology import Topology
from ccg_gmx.molecule.torsion_paths import TorsionPaths, nearest_image, torsion_paths
from ccg_gmx.records import FloatArray, IntArray


@dataclass(frozen=True)
class InternalPaths:
    """Torsions, then distances.

    Attributes:
        atoms: ``[m]`` atoms needed, 0-based, rising.
        torsions: the torsions; None without any.
        torsion_places: ``[m']`` the torsions' atoms as places in ``atoms``.
        pairs: ``[d, 2]`` atoms of each distance as places in ``atoms``.
    """

    atoms: IntArray
    torsions: TorsionPaths | None
    torsion_places: IntArray
    pairs: IntArray

    @property
    def size(self) -> int:
        """Numbers per frame."""
        return (self.torsions.size if self.torsions else 0) + len(self.pairs)

    def values(self, positions: FloatArray, box: FloatArray | None) -> FloatArray:
        """Measure.

        Args:
            positions: ``[T, m, 3]`` nm, of ``atoms``.
            box: ``[T, 3, 3]`` nm; None: no periodicity.

        Returns:
            ``[T, size]`` radians in [-pi, pi], then nm between nearest images.
        """
        parts = []
        if self.torsions is not None:
            parts.append(self.torsions.angles(positions[:, self.torsion_places], box))
        if len(self.pairs):
            step = positions[:, self.pairs[:, 1]] - positions[:, self.pairs[:, 0]]
            if box is not None and np.any(box):
                step = nearest_image(step, box)
            parts.append(np.linalg.norm(step, axis=-1))
        return np.concatenate(parts, axis=1)


def internal_paths(
    topology: Topology, torsions: Mapping[str, Sequence[int]], distances: Mapping[str, Sequence[int]]
) -> InternalPaths:
    """Prepare torsions and distances.

    Args:
        topology: atoms and bonds.
        torsions: name -> four atoms, 1-based.
        distances: name -> two atoms, 1-based.

    Raises:
        TopologyError: an atom twice in one of them, or beyond the topology.
    """
    paths = torsion_paths(topology, dict(torsions)) if torsions else None
    pairs = np.array([_pair(topology, name, pair) for name, pair in distances.items()], dtype=np.int64).reshape(-1, 2)
    own = paths.atoms if paths is not None else np.zeros(0, np.int64)
    atoms = np.unique(np.concatenate([own, pairs.ravel()]))
    return InternalPaths(atoms, paths, np.searchsorted(atoms, own), np.searchsorted(atoms, pairs))


def _pair(topology: Topology, name: str, atoms: Sequence[int]) -> tuple[int, int]:
    first, second = atoms
    if first == second or not all(1 <= atom <= topology.n_atoms for atom in atoms):
        raise TopologyError(
            f"distance {name} = {first}, {second}",
            expected=f"two different atoms numbered 1..{topology.n_atoms}",
            remedy="count atoms from 1 as in the .gro file",
        )
    return first - 1, second - 1
