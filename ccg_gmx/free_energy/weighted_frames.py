"""What weighted, correlated frames say about a histogram and about boxes: values, bootstrap errors, warnings.

The shared core of surfaces from trajectories (``frames.py``), from COLVAR files (``colvar.py``) and from umbrella
windows, whose weights are found anew for every resample.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp, rel_entr

from ccg_gmx.free_energy.bootstrap import BlockPlan, BootstrapSettings, plan_blocks, resampler
from ccg_gmx.free_energy.correlation import block_labels
from ccg_gmx.free_energy.histogram import Histogram
from ccg_gmx.records import FloatArray, IntArray

BLOCKS_FOR_ERROR = 3
"""A bin that fewer blocks visited has an unknown error: resamples of one visit say nothing about the next."""

BLOCKS_FOR_BASIN = 10
"""A basin that fewer blocks visited is warned about."""

KERNEL_REACH = 3.0
"""Smoothed surfaces end so many kernel widths from the nearest frame; beyond, they would show the kernel's own tail."""

FEW_WEIGHTS = 100
"""Reweighting with a smaller effective sample size is warned about."""

HEAVY_WEIGHT = 0.05
"""So is a single frame with more than this share of the weight."""

HALVES_APART = 4.0
"""Squared difference of the halves over its expectation that is warned about; one slow mode alone exceeds it in 5 %."""

TINY = 1e-100
"""Weights below it, relative to the heaviest, are found anew from their logarithms when there are no others."""

Reweight = Callable[[IntArray], FloatArray]
"""From rows ``[T']``, some of them repeated, to their weights ``[T']``."""


@dataclass(frozen=True)
class BasinDifference:
    """Free energy difference between two basins, from the frames inside them.

    Attributes:
        first: name of the basin that counts as zero.
        second: name of the other.
        f: ``f(second) - f(first)`` in kT; inf (-inf) when no frame is in the second (first).
        error: one standard error in kT; nan when a basin is empty.
        halves: the same from the first and from the second half of every run.
        blocks: blocks that visited the basin visited by fewer.
    """

    first: str
    second: str
    f: float
    error: float
    halves: tuple[float, float]
    blocks: int


@dataclass(frozen=True)
class FrameEstimate:
    """Histogram and basins of weighted frames.

    Attributes:
        f: ``-ln p`` of each bin, kT; inf where no frame is near.
        error: one standard error in kT, of f relative to its Boltzmann average; nan where fewer than
            ``BLOCKS_FOR_ERROR`` blocks went.
        halves: ``-ln p`` of the first and of the second half of every run.
        halves_js: Jensen-Shannon divergence of the halves, nats.
        kish_ess: ``(sum w)^2 / sum w^2``.
        largest_weight: share of the heaviest frame.
        differences: every basin against the first.
        plan: what the bootstrap resampled.
        warnings: what speaks against the numbers, in words; empty when nothing does.
    """

    f: FloatArray
    error: FloatArray
    halves: tuple[FloatArray, FloatArray]
    halves_js: float
    kish_ess: float
    largest_weight: float
    differences: tuple[BasinDifference, ...]
    plan: BlockPlan
    warnings: tuple[str, ...]


def estimate_frames(
    histogram: Histogram,
    run: IntArray,
    log_w: FloatArray,
    series: FloatArray,
    *,
    basins: Sequence[str] = (),
    inside: np.ndarray,
    settings: BootstrapSettings,
    reweight: Reweight | None = None,
) -> FrameEstimate:
    """Histogram, basins and their errors.

    The error of a bin is the standard deviation of its resampled probability over the probability, which is that of f
    to first order.

    Args:
        histogram: bins of the T frames.
        run: ``[T]`` label of the run of each frame; frames of a run in order of time.
        log_w: ``[T]`` log-weights, any offset.
        series: ``[T, k]`` from which the correlation is judged, see :func:`influence`.
        basins: names of the boxes.
        inside: ``[len(basins), T]`` frames in each box.
        settings: of the bootstrap.
        reweight: weights of a resample, when they depend on it; by default those of its frames.
    """
    w = np.exp(log_w - logsumexp(log_w))
    weights_of = reweight or fixed_weights(log_w)
    plan = plan_blocks(series, run, settings)
    blocks = run if plan.unit == "runs" else block_labels(run, plan.length)
    centre = histogram.probability(np.arange(len(w)), w)
    error, spread = _resampled_errors(histogram, centre, w, inside, run, plan, settings, weights_of)
    seen = histogram.visits(blocks) >= BLOCKS_FOR_ERROR
    error = np.divide(error, centre, out=np.full_like(error, np.nan), where=seen & (centre > 0))
    first = first_half(run)
    parts = [np.flatnonzero(first), np.flatnonzero(~first)]
    part_w = [weights_of(rows) for rows in parts]
    halves = [histogram.probability(rows, own) for rows, own in zip(parts, part_w, strict=True)]
    with np.errstate(divide="ignore"):
        f, f_a, f_b = (-np.log(p) for p in (centre, *halves))
    middle = 0.5 * (halves[0] + halves[1])
    differences = _differences(
        basins, inside, [(np.arange(len(w)), w), *zip(parts, part_w, strict=True)], blocks, spread
    )
    kish, heaviest = float(w.sum() ** 2 / (w**2).sum()), float(w.max())
    biased = reweight is not None or bool(np.ptp(w) > 1e-12 * heaviest)
    return FrameEstimate(
        f=np.where(histogram.visits(blocks, KERNEL_REACH) > 0, f, np.inf),
        error=error,
        halves=(f_a, f_b),
        halves_js=float(0.5 * sum(rel_entr(p, middle).sum() for p in halves)),
        kish_ess=kish,
        largest_weight=heaviest,
        differences=differences,
        plan=plan,
        warnings=(
            *plan.warnings,
            *_weight_warnings(kish, heaviest, len(w), biased=biased),
            *_half_warnings((f_a, f_b), error),
            *_basin_warnings(differences),
        ),
    )


def fixed_weights(log_w: FloatArray) -> Reweight:
    """Weights of frames that do not depend on the others; the offset does, where all of them would vanish."""
    w = np.exp(log_w - log_w.max())

    def weights_of(rows: IntArray) -> FloatArray:
        own = w[rows]
        return own if own.max() > TINY else np.exp(log_w[rows] - log_w[rows].max())

    return weights_of


def influence(features: FloatArray, w: FloatArray, inside: np.ndarray) -> FloatArray:
    """``[T, k]`` what each frame adds to weighted means: of features ``[T, m]``, and of ln Z of basins."""
    columns = [features]
    total = inside @ w
    if len(inside) > 1 and (total > 0).all():
        columns.append((inside[1:] / total[1:, None] - inside[:1] / total[0]).T)
    values = np.concatenate(columns, axis=1)
    return np.asarray(len(w) * w[:, None] * (values - w @ values))


def first_half(run: IntArray) -> np.ndarray:
    """``[T]`` True for the first half of the frames of every run."""
    first = np.zeros(len(run), dtype=bool)
    for label in np.unique(run):
        own = np.flatnonzero(run == label)
        first[own[: (len(own) + 1) // 2]] = True
    if first.all():
        first[np.unique(run, return_inverse=True)[1] % 2 == 1] = False  # runs of one frame
    return first


def _resampled_errors(
    histogram: Histogram,
    centre: FloatArray,
    w: FloatArray,
    inside: np.ndarray,
    run: IntArray,
    plan: BlockPlan,
    settings: BootstrapSettings,
    weights_of: Reweight,
) -> tuple[FloatArray, FloatArray]:
    """Standard error of the probability of each bin, and ``[n_basins]`` of ``ln Z_k - ln Z_0`` to first order.

    Sums instead of a list of replicates: three variables would not fit into memory.
    """
    draw = resampler(run, plan, np.random.default_rng(settings.seed))
    count = settings.resamples
    whole = np.maximum(inside @ w, np.finfo(float).tiny)
    total, squares = np.zeros_like(centre), np.zeros_like(centre)
    shares = np.empty((count, len(inside)))
    for index in range(count):
        rows = draw()
        weights = weights_of(rows)
        away = histogram.probability(rows, weights) - centre
        total += away
        squares += away**2
        shares[index] = inside[:, rows] @ weights / weights.sum() / whole
    variance = np.maximum(squares - total**2 / count, 0.0) / (count - 1)
    spread = np.std(shares - shares[:, :1], axis=0, ddof=1) if len(inside) else np.zeros(0)
    return plan.inflation * np.sqrt(variance), plan.inflation * spread


def _differences(
    basins: Sequence[str],
    inside: np.ndarray,
    parts: Sequence[tuple[IntArray, FloatArray]],
    blocks: IntArray,
    spread: FloatArray,
) -> tuple[BasinDifference, ...]:
    """From (rows, weights) of all frames, of the first and of the second half."""
    if len(basins) < 2:
        return ()
    with np.errstate(divide="ignore"):
        f = [-np.log(inside[:, rows] @ weights) for rows, weights in parts]
    visited = [len(np.unique(blocks[mask])) for mask in inside]
    with np.errstate(invalid="ignore"):
        return tuple(
            BasinDifference(
                basins[0],
                name,
                float(f[0][k] - f[0][0]),
                float(spread[k]) if min(visited[k], visited[0]) else float("nan"),
                (float(f[1][k] - f[1][0]), float(f[2][k] - f[2][0])),
                min(visited[k], visited[0]),
            )
            for k, name in enumerate(basins)
            if k > 0
        )


def _weight_warnings(kish: float, heaviest: float, frames: int, *, biased: bool) -> list[str]:
    words = []
    if biased and kish < min(FEW_WEIGHTS, frames):
        words.append(
            f"the weights collapse: {frames} frames are worth {kish:.1f}; the bias and the unbiased system visit "
            "different places, or the bias is not what the frames were sampled under"
        )
    if biased and heaviest > HEAVY_WEIGHT:
        words.append(f"a single frame carries {heaviest:.0%} of the weight")
    return words


def _half_warnings(halves: tuple[FloatArray, FloatArray], error: FloatArray) -> list[str]:
    """Compare the squared difference of the halves with what the errors (of the whole) let expect, 4 error^2."""
    a, b = halves
    known = np.isfinite(a) & np.isfinite(b) & np.isfinite(error) & (error > 0)
    if not known.any():
        return ["the first and second half of the runs have no bin in common whose error is known"]
    p = np.exp(-a[known] - logsumexp(-a[known])) / 2 + np.exp(-b[known] - logsumexp(-b[known])) / 2
    apart = a[known] - b[known]
    apart = apart - p @ apart
    ratio = float(p @ apart**2 / (p @ (4 * error[known] ** 2)))
    if ratio <= HALVES_APART:
        return []
    return [f"the first and second half of the runs differ {ratio**0.5:.1f} times as much as the errors let expect"]


def _basin_warnings(differences: tuple[BasinDifference, ...]) -> list[str]:
    words = []
    for d in differences:
        if not d.blocks:
            words.append(f"no frame is in {d.second if d.f > 0 else d.first}: its free energy is unknown")
        elif d.blocks < BLOCKS_FOR_BASIN:
            words.append(f"{d.second} or {d.first} was visited in {d.blocks} blocks only: the error is a rough guess")
    return words
