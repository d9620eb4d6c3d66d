# mypy: ignore-errors
"""Compiled loops of the mapping: molecules made whole and weighted sums over atoms, one pass over the frames."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ccg_gmx.molecule.kernel_lanes import compiled
from ccg_gmx.records import FloatArray, IntArray


class Sparse(NamedTuple):
    """Rows of a matrix without its zeros.

    Attributes:
        starts: ``[n + 1]`` where each row begins.
        columns: column of each entry.
        values: the entries.
    """

    starts: IntArray
    columns: IntArray
    values: FloatArray


def sparse_rows(matrix: FloatArray) -> Sparse:
    """Return the entries of ``[n, N]`` that are not zero."""
    rows, columns = np.nonzero(matrix)
    starts = np.searchsorted(rows, np.arange(len(matrix) + 1))
    return Sparse(starts.astype(np.int64), columns.astype(np.int64), matrix[rows, columns].astype(np.float64))


@compiled
def map_positions(
    frames, boxes, order, partner, starts, columns, values, first_atom, n_atoms, count, first_bead, beads
):
    """Write bead positions ``[T, n, 3]`` of ``count`` molecules into ``beads``.

    Atoms of ``frames [T, N, 3]`` are placed in ``order``, each at the periodic image nearest to its ``partner``. The
    box rows are triangular: whole turns of z are removed first, then of y, then of x, which is exact for pairs closer
    than half the diagonal in each direction (as :func:`ccg_gmx.molecule.trajectory.make_whole`). Sums in float64.
    """
    whole = np.empty((n_atoms, 3))
    for t in range(frames.shape[0]):
        box = boxes[t]
        for copy in range(count):
            shift = first_atom + copy * n_atoms
            for atom in order:
                for k in range(3):
                    whole[atom, k] = frames[t, shift + atom, k]
                other = partner[atom]
                if other == atom:
                    continue
                for axis in range(2, -1, -1):
                    length = box[axis, axis]
                    distance = whole[atom, axis] - whole[other, axis]
                    if length > 0.0 and abs(distance) > 0.5 * length:
                        turns = np.rint(distance / length)
                        for k in range(axis + 1):
                            whole[atom, k] -= turns * box[axis, k]
            for row in range(starts.shape[0] - 1):
                x = y = z = 0.0
                for entry in range(starts[row], starts[row + 1]):
                    atom, value = columns[entry], values[entry]
                    x += value * whole[atom, 0]
                    y += value * whole[atom, 1]
                    z += value * whole[atom, 2]
                bead = first_bead + copy * (starts.shape[0] - 1) + row
                beads[t, bead, 0], beads[t, bead, 1], beads[t, bead, 2] = x, y, z


@compiled
def map_forces(forces, starts, columns, values, first_atom, n_atoms, count, first_bead, beads):
    """Write the weighted sums of ``forces [T, N, 3]`` over the atoms of each bead into ``beads [T, n, 3]``."""
    n_rows = starts.shape[0] - 1
    for t in range(forces.shape[0]):
        for copy in range(count):
            shift = first_atom + copy * n_atoms
            for row in range(n_rows):
                x = y = z = 0.0
                for entry in range(starts[row], starts[row + 1]):
                    atom, value = shift + columns[entry], values[entry]
                    x += value * forces[t, atom, 0]
                    y += value * forces[t, atom, 1]
                    z += value * forces[t, atom, 2]
                bead = first_bead + copy * n_rows + row
                beads[t, bead, 0], beads[t, bead, 1], beads[t, bead, 2] = x, y, z
