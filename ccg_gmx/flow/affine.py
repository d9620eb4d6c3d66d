"""Conditional affine maps with a full triangular matrix, batch-last."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ccg_gmx.flow.compiled import LANES, ShearSteps, serves, shear, shear_by_group, shear_slopes
from ccg_gmx.flow.layers import Mapped, Path
from ccg_gmx.flow.perceptron import Head, Trunk, slope_through


def halvings(n: int) -> tuple[int, list[tuple[int, int, int, int]]]:
    """Return how the strictly lower triangle of an n x n matrix splits into levels of equal rectangles.

    Returns:
        Padded size ``m >= n`` and levels ``(block, start, top, bottom)`` from small to large blocks: in each of the
        ``m / block`` diagonal blocks, rows ``start + top ... start + top + bottom`` take from columns
        ``start ... start + top``.
    """
    counts = [2**k for k in range(10) if n <= 8 * 2**k and 2**k <= max(n, 1)]
    candidates = [_halve(-(-n // count), count) for count in counts]
    # Work grows with the padded square, overhead with the levels; their ratio was measured at a thousand samples.
    return min(candidates, key=lambda found: found[0] ** 2 + 30 * len(found[1]))


def _halve(base: int, count: int) -> tuple[int, list[tuple[int, int, int, int]]]:
    """Halve blocks of ``base`` rows one by one, then join ``count`` (a power of two) of them pairwise."""
    levels: list[tuple[int, int, int, int]] = []

    def split(start: int, size: int) -> None:
        if size > 1:
            top = size - size // 2
            split(start, top)
            split(start + top, size - top)
            levels.append((base, start, top, size - top))

    split(0, base)
    block = base
    while block < base * count:
        levels.append((2 * block, 0, block, block))
        block *= 2
    return base * count, levels


def shear_steps(padded: int, levels: list[tuple[int, int, int, int]]) -> ShearSteps:
    """Return the rows of all levels one by one, in the order of the entries of their matrices."""
    rows = [
        (first + start + top + i, first + start, top)
        for block, start, top, bottom in levels
        for first in range(0, padded, block)
        for i in range(bottom)
    ]
    low, high, width = np.array(rows, dtype=np.int64).reshape(-1, 3).T.copy()
    return ShearSteps(low, high, width)


class ConditionalAffine(nn.Module):
    """Conditional affine map ``x = mu(c) + L(c) z`` with a full lower-triangular L of positive diagonal.

    Any such L is, in one way only, a diagonal times unit block matrices ``[[1, 0], [A, 1]]`` on blocks of doubling size
    (by recursion: ``[[P, 0], [C, Q]] = [[1, 0], [C P^-1, 1]] [[P, 0], [0, Q]]``). The A of all levels together have
    the n (n - 1) / 2 free numbers of L, and neither direction needs a triangular solve.

    mu and the diagonal look at the whole context. The A, which are most of the parameters, look at its steady part
    alone, the features of s: that trains to higher weights, and draws that share s share them.

    Args:
        n: rows.
        n_context: context features.
        n_steady: features of the steady part.
        width: hidden width of the conditioner of mu and the diagonal.
        lower_width: hidden width of that of the A, which has one hidden layer.
        depth: hidden layers of the first.
        generator: source of the initial weights.
    """

    def __init__(
        self,
        n: int,
        n_context: int,
        n_steady: int,
        *,
        width: int,
        lower_width: int,
        depth: int,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.n, self.compiled = n, True
        self.padded, self.levels = halvings(n)
        self.steps = shear_steps(self.padded, self.levels)
        self.trunk = Trunk(n_context, width, depth, generator)
        self.shift = Head(width, n)
        self.log_scale = Head(width, n)
        self.lower_trunk = Trunk(n_steady, lower_width, 1, generator)
        self.lower = Head(lower_width, int(self.steps.width.sum()))

    def _shear(self, v: Tensor, matrix: Tensor, inverse: bool = False) -> Tensor:
        """Apply the shears of ``matrix [E, B or B / group]`` to v ``[padded, B]``."""
        group = v.shape[1] // matrix.shape[1]
        if self.compiled and serves(v):
            if group == 1:
                return shear(v, matrix, self.steps, inverse)
            if not inverse and group % LANES[v.dtype] == 0 and not torch.is_grad_enabled():
                return shear_by_group(v, matrix, self.steps)
        return self._shear_levels(v, matrix.repeat_interleave(group, 1) if group > 1 else matrix, inverse)

    def _parts(self, matrix: Tensor) -> list[tuple[tuple[int, int, int, int], Tensor]]:
        """Return the levels with their matrices ``[blocks, bottom, top, B]``."""
        sizes = [self.padded // block * top * bottom for block, _, top, bottom in self.levels]
        shapes = [(self.padded // block, bottom, top, -1) for block, _, top, bottom in self.levels]
        entries = [part.view(shape) for part, shape in zip(matrix.split(sizes), shapes, strict=True)]
        return list(zip(self.levels, entries, strict=True))

    def _shear_levels(self, v: Tensor, matrix: Tensor, inverse: bool) -> Tensor:
        """Level by level: add A times the top rows of each block to its bottom rows."""
        parts = self._parts(matrix)
        for (block, start, top, bottom), entries in reversed(parts) if inverse else parts:
            blocks = v.view(-1, block, v.shape[1])
            above = blocks[:, start : start + top]
            below = blocks[:, start + top : start + top + bottom]
            products = (entries * above.unsqueeze(1)).sum(2)
            moved = below - products if inverse else below + products
            v = torch.cat([blocks[:, : start + top], moved, blocks[:, start + top + bottom :]], 1).view_as(v)
        return v

    def _pad(self, v: Tensor) -> Tensor:
        return functional.pad(v, (0, 0, 0, self.padded - self.n)) if self.padded > self.n else v

    def push(self, z: Tensor, context: Tensor, steady: Tensor) -> Mapped:
        """Map z ``[n, B]`` to ``mu + L z``; ``steady [n_steady, B / group]`` holds for ``group`` samples each."""
        hidden = self.trunk(context)
        log_scale = self.log_scale(hidden)
        v = self._shear(self._pad(z * torch.exp(log_scale)), self.lower(self.lower_trunk(steady)))
        return v[: self.n] + self.shift(hidden), log_scale.sum(0)

    def push_path(self, z: Tensor, context: Tensor, steady: Tensor, slope: Tensor) -> Path:
        """Like ``push``, with d ln q / d(x, context) from ``slope``, d ln q / dz; steady features have none."""
        context = context.view_as(context)  # z depends on the context too; this one is what the layer looks at
        hidden = self.trunk(context)
        log_scale = self.log_scale(hidden)
        matrix = self.lower(self.lower_trunk(steady))
        x = self._shear(self._pad(z * torch.exp(log_scale)), matrix)[: self.n] + self.shift(hidden)
        with torch.no_grad():
            slope = self._slopes(self._pad(slope * torch.exp(-log_scale)), matrix)[: self.n]
        change = slope_through([x, log_scale], context, [slope, torch.ones_like(log_scale)])
        return x, log_scale.sum(0), slope, -change

    def _slopes(self, slope: Tensor, matrix: Tensor) -> Tensor:
        """Return slope ``[padded, B]`` times the inverse of all shears."""
        if self.compiled and serves(slope):
            return shear_slopes(slope, matrix, self.steps)
        slope = slope.clone()
        for (block, start, top, bottom), entries in self._parts(matrix):
            blocks = slope.view(-1, block, slope.shape[1])
            below = blocks[:, start + top : start + top + bottom]
            blocks[:, start : start + top] -= (entries * below.unsqueeze(2)).sum(1)
        return slope

    def pull(self, x: Tensor, context: Tensor, steady: Tensor) -> Mapped:
        """Map x ``[n, B]`` to ``L^-1 (x - mu)``."""
        hidden = self.trunk(context)
        matrix = self.lower(self.lower_trunk(steady))
        v = self._shear(self._pad(x - self.shift(hidden)), matrix, inverse=True)
        log_scale = self.log_scale(hidden)
        return v[: self.n] * torch.exp(-log_scale), -log_scale.sum(0)

    @torch.no_grad()
    def start_from(self, covariance: Tensor) -> None:
        """Set the biases so that a fresh layer gives ``L L^T = covariance`` (``[n, n]``, positive definite)."""
        lower = torch.eye(self.padded, dtype=torch.float64, device=covariance.device)
        lower[: self.n, : self.n] = torch.linalg.cholesky(covariance.to(torch.float64))
        diagonal = lower.diagonal()
        self.log_scale.set_constant(torch.log(diagonal[: self.n]))
        unit = lower / diagonal
        entries = []
        for block, start, top, bottom in self.levels:
            first = torch.arange(0, self.padded, block).view(-1, 1) + start
            above = first + torch.arange(top)
            below = first + top + torch.arange(bottom)
            p = unit[above.unsqueeze(2), above.unsqueeze(1)]
            c = unit[below.unsqueeze(2), above.unsqueeze(1)]
            entries.append(torch.linalg.solve_triangular(p, c, upper=False, left=False).flatten())
        self.lower.set_constant(torch.cat(entries) if entries else torch.zeros(0, dtype=torch.float64))
