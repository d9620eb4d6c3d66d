"""Stages of the coarse model: its fit and its MD in GROMACS."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from ccg_gmx.cycle.stages.fine import find_gmx
from ccg_gmx.cycle.stages.learn import load_bead_draws
from ccg_gmx.cycle.store import Work
from ccg_gmx.cycle.system import System
from ccg_gmx.engine.mdp import Mdp, coarse_run
from ccg_gmx.export.gromacs import CoarseMolecule, GromacsExportSettings, write_forcefield
from ccg_gmx.free_energy.surface import histogram_surface
from ccg_gmx.free_energy.surface_files import load_surface, write_npz
from ccg_gmx.free_energy.surface_fit import SurfaceFit
from ccg_gmx.molecule.structure import read_structure
from ccg_gmx.molecule.supports import bead_torsions
from ccg_gmx.molecule.trajectory import make_whole, read_frames
from ccg_gmx.potential.basis import SeparableBasis, TorsionMaps, covering_term
from ccg_gmx.potential.coarse import CoarsePotential
from ccg_gmx.potential.fit import BeadSamples, FitSettings, fit_coarse_potential
from ccg_gmx.potential.pairing import pair_torsions
from ccg_gmx.records import CoarseRun, FloatArray, FreeEnergySurface

_KERNEL_DEGREES = 6.0  # of the coarse frames' density in a proposal: well inside a torsion's well
_MAP_POINTS = 48  # per torsion of the marginals that maps are fitted to; contains the maps' knots


def coarse_density(run: CoarseRun, like: FreeEnergySurface) -> FloatArray:
    """Density of a coarse run's frames on the grid of a surface, ``[n] * n_s``, smoothed with a Gaussian kernel.

    With three or more torsions cells are wide and frames in them few, and the kernel is at least half a cell wide.
    """
    n = len(like.f)
    kernel = _KERNEL_DEGREES if like.f.ndim <= 2 else max(_KERNEL_DEGREES, 180.0 / n)
    return np.exp(-histogram_surface(run.s, n, like.names, like.temperature_K, kde_degrees=kernel).f)


def fit_coarse(work: Work) -> None:
    """Fit the coarse potential and write it as a plain GROMACS model.

    Inputs: system, surface, beads0, ... Writes potential.npz, forcefield/.
    """
    system = System.load(work.inputs["system"])
    settings = FitSettings(**work.settings["coarse_fit"])
    surface = load_surface(work.inputs["surface"] / "surface.npz")
    draws = load_bead_draws([work.inputs[f"beads{index}"] for index in range(work.settings["members"])])
    samples = BeadSamples.from_draws(draws, draws.log_rho)
    terms = tuple(covering_term(c, samples.b[:, i]) for i, c in enumerate(system.coordinates.b))
    maps = pair_torsions(surface, torsion_positions(system))
    marginals = None
    if len(maps.grids) > 1:
        marginals = map_marginals(SurfaceFit.load(work.inputs["surface"] / "fit.npz"), maps, surface)
    potential = fit_coarse_potential(SeparableBasis(terms, maps), surface, samples, settings, marginals)
    potential.save(work.folder / "potential.npz")
    s, b = potential.sample(1, work.seed)
    start = system.coordinates.beads(torch.from_numpy(s), torch.from_numpy(b))[0].numpy()
    mdp = _coarse_mdp(system, work.settings, work.settings["final_steps"], work.seed)
    write_forcefield(work.folder / "forcefield", potential, coarse_molecule(system), start, mdp.text())


def torsion_positions(system: System) -> tuple[int, ...]:
    """Place of every coarse torsion in the bead chain; neighbours there share three beads."""
    chain = bead_torsions(system.coordinates.tree)
    return tuple(chain.index(atoms) for atoms in system.coordinates.s_atoms)


def map_marginals(fit: SurfaceFit, maps: TorsionMaps, like: FreeEnergySurface) -> list[FreeEnergySurface]:
    """Marginals of the fitted surface, with errors, over the torsions of each map; names as in ``like``."""
    return [fit.marginal(columns, _MAP_POINTS, like.names, like.temperature_K) for columns in maps.columns]


def coarse_molecule(system: System) -> CoarseMolecule:
    """Beads with the mass of their atom and of what hangs on it, so that the total mass is kept."""
    topology, chain = system.topology, list(system.beads)
    n = len(chain)
    torsions = bead_torsions(system.coordinates.tree)
    left = tuple(atoms for atoms in torsions if atoms not in system.coordinates.s_atoms)
    return CoarseMolecule(
        name="COARSE",
        bead_names=tuple(topology.names[atom] for atom in chain),
        residue_names=tuple(topology.residue_names[atom] for atom in chain),
        residue_ids=tuple(int(topology.residue_ids[atom]) for atom in chain),
        masses=bead_masses(system),
        terms=(
            *((i, i + 1) for i in range(n - 1)),
            *((i, i + 1, i + 2) for i in range(n - 2)),
            *(tuple(map(chain.index, atoms)) for atoms in left),
        ),
        torsions=tuple(tuple(map(chain.index, atoms)) for atoms in system.coordinates.s_atoms),
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
    """Run copies of the coarse model in one box, started from draws of the model's own density.

    Starting in equilibrium, the basins' populations are right at once, and MD that did not sample this model's
    Boltzmann density would show by drifting away from it.
    Inputs: system, coarse_fit. Writes coarse.npz.
    """
    if (work.folder / "coarse.npz").exists():  # killed after its last step
        (work.folder / "run.trr").unlink(missing_ok=True)
        return
    gmx, settings, folder = find_gmx(work), work.settings, work.folder
    system = System.load(work.inputs["system"])
    potential = CoarsePotential.load(work.inputs["coarse_fit"] / "potential.npz")
    s, b = equilibrium_starts(potential, settings["copies"], work.seed)
    starts = system.coordinates.beads(torch.from_numpy(s), torch.from_numpy(b)).numpy()
    mdp = _coarse_mdp(system, settings, settings["steps"], work.seed, cutoff_nm=0.5)
    edge = GromacsExportSettings(box_nm=max(6.0, 1.5 * settings["copies"] ** (1 / 3)))
    files = write_forcefield(folder / "model", potential, coarse_molecule(system), starts, mdp.text(), edge)
    tpr = folder / "run.tpr"
    if not tpr.exists():
        gmx.grompp(files.tables_mdp.read_text(), files.structure, files.topology, tpr, workdir=folder)
    result = gmx.mdrun(
        tpr, folder, name="run", steps_total=settings["steps"], progress=work.progress, tables=files.tables
    )
    _save_coarse(folder, system, result.trajectory, result.ns_per_day)


def _coarse_mdp(system: System, settings: dict[str, Any], steps: int, seed: int, cutoff_nm: float = 2.5) -> Mdp:
    return coarse_run(
        system.temperature_K,
        steps,
        seed,
        dt_ps=settings["dt_ps"],
        output_every=settings["output_every"],
        tau_t_ps=settings["friction_time_ps"],
        cutoff_nm=cutoff_nm,
    )


def equilibrium_starts(potential: CoarsePotential, count: int, seed: int) -> tuple[FloatArray, FloatArray]:
    """Draw ``(s [count, n_s], b [count, n_b])`` from the coarse density, evenly spread along a torsion of every map.

    Every 16th of a sample sorted by the map's first torsion: still draws of the density, but basins along that torsion
    hold their share to about one copy instead of its square root. Maps are independent, so each is thinned by itself
    and joined to the others in random order.
    """
    s, b = potential.sample(16 * count, seed)
    rng = np.random.default_rng([seed, 1])
    first, *others = potential.basis.maps.columns
    chosen = np.argsort(s[:, first[0]], kind="stable")[8::16]
    starts, b = s[chosen], b[chosen]
    for columns in others:
        thinned = np.argsort(s[:, columns[0]], kind="stable")[8::16]
        starts[:, columns] = s[rng.permutation(thinned)][:, columns]
    return starts, b


def _save_coarse(folder: Path, system: System, trajectory: Path, ns_per_day: float) -> None:
    """Bring the frames of all copies into internal coordinates and remove the bulky trajectory."""
    n = len(system.beads)
    copies = read_structure(folder / "model" / "conf.gro")[0].shape[0] // n
    frames = read_frames(trajectory, copies * n)
    assert frames.box is not None
    chain = np.stack([np.arange(n - 1), np.arange(1, n)], axis=1)
    # Copy after copy, each in time order: [copies * T, n, 3].
    positions = np.swapaxes(frames.positions.reshape(-1, copies, n, 3), 0, 1).reshape(-1, n, 3)
    whole = make_whole(positions, np.tile(frames.box, (copies, 1, 1)), chain)
    s, b = system.coordinates.split_beads(torch.from_numpy(whole))
    walker = np.repeat(np.arange(copies), len(frames.positions))
    write_npz(
        folder / "coarse.npz",
        s=s.numpy(),
        b=b.numpy(),
        positions=whole,
        walker=walker,
        ns_per_day=np.asarray(ns_per_day * copies),
    )
    trajectory.unlink()


def gather_coarse(work: Work) -> None:
    """Put the runs' frames together. Inputs: run0, run1, ... Writes coarse.npz."""
    runs = [np.load(work.inputs[f"run{i}"] / "coarse.npz", allow_pickle=False) for i in range(work.settings["runs"])]
    joined = {key: np.concatenate([run[key] for run in runs]) for key in ("s", "b", "positions")}
    first = np.cumsum([0] + [int(run["walker"].max()) + 1 for run in runs])
    walker = np.concatenate([run["walker"] + first[i] for i, run in enumerate(runs)])
    speed = np.mean([float(run["ns_per_day"]) for run in runs])
    write_npz(work.folder / "coarse.npz", walker=walker, ns_per_day=np.asarray(speed), **joined)


def load_coarse_run(folder: Path) -> CoarseRun:
    """Read the joined frames of all walkers."""
    with np.load(folder / "coarse.npz", allow_pickle=False) as data:
        return CoarseRun(
            data["s"], data["b"], data["positions"], float(data["ns_per_day"]), data["walker"].astype(np.int64)
        )
