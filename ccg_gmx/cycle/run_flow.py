"""The flows of a finished run as what ``ccg backmap`` restores with: exact beads, exact weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ccg_gmx.backmap.contacts import contact_rules
from ccg_gmx.backmap.data import HeldOut
from ccg_gmx.backmap.jobs import Target, reduced_energy
from ccg_gmx.backmap.sampling import Draws, fingerprint_of
from ccg_gmx.backmap.system import Atoms, BackmapSystem, make_system_at
from ccg_gmx.cycle.finished import FinishedRun
from ccg_gmx.cycle.stages.fine import load_split
from ccg_gmx.cycle.system import System
from ccg_gmx.flow.checkpoint import load_flow
from ccg_gmx.flow.conditional import LadderFlow

HELD_OUT_FRAMES = 2000
"""Held-out frames that a score card is made of, at most."""


def load_run_target(folder: Path) -> Target:
    """Read the flows of a finished run and what their frames are compared with.

    Raises:
        StoreError: the run is not finished, or its files are gone.
        CcgError: they cannot be read.
    """
    run = FinishedRun.open(folder, "the folder of a finished run, or a model file of ccg backmap train")
    system = System.load(run.stage("system"))
    flows = [load_flow(path / "flow.pt").to(torch.float64) for path in run.stages("flows")]
    restorer = CycleRestorer(system, flows)
    split = run.stage("split") / "held_out.npz"
    return Target(
        restorer,
        "",
        lambda: reduced_energy(system.energy(), system.temperature_K),
        lambda: _held_out(system, split),
    )


def _held_out(system: System, split: Path) -> HeldOut:
    """Fine frames that likelihood training never saw, evenly chosen."""
    frames = load_split(split)
    chosen = slice(None, None, max(1, -(-len(frames.s) // HELD_OUT_FRAMES)))
    with torch.no_grad():
        parts = (torch.from_numpy(array[chosen]) for array in (frames.s, frames.b, frames.y))
        return HeldOut(system.coordinates.join(*parts).numpy())


class CycleRestorer:
    """The equal mixture of the flows of a cycle; see :class:`ccg_gmx.backmap.restorer.Restorer`.

    A flow of a cycle knows its whole molecule at once and needs no candidates against overlaps. The flows are trained
    independently, so a frame that one of them makes too rarely is made by another, and weights with the density of the
    mixture are the more even (multiple importance sampling, Veach & Guibas, doi:10.1145/218380.218498).

    Args:
        system: the molecule.
        flows: one or more, float64.
    """

    def __init__(self, system: System, flows: Sequence[LadderFlow]) -> None:
        self.cycle, self.flows = system, tuple(flows)
        atoms = Atoms.of_topology(system.topology)
        self.system: BackmapSystem = make_system_at(atoms, system.beads, system.bead_names, system.structure)
        self.candidates = self.rounds = 1
        self.sweeps = 0
        self.rules = contact_rules(atoms)

    @torch.no_grad()
    def draw(self, beads: Tensor, generator: torch.Generator, box: Tensor | None = None) -> Draws:
        """Restore one frame onto each set of beads ``[T, n, 3]`` nm, from a member chosen at random.

        Beads outside the supports (a peptide bond that turned cis) have ln q = -inf: such frames are no part of the
        ensemble that the run is about.
        """
        coordinates = self.cycle.coordinates
        s, b = coordinates.split_beads(beads)
        member = torch.randint(len(self.flows), (len(beads),), generator=generator)
        y = torch.empty(len(beads), coordinates.n_y, dtype=torch.float64)
        for k, flow in enumerate(self.flows):
            own = member == k
            if own.any():
                y[own] = flow.draw_rest(s[own], b[own], generator)[0]
        log_q = self._log_density(s, b, y)
        log_q[~coordinates.in_support_beads(b)] = -math.inf
        return Draws(coordinates.place(beads, y), log_q, torch.zeros_like(log_q))

    @torch.no_grad()
    def log_prob(self, positions: Tensor, box: Tensor | None = None) -> Tensor:
        """ln q(r | beads) ``[T]`` of frames ``[T, N, 3]`` nm, relabelled; -inf off the supports."""
        return self._log_density(*self.cycle.coordinates.split(positions))

    def _log_density(self, s: Tensor, b: Tensor, y: Tensor) -> Tensor:
        """ln q(r | beads) ``[T]``, per volume of the atoms that are no beads, nm^-3 each."""
        members = torch.stack([flow.log_prob_rest(y, s, b) for flow in self.flows])
        coordinates = self.cycle.coordinates
        log_volume = coordinates.log_jacobian(b, y) - coordinates.log_jacobian_beads(b)
        return torch.logsumexp(members, 0) - math.log(len(self.flows)) - log_volume

    def fingerprint(self) -> str:
        """Hash of what decides on the draws of one generator."""
        return fingerprint_of("cycle", *self.flows)
