"""The compiled kernel against the torch operations, finite differences, odd batches and frames that are not numbers."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from numba import njit
from numba.core.caching import CompileResultCacheImpl as CacheImpl
from test_topology import PEROXIDE

from ccg_gmx.engine.gromacs import Gmx
from ccg_gmx.molecule.energy import ForceField
from ccg_gmx.molecule.interactions import harmonic_angles, harmonic_bonds, nonbonded_pairs, periodic_dihedrals
from ccg_gmx.molecule.kernel import CompiledTerms, KernelTables
from ccg_gmx.molecule.kernel_lanes import compiled, load, store
from ccg_gmx.molecule.kernel_terms import angle_between
from ccg_gmx.molecule.topology import parse_tpr_dump
from ccg_gmx.molecule.trajectory import make_whole, read_frames

N_ATOMS, LANES = 13, 8


@pytest.fixture(scope="module")
def tables() -> KernelTables:
    """Interactions of every kind among 13 atoms, at random: any atom may be the first, the same atoms come twice."""
    rng = np.random.default_rng(11)

    def atoms(count: int, size: int) -> np.ndarray:
        return np.stack([rng.choice(N_ATOMS, size, replace=False) for _ in range(count)])

    series = rng.normal(scale=10, size=(15, 7, 2))
    series[:5, 3:], series[5, 1:] = 0, 0  # short ones, and a constant
    return KernelTables(
        n_atoms=N_ATOMS,
        pairs=(atoms(40, 2), rng.uniform(0, 1, (40, 3)) * [1e-3, 1e-6, 1] - [0, 0, 0.5]),
        bonds=(atoms(12, 2), rng.uniform(0.1, 0.2, (12, 2)) * [1, 1e6]),
        angles=(atoms(14, 3), rng.uniform(1.0, 3.0, (14, 2)) * [1, 200]),
        dihedrals=(atoms(15, 4), series),
    )


def frames(count: int, seed: int = 4) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).uniform(0, 1, (count, N_ATOMS, 3)))


def by_torch(tables: KernelTables, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Energy by the torch operations, gradient by autograd."""
    leaf = positions.clone().requires_grad_()
    x = leaf.permute(2, 1, 0)

    def vectors(name: str, *ends: tuple[int, int]) -> list[torch.Tensor]:
        atoms = torch.from_numpy(getattr(tables, name)[0])
        return [x[:, atoms[:, i]] - x[:, atoms[:, j]] for i, j in ends]

    def columns(name: str) -> list[torch.Tensor]:
        return [c[:, None].to(positions.dtype) for c in torch.from_numpy(getattr(tables, name)[1]).unbind(1)]

    series = torch.from_numpy(tables.dihedrals[1]).to(positions.dtype).permute(2, 1, 0)[..., None]
    energies = [
        *nonbonded_pairs(*vectors("pairs", (0, 1)), *columns("pairs"), False)[:2],
        harmonic_bonds(*vectors("bonds", (0, 1)), *columns("bonds"), False)[0],
        harmonic_angles(*vectors("angles", (0, 1), (2, 1)), *columns("angles"), False)[0],
        periodic_dihedrals(*vectors("dihedrals", (0, 1), (2, 1), (2, 3)), series[0], series[1], False)[0],
    ]
    energy = torch.stack([part.sum(0) for part in energies]).sum(0)
    (gradient,) = torch.autograd.grad(energy.sum(), leaf)
    return energy.detach(), gradient


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_agrees_with_torch(tables: KernelTables, dtype: torch.dtype, tolerance: float):
    """Relative to the largest of all frames; a float32 kernel is compared with float64 torch, on the same positions."""
    x = frames(50).float().double()
    energy, gradient = by_torch(tables, x)
    found_gradient = torch.empty(x.shape, dtype=dtype)
    found = CompiledTerms(tables)(x.to(dtype), found_gradient)
    assert found.dtype == dtype
    assert float((found.double() - energy).abs().max() / energy.abs().max()) < tolerance
    assert float((found_gradient.double() - gradient).abs().max() / gradient.abs().max()) < tolerance
    only_energy = CompiledTerms(tables)(x.to(dtype), None)
    torch.testing.assert_close(only_energy, found, rtol=10 * torch.finfo(dtype).eps, atol=0)


def test_gradient_by_finite_differences(tables: KernelTables):
    kernel, x, step = CompiledTerms(tables), frames(3), 2e-6
    gradient = torch.empty_like(x)
    kernel(x, gradient)
    shifts = step * torch.eye(3 * N_ATOMS, dtype=x.dtype).reshape(-1, 1, N_ATOMS, 3)
    ahead, behind = (kernel((x + sign * shifts).reshape(-1, N_ATOMS, 3), None).reshape(-1, 3) for sign in (1, -1))
    slope = ((ahead - behind) / (2 * step)).T.reshape(x.shape)
    assert float((slope - gradient).abs().max() / gradient.abs().max()) < 1e-7


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("count", [0, 1, LANES - 1, LANES, LANES + 1, 4 * LANES + 3])
def test_any_batch_and_number_of_threads(tables: KernelTables, count: int, threads: int):
    """A frame's energy and gradient have the same bits wherever it stands in whatever batch."""
    x = frames(50)
    expected = torch.empty_like(x)
    energy = CompiledTerms(tables)(x, expected)
    gradient = torch.full_like(x[:count], math.nan)
    found = CompiledTerms(tables, threads)(x[:count], gradient)
    assert found.shape == (count,)
    assert torch.equal(found, energy[:count])
    assert torch.equal(gradient, expected[:count])


def test_bad_frames_do_not_spread(tables: KernelTables):
    x = frames(LANES)
    good = torch.empty_like(x)
    energy = CompiledTerms(tables)(x, good)
    x[1, 3, 2], x[2, 5, 0] = math.nan, math.inf
    first, second = tables.pairs[0][0]
    x[4, first] = x[4, second]
    x[5, first] = x[5, second] + 1e-6
    gradient = torch.empty_like(x)
    found = CompiledTerms(tables)(x, gradient)
    assert not found[1].isfinite()
    assert not found[2].isfinite()
    for frame in (4, 5):
        assert 1e20 < found[frame] < 1e40, "overlapping atoms: huge, and a number"
        assert gradient[frame].isfinite().all()
    torch.testing.assert_close(found[4:6], by_torch(tables, x[4:6])[0], rtol=1e-10, atol=0)
    for frame in (0, 3, 6, 7):
        assert torch.equal(found[frame], energy[frame])
        assert torch.equal(gradient[frame], good[frame])


@pytest.mark.parametrize("kind", ["pairs", "bonds", "angles", "dihedrals"])
def test_no_interaction_hides_a_nan(tables: KernelTables, kind: str):
    others = {name: (atoms[:0], values[:0]) for name, (atoms, values) in parts(tables).items() if name != kind}
    atoms, values = parts(tables)[kind]
    alone = dataclasses.replace(tables, **{**others, kind: (atoms[-1:], values[-1:])})
    for atom in range(N_ATOMS):
        x = frames(LANES)
        x[2, atom] = math.nan
        gradient = torch.empty_like(x)
        energy = CompiledTerms(alone)(x, gradient)
        assert bool(energy[2].isnan()) == (atom in atoms[-1])
        assert bool(gradient[2].isnan().any()) == (atom in atoms[-1])
        assert energy[[0, 1, 3, 7]].isfinite().all()


def parts(tables: KernelTables) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    return {name: getattr(tables, name) for name in ("pairs", "bonds", "angles", "dihedrals")}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_all_atoms_in_one_place(tables: KernelTables, dtype: torch.dtype):
    x = torch.zeros(2, N_ATOMS, 3, dtype=dtype)
    x[1, :, 0] = torch.arange(N_ATOMS)  # and all on one line
    gradient = torch.empty_like(x)
    assert CompiledTerms(tables)(x, gradient).isfinite().all()
    assert gradient.isfinite().all()


@njit
def angles_of(sine: np.ndarray, cosine: np.ndarray, angle: np.ndarray) -> None:
    for start in range(0, len(angle), LANES):
        store(angle, start, angle_between(load(sine, start), load(cosine, start)))


def test_arc_tangent():
    rng = np.random.default_rng(2)
    angle = np.concatenate([rng.uniform(0, np.pi, 10_000), 10.0 ** rng.uniform(-12, 0, 6_000), np.zeros(8)])
    angle[-8:] = [0.0, np.pi, np.pi / 2, np.pi / 4, np.pi / 8, 3 * np.pi / 8, 3 * np.pi / 4, 1e-300]
    size = 10.0 ** rng.uniform(-3, 3, len(angle))
    sine, cosine = size * np.abs(np.sin(angle)), size * np.cos(angle)
    found = np.empty_like(angle)
    angles_of(sine, cosine, found)
    expected = np.arctan2(sine, cosine)
    assert np.all(np.abs(found - expected) <= 5e-16 * np.maximum(expected, 1e-290))


def test_without_a_folder_for_the_cache(monkeypatch: pytest.MonkeyPatch):
    """In a container with nothing to write to, numba refuses to cache; then every process compiles for itself."""
    monkeypatch.setattr(CacheImpl, "_locator_classes", [])
    assert compiled(lambda x: x + 1)(2) == 3


def test_a_force_field_chooses_by_device_and_type():
    x = torch.zeros(1, 4, 3)
    assert CompiledTerms.serves(x)
    assert CompiledTerms.serves(x.double())
    assert not CompiledTerms.serves(x.half())
    assert not CompiledTerms.serves(x.to("meta"))
    with pytest.raises(ValueError, match="threads"):
        ForceField(parse_tpr_dump(PEROXIDE), threads=0)


def test_force_field_by_kernel_and_by_torch():
    """Strided positions, autograd, and a change of type after the force field was made."""
    rng = np.random.default_rng(3)
    start = np.array([[0.02, 0.09, 0.01], [0.0, 0.0, 0.0], [0.14, 0.0, 0.0], [0.16, -0.03, 0.09]])
    x = torch.from_numpy(start + 0.01 * rng.normal(size=(21, 4, 3)))
    fast, slow = (ForceField(parse_tpr_dump(PEROXIDE), compiled=compiled) for compiled in (True, False))
    strided = x.transpose(0, 2).contiguous().transpose(0, 2)
    for positions in (x, strided, x[::2]):
        for mine, theirs in zip(fast.energy_and_gradient(positions), slow.energy_and_gradient(positions), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-9)
    leaf = strided.clone().requires_grad_()
    fast(leaf).sum().backward()
    torch.testing.assert_close(leaf.grad, slow.energy_and_gradient(x)[1], rtol=1e-10, atol=1e-9)
    energy32 = fast.float()(x.float())
    assert energy32.dtype == torch.float32
    torch.testing.assert_close(energy32.double(), slow(x), rtol=1e-5, atol=1e-4)


@pytest.mark.gmx
def test_alanine_dipeptide(gmx: Gmx, alanine_tpr: Path, alanine_trr: Path):
    topology = parse_tpr_dump(gmx.dump(alanine_tpr))
    read = read_frames(alanine_trr, topology.n_atoms)
    x = torch.from_numpy(make_whole(read.positions, read.box, topology.bonds))
    x = (x - x.mean(1, keepdim=True)).float().double()
    energy, gradient = ForceField(topology, compiled=False).energy_and_gradient(x)
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        found, found_gradient = ForceField(topology, dtype).energy_and_gradient(x.to(dtype))
        assert float((found - energy).abs().max() / energy.abs().max()) < tolerance
        assert float((found_gradient - gradient).abs().max() / gradient.abs().max()) < tolerance
