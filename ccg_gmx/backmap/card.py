"""The score card as one dictionary: held-out frames restored and compared, and what the user's own frames look like."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ccg_gmx.backmap.contacts import clash_counts
from ccg_gmx.backmap.data import HeldOut
from ccg_gmx.backmap.restore import CHUNK_ATOMS, Energy, Progress
from ccg_gmx.backmap.restorer import Restorer
from ccg_gmx.backmap.score import (
    ClassScore,
    diversity_nm,
    frame_facts,
    rotamers,
    score_classes,
    summarise_classes,
)
from ccg_gmx.free_energy.diagnostics import kish_fraction
from ccg_gmx.free_energy.estimators import log_mean_weight
from ccg_gmx.free_energy.run_agreement import forward_ess_fraction
from ccg_gmx.records import FloatArray

CARD_ATOMS = 3_000_000
"""Restored atoms that a card is made of, at most."""
DIVERSITY_SAMPLES = 4
WEIGHT_SAMPLES = 64
"""Draws of each held-out frame that weights are judged by, at least."""


@dataclass(frozen=True, eq=False)
class Card:
    """A score card.

    Attributes:
        numbers: for JSON.
        classes: compared distributions, the least alike first.
    """

    numbers: dict[str, Any]
    classes: list[ClassScore]


def make_card(
    restorer: Restorer,
    held_out: HeldOut,
    *,
    samples: int,
    seed: int,
    energy: Energy | None = None,
    progress: Progress | None = None,
) -> Card:
    """Restore held-out frames from their own beads and compare.

    Args:
        restorer: puts atoms on beads.
        held_out: fine frames that the training never saw.
        samples: draws of each frame; at least 64 are made where weights are judged.
        seed: of the draws.
        energy: energies in kT of frames, or None.
        progress: called with (done, total).
    """
    system = restorer.system
    samples = max(samples, DIVERSITY_SAMPLES if energy is None else WEIGHT_SAMPLES)
    step = max(1, math.ceil(len(held_out) * len(system.atoms) * samples / CARD_ATOMS))
    kept = held_out.frames(slice(None, None, step))
    fine, box = kept.positions, kept.box
    beads = system.bead_positions(fine)
    begin = time.perf_counter()
    positions, log_q, log_choice = _draw(restorer, beads, box, samples, seed, progress)
    seconds = time.perf_counter() - begin
    flat = positions.reshape(-1, *positions.shape[2:])
    boxes = None if box is None else np.repeat(box, samples, axis=0)
    scores = score_classes(system, fine, flat)
    log_q_fine = _log_prob(restorer, kept)
    inside = log_q_fine[np.isfinite(log_q_fine)]
    numbers = {
        **frame_facts(system, restorer.rules, flat, np.repeat(beads, samples, axis=0), boxes),
        **summarise_classes(scores),
        "held_out_frames": len(fine),
        "samples": samples,
        "candidates": restorer.candidates,
        "rounds": restorer.rounds,
        "sweeps": restorer.sweeps,
        "seconds_per_frame": seconds / len(flat),
        "clash_fraction_fine": float(np.mean(clash_counts(restorer.rules, fine, box) > 0)),
        "diversity_nm": diversity_nm(positions, system.beads[: 0 if system.centres else None]),
        "rotamers": rotamers(system, fine, flat),
        "log_q_held_out_mean": float(inside.mean()),
        "held_out_outside_support_fraction": 1.0 - len(inside) / len(log_q_fine),
        "entropy_of_atoms_given_beads_nats": -float(inside.mean()),
        "entropy_of_the_model_nats": -float(np.mean(log_q[np.isfinite(log_q)])),
        "unreachable_fraction": float(np.mean(~np.isfinite(log_q))),
    }
    numbers["rotamer_difference_max"] = max(
        (abs(a - b) for own in numbers["rotamers"].values() for a, b in zip(own["fine"], own["restored"], strict=True)),
        default=0.0,
    )
    if energy is not None:
        numbers |= _energies(energy, fine, positions, log_q + log_choice, log_q_fine)
    return Card(numbers, scores)


def _draw(
    restorer: Restorer,
    beads: FloatArray,
    box: FloatArray | None,
    samples: int,
    seed: int,
    progress: Progress | None,
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Positions ``[T, K, N, 3]`` nm, ln q and ln choice ``[T, K]``."""
    generator = torch.Generator().manual_seed(seed)
    size = max(1, CHUNK_ATOMS // (len(restorer.system.atoms) * samples * restorer.candidates))
    parts = []
    for start in range(0, len(beads), size):
        own = torch.from_numpy(beads[start : start + size]).repeat_interleave(samples, 0)
        parts.append(restorer.draw(own, generator, _cells(box, start, size, samples)))
        if progress is not None:
            progress(min(start + size, len(beads)), len(beads))
    shape = (len(beads), samples)
    return (
        torch.cat([part.positions for part in parts]).numpy().reshape(*shape, -1, 3),
        torch.cat([part.log_q for part in parts]).numpy().reshape(shape),
        torch.cat([part.log_choice for part in parts]).numpy().reshape(shape),
    )


def _cells(box: FloatArray | None, start: int, size: int, samples: int = 1) -> Tensor | None:
    """Boxes of some frames, each ``samples`` times."""
    return None if box is None else torch.from_numpy(box[start : start + size]).repeat_interleave(samples, 0)


def _log_prob(restorer: Restorer, fine: HeldOut) -> FloatArray:
    """ln q(r | beads) of frames, ``[T]``; -inf off the supports."""
    size = max(1, CHUNK_ATOMS // len(restorer.system.atoms))
    parts = [
        restorer.log_prob(torch.from_numpy(fine.positions[start : start + size]), _cells(fine.box, start, size))
        for start in range(0, len(fine), size)
    ]
    return torch.cat(parts).numpy()


def _energies(
    energy: Energy, fine: FloatArray, positions: FloatArray, log_q: FloatArray, held_out: FloatArray
) -> dict[str, Any]:
    """Energies of fine and restored frames in kT, and how well the flow covers the Boltzmann ensemble at their beads.

    Args:
        energy: of frames, kT.
        fine: ``[T, N, 3]`` nm.
        positions: ``[T, K, N, 3]`` nm, K draws on the beads of each fine frame.
        log_q: ``[T, K]`` their log-densities.
        held_out: ``[T]`` log-density of the fine frames.
    """
    u_fine = energy(fine)
    u = energy(positions.reshape(-1, *positions.shape[2:])).reshape(log_q.shape)
    inside = np.isfinite(held_out)
    result: dict[str, Any] = {
        "energy_fine_kT": _quantiles(u_fine),
        "energy_restored_kT": _quantiles(u.ravel()),
        "forward_bound": float(u_fine[inside].mean() + held_out[inside].mean()),
    }
    if log_q.shape[1] < 2:
        return result
    log_w = np.where(np.isfinite(log_q), -u - log_q, -np.inf)
    fractions = kish_fraction(log_w)
    return result | {
        "kish_fraction_median": float(np.median(fractions)),
        "kish_fraction_p05": float(np.quantile(fractions, 0.05)),
        "forward_ess_fraction": conditional_forward_ess(-u_fine - held_out, log_w),
    }


def conditional_forward_ess(log_w_fine: FloatArray, log_w: FloatArray) -> float:
    """Effective fraction of the draws as frames of the target see it.

    Every fine frame has beads of its own and with them a normalisation Z of its own, which the mean weight of the draws
    on these beads estimates; the rest is :func:`ccg_gmx.free_energy.run_agreement.forward_ess_fraction`.

    Args:
        log_w_fine: ``[T]`` log-weights of fine frames, +inf for one that the flow cannot make.
        log_w: ``[T, K]`` log-weights of the draws on their beads.
    """
    return forward_ess_fraction(log_w_fine - log_mean_weight(log_w))


def _quantiles(values: FloatArray) -> dict[str, float]:
    low, middle, high = np.quantile(values, [0.05, 0.5, 0.95])
    return {"p05": float(low), "median": float(middle), "p95": float(high)}
