"""Stages on real atoms: the system, its fine runs, and their frames in internal coordinates."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from ccg_gmx.cycle.stages.fine_langevin import run_walkers
from ccg_gmx.cycle.store import Work, write_json
from ccg_gmx.cycle.system import System
from ccg_gmx.engine.driver import find_engine
from ccg_gmx.engine.mdp import Mdp, fine_run, minimise
from ccg_gmx.engine.protocol import Engine
from ccg_gmx.engine.run_files import MdrunResult
from ccg_gmx.engine.settings import EngineSettings
from ccg_gmx.errors import TopologyError, TrajectoryError
from ccg_gmx.molecule.energy import ForceField
from ccg_gmx.molecule.implicit import ImplicitSolventSettings
from ccg_gmx.molecule.structure import read_structure, write_structure
from ccg_gmx.molecule.topology import Topology, check_cutoff, parse_tpr_dump, require_unconstrained
from ccg_gmx.molecule.trajectory import make_whole, read_frames
from ccg_gmx.records import CoarseSplit, FloatArray

ENERGY_TOLERANCE_KJ_MOL = 1e-3
"""Two .tpr of one topology agree far better than this: they print the same parameters."""


def find_gmx(work: Work) -> Engine:
    """Return the GROMACS of this machine, as the workflow's engine settings say."""
    return find_engine(EngineSettings(**work.context.get("engine", {})))


def make_system(work: Work) -> None:
    """Resolve the topology through grompp and check that everything asked for exists.

    Inputs: topology, structure. Writes system.tpr, system.dump, system.json, structure.npy.
    """
    gmx, settings, folder = find_gmx(work), work.settings, work.folder
    temperature = settings["temperature_K"]
    topology_file, structure_file = work.inputs["topology"], work.inputs["structure"]
    mdp = fine_run(temperature, 1000, 1, output_every=100)
    tpr = gmx.grompp(mdp, structure_file, topology_file, folder / "system.tpr", workdir=folder)
    dump = gmx.dump(tpr)
    topology = parse_tpr_dump(dump)
    require_unconstrained(topology)
    positions, box = read_structure(structure_file)
    structure = make_whole(positions[None], box[None], topology.bonds)[0]
    check_cutoff(topology, structure[None])
    solvent = settings.get("implicit_solvent")
    given = None if solvent is None else ImplicitSolventSettings(**solvent)
    system = System.build(topology, structure, settings["beads"], settings["torsions"], temperature, given)
    if given is not None:
        system.energy()  # refuses an atom without a radius here, before any run
    (folder / "system.dump").write_text(dump)
    np.save(folder / "structure.npy", structure)
    keys = ("beads", "torsions", "temperature_K", "implicit_solvent")
    write_json(folder / "system.json", {key: settings[key] for key in keys if key in settings})


def run_fine(work: Work) -> None:
    """Run one short atomistic trajectory from a structure turned to the start's torsions and minimised.

    With implicit solvent, which GROMACS does not have, the package's own integrator makes the trajectory.
    Inputs: system, topology, structure. Writes run.trr (full precision) and GROMACS' own files.
    """
    gmx, settings, folder = find_gmx(work), work.settings, work.folder
    system = System.load(work.inputs["system"])
    topology_file = work.inputs["topology"]
    start = turned_structure(system, settings["torsions"])
    write_structure(folder / "start.gro", start, work.inputs["structure"])
    tpr = gmx.grompp(minimise(), folder / "start.gro", topology_file, folder / "em.tpr", workdir=folder)
    minimised = gmx.mdrun(tpr, folder, name="em")
    if system.implicit_solvent is not None:
        steps = run_walkers(work, system, minimised.gro)
        work.count(fine_md_steps=steps + minimised.steps)
        return
    mdp = fine_run(
        system.temperature_K,
        settings["steps"],
        work.seed,
        dt_ps=settings["dt_ps"],
        output_every=settings["output_every"],
        tau_t_ps=settings["friction_time_ps"],
    )
    result = run_in_stage(work, gmx, mdp, minimised.gro)
    work.count(fine_md_steps=result.steps + minimised.steps)


def run_in_stage(work: Work, engine: Engine, mdp: Mdp, conf: Path) -> MdrunResult:
    """Run MD of ``settings["steps"]`` steps as ``run.*`` in a stage's folder, from its checkpoint if there is one.

    Inputs: topology.
    """
    tpr = work.folder / "run.tpr"
    if not tpr.exists():
        engine.grompp(mdp, conf, work.inputs["topology"], tpr, workdir=work.folder)
    return engine.mdrun(tpr, work.folder, name="run", steps_total=work.settings["steps"], progress=work.progress)


def turned_structure(system: System, degrees: dict[str, float]) -> FloatArray:
    """Return the structure ``[N, 3]`` nm with its coarse torsions set to the given degrees, all else kept."""
    unknown = set(degrees) ^ set(system.torsion_names)
    if unknown:
        raise TopologyError(
            f"a start names the torsions {sorted(degrees)}", expected=f"exactly {sorted(system.torsion_names)}"
        )
    coordinates = system.coordinates
    structure = coordinates.relabel(torch.from_numpy(system.structure)[None])
    _, b, y = coordinates.split(structure)
    s = torch.tensor([[np.deg2rad(degrees[name]) for name in system.torsion_names]], dtype=torch.float64)
    return coordinates.join(s, b, y)[0].numpy()


def split_frames(work: Work) -> None:
    """Bring all fine frames into internal coordinates; the last part of every run is held out for diagnostics.

    Inputs: system, run0, run1, ... (fine runs) and given0, ... (a user's .trr) with tpr0, ...
    Writes split.npz, held_out.npz.
    """
    system = System.load(work.inputs["system"])
    parts = []
    for index in range(work.settings["runs"]):
        trajectory = work.inputs[f"run{index}"] / "run.trr"
        parts.append(_split_run(system, trajectory, work.settings["discard_ps"], 1))
        work.progress(index + 1, work.settings["runs"])
    for index, given in enumerate(work.settings["given"]):
        theirs = _given_topology(system, find_gmx(work), work.inputs[f"tpr{index}"])
        parts.append(_split_run(system, work.inputs[f"given{index}"], given["start_ps"], given["stride"], theirs))
    held_from = [int(len(part[0]) * (1 - work.settings["held_out_fraction"])) for part in parts]
    training = [tuple(array[:cut] for array in part) for part, cut in zip(parts, held_from, strict=True)]
    held = [tuple(array[cut:] for array in part) for part, cut in zip(parts, held_from, strict=True)]
    save_split(work.folder / "split.npz", training)
    save_split(work.folder / "held_out.npz", held)
    work.count(flow=sum(len(part[0]) for part in parts))


def _split_run(
    system: System, trajectory: Path, start_ps: float, stride: int, theirs: Topology | None = None
) -> tuple[FloatArray, ...]:
    """Return s, b, y, u of one trajectory; ``theirs`` is what its .tpr says, when that is not our own."""
    frames = read_frames(trajectory, len(system.topology.names), start_ps=start_ps, stride=stride)
    if len(frames.positions) < 20:
        raise TrajectoryError(f"{trajectory} has {len(frames.positions)} frames to use", expected="at least 20")
    positions = make_whole(frames.positions, frames.box, system.topology.bonds)
    check_cutoff(theirs or system.topology, positions)
    with torch.no_grad():
        relabelled = system.coordinates.relabel(torch.from_numpy(positions))
        s, b, y = system.coordinates.split(relabelled)
        outside = ~(system.coordinates.in_support(y) & system.coordinates.in_support_beads(b))
        if outside.any():
            raise TrajectoryError(
                f"{int(outside.sum())} of {len(y)} frames of {trajectory} leave the states of the starting structure "
                "(handedness, cis/trans)",
                expected="frames in the states of the workflow's structure",
                remedy="give a structure in the trajectory's state, or leave such frames out (start_ps, gmx trjconv)",
            )
        u = system.target()(s, b, y)
    return s.numpy(), b.numpy(), y.numpy(), u.numpy()


def _given_topology(system: System, gmx: Engine, tpr: Path) -> Topology:
    """Read a user's .tpr and check that its run samples the density the weights are about."""
    try:
        theirs = parse_tpr_dump(gmx.dump(tpr))
        _require_same_density(system, theirs)
    except TopologyError as error:
        raise TopologyError(f"{tpr.name}: {error.found}", expected=error.expected, remedy=error.remedy) from None
    return theirs


def _require_same_density(system: System, theirs: Topology) -> None:
    """Same molecule, temperature and energy, no constraints."""
    require_unconstrained(theirs)
    if theirs.n_atoms != system.topology.n_atoms:
        raise TopologyError(f"found {theirs.n_atoms} atoms", expected=f"{system.topology.n_atoms}, as in the topology")
    if abs(theirs.run.temperature_K - system.temperature_K) > 1e-6:
        raise TopologyError(
            f"found a run at {theirs.run.temperature_K:g} K",
            expected=f"{system.temperature_K:g} K, the workflow's temperature_K",
        )
    structure = torch.from_numpy(system.structure)[None]
    difference = float(ForceField(_without_shifts(theirs))(structure) - ForceField(system.topology)(structure))
    if not abs(difference) < ENERGY_TOLERANCE_KJ_MOL:
        raise TopologyError(
            f"found an energy of the starting structure that differs by {difference:.3g} kJ/mol from the topology's",
            expected="a run with the workflow's topology",
            remedy="give the .top and the .tpr of the same system",
        )


def _without_shifts(topology: Topology) -> Topology:
    """Within the cut-off a shifted potential, GROMACS' default, is the plain one and a constant: the same density."""
    names = ("coulomb-modifier", "vdw-modifier")
    plain = {name: "None" for name in names if topology.run.settings.get(name) == "Potential-shift"}
    return replace(topology, run=replace(topology.run, settings={**topology.run.settings, **plain}))


def save_split(path: Path, parts: list[tuple[FloatArray, ...]]) -> None:
    """Write the runs' (s, b, y, u) one after the other, with the run's index."""
    s, b, y, u = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    run = np.repeat(np.arange(len(parts)), [len(part[0]) for part in parts])
    np.savez(path, s=s, b=b, y=y, u=u, run=run)


def load_split(path: Path) -> CoarseSplit:
    """Read what ``save_split`` wrote."""
    with np.load(path, allow_pickle=False) as data:
        return CoarseSplit(data["s"], data["b"], data["y"], data["u"], data["run"].astype(np.int64))
