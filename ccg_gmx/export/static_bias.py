"""A static bias -f(s) on torsions from a free energy surface: capped, splined, as a PLUMED grid or as mean gradients.

Between its points the bias is the periodic cubic spline, tensor product for two torsions, that
:class:`~ccg_gmx.molecule.torsion_bias.TorsionBias` evaluates; every format that is written samples that one function.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.interpolate import CubicSpline

from ccg_gmx.errors import SettingsError
from ccg_gmx.free_energy.surface_files import plumed_axis, plumed_rows
from ccg_gmx.records import FloatArray, FreeEnergySurface
from ccg_gmx.units import thermal_energy

CAP_KT = 15.0
"""Default height up to which the surface is compensated.

f is judged below 8 kT, but a run that must cross what is left of a pass takes long. The pass between the basins of
alanine dipeptide is at 14.7 kT: under a cap of 10 kT frames stayed correlated over 420 ps, under 15 kT over 6 ps."""

GRID_POINTS = 200
"""Least points per torsion of a PLUMED grid: PLUMED's own interpolation is less smooth than ours."""

_BLEND_KT = 1.0


@dataclass(frozen=True)
class StaticBias:
    """V(s) = -f(s), f from its minimum 0 up to a cap: V goes from 0 at the minimum down to -cap.

    Attributes:
        values: ``[n]`` or ``[n, n]`` kJ/mol at -pi + i 2 pi / n.
        names: one or two torsions.
        temperature_K: temperature of the surface.
        cap_kT: height, in kT, from which on the bias is constant.
    """

    values: FloatArray
    names: tuple[str, ...]
    temperature_K: float
    cap_kT: float

    def sampled(self, positions: FloatArray, derivative: int | None = None) -> FloatArray:
        """The spline on a grid.

        Args:
            positions: ``[m]`` radians in [-pi, pi], the same for every torsion.
            derivative: torsion to differentiate by; None for the value.

        Returns:
            ``[m]`` or ``[m, m]`` kJ/mol, per radian for a derivative.
        """
        values = self.values
        for axis in range(values.ndim):
            values = _spline(values, axis, positions, 1 if derivative == axis else 0)
        return values

    def mean_gradients(self, bins: int) -> list[FloatArray]:
        """Mean of each derivative over its bin, at the middle of the bins of the other torsion.

        Args:
            bins: bins per torsion, from -pi on.

        Returns:
            One ``[bins]`` or ``[bins, bins]`` per torsion, kJ/mol/rad.
        """
        edges = np.linspace(-np.pi, np.pi, bins + 1)
        middles = 0.5 * (edges[1:] + edges[:-1])
        found = []
        for own in range(self.values.ndim):
            values = self.values
            for axis in range(values.ndim):
                values = _spline(values, axis, edges if axis == own else middles, 0)
            found.append(np.diff(values, axis=own) / (edges[1] - edges[0]))
        return found


def static_bias(surface: FreeEnergySurface, cap_kT: float = CAP_KT) -> StaticBias:
    """The bias that flattens a surface up to a height.

    f counts as it is up to cap - 1 kT, and goes smoothly to the constant cap at cap + 1 kT, so that forces have no jump
    there; places where nothing is known count as higher than the cap.

    Args:
        surface: over one or two torsions, kT.
        cap_kT: height in kT.

    Raises:
        SettingsError: if there are more torsions, or the cap is not above 1 kT.
    """
    if surface.f.ndim > 2:
        raise SettingsError(
            f"a surface over {surface.f.ndim} torsions",
            expected="one or two: EXTERNAL grids and Colvars grids hold no more with good resolution",
            remedy="choose a pair of them",
        )
    if not (math.isfinite(cap_kT) and cap_kT > _BLEND_KT):
        raise SettingsError(f"a cap of {cap_kT:g} kT", expected=f"more than {_BLEND_KT:g} kT")
    values = -thermal_energy(surface.temperature_K) * capped(surface.f, cap_kT)
    return StaticBias(values, surface.names, surface.temperature_K, cap_kT)


def capped(f: FloatArray, cap_kT: float) -> FloatArray:
    """``f`` in kT with a smooth end at the cap (continuous slope); inf becomes the cap."""
    above = np.where(np.isfinite(f), f, cap_kT + _BLEND_KT) - (cap_kT - _BLEND_KT)
    bent = np.clip(above, 0.0, 2 * _BLEND_KT)
    return np.asarray(cap_kT - _BLEND_KT + np.minimum(above, 0.0) + bent - bent**2 / (4 * _BLEND_KT))


def plumed_grid_text(bias: StaticBias, label: str, points: int | None = None) -> str:
    """The bias as a grid for ``EXTERNAL``: radians, kJ/mol, with derivatives, the first torsion fastest.

    Args:
        bias: what to write.
        label: label of the EXTERNAL action, which names the field.
        points: per torsion; None for the surface's own, refined to at least ``GRID_POINTS``.
    """
    own = len(bias.values)
    n = points or own * math.ceil(GRID_POINTS / own)
    dims = bias.values.ndim
    s: FloatArray = np.asarray(-np.pi + 2 * np.pi / n * np.arange(n), dtype=np.float64)
    columns = [axis.ravel() for axis in np.meshgrid(*(s,) * dims, indexing="ij")]
    columns += [bias.sampled(s, order).ravel() for order in (None, *range(dims))]
    header = [line for name in bias.names for line in plumed_axis(name, "-pi", "pi", n, True)]
    fields = [*bias.names, f"{label}.bias", *(f"der_{name}" for name in bias.names)]
    return plumed_rows(fields, header, columns, (n,) * dims)


def _spline(values: FloatArray, axis: int, positions: FloatArray, derivative: int) -> FloatArray:
    n = values.shape[axis]
    closed = np.concatenate([values, np.take(values, [0], axis=axis)], axis=axis)
    knots = -np.pi + 2 * np.pi / n * np.arange(n + 1)
    return np.asarray(CubicSpline(knots, closed, axis=axis, bc_type="periodic")(positions, derivative))
