"""Plain MD for the comparison: many walkers of the package's own integrator, counted into histograms as they go.

One histogram per walker is kept at every doubling of its length, together with the transitions between two cores, so
that a run of any length leaves a few megabytes. Killed and called again, a run goes on; asked for more steps, too.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ccg_gmx.bench.convergence import Point, group_point
from ccg_gmx.bench.two_state import Transitions
from ccg_gmx.cycle.store import read_json, write_json
from ccg_gmx.cycle.system import System
from ccg_gmx.engine.gromacs import Gmx
from ccg_gmx.engine.mdp import fine_run
from ccg_gmx.engine.parallel import report_steps
from ccg_gmx.errors import StoreError
from ccg_gmx.free_energy.surface import grid
from ccg_gmx.molecule.interactions import torsion
from ccg_gmx.molecule.langevin import Langevin, LangevinState
from ccg_gmx.molecule.restraint import RestrainedEnergy
from ccg_gmx.records import FloatArray, IntArray

Quadruple = tuple[int, int, int, int]
SAMPLE_EVERY = 50
"""Steps between samples of the torsions: more often adds nothing, fine motion takes longer than 0.05 ps."""

PRECISION = torch.float32
"""Of positions and forces, as in GROMACS' usual build; positions are centred again after every segment."""

_SHORT_GROUPS = 32
_RESTRAINT_KJ_MOL = 2000.0
_RELAX_STEPS, _RELAX_NM = 400, 0.001
_EQUILIBRATION_STEPS, _EQUILIBRATION_FRICTION = 10_000, 5.0
_FIELDS = ("counts", "n_ab", "n_ba", "samples_a", "samples_b")


@dataclass(frozen=True)
class MdTask:
    """One batch of walkers in one folder, which holds ``starts.npy`` and ``core.npy``.

    Attributes:
        folder: where it runs and what it leaves behind.
        system: folder of the system.
        torsions: 0-based atoms of every torsion.
        seed: seed of velocities and noise.
        segments: segments to do.
        segment_steps: steps of each walker between two checkpoints, a multiple of ``SAMPLE_EVERY``.
        dt_ps: time step.
        friction_time_ps: inverse friction.
    """

    folder: Path
    system: Path
    torsions: tuple[Quadruple, ...]
    seed: int
    segments: int
    segment_steps: int
    dt_ps: float
    friction_time_ps: float


@dataclass
class Counter:
    """Histograms and transitions of walkers, filled while they run.

    Attributes:
        core: ``[n, n]`` 0 and 1 in the cores of two states, -1 elsewhere.
        walkers: number of walkers W.
        counts: ``[W, n * n]`` samples per bin.
        state: ``[W]`` core visited last; -1 before the first.
        n_ab: ``[W]`` transitions from core 0 to core 1.
        n_ba: ``[W]`` transitions back.
        samples_a: ``[W]`` samples after core 0.
        samples_b: ``[W]`` samples after core 1.
    """

    core: IntArray
    walkers: int
    counts: IntArray = field(init=False)
    state: IntArray = field(init=False)
    n_ab: IntArray = field(init=False)
    n_ba: IntArray = field(init=False)
    samples_a: IntArray = field(init=False)
    samples_b: IntArray = field(init=False)

    def __post_init__(self) -> None:
        self.counts = np.zeros((self.walkers, self.core.size), dtype=np.int64)
        self.state = np.full(self.walkers, -1, dtype=np.int64)
        for name in _FIELDS[1:]:
            setattr(self, name, np.zeros(self.walkers, dtype=np.int64))

    def add(self, s: FloatArray) -> None:
        """Count one sample of every walker.

        Args:
            s: ``[W, 2]`` radians.
        """
        bins = flat_bins(s, len(self.core))
        self.counts[np.arange(self.walkers), bins] += 1
        core = self.core.ravel()[bins]
        self.n_ab += (self.state == 0) & (core == 1)
        self.n_ba += (self.state == 1) & (core == 0)
        self.state = np.where(core >= 0, core, self.state)
        self.samples_a += self.state == 0
        self.samples_b += self.state == 1

    def tensors(self) -> dict[str, Tensor]:
        """Everything that a checkpoint must hold."""
        return {name: torch.from_numpy(getattr(self, name)) for name in ("state", *_FIELDS)}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take over what ``tensors`` returned."""
        for name, values in tensors.items():
            setattr(self, name, values.numpy().copy())


def flat_bins(s: FloatArray, n: int) -> IntArray:
    """Flat index ``[B]`` of the bins of torsions ``[B, n_s]`` (radians), each bin centred on its grid point."""
    cells = np.floor((s + np.pi) * n / (2 * np.pi) + 0.5).astype(np.int64) % n
    return np.asarray(np.ravel_multi_index(tuple(cells.T), (n,) * s.shape[1]))


def torsions_of(positions: Tensor, atoms: Sequence[Sequence[int]]) -> FloatArray:
    """Torsions ``[B, n_s]`` in radians of positions ``[B, N, 3]``; ``atoms`` are 0-based quadruples."""
    i, j, k, l = np.asarray(atoms).T  # noqa: E741
    x = positions.permute(2, 1, 0)
    cosine, sine, _ = torsion(x[:, i] - x[:, j], x[:, k] - x[:, j], x[:, k] - x[:, l])
    return torch.atan2(sine, cosine).T.double().numpy()


def run_md(task: MdTask) -> None:
    """Run, or go on with, a batch of walkers; a top-level function for worker processes.

    Raises:
        StoreError: if the folder holds walkers of other settings.
    """
    torch.set_num_threads(1)
    _claim(task)
    system = System.load(task.system)
    langevin = _langevin(task, system, task.seed)
    starts = torch.from_numpy(np.load(task.folder / "starts.npy", allow_pickle=False)).to(PRECISION)
    counter = Counter(np.load(task.folder / "core.npy", allow_pickle=False), len(starts))
    checkpoint = task.folder / "state.pt"
    if checkpoint.exists():
        state, more = LangevinState.load(checkpoint)
        state = _with_noise_of_today(state, task, system)
        counter.restore(more)
    else:
        state = langevin.start(starts)
    for segment in range(state.step // task.segment_steps + 1, task.segments + 1):
        state = langevin.run(
            state,
            task.segment_steps,
            every=SAMPLE_EVERY,
            callback=lambda now, _: counter.add(torsions_of(now.positions, task.torsions)),
        )
        state = centred(state)
        if segment & (segment - 1) == 0 or segment == task.segments:
            _save_histograms(task.folder / f"histograms_{segment:07d}.npz", counter)
        state.save(checkpoint, **counter.tensors())
        report_steps(segment, task.segments)
    last = task.folder / f"histograms_{task.segments:07d}.npz"
    if not last.exists():  # a longer run was stopped just here
        _save_histograms(last, counter)


def _langevin(task: MdTask, system: System, seed: int) -> Langevin:
    energy, friction = system.energy(PRECISION), 1 / task.friction_time_ps
    masses, temperature = system.topology.masses, system.temperature_K
    return Langevin(energy.energy_and_gradient, masses, temperature, friction, task.dt_ps, seed)


def _with_noise_of_today(state: LangevinState, task: MdTask, system: System) -> LangevinState:
    """Go on with a new stream of noise where another version of the package wrote the checkpoint.

    Walkers have no memory but positions and velocities, so days of sampling need not be thrown away for it.
    """
    fresh = _langevin(task, system, task.seed + state.step).start(state.positions[:1]).noise
    if (fresh.shape, fresh.dtype) == (state.noise.shape, state.noise.dtype):
        return state
    return LangevinState(state.positions, state.velocities, state.step, fresh)


def centred(state: LangevinState) -> LangevinState:
    """Put every walker's centre back to the origin: free walkers diffuse away, and float32 would lose its digits."""
    return LangevinState(
        state.positions - state.positions.mean(1, keepdim=True), state.velocities, state.step, state.noise
    )


def _claim(task: MdTask) -> None:
    """Say in the folder what runs there, and refuse to go on with something else."""
    facts = {
        "seed": task.seed,
        "segment_steps": task.segment_steps,
        "dt_ps": task.dt_ps,
        "friction_time_ps": task.friction_time_ps,
        "sample_every": SAMPLE_EVERY,
        "torsions": [list(atoms) for atoms in task.torsions],
    }
    record = task.folder / "walkers.json"
    if record.exists() and read_json(record) != facts:
        raise StoreError(f"{task.folder} holds walkers of other settings", remedy="choose another --out or remove it")
    write_json(record, facts)


def _save_histograms(path: Path, counter: Counter) -> None:
    n = len(counter.core)
    partial = path.with_name(f".{path.stem}.partial.npz")
    arrays = {name: getattr(counter, name) for name in _FIELDS[1:]}
    np.savez_compressed(partial, counts=counter.counts.reshape(-1, n, n).astype(np.uint32), **arrays)
    os.replace(partial, path)


def segments_done(folder: Path) -> int:
    """Number of segments of the latest histograms in a folder; 0 without any."""
    return max((int(path.stem.rpartition("_")[2]) for path in folder.glob("histograms_*.npz")), default=0)


def load_histograms(tasks: Sequence[MdTask], segments: int) -> dict[str, IntArray]:
    """Read what all walkers had counted after so many segments.

    Args:
        tasks: batches of walkers.
        segments: a power of two, or the tasks' last.

    Returns:
        counts ``[W, n, n]``, n_ab, n_ba, samples_a, samples_b ``[W]``, walkers of all tasks one after the other.
    """
    loaded = []
    for task in tasks:
        with np.load(task.folder / f"histograms_{segments:07d}.npz", allow_pickle=False) as data:
            loaded.append({name: data[name] for name in _FIELDS})
    return {name: np.concatenate([part[name] for part in loaded]) for name in _FIELDS}


def pooled_transitions(data: dict[str, IntArray]) -> Transitions:
    """Add up what ``load_histograms`` read, all walkers together."""
    steps = {name: float(data[f"samples_{name}"].sum()) * SAMPLE_EVERY for name in "ab"}
    return Transitions(int(data["n_ab"].sum()), int(data["n_ba"].sum()), steps["a"], steps["b"])


def md_curve(p: FloatArray, tasks: Sequence[MdTask]) -> list[Point]:
    """Forward KL of plain MD at doubling numbers of steps.

    Up to a walker's length every walker is a group of its own, from its start; beyond it, groups are whole walkers put
    together. Only those that are made of whole walkers are marked as independent samples of the law.

    Args:
        p: ``[n, n]`` probabilities of the reference.
        tasks: finished batches of walkers of one length.
    """
    last, steps = tasks[0].segments, tasks[0].segment_steps
    points = []
    for segments in (2**k for k in range(last.bit_length()) if 2**k < last):
        counts = load_histograms(tasks[:1], segments)["counts"][:_SHORT_GROUPS]
        points.append(group_point(p, counts, 1, float(segments * steps), independent=False))
    counts, size = load_histograms(tasks, last)["counts"], 1
    while size <= len(counts):
        points.append(group_point(p, counts, size, float(last * steps), independent=True))
        size *= 2
    return points


def equilibrium_starts(
    system: System, torsions: Sequence[Sequence[int]], weights: FloatArray, count: int, seed: int
) -> FloatArray:
    """Walkers whose torsions are drawn from a density, equilibrated in everything else.

    The starting structure is turned to the torsions, relaxed, and run for 10 ps with the torsions restrained.

    Args:
        system: the molecule.
        torsions: 0-based atoms of every torsion.
        weights: ``[n, n]`` density at the grid points, not negative.
        count: number of walkers.
        seed: seed of everything random.

    Returns:
        ``[count, N, 3]`` nm.
    """
    rng = np.random.default_rng(seed)
    n = len(weights)
    chosen = rng.choice(weights.size, size=count, p=weights.ravel() / weights.sum())
    targets = grid(n, weights.ndim)[chosen] + rng.uniform(-np.pi / n, np.pi / n, size=(count, weights.ndim))
    coordinates = system.coordinates
    _, b, y = coordinates.split(coordinates.relabel(torch.from_numpy(system.structure)[None]))
    x = coordinates.join(torch.from_numpy(targets), b.repeat(count, 1), y.repeat(count, 1))
    held = RestrainedEnergy(system.energy().energy_and_gradient, np.asarray(torsions), targets, _RESTRAINT_KJ_MOL)
    for _ in range(_RELAX_STEPS):
        _, gradient = held(x)
        x = x - _RELAX_NM * gradient / gradient.abs().amax((1, 2), keepdim=True)
    langevin = Langevin(
        held, system.topology.masses, system.temperature_K, _EQUILIBRATION_FRICTION, 0.0005, int(rng.integers(2**31))
    )
    return centred(langevin.run(langevin.start(x), _EQUILIBRATION_STEPS)).positions.numpy()


@dataclass(frozen=True)
class Speed:
    """Steps per second of wall-clock time on one core.

    Attributes:
        langevin: all walkers of the package's integrator together.
        gromacs: ``gmx mdrun``, one molecule; nan where it cannot run the system.
    """

    langevin: float
    gromacs: float

    @property
    def best(self) -> float:
        """The faster of the two."""
        return max(self.langevin, self.gromacs) if self.gromacs == self.gromacs else self.langevin

    def row(self) -> dict[str, float]:
        """The numbers for JSON."""
        return asdict(self)


def langevin_speed(system: System, walkers: int, dt_ps: float, steps: int = 2000, repeats: int = 3) -> float:
    """Steps per second, all walkers together, one core, fastest repeat."""
    langevin = Langevin(
        system.energy(PRECISION).energy_and_gradient, system.topology.masses, system.temperature_K, 1.0, dt_ps, 1
    )
    state = langevin.start(torch.from_numpy(system.structure).to(PRECISION).repeat(walkers, 1, 1))
    state = langevin.run(state, 100)
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        state = langevin.run(state, steps)
        seconds.append(time.perf_counter() - begin)
    return walkers * steps / min(seconds)


def gromacs_speed(
    gmx: Gmx, structure: Path, topology: Path, system: System, folder: Path, steps: int = 50_000
) -> float:
    """Steps per second of the cycle's fine runs (sd integrator, one thread), as mdrun itself reports it."""
    mdp = fine_run(system.temperature_K, 50_000, 1, output_every=200)
    tpr = gmx.grompp(mdp, structure, topology, folder / "speed.tpr")
    ns_per_day = gmx.mdrun(tpr, folder, name="speed").ns_per_day
    return ns_per_day * 1e3 / float(mdp["dt"]) / 86400
