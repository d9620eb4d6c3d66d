"""Time-lagged independent components: the slowest linear combinations of features, and how slow they are.

Perez-Hernandez et al. 2013, doi:10.1063/1.4811489; reversible estimator as in Wu et al. 2017, doi:10.1063/1.4979344.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import LinAlgError, eigh

from ccg_gmx.cv.lagged import Pairs
from ccg_gmx.errors import CcgError
from ccg_gmx.free_energy.bootstrap import BootstrapSettings, block_bootstrap, plan_blocks, standard_error
from ccg_gmx.records import FloatArray


@dataclass(frozen=True)
class Tica:
    """Slow linear combinations ``(x - mean) @ vectors`` of variance 1, slowest first.

    Attributes:
        mean: ``[F]``.
        vectors: ``[F, k]``.
        eigenvalues: ``[k]`` autocorrelation at the lag, in [-1, 1].
    """

    mean: FloatArray
    vectors: FloatArray
    eigenvalues: FloatArray


@dataclass(frozen=True)
class Timescales:
    """How slow collective variables are.

    Attributes:
        lag_ps: the lag.
        eigenvalues: ``[k]``.
        eigenvalue_errors: ``[k]`` standard errors by block bootstrap, for the variables as they are.
        ps: ``[k]`` ``-lag / log(eigenvalue)``; nan where the eigenvalue is not positive.
        errors_ps: ``[k]`` standard errors.
        warnings: why the errors may be too small.
    """

    lag_ps: float
    eigenvalues: FloatArray
    eigenvalue_errors: FloatArray
    ps: FloatArray
    errors_ps: FloatArray
    warnings: tuple[str, ...]


def covariances(
    x: FloatArray, y: FloatArray, weight: FloatArray, mean: FloatArray | None = None
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Mean ``[F]``, covariance and time-lagged covariance ``[F, F]`` of pairs, forwards and backwards in time together.

    Args:
        x: ``[P, F]`` earlier frames.
        y: ``[P, F]`` later frames.
        weight: ``[P]``.
        mean: ``[F]`` mean to use; None: that of the pairs.
    """
    p = weight / weight.sum()
    centre = 0.5 * (p @ x + p @ y) if mean is None else mean
    x, y = x - centre, y - centre
    px = p[:, None] * x
    forth = px.T @ y
    return centre, 0.5 * (px.T @ x + (p[:, None] * y).T @ y), 0.5 * (forth + forth.T)


def tica(x: FloatArray, pairs: Pairs, count: int, ridge: float = 1e-6) -> Tica:
    """Solve ``C(lag) v = eigenvalue (C(0) + ridge) v``.

    Args:
        x: ``[T, F]`` features, of variance about 1.
        pairs: frames a lag apart.
        count: number of components, k.
        ridge: added to the variance of every feature; makes features that depend on each other harmless.

    Raises:
        CcgError: if there are fewer features than components, or the covariance is singular.
    """
    if not 1 <= count <= x.shape[1]:
        raise CcgError(
            f"{count} collective variables of {x.shape[1]} features", expected="at most one for each feature"
        )
    mean, c0, ct = covariances(x[pairs.first], x[pairs.second], pairs.weight)
    values, vectors = _slowest(c0 + ridge * np.eye(len(c0)), ct, count)
    return Tica(mean, vectors, values)


def _slowest(c0: FloatArray, ct: FloatArray, count: int) -> tuple[FloatArray, FloatArray]:
    try:
        values, vectors = eigh(ct, c0)
    except (LinAlgError, ValueError) as error:
        raise CcgError(
            "the covariance of the features is singular", expected="features that do not determine each other",
            remedy="use a larger --ridge or fewer columns",
        ) from error  # fmt: skip
    vectors = vectors[:, ::-1][:, :count]
    # the largest coefficient is positive: the same data give the same sign
    sign = np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(count)])
    return values[::-1][:count], vectors * sign


def timescales(cv: FloatArray, pairs: Pairs, settings: BootstrapSettings | None = None) -> Timescales:
    """Time scales of collective variables as they are, with errors by a block bootstrap.

    An eigenvalue moves, to first order, with the covariances along its own eigenvector alone; so the bootstrap goes
    over the k variables and not over all features.

    Args:
        cv: ``[T, k]``.
        pairs: frames a lag apart.
        settings: of the bootstrap.
    """
    settings = settings or BootstrapSettings(resamples=100)
    x, y, count = cv[pairs.first], cv[pairs.second], cv.shape[1]

    def eigenvalues(rows: np.ndarray) -> FloatArray:
        _, c0, ct = covariances(x[rows], y[rows], pairs.weight[rows])
        return _slowest(c0 + 1e-12 * np.trace(c0) * np.eye(count), ct, count)[0]

    values = eigenvalues(np.arange(len(x)))
    z = (cv - cv.mean(axis=0)) / cv.std(axis=0)
    products = pairs.weight[:, None] * (z[pairs.first] * z[pairs.second])
    plan = plan_blocks(np.concatenate([products, z[pairs.first]], axis=1), pairs.run, settings)
    replicates = block_bootstrap(pairs.run, eigenvalues, resamples=settings.resamples, seed=settings.seed, plan=plan)
    errors = standard_error(replicates, plan)
    with np.errstate(invalid="ignore", divide="ignore"):
        ps = np.where(values > 0, -pairs.lag_ps / np.log(np.where(values > 0, values, np.nan)), np.nan)
        spread = ps**2 / pairs.lag_ps * errors / values
    return Timescales(pairs.lag_ps, values, errors, ps, spread, plan.warnings)


def score(cv: FloatArray, pairs: Pairs, ridge: float = 1e-6) -> float:
    """Sum of squared eigenvalues of variables ``[T, k]`` over pairs, the VAMP-2 score less 1."""
    found = tica(cv / cv.std(axis=0), pairs, cv.shape[1], ridge)
    return float((found.eigenvalues**2).sum())
