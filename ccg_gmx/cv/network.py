"""Training of the perceptron of a deep collective variable: batches, held-out loss, early stopping, resuming."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from ccg_gmx.errors import CcgError, CheckpointError
from ccg_gmx.flow.checkpoint import read_torch, write_torch
from ccg_gmx.settings import Settings

FORMAT = "ccg_gmx.cv_training"
VERSION = 1

Progress = Callable[[float, float], None]
"""Called with (steps done, steps in all)."""


class NetworkSettings(Settings):
    """The perceptron and its training."""

    hidden: tuple[int, ...] = Field(default=(32, 32), min_length=1, description="Width of every hidden layer (tanh).")
    steps: int = Field(default=3000, ge=1, description="Optimiser steps at most.")
    batch: int = Field(default=4096, ge=8, description="Frames, or pairs of frames, in a step.")
    learning_rate: float = Field(default=2e-3, gt=0, description="Peak rate of Adam; decays to 0 along a cosine.")
    weight_decay: float = Field(default=0.0, ge=0, description="Decoupled weight decay.")
    evaluate_every: int = Field(default=25, ge=1, description="Steps between two looks at the held-out frames.")
    patience: int = Field(default=20, ge=1, description="Looks without a better held-out loss before training stops.")
    checkpoint_every: int = Field(default=200, ge=1, description="Steps between two training-state files.")


class Objective(Protocol):
    """What is trained for."""

    def batch(self, network: nn.Module, size: int, generator: torch.Generator) -> Tensor:
        """Loss of a batch drawn with the generator."""

    def held_out(self, network: nn.Module) -> Tensor:
        """Loss of the held-out frames."""


@dataclass(frozen=True)
class History:
    """How a training went.

    Attributes:
        loss: of each step's batch.
        held_out: ``(step, loss)`` of each look at the held-out frames.
        best_step: step whose weights were kept.
        stopped_early: whether the held-out loss ended it.
    """

    loss: tuple[float, ...]
    held_out: tuple[tuple[int, float], ...]
    best_step: int
    stopped_early: bool


def perceptron(n_in: int, hidden: Sequence[int], n_out: int, seed: int) -> nn.Sequential:
    """Make a perceptron in float64, tanh between its layers.

    Args:
        n_in: inputs, of variance about 1.
        hidden: width of every hidden layer.
        n_out: outputs.
        seed: of its weights.
    """
    generator = torch.Generator().manual_seed(seed)
    layers: list[nn.Module] = []
    for width, following in itertools.pairwise([n_in, *hidden, n_out]):
        linear = nn.Linear(width, following, dtype=torch.float64)
        nn.init.normal_(linear.weight, std=1.0 / math.sqrt(width), generator=generator)
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def digest(*arrays: np.ndarray) -> str:
    """Return a hash of arrays, so that a training is never continued with other data."""
    found = hashlib.sha256()
    for array in arrays:
        found.update(repr((array.shape, array.dtype)).encode() + np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


class Training:
    """Weights, optimiser, generator and losses of a training; its file continues it bit for bit.

    Args:
        network: trained in place.
        objective: what for.
        settings: how.
        contract: what must be the same for a file to be continued; plain values.
        seed: of the batches.
        path: file to continue from, if it exists, and to write; None for none.

    Raises:
        CheckpointError: the file belongs to another training.
    """

    def __init__(
        self,
        network: nn.Module,
        objective: Objective,
        settings: NetworkSettings,
        contract: dict[str, Any],
        seed: int,
        path: Path | None,
    ) -> None:
        self.network, self.objective, self.settings, self.path = network, objective, settings, path
        self.contract = {"settings": settings.model_dump_json(), "seed": seed, **contract}
        self.generator = torch.Generator().manual_seed(seed)
        self.optimiser = torch.optim.AdamW(
            network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self.step, self.best_step, self.best_loss = 0, 0, math.inf
        self.loss: list[float] = []
        self.held_out: list[tuple[int, float]] = []
        self.best = self._weights()
        if path is not None and path.exists():
            self._read(path)

    def run(self, progress: Progress | None = None, stop_after: int | None = None) -> History:
        """Train to the end, or to a number of steps, and put the best weights in place at the end.

        Args:
            progress: called after every step.
            stop_after: leave the training after this step, as an interruption would.

        Raises:
            CcgError: a loss that is not finite.
        """
        last = self.settings.steps
        while self.step < last and not self._settled:
            if stop_after is not None and self.step >= stop_after:
                self._write()
                return self._history()
            self._descend()
            if self.step % self.settings.evaluate_every == 0 or self.step == last:
                self._look()
            if self.step % self.settings.checkpoint_every == 0:
                self._write()
            if progress is not None:
                progress(self.step, last)
        self._write()
        if progress is not None:
            progress(last, last)
        history = self._history()
        self.network.load_state_dict(self.best)
        return history

    @property
    def _settled(self) -> bool:
        return self.step - self.best_step >= self.settings.patience * self.settings.evaluate_every

    def _history(self) -> History:
        stopped = self._settled and self.step < self.settings.steps
        return History(tuple(self.loss), tuple(self.held_out), self.best_step, stopped)

    def _descend(self) -> None:
        rate = 0.5 * (1.0 + math.cos(math.pi * self.step / self.settings.steps))
        for group in self.optimiser.param_groups:
            group["lr"] = self.settings.learning_rate * rate
        loss = self.objective.batch(self.network, self.settings.batch, self.generator)
        self._note(float(loss.detach()))
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call, unused-ignore]
        nn.utils.clip_grad_norm_(self.network.parameters(), 10.0)
        self.optimiser.step()
        self.step += 1

    def _note(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise CcgError(
                f"the loss is {loss} at step {self.step}", expected="a number", remedy="lower --learning-rate"
            )
        self.loss.append(loss)

    def _look(self) -> None:
        with torch.no_grad():
            loss = float(self.objective.held_out(self.network))
        self.held_out.append((self.step, loss))
        if loss < self.best_loss:
            self.best_loss, self.best_step, self.best = loss, self.step, self._weights()

    def _weights(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self.network.state_dict().items()}

    def _write(self) -> None:
        if self.path is None:
            return
        content = {
            "format": FORMAT,
            "version": VERSION,
            "contract": self.contract,
            "step": self.step,
            "network": self.network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "generator": self.generator.get_state(),
            "loss": self.loss,
            "held_out": self.held_out,
            "best": self.best,
            "best_step": self.best_step,
            "best_loss": self.best_loss,
        }
        write_torch(content, self.path)

    def _read(self, path: Path) -> None:
        content = read_torch(path, FORMAT, VERSION)
        for key, value in self.contract.items():
            if (found := content["contract"].get(key)) != value:
                raise CheckpointError(
                    f"{path} is the state of a training with other {key} ({found})",
                    expected=str(value),
                    remedy="delete it to train afresh, or choose another --out",
                )
        self.network.load_state_dict(content["network"])
        self.optimiser.load_state_dict(content["optimiser"])
        self.generator.set_state(content["generator"])
        self.step, self.loss = content["step"], content["loss"]
        self.held_out = [tuple(pair) for pair in content["held_out"]]
        self.best, self.best_step, self.best_loss = content["best"], content["best_step"], content["best_loss"]
