"""From the folders of a finished run to the data of its report."""

from __future__ import annotations

import numpy as np

from ccg_gmx.cycle.stages.coarse import load_coarse_run
from ccg_gmx.cycle.stages.draws import load_draws
from ccg_gmx.cycle.summary import restored_distributions
from ccg_gmx.cycle.turns import Results
from ccg_gmx.cycle.views import coarse_surfaces, load_fit, references, shown_surfaces
from ccg_gmx.free_energy.joint_fit import PointEstimates
from ccg_gmx.free_energy.surface import histogram_surface
from ccg_gmx.free_energy.torsion_grid import grid_points, shifted
from ccg_gmx.potential.coarse import CoarsePotential
from ccg_gmx.records import FloatArray, FreeEnergySurface, ReportData, WeightedDraws


def gather(results: Results, summary: dict[str, object]) -> ReportData:
    """Load everything the report shows.

    Args:
        results: folders of the final stages.
        summary: content of summary.json.
    """
    workflow = results.workflow
    potential = CoarsePotential.load(results.coarse_fit / "potential.npz")
    shown = shown_surfaces(load_fit(results.surface), workflow)
    axes, surface = next(iter(shown.items()))
    found = references(workflow)
    coarse = coarse_surfaces(load_coarse_run(results.coarse), workflow, workflow.coarse_md.kde_degrees)
    draws = [record for folder in results.draws for record in load_draws(folder)]
    return ReportData(
        summary=summary,
        surface=surface,
        raw_surface=raw_surface(draws, surface) if len(shown) == 1 else None,
        reference=found[axes].surface if axes in found else None,
        coarse_surface=coarse[axes],
        losses=_losses(results),
        log_w=max((record.log_w for record in draws), key=np.size),
        distributions=restored_distributions(results),
        turns=[turn.row() for turn in results.turns],
        coarse_terms=_terms(potential),
        coarse_map=potential.grid(workflow.cycle.grid) if len(workflow.coarse.torsions) == 2 else None,
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


def _terms(potential: CoarsePotential) -> dict[str, tuple[FloatArray, FloatArray]]:
    """Potential of every bond and angle, and of the torsion where there is only one."""
    tables = {}
    torsions = potential.basis.torsions.names
    if len(torsions) == 1:
        tables[f"torsion {torsions[0]}"] = (grid_points(200), potential.grid(200))
    for index, term in enumerate(potential.basis.terms):
        margin = 0.2 * (term.hi - term.lo)
        grid = np.linspace(term.lo - margin, term.hi + margin, 200)
        tables[term.coordinate.name] = (grid, potential.term_table(index, grid)[0])
    return tables
