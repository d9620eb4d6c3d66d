"""Linear basis of the coarse potential: one cubic spline per bead bond and angle, one periodic grid for the torsions.

Uniform cubic B-splines (C. de Boor, A Practical Guide to Splines, 1978, doi:10.1007/978-1-4612-6333-3): local, so
design matrices are sparse; twice continuously differentiable, so forces are smooth; and non-negative weights that
add up to one, so a bound on the coefficients bounds the function.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import sparse

from ccg_gmx.errors import SettingsError
from ccg_gmx.molecule.coordinate import Coordinate
from ccg_gmx.records import FloatArray

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


def _csr(weights: FloatArray, columns: np.ndarray, size: int) -> sparse.csr_array:
    """Rows of equally many (weight, column) entries as a sparse matrix; repeated columns add up."""
    rows, width = weights.shape
    pointer = np.arange(0, rows * width + 1, width)
    return sparse.csr_array((weights.ravel(), columns.ravel(), pointer), shape=(rows, size))


@dataclass(frozen=True)
class SplineTerm:
    """Cubic spline of one bead bond or angle on the range ``[lo, hi]`` that the data cover.

    Outside, the spline continues quadratically with the value, slope and curvature of its edge; where that curvature
    is below ``min_curvature`` the model (not the basis, whose rows stay linear in the coefficients) adds the
    difference: a bead driven past the data meets a wall, never a ramp down.

    Attributes:
        coordinate: the bond (nm) or angle (radians).
        lo: lower end of the data.
        hi: upper end of the data.
        intervals: number of knot intervals; the term has ``intervals + 3`` coefficients.
        min_curvature: smallest curvature outside, kT/nm^2 or kT/radian^2.
    """

    coordinate: Coordinate
    lo: float
    hi: float
    intervals: int
    min_curvature: float

    def __post_init__(self) -> None:
        """Refuse ranges on which the coordinate or the spline is undefined."""
        if self.coordinate.kind not in ("bond", "angle"):
            raise SettingsError(
                f"spline term on {self.coordinate.kind} {self.coordinate.name}",
                expected="a bead bond or angle; torsions belong to the torsion grid",
            )
        top = math.inf if self.coordinate.kind == "bond" else math.pi
        if not (0.0 <= self.lo < self.hi <= top and math.isfinite(self.hi)):
            raise SettingsError(
                f"range [{self.lo}, {self.hi}] of {self.coordinate.name}",
                expected=f"0 <= lo < hi <= {top:.4g}",
                remedy="check the mapping and the data",
            )
        if self.intervals < 1 or self.min_curvature < 0:
            raise SettingsError(
                f"{self.intervals} intervals and minimum curvature {self.min_curvature} for {self.coordinate.name}",
                expected="at least 1 interval and a curvature of at least 0",
            )

    @classmethod
    def covering(
        cls, coordinate: Coordinate, values: FloatArray, *, intervals: int = 9, margin: float = 0.02
    ) -> SplineTerm:
        """Term whose range covers sampled values.

        A Gaussian sample spans about ten of its standard deviations, so the curvature of the well is about
        ``100 / span^2`` kT; the wall outside is asked to be at least a third as stiff.

        Args:
            coordinate: the bond or angle.
            values: ``[M]`` nm or radians.
            intervals: knot intervals.
            margin: room on either side, as a share of the span.

        Raises:
            SettingsError: if the values span nothing, or leave the coordinate's support.
        """
        low, high = float(np.min(values)), float(np.max(values))
        span = high - low
        top = math.inf if coordinate.kind == "bond" else math.pi
        lo, hi = max(low - margin * span, 0.0), min(high + margin * span, top)
        return cls(coordinate, lo, hi, intervals, 36.0 / span**2 if span > 0 else 0.0)

    @property
    def size(self) -> int:
        """Number of coefficients."""
        return self.intervals + 3

    @property
    def spacing(self) -> float:
        """Knot spacing in nm or radians."""
        return (self.hi - self.lo) / self.intervals

    def design(self, x: FloatArray, order: int = 0) -> sparse.csr_array:
        """Rows that turn coefficients into values (or derivatives) at ``x``, quadratic continuation included.

        Args:
            x: ``[M]`` nm or radians.
            order: 0, 1 or 2, the derivative by ``x``.

        Returns:
            Sparse ``[M, size]``.
        """
        x = np.asarray(x, dtype=np.float64)
        inside = np.minimum(np.maximum(x, self.lo), self.hi)
        position = (inside - self.lo) / self.spacing
        first = np.minimum(position.astype(np.int64), self.intervals - 1)
        beyond = (x - inside)[:, None]
        weights = np.zeros((x.size, 4))
        for k in range(order, 3):  # Taylor polynomial of the edge; only its first term is alive inside
            derivative = cubic_weights(position - first, k) / self.spacing**k
            weights += derivative * beyond ** (k - order) / math.factorial(k - order)
        return _csr(weights, first[:, None] + np.arange(4), self.size)

    def log_jacobian(self, x: FloatArray) -> FloatArray:
        """``ln b^2`` of a bond, ``ln sin(theta)`` of an angle: its factor of the beads' volume element ``[M]``."""
        return 2.0 * np.log(x) if self.coordinate.kind == "bond" else np.log(np.sin(x))

    def log_jacobian_gradient(self, x: FloatArray) -> FloatArray:
        """Derivative of :meth:`log_jacobian` by ``x`` ``[M]``."""
        return 2.0 / np.asarray(x) if self.coordinate.kind == "bond" else 1.0 / np.tan(x)


@dataclass(frozen=True)
class TorsionGrid:
    """Periodic tensor product of cubic B-splines over one or two torsions.

    The knots are ``-pi + i * 2 pi / knots``. Any grid whose number of points is a multiple of ``knots`` therefore
    contains them, and a cubic spline through such a grid (what GROMACS makes of a CMAP) *is* this function again.

    Attributes:
        names: name of each torsion.
        knots: knots per torsion, at least 4.
    """

    names: tuple[str, ...]
    knots: int = 24

    def __post_init__(self) -> None:
        """Refuse what GROMACS has no term for."""
        if len(self.names) not in (1, 2):
            raise SettingsError(
                f"{len(self.names)} torsions in the coarse potential",
                expected="1 (tabulated dihedral) or 2 that share three beads (CMAP)",
            )
        if self.knots < 4:
            raise SettingsError(f"{self.knots} knots per torsion", expected="at least 4")

    @property
    def size(self) -> int:
        """Number of coefficients."""
        return int(self.knots ** len(self.names))

    @property
    def spacing(self) -> float:
        """Knot spacing in radians."""
        return 2.0 * math.pi / self.knots

    def _axis(self, angle: FloatArray, order: int) -> tuple[FloatArray, np.ndarray]:
        position = np.mod((np.asarray(angle, dtype=np.float64) + math.pi) / self.spacing, self.knots)
        first = np.minimum(position.astype(np.int64), self.knots - 1)
        weights = cubic_weights(position - first, order) / self.spacing**order
        return weights, np.mod(first[:, None] + np.arange(-1, 3), self.knots)

    def design(self, s: FloatArray, axis: int | None = None) -> sparse.csr_array:
        """Rows that turn coefficients into values, or into the derivative along one torsion.

        Args:
            s: ``[M, n_s]`` radians.
            axis: torsion to differentiate by, or None for values.

        Returns:
            Sparse ``[M, size]``.
        """
        weights, columns = self._axis(s[:, 0], int(axis == 0))
        for i in range(1, len(self.names)):
            next_weights, next_columns = self._axis(s[:, i], int(axis == i))
            weights = (weights[:, :, None] * next_weights[:, None, :]).reshape(len(s), -1)
            columns = (columns[:, :, None] * self.knots + next_columns[:, None, :]).reshape(len(s), -1)
        return _csr(weights, columns, self.size)

    def on_grid(self, coefficients: FloatArray, n: int, orders: tuple[int, ...] | None = None) -> FloatArray:
        """Values (or derivatives) at the points ``-pi + i * 2 pi / n`` of every torsion.

        Args:
            coefficients: ``[size]``.
            n: points per torsion.
            orders: derivative order per torsion; values by default.

        Returns:
            ``[n]`` or ``[n, n]``.
        """
        values = coefficients.reshape((self.knots,) * len(self.names))
        points = np.linspace(-math.pi, math.pi, n, endpoint=False, dtype=np.float64)
        for i, order in enumerate(orders or (0,) * len(self.names)):
            along = _csr(*self._axis(points, order), self.knots).toarray()
            values = np.moveaxis(np.tensordot(along, values, axes=(1, i)), 0, i)
        return values


@dataclass(frozen=True)
class SeparableBasis:
    """``G(s) + sum_i U_i(b_i)``: the torsion grid's coefficients first, then each term's.

    Attributes:
        terms: one spline term per bead coordinate ``b_i``, in the order of ``b``.
        torsions: the grid over ``s``.
    """

    terms: tuple[SplineTerm, ...]
    torsions: TorsionGrid

    @property
    def n_s(self) -> int:
        """Number of torsions."""
        return len(self.torsions.names)

    @property
    def n_b(self) -> int:
        """Number of bead bonds and angles."""
        return len(self.terms)

    @cached_property
    def blocks(self) -> tuple[slice, ...]:
        """Where the coefficients of the grid (entry 0) and of term i (entry i + 1) lie."""
        ends = np.cumsum([0, self.torsions.size, *(term.size for term in self.terms)])
        return tuple(slice(int(a), int(b)) for a, b in itertools.pairwise(ends))

    @property
    def size(self) -> int:
        """Number of coefficients P."""
        return self.blocks[-1].stop

    def values(self, s: FloatArray, b: FloatArray) -> sparse.csr_array:
        """Design matrix of the values, sparse ``[M, P]``, at ``s [M, n_s]`` radians and ``b [M, n_b]`` nm, radians."""
        parts = [self.torsions.design(s), *(term.design(b[:, i]) for i, term in enumerate(self.terms))]
        return sparse.hstack(parts, format="csr")

    def derivative(self, s: FloatArray, b: FloatArray, i: int) -> sparse.csr_array:
        """Design matrix of the derivative by coordinate ``i`` of (s, b), sparse ``[M, P]``.

        Only one block of columns is alive: that is what makes the basis separable.
        """
        torsion = i < self.n_s
        live = self.torsions.design(s, axis=i) if torsion else self.terms[i - self.n_s].design(b[:, i - self.n_s], 1)
        block = self.blocks[0 if torsion else i - self.n_s + 1]
        return sparse.csr_array((live.data, live.indices + block.start, live.indptr), shape=(len(s), self.size))

    def derivatives(self, s: FloatArray, b: FloatArray) -> tuple[sparse.csr_array, ...]:
        """All ``n_s + n_b`` derivative design matrices, each sparse ``[M, P]``."""
        return tuple(self.derivative(s, b, i) for i in range(self.n_s + self.n_b))

    def log_jacobian(self, b: FloatArray) -> FloatArray:
        """``ln J_beads``: bonds give b^2, angles sin(theta); ``[M]``.

        Cartesian volume of a chain placed bead by bead, rigid motion left out; torsions contribute 1.
        """
        return np.sum([term.log_jacobian(b[:, i]) for i, term in enumerate(self.terms)], axis=0)

    def log_jacobian_gradient(self, b: FloatArray) -> FloatArray:
        """``d ln J_beads / d b``, ``[M, n_b]``."""
        return np.stack([term.log_jacobian_gradient(b[:, i]) for i, term in enumerate(self.terms)], axis=1)

    def roughness(self, torsion_scale: float, term_scale: float) -> sparse.csr_array:
        """Precision matrix ``[P, P]`` of a smooth Gaussian prior on the coefficients.

        Second differences for the periodic grid (nothing is free but a constant); third differences for the terms,
        so that a harmonic well costs nothing and is what fills a gap in the data.

        Args:
            torsion_scale: prior standard deviation of a second difference of grid coefficients, kT.
            term_scale: prior standard deviation of a third difference of term coefficients, kT.
        """
        k, n_s = self.torsions.knots, self.n_s
        shift = sparse.csr_array(np.roll(np.eye(k), 1, axis=1))
        second = shift + shift.T - 2.0 * sparse.eye_array(k)
        square, one = (second.T @ second) / torsion_scale**2, sparse.eye_array(k)
        grid = square if n_s == 1 else sparse.kron(square, one) + sparse.kron(one, square)
        parts = [grid]
        for term in self.terms:
            third = np.diff(np.eye(term.size), n=3, axis=0) / term_scale
            parts.append(sparse.csr_array(third.T @ third))
        return sparse.block_diag(parts, format="csr")
