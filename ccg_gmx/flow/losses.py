"""Losses on the flow's own draws: reverse KL, and likelihood of the draws weighted by what they should have weighed.

Both come from the same draws and energies, and from the same backward pass. With x = T(z) a draw at fixed noise and
g = d ln q / dx at constant parameters, ``along = g x`` has the path derivative of ln q, and ``ln q - along`` has what
is left of the derivative of ln q(T(z)): that at fixed x, the score. The reverse KL takes the first part alone (path
gradient, arXiv 1703.09194), the weighted likelihood the second one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ccg_gmx.flow.conditional import LadderFlow

_LOWEST_LOG_WEIGHT = -1e30

Potential = Callable[[Tensor, Tensor, Tensor], Tensor]
"""potential(s, b, y) -> u ``[B]``, differentiable in b and y."""


@dataclass(frozen=True)
class OwnDraws:
    """Draws of the flow with what the losses need of them.

    Attributes:
        u: ``[B]`` potential, compressed where it is far above the median; with a derivative.
        log_q: ``[B]`` ln q of the draws, its derivative that of ln q(T(z)) at fixed noise.
        along: ``[B]`` a number whose derivative is that of ln q(T(z)) at constant parameters.
        log_w: ``[B]`` log-weights -u - ln q before compression, constant.
        clash: part of the draws whose u was compressed.
    """

    u: Tensor
    log_q: Tensor
    along: Tensor
    log_w: Tensor
    clash: float


def own_draws(
    flow: LadderFlow, potential: Potential, s: Tensor, generator: torch.Generator, clash_margin: float
) -> OwnDraws:
    """Draw at coarse points and evaluate the potential, once for every draw.

    Args:
        flow: to draw from.
        potential: reduced potential.
        s: ``[B, n_s]`` radians.
        generator: of the noise.
        clash_margin: u this far above the batch median is compressed logarithmically.
    """
    b, y, log_q, slope_b, slope_y = flow.push_path(s, *flow.base_noise(len(s), generator))
    along = (slope_b * b).sum(1) + (slope_y * y).sum(1)
    u = potential(s, b, y)
    # A clash may overflow float32. It stays the worst of its group, and has nothing to say on where to go instead.
    log_w = (-u - log_q).detach().clamp_min(_LOWEST_LOG_WEIGHT)
    limit = u.detach().nanmedian() + clash_margin
    over, overflow = u > limit, torch.isposinf(u)
    # All branches of a where take part in the gradient: keep the logarithm's argument at 1 where it is not used.
    excess = torch.where(over & ~overflow, u - limit, 0.0)
    u = torch.where(over, limit + torch.log1p(excess), u)
    u = torch.where(overflow, limit + math.log(torch.finfo(u.dtype).max), u)
    return OwnDraws(u, log_q, along, log_w, float(over.to(u.dtype).mean()))


def reverse_kl(draws: OwnDraws) -> Tensor:
    """Return the mean of u + ln q with the path gradient: zero, noise included, where q is exact."""
    return (draws.u + draws.log_q.detach() + (draws.along - draws.along.detach())).mean()


def weighted_likelihood(draws: OwnDraws, group: int, ess_floor: float) -> tuple[Tensor, float]:
    """Return minus the weighted mean of ln q over groups of draws at one coarse point, and the mean weight power.

    Covers mass, as likelihood on fine frames does: the weights w~ of a group, normalised within it, pull q to where the
    target has more than q has (reweighted wake-sleep, arXiv 1406.2751). The gradient takes w~ - 1/group instead of
    w~: the mean score of own draws is zero, so this changes no mean, and leaves no noise where q is exact.

    Args:
        draws: ``group`` consecutive draws belong to one coarse point.
        group: draws per coarse point.
        ess_floor: see ``weight_powers``.
    """
    log_w = draws.log_w.view(-1, group)
    power = weight_powers(log_w, ess_floor)
    weights = torch.softmax(power * log_w, 1)
    value = -(weights * draws.log_q.detach().view(-1, group)).sum(1).mean()
    score = (draws.log_q - draws.along).view(-1, group)
    pull = -((weights - 1.0 / group) * score).sum(1).mean()
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
