"""Structure files: nm in, nm out, one line where a file cannot be used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ccg_gmx.errors import TopologyError
from ccg_gmx.molecule.structure import read_structure, write_structure

# columns: residue number (5), residue name (5), atom name (5), atom number (5), x y z (8.3 each), nm
GRO = """\
three atoms
    3
    1ALA      N    1   0.100   0.200   0.300
    1ALA     CA    2   1.000   1.100   1.200
    2NME    HH1    3   2.500   0.000   2.900
   3.00000   4.00000   5.00000
"""
POSITIONS = np.array([[0.1, 0.2, 0.3], [1.0, 1.1, 1.2], [2.5, 0.0, 2.9]])


@pytest.fixture
def gro(tmp_path: Path) -> Path:
    path = tmp_path / "conf.gro"
    path.write_text(GRO, encoding="utf-8")
    return path


def test_positions_and_box_are_in_nm(gro: Path) -> None:
    positions, box = read_structure(gro)
    assert positions.dtype == box.dtype == np.float64
    np.testing.assert_allclose(positions, POSITIONS, atol=1e-6)  # MDAnalysis holds float32 Angstrom
    np.testing.assert_allclose(box, np.diag([3.0, 4.0, 5.0]), atol=1e-6)


def test_triclinic_box_keeps_its_vectors(gro: Path) -> None:
    text = GRO.replace("   3.00000   4.00000   5.00000", "3.0 4.0 5.0 0.0 0.0 1.0 0.0 -0.5 0.7")
    gro.write_text(text, encoding="utf-8")
    expected = [[3.0, 0.0, 0.0], [1.0, 4.0, 0.0], [-0.5, 0.7, 5.0]]  # v1x v2y v3z v1y v1z v2x v2z v3x v3y
    np.testing.assert_allclose(read_structure(gro)[1], expected, atol=1e-5)


def test_written_structure_is_centred_and_keeps_names_box_and_shape(gro: Path, tmp_path: Path) -> None:
    moved = POSITIONS + np.array([7.0, -3.0, 0.5])
    write_structure(tmp_path / "new.gro", moved, gro)
    positions, box = read_structure(tmp_path / "new.gro")
    np.testing.assert_allclose(positions.mean(axis=0), [1.5, 2.0, 2.5], atol=1e-3)
    np.testing.assert_allclose(positions - positions[0], moved - moved[0], atol=2e-3)  # a .gro has three decimals
    np.testing.assert_allclose(box, np.diag([3.0, 4.0, 5.0]), atol=1e-5)
    ours, theirs = (path.read_text(encoding="utf-8").splitlines()[2:5] for path in (tmp_path / "new.gro", gro))
    assert [line[:20] for line in ours] == [line[:20] for line in theirs]


def test_structure_of_another_molecule_is_refused(gro: Path, tmp_path: Path) -> None:
    with pytest.raises(TopologyError, match="has 3 atoms; expected 2"):
        write_structure(tmp_path / "new.gro", POSITIONS[:2], gro)
    assert not (tmp_path / "new.gro").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (GRO.replace("   3.00000   4.00000   5.00000", "   0.00000   0.00000   0.00000"), "has no box"),
        (GRO.replace("    3\n", "  three\n"), "cannot read structure"),
        ("\n".join(GRO.splitlines()[:4]), "cannot read structure"),
        ("", "cannot read structure"),
        ("\0\1\2" * 400, "cannot read structure"),
    ],
)
def test_unusable_file_is_one_line(gro: Path, text: str, words: str) -> None:
    gro.write_text(text, encoding="utf-8")
    with pytest.raises(TopologyError, match=words) as caught:
        read_structure(gro)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["nothing.gro", "conf.unknown", "conf.txt"])
def test_missing_file_and_unknown_format_are_one_line(tmp_path: Path, name: str) -> None:
    if name != "nothing.gro":
        (tmp_path / name).write_text(GRO, encoding="utf-8")
    with pytest.raises(TopologyError, match="cannot read structure") as caught:
        read_structure(tmp_path / name)
    assert "\n" not in str(caught.value)
