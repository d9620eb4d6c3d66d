"""Minima of a surface on a periodic grid and the lowest passes between them.

Cells flow to their lowest neighbour, which splits the grid into one catchment per local minimum; the lowest pass
between two catchments joins them. Only minima and passes are walked one by one, never the cells.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ccg_gmx.free_energy.torsion_grid import Basin, grid
from ccg_gmx.records import FloatArray, FreeEnergySurface, IntArray
from ccg_gmx.units import DEGREES_PER_RADIAN


@dataclass(frozen=True)
class Minimum:
    """A local minimum.

    Attributes:
        degrees: where, per torsion.
        f: kT above the global minimum.
        error: standard error of f there, kT; nan where unknown.
        depth: kT to climb before a lower minimum can be reached; inf when none can be (the global one; an island).
    """

    degrees: tuple[float, ...]
    f: float
    error: float
    depth: float


@dataclass(frozen=True)
class Barrier:
    """The lowest pass between the deepest points of two basins.

    Attributes:
        first: name of one basin.
        second: name of the other.
        f: height of the pass above the global minimum, kT; inf when no path of visited cells joins them.
        forward: height above the deepest point of the first basin, kT.
        backward: height above that of the second, kT.
    """

    first: str
    second: str
    f: float
    forward: float
    backward: float


def minima(surface: FreeEnergySurface, min_depth: float = 1.0, cap_kT: float = 15.0) -> list[Minimum]:
    """Local minima at least ``min_depth`` kT deep, the lowest first; noise makes many shallower ones.

    Args:
        surface: periodic in all axes.
        min_depth: kT.
        cap_kT: leave out minima higher than this, which are mostly bins visited once.
    """
    f, labels, passes = _landscape(surface.f)
    depth = dict.fromkeys(np.unique(labels[labels >= 0]).tolist(), np.inf)
    root = {cell: cell for cell in depth}
    for height, a, b in passes:
        low, high = sorted((_find(root, a), _find(root, b)), key=lambda cell: (f[cell], cell))
        if low != high:
            depth[high], root[high] = height - f[high], low
    points = grid(len(surface.f), surface.f.ndim) * DEGREES_PER_RADIAN
    deep = sorted((cell for cell in depth if depth[cell] >= min_depth and f[cell] <= cap_kT), key=lambda cell: f[cell])
    error = surface.error.ravel()
    return [
        Minimum(tuple(float(x) for x in points[cell]), float(f[cell]), float(error[cell]), float(depth[cell]))
        for cell in deep
    ]


def barriers(surface: FreeEnergySurface, basins: Sequence[Basin]) -> list[Barrier]:
    """Lowest pass between every two basins, along paths that may cross diagonally between cells.

    Args:
        surface: periodic in all axes.
        basins: boxes; each stands for its lowest point. A box with no visited cell has no barrier, and is left out.

    Raises:
        CcgError: if a basin names other torsions.
    """
    f, labels, passes = _landscape(surface.f)
    points = grid(len(surface.f), surface.f.ndim)
    lowest = {}
    for basin in basins:
        cells = np.flatnonzero(basin.mask(points, surface.names) & np.isfinite(f))
        if cells.size:
            lowest[basin.name] = int(cells[np.argmin(f[cells])])
    found = []
    for first, second in itertools.combinations(lowest, 2):
        ends = f[lowest[first]], f[lowest[second]]
        height = max(_pass_height(labels, passes, lowest[first], lowest[second]), *ends)
        found.append(Barrier(first, second, float(height), float(height - ends[0]), float(height - ends[1])))
    return found


def _pass_height(labels: IntArray, passes: list[tuple[float, int, int]], a: int, b: int) -> float:
    start, end = int(labels[a]), int(labels[b])
    if start == end:
        return -np.inf
    root = {cell: cell for cell in np.unique(labels[labels >= 0]).tolist()}
    for height, one, other in passes:
        root[_find(root, one)] = _find(root, other)
        if _find(root, start) == _find(root, end):
            return height
    return np.inf


def _find(root: dict[int, int], cell: int) -> int:
    while root[cell] != cell:
        root[cell] = root[root[cell]]
        cell = root[cell]
    return cell


def _landscape(values: FloatArray) -> tuple[FloatArray, IntArray, list[tuple[float, int, int]]]:
    """Flat f, the minimum that each cell flows to (-1: never visited), and (height, a, b) of all passes, rising."""
    index = np.arange(values.size).reshape(values.shape)
    f = values.ravel()
    axes = tuple(range(values.ndim))
    shifts = [shift for shift in itertools.product((-1, 0, 1), repeat=values.ndim) if any(shift)]
    neighbours = np.stack([np.roll(index, shift, axes).ravel() for shift in shifts])
    best = neighbours[np.argmin(f[neighbours], axis=0), index.ravel()]
    target = np.where(f[best] < f, best, index.ravel())
    while not np.array_equal(target, target[target]):
        target = target[target]
    labels = np.where(np.isfinite(f), target, -1)
    a, b = np.broadcast_to(labels, neighbours.shape), labels[neighbours]
    border = (a < b) & (a >= 0)
    height = np.maximum(np.broadcast_to(f, neighbours.shape), f[neighbours])[border]
    order = np.lexsort((height, b[border], a[border]))
    rows = np.stack([a[border], b[border]], axis=-1)[order]
    fresh = np.ones(len(rows), dtype=bool)
    fresh[1:] = (rows[1:] != rows[:-1]).any(axis=1)
    passes = zip(height[order][fresh].tolist(), *rows[fresh].T.tolist(), strict=True)
    return f, labels, sorted(passes)
