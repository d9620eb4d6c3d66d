"""Internal coordinates: exact inverse, exact volume element, exact beads, exact symmetries."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from MDAnalysis.lib.distances import calc_dihedrals
from molecules import ALANINE_BEADS, ALANINE_TORSIONS, Molecule, alanine_dipeptide, butane, cyclohexane
from torch import Tensor
from tripeptide import BEADS as TRIPEPTIDE_BEADS
from tripeptide import OMEGA, TORSIONS, alanine_tripeptide

from ccg_gmx.errors import TopologyError
from ccg_gmx.molecule import nerf
from ccg_gmx.molecule.zmatrix import InternalCoordinates

torch.set_num_threads(1)
THIRD = 2 * math.pi / 3


def alanine() -> InternalCoordinates:
    return InternalCoordinates(alanine_dipeptide().tree(ALANINE_BEADS), ALANINE_TORSIONS)


SYSTEMS = {
    "alanine": alanine(),
    "butane": InternalCoordinates(butane().tree([0, 1, 2, 3]), [(0, 1, 2, 3)]),
    "ring": InternalCoordinates(cyclohexane().tree([2, 3, 4, 5]), [(2, 3, 4, 5)]),
    "one torsion in b": InternalCoordinates(alanine_dipeptide().tree(ALANINE_BEADS), {"psi": (16, 14, 8, 6)}),
    "six beads": InternalCoordinates(alanine_dipeptide().tree([0, *ALANINE_BEADS]), ALANINE_TORSIONS),
    "tripeptide": InternalCoordinates(alanine_tripeptide().tree(TRIPEPTIDE_BEADS), TORSIONS),
    "psi1 and psi2 of three": InternalCoordinates(
        alanine_tripeptide().tree(TRIPEPTIDE_BEADS), {"psi2": TORSIONS["psi2"], "psi1": TORSIONS["psi1"]}
    ),
    "beads only": InternalCoordinates(
        Molecule(["C"] * 4, butane().positions[:4], butane().bonds[:3]).tree([0, 1, 2, 3]), [(0, 1, 2, 3)]
    ),
}
each_system = pytest.mark.parametrize("name", SYSTEMS)


def draw(coordinates: InternalCoordinates, n: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Random (s, b, y) inside the supports: bonds 0.1 .. 0.2 nm, angles 60 .. 150 degrees, any torsion allowed."""
    generator = torch.Generator().manual_seed(seed)

    def columns(parts):
        u = torch.rand(n, len(parts), generator=generator, dtype=torch.float64)
        low = {"bond": 0.1, "angle": math.radians(60)}
        high = {"bond": 0.2, "angle": math.radians(150)}
        ends = [(low.get(c.kind, c.centre - c.width / 2), high.get(c.kind, c.centre + c.width / 2)) for c in parts]
        ends = torch.tensor(ends, dtype=torch.float64).reshape(-1, 2)
        return ends[:, 0] + u * (ends[:, 1] - ends[:, 0])

    s = (2 * torch.rand(n, coordinates.n_s, generator=generator, dtype=torch.float64) - 1) * math.pi
    return s, columns(coordinates.b), columns(coordinates.y)


def random_rigid_motion(r: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    q = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=r.dtype))[0]
    return r @ (q * torch.linalg.det(q)) + torch.randn(3, generator=generator, dtype=r.dtype)


def reference(coordinates: InternalCoordinates) -> Tensor:
    return torch.as_tensor(coordinates.tree.reference)[None]


def distances(r: Tensor) -> Tensor:
    """All distances ``[B, N, N]`` from differences; above 25 points cdist's own way loses half the digits."""
    return torch.cdist(r, r, compute_mode="donot_use_mm_for_euclid_dist")


def circular(a: Tensor, b: Tensor) -> Tensor:
    return nerf.wrap(a - b, 0.0).abs()


# --- counts and meaning ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("alanine", (2, 7, 51)),
        ("butane", (1, 5, 30)),
        ("one torsion in b", (1, 8, 51)),
        ("beads only", (1, 5, 0)),
        ("tripeptide", (4, 14, 72)),
        ("psi1 and psi2 of three", (2, 16, 72)),
    ],
)
def test_counts(name, counts):
    coordinates = SYSTEMS[name]
    assert (coordinates.n_s, coordinates.n_b, coordinates.n_y) == counts
    assert sum(counts) == 3 * coordinates.n_atoms - 6
    assert (len(coordinates.b), len(coordinates.y)) == counts[1:]


def test_names_and_kinds():
    coordinates = alanine()
    assert coordinates.s_names == ("phi", "psi")
    assert [c.name for c in coordinates.b][:2] == ["bond C5-N7", "bond N7-CA9"]
    assert [c.kind for c in coordinates.b] == ["bond"] * 4 + ["angle"] * 3
    assert [c.kind for c in coordinates.y] == ["bond"] * 17 + ["angle"] * 17 + ["torsion"] * 17
    supports = [c.support for c in coordinates.y if c.kind == "torsion"]
    assert (supports.count("rotor"), supports.count("window"), supports.count("circle")) == (3, 14, 0)
    assert [c.support for c in SYSTEMS["one torsion in b"].b][-1] == "circle"
    assert [c.support for c in SYSTEMS["six beads"].b][-1] == "window"  # omega keeps its trans state


def test_the_inner_peptide_bond_of_a_tripeptide_is_a_bead_coordinate_with_a_window():
    """Four coarse torsions leave omega between psi1 and phi2 in b: the last entry, trans as the outer omegas are."""
    coordinates, four = SYSTEMS["tripeptide"], "-".join(alanine_tripeptide().names[a] + str(a + 1) for a in OMEGA)
    assert coordinates.s_names == ("phi1", "psi1", "phi2", "psi2")
    assert [c.kind for c in coordinates.b] == ["bond"] * 7 + ["angle"] * 6 + ["torsion"]
    omega = coordinates.b[-1]
    assert (omega.name, omega.support) == (f"torsion {four}", "window")
    assert (omega.centre, omega.width) == (math.pi, math.pi)
    assert (
        len([c for c in coordinates.y if c.support == "window" and c.name.startswith("torsion")]) == 2
    )  # outer omegas
    assert sum("trans" in sentence for sentence in coordinates.describe_supports()) == 3
    r = reference(coordinates)
    _, b, _ = coordinates.split(r)
    expected = nerf.dihedral(*(r.permute(2, 1, 0)[:, [a]] for a in OMEGA))[0]
    assert circular(b[:, -1], expected).max() < 1e-12
    cis = b.clone()
    cis[:, -1] = 0.1
    assert coordinates.in_support_beads(b).all()
    assert not coordinates.in_support_beads(cis).any()


def test_torsions_left_in_b_stand_in_chain_order_whatever_the_order_of_s():
    coordinates = SYSTEMS["psi1 and psi2 of three"]
    assert coordinates.s_names == ("psi2", "psi1")
    left = [c for c in coordinates.b if c.kind == "torsion"]
    assert [c.name.split()[1].split("-")[0] for c in left] == ["C5", "CA9", "C15"]  # phi1, omega, phi2
    assert [c.support for c in left] == ["circle", "window", "circle"]
    x = coordinates.beads(*draw(coordinates, 9, 16)[:2]).permute(2, 1, 0)
    s, b = coordinates.split_beads(x.permute(2, 1, 0))
    torsions = nerf.dihedral(x[:, :-3], x[:, 1:-2], x[:, 2:-1], x[:, 3:])
    assert circular(s, torsions[[4, 1]].T).max() < 1e-12
    assert circular(b[:, -3:], torsions[[0, 2, 3]].T).max() < 1e-12


def test_both_residues_of_a_tripeptide_keep_their_handedness():
    coordinates = SYSTEMS["tripeptide"]
    r = reference(coordinates)
    offsets = [c.centre for c in coordinates.y if c.name.startswith("offset of CB")]
    alike = [c.centre for c in alanine().y if c.name.startswith("offset of CB")]
    assert offsets == alike * 2  # L, as the dipeptide
    assert coordinates.chirality_errors(r * torch.tensor([1.0, 1.0, -1.0], dtype=r.dtype)) == 2


def test_values_agree_with_an_independent_implementation():
    frames = random_rigid_motion(SYSTEMS["alanine"].join(*draw(alanine(), 50, 0)), 1)
    s, b, y = alanine().split(frames)
    r = frames.numpy()
    for column, atoms in enumerate(ALANINE_TORSIONS.values()):
        expected = calc_dihedrals(*(np.ascontiguousarray(r[:, a], dtype=np.float32) for a in atoms))
        assert (
            circular(s[:, column], torch.as_tensor(expected, dtype=torch.float64)).max() < 1e-5
        )  # its input is float32
    assert np.allclose(b[:, 0], np.linalg.norm(r[:, 4] - r[:, 6], axis=1), atol=1e-14)
    u, v = r[:, 4] - r[:, 6], r[:, 8] - r[:, 6]
    cosine = (u * v).sum(1) / np.linalg.norm(u, axis=1) / np.linalg.norm(v, axis=1)
    assert np.allclose(np.cos(b[:, 4].numpy()), cosine, atol=1e-14)
    # CB is written as its torsion minus phi
    k = [c.name for c in alanine().y].index("offset of CB11 from C15 about CA9-N7")
    x = frames.permute(2, 1, 0)
    difference = nerf.dihedral(x[:, 10], x[:, 8], x[:, 6], x[:, 4]) - s[:, 0]
    assert circular(y[:, k], difference).max() < 1e-12


# --- the bijection ---------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), name=st.sampled_from(sorted(SYSTEMS)))
def test_internal_round_trip(seed, name):
    coordinates = SYSTEMS[name]
    q = draw(coordinates, 4, seed)
    back = coordinates.split(random_rigid_motion(coordinates.join(*q), seed))
    for value, again in zip(q, back, strict=True):
        assert value.shape == again.shape
        assert (circular(value, again) < 1e-9).all()  # three atoms near a line amplify rounding


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), name=st.sampled_from(sorted(SYSTEMS)), noise=st.floats(0.0, 0.02))
def test_cartesian_round_trip(seed, name, noise):
    """Frames around the reference come back to 1e-12 nm, on their own beads and in any orientation."""
    coordinates = SYSTEMS[name]
    generator = torch.Generator().manual_seed(seed)
    r = reference(coordinates).repeat(4, 1, 1)
    r = random_rigid_motion(r + noise * torch.randn(r.shape, generator=generator, dtype=r.dtype), seed)
    s, b, y = coordinates.split(r)
    beads = r[:, list(coordinates.tree.beads)]
    placed = coordinates.place(beads, y)
    assert (placed - r).abs().max() < 1e-11
    assert torch.equal(placed[:, list(coordinates.tree.beads)], beads)
    joined = coordinates.join(s, b, y)
    assert (distances(joined) - distances(r)).abs().max() < 1e-10
    assert (coordinates._signed_volumes(joined).sign() == coordinates._signed_volumes(r).sign()).all()


@each_system
def test_round_trip_to_1e12_nm(name):
    coordinates = SYSTEMS[name]
    r = coordinates.join(*draw(coordinates, 500, 3))
    again = coordinates.join(*coordinates.split(r))
    assert (again - r).abs().max() < 1e-12


@each_system
def test_beads_depend_on_s_and_b_alone_and_sit_in_the_canonical_frame(name):
    coordinates = SYSTEMS[name]
    s, b, y = draw(coordinates, 20, 4)
    x = coordinates.beads(s, b)
    for other in (y, draw(coordinates, 20, 5)[2]):
        assert torch.equal(coordinates.join(s, b, other)[:, list(coordinates.tree.beads)], x)
    assert (x[:, 0] == 0).all()
    assert (x[:, 1, 1:] == 0).all()
    assert (x[:, 2, 2] == 0).all()
    assert (x[:, 2, 1] > 0).all()
    s_again, b_again = coordinates.split_beads(random_rigid_motion(x, 6))
    assert circular(s_again, s).max() < 1e-11
    assert (b_again - b).abs().max() < 1e-11


@each_system
def test_batch_rows_are_independent(name):
    coordinates = SYSTEMS[name]
    q = draw(coordinates, 7, 8)
    whole = coordinates.join(*q)
    alone = torch.cat([coordinates.join(*(value[k : k + 1] for value in q)) for k in range(7)])
    assert (whole - alone).abs().max() < 1e-15


def test_float32_and_gradients():
    coordinates = alanine()
    s, b, y = draw(coordinates, 3, 9)
    single = coordinates.join(s.float(), b.float(), y.float())
    assert single.dtype == torch.float32
    assert (single.double() - coordinates.join(s, b, y)).abs().max() < 1e-5
    assert all(value.dtype == torch.float32 for value in coordinates.split(single))
    q = tuple(value.requires_grad_() for value in (s, b, y))
    assert torch.autograd.gradcheck(coordinates.join, q)
    assert torch.autograd.gradcheck(coordinates.split, (reference(coordinates).requires_grad_(),))


# --- the volume element ----------------------------------------------------------------------------------------------


def cartesian_log_determinant(coordinates: InternalCoordinates, q: Tensor, beads_only: bool) -> Tensor:
    """ln |det| of the full 3N x 3N Jacobian of (translation, rotation, q) -> r at the identity, by autograd."""

    def positions(parameters: Tensor) -> Tensor:
        shift, turn, inner = parameters.split((3, 3, len(parameters) - 6))
        s, b, y = inner[None].split(
            (coordinates.n_s, coordinates.n_b, len(inner) - coordinates.n_s - coordinates.n_b), 1
        )
        r = (coordinates.beads(s, b) if beads_only else coordinates.join(s, b, y))[0]
        return (r + torch.linalg.cross(turn.expand_as(r), r) + shift).flatten()  # rotation to first order

    jacobian = torch.autograd.functional.jacobian(positions, torch.cat((torch.zeros(6, dtype=q.dtype), q)))
    return torch.linalg.slogdet(jacobian).logabsdet


@each_system
@pytest.mark.parametrize("beads_only", [False, True])
def test_log_jacobian_is_the_autograd_determinant(name, beads_only):
    coordinates = SYSTEMS[name]
    s, b, y = draw(coordinates, 5, 10)
    formula = coordinates.log_jacobian_beads(b) if beads_only else coordinates.log_jacobian(b, y)
    rows = torch.cat((s, b) if beads_only else (s, b, y), dim=1)
    exact = torch.stack([cartesian_log_determinant(coordinates, q, beads_only) for q in rows])
    assert (formula - exact).abs().max() < 1e-9


# --- supports and symmetries -----------------------------------------------------------------------------------------


@each_system
def test_draws_are_inside_and_neighbours_outside(name):
    coordinates = SYSTEMS[name]
    _, b, y = draw(coordinates, 50, 11)
    assert coordinates.in_support(y).all()
    assert coordinates.in_support_beads(b).all()
    for k, c in enumerate(coordinates.y):
        outside = y.clone()
        outside[:, k] = {"bond": -0.1, "angle": 3.2}.get(c.kind, c.centre + 0.51 * c.width)
        assert not coordinates.in_support(outside).any()


def test_rotor_relabelling_shifts_the_mean_by_a_third():
    coordinates = alanine()
    r = coordinates.join(*draw(coordinates, 200, 12))
    y = coordinates.split(r)[2]
    for rotor in coordinates.tree.rotors:
        k = next(
            k
            for k, c in enumerate(coordinates.y)
            if c.support == "rotor" and coordinates.tree.graph.label(rotor[0]) in c.name
        )
        # the arrangement is cyclic only while no gap between the three exceeds pi
        d2, d3 = y[:, k + 1], y[:, k + 2]
        keep = d2 - d3 > math.pi + 1e-6
        assert keep.any()
        permuted = r.clone()
        permuted[:, list(rotor)] = r[:, [rotor[1], rotor[2], rotor[0]]]
        shifted = coordinates.split(permuted)[2]
        assert circular(shifted[keep, k], y[keep, k] + THIRD).max() < 1e-12
        assert not coordinates.in_support(shifted).any()
        assert torch.equal(coordinates.relabel(permuted)[keep], r[keep])


def test_relabel_brings_frames_into_support_and_keeps_symmetric_functions():
    coordinates = alanine()
    generator = np.random.default_rng(13)
    r = np.repeat(coordinates.tree.reference[None], 64, axis=0) + 0.003 * generator.normal(size=(64, 22, 3))
    for rotor in coordinates.tree.rotors:
        for frame in r:
            frame[list(rotor)] = frame[np.roll(rotor, generator.integers(3))]
    relabelled = coordinates.relabel(r)
    assert isinstance(relabelled, np.ndarray)
    assert coordinates.in_support(coordinates.split(torch.as_tensor(relabelled))[2]).all()
    assert not np.array_equal(relabelled, r)
    assert np.array_equal(coordinates.relabel(relabelled), relabelled)
    masses = alanine_dipeptide().masses

    def energy(frames):
        d = np.linalg.norm(frames[:, :, None] - frames[:, None] + np.eye(22)[..., None], axis=-1)
        return np.sort((masses[:, None] * masses / d).reshape(len(frames), -1), axis=1)

    assert np.array_equal(energy(relabelled), energy(r))
    order = coordinates.relabel_index(torch.as_tensor(r)).numpy()
    assert (np.sort(order, axis=1) == np.arange(22)).all()
    assert np.array_equal(coordinates.relabel(torch.as_tensor(r)).numpy(), relabelled)


def test_mirror_image_is_outside_and_counted():
    coordinates = alanine()
    generator = torch.Generator().manual_seed(14)
    r = reference(coordinates) + 0.003 * torch.randn(30, 22, 3, generator=generator, dtype=torch.float64)
    mirrored = r * torch.tensor([1.0, 1.0, -1.0], dtype=r.dtype)
    assert (coordinates.chirality_errors(r) == 0).all()
    assert (coordinates.chirality_errors(mirrored) == 1).all()
    assert not coordinates.in_support(coordinates.split(mirrored)[2]).any()
    assert (coordinates.chirality_errors(mirrored.numpy()) == 1).all()
    y = coordinates.split(mirrored)[2]  # outside the supports the values are still true
    assert (coordinates.place(mirrored[:, ALANINE_BEADS], y) - mirrored).abs().max() < 1e-11
    assert (SYSTEMS["butane"].chirality_errors(reference(SYSTEMS["butane"])) == 0).all()


def test_supports_are_described():
    text = alanine().describe_supports()
    for words in ("trans", "handedness", "planar centre", "identical"):
        assert any(words in sentence for sentence in text)
    assert sum("identical" in sentence for sentence in text) == 3
    assert sum("trans" in sentence for sentence in text) == 2
    free = SYSTEMS["ring"].describe_supports()
    assert not any("trans" in sentence for sentence in free)


def test_pyramidal_nitrogen_is_free_to_invert():
    """Methylamine-like end: three neighbours, not flat, so no window."""
    positions = np.array(
        [[0, 0, 0], [0.15, 0, 0], [0.2, 0.14, 0], [0.35, 0.14, 0], [0.38, 0.19, 0.08], [0.38, 0.19, -0.08]]
    )
    molecule = Molecule(["C", "C", "C", "N", "H1", "H2"], positions, np.array([[0, 1], [1, 2], [2, 3], [3, 4], [3, 5]]))
    coordinates = InternalCoordinates(molecule.tree([0, 1, 2, 3]), [(0, 1, 2, 3)])
    assert [c.support for c in coordinates.y if c.kind == "torsion"] == ["circle", "circle"]


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("torsions", "message"),
    [
        ({"phi": (4, 6, 8, 10)}, "phi \\(atoms 5 7 9 11\\) is not a torsion of four consecutive beads.*C5-N7-CA9-C15"),
        ({"phi": (4, 6, 8)}, "not a torsion"),
        ([(4, 6, 8, 99)], "atoms 5 7 9 100"),
        ([(4, 6, 8, 14), (4, 6, 8, 14)], "1 different coarse torsions of 2"),
        ({"phi": (4, 6, 8, 14), "again": (14, 8, 6, 4)}, "1 different coarse torsions of 2"),
        ([], "0 different coarse torsions"),
    ],
)
def test_torsions_must_be_bead_torsions(torsions, message):
    with pytest.raises(TopologyError, match=message):
        InternalCoordinates(alanine_dipeptide().tree(ALANINE_BEADS), torsions)


def test_shapes_are_checked():
    coordinates = alanine()
    s, b, y = draw(coordinates, 2, 15)
    with pytest.raises(ValueError, match="y of shape"):
        coordinates.join(s, b, y[:, :-1])
    with pytest.raises(ValueError, match="positions of shape"):
        coordinates.split(torch.zeros(2, 21, 3))
