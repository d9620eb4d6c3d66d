"""Errors of correlated frames: statistical inefficiency, block length, block bootstrap, intervals.

Two units can be resampled: blocks of neighbouring frames within every run, or whole runs. Blocks must be longer than
the correlation of the frames; whole runs need no such length, but many runs. :func:`plan_blocks` chooses, and says
when the data are too short for either.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from pydantic import Field
from scipy.special import ndtr, stdtrit

from ccg_gmx.errors import CcgError
from ccg_gmx.flow.resample import resample_blocks
from ccg_gmx.free_energy.correlation import between_runs_p, correlation, growth_of_error
from ccg_gmx.free_energy.estimators import BarEstimate, bar
from ccg_gmx.free_energy.run_agreement import forward_ess_fraction
from ccg_gmx.records import FloatArray, IntArray
from ccg_gmx.settings import Settings

Unit = Literal["blocks", "runs"]
Statistic = Callable[[IntArray], ArrayLike]
"""``statistic(rows [T'])``: a number or an array, from the frames of those rows, some of them repeated."""

MANY_RUNS = 10
"""From so many exchangeable runs on, whole runs are resampled: it assumes nothing about the correlation in a run."""

ENOUGH_INDEPENDENT = 50
"""Fewer correlation times than this in all data do not tell the correlation time itself."""

ENOUGH_DOF = 8
"""Fewer degrees of freedom leave the error itself uncertain by more than a quarter, 1 / sqrt(2 dof)."""


class BootstrapSettings(Settings):
    """How errors of correlated frames are found."""

    resamples: int = Field(default=200, ge=2, description="number of bootstrap resamples")
    unit: Literal["auto", "blocks", "runs"] = Field(
        default="auto", description="resample blocks within every run, or whole runs; auto: runs when there are ten"
    )
    exchangeable: bool = Field(
        default=True,
        description="every run samples the same distribution; false: runs are strata, each with a mean of its own",
    )
    blocks_per_run: int | None = Field(
        default=None, ge=2, description="blocks in every run; null: from the correlation of the frames"
    )
    confidence: float = Field(default=0.95, gt=0, lt=1, description="coverage of intervals")
    interval: Literal["t", "percentile"] = Field(
        default="t", description="Student t around the value, or percentiles widened for few blocks"
    )
    seed: int = Field(default=0, ge=0, description="seed of the resamples")


@dataclass(frozen=True)
class BlockPlan:
    """What is resampled, and whether there is enough of it.

    Attributes:
        unit: ``blocks`` within every run, or whole ``runs``.
        labels: ``[R]`` run labels.
        blocks: ``[R]`` blocks in each run (1 each when whole runs are the unit).
        length: frames in a typical block.
        inefficiency: statistical inefficiency of the frames, >= 1; nan when it was not asked for.
        independent: frames / inefficiency.
        dof: degrees of freedom of the error.
        inflation: factor on the standard deviation of replicates. Resamples scatter about the sample's mean, which
            hides one of k blocks (of every run), ``sqrt(k / (k - 1))``; and blocks lose the correlation across their
            ends (``Correlation.seen_by_blocks``).
        warnings: why the error may be too small; empty when nothing speaks against it.
    """

    unit: Unit
    labels: IntArray
    blocks: IntArray
    length: float
    inefficiency: float
    independent: float
    dof: int
    inflation: float
    warnings: tuple[str, ...] = ()

    @property
    def enough(self) -> bool:
        """Whether the data are long enough for the error to be trusted."""
        return not self.warnings


@dataclass(frozen=True)
class BlockEstimate:
    """A statistic with its error.

    Attributes:
        value: of all frames.
        error: one standard error; inf when it is not finite in some resample.
        low: lower end of the interval.
        high: upper end.
        confidence: coverage asked for.
        plan: what was resampled.
    """

    value: float
    error: float
    low: float
    high: float
    confidence: float
    plan: BlockPlan


def plan_blocks(series: FloatArray, run: IntArray, settings: BootstrapSettings | None = None) -> BlockPlan:
    """Choose what to resample from how long the frames stay correlated.

    A block is ``sqrt(independent) / 2`` statistical inefficiencies long, between 5 and 20: block means then miss a
    tenth of the variance at most, which is corrected. With ten exchangeable runs or more, or with runs shorter than
    two blocks, whole runs are the unit.

    Args:
        series: ``[T]`` or ``[T, k]`` what the statistic depends on, any units (its influence function, best); the
            slowest column decides.
        run: ``[T]`` label of the run of each frame; frames of a run in order of time.
        settings: how.

    Raises:
        CcgError: if shapes do not fit, a number is not finite, or there are fewer than 2 units to resample.
    """
    settings = settings or BootstrapSettings()
    columns = np.asarray(series, dtype=np.float64).reshape(len(series), -1)
    if len(columns) != len(run) or not len(run) or not np.isfinite(columns).all():
        raise CcgError(f"series of shape {columns.shape} for {len(run)} frames", expected="finite numbers per frame")
    labels, counts = np.unique(run, return_counts=True)
    memory = correlation(columns, run, per_run_mean=not settings.exchangeable)
    worst = int(np.argmax(memory.inefficiency))
    g = float(memory.inefficiency[worst])
    wanted = g * float(np.clip(0.5 * np.sqrt(len(run) / g), 5, 20))
    unit, blocks = _units(counts, wanted, settings)
    plan = _plan(unit, labels, counts, blocks, g)
    if unit == "blocks":
        seen = float(memory.seen_by_blocks(plan.length)[worst])
        plan = replace(plan, inflation=plan.inflation / seen**0.5)
    warnings = _warnings(plan, columns[:, worst], run, counts, settings)
    return replace(plan, warnings=warnings)


def _units(counts: IntArray, wanted: float, settings: BootstrapSettings) -> tuple[Unit, IntArray]:
    """Unit and blocks per run for blocks of the wanted length."""
    fixed = settings.blocks_per_run
    blocks = np.full(len(counts), fixed) if fixed else np.maximum(counts // int(np.ceil(wanted)), 1)
    unit: Unit
    if settings.unit != "auto":
        unit = settings.unit
    elif fixed or not settings.exchangeable:
        unit = "blocks"
    else:
        short = bool((blocks < 2).any()) and len(counts) > 4
        unit = "runs" if len(counts) >= MANY_RUNS or short else "blocks"
    return unit, np.ones_like(counts) if unit == "runs" else np.clip(blocks, 2, np.maximum(counts, 2))


def _plan(unit: Unit, labels: IntArray, counts: IntArray, blocks: IntArray, inefficiency: float) -> BlockPlan:
    total = float(counts.sum())
    if unit == "runs":
        if len(labels) < 2:
            raise CcgError("one run", expected="at least 2 to resample whole runs", remedy="resample blocks instead")
        dof, kept = len(labels) - 1, (len(labels) - 1) / len(labels)
    else:
        # the variance of a sum over runs is in proportion to their lengths; each keeps (k - 1) / k of it
        dof, kept = int((blocks - 1).sum()), float((counts * (blocks - 1) / blocks).sum() / total)
    length = total / len(labels) if unit == "runs" else total / float(blocks.sum())
    return BlockPlan(unit, labels, blocks, length, inefficiency, total / inefficiency, dof, kept**-0.5)


def _warnings(
    plan: BlockPlan, series: FloatArray, run: IntArray, counts: IntArray, settings: BootstrapSettings
) -> tuple[str, ...]:
    words = []
    if plan.independent < ENOUGH_INDEPENDENT:
        words.append(
            f"the data are too short: about {plan.independent:.0f} independent frames "
            f"(frames stay correlated over {plan.inefficiency:.0f}); errors are lower bounds"
        )
    if plan.dof < ENOUGH_DOF:
        what = f"{int(plan.blocks.sum())} {plan.unit}"
        words.append(f"only {what} to resample: the errors themselves are uncertain by {(2 * plan.dof) ** -0.5:.0%}")
    if plan.unit == "blocks":
        growth, noise = growth_of_error(series, run, plan.length, per_run_mean=not settings.exchangeable)
        if growth > 1 + 2 * noise:
            words.append(
                f"blocks of {plan.length:.0f} frames are too short: twice as long, they give errors {growth:.2f} times "
                "as large; errors are lower bounds"
            )
        if settings.exchangeable and len(counts) > 1 and between_runs_p(series, run, plan.length) < 0.01:
            words.append(
                "the runs differ by more than their own fluctuations explain: some motion is slower than a run; "
                "errors are lower bounds"
            )
    return tuple(words)


def resampler(run: IntArray, plan: BlockPlan, rng: np.random.Generator) -> Callable[[], IntArray]:
    """Source of bootstrap resamples of the frames.

    Args:
        run: ``[T]`` as given to :func:`plan_blocks`.
        plan: what to resample.
        rng: source of the choice.

    Returns:
        Function that gives the rows ``[T']`` of the next resample; T' = T for blocks, and depends on the runs chosen
        for whole runs.
    """
    rows = [np.flatnonzero(run == label) for label in plan.labels]
    alone = [np.zeros(len(own), dtype=np.int64) for own in rows]

    def next_rows() -> IntArray:
        if plan.unit == "runs":
            return np.concatenate([rows[i] for i in rng.integers(len(rows), size=len(rows))])
        parts = zip(rows, alone, plan.blocks, strict=True)
        return np.concatenate([own[resample_blocks(label, int(k), rng)] for own, label, k in parts])

    return next_rows


def block_bootstrap(
    run: IntArray,
    statistic: Statistic,
    blocks_per_run: int = 5,
    resamples: int = 200,
    seed: int = 0,
    *,
    plan: BlockPlan | None = None,
) -> FloatArray:
    """Values of a statistic over bootstrap resamples of correlated frames.

    Circular blocks within every run (Politis, Romano 1992), or whole runs, as the plan says. The standard deviation
    of the replicates is too small for few blocks; :func:`standard_error` corrects it.

    Args:
        run: ``[T]`` label of the run of each frame; frames of a run in order of time.
        statistic: from row indices to a number or an array.
        blocks_per_run: blocks in every run, at least 2; the plan's, when there is one.
        resamples: number of replicates.
        seed: seed.
        plan: what to resample, from :func:`plan_blocks`.

    Returns:
        ``[resamples, ...]``.

    Raises:
        CcgError: for fewer than 2 blocks per run.
    """
    rng = np.random.default_rng(seed)
    draw = resampler(run, plan, rng) if plan else lambda: resample_blocks(run, blocks_per_run, rng)
    return np.array([statistic(draw()) for _ in range(resamples)], dtype=np.float64)


def standard_error(replicates: FloatArray, plan: BlockPlan) -> FloatArray:
    """``[...]`` standard error from replicates ``[resamples, ...]``; inf where one of them is not finite."""
    with np.errstate(invalid="ignore"):
        spread = np.std(replicates, axis=0, ddof=1) * plan.inflation
    return np.where(np.isfinite(replicates).all(axis=0), spread, np.inf)


def interval(
    value: FloatArray | float,
    replicates: FloatArray,
    plan: BlockPlan,
    confidence: float = 0.95,
    method: Literal["t", "percentile"] = "t",
) -> tuple[FloatArray, FloatArray]:
    """Confidence interval of a statistic.

    ``t``: value plus or minus Student's t with the plan's degrees of freedom times the standard error. ``percentile``:
    percentiles of the replicates, for skewed statistics, moved outwards so that few blocks cover as t does (Hesterberg
    2015, doi:10.1080/00031305.2015.1089789); it wants 1000 resamples or more.

    Args:
        value: ``[...]`` of all frames.
        replicates: ``[resamples, ...]``.
        plan: what was resampled.
        confidence: coverage.
        method: see above.

    Returns:
        Lower and upper end ``[...]``.
    """
    t = float(stdtrit(plan.dof, 0.5 + confidence / 2))
    if method == "percentile":
        tail = float(ndtr(-plan.inflation * t))
        low, high = np.quantile(replicates, [tail, 1 - tail], axis=0)
        return np.asarray(low), np.asarray(high)
    reach = t * standard_error(replicates, plan)
    return np.asarray(value - reach), np.asarray(value + reach)


def estimate(
    statistic: Statistic, run: IntArray, series: FloatArray, settings: BootstrapSettings | None = None
) -> BlockEstimate:
    """A statistic of correlated frames with its standard error and interval.

    Args:
        statistic: from row indices to a number.
        run: ``[T]`` label of the run of each frame.
        series: ``[T]`` or ``[T, k]`` from which the correlation is judged (see :func:`plan_blocks`).
        settings: how.

    Raises:
        CcgError: see :func:`plan_blocks`.
    """
    settings = settings or BootstrapSettings()
    plan = plan_blocks(series, run, settings)
    value = float(np.asarray(statistic(np.arange(len(run)))))
    replicates = block_bootstrap(run, statistic, resamples=settings.resamples, seed=settings.seed, plan=plan)
    low, high = interval(value, replicates, plan, settings.confidence, settings.interval)
    return BlockEstimate(
        value, float(standard_error(replicates, plan)), float(low), float(high), settings.confidence, plan
    )


STRATA = BootstrapSettings(exchangeable=False)
"""Fine runs that start in different states and stay there: each is resampled within itself."""


def bar_with_blocks(
    log_w_forward: FloatArray,
    run: IntArray,
    log_w_reverse: FloatArray,
    settings: BootstrapSettings = STRATA,
) -> BarEstimate:
    """Bennett's acceptance ratio between correlated fine frames and independent draws, error by bootstrap.

    Every resample takes blocks of fine frames and, one by one, draws. Over several coarse points, give log-weights
    normalised per point (``ln w + f(s)``); for one basin, the frames and draws inside it.

    Args:
        log_w_forward: ``[n_p]`` log-weights at fine frames (of p).
        run: ``[n_p]`` run of each fine frame.
        log_w_reverse: ``[n_q]`` log-weights of independent draws (of q).
        settings: how; runs are strata by default.

    Raises:
        CcgError: a side is empty or holds nan, or nothing overlaps.
    """
    forward, reverse = np.ravel(log_w_forward), np.ravel(log_w_reverse)
    value = bar(forward, reverse).f
    # what a fine frame adds to the estimating equation is bounded, whatever its weight
    influence = 1 / (1 + np.exp(np.clip(forward + value + np.log(forward.size / reverse.size), -700, 700)))
    plan = plan_blocks(influence, run, settings)
    draws = np.random.default_rng([settings.seed, 1])

    def statistic(rows: IntArray) -> float:
        return bar(forward[rows], reverse[draws.integers(reverse.size, size=reverse.size)]).f

    replicates = block_bootstrap(run, statistic, resamples=settings.resamples, seed=settings.seed, plan=plan)
    return BarEstimate(value, float(standard_error(replicates, plan)))


def forward_ess_with_blocks(
    forward_log_w: FloatArray, run: IntArray, settings: BootstrapSettings = STRATA
) -> BlockEstimate:
    """Forward effective sample fraction with a block-bootstrap error (see ``diagnostics.forward_ess_fraction``).

    A few frames with extreme weights decide it: its 95 % interval covered 87 % in tests with 350 independent frames.

    Args:
        forward_log_w: ``[T]`` log-weights at held-out fine frames, normalised per coarse point.
        run: ``[T]`` run of each frame.
        settings: how; runs are strata by default.

    Raises:
        CcgError: a log-weight is nan or infinite (the fraction is then 0, and has no error).
    """
    w = np.ravel(forward_log_w)
    # influence of a frame on -ln E[w] - ln E[1 / w]
    series = np.stack([np.exp(w - np.logaddexp.reduce(w)), np.exp(-w - np.logaddexp.reduce(-w))], axis=-1)
    return estimate(lambda rows: forward_ess_fraction(w[rows]), run, series, settings)


def sandwich_lower_with_blocks(
    forward_log_w: FloatArray, run: IntArray, settings: BootstrapSettings = STRATA
) -> BlockEstimate:
    """Lower bound of f, ``E_p[u + ln q]``, with a block-bootstrap error (see ``estimators.sandwich``).

    Args:
        forward_log_w: ``[T]`` log-weights at fine frames.
        run: ``[T]`` run of each frame.
        settings: how; runs are strata by default.

    Raises:
        CcgError: a log-weight is nan or infinite.
    """
    w = np.ravel(forward_log_w)
    return estimate(lambda rows: float(-w[rows].mean()), run, w, settings)
