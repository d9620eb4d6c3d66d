"""The benchmark: its molecules, the OpenMM system it makes, its arithmetic, and one short run of all of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from ccg_gmx.bench.energy import KERNEL, RERUN, TORCH, Rate, bench_text, compare, torch_threads
from ccg_gmx.bench.openmm_system import OpenMMEnergies
from ccg_gmx.bench.peptides import helix, polyalanine
from ccg_gmx.bench.scaling import plot_scaling
from ccg_gmx.cli import main
from ccg_gmx.engine.gromacs import Gmx
from ccg_gmx.molecule.energy import ForceField
from ccg_gmx.molecule.topology import parse_tpr_dump
from ccg_gmx.molecule.trajectory import read_frames


def dihedral_degrees(a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray) -> float:
    first, axis, last = b - a, c - b, d - c
    across, along = np.cross(first, axis), np.cross(axis, last)
    return float(np.degrees(np.arctan2(np.dot(first, along) * np.linalg.norm(axis), np.dot(across, along))))


def test_helix_has_the_angles_it_promises():
    atoms = helix(6)
    assert len(atoms) == 3 + 6 * 5 + 2
    at = {(name, number): position for name, _, number, position in atoms}
    for k in range(2, 8):
        phi = dihedral_degrees(at["C", k - 1], at["N", k], at["CA", k], at["C", k])
        psi = dihedral_degrees(at["N", k], at["CA", k], at["C", k], at["N", k + 1])
        assert (phi, psi) == pytest.approx((-57.0, -47.0), abs=1e-6)
        # L amino acids: seen from the hydrogen, CO, R (here CB) and N stand clockwise
        n, c, beta = (at[name, k] - at["CA", k] for name in ("N", "C", "CB"))
        assert np.dot(np.cross(n, c), beta) > 0
    positions = np.array([atom[3] for atom in atoms])
    gaps = np.linalg.norm(positions[:, None] - positions[None], axis=-1)[np.triu_indices(len(atoms), 1)]
    assert gaps.min() == pytest.approx(1.23)
    # 1.5 Angstrom of helix per residue
    assert 6 < np.linalg.norm(at["CA", 7] - at["CA", 2]) < 9


@pytest.mark.gmx
@pytest.mark.parametrize("residues", [1, 3])
def test_openmm_has_our_energies_and_forces(gmx: Gmx, tmp_path: Path, residues: int):
    openmm = pytest.importorskip("openmm")
    topology = parse_tpr_dump(gmx.dump(polyalanine(gmx, residues, tmp_path)))
    assert topology.n_atoms == 12 + 10 * residues
    start = read_frames(tmp_path / "box.gro", topology.n_atoms).positions
    noise = np.random.default_rng(1).normal(scale=0.003, size=(8, topology.n_atoms, 3))
    x = start - start.mean(1, keepdims=True) + noise
    energy, gradient = (values.numpy() for values in ForceField(topology).energy_and_gradient(torch.from_numpy(x)))
    reference = OpenMMEnergies(topology, "Reference")
    assert np.abs(reference(x, True) - energy).max() < 1e-4
    assert np.abs(OpenMMEnergies(topology, "CPU")(x, False) - energy).max() < 1e-3
    unit = openmm.unit.kilojoule_per_mole / openmm.unit.nanometer
    forces = reference._context.getState(forces=True).getForces(asNumpy=True).value_in_unit(unit)
    assert np.abs(forces + gradient[-1]).max() < 1e-6 * np.abs(gradient).max()


def rate(program: str, per_s: float, precision: str = "float64", *, threads: int = 1, gradient: bool = True) -> Rate:
    return Rate(program, precision, threads, gradient, per_s, 2 * per_s)


def test_targets_are_for_one_thread_and_gradients():
    rates = [
        *(rate(KERNEL, 1000.0, threads=threads, gradient=gradient) for threads, gradient in ((1, True), (2, True))),
        *(rate(KERNEL, 5000.0, gradient=False), rate(TORCH, 100.0), rate(RERUN, 40.0, "mixed")),
        *(rate("OpenMM CPU", 50.0, "float32"), rate("OpenMM Reference", 200.0), rate("OpenMM CPU", 900.0, threads=2)),
    ]
    found = compare(rates)
    assert found["targets"][RERUN] == {"target": 20.0, "found": 25.0, "found_processor_time": 25.0}
    assert found["targets"]["faster OpenMM platform"]["found"] == 5.0
    assert found["reached"] is False
    assert found["ratios"][f"{TORCH}, float64"] == {"wall": 10.0, "processor": 10.0}
    assert compare([row for row in rates if "OpenMM" not in row.program])["reached"] is True


def test_torch_threads_are_put_back():
    before = torch.get_num_threads()
    with torch_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_plot(tmp_path: Path):
    rows = [
        {
            "atoms": atoms,
            "microseconds": {"ours": atoms**2 / 1e3, "close to ours": atoms**2 / 0.99e3, "theirs": 1.0 * atoms},
        }
        for atoms in (22, 62, 492)
    ]
    plot_scaling(rows, tmp_path / "cost.svg")
    text = (tmp_path / "cost.svg").read_text()
    assert text.count('<g id="line2d') > 3


@pytest.mark.parametrize("name", ["cost.txt", "no/such/folder/cost.png"])
def test_a_picture_that_cannot_be_written_is_refused_at_once(tmp_path: Path, name: str):
    result = CliRunner().invoke(main, ["bench", "energy", "--plot", str(tmp_path / name)])
    assert result.exit_code == 2
    assert result.output.startswith("ccg: --plot")


@pytest.mark.gmx
@pytest.mark.slow
def test_a_short_run_of_everything():
    result = CliRunner().invoke(main, ["bench", "energy", "--json", "--frames", "64", "--repeats", "1"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert {row["program"] for row in found["rates"]} >= {KERNEL, TORCH, RERUN}
    assert all(row["per_s"] > 0 for row in found["rates"])
    assert found["frames"] == 64
    assert found["atoms"] == 22
    assert all(difference < 1e-3 for difference in found["openmm_max_abs_diff_kJ_mol"].values())
    assert f"x {RERUN}" in bench_text(found)
