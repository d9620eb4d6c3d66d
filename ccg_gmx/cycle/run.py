"""The loop: fine MD -> flow -> weights -> free energy -> coarse force field -> coarse MD -> back to the flow.

Every step is a stage in the store (see store.py), so running again with the same folder resumes.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ccg_gmx.cycle.config import Workflow
from ccg_gmx.cycle.stages import coarse, fine, learn, restore
from ccg_gmx.cycle.store import Job, StageFunction, Store
from ccg_gmx.cycle.summary import Results, Turn, assess_turn
from ccg_gmx.errors import CcgError, SettingsError
from ccg_gmx.free_energy.reference import load_reference
from ccg_gmx.free_energy.surface import forward_kl, shifted

Bar = Callable[[str, int], Any]


@dataclass
class Cycle:
    """One run of a workflow in one folder."""

    workflow: Workflow
    store: Store
    bar: Bar | None = None
    log: Callable[[str], None] = lambda _: None
    inputs: dict[str, Path] = field(default_factory=dict)

    def run(self) -> Results:
        """Run, or resume, the whole cycle.

        Returns:
            Folders of all final stages and the record of every turn.

        Raises:
            CcgError: whatever stage failed, in one line.
        """
        settings = self.workflow.cycle
        self._check_reference()
        self.inputs = self._prepare()
        flows = self._train_likelihood()
        proposal = self._one("proposal", coarse.first_proposal, {"grid": settings.grid, "n_s": self._n_s()}, {})
        turns: list[Turn] = []
        previous: Path | None = None
        before: dict[str, Path] = {}
        for index in range(settings.max_turns):
            flows = self._train_energy(flows, proposal, index)
            draws, surface = self._estimate(flows, proposal, f"turn {index}", self.workflow.draws.points)
            model, walkers = self._coarse_model(flows, surface, before, f"turn {index}", self.workflow.coarse_md.steps)
            before = {"coarse_fit": model, "coarse": walkers}
            turns.append(assess_turn(index, self.workflow, draws, surface, previous, walkers))
            self.log(turns[-1].words())
            proposal = self._next_proposal(surface, walkers)
            previous = surface
            if index + 1 >= settings.min_turns and turns[-1].settled(settings.tolerance_kT):
                break
        return self._report_run(flows, proposal, before, turns)

    def _report_run(self, flows: list[Path], proposal: Path, before: dict[str, Path], turns: list[Turn]) -> Results:
        """Estimate everything once more from fresh draws with the flows frozen (THEORY.md section 5, step 7)."""
        draws, surface = self._estimate(flows, proposal, "final", self.workflow.draws.final_points)
        model, walkers = self._coarse_model(flows, surface, before, "final", self.workflow.coarse_md.final_steps)
        turns.append(assess_turn(len(turns), self.workflow, draws, surface, turns[-1].surface, walkers, final=True))
        self.log(turns[-1].words())
        restored = self._one(
            "restore",
            restore.restore_frames,
            {"frames": self.workflow.coarse_md.restored_frames},
            {
                **self.inputs,
                "structure": self.workflow.structure,
                "flow": flows[0],
                "coarse": walkers,
                "coarse_fit": model,
            },
        )
        return Results(
            workflow=self.workflow,
            system=self.inputs["system"],
            split=self.inputs["split"],
            flows=flows,
            draws=draws,
            surface=surface,
            coarse_fit=model,
            coarse=walkers,
            restored=restored,
            turns=turns,
            used=tuple(dict.fromkeys(self.store.used)),
        )

    def _check_reference(self) -> None:
        """Find out before the first step of MD whether the reference can be compared with this run's surface."""
        workflow, names = self.workflow, tuple(self.workflow.coarse.torsions)
        if workflow.reference is None:
            return
        flat = shifted(np.zeros((workflow.cycle.grid,) * len(names)), names, workflow.temperature_K)
        try:
            forward_kl(load_reference(workflow.reference).surface, flat)
        except CcgError as error:
            raise SettingsError(
                f"the reference does not fit this run: {error}", remedy="change the run, or set reference: null"
            ) from None

    def _n_s(self) -> int:
        return len(self.workflow.coarse.torsions)

    def _prepare(self) -> dict[str, Path]:
        """Resolve the system, run the fine MD and split its frames."""
        workflow = self.workflow
        files = {"topology": workflow.topology, **local_includes(workflow.topology)}
        facts: dict[str, Any] = {
            "temperature_K": workflow.temperature_K,
            "beads": workflow.coarse.beads,
            "torsions": {name: list(atoms) for name, atoms in workflow.coarse.torsions.items()},
        }
        if workflow.implicit_solvent is not None:
            facts["implicit_solvent"] = workflow.implicit_solvent.model_dump(mode="json")
        system = self._one("system", fine.make_system, facts, {**files, "structure": workflow.structure})
        runs = self._fine_runs(system, files)
        md = workflow.fine_md
        given = {f"given{i}": item.trajectory for i, item in enumerate(md.trajectories)}
        tprs = {f"tpr{i}": item.tpr for i, item in enumerate(md.trajectories)}
        split = self._one(
            "split",
            fine.split_frames,
            {
                "runs": len(runs),
                "discard_ps": md.discard_ps,
                "held_out_fraction": md.held_out_fraction,
                "given": [{"start_ps": item.start_ps, "stride": item.stride} for item in md.trajectories],
            },
            {"system": system, **{f"run{i}": run for i, run in enumerate(runs)}, **given, **tprs},
        )
        return {"system": system, "split": split}

    def _fine_runs(self, system: Path, files: dict[str, Path]) -> list[Path]:
        md = self.workflow.fine_md
        inputs = {"system": system, "structure": self.workflow.structure, **files}
        walkers = {"walkers": md.walkers} if self.workflow.implicit_solvent is not None else {}
        jobs = [
            self._job(
                "fine_md",
                fine.run_fine,
                {
                    "torsions": start.torsions,
                    "steps": md.steps,
                    "dt_ps": md.dt_ps,
                    "output_every": md.output_every,
                    "friction_time_ps": md.friction_time_ps,
                    **walkers,
                },
                inputs,
                f"{start.name} {replicate}",
            )
            for start in md.starts
            for replicate in range(md.runs_per_start)
        ]
        return self.store.run(jobs, self.bar) if jobs else []

    def _train_likelihood(self) -> list[Path]:
        settings = {
            "flow": self.workflow.flow.model_dump(mode="json"),
            "likelihood": self.workflow.likelihood.model_dump(mode="json"),
        }
        return self._members(
            "likelihood", learn.learn_likelihood, settings, [dict(self.inputs) for _ in self._range()], ""
        )

    def _train_energy(self, flows: list[Path], proposal: Path, turn: int) -> list[Path]:
        energy = self.workflow.energy
        steps = energy.steps if turn == 0 else max(1, round(energy.steps * self.workflow.cycle.later_turns))
        settings = {"energy": energy.model_copy(update={"steps": steps}).model_dump(mode="json")}
        inputs = [{**self.inputs, "flow": flow, "proposal": proposal} for flow in flows]
        return self._members("energy", learn.learn_energy, settings, inputs, f"turn {turn}")

    def _estimate(self, flows: list[Path], proposal: Path, label: str, points: int) -> tuple[list[Path], Path]:
        """Draw with every member, then fit one surface to all draws."""
        draws = self.workflow.draws
        settings = {
            "points": points // len(flows),
            "draws_per_point": draws.draws_per_point,
            "chunk": draws.chunk,
        }
        inputs = [{**self.inputs, "flow": flow, "proposal": proposal} for flow in flows]
        folders = self._members("draws", learn.make_draws, settings, inputs, label)
        surface = self._one(
            "surface",
            coarse.make_surface,
            {
                "joint_fit": self.workflow.joint_fit.model_dump(mode="json"),
                "grid": self.workflow.cycle.grid,
                "members": len(flows),
            },
            {"system": self.inputs["system"], **{f"draws{i}": folder for i, folder in enumerate(folders)}},
        )
        return folders, surface

    def _coarse_model(
        self, flows: list[Path], surface: Path, before: dict[str, Path], label: str, steps: int
    ) -> tuple[Path, Path]:
        """Fit the coarse potential and run it; ``before`` holds the previous turn's model and frames."""
        bead_settings = {
            "points": self.workflow.draws.bead_points // len(flows),
            "draws_per_point": self.workflow.draws.draws_per_bead_point,
            "chunk": self.workflow.draws.chunk,
            "coarse_fraction": self.workflow.draws.coarse_fraction,
        }
        inputs = [{"system": self.inputs["system"], "flow": flow, "surface": surface, **before} for flow in flows]
        beads = self._members("beads", learn.make_bead_draws, bead_settings, inputs, label)
        md = self.workflow.coarse_md
        run_settings = {"dt_ps": md.dt_ps, "output_every": md.output_every, "friction_time_ps": md.friction_time_ps}
        model = self._one(
            "coarse_fit",
            coarse.fit_coarse,
            {
                "coarse_fit": self.workflow.coarse_fit.model_dump(mode="json"),
                "members": len(beads),
                "final_steps": md.final_steps,
                **run_settings,
            },
            {
                "system": self.inputs["system"],
                "surface": surface,
                **{f"beads{i}": folder for i, folder in enumerate(beads)},
            },
        )
        runs = [
            self._job(
                "coarse_md",
                coarse.run_coarse,
                {"steps": steps, "copies": md.copies, **run_settings},
                {"system": self.inputs["system"], "coarse_fit": model},
                f"{label} run {index}",
            )
            for index in range(md.runs)
        ]
        folders = self.store.run(runs, self.bar)
        joined = self._one(
            "coarse_frames",
            coarse.gather_coarse,
            {"runs": md.runs},
            {f"run{i}": folder for i, folder in enumerate(folders)},
        )
        return model, joined

    def _next_proposal(self, surface: Path, walkers: Path) -> Path:
        draws = self.workflow.draws
        settings = {
            "uniform_fraction": draws.uniform_fraction,
            "coarse_fraction": draws.coarse_fraction,
            "temperature_factor": draws.temperature_factor,
        }
        return self._one("proposal", coarse.next_proposal, settings, {"surface": surface, "coarse": walkers})

    def _range(self) -> range:
        return range(self.workflow.cycle.members)

    def _seed(self, *labels: str) -> int:
        """Return a 31-bit seed that depends on the workflow's seed and on what it is for, not on the order of calls."""
        text = "\0".join((str(self.workflow.seed), *labels))
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1

    def _job(
        self, name: str, function: StageFunction, settings: dict[str, Any], inputs: dict[str, Path], label: str
    ) -> Job:
        context = {"engine": self.workflow.engine.model_dump(mode="json")}
        return Job(name, function, settings, inputs, self._seed(name, label), context)

    def _one(self, name: str, function: StageFunction, settings: dict[str, Any], inputs: dict[str, Path]) -> Path:
        return self.store.run([self._job(name, function, settings, inputs, "")], self.bar)[0]

    def _members(
        self, name: str, function: StageFunction, settings: dict[str, Any], inputs: list[dict[str, Path]], label: str
    ) -> list[Path]:
        """Run the same stage for every member of the ensemble, each with its own seed."""
        jobs = [self._job(name, function, settings, given, f"{label} member {i}") for i, given in enumerate(inputs)]
        return self.store.run(jobs, self.bar)


def local_includes(topology: Path) -> dict[str, Path]:
    """Return the files that a topology includes from its own folder, so that a change in them counts as a change."""
    found: dict[str, Path] = {}
    pending = [topology]
    while pending:
        current = pending.pop()
        try:
            text = current.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            raise SettingsError(f"cannot read {current}: {error.strerror}") from None
        for name in re.findall(r'^\s*#include\s+"([^"]+)"', text, flags=re.MULTILINE):
            path = current.parent / name
            if path.is_file() and f"include {name}" not in found:
                found[f"include {name}"] = path
                pending.append(path)
    return found
