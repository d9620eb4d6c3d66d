"""Losses on the flow's own draws: reverse KL, and likelihood of the draws weighted by what they should have weighed.

Both come from the same draws and energies, and from the same backward pass. With x = T(z) a draw at fixed noise and
g = d ln q / dx at constant parameters, ``along = g x`` has the path derivative of ln q, and ``ln q - along`` has what
is left of the derivative of ln q(T(z)): that at fixed x, the score. The reverse KL takes the first part alone (path
gradient, arXiv 1703.09194), the weighted likelihood the second one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ccg_gmx.flow.conditional import LadderFlow

_LARGEST_COST = 1e30

Potential = Callable[[Tensor, Tensor, Tensor], Tensor]
"""potential(s, b, y) -> u ``[B]``, differentiable in b and y."""


@dataclass(frozen=True)
class OwnDraws:
    """Draws of the flow with what the losses need of them.

    Attributes:
        u: ``[B]`` potential with its derivative, 0 and constant where it overflowed.
        log_q: ``[B]`` ln q of the draws, its derivative that of ln q(T(z)) at fixed noise.
        along: ``[B]`` a number whose derivative is that of ln q(T(z)) at constant parameters.
        log_w: ``[B]`` log-weights -u - ln q, constant.
        share: ``[B]`` in (0, 1], how much of a draw's pull the losses take, constant: 1 but for clashes.
        loss: ``[B]`` u + ln q, compressed where share is below 1, constant.
    """

    u: Tensor
    log_q: Tensor
    along: Tensor
    log_w: Tensor
    share: Tensor
    loss: Tensor

    @property
    def clash(self) -> float:
        """Part of the draws that were compressed."""
        return float((self.share < 1.0).to(self.share.dtype).mean())


def own_draws(
    flow: LadderFlow, potential: Potential, s: Tensor, generator: torch.Generator, clash_margin: float
) -> OwnDraws:
    """Draw at coarse points and evaluate the potential, once for every draw.

    Clashes would drown everything else. Where u + ln q is far above the batch median it enters a loss as
    limit + ln(1 + excess), so that a draw pulls with 1 / (1 + excess) of its force: the energy's pull and the
    entropy's alike. Were the energy alone compressed, the entropy would win wherever no draw at s avoids a clash, and
    the flow would spread there without bound.

    Args:
        flow: to draw from.
        potential: reduced potential.
        s: ``[B, n_s]`` radians.
        generator: of the noise.
        clash_margin: u + ln q this far above the batch median is compressed.
    """
    b, y, log_q, slope_b, slope_y = flow.push_path(s, *flow.base_noise(len(s), generator))
    along = (slope_b * b).sum(1) + (slope_y * y).sum(1)
    u = potential(s, b, y)
    with torch.no_grad():
        cost = (u + log_q).clamp_max(_LARGEST_COST)  # a clash may overflow float32; it stays the worst of its group
        limit = cost.nanmedian() + clash_margin
        share = 1.0 / (1.0 + (cost - limit).clamp_min(0.0))
        loss = torch.minimum(cost, limit) - torch.log(share)
    overflow = torch.isposinf(u)  # it has nothing to say on where to go instead
    u, along = (torch.where(overflow, 0.0, value) for value in (u, along))
    return OwnDraws(u, log_q, along, -cost, share, loss)


def reverse_kl(draws: OwnDraws) -> Tensor:
    """Return the mean of u + ln q with the path gradient: zero, noise included, where q is exact."""
    pull = draws.share * (draws.u + draws.along)
    return (draws.loss + pull - pull.detach()).mean()


def weighted_likelihood(draws: OwnDraws, group: int, ess_floor: float) -> tuple[Tensor, float]:
    """Return minus the weighted mean of ln q over groups of draws at one coarse point, and the mean weight power.

    Covers mass, as likelihood on fine frames does: the weights w~ of a group, normalised within it, pull q to where the
    target has more than q has (reweighted wake-sleep, arXiv 1406.2751). The gradient takes w~ - 1/group instead of
    w~: the mean score of own draws is zero, so this changes no mean, and leaves no noise where q is exact. A point at
    which even the best draw clashes pulls with that draw's share.

    Args:
        draws: ``group`` consecutive draws belong to one coarse point.
        group: draws per coarse point.
        ess_floor: see ``weight_powers``.
    """
    log_w, share = draws.log_w.view(-1, group), draws.share.view(-1, group)
    power = weight_powers(log_w, ess_floor)
    weights = torch.softmax(power * log_w, 1)
    value = -(weights * draws.log_q.detach().view(-1, group)).sum(1).mean()
    score = (draws.log_q - draws.along).view(-1, group)
    pull = -(share.amax(1, keepdim=True) * (weights - 1.0 / group) * score).sum(1).mean()
    return value + pull - pull.detach(), float(power.mean())


@torch.no_grad()
def weight_powers(log_w: Tensor, ess_floor: float, halvings: int = 14) -> Tensor:
    """Return for each row the largest power <= 1 at which the weights' effective number stays above a floor.

    The effective sample size (Kish) of w^a falls with a; a is found by halving its interval.

    Args:
        log_w: ``[G, K]`` log-weights.
        ess_floor: floor of the effective sample size, as a part of K.
        halvings: steps; the power is exact to 2^-halvings.

    Returns:
        ``[G, 1]`` powers.
    """
    size = log_w.shape[1]

    def enough(power: Tensor) -> Tensor:
        weights = torch.softmax(power * log_w, 1)
        return 1.0 / weights.square().sum(1, keepdim=True) >= ess_floor * size

    whole = torch.ones_like(log_w[:, :1])
    low = torch.zeros_like(whole)
    for step in range(1, halvings + 1):
        middle = low + 0.5**step
        low = torch.where(enough(middle), middle, low)
    return torch.where(enough(whole), whole, low)
