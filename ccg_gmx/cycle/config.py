"""The workflow file: settings of every stage in one validated model; every complaint names the file's line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, ValidationError, model_validator

from ccg_gmx.cycle.settings import (
    CoarseMdSettings,
    CoarseSettings,
    CycleSettings,
    DrawSettings,
    FineMdSettings,
)
from ccg_gmx.engine.settings import EngineSettings
from ccg_gmx.errors import SettingsError
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


def load_workflow(path: Path, overrides: tuple[str, ...] = ()) -> Workflow:
    """Read and validate a workflow file.

    Args:
        path: YAML file.
        overrides: ``a.b=value`` strings that replace single values (value is parsed as YAML).

    Returns:
        The workflow, with ``topology``, ``structure``, ``reference`` and trajectories as absolute paths.

    Raises:
        SettingsError: naming the line of the file, what was found and what was expected.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SettingsError(
            f"cannot read workflow {path}: {reason}", remedy="give the path of a workflow YAML file"
        ) from None
    try:
        document = yaml.safe_load(text)
        tree = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise SettingsError(f"{path} is not valid YAML: {error}", remedy="see workflows/ for examples") from None
    _refuse_duplicates(path, tree)
    if not isinstance(document, dict):
        raise SettingsError(
            f"{path} holds no settings", expected="a YAML mapping", remedy="see workflows/ for examples"
        )
    for override in overrides:
        _override(document, override)
    try:
        workflow = Workflow.model_validate(document)
    except ValidationError as error:
        raise SettingsError(_complaint(path, tree, error, overrides), remedy="`ccg schema` prints every key") from None
    return _absolute(workflow, path.resolve().parent)


def _refuse_duplicates(path: Path, tree: yaml.Node | None) -> None:
    """YAML keeps the last of two equal keys without a word; a user who wrote both meant something by each."""
    pending, seen = [tree], set()
    while pending:
        node = pending.pop()
        if id(node) in seen:  # an alias
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            pending += node.value
        elif isinstance(node, yaml.MappingNode):
            lines: dict[str, int] = {}
            for key, value in node.value:
                line = key.start_mark.line + 1
                pending.append(value)
                if not isinstance(key, yaml.ScalarNode):
                    continue
                if key.value in lines:
                    raise SettingsError(
                        f"{path.name}, line {line}: {key.value} stands on line {lines[key.value]} already",
                        expected="every key once",
                        remedy="remove one of them",
                    )
                lines[key.value] = line


def _override(document: dict[str, Any], override: str) -> None:
    key, sign, value = override.partition("=")
    if not sign or not key:
        raise SettingsError(f"--set {override}", expected="--set key.subkey=value")
    *parents, last = key.split(".")
    node = document
    for parent in parents:
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            raise SettingsError(
                f"--set {override}: {parent} is not a group of settings", remedy="`ccg schema` prints every key"
            )
    try:
        node[last] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise SettingsError(f"--set {override}: {error}", expected="a YAML value") from None


def _complaint(path: Path, tree: yaml.Node | None, error: ValidationError, overrides: tuple[str, ...]) -> str:
    """Put the first validation error in one line that names the file's line, or the override, and the key."""
    first = error.errors()[0]
    location = tuple(part for part in first["loc"] if part != "[key]")
    where = ".".join(map(str, location)) or "workflow"
    given = next((item for item in reversed(overrides) if f"{where}.".startswith(f"{item.partition('=')[0]}.")), None)
    place = f"--set {given}" if given else f"{path.name}, line {_line(tree, location)}"
    message = "unknown key" if first["type"] == "extra_forbidden" else first["msg"]
    shown = "" if isinstance(first["input"], dict) or first["type"] == "missing" else f" (found {first['input']!r})"
    more = f" and {error.error_count() - 1} more" if error.error_count() > 1 else ""
    return f"{place}: {where}: {message}{shown}{more}"


def _line(node: yaml.Node | None, location: tuple[Any, ...]) -> int:
    """Line (from 1) of the deepest key of ``location`` that stands in the file."""
    line = 1
    for part in location:
        if isinstance(node, yaml.MappingNode):
            match = [(key, value) for key, value in node.value if key.value == str(part)]
            if not match:
                break
            line, node = match[0][0].start_mark.line + 1, match[0][1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
    return line


def _absolute(workflow: Workflow, base: Path) -> Workflow:
    """Resolve input paths against the workflow's folder and check that they exist."""

    def resolve(path: Path, key: str) -> Path:
        full = (base / path).resolve()
        if not full.is_file():
            raise SettingsError(
                f"{key}: no file {full}", expected="an existing file, relative to the workflow's folder"
            )
        return full

    fine = workflow.fine_md
    trajectories = [
        given.model_copy(
            update={
                "trajectory": resolve(given.trajectory, "fine_md.trajectories"),
                "tpr": resolve(given.tpr, "fine_md.trajectories"),
            }
        )
        for given in fine.trajectories
    ]
    return workflow.model_copy(
        update={
            "topology": resolve(workflow.topology, "topology"),
            "structure": resolve(workflow.structure, "structure"),
            "reference": resolve(workflow.reference, "reference") if workflow.reference else None,
            "fine_md": fine.model_copy(update={"trajectories": trajectories}),
        }
    )


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of the workflow file."""
    return Workflow.model_json_schema()
