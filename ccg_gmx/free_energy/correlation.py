"""How long frames of a run stay correlated: statistical inefficiency, and how errors grow with the length of blocks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.fft import next_fast_len
from scipy.special import chdtrc

from ccg_gmx.records import FloatArray, IntArray


@dataclass(frozen=True)
class Correlation:
    """Autocorrelation of several series, summed in pairs of lags.

    Attributes:
        pairs: ``[m, k]`` ``rho(2 m) + rho(2 m + 1)``, falling, zero from the first negative pair on.
    """

    pairs: FloatArray

    @property
    def inefficiency(self) -> FloatArray:
        """``[k]`` statistical inefficiency ``g = 1 + 2 sum_t rho(t)``, at least 1: T frames are worth T / g."""
        return np.maximum(-1 + 2 * self.pairs.sum(axis=0), 1.0)

    def seen_by_blocks(self, length: float) -> FloatArray:
        """``[k]`` share of the variance of a mean that blocks of that many frames see.

        Correlation across the ends of blocks is lost, ``sum_t (1 - |t| / L) rho(t)`` instead of ``sum_t rho(t)``
        (Kuensch 1989, doi:10.1214/aos/1176347265), about g / 2L of the variance.
        """
        lag = 2 * np.arange(len(self.pairs), dtype=np.float64) + 0.5
        kept = np.maximum(1 - lag / length, 0.0)[:, None] * self.pairs
        kept[0] = 1 + (self.pairs[0] - 1) * max(1 - 1 / length, 0.0)  # the first pair is 1 + rho(1)
        return np.clip((-1 + 2 * kept.sum(axis=0)) / self.inefficiency, 0.1, 1.0)


def correlation(series: FloatArray, run: IntArray, *, per_run_mean: bool = False) -> Correlation:
    """Autocorrelation pooled over runs, about one mean (runs that differ then count as slow) or the mean of each run.

    It is summed in pairs of lags while the pairs are positive and made to fall monotonically (Geyer 1992,
    doi:10.1214/ss/1177011137), which holds for reversible dynamics.

    Args:
        series: ``[T, k]`` any units.
        run: ``[T]`` label of the run of each frame; frames of a run in order of time.
        per_run_mean: whether runs have means of their own.

    Returns:
        Correlation of each column; a constant column counts as uncorrelated.
    """
    counts = np.unique(run, return_counts=True)[1]
    covariance = np.zeros((int(counts.max()), series.shape[1]))
    centred = _centred(series, run, per_run_mean)
    for label in np.unique(run):
        own = _autocovariance(centred[run == label])
        covariance[: len(own)] += own
    varies = covariance[0] > 1e-20 * (series**2).sum(axis=0)
    rho = np.zeros_like(covariance)
    rho[:, varies] = covariance[:, varies] / covariance[0, varies]
    rho[0] = 1.0
    return Correlation(_falling_pairs(rho))


def _autocovariance(x: FloatArray) -> FloatArray:
    """``[n, k]`` sums of products of frames t apart (not divided by their number)."""
    n = len(x)
    size = next_fast_len(2 * n, real=True)
    power = np.abs(np.fft.rfft(x, size, axis=0)) ** 2
    return np.fft.irfft(power, size, axis=0)[:n]


def _falling_pairs(rho: FloatArray) -> FloatArray:
    """``[m, k]`` Geyer's initial monotone sequence of ``rho [n, k]``."""
    even = np.concatenate([rho, np.zeros((len(rho) % 2, rho.shape[1]))])
    pairs = even[::2] + even[1::2]
    positive = np.logical_and.accumulate(pairs > 0, axis=0)
    return np.minimum.accumulate(np.where(positive, pairs, 0.0), axis=0)


def _centred(series: FloatArray, run: IntArray, per_run_mean: bool) -> FloatArray:
    if not per_run_mean:
        return series - series.mean(axis=0)
    _, slot = np.unique(run, return_inverse=True)
    counts = np.bincount(slot)
    means = np.stack([np.bincount(slot, column) / counts for column in series.T], axis=-1)
    return series - means[slot]


def block_labels(run: IntArray, length: float) -> IntArray:
    """``[T]`` number of the block of each frame: every run is cut into equal blocks of about that many frames."""
    out, first = np.empty(len(run), dtype=np.int64), 0
    for label in np.unique(run):
        own = np.flatnonzero(run == label)
        blocks = max(1, round(len(own) / length))
        out[own] = first + np.arange(len(own)) * blocks // len(own)
        first += blocks
    return out


def growth_of_error(
    series: FloatArray, run: IntArray, length: float, *, per_run_mean: bool = False
) -> tuple[float, float]:
    """Ratio of the error of the mean from blocks twice as long to that from blocks of this length.

    Errors grow with the length of blocks until blocks are independent (Flyvbjerg, Petersen 1989,
    doi:10.1063/1.457480).

    Args:
        series: ``[T]``.
        run: ``[T]`` label of the run of each frame.
        length: frames in a block.
        per_run_mean: whether runs have means of their own.

    Returns:
        The ratio, and one standard deviation of its noise; (1, inf) when there are too few blocks for a comparison.
    """
    centred = _centred(series[:, None], run, per_run_mean)[:, 0]
    sums = [np.bincount(block_labels(run, size), centred) for size in (length, 2 * length)]
    means = len(np.unique(run)) if per_run_mean else 1
    left = [len(s) - means for s in sums]
    if left[1] < 3 or not (sums[0] ** 2).any():
        return 1.0, np.inf
    variances = [len(s) / n * float((s**2).sum()) for s, n in zip(sums, left, strict=True)]
    return float(np.sqrt(variances[1] / variances[0])), float(np.sqrt(0.5 / left[1]))


def between_runs_p(series: FloatArray, run: IntArray, length: float) -> float:
    """Chance that runs of one distribution differ as much as these, judged by blocks within them (chi-squared test).

    Args:
        series: ``[T]``.
        run: ``[T]`` label of the run of each frame.
        length: frames in a block.
    """
    labels, slot, counts = np.unique(run, return_inverse=True, return_counts=True)
    centred = _centred(series[:, None], run, True)[:, 0]
    blocks = block_labels(run, length)
    size = np.bincount(blocks)
    # variance of a sum of n frames is n * rate; every run's own mean costs one block
    per_block = np.bincount(blocks, centred) ** 2 / size
    left = len(size) - len(labels)
    if left < 1 or not per_block.any():
        return 1.0
    rate = per_block.sum() / left
    means = np.bincount(slot, series) / counts
    chi2 = (counts * (means - series.mean()) ** 2).sum() / rate
    return float(chdtrc(len(labels) - 1, chi2))
