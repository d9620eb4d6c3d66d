"""One smooth surface fitted to all draws at scattered coarse points, with its covariance.

A single point of K draws knows f only to sqrt(chi^2 / K). Neighbours know the same surface, and a surface of a few
hundred coefficients fitted to all of them is far more precise than any bin.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import Field
from scipy.linalg import cho_factor, cho_solve, cholesky, solve_triangular
from scipy.special import logsumexp

from ccg_gmx.errors import CcgError
from ccg_gmx.free_energy.estimators import log_mean_weight, relative_variance
from ccg_gmx.free_energy.fourier import FourierBasis, row_blocks
from ccg_gmx.free_energy.surface_fit import SurfaceFit
from ccg_gmx.free_energy.variance import smooth_noise
from ccg_gmx.records import FloatArray, IntArray, WeightedDraws
from ccg_gmx.settings import Settings

__all__ = ["JointFitSettings", "PointEstimates", "SurfaceFit", "block_errors", "fit_surface", "jackknife"]

_FIRST_FIT_KT = 25.0
"""Above the lowest point the first fit, which only decides on the weights of points, sees no differences any more."""


class JointFitSettings(Settings):
    """How a surface is fitted to draws."""

    order: int = Field(default=8, ge=1, le=24, description="highest Fourier wave number per torsion")
    pair_order: int = Field(
        default=6, ge=0, le=24, description="highest wave number of pairs of torsions, with three or more; 0: none"
    )
    triple_order: int = Field(
        default=2, ge=0, le=8, description="highest wave number of triples of torsions, with three or more; 0: none"
    )
    quadruple_order: int = Field(
        default=1, ge=0, le=4, description="highest wave number of quadruples of torsions, with four or more; 0: none"
    )
    tolerance_kT: float = Field(
        default=0.05, gt=0, description="error allowed at one point (kT): no point counts for more than 1/tolerance^2"
    )
    focus_kT: float = Field(
        default=4.0,
        gt=0,
        description="points count as exp(-f / focus): a misfit on the heights must not spoil the basins",
    )
    prior_kT: float = Field(
        default=20.0, gt=0, description="smoothness prior: a coefficient of wave vector k is of size prior / |k|^2 (kT)"
    )
    max_iterations: int = Field(
        default=300, ge=1, description="Newton steps before giving up; one point hundreds of kT off takes a hundred"
    )

    def limits(self, dims: int) -> tuple[int, ...]:
        """Highest wave number of functions of 1, 2, ... torsions (``FourierBasis.limits``): full up to two torsions."""
        if dims <= 2:
            return (self.order,) * dims
        return (self.order, self.pair_order, self.triple_order, self.quadruple_order)


@dataclass(frozen=True)
class PointEstimates:
    """What the fit needs of the draws at each coarse point.

    Attributes:
        s: ``[M, n_s]`` radians.
        log_z: ``[M]`` logarithm of the mean weight; -inf where every draw has weight zero.
        variance: ``[M]`` relative variance chi^2 / K of that mean; nan where every draw has weight zero.
        record: ``[M]`` index of the record each point is from: a flow and turn of its own, with its own quality.
    """

    s: FloatArray
    log_z: FloatArray
    variance: FloatArray
    record: IntArray

    @classmethod
    def of(cls, draws: WeightedDraws | Sequence[WeightedDraws]) -> PointEstimates:
        """Condense draws, of several flows and with different K if need be.

        Raises:
            CcgError: if a record has bead coordinates held fixed (its f is another function), or K < 2.
        """
        records = [draws] if isinstance(draws, WeightedDraws) else list(draws)
        if not records or any(record.b is not None for record in records):
            raise CcgError("no draws, or draws at fixed beads", expected="draws of (b, y) at coarse points s")
        return cls(
            np.concatenate([record.s for record in records]),
            np.concatenate([log_mean_weight(record.log_w) for record in records]),
            np.concatenate([relative_variance(record.log_w) / record.log_w.shape[1] for record in records]),
            np.repeat(np.arange(len(records)), [len(record.s) for record in records]),
        )

    def take(self, rows: np.ndarray) -> PointEstimates:
        """Return some of the points (indices or a mask)."""
        return PointEstimates(self.s[rows], self.log_z[rows], self.variance[rows], self.record[rows])


def fit_surface(
    draws: WeightedDraws | Sequence[WeightedDraws] | PointEstimates,
    settings: JointFitSettings | None = None,
    start: FloatArray | None = None,
) -> SurfaceFit:
    """Fit one Fourier surface to the mean weights of all coarse points.

    Minimises ``sum_m v_m [Z^_m exp(f(s_m)) - f(s_m)]`` plus a ridge. Its stationary point
    ``sum_m v_m (Z^_m exp(f) - 1) phi = 0`` is linear in the mean weight Z^, whose expectation is exact, so there is no
    logarithm bias however few draws a point has (a gamma quasi-likelihood; McCullagh & Nelder 1989, ch. 8). It is
    convex: Newton steps with halving find its one minimum. A point whose draws all have weight zero takes part.

    ``v = 1 / (chi^2/K + tolerance^2)``, smoothed over s by a low-order fit of its logarithm: taken point by point it
    would favour the points that happened to miss their largest weights, and so bring the bias back. Each record has a
    noise of its own, so draws of several flows and turns are fitted together: every mean weight is unbiased for the
    same f whatever the flow, a bad flow's draws count as little as they deserve, and leaving them out gains nothing.
    A record's level is raised to the scatter of its points about a first fit where its draws cannot show all of it.
    v is multiplied by ``exp(-f / focus)``, f from a first least squares fit: a finite order cannot follow every steep
    slope of the heights, and what it misses there would otherwise ring through the basins (on alanine dipeptide at
    order 8, this divides the forward KL of the misfit by seven).

    The ridge is a smoothness prior on the Laplacian: coefficient k has the prior size ``prior / |k|^2``. Where there
    are draws it does nothing; where there are none it keeps the surface quiet, and its uncertainty shows in the errors.

    The covariance is the sandwich ``H^-1 (G + R) H^-1``: H the expected Hessian, G the outer products of the actual
    scores (leverage-corrected, HC3: J. S. Long, L. H. Ervin, doi:10.1080/00031305.2000.10474549), R the ridge. Scores
    hold whatever the residuals are, lack of fit included; if chi-square per degree of freedom is above 1, the errors
    are inflated by its root nevertheless, because a misfit is shared by neighbours, which the sandwich takes for
    independent.

    Args:
        draws: records of (b, y) draws, or their condensed form.
        settings: order, tolerance, prior.
        start: ``[P]`` coefficients to start from.

    Raises:
        CcgError: if no draw has any weight, or Newton does not converge.
    """
    settings = settings or JointFitSettings()
    points = draws if isinstance(draws, PointEstimates) else PointEstimates.of(draws)
    if not np.isfinite(points.log_z).any() or np.isnan(points.log_z).any():
        raise CcgError("no draw has any weight, or weights are nan", remedy="train the flow further")
    basis = FourierBasis(settings.order, points.s.shape[1], settings.limits(points.s.shape[1]))
    design = basis.design(points.s)
    ridge = basis.wave_number() ** 4 / settings.prior_kT**2
    v = _point_weights(points, settings)
    first = _least_squares(design, points.log_z, v, ridge)
    f = design @ first
    v = _focused(points, v, f, settings.focus_kT)
    start = first if start is None else start
    coefficients = minimise(design, points.log_z, v, ridge, start, settings.max_iterations)
    return with_covariance(basis, design, points, v, ridge, coefficients)


def jackknife(
    draws: WeightedDraws | Sequence[WeightedDraws] | PointEstimates,
    statistic: Callable[[SurfaceFit], FloatArray],
    settings: JointFitSettings | None = None,
    blocks: int = 20,
    seed: int = 0,
) -> FloatArray:
    """Delete-one-block jackknife standard error of any statistic of the fit; an independent check of its covariance.

    Args:
        draws: as for ``fit_surface``.
        statistic: array of a fit, always of the same shape.
        settings: as for ``fit_surface``.
        blocks: 10 to 20 blocks of points.
        seed: which points share a block.

    Raises:
        CcgError: as ``fit_surface``.
    """
    points = draws if isinstance(draws, PointEstimates) else PointEstimates.of(draws)
    start = fit_surface(points, settings).coefficients
    label = np.random.default_rng(seed).permutation(len(points.s)) % blocks
    left_out = [statistic(fit_surface(points.take(label != block), settings, start)) for block in range(blocks)]
    return np.sqrt((blocks - 1) * np.var(np.stack(left_out), axis=0))


def block_errors(
    draws: WeightedDraws | Sequence[WeightedDraws] | PointEstimates,
    n: int,
    settings: JointFitSettings | None = None,
    blocks: int = 20,
    seed: int = 0,
) -> FloatArray:
    """``[n] * n_s`` jackknife error of f on the grid relative to its Boltzmann mean (kT); see ``jackknife``."""

    def centred(fit: SurfaceFit) -> FloatArray:
        f = fit.basis.on_grid(n, fit.coefficients)
        return f - (np.exp(-f - logsumexp(-f)) * f).sum()

    return jackknife(draws, centred, settings, blocks, seed)


def _point_weights(points: PointEstimates, settings: JointFitSettings) -> FloatArray:
    """``[M]`` v = 1 / (chi^2/K + tolerance^2), smoothed over s record by record."""
    # A point without any weight says that its relative variance is at least 1.
    noise = np.where(np.isnan(points.variance), 1.0, points.variance) + settings.tolerance_kT**2
    return 1.0 / smooth_noise(points.s, noise, points.record, settings.order)


def _focused(points: PointEstimates, v: FloatArray, f: FloatArray, focus_kT: float) -> FloatArray:
    """``[M]`` v with the focus on low f, and less for records whose points scatter more than their draws admit.

    The draws of one point cannot show a relative variance above K, so a flow with heavy-tailed weights looks better
    than it is; the scatter of its many mean weights about the surface tells. Only a record as a whole is judged so.
    """
    focus = np.exp(-(f - f.min()) / focus_kT)
    ratio, out = np.exp(points.log_z + f), v * focus
    for record in np.unique(points.record):
        rows = points.record == record
        mean = out[rows] @ ratio[rows] / out[rows].sum()  # f is from logarithms, hence too high
        scatter = out[rows] @ (ratio[rows] / mean - 1) ** 2 if mean > 0 else 0.0
        out[rows] /= max(1.0, scatter / focus[rows].sum())
    return out


def _weighted_gram(design: FloatArray, weights: FloatArray) -> FloatArray:
    """``[P, P]`` sum_m weights_m phi_m phi_m^T, in blocks of rows: no second copy of the design matrix."""
    total = np.zeros((design.shape[1],) * 2)
    for rows in row_blocks(len(design)):
        root = design[rows] * np.sqrt(weights[rows, None])
        total += root.T @ root
    return total


def _least_squares(design: FloatArray, log_z: FloatArray, v: FloatArray, ridge: FloatArray) -> FloatArray:
    """Weighted ridge fit of -ln Z^: biased, but close, and with no heights that would ring through the basins."""
    seen = np.isfinite(log_z)
    weights, target = np.where(seen, v, 0.0), np.where(seen, -log_z, 0.0)
    target = np.minimum(target, -log_z[seen].max() + _FIRST_FIT_KT)
    return cho_solve(cho_factor(_weighted_gram(design, weights) + np.diag(ridge)), design.T @ (weights * target))


def minimise(
    design: FloatArray, log_z: FloatArray, v: FloatArray, ridge: FloatArray, start: FloatArray, steps: int
) -> FloatArray:
    """Minimise ``sum_m v_m [exp(log_z_m + f_m) - f_m] + ridge c^2 / 2``, f = design c, by Newton steps with halving.

    A factorised Hessian costs as much as hundreds of scores, so it is kept for as long as the Newton decrement falls
    tenfold per step. That changes the path, not the minimum.

    Args:
        design: ``[M, P]``.
        log_z: ``[M]`` logarithms of mean weights, -inf included.
        v: ``[M]`` weights.
        ridge: ``[P]``.
        start: ``[P]`` coefficients to start from.
        steps: at most.

    Raises:
        CcgError: if that many steps do not suffice.
    """

    def loss(c: FloatArray) -> float:
        f = design @ c
        with np.errstate(over="ignore"):
            return float(v @ (np.exp(log_z + f) - f) + 0.5 * ridge @ c**2)

    c, now = start, loss(start)
    factor, decrement = None, np.inf
    for _ in range(steps):
        ratio = np.exp(log_z + design @ c)
        score = design.T @ (v * (ratio - 1)) + ridge * c
        step = None if factor is None else cho_solve(factor, score)
        if step is None or score @ step > 0.1 * decrement:
            factor = _hessian_factor(design, v * ratio, ridge)
            step = cho_solve(factor, score)
        decrement = float(score @ step)
        if decrement < 1e-9:
            return c - step
        length = 1.0
        while (new := loss(c - length * step)) > now - 0.25 * length * decrement and length > 1e-8:
            length /= 2
        c, now = c - length * step, new
    raise CcgError(
        f"the surface fit did not converge in {steps} Newton steps",
        remedy="lower joint_fit.order or joint_fit.prior_kT, or draw more points",
    )


def _hessian_factor(design: FloatArray, weights: FloatArray, ridge: FloatArray) -> tuple[FloatArray, bool]:
    hessian = _weighted_gram(design, weights) + np.diag(ridge)
    # One point far below its neighbours can outweigh all others beyond double precision. This much damping is felt
    # only then, and it bends the path of the steps, not where they end.
    hessian[np.diag_indices_from(hessian)] += 1e-12 * hessian.diagonal().max()
    return cholesky(hessian, lower=True), True


def with_covariance(
    basis: FourierBasis,
    design: FloatArray,
    points: PointEstimates,
    v: FloatArray,
    ridge: FloatArray,
    coefficients: FloatArray,
    widen: bool = True,
) -> SurfaceFit:
    """Return the fit with its sandwich covariance (see ``fit_surface``), widened where the basis does not suffice.

    Args:
        basis: P functions.
        design: ``[M, P]``.
        points: M points.
        v: ``[M]`` weights of the fit.
        ridge: ``[P]`` of the fit.
        coefficients: ``[P]`` at the minimum.
        widen: multiply the covariance by the lack of fit where that is above 1.
    """
    ratio = np.exp(points.log_z + design @ coefficients)
    factor = (cholesky(_weighted_gram(design, v) + np.diag(ridge), lower=True), True)
    leverage = np.empty(len(v))
    for rows in row_blocks(len(v)):
        leverage[rows] = v[rows] * (solve_triangular(factor[0], design[rows].T, lower=True) ** 2).sum(axis=0)
    residual = (ratio - 1) / (1 - leverage)
    bread = cho_solve(factor, _weighted_gram(design, (v * residual) ** 2) + np.diag(ridge))
    covariance = cho_solve(factor, bread.T)
    # s_m^2 e^2f / K is an unbiased estimate of the residual's variance, whatever the weights' distribution.
    expected = v @ (ratio**2 * np.where(np.isnan(points.variance), 0.0, points.variance))
    lack = float(v @ (residual**2 * (1 - leverage)) / expected) if expected > 0 else float("inf")
    return SurfaceFit(
        basis.order,
        basis.dims,
        coefficients,
        0.5 * (covariance + covariance.T) * (max(1.0, lack) if widen else 1.0),
        lack,
        len(points.s),
        float(leverage.sum()),
        basis.limits,
    )
