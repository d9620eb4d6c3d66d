"""Fluids whose potential is known: Metropolis Monte Carlo of soft beads, and exact draws of two beads."""

from __future__ import annotations

import numpy as np
from numba import njit

from ccg_gmx.molecule.coarse_topology import CoarseMoleculeType, CoarseTopology
from ccg_gmx.potential.curves import Curve
from ccg_gmx.potential.model import CoarseModel
from ccg_gmx.records import BeadFrames

TEMPERATURE = 300.0


def beads(count: int) -> CoarseTopology:
    one = CoarseMoleculeType("W", ("W",), ("W",), (18.0,), ("W",), (1,))
    return CoarseTopology(((one, count),))


def known_pair(cutoff: float = 0.9) -> CoarseModel:
    """A repulsive core, a well of about one kT, nothing at the cut-off; itself a spline of ours."""
    places = 0.28 + (np.arange(34) - 1) * (cutoff - 0.28) / 31
    values = 60.0 * np.exp(-(places - 0.28) / 0.035) - 2.5 * np.exp(-(((places - 0.48) / 0.08) ** 2))
    values[-3:] = 0.0
    return CoarseModel(TEMPERATURE, pairs={("W", "W"): Curve("pair", 0.28, cutoff, values, None, 5e4)})


def monte_carlo(model: CoarseModel, count: int, box: float, frames: int, seed: int, stride: int = 4) -> BeadFrames:
    """Frames of a fluid, ``stride`` sweeps apart, after settling."""
    curve = model.pairs["W", "W"]
    table = curve.value_and_slope(np.sqrt(np.linspace(0.0, curve.hi**2, 20001)))[0] / model.kT
    rng = np.random.default_rng(seed)
    side = int(np.ceil(count ** (1 / 3)))
    lattice = np.stack(np.meshgrid(*[np.arange(side)] * 3), axis=-1).reshape(-1, 3)[:count] * box / side
    x = lattice + 0.01 * rng.normal(size=lattice.shape)
    positions = _walk(rng, x, box, table, curve.hi**2, frames, stride, 300, 0.12)
    cell = np.tile(np.eye(3) * box, (frames, 1, 1))
    return BeadFrames(positions, np.arange(float(frames)), cell)


@njit(cache=True)
def _walk(rng, x, box, table, square, frames, stride, settle, reach):
    n = len(x)
    kept = np.empty((frames, n, 3))
    scale = (len(table) - 1) / square
    new = np.empty(3)
    for sweep in range(settle + frames * stride):
        for _ in range(n):
            i = rng.integers(0, n)
            for k in range(3):
                new[k] = x[i, k] + reach * (2 * rng.random() - 1)
            change = 0.0
            for j in range(n):
                if j == i:
                    continue
                before, after = 0.0, 0.0
                for k in range(3):
                    d = x[i, k] - x[j, k]
                    d -= box * np.rint(d / box)
                    before += d * d
                    d = new[k] - x[j, k]
                    d -= box * np.rint(d / box)
                    after += d * d
                if before < square:
                    change -= table[int(before * scale + 0.5)]
                if after < square:
                    change += table[int(after * scale + 0.5)]
            if change <= 0 or rng.random() < np.exp(-change):
                x[i] = new
        if sweep >= settle and (sweep - settle) % stride == stride - 1:
            kept[(sweep - settle) // stride] = x
    return kept


def two_beads(model: CoarseModel, box: float, frames: int, seed: int) -> BeadFrames:
    """Independent exact draws of two beads in a box: ``g`` is ``exp(-V / kT)`` up to a factor, whatever V."""
    curve = model.pairs["W", "W"]
    rng = np.random.default_rng(seed)
    kept: list[np.ndarray] = []
    lowest = curve.table(2000)[1].min()
    while sum(map(len, kept)) < frames:
        d = box * (rng.uniform(size=(8 * frames, 3)) - 0.5)
        energy = curve.value_and_slope(np.linalg.norm(d, axis=1))[0] - min(lowest, 0.0)
        kept.append(d[rng.uniform(size=len(d)) < np.exp(-energy / model.kT)])
    second = np.concatenate(kept)[:frames]
    first = rng.uniform(size=(frames, 3)) * box
    cell = np.tile(np.eye(3) * box, (frames, 1, 1))
    return BeadFrames(np.stack([first, first + second], axis=1), np.arange(float(frames)), cell)
