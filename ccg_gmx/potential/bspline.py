"""Uniform cubic B-splines: weights of the pieces that overlap a point, on a line and on a circle.

Local, so design matrices are sparse; twice continuously differentiable, so forces are smooth; and non-negative weights
that add up to one, so a bound on the coefficients bounds the function (C. de Boor, A Practical Guide to Splines, 1978,
doi:10.1007/978-1-4612-6333-3).
"""

from __future__ import annotations

import math

import numpy as np
from scipy import sparse

from ccg_gmx.records import FloatArray, IntArray

# Coefficients of the four local pieces in powers 1, t, t^2, t^3 of the position t in a knot interval.
_PIECES = np.array([[1, -3, 3, -1], [4, 0, -6, 3], [1, 3, 3, -3], [0, 0, 0, 1]], dtype=np.float64) / 6.0


def cubic_weights(t: FloatArray, order: int = 0) -> FloatArray:
    """Weights of the four cubic B-splines that overlap a knot interval.

    Args:
        t: ``[M]`` position in the interval, in [0, 1].
        order: 0 for values, 1 or 2 for derivatives by ``t``.

    Returns:
        ``[M, 4]`` weights; for order 0 they are non-negative and add up to one.
    """
    powers = np.arange(order, 4)
    factors = np.array([math.perm(int(p), order) for p in powers], dtype=np.float64)
    monomials = factors * np.asarray(t, dtype=np.float64)[:, None] ** (powers - order)
    return monomials @ _PIECES[:, order:].T


def circle_weights(angle: FloatArray, knots: int, order: int = 0) -> tuple[FloatArray, IntArray]:
    """Weights and coefficient numbers of the splines that overlap each angle; knots at ``-pi + i * 2 pi / knots``.

    Args:
        angle: ``[M]`` radians, any turn.
        knots: on the whole circle.
        order: derivative by the angle.

    Returns:
        ``[M, 4]`` weights (per radian^order) and ``[M, 4]`` columns.
    """
    spacing = 2.0 * math.pi / knots
    position = np.mod((np.asarray(angle, dtype=np.float64) + math.pi) / spacing, knots)
    first = np.minimum(position.astype(np.int64), knots - 1)
    weights = cubic_weights(position - first, order) / spacing**order
    return weights, np.mod(first[:, None] + np.arange(-1, 3), knots)


def circle_roughness(knots: int, scale: float) -> sparse.csr_array:
    """``[knots, knots]`` precision of second differences with standard deviation ``scale``: only a constant is free."""
    shift = np.roll(np.eye(knots), 1, axis=1)
    second = sparse.csr_array(shift + shift.T - 2.0 * np.eye(knots))
    return sparse.csr_array((second.T @ second) / scale**2)


def sparse_rows(weights: FloatArray, columns: IntArray, size: int) -> sparse.csr_array:
    """Rows of equally many (weight, column) entries as a sparse matrix; repeated columns add up."""
    rows, width = weights.shape
    pointer = np.arange(0, rows * width + 1, width)
    return sparse.csr_array((weights.ravel(), columns.ravel(), pointer), shape=(rows, size))
