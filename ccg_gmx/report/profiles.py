"""Small numerics behind the pictures: profiles, differences, histograms, weights. Weights stay logarithms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import logsumexp, rel_entr

from ccg_gmx.free_energy.diagnostics import kish_fraction
from ccg_gmx.free_energy.estimators import log_mean_weight
from ccg_gmx.free_energy.torsion_grid import grid_points
from ccg_gmx.records import FloatArray, FreeEnergySurface
from ccg_gmx.units import DEGREES_PER_RADIAN

UNKNOWN_WEIGHT = 0.01
"""A profile's error is unknown where bins without an error hold more than this share of the weight."""


def grid_degrees(n: int) -> FloatArray:
    """Return the ``[n]`` points of a periodic torsion axis in degrees, ``-180 + i * 360 / n``."""
    return grid_points(n) * DEGREES_PER_RADIAN


@dataclass(frozen=True)
class Profile:
    """A one-torsion free energy.

    Attributes:
        degrees: ``[n]`` grid points.
        f: ``[n]`` kT, minimum 0, inf where nothing is known.
        error: ``[n]`` kT, nan where unknown.
        name: name of the torsion.
    """

    degrees: FloatArray
    f: FloatArray
    error: FloatArray
    name: str


def profiles(surface: FreeEnergySurface) -> list[Profile]:
    """Return the free energy along each axis, the Boltzmann weight of the other axes integrated out.

    ``f(phi) = -ln sum_psi exp(-f(phi, psi))``. The error is ``sum_psi p(psi | phi) error(phi, psi)``: an upper bound
    whatever the correlation between bins, because the standard error of a sum is at most the sum of standard errors.

    Args:
        surface: ``[n]`` or ``[n, n]`` surface in kT.
    """
    dimensions = surface.f.ndim
    found = []
    for axis in range(dimensions):
        others = tuple(other for other in range(dimensions) if other != axis)
        f = -np.asarray(logsumexp(-surface.f, axis=others)) if others else surface.f
        error = _profile_error(surface, f, axis, others) if others else surface.error
        if np.isfinite(f).any():
            f = f - f.min()
        found.append(Profile(grid_degrees(len(f)), f, error, surface.names[axis]))
    return found


def _profile_error(surface: FreeEnergySurface, f: FloatArray, axis: int, others: tuple[int, ...]) -> FloatArray:
    known = np.isfinite(f)
    base = np.expand_dims(np.where(known, f, 0.0), others)
    weight = np.exp(base - surface.f)
    unknown = ~np.isfinite(surface.error)
    error = np.sum(weight * np.where(unknown, 0.0, surface.error), axis=others)
    lost = np.sum(weight * unknown, axis=others)
    return np.where(known & (lost <= UNKNOWN_WEIGHT), error, np.nan)


def boltzmann(f: FloatArray) -> FloatArray:
    """Return normalised Boltzmann weights of a surface in kT; zero where it is inf."""
    return np.exp(-f - logsumexp(-f))


def aligned_difference(f: FloatArray, reference: FloatArray) -> FloatArray:
    """Return ``f - reference`` with its average over both Boltzmann weights set to 0; nan where either is unknown.

    Two surfaces shifted to minimum 0 differ by a constant that only says where each is lowest.

    Args:
        f: kT, any shape.
        reference: kT, same shape.

    Raises:
        ValueError: if the shapes differ.
    """
    if f.shape != reference.shape:
        raise ValueError(f"surfaces of {f.shape} and {reference.shape} points cannot be subtracted")
    both = np.isfinite(f) & np.isfinite(reference)
    if not both.any():
        return np.full(f.shape, np.nan)
    difference = np.where(both, f, 0.0) - np.where(both, reference, 0.0)
    weight = np.where(both, boltzmann(f) + boltzmann(reference), 0.0)
    if weight.sum() == 0.0:
        return np.full(f.shape, np.nan)
    return np.where(both, difference - np.sum(weight * difference) / weight.sum(), np.nan)


def aligned(profile: Profile, to: Profile) -> Profile:
    """Return a profile shifted so that it agrees with another on average (see ``aligned_difference``).

    Minimum 0 would shift a noisy curve by its luckiest bin. Profiles on different grids come back as they are.
    """
    if profile.f.shape != to.f.shape:
        return profile
    difference = aligned_difference(profile.f, to.f)
    both = np.isfinite(difference)
    if not both.any():
        return profile
    shift = difference[both][0] - (profile.f[both][0] - to.f[both][0])
    return replace(profile, f=profile.f + shift)


@dataclass(frozen=True)
class WeightStatistics:
    """What log-weights say, D draws at M points all together.

    Attributes:
        relative: ``[D]`` log-weight relative to the logarithm of its point's mean weight (-inf: weight zero).
        kish_fraction: ``[M]`` (sum w)^2 / (K sum w^2); 0 where all weights of a point are zero.
        f: ``[M]`` kT, -ln of the mean weight, minimum 0; inf where all weights are zero.
        zero_fraction: share of draws with weight zero.
    """

    relative: FloatArray
    kish_fraction: FloatArray
    f: FloatArray
    zero_fraction: float


def weight_statistics(log_w: Sequence[FloatArray]) -> WeightStatistics:
    """Return the statistics of log-weights; see ``WeightStatistics``.

    Args:
        log_w: ``[M, K]`` of points with equally many draws, as many such arrays as there are different K; not empty.
    """
    means = [log_mean_weight(values) for values in log_w]
    log_mean = np.concatenate(means)
    alive = np.isfinite(log_mean)
    f = np.where(alive, -log_mean, np.inf)
    pairs = zip(log_w, means, strict=True)
    relative = np.concatenate([(v - np.where(np.isfinite(mean), mean, 0.0)[:, None]).ravel() for v, mean in pairs])
    return WeightStatistics(
        relative=relative,
        kish_fraction=np.concatenate([kish_fraction(values) for values in log_w]),
        f=f - np.min(f, where=alive, initial=np.inf) if alive.any() else f,
        zero_fraction=float(np.mean(np.isneginf(relative))),
    )


@dataclass(frozen=True)
class Comparison:
    """Histograms of one internal coordinate, each normalised to sum 1, on common bins.

    Attributes:
        edges: ``[B + 1]`` in the units of the values.
        fine: ``[B]`` fine MD.
        weighted: ``[B]`` restored frames with their weights.
        plain: ``[B]`` restored frames, every frame counted once.
        js: Jensen-Shannon divergence in nats of ``weighted`` from ``fine``.
        js_noise: what independent samples of these sizes would show by chance, nats.
    """

    edges: FloatArray
    fine: FloatArray
    weighted: FloatArray
    plain: FloatArray
    js: float
    js_noise: float


def compare(fine: FloatArray, restored: FloatArray, weights: FloatArray, periodic: bool, bins: int = 48) -> Comparison:
    """Histogram fine and restored values of one coordinate.

    Bins span the fine values and a fifth more on either side (a torsion's are taken around its mean direction, at
    most once around the circle). What lies beyond is counted in the outermost bin: nothing is dropped, and one odd
    frame does not hide the rest. The noise
    is the second-order expansion
    ``E[JS] = (B - 1) / 8 * (1 / n_fine + 1 / kish_ess)`` with B the occupied bins, for independent frames.

    Args:
        fine: ``[T]`` values of fine MD.
        restored: ``[R]`` values of restored frames.
        weights: ``[R]`` normalised weights.
        periodic: whether the coordinate is a torsion in radians.
        bins: number of bins.
    """
    if periodic:
        centre = _direction(fine if fine.size else restored)
        fine, restored = (centre + (values - centre + np.pi) % (2 * np.pi) - np.pi for values in (fine, restored))
    low, high = _span(fine if fine.size else restored)
    if periodic and high - low > 2 * np.pi:
        fine, restored = ((values + np.pi) % (2 * np.pi) - np.pi for values in (fine, restored))
        low, high = -np.pi, np.pi
    fine, restored = (np.clip(values, low, high) for values in (fine, restored))
    edges = np.linspace(low, high, bins + 1)
    parts = [_fractions(fine, None, edges), _fractions(restored, weights, edges), _fractions(restored, None, edges)]
    occupied = np.count_nonzero(parts[0] + parts[1])
    squares = float(np.sum(weights**2))
    kish_ess = float(np.sum(weights)) ** 2 / squares if squares > 0 else np.nan
    noise = (occupied - 1) / 8 * (1 / max(len(fine), 1) + 1 / kish_ess)
    return Comparison(edges, parts[0], parts[1], parts[2], jensen_shannon(parts[0], parts[1]), noise)


def _direction(angles: FloatArray) -> float:
    return float(np.arctan2(np.sin(angles).mean(), np.cos(angles).mean())) if angles.size else 0.0


def _span(values: FloatArray) -> tuple[float, float]:
    if not values.size:
        return 0.0, 1.0
    low, high = float(values.min()), float(values.max())
    margin = 0.2 * (high - low) or 0.5
    return low - margin, high + margin


def _fractions(values: FloatArray, weights: FloatArray | None, edges: FloatArray) -> FloatArray:
    counts = np.histogram(values, edges, weights=weights)[0].astype(np.float64)
    return counts / counts.sum() if counts.sum() > 0 else counts


def jensen_shannon(p: FloatArray, q: FloatArray) -> float:
    """Return the Jensen-Shannon divergence in nats of two normalised histograms of one shape."""
    middle = (p + q) / 2
    return float((rel_entr(p, middle) + rel_entr(q, middle)).sum() / 2)
