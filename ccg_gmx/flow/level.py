"""One level of the ladder: the density of some internal coordinates given context features, batch-last.

Densities are over the physical coordinates (nm and radians).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import cast

import torch
from pydantic import Field
from torch import Tensor, nn

from ccg_gmx.errors import TrajectoryError
from ccg_gmx.flow.affine import ConditionalAffine
from ccg_gmx.flow.bend import ProductShear
from ccg_gmx.flow.layers import CircularAutoregressive, Path, RealLine, SplineCoupling, circle_features
from ccg_gmx.flow.perceptron import slope_through
from ccg_gmx.flow.splines import wrap
from ccg_gmx.molecule.coordinate import Coordinate
from ccg_gmx.molecule.normal_noise import NormalNoise
from ccg_gmx.settings import Settings

LINE_SUPPORTS = ("positive", "polar", "window")
CIRCLE_SUPPORTS = ("circle", "rotor")


class FlowSettings(Settings):
    """Shape of both levels of the flow."""

    couplings: int = Field(
        default=2, ge=0, description="Spline couplings between Gaussian and affine map, q(y | s, b)."
    )
    bead_couplings: int = Field(default=1, ge=0, description="The same for q(b | s): few, nearly harmonic coordinates.")
    bins: int = Field(default=5, ge=2, le=200, description="Bins of every rational-quadratic spline.")
    bound: float = Field(
        default=5.0, gt=0, description="Half length of a coupling spline's interval, in standard deviations."
    )
    width: int = Field(default=64, ge=2, description="Hidden width of the affine maps' conditioners.")
    lower_width: int = Field(
        default=16, ge=2, description="Hidden width of the conditioners of the affine maps' triangular part."
    )
    coupling_width: int = Field(default=32, ge=2, description="Hidden width of the couplings' conditioners.")
    depth: int = Field(default=2, ge=1, description="Hidden layers of the conditioners.")
    bend: bool = Field(
        default=False, description="Bonds and angles follow the products of windowed torsions: for stiff rings."
    )
    circle_width: int = Field(default=32, ge=2, description="Hidden width of the conditioners of circular coordinates.")
    harmonics: int = Field(
        default=4, ge=1, description="Fourier harmonics of each coarse torsion shown to the conditioners."
    )
    seed: int = Field(default=0, ge=0, description="Seed of the initial weights and of the coupling masks.")


class TorsionFeatures(nn.Module):
    """Fourier features of the coarse torsions: harmonics of each, and sums and differences of each pair.

    Args:
        n_s: torsions.
        harmonics: harmonics of each torsion.
    """

    frequencies: Tensor

    def __init__(self, n_s: int, harmonics: int) -> None:
        super().__init__()
        one = torch.eye(n_s, dtype=torch.float64)
        rows = [k * one[i] for k in range(1, harmonics + 1) for i in range(n_s)]
        for i, j in itertools.combinations(range(n_s), 2):
            rows += [one[i] + one[j], one[i] - one[j]]
        self.register_buffer("frequencies", torch.stack(rows))
        self.n_features = 2 * len(rows)

    def forward(self, s: Tensor) -> Tensor:
        """Map torsions ``[n_s, B]`` (radians) to features ``[n_features, B]``, periodic in each torsion."""
        angles = self.frequencies @ s
        return torch.cat([torch.cos(angles), torch.sin(angles)])


class ConditionalFlow(nn.Module):
    """Density of some internal coordinates given context features.

    Circular coordinates come first, by autoregressive circular splines on a uniform base; then all others, which live
    on the whitened real line, by spline couplings and an affine map on a Gaussian base and, if wanted, a product shear.

    Args:
        n_context: context features; the first ``n_steady`` of them are functions of s alone.
        n_steady: see there.
        coordinates: n coordinates; their order is that of the rows of every ``[n, B]`` argument.
        settings: shape of the flow.
        generator: source of initial weights and masks.
        couplings: spline couplings; those of the settings when None.
    """

    order: Tensor
    restore: Tensor
    centre: Tensor
    period: Tensor

    def __init__(
        self,
        n_context: int,
        n_steady: int,
        coordinates: tuple[Coordinate, ...],
        settings: FlowSettings,
        generator: torch.Generator,
        couplings: int | None = None,
    ) -> None:
        super().__init__()
        self.coordinates = coordinates
        groups = [CIRCLE_SUPPORTS, ("positive",), ("polar", "window")]
        order = [i for group in groups for i, c in enumerate(coordinates) if c.support in group]
        self.register_buffer("order", torch.tensor(order, dtype=torch.int64))
        self.register_buffer("restore", torch.argsort(self.order))
        circles = [c for c in coordinates if c.support in CIRCLE_SUPPORTS]
        lines = [coordinates[i] for i in order if coordinates[i].support in LINE_SUPPORTS]
        self.n_circles, self.n_lines = len(circles), len(lines)
        self.n_features = self.n_lines + 4 * self.n_circles
        self.register_buffer("centre", torch.tensor([c.centre for c in circles], dtype=torch.float64).view(-1, 1))
        self.register_buffer("period", torch.tensor([c.width for c in circles], dtype=torch.float64).view(-1, 1))
        self.line = RealLine(lines)
        self.bend = _bend(lines) if settings.bend else None
        if self.n_circles:
            self.circle = CircularAutoregressive(
                self.n_circles, n_context, settings.bins, settings.circle_width, generator
            )
        n_context += 4 * self.n_circles
        count = settings.couplings if couplings is None else couplings
        self.couplings: Sequence[SplineCoupling] = cast(
            Sequence[SplineCoupling], nn.ModuleList(_couplings(count, self.n_lines, n_context, settings, generator))
        )
        if self.n_lines:
            self.affine = ConditionalAffine(
                self.n_lines,
                n_context,
                n_steady,
                width=settings.width,
                lower_width=settings.lower_width,
                depth=settings.depth,
                generator=generator,
            )

    @property
    def _log_base(self) -> float:
        return -0.5 * self.n_lines * math.log(2.0 * math.pi) - self.n_circles * math.log(2.0 * math.pi)

    def _unit_circle(self, x: Tensor) -> Tensor:
        """Scale circular coordinates ``[n_circles, B]`` to [-pi, pi)."""
        return wrap((x - self.centre) * (2.0 * math.pi / self.period))

    def base_noise(self, batch: int, generator: torch.Generator) -> Tensor:
        """Return ``[n, batch]`` draws of the base: uniform on [-pi, pi) for circles, standard normal for lines."""
        like = self.line.mean
        circles = torch.rand(self.n_circles, batch, generator=generator, dtype=like.dtype, device=like.device)
        if like.device.type == "cpu" and like.dtype in (torch.float32, torch.float64):
            seed = int(torch.randint(2**62, (), generator=generator))
            lines = NormalNoise(seed).fill(torch.empty(self.n_lines, batch, dtype=like.dtype))
        else:
            lines = torch.randn(self.n_lines, batch, generator=generator, dtype=like.dtype, device=like.device)
        return torch.cat([(2.0 * circles - 1.0) * math.pi, lines]).index_select(0, self.restore)

    def push(self, z: Tensor, context: Tensor, steady: Tensor) -> tuple[Tensor, Tensor]:
        """Map base noise ``[n, B]`` to coordinates ``[n, B]`` (nm, radians) and their log-density ``[B]``.

        ``steady [n_steady, B / group]`` are the features of s for every ``group`` samples.
        """
        circles, lines = z.index_select(0, self.order).split([self.n_circles, self.n_lines])
        log_q = self._log_base - 0.5 * lines.square().sum(0)
        if self.n_circles:
            circles, log_det = self.circle.push(circles, context)
            context = torch.cat([context, circle_features(circles)])
            log_q = log_q - log_det - self._log_periods
            circles = self.centre + circles * (self.period / (2.0 * math.pi))
        if self.n_lines:
            for layer in self.couplings:
                lines, log_det = layer.push(lines, context)
                log_q = log_q - log_det
            lines, affine_det = self.affine.push(lines, context, steady)
            lines, line_det = self.line.push(lines if self.bend is None else self.bend.push(lines))
            log_q = log_q - affine_det - line_det
        return torch.cat([circles, lines]).index_select(0, self.restore), log_q

    def push_path(self, z: Tensor, context: Tensor, steady: Tensor) -> Path:
        """Like ``push`` without groups, with d ln q / d(x, context) at constant parameters.

        The context must require a gradient.
        """
        n_context = len(context)
        circles, lines = z.index_select(0, self.order).split([self.n_circles, self.n_lines])
        log_q = self._log_base - 0.5 * lines.square().sum(0)
        by_circles, by_lines, by_context = circles[:0], -lines, torch.zeros_like(context)
        units = circles
        if self.n_circles:
            units, log_det, by_circles, by_context = self.circle.push_path(circles, context)
            context = torch.cat([context, circle_features(units)])
            by_context = torch.cat([by_context, torch.zeros_like(context[n_context:])])
            log_q = log_q - log_det - self._log_periods
            circles = self.centre + units * (self.period / (2.0 * math.pi))
        if self.n_lines:
            for layer in self.couplings:
                lines, log_det, by_lines, change = layer.push_path(lines, context, by_lines)
                log_q, by_context = log_q - log_det, by_context + change
            white, affine_det, by_lines, change = self.affine.push_path(lines, context, steady, by_lines)
            if self.bend is not None:
                by_lines, white = self.bend.push_slope(white, by_lines), self.bend.push(white)
            lines, line_det = self.line.push(white)
            by_lines = self.line.push_slope(white, lines, by_lines)
            log_q, by_context = log_q - affine_det - line_det, by_context + change
        if self.n_circles:
            by_circles = by_circles + slope_through([context[n_context:]], units, [by_context[n_context:]])
            by_circles = by_circles * (2.0 * math.pi / self.period)
        x = torch.cat([circles, lines]).index_select(0, self.restore)
        return x, log_q, torch.cat([by_circles, by_lines]).index_select(0, self.restore), by_context[:n_context]

    @property
    def _log_periods(self) -> Tensor:
        return torch.log(self.period / (2.0 * math.pi)).sum()

    def log_prob(self, x: Tensor, context: Tensor, steady: Tensor) -> Tensor:
        """Return ln q ``[B]`` of coordinates x ``[n, B]`` (nm, radians); -inf outside the support."""
        circles, lines = x.index_select(0, self.order).split([self.n_circles, self.n_lines])
        log_q = torch.full_like(context[0], self._log_base)
        if self.n_circles:
            circles = self._unit_circle(circles)
            _, log_det = self.circle.pull(circles, context)
            context = torch.cat([context, circle_features(circles)])
            log_q = log_q + log_det - self._log_periods
        if not self.n_lines:
            return log_q
        inside = self.line.contains(lines)
        w, line_det = self.line.pull(torch.where(inside, lines, self._inner_point()))
        if self.bend is not None:
            w = self.bend.pull(w)
        w, affine_det = self.affine.pull(w, context, steady)
        log_q = log_q + line_det + affine_det
        for layer in reversed(self.couplings):
            w, log_det = layer.pull(w, context)
            log_q = log_q + log_det
        return torch.where(inside.all(0), log_q - 0.5 * w.square().sum(0), -math.inf)

    def _inner_point(self) -> Tensor:
        """Return a point inside the support ``[n_lines, 1]``."""
        return self.line.push(torch.zeros_like(self.line.mean))[0]

    def describe(self, x: Tensor) -> Tensor:
        """Return features ``[n_features, B]`` of coordinates x ``[n, B]``: whitened lines, cos and sin of circles.

        A value outside its support counts as the centre of the training data; its own density is zero anyway.
        """
        circles, lines = x.index_select(0, self.order).split([self.n_circles, self.n_lines])
        w, _ = self.line.pull(torch.where(self.line.contains(lines), lines, self._inner_point()))
        return torch.cat([w, circle_features(self._unit_circle(circles))])

    @torch.no_grad()
    def fit_scales(self, x: Tensor, ridge: float | None = None) -> None:
        """Set whitening and initial covariance from training values ``[n, T]``.

        Args:
            x: training values.
            ridge: part of the whitened covariance that is replaced by the unit matrix; None for n_lines / (2 T).

        Raises:
            TrajectoryError: a value lies outside the support of its coordinate.
        """
        self.check_support(x)
        if not self.n_lines:
            return
        w = self.line.fit(x.index_select(0, self.order)[self.n_circles :])
        if self.bend is not None:
            self.bend.fit(w)
            w = self.bend.pull(w)
        # A ridge keeps the covariance positive definite when there are fewer frames than coordinates.
        ridge = min(1.0, 1e-6 + (0.5 * self.n_lines / w.shape[1] if ridge is None else ridge))
        covariance = (1.0 - ridge) * (w @ w.T / w.shape[1])
        covariance.diagonal().add_(ridge)
        self.affine.start_from(covariance)

    def check_support(self, x: Tensor) -> None:
        """Refuse values ``[n, T]`` outside their support.

        Raises:
            TrajectoryError: a value lies outside the support of its coordinate, or is not finite.
        """
        finite = torch.isfinite(x.index_select(0, self.order))
        inside = (
            torch.cat([finite[: self.n_circles], self.line.contains(x.index_select(0, self.order)[self.n_circles :])])
            & finite
        )
        bad = (~inside).nonzero()
        if len(bad):
            row, frame = (int(v) for v in bad[0])
            index = int(self.order[row])
            c = self.coordinates[index]
            raise TrajectoryError(
                f"{c.name} is {float(x[index, frame]):.6g} in training frame {frame} ({len(bad)} such values)",
                expected=f"a value inside its support ({c.support}, {_interval(c)})",
                remedy="check that topology and trajectory belong together, or widen the support of this coordinate",
            )


def _bend(lines: Sequence[Coordinate]) -> ProductShear | None:
    """Shear of bonds and angles by windowed torsions, where there are both."""
    steering = [k for k, c in enumerate(lines) if c.support == "window"]
    moved = [k for k, c in enumerate(lines) if c.support != "window"]
    return ProductShear(moved, steering) if moved and steering else None


def _interval(c: Coordinate) -> str:
    if c.support == "positive":
        return "above 0 nm"
    low, high = (0.0, math.pi) if c.support == "polar" else (c.centre - 0.5 * c.width, c.centre + 0.5 * c.width)
    return f"{low:.4f} to {high:.4f} rad"


def _couplings(
    count: int, n: int, n_context: int, settings: FlowSettings, generator: torch.Generator
) -> list[SplineCoupling]:
    """Return coupling layers whose masks are random halves, each followed by its complement."""
    layers = []
    shuffled = torch.randperm(n, generator=generator)
    for i in range(count if n else 0):
        if i % 2 == 0:
            shuffled = torch.randperm(n, generator=generator)
        half = (n + 1) // 2
        moved = shuffled[:half] if i % 2 == 0 else shuffled[half:]
        if len(moved):
            layer = SplineCoupling(
                n,
                moved.sort().values,
                n_context,
                bins=settings.bins,
                bound=settings.bound,
                width=settings.coupling_width,
                depth=settings.depth,
                generator=generator,
            )
            layers.append(layer)
    return layers
