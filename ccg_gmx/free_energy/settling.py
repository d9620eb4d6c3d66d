"""How a surface and the differences between its basins settle as data come in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp

from ccg_gmx.free_energy.axes import Axis, Box, grid_of
from ccg_gmx.records import FloatArray

CAP_KT = 8.0
"""Bins below this free energy in the last surface count for the distance to it."""


@dataclass(frozen=True)
class Settling:
    """Surfaces from more and more of the data.

    Attributes:
        x: ``[n]`` how much: the time up to which data count, or their number.
        label: what ``x`` is.
        f: ``[n, ...]`` surfaces in kT, each with its minimum at zero; inf where nothing is known.
        rmsd: ``[n]`` kT to the last surface where that is below ``CAP_KT`` and both are known, best offset taken off.
        delta_f: name of a basin -> ``[n]`` its free energy minus that of the first basin, kT.
        first: name of the first basin; empty without two.
    """

    x: FloatArray
    label: str
    f: FloatArray
    rmsd: FloatArray
    delta_f: dict[str, FloatArray]
    first: str

    def drift(self, name: str) -> float:
        """Range of ``delta_f`` of a basin over the second half of the data, kT."""
        return float(np.ptp(self.delta_f[name][self.x >= self.x[-1] / 2]))


def settling(
    x: FloatArray, label: str, f: Sequence[FloatArray], names: Sequence[str], basins: Sequence[FloatArray]
) -> Settling:
    """Put surfaces and free energies of basins in one record.

    Args:
        x: ``[n]`` how much data.
        label: what that is.
        f: n surfaces in kT.
        names: of the basins.
        basins: n arrays ``[len(names)]`` of free energies in kT, any common offset.
    """
    stack = np.stack([own - own.min() if np.isfinite(own).any() else own for own in f])
    last = stack[-1]
    rmsd = np.array([_rmsd(own, last) for own in stack])
    each = np.array(basins).reshape(len(stack), len(names))
    with np.errstate(invalid="ignore"):
        delta = {name: each[:, k] - each[:, 0] for k, name in enumerate(names) if k > 0}
    return Settling(np.asarray(x, dtype=np.float64), label, stack, rmsd, delta, names[0] if len(names) > 1 else "")


def _rmsd(f: FloatArray, last: FloatArray) -> float:
    both = (last < CAP_KT) & np.isfinite(f)
    return float((f[both] - last[both]).std()) if both.any() else float("nan")


def basin_free_energies(f: FloatArray, axes: Sequence[Axis], boxes: Sequence[Box]) -> FloatArray:
    """``[len(boxes)]`` ``-ln sum exp(-f)`` over the points of each box, kT; inf for a box without points."""
    points = grid_of(axes)
    flat = -f.ravel()
    inside = [box.mask(points, axes) for box in boxes]
    return np.array([-logsumexp(flat[mask]) if mask.any() else np.inf for mask in inside], dtype=np.float64)
