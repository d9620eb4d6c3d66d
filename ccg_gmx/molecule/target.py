"""The reduced target density in internal coordinates, and the count of energies it cost."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ccg_gmx.molecule.zmatrix import InternalCoordinates
from ccg_gmx.units import thermal_energy

ForceField = Callable[[Tensor], Tensor]
"""Positions ``[B, N, 3]`` nm to potential energies ``[B]`` kJ/mol."""


class ReducedTarget:
    """Reduced potential u(s, b, y) = beta U(r) - ln|dr/dq|, so that exp(-u) is the density in (s, b, y).

    Args:
        coordinates: the bijection r = join(s, b, y).
        force_field: potential energy, positions ``[B, N, 3]`` nm to ``[B]`` kJ/mol.
        temperature_K: temperature in K.

    Attributes:
        coordinates: as given.
        evaluations: energies computed so far, one per frame, gradients and thrown-away frames included.
        beta: 1/kT in mol/kJ.

    Raises:
        ValueError: if the temperature is not positive and finite.
    """

    def __init__(self, coordinates: InternalCoordinates, force_field: ForceField, temperature_K: float) -> None:
        self.coordinates = coordinates
        self.evaluations = 0
        self.beta = 1.0 / thermal_energy(temperature_K)
        self._force_field = force_field

    def __call__(self, s: Tensor, b: Tensor, y: Tensor) -> Tensor:
        """Reduced potential ``[B]`` at s ``[B, n_s]``, b ``[B, n_b]``, y ``[B, n_y]`` (nm, radians)."""
        energy, log_jacobian = self.parts(s, b, y)
        return energy - log_jacobian

    def parts(self, s: Tensor, b: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """beta U ``[B]``, counted, and ln|dr/dq| ``[B]`` at s ``[B, n_s]``, b ``[B, n_b]``, y ``[B, n_y]``.

        Their difference is u; a raised temperature scales the first alone.
        """
        return self.reduced_energy(self.coordinates.join(s, b, y)), self.coordinates.log_jacobian(b, y)

    def reduced_energy(self, r: Tensor) -> Tensor:
        """beta U ``[B]`` of frames ``[B, N, 3]`` nm, counted; without the volume element."""
        self.evaluations += len(r)
        return self.beta * self._force_field(r)
