"""Clashes on a hand-made chain, where every distance is known."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from molecules import alanine_dipeptide, butane, cyclohexane
from scipy.sparse import coo_array
from scipy.sparse.csgraph import shortest_path

from ccg_gmx.engine.gromacs import Gmx
from ccg_gmx.molecule.contacts import CLASH_FACTOR, clash_fraction, contact_distance, distant_pairs
from ccg_gmx.molecule.topology import Topology, parse_tpr_dump
from ccg_gmx.molecule.trajectory import make_whole, read_frames

R_MIN = 0.3  # of a pair of type 0
EPSILON = 0.5


def chain(n: int, types: list[int] | None = None) -> Topology:
    """Return n atoms in a row. Type 0 has a minimum at R_MIN, type 1 (a hydroxyl hydrogen, say) has no parameters."""
    c6, c12 = 2 * EPSILON * R_MIN**6, EPSILON * R_MIN**12
    topology = SimpleNamespace(
        names=tuple(f"C{i}" for i in range(n)),
        bonds=np.array([(i, i + 1) for i in range(n - 1)]),
        types=np.array(types or [0] * n),
        c6=np.array([[c6, 0.0], [0.0, 0.0]]),
        c12=np.array([[c12, 0.0], [0.0, 0.0]]),
    )
    return cast(Topology, topology)


def bent(distance: float, n: int = 5) -> np.ndarray:
    """Return a zigzag of n atoms whose last one is brought to a distance of the first, far from the others."""
    positions = np.array([[0.0, 1.0 * i, 0.5 * (i % 2)] for i in range(n)])
    positions[-1] = positions[0] + [distance, 0.0, 0.0]
    return positions


@pytest.mark.parametrize("molecule", [alanine_dipeptide(), butane(), cyclohexane()], ids=["ala", "butane", "ring"])
def test_distant_pairs_are_those_more_than_three_bonds_apart(molecule) -> None:
    n, bonds = molecule.n_atoms, np.asarray(molecule.bonds)
    topology = cast(Topology, SimpleNamespace(names=tuple(molecule.names), bonds=bonds))
    graph = coo_array((np.ones(len(bonds)), bonds.T), shape=(n, n))
    steps = shortest_path(graph, directed=False)
    expected = {(i, j) for i in range(n) for j in range(i + 1, n) if steps[i, j] > 3}
    first, second = distant_pairs(topology)
    assert set(zip(first.tolist(), second.tolist(), strict=True)) == expected
    assert len(first) == len(expected)


def test_unconnected_atoms_are_distant() -> None:
    topology = cast(Topology, SimpleNamespace(names=("A", "B", "C"), bonds=np.array([[0, 1]])))
    assert [pair.tolist() for pair in distant_pairs(topology)] == [[0, 1], [2, 2]]


def test_contact_distance_is_a_part_of_the_minimum_and_0_without_repulsion() -> None:
    topology = chain(6, types=[0, 0, 0, 0, 0, 1])
    distances = contact_distance(topology, np.array([0, 0, 1]), np.array([4, 5, 5]))
    np.testing.assert_allclose(distances, [CLASH_FACTOR * R_MIN, 0.0, 0.0], rtol=1e-12)


@pytest.mark.parametrize(("part", "clashes"), [(0.999, 1.0), (1.001, 0.0)])
def test_the_fifth_atom_of_a_chain_clashes_below_the_mark(part: float, clashes: float) -> None:
    assert clash_fraction(chain(5), bent(part * CLASH_FACTOR * R_MIN)[None]) == clashes


def test_the_fourth_atom_may_come_close_because_bonded_terms_hold_it() -> None:
    assert clash_fraction(chain(4), bent(0.01, n=4)[None]) == 0.0


def test_an_atom_without_repulsion_never_clashes() -> None:
    assert clash_fraction(chain(5, types=[0, 0, 0, 0, 1]), bent(0.001)[None]) == 0.0


def test_frames_are_counted_and_not_pairs() -> None:
    apart, close = bent(1.0, n=7), bent(0.01, n=7)
    close[-2] = close[-1] + 0.01  # two clashes in one frame
    assert clash_fraction(chain(7), np.stack([apart, close, apart, apart])) == 0.25


def test_many_frames_are_the_same_as_few() -> None:
    frames = np.stack([bent(1.0)] * 5000 + [bent(0.01)] * 5000)  # more than one block
    assert clash_fraction(chain(5), frames) == 0.5


def test_molecule_without_distant_pairs_has_no_clash() -> None:
    assert clash_fraction(chain(3), np.zeros((2, 3, 3))) == 0.0


@pytest.mark.gmx
def test_fine_md_has_no_clash_and_a_squeezed_molecule_has(gmx: Gmx, alanine_tpr, alanine_trr) -> None:
    topology = parse_tpr_dump(gmx.dump(alanine_tpr))
    frames = read_frames(alanine_trr, topology.n_atoms)
    positions = make_whole(frames.positions, frames.box, topology.bonds)
    assert clash_fraction(topology, positions) <= 0.01
    assert clash_fraction(topology, 0.5 * positions) == 1.0
