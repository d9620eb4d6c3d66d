"""Torsions and biases of a user's own simulation: run input, trajectories, columns of COLVAR files."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from MDAnalysis.lib.formats.libmdaxdr import TRRFile, XTCFile

from ccg_gmx.engine.gromacs import Gmx
from ccg_gmx.errors import SettingsError, TopologyError, TrajectoryError
from ccg_gmx.molecule.colvar_file import read_columns, rows_at
from ccg_gmx.molecule.topology import Topology, parse_tpr_dump
from ccg_gmx.molecule.torsion_paths import torsion_paths
from ccg_gmx.molecule.trajectory import scan_trr
from ccg_gmx.records import FloatArray, IntArray
from ccg_gmx.units import thermal_energy

BIAS_UNITS = {"kJ/mol": 1.0, "kcal/mol": 4.184, "kT": None}
"""Unit of a bias column -> kJ/mol; None: already divided by kT."""

CHUNK = 4096
"""Frames whose torsions are computed at once; bounds the memory."""

Progress = Callable[[float, float], None]
"""Called with (frames done, frames in all)."""


class Measure(Protocol):
    """What is measured in every frame, from a few atoms."""

    @property
    def atoms(self) -> IntArray:
        """``[m]`` atoms needed, 0-based, rising."""

    @property
    def size(self) -> int:
        """Numbers per frame."""

    def values(self, positions: FloatArray, box: FloatArray | None) -> FloatArray:
        """``[T, size]`` from positions ``[T, m, 3]`` and boxes ``[T, 3, 3]``, nm; a box of None has no periodicity."""


@dataclass(frozen=True)
class BiasColumn:
    """A bias that acted on the runs.

    Attributes:
        files: one COLVAR file of all trajectories, or one of each.
        column: name of the column with the bias.
    """

    files: tuple[Path, ...]
    column: str


@dataclass(frozen=True)
class UserFrames:
    """Torsions of a user's frames.

    Attributes:
        s: ``[T, d]`` radians.
        run: ``[T]`` run of each frame.
        time: ``[T]`` ps.
        u_bias: ``[T]`` reduced bias, the sum of all; None without any.
        names: names of the d torsions.
        temperature_K: temperature of the run.
        notes: how files were taken together, in words.
    """

    s: FloatArray
    run: IntArray
    time: FloatArray
    u_bias: FloatArray | None
    names: tuple[str, ...]
    temperature_K: float
    notes: tuple[str, ...]


def read_user_frames(
    tpr: Path,
    trajectories: Sequence[Path],
    torsions: Mapping[str, Sequence[int]],
    *,
    biases: Sequence[BiasColumn] = (),
    bias_units: str = "kJ/mol",
    temperature_K: float | None = None,
    start_ps: float = 0.0,
    stride: int = 1,
    progress: Progress | None = None,
) -> UserFrames:
    """Read torsions, and the biases the frames were sampled under, of trajectories of one system.

    A trajectory that begins where the one before it ends continues its run; any other is a run of its own.

    Args:
        tpr: run input, for bonds and temperature. Solvent, constraints and any force field are fine.
        trajectories: .xtc or .trr files, read frame by frame.
        torsions: name -> four atoms, 1-based.
        biases: biases of the frames, summed.
        bias_units: a key of :data:`BIAS_UNITS`.
        temperature_K: temperature; needed only if the .tpr has no single one, and must agree with it otherwise.
        start_ps: leave out frames before this time.
        stride: keep every ``stride``-th of the remaining frames of each file.
        progress: called with (frames done, frames in all).

    Raises:
        SettingsError, TopologyError, TrajectoryError: in one line, whatever does not fit.
        ToolMissingError, GmxDumpError: no gmx, or it cannot read the .tpr.
    """
    return read_measured(
        tpr,
        trajectories,
        tuple(torsions),
        lambda topology: torsion_paths(topology, dict(torsions)),
        biases=biases,
        bias_units=bias_units,
        temperature_K=temperature_K,
        start_ps=start_ps,
        stride=stride,
        progress=progress,
    )


def read_measured(
    tpr: Path,
    trajectories: Sequence[Path],
    names: tuple[str, ...],
    measure: Callable[[Topology], Measure],
    *,
    biases: Sequence[BiasColumn] = (),
    bias_units: str = "kJ/mol",
    temperature_K: float | None = None,
    start_ps: float = 0.0,
    stride: int = 1,
    progress: Progress | None = None,
) -> UserFrames:
    """Measure anything in trajectories of one system; arguments and errors as of :func:`read_user_frames`.

    Args:
        tpr: run input.
        trajectories: .xtc or .trr files.
        names: of the numbers that are measured.
        measure: what to measure, for the topology of the .tpr.
        biases: biases of the frames, summed.
        bias_units: a key of :data:`BIAS_UNITS`.
        temperature_K: temperature.
        start_ps: leave out frames before this time.
        stride: keep every ``stride``-th of the remaining frames of each file.
        progress: called with (frames done, frames in all).
    """
    for path in trajectories:
        _check_file(path)
    topology = parse_tpr_dump(Gmx.find().dump(tpr))
    temperature = _temperature(topology, temperature_K)
    paths = measure(topology)
    totals = _counts(trajectories, topology.n_atoms)
    read, done = [], 0
    for path, total in zip(trajectories, totals, strict=True):
        report = _shifted(progress, done, sum(totals))
        read.append(_read_file(path, paths, topology.run.pbc != "no", start_ps, stride, report))
        done += total
    run_of_file, notes = _runs([time for time, _ in read], [path.name for path in trajectories])
    time, s = (np.concatenate([part[k] for part in read]) for k in (0, 1))
    if not len(time):
        raise TrajectoryError(
            f"the trajectories have no frame from {start_ps:g} ps on", expected="frames", remedy="use a smaller --start"
        )
    file = np.repeat(np.arange(len(read)), [len(part[0]) for part in read])
    run = np.asarray(run_of_file)[file]
    scale = BIAS_UNITS[bias_units]
    per_kT = 1.0 if scale is None else scale / thermal_energy(temperature)
    values = [_bias_of(bias, time, run, file, len(read)) * per_kT for bias in biases]
    return UserFrames(s, run, time, sum(values) if values else None, names, temperature, notes)  # type: ignore[arg-type]


def _temperature(topology: Topology, given: float | None) -> float:
    try:
        found = topology.run.temperature_K
    except TopologyError:
        if given is None:
            raise SettingsError(
                "the .tpr has no single thermostat temperature",
                expected="the temperature of the run",
                remedy="give --temperature",
            ) from None
        return given
    if given is not None and abs(given - found) > 1e-3:
        raise SettingsError(
            f"--temperature {given:g} K",
            expected=f"{found:g} K, the thermostat of the .tpr",
            remedy="leave out --temperature, or give the .tpr of this run",
        )
    return found


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise TrajectoryError(f"no file {path}", expected="a .xtc or .trr file", remedy="check the path")
    if path.suffix not in (".xtc", ".trr"):
        found = f"{path.name} is a {path.suffix or 'nameless'} file"
        raise TrajectoryError(found, expected=".xtc or .trr", remedy="convert it with gmx trjconv")
    if path.stat().st_size == 0:
        raise TrajectoryError(f"{path} is empty", expected="at least one frame", remedy="run the simulation again")
    if path.suffix == ".trr" and not (scan := scan_trr(path)).whole:
        raise TrajectoryError(
            f"{path} is truncated or damaged after {scan.frames} whole frames",
            expected="a file that ends with a whole frame",
            remedy="let the run finish, or cut the file with gmx trjconv -e",
        )


def _open(path: Path) -> Any:
    return (TRRFile if path.suffix == ".trr" else XTCFile)(str(path))


def _counts(trajectories: Sequence[Path], n_atoms: int) -> list[int]:
    """Frames of each file, after a look at its number of atoms."""
    counts = []
    for path in trajectories:
        try:
            with _open(path) as stream:
                found = int(stream.n_atoms)
                counts.append(len(stream))
        except (OSError, ValueError, EOFError) as error:
            raise _unreadable(path, 0, error) from None
        if found != n_atoms:
            raise TrajectoryError(
                f"{path} has {found} atoms in a frame",
                expected=f"the {n_atoms} of the .tpr",
                remedy="use the .tpr of this run; for a trajectory of the solute alone, gmx convert-tpr makes one",
            )
    return counts


def _unreadable(path: Path, frames: int, error: Exception) -> TrajectoryError:
    reason = " ".join(str(error).split())
    return TrajectoryError(
        f"{path} cannot be read after {frames} frames: {reason}",
        expected="a whole file",
        remedy="check it with gmx check -f",
    )


def _shifted(progress: Progress | None, before: int, total: int) -> Progress | None:
    return None if progress is None else lambda done, _: progress(before + done, total)


def _read_file(
    path: Path, paths: Measure, periodic: bool, start_ps: float, stride: int, progress: Progress | None
) -> tuple[FloatArray, FloatArray]:
    """Times ``[T]`` and what is measured ``[T, d]`` of the frames chosen of one file."""
    times: list[float] = []
    angles = [np.zeros((0, paths.size))]
    frames = _frames(path, start_ps, stride, progress)
    try:
        while chunk := list(itertools.islice(((f.time, f.x[paths.atoms], f.box) for f in frames), CHUNK)):
            times += [time for time, _, _ in chunk]
            positions = np.stack([x for _, x, _ in chunk]).astype(np.float64)
            box = np.stack([b for _, _, b in chunk]).astype(np.float64) if periodic else None
            angles.append(paths.values(positions, box))
    except (OSError, ValueError, EOFError) as error:
        raise _unreadable(path, len(times), error) from None
    time, s = np.array(times, dtype=np.float64), np.concatenate(angles)
    if len(back := np.flatnonzero(np.diff(time) <= 0)):
        raise TrajectoryError(
            f"{path} goes back in time, from {time[back[0]]:g} to {time[back[0] + 1]:g} ps",
            expected="rising times",
            remedy="give the parts of a run as files of their own, in order",
        )
    if len(bad := np.flatnonzero(~np.isfinite(s).all(axis=1))):
        found = f"{path} has coordinates that are no numbers at {time[bad[0]]:g} ps"
        raise TrajectoryError(found, expected="finite positions", remedy="the run has probably exploded")
    return time, s


def _frames(path: Path, start_ps: float, stride: int, progress: Progress | None) -> Iterator[Any]:
    """Frames from ``start_ps`` on, every ``stride``-th; frames of a .trr without positions are passed over.

    In a .xtc the frames between are skipped unread, which counts: decompression takes most of the time.
    """
    with _open(path) as stream:
        total = len(stream)
        if path.suffix == ".xtc":
            for index in range(_first(stream, start_ps), total, stride):
                stream.seek(index)
                yield stream.read()
                if progress is not None:
                    progress(index + 1, total)
            return
        chosen = (frame for frame in stream if frame.hasx and frame.time >= start_ps)
        for frame in itertools.islice(chosen, 0, None, stride):
            yield frame
            if progress is not None:
                progress(stream.tell(), total)


def _first(stream: Any, start_ps: float) -> int:
    """Index of the first frame at or after a time, by bisection."""
    low, high = 0, len(stream)
    while low < high:
        middle = (low + high) // 2
        stream.seek(middle)
        low, high = (low, middle) if stream.read().time >= start_ps else (middle + 1, high)
    return low


def _runs(times: Sequence[FloatArray], names: Sequence[str]) -> tuple[list[int], tuple[str, ...]]:
    """Run of each file: the same as the one before if its times go on where that one ends."""
    run, notes = [0] * len(times), []
    for k in range(1, len(times)):
        run[k] = run[k - 1] + 1
        before, own = times[k - 1], times[k]
        if len(before) < 2 or not len(own):
            continue
        spacing = float(np.median(np.diff(before)))
        if 0 < own[0] - before[-1] < 1.5 * spacing:
            run[k] = run[k - 1]
            notes.append(f"{names[k]} continues {names[k - 1]}")
        elif abs(own[0] - before[-1]) <= 0.01 * spacing:
            raise TrajectoryError(
                f"{names[k]} begins with the last frame of {names[k - 1]} ({own[0]:g} ps)",
                expected="every frame once",
                remedy="join the files with gmx trjcat, which leaves out the copy",
            )
    if run[-1] > 0:
        notes.append(f"{run[-1] + 1} runs, taken as independent")
    return run, tuple(notes)


def _bias_of(bias: BiasColumn, time: FloatArray, run: IntArray, file: IntArray, n_files: int) -> FloatArray:
    """``[T]`` values of one bias column, in the units of its file."""
    tables = [read_columns(path, ("time", bias.column)) for path in bias.files]
    if len(tables) == n_files:
        value = np.empty(len(time))
        for k, (table, path) in enumerate(zip(tables, bias.files, strict=True)):
            own = file == k
            value[own] = table[rows_at(path, table[:, 0], time[own]), 1]
        return value
    if len(tables) > 1 or len(np.unique(time)) < len(time):
        raise SettingsError(
            f"{len(tables)} file{'s' * (len(tables) > 1)} of {bias.column} for {n_files} trajectories"
            f" of {run[-1] + 1} runs",
            expected="one file of each, in the same order",
            remedy="write them with commas: --bias FIRST,SECOND:COLUMN",
        )
    return tables[0][rows_at(bias.files[0], tables[0][:, 0], time), 1]
