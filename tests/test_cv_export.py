"""Learned collective variables through plumed driver: value and derivative of every export against eager torch."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from plumed_tools import chain, columns, driver, write_xyz

from ccg_gmx.cv.data import Column
from ccg_gmx.cv.model import CvModel
from ccg_gmx.engine.plumed import Kernel
from ccg_gmx.engine.plumed_build import Plugin
from ccg_gmx.engine.process import Finished, capture
from ccg_gmx.errors import CheckpointError, ToolMissingError
from ccg_gmx.export.cv_model import FORMATS, as_perceptron, export_cv
from ccg_gmx.export.torch_model import read_perceptron

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # TorchScript, which PYTORCH_MODEL reads

DOMAIN = (-math.pi, math.pi)
COLUMNS = (
    Column("phi", "rad", DOMAIN, "TORSION ATOMS=1,2,3,4"),
    Column("d", "nm", None, "DISTANCE ATOMS=1,5"),
    Column("psi", "rad", DOMAIN, "TORSION ATOMS=2,3,4,5"),
)
DATA = Path(__file__).parent / "data"
TOLERANCE = {"json": 1e-9, "ann": 1e-9, "pt": 1e-9, "pt2": 1e-9, "ptc": 1e-4}


def learned(hidden: tuple[int, ...], count: int = 2) -> CvModel:
    """A variable of two torsions and a distance with weights at random."""
    rng = np.random.default_rng(len(hidden))
    widths = [5, *hidden, count]
    weights = tuple(rng.normal(size=(b, a)) / a**0.5 for a, b in itertools.pairwise(widths))
    biases = tuple(0.1 * rng.normal(size=b) for b in widths[1:])
    mean, std = 0.1 * rng.normal(size=5), 0.5 + rng.random(5)
    return CvModel("deep-tica" if hidden else "tica", COLUMNS, mean, std, weights, biases)


def torsion(x: torch.Tensor, atoms: tuple[int, ...]) -> torch.Tensor:
    """Torsion of four of the atoms ``[5, 3]``, IUPAC sign."""
    i, j, k, m = (x[atom] for atom in atoms)
    a, b, c = j - i, k - j, m - k
    first, second = torch.linalg.cross(a, b), torch.linalg.cross(b, c)
    return torch.atan2(b.norm() * (a @ second), first @ second)


def eager(model: Callable[[torch.Tensor], torch.Tensor], frame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values ``[k]``, and the derivative ``[5, 3]`` of value 1 + 2 * value 2 by the positions, by autograd."""
    x = torch.tensor(frame, dtype=torch.float64, requires_grad=True)
    inputs = torch.stack([torsion(x, (0, 1, 2, 3)), (x[4] - x[0]).norm(), torsion(x, (1, 2, 3, 4))])
    out = model(inputs[None])[0].double()
    factors = torch.arange(1.0, len(out) + 1, dtype=torch.float64)
    (slope,) = torch.autograd.grad(factors @ out, x)
    return out.detach().numpy(), slope.numpy()


def forces(path: Path, frames: int) -> np.ndarray:
    """Forces ``[frames, 5, 3]`` that the driver dumped."""
    lines = [line.split() for line in path.read_text().splitlines()]
    return np.array([[float(n) for n in line[1:]] for line in lines if line[0] == "X"]).reshape(frames, -1, 3)


def has_module(kernel: Kernel, name: str) -> bool:
    done = subprocess.run([*kernel.command, "config", "module", name], capture_output=True, check=False)
    return done.returncode == 0


DUMP = ("--dump-forces", "forces", "--dump-forces-fmt", "%.14g")


def driver_alone(kernel: Kernel, folder: Path, lines: str, frames: np.ndarray) -> Finished:
    """Plumed driver without the plug-in."""
    (folder / "plumed.dat").write_text(lines)
    write_xyz(folder / "frames.xyz", frames)
    command = [*kernel.command, "driver", "--plumed", "plumed.dat", "--ixyz", "frames.xyz", "--length-units", "nm"]
    return capture([*command, *DUMP], cwd=folder)


def biased(lines: str, outputs: str) -> str:
    """The lines, values in full, and output 1 + 2 * output 2 as a bias, so that its derivatives are forces."""
    factors = ",".join(str(k + 1) for k in range(outputs.count(",") + 1))
    lines = lines.replace("STRIDE=100", "FMT=%.14g")
    return f"{lines}all: COMBINE ARG={outputs} COEFFICIENTS={factors} PERIODIC=NO\nbias: BIASVALUE ARG=all\n"


def compare(
    model: Callable[[torch.Tensor], torch.Tensor], folder: Path, outputs: str, frames: np.ndarray, tolerance: float
) -> None:
    """Values and forces of the driver with those of eager torch."""
    values, found = columns(folder / "COLVAR_CV"), forces(folder / "forces", len(frames))
    for number, frame in enumerate(frames):
        value, slope = eager(model, frame)
        for k, output in enumerate(outputs.split(",")):
            assert values[output][number] == pytest.approx(value[k], rel=tolerance, abs=tolerance)
        np.testing.assert_allclose(found[number], -slope, atol=tolerance * max(1.0, np.abs(slope).max()))


@pytest.mark.plumed
@pytest.mark.parametrize("hidden", [(), (8, 6)], ids=["linear", "deep"])
@pytest.mark.parametrize("kind", FORMATS)
def test_every_export_gives_the_values_and_derivatives_of_eager_torch(
    request: pytest.FixtureRequest, kernel: Kernel, tmp_path: Path, kind: str, hidden: tuple[int, ...]
) -> None:
    module = {"ann": "annfunc", "ptc": "pytorch"}.get(kind)
    if module and not has_module(kernel, module):
        pytest.skip(f"this PLUMED has no module {module}")
    model = learned(hidden)
    try:
        lines = export_cv(model, tmp_path / "m", kind, dtype="float64")[-1].read_text()
    except ToolMissingError as error:
        pytest.skip(str(error))
    outputs = next(line for line in lines.splitlines() if line.startswith("PRINT")).split("ARG=")[1].split()[0]
    lines = biased(lines, outputs)
    frames = chain(4, seed=21)
    if module:
        done = driver_alone(kernel, tmp_path, lines, frames)
    else:
        plugin: Plugin = request.getfixturevalue("plugin")
        if kind != "json" and not plugin.torch:
            pytest.skip("the plug-in is built without torch")
        done = driver(kernel, plugin, tmp_path, lines, frames, *DUMP)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    compare(as_perceptron(model), tmp_path, outputs, frames, TOLERANCE[kind])


def test_the_lines_of_ann_are_the_model(tmp_path: Path) -> None:
    """The numbers of the lines, evaluated here: needs no PLUMED."""
    model = learned((4, 3))
    (file,) = export_cv(model, tmp_path / "m", "ann")
    text = file.read_text()
    assert "sin_phi: CUSTOM ARG=phi FUNC=sin(x) PERIODIC=NO" in text
    assert "ARG=sin_phi,cos_phi,d,sin_psi,cos_psi" in text
    assert "NUM_LAYERS=4 NUM_NODES=5,4,3,2" in text
    assert "ACTIVATIONS=Tanh,Tanh,Linear" in text
    numbers = {
        key: np.array([float(x) for x in line.strip().split("=")[1].split(",")])
        for line in text.splitlines()
        for key in [line.strip().split("=")[0]]
        if key.startswith(("WEIGHTS", "BIASES"))
    }
    values = np.array([[0.3, 0.8, -2.0]])
    x = np.array([np.sin(0.3), np.cos(0.3), 0.8, np.sin(-2.0), np.cos(-2.0)])
    for k in range(3):
        x = numbers[f"WEIGHTS{k}"].reshape(-1, len(x)) @ x + numbers[f"BIASES{k}"]
        x = np.tanh(x) if k < 2 else x
    np.testing.assert_allclose(x, model(values)[0], rtol=1e-12)


@pytest.mark.parametrize("kind", ["json", "pt", "ptc"])
def test_exports_are_read_back(tmp_path: Path, kind: str) -> None:
    model = learned((8,))
    files = export_cv(model, tmp_path / "m", kind, dtype="float64")
    assert [file.name for file in files] == [f"m.{kind}", f"m.plumed_{kind}.dat"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(file.name for file in files)
    x = torch.tensor([[0.3, 0.8, -2.0]], dtype=torch.float64)
    wanted = model(x.numpy())[0]
    if kind == "json":
        content = json.loads(files[0].read_text())["contract"]
        assert [argument["name"] for argument in content["arguments"]] == ["phi", "d", "psi"]
        assert [output["name"] for output in content["outputs"]] == ["cv1", "cv2"]
        found = read_perceptron(files[0])(x)[0].detach().numpy()
    elif kind == "pt":
        found = torch.jit.load(str(files[0]))(x)[0].detach().numpy()
    else:
        found = torch.jit.load(str(files[0]))(x.float())[0].detach().double().numpy()
    np.testing.assert_allclose(found, wanted, rtol=1e-4 if kind == "ptc" else 1e-10)


def test_what_cannot_be_exported_is_said(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="format 'onnx'"):
        export_cv(learned(()), tmp_path / "m", "onnx")
    broken = dataclasses.replace(learned(()), mean=np.full(5, np.nan))
    with pytest.raises(CheckpointError):
        export_cv(broken, tmp_path / "m", "json")
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- models of mlcolvar


@pytest.mark.plumed
@pytest.mark.parametrize("name", ["deep_tda", "deep_tica"])
def test_models_that_mlcolvar_exported_load(kernel: Kernel, plugin: Plugin, tmp_path: Path, name: str) -> None:
    """Files that mlcolvar 1.3.1 wrote itself (tests/data/README.md); values and derivatives as eager torch has them."""
    if not plugin.torch:
        pytest.skip("the plug-in is built without torch")
    file = DATA / f"mlcolvar_{name}.ptc"
    lines = "".join(f"{c.name}: {c.definition}\n" for c in COLUMNS)
    lines += f"m: TORCH_MODEL FILE={file} ARG=phi,d,psi\nPRINT ARG=m.node-0 FILE=COLVAR_CV STRIDE=100\n"
    frames = chain(3, seed=5)
    done = driver(kernel, plugin, tmp_path, biased(lines, "m.node-0"), frames, *DUMP)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    script = torch.jit.load(str(file)).eval()
    compare(lambda x: script(x.float()), tmp_path, "m.node-0", frames, 1e-4)
