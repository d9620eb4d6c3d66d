"""PLUMED's column files (COLVAR): named columns in time, and the row of each frame of a trajectory."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ccg_gmx.errors import TrajectoryError
from ccg_gmx.records import FloatArray, IntArray

FLOAT32_EPS = float(np.finfo(np.float32).eps)


def read_columns(path: Path, names: Sequence[str]) -> FloatArray:
    """Read columns of a COLVAR file by the names of its ``#! FIELDS`` line.

    Args:
        path: the file; a restarted run may repeat its header.
        names: columns wanted.

    Returns:
        ``[rows, len(names)]`` as the file has them.

    Raises:
        TrajectoryError: file missing, without or with changing FIELDS, without such a column, with a torn row, or
            with a value that is not finite.
    """
    try:
        fields = _fields(path)
        missing = [name for name in names if name not in fields]
        if missing:
            raise TrajectoryError(
                f"{path} has no column {missing[0]}", expected=f"one of {', '.join(fields)}", remedy="check its name"
            )
        with warnings.catch_warnings():  # no rows are refused below
            warnings.simplefilter("ignore", UserWarning)
            table = np.loadtxt(path, comments="#", usecols=[fields.index(name) for name in names], ndmin=2)
    except OSError as error:
        raise TrajectoryError(f"{path} cannot be read ({error.strerror or error})", remedy="check the path") from None
    except ValueError as error:  # a row with too few columns, or one that is no number
        reason = " ".join(str(error).split()).split("; use")[0]
        raise TrajectoryError(
            f"{path} has a damaged row: {reason}", expected="numbers in every column", remedy="remove the torn row"
        ) from None
    if not len(table):
        raise TrajectoryError(f"{path} has no rows", expected="one for each frame of the trajectory")
    if len(bad := np.argwhere(~np.isfinite(table))):
        row, column = bad[0]
        raise TrajectoryError(f"{path}: {names[column]} is {table[row, column]} in row {row + 1}", expected="a number")
    return table


def _fields(path: Path) -> list[str]:
    found: list[str] = []
    with path.open(encoding="utf-8", errors="replace") as stream:
        for line in stream:
            if not (match := re.match(r"#! FIELDS (.+)", line)):
                continue
            fields = match[1].split()
            if found and fields != found:
                raise TrajectoryError(
                    f"{path} changes its columns from {' '.join(found)} to {' '.join(fields)}",
                    expected="the same columns all the way",
                    remedy="split the file where the columns change",
                )
            found = fields
    if not found:
        raise TrajectoryError(
            f"{path} has no #! FIELDS line", expected="a file written by PLUMED's PRINT", remedy="check the path"
        )
    return found


def rows_at(path: Path, row_times: FloatArray, frame_times: FloatArray) -> IntArray:
    """The row of each frame, by its time.

    Where a restarted run wrote a time twice, the later row counts: it is the one the trajectory went on from.

    Args:
        path: file of the rows, for messages.
        row_times: ``[rows]`` ps.
        frame_times: ``[T]`` ps; rounded as trajectories store them, to float32.

    Returns:
        ``[T]`` row indices.

    Raises:
        TrajectoryError: a frame has no row at its time.
    """
    order = np.argsort(row_times, kind="stable")
    times = row_times[order]
    tolerance = np.maximum(1e-3, 2 * FLOAT32_EPS * np.abs(frame_times))
    after = np.clip(np.searchsorted(times, frame_times), 1, max(len(times) - 1, 1))
    nearest = np.where(
        np.abs(times[after - 1] - frame_times) <= np.abs(times[np.minimum(after, len(times) - 1)] - frame_times),
        after - 1,
        np.minimum(after, len(times) - 1),
    )
    lost = np.abs(times[nearest] - frame_times) > tolerance
    if lost.any():
        spacing = f", every {np.median(np.diff(times)):g} ps" if len(times) > 1 else ""
        raise TrajectoryError(
            f"{path} has no row at {frame_times[lost][0]:g} ps, nor at {int(lost.sum()) - 1} other of the "
            f"{len(frame_times)} frames",
            expected=f"a row for every frame (its rows go from {times[0]:g} to {times[-1]:g} ps{spacing})",
            remedy="give the file of this run, or choose frames that have rows with --start and --stride",
        )
    # the last of rows with equal times
    return order[np.searchsorted(times, times[nearest], side="right") - 1]
