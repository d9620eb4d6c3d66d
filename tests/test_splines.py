"""Rational-quadratic splines: inverse, derivative, identity, tails, circle, and the derivative written by hand."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ccg_gmx.flow.splines import SLOPE_OFFSET, circular_spline, linear_tail_spline, wrap

torch.set_num_threads(1)

LINE = partial(linear_tail_spline, bound=3.0)
EAGER_LINE, EAGER_CIRCLE = partial(LINE, compiled=False), partial(circular_spline, compiled=False)
KINDS = [(LINE, -1), (circular_spline, 0), (EAGER_LINE, -1), (EAGER_CIRCLE, 0)]


def raw_parameters(bins: int, extra: int, size: float, seed: int, dims: int = 3, batch: int = 200) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return size * torch.randn(3 * bins + extra, dims, batch, generator=generator, dtype=torch.float64)


def points(seed: int, dims: int = 3, batch: int = 200, reach: float = math.pi) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return reach * (2.0 * torch.rand(dims, batch, generator=generator, dtype=torch.float64) - 1.0)


@pytest.mark.parametrize(("spline", "extra"), KINDS)
@given(bins=st.integers(2, 12), size=st.floats(0.0, 8.0), seed=st.integers(0, 10_000))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_inverse(spline, extra, bins, size, seed):
    raw, x = raw_parameters(bins, extra, size, seed), points(seed + 1)
    y, log_slope, _ = spline(x, raw)
    back, log_back, _ = spline(y, raw, inverse=True)
    # A rounding error in y is magnified by 1 / slope on the way back, and those of the terms that cancel in the root
    # are as large as the slopes at the ends of the bin. Largest constant in two million points of size 8: 1.24e-12.
    steepest = 1.0 + torch.nn.functional.softplus(raw[2 * bins :] + SLOPE_OFFSET).amax(0)
    magnified = 3e-12 * (1.0 + steepest * torch.exp(-log_slope))
    assert ((back - x).abs() <= magnified).all()
    again, log_again, _ = spline(back, raw)
    torch.testing.assert_close(again, y, rtol=0, atol=1e-11)
    torch.testing.assert_close(log_again, -log_back, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("spline", "extra"), KINDS)
@pytest.mark.parametrize("inverse", [False, True])
def test_slope_is_the_derivative(spline, extra, inverse):
    raw, x = raw_parameters(8, extra, 1.5, 3), points(4).requires_grad_()
    y, log_slope, curvature = spline(x, raw, inverse=inverse)
    (derivative,) = torch.autograd.grad(y.sum(), x, retain_graph=True)
    torch.testing.assert_close(torch.log(derivative), log_slope.detach(), rtol=0, atol=1e-10)
    (bent,) = torch.autograd.grad(log_slope.sum(), x)
    torch.testing.assert_close(curvature.detach(), bent, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("spline", "extra"), KINDS)
@pytest.mark.parametrize("inverse", [False, True])
def test_hand_written_derivative(spline, extra, inverse):
    raw = raw_parameters(5, extra, 1.0, 5, dims=2, batch=6).requires_grad_()
    x = points(6, dims=2, batch=6, reach=3.1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, raw: spline(x, raw, inverse=inverse)[:2], (x, raw), atol=1e-6)


@pytest.mark.parametrize(("spline", "extra"), KINDS)
def test_zero_parameters_are_the_identity(spline, extra):
    x = points(7)
    y, log_slope, _ = spline(x, raw_parameters(8, extra, 0.0, 0))
    torch.testing.assert_close(y, x, rtol=0, atol=1e-14)
    torch.testing.assert_close(log_slope, torch.zeros_like(x), rtol=0, atol=1e-14)


def test_tails_join_smoothly():
    raw = raw_parameters(8, -1, 2.0, 8, batch=4)
    for edge in (-3.0, 3.0):
        x = torch.full((3, 4), edge, dtype=torch.float64)
        for step in (-1e-10, 1e-10):
            y, log_slope, _ = LINE(x + step, raw)
            torch.testing.assert_close(y, x + step, rtol=0, atol=1e-11)
            torch.testing.assert_close(log_slope, torch.zeros_like(x), rtol=0, atol=1e-4)
    far = torch.full((3, 4), 1e30, dtype=torch.float64)
    assert torch.equal(LINE(far, raw)[0], far)


def test_circle_closes_with_equal_slope():
    raw = raw_parameters(8, 0, 2.0, 9, batch=50)
    end = torch.full((3, 50), math.pi, dtype=torch.float64)
    for inverse in (False, True):
        low, log_low, _ = circular_spline(-end, raw, inverse=inverse)
        high, log_high, _ = circular_spline(end, raw, inverse=inverse)
        torch.testing.assert_close(low, -end, rtol=0, atol=1e-12)
        torch.testing.assert_close(high, end, rtol=0, atol=1e-12)
        torch.testing.assert_close(log_low, log_high, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("spline", "extra"), KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [30.0, 1000.0])
def test_extreme_parameters_stay_finite(spline, extra, dtype, size):
    raw, x = raw_parameters(8, extra, size, 10).to(dtype), points(11).to(dtype)
    for inverse in (False, True):
        raw_leaf, x_leaf = raw.clone().requires_grad_(), x.clone().requires_grad_()
        y, log_slope, _ = spline(x_leaf, raw_leaf, inverse=inverse)
        assert torch.isfinite(y).all()
        assert torch.isfinite(log_slope).all()
        assert (y.abs() <= math.pi * (1 + 1e-5)).all()
        (y.sum() + log_slope.sum()).backward()
        assert torch.isfinite(x_leaf.grad).all()
        assert torch.isfinite(raw_leaf.grad).all()


@given(st.floats(-1e3, 1e3))
@settings(deadline=None, derandomize=True)
def test_wrap(angle):
    wrapped = wrap(torch.tensor(angle, dtype=torch.float64))
    assert -math.pi <= wrapped <= math.pi
    assert math.isclose(math.remainder(angle - float(wrapped), 2 * math.pi), 0.0, abs_tol=1e-9)


@pytest.mark.parametrize(("compiled", "eager", "extra"), [(LINE, EAGER_LINE, -1), (circular_spline, EAGER_CIRCLE, 0)])
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("batch", [1, 7, 8, 21, 64])
def test_kernel_is_the_eager_spline(compiled, eager, extra, inverse, batch):
    """Values to 1e-12; derivatives are magnified by up to 1 / slope^2 on the way back."""
    found = []
    for spline in (compiled, eager):
        raw = raw_parameters(6, extra, 1.5, 12, batch=batch).requires_grad_()
        x = points(13, batch=batch, reach=3.14 if extra == 0 else 4.0).requires_grad_()
        results = spline(x, raw, inverse=inverse)
        loss = (torch.sin(results[0]) + torch.cos(results[1])).sum()
        found.append([*results, *torch.autograd.grad(loss, [x, raw])])
    for one, other, tolerance in zip(*found, [1e-12, 1e-12, 1e-9, 1e-9, 1e-9], strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("spline", [LINE, circular_spline])
def test_kernel_in_single_precision(spline):
    raw, x = raw_parameters(8, -1 if spline is LINE else 0, 1.0, 14), points(15)
    for inverse in (False, True):
        exact, rounded = spline(x, raw, inverse=inverse), spline(x.float(), raw.float(), inverse=inverse)
        torch.testing.assert_close(rounded[0].double(), exact[0], rtol=0, atol=5e-5)
        torch.testing.assert_close(rounded[1].double(), exact[1], rtol=0, atol=1e-3)


def test_nothing_is_hidden_from_a_kernel():
    for bad in ("x", "raw"):
        raw, x = raw_parameters(4, 0, 1.0, 16), points(17)
        (x if bad == "x" else raw)[..., 3] = math.nan
        assert torch.isnan(circular_spline(x, raw)[0][:, 3]).all()
        assert torch.isfinite(circular_spline(x, raw)[0][:, 4:]).all()
