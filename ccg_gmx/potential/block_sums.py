"""Sums over frames in blocks of equal length, in memory that does not grow with their number."""

from __future__ import annotations

import numpy as np

from ccg_gmx.records import FloatArray

MOST_BLOCKS = 32
"""Blocks at the end: between 16 and 31. Few enough to be longer than correlations, enough for an error of 15 %."""


class BlockSums:
    """Adds arrays frame by frame; when the blocks are all full, neighbours are joined and blocks are twice as long.

    Args:
        shape: of what one frame adds.
        most: largest number of blocks, even.
    """

    def __init__(self, shape: tuple[int, ...], most: int = MOST_BLOCKS) -> None:
        self._blocks = np.zeros((most, *shape))
        self._full = 0  # blocks that are complete
        self._inside = 0  # frames in the block that is not
        self.length = 1
        """Frames in a block."""

    @property
    def room(self) -> int:
        """Frames that the present block still takes."""
        return self.length - self._inside

    def add(self, value: FloatArray, frames: int = 1) -> None:
        """Add one frame's array, or the sum over several that the present block has room for."""
        if not 0 < frames <= self.room:
            raise ValueError(f"{frames} frames where there is room for {self.room}")
        self._blocks[self._full] += value
        self._inside += frames
        if self._inside == self.length:
            self._full, self._inside = self._full + 1, 0
        if self._full == len(self._blocks):
            joined = self._blocks[0::2] + self._blocks[1::2]
            self._blocks[: len(joined)] = joined
            self._blocks[len(joined) :] = 0.0
            self._full, self.length = len(joined), 2 * self.length

    @property
    def frames(self) -> int:
        """Frames added so far."""
        return self._full * self.length + self._inside

    @property
    def total(self) -> FloatArray:
        """Sum over all frames."""
        return np.asarray(self._blocks.sum(axis=0))

    @property
    def full(self) -> FloatArray:
        """``[B, ...]`` sums of the complete blocks."""
        return self._blocks[: self._full]

    @property
    def mean(self) -> FloatArray:
        """Mean over all frames."""
        return self.total / max(self.frames, 1)

    def error_of_mean(self) -> FloatArray:
        """Standard error of :attr:`mean` from the scatter of the complete blocks; nan with fewer than two."""
        if self._full < 2:
            return np.full(self._blocks.shape[1:], np.nan)
        return np.asarray(np.std(self.full / self.length, axis=0, ddof=1) / np.sqrt(self._full))
