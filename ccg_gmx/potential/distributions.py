"""Radial distribution functions and histograms of bonded terms over a trajectory, with the right measure and errors.

A frame of a trajectory is seen once and forgotten. What is compared is always counts with ``ideal`` counts, those of
beads that do not interact: ``r^2`` for bonds and pairs, ``sin(theta)`` for angles, 1 for torsions; their ratio is
``g = exp(-V / kT)`` to lowest order. Errors come from blocks of frames.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import numpy as np

from ccg_gmx.errors import SettingsError, TrajectoryError
from ccg_gmx.molecule.coarse_topology import BondedKind, CoarseTopology
from ccg_gmx.potential import bead_kernel
from ccg_gmx.potential.block_sums import BlockSums
from ccg_gmx.potential.curves import CurveKind
from ccg_gmx.potential.evaluate import check_frames, curve_table
from ccg_gmx.potential.geometry import BondedGeometry
from ccg_gmx.potential.model import pair_key
from ccg_gmx.potential.pair_list import PairFinder
from ccg_gmx.records import BeadFrames, FloatArray, IntArray

LONGEST_BOND_NM = 3.0
BINS = {"bond": 3000, "angle": 720, "dihedral": 360}
"""Fine enough that a bin's centre stands for it: 0.001 nm, a quarter of a degree, one degree."""
MAP_BINS = 72


@dataclass(frozen=True)
class Histogram:
    """Counts of one coordinate.

    Attributes:
        kind: bond, angle, dihedral or pair.
        edges: ``[bins + 1]`` nm or radians.
        counts: ``[bins]`` over all frames.
        ideal: ``[bins]`` counts to expect without interaction; of bonded terms up to a common factor.
        error: ``[bins]`` standard error of the counts from blocks of frames, at least that of independent counts.
        squares: of pairs, how many independent squares the sum of squared errors of :attr:`g` is worth, as neighbouring
            bins go together; nan where it is not known.
    """

    kind: CurveKind
    edges: FloatArray
    counts: FloatArray
    ideal: FloatArray
    error: FloatArray
    squares: float = math.nan

    @property
    def centres(self) -> FloatArray:
        """``[bins]`` nm or radians."""
        return 0.5 * (self.edges[1:] + self.edges[:-1])

    @property
    def g(self) -> FloatArray:
        """``[bins]`` counts over ideal counts: the radial distribution function of a pair."""
        return self.counts / self.ideal

    @property
    def g_error(self) -> FloatArray:
        """``[bins]`` standard error of :attr:`g`."""
        return self.error / self.ideal

    @property
    def dispersion(self) -> float:
        """Variance of the counts over that of independent counts, at least 1: frames and pairs are correlated."""
        seen = self.counts > 0
        return max(1.0, float(np.sum(self.error[seen] ** 2) / np.sum(self.counts[seen]))) if seen.any() else 1.0

    @property
    def range(self) -> tuple[float, float]:
        """Edges of the first and the last bin that is not empty."""
        seen = np.flatnonzero(self.counts)
        return float(self.edges[seen[0]]), float(self.edges[seen[-1] + 1])


@dataclass(frozen=True)
class MapHistogram:
    """Counts over the two torsions of a ``cmap`` term; bins start at -pi.

    Attributes:
        counts: ``[n, n]`` over all frames.
        error: ``[n, n]`` standard error.
    """

    counts: FloatArray
    error: FloatArray

    @property
    def centres(self) -> FloatArray:
        """``[n]`` radians, of both axes."""
        n = len(self.counts)
        return -math.pi + (np.arange(n) + 0.5) * 2.0 * math.pi / n

    @property
    def dispersion(self) -> float:
        """As :attr:`Histogram.dispersion`."""
        seen = self.counts > 0
        return max(1.0, float(np.sum(self.error[seen] ** 2) / np.sum(self.counts[seen]))) if seen.any() else 1.0


@dataclass(frozen=True)
class Distributions:
    """All distributions of a trajectory.

    Attributes:
        bonded: by the name of the term.
        maps: of ``cmap`` terms, by name.
        pairs: by types, sorted; only pairs that are not all excluded.
        frames: how many frames.
        volume: mean volume in nm^3; None without a box.
    """

    bonded: dict[str, Histogram]
    maps: dict[str, MapHistogram]
    pairs: dict[tuple[str, str], Histogram]
    frames: int
    volume: float | None

    def require_pairs(self) -> None:
        """Refuse a radial distribution function without a single count.

        Raises:
            TrajectoryError: a pair of types never comes near.
        """
        for key, histogram in self.pairs.items():
            if not histogram.counts.any():
                raise TrajectoryError(
                    f"the radial distribution function of {'-'.join(key)} is empty up to {histogram.edges[-1]:g} nm",
                    expected="pairs within the range",
                    remedy="use more frames or a longer range (--r-max), or exclude these pairs in the mapping",
                )


def pair_numbers(topology: CoarseTopology) -> dict[tuple[str, str], int]:
    """Number of pairs of beads of every two types that are not excluded; types without any are left out."""
    index = topology.type_index
    beads = np.bincount(index, minlength=len(topology.types))
    number = np.triu(np.outer(beads, beads)).astype(np.int64)
    number[np.diag_indices(len(beads))] = beads * (beads - 1) // 2
    pairs = np.sort(index[topology.excluded_pairs], axis=1)
    np.subtract.at(number, (pairs[:, 0], pairs[:, 1]), 1)
    return {
        pair_key(topology.types[i], topology.types[j]): int(number[i, j]) for i, j in np.argwhere(number > 0).tolist()
    }


class DistributionSampler:
    """Collects distributions from frames.

    Args:
        topology: beads and terms.
        r_max: range of the radial distribution functions in nm; 0 for none.
        bin_width: of these, nm.
    """

    def __init__(self, topology: CoarseTopology, r_max: float, bin_width: float = 0.002) -> None:
        if not (math.isfinite(r_max) and r_max >= 0 and bin_width > 0):
            raise SettingsError(f"range {r_max} nm in bins of {bin_width} nm", expected="positive numbers")
        self.topology = topology
        bins = round(r_max / bin_width)
        self._edges = np.linspace(0.0, r_max, bins + 1)
        self._numbers = pair_numbers(topology) if bins else {}
        self._curve_of = curve_table(tuple(self._numbers), topology)
        self._finder = PairFinder(topology.n_beads, r_max, topology.excluded_pairs)
        self._pairs = BlockSums((len(self._numbers), bins))
        kinds = {name: topology.kind(name) for name in topology.bonded_names}
        self._bonded = {name: BlockSums((BINS[kind],)) for name, kind in kinds.items() if kind != "cmap"}
        self._maps = {name: BlockSums((MAP_BINS**2,)) for name, kind in kinds.items() if kind == "cmap"}
        self._frames, self._volume, self._inverse_volume, self._boxed = 0, 0.0, 0.0, True

    def add(self, frames: BeadFrames) -> None:
        """Count a chunk of frames."""
        check_frames(self.topology, frames)
        self._frames += len(frames.positions)
        if frames.box is None:
            self._boxed = False
        else:
            volume = np.abs(np.linalg.det(frames.box))
            self._volume += float(volume.sum())
            self._inverse_volume += float((1.0 / volume).sum())
        geometry = BondedGeometry(self.topology, frames)
        for name, sums in self._bonded.items():
            kind = self.topology.kind(name)
            _count(sums, _bins(kind, name, geometry.term(name)[0].values), BINS[kind])
        for name, sums in self._maps.items():
            phi, psi = (_angle_bins(part.values, MAP_BINS) for part in geometry.term(name))
            _count(sums, phi * MAP_BINS + psi, MAP_BINS**2)
        if self._numbers:
            self._add_pairs(frames)

    def _add_pairs(self, frames: BeadFrames) -> None:
        scale = (len(self._edges) - 1) / self._edges[-1]
        for pairs in self._finder.over(frames):
            counts = np.zeros((len(self._numbers), len(self._edges) - 1))
            bead_kernel.add_pair_counts(
                pairs.index, pairs.vectors, self.topology.type_index, self._curve_of, scale, counts
            )
            self._pairs.add(counts)

    def result(self) -> Distributions:
        """Give what was counted.

        Raises:
            TrajectoryError: no frames were.
        """
        if not self._frames:
            raise TrajectoryError("a trajectory without frames", expected="at least one")
        kinds = {name: self.topology.kind(name) for name in self._bonded}
        shell = 4.0 / 3.0 * math.pi * np.diff(self._edges**3)
        # Without a box there is no density: counts are compared with pairs spread evenly over the sphere of the range.
        sphere = self._frames / max(float(shell.sum()), 1e-300)
        density = self._inverse_volume if self._boxed else sphere
        pairs = {}
        for k, (key, number) in enumerate(self._numbers.items()):
            counts, error = _counts_and_error(self._pairs)
            ideal = number * density * shell
            squares = independent_squares(self._pairs.full[:, k] / ideal)
            pairs[key] = Histogram("pair", self._edges, counts[k], ideal, error[k], squares)
        return Distributions(
            {name: _bonded_histogram(kinds[name], sums) for name, sums in self._bonded.items()},
            {name: _map_histogram(sums) for name, sums in self._maps.items()},
            pairs,
            self._frames,
            self._volume / self._frames if self._boxed else None,
        )


def sample_distributions(
    topology: CoarseTopology, frames: Iterable[BeadFrames], r_max: float, bin_width: float = 0.002
) -> Distributions:
    """Distributions of a trajectory that comes in chunks; see :class:`DistributionSampler`."""
    sampler = DistributionSampler(topology, r_max, bin_width)
    for chunk in frames:
        sampler.add(chunk)
    return sampler.result()


def independent_squares(blocks: FloatArray) -> float:
    """How many independent squares of equal size vary as much, for their sum, as the squares of the means' errors.

    It is (tr C)^2 / tr C^2 with C the covariance of the bins (Satterthwaite, doi:10.2307/3002019). The covariance from
    n + 1 blocks overestimates tr C^2 by (tr C)^2 / n and more; ``n^2 / ((n - 1)(n + 2)) (tr S^2 - (tr S)^2 / n)`` has
    the right mean for normal numbers (Bai & Saranadasa, Statistica Sinica 6, 311 (1996)).

    Args:
        blocks: ``[B, bins]`` sums or means over blocks of equal length.

    Returns:
        At least 1, at most the number of bins; nan with fewer than four blocks.
    """
    n = len(blocks) - 1
    if n < 3:
        return math.nan
    scatter = (blocks - blocks.mean(axis=0)) / math.sqrt(n)
    trace, square = float((scatter**2).sum()), float(((scatter @ scatter.T) ** 2).sum())
    if not trace:
        return math.nan
    square = n**2 / ((n - 1.0) * (n + 2.0)) * (square - trace**2 / n)
    return float(np.clip(trace**2 / square if square > 0.0 else math.inf, 1.0, blocks.shape[1]))


def _counts_and_error(sums: BlockSums) -> tuple[FloatArray, FloatArray]:
    """Counts over all frames and their standard error, at least that of independent counts."""
    counts = sums.total
    blocks = sums.error_of_mean() * sums.frames
    return counts, np.sqrt(np.maximum(np.nan_to_num(blocks) ** 2, counts))


def _count(sums: BlockSums, bins: IntArray, size: int) -> None:
    """Add the bins ``[T, m]`` of T frames, as many frames at a time as the present block takes."""
    start = 0
    while start < len(bins):
        frames = min(sums.room, len(bins) - start)
        row = np.bincount(bins[start : start + frames].ravel(), minlength=size)
        sums.add(row.astype(np.float64), frames)
        start += frames


def _map_histogram(sums: BlockSums) -> MapHistogram:
    counts, error = _counts_and_error(sums)
    return MapHistogram(counts.reshape(MAP_BINS, MAP_BINS), error.reshape(MAP_BINS, MAP_BINS))


def _bonded_histogram(kind: BondedKind, sums: BlockSums) -> Histogram:
    if kind == "bond":
        edges = np.linspace(0.0, LONGEST_BOND_NM, BINS[kind] + 1)
        measure = np.diff(edges**3) / 3.0
    elif kind == "angle":
        edges = np.linspace(0.0, math.pi, BINS[kind] + 1)
        measure = -np.diff(np.cos(edges))
    else:
        edges = np.linspace(-math.pi, math.pi, BINS[kind] + 1)
        measure = np.diff(edges)
    counts, error = _counts_and_error(sums)
    return Histogram(cast(CurveKind, kind), edges, counts, counts.sum() * measure / measure.sum(), error)


def _bins(kind: BondedKind, name: str, values: FloatArray) -> IntArray:
    """Bin ``[T, m]`` of each value."""
    if kind == "dihedral":
        return _angle_bins(values, BINS[kind])
    top = LONGEST_BOND_NM if kind == "bond" else math.pi
    if kind == "bond" and values.max(initial=0.0) >= top:
        raise TrajectoryError(
            f"bond {name} of {values.max():.3g} nm",
            expected=f"bonds below {top:g} nm",
            remedy="check the mapping and that boxes belong to the frames",
        )
    return np.minimum((values * (BINS[kind] / top)).astype(np.int64), BINS[kind] - 1)


def _angle_bins(values: FloatArray, bins: int) -> IntArray:
    return np.minimum(((values + math.pi) * (bins / (2.0 * math.pi))).astype(np.int64), bins - 1)
