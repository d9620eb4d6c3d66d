"""From the folders of a finished run to the data of its report."""

from __future__ import annotations

import numpy as np

from ccg_gmx.cycle.stages.coarse import load_coarse_run
from ccg_gmx.cycle.stages.draws import load_draws
from ccg_gmx.cycle.stages.hidden_modes import load_check, load_fine_frames
from ccg_gmx.cycle.summary import restored_distributions
from ccg_gmx.cycle.turns import Results
from ccg_gmx.cycle.views import coarse_surfaces, load_fit, references, shown_surfaces
from ccg_gmx.free_energy.coverage import coverage
from ccg_gmx.free_energy.joint_fit import PointEstimates
from ccg_gmx.free_energy.surface import histogram_surface, load_surface
from ccg_gmx.free_energy.torsion_grid import grid_points, shifted
from ccg_gmx.potential.coarse import CoarsePotential
from ccg_gmx.records import FloatArray, FreeEnergySurface, WeightedDraws
from ccg_gmx.report.data import HiddenCheck, ReportData, SurfaceView


def gather(results: Results, summary: dict[str, object]) -> ReportData:
    """Load everything the report shows.

    Args:
        results: folders of the final stages.
        summary: content of summary.json.
    """
    workflow = results.workflow
    potential = CoarsePotential.load(results.coarse_fit / "potential.npz")
    draws = [record for folder in results.draws for record in load_draws(folder)]
    fine_s = load_fine_frames(results.split).s
    whole = load_surface(results.surface / "surface.npz")
    radius = workflow.diagnostics.seen_radius_degrees
    check = None if results.hidden_modes is None else HiddenCheck(*load_check(results.hidden_modes))
    return ReportData(
        summary=summary,
        views=_views(results, draws),
        losses=_losses(results),
        draws=tuple(draws),
        fine_s=fine_s,
        coverage=coverage(whole, fine_s, radius, workflow.basins),
        hidden=check,
        distributions=restored_distributions(results),
        turns=[turn.row() for turn in results.turns],
        coarse_terms=_terms(potential),
        coarse_maps=_maps(potential, workflow.cycle.grid),
    )


def _views(results: Results, draws: list[WeightedDraws]) -> tuple[SurfaceView, ...]:
    workflow = results.workflow
    shown = shown_surfaces(load_fit(results.surface), workflow)
    found = references(workflow)
    coarse = coarse_surfaces(load_coarse_run(results.coarse), workflow, workflow.coarse_md.kde_degrees)
    return tuple(
        SurfaceView(
            surface=surface,
            reference=found[axes].surface if axes in found else None,
            coarse=coarse[axes],
            # A marginal has no such estimate: the draws of a pair's bin differ in the other torsions.
            raw=raw_surface(draws, surface) if len(shown) == 1 else None,
        )
        for axes, surface in shown.items()
    )


def raw_surface(draws: list[WeightedDraws], like: FreeEnergySurface) -> FreeEnergySurface:
    """Return -ln of the mean weight of every bin, without any fit; inf where no coarse point fell.

    Weights are averaged over the draws and over the points of a bin, never their logarithms (THEORY section 3).
    """
    estimates = PointEstimates.of(draws)
    log_weights = np.where(np.isneginf(estimates.log_z), -np.inf, estimates.log_z)
    n, names, temperature = len(like.f), like.names, like.temperature_K
    total = histogram_surface(estimates.s, n, names, temperature, log_weights)
    count = histogram_surface(estimates.s, n, names, temperature)
    with np.errstate(invalid="ignore"):
        f = np.where(np.isfinite(total.f), total.f - count.f, np.inf)
    return shifted(f, names, temperature)


def _losses(results: Results) -> dict[str, FloatArray]:
    """Loss curves of the first member: likelihood training, then every turn's training with energies."""
    curves: dict[str, FloatArray] = {}
    folders = [folder for folder in results.used if folder.name.startswith(("likelihood-", "energy-"))]
    turn = 0
    for folder in folders[:: results.workflow.cycle.members]:
        stage = folder.name.split("-")[0]
        prefix = stage if stage == "likelihood" else f"energy turn {turn}"
        turn += stage == "energy"
        with np.load(folder / "losses.npz", allow_pickle=False) as data:
            curves.update({f"{prefix} {name}": data[name] for name in data.files if data[name].size > 1})
    return curves


def _maps(potential: CoarsePotential, n: int) -> dict[tuple[str, ...], FloatArray]:
    """Every torsion-pair grid of the coarse model, kJ/mol."""
    grids = enumerate(potential.basis.maps.grids)
    return {grid.names: potential.map_grid(k, n) for k, grid in grids if len(grid.names) == 2}


def _terms(potential: CoarsePotential) -> dict[str, tuple[FloatArray, FloatArray]]:
    """Potential of every torsion that has a table of its own, and of every bond and angle."""
    tables = {}
    for k, single in enumerate(potential.basis.maps.grids):
        if len(single.names) == 1:
            tables[f"torsion {single.names[0]}"] = (grid_points(200), potential.map_grid(k, 200))
    for index, term in enumerate(potential.basis.terms):
        margin = 0.2 * (term.hi - term.lo)
        grid = np.linspace(term.lo - margin, term.hi + margin, 200)
        tables[term.coordinate.name] = (grid, potential.term_table(index, grid)[0])
    return tables
