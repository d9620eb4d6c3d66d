"""The static bias -f(s): its cap and spline, its PLUMED grid, and its way through GROMACS' own Colvars.

Forces of gmx are compared with those of the intended bias on the same frames: mdrun -rerun with the bias less without.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ccg_gmx.engine.gromacs import Gmx
from ccg_gmx.engine.mdp import fine_run
from ccg_gmx.errors import SettingsError
from ccg_gmx.export.colvars import MDP_LINES, colvars_files
from ccg_gmx.export.static_bias import StaticBias, capped, plumed_grid_text, static_bias
from ccg_gmx.free_energy.surface_files import read_plumed_grid
from ccg_gmx.molecule.torsion_bias import TorsionBias
from ccg_gmx.molecule.trajectory import read_frames
from ccg_gmx.records import FloatArray, FreeEnergySurface
from ccg_gmx.units import thermal_energy

TORSIONS = {"phi": (5, 7, 9, 15), "psi": (7, 9, 15, 17)}
KT = thermal_energy(300.0)
POINTS = 72


def surface(names: tuple[str, ...], scale: float = 1.0) -> FreeEnergySurface:
    """A smooth surface in kT with a minimum of 0, some of it above any cap."""
    s = -np.pi + 2 * np.pi / POINTS * np.arange(POINTS)
    p, q = np.meshgrid(s, s, indexing="ij")
    f = 4 * np.cos(2 * p + 0.3) + 3 * np.sin(p - q) + 3 * np.cos(3 * q)
    f = scale * (f if len(names) == 2 else f[:, 0])
    return FreeEnergySurface(f - f.min(), np.full_like(f, np.nan), names, 300.0)


def reference(bias: StaticBias) -> TorsionBias:
    """The same bias as the compiled kernel of ccg evaluates it."""
    atoms = [tuple(i - 1 for i in TORSIONS[name]) for name in bias.names]
    return TorsionBias(atoms, [(tuple(range(len(atoms))), bias.values)])  # type: ignore[arg-type]


def test_cap_is_exact_below_smooth_at_and_constant_above() -> None:
    f = np.array([0.0, 3.0, 8.99, 9.0, 10.0, 11.0, 50.0, np.inf])
    np.testing.assert_allclose(capped(f, 10.0), [0, 3, 8.99, 9, 9.75, 10, 10, 10])
    fine = np.linspace(8, 12, 4001)
    slope = np.gradient(capped(fine, 10.0), fine)
    assert np.abs(np.diff(slope)).max() < 2e-3  # no jump of the force


@pytest.mark.parametrize("names", [("phi",), ("phi", "psi")])
def test_bias_is_minus_f_where_the_surface_is_low(names: tuple[str, ...]) -> None:
    f = surface(names)
    bias = static_bias(f, 10.0)
    low = f.f < 9
    assert low.any()
    assert not low.all()
    np.testing.assert_allclose(bias.values[low], -KT * f.f[low])
    assert bias.values.min() >= -10 * KT - 1e-12


def test_mean_gradients_integrate_to_the_bias() -> None:
    bias = static_bias(surface(("phi", "psi")))
    first, second = bias.mean_gradients(360)
    assert np.abs(first.sum(axis=0)).max() < 1e-9  # periodic
    assert np.abs(second.sum(axis=1)).max() < 1e-9
    middles = -np.pi + 2 * np.pi / 360 * (np.arange(360) + 0.5)
    np.testing.assert_allclose(first, bias.sampled(middles, 0), atol=0.05)


@pytest.mark.parametrize("names", [("phi",), ("phi", "psi")])
def test_plumed_grid_reads_back_with_true_derivatives(names: tuple[str, ...], tmp_path: Path) -> None:
    bias = static_bias(surface(names))
    text = plumed_grid_text(bias, "static")
    (tmp_path / "bias.grid").write_text(text)
    assert text.startswith(f"#! FIELDS {' '.join(names)} static.bias der_")
    back = read_plumed_grid(tmp_path / "bias.grid", 300.0)
    n = len(back.f)
    assert n == 216
    s = -np.pi + 2 * np.pi / n * np.arange(n)
    expected = bias.sampled(s)
    np.testing.assert_allclose(KT * back.f, expected - expected.min(), atol=1e-8)
    step = 1e-4
    rows = np.loadtxt(text.splitlines(), comments="#")
    derivative = rows[:, len(names) + 1].reshape((n,) * len(names)).T
    moved = [bias.sampled(s + d * (np.abs(s) < 3.1)) for d in (step, -step)]
    inner = np.abs(s) < 3.1
    if len(names) == 1:
        np.testing.assert_allclose(((moved[0] - moved[1]) / (2 * step))[inner], derivative[inner], atol=1e-4)
    else:
        np.testing.assert_allclose(derivative, bias.sampled(s, 0), atol=1e-8)


def test_more_than_two_torsions_are_refused() -> None:
    f = np.zeros((4, 4, 4))
    with pytest.raises(SettingsError, match="one or two"):
        static_bias(FreeEnergySurface(f, f, ("a", "b", "c"), 300.0))


def test_torsion_without_atoms_is_refused() -> None:
    with pytest.raises(SettingsError, match="four atoms for psi"):
        colvars_files(static_bias(surface(("phi", "psi"))), {"phi": TORSIONS["phi"]})


@pytest.fixture(scope="module")
def unbiased(gmx: Gmx, alanine_tpr: Path, alanine_trr: Path, tmp_path_factory: pytest.TempPathFactory) -> FloatArray:
    """Potential energies ``[T]`` of the frames without a bias."""
    return gmx.rerun(alanine_tpr, alanine_trr, tmp_path_factory.mktemp("unbiased"))["Potential"]


@pytest.mark.gmx
@pytest.mark.parametrize(("names", "tolerance"), [(("phi",), 0.005), (("psi",), 0.005), (("phi", "psi"), 0.02)])
def test_colvars_applies_the_intended_force(
    names: tuple[str, ...], tolerance: float, gmx: Gmx, alanine_trr: Path, alanine_dir: Path, unbiased: FloatArray,
    tmp_path: Path,
) -> None:  # fmt: skip
    bias = static_bias(surface(names))
    for name, text in colvars_files(bias, TORSIONS).items():
        (tmp_path / name).write_text(text)
    mdp = fine_run(300.0, 20_000, seed=7, output_every=100, forces=True).text() + MDP_LINES.format(name="colvars.dat")
    tpr = gmx.grompp(mdp, alanine_dir / "conf.gro", alanine_dir / "topol.top", tmp_path / "biased.tpr")
    frames = read_frames(alanine_trr, 22)
    positions = torch.from_numpy(frames.positions)
    energy, gradient = reference(bias).energy_and_gradient(positions)
    biased, potential = rerun_forces(gmx, tpr, alanine_trr, tmp_path)
    off = biased - frames.forces + gradient.numpy()
    assert np.sqrt((off**2).mean() / (gradient.numpy() ** 2).mean()) < tolerance
    if len(names) == 1:  # the energy of a bias on two torsions is not in the energy file
        added = potential - unbiased - energy.numpy()
        assert added.std() < 0.02


def rerun_forces(gmx: Gmx, tpr: Path, trajectory: Path, folder: Path, *more: str) -> tuple[FloatArray, FloatArray]:
    """Forces ``[T, N, 3]`` kJ/mol/nm and potential energies ``[T]`` of a rerun; ``Gmx.rerun`` keeps no forces."""
    from ccg_gmx.engine.process import capture

    command = [str(gmx.path), "mdrun", "-s", str(tpr), "-rerun", str(trajectory), "-ntmpi", "1", "-ntomp", "1"]
    done = capture([*command, "-o", "re.trr", "-e", "re.edr", "-g", "re.log", "-c", "re.gro", *more], cwd=folder)
    assert done.returncode == 0, done.stderr[-2000:]
    return read_frames(folder / "re.trr", 22).forces, gmx.energies(folder / "re.edr")["Potential"]  # type: ignore[return-value]
