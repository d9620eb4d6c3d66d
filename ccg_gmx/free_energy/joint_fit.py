"""One smooth surface fitted to all draws at scattered coarse points, with its covariance.

A single point of K draws knows f only to sqrt(chi^2 / K). Neighbours know the same surface, and a surface of a few
hundred coefficients fitted to all of them is far more precise than any bin.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from pydantic import Field
from scipy.linalg import cho_factor, cho_solve, solve_triangular
from scipy.special import logsumexp

from ccg_gmx.errors import CcgError
from ccg_gmx.free_energy.estimators import log_mean_weight, relative_variance
from ccg_gmx.free_energy.fourier import FourierBasis
from ccg_gmx.free_energy.surface_files import read_npz, write_npz
from ccg_gmx.free_energy.torsion_grid import Basin, BoolArray, grid, shifted
from ccg_gmx.records import FloatArray, FreeEnergySurface, WeightedDraws
from ccg_gmx.settings import Settings

FIT_VERSION = 1
_VARIANCE_ORDER = 4


class JointFitSettings(Settings):
    """How a surface is fitted to draws."""

    order: int = Field(default=8, ge=1, le=24, description="highest Fourier wave number per torsion")
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
    max_iterations: int = Field(default=60, ge=1, description="Newton steps before giving up")


@dataclass(frozen=True)
class PointEstimates:
    """What the fit needs of the draws at each coarse point.

    Attributes:
        s: ``[M, n_s]`` radians.
        log_z: ``[M]`` logarithm of the mean weight; -inf where every draw has weight zero.
        variance: ``[M]`` relative variance chi^2 / K of that mean; nan where every draw has weight zero.
    """

    s: FloatArray
    log_z: FloatArray
    variance: FloatArray

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
        )

    def take(self, rows: np.ndarray) -> PointEstimates:
        """Return some of the points (indices or a mask)."""
        return PointEstimates(self.s[rows], self.log_z[rows], self.variance[rows])


@dataclass(frozen=True)
class SurfaceFit:
    """A fitted surface ``f(s) = sum_j c_j phi_j(s)`` in kT, with its absolute offset (f = -ln Z).

    Attributes:
        order: highest wave number.
        dims: number of torsions.
        coefficients: ``[P]`` kT.
        covariance: ``[P, P]`` kT^2, inflated by ``max(1, lack_of_fit)``.
        lack_of_fit: chi-square per degree of freedom of the residuals; 1 when the basis can follow the surface.
        points: coarse points fitted.
        effective_parameters: trace of the hat matrix, at most P.
    """

    order: int
    dims: int
    coefficients: FloatArray
    covariance: FloatArray
    lack_of_fit: float
    points: int
    effective_parameters: float

    @cached_property
    def basis(self) -> FourierBasis:
        """Functions that the coefficients belong to."""
        return FourierBasis(self.order, self.dims)

    def values(self, s: FloatArray) -> FloatArray:
        """``[M]`` f at ``s [M, n_s]`` in kT, absolute: ln w + f(s) are weights normalised per point."""
        return self.basis.design(s) @ self.coefficients

    def errors(self, s: FloatArray) -> FloatArray:
        """``[M]`` standard error of f at ``s [M, n_s]`` relative to its Boltzmann mean (kT)."""
        return self._spread(self.basis.design(s) - self._boltzmann_mean)

    def gradient(self, s: FloatArray) -> FloatArray:
        """``[M, n_s]`` derivative of f in kT/rad."""
        return self.basis.gradient(s, self.coefficients)

    def surface(self, n: int, names: tuple[str, ...], temperature_K: float) -> FreeEnergySurface:
        """Return f on the grid, with the standard error of f relative to its Boltzmann mean."""
        f = self.basis.on_grid(n, self.coefficients)
        error = self._spread(self.basis.grid_design(n) - self._boltzmann_mean).reshape(f.shape)
        return shifted(f, names, temperature_K, error)

    def delta_f(
        self,
        region_a: Basin | BoolArray,
        region_b: Basin | BoolArray,
        n: int = 100,
        names: tuple[str, ...] = ("phi", "psi"),
    ) -> tuple[float, float]:
        """``f_A - f_B = -ln(Z_A / Z_B)`` and its standard error, both in kT.

        Args:
            region_a: basin, or mask ``[n] * n_s`` on the grid.
            region_b: the other.
            n: grid points per axis of the sum.
            names: torsions in the order of s, which basins refer to.
        """
        points = grid(n, self.dims)
        f = self.basis.on_grid(n, self.coefficients).ravel()
        log_z, mean = [], []
        for region in (region_a, region_b):
            inside = region.mask(points, names) if isinstance(region, Basin) else np.ravel(region)
            log_z.append(float(logsumexp(-f[inside])))
            mean.append(np.exp(-f[inside] - log_z[-1]) @ self.basis.design(points[inside]))
        # f_region = -ln sum exp(-f) has the Boltzmann mean of phi within the region as its derivative by c.
        return log_z[1] - log_z[0], float(self._spread((mean[0] - mean[1])[None])[0])

    def save(self, path: Path) -> None:
        """Write as .npz."""
        write_npz(
            path,
            version=np.array(FIT_VERSION),
            shape=np.array([self.order, self.dims, self.points]),
            coefficients=self.coefficients,
            covariance=self.covariance,
            quality=np.array([self.lack_of_fit, self.effective_parameters]),
        )

    @classmethod
    def load(cls, path: Path) -> SurfaceFit:
        """Read what ``save`` wrote.

        Raises:
            CcgError: if the file is not a fit.
        """
        data = read_npz(path, ("version", "shape", "coefficients", "covariance", "quality"), FIT_VERSION)
        order, dims, points = (int(x) for x in data["shape"])
        lack, effective = (float(x) for x in data["quality"])
        return cls(order, dims, data["coefficients"], data["covariance"], lack, points, effective)

    @cached_property
    def _boltzmann_mean(self) -> FloatArray:
        n = 100 if self.dims <= 2 else 4 * self.order
        f = self.basis.on_grid(n, self.coefficients).ravel()
        return np.exp(-f - logsumexp(-f)) @ self.basis.grid_design(n)

    def _spread(self, rows: FloatArray) -> FloatArray:
        """Standard error of ``rows @ c``."""
        return np.sqrt(np.maximum(((rows @ self.covariance) * rows).sum(axis=1), 0.0))


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
    would favour the points that happened to miss their largest weights, and so bring the bias back. It is multiplied
    by ``exp(-f / focus)``, f from a first least squares fit: a finite order cannot follow every steep slope of the
    heights, and what it misses there would otherwise ring through the basins (on alanine dipeptide at order 8, this
    divides the forward KL of the misfit by seven).

    The ridge is a smoothness prior on the Laplacian: coefficient k has the prior size ``prior / |k|^2``. Where there
    are draws it does nothing; where there are none it keeps the surface quiet, and its uncertainty shows in the errors.

    The covariance is the sandwich ``H^-1 (G + R) H^-1``: H the expected Hessian, G the outer products of the actual
    scores (leverage-corrected, HC2), R the ridge. Scores hold whatever the residuals are, lack of fit included; if
    chi-square per degree of freedom is above 1, the errors are inflated by its root nevertheless, because a misfit is
    shared by neighbours, which the sandwich takes for independent.

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
    basis = FourierBasis(settings.order, points.s.shape[1])
    design = basis.design(points.s)
    ridge = basis.wave_number() ** 4 / settings.prior_kT**2
    v = _point_weights(points, settings)
    first = _least_squares(design, points.log_z, v, ridge)
    f = design @ first
    v = v * np.exp(-(f - f.min()) / settings.focus_kT)
    start = first if start is None else start
    coefficients = _newton(design, points.log_z, v, ridge, start, settings.max_iterations)
    return _with_covariance(basis, design, points, v, ridge, coefficients)


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
    """``[M]`` v = 1 / (chi^2/K + tolerance^2), its logarithm smoothed over s."""
    # A point without any weight says that its relative variance is at least 1.
    noise = np.where(np.isnan(points.variance), 1.0, points.variance) + settings.tolerance_kT**2
    basis = FourierBasis(min(settings.order, _VARIANCE_ORDER), points.s.shape[1])
    design, target = basis.design(points.s), np.log(noise)
    level = target.mean()
    normal = design.T @ design + np.diag(0.1 * basis.wave_number() ** 4)
    smooth = level + design @ np.linalg.solve(normal + 1e-9 * np.eye(basis.size), design.T @ (target - level))
    return np.exp(-smooth)


def _least_squares(design: FloatArray, log_z: FloatArray, v: FloatArray, ridge: FloatArray) -> FloatArray:
    """Weighted ridge fit of -ln Z^: biased, but close."""
    seen = np.isfinite(log_z)
    weighted = design[seen] * v[seen, None]
    return cho_solve(cho_factor(weighted.T @ design[seen] + np.diag(ridge)), -weighted.T @ log_z[seen])


def _newton(
    design: FloatArray, log_z: FloatArray, v: FloatArray, ridge: FloatArray, start: FloatArray, steps: int
) -> FloatArray:
    def loss(c: FloatArray) -> float:
        f = design @ c
        with np.errstate(over="ignore"):
            return float(v @ (np.exp(log_z + f) - f) + 0.5 * ridge @ c**2)

    c, now = start, loss(start)
    for _ in range(steps):
        ratio = np.exp(log_z + design @ c)
        score = design.T @ (v * (ratio - 1)) + ridge * c
        root = design * np.sqrt(v * ratio)[:, None]
        hessian = root.T @ root + np.diag(ridge)
        # One point far below its neighbours can outweigh all others beyond double precision. This much damping is felt
        # only then, and it bends the path of the steps, not where they end.
        hessian[np.diag_indices_from(hessian)] += 1e-12 * hessian.diagonal().max()
        step = cho_solve(cho_factor(hessian), score)
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


def _with_covariance(
    basis: FourierBasis,
    design: FloatArray,
    points: PointEstimates,
    v: FloatArray,
    ridge: FloatArray,
    coefficients: FloatArray,
) -> SurfaceFit:
    ratio = np.exp(points.log_z + design @ coefficients)
    root = design * np.sqrt(v)[:, None]
    hessian = root.T @ root + np.diag(ridge)
    lower = np.linalg.cholesky(hessian)
    leverage = (solve_triangular(lower, root.T, lower=True) ** 2).sum(axis=0)
    residual = (ratio - 1) / np.sqrt(1 - leverage)
    scores = design * (v * residual)[:, None]
    factor = (lower, True)
    bread = cho_solve(factor, scores.T @ scores + np.diag(ridge))
    covariance = cho_solve(factor, bread.T)
    # s_m^2 e^2f / K is an unbiased estimate of the residual's variance, whatever the weights' distribution.
    expected = v @ (ratio**2 * np.where(np.isnan(points.variance), 0.0, points.variance))
    lack = float(v @ residual**2 / expected) if expected > 0 else float("inf")
    return SurfaceFit(
        basis.order,
        basis.dims,
        coefficients,
        0.5 * (covariance + covariance.T) * max(1.0, lack),
        lack,
        len(points.s),
        float(leverage.sum()),
    )
