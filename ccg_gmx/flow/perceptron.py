"""Conditioners of the layers: small perceptrons, batch-last."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional


def _weight(n_out: int, n_in: int, generator: torch.Generator) -> nn.Parameter:
    weight = torch.empty(n_out, n_in, dtype=torch.float64)
    return nn.Parameter(weight.normal_(std=1.0 / math.sqrt(max(n_in, 1)), generator=generator))


class Trunk(nn.Module):
    """Hidden layers of a perceptron, SiLU activation; the last unit is the constant 1, so that heads need no bias.

    Args:
        n_in: inputs.
        width: hidden width, the constant included.
        depth: hidden layers.
        generator: source of the initial weights.
    """

    def __init__(self, n_in: int, width: int, depth: int, generator: torch.Generator) -> None:
        super().__init__()
        sizes = [n_in] + [width] * (depth - 1) + [width - 1]
        pairs = list(itertools.pairwise(sizes))
        self.weights = nn.ParameterList(_weight(n_out, n_in, generator) for n_in, n_out in pairs)
        self.biases = nn.ParameterList(torch.zeros(n_out, 1, dtype=torch.float64) for _, n_out in pairs)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[n_in, B]`` to ``[width, B]``."""
        for weight, bias in zip(self.weights, self.biases, strict=True):
            x = functional.silu(torch.addmm(bias, weight, x))
        return torch.cat([x, torch.ones_like(x[:1])])


class Head(nn.Module):
    """Last, linear layer on a trunk, zero at the start; its last column multiplies the trunk's constant unit."""

    def __init__(self, width: int, n_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(n_out, width, dtype=torch.float64))

    def forward(self, hidden: Tensor) -> Tensor:
        """Map ``[width, B]`` to ``[n_out, B]``."""
        return self.weight @ hidden

    def set_constant(self, value: Tensor) -> None:
        """Make the output ``value [n_out]`` when all other weights are zero."""
        self.weight[:, -1] = value


def slope_through(outputs: list[Tensor], inputs: Tensor, slopes: list[Tensor]) -> Tensor:
    """Return the derivative by ``inputs`` of outputs times constant slopes, and keep the graph for the way back."""
    return torch.autograd.grad(outputs, inputs, slopes, retain_graph=True)[0]
