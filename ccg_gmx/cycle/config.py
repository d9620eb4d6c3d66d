"""The workflow of a cycle: settings of every stage in one validated model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from ccg_gmx.cycle.settings import (
    CoarseMdSettings,
    CoarseSettings,
    CycleSettings,
    DrawSettings,
    FineMdSettings,
)
from ccg_gmx.cycle.workflow_file import read_workflow, resolve_input
from ccg_gmx.engine.settings import EngineSettings
from ccg_gmx.flow.conditional import FlowSettings
from ccg_gmx.flow.train import EnergySettings, LikelihoodSettings
from ccg_gmx.free_energy.diagnostics import DiagnosticSettings
from ccg_gmx.free_energy.hidden_modes import HiddenModeSettings
from ccg_gmx.free_energy.joint_fit import JointFitSettings
from ccg_gmx.free_energy.surface import Basin
from ccg_gmx.molecule.implicit import ImplicitSolventSettings
from ccg_gmx.potential.fit import FitSettings
from ccg_gmx.settings import Settings

SCHEMA_VERSION = 1


class Workflow(Settings):
    """One runnable cycle. Paths are relative to the workflow file."""

    version: int = Field(SCHEMA_VERSION, description="format version of this file", ge=1, le=SCHEMA_VERSION)
    kind: Literal["cycle"] = Field("cycle", description="what the file describes; a cycle where it does not say")
    system: str = Field(description="name used in the report", min_length=1)
    temperature_K: float = Field(300.0, description="temperature in K", gt=0)
    seed: int = Field(1, description="every random number of the run derives from this", ge=0)
    topology: Path = Field(description="GROMACS topology (.top) of one molecule in vacuum")
    structure: Path = Field(description="starting structure (.gro); its handedness and cis/trans states are kept")
    implicit_solvent: ImplicitSolventSettings | None = Field(
        None, description="add a solvent term to the force field; fine runs then come from the Langevin integrator"
    )
    coarse: CoarseSettings
    basins: Annotated[list[Basin], Field(max_length=12)] = Field(
        default=[], description="named boxes in the torsions (degrees); the first two give delta_f"
    )
    fine_md: FineMdSettings
    engine: EngineSettings = EngineSettings()
    flow: FlowSettings = FlowSettings()
    likelihood: LikelihoodSettings = LikelihoodSettings()
    energy: EnergySettings = EnergySettings()
    draws: DrawSettings = DrawSettings()
    joint_fit: JointFitSettings = JointFitSettings()
    diagnostics: DiagnosticSettings = DiagnosticSettings()
    hidden_modes: HiddenModeSettings = HiddenModeSettings()
    coarse_fit: FitSettings = FitSettings()
    coarse_md: CoarseMdSettings = CoarseMdSettings()
    cycle: CycleSettings = CycleSettings()
    reference: Path | None = Field(None, description="surface to compare with (.npz, as shipped in topologies/)")

    @model_validator(mode="after")
    def _torsions_are_those_of_coarse(self) -> Workflow:
        known = sorted(self.coarse.torsions)
        for basin in self.basins:
            if not set(basin.ranges) <= set(known):
                raise ValueError(f"basin {basin.name} names {sorted(basin.ranges)}, the torsions are {known}")
        for start in self.fine_md.starts:
            if sorted(start.torsions) != known:
                raise ValueError(f"start {start.name} names {sorted(start.torsions)}, the torsions are {known}")
        return self

    @property
    def input_files(self) -> dict[str, Path]:
        """Files that the results depend on, by name."""
        files = {"topology": self.topology, "structure": self.structure}
        return files if self.reference is None else {**files, "reference": self.reference}

    def system_facts(self) -> dict[str, Any]:
        """Settings of the ``system`` stage: all that decides on the molecule, beside its files."""
        facts: dict[str, Any] = {
            "temperature_K": self.temperature_K,
            "beads": self.coarse.beads,
            "torsions": {name: list(atoms) for name, atoms in self.coarse.torsions.items()},
        }
        if self.implicit_solvent is not None:
            facts["implicit_solvent"] = self.implicit_solvent.model_dump(mode="json")
        return facts

    @model_validator(mode="after")
    def _fine_runs_sample_the_target(self) -> Workflow:
        if self.implicit_solvent is None and self.fine_md.walkers > 1:
            raise ValueError("fine_md.walkers needs implicit_solvent: GROMACS runs one molecule at a time")
        if self.implicit_solvent is not None and self.fine_md.trajectories:
            raise ValueError(
                "fine_md.trajectories cannot be used with implicit_solvent: GROMACS runs have no such term, so their "
                "frames are of another density"
            )
        return self

    def absolute(self, base: Path) -> Workflow:
        """Return a copy with its input paths resolved against a folder.

        Raises:
            SettingsError: if one of the files does not exist.
        """
        trajectories = [
            given.model_copy(
                update={
                    "trajectory": resolve_input(given.trajectory, base, "fine_md.trajectories"),
                    "tpr": resolve_input(given.tpr, base, "fine_md.trajectories"),
                }
            )
            for given in self.fine_md.trajectories
        ]
        return self.model_copy(
            update={
                "topology": resolve_input(self.topology, base, "topology"),
                "structure": resolve_input(self.structure, base, "structure"),
                "reference": resolve_input(self.reference, base, "reference") if self.reference else None,
                "fine_md": self.fine_md.model_copy(update={"trajectories": trajectories}),
            }
        )


def load_workflow(path: Path, overrides: tuple[str, ...] = ()) -> Workflow:
    """Read and validate the workflow file of a cycle.

    Args:
        path: YAML file.
        overrides: ``a.b=value`` strings that replace single values (value is parsed as YAML).

    Returns:
        The workflow, with ``topology``, ``structure``, ``reference`` and trajectories as absolute paths.

    Raises:
        SettingsError: naming the line of the file, what was found and what was expected.
    """
    return read_workflow(path, overrides, {"cycle": Workflow}).absolute(path.resolve().parent)
