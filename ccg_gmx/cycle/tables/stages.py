"""Stages of the tables workflow: map the fine run, make a model, run it, export it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from ccg_gmx.cycle.store import Work, finite, read_json, write_json
from ccg_gmx.cycle.table_fit import fit_tables
from ccg_gmx.cycle.table_measure import measure_run
from ccg_gmx.cycle.table_request import Method, TableRequest
from ccg_gmx.cycle.table_runner import coarse_runner
from ccg_gmx.engine.export_check import check_export
from ccg_gmx.engine.map_trajectory import MapRequest, map_trajectory
from ccg_gmx.engine.mdp import exported_run
from ccg_gmx.export.bundle import CHECK_FRAMES, ENGINES, write_bundle
from ccg_gmx.molecule.coarse_topology import CoarseTopology
from ccg_gmx.molecule.trajectory import read_frames
from ccg_gmx.potential.distributions_file import load_distributions
from ccg_gmx.potential.inversion import BasisSettings
from ccg_gmx.potential.model import CoarseModel
from ccg_gmx.records import BeadFrames

BEADS = "beads"
"""Prefix of the mapped files in a stage's folder."""


def map_beads(work: Work) -> None:
    """Map the fine run to beads.

    Inputs: mapping, and fine (a stage) or tpr and trajectory. Settings: discard_ps, forces.
    Writes beads.trr, beads.gro, beads.topology.json, map.json.
    """
    inputs, settings = work.inputs, work.settings
    tpr = inputs["fine"] / "run.tpr" if "fine" in inputs else inputs["tpr"]
    request = MapRequest(
        mapping=str(inputs["mapping"]),
        tpr=tpr,
        trajectory=_trajectory(inputs),
        prefix=work.folder / BEADS,
        begin_ps=settings["discard_ps"] or None,
        forces="optimal" if settings["forces"] else None,
    )
    facts = map_trajectory(request, lambda done, total: work.progress(done, total))
    write_json(work.folder / "map.json", finite(facts))


def _trajectory(inputs: dict[str, Path]) -> Path:
    if "fine" not in inputs:
        return inputs["trajectory"]
    found = [inputs["fine"] / name for name in ("run.trr", "run.xtc")]
    return next((path for path in found if path.exists()), found[0])


def table_request(work: Work, beads: Path) -> TableRequest:
    """The job of :func:`ccg_gmx.cycle.table_fit.fit_tables` that the settings of a stage describe."""
    given = work.settings
    method: Method = given["method"]
    iterations = given["iterations"]
    return TableRequest(
        method=method,
        trajectory=beads / f"{BEADS}.trr",
        topology=beads / f"{BEADS}.topology.json",
        temperature_K=given["temperature_K"],
        cutoff=given["cutoff_nm"],
        r_max=given["rdf_range_nm"],
        bin_width=given["rdf_bin_nm"],
        basis=BasisSettings(**given["basis"]),
        iterations=iterations["most"],
        tolerance=iterations["tolerance"],
        peak_tolerance=iterations["peak_tolerance"],
        damping=iterations["damping"],
        pressure_bar=iterations["pressure_bar"] if method in ("ibi", "re") else None,
        seed=work.seed,
        run=given["run"],
    )


def make_model(work: Work) -> None:
    """Make a tabulated model; a killed one goes on at its last iteration.

    Inputs: beads. Settings: method and those of the request. Writes the folder of ``fit_tables``.
    """
    request = table_request(work, work.inputs["beads"])
    runner = coarse_runner(request, work.context["threads"]) if request.method in ("ibi", "re") else None
    done = [0]

    def log(line: str) -> None:
        done[0] += 1
        work.progress(done[0], request.iterations + 1, line)

    summary = fit_tables(request, work.folder / "result", runner, log=log)
    records = summary.get("iterations", [])
    work.count(coarse_md_steps=len(records) * int(request.run["steps"]))


def run_model(work: Work) -> None:
    """Run a finished model and compare it with the target.

    Inputs: beads, model (a stage of ``make_model``). Settings: as there, with the steps of this run.
    Writes run/, distributions.npz, run.json.
    """
    request = table_request(work, work.inputs["beads"])
    result, topology = work.inputs["model"] / "result", request.read_topology()
    model = CoarseModel.load(result / "model.npz")
    run = coarse_runner(request, work.context["threads"])(model, work.folder / "run", work.seed)
    target = load_distributions(result / "target.npz")
    facts = {**run.info, **measure_run(request, topology, target, model, run, work.folder)}
    write_json(work.folder / "run.json", finite(facts))
    work.count(coarse_md_steps=int(request.run["steps"]))


def export_model(work: Work) -> None:
    """Write a model for every engine that can have it and compare energies in those that are installed.

    Inputs: beads, model. Writes export/, check.json.
    """
    beads = work.inputs["beads"]
    model = CoarseModel.load(work.inputs["model"] / "result" / "model.npz")
    topology = CoarseTopology.load(beads / f"{BEADS}.topology.json")
    stride = max(1, int(read_json(beads / "map.json")["frames"]) // CHECK_FRAMES)
    frames = read_frames(beads / f"{BEADS}.trr", topology.n_beads, stride=stride)
    mdp_text = partial(exported_run, model.temperature_K)
    folder = work.folder / "export"
    chosen = BeadFrames(frames.positions, frames.time, frames.box)
    if not folder.exists():
        write_bundle(folder, model, topology, chosen, ENGINES, mdp_text, skip_impossible=True)
    write_json(work.folder / "check.json", finite(check_export(folder).as_json()))
