"""Files of surfaces over any axes: PLUMED grids (kJ/mol, units of the variables) and .npz (kT, with errors).

Surfaces over torsions that share one grid are written as ``surface_files`` writes them, so that every other command
reads them; the .npz of other surfaces has other array names, and is refused there by name.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ccg_gmx.free_energy.axes import Axis, GridSurface, grid_of, is_torsional, torsion_surface
from ccg_gmx.free_energy.surface_files import (
    plumed_axis,
    plumed_rows,
    read_npz,
    save_surface,
    write_npz,
    write_text,
)
from ccg_gmx.units import thermal_energy

GRID_VERSION = 1


def save_grid_surface(surface: GridSurface, path: Path) -> None:
    """Write f and its error in kT as float64 .npz (no pickled objects)."""
    if is_torsional(surface.axes):
        save_surface(torsion_surface(surface), path)
        return
    write_npz(
        path,
        grid_version=np.array(GRID_VERSION),
        free_energy=surface.f,
        error=surface.error,
        names=np.array(surface.names),
        low=np.array([axis.low for axis in surface.axes]),
        high=np.array([axis.high for axis in surface.axes]),
        periodic=np.array([axis.periodic for axis in surface.axes]),
        period=np.array([np.nan if axis.period is None else axis.period for axis in surface.axes]),
        temperature_K=np.array(surface.temperature_K),
    )


def load_grid_surface(path: Path) -> GridSurface:
    """Read what ``save_grid_surface`` wrote for general axes.

    Raises:
        CcgError: if the file is not one of these.
    """
    keys = ("grid_version", "free_energy", "error", "names", "low", "high", "periodic", "period", "temperature_K")
    data = read_npz(path, keys, GRID_VERSION, "grid_version")
    axes = tuple(
        Axis(
            str(data["names"][k]), float(data["low"][k]), float(data["high"][k]), points, bool(data["periodic"][k]),
            None if np.isnan(data["period"][k]) else float(data["period"][k]),
        )
        for k, points in enumerate(data["free_energy"].shape)
    )  # fmt: skip
    return GridSurface(data["free_energy"], data["error"], axes, float(data["temperature_K"]))


def write_grid(surface: GridSurface, path: Path, field: str = "file.free", digits: int = 9) -> None:
    """Write a PLUMED grid file in kJ/mol, the first variable fastest, without derivatives; inf where unknown.

    Args:
        surface: what to write.
        path: file.
        field: name of the value; PLUMED's ``sum_hills`` writes ``file.free``, ``EXTERNAL`` reads ``LABEL.bias``.
        digits: decimals.
    """
    energy = surface.f * thermal_energy(surface.temperature_K)
    columns = [*grid_of(surface.axes).T, energy.ravel()]
    header = []
    for axis in surface.axes:
        low, high = ("-pi", "pi") if axis.torsion else (f"{axis.low:.9g}", f"{axis.high:.9g}")
        header += plumed_axis(axis.name, low, high, axis.points, axis.periodic)
    write_text(path, plumed_rows([*surface.names, field], header, columns, energy.shape, digits))
