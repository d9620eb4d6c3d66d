"""Weights: what counts, what is refused, and what the same seed gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from systems import GaussianSystem, TorusLadder, TwoModes

from ccg_gmx.errors import CcgError
from ccg_gmx.flow.conditional import FlowSettings, LadderFlow
from ccg_gmx.free_energy.weights import (
    draw_bead_gradients,
    draw_gradients,
    draw_ladder,
    draw_weights,
    forward_log_weights,
    log_weights,
)
from ccg_gmx.molecule.coordinate import Coordinate

SYSTEM = GaussianSystem()
S = np.linspace(-1, 1, 5)[:, None]


def wall(value: float):
    """The Gaussian target with ``value`` wherever y > 0."""
    return lambda s, b, y: torch.where(y[:, 0] > 0, value, SYSTEM.target(s, b, y))


def test_log_weights_of_arrays_and_tensors() -> None:
    assert log_weights(np.array([1.0, np.inf]), np.array([2.0, 0.0])).tolist() == [-3.0, -np.inf]
    assert log_weights(torch.tensor([1.0]), torch.tensor([2.0])).tolist() == [-3.0]


def test_same_seed_same_draws_and_float64() -> None:
    first = draw_weights(SYSTEM.flow, SYSTEM.target, S, K=7, seed=1, chunk=10)
    assert first.shape == (5, 7)
    assert first.dtype == np.float64
    np.testing.assert_array_equal(first, draw_weights(SYSTEM.flow, SYSTEM.target, S, K=7, seed=1, chunk=10))
    assert not np.isclose(first, draw_weights(SYSTEM.flow, SYSTEM.target, S, K=7, seed=2, chunk=10)).any()


@pytest.mark.parametrize("chunk", [1, 3, 8, 1000])
def test_every_draw_belongs_to_its_point(chunk: int) -> None:
    seen, calls = [], []

    def target(s, b, y):
        seen.append(s[:, 0])
        return 0 * b[:, 0]

    _, b = draw_ladder(
        SYSTEM.flow, target, S, K=3, seed=1, chunk=chunk, progress=lambda done, total: calls.append((done, total))
    )
    np.testing.assert_array_equal(torch.cat(seen).numpy().reshape(5, 3), np.repeat(S, 3, axis=1))
    assert b.shape == (5, 3, 1)
    assert calls[-1] == (15, 15)
    assert len(calls) == -(-15 // chunk)


def test_forbidden_draw_has_weight_zero_and_still_counts() -> None:
    K = 4000
    log_w = draw_weights(SYSTEM.flow, wall(float("inf")), np.zeros((50, 1)), K=K, seed=1)
    share = np.isneginf(log_w).mean()
    assert share == pytest.approx(0.5, abs=4 * 0.5 / np.sqrt(log_w.size))
    # y > 0 is half of the mass at s = 0; averaging over the draws kept would give the whole of it.
    half = np.exp(log_w).mean() / np.exp(-SYSTEM.f(np.zeros((1, 1)))[0])
    assert half == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_invalid_energy_is_an_error_that_counts(value: float) -> None:
    with pytest.raises(CcgError, match=r"\d+ of 40 draws have no valid energy"):
        draw_weights(SYSTEM.flow, wall(value), S, K=8, seed=1)


def test_invalid_density_is_an_error() -> None:
    class Broken(TwoModes):
        def log_prob(self, b, y, s):
            return torch.full((len(s),), float("nan"), dtype=torch.float64)

    system = Broken(both=True)
    with pytest.raises(CcgError, match="40 of 40 draws have no valid log-density"):
        draw_weights(system.flow, system.target, S, K=8, seed=1)


def test_gradient_is_autograd_of_the_logsumexp_at_fixed_noise() -> None:
    s, b, K, seed = np.array([[0.3], [-0.7]]), np.array([[0.1], [0.5]]), 16, 3
    system = GaussianSystem()
    system.flow.rest = lambda s, b: (torch.sin(s) * b, 0.7 + 0.1 * b**2)
    draws = draw_bead_gradients(system.flow, system.target, s, b, K, seed)
    at = torch.tensor(np.concatenate([s, b], axis=1), requires_grad=True)
    rows = at.repeat_interleave(K, dim=0)
    _, z = system.flow.base_noise(2 * K, torch.Generator().manual_seed(seed))
    y, log_q = system.flow.push_rest(rows[:, :1], rows[:, 1:], z)
    log_w = (-system.target(rows[:, :1], rows[:, 1:], y) - log_q).reshape(2, K)
    (expected,) = torch.autograd.grad(-torch.logsumexp(log_w, dim=1).sum(), at)
    np.testing.assert_allclose(draws.gradient, expected, rtol=1e-10)
    np.testing.assert_allclose(draws.log_w, log_w.detach(), rtol=1e-12)
    assert draws.evaluations == 32
    assert np.isnan(draws.log_rho).all(), "an unknown proposal must not pass for a uniform one"


def test_weightless_draw_has_no_say_in_the_gradient() -> None:
    def target(s, b, y):
        beyond = torch.where(y[:, 0] > 0.5, torch.full_like(y[:, 0], float("inf")), 0.0)
        return SYSTEM.target(s, b, y) + beyond * (1 + s[:, 0] ** 2)  # autograd alone gives inf here

    draws = draw_bead_gradients(SYSTEM.flow, target, S, 0 * S, K=64, seed=1)
    assert np.isneginf(draws.log_w).any()
    assert np.isfinite(draws.gradient).all()


def test_one_draw_has_no_error() -> None:
    with pytest.raises(CcgError, match="at least 2"):
        draw_bead_gradients(SYSTEM.flow, SYSTEM.target, S, S, K=1, seed=1)


def test_forward_weights_of_fine_frames() -> None:
    frames = SYSTEM.frames(1000, np.random.default_rng(0))
    log_w = forward_log_weights(SYSTEM.flow, frames, chunk=300)
    # E_p[1 / w] = 1 / Z(s): the harmonic identity, exact for this overlap.
    ratio = np.exp(-(log_w + SYSTEM.f(frames.s)))
    assert ratio.mean() == pytest.approx(1, abs=4 * ratio.std() / np.sqrt(1000))


def test_frame_outside_the_support_is_kept_and_nan_refused() -> None:
    class Half(TwoModes):
        def log_prob(self, b, y, s):
            return torch.where(y[:, 0] > 0, super().log_prob(b, y, s), self.outside)

    system, frames = Half(both=True), TwoModes(both=True).frames(100, np.random.default_rng(0))
    system.outside = torch.tensor(-np.inf)
    assert np.isposinf(forward_log_weights(system, frames)[frames.y[:, 0] < 0]).all()
    system.outside = torch.tensor(np.nan)
    with pytest.raises(CcgError, match=f"{(frames.y[:, 0] < 0).sum()} of 100 fine frames"):
        forward_log_weights(system, frames)


def test_gradient_by_s_is_autograd_of_the_logsumexp_at_fixed_noise() -> None:
    system, s, K, seed = TorusLadder(member=1, rough=0.2), np.array([[0.3, 1.0], [-0.7, 2.0]]), 16, 3
    draws = draw_gradients(system.flow, system.target, s, K, seed, log_rho=np.array([1.0, 2.0]))
    at = torch.tensor(s, requires_grad=True)
    rows = at.repeat_interleave(K, dim=0)
    b, y, log_q = system.flow.push(rows, *system.flow.base_noise(2 * K, torch.Generator().manual_seed(seed)))
    log_w = (-system.target(rows, b, y) - log_q).reshape(2, K)
    (expected,) = torch.autograd.grad(-torch.logsumexp(log_w, dim=1).sum(), at)
    np.testing.assert_allclose(draws.gradient, expected, rtol=1e-10)
    np.testing.assert_allclose(draws.log_w, draw_weights(system.flow, system.target, s, K, seed), rtol=1e-12)
    assert (draws.b, draws.evaluations, draws.log_rho.tolist()) == (None, 32, [1.0, 2.0])


def test_gradients_of_the_ladder_flow() -> None:
    """The flow that training uses, an untrained one: the same weights as draw_weights, slopes that differences see."""
    b = (Coordinate("bond", "bond", "positive"), Coordinate("angle", "angle", "polar"))
    y = (Coordinate("torsion", "torsion", "circle"), Coordinate("offset", "torsion", "window", 2.0, 1.0))
    flow = LadderFlow(2, b, y, FlowSettings(couplings=1, width=8, coupling_width=4, circle_width=4)).double()

    def target(s, b, y):
        return (
            (b**2).sum(dim=1) * (2 + torch.cos(s[:, 0])) + torch.cos(y[:, 0] - s[:, 1]) + y[:, 1] * torch.sin(s[:, 0])
        )

    s, h, K = np.array([[0.3, 1.0]]), 1e-5, 64
    draws = draw_gradients(flow, target, s, K, seed=1)
    np.testing.assert_allclose(draws.log_w, draw_weights(flow, target, s, K, seed=1), rtol=1e-12)
    for axis in range(2):
        step = h * np.eye(2)[axis]
        f = [-np.log(np.exp(draw_weights(flow, target, s + sign * step, K, seed=1)).mean()) for sign in (1, -1)]
        assert draws.gradient[0, axis] == pytest.approx((f[0] - f[1]) / (2 * h), abs=1e-7)


def test_one_draw_with_all_the_weight_is_no_certainty() -> None:
    def target(s, b, y):
        return torch.where(y[:, 0] == y[:, 0].min(), 0.0, 2000.0) + s[:, 0] * b[:, 0] + 0 * y[:, 0]

    draws = draw_bead_gradients(SYSTEM.flow, target, S[:1] + 3.0, S[:1] + 3.0, K=16, seed=1)
    np.testing.assert_allclose(draws.gradient_error, np.abs(draws.gradient))
