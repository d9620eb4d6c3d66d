"""Energies, forces and virials of bead frames in a coarse model, compiled."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ccg_gmx.errors import SettingsError
from ccg_gmx.molecule.coarse_topology import CoarseTopology
from ccg_gmx.potential import bead_kernel
from ccg_gmx.potential.curves import Curve
from ccg_gmx.potential.geometry import BondedGeometry
from ccg_gmx.potential.model import CoarseModel
from ccg_gmx.potential.pair_list import PairFinder
from ccg_gmx.records import BeadFrames, FloatArray, IntArray


@dataclass(frozen=True)
class Energies:
    """What a coarse model says about T frames of n beads.

    Attributes:
        terms: ``[T]`` kJ/mol of each bonded term by name and of each pair of types as ``pair A-B``.
        total: ``[T]`` kJ/mol.
        forces: ``[T, n, 3]`` kJ/mol/nm.
        virial: ``[T, 3, 3]`` kJ/mol, ``sum_ij F_ij (outer) r_ij`` (the pressure is ``(2 E_kin + trace) / 3V``);
            GROMACS' virial is -1/2 of it.
    """

    terms: dict[str, FloatArray]
    total: FloatArray
    forces: FloatArray
    virial: FloatArray


def curve_numbers(curve: Curve) -> FloatArray:
    """What the kernels want to know of a curve besides its coefficients, ``[9]``.

    lo, hi, spacing, then value, slope and curvature at the lower and at the upper edge, walls included.
    """
    edges = np.array([curve.lo, curve.hi])
    taylor = np.stack([curve.term.design(edges, order) @ curve.coefficients for order in range(3)], axis=1)
    taylor[:, 2] += curve.walls
    if curve.kind == "pair":
        taylor[1] = 0.0
    return np.concatenate([[curve.lo, curve.hi, curve.spacing], taylor.ravel()])


@dataclass(frozen=True)
class PackedPairs:
    """The pair curves of a model as flat arrays, for beads of a topology.

    Attributes:
        keys: pairs of types, K of them.
        types: ``[n]`` type of each bead.
        curve_of: ``[types, types]`` number of the curve, -1 where there is none.
        numbers: ``[K, 9]`` of :func:`curve_numbers`.
        coefficients: all curves', one after the other.
        starts: ``[K]`` where each begins.
    """

    keys: tuple[tuple[str, str], ...]
    types: IntArray
    curve_of: IntArray
    numbers: FloatArray
    coefficients: FloatArray
    starts: IntArray

    @classmethod
    def of(cls, model: CoarseModel, topology: CoarseTopology) -> PackedPairs:
        """Pack the pairs of a model."""
        keys = tuple(model.pairs)
        curves = [model.pairs[key] for key in keys]
        sizes = np.array([0, *(curve.size for curve in curves)], dtype=np.int64)
        return cls(
            keys,
            topology.type_index,
            curve_table(keys, topology),
            np.array([curve_numbers(curve) for curve in curves]).reshape(-1, 9),
            np.concatenate([np.zeros(0), *(curve.coefficients for curve in curves)]),
            np.cumsum(sizes)[:-1],
        )


def curve_table(keys: tuple[tuple[str, str], ...], topology: CoarseTopology) -> IntArray:
    """``[types, types]`` place of each pair of types in ``keys``, -1 where it is not among them."""
    table = np.full((len(topology.types),) * 2, -1, dtype=np.int64)
    for k, (first, second) in enumerate(keys):
        i, j = topology.types.index(first), topology.types.index(second)
        table[i, j] = table[j, i] = k
    return table


def energies_and_forces(model: CoarseModel, topology: CoarseTopology, frames: BeadFrames) -> Energies:
    """Evaluate a model on frames.

    Boxes may be triclinic; distances are to the nearest image, so the cut-off must not exceed half the shortest
    distance between faces. Excluded pairs do not interact.

    Args:
        model: the potential.
        topology: beads, bonded terms, exclusions.
        frames: positions and boxes; forces in them are not looked at.

    Raises:
        SettingsError: model, topology and frames do not fit, or the box is too small.
    """
    model.check(topology)
    check_frames(topology, frames)
    count, n, _ = frames.positions.shape
    forces, virial = np.zeros((count, n, 3)), np.zeros((count, 3, 3))
    terms = _bonded(model, topology, frames, forces, virial)
    terms |= _pairs(model, topology, frames, forces, virial)
    total = np.sum([np.zeros(count), *terms.values()], axis=0)
    return Energies(terms, total, forces, virial)


def check_frames(topology: CoarseTopology, frames: BeadFrames) -> None:
    """Refuse frames of another system, or with positions that are no numbers.

    Raises:
        SettingsError: see above.
    """
    if frames.positions.ndim != 3 or frames.positions.shape[1:] != (topology.n_beads, 3):
        raise SettingsError(
            f"frames of shape {frames.positions.shape}",
            expected=f"(T, {topology.n_beads}, 3), the beads of the coarse topology",
        )
    if not np.isfinite(frames.positions).all():
        raise SettingsError("positions that are not finite", expected="finite numbers", remedy="look at the trajectory")


def _bonded(
    model: CoarseModel, topology: CoarseTopology, frames: BeadFrames, forces: FloatArray, virial: FloatArray
) -> dict[str, FloatArray]:
    """Energies of bonded terms by name; forces and virial are added to."""
    geometry = BondedGeometry(topology, frames)
    terms = {}
    for name in topology.bonded_names:
        parts = geometry.term(name)
        if name in model.maps:
            value, *slopes = model.maps[name].value_and_gradient(parts[0].values, parts[1].values)
        else:
            value, slope = curve_values(model.bonded[name], parts[0].values)
            slopes = [slope]
        for part, slope in zip(parts, slopes, strict=True):
            geometry.add_forces(part, slope, forces, virial)
        terms[name] = value.sum(axis=1)
    return terms


def curve_values(curve: Curve, x: FloatArray) -> tuple[FloatArray, FloatArray]:
    """:meth:`Curve.value_and_slope`, compiled, for a bond, angle or dihedral."""
    if curve.kind == "dihedral":
        value, slope = bead_kernel.circle_values(x.ravel(), curve.coefficients)
    else:
        value, slope = bead_kernel.curve_values(x.ravel(), curve_numbers(curve), curve.coefficients)
    return value.reshape(x.shape), slope.reshape(x.shape)


def _pairs(
    model: CoarseModel, topology: CoarseTopology, frames: BeadFrames, forces: FloatArray, virial: FloatArray
) -> dict[str, FloatArray]:
    """Energies of pairs by types; forces and virial are added to."""
    if not model.pairs:
        return {}
    packed = PackedPairs.of(model, topology)
    energy = np.zeros((len(frames.positions), len(packed.keys)))
    finder = PairFinder(topology.n_beads, model.cutoff, topology.excluded_pairs)
    arrays = (packed.types, packed.curve_of, packed.numbers, packed.coefficients, packed.starts)
    for t, pairs in enumerate(finder.over(frames)):
        bead_kernel.add_pairs(pairs.index, pairs.vectors, *arrays, energy[t], forces[t], virial[t])
    return {f"pair {'-'.join(key)}": energy[:, k] for k, key in enumerate(packed.keys)}
