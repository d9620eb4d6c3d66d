"""Classes of the score card, and what chance explains of them."""

from __future__ import annotations

import numpy as np
import pytest
from backmap_systems import system

from ccg_gmx.backmap.score import CHANCE, GeometryClass, compare_class, geometry_classes

CA = ("CA",)


def names(kind: str) -> dict[str, np.ndarray]:
    return {c.name: c.atoms for c in geometry_classes(system("chignolin", CA)) if c.kind == kind}


def test_what_spans_two_residues_belongs_to_the_one_with_most_of_its_atoms() -> None:
    of, torsions, angles, bonds = system("chignolin", CA), names("torsions"), names("angles"), names("bonds")
    atom = {(of.atoms.residue_names[k], name): k for k, name in enumerate(of.atoms.names)}
    after, home = atom["PRO", "C"], atom["ASP", "C"]  # D3 stands before P4
    phi = torsions["PRO -1:C-N-CA-C"][0].tolist()
    assert phi in ([home, atom["PRO", "N"], atom["PRO", "CA"], after], [after, *phi[1:3], home])
    assert set(angles["ASP +1:N(PRO)-C-CA"][0]) == {atom["PRO", "N"], home, atom["ASP", "CA"]}
    assert "THR +1:N-C-CA" in angles
    assert len(angles["THR -1:C-N-CA"]) == 2  # two threonines, whatever stands before them
    assert set(bonds["PRO -1:C-N"][0]) == {home, atom["PRO", "N"]}


def test_every_angle_is_in_one_class() -> None:
    found = [(*sorted((a, c)), b) for own in names("angles").values() for a, b, c in own.tolist()]
    assert len(found) == len(set(found)) > 200


@pytest.mark.parametrize(("n", "m"), [(200, 800), (1000, 4000)])
def test_one_class_in_a_hundred_exceeds_chance(n: int, m: int) -> None:
    """3,000 pairs of samples of one distribution: 30 expected; 13 to 55 leaves out 1 in 5,000 on either side."""
    rng = np.random.default_rng(1)
    found = GeometryClass("bonds", "X A-B", np.array([[0, 1]]))
    above, total = 0, 0.0
    for _ in range(3000):
        fine, restored = (
            np.stack([np.zeros((count, 3)), rng.normal(0.1, 0.003, count)[:, None] * [1.0, 0, 0]], axis=1)
            for count in (n, m)
        )
        score = compare_class(found, fine, restored)
        above += score.js > score.chance
        total += score.js / score.floor
        assert score.floor < score.chance
    assert 13 <= above <= 55
    assert total / 3000 == pytest.approx(1.0, abs=0.05)
    assert CHANCE == 0.99
