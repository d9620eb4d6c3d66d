"""README files of an export."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ccg_gmx.export.gromacs_legacy import FOLDER

_RUN = {
    "gromacs": "gromacs/README.md says how",
    "lammps": "in lammps/: `lmp -in run.in` (model.in is the model, in units real)",
    "openmm": "in openmm/: `python run.py` (system.xml is the model, start.xml the first frame)",
    "plumed": "plumed/README.md says how",
}


def top_readme(engines: Sequence[str], skipped: Mapping[str, str]) -> str:
    """README of the whole export."""
    written = "\n".join(f"- {engine}: {_RUN[engine]}" for engine in engines)
    left_out = "".join(f"- {engine}: left out. {reason}.\n" for engine, reason in skipped.items())
    return f"""# A coarse model for several engines

Written by ccg_gmx. One folder per engine:

{written}
{left_out}
All are the same potential. `ccg export --check .` computes the energies of the frames in frames.npz in every engine
that is installed here and compares them. model.npz, topology.json and frames.npz are for that.
"""


def gromacs_readme(tables: Sequence[str], molecule_pairs: bool, bulk_pairs: bool) -> str:
    """README of the GROMACS folder.

    Args:
        tables: names of the bonded tables.
        molecule_pairs: whether the pairs are bonds of type 9.
        bulk_pairs: whether they are PLUMED's.
    """
    named = " -tableb table_*.xvg" if tables else ""
    plumed = " -plumed plumed.dat -ntmpi 1 -ntomp 1" if bulk_pairs else ""
    parts = [
        f"""# Coarse model for GROMACS >= 2025

    gmx grompp && gmx mdrun{named}{plumed}
"""
    ]
    if tables:
        parts.append("Bonded terms are tables; `mdrun` finds them only through `-tableb`, and stops past their ends.\n")
    if molecule_pairs:
        parts.append("Pairs within the molecule are bonds of type 9, which are tables too and make no exclusions.\n")
    if bulk_pairs:
        parts.append(
            f"""Pairs are computed by PLUMED: plumed.dat needs a GROMACS with `-plumed` and the plug-in of
`ccg plumed build` (put its path behind LOAD FILE=). GROMACS itself has no non-bonded tables since release 2020.

{FOLDER}/ holds seven-column tables for GROMACS <= 2019 only; GROMACS >= 2020 refuses them.
"""
        )
    return "\n".join(parts)


def plumed_readme(bonded: bool) -> str:
    """README of the PLUMED folder.

    Args:
        bonded: whether the model has bonded terms too.
    """
    rest = "\nThe bonded terms of the model are not here: the MD engine must have them.\n" if bonded else ""
    return f"""# Pairs of a coarse model for PLUMED

plumed.dat adds the pair potentials to any engine with PLUMED 2.10 (nm, kJ/mol), through the action PAIR_TABLE of the
plug-in of `ccg plumed build`: put its path behind LOAD FILE=. Atoms are the beads in the order of topology.json.
{rest}"""
