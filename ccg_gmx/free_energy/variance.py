"""How noisy one draw is, as a smooth function of the coarse point, and how many draws that asks for.

The variance of a mean weight must never be judged by the draws that made the mean: a point that happened to miss its
largest weights looks quiet and has too low a mean, so trusting it more (a fit's weight) or stopping there (a number of
draws) brings a bias back that the mean weight itself does not have. Everything here therefore looks at other points:
the smooth weights of a fit leave out the point itself, and K is chosen from a model fitted to a pilot's draws.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from ccg_gmx.errors import CcgError
from ccg_gmx.free_energy.estimators import relative_variance
from ccg_gmx.free_energy.fourier import FourierBasis
from ccg_gmx.records import FloatArray, IntArray, WeightedDraws

_ORDER = 4
_PAIR_ORDER = 2
_STIFFNESS = 0.1
_LEAST_CHI2 = 1e-3


@dataclass(frozen=True)
class VarianceModel:
    """Relative variance chi^2 = Var_q(w) / Z^2 of one draw of a flow, smooth and positive over the torsions.

    Attributes:
        basis: low-order functions of the logarithm.
        coefficients: ``[P]``.
    """

    basis: FourierBasis
    coefficients: FloatArray

    @classmethod
    def fit(cls, draws: WeightedDraws) -> VarianceModel:
        """Fit a pilot's draws: the logarithm of each point's chi^2, then the level, so that the mean of chi^2 is kept.

        A point's own chi^2 cannot exceed K; where all its weights are zero it is taken as K. A pilot of few draws
        therefore underrates a flow with chi^2 near K or above: give pilot points as many draws as the largest chi^2
        that shall be told apart.

        Args:
            draws: pilot draws of one flow, K >= 2.

        Raises:
            CcgError: if K < 2 or weights are nan.
        """
        K = draws.log_w.shape[1]
        chi2 = relative_variance(draws.log_w)
        chi2 = np.where(np.isnan(chi2), float(K), chi2) + _LEAST_CHI2
        basis, coefficients, others = _smooth_logarithm(draws.s, np.log(chi2), _ORDER)
        coefficients[0] += np.log(np.mean(chi2 / np.exp(others)))
        return cls(basis, coefficients)

    def __call__(self, s: FloatArray) -> FloatArray:
        """``[M]`` chi^2 of one draw at ``s [M, n_s]`` radians."""
        return np.exp(self.basis.design(s) @ self.coefficients)

    def on_grid(self, n: int) -> FloatArray:
        """``[n] * n_s`` chi^2 of one draw at the grid points."""
        return np.exp(self.basis.on_grid(n, self.coefficients))


def draws_needed(
    chi2: FloatArray, bias_tolerance_kT: float, error_tolerance_kT: float, minimum: int, maximum: int
) -> IntArray:
    """Draws per point that keep the bias chi^2/2K of f^ and its error sqrt(chi^2/K) under tolerance, as powers of two.

    ``chi2`` must come from a model fitted to other draws than those that are going to be made (``VarianceModel`` of a
    pilot). Drawing on until a point's own weights look quiet enough would stop early just where the large weights were
    missed, and bias the mean weight low.

    Args:
        chi2: ``[M]`` smooth relative variance of one draw at each point.
        bias_tolerance_kT: bias of f^ allowed at a point.
        error_tolerance_kT: standard error of f^ allowed at a point.
        minimum: fewest draws, a power of two >= 2.
        maximum: most draws, a power of two.

    Returns:
        ``[M]`` K.

    Raises:
        CcgError: if chi2 is not positive and finite, a tolerance is not positive, or a limit is no such power.
    """
    if not (np.isfinite(chi2) & (np.asarray(chi2) >= 0)).all() or bias_tolerance_kT <= 0 or error_tolerance_kT <= 0:
        raise CcgError(
            f"relative variances in [{np.min(chi2):g}, {np.max(chi2):g}], tolerances {bias_tolerance_kT:g} and "
            f"{error_tolerance_kT:g} kT",
            expected="finite variances, positive tolerances",
        )
    if not 2 <= minimum <= maximum or any(limit & (limit - 1) for limit in (minimum, maximum)):
        raise CcgError(f"between {minimum} and {maximum} draws per point", expected="powers of two, 2 <= least <= most")
    wanted = np.maximum(chi2 / (2 * bias_tolerance_kT), chi2 / error_tolerance_kT**2)
    # The hair's breadth keeps a K that suffices exactly from being doubled by rounding.
    exponent = np.ceil(np.log2(np.clip(wanted, minimum, maximum)) - 1e-12)
    return 2 ** exponent.astype(np.int64)


def smooth_noise(s: FloatArray, noise: FloatArray, record: IntArray, order: int) -> FloatArray:
    """``[M]`` noise of each point as the other points of its record have it.

    The logarithm is smoothed over s within each record, for records come from flows of different quality; the level of
    a record is such that its mean noise is kept (the mean logarithm lies below, the more so the fewer draws there are).

    Args:
        s: ``[M, n_s]`` radians.
        noise: ``[M]`` positive, each from its own point's draws.
        record: ``[M]`` which record each point belongs to.
        order: highest wave number, capped at a low one.
    """
    out = np.empty(len(s))
    for name in np.unique(record):
        rows = record == name
        others = np.exp(_smooth_logarithm(s[rows], np.log(noise[rows]), order)[2])
        out[rows] = others * np.mean(noise[rows] / others)
    return out


def _smooth_logarithm(s: FloatArray, values: FloatArray, order: int) -> tuple[FourierBasis, FloatArray, FloatArray]:
    """Low-order ridge fit of ``values [M]``: basis, coefficients, and ``[M]`` what the other points say of each.

    For a linear smoother with fitted values g and leverages h, leaving point m out gives ``(g - h y) / (1 - h)``.
    """
    dims = s.shape[1]
    basis = FourierBasis(min(order, _ORDER), dims, None if dims <= 2 else (_ORDER, _PAIR_ORDER))
    design, level = basis.design(s), values.mean()
    ridge = _STIFFNESS * basis.wave_number() ** 4 + 1e-9
    factor = cho_factor(design.T @ design + np.diag(ridge))
    coefficients = cho_solve(factor, design.T @ (values - level))
    leverage = (design * cho_solve(factor, design.T).T).sum(axis=1)
    fitted = design @ coefficients
    coefficients[0] += level
    if len(s) == 1:
        return basis, coefficients, values.copy()
    others = (fitted - leverage * (values - level)) / (1 - leverage)
    return basis, coefficients, level + others
