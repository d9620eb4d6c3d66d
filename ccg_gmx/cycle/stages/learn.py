"""Stages of the flow: training by likelihood and with energies, and its draws at fixed beads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ccg_gmx.cycle.proposal import GridProposal, mixture_proposal
from ccg_gmx.cycle.stages.fine import load_split
from ccg_gmx.cycle.store import Work
from ccg_gmx.cycle.system import System
from ccg_gmx.flow.checkpoint import load_flow, save_flow
from ccg_gmx.flow.conditional import FlowSettings, LadderFlow
from ccg_gmx.flow.train import EnergySettings, LikelihoodSettings, OptimiserSettings, train_energy, train_likelihood
from ccg_gmx.free_energy.surface_files import load_surface, write_npz
from ccg_gmx.free_energy.weights import draw_bead_gradients
from ccg_gmx.potential.coarse import CoarsePotential
from ccg_gmx.records import FloatArray, WeightedDraws


def learn_likelihood(work: Work) -> None:
    """Train a new flow on fine frames by maximum likelihood.

    Inputs: system, split. Writes flow.pt, losses.npz.
    """
    system = System.load(work.inputs["system"])
    split = load_split(work.inputs["split"] / "split.npz")
    coordinates = system.coordinates
    settings = FlowSettings(**{**work.settings["flow"], "seed": work.seed})
    flow = LadderFlow(coordinates.n_s, coordinates.b, coordinates.y, settings)
    training = LikelihoodSettings(**work.settings["likelihood"])
    losses = train_likelihood(
        flow.to(_precision(training)),
        split,
        training,
        work.seed,
        checkpoint=work.folder / "training.pt",
        progress=work.progress,
    )
    _finish(work.folder, flow, losses)


def learn_energy(work: Work) -> None:
    """Train a flow further with energies, at coarse points of the proposal.

    Inputs: system, split, flow, proposal. Writes flow.pt, losses.npz.
    """
    system = System.load(work.inputs["system"])
    flow = load_flow(work.inputs["flow"] / "flow.pt")
    proposal = GridProposal.load(work.inputs["proposal"] / "proposal.npz")
    settings = EnergySettings(**work.settings["energy"])
    precision = _precision(settings)

    def propose(batch: int, generator: torch.Generator) -> torch.Tensor:
        seed = int(torch.randint(2**31 - 1, (), generator=generator))
        return torch.from_numpy(proposal.draw(batch, np.random.default_rng(seed)))

    losses = train_energy(
        flow.to(precision),
        system.target(precision),
        propose,
        load_split(work.inputs["split"] / "split.npz"),
        settings,
        work.seed,
        checkpoint=work.folder / "training.pt",
        progress=work.progress,
    )
    work.count(flow=settings.steps * settings.batch)
    _finish(work.folder, flow, losses)


def _precision(settings: OptimiserSettings) -> torch.dtype:
    return torch.float32 if settings.single_precision else torch.float64


def _finish(folder: Path, flow: LadderFlow, losses: dict[str, FloatArray]) -> None:
    """Save the flow in double precision, whatever it was trained in: its draws carry weights."""
    save_flow(flow.double(), folder / "flow.pt")
    write_npz(folder / "losses.npz", **losses)
    (folder / "training.pt").unlink(missing_ok=True)


def make_bead_draws(work: Work) -> None:
    """Free energy and mean force at bead configurations near the Boltzmann density as known so far.

    Part of the configurations are drawn from the surface and q(b | s); from the second turn on, the others are frames
    of the previous coarse MD. Both densities are known, so that importance weights are exact.
    Inputs: system, flow, surface, and coarse, coarse_fit of the previous turn. Writes beads.npz.
    """
    system = System.load(work.inputs["system"])
    flow = load_flow(work.inputs["flow"] / "flow.pt")
    s, b, log_proposal = _bead_points(work, flow)
    if "coarse" in work.inputs:
        parts = zip((s, b, log_proposal), _coarse_points(work), strict=True)
        s, b, log_proposal = (np.concatenate(pair) for pair in parts)
    draws = draw_bead_gradients(
        flow,
        system.target(),
        s,
        b,
        work.settings["draws_per_point"],
        work.seed,
        chunk=work.settings["chunk"],
        log_rho=log_proposal,
        progress=work.progress,
    )
    work.count(flow=draws.evaluations)
    assert draws.gradient is not None
    assert draws.gradient_error is not None
    np.savez(
        work.folder / "beads.npz",
        s=s,
        b=b,
        log_w=draws.log_w,
        log_rho=log_proposal,
        gradient=draws.gradient,
        gradient_error=draws.gradient_error,
    )


def _bead_points(work: Work, flow: LadderFlow) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Draw (s, b) from a slightly heated surface and the flow's q(b | s); with their log-density."""
    surface = load_surface(work.inputs["surface"] / "surface.npz")
    proposal = mixture_proposal(surface.f, None, uniform=0.02, coarse_fraction=0.0, temperature_factor=1.2)
    count = work.settings["points"] - (_coarse_count(work) if "coarse" in work.inputs else 0)
    s = proposal.draw(count, np.random.default_rng(work.seed))
    with torch.no_grad():
        b, log_q = flow.draw_beads(torch.from_numpy(s), torch.Generator().manual_seed(work.seed))
    return s, b.double().numpy(), proposal.log_density(s) + log_q.double().numpy()


def _coarse_count(work: Work) -> int:
    return int(work.settings["points"] * work.settings["coarse_fraction"])


def _coarse_points(work: Work) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Choose (s, b) among the frames of the previous coarse run; their density is the coarse model's."""
    potential = CoarsePotential.load(work.inputs["coarse_fit"] / "potential.npz")
    with np.load(work.inputs["coarse"] / "coarse.npz", allow_pickle=False) as data:
        s, b = data["s"], data["b"]
    count = min(_coarse_count(work), len(s))
    chosen = np.random.default_rng([work.seed, 1]).choice(len(s), size=count, replace=False)
    return s[chosen], b[chosen], potential.log_density(s[chosen], b[chosen])


def load_bead_draws(folders: list[Path]) -> WeightedDraws:
    """Read and join the bead free energies of all members; ``log_rho`` is the density their (s, b) were drawn from."""
    parts = [np.load(folder / "beads.npz", allow_pickle=False) for folder in folders]
    joined = {key: np.concatenate([part[key] for part in parts]) for key in parts[0].files}
    return WeightedDraws(
        joined["s"],
        joined["log_w"],
        joined["log_rho"],
        int(joined["log_w"].size),
        joined["b"],
        joined["gradient"],
        joined["gradient_error"],
    )
