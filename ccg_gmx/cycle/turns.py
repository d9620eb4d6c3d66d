"""The record of each turn of the cycle, and the folders of a finished run."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ccg_gmx.cycle.config import Workflow
from ccg_gmx.cycle.stages.coarse import load_coarse_run
from ccg_gmx.cycle.stages.draws import load_draws
from ccg_gmx.cycle.views import coarse_surfaces, load_fit, references, shown_surfaces
from ccg_gmx.free_energy.diagnostics import kish_fraction
from ccg_gmx.free_energy.surface import forward_kl, load_surface, rmsd_kT
from ccg_gmx.records import FloatArray, FreeEnergySurface


@dataclass(frozen=True)
class Turn:
    """How one turn of the cycle stands.

    Attributes:
        index: number of the turn.
        surface: folder of its surface.
        moved_kT: RMSD below 8 kT between what its own draws say and the surface before them; nan in the first turn.
        members_kT: largest RMSD between a member's own surface and the joint one.
        largest_error_kT: largest standard error of f below the cap.
        kish_fraction_median: median reverse effective fraction of its draws.
        coarse_kl: forward KL of the coarse MD's surface against this turn's, the largest of all shown.
        forward_kl: forward KL of this turn's surface against the reference, the largest of all; nan without one.
        final: whether these are the fresh draws with the flows frozen.
    """

    index: int
    surface: Path
    moved_kT: float
    members_kT: float
    largest_error_kT: float
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
            "largest_error_kT": self.largest_error_kT,
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
    held_out: list[Path]
    hidden_modes: Path | None
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
    members = [load_surface(surface / f"member{i}.npz") for i in range(workflow.cycle.members)]
    fit = load_fit(surface)
    fractions = [
        kish_fraction(record.log_w[below_cap(fit.values(record.s), workflow)])
        for folder in draws
        for record in load_draws(folder)
    ]
    shown = shown_surfaces(fit, workflow)
    run = coarse_surfaces(load_coarse_run(coarse), workflow, workflow.coarse_md.kde_degrees)
    against = [forward_kl(reference.surface, shown[axes]) for axes, reference in references(workflow).items()]
    return Turn(
        index=index,
        surface=surface,
        moved_kT=rmsd_kT(load_surface(previous / "surface.npz"), load_surface(surface / "own.npz"))
        if previous
        else math.nan,
        members_kT=max(rmsd_kT(now, member) for member in members),
        largest_error_kT=largest_error(shown.values(), workflow.diagnostics.f_cap_kT),
        kish_fraction_median=float(np.median(np.concatenate(fractions))),
        coarse_kl=max(forward_kl(shown[axes], run[axes]) for axes in shown),
        forward_kl=max(against, default=math.nan),
        final=final,
    )


def below_cap(f: FloatArray, workflow: Workflow) -> np.ndarray:
    """Return where f is low enough to be judged."""
    return f < f.min() + workflow.diagnostics.f_cap_kT


def largest_error(surfaces: Iterable[FreeEnergySurface], cap_kT: float) -> float:
    """Return the largest standard error of f below the cap, kT, of several surfaces."""
    return max(float(np.max(surface.error[surface.f < cap_kT])) for surface in surfaces)
