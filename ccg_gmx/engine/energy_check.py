"""Compare the energies of this package with ``gmx mdrun -rerun``, frame by frame and term by term."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from ccg_gmx.engine.gromacs import Gmx
from ccg_gmx.errors import TrajectoryError
from ccg_gmx.molecule.energy import ForceField
from ccg_gmx.molecule.topology import Topology, check_images, parse_tpr_dump
from ccg_gmx.molecule.trajectory import make_whole, read_frames, write_trr
from ccg_gmx.records import FloatArray

TOLERANCE_KJ_MOL = 2e-3
"""Largest difference of a term that GROMACS' mixed precision explains; its double precision stays below 1e-4."""

RELATIVE_TOLERANCE = 1e-5
"""Or so much of the term's root mean square: what float32 leaves of sums of thousands of kJ/mol."""


SMALL_MOLECULE = 22
"""Atoms up to which the total may be 1e-2 kJ/mol from GROMACS', 1e-1 beyond."""


class TermDifference(NamedTuple):
    """How far one term is from GROMACS over all frames.

    Attributes:
        max_abs_diff_kJ_mol: largest difference.
        max_rel_diff: the same in units of the term's root mean square (0 for a term that is absent).
        mean_kJ_mol: mean of the term, GROMACS' numbers.
    """

    max_abs_diff_kJ_mol: float
    max_rel_diff: float
    mean_kJ_mol: float

    def binds(self, tolerance_kJ_mol: float = TOLERANCE_KJ_MOL) -> str | None:
        """Return which bound the term keeps, ``absolute`` or (only) ``relative``, or None (a nan keeps none)."""
        if self.max_abs_diff_kJ_mol <= tolerance_kJ_mol:
            return "absolute"
        return "relative" if self.max_rel_diff <= RELATIVE_TOLERANCE else None


@dataclass(frozen=True)
class EnergyComparison:
    """Result of :func:`compare_energies`.

    Attributes:
        frames: number of frames compared.
        terms: name as in ``gmx energy`` -> difference.
        max_abs_diff_kJ_mol: largest difference of the potential energy; a term that we do not know would show here.
        frames_per_s: speed of the float64 terms here.
        rerun_frames_per_s: speed of ``mdrun -rerun``, start-up included.
        n_atoms: atoms of the molecule.
        precision: ``mixed`` or ``double``, that of GROMACS; mixed is what limits the agreement.
    """

    frames: int
    terms: dict[str, TermDifference]
    max_abs_diff_kJ_mol: float
    frames_per_s: float
    rerun_frames_per_s: float
    n_atoms: int
    precision: str

    @property
    def worst_term(self) -> str:
        """Name of the term with the largest difference."""
        return max(self.terms, key=lambda name: self.terms[name].max_abs_diff_kJ_mol)

    def within(self, tolerance_kJ_mol: float = TOLERANCE_KJ_MOL) -> bool:
        """Return whether every term is within the tolerance or :data:`RELATIVE_TOLERANCE`, and so is the total."""
        terms = all(term.binds(tolerance_kJ_mol) for term in self.terms.values())
        return terms and self.max_abs_diff_kJ_mol <= self.total_tolerance_kJ_mol

    @property
    def total_tolerance_kJ_mol(self) -> float:
        """How far the potential energy may be from GROMACS': float32 sums of many atoms are coarser."""
        return 1e-2 if self.n_atoms <= SMALL_MOLECULE else 1e-1


def compare_energies(
    gmx: Gmx, tpr: Path, trajectory: Path, workdir: Path, limit: int | None = None
) -> EnergyComparison:
    """Compute all terms of a trajectory twice, here in float64 and with ``mdrun -rerun``.

    Both see the same float32 positions: whole molecules in the middle of the box. As the trajectory has them, GROMACS
    would round a bond across the box boundary at the size of the box, which costs up to 1e-3 kJ/mol by itself.

    Args:
        gmx: the GROMACS installation.
        tpr: run input file.
        trajectory: .trr, .xtc or .gro.
        workdir: folder for the rerun's files.
        limit: compare so many frames only, evenly spread; None for all.

    Raises:
        TopologyError: if the topology holds anything that the energies do not cover.
        TrajectoryError: if the trajectory cannot be read, or GROMACS saw another number of frames.
        MdrunError: if the rerun fails.
    """
    topology = parse_tpr_dump(gmx.dump(tpr))
    force_field = ForceField(topology)
    positions, box = _prepare(topology, trajectory, limit)
    check_images(topology, positions)
    workdir.mkdir(parents=True, exist_ok=True)
    frames_file = workdir / "whole.trr"
    write_trr(frames_file, positions, np.arange(len(positions), dtype=np.float64), box)
    begin = time.perf_counter()
    theirs = gmx.rerun(tpr, frames_file, workdir)
    middle = time.perf_counter()
    with torch.no_grad():
        ours = {name: values.numpy() for name, values in force_field.terms(torch.from_numpy(positions)).items()}
    end = time.perf_counter()
    potential = theirs["Potential"]
    if len(potential) != len(positions):
        raise TrajectoryError(
            f"mdrun -rerun reported {len(potential)} frames", expected=f"{len(positions)}", remedy=f"see {workdir}"
        )
    # GROMACS leaves out terms that the topology does not have
    absent = np.zeros_like(potential)
    return EnergyComparison(
        frames=len(positions),
        terms={name: _difference(values, theirs.get(name, absent)) for name, values in ours.items()},
        max_abs_diff_kJ_mol=_difference(np.sum(list(ours.values()), axis=0), potential).max_abs_diff_kJ_mol,
        frames_per_s=len(positions) / (end - middle),
        rerun_frames_per_s=len(positions) / (middle - begin),
        n_atoms=topology.n_atoms,
        precision=gmx.precision,
    )


def _prepare(topology: Topology, trajectory: Path, limit: int | None) -> tuple[FloatArray, FloatArray]:
    """Return positions that float32 holds exactly, whole and in the middle of the box, and the boxes."""
    frames = read_frames(trajectory, topology.n_atoms)
    require_finite(trajectory, frames.positions)
    count = len(frames.positions) if limit is None else min(limit, len(frames.positions))
    chosen = np.linspace(0, len(frames.positions) - 1, count).round().astype(np.int64)
    box = np.broadcast_to(topology.run.box_nm, (count, 3, 3)) if frames.box is None else frames.box[chosen]
    whole = make_whole(frames.positions[chosen], box, topology.bonds)
    middle = 0.5 * (whole.min(axis=1) + whole.max(axis=1))
    centred = whole + (0.5 * box.sum(axis=1) - middle)[:, None, :]
    return centred.astype(np.float32).astype(np.float64), box


def require_finite(trajectory: Path, positions: FloatArray) -> None:
    """Refuse frames with coordinates that are no numbers.

    Raises:
        TrajectoryError: naming the first such frame and atom.
    """
    bad = np.argwhere(~np.isfinite(positions))
    if len(bad):
        frame, atom, _ = bad[0]
        raise TrajectoryError(
            f"{trajectory} has a coordinate that is not a number in frame {frame + 1}, atom {atom + 1}",
            expected="finite positions",
            remedy="the run has probably exploded; repeat it with a shorter time step",
        )


def _difference(ours: FloatArray, theirs: FloatArray) -> TermDifference:
    largest = float(np.abs(ours - theirs).max())
    scale = float(np.sqrt(np.mean(theirs**2)))
    return TermDifference(largest, largest / scale if scale else 0.0, float(theirs.mean()))
