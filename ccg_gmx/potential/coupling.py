"""What the maps of a coarse model leave out of its free energy surface: C(s) = F(s) - G(s), in kT.

The coarse model samples ``exp(-G)`` over the torsions: its other terms do not depend on them, nor does the volume
element of the beads. With C as a bias it samples ``exp(-G - C) = exp(-F)``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp

from ccg_gmx.errors import SettingsError
from ccg_gmx.free_energy.surface_fit import SurfaceFit
from ccg_gmx.potential.coarse import CoarsePotential
from ccg_gmx.records import FloatArray

_FACTORS = (1.0, 2.0, 4.0)
"""Temperatures, over the potential's own, at which points are drawn; a fourth kind of points is even on the torus."""

_SHARES = (0.4, 0.3, 0.2, 0.1)


@dataclass(frozen=True)
class Points:
    """Points on the torus with what is known there.

    Attributes:
        s: ``[M, n_s]`` radians.
        full: ``[M]`` F in kT, from its lowest value among the points.
        maps: ``[M]`` G in kT, likewise.
        weight: ``[M]`` Boltzmann weights of F, the density the points were drawn from divided out; their sum is 1.
    """

    s: FloatArray
    full: FloatArray
    maps: FloatArray
    weight: FloatArray

    def target(self, cap: Callable[[FloatArray], FloatArray]) -> FloatArray:
        """``[M]`` C in kT where F and G each end at a cap.

        The sum of G and C is then F up to the cap, never below it where F is above, and G where both are: nothing is
        asked of C where neither is known well.

        Args:
            cap: kT to kT.
        """
        return cap(self.full) - cap(self.maps)

    def quality(self, correction: FloatArray) -> Quality:
        """How near G and a correction come to F.

        Args:
            correction: ``[M]`` kT, with any constant.
        """
        off = self.maps + correction - self.full
        mean = float(self.weight @ off)
        rms = math.sqrt(float(self.weight @ (off - mean) ** 2))
        # KL(p || q) with q ~ p exp(-off): <off> + ln <exp(-off)>, averages over p.
        kl = mean + float(logsumexp(-off, b=self.weight))
        return Quality(rms, max(float(kl), 0.0))


@dataclass(frozen=True)
class Quality:
    """Distance of a model from F, over ``exp(-F)``.

    Attributes:
        rms_kT: of model minus F, the constant removed.
        kl: Kullback-Leibler divergence of the model's density from ``exp(-F)``, nats.
    """

    rms_kT: float
    kl: float


@dataclass(frozen=True)
class Coupling:
    """The surface of a run beside the maps of its force field.

    Attributes:
        fit: F.
        potential: holds the maps.
    """

    fit: SurfaceFit
    potential: CoarsePotential

    def __post_init__(self) -> None:
        """Refuse parts of different runs."""
        if self.fit.dims != self.potential.basis.n_s:
            raise SettingsError(
                f"a surface over {self.fit.dims} torsions and maps over {self.potential.basis.n_s}",
                expected="those of one run",
            )

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the torsions, in the order of ``s``."""
        return self.potential.basis.maps.names

    def full(self, s: FloatArray) -> FloatArray:
        """F ``[M]`` in kT, any constant.

        What the draws say beyond the fit about the torsions of one map is in that map, and so is in F here too.

        Args:
            s: ``[M, n_s]`` radians.
        """
        f = self.fit.values(s)
        maps = [set(columns) for columns in self.potential.basis.maps.columns]
        for ratio in (one for one in self.fit.ratios if set(one.axes) in maps):
            f = f + ratio.fit.values(s[:, ratio.axes])
        return f

    def maps(self, s: FloatArray) -> FloatArray:
        """G ``[M]`` in kT, any constant.

        Args:
            s: ``[M, n_s]`` radians.
        """
        return -self.potential.log_density_s(s)

    def points(self, count: int, seed: int) -> Points:
        """Draw points where F or G are low, fewer on the heights, some everywhere.

        Args:
            count: number M of points, about.
            seed: of the draws.
        """
        n_s = self.potential.basis.n_s
        seeds = [int(x) for x in np.random.SeedSequence(seed).generate_state(len(_SHARES))]
        sizes = [max(1, round(share * count)) for share in _SHARES]
        drawn = [
            self.potential.sample_s(size, own, factor)
            for size, own, factor in zip(sizes[:-1], seeds, _FACTORS, strict=False)
        ]
        even = np.random.default_rng(seeds[-1]).uniform(-math.pi, math.pi, (sizes[-1], n_s))
        return self.at(np.concatenate([*drawn, even]), np.array(sizes) / sum(sizes))

    def at(self, s: FloatArray, shares: FloatArray | None = None) -> Points:
        """F and G at given points.

        Args:
            s: ``[M, n_s]`` radians.
            shares: of each kind of points in ``s``; None where they lie evenly on the torus.
        """
        log_density = np.zeros(len(s))
        if shares is not None:
            parts = [self.potential.log_density_s(s, factor) for factor in _FACTORS]
            parts.append(np.full(len(s), -s.shape[1] * math.log(2 * math.pi)))
            log_density = logsumexp(np.stack(parts), axis=0, b=shares[:, None])
        full, maps = self.full(s), self.maps(s)
        log_weight = -full - log_density
        return Points(s, full - full.min(), maps - maps.min(), np.exp(log_weight - logsumexp(log_weight)))
