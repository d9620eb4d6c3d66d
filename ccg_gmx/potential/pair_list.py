"""Pairs of beads within a cut-off: any box, exclusions, cells where they pay."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ccg_gmx.errors import SettingsError, TrajectoryError
from ccg_gmx.potential import bead_kernel
from ccg_gmx.records import BeadFrames, FloatArray, IntArray

CELLS_FROM = 200
"""Beads from which cells are sorted; below, looking at every pair is as fast."""


def face_distances(box: FloatArray) -> FloatArray:
    """Distances between opposite faces of boxes ``[..., 3, 3]`` (rows are vectors), ``[..., 3]`` nm."""
    return np.asarray(1.0 / np.linalg.norm(np.linalg.inv(box), axis=-2))


def boxes_of(frames: BeadFrames, cutoff: float = 0.0) -> tuple[FloatArray, FloatArray]:
    """Boxes and their inverses, ``[T, 3, 3]`` each; frames without a box get one in which no image is ever near.

    Args:
        frames: the frames.
        cutoff: largest distance that will be looked at, nm.

    Raises:
        TrajectoryError: a box is flat.
        SettingsError: the cut-off exceeds half the smallest distance between two opposite faces.
    """
    if frames.box is None:
        low, high = frames.positions.min(axis=1), frames.positions.max(axis=1)
        # Rounding may move only what is further apart than half the box, and nothing is.
        extents = 2.0 * (high - low).max(axis=1) + 2.0 * cutoff + 1.0
        boxes = np.eye(3) * extents[:, None, None]
        return boxes, np.linalg.inv(boxes)
    boxes = np.ascontiguousarray(frames.box, dtype=np.float64)
    if not np.all(np.abs(np.linalg.det(boxes)) > 0):
        raise TrajectoryError(
            "a box of no volume", expected="three box vectors", remedy="write the box or leave it out"
        )
    half = 0.5 * float(face_distances(boxes).min())
    if cutoff > half:
        raise SettingsError(
            f"a range of {cutoff:g} nm where half the box is {half:.4g} nm",
            expected="at most half the smallest distance between opposite faces",
            remedy="shorten the range (--r-max) or use a larger box",
        )
    return boxes, np.linalg.inv(boxes)


@dataclass(frozen=True)
class Pairs:
    """Pairs of one frame.

    Attributes:
        index: ``[p, 2]`` beads i < j.
        vectors: ``[p, 3]`` nm, ``r_i - r_j``, nearest image.
    """

    index: IntArray
    vectors: FloatArray

    @property
    def distances(self) -> FloatArray:
        """``[p]`` nm."""
        return np.asarray(np.linalg.norm(self.vectors, axis=1))


class PairFinder:
    """Finds the pairs of frame after frame; keeps its arrays between frames.

    Args:
        n_beads: beads n of a frame.
        cutoff: nm; pairs closer than this are found.
        excluded: ``[m, 2]`` pairs that are not wanted.
    """

    def __init__(self, n_beads: int, cutoff: float, excluded: IntArray) -> None:
        self.cutoff = float(cutoff)
        pairs = np.sort(np.asarray(excluded, dtype=np.int64).reshape(-1, 2), axis=1)
        pairs = pairs[np.argsort(pairs[:, 0], kind="stable")]
        self._starts = np.searchsorted(pairs[:, 0], np.arange(n_beads + 1)).astype(np.int64)
        self._partners = np.ascontiguousarray(pairs[:, 1])
        self._allocate(64 * n_beads)

    def _allocate(self, capacity: int) -> None:
        self._index, self._vectors = np.empty((capacity, 2), dtype=np.int64), np.empty((capacity, 3))

    def __call__(self, frame: FloatArray, box: FloatArray, inverse: FloatArray) -> Pairs:
        """Give the pairs of positions ``[n, 3]``; the arrays are overwritten by the next call."""
        lists = (self._starts, self._partners)
        cells = np.floor(face_distances(box) / self.cutoff).astype(np.int64) if self.cutoff > 0 else np.zeros(3)
        by_cells = len(frame) >= CELLS_FROM and bool(np.all(cells >= 3))
        # Many tiny cells help nobody: about one bead in each is enough.
        cells = np.minimum(cells, max(3, int(len(frame) ** (1 / 3))))
        while True:
            arrays = (*lists, self._index, self._vectors)
            if by_cells:
                count = bead_kernel.cell_pairs(frame, box, inverse, self.cutoff, cells, *arrays)
            else:
                count = bead_kernel.all_pairs(frame, box, inverse, self.cutoff, *arrays)
            if count <= len(self._index):
                return Pairs(self._index[:count], self._vectors[:count])
            self._allocate(count + count // 4)

    def over(self, frames: BeadFrames) -> Iterator[Pairs]:
        """Give the pairs of each frame in turn."""
        boxes, inverses = boxes_of(frames, self.cutoff)
        positions = np.ascontiguousarray(frames.positions, dtype=np.float64)
        for frame, box, inverse in zip(positions, boxes, inverses, strict=True):
            yield self(frame, box, inverse)
