"""The reference surface that ships with alanine dipeptide, and the script that makes it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ccg_gmx.engine.mdp import Mdp
from ccg_gmx.free_energy.reference import Reference, load_reference
from ccg_gmx.free_energy.surface import Basin, delta_f, rmsd_kT
from ccg_gmx.units import thermal_energy

FOLDER = Path(__file__).resolve().parent.parent / "topologies" / "alanine_dipeptide"
SCRIPT = FOLDER / "reference" / "make_surface.py"


@pytest.fixture(scope="module")
def reference() -> Reference:
    return load_reference(FOLDER / "reference" / "surface.npz")


def test_shape_and_axes(reference: Reference) -> None:
    assert reference.surface.f.shape == (100, 100)
    assert reference.surface.names == ("phi", "psi")
    assert reference.surface.temperature_K == 300.0
    assert reference.surface.f.min() == 0.0


def test_independent_halves_agree(reference: Reference) -> None:
    assert not np.array_equal(reference.half_a.f, reference.half_b.f)
    assert rmsd_kT(reference.half_a, reference.half_b) < 0.15
    assert 0 < reference.noise_floor < 1e-3


def test_error_is_known_where_it_counts(reference: Reference) -> None:
    low = reference.surface.f < 8.0
    assert low.sum() > 2000
    errors = reference.surface.error[low]
    assert np.isfinite(errors).all()
    assert (errors > 0).all()
    assert errors.max() < 0.15


def test_minima_are_where_chemistry_has_them(reference: Reference) -> None:
    phi, psi = (np.degrees(-np.pi + np.arange(100) * 2 * np.pi / 100),) * 2
    f = reference.surface.f
    i, j = np.unravel_index(f.argmin(), f.shape)
    assert abs(phi[i] + 80) < 12  # C7eq
    assert abs(psi[j] - 60) < 25
    right = np.where(phi[:, None] > 0, f, np.inf)
    i, j = np.unravel_index(right.argmin(), f.shape)
    assert abs(phi[i] - 65) < 15  # C7ax
    assert abs(psi[j] + 45) < 25


def test_readme_figures_are_those_of_the_file(reference: Reference) -> None:
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    row = re.search(r"^\| 60 \(shipped\) \| ([\d.]+) \| ([\de.-]+) \| ([\d.]+), ([\d.]+) \|$", readme, re.MULTILINE)
    assert row is not None
    kT = thermal_energy(300.0)
    left = Basin(name="C7eq", ranges={"phi": (-180, 0), "psi": (-180, 180)})
    right = Basin(name="C7ax", ranges={"phi": (0, 180), "psi": (-180, 180)})
    assert float(row[1]) == pytest.approx(rmsd_kT(reference.half_a, reference.half_b), abs=5e-5)
    assert float(row[2]) == pytest.approx(reference.noise_floor, rel=0.02)
    for text, half in zip(row.groups()[2:], (reference.half_a, reference.half_b), strict=True):
        assert float(text) == pytest.approx(delta_f(half, right, left) * kT, abs=0.005)
    stated = re.search(r"C7ax against C7eq: ([\d.]+) kJ/mol", readme)
    assert stated is not None
    assert float(stated[1]) == pytest.approx(delta_f(reference.surface, right, left) * kT, abs=0.005)


def test_shipped_mdp_is_fit_for_weights() -> None:
    mdp = Mdp.read(FOLDER / "reference" / "awh.mdp")
    assert (mdp["constraints"], float(mdp["dt"]), mdp["awh1-ndim"]) == ("none", 0.001, "2")


@pytest.mark.gmx
@pytest.mark.slow
def test_script_runs_and_finds_its_finished_runs(gmx: object, tmp_path: Path) -> None:
    # the folder's name has a dot, at which gmx awh would cut a path
    command = [sys.executable, str(SCRIPT), "--ns", "0.02", "--seed", "7", "--out", str(tmp_path / "v1.0")]
    first = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert first.returncode == 0, first.stderr
    made = load_reference(tmp_path / "v1.0" / "surface.npz")
    assert made.surface.f.shape == (100, 100)
    assert "ld-seed 8 and 9" in made.origin
    assert not np.array_equal(made.half_a.f, made.half_b.f)
    logs = sorted(tmp_path.rglob("awh.log"))
    times = [log.stat().st_mtime_ns for log in logs]
    assert len(logs) == 2
    again = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert again.stdout == first.stdout
    assert [log.stat().st_mtime_ns for log in logs] == times


def test_script_says_a_mistake_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    command = [sys.executable, str(SCRIPT), "--ns", "0.02", "--out", str(tmp_path / "file")]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert result.stderr.strip().splitlines()[-1].startswith("make_surface: ")
