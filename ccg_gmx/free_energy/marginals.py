"""Marginals: free energies over one or two of several torsions, the others integrated out.

From a fitted Fourier surface (with the derivative by its coefficients, hence with errors), from a gridded surface, and,
as a check that knows nothing of any fit, straight from weighted draws.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from scipy.special import logsumexp

from ccg_gmx.errors import CcgError
from ccg_gmx.free_energy.estimators import log_mean_weight
from ccg_gmx.free_energy.fourier import FourierBasis
from ccg_gmx.free_energy.torsion_grid import Basin, grid_points, shifted
from ccg_gmx.records import FloatArray, FreeEnergySurface, WeightedDraws

_QUADRATURE = {1: 100, 2: 100, 3: 48, 4: 36, 5: 24, 6: 18}
QUADRATURE_TOLERANCE_KT = 1e-3


def quadrature_points(dims: int) -> int:
    """Grid points per axis for sums over whole torsions of a fit with that many torsions, an even number.

    The sum over a periodic grid of spacing h errs by about ``2 exp(-2 pi^2 sigma^2 / h^2)`` for a well of standard
    deviation sigma: below 1e-3 kT for sigma > 0.62 h, which is 6 degrees on the 36 points used for four torsions, 9 on
    the 24 for five. Torsion wells at room temperature are 8 degrees wide or wider. Marginals check it on every call.

    Raises:
        CcgError: if there are no torsions, or more than six.
    """
    if dims not in _QUADRATURE:
        raise CcgError(f"{dims} torsions", expected=f"1 to {max(_QUADRATURE)}", remedy="choose fewer coarse torsions")
    return _QUADRATURE[dims]


def axes_of(wanted: Sequence[str], names: Sequence[str]) -> tuple[int, ...]:
    """Indices of some torsions among all.

    Raises:
        CcgError: if one is unknown.
    """
    if missing := [name for name in wanted if name not in names]:
        raise CcgError(f"torsions {missing}", expected=f"some of {list(names)}")
    return tuple(list(names).index(name) for name in wanted)


def require_axes(axes: Sequence[int], dims: int, most: int | None = None) -> tuple[int, ...]:
    """Check indices of the torsions shown.

    Raises:
        CcgError: if there are none, one is there twice or unknown, or there are more than ``most``.
    """
    shown = tuple(axes)
    most = dims if most is None else min(most, dims)
    if not 1 <= len(shown) <= most or len(set(shown)) != len(shown) or not all(0 <= axis < dims for axis in shown):
        raise CcgError(f"axes {shown} of {dims} torsions", expected=f"1 to {most} different ones, counted from 0")
    return shown


def marginal_surface(surface: FreeEnergySurface, axes: Sequence[int]) -> FreeEnergySurface:
    """Marginal ``-ln sum exp(-f)`` of a gridded surface; errors unknown (nan), for they would need all covariances.

    Args:
        surface: ``[n] * d`` kT.
        axes: torsions shown, in the order wanted.

    Raises:
        CcgError: if the axes are not some of the surface's.
    """
    shown = require_axes(axes, surface.f.ndim)
    hidden = tuple(axis for axis in range(surface.f.ndim) if axis not in shown)
    by_cell = surface.f.transpose(shown + hidden).reshape(*(surface.f.shape[axis] for axis in shown), -1)
    names = tuple(surface.names[axis] for axis in shown)
    return shifted(-logsumexp(-by_cell, axis=-1), names, surface.temperature_K)


def weighted_marginal(
    draws: WeightedDraws | Sequence[WeightedDraws],
    axes: Sequence[int],
    n: int,
    names: tuple[str, ...],
    temperature_K: float,
) -> FreeEnergySurface:
    """Marginal as a histogram of the coarse points, each with weight mean_k w_k / rho(s): no fit, no smoothing.

    Self-normalised importance sampling within each record; records are averaged with their effective numbers of points
    as weights (Kish's, which counts how unequal the points' weights are). The error treats a coarse point as one
    cluster of draws, and is that of a ratio (delta method); it is of f relative to its Boltzmann mean, as everywhere.
    A value is the mean density over its cell, and so differs from a fit at the cell's centre where f bends within it.

    Args:
        draws: records of (b, y) draws, each with the density ``log_rho`` its points were drawn from.
        axes: torsions shown, in the order wanted.
        n: cells per axis.
        names: all torsions in the order of s.
        temperature_K: temperature.

    Returns:
        f and error ``[n] * len(axes)`` kT; f = inf and error = nan in cells without any weight.

    Raises:
        CcgError: if axes or names do not fit, a record has fixed beads, no proposal density, or no weight.
    """
    records = [draws] if isinstance(draws, WeightedDraws) else list(draws)
    if not records or any(record.b is not None or not np.isfinite(record.log_rho).all() for record in records):
        raise CcgError("no draws, draws at fixed beads, or points of unknown density", expected="draws of (b, y) at s")
    dims = records[0].s.shape[1]
    shown = require_axes(axes, dims)
    if len(names) != dims:
        raise CcgError(f"{len(names)} names for {dims} torsions", expected="a name per torsion")
    shares = [_cell_shares(record, shown, n) for record in records]
    weight = np.array([points for _, _, points in shares])
    weight /= weight.sum()
    p = sum(a * share for a, (share, _, _) in zip(weight, shares, strict=True))
    variance = sum(a**2 * square for a, (_, square, _) in zip(weight, shares, strict=True))
    with np.errstate(divide="ignore", invalid="ignore"):
        f, error = -np.log(p), np.sqrt(variance) / p
    shape = (n,) * len(shown)
    return shifted(f.reshape(shape), tuple(names[axis] for axis in shown), temperature_K, error.reshape(shape))


def _cell_shares(record: WeightedDraws, axes: tuple[int, ...], n: int) -> tuple[FloatArray, FloatArray, float]:
    """Share of each cell ``[n**k]``, its variance, and Kish's effective number of points."""
    log_W = log_mean_weight(record.log_w) - record.log_rho
    total = logsumexp(log_W)
    if len(log_W) < 2 or not np.isfinite(total):
        raise CcgError(f"{len(log_W)} points with total log-weight {total}", expected="two points, finite weights")
    W = np.exp(log_W - total)
    cells = np.floor((record.s[:, list(axes)] + np.pi) * n / (2 * np.pi) + 0.5).astype(np.int64) % n
    flat = np.ravel_multi_index(tuple(cells.T), (n,) * len(axes))
    p = np.bincount(flat, W, minlength=n ** len(axes)).astype(np.float64)
    squares = np.bincount(flat, W**2, minlength=n ** len(axes)).astype(np.float64)
    # sum_m W_m^2 (1_m - p)^2, written with the sums over the points inside and all points
    variance = squares * (1 - 2 * p) + p**2 * squares.sum()
    return p, variance * len(W) / (len(W) - 1), float(1 / squares.sum())


def marginal_with_slopes(
    basis: FourierBasis, coefficients: FloatArray, axes: Sequence[int], n: int, hidden_n: int | None = None
) -> tuple[FloatArray, FloatArray]:
    """Marginal ``F = -ln int exp(-f)`` of a Fourier surface over one or two axes, and its derivative by coefficients.

    The derivative of F(x) by coefficient j is the mean of function j over the hidden torsions at fixed x, which
    factorises axis by axis. The hidden torsions are summed over a periodic grid, made finer (up to twice as fine) until
    the error estimated from every other of its points is below 1e-3 kT in the Boltzmann mean: halving the spacing
    raises the relative error to the fourth power (see ``quadrature_points``).

    Args:
        basis: functions.
        coefficients: ``[P]`` kT.
        axes: one or two torsions shown, in the order wanted.
        n: grid points per shown axis.
        hidden_n: points per hidden axis, even; default ``quadrature_points``.

    Returns:
        ``[n] * len(axes)`` kT (per radian of the shown torsions), and ``[n ** len(axes), P]``.

    Raises:
        CcgError: if axes do not fit, or the surface is too steep for the finest grid.
    """
    f, slopes = _refined(basis, coefficients, axes, n, hidden_n, True)
    return f, np.concatenate(slopes)


def marginal_values(
    basis: FourierBasis, coefficients: FloatArray, axes: Sequence[int], n: int, hidden_n: int | None = None
) -> FloatArray:
    """The marginal alone of ``marginal_with_slopes``, whose slopes take most of its time."""
    return _refined(basis, coefficients, axes, n, hidden_n, False)[0]


def _refined(
    basis: FourierBasis, coefficients: FloatArray, axes: Sequence[int], n: int, hidden_n: int | None, sloped: bool
) -> tuple[FloatArray, list[FloatArray]]:
    """Marginal on hidden grids as fine as it takes, and its slopes slice by slice, empty where they are not wanted."""
    shown = require_axes(axes, basis.dims, most=2)
    first = hidden_n or quadrature_points(basis.dims)
    if first % 2:
        raise CcgError(f"{first} points per hidden torsion", expected="an even number")
    for points in (first, 2 * ((3 * first) // 4), 2 * first):
        slices = list(_slices(basis, coefficients, shown, n, points, sloped))
        f = np.concatenate([part[0] for part in slices])
        coarse = np.concatenate([part[2] for part in slices])
        # every other point errs by e = 2 exp(-a), all points by 2 exp(-4 a) = e^4 / 8
        error = float(np.exp(-f - logsumexp(-f)) @ np.abs(coarse - f)) ** 4 / 8
        if error < QUADRATURE_TOLERANCE_KT:
            return f.reshape((n,) * len(shown)), [part[1] for part in slices]
    raise CcgError(
        f"the sum over the hidden torsions errs by {error:.2g} kT with {points} points per torsion",
        expected=f"at most {QUADRATURE_TOLERANCE_KT:g} kT",
        remedy="lower joint_fit.order or joint_fit.pair_order: wells this narrow are noise of the fit",
    )


def _slices(
    basis: FourierBasis, coefficients: FloatArray, shown: tuple[int, ...], n: int, hidden_n: int, sloped: bool
) -> Iterator[tuple[FloatArray, FloatArray, FloatArray]]:
    """For each grid point of the first shown axis (memory): F ``[m]``, slopes ``[m, P]``, F from every other point."""
    hidden = tuple(axis for axis in range(basis.dims) if axis not in shown)
    at_shown, at_hidden = basis.waves(grid_points(n)), basis.waves(grid_points(hidden_n))
    tensor = np.tensordot(at_shown, basis.tensor(coefficients).transpose(shown + hidden), (1, 0))
    every_other = (slice(None), *(slice(None, None, 2),) * len(hidden))
    log_cell, log_coarser = len(hidden) * np.log(2 * np.pi / hidden_n), len(hidden) * np.log(2.0)
    columns = np.zeros(basis.size, dtype=np.int64)
    for axis in hidden:
        columns = columns * at_hidden.shape[1] + basis.index[:, axis]
    inner = at_shown[:, basis.index[:, shown[1]]] if len(shown) == 2 else np.ones((1, basis.size))
    for row, outer in enumerate(at_shown[:, basis.index[:, shown[0]]]):
        f = np.tensordot(at_shown, tensor[row], (1, 0)) if len(shown) == 2 else tensor[row][None]
        for _ in hidden:  # takes the first hidden axis, puts it last
            f = np.tensordot(f, at_hidden, (1, 1))
        F = -logsumexp(-f.reshape(len(f), -1), axis=1)
        slopes = np.empty((len(f), 0))
        if sloped:
            means = np.exp(F.reshape(-1, *(1,) * len(hidden)) - f)
            for _ in hidden:
                means = np.tensordot(means, at_hidden, (1, 0))
            slopes = means.reshape(len(f), -1)[:, columns] * inner * outer
        coarse = -logsumexp(-f[every_other].reshape(len(f), -1), axis=1) - log_coarser
        yield F - log_cell, slopes, coarse - log_cell


def region_integral(
    basis: FourierBasis, coefficients: FloatArray, nodes: Sequence[FloatArray]
) -> tuple[float, FloatArray]:
    """``ln sum exp(-f)`` over a product grid, and the Boltzmann mean ``[P]`` of every function on it.

    Args:
        basis: functions.
        coefficients: ``[P]`` kT.
        nodes: angles on each axis, ``[n_i]`` radians.
    """
    f = basis.on_nodes(nodes, coefficients)
    log_z = float(logsumexp(-f))
    return log_z, basis.moments(nodes, np.exp(-f - log_z))


def basin_nodes(
    basins: tuple[Basin, Basin], names: tuple[str, ...], named_n: int
) -> tuple[list[FloatArray], list[FloatArray]]:
    """Grid points of each basin per axis: ``named_n`` per turn on axes that either names, else ``quadrature_points``.

    Raises:
        CcgError: if a basin names an unknown torsion, or holds no grid point.
    """
    named = {name for basin in basins for name in basin.ranges}
    coarse = quadrature_points(len(names))
    fine = named_n if len(named) <= 2 else coarse
    axes = [(name, grid_points(fine if name in named else coarse)) for name in names]
    nodes = []
    for basin in basins:
        basin.require_known(names)
        nodes.append([points[basin.axis_mask(points, name)] for name, points in axes])
        if not all(len(points) for points in nodes[-1]):
            raise CcgError(f"basin {basin.name} holds no grid point", remedy="widen its ranges")
    return nodes[0], nodes[1]
