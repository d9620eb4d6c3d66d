"""Coarse runs for the iterations of ``ccg tables``: the last frame of the target is where each of them starts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from ccg_gmx.cycle.table_request import ModelRun, Runner, TableRequest, frames_where
from ccg_gmx.errors import SettingsError, TrajectoryError
from ccg_gmx.potential.model import CoarseModel
from ccg_gmx.records import BeadFrames


def coarse_runner(request: TableRequest, threads: int = 1) -> Runner:
    """Runner through :func:`ccg_gmx.engine.coarse_engine.run_coarse`.

    Args:
        request: the job; its ``run`` holds fields of ``CoarseRunSettings``, but for seed and threads.
        threads: of a run.

    Raises:
        SettingsError: the settings of runs do not fit together.
    """
    from ccg_gmx.engine.coarse_engine import CoarseRunSettings, run_coarse

    try:
        settings = CoarseRunSettings(**request.run, threads=threads)
    except ValidationError as error:
        words = "; ".join(f"{'.'.join(map(str, e['loc']))} {e['msg']}".strip() for e in error.errors())
        raise SettingsError(f"settings of the coarse runs: {words}") from None
    topology = request.read_topology()
    start = last_frame(request.frames(topology.n_beads))

    def run(model: CoarseModel, folder: Path, seed: int) -> ModelRun:
        folder.mkdir(parents=True, exist_ok=True)
        done = run_coarse(model, topology, start, settings.model_copy(update={"seed": seed}), folder)
        info = {"engine": done.engine, "why": done.why, "ns_per_day": done.ns_per_day}
        return ModelRun(done.frames, done.pressure_bar, done.pressure_error, info)

    return run


def last_frame(frames: Iterator[BeadFrames]) -> BeadFrames:
    """The last frame of a stream.

    Raises:
        TrajectoryError: there is none.
    """
    last = None
    for last in frames:  # noqa: B007
        pass
    if last is None or not len(last.time):
        raise TrajectoryError("a trajectory without frames", expected="at least one")
    return frames_where(last, slice(-1, None))
