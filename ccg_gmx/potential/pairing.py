"""Which coarse torsions share a map, the marginals the maps are fitted to, and what a sum of maps loses.

With more than two torsions the surface F(s) has more dimensions than any term of GROMACS. The model is then a sum of
maps that share no torsion, each over one torsion or over two neighbours in the chain (a CMAP). Among all such sums
the one with ``G_m = -ln(marginal of exp(-F) over s_m)`` is the nearest to F in ``KL(exp(-F) || exp(-G))``: for a
product ``q = prod_m q_m`` that divergence is the total correlation of the groups (S. Watanabe, 1960,
doi:10.1147/rd.41.0066) plus ``sum_m KL(p_m || q_m)``, and each of these is zero at the marginal. A least-squares
projection of F on sums of maps has no such property: it gets marginals and populations wrong to save some barrier.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy.special import logsumexp, rel_entr

from ccg_gmx.errors import SettingsError
from ccg_gmx.free_energy.marginals import marginal_surface
from ccg_gmx.free_energy.surface import probability
from ccg_gmx.potential.torsions import KNOTS, TorsionGrid, TorsionMaps
from ccg_gmx.records import FloatArray, FreeEnergySurface


def marginal(surface: FreeEnergySurface, columns: Sequence[int]) -> FreeEnergySurface:
    """Free energy over some of a surface's torsions, the others integrated out.

    Args:
        surface: ``[n] * d`` kT.
        columns: torsions to keep, in the order wanted.

    Returns:
        Surface over these torsions, shifted to minimum 0. Its error is the Boltzmann average of the errors that are
        integrated over, as if they were all the same mistake: an upper bound.
    """
    columns = tuple(columns)
    if columns == tuple(range(surface.f.ndim)):
        return surface
    part = marginal_surface(surface, columns)
    rest = tuple(axis for axis in range(surface.f.ndim) if axis not in columns)
    weight, error = (
        np.transpose(array, (*columns, *rest)).reshape(*part.f.shape, -1)
        for array in (probability(surface), surface.error)
    )
    mass = weight.sum(axis=-1)
    mean = np.sum(np.where(weight > 0, weight * error, 0.0), axis=-1)
    return replace(part, error=np.divide(mean, mass, out=np.full_like(mass, np.nan), where=mass > 0))


def mutual_information(surface: FreeEnergySurface, i: int, j: int) -> float:
    """Mutual information of two torsions under ``exp(-F)``, nats."""
    p = probability(marginal(surface, (i, j)))
    apart = p.sum(axis=1, keepdims=True) * p.sum(axis=0, keepdims=True)
    return float(rel_entr(p, apart).sum())


def pair_torsions(surface: FreeEnergySurface, positions: Sequence[int], knots: int = KNOTS) -> TorsionMaps:
    """Group the torsions into maps: of all ways to pair neighbours, the one that keeps the most mutual information.

    Args:
        surface: over all torsions.
        positions: for each torsion its place in the bead chain; torsions at places k and k + 1 share three beads.
        knots: per torsion.

    Returns:
        Maps in the order of the chain, the first torsion of a pair being the first in the chain.

    Raises:
        SettingsError: if positions do not fit the surface, or repeat.
    """
    if len(positions) != surface.f.ndim or len(set(positions)) < len(positions):
        raise SettingsError(
            f"chain positions {tuple(positions)} for a surface over {surface.f.ndim} torsions",
            expected="one each, all different",
        )
    order = sorted(range(len(positions)), key=positions.__getitem__)
    best: list[tuple[float, tuple[tuple[int, ...], ...]]] = [(0.0, ())]  # of the first k torsions: information, maps
    for k, column in enumerate(order):
        kept, maps = best[k]
        choices = [(kept, (*maps, (column,)))]
        if k and positions[column] == positions[order[k - 1]] + 1:
            pair = (order[k - 1], column)
            kept, maps = best[k - 1]
            choices.insert(0, (kept + max(mutual_information(surface, *pair), 0.0), (*maps, pair)))
        best.append(max(choices, key=lambda choice: choice[0]))  # the first of equals: the pair
    columns = best[-1][1]
    grids = tuple(TorsionGrid(tuple(surface.names[c] for c in group), knots) for group in columns)
    return TorsionMaps(grids, columns)


def divergence(surface: FreeEnergySurface, g: FloatArray) -> float:
    """``KL(exp(-F) || exp(-G))`` in nats over the grid of the surface; bins where F is inf have no weight.

    Args:
        surface: F, ``[n] * d`` kT.
        g: G on the same grid, kT, any offset.
    """
    p = probability(surface)
    log_q = -g - logsumexp(-g)
    seen = p > 0
    return max(float(np.sum(p[seen] * (np.log(p[seen]) - log_q[seen]))), 0.0)


def total_correlation(surface: FreeEnergySurface, maps: TorsionMaps) -> float:
    """What any sum of these maps loses: ``KL(p || prod_m p_m)`` of ``p = exp(-F)`` with its own marginals, nats."""
    g = np.zeros_like(surface.f)
    for columns in maps.columns:
        part = marginal(surface, sorted(columns)).f
        g = g + part.reshape([len(surface.f) if axis in columns else 1 for axis in range(surface.f.ndim)])
    return divergence(surface, g)
