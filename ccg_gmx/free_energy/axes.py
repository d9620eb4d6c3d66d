"""Axes of any collective variables, boxes on them, and the surface record over such axes.

:class:`~ccg_gmx.records.FreeEnergySurface` is for torsions that share one periodic grid; here every axis has its own
range, with or without a period, in the units of the user's file. :func:`torsion_surface` goes from one to the other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ccg_gmx.errors import CcgError
from ccg_gmx.free_energy.torsion_grid import BoolArray, shifted
from ccg_gmx.records import FloatArray, FreeEnergySurface, IntArray
from ccg_gmx.units import DEGREES_PER_RADIAN

_CLOSE = 1e-6
"""Ends of periods as files print them agree to this with -pi and pi."""


@dataclass(frozen=True)
class Axis:
    """Evenly spaced points of one variable; a bin is the cell centred on its point.

    Attributes:
        name: of the variable.
        low: first point, units of the variable.
        high: last point; on a periodic axis one period above ``low``, which is the first point again.
        points: number of points.
        periodic: whether the axis closes on itself.
        period: period of the variable, which a window of it has too; None without one.
    """

    name: str
    low: float
    high: float
    points: int
    periodic: bool = False
    period: float | None = None

    @property
    def spacing(self) -> float:
        """Distance of two points, units of the variable."""
        return (self.high - self.low) / (self.points if self.periodic else max(self.points - 1, 1))

    @property
    def values(self) -> FloatArray:
        """``[points]`` units of the variable."""
        return np.asarray(self.low + self.spacing * np.arange(self.points), dtype=np.float64)

    @property
    def angle(self) -> bool:
        """Whether the variable is an angle of period 2 pi: users then say degrees."""
        return self.period is not None and abs(self.period - 2 * math.pi) < _CLOSE

    @property
    def torsion(self) -> bool:
        """Whether the axis is the whole turn from -pi that the torsion surfaces have."""
        return self.periodic and self.angle and abs(self.low + math.pi) < _CLOSE

    def cells(self, x: FloatArray) -> IntArray:
        """``[T]`` bin of each value; negative or ``points`` and more beyond the ends of an open axis."""
        offset = x - self.low
        if self.period is not None and not self.periodic:  # a window: the image nearest to its middle
            middle = (self.high - self.low) / 2
            offset = (offset - middle + self.period / 2) % self.period - self.period / 2 + middle
        cell = np.floor(offset / self.spacing + 0.5).astype(np.int64)
        return cell % self.points if self.periodic else cell


@dataclass(frozen=True)
class GridSurface:
    """A free energy over axes of any kind.

    Attributes:
        f: ``[axes[0].points, ...]`` kT, minimum 0, flat in the variables; inf where nothing is known.
        error: same shape, one standard error in kT of f relative to its Boltzmann average; nan where unknown.
        axes: one to three.
        temperature_K: temperature.
    """

    f: FloatArray
    error: FloatArray
    axes: tuple[Axis, ...]
    temperature_K: float

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the axes."""
        return tuple(axis.name for axis in self.axes)


@dataclass(frozen=True)
class Box:
    """A named box: half-open ranges of some variables; the others are free.

    Attributes:
        name: of the state.
        ranges: variable -> (from, to), in degrees for angles, else in units of the variable; an angle may cross 180,
            and other variables may end at infinity.
    """

    name: str
    ranges: Mapping[str, tuple[float, float]]

    def mask(self, x: FloatArray, axes: Sequence[Axis]) -> BoolArray:
        """``[T]`` True where ``x [T, d]`` (units of the variables, order of the axes) lies in the box."""
        inside = np.ones(len(x), dtype=np.bool_)
        for column, axis in zip(x.T, axes, strict=True):
            if axis.name in self.ranges:
                inside &= _in_range(column, axis, *self.ranges[axis.name])
        return inside


def _in_range(x: FloatArray, axis: Axis, low: float, high: float) -> BoolArray:
    if axis.period is None:
        return np.asarray((x >= low) & (x < high))
    scale = DEGREES_PER_RADIAN if axis.angle else 1.0
    period = axis.period * scale
    width = period if abs(abs(high - low) - period) < _CLOSE * scale else (high - low) % period
    return np.asarray((x * scale - low) % period < width)


def grid_of(axes: Sequence[Axis]) -> FloatArray:
    """``[points, d]`` all points of the grid, the last axis fastest (as ``f.ravel()``)."""
    mesh = np.meshgrid(*(axis.values for axis in axes), indexing="ij")
    return np.stack([one.ravel() for one in mesh], axis=-1)


def grid_surface(
    f: FloatArray, axes: Sequence[Axis], temperature_K: float, error: FloatArray | None = None
) -> GridSurface:
    """Surface with its minimum at 0; errors default to nan (unknown).

    Raises:
        CcgError: nothing is finite.
    """
    if not np.isfinite(f).any():
        raise CcgError("a surface without any finite point", remedy="choose ranges where there are data")
    return GridSurface(
        f - f[np.isfinite(f)].min(), np.full_like(f, np.nan) if error is None else error, tuple(axes), temperature_K
    )


def is_torsional(axes: Sequence[Axis]) -> bool:
    """Whether a surface over these axes can be a torsion surface: whole turns from -pi, equally many points."""
    return all(axis.torsion for axis in axes) and len({axis.points for axis in axes}) == 1


def torsion_surface(surface: GridSurface) -> FreeEnergySurface:
    """The same as a torsion surface.

    Raises:
        CcgError: axes that are no torsions, or of different lengths.
    """
    if not is_torsional(surface.axes):
        raise CcgError(
            f"a surface over {', '.join(surface.names)}",
            expected="torsions from -pi to pi with equally many points on every axis",
        )
    return shifted(surface.f, surface.names, surface.temperature_K, surface.error)
