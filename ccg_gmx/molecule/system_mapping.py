"""A mapping file and a topology brought together: the linear map from the atoms of many molecules to beads.

Molecules of one type are mapped alike, so weights are kept once per type. Forces need a map of their own
(:mod:`ccg_gmx.molecule.force_mapping`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ccg_gmx.errors import SettingsError
from ccg_gmx.molecule.bead_file import BONDED_SECTIONS, BeadSettings, MappingFile, MoleculeSettings
from ccg_gmx.molecule.coarse_topology import BondedType, CoarseMoleculeType, CoarseTopology
from ccg_gmx.molecule.mapping_kernel import Sparse, map_forces, map_positions, sparse_rows
from ccg_gmx.molecule.molecule_types import MoleculeType
from ccg_gmx.molecule.trajectory import bond_levels
from ccg_gmx.records import FloatArray, IntArray

Floats = NDArray[np.float32] | NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class MoleculeMap:
    """The map of one molecule type.

    Attributes:
        molecule: its atoms.
        coarse: its beads.
        weights: ``[n, N]`` weights of the atoms in each bead's position, rows with sum 1.
        members: ``[N]`` bead of each atom, -1 for none; atoms of weight 0 are members too.
    """

    molecule: MoleculeType
    coarse: CoarseMoleculeType
    weights: FloatArray
    members: IntArray

    @cached_property
    def sparse(self) -> Sparse:
        """The weights as the kernels take them."""
        return sparse_rows(self.weights)

    @cached_property
    def walk(self) -> tuple[IntArray, IntArray]:
        """``[N]`` atoms in an order in which each comes after the atom it is placed next to, and that atom.

        An atom without links is placed next to the first atom, whose own partner is itself.
        """
        order, partner = np.arange(self.molecule.n_atoms), np.zeros(self.molecule.n_atoms, dtype=np.int64)
        levels = bond_levels(self.molecule.n_atoms, self.molecule.links)
        placed = np.concatenate([np.zeros(0, dtype=np.int64), *(children for children, _ in levels)])
        for children, parents in levels:
            partner[children] = parents
        roots = np.setdiff1d(order, placed)
        return np.concatenate([roots, placed]).astype(np.int64), partner


@dataclass(frozen=True, eq=False)
class MappedBlock:
    """Copies of one molecule type that follow one another.

    Attributes:
        map: their map.
        count: number of copies.
        first_atom: the first atom of the first copy in the system.
        first_bead: its first bead.
    """

    map: MoleculeMap
    count: int
    first_atom: int
    first_bead: int


@dataclass(frozen=True, eq=False)
class SystemMapping:
    """The map of a system.

    Attributes:
        blocks: mapped molecules; atoms between them have no beads.
        n_atoms: atoms N of the system.
        topology: its beads.
    """

    blocks: tuple[MappedBlock, ...]
    n_atoms: int
    topology: CoarseTopology = field(init=False)

    def __post_init__(self) -> None:
        """Derive the coarse topology."""
        topology = CoarseTopology(tuple((block.map.coarse, block.count) for block in self.blocks))
        object.__setattr__(self, "topology", topology)

    @property
    def maps(self) -> tuple[MoleculeMap, ...]:
        """The map of each molecule type, once."""
        return tuple({block.map.molecule.name: block.map for block in self.blocks}.values())

    def positions(self, frames: Floats, box: Floats | None) -> FloatArray:
        """Bead positions ``[T, n, 3]`` nm of frames ``[T, N, 3]`` nm in boxes ``[T, 3, 3]`` nm.

        Molecules are made whole on the way; each starts from where its first atom is.
        """
        boxes = np.zeros((len(frames), 3, 3)) if box is None else np.ascontiguousarray(box, dtype=np.float64)
        beads = np.empty((len(frames), self.topology.n_beads, 3))
        for block in self.blocks:
            place = (block.first_atom, block.map.molecule.n_atoms, block.count, block.first_bead)
            map_positions(self._checked(frames), boxes, *block.map.walk, *block.map.sparse, *place, beads)
        return beads

    def forces(self, forces: Floats, coefficients: dict[str, FloatArray]) -> FloatArray:
        """Bead forces ``[T, n, 3]`` of atomistic forces ``[T, N, 3]``, kJ/mol/nm.

        Args:
            forces: the atoms' forces.
            coefficients: ``[n, N]`` by molecule type, see :mod:`ccg_gmx.molecule.force_mapping`.
        """
        beads = np.empty((len(forces), self.topology.n_beads, 3))
        for block in self.blocks:
            rows = sparse_rows(coefficients[block.map.molecule.name])
            place = (block.first_atom, block.map.molecule.n_atoms, block.count, block.first_bead)
            map_forces(self._checked(forces), *rows, *place, beads)
        return beads

    def _checked(self, values: Floats) -> Floats:
        if values.ndim != 3 or values.shape[1:] != (self.n_atoms, 3):
            raise ValueError(f"frames of shape {values.shape}, expected [T, {self.n_atoms}, 3]")
        return values if values.flags.c_contiguous else values.copy()


def map_system(file: MappingFile, molecules: Sequence[tuple[MoleculeType, int]]) -> SystemMapping:
    """Apply a mapping file to the molecules of a system.

    Args:
        file: the mapping.
        molecules: molecule types with their number of copies, in the order of the system.

    Raises:
        SettingsError: the two do not fit: unknown or missing molecules and atoms, atoms in two beads or in none.
    """
    present = list(dict.fromkeys(molecule.name for molecule, _ in molecules))
    if unknown := [name for name in (*file.molecules, *file.leave_out) if name not in present]:
        raise SettingsError(f"the topology has no molecule type {unknown[0]}", expected=f"one of {', '.join(present)}")
    if missing := [name for name in present if name not in file.molecules and name not in file.leave_out]:
        raise SettingsError(
            f"molecule type {missing[0]} has no beads",
            expected="beads for each",
            remedy="add it, or list it in leave_out",
        )
    maps: dict[str, MoleculeMap] = {}
    blocks: list[MappedBlock] = []
    atom = bead = 0
    for molecule, count in molecules:
        if molecule.name in file.molecules:
            if molecule.name not in maps:
                maps[molecule.name] = map_molecule(file.molecules[molecule.name], molecule)
            blocks.append(MappedBlock(maps[molecule.name], count, atom, bead))
            bead += count * maps[molecule.name].coarse.n_beads
        atom += count * molecule.n_atoms
    return SystemMapping(tuple(blocks), atom)


def map_molecule(settings: MoleculeSettings, molecule: MoleculeType) -> MoleculeMap:
    """Find the atoms of each bead of a molecule type.

    Raises:
        SettingsError: an atom is unknown, ambiguous, in two beads or in none.
    """
    members = np.full(molecule.n_atoms, -1, dtype=np.int64)
    weights = np.zeros((len(settings.beads), molecule.n_atoms))
    groups = [[_find(molecule, selector) for selector in bead.atoms] for bead in settings.beads]
    for index, (bead, atoms) in enumerate(zip(settings.beads, groups, strict=True)):
        for atom in atoms:
            if members[atom] >= 0:
                other = settings.beads[int(members[atom])].name
                raise SettingsError(
                    f"{molecule.name}: atom {molecule.label(atom)} is in beads {other} and {bead.name}"
                    if other != bead.name
                    else f"{molecule.name}: atom {molecule.label(atom)} is twice in bead {bead.name}",
                    expected="every atom in one bead",
                )
            members[atom] = index
        weights[index, atoms] = _weights(bead, molecule, atoms)
    _check_unmapped(settings, molecule, members)
    return MoleculeMap(molecule, _coarse(settings, molecule, groups), weights, members)


def _find(molecule: MoleculeType, selector: str | int) -> int:
    """Return the 0-based atom of a selector."""
    if isinstance(selector, int):
        if not 1 <= selector <= molecule.n_atoms:
            raise SettingsError(
                f"{molecule.name} has no atom {selector}",
                expected=f"1..{molecule.n_atoms}",
                remedy="count from 1 within the molecule",
            )
        return selector - 1
    *residue, name = selector.split(":")
    found = [atom for atom in range(molecule.n_atoms) if molecule.names[atom] == name and _in(molecule, atom, residue)]
    if len(found) > 1:
        raise SettingsError(
            f"{molecule.name} has {len(found)} atoms {selector}",
            expected="one",
            remedy=f"write residue number and name, {molecule.residue_ids[found[0]]}:{name}, or the atom's number",
        )
    if not found:
        some = ", ".join(dict.fromkeys(molecule.names[:12]))
        raise SettingsError(
            f"{molecule.name} has no atom {selector}", expected=f"a name ({some}), RESIDUE:NAME or a number from 1"
        )
    return found[0]


def _in(molecule: MoleculeType, atom: int, residue: list[str]) -> bool:
    """Whether an atom is in a residue: any, by its number, or by VOTCA's place and name."""
    if len(residue) == 1:
        return str(molecule.residue_ids[atom]) == residue[0]
    if len(residue) == 2:
        return [str(molecule.residue_places[atom]), molecule.residue_names[atom]] == residue
    return not residue


def _weights(bead: BeadSettings, molecule: MoleculeType, atoms: list[int]) -> FloatArray:
    share = np.ones(len(atoms)) if bead.at != "com" else molecule.masses[atoms]
    if bead.weights is not None:
        share = np.array(bead.weights)
    site = next((atom for atom, part in zip(atoms, share, strict=True) if part and not molecule.masses[atom]), None)
    if site is not None or not share.sum():
        named = molecule.label(atoms[0] if site is None else site)
        raise SettingsError(
            f"{molecule.name}: bead {bead.name} stands on atom {named}, which has no mass",
            expected="atoms with masses, because forces on a virtual site belong to the atoms it is built from",
            remedy="use the centre of mass",
        )
    return np.asarray(share / share.sum(), dtype=np.float64)


def _check_unmapped(settings: MoleculeSettings, molecule: MoleculeType, members: IntArray) -> None:
    if settings.unmapped == "allow":
        return
    allowed = () if settings.unmapped == "error" else settings.unmapped
    free = {_find(molecule, selector) for selector in allowed}
    if surplus := [atom for atom in sorted(free) if members[atom] >= 0]:
        raise SettingsError(
            f"{molecule.name}: atom {molecule.label(surplus[0])} is listed in unmapped and is in a bead",
            expected="one of the two",
        )
    if missing := [atom for atom in np.flatnonzero(members < 0).tolist() if atom not in free]:
        others = f" and {len(missing) - 1} more are" if len(missing) > 1 else " is"
        raise SettingsError(
            f"{molecule.name}: atom {molecule.label(missing[0])}{others} in no bead",
            expected="every atom in one bead",
            remedy="add it to a bead, list it in unmapped, or write unmapped: allow",
        )


def _coarse(settings: MoleculeSettings, molecule: MoleculeType, groups: list[list[int]]) -> CoarseMoleculeType:
    place = {bead.name: index for index, bead in enumerate(settings.beads)}
    bonded = tuple(
        BondedType(name, kind, tuple(tuple(place[bead] for bead in row) for row in rows))
        for section, kind in BONDED_SECTIONS.items()
        for name, rows in getattr(settings, section).items()
    )
    _check_repeats(molecule.name, bonded, list(place))
    explicit = {(place[first], place[second]) for first, second in settings.exclusions}
    pairs = {(min(pair), max(pair)) for pair in explicit | excluded_by_bonds(bonded, settings.nrexcl, len(groups))}
    return CoarseMoleculeType(
        name=molecule.name,
        bead_names=tuple(place),
        bead_types=tuple(bead.type for bead in settings.beads),
        masses=tuple(math.fsum(molecule.masses[atoms]) for atoms in groups),
        residue_names=tuple(molecule.residue_names[atoms[0]] for atoms in groups),
        residue_ids=tuple(molecule.residue_ids[atoms[0]] for atoms in groups),
        bonded=bonded,
        exclusions=tuple(sorted(pairs)),
    )


def _check_repeats(name: str, bonded: tuple[BondedType, ...], beads: list[str]) -> None:
    """A term that stands there twice, forwards or backwards, would count twice."""
    counts = Counter((term.kind, min(row, row[::-1])) for term in bonded for row in term.beads)
    for (kind, row), count in counts.items():
        if count > 1:
            raise SettingsError(
                f"{name}: {kind} [{', '.join(beads[bead] for bead in row)}] stands there {count} times", expected="once"
            )


def excluded_by_bonds(bonded: tuple[BondedType, ...], nrexcl: int | str, n_beads: int) -> set[tuple[int, int]]:
    """Pairs of beads that share a bonded term (``bonded``), or are at most ``nrexcl`` bonds apart."""
    if nrexcl == "bonded":
        rows = [row for term in bonded for row in term.beads]
        return {(min(a, b), max(a, b)) for row in rows for a in row for b in row if a != b}
    near = np.eye(n_beads, dtype=bool)
    step = near.copy()
    for first, second in (row for term in bonded if term.kind == "bond" for row in term.beads):
        step[first, second] = step[second, first] = True
    for _ in range(min(int(nrexcl), n_beads)):
        near = near @ step
    return {(int(a), int(b)) for a, b in np.argwhere(np.triu(near, 1))}
