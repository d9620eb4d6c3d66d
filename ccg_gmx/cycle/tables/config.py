"""The workflow file of tabulated coarse potentials: from a topology, or a finished run, to models that run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from ccg_gmx.cycle.workflow_file import resolve_input
from ccg_gmx.engine.coarse_settings import CoarseRunSettings
from ccg_gmx.engine.settings import EngineSettings
from ccg_gmx.potential.inversion import BasisSettings
from ccg_gmx.settings import Settings

SCHEMA_VERSION = 1
Method = Literal["bi", "ibi", "fm", "re"]


class FineSeries(Settings):
    """Fine MD of the whole system: mdp files run one after the other, or a run that is there already."""

    mdps: list[Path] = Field(
        default=[], description="run parameters in order (minimisation, equilibration, production); the last one counts"
    )
    tpr: Path | None = Field(None, description="run input file of a finished run, instead of mdps")
    trajectory: Path | None = Field(
        None, description="its frames, .trr with forces, or .xtc where no method needs forces"
    )
    discard_ps: float = Field(0.0, description="first part of the trajectory that is left out, ps", ge=0)

    @model_validator(mode="after")
    def _one_of_both(self) -> FineSeries:
        given = (self.tpr is not None, self.trajectory is not None)
        if given[0] != given[1] or bool(self.mdps) == given[0]:
            raise ValueError("expected mdps, or tpr and trajectory of a finished run")
        return self


class PotentialSettings(Settings):
    """Range and splines of the tabulated terms."""

    cutoff_nm: float = Field(0.0, description="cut-off of all pairs; 0 for a model without pairs", ge=0)
    rdf_range_nm: float | None = Field(
        None, description="range of the radial distribution functions [the cut-off]", gt=0
    )
    rdf_bin_nm: float = Field(0.002, description="their bins", gt=0)
    pair_spacing_nm: float = Field(0.01, description="knot spacing of pairs", gt=0)
    intervals: int = Field(16, description="knot intervals of bonds and angles", ge=2)
    knots: int = Field(24, description="knots of a torsion", ge=4)
    roughness_kT: float = Field(1.0, description="prior spread of third differences of coefficients", gt=0)

    @property
    def basis(self) -> BasisSettings:
        """The same for :mod:`ccg_gmx.potential.inversion`."""
        return BasisSettings(self.pair_spacing_nm, self.intervals, self.knots, self.roughness_kT)


class IterationSettings(Settings):
    """When ibi and re stop."""

    most: int = Field(30, description="iterations at most", ge=0)
    tolerance: float = Field(0.01, description="squared RDF error over that of the direct inversion", gt=0)
    peak_tolerance: float = Field(0.03, description="deviation of the first peak's height over the target's", gt=0)
    damping: float = Field(1.0, description="factor of each step", gt=0, le=1)
    pressure_bar: float | None = Field(None, description="wanted mean pressure; null leaves it alone")


class TablesWorkflow(Settings):
    """Tabulated coarse potentials of a system of many molecules. Paths are relative to the workflow file."""

    version: int = Field(SCHEMA_VERSION, description="format version of this file", ge=1, le=SCHEMA_VERSION)
    kind: Literal["tables"] = Field(description="what the file describes")
    system: str = Field(description="name used in the report", min_length=1)
    temperature_K: float = Field(300.0, description="temperature in K; that of the mdp files too", gt=0)
    seed: int = Field(1, description="every random number of the run derives from this", ge=0)
    topology: Path = Field(description="GROMACS topology (.top)")
    structure: Path = Field(description="starting structure (.gro)")
    mapping: Path = Field(description="mapping file: beads and bonded terms of each molecule type (ccg map)")
    fine_md: FineSeries
    methods: Annotated[list[Method], Field(min_length=1)] = Field(
        default=["ibi"], description="ways to the potentials, each a model of its own; the first one is exported"
    )
    potential: PotentialSettings = PotentialSettings()
    iterations: IterationSettings = IterationSettings()
    coarse_md: CoarseRunSettings = Field(description="coarse runs: of every iteration, and of every finished model")
    final_steps: int | None = Field(
        None, description="steps of the run with each finished model [coarse_md.steps]", gt=0
    )
    engine: EngineSettings = EngineSettings()

    @model_validator(mode="after")
    def _each_method_once(self) -> TablesWorkflow:
        if len(set(self.methods)) < len(self.methods):
            raise ValueError(f"methods {self.methods}: each once")
        if self.iterations.pressure_bar is not None and not self.potential.cutoff_nm:
            raise ValueError("iterations.pressure_bar needs pairs: set potential.cutoff_nm")
        if (self.final_steps or 0) % self.coarse_md.output_every:
            raise ValueError(
                f"final_steps must be a multiple of coarse_md.output_every = {self.coarse_md.output_every}"
            )
        return self

    def absolute(self, base: Path) -> TablesWorkflow:
        """Return a copy with its input paths resolved against a folder.

        Raises:
            SettingsError: if one of the files does not exist.
        """
        fine = self.fine_md
        update: dict[str, Any] = {"mdps": [resolve_input(mdp, base, "fine_md.mdps") for mdp in fine.mdps]}
        for name in ("tpr", "trajectory"):
            if (path := getattr(fine, name)) is not None:
                update[name] = resolve_input(path, base, f"fine_md.{name}")
        inputs = {name: resolve_input(getattr(self, name), base, name) for name in ("topology", "structure", "mapping")}
        return self.model_copy(update={**inputs, "fine_md": fine.model_copy(update=update)})

    @property
    def input_files(self) -> dict[str, Path]:
        """Files that the results depend on, by name."""
        files = {"topology": self.topology, "structure": self.structure, "mapping": self.mapping}
        files |= {f"mdp{index}": mdp for index, mdp in enumerate(self.fine_md.mdps)}
        given = {"tpr": self.fine_md.tpr, "trajectory": self.fine_md.trajectory}
        return files | {name: path for name, path in given.items() if path is not None}
