"""A learned collective variable: columns, their features, a plain perceptron; and its file."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ccg_gmx.cv.data import Column, features
from ccg_gmx.errors import CcgError, CheckpointError
from ccg_gmx.flow.checkpoint import read_torch, write_torch
from ccg_gmx.records import FloatArray

FORMAT = "ccg_gmx.cv"
VERSION = 1


@dataclass(frozen=True)
class CvModel:
    """``columns -> features -> (features - mean) / std -> layers``, tanh between the layers and none after the last.

    Attributes:
        method: how it was learned.
        columns: its n inputs.
        mean: ``[F]`` of the features.
        std: ``[F]`` of the features, positive.
        weights: of each layer ``[n_out, n_in]``; one layer alone is a linear combination.
        biases: of each layer ``[n_out]``.
        info: what else is worth keeping: lag, seeds, versions; plain types.
    """

    method: str
    columns: tuple[Column, ...]
    mean: FloatArray
    std: FloatArray
    weights: tuple[FloatArray, ...]
    biases: tuple[FloatArray, ...]
    info: dict[str, Any] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """Number of collective variables."""
        return len(self.biases[-1])

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the collective variables."""
        return tuple(f"cv{k + 1}" for k in range(self.count))

    def __call__(self, values: FloatArray) -> FloatArray:
        """Map ``[T, n]`` columns to ``[T, k]``."""
        x = (features(values, self.columns) - self.mean) / self.std
        for number, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = (np.tanh(x) if number else x) @ weight.T + bias
        return x


def save_cv(model: CvModel, path: Path) -> None:
    """Write a model, whole or not at all; read with ``torch.load(weights_only=True)``.

    Args:
        model: the model.
        path: the file, conventionally ``.pt``.
    """
    tensors = {name: torch.tensor(getattr(model, name)) for name in ("mean", "std")}
    layers = {name: [torch.tensor(a) for a in getattr(model, name)] for name in ("weights", "biases")}
    content = {
        "format": FORMAT,
        "version": VERSION,
        "method": model.method,
        "columns": [asdict(column) for column in model.columns],
        "info": model.info,
        **tensors,
        **layers,
    }
    write_torch(content, Path(path))


def load_cv(path: Path) -> CvModel:
    """Read a model.

    Args:
        path: a file of :func:`save_cv`.

    Raises:
        CheckpointError: the file is missing, damaged, or something else.
    """
    content = read_torch(Path(path), FORMAT, VERSION)
    try:
        columns = tuple(
            Column(**{**c, "domain": None if c["domain"] is None else tuple(c["domain"])}) for c in content["columns"]
        )
        mean, std = (content[name].numpy() for name in ("mean", "std"))
        weights, biases = (tuple(a.numpy() for a in content[name]) for name in ("weights", "biases"))
        model = CvModel(content["method"], columns, mean, std, weights, biases, content["info"])
        model(np.zeros((1, len(columns))))
    except (KeyError, TypeError, AttributeError, ValueError, IndexError, CcgError) as error:
        raise CheckpointError(f"{path} is damaged ({type(error).__name__})", remedy="train again") from error
    return model
