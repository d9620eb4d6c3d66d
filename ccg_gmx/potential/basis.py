"""Linear basis of the coarse potential: maps over the coarse torsions, one spline for every other bead coordinate."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import sparse

from ccg_gmx.potential.bspline import cubic_weights
from ccg_gmx.potential.terms import PeriodicTerm, SplineTerm, Term, covering_term
from ccg_gmx.potential.torsions import TorsionGrid, TorsionMaps
from ccg_gmx.records import FloatArray

__all__ = [
    "PeriodicTerm",
    "SeparableBasis",
    "SplineTerm",
    "Term",
    "TorsionGrid",
    "TorsionMaps",
    "covering_term",
    "cubic_weights",
]


@dataclass(frozen=True)
class SeparableBasis:
    """``sum_m G_m(s_m) + sum_i U_i(b_i)``: the coefficients of the maps first, then each term's.

    Attributes:
        terms: one term per bead coordinate ``b_i``, in the order of ``b``.
        torsions: the map over ``s``, or a sum of maps.
    """

    terms: tuple[Term, ...]
    torsions: TorsionGrid | TorsionMaps

    @cached_property
    def maps(self) -> TorsionMaps:
        """The maps over ``s``; a single grid is a sum of one."""
        if isinstance(self.torsions, TorsionMaps):
            return self.torsions
        return TorsionMaps((self.torsions,), (tuple(range(len(self.torsions.names))),))

    @property
    def n_s(self) -> int:
        """Number of torsions."""
        return self.maps.n_s

    @property
    def n_b(self) -> int:
        """Number of other bead coordinates."""
        return len(self.terms)

    @property
    def n_maps(self) -> int:
        """Number of maps over the torsions."""
        return len(self.maps.grids)

    @cached_property
    def blocks(self) -> tuple[slice, ...]:
        """Where the coefficients of map k (entry k) and of term i (entry ``n_maps + i``) lie."""
        sizes = [part.size for part in (*self.maps.grids, *self.terms)]
        return tuple(slice(int(a), int(b)) for a, b in itertools.pairwise(np.cumsum([0, *sizes])))

    @property
    def size(self) -> int:
        """Number of coefficients P."""
        return self.blocks[-1].stop

    def values(self, s: FloatArray, b: FloatArray) -> sparse.csr_array:
        """Design matrix of the values, sparse ``[M, P]``, at ``s [M, n_s]`` radians and ``b [M, n_b]`` nm, radians."""
        parts = [self.maps.design(s), *(term.design(b[:, i]) for i, term in enumerate(self.terms))]
        return sparse.hstack(parts, format="csr")

    def derivative(self, s: FloatArray, b: FloatArray, i: int) -> sparse.csr_array:
        """Design matrix of the derivative by coordinate ``i`` of (s, b), sparse ``[M, P]``.

        Only one block of columns is alive: that is what makes the basis separable.
        """
        if i < self.n_s:
            block = self.maps.map_of[i]
            live = self.maps.map_design(block, s, axis=i)
        else:
            block = self.n_maps + i - self.n_s
            live = self.terms[i - self.n_s].design(b[:, i - self.n_s], 1)
        columns = live.indices + self.blocks[block].start
        return sparse.csr_array((live.data, columns, live.indptr), shape=(len(s), self.size))

    def derivatives(self, s: FloatArray, b: FloatArray) -> tuple[sparse.csr_array, ...]:
        """All ``n_s + n_b`` derivative design matrices, each sparse ``[M, P]``."""
        return tuple(self.derivative(s, b, i) for i in range(self.n_s + self.n_b))

    def log_jacobian(self, b: FloatArray) -> FloatArray:
        """``ln J_beads``: bonds give b^2, angles sin(theta); ``[M]``.

        Cartesian volume of a chain placed bead by bead, rigid motion left out; torsions contribute 1.
        """
        return np.sum([term.log_jacobian(b[:, i]) for i, term in enumerate(self.terms)], axis=0)

    def log_jacobian_gradient(self, b: FloatArray) -> FloatArray:
        """``d ln J_beads / d b``, ``[M, n_b]``."""
        return np.stack([term.log_jacobian_gradient(b[:, i]) for i, term in enumerate(self.terms)], axis=1)

    def roughness(self, torsion_scale: float, term_scale: float) -> sparse.csr_array:
        """Precision matrix ``[P, P]`` of a smooth Gaussian prior on the coefficients.

        Second differences for what is periodic (nothing is free but a constant); third differences for the others,
        so that a harmonic well costs nothing and is what fills a gap in the data.

        Args:
            torsion_scale: prior standard deviation of a second difference of coefficients around a circle, kT.
            term_scale: prior standard deviation of a third difference of coefficients along a range, kT.
        """
        parts = [grid.roughness(torsion_scale) for grid in self.maps.grids]
        parts += [term.roughness(torsion_scale, term_scale) for term in self.terms]
        return sparse.block_diag(parts, format="csr")
