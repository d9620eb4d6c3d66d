"""From frames to a collective variable: four methods, one result."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import nn

from ccg_gmx.cv.data import CvData, held_out, scales
from ccg_gmx.cv.lagged import SELF_WARNING, Pairs, lagged_pairs
from ccg_gmx.cv.lda import lda, require_states
from ccg_gmx.cv.model import CvModel
from ccg_gmx.cv.network import History, NetworkSettings, Progress, Training, digest, perceptron
from ccg_gmx.cv.objectives import SlownessObjective, TargetObjective, default_targets
from ccg_gmx.cv.tica import Timescales, score, tica, timescales
from ccg_gmx.errors import CcgError, SettingsError
from ccg_gmx.records import FloatArray
from ccg_gmx.settings import Settings

Method = Literal["tica", "deep-tica", "lda", "deep-tda"]

SPARE_OUTPUTS = 5
"""Outputs of the network of deep-tica beyond the variables asked for; TICA picks the slowest of them."""

KEPT = 0.7
"""Part of the training frames' sum of squared eigenvalues that held-out frames must reach."""

STRETCHED = (
    "lags and times are in the time that the bias stretched (dt exp(V/kT), as long in all as the simulation); slow "
    "coordinates are right as far as barriers rule them and the bias is static, the times are not physical"
)


class CvSettings(Settings):
    """How a collective variable is learned."""

    method: Method = Field(description="tica and deep-tica: slow; lda and deep-tda: tell states apart.")
    count: int = Field(default=1, ge=1, description="Number of collective variables.")
    lag_ps: float | None = Field(default=None, gt=0, description="Lag of tica and deep-tica, ps.")
    ridge: float = Field(default=1e-6, ge=0, description="Added to the variance of every standardised feature.")
    harmonic: bool = Field(default=True, description="lda: harmonic mean of the states' covariances.")
    held_out: float = Field(default=0.2, ge=0, lt=1, description="Part of every run, or state, that is held out.")
    blocks: int = Field(default=10, ge=2, description="Blocks of neighbouring frames that each run is cut into.")
    seed: int = Field(default=0, ge=0, description="Of the held-out blocks, the weights and the batches.")
    network: NetworkSettings = Field(default=NetworkSettings(), description="Of the deep methods.")

    @property
    def lagged(self) -> bool:
        """Whether the method looks at frames a lag apart."""
        return self.method in ("tica", "deep-tica")

    @property
    def deep(self) -> bool:
        """Whether a network is trained."""
        return self.method.startswith("deep")


@dataclass(frozen=True)
class Learned:
    """A collective variable and how good it is.

    Attributes:
        model: the variable.
        cv: ``[T, k]`` its values at all frames.
        held: ``[T]`` True for frames held out.
        timescales: at several lags, the one learned with first; empty for discriminants.
        scores: sums of squared eigenvalues, or target losses, of training and held-out frames.
        history: of the training; None for linear methods.
        warnings: what speaks against it, in words.
    """

    model: CvModel
    cv: FloatArray
    held: np.ndarray
    timescales: tuple[Timescales, ...] = ()
    scores: dict[str, float] = field(default_factory=dict)
    history: History | None = None
    warnings: tuple[str, ...] = ()


def learn(
    data: CvData, settings: CvSettings, *, checkpoint: Path | None = None, progress: Progress | None = None
) -> Learned:
    """Learn a collective variable.

    Args:
        data: frames.
        settings: method and numbers.
        checkpoint: state of the training of a deep method, continued if it is there.
        progress: called with (steps done, steps in all).

    Raises:
        CcgError: in one line, what of the data or the settings does not fit.
    """
    mean, std = scales(data.features())
    job = _Job(data, settings, (data.features() - mean) / std, mean, std, checkpoint, progress)
    return job.slow() if settings.lagged else job.discriminant()


@dataclass(frozen=True)
class _Job:
    """One learning; ``x [T, F]`` standardised features."""

    data: CvData
    settings: CvSettings
    x: FloatArray
    mean: FloatArray
    std: FloatArray
    checkpoint: Path | None
    progress: Progress | None

    # ------------------------------------------------------------ slow

    def slow(self) -> Learned:
        """TICA of the features, or of a network's outputs."""
        if self.settings.lag_ps is None:
            raise SettingsError(f"{self.settings.method} without a lag", expected="--lag in ps")
        pairs = lagged_pairs(self.data, self.settings.lag_ps)
        held = held_out(self.data.run, self.settings.held_out, self.settings.blocks, self.settings.seed)
        train = pairs.chosen(~held)
        test = pairs.chosen(held) if held.any() else None
        history, layers, outputs = self._hidden(train, test) if self.settings.deep else (None, [], self.x)
        if not self.settings.deep and self.settings.count > self.x.shape[1]:
            raise SettingsError(f"{self.settings.count} variables of {self.x.shape[1]} features")
        # linear TICA has nothing to stop early: held-out blocks judge it, then all frames count
        fit = train if self.settings.deep else pairs
        found = tica(outputs, fit, self.settings.count, self.settings.ridge)
        judged = tica(outputs, train, self.settings.count, self.settings.ridge)
        weights, biases = _with_last(layers, found.vectors.T, -found.mean @ found.vectors)
        model = self._model(weights, biases)
        cv = model(self.data.values)
        scores = {"train": float((judged.eigenvalues**2).sum())}
        if test is not None:
            scores["held_out"] = score(outputs @ judged.vectors, test)
        times = tuple(timescales(cv, p) for p in (pairs, *self._other_lags(self.settings.lag_ps)))
        warnings = (*self._slow_warnings(pairs, times[0], scores), *times[0].warnings)
        return Learned(model, cv, held, times, scores, history, warnings)

    def _hidden(
        self, train: Pairs, test: Pairs | None
    ) -> tuple[History, list[tuple[FloatArray, FloatArray]], FloatArray]:
        """Train a network for slowness: how it went, its layers, its outputs ``[T, k]``."""
        objective = SlownessObjective(self.x, train, test)
        # with a few outputs more than wanted, training finds slow motions that one alone is stuck far from
        outputs_in_all = min(self.settings.count + SPARE_OUTPUTS, max(self.settings.network.hidden[-1], 1))
        network, history = self._train(objective, max(outputs_in_all, self.settings.count), train.first, train.second)
        with torch.no_grad():
            outputs = network(torch.from_numpy(self.x)).numpy()
        return history, _layers(network), outputs

    def _other_lags(self, lag_ps: float) -> list[Pairs]:
        """Pairs at shorter and longer lags, as far as the runs allow."""
        found = []
        for factor in (0.25, 0.5, 2.0, 4.0):
            try:
                found.append(lagged_pairs(self.data, factor * lag_ps))
            except CcgError:
                continue
        return found

    def _slow_warnings(self, pairs: Pairs, times: Timescales, scores: dict[str, float]) -> list[str]:
        words = [STRETCHED] if self.data.weighting == "bias" else []
        if pairs.self_share > SELF_WARNING:
            words.append(
                f"under the bias {pairs.self_share:.0%} of the time is in frames that last longer than the lag: "
                "their motion is not seen, eigenvalues are too large"
            )
        if self.data.kish_ess < 0.02 * len(self.data.time):
            words.append(f"the weights leave {self.data.kish_ess:.0f} of {len(self.data.time)} frames")
        if scores.get("held_out", math.inf) < KEPT * scores["train"]:
            words.append(
                f"held-out frames are less slow than those of the training (sums of squared eigenvalues "
                f"{scores['held_out']:.3g}, {scores['train']:.3g}): they follow the noise, or the runs are short"
            )
        low = times.eigenvalues - 2 * times.eigenvalue_errors
        for name, value, ps in zip(self._names(), low, times.ps, strict=True):
            if not value > 0:
                words.append(f"{name} is not slow: its autocorrelation at the lag is 0 within two errors")
            elif ps < pairs.lag_ps:
                words.append(f"{name} relaxes within the lag: a shorter lag tells more")
        return words

    # ------------------------------------------------------------ discriminant

    def discriminant(self) -> Learned:
        """LDA of the features, or a network with target distributions."""
        data, settings = self.data, self.settings
        require_states(data.state, data.states)
        held = held_out(data.state, settings.held_out, settings.blocks, settings.seed)
        if not settings.deep:
            arguments = (data.state, data.states, data.weights, settings.count)
            found = lda(self.x, *arguments, harmonic=settings.harmonic, ridge=settings.ridge)
            model = self._model((found.vectors.T,), (-found.mean @ found.vectors,))
            return Learned(model, model(data.values), held, scores={"between_over_within": float(found.eigenvalues[0])})
        centres, widths = default_targets(len(data.states), settings.count)
        size = float(np.abs(centres).max())  # the network learns numbers of order 1, its last layer is scaled after
        objective = TargetObjective(self.x, data.state, data.weights, held, centres / size, widths / size)
        network, history = self._train(objective, settings.count, data.state, held)
        with torch.no_grad():
            scores = objective.scores(network)
        model = self._model(*_with_last(_layers(network), size * np.eye(settings.count), np.zeros(settings.count)))
        cv = model(data.values)
        warnings = _missed(cv, data, held if held.any() else ~held, centres)
        return Learned(model, cv, held, scores=scores, history=history, warnings=warnings)

    # ------------------------------------------------------------ both

    def _train(self, objective: Any, n_out: int, *arrays: np.ndarray) -> tuple[nn.Sequential, History]:
        settings = self.settings
        network = perceptron(self.x.shape[1], settings.network.hidden, n_out, settings.seed)
        contract = {
            "method": settings.method,
            "data": digest(self.x, self.data.weights, *arrays),
            "outputs": n_out,
        }
        training = Training(network, objective, settings.network, contract, settings.seed + 1, self.checkpoint)
        return network, training.run(self.progress)

    def _names(self) -> list[str]:
        return [f"cv{k + 1}" for k in range(self.settings.count)]

    def _model(self, weights: tuple[FloatArray, ...], biases: tuple[FloatArray, ...]) -> CvModel:
        info = {"settings": self.settings.model_dump(mode="json"), "states": list(self.data.states)}
        return CvModel(self.settings.method, self.data.columns, self.mean, self.std, weights, biases, info)


def _missed(cv: FloatArray, data: CvData, rows: np.ndarray, centres: FloatArray) -> tuple[str, ...]:
    """Words about states that lie elsewhere than they should, by a tenth of the way to the next state."""
    words = []
    apart = float(np.linalg.norm(centres[1] - centres[0]))
    for k, name in enumerate(data.states):
        own = rows & (data.state == k)
        if own.any() and np.linalg.norm(cv[own].mean(axis=0) - centres[k]) > 0.1 * apart:
            words.append(
                f"state {name} misses its target: these columns do not tell it from the others, or train longer"
            )
    return tuple(words)


def _layers(network: nn.Sequential) -> list[tuple[FloatArray, FloatArray]]:
    return [
        (layer.weight.detach().numpy().copy(), layer.bias.detach().numpy().copy())
        for layer in network
        if isinstance(layer, nn.Linear)
    ]


def _with_last(
    layers: list[tuple[FloatArray, FloatArray]], weight: FloatArray, bias: FloatArray
) -> tuple[tuple[FloatArray, ...], tuple[FloatArray, ...]]:
    """Layers with a linear one after the last, multiplied into it."""
    if layers:
        own_weight, own_bias = layers[-1]
        layers = [*layers[:-1], (weight @ own_weight, weight @ own_bias + bias)]
    else:
        layers = [(weight, bias)]
    return tuple(w for w, _ in layers), tuple(b for _, b in layers)
