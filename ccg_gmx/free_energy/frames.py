"""Free energy surface of frames that somebody's own simulation visited, biased or not, with errors and warnings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import Field
from scipy.ndimage import maximum_filter
from scipy.special import logsumexp

from ccg_gmx.errors import CcgError
from ccg_gmx.free_energy.bootstrap import BlockPlan, BootstrapSettings, plan_blocks, resampler
from ccg_gmx.free_energy.correlation import block_labels
from ccg_gmx.free_energy.diagnostics import kish_ess
from ccg_gmx.free_energy.surface import Basin, histogram_surface, jensen_shannon, probability, smooth_periodic
from ccg_gmx.free_energy.torsion_grid import shifted
from ccg_gmx.records import FloatArray, FreeEnergySurface, IntArray
from ccg_gmx.settings import Settings

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


class FrameSettings(Settings):
    """How a surface is made from frames."""

    bins: int = Field(default=100, ge=4, description="bins per torsion")
    kde_degrees: float = Field(default=0.0, ge=0, le=60, description="width of a smoothing kernel; 0: plain histogram")
    bootstrap: BootstrapSettings = Field(default_factory=BootstrapSettings, description="errors")


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
class FrameSurface:
    """A surface with everything that says how far it can be trusted.

    Attributes:
        surface: f and its error.
        halves: surfaces of the first and of the second half of every run.
        frames: number of frames.
        runs: number of runs.
        kish_ess: ``(sum w)^2 / sum w^2``; the number of frames when there is no bias.
        largest_weight: share of the heaviest frame.
        independent: effective number of independent frames, kish_ess / statistical inefficiency.
        halves_js: Jensen-Shannon divergence of the halves, nats.
        differences: every basin against the first.
        plan: what the bootstrap resampled.
        warnings: what speaks against the numbers, in words; empty when nothing does.
    """

    surface: FreeEnergySurface
    halves: tuple[FreeEnergySurface, FreeEnergySurface]
    frames: int
    runs: int
    kish_ess: float
    largest_weight: float
    independent: float
    halves_js: float
    differences: tuple[BasinDifference, ...]
    plan: BlockPlan
    warnings: tuple[str, ...]


def frame_surface(
    s: FloatArray,
    run: IntArray,
    names: tuple[str, ...],
    temperature_K: float,
    *,
    u_bias: FloatArray | None = None,
    basins: Sequence[Basin] = (),
    settings: FrameSettings | None = None,
) -> FrameSurface:
    """Free energy of (biased) frames by a weighted histogram, errors by block bootstrap.

    A frame sampled under the reduced bias u has the weight ``exp(+u)`` (Torrie, Valleau 1977,
    doi:10.1016/0021-9991(77)90121-8). The bias must not depend on time while the frames were sampled, or so slowly
    that it does not matter. Runs must sample the same distribution.

    The error of a bin is the standard deviation of its resampled probability over the probability, which is that of f
    to first order, relative to the Boltzmann average of f; nan where fewer than ``BLOCKS_FOR_ERROR`` blocks went.

    Args:
        s: ``[T, d]`` radians.
        run: ``[T]`` label of the run of each frame; frames of a run in order of time.
        names: names of the d torsions.
        temperature_K: temperature.
        u_bias: ``[T]`` reduced bias, any offset; None for unbiased frames.
        basins: boxes to compare with the first of them.
        settings: bins, smoothing, errors.

    Raises:
        CcgError: no or too few frames, shapes that do not fit, numbers that are not finite, a basin with other
            torsions.
    """
    settings = settings or FrameSettings()
    log_w = np.zeros(len(s)) if u_bias is None else np.asarray(u_bias, dtype=np.float64)
    _check(s, run, log_w)
    inside = np.array([basin.mask(s, names) for basin in basins], dtype=bool).reshape(len(basins), len(s))
    w = np.exp(log_w - logsumexp(log_w))
    plan = plan_blocks(_influence(s, w, inside), run, settings.bootstrap)

    def surface_of(rows: IntArray) -> FreeEnergySurface:
        return histogram_surface(s[rows], settings.bins, names, temperature_K, log_w[rows], settings.kde_degrees)

    surface = surface_of(np.arange(len(s)))
    blocks = run if plan.unit == "runs" else block_labels(run, plan.length)
    bins = _Bins.of(s, settings)
    error, spread = _resampled_errors(bins, w, inside, run, plan, settings)
    f = np.where(bins.visits(blocks, KERNEL_REACH) > 0, surface.f, np.inf)
    seen = bins.visits(blocks) >= BLOCKS_FOR_ERROR
    error = np.divide(error, probability(surface), out=np.full_like(error, np.nan), where=seen)
    first = _first_half(run)
    halves = (surface_of(np.flatnonzero(first)), surface_of(np.flatnonzero(~first)))
    kish, heaviest = float(kish_ess(log_w)), float(w.max())
    differences = _differences(basins, inside, w, first, blocks, spread)
    return FrameSurface(
        surface=shifted(f, names, temperature_K, error),
        halves=halves,
        frames=len(s),
        runs=len(plan.labels),
        kish_ess=kish,
        largest_weight=heaviest,
        independent=kish / plan.inefficiency,
        halves_js=jensen_shannon(*halves),
        differences=differences,
        plan=plan,
        warnings=(
            *plan.warnings,
            *_weight_warnings(kish, heaviest, len(s), biased=bool(np.ptp(log_w) > 0)),
            *_half_warnings(halves, error),
            *_basin_warnings(differences),
        ),
    )


def _check(s: FloatArray, run: IntArray, log_w: FloatArray) -> None:
    if s.ndim != 2 or len(s) < 4 or not np.isfinite(s).all():
        raise CcgError(f"frames of shape {s.shape}", expected="finite torsions [T, d] of at least 4 frames")
    if len(run) != len(s) or len(log_w) != len(s) or not np.isfinite(log_w).all():
        raise CcgError(f"{len(run)} run labels and {len(log_w)} biases", expected=f"{len(s)} finite numbers of each")


def _influence(s: FloatArray, w: FloatArray, inside: np.ndarray) -> FloatArray:
    """``[T, k]`` what each frame adds to weighted means: of cos and sin of the torsions, and of ln Z of basins."""
    columns = [np.cos(s), np.sin(s)]
    total = inside @ w
    if len(inside) > 1 and (total > 0).all():
        columns.append((inside[1:] / total[1:, None] - inside[:1] / total[0]).T)
    values = np.concatenate(columns, axis=1)
    return len(w) * w[:, None] * (values - w @ values)


@dataclass(frozen=True)
class _Bins:
    """The bin of each frame, the last torsion fastest, and the kernel that smooths counts."""

    cells: IntArray
    shape: tuple[int, ...]
    kde_degrees: float

    @classmethod
    def of(cls, s: FloatArray, settings: FrameSettings) -> _Bins:
        n, d = settings.bins, s.shape[1]
        cells = np.floor((s + np.pi) * n / (2 * np.pi) + 0.5).astype(np.int64) % n
        return cls(np.ravel_multi_index(tuple(cells.T), (n,) * d), (n,) * d, settings.kde_degrees)

    def probability(self, rows: IntArray, w: FloatArray) -> FloatArray:
        """Normalised (smoothed) histogram of the rows with weights ``w [T']``."""
        counts = np.bincount(self.cells[rows], w, minlength=int(np.prod(self.shape))).reshape(self.shape)
        return smooth_periodic(counts / counts.sum(), self.kde_degrees)

    def visits(self, blocks: IntArray, widths: float = 1.0) -> IntArray:
        """Number of blocks that visited each bin, or some bin within so many widths of the kernel."""
        pairs = np.unique(self.cells * (int(blocks.max()) + 1) + blocks)
        count = np.bincount(pairs // (int(blocks.max()) + 1), minlength=int(np.prod(self.shape))).reshape(self.shape)
        reach = int(np.ceil(widths * self.kde_degrees * self.shape[0] / 360))
        return np.asarray(maximum_filter(count, size=2 * reach + 1, mode="wrap")) if reach else count


def _resampled_errors(
    bins: _Bins, w: FloatArray, inside: np.ndarray, run: IntArray, plan: BlockPlan, settings: FrameSettings
) -> tuple[FloatArray, FloatArray]:
    """Standard error of the probability of each bin, and ``[n_basins]`` of ``ln Z_k - ln Z_0`` to first order.

    Sums instead of a list of replicates: three torsions would not fit into memory.
    """
    draw = resampler(run, plan, np.random.default_rng(settings.bootstrap.seed))
    count = settings.bootstrap.resamples
    centre = bins.probability(np.arange(len(w)), w)
    whole = np.maximum(inside @ w, np.finfo(float).tiny)
    total, squares = np.zeros_like(centre), np.zeros_like(centre)
    shares = np.empty((count, len(inside)))
    for index in range(count):
        rows = draw()
        weights = w[rows]
        away = bins.probability(rows, weights) - centre
        total += away
        squares += away**2
        shares[index] = inside[:, rows] @ weights / weights.sum() / whole
    variance = np.maximum(squares - total**2 / count, 0.0) / (count - 1)
    spread = np.std(shares - shares[:, :1], axis=0, ddof=1) if len(inside) else np.zeros(0)
    return plan.inflation * np.sqrt(variance), plan.inflation * spread


def _first_half(run: IntArray) -> np.ndarray:
    """``[T]`` True for the first half of the frames of every run."""
    first = np.zeros(len(run), dtype=bool)
    for label in np.unique(run):
        own = np.flatnonzero(run == label)
        first[own[: (len(own) + 1) // 2]] = True
    if first.all():
        first[np.unique(run, return_inverse=True)[1] % 2 == 1] = False  # runs of one frame
    return first


def _differences(
    basins: Sequence[Basin], inside: np.ndarray, w: FloatArray, first: np.ndarray, blocks: IntArray, spread: FloatArray
) -> tuple[BasinDifference, ...]:
    if len(basins) < 2:
        return ()
    with np.errstate(divide="ignore"):
        f = [-np.log(inside[:, part] @ w[part]) for part in (slice(None), first, ~first)]
    visited = [len(np.unique(blocks[mask])) for mask in inside]
    with np.errstate(invalid="ignore"):
        return tuple(
            BasinDifference(
                basins[0].name,
                basin.name,
                float(f[0][k] - f[0][0]),
                float(spread[k]) if min(visited[k], visited[0]) else float("nan"),
                (float(f[1][k] - f[1][0]), float(f[2][k] - f[2][0])),
                min(visited[k], visited[0]),
            )
            for k, basin in enumerate(basins)
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


def _half_warnings(halves: tuple[FreeEnergySurface, FreeEnergySurface], error: FloatArray) -> list[str]:
    """Compare the squared difference of the halves with what the errors (of the whole) let expect, 4 error^2."""
    a, b = (half.f for half in halves)
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
