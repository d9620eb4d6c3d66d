"""From two short runs to a free energy with a learned variable, by the commands of the README alone.

Two umbrella windows on phi give frames of C7eq and C7ax, ``ccg cv train`` a linear discriminant of sines and cosines of
the torsions, ``ccg plumed input`` an OPES run along it, and ``ccg fes colvar`` its surface over (phi, psi).
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from plumed_tools import columns, environment

from ccg_gmx.cli import main
from ccg_gmx.engine.gromacs import Gmx
from ccg_gmx.engine.mdp import fine_run
from ccg_gmx.engine.plumed_build import Plugin
from ccg_gmx.engine.process import capture
from ccg_gmx.free_energy.reference import load_reference
from ccg_gmx.free_energy.surface_files import load_surface
from ccg_gmx.records import FloatArray

pytestmark = [pytest.mark.plumed, pytest.mark.gmx, pytest.mark.slow]

TORSIONS = ("--torsion", "phi=5,7,9,15", "--torsion", "psi=7,9,15,17")
BASINS = ("--basin", "C7eq=phi:-180:0", "--basin", "C7ax=phi:0:180")
WINDOW_STEPS, OPES_STEPS = 50_000, 1_000_000
START_PS = 100
CELLS = 20
HIGHEST_KT = 6.0


def ccg(*arguments: object) -> str:
    done = CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture(scope="module")
def run(gmx: Gmx, plugin: Plugin, alanine_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an OPES run of 1 ns along a learned variable."""
    folder = tmp_path_factory.mktemp("opes")

    def simulate(source: Path, steps: int, seed: int) -> None:
        mdp = fine_run(300.0, steps, seed=seed, output_every=1000)
        tpr = gmx.grompp(mdp, alanine_dir / "conf.gro", alanine_dir / "topol.top", folder / f"{seed}.tpr")
        command = [str(gmx.path), "mdrun", "-s", str(tpr), "-plumed", source.name, "-deffnm", source.stem]
        done = capture([*command, "-ntmpi", "1", "-ntomp", "1", "-reprod"], cwd=folder, env=environment(plugin))
        assert done.returncode == 0, done.stderr[-2000:]

    windows = ("--method", "umbrella", *TORSIONS, "--on", "phi", "--centers", "phi=-1.4:1.1:2", "--kappa", "phi=20")
    ccg("plumed", "input", *windows, "--temperature", 300, "--stride", 50, "--out", folder)
    for number in (0, 1):
        simulate(folder / f"plumed_00{number}.dat", WINDOW_STEPS, seed=number + 1)
    states = [f"{name}={folder / f'COLVAR_00{number}'}" for number, name in enumerate(("C7eq", "C7ax"))]
    state_options = [word for state in states for word in ("--state", state)]
    ccg("cv", "train", "--method", "lda", *state_options, "--arg", "phi,psi", "--start", 10, "--out", folder / "cv")
    ccg("cv", "export", folder / "cv.model.pt")
    model = ("--model", f"learned={folder / 'cv.json'}")
    ccg("plumed", "input", *TORSIONS, *model, "--temperature", 300, "--stride", 50, "--out", folder / "opes.dat")
    simulate(folder / "opes.dat", OPES_STEPS, seed=3)
    return folder


def surface(run: Path, bins: int) -> Path:
    """Prefix of the files of ``ccg fes colvar`` over (phi, psi)."""
    out = run / f"fes{bins}"
    axes = ("--cv", f"phi:-pi:pi:{bins}", "--cv", f"psi:-pi:pi:{bins}")
    options = ("--bias", "opes.bias", "--temperature", 300, "--start", START_PS, *BASINS, "--out", out)
    ccg("fes", "colvar", run / "COLVAR", *axes, *options)
    return out


def coarse(f: FloatArray, cells: int) -> FloatArray:
    """Probabilities ``[cells, cells]`` of a surface ``[n, n]``; cells are centred on every (n / cells)-th point."""
    share, width = np.exp(-f), len(f) // cells
    centred = np.roll(share / share.sum(), width // 2, axis=(0, 1))
    return centred.reshape(cells, width, cells, width).sum(axis=(1, 3))


def test_it_goes_to_and_fro(run: Path) -> None:
    """Without the bias the two states exchange within 41 ns."""
    phi = columns(run / "COLVAR")["phi"]
    core = np.where((phi > -2.6) & (phi < -0.8), -1, np.where((phi > 0.7) & (phi < 1.4), 1, 0))
    visited = core[core != 0]
    assert np.count_nonzero(np.diff(visited)) > 20


def test_delta_f_agrees_with_the_reference_within_its_error(run: Path, alanine_dir: Path) -> None:
    prefix = surface(run, 100)
    reference = alanine_dir / "reference" / "surface.npz"
    report = json.loads(ccg("fes", "compare", prefix.with_suffix(".npz"), reference, *BASINS, "--json"))
    (found,) = report["delta_f"]
    assert found["a_error_kJ_mol"] < 2.0, "an error that would agree with anything"
    combined = np.hypot(found["a_error_kJ_mol"], found["b_error_kJ_mol"])
    # Three standard errors, from about thirty blocks: one run in 200 of a right program fails by Student's t.
    assert abs(found["a_kJ_mol"] - found["b_kJ_mol"]) < 3 * combined


def test_the_surface_agrees_with_the_reference_within_its_errors(run: Path, alanine_dir: Path) -> None:
    """Cells of 18 degrees, whose frames are enough for an error; the reference's own is 0.03 kT and not counted."""
    found = load_surface(surface(run, CELLS).with_suffix(".npz"))
    p = coarse(load_reference(alanine_dir / "reference" / "surface.npz").surface.f, CELLS)
    low = p > p.max() * np.exp(-HIGHEST_KT)
    known = low & np.isfinite(found.f) & (found.error > 0)
    assert known.sum() > 0.8 * low.sum()
    reference = -np.log(np.where(p > 0, p, 1.0)) + np.vdot(p, np.log(np.where(p > 0, p, 1.0)))
    share = np.exp(-found.f) / np.exp(-found.f).sum()
    ours = found.f - np.vdot(share, np.where(np.isfinite(found.f), found.f, 0.0))
    z = (ours - reference)[known] / found.error[known]
    assert np.median(found.error[known]) < 0.6
    assert np.sqrt((z**2).mean()) < 1.6
