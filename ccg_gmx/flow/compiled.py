"""The compiled kernels for torch: functions with derivatives, on the processor, in float64 and float32."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ccg_gmx.flow.kernel_shear import shear_backward, shear_forward, shear_shared, shear_transposed
from ccg_gmx.flow.kernel_spline import spline_backward, spline_forward
from ccg_gmx.molecule.kernel_lanes import lane_count

LANES = {torch.float64: lane_count(np.dtype(np.float64)), torch.float32: lane_count(np.dtype(np.float32))}
"""Samples per SIMD vector of the float types that the kernels know."""


def serves(x: Tensor) -> bool:
    """Return whether the kernels can work on this tensor ``[D, B]``."""
    return x.device.type == "cpu" and x.dtype in LANES and x.numel() > 0


def _flat(x: Tensor) -> NDArray[Any]:
    return x.detach().numpy().reshape(-1)


def _filled(x: Tensor, batch: int) -> Tensor:
    """Repeat the last sample until there are ``batch``; kernels need one whole vector."""
    missing = batch - x.shape[-1]
    return x if missing <= 0 else torch.cat([x, x[..., -1:].expand(*x.shape[:-1], missing)], -1)


@dataclass(frozen=True)
class SplineShape:
    """What the kernels must know of a spline beside its numbers.

    Attributes:
        bound: half length of the interval.
        circular: whether its ends are one point.
        inverse: direction.
    """

    bound: float
    circular: bool
    inverse: bool


def spline(x: Tensor, raw: Tensor, shape: SplineShape) -> tuple[Tensor, Tensor, Tensor]:
    """Map ``x [D, B]`` by splines of parameters ``raw [R, D, B]``; the identity outside of a line's interval.

    Returns:
        Mapped values, ln of the derivative, and the derivative of that by x (a constant for autograd), ``[D, B]`` each.
    """
    batch = x.shape[1]
    least = LANES[x.dtype]
    results = _Spline.apply(_filled(x, least).contiguous(), _filled(raw, least).contiguous(), shape)
    y, log_slope, curvature = (result[:, :batch] for result in results)
    return y, log_slope, curvature


class _Spline(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, raw: Tensor, shape: SplineShape) -> tuple[Tensor, Tensor, Tensor]:
        y, log_slope, curvature = (torch.empty_like(x) for _ in range(3))
        arrays = [_flat(tensor) for tensor in (x, raw, y, log_slope, curvature)]
        spline_forward(*arrays, *_arguments(x, raw, shape))
        ctx.save_for_backward(x, raw)
        ctx.shape = shape
        ctx.mark_non_differentiable(curvature)
        return y, log_slope, curvature

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, raw = ctx.saved_tensors
        by_x, by_raw = torch.empty_like(x), torch.empty_like(raw)
        given = [_flat(grad.contiguous()) for grad in grads[:2]]
        spline_backward(_flat(x), _flat(raw), *given, _flat(by_x), _flat(by_raw), *_arguments(x, raw, ctx.shape))
        return by_x, by_raw, None


def _arguments(x: Tensor, raw: Tensor, shape: SplineShape) -> tuple[Any, ...]:
    bins = (raw.shape[0] + 1) // 3
    return (*x.shape, bins, shape.circular, shape.inverse, not shape.circular, shape.bound, LANES[x.dtype])


@dataclass(frozen=True)
class ShearSteps:
    """Steps of a product of shears: row ``low`` takes from ``width`` rows from ``high`` on.

    Attributes:
        low: ``[n]``.
        high: ``[n]``.
        width: ``[n]``.
    """

    low: NDArray[np.int64]
    high: NDArray[np.int64]
    width: NDArray[np.int64]

    @property
    def arrays(self) -> tuple[NDArray[np.int64], ...]:
        """The three arrays, for the kernels."""
        return self.low, self.high, self.width


def shear(v: Tensor, matrix: Tensor, steps: ShearSteps, inverse: bool) -> Tensor:
    """Apply shears of entries ``matrix [E, B]`` to ``v [n, B]``, or undo them."""
    least = LANES[v.dtype]
    out = _Shear.apply(_filled(v, least).contiguous(), _filled(matrix, least).contiguous(), steps, inverse)
    return out[:, : v.shape[1]]


class _Shear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, v: Tensor, matrix: Tensor, steps: ShearSteps, inverse: bool) -> Tensor:
        out = torch.empty_like(v)
        shear_forward(_flat(v), _flat(matrix), _flat(out), *steps.arrays, *v.shape, inverse, LANES[v.dtype])
        ctx.save_for_backward(out, matrix)
        ctx.steps, ctx.inverse = steps, inverse
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        out, matrix = ctx.saved_tensors
        by_v, by_matrix = torch.empty_like(out), torch.empty_like(matrix)
        arrays = [_flat(t) for t in (out, matrix, grads[0].contiguous(), by_v, by_matrix)]
        shear_backward(*arrays, *ctx.steps.arrays, *out.shape, ctx.inverse, LANES[out.dtype])
        return by_v, by_matrix, None, None


def shear_by_group(v: Tensor, matrix: Tensor, steps: ShearSteps) -> Tensor:
    """Apply shears to ``v [n, B]``, B / P consecutive samples by each column of ``matrix [E, P]``; no derivative."""
    out, group = torch.empty_like(v), v.shape[1] // matrix.shape[1]
    rows = _flat(matrix.T.contiguous())
    shear_shared(_flat(v.contiguous()), rows, _flat(out), *steps.arrays, *v.shape, group, LANES[v.dtype])
    return out


def shear_slopes(slope: Tensor, matrix: Tensor, steps: ShearSteps) -> Tensor:
    """Return g' with g' J = ``slope [n, B]`` for the derivative J of ``shear``; no derivative."""
    least, batch = LANES[slope.dtype], slope.shape[1]
    slope, matrix = _filled(slope.detach(), least).contiguous(), _filled(matrix.detach(), least).contiguous()
    out = torch.empty_like(slope)
    shear_transposed(_flat(slope), _flat(matrix), _flat(out), *steps.arrays, *slope.shape, LANES[slope.dtype])
    return out[:, :batch]
