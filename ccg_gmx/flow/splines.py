"""Monotonic rational-quadratic splines on an interval with linear tails, and on a circle.

References: Durkan et al., arXiv 1906.04032 (rational-quadratic splines, linear tails); Rezende et al., arXiv 2002.02428
(circular splines). Everything is batch-last: ``D`` dimensions, ``B`` samples, ``K`` bins, parameters ``[K, D, B]``, so
that every elementwise operation and the softmax over bins run over contiguous memory.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ccg_gmx.flow.compiled import SplineShape, serves, spline
from ccg_gmx.flow.kernel_spline import MIN_SIZE, MIN_SLOPE, SLOPE_OFFSET

Mapped = tuple[Tensor, Tensor, Tensor]
"""Mapped values, ln of the derivative of the map that was applied, and the derivative of that by the values given
(constant for autograd), ``[D, B]`` each."""


def wrap(angle: Tensor) -> Tensor:
    """Return the angle (radians, any shape) in [-pi, pi)."""
    return angle - 2.0 * math.pi * torch.floor((angle + math.pi) / (2.0 * math.pi))


def linear_tail_spline(x: Tensor, raw: Tensor, bound: float, inverse: bool = False, *, compiled: bool = True) -> Mapped:
    """Spline on [-bound, bound], identity outside; raw parameters zero give the identity.

    Args:
        x: ``[D, B]`` values on the real line.
        raw: ``[3 K - 1, D, B]`` unconstrained widths, heights and inner slopes.
        bound: half length of the interval.
        inverse: map back.
        compiled: use the kernel where it serves; the torch operations are for other devices.
    """
    if compiled and serves(x):
        return spline(x, raw, SplineShape(bound, False, inverse))
    inside = x.abs() < bound
    # Points on the tails take part as zero, where value and derivative are finite, and are replaced after.
    y, log_slope, curvature = _spline(torch.where(inside, x, 0.0), raw, bound, inverse)
    return torch.where(inside, y, x), torch.where(inside, log_slope, 0.0), torch.where(inside, curvature, 0.0)


def circular_spline(x: Tensor, raw: Tensor, inverse: bool = False, *, compiled: bool = True) -> Mapped:
    """Spline of the circle [-pi, pi] onto itself, with fixed point pi; raw parameters zero give the identity.

    Args:
        x: ``[D, B]`` radians in [-pi, pi].
        raw: ``[3 K, D, B]`` unconstrained widths, heights and slopes; the slopes at -pi and pi are one parameter.
        inverse: map back.
        compiled: use the kernel where it serves; the torch operations are for other devices.
    """
    if compiled and serves(x):
        return spline(x, raw, SplineShape(math.pi, True, inverse))
    return _spline(x, raw, math.pi, inverse)


def _spline(x: Tensor, raw: Tensor, bound: float, inverse: bool) -> Mapped:
    """Map ``[D, B]`` inside [-bound, bound] by the splines of raw parameters ``[3 K - 1 or 3 K, D, B]``."""
    start, width, floor, height, raw_left, raw_right = _SelectBin.apply(x, raw, bound, inverse)
    left = MIN_SLOPE + functional.softplus(raw_left + SLOPE_OFFSET)
    right = MIN_SLOPE + functional.softplus(raw_right + SLOPE_OFFSET)
    mean = height / width
    bend = left + right - 2.0 * mean
    t = _solve_bin(x - floor, height, mean, left, bend) if inverse else (x - start) / width
    rest = 1.0 - t
    between = t * rest
    denominator = mean + bend * between
    numerator = right * t.square() + 2.0 * mean * between + left * rest.square()
    slope = numerator * (mean / denominator).square()
    log_slope = torch.log(slope)
    with torch.no_grad():
        by_t = 2.0 * ((right * t + mean * (rest - t) - left * rest) / numerator - bend * (rest - t) / denominator)
        curvature = by_t / width
    if inverse:
        return start + width * t, -log_slope, -curvature / slope.detach()
    return floor + height * (mean * t.square() + left * between) / denominator, log_slope, curvature


def _solve_bin(y: Tensor, height: Tensor, mean: Tensor, left: Tensor, bend: Tensor) -> Tensor:
    """Return the fraction t of the bin at which the spline reaches y above its lower knot (all ``[D, B]``)."""
    bend = y * bend
    a = height * (mean - left) + bend
    b = height * left - bend
    c = mean * y
    # This form of the root has no cancellation for either sign of a (Durkan et al., appendix A.3).
    return 2.0 * c / (b + torch.sqrt(b.square() + 4.0 * a * c))


class _SelectBin(torch.autograd.Function):
    """Knots, sizes and raw slopes of the bin that each value falls into.

    One function with a derivative by hand: autograd would write a ``[K, D, B]`` array of mostly zeros for each of the
    gathered quantities, while the knots of a softmax partition have a closed derivative.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, raw: Tensor, bound: float, inverse: bool) -> tuple[Tensor, ...]:
        """Return left knot, width, lower knot, height, raw left and right slope, all ``[D, B]``."""
        bins = (raw.shape[0] + 1) // 3
        scale, floor = 2.0 * bound * (1.0 - bins * MIN_SIZE), 2.0 * bound * MIN_SIZE
        parts = [torch.softmax(raw[:bins], 0), torch.softmax(raw[bins : 2 * bins], 0)]
        sums = [torch.cumsum(part, 0) for part in parts]
        below = torch.arange(1, bins, dtype=x.dtype, device=x.device).view(-1, 1, 1) * floor - bound
        above_knot = x >= torch.add(below, sums[inverse][:-1], alpha=scale)
        index = above_knot.view(torch.uint8).sum(0, keepdim=True, dtype=torch.uint8).to(torch.int64)
        results: list[Tensor] = []
        offset = index[0].to(x.dtype) * floor - bound
        for part, total in zip(parts, sums, strict=True):
            size = part.gather(0, index)[0]
            results += [(total.gather(0, index)[0] - size) * scale + offset, size * scale + floor]
        rows = _slope_rows(index, raw.shape[0], bins)
        for row, known in rows:
            slope = raw.gather(0, row)[0]
            results.append(slope if known is None else slope.masked_fill(known[0], 0.0))
        ctx.save_for_backward(*parts, *sums, index)
        ctx.scale, ctx.n_raw = scale, raw.shape[0]
        return tuple(results)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Derivative by the raw parameters; x only chooses the bin."""
        *tables, index = ctx.saved_tensors
        bins = tables[0].shape[0]
        below = torch.arange(bins, device=index.device).view(-1, 1, 1) < index
        by_raw = torch.empty(ctx.n_raw, *index.shape[1:], dtype=grads[0].dtype, device=index.device)
        for i in range(2):
            part, total = tables[i], tables[2 + i]
            by_knot, by_size = grads[2 * i] * ctx.scale, grads[2 * i + 1] * ctx.scale
            # d part_j / d raw_l = part_j (delta_jl - part_l); the knot sums the parts below, the size is one part.
            size = part.gather(0, index)[0]
            mean = by_knot * (total.gather(0, index)[0] - size) + by_size * size
            out = by_raw[i * bins : (i + 1) * bins]
            torch.mul(part, torch.where(below, by_knot - mean, -mean), out=out)
            out.scatter_(0, index, (size * (by_size - mean)).unsqueeze(0))
        by_raw[2 * bins :].zero_()
        for (row, known), grad in zip(_slope_rows(index, ctx.n_raw, bins), grads[4:], strict=True):
            by_raw.scatter_add_(0, row, (grad if known is None else grad.masked_fill(known[0], 0.0)).unsqueeze(0))
        return None, by_raw, None, None


def _slope_rows(index: Tensor, n_raw: int, bins: int) -> list[tuple[Tensor, Tensor | None]]:
    """Return, for both ends of bin ``index [1, D, B]``, the row of its slope in raw and where the slope is fixed."""
    if n_raw == 3 * bins:
        return [(2 * bins + index, None), (2 * bins + (index + 1) % bins, None)]
    first, last = index == 0, index == bins - 1
    return [
        ((2 * bins - 1 + index).masked_fill_(first, 2 * bins), first),
        ((2 * bins + index).masked_fill_(last, 2 * bins), last),
    ]
