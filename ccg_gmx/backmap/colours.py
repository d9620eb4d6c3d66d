"""The order in which blocks of one depth are drawn.

Blocks that share a bead are drawn one after the other, the later seeing the earlier. Blocks of the first colour have
a common neighbour, which must fit between them, so they are divided in the same way once more: in a chain every fourth
block comes first, then those half-way between, then every other one. Any chain needs these three colours, so the number
of passes does not grow with its length.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ccg_gmx.records import IntArray

DIVISIONS = 1
"""So many times the blocks of the first colour are divided."""


def colour_blocks(touched: Sequence[tuple[int, ...]], depths: Sequence[int]) -> list[int]:
    """Colours by turn within a depth: blocks that share a bead differ, and the first colour is divided further."""
    around = _neighbours(touched, depths)
    colours = _greedy(range(len(touched)), around)
    for _ in range(DIVISIONS):
        first = [k for k, colour in enumerate(colours) if colour == 0 and around[k]]
        beyond = {k: {j for i in around[k] for j in around[i]} - {k} for k in range(len(touched))}
        parts = dict(zip(first, _greedy(first, [beyond[k] for k in range(len(touched))]), strict=True))
        most: dict[int, int] = {}
        for k in first:
            most[depths[k]] = max(most.get(depths[k], 0), parts[k])
        colours = [
            parts.get(k, 0) if colour == 0 else colour + most.get(depths[k], 0) for k, colour in enumerate(colours)
        ]
    return colours


def _neighbours(touched: Sequence[tuple[int, ...]], depths: Sequence[int]) -> list[set[int]]:
    """Blocks of the same depth that share a bead, for each block."""
    on: dict[tuple[int, int], list[int]] = {}
    for k, (beads, depth) in enumerate(zip(touched, depths, strict=True)):
        for bead in beads:
            on.setdefault((depth, bead), []).append(k)
    around: list[set[int]] = [set() for _ in touched]
    for members in on.values():
        for k in members:
            around[k].update(members)
    for k, own in enumerate(around):
        own.discard(k)
    return around


def _greedy(blocks: Sequence[int], around: Sequence[set[int]]) -> list[int]:
    """Smallest colour that no earlier neighbour has, for each of the blocks."""
    found: dict[int, int] = {}
    for k in blocks:
        taken = {found[j] for j in around[k] if j in found}
        found[k] = next(c for c in range(len(taken) + 1) if c not in taken)
    return list(found.values())


def passes_of(depths: Sequence[int], colours: Sequence[int]) -> tuple[IntArray, int]:
    """Passes ``[2, n]`` by (depth, colour), colours rising and falling, and their number."""
    most: dict[int, int] = {}
    for depth, colour in zip(depths, colours, strict=True):
        most[depth] = max(most.get(depth, 0), colour)
    start, total = {}, 0
    for depth in sorted(most):
        start[depth], total = total, total + most[depth] + 1
    rising = [start[depth] + colour for depth, colour in zip(depths, colours, strict=True)]
    falling = [start[depth] + most[depth] - colour for depth, colour in zip(depths, colours, strict=True)]
    return np.array([rising, falling], dtype=np.int64).reshape(2, len(depths)), total
