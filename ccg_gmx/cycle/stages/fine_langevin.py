"""Fine runs that GROMACS cannot make: walkers of the package's own integrator, written as a .trr like any other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ccg_gmx.cycle.store import Work
from ccg_gmx.cycle.system import System
from ccg_gmx.molecule.langevin import Langevin, LangevinState
from ccg_gmx.molecule.structure import read_structure
from ccg_gmx.molecule.trajectory import make_whole, write_trr

_CHECKPOINTS = 20


def run_walkers(work: Work, system: System, structure: Path) -> int:
    """Run the walkers of one start; killed and called again, it goes on from its checkpoint.

    Frames are in the order of time, all walkers of one moment together, so that the last part of the file is the last
    part of the run. Settings: steps, dt_ps, output_every, friction_time_ps, walkers. Writes run.trr. Returns the
    number of energies computed, all walkers together.
    """
    settings, folder = work.settings, work.folder
    langevin = Langevin(
        system.energy().energy_and_gradient,
        system.topology.masses,
        system.temperature_K,
        1 / settings["friction_time_ps"],
        settings["dt_ps"],
        work.seed,
    )
    positions, box = read_structure(structure)
    whole = torch.from_numpy(make_whole(positions[None], box[None], system.topology.bonds))
    checkpoint, frames = folder / "langevin.pt", []
    if checkpoint.exists():
        state, more = LangevinState.load(checkpoint)
        frames = list(more["frames"])
    else:
        state = langevin.start(whole.repeat(settings["walkers"], 1, 1))
    every, total, done = settings["output_every"], settings["steps"], state.step
    saved_every = max(1, total // every // _CHECKPOINTS)

    def keep(now: LangevinState, _: torch.Tensor) -> None:
        # walkers diffuse away; only near the origin does the .trr's float32 keep its digits
        frames.append(now.positions - now.positions.mean(1, keepdim=True))
        if len(frames) % saved_every == 0:
            now.save(checkpoint, frames=torch.stack(frames))

    def report(steps: int, _: int) -> None:
        work.progress(done + steps, total)

    langevin.run(state, total - done, every=every, callback=keep, progress=report)
    moments = np.repeat(np.arange(1, len(frames) + 1) * every * settings["dt_ps"], settings["walkers"])
    write_trr(folder / "run.trr", torch.cat(frames).numpy() + box.sum(0) / 2, moments, box)
    checkpoint.unlink(missing_ok=True)
    return int(total * settings["walkers"])
