"""Layers of the conditional flows, batch-last: values ``[D, B]``, context ``[F, B]``, log-determinants ``[B]``.

Every layer is a map from the base towards the coordinates, ``push``, and its inverse, ``pull``; both return the mapped
values and ln|det| of the map that they applied.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from ccg_gmx.flow.splines import circular_spline, linear_tail_spline, wrap
from ccg_gmx.molecule.coordinate import Coordinate

Mapped = tuple[Tensor, Tensor]


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


class RealLine(nn.Module):
    """Fixed map of bonds, angles and windowed torsions onto the whitened real line, so that no draw leaves its support.

    positive: log; polar: logit of theta / pi; window: logit of the position in the window. Coordinates must come with
    all ``positive`` ones first.

    Args:
        coordinates: D coordinates of support positive, polar or window.
    """

    low: Tensor
    width: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, coordinates: Sequence[Coordinate]) -> None:
        super().__init__()
        self.n_positive = sum(c.support == "positive" for c in coordinates)
        bounded = coordinates[self.n_positive :]
        low = [0.0 if c.support == "polar" else c.centre - 0.5 * c.width for c in bounded]
        width = [math.pi if c.support == "polar" else c.width for c in bounded]
        self.register_buffer("low", torch.tensor(low, dtype=torch.float64).view(-1, 1))
        self.register_buffer("width", torch.tensor(width, dtype=torch.float64).view(-1, 1))
        self.register_buffer("mean", torch.zeros(len(coordinates), 1, dtype=torch.float64))
        self.register_buffer("std", torch.ones(len(coordinates), 1, dtype=torch.float64))

    def contains(self, x: Tensor) -> Tensor:
        """Return ``[D, B]``, true where x ``[D, B]`` (nm, radians) lies in the open support."""
        bounded = x[self.n_positive :]
        inside = (bounded > self.low) & (bounded < self.low + self.width)
        return torch.cat([x[: self.n_positive] > 0.0, inside])

    def latent(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map x ``[D, B]`` inside its support to the line, not whitened; also ln|d latent / dx| ``[B]``."""
        log_x = torch.log(x[: self.n_positive])
        part = (x[self.n_positive :] - self.low) / self.width
        log_part, log_rest = torch.log(part), torch.log1p(-part)
        log_det = -log_x.sum(0) - (log_part + log_rest).sum(0) - torch.log(self.width).sum()
        return torch.cat([log_x, log_part - log_rest]), log_det

    def pull(self, x: Tensor) -> Mapped:
        """Map x ``[D, B]`` inside its support to the whitened line."""
        latent, log_det = self.latent(x)
        return (latent - self.mean) / self.std, log_det - torch.log(self.std).sum()

    def push(self, w: Tensor) -> Mapped:
        """Map whitened w ``[D, B]`` to nm and radians."""
        latent = w * self.std + self.mean
        log_x, logit = latent[: self.n_positive], latent[self.n_positive :]
        # ln s(v) + ln s(-v) = -v - 2 softplus(-v), exact also where the sigmoid s saturates.
        tail = functional.softplus(-logit, threshold=40.0)
        log_det = log_x.sum(0) - (logit + 2.0 * tail).sum(0) + torch.log(self.width).sum() + torch.log(self.std).sum()
        return torch.cat([torch.exp(log_x), self.low + self.width * torch.sigmoid(logit)]), log_det

    def fit(self, x: Tensor) -> Tensor:
        """Set the whitening from training values ``[D, T]`` inside their support; return the whitened values."""
        latent, _ = self.latent(x)
        self.mean.copy_(latent.mean(1, keepdim=True))
        std = latent.std(1, keepdim=True, unbiased=False)
        self.std.copy_(torch.where(std > 0.0, std, 1.0))
        return (latent - self.mean) / self.std


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


class ConditionalAffine(nn.Module):
    """Conditional affine map ``x = mu(c) + L(c) z`` with a full lower-triangular L of positive diagonal.

    Any such L is, in one way only, a diagonal times unit block matrices ``[[1, 0], [A, 1]]`` on blocks of doubling size
    (by recursion: ``[[P, 0], [C, Q]] = [[1, 0], [C P^-1, 1]] [[P, 0], [0, Q]]``). The A of all levels together have
    the n (n - 1) / 2 free numbers of L, and both directions cost log2(n) batched products: no triangular solve.
    """

    def __init__(self, n: int, n_context: int, width: int, depth: int, generator: torch.Generator) -> None:
        super().__init__()
        self.n = n
        self.padded, self.levels = halvings(n)
        self.trunk = Trunk(n_context, width, depth, generator)
        self.shift = Head(width, n)
        self.log_scale = Head(width, n)
        sizes = [self.padded // block * top * bottom for block, _, top, bottom in self.levels]
        self.lower = nn.ModuleList(Head(width, size) for size in sizes)

    def _shear(self, v: Tensor, level: int, hidden: Tensor, sign: float) -> Tensor:
        """Add sign times A times the top rows of each block of v ``[padded, B]`` to its bottom rows."""
        block, start, top, bottom = self.levels[level]
        blocks = v.view(-1, block, v.shape[1])
        above = blocks[:, start : start + top]
        below = blocks[:, start + top : start + top + bottom]
        matrix = self.lower[level](hidden).view(blocks.shape[0], bottom, top, -1)
        moved = torch.add(below, (matrix * above.unsqueeze(1)).sum(2), alpha=sign)
        pieces = [blocks[:, : start + top], moved, blocks[:, start + top + bottom :]]
        return torch.cat(pieces, 1).view_as(v)

    def push(self, z: Tensor, context: Tensor) -> Mapped:
        """Map z ``[n, B]`` to ``mu + L z``."""
        hidden = self.trunk(context)
        log_scale = self.log_scale(hidden)
        v = functional.pad(z * torch.exp(log_scale), (0, 0, 0, self.padded - self.n))
        for level in range(len(self.levels)):
            v = self._shear(v, level, hidden, 1.0)
        return v[: self.n] + self.shift(hidden), log_scale.sum(0)

    def pull(self, x: Tensor, context: Tensor) -> Mapped:
        """Map x ``[n, B]`` to ``L^-1 (x - mu)``."""
        hidden = self.trunk(context)
        v = functional.pad(x - self.shift(hidden), (0, 0, 0, self.padded - self.n))
        for level in reversed(range(len(self.levels))):
            v = self._shear(v, level, hidden, -1.0)
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
        heads = cast(list[Head], self.lower)
        for head, (block, start, top, bottom) in zip(heads, self.levels, strict=True):
            first = torch.arange(0, self.padded, block).view(-1, 1) + start
            above = first + torch.arange(top)
            below = first + top + torch.arange(bottom)
            p = unit[above.unsqueeze(2), above.unsqueeze(1)]
            c = unit[below.unsqueeze(2), above.unsqueeze(1)]
            head.set_constant(torch.linalg.solve_triangular(p, c, upper=False, left=False).flatten())


class SplineCoupling(nn.Module):
    """Rational-quadratic spline coupling (arXiv 1906.04032): some rows stay and steer the splines of the others.

    Args:
        n: rows.
        moved: indices of the rows that are transformed; the others stay.
        n_context: context features.
        bins: bins of each spline.
        bound: half length of the spline's interval, the identity beyond.
        width: hidden width of the conditioner.
        depth: hidden layers of the conditioner.
        generator: source of the initial weights.
    """

    moved: Tensor
    kept: Tensor
    restore: Tensor

    def __init__(
        self,
        n: int,
        moved: Tensor,
        n_context: int,
        *,
        bins: int,
        bound: float,
        width: int,
        depth: int,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        kept = torch.tensor(sorted(set(range(n)) - set(moved.tolist())), dtype=torch.int64)
        self.register_buffer("moved", moved)
        self.register_buffer("kept", kept)
        self.register_buffer("restore", torch.argsort(torch.cat([kept, moved])))
        self.bound, self.rows = bound, 3 * bins - 1
        self.trunk = Trunk(len(kept) + n_context, width, depth, generator)
        self.head = Head(width, self.rows * len(moved))

    def _map(self, x: Tensor, context: Tensor, inverse: bool) -> Mapped:
        kept = x.index_select(0, self.kept)
        raw = self.head(self.trunk(torch.cat([kept, context]))).view(self.rows, len(self.moved), -1)
        y, log_slope = linear_tail_spline(x.index_select(0, self.moved), raw, self.bound, inverse)
        return torch.cat([kept, y]).index_select(0, self.restore), log_slope.sum(0)

    def push(self, z: Tensor, context: Tensor) -> Mapped:
        """Map ``[n, B]`` towards the coordinates."""
        return self._map(z, context, inverse=False)

    def pull(self, x: Tensor, context: Tensor) -> Mapped:
        """Map ``[n, B]`` towards the base."""
        return self._map(x, context, inverse=True)


def circle_features(angle: Tensor, harmonics: int = 2) -> Tensor:
    """Return cos and sin of the first harmonics of angles ``[D, B]`` (radians): ``[2 harmonics D, B]``."""
    angles = torch.cat([k * angle for k in range(1, harmonics + 1)])
    return torch.cat([torch.cos(angles), torch.sin(angles)])


class CircularAutoregressive(nn.Module):
    """Circular splines and rotations of a few angles, each conditioned on the context and on the angles before it.

    Args:
        n: angles, on the circle [-pi, pi).
        n_context: context features.
        bins: bins of each spline.
        width: hidden width of each conditioner, which has one hidden layer.
        generator: source of the initial weights.
    """

    def __init__(self, n: int, n_context: int, bins: int, width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.trunks = nn.ModuleList(Trunk(n_context + 4 * i, width, 1, generator) for i in range(n))
        self.heads = nn.ModuleList(Head(width, 3 * bins + 1) for _ in range(n))

    def _parameters_of(self, i: int, context: Tensor, before: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return rotation ``[1, B]`` and raw spline parameters ``[3 bins, 1, B]`` of angle i."""
        features = [context] + [circle_features(angle) for angle in before]
        out = self.heads[i](self.trunks[i](torch.cat(features)))
        return out[:1], out[1:].unsqueeze(1)

    def push(self, z: Tensor, context: Tensor) -> Mapped:
        """Map angles z ``[n, B]`` of the uniform base to the circle of the coordinates."""
        done: list[Tensor] = []
        log_det = torch.zeros_like(context[0])
        for i in range(len(self.heads)):
            rotation, raw = self._parameters_of(i, context, done)
            angle, log_slope = circular_spline(z[i : i + 1], raw)
            done.append(wrap(angle + rotation))
            log_det = log_det + log_slope[0]
        return torch.cat(done), log_det

    def pull(self, x: Tensor, context: Tensor) -> Mapped:
        """Map angles x ``[n, B]`` back to the uniform base."""
        rows = list(x.split(1))
        found: list[Tensor] = []
        log_det = torch.zeros_like(context[0])
        for i, row in enumerate(rows):
            rotation, raw = self._parameters_of(i, context, rows[:i])
            angle, log_slope = circular_spline(wrap(row - rotation), raw, inverse=True)
            found.append(angle)
            log_det = log_det + log_slope[0]
        return torch.cat(found), log_det
