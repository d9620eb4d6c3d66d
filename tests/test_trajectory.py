"""Reading, repairing and writing trajectories; a broken file is an error, never a short read."""

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from MDAnalysis.lib.formats.libmdaxdr import TRRFile, XTCFile

from ccg_gmx.errors import TrajectoryError
from ccg_gmx.molecule.trajectory import make_whole, read_frames, scan_trr, write_trr

BOX = np.array([[2.0, 0.0, 0.0], [0.3, 1.8, 0.0], [-0.4, 0.5, 1.7]])


@pytest.fixture
def written(tmp_path: Path) -> tuple[Path, np.ndarray]:
    positions = np.random.default_rng(0).normal(size=(6, 5, 3)).astype(np.float32).astype(np.float64)
    path = tmp_path / "frames.trr"
    write_trr(path, positions, 0.5 * np.arange(6), BOX)
    return path, positions


def test_round_trip(written: tuple[Path, np.ndarray]):
    path, positions = written
    frames = read_frames(path, 5)
    np.testing.assert_array_equal(frames.positions, positions)
    np.testing.assert_array_equal(frames.time, 0.5 * np.arange(6))
    np.testing.assert_allclose(frames.box, np.broadcast_to(BOX, (6, 3, 3)), atol=1e-6)
    assert frames.positions.dtype == np.float64
    assert frames.forces is None
    assert [entry.name for entry in path.parent.iterdir()] == [path.name], "nothing is left beside the trajectory"


def test_start_and_stride(written: tuple[Path, np.ndarray]):
    frames = read_frames(written[0], 5, start_ps=0.5, stride=2)
    assert frames.time.tolist() == [0.5, 1.5, 2.5]
    with pytest.raises(TrajectoryError, match="no frame from 99 ps"):
        read_frames(written[0], 5, start_ps=99.0)
    with pytest.raises(ValueError, match="stride"):
        read_frames(written[0], 5, stride=0)


def test_truncation_is_found_at_any_byte(written: tuple[Path, np.ndarray], tmp_path: Path):
    whole = written[0].read_bytes()
    size = len(whole) // 6
    cut = tmp_path / "cut.trr"
    for length in (*range(1, size), size + 1, 3 * size - 1, 3 * size + 40, len(whole) - 1):
        cut.write_bytes(whole[:length])
        scan = scan_trr(cut)
        assert (scan.frames, scan.whole) == (length // size, False)
    with pytest.raises(TrajectoryError, match=r"after 5 whole frames; expected a file that ends with a whole frame"):
        read_frames(cut, 5)
    cut.write_bytes(whole[: 3 * size])
    assert len(read_frames(cut, 5).time) == 3


def test_damage_inside_is_found(written: tuple[Path, np.ndarray], tmp_path: Path):
    raw = bytearray(written[0].read_bytes())
    raw[2 * len(raw) // 6] ^= 0xFF
    bad = tmp_path / "bad.trr"
    bad.write_bytes(raw)
    with pytest.raises(TrajectoryError, match="after 2 whole frames"):
        read_frames(bad, 5)


def test_frames_without_positions_are_passed_over(tmp_path: Path):
    path, x = tmp_path / "mixed.trr", np.ones((2, 3), dtype=np.float32)
    with TRRFile(str(path), "w") as stream:
        stream.write(x, None, 7 * x, BOX.astype(np.float32), 0, 0.0, 0.0, 2)
        # a copy: MDAnalysis 2.11 zeroes the velocities it is given when there are no positions
        stream.write(None, x.copy(), None, BOX.astype(np.float32), 1, 0.1, 0.0, 2)
        stream.write(2 * x, None, None, BOX.astype(np.float32), 2, 0.2, 0.0, 2)
    assert scan_trr(path).frames == 3
    frames = read_frames(path, 2)
    assert frames.positions[:, 0, 0].tolist() == [1.0, 2.0]
    assert frames.forces is None
    assert read_frames(path, 2, stride=2).forces[0, 0, 0] == 7.0


def test_double_precision_header(tmp_path: Path):
    """A .trr of a double-precision GROMACS, written here byte by byte."""
    x = np.arange(6, dtype=">f8")
    sizes = (0, 0, 72, 0, 0, 0, 0, 48, 0, 0)
    header = struct.pack(">iii12s13i", 1993, 13, 12, b"GMX_trn_file", *sizes, 2, 5, 0)
    frame = header + struct.pack(">dd", 1.5, 0.0) + np.eye(3).astype(">f8").tobytes() + x.tobytes()
    path = tmp_path / "double.trr"
    path.write_bytes(frame * 2)
    assert scan_trr(path).whole
    assert read_frames(path, 2).positions[1].tolist() == [[0, 1, 2], [3, 4, 5]]
    path.write_bytes(frame + frame[:-8])
    assert not scan_trr(path).whole


def test_other_formats(tmp_path: Path):
    gro = tmp_path / "two.gro"
    gro.write_text(
        "two atoms\n2\n    1ACE    CH3    1   1.250   0.500   0.125\n    1ACE      C    2   1.300   0.600   0.250\n"
        "   3.0 3.0 3.0\n"
    )
    frames = read_frames(gro, 2)
    np.testing.assert_allclose(frames.positions[0], [[1.25, 0.5, 0.125], [1.3, 0.6, 0.25]], atol=1e-7)
    np.testing.assert_allclose(frames.box[0], 3 * np.eye(3), atol=1e-6)
    xtc = tmp_path / "two.xtc"
    with XTCFile(str(xtc), "w") as stream:
        for index in range(3):
            stream.write(frames.positions[0].astype(np.float32), np.eye(3, dtype=np.float32), index, 0.1 * index, 1000)
    assert read_frames(xtc, 2).positions.shape == (3, 2, 3)


def test_user_errors_are_one_line(tmp_path: Path, written: tuple[Path, np.ndarray]):
    (tmp_path / "empty.xtc").touch()
    (tmp_path / "noise.xtc").write_bytes(bytes(range(256)))
    (tmp_path / "movie.dcd").write_bytes(b"x")
    cases = {
        "missing.trr": "no file",
        "empty.xtc": "is empty",
        "noise.xtc": "cannot be read",
        "movie.dcd": "is a .dcd file",
    }
    for name, message in cases.items():
        with pytest.raises(TrajectoryError, match=message) as caught:
            read_frames(tmp_path / name, 5)
        assert "\n" not in str(caught.value)
    with pytest.raises(TrajectoryError, match="has 5 atoms in a frame; expected the 22"):
        read_frames(written[0], 22)


@given(seed=st.integers(0, 2**31), shifts=st.integers(1, 3))
@settings(max_examples=40, deadline=None)
def test_make_whole_undoes_any_wrapping(seed: int, shifts: int):
    """A tree of short bonds, every atom moved by its own lattice vector, in a triclinic box."""
    rng = np.random.default_rng(seed)
    n, frames = 9, 4
    parents = np.array([rng.integers(0, child) for child in range(1, n)])
    bonds = np.stack([np.arange(1, n), parents], axis=1)
    x = np.zeros((frames, n, 3))
    x[:, 0] = rng.normal(size=(frames, 3))
    for child in range(1, n):
        step = rng.normal(size=(frames, 3))
        x[:, child] = x[:, parents[child - 1]] + 0.15 * step / np.linalg.norm(step, axis=1, keepdims=True)
    cells = rng.integers(-shifts, shifts + 1, size=(frames, n, 3))
    cells[:, 0] = 0
    wrapped = x + cells @ BOX
    order = rng.permutation(n - 1)
    whole = make_whole(wrapped, np.broadcast_to(BOX, (frames, 3, 3)), bonds[order])
    np.testing.assert_allclose(whole, x, atol=1e-12)


def test_make_whole_without_a_box():
    x = np.random.default_rng(1).normal(size=(2, 3, 3))
    bonds = np.array([[0, 1], [1, 2]])
    np.testing.assert_array_equal(make_whole(x, None, bonds), x)
    np.testing.assert_array_equal(make_whole(x, np.zeros((2, 3, 3)), bonds), x)


def test_failed_write_leaves_nothing(tmp_path: Path):
    with pytest.raises(ValueError, match="zip"):
        write_trr(tmp_path / "a.trr", np.zeros((2, 4, 3)), np.zeros(3), BOX)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.gmx
def test_trajectory_of_gromacs(alanine_trr: Path):
    scan = scan_trr(alanine_trr)
    frames = read_frames(alanine_trr, 22)
    assert scan.whole
    assert scan.frames == len(frames.time) == 201
    assert frames.forces is not None
    assert frames.forces.shape == (201, 22, 3)
