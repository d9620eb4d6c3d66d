# mypy: ignore-errors
"""Many BAOAB steps in one compiled call, for energies that are compiled from end to end.

A step of a few walkers costs less than the calls that Python makes for it (0.1 ms): here the same functions are called
in the same order by compiled code, so that the walkers are the same to the last bit.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from ccg_gmx.molecule import kernel_lanes, kernel_math, kernel_solvent, kernel_terms, langevin_kernel, normal_noise
from ccg_gmx.molecule.kernel import KernelJobs
from ccg_gmx.molecule.kernel_lanes import compiled
from ccg_gmx.molecule.kernel_solvent import solvation_of_frames
from ccg_gmx.molecule.kernel_terms import energies_of_frames
from ccg_gmx.molecule.langevin_kernel import BaoabUpdate, advance_rows, kick_rows
from ccg_gmx.molecule.normal_noise import NormalNoise, fill_normal

_MAX_STEPS, _MAX_WALKER_STEPS = 1000, 20_000
"""Of one compiled call: within it Python does not hear of Ctrl-C."""


@runtime_checkable
class HasKernelJobs(Protocol):
    """An energy that may be compiled from end to end; whoever overrides one of its methods overrides both."""

    def energy_and_gradient(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``[B]`` kJ/mol and ``[B, N, 3]`` kJ/mol/nm of ``[B, N, 3]`` nm."""

    def kernel_jobs(self, positions: Tensor) -> KernelJobs | None:
        """Return what a compiled loop needs for the same, None if it is not all compiled."""


def kernel_jobs(energy_and_gradient: Callable[..., object], positions: Tensor) -> KernelJobs | None:
    """Return how compiled code computes this energy; None where only Python can.

    Args:
        energy_and_gradient: any function of positions; one with jobs is the method of its object.
        positions: ``[B, N, 3]`` nm, contiguous; the jobs read them where they are.
    """
    owner = getattr(energy_and_gradient, "__self__", None)
    if not isinstance(owner, HasKernelJobs) or energy_and_gradient != owner.energy_and_gradient:
        return None
    return owner.kernel_jobs(positions)


def _sources() -> int:
    """Checksum of the files whose functions become part of the loop."""
    modules = (kernel_lanes, kernel_math, kernel_solvent, kernel_terms, langevin_kernel, normal_noise)
    return zlib.crc32(b"".join(Path(module.__file__).read_bytes() for module in modules))


def _loop(version):
    """Return the compiled loop.

    numba's cache notices an edit of this file alone; a variable of the closure is in its key, hence ``version``.
    """

    @compiled
    def take_steps(steps, v, numbers, words, constants, force_field, solvent):
        """Do ``steps`` steps, fewer if the sum of energies and velocities is not finite; return their number and it.

        ``v`` and ``numbers`` are ``[B, N, 3]``, ``words`` the state of the generators or None for no noise, the others
        ``BaoabUpdate.constants`` and the two of ``KernelJobs``, whose gradient must be that of the positions.
        """
        _ = version
        x, gradient, energy = force_field[0], force_field[1], force_field[2]
        shape = (x.shape[0], x.shape[1] * x.shape[2])
        x_rows, v_rows, noise_rows = x.reshape(shape), v.reshape(shape), numbers.reshape(shape)
        gradient_rows, kick = gradient.reshape(shape), constants[0]
        total = v.dtype.type(0)
        for step in range(steps):
            if words is not None:
                fill_normal(words, numbers.reshape(-1))
            advance_rows(x_rows, v_rows, gradient_rows, noise_rows, *constants)
            energies_of_frames(*force_field)
            if solvent is not None:
                solvation_of_frames(*solvent)
                by_solvent = solvent[1].reshape(shape)
                for walker in range(shape[0]):
                    energy[walker] += solvent[2][walker]
                    for column in range(shape[1]):
                        gradient_rows[walker, column] += by_solvent[walker, column]
            total = kick_rows(v_rows, gradient_rows, kick, energy)
            if not np.isfinite(total):
                return step + 1, total
        return steps, total

    return take_steps


_take_steps = _loop(_sources())


class FusedSteps:
    """Steps of one run, in place.

    Args:
        jobs: energy and gradient; their positions are those of the run.
        velocities: ``[B, N, 3]`` nm/ps, contiguous.
        gradient: ``[B, N, 3]`` kJ/mol/nm at the start.
        update: the compiled update of the run.
        noise: stream of random numbers, None for none.
    """

    def __init__(
        self, jobs: KernelJobs, velocities: Tensor, gradient: Tensor, update: BaoabUpdate, noise: NormalNoise | None
    ) -> None:
        _, self._gradient, self._energy = jobs.force_field[:3]
        self._gradient[:] = gradient.numpy()
        v = velocities.detach().numpy()
        words = None if noise is None else noise.words
        self._arguments = (v, np.zeros_like(v), words, update.constants, jobs.force_field, jobs.solvent)
        self._most = max(1, min(_MAX_STEPS, _MAX_WALKER_STEPS // max(1, len(v))))

    def __call__(self, limit: int) -> tuple[int, float]:
        """Do one or more steps, up to ``limit``.

        Returns:
            how many, and a number that is not finite if an energy or a velocity is not after the last of them.
        """
        done, total = _take_steps(min(limit, self._most), *self._arguments)
        return done, float(total)

    @property
    def energy(self) -> Tensor:
        """Energies ``[B]`` in kJ/mol, to be kept."""
        return torch.from_numpy(self._energy.copy())

    @property
    def gradient(self) -> Tensor:
        """Gradient ``[B, N, 3]`` in kJ/mol/nm, which the next steps overwrite."""
        return torch.from_numpy(self._gradient)
