"""Independent surfaces of one system put together: weights from their errors, and whether they agree within them.

For surfaces of separate trainings, turns or seeds whose draws are not at hand any more. Where they are, one
``joint_fit.fit_surface`` of all draws is better: it weighs every point by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import logsumexp
from scipy.stats import chi2 as chi2_law
from scipy.stats import norm
from scipy.stats import t as student

from ccg_gmx.errors import CcgError
from ccg_gmx.free_energy.marginals import quadrature_points
from ccg_gmx.free_energy.surface_fit import SurfaceFit
from ccg_gmx.free_energy.torsion_grid import grid, shifted
from ccg_gmx.records import FloatArray, FreeEnergySurface

SIGNIFICANCE = 0.05
_SAMPLE = 8192


@dataclass(frozen=True)
class Agreement:
    """Do independent surfaces differ by more than their stated errors explain?

    Attributes:
        chi2: weighted sum of squared differences from the combined surface, scaled to follow a chi-square law.
        degrees_of_freedom: of that law; not an integer for fits, whose errors are correlated.
        p_value: probability of a larger chi2 when all stated errors are right.
        differ_kT: root mean square difference of one surface from the combined one (kT).
        expected_kT: what the stated errors let expect.
    """

    chi2: float
    degrees_of_freedom: float
    p_value: float
    differ_kT: float
    expected_kT: float

    @property
    def agree(self) -> bool:
        """Whether the differences are explained by the stated errors."""
        return self.p_value >= SIGNIFICANCE

    @property
    def excess(self) -> float:
        """Factor (at least 1) by which stated errors are too small, root of chi2 per degree of freedom."""
        return float(np.sqrt(max(1.0, self.chi2 / self.degrees_of_freedom)))

    def words(self) -> str:
        """One line for a report."""
        facts = (
            f"they differ from their mean by {self.differ_kT:.3f} kT, their errors explain {self.expected_kT:.3f} kT"
        )
        verdict = "the surfaces agree" if self.agree else "the surfaces do not agree"
        tail = "" if self.agree else f"; the combined error is raised by a factor of {self.excess:.1f}"
        return f"{verdict}: {facts} (p = {self.p_value:.2g}){tail}"


def combine_fits(fits: Sequence[SurfaceFit]) -> tuple[SurfaceFit, Agreement]:
    """Weighted mean of independent fits in one basis, with its covariance and a test of their agreement.

    Each fit has one weight, the inverse of its Boltzmann-weighted variance ``v_i = tr(W C_i)``, with W the covariance
    of the basis functions under the Boltzmann density and C_i that of the coefficients. The covariance of the mean,
    ``sum a_i^2 C_i``, is linear in the C_i and so as right as they are. Full generalised least squares, with the
    inverse of every C_i for its weight, is not offered: C_i comes from a few hundred scores, its inverse favours the
    directions that look quiet by accident, and the result claimed a variance 15 to 20 % too small on an analytic
    torus (91 % coverage of 95 % intervals, against 94 %) and was no better than this mean for fits of like coverage.

    Constants are free: a difference by a constant is no disagreement. Agreement is
    ``Q = sum_i (c_i - c)^T W (c_i - c) / v_i``, compared with a chi-square law that has its mean and its variance
    under the stated covariances (Satterthwaite 1946, doi:10.2307/3002019). When that fails, the covariance is
    multiplied by ``Agreement.excess`` squared (Birge 1932, doi:10.1103/PhysRev.40.207).

    Args:
        fits: at least two, of separate draws, same torsions and order.

    Returns:
        The combined fit (``points`` added, ``lack_of_fit`` and ``effective_parameters`` the largest), and the test.

    Raises:
        CcgError: if there are fewer than two fits or their bases differ.
    """
    if len(fits) < 2 or len({(fit.order, fit.dims, fit.limits) for fit in fits}) > 1:
        raise CcgError(
            f"{len(fits)} fits of orders {sorted({fit.order for fit in fits})}",
            expected="at least two fits, all over the same torsions and in the same basis",
            remedy="fit all draws again with one joint_fit.order",
        )
    c, C = np.stack([fit.coefficients for fit in fits]), [fit.covariance for fit in fits]
    W = _boltzmann_gram(replace(fits[0], coefficients=c.mean(axis=0)))
    v = np.array([(W * covariance).sum() for covariance in C])
    if not ((v > 0) & np.isfinite(v)).all():
        raise CcgError(f"fits with variances {v.tolist()}", expected="finite errors above zero")
    share = 1 / v / (1 / v).sum()
    coefficients = share @ c
    covariance = np.einsum("i,ijk->jk", share**2, np.stack(C))
    agreement = _agreement(c - coefficients, C, share, v, W, covariance)
    combined = replace(
        fits[0],
        coefficients=coefficients,
        covariance=covariance * (1.0 if agreement.agree else agreement.excess**2),
        points=sum(fit.points for fit in fits),
        lack_of_fit=max(fit.lack_of_fit for fit in fits),
        effective_parameters=max(fit.effective_parameters for fit in fits),
    )
    return combined, agreement


def combine_surfaces(surfaces: Sequence[FreeEnergySurface]) -> tuple[FreeEnergySurface, Agreement]:
    """Inverse-variance mean of gridded surfaces, each with a free offset, and a test of their agreement.

    A bin that a surface does not know (f infinite, error unknown or zero) takes its value from the others; one that
    none knows stays infinite. Offsets and bins are one weighted least squares. The errors of different bins of one
    surface are taken for independent, as those of a histogram are; for surfaces out of a fit they are not, the p-value
    means nothing, and ``combine_fits`` is the function to use.

    Args:
        surfaces: at least two, of independent data, on one grid.

    Returns:
        The combined surface (errors relative to its own mean) and the test.

    Raises:
        CcgError: if grids, torsions or temperatures differ, or bins in common do not connect all surfaces.
    """
    kinds = {(surface.f.shape, surface.names, surface.temperature_K) for surface in surfaces}
    if len(surfaces) < 2 or len(kinds) > 1:
        raise CcgError(f"{len(surfaces)} surfaces of {len(kinds)} kinds", expected="at least two, on one grid")
    f = np.stack([surface.f.ravel() for surface in surfaces])
    error = np.stack([surface.error.ravel() for surface in surfaces])
    known = np.isfinite(f) & np.isfinite(error) & (error > 0)
    weight = np.divide(1.0, error**2, out=np.zeros_like(f), where=known)
    f = np.where(known, f, 0.0)
    total = weight.sum(axis=0)
    seen = total > 0
    offset = _offsets(f[:, seen], weight[:, seen])
    mean = np.full(f.shape[1], np.inf)
    mean[seen] = (weight * (f - offset[:, None]))[:, seen].sum(axis=0) / total[seen]
    residual = np.where(known, f - offset[:, None] - np.where(seen, mean, 0.0), 0.0)
    several = known & (known.sum(axis=0) > 1)
    freedom = int(several.sum() - several.any(axis=0).sum()) - (len(f) - 1)
    if freedom < 1:
        raise CcgError(f"{int(several.any(axis=0).sum())} bins in common", expected="more bins than surfaces")
    chi2 = float((weight * residual**2).sum())
    leverage = np.divide(weight, total, out=np.zeros_like(f), where=seen)
    expected = np.where(several, error**2, 0.0) * (1 - leverage)
    agreement = Agreement(
        chi2,
        freedom,
        float(chi2_law.sf(chi2, freedom)),
        float(np.sqrt((residual[several] ** 2).mean())),
        float(np.sqrt(expected[several].mean())),
    )
    spread = np.full(f.shape[1], np.nan)
    spread[seen] = total[seen] ** -0.5 * (1.0 if agreement.agree else agreement.excess)
    first = surfaces[0]
    shape = first.f.shape
    return shifted(mean.reshape(shape), first.names, first.temperature_K, spread.reshape(shape)), agreement


def error_with_members(error: float, members: Sequence[float] | FloatArray) -> float:
    """Standard error of an estimate whose members, independently trained flows, may have errors of their own.

    ``error`` is the joint estimate's own, from the scatter of its draws. The members' spread, ``S = std / sqrt(n)``,
    holds the same scatter, and on top of it whatever is peculiar to a flow: weights it has not seen. So the two are
    not added. If S is below ``error``, the members agree and ``error`` stands. Otherwise S is all there is, known from
    n values: it is widened by Student's quantile over the normal one (2.2 for three members, 1.4 for five), so that
    +-1.96 errors cover 95 %.

    Coverage for three members whose own errors are 0, 0.5, 1, 2, 5 times their sampling noise: 97, 96, 93, 93, 95 %;
    adding in quadrature gives 98.5, 98, 95, 90, 83 %, the draws' error alone 95, 92, 83, 62, 30 % (Gaussian errors; the
    whole estimation on a torus, tests/test_coverage.py, gives 91 to 97 % for this rule). Two members are too few: 87 %
    at worst. An error that all members share is invisible to their spread.

    Args:
        error: standard error of the joint estimate.
        members: the estimate of every member, from its own draws; with fewer than two, ``error`` is returned.
    """
    values = np.asarray(members, dtype=np.float64)
    if len(values) < 2:
        return float(error)
    spread = float(values.std(ddof=1) / np.sqrt(len(values)))
    if spread <= error:
        return float(error)
    return spread * float(student.ppf(0.975, len(values) - 1) / norm.ppf(0.975))


def _boltzmann_gram(fit: SurfaceFit) -> FloatArray:
    """``[P, P]`` covariance of the basis functions under the Boltzmann density; a sample of it above two torsions."""
    n = quadrature_points(fit.dims)
    log_p = -fit.basis.on_grid(n, fit.coefficients).ravel()
    p: FloatArray = np.exp(log_p - logsumexp(log_p))
    if fit.dims <= 2:
        points = grid(n, fit.dims)
    else:
        cells = np.random.default_rng(0).choice(p.size, size=_SAMPLE, p=p)
        index = np.stack(np.unravel_index(cells, (n,) * fit.dims), axis=-1)
        points = np.asarray(-np.pi + 2 * np.pi / n * index, dtype=np.float64)
        p = np.full(_SAMPLE, 1 / _SAMPLE, dtype=np.float64)
    design = fit.basis.design(points)
    centred = (design - p @ design) * np.sqrt(p)[:, None]
    return np.asarray(centred.T @ centred)


def _agreement(
    residual: FloatArray, C: list[FloatArray], share: FloatArray, v: FloatArray, W: FloatArray, mean: FloatArray
) -> Agreement:
    """Satterthwaite's chi-square for ``Q = sum_i r_i^T W r_i / v_i``, r_i ``[n, P]`` what each fit is off the mean.

    The covariance of r_i and r_j is ``delta_ij C_i - a_i C_i - a_j C_j + sum_k a_k^2 C_k``.
    """
    squares = np.einsum("ip,pq,iq->i", residual, W, residual)
    n = len(C)
    blocks = [
        [W @ ((C[i] if i == j else 0.0) - share[i] * C[i] - share[j] * C[j] + mean) for j in range(n)] for i in range(n)
    ]
    own = np.array([np.trace(blocks[i][i]) for i in range(n)])
    expected = float((own / v).sum())
    variance = sum(float((blocks[i][j] * blocks[j][i].T).sum()) / (v[i] * v[j]) for i in range(n) for j in range(n))
    freedom = expected**2 / variance
    chi2 = float((squares / v).sum()) * expected / variance
    return Agreement(
        chi2, freedom, float(chi2_law.sf(chi2, freedom)), float(np.sqrt(squares.mean())), float(np.sqrt(own.mean()))
    )


def _offsets(f: FloatArray, weight: FloatArray) -> FloatArray:
    """``[n]`` offsets of surfaces ``f [n, bins]`` (zero sum): weighted least squares with the bins eliminated."""
    total = weight.sum(axis=0)
    normal = np.diag(weight.sum(axis=1)) - (weight / total) @ weight.T
    right = (weight * (f - (weight * f).sum(axis=0) / total)).sum(axis=1)
    # The gauge, a common offset, is the one direction that the data leave open.
    scale = np.trace(normal)
    values = np.linalg.eigvalsh(normal)
    if scale <= 0 or values[1] < 1e-12 * scale:
        raise CcgError("the surfaces have too few bins in common", expected="bins that connect all of them")
    return np.asarray(np.linalg.lstsq(normal, right, rcond=1e-13)[0])
