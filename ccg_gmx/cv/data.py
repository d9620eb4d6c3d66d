"""What collective variables are learned from: columns of numbers in runs, perhaps with states and weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ccg_gmx.errors import SettingsError, TrajectoryError
from ccg_gmx.records import FloatArray, IntArray

Weighting = Literal["none", "bias", "start"]
"""``bias``: the frames were sampled under a bias, log_w = bias / kT. ``start``: the dynamics are unbiased, but their
frames are not distributed as in equilibrium; log_w puts that right."""

_CONSTANT = 1e-9
"""A column that varies by less, in units of its size or of 1, is constant."""


@dataclass(frozen=True)
class Column:
    """One input of a collective variable.

    Attributes:
        name: its label in PLUMED.
        unit: its unit, empty when it is not known.
        domain: ends of one period; None where it has none. A period is that of an angle, 2 pi.
        definition: what PLUMED calculates it with, ``TORSION ATOMS=5,7,9,15``; empty when that is not known.
    """

    name: str
    unit: str = ""
    domain: tuple[float, float] | None = None
    definition: str = ""

    def __post_init__(self) -> None:
        """Refuse periods that sine and cosine do not have."""
        if self.domain and not math.isclose(self.domain[1] - self.domain[0], 2 * math.pi, rel_tol=1e-5):
            raise SettingsError(
                f"{self.name} is periodic from {self.domain[0]:g} to {self.domain[1]:g}",
                expected="an angle in radians or a variable without a period",
                remedy="print its sine and cosine in PLUMED and use those columns",
            )

    @property
    def features(self) -> tuple[str, ...]:
        """Names of what the model sees: sine and cosine of an angle, or the number as it is."""
        return (f"sin({self.name})", f"cos({self.name})") if self.domain else (self.name,)


@dataclass(frozen=True)
class CvData:
    """Frames to learn from.

    Attributes:
        values: ``[T, n]`` units of the columns.
        columns: the n inputs.
        run: ``[T]`` run of each frame, frames of a run in order of time.
        time: ``[T]`` ps.
        state: ``[T]`` index into ``states``; all 0 without states.
        states: names of the states; empty without.
        log_w: ``[T]`` logarithm of the weight of each frame; None when all count the same.
        weighting: what the weights put right.
    """

    values: FloatArray
    columns: tuple[Column, ...]
    run: IntArray
    time: FloatArray
    state: IntArray
    states: tuple[str, ...] = ()
    log_w: FloatArray | None = None
    weighting: Weighting = "none"

    def __post_init__(self) -> None:
        """Refuse what nothing can be learned from."""
        names = [column.name for column in self.columns]
        if not names or len(set(names)) < len(names):
            raise SettingsError(f"columns {', '.join(names) or '(none)'}", expected="at least one, each once")
        if self.values.shape != (len(self.time), len(names)):
            raise TrajectoryError(
                f"values of shape {list(self.values.shape)}", expected=f"[{len(self.time)}, {len(names)}]"
            )
        if len(bad := np.argwhere(~np.isfinite(self.values))):
            row, column = bad[0]
            raise TrajectoryError(
                f"{names[column]} is {self.values[row, column]} in frame {row + 1}", expected="a number"
            )
        if self.log_w is not None and not np.isfinite(self.log_w).all():
            raise TrajectoryError("a weight or bias that is not finite", expected="a number for each frame")
        spread = np.ptp(self.values, axis=0) if len(self.values) else np.zeros(len(names))
        size = np.maximum(np.abs(self.values).max(axis=0, initial=0.0), 1.0)
        if (flat := np.flatnonzero(spread <= _CONSTANT * size)).size:
            raise TrajectoryError(
                f"column {names[flat[0]]} is constant",
                expected="a variable that changes",
                remedy="leave it out",
            )

    @property
    def weights(self) -> FloatArray:
        """``[T]`` weights of mean 1."""
        if self.log_w is None:
            return np.ones(len(self.time))
        w = np.exp(self.log_w - self.log_w.max())
        return np.asarray(w / w.mean())

    @property
    def kish_ess(self) -> float:
        """``(sum w)^2 / sum w^2``."""
        return float(self.weights.sum() ** 2 / (self.weights**2).sum())

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the features."""
        return tuple(name for column in self.columns for name in column.features)

    def features(self) -> FloatArray:
        """``[T, F]`` what the model sees."""
        return features(self.values, self.columns)


def features(values: FloatArray, columns: Sequence[Column]) -> FloatArray:
    """Sine and cosine of angles, other columns as they are.

    Args:
        values: ``[T, n]``.
        columns: the n inputs.

    Returns:
        ``[T, F]``, in the order of the columns.
    """
    parts: list[FloatArray] = []
    for value, column in zip(values.T, columns, strict=True):
        parts += [np.sin(value), np.cos(value)] if column.domain else [value]
    return np.stack(parts, axis=1)


def scales(x: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Mean and standard deviation ``[F]`` of features ``[T, F]``; 1 for one that is constant."""
    mean, std = x.mean(axis=0), x.std(axis=0)
    return mean, np.where(std > _CONSTANT * np.maximum(np.abs(mean), 1.0), std, 1.0)


def rows_of_runs(run: IntArray) -> list[IntArray]:
    """Frames of each run, in their order.

    Args:
        run: ``[T]`` run of each frame.
    """
    order = np.argsort(run, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(run[order])) + 1)


def held_out(run: IntArray, fraction: float, blocks: int, seed: int) -> np.ndarray:
    """Choose frames to hold out: whole blocks of neighbours, so that they are not copies of the others.

    Args:
        run: ``[T]`` run of each frame, or its state where those are to be held out from evenly.
        fraction: part of each run to hold out.
        blocks: blocks that each run is cut into.
        seed: of the choice.

    Returns:
        ``[T]`` True where a frame is held out.
    """
    rng = np.random.default_rng(seed)
    out = np.zeros(len(run), dtype=bool)
    for rows in rows_of_runs(run):
        pieces = np.array_split(rows, min(blocks, len(rows)))
        count = round(fraction * len(pieces))
        for piece in rng.choice(len(pieces), size=min(count, len(pieces) - 1), replace=False):
            out[pieces[piece]] = True
    return out
