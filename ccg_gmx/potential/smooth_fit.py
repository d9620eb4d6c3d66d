"""The two fits behind tabulated potentials: counts to a potential, and noisy values to a smooth curve.

Both are on the splines of the cycle, with its Gaussian roughness prior, and give the covariance of the coefficients.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse
from scipy.linalg import LinAlgError, cho_factor, cho_solve

from ccg_gmx.errors import SettingsError
from ccg_gmx.potential.curves import Curve
from ccg_gmx.potential.torsions import TorsionGrid
from ccg_gmx.records import FloatArray

GAUGE_SD_KT = 10.0
"""Prior of the mean coefficient of a bonded term: its constant does not matter, but the equations need one."""


def curve_prior(curve: Curve, roughness_kT: float) -> FloatArray:
    """Precision ``[F, F]`` of the free coefficients of a curve in kT.

    Third differences of standard deviation ``roughness_kT`` (second ones around a circle), and the gauge of the
    constant where it is free.
    """
    prior = curve.term.roughness(roughness_kT, roughness_kT).toarray()[: curve.free, : curve.free]
    if curve.kind != "pair":
        prior = prior + 1.0 / (curve.free * GAUGE_SD_KT) ** 2
    return prior


def map_prior(grid: TorsionGrid, roughness_kT: float) -> FloatArray:
    """Precision ``[F, F]`` of the coefficients of a map in kT: second differences, and the gauge of the constant."""
    return np.asarray(grid.roughness(roughness_kT).toarray() + 1.0 / (grid.size * GAUGE_SD_KT) ** 2)


def free_design(curve: Curve, x: FloatArray, order: int = 0) -> sparse.csr_array:
    """Rows ``[M, F]`` for the free coefficients alone; the others are zero."""
    return sparse.csr_array(curve.design(x, order)[:, : curve.free])


def padded(curve: Curve, values: FloatArray) -> FloatArray:
    """Free coefficients, or a matrix over them, with zeros for those at the cut-off."""
    return np.pad(values, [(0, curve.size - curve.free)] * values.ndim)


def solve_positive(matrix: FloatArray, *right: FloatArray) -> list[FloatArray]:
    """Solve with a symmetric positive matrix, scaled to a unit diagonal first so that no unknown drowns.

    Raises:
        SettingsError: if the matrix is not positive definite.
    """
    scale = 1.0 / np.sqrt(np.maximum(np.diag(matrix), 1e-300))
    try:
        factor = cho_factor(matrix * np.outer(scale, scale))
    except (LinAlgError, ValueError) as error:
        raise SettingsError(
            f"the data do not determine the potential ({error})",
            expected="samples in every part of each term's range",
            remedy="use more frames, fewer knots or a larger ridge",
        ) from error
    # Broadcasting over the rows of vectors and matrices alike.
    return [(scale * cho_solve(factor, (scale * part.T).T).T).T for part in right]


def poisson_fit(
    design: sparse.csr_array,
    counts: FloatArray,
    ideal: FloatArray,
    prior: FloatArray,
    *,
    dispersion: float = 1.0,
    scaled: bool = False,
) -> tuple[FloatArray, FloatArray]:
    """Boltzmann inversion as maximum likelihood: counts are Poisson with mean ``ideal * exp(-design @ x)``.

    Unlike a fit to ``-ln(counts / ideal)`` it has no bias where counts are few, and bins without counts say that the
    potential is high there. Newton's method on a concave function, with step halving.

    Args:
        design: ``[M, F]``.
        counts: ``[M]``.
        ideal: ``[M]``, positive.
        prior: ``[F, F]`` precision in kT^-2.
        dispersion: variance of the counts over that of independent ones.
        scaled: whether ``ideal`` is known up to a factor only, which is then fitted too.

    Returns:
        Coefficients ``[F]`` in kT and covariance ``[F, F]``.
    """
    columns = design.shape[1]
    rows = sparse.hstack([design, -np.ones((len(counts), int(scaled)))], format="csr") if scaled else design
    precision = np.zeros((rows.shape[1],) * 2)
    precision[:columns, :columns] = prior
    x = np.zeros(rows.shape[1])
    if scaled:
        x[-1] = np.log(max(counts.sum(), 0.5) / ideal.sum())

    def badness(x: FloatArray) -> float:
        reduced = rows @ x
        if np.min(reduced) < -200.0:
            return np.inf
        return float((ideal @ np.exp(-reduced) + counts @ reduced) / dispersion + 0.5 * x @ precision @ x)

    best = badness(x)
    for _ in range(200):
        mean = ideal * np.exp(-(rows @ x))
        gradient = precision @ x + rows.T @ (counts - mean) / dispersion
        hessian = precision + (rows.T @ rows.multiply((mean / dispersion)[:, None])).toarray()
        (step,) = solve_positive(hessian + 1e-12 * np.diag(np.diag(hessian)), gradient)
        fraction = 1.0
        while (trial := badness(x - fraction * step)) > best and fraction > 1e-6:
            fraction *= 0.5
        if trial > best:
            break
        x, gain, best = x - fraction * step, best - trial, trial
        if gain < 1e-10 * (1.0 + abs(best)):
            break
    (covariance,) = solve_positive(hessian, np.eye(len(x)))
    return x[:columns], covariance[:columns, :columns]


def weighted_fit(
    design: sparse.csr_array, target: FloatArray, variance: FloatArray, prior: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Least squares with known variances and a prior about zero: coefficients ``[F]``, covariance ``[F, F]``."""
    weighted = design.multiply((1.0 / variance)[:, None]).tocsr()
    normal = prior + (weighted.T @ design).toarray()
    x, covariance = solve_positive(normal, weighted.T @ target, np.eye(len(normal)))
    return x, covariance


def steep_core(curve: Curve, first_known: float, step_kT: float, kT: float) -> Curve:
    """Make a pair curve convex and rising towards zero distance where it was not well sampled.

    Args:
        curve: a pair.
        first_known: distance in nm from which on the curve is known.
        step_kT: least rise from one coefficient to the next.
        kT: kJ/mol.
    """
    c = curve.coefficients.copy()
    known = int(np.clip(np.floor((first_known - curve.lo) / curve.spacing) + 1, 0, curve.free - 1))
    for i in range(known - 1, -1, -1):
        convex = 2.0 * c[i + 1] - c[i + 2] if i + 2 < len(c) else c[i + 1]
        c[i] = max(c[i], convex, c[i + 1] + step_kT * kT)
    return Curve(curve.kind, curve.lo, curve.hi, c, curve.covariance, curve.min_curvature)
