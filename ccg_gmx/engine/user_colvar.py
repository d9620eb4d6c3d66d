"""Variables, biases and umbrella windows of a user's COLVAR files, ready for a surface."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ccg_gmx.errors import SettingsError, TrajectoryError
from ccg_gmx.free_energy.axes import Axis
from ccg_gmx.free_energy.umbrella import Restraint, Windows, solve_windows
from ccg_gmx.molecule.colvar_runs import ColvarRuns, read_colvars
from ccg_gmx.records import FloatArray, IntArray
from ccg_gmx.units import thermal_energy

ENERGY_UNITS = {"kJ/mol": 1.0, "kcal/mol": 4.184, "eV": 96.4853321233, "kT": None}
"""Unit of energies in a file -> kJ/mol; None: already divided by kT."""

DEFAULT_BINS = {1: 100, 2: 100, 3: 40}


@dataclass(frozen=True)
class Range:
    """A variable, and the bins a user wants of it.

    Attributes:
        name: column.
        low: lower end, units of the file; None: all that there is.
        high: upper end; None as ``low``.
        bins: number of bins; None: the default.
    """

    name: str
    low: float | None = None
    high: float | None = None
    bins: int | None = None


@dataclass(frozen=True)
class BiasColumn:
    """A column of a bias: in the COLVAR files themselves, or in files of their own with the same rows."""

    column: str
    files: tuple[Path, ...] = ()


@dataclass(frozen=True)
class ColvarRequest:
    """What to read.

    Attributes:
        files: COLVAR files.
        ranges: one to three variables.
        biases: biases that acted on all frames, summed.
        umbrellas: of each file, the bias of its window: a restraint or a column that all files have; () without.
        temperature_K: temperature.
        energy_unit: a key of :data:`ENERGY_UNITS`, for biases and restraints.
        start: leave out rows before this time.
        stride: keep every ``stride``-th of the others.
    """

    files: tuple[Path, ...]
    ranges: tuple[Range, ...]
    biases: tuple[BiasColumn, ...] = ()
    umbrellas: tuple[Restraint | str, ...] = ()
    temperature_K: float = 300.0
    energy_unit: str = "kJ/mol"
    start: float = 0.0
    stride: int = 1


@dataclass(frozen=True)
class UserColvar:
    """What was read.

    Attributes:
        s: ``[T, d]`` units of the files.
        run: ``[T]`` run of each frame.
        time: ``[T]`` ps.
        axes: the grid.
        u_bias: ``[T]`` reduced bias, the sum of all; None without any.
        windows: umbrella windows, solved; then ``u_bias`` is part of them.
        notes: how files were taken together, in words.
    """

    s: FloatArray
    run: IntArray
    time: FloatArray
    axes: tuple[Axis, ...]
    u_bias: FloatArray | None
    windows: Windows | None
    notes: tuple[str, ...] = field(default=())


def read_user_colvar(request: ColvarRequest) -> UserColvar:
    """Read variables and biases, and solve for the windows when there are any.

    Raises:
        SettingsError: options that do not fit each other or the files.
        TrajectoryError: in one line, whatever of a file does not fit.
        ToolMissingError: windows, and no pymbar.
        CcgError: windows that cannot be combined.
    """
    names = _names(request)
    read = read_colvars(request.files, names, start=request.start, stride=request.stride, join=not request.umbrellas)
    d = len(request.ranges)
    axes = tuple(
        histogram_axis(wanted, domain, x, d)
        for wanted, domain, x in zip(request.ranges, read.domains[:d], read.values[:, :d].T, strict=True)
    )
    u_bias = _bias(request, read, names)
    windows = _windows(request, read, names, axes, u_bias) if request.umbrellas else None
    return UserColvar(read.values[:, :d], read.run, read.time, axes, u_bias, windows, read.notes)


def _names(request: ColvarRequest) -> list[str]:
    """Columns to read, each once, the variables first."""
    names = [wanted.name for wanted in request.ranges]
    if len(set(names)) < len(names) or not 1 <= len(names) <= 3:
        raise SettingsError(f"--cv {', '.join(names)}", expected="one to three different variables")
    for umbrella in request.umbrellas:
        if isinstance(umbrella, Restraint) and (unknown := sorted(set(umbrella.centers) - set(names))):
            raise SettingsError(
                f"an umbrella on {unknown[0]}", expected=f"one on {', '.join(names)}", remedy=f"add --cv {unknown[0]}"
            )
    if request.umbrellas and len(request.umbrellas) != len(request.files):
        raise SettingsError(
            f"{len(request.umbrellas)} umbrellas for {len(request.files)} files", expected="one of each, in order"
        )
    own = [bias.column for bias in request.biases if not bias.files]
    columns = [umbrella for umbrella in request.umbrellas if isinstance(umbrella, str)]
    return list(dict.fromkeys([*names, *own, *columns]))


def _per_kT(request: ColvarRequest) -> float:
    scale = ENERGY_UNITS[request.energy_unit]
    return 1.0 if scale is None else scale / thermal_energy(request.temperature_K)


def _bias(request: ColvarRequest, read: ColvarRuns, names: list[str]) -> FloatArray | None:
    if not request.biases:
        return None
    values = [
        _other_rows(request, read, bias) if bias.files else read.values[:, names.index(bias.column)]
        for bias in request.biases
    ]
    return np.asarray(np.sum(values, axis=0) * _per_kT(request))


def _other_rows(request: ColvarRequest, read: ColvarRuns, bias: BiasColumn) -> FloatArray:
    """``[T]`` a bias from files of its own, row by row those of the COLVAR files."""
    if len(bias.files) != len(request.files):
        raise SettingsError(
            f"{len(bias.files)} files of {bias.column} for {len(request.files)} COLVAR files", expected="one of each"
        )
    other = read_colvars(
        bias.files, [bias.column], start=request.start, stride=request.stride, join=not request.umbrellas
    )
    for k, (path, colvar) in enumerate(zip(bias.files, request.files, strict=True)):
        a, b = other.time[other.file == k], read.time[read.file == k]
        if len(a) != len(b) or not np.allclose(a, b, rtol=1e-6, atol=1e-3):
            raise TrajectoryError(
                f"{path} has {len(a)} rows and {colvar} {len(b)}" + (", at other times" if len(a) == len(b) else ""),
                expected="the same rows in both",
                remedy="print the bias into the same file, or with the same STRIDE",
            )
    return other.values[:, 0]


def _windows(
    request: ColvarRequest, read: ColvarRuns, names: list[str], axes: Sequence[Axis], u_bias: FloatArray | None
) -> Windows:
    s = read.values[:, : len(axes)]
    u = np.stack(
        [
            umbrella.energy(s, axes) if isinstance(umbrella, Restraint) else read.values[:, names.index(umbrella)]
            for umbrella in request.umbrellas
        ]
    ) * _per_kT(request)
    for k, path in enumerate(request.files):
        if not (read.file == k).any():
            raise TrajectoryError(f"{path} has no row from time {request.start:g} on", remedy="use a smaller --start")
    return solve_windows(u if u_bias is None else u + u_bias, read.file)


def histogram_axis(wanted: Range, domain: tuple[float, float] | None, x: FloatArray, dims: int) -> Axis:
    """Axis of bins over the range asked for, over one period, or over all that the frames visit.

    Raises:
        SettingsError: a range without width or wider than the period, or too many bins.
    """
    bins = wanted.bins or DEFAULT_BINS[dims]
    period = None if domain is None else domain[1] - domain[0]
    if wanted.low is None or wanted.high is None:
        if domain is not None:
            return Axis(wanted.name, *domain, bins, True, period)
        low, high = float(x.min()), float(x.max())
        margin = 1e-6 * (high - low) if high > low else 0.5  # the outermost frames are inside
        low, high = low - margin, high + margin
    else:
        low, high = wanted.low, wanted.high
    check_range(wanted.name, low, high, period)
    if domain is not None and np.allclose((low, high), domain, atol=1e-6):
        return Axis(wanted.name, *domain, bins, True, period)
    spacing = (high - low) / bins
    return Axis(wanted.name, low + spacing / 2, high - spacing / 2, bins, False, period)


def check_range(name: str, low: float, high: float, period: float | None) -> None:
    """Refuse a range without width, or wider than a period.

    Raises:
        SettingsError: such a range.
    """
    if not high > low:
        raise SettingsError(f"{name} from {low:g} to {high:g}", expected="two rising numbers")
    if period is not None and high - low > period * (1 + 1e-6):
        raise SettingsError(f"{name} from {low:g} to {high:g}", expected=f"at most one period, {period:g}")
