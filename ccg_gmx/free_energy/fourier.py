"""Real Fourier basis on the torus: products of 1, cos k s, sin k s over the axes.

The products in which given torsions take part up to a wave number span exactly the plane waves cos(k.s), sin(k.s)
whose components are bounded in the same way, whatever their signs. Products are preferred because they need no
complex numbers, and because sums over product grids factorise axis by axis.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import reduce
from itertools import combinations

import numpy as np

from ccg_gmx.free_energy.torsion_grid import grid_points
from ccg_gmx.records import FloatArray, IntArray

BLOCK_ROWS = 4096


def row_blocks(count: int) -> Iterator[slice]:
    """Slices of rows small enough that a block of a design matrix stays in tens of megabytes."""
    for start in range(0, count, BLOCK_ROWS):
        yield slice(start, min(start + BLOCK_ROWS, count))


class FourierBasis:
    """Products of one-dimensional waves, each number of torsions that take part with its own highest wave number.

    Coefficient 0 is the constant; then come the waves of one torsion, of two, and so on. A full tensor basis of order
    8 has 83521 functions in four torsions; limits (8, 6, 2, 1) leave 1201.

    Attributes:
        order: highest wave number of any axis.
        dims: number of torsions.
        limits: highest wave number of functions in which 1, 2, ... torsions take part; 0 is none.
        size: number of functions, ``(2 order + 1) ** dims`` when all limits are equal.
        index: ``[size, dims]`` one-dimensional function on each axis: 0 is 1, k is cos k s, order + k is sin k s.
    """

    def __init__(self, order: int, dims: int, limits: Sequence[int] | None = None) -> None:
        """Choose the functions.

        Args:
            order: highest wave number per axis.
            dims: number of torsions.
            limits: as the attribute; at most ``order`` each, missing ones are 0. Default: ``order`` for all.
        """
        self.order, self.dims = order, dims
        given = (order,) * dims if limits is None else tuple(limits)
        self.limits = tuple(min(order, limit) for limit in (*given, *(0,) * dims)[:dims])
        self._groups: list[tuple[tuple[int, ...], slice]] = []
        rows = [np.zeros((1, dims), dtype=np.int64)]
        self.size = 1
        for axes in (axes for parts in range(1, dims + 1) for axes in combinations(range(dims), parts)):
            members = self._members(axes)
            self._groups.append((axes, slice(self.size, self.size + len(members))))
            rows.append(members)
            self.size += len(members)
        self.index: IntArray = np.concatenate(rows)

    def design(self, s: FloatArray) -> FloatArray:
        """``[M, size]`` values at ``s [M, dims]`` radians."""
        out = np.empty((len(s), self.size))
        for rows in row_blocks(len(s)):
            waves = [self.waves(s[rows, axis]) for axis in range(self.dims)]
            block = out[rows]
            block[:, 0] = 1.0
            for axes, columns in self._groups:
                block[:, columns] = _products([waves[axis][:, self._numbers(len(axes))] for axis in axes])
        return out

    def gradient(self, s: FloatArray, coefficients: FloatArray) -> FloatArray:
        """``[M, dims]`` derivative of the sum with those coefficients, per radian."""
        out = np.zeros((len(s), self.dims))
        for rows in row_blocks(len(s)):
            waves = [self.waves(s[rows, axis]) for axis in range(self.dims)]
            slopes = [self._slopes(s[rows, axis]) for axis in range(self.dims)]
            for axes, columns in self._groups:
                numbers = self._numbers(len(axes))
                for axis in axes:
                    parts = [(slopes if other == axis else waves)[other][:, numbers] for other in axes]
                    out[rows, axis] += _products(parts) @ coefficients[columns]
        return out

    def waves(self, angle: FloatArray) -> FloatArray:
        """``[n, 2 order + 1]`` one-dimensional functions 1, cos k s, sin k s at ``angle [n]`` radians."""
        phase = angle[:, None] * np.arange(1, self.order + 1)
        return np.concatenate([np.ones((len(angle), 1)), np.cos(phase), np.sin(phase)], axis=1)

    def tensor(self, coefficients: FloatArray) -> FloatArray:
        """``[2 order + 1] * dims`` coefficients as a dense array, zero where the basis has no function."""
        dense = np.zeros((2 * self.order + 1,) * self.dims)
        dense[tuple(self.index.T)] = coefficients
        return dense

    def on_nodes(self, nodes: Sequence[FloatArray], coefficients: FloatArray) -> FloatArray:
        """``[n_0, n_1, ...]`` sum with those coefficients on a product grid, one axis at a time.

        Args:
            nodes: angles on each axis, ``[n_i]`` radians.
            coefficients: ``[size]``.
        """
        # Each contraction takes the first axis and puts the result last, so that d of them restore the order.
        return reduce(lambda out, at: np.tensordot(out, self.waves(at), (0, 1)), nodes, self.tensor(coefficients))

    def moments(self, nodes: Sequence[FloatArray], weights: FloatArray) -> FloatArray:
        """``[size]`` sums of ``weights [n_0, n_1, ...]`` times each function over a product grid; see ``on_nodes``."""
        dense = reduce(lambda out, at: np.tensordot(out, self.waves(at), (0, 0)), nodes, weights)
        return dense[tuple(self.index.T)]

    def on_grid(self, n: int, coefficients: FloatArray) -> FloatArray:
        """``[n] * dims`` sum with those coefficients at the grid points."""
        return np.ascontiguousarray(self.on_nodes([grid_points(n)] * self.dims, coefficients))

    def grid_design(self, n: int) -> FloatArray:
        """``[n**dims, size]`` values at all grid points, the last axis fastest."""
        waves = self.waves(grid_points(n))
        shape = (n,) * self.dims
        out = np.ones((*shape, self.size))
        for axis in range(self.dims):
            out *= waves[:, self.index[:, axis]].reshape(*(n if a == axis else 1 for a in range(self.dims)), self.size)
        return out.reshape(-1, self.size)

    def wave_number(self) -> FloatArray:
        """``[size]`` length of the wave vector of each function."""
        k = np.where(self.index > self.order, self.index - self.order, self.index)
        return np.sqrt((k.astype(np.float64) ** 2).sum(axis=1))

    def _numbers(self, parts: int) -> IntArray:
        """One-dimensional functions that an axis has in a product of that many torsions."""
        k = np.arange(1, self.limits[parts - 1] + 1)
        return np.concatenate([k, self.order + k])

    def _members(self, axes: tuple[int, ...]) -> IntArray:
        """``[number, dims]`` index of all functions in which just these axes take part, the last axis fastest."""
        mesh = np.meshgrid(*[self._numbers(len(axes))] * len(axes), indexing="ij")
        out = np.zeros((mesh[0].size, self.dims), dtype=np.int64)
        for axis, numbers in zip(axes, mesh, strict=True):
            out[:, axis] = numbers.ravel()
        return out

    def _slopes(self, angle: FloatArray) -> FloatArray:
        k = np.arange(1, self.order + 1)
        phase = angle[:, None] * k
        return np.concatenate([np.zeros((len(angle), 1)), -k * np.sin(phase), k * np.cos(phase)], axis=1)


def _products(factors: list[FloatArray]) -> FloatArray:
    """``[M, product of n_i]`` all products of one column of each factor ``[M, n_i]``, the last factor fastest."""
    return reduce(lambda a, b: (a[:, :, None] * b[:, None, :]).reshape(len(a), -1), factors)
