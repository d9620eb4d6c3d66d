"""Estimators and diagnostics on numbers that can be worked out by hand, and on weights with known tails."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from systems import GaussianSystem, TwoModes

from ccg_gmx.errors import CcgError
from ccg_gmx.free_energy.diagnostics import (
    DiagnosticSettings,
    diagnose,
    doubling_drift,
    forward_ess_fraction,
    kish_ess,
    kish_fraction,
    largest_weight,
)
from ccg_gmx.free_energy.estimators import bar, exp_estimate, global_average, relative_variance, sandwich
from ccg_gmx.free_energy.pareto import fit_generalised_pareto, pareto_k
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
