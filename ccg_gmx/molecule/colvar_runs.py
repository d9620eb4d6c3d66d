"""COLVAR files as runs: restarts joined, walkers told apart, variables with their periods."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ccg_gmx.errors import TrajectoryError
from ccg_gmx.molecule.plumed_table import PlumedTable, read_table
from ccg_gmx.records import FloatArray, IntArray


@dataclass(frozen=True)
class ColvarRuns:
    """Rows of COLVAR files, those of a run in order of time.

    Attributes:
        values: ``[T, n]`` columns asked for, units of the file.
        time: ``[T]`` as in the file (ps).
        run: ``[T]`` run of each row, from 0.
        file: ``[T]`` file of each row, from 0.
        domains: ends of one period of each column; None where it is not periodic.
        notes: how files and parts were taken together, in words.
    """

    values: FloatArray
    time: FloatArray
    run: IntArray
    file: IntArray
    domains: tuple[tuple[float, float] | None, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Piece:
    """Rows of one run within one file."""

    time: FloatArray
    values: FloatArray


def read_colvars(
    paths: Sequence[Path], names: Sequence[str], *, start: float = 0.0, stride: int = 1, join: bool = True
) -> ColvarRuns:
    """Read columns of COLVAR files as runs.

    Within a file, time that goes back under a repeated header is a restart, and the later rows count; but if it goes
    back to the beginning of the run or before, another walker was appended, a run of its own. A file that begins where
    the one before it ends continues its run; any other is a run of its own.

    Args:
        paths: files.
        names: columns.
        start: leave out rows before this time.
        stride: keep every ``stride``-th of the remaining rows of each run.
        join: whether a file may continue the one before it; False for files of different biases.

    Raises:
        TrajectoryError: in one line, what of a file does not fit: see :func:`read_table`; also time that goes back
            without a header, files that disagree on a period, and no rows left.
    """
    tables = [read_table(path) for path in paths]
    notes = [note for table in tables for note in table.notes]
    domains = tuple(_domain(tables, name) for name in names)
    pieces: list[_Piece] = []
    run_of_piece: list[int] = []
    file_of_piece: list[int] = []
    for index, table in enumerate(tables):
        own, words = _pieces(table, names)
        notes += words
        if join and pieces and _continues(pieces[-1].time, own[0].time):
            notes.append(f"{table.path.name} continues {tables[index - 1].path.name}")
            own[0] = _after(own[0], pieces[-1].time[-1])
            run_of_piece.append(run_of_piece[-1])
        else:
            run_of_piece.append(run_of_piece[-1] + 1 if run_of_piece else 0)
        run_of_piece += [run_of_piece[-1] + 1 + k for k in range(len(own) - 1)]
        file_of_piece += [index] * len(own)
        pieces += own
    if run_of_piece[-1] > 0 and join:
        notes.append(f"{run_of_piece[-1] + 1} runs, taken as independent")
    sizes = [len(piece.time) for piece in pieces]
    time = np.concatenate([piece.time for piece in pieces])
    run = np.repeat(run_of_piece, sizes)
    kept = _chosen(time, run, start, stride)
    if not len(kept):
        raise TrajectoryError(
            f"no row from time {start:g} on (the files end at {time.max():g})", remedy="use a smaller --start"
        )
    values = np.concatenate([piece.values for piece in pieces])
    file = np.repeat(file_of_piece, sizes)
    return ColvarRuns(values[kept], time[kept], run[kept], file[kept], domains, tuple(notes))


def _domain(tables: Sequence[PlumedTable], name: str) -> tuple[float, float] | None:
    found = [table.domain(name) for table in tables]
    for table, domain in zip(tables, found, strict=True):
        if domain != found[0]:
            raise TrajectoryError(
                f"{table.path.name} and {tables[0].path.name} disagree on the period of {name}: {domain}, {found[0]}",
                expected="one variable of one kind in all files",
            )
    return found[0]


def _pieces(table: PlumedTable, names: Sequence[str]) -> tuple[list[_Piece], list[str]]:
    """The runs of one file, and words about restarts."""
    data = table.columns(["time", *names])
    pieces: list[_Piece] = []
    notes: list[str] = []
    for part in np.unique(table.part):
        own = data[table.part == part]
        _require_order(table.path, own[:, 0])
        new = _Piece(own[:, 0], own[:, 1:])
        if not pieces or new.time[0] <= pieces[-1].time[0]:
            pieces.append(new)
            continue
        before = pieces.pop()
        kept = before.time < new.time[0]
        if not kept.all():
            lost = int((~kept).sum())
            notes.append(f"{table.path.name}: restart at {new.time[0]:g}; {lost} of the rows before it left out")
        joined = (np.concatenate([a[kept], b]) for a, b in ((before.time, new.time), (before.values, new.values)))
        pieces.append(_Piece(*joined))
    return pieces, notes


def _require_order(path: Path, time: FloatArray) -> None:
    if len(back := np.flatnonzero(np.diff(time) < 0)):
        raise TrajectoryError(
            f"{path} goes back in time, from {time[back[0]]:g} to {time[back[0] + 1]:g}, without a new header",
            expected="times that rise, or a #! FIELDS line where a restart begins",
            remedy="give the runs as files of their own",
        )


def _continues(before: FloatArray, own: FloatArray) -> bool:
    if len(before) < 2:
        return False
    spacing = float(np.median(np.diff(before)))
    return bool(-1e-3 * spacing <= own[0] - before[-1] < 1.5 * spacing)


def _after(piece: _Piece, last: float) -> _Piece:
    later = piece.time > last
    return _Piece(piece.time[later], piece.values[later])


def _chosen(time: FloatArray, run: IntArray, start: float, stride: int) -> IntArray:
    rows = np.flatnonzero(time >= start)
    first = np.searchsorted(run[rows], run[rows])  # runs follow each other: place of the first row of the own run
    return np.asarray(rows[(np.arange(len(rows)) - first) % stride == 0])
