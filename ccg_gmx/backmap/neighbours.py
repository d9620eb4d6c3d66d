"""Nearest further beads of every bead, by rings of cells, so that the cost is linear in the beads.

Cells divide the box, of whatever shape, or what the beads span where there is no box. Frames are shared among threads.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray

from ccg_gmx.molecule.kernel_lanes import compiled
from ccg_gmx.records import FloatArray, IntArray

EDGE_NM = 0.8
"""Edge of cells, at least: rings of cells around a bead are searched until what is nearest is known."""
MOST_CELLS = 50
"""Cells along an axis, at most; with more they are wider."""
FEW = 48
"""So many beads are compared one by one."""


def nearest_beads(
    beads: FloatArray,
    box: FloatArray | None,
    residues: IntArray,
    molecules: IntArray,
    *,
    count: int,
    excluded: int,
    cutoff: float,
) -> tuple[IntArray, FloatArray]:
    """Find the nearest beads that are no neighbours in the chain.

    Args:
        beads: ``[T, n, 3]`` nm; frames with numbers that are not finite have no neighbours.
        box: ``[T, 3, 3]`` nm, whose nearest images count; None, or zeros for a frame: none.
        residues: ``[n]`` residue of each bead.
        molecules: ``[n]`` its molecule.
        count: how many.
        excluded: beads of so many residues on either side in the same molecule do not count.
        cutoff: nm; beads beyond do not count.

    Returns:
        Numbers ``[T, n, count]`` from the nearest on, and squared distances; 0 and inf where there are fewer.
    """
    frames, n = beads.shape[:2]
    numbers = np.zeros((frames, n, count), dtype=np.int64)
    squares = np.full((frames, n, count), np.inf)
    boxes = np.zeros((frames, 3, 3)) if box is None else box
    finite: NDArray[np.bool_] = np.all(np.isfinite(beads), axis=(1, 2))
    if not finite.all():
        beads = np.where(finite[:, None, None], beads, 0.0)
    threads = max(1, min(torch.get_num_threads(), frames))
    edges = np.linspace(0, frames, threads + 1).astype(np.int64)

    def search(part: int) -> None:
        own = slice(edges[part], edges[part + 1])
        _search(beads[own], boxes[own], residues, molecules, excluded, cutoff, numbers[own], squares[own])

    if threads == 1:
        search(0)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(search, range(threads)))
    squares[~finite] = np.inf
    return numbers, squares


@compiled
def _search(beads, boxes, residues, molecules, excluded, cutoff, numbers, squares):  # type: ignore[no-untyped-def]
    frames, n = beads.shape[:2]
    every = np.arange(n)
    for t in range(frames):
        points, box = beads[t], boxes[t]
        if n <= FEW:
            for i in range(n):
                _insert(
                    i, every, 0, n, points, box, residues, molecules, excluded, cutoff, numbers[t, i], squares[t, i]
                )
        else:
            _search_cells(points, box, residues, molecules, excluded, cutoff, every, numbers[t], squares[t])


@compiled
def _search_cells(  # type: ignore[no-untyped-def]
    points, box, residues, molecules, excluded, cutoff, every, numbers, squares
):  # fmt: skip
    """Search rings of cells around each bead, until those beyond hold nothing nearer than what is found."""
    n = len(points)
    periodic = box[0, 0] > 0.0
    edge, cells, shape, first, members = _cells(points, box)
    narrow = periodic and shape.min() < 2 * np.ceil(cutoff / edge) + 1  # rings would meet on the other side
    for i in range(n):
        best, square = numbers[i], squares[i]
        if narrow:
            _insert(i, every, 0, n, points, box, residues, molecules, excluded, cutoff, best, square)
            continue
        ring = 0
        while (ring - 1) * edge < cutoff and (ring == 0 or square[-1] > ((ring - 1) * edge) ** 2):
            for a in range(-ring, ring + 1):
                for b in range(-ring, ring + 1):
                    shell = max(abs(a), abs(b)) == ring
                    for c in range(-ring, ring + 1, 1 if shell else 2 * ring):
                        cell = _neighbour(cells[i, 0] + a, cells[i, 1] + b, cells[i, 2] + c, shape, periodic)
                        if cell < 0 or first[cell] == first[cell + 1]:
                            continue
                        _insert(
                            i, members, first[cell], first[cell + 1], points, box, residues, molecules, excluded,
                            cutoff, best, square,
                        )  # fmt: skip
            ring += 1


@compiled
def _cells(points, box):  # type: ignore[no-untyped-def]
    """Least edge, cell ``[n, 3]`` of each point, cells along each axis, and the members of all, with their starts."""
    n = len(points)
    edge, cells, shape = EDGE_NM, np.zeros((n, 3), dtype=np.int64), np.ones(3, dtype=np.int64)
    if box[0, 0] > 0.0:
        inverse = np.linalg.inv(box)
        for axis in range(3):
            # A column of the inverse is the normal of the cell's faces over their distance.
            shape[axis] = max(1, min(MOST_CELLS, int(1.0 / np.sqrt((inverse[:, axis] ** 2).sum()) / edge)))
        for i in range(n):
            for axis in range(3):
                part = (
                    points[i, 0] * inverse[0, axis] + points[i, 1] * inverse[1, axis] + points[i, 2] * inverse[2, axis]
                )
                cells[i, axis] = min(int((part - np.floor(part)) * shape[axis]), shape[axis] - 1)
    else:
        low = np.array([points[:, axis].min() for axis in range(3)])
        span = max([points[:, axis].max() - low[axis] for axis in range(3)])
        edge = max(edge, span / (MOST_CELLS - 1))
        for axis in range(3):
            for i in range(n):
                cells[i, axis] = int((points[i, axis] - low[axis]) / edge)
                shape[axis] = max(shape[axis], cells[i, axis] + 1)
    first = np.zeros(shape[0] * shape[1] * shape[2] + 1, dtype=np.int64)
    for i in range(n):
        first[_number(cells[i], shape) + 1] += 1
    first = np.cumsum(first)
    members, filled = np.empty(n, dtype=np.int64), first[:-1].copy()
    for i in range(n):
        cell = _number(cells[i], shape)
        members[filled[cell]] = i
        filled[cell] += 1
    return edge, cells, shape, first, members


@compiled
def _number(cell, shape):  # type: ignore[no-untyped-def]
    return (cell[0] * shape[1] + cell[1]) * shape[2] + cell[2]


@compiled
def _neighbour(x, y, z, shape, periodic):  # type: ignore[no-untyped-def]
    """Number of a cell; -1 where there is none."""
    if periodic:
        x, y, z = x % shape[0], y % shape[1], z % shape[2]
    elif x < 0 or y < 0 or z < 0 or x >= shape[0] or y >= shape[1] or z >= shape[2]:
        return -1
    return (x * shape[1] + y) * shape[2] + z


@compiled
def _insert(  # type: ignore[no-untyped-def]
    i, members, start, stop, points, box, residues, molecules, excluded, cutoff, numbers, squares
):  # fmt: skip
    """Put beads, some of the members, among the nearest of bead i."""
    last, limit = len(squares) - 1, cutoff * cutoff
    x0, y0, z0 = points[i, 0], points[i, 1], points[i, 2]
    periodic, worst = box[0, 0] > 0.0, squares[last]
    for k in range(start, stop):
        j = members[k]
        x, y, z = points[j, 0] - x0, points[j, 1] - y0, points[j, 2] - z0
        if periodic:
            turns = np.round(z / box[2, 2])
            x, y, z = x - turns * box[2, 0], y - turns * box[2, 1], z - turns * box[2, 2]
            turns = np.round(y / box[1, 1])
            x, y = x - turns * box[1, 0], y - turns * box[1, 1]
            x -= np.round(x / box[0, 0]) * box[0, 0]
        square = x * x + y * y + z * z
        if square >= worst or square >= limit:
            continue
        if molecules[j] == molecules[i] and abs(residues[j] - residues[i]) <= excluded:
            continue
        place = last
        while place > 0 and squares[place - 1] > square:
            squares[place], numbers[place] = squares[place - 1], numbers[place - 1]
            place -= 1
        squares[place], numbers[place] = square, j
        worst = squares[last]
