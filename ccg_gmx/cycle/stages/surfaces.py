"""Stages of the free energy: the surface fitted to all draws, and where the next coarse points are drawn."""

from __future__ import annotations

import numpy as np

from ccg_gmx.cycle.proposal import mixture_proposal, uniform_proposal
from ccg_gmx.cycle.stages.coarse import coarse_density, load_coarse_run
from ccg_gmx.cycle.stages.draws import load_draws
from ccg_gmx.cycle.store import Work
from ccg_gmx.cycle.system import System
from ccg_gmx.free_energy.joint_fit import JointFitSettings, fit_surface
from ccg_gmx.free_energy.marginal_ratio import with_ratios
from ccg_gmx.free_energy.surface import load_surface, save_surface
from ccg_gmx.records import FloatArray, WeightedDraws


def first_proposal(work: Work) -> None:
    """Uniform over the torsions: nothing is known yet. Writes proposal.npz."""
    uniform_proposal(work.settings["grid"], work.settings["n_s"]).save(work.folder / "proposal.npz")


def next_proposal(work: Work) -> None:
    """Mix a uniform floor, the surface at raised temperature, coarse MD, and where the flows' surfaces disagree.

    Inputs: surface, coarse. Writes proposal.npz.
    """
    settings, folder = work.settings, work.inputs["surface"]
    surface = load_surface(folder / "surface.npz")
    mixture_proposal(
        surface.f,
        coarse_density(load_coarse_run(work.inputs["coarse"]), surface),
        uniform=settings["uniform_fraction"],
        coarse_fraction=settings["coarse_fraction"],
        temperature_factor=settings["temperature_factor"],
        disagreement=_disagreement([load_surface(folder / f"member{i}.npz").f for i in range(settings["members"])]),
        disagreement_fraction=settings["disagreement_fraction"],
    ).save(work.folder / "proposal.npz")


def _disagreement(members: list[FloatArray]) -> FloatArray | None:
    """Variance of f among the members, kT^2, each relative to its own Boltzmann mean."""
    if len(members) < 2:
        return None
    centred = [f - (np.exp(-f) * f).sum() / np.exp(-f).sum() for f in members]
    return np.asarray(np.var(centred, axis=0, ddof=1))


def make_surface(work: Work) -> None:
    """Fit one smooth surface to the draws of all members and turns, one to each member's, and one to the newest alone.

    Inputs: system, drawsG_M for every group G (turn or final round) and member M. Settings: groups, members, first_new
    (groups from this one on are new). Writes surface.npz, member0.npz, ..., own.npz, fit.npz.
    """
    system, settings = System.load(work.inputs["system"]), work.settings
    fit_settings = JointFitSettings(**settings["joint_fit"])
    records = {
        (group, member): load_draws(work.inputs[f"draws{group}_{member}"])
        for group in range(settings["groups"])
        for member in range(settings["members"])
    }

    def fitted(name: str, wanted: list[WeightedDraws]) -> None:
        fit = fit_surface(wanted, fit_settings)
        if name == "surface":
            fit = with_ratios(fit, list(records.values()), fit_settings)
        save_surface(
            fit.surface(settings["grid"], system.torsion_names, system.temperature_K), work.folder / f"{name}.npz"
        )
        if name == "surface":
            fit.save(work.folder / "fit.npz")

    everything = [record for found in records.values() for record in found]
    newest = [record for (group, _), found in records.items() if group >= settings["first_new"] for record in found]
    tasks = [("surface", everything), ("own", newest)]
    for member in range(settings["members"]):
        tasks.append(
            (f"member{member}", [r for (_, owner), found in records.items() if owner == member for r in found])
        )
    for done, (name, wanted) in enumerate(tasks):
        fitted(name, wanted)
        work.progress(done + 1, len(tasks))
