"""A fitted Fourier surface with its covariance: values, grids, marginals and basins, each with a standard error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from scipy.special import logsumexp

from ccg_gmx.errors import CcgError
from ccg_gmx.free_energy.fourier import FourierBasis, row_blocks
from ccg_gmx.free_energy.marginals import (
    basin_nodes,
    marginal_values,
    marginal_with_slopes,
    quadrature_points,
    region_integral,
    require_axes,
)
from ccg_gmx.free_energy.surface_files import read_npz, write_npz
from ccg_gmx.free_energy.torsion_grid import Basin, BoolArray, grid, grid_points, shifted
from ccg_gmx.records import FloatArray, FreeEnergySurface

FIT_VERSION = 3
_ARRAYS = ("shape", "limits", "coefficients", "covariance", "quality")


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
        limits: highest wave number of functions of 1, 2, ... torsions (``FourierBasis``); None is ``order`` for all.
        ratios: what the draws say of marginals beyond this fit (``marginal_ratio``); marginals and basins use them.
    """

    order: int
    dims: int
    coefficients: FloatArray
    covariance: FloatArray
    lack_of_fit: float
    points: int
    effective_parameters: float
    limits: tuple[int, ...] | None = None
    ratios: tuple[MarginalRatio, ...] = ()

    def with_ratios(self, ratios: Sequence[MarginalRatio]) -> SurfaceFit:
        """Return the same fit with ratios of its marginals."""
        return replace(self, ratios=tuple(ratios))

    @cached_property
    def basis(self) -> FourierBasis:
        """Functions that the coefficients belong to."""
        return FourierBasis(self.order, self.dims, self.limits)

    def values(self, s: FloatArray) -> FloatArray:
        """``[M]`` f at ``s [M, n_s]`` in kT, absolute: ln w + f(s) are weights normalised per point."""
        return np.concatenate([self.basis.design(s[rows]) @ self.coefficients for rows in row_blocks(len(s))])

    def errors(self, s: FloatArray) -> FloatArray:
        """``[M]`` standard error of f at ``s [M, n_s]`` relative to its Boltzmann mean (kT)."""
        mean = self._boltzmann_mean
        return np.concatenate([self._spread(self.basis.design(s[rows]) - mean) for rows in row_blocks(len(s))])

    def gradient(self, s: FloatArray) -> FloatArray:
        """``[M, n_s]`` derivative of f in kT/rad."""
        return self.basis.gradient(s, self.coefficients)

    def surface(self, n: int, names: tuple[str, ...], temperature_K: float) -> FreeEnergySurface:
        """Return f on the grid ``[n] * d``, with the standard error of f relative to its Boltzmann mean.

        The error is nan for three or more torsions: it is known at any points (``errors``), but would take longer than
        the fit at all points of such a grid. See ``marginal``.
        """
        f = self.basis.on_grid(n, self.coefficients)
        if self.dims > 2:
            return shifted(f, names, temperature_K)
        error = self._spread(self.basis.grid_design(n) - self._boltzmann_mean).reshape(f.shape)
        return shifted(f, names, temperature_K, error)

    def marginal(
        self, axes: Sequence[int], n: int, names: tuple[str, ...], temperature_K: float, hidden_n: int | None = None
    ) -> FreeEnergySurface:
        """Return f over one or two torsions, the others integrated out, with its standard error.

        With a ratio of these torsions, the fitted marginal times that, with the ratio's error: the fit's own cancels.
        Otherwise the derivative of the marginal by the coefficients is the Boltzmann mean of the basis over the hidden
        torsions at fixed shown ones. The error is of the marginal relative to its own Boltzmann mean.

        Args:
            axes: one or two torsions shown, in the order wanted.
            n: grid points per shown axis.
            names: all torsions in the order of s.
            temperature_K: temperature.
            hidden_n: points per hidden axis, even; default ``quadrature_points``, refined until it suffices.

        Raises:
            CcgError: if axes or names do not fit, or the fit is too steep to be integrated.
        """
        if len(names) != self.dims:
            raise CcgError(f"{len(names)} names for {self.dims} torsions", expected="a name per torsion")
        require_axes(axes, self.dims, most=2)
        if ratio := self._ratio(axes):
            f, slopes, fit = *self._with_ratio(ratio, n, hidden_n), ratio.fit
            if len(axes) == 1:
                f, slopes = _integrated_out(f, slopes, 1 - ratio.axes.index(axes[0]))
            elif tuple(axes) != ratio.axes:
                f, slopes = f.T, slopes.swapaxes(0, 1)
            slopes = slopes.reshape(f.size, -1)
        else:
            (f, slopes), fit = marginal_with_slopes(self.basis, self.coefficients, axes, n, hidden_n), self
        mean = np.exp(-f.ravel() - logsumexp(-f)) @ slopes
        error = fit._spread(slopes - mean).reshape(f.shape)
        return shifted(f, tuple(names[axis] for axis in axes), temperature_K, error)

    def delta_f(
        self,
        region_a: Basin | BoolArray,
        region_b: Basin | BoolArray,
        n: int = 100,
        names: tuple[str, ...] = ("phi", "psi"),
    ) -> tuple[float, float]:
        """``f_A - f_B = -ln(Z_A / Z_B)`` and its standard error, both in kT.

        A grid point belongs to a region or not. With three or more torsions, axes that a basin names have ``n`` points
        if the two basins name at most two torsions, and otherwise as few as the unnamed ones (``quadrature_points``):
        put the borders of such basins on barriers.

        Args:
            region_a: basin, or mask ``[n] * n_s`` on the grid.
            region_b: the other, of the same kind.
            n: grid points per axis of the sum.
            names: torsions in the order of s, which basins refer to.

        Raises:
            CcgError: if names do not fit, or a region holds no grid point.
        """
        if self.dims > 2 and isinstance(region_a, Basin) and isinstance(region_b, Basin):
            if len(names) != self.dims:
                raise CcgError(f"{len(names)} names for {self.dims} torsions", expected="a name per torsion")
            if ratio := self._ratio([names.index(name) for name in {*region_a.ranges, *region_b.ranges} & {*names}]):
                return self._delta_f_with_ratio(ratio, region_a, region_b, n, names)
            nodes = basin_nodes((region_a, region_b), names, n)
            (a, mean_a), (b, mean_b) = (region_integral(self.basis, self.coefficients, at) for at in nodes)
        else:
            (a, mean_a), (b, mean_b) = (self._masked_integral(region, n, names) for region in (region_a, region_b))
        # f_region = -ln sum exp(-f) has the Boltzmann mean of phi within the region as its derivative by c.
        return b - a, float(self._spread((mean_a - mean_b)[None])[0])

    def save(self, path: Path) -> None:
        """Write as .npz."""
        ratios = {
            f"ratio{i}_{key}": value
            for i, ratio in enumerate(self.ratios)
            for key, value in {"axes": np.array(ratio.axes), **ratio.fit._arrays()}.items()
        }
        write_npz(path, version=np.array(FIT_VERSION), ratios=np.array(len(self.ratios)), **self._arrays(), **ratios)

    @classmethod
    def load(cls, path: Path) -> SurfaceFit:
        """Read what ``save`` wrote.

        Raises:
            CcgError: if the file is not a fit.
        """
        data = read_npz(path, ("version", "ratios", *_ARRAYS), FIT_VERSION)
        prefixes = [f"ratio{i}_" for i in range(int(data["ratios"]))]
        keys = [prefix + key for prefix in prefixes for key in ("axes", *_ARRAYS)]
        more = read_npz(path, ("version", *keys), FIT_VERSION)
        ratios = []
        for prefix in prefixes:
            first, second = (int(axis) for axis in more[prefix + "axes"])
            ratios.append(MarginalRatio((first, second), cls._from_arrays({k: more[prefix + k] for k in _ARRAYS})))
        return cls._from_arrays(data).with_ratios(ratios)

    def _arrays(self) -> dict[str, np.ndarray]:
        return {
            "shape": np.array([self.order, self.dims, self.points]),
            "limits": np.array(self.basis.limits),
            "coefficients": self.coefficients,
            "covariance": self.covariance,
            "quality": np.array([self.lack_of_fit, self.effective_parameters]),
        }

    @classmethod
    def _from_arrays(cls, data: Mapping[str, np.ndarray]) -> SurfaceFit:
        order, dims, points = (int(x) for x in data["shape"])
        lack, effective = (float(x) for x in data["quality"])
        limits = tuple(int(x) for x in data["limits"])
        return cls(order, dims, data["coefficients"], data["covariance"], lack, points, effective, limits)

    def _ratio(self, axes: Sequence[int]) -> MarginalRatio | None:
        """Return a ratio that knows these torsions."""
        return next((ratio for ratio in self.ratios if set(axes) <= set(ratio.axes)), None)

    def _with_ratio(self, ratio: MarginalRatio, n: int, hidden_n: int | None = None) -> tuple[FloatArray, FloatArray]:
        """Marginal ``[n, n]`` over the ratio's torsions, its own basis there ``[n, n, P]``."""
        f = marginal_values(self.basis, self.coefficients, ratio.axes, n, hidden_n)
        design = ratio.fit.basis.grid_design(n).reshape(n, n, -1)
        return f + design @ ratio.fit.coefficients, design

    def _delta_f_with_ratio(
        self, ratio: MarginalRatio, region_a: Basin, region_b: Basin, n: int, names: tuple[str, ...]
    ) -> tuple[float, float]:
        """Difference of two basins of the ratio's torsions on their corrected marginal."""
        f, design = self._with_ratio(ratio, n)
        shown, points = tuple(names[axis] for axis in ratio.axes), grid(n, 2)
        found = []
        for region in (region_a, region_b):
            inside = region.mask(points, shown)
            if not inside.any():
                raise CcgError(f"basin {region.name} holds no grid point", remedy="widen its ranges")
            log_z = logsumexp(-f.ravel()[inside])
            found.append((log_z, np.exp(-f.ravel()[inside] - log_z) @ design.reshape(n * n, -1)[inside]))
        (a, mean_a), (b, mean_b) = found
        return float(b - a), float(ratio.fit._spread((mean_a - mean_b)[None])[0])

    @cached_property
    def _boltzmann_mean(self) -> FloatArray:
        nodes = [grid_points(quadrature_points(self.dims))] * self.dims
        return region_integral(self.basis, self.coefficients, nodes)[1]

    def _masked_integral(self, region: Basin | BoolArray, n: int, names: tuple[str, ...]) -> tuple[float, FloatArray]:
        """``ln Z`` of a region of the full grid, and the Boltzmann mean of the functions within."""
        if isinstance(region, Basin):
            region = region.mask(grid(n, self.dims), names)
        inside = np.reshape(region, (n,) * self.dims)
        if not inside.any():
            raise CcgError("a region holds no grid point", remedy="widen the basin")
        energy = np.where(inside, self.basis.on_grid(n, self.coefficients), np.inf)
        log_z = float(logsumexp(-energy))
        return log_z, self.basis.moments([grid_points(n)] * self.dims, np.exp(-energy - log_z))

    def _spread(self, rows: FloatArray) -> FloatArray:
        """Standard error of ``rows @ c``."""
        return np.sqrt(np.maximum(((rows @ self.covariance) * rows).sum(axis=1), 0.0))


@dataclass(frozen=True)
class MarginalRatio:
    """``g(a) = -ln(true marginal / fitted marginal)`` over two torsions, in kT.

    Attributes:
        axes: the two torsions.
        fit: g, as a surface of those two.
    """

    axes: tuple[int, int]
    fit: SurfaceFit


def _integrated_out(f: FloatArray, slopes: FloatArray, axis: int) -> tuple[FloatArray, FloatArray]:
    """Marginal ``[n]`` of f ``[n, n]``, and the Boltzmann mean of slopes ``[n, n, P]`` along that axis: ``[n, P]``."""
    total = logsumexp(-f, axis=axis, keepdims=True)
    return -total.squeeze(axis), (np.exp(-f - total)[..., None] * slopes).sum(axis)
