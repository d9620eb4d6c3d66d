"""Steric clashes, judged by the force field's own radii."""

from __future__ import annotations

import numpy as np

from ccg_gmx.molecule.topology import Topology
from ccg_gmx.records import FloatArray

CLASH_FACTOR = 0.7
"""A pair closer than this part of its Lennard-Jones minimum clashes: repulsion of about 55 well depths. Hydrogen bonds
of fine MD reach 0.8 (half of the frames of alanine dipeptide); a stricter mark would call real structures clashes."""


def clash_fraction(topology: Topology, positions: FloatArray) -> float:
    """Return the fraction of frames in which some pair of atoms clashes.

    Only pairs more than three bonds apart count: nearer ones are held by bonded terms.

    Args:
        topology: parameters, for Lennard-Jones radii and the bond graph.
        positions: ``[T, N, 3]`` nm.

    Returns:
        Fraction of the T frames with at least one clash.
    """
    first, second = distant_pairs(topology)
    closest = contact_distance(topology, first, second)
    frames = np.zeros(len(positions), dtype=bool)
    for begin in range(0, len(positions), 4096):  # bounds the memory
        block = positions[begin : begin + 4096]
        distance = np.linalg.norm(block[:, first] - block[:, second], axis=-1)
        frames[begin : begin + 4096] = (distance < closest).any(axis=1)
    return float(frames.mean())


def distant_pairs(topology: Topology) -> tuple[np.ndarray, np.ndarray]:
    """Return the atom pairs (i < j) separated by more than three bonds: two ``[P]`` index arrays."""
    n = len(topology.names)
    adjacent = np.eye(n, dtype=bool)
    adjacent[topology.bonds[:, 0], topology.bonds[:, 1]] = True
    adjacent |= adjacent.T
    within = (np.linalg.matrix_power(adjacent.astype(np.int64), 3) > 0) | adjacent
    first, second = np.nonzero(np.triu(~within, k=1))
    return first, second


def contact_distance(topology: Topology, first: np.ndarray, second: np.ndarray) -> FloatArray:
    """Return ``[P]`` nm: the clash distance of every pair, 0 where the force field has no repulsion."""
    types = topology.types
    c6 = topology.c6[types[first], types[second]]
    c12 = topology.c12[types[first], types[second]]
    minimum = np.zeros_like(c6)
    present = (c6 > 0) & (c12 > 0)
    minimum[present] = (2 * c12[present] / c6[present]) ** (1 / 6)
    return CLASH_FACTOR * minimum
