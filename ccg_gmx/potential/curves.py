"""One-dimensional pieces of a coarse potential and maps over two torsions: splines with a meaning for every argument.

The splines are those of the cycle (:mod:`ccg_gmx.potential.terms`, :mod:`ccg_gmx.potential.torsions`); here they carry
kJ/mol, know their own errors and include the non-bonded pair, which ends at a cut-off.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy import sparse

from ccg_gmx.errors import SettingsError
from ccg_gmx.molecule.coordinate import Coordinate
from ccg_gmx.potential.terms import PeriodicTerm, SplineTerm
from ccg_gmx.potential.torsions import TorsionGrid
from ccg_gmx.records import FloatArray

CurveKind = Literal["bond", "angle", "dihedral", "pair"]

AT_CUTOFF = 3
"""Coefficients that overlap the cut-off of a pair: all zero, so value, slope and curvature are zero there."""

_COORDINATES = {
    "bond": Coordinate("bond", "bond", "positive"),
    "pair": Coordinate("pair", "bond", "positive"),
    "angle": Coordinate("angle", "angle", "polar"),
    "dihedral": Coordinate("dihedral", "torsion", "circle"),
}


@dataclass(frozen=True, eq=False)
class Curve:
    """Potential of one coordinate: a uniform cubic B-spline on ``[lo, hi]``, defined for every argument.

    * bonds and angles: beyond both ends the spline goes on quadratically with the value, slope and curvature of its
      edge, the curvature raised to ``min_curvature`` where it is below: a wall, never a ramp down;
    * pairs: so below ``lo``; at and above ``hi``, the cut-off, value and slope are zero (and the curvature: the
      last three coefficients are zero);
    * dihedrals: periodic, knots at ``-pi + i * 2 pi / P``; ``lo`` and ``hi`` are -pi and pi.

    Attributes:
        kind: bond, angle, dihedral or pair.
        lo: start of the spline, nm or radians.
        hi: its end, the cut-off of a pair; nm or radians.
        coefficients: ``[P]`` kJ/mol, ``P - 3`` knot intervals (``P`` for a dihedral).
        covariance: ``[P, P]`` of the coefficients, (kJ/mol)^2, or None where nothing is known about it.
        min_curvature: smallest curvature beyond the ends, kJ/mol/nm^2 or kJ/mol/radian^2.
    """

    kind: CurveKind
    lo: float
    hi: float
    coefficients: FloatArray
    covariance: FloatArray | None = None
    min_curvature: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what is no function, or a pair that jumps at its cut-off."""
        if self.kind not in _COORDINATES:
            raise SettingsError(f"a curve of kind {self.kind!r}", expected=", ".join(_COORDINATES))
        size = self.coefficients.size
        if self.coefficients.ndim != 1 or size < 4 or not np.isfinite(self.coefficients).all():
            raise SettingsError(
                f"coefficients of a {self.kind} of shape {self.coefficients.shape}, finite or not",
                expected="at least four finite numbers",
            )
        if self.covariance is not None and self.covariance.shape != (size, size):
            raise SettingsError(f"a covariance of shape {self.covariance.shape}", expected=f"({size}, {size})")
        if self.kind == "pair" and np.any(self.coefficients[-AT_CUTOFF:] != 0.0):
            raise SettingsError("a pair potential that is not flat at its cut-off", expected="three last zeros")
        _ = self.term  # checks the range

    @cached_property
    def term(self) -> SplineTerm | PeriodicTerm:
        """The basis: rows for the coefficients, without cut-off and walls."""
        coordinate = _COORDINATES[self.kind]
        if self.kind == "dihedral":
            return PeriodicTerm(coordinate, self.coefficients.size)
        return SplineTerm(coordinate, self.lo, self.hi, self.coefficients.size - 3, self.min_curvature)

    @property
    def size(self) -> int:
        """Number of coefficients P."""
        return self.coefficients.size

    @property
    def free(self) -> int:
        """Number of coefficients that may move, the first ones: all but those at a pair's cut-off."""
        return self.size - AT_CUTOFF if self.kind == "pair" else self.size

    @property
    def spacing(self) -> float:
        """Knot spacing, nm or radians."""
        return self.term.spacing

    @cached_property
    def walls(self) -> FloatArray:
        """Curvature added below and above the range, ``[2]`` kJ/mol/nm^2 or kJ/mol/radian^2; none at a cut-off."""
        walls = self.term.walls(self.coefficients)
        return np.array([walls[0], 0.0]) if self.kind == "pair" else walls

    def design(self, x: ArrayLike, order: int = 0) -> sparse.csr_array:
        """Rows that turn coefficients into values or derivatives, the continuation included, the walls not.

        Args:
            x: ``[M]`` nm or radians.
            order: 0, 1 or 2, the derivative by ``x``.

        Returns:
            Sparse ``[M, P]``; rows at and beyond a pair's cut-off are empty.
        """
        x = np.asarray(x, dtype=np.float64)
        rows = self.term.design(x, order)
        if self.kind == "pair":
            rows = sparse.csr_array(sparse.diags_array((x < self.hi).astype(np.float64)) @ rows)
        return rows

    def value_and_slope(self, x: ArrayLike) -> tuple[FloatArray, FloatArray]:
        """Value in kJ/mol and derivative in kJ/mol/nm or kJ/mol/radian at ``x`` (nm, radians) of any shape."""
        points = np.asarray(x, dtype=np.float64)
        flat = points.ravel()
        value, slope = (
            self.design(flat, order) @ self.coefficients + self.term.wall(flat, self.walls, order) for order in (0, 1)
        )
        return value.reshape(points.shape), slope.reshape(points.shape)

    def error(self, x: ArrayLike) -> FloatArray:
        """Standard error of the value in kJ/mol at ``x`` of any shape; nan where there is no covariance.

        Beyond the ends it is that of the continuation, which grows quadratically: it says what noise does to the
        continuation, not that the continuation is right.
        """
        points = np.asarray(x, dtype=np.float64)
        if self.covariance is None:
            return np.full(points.shape, np.nan)
        rows = self.design(points.ravel())
        variance = np.asarray((rows @ self.covariance * rows.toarray()).sum(axis=1))
        return np.sqrt(np.maximum(variance, 0.0)).reshape(points.shape)

    def table(self, points: int) -> tuple[FloatArray, FloatArray, FloatArray]:
        """``x``, value and slope at so many points from ``lo`` to ``hi``, both included."""
        x = np.linspace(self.lo, self.hi, points)
        return (x, *self.value_and_slope(x))


@dataclass(frozen=True, eq=False)
class TorsionMap:
    """Potential over the two torsions of five beads (the first four, the last four): a periodic 2D cubic B-spline.

    Knots at ``-pi + i * 2 pi / k`` on both axes. A cubic spline through any grid whose number of points is a multiple
    of ``k`` is this function again, so GROMACS' CMAP is exact.

    Attributes:
        coefficients: ``[k, k]`` kJ/mol.
        covariance: ``[k^2, k^2]`` of the coefficients in C order, (kJ/mol)^2, or None.
    """

    coefficients: FloatArray
    covariance: FloatArray | None = None

    def __post_init__(self) -> None:
        """Refuse what is no square of finite numbers."""
        shape = self.coefficients.shape
        if self.coefficients.ndim != 2 or shape[0] != shape[1] or not np.isfinite(self.coefficients).all():
            raise SettingsError(f"map coefficients of shape {shape}, finite or not", expected="a square, all finite")
        size = self.coefficients.size
        if self.covariance is not None and self.covariance.shape != (size, size):
            raise SettingsError(f"a covariance of shape {self.covariance.shape}", expected=f"({size}, {size})")
        _ = self.grid

    @cached_property
    def grid(self) -> TorsionGrid:
        """The basis."""
        return TorsionGrid(("phi", "psi"), len(self.coefficients))

    @property
    def knots(self) -> int:
        """Knots per torsion."""
        return len(self.coefficients)

    def value_and_gradient(self, phi: ArrayLike, psi: ArrayLike) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Value in kJ/mol and its derivatives by phi and psi in kJ/mol/radian.

        Args:
            phi: radians, any shape.
            psi: radians, the same shape.

        Returns:
            Three arrays of that shape.
        """
        phi, psi = np.broadcast_arrays(np.asarray(phi, dtype=np.float64), np.asarray(psi, dtype=np.float64))
        angles = np.stack([phi.ravel(), psi.ravel()], axis=1)
        flat = self.coefficients.ravel()
        value, by_phi, by_psi = ((self.grid.design(angles, axis) @ flat).reshape(phi.shape) for axis in (None, 0, 1))
        return value, by_phi, by_psi

    def on_grid(self, n: int) -> FloatArray:
        """``[n, n]`` kJ/mol at the points ``-pi + i * 2 pi / n`` of both torsions."""
        return self.grid.on_grid(self.coefficients.ravel(), n)

    def error(self, phi: ArrayLike, psi: ArrayLike) -> FloatArray:
        """Standard error in kJ/mol at the angles (radians, any shape); nan where there is no covariance."""
        phi, psi = np.broadcast_arrays(np.asarray(phi, dtype=np.float64), np.asarray(psi, dtype=np.float64))
        if self.covariance is None:
            return np.full(phi.shape, np.nan)
        rows = self.grid.design(np.stack([phi.ravel(), psi.ravel()], axis=1))
        variance = np.asarray((rows @ self.covariance * rows.toarray()).sum(axis=1))
        return np.sqrt(np.maximum(variance, 0.0)).reshape(phi.shape)


def flat_curve(
    kind: CurveKind, lo: float = -math.pi, hi: float = math.pi, *, intervals: int, min_curvature: float = 0.0
) -> Curve:
    """Curve that is zero: the start of a fit, and the basis that it fits on."""
    size = intervals if kind == "dihedral" else intervals + 3
    return Curve(kind, lo, hi, np.zeros(size), None, min_curvature)
