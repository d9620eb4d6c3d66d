"""Well-tempered metadynamics on the package's own integrator, for energies that GROMACS cannot compute.

Several walkers share one bias, which is kept on a grid. A. Barducci, G. Bussi, M. Parrinello, Phys. Rev. Lett. 100,
020603 (2008), doi:10.1103/PhysRevLett.100.020603; walkers: P. Raiteri et al., J. Phys. Chem. B 110, 3533 (2006),
doi:10.1021/jp054359r; weights: P. Tiwary, M. Parrinello, J. Phys. Chem. B 119, 736 (2015), doi:10.1021/jp504920s.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.special import logsumexp
from torch import Tensor

from ccg_gmx.bench.convergence import best_forward_kl
from ccg_gmx.bench.enhanced import SURFACES, Curve
from ccg_gmx.bench.plain_md import Quadruple, centred, flat_bins
from ccg_gmx.cycle.system import System
from ccg_gmx.engine.parallel import report_steps
from ccg_gmx.free_energy.surface import grid_points
from ccg_gmx.molecule.langevin import EnergyAndGradient, Langevin, LangevinState
from ccg_gmx.molecule.torsion_bias import TorsionBias, biased
from ccg_gmx.records import FloatArray
from ccg_gmx.units import thermal_energy

WALKERS = 16
BIAS_FACTOR = 10.0
HILL_KJ_MOL = 0.5
HILL_RADIANS = 0.25
HILL_EVERY = 500
_SAMPLE_EVERY = 50


@dataclass(frozen=True)
class MetadynamicsTask:
    """One run of well-tempered metadynamics: walkers that share one bias.

    Attributes:
        folder: where it runs.
        system: folder of the system.
        torsions: 0-based atoms of the two torsions.
        seed: of noise and first velocities.
        steps: length, all walkers together.
        dt_ps: time step.
        friction_time_ps: inverse friction.
        grid: points per torsion of bias and surfaces.
    """

    folder: Path
    system: Path
    torsions: tuple[Quadruple, ...]
    seed: int
    steps: int
    dt_ps: float
    friction_time_ps: float
    grid: int

    @property
    def hills_per_surface(self) -> int:
        """Rounds of hills between surfaces."""
        return max(1, self.steps // WALKERS // HILL_EVERY // SURFACES)


class Hills:
    """The bias of all walkers on a grid, and the reweighted histogram.

    Args:
        n: points per torsion.
        kT: thermal energy in kJ/mol.
    """

    def __init__(self, n: int, kT: float) -> None:
        self.n, self.kT = n, kT
        self.bias = np.zeros((n, n))
        self.weights = np.zeros((n, n))
        self._points = grid_points(n)

    def offset(self) -> float:
        """The constant c(t) in kJ/mol that makes weights of different times comparable (Tiwary and Parrinello)."""
        v = self.bias / self.kT
        return self.kT * float(logsumexp(BIAS_FACTOR / (BIAS_FACTOR - 1) * v) - logsumexp(v / (BIAS_FACTOR - 1)))

    def deposit(self, s: FloatArray, bias: FloatArray) -> None:
        """Add one hill per walker, lower where the bias is high already.

        Args:
            s: ``[W, 2]`` radians.
            bias: ``[W]`` kJ/mol, the bias there.
        """
        heights = HILL_KJ_MOL * np.exp(-bias / ((BIAS_FACTOR - 1) * self.kT))
        distance = s[:, :, None] - self._points
        distance -= 2 * np.pi * np.round(distance / (2 * np.pi))
        shape = np.exp(-0.5 * (distance / HILL_RADIANS) ** 2)
        self.bias += (heights[:, None] * shape[:, 0]).T @ shape[:, 1]

    def count(self, s: FloatArray, bias: FloatArray) -> None:
        """Add samples with the weights that undo the bias.

        Args:
            s: ``[W, 2]`` radians.
            bias: ``[W]`` kJ/mol, the bias there less the offset.
        """
        weights = np.exp(bias / self.kT)
        self.weights += np.bincount(flat_bins(s, self.n), weights, minlength=self.n**2).reshape(self.n, self.n)

    def density(self) -> FloatArray:
        """``[n, n]`` probabilities that follow from the bias."""
        log_p = BIAS_FACTOR / (BIAS_FACTOR - 1) * self.bias / self.kT
        return np.asarray(np.exp(log_p - logsumexp(log_p)))


class _Biased:
    """The energy under a bias that changes between calls."""

    def __init__(self, energy: EnergyAndGradient, hills: Hills, torsions: tuple[Quadruple, ...]) -> None:
        self._energy, self._hills = energy, hills
        self._torsions = torsions
        self.update()

    def update(self) -> None:
        """Take over the hills as they are now."""
        self.bias = TorsionBias(self._torsions, [((0, 1), self._hills.bias)])
        self._total = biased(self._energy, self.bias)

    def __call__(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        return self._total(positions)


def run_metadynamics(task: MetadynamicsTask) -> None:
    """Run, or go on with, metadynamics; a top-level function for worker processes."""
    torch.set_num_threads(1)
    task.folder.mkdir(parents=True, exist_ok=True)
    system = System.load(task.system)
    hills, checkpoint, seconds = Hills(task.grid, thermal_energy(system.temperature_K)), task.folder / "state.pt", 0.0
    state = None
    if checkpoint.exists():
        state, more = LangevinState.load(checkpoint)
        hills.bias, hills.weights, seconds = more["bias"].numpy(), more["weights"].numpy(), float(more["seconds"])
    energy = _Biased(system.energy().energy_and_gradient, hills, task.torsions)
    friction = 1 / task.friction_time_ps
    langevin = Langevin(energy, system.topology.masses, system.temperature_K, friction, task.dt_ps, task.seed)
    state = state or langevin.start(torch.from_numpy(system.structure).repeat(WALKERS, 1, 1))
    surface_steps = task.hills_per_surface * HILL_EVERY
    for surface in range(state.step // surface_steps + 1, SURFACES + 1):
        begin = time.perf_counter()
        for _ in range(task.hills_per_surface):
            state = _one_round(hills, langevin, energy, state)
        state = centred(state)
        seconds += time.perf_counter() - begin
        _save_surface(task.folder / f"surface_{surface:04d}.npz", hills, state.step * WALKERS, seconds)
        kept = {"bias": hills.bias, "weights": hills.weights, "seconds": np.array(seconds)}
        state.save(checkpoint, **{name: torch.from_numpy(values) for name, values in kept.items()})
        report_steps(surface, SURFACES)


def _one_round(hills: Hills, langevin: Langevin, energy: _Biased, state: LangevinState) -> LangevinState:
    """Run under the bias as it stands, then add a hill per walker."""
    offset = hills.offset()

    def count(now: LangevinState, _: Tensor) -> None:
        s = energy.bias.torsions(now.positions).numpy()
        hills.count(s, energy.bias.energy(s) - offset)

    state = langevin.run(state, HILL_EVERY, every=_SAMPLE_EVERY, callback=count)
    s = energy.bias.torsions(state.positions).numpy()
    hills.deposit(s, energy.bias.energy(s))
    energy.update()
    return state


def _save_surface(path: Path, hills: Hills, evaluations: int, seconds: float) -> None:
    partial = path.with_name(f".{path.stem}.partial.npz")
    np.savez_compressed(
        partial,
        bias=hills.density(),
        weights=hills.weights,
        evaluations=np.array(evaluations),
        seconds=np.array(seconds),
    )
    os.replace(partial, path)


def metadynamics_curve(task: MetadynamicsTask, p: FloatArray) -> Curve:
    """Score the surfaces of a finished run: from the bias or from weighted samples, whichever is better each time.

    Args:
        task: the run.
        p: ``[n, n]`` probabilities of the reference.
    """
    evaluations: list[float] = []
    scores: list[tuple[float, float]] = []
    speed = float("nan")
    for surface in range(1, SURFACES + 1):
        with np.load(task.folder / f"surface_{surface:04d}.npz", allow_pickle=False) as data:
            both = [best_forward_kl(p, data[name]) for name in ("bias", "weights")]
            evaluations.append(float(data["evaluations"]))
            speed = float(data["evaluations"]) / float(data["seconds"])
        scores.append((min(score.kl for score in both), min(score.raw for score in both)))
    kl, raw = zip(*scores, strict=True)
    return Curve("metadynamics", task.seed, tuple(evaluations), kl, raw, speed)
