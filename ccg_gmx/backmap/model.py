"""One flow for molecules of any length: a conditional flow for each kind of block, shared by all blocks of the kind.

ln q(r | beads) = sum over blocks of ln q_kind(y_block | what the block sees) - ln|d r / d y|, exactly, because what a
block sees are beads and blocks drawn before it. The cost is that of the blocks, so it is linear in the atoms. Within a
kind all blocks of all frames are one batch. Kinds share no parameters: a peptide bond has thousands of examples where a
rare side chain has a hundred, and each is trained as long as its own held-out likelihood rises.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from ccg_gmx.backmap import features
from ccg_gmx.backmap.blocks import KindTable
from ccg_gmx.backmap.features import KindView, Near, SystemView
from ccg_gmx.backmap.system import BackmapSystem
from ccg_gmx.errors import CheckpointError
from ccg_gmx.flow.conditional import ConditionalFlow, FlowSettings
from ccg_gmx.molecule.coordinate import Coordinate
from ccg_gmx.molecule.placement.transform import coordinate_ends
from ccg_gmx.settings import Settings

FIT_SAMPLES = 20_000
"""Values of a kind that whitening is fitted to, at most."""
RIDGE = 1.5
"""Part of a kind's covariance that is replaced by the unit matrix, over the square of coordinates by samples."""
LARGEST_FEATURE = 8.0
"""Whitened positions are kept within so many standard deviations: beads of a coarse model may be anywhere."""


class BackmapSettings(Settings):
    """Shape of the flow."""

    width: int = Field(default=96, ge=4, description="Hidden width of what makes a context of what a block sees.")
    context: int = Field(default=48, ge=4, description="Numbers of the context that the flow of a kind is given.")
    couplings: int = Field(default=0, ge=0, description="Spline couplings of each kind: for very many frames.")
    bins: int = Field(default=16, ge=2, le=200, description="Bins of the splines.")
    flow_width: int = Field(default=64, ge=2, description="Hidden width of the conditioners of a kind.")
    lower_width: int = Field(
        default=2, ge=2, description="Hidden width of those of its correlations, which depend little on surroundings."
    )
    seed: int = Field(default=0, ge=0, description="Of the initial weights.")

    def of_kind(self) -> FlowSettings:
        """Settings of the flow of one kind."""
        return FlowSettings(
            couplings=self.couplings,
            bins=self.bins,
            width=self.flow_width,
            lower_width=self.lower_width,
            coupling_width=self.flow_width,
            circle_width=self.flow_width,
            depth=1,
            bend=True,
        )


@dataclass(frozen=True, eq=False)
class Sight:
    """What the blocks of one kind see.

    Attributes:
        white: ``[S, 3, n, T]`` whitened positions of atoms, also of those that are not there or not placed yet.
        others: ``[F, n, T]`` surroundings and properties.
    """

    white: Tensor
    others: Tensor

    def frames(self, chosen: slice) -> Sight:
        """Return some of the frames."""
        return Sight(self.white[..., chosen], self.others[..., chosen])


def coordinates_of(y: Tensor, kind: KindView) -> Tensor:
    """Coordinates ``[3 m, n, T]`` of the blocks of a kind from all, ``[n_y, T]``."""
    n, width = kind.columns.shape
    return y.index_select(0, kind.columns.T.reshape(-1)).view(width, n, -1)


class KindFlow(nn.Module):
    """Flow of one kind of blocks, the whitening of what its blocks see, and the context made of it.

    Args:
        label: for people.
        coordinates: coordinates of a block.
        slots: names of what a block sees.
        settings: shape.
        generator: source of the initial weights.
    """

    centre: Tensor
    scale: Tensor

    def __init__(
        self,
        label: str,
        coordinates: tuple[Coordinate, ...],
        slots: tuple[str, ...],
        settings: BackmapSettings,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.label, self.coordinates, self.slots = label, coordinates, slots
        self.flow = ConditionalFlow(
            settings.context, settings.context, coordinates, settings.of_kind(), generator, settings.couplings
        )
        self.register_buffer("centre", torch.zeros(len(slots), 3, 1, dtype=torch.float64))
        self.register_buffer("scale", torch.ones(len(slots), 3, 1, dtype=torch.float64))
        others = features.N_SURROUNDINGS + features.N_PROPERTIES
        self.slot_weight = _weight(settings.width, 4 * len(slots), generator)
        self.other_weight = _weight(settings.width, others, generator)
        self.bias = _weight(settings.width, 1, generator)
        self.hidden = _weight(settings.context, settings.width, generator)
        self.hidden_bias = nn.Parameter(torch.zeros(settings.context, 1, dtype=torch.float64))
        self.skip = _weight(settings.context, 4 * len(slots), generator, 0.1)

    def context(self, sight: Sight, visible: Tensor, keep: Tensor | None = None) -> Tensor:
        """Context ``[context, n T]`` of what blocks see, of which ``visible [S, n]`` is placed."""
        slots, n, frames = len(sight.white), *sight.others.shape[1:]
        shown = visible.to(self.bias.dtype)[:, None, :, None]
        there = shown.expand(slots, 1, n, frames)
        seen = torch.cat([sight.white * shown, there], 1).reshape(4 * slots, -1)
        first = torch.addmm(self.bias, self.slot_weight, seen)
        others = sight.others if keep is None else sight.others * keep.unsqueeze(1)
        first = torch.addmm(first, self.other_weight, others.reshape(-1, n * frames))
        hidden = torch.addmm(self.hidden_bias, self.hidden, functional.silu(first))
        return torch.addmm(torch.tanh(hidden), self.skip, seen)

    def whiten(self, positions: Tensor) -> Tensor:
        """Whitened positions ``[S, 3, n, T]`` of local positions in nm."""
        white = (positions - self.centre.to(positions.dtype).unsqueeze(3)) / self.scale.to(positions.dtype).unsqueeze(3)
        return white.clamp(-LARGEST_FEATURE, LARGEST_FEATURE)

    @torch.no_grad()
    def fit_whitening(self, positions: Tensor, there: Tensor) -> None:
        """Set the whitening from local positions ``[S, 3, n, T]`` of what is there, ``[S, n]``."""
        weight = there.to(positions.dtype)[:, None, :, None].expand_as(positions)
        total = weight.sum((2, 3)).clamp_min(1.0)
        mean = (positions * weight).sum((2, 3)) / total
        spread = (((positions - mean[:, :, None, None]) ** 2 * weight).sum((2, 3)) / total).sqrt()
        self.centre.copy_(mean.unsqueeze(2))
        self.scale.copy_(spread.clamp_min(1e-4).unsqueeze(2))


class BackmapFlow(nn.Module):
    """Density of all atoms given the beads.

    Args:
        kinds: name of each kind -> its label, coordinates and what its blocks see.
        settings: shape.
    """

    def __init__(
        self, kinds: dict[str, tuple[str, tuple[Coordinate, ...], tuple[str, ...]]], settings: BackmapSettings
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(settings.seed)
        self.settings, self.kinds = settings, tuple(kinds)
        self.flows = nn.ModuleList(KindFlow(*parts, settings, generator) for parts in kinds.values())

    @classmethod
    def of_system(cls, system: BackmapSystem, settings: BackmapSettings) -> BackmapFlow:
        """A fresh flow with the kinds of a system."""
        return cls(
            {table.kind: (table.label, table.coordinates, table.slots) for table in system.blocks.kinds}, settings
        )

    @property
    def dtype(self) -> torch.dtype:
        """Float type of the parameters."""
        return self.kind_flow(0).bias.dtype

    def kind_flow(self, number: int) -> KindFlow:
        """Flow of a kind by its number."""
        return cast(KindFlow, self.flows[number])

    def view(self, system: BackmapSystem) -> SystemView:
        """Index tensors of a system for this flow.

        Raises:
            CheckpointError: a block of a kind that the flow was not trained on.
        """
        number = {kind: k for k, kind in enumerate(self.kinds)}
        unknown = [table for table in system.blocks.kinds if table.kind not in number]
        if unknown:
            _refuse(system, unknown, [self.kind_flow(k).label for k in range(len(self.kinds))])
        kinds = tuple(
            features.view_kind(system, table, self.kind_flow(number[table.kind]).slots) for table in system.blocks.kinds
        )
        return features.view_system(system, kinds)

    def number_of(self, view: KindView) -> int:
        """Number of the kind of a view."""
        return self.kinds.index(view.table.kind)

    def look(self, x: Tensor, near: Near, view: SystemView, kind: KindView) -> Sight:
        """What the blocks of a kind see in points ``[3, P, T]`` nm; independent of the parameters."""
        flow = self.kind_flow(self.number_of(kind))
        origin, axes = features.local_frames(x, kind.frames)
        white = flow.whiten(features.slot_positions(x, kind, origin, axes))
        around = features.picture(near, view, kind, origin, axes)
        known = kind.properties.to(x.dtype).unsqueeze(2).expand(-1, *origin.shape[1:])
        return Sight(white, torch.cat([around, known]))

    def context(self, sight: Sight, kind: KindView, order: int, keep: Tensor | None = None) -> Tensor:
        """What the flow of a kind is given, ``[context, n T]``; ``keep [F, T]`` multiplies surroundings in training."""
        return self.kind_flow(self.number_of(kind)).context(sight, kind.visible[order], keep)

    def log_prob_kind(
        self, y: Tensor, sight: Sight, kind: KindView, order: int = 0, keep: Tensor | None = None
    ) -> Tensor:
        """ln q ``[n, T]`` of the blocks of a kind, with coordinates ``[3 m, n, T]``.

        Args:
            y: nm and radians.
            sight: what they see.
            kind: their view.
            order: 0: colours in order, 1: in reverse.
            keep: as in :meth:`context`.
        """
        context = self.context(sight, kind, order, keep)
        flow = self.kind_flow(self.number_of(kind)).flow
        return flow.log_prob(y.reshape(len(y), -1), context, context).view(y.shape[1:])

    def log_prob_blocks(
        self, x: Tensor, y: Tensor, view: SystemView, order: int = 0, box: Tensor | None = None
    ) -> list[Tensor]:
        """ln q of every block, ``[n, T]`` for each kind.

        Args:
            x: points ``[3, P, T]`` nm.
            y: their internal coordinates ``[n_y, T]``.
            view: the system.
            order: 0: colours in order, 1: in reverse.
            box: ``[T, 3, 3]`` nm; None: no periodic images.
        """
        near = features.surroundings(x, view, box)
        return [
            self.log_prob_kind(coordinates_of(y, kind), self.look(x, near, view, kind), kind, order)
            for kind in view.kinds
        ]

    def log_prob(self, positions: Tensor, view: SystemView, box: Tensor | None = None) -> Tensor:
        """ln q(r | beads) ``[T]`` of frames ``[T, N, 3]`` nm (labels of rotors as the supports want them)."""
        y, log_volume = view.system.placement.split(positions)
        x = features.points_of(positions, view.system)
        blocks = self.log_prob_blocks(x, y.T.contiguous(), view, box=box)
        return torch.stack([block.sum(0) for block in blocks]).sum(0) - log_volume

    @torch.no_grad()
    def fit(self, positions: Tensor, view: SystemView) -> None:
        """Set all whitening from training frames ``[T, N, 3]`` nm; values outside of supports are passed over."""
        x = features.points_of(positions, view.system)
        y = view.system.placement.split(positions)[0].T.contiguous()
        for kind in view.kinds:
            flow = self.kind_flow(self.number_of(kind))
            origin, axes = features.local_frames(x, kind.frames)
            there = kind.visible.amax(0)
            flow.fit_whitening(features.slot_positions(x, kind, origin, axes), there)
            values = coordinates_of(y, kind).flatten(1)
            ends = torch.tensor([coordinate_ends(c) for c in flow.coordinates], dtype=values.dtype)
            inside = ((values > ends[:, :1]) & (values < ends[:, 1:])).all(0)
            chosen = values[:, inside][:, :: max(1, int(inside.sum()) // FIT_SAMPLES)]
            # An aromatic ring has directions with 2 % of the variance that its bonds and angles have one by one: the
            # ridge of flows in general, n / (2 T), would make them half as stiff again.
            flow.flow.fit_scales(chosen, RIDGE * (len(chosen) / max(chosen.shape[1], 1)) ** 2)


def _weight(n_out: int, n_in: int, generator: torch.Generator, gain: float = 1.0) -> nn.Parameter:
    weight = torch.empty(n_out, n_in, dtype=torch.float64)
    return nn.Parameter(weight.normal_(std=gain / math.sqrt(max(n_in, 1)), generator=generator))


def _refuse(system: BackmapSystem, unknown: Sequence[KindTable], known: Sequence[str]) -> None:
    table = unknown[0]
    block = system.blocks.blocks[int(table.blocks[0])]
    more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
    raise CheckpointError(
        f"the model does not know a fragment of residue {system.residue_label(block.home)} ({table.label}{more})",
        expected=f"fragments it was trained on: {', '.join(sorted(set(known)))}",
        remedy="train on a system that has this residue in such a place",
    )
