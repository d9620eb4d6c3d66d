"""From walkers under a static bias to free energy surfaces: streaming weighted histograms of independent groups.

Each frame counts with the weight exp(beta V) of its own bias V, not of its bin's (umbrella sampling: G. M. Torrie and
J. P. Valleau, doi:10.1016/0021-9991(77)90121-8). Walkers never meet, so groups of them are independent samples: even
and odd groups make two independent halves, leaving out one group at a time gives the jackknife error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from pydantic import Field
from scipy.special import logsumexp

from ccg_gmx.errors import CcgError
from ccg_gmx.free_energy.surface import probability, smooth_periodic
from ccg_gmx.free_energy.torsion_grid import Basin, shifted
from ccg_gmx.records import FloatArray, FreeEnergySurface, IntArray
from ccg_gmx.settings import Settings
from ccg_gmx.units import thermal_energy


class BiasTarget(Settings):
    """What a static bias should make walkers sample: a mixture of three densities.

    For a given number of independent frames the forward KL of a histogram is smallest when the square root of the
    density p is sampled; the uniform part carries walkers over barriers; the part of p itself bounds the weights.
    """

    boltzmann: float = Field(0.2, description="share of the density p itself", ge=0)
    root: float = Field(0.5, description="share of the density proportional to the square root of p", ge=0)
    uniform: float = Field(0.3, description="share of a density flat up to the cap", gt=0)
    cap_kJ_mol: float = Field(40.0, description="above this free energy the bias ends: no walker is pushed there", gt=0)
    smooth_degrees: float = Field(5.0, description="standard deviation of the kernel that smooths the estimate", ge=0)

    def bias(self, estimate: FreeEnergySurface) -> FloatArray:
        """Return the bias that makes walkers sample the mixture, if the estimate is right.

        Args:
            estimate: free energy over one or two torsions; inf counts as one that lies just above all that is known.

        Returns:
            ``[n]`` or ``[n, n]`` kJ/mol at the grid points, maximum 0; flat where the estimate is above the cap.
        """
        kT = thermal_energy(estimate.temperature_K)
        cap = self.cap_kJ_mol / kT
        highest = max(cap + 2.0, estimate.f[np.isfinite(estimate.f)].max())
        density = smooth_periodic(np.exp(-np.minimum(estimate.f, highest)), self.smooth_degrees)
        log_p = np.log(density) - np.log(density.max())
        parts = ((self.boltzmann, log_p), (self.root, 0.5 * log_p), (self.uniform, np.minimum(log_p + cap, 0.0)))
        with np.errstate(divide="ignore"):
            log_target = logsumexp([np.log(share) + part - logsumexp(part) for share, part in parts], axis=0)
        # far above the cap only the uniform part is left, which falls as the density does
        bias = kT * (log_p - log_target)
        return np.asarray(bias - bias.max())


class WeightedHistograms:
    """Weighted histograms of marginals of the torsions, one for each group of walkers; memory does not grow.

    Args:
        names: names of the torsions.
        marginals: indices of the one or two torsions of each marginal.
        bins: bins per axis; a bin is the cell centred on its grid point.
        groups: independent groups of walkers, an even number; neighbouring walkers are of one group.
        temperature_K: temperature in K.

    Raises:
        ValueError: if the groups are not even in number or a marginal is none.
    """

    def __init__(
        self,
        names: Sequence[str],
        marginals: Sequence[tuple[int, ...]],
        bins: int,
        groups: int,
        temperature_K: float,
    ) -> None:
        if groups < 2 or groups % 2:
            raise ValueError(f"need an even number of groups, got {groups}")
        if any(len(m) not in (1, 2) or len(set(m)) < len(m) or max(m) >= len(names) for m in marginals):
            raise ValueError(f"a marginal is of one or two different torsions of {len(names)}, got {list(marginals)}")
        self.names, self.marginals = tuple(names), tuple(tuple(m) for m in marginals)
        self.bins, self.groups, self.temperature_K = bins, groups, temperature_K
        self._sums = [np.zeros((groups, bins ** len(m))) for m in self.marginals]
        self._log_scale = -np.inf
        self._moments = np.zeros((3, groups))

    def add(self, s: FloatArray, log_w: FloatArray) -> None:
        """Add one frame of every walker.

        Args:
            s: ``[W, n_s]`` radians, always the same walkers in the same order.
            log_w: ``[W]`` log-weights beta V.

        Raises:
            CcgError: if the numbers are not finite or cannot be split into the groups.
        """
        if s.shape != (len(log_w), len(self.names)) or len(log_w) % self.groups:
            raise CcgError(f"walkers of shape {s.shape}", expected=f"[W, {len(self.names)}], W of {self.groups} groups")
        if not (np.isfinite(s).all() and np.isfinite(log_w).all()):
            raise CcgError("a walker whose torsions or bias are not finite")
        self._rescale(float(log_w.max()))
        w = np.exp(log_w - self._log_scale)
        group = np.repeat(np.arange(self.groups), len(log_w) // self.groups)
        cells = np.floor((s + np.pi) * self.bins / (2 * np.pi) + 0.5).astype(np.int64) % self.bins
        for sums, marginal in zip(self._sums, self.marginals, strict=True):
            flat = np.ravel_multi_index(tuple(cells[:, axis] for axis in marginal), (self.bins,) * len(marginal))
            np.add.at(sums, (group, flat), w)
        for row, power in zip(self._moments, (w**0, w, w**2), strict=True):
            row += power.reshape(self.groups, -1).sum(1)

    def _rescale(self, highest: float) -> None:
        """Keep all sums in units of the largest weight seen so far."""
        if highest <= self._log_scale:
            return
        factor = np.exp(self._log_scale - highest)
        for sums in self._sums:
            sums *= factor
        self._moments *= np.array([1.0, factor, factor**2])[:, None]
        self._log_scale = highest

    @property
    def frames(self) -> int:
        """Number of frames of all walkers."""
        return int(self._moments[0].sum())

    @property
    def kish_fraction(self) -> float:
        """``(sum w)^2 / sum w^2`` of all frames, by their number: 1 without a bias."""
        count, first, second = self._moments.sum(1)
        return float(first**2 / second / count)

    def surface(self, marginal: tuple[int, ...], groups: Sequence[int] | None = None) -> FreeEnergySurface:
        """Return the surface of a marginal from all or some groups; bins never visited are inf.

        Raises:
            CcgError: if it is not one of the marginals, or nothing was added.
        """
        sums = self._of(marginal)
        chosen = sums if groups is None else sums[list(groups)]
        total = chosen.sum(0)
        with np.errstate(divide="ignore"):
            f = -np.log(total).reshape((self.bins,) * len(marginal))
        return shifted(f, tuple(self.names[axis] for axis in marginal), self.temperature_K)

    def halves(self, marginal: tuple[int, ...]) -> tuple[FreeEnergySurface, FreeEnergySurface]:
        """Return the surfaces of the even and of the odd groups, which are independent."""
        even, odd = (self.surface(marginal, range(first, self.groups, 2)) for first in (0, 1))
        return even, odd

    def with_error(self, marginal: tuple[int, ...]) -> FreeEnergySurface:
        """Return the surface of all groups with the jackknife error over groups.

        The error is that of f relative to its Boltzmann average, nan where a bin is empty without some group.
        """
        whole = self.surface(marginal)
        sums = self._of(marginal)
        with np.errstate(divide="ignore", invalid="ignore"):
            f = -np.log(sums.sum(0) - sums).reshape(self.groups, *whole.f.shape)
            known = np.isfinite(f).all(0)
            weights = np.where(known, probability(whole), 0.0)
            aligned = np.where(known, f, np.nan)
            axes = tuple(range(1, f.ndim))
            offset = np.nansum(weights * np.where(known, f, 0.0), axis=axes, keepdims=True) / weights.sum()
            error = np.sqrt((self.groups - 1) * (aligned - offset).var(axis=0))
        return shifted(whole.f, whole.names, whole.temperature_K, error)

    def group_floor(self, marginal: tuple[int, ...]) -> float:
        """Forward KL in nats explained by the noise of the surface of all groups, from their jackknife error."""
        surface = self.with_error(marginal)
        known = np.isfinite(surface.error)
        return float(0.5 * (probability(surface)[known] * surface.error[known] ** 2).sum())

    def arrays(self) -> dict[str, FloatArray]:
        """Return all that was accumulated, for a checkpoint."""
        sums = {f"histogram_{index}": each for index, each in enumerate(self._sums)}
        return {**sums, "moments": self._moments, "log_scale": np.array(self._log_scale)}

    def restore(self, arrays: Mapping[str, FloatArray]) -> None:
        """Take up what :meth:`arrays` returned.

        Raises:
            CcgError: if it was of other marginals, bins or groups.
        """
        found = {key: np.array(value, dtype=np.float64) for key, value in arrays.items()}
        expected = {key: value.shape for key, value in self.arrays().items()}
        if {key: value.shape for key, value in found.items()} != expected:
            raise CcgError("a checkpoint of other histograms", remedy="give the options it was made with, or delete it")
        self._sums = [found[f"histogram_{index}"] for index in range(len(self.marginals))]
        self._moments, self._log_scale = found["moments"], float(found["log_scale"])

    def _of(self, marginal: tuple[int, ...]) -> FloatArray:
        if tuple(marginal) not in self.marginals:
            raise CcgError(f"no marginal {tuple(marginal)}", expected=f"one of {list(self.marginals)}")
        return self._sums[self.marginals.index(tuple(marginal))]


class BasinVisits:
    """Counts how often each group of walkers came into each basin from another one.

    A walker belongs to the basin it was in last, until it is in another; so passing a border back and forth outside the
    boxes counts for nothing.

    Args:
        basins: boxes in the torsions that do not overlap.
        names: names of the torsions.
        walkers: number of walkers.
        groups: number of groups; neighbouring walkers are of one group.
    """

    def __init__(self, basins: Sequence[Basin], names: Sequence[str], walkers: int, groups: int) -> None:
        self.basins, self._names, self.groups = tuple(basins), tuple(names), groups
        self._group = np.repeat(np.arange(groups), walkers // groups)
        self.last = np.full(walkers, -1, dtype=np.int64)
        self.entries: IntArray = np.zeros((groups, len(self.basins)), dtype=np.int64)

    def add(self, s: FloatArray) -> None:
        """Take one frame of every walker, ``[W, n_s]`` radians; the first basin of a walker is no entry."""
        now = np.full(len(self.last), -1, dtype=np.int64)
        for index, basin in enumerate(self.basins):
            now[basin.mask(s, self._names)] = index
        moved = (now >= 0) & (self.last >= 0) & (now != self.last)
        np.add.at(self.entries, (self._group[moved], now[moved]), 1)
        self.last = np.where(now >= 0, now, self.last)

    def summary(self) -> dict[str, tuple[int, int]]:
        """Return basin -> entries of the group with the fewest, and of all groups."""
        columns = zip(self.basins, self.entries.T, strict=True)
        return {basin.name: (int(column.min()), int(column.sum())) for basin, column in columns}
