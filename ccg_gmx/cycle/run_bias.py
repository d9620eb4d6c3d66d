"""A finished run as a bias: its torsions, its surface, its temperature; and what its coarse model leaves out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ccg_gmx.cycle.finished import FinishedRun
from ccg_gmx.errors import SettingsError, StoreError
from ccg_gmx.free_energy.surface_files import load_surface
from ccg_gmx.free_energy.surface_fit import SurfaceFit
from ccg_gmx.potential.coarse import CoarsePotential
from ccg_gmx.potential.coupling import Coupling
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


@dataclass(frozen=True)
class RunCoupling:
    """What the force field of a run leaves out.

    Attributes:
        coupling: surface and maps.
        torsions: name -> four bead numbers from 1, of all torsions of the run.
        folder: the force field.
    """

    coupling: Coupling
    torsions: dict[str, tuple[int, ...]]
    folder: Path


def load_run_coupling(folder: Path) -> RunCoupling:
    """Read surface and coarse potential of a finished run.

    Args:
        folder: of ``ccg run``.

    Raises:
        StoreError: if the run is not finished or its files are gone.
        CcgError: if they cannot be read.
    """
    run = FinishedRun.open(folder)
    chain = [atom for (atom,) in run.numbered("beads").values()]
    torsions = {name: tuple(1 + chain.index(atom) for atom in four) for name, four in run.numbered("torsions").items()}
    fit = run.stage("surface") / "fit.npz"
    potential = run.stage("coarse_fit") / "potential.npz"
    for file in (fit, potential, folder / "forcefield" / "topol.top"):
        if not file.is_file():
            raise StoreError(f"{file} is gone", remedy="`ccg run` with the same --out makes it again")
    return RunCoupling(Coupling(SurfaceFit.load(fit), CoarsePotential.load(potential)), torsions, folder / "forcefield")


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
    return FinishedRun.open(folder).numbered("torsions")
