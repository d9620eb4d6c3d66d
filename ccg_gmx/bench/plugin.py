"""``ccg bench plugin``: what a learned model costs in an MD step, beside PLUMED's own PYTORCH_MODEL and ANN.

Every way runs the same molecule with ``gmx mdrun -plumed``. The cost of a model is the processor time of a step above
that of the base, the torsions with a restraint so weak that it does nothing: variables that are only printed would be
skipped between strides. Processor time, because it hardly depends on who else is computing; two runs of different
length, because loading libtorch takes as long as ten thousand steps.
"""

from __future__ import annotations

import itertools
import os
import re
import resource
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ccg_gmx.engine.gromacs import Gmx
from ccg_gmx.engine.mdp import fine_run
from ccg_gmx.engine.plumed_build import Plugin
from ccg_gmx.engine.plumed_setup import make_plugin
from ccg_gmx.engine.probe import run
from ccg_gmx.engine.process import capture
from ccg_gmx.errors import MdrunError, SettingsError
from ccg_gmx.export.contract import Signature, energy, torsion
from ccg_gmx.export.feature_perceptron import Feature, FeaturePerceptron, all_distances
from ccg_gmx.export.torch_model import export_model

ROOT = Path(__file__).resolve().parents[2]
ALANINE = ROOT / "topologies" / "alanine_dipeptide"
ATOMS = (1, 5, 6, 7, 9, 11, 15, 16, 17, 19)
"""Heavy atoms of alanine dipeptide, in the order of its chain."""

BUILT_IN, PACKAGE, SCRIPT = "built-in", ".pt2 float32", "TorchScript float32"
PYTORCH, ANN = "PYTORCH_MODEL", "ANN"
SMALL, LARGE, DISTANCES = "4-32-32-1", "20-128-128-1", "10 atoms, 45-128-128-1"
TARGETS = {SMALL: {PACKAGE: 10.0, BUILT_IN: 20.0}, DISTANCES: {PACKAGE: 10.0, BUILT_IN: 10.0}}
"""How many times cheaper than PYTORCH_MODEL the ways of this package promise to be."""

MINIMUM_STEPS = 2000


@dataclass(frozen=True)
class Cost:
    """Cost of one way to evaluate one model.

    Attributes:
        model: name of the model, or ``base``.
        way: who evaluates it.
        threads: OpenMP threads of mdrun.
        cpu_us: processor time of a step of mdrun, microseconds.
        wall_us: wall-clock time of a step as mdrun reports it, microseconds.
    """

    model: str
    way: str
    threads: int
    cpu_us: float
    wall_us: float


@dataclass(frozen=True)
class Case:
    """A model and the lines of PLUMED that feed it.

    Attributes:
        name: of the model.
        torsions: number of torsions in ARG; 0 for a model of ten atoms.
        widths: of the layers after the features.
    """

    name: str
    torsions: int
    widths: tuple[int, ...]

    @property
    def model(self) -> FeaturePerceptron:
        """The model itself, with torch's initial weights."""
        torch.manual_seed(0)
        items = [Feature("sincos", i) for i in range(self.torsions)] or all_distances(len(ATOMS))
        return FeaturePerceptron.build(items, self.torsions, self.widths)

    @property
    def names(self) -> list[str]:
        """Labels of the torsions."""
        return [f"t{i}" for i in range(self.torsions)]

    @property
    def signature(self) -> Signature:
        """Inputs and outputs of the model."""
        atoms = 0 if self.torsions else len(ATOMS)
        return Signature(tuple(torsion(name) for name in self.names), (energy(),), atoms=atoms)

    @property
    def inputs(self) -> str:
        """What TORCH_MODEL takes."""
        return f"ARG={','.join(self.names)}" if self.torsions else f"ATOMS={','.join(map(str, ATOMS))}"


CASES = (Case(SMALL, 2, (32, 32, 1)), Case(LARGE, 10, (128, 128, 1)), Case(DISTANCES, 0, (128, 128, 1)))


def bench_plugin(
    steps: int = 20_000,
    repeats: int = 3,
    threads: Sequence[int] = (1, 2),
    log: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Measure every way to evaluate every model.

    Args:
        steps: steps of the long run; the short one has a tenth.
        repeats: runs of each, of which the fastest counts.
        threads: values of ``-ntomp``.
        log: called with a line about each way.

    Returns:
        ``costs`` (list), ``overhead_us`` and ``ratio_to_pytorch_model`` {model: {way: number}} at one thread,
        ``overhead_us_by_threads``, ``targets``, ``skipped`` {way: reason}.

    Raises:
        SettingsError: if there are too few steps, or the files of the molecule are missing.
        ToolMissingError: if PLUMED, gmx or a compiler is missing.
        MdrunError: if a run fails.
    """
    if steps < MINIMUM_STEPS or repeats < 1:
        raise SettingsError(
            f"steps {steps}, repeats {repeats}", expected=f"at least {MINIMUM_STEPS} steps and 1 repeat"
        )
    if not ALANINE.is_dir():
        raise SettingsError(f"{ALANINE} does not exist", remedy="work in a checkout of ccg_gmx")
    gmx = Gmx.find()
    built = make_plugin(test=False, log=log)
    has = _modules()
    with tempfile.TemporaryDirectory(prefix="ccg_bench_") as temporary:
        folder = Path(temporary)
        mdp = fine_run(300.0, steps, seed=1, output_every=steps)
        tpr = gmx.grompp(mdp, ALANINE / "conf.gro", ALANINE / "topol.top", folder / "run.tpr")
        costs = []
        for case in CASES:
            for way, lines in _ways(case, folder, bool(built.torch), has).items():
                for number in threads:
                    log(f"{case.name}: {way}, {number} threads")
                    costs.append(_measure(_Run(gmx, built, tpr, folder, steps, repeats), case.name, way, lines, number))
    missing = {name: "the kernel has no such module" for name, there in has.items() if not there}
    return {**summarize(costs), "steps": steps, "repeats": repeats, "skipped": missing}


def summarize(costs: Sequence[Cost]) -> dict[str, Any]:
    """Return overheads above the base and ratios.

    Args:
        costs: all of them, a base for every model.
    """
    by_threads: dict[str, dict[str, dict[str, float]]] = {}
    for cost in costs:
        base = next(c for c in costs if (c.model, c.way, c.threads) == (cost.model, "base", cost.threads))
        if cost.way != "base":
            # Waiting threads spin, so that processor time says nothing with more than one.
            over = cost.cpu_us - base.cpu_us if cost.threads == 1 else cost.wall_us - base.wall_us
            by_threads.setdefault(str(cost.threads), {}).setdefault(cost.model, {})[cost.way] = over
    alone = by_threads.get("1", {})
    ratios = {
        model: {way: row[PYTORCH] / max(over, 0.1) for way, over in row.items() if way != PYTORCH}
        for model, row in alone.items()
        if PYTORCH in row
    }
    return {
        "costs": [asdict(cost) for cost in costs],
        "overhead_us": alone,
        "overhead_us_by_threads": by_threads,
        "ratio_to_pytorch_model": ratios,
        "targets": TARGETS,
    }


def bench_text(result: dict[str, Any]) -> str:
    """Return the result as a table.

    Args:
        result: what :func:`bench_plugin` returned.
    """
    lines = ["microseconds of a step above the same variables without a model"]
    for number, models in result["overhead_us_by_threads"].items():
        kind = "processor" if number == "1" else "wall-clock"
        lines.append(f"-ntomp {number} ({kind} time)")
        for model, row in models.items():
            lines += [
                f"  {model:<24} {way:<20} {over:>8.1f}{_ratio(result, number, model, way)}" for way, over in row.items()
            ]
    lines += [f"{name}: {reason}" for name, reason in result["skipped"].items()]
    return "\n".join(lines)


def _ratio(result: dict[str, Any], threads: str, model: str, way: str) -> str:
    ratio = result["ratio_to_pytorch_model"].get(model, {}).get(way) if threads == "1" else None
    if ratio is None:
        return ""
    target = result["targets"].get(model, {}).get(way)
    return f"   {ratio:>6.1f} times cheaper than {PYTORCH}" + (f" (target {target:g})" if target else "")


def _modules() -> dict[str, bool]:
    from ccg_gmx.engine.plumed import find_kernel

    command = find_kernel().command
    found = {
        way: run([*command, "config", "-q", "module", name]) for way, name in ((PYTORCH, "pytorch"), (ANN, "annfunc"))
    }
    return {way: result is not None and result.returncode == 0 for way, result in found.items()}


# ---------------------------------------------------------------- the input files


def _ways(case: Case, folder: Path, with_torch: bool, has: dict[str, bool]) -> dict[str, str]:
    """Name of a way -> lines of PLUMED."""
    count = max(case.torsions, 2)
    base = "".join(f"t{i}: TORSION ATOMS={i + 1},{i + 3},{i + 5},{i + 7}\n" for i in range(count))
    names = ",".join(f"t{i}" for i in range(count))
    zeros, tiny = ",".join(["0"] * count), ",".join(["1e-12"] * count)
    base += f"RESTRAINT ARG={names} AT={zeros} KAPPA={tiny}\n"
    ways = {"base": base}
    files = {BUILT_IN: "json", **({PACKAGE: "pt2", SCRIPT: "pt"} if with_torch else {})}
    for way, suffix in files.items():
        path = export_model(case.model, case.signature, folder / f"m{CASES.index(case)}.{suffix}")
        ways[way] = f"{base}m: TORCH_MODEL FILE={path} {case.inputs} BIAS\n"
    theirs, arguments = _arguments(case)
    if has[PYTORCH]:
        path = _script(case, folder, len(arguments))
        ways[PYTORCH] = (
            f"{base}{theirs}m: PYTORCH_MODEL FILE={path} ARG={','.join(arguments)}\nBIASVALUE ARG=m.node-0\n"
        )
    if has[ANN]:
        ways[ANN] = f"{base}{theirs}{_ann(case, arguments)}BIASVALUE ARG=m.node-0\n"
    return ways


def _arguments(case: Case) -> tuple[str, list[str]]:
    """What a model that takes arguments alone is fed with: the torsions, or every distance as a variable of its own."""
    if case.torsions:
        return "", case.names
    pairs = [(ATOMS[item.index], ATOMS[item.second]) for item in all_distances(len(ATOMS))]
    return "".join(f"d{i}: DISTANCE ATOMS={a},{b}\n" for i, (a, b) in enumerate(pairs)), [
        f"d{i}" for i in range(len(pairs))
    ]


def _script(case: Case, folder: Path, count: int) -> Path:
    """TorchScript as PYTORCH_MODEL's users save it; of the distances where those are the arguments."""
    import warnings

    model: nn.Module = case.model if case.torsions else case.model.layers
    path = folder / f"theirs{CASES.index(case)}.ptc"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(model.eval(), torch.zeros(1, count)).save(str(path))
    return path


def _ann(case: Case, arguments: Sequence[str]) -> str:
    """PLUMED's ANN with the same hidden layers; it takes the torsions themselves, half as many inputs."""
    nodes = [len(arguments), *case.widths]
    words = [f"m: ANN ARG={','.join(arguments)} NUM_LAYERS={len(nodes)} NUM_NODES={','.join(map(str, nodes))}"]
    words.append("ACTIVATIONS=" + ",".join(["Tanh"] * (len(nodes) - 2) + ["Linear"]))
    torch.manual_seed(0)
    for layer, (n_in, n_out) in enumerate(itertools.pairwise(nodes)):
        weights = torch.randn(n_in * n_out) / n_in**0.5
        words.append(f"WEIGHTS{layer}=" + ",".join(f"{x:.6f}" for x in weights.tolist()))
        words.append(f"BIASES{layer}=" + ",".join(["0.1"] * n_out))
    return " ".join(words) + "\n"


# ---------------------------------------------------------------- the runs


@dataclass(frozen=True)
class _Run:
    gmx: Gmx
    built: Plugin
    tpr: Path
    folder: Path
    steps: int
    repeats: int

    def __call__(self, lines: str, threads: int, steps: int) -> tuple[float, float]:
        """Processor time of the process, and wall-clock time of mdrun's loop, seconds."""
        (self.folder / "plumed.dat").write_text(f"LOAD FILE={self.built.library}\n{lines}", encoding="utf-8")
        command = [str(self.gmx.path), "mdrun", "-s", str(self.tpr), "-plumed", "plumed.dat", "-nsteps", str(steps)]
        command += ["-ntmpi", "1", "-ntomp", str(threads), "-pin", "off", "-nb", "cpu", "-g", "bench.log"]
        variables = {"PLUMED_KERNEL": str(self.built.kernel), "OMP_NUM_THREADS": str(threads), "GMX_MAXBACKUP": "-1"}
        (self.folder / "PLUMED.OUT").unlink(missing_ok=True)  # PLUMED keeps a hundred backups and then refuses to start
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = capture(command, cwd=self.folder, env={**os.environ, **variables})
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        wall = re.search(r"^\s+Time:\s+\S+\s+(\S+)", done.stderr, re.MULTILINE)
        if done.returncode or wall is None:
            raise MdrunError("gmx mdrun -plumed", _reason(done.stderr) or f"exit status {done.returncode}")
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, float(wall[1])


def _reason(stderr: str) -> str:
    """GROMACS' own words, which stand between its line about the function and its advice, or the last line."""
    found = re.search(r"^Function:.*?\n\n(.*?)\n\s*\nFor more information", stderr, re.MULTILINE | re.DOTALL)
    return " ".join((found[1] if found else stderr.strip()[-300:]).split())


def _measure(runs: _Run, model: str, way: str, lines: str, threads: int) -> Cost:
    short = runs.steps // 10
    long_runs = [runs(lines, threads, runs.steps) for _ in range(runs.repeats)]
    short_runs = [runs(lines, threads, short) for _ in range(runs.repeats)]
    cpu = (min(row[0] for row in long_runs) - min(row[0] for row in short_runs)) / (runs.steps - short)
    wall = min(row[1] for row in long_runs) / runs.steps
    return Cost(model, way, threads, cpu * 1e6, wall * 1e6)
