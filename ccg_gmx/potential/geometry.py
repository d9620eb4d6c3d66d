"""Values of bonded terms over frames, and their derivatives by the beads."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ccg_gmx.molecule.coarse_topology import CoarseTopology
from ccg_gmx.potential import bead_kernel
from ccg_gmx.potential.pair_list import boxes_of
from ccg_gmx.records import BeadFrames, FloatArray, IntArray

_KERNELS = {
    "bond": bead_kernel.bond_geometry,
    "angle": bead_kernel.angle_geometry,
    "dihedral": bead_kernel.dihedral_geometry,
}


@dataclass(frozen=True)
class TermGeometry:
    """One set of m bonded terms over T frames.

    Attributes:
        beads: ``[m, k]``.
        values: ``[T, m]`` nm or radians.
        gradients: ``[T, m, k, 3]`` derivative of the value by each bead's position.
    """

    beads: IntArray
    values: FloatArray
    gradients: FloatArray


class BondedGeometry:
    """Geometry of the bonded terms of a topology in the same frames.

    Args:
        topology: beads of each term.
        frames: positions and boxes.
    """

    def __init__(self, topology: CoarseTopology, frames: BeadFrames) -> None:
        self.topology = topology
        self.positions = np.ascontiguousarray(frames.positions, dtype=np.float64)
        self.boxes, self.inverses = boxes_of(frames)

    def term(self, name: str) -> tuple[TermGeometry, ...]:
        """Geometry of a term by name; two for a ``cmap``, its first four and its last four beads."""
        kind, beads = self.topology.kind(name), self.topology.bonded_beads(name)
        if kind == "cmap":
            return self._of("dihedral", beads[:, :4]), self._of("dihedral", beads[:, 1:])
        return (self._of(kind, beads),)

    def _of(self, kind: str, beads: IntArray) -> TermGeometry:
        beads = np.ascontiguousarray(beads)
        values, gradients = _KERNELS[kind](self.positions, beads, self.boxes, self.inverses)
        return TermGeometry(beads, values, gradients)

    def add_forces(self, part: TermGeometry, slopes: FloatArray, forces: FloatArray, virial: FloatArray) -> None:
        """Add what ``dV/dx = slopes [T, m]`` does to ``forces [T, n, 3]`` and ``virial [T, 3, 3]``."""
        arrays = (self.positions, part.beads, self.boxes, self.inverses, slopes, part.gradients)
        bead_kernel.add_bonded(*arrays, forces, virial)
