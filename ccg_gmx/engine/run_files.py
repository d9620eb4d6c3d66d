"""The files of one mdrun: names, checkpoint, completeness, progress."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from ccg_gmx.errors import MdrunError, SettingsError, StoreError

ProgressCallback = Callable[[int, int], None]
"""Called with (steps done, steps in total)."""


@dataclass(frozen=True)
class MdrunResult:
    """Files and speed of a finished run.

    Attributes:
        trajectory: full-precision frames (.trr); exists if the mdp asks for positions, velocities or forces.
        log: GROMACS log.
        edr: energies.
        gro: last structure.
        ns_per_day: speed mdrun reported for its last part; nan for minimisations.
        steps: steps done.
    """

    trajectory: Path
    log: Path
    edr: Path
    gro: Path
    ns_per_day: float
    steps: int


class RunFiles:
    """Files of one run and the record that says which run input they belong to and whether they are whole."""

    _EXTENSION: ClassVar = {"-o": "trr", "-x": "xtc", "-c": "gro", "-e": "edr", "-g": "log", "-cpo": "cpt"}

    def __init__(self, folder: Path, name: str) -> None:
        if not re.fullmatch(r"\w[\w.+-]*", name):
            raise SettingsError(f"run name {name!r}", expected="letters, digits and _ . + -")
        self.folder, self.name = folder, name

    def __getitem__(self, extension: str) -> Path:
        return self.folder / f"{self.name}.{extension}"

    def options(self, *names: str) -> list[str]:
        """Explicit file options for mdrun, whose -deffnm is going to be removed.

        Names are relative to the folder: a checkpoint remembers them, and a folder may be renamed before a resume.
        """
        return [part for name in names for part in (name, self[self._EXTENSION[name]].name)]

    def open_record(self, tpr: Path, plumed: Path | None = None) -> MdrunResult | None:
        """Return the record of a finished run; otherwise claim the name for these inputs."""
        record, digests = _read_json(self["json"]), _digests(tpr, plumed)
        for key, what in (("tpr_sha256", "run input file"), ("plumed_sha256", "PLUMED input")):
            if record is not None and record.get(key) != digests.get(key):
                raise StoreError(
                    f"{self.folder} holds a run named {self.name} of another {what}",
                    expected=f"an empty folder or the run of {tpr}",
                    remedy="use another folder or remove the old files",
                )
        if record is not None and record.get("finished"):
            if all((self.folder / file).exists() for file in record["files"]):
                return self.result(record["ns_per_day"] or math.nan, record["steps"])
            raise StoreError(
                f"files of the finished run {self.name} in {self.folder} are missing",
                remedy=f"remove {self['json'].name} and {self['cpt'].name} to run it again",
            )
        if record is None:
            if self["cpt"].exists():
                raise StoreError(
                    f"{self['cpt']} is there, but no {self['json'].name} that says whose checkpoint it is",
                    remedy="use another folder or remove it",
                )
            self._write_record({**digests, "finished": False})
        return None

    def close_record(self, tpr: Path, plumed: Path | None = None, tool: str = "gmx mdrun") -> MdrunResult:
        """Check that the run is whole and say so in the record."""
        header, ending = head(self["log"], 200_000), tail(self["log"], 50_000)
        speed = re.findall(r"^Performance:\s+([\d.eE+-]+)", ending, re.M)
        steps = re.findall(r"^\s+Step\s+Time\s*\n\s+(\d+)\s", ending, re.M)
        done, wanted = int(steps[-1]) if steps else 0, input_value(header, "nsteps")
        dynamics = input_value(header, "integrator") in {"md", "md-vv", "md-vv-avek", "sd", "bd"}
        if dynamics and wanted is not None and int(wanted) >= 0 and done < int(wanted):
            raise MdrunError(
                tool,
                f"stopped at step {done} of {wanted} by a signal",
                log=self["log"],
                remedy="run again to go on from its checkpoint",
            )
        ns_per_day = float(speed[-1]) if speed and dynamics else float("nan")
        written = [self[e].name for e in ("trr", "xtc", "gro", "edr", "log") if self[e].exists()]
        self._write_record(
            {
                **_digests(tpr, plumed),
                "finished": True,
                "steps": done,
                "ns_per_day": None if math.isnan(ns_per_day) else ns_per_day,
                "files": written,
            }
        )
        return self.result(ns_per_day, done)

    def result(self, ns_per_day: float, steps: int) -> MdrunResult:
        """Name the files of the finished run."""
        return MdrunResult(self["trr"], self["log"], self["edr"], self["gro"], ns_per_day, steps)

    def recover_checkpoint(self) -> bool:
        """Tell whether there is a checkpoint; mdrun renames the old one just before it names the new one."""
        previous = self.folder / f"{self.name}_prev.cpt"
        if not self["cpt"].exists() and previous.exists():
            shutil.copyfile(previous, self["cpt"])
        return self["cpt"].exists()

    def _write_record(self, record: dict[str, object]) -> None:
        partial = self["json.partial"]
        write_text(partial, json.dumps(record, indent=1) + "\n")
        os.replace(partial, self["json"])


class ProgressWatch:
    """Report the last step that mdrun wrote to its screen output; the total comes from its log."""

    def __init__(self, files: RunFiles, report: ProgressCallback, total: int | None) -> None:
        self._files, self._report, self._total, self._last = files, report, total, -1

    def __call__(self) -> None:
        """Look once."""
        if self._total is None:
            value = input_value(head(self._files["log"], 100_000), "nsteps")
            self._total = int(value) if value is not None and int(value) > 0 else None
        steps = re.findall(r"\bstep (\d+)", tail(self._files["out"], 4096))
        if self._total is None or not steps or int(steps[-1]) == self._last:
            return
        self._last = int(steps[-1])
        self._report(min(self._last, self._total), self._total)


def input_value(log_head: str, key: str) -> str | None:
    """Return the value of an input parameter as the log echoes it."""
    match = re.search(rf"^\s+{re.escape(key)}\s+=\s+(\S+)", log_head, re.M)
    return match[1] if match else None


def existing(path: Path, what: str) -> Path:
    """Return the absolute path of an input file.

    Raises:
        SettingsError: if it is not there.
    """
    path = Path(path).absolute()
    if not path.is_file():
        raise SettingsError(f"{what} {path} does not exist", remedy="check the path")
    return path


def writable_folder(folder: Path) -> Path:
    """Return the absolute path of a folder, made if need be.

    Raises:
        StoreError: if it cannot be made or written.
    """
    folder = Path(folder).absolute()
    with storing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def write_text(path: Path, text: str) -> None:
    """Write a small file.

    Raises:
        StoreError: if the disk is full or the folder read-only.
    """
    with storing(path):
        path.write_text(text, encoding="utf-8")


@contextmanager
def storing(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals to write into one clear line."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise StoreError(
            f"{path} cannot be written ({error.strerror})",
            remedy="free space on the disk and run again" if full else "choose a folder you may write to",
        ) from error


def head(path: Path, size: int) -> str:
    """Return the first bytes of a text file, nothing if it is not there yet."""
    try:
        with path.open("rb") as stream:
            return stream.read(size).decode(errors="replace")
    except FileNotFoundError:
        return ""


def tail(path: Path, size: int) -> str:
    """Return the last bytes of a text file, nothing if it is not there yet."""
    try:
        with path.open("rb") as stream:
            stream.seek(max(0, stream.seek(0, os.SEEK_END) - size))
            return stream.read().decode(errors="replace")
    except FileNotFoundError:
        return ""


def _digests(tpr: Path, plumed: Path | None) -> dict[str, str]:
    """Hashes of a run's inputs as its record keeps them."""
    return {"tpr_sha256": _digest(tpr)} | ({} if plumed is None else {"plumed_sha256": _digest(plumed)})


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise StoreError(f"{path} is not one of our run records", remedy="use another folder or remove it") from error
    if not isinstance(record, dict):
        raise StoreError(f"{path} is not one of our run records", remedy="use another folder or remove it")
    return record
