"""``ccg bench flow``: draws with energies and training examples per second, of one flow of alanine dipeptide.

Everything is timed in one run, on the same flow, each several times of which the fastest counts, as in
``bench/energy.py``. The opponents are the same flow without its compiled kernels, and a neural spline flow of zuko with
as many coordinates, context features, couplings and bins.
"""

from __future__ import annotations

import copy
import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ccg_gmx.bench.energy import fastest, torch_threads
from ccg_gmx.bench.peptides import polyalanine
from ccg_gmx.cycle.system import System
from ccg_gmx.engine.gromacs import Gmx
from ccg_gmx.errors import SettingsError
from ccg_gmx.flow.conditional import FlowSettings, LadderFlow
from ccg_gmx.flow.losses import own_draws, reverse_kl, weighted_likelihood
from ccg_gmx.flow.train import EnergySettings, LikelihoodSettings, train_likelihood
from ccg_gmx.free_energy.diagnostics import kish_fraction
from ccg_gmx.molecule.target import ReducedTarget
from ccg_gmx.molecule.topology import parse_tpr_dump
from ccg_gmx.molecule.trajectory import read_frames
from ccg_gmx.records import CoarseSplit

FRAMES, REPEATS = 2048, 5
STEPS_PER_FRAME = 20
DRAWS, DRAWS_PER_POINT = 8192, 128
BEADS = {"C_ACE": 5, "N_ALA": 7, "CA_ALA": 9, "C_ALA": 15, "N_NME": 17}
TORSIONS = {"phi": [5, 7, 9, 15], "psi": [7, 9, 15, 17]}
OURS, EAGER, ZUKO = "ccg flow", "ccg flow, eager", "zuko NSF"
WEIGHTED, DRAWN, BY_ENERGY, BY_LIKELIHOOD = (
    "draws with energies",
    "draws with densities",
    "training with energies",
    "training by likelihood",
)

HOW = {
    WEIGHTED: f"ln q and reduced potential of {DRAWS} draws in float64, {DRAWS_PER_POINT} at each (phi, psi)",
    DRAWN: "the same without energies; of zuko: rsample_and_log_prob, the context repeated",
    BY_ENERGY: "a whole step in float32: draws, energies, both losses, likelihood of fine frames, gradients, AdamW; "
    "an example is one own draw",
    BY_LIKELIHOOD: "a whole step in float32: likelihood of as many frames, gradients, AdamW; an example is one frame",
}


@dataclass(frozen=True)
class Rate:
    """Speed of one task.

    Attributes:
        task: what is done.
        program: who does it.
        precision: ``float64`` or ``float32``.
        threads: torch threads.
        per_s: draws or examples per second of wall-clock time, fastest repeat.
        per_core_s: the same per thread (of a GPU: as it is).
        per_cpu_s: the same per second of processor time.
    """

    task: str
    program: str
    precision: str
    threads: int
    per_s: float
    per_core_s: float
    per_cpu_s: float


def bench_flow(
    repeats: int = REPEATS, *, threads: int = 1, device: str = "cpu", frames: int = FRAMES
) -> dict[str, Any]:
    """Measure everything on alanine dipeptide in vacuum (amber99sb-ildn).

    Args:
        repeats: how often each measurement is made.
        threads: threads of torch; the compiled kernels of a flow use one.
        device: ``cpu``, or ``cuda`` for the first GPU beside it.
        frames: frames of the short run that the flow is trained on.

    Returns:
        rates (see :class:`Rate`), ratios of our flow to the others, how each was timed, what was left out and why, size
        and Kish fraction of the flow, processor and load.

    Raises:
        SettingsError: for an unknown device.
        CcgError: without a usable gmx.
    """
    if device not in ("cpu", "cuda"):
        raise SettingsError(f"device {device!r}", expected="cpu or cuda", remedy="leave --device out for cpu")
    skipped: dict[str, str] = {}
    if device == "cuda" and not torch.cuda.is_available():
        skipped["cuda"] = "torch finds no CUDA device; measured on the processor alone"
    load_before = os.getloadavg()[0]
    with torch_threads(threads):
        system, split, flow = _trained(Gmx.find(), frames)
        jobs = _ours(system, split, flow, "cpu", EAGER) | _ours(system, split, flow, "cpu", OURS)
        if find_spec("zuko") is None:
            skipped[ZUKO] = "the package zuko is not installed: pip install zuko"
        else:
            jobs |= _zuko(split, flow)
        rates = [_rate(key, job, repeats, threads) for key, job in jobs.items()]
        kish = _kish(system, flow)
        if device == "cuda" and not skipped.get("cuda"):
            jobs = _ours(system, split, flow, "cuda", f"{OURS}, {torch.cuda.get_device_name()}")
            rates += [_rate(key, job, repeats, 1) for key, job in jobs.items()]
    return {
        "rates": [asdict(rate) for rate in rates],
        "ratios": compare(rates),
        "how": HOW,
        "skipped": skipped,
        "repeats": repeats,
        "flow": {**flow.settings.model_dump(), "coordinates": len(flow.b) + len(flow.y), "kish_fraction_median": kish},
        "load_average": {"before": load_before, "after": os.getloadavg()[0]},
    }


def compare(rates: list[Rate]) -> dict[str, dict[str, dict[str, float]]]:
    """Return for each task the speed of our flow on the processor as multiples of the others'.

    Args:
        rates: everything measured.
    """
    ours = {rate.task: rate for rate in rates if rate.program == OURS}
    ratios: dict[str, dict[str, dict[str, float]]] = {}
    for rate in rates:
        if rate.program != OURS:
            best = ours[rate.task]
            ratio = {"wall": best.per_s / rate.per_s, "processor": best.per_cpu_s / rate.per_cpu_s}
            ratios.setdefault(rate.task, {})[rate.program] = ratio
    return ratios


Job = tuple[Callable[[], object], int]
"""What to time, and how many draws or examples it makes."""


def _rate(key: tuple[str, str, str], job: Job, repeats: int, threads: int) -> Rate:
    wall, processor = fastest(job[0], repeats)
    return Rate(*key, threads, job[1] / wall, job[1] / wall / threads, job[1] / max(processor, 1e-9))


def _trained(gmx: Gmx, frames: int) -> tuple[System, CoarseSplit, LadderFlow]:
    """Run the molecule for a few ps and train a flow of default shape on the frames, for seconds."""
    with tempfile.TemporaryDirectory(prefix="ccg-bench-") as name:
        folder = Path(name)
        tpr = polyalanine(gmx, 1, folder, steps=STEPS_PER_FRAME * frames, output_every=STEPS_PER_FRAME)
        topology = parse_tpr_dump(gmx.dump(tpr))
        positions = read_frames(gmx.mdrun(tpr, folder).trajectory, topology.n_atoms).positions[:frames]
    positions = positions - positions.mean(axis=1, keepdims=True)
    system = System.build(topology, positions[0], BEADS, TORSIONS, 300.0)
    coordinates = system.coordinates
    r = coordinates.relabel(positions)
    s, b, y = (x.numpy() for x in coordinates.split(torch.from_numpy(r)))
    split = CoarseSplit(s, b, y, np.zeros(len(s)), np.zeros(len(s), dtype=np.int64))
    flow = LadderFlow(coordinates.n_s, coordinates.b, coordinates.y, FlowSettings()).float()
    train_likelihood(flow, split, LikelihoodSettings(steps=60, batch=512), 1)
    return system, split, flow.double()


def _ours(system: System, split: CoarseSplit, flow: LadderFlow, device: str, program: str) -> dict[Any, Job]:
    """Return what is timed of our flow."""
    jobs: dict[Any, Job] = {}
    double = _copy(flow, torch.float64, device, program)
    s = _points(split, DRAWS // DRAWS_PER_POINT, device).repeat_interleave(DRAWS_PER_POINT, 0)
    target = _target(system, torch.float64, device)
    generator = torch.Generator(device).manual_seed(1)

    def draw(weigh: bool) -> float:
        with torch.no_grad():
            b, y, log_q = double.draw(s, generator)
            return float((target(s, b, y) + log_q if weigh else log_q).mean())

    jobs[WEIGHTED, program, "float64"] = (lambda: draw(True), DRAWS)
    jobs[DRAWN, program, "float64"] = (lambda: draw(False), DRAWS)
    settings = EnergySettings()
    for task in (BY_ENERGY, BY_LIKELIHOOD):
        single = _copy(flow, torch.float32, device, program)
        step = _training_step(system, split, single, settings, device, task == BY_ENERGY)
        jobs[task, program, "float32"] = (step, settings.batch)
    return jobs


def _target(system: System, dtype: torch.dtype, device: str) -> ReducedTarget:
    """Return the reduced potential with coordinates of its own, which ``.to`` moves in place."""
    coordinates = copy.deepcopy(system.coordinates).to(device)
    return ReducedTarget(coordinates, system.energy(dtype, device), system.temperature_K)


def _copy(flow: LadderFlow, dtype: torch.dtype, device: str, program: str) -> LadderFlow:
    other = LadderFlow(flow.n_s, flow.b, flow.y, flow.settings)
    other.load_state_dict(flow.state_dict())
    return other.to(device=device, dtype=dtype).use_compiled(program != EAGER)


def _points(split: CoarseSplit, count: int, device: str) -> Tensor:
    """Return coarse points ``[count, n_s]`` among those of the frames."""
    rows = np.random.default_rng(1).choice(len(split.s), size=count)
    return torch.from_numpy(split.s[rows]).to(device)


def _training_step(
    system: System, split: CoarseSplit, flow: LadderFlow, settings: EnergySettings, device: str, with_energies: bool
) -> Callable[[], float]:
    """Return one step of ``train_energy`` (or of ``train_likelihood``) without its bookkeeping."""
    optimiser = torch.optim.AdamW(flow.parameters(), lr=1e-6, foreach=True)
    target = _target(system, torch.float32, device)
    generator = torch.Generator(device).manual_seed(2)
    data = [torch.as_tensor(x, dtype=torch.float32, device=device) for x in (split.b, split.y, split.s)]
    part, count = settings.own_weighted_fraction, settings.forward_batch if with_energies else settings.batch
    group = settings.group if part > 0 else 1

    def step() -> float:
        rows = torch.randint(len(data[0]), (count,), generator=generator, device=device)
        loss = -flow.log_prob(*(x[rows] for x in data)).mean()
        if with_energies:
            s = data[2][torch.randint(len(data[0]), (settings.batch // group,), generator=generator, device=device)]
            draws = own_draws(flow, target, s.repeat_interleave(group, 0), generator, settings.clash_margin)
            loss = settings.forward_fraction * loss + (1 - settings.forward_fraction) * (1 - part) * reverse_kl(draws)
            if part > 0:
                weighted, _ = weighted_likelihood(draws, group, settings.weight_ess_floor)
                loss = loss + (1 - settings.forward_fraction) * part * weighted
        return _descend(loss, flow, optimiser)

    return step


def _descend(loss: Tensor, flow: torch.nn.Module, optimiser: torch.optim.Optimizer) -> float:
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(flow.parameters(), 20.0)
    optimiser.step()
    return float(loss.detach())


def _kish(system: System, flow: LadderFlow) -> float:
    """Return the median Kish fraction of the flow as it was timed; a flow of seconds of training is no good one."""
    s = torch.zeros(16, flow.n_s, dtype=torch.float64)
    s[:, 0], s[:, 1] = -1.4, torch.linspace(0.0, 2.6, 16)
    s = s.repeat_interleave(DRAWS_PER_POINT, 0)
    with torch.no_grad():
        b, y, log_q = flow.draw(s, torch.Generator().manual_seed(3))
        log_w = -system.target()(s, b, y) - log_q
    return float(np.median(kish_fraction(log_w.view(16, -1).numpy())))


def _zuko(split: CoarseSplit, flow: LadderFlow) -> dict[Any, Job]:
    """Return what is timed of zuko: coupling flows (two passes) on the line, conditioned on the same features of s."""
    import zuko  # type: ignore[import-not-found, import-untyped, unused-ignore]

    settings = flow.settings
    with torch.no_grad():
        context = flow.features(torch.from_numpy(split.s).T).T
    values = torch.from_numpy(np.concatenate([split.b, split.y], axis=1))
    values = (values - values.mean(0)) / values.std(0)
    torch.manual_seed(1)
    shape: dict[str, Any] = {
        "features": values.shape[1],
        "context": context.shape[1],
        "bins": settings.bins,
        "transforms": max(settings.couplings, 1),
        "passes": 2,
        "hidden_features": [settings.coupling_width] * settings.depth,
    }
    double = zuko.flows.NSF(**shape).double()
    single = zuko.flows.NSF(**shape)
    optimiser = torch.optim.AdamW(single.parameters(), lr=1e-6, foreach=True)
    batch = EnergySettings().batch
    rows = torch.arange(batch) % len(values)
    some, given = values[rows].float(), context[rows].float()
    repeated = context[:: max(1, len(context) // (DRAWS // DRAWS_PER_POINT))][: DRAWS // DRAWS_PER_POINT]
    repeated = repeated.repeat_interleave(DRAWS_PER_POINT, 0)

    def draw() -> float:
        with torch.no_grad():
            return float(double(repeated).rsample_and_log_prob()[1].mean())

    return {
        (DRAWN, ZUKO, "float64"): (draw, len(repeated)),
        (BY_LIKELIHOOD, ZUKO, "float32"): (
            lambda: _descend(-single(given).log_prob(some).mean(), single, optimiser),
            batch,
        ),
    }


def bench_text(result: dict[str, Any]) -> str:
    """Format the result as a table for people.

    Args:
        result: of :func:`bench_flow`.
    """
    flow, load = result["flow"], result["load_average"]
    lines = [
        f"{flow['coordinates']} coordinates, {flow['couplings']} couplings of {flow['bins']} bins; median Kish "
        f"fraction {flow['kish_fraction_median']:.2f} after seconds of training; "
        f"load {load['before']:.1f} to {load['after']:.1f}",
        f"{'thousands per second':<24} {'program':<24} {'precision':<9} {'threads':>7} {'wall':>8} {'per core':>9} "
        f"{'cpu s':>8}",
    ]
    lines += [
        f"{row['task']:<24} {row['program']:<24} {row['precision']:<9} {row['threads']:>7} {row['per_s'] / 1e3:8.1f} "
        f"{row['per_core_s'] / 1e3:9.1f} {row['per_cpu_s'] / 1e3:8.1f}"
        for row in sorted(result["rates"], key=lambda row: list(HOW).index(row["task"]))
    ]
    for task, others in result["ratios"].items():
        for program, ratio in others.items():
            lines.append(f"{task}: {ratio['wall']:.1f} x {program}, by processor time {ratio['processor']:.1f} x")
    lines += [f"left out: {name}: {reason}" for name, reason in result["skipped"].items()]
    lines += [f"timed: {name}: {how}" for name, how in result["how"].items()]
    return "\n".join(lines)
