"""``ccg backmap MODEL CG_TRAJ``: restored frames, weights, minimised frames, score card."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ccg_gmx.backmap.card import Card, make_card
from ccg_gmx.backmap.data import HeldOut
from ccg_gmx.backmap.jobs import Target
from ccg_gmx.backmap.minimise import minimise_frames
from ccg_gmx.backmap.restore import Energy, Progress, RestoreSettings, restore_trajectory, table_facts
from ccg_gmx.free_energy.diagnostics import kish_fraction
from ccg_gmx.records import FloatArray


@dataclass(frozen=True)
class RestoreRequest:
    """What to restore; names as the options of the command.

    Attributes:
        coarse: trajectory of the beads.
        out: trajectory to write.
        samples: fine frames per coarse one.
        weights: energies and log-weights.
        top: topology for the minimisation, or None.
        minimise_steps: its steps.
        report: make a score card.
        stride: every so-manyth frame.
        frames: at most so many coarse frames.
        seed: of the noise.
    """

    coarse: Path
    out: Path
    samples: int = 1
    weights: bool = False
    top: Path | None = None
    minimise_steps: int = 200
    report: bool = False
    stride: int = 1
    frames: int | None = None
    seed: int = 0


def restore_from_files(
    request: RestoreRequest, target: Target, progress: Progress | None = None
) -> tuple[dict[str, Any], Card | None]:
    """Restore, and return what is to be told, and the score card if there is one.

    Args:
        request: what to do.
        target: what to do it with.
        progress: called with (done, total).

    Raises:
        CcgError: in one line, whatever does not fit.
    """
    energy = target.energy() if request.weights else None
    held_out = target.held_out() if request.report else None  # what is missing is said before the work
    settings = RestoreSettings(request.samples, request.seed, request.stride, request.frames)
    begin = time.perf_counter()
    table = restore_trajectory(target.restorer, request.coarse, request.out, settings, energy=energy, progress=progress)
    facts = _facts(table, time.perf_counter() - begin, request, target)
    if request.weights:
        facts |= _weights(request.out.with_suffix(".npz"), table, request.samples)
    if request.top is not None:
        system = target.restorer.system
        facts["minimised"] = minimise_frames(
            system,
            request.out,
            request.top,
            request.minimise_steps,
            fine=None if held_out is None else held_out.positions,
        )
        facts["files"] += [facts["minimised"]["file"], facts["minimised"]["table"]]
    if held_out is None:
        return facts, None
    card = make_report(request, target, held_out, energy)
    return {**facts, "card": card.numbers}, card


def _facts(table: dict[str, FloatArray], seconds: float, request: RestoreRequest, target: Target) -> dict[str, Any]:
    return {
        **table_facts(table),
        "seconds_per_frame": seconds / len(table["log_q"]),
        "note": target.note,
        "files": [str(request.out), str(request.out.with_suffix(".npz"))],
    }


def _weights(path: Path, table: dict[str, FloatArray], samples: int) -> dict[str, Any]:
    """Add log-weights to the table: -u - ln q of each frame, at its own beads."""
    log_w = -table["u"] - table["log_q"] - table["log_choice"]
    log_w[~np.isfinite(table["log_q"])] = -np.inf
    partial = path.with_name(f".{path.name}.{os.getpid()}.npz")
    np.savez(partial, **table, log_w=log_w)  # type: ignore[arg-type]
    os.replace(partial, path)
    if samples < 2:
        return {"kish_fraction_median": None}
    return {"kish_fraction_median": float(np.median(kish_fraction(log_w.reshape(-1, samples))))}


def make_report(request: RestoreRequest, target: Target, held_out: HeldOut, energy: Energy | None) -> Card:
    """Score card on held-out fine frames."""
    return make_card(
        target.restorer,
        held_out,
        samples=request.samples,
        seed=request.seed + 1,
        energy=energy,
    )
