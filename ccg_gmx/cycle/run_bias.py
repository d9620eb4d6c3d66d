"""A finished run as a bias: its torsions, its surface, its temperature."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ccg_gmx.cycle.store import read_json
from ccg_gmx.errors import SettingsError, StoreError
from ccg_gmx.free_energy.surface_files import load_surface
from ccg_gmx.records import FreeEnergySurface


@dataclass(frozen=True)
class RunSurface:
    """What a run folder says about one or two torsions.

    Attributes:
        surface: f over them.
        torsions: name -> four atom numbers from 1, of all torsions of the run.
        file: the surface's file.
    """

    surface: FreeEnergySurface
    torsions: dict[str, tuple[int, ...]]
    file: Path


def load_run_surface(folder: Path, pair: tuple[str, ...] = ()) -> RunSurface:
    """Read the surface of a finished run.

    Args:
        folder: of ``ccg run``.
        pair: torsions of the surface wanted, where the run has a surface for each pair.

    Raises:
        StoreError: if the run is not finished or its files are gone.
        SettingsError: if there is no such pair, or it must be chosen.
        CcgError: if the surface cannot be read.
    """
    torsions = run_torsions(folder)
    names = tuple(torsions)
    if unknown := [name for name in pair if name not in torsions]:
        raise SettingsError(f"--pair names {unknown[0]}", expected=f"torsions among {', '.join(names)}")
    if len(names) <= 2:
        file = folder / "fes.npz"
        if pair and sorted(pair) != sorted(names):
            raise SettingsError(f"--pair {','.join(pair)}", expected=f"{','.join(names)}, or none")
    else:
        if len(pair) != 2:
            raise SettingsError(
                f"{folder} has {len(names)} torsions, and a surface for each pair",
                remedy=f"choose one: --pair {names[0]},{names[1]}",
            )
        ordered = sorted(pair, key=names.index)
        file = folder / f"fes_{ordered[0]}_{ordered[1]}.npz"
    if not file.is_file():
        raise StoreError(f"{file} is gone", remedy=f"`ccg report {folder}` or `ccg run` with the same --out makes it")
    return RunSurface(load_surface(file), torsions, file)


def run_torsions(folder: Path) -> dict[str, tuple[int, ...]]:
    """Torsions of a run, name -> four atom numbers from 1.

    Raises:
        StoreError: if the run is not finished, or is of another version.
    """
    packed = folder / "results.json"
    if not packed.is_file():
        raise StoreError(
            f"{folder} has no results.json",
            expected="the folder of a finished run",
            remedy="`ccg status` shows where it stands; `ccg run` with the same --out resumes it",
        )
    try:
        content: dict[str, Any] = read_json(packed)
        return {str(name): tuple(map(int, atoms)) for name, atoms in content["workflow"]["coarse"]["torsions"].items()}
    except (KeyError, TypeError, AttributeError, ValueError):
        raise StoreError(f"{packed} is of another version of ccg_gmx", remedy="run `ccg run` again") from None
