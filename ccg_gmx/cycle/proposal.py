"""Where the next coarse points are drawn: a density on the torsion grid, known exactly, so it can be divided out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ccg_gmx.errors import CcgError
from ccg_gmx.records import FloatArray, IntArray

_CELLS = {1: 100, 2: 100, 3: 36, 4: 24, 5: 12, 6: 12}


@dataclass(frozen=True)
class GridProposal:
    """Piecewise constant density over the torsions, one value per cell of the periodic grid.

    Attributes:
        probability: ``[n] * n_s``, sums to 1; cell i is centred on -pi + i 2 pi / n.
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
        width = 2 * np.pi / self.probability.shape[0]
        return np.log(self.probability[self.cell(s)]) - self.n_s * np.log(width)

    def cell(self, s: FloatArray) -> tuple[IntArray, ...]:
        """Index of the cell that each of ``s [M, n_s]`` lies in, one ``[M]`` array per torsion."""
        n = self.probability.shape[0]
        index = np.floor((s + np.pi) * n / (2 * np.pi) + 0.5).astype(np.int64) % n
        return tuple(index.T)

    def save(self, path: Path) -> None:
        """Write as .npz."""
        np.savez(path, probability=self.probability)

    @classmethod
    def load(cls, path: Path) -> GridProposal:
        """Read what ``save`` wrote."""
        with np.load(path, allow_pickle=False) as data:
            return cls(data["probability"])


def cells_per_torsion(n_s: int) -> int:
    """Cells per torsion of a proposal: as fine as memory and the cost of a draw allow.

    Raises:
        CcgError: if there are no torsions, or more than six.
    """
    if n_s not in _CELLS:
        raise CcgError(f"{n_s} torsions", expected=f"1 to {max(_CELLS)}", remedy="choose fewer coarse torsions")
    return _CELLS[n_s]


def uniform_proposal(n: int | None, n_s: int) -> GridProposal:
    """Return the flat density over ``n_s`` torsions with ``n`` cells each (None: ``cells_per_torsion``)."""
    n = cells_per_torsion(n_s) if n is None else n
    return GridProposal(np.full((n,) * n_s, float(n) ** -n_s))


def mixture_proposal(
    f: FloatArray,
    coarse: FloatArray | None,
    *,
    uniform: float,
    coarse_fraction: float,
    temperature_factor: float,
    disagreement: FloatArray | None = None,
    disagreement_fraction: float = 0.0,
) -> GridProposal:
    """Mix a uniform floor, the Boltzmann density at a raised temperature, coarse MD, and where the ensemble disagrees.

    The last part goes as exp(-f / temperature_factor) times the variance of f among the ensemble's members: points
    where they differ, but only where it matters. A part that is not given leaves its weight to the Boltzmann part.

    Args:
        f: ``[n] * n_s`` kT, finite.
        coarse: same shape, density of the coarse run's frames (any normalisation), or None.
        uniform: weight of the uniform part; positive, so no point of the torus is ever out of reach.
        coarse_fraction: weight of the coarse part.
        temperature_factor: the Boltzmann part is exp(-f / temperature_factor).
        disagreement: same shape, variance of f among the members in kT^2, or None.
        disagreement_fraction: weight of the part where the members disagree.

    Raises:
        CcgError: if the floor is not positive, the weights exceed one, or the variances are no variances.
    """
    raised = _normalised(np.exp(-(f - f.min()) / temperature_factor))
    parts = [(uniform, np.full_like(f, 1.0 / f.size))]
    if coarse is not None:
        parts.append((coarse_fraction, _normalised(coarse)))
    if disagreement is not None:
        if not (np.isfinite(disagreement) & (disagreement >= 0)).all():
            raise CcgError("variances of f among the members that are negative or not finite", expected="kT^2 >= 0")
        if (raised * disagreement).any():  # members that agree everywhere ask for nothing
            parts.append((disagreement_fraction, _normalised(raised * disagreement)))
    rest = 1.0 - sum(weight for weight, _ in parts)
    if uniform <= 0 or rest < -1e-12 or any(weight < 0 for weight, _ in parts):
        raise CcgError(
            f"proposal weights {uniform:g} uniform, {coarse_fraction:g} coarse, {disagreement_fraction:g} disagreement",
            expected="a positive uniform part, none negative, and at most 1 in all",
        )
    return GridProposal(_normalised(max(rest, 0.0) * raised + sum(weight * part for weight, part in parts)))


def allocation(f: FloatArray, chi2: FloatArray, *, uniform: float, exponent: float = 0.5) -> GridProposal:
    """Density of coarse points that makes the most of a given number of draws, K being the same at every point.

    Neyman's allocation (J. R. Stat. Soc. 97 (1934) 558, doi:10.2307/2342192): to estimate a sum over strata, sample
    each in proportion to the standard deviation of its contribution. The strata are cells of s. The forward KL of a
    surface is 1/2 sum p var(f), with var(f) = chi^2 / draws, so points go as sqrt(p chi^2): exponent 1/2. Populations
    are sums of Z ~ p itself, known to Z sqrt(chi^2) per draw, so for them alone points would go as p sqrt(chi^2):
    exponent 1. It spends less on rare states: with the joint fit, on the torus of the tests, exponent 1/2 has the lower
    forward KL by a factor 1.5 and populations that are as good. The uniform floor guards against f and chi^2
    themselves being wrong where there were no draws, and keeps 1/rho bounded.

    Args:
        f: ``[n] * n_s`` kT, the best surface so far.
        chi2: same shape, smooth relative variance of one draw (``VarianceModel.on_grid``), positive.
        uniform: weight of the floor, in (0, 1].
        exponent: power of p, 1/2 for the surface or 1 for populations alone.

    Raises:
        CcgError: if the floor is no such weight, or chi2 is not positive and finite.
    """
    if not (0 < uniform <= 1 and (np.isfinite(chi2) & (chi2 > 0)).all()):
        raise CcgError(
            f"a floor of {uniform:g}, variances in [{np.min(chi2):g}, {np.max(chi2):g}]",
            expected="a floor in (0, 1], positive finite variances",
        )
    wanted = _normalised(np.exp(-exponent * (f - f.min())) * np.sqrt(chi2))
    return GridProposal(_normalised(uniform / f.size + (1 - uniform) * wanted))


def _normalised(density: FloatArray) -> FloatArray:
    return density / density.sum()
