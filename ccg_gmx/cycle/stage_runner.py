"""Running the stages of one workflow: seeds by what they are for, the engine as context, bars."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ccg_gmx.cycle.store import Job, StageFunction, Store

Bar = Callable[[str, int], Any]
"""``(label, total) -> progress bar``."""


@dataclass(frozen=True)
class StageRunner:
    """Makes jobs of stages, and has the store run them.

    Attributes:
        store: where.
        seed: of the workflow.
        context: values that change no number, the engine for one.
        bar: None for silence.
        seed_bits: of the seeds of stages; some stages add to theirs, and GROMACS takes 31 bits.
    """

    store: Store
    seed: int
    context: dict[str, Any] = field(default_factory=dict)
    bar: Bar | None = None
    seed_bits: int = 30

    def job(
        self, name: str, function: StageFunction, settings: dict[str, Any], inputs: dict[str, Path], label: str = ""
    ) -> Job:
        """One stage to run; stages of one name differ by their label, and so do their seeds."""
        return Job(
            name, function, settings, inputs, stage_seed(self.seed, name, label, bits=self.seed_bits), self.context
        )

    def one(
        self, name: str, function: StageFunction, settings: dict[str, Any], inputs: dict[str, Path], label: str = ""
    ) -> Path:
        """Run one stage; its folder."""
        return self.many([self.job(name, function, settings, inputs, label)])[0]

    def many(self, jobs: Sequence[Job]) -> list[Path]:
        """Run stages side by side, as far as there are workers; their folders."""
        return self.store.run(list(jobs), self.bar)


def stage_seed(seed: int, *labels: str, bits: int = 30) -> int:
    """Seed that depends on the workflow's seed and on what it is for, not on the order of calls."""
    text = "\0".join((str(seed), *labels))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> (32 - bits)
