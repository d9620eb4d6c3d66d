"""The placement plan of a bonded system: which atom is placed from which, in which coordinates, on given beads.

Beads are atoms or centres of groups. Atom beads are where the plan starts, so they are hit exactly. Centre beads are
completed linearly. Let X be the centre of a group with weights w, r_1 its first atom and d_k = r_k - r_1 the others:
X = r_1 + sum w_k d_k is a shear of (X, d) into (r_1, d) with determinant 1. The d_k are placed by bonds, angles and
torsions around r_1 put at X, with references inside the group or at other groups' X only, and the group is then shifted
so that its centre is X. So bonds inside a group are coordinates, bonds between two groups are not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from ccg_gmx.errors import TopologyError
from ccg_gmx.molecule.bond_graph import BondGraph
from ccg_gmx.molecule.coordinate import Coordinate
from ccg_gmx.molecule.mapping import BeadMapping
from ccg_gmx.molecule.placement.order import Step, order_atoms
from ccg_gmx.molecule.placement.supports import TorsionDecision, decide_torsions, describe, step_coordinates
from ccg_gmx.molecule.placement.system import BondedSystem, bonded_system, components
from ccg_gmx.molecule.topology import Topology
from ccg_gmx.records import IntArray

CENTRES_STRAIGHT_RADIANS = math.radians(0.05)
"""Centres of groups are straight by heat, not by chemistry: equal molecules must get equal references."""


@dataclass(frozen=True)
class PlacementRow(Step):
    """A step with what a model shared by residue type needs to know.

    Attributes:
        residue: number of the atom's residue, from 0 in file order.
        key: names of residue, atom and references as seen from the residue, role and support of the torsion. Rows with
            equal keys mean the same geometry, in whatever residue of whatever molecule.
    """

    residue: int
    key: str


@dataclass(frozen=True, eq=False)
class Plan:
    """How every atom is placed on the beads.

    Attributes:
        system: atoms, bonds, residues, reference.
        mapping: the beads.
        roots: ``[n]`` the atom (0-based) that stands at each bead at first: the bead's atom, or a group's first one.
        rows: the other atoms, level by level; bridges last in their level.
        n_inner: the first so many rows belong to groups; after them each group is shifted onto its centre.
        rotors: three identical terminal atoms each, in the order of increasing torsion.
        coordinates: ``[3 n_rows]`` bonds, then angles (second bonds of bridges), then torsions, in the order of rows.
        open_bonds: bonds whose length is no coordinate and not given by two beads; (i, j), i < j.
        sentences: what the supports assume.
    """

    system: BondedSystem
    mapping: BeadMapping
    roots: IntArray
    rows: tuple[PlacementRow, ...]
    n_inner: int
    rotors: tuple[tuple[int, int, int], ...]
    coordinates: tuple[Coordinate, ...]
    open_bonds: tuple[tuple[int, int], ...]
    sentences: tuple[str, ...]

    @property
    def keys(self) -> tuple[str, ...]:
        """Different keys of the rows, sorted."""
        return tuple(sorted({row.key for row in self.rows}))


def build_plan(
    bonds: ArrayLike,
    mapping: BeadMapping,
    *,
    names: Sequence[str],
    residue_names: Sequence[str],
    residue_ids: ArrayLike,
    masses: ArrayLike,
    reference: ArrayLike,
) -> Plan:
    """Plan the placement of every atom of a system on its beads.

    Args:
        bonds: ``[n, 2]`` bonded atoms, 0-based; any graph, any number of molecules.
        mapping: beads that are atoms or centres of groups; at least three, not on a line.
        names: ``[N]`` atom names.
        residue_names: ``[N]`` residue name of each atom.
        residue_ids: ``[N]`` residue number of each atom.
        masses: ``[N]`` amu; equal masses mean the same element.
        reference: ``[N, 3]`` nm, one structure with whole molecules.

    Raises:
        TopologyError: inputs that do not belong together, too few beads, or atoms on a line.
    """
    system = bonded_system(
        bonds,
        names=names,
        residue_names=residue_names,
        residue_ids=residue_ids,
        masses=masses,
        reference=reference,
    )
    return plan_system(system, mapping)


def plan_topology(
    topology: Topology, mapping: BeadMapping, reference: ArrayLike, atoms: Sequence[int] | None = None
) -> Plan:
    """Plan the placement of the atoms of a run input.

    Args:
        topology: the whole run input.
        mapping: beads, in the numbering of the atoms that are kept.
        reference: ``[N, 3]`` nm, of the atoms that are kept.
        atoms: the atoms that are kept (0-based, rising), for instance all but the solvent; None keeps all.

    Raises:
        TopologyError: as :func:`build_plan`, or a bond from a kept atom to one that is left out.
    """
    kept = np.arange(topology.n_atoms) if atoms is None else np.asarray(atoms, dtype=np.int64)
    place = np.full(topology.n_atoms, -1)
    place[kept] = np.arange(len(kept))
    bonds = place[topology.bonds]
    cut = (bonds < 0).sum(axis=1) == 1
    if cut.any():
        one, other = (topology.label(atom) for atom in topology.bonds[cut][0].tolist())
        raise TopologyError(
            f"the bond between {one} and {other} leads out of the atoms that are kept",
            expected="whole molecules",
            remedy="keep both atoms, or leave both out",
        )
    return build_plan(
        bonds[(bonds >= 0).all(axis=1)],
        mapping,
        names=[topology.names[atom] for atom in kept],
        residue_names=[topology.residue_names[atom] for atom in kept],
        residue_ids=topology.residue_ids[kept],
        masses=topology.masses[kept],
        reference=reference,
    )


def plan_system(system: BondedSystem, mapping: BeadMapping) -> Plan:
    """Plan the placement of a system that is already indexed; see :func:`build_plan`."""
    _check_beads(system, mapping)
    inside = [atom for group in mapping.atoms for atom in group]
    roots = [_root(system, group) for group in mapping.atoms]
    groups = inside_groups(system, mapping, roots)
    inner, rotors = order_atoms(groups, roots, inside, system.graph)
    outer, outer_rotors = order_atoms(system, inside, range(len(system)), system.graph)
    steps, rotors = (*inner, *outer), (*rotors, *outer_rotors)
    decisions = decide_torsions(system, groups, inner, rotors) + decide_torsions(system, system, outer, rotors)
    rows = tuple(_row(system, step, decision) for step, decision in zip(steps, decisions, strict=True))
    triples = [step_coordinates(system, step, decision) for step, decision in zip(steps, decisions, strict=True)]
    coordinates = tuple(coordinate for part in zip(*triples, strict=True) for coordinate in part)
    given = set(inside) if mapping.kind == "atom" else set()
    return Plan(
        system=system,
        mapping=mapping,
        roots=np.array(roots, dtype=np.int64),
        rows=rows,
        n_inner=len(inner),
        rotors=rotors,
        coordinates=coordinates,
        open_bonds=_open_bonds(system.graph, steps, given),
        sentences=describe(steps, decisions),
    )


def _check_beads(system: BondedSystem, mapping: BeadMapping) -> None:
    if mapping.n_atoms != len(system):
        raise TopologyError(
            f"beads for {mapping.n_atoms} atoms in a system of {len(system)}",
            expected="mapping and topology of the same system",
            remedy="make the mapping from this topology",
        )
    if len(mapping.atoms) < 3:
        raise TopologyError(
            f"{len(mapping.atoms)} beads",
            expected="at least three, which give every frame its orientation",
            remedy="choose more beads",
        )


def _root(system: BondedSystem, group: Sequence[int]) -> int:
    """The atom with the most neighbours inside its group; the earliest by name where that leaves a choice."""
    inside = set(group)
    return min(group, key=lambda atom: (-len(inside & set(system.neighbours(atom))), system.rank[atom]))


def inside_groups(system: BondedSystem, mapping: BeadMapping, roots: Sequence[int]) -> BondedSystem:
    """The same atoms with the bonds inside groups only, and each group shifted so that its root is at its centre."""
    reference = system.reference.copy()
    for root, atoms, weights in zip(roots, mapping.atoms, mapping.weights, strict=True):
        reference[list(atoms)] += np.array(weights) @ system.reference[list(atoms)] - system.reference[root]
    group_of = {atom: k for k, group in enumerate(mapping.atoms) for atom in group}
    neighbours = tuple(
        tuple(j for j in around if group_of.get(i, -1) == group_of.get(j, -2))
        for i, around in enumerate(system.graph.neighbours)
    )
    graph = BondGraph(neighbours, system.graph.masses, system.graph.names)
    return replace(
        system,
        graph=graph,
        molecules=components(graph),
        reference=reference,
        straight_radians=CENTRES_STRAIGHT_RADIANS,
    )


def _row(system: BondedSystem, step: Step, decision: TorsionDecision) -> PlacementRow:
    home = int(system.residues[step.atom])
    references = (step.parent, step.angle_ref, step.torsion_ref, step.measured_from)
    labels = [system.local_label(reference, home) for reference in references]
    parts = (system.residue_names[step.atom], system.graph.names[step.atom], step.role, *labels, decision.tag)
    return PlacementRow(**vars(step), residue=home, key=" ".join(parts))


def _open_bonds(graph: BondGraph, steps: Sequence[Step], given: set[int]) -> tuple[tuple[int, int], ...]:
    closed = {(step.atom, step.parent) for step in steps}
    closed |= {(step.atom, step.angle_ref) for step in steps if step.role == "bridge"}
    bonds = ((i, j) for i, around in enumerate(graph.neighbours) for j in around if i < j)
    return tuple((i, j) for i, j in bonds if not {(i, j), (j, i)} & closed and not {i, j} <= given)
