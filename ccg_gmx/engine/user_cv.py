"""Frames to learn collective variables from: COLVAR files or trajectories, perhaps in states, perhaps biased."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from scipy.special import logsumexp

from ccg_gmx.cv.data import Column, CvData
from ccg_gmx.engine.user_colvar import ENERGY_UNITS
from ccg_gmx.engine.user_frames import BiasColumn, Progress, read_measured
from ccg_gmx.errors import SettingsError
from ccg_gmx.export.contract import torsion
from ccg_gmx.molecule.colvar_runs import read_colvars
from ccg_gmx.molecule.internal_paths import internal_paths
from ccg_gmx.records import FloatArray, IntArray
from ccg_gmx.units import thermal_energy

TRAJECTORIES = (".xtc", ".trr")


@dataclass(frozen=True)
class CvRequest:
    """What to read.

    Attributes:
        groups: name of a state -> its files; one group with an empty name without states.
        columns: columns of COLVAR files.
        tpr: run input, for trajectories.
        torsions: name -> four atoms, 1-based, of trajectories.
        distances: name -> two atoms, 1-based, of trajectories.
        biases: biases that acted on the frames, summed; for COLVAR files columns of their own.
        log_weights: column with the logarithm of weights of frames of unbiased dynamics; COLVAR files only.
        temperature_K: temperature.
        energy_unit: of the biases.
        start_ps: leave out frames before this time.
        stride: keep every ``stride``-th of the others.
    """

    groups: Mapping[str, tuple[Path, ...]]
    columns: tuple[str, ...] = ()
    tpr: Path | None = None
    torsions: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    distances: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    biases: tuple[BiasColumn, ...] = ()
    log_weights: str | None = None
    temperature_K: float | None = None
    energy_unit: str = "kJ/mol"
    start_ps: float = 0.0
    stride: int = 1


@dataclass(frozen=True)
class _Part:
    """Frames of one group of files."""

    values: FloatArray
    run: IntArray
    time: FloatArray
    log_w: FloatArray | None
    columns: tuple[Column, ...]
    notes: tuple[str, ...]


def read_cv_data(request: CvRequest, progress: Progress | None = None) -> tuple[CvData, tuple[str, ...]]:
    """Read frames, and how files were taken together, in words.

    Args:
        request: what to read.
        progress: called with (frames done, frames in all) of each group of trajectories.

    Raises:
        SettingsError, TrajectoryError, TopologyError: in one line, whatever does not fit.
        ToolMissingError, GmxDumpError: trajectories, and no gmx, or it cannot read the .tpr.
    """
    if request.biases and request.log_weights:
        raise SettingsError("a bias and log-weights", expected="one or the other")
    read = _read_trajectories if _of_trajectories(request) else _read_colvars
    parts = [read(request, files, progress) for files in request.groups.values()]
    for part in parts:
        if part.columns != parts[0].columns:
            raise SettingsError("files that disagree on the period of a column", expected="the same in all states")
    first = np.concatenate([[0], np.cumsum([part.run.max() + 1 for part in parts])])
    states = tuple(name for name in request.groups if name)
    data = CvData(
        values=np.concatenate([part.values for part in parts]),
        columns=parts[0].columns,
        run=np.concatenate([part.run + offset for part, offset in zip(parts, first, strict=False)]),
        time=np.concatenate([part.time for part in parts]),
        state=np.repeat(np.arange(len(parts)), [len(part.time) for part in parts]),
        states=states,
        log_w=None if parts[0].log_w is None else np.concatenate([p.log_w for p in parts if p.log_w is not None]),
        weighting="bias" if request.biases else "start" if request.log_weights else "none",
    )
    return data, tuple(dict.fromkeys(note for part in parts for note in part.notes))


def _of_trajectories(request: CvRequest) -> bool:
    files = [path for group in request.groups.values() for path in group]
    if not files:
        raise SettingsError("no file to learn from", expected="COLVAR files, or trajectories and --tpr")
    kinds = {path.suffix in TRAJECTORIES for path in files}
    if len(kinds) > 1:
        raise SettingsError("trajectories and COLVAR files together", expected="one kind")
    trajectories = kinds.pop()
    if trajectories and (request.tpr is None or not (request.torsions or request.distances)):
        raise SettingsError("trajectories alone", expected="--tpr, and --torsion or --distance")
    if trajectories and (request.columns or request.log_weights):
        raise SettingsError("columns of trajectories", expected="--torsion and --distance, or COLVAR files")
    if not trajectories and (request.tpr or request.torsions or request.distances):
        raise SettingsError("--tpr, --torsion or --distance with COLVAR files", expected="--arg", remedy="use --arg")
    if not trajectories and not request.columns:
        raise SettingsError("no column to learn from", expected="--arg NAME, columns of the COLVAR files")
    return trajectories


# ---------------------------------------------------------------- COLVAR files


def _read_colvars(request: CvRequest, files: Sequence[Path], progress: Progress | None) -> _Part:
    if any(bias.files for bias in request.biases):
        raise SettingsError("a bias from other files", expected="a column of the COLVAR files themselves")
    own = [bias.column for bias in request.biases] + ([request.log_weights] if request.log_weights else [])
    n = len(request.columns)
    read = read_colvars(files, [*request.columns, *own], start=request.start_ps, stride=request.stride)
    columns = tuple(
        Column(name, "rad" if domain else "", domain)
        for name, domain in zip(request.columns, read.domains, strict=False)
    )
    log_w = None
    if own:
        log_w = read.values[:, n:].sum(axis=1) * (_per_kT(request) if request.biases else 1.0)
        log_w -= logsumexp(log_w) - np.log(len(log_w))  # every state has weights of mean 1, wherever its bias is zero
    return _Part(read.values[:, :n], read.run, read.time, log_w, columns, read.notes)


def _per_kT(request: CvRequest) -> float:
    scale = ENERGY_UNITS[request.energy_unit]
    if scale is None:
        return 1.0
    if request.temperature_K is None:
        raise SettingsError("a bias without a temperature", expected="--temperature")
    return scale / thermal_energy(request.temperature_K)


# ---------------------------------------------------------------- trajectories


def _read_trajectories(request: CvRequest, files: Sequence[Path], progress: Progress | None) -> _Part:
    assert request.tpr is not None  # _of_trajectories
    if len(request.groups) > 1 and request.biases:
        raise SettingsError("a bias on trajectories of several states", expected="COLVAR files, with --bias COLUMN")
    if request.biases and request.energy_unit == "eV":
        raise SettingsError("a bias in eV on trajectories", expected="kJ/mol, kcal/mol or kT")
    names = (*request.torsions, *request.distances)
    if len(set(names)) < len(names):
        raise SettingsError(f"variables named {', '.join(names)}", expected="a name each")
    read = read_measured(
        request.tpr,
        files,
        names,
        lambda topology: internal_paths(topology, request.torsions, request.distances),
        biases=request.biases,
        bias_units=request.energy_unit,
        temperature_K=request.temperature_K,
        start_ps=request.start_ps,
        stride=request.stride,
        progress=progress,
    )
    angle = torsion("").periodic
    columns = [Column(k, "rad", angle, f"TORSION ATOMS={_list(v)}") for k, v in request.torsions.items()]
    columns += [Column(k, "nm", None, f"DISTANCE ATOMS={_list(v)}") for k, v in request.distances.items()]
    return _Part(read.s, read.run, read.time, read.u_bias, tuple(columns), read.notes)


def _list(atoms: Sequence[int]) -> str:
    return ",".join(map(str, atoms))
