"""The reference surfaces that ship with the example systems, their README figures, and the scripts that make them."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from itertools import combinations
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from ccg_gmx.cli import Bar
from ccg_gmx.engine.mdp import Mdp
from ccg_gmx.free_energy.reference import Reference, load_marginals, load_reference
from ccg_gmx.free_energy.surface import (
    Basin,
    delta_f,
    forward_kl,
    probability,
    rmsd_kT,
    shifted,
)
from ccg_gmx.molecule.langevin import Langevin
from ccg_gmx.molecule.torsion_bias import TorsionBias, biased
from ccg_gmx.records import FreeEnergySurface
from ccg_gmx.units import thermal_energy

TOPOLOGIES = Path(__file__).resolve().parent.parent / "topologies"
FOLDER = TOPOLOGIES / "alanine_dipeptide"
AWH_SCRIPT = FOLDER / "reference" / "make_surface.py"
SCRIPT = TOPOLOGIES / "make_reference.py"
KT = thermal_energy(300.0)
LEFT = Basin(name="C7eq", ranges={"phi": (-180, 0), "psi": (-180, 180)})
RIGHT = Basin(name="C7ax", ranges={"phi": (0, 180), "psi": (-180, 180)})


def shipped(system: str, file: str = "surface.npz") -> Path:
    return TOPOLOGIES / system / "reference" / file


def readme(system: str) -> str:
    return (TOPOLOGIES / system / "reference" / "README.md").read_text(encoding="utf-8")


def in_common(a: FreeEnergySurface, b: FreeEnergySurface) -> tuple[FreeEnergySurface, FreeEnergySurface, float]:
    """The surfaces over the bins that both visited, and the probability of all others in either."""
    both = np.isfinite(a.f) & np.isfinite(b.f)
    lost = max(float(probability(surface)[~both].sum()) for surface in (a, b))
    cut = [shifted(np.where(both, surface.f, np.inf), surface.names, surface.temperature_K) for surface in (a, b)]
    return cut[0], cut[1], lost


@pytest.fixture(scope="module")
def alanine() -> Reference:
    return load_reference(shipped("alanine_dipeptide"))


@pytest.mark.parametrize(("system", "floor"), [("alanine_dipeptide", 1e-4), ("alanine_dipeptide_amber96", 3e-4)])
def test_dipeptides_are_as_precise_as_stated(system: str, floor: float):
    reference = load_reference(shipped(system))
    surface = reference.surface
    assert (surface.f.shape, surface.names, surface.temperature_K) == ((100, 100), ("phi", "psi"), 300.0)
    assert surface.f.min() == 0.0
    assert not np.array_equal(reference.half_a.f, reference.half_b.f)
    assert 0 < reference.noise_floor < floor
    low = surface.f < 8.0
    assert low.sum() > 2000
    assert np.isfinite(surface.error[low]).all()
    assert 0 < surface.error[low].min() <= surface.error[low].max() < 0.2
    halves = [delta_f(half, RIGHT, LEFT) * KT for half in (reference.half_a, reference.half_b)]
    assert abs(halves[0] - halves[1]) / 2 < 0.2  # kJ/mol, the error of their mean


def test_minima_are_where_chemistry_has_them(alanine: Reference) -> None:
    phi, psi = (np.degrees(-np.pi + np.arange(100) * 2 * np.pi / 100),) * 2
    f = alanine.surface.f
    i, j = np.unravel_index(f.argmin(), f.shape)
    assert abs(phi[i] + 80) < 12  # C7eq
    assert abs(psi[j] - 60) < 25
    right = np.where(phi[:, None] > 0, f, np.inf)
    i, j = np.unravel_index(right.argmin(), f.shape)
    assert abs(phi[i] - 65) < 15  # C7ax
    assert abs(psi[j] + 45) < 25


def test_walkers_agree_with_awh_within_the_noise_of_both(alanine: Reference) -> None:
    """Two surfaces that differ by independent noise alone lie a forward KL of the sum of their floors apart."""
    awh = load_reference(shipped("alanine_dipeptide", "awh.npz"))
    ours, theirs, lost = in_common(alanine.surface, awh.surface)
    expected = alanine.noise_floor + awh.noise_floor
    assert lost < 1e-8
    assert 0.5 * expected < forward_kl(ours, theirs) < 2 * expected
    low = alanine.surface.f < 8.0
    errors = np.hypot(alanine.surface.error, awh.surface.error)[low]
    assert rmsd_kT(alanine.surface, awh.surface) < 1.5 * np.sqrt((errors**2).mean())
    values = [[delta_f(half, RIGHT, LEFT) * KT for half in (each.half_a, each.half_b)] for each in (alanine, awh)]
    error = np.hypot(*(np.ptp(halves) / 2 for halves in values))
    assert abs(np.mean(values[0]) - np.mean(values[1])) < 2 * error


def test_butane_is_as_precise_as_stated_and_a_mirror_image_of_itself() -> None:
    reference = load_reference(shipped("n_butane"))
    surface = reference.surface
    assert (surface.f.shape, surface.names, surface.temperature_K) == ((100,), ("phi",), 300.0)
    assert 0 < reference.noise_floor < 1e-5
    mirrored = shifted(np.roll(surface.f[::-1], 1), surface.names, 300.0)  # point i is -pi + i 2 pi / n
    assert forward_kl(surface, mirrored) < 16 * reference.noise_floor  # 4 on average; shared waves make it vary
    np.testing.assert_allclose(surface.f, mirrored.f, atol=0.1)


def test_butane_agrees_with_awh() -> None:
    ours, awh = (load_reference(shipped("n_butane", file)) for file in ("surface.npz", "awh.npz"))
    expected = ours.noise_floor + awh.noise_floor
    assert forward_kl(ours.surface, awh.surface) < 4 * expected  # little but trans against gauche: it varies
    assert rmsd_kT(ours.surface, awh.surface) < 0.05


def test_tripeptide_has_all_marginals_as_precise_as_stated() -> None:
    marginals = load_marginals(shipped("alanine_tripeptide"))
    names = ("phi1", "psi1", "phi2", "psi2")
    assert set(marginals) == {*combinations(names, 2), *((name,) for name in names)}
    for shown, reference in marginals.items():
        assert reference.surface.f.shape == (100,) * len(shown)
        assert 0 < reference.noise_floor < 1e-3, shown


def test_tripeptide_marginals_belong_to_one_density() -> None:
    """Each two-dimensional marginal, summed over one torsion, is the one-dimensional one of the other: same frames."""
    marginals = load_marginals(shipped("alanine_tripeptide"))
    for shown, reference in marginals.items():
        for axis, name in enumerate(shown) if len(shown) == 2 else ():
            alone = probability(marginals[(name,)].half_a)
            np.testing.assert_allclose(probability(reference.half_a).sum(1 - axis), alone, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("system", ["alanine_dipeptide", "alanine_dipeptide_amber96"])
def test_readme_figures_are_those_of_the_file(system: str) -> None:
    reference = load_reference(shipped(system))
    row = re.search(r"nats .*\n\|[-:| ]+\|\n\| ([\de.-]+) \| ([\d.]+) \| ([\d.]+), ([\d.]+) \|", readme(system))
    assert row is not None
    assert float(row[1]) == pytest.approx(reference.noise_floor, rel=0.02)
    assert float(row[2]) == pytest.approx(rmsd_kT(reference.half_a, reference.half_b), abs=5e-5)
    for text, half in zip(row.groups()[2:], (reference.half_a, reference.half_b), strict=True):
        assert float(text) == pytest.approx(delta_f(half, RIGHT, LEFT) * KT, abs=0.0051)


def test_awh_readme_figures_are_those_of_the_file() -> None:
    awh = load_reference(shipped("alanine_dipeptide", "awh.npz"))
    row = re.search(r"^\| 60 \(shipped\) \| ([\d.]+) \| ([\de.-]+) \| ", readme("alanine_dipeptide"), re.MULTILINE)
    assert row is not None
    assert float(row[1]) == pytest.approx(rmsd_kT(awh.half_a, awh.half_b), abs=5e-5)
    assert float(row[2]) == pytest.approx(awh.noise_floor, rel=0.02)


@pytest.fixture(scope="module")
def script() -> ModuleType:
    specification = importlib.util.spec_from_file_location("make_reference", SCRIPT)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules["make_reference"] = module
    specification.loader.exec_module(module)
    return module


def test_a_round_goes_on_bit_by_bit_from_its_checkpoint(script: ModuleType, tmp_path: Path) -> None:
    """A four-atom chain of springs in place of n-butane: 60 steps at once, and 30 of them twice."""
    case = script.CASES["n_butane"]
    bias = TorsionBias([(0, 1, 2, 3)], [((0,), np.cos(np.linspace(-np.pi, np.pi, 24, endpoint=False)))])
    zigzag = torch.tensor([[0.0, 0, 0], [0.1, 0.11, 0], [0.25, 0.11, 0], [0.35, 0, 0.02]], dtype=torch.float64)
    start = zigzag.repeat(32, 1, 1)

    def springs(r: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return 5e3 * ((r - start) ** 2).sum((1, 2)), 1e4 * (r - start)

    langevin = Langevin(biased(springs, bias), [12.0] * 4, 300.0, 2.0, 0.001, seed=3)

    def run(name: str, *steps: int) -> Any:
        for index, until in enumerate(steps):
            result = script.Round(case, 32, 10, tmp_path / name)
            assert result.resume() == (index > 0)
            if index == 0:
                result.state = langevin.start(start)
            result.run(langevin, bias, until, Bar(name, until))
        return result

    whole, parts = run("whole.pt", 60), run("parts.pt", 30, 60)
    assert whole.histograms.frames == 5 * 32  # every tenth step after the first ten
    assert torch.equal(whole.state.positions, parts.state.positions)
    for key, value in whole.histograms.arrays().items():
        np.testing.assert_array_equal(parts.histograms.arrays()[key], value)
    np.testing.assert_array_equal(whole.visits.last, parts.visits.last)
    again = script.Round(case, 32, 10, tmp_path / "whole.pt")
    again.resume()
    again.run(langevin, bias, 40, Bar("again", 40))  # more is done already than asked for
    assert again.describe() == whole.describe()


@pytest.mark.gmx
@pytest.mark.slow
def test_script_runs_and_finds_its_finished_run(gmx: object, tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "n_butane", "--steps", "2000", "--walkers", "32", "--out", str(tmp_path)]
    first = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
    assert first.returncode == 0, first.stderr
    made = load_reference(tmp_path / "surface.npz")
    assert made.surface.names == ("phi",)
    assert "2000 steps" in made.origin
    again = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert again.stdout == first.stdout


def test_shipped_mdp_is_fit_for_weights() -> None:
    mdp = Mdp.read(FOLDER / "reference" / "awh.mdp")
    assert (mdp["constraints"], float(mdp["dt"]), mdp["awh1-ndim"]) == ("none", 0.001, "2")


@pytest.mark.gmx
@pytest.mark.slow
def test_awh_script_runs_and_finds_its_finished_runs(gmx: object, tmp_path: Path) -> None:
    # the folder's name has a dot, at which gmx awh would cut a path
    command = [sys.executable, str(AWH_SCRIPT), "--ns", "0.02", "--seed", "7", "--out", str(tmp_path / "v1.0")]
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


def test_awh_script_says_a_mistake_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    command = [sys.executable, str(AWH_SCRIPT), "--ns", "0.02", "--out", str(tmp_path / "file")]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert result.stderr.strip().splitlines()[-1].startswith("make_surface: ")
