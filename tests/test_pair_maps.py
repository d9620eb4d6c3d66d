"""More than two coarse torsions: which share a map, what the maps are fitted to, and what GROMACS makes of them."""

from __future__ import annotations

import itertools
import json
import math
import re
import shutil
from pathlib import Path

import MDAnalysis
import numpy as np
import pytest
from scipy import special, stats
from test_export_gromacs import MDP, gmx, internal, numeric_forces, place, rerun

from ccg_gmx.errors import SettingsError, TopologyError
from ccg_gmx.export.gromacs import CoarseMolecule, ForceField, write_forcefield
from ccg_gmx.free_energy.surface import forward_kl
from ccg_gmx.free_energy.torsion_grid import grid, grid_points, shifted
from ccg_gmx.molecule.coordinate import Coordinate
from ccg_gmx.potential.basis import PeriodicTerm, SeparableBasis, SplineTerm, TorsionGrid, TorsionMaps, covering_term
from ccg_gmx.potential.coarse import CoarsePotential, FitResidual
from ccg_gmx.potential.fit import BeadSamples, fit_coarse_potential
from ccg_gmx.potential.pairing import divergence, marginal, mutual_information, pair_torsions, total_correlation
from ccg_gmx.records import FloatArray, FreeEnergySurface

NAMES = ("phi1", "psi1", "phi2", "psi2")
POSITIONS = (0, 1, 3, 4)  # of these torsions in a chain of eight beads; 2 is omega
N = 24
BONDS = [Coordinate(f"bond {i}", "bond", "positive") for i in range(7)]
ANGLES = [Coordinate(f"angle {i}", "angle", "polar") for i in range(6)]
OMEGA = Coordinate("torsion omega", "torsion", "window", math.pi, math.pi)
FREE = Coordinate("torsion psi2", "torsion", "circle")
CENTRE = np.array([0.134, 0.145, 0.153] * 2 + [0.134] + [2.1, 1.94, 2.05] * 2 + [3.05])
SD = np.array([0.0028, 0.0033, 0.0033] * 2 + [0.0028] + [0.05, 0.06, 0.05] * 2 + [0.12])
CHAIN = tuple((i, i + 1) for i in range(7)) + tuple((i, i + 1, i + 2) for i in range(6))
FOUR = tuple((i, i + 1, i + 2, i + 3) for i in range(5))
MOLECULE = CoarseMolecule(
    name="ALA3",
    bead_names=("C", "N", "CA", "C", "N", "CA", "C", "N"),
    residue_names=("ACE", "ALA", "ALA", "ALA", "ALA", "ALA", "ALA", "NME"),
    residue_ids=(1, 2, 2, 2, 3, 3, 3, 4),
    masses=(43.0, 15.0, 28.0, 28.0, 15.0, 28.0, 28.0, 30.0),
    terms=(*CHAIN, FOUR[2]),
    torsions=tuple(FOUR[i] for i in POSITIONS),
)
THREE = CoarseMolecule(**{**vars(MOLECULE), "terms": (*CHAIN, FOUR[2], FOUR[4]), "torsions": (*FOUR[:2], FOUR[3])})


def pair_energy(phi: FloatArray, psi: FloatArray) -> FloatArray:
    """One residue, kT; no symmetry that could hide a swapped axis or sign."""
    return 2.0 * np.cos(phi - 0.5) + np.cos(psi + 1.0) + 0.7 * np.cos(phi + 2.0 * psi) + 0.5 * np.sin(3.0 * psi - phi)


def energy(s: FloatArray, coupling: float) -> FloatArray:
    """Two different residues and a coupling of psi1 with phi2 (kT), ``s [..., 4]``."""
    one, two = pair_energy(s[..., 0], s[..., 1]), pair_energy(-s[..., 2], s[..., 3] + 0.4)
    return one + two + coupling * np.cos(s[..., 1] - s[..., 2] + 0.7)


def surface_of(values: FloatArray, names: tuple[str, ...] = NAMES, error: float = 0.05) -> FreeEnergySurface:
    f = values.reshape((N,) * len(names))
    return shifted(f, names, 300.0, np.full_like(f, error))


def four(coupling: float = 1.5) -> FreeEnergySurface:
    return surface_of(energy(grid(N, 4), coupling))


# --- which torsions share a map --------------------------------------------------------------------------------------


def test_neighbours_in_the_chain_share_a_map() -> None:
    maps = pair_torsions(four(), POSITIONS)
    assert maps.columns == ((0, 1), (2, 3))
    assert [m.names for m in maps.grids] == [("phi1", "psi1"), ("phi2", "psi2")]
    assert maps.names == NAMES


def test_order_of_s_need_not_be_that_of_the_chain() -> None:
    order = (3, 0, 2, 1)
    mixed = marginal(four(), order)
    maps = pair_torsions(mixed, [POSITIONS[i] for i in order])
    assert [m.names for m in maps.grids] == [("phi1", "psi1"), ("phi2", "psi2")]
    assert maps.columns == ((1, 3), (2, 0))
    assert maps.names == mixed.names


def test_torsions_that_are_no_neighbours_stay_alone() -> None:
    pair = marginal(four(), (1, 2))
    maps = pair_torsions(pair, (1, 3))
    assert maps.columns == ((0,), (1,))
    assert pair_torsions(pair, (0, 1)).columns == ((0, 1),)


@pytest.mark.parametrize(("strong", "columns"), [(0, ((0, 1), (2,))), (1, ((0,), (1, 2)))])
def test_of_three_in_a_row_the_pair_that_says_most_about_each_other_is_kept(strong: int, columns: object) -> None:
    s = grid(N, 3)
    coupling = np.array([0.3, 0.3])
    coupling[strong] = 2.0
    f = surface_of(coupling[0] * np.cos(s[:, 0] - s[:, 1]) + coupling[1] * np.cos(s[:, 1] - s[:, 2]), NAMES[:3])
    maps = pair_torsions(f, (4, 5, 6))
    assert maps.columns == columns
    every = [((0,), (1,), (2,)), ((0, 1), (2,)), ((0,), (1, 2))]
    lost = {c: total_correlation(f, TorsionMaps(tuple(TorsionGrid(("x",) * len(g)) for g in c), c)) for c in every}
    assert min(lost, key=lost.__getitem__) == columns


def test_positions_that_do_not_fit_are_refused() -> None:
    for positions in ((0, 1, 3), (0, 1, 3, 3)):
        with pytest.raises(SettingsError, match="chain positions"):
            pair_torsions(four(), positions)


@pytest.mark.parametrize("columns", [((0, 1), (1, 2)), ((0, 1), (3,)), ((0,), (1,)), ()])
def test_maps_hold_every_torsion_once(columns: tuple[tuple[int, ...], ...]) -> None:
    with pytest.raises(SettingsError, match="every torsion in exactly one map"):
        TorsionMaps((TorsionGrid(("a", "b")), TorsionGrid(("c",)))[: len(columns)], columns)


# --- marginals and what is lost --------------------------------------------------------------------------------------


def test_marginals_are_sums_over_the_others() -> None:
    f = four()
    p = np.exp(-f.f) / np.exp(-f.f).sum()
    both = marginal(f, (3, 1))
    np.testing.assert_allclose(np.exp(-both.f) / np.exp(-both.f).sum(), p.sum(axis=(0, 2)).T, rtol=1e-12)
    assert both.names == ("psi2", "psi1")
    np.testing.assert_allclose(both.error, 0.05, rtol=1e-12)
    assert marginal(f, range(4)) is f


def test_bins_that_are_unknown_everywhere_stay_unknown() -> None:
    f = marginal(four(), (0, 1, 2))
    values = f.f.copy()
    values[3], values[5, 2, 7] = np.inf, np.inf
    part = marginal(FreeEnergySurface(values, np.where(np.isinf(values), np.nan, 0.1), f.names, 300.0), (0,))
    assert np.isinf(part.f[3])
    assert np.isnan(part.error[3])
    known = np.arange(N) != 3
    assert np.isfinite(part.f[known]).all()
    np.testing.assert_allclose(part.error[known], 0.1)


@pytest.mark.parametrize("kappa", [0.5, 2.0])
def test_total_correlation_of_two_coupled_circles_is_the_analytic_one(kappa: float) -> None:
    """p ~ exp(kappa cos(a - b)) has flat marginals; its information is kappa I1/I0 - ln I0."""
    s = grid(48, 2)
    f = shifted(-kappa * np.cos(s[:, 0] - s[:, 1]).reshape(48, 48), ("a", "b"), 300.0)
    exact = kappa * special.i1(kappa) / special.i0(kappa) - math.log(special.i0(kappa))
    apart = TorsionMaps((TorsionGrid(("a",)), TorsionGrid(("b",))), ((0,), (1,)))
    assert total_correlation(f, apart) == pytest.approx(exact, rel=1e-10)
    assert mutual_information(f, 0, 1) == pytest.approx(exact, rel=1e-10)
    assert total_correlation(f, TorsionMaps((TorsionGrid(("a", "b")),), ((0, 1),))) == pytest.approx(0.0, abs=1e-12)


# --- the fit ---------------------------------------------------------------------------------------------------------


def samples_of(coupling: float, m: int, seed: int) -> BeadSamples:
    """Uniform torsions, one Gaussian bond and a Gaussian omega around 175 degrees; exact mean forces, and noise."""
    rng = np.random.default_rng(seed)
    s = rng.uniform(-math.pi, math.pi, (m, 4))
    centre, sd = CENTRE[[0, 13]], SD[[0, 13]]
    b = centre + 1.3 * sd * rng.normal(size=(m, 2))
    z = (b - centre) / sd
    step = 1e-5
    by_s = [(energy(s + d, coupling) - energy(s - d, coupling)) / (2 * step) for d in step * np.eye(4)]
    noise = np.array([0.3] * 4 + [0.3 / sd[0], 0.3 / sd[1]])
    gradient = np.column_stack([*by_s, z / sd])
    a = energy(s, coupling) + 0.5 * np.sum(z**2, axis=1)
    return BeadSamples(
        s=s,
        b=b,
        log_weight=-a + 0.5 * np.sum((z / 1.3) ** 2, axis=1),
        gradient=gradient + noise * rng.normal(size=gradient.shape),
        gradient_error=np.tile(noise, (m, 1)),
        energy=a + 0.1 * rng.normal(size=m),
        energy_error=np.full(m, 0.1),
    )


def fitted(coupling: float, seed: int = 1) -> CoarsePotential:
    samples, surface = samples_of(coupling, 6000, seed), four(coupling)
    terms = tuple(covering_term(c, samples.b[:, i]) for i, c in enumerate((BONDS[0], OMEGA)))
    return fit_coarse_potential(SeparableBasis(terms, pair_torsions(surface, POSITIONS)), surface, samples)


@pytest.fixture(scope="module")
def coupled() -> CoarsePotential:
    return fitted(1.5)


def test_marginals_of_the_model_are_those_of_the_surface(coupled: CoarsePotential) -> None:
    """Residues coupled with 1.5 kT: every map is the marginal, and the loss is the total correlation, not more."""
    surface = four()
    for k, columns in enumerate(coupled.basis.maps.columns):
        part = marginal(surface, columns)
        model = shifted(coupled.map_grid(k, N) / coupled.kT, part.names, 300.0)
        assert forward_kl(part, model) < 2e-4
    lost = total_correlation(surface, coupled.basis.maps)
    assert lost > 0.1  # the coupling is there to be lost
    assert coupled.residual.surface_kl == pytest.approx(lost, abs=3e-4)
    assert coupled.residual.surface_rms < 0.05
    grid_sum = coupled.grid(N) / coupled.kT
    assert divergence(surface, grid_sum) == pytest.approx(coupled.residual.surface_kl, rel=1e-9)


def test_without_coupling_nothing_is_lost() -> None:
    potential, surface = fitted(0.0), four(0.0)
    assert potential.residual.surface_kl < 3e-4
    assert np.sqrt(np.average((potential.grid(N) / potential.kT - surface.f) ** 2, weights=np.exp(-surface.f))) < 0.05


def test_marginals_with_errors_of_their_own_are_what_the_maps_follow(coupled: CoarsePotential) -> None:
    """Other marginals, on another grid: the maps are theirs, and surface_kl is about the surface all the same."""
    surface, samples, maps = four(), samples_of(1.5, 6000, 1), coupled.basis.maps
    axis = grid_points(48)
    other = [pair_energy(axis[:, None], axis[None]), pair_energy(axis[None], axis[:, None])]
    marginals = [shifted(f, g.names, 300.0, np.full_like(f, 0.01)) for f, g in zip(other, maps.grids, strict=True)]
    potential = fit_coarse_potential(coupled.basis, surface, samples, None, marginals)
    for k, part in enumerate(marginals):
        assert forward_kl(part, shifted(potential.map_grid(k, 48) / potential.kT, part.names, 300.0)) < 2e-3
    assert potential.residual.surface_kl > coupled.residual.surface_kl + 0.1
    with pytest.raises(SettingsError, match="one per map"):
        fit_coarse_potential(coupled.basis, surface, samples, None, marginals[::-1])


def test_least_squares_on_the_surface_would_be_worse(coupled: CoarsePotential) -> None:
    """The sum of maps nearest to F in the Boltzmann-weighted least-squares sense has wrong marginals, by 1e-2 nats."""
    surface, w = four(), np.exp(-four().f).reshape(N * N, N * N)
    one, two, f = np.zeros(N * N), np.zeros(N * N), surface.f.reshape(N * N, N * N)
    for _ in range(200):  # alternating projections onto functions of the first and of the second residue
        one = ((f - two) * w).sum(axis=1) / w.sum(axis=1)
        two = ((f - one[:, None]) * w).sum(axis=0) / w.sum(axis=0)
    wrong = 0.0
    for columns, values in zip(coupled.basis.maps.columns, (one, two), strict=True):
        part = marginal(surface, columns)
        wrong += forward_kl(part, shifted(values.reshape(N, N), part.names, 300.0))
    assert wrong > 1e-2
    lost = total_correlation(surface, coupled.basis.maps)
    whole = divergence(surface, (one[:, None] + two).reshape(surface.f.shape))
    assert whole == pytest.approx(lost + wrong, rel=1e-6)  # what pairing.py says about any sum of maps
    assert whole > coupled.residual.surface_kl + 0.5 * wrong


def test_omega_is_fitted_like_a_bond(coupled: CoarsePotential) -> None:
    """Mean and standard deviation of the model's marginal within 4 standard errors (kish_ess points) of the truth."""
    x, log_p = coupled.term_density(1)
    mass = np.exp(log_p) * (x[1] - x[0])
    mean = float(mass @ x)
    deviation = math.sqrt(float(mass @ (x - mean) ** 2))
    n = 1.0 / np.sum(samples_of(1.5, 6000, 1).omega ** 2)
    error = SD[13] * coupled.residual.force_rms[5] * SD[13] / math.sqrt(n)
    assert abs(mean - CENTRE[13]) < 4 * error + 1e-4
    assert deviation == pytest.approx(SD[13], rel=4 * 2 * coupled.residual.force_rms[5] * SD[13] / math.sqrt(n))


# --- the potential ---------------------------------------------------------------------------------------------------


def made_up(maps: TorsionMaps, free: bool = False) -> CoarsePotential:
    """Slightly anharmonic wells (omega among them), smooth maps, and one free torsion in b where asked for."""
    coordinates = [*BONDS, *ANGLES, OMEGA]
    terms: list[SplineTerm | PeriodicTerm] = [
        SplineTerm(c, m - 5 * d, m + 5 * d, 10, 0.3 / d**2) for c, m, d in zip(coordinates, CENTRE, SD, strict=True)
    ]
    basis = SeparableBasis((*terms, PeriodicTerm(FREE)) if free else tuple(terms), maps)
    parts = []
    for k, grid_ in enumerate(maps.grids):
        points = grid(72, len(grid_.names))
        value = pair_energy((1 - 2 * k) * points[:, 0], points[:, -1] + 0.4 * k)
        parts.append(np.linalg.lstsq(grid_.design(points).toarray(), value, rcond=None)[0])
    for term, m, d in zip(terms, CENTRE, SD, strict=True):
        x = np.linspace(m - 5 * d, m + 5 * d, 200)
        z = (x - m) / d
        value = 0.5 * z**2 + 0.01 * z**3 + 0.003 * z**4 + 0.02 * np.cos(1.5 * z)
        parts.append(np.linalg.lstsq(term.design(x).toarray(), value, rcond=None)[0])
    if free:
        x = grid_points(72)
        parts.append(np.linalg.lstsq(basis.terms[-1].design(x).toarray(), pair_energy(x, x), rcond=None)[0])
    zero = np.zeros(basis.n_s + basis.n_b)
    residual = FitResidual(zero, zero, math.nan, 0.0, 0, 0.123)
    return CoarsePotential(basis, np.concatenate(parts), np.zeros((basis.size, basis.size)), 300.0, residual)


PAIRS = TorsionMaps((TorsionGrid(NAMES[:2]), TorsionGrid(NAMES[2:])), ((0, 1), (2, 3)))
PAIR_AND_ONE = TorsionMaps((TorsionGrid(NAMES[2:3]), TorsionGrid(NAMES[:2])), ((2,), (0, 1)))


@pytest.fixture(scope="module")
def pairs() -> CoarsePotential:
    return made_up(PAIRS)


@pytest.fixture(scope="module")
def pair_and_one() -> CoarsePotential:
    return made_up(PAIR_AND_ONE, free=True)


@pytest.fixture(params=["pairs", "pair_and_one"])
def either(request: pytest.FixtureRequest) -> CoarsePotential:
    return request.getfixturevalue(request.param)


def test_gradients_are_those_of_the_values(either: CoarsePotential) -> None:
    """Central differences, walls and both sides of omega = 180 degrees included."""
    rng, n_s = np.random.default_rng(2), either.basis.n_s
    s, b = rng.uniform(-4.0, 4.0, (60, n_s)), CENTRE + 7 * SD * rng.normal(size=(60, 14))
    b = np.column_stack([b, rng.uniform(-4.0, 4.0, (60, either.basis.n_b - 14))])
    q, gradient = np.column_stack([s, b]), either.gradients(s, b)
    for i in range(q.shape[1]):
        step = 1e-7 if n_s <= i < n_s + 7 else 1e-6
        shift = step * np.eye(q.shape[1])[i]
        up, down = (either.values((q + k * shift)[:, :n_s], (q + k * shift)[:, n_s:]) for k in (1, -1))
        scale = np.abs(gradient[:, i]).max()
        np.testing.assert_allclose((up - down) / (2 * step), gradient[:, i], rtol=1e-4, atol=1e-5 * scale + 1e-4)


def test_a_whole_turn_changes_nothing(either: CoarsePotential) -> None:
    rng = np.random.default_rng(3)
    s, b = either.sample(40, 3)
    turned_s = s + 2 * math.pi * rng.integers(-1, 2, s.shape)
    turned_b = b.copy()
    turned_b[:, 13:] += 2 * math.pi * rng.integers(-1, 2, b[:, 13:].shape)
    np.testing.assert_allclose(either.values(turned_s, turned_b), either.values(s, b), atol=1e-9)
    np.testing.assert_allclose(either.log_density(turned_s, turned_b), either.log_density(s, b), atol=1e-9)


def test_grid_is_the_sum_of_the_maps_on_the_torsions_own_axes(either: CoarsePotential) -> None:
    n_s, n = either.basis.n_s, 10
    b = np.tile(np.append(CENTRE, np.zeros(either.basis.n_b - 14)), (n**n_s, 1))
    points = grid(n, n_s)
    values = either.values(points, b).reshape((n,) * n_s)
    total = either.grid(n)
    np.testing.assert_allclose(total - total.min(), values - values.min(), atol=1e-9)
    for axis in range(n_s):
        orders = tuple(int(i == axis) for i in range(n_s))
        slope = either.gradients(points, b)[:, axis].reshape((n,) * n_s)
        np.testing.assert_allclose(either.grid(n, orders), slope, atol=1e-9)


def test_omega_meets_a_wall_on_both_sides_and_its_density_ends_there(pairs: CoarsePotential) -> None:
    term = pairs.basis.terms[13]
    assert isinstance(term, SplineTerm)
    for edge, far in ((term.lo, 0.0), (term.hi, 2 * math.pi)):
        x = np.linspace(edge, far, 400)[:-1]
        value, _ = pairs.term_table(13, x)
        assert (np.diff(value) > 0).all()
        assert value[-1] > 100 * pairs.kT
    x, log_p = pairs.term_density(13)
    outside = np.abs(x - math.pi) > math.pi / 2
    assert np.exp(log_p[outside]).sum() * (x[1] - x[0]) < 1e-12
    assert np.trapezoid(np.exp(log_p), x) == pytest.approx(1.0, abs=1e-9)


def test_sampling_follows_the_stated_density(either: CoarsePotential) -> None:
    """Chi-square of every map against its quadrature, independence of maps, and a Kolmogorov test of every b."""
    s, b = either.sample(30000, seed=4)
    assert (s >= -math.pi).all()
    assert (s < math.pi).all()
    bins, n = 12, 240
    cells = np.floor((s + math.pi) / (2 * math.pi) * bins).astype(int)
    for k, columns in enumerate(either.basis.maps.columns):
        fine = -math.pi + (np.arange(n) + 0.5) * 2 * math.pi / n
        mesh = np.stack(np.meshgrid(*(fine,) * len(columns), indexing="ij"), axis=-1).reshape(-1, len(columns))
        whole = np.zeros((len(mesh), either.basis.n_s))
        whole[:, columns] = mesh
        g = either.basis.maps.map_design(k, whole) @ either.coefficients[either.basis.blocks[k]]
        mass = np.exp(-g).reshape((bins, n // bins) * len(columns)).sum(axis=tuple(range(1, 2 * len(columns), 2)))
        counts = np.bincount(np.ravel_multi_index(tuple(cells[:, columns].T), mass.shape), minlength=mass.size)
        expected = mass.ravel() / mass.sum() * len(s)
        many = expected > 5
        chi2 = np.sum((counts - expected)[many] ** 2 / expected[many])
        assert stats.chi2.sf(chi2, many.sum() - 1) > 1e-4
    across = stats.chi2_contingency(np.histogram2d(s[:, 1], s[:, 2], bins=6)[0] + 1e-9)
    assert across.pvalue > 1e-4
    for i in range(either.basis.n_b):
        x, log_p = either.term_density(i)
        cumulative = np.concatenate([[0.0], np.cumsum(np.exp(log_p[1:] / 2 + log_p[:-1] / 2) * np.diff(x))])
        assert stats.kstest(np.interp(b[:, i], x, cumulative), "uniform").pvalue > 1e-4


def test_log_density_is_normalised_and_that_of_the_potential(either: CoarsePotential) -> None:
    """exp(log_density) / (exp(-U/kT) J) is one constant, and the torsions' part integrates to 1."""
    s, b = either.sample(500, seed=5)
    u = either.values(s, b) / either.kT - either.basis.log_jacobian(b)
    assert np.ptp(either.log_density(s, b) + u) < 1e-9
    points = grid(36, either.basis.n_s) if either.basis.n_s == 3 else grid(24, 4)
    cell = (2 * math.pi) ** either.basis.n_s / len(points)
    for factor in (1.0, 2.5):
        assert np.exp(either.log_density_s(points, factor)).sum() * cell == pytest.approx(1.0, abs=2e-3)


def test_file_round_trip_and_files_of_the_first_version(either: CoarsePotential, tmp_path: Path) -> None:
    path = tmp_path / "potential.npz"
    either.save(path)
    again = CoarsePotential.load(path)
    assert again.basis == either.basis
    assert again.residual.surface_kl == either.residual.surface_kl
    s, b = either.sample(5, seed=6)
    np.testing.assert_array_equal(again.values(s, b), either.values(s, b))


def test_a_file_of_version_one_is_read(tmp_path: Path) -> None:
    """One map, no surface_kl: what versions before this one wrote."""
    term = SplineTerm(BONDS[0], 0.12, 0.15, 9, 1e4)
    basis = SeparableBasis((term,), TorsionGrid(("phi", "psi"), 12))
    residual = FitResidual(np.zeros(3), np.zeros(3), math.nan, 0.1, 0)
    size = basis.size
    CoarsePotential(basis, np.arange(size) * 0.01, np.zeros((size, size)), 300.0, residual).save(tmp_path / "two.npz")
    with np.load(tmp_path / "two.npz") as data:
        header, arrays = json.loads(str(data["header"])), {k: data[k] for k in ("coefficients", "covariance")}
    header["version"] = 1
    del header["residual"]["surface_kl"]
    np.savez(tmp_path / "one.npz", header=json.dumps(header), **arrays)
    old = CoarsePotential.load(tmp_path / "one.npz")
    assert old.basis == basis
    assert math.isnan(old.residual.surface_kl)


@pytest.mark.parametrize("coordinate", [OMEGA, BONDS[0]])
def test_periodic_terms_are_for_free_torsions(coordinate: Coordinate) -> None:
    with pytest.raises(SettingsError, match="free torsion"):
        PeriodicTerm(coordinate)


def test_the_term_of_a_coordinate_follows_its_support() -> None:
    values = np.random.default_rng(7).normal(3.1, 0.1, 500)
    omega = covering_term(OMEGA, values)
    assert isinstance(omega, SplineTerm)
    assert omega.lo < values.min() < values.max() < omega.hi
    assert isinstance(covering_term(FREE, values - 3.0), PeriodicTerm)
    with pytest.raises(SettingsError, match="range"):
        covering_term(OMEGA, values + 2.0)  # beyond the window


# --- GROMACS ---------------------------------------------------------------------------------------------------------


def chain(s: FloatArray, b: FloatArray, free: bool) -> FloatArray:
    """Beads from (s, b) of the model, with omega and the free torsion at their places in the chain."""
    left = b[:, 13:]
    torsions = [s[:, 0], s[:, 1], left[:, 0], s[:, 2], left[:, 1] if free else s[:, 3]]
    return place(np.stack(torsions, axis=1), b[:, :13])


def frames(potential: CoarsePotential, n: int, seed: int) -> FloatArray:
    """Uniform torsions (omega from its own density), Boltzmann bonds and angles, rounded to float32."""
    rng = np.random.default_rng(seed)
    s, b = rng.uniform(-math.pi, math.pi, (n, potential.basis.n_s)), potential.sample_b(n, seed)
    x = chain(s, b, free=potential.basis.n_b > 14)
    return (x - x.mean(axis=1, keepdims=True) + 3.0).astype(np.float32).astype(np.float64)


def written(folder: Path, potential: CoarsePotential, molecule: CoarseMolecule, **mdp: object) -> ForceField:
    text = MDP.format(**{"dt": 0.002, "steps": 100, "seed": 1, "every": 100, **mdp})
    return write_forcefield(folder, potential, molecule, frames(potential, 1, 3)[0], text)


def test_the_folder_has_a_table_for_every_dihedral_and_says_what_is_there(
    pairs: CoarsePotential, pair_and_one: CoarsePotential, tmp_path: Path
) -> None:
    field = written(tmp_path / "two", pairs, MOLECULE)
    top, readme = field.topology.read_text(), (field.folder / "README.md").read_text()
    assert {path.name for path in field.tables if "_d" in path.name} == {"table_d0.xvg"}
    assert "B1 B2 B3 B4 B5 1 24 24" in top
    assert "B4 B5 B6 B7 B8 1 24 24" in top
    assert "1 2 3 4 5 1\n4 5 6 7 8 1\n" in top
    assert "3 4 5 6 8 0 1.0" in top
    assert (
        "a CMAP over (phi1, psi1), a CMAP over (phi2, psi2) and a term for each bond, each angle and torsion omega."
        in readme
    )
    assert "0.12 nats" in readme
    field = written(tmp_path / "one", pair_and_one, THREE)
    top, readme = field.topology.read_text(), (field.folder / "README.md").read_text()
    assert {path.name for path in field.tables if "_d" in path.name} == {f"table_d{i}.xvg" for i in range(3)}
    assert top.count(" 1 24 24") == 1
    assert "a dihedral over (phi2), a CMAP over (phi1, psi1) and a term for" in readme
    assert "each angle and torsion omega, torsion psi2." in readme


def test_maps_that_gromacs_cannot_have_are_refused(tmp_path: Path) -> None:
    different = TorsionMaps((TorsionGrid(NAMES[:2], 24), TorsionGrid(NAMES[2:], 12)), ((0, 1), (2, 3)))
    with pytest.raises(TopologyError, match=r"maps with \[12, 24\] knots"):
        written(tmp_path / "f", made_up(different), MOLECULE)
    apart = TorsionMaps((TorsionGrid(("phi1", "phi2")), TorsionGrid(("psi1", "psi2"))), ((0, 2), (1, 3)))
    with pytest.raises(TopologyError, match="share three beads"):
        written(tmp_path / "f", made_up(apart), MOLECULE)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.gmx
@pytest.mark.parametrize("which", ["pairs", "pair_and_one"])
def test_gromacs_agrees_with_the_tables_term_by_term(
    which: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """200 frames, within float32: energies to 3e-4 kJ/mol, forces (up to about 5000) to 0.05 kJ/mol/nm."""
    potential: CoarsePotential = request.getfixturevalue(which)
    molecule = MOLECULE if which == "pairs" else THREE
    field, x = written(tmp_path / "forcefield", potential, molecule), frames(potential, 200, 8)
    energies, forces, x = rerun(field, x, tables=True)
    s, b = internal(x, molecule)
    term = np.array([potential.term_table(i, b[:, i])[0] for i in range(potential.basis.n_b)])
    kT, coefficients = potential.kT, [potential.coefficients[block] for block in potential.basis.blocks]
    maps = [kT * (potential.basis.maps.map_design(k, s) @ coefficients[k]) for k in (0, 1)]
    cmaps, single = (sum(maps), 0.0) if which == "pairs" else (maps[1], maps[0])
    assert np.abs(energies["Tab. Bonds"] - term[:7].sum(axis=0)).max() < 3e-4
    assert np.abs(energies["Tab. Angles"] - term[7:13].sum(axis=0)).max() < 3e-4
    assert np.abs(energies["Tab. Dih."] - term[13:].sum(axis=0) - single).max() < 3e-4
    assert np.abs(energies["CMAP Dih."] - cmaps).max() < 1e-4
    assert np.abs(energies["Potential"] - potential.values(s, b)).max() < 5e-4
    for values in (*maps, *term[13:]):
        assert np.ptp(values) > 8.0  # kJ/mol: every part is there to be got wrong
    assert np.abs(forces - numeric_forces(potential, molecule, x)).max() < 0.05


@pytest.mark.gmx
@pytest.mark.parametrize("which", ["pairs", "pair_and_one"])
def test_analytic_forms_agree_within_what_the_readme_says(
    which: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    potential: CoarsePotential = request.getfixturevalue(which)
    molecule = MOLECULE if which == "pairs" else THREE
    field, x = written(tmp_path / "forcefield", potential, molecule), frames(potential, 400, 9)
    energies, _, x = rerun(field, x, tables=False)
    stated = np.array([float(v) for v in re.findall(r"\| ([0-9.]+e-\d+) \|", (field.folder / "README.md").read_text())])
    assert stated.shape == ((14,) if which == "pairs" else (16,))
    s, b = internal(x, molecule)
    assert stated.max() < 0.03
    deviation = (energies["Potential"] - potential.values(s, b)) / potential.kT
    assert np.std(deviation) == pytest.approx(math.sqrt(np.sum(stated**2)), rel=0.3)
    assert stated[13] < 0.005  # omega


@pytest.mark.gmx
def test_omega_cannot_leave_through_the_analytic_form(pairs: CoarsePotential, tmp_path: Path) -> None:
    """Around the circle GROMACS' own form of omega is nowhere outside the data lower than at their edge."""
    field = written(tmp_path / "forcefield", pairs, MOLECULE)
    omega = np.linspace(0.0, 2 * math.pi, 181)[:-1]
    s, b = np.zeros((180, 4)), np.tile(CENTRE, (180, 1))
    b[:, 13] = omega
    x = chain(s, b, free=False)
    x = (x - x.mean(axis=1, keepdims=True) + 3.0).astype(np.float32).astype(np.float64)
    energies, _, x = rerun(field, x, tables=False)
    value = energies["Improper Dih."] + energies["Proper Dih."]
    value = value - value.min()
    inside = np.abs(omega - CENTRE[13]) < 5 * SD[13]
    assert value[~inside].min() > 0.9 * value[inside].max()
    assert value[np.abs(omega - math.pi) > math.pi / 2].min() > 25 * pairs.kT


@pytest.mark.gmx
def test_a_bare_grompp_and_mdrun_run(pairs: CoarsePotential, tmp_path: Path) -> None:
    field = written(tmp_path / "forcefield", pairs, MOLECULE)
    gmx("grompp", cwd=field.folder)
    gmx("mdrun", "-nt", 1, cwd=field.folder)
    assert (field.folder / "traj.trr").exists()


@pytest.mark.gmx
@pytest.mark.slow
def test_coarse_dynamics_samples_the_boltzmann_density(pairs: CoarsePotential, tmp_path: Path) -> None:
    """64 copies from equilibrium: after 40 ps every mean is that of exp(-U/kT) J within 4.5 standard errors."""
    assert shutil.which("gmx")
    s, b = pairs.sample(64, seed=10)
    text = MDP.format(dt=0.002, steps=20_000, seed=5, every=500).replace("= 2.5", "= 0.5")
    field = write_forcefield(tmp_path / "f", pairs, MOLECULE, chain(s, b, free=False), text)
    gmx("grompp", "-f", field.tables_mdp.name, cwd=field.folder)
    gmx("mdrun", "-nt", 1, "-tableb", *(table.name for table in field.tables), cwd=field.folder)
    trajectory = MDAnalysis.Universe(str(field.structure), str(field.folder / "traj.trr")).trajectory
    x = np.array([frame.positions.copy() for frame in trajectory], dtype=np.float64)[10:] / 10.0
    x = x.reshape(-1, 8, 3)
    steps = np.diff(x, axis=1)
    x = np.concatenate([x[:, :1], x[:, :1] + np.cumsum(steps - 6.0 * np.round(steps / 6.0), axis=1)], axis=1)
    s, b = internal(x, MOLECULE)
    exact_s, exact_b = pairs.sample(200_000, seed=12)
    for mine, exact in zip(_observables(s, b), _observables(exact_s, exact_b), strict=True):
        copies = mine.reshape(-1, 64).mean(axis=0)  # copies are independent
        error = math.hypot(copies.std(ddof=1) / 8.0, exact.std() / math.sqrt(len(exact)))
        assert abs(mine.mean() - exact.mean()) < 4.5 * error + 0.01 * exact.std()


def _observables(s: FloatArray, b: FloatArray) -> list[FloatArray]:
    z = (b - CENTRE) / SD
    z[:, 13] = np.remainder(b[:, 13], 2 * math.pi) / SD[13] - CENTRE[13] / SD[13]
    waves = [wave(s[:, i]) for i in range(4) for wave in (np.cos, np.sin)]
    joint = [np.cos(s[:, i] + s[:, j]) for i, j in itertools.combinations(range(4), 2)]
    return [*z.T, *(z**2).T, *waves, *joint]
