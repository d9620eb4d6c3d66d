"""Training by likelihood on fine frames, on one process or on several by torchrun.

What blocks see does not depend on the parameters, so it is computed once. Colours are taken in order or, less often, in
reverse, so that every kind learns both roles: to be drawn before and after its neighbours. Kinds share no parameters,
so each has its own batches, its own best parameters and its own end; the step and the learning rate are common. A
second pass polishes the best parameters, with small steps and large batches.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from pydantic import Field
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ccg_gmx.backmap import features
from ccg_gmx.backmap.features import SystemView
from ccg_gmx.backmap.model import BackmapFlow, Sight, coordinates_of
from ccg_gmx.backmap.system import BackmapSystem
from ccg_gmx.errors import TrajectoryError
from ccg_gmx.flow.train import hold_out_blocks
from ccg_gmx.flow.training_state import OptimiserSettings, Progress, TrainingState
from ccg_gmx.molecule.placement.transform import coordinate_ends
from ccg_gmx.records import FloatArray, IntArray

FIT_FRAMES = 2000
"""Frames that whitening is fitted to, at most."""
CHUNK = 64
"""Frames whose features are computed at once."""
POLISH_RATE, POLISH_BATCH = 0.25, 4
"""Learning rate and batch of the second pass over those of the first."""
MEMORY_BYTES = 2 << 30
"""Of the features of all frames; beyond it frames are thinned."""


class BackmapTraining(OptimiserSettings):
    """Training of a backmapping flow."""

    steps: int = Field(default=1500, ge=1, description="Optimiser steps, at most.")
    batch: int = Field(default=64, ge=1, description="Frames per step, at least, of all processes together.")
    least_blocks: int = Field(default=128, ge=1, description="Blocks of a kind per step, as far as there are frames.")
    reverse: float = Field(default=0.3, ge=0, le=1, description="Part of the steps with colours in reverse.")
    learning_rate: float = Field(default=3e-3, gt=0, description="Peak learning rate of AdamW.")
    warm_up: int = Field(default=50, ge=0, description="Steps of linear rise to it.")
    dropout: float = Field(default=0.3, ge=0, lt=1, description="Part of the surroundings hidden in each step.")
    weight_decay: float = Field(default=1e-2, ge=0, description="Decoupled weight decay of AdamW.")
    max_gradient_norm: float = Field(
        default=2.0, gt=0, description="Gradients of a kind, of -ln q per block, are scaled down to this norm."
    )
    held_out_fraction: float = Field(default=0.15, ge=0, lt=1, description="Of each file, one block in time.")
    held_out_every: int = Field(default=50, ge=1, description="Steps between looks at the held-out frames.")
    patience: int = Field(default=6, ge=1, description="Looks without a better held-out likelihood before a kind ends.")
    polish: float = Field(
        default=0.25,
        ge=0,
        le=1,
        description="Steps of a second pass, slow and with large batches, over steps.",
    )

    def of_polish(self) -> BackmapTraining:
        """Settings of the second pass.

        A kind mostly ends while the learning rate is high, with parameters that are still shaken by single batches.
        Stiff combinations of coordinates, the closing angle of a ring for one, are too wide then.
        """
        return self.model_copy(
            update={
                "steps": max(1, round(self.polish * self.steps)),
                "batch": POLISH_BATCH * self.batch,
                "least_blocks": POLISH_BATCH * self.least_blocks,
                "learning_rate": POLISH_RATE * self.learning_rate,
                "warm_up": min(self.warm_up, 10),
            }
        )


@dataclass(frozen=True, eq=False)
class TrainedBackmap:
    """Outcome of a training.

    Attributes:
        losses: ``train`` and ``held_out``: mean of -ln q(y | beads) per placed atom, along the training.
        held_out: ``[H]`` frames that were held out.
        facts: numbers for people and files.
    """

    losses: dict[str, FloatArray]
    held_out: IntArray
    facts: dict[str, Any]


@dataclass(frozen=True, eq=False)
class _Seen:
    """Features and coordinates of some frames, by kind."""

    sights: list[Sight]
    values: list[Tensor]

    @property
    def frames(self) -> int:
        return self.values[0].shape[-1]


@dataclass(frozen=True, eq=False)
class _Batch:
    """What one step sees of a kind.

    Attributes:
        kind: its number.
        frames: of the frames in memory.
        keep: ``[F, T]`` factors of the surroundings, or None.
    """

    kind: int
    frames: slice
    keep: Tensor | None = None


class _Loss(nn.Module):
    """-ln q(y | beads) per block of kinds, inside their supports.

    ``weights [kinds]`` make of it what the kinds are worth in -ln q per placed atom.
    """

    def __init__(self, flow: BackmapFlow, view: SystemView) -> None:
        super().__init__()
        self.flow = flow
        self.view = view
        counts = [len(kind.table.blocks) for kind in view.kinds]
        self.weights = torch.tensor(counts, dtype=torch.float64) / view.system.placement.n_rows

    def forward(self, seen: _Seen, batches: Sequence[_Batch], order: int) -> Tensor:
        """Value of each batch."""
        values = []
        for batch in batches:
            own = seen.values[batch.kind][..., batch.frames]
            sight = seen.sights[batch.kind].frames(batch.frames)
            log_q = self.flow.log_prob_kind(own, sight, self.view.kinds[batch.kind], order, batch.keep)
            values.append(-torch.where(torch.isfinite(log_q), log_q, 0.0).mean())
        return torch.stack(values)


class _State(TrainingState):
    """A training whose kinds have gradients of their own: an odd block of one kind does not slow the others down."""

    def _clip(self) -> Tensor:
        flow, limit = cast(BackmapFlow, self.flow), self.settings.max_gradient_norm
        norms = [torch.nn.utils.clip_grad_norm_(kind.parameters(), limit) for kind in flow.flows]
        return torch.stack(norms).max()


def train_backmap(
    flow: BackmapFlow,
    system: BackmapSystem,
    positions: Tensor,
    run: IntArray,
    settings: BackmapTraining,
    seed: int,
    *,
    box: FloatArray | None = None,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
) -> TrainedBackmap:
    """Train a flow by maximum likelihood; it ends with its best held-out parameters, in float64.

    Under torchrun every process computes a part of each batch, and gradients are averaged.

    Args:
        flow: trained in place, fresh.
        system: of the frames.
        positions: ``[T, N, 3]`` nm, relabelled.
        run: ``[T]`` file of each frame.
        settings: see there.
        seed: of the held-out blocks and the batches.
        box: ``[T, 3, 3]`` nm, whose periodic images are seen; None for none.
        checkpoint: training-state file to go on from, if it is there, and to write.
        progress: called after every step.

    Raises:
        TrajectoryError: too few frames.
        TrainingError: the loss is no number.
        CheckpointError: the training state is of another training.
    """
    train, held_out = hold_out_blocks(run, settings.held_out_fraction, seed)
    if len(train) < 2:
        raise TrajectoryError(f"{len(positions)} frames to train on", expected="many more", remedy="give more frames")
    view = flow.view(system)
    train = np.random.default_rng(seed).permutation(train)
    thinned = train[: _affordable(flow, system)]
    flow.fit(positions[thinned[:FIT_FRAMES]], view)
    dtype = torch.float32 if settings.single_precision else torch.float64
    flow.to(dtype)
    cells = None if box is None else torch.from_numpy(box)
    seen = _look(flow, view, positions, thinned, dtype, cells)
    kept = _look(flow, view, positions, held_out[:: 1 + len(held_out) // 1000], dtype, cells) if len(held_out) else None
    digest = _digest(positions, box, system)
    curves = ("train", "held_out", *(_curve(k) for k in range(len(view.kinds))))
    loss, states = _Loss(flow, view), []
    for k, (stage, path) in enumerate(zip(_passes(settings), state_paths(checkpoint), strict=False)):
        state = _State(cast(Any, flow), stage, seed + k, f"backmap {k}", digest, path, curves)
        _Run(loss, seen, kept, state, stage).run(_counted(progress, settings, k))
        state.restore_best()
        states.append(state)
    flow.to(torch.float64)
    losses = {name: _joined(states, name) for name in ("train", "held_out")}
    steps = sum(state.step for state in states)
    return TrainedBackmap(losses, held_out, _facts(losses, seen, view, steps, len(thinned), len(held_out)))


def _passes(settings: BackmapTraining) -> list[BackmapTraining]:
    return [settings, settings.of_polish()] if settings.polish else [settings]


def state_paths(checkpoint: Path | None) -> tuple[Path | None, Path | None]:
    """Files that the two passes of a training go on from."""
    return checkpoint, None if checkpoint is None else checkpoint.with_name(f"{checkpoint.stem}.polish.pt")


def _counted(progress: Progress | None, settings: BackmapTraining, number: int) -> Progress | None:
    """Progress of a pass as that of all: an end by patience leaves a jump."""
    if progress is None:
        return None
    steps = [stage.steps for stage in _passes(settings)]
    return lambda step, _, message: progress(sum(steps[:number]) + step, sum(steps), message)


def _joined(states: Sequence[TrainingState], name: str) -> FloatArray:
    """Curves of all passes, without the first look of a later one: it is the best of the one before."""
    parts = [state.result()[name] for state in states]
    return np.concatenate([part[int(k > 0 and name == "held_out") :] for k, part in enumerate(parts)])


def _curve(kind: int) -> str:
    """Name of the held-out curve of a kind."""
    return f"held_out_{kind}"


class _Run:
    """The loop of a training; whatever it has to remember is in ``state``, so a stopped one goes on.

    Args:
        loss: of the flow.
        seen: training frames.
        kept: held-out frames, or None.
        state: optimiser, curves, best parameters.
        settings: of the training.
    """

    def __init__(
        self, loss: _Loss, seen: _Seen, kept: _Seen | None, state: TrainingState, settings: BackmapTraining
    ) -> None:
        self.loss, self.seen, self.kept, self.state, self.settings = loss, seen, kept, state, settings
        self.rank, self.world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        self.curves = [state.losses[_curve(k)] for k in range(len(loss.view.kinds))]
        if self.rank:
            state.path = None  # one process writes the state, all have read it

    def run(self, progress: Progress | None) -> None:
        """Train until the steps are done, or no kind gets better."""
        loss, state, settings = self.loss, self.state, self.settings
        many = self.world > 1
        module: Callable[..., Tensor] = DistributedDataParallel(loss, find_unused_parameters=True) if many else loss
        if state.step == 0:
            self._evaluate()
        while state.step < settings.steps and (active := self._active()):
            order = int(torch.rand((), generator=state.generator) < settings.reverse)
            values = module(self.seen, [self._batch(kind) for kind in active], order)
            told = float(values.detach().to(torch.float64) @ loss.weights[active]) + self._of_ended(active)
            state.descend(values.sum(), train=told)
            if state.step % settings.held_out_every == 0 or state.step == settings.steps:
                self._evaluate()
            state.finish_step(None if progress is None else self._told(progress))

    def _active(self) -> list[int]:
        """Kinds that still get better."""
        patience = self.settings.patience
        return [k for k, curve in enumerate(self.curves) if not _patience_ended(curve, patience)]

    def _of_ended(self, active: Sequence[int]) -> float:
        """Best held-out values of the kinds that are trained no more, which stand for their training loss."""
        return sum(min(curve) for k, curve in enumerate(self.curves) if k not in active)

    def _batch(self, kind: int) -> _Batch:
        """Frames of a kind: neighbours in the random order that the frames are in. Every process takes its part."""
        settings, frames = self.settings, self.seen.frames
        blocks = self.seen.values[kind].shape[1]
        wanted = min(max(settings.batch, -(-settings.least_blocks // blocks)), max(frames, self.world))
        share = max(1, wanted // self.world)
        start = int(torch.randint(max(1, frames - share * self.world + 1), (), generator=self.state.generator))
        own = slice(start + self.rank * share, start + (self.rank + 1) * share)
        if own.start >= frames:
            own = slice(max(0, frames - share), frames)
        # Every process draws the factors of the whole batch, so that any number of processes trains the same model.
        keep = _keep(settings.dropout, share * self.world, self.state, self.loss.flow.dtype)[:, self.rank * share :]
        return _Batch(kind, own, keep[:, : min(own.stop, frames) - own.start])

    @torch.no_grad()
    def _evaluate(self) -> None:
        """Note the held-out value of every active kind, and keep its parameters where it is the best so far."""
        if self.kept is None:
            return
        active, frames = self._active(), self.kept.frames
        total = torch.zeros(len(active), dtype=torch.float64)
        for start in range(0, frames, CHUNK):
            own = slice(start, min(start + CHUNK, frames))
            values = self.loss(self.kept, [_Batch(kind, own) for kind in active], 0)
            total += (own.stop - own.start) / frames * values.to(torch.float64) * self.loss.weights[active]
        best = [
            k for k, value in zip(active, total.tolist(), strict=True) if value < min(self.curves[k], default=math.inf)
        ]
        for kind, value in zip(active, total.tolist(), strict=True):
            self.curves[kind].append(value)
        prefixes = tuple(f"flows.{self.loss.flow.number_of(self.loss.view.kinds[kind])}." for kind in best)
        fresh = self.loss.flow.state_dict()
        self.state.best |= {
            name: value.detach().clone()
            for name, value in fresh.items()
            if name.startswith(prefixes) or name not in self.state.best
        }
        self.state.best_loss = sum(min(curve) for curve in self.curves)
        self.state.losses["held_out"].append(self.state.best_loss)

    def _told(self, progress: Progress) -> Progress:
        def tell(step: int, steps: int, _: str) -> None:
            curves = {name: self.state.losses[name] for name in ("train", "held_out")}
            progress(step, steps, ", ".join(f"{name} {curve[-1]:.3f}" for name, curve in curves.items() if curve))

        return tell


def _keep(dropout: float, frames: int, state: TrainingState, dtype: torch.dtype) -> Tensor:
    """Factors ``[F, T]`` of surroundings: a trajectory visits few of them, and would be known by them."""
    shape = (features.N_SURROUNDINGS + features.N_PROPERTIES, frames)
    kept = torch.rand(shape, generator=state.generator) >= dropout
    kept[features.N_SURROUNDINGS :] = True
    factor = torch.ones(shape, dtype=dtype)
    factor[: features.N_SURROUNDINGS] /= 1.0 - dropout
    return kept * factor


def _patience_ended(held_out: list[float], patience: int) -> bool:
    return len(held_out) > patience and int(np.argmin(held_out)) < len(held_out) - patience


@torch.no_grad()
def _look(
    flow: BackmapFlow, view: SystemView, positions: Tensor, frames: IntArray, dtype: torch.dtype, box: Tensor | None
) -> _Seen:
    """Features and coordinates of frames, in pieces that fit the cache; computed in float64, kept in ``dtype``."""
    sights: list[list[Sight]] = [[] for _ in view.kinds]
    values: list[list[Tensor]] = [[] for _ in view.kinds]
    for start in range(0, len(frames), CHUNK):
        some = frames[start : start + CHUNK]
        own = positions[some]
        x = features.points_of(own, view.system)
        y = view.system.placement.split(own)[0].T.contiguous()
        near = features.surroundings(x, view, None if box is None else box[some])
        for k, kind in enumerate(view.kinds):
            sight = flow.look(x, near, view, kind)
            sights[k].append(Sight(sight.white.to(dtype), sight.others.to(dtype)))
            values[k].append(coordinates_of(y, kind).to(dtype))
    return _Seen(
        [Sight(torch.cat([s.white for s in part], -1), torch.cat([s.others for s in part], -1)) for part in sights],
        [torch.cat(part, -1) for part in values],
    )


def _affordable(flow: BackmapFlow, system: BackmapSystem) -> int:
    """Frames whose features fit the memory meant for them."""
    numbers = sum(
        len(table.blocks) * (3 * len(table.slots) + features.N_SURROUNDINGS + features.N_PROPERTIES)
        + table.columns.size
        for table in system.blocks.kinds
    )
    return max(2, MEMORY_BYTES // (4 * numbers))


def _digest(positions: Tensor, box: FloatArray | None, system: BackmapSystem) -> str:
    digest = hashlib.sha256(positions.numpy().tobytes())
    digest.update(b"" if box is None else box.tobytes())
    digest.update(" ".join(system.bead_names).encode())
    return digest.hexdigest()


def _facts(
    losses: dict[str, FloatArray], seen: _Seen, view: SystemView, steps: int, n_train: int, n_held_out: int
) -> dict[str, Any]:
    held_out = losses["held_out"]
    with torch.no_grad():
        outside = total = 0
        for kind, values in zip(view.kinds, seen.values, strict=True):
            ends = torch.tensor([coordinate_ends(c) for c in kind.table.coordinates], dtype=values.dtype)
            low, high = ends.T[:, :, None, None]
            inside = ((values > low) & (values < high)).all(0)
            outside, total = outside + int((~inside).sum()), total + inside.numel()
    return {
        "steps": steps,
        "frames": n_train,
        "held_out_frames": n_held_out,
        "nll_per_atom_start": float(held_out[0]) if len(held_out) else None,
        "nll_per_atom_held_out": float(held_out.min()) if len(held_out) else None,
        "nll_per_atom_train": float(losses["train"][-20:].mean()) if len(losses["train"]) else None,
        "blocks_outside_support": outside / max(total, 1),
    }
