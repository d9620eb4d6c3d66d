"""CMAP: a correction of the energy by two neighbouring torsions, a periodic bicubic spline on a grid.

GROMACS reference manual 2025, "CMAP"; MacKerell et al., J. Comput. Chem. 25, 1400 (2004), doi:10.1002/jcc.20065.
``gmx dump`` prints the tables with three decimals. The derivatives are therefore computed anew from the values, as
grompp does; the printed ones would lose 5e-3 kJ/mol. The values' own rounding stays: at most 1e-3 kJ/mol.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from ccg_gmx.errors import TopologyError
from ccg_gmx.molecule.interactions import Kernel, torsion
from ccg_gmx.records import FloatArray, IntArray

# from (f(0), f(1), f'(0), f'(1)) to the coefficients of 1, t, t^2, t^3
_HERMITE = np.array([[1, 0, 0, 0], [0, 0, 1, 0], [-3, 3, -2, -1], [2, -2, 1, 1]], dtype=np.float64)
_PRINTED = 2e-3
"""How far a derivative may be from the printed one, kJ/mol per degree."""


class Cmap(nn.Module):
    """Energies of CMAP terms.

    Args:
        grids: ``[g, n, n, 4]`` as in :class:`ccg_gmx.molecule.tpr_dump.TprDump`.
        kinds: ``[m]`` table of each term.
    """

    coefficients: Tensor

    def __init__(self, grids: FloatArray, kinds: IntArray) -> None:
        super().__init__()
        self.n = grids.shape[1]
        self.register_buffer("coefficients", torch.from_numpy(cell_polynomials(grids).reshape(-1, 16)))
        self.register_buffer("offsets", torch.from_numpy(kinds * self.n**2)[:, None])

    def forward(
        self, ij: Tensor, kj: Tensor, kl: Tensor, ij2: Tensor, kj2: Tensor, kl2: Tensor, derivatives: bool
    ) -> Kernel:
        """Return energies ``[m, B]`` and derivatives by the vectors of the first and of the second torsion."""
        cosine1, sine1, spread1 = torsion(ij, kj, kl)
        cosine2, sine2, spread2 = torsion(ij2, kj2, kl2)
        cell1, t1 = self._cell(torch.atan2(sine1, cosine1))
        cell2, t2 = self._cell(torch.atan2(sine2, cosine2))
        rows = self.coefficients[self.offsets + cell1 * self.n + cell2]
        table = rows.unflatten(-1, (4, 4))
        powers1, powers2 = (torch.stack([torch.ones_like(t), t, t * t, t * t * t], dim=-1) for t in (t1, t2))
        along1 = (table * powers2[..., None, :]).sum(-1)
        energy = (along1 * powers1).sum(-1)
        if not derivatives:
            return energy, ()
        along2 = (table * powers1[..., :, None]).sum(-2)
        scale = self.n / (2 * math.pi)
        return energy, spread1(scale * _slope(along1, t1)) + spread2(scale * _slope(along2, t2))

    def _cell(self, angle: Tensor) -> tuple[Tensor, Tensor]:
        """Cell of each angle and the place within it, 0 to 1."""
        place = (angle + math.pi) * (self.n / (2 * math.pi))
        cell = place.floor()
        return cell.long() % self.n, place - cell


def _slope(coefficients: Tensor, t: Tensor) -> Tensor:
    return coefficients[..., 1] + t * (2 * coefficients[..., 2] + 3 * t * coefficients[..., 3])


def cell_polynomials(grids: FloatArray) -> FloatArray:
    """Return the coefficients of t^i u^j in every cell, t and u from 0 to 1.

    Args:
        grids: ``[g, n, n, 4]`` tables as printed.

    Returns:
        ``[g, n, n, 4, 4]`` kJ/mol.

    Raises:
        TopologyError: if the printed derivatives are not those of a periodic spline through the values.
    """
    values, step = grids[..., 0], 360.0 / grids.shape[1]
    by_first, by_second = spline_slopes(values, 1), spline_slopes(values, 2)
    both = spline_slopes(by_first, 2)
    found = np.stack([by_first / step, by_second / step, both / step**2], axis=-1)
    if np.abs(found - grids[..., 1:]).max() > _PRINTED:
        raise TopologyError(
            "the derivatives of a CMAP table are not those of a spline through its values",
            expected="a table that grompp made",
        )
    # corner (a, b) of cell (i, j) is grid point (i + a, j + b)
    rows = [np.stack([x, np.roll(x, -1, axis=1)], axis=3) for x in (values, by_first)]
    cols = [np.stack([x, np.roll(x, -1, axis=1)], axis=3) for x in (by_second, both)]
    along1 = np.concatenate(rows, axis=3), np.concatenate(cols, axis=3)
    corners = np.concatenate([np.stack([x, np.roll(x, -1, axis=2)], axis=4) for x in along1], axis=4)
    return np.einsum("ia,gxyab,jb->gxyij", _HERMITE, corners, _HERMITE)


def spline_slopes(values: FloatArray, axis: int) -> FloatArray:
    """Return the slopes, per grid step, of the periodic cubic spline through values.

    m[k-1] + 4 m[k] + m[k+1] = 3 (y[k+1] - y[k-1]), solved in Fourier space. grompp cuts the period at one and a half
    turns, where the spline is natural; half a turn away that is felt by a factor of 0.27^(n/2), 1e-7 for n = 24.
    """
    count = values.shape[axis]
    turn = 2 * np.pi * np.fft.fftfreq(count)
    factor = 6j * np.sin(turn) / (4 + 2 * np.cos(turn))
    shape = [1] * values.ndim
    shape[axis] = count
    slopes: FloatArray = np.fft.ifft(np.fft.fft(values, axis=axis) * factor.reshape(shape), axis=axis).real
    return slopes
