"""Exports read back in their own engines: energies against analytic ones, this package's, and each other's."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from coarse_models import (
    BEADS,
    angle_energy,
    bond_energy,
    bulk,
    bulk_frames,
    chain,
    chain_frames,
    dihedral_energy,
    neighbours,
    pair_energy,
)
from small_cycle import ccg

from ccg_gmx.engine.export_check import TOLERANCE_KJ_MOL, check_export, compare_points
from ccg_gmx.engine.gromacs import Gmx
from ccg_gmx.engine.lammps import Lammps
from ccg_gmx.engine.mdp import coarse_run
from ccg_gmx.engine.plumed import Kernel
from ccg_gmx.engine.plumed_build import Plugin
from ccg_gmx.engine.single_points import (
    SinglePoints,
    gromacs_points,
    lammps_points,
    openmm_points,
    plumed_points,
    reference_points,
)
from ccg_gmx.errors import GromppError, LammpsError, ToolMissingError
from ccg_gmx.export.bundle import ENGINES, Bundle, read_bundle, write_bundle
from ccg_gmx.molecule.coarse_topology import CoarseTopology
from ccg_gmx.molecule.trajectory import write_trr
from ccg_gmx.potential.model import CoarseModel, pair_key
from ccg_gmx.records import BeadFrames, FloatArray


def mdp(cutoff_nm: float) -> str:
    return coarse_run(300.0, 1000, 1, cutoff_nm=cutoff_nm).text()


@pytest.fixture(scope="session")
def lammps() -> Lammps:
    try:
        return Lammps.find()
    except ToolMissingError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The chain, written for all engines; OpenMM's export needs OpenMM."""
    pytest.importorskip("openmm")
    folder = tmp_path_factory.mktemp("one") / "export"
    write_bundle(folder, *chain(), chain_frames(20, 1)[0], ENGINES, mdp)
    return read_bundle(folder)


@pytest.fixture(scope="module", params=[False, True], ids=["rectangular", "tilted"])
def many(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    pytest.importorskip("openmm")
    folder = tmp_path_factory.mktemp("many") / "export"
    model, topology = bulk()
    write_bundle(folder, model, topology, bulk_frames(topology, 3, 1, request.param), ENGINES, mdp)
    return read_bundle(folder)


def brute_pairs(bundle: Bundle) -> FloatArray:
    """Pair energies by a double loop over beads and images, ``[T]`` kJ/mol."""
    topology, total = bundle.system.topology, np.zeros(len(bundle.system.positions))
    excluded = {tuple(pair) for pair in topology.excluded_pairs.tolist()}
    shifts = np.stack(np.meshgrid(*(np.arange(-1, 2),) * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    for t, (x, box) in enumerate(zip(bundle.system.positions, bundle.system.box, strict=True)):
        inside = x - np.floor(x @ np.linalg.inv(box)) @ box
        for i in range(len(x)):
            steps = inside[i + 1 :, None] - inside[i] + shifts @ box
            nearest = np.linalg.norm(steps, axis=-1).min(axis=1)
            for j, r in enumerate(nearest, start=i + 1):
                if (i, j) not in excluded:
                    total[t] += pair_energy(pair_key(topology.bead_types[i], topology.bead_types[j]), r)
    return total


def check_chain(points: SinglePoints, tolerance: float) -> None:
    """Energies of :func:`one` against analytic ones; coordinates in the frames are rounded to float32."""
    _, bonds, angles, torsions = chain_frames(20, 1)
    assert np.abs(points.terms["bond"] - bond_energy(bonds).sum(axis=1)).max() < 5e-3 + tolerance
    assert np.abs(points.terms["angle"] - angle_energy(angles).sum(axis=1)).max() < 1e-3 + tolerance
    assert np.abs(points.terms["dihedral"] - dihedral_energy(torsions[:, 0])).max() < 1e-4 + tolerance


def agree(points: SinglePoints, bundle: Bundle, tolerance: float) -> None:
    """Every term within the tolerance, kJ/mol per molecule, of this package's."""
    ours = reference_points(bundle).terms
    for kind, values in points.terms.items():
        difference = np.abs(values - ours.get(kind, 0.0)).max() / bundle.system.n_molecules
        assert difference < tolerance, f"{points.engine} {kind}: {difference}"


def test_our_own_energies_are_the_analytic_ones(one: Bundle, many: Bundle) -> None:
    check_chain(reference_points(one), 1e-6)
    for bundle in (one, many):
        assert np.allclose(reference_points(bundle).terms["pair"], brute_pairs(bundle), atol=1e-8)


@pytest.mark.gmx
def test_gromacs_reads_a_molecule(one: Bundle, gmx: Gmx, tmp_path: Path) -> None:
    points = gromacs_points(one, tmp_path)
    assert set(points.terms) == {"bond", "angle", "dihedral", "cmap", "pair"}
    agree(points, one, 3e-4)
    check_chain(points, 3e-4)


@pytest.mark.gmx
def test_gromacs_reads_bonded_terms_of_a_bulk(many: Bundle, gmx: Gmx, tmp_path: Path) -> None:
    points = gromacs_points(many, tmp_path)
    assert set(points.terms) == {"bond", "angle"}
    agree(points, many, 3e-4)


def test_lammps_agrees(one: Bundle, many: Bundle, lammps: Lammps, tmp_path: Path) -> None:
    for bundle in (one, many):
        work = tmp_path / f"{bundle.system.n_molecules}"
        work.mkdir()
        points = lammps_points(bundle, work)
        agree(points, bundle, 1e-6)
        forces = reference_points(bundle).forces
        assert points.forces is not None
        assert forces is not None
        assert np.abs(points.forces - forces).max() < 1e-4 * max(1.0, np.abs(forces).max())
    check_chain(lammps_points(one, tmp_path), 1e-6)


def test_openmm_agrees(one: Bundle, many: Bundle, tmp_path: Path) -> None:
    for bundle in (one, many):
        points = openmm_points(bundle, tmp_path)
        agree(points, bundle, 1e-6)
        forces = reference_points(bundle).forces
        assert points.forces is not None
        assert forces is not None
        assert np.abs(points.forces - forces).max() < 1e-4 * max(1.0, np.abs(forces).max())
    check_chain(openmm_points(one, tmp_path), 1e-6)


@pytest.mark.plumed
def test_plumed_agrees(many: Bundle, kernel: Kernel, plugin: Plugin, tmp_path: Path) -> None:
    points = plumed_points(many, tmp_path)
    assert set(points.terms) == {"pair"}
    agree(points, many, 1e-6)
    assert np.allclose(points.terms["pair"], brute_pairs(many), atol=1e-6)


@pytest.mark.parametrize("nrexcl", [0, 1, 2, 5])
def test_exclusions_of_lammps_are_the_topologys(nrexcl: int, lammps: Lammps, tmp_path: Path) -> None:
    """None; bonds; bonds and others that become bonds without energy; whole molecules."""
    model, topology = chain(nrexcl=nrexcl)
    write_bundle(tmp_path / "export", model, topology, chain_frames(5, 2)[0], ["lammps"], mdp)
    bundle = read_bundle(tmp_path / "export")
    points = lammps_points(bundle, tmp_path)
    assert np.allclose(points.terms["pair"], brute_pairs(bundle), atol=1e-6)
    assert (nrexcl == 5) == (not points.terms["pair"].any())
    agree(points, bundle, 1e-6)


@pytest.mark.gmx
def test_tables_for_2019_are_refused_by_todays_gromacs(many: Bundle, gmx: Gmx, tmp_path: Path) -> None:
    folder = many.folder / "gromacs" / "gromacs-2019"
    text = (folder / "grompp.mdp").read_text()
    assert "cutoff-scheme = group" in text
    assert "energygrp-table = A A  A B  B B" in text
    with pytest.raises(GromppError, match="2020"):
        gmx.grompp(
            text, folder.parent / "conf.gro", folder / "topol.top", tmp_path / "x.tpr", index=folder / "index.ndx"
        )


def test_tables_for_2019_hold_the_pairs(many: Bundle) -> None:
    folder = many.folder / "gromacs" / "gromacs-2019"
    for a, b in (("A", "A"), ("A", "B"), ("B", "B")):
        table = np.loadtxt(folder / f"table_{a}_{b}.xvg")
        assert table.shape[1] == 7
        assert not table[:, 1:5].any()
        assert table[-1, 0] >= 0.9 + 1.0 - 1e-9  # the cut-off and GROMACS' table-extension
        r = table[table[:, 0] > 0.2]
        assert np.allclose(r[:, 5], pair_energy((a, b), r[:, 0]), atol=1e-8)
        middle = 0.5 * (r[1:, 6] + r[:-1, 6])
        assert np.allclose(-np.diff(r[:, 5]) / np.diff(r[:, 0]), middle, atol=1e-3)
    numbers = (folder / "index.ndx").read_text().split("[ B ]")[1].split()
    assert len(numbers) == 20 + 50
    assert numbers[0] == "2"


def test_whole_check_agrees_and_a_wrong_table_does_not(one: Bundle, lammps: Lammps, tmp_path: Path) -> None:
    folder = tmp_path / "export"
    shutil.copytree(one.folder, folder)
    good = check_export(folder)
    assert good.agrees
    assert good.frames == 20
    assert {"ccg", "lammps", "openmm"} <= set(good.engines)
    assert good.max_abs_diff_kJ_mol_per_molecule < TOLERANCE_KJ_MOL
    table = folder / "lammps" / "angle.table"
    lines = table.read_text().splitlines()
    rows = [re.fullmatch(r"(\d+) (\S+) (\S+) (\S+)", line) for line in lines]
    changed = [
        f"{m[1]} {m[2]} {1.001 * float(m[3])} {m[4]}" if m else line for m, line in zip(rows, lines, strict=True)
    ]
    table.write_text("\n".join(changed) + "\n")
    bad = ccg("export", "--check", folder, "--json")
    assert bad.returncode == 3, bad.stderr
    report = json.loads(bad.stdout)
    worst = max(report["terms"], key=lambda kind: report["terms"][kind]["max_abs_diff_kJ_mol_per_molecule"] or 0.0)
    assert not report["agrees"]
    assert worst == "angle"


def test_a_number_that_is_none_agrees_with_nothing() -> None:
    ours = SinglePoints("ccg", "", {"bond": np.zeros(3)})
    theirs = SinglePoints("lammps", "", {"bond": np.array([0.0, math.nan, 0.0])})
    assert not compare_points([ours, theirs], 1, {}).agrees
    unknown = SinglePoints("gromacs", "", {"bond": np.zeros(3), "other": np.ones(3)})
    assert not compare_points([ours, unknown], 1, {}).agrees
    assert compare_points([ours, SinglePoints("openmm", "", {"bond": np.zeros(3), "pair": np.zeros(3)})], 1, {}).agrees


def test_lammps_names_what_it_cannot_read(one: Bundle, lammps: Lammps, tmp_path: Path) -> None:
    folder = tmp_path / "lammps"
    shutil.copytree(one.folder / "lammps", folder)
    (folder / "bond.table").unlink()
    with pytest.raises(LammpsError, match=r"bond\.table"):
        lammps.single_points(folder, one.system.positions, one.system.box, tmp_path)


@pytest.mark.gmx
def test_written_gromacs_folder_runs(one: Bundle, gmx: Gmx, tmp_path: Path) -> None:
    folder = one.folder / "gromacs"
    tpr = gmx.grompp((folder / "grompp.mdp").read_text(), folder / "conf.gro", folder / "topol.top", tmp_path / "a.tpr")
    result = gmx.mdrun(tpr, tmp_path, tables=sorted(folder.glob("table_*.xvg")))
    assert result.steps == 1000


def test_written_openmm_script_runs(one: Bundle, tmp_path: Path) -> None:
    shutil.copytree(one.folder / "openmm", tmp_path / "openmm")
    done = subprocess.run(
        [sys.executable, "run.py", "1000"], cwd=tmp_path / "openmm", capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert math.isfinite(float(done.stdout.splitlines()[-1].split(",")[1]))
    assert (tmp_path / "openmm" / "run.xtc").stat().st_size > 0


def test_written_lammps_input_runs(one: Bundle, lammps: Lammps, tmp_path: Path) -> None:
    folder = tmp_path / "lammps"
    shutil.copytree(one.folder / "lammps", folder)
    text = (folder / "run.in").read_text().replace("run 100000", "run 1000")
    (folder / "run.in").write_text(text)
    done = subprocess.run(
        [lammps.path, "-in", "run.in"], cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout[-1000:]
    assert "Loop time" in done.stdout


def save(folder: Path, model: CoarseModel, topology: CoarseTopology, frames: BeadFrames) -> list[Path]:
    """The files a user has: model, topology and a .trr."""
    paths = [folder / name for name in ("model.npz", "chain.topology.json", "chain.trr")]
    model.save(paths[0])
    topology.save(paths[1])
    box = np.zeros((3, 3)) if frames.box is None else frames.box
    write_trr(paths[2], frames.positions, frames.time, box)
    return paths


def test_command_as_a_user_runs_it(tmp_path: Path, lammps: Lammps) -> None:
    files, out = save(tmp_path, *chain(), chain_frames(30, 3)[0]), tmp_path / "export"
    done = ccg("export", *files, "--to", "lammps", "--to", "gromacs", "--out", out)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md", "export.json", "frames.npz", "gromacs", "lammps", "model.npz", "topology.json",
    ]  # fmt: skip
    checked = ccg("export", "--check", out, "--json")
    assert checked.returncode == 0, checked.stderr
    report = json.loads(checked.stdout)
    assert report["agrees"]
    assert report["frames"] == 20
    assert "lammps" in report["engines"]
    assert report["max_abs_diff_kJ_mol_per_molecule"] <= 1e-3
    again = ccg("export", *files, "--to", "lammps", "--out", out)
    assert again.returncode == 2
    assert "--force" in again.stderr
    assert ccg("export", *files, "--to", "lammps", "--out", out, "--force").returncode == 0
    assert not (out / "gromacs").exists()
    assert not list(tmp_path.glob(".export*"))
    text = ccg("export", "--check", out)
    assert text.returncode == 0
    assert "the engines agree to 0.001 kJ/mol per molecule" in text.stdout


def test_bad_input_is_one_line(tmp_path: Path) -> None:
    model, topology = chain(knots=20)
    files = save(tmp_path, model, topology, chain_frames(3, 3)[0])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    other = dataclasses.replace(topology.molecules[0][0], exclusions=neighbours(BEADS, 1)[1:])
    half = tmp_path / "half.topology.json"
    CoarseTopology(((other, 1),)).save(half)
    cases = {
        "24 x 24": [*files, "--to", "lammps", "--out", tmp_path / "a"],
        "this is no export": [*files, "--out", tmp_path / "mine", "--force"],
        "no file": [files[0], files[1], tmp_path / "absent.gro", "--out", tmp_path / "a"],
        "expected a .topology.json": [files[0], files[0], files[2], "--out", tmp_path / "a"],
        "results.json": [tmp_path / "mine", "--out", tmp_path / "a"],
        "no whole export": ["--check", tmp_path / "mine"],
        "give MODEL.npz": [*files],
    }
    for words, arguments in cases.items():
        done = ccg("export", *arguments)
        assert done.returncode == 2, (words, done.stdout, done.stderr)
        assert words in done.stderr, (words, done.stderr)
        assert "Traceback" not in done.stderr
    assert (tmp_path / "mine" / "notes.txt").read_text() == "keep"
    assert not (tmp_path / "a").exists()
