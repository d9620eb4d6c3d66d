"""The road of the tables workflow: fine MD -> beads -> a model per method -> a run with it -> export.

Every step is a stage in the store (see store.py), so running again with the same folder resumes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ccg_gmx.cycle.run import local_includes
from ccg_gmx.cycle.stage_runner import Bar, StageRunner
from ccg_gmx.cycle.stages.series import run_series
from ccg_gmx.cycle.store import StageFunction, Store
from ccg_gmx.cycle.tables import stages
from ccg_gmx.cycle.tables.config import TablesWorkflow


@dataclass(frozen=True)
class TablesResults:
    """Folders of all stages.

    Attributes:
        workflow: what was run.
        fine: fine MD, None where a finished run was given.
        beads: its frames as beads.
        models: method -> the model.
        runs: method -> the run with it.
        export: the first method's model for other engines.
    """

    workflow: TablesWorkflow
    fine: Path | None
    beads: Path
    models: dict[str, Path]
    runs: dict[str, Path]
    export: Path

    @property
    def used(self) -> tuple[Path, ...]:
        """All of them."""
        fine = () if self.fine is None else (self.fine,)
        return (*fine, self.beads, *self.models.values(), *self.runs.values(), self.export)


class TablesRun:
    """One run of a tables workflow in one folder.

    Args:
        workflow: what to run.
        store: where.
        bar: ``(label, total) -> progress bar``; None for silence.
        log: called with a line now and then.
    """

    def __init__(
        self, workflow: TablesWorkflow, store: Store, bar: Bar | None = None, log: Callable[[str], None] = print
    ) -> None:
        self.workflow, self.log = workflow, log
        context = {"engine": workflow.engine.model_dump(mode="json"), "threads": workflow.coarse_md.threads}
        self._runner = StageRunner(store, workflow.seed, context, bar)

    def run(self) -> TablesResults:
        """Run, or resume, everything.

        Raises:
            CcgError: whatever stage failed, in one line.
        """
        methods = self.workflow.methods
        fine = self._fine()
        beads = self._beads(fine)
        models = self._many("tables", stages.make_model, {"beads": beads}, [self._request(name) for name in methods])
        final = self.workflow.final_steps or self.workflow.coarse_md.steps
        runs = [
            self._runner.one(
                "coarse_md", stages.run_model, self._request(name, final), {"beads": beads, "model": model}, name
            )
            for name, model in zip(methods, models, strict=True)
        ]
        export = self._runner.one("export", stages.export_model, {}, {"beads": beads, "model": models[0]})
        names = [str(method) for method in methods]
        by_method = [dict(zip(names, folders, strict=True)) for folders in (models, runs)]
        return TablesResults(self.workflow, fine, beads, by_method[0], by_method[1], export)

    def _fine(self) -> Path | None:
        workflow = self.workflow
        if not workflow.fine_md.mdps:
            return None
        inputs = {"topology": workflow.topology, "structure": workflow.structure, **local_includes(workflow.topology)}
        inputs |= {f"mdp{index}": mdp for index, mdp in enumerate(workflow.fine_md.mdps)}
        return self._runner.one("fine_md", run_series, {"count": len(workflow.fine_md.mdps)}, inputs)

    def _beads(self, fine: Path | None) -> Path:
        given = self.workflow.fine_md
        inputs = {"mapping": self.workflow.mapping}
        if fine is not None:
            inputs["fine"] = fine
        elif given.tpr is not None and given.trajectory is not None:
            inputs |= {"tpr": given.tpr, "trajectory": given.trajectory}
        forces = "fm" in self.workflow.methods
        return self._runner.one("map", stages.map_beads, {"discard_ps": given.discard_ps, "forces": forces}, inputs)

    def _request(self, method: str, steps: int | None = None) -> dict[str, Any]:
        """Settings of a model, or of the run with it."""
        workflow = self.workflow
        potential = workflow.potential
        run = workflow.coarse_md.model_dump(exclude={"seed", "threads"})
        return {
            "method": method,
            "temperature_K": workflow.temperature_K,
            "cutoff_nm": potential.cutoff_nm,
            "rdf_range_nm": potential.rdf_range_nm,
            "rdf_bin_nm": potential.rdf_bin_nm,
            "basis": asdict(potential.basis),
            "iterations": workflow.iterations.model_dump(),
            "run": run if steps is None else {**run, "steps": steps},
        }

    def _many(
        self, name: str, function: StageFunction, inputs: dict[str, Path], settings: list[dict[str, Any]]
    ) -> list[Path]:
        """Run one stage per method side by side, as far as there are workers."""
        jobs = [self._runner.job(name, function, given, inputs, str(given["method"])) for given in settings]
        return self._runner.many(jobs)
