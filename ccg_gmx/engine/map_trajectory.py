"""``ccg map``: an atomistic trajectory to beads, piece by piece."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from MDAnalysis.lib.formats.libmdaxdr import XTCFile

from ccg_gmx.engine.gromacs import Gmx
from ccg_gmx.engine.run_files import storing
from ccg_gmx.errors import TrajectoryError
from ccg_gmx.molecule.bead_structure import write_bead_gro
from ccg_gmx.molecule.force_mapping import ForceMap, basic_map, fit_force_maps
from ccg_gmx.molecule.frame_stream import FrameChoice, stream_frames
from ccg_gmx.molecule.molecule_types import read_molecule_types
from ccg_gmx.molecule.system_mapping import Floats, SystemMapping, map_system
from ccg_gmx.molecule.trr_blocks import TrrWriter
from ccg_gmx.molecule.votca_xml import read_mapping
from ccg_gmx.records import BeadFrames

Progress = Callable[[float, float], None]


@dataclass(frozen=True)
class MapRequest:
    """What is mapped, and how.

    Attributes:
        mapping: mapping file; VOTCA's XML files may be joined by ``;``.
        tpr: run input file of the trajectory.
        trajectory: .trr or .xtc.
        prefix: of the files to write.
        begin_ps: first time used.
        end_ps: last time used.
        stride: use every so-manyth frame.
        forces: ``optimal`` (least noise), ``basic`` (sums), None for positions alone.
        fit_frames: the optimal map of forces is fitted on so many of the first frames used.
        xtc: write the positions as .xtc too.
    """

    mapping: str
    tpr: Path
    trajectory: Path
    prefix: Path
    begin_ps: float | None = None
    end_ps: float | None = None
    stride: int = 1
    forces: Literal["optimal", "basic"] | None = "optimal"
    fit_frames: int = 1000
    xtc: bool = False

    @property
    def choice(self) -> FrameChoice:
        """The frames to use."""
        return FrameChoice(self.begin_ps, self.end_ps, self.stride, self.forces is not None)


def map_trajectory(request: MapRequest, progress: Progress | None = None) -> dict[str, Any]:
    """Map a trajectory whose topology GROMACS reads; arguments, result and errors as of :func:`map_files`."""
    file = read_mapping(request.mapping)  # before gmx is asked: errors of the user's own file come first
    return map_files(request, map_system(file, read_molecule_types(Gmx.find().dump(request.tpr))), progress)


def map_files(request: MapRequest, mapping: SystemMapping, progress: Progress | None = None) -> dict[str, Any]:
    """Map a trajectory; memory does not grow with its length.

    Writes PREFIX.trr, PREFIX.gro (the first frame) and PREFIX.topology.json, and PREFIX.xtc on request; all of them or
    none.

    Args:
        request: the files, and which frames.
        mapping: atoms to beads.
        progress: called with (done, total).

    Returns:
        files, frames, times, numbers of atoms, beads and molecules, the map of forces and its noise by molecule type,
        and frames per second of the mapping itself.

    Raises:
        CcgError: unreadable input, or input that does not fit together.
    """
    force_maps = _force_maps(request, mapping)
    start = time.perf_counter()
    with _files(request) as files:
        frames, first_ps, last_ps = _write(request, mapping, force_maps, files, progress)
        mapping.topology.save(files[".topology.json"])
    seconds = time.perf_counter() - start
    return {
        "request": {name: str(value) if isinstance(value, Path) else value for name, value in asdict(request).items()},
        "files": [str(_named(request, suffix)) for suffix in files],
        "frames": frames,
        "first_ps": first_ps,
        "last_ps": last_ps,
        "atoms": mapping.n_atoms,
        "beads": mapping.topology.n_beads,
        "types": list(mapping.topology.types),
        "molecules": [{"name": block.map.molecule.name, "count": block.count} for block in mapping.blocks],
        "forces": {name: _force_report(mapping, name, entry) for name, entry in force_maps.items()},
        "frames_per_s": frames / seconds,
    }


def _force_maps(request: MapRequest, mapping: SystemMapping) -> dict[str, ForceMap]:
    if request.forces is None:
        return {}
    if request.forces == "basic":
        return {entry.molecule.name: basic_map(entry) for entry in mapping.maps}
    return fit_force_maps(mapping, _first_forces(request, mapping.n_atoms))


def _first_forces(request: MapRequest, n_atoms: int) -> Iterator[Floats]:
    left = request.fit_frames
    for piece in stream_frames(request.trajectory, n_atoms, request.choice):
        assert piece.forces is not None, "only frames with forces were asked for"
        yield piece.forces[:left]
        left -= len(piece.forces)
        if left <= 0:
            return


def _force_report(mapping: SystemMapping, name: str, entry: ForceMap) -> dict[str, Any]:
    coarse = next(found.coarse for found in mapping.maps if found.molecule.name == name)
    return {
        "map": entry.kind,
        "noise_ratio": dict(zip(coarse.bead_names, entry.noise_ratio.tolist(), strict=True)),
        "why": entry.why,
    }


def _named(request: MapRequest, suffix: str) -> Path:
    return request.prefix.with_name(request.prefix.name + suffix)


@contextmanager
def _files(request: MapRequest) -> Iterator[dict[str, Path]]:
    """Give temporary names by suffix; they get their real names when the block ends well, and vanish when not."""
    suffixes = [".topology.json", ".gro", *([".xtc"] if request.xtc else []), ".trr"]
    with storing(request.prefix):
        request.prefix.parent.mkdir(parents=True, exist_ok=True)
        stem = f".{request.prefix.name}.{os.getpid()}.part"
        partial = {suffix: request.prefix.with_name(stem + suffix) for suffix in suffixes}
        try:
            yield partial
            for suffix, path in partial.items():
                os.replace(path, _named(request, suffix))
        finally:
            for path in partial.values():
                path.unlink(missing_ok=True)


def _write(
    request: MapRequest,
    mapping: SystemMapping,
    force_maps: dict[str, ForceMap],
    files: dict[str, Path],
    progress: Progress | None,
) -> tuple[int, float, float]:
    """Write the frames; return their number, the first and the last time in ps."""
    frames, first_ps, last_ps = 0, 0.0, 0.0
    with ExitStack() as stack:
        trr = stack.enter_context(TrrWriter(files[".trr"], mapping.topology.n_beads, forces=bool(force_maps)))
        xtc = stack.enter_context(XTCFile(str(files[".xtc"]), "w")) if request.xtc else None
        for beads, done in map_frames(request, mapping, force_maps):
            if not frames:
                box = None if beads.box is None else beads.box[0]
                title = f"Beads of {request.trajectory.name}, first frame"
                write_bead_gro(files[".gro"], mapping.topology, beads.positions[0], box, title)
                first_ps = float(beads.time[0])
            trr.write(beads)
            if xtc is not None:
                _append_xtc(xtc, beads, frames)
            frames, last_ps = frames + len(beads.time), float(beads.time[-1])
            if progress is not None:
                progress(done, 1.0)
    return frames, first_ps, last_ps


def map_frames(
    request: MapRequest, mapping: SystemMapping, force_maps: dict[str, ForceMap]
) -> Iterator[tuple[BeadFrames, float]]:
    """Give mapped frames in pieces, with the part of the file read so far.

    Raises:
        TrajectoryError: unreadable, or with positions or forces that are no numbers.
    """
    coefficients = {name: entry.coefficients for name, entry in force_maps.items()}
    for piece in stream_frames(request.trajectory, mapping.n_atoms, request.choice):
        beads = BeadFrames(mapping.positions(piece.positions, piece.box), piece.time, piece.box)
        if piece.forces is not None:
            beads = replace(beads, forces=mapping.forces(piece.forces, coefficients))
        for what, values in (("positions", beads.positions), ("forces", beads.forces)):
            if values is not None and not np.isfinite(values).all():
                bad = int(np.argmin(np.isfinite(values).all(axis=(1, 2))))
                raise TrajectoryError(
                    f"{request.trajectory} has {what} that are no numbers at {piece.time[bad]:g} ps",
                    expected="finite ones",
                    remedy="leave out the frames after the run broke with --end",
                )
        yield beads, piece.done


def _append_xtc(stream: XTCFile, beads: BeadFrames, written: int) -> None:
    boxes = np.zeros((len(beads.time), 3, 3)) if beads.box is None else beads.box
    for index, (frame, moment, box) in enumerate(zip(beads.positions, beads.time, boxes, strict=True)):
        stream.write(frame.astype(np.float32), box.astype(np.float32), written + index, moment)
