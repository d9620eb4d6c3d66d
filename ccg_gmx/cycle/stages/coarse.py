"""Stages of the free energy and the coarse model: surface, coarse fit, coarse MD, next proposal."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ccg_gmx.cycle.proposal import mixture_proposal, uniform_proposal
from ccg_gmx.cycle.stages.fine import find_gmx
from ccg_gmx.cycle.stages.learn import load_bead_draws, load_draws
from ccg_gmx.cycle.store import Work
from ccg_gmx.cycle.system import System
from ccg_gmx.engine.mdp import coarse_run
from ccg_gmx.export.gromacs import CoarseMolecule, write_forcefield
from ccg_gmx.free_energy.joint_fit import JointFitSettings, fit_surface
from ccg_gmx.free_energy.surface import histogram_surface
from ccg_gmx.free_energy.surface_files import load_surface, save_surface, write_npz
from ccg_gmx.molecule.trajectory import make_whole, read_frames
from ccg_gmx.potential.basis import SeparableBasis, SplineTerm, TorsionGrid
from ccg_gmx.potential.coarse import CoarsePotential
from ccg_gmx.potential.fit import BeadSamples, FitSettings, fit_coarse_potential
from ccg_gmx.records import CoarseRun, FreeEnergySurface


def first_proposal(work: Work) -> None:
    """Uniform over the torsions: nothing is known yet. Writes proposal.npz."""
    uniform_proposal(work.settings["grid"], work.settings["n_s"]).save(work.folder / "proposal.npz")


def next_proposal(work: Work) -> None:
    """Mix uniform floor, Boltzmann density at raised temperature and coarse MD frames.

    Inputs: surface, coarse (optional). Writes proposal.npz.
    """
    surface = load_surface(work.inputs["surface"] / "surface.npz")
    coarse = None
    if "coarse" in work.inputs:
        run = load_coarse_run(work.inputs["coarse"])
        density = histogram_surface(run.s, len(surface.f), surface.names, surface.temperature_K, kde_degrees=6.0)
        coarse = np.exp(-density.f)
    mixture_proposal(
        surface.f,
        coarse,
        uniform=work.settings["uniform_fraction"],
        coarse_fraction=work.settings["coarse_fraction"],
        temperature_factor=work.settings["temperature_factor"],
    ).save(work.folder / "proposal.npz")


def make_surface(work: Work) -> None:
    """Fit one smooth surface to the draws of all members, and one to each member alone.

    Inputs: system, draws0, draws1, ... Writes surface.npz, member0.npz, ..., fit.npz.
    """
    system = System.load(work.inputs["system"])
    settings = JointFitSettings(**work.settings["joint_fit"])
    names, n = system.torsion_names, work.settings["grid"]
    members = [load_draws(work.inputs[f"draws{index}"]) for index in range(work.settings["members"])]
    fit = fit_surface(members, settings)
    fit.save(work.folder / "fit.npz")
    save_surface(fit.surface(n, names, system.temperature_K), work.folder / "surface.npz")
    for index, draws in enumerate(members):
        alone = fit if len(members) == 1 else fit_surface([draws], settings)
        save_surface(alone.surface(n, names, system.temperature_K), work.folder / f"member{index}.npz")


def fit_coarse(work: Work) -> None:
    """Fit the coarse potential and write it as a plain GROMACS model.

    Inputs: system, surface, split, structure, beads0, ... Writes potential.npz, forcefield/.
    """
    system = System.load(work.inputs["system"])
    settings = FitSettings(**work.settings["coarse_fit"])
    surface = load_surface(work.inputs["surface"] / "surface.npz")
    draws = load_bead_draws([work.inputs[f"beads{index}"] for index in range(work.settings["members"])])
    samples = BeadSamples.from_draws(draws, draws.log_rho)
    terms = tuple(SplineTerm.covering(c, samples.b[:, i]) for i, c in enumerate(system.coordinates.b))
    basis = SeparableBasis(terms, TorsionGrid(system.torsion_names))
    potential = fit_coarse_potential(basis, surface, samples, settings)
    potential.save(work.folder / "potential.npz")
    s, b = potential.sample(1, work.seed)
    start = system.coordinates.beads(torch.from_numpy(s), torch.from_numpy(b))[0].numpy()
    mdp = coarse_run(
        system.temperature_K,
        work.settings["final_steps"],
        work.seed,
        dt_ps=work.settings["dt_ps"],
        output_every=work.settings["output_every"],
        tau_t_ps=work.settings["friction_time_ps"],
    )
    write_forcefield(work.folder / "forcefield", potential, coarse_molecule(system), start, mdp.text())


def coarse_molecule(system: System) -> CoarseMolecule:
    """Beads with the mass of their atom and of what hangs on it, so that the total mass is kept."""
    topology, chain = system.topology, list(system.beads)
    n = len(chain)
    return CoarseMolecule(
        name="COARSE",
        bead_names=tuple(topology.names[atom] for atom in chain),
        residue_names=tuple(topology.residue_names[atom] for atom in chain),
        residue_ids=tuple(int(topology.residue_ids[atom]) for atom in chain),
        masses=bead_masses(system),
        terms=tuple((i, i + 1) for i in range(n - 1)) + tuple((i, i + 1, i + 2) for i in range(n - 2)),
        torsions=tuple(tuple(chain.index(atom) for atom in atoms) for atoms in system.coordinates.s_atoms),
    )


def bead_masses(system: System) -> tuple[float, ...]:
    """Give every atom's mass to the bead it hangs on: the first bead met when walking up the tree."""
    owner = {atom: index for index, atom in enumerate(system.beads)}
    masses = [float(system.topology.masses[atom]) for atom in system.beads]
    for row in sorted(system.coordinates.tree.rows, key=lambda row: row.level):
        owner[row.atom] = owner[row.parent]
        masses[owner[row.atom]] += float(system.topology.masses[row.atom])
    return tuple(masses)


def run_coarse(work: Work) -> None:
    """Run one coarse walker, started from a draw of the coarse model's own density.

    Starting in equilibrium, the basins' populations are right at once, and MD that did not sample this model's
    Boltzmann density would show by drifting away from it.
    Inputs: system, coarse_fit. Writes coarse.npz.
    """
    if (work.folder / "coarse.npz").exists():  # killed after its last step
        (work.folder / "run.trr").unlink(missing_ok=True)
        return
    gmx, settings, folder = find_gmx(work), work.settings, work.folder
    system = System.load(work.inputs["system"])
    model = work.inputs["coarse_fit"]
    potential = CoarsePotential.load(model / "potential.npz")
    s, b = potential.sample(settings["walkers"], settings["start_seed"])
    walker = settings["walker"]
    start = system.coordinates.beads(torch.from_numpy(s), torch.from_numpy(b))[walker].numpy()
    mdp = coarse_run(
        system.temperature_K,
        settings["steps"],
        work.seed,
        dt_ps=settings["dt_ps"],
        output_every=settings["output_every"],
        tau_t_ps=settings["friction_time_ps"],
    )
    files = write_forcefield(folder / "model", potential, coarse_molecule(system), start, mdp.text())
    tpr = folder / "run.tpr"
    if not tpr.exists():
        gmx.grompp(files.tables_mdp.read_text(), files.structure, files.topology, tpr, workdir=folder)
    result = gmx.mdrun(
        tpr, folder, name="run", steps_total=settings["steps"], progress=work.progress, tables=files.tables
    )
    frames = read_frames(result.trajectory, len(system.beads))
    chain = np.stack([np.arange(len(system.beads) - 1), np.arange(1, len(system.beads))], axis=1)
    positions = make_whole(frames.positions, frames.box, chain)
    s_run, b_run = system.coordinates.split_beads(torch.from_numpy(positions))
    write_npz(
        folder / "coarse.npz",
        s=s_run.numpy(),
        b=b_run.numpy(),
        positions=positions,
        ns_per_day=np.asarray(result.ns_per_day),
    )
    result.trajectory.unlink()


def gather_coarse(work: Work) -> None:
    """Put the walkers' frames together. Inputs: walker0, walker1, ... Writes coarse.npz."""
    runs = [
        np.load(work.inputs[f"walker{i}"] / "coarse.npz", allow_pickle=False) for i in range(work.settings["walkers"])
    ]
    joined = {key: np.concatenate([run[key] for run in runs]) for key in ("s", "b", "positions")}
    walker = np.repeat(np.arange(len(runs)), [len(run["s"]) for run in runs])
    speed = np.mean([float(run["ns_per_day"]) for run in runs])
    write_npz(work.folder / "coarse.npz", walker=walker, ns_per_day=np.asarray(speed), **joined)


def load_coarse_run(folder: Path) -> CoarseRun:
    """Read the joined frames of all walkers."""
    with np.load(folder / "coarse.npz", allow_pickle=False) as data:
        return CoarseRun(
            data["s"], data["b"], data["positions"], float(data["ns_per_day"]), data["walker"].astype(np.int64)
        )


def coarse_surface(run: CoarseRun, like: FreeEnergySurface, kde_degrees: float) -> FreeEnergySurface:
    """Return the free energy of the coarse run's histogram on the grid of another surface."""
    return histogram_surface(run.s, len(like.f), like.names, like.temperature_K, kde_degrees=kde_degrees)
