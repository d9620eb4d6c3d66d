"""Free energy surface of frames that somebody's own simulation visited, biased or not, with errors and warnings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import Field
from scipy.special import logsumexp

from ccg_gmx.errors import CcgError
from ccg_gmx.free_energy.axes import Axis
from ccg_gmx.free_energy.bootstrap import BlockPlan, BootstrapSettings
from ccg_gmx.free_energy.histogram import Histogram
from ccg_gmx.free_energy.torsion_grid import Basin, shifted
from ccg_gmx.free_energy.weighted_frames import BasinDifference, estimate_frames, influence
from ccg_gmx.records import FloatArray, FreeEnergySurface, IntArray
from ccg_gmx.settings import Settings
from ccg_gmx.units import DEGREES_PER_RADIAN


class FrameSettings(Settings):
    """How a surface is made from frames."""

    bins: int = Field(default=100, ge=4, description="bins per torsion")
    kde_degrees: float = Field(default=0.0, ge=0, le=60, description="width of a smoothing kernel; 0: plain histogram")
    bootstrap: BootstrapSettings = Field(default_factory=BootstrapSettings, description="errors")


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
    axes = [Axis(name, -np.pi, np.pi, settings.bins, periodic=True, period=2 * np.pi) for name in names]
    found = estimate_frames(
        Histogram.of(s, axes, [settings.kde_degrees / DEGREES_PER_RADIAN] * len(axes)),
        run,
        log_w,
        influence(np.concatenate([np.cos(s), np.sin(s)], axis=1), w, inside),
        basins=[basin.name for basin in basins],
        inside=inside,
        settings=settings.bootstrap,
    )
    halves = [shifted(half, names, temperature_K) for half in found.halves]
    return FrameSurface(
        surface=shifted(found.f, names, temperature_K, found.error),
        halves=(halves[0], halves[1]),
        frames=len(s),
        runs=len(found.plan.labels),
        kish_ess=found.kish_ess,
        largest_weight=found.largest_weight,
        independent=found.kish_ess / found.plan.inefficiency,
        halves_js=found.halves_js,
        differences=found.differences,
        plan=found.plan,
        warnings=found.warnings,
    )


def _check(s: FloatArray, run: IntArray, log_w: FloatArray) -> None:
    if s.ndim != 2 or len(s) < 4 or not np.isfinite(s).all():
        raise CcgError(f"frames of shape {s.shape}", expected="finite torsions [T, d] of at least 4 frames")
    if len(run) != len(s) or len(log_w) != len(s) or not np.isfinite(log_w).all():
        raise CcgError(f"{len(run)} run labels and {len(log_w)} biases", expected=f"{len(s)} finite numbers of each")
