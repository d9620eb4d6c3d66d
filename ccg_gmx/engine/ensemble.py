"""Several runs at once, through any engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ccg_gmx.engine.parallel import Progress, report_steps, run_all
from ccg_gmx.engine.protocol import Engine
from ccg_gmx.engine.run_files import MdrunResult
from ccg_gmx.errors import SettingsError


@dataclass(frozen=True)
class Member:
    """One run of an ensemble; the arguments of ``Engine.mdrun``.

    Attributes:
        tpr: run input file.
        workdir: folder to run in.
        name: stem of the files.
        tables: bonded tables.
        plumed: PLUMED input file.
    """

    tpr: Path
    workdir: Path
    name: str = "run"
    tables: tuple[Path, ...] = field(default=())
    plumed: Path | None = None


def run_ensemble(engine: Engine, members: Sequence[Member], progress: Progress | None = None) -> list[MdrunResult]:
    """Run all members, as many at the same time as the engine's settings allow, each in processes of its own.

    Called again after a failure or a kill, finished members are not run again and the others go on from their
    checkpoints.

    Args:
        engine: what runs them.
        members: the runs; no two may share folder and name.
        progress: called with ("runs", members done with the fractions of running ones, members in total).

    Returns:
        Results in the order of the members.

    Raises:
        MdrunError: of the first member that fails; the others are stopped and leave a checkpoint.
        StoreError, SettingsError: as ``Engine.mdrun``; SettingsError also for two members with the same files.
    """
    places = [(Path(member.workdir).absolute(), member.name) for member in members]
    for place in places:
        if places.count(place) > 1:
            raise SettingsError(
                f"two runs of the ensemble write {place[0] / place[1]}.*", expected="a folder or a name for each"
            )
    return run_all(_run, [(engine, member) for member in members], engine.settings.runs_at_once, progress, "runs")


def _run(task: tuple[Engine, Member]) -> MdrunResult:
    engine, member = task
    return engine.mdrun(
        member.tpr,
        member.workdir,
        name=member.name,
        tables=member.tables,
        plumed=member.plumed,
        progress=report_steps,
    )
