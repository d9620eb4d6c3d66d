"""What ``ccg fes colvar`` and ``hills`` print and leave: dictionaries for machines, words, files, pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ccg_gmx.commands.fes_text import weights_report, weights_text
from ccg_gmx.engine.user_colvar import UserColvar
from ccg_gmx.errors import StoreError
from ccg_gmx.free_energy.axes import Axis, Box, GridSurface
from ccg_gmx.free_energy.colvar import ColvarSurface
from ccg_gmx.free_energy.compare import save_report
from ccg_gmx.free_energy.grid_files import save_grid_surface, write_grid
from ccg_gmx.free_energy.hills import HillsSurface
from ccg_gmx.free_energy.settling import Settling
from ccg_gmx.molecule.hills_file import Hills
from ccg_gmx.report.grid_plots import plot_grid_surface, plot_settling
from ccg_gmx.units import thermal_energy

DEFAULT_TEMPERATURE_K = 300.0


def temperature_note(given: float | None) -> list[str]:
    """A word about the temperature when nobody gave it: PLUMED's files do not say."""
    return [] if given else [f"temperature taken as {DEFAULT_TEMPERATURE_K:g} K; give --temperature if it was another"]


def _axes_report(axes: Sequence[Axis]) -> list[dict[str, Any]]:
    return [
        {"name": a.name, "low": a.low, "high": a.high, "points": a.points, "periodic": a.periodic} for a in axes
    ]  # fmt: skip


def _settling_report(settled: Settling, kT: float) -> dict[str, Any]:
    return {
        "x": settled.x.tolist(),
        "label": settled.label,
        "rmsd_kT": settled.rmsd.tolist(),
        "delta_f_kJ_mol": {name: (values * kT).tolist() for name, values in settled.delta_f.items()},
    }


def colvar_report(found: ColvarSurface, read: UserColvar, notes: Sequence[str]) -> dict[str, Any]:
    """What ``ccg fes colvar`` found, as plain numbers."""
    kT = thermal_energy(found.surface.temperature_K)
    return {
        "axes": _axes_report(found.surface.axes),
        "temperature_K": found.surface.temperature_K,
        "frames": found.frames,
        "runs": found.runs,
        "off_grid": found.off_grid,
        "biased": read.u_bias is not None or read.windows is not None,
        **weights_report(found, kT),
        "windows": None if read.windows is None else {"f_kJ_mol": (read.windows.f * kT).tolist()},
        "settling": _settling_report(found.settling, kT),
        "notes": [*read.notes, *notes],
        "warnings": list(found.warnings),
    }


def colvar_text(report: dict[str, Any], written: str) -> str:
    """The report of ``ccg fes colvar`` in words."""
    windows = report["windows"]
    runs = f"{report['runs']} run{'s' * (report['runs'] > 1)}"
    lines = [f"{report['frames']} frames of {runs} at {report['temperature_K']:g} K", *report["notes"]]
    if windows is not None:
        lines.append(f"{len(windows['f_kJ_mol'])} umbrella windows combined by MBAR")
    if report["off_grid"]:
        lines.append(f"frames beyond the ranges of --cv, not in the surface: {report['off_grid']}")
    lines += weights_text(report)
    lines += [f"warning: {word}" for word in report["warnings"]]
    return "\n".join([*lines, f"written: {written}"])


def hills_report(found: HillsSurface, hills: Hills, notes: Sequence[str]) -> dict[str, Any]:
    """What ``ccg fes hills`` found, as plain numbers."""
    settled, kT = found.settling, thermal_energy(found.surface.temperature_K)
    return {
        "axes": _axes_report(found.surface.axes),
        "temperature_K": found.surface.temperature_K,
        "hills": len(hills.heights),
        "biasfactor": hills.biasfactor,
        "multivariate": hills.multivariate,
        "delta_f": [
            {
                "first": settled.first,
                "second": name,
                "kJ_mol": float(values[-1] * kT),
                "f_kT": float(values[-1]),
                "error_kT": None,
                "second_half_range_kJ_mol": settled.drift(name) * kT,
            }
            for name, values in settled.delta_f.items()
        ],
        "settling": _settling_report(settled, kT),
        "notes": [*hills.notes, *notes],
        "warnings": _hills_warnings(found),
    }


def _hills_warnings(found: HillsSurface) -> list[str]:
    words = []
    if found.cut > 0.01:
        words.append(
            f"tilted hills are cut off at up to {found.cut:.0%} of their height, as PLUMED does on grids; "
            "--whole-hills sums them whole"
        )
    for name, values in found.settling.delta_f.items():
        if not math.isfinite(values[-1]):
            words.append(f"{name} or {found.settling.first} has no point on the grid")
    return words


def hills_text(report: dict[str, Any], written: str) -> str:
    """The report of ``ccg fes hills`` in words."""
    gamma = report["biasfactor"]
    kind = f"well-tempered, bias factor {gamma:g}" if gamma > 1 else "not well-tempered"
    lines = [f"{report['hills']} hills, {kind}", *report["notes"]]
    for d in report["delta_f"]:
        spread = f"range {d['second_half_range_kJ_mol']:.2f} over the second half"
        lines.append(f"delta_f, {d['second']} - {d['first']}: {d['kJ_mol']:.2f} kJ/mol ({spread})")
    lines += [f"warning: {word}" for word in report["warnings"]]
    return "\n".join([*lines, f"written: {written}"])


def write_files(
    surface: GridSurface, settled: Settling, boxes: Sequence[Box], report: dict[str, Any], prefix: Path, *, plot: bool
) -> str:
    """Write PREFIX.npz, .dat and .json, and with ``plot`` the pictures; say what was written.

    Raises:
        StoreError: if something cannot be written.
    """

    def named(ending: str) -> Path:
        return prefix.with_name(f"{prefix.name}{ending}")

    try:
        prefix.parent.mkdir(parents=True, exist_ok=True)
        save_grid_surface(surface, named(".npz"))
        save_report(named(".npz"), boxes, report)
        write_grid(surface, named(".dat"))
    except OSError as error:
        raise StoreError(f"{prefix} cannot be written ({error.strerror})", remedy="choose another --out") from None
    if not plot:
        return f"{prefix}.npz, .dat, .json"
    plot_grid_surface(surface, named(".png"))
    plot_settling(settled, surface.axes, thermal_energy(surface.temperature_K), named("_settling.png"))
    return f"{prefix}.npz, .dat, .json, .png, _settling.png"
