"""Restoration with the flows of a cycle: exact beads, the density of the mixture, coverage of held-out frames."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

from ccg_gmx.backmap.card import conditional_forward_ess
from ccg_gmx.backmap.jobs import reduced_energy
from ccg_gmx.cli import main
from ccg_gmx.cycle.run_flow import CycleRestorer
from ccg_gmx.cycle.system import System
from ccg_gmx.engine.gromacs import Gmx
from ccg_gmx.flow.conditional import LadderFlow
from ccg_gmx.flow.level import FlowSettings
from ccg_gmx.molecule.topology import parse_tpr_dump
from ccg_gmx.molecule.trajectory import read_frames

BEADS = {"C_ACE": 5, "N_ALA": 7, "CA_ALA": 9, "C_ALA": 15, "N_NME": 17}
TORSIONS = {"phi": [5, 7, 9, 15], "psi": [7, 9, 15, 17]}


@pytest.fixture(scope="module")
def fine(gmx: Gmx, alanine_tpr: Path, alanine_trr: Path) -> tuple[System, Tensor]:
    """Alanine dipeptide and 200 frames ``[T, N, 3]`` nm of it, relabelled."""
    topology = parse_tpr_dump(gmx.dump(alanine_tpr))
    positions = read_frames(alanine_trr, topology.n_atoms).positions[1:]
    system = System.build(topology, positions[0], BEADS, TORSIONS, 300.0)
    return system, system.coordinates.relabel(torch.from_numpy(positions))


def restorer(fine: tuple[System, Tensor], seeds: tuple[int, ...]) -> CycleRestorer:
    """Flows that know the frames' means and widths, and nothing else."""
    system, x = fine
    coordinates = system.coordinates
    _, b, y = coordinates.split(x)
    flows = []
    for seed in seeds:
        flow = LadderFlow(coordinates.n_s, coordinates.b, coordinates.y, FlowSettings(couplings=1, seed=seed))
        flow.fit_scales(b, y)
        flows.append(flow.to(torch.float64).requires_grad_(False))
    return CycleRestorer(system, flows)


def test_draws_stand_on_their_beads_and_know_their_density(fine: tuple[System, Tensor]) -> None:
    mixture = restorer(fine, (1, 2))
    beads = mixture.system.placement.bead_positions(fine[1])
    draws = mixture.draw(beads, torch.Generator().manual_seed(3))
    assert torch.equal(draws.positions[:, list(fine[0].beads)], beads)
    assert torch.isfinite(draws.log_q).all()
    torch.testing.assert_close(mixture.log_prob(draws.positions), draws.log_q, rtol=0, atol=1e-8)
    assert mixture.fingerprint() != restorer(fine, (1,)).fingerprint()


def test_the_density_is_the_mean_of_the_members(fine: tuple[System, Tensor]) -> None:
    members = [restorer(fine, (seed,)).log_prob(fine[1]) for seed in (1, 2)]
    mean = torch.logaddexp(*members) - np.log(2.0)
    torch.testing.assert_close(restorer(fine, (1, 2)).log_prob(fine[1]), mean)


def test_weights_are_those_of_the_cycle(fine: tuple[System, Tensor]) -> None:
    """-beta U(r) - ln q(r | beads) is -u(s, b, y) - ln q(y | s, b) up to what depends on the beads alone."""
    system, x = fine
    one = restorer(fine, (1,))
    s, b, y = system.coordinates.split(x)
    with torch.no_grad():
        ours = -reduced_energy(system.energy(), 300.0)(x.numpy()) - one.log_prob(x).numpy()
        theirs = -system.target()(s, b, y) - one.flows[0].log_prob_rest(y, s, b)
        theirs = theirs - system.coordinates.log_jacobian_beads(b)
    np.testing.assert_allclose(ours, theirs, atol=1e-8)


def test_beads_outside_the_ensemble_have_no_density(
    fine: tuple[System, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = restorer(fine, (1,))
    beads = one.system.placement.bead_positions(fine[1])[:3]
    inside = torch.tensor([True, False, True])
    monkeypatch.setattr(one.cycle.coordinates, "in_support_beads", lambda b: inside)
    draws = one.draw(beads, torch.Generator().manual_seed(1))
    assert torch.equal(torch.isfinite(draws.log_q), inside)


@pytest.mark.parametrize("width", [0.8, 1.0, 1.3])
def test_forward_fraction_of_gaussians(width: float) -> None:
    """Target N(b, 1) and proposal N(b, width^2), each b with a normalisation of its own.

    The fraction is 1 / E_q[(p/q)^2] = sqrt(2 width^2 - 1) / width^2. It is the mean of 40 repeats whose scatter gives
    the error; 4 standard errors, and the bias of order 1/K of the estimated normalisations.
    """
    rng = np.random.default_rng(5)
    found = []
    for _ in range(40):
        z = rng.normal(size=200)  # ln of the normalisation of each b
        inside = rng.normal(size=200)
        draws = width * rng.normal(size=(200, 400))
        log_w = z[:, None] - 0.5 * draws**2 + 0.5 * (draws / width) ** 2 + np.log(width)
        fine = z - 0.5 * inside**2 + 0.5 * (inside / width) ** 2 + np.log(width)
        found.append(conditional_forward_ess(fine, log_w))
    exact = np.sqrt(2.0 * width**2 - 1.0) / width**2
    error = np.std(found, ddof=1) / np.sqrt(len(found))
    assert abs(np.mean(found) - exact) < 4.0 * error + 2.0 / 400


def test_a_frame_that_the_flow_cannot_make_leaves_no_forward_fraction() -> None:
    assert conditional_forward_ess(np.array([0.0, np.inf]), np.zeros((2, 8))) == 0.0


def test_run_folders_are_refused_in_one_line(tmp_path: Path) -> None:
    for options, message in (
        ([], "has no results.json"),
        (["--tpr", "x.tpr"], "a run has its own topology"),
    ):
        result = CliRunner().invoke(
            main, ["backmap", str(tmp_path), "cg.trr", "-o", str(tmp_path / "x.xtc"), *options, "--quiet"]
        )
        assert result.exit_code == 2
        assert message in result.stderr
        assert result.stderr.count("\n") == 1
