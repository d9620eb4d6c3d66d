"""What the draws say of a marginal beyond the fit: the ratio of the true marginal to the fitted one.

A surface over many torsions has walls that no affordable basis follows, and the fit then has probability where every
draw has none. Its marginals inherit that. The draws know better: over points s drawn from a known density rho, the mean
of ``Z^(s) exp(f(s))`` at fixed shown torsions a, weighted with ``exp(-f(s)) / rho(s)``, is exactly true marginal over
fitted marginal. That ratio is 1 where the fit is good, so a smooth function of a with little noise estimates it: a
regression estimator, with the fit as control variate (W. G. Cochran, Sampling Techniques, 3rd ed., ch. 7). What it
gives is consistent whatever the fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from ccg_gmx.errors import CcgError
from ccg_gmx.free_energy.fourier import FourierBasis
from ccg_gmx.free_energy.joint_fit import JointFitSettings, PointEstimates, minimise, with_covariance
from ccg_gmx.free_energy.surface_fit import MarginalRatio, SurfaceFit
from ccg_gmx.records import FloatArray, WeightedDraws

_LEAST_VARIANCE = 1e-4


def with_ratios(
    fit: SurfaceFit, draws: Sequence[Sequence[WeightedDraws]], settings: JointFitSettings | None = None
) -> SurfaceFit:
    """Return the fit with the ratio of every pair's marginal; unchanged where no torsion is ever integrated out.

    Args:
        fit: surface fitted to the draws.
        draws: sets of records of (b, y) draws; the points of one set, whatever their numbers of draws, were drawn
            together from one density, ``log_rho``.
        settings: order and prior of the ratios, as of the surface.

    Raises:
        CcgError: if a record has no proposal density, or a ratio cannot be fitted.
    """
    if fit.dims <= 2:
        return fit
    settings = settings or JointFitSettings()
    points = PointEstimates.of([record for together in draws for record in together])
    f = fit.values(points.s)
    log_rho = [np.concatenate([record.log_rho for record in together]) for together in draws]
    ends = np.cumsum([len(each) for each in log_rho])[:-1]
    share = np.concatenate([_shares(*each) for each in zip(np.split(f, ends), log_rho, strict=True)])
    ratio = PointEstimates(points.s, points.log_z + f, points.variance, points.record)
    return fit.with_ratios([fit_ratio(ratio, share, pair, settings) for pair in combinations(range(fit.dims), 2)])


def fit_ratio(
    points: PointEstimates, share: FloatArray, axes: tuple[int, int], settings: JointFitSettings
) -> MarginalRatio:
    """Fit ``g(a) = -ln(true / fitted)`` over two torsions.

    The same convex loss as the surface's (``fit_surface``), whose stationary point is linear in the mean weights, so
    that points without any weight count as they should. The weights are fixed by fit and proposal: were they chosen by
    the points' own noise, the mean would be another one.

    Args:
        points: M points whose ``log_z`` is that of Z^ exp(f).
        share: ``[M]`` proportional to exp(-f) / rho.
        axes: the torsions shown.
        settings: order and prior.
    """
    basis = FourierBasis(settings.order, 2, settings.limits(3)[:2])
    shown = PointEstimates(points.s[:, list(axes)], points.log_z, points.variance, points.record)
    design = basis.design(shown.s)
    ratio = np.exp(points.log_z)
    mean = share @ ratio / share.sum()
    v = share / max(_LEAST_VARIANCE, share @ (ratio / mean - 1) ** 2 / share.sum())
    ridge = basis.wave_number() ** 4 / settings.prior_kT**2
    start = np.zeros(basis.size)
    start[0] = -np.log(mean)
    g = minimise(design, points.log_z, v, ridge, start, settings.max_iterations)
    # What the fit of the surface missed scatters over the hidden torsions: the scores hold all of it.
    return MarginalRatio(axes, with_covariance(basis, design, shown, v, ridge, g, widen=False))


def _shares(f: FloatArray, log_rho: FloatArray) -> FloatArray:
    """``[M]`` exp(-f) / rho of points drawn together, of mean 1 times the part of them that counts.

    Each set is unbiased by itself; one drawn evenly, few of whose points matter, counts for no more than those.
    """
    if not np.isfinite(log_rho).all():
        raise CcgError("points of unknown density", expected="log_rho of the proposal they were drawn from")
    share = np.exp(-(f + log_rho) + (f + log_rho).min())
    share /= share.mean()
    return np.asarray(share / (share**2).mean())
