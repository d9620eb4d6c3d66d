"""Content-addressed results: a stage's key is the hash of all it depends on; its folder appears whole or not at all.

A stage is a top-level function of one ``Work`` that writes its result into ``work.folder``. It runs in a folder named
``.partial-...``, kept after a kill so that a training or an mdrun continues from its own checkpoint, and renamed to its
final name when whole. Resuming a cycle is therefore nothing but looking keys up.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import math
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import ccg_gmx
from ccg_gmx.engine.parallel import Workers, report_steps
from ccg_gmx.errors import SettingsError, StoreError

Progress = Callable[..., None]
"""``progress(done, total[, message])``."""

PARTIAL = ".partial-"
_UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}
_SHORT_WRITE = re.compile(r"\d+ requested and \d+ written")
"""What numpy says, without an error number, when the disk is full."""
_TEMPORARY = re.compile(r"\..+\.(\d+\.tmp|partial)")
"""Names that files of the package have until they are whole."""
_JOURNAL = re.compile(r"\..+\.part\.\w+")
"""Names of unfinished files that know themselves how far they are whole (see backmap/restore.py)."""
RECORD = "stage.json"
EVALUATIONS = "evaluations.json"
"""Energies that a stage computed, by kind: fine_md_steps, flow, checks."""


@dataclass(frozen=True)
class Work:
    """What a stage function is given.

    Attributes:
        folder: where it writes; may hold checkpoints of an earlier, killed attempt.
        settings: values the result depends on.
        inputs: name -> folder of another stage, or a file.
        seed: seed of all its random numbers.
        context: values that change speed but no number (program paths, GPU flags); not part of the key.
        progress: to be called with (done, total).
    """

    folder: Path
    settings: dict[str, Any]
    inputs: dict[str, Path]
    seed: int
    context: dict[str, Any]
    progress: Progress

    def count(self, **evaluations: int) -> None:
        """Leave on record how many energies were computed, by kind (see :data:`EVALUATIONS`)."""
        write_json(self.folder / EVALUATIONS, evaluations)


StageFunction = Callable[[Work], None]


@dataclass(frozen=True)
class Job:
    """One stage to run.

    Attributes:
        name: stage name, also the start of its folder's name.
        function: top-level function that does the work (it may run in another process).
        settings: JSON-able values the result depends on.
        inputs: name -> folder of another stage, or a file from outside.
        seed: seed of all its random numbers.
        context: values that change no number; not part of the key.
    """

    name: str
    function: StageFunction
    settings: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, Path] = field(default_factory=dict)
    seed: int = 0
    context: dict[str, Any] = field(default_factory=dict)


class Store:
    """The stages of one run folder."""

    def __init__(self, root: Path, workers: int = 1) -> None:
        self.root = root
        self.stages = root / "stages"
        self.workers = workers
        self._pool = Workers(workers)
        self.used: list[Path] = []
        self._groups: list[tuple[Path, ...]] = []
        try:
            self.stages.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _unwritable(root, error) from None

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep two runs out of one folder. The lock dies with its process, so a kill never leaves it behind."""
        try:
            handle = (self.root / ".lock").open("w")
        except OSError as error:
            raise _unwritable(self.root, error) from None
        with handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StoreError(
                    f"{self.root} is in use by another ccg run", remedy="wait for it, or choose another --out"
                ) from None
            try:
                yield
            finally:
                self._pool.close()

    def folder(self, job: Job) -> Path:
        """Return where the job's result is, or will be."""
        return self.stages / f"{job.name}-{job_key(job)}"

    def run(self, jobs: Sequence[Job], bar: Callable[[str, int], Any] | None = None) -> list[Path]:
        """Return the folders of all jobs, computing the missing ones side by side.

        Args:
            jobs: independent stages.
            bar: ``(label, total) -> progress bar`` with ``update_to(done, total)`` and ``close()``; None for silence.

        Raises:
            StoreError: if the run folder cannot be written.
            CcgError: whatever the first failing stage raised.
        """
        folders = [self.folder(job) for job in jobs]
        missing = [(job, folder) for job, folder in zip(jobs, folders, strict=True) if not folder.exists()]
        if missing:
            tasks = [(job, str(folder)) for job, folder in missing]
            with storing(self.root), _shown(bar, jobs[0].name, len(tasks)) as move:
                self._pool.run(_run_one, tasks, move, jobs[0].name)
        self.used.extend(folders)
        self._groups.append(tuple(folders))
        return folders

    def wall_seconds(self) -> dict[str, float]:
        """Return stage name -> wall-clock seconds of all stages used so far, also of those found finished.

        Stages of a group ran side by side: it took as long as its longest, or as all of them on so many workers.
        """
        total: dict[str, float] = {}
        for group in dict.fromkeys(self._groups):
            records = [read_json(folder / RECORD) for folder in group]
            seconds = [float(record["wall_s"]) for record in records]
            wall = max(max(seconds), sum(seconds) / self.workers)
            total[records[0]["name"]] = total.get(records[0]["name"], 0.0) + wall
        return total

    def sweep(self) -> None:
        """Remove what killed attempts and changed settings left behind: called when a run is complete."""
        for folder in self.stages.glob(f"{PARTIAL}*"):
            shutil.rmtree(folder, ignore_errors=True)
        for torn in self.root.glob(".*"):
            if _TEMPORARY.fullmatch(torn.name):
                torn.unlink()


def job_key(job: Job) -> str:
    """Return the 16-digit content hash of a job: settings, seed, inputs and the code that will run.

    Settings keep their order, because the order of beads and torsions means something.
    """
    payload = {
        "name": job.name,
        "settings": json.dumps(job.settings),
        "seed": job.seed,
        "inputs": {name: _input_key(path) for name, path in sorted(job.inputs.items())},
        "code": code_version(),
    }
    return hashlib.sha256(json.dumps(payload, sort_keys=True).encode()).hexdigest()[:16]


def _input_key(path: Path) -> str:
    """Stage folders are named by their key; files from outside are hashed."""
    if (path / RECORD).is_file():
        return path.name
    return file_hash(path)


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file's bytes.

    Raises:
        SettingsError: if it cannot be read.
    """
    try:
        with path.open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError as error:
        raise SettingsError(f"cannot read {path}: {error.strerror}", expected="an existing file") from None


_SHOWS_ONLY = ("report/", "bench/", "commands/", "cli.py", "engine/toolchain.py")


@cache
def code_version() -> str:
    """Return version and hash of the package's sources; reports, benchmarks and the command line change no number."""
    root = Path(ccg_gmx.__file__).parent
    digest = hashlib.sha256()
    for source in sorted(root.rglob("*.py")):
        name = source.relative_to(root).as_posix()
        if not name.startswith(_SHOWS_ONLY):
            digest.update(name.encode() + b"\0" + source.read_bytes())
    return f"{ccg_gmx.__version__}+{digest.hexdigest()[:16]}"


def _partial(folder: Path) -> Path:
    return folder.with_name(PARTIAL + folder.name)


def _run_one(task: tuple[Job, str]) -> None:
    """Run one job in its partial folder and give the folder its final name. Runs in a worker process."""
    import torch  # not above: `ccg status` reads the store and should not wait for torch

    job, target = task
    # One thread everywhere: small tensors are slower on two, and a stage must give the same bits in a pool or alone.
    torch.set_num_threads(1)
    folder, partial = Path(target), _partial(Path(target))
    partial.mkdir(parents=True, exist_ok=True)
    for torn in partial.rglob(".*"):  # files that a killed attempt was writing under temporary names
        if not _JOURNAL.fullmatch(torn.name):
            torn.unlink()
    start = time.monotonic() - _seconds_before(partial)
    last = [0.0]

    def progress(done: int, total: int, message: str = "") -> None:
        now = time.monotonic()
        if now - last[0] > 0.5 or done >= total:
            last[0] = now
            report_steps(done, total)
            state = {"done": done, "total": total, "message": message, "wall_s": now - start}
            write_json(partial / "progress.json", state)

    job.function(Work(partial, job.settings, job.inputs, job.seed, job.context, progress))
    (partial / "progress.json").unlink(missing_ok=True)
    record = {
        "name": job.name,
        "settings": job.settings,
        "seed": job.seed,
        "inputs": {name: _input_key(path) for name, path in job.inputs.items()},
        "code": code_version(),
        "wall_s": time.monotonic() - start,
    }
    write_json(partial / RECORD, record)
    os.replace(partial, folder)


def _seconds_before(partial: Path) -> float:
    """Seconds this stage had already run for when it was killed."""
    try:
        return float(read_json(partial / "progress.json")["wall_s"])
    except (OSError, StoreError, KeyError):
        return 0.0


@contextmanager
def _shown(
    bar: Callable[[str, int], Any] | None, label: str, total: int
) -> Iterator[Callable[[str, float, int], None]]:
    """Give ``run_all`` something to call that moves one bar for a group of stages."""
    if bar is None:
        yield lambda _label, _done, _total: None
        return
    shown = bar(label, total)
    try:
        yield lambda _label, done, _total: shown.update_to(done)
    finally:
        shown.close()


def write_json(path: Path, value: Any) -> None:
    """Write JSON under a temporary name, then rename."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(finite(value), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(partial, path)


def finite(value: Any) -> Any:
    """Return a copy with None for nan and infinities, which JSON does not know."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        StoreError: if it is damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        damaged = path.parent if path.name == RECORD else path
        raise StoreError(
            f"{path} is damaged ({error})", remedy=f"remove {damaged} and run again to make it anew"
        ) from None


@contextmanager
def storing(root: Path) -> Iterator[None]:
    """Turn the system's refusal to write in a run folder into one clear line."""
    try:
        yield
    except OSError as error:
        elsewhere = isinstance(error.filename, str) and not Path(error.filename).is_relative_to(root)
        if elsewhere or not (error.errno in _UNWRITABLE or _SHORT_WRITE.search(str(error))):
            raise
        raise _unwritable(root, error) from None
    except RuntimeError as error:
        if "inline_container" not in str(error):  # torch's file writer, which does not tell what the system said
            raise
        raise _unwritable(root, OSError(errno.ENOSPC, "")) from None


def _unwritable(root: Path, error: OSError) -> StoreError:
    number = error.errno or errno.ENOSPC
    space = "free some space and run again, or " if number in (errno.ENOSPC, errno.EDQUOT) else ""
    return StoreError(f"cannot write in {root}: {os.strerror(number)}", remedy=f"{space}choose another --out folder")
