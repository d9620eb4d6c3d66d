"""What is written for whole systems, read from the text alone: no engine needed."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
from coarse_models import bond_energy, bulk, bulk_frames, chain, chain_frames, torsion_map
from hypothesis import given, settings
from hypothesis import strategies as st

from ccg_gmx.errors import CcgError, SettingsError, StoreError, TopologyError, TrajectoryError
from ccg_gmx.export.bundle import read_bundle, write_bundle
from ccg_gmx.export.coarse_system import CoarseSystem, coarse_system
from ccg_gmx.export.gromacs_system import gromacs_files, write_gromacs
from ccg_gmx.export.lammps_system import lammps_files
from ccg_gmx.export.lammps_tables import KJ_PER_KCAL
from ccg_gmx.molecule.coarse_topology import BondedType, CoarseTopology
from ccg_gmx.potential.model import CoarseModel
from ccg_gmx.records import BeadFrames


@pytest.fixture
def one() -> CoarseSystem:
    model, topology = chain()
    return coarse_system(model, topology, chain_frames(2, 1)[0])


@pytest.fixture
def many() -> CoarseSystem:
    model, topology = bulk()
    return coarse_system(model, topology, bulk_frames(topology, 2, 1, tilted=True))


def section_of(text: str, name: str) -> list[str]:
    """Lines of a section of a topology."""
    body = text.split(f"[ {name} ]")[1].split("[ ")[0]
    return [line for line in body.splitlines() if line and not line.startswith(";")]


def test_a_molecule_with_pairs_as_bonds(one: CoarseSystem, tmp_path: Path) -> None:
    frames = BeadFrames(one.positions, np.arange(2.0), one.box)
    files = write_gromacs(tmp_path / "out", one.model, one.topology, frames, "nsteps = 0\n", molecule_pairs=True)
    bonds = section_of((tmp_path / "out" / "CHAIN.itp").read_text(), "bonds")
    assert [line for line in bonds if " 8 " in line] == [f"{i} {i + 1} 8 0 1.0" for i in range(1, 6)]
    # 15 pairs less 9 within two bonds; B-B does not interact, A-A is table 1 and A-B table 2
    pairs = {tuple(map(int, line.split()[:2])): int(line.split()[3]) for line in bonds if " 9 " in line}
    assert pairs == {(1, 4): 2, (1, 5): 1, (1, 6): 2, (2, 5): 2, (3, 6): 2}
    assert {path.name for path in files.tables} == {f"table_{x}.xvg" for x in ("b0", "b1", "b2", "a0", "d0")}
    table = np.loadtxt(tmp_path / "out" / "table_b1.xvg")
    assert table[-1, 0] >= 0.5 * np.linalg.norm(one.box[0].sum(axis=0))  # mdrun stops past the end of a table
    assert not table[table[:, 0] > 0.9, 1:].any()


def test_a_bond_table_is_the_analytic_function(one: CoarseSystem) -> None:
    text = gromacs_files(one, "", molecule_pairs=False)["table_b0.xvg"]
    r, value, force = np.loadtxt(text.splitlines()).T
    assert np.abs(value - bond_energy(r)).max() < 1e-5
    assert np.abs(force + 1e5 * (r - 0.15)).max() < 1e-3


def test_bulk_topology_counts_molecules_and_lists_exclusions(many: CoarseSystem) -> None:
    files = gromacs_files(many, "", molecule_pairs=False)
    assert section_of(files["topol.top"], "molecules") == ["TRI 20", "SOL 50"]
    assert section_of(files["TRI.itp"], "exclusions") == ["1 2", "2 3"]
    assert section_of(files["TRI.itp"], "moleculetype") == ["TRI 0"]
    assert [line.split()[-1] for line in section_of(files["TRI.itp"], "atoms")] == [
        "30.000000",
        "40.000000",
        "35.000000",
    ]
    assert "[ bonds ]" not in files["SOL.itp"]
    box = list(map(float, files["conf.gro"].splitlines()[-1].split()))
    assert np.allclose(box, [2.6, 2.5, 2.7, 0, 0, 0.5, 0, 0.4, -0.6], atol=1e-6)


def test_maps_of_different_knots_share_one_grid(one: CoarseSystem) -> None:
    """GROMACS has one spacing: 24 and 36 knots become 72 points, which contain both."""
    molecule, _ = one.topology.molecules[0]
    second = dataclasses.replace(molecule, bonded=(*molecule.bonded, BondedType("other", "cmap", ((0, 1, 2, 3, 4),))))
    model = dataclasses.replace(one.model, maps={**one.model.maps, "other": torsion_map(36)})
    system = dataclasses.replace(one, model=model, topology=CoarseTopology(((second, 1),)))
    lines = section_of(gromacs_files(system, "", molecule_pairs=False)["topol.top"], "cmaptypes")
    heads = [line for line in lines if line.startswith("B_")]
    assert [head.rstrip("\\").split()[-2:] for head in heads] == [["72", "72"]] * 2
    assert heads[0].split()[:5] == [f"B_{kind}_CHAIN_{i}" for i, kind in zip(range(2, 7), "BABAB", strict=True)]
    values = np.array(" ".join(lines[1:650]).replace("\\", " ").split()[: 72 * 72], dtype=np.float64).reshape(72, 72)
    assert np.allclose(values[::3, ::3], one.model.maps["map"].on_grid(24), atol=1e-6)


def test_lammps_units_and_types(many: CoarseSystem) -> None:
    files = lammps_files(many)
    data = files["system.data"]
    assert "130 atoms" not in data
    assert re.search(r"(?m)^110 atoms$", data)
    assert re.search(r"(?m)^3 atom types$", data)  # two masses of A
    assert re.search(r"(?m)^5 4 -6 xy xz yz$", data)
    assert "special_bonds lj/coul 0.0 1.0 1.0" in files["model.in"]
    rows = [line.split() for line in files["bond.table"].splitlines() if re.match(r"\d+ \S+ \S+ \S+$", line)]
    r, energy = np.array(rows, dtype=np.float64)[:, 1:3].T
    assert np.abs(energy * KJ_PER_KCAL - bond_energy(r / 10.0)).max() < 1e-5


def test_lammps_refuses_what_it_cannot_exclude() -> None:
    model, topology = chain()
    molecule, _ = topology.molecules[0]
    odd = dataclasses.replace(molecule, exclusions=molecule.exclusions[1:])  # 1-2 is bonded and not excluded
    with pytest.raises(SettingsError, match="beads 1 and 2 are bonded and not excluded"):
        lammps_files(coarse_system(model, CoarseTopology(((odd, 1),)), chain_frames(1, 1)[0]))


def test_lammps_refuses_a_map_by_name() -> None:
    model, topology = chain(knots=20)
    with pytest.raises(SettingsError, match="the map map with 20 knots"):
        lammps_files(coarse_system(model, topology, chain_frames(1, 1)[0]))


def test_what_does_not_belong_together_is_refused(many: CoarseSystem) -> None:
    frames = BeadFrames(many.positions, np.arange(2.0), many.box)
    with pytest.raises(TrajectoryError, match="110 beads"):
        coarse_system(many.model, many.topology, BeadFrames(many.positions[:, 1:], frames.time, many.box))
    with pytest.raises(TrajectoryError, match="not a number"):
        coarse_system(many.model, many.topology, BeadFrames(many.positions * np.nan, frames.time, many.box))
    with pytest.raises(SettingsError, match="cut-off"):
        coarse_system(many.model, many.topology, BeadFrames(many.positions, frames.time, 0.6 * many.box))
    with pytest.raises(CcgError, match="bend"):
        coarse_system(CoarseModel(300.0, {"bond": many.model.bonded["bond"]}), many.topology, frames)
    with pytest.raises(SettingsError, match="70 molecules"):
        gromacs_files(many, "", molecule_pairs=True)


def test_names_that_a_file_cannot_have_are_refused(one: CoarseSystem) -> None:
    molecule, _ = one.topology.molecules[0]
    for changed in ({"name": "a/b"}, {"residue_names": ("TOOLONG",) * 6}):
        topology = CoarseTopology(((dataclasses.replace(molecule, **changed), 1),))
        with pytest.raises(TopologyError):
            gromacs_files(coarse_system(one.model, topology, chain_frames(1, 1)[0]), "", molecule_pairs=False)
    twice = CoarseTopology(((molecule, 1), (dataclasses.replace(molecule, masses=(1.0,) * 6), 1)))
    x = np.concatenate([one.positions, one.positions], axis=1)
    with pytest.raises(TopologyError, match="two different molecule types named CHAIN"):
        gromacs_files(coarse_system(one.model, twice, BeadFrames(x, np.arange(2.0))), "", molecule_pairs=False)


@settings(max_examples=5, deadline=None)
@given(count=st.integers(1, 45), seed=st.integers(0, 1000))
def test_frames_of_the_check_are_kept_to_the_last_bit(
    count: int, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Twenty frames, what float32 holds of the given ones first; made-up ones are close to them."""
    folder = tmp_path_factory.mktemp("frames") / "export"
    model, topology = chain()
    frames = chain_frames(count, seed)[0]
    boxed = BeadFrames(frames.positions + 3.0, frames.time, np.tile(6.0 * np.eye(3), (count, 1, 1)))
    manifest = write_bundle(folder, model, topology, boxed, ["lammps"], lambda cutoff: "", seed=seed)
    kept = read_bundle(folder).system.positions
    given_count = min(count, 20)
    chosen = np.linspace(0, count - 1, given_count).round().astype(int)
    assert kept.shape == (20, 6, 3)
    assert manifest.made_up == 20 - given_count
    assert np.array_equal(kept[:given_count], boxed.positions[chosen].astype(np.float32))
    assert np.array_equal(kept, kept.astype(np.float32))
    assert (
        np.abs(kept[given_count:] - kept[np.resize(np.arange(given_count), 20)[given_count:]]).max(initial=0.0) < 0.02
    )


def test_damaged_exports_are_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "export"
    write_bundle(folder, *chain(), chain_frames(3, 1)[0], ["lammps"], lambda cutoff: "")
    (folder / "frames.npz").write_bytes(b"PK")
    with pytest.raises(StoreError, match="no whole export"):
        read_bundle(folder)
    (folder / "export.json").write_text('{"format": "ccg export", "version": 99}')
    with pytest.raises(StoreError, match="another version"):
        read_bundle(folder)
    (folder / "export.json").write_text("[]")
    with pytest.raises(StoreError, match="no whole export"):
        read_bundle(folder)
