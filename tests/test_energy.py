"""Energies against GROMACS, gradients against finite differences and autograd, invariances."""

from pathlib import Path

import numpy as np
import pytest
import torch
from test_topology import PEROXIDE

from ccg_gmx.engine.energy_check import compare_energies
from ccg_gmx.engine.gromacs import Gmx
from ccg_gmx.errors import TopologyError
from ccg_gmx.molecule.energy import TERMS, ForceField
from ccg_gmx.molecule.interactions import harmonic_angles, harmonic_bonds, nonbonded_pairs, periodic_dihedrals
from ccg_gmx.molecule.topology import Topology, parse_tpr_dump
from ccg_gmx.molecule.trajectory import make_whole, read_frames
from ccg_gmx.units import COULOMB_KJ_MOL_NM_E2


@pytest.fixture(scope="module")
def topology(gmx: Gmx, alanine_tpr: Path) -> Topology:
    return parse_tpr_dump(gmx.dump(alanine_tpr))


@pytest.fixture(scope="module")
def frames(topology: Topology, alanine_trr: Path) -> torch.Tensor:
    read = read_frames(alanine_trr, topology.n_atoms, stride=10)
    return torch.from_numpy(make_whole(read.positions, read.box, topology.bonds))


@pytest.fixture(scope="module")
def force_field(topology: Topology) -> ForceField:
    return ForceField(topology)


def peroxide_frames(count: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    start = torch.tensor([[0.02, 0.09, 0.01], [0.0, 0.0, 0.0], [0.14, 0.0, 0.0], [0.16, -0.03, 0.09]]).double()
    return start + 0.01 * torch.randn(count, 4, 3, generator=generator, dtype=torch.float64)


def test_terms_by_hand():
    """A frame whose bonds, angles and torsion are known: every term written out."""
    x = torch.tensor([[[0.0, 0.1, 0.0], [0.0, 0.0, 0.0], [0.15, 0.0, 0.0], [0.15, 0.0, 0.1]]], dtype=torch.float64)
    terms = {name: float(values) for name, values in ForceField(parse_tpr_dump(PEROXIDE)).terms(x).items()}
    r14 = np.sqrt(0.15**2 + 2 * 0.1**2)
    assert terms["Bond"] == pytest.approx(0.5 * (2 * 4.5e5 * 0.004**2 + 2e5 * 0.005**2), rel=1e-9)
    assert terms["Angle"] == pytest.approx(2 * 0.5 * 400 * np.radians(10) ** 2, rel=1e-9)
    assert terms["Proper Dih."] == pytest.approx(5 * (1 + np.cos(np.pi)), abs=1e-9)
    assert terms["LJ-14"] == pytest.approx(1e-9 / r14**12, rel=1e-9)
    assert terms["Coulomb-14"] == pytest.approx(0.5 * COULOMB_KJ_MOL_NM_E2 * 0.16 / r14, rel=1e-6)
    assert terms["Per. Imp. Dih."] == terms["LJ (SR)"] == terms["Coulomb (SR)"] == 0.0


def test_kernels_have_the_derivatives_of_their_energies():
    generator = torch.Generator().manual_seed(1)

    def column(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64) + 0.5

    vectors = [torch.randn(3, 4, 6, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    a, b, c = vectors
    cases = [
        (harmonic_bonds(a, column(4, 1), column(4, 1), True), [a]),
        (harmonic_angles(a, b, column(4, 1), column(4, 1), True), [a, b]),
        (periodic_dihedrals(a, b, c, column(5, 4, 1), column(5, 4, 1), True), [a, b, c]),
    ]
    lennard_jones, coulomb, derivatives = nonbonded_pairs(a, column(4, 1), column(4, 1), column(4, 1), True)
    cases.append(((lennard_jones + coulomb, derivatives), [a]))
    for (energy, analytic), inputs in cases:
        by_autograd = torch.autograd.grad(energy.sum(), inputs)
        for mine, theirs in zip(analytic, by_autograd, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("phase", [0.0, 37.0, 180.0])
@pytest.mark.parametrize("multiplicity", [0, 1, 2, 3, 6])
def test_dihedral_of_any_phase_and_multiplicity(phase: float, multiplicity: int):
    text = PEROXIDE.replace("mult=2", f"mult={multiplicity}").replace("phiA= 0.0", f"phiA= {phase}")
    angles = torch.linspace(-3.1, 3.1, 7, dtype=torch.float64)
    x = torch.zeros(7, 4, 3, dtype=torch.float64)
    x[:, 0] = torch.tensor([0.02, 0.1, 0.0], dtype=torch.float64)
    x[:, 2] = torch.tensor([0.15, 0.0, 0.0], dtype=torch.float64)
    # looking from atom 2 to atom 3 along x, IUPAC counts clockwise: from y towards z is positive
    x[:, 3] = torch.stack([torch.full_like(angles, 0.17), 0.1 * angles.cos(), 0.1 * angles.sin()], dim=1)
    expected = 5 * (1 + torch.cos(multiplicity * angles - np.radians(phase)))
    found = ForceField(parse_tpr_dump(text.replace("phiB= 0.0", f"phiB= {phase}"))).terms(x)["Proper Dih."]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


def test_gradient_by_finite_differences():
    force_field, x = ForceField(parse_tpr_dump(PEROXIDE)), peroxide_frames()
    _, gradient = force_field.energy_and_gradient(x)
    step = 1e-6
    for atom in range(4):
        for axis in range(3):
            shift = torch.zeros_like(x)
            shift[:, atom, axis] = step
            slope = (force_field(x + shift) - force_field(x - shift)) / (2 * step)
            torch.testing.assert_close(gradient[:, atom, axis], slope, rtol=1e-6, atol=1e-3)


def test_backward_uses_the_incoming_weights():
    force_field, x = ForceField(parse_tpr_dump(PEROXIDE)), peroxide_frames().requires_grad_()
    weights = torch.arange(5, dtype=torch.float64)
    (weights * force_field(x)).sum().backward()
    _, gradient = force_field.energy_and_gradient(x.detach())
    torch.testing.assert_close(x.grad, weights[:, None, None] * gradient, rtol=1e-12, atol=1e-12)


def test_wrong_shape_and_precision_are_refused():
    force_field = ForceField(parse_tpr_dump(PEROXIDE))
    for wrong in (torch.zeros(4, 3).double(), torch.zeros(2, 5, 3).double(), torch.zeros(2, 4, 3)):
        with pytest.raises(ValueError, match="positions must be"):
            force_field(wrong)
    with pytest.raises(TopologyError, match="1 constraints"):
        ForceField(parse_tpr_dump(PEROXIDE.replace("(BONDS)   1   0", "(CONSTR)   1   0")))
    assert force_field(torch.zeros(0, 4, 3).double()).shape == (0,)


@pytest.mark.gmx
def test_every_term_against_rerun(gmx: Gmx, alanine_tpr: Path, alanine_trr: Path, tmp_path: Path):
    """The promise is 1e-3 kJ/mol per term on 200 frames; mixed precision is found to need about a tenth of it."""
    result = compare_energies(gmx, alanine_tpr, alanine_trr, tmp_path, limit=200)
    assert result.frames == 200
    assert set(result.terms) == set(TERMS)
    assert all(abs(term.mean_kJ_mol) > 0.1 for term in result.terms.values()), "a term that is 0 proves nothing"
    assert result.within(5e-4), result
    assert result.max_abs_diff_kJ_mol < 1e-3


@pytest.mark.gmx
def test_gradient_against_the_forces_of_the_run(topology: Topology, force_field: ForceField, alanine_trr: Path):
    read = read_frames(alanine_trr, topology.n_atoms)
    x = torch.from_numpy(make_whole(read.positions, read.box, topology.bonds))
    _, gradient = force_field.energy_and_gradient(x)
    # GROMACS works on float32 differences of coordinates of size 6 nm here: 2.4e-7 nm times 4.7e5 kJ/mol/nm^2
    assert np.abs(gradient.numpy() + read.forces).max() < 0.3


@pytest.mark.gmx
def test_gradient_against_autograd(force_field: ForceField, frames: torch.Tensor):
    x = frames.clone().requires_grad_()
    torch.stack(list(force_field.terms(x).values())).sum().backward()
    energy, gradient = force_field.energy_and_gradient(frames)
    torch.testing.assert_close(gradient, x.grad, rtol=1e-10, atol=1e-8)
    torch.testing.assert_close(energy, force_field(frames), rtol=1e-13, atol=1e-11)
    # a force field pulls on no molecule as a whole, and does not turn it
    torque = torch.linalg.cross(frames, gradient).sum(1)
    torch.testing.assert_close(gradient.sum(1), torch.zeros_like(torque), rtol=0, atol=1e-8)
    torch.testing.assert_close(torque, torch.zeros_like(torque), rtol=0, atol=1e-7)


@pytest.mark.gmx
def test_rotation_translation_and_mirror(force_field: ForceField, frames: torch.Tensor):
    generator = torch.Generator().manual_seed(5)
    rotation, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))
    energy, gradient = force_field.energy_and_gradient(frames)
    # an orthogonal matrix of either sign: every phase is 0 or 180 degrees, so the mirror image has the same energy
    turned, turned_gradient = force_field.energy_and_gradient(frames @ rotation.T + 3.0)
    torch.testing.assert_close(turned, energy, rtol=1e-9, atol=1e-8)
    torch.testing.assert_close(turned_gradient, gradient @ rotation.T, rtol=1e-8, atol=1e-6)


@pytest.mark.gmx
def test_frames_do_not_see_each_other(topology: Topology, force_field: ForceField, frames: torch.Tensor):
    energy, gradient = force_field.energy_and_gradient(frames)
    small = ForceField(topology, chunk=4)
    small_energy, small_gradient = small.energy_and_gradient(frames)
    torch.testing.assert_close(small_energy, energy, rtol=1e-13, atol=1e-11)
    torch.testing.assert_close(small_gradient, gradient, rtol=1e-12, atol=1e-9)
    for index in (0, 7, len(frames) - 1):
        one, _ = force_field.energy_and_gradient(frames[index : index + 1])
        torch.testing.assert_close(one, energy[index : index + 1], rtol=1e-13, atol=1e-11)


@pytest.mark.gmx
def test_float32(topology: Topology, force_field: ForceField, frames: torch.Tensor):
    # centred, so that float32 does not round the positions themselves: 1e-8 nm instead of 2e-7
    x = frames - frames.mean(1, keepdim=True)
    single = ForceField(topology, dtype=torch.float32)
    energy, gradient = force_field.energy_and_gradient(x)
    energy32, gradient32 = single.energy_and_gradient(x.float())
    assert energy32.dtype == gradient32.dtype == torch.float32
    torch.testing.assert_close(energy32.double(), energy, rtol=0, atol=5e-3)
    torch.testing.assert_close(gradient32.double(), gradient, rtol=0, atol=0.1)
