"""Nearest beads by cells against all pairs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ccg_gmx.backmap.features import shortest_vectors
from ccg_gmx.backmap.neighbours import EDGE_NM, FEW, nearest_beads
from ccg_gmx.bench.energy import torch_threads
from ccg_gmx.records import FloatArray, IntArray

COUNT, EXCLUDED, CUTOFF = 10, 2, 1.5
WIDE = np.diag([6.0, 7.1, 8.3])
DODECAHEDRON = 8.0 * np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.5, 0.5, np.sqrt(0.5)]])
NARROW = np.diag([3.1, 6.0, 7.0])
"""Rings of cells would meet on the other side."""


def chains(n: int) -> tuple[IntArray, IntArray]:
    """Residues of three beads, molecules of fifteen residues."""
    return np.arange(n) // 3, np.arange(n) // 45


def by_all_pairs(beads: FloatArray, box: FloatArray | None) -> FloatArray:
    """Squared distances ``[T, n, COUNT]``, inf beyond the cutoff."""
    residues, molecules = chains(beads.shape[1])
    x = torch.from_numpy(beads.transpose(2, 1, 0).copy())
    cells = None if box is None else torch.from_numpy(box)
    squares = (shortest_vectors(x.unsqueeze(2) - x.unsqueeze(1), cells) ** 2).sum(0).permute(2, 0, 1).numpy()
    hidden = (abs(residues[:, None] - residues) <= EXCLUDED) & (molecules[:, None] == molecules)
    squares = np.where(hidden | (squares >= CUTOFF**2), np.inf, squares)
    return np.sort(squares, axis=2)[:, :, :COUNT]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("box", [None, WIDE, DODECAHEDRON, NARROW, np.zeros((3, 3))])
@pytest.mark.parametrize("n", [FEW - 3, 450])
def test_the_nearest_are_those_of_all_pairs(n: int, box: FloatArray | None, threads: int) -> None:
    beads = np.random.default_rng(1).uniform(-1.0, 6.0, (5, n, 3))
    boxes = None if box is None else np.broadcast_to(box, (5, 3, 3)).copy()
    residues, molecules = chains(n)
    with torch_threads(threads):
        numbers, squares = nearest_beads(
            beads, boxes, residues, molecules, count=COUNT, excluded=EXCLUDED, cutoff=CUTOFF
        )
    expected = by_all_pairs(beads, boxes)
    assert np.isfinite(expected).mean() > 0.05
    np.testing.assert_allclose(squares, expected, rtol=1e-12)
    there = np.isfinite(squares)
    own = np.broadcast_to(np.arange(n)[None, :, None], numbers.shape)[there]
    frame = np.broadcast_to(np.arange(5)[:, None, None], numbers.shape)[there]
    vectors = torch.from_numpy((beads[frame, numbers[there]] - beads[frame, own]).T[:, :, None].copy())
    cells = None if box is None else torch.from_numpy(box[None])
    again = (shortest_vectors(vectors, cells) ** 2).sum(0)[:, 0].numpy()
    np.testing.assert_allclose(again, squares[there], rtol=1e-9)


def test_a_bead_far_away_costs_no_memory() -> None:
    """Cells get wider, not more."""
    beads = np.random.default_rng(2).uniform(0.0, 2.0, (1, 200, 3))
    beads[0, 7] = 1e6 * EDGE_NM
    residues, molecules = chains(200)
    _, squares = nearest_beads(beads, None, residues, molecules, count=COUNT, excluded=EXCLUDED, cutoff=CUTOFF)
    np.testing.assert_allclose(squares, by_all_pairs(beads, None), rtol=1e-9)
    assert np.isinf(squares[0, 7]).all()


@pytest.mark.parametrize("n", [FEW - 3, 450])
def test_frames_of_no_numbers_have_no_neighbours(n: int) -> None:
    """Nor do they touch those of others; bridges that do not reach leave such frames."""
    beads = np.random.default_rng(3).uniform(0.0, 5.0, (3, n, 3))
    expected = by_all_pairs(beads, None)
    beads[1, 4, 2], beads[2] = np.nan, np.inf
    residues, molecules = chains(n)
    _, squares = nearest_beads(beads, None, residues, molecules, count=COUNT, excluded=EXCLUDED, cutoff=CUTOFF)
    np.testing.assert_allclose(squares[0], expected[0], rtol=1e-12)
    assert np.isinf(squares[1:]).all()
