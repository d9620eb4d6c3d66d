"""Stages of the backmap workflow: starts, fine runs, training, restoration, score card, minimisation."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ccg_gmx.backmap.card import make_card
from ccg_gmx.backmap.card_file import save_card
from ccg_gmx.backmap.checkpoint import load_model
from ccg_gmx.backmap.jobs import Target, TrainRequest, load_target, read_held_out, train_from_files
from ccg_gmx.backmap.minimise import minimise_frames
from ccg_gmx.backmap.model import BackmapSettings
from ccg_gmx.backmap.restore import RestoreSettings, restore_trajectory, table_facts
from ccg_gmx.backmap.train import BackmapTraining
from ccg_gmx.cycle.stages.fine import find_gmx, run_in_stage
from ccg_gmx.cycle.store import Work, finite, write_json
from ccg_gmx.engine.mdp import fine_run
from ccg_gmx.engine.settings import EngineSettings
from ccg_gmx.molecule.trajectory import write_trr

MODEL = "model.pt"
RESTORED = "restored"
"""Folder of the restored frames in their stage, and stem of the files in it."""
MINIMISED = "minimised"
"""Likewise."""


def heat(work: Work) -> None:
    """Make a start for every fine run: hot runs, each from where the one before ended.

    Inputs: topology, structure and the topology's own includes. Settings: hot_temperature_K, hot_steps, runs,
    cutoff_nm.
    Writes start0.gro, start1.gro, ...
    """
    engine, folder, given = find_gmx(work), work.folder, work.settings
    conf, steps, runs = work.inputs["structure"], int(given["hot_steps"]), int(given["runs"])
    for k in range(runs):
        mdp = fine_run(
            given["hot_temperature_K"], steps, work.seed + k, output_every=steps, cutoff_nm=given["cutoff_nm"]
        )
        tpr = folder / f"start{k}.tpr"
        if not tpr.exists():
            engine.grompp(mdp, conf, work.inputs["topology"], tpr, workdir=folder)
        conf = engine.mdrun(tpr, folder, name=f"start{k}", steps_total=steps).gro
        work.progress(k + 1, runs)
    work.count(fine_md_steps=runs * steps)


def run_fine(work: Work) -> None:
    """Make one fine run.

    Inputs: topology and its own includes, and structure or starts. Settings: temperature_K, steps, output_every,
    cutoff_nm, and index of the start. Writes run.tpr, run.trr and GROMACS' own files.
    """
    given, inputs = work.settings, work.inputs
    conf = inputs["starts"] / f"start{given['index']}.gro" if "starts" in inputs else inputs["structure"]
    mdp = fine_run(
        given["temperature_K"],
        given["steps"],
        work.seed,
        output_every=given["output_every"],
        cutoff_nm=given["cutoff_nm"],
    )
    result = run_in_stage(work, find_gmx(work), mdp, conf)
    work.count(fine_md_steps=result.steps)


def train(work: Work) -> None:
    """Train a model; a killed training goes on from its state file.

    Inputs: run0, run1, ... (fine runs), or topology and trajectory0, ...; structure; mapping, if beads are of one.
    Settings: those of the request.
    Writes model.pt, model.held_out.npz, training.json.
    """
    inputs, given = work.inputs, dict(work.settings)
    if "mapping" in inputs:
        given["beads"] = str(inputs["mapping"])
    if "run0" in inputs:
        topology = inputs["run0"] / "run.tpr"
        trajectories = [inputs[f"run{k}"] / "run.trr" for k in range(given["files"])]
    else:
        topology = inputs["topology"]
        trajectories = [inputs[f"trajectory{k}"] for k in range(given["files"])]
    request = train_request(
        topology,
        trajectories,
        inputs.get("structure"),
        given,
        work.seed,
        work.folder / MODEL,
        EngineSettings(**work.context.get("engine", {})),
    )
    facts = train_from_files(request, lambda step, steps, _: work.progress(step, steps))
    write_json(work.folder / "training.json", finite(facts))


def train_request(
    topology: Path,
    trajectories: Sequence[Path],
    structure: Path | None,
    settings: Mapping[str, Any],
    seed: int,
    out: Path,
    engine: EngineSettings,
) -> TrainRequest:
    """What to train on, with what a workflow file says as JSON."""
    return TrainRequest(
        topology,
        tuple(trajectories),
        settings["beads"],
        out,
        structure,
        settings["stride"],
        settings["start_ps"],
        BackmapSettings(**settings["model"]),
        BackmapTraining(**settings["training"]),
        seed,
        engine,
    )


def restore(work: Work) -> None:
    """Restore coarse frames; a killed restoration goes on where it was.

    Inputs: model, and coarse (a trajectory) unless the beads of the held-out fine frames are restored.
    Settings: samples, candidates, rounds, sweeps, frames, format. Writes restored/restored.xtc (or .trr), restored.npz,
    restored.json.
    """
    given, model = work.settings, work.inputs["model"] / MODEL
    restorer = _target(model, given).restorer
    coarse = work.inputs.get("coarse") or _held_out_beads(work.folder / "beads.trr", model)
    settings = RestoreSettings(samples=given["samples"], seed=work.seed, frames=given["frames"])
    out = work.folder / RESTORED / f"{RESTORED}.{given['format']}"
    # A killed attempt may have finished the frames, but not the stage.
    if not out.is_file():
        restore_trajectory(restorer, coarse, out, settings, progress=lambda done, _: work.progress(*_steps(done)))
    with np.load(out.with_suffix(".npz"), allow_pickle=False) as table:
        facts = table_facts(table)
    more = {"coarse_frames": facts["frames"] // given["samples"], "samples": given["samples"]}
    write_json(work.folder / "restored.json", finite(facts | more))


def _target(model: Path, how: Mapping[str, Any]) -> Target:
    return load_target(model, candidates=how["candidates"], rounds=how["rounds"], sweeps=how["sweeps"])


def _steps(done: float) -> tuple[int, int]:
    return round(1000 * done), 1000


def _held_out_beads(path: Path, model: Path) -> Path:
    """Write the beads of a model's held-out frames as a trajectory, a frame a picosecond."""
    fine = read_held_out(model)
    beads = load_model(model).system.bead_positions(fine.positions)
    box = np.zeros((len(beads), 3, 3)) if fine.box is None else fine.box
    write_trr(path, beads, np.arange(float(len(beads))), box)
    return path


def score(work: Work) -> None:
    """Make the score card on held-out fine frames.

    Inputs: model. Settings: samples, candidates, rounds, sweeps. Writes card.json.
    """
    given = work.settings
    target = _target(work.inputs["model"] / MODEL, given)
    card = make_card(
        target.restorer,
        target.held_out(),
        samples=given["samples"],
        seed=work.seed,
        progress=lambda done, total: work.progress(int(done), int(total)),
    )
    save_card(card, work.folder / "card.json")


def minimise(work: Work) -> None:
    """Minimise some restored frames, and as many held-out fine frames.

    Inputs: model, restored, topology and its own includes. Settings: frames, steps, format.
    Writes minimised/minimised.trr and .npz, minimised.json.
    """
    given, model, runs = work.settings, work.inputs["model"] / MODEL, work.folder / "runs"
    (work.folder / MINIMISED).mkdir(exist_ok=True)
    facts = minimise_frames(
        load_model(model).system,
        work.inputs["restored"] / RESTORED / f"{RESTORED}.{given['format']}",
        work.inputs["topology"],
        given["steps"],
        frames=given["frames"],
        fine=read_held_out(model).positions,
        out=work.folder / MINIMISED / f"{MINIMISED}.trr",
        folder=runs,
        gmx=find_gmx(work),
        progress=work.progress,
    )
    shutil.rmtree(runs)
    write_json(work.folder / "minimised.json", {k: v for k, v in facts.items() if k not in ("file", "table")})
