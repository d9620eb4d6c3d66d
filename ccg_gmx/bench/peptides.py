"""Test molecules of any size: ACE-(ALA)n-NME as a straight alpha helix, and its GROMACS input made by pdb2gmx."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ccg_gmx.engine.gromacs import Gmx
from ccg_gmx.engine.mdp import fine_run
from ccg_gmx.engine.process import capture
from ccg_gmx.errors import ToolError
from ccg_gmx.records import FloatArray

FORCE_FIELD = "amber99sb-ildn"
_PHI, _PSI, _OMEGA = np.radians([-57.0, -47.0, 180.0])
# Standard lengths (Angstrom) and angles of the backbone: Engh and Huber, doi:10.1107/S0108767391001071
_C_N, _N_CA, _CA_C, _C_O, _CA_CB = 1.33, 1.46, 1.53, 1.23, 1.53
_CA_C_N, _C_N_CA, _N_CA_C, _CA_C_O, _N_CA_CB = np.radians([116.2, 121.7, 111.0, 120.5, 110.5])


def helix(residues: int) -> list[tuple[str, str, int, FloatArray]]:
    """Build the heavy atoms of ACE-(ALA)n-NME.

    Args:
        residues: number n of alanines.

    Returns:
        name, residue name, residue number and position ``[3]`` in Angstrom of each atom.
    """
    methyl, carbon = np.zeros(3), np.array([_CA_C, 0.0, 0.0])
    nitrogen = carbon + _C_N * np.array([-np.cos(_CA_C_N), np.sin(_CA_C_N), 0.0])
    oxygen = _place(carbon, methyl, nitrogen, _C_O, _CA_C_O, np.pi, apart=True)
    atoms = [("CH3", "ACE", 1, methyl), ("C", "ACE", 1, carbon), ("O", "ACE", 1, oxygen)]
    before, at_c, at_n = methyl, carbon, nitrogen
    for number in range(2, residues + 2):
        alpha = _place(at_n, at_c, before, _N_CA, _C_N_CA, _OMEGA)
        carbonyl = _place(alpha, at_n, at_c, _CA_C, _N_CA_C, _PHI)
        # minus 120 degrees: an L amino acid
        beta = _place(alpha, at_n, at_c, _CA_CB, _N_CA_CB, _PHI - np.radians(120.0))
        oxygen = _place(carbonyl, alpha, at_n, _C_O, _CA_C_O, _PSI + np.pi)
        names = ("N", at_n), ("CA", alpha), ("CB", beta), ("C", carbonyl), ("O", oxygen)
        atoms += [(name, "ALA", number, position) for name, position in names]
        before, at_c, at_n = alpha, carbonyl, _place(carbonyl, alpha, at_n, _C_N, _CA_C_N, _PSI)
    last = _place(at_n, at_c, before, _N_CA, _C_N_CA, _OMEGA)
    return [*atoms, ("N", "NME", residues + 2, at_n), ("CH3", "NME", residues + 2, last)]


def _place(
    p: FloatArray, a: FloatArray, t: FloatArray, bond: float, angle: float, torsion: float, *, apart: bool = False
) -> FloatArray:
    """Place x with given |x-p|, angle x-p-a and dihedral x-p-a-t; ``apart``: t is bonded to p, not to a (improper)."""
    along = (p - a) / np.linalg.norm(p - a)
    normal = np.cross((p if apart else a) - t, along)
    normal /= np.linalg.norm(normal)
    side = np.cross(normal, along)
    across = np.cos(torsion) * side + np.sin(torsion) * normal
    return p - bond * np.cos(angle) * along + bond * np.sin(angle) * across


def polyalanine(gmx: Gmx, residues: int, folder: Path, *, steps: int = 1000, output_every: int = 10) -> Path:
    """Make ``run.tpr`` of ACE-(ALA)n-NME in vacuum, all pairs within the cut-off, beside its start ``box.gro``.

    Another one, ``rerun.tpr``, writes nothing but energies, so that a timed rerun does not copy its frames.

    Args:
        gmx: the GROMACS installation.
        residues: number n of alanines; 22 atoms for 1, 10 more for each other.
        folder: folder for all files, which must exist.
        steps: steps of the run.
        output_every: steps between frames.

    Raises:
        ToolError: if pdb2gmx or editconf fail.
        GromppError: if grompp fails.
    """
    line = "ATOM  {:5d}  {:<3s} {:3s} A{:4d}    {:8.3f}{:8.3f}{:8.3f}  1.00  0.00\n"
    atoms = enumerate(helix(residues), start=1)
    text = "".join(line.format(index, *atom[:3], *atom[3]) for index, atom in atoms) + "TER\nEND\n"
    (folder / "heavy.pdb").write_text(text, encoding="utf-8")
    _tool(gmx, folder, "pdb2gmx", "-f", "heavy.pdb", "-ff", FORCE_FIELD, "-water", "none", "-ignh", "-o", "built.gro")
    cutoff_nm = 2.5 + 0.16 * residues  # a helix grows by 0.15 nm per residue
    _tool(gmx, folder, "editconf", "-f", "built.gro", "-o", "box.gro", "-box", f"{2 * cutoff_nm + 1:.1f}", "-c")
    mdp = fine_run(300.0, steps, seed=1, output_every=output_every, cutoff_nm=cutoff_nm)
    silent = mdp.with_options(nstxout=0, nstlog=0, nstenergy=1, nstcalcenergy=1)
    gmx.grompp(silent, folder / "box.gro", folder / "topol.top", folder / "rerun.tpr")
    return gmx.grompp(mdp, folder / "box.gro", folder / "topol.top", folder / "run.tpr")


def _tool(gmx: Gmx, folder: Path, tool: str, *arguments: str) -> None:
    result = capture([str(gmx.path), tool, *arguments], cwd=folder)
    if result.returncode:
        lines = [line for line in result.stderr.strip().splitlines() if line.strip()]
        raise ToolError(f"gmx {tool}", lines[-1] if lines else f"exit status {result.returncode}")
