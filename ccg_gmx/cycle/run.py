"""The loop: fine MD -> flow -> weights -> free energy -> coarse force field -> coarse MD -> back to the flow.

Every step is a stage in the store (see store.py), so running again with the same folder resumes.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ccg_gmx.cycle.config import Workflow
from ccg_gmx.cycle.proposal import cells_per_torsion
from ccg_gmx.cycle.stage_runner import Bar, StageRunner
from ccg_gmx.cycle.stages import coarse, draws, fine, learn, restore, surfaces
from ccg_gmx.cycle.stages.hidden_modes import check_hidden_modes
from ccg_gmx.cycle.store import StageFunction, Store
from ccg_gmx.cycle.turns import Results, Turn, assess_turn, largest_error
from ccg_gmx.cycle.views import load_fit, references, shown_surfaces
from ccg_gmx.errors import CcgError, SettingsError


@dataclass
class Cycle:
    """One run of a workflow in one folder."""

    workflow: Workflow
    store: Store
    bar: Bar | None = None
    log: Callable[[str], None] = lambda _: None
    inputs: dict[str, Path] = field(default_factory=dict)

    def __post_init__(self) -> None:
        engine = {"engine": self.workflow.engine.model_dump(mode="json")}
        self._runner = StageRunner(self.store, self.workflow.seed, engine, self.bar, seed_bits=31)

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
        proposal = self._runner.one(
            "proposal", surfaces.first_proposal, {"grid": self._cells(), "n_s": self._n_s()}, {}
        )
        turns: list[Turn] = []
        drawn: list[list[Path]] = []
        previous: Path | None = None
        before: dict[str, Path] = {}
        for index in range(settings.max_turns):
            flows = self._train_energy(flows, proposal, index)
            drawn.append(self._turn_draws(flows, proposal, index))
            surface = self._surface(drawn, first_new=index)
            model, walkers = self._coarse_model(flows, surface, before, f"turn {index}", self.workflow.coarse_md.steps)
            before = {"coarse_fit": model, "coarse": walkers}
            turns.append(assess_turn(index, self.workflow, drawn[-1], surface, previous, walkers))
            self.log(turns[-1].words())
            proposal = self._next_proposal(surface, walkers)
            previous = surface
            if index + 1 >= settings.min_turns and turns[-1].settled(settings.tolerance_kT):
                break
        return self._report_run(flows, drawn, surface, before, turns)

    def _report_run(
        self, flows: list[Path], drawn: list[list[Path]], surface: Path, before: dict[str, Path], turns: list[Turn]
    ) -> Results:
        """Estimate everything once more from fresh draws with the flows frozen (THEORY.md section 5, step 7)."""
        previous, count = surface, len(drawn)
        drawn, surface = self._final_draws(flows, drawn, surface)
        final = [folder for group in drawn[count:] for folder in group]
        model, walkers = self._coarse_model(flows, surface, before, "final", self.workflow.coarse_md.final_steps)
        turns.append(assess_turn(len(turns), self.workflow, final, surface, previous, walkers, final=True))
        self.log(turns[-1].words())
        restored = self._runner.one(
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
            draws=final,
            held_out=self._members("held_out", draws.weigh_held_out, {}, self._with_flow(flows), ""),
            hidden_modes=self._hidden_modes(flows, surface),
            surface=surface,
            coarse_fit=model,
            coarse=walkers,
            restored=restored,
            turns=turns,
            used=tuple(dict.fromkeys(self.store.used)),
        )

    def _hidden_modes(self, flows: list[Path], surface: Path) -> Path | None:
        """Restrained runs from different hidden states: is every slow mode among the coarse torsions?"""
        settings = self.workflow.hidden_modes
        if not settings.enabled:
            return None
        inputs = {**self.inputs, "surface": surface, **{f"flow{i}": flow for i, flow in enumerate(flows)}}
        return self._runner.one(
            "hidden_modes", check_hidden_modes, {"hidden_modes": settings.model_dump(mode="json")}, inputs
        )

    def _check_reference(self) -> None:
        """Find out before the first step of MD whether the reference can be compared with this run's surface."""
        try:
            references(self.workflow)
        except CcgError as error:
            raise SettingsError(
                f"the reference does not fit this run: {error}", remedy="change the run, or set reference: null"
            ) from None

    def _n_s(self) -> int:
        return len(self.workflow.coarse.torsions)

    def _cells(self) -> int:
        """Points per torsion of surfaces and proposals."""
        return min(self.workflow.cycle.grid, cells_per_torsion(self._n_s()))

    def _prepare(self) -> dict[str, Path]:
        """Resolve the system, run the fine MD and split its frames."""
        workflow = self.workflow
        files = {"topology": workflow.topology, **local_includes(workflow.topology)}
        system = self._runner.one(
            "system", fine.make_system, workflow.system_facts(), {**files, "structure": workflow.structure}
        )
        runs = self._fine_runs(system, files)
        md = workflow.fine_md
        given = {f"given{i}": item.trajectory for i, item in enumerate(md.trajectories)}
        tprs = {f"tpr{i}": item.tpr for i, item in enumerate(md.trajectories)}
        split = self._runner.one(
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
            self._runner.job(
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
        return self._runner.many(jobs) if jobs else []

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
        if turn > 0:  # what a trained flow covers it keeps without heating
            steps = max(1, round(energy.steps * self.workflow.cycle.later_turns))
            energy = energy.model_copy(update={"steps": steps, "temper_from": 1.0})
        settings = {"energy": energy.model_dump(mode="json")}
        inputs = self._with_flow(flows, proposal=proposal)
        return self._members("energy", learn.learn_energy, settings, inputs, f"turn {turn}")

    def _with_flow(self, flows: list[Path], **more: Path) -> list[dict[str, Path]]:
        """Inputs of a stage for every member: the system, its frames, the member's flow."""
        return [{**self.inputs, "flow": flow, **more} for flow in flows]

    def _turn_draws(self, flows: list[Path], proposal: Path, turn: int) -> list[Path]:
        """Draw equally often at coarse points of the proposal, with every member."""
        given = self.workflow.draws
        settings = {
            "points": given.points // len(flows),
            "draws_per_point": given.draws_per_point,
            "chunk": given.chunk,
        }
        inputs = self._with_flow(flows, proposal=proposal)
        return self._members("draws", draws.make_draws, settings, inputs, f"turn {turn}")

    def _final_draws(self, flows: list[Path], drawn: list[list[Path]], surface: Path) -> tuple[list[list[Path]], Path]:
        """Add rounds of draws, where and as many as the turns' draws advise, until the errors are small enough."""
        given, pilots, count = self.workflow.draws, drawn[-1], len(drawn)
        plan = self._runner.one(
            "plan",
            draws.plan_draws,
            {
                "cells": self._cells(),
                "members": len(flows),
                "uniform_fraction": given.final_uniform_fraction,
                "exponent": given.final_exponent,
                "bias_tolerance_kT": given.bias_tolerance_kT,
                "point_error_kT": given.point_error_kT,
                "min_draws": given.min_draws,
                "max_draws": given.max_draws,
            },
            {"surface": surface, **{f"pilot{i}": pilot for i, pilot in enumerate(pilots)}},
        )
        for index in range(given.final_rounds):
            jobs = [
                self._runner.job(
                    "draws",
                    draws.make_final_draws,
                    {"points": given.final_points // len(flows), "member": member, "chunk": given.chunk},
                    {**inputs, "plan": plan},
                    f"final {index} member {member}",
                )
                for member, inputs in enumerate(self._with_flow(flows))
            ]
            drawn = [*drawn, self._runner.many(jobs)]
            surface = self._surface(drawn, first_new=count)
            shown = shown_surfaces(load_fit(surface), self.workflow).values()
            if largest_error(shown, self.workflow.diagnostics.f_cap_kT) <= given.error_tolerance_kT:
                break
        return drawn, surface

    def _surface(self, drawn: list[list[Path]], first_new: int) -> Path:
        """Fit one surface to all draws of all turns: every mean weight is unbiased for the same Z, whatever the flow.

        Those from ``first_new`` on are fitted alone as well: their difference from earlier surfaces is a real test.
        """
        inputs = {
            f"draws{group}_{member}": folder
            for group, folders in enumerate(drawn)
            for member, folder in enumerate(folders)
        }
        settings = {
            "joint_fit": self.workflow.joint_fit.model_dump(mode="json"),
            "grid": self._cells(),
            "members": len(drawn[0]),
            "groups": len(drawn),
            "first_new": first_new,
        }
        return self._runner.one("surface", surfaces.make_surface, settings, {"system": self.inputs["system"], **inputs})

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
        model = self._runner.one(
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
            self._runner.job(
                "coarse_md",
                coarse.run_coarse,
                {"steps": steps, "copies": md.copies, **run_settings},
                {"system": self.inputs["system"], "coarse_fit": model},
                f"{label} run {index}",
            )
            for index in range(md.runs)
        ]
        folders = self._runner.many(runs)
        joined = self._runner.one(
            "coarse_frames",
            coarse.gather_coarse,
            {"runs": md.runs},
            {f"run{i}": folder for i, folder in enumerate(folders)},
        )
        return model, joined

    def _next_proposal(self, surface: Path, walkers: Path) -> Path:
        given = self.workflow.draws
        settings = {
            "uniform_fraction": given.uniform_fraction,
            "coarse_fraction": given.coarse_fraction,
            "disagreement_fraction": given.disagreement_fraction,
            "temperature_factor": given.temperature_factor,
            "members": self.workflow.cycle.members,
        }
        return self._runner.one("proposal", surfaces.next_proposal, settings, {"surface": surface, "coarse": walkers})

    def _range(self) -> range:
        return range(self.workflow.cycle.members)

    def _members(
        self, name: str, function: StageFunction, settings: dict[str, Any], inputs: list[dict[str, Path]], label: str
    ) -> list[Path]:
        """Run the same stage for every member of the ensemble, each with its own seed."""
        jobs = [
            self._runner.job(name, function, settings, given, f"{label} member {i}") for i, given in enumerate(inputs)
        ]
        return self._runner.many(jobs)


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
