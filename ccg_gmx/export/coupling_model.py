"""The coupling that the maps of a coarse model leave out, as a bias: a grid for one or two torsions, else a network."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from ccg_gmx.export.contract import Signature, energy, torsion
from ccg_gmx.export.feature_perceptron import Feature, FeaturePerceptron
from ccg_gmx.export.static_bias import CAP_KT, StaticBias, capped
from ccg_gmx.potential.coupling import Coupling, Points, Quality
from ccg_gmx.records import FloatArray
from ccg_gmx.settings import Settings
from ccg_gmx.units import thermal_energy

NEGLIGIBLE_NATS = 1e-3
"""Maps this near to the surface need no correction: a run tells the two apart after about a thousand free frames."""

_GRID_POINTS = 72

Progress = Callable[[float, float], None]
"""Called with (steps done, steps in all)."""


class CouplingSettings(Settings):
    """The network and its training."""

    hidden: tuple[int, ...] = Field(default=(64, 64), min_length=1, description="width of every hidden layer (tanh)")
    steps: int = Field(default=4000, ge=1, description="optimiser steps")
    batch: int = Field(default=1024, ge=8, description="points in a step")
    points: int = Field(default=65_536, ge=64, description="points trained with; half as many again judge")
    learning_rate: float = Field(default=4e-3, gt=0, description="peak rate of Adam; decays to 0 along a cosine")
    cap_kT: float = Field(default=CAP_KT, gt=1, description="height up to which F is followed (kT)")


@dataclass(frozen=True)
class CouplingModel:
    """A fitted coupling.

    Attributes:
        network: ``[B, n_s]`` radians to ``[B, 1]`` kJ/mol.
        signature: its contract for TORCH_MODEL.
        examples: ``[T, n_s]`` inputs to check the export at.
        quality: distance of maps and network from F, at points the training has not seen.
    """

    network: FeaturePerceptron
    signature: Signature
    examples: Tensor
    quality: Quality


def maps_alone(coupling: Coupling, seed: int = 0, points: int = 65_536) -> Quality:
    """Distance of the maps, without any correction, from the surface.

    Args:
        coupling: surface and maps.
        seed: of the points it is judged at.
        points: their number.
    """
    drawn = coupling.points(points, seed)
    return drawn.quality(np.zeros(len(drawn.s)))


def coupling_grid(coupling: Coupling, cap_kT: float = CAP_KT) -> tuple[StaticBias, Quality]:
    """The coupling of one or two torsions on a grid.

    Args:
        coupling: surface and maps.
        cap_kT: height up to which F is followed.

    Returns:
        The bias, and the distance of maps and bias from F.
    """
    dims = coupling.fit.dims
    at = -math.pi + 2 * math.pi / _GRID_POINTS * np.arange(_GRID_POINTS)
    mesh = np.stack(np.meshgrid(*(at,) * dims, indexing="ij"), axis=-1).reshape(-1, dims)
    points = coupling.at(mesh)
    correction = points.target(partial(capped, cap_kT=cap_kT))
    kelvin = coupling.potential.temperature_K
    values = thermal_energy(kelvin) * correction.reshape((_GRID_POINTS,) * dims)
    return StaticBias(values, coupling.names, kelvin, cap_kT), points.quality(correction)


def fit_coupling(
    coupling: Coupling, settings: CouplingSettings | None = None, seed: int = 0, progress: Progress | None = None
) -> CouplingModel:
    """Fit a perceptron of the sines and cosines of all torsions to the coupling.

    Args:
        coupling: surface and maps.
        settings: the network and its training.
        seed: of points, weights and batches.
        progress: called after every step.
    """
    settings = settings or CouplingSettings()
    cap, kelvin = partial(capped, cap_kT=settings.cap_kT), coupling.potential.temperature_K
    points_seed, judge_seed, network_seed = (int(x) for x in np.random.SeedSequence(seed).generate_state(3) >> 1)
    points = coupling.points(settings.points, points_seed)
    network = _trained(points, points.target(cap), settings, network_seed, progress)
    judge = coupling.points(settings.points // 2, judge_seed)
    with torch.no_grad():
        found = network(torch.from_numpy(judge.s))[:, 0].numpy()
    _scale_output(network, thermal_energy(kelvin), 0.0)
    signature = Signature(tuple(map(torsion, coupling.names)), (energy(),), temperature_K=kelvin)
    return CouplingModel(network, signature, torch.from_numpy(judge.s[:4]), judge.quality(found))


def _trained(
    points: Points, target: FloatArray, settings: CouplingSettings, seed: int, progress: Progress | None
) -> FeaturePerceptron:
    """Least squares over the points; those that hold the probability count more, the heights still count."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        features = [Feature("sincos", i) for i in range(points.s.shape[1])]
        network = FeaturePerceptron.build(features, len(features), [*settings.hidden, 1]).double()
    generator = torch.Generator().manual_seed(seed)
    mean, deviation = float(points.weight @ target), max(float(target.std()), 1e-9)
    x, y = torch.from_numpy(points.s), torch.from_numpy((target - mean) / deviation)
    weight = torch.from_numpy(0.5 + 0.5 * np.minimum(points.weight * len(y), 10.0))
    optimiser = torch.optim.Adam(network.parameters(), lr=settings.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, settings.steps)
    for step in range(settings.steps):
        rows = torch.randint(len(y), (settings.batch,), generator=generator)
        loss = (weight[rows] * (network(x[rows])[:, 0] - y[rows]).square()).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if progress is not None:
            progress(step + 1, settings.steps)
    _scale_output(network, deviation, mean)
    return network.eval().requires_grad_(False)


def _scale_output(network: FeaturePerceptron, factor: float, offset: float) -> None:
    """Multiply what the network gives, and add to it."""
    last = network.layers[-1]
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        last.weight.mul_(factor)
        last.bias.mul_(factor).add_(offset)
