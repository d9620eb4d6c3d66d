"""How much of a surface's probability lies where no fine frame has ever been.

There the flow extrapolates: a state of the other coordinates that it misses would show in none of its own draws, and
there is no fine frame to contradict it. A surface may be smooth, converged and wrong there.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree
from scipy.special import logsumexp

from ccg_gmx.errors import CcgError
from ccg_gmx.free_energy.torsion_grid import Basin, grid
from ccg_gmx.records import FloatArray, FreeEnergySurface
from ccg_gmx.units import DEGREES_PER_RADIAN

BoolArray = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]


@dataclass(frozen=True)
class Coverage:
    """Where fine frames have not been.

    Attributes:
        unseen_probability: Boltzmann probability further than the radius from every fine frame; with three or more
            torsions, the largest over all pairs of them.
        place: torsion name -> degrees, the most probable unseen point (of that pair).
        basin: the named basin of which the largest part is unseen; None without basins.
        unseen_basin_fraction: that part; 0 without basins.
        radius_degrees: the radius.
    """

    unseen_probability: float
    place: dict[str, float]
    basin: str | None
    unseen_basin_fraction: float
    radius_degrees: float

    def words(self) -> str:
        """Say where fine runs are missing."""
        place = ", ".join(f"{name} = {degrees:.0f}" for name, degrees in self.place.items())
        text = f"{self.unseen_probability:.1%} of the probability lies where fine MD has never been"
        return f"{text}, most of it near {place}: start fine runs there" if self.unseen_probability else text


def unseen(points: FloatArray, s: FloatArray, radius_degrees: float) -> BoolArray:
    """``[M]`` True where ``points [M, d]`` lie further than the radius from every one of ``s [T, d]`` (radians, torus).

    The distance is Euclidean in the torsions, exact (a periodic k-d tree), so it does not depend on any bin.
    """
    full = 2 * np.pi
    # (x % full) can round up to the period itself, which the tree refuses.
    tree = cKDTree(np.where(s % full >= full, 0.0, s % full), boxsize=np.full(s.shape[1], full))
    radius = radius_degrees / DEGREES_PER_RADIAN
    at = np.where(points % full >= full, 0.0, points % full)
    distance, _ = tree.query(at, distance_upper_bound=np.nextafter(radius, np.inf))
    return ~np.isfinite(distance)


def coverage(
    surface: FreeEnergySurface, s: FloatArray, radius_degrees: float, basins: Sequence[Basin] = ()
) -> Coverage:
    """Compare a surface with the fine frames that its flow was trained on and held against.

    With three or more torsions every pair is looked at in its own marginal: short runs visit only a sliver of the cells
    of a four-dimensional grid even where all is well, while a barrier that no run crossed shows in the pair of its
    torsions. (A state that differs from all visited ones only in the combination of three torsions is not seen.)

    Args:
        surface: f on the grid, any number of torsions.
        s: ``[T, n_s]`` radians, the coarse variables of all fine frames.
        radius_degrees: how far around a frame counts as seen.
        basins: named states, of each of which the unseen part is looked at too: a state may be rare and still be what
            the run is about.

    Raises:
        CcgError: if there are no frames or they do not fit the surface.
    """
    dims = surface.f.ndim
    if s.ndim != 2 or s.shape[1] != dims or not len(s):
        raise CcgError(f"fine frames of shape {s.shape}", expected=f"coarse variables [T, {dims}] with T > 0")
    groups = list(itertools.combinations(range(dims), min(dims, 2)))
    parts = [_unseen_of(surface, s, group, radius_degrees) for group in groups]
    worst = max(parts, key=lambda part: part[0])
    basin, fraction = None, 0.0
    for named in basins:
        part = _unseen_basin(surface, s, named, radius_degrees)
        if basin is None or part > fraction:
            basin, fraction = named.name, part
    return Coverage(worst[0], worst[1], basin, fraction, radius_degrees)


def _unseen_of(
    surface: FreeEnergySurface, s: FloatArray, group: tuple[int, ...], radius_degrees: float
) -> tuple[float, dict[str, float]]:
    """Unseen probability of one marginal, and its most probable unseen point."""
    rest = tuple(axis for axis in range(surface.f.ndim) if axis not in group)
    log_p = logsumexp(-surface.f, axis=rest).ravel() if rest else -surface.f.ravel()
    points = grid(len(surface.f), len(group))
    missing = unseen(points, s[:, list(group)], radius_degrees)
    if not missing.any():
        return 0.0, {}
    probability = float(np.exp(logsumexp(log_p[missing]) - logsumexp(log_p)))
    top = points[missing][log_p[missing].argmax()] * DEGREES_PER_RADIAN
    return probability, {surface.names[axis]: float(x) for axis, x in zip(group, top, strict=True)}


def _unseen_basin(surface: FreeEnergySurface, s: FloatArray, basin: Basin, radius_degrees: float) -> float:
    """Part of a basin's own probability that is unseen; frames outside it count too, within the radius."""
    points = grid(len(surface.f), surface.f.ndim)
    inside = basin.mask(points, surface.names)
    log_p = -surface.f.ravel()[inside]
    missing = unseen(points[inside], s, radius_degrees)
    if not missing.any():
        return 0.0
    return float(np.exp(logsumexp(log_p[missing]) - logsumexp(log_p)))
