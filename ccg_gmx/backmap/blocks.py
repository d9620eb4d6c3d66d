"""Blocks: the fragments between and beside the beads, their kinds, and the order in which they are drawn.

A fragment is a connected component of the bond graph without the beads: C, O, N and H between two C-alpha beads, a side
chain on one. So a bond that closes between two beads lies inside one fragment, where one density describes it whole.
What is placed on other fragments as well is a fragment of its own: the ring of a proline hangs on a peptide bond, but
stands on the next one too, and is drawn as other side chains are, when both are there.
Fragments on one and the same bead that are drawn at the same time are one block (a side chain and its HA).

Around a bead that is the centre of a group, the group is a fragment; the bead is then no atom but a *point* beyond the
atoms, number N + k for bead k, and the group's first atom comes to its place with the others of its block.

A block may see beads and blocks drawn earlier. The order has two parts: *depth*, because a placement may refer to atoms
of other blocks; and within a depth *colour*, because blocks that share a bead are drawn one after the other
(:mod:`ccg_gmx.backmap.colours`).

Blocks of one kind share one model. A kind is what the placement says of its atoms, as seen from the block's residue and
without the residue's name: a peptide unit is the same between any two residues.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ccg_gmx.backmap.colours import colour_blocks, passes_of
from ccg_gmx.errors import TopologyError
from ccg_gmx.molecule.coordinate import Coordinate
from ccg_gmx.molecule.placement.plan import PlacementRow, Plan, inside_groups
from ccg_gmx.records import IntArray

WINDOW = 2
"""Beads of so many residues on either side are seen by name."""
REACH = 4
"""Placed atoms within so many bonds of a block's beads are seen."""


@dataclass(frozen=True)
class Block:
    """One block.

    Attributes:
        rows: rows of the plan, in an order that is the same for all blocks of the kind.
        home: number of the residue it belongs to.
        beads: bead atoms it is bonded to, by rank.
        frame: three beads as points: origin, axis, plane of its local frame.
        depth: 1 + the largest depth of the blocks its placement refers to.
        colour: turn within the depth.
        kind: see the module.
    """

    rows: tuple[int, ...]
    home: int
    beads: tuple[int, ...]
    frame: tuple[int, int, int]
    depth: int
    colour: int
    kind: str


@dataclass(frozen=True, eq=False)
class KindTable:
    """All ``n`` blocks of one kind as arrays.

    Attributes:
        kind: its name.
        label: for people, e.g. ``TYR CB``.
        coordinates: the ``3 m`` coordinates of the first block: bonds, seconds, torsions of its m atoms.
        blocks: ``[n]`` numbers of the blocks.
        columns: ``[n, 3 m]`` columns of y.
        atoms: ``[n, m]`` atoms that come to their place with the blocks, 0-based.
        frames: ``[n, 3]`` points of the local frames.
        origin: ``[n]`` number of the bead at the origin.
        slots: names of the points that some block of the kind sees.
        slot_atoms: ``[n, n_slots]`` those points, -1 where a block has none.
        stage: ``[2, n]`` number of the pass that draws the block, colours in order and in reverse.
        slot_stage: ``[2, n, n_slots]`` pass that places the slot's atom; -1 for beads.
    """

    kind: str
    label: str
    coordinates: tuple[Coordinate, ...]
    blocks: IntArray
    columns: IntArray
    atoms: IntArray
    frames: IntArray
    origin: IntArray
    slots: tuple[str, ...]
    slot_atoms: IntArray
    stage: IntArray
    slot_stage: IntArray


@dataclass(frozen=True, eq=False)
class BlockPlan:
    """The blocks of a system.

    Attributes:
        plan: the placement.
        blocks: all blocks.
        kinds: one table per kind, sorted by kind.
        n_stages: passes that draw a frame.
    """

    plan: Plan
    blocks: tuple[Block, ...]
    kinds: tuple[KindTable, ...]
    n_stages: int


def plan_blocks(plan: Plan) -> BlockPlan:
    """Divide the placed atoms of a plan into blocks.

    Raises:
        TopologyError: too few beads for local frames, or fragments that refer to one another in a ring.
    """
    return _BlockPlanner(plan).run()


class _BlockPlanner:
    def __init__(self, plan: Plan) -> None:
        self.plan, self.system, self.rows = plan, plan.system, plan.rows
        self.centres = plan.mapping.kind != "atom"
        self.beads = {int(atom) for atom in plan.roots}
        self.bead_number = {int(atom): k for k, atom in enumerate(plan.roots)}
        self.at_beads = inside_groups(plan.system, plan.mapping, plan.roots.tolist()) if self.centres else plan.system
        groups = enumerate(plan.mapping.atoms) if self.centres else ()
        self.root_of = {atom: int(plan.roots[k]) for k, group in groups for atom in group}
        self.row_of = {row.atom: k for k, row in enumerate(self.rows)}
        self._beads_of_residue: dict[int, list[int]] = {}
        for bead in sorted(self.beads):
            self._beads_of_residue.setdefault(int(self.system.residues[bead]), []).append(bead)

    def run(self) -> BlockPlan:
        fragments = self._closed(self._merged(self._divided(self._closed(self._fragments()))))
        owner = {atom: k for k, atoms in enumerate(fragments) for atom in atoms}
        depths = self._depths(fragments, owner)
        touched = [self._touched(atoms) for atoms in fragments]
        colours = colour_blocks(touched, depths)
        blocks = [
            self._block(atoms, beads, depth, colour)
            for atoms, beads, depth, colour in zip(fragments, touched, depths, colours, strict=True)
        ]
        stages, count = passes_of(depths, colours)
        owner = self._with_roots({self.rows[row].atom: k for k, block in enumerate(blocks) for row in block.rows})
        names = sorted({block.kind for block in blocks})
        members = {name: [k for k, block in enumerate(blocks) if block.kind == name] for name in names}
        kinds = tuple(self._table(name, members[name], blocks, stages, owner) for name in names)
        return BlockPlan(self.plan, tuple(blocks), kinds, count)

    # --- fragments -----------------------------------------------------------------------------------------------

    def _fragments(self) -> list[list[int]]:
        """Groups around centres; connected components of what is in no bead, in the order of their first atoms."""
        groups: dict[int, list[int]] = {}
        for atom, root in self.root_of.items():
            if atom != root:
                groups.setdefault(root, []).append(atom)
        found = list(groups.values())
        seen = self.beads | set(self.root_of)
        for start in range(len(self.system)):
            if start in seen:
                continue
            seen.add(start)
            atoms = [start]
            for atom in atoms:
                fresh = [other for other in self.system.neighbours(atom) if other not in seen]
                seen.update(fresh)
                atoms += fresh
            found.append(atoms)
        return found

    def _divided(self, fragments: list[list[int]]) -> list[list[int]]:
        """Divide fragments into what is placed on beads and itself, and what is placed on other fragments too."""
        owner = {atom: k for k, atoms in enumerate(fragments) for atom in atoms}
        depth: dict[int, int] = {}
        for row in self.rows:  # in the order of placement
            references = {row.parent, row.angle_ref, row.torsion_ref}
            if not row.shares_frame or owner.get(row.measured_from) == owner[row.atom]:
                references.add(row.measured_from)
            steps = [depth[j] + (owner[j] != owner[row.atom]) for j in references if j in owner]
            depth[row.atom] = max(steps, default=0)
        parts: dict[tuple[int, int], list[int]] = {}
        for atom, k in owner.items():
            parts.setdefault((k, depth[atom]), []).append(atom)
        return sorted(parts.values(), key=min)

    def _merged(self, fragments: list[list[int]]) -> list[list[int]]:
        """Join fragments on the same single bead that are placed on the same level or as siblings."""
        groups: dict[tuple[int, int], list[int]] = {}
        lone = []
        owner = {atom: k for k, atoms in enumerate(fragments) for atom in atoms}
        depths = self._depths(fragments, owner, siblings=False)
        for atoms, depth in zip(fragments, depths, strict=True):
            beads = self._touched(atoms)
            if len(beads) == 1:
                groups.setdefault((beads[0], depth), []).extend(atoms)
            else:
                lone.append(atoms)
        return sorted([*lone, *groups.values()], key=min)

    def _touched(self, atoms: Iterable[int]) -> tuple[int, ...]:
        """Beads that a fragment is bonded to; a group's own bead comes first."""
        own = {self.root_of[atom] for atom in atoms if atom in self.root_of}
        near = {other for atom in (*atoms, *own) for other in self.system.neighbours(atom)}
        around = {self.root_of.get(other, other) for other in near}
        return tuple(
            sorted((around & self.beads) | own, key=lambda bead: (bead not in own, int(self.system.rank[bead])))
        )

    def _depths(self, fragments: list[list[int]], owner: dict[int, int], siblings: bool = True) -> list[int]:
        """Longest way through references from the beads; without ``siblings``, offsets between siblings count not."""
        needs = self._needs(fragments, owner, siblings)
        depths = [0] * len(fragments)
        for _ in range(len(fragments) + 1):
            deeper = [max((1 + depths[other] for other in own), default=0) for own in needs]
            if deeper == depths:
                return depths
            depths = deeper
        raise TopologyError(
            "fragments that refer to one another in a ring", expected="beads that divide the molecule further"
        )

    def _needs(self, fragments: list[list[int]], owner: dict[int, int], siblings: bool) -> list[set[int]]:
        """Fragments that the placement of each fragment refers to."""
        needs: list[set[int]] = [set() for _ in fragments]
        completed = self._with_roots(owner)
        for k, row in enumerate(self.rows):
            references = {row.parent, row.angle_ref, row.torsion_ref}
            if siblings or not row.shares_frame:
                references.add(row.measured_from)
            # Inside groups a root stands for the bead itself; for what is placed afterwards it is an atom.
            owners = owner if k < self.plan.n_inner else completed
            needs[owner[row.atom]] |= {owners[atom] for atom in references if atom in owners}
        for own, others in enumerate(needs):
            others.discard(own)
        return needs

    def _with_roots(self, owner: dict[int, int]) -> dict[int, int]:
        """Owners of atoms, the first atom of every group included, which comes to its place with the others."""
        return owner | {root: owner[atom] for atom, root in self.root_of.items() if atom in owner}

    def _closed(self, fragments: list[list[int]]) -> list[list[int]]:
        """Join fragments that refer to one another in a ring."""
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        owner = {atom: k for k, atoms in enumerate(fragments) for atom in atoms}
        pairs = [(k, other) for k, others in enumerate(self._needs(fragments, owner, True)) for other in others]
        first, second = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
        graph = coo_array((np.ones(len(pairs)), (first, second)), shape=(len(fragments), len(fragments)))
        count, labels = connected_components(graph, directed=True, connection="strong")
        joined: list[list[int]] = [[] for _ in range(count)]
        for label, atoms in zip(labels, fragments, strict=True):
            joined[label] += atoms
        return sorted(joined, key=min)

    # --- one block -----------------------------------------------------------------------------------------------

    def _block(self, atoms: Sequence[int], beads: tuple[int, ...], depth: int, colour: int) -> Block:
        residues, names = self.system.residues, self.system.graph.names
        home = min(int(residues[atom]) for atom in atoms)
        lowest = min(self.rows[self.row_of[atom]].level for atom in atoms)

        def place(atom: int) -> tuple[int, int, str]:
            return self.rows[self.row_of[atom]].level - lowest, int(residues[atom]) - home, names[atom]

        ordered = sorted(atoms, key=place)
        frame = self._frame(beads, ordered, home)
        words = [self._word(self.rows[self.row_of[atom]], place(atom)) for atom in ordered]
        labels = ",".join(self.system.local_label(bead, home) for bead in frame)
        rows = tuple(self.row_of[atom] for atom in ordered)
        points = (self._point(frame[0]), self._point(frame[1]), self._point(frame[2]))
        return Block(rows, home, beads, points, depth, colour, f"[{labels}] " + "; ".join(words))

    def _point(self, bead: int) -> int:
        """Where a bead stands among the points that blocks see: atoms, then centres."""
        return len(self.system) + self.bead_number[bead] if self.centres else bead

    def _word(self, row: PlacementRow, place: tuple[int, int, str]) -> str:
        """What the placement says of a row, without the name of its residue."""
        said = row.key.split(" ", 1)[1]
        mass, degree = self.system.graph.masses[row.atom], self.system.graph.degree(row.atom)
        return f"{place[0]} {place[1]:+d} {round(mass)}/{degree} {said}"

    def _frame(self, beads: tuple[int, ...], atoms: Sequence[int], home: int) -> tuple[int, int, int]:
        """Attached beads first, then the nearest along bonds; of those, the ones of near residues first."""
        first = beads[0] if beads else self._nearest_bead(atoms)
        chosen = list(beads[:2]) or [first]
        for bead in self._around(first, home):
            if (
                len(chosen) < 3
                and bead not in chosen
                and not (len(chosen) == 2 and self.at_beads.collinear(chosen[0], chosen[1], bead))
            ):
                chosen.append(bead)
        if len(chosen) < 3:
            raise TopologyError(
                f"no local frame for {self.system.label(atoms[0])}", expected="three beads that are not on a line"
            )
        return chosen[0], chosen[1], chosen[2]

    def _nearest_bead(self, atoms: Sequence[int]) -> int:
        reference, beads = self.at_beads.reference, self.plan.roots
        return int(beads[np.argmin(np.linalg.norm(reference[beads] - reference[atoms[0]], axis=1))])

    def _around(self, start: int, home: int) -> list[int]:
        """Beads by their distance along bonds, then those nearest in space."""
        residues = self.system.residues
        found: list[int] = []
        reached, shell = {start}, [start]
        while shell and len(found) < 4:
            shell = sorted({j for i in shell for j in self.system.neighbours(i)} - reached)
            reached.update(shell)
            near = [atom for atom in shell if atom in self.beads]
            found += sorted(near, key=lambda b: (abs(int(residues[b]) - home), int(residues[b]), self.system.rank[b]))
        if len(found) < 4:
            beads = np.array(sorted(self.beads - {start, *found}), dtype=np.int64)
            distance = np.linalg.norm(self.at_beads.reference[beads] - self.at_beads.reference[start], axis=1)
            found += beads[np.argsort(distance, kind="stable")[:4]].tolist()
        return found

    # --- tables --------------------------------------------------------------------------------------------------

    def _table(
        self,
        kind: str,
        members: list[int],
        blocks: list[Block],
        stages: IntArray,
        owner: dict[int, int],
    ) -> KindTable:
        own = [blocks[k] for k in members]
        rows = np.array([block.rows for block in own], dtype=np.int64)
        n_rows = len(self.rows)
        columns = np.concatenate([rows, rows + n_rows, rows + 2 * n_rows], axis=1)
        seen = [self._slots(block, k, stages, owner) for k, block in zip(members, own, strict=True)]
        slots = tuple(sorted({name for found in seen for name in found}))
        slot_atoms = np.array([[found.get(name, -1) for name in slots] for found in seen], dtype=np.int64)
        stage_of_atom = np.full((2, len(self.system) + len(self.beads) + 1), -1, dtype=np.int64)
        for atom, block in owner.items():
            stage_of_atom[:, atom] = stages[:, block]
        first = own[0]
        atoms = np.array([self._atoms(block) for block in own], dtype=np.int64)
        return KindTable(
            kind=kind,
            label=self._label(first),
            coordinates=tuple(self.plan.coordinates[column] for column in columns[0]),
            blocks=np.array(members, dtype=np.int64),
            columns=columns,
            atoms=atoms,
            frames=np.array([block.frame for block in own], dtype=np.int64),
            origin=np.array([self._bead_at(block.frame[0]) for block in own], dtype=np.int64),
            slots=slots,
            slot_atoms=slot_atoms.reshape(len(own), len(slots)),
            stage=stages[:, members],
            slot_stage=stage_of_atom[:, slot_atoms.reshape(len(own), len(slots))],
        )

    def _atoms(self, block: Block) -> list[int]:
        """Atoms that come to their place with a block: of its rows, and the first one of its group."""
        atoms = [self.rows[row].atom for row in block.rows]
        return [*atoms, *sorted({self.root_of[atom] for atom in atoms if atom in self.root_of})]

    def _bead_at(self, point: int) -> int:
        return point - len(self.system) if self.centres else self.bead_number[point]

    def _label(self, block: Block) -> str:
        """Residue of one such block and the atom that is placed first."""
        atom = self.rows[block.rows[0]].atom
        return f"{self.system.residue_names[atom]} {self.system.graph.names[atom]}"

    def _slots(self, block: Block, number: int, stages: IntArray, owner: dict[int, int]) -> dict[str, int]:
        """Atoms that the block may see by name: beads of near residues, and placed atoms near its own beads."""
        residues, names, mark = self.system.residues, self.system.graph.names, "@" * self.centres
        molecule = self.system.molecules[self.rows[block.rows[0]].atom]
        seen = {}
        last = max((int(residues[bead]) - block.home for bead in block.beads), default=0)
        for offset in range(-WINDOW, WINDOW + 1 + (last if last <= WINDOW else 0)):
            for bead in self._beads_of_residue.get(block.home + offset, ()):
                if self.system.molecules[bead] == molecule:
                    seen[f"{offset:+d}:{mark}{names[bead]}"] = self._point(bead)
        for k, bead in enumerate(block.beads):
            if abs(int(residues[bead]) - block.home) > WINDOW:
                seen[f"far{k}:{mark}{names[bead]}"] = self._point(bead)
        for atom in self._reached(self._atoms(block) if self.centres else block.beads):
            if atom in owner and (stages[:, owner[atom]] < stages[:, number]).any():
                offset = int(residues[atom]) - block.home
                if abs(offset) <= WINDOW:
                    seen[f"{offset:+d}:{names[atom]}"] = atom
        return seen

    def _reached(self, beads: Iterable[int]) -> set[int]:
        reached = set(beads)
        for _ in range(REACH):
            reached |= {j for i in reached for j in self.system.neighbours(i)}
        return reached
