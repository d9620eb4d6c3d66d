"""A coarse system for LAMMPS in units ``real``: data file, table files, one input with the model and one that runs it.

Exclusions of the topology are explicit pairs, LAMMPS' follow from bonds. They are made to agree exactly: excluded pairs
that are no bonds become bonds of style ``zero``, which have no energy, and ``special_bonds`` leaves out 1-2 neighbours
only; where all pairs within all molecules are excluded, ``neigh_modify exclude molecule/intra`` says so. LAMMPS has one
mass per type, so a bead type with several masses becomes several types.

Maps over two torsions run through ``fix cmap``, which knows six grids of 24 x 24: exact for maps of 24 knots, and of
numbers of knots that divide 24. Others are refused by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ccg_gmx.errors import SettingsError
from ccg_gmx.export.coarse_system import CoarseSystem
from ccg_gmx.export.lammps_tables import (
    ANGLE_POINTS,
    ANGSTROM_PER_NM,
    BOND_POINTS,
    DIHEDRAL_POINTS,
    PAIR_POINTS,
    bonded_file,
    cmap_file,
    curve_section,
    empty_pair,
    pair_file,
)
from ccg_gmx.molecule.images import reduced_vectors
from ccg_gmx.records import IntArray

MODEL_INPUT = "model.in"
_CMAP_POINTS, _CMAP_GRIDS = 24, 6
_KINDS = {"bond": "Bonds", "angle": "Angles", "dihedral": "Dihedrals"}
_POINTS = {"bond": BOND_POINTS, "angle": ANGLE_POINTS, "dihedral": DIHEDRAL_POINTS}


def lammps_files(system: CoarseSystem) -> dict[str, str]:
    """Text of every file by name.

    Raises:
        SettingsError: if LAMMPS cannot express a map or the exclusions, naming them.
    """
    parts = _Parts(system)
    files = {
        "system.data": parts.data(),
        MODEL_INPUT: parts.model_input(),
        "run.in": _run_input(system.model.temperature_K),
    }
    for kind in _KINDS:
        if names := system.names(kind):
            files[f"{kind}.table"] = bonded_file(kind, {name: system.model.bonded[name] for name in names})
    if system.model.pairs:
        curves = {"-".join(types): curve for types, curve in sorted(system.model.pairs.items())}
        files["pair.table"] = pair_file(curves, system.model.cutoff)
    if parts.maps:
        files["cmap.data"] = cmap_file({name: system.model.maps[name].on_grid(_CMAP_POINTS) for name in parts.maps})
    return files


@dataclass(frozen=True)
class _Parts:
    """The system in LAMMPS' terms."""

    system: CoarseSystem

    @cached_property
    def types(self) -> list[tuple[str, float]]:
        """(bead type, mass) of each atom type."""
        topology = self.system.topology
        return sorted(set(zip(topology.bead_types, topology.masses.tolist(), strict=True)))

    @cached_property
    def maps(self) -> list[str]:
        """Names of the maps, each refused that ``fix cmap`` cannot hold."""
        names = self.system.names("cmap")
        for name in names:
            knots = self.system.model.maps[name].knots
            if _CMAP_POINTS % knots:
                raise SettingsError(
                    f"the map {name} with {knots} knots per torsion",
                    expected=f"a divisor of {_CMAP_POINTS}: fix cmap of LAMMPS has grids of 24 x 24 and no others",
                    remedy="fit the map with 24 knots, or export to another engine",
                )
        if len(names) > _CMAP_GRIDS:
            raise SettingsError(
                f"{len(names)} maps ({', '.join(names)})",
                expected=f"at most {_CMAP_GRIDS}, as fix cmap of LAMMPS holds",
                remedy="export to another engine",
            )
        return names

    @cached_property
    def zero_bonds(self) -> IntArray:
        """Excluded pairs ``[m, 2]`` that have no bond of their own."""
        if self._whole_molecules:
            return np.zeros((0, 2), dtype=np.int64)
        return np.array(sorted(self._excluded - self._bonded), dtype=np.int64).reshape(-1, 2)

    @cached_property
    def _excluded(self) -> set[tuple[int, int]]:
        return {(i, j) for i, j in self.system.topology.excluded_pairs.tolist()}

    @cached_property
    def _bonded(self) -> set[tuple[int, int]]:
        topology = self.system.topology
        found = [topology.bonded_beads(name).tolist() for name in self.system.names("bond")]
        return {(min(pair), max(pair)) for pairs in found for pair in pairs}

    @cached_property
    def _whole_molecules(self) -> bool:
        """Whether all pairs within all molecules are excluded."""
        sizes = np.bincount(self.system.topology.molecule_of)
        return len(self._excluded) == int((sizes * (sizes - 1) // 2).sum()) > 0

    def _exclusions(self) -> list[str]:
        """Commands that leave out the excluded pairs and no others.

        Raises:
            SettingsError: if some bonds are excluded and some are not.
        """
        if self._whole_molecules:
            return ["special_bonds lj/coul 1.0 1.0 1.0", "neigh_modify exclude molecule/intra all"]
        if not self._excluded:
            return ["special_bonds lj/coul 1.0 1.0 1.0"]
        if open_bonds := sorted(self._bonded - self._excluded):
            i, j = open_bonds[0]
            raise SettingsError(
                f"beads {i + 1} and {j + 1} are bonded and not excluded from pairs, while other pairs are excluded",
                expected="all bonds excluded, or none: exclusions of LAMMPS follow the bonds",
                remedy="set nrexcl to 1 or more, or export to another engine",
            )
        return ["special_bonds lj/coul 0.0 1.0 1.0"]

    def data(self) -> str:
        """The data file, with the last frame."""
        topology, bonded = self.system.topology, {kind: self._terms(kind) for kind in _KINDS}
        crossed = [row for k, name in enumerate(self.maps) for row in _rows(k + 1, topology.bonded_beads(name))]
        out = ["coarse model, units real", "", f"{topology.n_beads} atoms"]
        out += [f"{len(rows)} {kind}s" for kind, (rows, _) in bonded.items()]
        out += [f"{len(crossed)} crossterms"] if crossed else []
        out += ["", f"{len(self.types)} atom types"]
        out += [f"{count} {kind} types" for kind, (_, count) in bonded.items() if count]
        out += ["", *self._box(), "", "Masses", ""]
        out += [f"{i} {mass:.9g}  # {name}" for i, (name, mass) in enumerate(self.types, start=1)]
        out += ["", "Atoms  # molecular", "", *self._atoms()]
        for kind, heading in _KINDS.items():
            if rows := bonded[kind][0]:
                out += ["", heading, "", *_numbered(rows)]
        out += ["", "CMAP", "", *_numbered(crossed)] if crossed else []
        return "\n".join([*out, ""])

    def _terms(self, kind: str) -> tuple[list[str], int]:
        """Rows (type and beads) of a kind, and the number of its types."""
        names, topology = self.system.names(kind), self.system.topology
        rows = [row for k, name in enumerate(names) for row in _rows(k + 1, topology.bonded_beads(name))]
        if kind == "bond" and len(self.zero_bonds):
            return rows + _rows(len(names) + 1, self.zero_bonds), len(names) + 1
        return rows, len(names)

    def _box(self) -> list[str]:
        box = self.system.box[-1] * ANGSTROM_PER_NM
        lines = [f"0.0 {box[i, i]:.15g} {x}lo {x}hi" for i, x in enumerate("xyz")]
        tilts = (box[1, 0], box[2, 0], box[2, 1])
        return [*lines, " ".join(f"{x:.15g}" for x in tilts) + " xy xz yz"] if any(tilts) else lines

    def _atoms(self) -> list[str]:
        topology = self.system.topology
        number = {key: i for i, key in enumerate(self.types, start=1)}
        keys = zip(topology.bead_types, topology.masses.tolist(), strict=True)
        positions = (self.system.positions[-1] * ANGSTROM_PER_NM).tolist()
        rows = zip(topology.molecule_of.tolist(), keys, positions, strict=True)
        return [
            f"{i} {molecule + 1} {number[key]} " + " ".join(f"{x:.15g}" for x in position)
            for i, (molecule, key, position) in enumerate(rows, start=1)
        ]

    def model_input(self) -> str:
        """Everything that defines the energy; the other inputs include it."""
        out = ["# The coarse model: include it in an input script. Energies in kcal/mol, lengths in Angstrom.", ""]
        out += ["units real", "atom_style molecular", "boundary p p p", ""]
        out += self._styles()
        reach = f"comm_modify cutoff {self._reach():.6g}"
        fix = ["fix cmap all cmap cmap.data", "fix_modify cmap energy yes"] if self.maps else []
        read = "read_data system.data" + (" fix cmap crossterms CMAP" if self.maps else "")
        out += ["", reach, *fix, read, "", *self._coefficients(), "", *self._exclusions()]
        out += ["neighbor 2.0 bin", "neigh_modify delay 0 every 1 check yes one 10000 page 200000", ""]
        return "\n".join(out)

    def _styles(self) -> list[str]:
        cutoff = self.system.model.cutoff * ANGSTROM_PER_NM
        pair = f"table spline {PAIR_POINTS}" if self.system.model.pairs else f"zero {max(cutoff, 1.0):.15g} nocoeff"
        lines = [f"pair_style {pair}"]
        for kind, points in _POINTS.items():
            tabulated = [f"table spline {points}"] if self.system.names(kind) else []
            zero = ["zero"] if kind == "bond" and len(self.zero_bonds) else []
            styles = tabulated + zero
            if styles:
                lines.append(f"{kind}_style {'hybrid ' if len(styles) > 1 else ''}{' '.join(styles)}")
        return lines

    def _coefficients(self) -> list[str]:
        lines = []
        for kind in _KINDS:
            names = self.system.names(kind)
            hybrid = kind == "bond" and bool(names) and len(self.zero_bonds)
            style = "table " if hybrid else ""
            lines += [f"{kind}_coeff {i} {style}{kind}.table {curve_section(n)}" for i, n in enumerate(names, start=1)]
            if kind == "bond" and len(self.zero_bonds):
                lines.append(f"bond_coeff {len(names) + 1}{' zero' if hybrid else ''}")
        if not self.system.model.pairs:
            return [*lines, "pair_coeff * *"]
        for i, (first, _) in enumerate(self.types, start=1):
            for j, (second, _) in enumerate(self.types[i - 1 :], start=i):
                lines.append(f"pair_coeff {i} {j} pair.table {self._pair(first, second)}")
        return lines

    def _pair(self, first: str, second: str) -> str:
        """Table and cut-off of two types."""
        cutoff = self.system.model.cutoff * ANGSTROM_PER_NM
        key = curve_section("-".join(sorted((first, second))))
        return f"{key if self.system.model.pair(first, second) else empty_pair()} {cutoff:.15g}"

    def _reach(self) -> float:
        """How far ghost atoms must reach, Angstrom: bonded beads have to find each other's nearest image."""
        topology, x = self.system.topology, self.system.positions
        groups = [topology.bonded_beads(name) for name in topology.bonded_names] + [self.zero_bonds]
        longest = 0.0
        for beads in groups:
            for column in range(1, beads.shape[1]):
                step = reduced_vectors(x[:, beads[:, column]] - x[:, beads[:, 0]], self.system.box)
                longest = max(longest, float(np.linalg.norm(step, axis=-1).max(initial=0.0)))
        return float(max(self.system.model.cutoff * ANGSTROM_PER_NM + 2.0, 1.5 * longest * ANGSTROM_PER_NM, 5.0) + 2.0)


def _rows(number: int, beads: IntArray) -> list[str]:
    return [f"{number} {' '.join(str(bead + 1) for bead in row)}" for row in beads.tolist()]


def _numbered(rows: Sequence[str]) -> list[str]:
    return [f"{i} {row}" for i, row in enumerate(rows, start=1)]


def _run_input(temperature_K: float) -> str:
    return f"""# Langevin dynamics of the coarse model: lmp -in run.in
include {MODEL_INPUT}

timestep 2.0
velocity all create {temperature_K:g} 4711 mom yes rot yes dist gaussian
fix move all nve
fix bath all langevin {temperature_K:g} {temperature_K:g} 1000.0 4712
thermo 1000
dump frames all custom 1000 run.lammpstrj id type xu yu zu
run 100000
"""
