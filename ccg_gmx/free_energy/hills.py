"""Free energy from metadynamics: the sum of its hills, as PLUMED's ``sum_hills`` has it.

Plain metadynamics: F = -V (Laio, Parrinello 2002, doi:10.1073/pnas.202427399). Well-tempered: F = -gamma/(gamma - 1) V
(Barducci, Bussi, Parrinello 2008, doi:10.1103/PhysRevLett.100.020603); the heights in the file already have that
factor, so that minus their sum is F in both cases.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ccg_gmx.errors import CcgError
from ccg_gmx.free_energy.axes import Axis, Box, GridSurface, grid_surface
from ccg_gmx.free_energy.hills_kernel import CUTOFF, add_diagonal, add_tilted
from ccg_gmx.free_energy.settling import Settling, basin_free_energies, settling
from ccg_gmx.records import FloatArray, IntArray
from ccg_gmx.units import thermal_energy

POINTS_PER_SUPPORT = 10
"""Grid points over the reach of the narrowest hill when nobody says how many, as ``sum_hills`` has it."""

MOST_POINTS = 4_000_000
"""Finer grids are refused: a wrong --grid, most likely."""


@dataclass(frozen=True)
class HillSet:
    """Hills to be summed.

    Attributes:
        centers: ``[n, d]`` units of the variables.
        lower: ``[n, d, d]`` lower Cholesky factors of the covariances.
        heights: ``[n]`` kJ/mol.
        tilted: whether covariances have off-diagonal parts.
        stretched: whether hills are stretched to end at zero.
        interval: limits beyond which the sum of one variable is constant, or None.
    """

    centers: FloatArray
    lower: FloatArray
    heights: FloatArray
    tilted: bool = False
    stretched: bool = True
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class HillsSurface:
    """Free energy from hills.

    Attributes:
        surface: of all hills; its errors are unknown, see ``settling`` instead.
        settling: surfaces of the first hills and more of them.
        cut: largest part of a hill's height that PLUMED's box cuts off at once (tilted hills only), else 0.
    """

    surface: GridSurface
    settling: Settling
    cut: float


def automatic_axes(
    hills: HillSet, names: Sequence[str], domains: Sequence[tuple[float, float] | None]
) -> tuple[Axis, ...]:
    """The grid that ``sum_hills`` takes when none is given: all that hills reach, ten points over the narrowest reach.

    Raises:
        CcgError: that would be too many points.
    """
    reach = support(hills)
    axes = []
    for k, (name, domain) in enumerate(zip(names, domains, strict=True)):
        low, high = (hills.centers[:, k] - reach[:, k]).min(), (hills.centers[:, k] + reach[:, k]).max()
        spacing = reach[:, k].min() / POINTS_PER_SUPPORT
        if domain is not None:  # the grid itself is the whole period, the number of points not always (as in PLUMED)
            bins = int(np.ceil((min(high, domain[1]) - max(low, domain[0])) / spacing))
            axes.append(Axis(name, *domain, max(bins, 1), True, domain[1] - domain[0]))
        elif hills.interval is not None:
            axes.append(Axis(name, *hills.interval, 201))
        else:
            bins = int(np.ceil((high - low) / spacing))
            axes.append(Axis(name, float(f"{low:.6g}"), float(f"{high:.6g}"), bins + 1))  # PLUMED keeps six digits
    if all(axis.torsion for axis in axes):  # one grid for all, so that other commands can read it
        axes = [replace(axis, points=max(own.points for own in axes)) for axis in axes]
    check_size(axes)
    return tuple(axes)


def check_size(axes: Sequence[Axis]) -> None:
    """Refuse grids of too many points.

    Raises:
        CcgError: too many.
    """
    size = int(np.prod([float(axis.points) for axis in axes]))
    if size > MOST_POINTS:
        shape = " x ".join(str(axis.points) for axis in axes)
        raise CcgError(
            f"a grid of {shape} points", expected=f"at most {MOST_POINTS}", remedy="choose one with --grid MIN:MAX:BINS"
        )


def support(hills: HillSet) -> FloatArray:
    """``[n, d]`` how far each hill reaches along each axis, units of the variables.

    For tilted hills PLUMED takes the extent of the longest principal axis, which is less than the whole reach of the
    hill, and for three variables (2.10) it reads the matrix of eigenvectors, which has them in rows, by columns. Its
    grids, those of the simulation too, have no more than that.
    """
    if not hills.tilted:
        width = hills.lower[:, range(hills.centers.shape[1]), range(hills.centers.shape[1])]
    else:
        values, vectors = np.linalg.eigh(hills.lower @ hills.lower.transpose(0, 2, 1))
        width = np.sqrt(values[:, -1:]) * np.abs(vectors[:, -1, :])
    return np.asarray(np.sqrt(2 * CUTOFF) * width)


def whole_support(hills: HillSet) -> FloatArray:
    """``[n, d]`` how far each hill really reaches along each axis."""
    return np.asarray(np.sqrt(2 * CUTOFF) * np.sqrt((hills.lower**2).sum(axis=2)))


def sum_hills(
    hills: HillSet, axes: Sequence[Axis], ends: Sequence[int] | None = None, *, whole: bool = False
) -> FloatArray:
    """Sums of the first hills on a grid.

    Args:
        hills: n hills.
        axes: the grid; points, not bins, and open axes have both ends.
        ends: numbers of hills after which the sum is wanted, rising; by default all.
        whole: sum tilted hills as far as they reach, instead of PLUMED's box.

    Returns:
        ``[len(ends), *points]`` kJ/mol, positive like the heights.

    Raises:
        CcgError: too many points.
    """
    check_size(axes)
    ends = [len(hills.heights)] if ends is None else ends
    d = len(axes)
    filled = [np.zeros(1)] * (3 - d) + [_evaluated_at(axis, hills.interval) for axis in axes]
    points = (filled[0], filled[1], filled[2])
    periods = np.zeros(3)
    periods[3 - d :] = [axis.period or 0.0 for axis in axes]
    first, count = _boxes(hills, axes, whole_support(hills) if whole else support(hills))
    shape = tuple(len(x) for x in points)
    total, out = np.zeros(shape), np.empty((len(ends), *(axis.points for axis in axes)))
    centers = np.pad(hills.centers, ((0, 0), (3 - d, 0)))
    if hills.tilted:
        form = np.tile(np.eye(3), (len(centers), 1, 1))
        form[:, 3 - d :, 3 - d :] = np.linalg.inv(hills.lower @ hills.lower.transpose(0, 2, 1))
    else:
        form = np.ones((len(centers), 3))
        form[:, 3 - d :] = hills.lower[:, range(d), range(d)]
    add = add_tilted if hills.tilted else add_diagonal
    start = 0
    for index, end in enumerate(ends):
        part = slice(start, end)
        add(
            total, points, periods, centers[part], form[part], hills.heights[part], first[part], count[part],
            hills.stretched,
        )  # fmt: skip
        out[index] = total.reshape(out.shape[1:])
        start = end
    return out


def _evaluated_at(axis: Axis, interval: tuple[float, float] | None) -> FloatArray:
    return axis.values if interval is None else np.clip(axis.values, *interval)


def _boxes(hills: HillSet, axes: Sequence[Axis], reach: FloatArray) -> tuple[IntArray, IntArray]:
    """``[n, 3]`` first point and number of points of the box of each hill; none where a hill is off the grid."""
    n, d = hills.centers.shape
    first, count = np.zeros((n, 3), dtype=np.int64), np.ones((n, 3), dtype=np.int64)
    for k, axis in enumerate(axes):
        steps = np.ceil(reach[:, k] / axis.spacing).astype(np.int64)
        here = np.floor((hills.centers[:, k] - axis.low) / axis.spacing).astype(np.int64)
        low, high = here - steps, here + steps
        if hills.interval is not None:  # points beyond an interval have the value at its end: every point may count
            low, high = np.zeros_like(low), np.full_like(high, axis.points - 1)
        if axis.periodic:
            first[:, 3 - d + k] = low % axis.points
            count[:, 3 - d + k] = np.minimum(high - low + 1, axis.points)
        elif axis.period is not None:  # a window of a periodic variable: images are found point by point
            count[:, 3 - d + k] = axis.points
        else:
            first[:, 3 - d + k] = np.clip(low, 0, axis.points - 1)
            count[:, 3 - d + k] = np.maximum(np.minimum(high, axis.points - 1) - np.maximum(low, 0) + 1, 0)
    return first, count


def hills_surface(
    hills: HillSet,
    axes: Sequence[Axis],
    temperature_K: float,
    *,
    boxes: Sequence[Box] = (),
    ends: Sequence[int],
    x: FloatArray,
    label: str,
    factor: float = 1.0,
    whole: bool = False,
) -> HillsSurface:
    """Free energy from all hills, and from the first of them.

    Args:
        hills: n hills.
        axes: the grid.
        temperature_K: temperature, for kT.
        boxes: basins to compare with the first of them.
        ends: numbers of hills of the growing parts, the last n.
        x: ``[len(ends)]`` time, or whatever these numbers mean.
        label: what x is.
        factor: on the sum; ``(gamma - 1) / gamma`` gives minus the bias instead of the free energy.
        whole: see :func:`sum_hills`.
    """
    kT = thermal_energy(temperature_K)
    f = -factor * sum_hills(hills, axes, ends, whole=whole) / kT
    free = [basin_free_energies(own, axes, boxes) for own in f]
    return HillsSurface(
        surface=grid_surface(f[-1], axes, temperature_K),
        settling=settling(x, label, list(f), [box.name for box in boxes], free),
        cut=_cut(hills) if not whole else 0.0,
    )


def wider_than_half(hills: HillSet, axes: Sequence[Axis]) -> tuple[str, ...]:
    """Names of periodic variables where a hill reaches further than half a period; PLUMED counts parts of it twice."""
    reach = support(hills).max(axis=0)
    return tuple(
        axis.name for axis, r in zip(axes, reach, strict=True) if axis.period is not None and r > axis.period / 2
    )


def _cut(hills: HillSet) -> float:
    """Largest share of its height that a tilted hill still has on the faces of PLUMED's box."""
    if not hills.tilted:
        return 0.0
    # on the face x_k = r, the largest value of the Gaussian is exp(-r^2 / 2 C_kk)
    face = support(hills) ** 2 / (2 * (hills.lower**2).sum(axis=2))
    return float(np.exp(-face).max() if (face < CUTOFF * (1 - 1e-9)).any() else 0.0)
