"""Settings of a run of a coarse model, and what comes out of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from ccg_gmx.errors import TrajectoryError
from ccg_gmx.free_energy.correlation import correlation
from ccg_gmx.molecule.frame_stream import read_bead_frames
from ccg_gmx.records import BeadFrames, FloatArray
from ccg_gmx.settings import Settings

EngineName = Literal["gromacs", "gromacs+plumed", "openmm"]


class CoarseRunSettings(Settings):
    """How long and how a coarse model is run: Langevin dynamics at the model's temperature in a box of constant size.

    Attributes:
        engine: ``auto`` takes GROMACS alone where it can compute every term, GROMACS with PLUMED for pairs between
            molecules, OpenMM where there is no PLUMED.
    """

    engine: Literal["auto", "gromacs", "gromacs+plumed", "openmm"] = "auto"
    steps: int = Field(gt=0, description="steps in total, a multiple of output_every")
    settle_steps: int = Field(default=0, ge=0, description="first steps, whose frames do not count")
    dt_ps: float = Field(default=0.002, gt=0, description="time step, ps")
    output_every: int = Field(default=500, gt=0, description="steps between frames")
    pressure_every: int = Field(default=50, gt=0, description="steps between pressures, a divisor of output_every")
    friction_per_ps: float = Field(default=1.0, gt=0, description="friction, 1/ps")
    seed: int = Field(default=1, ge=0, lt=2**31, description="seed of noise and of first velocities")
    threads: int = Field(default=1, ge=1, description="threads of the run")
    forces: bool = Field(default=False, description="write forces too (GROMACS)")

    @model_validator(mode="after")
    def _multiples(self) -> CoarseRunSettings:
        if self.steps % self.output_every or self.settle_steps % self.output_every:
            raise ValueError(f"steps and settle_steps must be multiples of output_every = {self.output_every}")
        if self.output_every % self.pressure_every:
            raise ValueError(f"output_every = {self.output_every} must be a multiple of pressure_every")
        if self.settle_steps >= self.steps:
            raise ValueError(f"settle_steps = {self.settle_steps} leaves nothing of {self.steps} steps")
        return self

    @property
    def settle_ps(self) -> float:
        """Time whose frames do not count, ps."""
        return self.settle_steps * self.dt_ps


@dataclass(frozen=True)
class CoarseEngineRun:
    """A finished run.

    Attributes:
        trajectory: its frames (.trr), those of the settling time included.
        n_beads: beads n in a frame.
        settle_ps: frames up to this time do not count, nor does the start structure.
        pressure_bar: mean pressure; None without a box.
        pressure_error: its standard error, correlation in time included; None without a box.
        engine: what ran it.
        why: why that one, in words.
        ns_per_day: speed.
    """

    trajectory: Path
    n_beads: int
    settle_ps: float
    pressure_bar: float | None
    pressure_error: float | None
    engine: EngineName
    why: str
    ns_per_day: float

    def frames(self) -> Iterator[BeadFrames]:
        """Stream the frames that count.

        Raises:
            TrajectoryError: if the trajectory cannot be read or has no such frame.
        """
        found = False
        for piece in read_bead_frames(self.trajectory, self.n_beads):
            # half a femtosecond: times in a .trr are float32
            chosen = piece.time > self.settle_ps * (1 + 1e-6) + 5e-4
            if chosen.any():
                found = True
                yield BeadFrames(
                    piece.positions[chosen],
                    piece.time[chosen],
                    None if piece.box is None else piece.box[chosen],
                    None if piece.forces is None else piece.forces[chosen],
                )
        if not found:
            raise TrajectoryError(f"{self.trajectory} has no frame after {self.settle_ps:g} ps", remedy="run longer")


def mean_and_error(series: FloatArray) -> tuple[float, float]:
    """Mean of a time series and its standard error, with the statistical inefficiency of correlated values.

    Args:
        series: ``[T]``, evenly spaced in time.
    """
    inefficiency = float(correlation(series[:, None], np.zeros(len(series), dtype=np.int64)).inefficiency[0])
    return float(series.mean()), float(np.sqrt(series.var() * inefficiency / max(len(series) - 1, 1)))
