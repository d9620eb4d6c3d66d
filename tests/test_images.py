"""Periodic images against all images within two turns."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree

from ccg_gmx.backmap.contacts import clash_counts, contact_rules
from ccg_gmx.backmap.features import shortest_vectors
from ccg_gmx.backmap.system import Atoms
from ccg_gmx.molecule.images import points_with_images
from ccg_gmx.records import FloatArray

CUBOID = np.diag([2.0, 2.6, 3.1])
DODECAHEDRON = 2.4 * np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.5, 0.5, np.sqrt(0.5)]])
BOXES = [CUBOID, DODECAHEDRON]
TURNS = np.array(list(itertools.product(range(-2, 3), repeat=3)))


def uniform(*shape: int, seed: int = 0) -> FloatArray:
    """Numbers between -4 and 4."""
    return np.random.default_rng(seed).uniform(-4.0, 4.0, shape)


def shortest_lengths(vectors: FloatArray, box: FloatArray) -> FloatArray:
    """Lengths of the shortest images of ``[n, 3]``, by trying all of vectors that lie in the cell already."""
    inside = vectors - np.floor(vectors @ np.linalg.inv(box)) @ box
    return np.linalg.norm(inside[None] + (TURNS @ box)[:, None], axis=2).min(axis=0)


@pytest.mark.parametrize("box", BOXES)
def test_vectors_shorter_than_half_the_box_are_the_shortest(box: FloatArray) -> None:
    vectors = uniform(5000, 3)
    found = shortest_vectors(torch.from_numpy(vectors.T.reshape(3, 5000, 1)), torch.from_numpy(box[None]))
    lengths = found.norm(dim=0)[:, 0].numpy()
    expected = shortest_lengths(vectors, box)
    half = 0.5 * min(np.diag(box))
    assert (expected < half).sum() > 500
    np.testing.assert_allclose(lengths[expected < half], expected[expected < half], atol=1e-12)
    turns = (found[:, :, 0].numpy().T - vectors) @ np.linalg.inv(box)
    np.testing.assert_allclose(turns, np.round(turns), atol=1e-9)


def test_a_box_of_zeros_and_none_leave_vectors_alone() -> None:
    vectors = torch.from_numpy(uniform(3, 4, 5, 2))
    assert torch.equal(shortest_vectors(vectors, None), vectors)
    boxes = torch.zeros(2, 3, 3, dtype=torch.float64)
    assert torch.equal(shortest_vectors(vectors, boxes), vectors)
    boxes[1] = torch.eye(3)
    mixed = shortest_vectors(vectors, boxes)
    assert torch.equal(mixed[..., 0], vectors[..., 0])
    assert float(mixed[..., 1].abs().max()) <= 0.5


@pytest.mark.parametrize("box", BOXES)
def test_points_near_the_cell_have_all_their_images(box: FloatArray) -> None:
    reach, points = 0.7, uniform(200, 3)
    inside, images, owner = points_with_images(points, box, reach)
    np.testing.assert_array_equal(images[:200], inside)
    assert images.shape == (len(owner), 3)
    found = cKDTree(images).query_ball_point(inside, reach, return_length=True)
    every = (points[None] + (np.array(list(itertools.product(range(-9, 10), repeat=3))) @ box)[:, None]).reshape(-1, 3)
    expected = cKDTree(every).query_ball_point(inside, reach, return_length=True)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("box", BOXES)
def test_clashes_across_the_box_are_counted_once(box: FloatArray) -> None:
    """Carbons without bonds: pairs below 0.8 of two radii, by the shortest image of every pair."""
    n = 300
    bonds = np.zeros((0, 2), dtype=np.int64)
    atoms = Atoms(("C",) * n, ("X",) * n, np.arange(n), np.full(n, 12.011), np.zeros(n), bonds)
    points = uniform(n, 3, seed=4)
    first, second = np.triu_indices(n, 1)
    lengths = shortest_lengths(points[first] - points[second], box)
    expected = int((lengths < 0.8 * 0.34).sum())
    assert expected > 50
    rules = contact_rules(atoms)
    assert clash_counts(rules, points[None], box[None])[0] == expected
    assert clash_counts(rules, points[None])[0] < expected
