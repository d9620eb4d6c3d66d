"""A coarse model as one vector of free coefficients, and what each of them does to energies and forces of a frame."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from scipy.linalg import block_diag

from ccg_gmx.molecule.coarse_topology import CoarseTopology
from ccg_gmx.potential import bead_kernel
from ccg_gmx.potential.curves import Curve, TorsionMap
from ccg_gmx.potential.evaluate import check_frames, curve_numbers, curve_table
from ccg_gmx.potential.geometry import BondedGeometry, TermGeometry
from ccg_gmx.potential.model import CoarseModel
from ccg_gmx.potential.pair_list import PairFinder
from ccg_gmx.potential.smooth_fit import curve_prior, map_prior, padded
from ccg_gmx.records import BeadFrames, FloatArray, IntArray

Part = Curve | TorsionMap


class ModelLayout:
    """Places of the free coefficients of all terms: bonded terms, then maps, then pairs, in the model's order.

    Args:
        model: its terms are the basis; its coefficients do not matter.
        topology: the beads.
    """

    def __init__(self, model: CoarseModel, topology: CoarseTopology) -> None:
        model.check(topology)
        self.model, self.topology = model, topology
        parts = self._parts(model)
        sizes = [part.free if isinstance(part, Curve) else part.coefficients.size for part in parts]
        ends = np.cumsum([0, *sizes])
        self.size = int(ends[-1])
        """Number of free coefficients F."""
        slices = [slice(int(a), int(b)) for a, b in itertools.pairwise(ends)]
        bonded, maps = len(model.bonded), len(model.maps)
        self.bonded = dict(zip(model.bonded, slices[:bonded], strict=True))
        self.maps = dict(zip(model.maps, slices[bonded : bonded + maps], strict=True))
        self.pairs = dict(zip(model.pairs, slices[bonded + maps :], strict=True))
        self._curve_of = curve_table(tuple(model.pairs), topology)
        self._numbers = np.array([curve_numbers(curve) for curve in model.pairs.values()]).reshape(-1, 9)
        self._starts = np.array([place.start for place in self.pairs.values()], dtype=np.int64)
        self._ends = np.array([place.stop for place in self.pairs.values()], dtype=np.int64)
        self._finder = PairFinder(topology.n_beads, model.cutoff, topology.excluded_pairs)

    @staticmethod
    def _parts(model: CoarseModel) -> list[Part]:
        return [*model.bonded.values(), *model.maps.values(), *model.pairs.values()]

    def vector(self, model: CoarseModel) -> FloatArray:
        """Free coefficients ``[F]`` of a model on this basis, kJ/mol."""
        return np.concatenate(
            [np.zeros(0)]
            + [
                part.coefficients[: part.free] if isinstance(part, Curve) else part.coefficients.ravel()
                for part in self._parts(model)
            ]
        )

    def with_vector(self, x: FloatArray, covariance: FloatArray | None = None) -> CoarseModel:
        """Model with the free coefficients ``x [F]`` (kJ/mol) and, of each term, its block of a covariance."""

        def curve(basis: Curve, place: slice) -> Curve:
            block = None if covariance is None else padded(basis, covariance[place, place])
            return replace(basis, coefficients=padded(basis, x[place]), covariance=block)

        def torsion_map(basis: TorsionMap, place: slice) -> TorsionMap:
            block = None if covariance is None else covariance[place, place]
            return TorsionMap(x[place].reshape(basis.coefficients.shape), block)

        return replace(
            self.model,
            bonded={name: curve(self.model.bonded[name], place) for name, place in self.bonded.items()},
            maps={name: torsion_map(self.model.maps[name], place) for name, place in self.maps.items()},
            pairs={key: curve(self.model.pairs[key], place) for key, place in self.pairs.items()},
        )

    def prior(self, roughness_kT: float) -> FloatArray:
        """Roughness and gauge ``[F, F]`` in kT^-2, see :func:`~ccg_gmx.potential.smooth_fit.curve_prior`."""
        blocks = [
            curve_prior(part, roughness_kT) if isinstance(part, Curve) else map_prior(part.grid, roughness_kT)
            for part in self._parts(self.model)
        ]
        return np.asarray(block_diag(*blocks), dtype=np.float64)

    def forces(self, frames: BeadFrames) -> Iterator[FloatArray]:
        """For each frame, ``[n, 3, F]`` force on each bead per unit of each coefficient; walls are left out."""
        check_frames(self.topology, frames)
        live = list(self._bonded_rows(frames, order=1))
        for t, pairs in enumerate(self._finder.over(frames)):
            design = np.zeros((self.topology.n_beads, 3, self.size))
            for part, columns, slopes in live:
                bead_kernel.add_bonded_design(part.beads, part.gradients[t], columns[t], slopes[t], design)
            bead_kernel.add_pair_design(*self._pair_arrays(pairs.index, pairs.vectors), design)
            yield design

    def features(self, frames: BeadFrames) -> Iterator[FloatArray]:
        """For each frame, ``[F]`` derivative of the energy by each coefficient; walls are left out."""
        check_frames(self.topology, frames)
        live = list(self._bonded_rows(frames, order=0))
        for t, pairs in enumerate(self._finder.over(frames)):
            features = np.zeros(self.size)
            for _, columns, weights in live:
                features += np.bincount(columns[t].ravel(), weights[t].ravel(), self.size)
            bead_kernel.add_pair_features(*self._pair_arrays(pairs.index, pairs.vectors), features)
            yield features

    def _pair_arrays(self, index: IntArray, vectors: FloatArray) -> tuple[np.ndarray, ...]:
        return index, vectors, self.topology.type_index, self._curve_of, self._numbers, self._starts, self._ends

    def _bonded_rows(self, frames: BeadFrames, order: int) -> Iterator[tuple[TermGeometry, IntArray, FloatArray]]:
        """Geometry of each bonded term with columns and weights ``[T, m, w]``, values or slopes of its splines."""
        geometry = BondedGeometry(self.topology, frames)
        for name, place in self.bonded.items():
            (part,) = geometry.term(name)
            yield part, *_columns(self.model.bonded[name].design(part.values.ravel(), order), part, place)
        for name, place in self.maps.items():
            first, second = geometry.term(name)
            angles = np.stack([first.values.ravel(), second.values.ravel()], axis=1)
            grid = self.model.maps[name].grid
            for axis, part in enumerate((first, second)[: 2 if order else 1]):
                yield part, *_columns(grid.design(angles, axis if order else None), part, place)


def _columns(rows: object, part: TermGeometry, place: slice) -> tuple[IntArray, FloatArray]:
    """Split rows of equally many entries into columns of the whole model and weights, ``[T, m, w]``."""
    shape = (*part.values.shape, -1)
    columns, weights = rows.indices, rows.data  # type: ignore[attr-defined]
    return place.start + columns.astype(np.int64).reshape(shape), weights.reshape(shape)
