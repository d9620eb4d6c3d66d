"""What deep collective variables are trained for: slowness, or states that lie where they should."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from ccg_gmx.cv.lagged import Pairs
from ccg_gmx.errors import SettingsError
from ccg_gmx.records import FloatArray, IntArray

RIDGE = 1e-6
"""Added to the outputs' covariance, in units of their mean variance."""


class SlownessObjective:
    """Minus the sum of squared eigenvalues of TICA on the outputs (VAMP-2 of a reversible process).

    Bonati, Piccini, Parrinello 2021, doi:10.1073/pnas.2113533118; Chen, Sidky, Ferguson 2019, doi:10.1063/1.5092521.

    Args:
        x: ``[T, F]`` standardised features.
        train: pairs to train on.
        test: pairs held out; None for none, and the training pairs decide.
    """

    def __init__(self, x: FloatArray, train: Pairs, test: Pairs | None) -> None:
        self.x = torch.from_numpy(np.ascontiguousarray(x))
        self.train = _tensors(train)
        self.test = _tensors(test) if test is not None else self.train

    def batch(self, network: nn.Module, size: int, generator: torch.Generator) -> Tensor:
        """Loss of pairs drawn at random."""
        first, second, weight = self.train
        if size >= len(first):
            return self._loss(network, first, second, weight)
        rows = torch.randint(len(first), (size,), generator=generator)
        return self._loss(network, first[rows], second[rows], weight[rows])

    def held_out(self, network: nn.Module) -> Tensor:
        """Loss of the held-out pairs."""
        return self._loss(network, *self.test)

    def _loss(self, network: nn.Module, first: Tensor, second: Tensor, weight: Tensor) -> Tensor:
        return -squared_eigenvalues(network(self.x[first]), network(self.x[second]), weight)


def _tensors(pairs: Pairs) -> tuple[Tensor, Tensor, Tensor]:
    return torch.from_numpy(pairs.first), torch.from_numpy(pairs.second), torch.from_numpy(pairs.weight)


def squared_eigenvalues(x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    """Sum of squared eigenvalues of reversible TICA; with all of them kept it needs no diagonalisation.

    Args:
        x: ``[P, k]`` outputs for the earlier frames.
        y: ``[P, k]`` outputs for the later frames.
        weight: ``[P]``.
    """
    p = (weight / weight.sum())[:, None]
    mean = 0.5 * (p * (x + y)).sum(0)
    x, y = x - mean, y - mean
    c0 = 0.5 * ((p * x).T @ x + (p * y).T @ y)
    ct = (p * x).T @ y
    ct = 0.5 * (ct + ct.T)
    unit = torch.eye(len(c0), dtype=c0.dtype)
    root = torch.linalg.cholesky(c0 + (RIDGE * c0.diagonal().mean() + 1e-12) * unit)
    half = torch.linalg.solve_triangular(root, ct, upper=False)
    return torch.linalg.solve_triangular(root, half.T, upper=False).square().sum()


class TargetObjective:
    """Every state a Gaussian of given place and width in the collective variables (deep TDA).

    Trizio, Parrinello 2021, doi:10.1021/acs.jpclett.1c02317.

    Args:
        x: ``[T, F]`` standardised features.
        state: ``[T]``.
        weights: ``[T]``.
        held: ``[T]`` True where held out.
        centres: ``[S, k]`` targets.
        widths: ``[S, k]`` targets, standard deviations.
    """

    mean_factor, width_factor = 1.0, 100.0

    def __init__(
        self,
        x: FloatArray,
        state: IntArray,
        weights: FloatArray,
        held: np.ndarray,
        centres: FloatArray,
        widths: FloatArray,
    ) -> None:
        self.x, self.weights = torch.from_numpy(np.ascontiguousarray(x)), torch.from_numpy(weights)
        self.centres, self.widths = torch.from_numpy(centres), torch.from_numpy(widths)
        self.train = [torch.from_numpy(np.flatnonzero((state == k) & ~held)) for k in range(len(centres))]
        self.test = [torch.from_numpy(np.flatnonzero((state == k) & held)) for k in range(len(centres))]
        if any(len(rows) < 2 for rows in self.test):
            self.test = self.train

    def batch(self, network: nn.Module, size: int, generator: torch.Generator) -> Tensor:
        """Loss of as many frames of each state, drawn at random."""
        share = max(size // len(self.train), 2)
        drawn = [
            rows if share >= len(rows) else rows[torch.randint(len(rows), (share,), generator=generator)]
            for rows in self.train
        ]
        return self._loss(network, drawn)

    def held_out(self, network: nn.Module) -> Tensor:
        """Loss of the held-out frames."""
        return self._loss(network, self.test)

    def scores(self, network: nn.Module) -> dict[str, float]:
        """Losses of all training and all held-out frames."""
        return {
            name: float(self._loss(network, rows)) for name, rows in (("train", self.train), ("held_out", self.test))
        }

    def _loss(self, network: nn.Module, rows: list[Tensor]) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for own, centre, width in zip(rows, self.centres, self.widths, strict=True):
            out = network(self.x[own])
            p = (self.weights[own] / self.weights[own].sum())[:, None]
            mean = (p * out).sum(0)
            spread = ((p * (out - mean).square()).sum(0) + 1e-12).sqrt()
            total = total + self.mean_factor * (mean - centre).square().sum()
            total = total + self.width_factor * (spread - width).square().sum()
        return total


def default_targets(states: int, count: int) -> tuple[FloatArray, FloatArray]:
    """Centres and widths ``[states, count]``: 14 apart and 0.2 wide, in a row or on a circle.

    Args:
        states: number of states.
        count: 1 or 2 collective variables.

    Raises:
        SettingsError: for more variables than 2.
    """
    apart = 14.0
    if count == 1:
        centres = apart * (np.arange(states)[:, None] - 0.5 * (states - 1))
    elif count == 2:
        angle = 2 * math.pi * np.arange(states) / states
        centres = 0.5 * apart / math.sin(math.pi / states) * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    else:
        raise SettingsError(f"deep-tda with {count} variables", expected="1 or 2")
    return np.asarray(centres, dtype=np.float64), np.full((states, count), 0.2)
