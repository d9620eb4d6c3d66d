"""THEORY section 8 (i) to (iii): every estimator against a known free energy, inside its own stated error."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import chi2 as chi2_law
from systems import GaussianSystem, MuellerBrown, PolarAngleSystem, RadiusSystem, TorusLadder

from ccg_gmx.free_energy.estimators import bar, exp_estimate, global_average, sandwich
from ccg_gmx.free_energy.weights import (
    draw_bead_gradients,
    draw_gradients,
    draw_ladder,
    draw_weights,
    forward_log_weights,
)

CASES = {
    "gaussian": (GaussianSystem(), np.linspace(-2, 2, 9)[:, None]),
    "radius": (RadiusSystem(), np.linspace(0.2, 2.5, 9)[:, None]),
    "polar angle": (PolarAngleSystem(), np.linspace(0.2, 2.9, 9)[:, None]),
    "mueller-brown": (MuellerBrown(), np.linspace(-1.4, 1.1, 9)[:, None]),
}


def variance_interval(n: int, confidence: float = 0.9999) -> tuple[float, float]:
    """Interval of the mean square of n standard normal z-scores."""
    tail = (1 - confidence) / 2
    return chi2_law.ppf(tail, n) / n, chi2_law.ppf(1 - tail, n) / n


@pytest.mark.parametrize("name", CASES)
def test_exp_finds_known_free_energy(name: str) -> None:
    system, s = CASES[name]
    estimate = exp_estimate(draw_weights(system.flow, system.target, s, K=20_000, seed=1))
    z = (estimate.f - system.f(s)) / np.sqrt(estimate.variance)
    assert np.abs(z).max() < 4
    assert np.sqrt(estimate.variance).max() < 0.08, "errors so large that the test would not see a wrong Jacobian"


@pytest.mark.parametrize("name", CASES)
def test_exp_error_is_calibrated(name: str) -> None:
    system, s = CASES[name]
    log_w = draw_weights(system.flow, system.target, np.repeat(s[4:5], 200, axis=0), K=2000, seed=2)
    estimate = exp_estimate(log_w)
    z = (estimate.f - estimate.bias - system.f(s[4:5])) / np.sqrt(estimate.variance)
    low, high = variance_interval(200)
    assert low < np.mean(z**2) < high


def test_wrong_jacobian_is_seen() -> None:
    right, wrong = RadiusSystem(), RadiusSystem(jacobian_power=2.0)
    s = np.linspace(0.2, 2.5, 9)[:, None]
    estimate = exp_estimate(draw_weights(wrong.flow, wrong.target, s, K=20_000, seed=1))
    z = (estimate.f - right.f(s)) / np.sqrt(estimate.variance)
    assert np.abs(z).max() > 20


def test_bias_estimate_matches_exact_bias() -> None:
    system = GaussianSystem(widen=2.0)
    K = 32
    estimate = exp_estimate(draw_weights(system.flow, system.target, np.zeros((20_000, 1)), K=K, seed=3))
    bias = estimate.f.mean() - system.f(np.zeros((1, 1)))[0]
    error = estimate.f.std() / np.sqrt(len(estimate.f))
    exact = (1 / system.kish_fraction - 1) / (2 * K)
    assert bias > 10 * error, "the test must resolve the bias"
    assert bias == pytest.approx(exact, abs=4 * error + 0.1 * exact)
    assert estimate.bias.mean() == pytest.approx(exact, rel=0.1)


def test_mean_force_is_exact_derivative_and_calibrated() -> None:
    system, rng = GaussianSystem(), np.random.default_rng(4)
    s, b = rng.normal(size=(400, 1)), rng.normal(size=(400, 1))
    draws = draw_bead_gradients(system.flow, system.target, s, b, K=256, seed=4)
    assert draws.gradient is not None
    assert draws.gradient_error is not None
    # The proposal has the exact conditional mean, so (s, b) only shift y: every draw has the same slope.
    np.testing.assert_allclose(draws.gradient, system.bead_gradient(s, b), atol=1e-12)
    assert draws.gradient_error.max() < 1e-12
    shifted = GaussianSystem()
    shifted.flow.rest = lambda s, b: (0.1 * s + 0.2 * b, 0 * b + 0.8)
    draws = draw_bead_gradients(shifted.flow, shifted.target, s, b, K=256, seed=5)
    assert draws.gradient is not None
    z = (draws.gradient - system.bead_gradient(s, b)) / draws.gradient_error
    low, high = variance_interval(400)
    for column in z.T:
        assert low < np.mean(column**2) < high


def test_mean_force_of_s_is_exact_where_the_flow_has_the_shape_of_p() -> None:
    """A flow that is too wide by the same factor everywhere has d ln w = d ln Z for every draw."""
    system, s = TorusLadder(widen=1.6, shift=0.3), np.random.default_rng(8).uniform(-np.pi, np.pi, (50, 2))
    draws = draw_gradients(system.flow, system.target, s, K=8, seed=8)
    np.testing.assert_allclose(draws.gradient, system.gradient(s), atol=1e-11)
    assert draws.gradient_error.max() < 1e-11
    assert draws.b is None


@pytest.mark.parametrize("K", [16, 64])
def test_mean_force_of_s_is_calibrated(K: int) -> None:
    system = TorusLadder(widen=1.6, vary=0.3, shift=0.3, member=2, rough=0.1)
    s = np.random.default_rng(9).uniform(-np.pi, np.pi, (2000, 2))
    draws = draw_gradients(system.flow, system.target, s, K, seed=9)
    z = (draws.gradient - system.gradient(s)) / draws.gradient_error
    assert np.abs(z.mean(axis=0)).max() < 0.1
    covered = (np.abs(z) < 1.96).mean(axis=0)  # of 2000: known to half a per cent
    assert (covered > 0.92).all()
    assert (covered < 0.98).all()


def test_mean_force_integrates_to_nothing_around_a_loop_and_to_the_difference_along_a_path() -> None:
    """Loops that close through the period of phi, loops that do not, and open paths between two EXP estimates."""
    system, count, z = TorusLadder(widen=1.5, vary=0.3, shift=0.3, member=3, rough=0.1), 40, {}
    t = 2 * np.pi * np.arange(count) / count
    node, weight = np.polynomial.legendre.leggauss(count)
    shapes = {
        "around phi": (np.stack([t - np.pi, 0 * t + 0.5], 1), np.stack([t**0, 0 * t], 1) * 2 * np.pi / count),
        "circle": (np.stack([np.cos(t), np.sin(t)], 1), np.stack([-np.sin(t), np.cos(t)], 1) * 2 * np.pi / count),
        "path": (np.stack([node, 1.5 * node], 1), np.outer(weight, [1.0, 1.5])),
    }
    for name, (s, step) in shapes.items():
        # Each place of the loop or path 100 times, with draws of its own: 100 independent integrals.
        draws = draw_gradients(system.flow, system.target, np.tile(s, (100, 1)), K=64, seed=10)
        work = (draws.gradient.reshape(100, count, 2) * step).sum(axis=(1, 2))
        error2 = ((draws.gradient_error.reshape(100, count, 2) * step) ** 2).sum(axis=2)
        if name == "path":
            ends = np.tile([[-1.0, -1.5], [1.0, 1.5]], (100, 1))
            exp = exp_estimate(draw_weights(system.flow, system.target, ends, K=2000, seed=11))
            work = work - np.diff((exp.f - exp.bias).reshape(100, 2))[:, 0]
            error2 = np.concatenate([error2, exp.variance.reshape(100, 2)], axis=1)
        z[name] = work / np.sqrt(error2.sum(axis=1))
    low, high = variance_interval(100)
    for name, scores in z.items():
        assert abs(scores.mean()) < 0.4, name
        assert low < np.mean(scores**2) < high, name


@pytest.mark.parametrize("system", [GaussianSystem(), RadiusSystem()], ids=["gaussian", "radius"])
def test_sandwich_and_bar_with_frames_normalised_by_f(system) -> None:
    rng = np.random.default_rng(6)
    frames = system.frames(4000, rng)
    forward = forward_log_weights(system.flow, frames) + system.f(frames.s)
    reverse = draw_weights(system.flow, system.target, frames.s, K=1, seed=6) + system.f(frames.s)[:, None]
    bounds = sandwich(forward, reverse)
    assert bounds.lower + 4 * bounds.lower_error < 0 < bounds.upper - 4 * bounds.upper_error
    estimate = bar(forward, reverse)
    assert abs(estimate.f) < 4 * estimate.error
    assert estimate.error < 0.03


def test_bar_error_is_calibrated_and_beats_exp() -> None:
    system, rng = GaussianSystem(widen=1.6), np.random.default_rng(7)
    z, one_sided = [], []
    for seed in range(200):
        frames = system.frames(200, rng)
        forward = forward_log_weights(system.flow, frames) + system.f(frames.s)
        reverse = (draw_weights(system.flow, system.target, frames.s, 1, seed)[:, 0] + system.f(frames.s))[None]
        estimate = bar(forward, reverse)
        z.append(estimate.f / estimate.error)
        one_sided.append(exp_estimate(reverse).f[0] / estimate.error)
    low, high = variance_interval(200)
    assert low < np.mean(np.square(z)) < high
    assert np.mean(np.square(one_sided)) > np.mean(np.square(z))


def test_global_average_is_exact_and_calibrated_for_clustered_draws() -> None:
    system = GaussianSystem()
    z = []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        s = rng.normal(scale=1.5, size=(300, 1))
        log_rho = -0.5 * (s[:, 0] / 1.5) ** 2
        log_w, b = draw_ladder(system.flow, system.target, s, K=8, seed=seed)
        product = s[:, None, 0] * b[..., 0]
        mean, error = global_average(log_w - log_rho[:, None], np.stack([product, b[..., 0] ** 2], axis=-1))
        z.append((mean - [system.covariance[0, 1], system.covariance[1, 1]]) / error)
    low, high = variance_interval(200)
    for column in np.array(z).T:
        assert low < np.mean(column**2) < high
