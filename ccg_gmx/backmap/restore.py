"""From a coarse trajectory to atoms: streamed, resumable, every frame checked and with its log-likelihood."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from MDAnalysis.lib.formats.libmdaxdr import TRRFile, XTCFile

from ccg_gmx.backmap.contacts import clash_counts
from ccg_gmx.backmap.data import atoms_of
from ccg_gmx.backmap.restorer import Restorer
from ccg_gmx.backmap.system import BackmapSystem
from ccg_gmx.engine.run_files import storing
from ccg_gmx.errors import SettingsError, StoreError, TrajectoryError
from ccg_gmx.molecule.frame_stream import FrameChoice, stream_frames
from ccg_gmx.molecule.trajectory import make_whole
from ccg_gmx.records import BeadFrames, FloatArray

XTC_PRECISION = 1e6
"""Of the positions written, 1/nm: the usual 1000 would move beads by 5e-4 nm."""
CHUNK_ATOMS = 500_000
"""Atoms restored at once, candidates included; bounds the memory."""
LONGEST_STEP = 2.0
"""Two bead neighbours may be this many times further apart than in the reference before their order is doubted."""

Progress = Callable[[float, float], None]
Energy = Callable[[FloatArray], FloatArray]
"""Energies ``[R]`` in kT of frames ``[R, N, 3]`` nm."""


@dataclass(frozen=True)
class RestoreSettings:
    """How frames are restored.

    Attributes:
        samples: restored frames of each coarse frame.
        seed: of the noise.
        stride: every so-manyth coarse frame.
        frames: at most so many coarse frames; None for all.
    """

    samples: int = 1
    seed: int = 0
    stride: int = 1
    frames: int | None = None


COLUMNS = ("frame", "time_ps", "log_q", "log_choice", "clashes", "chirality_errors", "bead_deviation_nm", "u")
"""Columns of the table beside the frames; u is nan where no energy was asked for."""


def restore_trajectory(
    restorer: Restorer,
    coarse: Path,
    out: Path,
    settings: RestoreSettings,
    *,
    energy: Energy | None = None,
    progress: Progress | None = None,
) -> dict[str, FloatArray]:
    """Restore a coarse trajectory into ``out`` (.xtc or .trr) and its table ``OUT.npz``.

    Interrupted, it goes on when called again in the same way: what is written is kept, and every piece has its own
    noise, so the result is the same. Both files appear when they are whole.

    Args:
        restorer: puts atoms on beads.
        coarse: .xtc or .trr of the beads, or of all atoms.
        out: trajectory to write.
        settings: see there.
        energy: energies in kT for the table, or None.
        progress: called with (done, total).

    Returns:
        The columns of the table, ``[R]`` each, ``R = frames * samples``.

    Raises:
        TrajectoryError: beads that do not fit the model.
        StoreError: a half-written file of another call.
    """
    out, coarse = Path(out), Path(coarse)
    if out.suffix not in (".xtc", ".trr"):
        raise SettingsError(f"-o {out}", expected="a name that ends in .xtc or .trr")
    journal = _Journal(out, _contract(restorer, coarse, settings, energy is not None))
    size = max(1, CHUNK_ATOMS // (len(restorer.system.atoms) * settings.samples * restorer.candidates))
    try:
        for index, piece in enumerate(_chunks(coarse, restorer.system, settings, size)):
            if index < journal.pieces:
                continue
            beads, time, box, first, done = piece
            table, positions = _restore(restorer, beads, time, box, first, settings, index, energy)
            journal.append(positions, table, np.repeat(box, settings.samples, axis=0))
            if progress is not None:
                progress(done, 1.0)
    except TrajectoryError:
        journal.discard()
        raise
    return journal.finish()


def table_facts(table: Mapping[str, FloatArray]) -> dict[str, Any]:
    """What the table of restored frames says of all of them; means are nan where no bridge reaches."""
    log_q = table["log_q"]
    reached = log_q[np.isfinite(log_q)]
    return {
        "frames": len(log_q),
        "max_bead_deviation_nm": float(table["bead_deviation_nm"].max()),
        "chirality_errors": int(table["chirality_errors"].sum()),
        "clash_fraction": float(np.mean(table["clashes"] > 0)),
        "log_q_mean": float(reached.mean()) if len(reached) else math.nan,
        "unreachable_fraction": 1.0 - len(reached) / len(log_q),
    }


def _restore(
    restorer: Restorer,
    beads: FloatArray,
    time: FloatArray,
    box: FloatArray,
    first: int,
    settings: RestoreSettings,
    index: int,
    energy: Energy | None,
) -> tuple[dict[str, FloatArray], FloatArray]:
    """Table and positions ``[T K, N, 3]`` of some coarse frames, samples of a frame one after the other."""
    seed = int.from_bytes(hashlib.sha256(f"{settings.seed} {index}".encode()).digest()[:7], "little")
    generator = torch.Generator().manual_seed(seed)
    repeated = torch.from_numpy(beads).repeat_interleave(settings.samples, 0)
    cells = np.repeat(box, settings.samples, axis=0) if np.any(box) else None
    draws = restorer.draw(repeated, generator, None if cells is None else torch.from_numpy(cells))
    positions = draws.positions.numpy()
    count = len(positions)
    deviation = np.abs(restorer.system.bead_positions(positions) - repeated.numpy()).max(axis=(1, 2))
    table = {
        "frame": first + np.repeat(np.arange(len(beads), dtype=np.float64), settings.samples),
        "time_ps": np.repeat(time, settings.samples),
        "log_q": draws.log_q.numpy(),
        "log_choice": draws.log_choice.numpy(),
        "clashes": clash_counts(restorer.rules, positions, cells).astype(np.float64),
        "chirality_errors": restorer.system.placement.chirality_errors(draws.positions).numpy().astype(np.float64),
        "bead_deviation_nm": deviation,
        "u": np.full(count, math.nan) if energy is None else energy(positions),
    }
    return table, positions


# --- coarse frames -----------------------------------------------------------------------------------------------


def _chunks(
    coarse: Path, system: BackmapSystem, settings: RestoreSettings, size: int
) -> Iterator[tuple[FloatArray, FloatArray, FloatArray, int, float]]:
    """Beads, times, boxes, number of the first frame and part done, of at most ``size`` frames."""
    first, before = 0, 0.0
    for frames, done in read_coarse(coarse, system, settings.stride):
        for start in range(0, len(frames.time), size):
            own = slice(start, start + size)
            beads, time = frames.positions[own], frames.time[own]
            if settings.frames is not None:
                beads, time = beads[: settings.frames - first], time[: settings.frames - first]
            if not len(time):
                return
            box = np.zeros((len(time), 3, 3)) if frames.box is None else frames.box[own][: len(time)]
            part = min(1.0, (start + size) / len(frames.time))
            yield beads, time, box, first, before + (done - before) * part
            first += len(time)
        before = done


def read_coarse(path: Path, system: BackmapSystem, stride: int = 1) -> Iterator[tuple[BeadFrames, float]]:
    """Read bead frames and check that they can be those of the system.

    Args:
        path: .xtc or .trr of the beads, or of all atoms of the system, whose beads are then taken.
        system: of the model.
        stride: every so-manyth frame.

    Raises:
        TrajectoryError: another number of beads, coordinates that are no numbers, or beads in another order.
    """
    count, n_beads, n_atoms = atoms_of(path), len(system.beads), len(system.atoms)
    if count not in (n_beads, n_atoms):
        residues = int(system.residues[-1]) + 1
        raise TrajectoryError(
            f"{path} has {count} beads in a frame",
            expected=f"{n_beads} beads ({', '.join(system.bead_names)} of {residues} residues), or {n_atoms} atoms",
            remedy="a residue is missing or added: give the topology of this molecule with --tpr",
        )
    for piece in stream_frames(path, count, FrameChoice(stride=stride)):
        positions = piece.positions.astype(np.float64)
        if not np.isfinite(positions).all():
            frame = int(np.flatnonzero(~np.isfinite(positions).all(axis=(1, 2)))[0])
            raise TrajectoryError(
                f"{path} has coordinates that are no numbers at {piece.time[frame]:g} ps",
                expected="finite positions",
                remedy="the coarse run has probably exploded",
            )
        box = piece.box if np.any(piece.box) else None
        if count == n_atoms:
            positions = system.bead_positions(make_whole(positions, box, system.atoms.bonds))
        elif box is not None:
            positions = make_whole(positions, box, bead_bonds(system))
        _check_order(path, positions, system)
        yield BeadFrames(positions, piece.time, box), piece.done


def bead_bonds(system: BackmapSystem) -> Any:
    """Pairs of beads that follow one another in a molecule, ``[n, 2]`` bead numbers."""
    molecules = system.placement.plan.system.molecules[system.beads]
    first = np.flatnonzero(molecules[1:] == molecules[:-1])
    return np.stack([first, first + 1], axis=1)


def _check_order(path: Path, beads: FloatArray, system: BackmapSystem) -> None:
    """Beads in a wrong order, or of a chain that the box cut, are neighbours far apart."""
    pairs = bead_bonds(system)
    reference = system.bead_positions(system.reference[None])[0]
    expected = np.linalg.norm(reference[pairs[:, 0]] - reference[pairs[:, 1]], axis=-1)
    found = np.linalg.norm(beads[:, pairs[:, 0]] - beads[:, pairs[:, 1]], axis=-1)
    typical = np.median(found, axis=0)
    bad = np.flatnonzero((typical > LONGEST_STEP * expected) | (typical < expected / LONGEST_STEP))
    if len(bad):
        atom = int(system.beads[pairs[bad[0], 0]])
        label = system.placement.plan.system.label(atom)
        raise TrajectoryError(
            f"{path}: the bead after {label} is {typical[bad[0]]:.3f} nm away ({len(bad)} such pairs)",
            expected=f"about {expected[bad[0]]:.3f} nm, as in the molecule",
            remedy="beads must come in the order of the residues, in nm, molecules whole or with the box they crossed",
        )


# --- files -------------------------------------------------------------------------------------------------------


def _contract(restorer: Restorer, coarse: Path, settings: RestoreSettings, energies: bool) -> dict[str, Any]:
    return {
        "model": restorer.fingerprint(),
        "coarse": [str(coarse.resolve()), coarse.stat().st_size if coarse.is_file() else 0],
        "settings": asdict(settings),
        "energies": energies,
    }


class _Journal:
    """Frames and table while they grow: after every piece both say how far they are whole.

    Args:
        out: the trajectory that is written in the end.
        contract: what must be the same to go on.
    """

    def __init__(self, out: Path, contract: dict[str, Any]) -> None:
        self.out = out
        self.part = out.with_name(f".{out.stem}.part{out.suffix}")
        self.table = out.with_name(f".{out.stem}.part.npz")
        self.contract = json.dumps(contract, sort_keys=True)
        self.pieces = self.step = 0
        self.columns: dict[str, list[FloatArray]] = {name: [] for name in COLUMNS}
        if self.table.exists() and self.part.exists():
            self._resume()

    def _resume(self) -> None:
        with np.load(self.table, allow_pickle=False) as data:
            if str(data["contract"]) != self.contract:
                raise StoreError(
                    f"{self.part} is half of a restoration with another model, trajectory or other options",
                    remedy="remove it to begin afresh, or give the same command again",
                )
            self.pieces, self.step = int(data["pieces"]), len(data["log_q"])
            self.columns = {name: [data[name]] for name in COLUMNS}
            size = int(data["bytes"])
        os.truncate(self.part, size)

    def append(self, positions: FloatArray, table: dict[str, FloatArray], box: FloatArray) -> None:
        """Write the frames of a piece, then note that they are there."""
        piece = self.out.with_name(f".{self.out.stem}.piece{self.out.suffix}")
        with storing(self.out):
            self.out.parent.mkdir(parents=True, exist_ok=True)
            self._write(piece, positions, table["time_ps"], box)
            # Both formats are frames one after the other, so files can be joined; their library cannot append.
            with self.part.open("ab" if self.pieces else "wb") as stream, piece.open("rb") as source:
                shutil.copyfileobj(source, stream)
            piece.unlink()
        self.pieces += 1
        for name in COLUMNS:
            self.columns[name].append(np.asarray(table[name], dtype=np.float64))
        self._note(self.table, pieces=self.pieces, bytes=self.part.stat().st_size, contract=self.contract)

    def _write(self, path: Path, positions: FloatArray, time: FloatArray, box: FloatArray) -> None:
        kind = TRRFile if self.out.suffix == ".trr" else XTCFile
        with kind(str(path), "w") as stream:
            for frame, moment, cell in zip(positions.astype(np.float32), time, box.astype(np.float32), strict=True):
                if self.out.suffix == ".trr":
                    stream.write(frame, None, None, cell, self.step, moment, 0.0, len(frame))
                else:
                    stream.write(frame, cell, self.step, moment, XTC_PRECISION)
                self.step += 1

    def _note(self, path: Path, **more: Any) -> None:
        partial = path.with_name(f"{path.name}.{os.getpid()}.tmp.npz")
        joined = {name: np.concatenate(parts) for name, parts in self.columns.items()}
        np.savez(partial, **joined, **more)  # type: ignore[arg-type]
        os.replace(partial, path)

    def discard(self) -> None:
        """Leave nothing of a trajectory that cannot be restored to its end."""
        for path in (self.part, self.table):
            path.unlink(missing_ok=True)

    def finish(self) -> dict[str, FloatArray]:
        """Give both files their names."""
        if not self.step:
            raise TrajectoryError("the coarse trajectory has no frames", expected="at least one")
        self._note(self.out.with_suffix(".npz"))
        os.replace(self.part, self.out)
        self.table.unlink(missing_ok=True)
        return {name: np.concatenate(parts) for name, parts in self.columns.items()}
