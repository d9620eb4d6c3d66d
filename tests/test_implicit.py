"""Implicit solvent against OpenMM, analytic limits and its own gradient."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from numba import njit
from pydantic import ValidationError

from ccg_gmx.engine.gromacs import Gmx
from ccg_gmx.engine.mdp import fine_run
from ccg_gmx.errors import TopologyError
from ccg_gmx.molecule.energy import ForceField
from ccg_gmx.molecule.implicit import ImplicitSolvent, ImplicitSolventSettings, SolvatedForceField, descreening
from ccg_gmx.molecule.implicit_radii import mbondi2
from ccg_gmx.molecule.kernel_lanes import lane_count, load, store
from ccg_gmx.molecule.kernel_math import exponential, hyperbolic_tangent, logarithm
from ccg_gmx.molecule.structure import read_structure
from ccg_gmx.molecule.topology import Topology, parse_tpr_dump
from ccg_gmx.molecule.trajectory import make_whole
from ccg_gmx.units import COULOMB_KJ_MOL_NM_E2

TOPOLOGIES = Path(__file__).resolve().parent.parent / "topologies"
OPENMM_COULOMB = 138.935485
MODELS = ("obc1", "obc2")
SYSTEMS = ("alanine_dipeptide", "chignolin")

Ready = tuple[Topology, torch.Tensor]


def settings(model: str = "obc1", **more: object) -> ImplicitSolventSettings:
    return ImplicitSolventSettings(model=model, **more)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def system(gmx: Gmx, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Ready]:
    """Topology of a shipped system and 50 frames, its structure with 0.01 nm of noise on every atom."""
    ready: dict[str, Ready] = {}

    def load(name: str) -> Ready:
        if name not in ready:
            folder, files = tmp_path_factory.mktemp(name), TOPOLOGIES / name
            tpr = gmx.grompp(fine_run(300.0, 1000, 1), files / "conf.gro", files / "topol.top", folder / "run.tpr")
            topology = parse_tpr_dump(gmx.dump(tpr))
            positions, box = read_structure(files / "conf.gro")
            structure = make_whole(positions[None], box[None], topology.bonds)
            noise = np.random.default_rng(3).normal(scale=0.01, size=(50, topology.n_atoms, 3))
            ready[name] = topology, torch.from_numpy(structure + noise)
        return ready[name]

    return load


@pytest.fixture
def alanine(system: Callable[[str], Ready]) -> Ready:
    return system("alanine_dipeptide")


def openmm_energies(topology: Topology, x: torch.Tensor, model: str, surface: str | None) -> tuple[np.ndarray, ...]:
    """Energies ``[B]`` and gradients ``[B, N, 3]`` of OpenMM's Amber generalised Born force, radii by OpenMM too."""
    openmm = pytest.importorskip("openmm", reason="the comparison needs OpenMM (pip install openmm)")
    from openmm.app import Element
    from openmm.app import Topology as OpenmmTopology
    from openmm.app.internal.customgbforces import GBSAOBC1Force, GBSAOBC2Force

    theirs = OpenmmTopology()
    residue = theirs.addResidue("ALL", theirs.addChain())
    named = zip(topology.names, topology.elements, strict=True)
    atoms = [theirs.addAtom(name, Element.getBySymbol(element), residue) for name, element in named]
    for first, second in topology.bonds.tolist():
        theirs.addBond(atoms[first], atoms[second])
    kind = {"obc1": GBSAOBC1Force, "obc2": GBSAOBC2Force}[model]
    force, openmm_system = kind(solventDielectric=78.5, soluteDielectric=1.0, SA=surface), openmm.System()
    # OpenMM's electric constant differs from GROMACS' in the seventh digit: the charges make up for it
    charges = topology.charges * math.sqrt(COULOMB_KJ_MOL_NM_E2 / OPENMM_COULOMB)
    for charge, mass, parameters in zip(charges, topology.masses, kind.getStandardParameters(theirs), strict=True):
        openmm_system.addParticle(mass)
        force.addParticle([charge, *parameters])
    force.finalize()
    openmm_system.addForce(force)
    platform = openmm.Platform.getPlatformByName("Reference")
    context = openmm.Context(openmm_system, openmm.VerletIntegrator(0.001), platform)
    energies, gradients = [], []
    for frame in x.numpy():
        context.setPositions(frame)
        state = context.getState(getEnergy=True, getForces=True)
        energies.append(state.getPotentialEnergy().value_in_unit(openmm.unit.kilojoule_per_mole))
        gradients.append(-state.getForces(asNumpy=True)._value)
    return np.array(energies), np.array(gradients)


@pytest.mark.gmx
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.parametrize("surface", [True, False])
def test_energy_and_gradient_against_openmm(system: Callable[[str], Ready], name: str, model: str, surface: bool):
    """The promise is 1e-3 kJ/mol and 1e-3 relative; with one electric constant they agree to 2e-8, as OpenMM rounds."""
    topology, x = system(name)
    expected, expected_gradient = openmm_energies(topology, x, model, "ACE" if surface else None)
    energy, gradient = ImplicitSolvent(topology, settings(model, surface_area=surface)).energy_and_gradient(x)
    assert np.abs(energy.numpy() - expected).max() < 1e-7
    assert np.abs(gradient.numpy() - expected_gradient).max() < 1e-7 * np.abs(expected_gradient).max()
    assert np.ptp(expected) > 1.0, "frames of one energy prove nothing"


@pytest.mark.gmx
@pytest.mark.parametrize("name", SYSTEMS)
def test_the_models_and_the_surface_term_differ(system: Callable[[str], Ready], name: str):
    topology, x = system(name)
    one, two = (ImplicitSolvent(topology, settings(model))(x) for model in MODELS)
    bare = ImplicitSolvent(topology, settings(surface_area=False))(x)
    assert (one - two).abs().min() > 0.1
    assert (one - bare).min() > 1.0, "the surface term costs energy"


@pytest.mark.gmx
@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("model", MODELS)
def test_gradient_by_autograd_and_finite_differences(alanine: Ready, model: str, compiled: bool):
    topology, x = alanine
    solvent, x = ImplicitSolvent(topology, settings(model), compiled=compiled), x[:5]
    energy, gradient = solvent.energy_and_gradient(x)
    leaf = x.clone().requires_grad_()
    (by_autograd,) = torch.autograd.grad(solvent.energy(leaf).sum(), leaf)
    torch.testing.assert_close(gradient, by_autograd, rtol=1e-10, atol=1e-9)
    direction = torch.from_numpy(np.random.default_rng(8).normal(size=x.shape))
    step = 1e-6
    slope = (solvent(x + step * direction) - solvent(x - step * direction)) / (2 * step)
    torch.testing.assert_close((gradient * direction).sum((1, 2)), slope, rtol=1e-7, atol=1e-6)
    torch.testing.assert_close(energy, solvent(x), rtol=1e-13, atol=1e-12)


@pytest.mark.gmx
def test_backward_of_force_field_and_solvent_together(alanine: Ready):
    topology, x = alanine
    force_field, solvent = ForceField(topology), ImplicitSolvent(topology, settings())
    both, leaf = SolvatedForceField(force_field, solvent), x[:4].clone().requires_grad_()
    weights = torch.arange(1.0, 5.0, dtype=torch.float64)
    energy = both(leaf)
    (weights * energy).sum().backward()
    gradient = force_field.energy_and_gradient(x[:4])[1] + solvent.energy_and_gradient(x[:4])[1]
    torch.testing.assert_close(leaf.grad, weights[:, None, None] * gradient, rtol=1e-12, atol=1e-10)
    torch.testing.assert_close(energy.detach(), force_field(x[:4]) + solvent(x[:4]), rtol=1e-12, atol=1e-10)
    torch.testing.assert_close(both(x[:4]), energy.detach(), rtol=1e-12, atol=1e-10)


@pytest.mark.gmx
def test_invariance_and_independence_of_frames(alanine: Ready):
    topology, x = alanine
    solvent = ImplicitSolvent(topology, settings("obc2"))
    energy, gradient = solvent.energy_and_gradient(x)
    rotation, _ = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64))
    turned, turned_gradient = solvent.energy_and_gradient(x @ rotation.T + 2.0)
    torch.testing.assert_close(turned, energy, rtol=1e-12, atol=1e-10)
    torch.testing.assert_close(turned_gradient, gradient @ rotation.T, rtol=1e-9, atol=1e-8)
    small, small_gradient = ImplicitSolvent(topology, settings("obc2"), chunk=7).energy_and_gradient(x)
    torch.testing.assert_close(small, energy, rtol=1e-13, atol=1e-12)
    torch.testing.assert_close(small_gradient, gradient, rtol=1e-11, atol=1e-10)
    assert solvent(x[:0]).shape == (0,)


@pytest.mark.gmx
def test_float32(alanine: Ready):
    topology, x = alanine
    x = x - x.mean(1, keepdim=True)
    energy, gradient = ImplicitSolvent(topology, settings()).energy_and_gradient(x)
    single, single_gradient = ImplicitSolvent(topology, settings(), torch.float32).energy_and_gradient(x.float())
    assert single.dtype == single_gradient.dtype == torch.float32
    assert (single - energy).abs().max() < 1e-3
    assert (single_gradient - gradient).abs().max() < 1e-4 * gradient.abs().max()


@pytest.mark.gmx
def test_atoms_on_top_of_each_other_give_finite_numbers(alanine: Ready):
    topology, x = alanine
    x = x[:3].clone()
    x[0, 3], x[1, :], x[2, 10] = x[0, 8], 0.0, x[2, 4] + 1e-9
    for compiled in (True, False):
        energy, gradient = ImplicitSolvent(topology, settings("obc2"), compiled=compiled).energy_and_gradient(x)
        assert energy.isfinite().all()
        assert gradient.isfinite().all()


@pytest.mark.gmx
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", SYSTEMS)
def test_kernel_against_torch(system: Callable[[str], Ready], name: str, dtype: torch.dtype):
    """Frames from the compact to the overlapping and the torn apart; a number that fills no vector; two threads."""
    topology, x = system(name)
    x = (x[:21] - x[:21].mean(1, keepdim=True)) * torch.logspace(-1, 1, 21, dtype=torch.float64)[:, None, None]
    x = x.to(dtype)
    for model in MODELS:
        plain = ImplicitSolvent(topology, settings(model), dtype, compiled=False)
        energy, gradient = plain.energy_and_gradient(x)
        fast = ImplicitSolvent(topology, settings(model), dtype, threads=2)
        digits = 1e-12 if dtype == torch.float64 else 1e-4
        found, found_gradient = fast.energy_and_gradient(x)
        torch.testing.assert_close(found, energy, rtol=digits, atol=10 * digits)
        scale = gradient.abs().amax((1, 2), keepdim=True) + 1
        assert ((found_gradient - gradient).abs() / scale).max() < 10 * digits
        torch.testing.assert_close(fast(x), found, rtol=0, atol=0)
        torch.testing.assert_close(fast(x[:3]), found[:3], rtol=digits, atol=10 * digits)


@pytest.mark.gmx
def test_a_position_that_is_nan_gives_nan_in_its_own_frame_alone(alanine: Ready):
    topology, x = alanine
    x = x[:9].clone()
    x[4, 7, 1] = torch.nan
    for compiled in (True, False):
        energy, gradient = ImplicitSolvent(topology, settings(), compiled=compiled).energy_and_gradient(x)
        assert energy.isnan().tolist() == [index == 4 for index in range(9)]
        assert gradient[4].isnan().any()
        assert gradient[[0, 1, 2, 3, 5, 6, 7, 8]].isfinite().all()


@njit
def _over_lanes(function, values, results, count):
    for start in range(0, len(values), count):
        store(results, start, function(load(values, start)))


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize(
    ("function", "exact", "low", "high", "absolute"),
    [
        (exponential, np.exp, -80.0, 60.0, False),
        (logarithm, np.log, 1e-6, 1e6, False),
        (hyperbolic_tangent, np.tanh, -20.0, 90.0, True),
    ],
)
def test_functions_of_vectors(function, exact, low: float, high: float, absolute: bool, dtype: type):
    """Within a few units of the last place of numpy's float64."""
    values = np.linspace(low, high, 4000).astype(dtype)
    if function is logarithm:
        values[:2000] = np.linspace(0.5, 2.0, 2000)
    results = np.empty_like(values)
    _over_lanes(function, values, results, lane_count(np.dtype(dtype)))
    expected = exact(values.astype(np.float64))
    # an exponent's error grows with its argument, that of a logarithm near 0 is of the last place of 1
    last = 4 * np.finfo(dtype).eps * np.maximum(1, np.abs(values) / 8 if function is exponential else 1)
    scale = 1 if absolute else np.abs(expected) + (function is logarithm)
    assert np.max(np.abs(results - expected) / (scale * last)) < 1


@pytest.mark.gmx
def test_a_wrong_batch_is_refused(alanine: Ready):
    topology, x = alanine
    solvent = ImplicitSolvent(topology, settings())
    for wrong in (x[0], x[:, :5], x.float()):
        with pytest.raises(ValueError, match="positions must be"):
            solvent(wrong)


@pytest.mark.gmx
def test_far_apart_atoms_have_born_radii_of_their_own(alanine: Ready):
    """Nothing descreens an atom at infinity: its Born radius is the offset radius, the energy is Born's."""
    topology, _ = alanine
    x = torch.zeros(1, topology.n_atoms, 3, dtype=torch.float64)
    x[0, :, 0] = 1e5 * torch.arange(topology.n_atoms, dtype=torch.float64)
    solvent = ImplicitSolvent(topology, settings(surface_area=False))
    radius, _ = mbondi2(topology)
    np.testing.assert_allclose(solvent.born_radii(x)[0], radius - 0.009, rtol=1e-12)
    born = -0.5 * COULOMB_KJ_MOL_NM_E2 * (1 - 1 / 78.5) * (topology.charges**2 / (radius - 0.009)).sum()
    assert float(solvent(x)) == pytest.approx(born, abs=1e-2)
    lone = 4 * math.pi * 2.25936 * ((radius + 0.14) ** 2 * (radius / (radius - 0.009)) ** 6).sum()
    assert float(ImplicitSolvent(topology, settings())(x) - solvent(x)) == pytest.approx(lone, rel=1e-9)


@pytest.mark.parametrize(
    ("distance", "own", "neighbour"),
    [(0.5, 0.15, 0.12), (0.11, 0.15, 0.12), (0.05, 0.15, 0.02), (0.1, 0.02, 0.3), (0.3, 0.1, 0.1)],
)
def test_descreening_against_the_integral_over_the_neighbours_sphere(distance: float, own: float, neighbour: float):
    """1/(4 pi) int rho^-4 dV over shells around the atom: the part of each shell inside the sphere is a spherical cap.

    Apart, overlapping, neighbour inside the atom, atom inside the neighbour, touching.
    """
    low, high = own, distance + neighbour
    nodes, weights = np.polynomial.legendre.leggauss(400)
    expected = 0.0
    edges = sorted({low, max(low, abs(distance - neighbour)), max(low, high)})
    for left, right in pairwise(edges):
        rho = 0.5 * (right - left) * nodes + 0.5 * (right + left)
        cosine = (rho**2 + distance**2 - neighbour**2) / (2 * rho * distance)
        inside = 0.5 * (1 - np.clip(cosine, -1, 1))  # part of the sphere's area
        expected += 0.5 * (right - left) * float(weights @ (inside / rho**2))
    column = torch.tensor([[distance]], dtype=torch.float64)
    arguments = [torch.full((2, 1, 1), value, dtype=torch.float64) for value in (own, neighbour)]
    integral, derivative = descreening(column, *arguments, True)
    assert float(integral[0]) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    step = 1e-6
    ends = [float(descreening(column + sign * step, *arguments, False)[0][0]) for sign in (1, -1)]
    assert float(derivative[0]) == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-6, abs=1e-6)


@pytest.mark.gmx
def test_radii_follow_elements_and_bonds(alanine: Ready):
    topology, _ = alanine
    radius, screening = mbondi2(topology)
    table = {name: (r, s) for name, r, s in zip(topology.names, radius, screening, strict=True)}
    assert table["H"] == (0.13, 0.85)
    assert table["HA"] == (0.12, 0.85)
    assert table["CA"] == (0.17, 0.72)
    assert table["N"] == (0.155, 0.79)
    assert table["O"] == (0.15, 0.85)


@pytest.mark.gmx
@pytest.mark.parametrize(("number", "words"), [(-1, "no element"), (26, "element Fe")])
def test_an_atom_without_a_radius_is_refused_by_name(alanine: Ready, number: int, words: str):
    topology, _ = alanine
    numbers = topology.atomic_numbers.copy()
    numbers[4] = number
    with pytest.raises(TopologyError, match=rf"5 \(C of ACE 1\) with {words}"):
        ImplicitSolvent(replace(topology, atomic_numbers=numbers), settings())


@pytest.mark.parametrize(
    "wrong", [{"model": "gbn2"}, {}, {"model": "obc1", "salt": 0.1}, {"model": "obc1", "solvent_dielectric": 0.5}]
)
def test_wrong_settings(wrong: dict[str, object]):
    with pytest.raises(ValidationError):
        ImplicitSolventSettings(**wrong)  # type: ignore[arg-type]
