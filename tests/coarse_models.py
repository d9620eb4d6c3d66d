"""Coarse models with analytic values, for the tests of exports: a chain with every kind of term, and a bulk of trimers.

Bonds and angles are harmonic and pairs ``A (r_c - r)^3``: splines hold them exactly.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np

from ccg_gmx.molecule.coarse_topology import BondedType, CoarseMoleculeType, CoarseTopology
from ccg_gmx.potential.curves import Curve, CurveKind, TorsionMap
from ccg_gmx.potential.model import CoarseModel
from ccg_gmx.records import BeadFrames, FloatArray

BOND_K, BOND_0 = 1e5, 0.15
ANGLE_K, ANGLE_0 = 200.0, 2.0
CUTOFF = 0.9
PAIRS = {("A", "A"): 60.0, ("A", "B"): 40.0}
BEADS = 6


def bond_energy(r: FloatArray) -> FloatArray:
    return 0.5 * BOND_K * (r - BOND_0) ** 2


def angle_energy(theta: FloatArray) -> FloatArray:
    return 0.5 * ANGLE_K * (theta - ANGLE_0) ** 2


def dihedral_energy(phi: FloatArray) -> FloatArray:
    return 3.0 * (1.0 + np.cos(2.0 * phi - 0.7)) + 2.0 * np.sin(phi)


def map_energy(phi: FloatArray, psi: FloatArray) -> FloatArray:
    """Without any symmetry that could hide a swapped axis or sign."""
    mixed = 0.7 * np.cos(phi + 2.0 * psi) + 0.5 * np.sin(3.0 * psi - phi)
    return 2.0 * np.cos(phi - 0.5) + np.cos(psi + 1.0) + mixed


def pair_energy(types: tuple[str, str], r: FloatArray) -> FloatArray:
    return PAIRS.get(types, 0.0) * np.maximum(CUTOFF - r, 0.0) ** 3


def curve(kind: CurveKind, lo: float, hi: float, intervals: int, energy: Callable[[FloatArray], FloatArray]) -> Curve:
    """Least-squares spline of a function."""
    size = intervals if kind == "dihedral" else intervals + 3
    empty = Curve(kind, lo, hi, np.zeros(size))
    x = np.linspace(lo, hi, 8 * intervals + 1)[:-1]
    design, coefficients = empty.design(x).toarray()[:, : empty.free], np.zeros(size)
    coefficients[: empty.free] = np.linalg.lstsq(design, energy(x), rcond=None)[0]
    return Curve(kind, lo, hi, coefficients)


def torsion_map(knots: int) -> TorsionMap:
    """Periodic spline through the values at the knots: weights 1/6, 4/6, 1/6 on both axes, undone by Fourier."""
    x = -math.pi + 2 * math.pi * np.arange(knots) / knots
    values = map_energy(*np.meshgrid(x, x, indexing="ij"))
    weights = (2.0 + np.cos(2 * math.pi * np.fft.fftfreq(knots))) / 3.0
    return TorsionMap(np.fft.ifft2(np.fft.fft2(values) / np.outer(weights, weights)).real)


def pair_curves() -> dict[tuple[str, str], Curve]:
    """A-A and A-B; two B do not interact."""
    return {
        types: curve("pair", 0.1, CUTOFF, 40, lambda r, types=types: pair_energy(types, r))  # type: ignore[misc]
        for types in PAIRS
    }


def bonded_curves() -> dict[str, Curve]:
    return {
        "bond": curve("bond", 0.12, 0.18, 8, bond_energy),
        "bend": curve("angle", 1.4, 2.6, 8, angle_energy),
    }


def chain(knots: int = 24, nrexcl: int = 2) -> tuple[CoarseModel, CoarseTopology]:
    """One molecule of six beads with bonds, angles, a dihedral, a map over two torsions, and pairs."""
    curves = bonded_curves() | {"turn": curve("dihedral", -math.pi, math.pi, 96, dihedral_energy)}
    molecule = CoarseMoleculeType(
        name="CHAIN",
        bead_names=tuple(f"C{i + 1}" for i in range(BEADS)),
        bead_types=("A", "B") * (BEADS // 2),
        masses=(30.0,) * BEADS,
        residue_names=("RES",) * BEADS,
        residue_ids=(1,) * BEADS,
        bonded=(
            BondedType("bond", "bond", tuple(itertools.pairwise(range(BEADS)))),
            BondedType("bend", "angle", tuple((i, i + 1, i + 2) for i in range(BEADS - 2))),
            BondedType("turn", "dihedral", ((0, 1, 2, 3),)),
            BondedType("map", "cmap", ((1, 2, 3, 4, 5),)),
        ),
        exclusions=neighbours(BEADS, nrexcl),
    )
    return CoarseModel(300.0, curves, {"map": torsion_map(knots)}, pair_curves()), CoarseTopology(((molecule, 1),))


def bulk(nrexcl: int = 1, copies: int = 20, solvent: int = 50) -> tuple[CoarseModel, CoarseTopology]:
    """Trimers A-B-A, whose ends have different masses, among single beads B."""
    trimer = CoarseMoleculeType(
        name="TRI",
        bead_names=("A1", "B1", "A2"),
        bead_types=("A", "B", "A"),
        masses=(30.0, 40.0, 35.0),
        residue_names=("TRI",) * 3,
        residue_ids=(1,) * 3,
        bonded=(BondedType("bond", "bond", ((0, 1), (1, 2))), BondedType("bend", "angle", ((0, 1, 2),))),
        exclusions=neighbours(3, nrexcl),
    )
    single = CoarseMoleculeType("SOL", ("W",), ("B",), (40.0,), ("SOL",), (1,))
    return CoarseModel(300.0, bonded_curves(), {}, pair_curves()), CoarseTopology(((trimer, copies), (single, solvent)))


def neighbours(n: int, bonds: int) -> tuple[tuple[int, int], ...]:
    """Pairs of a chain within so many bonds."""
    return tuple((i, j) for i in range(n) for j in range(i + 1, min(n, i + bonds + 1)))


def grow(bonds: FloatArray, angles: FloatArray, torsions: FloatArray) -> FloatArray:
    """Chains ``[T, n, 3]`` from bonds ``[T, n-1]``, angles ``[T, n-2]`` and torsions ``[T, n-3]``."""
    x = np.zeros((len(bonds), bonds.shape[1] + 1, 3))
    x[:, 1, 0] = bonds[:, 0]
    for k in range(2, x.shape[1]):
        ahead = (x[:, k - 1] - x[:, k - 2]) / bonds[:, k - 2, None]
        before = x[:, k - 2] - x[:, k - 3] if k > 2 else np.array([[0.0, 1.0, 0.0]])
        normal = np.cross(before, ahead)
        normal /= np.linalg.norm(normal, axis=1, keepdims=True)
        torsion = torsions[:, k - 3, None] if k > 2 else np.zeros((len(bonds), 1))
        side = np.cos(torsion) * np.cross(normal, ahead) + np.sin(torsion) * normal
        theta = angles[:, k - 2, None]
        x[:, k] = x[:, k - 1] + bonds[:, k - 1, None] * (np.sin(theta) * side - np.cos(theta) * ahead)
    return x


def chain_frames(count: int, seed: int) -> tuple[BeadFrames, FloatArray, FloatArray, FloatArray]:
    """Frames of :func:`chain` with uniform torsions, and their bonds, angles and torsions."""
    rng = np.random.default_rng(seed)
    bonds = rng.normal(BOND_0, 0.005, (count, BEADS - 1))
    angles = rng.normal(ANGLE_0, 0.1, (count, BEADS - 2))
    torsions = rng.uniform(-math.pi, math.pi, (count, BEADS - 3))
    return BeadFrames(grow(bonds, angles, torsions), np.arange(count, dtype=np.float64)), bonds, angles, torsions


def bulk_frames(topology: CoarseTopology, count: int, seed: int, tilted: bool) -> BeadFrames:
    """Frames of :func:`bulk`, a molecule at each place of a lattice, some of them across the box's faces."""
    rng = np.random.default_rng(seed)
    box = np.array([[2.6, 0.0, 0.0], [0.5 * tilted, 2.5, 0.0], [0.4 * tilted, -0.6 * tilted, 2.7]])
    (_, trimers), (_, singles) = topology.molecules
    lattice = np.stack(np.unravel_index(np.arange(trimers + singles), (5, 5, 5)), axis=1) / 5 @ box
    shape = (count * trimers, 1)
    bonds, angles = rng.normal(BOND_0, 0.005, (*shape[:1], 2)), rng.normal(ANGLE_0, 0.1, shape)
    trimer = grow(bonds, angles, np.zeros((shape[0], 0))).reshape(count, trimers, 3, 3)
    placed = (trimer + lattice[None, :trimers, None]).reshape(count, -1, 3)
    rest = np.broadcast_to(lattice[trimers:], (count, singles, 3))
    x = np.concatenate([placed, rest], axis=1) + rng.normal(0.0, 0.01, (count, topology.n_beads, 3))
    return BeadFrames(x, np.arange(count, dtype=np.float64), np.tile(box, (count, 1, 1)))
