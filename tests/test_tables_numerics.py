"""Distributions, inversions, force matching and relative entropy where the answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from soft_fluid import TEMPERATURE, beads, known_pair, monte_carlo, two_beads
from test_pair_energies import BOX, TRICLINIC, chain, frames, model

from ccg_gmx.errors import CcgError, TrajectoryError
from ccg_gmx.molecule.coarse_topology import BondedType, CoarseMoleculeType, CoarseTopology
from ccg_gmx.potential.block_sums import BlockSums
from ccg_gmx.potential.distributions import (
    Distributions,
    Histogram,
    independent_squares,
    pair_numbers,
    sample_distributions,
)
from ccg_gmx.potential.evaluate import energies_and_forces
from ccg_gmx.potential.inversion import (
    BasisSettings,
    UpdateSettings,
    blank_model,
    direct_inversion,
    first_peak,
    iterative_step,
    rdf_error,
)
from ccg_gmx.potential.layout import ModelLayout
from ccg_gmx.potential.matching import ForceMatcher
from ccg_gmx.potential.model import CoarseModel
from ccg_gmx.potential.pressure import PressureSampler, correct_pressure, pressure_response, ramp
from ccg_gmx.potential.relative_entropy import newton_step, sample_features
from ccg_gmx.records import BeadFrames
from ccg_gmx.units import BAR_PER_KJ_MOL_NM3

COARSE = BasisSettings(pair_spacing=0.02)
WW = ("W", "W")


def chunks(sample: BeadFrames, size: int):
    for k in range(0, len(sample.positions), size):
        box = None if sample.box is None else sample.box[k : k + size]
        forces = None if sample.forces is None else sample.forces[k : k + size]
        yield BeadFrames(sample.positions[k : k + size], sample.time[k : k + size], box, forces)


@pytest.mark.parametrize("box", [BOX, TRICLINIC], ids=["rectangular", "triclinic"])
def test_ideal_gas_has_a_flat_rdf(box: np.ndarray) -> None:
    rng = np.random.default_rng(11)
    x = rng.uniform(size=(400, 60, 3)) @ box
    sample = BeadFrames(x, np.arange(400.0), np.tile(box, (400, 1, 1)))
    part = sample_distributions(beads(60), chunks(sample, 37), 1.05, 0.02).pairs[WW]
    use = part.ideal > 20
    chi2 = np.sum((part.counts - part.ideal)[use] ** 2 / part.ideal[use])
    assert stats.chi2.cdf(chi2, use.sum()) < 0.999
    assert part.dispersion == pytest.approx(1.0, abs=0.3)


def test_counts_are_those_of_brute_force_and_exclusions_are_left_out() -> None:
    topology, sample = chain(), frames(chain(), TRICLINIC, count=3)
    found = sample_distributions(topology, [sample], 0.9, 0.05)
    s = sample.positions[:, :, None] - sample.positions[:, None]
    s = s @ np.linalg.inv(TRICLINIC)
    distance = np.linalg.norm((s - np.rint(s)) @ TRICLINIC, axis=-1)
    allowed = np.triu(np.ones((topology.n_beads,) * 2, dtype=bool), 1)
    allowed[tuple(topology.excluded_pairs.T)] = False
    types = np.array(topology.bead_types)
    for (a, b), part in found.pairs.items():
        match = (types[:, None] == a) & (types[None] == b) | (types[:, None] == b) & (types[None] == a)
        wanted, _ = np.histogram(distance[:, allowed & match], part.edges)
        np.testing.assert_array_equal(part.counts, wanted)
        assert pair_numbers(topology)[a, b] == np.sum(allowed & match)


def test_histograms_divide_by_the_right_measure() -> None:
    """Beads placed without any potential: every density over its measure is flat."""
    rng = np.random.default_rng(5)
    count = 30000
    radius = 0.5 * rng.uniform(size=(count, 3)) ** (1 / 3)  # even in a ball
    direction = rng.normal(size=(count, 3, 3))
    steps = radius[..., None] * direction / np.linalg.norm(direction, axis=-1, keepdims=True)
    x = np.concatenate([np.zeros((count, 1, 3)), np.cumsum(steps, axis=1)], axis=1)
    bonded = (
        BondedType("b", "bond", ((0, 1), (1, 2), (2, 3))),
        BondedType("a", "angle", ((0, 1, 2),)),
        BondedType("d", "dihedral", ((0, 1, 2, 3),)),
    )
    four = CoarseMoleculeType("M", tuple("ABCD"), ("A",) * 4, (1.0,) * 4, ("M",) * 4, (1,) * 4, bonded)
    found = sample_distributions(CoarseTopology(((four, 1),)), [BeadFrames(x, np.arange(float(count)))], 0.0)
    for name, part in found.bonded.items():
        counts, ideal = part.counts, part.ideal
        if name == "b":
            use = part.edges[1:] <= 0.5 + 1e-9
            counts, ideal = counts[use], ideal[use] * counts.sum() / ideal[use].sum()
        groups = np.arange(len(counts)) * 20 // len(counts)
        seen, wanted = np.bincount(groups, counts), np.bincount(groups, ideal)
        chi2 = np.sum((seen - wanted)[wanted > 5] ** 2 / wanted[wanted > 5])
        assert stats.chi2.cdf(chi2, np.sum(wanted > 5)) < 0.999, name


def test_blocks_are_joined_and_see_correlations() -> None:
    rng = np.random.default_rng(3)
    sums, values = BlockSums((1,)), np.repeat(rng.normal(size=2000), 20)
    for value in values:
        sums.add(np.array([value]))
    assert sums.frames == 40000
    assert sums.mean[0] == pytest.approx(values.mean())
    assert 16 <= len(sums.full) <= 32
    # 2000 independent values; the scatter of b blocks is known to 1 / sqrt(2 b), three of these allowed.
    assert sums.error_of_mean()[0] * np.sqrt(2000) == pytest.approx(1.0, abs=3 / np.sqrt(2 * len(sums.full)))


def test_direct_inversion_of_two_beads_is_exact_within_its_errors() -> None:
    wanted = known_pair()
    sample = two_beads(wanted, 2.0, 20000, 1)
    target = sample_distributions(beads(2), chunks(sample, 1000), 0.9)
    found = direct_inversion(target, blank_model(target, TEMPERATURE, 0.9, COARSE), COARSE)
    curve = found.pairs[WW]
    x = np.linspace(0.4, 0.88, 25)
    off = (curve.value_and_slope(x)[0] - wanted.pairs[WW].value_and_slope(x)[0]) / curve.error(x)
    # The constant is set at the cut-off, so all points share its error: no chi^2 of independent points.
    assert np.abs(off).max() < 4.0
    assert curve.error(x).max() < 0.3 * wanted.kT
    core = np.linspace(0.1, curve.lo, 20)
    value, slope = curve.value_and_slope(core)
    assert np.all(np.diff(value) < 0)
    assert slope.max() < -20 * wanted.kT
    assert value[0] > 30 * wanted.kT


def test_direct_inversion_of_bonded_terms_takes_the_measure_off() -> None:
    """A harmonic bond and a free angle: bonds are drawn from r^2 exp(-V), angles from sin(theta)."""
    rng = np.random.default_rng(8)
    kT, count = CoarseModel(TEMPERATURE).kT, 40000
    stiff, centre = 400.0, 0.3
    r = centre + rng.normal(size=16 * count) * np.sqrt(kT / stiff)
    r = r[(r > 0) & (rng.uniform(size=r.shape) < (r / 0.7) ** 2)][: 2 * count].reshape(-1, 2)
    direction = rng.normal(size=(len(r), 2, 3))
    steps = r[..., None] * direction / np.linalg.norm(direction, axis=-1, keepdims=True)
    x = np.concatenate([np.zeros((len(r), 1, 3)), np.cumsum(steps, axis=1)], axis=1)
    bonded = (BondedType("b", "bond", ((0, 1), (1, 2))), BondedType("a", "angle", ((0, 1, 2),)))
    three = CoarseMoleculeType("M", tuple("ABC"), ("A",) * 3, (1.0,) * 3, ("M",) * 3, (1,) * 3, bonded)
    topology = CoarseTopology(((three, 1),))
    target = sample_distributions(topology, [BeadFrames(x, np.arange(float(len(x))))], 0.0)
    found = direct_inversion(target, blank_model(target, TEMPERATURE, 0.0))
    at = np.linspace(0.15, 0.45, 30)
    value = found.bonded["b"].value_and_slope(at)[0]
    wanted = 0.5 * stiff * (at - centre) ** 2
    assert np.abs(value - wanted - np.mean(value - wanted)).max() < 0.1 * kT
    flat = found.bonded["a"].value_and_slope(np.linspace(0.3, 2.8, 30))[0]
    assert np.ptp(flat) < 0.15 * kT


def five_beads() -> CoarseTopology:
    bonded = (BondedType("d", "dihedral", ((0, 1, 2, 3),)), BondedType("m", "cmap", ((0, 1, 2, 3, 4),)))
    names, ones = tuple("ABCDE"), (1.0,) * 5
    return CoarseTopology(
        ((CoarseMoleculeType("M", names, ("A",) * 5, ones, ("M",) * 5, (1,) * 5, bonded, PAIRS_OF_FIVE), 1),)
    )


PAIRS_OF_FIVE = tuple((i, j) for j in range(5) for i in range(j))


def placed(angles: np.ndarray) -> BeadFrames:
    """Five beads with two torsions ``[T, 2]``; bonds of 0.2 nm, angles of 100 degrees."""
    bend = np.radians(100.0)
    x = np.zeros((len(angles), 5, 3))
    x[:, 1] = [0.2, 0.0, 0.0]
    x[:, 2] = [0.2 - 0.2 * np.cos(bend), 0.2 * np.sin(bend), 0.0]
    for k in range(2):
        a, b, c = x[:, k], x[:, k + 1], x[:, k + 2]
        along = (c - b) / np.linalg.norm(c - b, axis=1, keepdims=True)
        normal = np.cross(b - a, along)
        normal /= np.linalg.norm(normal, axis=1, keepdims=True)
        across, turn = np.cross(normal, along), angles[:, k : k + 1]
        out = np.cos(turn) * across + np.sin(turn) * normal
        x[:, k + 3] = c + 0.2 * (-np.cos(bend) * along + np.sin(bend) * out)
    return BeadFrames(x, np.arange(float(len(x))))


def torsion_energy(phi: np.ndarray, psi: np.ndarray) -> np.ndarray:
    """kT; coupled, with its minimum at zero."""
    return 1.0 - np.cos(phi - psi) + 0.5 * (1.0 + np.cos(psi))


@pytest.fixture(scope="module")
def torsions() -> tuple[BeadFrames, BeadFrames]:
    """Frames that follow ``torsion_energy``, and frames that follow nothing."""
    free = np.random.default_rng(21).uniform(-np.pi, np.pi, size=(200000, 2))
    keep = np.random.default_rng(22).uniform(size=len(free)) < np.exp(-torsion_energy(*free.T))
    return placed(free[keep]), placed(np.random.default_rng(23).uniform(-np.pi, np.pi, size=(60000, 2)))


def test_torsions_and_their_map_are_inverted(torsions: tuple[BeadFrames, BeadFrames]) -> None:
    settings = BasisSettings(knots=12)
    target = sample_distributions(five_beads(), [torsions[0]], 0.0)
    blank = blank_model(target, TEMPERATURE, 0.0, settings)
    direct = direct_inversion(target, blank, settings)
    # One step of the iterative method from no potential at all, whose torsions are even, is the same inversion.
    even = sample_distributions(five_beads(), [torsions[1]], 0.0)
    step = iterative_step(blank, even, target, settings, UpdateSettings(roughness_kT=1.0))
    grid = np.linspace(-np.pi, np.pi, 25)
    phi, psi = (a.ravel() for a in np.meshgrid(grid, grid, indexing="ij"))
    wanted = torsion_energy(phi, psi)
    marginal = -np.log(np.exp(-torsion_energy(grid[:, None], grid[None, :-1])).mean(axis=1))
    low = wanted < 1.5
    for model_ in (direct, step):
        found = model_.maps["m"].value_and_gradient(phi, psi)[0] / model_.kT
        off = (found - wanted)[low] - np.mean((found - wanted)[low])
        assert np.sqrt(np.mean(off**2)) < 0.08
        pull = off / (model_.maps["m"].error(phi, psi)[low] / model_.kT)
        assert np.sqrt(np.mean(pull**2)) < 2.0
        curve = model_.bonded["d"].value_and_slope(grid)[0] / model_.kT
        assert np.abs(curve - marginal - np.mean(curve - marginal)).max() < 0.06


def test_iterative_inversion_recovers_the_potential_of_a_fluid() -> None:
    """Liquids keep a slow mode, long in range and almost invisible in g: what is left after eight steps is stated."""
    count, box = 64, 2.1
    wanted = known_pair()
    target = sample_distributions(beads(count), [monte_carlo(wanted, count, box, 4000, 7)], 0.9, 0.01)
    now = direct_inversion(target, blank_model(target, TEMPERATURE, 0.9, COARSE), COARSE)
    x = np.linspace(0.40, 0.88, 25)
    truth = wanted.pairs[WW].value_and_slope(x)[0]

    def off() -> float:
        return float(np.sqrt(np.mean((now.pairs[WW].value_and_slope(x)[0] - truth) ** 2))) / wanted.kT

    before, errors = off(), []
    for k in range(8):
        found = sample_distributions(beads(count), [monte_carlo(now, count, box, 1500, 100 + k)], 0.9, 0.01)
        error = rdf_error(found, target)
        assert error is not None
        errors.append(error)
        now = iterative_step(now, found, target, COARSE)
    assert errors[-1].squared < 0.2 * errors[0].squared
    assert errors[-1].squared < 4.0 * errors[-1].noise
    assert errors[-1].first_peak_ratio == pytest.approx(1.0, abs=0.03)
    assert off() < 0.15
    assert off() < 0.6 * before


def test_peak_height_of_a_parabola_is_its_top() -> None:
    wanted = known_pair()
    target = sample_distributions(beads(2), [two_beads(wanted, 2.0, 4000, 1)], 0.9, 0.002)
    part = target.pairs[WW]
    r = part.centres
    exact = type(part)("pair", part.edges, part.ideal * (3.0 - 400 * (r - 0.4013) ** 2), part.ideal, part.error)
    assert first_peak(exact, exact) == pytest.approx(3.0, abs=1e-9)


def matched(topology: CoarseTopology, truth: CoarseModel, sample: BeadFrames) -> tuple[ModelLayout, ForceMatcher]:
    layout = ModelLayout(truth, topology)
    matcher = ForceMatcher(layout)
    for chunk in chunks(sample, 7):
        matcher.add(chunk)
    return layout, matcher


def with_forces(topology: CoarseTopology, truth: CoarseModel, sample: BeadFrames, noise: float = 0.0) -> BeadFrames:
    """Forces of a model without its walls, which are not linear in the coefficients."""
    x = ModelLayout(truth, topology).vector(truth)
    forces = np.array([design @ x for design in ModelLayout(truth, topology).forces(sample)])
    forces += noise * np.random.default_rng(0).normal(size=forces.shape)
    return BeadFrames(sample.positions, sample.time, sample.box, forces)


def test_design_gives_the_forces_and_features_the_energy() -> None:
    """Where no coordinate is beyond its range the walls are silent and everything is linear."""
    topology, truth, sample = chain(), model(0.95), frames(chain(), TRICLINIC, count=2)
    calm = CoarseModel(300.0, {n: _without_walls(c) for n, c in truth.bonded.items()}, truth.maps, {})
    calm = CoarseModel(300.0, calm.bonded, calm.maps, {k: _without_walls(c) for k, c in truth.pairs.items()})
    layout = ModelLayout(calm, topology)
    x, found = layout.vector(calm), energies_and_forces(calm, topology, sample)
    walls = max(float(np.abs(c.walls).max()) for c in [*calm.bonded.values(), *calm.pairs.values()])
    assert walls == pytest.approx(0.0, abs=1e-6)
    for t, (design, features) in enumerate(zip(layout.forces(sample), layout.features(sample), strict=True)):
        np.testing.assert_allclose(design @ x, found.forces[t], rtol=1e-8, atol=1e-6)
        assert features @ x == pytest.approx(found.total[t], rel=1e-9)


def _without_walls(curve):
    """The same curve with edges that curve upwards by themselves, so that no wall is added."""
    c = curve.coefficients.copy()
    if curve.kind != "dihedral":
        c[:3] = c[2] + np.array([8.0, 3.0, 0.0])
        if curve.kind != "pair":
            c[-3:] = c[-4] + np.array([0.0, 3.0, 8.0])
    return type(curve)(curve.kind, curve.lo, curve.hi, c, None, 0.0)


def test_force_matching_equals_dense_least_squares() -> None:
    topology, truth = chain(3), model(0.95)
    sample = with_forces(topology, truth, frames(topology, TRICLINIC, count=60), noise=30.0)
    layout, matcher = matched(topology, truth, sample)
    variance = 900.0
    found = matcher.solve(1.0, variance=variance)
    design = np.concatenate([rows.reshape(-1, layout.size) for rows in layout.forces(sample)])
    values, vectors = np.linalg.eigh(layout.prior(1.0) / truth.kT**2)
    prior = np.sqrt(np.maximum(values, 0.0))[:, None] * vectors.T
    left = np.concatenate([design / np.sqrt(variance), prior])
    assert sample.forces is not None
    right = np.concatenate([sample.forces.ravel() / np.sqrt(variance), np.zeros(len(prior))])
    wanted = np.linalg.lstsq(left, right, rcond=None)[0]
    np.testing.assert_allclose(found.coefficients, wanted, rtol=1e-8, atol=1e-8 * np.abs(wanted).max())
    rest = sample.forces.ravel() - design @ wanted
    assert found.residual_rms == pytest.approx(np.sqrt(np.mean(rest**2)), rel=1e-8)


def test_force_matching_recovers_the_spline_from_its_own_forces() -> None:
    truth = known_pair()
    fluid = monte_carlo(truth, 64, 1.9, 40, 3)
    sample = with_forces(beads(64), truth, fluid)
    found = matched(beads(64), truth, sample)[1].solve(roughness_kT=1e6)
    x = np.linspace(0.39, 0.9, 60)
    value, wanted = found.model.pairs[WW].value_and_slope(x)[0], truth.pairs[WW].value_and_slope(x)[0]
    np.testing.assert_allclose(value, wanted, atol=1e-5)
    assert found.explained == pytest.approx(1.0, abs=1e-9)


def test_errors_of_force_matching_cover_the_truth() -> None:
    truth = known_pair()
    fluid = monte_carlo(truth, 64, 1.9, 120, 5)
    sample = with_forces(beads(64), truth, fluid, noise=50.0)
    found = matched(beads(64), truth, sample)[1].solve(roughness_kT=10.0)
    x = np.linspace(0.40, 0.86, 24)
    curve = found.model.pairs[WW]
    off = (curve.value_and_slope(x)[0] - truth.pairs[WW].value_and_slope(x)[0]) / curve.error(x)
    assert np.abs(off).max() < 4.5  # some 20 blocks: Student's t
    assert np.sqrt(np.mean(off**2)) < 2.0
    assert found.residual_rms == pytest.approx(50.0, rel=0.03)


def test_relative_entropy_recovers_the_potential() -> None:
    wanted = known_pair()
    topology = beads(2)
    target_frames = two_beads(wanted, 1.9, 6000, 1)
    target = sample_distributions(topology, [target_frames], 0.9)
    now = blank_model(target, TEMPERATURE, 0.9, BasisSettings(pair_spacing=0.04))
    layout = ModelLayout(now, topology)
    goal = sample_features(layout, [target_frames])
    misfits = []
    for k in range(5):
        step = newton_step(layout, now, sample_features(layout, [two_beads(now, 1.9, 6000, 50 + k)]), goal)
        now = step.model
        misfits.append(step.misfit)
    assert misfits[0] > 20
    assert misfits[-1] < 2.5
    x = np.linspace(0.42, 0.86, 12)
    curve = now.pairs[WW]
    off = curve.value_and_slope(x)[0] - wanted.pairs[WW].value_and_slope(x)[0]
    assert np.abs(off).max() < 0.35 * wanted.kT
    assert np.abs(off / curve.error(x)).max() < 5.0


def test_pressure_of_an_ideal_gas_and_of_the_ramp() -> None:
    box = 1.9
    sample = monte_carlo(known_pair(), 64, box, 60, 2)
    found = sample_distributions(beads(64), [sample], 0.9, 0.002)
    flat = blank_model(found, TEMPERATURE, 0.9, COARSE)

    def pressure(model: CoarseModel):
        sampler = PressureSampler(model, beads(64))
        sampler.add(sample)
        return sampler.result()

    ideal = pressure(flat)
    assert ideal.bar == pytest.approx(64 * flat.kT / box**3 * BAR_PER_KJ_MOL_NM3)
    response = pressure_response(flat, found)
    # By hand: -(sum over pairs of r phi'(r)) / 3V with phi' nearly -1 / r_c.
    by_hand = np.sum(found.pairs[WW].counts * found.pairs[WW].centres) / 60 / 0.9 / (3 * box**3) * BAR_PER_KJ_MOL_NM3
    assert response == pytest.approx(by_hand, rel=0.05)
    better, height = correct_pressure(flat, found, ideal, ideal.bar + 0.2 * response, largest_kT=1.0)
    assert height == pytest.approx(0.2, rel=1e-3)
    # The wall below the range (core_curvature) adds nothing: every pair is within it.
    assert pressure(better).bar - ideal.bar == pytest.approx(0.2 * response, rel=2e-3)
    _, limited = correct_pressure(flat, found, ideal, 1e6)
    assert limited == pytest.approx(0.1 * flat.kT)
    np.testing.assert_array_equal(ramp(flat.pairs[WW])[-3:], 0.0)


def test_empty_rdf_is_refused() -> None:
    x = np.array([[[0.0, 0, 0], [1.5, 1.5, 1.5]]])
    target = sample_distributions(beads(2), [BeadFrames(x, np.zeros(1), np.eye(3)[None] * 3.0)], 0.9)
    with pytest.raises(TrajectoryError, match=r"W-W is empty up to 0\.9 nm"):
        blank_model(target, TEMPERATURE, 0.9)


def test_range_beyond_half_the_box_is_refused() -> None:
    with pytest.raises(CcgError, match=r"1\.3 nm.*half the box"):
        sample_distributions(chain(), [frames(chain(), BOX)], 1.3)


def test_trajectory_without_forces_is_refused() -> None:
    with pytest.raises(TrajectoryError, match="without forces"):
        ForceMatcher(ModelLayout(model(0.95), chain())).add(frames(chain(), BOX))


def test_no_frames_are_refused() -> None:
    with pytest.raises(TrajectoryError, match="without frames"):
        sample_distributions(chain(), [], 0.5)


# --- sampling errors of radial distribution functions --------------------------------------------------------------


def correlated(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Normal numbers ``[..., 60]`` of sizes 1 to 2 whose correlation falls with exp(-|i - j| / 5)."""
    bins = np.arange(60)
    size = np.linspace(1.0, 2.0, 60)
    covariance = np.exp(-np.abs(bins[:, None] - bins) / 5.0) * size[:, None] * size
    return rng.normal(size=(*shape, 60)) @ np.linalg.cholesky(covariance).T


def exact_squares() -> float:
    bins, size = np.arange(60), np.linspace(1.0, 2.0, 60)
    covariance = np.exp(-np.abs(bins[:, None] - bins) / 5.0) * size[:, None] * size
    return float(np.trace(covariance) ** 2 / np.sum(covariance**2))


def test_independent_squares_of_correlated_bins() -> None:
    """1 / squares averaged over 400 repeats of 20 blocks: within 4 standard errors and 5 % for the ratio's own bias."""
    rng = np.random.default_rng(3)
    found = np.array([1.0 / independent_squares(correlated(rng, 20)) for _ in range(400)])
    error = found.std(ddof=1) / 20.0
    assert abs(found.mean() * exact_squares() - 1.0) < 4.0 * error * exact_squares() + 0.05
    assert 9.0 < exact_squares() < 15.0


def test_independent_squares_at_the_ends() -> None:
    rng = np.random.default_rng(1)
    one = rng.normal(size=(16, 1)) * np.ones(8)
    assert independent_squares(one) == pytest.approx(1.0, abs=0.2)
    assert math.isnan(independent_squares(one[:3]))
    assert math.isnan(independent_squares(np.ones((8, 4))))


def test_one_right_model_in_twenty_exceeds_the_noise_limit() -> None:
    """600 pairs of samples of one distribution; 5 % wanted, and between 2 and 8 % found (4 standard errors)."""
    rng = np.random.default_rng(7)
    beyond = 0
    for _ in range(600):
        parts = []
        for _ in range(2):
            blocks = 100.0 + correlated(rng, 20)
            error = blocks.std(axis=0, ddof=1) / math.sqrt(20.0)
            edges, ones = np.linspace(0.0, 0.6, 61), np.ones(60)
            squares = independent_squares(blocks)
            parts.append(Histogram("pair", edges, blocks.mean(axis=0) * ones, ones, error, squares))
        both = [Distributions({}, {}, {("A", "A"): part}, 20, 1.0) for part in parts]
        compared = rdf_error(*both)
        assert compared is not None
        assert compared.noise < compared.noise_limit
        beyond += compared.squared > compared.noise_limit
    assert 0.02 < beyond / 600 < 0.08
