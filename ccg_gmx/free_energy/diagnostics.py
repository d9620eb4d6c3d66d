"""How far weights can be trusted: reverse diagnostics (draws of q), forward ones (fine frames of p), and a verdict.

Reverse diagnostics are blind to a mode that q never visits; the forward effective sample size and the sandwich are
not optional.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from pydantic import Field
from scipy.special import logsumexp

from ccg_gmx.errors import CcgError
from ccg_gmx.free_energy.estimators import log_mean_weight, sandwich
from ccg_gmx.free_energy.pareto import PARETO_MINIMUM_DRAWS, pareto_k
from ccg_gmx.records import FloatArray
from ccg_gmx.settings import Settings


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
    forward_to_kish: float = Field(
        default=0.1, ge=0, le=1, description="least ratio of forward to median reverse fraction; below, q misses a mode"
    )
    pareto_k: float = Field(default=0.7, description="k-hat above which a point is bad (arXiv 1507.02646)")
    pareto_k_bad_fraction: float = Field(default=0.1, ge=0, le=1, description="largest fraction of bad points")
    sandwich_gap_kT: float = Field(default=2.0, gt=0, description="widest gap between lower and upper bound")
    doubling_drift_kT: float = Field(default=0.1, gt=0, description="largest mean move of f when K doubles")


@dataclass(frozen=True)
class Diagnostics:
    """The numbers that go with every free energy. A nan means "could not be computed", and fails the verdict.

    Attributes:
        kish_fraction_median: median over points of (sum w)^2 / (K sum w^2).
        kish_fraction_low: 1 % quantile of them. The verdict looks at it and not at the smallest, which falls with the
            number of points however good the flow is.
        kish_fraction_min: smallest of them.
        forward_ess_fraction: the same fraction as held-out fine frames see it.
        pareto_k_bad_fraction: fraction of points with k-hat above the threshold.
        pareto_draws: draws behind each k-hat (neighbouring points are pooled when K < 100).
        sandwich_gap_kT: K-draw upper bound minus single-frame lower bound, averaged over points and frames.
        largest_weight: largest share of one draw in its point.
        doubling_drift_kT: mean move of -ln mean w when K doubles.
        points: coarse points judged (those within ``f_cap_kT``).
        points_total: coarse points given.
        frames: held-out fine frames.
        settings: the thresholds.
    """

    kish_fraction_median: float
    kish_fraction_low: float
    kish_fraction_min: float
    forward_ess_fraction: float
    pareto_k_bad_fraction: float
    pareto_draws: int
    sandwich_gap_kT: float
    largest_weight: float
    doubling_drift_kT: float
    points: int
    points_total: int
    frames: int
    settings: DiagnosticSettings

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


def forward_ess_fraction(forward_log_w: FloatArray) -> float:
    """Effective sample fraction of q as fine frames of p see it.

    The Kish fraction tends to ``Z^2 / E_q[w^2]``. Since p = w q / Z, ``E_p[w] = E_q[w^2] / Z`` and
    ``E_p[1/w] = 1 / Z`` (where q has weight only inside p's support), so the same number is
    ``1 / (E_p[w] E_p[1/w])``: free of K, of Z, and of draws of q. A mode that q misses has large w at the frames
    inside it, which the draws never see. It lies in (0, 1] by the Cauchy-Schwarz inequality.

    Over many coarse points w must be normalised per point: give ``ln w + f(s)``. It is then the harmonic mean of the
    fractions over the frames' s.

    Where q is more than sqrt(2) times wider than p, E_p[1/w] converges slowly and from below, and the fraction is a
    little too high; the reverse fraction shows that case well.

    Args:
        forward_log_w: ``[T]`` log-weights at held-out fine frames; ``+inf`` (outside q's support) gives 0.
    """
    forward_log_w = np.asarray(forward_log_w)
    if np.isposinf(forward_log_w).any():
        return 0.0
    return float(np.exp(2 * np.log(forward_log_w.size) - logsumexp(forward_log_w) - logsumexp(-forward_log_w)))


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
    log_w: FloatArray,
    forward_log_w: FloatArray,
    f_points: FloatArray,
    f_frames: FloatArray,
    settings: DiagnosticSettings | None = None,
) -> Diagnostics:
    """Compute every diagnostic of final draws.

    Args:
        log_w: ``[M, K]`` log-weights of fresh draws. When K < 100, consecutive points are pooled for Pareto k-hat.
        forward_log_w: ``[T]`` log-weights at held-out fine frames.
        f_points: ``[M]`` f at the coarse points, kT, with its absolute offset (``SurfaceFit.values``).
        f_frames: ``[T]`` f at the coarse variables of the frames.
        settings: thresholds.

    Raises:
        CcgError: if shapes do not fit or there are no frames.
    """
    settings = settings or DiagnosticSettings()
    if len(f_points) != len(log_w) or len(f_frames) != len(forward_log_w) or len(f_frames) < 2:
        raise CcgError(
            f"{len(log_w)} points with {len(f_points)} f, {len(forward_log_w)} frames with {len(f_frames)} f",
            expected="one f for each, and at least 2 held-out frames",
        )
    judged = f_points <= f_points.min() + settings.f_cap_kT
    weights, forward = log_w[judged] + f_points[judged, None], forward_log_w + f_frames
    fractions = kish_fraction(weights)
    pooled = _pool(weights)
    tails = pareto_k(pooled)
    bad = float("nan") if np.isnan(tails).any() else float((tails > settings.pareto_k).mean())
    return Diagnostics(
        kish_fraction_median=float(np.median(fractions)),
        kish_fraction_low=float(np.quantile(fractions, 0.01)),
        kish_fraction_min=float(fractions.min()),
        forward_ess_fraction=forward_ess_fraction(forward),
        pareto_k_bad_fraction=bad,
        pareto_draws=pooled.shape[1],
        sandwich_gap_kT=sandwich(forward, weights).gap if len(weights) > 1 else float("nan"),
        largest_weight=float(largest_weight(weights).max()),
        doubling_drift_kT=abs(float(doubling_drift(weights).mean())),
        points=int(judged.sum()),
        points_total=len(log_w),
        frames=len(forward_log_w),
        settings=settings,
    )


def _pool(weights: FloatArray) -> FloatArray:
    """Join the draws of consecutive points until every row has enough for k-hat; an incomplete last row joins none.

    Weights normalised per point may be mixed: the heaviest tail of the group decides k-hat.
    """
    M, K = weights.shape
    group = min(math.ceil(PARETO_MINIMUM_DRAWS / K), M)
    return weights[: M // group * group].reshape(M // group, group * K)


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
            d.forward_ess_fraction >= max(s.forward_ess_fraction, s.forward_to_kish * d.kish_fraction_median),
            f"held-out fine frames agree: they see an effective fraction of {d.forward_ess_fraction:.0%}",
            f"held-out fine frames see an effective fraction of only {d.forward_ess_fraction:.2g}: the flow misses "
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
    ]
