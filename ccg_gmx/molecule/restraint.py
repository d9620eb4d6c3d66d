"""Restraint of torsions to centres that differ from walker to walker, so that many coarse points share one batch.

``U = k sum_i (1 - cos(phi_i - phi0_i))`` is smooth on the whole circle and harmonic, k/2 d^2, near its centre.
Gradients of the torsions: A. Blondel, M. Karplus, J. Comput. Chem. 17, 1132 (1996),
doi:10.1002/(SICI)1096-987X(19960715)17:9<1132::AID-JCC5>3.0.CO;2-T.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ccg_gmx.molecule.kernel_lanes import compiled
from ccg_gmx.records import FloatArray, IntArray

EnergyAndGradient = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Positions ``[B, N, 3]`` nm to energies ``[B]`` kJ/mol and gradients ``[B, N, 3]`` kJ/mol/nm."""


class RestrainedEnergy:
    """An energy plus the restraint; what the Langevin integrator takes. On processors, in float64.

    The compiled loop costs a few per cent of an energy of 22 atoms.

    Args:
        energy_and_gradient: the unrestrained energy.
        atoms: ``[n, 4]`` atoms (0-based) of the torsions.
        centres: ``[B, n]`` radians, one row per walker.
        k_kJ_mol: force constant in kJ/mol (per rad^2 near the centre), positive.

    Raises:
        ValueError: if shapes do not fit or k is not positive.
    """

    def __init__(
        self, energy_and_gradient: EnergyAndGradient, atoms: IntArray, centres: FloatArray, k_kJ_mol: float
    ) -> None:
        self.atoms = np.ascontiguousarray(atoms, dtype=np.int64)
        self.centres = np.ascontiguousarray(centres, dtype=np.float64)
        if self.atoms.ndim != 2 or self.centres.ndim != 2 or self.atoms.shape != (self.centres.shape[1], 4):
            raise ValueError(f"atoms {self.atoms.shape} and centres {self.centres.shape}, expected [n, 4] and [B, n]")
        if not (math.isfinite(k_kJ_mol) and k_kJ_mol > 0):
            raise ValueError(f"the force constant must be positive, got {k_kJ_mol}")
        self.k_kJ_mol = float(k_kJ_mol)
        self._energy_and_gradient = energy_and_gradient

    def __call__(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return energies ``[B]`` in kJ/mol and gradients ``[B, N, 3]`` in kJ/mol/nm, restraint included.

        Args:
            positions: ``[B, N, 3]`` nm, float64, on the processor; row i is held at ``centres[i]``.
        """
        if len(positions) != len(self.centres) or positions.dtype != torch.float64:
            raise ValueError(
                f"{len(positions)} frames of {positions.dtype} for {len(self.centres)} centres, expected one frame of "
                "torch.float64 per centre"
            )
        energy, gradient = self._energy_and_gradient(positions)
        energy, gradient = (values.clone(memory_format=torch.contiguous_format) for values in (energy, gradient))
        frames = positions.detach().contiguous().numpy()
        _add_restraint(frames, self.atoms, self.centres, self.k_kJ_mol, energy.numpy(), gradient.numpy())
        return energy, gradient


def wrapped(angle: FloatArray, period: float = 2.0 * math.pi) -> FloatArray:
    """Shift angles by whole periods into [-period/2, period/2)."""
    return (angle + 0.5 * period) % period - 0.5 * period


@compiled
def _add_restraint(x: Any, atoms: Any, centres: Any, k: float, energy: Any, gradient: Any) -> None:
    """Add k (1 - cos(phi - centre)) and its gradient; three atoms on a line have no torsion and feel nothing."""
    F, G, H, A, B = np.empty(3), np.empty(3), np.empty(3), np.empty(3), np.empty(3)
    for frame in range(len(x)):
        for torsion in range(len(atoms)):
            i, j, m, n = atoms[torsion]
            for axis in range(3):
                F[axis] = x[frame, i, axis] - x[frame, j, axis]
                G[axis] = x[frame, j, axis] - x[frame, m, axis]
                H[axis] = x[frame, n, axis] - x[frame, m, axis]
            for axis in range(3):
                one, two = (axis + 1) % 3, (axis + 2) % 3
                A[axis] = F[one] * G[two] - F[two] * G[one]
                B[axis] = H[one] * G[two] - H[two] * G[one]
            a2, b2, g2, ab, bf, fg, hg = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
            for axis in range(3):
                a2 += A[axis] * A[axis]
                b2 += B[axis] * B[axis]
                g2 += G[axis] * G[axis]
                ab += A[axis] * B[axis]
                bf += B[axis] * F[axis]
                fg += F[axis] * G[axis]
                hg += H[axis] * G[axis]
            if a2 * b2 * g2 == 0.0:
                continue
            g = math.sqrt(g2)
            # (B x A) . G = -(B . F) g2, because A = F x G
            off = math.atan2(-bf * g, ab) - centres[frame, torsion]
            energy[frame] += k * (1.0 - math.cos(off))
            slope = k * math.sin(off)
            for axis in range(3):
                first, last = -slope * g / a2 * A[axis], slope * g / b2 * B[axis]
                shift = slope * (fg / (a2 * g) * A[axis] - hg / (b2 * g) * B[axis])
                gradient[frame, i, axis] += first
                gradient[frame, n, axis] += last
                gradient[frame, j, axis] += shift - first
                gradient[frame, m, axis] -= shift + last
