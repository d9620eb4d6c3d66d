"""What a run says about itself: the judgement of each turn, summary.json and the data of the report."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ccg_gmx.cycle.restored_scores import restored_scores
from ccg_gmx.cycle.stages.coarse import load_coarse_run
from ccg_gmx.cycle.stages.draws import HeldOut, load_draws, load_held_out
from ccg_gmx.cycle.stages.fine import load_split
from ccg_gmx.cycle.stages.hidden_modes import load_check, load_fine_frames
from ccg_gmx.cycle.store import EVALUATIONS, read_json
from ccg_gmx.cycle.system import System
from ccg_gmx.cycle.turns import Results
from ccg_gmx.cycle.views import coarse_surfaces, load_fit, references, shown_surfaces
from ccg_gmx.errors import CcgError
from ccg_gmx.free_energy.bootstrap import bar_with_blocks
from ccg_gmx.free_energy.combine import error_with_members
from ccg_gmx.free_energy.diagnostics import Diagnostics, FineEvidence, diagnose
from ccg_gmx.free_energy.reference import Reference
from ccg_gmx.free_energy.surface import (
    delta_f,
    forward_kl,
    jensen_shannon,
    load_surface,
    probability,
    rmsd_kT,
)
from ccg_gmx.potential.coarse import CoarsePotential
from ccg_gmx.records import FloatArray, FreeEnergySurface
from ccg_gmx.units import thermal_energy

_LEAST_BAR_FRAMES = 20


def final_diagnostics(results: Results) -> Diagnostics:
    """Diagnose the final draws of all members together, with all that fine MD and the hidden-mode test have to say."""
    fit = load_fit(results.surface)
    records = [record for folder in results.draws for record in load_draws(folder)]
    held_out = [load_held_out(folder) for folder in results.held_out]
    first = held_out[0]
    fine = FineEvidence(
        s=load_fine_frames(results.split).s,
        held_out_s=first.s,
        held_out_run=first.run,
        surface=load_surface(results.surface / "surface.npz"),
        basins=results.workflow.basins,
    )
    hidden = None if results.hidden_modes is None else load_check(results.hidden_modes)[0].evidence()
    return diagnose(
        [record.log_w for record in records],
        np.stack([held.fine for held in held_out]),
        np.concatenate([fit.values(record.s) for record in records]),
        fit.values(first.s),
        results.workflow.diagnostics,
        fine=fine,
        hidden=hidden,
    )


def summarise(results: Results, wall_s: dict[str, float]) -> dict[str, Any]:
    """Return the content of summary.json, as DESIGN.md fixes it.

    Args:
        results: folders of the final stages.
        wall_s: stage name -> seconds.
    """
    workflow = results.workflow
    diagnostics = final_diagnostics(results)
    trusted, reasons = judge(results, diagnostics)
    summary: dict[str, Any] = {
        "system": workflow.system,
        "temperature_K": workflow.temperature_K,
        "iterations": len(results.turns) - 1,
        "converged": trusted,
        "wall_s": {name: round(seconds, 2) for name, seconds in wall_s.items()},
        "energy_evaluations": count_evaluations(results.used),
        "free_energy": free_energy_summary(results, diagnostics),
        "coarse_md": coarse_summary(results),
        "restored": {
            **read_json(results.restored / "restored.json"),
            **restored_scores(restored_distributions(results, per_class=ALL)),
        },
        "thresholds": {**workflow.diagnostics.model_dump(mode="json"), "tolerance_kT": workflow.cycle.tolerance_kT},
        "verdict": {"trusted": trusted, "reasons": reasons},
        "assumptions": list(System.load(results.system).coordinates.describe_supports()),
        "seed": workflow.seed,
    }
    if results.hidden_modes is not None:
        summary["hidden_modes"] = hidden_modes_summary(results.hidden_modes)
    if workflow.reference:
        summary["reference"] = reference_summary(results)
    return summary


def hidden_modes_summary(folder: Path) -> dict[str, Any]:
    """Outcome of the test for slow motions that the coarse torsions do not show."""
    report, _ = load_check(folder)
    return {
        "passed": report.passed,
        "words": report.words(),
        "r_hat_max": report.r_hat_max,
        "hot_gap_kT": report.hot_gap_kT,
        "evaluations": report.evaluations,
    }


def judge(results: Results, diagnostics: Diagnostics) -> tuple[bool, list[str]]:
    """Say whether the numbers can be trusted, and why: the diagnostics, and the agreement of flows and turns."""
    workflow, last = results.workflow, results.turns[-1]
    trusted, reasons = diagnostics.verdict()
    agreement = (
        f"the final draws moved the surface by {last.moved_kT:.3f} kT and the flows' own surfaces differ from it "
        f"by at most {last.members_kT:.3f} kT"
    )
    settled = last.settled(workflow.cycle.tolerance_kT)
    if not settled:
        reasons = [reason for reason in reasons if reason.startswith("not yet")]
        reasons.append(f"not yet, because {agreement} (wanted below {workflow.cycle.tolerance_kT} kT)")
    elif trusted:
        reasons.append(f"these numbers can be trusted because {agreement}")
    return trusted and settled, reasons


def count_evaluations(used: Iterable[Path]) -> dict[str, int]:
    """Add up every energy evaluation of the stages: MD steps, and frames of the flow, thrown-away ones included."""
    counts = {"fine_md_steps": 0, "flow": 0, "checks": 0}
    for folder in used:
        if (folder / EVALUATIONS).is_file():
            for kind, number in read_json(folder / EVALUATIONS).items():
                counts[kind] += number
    return {**counts, "total": sum(counts.values())}


def free_energy_summary(results: Results, diagnostics: Diagnostics) -> dict[str, Any]:
    """Diagnostics, and the free energy difference of the first two basins with its error."""
    workflow = results.workflow
    block: dict[str, Any] = {
        name: value
        for name, value in vars(diagnostics).items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    if diagnostics.coverage is not None:
        block["unseen_probability"] = diagnostics.coverage.unseen_probability
        block["unseen_basin_fraction"] = diagnostics.coverage.unseen_basin_fraction
    if diagnostics.runs is not None:
        block["run_disagreement_kT"] = diagnostics.runs.disagreement_kT
        block["run_ess_fraction"] = diagnostics.runs.least_ess_fraction
    if diagnostics.basin_frames:
        block["held_out_frames"] = diagnostics.basin_frames
    if gaps := bar_gaps(results):
        block["bar_gap_kT"] = gaps
    if len(workflow.basins) >= 2:
        block["delta_f"] = f"{workflow.basins[1].name} minus {workflow.basins[0].name}"
        block["delta_f_kJ_mol"], block["delta_f_error"] = basin_difference(results)
    block["members_rmsd_kT"] = results.turns[-1].members_kT
    block["moved_kT"] = results.turns[-1].moved_kT
    block["largest_error_kT"] = results.turns[-1].largest_error_kT
    return block


def bar_gaps(results: Results) -> dict[str, dict[str, float]]:
    """Bennett's acceptance ratio in every named basin, between held-out fine frames and draws at their torsions.

    Log-weights are taken relative to the final surface, so what comes out is how far f would have to move to suit both
    sides: 0 within its error. The fine frames and these draws took no part in that surface. Basins in which no flow
    overlaps with the frames, or without frames, are left out: the other diagnostics name them.
    """
    fit, names = load_fit(results.surface), tuple(results.workflow.coarse.torsions)
    found: dict[str, dict[str, float]] = {}
    members = [load_held_out(folder) for folder in results.held_out]
    f = fit.values(members[0].s)
    for basin in results.workflow.basins:
        rows = basin.mask(members[0].s, names)
        if rows.sum() >= _LEAST_BAR_FRAMES and (gap := _bar_gap(members, f, rows)):
            found[basin.name] = gap
    return found


def _bar_gap(members: list[HeldOut], f: FloatArray, rows: np.ndarray) -> dict[str, float] | None:
    """Return what BAR says of some of the held-out frames; None where a flow and the frames do not overlap."""
    if not all(np.isfinite(held.fine[rows]).all() for held in members):
        return None
    try:
        ratios = [
            bar_with_blocks(held.fine[rows] + f[rows], held.run[rows], held.drawn[rows] + f[rows, None])
            for held in members
        ]
    except CcgError:  # no draw has any weight there
        return None
    # the members share the fine frames, so that their mean is no better than one of them
    return {
        "gap": float(np.mean([ratio.f for ratio in ratios])),
        "error": float(np.mean([ratio.error for ratio in ratios])),
    }


def basin_difference(results: Results) -> tuple[float, float]:
    """Return f of the second basin minus the first, kJ/mol, and its error: the draws' and the flows' spread."""
    workflow = results.workflow
    first, second = workflow.basins[0], workflow.basins[1]
    kT = thermal_energy(workflow.temperature_K)
    members = [load_surface(results.surface / f"member{i}.npz") for i in range(workflow.cycle.members)]
    of_members = np.array([delta_f(member, second, first) for member in members])
    names = tuple(workflow.coarse.torsions)
    value, error = load_fit(results.surface).delta_f(second, first, len(members[0].f), names)
    return value * kT, error_with_members(error, of_members) * kT


def reference_summary(results: Results) -> dict[str, Any]:
    """Compare the final surface with the reference; every figure next to the reference's own noise.

    Where the reference is a set of marginals, each has its own block, and the largest figures stand above them.
    """
    found = references(results.workflow)
    shown = shown_surfaces(load_fit(results.surface), results.workflow)
    blocks = {axes: _against(reference, shown[axes]) for axes, reference in found.items()}
    block: dict[str, Any] = {key: max(each[key] for each in blocks.values()) for key in next(iter(blocks.values()))}
    if len(blocks) > 1:
        block["marginals"] = {",".join(axes): each for axes, each in blocks.items()}
    basins = results.workflow.basins[:2]
    owner = next((axes for axes in found if len(basins) == 2 and all(set(b.ranges) <= set(axes) for b in basins)), None)
    if owner is not None:
        kT, reference = thermal_energy(results.workflow.temperature_K), found[owner]
        first, second = basins
        block["delta_f_kJ_mol"], block["delta_f_error"] = basin_difference(results)
        block["reference_delta_f_kJ_mol"] = delta_f(reference.surface, second, first) * kT
        halves = [delta_f(half, second, first) for half in (reference.half_a, reference.half_b)]
        block["reference_delta_f_error"] = abs(halves[0] - halves[1]) / 2 * kT
    return block


def _against(reference: Reference, surface: FreeEnergySurface) -> dict[str, float]:
    return {
        "forward_kl": forward_kl(reference.surface, surface),
        "noise_floor": reference.noise_floor,
        "js": jensen_shannon(reference.surface, surface),
        "rmsd_kT": rmsd_kT(reference.surface, surface),
        "reference_halves_rmsd_kT": rmsd_kT(reference.half_a, reference.half_b),
    }


def coarse_summary(results: Results) -> dict[str, Any]:
    """Compare coarse MD with the reference, or with the run's own surface where there is none.

    With three or more torsions the numbers are the largest over the marginals.
    """
    workflow = results.workflow
    run = load_coarse_run(results.coarse)
    against = {axes: reference.surface for axes, reference in references(workflow).items()}
    against = against or shown_surfaces(load_fit(results.surface), workflow)
    smooth = coarse_surfaces(run, workflow, workflow.coarse_md.kde_degrees)
    raw = coarse_surfaces(run, workflow, 0.0)
    return {
        "forward_kl": max(forward_kl(surface, smooth[axes]) for axes, surface in against.items()),
        "js": max(jensen_shannon(surface, smooth[axes]) for axes, surface in against.items()),
        "surface_kl": CoarsePotential.load(results.coarse_fit / "potential.npz").residual.surface_kl,
        "ns_per_day": run.ns_per_day,
        "against": "reference" if workflow.reference else "own surface",
        "kde_degrees": workflow.coarse_md.kde_degrees,
        "unsampled_probability": max(
            float(probability(surface)[~np.isfinite(raw[axes].f)].sum()) for axes, surface in against.items()
        ),
        "frames": len(run.s),
        "copies": workflow.coarse_md.runs * workflow.coarse_md.copies,
    }


ALL = 1 << 30
"""More coordinates of a kind than any molecule has."""


def restored_distributions(
    results: Results, per_class: int = 24
) -> dict[str, tuple[FloatArray, FloatArray, FloatArray]]:
    """Internal coordinates of fine MD and of restored frames, for the report.

    Fine runs sit in the basins they were started in, in no particular proportion; their frames are resampled with
    exp(-f) over the density they sample, so that both sides stand for the same ensemble.
    """
    system = System.load(results.system)
    coordinates = system.coordinates
    split = load_split(results.split / "split.npz")
    keep = _boltzmann_frames(results, split.s)
    with np.load(results.restored / "restored" / "restored.npz", allow_pickle=False) as data:
        b, y, log_w = data["b"], data["y"], data["log_w_total"]
    weights = np.exp(log_w - log_w.max())
    weights /= weights.sum()
    chosen: dict[str, tuple[FloatArray, FloatArray, FloatArray]] = {}
    count = {"bond": 0, "angle": 0, "torsion": 0}
    columns = [(c, split.b[keep, i], b[:, i]) for i, c in enumerate(coordinates.b)]
    columns += [(c, split.y[keep, i], y[:, i]) for i, c in enumerate(coordinates.y)]
    for coordinate, fine, restored in columns:
        if count[coordinate.kind] < per_class:
            count[coordinate.kind] += 1
            chosen[f"{coordinate.kind}/{coordinate.name}"] = (fine, restored, weights)
    return chosen


def _boltzmann_frames(results: Results, s: FloatArray) -> np.ndarray:
    """Resample frame indices with weight exp(-f(s)) / (density of the frames at s), 15-degree cells."""
    fit = load_fit(results.surface)
    cells = np.floor((s + np.pi) / np.deg2rad(15.0)).astype(int)
    _, inverse, counts = np.unique(cells, axis=0, return_inverse=True, return_counts=True)
    f = fit.values(s)
    weights = np.exp(f.min() - f) / counts[inverse.ravel()]
    rng = np.random.default_rng(results.workflow.seed)
    return rng.choice(len(s), size=min(len(s), 20000), p=weights / weights.sum())
