"""A coarse model in GROMACS, with or without PLUMED for its pairs.

mdrun computes bonded tables and CMAPs itself. Its own non-bonded part is empty: no charges, no Lennard-Jones, a cut-off
of a tenth of a nanometre. PLUMED's forces and virial go into GROMACS' integrator and pressure.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from ccg_gmx.engine.coarse_choice import Choice
from ccg_gmx.engine.coarse_settings import CoarseEngineRun, CoarseRunSettings, mean_and_error
from ccg_gmx.engine.gromacs import Gmx
from ccg_gmx.engine.mdp import coarse_run
from ccg_gmx.engine.run_files import ProgressCallback, writable_folder, write_text
from ccg_gmx.engine.settings import EngineSettings
from ccg_gmx.errors import StoreError
from ccg_gmx.export.coarse_system import CoarseSystem
from ccg_gmx.export.gromacs_system import MDP, STRUCTURE, TOPOLOGY, gromacs_files
from ccg_gmx.export.plumed_pairs import INPUT, pair_files
from ccg_gmx.records import FloatArray
from ccg_gmx.units import BAR_PER_KJ_MOL_NM3

TPR, _RECORD = "run.tpr", "inputs.json"
_CUTOFF_NM = 0.1  # of interactions that do not exist


def run_in_gromacs(
    system: CoarseSystem,
    settings: CoarseRunSettings,
    folder: Path,
    choice: Choice,
    progress: ProgressCallback | None = None,
) -> CoarseEngineRun:
    """Run a system that GROMACS can run.

    Args:
        system: model, beads and start.
        settings: how long.
        folder: of this run alone.
        choice: GROMACS alone, or with which plug-in.
        progress: called with (steps done, steps in total).

    Raises:
        ToolError: if grompp or mdrun fails.
        StoreError: if the folder holds a run of something else, or cannot be written.
    """
    gmx = Gmx.find(EngineSettings(threads_per_run=settings.threads))
    files = _files(system, settings, choice)
    folder = writable_folder(folder)
    _claim(folder, files)
    tpr = folder / TPR
    if not tpr.is_file():  # a resumed run needs the very file it began with
        gmx.grompp(files[MDP], folder / STRUCTURE, folder / TOPOLOGY, tpr)
    done = gmx.mdrun(
        tpr,
        folder,
        steps_total=settings.steps,
        progress=progress,
        tables=[folder / name for name in files if name.startswith("table_")],
        plumed=folder / INPUT if INPUT in files else None,
    )
    pressure, error = mean_and_error(_pressures(gmx.energies(done.edr), system, settings))
    return CoarseEngineRun(
        trajectory=done.trajectory,
        n_beads=system.topology.n_beads,
        settle_ps=settings.settle_ps,
        pressure_bar=pressure,
        pressure_error=error,
        engine=choice.engine,
        why=choice.why,
        ns_per_day=done.ns_per_day,
    )


def _files(system: CoarseSystem, settings: CoarseRunSettings, choice: Choice) -> dict[str, str]:
    """Text of all input files by name."""
    mdp = coarse_run(
        system.model.temperature_K,
        settings.steps,
        settings.seed,
        dt_ps=settings.dt_ps,
        output_every=settings.output_every,
        tau_t_ps=1.0 / settings.friction_per_ps,
        cutoff_nm=_CUTOFF_NM,
        forces=settings.forces,
    ).with_options(nstenergy=settings.pressure_every, nstcalcenergy=settings.pressure_every)
    files = gromacs_files(system, mdp.text(), molecule_pairs=choice.plugin is None)
    if choice.plugin is not None:
        library = choice.plugin.library
        files |= pair_files(system.model, system.topology, library=library, threads=settings.threads)
    return files


def _claim(folder: Path, files: dict[str, str]) -> None:
    """Write the inputs, or see that those of an earlier start are the same: mdrun itself would not notice other tables.

    Raises:
        StoreError: if they are not.
    """
    record = folder / _RECORD
    digests: dict[str, Any] = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in files.items()}
    if record.is_file():
        if json.loads(record.read_text(encoding="utf-8")) != digests:
            raise StoreError(
                f"{folder} holds a run of another model, start or length",
                expected="an empty folder or the same run",
                remedy="use another folder or remove the old files",
            )
        return
    if (folder / TPR).exists():
        raise StoreError(f"{folder} holds a run, but no {_RECORD} that says of what", remedy="use another folder")
    for name, text in files.items():
        write_text(folder / name, text)
    write_text(record, json.dumps(digests, indent=1) + "\n")


def _pressures(energies: dict[str, FloatArray], system: CoarseSystem, settings: CoarseRunSettings) -> FloatArray:
    """``[T]`` bar after settling; GROMACS' kinetic energy replaced by its mean 3/2 N kT, as no motion is removed."""
    volume = abs(float(np.linalg.det(system.box[-1])))
    kinetic = 1.5 * system.topology.n_beads * system.model.kT
    change = 2.0 / 3.0 * (kinetic - energies["Kinetic En."]) / volume * BAR_PER_KJ_MOL_NM3
    late = energies["Time"] > settings.settle_ps * (1 + 1e-6) + 5e-4
    return (energies["Pressure"] + change)[late]
