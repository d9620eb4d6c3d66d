"""Write a coarse potential as a folder that GROMACS runs: topology with bonded tables and CMAP, structure, mdp.

Bonds, angles and single torsions become tables (function 8), every map over two torsions that share three beads a
CMAP grid. There are no non-bonded interactions: all of them are inside the potential.

``mdrun`` finds bonded tables only through its option ``-tableb``; so that a plain ``gmx grompp && gmx mdrun`` runs
too, the topology carries GROMACS' own functional forms beside the tables (analytic.py); the macro ``TABLES`` chooses.

Facts this file rests on, each checked against ``gmx mdrun -rerun``: a CMAP lists its values from -180 degrees with the
second torsion running fastest; GROMACS puts a cubic spline through them, which is our own torsion grid again when the
CMAP's points contain its knots; it finds the grid of a CMAP by the types of its five beads, so every bead has a type
of its own; and it knows one spacing for all grids. For the tables see bonded.py.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ccg_gmx.errors import SettingsError, TopologyError
from ccg_gmx.export.bonded import BondedTerm, bonded_terms
from ccg_gmx.export.folder import replace_folder
from ccg_gmx.export.gromacs_tables import GromacsExportSettings, bead_numbers, cmap_type, section
from ccg_gmx.potential.coarse import CoarsePotential
from ccg_gmx.records import FloatArray

__all__ = ["CoarseMolecule", "ForceField", "GromacsExportSettings", "write_forcefield"]

MDP_NAME = "grompp.mdp"  # what a bare ``gmx grompp`` reads
TABLES_MDP_NAME = "tables.mdp"
_BEADS_OF = {"bond": 2, "angle": 3, "torsion": 4}
_SECTIONS = {"bond": "bonds", "angle": "angles", "torsion": "dihedrals"}


@dataclass(frozen=True)
class CoarseMolecule:
    """The beads and which of them each coordinate of the potential is made of.

    Attributes:
        name: of the molecule.
        bead_names: up to five characters each.
        residue_names: up to five characters each.
        residue_ids: residue number of each bead.
        masses: amu; the speed of the coarse dynamics depends on them, its averages do not.
        terms: zero-based beads of each ``b_i``: two for a bond, three for an angle, four for a torsion.
        torsions: zero-based beads of each ``s_i``, four each.
    """

    name: str
    bead_names: tuple[str, ...]
    residue_names: tuple[str, ...]
    residue_ids: tuple[int, ...]
    masses: tuple[float, ...]
    terms: tuple[tuple[int, ...], ...]
    torsions: tuple[tuple[int, ...], ...]

    @property
    def n_beads(self) -> int:
        """Number of beads."""
        return len(self.bead_names)


@dataclass(frozen=True)
class ForceField:
    """A written force-field folder.

    Attributes:
        folder: where it is.
        topology: topol.top.
        structure: conf.gro.
        mdp: grompp.mdp, for GROMACS' own functional forms.
        tables_mdp: the same with ``define = -DTABLES``, for the tables.
        tables: the files for ``mdrun -tableb``.
    """

    folder: Path
    topology: Path
    structure: Path
    mdp: Path
    tables_mdp: Path
    tables: tuple[Path, ...]


def write_forcefield(
    folder: Path,
    potential: CoarsePotential,
    molecule: CoarseMolecule,
    positions: FloatArray,
    mdp_text: str,
    settings: GromacsExportSettings | None = None,
) -> ForceField:
    """Write topology, tables, structure, mdp and a README; an old folder of that name is replaced when all is ready.

    Args:
        folder: to write.
        potential: fitted coarse potential.
        molecule: beads and coordinates, in the potential's order.
        positions: ``[n_beads, 3]`` nm, where a run starts; moved to the middle of the box. ``[C, n_beads, 3]`` for C
            copies, which do not feel each other (no non-bonded terms): one run of many is up to ten times cheaper.
        mdp_text: run parameters.
        settings: resolution and box.

    Returns:
        The files.

    Raises:
        TopologyError: if molecule, positions and potential do not fit together, or GROMACS has no term for it.
        SettingsError: if a table would end inside the data.
        StoreError: if the folder cannot be written.
    """
    settings = settings or GromacsExportSettings()
    copies = positions if positions.ndim == 3 else positions[None]
    _check(potential, molecule, copies)
    bonded = bonded_terms(potential, molecule.terms, molecule.torsions, settings)
    files = {term.file: term.table_text for term in bonded}
    table_names = tuple(files)
    files["topol.top"] = _topology(potential, molecule, bonded, settings, len(copies))
    files["conf.gro"] = _structure(molecule, copies, settings.box_nm)
    files[MDP_NAME] = mdp_text
    files[TABLES_MDP_NAME] = _with_tables(mdp_text)
    files["README.md"] = _readme(potential, molecule, bonded)
    replace_folder(folder, files)
    return ForceField(
        folder=folder,
        topology=folder / "topol.top",
        structure=folder / "conf.gro",
        mdp=folder / MDP_NAME,
        tables_mdp=folder / TABLES_MDP_NAME,
        tables=tuple(folder / name for name in table_names),
    )


def _with_tables(mdp_text: str) -> str:
    """The mdp text with the macro TABLES defined, a ``define`` of its own kept."""
    own = re.search(r"(?m)^[ \t]*define[ \t]*=", mdp_text)
    if own:
        return f"{mdp_text[: own.end()]} -DTABLES{mdp_text[own.end() :]}"
    return f"define = -DTABLES\n{mdp_text}"


def _check(potential: CoarsePotential, molecule: CoarseMolecule, positions: FloatArray) -> None:
    basis, n = potential.basis, molecule.n_beads
    lengths = {len(molecule.residue_names), len(molecule.residue_ids), len(molecule.masses), n}
    if len(lengths) != 1 or positions.shape[1:] != (n, 3) or not len(positions):
        raise TopologyError(
            f"{n} bead names, {len(molecule.masses)} masses and positions of shape {positions.shape}",
            expected="one entry per bead everywhere",
        )
    if len(molecule.terms) != basis.n_b or len(molecule.torsions) != basis.n_s:
        raise TopologyError(
            f"{len(molecule.terms)} bonds and angles and {len(molecule.torsions)} torsions of beads",
            expected=f"{basis.n_b} and {basis.n_s}, as in the potential",
        )
    wanted = [_BEADS_OF[term.coordinate.kind] for term in basis.terms] + [4] * basis.n_s
    for beads, count in zip(molecule.terms + molecule.torsions, wanted, strict=True):
        if len(set(beads)) != count or len(beads) != count or not all(0 <= i < n for i in beads):
            raise TopologyError(f"beads {beads}", expected=f"{count} different ones of 0 to {n - 1}")
    _check_maps(potential, molecule)
    longest = max(map(len, (*molecule.bead_names, *molecule.residue_names)))
    if longest > 5:
        raise TopologyError(f"a bead or residue name of {longest} characters", expected="at most 5 (.gro format)")


def _check_maps(potential: CoarsePotential, molecule: CoarseMolecule) -> None:
    pairs = _pairs(potential)
    for k in pairs:
        first, second = (molecule.torsions[column] for column in potential.basis.maps.columns[k])
        if first[1:] != second[:3]:
            raise TopologyError(
                f"torsions over beads {first} and {second}",
                expected="two neighbours along a chain (they share three beads), as a GROMACS CMAP needs",
            )
    knots = {potential.basis.maps.grids[k].knots for k in pairs}
    if len(knots) > 1:
        raise TopologyError(
            f"maps with {sorted(knots)} knots per torsion", expected="one number: GROMACS has one spacing for all CMAPs"
        )


def _pairs(potential: CoarsePotential) -> list[int]:
    """Maps over two torsions."""
    return [k for k, columns in enumerate(potential.basis.maps.columns) if len(columns) == 2]


def _topology(
    potential: CoarsePotential,
    molecule: CoarseMolecule,
    bonded: Sequence[BondedTerm],
    settings: GromacsExportSettings,
    copies: int,
) -> str:
    """The whole topology as text; every bead has a type of its own, which a CMAP type needs."""
    n, pairs = molecule.n_beads, {k: _cmap_beads(potential, molecule, k) for k in _pairs(potential)}
    types = [f"B{i + 1}" for i in range(n)]
    out = ["; Coarse model. With the macro TABLES bonded tables (mdrun -tableb), without it analytic forms.", ""]
    out += section("defaults", ["; nbfunc comb-rule gen-pairs fudgeLJ fudgeQQ", "1 2 no 1.0 1.0"])
    atom_types = [f"{t} 0 {m:.6f} 0.0 A 0.0 0.0" for t, m in zip(types, molecule.masses, strict=True)]
    out += section("atomtypes", ["; name at.num mass charge ptype sigma epsilon", *atom_types])
    if pairs:
        grids = [_cmap_type(potential, k, [types[i] for i in beads], settings) for k, beads in pairs.items()]
        out += section("cmaptypes", grids)
    # Excluding every pair is not needed for the physics (no charges, no Lennard-Jones), it saves their computation.
    out += section("moleculetype", ["; name nrexcl", f"{molecule.name} {n}"])
    atoms = [
        f"{i + 1} {types[i]} {molecule.residue_ids[i]} {molecule.residue_names[i]} {molecule.bead_names[i]} {i + 1} "
        f"0.0 {molecule.masses[i]:.6f}"
        for i in range(n)
    ]
    out += section("atoms", ["; nr type resnr residue atom cgnr charge mass", *atoms])
    for kind, heading in _SECTIONS.items():
        chosen = [term for term in bonded if term.kind == kind]
        if chosen:
            out += _either_section(heading, chosen)
    if pairs:
        out += section("cmap", ["; beads function", *(f"{bead_numbers(beads)} 1" for beads in pairs.values())])
    out += section("system", [f"{molecule.name} coarse model"]) + section("molecules", [f"{molecule.name} {copies}"])
    return "\n".join(out)


def _either_section(name: str, bonded: Sequence[BondedTerm]) -> list[str]:
    """A section with the table of each term, or its analytic form."""
    tables = [term.lines[0] for term in bonded]
    analytic = [line for term in bonded for line in term.lines[1]]
    return section(name, ["#ifdef TABLES", *tables, "#else", *analytic, "#endif"])


def _cmap_beads(potential: CoarsePotential, molecule: CoarseMolecule, k: int) -> tuple[int, ...]:
    first, second = (molecule.torsions[column] for column in potential.basis.maps.columns[k])
    return (*first, second[3])


def _cmap_type(potential: CoarsePotential, k: int, types: Sequence[str], settings: GromacsExportSettings) -> str:
    return cmap_type(types, potential.map_grid(k, settings.cmap_refinement * potential.basis.maps.grids[k].knots))


def _structure(molecule: CoarseMolecule, positions: FloatArray, box_nm: float) -> str:
    """A .gro file with six decimals, so that the start is what was asked for; copies stand on a cubic lattice."""
    span = float(np.ptp(positions, axis=1).max())
    if not span < box_nm:
        raise SettingsError(f"a molecule of {span:.2f} nm in a box of {box_nm} nm", remedy="use a larger box")
    edge = math.ceil(round(len(positions) ** (1 / 3), 9))
    lattice = np.stack(np.unravel_index(np.arange(len(positions)), (edge,) * 3), axis=1)
    centred = positions - positions.mean(axis=1, keepdims=True) + (lattice[:, None] + 0.5) * box_nm / edge
    names = [
        f"{molecule.residue_ids[i] % 100000:5d}{molecule.residue_names[i]:<5s}{molecule.bead_names[i]:>5s}"
        for i in range(molecule.n_beads)
    ]
    atoms = centred.reshape(-1, 3).tolist()
    lines = [
        f"{names[i % len(names)]}{(i + 1) % 100000:5d}" + "".join(f"{x:11.6f}" for x in atom)
        for i, atom in enumerate(atoms)
    ]
    box = " ".join([f"{box_nm:.6f}"] * 3)
    return "\n".join([f"{molecule.name} coarse model", str(len(atoms)), *lines, box, ""])


def _readme(potential: CoarsePotential, molecule: CoarseMolecule, bonded: Sequence[BondedTerm]) -> str:
    tables = ", ".join(term.file for term in bonded)
    accuracy = "\n".join(f"| {term.name} | {term.form.rms_kT:.1e} |" for term in bonded)
    return f"""# Coarse model of {molecule.name}

{molecule.n_beads} beads, fitted at {potential.temperature_K:g} K by ccg_gmx. In this folder:

    gmx grompp && gmx mdrun

runs it with GROMACS' own functional forms for the bonded terms. With the fitted terms themselves, as tables
(`mdrun` finds them only when `-tableb` names them):

    gmx grompp -f {TABLES_MDP_NAME} && gmx mdrun -tableb *.xvg

{TABLES_MDP_NAME} is {MDP_NAME} with `define = -DTABLES`; the tables are {tables}.

The potential is one per Cartesian volume of the beads (plain dynamics needs no further term) and separable:
{_parts(potential)}.
There are no non-bonded interactions. Outside the range of the data the tables continue as stiff parabolas.
{_lost(potential)}
How far the analytic forms are from the tables, Boltzmann-weighted rms:

| term | kT |
|---|---|
{accuracy}
"""


def _parts(potential: CoarsePotential) -> str:
    """What the potential is a sum of, in words."""
    maps = [grid.names for grid in potential.basis.maps.grids]
    words = [f"a {'CMAP' if len(names) == 2 else 'dihedral'} over ({', '.join(names)})" for names in maps]
    left = [term.coordinate.name for term in potential.basis.terms if term.coordinate.kind == "torsion"]
    others = f"each bond, each angle and {', '.join(left)}" if left else "each bond and angle"
    return f"{', '.join(words)} and a term for {others}"


def _lost(potential: CoarsePotential) -> str:
    """What several maps cannot describe, where there are several."""
    if potential.basis.n_maps == 1:
        return ""
    return f"""
Each map reproduces the free energy over its own torsions. The maps know nothing of each other: the correlation between
them that this leaves out of the fitted free energy is {potential.residual.surface_kl:.2g} nats.
"""
