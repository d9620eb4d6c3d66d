"""TORCH_MODEL refuses what does not fit its contract, and stops at numbers that are not finite."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from plumed_tools import (
    TORSION_LINES,
    chain,
    columns,
    driver,
    refused,
    torsion_model,
    torsion_signature,
)
from torch import nn

from ccg_gmx.engine.plumed import Kernel
from ccg_gmx.engine.plumed_build import Plugin
from ccg_gmx.export.contract import Quantity, Signature, energy
from ccg_gmx.export.feature_perceptron import Feature, FeaturePerceptron, all_distances
from ccg_gmx.export.torch_model import export_model

pytestmark = pytest.mark.plumed


BASE = "m: TORCH_MODEL FILE={torsions} ARG=phi,psi"


@pytest.mark.parametrize(
    ("lines", "options", "message"),
    [
        (
            "m: TORCH_MODEL FILE={torsions} ARG=phi",
            "",
            r"number of arguments: the model has 2 arguments, .* 1 argument",
        ),
        ("m: TORCH_MODEL FILE={torsions} ARG=psi,phi", "", r'name of argument 1 .*"phi", the input line "psi"'),
        (
            "d: DISTANCE ATOMS=1,2\nm: TORCH_MODEL FILE={torsions} ARG=phi,d ANY_NAMES",
            "",
            r"period of argument 2 \(d\)",
        ),
        ("m: TORCH_MODEL FILE={torsions} ARG=phi,psi TEMP=310", "", r"temperature: the model has 300 K.* 310 K"),
        (BASE, "--kt 2.5774", r"temperature: the model has 300 K, .*MD engine 309\.\d+ K"),
        (
            "m: TORCH_MODEL FILE={torsions} ARG=phi,psi ATOMS=1-4",
            "",
            r"number of atoms: the model has 0 atoms, .* 4 atoms",
        ),
        ("m: TORCH_MODEL FILE={mixed} ARG=phi ATOMS=1-3", "", r"number of atoms: the model has 4 atoms, .* 3 atoms"),
        (
            "m: TORCH_MODEL FILE={mixed} ARG=phi ATOMS=1-4 BIAS",
            "",
            r"outputs: the model has 2 outputs, the input line BIAS",
        ),
        ("m: TORCH_MODEL FILE={serials} ATOMS=1,3", "", r"atom 2: the model has atom number 2, the input line 3"),
        (
            "m: TORCH_MODEL FILE={cv} ARG=phi,psi BIAS",
            "",
            r'unit of output "cv": the model has no unit, the input line BIAS',
        ),
        ("m: TORCH_MODEL FILE=nowhere.json ARG=phi,psi", "", r"model nowhere\.json: the file cannot be read"),
    ],
)
def test_a_mismatch_names_both_sides(
    kernel: Kernel,
    plugin: Plugin,
    files: dict[str, Path],
    tmp_path: Path,
    lines: str,
    options: str,
    message: str,
) -> None:
    pair = FeaturePerceptron.build(all_distances(2), 0, [1])
    serials = export_model(pair, Signature((), (energy(),), atoms=2, serials=(1, 2)), tmp_path / "serials.json")
    cv = export_model(torsion_model(), torsion_signature(Quantity("cv")), tmp_path / "cv.json")
    names = {"torsions": files["torsions.json"], "mixed": files["mixed_float64.json"], "serials": serials, "cv": cv}
    done = driver(kernel, plugin, tmp_path, TORSION_LINES + lines.format(**names), chain(1), *options.split())
    refused(done, message)


@pytest.mark.parametrize(
    ("units", "message"),
    [
        ("LENGTH=A", r"unit of ATOMS: the model has nm, the input line UNITS of 0\.1 nm"),
        ("ENERGY=kcal/mol", r'unit of output "f": the model has kJ/mol, the input line UNITS of 4\.184 kJ/mol'),
    ],
)
def test_units_of_the_input_are_compared(
    kernel: Kernel, plugin: Plugin, files: dict[str, Path], tmp_path: Path, units: str, message: str
) -> None:
    lines = f"UNITS {units}\n{TORSION_LINES}m: TORCH_MODEL FILE={files['mixed_float64.json']} ARG=phi ATOMS=1-4"
    refused(driver(kernel, plugin, tmp_path, lines, chain(1)), message)


def test_matching_temperature_and_other_names_are_accepted(
    kernel: Kernel, plugin: Plugin, files: dict[str, Path], tmp_path: Path
) -> None:
    lines = TORSION_LINES.replace("phi", "a").replace("psi", "b")
    lines += f"m: TORCH_MODEL FILE={files['torsions.json']} ARG=a,b ANY_NAMES\nPRINT ARG=m.* FILE=v"
    done = driver(kernel, plugin, tmp_path, lines, chain(1), "--kt", "2.4943387854")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr


def edited(path: Path, to: Path, **changes: Any) -> Path:
    """A .json model with entries of its contract changed."""
    content = json.loads(path.read_text())
    content["contract"].update(changes)
    to.write_text(json.dumps(content))
    return to


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 99}, r"contract version 99, this plug-in reads version 1"),
        ({"format": "other"}, r'format "other", expected "ccg_torch_model"'),
        ({"n_in": 3}, r"n_in 3, but the inputs listed make 2"),
        ({"dtype": "float16"}, r'dtype "float16", expected float32 or float64'),
        ({"backend": "aoti"}, r'the contract is one for "aoti", a \.json file holds a perceptron'),
        ({"trials": [{"input": [0, 0], "values": [7], "gradient": [0, 0]}]}, r"trial 1 gives .* where torch gave 7"),
        ({"trials": [{"input": [0], "values": [7], "gradient": [0]}]}, r"a trial of the contract has the wrong size"),
        ({"outputs": [{"name": "bias"}]}, r'output "bias" has a name that PLUMED reserves'),
        ({"outputs": []}, r"a model without inputs or without outputs"),
    ],
)
def test_damaged_contracts(
    kernel: Kernel, plugin: Plugin, files: dict[str, Path], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    path = edited(files["torsions.json"], tmp_path / "m.json", **changes)
    lines = f"{TORSION_LINES}m: TORCH_MODEL FILE={path} ARG=phi,psi"
    refused(driver(kernel, plugin, tmp_path, lines, chain(1)), message)


@pytest.mark.parametrize("text", ["", "{", '{"contract": [1, 2', '{"a": 1e}', "[" * 100, '{"a": NaN}', '"\\u00'])
def test_files_that_are_no_json(kernel: Kernel, plugin: Plugin, tmp_path: Path, text: str) -> None:
    (tmp_path / "m.json").write_text(text)
    refused(
        driver(kernel, plugin, tmp_path, f"{TORSION_LINES}m: TORCH_MODEL FILE=m.json ARG=phi,psi", chain(1)),
        "model m.json: not valid JSON",
    )


def test_a_model_of_absolute_positions_has_no_virial(kernel: Kernel, plugin: Plugin, tmp_path: Path) -> None:
    if not plugin.torch:
        pytest.skip("the plug-in is built without torch")
    path = export_model(nn.Linear(6, 1), Signature((), (energy(),), atoms=2), tmp_path / "m.pt", dtype="float64")
    refused(
        driver(kernel, plugin, tmp_path, f"m: TORCH_MODEL FILE={path} ATOMS=1,2\nPRINT ARG=m.energy FILE=v", chain(1)),
        r'output "energy" changes when all atoms move together .*virial is undefined',
    )


class Step(nn.Module):
    """A distance, and an absolute position where that is above 1.5 nm: flat below, where its virial is fine."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x[:, 3:] - x[:, :3]).norm(dim=1, keepdim=True) + torch.relu(x[:, :1] - 1.5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_virial_is_watched_at_every_step(kernel: Kernel, plugin: Plugin, tmp_path: Path) -> None:
    """The first frames are those of a model with a virial; the one where it has none stops the run."""
    if not plugin.torch:
        pytest.skip("the plug-in is built without torch")
    path = export_model(Step(), Signature((), (energy(),), atoms=2), tmp_path / "m.pt", dtype="float64")
    frames = np.repeat(chain(1, seed=10), 4, axis=0)
    frames += 1.0 - frames[0, 0]
    frames[3] += 0.8
    lines = f"m: TORCH_MODEL FILE={path} ATOMS=1,2 NOPBC\nPRINT ARG=m.energy FILE=v"
    done = driver(kernel, plugin, tmp_path, lines, frames)
    refused(done, r'TORCH_MODEL m: output "energy" changes when all atoms move .*virial is undefined.* at step 3 ')
    assert driver(kernel, plugin, tmp_path, lines, frames[:3]).returncode == 0


class Centred(nn.Module):
    """A function of positions from their mean, whose derivative is a difference of large numbers."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        r = x.reshape(x.shape[0], -1, 3)
        return 1e4 * torch.sin((r - r.mean(1, keepdim=True))[..., 0] + 0.3).sum(1, keepdim=True)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_flat_step_of_a_single_precision_model_stops_nothing(kernel: Kernel, plugin: Plugin, tmp_path: Path) -> None:
    """All atoms in a plane: what is left of the derivatives is rounding error, judged by what they were before."""
    if not plugin.torch:
        pytest.skip("the plug-in is built without torch")
    path = export_model(Centred(), Signature((), (energy(),), atoms=7), tmp_path / "m.pt", dtype="float32")
    frames = np.repeat(chain(1, seed=11, atoms=7), 2, axis=0)
    frames[1, :, 0] = 0.37
    lines = f"m: TORCH_MODEL FILE={path} ATOMS=1-7 NOPBC\nDUMPDERIVATIVES ARG=m.energy FILE=d FMT=%.9g"
    done = driver(kernel, plugin, tmp_path, lines, frames)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    slopes = columns(tmp_path / "d")["m.energy"].reshape(2, 30)[:, :21].reshape(2, 7, 3)
    drift, size = np.abs(slopes.sum(axis=1)).max(axis=1), np.abs(slopes).max(axis=(1, 2))
    assert drift[1] > 1e-3 * max(size[1], 1e-3) * 7**0.5  # by itself this step would look like a model of the origin
    assert drift[0] < 1e-6 * size[0]


# ---------------------------------------------------------------- numbers that are not finite


@pytest.mark.parametrize("suffix", ["json", "pt", "pt2"])
def test_a_gradient_that_is_not_finite_stops_the_run(
    kernel: Kernel, plugin: Plugin, files: dict[str, Path], tmp_path: Path, suffix: str
) -> None:
    """Two atoms on one spot: the value is finite, the gradient is 0/0."""
    name = f"mixed_float64.{suffix}"
    if name not in files:
        pytest.skip("the plug-in is built without torch")
    frames = chain(3, seed=9)
    frames[2, 3] = frames[2, 0]
    lines = f"phi: TORSION ATOMS=1,2,3,5\nm: TORCH_MODEL FILE={files[name]} ARG=phi ATOMS=1-4\nPRINT ARG=m.f FILE=v"
    done = driver(kernel, plugin, tmp_path, lines, frames)
    refused(done, r'TORCH_MODEL m: the gradient of output "f" is -?nan at step 2 .*; inputs phi=.* atom 1=.* atom 4=')


def test_an_infinite_value_stops_the_run(kernel: Kernel, plugin: Plugin, tmp_path: Path) -> None:
    model = FeaturePerceptron.build([Feature("argument", 0)], 1, [1]).double()
    nn.init.constant_(model.layers[0].weight, 1e300)
    path = export_model(model, Signature((Quantity("d"),), (energy(),)), tmp_path / "m.json")
    lines = f"d: CUSTOM ARG=x FUNC=1e10*x PERIODIC=NO\nm: TORCH_MODEL FILE={path} ARG=d\nPRINT ARG=m.* FILE=v"
    done = driver(kernel, plugin, tmp_path, "x: DISTANCE ATOMS=1,2\n" + lines, chain(1))
    refused(done, r'TORCH_MODEL m: output "energy" is inf at step 0 \(time 0\); inputs d=1\.5e\+09')
