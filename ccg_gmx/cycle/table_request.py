"""What a tabulated model is made from, and the folder it is made in."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from ccg_gmx.cycle.store import finite, read_json, write_json
from ccg_gmx.engine.run_files import storing
from ccg_gmx.errors import SettingsError, StoreError
from ccg_gmx.molecule.coarse_topology import CoarseTopology
from ccg_gmx.molecule.frame_stream import read_bead_frames
from ccg_gmx.potential.inversion import BasisSettings
from ccg_gmx.potential.model import CoarseModel
from ccg_gmx.records import BeadFrames

Method = Literal["bi", "ibi", "fm", "re"]
CHUNK = 200


@dataclass(frozen=True)
class TableRequest:
    """One job of ``ccg tables``.

    Attributes:
        method: bi (direct Boltzmann inversion), ibi (iterative), fm (force matching), re (relative entropy).
        trajectory: mapped frames, .trr or .xtc, with forces for fm.
        topology: .topology.json of ``ccg map``.
        temperature_K: of the trajectory.
        cutoff: of pairs, nm; 0 for a model without pairs.
        r_max: range of the radial distribution functions, nm; the cut-off if None.
        bin_width: of these, nm.
        start_ps: frames before are left out.
        basis: splines.
        iterations: of ibi and re, at most.
        tolerance: squared RDF error over that of the start at which ibi and re stop.
        peak_tolerance: deviation of the first peak's height over the target's at which they stop.
        damping: factor of each step.
        pressure_bar: wanted mean pressure, None to leave it alone.
        ridge: of fm, (kJ/mol)^-2.
        seed: of the runs; iteration k uses ``seed + k``.
        run: settings of the runs by name; they are the runner's, and another folder is wanted for others.
    """

    method: Method
    trajectory: Path
    topology: Path
    temperature_K: float
    cutoff: float
    r_max: float | None = None
    bin_width: float = 0.002
    start_ps: float = 0.0
    basis: BasisSettings = field(default_factory=BasisSettings)
    iterations: int = 30
    tolerance: float = 0.01
    peak_tolerance: float = 0.03
    damping: float = 1.0
    pressure_bar: float | None = None
    ridge: float = 0.0
    seed: int = 1
    run: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing."""
        if not (math.isfinite(self.temperature_K) and self.temperature_K > 0):
            raise SettingsError(f"temperature {self.temperature_K} K", expected="a positive number")
        if not (math.isfinite(self.cutoff) and self.cutoff >= 0):
            raise SettingsError(f"cut-off {self.cutoff} nm", expected="a positive number, or 0 for no pairs")
        if self.range < self.cutoff:
            raise SettingsError(
                f"radial distribution functions up to {self.range:g} nm and a cut-off of {self.cutoff:g} nm",
                expected="a range that contains the cut-off",
            )
        if not 0 < self.damping <= 1 or self.iterations < 0:
            raise SettingsError(
                f"damping {self.damping}, {self.iterations} iterations",
                expected="a damping in (0, 1] and no negative number of iterations",
            )
        if self.pressure_bar is not None and (self.method not in ("ibi", "re") or not self.cutoff):
            raise SettingsError(
                f"a target pressure for {self.method} with a cut-off of {self.cutoff:g} nm",
                expected="ibi or re with pairs",
            )

    @property
    def range(self) -> float:
        """Range of the radial distribution functions, nm."""
        return self.cutoff if self.r_max is None else self.r_max

    def read_topology(self) -> CoarseTopology:
        """Read the coarse topology."""
        return CoarseTopology.load(self.topology)

    def frames(self, n_beads: int) -> Iterator[BeadFrames]:
        """Stream the target's frames."""
        for chunk in read_bead_frames(self.trajectory, n_beads, CHUNK):
            keep = chunk.time >= self.start_ps
            if keep.any():
                yield frames_where(chunk, keep)

    def key(self) -> str:
        """Hash of all that the result depends on; of the trajectory its size, its first and its last megabyte.

        The limits at which iterations stop are left out: a job may go on with others.
        """
        loose = {"iterations", "tolerance", "peak_tolerance", "trajectory", "topology"}
        content = {name: value for name, value in asdict(self).items() if name not in loose}
        try:
            content["topology"] = hashlib.sha256(self.topology.read_bytes()).hexdigest()
            content["trajectory"] = _ends(self.trajectory)
        except OSError as error:
            raise SettingsError(f"{error.filename}: {error.strerror}", remedy="check the path") from None
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def _ends(path: Path) -> str:
    size, piece = path.stat().st_size, 2**20
    with path.open("rb") as stream:
        head = stream.read(piece)
        stream.seek(max(size - piece, 0))
        return f"{size} {hashlib.sha256(head + stream.read(piece)).hexdigest()}"


def frames_where(frames: BeadFrames, keep: Any) -> BeadFrames:
    """Some of the frames, by a mask or a slice."""
    return replace(
        frames,
        positions=frames.positions[keep],
        time=frames.time[keep],
        box=None if frames.box is None else frames.box[keep],
        forces=None if frames.forces is None else frames.forces[keep],
    )


@dataclass(frozen=True)
class ModelRun:
    """A finished run of a coarse model.

    Attributes:
        frames: gives its frames in chunks, those of settling left out.
        pressure_bar: mean pressure by the engine; None to let us compute it from the frames.
        pressure_error: its standard error.
        info: what else is worth keeping: engine, why, ns per day.
    """

    frames: Callable[[], Iterator[BeadFrames]]
    pressure_bar: float | None = None
    pressure_error: float | None = None
    info: dict[str, Any] = field(default_factory=dict)


class Runner(Protocol):
    """Runs a model; called again with the same folder it goes on from what is there, or starts over."""

    def __call__(self, model: CoarseModel, folder: Path, seed: int) -> ModelRun:
        """Run a model in a folder of its own with a seed."""


class TableFolder:
    """The output folder: refuses that of another job; an iteration counts once its record is there.

    Args:
        root: the folder; made if it is not there.
        request: the job.

    Raises:
        StoreError: the folder is another job's, or cannot be written.
    """

    def __init__(self, root: Path, request: TableRequest) -> None:
        self.root = root
        with storing(root):
            root.mkdir(parents=True, exist_ok=True)
        key, record = request.key(), root / "request.json"
        # A job that failed before its first result, on bad input, is no reason to refuse the corrected one.
        started = any(path != record and not path.name.startswith(".") for path in root.iterdir())
        if started and not record.exists():
            raise StoreError(f"{root} is not empty and no folder of ccg tables", remedy="choose another --out")
        if started and read_json(record).get("key") != key:
            raise StoreError(
                f"{root} holds the result of other settings or files",
                expected="the same ones, to go on, or a new folder",
                remedy="choose another --out or remove the folder",
            )
        if not started:
            with storing(root):
                write_json(record, {"key": key, "request": json.loads(json.dumps(asdict(request), default=str))})

    def iteration(self, number: int) -> Path:
        """Folder of an iteration."""
        folder = self.root / f"iteration_{number:03d}"
        folder.mkdir(exist_ok=True)
        return folder

    def record(self, number: int) -> dict[str, Any] | None:
        """What is known of a finished iteration; None if it is not."""
        path = self.root / f"iteration_{number:03d}" / "record.json"
        return read_json(path) if path.exists() else None

    def finish(self, number: int, record: dict[str, Any]) -> None:
        """Write the record of an iteration, which makes it a finished one."""
        with storing(self.root):
            write_json(self.iteration(number) / "record.json", finite(record))
