"""What every exporter starts from: a model, a topology and frames that belong together, in a box."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ccg_gmx.errors import SettingsError, TopologyError, TrajectoryError
from ccg_gmx.molecule.coarse_topology import CoarseTopology
from ccg_gmx.potential.model import CoarseModel
from ccg_gmx.records import BeadFrames, FloatArray

_EMPTY_BOX_NM = 6.0  # smallest box around a molecule that has none: twice the usual cut-offs and more


@dataclass(frozen=True)
class CoarseSystem:
    """A model, its topology and frames of it.

    Attributes:
        model: the potentials.
        topology: the beads.
        positions: ``[T, n, 3]`` nm.
        box: ``[T, 3, 3]`` nm, rows are box vectors; a large cube where the frames had none.
    """

    model: CoarseModel
    topology: CoarseTopology
    positions: FloatArray
    box: FloatArray

    @property
    def n_molecules(self) -> int:
        """Number of molecules."""
        return sum(count for _, count in self.topology.molecules)

    def names(self, kind: str) -> list[str]:
        """Names of the bonded terms of a kind, in the topology's order."""
        return [name for name in self.topology.bonded_names if self.topology.kind(name) == kind]


def coarse_system(model: CoarseModel, topology: CoarseTopology, frames: BeadFrames) -> CoarseSystem:
    """Check that model, topology and frames belong together; give frames without a box a large one.

    Args:
        model: the potentials.
        topology: the beads.
        frames: frames of all its beads.

    Raises:
        SettingsError: if model and topology do not belong together, or a cut-off is longer than half the box.
        TopologyError: if a name is too long for .gro.
        TrajectoryError: if the frames have another number of beads, or positions that are no numbers.
    """
    model.check(topology)
    _check_names(topology)
    positions = np.asarray(frames.positions, dtype=np.float64)
    if positions.ndim != 3 or positions.shape[1:] != (topology.n_beads, 3) or not len(positions):
        raise TrajectoryError(
            f"frames of shape {positions.shape}", expected=f"at least one, of the topology's {topology.n_beads} beads"
        )
    if not np.isfinite(positions).all():
        raise TrajectoryError("a bead position that is not a number", expected="finite positions")
    if frames.box is not None and np.any(frames.box):
        box = np.broadcast_to(np.asarray(frames.box, dtype=np.float64), (len(positions), 3, 3)).copy()
    else:
        positions, box = _boxed(positions, model.cutoff)
    system = CoarseSystem(model, topology, positions, box)
    _check_cutoff(system)
    return system


def _check_names(topology: CoarseTopology) -> None:
    longest = max(map(len, (*topology.bead_names, *topology.residue_names)))
    if longest > 5:
        raise TopologyError(f"a bead or residue name of {longest} characters", expected="at most 5 (.gro format)")


def _boxed(positions: FloatArray, cutoff: float) -> tuple[FloatArray, FloatArray]:
    """Put beads without a box into the middle of a cube in which no bead meets an image."""
    span = float(np.ptp(positions, axis=1).max())
    edge = max(_EMPTY_BOX_NM, np.ceil(2.0 * (span + cutoff) + 1.0))
    middle = 0.5 * (positions.min(axis=1, keepdims=True) + positions.max(axis=1, keepdims=True))
    return positions - middle + 0.5 * edge, np.tile(edge * np.eye(3), (len(positions), 1, 1))


def _check_cutoff(system: CoarseSystem) -> None:
    heights = np.abs(np.linalg.det(system.box)) / _largest_face(system.box)
    if 2.0 * system.model.cutoff > float(heights.min()):
        raise SettingsError(
            f"a pair cut-off of {system.model.cutoff:g} nm in a box {heights.min():.3f} nm high",
            expected="at most half of it (minimum image)",
            remedy="use a larger box or a model with a shorter cut-off",
        )


def _largest_face(box: FloatArray) -> FloatArray:
    faces = [np.linalg.norm(np.cross(box[:, i], box[:, (i + 1) % 3]), axis=1) for i in range(3)]
    return np.max(faces, axis=0)
