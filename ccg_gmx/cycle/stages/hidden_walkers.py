"""Walkers held at coarse points, from hot seeds with random torsions and from fine frames: the runs behind the test.

A seed must not depend on what the fine runs happened to visit, nor wait for a barrier: torsions that are free to turn
are drawn uniformly, the clashes this makes are relaxed, and a short hot run decorrelates everything else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ccg_gmx.cycle.system import System
from ccg_gmx.free_energy.hidden_modes import BoolArray, HiddenModeSettings, WalkerSeries
from ccg_gmx.molecule.langevin import Langevin, LangevinState
from ccg_gmx.molecule.restraint import EnergyAndGradient, RestrainedEnergy
from ccg_gmx.molecule.supports import bead_torsions
from ccg_gmx.records import CoarseSplit, FloatArray, IntArray
from ccg_gmx.units import thermal_energy

RELAX_STEPS = 300
SAMPLE_PS = 0.1
"""Time between samples that are compared."""
FRAME_EVERY = 10
"""Every n-th of them is kept as a frame with its energy, for the flow to be tried on."""
HOT_FRICTION_PER_PS = 5.0
FRICTION_PER_PS = 2.0

Progress = Callable[[int, int], object]


@dataclass(frozen=True)
class Seeds:
    """Where the walkers start.

    Attributes:
        positions: ``[B, N, 3]`` nm.
        point: ``[B]`` index of each walker's coarse point.
        hot: ``[B]`` True for hot seeds.
    """

    positions: Tensor
    point: IntArray
    hot: BoolArray


@dataclass(frozen=True)
class WalkerRun:
    """What came of the walkers.

    Attributes:
        series: samples of the walkers that kept to the supports.
        frames: frames of them, with the reduced potential without restraint; ``run`` is the walker.
        point_of_frame: ``[T]`` coarse point of each frame.
        left: assumption -> walkers that left it (handedness, cis/trans): no hidden modes, and not compared.
        evaluations: energies computed.
    """

    series: WalkerSeries
    frames: CoarseSplit
    point_of_frame: IntArray
    left: dict[str, int]
    evaluations: int


def free_torsions(system: System) -> tuple[list[int], list[int]]:
    """Columns of b and of y that are torsions free to turn: on the full circle, or a rotor, about a bond in no ring."""
    coordinates, tree = system.coordinates, system.coordinates.tree
    rest = [four for four in bead_torsions(tree) if four not in coordinates.s_atoms]
    n_b, n_y = coordinates.n_b - len(rest), coordinates.n_y - len(tree.rows)
    beads = [
        n_b + k
        for k, four in enumerate(rest)
        if coordinates.b[n_b + k].support == "circle" and not _in_ring(system, four[1], four[2])
    ]
    others = [
        n_y + k
        for k, row in enumerate(tree.rows)
        if coordinates.y[n_y + k].support in ("circle", "rotor")
        and coordinates.y[n_y + k].name.startswith(("torsion", "rotor"))
        and not _in_ring(system, row.parent, row.angle_ref)
    ]
    return beads, others


def _in_ring(system: System, first: int, second: int) -> bool:
    """Whether the ends of a bond stay connected without it."""
    neighbours = system.coordinates.tree.graph.neighbours
    reached, frontier = {first}, [first]
    while frontier:
        atom = frontier.pop()
        for other in neighbours[atom]:
            if {atom, other} != {first, second} and other not in reached:
                reached.add(other)
                frontier.append(other)
    return second in reached


def make_seeds(
    system: System, points: FloatArray, split: CoarseSplit | None, settings: HiddenModeSettings, seed: int
) -> Seeds:
    """Place hot seeds and cold ones at every coarse point.

    Args:
        system: the molecule.
        points: ``[P, n_s]`` radians.
        split: fine frames for the cold seeds: the nearest of as many runs as possible; None: the starting structure.
        settings: how many.
        seed: of the random torsions.
    """
    rng = np.random.default_rng(seed)
    coordinates, P = system.coordinates, len(points)
    structure = coordinates.relabel(torch.from_numpy(system.structure)[None])
    _, b0, y0 = (part.numpy() for part in coordinates.split(structure))
    hot, cold = settings.walkers, settings.cold_walkers
    b, y = np.repeat(b0, P * hot, axis=0), np.repeat(y0, P * hot, axis=0)
    for columns, values, kinds in zip(free_torsions(system), (b, y), (coordinates.b, coordinates.y), strict=True):
        for column in columns:
            half = kinds[column].width / 2
            values[:, column] = kinds[column].centre + rng.uniform(-half, half, len(values))
    point = np.repeat(np.arange(P), hot)
    parts = [(point, b, y)]
    for index in range(P if cold else 0):
        if split is None:
            parts.append((np.full(cold, index), np.repeat(b0, cold, axis=0), np.repeat(y0, cold, axis=0)))
        else:
            rows = _nearest_frames(split, points[index], cold)
            parts.append((np.full(len(rows), index), split.b[rows], split.y[rows]))
    point, b, y = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    positions = coordinates.join(*(torch.from_numpy(values) for values in (points[point], b, y)))
    return Seeds(positions, point, np.arange(len(point)) < P * hot)


def _nearest_frames(split: CoarseSplit, s0: FloatArray, count: int) -> IntArray:
    """Frames nearest to a coarse point, from different fine runs as far as there are."""
    distance = (((split.s - s0 + np.pi) % (2 * np.pi) - np.pi) ** 2).sum(axis=1)
    order = np.argsort(distance, kind="stable")
    _, first = np.unique(split.run[order], return_index=True)
    nearest = order[np.sort(first)][:count]
    more = order[~np.isin(order, nearest)][: count - len(nearest)]
    return np.concatenate([nearest, more]).astype(np.int64)


def relax(energy_and_gradient: EnergyAndGradient, positions: Tensor, steps: int = RELAX_STEPS) -> Tensor:
    """Take clashes out by steepest descent, each walker with its own step, no atom moving further than that step.

    Args:
        energy_and_gradient: the energy.
        positions: ``[B, N, 3]`` nm.
        steps: energies computed per walker, less one.
    """
    x = positions.clone()
    length = torch.full((len(x), 1, 1), 0.005, dtype=x.dtype)  # nm
    energy, gradient = energy_and_gradient(x)
    for _ in range(steps):
        largest = gradient.norm(dim=2).amax(1)[:, None, None].clamp(min=1e-12)
        trial = x - length * gradient / largest
        new_energy, new_gradient = energy_and_gradient(trial)
        better = new_energy < energy
        keep = better[:, None, None]
        x, gradient = torch.where(keep, trial, x), torch.where(keep, new_gradient, gradient)
        energy = torch.where(better, new_energy, energy)
        length = torch.where(keep, (1.2 * length).clamp(max=0.02), 0.5 * length)
    return x


def run_walkers(
    system: System,
    points: FloatArray,
    seeds: Seeds,
    settings: HiddenModeSettings,
    seed: int,
    progress: Progress | None = None,
) -> WalkerRun:
    """Relax, heat, settle and run the walkers; sample the last part.

    Args:
        system: the molecule and its temperature.
        points: ``[P, n_s]`` radians.
        seeds: starts.
        settings: times and temperatures.
        seed: of velocities and noise.
        progress: called with steps done and their number.
    """
    plain = system.energy().energy_and_gradient
    atoms = np.array(system.coordinates.s_atoms)
    centres = points[seeds.point]
    masses = np.maximum(system.topology.masses, settings.lightest_amu)
    steps = {name: round(getattr(settings, f"{name}_ps") / settings.dt_ps) if name else 0 for name in ("hot", "settle")}
    every = max(1, round(SAMPLE_PS / settings.dt_ps))
    production = max(4, round(settings.ps / settings.dt_ps / every)) * every
    B, hot = len(centres), np.flatnonzero(seeds.hot)
    total = steps["hot"] + steps["settle"] + production

    def restrained(rows: IntArray) -> RestrainedEnergy:
        return RestrainedEnergy(plain, atoms, centres[rows], settings.restraint_kJ_mol)

    def integrate(x: Tensor, rows: IntArray, kelvin: float, friction: float, count: int, salt: int) -> LangevinState:
        langevin = Langevin(restrained(rows), masses, kelvin, friction, settings.dt_ps, seed + salt)
        return langevin.run(langevin.start(x), count)

    everyone = np.arange(B)
    x = relax(restrained(everyone), seeds.positions)
    x[hot] = integrate(x[hot], hot, settings.hot_temperature_K, HOT_FRICTION_PER_PS, steps["hot"], 0).positions
    if progress is not None:
        progress(steps["hot"], total)
    kelvin = system.temperature_K
    x = integrate(x, everyone, kelvin, HOT_FRICTION_PER_PS, steps["settle"], 1).positions
    samples: list[Tensor] = []
    energies: list[Tensor] = []

    def keep(state: LangevinState, energy: Tensor) -> None:
        samples.append(state.positions)
        energies.append(energy)
        if progress is not None:
            progress(total - production + state.step, total)

    langevin = Langevin(restrained(everyone), masses, kelvin, FRICTION_PER_PS, settings.dt_ps, seed + 2)
    langevin.run(langevin.start(x), production, every=every, callback=keep)
    # each call of relax and of run computes one energy before its first step
    evaluations = B * (RELAX_STEPS + 1 + steps["settle"] + 1 + production + 1) + len(hot) * (steps["hot"] + 1)
    energy = torch.stack(energies, dim=1).numpy() / thermal_energy(kelvin)
    return _collect(system, points, seeds, torch.stack(samples, dim=1), energy, every * settings.dt_ps, evaluations)


def _collect(
    system: System,
    points: FloatArray,
    seeds: Seeds,
    samples: Tensor,
    energy: FloatArray,
    sample_ps: float,
    evaluations: int,
) -> WalkerRun:
    """Bring ``samples [B, T, N, 3]`` into internal coordinates; set walkers aside that left the supports."""
    B, T = samples.shape[:2]
    coordinates, target = system.coordinates, system.target()
    with torch.no_grad():
        s, b, y = coordinates.split(coordinates.relabel(samples.reshape(B * T, *samples.shape[2:])))
        inside = (coordinates.in_support(y) & coordinates.in_support_beads(b)).reshape(B, T).all(1).numpy()
        left = _reasons(system, b.reshape(B, T, -1)[~inside], y.reshape(B, T, -1)[~inside])
        rows = (torch.arange(B * T).reshape(B, T)[inside][:, FRAME_EVERY - 1 :: FRAME_EVERY]).reshape(-1)
        u = target(s[rows], b[rows], y[rows]).numpy()
    kinds = coordinates.b + coordinates.y
    series = WalkerSeries(
        values=torch.cat([b, y], dim=1).reshape(B, T, -1).numpy()[inside],
        energy=energy[inside],
        names=tuple(c.name for c in kinds),
        periods=np.array([c.width if c.support in ("circle", "rotor") else np.inf for c in kinds]),
        points=points,
        point=seeds.point[inside],
        hot=seeds.hot[inside],
        total_ps=T * sample_ps,
    )
    walker = rows.numpy() // T
    frames = CoarseSplit(s[rows].numpy(), b[rows].numpy(), y[rows].numpy(), u, walker)
    return WalkerRun(series, frames, seeds.point[walker], left, evaluations + target.evaluations)


def _reasons(system: System, b: Tensor, y: Tensor) -> dict[str, int]:
    """Count, per coordinate, the walkers that left its support; ``b``, ``y`` are ``[L, T, n]`` of those that did."""
    counts: dict[str, int] = {}
    for kinds, values in ((system.coordinates.b, b), (system.coordinates.y, y)):
        for column, coordinate in enumerate(kinds):
            if coordinate.support == "window":
                off = (values[..., column] - coordinate.centre).abs() >= coordinate.width / 2
                if walkers := int(off.any(1).sum()):
                    counts[coordinate.name] = walkers
    return counts
