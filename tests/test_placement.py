"""Placement on beads: exact inverse, exact volume element, beads hit, closure, handedness and labels by support."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from placement_systems import Atoms, cystine, draws, frames, log_determinant, merged, moved, placements, shipped, water

from ccg_gmx.errors import TopologyError
from ccg_gmx.molecule import nerf
from ccg_gmx.molecule.placement.order import Step

torch.set_num_threads(1)
each_system = pytest.mark.parametrize("name", placements())


# --- the plan --------------------------------------------------------------------------------------------------------


@each_system
def test_every_atom_is_placed_once_after_its_references(name):
    plan = placements()[name].plan
    for rows, known in ((plan.rows[: plan.n_inner], plan.roots.tolist()), (plan.rows[plan.n_inner :], None)):
        if known is None:
            known = [atom for atoms in plan.mapping.atoms for atom in atoms]
        level = dict.fromkeys(known, 0)
        for row in rows:
            references = (row.parent, row.angle_ref, row.torsion_ref)
            assert row.atom not in level
            assert len({row.atom, *references}) == 4
            assert row.level == 1 + max(level[atom] for atom in references)
            if row.role == "bridge":
                assert plan.system.bonded(row.atom, row.angle_ref)
            level[row.atom] = row.level
    assert sorted([*plan.roots, *(row.atom for row in plan.rows)]) == list(range(len(plan.system)))


@each_system
def test_counts_and_coordinates(name):
    placement = placements()[name]
    assert placement.n_y == 3 * (placement.n_atoms - placement.n_beads) == len(placement.coordinates)
    n = placement.n_rows
    for k, row in enumerate(placement.plan.rows):
        bond, second, torsion = (placement.coordinates[k + part * n] for part in range(3))
        assert (bond.kind, torsion.kind) == ("bond", "torsion")
        assert second.kind == ("bond" if row.role == "bridge" else "angle")
    assert sum(level.size for level in placement.levels) == n


def test_no_bond_is_left_open_on_atom_beads_of_proteins():
    for name in ("chignolin, backbone", "chignolin, C-alpha", "cystine, backbone", "cystine, C-alpha and ends"):
        assert placements()[name].plan.open_bonds == ()


def test_the_peptide_bond_between_c_alpha_beads_is_a_bridge():
    plan = placements()["chignolin, C-alpha"].plan
    keys = set(plan.keys)
    assert "ASP C primary CA +1:CA -1:CA -1:CA circle" in keys
    assert "ASP N bridge CA -1:C -1:CA -1:CA window+0" in keys
    assert "TYR CB offset CA C N N window+90" in keys
    assert "TYR O offset C CA +1:N +1:N window+180" in keys


def test_equal_residues_have_equal_keys_and_levels():
    """Both glycines inside chains of different length, and every residue of two equal molecules."""
    pair = merged(shipped("chignolin"), moved(shipped("chignolin"), [3.0, 1.0, 2.0]))
    double = pair.at(pair.find("CA")).plan
    half = len(double.system) // 2
    first = sorted((row.atom, row.key, row.level) for row in double.rows if row.atom < half)
    second = sorted((row.atom - half, row.key, row.level) for row in double.rows if row.atom >= half)
    assert first == second
    assert set(double.keys) == set(placements()["chignolin, C-alpha"].plan.keys)


def test_the_order_of_atoms_in_the_file_does_not_matter():
    system = shipped("chignolin")
    order = np.random.default_rng(0).permutation(len(system))
    order = order[np.argsort(system.residue_ids[order], kind="stable")]
    place = np.argsort(order)
    shuffled = Atoms(
        tuple(system.names[k] for k in order),
        tuple(system.residue_names[k] for k in order),
        system.residue_ids[order],
        system.masses[order],
        place[system.bonds],
        system.positions[order],
    )
    plan = shuffled.at(shuffled.find("CA")).plan
    assert sorted(row.key for row in plan.rows) == sorted(
        row.key for row in placements()["chignolin, C-alpha"].plan.rows
    )


def chain(length: int) -> Atoms:
    """ACE-ALA_n-NME put together from copies of one alanine."""
    unit = shipped("alanine_dipeptide")
    ala = unit.residue(2)
    step = unit.positions[unit.find("N")[1]] - unit.positions[unit.find("N")[0]]
    names = tuple(unit.names[a] for a in ala)
    inner = [(ala.index(i), ala.index(j)) for i, j in unit.bonds.tolist() if i in ala and j in ala]
    n, c, size = names.index("N"), names.index("C"), len(ala)
    bonds = [(i + k * size, j + k * size) for k in range(length) for i, j in inner]
    bonds += [(c + k * size, n + (k + 1) * size) for k in range(length - 1)]
    wobble = np.random.default_rng(1).normal(size=(length, 1, 3)) * 0.03  # else all C-alpha lie on one line
    positions = unit.positions[ala] + np.arange(length)[:, None, None] * step + wobble
    return Atoms(
        names * length,
        ("ALA",) * (size * length),
        np.repeat(np.arange(length), size),
        np.tile(unit.masses[ala], length),
        np.array(bonds),
        positions.reshape(-1, 3),
    )


def test_levels_and_keys_do_not_grow_with_the_length_of_a_chain():
    short, long = (chain(n) for n in (8, 60))
    one, other = (c.at(c.find("CA")) for c in (short, long))
    assert len(one.levels) == len(other.levels) <= 6
    references = [{row.key.rsplit(" ", 1)[0] for row in p.plan.rows} for p in (one, other)]  # shapes are made up
    assert references[0] == references[1]


# --- the bijection ---------------------------------------------------------------------------------------------------


@each_system
def test_round_trip_from_positions(name):
    placement = placements()[name]
    x = frames(placement, 20, 1)
    y, log_volume = placement.split(x)
    beads = placement.bead_positions(x)
    back, again = placement.join(beads, y)
    assert (back - x).abs().max() < 1e-12
    assert (log_volume - again).abs().max() < 1e-10
    assert placement.in_support(placement.split(placement.relabel(x))[0]).all()


@each_system
def test_round_trip_from_draws(name):
    placement = placements()[name]
    beads, y = draws(placement, 300, 2)
    x, log_volume = placement.join(beads, y)
    reached = torch.isfinite(log_volume)
    assert torch.isfinite(x).all()
    assert reached.any()
    again, volume = placement.split(x[reached])
    n = placement.n_rows
    assert (again[:, : 2 * n] - y[reached, : 2 * n]).abs().max() < 1e-8
    assert nerf.wrap(again[:, 2 * n :] - y[reached, 2 * n :], 0.0).abs().max() < 1e-8
    assert (volume - log_volume[reached]).abs().max() < 1e-8
    assert placement.in_support(y).all()


@each_system
def test_beads_are_hit(name):
    placement = placements()[name]
    beads, y = draws(placement, 20, 3)
    x, _ = placement.join(beads, y)
    exact = placement.plan.mapping.kind == "atom"
    if exact:
        assert torch.equal(x[:, placement.plan.mapping.bead_atoms], beads)
    assert (placement.bead_positions(x) - beads).abs().max() < (1e-300 if exact else 1e-13)
    mapped = placement.plan.mapping.map_positions(x.numpy())
    assert np.abs(mapped - beads.numpy()).max() < 1e-12


@each_system
def test_frames_are_independent_of_each_other(name):
    placement = placements()[name]
    beads, y = draws(placement, 5, 4)
    whole = placement.join(beads, y)[0]
    alone = torch.cat([placement.join(beads[k : k + 1], y[k : k + 1])[0] for k in range(5)])
    assert (whole - alone).abs().max() < 1e-12


def test_levels_by_hand_are_join():
    placement = placements()["chignolin, C-alpha"]
    x = frames(placement, 3, 5)
    y, _ = placement.split(x)
    values = y.T.contiguous().reshape(3, placement.n_rows, 3)
    points = placement.seed(placement.bead_positions(x))
    total = torch.zeros(3, dtype=x.dtype)
    for k, level in enumerate(placement.levels):
        placed = points.shape[1]
        for row in placement.plan.rows[level.rows]:  # every reference is there before it is needed
            assert max(placement.point_of_atom[[row.parent, row.angle_ref, row.torsion_ref]]) < placed
        points, term = placement.grow(points, k, values[:, level.rows])
        total = total + term
    assert torch.equal(placement.positions(points), placement.join(placement.bead_positions(x), y)[0])
    assert torch.equal(total, placement.join(placement.bead_positions(x), y)[1])


def test_single_precision_and_gradients():
    placement = placements()["butane, three beads"]
    assert any(row.role == "bridge" for row in placement.plan.rows)
    x = frames(placement, 2, 6, 0.002)
    y, _ = placement.split(x)
    beads = placement.bead_positions(x)
    single, log_volume = placement.join(beads.float(), y.float())
    assert single.dtype == log_volume.dtype == torch.float32
    assert (single.double() - x).abs().max() < 1e-4
    inputs = (beads[:1].requires_grad_(), y[:1].detach().requires_grad_())
    assert torch.autograd.gradcheck(placement.join, inputs, eps=1e-7, atol=1e-5)
    assert torch.autograd.gradcheck(placement.split, (x[:1].requires_grad_(),), eps=1e-7, atol=1e-4)


# --- the volume element ----------------------------------------------------------------------------------------------


@each_system
def test_log_jacobian_is_the_autograd_determinant(name):
    placement = placements()[name]
    for x in (frames(placement, 1, 7), frames(placement, 1, 8, 0.01)):
        y, log_volume = placement.split(x)
        exact = log_determinant(placement, placement.bead_positions(x)[0], y[0])
        assert log_volume.item() == pytest.approx(exact, abs=1e-8)


@pytest.mark.parametrize("name", ["alanine", "cystine, C-alpha and ends", "several molecules"])
def test_log_jacobian_is_the_determinant_of_the_rest_at_given_beads(name):
    placement = placements()[name]
    x = frames(placement, 1, 9)
    y, log_volume = placement.split(x)
    beads = placement.bead_positions(x)
    rest = torch.tensor([row.atom for row in placement.plan.rows])
    jacobian = torch.autograd.functional.jacobian(lambda v: placement.join(beads, v[None])[0][0, rest].flatten(), y[0])
    assert log_volume.item() == pytest.approx(torch.linalg.slogdet(jacobian).logabsdet.item(), abs=1e-9)


def test_completion_of_centres_has_determinant_one():
    """ln|J| of centre beads is the sum over rows alone, whatever the weights: b^2 sin(angle), or r1 r2 / d."""
    placement = placements()["chignolin, residue centres of mass"]
    x = frames(placement, 2, 10)
    y, log_volume = placement.split(x)
    bond, second, _ = y.reshape(2, 3, -1).unbind(1)
    total = torch.zeros(2, dtype=y.dtype)
    for k, row in enumerate(placement.plan.rows):
        if row.role == "bridge":
            span = (x[:, row.parent] - x[:, row.angle_ref]).norm(dim=1)
            total += torch.log(bond[:, k] * second[:, k] / span)
        else:
            total += torch.log(bond[:, k] ** 2 * torch.sin(second[:, k]))
    assert (total - log_volume).abs().max() < 1e-9
    assert placement.plan.n_inner == placement.n_rows


# --- any graph -------------------------------------------------------------------------------------------------------


@st.composite
def systems(draw: st.DrawFn) -> tuple[Atoms, list[int]]:
    """Random trees with extra bonds (rings of any size), a few molecules, on a jittered lattice; random beads."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    sizes = draw(st.lists(st.integers(1, 14), min_size=1, max_size=4))
    sizes += [4] if sum(sizes) < 8 else []
    bonds, start = [], 0
    for size in sizes:
        bonds += [(start + int(rng.integers(max(0, k - 4), k)), start + k) for k in range(1, size)]
        for _ in range(draw(st.integers(0, 3)) if size > 4 else 0):
            bonds.append(tuple(start + rng.choice(size, 2, replace=False)))
        start += size
    cells = rng.permutation(64)[:start] if start <= 64 else rng.permutation(start)
    lattice = np.stack(np.unravel_index(cells, (4, 4, 4)), axis=1)
    positions = 0.3 * lattice + rng.uniform(-0.1, 0.1, size=(start, 3))
    masses = rng.choice([1.008, 12.011, 14.007], size=start)
    residues = np.arange(start) // 5
    system = Atoms(
        tuple(f"A{k % 5}" for k in range(start)),
        ("RES",) * start,
        residues,
        masses,
        np.array(bonds, dtype=int).reshape(-1, 2),
        positions,
    )
    count = draw(st.integers(4, max(4, start // 2)))
    return system, sorted(rng.choice(start, count, replace=False).tolist())


@settings(max_examples=50, deadline=None)
@given(case=systems())
def test_any_graph_comes_back(case):
    system, beads = case
    placement = system.at(beads)
    x = torch.as_tensor(system.positions)[None]
    y, log_volume = placement.split(x)
    back, again = placement.join(placement.bead_positions(x), y)
    assert (back - x).abs().max() < 1e-7  # atoms near a line amplify rounding
    assert again.item() == pytest.approx(log_volume.item(), abs=1e-6)
    exact = log_determinant(placement, placement.bead_positions(x)[0], y[0])
    assert log_volume.item() == pytest.approx(exact, abs=1e-5)


@settings(max_examples=30, deadline=None)
@given(case=systems(), seed=st.integers(0, 2**32 - 1), kind=st.sampled_from(["com", "cog"]))
def test_any_groups_come_back(case, seed, kind):
    system, _ = case
    order = np.random.default_rng(seed).permutation(len(system)).tolist()
    groups = [order[k::5] for k in range(4)]  # a fifth of the atoms is in no group
    placement = system.on(system.groups(groups, kind))
    x = torch.as_tensor(system.positions)[None]
    y, log_volume = placement.split(x)
    beads = placement.bead_positions(x)
    back, _ = placement.join(beads, y)
    assert (back - x).abs().max() < 1e-7
    assert (placement.bead_positions(back) - beads).abs().max() < 1e-7
    assert log_volume.item() == pytest.approx(log_determinant(placement, beads[0], y[0]), abs=1e-5)


def test_straight_groups_are_placed_from_further_away():
    """A nitrile: C and N on one line with the carbon that carries them."""
    positions = np.array([[0, 0, 0], [0.15, 0, 0], [0.2, 0.14, 0], [0.35, 0.14, 0.02], [0.4, 0.27, 0.05]])
    nitrogen = positions[4] + 0.8 * (positions[4] - positions[3])
    bonds = np.array([(0, 1), (1, 2), (2, 3), (3, 4), (4, 5)])
    masses = np.array([12.011] * 5 + [14.007])
    system = Atoms(tuple("ABCDEN"), ("NIT",) * 6, np.ones(6), masses, bonds, np.vstack((positions, nitrogen)))
    placement = system.at([0, 1, 2, 3])
    x = frames(placement, 10, 3, 1e-4)
    y, log_volume = placement.split(x)
    assert (placement.join(placement.bead_positions(x), y)[0] - x).abs().max() < 1e-12
    assert torch.isfinite(log_volume).all()


# --- refusals --------------------------------------------------------------------------------------------------------


def test_two_beads_are_refused():
    with pytest.raises(TopologyError, match=r"2 beads.*at least three"):
        shipped("n_butane").at([0, 3])


def test_beads_on_a_line_are_refused():
    line = Atoms(("A",) * 4, ("X",) * 4, np.ones(4), np.ones(4), np.array([[0, 1], [1, 2], [2, 3]]), np.eye(4, 3) * 0.0)
    positions = np.array([[0.0, 0, 0], [0.1, 0, 0], [0.2, 0, 0], [0.3, 0.0, 0]])
    with pytest.raises(TopologyError, match="no three placed atoms"):
        Atoms(*(list(vars(line).values())[:-1]), positions).at([0, 1, 2])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"residue_names": ("ALA",)}, "1 residue names"),
        ({"positions": np.zeros((3, 3))}, r"reference structure of shape \(3, 3\)"),
        ({"positions": np.full((22, 3), np.nan)}, "finite"),
        ({"bonds": np.array([[0, 22]])}, "a bond between atoms 1 .. 23"),
    ],
)
def test_inputs_that_do_not_belong_together_are_refused(change, message):
    system = Atoms(**(vars(shipped("alanine_dipeptide")) | change))
    with pytest.raises(TopologyError, match=message) as error:
        system.at([4, 6, 8])
    assert error.value.expected
    assert error.value.remedy


def test_mappings_of_other_systems_are_refused():
    mapping = shipped("alanine_dipeptide").groups([[0], [4], [8]], "com")
    with pytest.raises(TopologyError, match="beads for 22 atoms in a system of 14"):
        shipped("n_butane").on(mapping)


def test_shapes_are_checked():
    placement = placements()["alanine"]
    with pytest.raises(ValueError, match="y of shape"):
        placement.join(torch.zeros(1, 5, 3), torch.zeros(1, 3))
    with pytest.raises(ValueError, match="positions of shape"):
        placement.split(torch.zeros(1, 21, 3))
    with pytest.raises(ValueError, match="beads of shape"):
        placement.join(torch.zeros(1, 4, 3), torch.zeros(1, placement.n_y))


def test_molecules_without_beads_stand_on_the_nearest_beads():
    system = merged(shipped("n_butane"), water([2.9, 3.1, 3.4]))
    rows = {row.atom: row for row in system.at([0, 1, 2, 3]).plan.rows}
    assert isinstance(rows[14], Step)
    assert {rows[14].parent, rows[14].angle_ref, rows[14].torsion_ref} <= {0, 1, 2, 3}
    assert rows[15].parent == rows[16].parent == 14
    assert "*:" not in rows[15].key.split()[3]
    assert len(cystine()) == 44
