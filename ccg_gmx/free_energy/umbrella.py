"""Umbrella windows combined by MBAR: biases of every window at every frame, weights, and their resamples.

Multistate Bennett acceptance ratio: Shirts, Chodera 2008, doi:10.1063/1.2978177. The solution for all frames is
pymbar's; for resamples, which start from it, a few Newton steps on the same equations are enough.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.sparse.csgraph import connected_components
from scipy.special import logsumexp

from ccg_gmx.errors import CcgError, ToolMissingError
from ccg_gmx.free_energy.axes import Axis
from ccg_gmx.records import FloatArray, IntArray

NEWTON_STEPS = 60
NEWTON_TOLERANCE = 1e-7
"""Residual of the equations over the number of frames of a window."""

LARGEST_STEP = 3.0
"""kT that one Newton step may move a free energy; more overshoots."""

LEAST_OVERLAP = 0.03
"""Windows that share less cannot be joined reliably (Klimovich 2015, doi:10.1007/s10822-015-9840-9)."""


@dataclass(frozen=True)
class Restraint:
    """A harmonic restraint as PLUMED's ``RESTRAINT`` has it, ``kappa / 2 (x - at)^2``.

    Attributes:
        centers: variable -> ``at``, units of the variable.
        kappas: variable -> ``kappa``, energy per squared unit.
    """

    centers: dict[str, float]
    kappas: dict[str, float]

    def energy(self, s: FloatArray, axes: Sequence[Axis]) -> FloatArray:
        """``[T]`` energy at ``s [T, d]``, units of kappa; periodic variables count the shorter way round."""
        total = np.zeros(len(s))
        for column, axis in zip(s.T, axes, strict=True):
            if axis.name in self.centers:
                away = column - self.centers[axis.name]
                if axis.period is not None:
                    away -= axis.period * np.round(away / axis.period)
                total += 0.5 * self.kappas[axis.name] * away**2
        return total


@dataclass(frozen=True)
class Windows:
    """Windows solved by MBAR.

    Attributes:
        f: ``[K]`` free energy of each window in kT, the first zero.
        window: ``[T]`` window of each frame.
        log_w: ``[T]`` log-weights of the frames in the unbiased system, any offset.
        relative: ``[K, T]`` ``exp(f_k - u_k(n))``, each frame's largest 1.
        shift: ``[T]`` logarithm of what each frame was divided by for that.
        overlap: ``[K, K]`` share of window j (column) in the frames of window i (row).
    """

    f: FloatArray
    window: IntArray
    log_w: FloatArray
    relative: FloatArray
    shift: FloatArray
    overlap: FloatArray

    def reweight(self, rows: IntArray) -> FloatArray:
        """``[T']`` weights of resampled frames (some rows repeated), the window free energies found anew."""
        count = np.bincount(rows, minlength=len(self.window)).astype(np.float64)
        moved = _newton(self.relative, count, np.bincount(self.window, count, len(self.f)).astype(np.float64))
        log_w = -self.shift - np.log(moved @ self.relative)
        return np.asarray(np.exp(log_w[rows] - log_w[rows].max()))

    @property
    def warnings(self) -> tuple[str, ...]:
        """Windows that do not overlap, in words."""
        linked = np.minimum(self.overlap, self.overlap.T) >= LEAST_OVERLAP
        groups, label = connected_components(linked, directed=False)
        if groups == 1:
            return ()
        parts = [" ".join(str(k + 1) for k in np.flatnonzero(label == group)) for group in range(groups)]
        return (
            f"the windows fall into {groups} groups that hardly overlap ({'; '.join(parts)}): free energy differences "
            "between them are unreliable; run windows between them",
        )


def solve_windows(u: FloatArray, window: IntArray) -> Windows:
    """Solve MBAR for frames sampled under K biases.

    Args:
        u: ``[K, T]`` reduced bias of every window at every frame (kT).
        window: ``[T]`` window each frame was sampled in.

    Raises:
        ToolMissingError: pymbar is not installed.
        CcgError: a window without frames, numbers that are not finite, or no solution.
    """
    n_k = np.bincount(window, minlength=len(u))
    if not n_k.all() or not np.isfinite(u).all():
        raise CcgError(
            f"windows with {', '.join(map(str, n_k))} frames" + ("" if np.isfinite(u).all() else ", not all finite"),
            expected="frames in every window, and finite biases",
        )
    f = _pymbar(u, n_k)
    logs = f[:, None] - u
    shift = logs.max(axis=0)
    relative = np.exp(logs - shift)
    # pymbar stops at its own tolerance; resamples are compared with this solution, so it must solve our equations
    moved = _newton(relative, np.ones(len(window)), n_k.astype(np.float64))
    f = f + np.log(moved / n_k)
    share = moved[:, None] * relative / (moved @ relative)
    overlap = np.array([np.bincount(window, own, minlength=len(u)) for own in share]).T / n_k[:, None]
    scaled = np.exp(f[:, None] - u - shift)
    log_w = -shift - np.log(n_k @ scaled)
    return Windows(f - f[0], window, log_w - logsumexp(log_w), scaled, shift, overlap)


def _newton(relative: FloatArray, count: FloatArray, n_k: FloatArray) -> FloatArray:
    """``[K]`` ``N_k exp(move of f_k)`` that solves MBAR for frames counted so many times.

    The equations are the gradient of a convex function of f (Shirts, Chodera 2008, appendix C).

    Raises:
        CcgError: no convergence.
    """
    move = np.zeros(len(n_k))
    for _ in range(NEWTON_STEPS):
        scale = n_k * np.exp(move)
        denominator = scale @ relative
        taken = scale * (relative @ (count / denominator))
        residual = n_k - taken
        if np.abs(residual / n_k).max() < NEWTON_TOLERANCE:
            return scale
        part = relative * (np.sqrt(count) / denominator)
        hessian = np.diag(taken) - scale[:, None] * (part @ part.T) * scale
        step = np.linalg.lstsq(hessian, residual, rcond=1e-12)[0]
        move = move + step * min(1.0, LARGEST_STEP / max(np.abs(step).max(), 1e-300))
        move -= move[0]
    raise CcgError(
        "MBAR does not converge: some windows share no frames",
        expected="windows that overlap",
        remedy="run windows between them, or check --umbrella and --temperature",
    )


def _pymbar(u: FloatArray, n_k: IntArray) -> FloatArray:
    pymbar = _import_pymbar()
    with _quiet():
        try:
            return np.asarray(pymbar.MBAR(u, n_k, initialize="BAR").f_k, dtype=np.float64)
        except Exception as error:  # pymbar raises several kinds for windows that do not overlap
            reason = " ".join(str(error).split())[:200]
            raise CcgError(f"pymbar cannot combine the windows: {reason}", expected="windows that overlap") from None


def _import_pymbar() -> Any:
    if importlib.util.find_spec("pymbar") is None:
        raise ToolMissingError(
            "the package pymbar is not installed",
            expected="pymbar >= 4 to combine windows",
            remedy="pip install 'pymbar>=4'",
        )
    with _quiet():
        import pymbar
    return pymbar


@contextmanager
def _quiet() -> Iterator[None]:
    """Without pymbar's advice about JAX, which is nothing to the user."""
    logger = logging.getLogger("pymbar")
    level, before = logger.level, logging.root.manager.disable
    logger.setLevel(logging.ERROR)
    logging.disable(logging.WARNING)
    try:
        with np.errstate(all="ignore"):
            yield
    finally:
        logger.setLevel(level)
        logging.disable(before)
