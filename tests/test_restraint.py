"""The torsion restraint: value and gradient against autograd, and the distribution it makes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from ccg_gmx.molecule import nerf
from ccg_gmx.molecule.langevin import Langevin
from ccg_gmx.molecule.restraint import RestrainedEnergy
from ccg_gmx.units import thermal_energy

ATOMS = np.array([[0, 1, 2, 3], [1, 3, 4, 5]])


def nothing(x: Tensor) -> tuple[Tensor, Tensor]:
    return torch.zeros(len(x), dtype=x.dtype), torch.zeros_like(x)


def torsions(x: Tensor) -> Tensor:
    last = x.permute(2, 1, 0)
    return torch.stack([nerf.dihedral(*(last[:, atom] for atom in four)) for four in ATOMS.tolist()], dim=1)


def test_energy_and_gradient_against_autograd() -> None:
    x = torch.randn(64, 6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_(True)
    centres = np.random.default_rng(1).uniform(-np.pi, np.pi, (64, 2))
    expected = 7.0 * (1 - torch.cos(torsions(x) - torch.from_numpy(centres))).sum(1)
    (slope,) = torch.autograd.grad(expected.sum(), x)
    energy, gradient = RestrainedEnergy(nothing, ATOMS, centres, 7.0)(x.detach())
    torch.testing.assert_close(energy, expected.detach(), rtol=0, atol=1e-12)
    torch.testing.assert_close(gradient, slope, rtol=1e-10, atol=1e-10)
    # an inner torque: it moves neither the centre of the molecule nor its angular momentum
    torch.testing.assert_close(gradient.sum(1), torch.zeros(64, 3, dtype=torch.float64), rtol=0, atol=1e-9)
    torque = torch.linalg.cross(x.detach(), gradient).sum(1)
    torch.testing.assert_close(torque, torch.zeros(64, 3, dtype=torch.float64), rtol=0, atol=1e-9)


def test_it_adds_to_an_energy_and_leaves_its_tensors_alone() -> None:
    kept = torch.ones(2, dtype=torch.float64), torch.full((2, 6, 3), 5.0, dtype=torch.float64)
    x = torch.randn(2, 6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    energy, gradient = RestrainedEnergy(lambda _: kept, ATOMS, np.zeros((2, 2)), 3.0)(x)
    alone = RestrainedEnergy(nothing, ATOMS, np.zeros((2, 2)), 3.0)(x)
    torch.testing.assert_close(energy, alone[0] + 1)
    torch.testing.assert_close(gradient, alone[1] + 5)
    assert (kept[0] == 1).all()
    assert (kept[1] == 5).all()


def test_atoms_on_a_line_feel_nothing() -> None:
    x = torch.zeros(1, 6, 3, dtype=torch.float64)
    x[0, :, 0] = torch.arange(6)
    energy, gradient = RestrainedEnergy(nothing, ATOMS, np.ones((1, 2)), 3.0)(x)
    assert energy.item() == 0
    assert (gradient == 0).all()


def test_every_walker_is_held_at_its_own_centre() -> None:
    """Four atoms, stiff bonds and angles: the torsion is von Mises with kappa = k / kT around each walker's centre.

    <cos> = I1/I0 and <sin> = 0, at five standard errors of independent walkers.
    """
    kT, k = thermal_energy(300.0), 10.0
    B = 2000
    centre = np.linspace(-np.pi, np.pi, B, endpoint=False)[:, None]
    bonds, theta = torch.tensor([0.15, 0.15, 0.15], dtype=torch.float64), math.radians(110)

    def skeleton(x: Tensor) -> tuple[Tensor, Tensor]:
        r = x.detach().requires_grad_(True)
        with torch.enable_grad():
            d = r[:, 1:] - r[:, :-1]
            length = d.norm(dim=2)
            cosine = -(d[:, 1:] * d[:, :-1]).sum(2) / (length[:, 1:] * length[:, :-1])
            energy = 2e4 * ((length - bonds) ** 2).sum(1) + 250 * ((cosine - math.cos(theta)) ** 2).sum(1)
        return energy.detach(), torch.autograd.grad(energy.sum(), r)[0]

    at = torch.from_numpy(centre[:, 0])
    last = [torch.zeros(3, dtype=torch.float64) for _ in range(3)]
    last[1][0] = 0.15
    last[2] = torch.tensor([0.15 - 0.15 * math.cos(theta), 0.15 * math.sin(theta), 0.0], dtype=torch.float64)
    placed = torch.stack(last, dim=1)[..., None].repeat(1, 1, B)
    frame = nerf.local_frames(placed[:, [2]], placed[:, [1]], placed[:, [0]])
    full = torch.full((1, B), 0.15, dtype=torch.float64)
    fourth = nerf.place_atoms(frame, full, torch.full_like(full, theta), at[None])
    x = torch.cat([placed, fourth], dim=1).permute(2, 1, 0).contiguous()
    restrained = RestrainedEnergy(skeleton, np.array([[0, 1, 2, 3]]), centre, k)
    langevin = Langevin(restrained, [12.0] * 4, 300.0, 5.0, 0.002, seed=3)
    means = []

    def collect(state, _) -> None:
        last = state.positions.permute(2, 1, 0)
        means.append(nerf.dihedral(*(last[:, i] for i in range(4))) - at)

    langevin.run(langevin.run(langevin.start(x), 400), 400, every=10, callback=collect)
    off = torch.stack(means)
    from scipy.special import i0e, i1e

    for value, exact in ((torch.cos(off), i1e(k / kT) / i0e(k / kT)), (torch.sin(off), 0.0)):
        walkers = value.mean(0)
        error = float(walkers.std()) / math.sqrt(B)
        assert error < 0.01
        assert abs(float(walkers.mean()) - exact) < 5 * error


@pytest.mark.parametrize(
    ("atoms", "centres", "k"),
    [(ATOMS, np.zeros((3, 1)), 1.0), (ATOMS[:, :3], np.zeros((3, 2)), 1.0), (ATOMS, np.zeros((3, 2)), 0.0)],
)
def test_wrong_shapes_and_constants_are_refused(atoms: np.ndarray, centres: np.ndarray, k: float) -> None:
    with pytest.raises(ValueError):
        RestrainedEnergy(nothing, atoms, centres, k)


def test_frames_that_do_not_fit_the_centres_are_refused() -> None:
    with pytest.raises(ValueError, match="expected one frame"):
        RestrainedEnergy(nothing, ATOMS, np.zeros((3, 2)), 1.0)(torch.zeros(2, 6, 3, dtype=torch.float64))
