"""Energies, forces and virials of bead frames in a coarse model, compiled."""

from __future__ import annotations

from dataclasses import dataclass

from ccg_gmx.molecule.coarse_topology import CoarseTopology
from ccg_gmx.potential.model import CoarseModel
from ccg_gmx.records import BeadFrames, FloatArray


@dataclass(frozen=True)
class Energies:
    """What a coarse model says about T frames of n beads.

    Attributes:
        terms: ``[T]`` kJ/mol of each bonded term by name and of each pair of types as ``pair A-B``.
        total: ``[T]`` kJ/mol.
        forces: ``[T, n, 3]`` kJ/mol/nm.
        virial: ``[T, 3, 3]`` kJ/mol, ``sum_ij F_ij (outer) r_ij`` (the pressure is ``(2 E_kin + trace) / 3V``);
            GROMACS' virial is -1/2 of it.
    """

    terms: dict[str, FloatArray]
    total: FloatArray
    forces: FloatArray
    virial: FloatArray


def energies_and_forces(model: CoarseModel, topology: CoarseTopology, frames: BeadFrames) -> Energies:
    """Evaluate a model on frames.

    Boxes may be triclinic; distances are to the nearest image, so the cut-off must not exceed half the shortest
    distance between faces. Excluded pairs do not interact.

    Args:
        model: the potential.
        topology: beads, bonded terms, exclusions.
        frames: positions and boxes; forces in them are not looked at.

    Raises:
        SettingsError: model, topology and frames do not fit, or the box is too small.
    """
    raise NotImplementedError
