"""A stage for users' own run parameters: mdp files one after the other, each from where the last one ended."""

from __future__ import annotations

from pathlib import Path

from ccg_gmx.cycle.stages.fine import find_gmx
from ccg_gmx.cycle.store import Work
from ccg_gmx.engine.mdp import Mdp, mdp_number
from ccg_gmx.errors import SettingsError

STEP_MAKERS = ("md", "md-vv", "md-vv-avek", "sd", "bd")
SEEDS = ("gen-seed", "ld-seed")


def run_series(work: Work) -> None:
    """Run all mdp files; seeds in them are replaced by those of the workflow, so that it alone decides.

    Inputs: topology, structure, mdp0, mdp1, ... and the topology's own includes. Settings: count.
    Writes run.tpr, run.trr or run.xtc, run.edr of the last one, and the files of the others by number.
    """
    engine, folder, count = find_gmx(work), work.folder, int(work.settings["count"])
    conf, steps = work.inputs["structure"], 0
    for index in range(count):
        last = index == count - 1
        name = "run" if last else f"part{index}"
        source = work.inputs[f"mdp{index}"]
        mdp = seeded(Mdp.read(source), work.seed + index)
        tpr = folder / f"{name}.tpr"
        if not tpr.exists():
            engine.grompp(mdp, conf, work.inputs["topology"], tpr, workdir=folder)
        total = total_steps(mdp, source) if last else None
        result = engine.mdrun(tpr, folder, name=name, steps_total=total, progress=work.progress if last else None)
        conf, steps = result.gro, steps + result.steps
    work.count(fine_md_steps=steps)


def seeded(mdp: Mdp, seed: int) -> Mdp:
    """Return run parameters with every seed they have, and the noise's in any case, set."""
    keys = {key.replace("-", "_"): seed for key in SEEDS if key in mdp}
    return mdp.with_options(**{"ld_seed": seed, **keys})


def total_steps(mdp: Mdp, source: Path) -> int:
    """Return the number of steps of an MD run.

    Raises:
        SettingsError: if the file is of no MD run, or of one without end.
    """
    steps = int(mdp_number(mdp, "nsteps", 0, str(source)))
    if mdp.get("integrator", "md").lower() not in STEP_MAKERS or steps < 1:
        raise SettingsError(
            f"{source.name}: integrator {mdp.get('integrator', 'md')} with {steps} steps",
            expected="molecular dynamics of a given length, as the last of the mdp files",
        )
    return steps
