"""Free energy surface from columns of a simulation: biased or not, over any variables, or from umbrella windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp

from ccg_gmx.errors import CcgError
from ccg_gmx.free_energy.axes import Axis, Box, GridSurface, grid_surface
from ccg_gmx.free_energy.bootstrap import BlockPlan, BootstrapSettings
from ccg_gmx.free_energy.histogram import Histogram
from ccg_gmx.free_energy.settling import Settling, settling
from ccg_gmx.free_energy.umbrella import Windows
from ccg_gmx.free_energy.weighted_frames import BasinDifference, Reweight, estimate_frames, fixed_weights, influence
from ccg_gmx.records import FloatArray, IntArray

STEPS = 10
"""Surfaces from so many growing parts of the runs show how they settle."""


@dataclass(frozen=True)
class ColvarSurface:
    """A surface with everything that says how far it can be trusted.

    Attributes:
        surface: f and its error.
        frames: number of frames.
        runs: number of runs.
        off_grid: frames beyond the ranges of the axes; they count for basins, not for the surface.
        kish_ess: ``(sum w)^2 / sum w^2``; the number of frames when there is no bias.
        largest_weight: share of the heaviest frame.
        independent: effective number of independent frames, kish_ess / statistical inefficiency.
        halves_js: Jensen-Shannon divergence between the first and the second halves of the runs, nats.
        differences: every basin against the first.
        plan: what the bootstrap resampled.
        settling: surfaces from growing parts of the runs.
        warnings: what speaks against the numbers, in words; empty when nothing does.
    """

    surface: GridSurface
    frames: int
    runs: int
    off_grid: int
    kish_ess: float
    largest_weight: float
    independent: float
    halves_js: float
    differences: tuple[BasinDifference, ...]
    plan: BlockPlan
    settling: Settling
    warnings: tuple[str, ...]


def colvar_surface(
    s: FloatArray,
    run: IntArray,
    time: FloatArray,
    axes: Sequence[Axis],
    temperature_K: float,
    *,
    u_bias: FloatArray | None = None,
    windows: Windows | None = None,
    boxes: Sequence[Box] = (),
    widths: Sequence[float] | None = None,
    settings: BootstrapSettings | None = None,
) -> ColvarSurface:
    """Free energy by a weighted histogram, errors by block bootstrap.

    A frame sampled under the reduced bias u has the weight ``exp(+u)`` (Torrie, Valleau 1977,
    doi:10.1016/0021-9991(77)90121-8); the bias must not depend on time, or slowly. Frames of umbrella windows have the
    weights of MBAR, which every resample finds anew, so that errors have those of the windows' free energies in them.

    Args:
        s: ``[T, d]`` units of the variables.
        run: ``[T]`` label of the run of each frame; frames of a run in order of time. Without windows, runs must
            sample one distribution.
        time: ``[T]`` of each frame.
        axes: the grid, d axes.
        temperature_K: temperature.
        u_bias: ``[T]`` reduced bias, any offset; None for unbiased frames.
        windows: umbrella windows, already solved; then no ``u_bias``.
        boxes: basins to compare with the first of them.
        widths: standard deviation of a smoothing kernel along each axis; None for a plain histogram.
        settings: errors.

    Raises:
        CcgError: too few frames, numbers that are not finite, or no frame within the ranges.
    """
    settings = settings or BootstrapSettings()
    log_w = _log_weights(s, u_bias, windows)
    w = np.exp(log_w - logsumexp(log_w))
    inside = np.array([box.mask(s, axes) for box in boxes], dtype=bool).reshape(len(boxes), len(s))
    features = _features(s, axes)
    if windows is not None:
        settings = settings.model_copy(update={"exchangeable": False, "unit": "blocks"})
    histogram = Histogram.of(s, axes, widths)
    reweight = None if windows is None else windows.reweight
    found = estimate_frames(
        histogram,
        run,
        log_w,
        influence(features, w, inside) if windows is None else features,
        basins=[box.name for box in boxes],
        inside=inside,
        settings=settings,
        reweight=reweight,
    )
    return ColvarSurface(
        surface=grid_surface(found.f, axes, temperature_K, found.error),
        frames=len(s),
        runs=len(found.plan.labels),
        off_grid=int((Histogram.of(s, axes).cells == np.prod([axis.points for axis in axes])).sum()),
        kish_ess=found.kish_ess,
        largest_weight=found.largest_weight,
        independent=found.kish_ess / found.plan.inefficiency,
        halves_js=found.halves_js,
        differences=found.differences,
        plan=found.plan,
        settling=_settling(histogram, run, time, reweight or fixed_weights(log_w), boxes, inside),
        warnings=(*found.warnings, *(windows.warnings if windows else ())),
    )


def _log_weights(s: FloatArray, u_bias: FloatArray | None, windows: Windows | None) -> FloatArray:
    if s.ndim != 2 or len(s) < 4 or not np.isfinite(s).all():
        raise CcgError(f"{len(s)} rows", expected="at least 4, all of them finite", remedy="use a smaller --stride")
    if windows is not None:
        return windows.log_w
    log_w = np.zeros(len(s)) if u_bias is None else np.asarray(u_bias, dtype=np.float64)
    if len(log_w) != len(s) or not np.isfinite(log_w).all():
        raise CcgError(f"{len(log_w)} biases", expected=f"{len(s)} finite numbers")
    return log_w


def _features(s: FloatArray, axes: Sequence[Axis]) -> FloatArray:
    """``[T, m]`` bounded or standardised functions of the variables, whose correlation in time is judged."""
    columns = []
    for x, axis in zip(s.T, axes, strict=True):
        if axis.period is not None:
            turn = 2 * np.pi / axis.period * x
            columns += [np.cos(turn), np.sin(turn)]
        else:
            columns.append((x - x.mean()) / max(float(x.std()), np.finfo(float).tiny))
    return np.stack(columns, axis=-1)


def _settling(
    histogram: Histogram,
    run: IntArray,
    time: FloatArray,
    weights_of: Reweight,
    boxes: Sequence[Box],
    inside: np.ndarray,
) -> Settling:
    labels, start, counts = np.unique(run, return_index=True, return_counts=True)
    place = np.arange(len(run)) - start[np.searchsorted(labels, run)]
    share = (place + 1) / counts[np.searchsorted(labels, run)]
    surfaces, free, ends = [], [], []
    for step in range(1, STEPS + 1):
        rows = np.flatnonzero((share <= step / STEPS + 1e-9) | (place == 0))
        w = weights_of(rows)
        with np.errstate(divide="ignore"):
            surfaces.append(-np.log(histogram.probability(rows, w)))
            free.append(-np.log(inside[:, rows] @ w))
        last = start + np.maximum((counts * step) // STEPS - 1, 0)
        ends.append(float((time[last] - time[start]).mean() + time[start].mean()))
    return settling(np.array(ends), "time / ps", surfaces, [box.name for box in boxes], free)
