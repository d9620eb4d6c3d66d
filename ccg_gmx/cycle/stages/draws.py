"""Stages of weighted draws: the same number at every point in the turns, adapted to tolerances at the end."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ccg_gmx.cycle.proposal import GridProposal, allocation
from ccg_gmx.cycle.stages.fine import load_split
from ccg_gmx.cycle.store import Work
from ccg_gmx.cycle.system import System
from ccg_gmx.flow.checkpoint import load_flow
from ccg_gmx.free_energy.surface_files import write_npz
from ccg_gmx.free_energy.surface_fit import SurfaceFit
from ccg_gmx.free_energy.variance import VarianceModel, draws_needed
from ccg_gmx.free_energy.weights import draw_weights, forward_log_weights
from ccg_gmx.records import FloatArray, IntArray, WeightedDraws

_MATCHED_DRAWS = 4
"""Draws at the torsions of every held-out frame, for estimates from both sides: their error is below the frames'."""


def make_draws(work: Work) -> None:
    """Draw (b, y) equally often at coarse points of the proposal and weigh every draw.

    Inputs: system, flow, proposal. Writes draws.npz.
    """
    proposal = GridProposal.load(work.inputs["proposal"] / "proposal.npz")
    s = proposal.draw(work.settings["points"], np.random.default_rng(work.seed))
    counts = np.full(len(s), work.settings["draws_per_point"])
    _draw(work, s, counts, proposal.log_density(s))


def plan_draws(work: Work) -> None:
    """Decide where the final draws go, and how many each point gets, from the draws of the turns.

    How uneven the weights are at s is a smooth model fitted to earlier draws. A point's own weights never decide its
    number of draws: where the large weights were missed they look even, and stopping there would bias Z low.
    Inputs: surface, pilot0, pilot1, ... (draws of each member's frozen flow). Writes plan.npz.
    """
    settings = work.settings
    fit = SurfaceFit.load(work.inputs["surface"] / "fit.npz")
    n = settings["cells"]
    chi2 = []
    for index in range(settings["members"]):
        (pilot,) = load_draws(work.inputs[f"pilot{index}"])
        chi2.append(VarianceModel.fit(pilot).on_grid(n))
    proposal = allocation(
        fit.basis.on_grid(n, fit.coefficients),
        np.mean(chi2, axis=0),
        uniform=settings["uniform_fraction"],
        exponent=settings["exponent"],
    )
    counts = [
        draws_needed(
            member,
            settings["bias_tolerance_kT"],
            settings["point_error_kT"],
            settings["min_draws"],
            settings["max_draws"],
        )
        for member in chi2
    ]
    write_npz(work.folder / "plan.npz", probability=proposal.probability, counts=np.stack(counts))


def make_final_draws(work: Work) -> None:
    """Draw at points of the plan, at each as often as the plan says.

    Inputs: system, flow, plan. Settings: points, member, chunk. Writes draws.npz.
    """
    with np.load(work.inputs["plan"] / "plan.npz", allow_pickle=False) as data:
        proposal, counts = GridProposal(data["probability"]), data["counts"][work.settings["member"]]
    s = proposal.draw(work.settings["points"], np.random.default_rng(work.seed))
    _draw(work, s, counts[proposal.cell(s)], proposal.log_density(s))


def _draw(work: Work, s: FloatArray, counts: IntArray, log_rho: FloatArray) -> None:
    """Weigh draws at all points, those with equally many together; resumes after the groups that are done."""
    system = System.load(work.inputs["system"])
    flow, target = load_flow(work.inputs["flow"] / "flow.pt"), system.target()
    total, done, records = int(counts.sum()), 0, []
    for group, K in enumerate(np.unique(counts)):
        rows = np.flatnonzero(counts == K)
        before = done

        def report(drawn: int, _: int, before: int = before) -> None:
            work.progress(before + drawn, total)

        log_w = draw_weights(flow, target, s[rows], int(K), work.seed + group, work.settings["chunk"], report)
        records.append(WeightedDraws(s[rows], log_w, log_rho[rows], log_w.size))
        done += log_w.size
    save_draws(work.folder / "draws.npz", records)
    work.count(flow=total)


def save_draws(path: Path, records: list[WeightedDraws]) -> None:
    """Write records of different numbers of draws per point in one file (.npz)."""
    write_npz(
        path,
        s=np.concatenate([record.s for record in records]),
        log_rho=np.concatenate([record.log_rho for record in records]),
        draws=np.concatenate([np.full(len(record.s), record.log_w.shape[1]) for record in records]),
        log_w=np.concatenate([record.log_w.ravel() for record in records]),
    )


def load_draws(folder: Path) -> list[WeightedDraws]:
    """Read what ``save_draws`` wrote: one record for each number of draws per point."""
    with np.load(folder / "draws.npz", allow_pickle=False) as data:
        s, log_rho, draws, log_w = (data[name] for name in ("s", "log_rho", "draws", "log_w"))
    records, first = [], 0
    for K in np.unique(draws):  # they were written in this order
        rows = draws == K
        size = int(K * rows.sum())
        weights = log_w[first : first + size].reshape(-1, int(K))
        records.append(WeightedDraws(s[rows], weights, log_rho[rows], size))
        first += size
    return records


def weigh_held_out(work: Work) -> None:
    """Weigh held-out fine frames, and fresh draws at the same torsions: what estimates from both sides need.

    Inputs: system, flow, split. Writes held_out.npz: s, run, fine ``[T]`` and drawn ``[T, K]`` log-weights.
    """
    system = System.load(work.inputs["system"])
    flow = load_flow(work.inputs["flow"] / "flow.pt")
    frames = load_split(work.inputs["split"] / "held_out.npz")
    with torch.no_grad():
        fine = forward_log_weights(flow, frames)
    drawn = draw_weights(flow, system.target(), frames.s, _MATCHED_DRAWS, work.seed, progress=work.progress)
    write_npz(work.folder / "held_out.npz", s=frames.s, run=frames.run, fine=fine, drawn=drawn)
    work.count(flow=drawn.size)


@dataclass(frozen=True)
class HeldOut:
    """Held-out fine frames as a flow sees them.

    Attributes:
        s: ``[T, n_s]`` radians.
        run: ``[T]`` index of the fine run.
        fine: ``[T]`` log-weights of the frames.
        drawn: ``[T, K]`` log-weights of draws at the same torsions.
    """

    s: FloatArray
    run: IntArray
    fine: FloatArray
    drawn: FloatArray


def load_held_out(folder: Path) -> HeldOut:
    """Read what ``weigh_held_out`` wrote."""
    with np.load(folder / "held_out.npz", allow_pickle=False) as data:
        return HeldOut(*(data[name] for name in ("s", "run", "fine", "drawn")))
