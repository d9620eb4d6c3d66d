"""Short minimisations of restored frames with GROMACS, beads frozen."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from ccg_gmx.backmap.system import BackmapSystem
from ccg_gmx.engine.gromacs import Gmx
from ccg_gmx.engine.mdp import minimise
from ccg_gmx.errors import SettingsError
from ccg_gmx.molecule.trajectory import read_frames, write_trr
from ccg_gmx.records import FloatArray

LONGEST_CUTOFF_NM = 1.5
MARGIN_NM = 1.0


def minimise_frames(system: BackmapSystem, restored: Path, top: Path, steps: int) -> dict[str, Any]:
    """Minimise every frame of a restored trajectory; writes ``<stem>.min.trr`` beside it.

    Args:
        system: of the frames.
        restored: .xtc or .trr.
        top: GROMACS topology of exactly these atoms.
        steps: steps of steepest descent.

    Returns:
        Number of frames, energies before and after in kJ/mol, largest bead deviation, the file.

    Raises:
        SettingsError, GromppError, MdrunError: in one line.
    """
    if not top.is_file():
        raise SettingsError(f"--minimise {top}: no such file", expected="the topology of the restored molecule")
    gmx = Gmx.find()
    frames = read_frames(restored, len(system.atoms))
    found = np.empty_like(frames.positions)
    energies = np.empty((len(found), 2))
    with tempfile.TemporaryDirectory(prefix="ccg-backmap-") as name:
        for k, positions in enumerate(frames.positions):
            found[k], energies[k] = _minimise(gmx, system, positions, top.resolve(), steps, Path(name) / f"{k}")
    deviation = float(np.abs(found[:, system.beads] - frames.positions[:, system.beads]).max())
    found[:, system.beads] = frames.positions[:, system.beads]
    path = restored.with_name(f"{restored.stem}.min.trr")
    box = np.zeros((len(found), 3, 3)) if frames.box is None else frames.box
    write_trr(path, found, frames.time, box)
    return {
        "frames": len(found),
        "energy_before_kJ_mol": _quantiles(energies[:, 0]),
        "energy_after_kJ_mol": _quantiles(energies[:, 1]),
        "max_bead_deviation_nm": deviation,
        "file": str(path),
    }


def _minimise(
    gmx: Gmx, system: BackmapSystem, positions: FloatArray, top: Path, steps: int, folder: Path
) -> tuple[FloatArray, FloatArray]:
    """One frame ``[N, 3]`` nm minimised, and its potential energy before and after."""
    folder.mkdir()
    low, extent = positions.min(axis=0), float(np.ptp(positions, axis=0).max())
    cutoff = min(extent + 0.5, LONGEST_CUTOFF_NM)
    side = extent + 2.0 * cutoff + MARGIN_NM
    shift = 0.5 * (side - np.ptp(positions, axis=0)) - low
    _write_gro(folder / "in.gro", system, positions + shift, side)
    _write_index(folder / "in.ndx", system)
    mdp = minimise(steps=steps, cutoff_nm=cutoff).with_options(
        freezegrps="Beads", freezedim="Y Y Y", nstxout=steps, nstenergy=1
    )
    tpr = gmx.grompp(mdp, folder / "in.gro", top, folder / "min.tpr", index=folder / "in.ndx", maxwarn=3)
    result = gmx.mdrun(tpr, folder, name="min")
    last = read_frames(result.trajectory, len(positions)).positions[-1]
    potential = gmx.energies(result.edr)["Potential"]
    return last - shift, potential[[0, -1]]


def _write_gro(path: Path, system: BackmapSystem, positions: FloatArray, side: float) -> None:
    """A .gro with eight decimals, which GROMACS reads by the distance of the points."""
    atoms = system.atoms
    lines = ["restored", f"{len(atoms):5d}"]
    for k, (x, y, z) in enumerate(positions):
        head = f"{int(atoms.residue_ids[k]) % 100000:5d}{atoms.residue_names[k]:<5.5s}{atoms.names[k]:>5.5s}"
        lines.append(f"{head}{(k + 1) % 100000:5d}{x:13.8f}{y:13.8f}{z:13.8f}")
    lines.append(f"{side:.5f} {side:.5f} {side:.5f}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _write_index(path: Path, system: BackmapSystem) -> None:
    groups = {"System": range(len(system.atoms)), "Beads": system.beads.tolist()}
    lines = []
    for name, members in groups.items():
        lines += [f"[ {name} ]", *(str(atom + 1) for atom in members)]
    path.write_text(os.linesep.join(lines) + "\n", encoding="utf-8")


def _quantiles(values: FloatArray) -> dict[str, float]:
    low, middle, high = np.quantile(values, [0.05, 0.5, 0.95])
    return {"p05": float(low), "median": float(middle), "p95": float(high)}
