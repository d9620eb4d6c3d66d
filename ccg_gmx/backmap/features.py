"""What a block sees: beads and placed atoms near it by name, all further beads as a soft picture of its surroundings.

Everything is given in the block's own local frame, which turns with the molecule, so densities do not depend on where
the molecule lies. Layout: points ``[3, P, T]`` (atoms, then beads that are no atoms), features ``[F, n T]`` of n blocks
and T frames, frames last.

The surroundings are sums over the nearest further beads of real spherical harmonics up to order 2 times Gaussians in
the distance, once with weight 1 and once with the charge of the bead's residue: smooth, of fixed length, and blind to
the order of the beads (compare the expansions of Bartok et al., doi:10.1103/PhysRevB.87.184115).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ccg_gmx.backmap.blocks import KindTable
from ccg_gmx.backmap.neighbours import nearest_beads
from ccg_gmx.backmap.system import BackmapSystem
from ccg_gmx.molecule import nerf
from ccg_gmx.records import IntArray

NEAREST = 10
"""Further beads that a block sees."""
EXCLUDED_RESIDUES = 2
"""Beads of so many residues on either side are seen by name and left out of the surroundings."""
SHELLS_NM = (0.5, 0.8, 1.1)
SHELL_WIDTH_NM = 0.22
CUTOFF_NM = 1.5
N_HARMONICS = 9
N_SURROUNDINGS = 2 * N_HARMONICS * len(SHELLS_NM)
N_PROPERTIES = 9


@dataclass(frozen=True, eq=False)
class KindView:
    """Index tensors of the blocks of one kind in one system.

    Attributes:
        table: blocks of the kind.
        frames: ``[n, 3]`` atoms of local frames.
        origin: ``[n]`` beads at the origins.
        slots: ``[n, S]`` atoms seen, 0 where there is none.
        visible: ``[2, S, n]`` 1 where the atom is there and placed before the block; for both orders of colours.
        properties: ``[N_PROPERTIES, n]`` charge, size and presence of the residues before, at and after the block.
        columns: ``[n, 3 m]`` columns of y.
    """

    table: KindTable
    frames: Tensor
    origin: Tensor
    slots: Tensor
    visible: Tensor
    properties: Tensor
    columns: Tensor


@dataclass(frozen=True, eq=False)
class SystemView:
    """Index tensors of a system.

    Attributes:
        system: as given.
        kinds: one view for each kind.
        beads: ``[n_beads]`` points.
        bead_charges: ``[n_beads]`` charge of the bead's residue over the number of its beads.
        bead_residues: ``[n_beads]`` residue of each bead.
        bead_molecules: ``[n_beads]`` its molecule.
    """

    system: BackmapSystem
    kinds: tuple[KindView, ...]
    beads: Tensor
    bead_charges: Tensor
    bead_residues: IntArray
    bead_molecules: IntArray


@dataclass(frozen=True, eq=False)
class Near:
    """Nearest further beads of every bead.

    Attributes:
        indices: ``[k, n_beads, T]`` numbers of beads.
        squares: ``[k, n_beads, T]`` squared distances in nm^2; inf: no such bead.
        beads: ``[3, n_beads, T]`` nm.
        box: ``[T, 3, 3]`` nm; None: no periodic images.
    """

    indices: Tensor
    squares: Tensor
    beads: Tensor
    box: Tensor | None = None


def view_kind(system: BackmapSystem, table: KindTable, slots: tuple[str, ...]) -> KindView:
    """Index tensors of one kind.

    Args:
        system: the system.
        table: its blocks.
        slots: names of what the model of the kind sees; others are not shown, missing ones count as absent.
    """
    place = {name: k for k, name in enumerate(table.slots)}
    n = len(table.blocks)
    atoms = np.full((n, len(slots)), -1, dtype=np.int64)
    stage = np.zeros((2, n, len(slots)), dtype=np.int64)
    for k, name in enumerate(slots):
        if name in place:
            atoms[:, k] = table.slot_atoms[:, place[name]]
            stage[:, :, k] = table.slot_stage[:, :, place[name]]
    visible = (atoms >= 0) & (stage < table.stage[:, :, None])
    return KindView(
        table=table,
        frames=torch.from_numpy(table.frames),
        origin=torch.from_numpy(table.origin),
        slots=torch.from_numpy(np.maximum(atoms, 0)),
        visible=torch.from_numpy(visible.transpose(0, 2, 1).astype(np.float64)),
        properties=torch.from_numpy(_properties(system, table)),
        columns=torch.from_numpy(table.columns),
    )


def view_system(system: BackmapSystem, kinds: tuple[KindView, ...]) -> SystemView:
    """Index tensors of a system whose kinds are viewed already."""
    residue = system.residues[system.beads]
    molecule = system.placement.plan.system.molecules[system.beads]
    count = np.bincount(residue, minlength=len(system.residue_charges()))
    charges = system.residue_charges()[residue] / count[residue]
    beads = torch.from_numpy(system.bead_points)
    return SystemView(system, kinds, beads, torch.from_numpy(charges), residue, molecule)


def _properties(system: BackmapSystem, table: KindTable) -> np.ndarray:
    """Charge / e, atoms / 20 and presence of the residue before, of the block's own, and of the one after."""
    charges, residues = system.residue_charges(), system.residues
    sizes, molecules = np.bincount(residues), system.placement.plan.system.molecules
    molecule_of = {int(residue): int(m) for residue, m in zip(residues, molecules, strict=True)}
    homes = [system.blocks.blocks[k].home for k in table.blocks]
    values = np.zeros((N_PROPERTIES, len(homes)))
    for column, home in enumerate(homes):
        for k, residue in enumerate((home - 1, home, home + 1)):
            if molecule_of.get(residue) == molecule_of[home]:
                values[3 * k : 3 * k + 3, column] = charges[residue], sizes[residue] / 20.0, 1.0
    return values


def points_of(positions: Tensor, system: BackmapSystem) -> Tensor:
    """Points ``[3, P, T]`` nm of frames ``[T, N, 3]`` nm."""
    x = positions.permute(2, 1, 0).contiguous()
    return torch.cat([x, system.placement.bead_points(x)], 1) if system.centres else x


def local_frames(x: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
    """Origins ``[3, n, T]`` and axes ``[3 axes, 3, n, T]`` of local frames on points ``frames [n, 3]``."""
    origin, second, third = (x.index_select(1, column) for column in frames.T)
    along = second - origin
    along = along * nerf.dot(along, along).rsqrt()
    normal = nerf.cross(along, third - origin)
    normal = normal * nerf.dot(normal, normal).clamp_min(1e-12).rsqrt()
    return origin, torch.stack((along, nerf.cross(normal, along), normal))


def slot_positions(x: Tensor, view: KindView, origin: Tensor, axes: Tensor) -> Tensor:
    """Positions ``[S, 3, n, T]`` nm, in the local frames, of what the blocks see."""
    n, count = view.slots.shape
    seen = x.index_select(1, view.slots.T.reshape(-1)).view(3, count, n, -1)
    return _turned(axes, seen - origin.unsqueeze(1)).transpose(0, 1)


def _turned(axes: Tensor, vectors: Tensor) -> Tensor:
    """Components ``[3, m, n, T]`` in local frames of ``vectors [3, m, n, T]``; batched products of 3 x 3 are slow."""
    first, second, third = (axes[:, c].unsqueeze(1) * vectors[c] for c in range(3))
    return first + second + third


def surroundings(x: Tensor, view: SystemView, box: Tensor | None = None) -> Near:
    """Nearest further beads of every bead.

    Args:
        x: points ``[3, P, T]`` nm.
        view: the system.
        box: ``[T, 3, 3]`` nm; None: no periodic images.
    """
    beads = x.index_select(1, view.beads)
    numbers, squares = nearest_beads(
        np.ascontiguousarray(beads.detach().permute(2, 1, 0).to(torch.float64).numpy()),
        None if box is None else np.ascontiguousarray(box.to(torch.float64).numpy()),
        view.bead_residues,
        view.bead_molecules,
        count=min(NEAREST, len(view.beads)),
        excluded=EXCLUDED_RESIDUES,
        cutoff=CUTOFF_NM,
    )
    indices, found = (torch.from_numpy(np.ascontiguousarray(v.transpose(2, 1, 0))) for v in (numbers, squares))
    return Near(indices, found.to(x.dtype), beads, box)


def shortest_vectors(vectors: Tensor, box: Tensor | None) -> Tensor:
    """:func:`ccg_gmx.molecule.images.reduced_vectors` of ``[3, ..., T]`` nm.

    Args:
        vectors: between any points.
        box: ``[T, 3, 3]`` nm, of zeros for frames without periodicity; None: no frame has any.
    """
    if box is None:
        return vectors
    for axis in (2, 1, 0):
        edge = box[:, axis, axis]
        turns = torch.where(edge > 0.0, torch.round(vectors[axis] / edge), 0.0)
        vectors = vectors - turns * box[:, axis].T.reshape(3, *(1,) * (vectors.ndim - 2), -1)
    return vectors


def picture(near: Near, view: SystemView, kind: KindView, origin: Tensor, axes: Tensor) -> Tensor:
    """Describe the surroundings of the blocks of a kind, ``[N_SURROUNDINGS, n, T]``."""
    index, square = near.indices.index_select(1, kind.origin), near.squares.index_select(1, kind.origin)
    beads = near.beads
    k, n, frames = index.shape
    flat = index.reshape(1, k * n, frames).expand(3, -1, -1)
    relative = torch.gather(beads, 1, flat).view(3, k, n, frames) - origin.unsqueeze(1)
    relative = shortest_vectors(relative, near.box)
    there = square < CUTOFF_NM**2
    distance = torch.where(there, square, CUTOFF_NM**2).clamp_min(1e-6).sqrt()
    direction = _turned(axes, relative) / distance
    fade = torch.where(there, 0.5 + 0.5 * torch.cos(torch.pi * distance / CUTOFF_NM), 0.0)
    centres = torch.tensor(SHELLS_NM, dtype=beads.dtype, device=beads.device).view(-1, 1, 1, 1)
    radial = torch.exp(-0.5 * ((distance - centres) / SHELL_WIDTH_NM) ** 2) * fade
    charge = view.bead_charges.to(beads.dtype)[index]
    both = torch.cat([radial, radial * charge])
    sums = [(harmonic * both).sum(1) for harmonic in _harmonics(direction)]
    return torch.cat(sums)


def _harmonics(u: Tensor) -> Tensor:
    """Real spherical harmonics up to order 2, not normalised, of directions ``[3, ...]``: ``[9, ...]``."""
    x, y, z = u
    return torch.stack([torch.ones_like(x), x, y, z, x * y, y * z, x * z, x * x - y * y, 3.0 * z * z - 1.0])
