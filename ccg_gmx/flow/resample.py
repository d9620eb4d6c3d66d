"""Block bootstrap over fine runs: which frames a resample of the data takes."""

from __future__ import annotations

import numpy as np

from ccg_gmx.errors import CcgError
from ccg_gmx.records import IntArray


def resample_blocks(run: IntArray, blocks_per_run: int, rng: np.random.Generator) -> IntArray:
    """Resample frames in blocks of neighbours: every run keeps its number of frames and its place in the order.

    Circular block bootstrap (Politis and Romano 1992, in "Exploring the Limits of Bootstrap", Wiley): blocks start at
    any frame and go on from a run's last frame to its first, so that every frame is taken once on average. Blocks
    must be longer than the correlation of the frames; the runs are taken as independent, and none is left out.

    Args:
        run: ``[T]`` label of the run each frame is from; frames of a run in order of time.
        blocks_per_run: blocks that make up a run, at least 2; a run of fewer frames is resampled frame by frame.
        rng: source of the places of the blocks.

    Returns:
        ``[T]`` indices of the frames taken; ``run[indices]`` equals ``run``.

    Raises:
        CcgError: if a run would be a single block, which is no resample at all.
    """
    if blocks_per_run < 2:
        raise CcgError(
            f"a bootstrap with {blocks_per_run} blocks per run", expected="at least 2", remedy="10 to 50 are usual"
        )
    taken = np.empty(len(run), dtype=np.int64)
    for label in np.unique(run):
        frames = np.flatnonzero(run == label)
        count = len(frames)
        length = -(-count // blocks_per_run)
        starts = rng.integers(count, size=-(-count // length))
        places = (starts[:, None] + np.arange(length)).ravel()[:count] % count
        taken[frames] = frames[places]
    return taken
