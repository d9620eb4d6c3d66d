"""One folder with a coarse model written for several engines, and what is needed to check that they agree.

``DIR/export.json`` says what is there; ``model.npz``, ``topology.json`` and ``frames.npz`` are the model itself and the
frames that :mod:`ccg_gmx.engine.export_check` evaluates, in numbers that float32 holds exactly, as GROMACS computes
with no others.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ccg_gmx.errors import SettingsError, StoreError, ToolMissingError
from ccg_gmx.export.bundle_text import gromacs_readme, plumed_readme, top_readme
from ccg_gmx.export.coarse_system import CoarseSystem, coarse_system
from ccg_gmx.export.folder import new_folder, write_texts
from ccg_gmx.export.gromacs_legacy import FOLDER, legacy_files
from ccg_gmx.export.gromacs_system import gromacs_files
from ccg_gmx.export.lammps_system import lammps_files
from ccg_gmx.export.openmm_system import openmm_files
from ccg_gmx.export.plumed_pairs import pair_files
from ccg_gmx.molecule.coarse_topology import CoarseTopology
from ccg_gmx.potential.model import CoarseModel
from ccg_gmx.records import BeadFrames, FloatArray

ENGINES = ("gromacs", "lammps", "openmm", "plumed")
FORMAT, VERSION = "ccg export", 1
_MANIFEST = "export.json"
CHECK_FRAMES = 20
_NOISE_NM = 0.002  # of frames made up where fewer were given: less than thermal motion stretches a bond by


@dataclass(frozen=True)
class Manifest:
    """What an export holds.

    Attributes:
        engines: written, each in a folder of its name.
        skipped: engine -> why it was left out.
        molecule_pairs: whether the pairs are bonds of GROMACS' topology (a single molecule).
        frames: frames for the check; ``made_up`` of them are copies of others with noise.
        made_up: see there.
    """

    engines: tuple[str, ...]
    skipped: dict[str, str]
    molecule_pairs: bool
    frames: int
    made_up: int


@dataclass(frozen=True)
class Bundle:
    """A read export.

    Attributes:
        folder: where it is.
        manifest: what it holds.
        system: model, topology and the frames of the check.
    """

    folder: Path
    manifest: Manifest
    system: CoarseSystem


def write_bundle(
    folder: Path,
    model: CoarseModel,
    topology: CoarseTopology,
    frames: BeadFrames,
    engines: Sequence[str],
    mdp_text: Callable[[float], str],
    *,
    skip_impossible: bool = False,
    seed: int = 1,
) -> Manifest:
    """Write a model for several engines; the folder appears when all is there.

    Args:
        folder: to write; one of that name is replaced.
        model: the potentials.
        topology: the beads.
        frames: the last one is where runs start; up to 20, evenly spread, are kept for the check.
        engines: any of :data:`ENGINES`.
        mdp_text: makes GROMACS' run parameters from the longest cut-off that the box allows, nm.
        skip_impossible: leave out an engine that cannot have this model, and say why, rather than stop.
        seed: of the noise of made-up frames.

    Raises:
        SettingsError: if model, topology and frames do not belong together, or an engine cannot have this model.
        ToolMissingError: if OpenMM, which writes its own files, is not installed.
        StoreError: if the folder cannot be written.
    """
    system = _rounded(coarse_system(model, topology, frames))
    checked, made_up = _check_frames(system, seed)
    mdp = mdp_text(_cutoff_nm(system.box))
    written, skipped = {}, {}
    for engine in dict.fromkeys(engines):
        try:
            written[engine] = _files(engine, system, mdp)
        except (SettingsError, ToolMissingError) as error:
            if not skip_impossible:
                raise
            skipped[engine] = str(error)
    if not written:
        raise SettingsError(
            "no engine can have this model", expected="at least one", remedy="; ".join(skipped.values())
        )
    manifest = Manifest(tuple(written), skipped, _molecule_pairs(system), len(checked.positions), made_up)
    with new_folder(folder) as temporary:
        for engine, files in written.items():
            write_texts(temporary / engine, files)
        model.save(temporary / "model.npz")
        topology.save(temporary / "topology.json")
        _save_frames(temporary / "frames.npz", checked)
        write_texts(temporary, {"README.md": top_readme(manifest.engines, skipped), _MANIFEST: _text(manifest)})
    return manifest


def is_bundle(folder: Path) -> bool:
    """Whether a folder is an export, whole or not."""
    return (folder / _MANIFEST).is_file()


def read_bundle(folder: Path) -> Bundle:
    """Read what :func:`write_bundle` wrote.

    Raises:
        StoreError: if it is no export, or of another version.
        CcgError: if one of its files is damaged.
    """
    remedy = "write it again with ccg export"
    try:
        content: dict[str, Any] = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        if content.pop("format") != FORMAT or content.pop("version") != VERSION:
            raise StoreError(f"{folder} is an export of another version", expected=f"{VERSION}", remedy=remedy)
        manifest = Manifest(**content | {"engines": tuple(content["engines"])})
        with np.load(folder / "frames.npz", allow_pickle=False) as archive:
            frames = BeadFrames(archive["positions"], archive["time"], archive["box"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise StoreError(
            f"{folder} is no whole export ({reason})", expected="a folder of ccg export", remedy=remedy
        ) from (error)
    model, topology = CoarseModel.load(folder / "model.npz"), CoarseTopology.load(folder / "topology.json")
    return Bundle(folder, manifest, coarse_system(model, topology, frames))


def _files(engine: str, system: CoarseSystem, mdp: str) -> dict[str, str]:
    if engine == "gromacs":
        return _gromacs_files(system, mdp)
    if engine == "plumed":
        pairs = pair_files(system.model, system.topology, print_every=1000)
        return pairs | {"README.md": plumed_readme(bool(system.topology.bonded_names))}
    return {"lammps": lammps_files, "openmm": openmm_files}[engine](system)


def _gromacs_files(system: CoarseSystem, mdp: str) -> dict[str, str]:
    inside = _molecule_pairs(system)
    files = gromacs_files(system, mdp, molecule_pairs=inside)
    bulk = bool(system.model.pairs) and not inside
    if bulk:
        files |= pair_files(system.model, system.topology, print_every=1000)
        files |= {f"{FOLDER}/{name}": text for name, text in legacy_files(system, mdp).items()}
    return files | {"README.md": gromacs_readme([name for name in files if name.startswith("table_")], inside, bulk)}


def _molecule_pairs(system: CoarseSystem) -> bool:
    return system.n_molecules == 1 and bool(system.model.pairs)


def _cutoff_nm(box: FloatArray) -> float:
    """Cut-off for GROMACS' own pairs, which have no energy: as short as is safe."""
    shortest = float(np.diagonal(box, axis1=1, axis2=2).min())
    return min(0.5, 0.4 * shortest)


def _rounded(system: CoarseSystem) -> CoarseSystem:
    """The same system in numbers that float32 holds; a box may have become smaller, so it is checked again."""
    x, box = (a.astype(np.float32).astype(np.float64) for a in (system.positions, system.box))
    return coarse_system(system.model, system.topology, BeadFrames(x, np.arange(len(x), dtype=np.float64), box))


def _check_frames(system: CoarseSystem, seed: int) -> tuple[CoarseSystem, int]:
    """Up to 20 frames, evenly spread; where there are fewer, copies with Gaussian noise make up the number."""
    count = len(system.positions)
    chosen = np.linspace(0, count - 1, min(count, CHECK_FRAMES)).round().astype(np.int64)
    repeated = np.resize(chosen, CHECK_FRAMES)
    x = system.positions[repeated]
    made_up = CHECK_FRAMES - len(chosen)
    noise = np.random.default_rng(seed).normal(0.0, _NOISE_NM, x[len(chosen) :].shape)
    x = np.concatenate([x[: len(chosen)], x[len(chosen) :] + noise])
    return _rounded(replace(system, positions=x, box=system.box[repeated])), made_up


def _save_frames(path: Path, system: CoarseSystem) -> None:
    with path.open("wb") as stream:
        time = np.arange(len(system.positions), dtype=np.float64)
        np.savez(stream, positions=system.positions, box=system.box, time=time)


def _text(manifest: Manifest) -> str:
    content: Mapping[str, Any] = {"format": FORMAT, "version": VERSION, **asdict(manifest)}
    return json.dumps(content, indent=1) + "\n"
