"""Write a whole coarse system for GROMACS >= 2025: topology, bonded tables, CMAP, structure, mdp.

One .itp per molecule type, included by topol.top. Bonds, angles and dihedrals are tables (function 8), one per name;
maps over two torsions are CMAPs. GROMACS finds a CMAP by the atom types of its five beads, so beads of molecules with
maps have a type of their own; and it knows one spacing for all CMAPs, so all are written at the least common multiple
of their knots, where the spline that GROMACS puts through them is the map again.

Pairs are no part of GROMACS' tables since 2020. Within a single finite molecule every pair becomes a bond of type 9
(a tabulated bond that makes no exclusions); pairs in bulk go through PLUMED (plumed_pairs.py).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ccg_gmx.errors import SettingsError, TopologyError
from ccg_gmx.export.coarse_system import CoarseSystem, coarse_system
from ccg_gmx.export.folder import replace_folder
from ccg_gmx.export.gromacs_tables import (
    GromacsExportSettings,
    angle_points,
    angle_xvg,
    bead_numbers,
    bond_points,
    bond_xvg,
    circle_points,
    cmap_type,
    dihedral_xvg,
    section,
    table_file,
)
from ccg_gmx.molecule.coarse_topology import CoarseMoleculeType, CoarseTopology
from ccg_gmx.potential.curves import Curve
from ccg_gmx.potential.model import CoarseModel, pair_key
from ccg_gmx.records import BeadFrames, IntArray

TOPOLOGY, STRUCTURE, MDP = "topol.top", "conf.gro", "grompp.mdp"
_SECTIONS = {"bond": "bonds", "angle": "angles", "dihedral": "dihedrals"}
_LARGEST_CMAP = 144  # points per torsion
_PAIR_SPACING_NM = 0.0005  # of pair tables, which reach across the box


@dataclass(frozen=True)
class GromacsSystem:
    """A written system.

    Attributes:
        folder: where it is.
        topology: topol.top.
        structure: conf.gro.
        mdp: grompp.mdp.
        tables: the files for ``mdrun -tableb``.
    """

    folder: Path
    topology: Path
    structure: Path
    mdp: Path
    tables: tuple[Path, ...]


def write_gromacs(
    folder: Path,
    model: CoarseModel,
    topology: CoarseTopology,
    frames: BeadFrames,
    mdp_text: str,
    *,
    molecule_pairs: bool,
    settings: GromacsExportSettings | None = None,
) -> GromacsSystem:
    """Write topology, tables, structure and mdp; an old folder of that name is replaced when all is ready.

    Args:
        folder: to write.
        model: the potentials.
        topology: the beads.
        frames: the last one is where a run starts.
        mdp_text: run parameters.
        molecule_pairs: write the pairs within the system's only molecule as bonds of type 9; without it pairs are left
            out (PLUMED adds them).
        settings: resolution of the tables.

    Returns:
        The files.

    Raises:
        SettingsError: if model and topology do not belong together, ``molecule_pairs`` is asked for more than one
            molecule, or the box is too small.
        TopologyError: if GROMACS cannot have a name.
        TrajectoryError: if the frames are not of this topology.
        StoreError: if the folder cannot be written.
    """
    system = coarse_system(model, topology, frames)
    files = gromacs_files(system, mdp_text, molecule_pairs=molecule_pairs, settings=settings)
    replace_folder(folder, files)
    tables = tuple(folder / name for name in files if re.fullmatch(r"table_[bad]\d+\.xvg", name))
    return GromacsSystem(folder, folder / TOPOLOGY, folder / STRUCTURE, folder / MDP, tables)


def gromacs_files(
    system: CoarseSystem, mdp_text: str, *, molecule_pairs: bool, settings: GromacsExportSettings | None = None
) -> dict[str, str]:
    """Text of every file by name; arguments and errors as for :func:`write_gromacs`."""
    settings = settings or GromacsExportSettings()
    numbers = {kind: {name: i for i, name in enumerate(system.names(kind))} for kind in _SECTIONS}
    pairs = _molecule_pairs(system, len(numbers["bond"])) if molecule_pairs and system.model.pairs else {}
    tables = {
        table_file(kind, i): _curve_table(system.model.bonded[name], name, settings)
        for kind, names in numbers.items()
        for name, i in names.items()
    }
    r = bond_points(_reach(system), _PAIR_SPACING_NM) if pairs else np.zeros(0)
    for types, (number, _) in pairs.items():
        tables[table_file("bond", number)] = bond_xvg(r, *system.model.pairs[types].value_and_slope(r), "-".join(types))
    molecules = distinct_molecules(system.topology)
    itps = {f"{name}.itp": _molecule_text(molecule, numbers, pairs) for name, molecule in molecules.items()}
    return {
        TOPOLOGY: topology_text(system, cmap_types(system)),
        **itps,
        STRUCTURE: structure_text(system, -1),
        MDP: mdp_text,
        **tables,
    }


def distinct_molecules(topology: CoarseTopology) -> dict[str, CoarseMoleculeType]:
    """Molecule types by name.

    Raises:
        TopologyError: if two different ones share a name, or a name is none for a file and a section.
    """
    found: dict[str, CoarseMoleculeType] = {}
    for molecule, _ in topology.molecules:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_+-]*", molecule.name):
            raise TopologyError(
                f"a molecule type named {molecule.name!r}", expected="letters, digits, _, + and -", remedy="rename it"
            )
        if found.setdefault(molecule.name, molecule) != molecule:
            raise TopologyError(f"two different molecule types named {molecule.name}", remedy="rename one of them")
    return found


def topology_text(system: CoarseSystem, cmaps: Sequence[str], c12: float = 0.0, prefix: str = "") -> str:
    """The text of topol.top.

    Args:
        system: the system.
        cmaps: lines of CMAP types.
        c12: repulsion coefficient of all beads: 1 makes GROMACS <= 2019 multiply its tables by one.
        prefix: of the paths of .itp files.
    """
    out = ["; Coarse model. Its bonded terms are tables: mdrun -tableb *.xvg", ""]
    out += section("defaults", ["; nbfunc comb-rule gen-pairs fudgeLJ fudgeQQ", "1 1 no 1.0 1.0"])
    types: dict[str, float] = {}
    for molecule in distinct_molecules(system.topology).values():
        types |= dict(zip(atom_types(molecule), molecule.masses, strict=True))
    lines = [f"{name} 0 {mass:.6f} 0.0 A 0.0 {c12:g}" for name, mass in types.items()]
    out += section("atomtypes", ["; name at.num mass charge ptype C6 C12", *lines])
    if cmaps:
        out += section("cmaptypes", cmaps)
    out += [f'#include "{prefix}{name}.itp"' for name in distinct_molecules(system.topology)] + [""]
    out += section("system", ["coarse model"])
    out += section("molecules", [f"{molecule.name} {count}" for molecule, count in system.topology.molecules])
    return "\n".join(out)


def atom_types(molecule: CoarseMoleculeType) -> list[str]:
    """GROMACS' atom type of each bead: its bead type, or one of its own where a CMAP must find it.

    The prefix keeps a name from starting with a digit, which GROMACS reads as the atomic number.
    """
    own = any(term.kind == "cmap" for term in molecule.bonded)
    names = [f"B_{kind}" for kind in molecule.bead_types]
    return [f"{name}_{molecule.name}_{i + 1}" for i, name in enumerate(names)] if own else names


def cmap_types(system: CoarseSystem) -> list[str]:
    """Lines of the CMAP types of all molecule types."""
    names = system.names("cmap")
    if not names:
        return []
    points = math.lcm(*(system.model.maps[name].knots for name in names))
    if points > _LARGEST_CMAP:
        raise SettingsError(
            f"maps whose knots have the least common multiple {points}",
            expected=f"at most {_LARGEST_CMAP}: GROMACS has one spacing for all CMAPs",
            remedy="fit all maps with the same number of knots",
        )
    grids = {name: system.model.maps[name].on_grid(points) for name in names}
    lines = []
    for molecule in distinct_molecules(system.topology).values():
        types = atom_types(molecule)
        for term in molecule.bonded:
            if term.kind == "cmap":
                lines += [cmap_type([types[i] for i in beads], grids[term.name]) for beads in term.beads]
    return lines


def structure_text(system: CoarseSystem, frame: int) -> str:
    """A frame as .gro with six decimals, so that a run starts where it was asked to."""
    topology, positions = system.topology, system.positions[frame]
    columns = zip(topology.residue_ids.tolist(), topology.residue_names, topology.bead_names, strict=True)
    lines = [
        f"{residue % 100000:5d}{group:<5s}{bead:>5s}{(i + 1) % 100000:5d}" + "".join(f"{x:11.6f}" for x in position)
        for i, ((residue, group, bead), position) in enumerate(zip(columns, positions.tolist(), strict=True))
    ]
    box = system.box[frame]
    entries = [box[i, j] for i, j in ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1))]
    used = entries if np.any(entries[3:]) else entries[:3]
    return "\n".join(["coarse model", str(len(lines)), *lines, " ".join(f"{x:.6f}" for x in used), ""])


def _molecule_text(
    molecule: CoarseMoleculeType,
    numbers: Mapping[str, Mapping[str, int]],
    pairs: Mapping[tuple[str, str], tuple[int, IntArray]],
) -> str:
    """One molecule type; exclusions are listed one by one, so that they are those of the topology."""
    out = section("moleculetype", ["; name nrexcl", f"{molecule.name} 0"])
    columns = (atom_types(molecule), molecule.residue_ids, molecule.residue_names, molecule.bead_names, molecule.masses)
    atoms = [
        f"{i + 1} {kind} {residue} {group} {bead} {i + 1} 0.0 {mass:.6f}"
        for i, (kind, residue, group, bead, mass) in enumerate(zip(*columns, strict=True))
    ]
    out += section("atoms", ["; nr type resnr residue atom cgnr charge mass", *atoms])
    for kind, heading in _SECTIONS.items():
        lines = [
            f"{bead_numbers(beads)} 8 {numbers[kind][term.name]} 1.0"
            for term in molecule.bonded
            if term.kind == kind
            for beads in term.beads
        ]
        if kind == "bond":
            lines += [f"{i + 1} {j + 1} 9 {number} 1.0" for number, found in pairs.values() for i, j in found.tolist()]
        out += section(heading, lines) if lines else []
    cmaps = [f"{bead_numbers(beads)} 1" for term in molecule.bonded if term.kind == "cmap" for beads in term.beads]
    out += section("cmap", cmaps) if cmaps else []
    if molecule.exclusions:
        out += section("exclusions", [bead_numbers(pair) for pair in sorted(set(molecule.exclusions))])
    return "\n".join(out)


def _molecule_pairs(system: CoarseSystem, first: int) -> dict[tuple[str, str], tuple[int, IntArray]]:
    """Types of a pair -> number of its table (from ``first`` on) and beads ``[m, 2]``, within the only molecule."""
    if system.n_molecules != 1:
        raise SettingsError(
            f"pairs of {system.n_molecules} molecules as bonds",
            expected="one finite molecule",
            remedy="run pairs in bulk through PLUMED or in OpenMM",
        )
    topology = system.topology
    i, j = np.triu_indices(topology.n_beads, 1)
    excluded = {tuple(pair) for pair in topology.excluded_pairs.tolist()}
    found: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for pair in zip(i.tolist(), j.tolist(), strict=True):
        types = pair_key(*(topology.bead_types[bead] for bead in pair))
        if pair not in excluded and types in system.model.pairs:
            found.setdefault(types, []).append(pair)
    return {
        types: (first + k, np.array(beads, dtype=np.int64)) for k, (types, beads) in enumerate(sorted(found.items()))
    }


def _reach(system: CoarseSystem) -> float:
    """How far two beads of a molecule can be apart, nm: half the diagonal of the box, and twice what was seen."""
    span = float(np.linalg.norm(np.ptp(system.positions, axis=1), axis=-1).max())
    return max(0.5 * float(np.linalg.norm(system.box.sum(axis=1), axis=-1).max()), 2.0 * span)


def _curve_table(curve: Curve, name: str, settings: GromacsExportSettings) -> str:
    if curve.kind == "dihedral":
        return dihedral_xvg(*curve.value_and_slope(circle_points()), name)
    if curve.kind == "angle":
        angle = angle_points(settings.angle_table_points)
        return angle_xvg(angle, *curve.value_and_slope(angle), name)
    # Twice the data's end at least: the wall is steep, but mdrun stops where a table ends.
    r = bond_points(max(settings.bond_table_end_nm, 2.0 * curve.hi), settings.bond_table_spacing_nm)
    return bond_xvg(r, *curve.value_and_slope(r), name)
