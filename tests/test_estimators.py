"""Estimators and diagnostics on numbers that can be worked out by hand, and on weights with known tails."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from systems import GaussianSystem, TwoModes

from ccg_gmx.errors import CcgError
from ccg_gmx.free_energy.coverage import coverage, unseen
from ccg_gmx.free_energy.diagnostics import (
    DiagnosticSettings,
    FineEvidence,
    HiddenEvidence,
    diagnose,
    doubling_drift,
    forward_ess_fraction,
    kish_ess,
    kish_fraction,
    largest_weight,
)
from ccg_gmx.free_energy.estimators import bar, exp_estimate, global_average, relative_variance, sandwich
from ccg_gmx.free_energy.pareto import fit_generalised_pareto, pareto_k
from ccg_gmx.free_energy.run_agreement import block_error, compare_runs, kept_frames
from ccg_gmx.free_energy.torsion_grid import Basin, grid, shifted
from ccg_gmx.free_energy.weights import draw_weights, forward_log_weights

HAND = np.log(np.array([[1.0, 3.0], [2.0, 2.0], [0.0, 4.0]]).clip(1e-300))
HAND[2, 0] = -np.inf


def test_exp_by_hand() -> None:
    estimate = exp_estimate(HAND)
    np.testing.assert_allclose(estimate.f, -np.log(2))
    np.testing.assert_allclose(relative_variance(HAND), [0.5, 0.0, 2.0], atol=1e-15)
    np.testing.assert_allclose(estimate.variance, [0.25, 0.0, 1.0], atol=1e-15)
    np.testing.assert_allclose(estimate.bias, [0.125, 0.0, 0.5], atol=1e-15)


def test_point_without_any_weight_is_unknown() -> None:
    estimate = exp_estimate(np.full((1, 4), -np.inf))
    assert estimate.f[0] == estimate.variance[0] == estimate.bias[0] == np.inf
    assert kish_ess(np.full((1, 4), -np.inf))[0] == 0
    assert largest_weight(np.full((1, 4), -np.inf))[0] == 1


def test_weights_far_beyond_float_range() -> None:
    for offset in (-5000.0, 5000.0):
        np.testing.assert_allclose(exp_estimate(HAND + offset).f, -np.log(2) - offset)
        np.testing.assert_allclose(kish_fraction(HAND + offset), [16 / 20, 1, 0.5])


def test_one_draw_has_no_variance() -> None:
    with pytest.raises(CcgError, match="at least 2"):
        exp_estimate(np.zeros((3, 1)))


def test_diagnostics_by_hand() -> None:
    np.testing.assert_allclose(kish_ess(HAND), [16 / 10, 2, 1])
    np.testing.assert_allclose(largest_weight(HAND), [0.75, 0.5, 1])
    halves = np.log([[1.0, 1.0, 3.0, 3.0]])
    np.testing.assert_allclose(doubling_drift(halves), 0.5 * np.log(3) - np.log(2))
    assert forward_ess_fraction(np.log([1.0, 3.0])) == pytest.approx(4 / (4 * (4 / 3)))
    assert forward_ess_fraction(np.array([0.0, np.inf])) == 0


@given(st.lists(st.floats(-300, 300), min_size=2, max_size=30), st.floats(-500, 500))
def test_fractions_are_bounded_and_do_not_see_an_offset(values: list[float], offset: float) -> None:
    log_w = np.array([values])
    assert 1 / log_w.size - 1e-9 <= kish_fraction(log_w)[0] <= 1 + 1e-9
    assert 0 <= forward_ess_fraction(log_w[0]) <= 1 + 1e-9
    assert kish_fraction(log_w + offset)[0] == pytest.approx(kish_fraction(log_w)[0], rel=1e-6)
    assert forward_ess_fraction(log_w[0] + offset) == pytest.approx(forward_ess_fraction(log_w[0]), rel=1e-6)


@pytest.mark.parametrize("widen", [1.05, 1.15, 1.3])
def test_forward_and_reverse_fractions_agree_with_the_exact_one(widen: float) -> None:
    system = GaussianSystem(widen)
    log_w = draw_weights(system.flow, system.target, np.full((400, 1), 0.5), K=1000, seed=1)
    frames = system.frames(40_000, np.random.default_rng(1))
    forward = forward_log_weights(system.flow, frames) + system.f(frames.s)
    reverse = kish_fraction(log_w)
    assert reverse.mean() == pytest.approx(system.kish_fraction, abs=4 * reverse.std() / 20 + 2e-3)
    assert forward_ess_fraction(forward) == pytest.approx(system.kish_fraction, rel=0.03)


def test_dropped_mode_is_invisible_to_reverse_and_caught_by_forward_diagnostics() -> None:
    """Both flows look equally good from inside; only fine frames tell that one knows half of the states."""
    s, results = np.linspace(-3, 3, 200)[:, None], {}
    for both in (True, False):
        system = TwoModes(both)
        log_w = draw_weights(system.flow, system.target, s, K=128, seed=1)
        frames = system.frames(2000, np.random.default_rng(2))
        forward = forward_log_weights(system.flow, frames)
        f = -np.log(np.exp(log_w).mean()) * np.ones(200)
        results[both] = diagnose(log_w, forward, f, np.full(2000, f[0]))
    whole, half = results[True], results[False]
    assert half.kish_fraction_median > 0.9 * whole.kish_fraction_median
    assert half.pareto_k_bad_fraction <= 0.05
    assert whole.forward_ess_fraction > 0.8
    assert half.forward_ess_fraction < 1e-3
    assert whole.sandwich_gap_kT < 0.1
    assert half.sandwich_gap_kT > 3
    trusted, why = whole.verdict()
    assert trusted
    assert all(line.startswith("these numbers can be trusted because ") for line in why)
    trusted, why = half.verdict()
    assert not trusted
    assert any("misses part of what fine MD visits" in line for line in why)
    assert all(line.startswith("not yet, because ") for line in why)


def test_missing_number_fails_the_verdict() -> None:
    log_w = np.zeros((1, 8))
    result = diagnose(log_w, np.zeros(4), np.zeros(1), np.zeros(4))
    assert np.isnan(result.pareto_k_bad_fraction)
    assert not result.verdict()[0]


def test_points_above_the_cap_are_not_judged_but_counted() -> None:
    log_w = np.zeros((60, 4))
    log_w[50:] = [0, -np.inf, -np.inf, -np.inf]
    f = np.where(np.arange(60) < 50, 0.0, 20.0)
    result = diagnose(log_w, np.zeros(4), f, np.zeros(4))
    assert (result.points, result.points_total, result.kish_fraction_min) == (50, 60, 1.0)
    assert result.pareto_draws == 200, "all there are"
    everything = diagnose(log_w, np.zeros(4), f, np.zeros(4), DiagnosticSettings(f_cap_kT=100))
    assert everything.kish_fraction_min == 0.25


@pytest.mark.parametrize("k", [0.2, 0.5, 0.9])
def test_pareto_k_of_pareto_weights(k: float) -> None:
    rng = np.random.default_rng(1)
    found = pareto_k(-k * np.log(rng.random((300, 2000))))  # w = U^-k has tail index k
    tail = 3 * np.sqrt(2000)
    shrunk = (tail * k + 10 * 0.5) / (tail + 10)
    assert found.mean() == pytest.approx(shrunk, abs=0.04)
    assert found.std() < 0.2


def test_generalised_pareto_fit_recovers_shape_and_scale() -> None:
    rng = np.random.default_rng(2)
    k, sigma, n = 0.4, 3.0, 5000
    x = np.sort(sigma * ((1 - rng.random((40, n))) ** -k - 1) / k, axis=1)
    shape, scale = fit_generalised_pareto(x)
    # Asymptotic standard deviations: (1 + k) / sqrt(n) and sigma sqrt(2 (1 + k) / n).
    assert shape.mean() == pytest.approx(k, abs=4 * 1.4 / np.sqrt(40 * n) + 0.002)
    assert scale.mean() == pytest.approx(sigma, abs=4 * sigma * np.sqrt(2 * 1.4 / (40 * n)) + 0.01)
    assert shape.std() == pytest.approx(1.4 / np.sqrt(n), rel=0.5)


def test_pareto_k_at_the_edges() -> None:
    assert np.isnan(pareto_k(np.zeros((2, 99)))).all()
    few = np.full((1, 200), -np.inf)
    few[0, :5] = 0
    assert pareto_k(few)[0] == np.inf
    assert pareto_k(np.zeros((1, 200)))[0] == -np.inf
    light = pareto_k(np.log(np.random.default_rng(0).random((50, 400))))
    assert (light < 0.3).all(), "bounded weights have a tail index below zero"


def test_sandwich_by_hand_and_with_multiple_draws() -> None:
    bounds = sandwich(np.array([1.0, 3.0]), np.log([[1.0, 3.0], [2.0, 2.0]]))
    assert bounds.lower == -2
    assert bounds.lower_error == pytest.approx(1.0)
    assert bounds.upper == pytest.approx(-np.log(2))
    assert bounds.gap == pytest.approx(2 - np.log(2))


def test_bar_of_equal_weights_and_of_disjoint_sides() -> None:
    estimate = bar(np.full(10, 700.0), np.full(30, 700.0))
    assert estimate.f == pytest.approx(-700)
    assert estimate.error == pytest.approx(0, abs=1e-6)
    with pytest.raises(CcgError, match="do not overlap"):
        bar(np.full(10, np.inf), np.zeros(10))
    with pytest.raises(CcgError, match="nan"):
        bar(np.array([np.nan]), np.zeros(10))
    far = bar(np.full(10, 60.0), np.full(10, -60.0))
    assert far.error > 1e6, "no overlap must show in the error"


def test_global_average_by_hand_and_refusals() -> None:
    mean, error = global_average(np.log([1.0, 3.0]), np.array([0.0, 4.0]))
    assert mean == pytest.approx(3.0)
    # Without the second term the average is 0, without the first 4: moves of 3 and 1, and one degree of freedom.
    assert error == pytest.approx(np.sqrt(0.5 * (3**2 + 1**2)) * 12.7062 / 1.95996, rel=1e-5)
    with pytest.raises(CcgError, match="log_W"):
        global_average(np.zeros(3), np.zeros(4))
    with pytest.raises(CcgError, match="weight"):
        global_average(np.full(3, -np.inf), np.zeros(3))


def test_unseen_is_the_exact_distance_on_the_torus() -> None:
    points = np.radians([[179.0, 0.0], [-161.0, 0.0], [-158.9, 0.0], [165.0, 15.0], [-180.0, 180.0]])
    s = np.radians([[179.0, 0.0]])
    # 0, 20 (across the end), 22.1, hypot(14, 15) = 20.5 and 180 degrees away
    assert unseen(points, s, 20.01).tolist() == [False, False, True, True, True]
    assert not unseen(np.array([[np.pi, -np.pi]]), np.array([[-np.pi, np.pi]]), 1.0).any()


def test_coverage_by_hand_in_one_torsion() -> None:
    """A flat surface and frames at 0: all but 40 of 360 degrees is unseen; 60 of the 120 of a basin at its edge."""
    surface = shifted(np.zeros(360), ("phi",), 300.0)
    basin = Basin(name="side", ranges={"phi": (-10, 30)})
    found = coverage(surface, np.full((5, 1), 1e-6), 20.0, (basin,))
    assert found.unseen_probability == pytest.approx(1 - 41 / 360, abs=2 / 360)
    assert found.basin == "side"
    assert found.unseen_basin_fraction == pytest.approx(9 / 40, abs=0.04)
    everywhere = coverage(surface, np.linspace(-np.pi, np.pi, 30)[:, None], 20.0)
    assert (everywhere.unseen_probability, everywhere.place, everywhere.basin) == (0.0, {}, None)


def test_coverage_names_the_place() -> None:
    """Two Gaussian wells of known weight; frames in one of them."""
    points = grid(72, 2)

    def well(phi: float, psi: float) -> np.ndarray:
        off = (points - np.radians([phi, psi]) + np.pi) % (2 * np.pi) - np.pi
        return -0.5 * (off**2).sum(1) / np.radians(12.0) ** 2

    f = -np.logaddexp(well(-80, 75), well(60, -45) + np.log(0.026))
    surface = shifted(f.reshape(72, 72), ("phi", "psi"), 300.0)
    rng = np.random.default_rng(1)
    s = np.radians([-80, 75]) + np.radians(12.0) * rng.standard_normal((2000, 2))
    found = coverage(surface, s, 20.0)
    assert found.unseen_probability == pytest.approx(0.026 / 1.026, rel=0.05)
    assert found.words() == (
        "2.5% of the probability lies where fine MD has never been, most of it near phi = 60, psi = -45: "
        "start fine runs there"
    )


def test_coverage_of_four_torsions_looks_at_pairs() -> None:
    """Independent torsions with two wells each: short runs leave 4D cells empty, but every pair is covered, or not."""
    n, rng = 24, np.random.default_rng(2)
    x = -np.pi + 2 * np.pi / n * np.arange(n)
    one = 4 * (1 + np.cos(2 * x))  # wells at +-90 degrees
    f = sum(np.expand_dims(one, [k for k in range(4) if k != axis]) for axis in range(4))
    names = ("phi1", "psi1", "phi2", "psi2")
    surface = shifted(np.asarray(f), names, 300.0)
    p = np.exp(-one) / np.exp(-one).sum()
    s = x[rng.choice(n, size=(3000, 4), p=p)] + rng.uniform(-0.13, 0.13, (3000, 4))
    assert coverage(surface, s, 20.0).unseen_probability < 0.005
    s = s[(s[:, 1] < 0) | (s[:, 2] < 0)]  # the pair (psi1, phi2) was never positive together
    found = coverage(surface, s, 20.0)
    assert found.unseen_probability == pytest.approx(0.25, abs=0.01)
    assert set(found.place) == {"psi1", "phi2"}
    assert all(60 < value < 120 for value in found.place.values())


def test_coverage_refuses_frames_of_other_torsions() -> None:
    surface = shifted(np.zeros(36), ("phi",), 300.0)
    for s in (np.zeros((4, 2)), np.zeros((0, 1))):
        with pytest.raises(CcgError, match="fine frames of shape"):
            coverage(surface, s, 20.0)


def test_block_error_knows_of_correlation() -> None:
    """AR(1) with correlation time 20 frames: the error of the mean of 4000 is sqrt((1 + a) / (1 - a) / 4000)."""
    rng, a, runs = np.random.default_rng(3), 0.95, 300
    x = np.empty((4000, runs))
    x[0] = rng.standard_normal(runs)
    for t in range(1, 4000):
        x[t] = a * x[t - 1] + np.sqrt(1 - a**2) * rng.standard_normal(runs)
    errors = np.array([block_error(column) for column in x.T])
    assert np.sqrt((errors**2).mean()) == pytest.approx(np.sqrt((1 + a) / (1 - a) / 4000), rel=0.10)
    assert block_error(np.zeros(1)) == np.inf


def test_runs_that_agree_and_one_that_does_not() -> None:
    """400 sets of 6 equal runs: what is certain of a distance stays below 0.3 kT; a run off by 5 kT is named."""
    rng, run = np.random.default_rng(4), np.repeat(np.arange(6), 100)
    found = [compare_runs(0.5 + 0.8 * rng.standard_normal((2, 600)), run) for _ in range(400)]
    assert max(one.disagreement_kT for one in found if one) < 0.3
    forward = 0.5 + 0.8 * rng.standard_normal((2, 600))
    forward[:, run == 3] += 5.0
    off = compare_runs(forward, run)
    assert off is not None
    assert (off.runs, off.furthest_run) == (6, 3)
    assert 4 < off.disagreement_kT < 5
    forward[:, run == 4] = np.inf
    outside = compare_runs(forward, run)
    assert outside is not None
    assert (outside.disagreement_kT, outside.least_ess_fraction, outside.least_run) == (np.inf, 0.0, 4)
    assert compare_runs(forward, np.zeros(600, dtype=int)) is None


def test_one_frame_in_a_tail_is_no_lost_state_but_two_percent_of_a_run_are() -> None:
    """One percent of each run may be left out, which can cost f one percent of a kT; a lost state has more."""
    rng, run, trim = np.random.default_rng(6), np.repeat(np.arange(6), 300), 0.01
    forward = 0.5 + 0.8 * rng.standard_normal((2, 1800))
    clean = compare_runs(forward, run, trim)
    forward[1, 700] = 12.0
    tail, raw = compare_runs(forward, run, trim), compare_runs(forward, run)
    forward[:, 900:906] = 12.0  # the first six frames of run 4
    lost = compare_runs(forward, run, trim)
    assert clean is not None
    assert tail is not None
    assert raw is not None
    assert lost is not None
    assert tail.ess_fraction == pytest.approx(clean.ess_fraction, rel=0.02)
    assert tail.least_ess_fraction > 0.4
    assert raw.ess_fraction < 0.05
    assert lost.ess_fraction < 0.05
    assert (lost.least_run, lost.least_ess_fraction < 1e-3) == (3, True)


def test_frames_that_are_left_out() -> None:
    forward = np.array([[3.0, 1.0, 2.0, 0.0], [0.0, 5.0, 1.0, 2.0]])
    np.testing.assert_array_equal(kept_frames(forward, 0.3), [[0, 1, 2], [0, 1, 2]])
    assert kept_frames(forward, 0.2).shape == (2, 4), "a part of less than one frame leaves out none"
    forward[0, 0] = np.inf  # outside the support of the flow: never left out
    assert kept_frames(forward, 0.3).shape == (2, 4)


def judged(fine: FineEvidence | None = None, hidden: HiddenEvidence | None = None, frames: int = 40):
    rng = np.random.default_rng(5)
    return diagnose(
        0.1 * rng.standard_normal((100, 40)), 0.1 * rng.standard_normal((2, frames)), np.zeros(100), np.zeros(frames),
        fine=fine, hidden=hidden,
    ).verdict()  # fmt: skip


def test_verdict_on_where_fine_md_has_been() -> None:
    f = 3 * np.cos(2 * grid(100, 1)[:, 0])
    surface = shifted(f, ("phi",), 300.0)
    left, right = Basin(name="left", ranges={"phi": (-180, 0)}), Basin(name="right", ranges={"phi": (0, 180)})
    both = np.linspace(-np.pi, np.pi, 40, endpoint=False)[:, None]
    run = np.arange(40) // 20
    trusted, reasons = judged(FineEvidence(both, both, run, surface, (left, right)))
    assert trusted
    assert any("100.00% of the probability" in reason for reason in reasons)
    trusted, reasons = judged(FineEvidence(both[:20], both, run, surface, (left, right)))
    assert not trusted
    assert any("start fine runs there" in reason for reason in reasons)
    assert any("of the basin right" in reason for reason in reasons)
    trusted, reasons = judged(FineEvidence(both, both[:30], run[:30], surface, (left, right)), frames=30)
    assert reasons == [
        "not yet, because only 10 held-out fine frames lie in the basin right (wanted 20): run longer there"
    ]


@pytest.mark.parametrize(
    ("evidence", "trusted", "words"),
    [
        (HiddenEvidence((), True), True, "no slow motion is hidden"),
        (HiddenEvidence((), True, 0.8), True, "within 0.8 kT"),
        (HiddenEvidence((), True, 9.0), False, "the flow misses a state"),
        (HiddenEvidence(("at phi = 0 walkers stay",), True), False, "a slow motion is hidden"),
        (HiddenEvidence(("at phi = 0 walkers stay",), True, 9.0), False, "a slow motion is hidden"),
        (HiddenEvidence(("at phi = 0 walkers stay",), True, 0.8), True, "the flow knows every state"),
        (HiddenEvidence((), False, 0.8), False, "too few walkers"),
    ],
)
def test_verdict_on_hidden_modes(evidence: HiddenEvidence, trusted: bool, words: str) -> None:
    found, reasons = judged(hidden=evidence)
    assert found is trusted
    assert any(words in reason for reason in reasons)


def test_evidence_that_does_not_fit_the_frames_is_refused() -> None:
    surface = shifted(np.zeros(36), ("phi",), 300.0)
    with pytest.raises(CcgError, match="held-out s"):
        judged(FineEvidence(np.zeros((4, 1)), np.zeros((4, 1)), np.zeros(4, dtype=int), surface))
