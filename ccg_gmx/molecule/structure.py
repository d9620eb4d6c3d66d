"""Starting structures: positions in and out of .gro files, by MDAnalysis."""

from __future__ import annotations

import warnings
from pathlib import Path

import MDAnalysis
import numpy as np

from ccg_gmx.errors import TopologyError
from ccg_gmx.records import FloatArray

_NM_PER_ANGSTROM = 0.1


def read_structure(path: Path) -> tuple[FloatArray, FloatArray]:
    """Return positions ``[N, 3]`` nm and box ``[3, 3]`` nm of a structure file.

    Raises:
        TopologyError: if the file is not a readable structure with a box.
    """
    universe = _open(path)
    box = universe.trajectory.ts.triclinic_dimensions
    if box is None or not np.any(box):
        raise TopologyError(
            f"{path} has no box", expected="a box longer than twice the cut-off", remedy="gmx editconf -box 6 6 6"
        )
    return universe.atoms.positions.astype(np.float64) * _NM_PER_ANGSTROM, box.astype(np.float64) * _NM_PER_ANGSTROM


def write_structure(path: Path, positions: FloatArray, like: Path) -> None:
    """Write ``positions [N, 3]`` nm in .gro format, centred in the box, with the names and box of another structure."""
    universe = _open(like)
    if len(universe.atoms) != len(positions):
        raise TopologyError(f"{like} has {len(universe.atoms)} atoms", expected=f"{len(positions)}")
    angstrom = positions / _NM_PER_ANGSTROM
    centre = universe.trajectory.ts.triclinic_dimensions.sum(axis=0) / 2
    universe.atoms.positions = angstrom - angstrom.mean(axis=0) + centre
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        universe.atoms.write(str(path), convert_units=True)


def _open(path: Path) -> MDAnalysis.Universe:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return MDAnalysis.Universe(str(path), to_guess=())
    except Exception as error:  # its parsers raise whatever they stumble over, StopIteration for one
        reason = str(error) or type(error).__name__
        raise TopologyError(f"cannot read structure {path}: {reason}", expected="a .gro or .pdb file") from None
