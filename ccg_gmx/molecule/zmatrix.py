"""Internal coordinates of a molecule, split into coarse variables s, other bead coordinates b, and the rest y.

``r = join(s, b, y)`` is one-to-one up to a rigid motion, beads first: their positions depend on (s, b) alone. The
volume element is ``ln|dr/dq| = sum 2 ln(bond) + sum ln sin(angle)`` up to the constant of the rigid motion; torsions,
offsets from siblings and rotor means change it by nothing (unit Jacobian). Reference: Go & Scheraga,
doi:10.1021/ma60054a012, for the Jacobian of bonds, angles and torsions.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from ccg_gmx.errors import TopologyError
from ccg_gmx.molecule import nerf
from ccg_gmx.molecule.bond_graph import stereocentres
from ccg_gmx.molecule.coordinate import Coordinate
from ccg_gmx.molecule.supports import GENERAL, bead_coordinates, bead_torsions, row_coordinates
from ccg_gmx.molecule.tree import Tree
from ccg_gmx.records import FloatArray

Array = TypeVar("Array", Tensor, FloatArray)
Torsions = Mapping[str, Sequence[int]] | Sequence[Sequence[int]]


class InternalCoordinates(torch.nn.Module):
    """Bijection between Cartesian positions (up to rigid motion) and internal coordinates (s, b, y).

    Rotor coordinates: three identical atoms at torsions chi1, chi1 + d2, chi1 + d3 are written as (m, d2, d3) with
    m = chi1 + (d2 + d3) / 3. A cyclic relabelling then shifts m by exactly 2 pi / 3, so one third of the circle holds
    every arrangement once. (Exact while neighbouring atoms are less than pi apart; three atoms on one half of the
    circle are hundreds of kJ/mol away.)

    Every method takes and returns float32 or float64 tensors, is differentiable and batched over B frames.
    The object has no parameters; it is a module so that ``.to(device)`` moves its index tensors.

    Args:
        tree: spanning tree, beads first.
        torsions: the bead torsions that are s, by name or in order; each four 0-based atoms.

    Attributes:
        tree: the spanning tree.
        s_names: names of the coarse torsions; s_atoms: their atoms, 0-based.
        b: the other bead coordinates: bonds, angles, then torsions that are not in s.
        y: the remaining coordinates: bonds, angles, then torsions of ``tree.rows``.
        n_s, n_b, n_y, n_atoms, n_beads: counts.

    Raises:
        TopologyError: a torsion that is not one of four consecutive beads, or is given twice.
    """

    _beads: Tensor
    _s_columns: Tensor
    _rest_columns: Tensor
    _torsion_order: Tensor
    _b_centre: Tensor
    _row_atoms: Tensor
    _frame_slots: Tensor
    _frame_of_row: Tensor
    _slot_of_atom: Tensor
    _siblings: Tensor
    _rotor_atoms: Tensor
    _rotor_rows: Tensor
    _y_centre: Tensor
    _stereocentres: Tensor
    _handedness: Tensor

    def __init__(self, tree: Tree, torsions: Torsions) -> None:
        super().__init__()
        self.tree = tree
        self.n_atoms, self.n_beads = len(tree.graph), len(tree.beads)
        named = dict(torsions) if isinstance(torsions, Mapping) else {_torsion_name(tree, t): t for t in torsions}
        columns = _select_torsions(tree, named, len(torsions))
        self.s_names: tuple[str, ...] = tuple(named)
        self.s_atoms = tuple(bead_torsions(tree)[column] for column in columns)
        rest = [column for column in range(self.n_beads - 3) if column not in columns]
        bonds, angles, decisions = bead_coordinates(tree)
        free = [decisions[column] for column in rest]
        self.b: tuple[Coordinate, ...] = bonds + angles + tuple(d.coordinate for d in free)
        bonds, angles, decisions = row_coordinates(tree)
        self.y: tuple[Coordinate, ...] = bonds + angles + tuple(d.coordinate for d in decisions)
        self._sentences = tuple(d.sentence for d in (*free, *decisions) if d.sentence)
        self.n_s, self.n_b, self.n_y = len(self.s_names), len(self.b), len(self.y)
        self._register_beads(columns, rest)
        self._register_rows()
        self._register_chirality()

    def _index(self, name: str, values: object) -> None:
        self.register_buffer(name, torch.as_tensor(values, dtype=torch.int64), persistent=False)

    def _constant(self, name: str, values: object) -> None:
        self.register_buffer(name, torch.as_tensor(values, dtype=torch.float64), persistent=False)

    def _register_beads(self, columns: Sequence[int], rest: Sequence[int]) -> None:
        self._index("_beads", self.tree.beads)
        self._index("_s_columns", columns)
        self._index("_rest_columns", rest)
        self._index("_torsion_order", np.argsort([*columns, *rest]))
        self._constant("_b_centre", [c.centre for c in self.b[2 * self.n_beads - 3 :]])

    def _register_rows(self) -> None:
        tree, rows = self.tree, self.tree.rows
        row_of = {row.atom: k for k, row in enumerate(rows)}
        slot = {atom: k for k, atom in enumerate((*tree.beads, *row_of))}
        measured = [(row.atom, row.parent, row.angle_ref, row.measured_from) for row in rows]
        self._index("_row_atoms", np.array(measured, dtype=np.int64).reshape(-1, 4))
        self._index("_slot_of_atom", [slot[atom] for atom in range(self.n_atoms)])
        self._register_levels(slot)
        siblings = [(k, row_of[row.measured_from]) for k, row in enumerate(rows) if row.shares_references]
        self._index("_siblings", np.array(siblings, dtype=np.int64).reshape(-1, 2))
        self._index("_rotor_atoms", np.array(tree.rotors, dtype=np.int64).reshape(-1, 3))
        self._index(
            "_rotor_rows", np.array([[row_of[a] for a in r] for r in tree.rotors], dtype=np.int64).reshape(-1, 3)
        )
        self._constant("_y_centre", [c.centre for c in self.y[2 * len(rows) :]])

    def _register_levels(self, slot: Mapping[int, int]) -> None:
        """Slices of rows and of local frames, level by level; siblings share a frame, which is computed once."""
        self._levels: list[tuple[slice, slice]] = []
        frame_slots: list[list[int]] = []
        frame_of_row: list[int] = []
        for _, group in itertools.groupby(self.tree.rows, key=lambda row: row.level):
            references = [(row.parent, row.angle_ref, row.torsion_ref) for row in group]
            unique = list(dict.fromkeys(references))
            rows = slice(len(frame_of_row), len(frame_of_row) + len(references))
            frames = slice(len(frame_slots), len(frame_slots) + len(unique))
            self._levels.append((rows, frames))
            frame_slots += [[slot[atom] for atom in reference] for reference in unique]
            frame_of_row += [unique.index(reference) for reference in references]
        self._index("_frame_slots", np.array(frame_slots, dtype=np.int64).reshape(-1, 3))
        self._index("_frame_of_row", frame_of_row)

    def _register_chirality(self) -> None:
        centres = np.array(stereocentres(self.tree.graph), dtype=np.int64).reshape(-1, 4)
        self._index("_stereocentres", centres)
        reference = torch.as_tensor(self.tree.reference)[None]
        self._constant("_handedness", torch.sign(self._signed_volumes(reference)[0]))

    # --- Cartesian -> internal -----------------------------------------------------------------------------------

    def split(self, r: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Internal coordinates of frames.

        Torsions are wrapped around the centre of their support; a frame outside the supports (another handedness,
        rotor labels not reduced by :meth:`relabel`) keeps its true values, so that ``join`` restores it.

        Args:
            r: ``[B, N, 3]`` nm, molecule whole.

        Returns:
            s ``[B, n_s]`` radians in [-pi, pi), b ``[B, n_b]`` and y ``[B, n_y]`` in nm and radians.
        """
        last = self._batch_last(r, self.n_atoms)
        s, b = self._split_beads(last.index_select(1, self._beads))
        return s.T, b.T, self._split_rows(last).T

    def split_beads(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(s ``[B, n_s]``, b ``[B, n_b]``) of bead positions ``[B, n_beads, 3]`` nm."""
        s, b = self._split_beads(self._batch_last(x, self.n_beads))
        return s.T, b.T

    def _split_beads(self, x: Tensor) -> tuple[Tensor, Tensor]:
        bonds = nerf.distance(x[:, :-1], x[:, 1:])
        angles = nerf.angle(x[:, :-2], x[:, 1:-1], x[:, 2:])
        torsions = nerf.dihedral(x[:, :-3], x[:, 1:-2], x[:, 2:-1], x[:, 3:])
        s = nerf.wrap(torsions.index_select(0, self._s_columns), 0.0)
        rest = nerf.wrap(torsions.index_select(0, self._rest_columns), self._b_centre.to(x.dtype)[:, None])
        return s, torch.cat((bonds, angles, rest))

    def _split_rows(self, r: Tensor) -> Tensor:
        x, p, a, t = (r.index_select(1, atoms) for atoms in self._row_atoms.T)
        centre = self._y_centre.to(r.dtype)[:, None]
        torsions = nerf.wrap(nerf.dihedral(x, p, a, t), centre)
        if len(self._rotor_rows):
            first, second, third = self._rotor_rows.T
            shift = (torsions.index_select(0, second) + torsions.index_select(0, third)) / 3.0
            torsions = nerf.wrap(torsions.index_add(0, first, shift), centre)
        return torch.cat((nerf.distance(x, p), nerf.angle(x, p, a), torsions))

    # --- internal -> Cartesian -----------------------------------------------------------------------------------

    def join(self, s: Tensor, b: Tensor, y: Tensor) -> Tensor:
        """Positions ``[B, N, 3]`` nm: bead 0 at the origin, bead 1 on the x axis, bead 2 in the xy plane.

        Args:
            s: ``[B, n_s]`` radians.
            b: ``[B, n_b]`` nm and radians.
            y: ``[B, n_y]`` nm and radians.
        """
        return self._place(self._join_beads(s, b), y)

    def beads(self, s: Tensor, b: Tensor) -> Tensor:
        """Bead positions ``[B, n_beads, 3]`` nm in the frame of :meth:`join`."""
        return self._join_beads(s, b).permute(2, 1, 0).contiguous()

    def place(self, x: Tensor, y: Tensor) -> Tensor:
        """Restore frames onto given beads, which stay where they are to the last bit.

        Args:
            x: ``[B, n_beads, 3]`` nm, bead positions, in any orientation.
            y: ``[B, n_y]`` nm and radians.

        Returns:
            ``[B, N, 3]`` nm.
        """
        return self._place(self._batch_last(x, self.n_beads), y)

    def _join_beads(self, s: Tensor, b: Tensor) -> Tensor:
        n = self.n_beads
        bonds, angles, rest = self._columns(b, self.n_b, "b").split((n - 1, n - 2, self.n_b - 2 * n + 3))
        torsions = torch.cat((self._columns(s, self.n_s, "s"), rest)).index_select(0, self._torsion_order)
        zero = torch.zeros_like(bonds[0])
        reach, side = bonds[0] - bonds[1] * torch.cos(angles[0]), bonds[1] * torch.sin(angles[0])
        placed = [torch.stack(point)[:, None] for point in ((zero,) * 3, (bonds[0], zero, zero), (reach, side, zero))]
        for k in range(3, n):
            frame = nerf.local_frames(placed[-1], placed[-2], placed[-3])
            placed.append(nerf.place_atoms(frame, bonds[k - 1, None], angles[k - 2, None], torsions[k - 3, None]))
        return torch.cat(placed, dim=1)

    def _place(self, x: Tensor, y: Tensor) -> Tensor:
        bonds, angles, torsions = self._columns(y, self.n_y, "y").tensor_split(3)
        torsions = self._absolute_torsions(torsions)
        placed = x
        for rows, frames in self._levels:
            p, a, t = (placed.index_select(1, slots) for slots in self._frame_slots[frames].T)
            axes = nerf.local_frames(p, a, t).index_select(2, self._frame_of_row[rows])
            placed = torch.cat((placed, nerf.place_atoms(axes, bonds[rows], angles[rows], torsions[rows])), dim=1)
        return placed.index_select(1, self._slot_of_atom).permute(2, 1, 0).contiguous()

    def _absolute_torsions(self, torsions: Tensor) -> Tensor:
        """Add to each offset the torsion it is measured from; unit Jacobian."""
        if len(self._rotor_rows):
            first, second, third = self._rotor_rows.T
            shift = (torsions.index_select(0, second) + torsions.index_select(0, third)) / 3.0
            torsions = torsions.index_add(0, first, -shift)
        if len(self._siblings):
            rows, bases = self._siblings.T
            torsions = torsions.index_add(0, rows, torsions.index_select(0, bases))
        return torsions

    # --- measure and supports ------------------------------------------------------------------------------------

    def log_jacobian_beads(self, b: Tensor) -> Tensor:
        """The beads' part of ln|dr/dq| ``[B]``, from b ``[B, n_b]``; bonds in nm."""
        return _log_volume(b, self.n_beads - 1, self.n_beads - 2)

    def log_jacobian(self, b: Tensor, y: Tensor) -> Tensor:
        """The whole ln|dr/dq| ``[B]``, up to the constant of the rigid motion; bonds in nm."""
        rows = self.n_y // 3
        return self.log_jacobian_beads(b) + _log_volume(y, rows, rows)

    def in_support(self, y: Tensor) -> Tensor:
        """Whether each row of y ``[B, n_y]`` lies in the supports, ``[B]`` bool; others have density 0."""
        return _inside(self.y, y)

    def in_support_beads(self, b: Tensor) -> Tensor:
        """Whether each row of b ``[B, n_b]`` lies in the supports, ``[B]`` bool."""
        return _inside(self.b, b)

    def describe_supports(self) -> tuple[str, ...]:
        """Every assumption the supports make, one sentence each; the report prints them."""
        return GENERAL + self._sentences

    def relabel_index(self, r: Tensor) -> Tensor:
        """Atom order ``[B, N]`` that brings every rotor into its third of the circle (see :meth:`relabel`)."""
        order = torch.arange(self.n_atoms, device=r.device).repeat(len(r), 1)
        if len(self._rotor_rows) == 0:
            return order
        first = self._rotor_rows[:, 0]
        torsions = self._split_rows(self._batch_last(r, self.n_atoms))[2 * (self.n_y // 3) :]
        means = torsions.index_select(0, first)
        centre = self._y_centre.to(r.dtype).index_select(0, first)[:, None]
        shift = -torch.floor((means - centre) / (nerf.TWO_PI / 3.0) + 0.5).to(torch.int64)
        for k in range(3):
            source = (k + shift) % 3
            order[:, self._rotor_atoms[:, k]] = self._rotor_atoms.gather(1, source).T
        return order

    def relabel(self, r: Array) -> Array:
        """Permute identical rotor atoms cyclically so that each rotor's mean lies in its third of the circle.

        Args:
            r: ``[B, N, 3]`` nm, tensor or array.

        Returns:
            The same frames with other labels, same type as ``r``. The energy does not change.
        """
        if isinstance(r, np.ndarray):
            order = self.relabel_index(torch.as_tensor(r, device=self._beads.device)).cpu().numpy()
            return np.take_along_axis(r, order[..., None], axis=1)
        return torch.take_along_dim(r, self.relabel_index(r)[..., None], dim=1)

    def chirality_errors(self, r: Array) -> np.ndarray:
        """Number of stereocentres ``[B]`` whose handedness differs from the reference (flat ones count as wrong).

        Args:
            r: ``[B, N, 3]`` nm.
        """
        signs = torch.sign(self._signed_volumes(torch.as_tensor(r, device=self._beads.device)))
        return torch.ne(signs, self._handedness.to(signs)).sum(dim=1).cpu().numpy()

    def _signed_volumes(self, r: Tensor) -> Tensor:
        first, *others = (r.permute(2, 1, 0).index_select(1, atoms) for atoms in self._stereocentres.T)
        u, v, w = (other - first for other in others)
        return nerf.dot(u, nerf.cross(v, w)).T

    # --- layout --------------------------------------------------------------------------------------------------

    @staticmethod
    def _batch_last(r: Tensor, n: int) -> Tensor:
        if r.ndim != 3 or r.shape[1:] != (n, 3):
            raise ValueError(f"positions of shape {tuple(r.shape)}, expected [B, {n}, 3]")
        return r.permute(2, 1, 0).contiguous()

    @staticmethod
    def _columns(values: Tensor, n: int, name: str) -> Tensor:
        if values.ndim != 2 or values.shape[1] != n:
            raise ValueError(f"{name} of shape {tuple(values.shape)}, expected [B, {n}]")
        return values.T.contiguous()


def _log_volume(values: Tensor, n_bonds: int, n_angles: int) -> Tensor:
    bonds, angles = values[:, :n_bonds], values[:, n_bonds : n_bonds + n_angles]
    return 2.0 * torch.log(bonds).sum(dim=1) + torch.log(torch.sin(angles)).sum(dim=1)


def _inside(coordinates: Sequence[Coordinate], values: Tensor) -> Tensor:
    ends = torch.tensor([_ends(c) for c in coordinates], dtype=values.dtype, device=values.device)
    low, high = ends.reshape(-1, 2).T
    return ((values >= low) & (values < high)).all(dim=1)


def _ends(coordinate: Coordinate) -> tuple[float, float]:
    if coordinate.support == "positive":
        return math.ulp(0.0), math.inf
    if coordinate.support == "polar":
        return math.ulp(0.0), math.pi
    return coordinate.centre - coordinate.width / 2.0, coordinate.centre + coordinate.width / 2.0


def _torsion_name(tree: Tree, atoms: Sequence[int]) -> str:
    known = all(0 <= atom < len(tree.graph) for atom in atoms)
    return f"torsion {tree.graph.labels(atoms) if known else atoms}"


def _numbers(atoms: Sequence[int]) -> str:
    return " ".join(str(atom + 1) for atom in atoms)


def _select_torsions(tree: Tree, named: Mapping[str, Sequence[int]], asked: int) -> list[int]:
    """Chain position of each coarse torsion; either direction of its atoms is the same angle."""
    available = bead_torsions(tree)
    choice = ", ".join(f"{tree.graph.labels(atoms)} (atoms {_numbers(atoms)})" for atoms in available)
    columns = []
    for name, atoms in named.items():
        forward = tuple(int(atom) for atom in atoms)
        match = [k for k, four in enumerate(available) if forward in (four, four[::-1])]
        if not match:
            raise TopologyError(
                f"{name} (atoms {_numbers(forward)}) is not a torsion of four consecutive beads",
                expected=f"one of {choice}",
                remedy="choose one of these, or other beads",
            )
        columns += match
    if not columns or len(set(columns)) < asked:
        raise TopologyError(
            f"{len(set(columns))} different coarse torsions of {asked} given",
            expected=f"at least one, each once, of {choice}",
            remedy="remove the repeated torsion",
        )
    return columns
