"""GROMACS' own functional forms in place of tables, so that a bare ``gmx mdrun`` runs a coarse model.

``mdrun`` finds bonded tables only through ``-tableb``. A fitted bond or angle is so nearly a parabola that a cubic bond
(function 4), a quartic angle (function 6) and a Fourier dihedral (function 9, beside a harmonic one, function 2, where
the torsion must stay in its window) reproduce it within a few thousandths of kT where the Boltzmann factor is not
negligible; how closely is measured and stated in the README.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.polynomial import Polynomial

from ccg_gmx.potential.basis import PeriodicTerm
from ccg_gmx.potential.coarse import CoarsePotential
from ccg_gmx.records import FloatArray
from ccg_gmx.units import DEGREES_PER_RADIAN

_FLOOR = 1e-4  # weight, relative to the largest, that points at the end of the data keep in the fit
_FAR_FLOOR = 1e-8  # the same for points outside the data, where only the height of the wall matters
_FOURIER_ORDER = 12
_CIRCLE_POINTS = 480  # of the discrete Fourier transform, twenty per knot of the default grid


@dataclass(frozen=True)
class AnalyticForm:
    """One bonded term in GROMACS' own form.

    Attributes:
        lines: function number and parameters as a topology wants them; a dihedral has several.
        rms_kT: Boltzmann-weighted rms deviation from the fitted term, constant removed, kT.
    """

    lines: tuple[str, ...]
    rms_kT: float


def analytic_term(potential: CoarsePotential, i: int) -> AnalyticForm:
    """Term ``i`` as a cubic bond, a quartic angle, or a sum of dihedrals.

    The polynomial is fitted under the term's own Boltzmann density. One that turns down outside the data would let
    go of the bead, so the degree is lowered until none does.

    Args:
        potential: fitted potential.
        i: term.
    """
    term = potential.basis.terms[i]
    if isinstance(term, PeriodicTerm):
        value, _ = potential.term_table(i, _circle(_CIRCLE_POINTS))
        return _fourier(value, potential.kT, _FOURIER_ORDER)
    if term.coordinate.kind == "torsion":
        return _hindered_dihedral(potential, i)
    x = np.linspace(term.lo, term.hi, 1001, dtype=np.float64)
    x = x[(x > 0.0) & (x < math.pi)] if term.coordinate.kind == "angle" else x[x > 0.0]
    value, _ = potential.term_table(i, x)
    log_p = term.log_jacobian(x) - value / potential.kT
    weight = np.exp(log_p - log_p.max())
    centre = float(x[np.argmin(value)])
    degrees = (3, 2) if term.coordinate.kind == "bond" else (4, 2)
    far = np.linspace(0.0, 2.0 * term.hi if term.coordinate.kind == "bond" else math.pi, 2001, dtype=np.float64)
    for degree in degrees:
        fitted = Polynomial.fit(x - centre, value, degree, w=np.sqrt(weight + _FLOOR)).convert()
        if _confines(fitted, x - centre, far - centre):
            break
    rms = _weighted_rms(fitted(x - centre) - value, weight) / potential.kT
    line = _cubic_bond(fitted, centre) if term.coordinate.kind == "bond" else _quartic_angle(fitted, centre)
    return AnalyticForm((line,), rms)


def _confines(polynomial: Polynomial, data: FloatArray, far: FloatArray) -> bool:
    """Whether the polynomial never falls, outside the data, below its value at the data's edge."""
    below, above = far[far < data[0]], far[far > data[-1]]
    return bool((polynomial(below) >= polynomial(data[0])).all() and (polynomial(above) >= polynomial(data[-1])).all())


def _cubic_bond(fitted: Polynomial, centre: float) -> str:
    """``4 b0 k k_cub`` of ``V = k (b - b0)^2 + k k_cub (b - b0)^3``: move to the minimum, where no linear term is."""
    roots = fitted.deriv().roots()
    real = roots[np.abs(roots.imag) < 1e-12].real
    minimum = float(real[np.argmin(np.abs(real))])
    second, third = fitted.deriv(2)(minimum) / 2.0, (fitted.deriv(3)(minimum) if fitted.degree() > 2 else 0.0) / 6.0
    return f"4 {centre + minimum:.9f} {second:.8e} {third / second:.8e}"


def _quartic_angle(fitted: Polynomial, centre: float) -> str:
    """``6 theta0 c0 c1 c2 c3 c4``: degrees, kJ/mol/radian^n."""
    coefficients = np.zeros(5)
    coefficients[: len(fitted.coef)] = fitted.coef
    return f"6 {centre * DEGREES_PER_RADIAN:.9f} " + " ".join(f"{c:.8e}" for c in coefficients.tolist())


def analytic_dihedral(potential: CoarsePotential, k: int = 0, order: int = _FOURIER_ORDER) -> AnalyticForm:
    """A map over one torsion as a Fourier series of periodic dihedrals (function 9).

    Args:
        potential: fitted potential.
        k: map, over a single torsion.
        order: highest multiplicity.
    """
    return _fourier(potential.map_grid(k, 20 * potential.basis.maps.grids[k].knots), potential.kT, order)


def _fourier(value: FloatArray, kT: float, order: int) -> AnalyticForm:
    """Values ``[n]`` kJ/mol on the circle as a Fourier series."""
    n = len(value)
    phi = _circle(n)
    lines, series = [], np.zeros(n)
    for m in range(1, order + 1):
        amplitude = 2.0 * np.mean(value * np.exp(1j * m * phi))
        size, phase = float(abs(amplitude)), float(np.angle(amplitude))
        series += size * (1.0 + np.cos(m * phi - phase))
        lines.append(_dihedral_line(phase, size, m))
    return AnalyticForm(tuple(lines), _weighted_rms(series - value, np.exp(-(value - value.min()) / kT)) / kT)


def _hindered_dihedral(potential: CoarsePotential, i: int) -> AnalyticForm:
    """A torsion that stays in its window: a harmonic dihedral, and periodic ones that bend it to the fitted shape.

    Fitted on the whole circle, so that the wall that holds the torsion in the window is there; the number of periodic
    ones is lowered until the sum never falls outside the data below its value at their edge.
    """
    term, kT = potential.basis.terms[i], potential.kT
    circle = term.coordinate.centre + _circle(3600)
    value, _ = potential.term_table(i, circle)
    inside = (circle >= term.lo) & (circle <= term.hi)
    centre = float(circle[np.argmin(np.where(inside, value, np.inf))])
    boltzmann = np.where(inside, np.exp(-(value - value[inside].min()) / kT), 0.0)
    weight = np.sqrt(boltzmann + np.where(inside, _FLOOR, _FAR_FLOOR))
    x = (circle - centre + math.pi) % (2.0 * math.pi) - math.pi  # GROMACS measures the harmonic one this way
    for order in range(4, -1, -1):
        waves = [wave(m * x) for m in range(1, order + 1) for wave in (np.cos, np.sin)]
        columns = np.stack([np.ones_like(x), 0.5 * x**2, *waves], axis=1)
        fitted = np.linalg.lstsq(columns * weight[:, None], value * weight, rcond=None)[0]
        series = columns @ fitted
        below, above = series[circle < term.lo], series[circle > term.hi]
        if (below >= series[inside][0]).all() and (above >= series[inside][-1]).all():
            break
    lines = [f"2 {centre * DEGREES_PER_RADIAN:.8f} {fitted[1]:.8e}"]
    for m, (cosine, sine) in enumerate(fitted[2:].reshape(-1, 2), start=1):
        phase = math.remainder(m * centre + math.atan2(sine, cosine), 2.0 * math.pi)
        lines.append(_dihedral_line(phase, math.hypot(cosine, sine), m))
    return AnalyticForm(tuple(lines), _weighted_rms(series - value, boltzmann) / kT)


def _circle(n: int) -> FloatArray:
    return np.linspace(-math.pi, math.pi, n, endpoint=False, dtype=np.float64)


def _dihedral_line(phase: float, size: float, multiplicity: int) -> str:
    return f"9 {phase * DEGREES_PER_RADIAN:.8f} {size:.8e} {multiplicity}"


def _weighted_rms(deviation: FloatArray, weight: FloatArray) -> float:
    """Weighted rms of a deviation, its weighted mean removed."""
    deviation = deviation - np.average(deviation, weights=weight)
    return math.sqrt(float(np.average(deviation**2, weights=weight)))
