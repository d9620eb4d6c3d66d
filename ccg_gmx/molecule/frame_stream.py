"""Trajectories read in pieces, so that memory does not grow with their length."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from MDAnalysis.lib.formats.libmdaxdr import XTCFile
from numpy.typing import NDArray

from ccg_gmx.errors import TrajectoryError
from ccg_gmx.molecule.trr_blocks import read_trr_blocks
from ccg_gmx.records import BeadFrames, FloatArray

CHUNK_BYTES = 4 << 20
"""Of a piece; larger ones leave the processor's cache and are no faster."""
_SLACK_PS = 1e-6
"""Of begin and end: times are float32 in the files."""


@dataclass(frozen=True, eq=False)
class FramePiece:
    """Some frames that follow one another; as precise as their file, the machine's byte order.

    Attributes:
        positions: ``[t, N, 3]`` nm, as the file has them.
        time: ``[t]`` ps.
        box: ``[t, 3, 3]`` nm, zero without a box.
        forces: ``[t, N, 3]`` kJ/mol/nm or None.
        done: part of the file read so far, 0 to 1.
    """

    positions: NDArray[np.float32] | NDArray[np.float64]
    time: FloatArray
    box: FloatArray
    forces: NDArray[np.float32] | NDArray[np.float64] | None
    done: float


@dataclass(frozen=True)
class FrameChoice:
    """Which frames of a trajectory are used.

    Attributes:
        begin_ps: the first time, None for the start.
        end_ps: the last time, None for the end.
        stride: every so-manyth of them.
        forces: only frames that have forces, with their forces.
    """

    begin_ps: float | None = None
    end_ps: float | None = None
    stride: int = 1
    forces: bool = False


def stream_frames(
    path: Path, n_atoms: int, choice: FrameChoice, chunk_bytes: int = CHUNK_BYTES
) -> Iterator[FramePiece]:
    """Read the chosen frames of a .trr or .xtc in pieces, none of them empty.

    Frames of a .trr without positions are passed over.

    Raises:
        TrajectoryError: missing, damaged, with another number of atoms, without forces where they are asked for, or
            without any chosen frame.
    """
    path = Path(path)
    _check(path, choice)
    pieces = _trr_pieces(path, n_atoms, chunk_bytes, choice.forces)
    if path.suffix == ".xtc":
        pieces = _xtc_pieces(path, n_atoms, chunk_bytes)
    seen = used = 0
    for piece in pieces:
        if choice.end_ps is not None and piece.time[0] > choice.end_ps + _SLACK_PS:
            break
        inside = np.ones(len(piece.time), dtype=bool)
        if choice.begin_ps is not None:
            inside &= piece.time >= choice.begin_ps - _SLACK_PS
        if choice.end_ps is not None:
            inside &= piece.time <= choice.end_ps + _SLACK_PS
        kept = np.flatnonzero(inside)
        kept, seen = kept[(seen + np.arange(len(kept))) % choice.stride == 0], seen + len(kept)
        used += len(kept)
        if len(kept) == len(piece.time):
            yield piece
        elif len(kept):
            forces = None if piece.forces is None else piece.forces[kept]
            yield FramePiece(piece.positions[kept], piece.time[kept], piece.box[kept], forces, piece.done)
    if not used:
        raise _nothing(path, choice)


def read_bead_frames(path: Path, n_beads: int, chunk: int | None = None) -> Iterator[BeadFrames]:
    """Read what ``ccg map`` or a coarse run wrote, in pieces, in float64.

    Args:
        path: .trr or .xtc. Frames of a .trr that begins with forces are used only where they have forces.
        n_beads: beads n that each frame must have.
        chunk: about how many frames in a piece; None for a few megabytes.

    Raises:
        TrajectoryError: as :func:`stream_frames`.
    """
    path = Path(path)
    forces = path.suffix == ".trr" and path.is_file() and _starts_with_forces(path)
    chunk_bytes = CHUNK_BYTES if chunk is None else max(1, chunk) * (24 if forces else 12) * n_beads
    for piece in stream_frames(path, n_beads, FrameChoice(forces=forces), chunk_bytes):
        yield BeadFrames(
            positions=piece.positions.astype(np.float64),
            time=piece.time,
            box=piece.box if np.any(piece.box) else None,
            forces=None if piece.forces is None else piece.forces.astype(np.float64),
        )


def _starts_with_forces(path: Path) -> bool:
    block = next(read_trr_blocks(path, 1), None)
    return block is not None and block.get("forces") is not None


def _check(path: Path, choice: FrameChoice) -> None:
    if not path.is_file():
        raise TrajectoryError(f"no file {path}", expected="a .trr or .xtc file", remedy="check the path")
    if path.suffix not in (".trr", ".xtc"):
        raise TrajectoryError(
            f"{path.name} is a {path.suffix or 'nameless'} file",
            expected=".trr or .xtc",
            remedy="convert it with gmx trjconv",
        )
    if path.stat().st_size == 0:
        raise TrajectoryError(f"{path} is empty", expected="at least one frame", remedy="run the simulation again")
    if choice.forces and path.suffix == ".xtc":
        raise _no_forces(path)


def _no_forces(path: Path) -> TrajectoryError:
    return TrajectoryError(
        f"{path} has no forces",
        expected="a .trr with forces",
        remedy="set nstfout = nstxout in the .mdp and run again, or map positions alone with --no-forces",
    )


def _nothing(path: Path, choice: FrameChoice) -> TrajectoryError:
    begin = "the start" if choice.begin_ps is None else f"{choice.begin_ps:g} ps"
    end = "the end" if choice.end_ps is None else f"{choice.end_ps:g} ps"
    return TrajectoryError(f"{path} has no frame from {begin} to {end}", expected="at least one")


def _wrong_atoms(path: Path, found: int, expected: int) -> TrajectoryError:
    return TrajectoryError(
        f"{path} has {found} atoms in a frame",
        expected=f"the {expected} of the topology",
        remedy="use the trajectory that belongs to it",
    )


def _trr_pieces(path: Path, n_atoms: int, chunk_bytes: int, forces: bool) -> Iterator[FramePiece]:
    with_forces = False
    for block in read_trr_blocks(path, chunk_bytes):
        if block.n_atoms != n_atoms:
            raise _wrong_atoms(path, block.n_atoms, n_atoms)
        positions, box, force = block.get("positions"), block.get("box"), block.get("forces")
        with_forces |= force is not None
        if positions is None or (forces and force is None):
            continue
        yield FramePiece(
            _native(positions),
            block.frames["time"].astype(np.float64),
            np.zeros((len(positions), 3, 3)) if box is None else box.astype(np.float64),
            _native(force) if forces and force is not None else None,
            block.done,
        )
    if forces and not with_forces:
        raise _no_forces(path)


def _native(values: NDArray[Any]) -> Any:
    return values.astype(values.dtype.newbyteorder("="))


def _xtc_pieces(path: Path, n_atoms: int, chunk_bytes: int) -> Iterator[FramePiece]:
    count = max(1, chunk_bytes // (12 * n_atoms))
    size = os.path.getsize(path)
    read = 0
    try:
        with XTCFile(str(path)) as stream:
            if stream.n_atoms != n_atoms:
                raise _wrong_atoms(path, stream.n_atoms, n_atoms)
            while frames := _next_frames(stream, count):
                read += len(frames)
                positions, time, box = (np.stack(column) for column in zip(*frames, strict=True))
                done = stream._bytes_tell() / size
                yield FramePiece(positions, time.astype(np.float64), box.astype(np.float64), None, done)
    except OSError as error:
        raise TrajectoryError(
            f"{path} cannot be read after {read} frames: {error}",
            expected="a whole file",
            remedy="check it with gmx check -f",
        ) from error


def _next_frames(stream: XTCFile, count: int) -> list[tuple[Any, float, Any]]:
    """Give up to ``count`` frames; its iterator would start again at the first frame."""
    frames: list[tuple[Any, float, Any]] = []
    while len(frames) < count and (frame := next(stream, None)) is not None:
        frames.append((frame.x.copy(), frame.time, frame.box.copy()))
    return frames
