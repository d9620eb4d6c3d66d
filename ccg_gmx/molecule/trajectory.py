"""Reading and writing GROMACS trajectories through MDAnalysis, with errors instead of short reads.

MDAnalysis: doi:10.25080/majora-629e541a-00e. Its XDR files are read directly, below its Universe and Reader classes:
those convert nm to Angstrom in float32 (a second rounding, which at 3 nm costs as much energy as the mixed precision of
GROMACS itself) and cache frame offsets in hidden files beside the trajectory, which may be read-only.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from MDAnalysis.coordinates.GRO import GROReader
from MDAnalysis.lib.formats.libmdaxdr import TRRFile, XTCFile
from numpy.typing import NDArray

from ccg_gmx.errors import TrajectoryError
from ccg_gmx.molecule.images import reduced_vectors
from ccg_gmx.records import FloatArray, Frames, IntArray

_TRR_MAGIC = 1993
_TRR_VERSION = b"GMX_trn_file"
# magic, length of the version with and without padding, version, 13 integers (10 sizes, natoms, step, nre)
_TRR_HEADER = struct.Struct(">iii12s13i")


@dataclass(frozen=True)
class TrrScan:
    """What a walk over the frame headers of a .trr found.

    Attributes:
        frames: number of whole frames.
        n_atoms: atoms of the first frame, 0 without one.
        whole: whether the file ends with a whole frame.
    """

    frames: int
    n_atoms: int
    whole: bool


def scan_trr(path: Path) -> TrrScan:
    """Walk the frame headers of a .trr; each tells the size of its frame, so no coordinates are read.

    Args:
        path: the .trr file.
    """
    size = path.stat().st_size
    frames, n_atoms, position = 0, 0, 0
    with path.open("rb") as stream:
        while position < size:
            stream.seek(position)
            header = _read_header(stream.read(_TRR_HEADER.size))
            if header is None or position + header[0] > size:
                return TrrScan(frames, n_atoms, whole=False)
            position += header[0]
            n_atoms = n_atoms or header[1]
            frames += 1
    return TrrScan(frames, n_atoms, whole=True)


def _read_header(raw: bytes) -> tuple[int, int] | None:
    """Return the bytes of the whole frame and its atoms, or None if this is no frame header."""
    if len(raw) < _TRR_HEADER.size:
        return None
    magic, _, length, version, *numbers = _TRR_HEADER.unpack(raw)
    sizes, n_atoms = numbers[:10], numbers[10]
    if magic != _TRR_MAGIC or length != len(_TRR_VERSION) or version != _TRR_VERSION or min(*sizes, n_atoms) < 0:
        return None
    # time and lambda follow, in the precision of the data: the box is 9 numbers, the others 3 per atom
    box, vectors = sizes[2], max(sizes[7:10])
    real = box // 9 if box else vectors // (3 * n_atoms) if n_atoms else 0
    return (_TRR_HEADER.size + 2 * real + sum(sizes), n_atoms) if real in (4, 8) else None


def read_frames(path: Path, n_atoms: int, *, start_ps: float = 0.0, stride: int = 1) -> Frames:
    """Read a .trr or .xtc trajectory, or a .gro structure.

    Args:
        path: the file.
        n_atoms: atoms that each frame must have.
        start_ps: leave out frames before this time in ps.
        stride: keep every ``stride``-th of the remaining frames.

    Returns:
        Frames with float64 arrays in nm, ps and kJ/mol/nm; forces only where every frame has them. Frames of a .trr
        that hold velocities or forces alone are passed over. Molecules are as the file has them (:func:`make_whole`).

    Raises:
        TrajectoryError: file missing, of another kind, truncated, empty, or with another number of atoms.
    """
    if stride < 1:
        raise ValueError(f"stride must be at least 1, got {stride}")
    path = Path(path)
    kept: list[_Step] = []
    try:
        _check_file(path, n_atoms)
        for index, step in enumerate(step for step in _steps(path) if step.time >= start_ps):
            _check_atoms(path, len(step.positions), n_atoms)
            if index % stride == 0:
                kept.append(step)
    except (OSError, ValueError, EOFError) as error:
        raise TrajectoryError(
            f"{path} cannot be read after {len(kept)} frames: {error}",
            expected="a whole file",
            remedy="check it with gmx check -f",
        ) from error
    if not kept:
        raise TrajectoryError(
            f"{path} has no frame from {start_ps:g} ps on",
            expected="at least one",
            remedy="start earlier or run longer",
        )
    return Frames(
        positions=np.stack([step.positions for step in kept]).astype(np.float64),
        time=np.array([step.time for step in kept], dtype=np.float64),
        box=_stack([step.box for step in kept]),
        forces=_stack([step.forces for step in kept]),
    )


@dataclass(frozen=True)
class _Step:
    """One frame as its file holds it: nm, ps, kJ/mol/nm."""

    time: float
    positions: NDArray[np.float32]
    box: NDArray[np.float32] | None = None
    forces: NDArray[np.float32] | None = None


def _steps(path: Path) -> Iterator[_Step]:
    if path.suffix == ".gro":
        with GROReader(str(path), convert_units=False) as reader:
            box = None if reader.ts.dimensions is None else reader.ts.triclinic_dimensions
            yield _Step(0.0, reader.ts.positions.copy(), box)
        return
    with (TRRFile if path.suffix == ".trr" else XTCFile)(str(path)) as stream:
        for frame in stream:
            # a .xtc frame has neither flag: positions always, forces never
            if getattr(frame, "hasx", True):
                forces = frame.f.copy() if getattr(frame, "hasf", False) else None
                yield _Step(frame.time, frame.x.copy(), frame.box.copy(), forces)


def _stack(arrays: list[NDArray[np.float32] | None]) -> FloatArray | None:
    present = [array for array in arrays if array is not None]
    return np.stack(present).astype(np.float64) if len(present) == len(arrays) else None


def _check_file(path: Path, n_atoms: int) -> None:
    if not path.is_file():
        raise TrajectoryError(f"no file {path}", expected="a .trr, .xtc or .gro file", remedy="check the path")
    if path.suffix not in (".trr", ".xtc", ".gro"):
        raise TrajectoryError(
            f"{path.name} is a {path.suffix or 'nameless'} file",
            expected=".trr, .xtc or .gro",
            remedy="convert it with gmx trjconv",
        )
    if path.stat().st_size == 0:
        raise TrajectoryError(f"{path} is empty", expected="at least one frame", remedy="run the simulation again")
    if path.suffix != ".trr":
        return
    scan = scan_trr(path)
    if not scan.whole:
        raise TrajectoryError(
            f"{path} is truncated or damaged after {scan.frames} whole frames",
            expected="a file that ends with a whole frame",
            remedy="let the run finish or continue it with mdrun -cpi, or cut the file with gmx trjconv -e",
        )
    _check_atoms(path, scan.n_atoms, n_atoms)


def _check_atoms(path: Path, found: int, expected: int) -> None:
    if found != expected:
        raise TrajectoryError(
            f"{path} has {found} atoms in a frame",
            expected=f"the {expected} of the topology",
            remedy="use the trajectory that belongs to this .tpr",
        )


def make_whole(positions: FloatArray, box: FloatArray | None, bonds: IntArray) -> FloatArray:
    """Undo periodic wrapping, so that every bond is the shortest vector between its atoms' images.

    Walks the bond graph level by level from the lowest atom of each molecule, all frames at once.

    Args:
        positions: ``[T, N, 3]`` nm.
        box: ``[T, 3, 3]`` nm, rows are box vectors in GROMACS' lower triangular form; None or all zero: no periodicity.
        bonds: ``[n, 2]`` bond graph.

    Returns:
        ``[T, N, 3]`` nm, float64.
    """
    whole = np.array(positions, dtype=np.float64)
    if box is None or not np.any(box):
        return whole
    for children, parents in bond_levels(whole.shape[1], bonds):
        delta = whole[:, children] - whole[:, parents]
        whole[:, children] = whole[:, parents] + reduced_vectors(delta, box)
    return whole


def bond_levels(n_atoms: int, bonds: IntArray) -> list[tuple[IntArray, IntArray]]:
    """Breadth-first levels of the bond forest: (children, their parents) per level."""
    neighbours: list[list[int]] = [[] for _ in range(n_atoms)]
    for first, second in np.asarray(bonds).tolist():
        neighbours[first].append(second)
        neighbours[second].append(first)
    depth = np.full(n_atoms, -1)
    parent = np.full(n_atoms, -1)
    for root in range(n_atoms):
        if depth[root] >= 0:
            continue
        depth[root], queue = 0, [root]
        for atom in queue:
            fresh = [other for other in neighbours[atom] if depth[other] < 0]
            depth[fresh], parent[fresh] = depth[atom] + 1, atom
            queue.extend(fresh)
    order = [np.flatnonzero(depth == level) for level in range(1, int(depth.max(initial=0)) + 1)]
    return [(children, parent[children]) for children in order]


def write_trr(path: Path, positions: FloatArray, time: FloatArray, box: FloatArray) -> None:
    """Write positions to a .trr, which holds them as float32 (about 1e-7 nm at 2 nm from the origin).

    Args:
        path: the file; replaced in one step when it is whole.
        positions: ``[T, N, 3]`` nm.
        time: ``[T]`` ps.
        box: ``[T, 3, 3]`` or ``[3, 3]`` nm.
    """
    path = Path(path)
    boxes = np.broadcast_to(np.asarray(box, dtype=np.float32), (len(positions), 3, 3))
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with TRRFile(str(partial), "w") as stream:
            for index, (frame, moment) in enumerate(zip(positions, time, strict=True)):
                stream.write(frame.astype(np.float32), None, None, boxes[index], index, moment, 0.0, frame.shape[0])
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
