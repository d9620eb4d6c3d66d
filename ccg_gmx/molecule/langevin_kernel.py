# mypy: ignore-errors
"""The BAOAB update in two compiled passes over positions and velocities.

Beside a compiled force field the update is a matter of memory: one pass does everything between two energies, another
the half kick that follows, where the sum that finds a number that is not finite comes for free.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

_KERNEL_DTYPES = (torch.float64, torch.float32)


def _compiled(**options: Any) -> Any:
    """Decorator like ``kernel_lanes.compiled``, with options."""

    def decorate(function: Any) -> Any:
        try:
            return njit(cache=True, nogil=True, error_model="numpy", **options)(function)
        except RuntimeError:  # neither the folder of the source nor the user's can be written
            return njit(nogil=True, error_model="numpy", **options)(function)

    return decorate


@_compiled()
def advance_rows(x, v, gradient, noise, kick, scale, half_step, decay):
    """Half kick, half drift, friction and noise, half drift; arrays ``[B, N D]``, ``kick`` and ``scale`` ``[N D]``."""
    for walker in range(x.shape[0]):
        x_row, v_row, gradient_row, noise_row = x[walker], v[walker], gradient[walker], noise[walker]
        for column in range(x.shape[1]):
            before = v_row[column] + kick[column] * gradient_row[column]
            after = decay * before + scale[column] * noise_row[column]
            x_row[column] = (x_row[column] + half_step * before) + half_step * after
            v_row[column] = after


@_compiled(fastmath={"reassoc"})
def kick_rows(v, gradient, kick, energy):
    """Half kick; return the sum of energies and velocities, which is finite if each of them is and none is huge."""
    total = v.dtype.type(0)
    for walker in range(v.shape[0]):
        v_row, gradient_row = v[walker], gradient[walker]
        for column in range(v.shape[1]):
            after = v_row[column] + kick[column] * gradient_row[column]
            v_row[column] = after
            total += after
        total += energy[walker]
    return total


class BaoabUpdate:
    """Everything of a BAOAB step but the energy, in place: compiled on processors, torch operations elsewhere.

    Args:
        like: ``[B, N, D]`` positions, for shape, type and device.
        masses: ``[N, 1]`` amu.
        dt_ps: time step in ps.
        decay: factor ``exp(-friction dt)`` of velocities.
        spread: ``[N, 1]`` nm/ps, standard deviation of the noise of one step.
        compiled: use the compiled passes where they can serve.
    """

    def __init__(
        self, like: Tensor, masses: Tensor, dt_ps: float, decay: float, spread: Tensor, *, compiled: bool = True
    ) -> None:
        self.compiled = compiled and like.device.type == "cpu" and like.dtype in _KERNEL_DTYPES
        kick = -0.5 * dt_ps / masses
        if not self.compiled:
            self._kick, self._scale = kick.to(like), spread.to(like)
            self._half_step, self._decay = 0.5 * dt_ps, decay
            return
        dtype = np.float64 if like.dtype == torch.float64 else np.float32
        n_walkers, n_atoms, n_dims = like.shape
        self._flat = (n_walkers, n_atoms * n_dims)
        self._kick, self._scale = (np.repeat(each.numpy()[:, 0], n_dims).astype(dtype) for each in (kick, spread))
        self._half_step, self._decay = dtype(0.5 * dt_ps), dtype(decay)

    @property
    def constants(self) -> tuple[np.ndarray, np.ndarray, np.floating, np.floating]:
        """Last four arguments of :func:`advance_rows`; the first is also that of :func:`kick_rows`."""
        return self._kick, self._scale, self._half_step, self._decay

    def advance(self, x: Tensor, v: Tensor, gradient: Tensor, noise: Tensor) -> None:
        """Do what comes before the new energy: half kick, half drift, friction and noise, half drift."""
        if self.compiled:
            arrays = (self._array(each) for each in (x, v, gradient, noise))
            advance_rows(*arrays, *self.constants)
            return
        v.addcmul_(self._kick, gradient)
        x.add_(v, alpha=self._half_step)
        v.mul_(self._decay).addcmul_(self._scale, noise.to(v.device))
        x.add_(v, alpha=self._half_step)

    def finish(self, v: Tensor, gradient: Tensor, energy: Tensor) -> float:
        """Do the half kick after it; return a number that is not finite if an energy or a velocity is not."""
        if self.compiled:
            return float(kick_rows(self._array(v), self._array(gradient), self._kick, energy.detach().numpy()))
        v.addcmul_(self._kick, gradient)
        return float(energy.sum() + v.sum())

    def _array(self, values: Tensor) -> np.ndarray:
        return values.detach().contiguous().numpy().reshape(self._flat)
