"""``ccg plumed input`` and ``check``: texts, refusals, and what a real PLUMED and gmx mdrun make of them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from plumed_tools import columns, torsion_model, torsion_signature
from test_static_bias import POINTS, TORSIONS, reference, rerun_forces, surface

from ccg_gmx.cli import main
from ccg_gmx.commands.fes_grid_options import read_windows
from ccg_gmx.engine import plumed_build, plumed_parse
from ccg_gmx.engine.gromacs import Gmx
from ccg_gmx.engine.plumed import Kernel
from ccg_gmx.engine.plumed_build import Plugin
from ccg_gmx.engine.process import capture
from ccg_gmx.export.plumed_lines import parse_input, problems
from ccg_gmx.export.static_bias import static_bias
from ccg_gmx.export.torch_model import export_model
from ccg_gmx.free_energy.surface_files import save_surface
from ccg_gmx.free_energy.umbrella import Restraint
from ccg_gmx.molecule.trajectory import read_frames

BOTH = ["--torsion", "phi=5,7,9,15", "--torsion", "psi=7,9,15,17"]


def ccg(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(part) for part in arguments], catch_exceptions=False)


def written(folder: Path, *arguments: object) -> str:
    """Text of the input, written without asking for a kernel."""
    out = folder / "plumed.dat"
    done = ccg("plumed", "input", *arguments, "--no-check", "--force", "--out", out)
    assert done.exit_code == 0, done.output
    return out.read_text()


def refused(message: str, *arguments: object) -> None:
    done = ccg("plumed", "input", *arguments)
    assert done.exit_code == 2
    assert done.output.count("\n") == 1, done.output
    assert message in done.output


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The parts of a finished run that a bias is made from."""
    folder = tmp_path_factory.mktemp("run")
    save_surface(surface(("phi", "psi")), folder / "fes.npz")
    torsions = {name: list(atoms) for name, atoms in TORSIONS.items()}
    (folder / "results.json").write_text(json.dumps({"workflow": {"coarse": {"torsions": torsions}}}))
    return folder


def test_opes_text(tmp_path: Path) -> None:
    assert written(tmp_path, *BOTH) == (
        "# OPES_METAD on phi, psi at 300 K, written by ccg plumed input\n"
        "# rad, nm, ps, kJ/mol; atoms are numbered from 1\n"
        "UNITS LENGTH=nm TIME=ps ENERGY=kj/mol\n\n"
        "phi: TORSION ATOMS=5,7,9,15\npsi: TORSION ATOMS=7,9,15,17\n\n"
        "# SIGMA: widths of kernels. BARRIER: what the bias may compensate, kJ/mol.\n"
        "opes: OPES_METAD ARG=phi,psi SIGMA=0.15,0.15 PACE=500 BARRIER=40 TEMP=300 FILE=KERNELS\n\n"
        "PRINT ARG=phi,psi,opes.bias STRIDE=100 FILE=COLVAR\n"
    )


def test_metad_has_a_grid_where_all_ranges_are_known(tmp_path: Path) -> None:
    periodic = written(tmp_path, *BOTH, "--method", "metad")
    assert "SIGMA=0.3,0.3 HEIGHT=1.2 PACE=500 BIASFACTOR=10 TEMP=300 GRID_MIN=-pi,-pi GRID_MAX=pi,pi" in periodic
    distance = [*BOTH[:2], "--distance", "d=5,17", "--method", "metad"]
    open_ended = written(tmp_path, *distance)
    assert "GRID" not in open_ended.replace("No grid", "")
    assert "No grid, since a variable has no known range" in open_ended
    assert "GRID_MIN=-pi,0.2 GRID_MAX=pi,1.2" in written(tmp_path, *distance, "--range", "d=0.2:1.2")


def test_options_reach_the_text(tmp_path: Path) -> None:
    options = ["--sigma", "psi=0.2", "--pace", 250, "--barrier", 30, "--temperature", 310, "--stride", 50]
    text = written(tmp_path, *BOTH, *options, "--on", "psi")
    assert "opes: OPES_METAD ARG=psi SIGMA=0.2 PACE=250 BARRIER=30 TEMP=310 FILE=KERNELS" in text
    assert "PRINT ARG=phi,psi,opes.bias STRIDE=50" in text


def test_umbrella_windows_and_the_table_that_fes_reads(tmp_path: Path) -> None:
    out = tmp_path / "windows"
    options = ["--method", "umbrella", "--on", "phi", "--centers", "phi=-pi:0:3", "--kappa", "phi=200", "--no-check"]
    done = ccg("plumed", "input", *BOTH, *options, "--out", out, "--ntomp", 3)
    assert done.exit_code == 0, done.output
    assert "gmx mdrun -s run.tpr -plumed plumed_000.dat -ntmpi 1 -ntomp 3" in done.output
    texts = [(out / f"plumed_{k:03d}.dat").read_text() for k in range(3)]
    assert "umbrella: RESTRAINT ARG=phi AT=-1.57079633 KAPPA=200" in texts[1]
    assert "FILE=COLVAR_002" in texts[2]
    files, restraints = read_windows(out / "windows.txt")
    assert files == tuple(out / f"COLVAR_{k:03d}" for k in range(3))
    assert [one.centers["phi"] for one in restraints if isinstance(one, Restraint)] == pytest.approx(
        [-np.pi, -np.pi / 2, 0], abs=1e-8
    )
    assert all(isinstance(one, Restraint) and one.kappas == {"phi": 200} for one in restraints)


def test_default_windows_overlap_and_cover_a_turn(tmp_path: Path) -> None:
    out = tmp_path / "windows"
    done = ccg("plumed", "input", *BOTH[:2], "--method", "umbrella", "--no-check", "--out", out)
    assert done.exit_code == 0
    _, restraints = read_windows(out / "windows.txt")
    centers = np.array([one.centers["phi"] for one in restraints if isinstance(one, Restraint)])
    kappa = next(one.kappas["phi"] for one in restraints if isinstance(one, Restraint))
    assert len(centers) == 24
    np.testing.assert_allclose(np.diff(centers), 2 * np.pi / 24, atol=1e-7)
    assert np.sqrt(0.0083144626 * 300 / kappa) == pytest.approx(np.pi / 24, rel=1e-6)  # half the distance


def test_static_bias_of_a_run(run_folder: Path, tmp_path: Path) -> None:
    text = written(tmp_path, "--method", "static", "--run", run_folder, "--cap", 9)
    assert "static: EXTERNAL ARG=phi,psi FILE=plumed.grid" in text
    assert "constant above 9 kT" in text
    header = (tmp_path / "plumed.grid").read_text().splitlines()[:5]
    assert header[0] == "#! FIELDS phi psi static.bias der_phi der_psi"
    assert header[1:] == ["#! SET min_phi -pi", "#! SET max_phi pi", "#! SET nbins_phi 216", "#! SET periodic_phi true"]


def test_colvars_of_a_run(run_folder: Path, tmp_path: Path) -> None:
    options = ["--method", "static", "--run", run_folder, "--through", "colvars", "--out", tmp_path / "cv"]
    done = ccg("plumed", "input", *options)
    assert done.exit_code == 0, done.output
    assert "colvars-configfile = colvars.dat" in done.output
    assert "updateBias off" in (tmp_path / "cv" / "colvars.dat").read_text()
    assert len((tmp_path / "cv" / "static_bias.grad").read_text().split("\n\n")) == 1 + 360


def test_learned_variable_and_learned_bias(tmp_path: Path) -> None:
    model = tmp_path / "energy.json"
    export_model(torsion_model(), torsion_signature(), model)
    text = written(tmp_path, *BOTH, "--model", f"cv={model}")
    assert f"cv: TORCH_MODEL FILE={model} ARG=phi,psi\n" in text
    assert "opes: OPES_METAD ARG=cv.energy SIGMA=ADAPTIVE" in text
    text = written(tmp_path, *BOTH, "--model", f"b={model}", "--method", "static")
    assert f"b: TORCH_MODEL FILE={model} ARG=phi,psi BIAS\n" in text
    assert "PRINT ARG=phi,psi,b.bias" in text
    text = written(tmp_path, *BOTH, "--model", f"cv={model}", "--model-action", "pytorch", "--method", "static")
    assert f"cv: PYTORCH_MODEL FILE={model} ARG=phi,psi\n" in text
    assert "static: BIASVALUE ARG=cv.node-0" in text


def test_ann_text_gets_our_label_and_arguments(tmp_path: Path) -> None:
    ann = tmp_path / "net.dat"
    ann.write_text("# trained\nANN ...\nLABEL=old\nNUM_LAYERS=2\nNUM_NODES=2,1\nACTIVATIONS=Tanh\n... ANN\n")
    text = written(tmp_path, *BOTH, "--model", f"cv={ann}")
    assert "cv: ANN ARG=phi,psi ...\n" in text
    assert "LABEL" not in text
    assert "ARG=cv.node-0" in text


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("--torsion phi=5,7,9", ["--torsion", "phi=5,7,9"]),
        ("4 different ones", ["--torsion", "phi=5,7,9,9"]),
        ("a variable named 'opes'", ["--torsion", "opes=5,7,9,15"]),
        ("variables none", []),
        ("--on names chi", [*BOTH, "--on", "chi"]),
        ("--sigma names chi", [*BOTH, "--sigma", "chi=1"]),
        ("--sigma phi=-1", [*BOTH, "--sigma", "phi=-1"]),
        ("no model", [*BOTH, "--model", "cv=nowhere.pt"]),
        ("a static bias of nothing", [*BOTH, "--method", "static"]),
        ("AWH cannot hold a static bias", [*BOTH, "--through", "awh"]),
        ("no learned model", [*BOTH, "--through", "colvars"]),
        ("no centers of windows on d", ["--distance", "d=1,2", "--method", "umbrella", "--no-check"]),
        ("no results.json", ["--method", "static", "--run", "."]),
    ],
)
def test_refusals_are_one_line(
    message: str, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(message, *arguments, "--temperature", 300)
    assert list(tmp_path.iterdir()) == []


def test_existing_files_stay(tmp_path: Path) -> None:
    (tmp_path / "plumed.dat").write_text("mine\n")
    refused("exists already", *BOTH, "--temperature", 300, "--no-check", "--out", tmp_path / "plumed.dat")
    assert (tmp_path / "plumed.dat").read_text() == "mine\n"


def test_another_temperature_than_the_run_is_refused(run_folder: Path) -> None:
    refused("is at 300 K", "--method", "static", "--run", run_folder, "--temperature", 310)


def test_missing_module_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(Path("/somewhere/libplumedKernel.so"), "test")
    monkeypatch.setattr(plumed_parse, "find_kernel", lambda: kernel)
    monkeypatch.setattr(plumed_parse, "missing_modules", lambda *_: {"OPES_METAD": "opes"})
    refused("needs PLUMED's module opes", *BOTH, "--temperature", 300, "--out", tmp_path / "plumed.dat")
    assert not (tmp_path / "plumed.dat").exists()


USER = """\
# mine
phi: TORSION ATOMS=5,7,9,15
METAD ...
  ARG=phi SIGMA=0.3 HEIGHT=1
  PACE=100 LABEL=m
... METAD
COMMENT
e: ENERGY
ENDCOMMENT
PRINT ARG=phi,m.bias,@replicas:1 FILE=COLVAR
ENDPLUMED
nonsense
"""


def test_parser_reads_continuations_comments_and_the_end() -> None:
    actions = parse_input(USER)
    assert [(one.line, one.label, one.action) for one in actions] == [
        (2, "phi", "TORSION"),
        (3, "m", "METAD"),
        (10, "", "PRINT"),
    ]
    assert actions[1].keywords["PACE"] == "100"
    assert problems(actions, atoms=15) == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("e: ENERGY", "silently 0"),
        ("d: DISTANCE ATOMS=1,23", "names atom 23; the system has 22"),
        ("com: COM ATOMS=1-30", "names atom 30"),
        ("r: RESTRAINT ARG=psi AT=0 KAPPA=1", "psi, which is not defined above"),
        ("phi: DISTANCE ATOMS=1,2", "used before"),
        ("x: TORSIN ATOMS=1,2,3,4", "no action TORSIN"),
    ],
)
def test_own_rules_find(line: str, message: str) -> None:
    actions = parse_input(f"phi: TORSION ATOMS=5,7,9,15\n{line}\n")
    found = problems(actions, known=("TORSION", "ENERGY", "DISTANCE", "COM", "RESTRAINT"), atoms=22)
    assert len(found) == 1
    assert message in found[0]
    assert found[0].startswith("line 2: ")


def test_check_works_without_plumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLUMED_KERNEL", str(tmp_path / "none.so"))
    file = tmp_path / "plumed.dat"
    file.write_text("e: ENERGY\nPRINT ARG=e FILE=COLVAR\n")
    done = ccg("plumed", "check", file)
    assert done.exit_code == 2
    assert "silently 0" in done.output
    assert "own rules alone" in done.output


@pytest.mark.plumed
def test_plumed_itself_reads_every_input(kernel: Kernel, run_folder: Path, tmp_path: Path) -> None:
    for number, options in enumerate(
        (
            [*BOTH],
            [*BOTH, "--method", "metad"],
            ["--distance", "d=5,17", "--method", "metad", "--range", "d=0.2:1.2"],
            ["--method", "static", "--run", run_folder],
        )
    ):
        out = tmp_path / f"{number}.dat"
        assert ccg("plumed", "input", *options, "--out", out, "--temperature", 300).exit_code == 0
        before = sorted(os.listdir(tmp_path))
        done = ccg("plumed", "check", out)
        assert done.exit_code == 0, done.output
        assert f"of PLUMED {kernel.version}" in done.output
        assert sorted(os.listdir(tmp_path)) == before  # PLUMED opens its outputs, elsewhere


@pytest.mark.plumed
def test_plumeds_own_complaint_is_passed_on(kernel: Kernel, tmp_path: Path) -> None:
    file = tmp_path / "plumed.dat"
    file.write_text("phi: TORSION ATOMS=5,7,9,15\nr: RESTRAINT ARG=phi KAPPA=1\n")
    done = ccg("plumed", "check", file)
    assert done.exit_code == 2
    assert "PLUMED says: RESTRAINT" in done.output
    assert "AT" in done.output


@pytest.mark.gmx
@pytest.mark.plumed
def test_mdrun_applies_the_intended_force(
    kernel: Kernel, gmx: Gmx, run_folder: Path, alanine_tpr: Path, alanine_trr: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("PLUMED_KERNEL", str(kernel.library))
    options = ["--method", "static", "--run", run_folder, "--tpr", alanine_tpr, "--stride", 1]
    done = ccg("plumed", "input", *options, "--out", tmp_path / "plumed.dat")
    assert done.exit_code == 0, done.output
    frames = read_frames(alanine_trr, 22)
    bias = static_bias(surface(("phi", "psi")))
    energy, gradient = reference(bias).energy_and_gradient(torch.from_numpy(frames.positions))
    biased, _ = rerun_forces(gmx, alanine_tpr, alanine_trr, tmp_path, "-plumed", "plumed.dat")
    off = biased - frames.forces + gradient.numpy()
    assert np.sqrt((off**2).mean() / (gradient.numpy() ** 2).mean()) < 0.002
    printed = columns(tmp_path / "COLVAR")["static.bias"]
    np.testing.assert_allclose(printed, energy.numpy(), atol=0.01)
    assert POINTS < 216  # the grid is finer than the surface


@pytest.mark.plumed
def test_plumed_reads_learned_variables(plugin: Plugin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plumed_build, "find_plugin", lambda: plugin)
    model, ann = tmp_path / "energy.json", tmp_path / "net.dat"
    export_model(torsion_model(), torsion_signature(), model)
    weights = "WEIGHTS0=0.1,0.2 BIASES0=0.3"
    ann.write_text(f"ANN ...\nLABEL=old {weights}\nNUM_LAYERS=2 NUM_NODES=2,1\nACTIVATIONS=Tanh\n... ANN\n")
    for number, options in enumerate(
        (["--model", f"cv={model}"], ["--model", f"cv={model}", "--method", "static"], ["--model", f"cv={ann}"])
    ):
        out = tmp_path / f"{number}.dat"
        done = ccg("plumed", "input", *BOTH, *options, "--temperature", 300, "--out", out)
        assert done.exit_code == 0, done.output
        done = ccg("plumed", "check", out)
        assert done.exit_code == 0, done.output


@pytest.mark.plumed
def test_umbrella_windows_run_in_driver(kernel: Kernel, tmp_path: Path) -> None:
    out = tmp_path / "w"
    options = ["--torsion", "phi=1,2,3,4", "--method", "umbrella", "--centers", "phi=0:1:2", "--kappa", "phi=10"]
    assert ccg("plumed", "input", *options, "--stride", 1, "--out", out).exit_code == 0
    rows = "4\n9 9 9\nX 1 0 0\nX 0 0 0\nX 0 1 0\nX 0 1 1\n"  # a right angle
    (out / "x.xyz").write_text(rows)
    command = [*kernel.command, "driver", "--plumed", "plumed_001.dat", "--ixyz", "x.xyz", "--length-units", "nm"]
    done = capture(command, cwd=out)
    assert done.returncode == 0, done.stderr
    row = columns(out / "COLVAR_001")
    assert abs(row["phi"][0]) == pytest.approx(np.pi / 2, abs=1e-6)
    assert row["umbrella.bias"][0] == pytest.approx(5 * (row["phi"][0] - 1) ** 2, abs=1e-4)
