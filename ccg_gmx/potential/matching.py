"""Force matching (MS-CG): the coarse potential whose forces are nearest to the mapped ones.

S. Izvekov, G. A. Voth, 2005, doi:10.1021/jp044629q; W. G. Noid and others, 2008, doi:10.1063/1.2938860. Linear least
squares: frames are added to the normal equations one by one and forgotten. The equations are kept in blocks of
frames, and the scatter of the blocks' gradients about zero gives the covariance, correlations in time included.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ccg_gmx.errors import TrajectoryError
from ccg_gmx.potential.block_sums import BlockSums
from ccg_gmx.potential.layout import ModelLayout
from ccg_gmx.potential.model import CoarseModel
from ccg_gmx.potential.smooth_fit import solve_positive
from ccg_gmx.records import BeadFrames, FloatArray


@dataclass(frozen=True)
class ForceFit:
    """A force match.

    Attributes:
        model: with the covariance of each term.
        coefficients: ``[F]`` kJ/mol in the order of the layout.
        covariance: ``[F, F]`` (kJ/mol)^2, or None with fewer than two blocks.
        force_rms: of a component of the mapped forces, kJ/mol/nm.
        residual_rms: of what the model leaves, kJ/mol/nm; mostly the noise of the atoms that were averaged out.
        explained: share of the forces' variance that the model explains.
        frames: frames that went in.
    """

    model: CoarseModel
    coefficients: FloatArray
    covariance: FloatArray | None
    force_rms: float
    residual_rms: float
    explained: float
    frames: int


class ForceMatcher:
    """Collects normal equations from frames with forces.

    Args:
        layout: the basis.
    """

    def __init__(self, layout: ModelLayout) -> None:
        self.layout = layout
        # The Gram matrix of [design | forces]: normal matrix, right-hand side and squared forces in one.
        self._sums = BlockSums((layout.size + 1,) * 2)

    def add(self, frames: BeadFrames) -> None:
        """Add a chunk of frames.

        Raises:
            TrajectoryError: the frames carry no forces, or some that are not finite.
        """
        if frames.forces is None:
            raise TrajectoryError(
                "a trajectory without forces",
                expected="forces on the beads for force matching",
                remedy="map a .trr whose run wrote them (nstfout in the mdp file)",
            )
        if not np.isfinite(frames.forces).all():
            raise TrajectoryError("forces that are not finite", expected="finite numbers")
        for design, forces in zip(self.layout.forces(frames), frames.forces, strict=True):
            rows = np.concatenate([design.reshape(-1, self.layout.size), forces.reshape(-1, 1)], axis=1)
            self._sums.add(rows.T @ rows)

    def solve(self, roughness_kT: float = 1.0, ridge: float = 0.0, variance: float | None = None) -> ForceFit:
        """Solve the normal equations.

        Minimises ``|f - A x|^2 / variance + x^T (R / kT^2 + ridge) x``: with the variance of what remains, the
        roughness prior R weighs as much as it should.

        Args:
            roughness_kT: prior standard deviation of third differences of coefficients (second ones on a circle).
            ridge: further precision of every coefficient, (kJ/mol)^-2.
            variance: of a force component about the model, (kJ/mol/nm)^2; by default what a first solve leaves.

        Raises:
            TrajectoryError: no frames were added.
            SettingsError: the data do not determine the potential.
        """
        if not self._sums.frames:
            raise TrajectoryError("a trajectory without frames", expected="at least one")
        gram = self._sums.total
        components = 3 * self.layout.topology.n_beads * self._sums.frames
        mean_square = gram[-1, -1] / components
        prior = self.layout.prior(roughness_kT) / self.layout.model.kT**2 + ridge * np.eye(self.layout.size)
        if variance is None:
            first = _minimum(gram, prior, max(mean_square, 1e-300))
            variance = max(_left(gram, first) / components, 1e-10 * mean_square, 1e-300)
        x = _minimum(gram, prior, variance)
        left = _left(gram, x) / components
        covariance = self._covariance(x, gram[:-1, :-1] / variance + prior, variance)
        return ForceFit(
            self.layout.with_vector(x, covariance),
            x,
            covariance,
            float(np.sqrt(mean_square)),
            float(np.sqrt(left)),
            float(1.0 - left / mean_square) if mean_square > 0 else 0.0,
            self._sums.frames,
        )

    def _covariance(self, x: FloatArray, hessian: FloatArray, variance: float) -> FloatArray | None:
        """Sandwich ``H^-1 S H^-1``, S the scatter of the blocks' gradients."""
        blocks = self._sums.full
        if len(blocks) < 2:
            return None
        gradients = (blocks[:, :-1, -1] - blocks[:, :-1, :-1] @ x) / variance
        gradients = gradients - gradients.mean(axis=0)
        (moved,) = solve_positive(hessian, gradients.T)
        share = self._sums.frames / (len(blocks) * self._sums.length)  # of the last block, which is not complete
        return np.asarray(moved @ moved.T) * share * len(blocks) / (len(blocks) - 1)


def _minimum(gram: FloatArray, prior: FloatArray, variance: float) -> FloatArray:
    (x,) = solve_positive(gram[:-1, :-1] / variance + prior, gram[:-1, -1] / variance)
    return x


def _left(gram: FloatArray, x: FloatArray) -> float:
    """Squared residual ``|f - A x|^2`` of all components."""
    return max(float(gram[-1, -1] - 2.0 * x @ gram[:-1, -1] + x @ gram[:-1, :-1] @ x), 0.0)
