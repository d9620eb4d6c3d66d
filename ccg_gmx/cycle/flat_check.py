"""The flat-histogram test on a user's files: a finished run, and COLVAR files of a simulation under its -f(s)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ccg_gmx.cycle.run_bias import load_run_surface
from ccg_gmx.errors import SettingsError
from ccg_gmx.free_energy.flatness import LEVEL_KT, CellTable, Flatness, flatness
from ccg_gmx.free_energy.surface_files import load_surface
from ccg_gmx.molecule.colvar_runs import read_colvars
from ccg_gmx.molecule.plumed_table import read_table
from ccg_gmx.molecule.torsion_bias import TorsionBias
from ccg_gmx.records import FloatArray, FreeEnergySurface
from ccg_gmx.units import thermal_energy

BIAS_COLUMN = "static.bias"
"""Column that inputs of ``ccg plumed input`` print."""

_SAME_KT = 0.3


def check_flatness(
    source: Path,
    colvars: Sequence[Path],
    *,
    pair: tuple[str, ...] = (),
    columns: Sequence[str] = (),
    bias: str | None = None,
    level_kT: float = LEVEL_KT,
    start: float = 0.0,
    cells: int | None = None,
) -> tuple[Flatness, CellTable]:
    """Judge the surface of a run by biased frames.

    Args:
        source: run folder, or an .npz of a surface.
        colvars: PLUMED's files of the biased run.
        pair: torsions of the surface, where the run has several.
        columns: columns of the torsions, radians; empty: named as the torsions.
        bias: column of the bias in kJ/mol, checked against -f; None: ``BIAS_COLUMN`` where all files have it.
        level_kT: judge f below this.
        start: leave out rows before this time, ps.
        cells: per torsion; None for the default.

    Raises:
        SettingsError: options that do not fit, or a bias that is not -f.
        TrajectoryError: whatever of a file does not fit.
        CcgError: a surface that cannot be read or judged.
    """
    surface = load_surface(source) if source.suffix == ".npz" else load_run_surface(source, pair).surface
    names = list(columns or surface.names)
    if len(names) != surface.f.ndim:
        raise SettingsError(f"{len(names)} columns", expected=f"one for each of {', '.join(surface.names)}")
    if bias is None and all(BIAS_COLUMN in read_table(path).fields for path in colvars):
        bias = BIAS_COLUMN
    read = read_colvars(colvars, [*names, *([bias] if bias else [])], start=start)
    s = np.asarray(read.values[:, : len(names)], dtype=np.float64)
    if np.abs(s).max() > np.pi + 1e-3:
        raise SettingsError(f"{', '.join(names)} reach {np.abs(s).max():.3g}", expected="torsions in radians")
    if bias:
        _require_same_bias(surface, s, read.values[:, -1], bias, level_kT)
    return flatness(surface, s, read.run, level_kT=level_kT, cells=cells)


def _require_same_bias(
    surface: FreeEnergySurface, s: FloatArray, energy: FloatArray, column: str, level_kT: float
) -> None:
    """The bias that acted must be -f but for a constant, wherever f is judged."""
    f = np.where(np.isfinite(surface.f), np.minimum(surface.f, level_kT + 4), level_kT + 4)
    dims = f.ndim
    spline = TorsionBias([(0, 1, 2, 3), (1, 2, 3, 4)][:dims], [(tuple(range(dims)), f)])
    wanted = spline.energy(s)
    inside = wanted < level_kT
    if not inside.any():
        return
    off = energy[inside] / thermal_energy(surface.temperature_K) + wanted[inside]
    spread = float(np.std(off))
    if spread > _SAME_KT:
        raise SettingsError(
            f"{column} is not -f of this surface: it differs by {spread:.2f} kT rms where f < {level_kT:g} kT",
            expected=f"a bias of `ccg plumed input --method static --run`, with a --cap of at least {level_kT + 1:g}",
            remedy="give the COLVAR of that run, or a lower --level",
        )
