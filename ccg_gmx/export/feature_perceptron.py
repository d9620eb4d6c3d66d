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


def _pair_tables(pairs: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """First and second atoms ``[P]``; for each atom its pairs ``[N, D]``, padded with P, and its sign in them."""
    atoms = 1 + max((atom for pair in pairs for atom in pair), default=-1)
    rows: list[list[tuple[int, float]]] = [[] for _ in range(atoms)]
    for number, (first, second) in enumerate(pairs):
        rows[first].append((number, -1.0))
        rows[second].append((number, 1.0))
    width = max((len(row) for row in rows), default=0)
    padded = [row + [(len(pairs), 0.0)] * (width - len(row)) for row in rows]
    table = torch.tensor([[number for number, _ in row] for row in padded], dtype=torch.long)
    sign = torch.tensor([[sign for _, sign in row] for row in padded])
    ends = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2)
    return ends[:, 0].clone(), ends[:, 1].clone(), table.reshape(atoms, width), sign.reshape(atoms, width)


class PairSteps(torch.autograd.Function):
    """Vectors between atoms, whose gradient is gathered atom by atom: compiled scatters are slow, a gather fuses."""

    generate_vmap_rule = True

    @staticmethod
    def forward(positions: Tensor, first: Tensor, second: Tensor, table: Tensor, sign: Tensor) -> Tensor:
        """Map positions ``[B, N, 3]`` to vectors ``[B, P, 3]``."""
        return positions.index_select(1, second) - positions.index_select(1, first)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """Keep what the way back needs."""
        positions, _, _, table, sign = inputs
        ctx.save_for_backward(table, sign)
        ctx.atoms = positions.shape[1]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        """Map the gradient by vectors ``[B, P, 3]`` to that by positions ``[B, N, 3]``."""
        table, sign = ctx.saved_tensors
        padded = torch.nn.functional.pad(gradients[0], (0, 0, 0, 1))
        rows = padded.index_select(1, table.flatten()).reshape(len(padded), *table.shape, 3)
        summed = (rows * sign.to(rows.dtype)[..., None]).sum(2)
        return torch.nn.functional.pad(summed, (0, 0, 0, ctx.atoms - len(table))), None, None, None, None


class _Arguments(nn.Module):
    """Arguments as they are, or their sines and cosines in turn."""

    index: Tensor

    def __init__(self, items: Sequence[Feature]) -> None:
        super().__init__()
        indices = [item.index for item in items]
        self.start, self.size = indices[0], len(indices)
        self.in_a_row = indices == list(range(self.start, self.start + self.size))
        self.circle = items[0].kind == "sincos"
        self.register_buffer("index", torch.tensor(indices, dtype=torch.long), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, n_in]`` to ``[B, n]`` or ``[B, 2 n]``."""
        # A slice where it will do: its gradient is no scatter.
        chosen = x[:, self.start : self.start + self.size] if self.in_a_row else x.index_select(1, self.index)
        return torch.stack([chosen.sin(), chosen.cos()], 2).flatten(1) if self.circle else chosen


class _Distances(nn.Module):
    """Distances between atoms."""

    first: Tensor
    second: Tensor
    table: Tensor
    sign: Tensor

    def __init__(self, items: Sequence[Feature], arguments: int) -> None:
        super().__init__()
        self.arguments = arguments
        tables = _pair_tables([(item.index, item.second) for item in items])
        for name, tensor in zip(("first", "second", "table", "sign"), tables, strict=True):
            self.register_buffer(name, tensor, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, n_in]`` to ``[B, P]``."""
        positions = x[:, self.arguments :].reshape(x.shape[0], -1, 3)
        step = PairSteps.apply(positions, self.first, self.second, self.table, self.sign)
        return step.square().sum(-1).sqrt()


class Features(nn.Module):
    """Features of arguments and positions.

    Each run of features of one kind is one block, and no permutation follows: compilers fuse a permutation into the
    first layer, where every weight then looks its input up.

    Args:
        items: the features in their order.
        arguments: number of arguments; the positions of atoms follow them in the input.
    """

    def __init__(self, items: Sequence[Feature], arguments: int) -> None:
        super().__init__()
        self.items = tuple(items)
        self.blocks = nn.ModuleList()
        for kind, run in itertools.groupby(self.items, key=lambda item: item.kind):
            group = list(run)
            self.blocks.append(_Distances(group, arguments) if kind == "distance" else _Arguments(group))

    @property
    def size(self) -> int:
        """Number of features."""
        return sum(2 if item.kind == "sincos" else 1 for item in self.items)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, n_in]`` to ``[B, size]``."""
        parts = [block(x) for block in self.blocks]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


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
