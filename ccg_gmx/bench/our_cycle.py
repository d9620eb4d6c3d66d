"""Our side of the free energy benchmark: a cycle with one seed, its cost, and how it got there turn by turn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from ccg_gmx.api import run_workflow
from ccg_gmx.cycle.config import load_workflow
from ccg_gmx.cycle.store import RECORD, read_json
from ccg_gmx.cycle.summary import count_evaluations


@dataclass(frozen=True)
class Turn:
    """Where a cycle stood when a surface was ready.

    Attributes:
        evaluations: all energies so far.
        wall_s: seconds so far.
        forward_kl: nats to the reference.
    """

    evaluations: float
    wall_s: float
    forward_kl: float


@dataclass(frozen=True)
class Seed:
    """One finished cycle.

    Attributes:
        seed: its seed.
        summary: content of its summary.json.
        turns: the surfaces on the way; the last is the final one, at the whole cost.
    """

    seed: int
    summary: dict[str, Any]
    turns: tuple[Turn, ...]

    @property
    def evaluations(self) -> int:
        """All energies of the run: MD steps, training, draws, thrown-away ones included."""
        return int(self.summary["energy_evaluations"]["total"])

    @property
    def wall_s(self) -> float:
        """Seconds of all stages."""
        return float(sum(self.summary["wall_s"].values()))

    @property
    def forward_kl(self) -> float:
        """Nats from the reference to the final surface, the reference's noise included."""
        return float(self.summary["reference"]["forward_kl"])

    def row(self) -> dict[str, Any]:
        """The run for JSON."""
        reference = self.summary["reference"]
        keys = ("forward_kl", "noise_floor", "rmsd_kT", "delta_f_kJ_mol", "delta_f_error", "reference_delta_f_kJ_mol")
        return {
            "seed": self.seed,
            **{key: reference.get(key) for key in keys},
            "evaluations": self.evaluations,
            "fine_md_steps": self.summary["energy_evaluations"]["fine_md_steps"],
            "wall_s": self.wall_s,
            "converged": self.summary["converged"],
            "turns": [vars(turn) for turn in self.turns],
        }


def run_seed(
    workflow: Path, out: Path, overrides: tuple[str, ...], seed: int, bar: Callable[[str, int], Any] | None
) -> Seed:
    """Run, or resume, the cycle with one seed.

    Args:
        workflow: workflow file.
        out: run folder.
        overrides: ``a.b=value`` strings, the seed among them.
        seed: that seed.
        bar: progress bars.

    Raises:
        CcgError: whatever the cycle raises.
    """
    summary = run_workflow(workflow, out, overrides=overrides, bar=bar)
    workers = load_workflow(workflow, overrides).engine.runs_at_once
    before = cycle_turns(out, workers)[:-1]
    found = Seed(seed, summary, ())
    return Seed(seed, summary, (*before, Turn(found.evaluations, found.wall_s, found.forward_kl)))


def cycle_turns(folder: Path, workers: int) -> tuple[Turn, ...]:
    """Read from a finished run what each of its surfaces had cost.

    Stages are listed in the order of their use; a surface costs all stages before it. Stages of one kind in a row ran
    side by side.

    Args:
        folder: run folder.
        workers: stages that ran at the same time.
    """
    packed = read_json(folder / "results.json")
    stages = folder / "stages"
    used = [stages / name for name in packed["used"]]
    place = {path.name: index for index, path in enumerate(used)}
    turns = []
    for turn in packed["turns"]:
        so_far = used[: place[turn["surface"]] + 1]
        count = count_evaluations(so_far)
        turns.append(Turn(count["total"], _wall_seconds(so_far, workers), turn["forward_kl"]))
    return tuple(turns)


def _wall_seconds(folders: list[Path], workers: int) -> float:
    records = [read_json(folder / RECORD) for folder in folders]
    total = 0.0
    for _, group in groupby(records, key=lambda record: record["name"]):
        seconds = [float(record["wall_s"]) for record in group]
        total += max(max(seconds), sum(seconds) / workers)
    return total
