"""Perceptrons over arguments, torsions and distances: the models that the plug-in evaluates without libtorch."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ccg_gmx.errors import CheckpointError

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "linear": nn.Identity,
    "tanh": nn.Tanh,
    "silu": nn.SiLU,
    "sigmoid": nn.Sigmoid,
    "softplus": nn.Softplus,
    "relu": nn.ReLU,
}
"""Activations that ``plumed_plugins/src/Perceptron.cpp`` knows."""


@dataclass(frozen=True)
class Feature:
    """One feature of the first layer.

    Attributes:
        kind: ``argument`` (one number as it is), ``sincos`` (sine and cosine of an argument), ``distance``.
        index: of the argument, from 0; first atom of a distance, from 0 among the model's atoms.
        second: second atom of a distance.
    """

    kind: str
    index: int
    second: int = -1

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain types for JSON."""
        if self.kind == "distance":
            return {"kind": "distance", "pair": [self.index, self.second]}
        return {"kind": self.kind, "index": self.index}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Feature:
        """Read one back.

        Args:
            content: what :meth:`to_dict` gave.
        """
        if content["kind"] == "distance":
            return cls("distance", *content["pair"])
        return cls(content["kind"], content["index"])


def all_distances(atoms: int) -> list[Feature]:
    """Return the distances of all pairs.

    Args:
        atoms: number of atoms.
    """
    return [Feature("distance", i, j) for i, j in itertools.combinations(range(atoms), 2)]


class Features(nn.Module):
    """Features of arguments and positions.

    Args:
        items: the features in their order.
        arguments: number of arguments; the positions of atoms follow them in the input.
    """

    order: Tensor
    plain: Tensor
    circle: Tensor
    first: Tensor
    second: Tensor

    def __init__(self, items: Sequence[Feature], arguments: int) -> None:
        super().__init__()
        self.items = tuple(items)
        self.arguments = arguments
        groups: dict[str, list[int]] = {kind: [] for kind in ("argument", "sincos", "distance")}
        for number, item in enumerate(self.items):
            groups[item.kind].append(number)
        self.register_buffer("plain", self._indices(groups["argument"]), persistent=False)
        self.register_buffer("circle", self._indices(groups["sincos"]), persistent=False)
        for name, field in (("first", "index"), ("second", "second")):
            atoms = [getattr(self.items[number], field) for number in groups["distance"]]
            offsets = torch.tensor(atoms, dtype=torch.long).reshape(-1, 1) * 3 + arguments + torch.arange(3)
            self.register_buffer(name, offsets.flatten(), persistent=False)
        self.register_buffer("order", self._order(groups), persistent=False)

    @property
    def size(self) -> int:
        """Number of features."""
        return sum(2 if item.kind == "sincos" else 1 for item in self.items)

    def _indices(self, numbers: list[int]) -> Tensor:
        return torch.tensor([self.items[number].index for number in numbers], dtype=torch.long)

    def _order(self, groups: dict[str, list[int]]) -> Tensor:
        """Columns of [plain, sines, cosines, distances] in the order of the features."""
        n_plain, n_circle = len(groups["argument"]), len(groups["sincos"])
        columns: list[list[int]] = [[] for _ in self.items]
        for place, number in enumerate(groups["argument"]):
            columns[number] = [place]
        for place, number in enumerate(groups["sincos"]):
            columns[number] = [n_plain + place, n_plain + n_circle + place]
        for place, number in enumerate(groups["distance"]):
            columns[number] = [n_plain + 2 * n_circle + place]
        return torch.tensor([column for pair in columns for column in pair], dtype=torch.long)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, n_in]`` to ``[B, size]``."""
        angles = x.index_select(1, self.circle)
        parts = [x.index_select(1, self.plain), angles.sin(), angles.cos()]
        if len(self.first):
            step = x.index_select(1, self.second) - x.index_select(1, self.first)
            parts.append(step.reshape(x.shape[0], -1, 3).square().sum(-1).sqrt())
        return torch.cat(parts, 1).index_select(1, self.order)


class Standardize(nn.Module):
    """``(x - mean) / std``; folded into the next layer in the plug-in's format.

    Args:
        mean: ``[n]``.
        std: ``[n]``, positive.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, n]`` to the same shape."""
        return (x - self.mean) / self.std


class FeaturePerceptron(nn.Module):
    """Features, then a plain perceptron.

    Args:
        features: the first layer.
        layers: linear layers and activations, :class:`Standardize` in front of linear layers.
    """

    def __init__(self, features: Features, layers: nn.Sequential) -> None:
        super().__init__()
        self.features, self.layers = features, layers

    @classmethod
    def build(
        cls, items: Sequence[Feature], arguments: int, widths: Sequence[int], activation: str = "tanh"
    ) -> FeaturePerceptron:
        """Make one with torch's initial weights.

        Args:
            items: the features.
            arguments: number of arguments.
            widths: width of every layer after the features, the outputs last.
            activation: of every layer but the last.
        """
        features = Features(items, arguments)
        layers: list[nn.Module] = []
        for n_in, n_out in itertools.pairwise([features.size, *widths]):
            layers += [nn.Linear(n_in, n_out), ACTIVATIONS[activation]()]
        return cls(features, nn.Sequential(*layers[:-1]))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, n_in]`` to ``[B, n_out]``."""
        return self.layers(self.features(x))


def to_content(model: nn.Module) -> dict[str, Any]:
    """Return features and layers as plain types, weights in float64.

    Args:
        model: a :class:`FeaturePerceptron`.

    Raises:
        CheckpointError: if the plug-in's evaluator has no such model or layer.
    """
    if not isinstance(model, FeaturePerceptron):
        raise CheckpointError(
            f"a {type(model).__name__} cannot be written as .json",
            expected="a FeaturePerceptron",
            remedy="export it as .pt2",
        )
    return {"features": [item.to_dict() for item in model.features.items], "layers": _layers(model.layers)}


def _layers(layers: nn.Sequential) -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = []
    scale: Standardize | None = None
    for layer in layers:
        if isinstance(layer, Standardize):
            scale = layer
        elif isinstance(layer, nn.Linear):
            out.append(_linear(layer, scale))
            scale = None
        elif out and scale is None and out[-1]["activation"] == "linear":
            out[-1]["activation"] = _activation(layer)
        else:
            raise CheckpointError(f"a {type(layer).__name__} with no linear layer before it cannot be written as .json")
    return out


def _linear(layer: nn.Linear, scale: Standardize | None) -> dict[str, Any]:
    weight = layer.weight.detach().double()
    bias = torch.zeros(layer.out_features) if layer.bias is None else layer.bias.detach()
    bias = bias.double()
    if scale is not None:
        weight = weight / scale.std.double()
        bias = bias - weight @ scale.mean.double()
    return {"weight": weight.flatten().tolist(), "bias": bias.tolist(), "activation": "linear"}


def _activation(layer: nn.Module) -> str:
    for name, kind in ACTIVATIONS.items():
        default = not isinstance(layer, nn.Softplus) or (layer.beta, layer.threshold) == (1, 20)
        if type(layer) is kind and default:
            return name
    raise CheckpointError(
        f"layer {layer} cannot be written as .json",
        expected="one of " + ", ".join(ACTIVATIONS),
        remedy="export the model as .pt2",
    )


def from_content(content: dict[str, Any]) -> FeaturePerceptron:
    """Read a model back, in float64.

    Args:
        content: what :func:`to_content` gave, and the contract beside it.
    """
    features = Features(
        [Feature.from_dict(item) for item in content["features"]], len(content["contract"]["arguments"])
    )
    layers: list[nn.Module] = []
    n_in = features.size
    for layer in content["layers"]:
        linear = nn.Linear(n_in, len(layer["bias"]), dtype=torch.float64)
        with torch.no_grad():
            linear.weight.copy_(torch.tensor(layer["weight"], dtype=torch.float64).reshape(-1, n_in))
            linear.bias.copy_(torch.tensor(layer["bias"], dtype=torch.float64))
        layers += [linear, ACTIVATIONS[layer["activation"]]()]
        n_in = linear.out_features
    return FeaturePerceptron(features, nn.Sequential(*layers))
