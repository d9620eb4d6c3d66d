"""Files of columns that PLUMED writes (COLVAR, HILLS): named columns, constants of the header, parts of a restart."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ccg_gmx.errors import TrajectoryError
from ccg_gmx.records import FloatArray, IntArray

_HEADER = re.compile(r"#! FIELDS[ \t]+([^\n]*)\n?")
_SETTING = re.compile(r"^#! SET[ \t]+(\S+)[ \t]+(\S+)", re.MULTILINE)
_LAST_LINE = re.compile(r"[^\n]*\n?\Z")


@dataclass(frozen=True)
class PlumedTable:
    """All rows of one file.

    Attributes:
        path: the file.
        fields: names of the columns.
        values: ``[rows, len(fields)]`` as the file has them.
        part: ``[rows]`` how many headers stand above each row, from 0; a restart, or another file appended, repeats
            the header.
        settings: constants of the header (``#! SET name value``); the last value of each.
        notes: what was left out, in words.
    """

    path: Path
    fields: tuple[str, ...]
    values: FloatArray
    part: IntArray
    settings: dict[str, str]
    notes: tuple[str, ...] = ()

    def columns(self, names: Sequence[str]) -> FloatArray:
        """``[rows, len(names)]`` columns by name.

        Raises:
            TrajectoryError: no such column, or one of its values is not finite.
        """
        for name in names:
            if name not in self.fields:
                known = ", ".join(self.fields)
                raise TrajectoryError(f"{self.path} has no column {name}", expected=f"one of {known}")
        chosen = self.values[:, [self.fields.index(name) for name in names]]
        if len(bad := np.argwhere(~np.isfinite(chosen))):
            row, column = bad[0]
            raise TrajectoryError(
                f"{self.path}: {names[column]} is {chosen[row, column]} in row {row + 1} of {len(chosen)}",
                expected="a finite number",
                remedy="remove the row, or find out why the run produced it",
            )
        return chosen

    def domain(self, name: str) -> tuple[float, float] | None:
        """Ends of one period of a variable, or None when the header gives none.

        Raises:
            TrajectoryError: the header gives one end only, or ends that are no numbers.
        """
        ends = [self.settings.get(f"{end}_{name}") for end in ("min", "max")]
        if ends == [None, None]:
            return None
        low, high = (math.nan if end is None else plumed_number(end) for end in ends)
        if not high > low:
            raise TrajectoryError(
                f"{self.path} says that {name} goes from {ends[0]} to {ends[1]}", expected="two rising numbers"
            )
        return low, high


def plumed_number(text: str) -> float:
    """A number as PLUMED writes limits: ``1.5``, ``-pi``, ``2*pi``, ``pi/2``, ``inf``; nan for anything else."""
    match = re.fullmatch(r"([+-]?)(?:([\d.]+)\*?)?pi(?:/([\d.]+))?", text.strip())
    try:
        if match is None:
            return float(text)
        value = math.pi * float(match[2] or 1) / float(match[3] or 1)
    except (ValueError, ZeroDivisionError):
        return math.nan
    return -value if match[1] == "-" else value


def read_table(path: Path) -> PlumedTable:
    """Read a file of columns.

    A last row that is not whole (the simulation still runs, or was killed there) is left out, with a note.

    Args:
        path: the file.

    Raises:
        TrajectoryError: file missing or empty, without or with changing FIELDS, without rows, or with a row that is
            torn or holds something else than numbers.
    """
    try:
        text = Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise TrajectoryError(f"{path} cannot be read ({error.strerror or error})", remedy="check the path") from None
    if not text.strip():
        raise TrajectoryError(f"{path} is empty", expected="columns written by PLUMED", remedy="check the path")
    headers = list(_HEADER.finditer(text))
    if not headers:
        raise TrajectoryError(
            f"{path} has no #! FIELDS line", expected="a file written by PLUMED", remedy="check the path"
        )
    fields = _same_fields(path, [tuple(header[1].split()) for header in headers])
    ends = [*(header.start() for header in headers[1:]), len(text)]
    tables, dropped = [], 0
    for header, end in zip(headers, ends, strict=True):
        body, torn = _whole_rows(text[header.end() : end], len(fields))
        dropped += torn
        tables.append(_numbers(path, body, len(fields)))
    if not sum(len(table) for table in tables):
        raise TrajectoryError(f"{path} has no rows", expected="rows of numbers", remedy="wait until it has some")
    notes = (f"{Path(path).name}: {_rows(dropped)} left out that {'was' if dropped == 1 else 'were'} not whole",)
    part = np.repeat(np.arange(len(tables)), [len(table) for table in tables])
    settings = dict(_SETTING.findall(text))
    return PlumedTable(Path(path), fields, np.concatenate(tables), part, settings, notes if dropped else ())


def _rows(count: int) -> str:
    return f"{count} row{'s' * (count != 1)}"


def _same_fields(path: Path, found: list[tuple[str, ...]]) -> tuple[str, ...]:
    for fields in found:
        if fields != found[0]:
            raise TrajectoryError(
                f"{path} changes its columns from {' '.join(found[0])} to {' '.join(fields)}",
                expected="the same columns all the way",
                remedy="split the file where the columns change",
            )
    return found[0]


def _whole_rows(body: str, width: int) -> tuple[str, int]:
    """Rows up to the last whole one, and how many (0 or 1) were cut off: PLUMED ends every row with a line end."""
    match = _LAST_LINE.search(body.rstrip("\n") + "\n" * body.endswith("\n"))
    last = match[0] if match else ""
    if not last.strip() or last.lstrip().startswith("#") or (last.endswith("\n") and len(last.split()) >= width):
        return body, 0
    return body.rstrip("\n")[: -len(last.rstrip("\n"))], 1


def _numbers(path: Path, body: str, width: int) -> FloatArray:
    try:
        with warnings.catch_warnings():  # parts without rows are fine
            warnings.simplefilter("ignore", UserWarning)
            table = np.loadtxt(io.StringIO(body), comments="#", ndmin=2)
    except ValueError as error:
        reason = " ".join(str(error).split()).split("; use")[0]
        raise TrajectoryError(
            f"{path} has a damaged row: {reason}", expected="numbers in every column", remedy="remove the row"
        ) from None
    if not table.size:
        return np.zeros((0, width))
    if table.shape[1] != width:
        raise TrajectoryError(f"{path} has {table.shape[1]} columns", expected=f"{width}, as its FIELDS line says")
    return table
