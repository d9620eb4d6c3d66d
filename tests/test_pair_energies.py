"""Energies, forces and virials of coarse models: brute force, finite differences, strains; pairs in any box."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ccg_gmx.errors import CcgError, CheckpointError, SettingsError
from ccg_gmx.molecule.coarse_topology import BondedType, CoarseMoleculeType, CoarseTopology
from ccg_gmx.potential.curves import Curve, TorsionMap
from ccg_gmx.potential.evaluate import energies_and_forces
from ccg_gmx.potential.model import CoarseModel
from ccg_gmx.potential.pair_list import PairFinder, boxes_of, face_distances
from ccg_gmx.records import BeadFrames

BOX = np.diag([2.4, 2.6, 2.8])
TRICLINIC = np.array([[2.6, 0.0, 0.0], [0.9, 2.5, 0.0], [-1.1, 1.0, 2.7]])


def chain(count: int = 6) -> CoarseTopology:
    """Chains of five beads with every kind of term, and single beads of another type."""
    bonded = (
        BondedType("b", "bond", ((0, 1), (1, 2), (2, 3), (3, 4))),
        BondedType("a", "angle", ((0, 1, 2), (1, 2, 3))),
        BondedType("d", "dihedral", ((0, 1, 2, 3),)),
        BondedType("m", "cmap", ((0, 1, 2, 3, 4),)),
    )
    pairs = tuple((i, j) for i, j in itertools.combinations(range(5), 2) if j - i < 4)
    names, types = tuple("ABCDE"), ("P", "Q", "P", "Q", "P")
    long = CoarseMoleculeType("CH", names, types, (10.0,) * 5, ("CH",) * 5, (1,) * 5, bonded, pairs)
    one = CoarseMoleculeType("W", ("W",), ("W",), (18.0,), ("W",), (1,))
    return CoarseTopology(((long, count), (one, 20)))


def model(cutoff: float = 1.1, seed: int = 1) -> CoarseModel:
    rng = np.random.default_rng(seed)

    def pair(hi: float) -> Curve:
        coefficients = np.concatenate([np.linspace(20.0, 0.0, 12) + rng.normal(size=12), np.zeros(3)])
        return Curve("pair", 0.2, hi, coefficients, None, 2e4)

    keys = [("P", "P"), ("P", "Q"), ("P", "W"), ("Q", "W"), ("W", "W")]
    return CoarseModel(
        300.0,
        {
            "b": Curve("bond", 0.2, 0.5, rng.normal(size=9) + 40 * np.linspace(-1, 1, 9) ** 2, None, 1e3),
            "a": Curve("angle", 0.8, 2.8, rng.normal(size=8), None, 50.0),
            "d": Curve("dihedral", -np.pi, np.pi, rng.normal(size=12)),
        },
        {"m": TorsionMap(rng.normal(size=(8, 8)))},
        {key: pair(cutoff - 0.1 * k) for k, key in enumerate(keys)},
    )


def frames(topology: CoarseTopology, box: np.ndarray | None, count: int = 2, seed: int = 3) -> BeadFrames:
    """Random chains, wrapped into the box bead by bead."""
    rng = np.random.default_rng(seed)
    cell = np.diag([2.5] * 3) if box is None else box
    positions = np.empty((count, topology.n_beads, 3))
    for t in range(count):
        molecule = topology.molecule_of
        for k in range(molecule.max() + 1):
            size = int(np.sum(molecule == k))
            steps = rng.normal(size=(size, 3))
            steps *= rng.uniform(0.22, 0.48, size=(size, 1)) / np.linalg.norm(steps, axis=1, keepdims=True)
            positions[t, molecule == k] = rng.uniform(size=3) @ cell + np.cumsum(steps, axis=0)
    if box is not None:
        s = positions @ np.linalg.inv(box)
        positions = (s - np.floor(s)) @ box
    return BeadFrames(positions, np.arange(float(count)), None if box is None else np.tile(box, (count, 1, 1)))


def nearest(vector: np.ndarray, box: np.ndarray | None) -> np.ndarray:
    """Nearest image by trying 125 of them."""
    if box is None:
        return vector
    shifts = np.array(list(itertools.product(range(-2, 3), repeat=3)))
    images = vector + shifts @ box
    return images[np.argmin(np.linalg.norm(images, axis=1))]


def brute_force(potential: CoarseModel, topology: CoarseTopology, x: np.ndarray, box: np.ndarray | None) -> float:
    excluded = {tuple(pair) for pair in topology.excluded_pairs}
    energy = 0.0
    for i, j in itertools.combinations(range(topology.n_beads), 2):
        curve = potential.pair(topology.bead_types[i], topology.bead_types[j])
        if curve is not None and (i, j) not in excluded:
            energy += float(curve.value_and_slope(np.linalg.norm(nearest(x[i] - x[j], box)))[0])
    for name in topology.bonded_names:
        for beads in topology.bonded_beads(name):
            energy += bonded_energy(potential, name, [nearest(x[b] - x[a], box) for a, b in itertools.pairwise(beads)])
    return energy


def bonded_energy(potential: CoarseModel, name: str, steps: list[np.ndarray]) -> float:
    if name == "b":
        x: float = np.linalg.norm(steps[0])
    elif name == "a":
        x = np.arccos(-steps[0] @ steps[1] / np.linalg.norm(steps[0]) / np.linalg.norm(steps[1]))
    elif name == "d":
        x = torsion(*steps)
    else:
        return float(potential.maps[name].value_and_gradient(torsion(*steps[:3]), torsion(*steps[1:]))[0])
    return float(potential.bonded[name].value_and_slope(x)[0])


def torsion(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> float:
    first, second = np.cross(a, b), np.cross(b, c)
    return float(np.arctan2(np.linalg.norm(b) * a @ second, first @ second))


@pytest.mark.parametrize("box", [None, BOX, TRICLINIC], ids=["free", "rectangular", "triclinic"])
def test_energy_is_that_of_brute_force(box: np.ndarray | None) -> None:
    topology, potential = chain(3), model(0.95)
    sample = frames(topology, box)
    found = energies_and_forces(potential, topology, sample)
    wanted = [brute_force(potential, topology, x, box) for x in sample.positions]
    np.testing.assert_allclose(found.total, wanted, rtol=1e-10)
    np.testing.assert_allclose(found.total, sum(found.terms.values()), rtol=1e-12)
    assert set(found.terms) == {"b", "a", "d", "m", *(f"pair {'-'.join(key)}" for key in potential.pairs)}


@pytest.mark.parametrize("box", [None, BOX, TRICLINIC], ids=["free", "rectangular", "triclinic"])
def test_forces_are_minus_the_gradient(box: np.ndarray | None) -> None:
    topology, potential = chain(), model(0.95)
    sample = frames(topology, box, count=1)
    forces = energies_and_forces(potential, topology, sample).forces[0]
    beads = np.random.default_rng(0).choice(topology.n_beads, 12, replace=False)
    moved = np.repeat(sample.positions, 72, axis=0)
    for row, (bead, axis, sign) in enumerate(itertools.product(beads, range(3), (-1, 1))):
        moved[row, bead, axis] += sign * 1e-6
    many = BeadFrames(moved, np.zeros(72), None if box is None else np.tile(box, (72, 1, 1)))
    energy = energies_and_forces(potential, topology, many).total.reshape(12, 3, 2)
    numerical = -(energy[..., 1] - energy[..., 0]) / 2e-6
    np.testing.assert_allclose(forces[beads], numerical, rtol=2e-5, atol=2e-4)
    np.testing.assert_allclose(forces.sum(axis=0), 0.0, atol=1e-8 * np.abs(forces).max())


@pytest.mark.parametrize("box", [BOX, TRICLINIC], ids=["rectangular", "triclinic"])
def test_virial_is_minus_the_derivative_by_strain(box: np.ndarray) -> None:
    topology, potential = chain(), model(0.95)
    sample = frames(topology, box, count=1)
    virial = energies_and_forces(potential, topology, sample).virial[0]
    for a, b in itertools.product(range(3), repeat=2):
        energies = []
        for sign in (-1, 1):
            strain = np.eye(3)
            strain[b, a] += sign * 1e-6  # rows are vectors: x' = x @ strain
            moved = BeadFrames(sample.positions @ strain, sample.time, (box @ strain)[None])
            energies.append(energies_and_forces(potential, topology, moved).total[0])
        scale = np.abs(virial).max()
        assert virial[a, b] == pytest.approx(-(energies[1] - energies[0]) / 2e-6, abs=1e-5 * scale)


@given(
    st.integers(0, 10**6),
    st.floats(0.3, 1.0),
    st.floats(-0.49, 0.49),
    st.floats(-0.49, 0.49),
    st.floats(-0.49, 0.49),
)
@settings(max_examples=25, deadline=None)
def test_cells_find_what_all_pairs_find(seed: int, cutoff: float, xy: float, xz: float, yz: float) -> None:
    rng = np.random.default_rng(seed)
    box = np.array([[3.1, 0, 0], [3.1 * xy, 3.3, 0], [3.1 * xz, 3.3 * yz, 3.6]])
    x = rng.normal(scale=5.0, size=(230, 3))  # far outside too
    if cutoff > 0.5 * face_distances(box).min():
        return
    excluded = rng.choice(230, size=(50, 2))
    excluded = np.sort(excluded[excluded[:, 0] != excluded[:, 1]], axis=1)
    finder = PairFinder(230, cutoff, excluded)
    (found,) = finder.over(BeadFrames(x[None], np.zeros(1), box[None]))
    s = (x[:, None] - x[None]) @ np.linalg.inv(box)
    distance = np.linalg.norm((s - np.rint(s)) @ box, axis=-1)
    forbidden = {tuple(pair) for pair in excluded}
    wanted = {(i, j) for i, j in np.argwhere(distance < cutoff) if i < j and (i, j) not in forbidden}
    assert {tuple(pair) for pair in found.index} == wanted
    np.testing.assert_allclose(found.distances, [distance[i, j] for i, j in found.index], rtol=1e-9)


def test_list_grows_with_the_pairs() -> None:
    x = np.random.default_rng(0).uniform(size=(300, 3)) * 0.5
    (found,) = PairFinder(300, 1.0, np.zeros((0, 2))).over(BeadFrames(x[None], np.zeros(1)))
    assert len(found.index) == 300 * 299 // 2


def test_model_file_round_trip(tmp_path) -> None:
    rng = np.random.default_rng(2)
    before = model()
    noisy = Curve("bond", 0.2, 0.5, rng.normal(size=9), np.diag(rng.uniform(size=9)), 1e3)
    before = CoarseModel(310.0, {**before.bonded, "b": noisy}, before.maps, before.pairs, {"seed": 3})
    before.save(tmp_path / "model.npz")
    after = CoarseModel.load(tmp_path / "model.npz")
    assert (after.temperature_K, after.info) == (310.0, {"seed": 3})
    assert list(after.pairs) == list(before.pairs)
    x = np.linspace(0.0, 1.5, 500)
    for old, new in zip([*before.pairs.values(), noisy], [*after.pairs.values(), after.bonded["b"]], strict=True):
        np.testing.assert_array_equal(np.stack(old.value_and_slope(x)), np.stack(new.value_and_slope(x)))
        np.testing.assert_array_equal(old.error(x), new.error(x))
    np.testing.assert_array_equal(before.maps["m"].coefficients, after.maps["m"].coefficients)
    assert [p.name for p in tmp_path.iterdir()] == ["model.npz"]


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04 cut"])
def test_damaged_model_file_is_one_line(tmp_path, content: bytes) -> None:
    (tmp_path / "m.npz").write_bytes(content)
    with pytest.raises(CheckpointError) as error:
        CoarseModel.load(tmp_path / "m.npz")
    assert "\n" not in str(error.value)


def test_foreign_npz_is_refused(tmp_path) -> None:
    np.savez(tmp_path / "m.npz", x=np.ones(3))
    with pytest.raises(CheckpointError):
        CoarseModel.load(tmp_path / "m.npz")


@pytest.mark.parametrize("kind", ["bond", "angle", "pair"])
def test_curve_is_steep_and_smooth_beyond_its_data(kind: str) -> None:
    coefficients = np.concatenate([np.random.default_rng(4).normal(size=8), np.zeros(3)])
    curve = Curve(kind, 0.4, 1.2, coefficients, None, 500.0)
    below = np.linspace(0.05, 0.4, 300)
    value, slope = curve.value_and_slope(below)
    assert np.all(np.diff(slope) / np.diff(below) >= 500.0 * (1 - 1e-9))
    np.testing.assert_allclose(np.gradient(value, below)[1:-1], slope[1:-1], atol=1e-6 * np.abs(slope).max() + 1e-6)
    ends = np.array([0.4 - 1e-9, 0.4 + 1e-9, 1.2 - 1e-9, 1.2 + 1e-9])
    values, slopes = curve.value_and_slope(ends)
    np.testing.assert_allclose(np.diff(values)[[0, 2]], 0.0, atol=1e-6)
    np.testing.assert_allclose(np.diff(slopes)[[0, 2]], 0.0, atol=1e-5)
    value, slope = curve.value_and_slope(np.linspace(1.2, 3.0, 50))
    if kind == "pair":
        assert not value.any()
        assert not slope.any()
    else:
        assert np.all(np.diff(slope) > 0)


def test_curve_error_is_that_of_its_coefficients() -> None:
    rng = np.random.default_rng(5)
    mean, half = rng.normal(size=9), rng.normal(size=(9, 9))
    curve = Curve("bond", 0.1, 0.3, mean, half @ half.T)
    x = np.array([0.05, 0.11, 0.2, 0.33])
    draws = (curve.design(x) @ (mean[:, None] + half @ rng.normal(size=(9, 40000)))).std(axis=1)
    np.testing.assert_allclose(curve.error(x), draws, rtol=0.02)  # 1 / sqrt(2 * 40000) is 0.0035
    assert np.isnan(Curve("bond", 0.1, 0.3, mean).error(x)).all()


BAD = {
    "range": lambda: energies_and_forces(model(1.5), chain(), frames(chain(), BOX)),
    "other beads": lambda: energies_and_forces(model(), chain(5), frames(chain(), BOX)),
    "no curve": lambda: energies_and_forces(CoarseModel(300.0), chain(), frames(chain(), BOX)),
    "unknown type": lambda: CoarseModel(300.0, {}, {}, {("X", "X"): model().pairs[("W", "W")]}).check(
        CoarseTopology((chain().molecules[1],))
    ),
    "unsorted pair": lambda: CoarseModel(300.0, {}, {}, {("Q", "P"): model().pairs[("P", "Q")]}),
    "jump at the cut-off": lambda: Curve("pair", 0.1, 1.0, np.ones(8)),
    "empty range": lambda: Curve("bond", 0.3, 0.3, np.ones(8)),
    "nan": lambda: Curve("bond", 0.1, 0.3, np.full(8, np.nan)),
    "cold": lambda: CoarseModel(0.0),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line(name: str) -> None:
    with pytest.raises(SettingsError) as error:
        BAD[name]()
    assert "\n" not in str(error.value)


def test_range_beyond_half_the_box_names_both() -> None:
    with pytest.raises(CcgError, match=r"1\.3 nm.*half the box is 1\.2 nm"):
        boxes_of(frames(chain(), BOX), 1.3)
