"""The product shear: exact densities, and a regression that finds what closes a ring."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ccg_gmx.flow.bend import ProductShear
from ccg_gmx.flow.level import ConditionalFlow, FlowSettings
from ccg_gmx.molecule.coordinate import Coordinate

MOVED, STEERING = (0, 1, 4), (2, 3)
COORDINATES = (
    Coordinate("bond 1-2", "bond", "positive", 0.0, 1.0),
    Coordinate("angle 1-2-3", "angle", "polar", 0.0, math.pi),
    Coordinate("torsion 1-2-3-4", "torsion", "window", 0.1, 2.0),
    Coordinate("torsion 2-3-4-5", "torsion", "window", -0.3, 2.5),
)


def random_shear() -> ProductShear:
    """A shear of five rows with any regression."""
    shear = ProductShear(MOVED, STEERING)
    generator = torch.Generator().manual_seed(3)
    shear.matrix.normal_(generator=generator)
    shear.mean.normal_(generator=generator)
    return shear


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_pull_undoes_push() -> None:
    shear, z = random_shear(), normal(5, 40)
    torch.testing.assert_close(shear.pull(shear.push(z)), z, rtol=0, atol=1e-13)


def test_keeps_volume() -> None:
    shear = random_shear()
    jacobian = torch.autograd.functional.jacobian(lambda z: shear.push(z[:, None])[:, 0], normal(5))
    assert float(torch.linalg.det(jacobian)) == pytest.approx(1.0, abs=1e-13)


def test_slope_is_that_of_autograd() -> None:
    """With ln q(x) = f(pull(x)), d ln q / dx by autograd."""
    shear, z, steep = random_shear(), normal(5, 7), normal(5, 7, seed=1)
    x = shear.push(z).requires_grad_()
    (steep * torch.sin(shear.pull(x))).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(shear.push_slope(z, steep * torch.cos(z)), x.grad, rtol=0, atol=1e-12)


def test_fit_recovers_a_known_regression() -> None:
    """Rows are soft, noise along one stiff direction is a hundredth: the coefficients there are found to its size."""
    truth = ProductShear(MOVED, STEERING)
    truth.matrix.copy_(0.3 * normal(3, 3, seed=5))
    n = 20_000
    z = normal(5, n, seed=6)
    stiff = torch.tensor([0.6, 0.0, 0.8], dtype=torch.float64)
    soft = z[list(MOVED)]
    z[list(MOVED)] = soft - 0.99 * stiff[:, None] * (stiff @ soft)
    shear = ProductShear(MOVED, STEERING)
    shear.fit(truth.push(z))
    # Standard error of a coefficient: noise / sqrt(n var(product)), a product of two normals has variance 1 or 2. Six
    # of them bound three coefficients at a confidence of 1 - 6e-9.
    assert float((stiff @ (shear.matrix - truth.matrix)).abs().max()) < 6.0 * 0.01 / math.sqrt(n)
    assert float((shear.matrix - truth.matrix).abs().max()) < 6.0 / math.sqrt(n)


def test_few_values_give_nearly_no_regression() -> None:
    """Ten values of six rows that know nothing of one another: what is fitted explains less than it costs."""
    rows = 12
    shear = ProductShear(range(6), range(6, rows))
    errors = []
    for seed in range(20):
        shear.fit(normal(rows, 10, seed=seed))
        fresh = normal(rows, 2000, seed=100 + seed)
        errors.append(float(shear.pull(fresh)[:6].square().mean()))
    # Without a ridge ten values fit 21 products without rest, and the error of fresh values is several variances.
    assert sum(errors) / len(errors) < 1.5


def test_steering_rows_that_never_change() -> None:
    shear, w = ProductShear(MOVED, STEERING), normal(5, 50)
    w[list(STEERING)] = 0.0
    shear.fit(w)
    assert not shear.matrix.any()


def bent_flow() -> tuple[ConditionalFlow, Tensor]:
    """A flow fitted to an angle that is stiff once the products of two torsions are known."""
    z = normal(4, 6000, seed=2)
    bond, first, second = 0.15 * torch.exp(0.03 * z[0]), 0.2 * z[2].clamp(-4, 4), 0.2 * z[3].clamp(-4, 4)
    angle = 1.9 + 0.02 * z[1] - 1.2 * first * second + 0.8 * first**2
    values = torch.stack([bond, angle, 0.1 + first, -0.3 + second])
    settings = FlowSettings(couplings=0, width=8, lower_width=2, depth=1, bend=True)
    flow = ConditionalFlow(2, 2, COORDINATES, settings, torch.Generator().manual_seed(0))
    flow.fit_scales(values)
    return flow, values


def test_flow_with_a_shear_knows_the_bent_angle() -> None:
    """Its draws keep the width of what is left: 0.02 rad within 5 %; without the shear it would be 0.07."""
    flow, _ = bent_flow()
    generator = torch.Generator().manual_seed(1)
    context = torch.zeros(2, 20_000, dtype=torch.float64)
    with torch.no_grad():
        x, _ = flow.push(flow.base_noise(20_000, generator), context, context)
    first, second = x[2] - 0.1, x[3] + 0.3
    left = x[1] - 1.9 + 1.2 * first * second - 0.8 * first**2
    inner = (first.abs() < 0.4) & (second.abs() < 0.4)
    assert float(left[inner].std()) == pytest.approx(0.02, rel=0.05)


def test_density_is_that_of_autograd() -> None:
    """ln q of draws against the Jacobian of the whole map, and ``push_path`` against autograd."""
    flow, _ = bent_flow()
    z, context = normal(4, 6, seed=4), normal(2, 6, seed=5).requires_grad_()
    x, log_q, by_x, by_context = flow.push_path(z, context, context)
    jacobian = torch.autograd.functional.jacobian(lambda v: flow.push(v.T, context, context)[0].T, z.T.contiguous())
    own = torch.stack([jacobian[k, :, k] for k in range(6)])
    base = -0.5 * z.square().sum(0) - 2.0 * math.log(2.0 * math.pi)
    torch.testing.assert_close(log_q, base - torch.linalg.slogdet(own)[1], rtol=0, atol=1e-11)
    at = x.detach().requires_grad_()
    value = flow.log_prob(at, context, context)
    torch.testing.assert_close(value, log_q, rtol=0, atol=1e-11)
    grad_x, grad_context = torch.autograd.grad(value.sum(), (at, context))
    torch.testing.assert_close(by_x, grad_x, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(by_context, grad_context, rtol=1e-9, atol=1e-9)
