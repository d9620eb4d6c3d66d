"""What a run says about itself: the judgement of each turn, summary.json and the data of the report."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ccg_gmx.cycle.config import Workflow
from ccg_gmx.cycle.stages.coarse import coarse_surface, load_coarse_run
from ccg_gmx.cycle.stages.fine import load_split
from ccg_gmx.cycle.stages.learn import load_draws
from ccg_gmx.cycle.store import RECORD, read_json
from ccg_gmx.cycle.system import System
from ccg_gmx.free_energy.diagnostics import Diagnostics, diagnose, kish_fraction
from ccg_gmx.free_energy.joint_fit import SurfaceFit
from ccg_gmx.free_energy.reference import Reference, load_reference
from ccg_gmx.free_energy.surface import delta_f, forward_kl, jensen_shannon, load_surface, rmsd_kT
from ccg_gmx.records import FloatArray
from ccg_gmx.units import thermal_energy


@dataclass(frozen=True)
class Turn:
    """How one turn of the cycle stands.

    Attributes:
        index: number of the turn.
        surface: folder of its surface.
        moved_kT: RMSD against the previous turn's surface below 8 kT; nan in the first turn.
        members_kT: largest RMSD between a member's own surface and the joint one.
        kish_fraction_median: median reverse effective fraction.
        coarse_kl: forward KL of the coarse MD's surface against this turn's.
        forward_kl: forward KL of this turn's surface against the reference; nan without one.
        final: whether these are the fresh draws with the flows frozen.
    """

    index: int
    surface: Path
    moved_kT: float
    members_kT: float
    kish_fraction_median: float
    coarse_kl: float
    forward_kl: float
    final: bool

    def settled(self, tolerance_kT: float) -> bool:
        """Say whether f has stopped moving and the independent flows agree."""
        return self.moved_kT < tolerance_kT and self.members_kT < tolerance_kT

    def words(self) -> str:
        """One line for the terminal."""
        name = "final" if self.final else f"turn {self.index}"
        moved = "" if math.isnan(self.moved_kT) else f", moved {self.moved_kT:.3f} kT"
        reference = "" if math.isnan(self.forward_kl) else f", forward KL to the reference {self.forward_kl:.2e}"
        return (
            f"{name}: median kish fraction {self.kish_fraction_median:.2f}, flows differ by {self.members_kT:.3f} kT"
            f"{moved}, coarse MD KL {self.coarse_kl:.3f}{reference}"
        )

    def row(self) -> dict[str, float]:
        """The numbers of the turn, for the report."""
        return {
            "turn": float(self.index),
            "moved_kT": self.moved_kT,
            "members_kT": self.members_kT,
            "kish_fraction_median": self.kish_fraction_median,
            "coarse_kl": self.coarse_kl,
            "forward_kl": self.forward_kl,
        }


@dataclass(frozen=True)
class Results:
    """Folders of the final stages of a run."""

    workflow: Workflow
    system: Path
    split: Path
    flows: list[Path]
    draws: list[Path]
    surface: Path
    coarse_fit: Path
    coarse: Path
    restored: Path
    turns: list[Turn]
    used: tuple[Path, ...]


def assess_turn(
    index: int,
    workflow: Workflow,
    draws: list[Path],
    surface: Path,
    previous: Path | None,
    coarse: Path,
    final: bool = False,
) -> Turn:
    """Judge a turn from its finished stages."""
    now = load_surface(surface / "surface.npz")
    members = [load_surface(surface / f"member{i}.npz") for i in range(len(draws))]
    fit = SurfaceFit.load(surface / "fit.npz")
    judged = [draws_below_cap(drawn.log_w, fit.values(drawn.s), workflow) for drawn in map(load_draws, draws)]
    run = coarse_surface(load_coarse_run(coarse), now, workflow.coarse_md.kde_degrees)
    reference = load_reference(workflow.reference) if workflow.reference else None
    return Turn(
        index=index,
        surface=surface,
        moved_kT=rmsd_kT(load_surface(previous / "surface.npz"), now) if previous else float("nan"),
        members_kT=max(rmsd_kT(now, member) for member in members),
        kish_fraction_median=float(np.median(np.concatenate([kish_fraction(log_w) for log_w in judged]))),
        coarse_kl=forward_kl(now, run),
        forward_kl=forward_kl(reference.surface, now) if reference else float("nan"),
        final=final,
    )


def draws_below_cap(log_w: FloatArray, f: FloatArray, workflow: Workflow) -> FloatArray:
    """Return the log-weights at points whose f is below the cap."""
    return log_w[f < f.min() + workflow.diagnostics.f_cap_kT]


def final_diagnostics(results: Results) -> Diagnostics:
    """Diagnose the final draws of all members together."""
    fit = SurfaceFit.load(results.surface / "fit.npz")
    points = [load_draws(folder) for folder in results.draws]
    forward_log_w, forward_s = [], []
    for folder in results.draws:
        with np.load(folder / "draws.npz", allow_pickle=False) as data:
            forward_log_w.append(data["held_out_log_w"])
            forward_s.append(data["held_out_s"])
    return diagnose(
        np.concatenate([draws.log_w for draws in points]),
        np.concatenate(forward_log_w),
        np.concatenate([fit.values(draws.s) for draws in points]),
        np.concatenate([fit.values(s) for s in forward_s]),
        results.workflow.diagnostics,
    )


def summarise(results: Results, wall_s: dict[str, float]) -> dict[str, Any]:
    """Return the content of summary.json, as DESIGN.md fixes it.

    Args:
        results: folders of the final stages.
        wall_s: stage name -> seconds.
    """
    workflow, last = results.workflow, results.turns[-1]
    diagnostics = final_diagnostics(results)
    trusted, reasons = diagnostics.verdict()
    settled = last.settled(workflow.cycle.tolerance_kT)
    agreement = (
        f"the last turn moved the surface by {last.moved_kT:.3f} kT and the flows' own surfaces differ from it "
        f"by at most {last.members_kT:.3f} kT"
    )
    if not settled:
        reasons = [reason for reason in reasons if reason.startswith("not yet")]
        reasons.append(f"not yet, because {agreement} (wanted below {workflow.cycle.tolerance_kT} kT)")
    elif trusted:
        reasons.append(f"these numbers can be trusted because {agreement}")
    trusted = trusted and settled
    summary: dict[str, Any] = {
        "system": workflow.system,
        "temperature_K": workflow.temperature_K,
        "iterations": len(results.turns) - 1,
        "converged": trusted,
        "wall_s": {name: round(seconds, 2) for name, seconds in wall_s.items()},
        "energy_evaluations": count_evaluations(results),
        "free_energy": free_energy_summary(results, diagnostics),
        "coarse_md": coarse_summary(results),
        "restored": read_json(results.restored / "restored.json"),
        "thresholds": workflow.diagnostics.model_dump(mode="json"),
        "verdict": {"trusted": trusted, "reasons": reasons},
        "assumptions": list(System.load(results.system).coordinates.describe_supports()),
        "seed": workflow.seed,
    }
    if workflow.reference:
        summary["reference"] = reference_summary(results, load_reference(workflow.reference))
    return summary


def count_evaluations(results: Results) -> dict[str, int]:
    """Count every energy evaluation: MD steps, and frames of the flow, thrown-away ones included."""
    md = flow = 0
    for folder in results.used:
        record = read_json(folder / RECORD)
        name, settings = record["name"], record["settings"]
        if name == "fine_md":
            md += sum(read_json(folder / "steps.json").values())
        elif name == "energy":
            flow += settings["energy"]["steps"] * settings["energy"]["batch"]
        elif name in ("draws", "beads"):
            flow += settings["points"] * settings["draws_per_point"]
        elif name == "restore":
            flow += read_json(folder / "restored.json")["frames"]
    split = [load_split(results.split / f"{part}.npz") for part in ("split", "held_out")]
    flow += sum(len(part.u) for part in split)
    return {"fine_md_steps": md, "flow": flow, "total": md + flow}


def free_energy_summary(results: Results, diagnostics: Diagnostics) -> dict[str, Any]:
    """Diagnostics, and the free energy difference of the first two basins with its error."""
    block: dict[str, Any] = {
        key: getattr(diagnostics, key)
        for key in (
            "kish_fraction_median",
            "kish_fraction_low",
            "kish_fraction_min",
            "forward_ess_fraction",
            "pareto_k_bad_fraction",
            "sandwich_gap_kT",
            "largest_weight",
            "doubling_drift_kT",
        )
    }
    workflow = results.workflow
    if len(workflow.basins) >= 2:
        block["delta_f"] = f"{workflow.basins[1].name} minus {workflow.basins[0].name}"
        block["delta_f_kJ_mol"], block["delta_f_error"] = basin_difference(results)
    block["members_rmsd_kT"] = results.turns[-1].members_kT
    block["moved_kT"] = results.turns[-1].moved_kT
    return block


def basin_difference(results: Results) -> tuple[float, float]:
    """Return f of the second basin minus the first, kJ/mol, and its error: the draws' and the flows' spread."""
    workflow = results.workflow
    first, second = workflow.basins[0], workflow.basins[1]
    kT = thermal_energy(workflow.temperature_K)
    members = [load_surface(results.surface / f"member{i}.npz") for i in range(len(results.draws))]
    of_members = np.array([delta_f(member, second, first) for member in members])
    fit = SurfaceFit.load(results.surface / "fit.npz")
    names = tuple(workflow.coarse.torsions)
    value, error = fit.delta_f(second, first, workflow.cycle.grid, names)
    spread = of_members.std(ddof=1) / math.sqrt(len(of_members)) if len(of_members) > 1 else 0.0
    return value * kT, float(np.hypot(error, spread)) * kT


def reference_summary(results: Results, reference: Reference) -> dict[str, float]:
    """Compare the final surface with the reference; every figure next to the reference's own noise."""
    workflow = results.workflow
    surface = load_surface(results.surface / "surface.npz")
    kT = thermal_energy(workflow.temperature_K)
    block = {
        "forward_kl": forward_kl(reference.surface, surface),
        "noise_floor": reference.noise_floor,
        "js": jensen_shannon(reference.surface, surface),
        "rmsd_kT": rmsd_kT(reference.surface, surface),
        "reference_halves_rmsd_kT": rmsd_kT(reference.half_a, reference.half_b),
    }
    if len(workflow.basins) >= 2:
        block["delta_f_kJ_mol"], block["delta_f_error"] = basin_difference(results)
        first, second = workflow.basins[:2]
        block["reference_delta_f_kJ_mol"] = delta_f(reference.surface, second, first) * kT
        halves = [delta_f(half, second, first) for half in (reference.half_a, reference.half_b)]
        block["reference_delta_f_error"] = abs(halves[0] - halves[1]) / 2 * kT
    return block


def coarse_summary(results: Results) -> dict[str, Any]:
    """Compare coarse MD with the reference, or with the run's own surface where there is none."""
    workflow = results.workflow
    run = load_coarse_run(results.coarse)
    own = load_surface(results.surface / "surface.npz")
    against = load_reference(workflow.reference).surface if workflow.reference else own
    coarse = coarse_surface(run, own, workflow.coarse_md.kde_degrees)
    raw = coarse_surface(run, own, 0.0)
    return {
        "forward_kl": forward_kl(against, coarse),
        "js": jensen_shannon(against, coarse),
        "ns_per_day": run.ns_per_day,
        "against": "reference" if workflow.reference else "own surface",
        "kde_degrees": workflow.coarse_md.kde_degrees,
        "unsampled_probability": float(np.exp(-against.f)[~np.isfinite(raw.f)].sum() / np.exp(-against.f).sum()),
        "frames": len(run.s),
        "copies": workflow.coarse_md.runs * workflow.coarse_md.copies,
    }


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
    fit = SurfaceFit.load(results.surface / "fit.npz")
    cells = np.floor((s + np.pi) / np.deg2rad(15.0)).astype(int)
    _, inverse, counts = np.unique(cells, axis=0, return_inverse=True, return_counts=True)
    f = fit.values(s)
    weights = np.exp(f.min() - f) / counts[inverse.ravel()]
    rng = np.random.default_rng(results.workflow.seed)
    return rng.choice(len(s), size=min(len(s), 20000), p=weights / weights.sum())
