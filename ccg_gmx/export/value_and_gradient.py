"""One graph that gives a model's values and their gradient, so that whoever runs it needs no autograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

SMALL = 65_536
"""Weights of a layer up to which a sum that the compiler fuses beats a call to a matrix library."""


def value_and_gradient(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Evaluate a model and the gradient of every output by autograd.

    Args:
        model: ``[B, n_in] -> [B, n_out]``.
        x: ``[1, n_in]``, one input.

    Returns:
        Values ``[n_out]`` and gradient ``[n_out, n_in]``.
    """
    point = x.detach().requires_grad_(True)
    values = model(point)[0]
    rows = [
        torch.autograd.grad(values[k], point, retain_graph=True, materialize_grads=True)[0][0]
        for k in range(len(values))
    ]
    return values.detach(), torch.stack(rows).detach()


def _mm(a: Tensor, b: Tensor) -> Any:
    if b.numel() > SMALL:
        return NotImplemented
    return (a.unsqueeze(-1) * b.unsqueeze(0)).sum(1)


def _addmm(bias: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Any:
    if b.numel() > SMALL:
        return NotImplemented
    return beta * bias + alpha * (a.unsqueeze(-1) * b.unsqueeze(0)).sum(1)


def gradient_graph(model: nn.Module, x: Tensor, *, fuse: bool) -> GraphModule:
    """Trace forward and backward into one graph.

    torch.export refuses ``autograd.grad`` inside forward; a graph of both has neither any more.

    Args:
        model: ``[B, n_in] -> [B, n_out]``, without branches that depend on the input.
        x: ``[1, n_in]``, an input to trace with.
        fuse: write products with small matrices as sums, which a compiler fuses with what is around them.

    Returns:
        A module ``[1, n_in] -> ([n_out], [n_out, n_in])``.
    """
    table: dict[Any, Callable[..., Any]] = {}
    if fuse:
        table = {torch.ops.aten.mm.default: _mm, torch.ops.aten.addmm.default: _addmm}
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return make_fx(lambda point: value_and_gradient(model, point), decomposition_table=table)(x)
