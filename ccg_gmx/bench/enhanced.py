"""An adaptive bias for the comparison: GROMACS' AWH, run as its users run it, from one structure.

V. Lindahl, J. Lidmar, B. Hess, J. Chem. Phys. 141, 044110 (2014), doi:10.1063/1.4890371.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ccg_gmx.bench.convergence import best_forward_kl
from ccg_gmx.cycle.config import Workflow
from ccg_gmx.engine.gromacs import Gmx
from ccg_gmx.engine.mdp import Mdp
from ccg_gmx.engine.parallel import report_steps
from ccg_gmx.errors import CcgError
from ccg_gmx.free_energy.reference import read_awh
from ccg_gmx.free_energy.surface import probability
from ccg_gmx.records import FloatArray

SURFACES = 30
"""Surfaces written in the course of a run."""


@dataclass(frozen=True)
class Curve:
    """How one adaptive-bias run converged.

    Attributes:
        method: its name.
        seed: its seed.
        evaluations: energies behind each surface, ascending.
        kl: forward KL in nats of each, with the smoothing that serves it best.
        raw: forward KL in nats of each as it came; inf while a bin of the reference is unvisited.
        steps_per_s: steps per second of wall-clock time on one core.
    """

    method: str
    seed: int
    evaluations: tuple[float, ...]
    kl: tuple[float, ...]
    raw: tuple[float, ...]
    steps_per_s: float


@dataclass(frozen=True)
class AwhTask:
    """One AWH run.

    Attributes:
        folder: where it runs.
        awh: folder with awh.mdp and index.ndx.
        workflow: topology, structure and engine.
        seed: of noise and first velocities.
        steps: length.
    """

    folder: Path
    awh: Path
    workflow: Workflow
    seed: int
    steps: int


def run_awh(task: AwhTask) -> None:
    """Run, or go on with, an AWH run; a top-level function for worker processes.

    Raises:
        CcgError: if gmx fails.
    """
    gmx, workflow = Gmx.find(task.workflow.engine), task.workflow
    tpr = task.folder / "awh.tpr"
    if not tpr.exists():
        every = _awh_interval(task.steps)
        mdp = Mdp.read(task.awh / "awh.mdp").with_options(
            nsteps=task.steps // every * every,
            dt=workflow.fine_md.dt_ps,
            tau_t=workflow.fine_md.friction_time_ps,
            ref_t=workflow.temperature_K,
            gen_temp=workflow.temperature_K,
            ld_seed=9000 + task.seed,
            gen_seed=9100 + task.seed,
            nstenergy=every,
            nstlog=every,
            awh_nstout=every,
        )
        gmx.grompp(mdp, workflow.structure, workflow.topology, tpr, index=task.awh / "index.ndx")
    result = gmx.mdrun(tpr, task.folder, name="awh", steps_total=task.steps, progress=report_steps)
    gmx.awh(result.edr, tpr, task.folder / "surface.xvg")


def _awh_interval(steps: int) -> int:
    """Steps between surfaces, a multiple of AWH's own 100."""
    return max(100, steps // SURFACES // 100 * 100)


def awh_curve(task: AwhTask, p: FloatArray) -> Curve:
    """Score the surfaces of a finished AWH run.

    Args:
        task: the run.
        p: ``[n, n]`` probabilities of the reference.

    Raises:
        CcgError: if its surfaces are gone.
    """
    dt, temperature = task.workflow.fine_md.dt_ps, task.workflow.temperature_K
    names = tuple(task.workflow.coarse.torsions)
    result = Gmx.find(task.workflow.engine).mdrun(task.folder / "awh.tpr", task.folder, name="awh")
    rows = []
    for path in task.folder.glob("surface_t*.xvg"):
        steps = round(float(path.stem.rpartition("_t")[2]) / dt)
        if steps > 0:  # the first is written before the first step
            score = best_forward_kl(p, probability(read_awh(path, temperature, names)))
            rows.append((float(steps), score.kl, score.raw))
    if not rows:
        raise CcgError(f"{task.folder} holds no surfaces of gmx awh", remedy="remove the folder and run again")
    evaluations, kl, raw = zip(*sorted(rows), strict=True)
    return Curve("AWH", task.seed, evaluations, kl, raw, result.ns_per_day * 1e3 / dt / 86400)


def mean_curve(curves: Sequence[Curve]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return evaluations, and forward KL averaged over seeds whose surfaces were written at the same steps."""
    kl = np.mean([curve.kl for curve in curves], axis=0)
    return curves[0].evaluations, tuple(float(value) for value in kl)
