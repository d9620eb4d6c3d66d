"""Settings of the cycle's own stages."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, field_validator, model_validator

from ccg_gmx.settings import Settings


class CoarseSettings(Settings):
    """What is kept: beads (atoms, in chain order) and the torsions whose free energy is asked for."""

    beads: dict[str, int] = Field(
        description="bead name -> atom number (from 1), a bonded chain in order", min_length=4
    )
    torsions: dict[str, tuple[int, int, int, int]] = Field(
        description="torsion name -> four atom numbers (from 1) of consecutive beads", min_length=1, max_length=6
    )


class Start(Settings):
    """Where a set of fine runs starts."""

    name: str = Field(description="name of the start")
    torsions: dict[str, float] = Field(description="torsion name -> degrees")


class GivenTrajectory(Settings):
    """A trajectory the user already has."""

    tpr: Path = Field(description="its run input file")
    trajectory: Path = Field(description="full-precision frames (.trr), no constraints")
    start_ps: float = Field(0.0, description="frames before this time are left out", ge=0)
    stride: int = Field(1, description="every n-th frame is used", ge=1)

    @field_validator("trajectory")
    @classmethod
    def _full_precision(cls, value: Path) -> Path:
        if value.suffix != ".trr":
            raise ValueError("expected a .trr: an .xtc rounds positions to 0.001 nm, too coarse for weights")
        return value


class FineMdSettings(Settings):
    """Short atomistic runs, one set per start; no run needs to cross a barrier."""

    starts: list[Start] = Field(default=[], description="one set of runs each, started at these torsions")
    trajectories: list[GivenTrajectory] = Field(
        default=[], description="existing runs to use (instead of or beside starts)"
    )
    runs_per_start: int = Field(2, description="independent runs per start", ge=1)
    steps: int = Field(200_000, description="steps per run (of each of its walkers)", ge=1000)
    walkers: int = Field(1, description="molecules side by side in one run; only with implicit_solvent", ge=1)
    dt_ps: float = Field(
        0.001, description="time step; at most 1 fs, because bonds are not constrained", gt=0, le=0.001
    )
    output_every: int = Field(200, description="steps between frames", ge=1)
    discard_ps: float = Field(10.0, description="equilibration left out of every run", ge=0)
    friction_time_ps: float = Field(1.0, description="inverse friction of the Langevin thermostat (tau-t)", gt=0)
    held_out_fraction: float = Field(0.15, description="last part of every run, never trained on", gt=0, lt=0.9)

    @model_validator(mode="after")
    def _something(self) -> FineMdSettings:
        if not self.starts and not self.trajectories:
            raise ValueError("neither starts nor trajectories given")
        if self.steps * self.dt_ps <= self.discard_ps and self.starts:
            raise ValueError("discard_ps leaves no frames of steps * dt_ps")
        return self


class DrawSettings(Settings):
    """How many weighted draws are made, and where.

    In every turn all points have the same number of draws. The final draws are adapted: the turns' draws tell where the
    weights are uneven, points there get more draws, and rounds of points are added until the errors are small enough.
    """

    points: int = Field(2048, description="coarse points per cycle turn, all flows together", ge=64)
    draws_per_point: int = Field(64, description="draws at each of them", ge=8)
    final_points: int = Field(3072, description="coarse points of each final round, all flows together", ge=64)
    final_rounds: int = Field(3, description="final rounds at most; fewer when the errors are small enough", ge=1)
    final_uniform_fraction: float = Field(
        0.2, description="part of the final points drawn uniformly; the others go where the error matters", gt=0, le=1
    )
    final_exponent: float = Field(
        0.5, description="those go as p^exponent: 1 is best for populations, 1/2 for the surface", gt=0, le=1
    )
    error_tolerance_kT: float = Field(
        0.05, description="standard error of f wanted everywhere below diagnostics.f_cap_kT", gt=0
    )
    bias_tolerance_kT: float = Field(0.02, description="bias chi^2 / 2K of f allowed at a single point", gt=0)
    point_error_kT: float = Field(0.25, description="standard error of f allowed at a single final point", gt=0)
    min_draws: int = Field(32, description="fewest draws at a final point (power of two)", ge=8)
    max_draws: int = Field(512, description="most draws at a final point (power of two)", ge=8)
    bead_points: int = Field(
        1024, description="bead configurations whose free energy and mean force are estimated", ge=64
    )
    draws_per_bead_point: int = Field(32, description="draws at each of them", ge=8)
    uniform_fraction: float = Field(
        0.25, description="part of the points drawn uniformly over the torsions", gt=0, le=1
    )
    coarse_fraction: float = Field(0.2, description="part of the points drawn from the coarse MD frames", ge=0, lt=1)
    disagreement_fraction: float = Field(
        0.15, description="part of the points drawn where the flows' surfaces disagree", ge=0, lt=1
    )
    temperature_factor: float = Field(
        2.0, description="the rest is drawn from the surface at this times the temperature", ge=1
    )
    chunk: int = Field(4096, description="draws evaluated at once (bounds the memory)", ge=64)

    @model_validator(mode="after")
    def _whole(self) -> DrawSettings:
        if self.uniform_fraction + self.coarse_fraction + self.disagreement_fraction > 1:
            raise ValueError("uniform_fraction, coarse_fraction and disagreement_fraction together are above 1")
        if self.min_draws > self.max_draws or any(n & (n - 1) for n in (self.min_draws, self.max_draws)):
            raise ValueError("min_draws and max_draws must be powers of two, the first not above the second")
        return self


class CoarseMdSettings(Settings):
    """GROMACS runs of the coarse model."""

    runs: int = Field(2, description="independent runs, side by side", ge=1)
    copies: int = Field(128, description="copies per run, started from draws of the coarse model's density", ge=1)
    steps: int = Field(40_000, description="steps in every turn", ge=1000)
    final_steps: int = Field(120_000, description="steps of the last coarse run", ge=1000)
    dt_ps: float = Field(0.004, description="time step; 4 fs keeps the variances of bonds within 1.5 %", gt=0, le=0.01)
    output_every: int = Field(500, description="steps between frames", ge=1)
    friction_time_ps: float = Field(0.2, description="inverse friction of the Langevin thermostat (tau-t)", gt=0)
    kde_degrees: float = Field(4.0, description="kernel width of the coarse run's histogram (0: raw bins)", ge=0)
    restored_frames: int = Field(10_000, description="coarse frames restored to atoms at the end", ge=1)


class CycleSettings(Settings):
    """The loop."""

    members: int = Field(3, description="independent flows; their disagreement is part of the error", ge=1)
    min_turns: int = Field(2, description="turns before the loop may stop", ge=1)
    max_turns: int = Field(3, description="turns after which it stops anyway", ge=1)
    later_turns: float = Field(0.5, description="training steps of later turns, as a part of the first turn's", gt=0)
    tolerance_kT: float = Field(0.1, description="stop when f moves less than this (RMSD below 8 kT)", gt=0)
    grid: int = Field(
        100, description="points per torsion of surfaces and marginals; over three or more at once fewer", ge=12
    )

    @field_validator("max_turns")
    @classmethod
    def _order(cls, value: int, info: object) -> int:
        if value < getattr(info, "data", {}).get("min_turns", 1):
            raise ValueError("max_turns is below min_turns")
        return value
