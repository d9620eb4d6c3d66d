"""Backmapping: blocks, what they see, exact densities, supports, transfer, candidates, clashes."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from backmap_systems import CENTRES, SMALL, fitted, frames, system, with_charges
from placement_systems import shipped

from ccg_gmx.backmap import features
from ccg_gmx.backmap.contacts import (
    COST_PER_CLASH,
    FACTOR,
    POLAR_FACTOR,
    Turn,
    choose,
    clash_counts,
    contact_rules,
    surround_of,
)
from ccg_gmx.backmap.model import BackmapFlow
from ccg_gmx.backmap.sampling import Sampler
from ccg_gmx.backmap.system import make_system
from ccg_gmx.errors import CheckpointError, SettingsError, TopologyError

BACKBONE, CA = ("N", "CA", "C"), ("CA",)
CASES = [
    ("chignolin", BACKBONE),
    ("chignolin", CA),
    ("alanine_tripeptide", ("C", "N", "CA")),
    ("chignolin", CENTRES),
    ("alanine_tripeptide", CENTRES),
]
IDS = ["backbone", "C-alpha", "tripeptide", "centres", "tripeptide's centres"]


def beads_of(name: str, beads: tuple[str, ...], count: int, seed: int) -> torch.Tensor:
    return system(name, beads).placement.bead_positions(frames(system(name, beads), count, seed))


@pytest.mark.parametrize(("name", "beads"), CASES, ids=IDS)
def test_every_placed_atom_is_in_one_block_and_refers_to_earlier_passes(name: str, beads: tuple[str, ...]) -> None:
    of = system(name, beads)
    rows = of.placement.plan.rows
    stage = {}
    for table in of.blocks.kinds:
        for k, block in enumerate(table.blocks):
            for atom in table.atoms[k]:
                assert atom not in stage
                stage[int(atom)] = (*table.stage[:, k].tolist(), int(block))
    first = set(of.beads.tolist()) if of.centres else set()
    single = {group[0] for group in of.mapping.atoms if len(group) == 1}
    assert sorted(stage) == sorted({row.atom for row in rows} | (first - single))
    inner = [row.atom for row in rows[: of.placement.plan.n_inner]]
    for row, order in itertools.product(rows, (0, 1)):
        for reference in (row.parent, row.angle_ref, row.torsion_ref, row.measured_from):
            if reference in first and row.atom in inner:
                continue  # there it stands for the centre
            if reference in stage and stage[reference][2] != stage[row.atom][2]:
                assert stage[reference][order] < stage[row.atom][order]


def test_blocks_of_one_pass_share_no_bead_and_those_of_the_first_no_neighbour() -> None:
    of = system("chignolin", CA)
    blocks = [block for block in of.blocks.blocks if block.depth == 0]
    assert sorted({block.colour for block in blocks}) == [0, 1, 2]
    around = [{k for k, other in enumerate(blocks) if set(block.beads) & set(other.beads)} for block in blocks]
    for k, block in enumerate(blocks):
        alike = {j for j, other in enumerate(blocks) if other.colour == block.colour} - {k}
        assert not alike & around[k]
        if block.colour == 0:
            assert not alike & {j for i in around[k] for j in around[i]}


def test_the_number_of_passes_does_not_grow_with_the_chain() -> None:
    beads = ("C", "N", "CA")
    assert system("alanine_dipeptide", beads).blocks.n_stages == system("alanine_tripeptide", beads).blocks.n_stages
    assert system("chignolin", BACKBONE).blocks.n_stages <= 3


@pytest.mark.parametrize(("name", "beads"), CASES, ids=IDS)
@pytest.mark.parametrize("order", [0, 1])
def test_a_block_does_not_see_what_is_drawn_with_it_or_later(name: str, beads: tuple[str, ...], order: int) -> None:
    of, flow = system(name, beads), fitted(name, beads)
    view = flow.view(of)
    x = features.points_of(frames(of, 3, 2), of)
    near = features.surroundings(x, view)
    for kind in view.kinds:
        before = flow.context(flow.look(x, near, view, kind), kind, order)
        for k in range(len(kind.table.blocks)):
            stage = kind.table.stage[order, k]
            late = [t.atoms[j] for t in of.blocks.kinds for j in range(len(t.blocks)) if t.stage[order, j] >= stage]
            moved = x.clone()
            moved[:, np.concatenate(late)] += 0.05 * torch.randn(3, sum(map(len, late)), 3, dtype=torch.float64)
            after = flow.context(flow.look(moved, near, view, kind), kind, order)
            own = slice(k * 3, (k + 1) * 3)
            torch.testing.assert_close(after[:, own], before[:, own], rtol=0, atol=0)


@pytest.mark.parametrize(("name", "beads"), CASES, ids=IDS)
def test_draws_have_the_density_that_is_computed_for_their_positions(name: str, beads: tuple[str, ...]) -> None:
    of, flow = system(name, beads), fitted(name, beads)
    draws = Sampler(flow, of).draw(beads_of(name, beads, 20, 3), torch.Generator().manual_seed(1))
    reaches = torch.isfinite(draws.log_q)
    assert reaches.sum() >= 5  # frames of these tests do not teach when a bridge reaches
    again = flow.log_prob(draws.positions[reaches], flow.view(of))
    torch.testing.assert_close(again, draws.log_q[reaches], rtol=0, atol=1e-7)


def test_the_density_does_not_depend_on_place_and_orientation() -> None:
    of, flow = system(*CASES[1]), fitted(*CASES[1])
    x = frames(of, 5, 4)
    turn, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2)))
    turn = turn * torch.linalg.det(turn)
    moved = x @ turn.T + torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    view = flow.view(of)
    torch.testing.assert_close(flow.log_prob(moved, view), flow.log_prob(x, view), rtol=0, atol=1e-6)


def test_densities_are_normalised() -> None:
    """E_q[q'/q] = 1 for two flows, and the mean of 20,000 ratios lies within 4.5 standard errors: 1 in 150,000."""
    name, beads = "alanine_dipeptide", ("C", "N", "CA")
    of, flow = system(name, beads), fitted(name, beads)
    other = BackmapFlow.of_system(of, SMALL)
    other.load_state_dict(flow.state_dict())
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += 0.005 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        draws = Sampler(flow, of).draw(beads_of(name, beads, 1, 3).expand(20_000, -1, -1), generator)
        ratio = torch.exp(other.log_prob(draws.positions, other.view(of)) - draws.log_q)
    assert 1e-3 < ratio.std() < 5.0
    assert abs(float(ratio.mean()) - 1.0) < 4.5 * float(ratio.std()) / 20_000**0.5


@pytest.mark.parametrize(("name", "beads"), CASES, ids=IDS)
@pytest.mark.parametrize("candidates", [1, 4])
def test_draws_keep_handedness_planes_and_beads(name: str, beads: tuple[str, ...], candidates: int) -> None:
    of, flow = system(name, beads), fitted(name, beads)
    wild = BackmapFlow.of_system(of, SMALL)
    wild.load_state_dict(flow.state_dict())
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in wild.parameters():  # by 0.1, angles of 60 degrees turn tetrahedra of C-alpha inside out
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    given = beads_of(name, beads, 50, 6)
    draws = Sampler(wild, of, candidates).draw(given, generator)
    reaches = torch.isfinite(draws.log_q)
    if not of.centres:
        assert int(of.placement.chirality_errors(draws.positions[reaches]).sum()) == 0
    assert of.placement.in_support(of.placement.split(draws.positions[reaches])[0]).all()
    found = of.placement.bead_positions(draws.positions)
    assert torch.equal(found, given) or (of.centres and (found - given).abs().max() < 1e-12)


def test_candidates_keep_handedness_across_groups() -> None:
    """Between two groups a bond is no coordinate, so handedness is a matter of choice: 8 draws leave few wrong ones."""
    of = system("alanine_tripeptide", CENTRES)
    flow = fitted("alanine_tripeptide", CENTRES)
    given = beads_of("alanine_tripeptide", CENTRES, 200, 6)
    wrong = {
        candidates: of.placement.chirality_errors(
            Sampler(flow, of, candidates).draw(given, torch.Generator().manual_seed(4)).positions
        ).sum()
        for candidates in (1, 8)
    }
    assert wrong[1] > 20
    assert wrong[8] < 0.1 * wrong[1]


def test_one_model_restores_a_chain_of_another_length() -> None:
    beads = ("C", "N", "CA")
    longer, shorter = system("alanine_tripeptide", beads), system("alanine_dipeptide", beads)
    flow = fitted("alanine_tripeptide", beads)
    draws = Sampler(flow, shorter).draw(beads_of("alanine_dipeptide", beads, 10, 1), torch.Generator().manual_seed(0))
    assert len(draws.positions[0]) == len(shorter.atoms) < len(longer.atoms)
    assert torch.isfinite(draws.log_q).all()
    assert int(shorter.placement.chirality_errors(draws.positions).sum()) == 0


def test_a_residue_that_the_model_does_not_know_is_named() -> None:
    flow = fitted("alanine_tripeptide", ("C", "N", "CA"))
    with pytest.raises(CheckpointError, match=r"does not know a fragment of residue \w+\d+"):
        flow.view(system("chignolin", BACKBONE))


def test_beads_that_are_not_there_are_refused() -> None:
    with pytest.raises(SettingsError, match="no atom is named BB"):
        system("alanine_dipeptide", ("BB",))
    with pytest.raises(TopologyError, match="have no bead"):
        system("chignolin", ("CB",))


def test_clashes_are_those_of_all_pairs() -> None:
    of = system("chignolin", BACKBONE)
    rules, x = contact_rules(of.atoms), frames(of, 6, 3).numpy()
    x[3:] += 0.04 * np.random.default_rng(0).normal(size=x[3:].shape)
    limit = rules.radii[:, None] + rules.radii[None, :]
    limit *= np.where(rules.polar[:, None] & rules.polar[None, :], POLAR_FACTOR, FACTOR)
    limit[(rules.radii == 0)[:, None] | (rules.radii == 0)[None, :]] = 0.0
    for atom in range(len(of.atoms)):
        limit[atom, rules.near_atoms[rules.near_start[atom] : rules.near_start[atom + 1]]] = 0.0
    distance = np.linalg.norm(x[:, :, None] - x[:, None], axis=-1)
    expected = np.triu(distance < limit, 1).sum((1, 2))
    assert expected.max() > 0
    np.testing.assert_array_equal(clash_counts(rules, x), expected)


def test_candidates_are_taken_by_their_clashes_and_the_choice_is_accounted_for() -> None:
    """One block among everything else, against clashes counted by hand."""
    of, count, m = system("chignolin", BACKBONE), 200, 5
    rules, rng = contact_rules(of.atoms), np.random.default_rng(7)
    table = max(of.blocks.kinds, key=lambda kind: kind.atoms.shape[1])
    own = table.atoms[0]
    x = np.broadcast_to(frames(of, 1, 3).numpy(), (m, count, len(of.atoms), 3)).copy()
    x[:, :, own] += 0.08 * rng.normal(size=(m, count, 1, 3)) + 0.02 * rng.normal(size=(m, count, len(own), 3))
    placed = np.ones(len(of.atoms), dtype=bool)
    placed[own] = False
    uniform = rng.random((count, 1))
    turn = Turn(np.array([0, len(own)]), own, table.frames[:1, 0])
    chosen, log_g = choose(x, np.ones((m, count, 1), bool), placed, uniform, turn, surround_of(of), rules)
    clashes = [clash_counts(replace(rules, radii=rules.soft), candidate) for candidate in x]
    others = clash_counts(replace(rules, radii=np.where(placed, rules.soft, 0.0)), x[0])
    assert np.ptp(clashes) > 0
    g = np.exp(-COST_PER_CLASH * (np.array(clashes) - others))
    g /= g.max(0)
    expected = (np.cumsum(g, 0) <= uniform[:, 0] * g.sum(0)).sum(0)
    np.testing.assert_array_equal(chosen[:, 0], expected)
    np.testing.assert_allclose(log_g, np.log(g[expected, np.arange(count)] / g.mean(0)), atol=1e-9)


def test_candidates_of_frames_lessen_clashes_and_keep_the_account() -> None:
    of, flow = system("chignolin", BACKBONE), fitted("chignolin", BACKBONE)
    beads = beads_of("chignolin", BACKBONE, 60, 3)
    counts = []
    for rounds in (1, 6):
        draws = Sampler(flow, of, 1, rounds).draw(beads, torch.Generator().manual_seed(2))
        counts.append(clash_counts(contact_rules(of.atoms), draws.positions.numpy()).sum())
        assert (draws.log_choice <= np.log(rounds) + 1e-9).all()
    assert (draws.log_choice != 0).any()
    assert counts[1] < 0.8 * counts[0]


def test_sweeps_lessen_clashes_and_move_only_what_nobody_sees() -> None:
    of, flow = system("chignolin", CA), fitted("chignolin", CA)
    beads = beads_of("chignolin", CA, 60, 3)
    plain, swept = (Sampler(flow, of, 4, 1, sweeps).draw(beads, torch.Generator().manual_seed(2)) for sweeps in (0, 4))
    free = Sampler(flow, of, 4, 1, 1)._unseen()
    moving = np.concatenate([t.atoms[own].ravel() for t, own in zip(of.blocks.kinds, free, strict=True)])
    rest = np.setdiff1d(np.arange(len(of.atoms)), moving)
    assert torch.equal(plain.positions[:, rest], swept.positions[:, rest])
    assert not torch.equal(plain.positions[:, moving], swept.positions[:, moving])
    before, after = (clash_counts(contact_rules(of.atoms), d.positions.numpy()).sum() for d in (plain, swept))
    assert after < before
    assert int(of.placement.chirality_errors(swept.positions).sum()) == 0
    assert swept.log_choice.isnan().all()
    reaches = torch.isfinite(swept.log_q)
    again = flow.log_prob(swept.positions[reaches], flow.view(of))
    torch.testing.assert_close(again, swept.log_q[reaches], rtol=0, atol=1e-7)


def test_a_block_drawn_anew_is_taken_by_all_its_clashes_but_those_with_itself() -> None:
    """One block that stands already, against clashes counted by hand; it is the first of its own candidates."""
    of, count, m = system("chignolin", BACKBONE), 50, 4
    rules, rng = contact_rules(of.atoms), np.random.default_rng(3)
    table = max(of.blocks.kinds, key=lambda kind: kind.atoms.shape[1])
    own = table.atoms[0]
    x = np.broadcast_to(frames(of, 1, 3).numpy(), (m, count, len(of.atoms), 3)).copy()
    x[1:, :, own] += 0.1 * rng.normal(size=(m - 1, count, 1, 3))
    turn = Turn(np.array([0, len(own)]), own, table.frames[:1, 0])
    arguments = (rng.random((count, 1)), turn, surround_of(of), rules)
    results = []
    for there in (True, False):
        placed = np.ones(len(of.atoms), dtype=bool)
        placed[own] = there
        results.append(choose(x, np.ones((m, count, 1), bool), placed, *arguments))
    assert len(np.unique(results[0][0])) > 1
    np.testing.assert_array_equal(results[0][0], results[1][0])
    np.testing.assert_array_equal(results[0][1], results[1][1])


def test_rows_that_say_the_same_get_one_support() -> None:
    """A peptide hydrogen that the reference shows bent is a planar one like its seven sisters."""
    plain = shipped("chignolin")
    bent = plain.positions.copy()
    atom = next(k for k, n in enumerate(plain.names) if n == "H" and plain.residue_names[k] == "GLU")
    own, before = bent[atom - 1], next(k for k in range(atom, 0, -1) if plain.names[k] == "C")
    normal = np.cross(bent[atom] - own, bent[before] - own)
    bent[atom] += 0.08 * normal / np.linalg.norm(normal)
    of = make_system(with_charges(plain), BACKBONE, bent)
    row = next(k for k, r in enumerate(of.placement.plan.rows) if r.atom == atom)
    assert of.placement.coordinates[2 * of.placement.n_rows + row].support == "window"
    assert {table.kind for table in of.blocks.kinds} == {t.kind for t in system("chignolin", BACKBONE).blocks.kinds}
