"""Index tables that let all atoms of a level be placed at once."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from ccg_gmx.molecule.placement.plan import PlacementRow, Plan
from ccg_gmx.records import IntArray


@dataclass(frozen=True)
class Level:
    """Where the rows, frames, siblings and rotors of one level stand in :class:`LevelTables`.

    Attributes:
        rows: rows of the level, bridges last.
        n_plain: number of rows that are no bridges.
        frames: its local frames; siblings share one.
        siblings: its pairs of siblings.
        rotors: its rotors.
        completes: whether groups are shifted onto their centres after this level.
    """

    rows: slice
    n_plain: int
    frames: slice
    siblings: slice
    rotors: slice
    completes: bool

    @property
    def size(self) -> int:
        """Number of atoms placed."""
        return int(self.rows.stop - self.rows.start)


@dataclass(frozen=True, eq=False)
class LevelTables:
    """Index tables of all levels.

    Attributes:
        levels: the levels in the order they are placed.
        frames: ``[F, 3]`` parent, angle and torsion reference of each local frame, as points.
        frame_of_row: ``[n_rows]`` place of the row's frame within its level.
        siblings: ``[S, 2]`` row and the row its torsion is measured from, as places within their level.
        rotors: ``[R, 3]`` rows of rotors, as places within their level.
        point_of_atom: ``[N]`` place of each atom among the points: roots of beads, then atoms of rows.
    """

    levels: tuple[Level, ...]
    frames: IntArray
    frame_of_row: IntArray
    siblings: IntArray
    rotors: IntArray
    point_of_atom: IntArray


def level_tables(plan: Plan) -> LevelTables:
    """Index the rows of a plan by level."""
    points = {atom: k for k, atom in enumerate((*plan.roots.tolist(), *(row.atom for row in plan.rows)))}
    rotor_of = {rotor[0]: rotor for rotor in plan.rotors}
    levels: list[Level] = []
    frames: list[list[int]] = []
    frame_of_row: list[int] = []
    siblings: list[tuple[int, int]] = []
    rotors: list[list[int]] = []
    start = 0
    for inner, group in _groups(plan):
        place = {row.atom: k for k, row in enumerate(group)}
        unique = {frame: k for k, frame in enumerate(dict.fromkeys(_frame(row) for row in group))}
        pairs = [(place[row.atom], place[row.measured_from]) for row in group if row.shares_frame]
        triples = [[place[atom] for atom in rotor_of[row.atom]] for row in group if row.atom in rotor_of]
        stop = start + len(group)
        levels.append(
            Level(
                rows=slice(start, stop),
                n_plain=sum(row.role != "bridge" for row in group),
                frames=slice(len(frames), len(frames) + len(unique)),
                siblings=slice(len(siblings), len(siblings) + len(pairs)),
                rotors=slice(len(rotors), len(rotors) + len(triples)),
                completes=inner and stop == plan.n_inner,
            )
        )
        frames += [[points[atom] for atom in frame] for frame in unique]
        frame_of_row += [unique[_frame(row)] for row in group]
        siblings += pairs
        rotors += triples
        start = stop
    return LevelTables(
        levels=tuple(levels),
        frames=_table(frames, 3),
        frame_of_row=np.array(frame_of_row, dtype=np.int64),
        siblings=_table(siblings, 2),
        rotors=_table(rotors, 3),
        point_of_atom=np.array([points[atom] for atom in range(len(plan.system))], dtype=np.int64),
    )


def _groups(plan: Plan) -> list[tuple[bool, list[PlacementRow]]]:
    """Rows of each level; levels inside groups come first."""
    tagged = [(k < plan.n_inner, row) for k, row in enumerate(plan.rows)]
    grouped = itertools.groupby(tagged, key=lambda item: (item[0], item[1].level))
    return [(inner, [row for _, row in items]) for (inner, _), items in grouped]


def _frame(row: PlacementRow) -> tuple[int, int, int]:
    return row.parent, row.angle_ref, row.torsion_ref


def _table(values: object, width: int) -> IntArray:
    return np.array(values, dtype=np.int64).reshape(-1, width)
