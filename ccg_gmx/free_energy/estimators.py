"""Free energies and averages from log-weights ``ln w = -u - ln q``, each with its own error.

All estimators work in log-space in float64 and use every draw once. Free energies are ``f = -ln Z`` in kT.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.special import log_expit, logsumexp
from scipy.stats import norm
from scipy.stats import t as student

from ccg_gmx.errors import CcgError
from ccg_gmx.records import FloatArray


class ExpEstimate(NamedTuple):
    """One-sided estimate per coarse point, ``[M]`` each, kT (variance in kT^2)."""

    f: FloatArray
    variance: FloatArray
    bias: FloatArray


class Sandwich(NamedTuple):
    """Bounds of a free energy in kT, each with one standard error.

    Attributes:
        lower: ``E_p[u + ln q] <= f`` from fine frames.
        lower_error: its standard error.
        upper: ``E_q[-ln mean_K w] >= f`` from draws (``E_q[u + ln q]`` when K = 1).
        upper_error: its standard error.
    """

    lower: float
    lower_error: float
    upper: float
    upper_error: float

    @property
    def gap(self) -> float:
        """Width of the sandwich in kT."""
        return self.upper - self.lower


class BarEstimate(NamedTuple):
    """Two-sided estimate: f in kT and its asymptotic standard error."""

    f: float
    error: float


def log_mean_weight(log_w: FloatArray) -> FloatArray:
    """``[M]`` logarithm of the mean weight over the draws of each point, ``log_w [M, K]``."""
    return logsumexp(log_w, axis=-1) - np.log(log_w.shape[-1])


def relative_variance(log_w: FloatArray) -> FloatArray:
    """``[M]`` chi^2 = Var_q(w) / Z^2 of a single draw, the plug-in estimate with the K - 1 correction.

    It cannot exceed K: where one draw carries everything it is a lower bound, which is what Pareto k-hat is for.
    A point whose draws all have weight zero has chi^2 = nan (nothing is known).

    Args:
        log_w: ``[M, K]`` log-weights, K >= 2.

    Raises:
        CcgError: if K < 2.
    """
    K = log_w.shape[-1]
    if K < 2:
        raise CcgError(f"{K} draws per point", expected="at least 2 for a variance", remedy="raise K")
    with np.errstate(invalid="ignore"):
        ratio = np.exp(log_w - log_mean_weight(log_w)[..., None])
    return ratio.var(axis=-1, ddof=1)


def exp_estimate(log_w: FloatArray) -> ExpEstimate:
    """Exponential (EXP) estimate ``f^ = -ln mean_k w_k`` with its variance chi^2 / K and bias chi^2 / 2K.

    Second-order delta method of ``-ln`` around the unbiased mean weight. The bias varies with s and so distorts a
    surface; average mean weights over s, never f^. Reference: Zwanzig 1954, doi:10.1063/1.1740409.

    Args:
        log_w: ``[M, K]`` log-weights.

    Returns:
        f ``[M]`` (inf where every draw has weight zero), variance ``[M]`` and bias ``[M]`` (inf there), not subtracted.
    """
    chi2 = relative_variance(log_w)
    chi2 = np.where(np.isnan(chi2), np.inf, chi2)
    K = log_w.shape[-1]
    return ExpEstimate(-log_mean_weight(log_w), chi2 / K, chi2 / (2 * K))


def sandwich(forward_log_w: FloatArray, log_w: FloatArray) -> Sandwich:
    """Bounds of f from both sides (Grosse, Ghahramani, Adams 2015, arXiv 1511.02543).

    Jensen's inequality on ``ln``: fine frames give ``E_p[u + ln q] = f - KL(p || q)``; draws give
    ``E[-ln mean_K w] = f + (K-draw slack)``, which is ``KL(q || p)`` for K = 1 and falls as chi^2 / 2K. A mode that q
    never visits is invisible to the upper bound, and opens the lower one.

    Bounds over many coarse points need weights normalised per point: add f(s) to both inputs, and 0 is bounded.

    Args:
        forward_log_w: ``[T]`` log-weights at fine frames (of p).
        log_w: ``[M, K]`` log-weights of draws of q.

    Raises:
        CcgError: if either side has fewer than 2 rows.
    """
    if len(forward_log_w) < 2 or len(log_w) < 2:
        raise CcgError(
            f"{len(forward_log_w)} fine frames and {len(log_w)} coarse points",
            expected="at least 2 of each for an error",
        )
    lower, upper = -np.asarray(forward_log_w), -log_mean_weight(log_w)
    with np.errstate(invalid="ignore"):
        errors = [float(x.std(ddof=1) / np.sqrt(len(x))) for x in (lower, upper)]
    return Sandwich(float(lower.mean()), errors[0], float(upper.mean()), errors[1])


def bar(log_w_forward: FloatArray, log_w_reverse: FloatArray) -> BarEstimate:
    """Bennett acceptance ratio between fine frames of p and draws of q, doi:10.1016/0021-9991(76)90078-4.

    With x = ln w + f + ln(n_p / n_q), f solves ``sum_q sigma(x) = sum_p sigma(-x)``, sigma the logistic function; the
    left side rises with f and the right side falls, so the root is unique. The error is that of the maximum
    likelihood form (Shirts et al. 2003, doi:10.1103/PhysRevLett.91.140601), which grows without bound when the two
    sides do not overlap; it takes samples for independent: thin correlated fine frames first.

    Args:
        log_w_forward: ``[n_p]`` log-weights at fine frames (of p).
        log_w_reverse: ``[n_q]`` log-weights of draws (of q).

    Raises:
        CcgError: if a side is empty or holds nan, or no draw of q has any weight.
    """
    at_p, at_q = np.ravel(log_w_forward), np.ravel(log_w_reverse)
    if not (at_p.size and at_q.size) or np.isnan(at_p).any() or np.isnan(at_q).any():
        raise CcgError(
            f"{at_p.size} fine frames and {at_q.size} draws, or nan among them", expected="numbers on both sides"
        )
    finite = np.concatenate([at_p[np.isfinite(at_p)], at_q[np.isfinite(at_q)]])
    if not (np.isfinite(at_p).any() and np.isfinite(at_q).any()):
        raise CcgError("fine frames and draws do not overlap at all", remedy="train the flow further")
    shift = np.log(at_p.size / at_q.size)

    def imbalance(f: float) -> float:
        return float(logsumexp(log_expit(at_q + f + shift)) - logsumexp(log_expit(-(at_p + f + shift))))

    edge = 1.0 + np.abs(finite + shift).max() + np.log(at_p.size + at_q.size)
    f = brentq(imbalance, -edge, edge, xtol=1e-12)
    x = np.concatenate([at_p, at_q]) + f + shift
    information = logsumexp(log_expit(x) + log_expit(-x))
    variance = np.exp(-information) - 1 / at_p.size - 1 / at_q.size
    return BarEstimate(float(f), float(np.sqrt(max(variance, 0.0))))


def global_average(log_W: FloatArray, observable: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Self-normalised average over the whole molecule, ``W = w / rho(s)``.

    Args:
        log_W: ``[M, K]`` (draws that share a coarse point are one cluster) or ``[n]`` (all independent).
        observable: ``[M, K, ...]`` or ``[n, ...]``, the same leading shape.

    Returns:
        Mean ``[...]`` and its standard error ``[...]`` (``jackknife_error`` over the coarse points).

    Raises:
        CcgError: if shapes do not fit, there are fewer than 2 points, or no draw has any weight.
    """
    observable = np.asarray(observable, dtype=np.float64)
    if observable.shape[: log_W.ndim] != log_W.shape:
        raise CcgError(
            f"observable of shape {observable.shape}", expected=f"it to begin with that of log_W, {log_W.shape}"
        )
    total = logsumexp(log_W)
    if len(log_W) < 2 or not np.isfinite(total):
        raise CcgError(f"{len(log_W)} points with total log-weight {total}", expected="two points, finite weights")
    points = len(log_W)
    weights = np.exp(log_W - total).reshape(points, -1)
    values = observable.reshape(points, weights.shape[1], -1)
    mean = np.einsum("mk,mkd->d", weights, values)
    scores = np.einsum("mk,mkd->md", weights, values - mean)
    error = jackknife_error(weights.sum(axis=1), scores)
    shape = observable.shape[log_W.ndim :]
    return mean.reshape(shape), error.reshape(shape)


def jackknife_error(share: FloatArray, scores: FloatArray) -> FloatArray:
    """Standard error of self-normalised averages ``m = sum_k W_k x_k`` from their K terms.

    Without term k, m moves by exactly ``a_k = W_k (x_k - m) / (1 - W_k)``; the jackknife sums the squares of these
    moves (Efron 1982, doi:10.1137/1.9781611970319). The delta method lacks the denominator: it is too small where few
    terms carry much of the weight, and zero where one carries it all.

    A sum of few large squares is itself uncertain. It has about ``2 / (sum a^4 / (sum a^2)^2 - 1/K)`` degrees of
    freedom, K - 1 at most (Satterthwaite 1946, doi:10.2307/3002019), and the error is widened by the ratio of Student's
    to the normal quantile, so that m +- 1.96 errors covers 95 %: by 1 % for 100 equal terms, by 2.2 for one large move
    among many.

    Args:
        share: ``[..., K]`` normalised weights of the terms.
        scores: ``[..., K, d]`` ``W_k (x_k - m)``; they add up to zero over K.

    Returns:
        ``[..., d]``; inf where one term has all the weight, to the last digit: nothing is known then.
    """
    K = share.shape[-1]
    # The largest share may be 1 within rounding: what it leaves, and its score, come from the sums over the others.
    largest = np.arange(K) == share.argmax(axis=-1)[..., None]
    rest = np.where(largest, np.where(largest, 0.0, share).sum(axis=-1, keepdims=True), 1.0 - share)
    others = np.where(largest[..., None], 0.0, scores).sum(axis=-2, keepdims=True)
    scores = np.where(largest[..., None], -others, scores)
    with np.errstate(divide="ignore", invalid="ignore"):
        squares = (scores / rest[..., None]) ** 2
    total = squares.sum(axis=-2)
    error = np.sqrt((K - 1) / K * total) * _student_widening(squares, total)
    return np.where((rest > 0).all(axis=-1, keepdims=True), error, np.inf)


def _student_widening(squares: FloatArray, total: FloatArray) -> FloatArray:
    """Ratio of Student's to the normal 97.5 % quantile for a sum ``total [..., d]`` of ``squares [..., K, d]``."""
    K = squares.shape[-2]
    with np.errstate(divide="ignore", invalid="ignore"):
        excess = ((squares / total[..., None, :]) ** 2).sum(axis=-2) - 1 / K
        freedom = np.where(excess > 2 / K, 2 / excess, K - 1)
    return student.ppf(0.975, np.minimum(freedom, K - 1)) / norm.ppf(0.975)
