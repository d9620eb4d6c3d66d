"""``ccg cv train`` and ``ccg cv export`` as a user types them."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from cv_systems import double_well, ornstein_uhlenbeck, xor

from ccg_gmx import cli
from ccg_gmx.commands.cv import cv
from ccg_gmx.cv.model import load_cv
from ccg_gmx.units import thermal_energy

MAIN = type(cli.main)("ccg", commands={"cv": cv})
PNG = b"\x89PNG"
PERIODS = "".join(f"#! SET min_{name} -pi\n#! SET max_{name} pi\n" for name in ("phi", "psi"))
QUICK = ("--hidden", "8", "--steps", "60", "--batch", "512", "--quiet")


def ccg(*arguments: object) -> Result:
    return CliRunner().invoke(MAIN, ["cv", *(str(argument) for argument in arguments)])


def done(*arguments: object) -> str:
    result = ccg(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(message: str, *arguments: object) -> None:
    """The mistake ends with 2 and one line that says so."""
    result = ccg(*arguments)
    assert result.exit_code == 2, result.output
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    assert message in result.stderr


def table(path: Path, settings: str = "", **columns: np.ndarray) -> Path:
    rows = np.stack(list(columns.values()), axis=-1)
    head = f"#! FIELDS {' '.join(columns)}\n{settings}"
    path.write_text(head + "".join(" ".join(f"{x:.8f}" for x in row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """COLVAR files: slow and fast, a hidden product, a biased double well, three states of two angles."""
    out, rng = tmp_path_factory.mktemp("cv"), np.random.default_rng(0)
    x = ornstein_uhlenbeck(np.array([20.0, 1.0]), 4000, rng)
    time = np.arange(4000.0)
    table(out / "OU", time=time, a=x[:, 0] + x[:, 1], b=x[:, 0] - x[:, 1], flat=np.full(4000, 2.0))
    v, _ = xor(4000, 0.05, 0.2, rng)
    table(out / "XOR", time=time, a=v[:, 0], b=v[:, 1])
    slow = double_well(4000, 20, rng, 4.0, 0.6)
    bias = -0.6 * 4 * (slow**2 - 1) ** 2 * thermal_energy(300.0)
    table(out / "DW", time=0.04 * time, a=slow, b=rng.normal(size=4000), bias=bias)
    for name, (phi, psi) in {"A": (-1.4, 1.2), "B": (1.0, -1.0), "C": (-1.2, -0.8)}.items():
        angles = np.array([phi, psi]) + 0.2 * rng.normal(size=(800, 2))
        table(out / name, PERIODS, time=time[:800], phi=angles[:, 0], psi=angles[:, 1])
    (out / "NAN").write_text("#! FIELDS time a b\n0 1 2\n1 nan 3\n2 1 1\n")
    return out


def test_tica_from_files_to_report_picture_and_plumed(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "slow"
    text = done(
        "train", folder / "OU", "--method", "tica", "--arg", "a,b", "--lag", 2, "--count", 2, "--plot", "--out", out
    )
    assert "cv1: eigenvalue 0.9" in text
    assert out.with_name("slow.png").read_bytes().startswith(PNG)
    report = json.loads(out.with_name("slow.report.json").read_text())
    first = report["timescales"][0]
    assert abs(first["ps"][0] - 20) < 4.5 * first["errors_ps"][0]
    row = report["coefficients"][0]
    assert row["a"] == pytest.approx(row["b"], rel=0.2)
    assert report["settings"]["seed"] == 0
    printed = done("export", out.with_name("slow.model.pt"), "--format", "json")
    assert "TORCH_MODEL FILE=slow.json ARG=a,b" in printed
    assert "define a, b before this line" in printed
    done("export", out.with_name("slow.model.pt"), "--format", "ann", "--out", tmp_path / "ann")
    assert "NUM_NODES=2,2" in (tmp_path / "ann.plumed_ann.dat").read_text()


def test_deep_tica_goes_on_where_it_was(folder: Path, tmp_path: Path) -> None:
    command = ("train", folder / "XOR", "--method", "deep-tica", "--arg", "a,b", "--lag", 1, *QUICK, "--plot")
    done(*command, "--out", tmp_path / "m")
    state = torch.load(tmp_path / "m.training.pt", weights_only=True)
    assert state["step"] == 60
    again = json.loads(done(*command, "--out", tmp_path / "m", "--json"))
    assert again["training"]["steps"] == 60
    assert (tmp_path / "m.png").read_bytes().startswith(PNG)
    refused("training with other seed", *command, "--out", tmp_path / "m", "--seed", 4)


def test_a_biased_run(folder: Path, tmp_path: Path) -> None:
    command = ("train", folder / "DW", "--method", "tica", "--arg", "a,b", "--lag", 0.4, "--bias", "bias")
    text = done(*command, "--temperature", 300, "--plot", "--out", tmp_path / "m")
    assert "times are not physical" in text
    assert "kish_ess" in text
    model = load_cv(tmp_path / "m.model.pt")
    assert abs(model.weights[0][0, 0]) > 20 * abs(model.weights[0][0, 1])
    refused("a bias without a temperature", *command, "--out", tmp_path / "m")


def test_log_weights_and_a_lag_that_is_too_long(folder: Path, tmp_path: Path) -> None:
    """The same weight for every frame changes nothing; a bias beside them is refused."""
    common = ("train", folder / "OU", "--method", "tica", "--arg", "a,b", "--lag", 60)
    plain = json.loads(done(*common, "--json", "--out", tmp_path / "m"))
    even = json.loads(done(*common, "--log-weights", "flat", "--json", "--out", tmp_path / "n"))
    assert even["timescales"][0]["eigenvalues"] == pytest.approx(plain["timescales"][0]["eigenvalues"])
    assert any("relaxes within the lag" in word or "not slow" in word for word in plain["warnings"])
    refused("a bias and log-weights", *common, "--log-weights", "flat", "--bias", "b", "--temperature", 300)


@pytest.mark.parametrize(("method", "count"), [("lda", 2), ("deep-tda", 1), ("deep-tda", 2)])
def test_states_are_told_apart(folder: Path, tmp_path: Path, method: str, count: int) -> None:
    states = [word for name in "ABC" for word in ("--state", f"{name}={folder / name}")]
    more = ("--count", count, *QUICK, "--steps", 400, "--learning-rate", 0.01)
    text = done(
        "train", *states, "--method", method, "--arg", "phi,psi", *more, "--plot", "--json", "--out", tmp_path / "m"
    )
    report = json.loads(text)
    places = [np.array(state["held_out"]["mean"]) for state in report["states"]]
    widths = [np.array(state["held_out"]["std"]) for state in report["states"]]
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert np.linalg.norm(places[i] - places[j]) > 2 * np.linalg.norm(widths[i] + widths[j]) / math.sqrt(count)
    assert (tmp_path / "m.png").read_bytes().startswith(PNG)
    assert load_cv(tmp_path / "m.model.pt").columns[0].domain == (-math.pi, math.pi)


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("one state, A", ("--method", "lda", "--state", "A={A}", "--arg", "phi")),
        ("no states", ("{A}", "--method", "deep-tda", "--arg", "phi")),
        ("longest run", ("{OU}", "--method", "tica", "--arg", "a,b", "--lag", "5000")),
        ("a multiple of the time between frames", ("{OU}", "--method", "tica", "--arg", "a,b", "--lag", "0.5")),
        ("column flat is constant", ("{OU}", "--method", "tica", "--arg", "a,flat", "--lag", "1")),
        ("a is nan in row 2", ("{NAN}", "--method", "tica", "--arg", "a,b", "--lag", "1")),
        ("no column nope", ("{OU}", "--method", "tica", "--arg", "nope", "--lag", "1")),
        ("without --lag", ("{OU}", "--method", "tica", "--arg", "a")),
        ("--lag with --method lda", ("--method", "lda", "--state", "A={A}", "--arg", "phi", "--lag", "1")),
        ("no column to learn from", ("{OU}", "--method", "tica", "--lag", "1")),
        ("no file to learn from", ("--method", "tica", "--arg", "a", "--lag", "1")),
        ("expected --tpr", ("x.xtc", "--method", "tica", "--lag", "1", "--torsion", "phi=1,2,3,4")),
        ("--torsion phi=1,2", ("x.xtc", "--method", "tica", "--lag", "1", "--torsion", "phi=1,2")),
        ("belongs to no state", ("{OU}", "--method", "lda", "--state", "A={A}", "--arg", "phi")),
        ("--hidden 3,x", ("{XOR}", "--method", "deep-tica", "--arg", "a,b", "--lag", "1", "--hidden", "3,x")),
        ("3 variables of 2 features", ("{XOR}", "--method", "tica", "--arg", "a,b", "--lag", "1", "--count", "3")),
    ],
)
def test_mistakes_are_one_line(folder: Path, tmp_path: Path, message: str, arguments: tuple[str, ...]) -> None:
    files = {name: str(folder / name) for name in ("A", "OU", "XOR", "NAN")}
    filled = [text.format(**files) for text in arguments]
    refused(message, "train", *filled, "--out", tmp_path / "m")
    assert not list(tmp_path.glob("*.model.pt"))


def test_a_file_that_is_no_model_is_refused(folder: Path) -> None:
    refused("cannot be read", "export", folder / "OU")
    refused("does not exist", "export", folder / "nothing.pt")


@pytest.mark.gmx
def test_trajectories_with_torsions_and_distances(alanine_tpr: Path, alanine_trr: Path, tmp_path: Path) -> None:
    """The frames of a trajectory, and PLUMED lines that need nothing else."""
    shutil.copy(alanine_trr, tmp_path / "run.trr")
    text = done(
        "train", tmp_path / "run.trr", "--tpr", alanine_tpr, "--method", "tica", "--lag", 0.2,
        "--torsion", "phi=5,7,9,15", "--torsion", "psi=7,9,15,17", "--distance", "ends=2,19",
        "--out", tmp_path / "m", "--quiet",
    )  # fmt: skip
    assert "tica of 201 frames, 1 run" in text
    lines = done("export", tmp_path / "m.model.pt")
    assert "phi: TORSION ATOMS=5,7,9,15" in lines
    assert "ends: DISTANCE ATOMS=2,19" in lines
    refused(
        "distance ends = 2, 99", "train", tmp_path / "run.trr", "--tpr", alanine_tpr, "--method", "tica", "--lag", 0.2,
        "--distance", "ends=2,99", "--quiet",
    )  # fmt: skip
