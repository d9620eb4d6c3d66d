"""Questions to programs that may be missing, broken or hanging: an answer or nothing, never an exception."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence

QUICK_S = 60.0
"""Seconds that a program gets for an answer; on a busy machine a PLUMED with libtorch takes long to load."""


def run(command: Sequence[str], timeout_s: float | None = None) -> subprocess.CompletedProcess[str] | None:
    """Run a program to its end; None when it cannot be started or takes too long.

    Args:
        command: program and arguments.
        timeout_s: seconds it gets; None for ``QUICK_S``.
    """
    try:
        return subprocess.run(
            list(command),
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            stdin=subprocess.DEVNULL,
            timeout=QUICK_S if timeout_s is None else timeout_s,
            check=False,
            env={**os.environ, "LC_ALL": "C"},
        )
    except (OSError, subprocess.TimeoutExpired):
        return None


def first_line(command: Sequence[str]) -> str:
    """Return the first line a program prints, or an empty string when it fails.

    Args:
        command: program and arguments.
    """
    result = run(command)
    lines = result.stdout.strip().splitlines() if result is not None and result.returncode == 0 else []
    return lines[0].strip() if lines else ""
