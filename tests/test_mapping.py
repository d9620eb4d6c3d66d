"""Bead mappings: positions, forces, refusals."""

import numpy as np
import pytest

from ccg_gmx.errors import TopologyError
from ccg_gmx.molecule.mapping import bead_mapping_from_atoms, bead_mapping_from_groups

FRAMES = np.random.default_rng(0).normal(size=(5, 6, 3))
MASSES = np.array([12.0, 1.0, 1.0, 16.0, 1.0, 14.0])


def test_atom_beads_are_copies_of_their_atoms():
    mapping = bead_mapping_from_atoms(["C", "N"], [1, 6], 6)
    assert np.array_equal(mapping.map_positions(FRAMES), FRAMES[:, [0, 5]])
    assert np.array_equal(mapping.map_forces(FRAMES), FRAMES[:, [0, 5]])
    assert np.array_equal(mapping.matrix @ FRAMES, FRAMES[:, [0, 5]])
    assert mapping.bead_atoms.tolist() == [0, 5]


@pytest.mark.parametrize("kind", ["com", "cog"])
def test_centres(kind):
    mapping = bead_mapping_from_groups(["A", "B"], [[1, 2, 3], [4, 5]], MASSES, kind)
    weights = MASSES if kind == "com" else np.ones(6)
    expected = np.stack(
        [
            np.average(FRAMES[:, :3], axis=1, weights=weights[:3]),
            np.average(FRAMES[:, 3:5], axis=1, weights=weights[3:5]),
        ],
        1,
    )
    assert np.allclose(mapping.map_positions(FRAMES), expected, atol=1e-14)
    assert np.allclose(mapping.map_forces(FRAMES)[:, 0], FRAMES[:, :3].sum(1), atol=1e-14)
    with pytest.raises(TopologyError, match="kind"):
        _ = mapping.bead_atoms


def test_mapped_force_is_the_mean_force_of_a_harmonic_pair():
    """Bead = centre of mass of two bound atoms in a field: the bead force is minus the slope of its free energy."""
    mapping = bead_mapping_from_groups(["A"], [[1, 2]], [3.0, 1.0])
    generator = np.random.default_rng(1)
    centre, bond = 0.7, generator.normal(size=200_000)
    x = np.stack((centre - bond / 4, centre + bond * 3 / 4), axis=1)
    forces = np.zeros((len(x), 2, 3))
    forces[:, 0, 0], forces[:, 1, 0] = bond - x[:, 0], -bond - x[:, 1]  # U = bond^2/2 + (x0^2 + x1^2)/2
    sampled = mapping.map_forces(forces)[:, 0, 0]
    # Weighted by the field, at fixed centre: mean bond is -centre (3/4 - 1/4) / (1 + 10/16)
    weights = np.exp(-0.5 * (x**2).sum(1))
    mean_bond = -centre * 0.5 / (1 + 10 / 16)
    exact = -(2 * centre + 0.5 * mean_bond)
    estimate = np.average(sampled, weights=weights)
    error = np.sqrt((weights**2 * (sampled - estimate) ** 2).sum()) / weights.sum()
    assert abs(estimate - exact) < 3.3 * error  # 99.9 %, fixed seed


@pytest.mark.parametrize(
    ("names", "indices", "message"),
    [
        (["A", "B"], [1, 7], "atom 7 in bead B; expected 1 .. 6"),
        (["A", "B"], [0, 1], "atom 0 in bead A"),
        (["A", "B"], [3, 3], "atom 3 twice, in beads A and B"),
        (["A", "A"], [1, 2], "1 different bead names for 2 beads"),
        (["A"], [1, 2], "1 different bead names for 2 beads"),
        ([], [], "0 different bead names"),
    ],
)
def test_refusals(names, indices, message):
    with pytest.raises(TopologyError, match=message):
        bead_mapping_from_atoms(names, indices, 6)


def test_groups_must_not_overlap_or_be_empty():
    with pytest.raises(TopologyError, match="atom 2 twice"):
        bead_mapping_from_groups(["A", "B"], [[1, 2], [2, 3]], MASSES)
    with pytest.raises(TopologyError, match="without atoms"):
        bead_mapping_from_groups(["A", "B"], [[1, 2], []], MASSES)


def test_frames_of_another_molecule_are_refused():
    with pytest.raises(ValueError, match="expected \\[T, 7, 3\\]"):
        bead_mapping_from_atoms(["A"], [1], 7).map_positions(FRAMES)
