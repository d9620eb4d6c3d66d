"""What a training carries from step to step, and its file: a training goes on from it bit for bit."""

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

from ccg_gmx.errors import CcgError, CheckpointError
from ccg_gmx.flow.checkpoint import read_torch, write_torch
from ccg_gmx.flow.conditional import LadderFlow
from ccg_gmx.records import CoarseSplit, FloatArray
from ccg_gmx.settings import Settings

FORMAT = "ccg_gmx.flow_training"
VERSION = 1

Progress = Callable[[int, int, str], None]
"""Called as progress(steps done, steps in all, message)."""


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


def data_digest(split: CoarseSplit | None) -> str:
    """Return a hash of the frames, so that a training state is never continued with others."""
    digest = hashlib.sha256()
    if split is not None:
        for array in (split.s, split.b, split.y, split.run):
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


class TrainingState:
    """Optimiser, generator, losses, best parameters and file of a training.

    Args:
        flow: trained in place.
        settings: of the training.
        seed: of the generator.
        kind: which training, so that its file is not taken for another one's.
        data: ``data_digest`` of the frames.
        path: file to continue from, if it exists, and to write; None for none.
        losses: names of the loss curves.

    Raises:
        CheckpointError: the file belongs to another training.
    """

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
        self._require_finite(float(self._clip()), "gradient")
        for group in self.optimiser.param_groups:
            group["lr"] = self._learning_rate()
        self.optimiser.step()
        for name, value in losses.items():
            self.losses[name].append(float(value.detach() if isinstance(value, Tensor) else value))
        self.step += 1

    def _clip(self) -> Tensor:
        """Scale gradients that are too large down; their norm before."""
        return torch.nn.utils.clip_grad_norm_(self.flow.parameters(), self.settings.max_gradient_norm)

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
