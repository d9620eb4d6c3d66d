"""Mapping files, YAML and VOTCA's XML: what they mean, and one clear line for each way to get them wrong."""

from pathlib import Path

import numpy as np
import pytest

from ccg_gmx.errors import SettingsError, TopologyError
from ccg_gmx.molecule.bead_file import read_mapping_yaml, validated
from ccg_gmx.molecule.coarse_topology import BondedType, CoarseMoleculeType, CoarseTopology
from ccg_gmx.molecule.molecule_types import MoleculeType
from ccg_gmx.molecule.system_mapping import SystemMapping, map_system
from ccg_gmx.molecule.votca_xml import read_mapping

SHIPPED = Path(__file__).resolve().parent.parent / "topologies"
GLYCINES = {"MOL": {"beads": [{"name": "A", "type": "A", "atoms": ["1:CA", 1]}], "unmapped": "allow"}}
VOTCA = """<cg_molecule>
  <name>ppn</name> <ident>MOL</ident>
  <topology>
    <cg_beads>
      <cg_bead><name>P</name><type>X</type><symmetry>1</symmetry><mapping>M</mapping>
        <beads> 1:GLY:CA 1:GLY:N </beads></cg_bead>
      <cg_bead><name>Q</name><type>Y</type><mapping>S</mapping><beads>2:GLY:CA</beads></cg_bead>
      <cg_bead><name>R</name><type>Y</type><mapping>S</mapping><beads>2:GLY:N</beads></cg_bead>
    </cg_beads>
    <cg_bonded>
      <bond><name>pq</name><beads> P Q
        Q R </beads></bond>
      <angle><name>pqr</name><beads>P Q R</beads></angle>
    </cg_bonded>
  </topology>
  <maps>
    <map><name>M</name><weights> 3 1 </weights></map>
    <map><name>S</name><weights>1</weights></map>
  </maps>
</cg_molecule>
"""


def two_residues(**changes: object) -> MoleculeType:
    """Four atoms N CA N CA in residues 5 and 6, and a virtual site."""
    fields: dict[str, object] = {
        "name": "MOL",
        "names": ("N", "CA", "N", "CA", "V"),
        "residue_names": ("GLY",) * 5,
        "residue_ids": (5, 5, 6, 6, 6),
        "residue_places": (1, 1, 2, 2, 2),
        "masses": np.array([14.0, 12.0, 14.0, 12.0, 0.0]),
        "links": np.array([[0, 1], [1, 2], [2, 3], [3, 4]]),
        "constraints": np.zeros((0, 2), dtype=np.int64),
    }
    return MoleculeType(**(fields | changes))  # type: ignore[arg-type]


def mapped(molecule: dict[str, object], **top: object) -> SystemMapping:
    file = validated({"molecules": {"MOL": molecule}, **top}, Path("map.yaml"))
    return map_system(file, [(two_residues(), 2)])


def bead(name: str, *atoms: object, **more: object) -> dict[str, object]:
    return {"name": name, "type": more.pop("type", name), "atoms": list(atoms), **more}


ALL = [bead("A", "5:N", "5:CA"), bead("B", 3, 4, "V")]


def test_weights_names_and_masses():
    system = mapped({"beads": ALL})
    weights = system.maps[0].weights
    np.testing.assert_allclose(weights, [[14 / 26, 12 / 26, 0, 0, 0], [0, 0, 14 / 26, 12 / 26, 0]])
    assert system.topology.bead_types == ("A", "B", "A", "B")
    assert system.topology.masses.tolist() == [26.0] * 4
    assert system.topology.molecule_of.tolist() == [0, 0, 1, 1]
    assert system.n_atoms == 10
    centre = mapped({"beads": [bead("A", 1, 2, at="cog"), bead("B", 4, at="atom")], "unmapped": [3, "V"]})
    np.testing.assert_allclose(centre.maps[0].weights, [[0.5, 0.5, 0, 0, 0], [0, 0, 0, 1, 0]])
    weighted = mapped({"beads": [bead("A", 1, 2, weights=[3, 1])], "unmapped": "allow"})
    np.testing.assert_allclose(weighted.maps[0].weights, [[0.75, 0.25, 0, 0, 0]])


CHAIN = [bead(name, number) for name, number in zip("ABCD", (1, 2, 3, 4), strict=True)]
CHAIN_BONDS = {"b": [["A", "B"], ["B", "C"], ["C", "D"]]}


@pytest.mark.parametrize(
    ("extra", "pairs"),
    [
        ({}, [(0, 1), (1, 2), (2, 3)]),
        ({"angles": {"a": [["A", "B", "C"]]}}, [(0, 1), (0, 2), (1, 2), (2, 3)]),
        ({"nrexcl": 0}, []),
        ({"nrexcl": 1}, [(0, 1), (1, 2), (2, 3)]),
        ({"nrexcl": 2}, [(0, 1), (0, 2), (1, 2), (1, 3), (2, 3)]),
        ({"nrexcl": 0, "exclusions": [["D", "A"]]}, [(0, 3)]),
    ],
)
def test_exclusions(extra: dict[str, object], pairs: list[tuple[int, int]]):
    topology = mapped({"beads": CHAIN, "bonds": CHAIN_BONDS, "unmapped": "allow", **extra}).topology
    first = [tuple(pair) for pair in topology.excluded_pairs.tolist()]
    assert first == pairs + [(a + 4, b + 4) for a, b in pairs]
    assert topology.bonded_beads("b").tolist() == [[0, 1], [1, 2], [2, 3], [4, 5], [5, 6], [6, 7]]


@pytest.mark.parametrize(
    ("molecule", "line"),
    [
        ({"beads": [bead("A", 1, 2), bead("B", 2, 3, 4, 5)]}, r"atom 2 \(CA of GLY 5\) is in beads A and B"),
        ({"beads": [bead("A", 1, "5:N", 2, 3, 4, 5)]}, r"atom 1 .* is twice in bead A"),
        ({"beads": [bead("A", 1, 2)]}, r"atom 3 \(N of GLY 6\) and 2 more are in no bead.*unmapped"),
        ({"beads": ALL, "unmapped": [1]}, r"atom 1 .* is listed in unmapped and is in a bead"),
        ({"beads": [bead("A", "CA")]}, r"has 2 atoms CA.*5:CA"),
        ({"beads": [bead("A", "CB")]}, r"no atom CB; expected a name \(N, CA, V\)"),
        ({"beads": [bead("A", "7:CA")]}, "no atom 7:CA"),
        ({"beads": [bead("A", 6)]}, r"no atom 6; expected 1\.\.5"),
        ({"beads": [bead("A", "V")], "unmapped": "allow"}, "which has no mass"),
        ({"beads": [bead("A", 1, "V", at="cog")], "unmapped": "allow"}, "V of GLY 6.*which has no mass"),
        ({"beads": [*ALL, bead("A", 5)]}, "bead name A twice"),
        ({"beads": ALL, "bonds": {"x": [["A", "C"]]}}, "bond x names bead C, the beads are A, B"),
        ({"beads": ALL, "bonds": {"x": [["A", "A"]]}}, "should name 2 different beads"),
        ({"beads": ALL, "bonds": {"x": [["A", "B"], ["B", "A"]]}}, r"bond \[A, B\] stands there 2 times"),
        ({"beads": ALL, "angles": {"x": [["A", "B"]]}}, "should name 3 different beads"),
        ({"beads": CHAIN, "bonds": CHAIN_BONDS, "angles": {"b": [["A", "B", "C"]]}}, "b stands in bonds and in angles"),
        ({"beads": [bead("A", 1, 2, at="atom")]}, "stands at one atom but lists 2"),
        ({"beads": [bead("A", 1, weights=[1, 2])]}, "1 atoms but 2 weights"),
        ({"beads": [bead("A", 1, weights=[-1])]}, "must be >= 0"),
        ({"beads": [bead("A", False)]}, "quote names that YAML takes for something else"),
        ({"beads": ALL, "bond": {}}, "molecules.MOL.bond: unknown key"),
        ({"beads": []}, "at least 1"),
    ],
)
def test_wrong_molecules_are_refused_in_one_line(molecule: dict[str, object], line: str):
    with pytest.raises(SettingsError, match=line) as caught:
        mapped(molecule)
    assert "\n" not in str(caught.value)


def test_molecule_types_must_match_the_topology():
    with pytest.raises(SettingsError, match="no molecule type WAT; expected one of MOL"):
        mapped({"beads": ALL}, leave_out=["WAT"])
    with pytest.raises(SettingsError, match="MOL is mapped and left out"):
        mapped({"beads": ALL}, leave_out=["MOL"])
    file = validated({"molecules": {"MOL": {"beads": ALL}}}, Path("map.yaml"))
    ion = two_residues(name="NA")
    with pytest.raises(SettingsError, match=r"molecule type NA has no beads.*leave_out"):
        map_system(file, [(two_residues(), 1), (ion, 3)])


def test_molecules_left_out_shift_the_atoms_behind_them():
    file = validated({"molecules": {"MOL": {"beads": ALL}}, "leave_out": ["NA"]}, Path("map.yaml"))
    system = map_system(file, [(two_residues(), 1), (two_residues(name="NA"), 3), (two_residues(), 1)])
    positions = np.random.default_rng(1).normal(size=(2, 25, 3))
    weights = np.array([14.0, 12.0]) / 26
    beads = system.positions(positions, None)
    np.testing.assert_allclose(beads[:, 2], np.einsum("a,tax->tx", weights, positions[:, 20:22]), atol=1e-12)
    assert system.topology.n_beads == 4


def test_yaml_with_a_key_twice_or_no_mapping(tmp_path: Path):
    path = tmp_path / "map.yaml"
    for text, line in (
        ("molecules: {}\nmolecules: {}\n", "molecules stands on line 1 already"),
        ("- 1\n", "holds no mapping"),
        ("a: [\n", "not valid YAML"),
        ("molecules: {}\n", "at least 1 item"),
    ):
        path.write_text(text)
        with pytest.raises(SettingsError, match=line) as caught:
            read_mapping_yaml(path)
        assert "\n" not in str(caught.value)
    with pytest.raises(SettingsError, match="cannot read mapping"):
        read_mapping_yaml(tmp_path / "none.yaml")


@pytest.mark.parametrize("folder", ["spce_water", "hexane"])
def test_shipped_mappings_are_valid(folder: str):
    assert read_mapping(str(SHIPPED / folder / "mapping.yaml")).molecules


def test_votca_file_means_what_votca_means(tmp_path: Path):
    path = tmp_path / "map.xml"
    path.write_text(VOTCA)
    system = map_system(read_mapping(str(path)), [(two_residues(), 1)])
    np.testing.assert_allclose(system.maps[0].weights, [[0.25, 0.75, 0, 0, 0], [0, 0, 0, 1, 0], [0, 0, 1, 0, 0]])
    topology = system.topology
    assert topology.bead_types == ("X", "Y", "Y")
    assert (topology.kind("pq"), topology.kind("pqr")) == ("bond", "angle")
    assert topology.bonded_beads("pq").tolist() == [[0, 1], [1, 2]]
    assert topology.excluded_pairs.tolist() == [[0, 1], [0, 2], [1, 2]]
    with pytest.raises(SettingsError, match="maps MOL again"):
        read_mapping(f"{path};{path}")


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("cg_molecule", "molecule", "is a <molecule>; expected a <cg_molecule>"),
        ("<symmetry>1<", "<symmetry>3<", "symmetry 3"),
        ("<mapping>M<", "<mapping>Z<", "uses map Z"),
        ("> 3 1 <", "> 3 1 1 <", "2 atoms but 3 weights"),
        ("> 3 1 <", "> 3 x <", "expected numbers"),
        ("P Q R<", "P Q<", "a multiple of 3"),
        ("<ident>MOL</ident>", "", "has no <ident>"),
        ("<angle>", "<angle", "cannot read mapping"),
        ("2:GLY:N<", "2:GLY:CA<", "in beads Q and R"),
    ],
)
def test_wrong_votca_files(tmp_path: Path, old: str, new: str, line: str):
    path = tmp_path / "map.xml"
    path.write_text(VOTCA.replace(old, new))
    with pytest.raises(SettingsError, match=line):
        map_system(read_mapping(str(path)), [(two_residues(), 1)])


def chain(name: str = "M", kind: str = "bond") -> CoarseMoleculeType:
    beads = ((0, 1), (1, 2)) if kind == "bond" else ((0, 1, 2),)
    term = BondedType("t", kind, beads)  # type: ignore[arg-type]
    return CoarseMoleculeType(
        name, ("a", "b", "c"), ("X", "Y", "X"), (1.0, 2.0, 3.0), ("R",) * 3, (1, 1, 1), (term,), ((0, 1),)
    )


def test_coarse_topology_round_trip(tmp_path: Path):
    single = CoarseMoleculeType("I", ("i",), ("Z",), (5.0,), ("I",), (1,))
    topology = CoarseTopology(((chain(), 2), (single, 3), (chain("N"), 1)))
    path = tmp_path / "x.topology.json"
    topology.save(path)
    assert CoarseTopology.load(path) == topology
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    assert topology.n_beads == 12
    assert topology.types == ("X", "Y", "Z")
    assert topology.type_index.tolist() == [0, 1, 0, 0, 1, 0, 2, 2, 2, 0, 1, 0]
    assert topology.bonded_beads("t").tolist() == [[0, 1], [1, 2], [3, 4], [4, 5], [9, 10], [10, 11]]
    assert topology.excluded_pairs.tolist() == [[0, 1], [3, 4], [9, 10]]
    assert topology.residue_ids.tolist() == [1, 1, 1, 2, 2, 2, 3, 4, 5, 6, 6, 6]
    with pytest.raises(TopologyError, match="no bonded term u"):
        topology.kind("u")


def test_coarse_topology_refuses_what_does_not_fit(tmp_path: Path):
    with pytest.raises(TopologyError, match="t is the name of bonds and of angles"):
        CoarseTopology(((chain(), 1), (chain("N", "angle"), 1)))
    with pytest.raises(TopologyError, match="without molecules"):
        CoarseTopology(())
    with pytest.raises(TopologyError, match=r"beads \(0, 3\)"):
        CoarseMoleculeType("M", ("a",), ("A",), (1.0,), ("R",), (1,), (BondedType("t", "bond", ((0, 3),)),))
    path = tmp_path / "x.json"
    for text, line in (
        ("{", "cannot be read"),
        ("{}", "is no coarse topology"),
        ('{"format": "ccg coarse topology", "version": 9}', "format version 9; expected version 1"),
        ('{"format": "ccg coarse topology", "version": 1, "molecules": [{}]}', "is incomplete"),
    ):
        path.write_text(text)
        with pytest.raises(TopologyError, match=line):
            CoarseTopology.load(path)
