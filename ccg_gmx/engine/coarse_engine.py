"""Run a coarse model: bonded terms, CMAPs and pairs, in GROMACS, GROMACS with PLUMED, or OpenMM.

All three run Langevin dynamics in a box of constant size and leave a .trr. The pressure is that of the virial with the
ideal part of the known temperature, ``P V = N kT + W / 3``: the kinetic energy's own fluctuations, and what a finite
time step does to its mean, are no property of the model.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from ccg_gmx.engine.coarse_choice import choose_engine
from ccg_gmx.engine.coarse_gromacs import run_in_gromacs
from ccg_gmx.engine.coarse_openmm import run_in_openmm
from ccg_gmx.engine.coarse_settings import CoarseEngineRun, CoarseRunSettings
from ccg_gmx.engine.run_files import ProgressCallback
from ccg_gmx.export.coarse_system import coarse_system
from ccg_gmx.molecule.coarse_topology import CoarseTopology
from ccg_gmx.potential.model import CoarseModel
from ccg_gmx.records import BeadFrames

__all__ = ["CoarseEngineRun", "CoarseRunSettings", "run_coarse"]


def run_coarse(
    model: CoarseModel,
    topology: CoarseTopology,
    start: BeadFrames,
    settings: CoarseRunSettings,
    folder: Path,
    *,
    progress: ProgressCallback | None = None,
) -> CoarseEngineRun:
    """Run a model to the end; in GROMACS from the last checkpoint, and a finished run is not run again.

    Args:
        model: the potentials.
        topology: the beads.
        start: frames, of which the last is where the run starts.
        settings: how long and with what.
        folder: of this run alone; all files are written here.
        progress: called with (steps done, steps in total).

    Raises:
        SettingsError: if model, topology, start and settings do not fit together.
        ToolMissingError: if no engine that can run the model is installed.
        ToolError: if the engine fails.
        StoreError: if the folder cannot be written, or holds a run of something else.
    """
    system = coarse_system(model, topology, start)
    choice = choose_engine(model, topology, settings.engine)
    run_in = run_in_openmm if choice.engine == "openmm" else run_in_gromacs
    run = run_in(system, settings, folder, choice, progress)
    in_box = start.box is not None and bool(np.any(start.box))
    return run if in_box else replace(run, pressure_bar=None, pressure_error=None)
