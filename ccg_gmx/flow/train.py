"""Training of the ladder: by likelihood on fine frames, then by energies of its own draws.

Both trainings write their whole state from time to time and go on from it bit for bit.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from ccg_gmx.errors import CcgError, CheckpointError, TrajectoryError
from ccg_gmx.flow.checkpoint import read_torch, write_torch
from ccg_gmx.flow.conditional import FlowSettings, LadderFlow
from ccg_gmx.records import CoarseSplit, FloatArray, IntArray
from ccg_gmx.settings import Settings

__all__ = [
    "EnergySettings",
    "FlowSettings",
    "LikelihoodSettings",
    "TrainingError",
    "hold_out_blocks",
    "train_energy",
    "train_likelihood",
]

FORMAT = "ccg_gmx.flow_training"
VERSION = 1

Progress = Callable[[int, int, str], None]
"""Called as progress(steps done, steps in all, message)."""

Propose = Callable[[int, torch.Generator], Tensor]
"""propose(batch, generator) -> s ``[batch, n_s]`` radians."""

Target = Callable[[Tensor, Tensor, Tensor], Tensor]
"""target(s, b, y) -> reduced potential u ``[B]``, differentiable in b and y."""


class TrainingError(CcgError):
    """Training met a loss or gradient that is not a number."""


class OptimiserSettings(Settings):
    """What both trainings share."""

    steps: int = Field(default=400, ge=1, description="Optimiser steps.")
    batch: int = Field(default=1024, ge=1, description="Samples per step.")
    learning_rate: float = Field(
        default=2e-3, gt=0, description="Peak learning rate of AdamW; decays to 0 along a cosine."
    )
    warm_up: int = Field(default=100, ge=0, description="Steps of linear rise to the peak learning rate.")
    weight_decay: float = Field(default=0.0, ge=0, description="Decoupled weight decay of AdamW.")
    max_gradient_norm: float = Field(default=20.0, gt=0, description="Gradients of larger norm are scaled down to it.")
    single_precision: bool = Field(
        default=True, description="Train in float32, twice as fast; densities and weights are always float64."
    )
    checkpoint_every: int = Field(default=50, ge=1, description="Steps between training-state files.")


class LikelihoodSettings(OptimiserSettings):
    """Maximum likelihood on fine frames (forward KL)."""

    steps: int = Field(
        default=200, ge=1, description="Optimiser steps. Frames overfit soon; the best held-out state is kept."
    )
    held_out_fraction: float = Field(
        default=0.1, ge=0, lt=1, description="Part of each fine run, one contiguous block, kept out of training."
    )
    held_out_every: int = Field(default=20, ge=1, description="Steps between evaluations of the held-out frames.")


class EnergySettings(OptimiserSettings):
    """Training on the energies of own draws (reverse KL), mixed with likelihood while data exist."""

    learning_rate: float = Field(
        default=1e-3, gt=0, description="Peak learning rate of AdamW; decays to 0 along a cosine."
    )
    forward_fraction: float = Field(
        default=0.2,
        ge=0,
        lt=1,
        description="Weight of the forward KL on fine frames; must be positive when frames are given.",
    )
    forward_batch: int = Field(default=256, ge=1, description="Fine frames per step for the forward part.")
    clash_margin: float = Field(
        default=50.0,
        gt=0,
        description="Reduced potential this far above the batch median enters the loss logarithmically.",
    )


def train_likelihood(
    flow: LadderFlow,
    split: CoarseSplit,
    settings: LikelihoodSettings,
    seed: int,
    *,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
) -> dict[str, FloatArray]:
    """Train q(b, y | s) by maximum likelihood; leaves the flow with its best held-out parameters.

    A flow without whitening gets it from the frames.

    Args:
        flow: trained in place.
        split: T fine frames.
        settings: see there.
        seed: of the held-out blocks and of the batches.
        checkpoint: training-state file to continue from, if it exists, and to write.
        progress: called after every step.

    Returns:
        ``train`` ``[steps]``, mean -ln q(b, y | s) of each batch, and ``held_out`` ``[evaluations]``, the same over the
        held-out frames at step 0, after every ``held_out_every`` steps and at the end; without held-out frames, empty.

    Raises:
        TrajectoryError: there are no frames, or a value lies outside its coordinate's support.
        TrainingError: the loss is not finite.
        CheckpointError: the training state belongs to another training.
    """
    s, b, y = _tensors(split, flow)
    train, held_out = (torch.as_tensor(rows) for rows in hold_out_blocks(split.run, settings.held_out_fraction, seed))
    flow.beads.check_support(b.T)
    flow.rest.check_support(y.T)
    if not flow.fitted:
        flow.fit_scales(b[train], y[train])
    state = _State(flow, settings, seed, "likelihood", _digest(split), checkpoint, ("train", "held_out"))

    def evaluate() -> None:
        if len(held_out):
            loss = _mean_loss(flow, b[held_out], y[held_out], s[held_out], settings.batch)
            state.losses["held_out"].append(loss)
            state.keep_if_best(loss)

    while state.step < settings.steps:
        if state.step == 0:
            evaluate()
        rows = train[torch.randint(len(train), (settings.batch,), generator=state.generator)]
        loss = -flow.log_prob(b[rows], y[rows], s[rows]).mean()
        state.descend(loss, train=loss)
        if state.step % settings.held_out_every == 0 or state.step == settings.steps:
            evaluate()
        state.finish_step(progress)
    state.restore_best()
    return state.result()


def train_energy(
    flow: LadderFlow,
    target: Target,
    propose: Propose,
    split: CoarseSplit | None,
    settings: EnergySettings,
    seed: int,
    *,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
) -> dict[str, FloatArray]:
    """Train q(b, y | s) by the energies of its own draws, and by likelihood on fine frames when there are any.

    The reverse KL is E_q[u + ln q] with the path-derivative gradient (arXiv 1703.09194): ln q is evaluated with
    parameters held constant, so its gradient vanishes, noise included, where q is exact. Clashes are compressed
    logarithmically in the loss, never in a weight.

    Args:
        flow: trained in place.
        target: reduced potential of ``(s [B, n_s], b [B, n_b], y [B, n_y])``, ``[B]``.
        propose: ``(batch, generator)`` to coarse points ``[batch, n_s]``, radians.
        split: fine frames for the forward part, or None.
        settings: see there.
        seed: of coarse points, draws and batches.
        checkpoint: training-state file to continue from, if it exists, and to write.
        progress: called after every step.

    Returns:
        ``[steps]`` each: ``reverse``, mean of the compressed u + ln q; ``forward``, mean -ln q of the fine frames
        (absent without them); ``clash``, the part of the draws whose u was compressed.

    Raises:
        TrainingError: a loss or gradient is not finite.
        TrajectoryError: a fine value lies outside its coordinate's support.
        CheckpointError: the training state belongs to another training.
    """
    if split is not None and settings.forward_fraction == 0:
        raise TrainingError(
            "forward_fraction is 0 although there are fine frames", remedy="set forward_fraction above 0, 0.2 for one"
        )
    data = _tensors(split, flow) if split is not None else None
    if data is not None:
        flow.beads.check_support(data[1].T)
        flow.rest.check_support(data[2].T)
        if not flow.fitted:
            flow.fit_scales(data[1], data[2])
    names = ("reverse", "clash") + (("forward",) if data is not None else ())
    state = _State(flow, settings, seed, "energy", _digest(split), checkpoint, names)
    while state.step < settings.steps:
        reverse, clash = _reverse_loss(flow, target, propose, settings, state.generator)
        if data is None:
            state.descend(reverse, reverse=reverse, clash=clash)
        else:
            rows = torch.randint(len(data[0]), (settings.forward_batch,), generator=state.generator)
            forward = -flow.log_prob(data[1][rows], data[2][rows], data[0][rows]).mean()
            loss = (1.0 - settings.forward_fraction) * reverse + settings.forward_fraction * forward
            state.descend(loss, reverse=reverse, clash=clash, forward=forward)
        state.finish_step(progress)
    return state.result()


def _reverse_loss(
    flow: LadderFlow, target: Target, propose: Propose, settings: EnergySettings, generator: torch.Generator
) -> tuple[Tensor, float]:
    """Return a loss with the path-derivative gradient of the reverse KL, and the part of clashing draws."""
    s = propose(settings.batch, generator).to(flow.dtype)
    b, y, _ = flow.push(s, *flow.base_noise(len(s), generator))
    constants = {name: value.detach() for name, value in flow.named_parameters()}
    log_q = torch.func.functional_call(flow, constants, (b, y, s))
    u = target(s, b, y)
    limit = u.detach().nanmedian() + settings.clash_margin
    over = u > limit
    # Both branches of a where take part in the gradient: keep the logarithm's argument at 1 where it is not used.
    excess = torch.where(over, u - limit, 0.0)
    u = torch.where(over, limit + torch.log1p(excess), u)
    return (u + log_q).mean(), float(over.to(flow.dtype).mean())


def hold_out_blocks(run: IntArray, fraction: float, seed: int) -> tuple[IntArray, IntArray]:
    """Split frames into training and held-out ones: one contiguous block of each run, at a random place.

    Neighbouring frames are correlated, so random frames would make a held-out loss that sees its own training data.

    Args:
        run: ``[T]`` run of each frame.
        fraction: held-out part of each run.
        seed: of the places.

    Returns:
        Indices of training and of held-out frames.
    """
    rng = np.random.default_rng(seed)
    held_out = np.zeros(len(run), dtype=bool)
    for label in np.unique(run):
        frames = np.flatnonzero(run == label)
        length = round(fraction * len(frames))
        start = int(rng.integers(len(frames) - length + 1))
        held_out[frames[start : start + length]] = True
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def _tensors(split: CoarseSplit, flow: LadderFlow) -> tuple[Tensor, Tensor, Tensor]:
    if len(split.s) == 0:
        raise TrajectoryError("there are no fine frames to train on", remedy="run longer or write frames more often")
    s, b, y = (torch.as_tensor(array, dtype=flow.dtype) for array in (split.s, split.b, split.y))
    return s, b, y


@torch.no_grad()
def _mean_loss(flow: LadderFlow, b: Tensor, y: Tensor, s: Tensor, batch: int) -> float:
    parts = [flow.log_prob(*part).sum() for part in zip(b.split(batch), y.split(batch), s.split(batch), strict=True)]
    return -float(torch.stack(parts).sum()) / len(s)


def _digest(split: CoarseSplit | None) -> str:
    """Return a hash of the frames, so that a training state is never continued with others."""
    digest = hashlib.sha256()
    if split is not None:
        for array in (split.s, split.b, split.y, split.run):
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


class _State:
    """Everything a training carries from step to step: optimiser, generator, losses, best parameters, its file."""

    def __init__(
        self,
        flow: LadderFlow,
        settings: OptimiserSettings,
        seed: int,
        kind: str,
        data: str,
        path: Path | None,
        losses: tuple[str, ...],
    ) -> None:
        self.flow, self.settings, self.path = flow, settings, path
        self.contract = {"kind": kind, "seed": seed, "settings": settings.model_dump_json(), "data": data}
        self.step = 0
        self.losses: dict[str, list[float]] = {name: [] for name in losses}
        self.best_loss = math.inf
        self.best: dict[str, Tensor] = {}
        self.generator = torch.Generator().manual_seed(seed)
        self.optimiser = torch.optim.AdamW(
            flow.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay, foreach=True
        )
        if path is not None and path.exists():
            self._read(path)

    def _learning_rate(self) -> float:
        """Linear rise, then a cosine to zero: a function of the step alone, so there is no scheduler to save."""
        rise = min(1.0, (self.step + 1) / (self.settings.warm_up + 1))
        return self.settings.learning_rate * rise * 0.5 * (1.0 + math.cos(math.pi * self.step / self.settings.steps))

    def descend(self, loss: Tensor, **losses: Tensor | float) -> None:
        """Make one optimiser step and note the losses."""
        self._require_finite(float(loss.detach()), "loss")
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.flow.parameters(), self.settings.max_gradient_norm)
        self._require_finite(float(norm), "gradient")
        for group in self.optimiser.param_groups:
            group["lr"] = self._learning_rate()
        self.optimiser.step()
        for name, value in losses.items():
            self.losses[name].append(float(value.detach() if isinstance(value, Tensor) else value))
        self.step += 1

    def _require_finite(self, value: float, what: str) -> None:
        if not math.isfinite(value):
            raise TrainingError(
                f"the {what} is {value} at training step {self.step}",
                expected="a finite number",
                remedy="lower learning_rate or max_gradient_norm, and check the energies of the training frames",
            )

    def keep_if_best(self, loss: float) -> None:
        """Remember the parameters when the loss is the lowest so far."""
        if loss < self.best_loss:
            self.best_loss = loss
            self.best = {name: value.detach().clone() for name, value in self.flow.state_dict().items()}

    def restore_best(self) -> None:
        """Put the best parameters back, if any were kept."""
        if self.best:
            self.flow.load_state_dict(self.best)

    def finish_step(self, progress: Progress | None) -> None:
        """Write the state when it is time, and report."""
        if self.path is not None and (
            self.step % self.settings.checkpoint_every == 0 or self.step == self.settings.steps
        ):
            self._write(self.path)
        if progress is not None:
            message = ", ".join(f"{name} {values[-1]:.3f}" for name, values in self.losses.items() if values)
            progress(self.step, self.settings.steps, message)

    def result(self) -> dict[str, FloatArray]:
        """Return the loss curves."""
        return {name: np.asarray(values, dtype=np.float64) for name, values in self.losses.items()}

    def _write(self, path: Path) -> None:
        content = {
            "format": FORMAT,
            "version": VERSION,
            "contract": self.contract,
            "step": self.step,
            "flow": self.flow.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "generator": self.generator.get_state(),
            "losses": self.losses,
            "best_loss": self.best_loss,
            "best": self.best,
        }
        write_torch(content, path)

    def _read(self, path: Path) -> None:
        content: dict[str, Any] = read_torch(path, FORMAT, VERSION)
        theirs = content["contract"]
        for key, value in self.contract.items():
            if theirs[key] != value:
                raise CheckpointError(
                    f"{path} is the state of a training with another {key} ({theirs[key]})",
                    expected=str(value),
                    remedy="delete it to train afresh, or go back to what it was trained with",
                )
        try:
            self.flow.load_state_dict(content["flow"])
        except RuntimeError as error:
            raise CheckpointError(
                f"{path} is the training state of a flow of another shape", remedy="delete it to train afresh"
            ) from error
        self.optimiser.load_state_dict(content["optimiser"])
        self.generator.set_state(content["generator"])
        self.step, self.losses = content["step"], content["losses"]
        self.best_loss, self.best = content["best_loss"], content["best"]
