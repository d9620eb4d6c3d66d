"""Training of the ladder: by likelihood on fine frames, then by energies of its own draws.

Both trainings write their whole state from time to time and go on from it bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol, cast

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from ccg_gmx.errors import TrajectoryError
from ccg_gmx.flow.conditional import FlowSettings, LadderFlow
from ccg_gmx.flow.losses import Potential, own_draws, reverse_kl, weighted_likelihood
from ccg_gmx.flow.resample import resample_blocks
from ccg_gmx.flow.training_state import OptimiserSettings, Progress, TrainingError, TrainingState, data_digest
from ccg_gmx.records import CoarseSplit, FloatArray, IntArray

__all__ = [
    "EnergySettings",
    "FlowSettings",
    "LikelihoodSettings",
    "OptimiserSettings",
    "SplitTarget",
    "TrainingError",
    "hold_out_blocks",
    "train_energy",
    "train_likelihood",
]

Propose = Callable[[int, torch.Generator], Tensor]
"""propose(batch, generator) -> s ``[batch, n_s]`` radians."""

Target = Callable[[Tensor, Tensor, Tensor], Tensor]
"""target(s, b, y) -> reduced potential u ``[B]``, differentiable in b and y."""


class SplitTarget(Protocol):
    """A target that knows energy and volume element apart, as tempering needs; ``ReducedTarget`` for one."""

    def __call__(self, s: Tensor, b: Tensor, y: Tensor, /) -> Tensor:
        """Return u = beta U - ln|J| ``[B]``."""

    def parts(self, s: Tensor, b: Tensor, y: Tensor, /) -> tuple[Tensor, Tensor]:
        """Return beta U ``[B]`` and ln|J| ``[B]``."""


BOOTSTRAP = (
    "Blocks per fine run of a block bootstrap of the frames, the same one in both trainings of a flow, another one in "
    "every flow (by the flow's seed): members that saw different data disagree by the error of the data. 0: off."
)


class LikelihoodSettings(OptimiserSettings):
    """Maximum likelihood on fine frames (forward KL)."""

    steps: int = Field(
        default=200, ge=1, description="Optimiser steps. Frames overfit soon; the best held-out state is kept."
    )
    held_out_fraction: float = Field(
        default=0.1, ge=0, lt=1, description="Part of each fine run, one contiguous block, kept out of training."
    )
    held_out_every: int = Field(default=20, ge=1, description="Steps between evaluations of the held-out frames.")
    bootstrap_blocks: int = Field(default=0, ge=0, description=BOOTSTRAP)


class EnergySettings(OptimiserSettings):
    """Training on the energies of own draws, mixed with likelihood on fine frames while there are any.

    Loss = forward_fraction * forward + (1 - forward_fraction) * own, where own = (1 - own_weighted_fraction) * reverse
    + own_weighted_fraction * weighted. forward: -ln q of fine frames. reverse: E_q[u + ln q], which lets go of a mode
    sooner than it puts density where the target has none. weighted: -ln q of own draws weighted by exp(-u - ln q),
    which keeps the modes that q visits.
    """

    batch: int = Field(default=512, ge=1, description="Draws per step, each of which costs an energy.")
    learning_rate: float = Field(
        default=5e-3, gt=0, description="Peak learning rate of AdamW; decays to 0 along a cosine."
    )
    warm_up: int = Field(default=30, ge=0, description="Steps of linear rise to the peak learning rate.")
    forward_fraction: float = Field(
        default=0.1,
        ge=0,
        lt=1,
        description="Weight of the forward KL on fine frames; must be positive when frames are given.",
    )
    forward_batch: int = Field(default=128, ge=1, description="Fine frames per step for the forward part.")
    clash_margin: float = Field(
        default=50.0,
        gt=0,
        description="u + ln q this far above the batch median enters the losses logarithmically.",
    )
    temper_from: float = Field(
        default=0.5,
        gt=0,
        le=1,
        description="Factor of beta at the first step: above 300 K, modes that q would drop are wide. 1: off.",
    )
    temper_fraction: float = Field(
        default=0.3, ge=0, le=1, description="Part of the steps over which the factor rises to 1, in equal ratios."
    )
    own_weighted_fraction: float = Field(
        default=0.3, ge=0, le=1, description="Part of weighted likelihood in the loss on own draws; costs no energies."
    )
    group: int = Field(default=8, ge=2, description="Draws per coarse point whose weights are normalised together.")
    weight_ess_floor: float = Field(
        default=0.3,
        gt=0,
        lt=1,
        description="Weights of a group get the largest power <= 1 that keeps their Kish fraction above this.",
    )
    bootstrap_blocks: int = Field(default=0, ge=0, description=BOOTSTRAP)

    @model_validator(mode="after")
    def _whole_groups(self) -> EnergySettings:
        if self.own_weighted_fraction > 0 and self.batch % self.group:
            raise ValueError(f"batch {self.batch} is not a multiple of group {self.group}")
        return self


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
    held_out = torch.as_tensor(hold_out_blocks(split.run, settings.held_out_fraction, seed)[1])
    taken = _resampled(split.run, settings.bootstrap_blocks, flow)
    train = taken[~torch.isin(taken, held_out)]
    flow.beads.check_support(b.T)
    flow.rest.check_support(y.T)
    if not flow.fitted:
        flow.fit_scales(b[train], y[train])
    state = TrainingState(flow, settings, seed, "likelihood", data_digest(split), checkpoint, ("train", "held_out"))

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
    target: Potential,
    propose: Propose,
    split: CoarseSplit | None,
    settings: EnergySettings,
    seed: int,
    *,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
) -> dict[str, FloatArray]:
    """Train q(b, y | s) by the energies of its own draws, and by likelihood on fine frames when there are any.

    The losses on own draws vanish in gradient, noise included, where q is exact (``losses.py``). At first the energy
    can be that of a raised temperature, with the volume element unchanged; the factor of beta depends on the step
    alone. Clashes are compressed logarithmically in the losses, never in a weight.

    Args:
        flow: trained in place.
        target: reduced potential of ``(s [B, n_s], b [B, n_b], y [B, n_y])``, ``[B]``, differentiable in b and y; a
            ``SplitTarget`` when the settings temper.
        propose: ``(batch, generator)`` to coarse points ``[batch, n_s]``, radians.
        split: fine frames for the forward part, or None.
        settings: see there.
        seed: of coarse points, draws and batches.
        checkpoint: training-state file to continue from, if it exists, and to write.
        progress: called after every step.

    Returns:
        ``[steps]`` each: ``reverse``, mean of the compressed u + ln q (u tempered while it is); ``forward``, mean -ln q
        of the fine frames (absent without them); ``clash``, the part of the draws that were compressed; ``weighted``
        and ``weight_power``, weighted mean of -ln q and mean power of the weights (absent without that part).

    Raises:
        TrainingError: a loss or gradient is not finite, or the target cannot be tempered.
        TrajectoryError: a fine value lies outside its coordinate's support.
        CheckpointError: the training state belongs to another training.
    """
    if split is not None and settings.forward_fraction == 0:
        raise TrainingError(
            "forward_fraction is 0 although there are fine frames", remedy="set forward_fraction above 0, 0.1 for one"
        )
    if settings.temper_from < 1 and not hasattr(target, "parts"):
        raise TrainingError(
            "the target gives no energy apart from its volume element",
            expected="a method parts(s, b, y) -> (beta U, ln|J|)",
            remedy="set temper_from to 1, or use a ReducedTarget",
        )
    data = _tensors(split, flow) if split is not None else None
    if data is not None and split is not None:
        taken = _resampled(split.run, settings.bootstrap_blocks, flow)
        flow.beads.check_support(data[1].T)
        flow.rest.check_support(data[2].T)
        if not flow.fitted:
            flow.fit_scales(data[1][taken], data[2][taken])
    names = ("reverse", "clash") + (("weighted", "weight_power") if settings.own_weighted_fraction else ())
    names += ("forward",) if data is not None else ()
    state = TrainingState(flow, settings, seed, "energy", data_digest(split), checkpoint, names)
    while state.step < settings.steps:
        potential = _tempered(target, _temper(state.step, settings))
        loss, losses = _own_losses(flow, potential, propose, settings, state.generator)
        if data is not None:
            rows = taken[torch.randint(len(taken), (settings.forward_batch,), generator=state.generator)]
            forward = -flow.log_prob(data[1][rows], data[2][rows], data[0][rows]).mean()
            loss = (1.0 - settings.forward_fraction) * loss + settings.forward_fraction * forward
            losses["forward"] = forward
        state.descend(loss, **losses)
        state.finish_step(progress)
    return state.result()


def _temper(step: int, settings: EnergySettings) -> float:
    """Factor of beta at this step: rises from ``temper_from`` to 1, evenly in its logarithm."""
    rise = settings.temper_fraction * settings.steps
    return settings.temper_from ** max(0.0, 1.0 - step / rise) if rise > 0 else 1.0


def _tempered(target: Potential, factor: float) -> Potential:
    """Return factor * beta U - ln|J|: the density at a raised temperature, whose volume element is the same."""
    if factor == 1.0:
        return target

    def potential(s: Tensor, b: Tensor, y: Tensor) -> Tensor:
        energy, log_jacobian = cast(SplitTarget, target).parts(s, b, y)
        return factor * energy - log_jacobian

    return potential


def _own_losses(
    flow: LadderFlow, potential: Potential, propose: Propose, settings: EnergySettings, generator: torch.Generator
) -> tuple[Tensor, dict[str, Tensor | float]]:
    """Return the loss on own draws and its parts: reverse KL, and weighted likelihood when asked for."""
    part = settings.own_weighted_fraction
    group = settings.group if part > 0 else 1
    s = propose(settings.batch // group, generator).to(flow.dtype).repeat_interleave(group, 0)
    draws = own_draws(flow, potential, s, generator, settings.clash_margin)
    reverse = reverse_kl(draws)
    losses: dict[str, Tensor | float] = {"reverse": reverse, "clash": draws.clash}
    if part == 0:
        return reverse, losses
    weighted, power = weighted_likelihood(draws, group, settings.weight_ess_floor)
    return (1.0 - part) * reverse + part * weighted, {**losses, "weighted": weighted, "weight_power": power}


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


def _resampled(run: IntArray, blocks_per_run: int, flow: LadderFlow) -> Tensor:
    """Return the frames of the flow's bootstrap, all of them in order when there is none."""
    if blocks_per_run == 0:
        return torch.arange(len(run))
    rng = np.random.default_rng([flow.settings.seed, blocks_per_run])
    return torch.as_tensor(resample_blocks(run, blocks_per_run, rng))


@torch.no_grad()
def _mean_loss(flow: LadderFlow, b: Tensor, y: Tensor, s: Tensor, batch: int) -> float:
    parts = [flow.log_prob(*part).sum() for part in zip(b.split(batch), y.split(batch), s.split(batch), strict=True)]
    return -float(torch.stack(parts).sum()) / len(s)
