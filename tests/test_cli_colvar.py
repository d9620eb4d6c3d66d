"""``ccg fes colvar`` and ``ccg fes hills`` as a user types them: files, windows, pictures, mistakes."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from ccg_gmx import cli
from ccg_gmx.commands.fes import fes
from ccg_gmx.free_energy.grid_files import load_grid_surface
from ccg_gmx.free_energy.surface import load_surface
from ccg_gmx.units import thermal_energy

MAIN = type(cli.main)("ccg", commands={"fes": fes})
PNG = b"\x89PNG"
PI = math.pi
KT = thermal_energy(300.0)
SIDES = ("--basin", "left=phi:-180:0", "--basin", "right=phi:0:180")
PERIODS = "".join(f"#! SET min_{name} -pi\n#! SET max_{name} pi\n" for name in ("phi", "psi"))


def ccg(*arguments: object) -> Result:
    return CliRunner().invoke(MAIN, [str(argument) for argument in arguments])


def done(*arguments: object) -> str:
    result = ccg("fes", *arguments)
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    return result.stdout


def refused(message: str, *arguments: object) -> None:
    """The mistake ends with 2 and one line that says so."""
    result = ccg("fes", *arguments)
    assert result.exit_code == 2, result.output
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    assert message in result.stderr


def table(path: Path, settings: str, **columns: np.ndarray) -> Path:
    head = f"#! FIELDS {' '.join(columns)}\n{settings}"
    rows = np.stack(list(columns.values()), axis=-1)
    path.write_text(head + "".join(" ".join(f"{x:.8f}" for x in row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def colvar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3000 independent frames, uniform in phi under a bias that flattens 2 kT cos(phi); psi and d as they are."""
    rng = np.random.default_rng(0)
    phi = rng.uniform(-PI, PI, 3000)
    return table(
        tmp_path_factory.mktemp("colvar") / "COLVAR", PERIODS, time=0.5 * np.arange(3000), phi=phi,
        psi=rng.vonmises(1.0, 2.0, 3000), d=0.8 + 0.1 * rng.standard_normal(3000), bias=-2 * KT * np.cos(phi),
    )  # fmt: skip


# colvar


def test_reweighted_surface_in_every_form(colvar: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "f"
    text = done("colvar", colvar, "--cv", "phi:-pi:pi:24", "--bias", "bias", *SIDES, "--plot", "--out", out)
    assert "3000 frames of 1 run at 300 K" in text
    assert "temperature taken as 300 K" in text
    assert "delta_f, right - left" in text
    surface = load_surface(out.with_suffix(".npz"))
    exact = 2 * np.cos(-PI + 2 * PI * np.arange(24) / 24)
    away = surface.f - exact - np.average(surface.f - exact, weights=np.exp(-exact))
    assert np.mean((away / surface.error) ** 2) < 2.5, "24 bins of known errors: 2.5 has a chance of 1e-4"
    names = ["f.dat", "f.json", "f.npz", "f.png", "f_settling.png"]
    assert sorted(path.name for path in out.parent.iterdir()) == names
    assert all((out.parent / name).read_bytes().startswith(PNG) for name in names[3:])
    report = json.loads((out.parent / "f.json").read_text())
    assert report["delta_f"][0]["kJ_mol"] == pytest.approx(0, abs=4 * report["delta_f"][0]["error_kJ_mol"])
    assert 0 < report["kish_fraction"] < 1


def test_json_is_what_the_file_has(colvar: Path, tmp_path: Path) -> None:
    printed = json.loads(done("colvar", colvar, "--cv", "phi", "--cv", "psi", "--json", "--out", tmp_path / "f"))
    kept = json.loads((tmp_path / "f.json").read_text())
    assert printed == {key: kept[key] for key in printed}
    assert [axis["name"] for axis in printed["axes"]] == ["phi", "psi"]
    assert printed["biased"] is False
    assert len(printed["settling"]["x"]) == 10


@pytest.mark.parametrize(("unit", "kJ_mol"), [("kJ/mol", 1.0), ("kcal/mol", 4.184), ("eV", 96.4853321), ("kT", KT)])
def test_units_of_a_bias(colvar: Path, tmp_path: Path, unit: str, kJ_mol: float) -> None:
    rows = np.loadtxt(colvar)
    path = table(tmp_path / "C", PERIODS, time=rows[:, 0], phi=rows[:, 1], bias=rows[:, 4] / kJ_mol)
    for name, file, which in (("a", colvar, "kJ/mol"), ("b", path, unit)):
        done("colvar", file, "--cv", "phi:24", "--bias", "bias", "--energy-unit", which, "--out", tmp_path / name)
    a, b = (load_surface(tmp_path / f"{name}.npz") for name in "ab")
    np.testing.assert_allclose(a.f, b.f, atol=1e-5)


def test_a_bias_of_a_file_of_its_own(colvar: Path, tmp_path: Path) -> None:
    rows = np.loadtxt(colvar)
    other = table(tmp_path / "B", "", time=rows[:, 0], v=rows[:, 4])
    for name, bias in (("a", "bias"), ("b", f"{other}:v")):
        done("colvar", colvar, "--cv", "phi:24", "--bias", bias, "--stride", 2, "--out", tmp_path / name)
    np.testing.assert_array_equal(load_surface(tmp_path / "a.npz").f, load_surface(tmp_path / "b.npz").f)
    short = table(tmp_path / "S", "", time=rows[:-5, 0], v=rows[:-5, 4])
    common = ("colvar", colvar, "--cv", "phi", "--out", tmp_path / "x")
    refused("has 2995 rows and", *common, "--bias", f"{short}:v")
    late = table(tmp_path / "L", "", time=rows[:, 0] + 0.25, v=rows[:, 4])
    refused("at other times", *common, "--bias", f"{late}:v")
    refused("2 files of v for 1 COLVAR files", *common, "--bias", f"{short},{late}:v")


def test_any_variables_and_kernels(colvar: Path, tmp_path: Path) -> None:
    cvs = ("--cv", "phi:20", "--cv", "d:0.5:1.1:30")
    open_state = ("--basin", "short=d:0:0.8", "--basin", "long=d:0.8:inf")
    kernels = ("--kernel", "phi=20", "--kernel", "d=0.03")
    text = done("colvar", colvar, *cvs, *kernels, *open_state, "--plot", "--out", tmp_path / "g")
    assert "delta_f, long - short" in text
    surface = load_grid_surface(tmp_path / "g.npz")
    assert surface.f.shape == (20, 30)
    assert surface.axes[1].low == pytest.approx(0.51)
    profile = -np.log(np.exp(-surface.f).sum(axis=0))
    d = surface.axes[1].values
    near = np.abs(d - 0.8) < 0.15
    exact = 0.5 * ((d - 0.8) ** 2 / (0.1**2 + 0.03**2))
    assert np.ptp((profile - exact)[near]) < 0.35
    refused("not over torsions on one grid", "show", tmp_path / "g.npz")
    refused("not over torsions on one grid", "compare", tmp_path / "g.npz", tmp_path / "g.npz")


def test_three_variables_draw_three_maps(colvar: Path, tmp_path: Path) -> None:
    cvs = ("--cv", "phi:12", "--cv", "psi:12", "--cv", "d:10")
    done("colvar", colvar, *cvs, "--plot", "--resamples", 20, "--out", tmp_path / "h")
    assert load_grid_surface(tmp_path / "h.npz").f.shape == (12, 12, 10)
    assert (tmp_path / "h.png").read_bytes().startswith(PNG)


def test_show_and_compare_read_what_it_writes(colvar: Path, tmp_path: Path) -> None:
    for name, start in (("a", 0), ("b", 700)):
        done(
            "colvar", colvar, "--cv", "phi:18", "--cv", "psi:18", "--bias", "bias", "--kernel", 25, *SIDES,
            "--start", start, "--out", tmp_path / name,
        )  # fmt: skip
    a, b = tmp_path / "a.npz", tmp_path / "b.npz"
    compared = json.loads(done("compare", a, b, *SIDES, "--json"))
    own = json.loads((tmp_path / "a.json").read_text())["delta_f"][0]
    assert compared["delta_f"][0]["a_kJ_mol"] == pytest.approx(own["kJ_mol"]), "from the frames, not the bins"
    assert compared["delta_f"][0]["a_error_is_bound"] is False
    grid = json.loads(done("compare", a, tmp_path / "a.dat", "--json"))
    assert abs(grid["rmsd_kT"]) < 1e-6
    shown = json.loads(done("show", a, *SIDES, "--json", "--plot", tmp_path / "m.png"))
    assert abs(abs(shown["minima"][0]["degrees"][0]) - 180) <= 20


def test_a_restart_and_a_torn_row_are_told(colvar: Path, tmp_path: Path) -> None:
    text = colvar.read_text()
    lines = text.splitlines(keepends=True)
    path = tmp_path / "COLVAR"
    path.write_text("".join(lines[:1000]) + "".join(lines[:5]) + "".join(lines[900:])[:-20])
    said = done("colvar", path, "--cv", "phi:24", "--out", tmp_path / "f")
    assert "restart at 447.5; 100 of the rows before it left out" in said
    assert "1 row left out that was not whole" in said
    assert "2999 frames of 1 run" in said


def harmonic_windows(folder: Path, n: int = 400) -> tuple[list[Path], np.ndarray]:
    """A well of 1 kT / nm^2 under windows of 4 kT / nm^2."""
    rng, centers = np.random.default_rng(1), np.linspace(-2.4, 2.4, 7)
    paths = []
    for k, at in enumerate(centers):
        d = 0.8 * at + rng.standard_normal(n) / math.sqrt(5)
        biases = {f"w{j}": 2 * KT * (d - c) ** 2 for j, c in enumerate(centers)}
        paths.append(table(folder / f"COLVAR.{k}", "", time=np.arange(n), d=d, **biases))
    return paths, centers


def test_windows_by_list_by_option_and_by_columns(tmp_path: Path) -> None:
    paths, centers = harmonic_windows(tmp_path)
    cv = ("--cv", "d:-2:2:16")
    box = ("--basin", "middle=d:-1:1", "--basin", "tail=d:1:3")
    listed = [f"{path.name} d:{at:.8f}:{4 * KT:.10f}  # window" for path, at in zip(paths, centers, strict=True)]
    (tmp_path / "windows.dat").write_text("# all of them\n\n" + "\n".join(listed) + "\n")
    said = done("colvar", "--windows", tmp_path / "windows.dat", *cv, *box, "--plot", "--out", tmp_path / "a")
    assert "7 umbrella windows combined by MBAR" in said
    assert "JAX" not in said
    given = [word for at in centers for word in ("--umbrella", f"d:{at:.8f}:{4 * KT:.10f}")]
    done("colvar", *paths, *given, *cv, *box, "--out", tmp_path / "b")
    columns = [word for k in range(7) for word in ("--umbrella", f"w{k}")]
    done("colvar", *paths, *columns, *cv, *box, "--out", tmp_path / "c")
    a, b, c = (load_grid_surface(tmp_path / f"{name}.npz") for name in "abc")
    np.testing.assert_allclose(a.f, b.f, atol=1e-12)
    np.testing.assert_allclose(a.f, c.f, atol=1e-4)
    exact = 0.5 * a.axes[0].values ** 2
    assert np.abs((a.f - exact - (a.f - exact).mean()) / a.error).max() < 4.5
    d = json.loads((tmp_path / "a.json").read_text())["delta_f"][0]
    middle, upper = math.erf(1 / 2**0.5), (math.erf(3 / 2**0.5) - math.erf(1 / 2**0.5)) / 2
    assert abs(d["f_kT"] + math.log(upper / middle)) < 3.5 * d["error_kT"]


def test_the_command_itself_says_nothing_of_jax(tmp_path: Path) -> None:
    paths, _ = harmonic_windows(tmp_path, 60)
    columns = [word for k in range(7) for word in ("--umbrella", f"w{k}")]
    command = [sys.executable, "-m", "ccg_gmx.cli", "fes", "colvar", *map(str, paths), *columns, "--cv", "d"]
    result = subprocess.run(
        [*command, "--out", str(tmp_path / "f")], capture_output=True, text=True, env={**os.environ}, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--cv", "chi"), "has no column chi; expected one of time, phi, psi, d, bias"),
        (("--cv", "phi", "--bias", "metad.bias"), "has no column metad.bias"),
        (("--cv", "phi", "--cv", "phi"), "expected one to three different variables"),
        (("--cv", "phi", "--cv", "psi", "--cv", "d", "--cv", "bias"), "one to three different variables"),
        (("--cv", "phi:a"), "expected NAME, NAME:BINS or NAME:MIN:MAX:BINS"),
        (("--cv", "phi:1"), "expected NAME, NAME:BINS or NAME:MIN:MAX:BINS"),
        (("--cv", "d:1:0.5:10"), "d from 1 to 0.5; expected two rising numbers"),
        (("--cv", "phi:-4:4:10"), "at most one period"),
        (("--cv", "d:5:6:10"), "no frame is within d from 5.05 to 5.95"),
        (("--cv", "phi", "--basin", "A=chi:0:10"), "basin A names chi; expected variables among phi"),
        (("--cv", "phi", "--basin", "A=phi:0"), "expected NAME=CV:FROM:TO"),
        (("--cv", "phi", "--basin", "A=phi:0:500"), "at most one turn"),
        (("--cv", "phi", *SIDES, *SIDES), "names of their own"),
        (("--cv", "phi", "--kernel", "0"), "a positive width"),
        (("--cv", "phi", "--kernel", "psi=10"), "a positive width, or NAME=WIDTH of phi"),
        (("--cv", "phi", "--kernel", "0.1"), "at least half a bin"),
        (("--cv", "phi", "--umbrella", "d:0.5:10"), "an umbrella on d; expected one on phi; add --cv d"),
        (("--cv", "phi", "--umbrella", "phi:0.5"), "expected CV:AT:KAPPA"),
        (("--cv", "phi", "--umbrella", "phi:0:1", "--umbrella", "phi:1:1"), "2 umbrellas for 1 files"),
        (("--cv", "phi", "--start", "9999"), "no row from time 9999 on (the files end at 1499.5)"),
        (("--cv", "phi", "--stride", "1500"), "2 rows; expected at least 4"),
        (("--cv", "phi", "--windows", "w.dat"), "expected one or the other"),
    ],
)
def test_mistakes(colvar: Path, tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    refused(message, "colvar", colvar, *words, "--out", tmp_path / "x")
    assert not list(tmp_path.iterdir()), "nothing is written"


def test_mistakes_about_windows(tmp_path: Path) -> None:
    refused("no COLVAR file", "colvar", "--cv", "phi")
    refused("cannot be read", "colvar", "--cv", "phi", "--windows", tmp_path / "none.dat")
    bad = tmp_path / "w.dat"
    bad.write_text("COLVAR.0 d:0:1 more\n")
    refused("line 1 of", "colvar", "--cv", "phi", "--windows", bad)
    bad.write_text("COLVAR.0 d:0:1\n")
    refused("lists 1 windows; expected at least two", "colvar", "--cv", "phi", "--windows", bad)


# hills


@pytest.fixture(scope="module")
def hills(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """400 well-tempered hills of two torsions."""
    rng, n = np.random.default_rng(2), 400
    settings = f"#! SET multivariate false\n#! SET kerneltype stretched-gaussian\n{PERIODS}"
    return table(
        tmp_path_factory.mktemp("hills") / "HILLS", settings, time=np.arange(1.0, n + 1),
        phi=rng.vonmises(-1.2, 2.0, n), psi=rng.vonmises(1.0, 1.0, n), sigma_phi=np.full(n, 0.35),
        sigma_psi=np.full(n, 0.3), height=1.2 / np.sqrt(np.arange(1, n + 1)), biasf=np.full(n, 10.0),
    )  # fmt: skip


def test_hills_in_every_form(hills: Path, tmp_path: Path) -> None:
    grid = ("--grid", 60, "--grid", "-pi:pi:60")
    text = done("hills", hills, *grid, *SIDES, "--stride", 100, "--plot", "--out", tmp_path / "f")
    assert "400 hills, well-tempered, bias factor 10" in text
    assert "delta_f, right - left" in text
    names = ["f.dat", "f.json", "f.npz", "f.png", "f_settling.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    report = json.loads((tmp_path / "f.json").read_text())
    assert report["settling"]["x"] == [100, 200, 300, 400]
    assert report["settling"]["rmsd_kT"][-1] == 0
    f = load_surface(tmp_path / "f.npz").f
    done("hills", hills, *grid, "--negbias", "--out", tmp_path / "b")
    np.testing.assert_allclose(load_surface(tmp_path / "b.npz").f, 0.9 * f, atol=1e-12)
    compared = json.loads(done("compare", tmp_path / "f.npz", tmp_path / "f.dat", *SIDES, "--json"))
    assert compared["delta_f"][0]["b_kJ_mol"] == pytest.approx(report["delta_f"][0]["kJ_mol"], abs=1e-6)
    done("show", tmp_path / "f.npz", "--plot", tmp_path / "m.png")


def test_hills_choose_their_grid(hills: Path, tmp_path: Path) -> None:
    done("hills", hills, "--out", tmp_path / "f")
    assert load_surface(tmp_path / "f.npz").f.shape == (60, 60), "ten points over the reach of the narrowest hill"


def test_hills_that_reach_around_and_tilted_ones(tmp_path: Path) -> None:
    path = table(
        tmp_path / "W", "#! SET multivariate false\n" + PERIODS, time=np.arange(4.0), phi=np.arange(4.0),
        sigma_phi=np.ones(4), height=np.ones(4), biasf=-np.ones(4),
    )  # fmt: skip
    text = done("hills", path, "--grid", 60, "--out", tmp_path / "f")
    assert "hills reach around the whole period of phi" in text
    assert "4 hills, not well-tempered" in text
    path = table(
        tmp_path / "T", "#! SET multivariate true\n" + PERIODS, time=np.arange(4.0), phi=np.arange(4.0),
        psi=np.arange(4.0), sigma_phi_phi=0.3 * np.ones(4), sigma_psi_psi=0.15 * np.ones(4),
        sigma_psi_phi=0.05 * np.ones(4), height=np.ones(4), biasf=-np.ones(4),
    )  # fmt: skip
    grid = ("--grid", 60, "--grid", 60)
    assert "warning: tilted hills are cut off" in done("hills", path, *grid, "--out", tmp_path / "t")
    assert "warning" not in done("hills", path, *grid, "--whole-hills", "--out", tmp_path / "t")


PESMD = """periodic false
nstep 200000
tstep 0.005
temperature 1.0
friction 1.0
dimension 1
ipos -1.0
plumed plumed.dat
"""
METAD = """UNITS NATURAL
p: DISTANCE ATOMS=1,2 COMPONENTS
ff: CUSTOM ARG=p.x PERIODIC=NO FUNC=2*(x^2-1)^2+0.5*x
BIASVALUE ARG=ff
metad: METAD ARG=p.x PACE=100 HEIGHT=0.3 SIGMA=0.15 BIASFACTOR=6 TEMP=1.0 GRID_MIN=-4 GRID_MAX=4 GRID_BIN=800 CALC_RCT
PRINT ARG=p.x,metad.bias,metad.rbias STRIDE=10 FILE=COLVAR
"""


@pytest.mark.plumed
@pytest.mark.slow
def test_files_of_a_real_metadynamics_and_its_restart(tmp_path: Path) -> None:
    """PLUMED's own toy dynamics in a double well: both files lead to the free energy it was given."""
    if (plumed := shutil.which("plumed")) is None:
        pytest.skip("no plumed on PATH")
    (tmp_path / "plumed.dat").write_text(METAD)
    for plumed_dat in (METAD, f"RESTART\n{METAD}"):
        (tmp_path / "plumed.dat").write_text(plumed_dat)
        command = [plumed, "--no-mpi", "pesmd"]
        subprocess.run(command, input=PESMD, cwd=tmp_path, text=True, check=True, capture_output=True)
    x = np.linspace(0, 4, 4001)
    right, left = (np.exp(-2 * (x**2 - 1) ** 2 - sign * 0.5 * x).sum() for sign in (1, -1))
    exact = -math.log(right / left)
    common = ("--energy-unit", "kT", "--basin", "L=p.x:-inf:0", "--basin", "R=p.x:0:inf", "--out", tmp_path / "f")
    cv = ("--cv", "p.x:-1.8:1.8:36", "--bias", "metad.rbias", "--start", 100)
    colvar = json.loads(done("colvar", tmp_path / "COLVAR", *cv, *common, "--json"))
    assert colvar["runs"] == 2, "a restart whose clock begins at 0 again"
    (d,) = colvar["delta_f"]
    assert abs(d["f_kT"] - exact) < 4 * d["error_kT"] < 1
    hills = json.loads(done("hills", tmp_path / "HILLS", "--grid", "-2:2:200", *common, "--json"))
    assert hills["hills"] == 4000
    assert hills["biasfactor"] == 6
    assert abs(hills["delta_f"][0]["f_kT"] - exact) < 0.6


def test_mistakes_about_hills(hills: Path, colvar: Path, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "x")
    refused("use ccg fes colvar", "hills", colvar, *out)
    refused("1 --grid for phi, psi; expected 2", "hills", hills, "--grid", 60, *out)
    refused("expected MIN:MAX:BINS, or BINS alone", "hills", hills, "--grid", 60, "--grid", "a:b:3", *out)
    refused("at most 4000000", "hills", hills, "--grid", 9000, "--grid", 9000, *out)
    text = hills.read_text().replace("0.35000000", "0.00000000")
    bad = tmp_path / "HILLS"
    bad.write_text(text)
    refused("has width 0 in phi", "hills", bad, *out)
    bad.write_text(hills.read_text().replace("10.00000000", "12.00000000", 1))
    refused("mixes the bias factors 10, 12", "hills", bad, *out)
    refused("is empty", "hills", _empty(tmp_path / "E"), *out)
    refused("cannot be read", "hills", tmp_path / "none", *out)
    refused("cannot be written", "hills", hills, "--out", "/proc/none/x")


def _empty(path: Path) -> Path:
    path.touch()
    return path
