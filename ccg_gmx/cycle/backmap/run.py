"""The road of the backmap workflow: fine MD -> a model -> restored frames -> score card, minimised frames.

Every step is a stage in the store (see store.py), so running again with the same folder resumes.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ccg_gmx.backmap.card import DIVERSITY_SAMPLES
from ccg_gmx.backmap.jobs import TrainRequest
from ccg_gmx.cycle.backmap import stages
from ccg_gmx.cycle.backmap.config import BackmapWorkflow, FineDynamics
from ccg_gmx.cycle.run import local_includes
from ccg_gmx.cycle.stage_runner import Bar, StageRunner, stage_seed
from ccg_gmx.cycle.store import Store, storing
from ccg_gmx.errors import SettingsError


@dataclass(frozen=True)
class BackmapResults:
    """Folders of all stages.

    Attributes:
        workflow: what was run.
        fine: fine runs; none where trajectories were given.
        model: the trained model and its held-out frames.
        restored: restored coarse frames.
        card: the score card.
        minimised: minimised frames, None where none were asked for.
        used: all of them.
    """

    workflow: BackmapWorkflow
    fine: tuple[Path, ...]
    model: Path
    restored: Path
    card: Path
    minimised: Path | None
    used: tuple[Path, ...]


class BackmapRun:
    """One run of a backmap workflow in one folder.

    Args:
        workflow: what to run.
        store: where.
        bar: ``(label, total) -> progress bar``; None for silence.
    """

    def __init__(self, workflow: BackmapWorkflow, store: Store, bar: Bar | None = None) -> None:
        self.workflow, self.store = workflow, store
        self._runner = StageRunner(store, workflow.seed, {"engine": workflow.engine.model_dump(mode="json")}, bar)

    def run(self) -> BackmapResults:
        """Run, or resume, everything.

        Raises:
            CcgError: whatever stage failed, in one line.
        """
        fine = self.fine_runs()
        model = self._train(fine)
        settings = self.workflow.restore.model_dump()
        coarse = {} if self.workflow.coarse is None else {"coarse": self.workflow.coarse}
        restored = self._runner.one("restore", stages.restore, settings, {"model": model, **coarse})
        how = self.workflow.restore.model_dump(include={"candidates", "rounds", "sweeps"})
        card = self._runner.one("card", stages.score, {**how, "samples": DIVERSITY_SAMPLES}, {"model": model})
        minimised = self._minimise(model, restored)
        used = tuple(dict.fromkeys(self.store.used))
        return BackmapResults(self.workflow, tuple(fine), model, restored, card, minimised, used)

    def _train(self, fine: list[Path]) -> Path:
        workflow = self.workflow
        if fine:
            inputs = {f"run{k}": run for k, run in enumerate(fine)}
        else:
            inputs = {f"trajectory{k}": path for k, path in enumerate(workflow.trajectories)}
            inputs["topology"] = workflow.topology
        if workflow.structure is not None:
            inputs["structure"] = workflow.structure
        settings = {**training_settings(workflow), "files": len(fine) or len(workflow.trajectories)}
        if workflow.mapping_file is not None:  # its content counts, not where it lies
            inputs["mapping"], settings["beads"] = workflow.mapping_file, workflow.mapping_file.name
        return self._runner.one("train", stages.train, settings, inputs)

    def _minimise(self, model: Path, restored: Path) -> Path | None:
        workflow, top = self.workflow, self.workflow.minimisation_topology
        if workflow.minimise is None or top is None:
            return None
        settings = workflow.minimise.model_dump(include={"frames", "steps"})
        settings["format"] = workflow.restore.format
        inputs = {"model": model, "restored": restored, "topology": top, **local_includes(top)}
        return self._runner.one("minimise", stages.minimise, settings, inputs)

    def fine_runs(self) -> list[Path]:
        """Make the fine runs side by side, as far as there are workers; none where trajectories are given."""
        workflow, md = self.workflow, self.workflow.fine_md
        if md is None or workflow.structure is None:
            return []
        inputs = {"topology": workflow.topology, **local_includes(workflow.topology)}
        inputs |= self._starts(md, {**inputs, "structure": workflow.structure})
        shared = md.model_dump(include={"temperature_K", "steps", "output_every", "cutoff_nm"})
        jobs = [
            self._runner.job("fine_md", stages.run_fine, {**shared, "index": k}, inputs, f"run {k}")
            for k in range(md.runs)
        ]
        return self._runner.many(jobs)

    def _starts(self, md: FineDynamics, inputs: dict[str, Path]) -> dict[str, Path]:
        """The input that fine runs start from."""
        if not md.hot_steps:
            return {"structure": inputs["structure"]}
        settings = md.model_dump(include={"hot_temperature_K", "hot_steps", "runs", "cutoff_nm"})
        return {"starts": self._runner.one("starts", stages.heat, settings, inputs)}


def training_request(workflow: BackmapWorkflow, out: Path, bar: Bar | None = None) -> TrainRequest:
    """What a workflow says about training alone; its fine runs are made first, in ``<stem>.md`` beside the model.

    Args:
        workflow: its paths absolute.
        out: model file to write.
        bar: as in :class:`BackmapRun`.

    Raises:
        SettingsError: fine runs by several processes of torchrun.
        CcgError: whatever the runs need and do not find.
    """
    runs: list[Path] = []
    if workflow.fine_md is not None:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise SettingsError(
                "fine_md under torchrun",
                expected="trajectories that are there",
                remedy="make the fine runs first, by `ccg run` or by this command without torchrun",
            )
        store = Store(out.resolve().with_name(f"{out.stem}.md"), workflow.engine.runs_at_once)
        with store.lock(), storing(store.root):
            runs = BackmapRun(workflow, store, bar).fine_runs()
    return stages.train_request(
        topology=runs[0] / "run.tpr" if runs else workflow.topology,
        trajectories=[run / "run.trr" for run in runs] or workflow.trajectories,
        structure=workflow.structure,
        settings=training_settings(workflow),
        seed=stage_seed(workflow.seed, "train", ""),  # that of the stage: the model is the same
        out=out,
        engine=workflow.engine,
    )


def training_settings(workflow: BackmapWorkflow) -> dict[str, Any]:
    """Settings of a training, as JSON."""
    return workflow.model_dump(mode="json", include={"beads", "stride", "start_ps", "model", "training"})
