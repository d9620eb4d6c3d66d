"""The reduced target: volume element, count of energies, and a partition function known in closed form."""

import math

import pytest
import torch
from molecules import ALANINE_BEADS, ALANINE_TORSIONS, Molecule, alanine_dipeptide, butane

from ccg_gmx.molecule.target import ReducedTarget
from ccg_gmx.molecule.zmatrix import InternalCoordinates
from ccg_gmx.units import thermal_energy

torch.set_num_threads(1)


def test_partition_function_of_a_gaussian_chain():
    """Z of four atoms in U = k/2 sum |r_i - centroid|^2, known exactly, checks the volume element and its constant.

    At fixed translation Z = (2 pi kT / k)^(3 (N-1) / 2) N^(3/2); the rotation takes 8 pi^2 of it. Draws are chains of
    independent Gaussian steps, wide enough to bound the weights: bond density b^2 exp(-b^2 / 2 sigma^2), sin(angle).
    """
    chain = Molecule(["C"] * 4, butane().positions[:4], butane().bonds[:3])
    coordinates = InternalCoordinates(chain.tree([0, 1, 2, 3]), [(0, 1, 2, 3)])
    spread, sigma, n = 0.1, 0.185, 200_000  # sigma / spread = sqrt(2 + sqrt 2), the widest mode of the steps
    stiffness = thermal_energy(300.0) / spread**2
    target = ReducedTarget(coordinates, lambda r: stiffness / 2 * (r - r.mean(1, True)).square().sum((1, 2)), 300.0)
    generator = torch.Generator().manual_seed(0)
    bonds = sigma * torch.randn(n, 3, 3, generator=generator, dtype=torch.float64).norm(dim=2)
    angles = torch.acos(2 * torch.rand(n, 2, generator=generator, dtype=torch.float64) - 1)
    torsion = 2 * math.pi * torch.rand(n, 1, generator=generator, dtype=torch.float64) - math.pi
    log_q = (2 * bonds.log() - bonds.square() / (2 * sigma**2)).sum(1) + angles.sin().log().sum(1)
    log_q -= 3 * (math.log(sigma**3) + 0.5 * math.log(math.pi / 2)) + 2 * math.log(2.0) + math.log(2 * math.pi)
    y = torch.zeros(n, 0, dtype=torch.float64)
    weights = torch.exp(-target(torsion, torch.cat((bonds, angles), 1), y) - log_q)
    exact = (2 * math.pi * spread**2) ** 4.5 * 4**1.5 / (8 * math.pi**2)
    error = float(weights.std() / math.sqrt(n))
    assert error < 0.02 * exact
    assert abs(float(weights.mean()) - exact) < 3.3 * error  # 99.9 %


def test_value_and_count():
    coordinates = InternalCoordinates(alanine_dipeptide().tree(ALANINE_BEADS), ALANINE_TORSIONS)
    r = torch.as_tensor(coordinates.tree.reference).repeat(3, 1, 1)
    s, b, y = coordinates.split(r)
    target = ReducedTarget(coordinates, lambda frames: frames.square().sum((1, 2)), 300.0)
    expected = coordinates.join(s, b, y).square().sum((1, 2)) / thermal_energy(300.0) - coordinates.log_jacobian(b, y)
    assert torch.allclose(target(s, b, y), expected, rtol=1e-14)
    target(s[:2], b[:2], y[:2])
    target.reduced_energy(r)
    assert target.evaluations == 3 + 2 + 3


def test_gradient_reaches_every_coordinate():
    coordinates = InternalCoordinates(butane().tree([0, 1, 2, 3]), [(0, 1, 2, 3)])
    values = coordinates.split(torch.as_tensor(coordinates.tree.reference)[None])
    q = [value.clone().requires_grad_() for value in values]
    weights = torch.arange(14.0, dtype=torch.float64)[:, None]
    target = ReducedTarget(coordinates, lambda r: (weights * r).sin().sum((1, 2)) * 1e3, 300.0)
    for gradient in torch.autograd.grad(target(*q).sum(), q):
        assert (gradient != 0).all()


def test_temperature_is_checked():
    coordinates = InternalCoordinates(butane().tree([0, 1, 2, 3]), [(0, 1, 2, 3)])
    with pytest.raises(ValueError, match="temperature"):
        ReducedTarget(coordinates, lambda r: r.sum((1, 2)), -300.0)
