"""How an estimate of a surface converges with samples: its best forward KL, the 1/N law, and where a line arrives.

For N samples of a stationary process, the forward KL of their histogram goes as c / N once every state has been visited
many times: to second order it is half the sum of relative variances, each of which goes as 1/N.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.special import digamma, polygamma

from ccg_gmx.errors import CcgError
from ccg_gmx.free_energy.surface import smooth_periodic
from ccg_gmx.records import FloatArray, IntArray

KERNEL_DEGREES = (0.0, 1.5, 2.5, 3.5, 5.0, 7.0, 10.0, 15.0)
UNIFORM_PARTS = (0.0, *np.logspace(-6, -0.5, 12))
MIN_LEVELS = 3
ESTABLISHED_ERROR = 0.3
"""A slope known no better than this does not establish a law."""


@dataclass(frozen=True)
class BestKl:
    """Forward KL of one histogram, raw and with the smoothing that serves it best.

    Attributes:
        kl: smallest forward KL in nats over all smoothings.
        raw: forward KL in nats of the bare histogram; inf while a bin of the reference is empty.
        kernel_degrees: kernel width that was best.
        uniform_part: part of the uniform density that was best.
    """

    kl: float
    raw: float
    kernel_degrees: float
    uniform_part: float


@dataclass(frozen=True)
class Point:
    """Forward KL at one number of samples.

    Attributes:
        evaluations: energy evaluations behind each estimate.
        kl: mean forward KL in nats over disjoint groups, each with its best smoothing.
        error: standard error of that mean; nan for one group.
        groups: number of disjoint groups.
        raw: mean forward KL of the bare histograms, mostly inf.
        independent: whether the groups are independent and span whole walkers, so that a law may be fitted.
    """

    evaluations: float
    kl: float
    error: float
    groups: int
    raw: float
    independent: bool

    def row(self) -> dict[str, Any]:
        """The point for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class PowerLaw:
    """A straight line through ln KL against ln N.

    Attributes:
        slope: exponent; -1 for c / N.
        slope_error: its standard error.
        c: constant of KL = c / N with the slope held at -1, nats times evaluations.
        c_error: its standard error.
        first: evaluations of the first point used.
        last: evaluations of the last point used.
        established: whether the slope is -1 within its error and that error is below ``ESTABLISHED_ERROR``.
    """

    slope: float
    slope_error: float
    c: float
    c_error: float
    first: float
    last: float
    established: bool

    def evaluations(self, kl: float) -> float:
        """Evaluations at which c / N equals a forward KL."""
        return self.c / kl


def best_forward_kl(p: FloatArray, counts: FloatArray) -> BestKl:
    """Forward KL of a histogram with the smoothing that makes it smallest, found with the reference in hand.

    Nobody who has no reference could choose so well: the result is a lower bound of what a user of plain MD gets. The
    candidates are wrapped Gaussian kernels mixed with a uniform density (a pseudocount).

    Args:
        p: ``[n, n]`` probabilities of the reference.
        counts: ``[n, n]`` samples per bin.

    Raises:
        CcgError: if there are no samples, or the grids differ.
    """
    total = float(counts.sum())
    if p.shape != counts.shape or not total > 0:
        raise CcgError(f"a histogram of shape {counts.shape} with {total:g} samples", expected=f"samples on {p.shape}")
    seen = p > 0
    mass = p[seen]
    negative_entropy = float((mass * np.log(mass)).sum())
    parts = np.asarray(UNIFORM_PARTS)[:, None]
    table = np.empty((len(KERNEL_DEGREES), len(UNIFORM_PARTS)))
    density = counts / total
    for row, width in enumerate(KERNEL_DEGREES):
        smooth = smooth_periodic(density, width)[seen]
        with np.errstate(divide="ignore"):
            table[row] = negative_entropy - np.log((1 - parts) * smooth + parts / p.size) @ mass
    row, column = divmod(int(np.argmin(table)), table.shape[1])
    return BestKl(float(table[row, column]), float(table[0, 0]), KERNEL_DEGREES[row], float(UNIFORM_PARTS[column]))


def group_point(p: FloatArray, histograms: IntArray, size: int, evaluations: float, independent: bool) -> Point:
    """Score disjoint groups of histograms.

    Args:
        p: ``[n, n]`` probabilities of the reference.
        histograms: ``[W, n, n]`` samples per bin, one histogram per walker.
        size: walkers per group; those that fill no group are left out of this point.
        evaluations: energy evaluations behind each histogram.
        independent: see :class:`Point`.
    """
    groups = len(histograms) // size
    shape = histograms.shape[1:]
    summed = histograms[: groups * size].reshape(groups, size, *shape).sum(axis=1, dtype=np.float64)
    scores = [best_forward_kl(p, counts) for counts in summed]
    kl = np.array([score.kl for score in scores])
    error = float(kl.std(ddof=1) / math.sqrt(groups)) if groups > 1 else math.nan
    raw = float(np.mean([score.raw for score in scores]))
    return Point(evaluations * size, float(kl.mean()), error, groups, raw, independent)


def fit_power_law(points: Sequence[Point]) -> PowerLaw:
    """Fit a straight line to ln KL against ln N of nested groups by generalised least squares.

    While one slow mode dominates, the KL of a group is c / N times chi-square with one degree of freedom, and the mean
    over G groups is chi-square with G degrees of freedom over G: ``E ln = digamma(G / 2) + ln(2 / G)``, ``Var ln =
    trigamma(G / 2)``. Groups of 2N are sums of two groups of N, so that two levels share the variance of the one with
    more groups (exact for the KL itself). More modes make the spread smaller, so the errors are on the safe side.

    Args:
        points: at least two, of the same samples, in the order of N, with falling numbers of groups.

    Raises:
        CcgError: if there are fewer than two points or the number of groups does not fall.
    """
    groups = np.array([point.groups for point in points], dtype=np.float64)
    if len(points) < 2 or not (np.diff(groups) < 0).all():
        raise CcgError(f"a power law through points of {groups.tolist()} groups", expected="falling numbers of groups")
    x = np.log([point.evaluations for point in points])
    y = np.log([point.kl for point in points]) - digamma(groups / 2) - np.log(2 / groups)
    shared = np.maximum(groups[:, None], groups[None, :])
    precision = np.linalg.inv(polygamma(1, shared / 2))
    design = np.stack([np.ones_like(x), x - x.mean()], axis=1)
    covariance = np.linalg.inv(design.T @ precision @ design)
    slope = float((covariance @ design.T @ precision @ y)[1])
    slope_error = math.sqrt(covariance[1, 1])
    weights = precision.sum(axis=0) / precision.sum()
    relative = math.sqrt(1 / precision.sum())
    c = math.exp(float(weights @ (y + x)))
    good = abs(slope + 1) <= slope_error <= ESTABLISHED_ERROR
    return PowerLaw(slope, slope_error, c, c * relative, points[0].evaluations, points[-1].evaluations, good)


def fit_one_over_n(points: Sequence[Point]) -> PowerLaw | None:
    """Fit where the law holds: the longest stretch up to the largest N whose slope is -1 within its error.

    Args:
        points: in the order of N; only independent groups are used.

    Returns:
        The law of that stretch; that of the last ``MIN_LEVELS`` points, not established, where there is none; None
        with fewer points than that.
    """
    usable = [point for point in points if point.independent and math.isfinite(point.kl)]
    if len(usable) < MIN_LEVELS:
        return None
    laws = [fit_power_law(usable[start:]) for start in range(len(usable) - MIN_LEVELS + 1)]
    return next((law for law in laws if law.established), laws[-1])


@dataclass(frozen=True)
class Arrival:
    """Where a measured curve reaches a forward KL.

    Attributes:
        evaluations: number of energy evaluations.
        extrapolated: whether the curve ends before, and was continued with slope -1.
    """

    evaluations: float
    extrapolated: bool


def arrival(evaluations: Sequence[float], kl: Sequence[float], target: float) -> Arrival:
    """Return where a curve comes down to a forward KL for good.

    Beyond its end the curve is continued as c / N from the geometric mean of KL N over its last half (in evaluations),
    which favours a method that has slowed down.

    Args:
        evaluations: ascending.
        kl: forward KL in nats.
        target: forward KL in nats, positive.

    Raises:
        CcgError: if the curve is empty or holds no finite value.
    """
    n, values = np.asarray(evaluations, dtype=np.float64), np.asarray(kl, dtype=np.float64)
    finite = np.isfinite(values)
    n, values = n[finite], values[finite]
    if not len(n):
        raise CcgError("a convergence curve without a finite forward KL", remedy="run longer")
    above = np.flatnonzero(values > target)
    if not len(above):
        return Arrival(float(n[0]), False)
    last = above[-1]
    if last == len(n) - 1:
        tail = n >= 0.5 * n[-1]
        c = math.exp(float(np.log(values[tail] * n[tail]).mean()))
        return Arrival(max(float(n[-1]), c / target), True)
    x, y = np.log(n[last : last + 2]), np.log(values[last : last + 2])
    where = x[0] + (math.log(target) - y[0]) * (x[1] - x[0]) / (y[1] - y[0])
    return Arrival(math.exp(where), False)
