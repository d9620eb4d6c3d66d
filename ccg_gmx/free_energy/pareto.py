"""Pareto k-hat: the tail index of importance weights, batched over points."""

from __future__ import annotations

import numpy as np

from ccg_gmx.records import FloatArray

PARETO_MINIMUM_DRAWS = 100
"""Fewer draws leave fewer than 20 in the tail: k-hat is then nan, because it could say anything."""


def pareto_k(log_w: FloatArray) -> FloatArray:
    """Tail shape k-hat of the weights at each point (Vehtari et al., arXiv 1507.02646).

    Weights have finite moments up to order 1/k; above 0.7 their mean is not to be trusted at practical K. A
    generalised Pareto law is fitted to the largest ``min(K / 5, 3 sqrt(K))`` draws.

    Args:
        log_w: ``[M, K]`` log-weights.

    Returns:
        ``[M]`` k-hat; nan for K < 100 (too few draws for a tail); ``-inf`` where the largest draws are all equal (no
        tail), ``+inf`` where fewer draws than the tail asks for have any weight.
    """
    K = log_w.shape[-1]
    if K < PARETO_MINIMUM_DRAWS:
        return np.full(len(log_w), np.nan)
    tail = int(np.ceil(min(0.2 * K, 3 * np.sqrt(K))))
    top = np.sort(np.partition(log_w, K - tail - 1, axis=-1)[:, K - tail - 1 :], axis=-1)
    with np.errstate(invalid="ignore"):
        excess = np.exp(top[:, 1:] - top[:, -1:]) - np.exp(top[:, :1] - top[:, -1:])
    # Rows without a lower quartile above the cut-off have no scale to fit.
    starved, flat = np.isneginf(top[:, 0]), excess[:, -1] == 0
    usable = ~starved & (excess[:, _quartile(tail)] > 0)
    out = np.where(flat & ~starved, -np.inf, np.inf)
    for rows in np.array_split(np.flatnonzero(usable), 1 + usable.sum() * tail // 40_000):
        out[rows] = fit_generalised_pareto(excess[rows])[0]
    return out


def fit_generalised_pareto(excess: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Shape and scale of a generalised Pareto law, by Zhang and Stephens 2009, doi:10.1198/tech.2009.08017.

    The density is ``(1 + k x / sigma)^(-1/k - 1) / sigma``. A quadrature over a profile posterior of theta =
    -k / sigma, with the weakly informative prior on k of arXiv 1507.02646 (ten observations at k = 0.5).

    Args:
        excess: ``[M, n]`` ascending, >= 0, with a positive lower quartile.

    Returns:
        k ``[M]`` and sigma ``[M]``.
    """
    n = excess.shape[-1]
    nodes = 30 + int(np.sqrt(n))
    spread = 1 - np.sqrt(nodes / (np.arange(1, nodes + 1) - 0.5))
    theta = 1 / excess[:, -1:] + spread / (3 * excess[:, [_quartile(n)]])
    shape = np.log1p(-theta[..., None] * excess[:, None, :]).mean(axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        log_likelihood = n * (np.log(-theta / shape) - shape - 1)
    posterior = np.exp(log_likelihood - np.nanmax(log_likelihood, axis=-1, keepdims=True))
    posterior /= np.nansum(posterior, axis=-1, keepdims=True)
    best = np.nansum(posterior * theta, axis=-1)
    k = np.log1p(-best[:, None] * excess).mean(axis=-1)
    prior = 10.0
    return (n * k + prior * 0.5) / (n + prior), -k / best


def _quartile(n: int) -> int:
    return int(n / 4 + 0.5) - 1
