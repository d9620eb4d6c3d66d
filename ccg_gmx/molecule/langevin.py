"""Langevin dynamics of many walkers in one tensor, for energies that GROMACS cannot run (implicit solvent).

The splitting is BAOAB: B. Leimkuhler, C. Matthews, Appl. Math. Res. Express 2013, 34 (2013), doi:10.1093/amrx/abs010,
and J. Chem. Phys. 138, 174102 (2013), doi:10.1063/1.4802990. Of all splittings with one force per step it samples
positions best: exactly in a harmonic well, whatever the time step, and elsewhere with an error of order dt^2 whose
coefficient is small (order dt^4 at high friction). Velocities are of order dt^2.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ccg_gmx.errors import CheckpointError, TrajectoryError
from ccg_gmx.molecule.langevin_fused import FusedSteps, kernel_jobs
from ccg_gmx.molecule.langevin_kernel import BaoabUpdate
from ccg_gmx.molecule.normal_noise import NormalNoise
from ccg_gmx.records import FloatArray
from ccg_gmx.units import thermal_energy

EnergyAndGradient = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Positions ``[B, N, D]`` to energies ``[B]`` in kJ/mol and gradients ``[B, N, D]`` in kJ/mol/nm."""

_FORMAT = 2


@dataclass(frozen=True, eq=False)
class LangevinState:
    """Everything a run needs to go on as if it had never stopped.

    Attributes:
        positions: ``[B, N, D]`` nm; D is 3 for molecules.
        velocities: ``[B, N, D]`` nm/ps.
        step: steps done since the start.
        noise: ``[32]`` int64, state of the generator of random numbers.
    """

    positions: Tensor
    velocities: Tensor
    step: int
    noise: Tensor

    def save(self, path: Path, **more: Tensor) -> None:
        """Write the state, and further tensors, to a file that is replaced in one step."""
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        fields = {key: getattr(self, key) for key in ("positions", "velocities", "step", "noise")}
        try:
            torch.save({"format": _FORMAT, **fields, "more": more}, partial)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: Path) -> tuple[LangevinState, dict[str, Tensor]]:
        """Read what ``save`` wrote: the state and the further tensors.

        Raises:
            CheckpointError: if the file is not such a state.
        """
        try:
            content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            if content.pop("format") != _FORMAT:
                raise ValueError("another format version")
            more = content.pop("more")
            return cls(**content), more
        except Exception as error:  # torch.load raises whatever its parsers stumble over
            raise CheckpointError(
                f"cannot read the Langevin state {path}: {error}", remedy="delete it; the run then starts again"
            ) from None


class Langevin:
    """BAOAB integrator of independent walkers ``dv = -grad U / m dt - friction v dt + noise``.

    Random numbers come from one generator on the processor, so that a seed means the same walkers on any device.
    On a GPU only the energies decide whether two runs agree bit by bit.

    Args:
        energy_and_gradient: the potential, for all walkers at once.
        masses: ``[N]`` amu.
        temperature_K: temperature in K.
        friction_per_ps: friction in 1/ps, not negative; 0 is velocity Verlet.
        dt_ps: time step in ps.
        seed: seed of velocities and noise.

    Raises:
        ValueError: if a number is out of range.
    """

    def __init__(
        self,
        energy_and_gradient: EnergyAndGradient,
        masses: FloatArray | Sequence[float],
        temperature_K: float,
        friction_per_ps: float,
        dt_ps: float,
        seed: int,
    ) -> None:
        self.masses = torch.as_tensor(np.asarray(masses, dtype=np.float64))[:, None]
        if not (self.masses > 0).all():
            raise ValueError("masses must be positive")
        if not (dt_ps > 0 and friction_per_ps >= 0):
            raise ValueError(f"need dt_ps > 0 and friction_per_ps >= 0, got {dt_ps} and {friction_per_ps}")
        self.kT, self.dt_ps, self.seed = thermal_energy(temperature_K), dt_ps, seed
        self._energy_and_gradient = energy_and_gradient
        self._decay = math.exp(-friction_per_ps * dt_ps)
        self._fluctuation = math.sqrt(-math.expm1(-2 * friction_per_ps * dt_ps))

    def start(self, positions: Tensor) -> LangevinState:
        """Give every walker velocities of the Maxwell-Boltzmann distribution.

        Args:
            positions: ``[B, N, D]`` nm; dtype and device of the run.
        """
        if positions.ndim != 3 or positions.shape[1] != len(self.masses):
            raise ValueError(f"positions must be [B, {len(self.masses)}, D], got {tuple(positions.shape)}")
        noise = NormalNoise(self.seed)
        velocities = self._thermal(positions) * noise.fill(_on_processor(positions)).to(positions.device)
        return LangevinState(positions.detach().clone(), velocities, 0, noise.state())

    def run(
        self,
        state: LangevinState,
        steps: int,
        *,
        every: int = 0,
        callback: Callable[[LangevinState, Tensor], None] | None = None,
        progress: Callable[[int, int], object] | None = None,
    ) -> LangevinState:
        """Integrate; the state given is left as it is.

        Args:
            state: where to start, from :meth:`start` or an earlier run.
            steps: steps to do.
            every: ``callback`` and ``progress`` are called when the steps since the start are a multiple of this.
            callback: given the state, which it may keep, and the potential energies ``[B]`` in kJ/mol.
            progress: given the steps of this call that are done and their number.

        Returns:
            The last state.

        Raises:
            TrajectoryError: naming the step and the walker where an energy or a force is not finite.
        """
        x, v = (each.clone(memory_format=torch.contiguous_format) for each in (state.positions, state.velocities))
        noise = NormalNoise.from_state(state.noise)
        spread = self._fluctuation * self._thermal(self.masses)
        update = BaoabUpdate(x, self.masses, self.dt_ps, self._decay, spread)
        energy, gradient = self._energy_and_gradient(x)
        self._check(energy, gradient, state.step, float(energy.sum() + gradient.sum()))
        drawn = noise if self._fluctuation > 0 else None
        jobs = kernel_jobs(self._energy_and_gradient, x) if update.compiled else None
        some_steps: FusedSteps | _PlainSteps
        if jobs is not None:
            some_steps = FusedSteps(jobs, v, gradient, update, drawn)
        else:
            some_steps = _PlainSteps(self._energy_and_gradient, x, v, gradient, update, drawn)
        done = 0
        while done < steps:
            to_call = every - (state.step + done) % every if every else steps
            count, total = some_steps(min(to_call, steps - done))
            done += count
            self._check(some_steps.energy, some_steps.gradient, state.step + done, total)
            if every and (state.step + done) % every == 0:
                if callback is not None:
                    now = LangevinState(x.clone(), v.clone(), state.step + done, noise.state())
                    callback(now, some_steps.energy)
                if progress is not None:
                    progress(done, steps)
        return LangevinState(x, v, state.step + steps, noise.state())

    def kinetic_energy(self, velocities: Tensor) -> Tensor:
        """Return ``[B]`` kJ/mol of velocities ``[B, N, D]`` nm/ps."""
        return 0.5 * (self.masses.to(velocities) * velocities**2).sum((1, 2))

    def _thermal(self, like: Tensor) -> Tensor:
        """Standard deviation of the velocities ``[N, 1]`` in nm/ps."""
        return (self.kT / self.masses).sqrt().to(like)

    def _check(self, energy: Tensor, gradient: Tensor, step: int, total: float) -> None:
        """Raise if an energy or a force is not finite; ``total`` is a sum that then is not finite either."""
        if math.isfinite(total):
            return
        broken = ~(energy.isfinite() & gradient.isfinite().all(-1).all(-1))
        if not broken.any():  # finite numbers whose sum is not
            return
        walker = int(broken.nonzero()[0])
        raise TrajectoryError(
            f"Langevin run: walker {walker + 1} of {len(energy)} has no finite energy and force at step {step} "
            f"(energy {float(energy[walker]):g} kJ/mol)",
            expected="finite numbers",
            remedy=f"minimise the start, or use a shorter time step than {self.dt_ps:g} ps",
        )


class _PlainSteps:
    """Steps of one run like :class:`FusedSteps`, one a call, for any energy on any device."""

    def __init__(
        self,
        energy_and_gradient: EnergyAndGradient,
        positions: Tensor,
        velocities: Tensor,
        gradient: Tensor,
        update: BaoabUpdate,
        noise: NormalNoise | None,
    ) -> None:
        self._energy_and_gradient, self._update, self._noise = energy_and_gradient, update, noise
        self._x, self._v, self._numbers = positions, velocities, _on_processor(positions).zero_()
        self.energy, self.gradient = gradient.new_empty(0), gradient

    def __call__(self, _: int) -> tuple[int, float]:
        if self._noise is not None:
            self._noise.fill(self._numbers)
        self._update.advance(self._x, self._v, self.gradient, self._numbers)
        self.energy, self.gradient = self._energy_and_gradient(self._x)
        return 1, self._update.finish(self._v, self.gradient, self.energy)


def _on_processor(like: Tensor) -> Tensor:
    return torch.empty(like.shape, dtype=like.dtype)
