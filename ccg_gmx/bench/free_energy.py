"""``ccg bench free-energy``: what a free energy surface of a given quality costs, here and by the usual ways.

One run of the program makes, on one machine and against one reference: cycles with several seeds, plain MD, and an
adaptive bias (AWH, or well-tempered metadynamics where GROMACS cannot run the energy). Every energy counts, thrown-away
ones and MD steps included. Wherever a choice had to be made it was made in favour of the others: their surfaces get the
smoothing that suits the reference best, MD starts in equilibrium, and their wall-clock time assumes that they use all
cores without loss.
"""

from __future__ import annotations

import fcntl
import os
import platform
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ccg_gmx.bench import enhanced, metadynamics, plain_md
from ccg_gmx.bench.free_energy_result import assemble, measure_md, score_single
from ccg_gmx.bench.our_cycle import Seed, run_seed
from ccg_gmx.bench.plain_md import MdTask
from ccg_gmx.bench.two_state import TwoStates, two_states
from ccg_gmx.cycle.config import Workflow, load_workflow
from ccg_gmx.cycle.stages.fine import make_system
from ccg_gmx.cycle.store import RECORD, Work, write_json
from ccg_gmx.cycle.system import System
from ccg_gmx.engine.gromacs import Gmx
from ccg_gmx.engine.parallel import run_all
from ccg_gmx.engine.settings import available_cores
from ccg_gmx.errors import SettingsError, StoreError
from ccg_gmx.free_energy.reference import Reference, load_reference
from ccg_gmx.free_energy.surface import probability
from ccg_gmx.molecule.topology import torsion_atoms
from ccg_gmx.records import FloatArray

ROOT = Path(__file__).resolve().parents[2]
SYSTEMS = {
    "alanine-dipeptide": ("alanine_dipeptide.yaml", "alanine_dipeptide"),
    "alanine-dipeptide-obc1": ("alanine_dipeptide_ff96_obc1.yaml", "alanine_dipeptide_amber96"),
}
"""Name -> workflow file, and the folder in topologies/ that holds its reference."""

PARTS = ("cycle", "enhanced", "md")
RARE_STEPS = 1_000_000_000
"""More steps from the rarer state only refine the rate of leaving it, which dozens of transitions give by then."""

_TASKS = 2
Log = Callable[[str], None]
Bar = Callable[[str, int], Any]


@dataclass(frozen=True)
class Options:
    """What to measure, and how long.

    Attributes:
        system: a key of ``SYSTEMS``.
        out: folder of everything; the same folder resumes.
        seeds: cycles, and adaptive-bias runs, with seeds 1 to this.
        md_steps: steps of plain MD, all walkers together; half as many again, at most ``RARE_STEPS``, serve the rate of
            leaving the rare state.
        enhanced_steps: steps of each adaptive-bias run, all its walkers together.
        workflow: another workflow file than the system's own.
        overrides: ``a.b=value`` strings for the workflow.
        walkers: walkers of plain MD, in two batches; few, so that each is long against the slowest relaxation.
        segment_steps: steps of each MD walker between checkpoints.
    """

    system: str
    out: Path
    seeds: int = 3
    md_steps: int = 2_000_000_000
    enhanced_steps: int = 10_000_000
    workflow: Path | None = None
    overrides: tuple[str, ...] = ()
    walkers: int = 32
    segment_steps: int = 125_000


class Bench:
    """One benchmark in one folder.

    Args:
        options: what to measure.
        log: called with a line now and then.
        bar: ``(label, total) -> progress bar``; None for silence.

    Raises:
        CcgError: if the system is not known or has no reference with two basins.
    """

    def __init__(self, options: Options, log: Log = lambda _: None, bar: Bar | None = None) -> None:
        self.options, self.log, self.bar = options, log, bar
        self.out = options.out.resolve()
        self.workflow_file, self.overrides = _workflow_of(options)
        self.workflow: Workflow = load_workflow(self.workflow_file, self.overrides)
        if self.workflow.reference is None or len(self.workflow.basins) < 2:
            raise SettingsError(
                f"{self.workflow_file.name} names no reference or fewer than two basins",
                expected="a reference surface and two basins to compare with",
                remedy="add them to the workflow, or --set reference=FILE",
            )
        self.reference: Reference = load_reference(self.workflow.reference)
        self.gmx = Gmx.find(self.workflow.engine)

    def run(self, parts: tuple[str, ...] = PARTS) -> dict[str, Any] | None:
        """Measure the parts asked for.

        Returns:
            The result, also written to ``out/free_energy.json``; None if some part was left out.

        Raises:
            StoreError: if another benchmark uses the folder.
            CcgError: whatever a cycle or a tool raises.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        with _alone(self.out):
            return self._run(parts)

    def _run(self, parts: tuple[str, ...]) -> dict[str, Any] | None:
        load = os.getloadavg()[0]
        seeds = self.run_cycles() if "cycle" in parts else []
        biased = self.run_enhanced() if "enhanced" in parts else []
        tasks = self.run_plain_md() if "md" in parts else {}
        if set(parts) != set(PARTS):
            return None
        single = self.run_single_start(int(np.mean([seed.evaluations for seed in seeds])))
        speed = self.speed()
        machine = {**self.machine(), "load_average": {"before": load, "after": os.getloadavg()[0]}}
        about = {
            "system": self.workflow.system,
            "temperature_K": self.workflow.temperature_K,
            "noise_floor": self.reference.noise_floor,
            "reference": self.reference.origin,
        }
        md = measure_md(self.p, self.states.p_b, tasks)
        dt_ps = self.workflow.fine_md.dt_ps
        result = assemble(about, seeds, biased, md, score_single(self.p, single), speed, dt_ps, machine)
        write_json(self.out / "free_energy.json", result)
        return result

    @cached_property
    def p(self) -> FloatArray:
        """Probabilities ``[n, n]`` of the reference."""
        return probability(self.reference.surface)

    @cached_property
    def states(self) -> TwoStates:
        """The first two basins of the workflow on the reference."""
        return two_states(self.reference.surface, *self.workflow.basins[:2])

    @cached_property
    def system_folder(self) -> Path:
        """Folder with the resolved system, made by the cycle's own stage."""
        folder, workflow = self.out / "system", self.workflow
        if not (folder / RECORD).exists():
            folder.mkdir(parents=True, exist_ok=True)
            facts = workflow.system_facts()
            inputs = {"topology": workflow.topology, "structure": workflow.structure}
            context = {"engine": workflow.engine.model_dump(mode="json")}
            make_system(Work(folder, facts, inputs, 1, context, lambda *_: None))
            write_json(folder / RECORD, facts)
        return folder

    @cached_property
    def system(self) -> System:
        """The molecule."""
        return System.load(self.system_folder)

    @cached_property
    def torsions(self) -> tuple[plain_md.Quadruple, ...]:
        """0-based atoms of the torsions."""
        return tuple(torsion_atoms(self.system.topology, atoms) for atoms in self.workflow.coarse.torsions.values())

    def machine(self) -> dict[str, Any]:
        """What it was measured on."""
        info = Path("/proc/cpuinfo")
        match = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.M) if info.is_file() else None
        processor = match[1] if match else platform.processor() or "unknown"
        return {"processor": processor, "cores": available_cores(), "gmx": self.gmx.version}

    def run_cycles(self) -> list[Seed]:
        """Run, or resume, the cycle with every seed, one after the other."""
        found = []
        for seed in range(1, self.options.seeds + 1):
            self.log(f"cycle, seed {seed}")
            overrides = (*self.overrides, f"seed={seed}")
            found.append(run_seed(self.workflow_file, self.out / f"cycle_seed{seed}", overrides, seed, self.bar))
        return found

    def run_enhanced(self) -> list[enhanced.Curve]:
        """Run, or resume, the adaptive bias with every seed."""
        seeds, steps = range(1, self.options.seeds + 1), self.options.enhanced_steps
        assert self.workflow.reference is not None
        awh = self.workflow.reference.parent
        if self.workflow.implicit_solvent is None and (awh / "awh.mdp").is_file():
            tasks = [enhanced.AwhTask(self.out / f"awh_seed{seed}", awh, self.workflow, seed, steps) for seed in seeds]
            self._run_all(enhanced.run_awh, tasks, "AWH")
            return [enhanced.awh_curve(task, self.p) for task in tasks]
        folders = [self.out / f"metadynamics_seed{seed}" for seed in seeds]
        md = self.workflow.fine_md
        runs = [
            metadynamics.MetadynamicsTask(
                folder, self.system_folder, self.torsions, seed, steps, md.dt_ps, md.friction_time_ps, len(self.p)
            )
            for folder, seed in zip(folders, seeds, strict=True)
        ]
        self._run_all(metadynamics.run_metadynamics, runs, "metadynamics")
        return [metadynamics.metadynamics_curve(run, self.p) for run in runs]

    def run_plain_md(self) -> dict[str, list[MdTask]]:
        """Run, or resume, plain MD: walkers that start in equilibrium, and some that start in the rarer state.

        The latter serve the rate of leaving it, which so is known long before the former have seen it often. They need
        not be long: time in the state and ways out of it are counted, whichever walker they belong to.
        """
        steps, walkers = self.options.md_steps, self.options.walkers
        rare = 1 - self.states.committor if self.states.p_b > 0.5 else self.states.committor
        tasks = {
            "equilibrium": self._batches("equilibrium", self.p, walkers, steps, 1000),
            "rare": self._batches("rare", self.p * (rare > 0.9), 2 * walkers, min(steps // 2, RARE_STEPS), 2000),
        }
        self._run_all(plain_md.run_md, tasks["rare"], "MD, rare state")
        self._run_all(plain_md.run_md, tasks["equilibrium"], "MD, equilibrium")
        return tasks

    def run_single_start(self, evaluations: int) -> list[MdTask]:
        """Plain MD as a user would run it: all walkers start from the workflow's structure."""
        walkers = 16
        steps = max(1, evaluations // walkers // plain_md.SAMPLE_EVERY) * plain_md.SAMPLE_EVERY
        folder = self.out / "md" / f"single_{steps}"
        self._place(folder, lambda: np.repeat(self.system.structure[None], walkers, axis=0))
        task = self._task(folder, 3000, 1, steps)
        self._run_all(plain_md.run_md, [task], "MD, single start")
        return [task]

    def speed(self) -> plain_md.Speed:
        """Measure how fast plain MD is on one core of this machine, now."""
        md = self.workflow.fine_md
        langevin = plain_md.langevin_speed(self.system, self.options.walkers // _TASKS, md.dt_ps)
        if self.workflow.implicit_solvent is not None:
            return plain_md.Speed(langevin, float("nan"))
        folder = self.out / "speed"
        files = (self.workflow.structure, self.workflow.topology)
        return plain_md.Speed(langevin, plain_md.gromacs_speed(self.gmx, *files, self.system, folder))

    def _batches(self, name: str, weights: FloatArray, walkers: int, steps: int, seed: int) -> list[MdTask]:
        """Two batches of walkers, whose starts are drawn once and kept; what an earlier, longer run did counts too."""
        size = max(1, walkers // _TASKS)
        folders = [self.out / "md" / f"{name}_{batch}" for batch in range(_TASKS)]
        wanted = max(1, round(steps / (size * _TASKS) / self.options.segment_steps))
        segments = max(wanted, *(plain_md.segments_done(folder) for folder in folders))
        tasks = []
        for batch, folder in enumerate(folders):

            def starts(batch: int = batch) -> FloatArray:
                return plain_md.equilibrium_starts(self.system, self.torsions, weights, size, seed + 10 + batch)

            self._place(folder, starts)
            if (found := len(np.load(folder / "starts.npy", mmap_mode="r"))) != size:
                raise StoreError(f"{folder} holds {found} walkers", expected=str(size), remedy="choose another --out")
            tasks.append(self._task(folder, seed + batch, segments, self.options.segment_steps))
        return tasks

    def _place(self, folder: Path, starts: Callable[[], FloatArray]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for name, make in (("core.npy", lambda: self.states.core), ("starts.npy", starts)):
            if not (folder / name).exists():
                partial = folder / f".partial.{name}"
                np.save(partial, make())
                os.replace(partial, folder / name)

    def _task(self, folder: Path, seed: int, segments: int, segment_steps: int) -> MdTask:
        md = self.workflow.fine_md
        return MdTask(
            folder, self.system_folder, self.torsions, seed, segments, segment_steps, md.dt_ps, md.friction_time_ps
        )

    def _run_all(self, function: Callable[[Any], Any], tasks: list[Any], label: str) -> None:
        self.log(label)
        if self.bar is None:
            run_all(function, tasks, label=label)
            return
        shown = self.bar(label, len(tasks))
        try:
            run_all(function, tasks, progress=lambda _label, done, _total: shown.update_to(done), label=label)
        finally:
            shown.close()


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep two benchmarks out of one folder; the lock dies with its process."""
    with (folder / ".lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreError(f"{folder} is in use by another benchmark", remedy="wait for it, or stop it") from None
        yield


def _workflow_of(options: Options) -> tuple[Path, tuple[str, ...]]:
    """Workflow file of a system, and the overrides that give it a reference where the file names none."""
    if options.workflow is not None:
        return options.workflow, options.overrides
    if options.system not in SYSTEMS:
        raise SettingsError(f"--system {options.system}", expected=" or ".join(SYSTEMS))
    name, folder = SYSTEMS[options.system]
    workflow = ROOT / "workflows" / name
    if not workflow.is_file():
        raise SettingsError(f"{workflow} does not exist", remedy="work in a checkout of ccg_gmx, or give --workflow")
    reference = ROOT / "topologies" / folder / "reference" / "surface.npz"
    return workflow, (f"reference={reference}", *options.overrides)
