"""HILLS files of PLUMED's metadynamics: Gaussians with centres, widths and heights, of one walker or several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ccg_gmx.errors import TrajectoryError
from ccg_gmx.molecule.plumed_table import PlumedTable, plumed_number, read_table
from ccg_gmx.records import FloatArray

KERNELS = {"stretched-gaussian": True, "gaussian": False}
"""Kernel named by the header -> whether it is stretched to end at zero; older files name none and mean the first."""


@dataclass(frozen=True)
class Hills:
    """Gaussian hills in the order they were deposited.

    Attributes:
        names: the d variables.
        domains: ends of one period of each; None where it is not periodic.
        time: ``[n]`` as in the file (ps).
        centers: ``[n, d]`` units of the variables.
        lower: ``[n, d, d]`` lower Cholesky factor of the covariance of each hill; diagonal (widths) unless the file is
            ``multivariate``.
        heights: ``[n]`` as in the file (kJ/mol unless PLUMED had other units): already times gamma / (gamma - 1) when
            the run was well-tempered, so that their sum is minus the free energy.
        biasfactor: gamma; 1 for plain metadynamics.
        multivariate: whether hills may be tilted.
        stretched: whether the kernel is stretched to end at zero.
        interval: limits of PLUMED's ``INTERVAL`` (one variable), beyond which the bias is constant; or None.
        ordered: whether times never go back.
        notes: what was left out or taken together, in words.
    """

    names: tuple[str, ...]
    domains: tuple[tuple[float, float] | None, ...]
    time: FloatArray
    centers: FloatArray
    lower: FloatArray
    heights: FloatArray
    biasfactor: float
    multivariate: bool
    stretched: bool
    interval: tuple[float, float] | None
    ordered: bool
    notes: tuple[str, ...]


def read_hills(paths: Sequence[Path]) -> Hills:
    """Read the hills of one run: parts of it, or its walkers.

    Hills of several files are merged by time. Every row counts, also where time goes back within a file: PLUMED, when
    it restarts, reads them all too.

    Args:
        paths: HILLS files.

    Raises:
        TrajectoryError: in one line, what of a file does not fit: see :func:`read_table`; also no HILLS file, a width
            of zero, several bias factors, or files of different variables.
    """
    read = [_read(table) for table in map(read_table, paths)]
    first = read[0]
    for path, other in zip(paths[1:], read[1:], strict=True):
        for what in ("names", "domains", "biasfactor", "multivariate", "stretched", "interval"):
            if getattr(other, what) != getattr(first, what):
                raise TrajectoryError(
                    f"{path} has {what} {_shown(getattr(other, what))}, {paths[0]} {_shown(getattr(first, what))}",
                    expected="walkers of one run",
                    remedy="sum them one by one",
                )
    parts = [np.concatenate([getattr(h, what) for h in read]) for what in ("time", "centers", "lower", "heights")]
    ordered = all(h.ordered for h in read)
    notes = [note for h in read for note in h.notes]
    if len(read) > 1:
        notes.append(f"hills of {len(read)} files merged" + (" by time" if ordered else ", file after file"))
    order = np.argsort(parts[0], kind="stable") if ordered else np.arange(len(parts[0]))
    time, centers, lower, heights = (part[order] for part in parts)
    return Hills(
        first.names, first.domains, time, centers, lower, heights, first.biasfactor, first.multivariate,
        first.stretched, first.interval, ordered, tuple(notes),
    )  # fmt: skip


def _shown(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else f"{value}"


def _read(table: PlumedTable) -> Hills:
    names = _variables(table)
    multivariate = table.settings.get("multivariate", "false")
    if multivariate not in ("true", "false"):
        raise TrajectoryError(f"{table.path} is multivariate {multivariate}", expected="true or false")
    kernel = table.settings.get("kerneltype", "stretched-gaussian")
    if kernel not in KERNELS:
        raise TrajectoryError(f"{table.path} has kernels {kernel}", expected=" or ".join(KERNELS))
    time, heights = table.columns(("time", "height")).T
    ordered = bool((np.diff(time) >= 0).all())
    note = f"{table.path.name}: time goes back (a restart); all hills count, as PLUMED counts them"
    return Hills(
        names=names,
        domains=tuple(table.domain(name) for name in names),
        time=time,
        centers=table.columns(names),
        lower=_lower(table, names, multivariate == "true"),
        heights=heights,
        biasfactor=_biasfactor(table),
        multivariate=multivariate == "true",
        stretched=KERNELS[kernel],
        interval=_interval(table, names),
        ordered=ordered,
        notes=(*table.notes, *(() if ordered else (note,))),
    )


def _variables(table: PlumedTable) -> tuple[str, ...]:
    """The columns between the time and the first width, as PLUMED takes them."""
    widths = [index for index, name in enumerate(table.fields) if name.startswith("sigma_")]
    names = table.fields[1 : widths[0]] if widths else ()
    if table.fields[0] != "time" or not names or "height" not in table.fields:
        raise TrajectoryError(
            f"{table.path} has the columns {' '.join(table.fields)}",
            expected="those of a HILLS file: time, variables, sigma_..., height",
            remedy="for a COLVAR file use ccg fes colvar",
        )
    if len(names) > 3:
        raise TrajectoryError(f"{table.path} has {len(names)} variables", expected="at most three")
    return names


def _lower(table: PlumedTable, names: tuple[str, ...], multivariate: bool) -> FloatArray:
    d = len(names)
    lower = np.zeros((len(table.values), d, d))
    if multivariate:
        pairs = [(i, j) for i in range(d) for j in range(i + 1)]
        columns = table.columns([f"sigma_{names[i]}_{names[j]}" for i, j in pairs])
        for (i, j), column in zip(pairs, columns.T, strict=True):
            lower[:, i, j] = column
    else:
        lower[:, range(d), range(d)] = table.columns([f"sigma_{name}" for name in names])
    widths = lower[:, range(d), range(d)]
    if len(bad := np.argwhere(~(widths > 0))):
        row, axis = bad[0]
        raise TrajectoryError(
            f"{table.path}: the hill in row {row + 1} has width {widths[row, axis]:g} in {names[axis]}",
            expected="positive widths",
            remedy="remove the row, or check SIGMA of the run",
        )
    return lower


def _biasfactor(table: PlumedTable) -> float:
    if "biasf" not in table.fields:
        return 1.0
    found = np.unique(table.columns(("biasf",)))
    if len(found) > 1:
        raise TrajectoryError(
            f"{table.path} mixes the bias factors {', '.join(f'{x:g}' for x in found)}",
            expected="one bias factor: heights of different ones cannot be summed",
            remedy="split the file where it changes",
        )
    # PLUMED writes -1 for plain metadynamics
    return float(found[0]) if found[0] > 1 else 1.0


def _interval(table: PlumedTable, names: tuple[str, ...]) -> tuple[float, float] | None:
    ends = [table.settings.get(f"{end}_int") for end in ("lower", "upper")]
    if None in ends:
        return None
    low, high = (plumed_number(str(end)) for end in ends)
    if not (len(names) == 1 and high > low):
        raise TrajectoryError(
            f"{table.path} has the interval {ends[0]} to {ends[1]}", expected="one variable and two rising numbers"
        )
    return low, high
