"""The bias on torsions: values, forces and smoothness."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ccg_gmx.molecule.nerf import dihedral
from ccg_gmx.molecule.torsion_bias import TorsionBias, biased

TORSIONS = [(0, 1, 2, 3), (1, 2, 3, 4), (5, 3, 2, 0)]


def points(n: int) -> np.ndarray:
    return -np.pi + 2 * np.pi / n * np.arange(n)


def smooth_map(n: int, m: int) -> np.ndarray:
    x, y = points(n)[:, None], points(m)[None, :]
    return 10 * np.cos(x - 0.3) + 5 * np.sin(2 * y + x) + 2 * np.cos(3 * x) * np.sin(y)


def smooth_value(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return 10 * torch.cos(x - 0.3) + 5 * torch.sin(2 * y + x) + 2 * torch.cos(3 * x) * torch.sin(y)


def chains(count: int, seed: int = 0) -> torch.Tensor:
    """Random zigzag chains of six atoms, no three of them in line."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.tensor([[0.0, 0, 0], [0.1, 0.1, 0], [0.2, 0, 0], [0.3, 0.1, 0], [0.4, 0, 0], [0.35, 0.2, 0.1]])
    return base.double() + 0.04 * torch.randn(count, 6, 3, generator=generator, dtype=torch.float64)


def autograd_torsions(x: torch.Tensor) -> torch.Tensor:
    columns = x.permute(2, 1, 0)
    return torch.stack([dihedral(*(columns[:, atom] for atom in atoms)) for atoms in TORSIONS], dim=-1)


@pytest.fixture(scope="module")
def bias() -> TorsionBias:
    maps = [((0, 1), smooth_map(48, 36)), ((2,), 3 * np.cos(points(30) + 1)), ((2, 0), smooth_map(40, 40))]
    return TorsionBias(TORSIONS, maps)


def test_torsions_are_those_of_the_internal_coordinates(bias: TorsionBias):
    x = chains(200)
    torch.testing.assert_close(bias.torsions(x), autograd_torsions(x), rtol=0, atol=1e-12)


def test_maps_interpolate_their_grid_and_are_periodic(bias: TorsionBias):
    values = smooth_map(12, 12)
    one = TorsionBias(TORSIONS[:2], [((0, 1), values)])
    s = np.stack(np.meshgrid(points(12), points(12), indexing="ij"), axis=-1).reshape(-1, 2)
    np.testing.assert_allclose(one.energy(s), values.ravel(), rtol=0, atol=1e-12)
    np.testing.assert_allclose(one.energy(s + 2 * np.pi), values.ravel(), rtol=0, atol=1e-11)
    left, right = np.array([[np.pi - 1e-13, 0.3]]), np.array([[-np.pi, 0.3]])
    np.testing.assert_allclose(one.energy(left), one.energy(right), rtol=0, atol=1e-10)


def test_the_spline_converges_with_the_fourth_power_of_the_spacing():
    s = np.random.default_rng(1).uniform(-np.pi, np.pi, (500, 2))
    exact = smooth_value(*torch.from_numpy(s).T).numpy()
    errors = []
    for n in (16, 32, 64):
        one = TorsionBias(TORSIONS[:2], [((0, 1), smooth_map(n, n))])
        errors.append(np.abs(one.energy(s) - exact).max())
    order = np.log2(np.array(errors[:-1]) / errors[1:])
    assert np.all((order > 3.5) & (order < 5.0)), order


def test_forces_are_those_of_autograd():
    """With maps so fine that the spline is the function, autograd of the same function gives the same forces."""
    bias = TorsionBias(TORSIONS, [((0, 1), smooth_map(720, 720)), ((2, 0), smooth_map(720, 720))])
    x = chains(100, seed=2).requires_grad_()
    s = autograd_torsions(x)
    exact = smooth_value(s[:, 0], s[:, 1]) + smooth_value(s[:, 2], s[:, 0])
    (expected,) = torch.autograd.grad(exact.sum(), x)
    energy, gradient = bias.energy_and_gradient(x.detach())
    torch.testing.assert_close(energy, exact.detach(), rtol=0, atol=1e-6)
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-3)
    assert expected.abs().max() > 100


def test_forces_are_the_finite_differences_of_the_energy(bias: TorsionBias):
    x = chains(6, seed=3)
    _, gradient = bias.energy_and_gradient(x)
    step = 1e-6
    for atom in range(6):
        for axis in range(3):
            shift = torch.zeros_like(x)
            shift[:, atom, axis] = step
            slope = (bias.energy_and_gradient(x + shift)[0] - bias.energy_and_gradient(x - shift)[0]) / (2 * step)
            torch.testing.assert_close(gradient[:, atom, axis], slope, rtol=1e-6, atol=1e-4)


def test_no_net_force_and_no_torque(bias: TorsionBias):
    x = chains(50, seed=4)
    _, gradient = bias.energy_and_gradient(x)
    assert gradient.sum(1).abs().max() < 1e-9
    assert torch.linalg.cross(x, gradient).sum(1).abs().max() < 1e-9


def test_second_derivatives_are_continuous_across_grid_lines():
    rough = np.random.default_rng(5).normal(size=8)
    bias = TorsionBias(TORSIONS[:1], [((0,), rough)])
    step = 1e-4

    def curvature(at: float) -> float:
        low, middle, high = bias.energy(np.array([[at - step], [at], [at + step]]))
        return float((low - 2 * middle + high) / step**2)

    for knot in points(8):
        jump = abs(curvature(knot + 2 * step) - curvature(knot - 2 * step))
        assert jump < 2e-2 * np.abs([curvature(p) for p in points(8)]).max()


def test_biased_is_the_sum(bias: TorsionBias):
    x = chains(5, seed=6)

    def springs(r: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return 0.5 * (r**2).sum((1, 2)), r.clone()

    energy, gradient = biased(springs, bias)(x)
    v, by_r = bias.energy_and_gradient(x)
    torch.testing.assert_close(energy, springs(x)[0] + v)
    torch.testing.assert_close(gradient, x + by_r)
    np.testing.assert_allclose(bias.energy(bias.torsions(x).numpy()), v.numpy(), rtol=1e-13)


@pytest.mark.parametrize(
    ("quadruples", "maps"),
    [
        ([(0, 1, 2, 2)], []),
        ([(0, 1, 2)], []),
        ([(-1, 1, 2, 3)], []),
        (TORSIONS, [((0, 3), np.zeros((8, 8)))]),
        (TORSIONS, [((1, 1), np.zeros((8, 8)))]),
        (TORSIONS, [((0, 1), np.zeros(8))]),
        (TORSIONS, [((0,), np.full(8, np.inf))]),
        (TORSIONS, [((0,), np.zeros(3))]),
    ],
)
def test_what_is_no_bias_is_refused(quadruples: list, maps: list):
    with pytest.raises(ValueError, match="need"):
        TorsionBias(quadruples, maps)


def test_positions_of_another_kind_are_refused(bias: TorsionBias):
    with pytest.raises(ValueError, match="float64"):
        bias.torsions(chains(1).float())
    with pytest.raises(ValueError, match="positions must be"):
        bias.torsions(chains(1)[:, :5])
