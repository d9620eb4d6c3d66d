"""Real Fourier basis on the torus: products of 1, cos k s, sin k s over the axes."""

from __future__ import annotations

from functools import reduce

import numpy as np

from ccg_gmx.free_energy.torsion_grid import grid_points
from ccg_gmx.records import FloatArray


class FourierBasis:
    """All products of one-dimensional waves up to ``order``; coefficient 0 is the constant.

    Attributes:
        order: highest wave number per axis.
        dims: number of torsions.
        size: number of functions, ``(2 order + 1) ** dims``.
    """

    def __init__(self, order: int, dims: int) -> None:
        self.order, self.dims = order, dims
        self.size = (2 * order + 1) ** dims

    def design(self, s: FloatArray) -> FloatArray:
        """``[M, size]`` values at ``s [M, dims]`` radians."""
        return self._products([self._waves(s[:, axis]) for axis in range(self.dims)])

    def gradient(self, s: FloatArray, coefficients: FloatArray) -> FloatArray:
        """``[M, dims]`` derivative of the sum with those coefficients, per radian."""
        waves = [self._waves(s[:, axis]) for axis in range(self.dims)]
        slopes = [self._slopes(s[:, axis]) for axis in range(self.dims)]
        columns = []
        for axis in range(self.dims):
            factors = [slopes[other] if other == axis else waves[other] for other in range(self.dims)]
            columns.append(self._products(factors) @ coefficients)
        return np.stack(columns, axis=-1)

    def on_grid(self, n: int, coefficients: FloatArray) -> FloatArray:
        """``[n] * dims`` sum with those coefficients at the grid points, one axis at a time."""
        waves = self._waves(grid_points(n))
        out = coefficients.reshape((2 * self.order + 1,) * self.dims)
        for axis in range(self.dims):
            out = np.moveaxis(np.tensordot(waves, out, axes=(1, axis)), 0, axis)
        return np.ascontiguousarray(out)

    def grid_design(self, n: int) -> FloatArray:
        """``[n**dims, size]`` values at all grid points, the last axis fastest."""
        waves = self._waves(grid_points(n))
        out = waves
        for _ in range(self.dims - 1):
            out = np.asarray(np.kron(out, waves), dtype=np.float64)
        return out

    def wave_number(self) -> FloatArray:
        """``[size]`` length of the wave vector of each function."""
        k = np.concatenate([[0], np.arange(1, self.order + 1), np.arange(1, self.order + 1)]).astype(np.float64)
        axes = np.meshgrid(*[k] * self.dims, indexing="ij")
        return np.sqrt(sum(axis.ravel() ** 2 for axis in axes))

    def _waves(self, angle: FloatArray) -> FloatArray:
        phase = angle[:, None] * np.arange(1, self.order + 1)
        return np.concatenate([np.ones((len(angle), 1)), np.cos(phase), np.sin(phase)], axis=1)

    def _slopes(self, angle: FloatArray) -> FloatArray:
        k = np.arange(1, self.order + 1)
        phase = angle[:, None] * k
        return np.concatenate([np.zeros((len(angle), 1)), -k * np.sin(phase), k * np.cos(phase)], axis=1)

    @staticmethod
    def _products(factors: list[FloatArray]) -> FloatArray:
        return reduce(lambda a, b: (a[:, :, None] * b[:, None, :]).reshape(len(a), -1), factors)
