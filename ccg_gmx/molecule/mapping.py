"""Which atoms make a bead, and the maps of positions and forces from atoms to beads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from ccg_gmx.errors import TopologyError
from ccg_gmx.records import FloatArray, IntArray

Kind = Literal["atom", "com", "cog"]


@dataclass(frozen=True)
class BeadMapping:
    """A linear map from N atoms to n beads. Every atom belongs to at most one bead.

    Attributes:
        names: ``n`` bead names.
        atoms: for each bead its atoms, 0-based.
        weights: for each bead the weights of its atoms, positive, with sum 1.
        n_atoms: number of atoms N.
        kind: ``atom`` (one atom each), ``com`` (centre of mass) or ``cog`` (centre of geometry).
    """

    names: tuple[str, ...]
    atoms: tuple[tuple[int, ...], ...]
    weights: tuple[tuple[float, ...], ...]
    n_atoms: int
    kind: Kind

    @property
    def matrix(self) -> FloatArray:
        """``[n, N]`` weights; bead positions are ``matrix @ positions``."""
        matrix = np.zeros((len(self.names), self.n_atoms))
        for row, atoms, weights in zip(matrix, self.atoms, self.weights, strict=True):
            row[list(atoms)] = weights
        return matrix

    @property
    def bead_atoms(self) -> IntArray:
        """``[n]`` the atom (0-based) of each bead.

        Raises:
            TopologyError: a bead is more than one atom.
        """
        if self.kind != "atom":
            raise TopologyError(
                f"beads of kind {self.kind}", expected="beads that are atoms", remedy="choose one atom for each bead"
            )
        return np.array([atoms[0] for atoms in self.atoms], dtype=np.int64)

    def map_positions(self, frames: FloatArray) -> FloatArray:
        """Bead positions ``[T, n, 3]`` nm of frames ``[T, N, 3]`` nm (molecule whole)."""
        if self.kind == "atom":
            return self._checked(frames)[:, self.bead_atoms]
        return self.matrix @ self._checked(frames)

    def map_forces(self, forces: FloatArray) -> FloatArray:
        """Bead forces ``[T, n, 3]`` kJ/mol/nm of atomistic forces ``[T, N, 3]`` kJ/mol/nm.

        The force on a bead is the sum of the forces on its atoms. Its mean at given beads is the mean force of the
        bead free energy, because every atom belongs to at most one bead and beads hold no constrained bonds
        (Noid et al., doi:10.1063/1.2938860).
        """
        if self.kind == "atom":
            return self._checked(forces)[:, self.bead_atoms]
        return (self.matrix > 0).astype(np.float64) @ self._checked(forces)

    def _checked(self, values: FloatArray) -> FloatArray:
        if values.ndim != 3 or values.shape[1:] != (self.n_atoms, 3):
            raise ValueError(f"frames of shape {values.shape}, expected [T, {self.n_atoms}, 3]")
        return values


def bead_mapping_from_atoms(names: Sequence[str], indices: Sequence[int], n_atoms: int) -> BeadMapping:
    """Beads that are single atoms.

    Args:
        names: bead names.
        indices: the atom of each bead, 1-based as in GROMACS files.
        n_atoms: number of atoms N.

    Raises:
        TopologyError: an atom outside 1 .. N, an atom used twice, or names that do not match.
    """
    groups = [[index] for index in indices]
    return _mapping(names, groups, [[1.0]] * len(groups), n_atoms, "atom")


def bead_mapping_from_groups(
    names: Sequence[str], groups: Sequence[Sequence[int]], masses: ArrayLike, kind: Literal["com", "cog"] = "com"
) -> BeadMapping:
    """Beads that are centres of groups of atoms.

    Args:
        names: bead names.
        groups: the atoms of each bead, 1-based as in GROMACS files.
        masses: ``[N]`` amu.
        kind: ``com`` centre of mass, ``cog`` centre of geometry.

    Raises:
        TopologyError: an atom outside 1 .. N or in two beads, an empty bead, or names that do not match.
    """
    amu = np.asarray(masses, dtype=np.float64)
    _check(names, groups, len(amu))
    weights = []
    for group in groups:
        share = amu[np.array(group) - 1] if kind == "com" else np.ones(len(group))
        weights.append((share / share.sum()).tolist())
    return _mapping(names, groups, weights, len(amu), kind)


def _mapping(
    names: Sequence[str],
    groups: Sequence[Sequence[int]],
    weights: Sequence[Sequence[float]],
    n_atoms: int,
    kind: Kind,
) -> BeadMapping:
    _check(names, groups, n_atoms)
    atoms = tuple(tuple(int(index) - 1 for index in group) for group in groups)
    return BeadMapping(tuple(names), atoms, tuple(tuple(w) for w in weights), n_atoms, kind)


def _check(names: Sequence[str], groups: Sequence[Sequence[int]], n_atoms: int) -> None:
    remedy = "correct the mapping; atom numbers start at 1, as in GROMACS files"
    if len(names) != len(groups) or len(set(names)) < len(names) or not groups:
        raise TopologyError(
            f"{len(set(names))} different bead names for {len(groups)} beads", expected="one name each", remedy=remedy
        )
    seen: dict[int, str] = {}
    for name, group in zip(names, groups, strict=True):
        if not group:
            raise TopologyError(f"bead {name} without atoms", expected="at least one atom", remedy=remedy)
        for index in group:
            if not 1 <= index <= n_atoms:
                raise TopologyError(f"atom {index} in bead {name}", expected=f"1 .. {n_atoms}", remedy=remedy)
            if index in seen:
                raise TopologyError(
                    f"atom {index} twice, in beads {seen[index]} and {name}", expected="each atom once", remedy=remedy
                )
            seen[index] = name
