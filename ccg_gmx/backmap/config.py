"""Training of a backmapping model as a file: what is restored, fine dynamics or trajectories, settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from ccg_gmx.backmap.jobs import TrainRequest
from ccg_gmx.backmap.model import BackmapSettings
from ccg_gmx.backmap.train import BackmapTraining
from ccg_gmx.engine.gromacs import Gmx
from ccg_gmx.engine.mdp import fine_run
from ccg_gmx.errors import SettingsError
from ccg_gmx.settings import Settings


class FineDynamics(Settings):
    """Fine runs in vacuum: each begins with a hot stretch from the end of the one before, so that they differ."""

    temperature_K: float = Field(default=300.0, gt=0, description="Of the frames.")
    hot_temperature_K: float = Field(default=500.0, gt=0, description="Of the stretch before.")
    hot_steps: int = Field(default=50_000, ge=0, description="Its steps of 1 fs; 0: none.")
    runs: int = Field(default=8, ge=1, description="Number of runs.")
    steps: int = Field(default=500_000, ge=1, description="Steps of 1 fs of each run.")
    output_every: int = Field(default=500, ge=1, description="Steps between frames.")
    cutoff_nm: float = Field(default=2.5, gt=0, description="Longer than the molecule, below half the box.")


class BackmapConfig(Settings):
    """What a training file holds. Paths are relative to the file."""

    version: Literal[1]
    kind: Literal["backmap"]
    system: str = Field(description="A name for people.")
    topology: Path = Field(description=".tpr or .psf of trajectories; .top for fine_md.")
    structure: Path | None = Field(default=None, description="Reference, and start of fine_md.")
    trajectories: tuple[Path, ...] = Field(default=(), description="Fine frames.")
    fine_md: FineDynamics | None = Field(default=None, description="Fine runs to make, without trajectories.")
    beads: str = Field(default="backbone", description="backbone, ca, or atom names with commas.")
    start_ps: float = Field(default=0.0, ge=0, description="Leave out frames of each file before.")
    stride: int = Field(default=1, ge=1, description="Use every so-manyth frame.")
    seed: int = Field(default=0, ge=0, description="Of everything.")
    model: BackmapSettings = BackmapSettings()
    training: BackmapTraining = BackmapTraining()

    @model_validator(mode="after")
    def _one_source(self) -> BackmapConfig:
        if bool(self.trajectories) == (self.fine_md is not None):
            raise ValueError("give either trajectories or fine_md")
        if self.fine_md is not None and (self.topology.suffix != ".top" or self.structure is None):
            raise ValueError("fine_md needs a .top as topology, and a structure")
        return self


def load_config(path: Path) -> BackmapConfig:
    """Read a training file.

    Raises:
        SettingsError: in one line, what is wrong.
    """
    try:
        content: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SettingsError(f"{path} cannot be read: {error}", expected="a YAML file") from None
    try:
        config = BackmapConfig.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "file"
        raise SettingsError(f"{path}: {place}: {first['msg']}", remedy="see workflows/chignolin_backmap.yaml") from None
    base = path.resolve().parent
    return config.model_copy(
        update={
            "topology": base / config.topology,
            "structure": None if config.structure is None else base / config.structure,
            "trajectories": tuple(base / trajectory for trajectory in config.trajectories),
        }
    )


def request_of(config: BackmapConfig, out: Path, progress: Any = None) -> TrainRequest:
    """What to train on; fine runs are made first, in ``<stem>.md`` beside the model, or gone on with.

    Args:
        config: of a file.
        out: model file to write.
        progress: called with (done, total) over the fine runs.
    """
    topology, trajectories = config.topology, config.trajectories
    if config.fine_md is not None:
        topology, trajectories = _fine_runs(config, config.fine_md, out.with_name(f"{out.stem}.md"), progress)
    return TrainRequest(
        topology,
        trajectories,
        config.beads,
        out,
        config.structure,
        config.stride,
        config.start_ps,
        config.model,
        config.training,
        config.seed,
    )


def _fine_runs(config: BackmapConfig, md: FineDynamics, folder: Path, progress: Any) -> tuple[Path, tuple[Path, ...]]:
    gmx, start, found = Gmx.find(), config.structure, []
    assert start is not None
    for k in range(md.runs):
        seed = 1000 * config.seed + k + 1
        if md.hot_steps:
            hot = fine_run(md.hot_temperature_K, md.hot_steps, seed, output_every=md.hot_steps, cutoff_nm=md.cutoff_nm)
            tpr = gmx.grompp(hot, start, config.topology, folder / f"hot{k}.tpr")
            start = gmx.mdrun(tpr, folder, name=f"hot{k}").gro
        mdp = fine_run(md.temperature_K, md.steps, seed, output_every=md.output_every, cutoff_nm=md.cutoff_nm)
        tpr = gmx.grompp(mdp, start, config.topology, folder / f"fine{k}.tpr")
        found.append(gmx.mdrun(tpr, folder, name=f"fine{k}").trajectory)
        if progress is not None:
            progress(k + 1, md.runs)
    return folder / "fine0.tpr", tuple(found)
