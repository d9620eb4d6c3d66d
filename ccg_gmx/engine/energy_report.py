"""What ``ccg energy`` prints: our energies of a trajectory, per term, with or without the check by GROMACS."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from ccg_gmx.engine.energy_check import RELATIVE_TOLERANCE, TOLERANCE_KJ_MOL, compare_energies, require_finite
from ccg_gmx.engine.gromacs import Gmx
from ccg_gmx.errors import TrajectoryError
from ccg_gmx.molecule.energy import ForceField
from ccg_gmx.molecule.topology import check_images, parse_tpr_dump
from ccg_gmx.molecule.trajectory import make_whole, read_frames


def energy_table(tpr: Path, trajectory: Path, *, check: bool, limit: int | None = None) -> dict[str, Any]:
    """Evaluate every energy term of a trajectory.

    Args:
        tpr: run input file.
        trajectory: its frames.
        check: compare with ``gmx mdrun -rerun``.
        limit: at most so many frames (spread evenly when checking).

    Returns:
        frames, terms ``{name: {mean, max_abs_diff_kJ_mol}}``, frames_per_s and, when checking, max_abs_diff_kJ_mol of
        the total, rerun_frames_per_s, the precision of gmx, which tolerance each term keeps and
        whether all agree. Energies in kJ/mol.

    Raises:
        CcgError: unreadable or unsupported input.
    """
    gmx = Gmx.find()
    if check:
        return _checked(gmx, tpr, trajectory, limit)
    topology = parse_tpr_dump(gmx.dump(tpr))
    frames = read_frames(trajectory, topology.n_atoms)
    require_finite(trajectory, frames.positions)
    positions = make_whole(frames.positions, frames.box, topology.bonds)[:limit]
    if not len(positions):
        raise TrajectoryError(f"{trajectory} has no frames", expected="at least one")
    check_images(topology, positions)
    force_field = ForceField(topology)
    start = time.perf_counter()
    with torch.no_grad():
        terms = force_field.terms(torch.from_numpy(positions))
    seconds = time.perf_counter() - start
    return {
        "frames": len(positions),
        "terms": {name: {"mean": float(values.mean())} for name, values in terms.items()},
        "frames_per_s": len(positions) / seconds,
    }


def _checked(gmx: Gmx, tpr: Path, trajectory: Path, limit: int | None) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="ccg-energy-") as folder:
        comparison = compare_energies(gmx, tpr, trajectory, Path(folder), limit)
    return {
        "frames": comparison.frames,
        "terms": {
            name: {
                "mean": term.mean_kJ_mol,
                "max_abs_diff_kJ_mol": term.max_abs_diff_kJ_mol,
                "max_rel_diff": term.max_rel_diff,
                "binds": term.binds(),
            }
            for name, term in comparison.terms.items()
        },
        "max_abs_diff_kJ_mol": comparison.max_abs_diff_kJ_mol,
        "frames_per_s": comparison.frames_per_s,
        "rerun_frames_per_s": comparison.rerun_frames_per_s,
        "gmx_precision": comparison.precision,
        "tolerance_kJ_mol": TOLERANCE_KJ_MOL,
        "relative_tolerance": RELATIVE_TOLERANCE,
        "total_tolerance_kJ_mol": comparison.total_tolerance_kJ_mol,
        "agrees": comparison.within(),
    }
