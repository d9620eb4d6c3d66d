"""Compiled sum of Gaussian hills on a grid of up to three axes; fewer axes are padded in front with axes of one point.

Each hill reaches the points of a box around it. Coordinates wrap on periodic axes, every point counts once.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from ccg_gmx.records import FloatArray, IntArray

CUTOFF = 6.25
"""A stretched hill ends where half its squared scaled distance reaches this (PLUMED's DP2CUTOFF)."""

STRETCH = 1.0 / (1.0 - math.exp(-CUTOFF))
"""Factor of a stretched Gaussian."""

OFFSET = -math.exp(-CUTOFF) / (1.0 - math.exp(-CUTOFF))
"""What is added to it, so that it ends at zero (Bussi, Tribello 2019, doi:10.1007/978-1-4939-9608-7_21)."""


@njit(cache=True)  # type: ignore[misc, unused-ignore]
def _along(points: FloatArray, period: float, first: int, count: int, center: float, delta: FloatArray) -> None:
    """Distances of ``count`` points from ``first`` on, wrapped; a period of 0 means none."""
    n = len(points)
    for i in range(count):
        away = points[(first + i) % n] - center
        if period > 0.0:
            away -= period * np.rint(away / period)
        delta[i] = away


@njit(cache=True)  # type: ignore[misc, unused-ignore]
def add_diagonal(
    total: FloatArray,
    points: tuple[FloatArray, FloatArray, FloatArray],
    periods: FloatArray,
    centers: FloatArray,
    widths: FloatArray,
    heights: FloatArray,
    first: IntArray,
    count: IntArray,
    stretched: bool,
) -> None:
    """Add hills along the axes to ``total [n0, n1, n2]``; exponentials are products of those of the axes.

    Args:
        total: summed up in place.
        points: of the axes.
        periods: ``[3]`` 0 where there is none.
        centers: ``[h, 3]``.
        widths: ``[h, 3]`` standard deviations.
        heights: ``[h]``.
        first: ``[h, 3]`` first point of the box of each hill, on the grid.
        count: ``[h, 3]`` points of the box.
        stretched: whether hills end at zero.
    """
    n0, n1, n2 = total.shape
    longest = max(n0, n1, n2)
    half = np.empty((3, longest))
    gauss = np.empty((3, longest))
    for h in range(len(heights)):
        _along(points[0], periods[0], first[h, 0], count[h, 0], centers[h, 0], half[0])
        _along(points[1], periods[1], first[h, 1], count[h, 1], centers[h, 1], half[1])
        _along(points[2], periods[2], first[h, 2], count[h, 2], centers[h, 2], half[2])
        for a in range(3):
            for i in range(count[h, a]):
                scaled = half[a, i] / widths[h, a]
                half[a, i] = 0.5 * scaled * scaled
                gauss[a, i] = math.exp(-half[a, i])
        for i in range(count[h, 0]):
            row0 = (first[h, 0] + i) % n0
            for j in range(count[h, 1]):
                d01 = half[0, i] + half[1, j]
                if stretched and d01 >= CUTOFF:
                    continue
                g01 = heights[h] * gauss[0, i] * gauss[1, j]
                row1 = (first[h, 1] + j) % n1
                k2 = first[h, 2]
                for k in range(count[h, 2]):
                    if not stretched:
                        total[row0, row1, k2] += g01 * gauss[2, k]
                    elif d01 + half[2, k] < CUTOFF:
                        total[row0, row1, k2] += STRETCH * g01 * gauss[2, k] + heights[h] * OFFSET
                    k2 += 1
                    if k2 == n2:
                        k2 = 0


@njit(cache=True)  # type: ignore[misc, unused-ignore]
def add_tilted(
    total: FloatArray,
    points: tuple[FloatArray, FloatArray, FloatArray],
    periods: FloatArray,
    centers: FloatArray,
    metrics: FloatArray,
    heights: FloatArray,
    first: IntArray,
    count: IntArray,
    stretched: bool,
) -> None:
    """Add hills of any covariance; ``metrics [h, 3, 3]`` are inverse covariances, the rest as in `add_diagonal`."""
    n0, n1, n2 = total.shape
    delta = np.empty((3, max(n0, n1, n2)))
    for h in range(len(heights)):
        _along(points[0], periods[0], first[h, 0], count[h, 0], centers[h, 0], delta[0])
        _along(points[1], periods[1], first[h, 1], count[h, 1], centers[h, 1], delta[1])
        _along(points[2], periods[2], first[h, 2], count[h, 2], centers[h, 2], delta[2])
        m = metrics[h]
        for i in range(count[h, 0]):
            x = delta[0, i]
            row0 = (first[h, 0] + i) % n0
            for j in range(count[h, 1]):
                y = delta[1, j]
                row1 = (first[h, 1] + j) % n1
                fixed = m[0, 0] * x * x + 2.0 * m[0, 1] * x * y + m[1, 1] * y * y
                linear = 2.0 * (m[0, 2] * x + m[1, 2] * y)
                for k in range(count[h, 2]):
                    z = delta[2, k]
                    half = 0.5 * (fixed + linear * z + m[2, 2] * z * z)
                    if not stretched:
                        total[row0, row1, (first[h, 2] + k) % n2] += heights[h] * math.exp(-half)
                    elif half < CUTOFF:
                        value = STRETCH * math.exp(-half) + OFFSET
                        total[row0, row1, (first[h, 2] + k) % n2] += heights[h] * value
