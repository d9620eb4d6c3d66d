"""Periodic images: vectors between nearest ones, and points with their images near the cell.

Boxes have GROMACS' lower triangular form, rows are box vectors.
"""

from __future__ import annotations

import itertools

import numpy as np

from ccg_gmx.records import FloatArray, IntArray

TURNS = np.array(list(itertools.product((-1, 0, 1), repeat=3)))
"""``[27, 3]`` turns along the box vectors to a cell and its neighbours."""


def reduced_vectors(vectors: FloatArray, box: FloatArray) -> FloatArray:
    """Vectors ``[T, m, 3]`` less box vectors of ``[T, 3, 3]``: z, then y, then x; nearest images below half the box."""
    for axis in (2, 1, 0):
        turns = np.round(vectors[:, :, axis] / box[:, None, axis, axis])
        vectors = vectors - turns[:, :, None] * box[:, None, axis, :]
    return vectors


def points_with_images(points: FloatArray, box: FloatArray, reach: float) -> tuple[FloatArray, FloatArray, IntArray]:
    """Points moved into the cell, and all images within ``reach`` of what they span there.

    Args:
        points: ``[n, 3]`` nm.
        box: ``[3, 3]`` nm, of zeros for no periodicity.
        reach: nm.

    Returns:
        ``[n, 3]`` points in the cell; ``[m, 3]`` those first, then images; ``[m]`` the number of each one's point.
    """
    number = np.arange(len(points))
    if not np.any(box):
        return points, points, number
    inside = np.array(points, dtype=np.float64)
    for axis in (2, 1, 0):
        inside -= np.floor(inside[:, axis] / box[axis, axis])[:, None] * box[axis]
    beyond = TURNS[np.any(TURNS != 0, axis=1)] @ box
    images = inside[None] + beyond[:, None]
    low, high = inside.min(axis=0) - reach, inside.max(axis=0) + reach
    kept = ((images >= low) & (images <= high)).all(axis=2)
    return inside, np.concatenate([inside, images[kept]]), np.concatenate([number, np.nonzero(kept)[1]])
