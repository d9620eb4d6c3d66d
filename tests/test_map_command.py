"""``ccg map`` from end to end: topologies with constraints, forces of GROMACS, errors in one line with code 2."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from MDAnalysis.lib.formats.libmdaxdr import TRRFile

from ccg_gmx.cli import main
from ccg_gmx.engine.gromacs import Gmx
from ccg_gmx.molecule.coarse_topology import CoarseTopology
from ccg_gmx.molecule.molecule_types import read_molecule_types
from ccg_gmx.molecule.structure import read_structure
from ccg_gmx.molecule.topology import parse_tpr_dump
from ccg_gmx.molecule.trajectory import make_whole, read_frames

TOPOLOGIES = Path(__file__).resolve().parent.parent / "topologies"
pytestmark = pytest.mark.gmx


def short_run(gmx: Gmx, name: str, folder: Path, steps: int = 100) -> tuple[Path, Path]:
    """Run a few steps of a shipped liquid, a frame with forces every 10."""
    source = TOPOLOGIES / name
    lines = (source / "md.mdp").read_text().splitlines()
    changed = {"nsteps": steps, "nstxout": 10, "nstfout": 10, "nstcalcenergy": 10, "nstenergy": 10}
    kept = [line for line in lines if line.partition("=")[0].strip() not in changed]
    text = "\n".join(kept + [f"{key} = {value}" for key, value in changed.items()]) + "\n"
    tpr = gmx.grompp(text, source / "conf.gro", source / "topol.top", folder / "md.tpr")
    return tpr, gmx.mdrun(tpr, folder, name="md").trajectory


@pytest.fixture(scope="module")
def water(gmx: Gmx, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """SPC/E water: run input and trajectory."""
    return short_run(gmx, "spce_water", tmp_path_factory.mktemp("water"))


@pytest.fixture(scope="module")
def hexane(gmx: Gmx, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Hexane with constrained C-H bonds: run input and trajectory."""
    return short_run(gmx, "hexane", tmp_path_factory.mktemp("hexane"))


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["map", *map(str, arguments), "--quiet"])


def test_water(water: tuple[Path, Path], gmx: Gmx, tmp_path: Path):
    tpr, trajectory = water
    result = run(TOPOLOGIES / "spce_water" / "mapping.yaml", tpr, trajectory, "-o", tmp_path / "cg" / "w", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert (report["frames"], report["atoms"], report["beads"]) == (11, 1536, 512)
    assert report["forces"]["SOL"]["map"] == "optimal"
    assert sorted(path.name for path in (tmp_path / "cg").iterdir()) == ["w.gro", "w.topology.json", "w.trr"]
    topology = CoarseTopology.load(tmp_path / "cg" / "w.topology.json")
    assert (topology.n_beads, topology.types) == (512, ("W",))

    fine, beads = read_frames(trajectory, 1536), read_frames(tmp_path / "cg" / "w.trr", 512)
    atoms = parse_tpr_dump(gmx.dump(tpr))
    whole = make_whole(fine.positions, fine.box, atoms.bonds).reshape(11, 512, 3, 3)
    masses = atoms.masses.reshape(512, 3, 1)
    centres = (masses * whole).sum(axis=2) / masses.sum(axis=1)
    np.testing.assert_allclose(beads.positions, centres, atol=1e-6)
    # float32 in the file: 24 bits of forces up to a few thousand
    np.testing.assert_allclose(beads.forces, fine.forces.reshape(11, 512, 3, 3).sum(axis=2), atol=2e-3)
    np.testing.assert_array_equal(beads.time, fine.time)
    first, box = read_structure(tmp_path / "cg" / "w.gro")
    np.testing.assert_allclose(first, beads.positions[0], atol=6e-4)
    np.testing.assert_allclose(box, fine.box[0], atol=1e-5)


def test_hexane_optimal_forces_are_less_noisy(hexane: tuple[Path, Path], tmp_path: Path):
    tpr, trajectory = hexane
    mapping = TOPOLOGIES / "hexane" / "mapping.yaml"
    forces = {}
    for kind in ("basic", "optimal"):
        result = run(mapping, tpr, trajectory, "-o", tmp_path / kind, "--json", "--forces", kind)
        assert result.exit_code == 0, result.output
        report = json.loads(result.stdout)["forces"]["HEX"]
        forces[kind] = read_frames(tmp_path / f"{kind}.trr", 300).forces.reshape(11, 100, 3, 3)
        assert report["map"] == kind
    ratio = (forces["optimal"] ** 2).mean(axis=(0, 1, 3)) / (forces["basic"] ** 2).mean(axis=(0, 1, 3))
    np.testing.assert_allclose(ratio, list(report["noise_ratio"].values()), rtol=1e-4)
    assert (ratio < 0.9).all()
    # in a liquid without walls the mean force on a bead along x, y and z is zero by either map
    difference = (forces["optimal"] - forces["basic"]).reshape(-1, 9)
    assert (np.abs(difference.mean(axis=0)) < 5 * difference.std(axis=0) / np.sqrt(len(difference))).all()
    topology = CoarseTopology.load(tmp_path / "optimal.topology.json")
    assert topology.bead_types[:3] == ("A", "B", "A")
    assert topology.bonded_beads("AB").shape == (200, 2)
    assert topology.excluded_pairs.shape == (300, 2)


def test_molecule_types_of_a_tpr(hexane: tuple[Path, Path], gmx: Gmx):
    ((molecule, count),) = read_molecule_types(gmx.dump(hexane[0]))
    assert (molecule.name, count, molecule.n_atoms, len(molecule.links)) == ("HEX", 100, 20, 19)
    # constraints = h-bonds: 14 of them, so six rigid groups, each a carbon with its hydrogens
    assert len(molecule.constraints) == 14
    assert sorted(np.bincount(molecule.rigid_groups).tolist()) == [3, 3, 3, 3, 4, 4]
    atoms = parse_tpr_dump(gmx.dump(hexane[0]))
    assert tuple(molecule.names * count) == atoms.names
    np.testing.assert_array_equal(np.tile(molecule.masses, count), atoms.masses)


def water_mapping(folder: Path, old: str, new: str) -> Path:
    text = (TOPOLOGIES / "spce_water" / "mapping.yaml").read_text()
    assert old in text
    path = folder / "map.yaml"
    path.write_text(text.replace(old, new))
    return path


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("[OW, HW1, HW2]", "[OW, HW1]", "atom 3 (HW2 of SOL 1) is in no bead"),
        ("[OW, HW1, HW2]", "[OW, HW1, HW1]", "atom 2 (HW1 of SOL 1) is twice in bead W"),
        ("[OW, HW1, HW2]", "[OW, HW1, HW3]", "SOL has no atom HW3"),
        ("  SOL:", "  WAT:", "the topology has no molecule type WAT; expected one of SOL"),
        ("at: com}", "at: com}\n    bonds: {WW: [[W, V]]}", "bond WW names bead V, the beads are W"),
        ("at: com}", "at: center}", "'com', 'cog' or 'atom'"),
        (
            "{name: W, type: W, atoms: [OW, HW1, HW2], at: com}",
            "{name: W, type: W, atoms: [OW]}\n      - {name: H, type: H, atoms: [HW1, HW2]}",
            "SOL: constraints join beads W and H",
        ),
    ],
)
def test_wrong_mapping_is_one_line_and_code_2(water: tuple[Path, Path], tmp_path: Path, old: str, new: str, line: str):
    result = run(water_mapping(tmp_path, old, new), *water, "-o", tmp_path / "out" / "w")
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert line in result.stderr
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_wrong_trajectory_is_one_line_and_code_2(water: tuple[Path, Path], hexane: tuple[Path, Path], tmp_path: Path):
    tpr, trajectory = water
    mapping = TOPOLOGIES / "spce_water" / "mapping.yaml"
    bare = tmp_path / "bare.trr"
    frames = read_frames(trajectory, 1536)
    with TRRFile(str(bare), "w") as stream:
        for t, (positions, box) in enumerate(zip(frames.positions, frames.box, strict=True)):
            stream.write(positions.astype(np.float32), None, None, box.astype(np.float32), t, float(t), 0.0, 1536)
    out = tmp_path / "out" / "w"
    for arguments, line in (
        ((mapping, tpr, bare), "bare.trr has no forces; expected a .trr with forces"),
        ((mapping, tpr, hexane[1]), "has 2000 atoms in a frame; expected the 1536 of the topology"),
        ((mapping, tpr, tmp_path / "none.trr"), "no file"),
        ((mapping, tmp_path / "none.tpr", trajectory), "none.tpr"),
        ((tmp_path / "none.yaml", tpr, trajectory), "cannot read mapping"),
        ((mapping, tpr, trajectory, "--begin", "1000"), "has no frame from 1000 ps to the end"),
    ):
        result = run(*arguments, "-o", out)
        assert result.exit_code == 2
        assert result.stderr.count("\n") == 1
        assert line in result.stderr
        assert not out.parent.exists() or not list(out.parent.iterdir())
    assert run(mapping, tpr, bare, "-o", out, "--no-forces", "--stride", "5").exit_code == 0
    mapped = read_frames(out.with_name("w.trr"), 512)
    assert mapped.forces is None
    assert mapped.time.tolist() == [0.0, 5.0, 10.0]
