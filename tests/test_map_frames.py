"""Frames in pieces: every reader and writer against MDAnalysis, molecules whole in any box, memory that stays flat."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from MDAnalysis.lib.formats.libmdaxdr import TRRFile, XTCFile

from ccg_gmx.bench.map import MOLECULES, STREAM_MOLECULES, bench_map, write_random
from ccg_gmx.engine.map_trajectory import MapRequest, map_files
from ccg_gmx.errors import TrajectoryError
from ccg_gmx.molecule.frame_stream import FrameChoice, FramePiece, read_bead_frames, stream_frames
from ccg_gmx.molecule.trajectory import make_whole, read_frames
from ccg_gmx.molecule.trr_blocks import TrrWriter, read_trr_blocks
from ccg_gmx.records import BeadFrames

WATER = MOLECULES["water, 512 molecules, 1 bead each"]
HEXANE = MOLECULES["hexane, 100 molecules, 3 beads each"]
FORCES = FrameChoice(forces=True)


def random_frames(frames: int, n: int, seed: int = 0) -> BeadFrames:
    generator = np.random.default_rng(seed)
    positions, forces = generator.normal(size=(2, frames, n, 3)).astype(np.float32).astype(np.float64)
    box = np.tril(generator.uniform(0.1, 1.0, (frames, 3, 3)) + 2 * np.eye(3)).astype(np.float32).astype(np.float64)
    return BeadFrames(positions, 0.5 * np.arange(frames), box, forces)


@pytest.fixture
def written(tmp_path: Path) -> tuple[Path, BeadFrames]:
    frames = random_frames(23, 7)
    path = tmp_path / "atoms.trr"
    with TrrWriter(path, 7, forces=True) as writer:
        for start in range(0, 23, 10):
            part = slice(start, start + 10)
            writer.write(BeadFrames(frames.positions[part], frames.time[part], frames.box[part], frames.forces[part]))
    return path, frames


def joined(pieces: list[FramePiece]) -> BeadFrames:
    forces = None if pieces[0].forces is None else np.concatenate([piece.forces for piece in pieces])
    arrays = ([getattr(piece, name) for piece in pieces] for name in ("positions", "time", "box"))
    return BeadFrames(*(np.concatenate(array) for array in arrays), forces)


def assert_same(found: BeadFrames, frames: BeadFrames) -> None:
    for name in ("positions", "time", "box", "forces"):
        np.testing.assert_array_equal(getattr(found, name), getattr(frames, name))


def test_written_file_is_read_by_mdanalysis(written: tuple[Path, BeadFrames]):
    path, frames = written
    found = read_frames(path, 7)
    assert_same(BeadFrames(found.positions, found.time, found.box, found.forces), frames)


@given(st.integers(1, 3000))
@settings(max_examples=25, deadline=None)
def test_pieces_of_any_size_are_the_same_frames(tmp_path_factory: pytest.TempPathFactory, chunk_bytes: int):
    frames = random_frames(23, 7)
    path = tmp_path_factory.mktemp("pieces") / "atoms.trr"
    with TrrWriter(path, 7, forces=True) as writer:
        writer.write(frames)
    pieces = list(stream_frames(path, 7, FORCES, chunk_bytes))
    assert_same(joined(pieces), frames)
    assert pieces[-1].done == 1.0


def test_frames_with_and_without_forces_take_turns(tmp_path: Path):
    frames = random_frames(9, 4)
    path = tmp_path / "mixed.trr"
    with TRRFile(str(path), "w") as stream:
        for t in range(9):
            force = frames.forces[t].astype(np.float32) if t % 3 == 0 else None
            velocities = np.zeros((4, 3), np.float32) if t % 2 else None
            x = frames.positions[t].astype(np.float32) if t != 4 else None
            stream.write(x, velocities, force, frames.box[t].astype(np.float32), t, frames.time[t], 0.0, 4)
    with_forces = joined(list(stream_frames(path, 4, FORCES)))
    kept = [0, 3, 6]
    assert_same(
        with_forces, BeadFrames(frames.positions[kept], frames.time[kept], frames.box[kept], frames.forces[kept])
    )
    all_of_them = joined(list(stream_frames(path, 4, FrameChoice())))
    np.testing.assert_array_equal(all_of_them.time, frames.time[[0, 1, 2, 3, 5, 6, 7, 8]])
    assert all_of_them.forces is None


def test_double_precision_file(tmp_path: Path):
    """GROMACS in double precision writes 8-byte numbers; MDAnalysis does not, so the bytes are made here."""
    frames = random_frames(3, 2)
    positions = frames.positions + 1e-12
    path = tmp_path / "double.trr"
    with path.open("wb") as stream:
        for t in range(3):
            head = np.array([1993, 13, 12], ">i4").tobytes() + b"GMX_trn_file"
            head += np.array([0, 0, 72, 0, 0, 0, 0, 48, 0, 0, 2, t, 0], ">i4").tobytes()
            numbers = (np.array([frames.time[t], 0.0]), frames.box[t], positions[t])
            stream.write(head + b"".join(values.astype(">f8").tobytes() for values in numbers))
    found = joined(list(stream_frames(path, 2, FrameChoice())))
    np.testing.assert_array_equal(found.positions, positions)
    np.testing.assert_allclose(found.positions, read_frames(path, 2).positions, atol=1e-6)


def test_begin_end_and_stride(written: tuple[Path, BeadFrames], tmp_path: Path):
    path, frames = written
    for chunk_bytes in (1, 700, 1 << 20):
        choice = FrameChoice(begin_ps=1.5, end_ps=9.0, stride=4)
        found = joined(list(stream_frames(path, 7, choice, chunk_bytes)))
        np.testing.assert_array_equal(found.time, frames.time[3:19:4])
    with pytest.raises(TrajectoryError, match="no frame from 100 ps to the end"):
        list(stream_frames(path, 7, FrameChoice(begin_ps=100.0)))


def test_truncation_is_found_at_any_byte(written: tuple[Path, BeadFrames], tmp_path: Path):
    whole = written[0].read_bytes()
    size = len(whole) // 23
    cut = tmp_path / "cut.trr"
    for length in (*range(1, size, 7), size + 1, 12 * size - 1, 12 * size + 40, len(whole) - 1):
        cut.write_bytes(whole[:length])
        with pytest.raises(TrajectoryError, match=f"damaged after {length // size} whole frames"):
            list(stream_frames(cut, 7, FORCES))
    damaged = bytearray(whole)
    damaged[10 * size] = 1
    cut.write_bytes(bytes(damaged))
    with pytest.raises(TrajectoryError, match="damaged after 10 whole frames"):
        list(stream_frames(cut, 7, FORCES))


def test_blocks_grow(written: tuple[Path, BeadFrames]):
    assert [len(block.frames) for block in read_trr_blocks(written[0], 1 << 20)] == [1, 2, 4, 8, 8]


def test_xtc(tmp_path: Path):
    frames = random_frames(13, 7)
    path = tmp_path / "atoms.xtc"
    with XTCFile(str(path), "w") as stream:
        for t in range(13):
            stream.write(frames.positions[t].astype(np.float32), frames.box[t].astype(np.float32), t, frames.time[t])
    pieces = list(stream_frames(path, 7, FrameChoice(), 12 * 7 * 5))
    assert [len(piece.time) for piece in pieces] == [5, 5, 3]
    np.testing.assert_array_equal(joined(pieces).positions, read_frames(path, 7).positions)
    with pytest.raises(TrajectoryError, match=r"has no forces.*--no-forces"):
        list(stream_frames(path, 7, FORCES))
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(TrajectoryError, match="cannot be read after"):
        list(stream_frames(path, 7, FrameChoice()))


def test_files_that_do_not_belong(written: tuple[Path, BeadFrames], tmp_path: Path):
    with pytest.raises(TrajectoryError, match="has 7 atoms in a frame; expected the 8 of the topology"):
        list(stream_frames(written[0], 8, FORCES))
    with pytest.raises(TrajectoryError, match="no file"):
        list(stream_frames(tmp_path / "none.trr", 8, FORCES))
    other = tmp_path / "atoms.pdb"
    other.write_text("")
    with pytest.raises(TrajectoryError, match=r"is a \.pdb file"):
        list(stream_frames(other, 8, FORCES))
    empty = tmp_path / "empty.trr"
    empty.touch()
    with pytest.raises(TrajectoryError, match="is empty"):
        list(stream_frames(empty, 8, FORCES))
    with TrrWriter(empty, 3, forces=False) as writer:
        writer.write(random_frames(2, 3))
    with pytest.raises(TrajectoryError, match=r"has no forces.*nstfout"):
        list(stream_frames(empty, 3, FORCES))


def test_read_bead_frames(written: tuple[Path, BeadFrames]):
    pieces = list(read_bead_frames(written[0], 7, chunk=4))
    assert max(len(piece.time) for piece in pieces) <= 5
    np.testing.assert_array_equal(np.concatenate([piece.positions for piece in pieces]), written[1].positions)
    np.testing.assert_array_equal(np.concatenate([piece.forces for piece in pieces]), written[1].forces)


@pytest.mark.parametrize("molecule", [WATER, HEXANE])
@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_molecules_are_whole_in_any_triclinic_box(molecule: object, seed: int):
    """Atoms moved by any whole turns of the box: beads are those of the whole molecule, placed at its first atom."""
    generator = np.random.default_rng(seed)
    system = molecule.mapping(3)
    size, frames = system.maps[0].molecule.n_atoms, 2
    # skewed up to GROMACS' limit, half the diagonal, and wide enough that no bond is longer than half of it
    box = np.tril(generator.uniform(-0.5, 0.5, (frames, 3, 3)))
    box[:, range(3), range(3)] = 1.0
    box *= generator.uniform(1.0, 2.0, (frames, 1, 1))
    steps = 0.1 * generator.uniform(-1, 1, (frames, 3, size, 3))
    whole = np.zeros((frames, 3, size, 3)) + generator.uniform(-2, 2, (frames, 3, 1, 3))
    for first, second in sorted(system.maps[0].molecule.links.tolist()):
        whole[:, :, second] = whole[:, :, first] + steps[:, :, second]
    turns = generator.integers(-2, 3, (frames, 3, size, 3)).astype(np.float64)
    wrapped = whole + np.einsum("tmak,tkx->tmax", turns, box)
    expected = np.einsum("na,tmax->tmnx", system.maps[0].weights, whole + (wrapped - whole)[:, :, :1])
    beads = system.positions(wrapped.reshape(frames, -1, 3), box)
    np.testing.assert_allclose(beads, expected.reshape(beads.shape), atol=1e-12)
    own = make_whole(wrapped.reshape(frames * 3, size, 3), np.repeat(box, 3, axis=0), system.maps[0].molecule.links)
    np.testing.assert_allclose(beads.reshape(frames * 3, -1, 3), system.maps[0].weights @ own, atol=1e-12)


def test_without_a_box_nothing_moves():
    system = WATER.mapping(2)
    positions = np.random.default_rng(3).normal(size=(2, 6, 3)) * 50
    expected = np.einsum("na,tmax->tmnx", system.maps[0].weights, positions.reshape(2, 2, 3, 3)).reshape(2, 2, 3)
    np.testing.assert_allclose(system.positions(positions, None), expected, rtol=1e-12)


def test_memory_does_not_grow_with_the_trajectory(tmp_path: Path):
    system = WATER.mapping(STREAM_MOLECULES)
    trajectory = tmp_path / "long.trr"
    request = MapRequest("", Path(), trajectory, tmp_path / "beads")
    peaks = []
    for frames in (15_000, 15_000, 30_000):  # the first also counts what is compiled; 15,000 frames fill a piece
        write_random(trajectory, system, frames, seed=0)
        tracemalloc.start()
        result = map_files(request, system)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert result["frames"] == frames
    assert trajectory.stat().st_size > 20e6
    assert peaks[2] - peaks[1] < 0.5e6
    assert sum(len(piece.time) for piece in read_bead_frames(tmp_path / "beads.trr", 8)) == 30_000


def test_interrupted_mapping_leaves_nothing_and_keeps_what_was_there(tmp_path: Path):
    system = WATER.mapping(2)
    trajectory, folder = tmp_path / "atoms.trr", tmp_path / "out"
    write_random(trajectory, system, 50, seed=0)
    request = MapRequest("", Path(), trajectory, folder / "beads", xtc=True)
    map_files(request, system)
    names = ["beads.gro", "beads.topology.json", "beads.trr", "beads.xtc"]
    assert sorted(entry.name for entry in folder.iterdir()) == names
    before = (folder / "beads.trr").read_bytes()
    np.testing.assert_allclose(
        read_frames(folder / "beads.xtc", 2).positions, read_frames(folder / "beads.trr", 2).positions, atol=6e-4
    )
    trajectory.write_bytes(trajectory.read_bytes()[:-1])
    with pytest.raises(TrajectoryError, match="damaged after 49 whole frames"):
        map_files(request, system)
    assert sorted(entry.name for entry in folder.iterdir()) == names
    assert (folder / "beads.trr").read_bytes() == before


def test_numbers_that_are_none_are_found(tmp_path: Path):
    system = WATER.mapping(1)
    frames = random_frames(5, 3)
    frames.positions[3, 1, 2] = np.nan
    with TrrWriter(tmp_path / "a.trr", 3, forces=True) as writer:
        writer.write(frames)
    with pytest.raises(TrajectoryError, match=r"positions that are no numbers at 1\.5 ps"):
        map_files(MapRequest("", Path(), tmp_path / "a.trr", tmp_path / "beads", forces=None), system)


def test_bench_agrees_with_mdanalysis():
    result = bench_map(3, 1, stream_frames=50)
    for entry in result["systems"].values():
        assert entry["max_abs_diff_nm"] < 2e-6  # both are float32 in the file; MDAnalysis computes in float32 Angstrom
        assert entry["ratio"] > 0
    assert result["stream"]["frames"] == 50
