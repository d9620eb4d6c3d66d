"""How far weights can be trusted: reverse diagnostics (draws of q), forward ones (fine frames of p), and a verdict.

Reverse diagnostics are blind to a mode that q never visits; the forward effective sample size and the sandwich are
not optional. Both are blind to what neither fine MD nor the flow has visited: coverage of the surface by fine frames
and the test for hidden slow modes look there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import Field
from scipy.special import logsumexp

from ccg_gmx.errors import CcgError
from ccg_gmx.free_energy.coverage import Coverage, coverage
from ccg_gmx.free_energy.estimators import log_mean_weight, sandwich
from ccg_gmx.free_energy.pareto import pareto_k
from ccg_gmx.free_energy.run_agreement import RunAgreement, compare_runs, forward_ess_fraction, kept_frames
from ccg_gmx.free_energy.torsion_grid import Basin
from ccg_gmx.records import FloatArray, FreeEnergySurface, IntArray
from ccg_gmx.settings import Settings

PARETO_POOL = 1000
"""Draws behind each k-hat. At 128 its standard error is 0.3: of two good flows one had k-hat > 0.7 at 14 % of the
points, and one of half the width at 52 %. At 1000 the good ones had it at 0 and 3 %, the narrow one at 63 %. It is no
cure for flows trained by reverse KL alone, whose tails are heavy indeed: one of median Kish fraction 0.9 had 18 % at
128 and 47 % at 1000."""


class DiagnosticSettings(Settings):
    """Thresholds of the verdict. Each is a rule of thumb of the field, stated so that it can be argued with."""

    f_cap_kT: float = Field(
        default=8.0, gt=0, description="judge coarse points whose f lies within this of the lowest (kT)"
    )
    kish_fraction_median: float = Field(default=0.1, ge=0, le=1, description="least median reverse effective fraction")
    kish_fraction_low: float = Field(
        default=0.02, ge=0, le=1, description="least reverse effective fraction of all but the worst 1 % of the points"
    )
    forward_ess_fraction: float = Field(
        default=0.05, ge=0, le=1, description="least effective fraction seen by fine frames"
    )
    forward_trim: float = Field(
        default=0.01,
        ge=0,
        le=0.05,
        description="part of each fine run's held-out frames, those of the largest weights, that the verdict on the "
        "effective fraction leaves out; what they stand for moves f by no more than this (kT)",
    )
    forward_to_kish: float = Field(
        default=0.1, ge=0, le=1, description="least ratio of forward to median reverse fraction; below, q misses a mode"
    )
    pareto_k: float = Field(default=0.7, description="k-hat above which a point is bad (arXiv 1507.02646)")
    pareto_k_bad_fraction: float = Field(default=0.1, ge=0, le=1, description="largest fraction of bad points")
    sandwich_gap_kT: float = Field(default=2.0, gt=0, description="widest gap between lower and upper bound")
    doubling_drift_kT: float = Field(default=0.1, gt=0, description="largest mean move of f when K doubles")
    seen_radius_degrees: float = Field(
        default=20.0, gt=0, le=90, description="a coarse point this near to a fine frame counts as seen by fine MD"
    )
    unseen_probability: float = Field(
        default=0.01, ge=0, le=1, description="largest part of the probability that fine MD has never seen"
    )
    unseen_basin_fraction: float = Field(
        default=0.2, ge=0, le=1, description="largest unseen part of any named basin, however rare the basin is"
    )
    basin_frames: int = Field(default=20, ge=0, description="least number of held-out fine frames in a named basin")
    run_disagreement_kT: float = Field(
        default=1.0, gt=0, description="largest certain distance of one fine run's mean log-weight from the others'"
    )
    run_ess_fraction: float = Field(
        default=0.01, ge=0, le=1, description="least effective fraction seen by a single fine run (few frames: noisy)"
    )
    hot_gap_kT: float = Field(
        default=4.0, gt=0, description="largest mean log-weight of a walker of the hidden-mode test; a lost mode has 6"
    )


@dataclass(frozen=True)
class FineEvidence:
    """What fine MD has to say beyond the log-weights of its held-out frames.

    Attributes:
        s: ``[T, n_s]`` radians, coarse variables of all fine frames, training frames too.
        held_out_s: ``[T_h, n_s]`` radians, those of the held-out frames.
        held_out_run: ``[T_h]`` fine run of each held-out frame; the frames of a run in the order of time.
        surface: the surface to be judged.
        basins: named states of it.
    """

    s: FloatArray
    held_out_s: FloatArray
    held_out_run: IntArray
    surface: FreeEnergySurface
    basins: Sequence[Basin] = ()


@dataclass(frozen=True)
class HiddenEvidence:
    """Outcome of the test for hidden slow modes (``ccg check hidden-modes``).

    Attributes:
        modes: one sentence for each coarse point where walkers stay in separate states.
        compared: whether there were walkers to compare at every coarse point.
        hot_gap_kT: largest mean of ln w + f of a hot-seeded walker, kT; nan when not computed.
    """

    modes: tuple[str, ...]
    compared: bool
    hot_gap_kT: float = float("nan")


@dataclass(frozen=True)
class Diagnostics:
    """The numbers that go with every free energy. A nan means "could not be computed", and fails the verdict.

    Attributes:
        kish_fraction_median: median over points of (sum w)^2 / (K sum w^2).
        kish_fraction_low: 1 % quantile of them. The verdict looks at it and not at the smallest, which falls with the
            number of points however good the flow is.
        kish_fraction_min: smallest of them.
        forward_ess_fraction: the same fraction as held-out fine frames see it, all of them.
        forward_ess_trimmed: the same without the few frames of each run that have the largest weights. The verdict
            looks at it: a single frame in a far tail decides the other, and stands for next to no probability.
        pareto_k_bad_fraction: fraction of points with k-hat above the threshold.
        pareto_draws: draws behind each k-hat (consecutive points are pooled until there are 1000).
        sandwich_gap_kT: K-draw upper bound minus single-frame lower bound, averaged over points and frames.
        largest_weight: largest share of one draw in its point.
        doubling_drift_kT: mean move of -ln mean w when K doubles.
        points: coarse points judged (those within ``f_cap_kT``).
        points_total: coarse points given.
        frames: held-out fine frames.
        settings: the thresholds.
        coverage: what of the surface fine MD has never seen; None when not asked for, as all that follow.
        runs: how far single fine runs are from the others.
        basin_frames: held-out frames in each named basin.
        hidden: outcome of the test for hidden slow modes.
    """

    kish_fraction_median: float
    kish_fraction_low: float
    kish_fraction_min: float
    forward_ess_fraction: float
    forward_ess_trimmed: float
    pareto_k_bad_fraction: float
    pareto_draws: int
    sandwich_gap_kT: float
    largest_weight: float
    doubling_drift_kT: float
    points: int
    points_total: int
    frames: int
    settings: DiagnosticSettings
    coverage: Coverage | None = None
    runs: RunAgreement | None = None
    basin_frames: dict[str, int] | None = None
    hidden: HiddenEvidence | None = None

    def verdict(self) -> tuple[bool, list[str]]:
        """Say whether the numbers can be trusted, and why (all reasons when not)."""
        checks = _checks(self)
        failed = [no for passed, _, no in checks if not passed]
        if failed:
            return False, [f"not yet, because {reason}" for reason in failed]
        return True, [f"these numbers can be trusted because {yes}" for _, yes, _ in checks]


def kish_ess(log_w: FloatArray) -> FloatArray:
    """``[M]`` effective sample size (sum w)^2 / sum w^2 of ``log_w [M, K]`` (Kish 1965); 0 where no weight is left."""
    top, bottom = 2 * logsumexp(log_w, axis=-1), logsumexp(2 * log_w, axis=-1)
    with np.errstate(invalid="ignore"):
        return np.where(np.isneginf(bottom), 0.0, np.exp(top - bottom))


def kish_fraction(log_w: FloatArray) -> FloatArray:
    """``[M]`` kish_ess / K, between 1/K and 1 (biased high when K is not large against 1 / fraction)."""
    return kish_ess(log_w) / log_w.shape[-1]


def largest_weight(log_w: FloatArray) -> FloatArray:
    """``[M]`` largest normalised weight among the draws of each point; 1 where all weights are zero."""
    top = np.max(log_w, axis=-1)
    with np.errstate(invalid="ignore"):
        return np.where(np.isneginf(top), 1.0, np.exp(top - logsumexp(log_w, axis=-1)))


def doubling_drift(log_w: FloatArray) -> FloatArray:
    """``[M]`` move of f^ when K doubles: f^ of all K draws minus the mean of f^ over their two halves (kT).

    Its expectation is the bias removed by the last doubling, -chi^2 / 2K; single points also carry noise.
    """
    half = log_w.shape[-1] // 2
    if half < 1:
        raise CcgError(f"K = {log_w.shape[-1]} draws per point", expected="at least 2 to see a drift", remedy="raise K")
    parts = [log_mean_weight(part) for part in (log_w[:, :half], log_w[:, half : 2 * half])]
    with np.errstate(invalid="ignore"):
        return 0.5 * (parts[0] + parts[1]) - log_mean_weight(log_w[:, : 2 * half])


def diagnose(
    log_w: FloatArray | Sequence[FloatArray],
    forward_log_w: FloatArray,
    f_points: FloatArray,
    f_frames: FloatArray,
    settings: DiagnosticSettings | None = None,
    *,
    fine: FineEvidence | None = None,
    hidden: HiddenEvidence | None = None,
) -> Diagnostics:
    """Compute every diagnostic of final draws.

    Args:
        log_w: ``[M, K]`` log-weights of fresh draws, or several such arrays where points have different K.
        forward_log_w: ``[T]`` log-weights at held-out fine frames, or ``[members, T]`` of several flows.
        f_points: ``[M]`` f at the coarse points of all arrays, kT, with its absolute offset (``SurfaceFit.values``).
        f_frames: ``[T]`` f at the coarse variables of the frames.
        settings: thresholds.
        fine: where fine MD has been; without it, coverage and the agreement of its runs are left out.
        hidden: outcome of the test for hidden slow modes; without it, the verdict says nothing of them.

    Raises:
        CcgError: if shapes do not fit or there are no frames.
    """
    settings = settings or DiagnosticSettings()
    members = np.atleast_2d(forward_log_w)
    frames = members.shape[1]
    records = [log_w] if isinstance(log_w, np.ndarray) else list(log_w)
    points = sum(len(record) for record in records)
    if len(f_points) != points or len(f_frames) != frames or frames < 2:
        raise CcgError(
            f"{points} points with {len(f_points)} f, {frames} frames with {len(f_frames)} f",
            expected="one f for each, and at least 2 held-out frames",
        )
    if fine is not None and not len(fine.held_out_s) == len(fine.held_out_run) == frames:
        raise CcgError(f"{len(fine.held_out_s)} held-out s and {len(fine.held_out_run)} runs for {frames} frames")
    weights, by_member = _judged(records, f_points, settings.f_cap_kT), members + f_frames
    forward = by_member.ravel()
    runs = None if fine is None else compare_runs(by_member, fine.held_out_run, settings.forward_trim)
    kept = kept_frames(by_member, settings.forward_trim).ravel()
    fractions = np.concatenate([kish_fraction(record) for record in weights])
    upper = np.concatenate([log_mean_weight(record) for record in weights])[:, None]
    pooled = _pool(np.concatenate([record.ravel() for record in weights]))
    tails = pareto_k(pooled)
    bad = float("nan") if np.isnan(tails).any() else float((tails > settings.pareto_k).mean())
    return Diagnostics(
        kish_fraction_median=float(np.median(fractions)),
        kish_fraction_low=float(np.quantile(fractions, 0.01)),
        kish_fraction_min=float(fractions.min()),
        forward_ess_fraction=forward_ess_fraction(forward),
        forward_ess_trimmed=forward_ess_fraction(kept) if runs is None else runs.ess_fraction,
        pareto_k_bad_fraction=bad,
        pareto_draws=pooled.shape[1],
        sandwich_gap_kT=sandwich(forward, upper).gap if len(upper) > 1 else float("nan"),
        largest_weight=max(float(largest_weight(record).max()) for record in weights),
        doubling_drift_kT=abs(float(np.concatenate([doubling_drift(record) for record in weights]).mean())),
        points=len(fractions),
        points_total=points,
        frames=forward.size,
        settings=settings,
        coverage=None if fine is None else _coverage(fine, settings),
        runs=runs,
        basin_frames=None if fine is None else _basin_frames(fine),
        hidden=hidden,
    )


def _coverage(fine: FineEvidence, settings: DiagnosticSettings) -> Coverage:
    return coverage(fine.surface, fine.s, settings.seen_radius_degrees, fine.basins)


def _basin_frames(fine: FineEvidence) -> dict[str, int]:
    """Held-out frames in each named basin."""
    return {basin.name: int(basin.mask(fine.held_out_s, fine.surface.names).sum()) for basin in fine.basins}


def _judged(records: Sequence[FloatArray], f_points: FloatArray, cap_kT: float) -> list[FloatArray]:
    """Log-weights normalised per point, of the points whose f lies within the cap; arrays without any are left out."""
    ends = np.cumsum([len(record) for record in records])
    kept = []
    for record, f in zip(records, np.split(f_points, ends[:-1]), strict=True):
        low = f <= f_points.min() + cap_kT
        if low.any():
            kept.append(record[low] + f[low, None])
    return kept


def _pool(weights: FloatArray) -> FloatArray:
    """Rows of 1000 draws of consecutive points for k-hat; an incomplete last row joins none.

    Weights normalised per point may be mixed: the heaviest tail of the group decides k-hat.
    """
    size = min(PARETO_POOL, len(weights))
    return weights[: len(weights) // size * size].reshape(-1, size)


def _checks(d: Diagnostics) -> list[tuple[bool, str, str]]:
    """Return (passed, why it is good, why it is not) per threshold; comparisons with nan fail."""
    s = d.settings
    return [
        (
            d.kish_fraction_median >= s.kish_fraction_median and d.kish_fraction_low >= s.kish_fraction_low,
            f"half of the coarse points use at least {d.kish_fraction_median:.0%} of their draws",
            f"the weights are uneven: a median of {d.kish_fraction_median:.1%} and a minimum of "
            f"{d.kish_fraction_low:.1%} of the draws count (wanted {s.kish_fraction_median:.0%} "
            f"and {s.kish_fraction_low:.0%})",
        ),
        (
            d.forward_ess_trimmed >= max(s.forward_ess_fraction, s.forward_to_kish * d.kish_fraction_median),
            f"held-out fine frames agree: they see an effective fraction of {d.forward_ess_trimmed:.0%}"
            f"{_with_all_frames(d)}",
            f"held-out fine frames see an effective fraction of only {d.forward_ess_trimmed:.2g}: the flow misses "
            "part of what fine MD visits",
        ),
        (
            d.pareto_k_bad_fraction <= s.pareto_k_bad_fraction,
            f"the weights have light tails (k-hat above {s.pareto_k:g} at {d.pareto_k_bad_fraction:.1%} of points)",
            f"the tails of the weights are heavy or unknown (k-hat above {s.pareto_k:g} at "
            f"{d.pareto_k_bad_fraction:.1%} of points, from {d.pareto_draws} draws each)",
        ),
        (
            d.sandwich_gap_kT <= s.sandwich_gap_kT,
            f"bounds from both sides lie within {d.sandwich_gap_kT:.2f} kT",
            f"the lower and upper bounds are {d.sandwich_gap_kT:.2f} kT apart (wanted {s.sandwich_gap_kT:g})",
        ),
        (
            d.doubling_drift_kT <= s.doubling_drift_kT,
            f"doubling the draws moves f by {d.doubling_drift_kT:.3f} kT only",
            f"doubling the draws still moves f by {d.doubling_drift_kT:.3f} kT (wanted {s.doubling_drift_kT:g})",
        ),
        *_coverage_checks(d),
        *_run_checks(d),
        *_hidden_checks(d),
    ]


def _with_all_frames(d: Diagnostics) -> str:
    """Put the number of all frames beside that of all but the heaviest, where they are not nearly the same."""
    if d.forward_ess_fraction > 0.5 * d.forward_ess_trimmed:
        return ""
    return (
        f" (without the heaviest {d.settings.forward_trim:.1%} of each run; all frames: {d.forward_ess_fraction:.2g})"
    )


def _coverage_checks(d: Diagnostics) -> list[tuple[bool, str, str]]:
    """Is fine MD where the probability is, and in every state the run is about?"""
    if d.coverage is None:
        return []
    seen, s = d.coverage, d.settings
    checks = [
        (
            seen.unseen_probability <= s.unseen_probability,
            f"fine MD has been where {1 - seen.unseen_probability:.2%} of the probability lies",
            seen.words(),
        )
    ]
    if seen.basin is not None:
        checks.append(
            (
                seen.unseen_basin_fraction <= s.unseen_basin_fraction,
                f"it has been in every named basin (in all but {seen.unseen_basin_fraction:.1%} of {seen.basin})",
                f"fine MD has never seen {seen.unseen_basin_fraction:.0%} of the basin {seen.basin}: "
                "start fine runs there",
            )
        )
    if d.basin_frames:
        name, count = min(d.basin_frames.items(), key=lambda item: item[1])
        checks.append(
            (
                count >= s.basin_frames,
                f"every named basin has held-out fine frames ({count} in {name}, the least)",
                f"only {count} held-out fine frames lie in the basin {name} (wanted {s.basin_frames}): "
                "run longer there",
            )
        )
    return checks


def _run_checks(d: Diagnostics) -> list[tuple[bool, str, str]]:
    """Does one fine run see another density than the others?"""
    if d.runs is None:
        return []
    runs, s = d.runs, d.settings
    return [
        (
            runs.disagreement_kT <= s.run_disagreement_kT,
            f"the fine runs agree about the flow within {runs.disagreement_kT:.2f} kT beyond their errors",
            f"fine run {runs.furthest_run + 1} of {runs.runs} disagrees with the others about the flow by at least "
            f"{runs.disagreement_kT:.1f} kT: it is in a state that the flow does not know, or it is broken",
        ),
        (
            runs.least_ess_fraction >= s.run_ess_fraction,
            f"every fine run sees an effective fraction of at least {runs.least_ess_fraction:.0%}",
            f"fine run {runs.least_run + 1} of {runs.runs} alone sees an effective fraction of only "
            f"{runs.least_ess_fraction:.2g}: the flow misses part of what it visits",
        ),
    ]


def _hidden_checks(d: Diagnostics) -> list[tuple[bool, str, str]]:
    """Is there a slow motion that the coarse torsions do not show, and does the flow know all of its states?

    Separate states alone are no error: where the flow has every one of them, the weights are exact all the same.
    """
    if d.hidden is None:
        return []
    hidden, seen = d.hidden, d.hidden.hot_gap_kT
    known = seen <= d.settings.hot_gap_kT
    if not hidden.compared:
        return [(False, "", "too few walkers of the hidden-mode test stayed in the states of the starting structure")]
    if hidden.modes:
        return [
            (
                known,
                f"the flow knows every state of the hidden slow motion ({hidden.modes[0]}): its mean "
                f"log-weights are within {seen:.1f} kT",
                f"a slow motion is hidden from the coarse torsions: {hidden.modes[0]}; put it among the coarse "
                "torsions, or start fine runs in all of its states",
            )
        ]
    fraction = "" if np.isnan(seen) else f", and the flow knows where they are (within {seen:.1f} kT)"
    return [
        (
            known or bool(np.isnan(seen)),
            f"walkers from hot seeds come to agree{fraction}: no slow motion is hidden from the coarse torsions",
            f"a walker from a hot seed has mean log-weights of {seen:.1f} kT: the flow misses a state that it visits",
        )
    ]
