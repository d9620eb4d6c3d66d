"""The coarse torsions' part of the potential: maps over one or two torsions, and sums of such maps."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import sparse

from ccg_gmx.errors import SettingsError
from ccg_gmx.potential.bspline import circle_roughness, circle_weights, sparse_rows
from ccg_gmx.records import FloatArray

KNOTS = 24
"""Knots per torsion: 15 degrees, GROMACS' own CMAP spacing."""


@dataclass(frozen=True)
class TorsionGrid:
    """Periodic tensor product of cubic B-splines over one or two torsions.

    The knots are ``-pi + i * 2 pi / knots``. Any grid whose number of points is a multiple of ``knots`` therefore
    contains them, and a cubic spline through such a grid (what GROMACS makes of a CMAP) *is* this function again.

    Attributes:
        names: name of each torsion.
        knots: knots per torsion, at least 4.
    """

    names: tuple[str, ...]
    knots: int = KNOTS

    def __post_init__(self) -> None:
        """Refuse what GROMACS has no term for."""
        if len(self.names) not in (1, 2):
            raise SettingsError(
                f"one map over {len(self.names)} torsions",
                expected="1 (tabulated dihedral) or 2 that share three beads (CMAP)",
                remedy="use a sum of maps (TorsionMaps) for more torsions",
            )
        if self.knots < 4:
            raise SettingsError(f"{self.knots} knots per torsion", expected="at least 4")

    @property
    def size(self) -> int:
        """Number of coefficients."""
        return int(self.knots ** len(self.names))

    @property
    def spacing(self) -> float:
        """Knot spacing in radians."""
        return 2.0 * math.pi / self.knots

    def design(self, s: FloatArray, axis: int | None = None) -> sparse.csr_array:
        """Rows that turn coefficients into values, or into the derivative along one torsion.

        Args:
            s: ``[M, n_s]`` radians.
            axis: torsion to differentiate by, or None for values.

        Returns:
            Sparse ``[M, size]``.
        """
        weights, columns = circle_weights(s[:, 0], self.knots, int(axis == 0))
        for i in range(1, len(self.names)):
            next_weights, next_columns = circle_weights(s[:, i], self.knots, int(axis == i))
            weights = (weights[:, :, None] * next_weights[:, None, :]).reshape(len(s), -1)
            columns = (columns[:, :, None] * self.knots + next_columns[:, None, :]).reshape(len(s), -1)
        return sparse_rows(weights, columns, self.size)

    def on_grid(self, coefficients: FloatArray, n: int, orders: tuple[int, ...] | None = None) -> FloatArray:
        """Values (or derivatives) at the points ``-pi + i * 2 pi / n`` of every torsion.

        Args:
            coefficients: ``[size]``.
            n: points per torsion.
            orders: derivative order per torsion; values by default.

        Returns:
            ``[n]`` or ``[n, n]``.
        """
        values = coefficients.reshape((self.knots,) * len(self.names))
        points = np.linspace(-math.pi, math.pi, n, endpoint=False, dtype=np.float64)
        for i, order in enumerate(orders or (0,) * len(self.names)):
            along = sparse_rows(*circle_weights(points, self.knots, order), self.knots).toarray()
            values = np.moveaxis(np.tensordot(along, values, axes=(1, i)), 0, i)
        return values

    def roughness(self, scale: float) -> sparse.csr_array:
        """Precision ``[size, size]`` of a smooth prior: second differences of standard deviation ``scale`` (kT)."""
        square, one = circle_roughness(self.knots, scale), sparse.eye_array(self.knots)
        return square if len(self.names) == 1 else sparse.kron(square, one) + sparse.kron(one, square)


@dataclass(frozen=True)
class TorsionMaps:
    """``G(s) = sum_m G_m(s_m)``: every torsion belongs to exactly one map, over itself alone or with a neighbour.

    Because no torsion is shared, the maps are independent of each other under ``exp(-G)``: the marginal of each
    is ``exp(-G_m)``, and both normalising and sampling go map by map.

    Attributes:
        grids: one per map.
        columns: for each map the columns of ``s`` it is a function of.
    """

    grids: tuple[TorsionGrid, ...]
    columns: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        """Refuse maps that share or miss a torsion."""
        sizes = [len(grid.names) for grid in self.grids]
        used = sorted(itertools.chain.from_iterable(self.columns))
        if sizes != [len(columns) for columns in self.columns] or used != list(range(sum(sizes))) or not used:
            raise SettingsError(
                f"maps over {sizes} torsions on the columns {self.columns}",
                expected="every torsion in exactly one map",
            )

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the torsions, in the order of ``s``."""
        named = {c: name for grid, columns in self._pairs for name, c in zip(grid.names, columns, strict=True)}
        return tuple(named[i] for i in range(self.n_s))

    @property
    def n_s(self) -> int:
        """Number of torsions."""
        return sum(map(len, self.columns))

    @property
    def _pairs(self) -> tuple[tuple[TorsionGrid, tuple[int, ...]], ...]:
        return tuple(zip(self.grids, self.columns, strict=True))

    @property
    def size(self) -> int:
        """Number of coefficients, all maps together."""
        return sum(grid.size for grid in self.grids)

    @cached_property
    def map_of(self) -> tuple[int, ...]:
        """For each torsion the map it belongs to."""
        found = {c: k for k, columns in enumerate(self.columns) for c in columns}
        return tuple(found[i] for i in range(self.n_s))

    def map_design(self, k: int, s: FloatArray, axis: int | None = None) -> sparse.csr_array:
        """:meth:`TorsionGrid.design` of map ``k`` at ``s [M, n_s]`` radians; ``axis``: one of its columns of ``s``."""
        columns = self.columns[k]
        return self.grids[k].design(s[:, columns], None if axis is None else columns.index(axis))

    def design(self, s: FloatArray, axis: int | None = None) -> sparse.csr_array:
        """Rows for the coefficients of all maps, one map after the other; see :meth:`TorsionGrid.design`."""
        parts = [
            self.map_design(k, s, axis)
            if axis is None or axis in self.columns[k]
            else sparse.csr_array((len(s), grid.size))
            for k, grid in enumerate(self.grids)
        ]
        return sparse.hstack(parts, format="csr")
