"""Weighted histograms of frames over any axes, smoothed or not, made again and again for resamples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import maximum_filter

from ccg_gmx.errors import CcgError
from ccg_gmx.free_energy.axes import Axis
from ccg_gmx.records import FloatArray, IntArray

PAD_WIDTHS = 5.0
"""Frames so many kernel widths beyond the end of an open axis still reach into it."""


@dataclass(frozen=True)
class Histogram:
    """Where every frame falls, and the kernel that smooths counts.

    Attributes:
        cells: ``[T]`` bin of each frame on the padded grid, the last axis fastest; the number of bins for a frame that
            is on none of them.
        padded: shape of the padded grid: open axes reach further by some kernel widths.
        axes: the grid.
        widths: standard deviation of the kernel along each axis, units of the variables; 0: plain histogram.
        smoothers: ``[points, padded points]`` matrix along each axis.
    """

    cells: IntArray
    padded: tuple[int, ...]
    axes: tuple[Axis, ...]
    widths: tuple[float, ...]
    smoothers: tuple[FloatArray | None, ...]

    @classmethod
    def of(cls, s: FloatArray, axes: Sequence[Axis], widths: Sequence[float] | None = None) -> Histogram:
        """Sort frames ``s [T, d]`` into bins.

        Raises:
            CcgError: no frame is on the grid.
        """
        widths = tuple(widths or (0.0,) * len(axes))
        pads = [_pad(axis, width) for axis, width in zip(axes, widths, strict=True)]
        padded = tuple(axis.points + 2 * pad for axis, pad in zip(axes, pads, strict=True))
        cells = np.stack([axis.cells(x) + pad for axis, x, pad in zip(axes, s.T, pads, strict=True)])
        inside = ((cells >= 0) & (cells < np.array(padded)[:, None])).all(axis=0)
        if not inside.any():
            ranges = ", ".join(f"{axis.name} from {axis.low:g} to {axis.high:g}" for axis in axes)
            raise CcgError(f"no frame is within {ranges}", expected="a range that the frames visit")
        flat = np.full(len(s), int(np.prod(padded)))
        flat[inside] = np.ravel_multi_index(tuple(cells[:, inside]), padded)
        kernels = tuple(_smoother(axis, width, pad) for axis, width, pad in zip(axes, widths, pads, strict=True))
        return cls(flat, padded, tuple(axes), widths, kernels)

    @property
    def size(self) -> int:
        """Number of bins of the padded grid."""
        return int(np.prod(self.padded))

    @property
    def off_grid(self) -> int:
        """Number of frames that are on no bin."""
        return int((self.cells == self.size).sum())

    def probability(self, rows: IntArray, w: FloatArray) -> FloatArray:
        """Normalised (smoothed) histogram of the rows with weights ``w [T']``."""
        found = np.bincount(self.cells[rows], w, minlength=self.size + 1)[: self.size]
        counts: FloatArray = found.astype(np.float64).reshape(self.padded)
        for axis, smoother in enumerate(self.smoothers):
            if smoother is not None:
                counts = np.moveaxis(np.tensordot(smoother, counts, axes=(1, axis)), 0, axis)
        total = counts.sum()
        return np.asarray(counts / total if total > 0 else counts)

    def visits(self, blocks: IntArray, widths: float = 1.0) -> IntArray:
        """Number of blocks that visited each bin, or some bin within so many widths of the kernel."""
        count = int(blocks.max()) + 1
        pairs = np.unique(self.cells * count + blocks) // count
        found = np.bincount(pairs, minlength=self.size + 1)[: self.size].reshape(self.padded)
        reach = [int(np.ceil(widths * w / axis.spacing)) for axis, w in zip(self.axes, self.widths, strict=True)]
        if any(reach):
            modes = ["wrap" if axis.periodic else "nearest" for axis in self.axes]
            found = np.asarray(maximum_filter(found, size=[2 * r + 1 for r in reach], mode=modes))
        pads = [(size - axis.points) // 2 for size, axis in zip(self.padded, self.axes, strict=True)]
        return found[tuple(slice(pad, pad + axis.points) for pad, axis in zip(pads, self.axes, strict=True))]


def _pad(axis: Axis, width: float) -> int:
    return 0 if axis.periodic else int(np.ceil(PAD_WIDTHS * width / axis.spacing))


def _smoother(axis: Axis, width: float, pad: int) -> FloatArray | None:
    """Gaussian between the points of an axis, periodic or padded; None for width 0."""
    if width == 0:
        return None
    n = axis.points
    if axis.periodic:
        distance = axis.spacing * ((np.arange(n) + n // 2) % n - n // 2)
        images = distance[:, None] + n * axis.spacing * np.arange(-3, 4)
        kernel = np.exp(-0.5 * (images / width) ** 2).sum(axis=1)
        return np.asarray((kernel / kernel.sum())[(np.arange(n)[:, None] - np.arange(n)) % n])
    steps = np.arange(n)[:, None] + pad - np.arange(n + 2 * pad)
    kernel = np.exp(-0.5 * (steps * axis.spacing / width) ** 2)
    whole = np.exp(-0.5 * (np.arange(-10 * pad, 10 * pad + 1) * axis.spacing / width) ** 2).sum()
    return np.asarray(kernel / whole)
