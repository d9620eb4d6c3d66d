"""The hidden-mode test on a user's system: from a workflow file, or from the folder of a finished run."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from ccg_gmx.cycle.config import Workflow, load_workflow
from ccg_gmx.cycle.finished import FinishedRun
from ccg_gmx.cycle.run import local_includes
from ccg_gmx.cycle.stages.fine import make_system
from ccg_gmx.cycle.stages.hidden_modes import HiddenModeReport, check_hidden_modes, load_check
from ccg_gmx.cycle.store import Work
from ccg_gmx.errors import SettingsError
from ccg_gmx.free_energy.hidden_modes import HiddenModeSettings, WalkerSeries

FROM_RUN = ("system", "split", "surface")


def check_source(source: Path, changes: dict[str, Any], seed: int) -> tuple[HiddenModeReport, WalkerSeries]:
    """Run the test in a temporary folder.

    Args:
        source: a workflow file (the molecule alone, points at its starts) or a run folder (its surface and flows too).
        changes: settings of :class:`HiddenModeSettings` that differ from the workflow's.
        seed: of everything random.

    Raises:
        SettingsError: if the source is neither.
        StoreError: if the run is not finished or parts of it are gone.
        CcgError: whatever the system's topology is refused for.
    """
    with tempfile.TemporaryDirectory(prefix="ccg_check_") as name:
        folder = Path(name)
        workflow, inputs = _from_run(source) if source.is_dir() else _from_workflow(source, folder, seed)
        block = getattr(workflow, "hidden_modes", HiddenModeSettings())
        settings = {
            "hidden_modes": {**block.model_dump(mode="json"), **changes},
            "starts": [start.torsions for start in workflow.fine_md.starts],
        }
        check_hidden_modes(Work(folder, settings, inputs, seed, {}, lambda *_: None))
        return load_check(folder)


def _from_run(source: Path) -> tuple[Workflow, dict[str, Path]]:
    """Workflow and stage folders of a finished run."""
    run = FinishedRun.open(source, "the folder of a finished run, or a workflow file")
    inputs = {name: run.stage(name) for name in FROM_RUN}
    return run.workflow(), inputs | {f"flow{i}": path for i, path in enumerate(run.stages("flows"))}


def _from_workflow(source: Path, folder: Path, seed: int) -> tuple[Workflow, dict[str, Path]]:
    """Workflow, and the system made from its topology."""
    if not source.is_file():
        raise SettingsError(f"no file or folder {source}", expected="a workflow file or the folder of a finished run")
    workflow = load_workflow(source)
    system = folder / "system"
    system.mkdir()
    files = {"topology": workflow.topology, "structure": workflow.structure, **local_includes(workflow.topology)}
    context = {"engine": workflow.engine.model_dump(mode="json")}
    make_system(Work(system, workflow.system_facts(), files, seed, context, lambda *_: None))
    return workflow, {"system": system}
