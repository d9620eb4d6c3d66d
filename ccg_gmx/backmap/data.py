"""Training data and targets from users' own files: solvent left out, molecules whole, every frame checked."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ccg_gmx.backmap.system import Atoms
from ccg_gmx.engine.gromacs import Gmx
from ccg_gmx.engine.settings import EngineSettings
from ccg_gmx.errors import TopologyError, TrajectoryError
from ccg_gmx.molecule.bead_file import MappingFile
from ccg_gmx.molecule.frame_stream import FrameChoice, stream_frames
from ccg_gmx.molecule.mapping import BeadMapping
from ccg_gmx.molecule.molecule_types import read_molecule_types
from ccg_gmx.molecule.system_mapping import SystemMapping, map_system
from ccg_gmx.molecule.topology import parse_tpr_dump
from ccg_gmx.molecule.trajectory import make_whole
from ccg_gmx.records import FloatArray, IntArray

_WATER = "SOL WAT HOH H2O TIP3 TIP3P TIP4 TIP4P TIP5 TIP5P SPC SPCE T3P T4P OPC"
_IONS = "NA NA+ CL CL- K K+ LI MG CA2 CAL ZN ZN2 CES RB SOD CLA POT NIO CIO Na+ Cl- Mg2+"
SOLVENT = frozenset(f"{_WATER} {_IONS}".split())
"""Residue names of water and ions."""

Progress = Callable[[float, float], None]
"""Called with (done, total)."""


@dataclass(frozen=True, eq=False)
class Source:
    """Atoms of a file without solvent.

    Attributes:
        atoms: what is kept.
        kept: ``[N]`` their places among all atoms of the file.
        n_all: atoms of the file.
        note: what was left out, in words; empty if nothing.
        beads: beads of a mapping file, in the numbering of the atoms kept; None without one.
    """

    atoms: Atoms
    kept: IntArray
    n_all: int
    note: str
    beads: BeadMapping | None = None


@dataclass(frozen=True, eq=False)
class FineFrames:
    """Fine frames of the atoms kept.

    Attributes:
        positions: ``[T, N, 3]`` nm, molecules whole.
        run: ``[T]`` number of the file.
        time: ``[T]`` ps.
        box: ``[T, 3, 3]`` nm, of zeros for files without one; None where no file has one.
    """

    positions: FloatArray
    run: IntArray
    time: FloatArray
    box: FloatArray | None = None


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Fine frames that the training never saw.

    Attributes:
        positions: ``[T, N, 3]`` nm, relabelled.
        box: ``[T, 3, 3]`` nm; None: no periodic images.
    """

    positions: FloatArray
    box: FloatArray | None = None

    def __len__(self) -> int:
        return len(self.positions)

    def frames(self, chosen: slice) -> HeldOut:
        """Return some of the frames."""
        return HeldOut(self.positions[chosen], None if self.box is None else self.box[chosen])


def read_source(path: Path, engine: EngineSettings | None = None) -> Source:
    """Read atoms and bonds from a run input (.tpr), or from any topology with bonds that MDAnalysis reads (.psf).

    Args:
        path: of the file.
        engine: says which GROMACS dumps a .tpr; None for the one that is found.

    Raises:
        TopologyError: missing, without bonds, or with nothing but solvent.
    """
    path = Path(path)
    if not path.is_file():
        raise TopologyError(f"no file {path}", expected="a .tpr or .psf file", remedy="check the path")
    atoms = _from_tpr(path, engine) if path.suffix == ".tpr" else _from_mdanalysis(path)
    solvent = np.array([name in SOLVENT for name in atoms.residue_names])
    kept = np.flatnonzero(~solvent)
    if not len(kept):
        raise TopologyError(f"{path} holds nothing but solvent", expected="a molecule to restore")
    note = ""
    if solvent.any():
        names = sorted({name for name, out in zip(atoms.residue_names, solvent, strict=True) if out})
        note = (
            f"left out {int(solvent.sum())} atoms of solvent ({', '.join(names)}): only {len(kept)} atoms are learned"
        )
    return Source(atoms.take(kept), kept, len(atoms), note)


def read_mapped_source(path: Path, file: MappingFile, engine: EngineSettings | None = None) -> Source:
    """Read the molecules of a run input that a mapping file gives beads, and those beads.

    Args:
        path: of the run input.
        file: the mapping.
        engine: as in :func:`read_source`.

    Raises:
        TopologyError: no .tpr.
        SettingsError: the mapping does not fit the molecules.
    """
    if path.suffix != ".tpr" or not path.is_file():
        raise TopologyError(
            f"a mapping file with {path}" if path.is_file() else f"no file {path}",
            expected="a .tpr, whose molecules the mapping names",
            remedy="gmx grompp writes a .tpr",
        )
    dump = Gmx.find(engine).dump(path)
    system = map_system(file, read_molecule_types(dump))
    kept, beads = _kept_beads(system)
    atoms = Atoms.of_topology(parse_tpr_dump(dump))
    left_out = len(atoms) - len(kept)
    note = ""
    if left_out:
        note = f"left out {left_out} atoms of molecules without beads: only {len(kept)} atoms are learned"
    return Source(atoms.take(kept), kept, len(atoms), note, beads)


def _kept_beads(system: SystemMapping) -> tuple[IntArray, BeadMapping]:
    """Atoms of the mapped molecules, and the beads in their numbering."""
    kept: list[int] = []
    names: list[str] = []
    groups: list[tuple[int, ...]] = []
    weights: list[tuple[float, ...]] = []
    for block in system.blocks:
        n = block.map.molecule.n_atoms
        own = [(np.flatnonzero(row), row[row != 0]) for row in block.map.weights]
        for copy in range(block.count):
            start = len(kept)
            kept += range(block.first_atom + copy * n, block.first_atom + (copy + 1) * n)
            for name, (atoms, share) in zip(block.map.coarse.bead_names, own, strict=True):
                names.append(f"{name}@{len(names) + 1}")
                groups.append(tuple((start + atoms).tolist()))
                weights.append(tuple(share.tolist()))
    single = all(len(group) == 1 for group in groups)
    mapping = BeadMapping(tuple(names), tuple(groups), tuple(weights), len(kept), "atom" if single else "com")
    return np.array(kept, dtype=np.int64), mapping


def _from_tpr(path: Path, engine: EngineSettings | None) -> Atoms:
    return Atoms.of_topology(parse_tpr_dump(Gmx.find(engine).dump(path)))


def _from_mdanalysis(path: Path) -> Atoms:
    import MDAnalysis

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            group = MDAnalysis.Universe(str(path), to_guess=()).atoms
            return Atoms(
                tuple(group.names),
                tuple(group.resnames),
                group.resids.astype(np.int64),
                group.masses.astype(np.float64),
                group.charges.astype(np.float64),
                np.sort(group.bonds.indices, axis=1).astype(np.int64),
            )
    except Exception as error:  # its parsers raise whatever they stumble over
        raise TopologyError(
            f"{path} gives no atoms with masses, charges and bonds ({' '.join(str(error).split())})",
            expected="a .tpr, or a .psf",
            remedy="gmx grompp writes a .tpr",
        ) from None


def read_fine(source: Source, trajectories: Sequence[Path], stride: int = 1, start_ps: float = 0.0) -> FineFrames:
    """Read fine frames of the atoms kept.

    Args:
        source: the atoms.
        trajectories: .xtc, .trr or .dcd files of the whole system, or of the atoms kept alone.
        stride: every so-manyth frame.
        start_ps: leave out frames before.

    Raises:
        TrajectoryError: whatever does not fit, or coordinates that are no numbers.
    """
    parts, runs, times, boxes = [], [], [], []
    for run, path in enumerate(trajectories):
        for positions, time, box in _pieces(source, Path(path), stride, start_ps):
            if not np.isfinite(positions).all():
                raise TrajectoryError(
                    f"{path} has coordinates that are no numbers", expected="finite positions", remedy="check the run"
                )
            parts.append(make_whole(positions, box, source.atoms.bonds))
            runs.append(np.full(len(time), run))
            times.append(time)
            boxes.append(np.zeros((len(time), 3, 3)) if box is None else box)
    box = np.concatenate(boxes)
    return FineFrames(np.concatenate(parts), np.concatenate(runs), np.concatenate(times), box if np.any(box) else None)


def _pieces(source: Source, path: Path, stride: int, start_ps: float):  # type: ignore[no-untyped-def]
    if path.suffix == ".dcd":
        yield _read_dcd(source, path, stride)
        return
    count = atoms_of(path)
    if count not in (source.n_all, len(source.kept)):
        raise TrajectoryError(
            f"{path} has {count} atoms in a frame",
            expected=f"{source.n_all}, all atoms of the topology"
            + (f", or {len(source.kept)}, those without solvent" if source.n_all > len(source.kept) else ""),
            remedy="use the trajectory that belongs to this topology",
        )
    for piece in stream_frames(path, count, FrameChoice(begin_ps=start_ps or None, stride=stride)):
        chosen = piece.positions if count == len(source.kept) else piece.positions[:, source.kept]
        yield chosen.astype(np.float64), piece.time, piece.box if np.any(piece.box) else None


def atoms_of(path: Path) -> int:
    """Atoms of a frame of a .trr or .xtc file, by its first header.

    Raises:
        TrajectoryError: no such file, or another kind.
    """
    from MDAnalysis.lib.formats.libmdaxdr import TRRFile, XTCFile

    if not path.is_file() or path.suffix not in (".trr", ".xtc"):
        raise TrajectoryError(
            f"no trajectory {path}", expected="a .xtc, .trr or .dcd file", remedy="check the path, or gmx trjconv"
        )
    try:
        with (TRRFile if path.suffix == ".trr" else XTCFile)(str(path)) as stream:
            return int(stream.n_atoms)
    except (OSError, EOFError, ValueError) as error:
        raise TrajectoryError(f"{path} cannot be read: {error}", expected="a whole file") from None


def _read_dcd(source: Source, path: Path, stride: int) -> tuple[FloatArray, FloatArray, None]:
    from MDAnalysis.lib.formats.libdcd import DCDFile

    try:
        with DCDFile(str(path)) as stream:
            frames = np.stack([frame.xyz.copy() for frame in stream][::stride]).astype(np.float64) * 0.1
    except (OSError, EOFError, ValueError) as error:
        raise TrajectoryError(f"{path} cannot be read: {error}", expected="a whole .dcd file") from None
    if frames.shape[1] == source.n_all:
        frames = frames[:, source.kept]
    if frames.shape[1] != len(source.kept):
        raise TrajectoryError(f"{path} has {frames.shape[1]} atoms in a frame", expected=f"{source.n_all}")
    return frames, np.arange(float(len(frames))), None
