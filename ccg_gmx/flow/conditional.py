"""The ladder of conditional flows: q(b | s) for the bead coordinates, then q(y | s, b) for everything else.

Densities are over the physical coordinates (nm and radians). Everything inside is batch-last.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ccg_gmx.flow.affine import ConditionalAffine
from ccg_gmx.flow.layers import CircularAutoregressive, SplineCoupling
from ccg_gmx.flow.level import ConditionalFlow, FlowSettings, TorsionFeatures
from ccg_gmx.flow.perceptron import slope_through
from ccg_gmx.molecule.coordinate import Coordinate

__all__ = ["ConditionalFlow", "FlowSettings", "LadderFlow", "TorsionFeatures"]


def _keep_freed_memory() -> None:
    """Make glibc keep freed blocks of some MB instead of returning them, which triples the time of large layers.

    Its thresholds follow the largest block ever freed, up to 32 MiB: one such block is enough. Elsewhere, no effect.
    """
    torch.empty(32 * 2**20 - 2**16, dtype=torch.uint8)


def repeats(s: Tensor) -> int:
    """Return how many consecutive rows of s ``[B, n_s]`` are equal, all through; 1 where a gradient is wanted.

    Draws come many to a coarse point, and what depends on s alone need be computed once for all of them.
    """
    if torch.is_grad_enabled() or len(s) < 2:
        return 1
    changed = (s != s[0]).any(1).nonzero()
    group = int(changed[0]) if len(changed) else len(s)
    whole = len(s) % group == 0 and bool((s.view(-1, group, s.shape[1]) == s[::group].unsqueeze(1)).all())
    return group if whole else 1


class LadderFlow(nn.Module):
    """q(b, y | s) = q(b | s) q(y | s, b), with exact log-densities in nm and radians.

    Args:
        n_s: coarse torsions.
        b: the other internal coordinates of the beads.
        y: all remaining internal coordinates.
        settings: shape of both levels.
    """

    fitted: Tensor

    def __init__(
        self, n_s: int, b: tuple[Coordinate, ...], y: tuple[Coordinate, ...], settings: FlowSettings | None = None
    ) -> None:
        super().__init__()
        self.n_s, self.b, self.y = n_s, tuple(b), tuple(y)
        self.settings = settings or FlowSettings()
        _keep_freed_memory()
        generator = torch.Generator().manual_seed(self.settings.seed)
        self.features = TorsionFeatures(n_s, self.settings.harmonics)
        n_features = self.features.n_features
        self.beads = ConditionalFlow(
            n_features, n_features, self.b, self.settings, generator, self.settings.bead_couplings
        )
        self.rest = ConditionalFlow(n_features + self.beads.n_features, n_features, self.y, self.settings, generator)
        self.register_buffer("fitted", torch.tensor(False))

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of parameters, noise and densities."""
        return self.rest.line.mean.dtype

    def use_compiled(self, compiled: bool) -> LadderFlow:
        """Choose whether layers use the compiled kernels where these serve (the default), and return the flow."""
        for module in self.modules():
            if isinstance(module, (ConditionalAffine, SplineCoupling, CircularAutoregressive)):
                module.compiled = compiled
        return self

    def _features(self, s: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features of s ``[n_features, B]``, and those of one of every group of rows that share s."""
        group = repeats(s)
        steady = self.features(s[::group].T)
        return steady.repeat_interleave(group, 1) if group > 1 else steady, steady

    def _rest_context(self, s_features: Tensor, b: Tensor) -> Tensor:
        return torch.cat([s_features, self.beads.describe(b)])

    def base_noise(self, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return base noise of both levels, ``[batch, n_b]`` and ``[batch, n_y]``."""
        z_b = self.beads.base_noise(batch, generator)
        return z_b.T, self.rest.base_noise(batch, generator).T

    def push_beads(self, s: Tensor, z_b: Tensor) -> tuple[Tensor, Tensor]:
        """Map noise to bead coordinates.

        Args:
            s: ``[B, n_s]`` radians.
            z_b: ``[B, n_b]`` base noise.

        Returns:
            b ``[B, n_b]`` (nm, radians) and ln q(b | s) ``[B]``, differentiable in s, noise and parameters.
        """
        b, log_q = self.beads.push(z_b.T, *self._features(s))
        return b.T, log_q

    def push_rest(self, s: Tensor, b: Tensor, z_y: Tensor) -> tuple[Tensor, Tensor]:
        """Map noise to the remaining coordinates.

        Args:
            s: ``[B, n_s]`` radians.
            b: ``[B, n_b]`` nm, radians.
            z_y: ``[B, n_y]`` base noise.

        Returns:
            y ``[B, n_y]`` (nm, radians) and ln q(y | s, b) ``[B]``, differentiable in s, b, noise and parameters.
        """
        features, steady = self._features(s)
        y, log_q = self.rest.push(z_y.T, self._rest_context(features, b.T), steady)
        return y.T, log_q

    def push(self, s: Tensor, z_b: Tensor, z_y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map noise of both levels; returns b ``[B, n_b]``, y ``[B, n_y]`` and ln q(b, y | s) ``[B]``."""
        features, steady = self._features(s)
        b, log_q_b = self.beads.push(z_b.T, features, steady)
        y, log_q_y = self.rest.push(z_y.T, self._rest_context(features, b), steady)
        return b.T, y.T, log_q_b + log_q_y

    def push_path(self, s: Tensor, z_b: Tensor, z_y: Tensor) -> tuple[Tensor, ...]:
        """Like ``push``, with the derivatives of ln q(b, y | s) by b and y at constant parameters.

        Those are found on the way (arXiv 2207.08219), without mapping the draws back to the base.

        Returns:
            b ``[B, n_b]``, y ``[B, n_y]``, ln q ``[B]``, and the constants d ln q / db ``[B, n_b]``, d ln q / dy
            ``[B, n_y]``; ln q is differentiable as that of ``push`` is.
        """
        features = self.features(s.T)
        context = features.detach().requires_grad_()
        b, log_q_b, by_b, _ = self.beads.push_path(z_b.T, context, features)
        described = self.beads.describe(b)
        y, log_q_y, by_y, by_context = self.rest.push_path(z_y.T, torch.cat([context, described]), features)
        if self.b:
            by_b = by_b + slope_through([described], b, [by_context[len(features) :]])
        return b.T, y.T, log_q_b + log_q_y, by_b.T, by_y.T

    def draw_beads(self, s: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw bead coordinates at s ``[B, n_s]``; returns b ``[B, n_b]`` and ln q(b | s) ``[B]``."""
        return self.push_beads(s, self.beads.base_noise(len(s), generator).T)

    def draw_rest(self, s: Tensor, b: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw the rest at s ``[B, n_s]``, b ``[B, n_b]``; returns y ``[B, n_y]`` and ln q(y | s, b) ``[B]``."""
        return self.push_rest(s, b, self.rest.base_noise(len(s), generator).T)

    def draw(self, s: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Draw everything at s ``[B, n_s]``; returns b ``[B, n_b]``, y ``[B, n_y]`` and ln q(b, y | s) ``[B]``."""
        return self.push(s, *self.base_noise(len(s), generator))

    def log_prob_beads(self, b: Tensor, s: Tensor) -> Tensor:
        """Return ln q(b | s) ``[B]`` of b ``[B, n_b]`` at s ``[B, n_s]``; -inf outside the support."""
        features = self.features(s.T)
        return self.beads.log_prob(b.T, features, features)

    def log_prob_rest(self, y: Tensor, s: Tensor, b: Tensor) -> Tensor:
        """Return ln q(y | s, b) ``[B]`` of y ``[B, n_y]`` at s ``[B, n_s]``, b ``[B, n_b]``; -inf off the support."""
        features = self.features(s.T)
        return self.rest.log_prob(y.T, self._rest_context(features, b.T), features)

    def log_prob(self, b: Tensor, y: Tensor, s: Tensor) -> Tensor:
        """Return ln q(b, y | s) ``[B]`` of b ``[B, n_b]``, y ``[B, n_y]`` at s ``[B, n_s]``; -inf off the support."""
        features = self.features(s.T)
        log_q_b = self.beads.log_prob(b.T, features, features)
        return log_q_b + self.rest.log_prob(y.T, self._rest_context(features, b.T), features)

    def forward(self, b: Tensor, y: Tensor, s: Tensor) -> Tensor:
        """Same as ``log_prob``; lets ``torch.func.functional_call`` evaluate it with other parameters."""
        return self.log_prob(b, y, s)

    @torch.no_grad()
    def fit_scales(self, b: Tensor, y: Tensor) -> None:
        """Set the whitening of a fresh flow, and start its affine maps at the covariance of the training data.

        Args:
            b: ``[T, n_b]`` nm, radians.
            y: ``[T, n_y]`` nm, radians.

        Raises:
            TrajectoryError: a value lies outside the support of its coordinate.
        """
        self.beads.fit_scales(b.T)
        self.rest.fit_scales(y.T)
        self.fitted.fill_(True)
