"""Tables as GROMACS' tools write them."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from ccg_gmx.records import FloatArray


def read_xvg(path: Path) -> tuple[list[str], FloatArray]:
    """Read a table.

    Args:
        path: .xvg file.

    Returns:
        The legends, and the columns ``[T, 1 + len(legends)]``.
    """
    names, header = [], 0
    with path.open(encoding="utf-8") as stream:
        for line in stream:
            if not line.startswith(("#", "@")):
                break
            header += 1
            if match := re.match(r'@ s\d+ legend "(.*)"', line):
                names.append(match[1])
    return names, np.loadtxt(path, skiprows=header, ndmin=2, dtype=np.float64)
