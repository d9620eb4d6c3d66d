"""The score card as one dictionary: held-out frames restored and compared, and what the user's own frames look like."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ccg_gmx.backmap.contacts import clash_counts, contact_rules
from ccg_gmx.backmap.model import BackmapFlow
from ccg_gmx.backmap.sampling import Sampler
from ccg_gmx.backmap.score import (
    ClassScore,
    diversity_nm,
    frame_facts,
    rotamers,
    score_classes,
    summarise_classes,
)
from ccg_gmx.backmap.system import BackmapSystem
from ccg_gmx.free_energy.diagnostics import kish_fraction
from ccg_gmx.records import FloatArray

CARD_ATOMS = 3_000_000
"""Restored atoms that a card is made of, at most."""
CHUNK_ATOMS = 200_000
DIVERSITY_SAMPLES = 4


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
    flow: BackmapFlow,
    system: BackmapSystem,
    fine: FloatArray,
    *,
    samples: int,
    candidates: int,
    rounds: int,
    seed: int,
    energy: Any = None,
    progress: Any = None,
) -> Card:
    """Restore held-out frames from their own beads and compare.

    Args:
        flow: trained.
        system: of the frames.
        fine: ``[T, N, 3]`` nm, held out, relabelled.
        samples: draws of each frame.
        candidates: as in :class:`ccg_gmx.backmap.sampling.Sampler`.
        rounds: likewise.
        seed: of the draws.
        energy: energies in kT of frames, or None.
        progress: called with (done, total).
    """
    fine = fine[:: max(1, math.ceil(len(fine) * len(system.atoms) * samples / CARD_ATOMS))]
    beads = fine[:, system.beads]
    sampler = Sampler(flow, system, candidates, rounds)
    begin = time.perf_counter()
    positions, log_q, log_choice = _draw(sampler, beads, samples, seed, progress)
    seconds = time.perf_counter() - begin
    flat = positions.reshape(-1, *positions.shape[2:])
    scores = score_classes(system, fine, flat)
    held_out = _log_prob(flow, sampler, fine)
    numbers = {
        **frame_facts(system, flat, np.repeat(beads, samples, axis=0)),
        **summarise_classes(scores),
        "held_out_frames": len(fine),
        "samples": samples,
        "candidates": candidates,
        "rounds": rounds,
        "seconds_per_frame": seconds / len(flat),
        "clash_fraction_fine": float(np.mean(clash_counts(contact_rules(system.atoms), fine) > 0)),
        "diversity_nm": diversity_nm(positions, system.beads),
        "rotamers": rotamers(system, fine, flat),
        "log_q_held_out_mean": float(held_out.mean()),
        "entropy_of_atoms_given_beads_nats": -float(held_out.mean()),
        "entropy_of_the_model_nats": -float(np.mean(log_q[np.isfinite(log_q)])),
        "unreachable_fraction": float(np.mean(~np.isfinite(log_q))),
    }
    numbers["rotamer_difference_max"] = max(
        (abs(a - b) for own in numbers["rotamers"].values() for a, b in zip(own["fine"], own["restored"], strict=True)),
        default=0.0,
    )
    if energy is not None:
        numbers |= _energies(energy, fine, positions, log_q + log_choice, held_out)
    return Card(numbers, scores)


def _draw(
    sampler: Sampler, beads: FloatArray, samples: int, seed: int, progress: Any
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Positions ``[T, K, N, 3]`` nm, ln q and ln choice ``[T, K]``."""
    generator = torch.Generator().manual_seed(seed)
    size = max(1, CHUNK_ATOMS // (len(sampler.system.atoms) * samples * sampler.candidates))
    parts = []
    for start in range(0, len(beads), size):
        own = torch.from_numpy(beads[start : start + size]).repeat_interleave(samples, 0)
        parts.append(sampler.draw(own, generator))
        if progress is not None:
            progress(min(start + size, len(beads)), len(beads))
    shape = (len(beads), samples)
    return (
        torch.cat([part.positions for part in parts]).numpy().reshape(*shape, -1, 3),
        torch.cat([part.log_q for part in parts]).numpy().reshape(shape),
        torch.cat([part.log_choice for part in parts]).numpy().reshape(shape),
    )


@torch.no_grad()
def _log_prob(flow: BackmapFlow, sampler: Sampler, frames: FloatArray) -> FloatArray:
    """ln q(r | beads) of frames, ``[T]``."""
    size = max(1, CHUNK_ATOMS // len(sampler.system.atoms))
    parts = [
        flow.log_prob(torch.from_numpy(frames[start : start + size]), sampler.view)
        for start in range(0, len(frames), size)
    ]
    values = torch.cat(parts).numpy()
    return values[np.isfinite(values)]


def _energies(
    energy: Any, fine: FloatArray, positions: FloatArray, log_q: FloatArray, held_out: FloatArray
) -> dict[str, Any]:
    """Energies of fine and restored frames in kT, and the weights of the draws at the same beads."""
    u_fine = energy(fine)
    u = energy(positions.reshape(-1, *positions.shape[2:])).reshape(log_q.shape)
    result: dict[str, Any] = {
        "energy_fine_kT": _quantiles(u_fine),
        "energy_restored_kT": _quantiles(u.ravel()),
        "forward_bound": float(u_fine.mean() + held_out.mean()),
    }
    if log_q.shape[1] > 1:
        fractions = kish_fraction(-u - log_q)
        result["kish_fraction_median"] = float(np.median(fractions))
    return result


def _quantiles(values: FloatArray) -> dict[str, float]:
    low, middle, high = np.quantile(values, [0.05, 0.5, 0.95])
    return {"p05": float(low), "median": float(middle), "p95": float(high)}
