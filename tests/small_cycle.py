"""Settings of a cycle that is over in seconds: every stage runs, no number is worth anything."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
WORKFLOW = ROOT / "workflows" / "alanine_dipeptide.yaml"

SETTINGS = (
    "fine_md.runs_per_start=1",
    "fine_md.steps=20000",
    "fine_md.output_every=100",
    "fine_md.discard_ps=2",
    "flow.couplings=1",
    "flow.bead_couplings=1",
    "flow.width=32",
    "flow.coupling_width=8",
    "flow.circle_width=8",
    "likelihood.steps=30",
    "likelihood.batch=256",
    "likelihood.checkpoint_every=10",
    "energy.steps=40",
    "energy.learning_rate=0.005",
    "energy.batch=128",
    "energy.checkpoint_every=10",
    "draws.points=128",
    "draws.final_points=128",
    "draws.draws_per_point=64",
    "draws.bead_points=128",
    "draws.draws_per_bead_point=16",
    "coarse_md.runs=2",
    "coarse_md.copies=8",
    "coarse_md.steps=10000",
    "coarse_md.final_steps=20000",
    "coarse_md.output_every=50",
    "coarse_md.restored_frames=40",
    "joint_fit.order=4",
    "cycle.members=2",
    "cycle.min_turns=2",
    "cycle.max_turns=2",
)


def ccg(*arguments: object, env: dict[str, str] | None = None, **options: object) -> subprocess.CompletedProcess[str]:
    """Run the command line in its own process, as a user does, and return what it wrote."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **(env or {})}
    command = [sys.executable, "-m", "ccg_gmx.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, **options)  # type: ignore[call-overload]


def settings(*more: str) -> list[str]:
    """Return the ``--set`` options of the small cycle, with further ones that win over them."""
    return [word for item in (*SETTINGS, *more) for word in ("--set", item)]


def run_arguments(out: Path, *more: str, workflow: Path = WORKFLOW) -> list[str]:
    """Return the arguments of ``ccg run`` for the small cycle."""
    return ["run", str(workflow), "--out", str(out), *settings(*more)]


@contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[Path]:
    """Mount a file system of a few kilobytes; the test is skipped where that is not allowed."""
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(["mount", *options], capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
