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

MIN_SIZE = 1e-3
"""Smallest bin width and height, as a fraction of the whole interval."""

MIN_SLOPE = 1e-3
"""Smallest derivative at a knot."""

SLOPE_OFFSET = math.log(math.expm1(1.0 - MIN_SLOPE))
"""Raw slope zero gives derivative one, so that zero parameters give the identity."""


def wrap(angle: Tensor) -> Tensor:
    """Return the angle (radians, any shape) in [-pi, pi)."""
    return angle - 2.0 * math.pi * torch.floor((angle + math.pi) / (2.0 * math.pi))


def linear_tail_spline(x: Tensor, raw: Tensor, bound: float, inverse: bool = False) -> tuple[Tensor, Tensor]:
    """Spline on [-bound, bound], identity outside; raw parameters zero give the identity.

    Args:
        x: ``[D, B]`` values on the real line.
        raw: ``[3 K - 1, D, B]`` unconstrained widths, heights and inner slopes.
        bound: half length of the interval.
        inverse: map back.

    Returns:
        Mapped values ``[D, B]`` and ln of the derivative of the map that was applied ``[D, B]``.
    """
    bins = (raw.shape[0] + 1) // 3
    slopes = functional.pad(raw[2 * bins :], (0, 0, 0, 0, 1, 1))
    inside = x.abs() < bound
    # Points on the tails take part as zero, where value and derivative are finite, and are replaced after.
    y, log_slope = _spline(torch.where(inside, x, 0.0), raw[:bins], raw[bins : 2 * bins], slopes, bound, inverse)
    return torch.where(inside, y, x), torch.where(inside, log_slope, 0.0)


def circular_spline(x: Tensor, raw: Tensor, inverse: bool = False) -> tuple[Tensor, Tensor]:
    """Spline of the circle [-pi, pi] onto itself, with fixed point pi; raw parameters zero give the identity.

    Args:
        x: ``[D, B]`` radians in [-pi, pi].
        raw: ``[3 K, D, B]`` unconstrained widths, heights and slopes; the slopes at -pi and pi are one parameter.
        inverse: map back.

    Returns:
        Mapped values ``[D, B]`` and ln of the derivative of the map that was applied ``[D, B]``.
    """
    bins = raw.shape[0] // 3
    slopes = torch.cat([raw[2 * bins :], raw[2 * bins : 2 * bins + 1]])
    return _spline(x, raw[:bins], raw[bins : 2 * bins], slopes, math.pi, inverse)


def _spline(x: Tensor, widths: Tensor, heights: Tensor, slopes: Tensor, bound: float, inverse: bool) -> tuple[Tensor, Tensor]:
    """Map ``[D, B]`` by splines given by raw widths and heights ``[K, D, B]`` and raw slopes ``[K + 1, D, B]``."""
    source, target = (heights, widths) if inverse else (widths, heights)
    near, near_size, far, far_size, index = _SelectBin.apply(x, source, target, bound)
    raw_left, raw_right = slopes.gather(0, torch.stack([index, index + 1])).unbind(0)
    left = MIN_SLOPE + functional.softplus(raw_left + SLOPE_OFFSET)
    right = MIN_SLOPE + functional.softplus(raw_right + SLOPE_OFFSET)
    if inverse:
        t = _solve_bin(x - near, near_size, near_size / far_size, left, right)
        slope_mean = near_size / far_size
    else:
        t = (x - near) / near_size
        slope_mean = far_size / near_size
    rest = 1.0 - t
    between = t * rest
    denominator = slope_mean + (left + right - 2.0 * slope_mean) * between
    numerator = right * t.square() + 2.0 * slope_mean * between + left * rest.square()
    log_slope = 2.0 * torch.log(slope_mean / denominator) + torch.log(numerator)
    if inverse:
        return far + far_size * t, -log_slope
    return far + far_size * (slope_mean * t.square() + left * between) / denominator, log_slope


def _solve_bin(y: Tensor, height: Tensor, slope_mean: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Return the fraction t of the bin at which the spline reaches y above its lower knot (all ``[D, B]``)."""
    bend = y * (left + right - 2.0 * slope_mean)
    a = height * (slope_mean - left) + bend
    b = height * left - bend
    c = -slope_mean * y
    # This form of the root has no cancellation for either sign of a (Durkan et al., appendix A.3).
    return 2.0 * c / (-b - torch.sqrt(b.square() - 4.0 * a * c))


class _SelectBin(torch.autograd.Function):
    """Knot and size, on both axes, of the bin that each value falls into.

    One function with a derivative by hand, because autograd would write a ``[K, D, B]`` array of mostly zeros for each
    of the gathered quantities; the knots of a softmax partition have a closed derivative instead.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, source: Tensor, target: Tensor, bound: float) -> tuple[Tensor, ...]:
        """Return near knot, near size, far knot, far size and bin index, all ``[D, B]``."""
        bins = source.shape[0]
        span = 2.0 * bound
        near_part, far_part = torch.softmax(source, 0), torch.softmax(target, 0)
        scale, floor = span * (1.0 - bins * MIN_SIZE), span * MIN_SIZE
        near_sum, far_sum = torch.cumsum(near_part, 0), torch.cumsum(far_part, 0)
        count = torch.arange(1, bins, dtype=x.dtype, device=x.device).view(-1, 1, 1)
        knots = near_sum[:-1] * scale + (count * floor - bound)
        index = (x >= knots).view(torch.uint8).sum(0, dtype=torch.uint8).to(torch.int64).unsqueeze(0)
        found = []
        for part, total in ((near_part, near_sum), (far_part, far_sum)):
            size = part.gather(0, index)[0]
            below = total.gather(0, index)[0] - size
            found += [below * scale + (index[0] * floor - bound), size * scale + floor]
        ctx.save_for_backward(near_part, far_part, index)
        ctx.scale = scale
        ctx.mark_non_differentiable(index[0])
        return (*found, index[0])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Derivative by the raw source and target; x only chooses the bin."""
        near_part, far_part, index = ctx.saved_tensors
        bins = torch.arange(near_part.shape[0], device=index.device).view(-1, 1, 1)
        below, here = bins < index, bins == index
        result = []
        for part, knot_grad, size_grad in ((near_part, grads[0], grads[1]), (far_part, grads[2], grads[3])):
            by_part = torch.where(below, knot_grad, torch.where(here, size_grad, 0.0)).mul_(part)
            result.append(by_part.addcmul_(part, by_part.sum(0), value=-1.0).mul_(ctx.scale))
        return None, result[0], result[1], None
