"""Minimal relative entropy: the coarse model under which the mapped frames are most likely (M. S. Shell, 2008).

doi:10.1063/1.2992060. With a potential linear in its coefficients, ``U = sum_k x_k h_k``, the relative entropy is
convex: its gradient is ``beta (<h>_target - <h>_model)`` and its Hessian ``beta^2`` times the covariance of h in the
model's own ensemble. Both are averages over a run, so Newton steps cost nothing more than the run.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ccg_gmx.errors import TrajectoryError
from ccg_gmx.potential.block_sums import BlockSums
from ccg_gmx.potential.layout import ModelLayout
from ccg_gmx.potential.model import CoarseModel
from ccg_gmx.records import BeadFrames, FloatArray


@dataclass(frozen=True)
class Features:
    """Averages of the derivatives h of the energy by the coefficients.

    Attributes:
        mean: ``[F]``.
        covariance: ``[F, F]`` of h from frame to frame.
        error: ``[F, F]`` covariance of the mean, from blocks of frames.
        frames: how many.
    """

    mean: FloatArray
    covariance: FloatArray
    error: FloatArray
    frames: int


class FeatureSampler:
    """Collects :class:`Features` from frames.

    Args:
        layout: the basis.
    """

    def __init__(self, layout: ModelLayout) -> None:
        self.layout = layout
        self._sums = BlockSums((layout.size,))
        self._squares = np.zeros((layout.size,) * 2)

    def add(self, frames: BeadFrames) -> None:
        """Add a chunk of frames."""
        rows = np.array(list(self.layout.features(frames))).reshape(-1, self.layout.size)
        self._squares += rows.T @ rows
        for row in rows:
            self._sums.add(row)

    def result(self) -> Features:
        """Give the averages.

        Raises:
            TrajectoryError: fewer than two frames.
        """
        if self._sums.frames < 2:
            raise TrajectoryError(f"{self._sums.frames} frames", expected="at least two, better hundreds")
        mean = self._sums.mean
        covariance = self._squares / self._sums.frames - np.outer(mean, mean)
        blocks = self._sums.full / self._sums.length
        scatter = np.atleast_2d(np.cov(blocks, rowvar=False)) / len(blocks)
        return Features(mean, covariance, scatter, self._sums.frames)


def sample_features(layout: ModelLayout, frames: Iterable[BeadFrames]) -> Features:
    """Features of a trajectory that comes in chunks."""
    sampler = FeatureSampler(layout)
    for chunk in frames:
        sampler.add(chunk)
    return sampler.result()


@dataclass(frozen=True)
class NewtonSettings:
    """One Newton step.

    Attributes:
        damping: factor of the step.
        step_kT: prior standard deviation of a coefficient's change.
        roughness_kT: of third differences of the change (second ones on a circle).
        largest_kT: no coefficient moves further; the whole step is shortened.
    """

    damping: float = 1.0
    step_kT: float = 3.0
    roughness_kT: float = 0.2
    largest_kT: float = 2.0


@dataclass(frozen=True)
class NewtonStep:
    """Result of a step.

    Attributes:
        model: the next model, with the covariance that the noise of both samples gives the full step.
        gradient: ``[F]`` of the relative entropy by coefficients in kT: ``<h>_target - <h>_model``.
        misfit: mean of the squared gradient over its variance; about 1 where only noise is left.
    """

    model: CoarseModel
    gradient: FloatArray
    misfit: float


def newton_step(
    layout: ModelLayout,
    model: CoarseModel,
    found: Features,
    target: Features,
    settings: NewtonSettings | None = None,
) -> NewtonStep:
    """Give the next model.

    The step y (in kT) is the most likely one given ``<h>_model - <h>_target = C y + noise``, C the covariance of h,
    and a prior on y that is rough only where the data say so.

    Args:
        layout: the basis.
        model: the present model on it.
        found: features of a run with the model.
        target: features of the mapped frames.
        settings: of the step.
    """
    settings = settings or NewtonSettings()
    kT = model.kT
    gradient = target.mean - found.mean
    noise = found.error + target.error
    # As many independent frames as the noise of both means corresponds to.
    frames = float(np.trace(found.covariance) / max(np.trace(noise), 1e-300))
    prior = layout.prior(settings.roughness_kT) + np.eye(layout.size) / settings.step_kT**2
    hessian = frames * found.covariance + prior
    y, spread = _shrunk_solution(hessian, -frames * gradient, frames**2 * noise)
    y = y * min(1.0, settings.largest_kT / max(float(np.abs(y).max(initial=0.0)), 1e-300))
    x = layout.vector(model) + settings.damping * kT * y
    return NewtonStep(layout.with_vector(x, kT**2 * spread), gradient, _misfit(gradient, noise))


def _shrunk_solution(hessian: FloatArray, right: FloatArray, noise: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Solve mode by mode, each shrunk by what of it may be noise; the solution and its covariance without shrinking.

    A liquid has modes that hardly change its structure but much its pressure. Steps in them that are mere noise would
    add up to a random walk. A mode of size a and error s is taken times ``1 - (s / a)^2``, and not at all below its
    error: the positive part of Stein's estimator.
    """
    scale = 1.0 / np.sqrt(np.diag(hessian))
    values, modes = np.linalg.eigh(hessian * np.outer(scale, scale))
    modes = scale[:, None] * modes
    size, variance = modes.T @ right, np.einsum("ki,kl,li->i", modes, noise, modes)
    kept = np.maximum(1.0 - variance / np.maximum(size**2, 1e-300), 0.0)
    inverse = modes / values @ modes.T
    return modes @ (kept * size / values), inverse @ noise @ inverse


def _misfit(gradient: FloatArray, noise: FloatArray) -> float:
    variance = np.diag(noise)
    known = variance > 1e-12 * variance.max(initial=0.0)
    return float(np.mean(gradient[known] ** 2 / variance[known])) if known.any() else 0.0
