"""A static bias on torsions: periodic cubic splines over one torsion or a pair of torsions each, and their forces.

A map is the tensor-product cubic B-spline that interpolates values on a periodic grid: twice continuously
differentiable, exact at the grid points. Forces on atoms follow A. Blondel and M. Karplus, J. Comput. Chem. 17, 1132
(1996), doi:10.1002/(SICI)1096-987X(19960715)17:9<1132::AID-JCC5>3.0.CO;2-T, which has no singularity in the angle.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import spline_filter
from torch import Tensor

from ccg_gmx.molecule.torsion_bias_kernel import add_bias, map_values, torsion_angles
from ccg_gmx.records import FloatArray, IntArray

EnergyAndGradient = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Positions ``[B, N, 3]`` nm to energies ``[B]`` in kJ/mol and gradients ``[B, N, 3]`` in kJ/mol/nm."""


class TorsionBias:
    """A sum of maps V(s) in kJ/mol over one or two of the torsions each.

    It works in float64 on the processor.

    Args:
        quadruples: four atoms of each torsion, 0-based.
        maps: pairs of (indices of one or two different torsions, values ``[n]`` or ``[n, m]`` in kJ/mol at the points
            -pi + i 2 pi / n of every axis, n >= 4).

    Raises:
        ValueError: if the atoms or the maps are not of that kind.
    """

    def __init__(
        self,
        quadruples: Sequence[tuple[int, int, int, int]],
        maps: Sequence[tuple[tuple[int, ...], FloatArray]],
    ) -> None:
        self.quadruples = _checked_quadruples(quadruples)
        axes, shapes, coefficients = [], [], []
        for torsions, values in maps:
            grid = _checked_map(torsions, np.asarray(values, dtype=np.float64), len(self.quadruples))
            axes.append((torsions[0], torsions[-1] if len(torsions) == 2 else -1))
            shapes.append((grid.shape[0], grid.shape[1] if len(torsions) == 2 else 1))
            coefficients.append(spline_filter(grid, order=3, mode="grid-wrap").ravel())
        starts = np.cumsum([0, *(len(each) for each in coefficients)])
        self._maps = (
            np.array(axes, dtype=np.int64).reshape(-1, 2),
            np.array(shapes, dtype=np.int64).reshape(-1, 2),
            starts.astype(np.int64),
            np.concatenate([np.zeros(0), *coefficients]),
        )

    @property
    def n_torsions(self) -> int:
        """Number of torsions n_s."""
        return len(self.quadruples)

    def torsions(self, positions: Tensor) -> Tensor:
        """Return the torsions ``[B, n_s]`` in radians, in [-pi, pi], of positions ``[B, N, 3]`` nm."""
        return torch.from_numpy(torsion_angles(self._frames(positions), self.quadruples))

    def energy(self, torsions: FloatArray) -> FloatArray:
        """Return V ``[B]`` in kJ/mol at torsions ``[B, n_s]`` in radians."""
        s = np.ascontiguousarray(torsions, dtype=np.float64)
        if s.ndim != 2 or s.shape[1] != self.n_torsions:
            raise ValueError(f"torsions must be [B, {self.n_torsions}], got {s.shape}")
        return np.asarray(map_values(s, *self._maps))

    def energy_and_gradient(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return V ``[B]`` in kJ/mol and dV/dr ``[B, N, 3]`` in kJ/mol/nm at positions ``[B, N, 3]`` nm."""
        energy, gradient = np.zeros(len(positions)), np.zeros(tuple(positions.shape))
        add_bias(self._frames(positions), energy, gradient, self.quadruples, *self._maps)
        return torch.from_numpy(energy), torch.from_numpy(gradient)

    def add_to(self, positions: Tensor, energy: Tensor, gradient: Tensor) -> None:
        """Add V and dV/dr to energies ``[B]`` and contiguous gradients ``[B, N, 3]``, in place."""
        add_bias(self._frames(positions), energy.numpy(), gradient.numpy(), self.quadruples, *self._maps)

    def _frames(self, positions: Tensor) -> NDArray[np.float64]:
        highest = int(self.quadruples.max())
        if positions.ndim != 3 or positions.shape[2] != 3 or positions.shape[1] <= highest:
            raise ValueError(f"positions must be [B, N > {highest}, 3], got {tuple(positions.shape)}")
        if positions.dtype != torch.float64 or positions.device.type != "cpu":
            raise ValueError(f"positions must be float64 on the cpu, got {positions.dtype} on {positions.device}")
        return positions.detach().contiguous().numpy()


def biased(energy_and_gradient: EnergyAndGradient, bias: TorsionBias) -> EnergyAndGradient:
    """Return the potential plus the bias, for :class:`~ccg_gmx.molecule.langevin.Langevin`.

    The sum is written into what ``energy_and_gradient`` returns, which therefore must be new at every call.
    """

    def total(positions: Tensor) -> tuple[Tensor, Tensor]:
        energy, gradient = energy_and_gradient(positions)
        bias.add_to(positions, energy, gradient)
        return energy, gradient

    return total


def _checked_quadruples(quadruples: Sequence[tuple[int, int, int, int]]) -> IntArray:
    atoms = np.array(quadruples, dtype=np.int64)
    if (
        atoms.ndim != 2
        or atoms.shape[1:] != (4,)
        or atoms.min() < 0
        or any(len(set(row)) < 4 for row in atoms.tolist())
    ):
        raise ValueError(f"torsions need four different atoms each, counted from 0, got {list(quadruples)}")
    return atoms


def _checked_map(torsions: tuple[int, ...], values: FloatArray, n_torsions: int) -> FloatArray:
    known = all(0 <= index < n_torsions for index in torsions)
    if len(torsions) not in (1, 2) or len(set(torsions)) != len(torsions) or not known:
        raise ValueError(f"a map needs one or two different torsions of {n_torsions}, got {torsions}")
    if values.ndim != len(torsions) or min(values.shape) < 4 or not np.isfinite(values).all():
        raise ValueError(f"a map over {len(torsions)} torsions needs finite values on a grid, got shape {values.shape}")
    return values
