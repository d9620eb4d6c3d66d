"""A molecular system as backmapping needs it: atoms without solvent, beads, placement, blocks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ccg_gmx.backmap.blocks import BlockPlan, plan_blocks
from ccg_gmx.errors import SettingsError, TopologyError
from ccg_gmx.molecule.bead_file import MappingFile
from ccg_gmx.molecule.mapping import BeadMapping, bead_mapping_from_atoms
from ccg_gmx.molecule.placement.plan import Plan, build_plan
from ccg_gmx.molecule.placement.transform import Placement
from ccg_gmx.molecule.topology import Topology
from ccg_gmx.records import FloatArray, IntArray

BEAD_SETS = {"backbone": ("N", "CA", "C"), "ca": ("CA",)}
"""Names of choices of beads -> names of their atoms."""


@dataclass(frozen=True, eq=False)
class Atoms:
    """Atoms of a system, from whatever file.

    Attributes:
        names: ``[N]`` atom names.
        residue_names: ``[N]``.
        residue_ids: ``[N]`` residue numbers.
        masses: ``[N]`` amu.
        charges: ``[N]`` e.
        bonds: ``[n, 2]`` 0-based.
    """

    names: tuple[str, ...]
    residue_names: tuple[str, ...]
    residue_ids: IntArray
    masses: FloatArray
    charges: FloatArray
    bonds: IntArray

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def of_topology(cls, topology: Topology) -> Atoms:
        """The atoms of a run input."""
        return cls(
            topology.names,
            topology.residue_names,
            topology.residue_ids,
            topology.masses,
            topology.charges,
            topology.bonds,
        )

    def take(self, kept: IntArray) -> Atoms:
        """Return some of the atoms with the bonds among them.

        Args:
            kept: rising 0-based atoms.
        """
        place = np.full(len(self), -1, dtype=np.int64)
        place[kept] = np.arange(len(kept))
        bonds = place[np.asarray(self.bonds, dtype=np.int64).reshape(-1, 2)]
        return Atoms(
            names=tuple(self.names[k] for k in kept),
            residue_names=tuple(self.residue_names[k] for k in kept),
            residue_ids=self.residue_ids[kept],
            masses=self.masses[kept],
            charges=self.charges[kept],
            bonds=bonds[(bonds >= 0).all(axis=1)],
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values and tensors, for a model file."""
        return {
            "names": list(self.names),
            "residue_names": list(self.residue_names),
            **{
                key: torch.as_tensor(np.ascontiguousarray(getattr(self, key)))
                for key in ("residue_ids", "masses", "charges", "bonds")
            },
        }

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Atoms:
        """Undo :meth:`to_dict`."""
        arrays = {key: content[key].numpy() for key in ("residue_ids", "masses", "charges", "bonds")}
        return cls(tuple(content["names"]), tuple(content["residue_names"]), **arrays)


@dataclass(frozen=True, eq=False)
class BackmapSystem:
    """Atoms, beads and how everything else is placed on them.

    Attributes:
        atoms: all N atoms.
        bead_names: names of the atoms that are beads, as chosen, or of the beads of a mapping file.
        beads: ``[n]`` the atom (0-based) of each bead; of a bead that is a centre, the first atom of its group.
        reference: ``[N, 3]`` nm, whose handedness the supports keep.
        placement: positions <-> beads and internal coordinates.
        blocks: what is drawn together.
    """

    atoms: Atoms
    bead_names: tuple[str, ...]
    beads: IntArray
    reference: FloatArray
    placement: Placement
    blocks: BlockPlan

    @property
    def mapping(self) -> BeadMapping:
        """The beads."""
        return self.placement.plan.mapping

    @property
    def centres(self) -> bool:
        """Whether beads are centres of groups, and no atoms."""
        return self.mapping.kind != "atom"

    @property
    def bead_points(self) -> IntArray:
        """``[n]`` where the beads stand among the points that blocks see: atoms, then centres."""
        return len(self.atoms) + np.arange(len(self.beads)) if self.centres else self.beads

    def bead_positions(self, positions: FloatArray) -> FloatArray:
        """Beads ``[T, n, 3]`` nm of frames ``[T, N, 3]`` nm."""
        return self.mapping.map_positions(positions)

    @property
    def residues(self) -> IntArray:
        """``[N]`` number of the residue of each atom, from 0."""
        return self.placement.plan.system.residues

    def residue_charges(self) -> FloatArray:
        """``[n_residues]`` net charge, e."""
        return np.bincount(self.residues, weights=self.atoms.charges).astype(np.float64)

    def residue_label(self, residue: int) -> str:
        """Name and number of a residue: ``TRP9``."""
        atom = int(np.flatnonzero(self.residues == residue)[0])
        return f"{self.atoms.residue_names[atom]}{self.atoms.residue_ids[atom]}"

    def describe(self) -> str:
        """One line for people."""
        kinds = len(self.blocks.kinds)
        return (
            f"{len(self.atoms)} atoms in {int(self.residues[-1]) + 1} residues, {len(self.beads)} beads "
            f"({', '.join(self.bead_names)}), {len(self.blocks.blocks)} blocks of {kinds} kinds in "
            f"{self.blocks.n_stages} passes"
        )


def make_system(atoms: Atoms, beads: Sequence[str], reference: FloatArray) -> BackmapSystem:
    """Plan the way from beads to atoms.

    Args:
        atoms: without solvent.
        beads: names of the atoms that are beads.
        reference: ``[N, 3]`` nm, molecules whole.

    Raises:
        SettingsError: no atom has one of the names.
        TopologyError: a residue has none of the beads though the others do, or the plan cannot be made.
    """
    chosen = [k for k, name in enumerate(atoms.names) if name in beads]
    missing = [name for name in beads if name not in atoms.names]
    if missing:
        raise SettingsError(
            f"no atom is named {missing[0]}",
            expected="names of atoms of this system",
            remedy="--beads backbone (N, CA, C), ca, or names with commas",
        )
    system = make_system_at(atoms, chosen, beads, reference)
    _check_residues(system)
    return system


def make_system_at(
    atoms: Atoms, chosen: Sequence[int], bead_names: Sequence[str], reference: FloatArray
) -> BackmapSystem:
    """As :func:`make_system`, with beads given by their atoms.

    Args:
        atoms: without solvent.
        chosen: the atom of each bead, 0-based, in the order of the beads.
        bead_names: what the beads are called, for people.
        reference: ``[N, 3]`` nm, molecules whole.

    Raises:
        TopologyError: the plan cannot be made.
    """
    mapping = bead_mapping_from_atoms([f"{atoms.names[k]}{k + 1}" for k in chosen], [k + 1 for k in chosen], len(atoms))
    return make_system_on(atoms, mapping, bead_names, reference)


def make_system_on(
    atoms: Atoms, mapping: BeadMapping, bead_names: Sequence[str], reference: FloatArray
) -> BackmapSystem:
    """As :func:`make_system`, with beads that are atoms or centres of groups.

    Args:
        atoms: without solvent.
        mapping: the beads, in the numbering of these atoms.
        bead_names: what the beads are called, for people.
        reference: ``[N, 3]`` nm, molecules whole.

    Raises:
        TopologyError: the plan cannot be made.
    """
    plan = build_plan(
        atoms.bonds,
        mapping,
        names=atoms.names,
        residue_names=atoms.residue_names,
        residue_ids=atoms.residue_ids,
        masses=atoms.masses,
        reference=reference,
    )
    plan = agreed_supports(plan)
    return BackmapSystem(
        atoms, tuple(bead_names), plan.roots, np.asarray(reference), Placement(plan), plan_blocks(plan)
    )


def agreed_supports(plan: Plan) -> Plan:
    """Give rows that say the same the same support, where the reference shows some of them flat and others bent.

    A reference taken from a simulation is bent by heat: one guanidinium group of ten may be flat within 30 degrees and
    another not. The support that most rows of a name have is the support of all, unless it is one of two handednesses
    or of cis and trans: those differ in earnest.
    """
    groups: dict[str, list[int]] = {}
    for k, row in enumerate(plan.rows):
        groups.setdefault(row.key.rsplit(" ", 1)[0].split(" ", 1)[1], []).append(k)
    coordinates, rows = list(plan.coordinates), list(plan.rows)
    offset = 2 * len(rows)
    for members in groups.values():
        tags = Counter(rows[k].key.rsplit(" ", 1)[1] for k in members)
        windows = [tag for tag in tags if tag != "circle"]
        if len(windows) != 1 or len(tags) != 2:
            continue
        flat = tags[windows[0]] >= tags["circle"]
        tag = windows[0] if flat else "circle"
        model = next(coordinates[offset + k] for k in members if rows[k].key.endswith(f" {tag}"))
        for k in members:
            coordinates[offset + k] = replace(model, name=coordinates[offset + k].name)
            rows[k] = replace(rows[k], key=f"{rows[k].key.rsplit(' ', 1)[0]} {tag}")
    return replace(plan, coordinates=tuple(coordinates), rows=tuple(rows))


def bead_names(choice: str) -> tuple[str, ...]:
    """Atom names of a choice of beads: a key of :data:`BEAD_SETS`, or names with commas.

    Raises:
        SettingsError: nothing is named.
    """
    names = BEAD_SETS.get(choice.lower()) or tuple(part.strip() for part in choice.split(",") if part.strip())
    if not names:
        raise SettingsError(f"--beads {choice!r}", expected="backbone, ca, or atom names with commas")
    return names


def names_a_file(choice: str) -> bool:
    """Whether a choice of beads is a mapping file (.yaml, or VOTCA's .xml) and no list of names."""
    return choice.lower().endswith((".yaml", ".yml", ".xml"))


def mapped_names(file: MappingFile) -> tuple[str, ...]:
    """What the beads of a mapping file are called, each name once."""
    return tuple(dict.fromkeys(bead.name for molecule in file.molecules.values() for bead in molecule.beads))


def _check_residues(system: BackmapSystem) -> None:
    """A residue without beads would hang in the air, and is mostly a wrong selection."""
    with_beads = set(system.residues[system.beads].tolist())
    lone = [residue for residue in range(int(system.residues[-1]) + 1) if residue not in with_beads]
    if lone and len(with_beads) > 2:
        first = system.residue_label(lone[0])
        raise TopologyError(
            f"{len(lone)} residues have no bead, {first} for one",
            expected=f"an atom named {' or '.join(system.bead_names)} in every residue",
            remedy="choose other beads, or leave these residues out of the topology",
        )


def relabelled(system: BackmapSystem, positions: FloatArray) -> Tensor:
    """Frames ``[T, N, 3]`` nm with identical atoms of rotors in their one order, as the supports want them."""
    with torch.no_grad():
        return system.placement.relabel(torch.as_tensor(positions, dtype=torch.float64))
