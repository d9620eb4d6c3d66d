"""The borders between stages: frozen records with shapes and units. A stage is a function from records to a record.

Letters used throughout (THEORY: arXiv 2305.01243 for the idea):

* ``s``  coarse variables whose free energy is asked for (torsions, radians), ``[M, n_s]``
* ``b``  the other internal coordinates of the beads (bonds in nm, angles in radians), ``[M, n_b]``
* ``y``  all remaining internal coordinates of the molecule, ``[M, n_y]``
* ``u``  reduced potential ``beta U - ln|dr/dq|`` (dimensionless)
* ``log_w = -u - log_q``; ``f = -ln Z`` free energy in kT.

T frames, N atoms, M coarse points, K draws per coarse point.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class Frames:
    """Atomistic frames.

    Attributes:
        positions: ``[T, N, 3]`` nm, molecule whole.
        time: ``[T]`` ps.
        box: ``[T, 3, 3]`` nm or None.
        forces: ``[T, N, 3]`` kJ/mol/nm or None.
        u_bias: ``[T]`` reduced bias the frames were sampled under, or None when unbiased.
    """

    positions: FloatArray
    time: FloatArray
    box: FloatArray | None = None
    forces: FloatArray | None = None
    u_bias: FloatArray | None = None


@dataclass(frozen=True)
class BeadFrames:
    """Frames of beads.

    Attributes:
        positions: ``[T, n, 3]`` nm; molecules whole where ``ccg map`` wrote them.
        time: ``[T]`` ps.
        box: ``[T, 3, 3]`` nm, rows are box vectors in GROMACS' lower triangular form; None without periodicity.
        forces: ``[T, n, 3]`` kJ/mol/nm or None.
    """

    positions: FloatArray
    time: FloatArray
    box: FloatArray | None = None
    forces: FloatArray | None = None


@dataclass(frozen=True)
class CoarseSplit:
    """Fine frames in internal coordinates, ``r = T(s, b, y)``.

    Attributes:
        s: ``[T, n_s]`` radians, in [-pi, pi).
        b: ``[T, n_b]`` nm and radians.
        y: ``[T, n_y]`` nm and radians.
        u: ``[T]`` reduced potential beta U - ln|dr/dq| of each frame.
        run: ``[T]`` index of the fine run each frame is from.
    """

    s: FloatArray
    b: FloatArray
    y: FloatArray
    u: FloatArray
    run: IntArray


@dataclass(frozen=True)
class WeightedDraws:
    """Draws of a flow at coarse points, with exact log-weights.

    Attributes:
        s: ``[M, n_s]`` radians, the coarse points.
        log_w: ``[M, K]`` log-weights -u - log_q of K independent draws at each point.
        log_rho: ``[M]`` log-density of the proposal the points were drawn from (per radian^n_s).
        evaluations: energies computed for these draws, thrown-away ones included.
        b: ``[M, n_b]`` bead coordinates held fixed, when only ``y`` was drawn; None when ``(b, y)`` were drawn.
        gradient: ``[M, n_s + n_b]`` self-normalised path-wise derivative of ``f = -ln Z`` by (s, b), or None.
        gradient_error: ``[M, n_s + n_b]`` standard error of ``gradient``, or None.
    """

    s: FloatArray
    log_w: FloatArray
    log_rho: FloatArray
    evaluations: int
    b: FloatArray | None = None
    gradient: FloatArray | None = None
    gradient_error: FloatArray | None = None


@dataclass(frozen=True)
class FreeEnergySurface:
    """A free energy on a periodic torsion grid.

    Grid points are ``-pi + i * 2 pi / n`` on every axis (PLUMED's convention for periodic grids); a histogram bin
    is the cell centred on its point. ``f`` is flat in the torsions (per radian^n), shifted to minimum 0.

    Attributes:
        f: ``[n]``, ``[n, n]``, ... one axis per torsion, all of the same length; kT; inf where nothing is known.
        error: same shape, one standard error in kT (nan where unknown), of f relative to its Boltzmann average.
            Unknown everywhere on grids of three or more torsions: errors of their marginals are computed instead.
        names: name of each axis.
        temperature_K: temperature.
    """

    f: FloatArray
    error: FloatArray
    names: tuple[str, ...]
    temperature_K: float


@dataclass(frozen=True)
class CoarseRun:
    """One finished coarse GROMACS run.

    Attributes:
        s: ``[T, n_s]`` radians, coarse variables of its frames.
        b: ``[T, n_b]`` nm and radians, the other bead coordinates.
        positions: ``[T, n_beads, 3]`` nm.
        ns_per_day: speed that mdrun reported.
        walker: ``[T]`` index of the walker each frame is from.
    """

    s: FloatArray
    b: FloatArray
    positions: FloatArray
    ns_per_day: float
    walker: IntArray
