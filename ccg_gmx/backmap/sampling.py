"""Draws of the flow on given beads, pass by pass, with their exact log-density."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ccg_gmx.backmap import features
from ccg_gmx.backmap.contacts import (
    COST_PER_CLASH,
    UNREACHABLE,
    ContactRules,
    Surround,
    Turn,
    choose,
    clash_counts,
    contact_rules,
    surround_of,
)
from ccg_gmx.backmap.features import KindView, SystemView
from ccg_gmx.backmap.model import BackmapFlow
from ccg_gmx.backmap.system import BackmapSystem


@dataclass(frozen=True, eq=False)
class Draws:
    """Restored frames.

    Attributes:
        positions: ``[T, N, 3]`` nm.
        log_q: ``[T]`` ln q(r | beads); -inf where a bridge does not reach.
        log_choice: ``[T]`` sum of ln(g / mean g) of the candidates taken; 0 with one candidate. ``log_q + log_choice``
            is the log-density that belongs in importance weights.
    """

    positions: Tensor
    log_q: Tensor
    log_choice: Tensor


class Sampler:
    """Draws all blocks of a system, with a number of candidates for each.

    Blocks are taken one after the other, so a frame can end without room for the last. Therefore frames have candidates
    as well, of which one is taken by its clashes in the same way and with the same account in ``log_choice``.

    Args:
        flow: trained.
        system: of the kinds that the flow knows.
        candidates: draws of each block of which one is taken; 1 is the plain flow.
        rounds: draws of each frame of which one is taken.
    """

    def __init__(self, flow: BackmapFlow, system: BackmapSystem, candidates: int = 1, rounds: int = 1) -> None:
        self.flow, self.system, self.candidates, self.rounds = flow, system, candidates, rounds
        self.view: SystemView = flow.view(system)
        self.rules: ContactRules = contact_rules(system.atoms)
        self._surround: Surround = surround_of(system)
        self._turns = [self._turn(stage) for stage in range(system.blocks.n_stages)]
        with torch.no_grad():
            reference = torch.as_tensor(system.reference, dtype=torch.float64)[None]
            self._filler = system.placement.split(system.placement.relabel(reference))[0]

    def _turn(self, stage: int) -> tuple[list[tuple[KindView, np.ndarray]], Turn, np.ndarray]:
        """Kinds with their blocks of a pass, the blocks in the order in which they are taken, and their numbers."""
        kinds, entries = [], []
        for kind in self.view.kinds:
            members = np.flatnonzero(kind.table.stage[0] == stage)
            if len(members):
                kinds.append((kind, members))
                entries += [(int(kind.table.blocks[k]), kind.table.atoms[k], kind.table.frames[k, 0]) for k in members]
        # Single atoms stand where the beads put them; of the rest the bulky ones need room first.
        entries.sort(key=lambda entry: (0 if len(entry[1]) == 1 else -len(entry[1]), entry[0]))
        entries.sort(key=lambda entry: len(entry[1]) > 1)
        start = np.cumsum([0, *(len(atoms) for _, atoms, _ in entries)]).astype(np.int64)
        atoms = np.concatenate([atoms for _, atoms, _ in entries])
        blocks = np.array([block for block, _, _ in entries], dtype=np.int64)
        return kinds, Turn(start, atoms, np.array([o for _, _, o in entries], dtype=np.int64)), blocks

    @torch.no_grad()
    def draw(self, beads: Tensor, generator: torch.Generator) -> Draws:
        """Restore one frame onto each set of beads.

        Args:
            beads: ``[T, n, 3]`` nm.
            generator: source of the noise.
        """
        if self.rounds == 1:
            return self._draw_once(beads, generator)
        found = [self._draw_once(beads, generator) for _ in range(self.rounds)]
        cost = torch.stack([self._cost(draws) for draws in found])
        weight = torch.exp(cost.amin(0) - cost)
        pick = torch.multinomial(weight.T, 1, generator=generator)[:, 0]
        rows = torch.arange(len(beads))
        log_g = torch.log(weight[pick, rows] / weight.mean(0)).to(beads.dtype)
        positions, log_q, log_choice = (
            torch.stack([getattr(draws, name) for draws in found])[pick, rows]
            for name in ("positions", "log_q", "log_choice")
        )
        return Draws(positions, log_q, log_choice + log_g)

    @torch.no_grad()
    def log_prob(self, positions: Tensor) -> Tensor:
        """ln q(r | beads) ``[T]`` of frames ``[T, N, 3]`` nm, relabelled; of the plain flow, without candidates."""
        return self.flow.log_prob(positions, self.view)

    def fingerprint(self) -> str:
        """Hash of what decides on the draws of one generator."""
        digest = hashlib.sha256(f"{self.candidates} {self.rounds} {' '.join(self.system.atoms.names)}".encode())
        for value in self.flow.state_dict().values():
            digest.update(value.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def _cost(self, draws: Draws) -> Tensor:
        """kT that a frame pays for its clashes, ``[T]``."""
        clashes = torch.from_numpy(clash_counts(self.rules, draws.positions.numpy())).to(torch.float64)
        return COST_PER_CLASH * clashes + UNREACHABLE * (~torch.isfinite(draws.log_q)).to(torch.float64)

    def _draw_once(self, beads: Tensor, generator: torch.Generator) -> Draws:
        frames, m = len(beads), self.candidates
        placement = self.system.placement
        y = self._filler.to(beads.dtype).expand(frames, -1).clone()
        log_q, log_choice = beads.new_zeros(frames), beads.new_zeros(frames)
        placed = np.zeros(len(self.system.atoms), dtype=bool)
        placed[self.system.beads] = True
        x, log_volume = placement.join(beads, y)
        for kinds, turn, blocks in self._turns:
            many, block_log_q = self._draw_pass(kinds, x, y, generator)
            if m == 1:
                y, log_q = many[0], log_q + sum(values[0].sum(0) for values in block_log_q)
                x, log_volume = placement.join(beads, y)
            else:
                y, x, log_volume, gains = self._take(beads, many, block_log_q, (kinds, turn, blocks), placed, generator)
                log_q, log_choice = log_q + gains[0], log_choice + gains[1]
            placed[turn.atoms] = True
        return Draws(x, log_q - log_volume, log_choice)

    def _draw_pass(
        self, kinds: list[tuple[KindView, np.ndarray]], x: Tensor, y: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, list[Tensor]]:
        """Candidates ``[M, T, n_y]`` of y with the blocks of a pass drawn, and ln q ``[M, n, T]`` of those by kind."""
        m, frames = self.candidates, len(y)
        last = x.permute(2, 1, 0).contiguous()
        near = features.surroundings(last, self.view)
        many = y.expand(m, -1, -1).clone()
        found = []
        for kind, members in kinds:
            part = _members(kind, members)
            flow = self.flow.kind_flow(self.flow.number_of(kind)).flow
            context = self.flow.context(self.flow.look(last, near, self.view, part), part, 0)
            wide = context.repeat(1, m)
            noise = flow.base_noise(wide.shape[1], generator)
            values, log_q = flow.push(noise, wide, wide)
            width, n = len(values), len(members)
            values = values.view(width, m, n, frames).permute(1, 3, 2, 0).reshape(m, frames, n * width)
            many[:, :, part.columns.reshape(-1)] = values
            found.append(log_q.view(m, n, frames))
        return many, found

    def _take(
        self,
        beads: Tensor,
        many: Tensor,
        block_log_q: list[Tensor],
        entry: tuple[list[tuple[KindView, np.ndarray]], Turn, np.ndarray],
        placed: np.ndarray,
        generator: torch.Generator,
    ) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor]]:
        """Take one candidate of each block; return y, positions, ln|J| and (ln q, ln g / mean g) of what was taken."""
        kinds, turn, blocks = entry
        m, frames = many.shape[:2]
        placement = self.system.placement
        x, _ = placement.join(beads.repeat(m, 1, 1), many.flatten(0, 1))
        candidates = x.view(m, frames, -1, 3)
        uniform = torch.rand(frames, len(blocks), generator=generator, dtype=torch.float64)
        reachable = self._reachable(candidates, turn, many)
        chosen, log_g = choose(
            candidates.to(torch.float64).numpy(), reachable, placed, uniform.numpy(), turn, self._surround, self.rules
        )
        pick = torch.from_numpy(chosen)
        place = {int(block): k for k, block in enumerate(blocks)}
        y, log_q = many[0].clone(), beads.new_zeros(frames)
        for (kind, members), values in zip(kinds, block_log_q, strict=True):
            for k, member in enumerate(members):
                own = pick[:, place[int(kind.table.blocks[member])]]
                columns = kind.columns[member]
                y[:, columns] = many[:, :, columns][own, torch.arange(frames)]
                log_q += values[:, k][own, torch.arange(frames)]
        x, log_volume = placement.join(beads, y)
        return y, x, log_volume, (log_q, torch.from_numpy(log_g).to(beads.dtype))

    def _reachable(self, candidates: Tensor, turn: Turn, many: Tensor) -> np.ndarray:
        """Whether every bridge of a block spans its ends, ``[M, T, b]``."""
        plan, placement = self.system.placement.plan, self.system.placement
        m, frames = many.shape[:2]
        result = np.ones((m, frames, len(turn.origin)), dtype=bool)
        bridge = {row.atom: k for k, row in enumerate(plan.rows) if row.role == "bridge"}
        for b in range(len(turn.origin)):
            for atom in turn.atoms[turn.start[b] : turn.start[b + 1]].tolist():
                if atom in bridge:
                    row = plan.rows[bridge[atom]]
                    ends = candidates[:, :, [row.parent, row.angle_ref]]
                    span = (ends[:, :, 0] - ends[:, :, 1]).norm(dim=-1)
                    first, second = many[:, :, bridge[atom]], many[:, :, bridge[atom] + placement.n_rows]
                    reaches = (span < first + second) & (span > (first - second).abs())
                    result[:, :, b] &= reaches.numpy()
        return result


def _members(kind: KindView, members: np.ndarray) -> KindView:
    """The view of some of the blocks of a kind."""
    if len(members) == len(kind.table.blocks):
        return kind
    own = torch.from_numpy(members)
    return KindView(
        kind.table,
        kind.frames[own],
        kind.origin[own],
        kind.slots[own],
        kind.visible[:, :, own],
        kind.properties[:, own],
        kind.columns[own],
    )
