"""Exact log-weights of a conditional flow against a target: ``ln w = -u - ln q``.

Nothing is clipped, dropped or sorted: a draw that the target forbids has weight zero and still counts among the K.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from ccg_gmx.errors import CcgError
from ccg_gmx.free_energy.estimators import jackknife_error
from ccg_gmx.records import CoarseSplit, FloatArray, WeightedDraws

Array = TypeVar("Array", FloatArray, Tensor)
Target = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``target(s [B, n_s], b [B, n_b], y [B, n_y]) -> u [B]``, the reduced potential; rows are independent."""

Progress = Callable[[int, int], object]
"""``progress(done, total)``."""


class ConditionalDensity(Protocol):
    """What this module asks of a flow: a float64 ladder q(b | s) q(y | s, b) with independent rows."""

    def draw(self, s: Tensor, generator: torch.Generator, /) -> tuple[Tensor, Tensor, Tensor]:
        """Draw ``b [B, n_b]``, ``y [B, n_y]`` and ``ln q(b, y | s) [B]`` at ``s [B, n_s]``."""

    def log_prob(self, b: Tensor, y: Tensor, s: Tensor, /) -> Tensor:
        """Return ``ln q(b, y | s) [B]``."""

    def base_noise(self, count: int, generator: torch.Generator, /) -> tuple[Tensor, Tensor]:
        """Draw base noise ``z_b [B, n_b]``, ``z_y [B, n_y]``."""

    def push_rest(self, s: Tensor, b: Tensor, z_y: Tensor, /) -> tuple[Tensor, Tensor]:
        """Map noise to ``y [B, n_y]`` and ``ln q(y | s, b) [B]``, differentiable in s and b."""

    def push(self, s: Tensor, z_b: Tensor, z_y: Tensor, /) -> tuple[Tensor, Tensor, Tensor]:
        """Map noise to ``b [B, n_b]``, ``y [B, n_y]`` and ``ln q(b, y | s) [B]``, differentiable in s."""


def log_weights(u: Array, log_q: Array) -> Array:
    """Return ``ln w = -u - ln q``, elementwise.

    Args:
        u: ``[...]`` reduced potential.
        log_q: ``[...]`` log-density of the draws.
    """
    return -u - log_q


@torch.no_grad()
def draw_ladder(
    flow: ConditionalDensity,
    target: Target,
    s: FloatArray,
    K: int,
    seed: int,
    chunk: int = 8192,
    progress: Progress | None = None,
) -> tuple[FloatArray, FloatArray]:
    """Draw (b, y) K times at every coarse point: log-weights, and the beads drawn.

    The draws are a function of (seed, chunk): the same pair gives the same numbers.

    Args:
        flow: conditional density to draw from.
        target: reduced potential.
        s: ``[M, n_s]`` radians.
        K: draws per point.
        seed: seed of the draws.
        chunk: draws evaluated at once (memory).
        progress: called with (draws done, draws in all) after every chunk.

    Returns:
        ``[M, K]`` log-weights, ``-inf`` where the target is ``+inf``; ``[M, K, n_b]`` bead coordinates (nm, radians).

    Raises:
        CcgError: if an energy or a density is not a number.
    """
    points = _as_tensor(s)
    generator = torch.Generator(device="cpu").manual_seed(seed)
    log_w, beads = np.empty(len(points) * K), []
    for rows in _chunks(len(log_w), chunk, progress):
        at = points[torch.arange(rows.start, rows.stop) // K]
        b, y, log_q = flow.draw(at, generator)
        log_w[rows] = _checked_log_weights(target(at, b, y), log_q)
        beads.append(b.double().cpu().numpy())
    return log_w.reshape(len(points), K), np.concatenate(beads).reshape(len(points), K, -1)


def draw_weights(
    flow: ConditionalDensity,
    target: Target,
    s: FloatArray,
    K: int,
    seed: int,
    chunk: int = 8192,
    progress: Progress | None = None,
) -> FloatArray:
    """Return only the ``[M, K]`` log-weights of ``draw_ladder``, which documents the arguments and what it raises."""
    return draw_ladder(flow, target, s, K, seed, chunk, progress)[0]


def draw_gradients(
    flow: ConditionalDensity,
    target: Target,
    s: FloatArray,
    K: int,
    seed: int,
    chunk: int = 8192,
    log_rho: FloatArray | None = None,
    progress: Progress | None = None,
) -> WeightedDraws:
    """Draw (b, y) at fixed coarse points: log-weights and the mean force of ``f(s) = -ln Z(s)``.

    The same path-wise estimate as ``draw_bead_gradients``, which documents it, one level up: the noise of both parts of
    the ladder is held fixed, so b moves with s as well as y. The gradient needs the derivative of an energy, about
    two to three times the cost of the weight alone.

    Where the target is +inf inside the support of the flow, the edge of the allowed region moves with s at fixed noise,
    and no derivative of a weight sees that: such walls belong into the support of the flow.

    Args:
        flow: conditional density.
        target: reduced potential, differentiable.
        s: ``[M, n_s]`` radians.
        K: draws per point, at least 2.
        seed: seed of the draws.
        chunk: draws evaluated at once (memory).
        log_rho: ``[M]`` log-density of the proposal of s, kept for the record; nan when not given.
        progress: called with (draws done, draws in all) after every chunk.

    Returns:
        Draws with ``b = None``, ``gradient`` and ``gradient_error`` ``[M, n_s]`` (kT per rad).

    Raises:
        CcgError: if an energy, a density or the gradient of a draw with non-zero weight is not a number.
    """

    def restore(at: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        b, y, log_q = flow.push(at, *flow.base_noise(len(at), generator))
        return target(at, b, y), log_q

    log_w, gradient, error = _draw_slopes(restore, _as_tensor(s), K, seed, chunk, progress)
    return WeightedDraws(np.asarray(s), log_w, _proposal(log_rho, len(s)), log_w.size, None, gradient, error)


def draw_bead_gradients(
    flow: ConditionalDensity,
    target: Target,
    s: FloatArray,
    b: FloatArray,
    K: int,
    seed: int,
    chunk: int = 8192,
    log_rho: FloatArray | None = None,
    progress: Progress | None = None,
) -> WeightedDraws:
    """Draw y alone at fixed beads (s, b): log-weights and the mean force of ``f(s, b) = -ln Z(s, b)``.

    At fixed noise z the weight is a differentiable function of (s, b), so ``f = -ln mean_k w_k`` has the path-wise
    derivative ``-sum_k w~_k d ln w_k / d(s, b)`` with w~ the normalised weights (what autograd of the logsumexp
    gives). Its standard error is ``estimators.jackknife_error`` over the K draws. As any self-normalised
    average it has a bias of order 1/K. An exact flow has ``d ln w = d ln Z`` for every draw: no variance at all.

    Args:
        flow: conditional density; only its rest part q(y | s, b) is used.
        target: reduced potential, differentiable.
        s: ``[M, n_s]`` radians.
        b: ``[M, n_b]`` nm and radians.
        K: draws per point, at least 2.
        seed: seed of the draws.
        chunk: draws evaluated at once (memory).
        log_rho: ``[M]`` log-density of the proposal of (s, b), kept for the record; nan when not given.
        progress: called with (draws done, draws in all) after every chunk.

    Returns:
        Draws with ``gradient`` and ``gradient_error`` ``[M, n_s + n_b]`` (kT per rad or per nm).

    Raises:
        CcgError: if an energy, a density or the gradient of a draw with non-zero weight is not a number.
    """
    n_s = s.shape[1]

    def restore(at: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        _, noise = flow.base_noise(len(at), generator)
        y, log_q = flow.push_rest(at[:, :n_s], at[:, n_s:], noise)
        return target(at[:, :n_s], at[:, n_s:], y), log_q

    beads = torch.cat([_as_tensor(s), _as_tensor(b)], dim=1)
    log_w, gradient, error = _draw_slopes(restore, beads, K, seed, chunk, progress)
    rho = _proposal(log_rho, len(s))
    return WeightedDraws(np.asarray(s), log_w, rho, log_w.size, np.asarray(b), gradient, error)


@torch.no_grad()
def forward_log_weights(flow: ConditionalDensity, split: CoarseSplit, chunk: int = 8192) -> FloatArray:
    """Log-weights ``-u - ln q(b, y | s)`` of (held-out) fine frames.

    Args:
        flow: conditional density.
        split: fine frames that the flow was not trained on.
        chunk: frames evaluated at once (memory).

    Returns:
        ``[T]``; ``+inf`` for a frame outside the support of the flow (the flow cannot make it: forward ESS zero).

    Raises:
        CcgError: if an energy or a density is not a number.
    """
    out = np.empty(len(split.s))
    for rows in _chunks(len(out), chunk):
        log_q = flow.log_prob(*(_as_tensor(x[rows]) for x in (split.b, split.y, split.s)))
        out[rows] = log_weights(split.u[rows], log_q.double().cpu().numpy())
    if lost := int(np.isnan(out).sum() + np.isneginf(out).sum()):
        raise CcgError(
            f"{lost} of {len(out)} fine frames have no finite energy or density",
            expected="finite numbers for every frame that fine MD visited",
            remedy="check that the frames belong to the topology, and that training did not diverge",
        )
    return out


def _draw_slopes(
    restore: Callable[[Tensor, torch.Generator], tuple[Tensor, Tensor]],
    points: Tensor,
    K: int,
    seed: int,
    chunk: int,
    progress: Progress | None,
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """``[M, K]`` log-weights and ``[M, n]`` gradient of f with its error, at ``points [M, n]``.

    ``restore`` gives u and ln q of one draw at every row of what it is given, differentiable in it.
    """
    if K < 2:
        raise CcgError(f"{K} draws per point", expected="at least 2 for a standard error", remedy="raise K")
    M, n = points.shape
    generator = torch.Generator(device="cpu").manual_seed(seed)
    log_w, slopes = np.empty(M * K), np.empty((M * K, n))
    for rows in _chunks(M * K, chunk, progress):
        at = points[torch.arange(rows.start, rows.stop) // K].requires_grad_(True)
        u, log_q = restore(at, generator)
        (slope,) = torch.autograd.grad(log_weights(u, log_q).sum(), at)
        log_w[rows] = _checked_log_weights(u.detach(), log_q.detach())
        slopes[rows] = slope.double().cpu().numpy()
    gradient, error = _self_normalised_slope(log_w.reshape(M, K), slopes.reshape(M, K, n))
    return log_w.reshape(M, K), gradient, error


def _proposal(log_rho: FloatArray | None, points: int) -> FloatArray:
    """``[M]`` log-density of a proposal; one that is not known must not pass for a uniform one."""
    return np.full(points, np.nan) if log_rho is None else np.asarray(log_rho, dtype=np.float64)


def _self_normalised_slope(log_w: FloatArray, slopes: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Weighted mean of ``-slopes [M, K, n]`` over K, and its jackknife standard error."""
    with np.errstate(invalid="ignore"):
        weights = np.exp(log_w - np.logaddexp.reduce(log_w, axis=1, keepdims=True))[..., None]
    # A weightless draw has w dlnw -> 0 in the limit, but autograd returns 0 * inf = nan for it.
    slopes = np.where(np.isneginf(log_w)[..., None], 0.0, slopes)
    if lost := int((~np.isfinite(slopes)).any(axis=-1).sum()):
        raise CcgError(
            f"{lost} of {log_w.size} draws have a finite weight but no finite gradient",
            expected="a differentiable energy wherever the weight is not zero",
            remedy="check the energy at coinciding atoms and at the edge of a coordinate's support",
        )
    mean = (weights * slopes).sum(axis=1)
    error = jackknife_error(weights[..., 0], weights * (slopes - mean[:, None]))
    # Where a single draw has any weight, its slope is all that is known: it may be wrong by all of its size.
    return -mean, np.where(np.isinf(error), np.abs(mean), error)


def _checked_log_weights(u: Tensor, log_q: Tensor) -> FloatArray:
    """``[B]`` float64 log-weights; only ``u = +inf`` may be non-finite."""
    energy, density = u.double().cpu().numpy(), log_q.double().cpu().numpy()
    for name, lost in (
        ("energy", int((np.isnan(energy) | np.isneginf(energy)).sum())),
        ("log-density", int((~np.isfinite(density)).sum())),
    ):
        if lost:
            raise CcgError(
                f"{lost} of {len(energy)} draws have no valid {name} (nan or -inf)",
                expected="finite numbers, or u = +inf for a forbidden frame",
                remedy="check that the flow did not diverge in training (loss curve, learning rate)",
            )
    return log_weights(energy, density)


def _as_tensor(values: FloatArray) -> Tensor:
    return torch.as_tensor(np.ascontiguousarray(values), dtype=torch.float64)


def _chunks(count: int, chunk: int, progress: Progress | None = None) -> Iterator[slice]:
    for start in range(0, count, chunk):
        stop = min(start + chunk, count)
        yield slice(start, stop)
        if progress is not None:
            progress(stop, count)
