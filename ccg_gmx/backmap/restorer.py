"""What restores frames: the flow of a backmapping model, or that of a finished cycle."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ccg_gmx.backmap.contacts import ContactRules
from ccg_gmx.backmap.sampling import Draws
from ccg_gmx.backmap.system import BackmapSystem


class Restorer(Protocol):
    """Draws atoms on given beads and says how probable they are.

    Attributes:
        system: atoms and beads.
        candidates: draws of each block of which one is taken.
        rounds: the same of whole frames.
        sweeps: of side chains when all the rest stands; frames have no weights then.
        rules: what counts as a clash.
    """

    system: BackmapSystem
    candidates: int
    rounds: int
    sweeps: int
    rules: ContactRules

    def draw(self, beads: Tensor, generator: torch.Generator, box: Tensor | None = None) -> Draws:
        """Restore one frame onto each set of beads ``[T, n, 3]`` nm; ``box [T, 3, 3]`` has periodic images."""
        ...

    def log_prob(self, positions: Tensor, box: Tensor | None = None) -> Tensor:
        """ln q(r | beads) ``[T]`` of frames ``[T, N, 3]`` nm, relabelled; -inf off the supports."""
        ...

    def fingerprint(self) -> str:
        """Hash of what decides on the draws of one generator."""
        ...
