"""Terms of single bead coordinates: splines of bonds, angles and hindered torsions, periodic splines of free ones."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from ccg_gmx.errors import SettingsError
from ccg_gmx.molecule.coordinate import Coordinate
from ccg_gmx.potential.bspline import circle_roughness, circle_weights, cubic_weights, sparse_rows
from ccg_gmx.potential.torsions import KNOTS
from ccg_gmx.records import FloatArray


@dataclass(frozen=True)
class SplineTerm:
    """Cubic spline of one bead bond, angle or hindered torsion on the range ``[lo, hi]`` that the data cover.

    Outside, the spline continues quadratically with the value, slope and curvature of its edge; where that curvature
    is below ``min_curvature`` the model (not the basis, whose rows stay linear in the coefficients) adds the
    difference: a bead driven past the data meets a wall, never a ramp down. A torsion whose support is a window
    (a peptide bond that stays trans) is measured from the window's centre; its two walls meet on the far side.

    Attributes:
        coordinate: the bond (nm), angle or torsion (radians).
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
        if self.coordinate.kind == "torsion" and self.coordinate.support != "window":
            raise SettingsError(
                f"spline term on {self.coordinate.kind} {self.coordinate.name}",
                expected="a bead bond or angle, or a torsion that stays in a window",
                remedy="use a periodic term for a free torsion",
            )
        bottom, top = _support(self.coordinate)
        if not (bottom <= self.lo < self.hi <= top and math.isfinite(self.hi)):
            raise SettingsError(
                f"range [{self.lo}, {self.hi}] of {self.coordinate.name}",
                expected=f"{bottom:.4g} <= lo < hi <= {top:.4g}",
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
            coordinate: the bond, angle or hindered torsion.
            values: ``[M]`` nm or radians.
            intervals: knot intervals.
            margin: room on either side, as a share of the span.

        Raises:
            SettingsError: if the values span nothing, or leave the coordinate's support.
        """
        low, high = float(np.min(values)), float(np.max(values))
        span = high - low
        bottom, top = _support(coordinate)
        lo, hi = max(low - margin * span, bottom), min(high + margin * span, top)
        return cls(coordinate, lo, hi, intervals, 36.0 / span**2 if span > 0 else 0.0)

    @property
    def size(self) -> int:
        """Number of coefficients."""
        return self.intervals + 3

    @property
    def spacing(self) -> float:
        """Knot spacing in nm or radians."""
        return (self.hi - self.lo) / self.intervals

    def local(self, x: FloatArray) -> FloatArray:
        """Values ``[M]`` on the branch that the range lies on: torsions within half a turn of the window's centre."""
        x = np.asarray(x, dtype=np.float64)
        if self.coordinate.kind != "torsion":
            return x
        below = self.coordinate.centre - math.pi
        return np.asarray(below + np.mod(x - below, 2.0 * math.pi))

    def design(self, x: FloatArray, order: int = 0) -> sparse.csr_array:
        """Rows that turn coefficients into values (or derivatives) at ``x``, quadratic continuation included.

        Args:
            x: ``[M]`` nm or radians.
            order: 0, 1 or 2, the derivative by ``x``.

        Returns:
            Sparse ``[M, size]``.
        """
        x = self.local(x)
        inside = np.minimum(np.maximum(x, self.lo), self.hi)
        position = (inside - self.lo) / self.spacing
        first = np.minimum(position.astype(np.int64), self.intervals - 1)
        beyond = (x - inside)[:, None]
        weights = np.zeros((x.size, 4))
        for k in range(order, 3):  # Taylor polynomial of the edge; only its first term is alive inside
            derivative = cubic_weights(position - first, k) / self.spacing**k
            weights += derivative * beyond ** (k - order) / math.factorial(k - order)
        return sparse_rows(weights, first[:, None] + np.arange(4), self.size)

    def walls(self, coefficients: FloatArray) -> FloatArray:
        """Curvature to add below and above the range so that it is steep enough, ``[2]`` kT/nm^2 or kT/radian^2."""
        curvature = self.design(np.array([self.lo, self.hi]), 2) @ coefficients
        return np.maximum(self.min_curvature - curvature, 0.0)

    def wall(self, x: FloatArray, walls: FloatArray, order: int) -> FloatArray:
        """What :meth:`walls` adds at ``x``, value or slope, ``[M]`` kT (per unit)."""
        x = self.local(x)
        below, above = np.minimum(x - self.lo, 0.0), np.maximum(x - self.hi, 0.0)
        slope = walls[0] * below + walls[1] * above
        return np.asarray(0.5 * slope * (below + above) if order == 0 else slope)

    @property
    def reach(self) -> tuple[float, float]:
        """Range that leaves out about exp(-100) of the mass, the wall being at least ``min_curvature`` stiff."""
        stiff = math.sqrt(200.0 / self.min_curvature) if self.min_curvature > 0 else 0.0
        width = max(stiff, self.hi - self.lo)
        bottom, top = domain(self.coordinate)
        return max(self.lo - width, bottom), min(self.hi + width, top)

    def roughness(self, torsion_scale: float, term_scale: float) -> sparse.csr_array:
        """Precision ``[size, size]`` of third differences: a harmonic well costs nothing and fills gaps in the data."""
        third = np.diff(np.eye(self.size), n=3, axis=0) / term_scale
        return sparse.csr_array(third.T @ third)

    def log_jacobian(self, x: FloatArray) -> FloatArray:
        """Log of the coordinate's factor of the beads' volume element ``[M]``: b^2, sin(theta), or 1 for a torsion."""
        if self.coordinate.kind == "torsion":
            return np.zeros(len(x))
        return 2.0 * np.log(x) if self.coordinate.kind == "bond" else np.log(np.sin(x))

    def log_jacobian_gradient(self, x: FloatArray) -> FloatArray:
        """Derivative of :meth:`log_jacobian` by ``x`` ``[M]``."""
        if self.coordinate.kind == "torsion":
            return np.zeros(len(x))
        return 2.0 / np.asarray(x) if self.coordinate.kind == "bond" else 1.0 / np.tan(x)


@dataclass(frozen=True)
class PeriodicTerm:
    """Periodic cubic spline of one bead torsion that is not coarse and free to turn.

    Attributes:
        coordinate: the torsion, on the whole circle.
        knots: on the circle, at least 4; also the number of coefficients.
    """

    coordinate: Coordinate
    knots: int = KNOTS

    lo = -math.pi
    hi = math.pi

    def __post_init__(self) -> None:
        """Refuse coordinates that are no circle."""
        if self.coordinate.support != "circle" or self.knots < 4:
            raise SettingsError(
                f"periodic term with {self.knots} knots on {self.coordinate.name} ({self.coordinate.support})",
                expected="a free torsion and at least 4 knots",
            )

    @property
    def size(self) -> int:
        """Number of coefficients."""
        return self.knots

    @property
    def intervals(self) -> int:
        """Number of knot intervals."""
        return self.knots

    @property
    def spacing(self) -> float:
        """Knot spacing in radians."""
        return 2.0 * math.pi / self.knots

    def local(self, x: FloatArray) -> FloatArray:
        """Values ``[M]`` in [-pi, pi)."""
        return np.asarray(-math.pi + np.mod(np.asarray(x, dtype=np.float64) + math.pi, 2.0 * math.pi))

    def design(self, x: FloatArray, order: int = 0) -> sparse.csr_array:
        """Rows that turn coefficients into values (or derivatives) at ``x [M]`` radians; sparse ``[M, size]``."""
        return sparse_rows(*circle_weights(x, self.knots, order), self.knots)

    def walls(self, coefficients: FloatArray) -> FloatArray:
        """A circle has no ends: ``[2]`` zeros."""
        return np.zeros(2)

    def wall(self, x: FloatArray, walls: FloatArray, order: int) -> FloatArray:
        """Nothing, ``[M]``."""
        return np.zeros(len(x))

    @property
    def reach(self) -> tuple[float, float]:
        """The whole circle."""
        return self.lo, self.hi

    def roughness(self, torsion_scale: float, term_scale: float) -> sparse.csr_array:
        """Precision ``[size, size]`` of second differences, as for the coarse torsions."""
        return circle_roughness(self.knots, torsion_scale)

    def log_jacobian(self, x: FloatArray) -> FloatArray:
        """A torsion's factor of the volume element is 1: ``[M]`` zeros."""
        return np.zeros(len(x))

    def log_jacobian_gradient(self, x: FloatArray) -> FloatArray:
        """``[M]`` zeros."""
        return np.zeros(len(x))


Term = SplineTerm | PeriodicTerm


def covering_term(coordinate: Coordinate, values: FloatArray) -> Term:
    """Term for a bead coordinate with the sampled values ``[M]`` (nm or radians).

    Raises:
        SettingsError: if the values span nothing, or leave the coordinate's support.
    """
    if coordinate.support == "circle":
        return PeriodicTerm(coordinate)
    return SplineTerm.covering(coordinate, values)


def domain(coordinate: Coordinate) -> tuple[float, float]:
    """Where a coordinate can be at all: a torsion within half a turn of its centre, whatever its support."""
    if coordinate.kind == "torsion":
        return coordinate.centre - math.pi, coordinate.centre + math.pi
    return 0.0, math.inf if coordinate.kind == "bond" else math.pi


def _support(coordinate: Coordinate) -> tuple[float, float]:
    """Where its density is allowed to be."""
    if coordinate.kind != "torsion":
        return domain(coordinate)
    return coordinate.centre - 0.5 * coordinate.width, coordinate.centre + 0.5 * coordinate.width
