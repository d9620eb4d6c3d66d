"""Physical constants and unit conversions.

GROMACS units everywhere: nm, ps, kJ/mol, K, amu, e. Angles are radians inside the package; degrees
appear only in files whose format asks for them (mdp, xvg, workflow YAML) and in plots.
"""

from __future__ import annotations

import math

BOLTZMANN_KJ_MOL_K = 0.0083144626181532
"""Molar gas constant in kJ/mol/K (CODATA 2018, exact)."""

COULOMB_KJ_MOL_NM_E2 = 138.935458
"""Electric conversion factor 1/(4 pi eps0) in kJ mol^-1 nm e^-2, the value GROMACS uses."""

DEGREES_PER_RADIAN = 180.0 / math.pi

BAR_PER_KJ_MOL_NM3 = 16.605390671738467
"""Pressure of 1 kJ/mol/nm^3 in bar: 1e28 / Avogadro's number (CODATA 2018, exact)."""


def thermal_energy(temperature_K: float) -> float:
    """Return kT in kJ/mol.

    Args:
        temperature_K: temperature in K, positive.

    Raises:
        ValueError: if the temperature is not positive and finite.
    """
    if not (math.isfinite(temperature_K) and temperature_K > 0):
        raise ValueError(f"temperature must be positive and finite, got {temperature_K} K")
    return BOLTZMANN_KJ_MOL_K * temperature_K
