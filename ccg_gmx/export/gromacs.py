"""Write a coarse potential as a folder that GROMACS runs: topology with bonded tables and CMAP, structure, mdp.

Bonds and angles become tables (function 8), two torsions that share three beads a CMAP grid, a single torsion a
tabulated dihedral. There are no non-bonded interactions: all of them are inside the potential.

``mdrun`` finds bonded tables only through its option ``-tableb``; so that a plain ``gmx grompp && gmx mdrun`` runs
too, the topology carries GROMACS' own functional forms beside the tables (analytic.py); the macro ``TABLES`` chooses.

Facts this file rests on, each checked against ``gmx mdrun -rerun``: tables hold the value and *minus* its slope, per
degree for angles and torsions; mdrun stops when a coordinate leaves its table, so tables are padded; a CMAP lists its
values from -180 degrees with the second torsion running fastest, and GROMACS puts a cubic spline through them, which
is our own torsion grid again when the CMAP's points contain its knots.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import Field

from ccg_gmx.errors import SettingsError, StoreError, TopologyError
from ccg_gmx.export.analytic import AnalyticForm, analytic_dihedral, analytic_term
from ccg_gmx.potential.coarse import CoarsePotential
from ccg_gmx.records import FloatArray
from ccg_gmx.settings import Settings
from ccg_gmx.units import DEGREES_PER_RADIAN

MDP_NAME = "grompp.mdp"  # what a bare ``gmx grompp`` reads
TABLES_MDP_NAME = "tables.mdp"
_TABLE_LETTERS = {"bond": "b", "angle": "a"}


class GromacsExportSettings(Settings):
    """Resolution of the tables and the box."""

    bond_table_end_nm: float = Field(default=0.5, gt=0, description="bond tables run from 0 to at least here")
    bond_table_spacing_nm: float = Field(default=0.0002, gt=0, description="spacing of bond tables")
    angle_table_points: int = Field(default=1800, ge=180, description="intervals of an angle table over 180 degrees")
    cmap_refinement: int = Field(default=1, ge=1, le=8, description="CMAP points per knot of the torsion grid")
    box_nm: float = Field(default=6.0, gt=0, description="edge of the cubic box, longer than twice the cut-off")


@dataclass(frozen=True)
class CoarseMolecule:
    """The beads and which of them each coordinate of the potential is made of.

    Attributes:
        name: of the molecule.
        bead_names: up to five characters each.
        residue_names: up to five characters each.
        residue_ids: residue number of each bead.
        masses: amu; the speed of the coarse dynamics depends on them, its averages do not.
        terms: zero-based beads of each ``b_i``: two for a bond, three for an angle.
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
    files = _tables(potential, settings)
    table_names = tuple(files)
    forms = _analytic_forms(potential)
    files["topol.top"] = _topology(potential, molecule, forms, settings, len(copies))
    files["conf.gro"] = _structure(molecule, copies, settings.box_nm)
    files[MDP_NAME] = mdp_text
    files[TABLES_MDP_NAME] = _with_tables(mdp_text)
    files["README.md"] = _readme(potential, molecule, forms, table_names)
    _replace_folder(folder, files)
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


def _analytic_forms(potential: CoarsePotential) -> list[AnalyticForm]:
    """GROMACS' own form of every term, and of the torsion when there is only one."""
    forms = [analytic_term(potential, i) for i in range(potential.basis.n_b)]
    return [*forms, analytic_dihedral(potential)] if potential.basis.n_s == 1 else forms


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
    wanted = [{"bond": 2, "angle": 3}[term.coordinate.kind] for term in basis.terms] + [4] * basis.n_s
    for beads, count in zip(molecule.terms + molecule.torsions, wanted, strict=True):
        if len(set(beads)) != count or len(beads) != count or not all(0 <= i < n for i in beads):
            raise TopologyError(f"beads {beads}", expected=f"{count} different ones of 0 to {n - 1}")
    if basis.n_s == 2 and molecule.torsions[0][1:] != molecule.torsions[1][:3]:
        raise TopologyError(
            f"torsions over beads {molecule.torsions[0]} and {molecule.torsions[1]}",
            expected="two neighbours along a chain (they share three beads), as a GROMACS CMAP needs",
        )
    longest = max(map(len, (*molecule.bead_names, *molecule.residue_names)))
    if longest > 5:
        raise TopologyError(f"a bead or residue name of {longest} characters", expected="at most 5 (.gro format)")


def _table_numbers(potential: CoarsePotential) -> list[str]:
    """Table name of each term, ``b0 b1 a0 ...``; bonds and angles are counted separately."""
    counts = {"b": 0, "a": 0}
    names = []
    for term in potential.basis.terms:
        letter = _TABLE_LETTERS[term.coordinate.kind]
        names.append(f"{letter}{counts[letter]}")
        counts[letter] += 1
    return names


def _tables(potential: CoarsePotential, settings: GromacsExportSettings) -> dict[str, str]:
    """Every bonded table: file name -> text."""
    files = {}
    for i, (name, term) in enumerate(zip(_table_numbers(potential), potential.basis.terms, strict=True)):
        if term.coordinate.kind == "bond":
            # Twice the data's end at least: the wall is steep, but mdrun stops where a table ends.
            end = max(settings.bond_table_end_nm, 2.0 * term.hi)
            points = math.ceil(end / settings.bond_table_spacing_nm)
            r = np.linspace(0.0, points * settings.bond_table_spacing_nm, points + 1, dtype=np.float64)
            scale = 1.0
        else:
            r = np.linspace(0.0, math.pi, settings.angle_table_points + 1, dtype=np.float64)
            scale = DEGREES_PER_RADIAN
        value, slope = potential.term_table(i, r)
        files[f"table_{name}.xvg"] = _xvg(r * scale, value, slope / scale, term.coordinate.name)
    if potential.basis.n_s == 1:
        files["table_d0.xvg"] = _dihedral_table(potential)
    return files


def _dihedral_table(potential: CoarsePotential) -> str:
    n = 3600
    value, slope = (potential.grid(n, (order,)) for order in (0, 1))
    closed = np.linspace(-180.0, 180.0, n + 1)
    wrap = np.append(np.arange(n), 0)  # the last point is the first again
    return _xvg(closed, value[wrap], slope[wrap] / DEGREES_PER_RADIAN, potential.basis.torsions.names[0])


def _xvg(x: FloatArray, value: FloatArray, slope: FloatArray, title: str) -> str:
    rows = np.stack([x, value, -slope], axis=1)
    return f"# {title}: coordinate, potential (kJ/mol), minus its derivative\n" + "".join(
        f"{a:.10g} {b:.10e} {c:.10e}\n" for a, b, c in rows.tolist()
    )


def _topology(
    potential: CoarsePotential,
    molecule: CoarseMolecule,
    forms: Sequence[AnalyticForm],
    settings: GromacsExportSettings,
    copies: int,
) -> str:
    """The whole topology as text; every bead has a type of its own, which a CMAP type needs."""
    n, two = molecule.n_beads, potential.basis.n_s == 2
    types = [f"B{i + 1}" for i in range(n)]
    out = ["; Coarse model. With the macro TABLES bonded tables (mdrun -tableb), without it analytic forms.", ""]
    out += _section("defaults", ["; nbfunc comb-rule gen-pairs fudgeLJ fudgeQQ", "1 2 no 1.0 1.0"])
    atom_types = [f"{t} 0 {m:.6f} 0.0 A 0.0 0.0" for t, m in zip(types, molecule.masses, strict=True)]
    out += _section("atomtypes", ["; name at.num mass charge ptype sigma epsilon", *atom_types])
    if two:
        out += _section("cmaptypes", _cmap_lines(potential, [types[i] for i in _cmap_beads(molecule)], settings))
    # Excluding every pair is not needed for the physics (no charges, no Lennard-Jones), it saves their computation.
    out += _section("moleculetype", ["; name nrexcl", f"{molecule.name} {n}"])
    atoms = [
        f"{i + 1} {types[i]} {molecule.residue_ids[i]} {molecule.residue_names[i]} {molecule.bead_names[i]} {i + 1} "
        f"0.0 {molecule.masses[i]:.6f}"
        for i in range(n)
    ]
    out += _section("atoms", ["; nr type resnr residue atom cgnr charge mass", *atoms])
    tables = [f"8 {name[1:]} 1.0" for name in _table_numbers(potential)]
    kinds = [term.coordinate.kind for term in potential.basis.terms]
    for kind in ("bond", "angle"):
        chosen = [i for i in range(len(kinds)) if kinds[i] == kind]
        out += _either_section(f"{kind}s", [(molecule.terms[i], tables[i], forms[i].lines) for i in chosen])
    if two:
        out += _section("cmap", ["; beads function", f"{_numbers(_cmap_beads(molecule))} 1"])
    else:
        out += _either_section("dihedrals", [(molecule.torsions[0], "8 0 1.0", forms[-1].lines)])
    out += _section("system", [f"{molecule.name} coarse model"]) + _section("molecules", [f"{molecule.name} {copies}"])
    return "\n".join(out)


def _either_section(name: str, terms: Sequence[tuple[tuple[int, ...], str, tuple[str, ...]]]) -> list[str]:
    """A section with the table of each term, or its analytic form."""
    tables = [f"{_numbers(beads)} {table}" for beads, table, _ in terms]
    analytic = [f"{_numbers(beads)} {line}" for beads, _, lines in terms for line in lines]
    return _section(name, ["#ifdef TABLES", *tables, "#else", *analytic, "#endif"])


def _section(name: str, lines: Sequence[str]) -> list[str]:
    return [f"[ {name} ]", *lines, ""]


def _numbers(beads: Sequence[int]) -> str:
    return " ".join(str(i + 1) for i in beads)


def _cmap_beads(molecule: CoarseMolecule) -> tuple[int, ...]:
    return (*molecule.torsions[0], molecule.torsions[1][3])


def _cmap_lines(potential: CoarsePotential, types: Sequence[str], settings: GromacsExportSettings) -> list[str]:
    """CMAP type: first torsion slowest, both from -180 degrees; a long line continued with backslashes."""
    n = settings.cmap_refinement * potential.basis.torsions.knots
    values = potential.grid(n).ravel().tolist()
    rows = [" ".join(f"{v:.6f}" for v in values[i : i + 8]) for i in range(0, len(values), 8)]
    return ["\\\n".join([f"{' '.join(types)} 1 {n} {n}", *rows])]


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


def _readme(
    potential: CoarsePotential, molecule: CoarseMolecule, forms: Sequence[AnalyticForm], tables: Sequence[str]
) -> str:
    s_names = potential.basis.torsions.names
    names = [term.coordinate.name for term in potential.basis.terms] + list(s_names if len(s_names) == 1 else ())
    surface = f"a CMAP over ({s_names[0]}, {s_names[1]})" if len(s_names) == 2 else "one torsion"
    accuracy = "\n".join(f"| {name} | {form.rms_kT:.1e} |" for name, form in zip(names, forms, strict=True))
    return f"""# Coarse model of {molecule.name}

{molecule.n_beads} beads, fitted at {potential.temperature_K:g} K by ccg_gmx. In this folder:

    gmx grompp && gmx mdrun

runs it with GROMACS' own functional forms for the bonded terms. With the fitted terms themselves, as tables
(`mdrun` finds them only when `-tableb` names them):

    gmx grompp -f {TABLES_MDP_NAME} && gmx mdrun -tableb *.xvg

{TABLES_MDP_NAME} is {MDP_NAME} with `define = -DTABLES`; the tables are {", ".join(tables)}.

The potential is one per Cartesian volume of the beads (plain dynamics needs no further term) and separable: {surface}
and a term for each bond and angle. There are no non-bonded interactions. Outside the range of the data the
tables continue as stiff parabolas.

How far the analytic forms are from the tables, Boltzmann-weighted rms:

| term | kT |
|---|---|
{accuracy}
"""


def _replace_folder(folder: Path, files: dict[str, str]) -> None:
    """Write all files beside ``folder``, then put the finished folder in its place."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            temporary.chmod(0o755)  # mkdtemp keeps others out
            for name, text in files.items():
                (temporary / name).write_text(text, encoding="utf-8")
            old = temporary.with_name(f"{temporary.name}.old")
            if folder.exists():
                os.replace(folder, old)
            os.replace(temporary, folder)
            shutil.rmtree(old, ignore_errors=True)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise StoreError(
            f"cannot write {folder} ({error.strerror or error})",
            expected="a writable folder with free space",
            remedy="choose another output folder",
        ) from error
