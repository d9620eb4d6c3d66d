"""The workflow file of backmapping: from a molecule, or trajectories of it, to restored frames and their score card."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from ccg_gmx.backmap.model import BackmapSettings
from ccg_gmx.backmap.system import names_a_file
from ccg_gmx.backmap.train import BackmapTraining
from ccg_gmx.cycle.workflow_file import resolve_input
from ccg_gmx.engine.settings import EngineSettings
from ccg_gmx.errors import SettingsError
from ccg_gmx.settings import Settings

SCHEMA_VERSION = 1
_OF_A_PACKAGE = re.compile(r"([A-Za-z_][\w.]*):(?!/)(.+)")


class FineDynamics(Settings):
    """Fine runs in vacuum. Before each comes a hot stretch, from where the last one ended: starts differ."""

    temperature_K: float = Field(default=300.0, gt=0, description="temperature of the frames, K")
    hot_temperature_K: float = Field(default=500.0, gt=0, description="temperature of the stretch before, K")
    hot_steps: int = Field(default=50_000, ge=0, description="steps of 1 fs before each run, hot; 0 for none")
    runs: int = Field(default=8, ge=1, description="number of runs")
    steps: int = Field(default=500_000, ge=1, description="steps of 1 fs of each run")
    output_every: int = Field(default=500, ge=1, description="steps between frames")
    cutoff_nm: float = Field(default=2.5, gt=0, description="longer than the molecule, below half the box, nm")

    @model_validator(mode="after")
    def _whole_frames(self) -> FineDynamics:
        if self.steps % self.output_every:
            raise ValueError(f"steps must be a multiple of output_every = {self.output_every}")
        return self


class Restoration(Settings):
    """How coarse frames are restored."""

    samples: int = Field(default=1, ge=1, description="restored frames of each coarse one")
    candidates: int = Field(default=8, ge=1, description="draws of each block, of which one without overlaps is taken")
    rounds: int = Field(default=2, ge=1, description="the same of whole frames")
    sweeps: int = Field(default=0, ge=0, description="times side chains are drawn anew when all the rest stands")
    frames: int | None = Field(default=None, ge=1, description="at most so many coarse frames [all]")
    format: Literal["xtc", "trr"] = Field(default="xtc", description="kind of the restored trajectory")


class Minimisation(Settings):
    """A short minimisation of some restored frames, beads frozen, and of as many held-out fine frames."""

    frames: int = Field(default=50, ge=1, description="restored frames, spread over all of them")
    steps: int = Field(default=200, ge=1, description="steps of steepest descent")
    topology: Path | None = Field(default=None, description=".top of the restored atoms [topology, if that is one]")


class Marks(Settings):
    """What the verdict asks for; null: not judged."""

    bead_deviation_nm: float | None = Field(default=1e-6, ge=0, description="largest distance of a bead from its own")
    chirality_errors: int | None = Field(default=0, ge=0, description="stereocentres of wrong handedness, all frames")
    clash_fraction: float | None = Field(default=0.01, ge=0, description="part of the frames with a clash")
    js_torsions: float | None = Field(default=0.02, ge=0, description="Jensen-Shannon of the worst class, nats")
    js_bonds: float | None = Field(default=0.05, ge=0, description="likewise")
    js_angles: float | None = Field(default=0.05, ge=0, description="likewise")


class BackmapWorkflow(Settings):
    """Backmapping of one system. Paths are relative to the workflow file; PACKAGE:FILE is data of a Python package."""

    version: int = Field(SCHEMA_VERSION, description="format version of this file", ge=1, le=SCHEMA_VERSION)
    kind: Literal["backmap"] = Field(description="what the file describes")
    system: str = Field(description="name used in the report", min_length=1)
    topology: Path = Field(description=".tpr or .psf of the trajectories; .top for fine_md")
    structure: Path | None = Field(default=None, description="reference of the handedness, and start of fine_md (.gro)")
    trajectories: tuple[Path, ...] = Field(default=(), description="fine frames (.xtc, .trr, .dcd)")
    fine_md: FineDynamics | None = Field(default=None, description="fine runs to make, instead of trajectories")
    beads: str = Field(
        default="backbone", description="backbone (N, CA, C), ca, atom names with commas, or a mapping file"
    )
    start_ps: float = Field(default=0.0, ge=0, description="first part of each fine run that is left out, ps")
    stride: int = Field(default=1, ge=1, description="use every so-manyth fine frame")
    seed: int = Field(default=0, ge=0, description="random numbers of runs, training and draws derive from this")
    model: BackmapSettings = BackmapSettings()
    training: BackmapTraining = BackmapTraining()
    coarse: Path | None = Field(
        default=None, description="frames to restore (.xtc, .trr of beads) [beads of the held-out fine frames]"
    )
    restore: Restoration = Restoration()
    minimise: Minimisation | None = Field(default=None, description="energies before and after; null for none")
    marks: Marks = Marks()
    engine: EngineSettings = EngineSettings()

    @model_validator(mode="after")
    def _one_source(self) -> BackmapWorkflow:
        if bool(self.trajectories) == (self.fine_md is not None):
            raise ValueError("give either trajectories or fine_md")
        if self.fine_md is not None and (self.topology.suffix != ".top" or self.structure is None):
            raise ValueError("fine_md needs a .top as topology, and a structure")
        if self.fine_md is None and self.topology.suffix == ".top":
            raise ValueError("trajectories need a .tpr or .psf as topology")
        if not self.training.held_out_fraction:
            raise ValueError("training.held_out_fraction must be above 0: the score card is about held-out frames")
        if self.minimise is not None and self.minimisation_topology is None:
            raise ValueError("minimise needs minimise.topology, the .top of the restored atoms")
        return self

    @property
    def mapping_file(self) -> Path | None:
        """The mapping file, where beads are those of one."""
        return Path(self.beads) if names_a_file(self.beads) else None

    @property
    def needs_gromacs(self) -> bool:
        """Whether anything is run by GROMACS: a .psf and trajectories do without."""
        return self.fine_md is not None or self.minimise is not None or self.topology.suffix == ".tpr"

    @property
    def minimisation_topology(self) -> Path | None:
        """The .top of the minimisation, if there is one."""
        given = self.minimise and self.minimise.topology
        return given or (self.topology if self.topology.suffix == ".top" else None)

    def absolute(self, base: Path) -> BackmapWorkflow:
        """Return a copy with its input paths resolved against a folder, or within their Python packages.

        Raises:
            SettingsError: if one of the files or packages does not exist.
        """
        update: dict[str, Any] = {"topology": find_input(self.topology, base, "topology")}
        if self.mapping_file is not None:
            update["beads"] = str(resolve_input(self.mapping_file, base, "beads"))
        update["trajectories"] = tuple(find_input(path, base, "trajectories") for path in self.trajectories)
        for name in ("structure", "coarse"):
            if (path := getattr(self, name)) is not None:
                update[name] = find_input(path, base, name)
        if self.minimise is not None and self.minimise.topology is not None:
            top = resolve_input(self.minimise.topology, base, "minimise.topology")
            update["minimise"] = self.minimise.model_copy(update={"topology": top})
        return self.model_copy(update=update)

    @property
    def input_files(self) -> dict[str, Path]:
        """Files that the results depend on, by name."""
        found = {"topology": self.topology} | {f"trajectory{i}": path for i, path in enumerate(self.trajectories)}
        more = {"structure": self.structure, "coarse": self.coarse, "beads": self.mapping_file}
        if self.minimise is not None:
            more["minimise.topology"] = self.minimise.topology
        return found | {name: path for name, path in more.items() if path is not None}


def find_input(path: Path, base: Path, key: str) -> Path:
    """Return a path of the file as an absolute one; ``PACKAGE:FILE`` lies in an installed Python package.

    Args:
        path: as it stands in the file.
        base: folder of the file.
        key: where it stands, for the message.

    Raises:
        SettingsError: if there is no such file or package.
    """
    named = _OF_A_PACKAGE.fullmatch(path.as_posix())
    if named is None or (base / path).is_file():
        return resolve_input(path, base, key)
    package, file = named.groups()
    try:
        found = Path(str(files(package))) / file
    except ModuleNotFoundError:
        raise SettingsError(
            f"{key}: {path} is data of the Python package {package}, which is not installed",
            remedy=f"pip install {package.split('.')[0]}",
        ) from None
    if not found.is_file():
        raise SettingsError(f"{key}: the Python package {package} has no file {file}", remedy="check its version")
    return found.resolve()
