"""Theory of the slowest step: two states, their cores, counted transitions, and the forward KL that follows.

A time average over T of a two-state process with rates k_ab and k_ba has the variance ``2 tau p_a p_b / T`` with
``tau = 1 / (k_ab + k_ba)``, and an error d of p_b costs the forward KL ``d^2 / (2 p_a p_b)``: on average ``tau / T``.
All other modes add to it, so it is a lower bound for a histogram of plain MD in the limit of long T.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.ndimage import label
from scipy.sparse import coo_matrix, csc_matrix
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import spsolve

from ccg_gmx.errors import CcgError
from ccg_gmx.free_energy.surface import Basin, grid, probability
from ccg_gmx.records import FloatArray, FreeEnergySurface, IntArray

CORE_KT = 1.5
"""A core reaches this far above the minimum of its basin."""


@dataclass(frozen=True, eq=False)
class TwoStates:
    """Two metastable states on a torsion grid.

    Attributes:
        core: ``[n, n]`` 0 in the core of the first state, 1 in that of the second, -1 elsewhere.
        committor: ``[n, n]`` probability to reach the second core first, of overdamped diffusion on the surface.
        p_b: equilibrium population of the second state, the average of the committor.
    """

    core: IntArray
    committor: FloatArray
    p_b: float


@dataclass(frozen=True)
class Transitions:
    """What walkers did between the cores; time belongs to the core visited last.

    Attributes:
        n_ab: transitions from the first core to the second.
        n_ba: transitions back.
        steps_a: steps spent in the first state, all walkers together.
        steps_b: steps spent in the second.
    """

    n_ab: int = 0
    n_ba: int = 0
    steps_a: float = 0.0
    steps_b: float = 0.0

    def __add__(self, other: Transitions) -> Transitions:
        """Pool two sets of walkers."""
        return Transitions(
            self.n_ab + other.n_ab,
            self.n_ba + other.n_ba,
            self.steps_a + other.steps_a,
            self.steps_b + other.steps_b,
        )


@dataclass(frozen=True)
class Relaxation:
    """The relaxation time of the two states.

    Attributes:
        tau_steps: 1 / (k_ab + k_ba) in steps, which is also c of KL = c / N.
        tau_error: its standard error (Poisson statistics of the transitions).
        transitions: number of transitions it comes from.
        lifetime_b_steps: mean time from the second core to the first, in steps.
    """

    tau_steps: float
    tau_error: float
    transitions: int
    lifetime_b_steps: float

    def row(self) -> dict[str, Any]:
        """The numbers for JSON."""
        return asdict(self)


def two_states(reference: FreeEnergySurface, first: Basin, second: Basin) -> TwoStates:
    """Find cores and populations of two basins on a reference surface.

    A core is the connected region around the lowest point of a basin, up to 1.5 kT above it. States are told apart by
    the committor rather than by the boxes: where a box's edge cuts through a basin, its bins still belong to it.
    Populations as committor averages: C. Schuette et al., J. Chem. Phys. 134, 204105 (2011), doi:10.1063/1.3590108.

    Args:
        reference: surface of two torsions.
        first: box around the first state.
        second: box around the second.

    Raises:
        CcgError: if the cores overlap or are not connected on the surface.
    """
    points = grid(len(reference.f), reference.f.ndim)
    shape = reference.f.shape
    cores = [_core(reference.f, basin.mask(points, reference.names).reshape(shape)) for basin in (first, second)]
    if (cores[0] & cores[1]).any():
        raise CcgError(f"the basins {first.name} and {second.name} have one common core", remedy="name others")
    core = np.where(cores[0], 0, np.where(cores[1], 1, -1)).astype(np.int64)
    committor = _committor(reference, core)
    return TwoStates(core, committor, float((probability(reference) * committor).sum()))


def relaxation(transitions: Transitions, p_b: float) -> Relaxation | None:
    """Maximum-likelihood relaxation time under detailed balance, ``k_ab p_a = k_ba p_b``.

    Both directions are Poisson counts of the one unknown k_ba: ``n_ba`` in the time b, ``n_ab`` in the time a times
    p_b / p_a.

    Args:
        transitions: what was counted.
        p_b: equilibrium population of the second state, from the reference.

    Returns:
        None if no transition was seen.
    """
    count = transitions.n_ab + transitions.n_ba
    if not count:
        return None
    exposure = transitions.steps_b + transitions.steps_a * p_b / (1 - p_b)
    lifetime = exposure / count
    tau = lifetime * (1 - p_b)
    return Relaxation(tau, tau / math.sqrt(count), count, lifetime)


def short_walker_factor(length: float, tau: float) -> float:
    """Variance of a time average over independent equilibrium walkers of this length, over that of one long run.

    Below 1: resampled starts know the populations already. ``1 - (tau / t) (1 - exp(-t / tau))``.

    Args:
        length: of each walker.
        tau: relaxation time, in the same unit.
    """
    ratio = tau / length
    return 1 + ratio * math.expm1(-1 / ratio)


def _core(f: FloatArray, inside: np.ndarray[Any, np.dtype[np.bool_]]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Connected region (the grid is periodic) around the lowest local minimum in the box, up to 1.5 kT above it."""
    neighbours = [np.roll(f, shift, axis) for axis in range(f.ndim) for shift in (1, -1)]
    minima = inside & np.isfinite(f) & (f <= np.min(neighbours, axis=0))
    if not minima.any():
        raise CcgError("a basin holds no minimum of the reference surface", remedy="name others")
    lowest = int(np.argmin(np.where(minima, f, np.inf)))
    tiled, _ = label(np.tile(f <= f.flat[lowest] + CORE_KT, (3,) * f.ndim))
    n = len(f)
    centre = tuple(index + n for index in np.unravel_index(lowest, f.shape))
    region = tiled == tiled[centre]
    blocks = region.reshape(sum(((3, n) for _ in range(f.ndim)), ()))
    return np.asarray(blocks.any(axis=tuple(range(0, 2 * f.ndim, 2))))


def _committor(reference: FreeEnergySurface, core: IntArray) -> FloatArray:
    """Solve for the committor with rates sqrt(p_i p_j) between neighbouring bins (detailed balance)."""
    root = np.sqrt(probability(reference)).ravel()
    index = np.arange(root.size).reshape(core.shape)
    ends = [(index.ravel(), np.roll(index, 1, axis).ravel()) for axis in range(core.ndim)]
    i, j = (np.concatenate(side) for side in zip(*ends, strict=True))
    flow = root[i] * root[j]
    rows, columns, values = np.concatenate([i, j]), np.concatenate([j, i]), np.concatenate([flow, flow])
    linked = csc_matrix(coo_matrix((values, (rows, columns)), shape=(root.size, root.size)))
    linked.eliminate_zeros()
    out = np.asarray(linked.sum(axis=1)).ravel()
    flat = core.ravel()
    committor = (flat == 1).astype(np.float64)
    component = connected_components(linked, directed=False)[1]
    home = component[np.flatnonzero(flat == 0)[0]]
    if (component[flat >= 0] != home).any():
        raise CcgError("the two basins are not connected on the reference surface", remedy="name others")
    free = (flat < 0) & (component == home)  # islands among unvisited bins hold next to nothing; they count as state a
    matrix = csc_matrix((out, (np.arange(root.size),) * 2)) - linked
    committor[free] = spsolve(matrix[free][:, free], np.asarray(linked[free] @ committor).ravel())
    return np.clip(committor, 0.0, 1.0).reshape(core.shape)
