"""Beads as a GROMACS structure file."""

from __future__ import annotations

from pathlib import Path

from ccg_gmx.molecule.coarse_topology import CoarseTopology
from ccg_gmx.records import FloatArray

_BOX_ORDER = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1))
"""Order of the box components in a .gro: the diagonal first."""


def write_bead_gro(
    path: Path, topology: CoarseTopology, positions: FloatArray, box: FloatArray | None, title: str = "Beads"
) -> None:
    """Write beads in .gro format: names cut to five letters, numbers modulo 100,000.

    Args:
        path: the file.
        topology: the beads.
        positions: ``[n, 3]`` nm, written with three decimals.
        box: ``[3, 3]`` nm, rows are box vectors; None without a box.
        title: first line.
    """
    names = zip(topology.residue_ids.tolist(), topology.residue_names, topology.bead_names, strict=True)
    lines = [title, str(topology.n_beads)]
    for number, ((residue, residue_name, name), place) in enumerate(zip(names, positions.tolist(), strict=True), 1):
        x, y, z = place
        head = f"{residue % 100000:5d}{residue_name[:5]:<5}{name[:5]:>5}{number % 100000:5d}"
        lines.append(f"{head}{x:8.3f}{y:8.3f}{z:8.3f}")
    entries = [0.0] * 9 if box is None else [float(box[row, column]) for row, column in _BOX_ORDER]
    lines.append("".join(f"{entry:10.5f}" for entry in (entries if any(entries[3:]) else entries[:3])))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
