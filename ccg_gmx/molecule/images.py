"""Periodic images: shortest vectors, and points with their images near the cell.

Boxes have GROMACS' lower triangular form, rows are box vectors; a box of zeros means no periodicity.
"""

from __future__ import annotations

import itertools

import numpy as np
import torch
from torch import Tensor

from ccg_gmx.records import FloatArray, IntArray

TURNS = np.array(list(itertools.product((-1, 0, 1), repeat=3)))
"""``[27, 3]`` turns along the box vectors to a cell and its neighbours."""


def shortest_vectors(vectors: Tensor, box: Tensor | None) -> Tensor:
    """Images of vectors ``[3, ..., T]`` nm by z, then y, then x: the shortest ones below half the box.

    Args:
        vectors: between any points.
        box: ``[T, 3, 3]`` nm; None: no periodicity.
    """
    if box is None:
        return vectors
    for axis in (2, 1, 0):
        edge = box[:, axis, axis]
        turns = torch.where(edge > 0.0, torch.round(vectors[axis] / edge), 0.0)
        vectors = vectors - turns * box[:, axis].T.reshape(3, *(1,) * (vectors.ndim - 2), -1)
    return vectors


def points_with_images(points: FloatArray, box: FloatArray, reach: float) -> tuple[FloatArray, FloatArray, IntArray]:
    """Points moved into the cell, and all images within ``reach`` of what they span there.

    Args:
        points: ``[n, 3]`` nm.
        box: ``[3, 3]`` nm.
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
