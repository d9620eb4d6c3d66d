"""The bijection between the positions of all atoms and (beads, y), level by level, with its volume element.

Every level places all its atoms in one batched step. Volume elements, given the references: bond^2 sin(angle) for an
atom placed by bond, angle and torsion (Go & Scheraga, doi:10.1021/ma60054a012); r1 r2 / d for a bridge with bonds r1
and r2 between atoms at distance d. (From r2^2 = r1^2 + d^2 - 2 r1 d cos(angle): r2 dr2 = r1 d sin(angle) d(angle) at
fixed r1 and d.) Offsets, rotor means and the shift of groups onto their centres change it by nothing.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ccg_gmx.molecule import nerf
from ccg_gmx.molecule.coordinate import Coordinate
from ccg_gmx.molecule.placement.levels import Level, level_tables
from ccg_gmx.molecule.placement.plan import Plan

THIRD = nerf.TWO_PI / 3.0


class Placement(torch.nn.Module):
    """Positions of all atoms <-> beads and internal coordinates y.

    Frames are independent of each other, float32 or float64, differentiable. Inside, *points* are ``[3, n, T]`` with
    the batch as last, contiguous dimension; their order is the roots of the beads, then the atoms of ``plan.rows``.
    The object has no parameters; it is a module so that ``.to(device)`` moves its index tensors.

    y ``[T, 3 n_rows]`` holds all bonds, then all angles (second bonds of bridges), then all torsions, each in the order
    of ``plan.rows``: it is ``[T, 3, n_rows]`` flattened, and level k is ``[:, :, levels[k].rows]`` of it.

    A bridge exists only while its two bonds span the distance of its ends. Where they do not, :meth:`join` still gives
    finite positions, and ln|J| = -inf: such a draw has density 0 and counts as a draw.

    Args:
        plan: which atom is placed from which.

    Attributes:
        plan: as given.
        levels: the levels in the order they are placed.
        coordinates: name, kind and support of every column of y.
        n_atoms, n_beads, n_rows, n_y: counts.
        row_atoms: ``[n_rows, 4]`` atom, parent, angle_ref and measured_from of each row.
        point_of_atom: ``[N]`` place of each atom among the points.
    """

    row_atoms: Tensor
    point_of_atom: Tensor
    _frames: Tensor
    _frame_of_row: Tensor
    _siblings: Tensor
    _rotors: Tensor
    _rotor_atoms: Tensor
    _rotor_rows: Tensor
    _bridges: Tensor
    _roots: Tensor
    _members: Tensor
    _bead_of_member: Tensor
    _weights: Tensor
    _ends: Tensor
    _centre: Tensor
    _stereocentres: Tensor
    _handedness: Tensor

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.plan = plan
        self.coordinates: tuple[Coordinate, ...] = plan.coordinates
        self.n_atoms, self.n_beads, self.n_rows = len(plan.system), len(plan.mapping.atoms), len(plan.rows)
        self.n_y = 3 * self.n_rows
        self._register_rows()
        self._register_groups()
        self._constant("_ends", np.array([coordinate_ends(c) for c in plan.coordinates]).reshape(-1, 2))
        self._constant("_centre", [coordinate.centre for coordinate in plan.coordinates[2 * self.n_rows :]])
        self._index("_stereocentres", plan.system.handed_centres())
        reference = torch.as_tensor(plan.system.reference)[:, :, None].transpose(0, 1)
        self._constant("_handedness", torch.sign(self._signed_volumes(reference)[:, 0]))

    def _index(self, name: str, values: object) -> None:
        self.register_buffer(name, torch.as_tensor(values, dtype=torch.int64), persistent=False)

    def _constant(self, name: str, values: object) -> None:
        self.register_buffer(name, torch.as_tensor(values, dtype=torch.float64), persistent=False)

    def _register_rows(self) -> None:
        rows, tables = self.plan.rows, level_tables(self.plan)
        self.levels: tuple[Level, ...] = tables.levels
        row_of = {row.atom: k for k, row in enumerate(rows)}
        measured = [(row.atom, row.parent, row.angle_ref, row.measured_from) for row in rows]
        self._index("row_atoms", np.array(measured, dtype=np.int64).reshape(-1, 4))
        self._index("point_of_atom", tables.point_of_atom)
        self._index("_frames", tables.frames)
        self._index("_frame_of_row", tables.frame_of_row)
        self._index("_siblings", tables.siblings)
        self._index("_rotors", tables.rotors)
        rotors = np.array(self.plan.rotors, dtype=np.int64).reshape(-1, 3)
        self._index("_rotor_atoms", rotors)
        self._index("_rotor_rows", np.vectorize(row_of.get, otypes=[np.int64])(rotors) if rotors.size else rotors)
        self._index("_bridges", [k for k, row in enumerate(rows) if row.role == "bridge"])

    def _register_groups(self) -> None:
        """Members of the beads, in the order of the points: roots, then rows inside groups."""
        mapping, n_inner = self.plan.mapping, self.plan.n_inner
        bead_of = {atom: bead for bead, atoms in enumerate(mapping.atoms) for atom in atoms}
        weight_of = {
            atom: weight
            for atoms, weights in zip(mapping.atoms, mapping.weights, strict=True)
            for atom, weight in zip(atoms, weights, strict=True)
        }
        members = [*self.plan.roots.tolist(), *(row.atom for row in self.plan.rows[:n_inner])]
        self._index("_roots", self.plan.roots)
        self._index("_members", members)
        self._index("_bead_of_member", [bead_of[atom] for atom in members])
        self._constant("_weights", [weight_of[atom] for atom in members])

    # --- Cartesian -> internal -----------------------------------------------------------------------------------

    def bead_positions(self, x: Tensor) -> Tensor:
        """Beads ``[T, n_beads, 3]`` nm of frames ``[T, N, 3]`` nm."""
        return self.bead_points(self._batch_last(x, self.n_atoms, "positions")).permute(2, 1, 0).contiguous()

    def bead_points(self, x: Tensor) -> Tensor:
        """Beads ``[3, n_beads, T]`` nm of frames ``[3, N, T]`` nm."""
        return self._centres(x.index_select(1, self._members))

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Internal coordinates of frames.

        Torsions are wrapped around the centre of their support; a frame outside the supports (another handedness, rotor
        labels not reduced by :meth:`relabel`) keeps its true values, so that :meth:`join` restores it.

        Args:
            x: ``[T, N, 3]`` nm, molecules whole.

        Returns:
            y ``[T, n_y]`` nm and radians, and ln|d r_rest / d y| ``[T]`` at these beads, bonds in nm.
        """
        last = self._batch_last(x, self.n_atoms, "positions")
        values, volume = self._measure(last, slice(self.plan.n_inner, None))
        if self.plan.n_inner:
            inner = self._measure(self._groups_at_centres(last), slice(self.plan.n_inner))
            values, volume = torch.cat((inner[0], values), dim=1), torch.cat((inner[1], volume))
        return values.reshape(self.n_y, -1).T.contiguous(), _log_sum(volume)

    def _measure(self, x: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        """Values ``[3, n, T]`` and volume elements ``[n, T]`` of some rows."""
        atom, p, a, m = (x.index_select(1, atoms) for atoms in self.row_atoms[rows].T)
        bond, second = nerf.distance(atom, p), nerf.angle(atom, p, a)
        volume = bond**2 * torch.sin(second)
        start, stop, _ = rows.indices(self.n_rows)
        chosen = self._bridges[(self._bridges >= start) & (self._bridges < stop)] - start
        if len(chosen):
            first = bond.index_select(0, chosen)
            p, a, atom = (point.index_select(1, chosen) for point in (p, a, atom))
            other = nerf.distance(atom, a)
            second = second.index_copy(0, chosen, other)
            volume = volume.index_copy(0, chosen, first * other / nerf.distance(p, a))
            p, a, atom = (x.index_select(1, self.row_atoms[rows, k]) for k in (1, 2, 0))
        torsion = self._relative_torsions(nerf.dihedral(atom, p, a, m), rows, start)
        return torch.stack((bond, second, torsion)), volume

    def _relative_torsions(self, torsion: Tensor, rows: slice, start: int) -> Tensor:
        """Wrap torsions ``[n, T]``, and write the first of three identical atoms as their mean."""
        centre = self._centre[rows].to(torsion.dtype)[:, None]
        torsion = nerf.wrap(torsion, centre)
        inside = (self._rotor_rows[:, 0] >= start) & (self._rotor_rows[:, 0] < start + len(torsion))
        if inside.any():
            first, second, third = (self._rotor_rows[inside] - start).T
            shift = (torsion.index_select(0, second) + torsion.index_select(0, third)) / 3.0
            torsion = nerf.wrap(torsion.index_add(0, first, shift), centre)
        return torsion

    # --- internal -> Cartesian -----------------------------------------------------------------------------------

    def join(self, beads: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Restore frames onto given beads. Atom beads stay where they are to the last bit.

        Args:
            beads: ``[T, n_beads, 3]`` nm.
            y: ``[T, n_y]`` nm and radians.

        Returns:
            Positions ``[T, N, 3]`` nm, and ln|d r_rest / d y| ``[T]``; -inf where a bridge does not reach.
        """
        if y.ndim != 2 or y.shape[1] != self.n_y:
            raise ValueError(f"y of shape {tuple(y.shape)}, expected [T, {self.n_y}]")
        values = y.T.contiguous().reshape(3, self.n_rows, -1)
        points = self.seed(beads)
        log_volume = torch.zeros_like(points[0, 0])
        for k, level in enumerate(self.levels):
            points, term = self.grow(points, k, values[:, level.rows])
            log_volume = log_volume + term
        return self.positions(points), log_volume

    def seed(self, beads: Tensor) -> Tensor:
        """Points ``[3, n_beads, T]`` nm from which the first level grows, of beads ``[T, n_beads, 3]`` nm."""
        return self._batch_last(beads, self.n_beads, "beads")

    def grow(self, points: Tensor, k: int, values: Tensor) -> tuple[Tensor, Tensor]:
        """Place the atoms of level k.

        Args:
            points: ``[3, n, T]`` nm, everything placed so far.
            k: number of the level.
            values: ``[3, levels[k].size, T]`` nm and radians: bond; angle or second bond; torsion.

        Returns:
            ``[3, n + levels[k].size, T]`` nm, and the level's part of ln|J| ``[T]``.
        """
        level = self.levels[k]
        bond, second, torsion = values.unbind(0)
        torsion = self._absolute_torsions(torsion, level)
        p, a, t = (points.index_select(1, atoms) for atoms in self._frames[level.frames].T)
        frame_of_row = self._frame_of_row[level.rows]
        theta, volume = second, bond**2 * torch.sin(second)
        if level.n_plain < level.size:
            far = frame_of_row[level.n_plain :]
            span = nerf.distance(p, a).index_select(0, far)
            closed = _triangle(bond[level.n_plain :], second[level.n_plain :], span)
            theta = torch.cat((second[: level.n_plain], closed[0]))
            volume = torch.cat((volume[: level.n_plain], closed[1]))
        axes = nerf.local_frames(p, a, t).index_select(2, frame_of_row)
        points = torch.cat((points, nerf.place_atoms(axes, bond, theta, torsion)), dim=1)
        return (self._completed(points) if level.completes else points), _log_sum(volume)

    def positions(self, points: Tensor) -> Tensor:
        """Positions ``[T, N, 3]`` nm in the order of the atoms, of all points ``[3, N, T]``."""
        return points.index_select(1, self.point_of_atom).permute(2, 1, 0).contiguous()

    def _absolute_torsions(self, torsion: Tensor, level: Level) -> Tensor:
        """Add to each offset of a level the torsion it is measured from; unit Jacobian."""
        if level.rotors.stop > level.rotors.start:
            first, second, third = self._rotors[level.rotors].T
            shift = (torsion.index_select(0, second) + torsion.index_select(0, third)) / 3.0
            torsion = torsion.index_add(0, first, -shift)
        if level.siblings.stop > level.siblings.start:
            rows, bases = self._siblings[level.siblings].T
            torsion = torsion.index_add(0, rows, torsion.index_select(0, bases))
        return torsion

    # --- centre beads --------------------------------------------------------------------------------------------

    def _centres(self, members: Tensor) -> Tensor:
        """Beads ``[3, n_beads, T]`` of their members ``[3, m, T]``."""
        if self.plan.mapping.kind == "atom":
            return members[:, : self.n_beads]
        weighted = members * self._weights.to(members.dtype)[:, None]
        return torch.zeros_like(members[:, : self.n_beads]).index_add(1, self._bead_of_member, weighted)

    def _groups_at_centres(self, x: Tensor) -> Tensor:
        """Positions ``[3, N, T]`` with each group shifted so that its root is at its centre."""
        shift = self._centres(x.index_select(1, self._members)) - x.index_select(1, self._roots)
        return x.index_add(1, self._members, shift.index_select(1, self._bead_of_member))

    def _completed(self, points: Tensor) -> Tensor:
        """Points with each group shifted so that its centre is where its root was."""
        shift = points[:, : self.n_beads] - self._centres(points)
        return points + shift.index_select(1, self._bead_of_member)

    # --- supports and labels -------------------------------------------------------------------------------------

    def in_support(self, y: Tensor) -> Tensor:
        """Whether each row of y ``[T, n_y]`` lies in the supports, ``[T]`` bool; others have density 0."""
        return self.inside(y).all(dim=1)

    def inside(self, y: Tensor) -> Tensor:
        """Whether each number of y ``[T, n_y]`` lies in its support, ``[T, n_y]`` bool."""
        low, high = self._ends.to(y.dtype).T
        return (y >= low) & (y < high)

    def describe_supports(self) -> tuple[str, ...]:
        """The assumptions of the supports, one sentence for each kind."""
        return self.plan.sentences

    def relabel(self, x: Tensor) -> Tensor:
        """Permute identical rotor atoms cyclically so that each rotor's mean lies in its third of the circle.

        Args:
            x: ``[T, N, 3]`` nm.

        Returns:
            The same frames with other labels. The energy does not change.
        """
        if len(self._rotor_rows) == 0:
            return x
        heads = self._rotor_rows[:, 0]
        means = self.split(x)[0][:, 2 * self.n_rows + heads]
        turns = torch.floor((means - self._centre[heads].to(x.dtype)) / THIRD + 0.5).to(torch.int64)
        order = torch.arange(self.n_atoms, device=x.device).repeat(len(x), 1)
        for k in range(3):
            order[:, self._rotor_atoms[:, k]] = self._rotor_atoms.gather(1, ((k - turns) % 3).T).T
        return torch.take_along_dim(x, order[..., None], dim=1)

    def chirality_errors(self, x: Tensor) -> Tensor:
        """Number ``[T]`` of stereocentres of frames ``[T, N, 3]`` with another handedness than in the reference."""
        return self.wrong_handed(x).sum(dim=1)

    def wrong_handed(self, x: Tensor) -> Tensor:
        """Whether each of :attr:`stereocentres` has another handedness than in the reference, ``[T, n]`` bool."""
        signs = torch.sign(self._signed_volumes(self._batch_last(x, self.n_atoms, "positions")))
        return torch.ne(signs, self._handedness.to(signs)[:, None]).T

    @property
    def stereocentres(self) -> Tensor:
        """Four atoms ``[n, 4]`` of each centre whose handedness is kept."""
        return self._stereocentres

    def _signed_volumes(self, x: Tensor) -> Tensor:
        first, *others = (x.index_select(1, atoms) for atoms in self._stereocentres.T)
        u, v, w = (other - first for other in others)
        return nerf.dot(u, nerf.cross(v, w))

    @staticmethod
    def _batch_last(x: Tensor, n: int, what: str) -> Tensor:
        if x.ndim != 3 or x.shape[1:] != (n, 3):
            raise ValueError(f"{what} of shape {tuple(x.shape)}, expected [T, {n}, 3]")
        return x.permute(2, 1, 0).contiguous()


def coordinate_ends(coordinate: Coordinate) -> tuple[float, float]:
    """Interval a coordinate lies in, closed below and open above."""
    if coordinate.support == "positive":
        return math.ulp(0.0), math.inf
    if coordinate.support == "polar":
        return math.ulp(0.0), math.pi
    return coordinate.centre - coordinate.width / 2.0, coordinate.centre + coordinate.width / 2.0


def _triangle(first: Tensor, second: Tensor, span: Tensor) -> tuple[Tensor, Tensor]:
    """Angle at the first end, and volume element, of bridges with two bonds over a span.

    Out of reach the volume is 0, and the angle any that leaves the atom off the line, so that others can refer to it.
    """
    cosine = (first**2 + span**2 - second**2) / (2.0 * first * span)
    reaches = (cosine.abs() < 1.0) & (first > 0.0) & (second > 0.0)
    inside = torch.where(reaches, cosine, torch.zeros_like(cosine))
    bent = torch.where(cosine > 0.0, math.pi / 6.0, math.pi * 5.0 / 6.0).to(cosine.dtype)
    theta = torch.where(reaches, torch.acos(inside), bent)
    return theta, torch.where(reaches, first * second / span, torch.zeros_like(cosine))


def _log_sum(volume: Tensor) -> Tensor:
    """Sum over rows of ln volume ``[n, T]``; -inf where a volume is not positive, with finite gradients elsewhere."""
    positive = volume > 0.0
    logs = torch.log(torch.where(positive, volume, torch.ones_like(volume)))
    return torch.where(positive, logs, torch.full_like(logs, -math.inf)).sum(dim=0)
