"""Pressure of bead frames in a coarse model, and the linear term that corrects it.

The correction is the ramp ``A (1 - r / r_c)`` of H. Wang, C. Junghans, K. Kremer (2009,
doi:10.1140/epje/i2008-10413-5): a weak constant force on every pair, which hardly changes the structure. Its
coefficient follows from the virial: with unchanged distributions, a term ``A phi(r)`` changes the pressure by
``-A <sum over pairs r phi'(r)> / 3V``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ccg_gmx.errors import SettingsError
from ccg_gmx.molecule.coarse_topology import CoarseTopology
from ccg_gmx.potential.block_sums import BlockSums
from ccg_gmx.potential.curves import Curve
from ccg_gmx.potential.distributions import Distributions
from ccg_gmx.potential.evaluate import energies_and_forces
from ccg_gmx.potential.model import CoarseModel
from ccg_gmx.records import BeadFrames, FloatArray
from ccg_gmx.units import BAR_PER_KJ_MOL_NM3

LARGEST_KT = 0.1
"""Largest coefficient of the ramp in one step, the limit that the paper uses."""


@dataclass(frozen=True)
class Pressure:
    """Mean pressure.

    Attributes:
        bar: mean.
        error: standard error from blocks of frames, bar; nan with a single frame.
    """

    bar: float
    error: float


class PressureSampler:
    """Mean pressure of frames from our own virial; the kinetic part is that of the temperature.

    Args:
        model: the potential.
        topology: the beads.
    """

    def __init__(self, model: CoarseModel, topology: CoarseTopology) -> None:
        self._model, self._topology = model, topology
        self._sums = BlockSums((1,))

    def add(self, frames: BeadFrames) -> None:
        """Evaluate a chunk of frames.

        Raises:
            SettingsError: frames without boxes have no pressure.
        """
        if frames.box is None:
            raise SettingsError("a pressure of frames without a box", expected="a periodic box")
        virial = energies_and_forces(self._model, self._topology, frames).virial
        volume = np.abs(np.linalg.det(frames.box))
        # Momentum is conserved or random: the difference of one bead in n is far below the error.
        kinetic = self._topology.n_beads * self._model.kT
        for value in (kinetic + np.trace(virial, axis1=1, axis2=2) / 3.0) / volume:
            self._sums.add(np.array([value * BAR_PER_KJ_MOL_NM3]))

    def result(self) -> Pressure:
        """Mean and error."""
        return Pressure(float(self._sums.mean[0]), float(self._sums.error_of_mean()[0]))


def ramp(curve: Curve) -> FloatArray:
    """Coefficients ``[P]`` of ``1 - r / r_c`` on a pair's basis, flattened at the last three like every pair.

    A cubic spline's coefficient of a line is the line's value at the mean of its three inner knots, here
    ``lo + (i - 1) * spacing``.
    """
    places = curve.lo + (np.arange(curve.size) - 1.0) * curve.spacing
    values = 1.0 - places / curve.hi
    values[curve.free :] = 0.0
    return np.asarray(values, dtype=np.float64)


def pressure_response(model: CoarseModel, found: Distributions) -> float:
    """Bar per kJ/mol of the ramp's coefficient, by the virial, with the distributions as they are.

    Raises:
        SettingsError: there is no box, or no pair within the cut-off.
    """
    if found.volume is None:
        raise SettingsError("a pressure correction without a box", expected="a periodic box")
    virial = 0.0
    for key, curve in model.pairs.items():
        part = found.pairs[key]
        slope = curve.design(part.centres, 1) @ ramp(curve)
        virial -= float(np.sum(part.counts * part.centres * slope)) / found.frames
    if not virial > 0:
        raise SettingsError("a pressure correction without pairs within the cut-off", expected="pair potentials")
    return virial / (3.0 * found.volume) * BAR_PER_KJ_MOL_NM3


def correct_pressure(
    model: CoarseModel, found: Distributions, pressure: Pressure, target_bar: float, largest_kT: float = LARGEST_KT
) -> tuple[CoarseModel, float]:
    """Add the ramp that brings the pressure to its target, no more of it than ``largest_kT``.

    Nothing is added where the pressure is at its target within its own error.

    Args:
        model: the model to correct.
        found: distributions of a run.
        pressure: of that run.
        target_bar: wanted pressure.
        largest_kT: limit of the coefficient.

    Returns:
        The model and the coefficient of the ramp in kJ/mol.
    """
    missing = target_bar - pressure.bar
    if abs(missing) <= np.nan_to_num(pressure.error):
        return model, 0.0
    limit = largest_kT * model.kT
    height = float(np.clip(missing / pressure_response(model, found), -limit, limit))
    pairs = {key: replace(c, coefficients=c.coefficients + height * ramp(c)) for key, c in model.pairs.items()}
    return replace(model, pairs=pairs), height
