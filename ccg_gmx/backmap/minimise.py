"""Short minimisations of restored frames with GROMACS, beads frozen, beside those of fine frames."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ccg_gmx.backmap.system import BackmapSystem
from ccg_gmx.engine.gromacs import Gmx
from ccg_gmx.engine.mdp import minimise
from ccg_gmx.engine.protocol import Engine
from ccg_gmx.errors import SettingsError
from ccg_gmx.molecule.trajectory import read_frames, write_trr
from ccg_gmx.records import FloatArray

LONGEST_CUTOFF_NM = 1.5
MARGIN_NM = 1.0

Progress = Callable[[int, int], None]
"""Called with (frames done, frames in total)."""


@dataclass(frozen=True)
class Minimiser:
    """Steepest descent with frozen beads.

    Attributes:
        system: of the frames.
        top: GROMACS topology of exactly these atoms.
        steps: steps, at most.
        gmx: what runs them.
    """

    system: BackmapSystem
    top: Path
    steps: int
    gmx: Engine

    def run(self, positions: FloatArray, folder: Path, progress: Progress | None = None) -> Minimised:
        """Minimise frames; what is in the folder already is not run again.

        Args:
            positions: ``[T, N, 3]`` nm.
            folder: for GROMACS' files, a folder for each frame.
            progress: called after every frame.

        Raises:
            GromppError, MdrunError: in one line.
        """
        found = np.empty_like(positions)
        energies = np.empty((len(found), 2))
        for k, frame in enumerate(positions):
            found[k], energies[k] = self._one(frame, folder / f"{k}")
            if progress is not None:
                progress(k + 1, len(found))
        moved = np.abs(self.system.bead_positions(found) - self.system.bead_positions(positions))
        deviation = float(moved.max(initial=0.0))
        if not self.system.centres:  # frozen: GROMACS' single precision alone moved them
            beads = self.system.beads
            found[:, beads] = positions[:, beads]
        return Minimised(found, energies[:, 0], energies[:, 1], deviation)

    def _one(self, positions: FloatArray, folder: Path) -> tuple[FloatArray, FloatArray]:
        """One frame ``[N, 3]`` nm minimised, and its potential energy before and after."""
        folder.mkdir(parents=True, exist_ok=True)
        low, extent = positions.min(axis=0), float(np.ptp(positions, axis=0).max())
        cutoff = min(extent + 0.5, LONGEST_CUTOFF_NM)
        side = extent + 2.0 * cutoff + MARGIN_NM
        shift = 0.5 * (side - np.ptp(positions, axis=0)) - low
        tpr = folder / "min.tpr"
        if not tpr.exists():
            _write_gro(folder / "in.gro", self.system, positions + shift, side)
            _write_index(folder / "in.ndx", self.system)
            mdp = minimise(steps=self.steps, cutoff_nm=cutoff).with_options(nstxout=self.steps, nstenergy=1)
            if not self.system.centres:
                mdp = mdp.with_options(freezegrps="Beads", freezedim="Y Y Y")
            self.gmx.grompp(mdp, folder / "in.gro", self.top, tpr, index=folder / "in.ndx", maxwarn=3)
        result = self.gmx.mdrun(tpr, folder, name="min")
        last = read_frames(result.trajectory, len(positions)).positions[-1]
        return last - shift, self.gmx.energies(result.edr)["Potential"][[0, -1]]


@dataclass(frozen=True, eq=False)
class Minimised:
    """Minimised frames.

    Attributes:
        positions: ``[T, N, 3]`` nm; beads that are atoms are where they were.
        before: ``[T]`` kJ/mol.
        after: ``[T]`` kJ/mol.
        bead_deviation_nm: how far a bead moved, at most: an atom by GROMACS' rounding, before it was put back; a centre
            by the minimisation, which cannot freeze it.
    """

    positions: FloatArray
    before: FloatArray
    after: FloatArray
    bead_deviation_nm: float


def minimise_frames(
    system: BackmapSystem,
    restored: Path,
    top: Path,
    steps: int,
    *,
    frames: int | None = None,
    fine: FloatArray | None = None,
    out: Path | None = None,
    folder: Path | None = None,
    gmx: Engine | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Minimise frames of a restored trajectory; writes them as .trr, and energies as .npz of the same stem.

    Args:
        system: of the frames.
        restored: .xtc or .trr.
        top: GROMACS topology of exactly these atoms.
        steps: steps of steepest descent.
        frames: at most so many restored frames, evenly spread; None for all.
        fine: ``[H, N, 3]`` nm held-out fine frames; as many of them are minimised for comparison.
        out: .trr to write; None for ``<stem>.min.trr`` beside the restored frames.
        folder: for the files of the runs, to go on from; None for a temporary one.
        gmx: what runs them; None for the gmx of this machine.
        progress: called with (frames done, frames in total).

    Returns:
        Number of frames, energies before and after in kJ/mol, those of fine frames, largest bead deviation, the files.

    Raises:
        SettingsError, GromppError, MdrunError: in one line.
    """
    if not top.is_file():
        raise SettingsError(f"--minimise {top}: no such file", expected="the topology of the restored molecule")
    given = read_frames(restored, len(system.atoms))
    chosen = _spread(len(given.positions), frames)
    others = np.empty((0, len(system.atoms), 3)) if fine is None else fine[_spread(len(fine), len(chosen))]
    minimiser = Minimiser(system, top.resolve(), steps, gmx or Gmx.find())
    with tempfile.TemporaryDirectory(prefix="ccg-backmap-") as name:
        place = folder or Path(name)
        done, compared = (
            minimiser.run(positions, place / kind, _counted(progress, before, len(chosen) + len(others)))
            for kind, positions, before in (
                ("restored", given.positions[chosen], 0),
                ("fine", others, len(chosen)),
            )
        )
    path = out or restored.with_name(f"{restored.stem}.min.trr")
    box = np.zeros((len(chosen), 3, 3)) if given.box is None else given.box[chosen]
    write_trr(path, done.positions, given.time[chosen], box)
    table = _write_table(path.with_suffix(".npz"), chosen, done, compared)
    facts: dict[str, Any] = {
        "frames": len(chosen),
        "steps": steps,
        "energy_before_kJ_mol": _quantiles(done.before),
        "energy_after_kJ_mol": _quantiles(done.after),
    }
    if len(others):
        facts["energy_fine_kJ_mol"] = _quantiles(compared.before)
        facts["energy_fine_after_kJ_mol"] = _quantiles(compared.after)
    return facts | {"max_bead_deviation_nm": done.bead_deviation_nm, "file": str(path), "table": str(table)}


def _spread(count: int, most: int | None) -> FloatArray:
    """Numbers of at most so many frames, evenly spread."""
    return np.unique(np.linspace(0, count - 1, min(count, most or count)).round().astype(np.int64))


def _counted(progress: Progress | None, before: int, total: int) -> Progress | None:
    return None if progress is None else (lambda done, _: progress(before + done, total))


def _write_table(path: Path, chosen: FloatArray, restored: Minimised, fine: Minimised) -> Path:
    """Energies of every frame, kJ/mol."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.npz")
    np.savez(
        partial,
        frame=chosen,
        before=restored.before,
        after=restored.after,
        fine_before=fine.before,
        fine_after=fine.after,
    )
    os.replace(partial, path)
    return path


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
