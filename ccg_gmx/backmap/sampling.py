"""Draws of the flow on given beads, pass by pass, with their exact log-density."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

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
from ccg_gmx.backmap.features import KindView, Near, SystemView
from ccg_gmx.backmap.model import BackmapFlow
from ccg_gmx.backmap.system import BackmapSystem
from ccg_gmx.records import IntArray


@dataclass(frozen=True, eq=False)
class Draws:
    """Restored frames.

    Attributes:
        positions: ``[T, N, 3]`` nm.
        log_q: ``[T]`` ln q(r | beads); -inf where a bridge does not reach.
        log_choice: ``[T]`` sum of ln(g / mean g) of the candidates taken; 0 with one candidate. ``log_q + log_choice``
            is the log-density that belongs in importance weights. NaN after sweeps, whose density nobody knows.
    """

    positions: Tensor
    log_q: Tensor
    log_choice: Tensor


@dataclass(frozen=True, eq=False)
class _Pass:
    """What is drawn at once.

    Attributes:
        kinds: views of the kinds, of their blocks in this pass alone.
        turn: the ``b`` blocks in the order in which candidates are taken.
        places: for each kind ``[n]`` places of its blocks in that order.
        columns: ``[c]`` columns of y, and ``[c]`` the places of their blocks.
        column_places: see there.
        bridges: ``[r]`` rows that close a ring or a chain, and ``[r]`` the places of their blocks.
        bridge_places: see there.
        handed: ``[h]`` stereocentres that this pass completes, and ``[h]`` the places of their blocks; none where
            handedness is kept by construction.
        handed_places: see there.
    """

    kinds: tuple[KindView, ...]
    turn: Turn
    places: tuple[Tensor, ...]
    columns: Tensor
    column_places: Tensor
    bridges: Tensor
    bridge_places: Tensor
    handed: Tensor
    handed_places: Tensor


class Sampler:
    """Draws all blocks of a system, with a number of candidates for each.

    Blocks are taken one after the other, so a frame can end without room for the last. Therefore frames have candidates
    as well, of which one is taken by its clashes in the same way and with the same account in ``log_choice``.

    Sweeps draw the blocks anew that no other block sees, side chains mostly, when all the rest stands: one of the
    present state and ``candidates - 1`` fresh ones is taken by all its clashes. That leaves q exp(-cost) invariant
    (iterated sampling importance resampling, Andrieu, Doucet & Holenstein, doi:10.1111/j.1467-9868.2009.00736.x), but
    the density of what comes out is unknown: such frames have no weights.

    Args:
        flow: trained.
        system: of the kinds that the flow knows.
        candidates: draws of each block of which one is taken; 1 is the plain flow.
        rounds: draws of each frame of which one is taken.
        sweeps: see above; without effect where there is one candidate.
    """

    def __init__(
        self, flow: BackmapFlow, system: BackmapSystem, candidates: int = 1, rounds: int = 1, sweeps: int = 0
    ) -> None:
        self.flow, self.system, self.candidates, self.rounds = flow, system, candidates, rounds
        self.sweeps = sweeps if candidates > 1 else 0
        self.view: SystemView = flow.view(system)
        self.rules: ContactRules = contact_rules(system.atoms)
        self._surround: Surround = surround_of(system)
        self._passes = [
            self._pass([np.flatnonzero(kind.table.stage[0] == stage) for kind in self.view.kinds])
            for stage in range(system.blocks.n_stages)
        ]
        self._free = self._pass(self._unseen()) if self.sweeps else None
        with torch.no_grad():
            reference = torch.as_tensor(system.reference, dtype=torch.float64)[None]
            self._filler = system.placement.split(system.placement.relabel(reference))[0]

    def _unseen(self) -> list[IntArray]:
        """Blocks of each kind that no other block sees or is placed on."""
        blocks, rows = self.system.blocks, self.system.placement.plan.rows
        owner = {rows[row].atom: k for k, block in enumerate(blocks.blocks) for row in block.rows}
        seen: set[int] = set()
        for kind in self.view.kinds:
            seen.update(kind.slots[kind.visible[0].T > 0].tolist())
        for row in rows:
            references = (row.parent, row.angle_ref, row.torsion_ref, row.measured_from)
            seen.update(atom for atom in references if owner.get(atom) != owner[row.atom])
        return [
            np.array(
                [k for k, own in enumerate(kind.table.atoms) if not seen.intersection(own.tolist())], dtype=np.int64
            )
            for kind in self.view.kinds
        ]

    def _pass(self, members_of: list[IntArray]) -> _Pass:
        """A pass of some blocks of each kind."""
        found = [(kind, own) for kind, own in zip(self.view.kinds, members_of, strict=True) if len(own)]
        entries = [
            (int(kind.table.blocks[k]), kind.table.atoms[k], kind.table.frames[k, 0])
            for kind, members in found
            for k in members
        ]
        # Single atoms stand where the beads put them; of the rest the bulky ones need room first.
        entries.sort(key=lambda entry: (0 if len(entry[1]) == 1 else -len(entry[1]), entry[0]))
        entries.sort(key=lambda entry: len(entry[1]) > 1)
        start = np.cumsum([0, *(len(atoms) for _, atoms, _ in entries)]).astype(np.int64)
        atoms = np.concatenate([atoms for _, atoms, _ in entries])
        place = {block: k for k, (block, _, _) in enumerate(entries)}
        kinds = tuple(_members(kind, members) for kind, members in found)
        places = tuple(
            torch.tensor([place[int(kind.table.blocks[k])] for k in members], dtype=torch.int64)
            for kind, members in found
        )
        width = [kind.columns.shape[1] for kind in kinds]
        row_of = {row.atom: k for k, row in enumerate(self.system.placement.plan.rows) if row.role == "bridge"}
        bridges = [
            (row_of[int(atom)], b)
            for b in range(len(entries))
            for atom in atoms[start[b] : start[b + 1]]
            if int(atom) in row_of
        ]
        rows = torch.tensor(bridges, dtype=torch.int64).reshape(-1, 2)
        return _Pass(
            kinds,
            Turn(start, atoms, np.array([origin for _, _, origin in entries], dtype=np.int64)),
            places,
            torch.cat([kind.columns.reshape(-1) for kind in kinds]),
            torch.cat([own.repeat_interleave(count) for own, count in zip(places, width, strict=True)]),
            rows[:, 0],
            rows[:, 1],
            *self._completed(start, atoms),
        )

    def _completed(self, start: IntArray, atoms: IntArray) -> tuple[Tensor, Tensor]:
        """Stereocentres whose last atoms come to their places with these atoms, and places of such atoms' blocks.

        Only groups around centres have bonds between them that no coordinate describes, so only there can a centre with
        a neighbour in another group turn out wrong.
        """
        found: list[tuple[int, int]] = []
        if self.system.centres:
            stage = np.full(len(self.system.atoms), -1, dtype=np.int64)
            for table in self.system.blocks.kinds:
                stage[table.atoms] = table.stage[0][:, None]
            place = {int(atom): b for b in range(len(start) - 1) for atom in atoms[start[b] : start[b + 1]]}
            for k, four in enumerate(self.system.placement.stereocentres.tolist()):
                last = max((atom for atom in four if atom in place), key=lambda atom: stage[atom], default=-1)
                if last >= 0 and stage[four].max() <= stage[atoms].max():
                    found.append((k, place[last]))
        rows = torch.tensor(found, dtype=torch.int64).reshape(-1, 2)
        return rows[:, 0], rows[:, 1]

    @torch.no_grad()
    def draw(self, beads: Tensor, generator: torch.Generator, box: Tensor | None = None) -> Draws:
        """Restore one frame onto each set of beads.

        Args:
            beads: ``[T, n, 3]`` nm, molecules whole.
            generator: source of the noise.
            box: ``[T, 3, 3]`` nm, whose periodic images are seen; None for none.
        """
        # The surroundings of a block are beads, so they are the same for all passes and rounds.
        every = beads.new_zeros(3, 1 + int(self.view.beads.max()), len(beads))
        every[:, self.view.beads] = beads.permute(2, 1, 0)
        near = features.surroundings(every, self.view, box)
        if self.rounds == 1:
            return self._draw_once(beads, near, generator)
        found = [self._draw_once(beads, near, generator) for _ in range(self.rounds)]
        cost = torch.stack([self._cost(draws, box) for draws in found])
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
    def log_prob(self, positions: Tensor, box: Tensor | None = None) -> Tensor:
        """ln q(r | beads) ``[T]`` of frames ``[T, N, 3]`` nm, relabelled; of the plain flow, without candidates."""
        return self.flow.log_prob(positions, self.view, box)

    def fingerprint(self) -> str:
        """Hash of what decides on the draws of one generator."""
        words = f"{self.candidates} {self.rounds} {self.sweeps} {' '.join(self.system.atoms.names)}"
        return fingerprint_of(words, self.flow)

    def _cost(self, draws: Draws, box: Tensor | None) -> Tensor:
        """kT that a frame pays for its clashes, ``[T]``."""
        cells = None if box is None else box.numpy()
        clashes = torch.from_numpy(clash_counts(self.rules, draws.positions.numpy(), cells)).to(torch.float64)
        wrong = self.system.placement.chirality_errors(draws.positions) if self.system.centres else 0
        return COST_PER_CLASH * clashes + UNREACHABLE * ((~torch.isfinite(draws.log_q)).to(torch.float64) + wrong)

    def _draw_once(self, beads: Tensor, near: Near, generator: torch.Generator) -> Draws:
        frames, m = len(beads), self.candidates
        placement = self.system.placement
        y = self._filler.to(beads.dtype).expand(frames, -1).clone()
        log_q, log_choice = beads.new_zeros(frames), beads.new_zeros(frames)
        placed = np.ones(len(self.system.atoms), dtype=bool)
        for part in self._passes:
            placed[part.turn.atoms] = False
        x, log_volume = placement.join(beads, y)
        for part in self._passes:
            many, block_log_q = self._draw_pass(part, x, y, near, generator)
            if m == 1:
                y, log_q = many[0], log_q + sum(values[0].sum(0) for values in block_log_q)
            else:
                y, gains = self._take(beads, many, block_log_q, part, placed, generator, near.box)
                log_q, log_choice = log_q + gains[0], log_choice + gains[1]
            x, log_volume = placement.join(beads, y)
            placed[part.turn.atoms] = True
        if self._free is None:
            return Draws(x, log_q - log_volume, log_choice)
        return self._swept(self._free, beads, x, y, near, generator)

    def _swept(self, part: _Pass, beads: Tensor, x: Tensor, y: Tensor, near: Near, generator: torch.Generator) -> Draws:
        """Draw the blocks of ``part`` anew, ``sweeps`` times."""
        placed = np.ones(len(self.system.atoms), dtype=bool)
        for _ in range(self.sweeps):
            many, block_log_q = self._draw_pass(part, x, y, near, generator)
            many[0] = y
            y, _ = self._take(beads, many, block_log_q, part, placed, generator, near.box)
            x, log_volume = self.system.placement.join(beads, y)
        log_q = torch.where(torch.isfinite(log_volume), self.flow.log_prob(x, self.view, near.box), -torch.inf)
        return Draws(x, log_q, torch.full_like(log_q, torch.nan))

    def _draw_pass(
        self, part: _Pass, x: Tensor, y: Tensor, near: Near, generator: torch.Generator
    ) -> tuple[Tensor, list[Tensor]]:
        """Candidates ``[M, T, n_y]`` of y with the blocks of a pass drawn, and ln q ``[M, n, T]`` of those by kind."""
        m, frames = self.candidates, len(y)
        last = features.points_of(x, self.system)
        many = y.expand(m, -1, -1).clone()
        found = []
        for kind in part.kinds:
            flow = self.flow.kind_flow(self.flow.number_of(kind)).flow
            context = self.flow.context(self.flow.look(last, near, self.view, kind), kind, 0)
            wide = context.repeat(1, m)
            noise = flow.base_noise(wide.shape[1], generator)
            values, log_q = flow.push(noise, wide, wide)
            n, width = kind.columns.shape
            values = values.view(width, m, n, frames).permute(1, 3, 2, 0).reshape(m, frames, n * width)
            many[:, :, kind.columns.reshape(-1)] = values
            found.append(log_q.view(m, n, frames))
        return many, found

    def _take(
        self,
        beads: Tensor,
        many: Tensor,
        block_log_q: list[Tensor],
        part: _Pass,
        placed: np.ndarray,
        generator: torch.Generator,
        box: Tensor | None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Take one candidate of each block; return y and (ln q, ln g / mean g) of what was taken."""
        m, frames = many.shape[:2]
        x, _ = self.system.placement.join(beads.repeat(m, 1, 1), many.flatten(0, 1))
        candidates = x.view(m, frames, -1, 3)
        if self.system.centres:
            candidates = torch.cat([candidates, beads.expand(m, *beads.shape)], 2)
        uniform = torch.rand(frames, len(part.turn.origin), generator=generator, dtype=torch.float64)
        chosen, log_g = choose(
            candidates.to(torch.float64).numpy(),
            self._possible(candidates, part, many),
            placed,
            uniform.numpy(),
            part.turn,
            self._surround,
            self.rules,
            None if box is None else box.numpy(),
        )
        pick = torch.from_numpy(chosen)
        y = many[0].clone()
        y[:, part.columns] = many[:, :, part.columns].gather(0, pick[:, part.column_places][None])[0]
        log_q = beads.new_zeros(frames)
        for values, places in zip(block_log_q, part.places, strict=True):
            log_q += values.gather(0, pick[:, places].T[None])[0].sum(0)
        return y, (log_q, torch.from_numpy(log_g).to(beads.dtype))

    def _possible(self, candidates: Tensor, part: _Pass, many: Tensor) -> np.ndarray:
        """Whether every bridge of a block spans its ends and no stereocentre is wrong, ``[M, T, b]``."""
        placement = self.system.placement
        rows = [placement.plan.rows[k] for k in part.bridges.tolist()]
        ends = [candidates[:, :, [getattr(row, name) for row in rows]] for name in ("parent", "angle_ref")]
        span = (ends[0] - ends[1]).norm(dim=-1)
        first, second = many[:, :, part.bridges], many[:, :, part.bridges + placement.n_rows]
        misses = (span >= first + second) | (span <= (first - second).abs())
        count = torch.zeros(*many.shape[:2], len(part.turn.origin), dtype=torch.int64)
        count.index_add_(2, part.bridge_places, misses.to(torch.int64))
        if len(part.handed):
            atoms = candidates[:, :, : len(self.system.atoms)].flatten(0, 1)
            wrong = placement.wrong_handed(atoms).view(*many.shape[:2], -1)[:, :, part.handed]
            count.index_add_(2, part.handed_places, wrong.to(torch.int64))
        return (count == 0).numpy()


def fingerprint_of(words: str, *flows: nn.Module) -> str:
    """Hash of flows and of what else decides, in words."""
    digest = hashlib.sha256(words.encode())
    for flow in flows:
        for value in flow.state_dict().values():
            digest.update(value.contiguous().numpy().tobytes())
    return digest.hexdigest()


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
