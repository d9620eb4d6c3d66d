"""Where the next coarse points are drawn: a density on the torsion grid, known exactly, so it can be divided out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ccg_gmx.records import FloatArray


@dataclass(frozen=True)
class GridProposal:
    """Piecewise constant density over the torsions, one value per cell of the periodic grid.

    Attributes:
        probability: ``[n]`` or ``[n, n]``, sums to 1; cell i is centred on -pi + i 2 pi / n.
    """

    probability: FloatArray

    @property
    def n_s(self) -> int:
        """Number of torsions."""
        return self.probability.ndim

    def draw(self, count: int, rng: np.random.Generator) -> FloatArray:
        """Return ``[count, n_s]`` radians in [-pi, pi), stratified over the cells, so that points cover them evenly."""
        cumulative = np.cumsum(self.probability.ravel())
        uniform = (np.arange(count) + rng.random(count)) / count * cumulative[-1]
        cells = np.minimum(np.searchsorted(cumulative, uniform, side="right"), cumulative.size - 1)
        index = np.stack(np.unravel_index(rng.permutation(cells), self.probability.shape), axis=-1)
        width = 2 * np.pi / self.probability.shape[0]
        s = -np.pi + (index + rng.random((count, self.n_s)) - 0.5) * width
        return (s + np.pi) % (2 * np.pi) - np.pi

    def log_density(self, s: FloatArray) -> FloatArray:
        """Return the log-density per radian^n_s at ``s [M, n_s]``: ``[M]``."""
        n = self.probability.shape[0]
        width = 2 * np.pi / n
        index = np.floor((s + np.pi) / width + 0.5).astype(int) % n
        return np.log(self.probability[tuple(index.T)]) - self.n_s * np.log(width)

    def save(self, path: Path) -> None:
        """Write as .npz."""
        np.savez(path, probability=self.probability)

    @classmethod
    def load(cls, path: Path) -> GridProposal:
        """Read what ``save`` wrote."""
        with np.load(path, allow_pickle=False) as data:
            return cls(data["probability"])


def uniform_proposal(n: int, n_s: int) -> GridProposal:
    """Return the flat density over ``n_s`` torsions."""
    return GridProposal(np.full((n,) * n_s, float(n) ** -n_s))


def mixture_proposal(
    f: FloatArray, coarse: FloatArray | None, *, uniform: float, coarse_fraction: float, temperature_factor: float
) -> GridProposal:
    """Mix a uniform floor, the Boltzmann density of ``f`` at a raised temperature, and the density of coarse MD.

    Args:
        f: ``[n]`` or ``[n, n]`` kT, finite.
        coarse: same shape, density of the coarse run's frames (any normalisation), or None.
        uniform: weight of the uniform part; positive, so no point of the torus is ever out of reach.
        coarse_fraction: weight of the coarse part.
        temperature_factor: the Boltzmann part is exp(-f / temperature_factor).
    """
    raised = np.exp(-(f - f.min()) / temperature_factor)
    flat = np.full_like(f, 1.0 / f.size)
    if coarse is None:
        coarse_fraction, coarse = 0.0, flat
    rest = 1.0 - uniform - coarse_fraction
    density = uniform * flat + rest * raised / raised.sum() + coarse_fraction * coarse / coarse.sum()
    return GridProposal(density / density.sum())
