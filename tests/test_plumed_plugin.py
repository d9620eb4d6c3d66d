"""TORCH_MODEL inside ``plumed driver``: values, derivatives, forces and virial against eager torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from plumed_tools import (
    BOX_NM,
    FORMATS,
    TORSION_LINES,
    chain,
    columns,
    dihedrals,
    driver,
    evaluate,
    mixed_model,
    numeric_gradient,
    refused,
    torsion_model,
    torsion_signature,
)

from ccg_gmx.engine.plumed import Kernel
from ccg_gmx.engine.plumed_build import Plugin
from ccg_gmx.export.contract import Quantity
from ccg_gmx.export.feature_perceptron import ACTIVATIONS, Feature, FeaturePerceptron
from ccg_gmx.export.torch_model import export_model
from ccg_gmx.export.value_and_gradient import value_and_gradient

pytestmark = pytest.mark.plumed


@pytest.mark.parametrize(("suffix", "dtype"), FORMATS)
def test_values_and_derivatives_agree_with_eager_torch(
    kernel: Kernel, plugin: Plugin, files: dict[str, Path], tmp_path: Path, suffix: str, dtype: str
) -> None:
    frames = chain(4, seed=4)
    lines = f"{TORSION_LINES}m: TORCH_MODEL FILE={files[f'mixed_{dtype}.{suffix}']} ARG=phi ATOMS=1-4\n"
    lines += "PRINT ARG=phi,m.* FILE=values FMT=%.15g\nDUMPDERIVATIVES ARG=m.f,m.turn FILE=slopes FMT=%.15g"
    done = driver(kernel, plugin, tmp_path, lines, frames)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    found, slopes = columns(tmp_path / "values"), columns(tmp_path / "slopes")
    bound = 1e-5 if dtype == "float64" else 1e-3
    model = mixed_model()
    for number, frame in enumerate(frames):
        point = np.concatenate([[dihedrals(frame)[0]], frame[:4].ravel()])
        values = evaluate(model, point)
        assert found["phi"][number] == pytest.approx(point[0], abs=1e-9)
        assert found["m.f"][number] == pytest.approx(values[0], rel=bound)
        assert found["m.turn"][number] == pytest.approx(values[1], rel=bound)
        for k, name in enumerate(("m.f", "m.turn")):
            wanted = numeric_gradient(lambda x, k=k: evaluate(model, x)[k], point)
            got = slopes[name].reshape(len(frames), -1)[number]
            assert len(got) == 1 + 12 + 9
            np.testing.assert_allclose(got[:13], wanted, rtol=bound, atol=bound * np.abs(wanted).max())
            virial = -np.einsum("ai,aj->ij", frame[:4], wanted[1:].reshape(4, 3))
            np.testing.assert_allclose(got[13:].reshape(3, 3), virial, atol=bound * np.abs(virial).max())


@pytest.mark.parametrize("model", ["torsions.json", "torsions.pt"])
def test_forces_of_a_bias_are_finite_differences_of_eager_torch(
    kernel: Kernel, plugin: Plugin, files: dict[str, Path], tmp_path: Path, model: str
) -> None:
    frames = chain(3, seed=5)
    lines = f"{TORSION_LINES}b: TORCH_MODEL FILE={files[model]} ARG=phi,psi BIAS"
    done = driver(kernel, plugin, tmp_path, lines, frames, "--dump-forces", "forces", "--dump-forces-fmt", "%.12f")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    rows = [line.split()[1:] for line in (tmp_path / "forces").read_text().splitlines() if line.startswith("X")]
    forces = np.array(rows, dtype=float).reshape(frames.shape)
    eager = torsion_model()
    for frame, got in zip(frames, forces, strict=True):
        wanted = -numeric_gradient(lambda r: evaluate(eager, dihedrals(r))[0], frame)
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("scale", [1e-6, 1.0, 300.0])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_of_the_built_in_evaluator(
    kernel: Kernel, plugin: Plugin, tmp_path: Path, activation: str, scale: float
) -> None:
    """Its own exponential, from arguments that round away to ones that overflow."""
    torch.manual_seed(13)
    model = FeaturePerceptron.build([Feature("argument", 0), Feature("argument", 1)], 2, [19, 1], activation).double()
    with torch.no_grad():
        model.layers[0].weight.mul_(scale)
    path = export_model(model, torsion_signature(), tmp_path / "m.json")
    frames = chain(5, seed=14)
    lines = f"{TORSION_LINES}m: TORCH_MODEL FILE={path} ARG=phi,psi\n"
    lines += "PRINT ARG=m.* FILE=v FMT=%.15g\nDUMPDERIVATIVES ARG=m.energy FILE=d FMT=%.15g"
    done = driver(kernel, plugin, tmp_path, lines, frames)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    slopes = columns(tmp_path / "d")["m.energy"].reshape(5, 2)
    for frame, value, slope in zip(frames, columns(tmp_path / "v")["m.energy"], slopes, strict=True):
        wanted = value_and_gradient(model, torch.tensor(dihedrals(frame))[None])
        # The file of frames rounds positions to 1e-14, which a scale of 300 makes 1e-11.
        assert value == pytest.approx(wanted[0].item(), rel=1e-12, abs=1e-13 * max(1.0, scale))
        np.testing.assert_allclose(slope, wanted[1][0].numpy(), rtol=1e-9, atol=1e-12 * max(1.0, scale) ** 2)


def test_numerical_derivatives_of_plumed_agree(
    kernel: Kernel, plugin: Plugin, files: dict[str, Path], tmp_path: Path
) -> None:
    """PLUMED's own finite differences, box included, with the molecule across the boundary of a skewed box."""
    frames = chain(2, seed=6)
    box = (4.0, 0.0, 0.0, 1.0, 4.0, 0.0, -0.5, 0.7, 4.0)
    cell = np.array(box).reshape(3, 3)
    inside = np.linalg.solve(cell.T, (frames + np.array([3.0, 2.9, 2.9])).reshape(-1, 3).T).T
    frames = ((inside % 1.0) @ cell).reshape(frames.shape)
    path = files["mixed_float64.json"]
    lines = f"{TORSION_LINES}a: TORCH_MODEL FILE={path} ARG=phi ATOMS=1-4\n"
    lines += f"n: TORCH_MODEL FILE={path} ARG=phi ATOMS=1-4 NUMERICAL_DERIVATIVES\n"
    lines += "DUMPDERIVATIVES ARG=a.f,n.f FILE=f FMT=%.15g\nDUMPDERIVATIVES ARG=a.turn,n.turn FILE=turn FMT=%.15g"
    done = driver(kernel, plugin, tmp_path, lines, frames, box=box)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    # PLUMED wraps periodic values by way of adding 100, which costs their differences two digits more.
    for name, bound in (("f", 5e-6), ("turn", 1e-3)):
        found = columns(tmp_path / name)
        size = np.abs(found[f"a.{name}"]).max()
        np.testing.assert_allclose(found[f"a.{name}"], found[f"n.{name}"], rtol=0, atol=bound * size)


def test_molecules_are_made_whole(kernel: Kernel, plugin: Plugin, files: dict[str, Path], tmp_path: Path) -> None:
    whole = chain(3, seed=7)
    frames = np.concatenate([whole, (whole + 2.9) % BOX_NM])
    assert np.ptp(frames[3:], axis=1).max() > 3.0  # broken indeed
    path = files["mixed_float64.json"]
    lines = f"{TORSION_LINES}m: TORCH_MODEL FILE={path} ARG=phi ATOMS=1-4\n"
    lines += f"n: TORCH_MODEL FILE={path} ARG=phi ATOMS=1-4 NOPBC\nPRINT ARG=* FILE=values FMT=%.12g"
    assert driver(kernel, plugin, tmp_path, lines, frames).returncode == 0
    found = columns(tmp_path / "values")
    np.testing.assert_allclose(found["m.f"][3:], found["m.f"][:3], rtol=1e-9)
    np.testing.assert_allclose(found["n.f"][:3], found["m.f"][:3], rtol=1e-9)
    assert np.abs(found["n.f"][3:] - found["m.f"][3:]).max() > 1e-3


def test_components_have_the_contracts_names_and_periods(
    kernel: Kernel, plugin: Plugin, files: dict[str, Path], tmp_path: Path
) -> None:
    lines = f"{TORSION_LINES}m: TORCH_MODEL FILE={files['mixed_float64.json']} ARG=phi ATOMS=1-4\nPRINT ARG=m.* FILE=v"
    done = driver(kernel, plugin, tmp_path, lines, chain(1))
    assert done.returncode == 0
    head = (tmp_path / "v").read_text()
    assert "#! FIELDS time m.f m.turn" in head
    assert "#! SET min_m.turn -pi" in head
    assert "min_m.f" not in head
    assert "trial inputs agree with torch" in done.stdout


def test_projections_come_from_the_arguments(
    kernel: Kernel, plugin: Plugin, files: dict[str, Path], tmp_path: Path
) -> None:
    """PLUMED takes an action of atoms for one of atoms alone; with ARG only, gradients must come from the arguments."""
    line = FeaturePerceptron.build([Feature("argument", 0), Feature("argument", 1)], 2, [1])
    with torch.no_grad():
        line.layers[0].weight.copy_(torch.tensor([[3.0, 0.0]]))
    path = export_model(line, torsion_signature(Quantity("f")), tmp_path / "line.json")
    lines = f"{TORSION_LINES}m: TORCH_MODEL FILE={path} ARG=phi,psi\nDUMPPROJECTIONS ARG=m.f,phi FILE=p FMT=%.12g"
    done = driver(kernel, plugin, tmp_path, lines, chain(2))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    found = columns(tmp_path / "p")
    np.testing.assert_allclose(found["m.f-phi"], 3.0 * found["phi-phi"])
    np.testing.assert_allclose(found["m.f-m.f"], 9.0 * found["phi-phi"])
    assert (found["phi-phi"] > 0).all()


def test_stride_of_a_bias_multiplies_its_forces(
    kernel: Kernel, plugin: Plugin, files: dict[str, Path], tmp_path: Path
) -> None:
    frame = chain(1, seed=8)
    frames = np.repeat(frame, 4, axis=0)
    lines = f"{TORSION_LINES}b: TORCH_MODEL FILE={files['torsions.json']} ARG=phi,psi BIAS STRIDE=2"
    done = driver(kernel, plugin, tmp_path, lines, frames, "--dump-forces", "forces", "--dump-forces-fmt", "%.12f")
    assert done.returncode == 0
    rows = [line.split()[1:] for line in (tmp_path / "forces").read_text().splitlines() if line.startswith("X")]
    forces = np.array(rows, dtype=float).reshape(frames.shape)
    np.testing.assert_allclose(forces[1], 0.0, atol=1e-12)
    wanted = -2 * numeric_gradient(lambda r: evaluate(torsion_model(), dihedrals(r))[0], frame[0])
    np.testing.assert_allclose(forces[2], wanted, atol=1e-5 * np.abs(wanted).max())
    refused(
        driver(kernel, plugin, tmp_path, lines.replace("BIAS ", ""), frames), "STRIDE is the stride of a bias's forces"
    )


def test_a_bias_is_counted_by_plumed(kernel: Kernel, plugin: Plugin, files: dict[str, Path], tmp_path: Path) -> None:
    lines = f"{TORSION_LINES}b: TORCH_MODEL FILE={files['torsions.json']} ARG=phi,psi BIAS\n"
    lines += f"v: TORCH_MODEL FILE={files['torsions.json']} ARG=phi,psi\nw: BIASVALUE ARG=v.energy\n"
    lines += "PRINT ARG=b.bias,v.energy,w.v.energy_bias FILE=v FMT=%.12g"
    done = driver(kernel, plugin, tmp_path, lines, chain(2))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    found = columns(tmp_path / "v")
    np.testing.assert_allclose(found["b.bias"], found["v.energy"], rtol=1e-12)
