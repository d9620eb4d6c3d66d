"""Many frames of a .trr at once: frames of one layout that follow one another are one array to numpy.

Reading frame by frame costs more than mapping a small molecule does. A .trr (GROMACS' own format, XDR: big-endian) says
in the header of each frame what it holds, so equal headers mean equal layout.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from ccg_gmx.errors import TrajectoryError
from ccg_gmx.records import BeadFrames

MAGIC, VERSION = 1993, b"GMX_trn_file"
SIZES = ("ir", "energy", "box", "virial", "pressure", "topology", "symbols", "positions", "velocities", "forces")
_HEADER = np.dtype(
    [
        *(("magic", ">i4"), ("padded", ">i4"), ("length", ">i4"), ("version", "S12"), ("sizes", ">i4", 10)),
        *(("atoms", ">i4"), ("step", ">i4"), ("energies", ">i4")),
    ]
)
_ARRAYS = ("box", "virial", "pressure", "positions", "velocities", "forces")


@dataclass(frozen=True, eq=False)
class TrrBlock:
    """Frames of one layout.

    Attributes:
        frames: structured array with the fields that the frames have: time ``[t]`` ps, box ``[t, 3, 3]`` nm, positions
            and forces ``[t, N, 3]``, big-endian as the file has them.
        n_atoms: atoms N.
        done: part of the file read so far, 0 to 1.
    """

    frames: NDArray[Any]
    n_atoms: int
    done: float

    def get(self, name: str) -> NDArray[Any] | None:
        """Return an array of the frames, or None where they have none."""
        return self.frames[name] if name in (self.frames.dtype.names or ()) else None


def read_trr_blocks(path: Path, max_bytes: int) -> Iterator[TrrBlock]:
    """Read a .trr in blocks of at most about ``max_bytes``, one frame at least.

    Raises:
        TrajectoryError: damaged or truncated; all whole frames before have been given.
    """
    size = path.stat().st_size
    frames, ask = 0, 1
    with path.open("rb") as stream:
        while (position := stream.tell()) < size:
            layout = _layout(stream.read(_HEADER.itemsize))
            if layout is None or position + layout.itemsize > size:
                raise TrajectoryError(
                    f"{path} is truncated or damaged after {frames} whole frames",
                    expected="a file that ends with a whole frame",
                    remedy="let the run finish or continue it with mdrun -cpi, or cut the file with gmx trjconv -e",
                )
            stream.seek(position)
            wanted = max(1, min(ask, max_bytes // layout.itemsize))
            raw = stream.read(wanted * layout.itemsize)
            block = np.frombuffer(raw, layout, count=len(raw) // layout.itemsize)
            alike = _alike(block)
            frames += alike
            stream.seek(position + alike * layout.itemsize)
            # frames of two layouts that take turns are read one by one
            ask = 2 * wanted if alike == wanted else 1
            yield TrrBlock(block[:alike], int(block["header"]["atoms"][0]), stream.tell() / size)


def _layout(raw: bytes) -> np.dtype[Any] | None:
    """Return the layout of a frame from its header, None if this is no header."""
    if len(raw) < _HEADER.itemsize:
        return None
    header = np.frombuffer(raw, _HEADER)[0]
    sizes = dict(zip(SIZES, header["sizes"].tolist(), strict=True))
    n_atoms = int(header["atoms"])
    known = (header["magic"], header["length"], header["version"]) == (MAGIC, len(VERSION), VERSION)
    if not known or n_atoms < 1 or min(sizes.values()) < 0:
        return None
    shapes = {name: (n_atoms, 3) if name in ("positions", "velocities", "forces") else (3, 3) for name in _ARRAYS}
    widths = {sizes[name] / np.prod(shapes[name]) for name in _ARRAYS if sizes[name]}
    if len(widths) != 1 or not widths <= {4.0, 8.0} or any(sizes[name] for name in SIZES if name not in _ARRAYS):
        return None
    real = ">f4" if widths == {4.0} else ">f8"
    fields: list[Any] = [("header", _HEADER), ("time", real), ("lambda", real)]
    return np.dtype(fields + [(name, real, shapes[name]) for name in _ARRAYS if sizes[name]])


def _alike(block: NDArray[Any]) -> int:
    """Return how many frames from the first on have its layout."""
    header = block["header"]
    same = np.ones(len(block), dtype=bool)
    for name in ("magic", "length", "version", "atoms"):
        same &= header[name] == header[name][0]
    same &= (header["sizes"] == header["sizes"][0]).all(axis=1)
    return len(block) if same.all() else int(np.argmin(same))


class TrrWriter:
    """Writes frames of beads to a .trr in pieces; float32, as GROMACS does.

    Args:
        path: the file.
        n_beads: beads n of each frame.
        forces: whether frames have forces.
    """

    def __init__(self, path: Path, n_beads: int, *, forces: bool) -> None:
        shapes = {"box": (3, 3), "positions": (n_beads, 3)} | ({"forces": (n_beads, 3)} if forces else {})
        fields: list[Any] = [("header", _HEADER), ("time", ">f4"), ("lambda", ">f4")]
        self._layout = np.dtype(fields + [(name, ">f4", shape) for name, shape in shapes.items()])
        self._sizes = [4 * int(np.prod(shapes[name])) if name in shapes else 0 for name in SIZES]
        self._n_beads, self._forces, self._written = n_beads, forces, 0
        self._stream: BinaryIO = path.open("wb")

    def write(self, frames: BeadFrames) -> None:
        """Append frames."""
        rows = np.zeros(len(frames.time), self._layout)
        header = rows["header"]
        header["magic"], header["padded"], header["length"], header["version"] = MAGIC, 13, len(VERSION), VERSION
        header["sizes"], header["atoms"] = self._sizes, self._n_beads
        header["step"] = self._written + np.arange(len(rows))
        rows["time"], rows["positions"] = frames.time, frames.positions
        if frames.box is not None:
            rows["box"] = frames.box
        if self._forces:
            if frames.forces is None:
                raise ValueError("frames without forces for a file with forces")
            rows["forces"] = frames.forces
        rows.tofile(self._stream)
        self._written += len(rows)

    def close(self) -> None:
        """Close the file."""
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._stream.close()

    def __enter__(self) -> Self:
        """Give itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Close the file."""
        self.close()
