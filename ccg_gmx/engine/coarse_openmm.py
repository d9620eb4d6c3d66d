"""A coarse model in OpenMM, for where there is no PLUMED.

OpenMM reports no virial, so the pressure is computed by this package from the frames that the run leaves.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from MDAnalysis.lib.formats.libmdaxdr import TRRFile

from ccg_gmx.engine.coarse_choice import Choice
from ccg_gmx.engine.coarse_settings import CoarseEngineRun, CoarseRunSettings, mean_and_error
from ccg_gmx.engine.run_files import ProgressCallback, storing, writable_folder
from ccg_gmx.errors import ToolError
from ccg_gmx.export.coarse_system import CoarseSystem
from ccg_gmx.export.openmm_system import build_openmm_system, import_openmm
from ccg_gmx.potential.evaluate import energies_and_forces
from ccg_gmx.records import FloatArray
from ccg_gmx.units import BAR_PER_KJ_MOL_NM3

WHOLE_RUN = "run.trr"


class OpenmmError(ToolError):
    """OpenMM refused the system, or the run exploded."""


def run_in_openmm(
    system: CoarseSystem,
    settings: CoarseRunSettings,
    folder: Path,
    choice: Choice,
    progress: ProgressCallback | None = None,
) -> CoarseEngineRun:
    """Run a system from its start to the end; the trajectory appears when it is whole.

    Args:
        system: model, beads and start.
        settings: how long.
        folder: of this run alone.
        choice: why OpenMM.
        progress: called with (steps done, steps in total).

    Raises:
        ToolMissingError: if OpenMM is not installed.
        OpenmmError: if it fails.
        StoreError: if the folder cannot be written.
    """
    trajectory = writable_folder(folder) / WHOLE_RUN
    partial = trajectory.with_name(f"partial.{WHOLE_RUN}")
    began = time.monotonic()
    with storing(trajectory):
        try:
            with TRRFile(str(partial), "w") as stream:
                for step, positions in _simulate(system, settings, progress):
                    if step == 0:
                        began = time.monotonic()  # as mdrun's own speed, without what comes before the first step
                    frame = np.asarray(positions, dtype=np.float32)
                    box = system.box[-1].astype(np.float32)
                    stream.write(frame, None, None, box, step, step * settings.dt_ps, 0.0, len(frame))
            os.replace(partial, trajectory)
        finally:
            partial.unlink(missing_ok=True)
    days = (time.monotonic() - began) / 86400.0
    speed = settings.steps * settings.dt_ps / 1000.0 / days
    run = CoarseEngineRun(
        trajectory, system.topology.n_beads, settings.settle_ps, None, None, "openmm", choice.why, ns_per_day=speed
    )
    pressure, error = mean_and_error(_pressures(run, system))
    return replace(run, pressure_bar=pressure, pressure_error=error)


def _simulate(
    system: CoarseSystem, settings: CoarseRunSettings, progress: ProgressCallback | None
) -> Iterator[tuple[int, FloatArray]]:
    """Steps and positions ``[n, 3]`` nm of the frames, the start included."""
    openmm = import_openmm()
    integrator = openmm.LangevinMiddleIntegrator(system.model.temperature_K, settings.friction_per_ps, settings.dt_ps)
    integrator.setRandomNumberSeed(settings.seed)
    try:
        context = _context(openmm, system, integrator, settings.threads)
        context.setPositions(system.positions[-1])
        context.setVelocitiesToTemperature(system.model.temperature_K, settings.seed)
        yield 0, system.positions[-1]
        for step in range(settings.output_every, settings.steps + 1, settings.output_every):
            integrator.step(settings.output_every)
            positions = context.getState(positions=True).getPositions(asNumpy=True)._value
            if not np.isfinite(positions).all():
                raise OpenmmError(
                    "OpenMM", f"positions are not finite at step {step}", remedy="take a shorter time step"
                )
            yield step, positions
            if progress:
                progress(step, settings.steps)
    except openmm.OpenMMException as error:
        raise OpenmmError("OpenMM", " ".join(str(error).split()), remedy="take a shorter time step") from error


def _context(openmm: Any, system: CoarseSystem, integrator: Any, threads: int) -> Any:
    """A context on the processor: on as many threads as the settings say, or on the platform that always exists."""
    names = {openmm.Platform.getPlatform(i).getName() for i in range(openmm.Platform.getNumPlatforms())}
    made = build_openmm_system(system)
    if "CPU" in names:
        return openmm.Context(made, integrator, openmm.Platform.getPlatformByName("CPU"), {"Threads": str(threads)})
    return openmm.Context(made, integrator, openmm.Platform.getPlatformByName("Reference"))


def _pressures(run: CoarseEngineRun, system: CoarseSystem) -> FloatArray:
    """``[T]`` bar of the frames that count."""
    volume = abs(float(np.linalg.det(system.box[-1])))
    ideal = system.topology.n_beads * system.model.kT
    virials = [energies_and_forces(system.model, system.topology, frames).virial for frames in run.frames()]
    traces = np.trace(np.concatenate(virials), axis1=1, axis2=2)
    return (ideal + traces / 3.0) / volume * BAR_PER_KJ_MOL_NM3
