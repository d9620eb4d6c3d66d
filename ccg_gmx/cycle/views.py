"""What a surface is looked at through: itself where one or two torsions are coarse, else its marginal over every pair.

Pictures, files and comparisons with a reference all go through here, so that no other place asks how many torsions
there are.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

from ccg_gmx.cycle.config import Workflow
from ccg_gmx.errors import CcgError
from ccg_gmx.free_energy.reference import Reference, load_reference_set
from ccg_gmx.free_energy.surface import histogram_surface
from ccg_gmx.free_energy.surface_fit import SurfaceFit
from ccg_gmx.records import CoarseRun, FreeEnergySurface

Names = tuple[str, ...]
SHOWN_GRID = 72
"""Points per torsion of marginals without a reference; with one, its own."""


def shown_axes(names: Sequence[str]) -> list[Names]:
    """Return the sets of torsions that are shown together."""
    return [tuple(names)] if len(names) <= 2 else list(itertools.combinations(names, 2))


def shown_surfaces(
    fit: SurfaceFit, workflow: Workflow, axes: Sequence[Names] | None = None
) -> dict[Names, FreeEnergySurface]:
    """Return the surface or its marginals over each set of torsions, with errors."""
    names, temperature, grid = tuple(workflow.coarse.torsions), workflow.temperature_K, workflow.cycle.grid
    if len(names) <= 2:
        return {names: fit.surface(grid, names, temperature)}
    return {
        shown: fit.marginal(tuple(names.index(name) for name in shown), grid, names, temperature)
        for shown in axes or shown_axes(names)
    }


def references(workflow: Workflow) -> dict[Names, Reference]:
    """Return the reference of each set of torsions; empty where the workflow names none.

    Raises:
        CcgError: if it is of other torsions, another grid or another temperature.
    """
    if workflow.reference is None:
        return {}
    names, grid = tuple(workflow.coarse.torsions), workflow.cycle.grid
    wanted = shown_axes(names)
    found = load_reference_set(workflow.reference)
    for axes, reference in found.items():
        surface = reference.surface
        if not any(set(axes) <= set(shown) for shown in wanted) or (len(names) <= 2 and axes not in wanted):
            raise CcgError(
                f"it is of the torsions {', '.join(axes)}", expected=" or ".join(", ".join(shown) for shown in wanted)
            )
        if surface.f.shape != (grid,) * len(axes) or surface.temperature_K != workflow.temperature_K:
            raise CcgError(
                f"it has a grid of {surface.f.shape} at {surface.temperature_K:g} K",
                expected=f"{grid} points per torsion (cycle.grid) at {workflow.temperature_K:g} K",
            )
    # A set may hold single torsions too: they are marginals of the pairs and say nothing new.
    return {axes: found[axes] for axes in wanted if axes in found}


def coarse_surfaces(run: CoarseRun, workflow: Workflow, kde_degrees: float) -> dict[Names, FreeEnergySurface]:
    """Return the free energies of the coarse run's histograms over each set of torsions."""
    names = tuple(workflow.coarse.torsions)
    return {
        axes: histogram_surface(
            run.s[:, [names.index(name) for name in axes]],
            workflow.cycle.grid,
            axes,
            workflow.temperature_K,
            kde_degrees=kde_degrees,
        )
        for axes in shown_axes(names)
    }


def load_fit(folder: Path) -> SurfaceFit:
    """Return the fit of a surface stage."""
    return SurfaceFit.load(folder / "fit.npz")
