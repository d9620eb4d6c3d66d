"""Periodic torsion grids, boxes on them, and the surface record with its minimum at zero."""

from __future__ import annotations

import numpy as np
from pydantic import Field, field_validator

from ccg_gmx.errors import CcgError
from ccg_gmx.records import FloatArray, FreeEnergySurface
from ccg_gmx.settings import Settings
from ccg_gmx.units import DEGREES_PER_RADIAN

BoolArray = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]


class Basin(Settings):
    """A named box in the torsions, half-open on each axis, that may cross +-180 degrees; unnamed torsions are free."""

    name: str = Field(description="name of the state, C7eq for instance", min_length=1)
    ranges: dict[str, tuple[float, float]] = Field(
        description="torsion name -> (from, to) in degrees, going upwards; (150, -150) crosses 180; a torsion left out "
        "is unrestricted",
        min_length=1,
    )

    @field_validator("ranges")
    @classmethod
    def _width(cls, ranges: dict[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
        for axis, (low, high) in ranges.items():
            if not (np.isfinite([low, high]).all() and abs(high - low) <= 360 and low != high):
                raise ValueError(f"range of {axis} is ({low:g}, {high:g}) degrees; expected two angles within one turn")
        return ranges

    def mask(self, s: FloatArray, names: tuple[str, ...]) -> BoolArray:
        """``[...]`` True where ``s [..., n_s]`` (radians; axes in the order of ``names``) lies in the basin.

        Raises:
            CcgError: if the basin names an unknown torsion.
        """
        self.require_known(names)
        inside = np.ones(s.shape[:-1], dtype=np.bool_)
        for axis, name in enumerate(names):
            inside &= self.axis_mask(s[..., axis], name)
        return inside

    def axis_mask(self, angle: FloatArray, name: str) -> BoolArray:
        """``[...]`` True where that torsion (radians) lies in the basin's range, everywhere if it has none."""
        if name not in self.ranges:
            return np.ones(angle.shape, dtype=np.bool_)
        low, high = self.ranges[name]
        width = 360.0 if abs(high - low) == 360 else (high - low) % 360
        return (angle * DEGREES_PER_RADIAN - low) % 360 < width

    def require_known(self, names: tuple[str, ...]) -> None:
        """Check that the basin names some of these torsions and no other.

        Raises:
            CcgError: if it names another.
        """
        if unknown := sorted(set(self.ranges) - set(names)):
            raise CcgError(
                f"basin {self.name} names the torsions {unknown}", expected=f"some of {list(names)}, and no others"
            )


def grid_points(n: int) -> FloatArray:
    """``[n]`` radians: ``-pi + i 2 pi / n``, PLUMED's convention for a periodic axis."""
    return np.asarray(-np.pi + 2 * np.pi / n * np.arange(n), dtype=np.float64)


def grid(n: int, dims: int) -> FloatArray:
    """``[n**dims, dims]`` radians, the last axis fastest (as ``f.ravel()``)."""
    axes = np.meshgrid(*[grid_points(n)] * dims, indexing="ij")
    return np.stack([axis.ravel() for axis in axes], axis=-1)


def shifted(
    f: FloatArray, names: tuple[str, ...], temperature_K: float, error: FloatArray | None = None
) -> FreeEnergySurface:
    """Surface with its minimum at 0; errors default to nan (unknown).

    Args:
        f: ``[n] * d`` kT, inf where nothing is known.
        names: one per axis.
        temperature_K: temperature.
        error: same shape, kT.

    Raises:
        CcgError: if names do not fit, f holds nan, or nothing is finite.
    """
    if len(names) != f.ndim or np.isnan(f).any() or not np.isfinite(f).any():
        raise CcgError(
            f"a surface with {f.ndim} axes, {len(names)} names and {int(np.isfinite(f).sum())} finite points",
            expected="a name per axis, no nan, and at least one finite point",
        )
    unknown = np.full_like(f, np.nan)
    return FreeEnergySurface(f - f.min(), unknown if error is None else error, names, temperature_K)
