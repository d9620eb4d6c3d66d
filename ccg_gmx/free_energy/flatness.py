"""Is the histogram of a run under the bias -f(s) flat? A test of f that knows nothing of how f was made.

Where the bias is -f, the density is proportional to exp(-(f_true - f)): flat when f is right. Cells of equal size are
compared with the share of the region that lies in each; the errors are those of correlated frames. The statistic is
``T = sum_k (p_k - q_k)^2 / q_k``; its distribution for a flat density comes from the same sum over bootstrap resamples
about their own centre, so that no covariance of the cells has to be inverted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ccg_gmx.errors import CcgError
from ccg_gmx.free_energy.bootstrap import BlockPlan, BootstrapSettings, plan_blocks, resampler
from ccg_gmx.records import FloatArray, FreeEnergySurface, IntArray

LEVEL_KT = 8.0
"""Height up to which f is judged."""

CELLS = {1: 36, 2: 12}
"""Cells per torsion: 10 and 30 degrees."""

SIGNIFICANT = 0.01
TOO_COARSE_KT = 0.5
"""Larger sampling noise (rms over the cells) shows no fault worth knowing: the run was too short to tell."""


@dataclass(frozen=True)
class Flatness:
    """What a biased run says about f.

    Attributes:
        names: torsions.
        level_kT: f was judged below this.
        frames: of the run.
        inside: share of the frames within the region.
        independent: effective number of independent frames.
        cells: cells of the region.
        visited: those with a frame.
        rms_kT: rms deviation of ln p from flat, weighted by the size of cells.
        noise_kT: what sampling alone lets expect.
        p_value: how likely a flat density deviates this much.
        worst: name -> degrees of the cell with the most significant deviation.
        worst_kT: its deviation of f_true - f, kT.
        worst_error_kT: its sampling error.
        flat: whether the histogram is flat within its error, and the error small enough to say so.
        warnings: why errors may be too small.
    """

    names: tuple[str, ...]
    level_kT: float
    frames: int
    inside: float
    independent: float
    cells: int
    visited: int
    rms_kT: float
    noise_kT: float
    p_value: float
    worst: dict[str, float]
    worst_kT: float
    worst_error_kT: float
    flat: bool
    warnings: tuple[str, ...]

    def words(self) -> list[str]:
        """The verdict and what it rests on."""
        where = ", ".join(f"{name} {value:.0f}" for name, value in self.worst.items())
        lines = [
            f"{self.frames} frames, {self.inside:.0%} of them where f < {self.level_kT:g} kT, "
            f"worth about {self.independent:.0f} independent ones",
            f"{self.visited} of {self.cells} cells visited; ln p deviates from flat by {self.rms_kT:.3f} kT rms, "
            f"sampling alone lets expect {self.noise_kT:.3f} (p = {self.p_value:.2g})",
            f"largest deviation against its error: f is off by {self.worst_kT:+.2f} +- {self.worst_error_kT:.2f} kT "
            f"at {where} degrees",
            *self.warnings,
        ]
        return [*lines, self.verdict]

    @property
    def verdict(self) -> str:
        """One sentence."""
        if self.flat:
            return f"flat within its sampling error: f agrees with this run to {self.noise_kT:.2f} kT"
        if self.warnings or self.noise_kT > TOO_COARSE_KT:
            return f"cannot tell yet, run longer{'' if self.p_value >= SIGNIFICANT else ' (not flat so far)'}"
        return "NOT flat: f is wrong somewhere, or the run was not under this bias, or it started out of equilibrium"

    def as_json(self) -> dict[str, Any]:
        """Return it as plain types for JSON."""
        return {**asdict(self), "verdict": self.verdict}


@dataclass(frozen=True)
class CellTable:
    """Cells with their shares, for plots.

    Attributes:
        shares: ``[c, ...]`` share of the region in each cell; 0 outside.
        observed: ``[c, ...]`` share of the frames inside.
        error: ``[c, ...]`` one standard error of ``observed``.
    """

    shares: FloatArray
    observed: FloatArray
    error: FloatArray


def flatness(
    surface: FreeEnergySurface,
    s: FloatArray,
    run: IntArray,
    *,
    level_kT: float = LEVEL_KT,
    cells: int | None = None,
    settings: BootstrapSettings | None = None,
) -> tuple[Flatness, CellTable]:
    """Judge a surface by a run under the bias -f.

    Args:
        surface: f over one or two torsions.
        s: ``[T, d]`` radians, torsions of the biased frames in the surface's order.
        run: ``[T]`` run of each frame; frames of a run in order of time.
        level_kT: judge f below this; it must be below the cap of the bias.
        cells: per torsion; None for the default.
        settings: of the bootstrap.

    Raises:
        CcgError: wrong shapes, or no frame where f is below the level.
    """
    dims = surface.f.ndim
    if dims not in CELLS or s.ndim != 2 or s.shape[1] != dims:
        raise CcgError(f"a surface over {dims} torsions and frames {s.shape}", expected="one or two torsions in both")
    settings = settings or BootstrapSettings(resamples=400)
    region, count = _region(surface.f, level_kT), cells or CELLS[dims]
    shares = _cell_sums(region, count)
    shares /= shares.sum()
    cell, inside = _cells(s, count), region[tuple(_points(s, len(surface.f)).T)]
    if not inside.any():
        raise CcgError(f"no frame where f < {level_kT:g} kT", expected="frames of a run under the bias -f")
    plan = plan_blocks(_features(s, inside), run, settings)
    observed, replicates = _histograms(np.where(inside, cell, shares.size), run, shares.size, plan, settings)
    found = _judge(surface.names, shares, observed, replicates, plan, count)
    table = CellTable(shares, observed.reshape(shares.shape), _errors(replicates, plan).reshape(shares.shape))
    return (
        Flatness(
            surface.names, level_kT, len(s), float(inside.mean()), plan.independent, warnings=plan.warnings, **found
        ),
        table,
    )


def _judge(
    names: Sequence[str], shares: FloatArray, observed: FloatArray, replicates: FloatArray, plan: BlockPlan, count: int
) -> dict[str, Any]:
    """Numbers and verdict."""
    known = shares.ravel() > 0
    q, p, around = shares.ravel()[known], observed[known], replicates[:, known]
    null = plan.inflation**2 * (((around - around.mean(axis=0)) ** 2) / q).sum(axis=1)
    statistic = float(((p - q) ** 2 / q).sum())
    p_value = float((1 + (null >= statistic).sum()) / (1 + len(null)))
    # p = q exp(-(f_true - f)), to first order in the small deviations of interest
    noise, rms = float(np.sqrt(null.mean())), float(np.sqrt(statistic))
    error = np.maximum(_errors(around, plan), 1e-12)
    # a cell that no frame visited has no error of its own: one frame's worth
    error = np.where(p > 0, error, np.sqrt(q / max(plan.independent, 1.0)))
    worst = int(np.argmax(np.abs(p - q) / error))
    place = np.unravel_index(np.flatnonzero(known)[worst], shares.shape)
    width = 360.0 / count
    return {
        "cells": int(known.sum()),
        "visited": int((p > 0).sum()),
        "rms_kT": rms,
        "noise_kT": noise,
        "p_value": p_value,
        "worst": {name: float(-180 + width * (k + 0.5)) for name, k in zip(names, place, strict=True)},
        "worst_kT": float(-np.log(max(p[worst], 0.5 * error[worst]) / q[worst])),
        "worst_error_kT": float(error[worst] / q[worst]),
        "flat": p_value >= SIGNIFICANT and noise <= TOO_COARSE_KT and not plan.warnings,
    }


def _histograms(
    cell: IntArray, run: IntArray, size: int, plan: BlockPlan, settings: BootstrapSettings
) -> tuple[FloatArray, FloatArray]:
    """Shares ``[size]`` of the frames inside, and those of resamples ``[R, size]``."""

    def shares(rows: IntArray) -> FloatArray:
        counts = np.bincount(cell[rows], minlength=size + 1)[:size].astype(np.float64)
        return np.asarray(counts / max(counts.sum(), 1.0))

    draw = resampler(run, plan, np.random.default_rng(settings.seed))
    return shares(np.arange(len(cell))), np.array([shares(draw()) for _ in range(settings.resamples)])


def _errors(replicates: FloatArray, plan: BlockPlan) -> FloatArray:
    return np.asarray(plan.inflation * np.std(replicates, axis=0, ddof=1))


def _region(f: FloatArray, level_kT: float) -> np.ndarray:
    """Grid points whose cell counts as inside."""
    return np.asarray(np.where(np.isfinite(f), f, np.inf) < level_kT)


def _points(s: FloatArray, n: int) -> IntArray:
    """``[T, d]`` nearest grid point of each frame; a bin is the cell centred on its point."""
    return np.asarray(np.floor((s + np.pi) / (2 * np.pi / n) + 0.5).astype(np.int64) % n)


def _cells(s: FloatArray, count: int) -> IntArray:
    """``[T]`` cell of each frame, the last torsion fastest."""
    index = np.floor((s + np.pi) / (2 * np.pi / count)).astype(np.int64) % count
    return np.asarray(np.ravel_multi_index(tuple(index.T), (count,) * s.shape[1]))


def _cell_sums(region: np.ndarray, count: int) -> FloatArray:
    """``[count, ...]`` area of the region in each cell, bins that a border cuts divided exactly."""
    area = region.astype(np.float64)
    overlap = _overlap(len(region), count)
    for axis in range(region.ndim):
        area = np.moveaxis(np.tensordot(overlap, area, axes=(1, axis)), 0, axis)
    return area


def _overlap(n: int, count: int) -> FloatArray:
    """``[count, n]`` length of bin j (centred on its grid point) within cell k, in bins."""
    edges = n / count * np.arange(count + 1)
    low = np.arange(n) - 0.5
    found = np.zeros((count, n))
    for shift in (0, n):  # the first bin reaches across -pi
        start = np.maximum(edges[:-1, None], low + shift)
        end = np.minimum(edges[1:, None], low + 1 + shift)
        found += np.maximum(end - start, 0.0)
    return found


def _features(s: FloatArray, inside: np.ndarray) -> FloatArray:
    """``[T, k]`` what slow motions show in: first and second harmonics, and being inside."""
    waves = [function(order * s) for order in (1, 2) for function in (np.cos, np.sin)]
    return np.concatenate([*waves, inside[:, None].astype(np.float64)], axis=1)
