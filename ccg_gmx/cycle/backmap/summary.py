"""What a backmap run says about itself: summary.json and its verdict."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ccg_gmx.backmap.card_file import load_card
from ccg_gmx.cycle.backmap.config import Marks
from ccg_gmx.cycle.backmap.run import BackmapResults
from ccg_gmx.cycle.store import EVALUATIONS, RECORD, read_json

GEOMETRY = ("torsions", "bonds", "angles")


@dataclass(frozen=True)
class Mark:
    """A number and what it should be.

    Attributes:
        label: what it is.
        value: None where it could not be measured.
        limit: at most so much; None where it is not judged.
        show: number -> text.
        note: what else is to be said.
    """

    label: str
    value: float | None
    limit: float | None
    show: Callable[[float], str]
    note: str = ""

    @property
    def passed(self) -> bool | None:
        """Whether it is kept; a number that is missing is not. None where it is not judged."""
        if self.limit is None:
            return None
        return self.value is not None and math.isfinite(self.value) and self.value <= self.limit

    def words(self) -> str:
        """One line: the number, what was wanted, where."""
        found = "not measured" if self.value is None else self.show(self.value)
        wanted = "not judged" if self.limit is None else f"wanted at most {self.show(self.limit)}"
        return f"{self.label}: {found} ({wanted}){self.note}"


def summarise(results: BackmapResults, wall_s: dict[str, float]) -> dict[str, Any]:
    """Return the content of summary.json.

    Args:
        results: folders of all stages.
        wall_s: stage name -> seconds.
    """
    workflow = results.workflow
    card = load_card(results.card / "card.json").numbers
    training = read_json(results.model / "training.json")
    restored = _restored(results, card)
    trusted, reasons = judge(marks(restored, card, workflow.marks))
    summary = {
        "kind": "backmap",
        "system": workflow.system,
        "converged": trusted,
        "wall_s": {name: round(seconds, 2) for name, seconds in wall_s.items()},
        **_evaluations(results),
        "training": {name: value for name, value in training.items() if name not in ("topology", "trajectories")},
        "restored": restored,
        "card": card,
        "marks": workflow.marks.model_dump(),
        "verdict": {"trusted": trusted, "reasons": reasons},
        "assumptions": training["assumptions"],
        "seed": workflow.seed,
    }
    del summary["training"]["assumptions"]
    if results.minimised is not None:
        summary["minimised"] = read_json(results.minimised / "minimised.json")
    return summary


def _restored(results: BackmapResults, card: dict[str, Any]) -> dict[str, Any]:
    """Facts of the restored frames, and the geometry of the card, which held-out fine frames are needed for."""
    facts = read_json(results.restored / "restored.json")
    seconds = float(read_json(results.restored / RECORD)["wall_s"])
    found = {**facts, "seconds_per_frame": seconds / facts["frames"]}
    found["coarse"] = "beads of held-out fine frames" if results.workflow.coarse is None else "given"
    for kind in GEOMETRY:
        for name in ("max", "worst", "worst_floor", "classes"):
            found[f"js_{kind}_{name}"] = card.get(f"js_{kind}_{name}")
    return found


def marks(restored: dict[str, Any], card: dict[str, Any], wanted: Marks) -> list[Mark]:
    """All numbers that a verdict can look at, judged or not.

    Restored frames and those of the card count alike: the worse of both.
    """
    frames = f", in {restored['frames']} restored frames and {card['frames']} of the score card"
    deviation, wrong, clashes = (
        max(part[name] for part in (restored, card))
        for name in ("max_bead_deviation_nm", "chirality_errors", "clash_fraction")
    )
    found = [
        Mark("largest bead deviation", deviation, wanted.bead_deviation_nm, lambda value: f"{value:.1e} nm", frames),
        Mark("chirality errors", wrong, wanted.chirality_errors, lambda value: f"{value:.0f}", frames),
        Mark("frames with a clash", clashes, wanted.clash_fraction, lambda value: f"{100 * value:.2f} %", frames),
    ]
    limits = {"torsions": wanted.js_torsions, "bonds": wanted.js_bonds, "angles": wanted.js_angles}
    return found + [_geometry(restored, kind, limits[kind]) for kind in GEOMETRY]


def _geometry(restored: dict[str, Any], kind: str, limit: float | None) -> Mark:
    value = restored[f"js_{kind}_max"]
    note = ""
    if value is not None:
        note = f", {restored[f'js_{kind}_worst']}, the worst of {restored[f'js_{kind}_classes']} classes"
    label = f"Jensen-Shannon divergence of {kind} from held-out fine frames"
    return Mark(label, value, limit, lambda value: f"{value:.4f} nats", note)


def judge(found: list[Mark]) -> tuple[bool, list[str]]:
    """Say whether all marks are kept, and which."""
    missed = [mark for mark in found if mark.passed is False]
    if missed:
        return False, [f"not yet, because: {mark.words()}" for mark in missed]
    return True, [mark.words() for mark in found]


def _evaluations(results: BackmapResults) -> dict[str, dict[str, int]]:
    """MD steps of the fine runs and of the hot stretches before them, where there are any."""
    files = [folder / EVALUATIONS for folder in results.used if (folder / EVALUATIONS).is_file()]
    steps = sum(int(read_json(file)["fine_md_steps"]) for file in files)
    return {"energy_evaluations": {"fine_md_steps": steps, "total": steps}} if files else {}
