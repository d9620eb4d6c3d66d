"""Layers of the conditional flows, batch-last: values ``[D, B]``, context ``[F, B]``, log-determinants ``[B]``.

Every layer is a map from the base towards the coordinates, ``push``, and its inverse, ``pull``; both return the mapped
values and ln|det| of the map that they applied. ``push_path`` carries the derivative of the log-density along at
constant parameters (arXiv 2207.08219): with J the derivative of a layer x = T(z), that by x is the row vector
(d ln q / dz - d ln|det J| / dz) J^-1, and for what a layer only looks at, minus the change it causes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from ccg_gmx.flow.perceptron import Head, Trunk, slope_through
from ccg_gmx.flow.splines import circular_spline, linear_tail_spline, wrap
from ccg_gmx.molecule.coordinate import Coordinate

Mapped = tuple[Tensor, Tensor]
_LARGEST_LOGIT = 40.0
Path = tuple[Tensor, Tensor, Tensor, Tensor]
"""Mapped values ``[D, B]``, ln|det| ``[B]``, d ln q / d(values) ``[D, B]``, change of d ln q / d(context) ``[F, B]``,
the last two at constant parameters."""


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
        # Rounding must not put a draw on the far edge: in float32 sin of the angle "pi" is below 0.
        part = torch.sigmoid(logit).clamp_max(1.0 - 4.0 * torch.finfo(logit.dtype).eps)
        return torch.cat([torch.exp(log_x), self.low + self.width * part]), log_det

    def fit(self, x: Tensor) -> Tensor:
        """Set the whitening from training values ``[D, T]`` inside their support; return the whitened values."""
        latent, _ = self.latent(x)
        self.mean.copy_(latent.mean(1, keepdim=True))
        std = latent.std(1, keepdim=True, unbiased=False)
        self.std.copy_(torch.where(std > 0.0, std, 1.0))
        return (latent - self.mean) / self.std

    @torch.no_grad()
    def push_slope(self, w: Tensor, x: Tensor, slope: Tensor) -> Tensor:
        """Return d ln q / dx from ``slope``, d ln q / dw of the density before ``push`` mapped w to x, ``[D, B]``."""
        # dx/dw = std x and std width s (1 - s); their logarithms' derivatives by w are std and std (1 - 2 s)
        log_x, logit = x[: self.n_positive], (w * self.std + self.mean)[self.n_positive :]
        # s (1 - s) from the logit: from x it is 0 where float32 puts x on the edge. There dx/dw is 0 as well, and any
        # finite slope will do; so the logit is bounded where float32 would overflow.
        size = logit.abs().clamp_max(_LARGEST_LOGIT)
        spread = torch.exp(-size - 2.0 * torch.log1p(torch.exp(-size)))
        by_w = torch.cat([log_x, self.width * spread]) * self.std
        curvature = torch.cat([torch.ones_like(log_x), -torch.tanh(0.5 * logit)]) * self.std
        return (slope - curvature) / by_w


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
        self.bound, self.rows, self.compiled = bound, 3 * bins - 1, True
        self.trunk = Trunk(len(kept) + n_context, width, depth, generator)
        self.head = Head(width, self.rows * len(moved))

    def _map(self, x: Tensor, kept: Tensor, context: Tensor, inverse: bool) -> tuple[Tensor, ...]:
        """Return the conditioner's input, and moved rows with logarithm of the slope and its derivative."""
        inputs = torch.cat([kept, context])
        raw = self.head(self.trunk(inputs)).view(self.rows, len(self.moved), -1)
        moved = x.index_select(0, self.moved)
        return inputs, *linear_tail_spline(moved, raw, self.bound, inverse, compiled=self.compiled)

    def _join(self, kept: Tensor, moved: Tensor) -> Tensor:
        return torch.cat([kept, moved]).index_select(0, self.restore)

    def push(self, z: Tensor, context: Tensor) -> Mapped:
        """Map ``[n, B]`` towards the coordinates."""
        kept = z.index_select(0, self.kept)
        _, moved, log_slope, _ = self._map(z, kept, context, inverse=False)
        return self._join(kept, moved), log_slope.sum(0)

    def pull(self, x: Tensor, context: Tensor) -> Mapped:
        """Map ``[n, B]`` towards the base."""
        kept = x.index_select(0, self.kept)
        _, moved, log_slope, _ = self._map(x, kept, context, inverse=True)
        return self._join(kept, moved), log_slope.sum(0)

    def push_path(self, z: Tensor, context: Tensor, slope: Tensor) -> Path:
        """Like ``push``, with d ln q / d(x, context) from ``slope``, d ln q / dz."""
        kept = z.index_select(0, self.kept)
        inputs, moved, log_slope, curvature = self._map(z, kept, context, inverse=False)
        with torch.no_grad():
            by_moved = (slope.index_select(0, self.moved) - curvature) * torch.exp(-log_slope)
        by_inputs = slope_through([moved, log_slope], inputs, [by_moved, torch.ones_like(log_slope)])
        by_kept, by_context = by_inputs.split([len(kept), len(context)])
        by_kept = slope.index_select(0, self.kept) - by_kept
        return self._join(kept, moved), log_slope.sum(0), self._join(by_kept, by_moved), -by_context


def circle_features(angle: Tensor, harmonics: int = 2) -> Tensor:
    """Return cos and sin of the first harmonics of angles ``[D, B]`` (radians): ``[2 harmonics D, B]``."""
    cosines, sines = [torch.cos(angle)], [torch.sin(angle)]
    for _ in range(harmonics - 1):  # sums of angles: in float64 torch takes longer for a cosine than for a spline
        cosine, sine = cosines[-1], sines[-1]
        cosines.append(cosine * cosines[0] - sine * sines[0])
        sines.append(sine * cosines[0] + cosine * sines[0])
    return torch.cat([*cosines, *sines])


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
        self.compiled = True

    def _parameters_of(self, i: int, context: Tensor, before: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return rotation ``[1, B]`` and raw spline parameters ``[3 bins, 1, B]`` of angle i.

        ``before`` are the features ``[4, B]`` of each angle before it.
        """
        out = self.heads[i](self.trunks[i](torch.cat([context, *before])))
        return out[:1], out[1:].unsqueeze(1)

    def push(self, z: Tensor, context: Tensor) -> Mapped:
        """Map angles z ``[n, B]`` of the uniform base to the circle of the coordinates."""
        done: list[Tensor] = []
        features: list[Tensor] = []
        log_det = torch.zeros_like(context[0])
        for i, row in enumerate(z.split(1)):
            rotation, raw = self._parameters_of(i, context, features)
            angle, log_slope, _ = circular_spline(row, raw, compiled=self.compiled)
            done.append(wrap(angle + rotation))
            features.append(circle_features(done[-1]))
            log_det = log_det + log_slope[0]
        return torch.cat(done), log_det

    def push_path(self, z: Tensor, context: Tensor) -> Path:
        """Like ``push``, with d ln q / d(angles, context); the base is uniform, so that of z is zero."""
        done: list[Tensor] = []
        slopes: list[Tensor] = []
        log_det, by_context = torch.zeros_like(context[0]), torch.zeros_like(context)
        for i, row in enumerate(z.split(1)):
            inputs = [value.view_as(value) for value in (context, *done)]  # what this angle looks at, nothing before
            rotation, raw = self._parameters_of(i, inputs[0], [circle_features(angle) for angle in inputs[1:]])
            angle, log_slope, curvature = circular_spline(row, raw, compiled=self.compiled)
            with torch.no_grad():
                slope = -curvature * torch.exp(-log_slope)
            outputs = [angle + rotation, log_slope]
            changes = torch.autograd.grad(outputs, inputs, [slope, torch.ones_like(slope)], retain_graph=True)
            by_context = by_context - changes[0]
            slopes = [*(old - change for old, change in zip(slopes, changes[1:], strict=True)), slope]
            done.append(wrap(outputs[0]))
            log_det = log_det + log_slope[0]
        return torch.cat(done), log_det, torch.cat(slopes), by_context

    def pull(self, x: Tensor, context: Tensor) -> Mapped:
        """Map angles x ``[n, B]`` back to the uniform base."""
        rows = list(x.split(1))
        features = [circle_features(row) for row in rows]
        found: list[Tensor] = []
        log_det = torch.zeros_like(context[0])
        for i, row in enumerate(rows):
            rotation, raw = self._parameters_of(i, context, features[:i])
            angle, log_slope, _ = circular_spline(wrap(row - rotation), raw, inverse=True, compiled=self.compiled)
            found.append(angle)
            log_det = log_det + log_slope[0]
        return torch.cat(found), log_det
