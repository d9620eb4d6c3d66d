"""Maps of forces against systems whose mean force is known in closed form; constraints respected, noise least."""

from pathlib import Path

import numpy as np
import pytest

from ccg_gmx.errors import TopologyError
from ccg_gmx.molecule.bead_file import validated
from ccg_gmx.molecule.force_mapping import basic_map, fit_force_maps, group_forces, optimal_map
from ccg_gmx.molecule.molecule_types import MoleculeType
from ccg_gmx.molecule.system_mapping import MoleculeMap, SystemMapping, map_system

KT = 2.494  # kJ/mol, 300 K
SIGMAS = 5.0  # every statistical bound below is five standard errors: one failure in about two million numbers


def molecule(
    masses: list[float], constraints: tuple[tuple[int, int], ...] = (), links: tuple[tuple[int, int], ...] = ()
) -> MoleculeType:
    n_atoms = len(masses)
    pairs = np.array(sorted({*links, *constraints}), dtype=np.int64).reshape(-1, 2)
    return MoleculeType(
        name="MOL",
        names=tuple(f"X{atom + 1}" for atom in range(n_atoms)),
        residue_names=("MOL",) * n_atoms,
        residue_ids=(1,) * n_atoms,
        residue_places=(1,) * n_atoms,
        masses=np.array(masses),
        links=pairs,
        constraints=np.array(constraints, dtype=np.int64).reshape(-1, 2),
    )


def system(kind: MoleculeType, *beads: list[int], count: int = 1, **bead: object) -> SystemMapping:
    entries = [{"name": f"B{n}", "type": "B", "atoms": atoms, **bead} for n, atoms in enumerate(beads)]
    file = validated({"molecules": {"MOL": {"beads": entries, "unmapped": "allow"}}}, Path("map.yaml"))
    return map_system(file, [(kind, count)])


def single(kind: MoleculeType, *beads: list[int], **bead: object) -> MoleculeMap:
    return system(kind, *beads, **bead).maps[0]


@pytest.fixture(scope="module")
def springs() -> dict[str, np.ndarray | SystemMapping]:
    """Five atoms in a harmonic potential r^T K r / 2 (each of x, y, z alike), 20,000 frames of four such molecules.

    Positions are Gaussian with covariance kT K^-1, so beads R = M r have covariance kT S with S = M K^-1 M^T, and the
    mean force is -S^-1 R.
    """
    generator = np.random.default_rng(2023)
    root = generator.normal(size=(5, 5))
    stiffness = 500.0 * (root @ root.T + np.eye(5))
    mapping = system(molecule([12.0, 1.0, 16.0, 14.0, 1.0]), [1, 2], [3, 4], count=4)
    draws = generator.normal(size=(20_000, 4, 5, 3))
    positions = np.einsum("ab,tmbx->tmax", np.linalg.cholesky(KT * np.linalg.inv(stiffness)), draws)
    forces = -np.einsum("ab,tmbx->tmax", stiffness, positions)
    weights = mapping.maps[0].weights
    slope = -np.linalg.inv(weights @ np.linalg.inv(stiffness) @ weights.T)
    return {
        "mapping": mapping,
        "stiffness": stiffness,
        "slope": slope,
        "positions": positions.reshape(20_000, 20, 3),
        "forces": forces.reshape(20_000, 20, 3),
    }


def regression(beads: np.ndarray, forces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Slope of bead forces against bead positions of one molecule, with standard errors."""
    x, y = (values.reshape(len(values), -1, 2, 3).transpose(0, 1, 3, 2).reshape(-1, 2) for values in (beads, forces))
    inverse = np.linalg.inv(x.T @ x)
    slope = (inverse @ x.T @ y).T
    variance = np.mean((y - x @ slope.T) ** 2, axis=0)
    return slope, np.sqrt(np.outer(variance, np.diag(inverse)))


def test_mean_force_is_minus_the_slope_of_the_free_energy(springs):
    mapping = springs["mapping"]
    beads = mapping.positions(springs["positions"], None)
    fitted = fit_force_maps(mapping, [springs["forces"][:2000]])["MOL"]
    assert fitted.kind == "optimal"
    known = optimal_map(mapping.maps[0], KT * springs["stiffness"], samples=10**9)
    spread = []
    for entry in (basic_map(mapping.maps[0]), fitted, known):
        forces = mapping.forces(springs["forces"], {"MOL": entry.coefficients})
        slope, error = regression(beads, forces)
        np.testing.assert_array_less(np.abs(slope - springs["slope"]), SIGMAS * error + 1e-6 * np.abs(springs["slope"]))
        spread.append(error)
    # the mean force is linear, so the best map has no noise at all; one fitted on 24,000 force components is within
    # about a hundredth of it
    assert (spread[1] < 0.05 * spread[0]).all()
    assert (spread[2] < 1e-3 * spread[0]).all()


def test_optimal_map_of_springs_is_known(springs):
    """Least noise: B = S^-1 M K^-1, whose forces are the mean force itself, noise zero."""
    mapping, stiffness = springs["mapping"], springs["stiffness"]
    best = optimal_map(mapping.maps[0], KT * stiffness, samples=10**9)
    weights = mapping.maps[0].weights
    expected = -springs["slope"] @ weights @ np.linalg.inv(stiffness)
    np.testing.assert_allclose(best.coefficients, expected, atol=1e-6)
    np.testing.assert_allclose(best.coefficients @ weights.T, np.eye(2), atol=1e-12)
    assert (best.noise_ratio < 1).all()


def test_same_mean_and_smaller_variance_on_frames_it_has_not_seen(springs):
    """At fixed beads: force minus mean force has mean zero within its error, and less variance by the optimal map.

    The spring between the two atoms is not harmonic, so even the best linear map keeps some noise.
    """
    generator = np.random.default_rng(7)
    kind = molecule([1.0, 1.0])
    mapping = system(kind, [1], at="atom")
    # r1 fixed at 0.3 on x; r2 in (r2 - r1)^4 along each axis plus a spring between: sampled by rejection on a grid
    grid = np.linspace(-1.5, 1.5, 20_001)
    at = 0.3
    energy = 40.0 * (grid - at) ** 2 + 60.0 * (grid - at) ** 4 + 30.0 * grid**2
    density = np.exp(-(energy - energy.min()) / KT)
    draws = generator.choice(grid, size=(40_000, 1, 3), p=density / density.sum())
    second = -(80.0 * (draws - at) + 240.0 * (draws - at) ** 3 + 60.0 * draws)
    first = 80.0 * (draws - at) + 240.0 * (draws - at) ** 3
    forces = np.concatenate([first, second], axis=1)
    # mean force at r1: -d/dr1 of the free energy = <force on r1>, by quadrature
    exact = np.sum(density / density.sum() * (80.0 * (grid - at) + 240.0 * (grid - at) ** 3))
    fitted = fit_force_maps(mapping, [forces[:5000]])["MOL"]
    results = {}
    for name, entry in (("basic", basic_map(mapping.maps[0])), ("optimal", fitted)):
        sample = mapping.forces(forces[5000:], {"MOL": entry.coefficients}).ravel()
        assert abs(sample.mean() - exact) < SIGMAS * sample.std() / np.sqrt(len(sample))
        results[name] = sample.var()
    assert basic_map(mapping.maps[0]).coefficients.tolist() == [[1.0, 0.0]]
    assert results["optimal"] < 0.5 * results["basic"]


def test_rigid_dimer_takes_the_force_on_both_atoms():
    """A bead on atom 1 of a rigid dimer, springs k1 and k2 to the origin on its atoms.

    At r1 = r the direction u of the dimer has weight exp(-k2 r d u.r^ / kT), so <u> = -L(a) r^ with a = k2 r d / kT and
    L Langevin's function, and the mean force is -(k1 + k2) r + k2 d L(a), which is the mean of the sum of both forces.
    """
    k1, k2, d, r = 800.0, 300.0, 0.15, 0.12
    generator = np.random.default_rng(11)
    a = k2 * r * d / KT
    cosine = -(1 + np.log(generator.uniform(np.exp(-2 * a), 1.0, 200_000)) / a)  # density ~ exp(-a cosine)
    angle = generator.uniform(-np.pi, np.pi, len(cosine))
    sine = np.sqrt(1 - cosine**2)
    u = np.stack([cosine, sine * np.cos(angle), sine * np.sin(angle)], axis=1)
    r1 = np.broadcast_to(np.array([r, 0.0, 0.0]), u.shape)
    forces = np.stack([-k1 * r1, -k2 * (r1 + d * u)], axis=1)
    exact = -(k1 + k2) * r + k2 * d * (1 / np.tanh(a) - 1 / a)

    rigid = system(molecule([1.0, 1.0], constraints=((0, 1),)), [1], at="atom")
    for entry in (basic_map(rigid.maps[0]), fit_force_maps(rigid, [forces])["MOL"]):
        assert entry.coefficients.tolist() == [[1.0, 1.0]]
        sample = rigid.forces(forces, {"MOL": entry.coefficients})[:, 0, 0]
        assert abs(sample.mean() - exact) < SIGMAS * sample.std() / np.sqrt(len(sample))
    loose = system(molecule([1.0, 1.0]), [1], at="atom")
    sample = loose.forces(forces, {"MOL": basic_map(loose.maps[0]).coefficients})[:, 0, 0]
    assert abs(sample.mean() - exact) > 10.0, "the force on atom 1 alone is not the mean force"


def test_rigid_water_at_its_centre_of_mass_takes_the_net_force():
    water = molecule([15.9994, 1.008, 1.008], constraints=((0, 1), (0, 2), (1, 2)))
    mapping = system(water, [1, 2, 3], count=5)
    forces = np.random.default_rng(0).normal(size=(40, 15, 3))
    for entry in (basic_map(mapping.maps[0]), fit_force_maps(mapping, [forces])["MOL"]):
        assert entry.coefficients.tolist() == [[1.0, 1.0, 1.0]]
        np.testing.assert_allclose(
            mapping.forces(forces, {"MOL": entry.coefficients}), forces.reshape(40, 5, 3, 3).sum(axis=2), atol=1e-12
        )


def test_virtual_sites_lend_no_force():
    """TIP4P: the force on its site has been spread over O and H by GROMACS already."""
    water = molecule([16.0, 1.0, 1.0, 0.0], constraints=((0, 1), (0, 2)), links=((0, 3),))
    mapped = single(water, [1, 2, 3, 4])
    assert basic_map(mapped).coefficients.tolist() == [[1.0, 1.0, 1.0, 0.0]]
    np.testing.assert_allclose(mapped.weights, [[16 / 18, 1 / 18, 1 / 18, 0.0]])


def test_constraints_inside_beads_and_between_them():
    inside = molecule([12.0, 1.0, 12.0, 1.0], constraints=((0, 1), (2, 3)))
    assert basic_map(single(inside, [1, 2], [3, 4])).coefficients.tolist() == [[1, 1, 0, 0], [0, 0, 1, 1]]
    across = molecule([12.0, 1.0, 12.0, 1.0], constraints=((0, 2),))
    crossing = single(across, [1, 2], [3, 4])
    entry = basic_map(crossing)
    np.testing.assert_allclose(entry.coefficients @ crossing.weights.T, np.eye(2), atol=1e-10)
    np.testing.assert_allclose(entry.coefficients[:, 0], entry.coefficients[:, 2], atol=1e-10)
    rigid = molecule([12.0, 12.0], constraints=((0, 1),))
    with pytest.raises(TopologyError, match=r"constraints join beads B0 and B1.*--no-forces"):
        basic_map(single(rigid, [1], [2]))


def test_optimal_map_respects_constraints(springs):
    """With atoms 1 and 2 joined, their columns are equal and the mean is that of the basic map."""
    kind = molecule([12.0, 1.0, 16.0, 14.0, 1.0], constraints=((0, 4),))
    mapping = system(kind, [1, 2], [3, 4], count=4)
    entry = fit_force_maps(mapping, [springs["forces"][:500], springs["forces"][500:1000]])["MOL"]
    assert entry.kind == "optimal"
    np.testing.assert_allclose(entry.coefficients[:, 0], entry.coefficients[:, 4], atol=1e-10)
    np.testing.assert_allclose(entry.coefficients @ mapping.maps[0].weights.T, np.eye(2), atol=1e-10)
    whole = fit_force_maps(mapping, [springs["forces"][:1000]])["MOL"]
    np.testing.assert_allclose(entry.coefficients, whole.coefficients, rtol=1e-9, atol=1e-12)


def test_no_other_allowed_map_has_less_noise(springs):
    mapping = springs["mapping"]
    forces = springs["forces"][:1000]
    groups = np.eye(5)
    sums = group_forces(forces, 4, groups)
    best = optimal_map(mapping.maps[0], sums.T @ sums / len(sums), len(sums)).coefficients
    generator = np.random.default_rng(5)
    weights = mapping.maps[0].weights
    free = np.eye(5) - np.linalg.pinv(weights) @ weights
    noise = ((sums @ best.T) ** 2).mean(axis=0)
    for _ in range(50):
        other = best + generator.normal(scale=10.0 ** generator.uniform(-2, 0), size=(2, 5)) @ free
        np.testing.assert_allclose(other @ weights.T, np.eye(2), atol=1e-10)
        assert (((sums @ other.T) ** 2).mean(axis=0) >= noise * (1 - 1e-9)).all()


def test_too_few_frames_give_the_basic_map_and_say_so(springs):
    entry = fit_force_maps(springs["mapping"], [springs["forces"][:1]])["MOL"]
    assert entry.kind == "basic"
    assert "12 force components are too few to fit 3 free coefficients" in entry.why
