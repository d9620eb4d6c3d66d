"""Spanning trees: which atoms place which, which groups are rotors, which inputs are refused."""

import numpy as np
import pytest
from molecules import ALANINE_BEADS, alanine_dipeptide, butane, cyclohexane

from ccg_gmx.errors import TopologyError
from ccg_gmx.molecule.bond_graph import build_bond_graph, equivalence_classes, stereocentres
from ccg_gmx.molecule.tree import build_tree, reference_dihedral


def alanine_rows():
    return {row.atom: row for row in alanine_dipeptide().tree(ALANINE_BEADS).rows}


def test_every_atom_is_placed_once_after_its_references():
    for molecule, beads in (
        (alanine_dipeptide(), ALANINE_BEADS),
        (butane(), [0, 1, 2, 3]),
        (cyclohexane(), [2, 3, 4, 5]),
    ):
        tree = molecule.tree(beads)
        level = dict.fromkeys(beads, 0)
        for row in tree.rows:
            assert row.atom not in level
            assert row.parent in tree.graph.neighbours[row.atom]
            assert row.angle_ref in tree.graph.neighbours[row.parent]
            assert len({row.atom, row.parent, row.angle_ref, row.torsion_ref}) == 4
            assert row.level == 1 + max(level[a] for a in (row.parent, row.angle_ref, row.torsion_ref))
            level[row.atom] = row.level
        assert sorted(level) == list(range(molecule.n_atoms))


@pytest.mark.parametrize(
    ("atom", "references"),
    [
        (10, (8, 6, 14)),  # CB: offset from phi
        (9, (8, 6, 14)),  # HA: offset from phi
        (7, (6, 8, 4)),  # H on N: offset from phi, read from its other end
        (15, (14, 8, 16)),  # O on C': offset from psi
        (0, (4, 6, 8)),  # CH3 of ACE: omega
    ],
)
def test_alanine_references(atom, references):
    row = alanine_rows()[atom]
    assert (row.parent, row.angle_ref, row.torsion_ref) == references
    assert row.role == ("primary" if atom == 0 else "offset")


def test_alanine_rotors_are_the_three_methyls_in_rising_order():
    tree = alanine_dipeptide().tree(ALANINE_BEADS)
    assert sorted(tuple(sorted(rotor)) for rotor in tree.rotors) == [(1, 2, 3), (11, 12, 13), (19, 20, 21)]
    for rotor in tree.rotors:
        row = next(row for row in tree.rows if row.atom == rotor[0])
        assert 0 < reference_dihedral(tree.reference, rotor[1], row.parent, row.angle_ref, rotor[0]) < np.pi


def test_different_isotopes_are_no_rotor():
    molecule = alanine_dipeptide()
    masses = molecule.masses
    masses[12] = 2.014
    assert len(molecule.tree(ALANINE_BEADS, masses=masses).rotors) == 2


def test_terminal_bead_can_carry_a_rotor():
    assert len(butane().tree([0, 1, 2, 3]).rotors) == 2


def test_equivalence_and_stereocentres():
    molecule = alanine_dipeptide()
    graph = molecule.tree(ALANINE_BEADS).graph
    colours = equivalence_classes(graph)
    assert colours[11] == colours[12] == colours[13] != colours[9]
    assert colours[0] != colours[18]  # the two terminal methyls differ
    assert stereocentres(graph) == ((6, 9, 10, 14),)
    assert stereocentres(butane().tree([0, 1, 2, 3]).graph) == ()


def test_linear_group_takes_another_reference_or_is_refused():
    # C1-C2-C3-C4 beads and a nitrile N on C5 on C4: C4-C5-N is straight
    positions = np.array([[0, 0, 0], [0.15, 0, 0], [0.2, 0.14, 0], [0.35, 0.14, 0.02], [0.4, 0.27, 0.05]])
    nitrogen = positions[4] + 0.8 * (positions[4] - positions[3])
    bonds = [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5)]
    names, masses = ["C"] * 5 + ["N"], [12.0] * 5 + [14.0]
    with pytest.raises(TopologyError, match="lie on a line"):
        build_tree(bonds, 6, [0, 1, 2, 3], masses=masses, names=names, reference=np.vstack((positions, nitrogen)))


def test_collinear_torsion_reference_is_avoided():
    # C2 (bead 1) carries X on a line with bead 2, so bead 2 cannot be its angle reference
    positions = np.array([[0, 0.15, 0], [0, 0, 0], [0.15, 0, 0], [0.2, 0.14, 0.02], [-0.15, 0, 0]])
    tree = build_tree(
        [(0, 1), (1, 2), (2, 3), (1, 4)], 5, [0, 1, 2, 3], masses=[12.0] * 5, names=["C"] * 5, reference=positions
    )
    assert (tree.rows[0].angle_ref, tree.rows[0].torsion_ref) == (0, 2)


@pytest.mark.parametrize(
    ("beads", "message"),
    [
        ([4, 6, 8], "3 different bead atoms"),
        ([4, 6, 8, 6], "3 different bead atoms"),
        ([4, 6, 8, 16], "beads CA9 and N17 are not bonded"),
        ([4, 6, 8, 22], "bead atom 23 of 22 atoms"),
        ([-1, 4, 6, 8], "bead atom 0 of 22"),
    ],
)
def test_beads_must_be_a_bonded_chain(beads, message):
    with pytest.raises(TopologyError, match=message) as error:
        alanine_dipeptide().tree(beads)
    assert error.value.expected
    assert error.value.remedy


def test_straight_beads_are_refused():
    positions = alanine_dipeptide().positions
    positions[8] = 2 * positions[6] - positions[4]
    with pytest.raises(TopologyError, match="on a line"):
        alanine_dipeptide().tree(ALANINE_BEADS, reference=positions)


def test_bad_graphs_are_refused():
    with pytest.raises(TopologyError, match="only 2 of 3 atoms are connected"):
        build_bond_graph([(0, 1)], 3, [1.0] * 3, ["A", "B", "C"])
    with pytest.raises(TopologyError, match="between atoms 1"):
        build_bond_graph([(0, 3)], 3, [1.0] * 3, ["A", "B", "C"])
    with pytest.raises(TopologyError, match="2 masses"):
        build_bond_graph([(0, 1)], 3, [1.0] * 2, ["A", "B", "C"])


def test_bad_reference_is_refused():
    molecule = alanine_dipeptide()
    with pytest.raises(TopologyError, match="reference structure"):
        molecule.tree(ALANINE_BEADS, reference=molecule.positions[:-1])
    with pytest.raises(TopologyError, match="finite"):
        molecule.tree(ALANINE_BEADS, reference=molecule.positions * np.nan)
