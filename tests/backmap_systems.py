"""Systems and frames for the tests of backmapping, without GROMACS."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from placement_systems import Atoms as Plain
from placement_systems import shipped
from torch import Tensor

from ccg_gmx.backmap.model import BackmapFlow, BackmapSettings
from ccg_gmx.backmap.system import Atoms, BackmapSystem, make_system, make_system_on

SMALL = BackmapSettings(width=16, context=8, couplings=1, bins=4, flow_width=8, lower_width=4)


CENTRES = ("centres",)
BACKBONE = ("N", "H", "H1", "H2", "H3", "CA", "HA", "HA1", "HA2", "C", "O", "OC1", "OC2")


def with_charges(plain: Plain) -> Atoms:
    """Atoms of a shipped topology; charges do not matter here."""
    charges = np.linspace(-0.5, 0.5, len(plain))
    return Atoms(plain.names, plain.residue_names, plain.residue_ids, plain.masses, charges, plain.bonds)


@cache
def system(name: str, beads: tuple[str, ...]) -> BackmapSystem:
    """A shipped molecule on beads by name, or on the centres of its backbones and side chains."""
    plain = shipped(name)
    if beads == CENTRES:
        residues = [plain.residue(number) for number in sorted(set(plain.residue_ids.tolist()))]
        halves = [[a for a in atoms if (plain.names[a] in BACKBONE) == inner] for atoms in residues for inner in (1, 0)]
        mapping = plain.groups([half for half in halves if half], "com")
        return make_system_on(with_charges(plain), mapping, beads, plain.positions)
    return make_system(with_charges(plain), beads, plain.positions)


def frames(of: BackmapSystem, count: int, seed: int) -> Tensor:
    """Frames ``[T, N, 3]`` nm around the reference, whose every bond, angle and torsion moves a little."""
    generator = torch.Generator().manual_seed(seed)
    placement = of.placement
    start = placement.relabel(torch.as_tensor(of.reference)[None])
    y = placement.split(start)[0].repeat(count, 1)
    spread = torch.cat([torch.full((placement.n_rows,), s, dtype=torch.float64) for s in (0.002, 0.03, 0.1)])
    bridges = [k for k, row in enumerate(placement.plan.rows) if row.role == "bridge"]
    spread[placement.n_rows + torch.tensor(bridges, dtype=torch.int64)] = 0.002
    y = y + spread * torch.randn(y.shape, generator=generator, dtype=torch.float64)
    beads = placement.bead_positions(start).repeat(count, 1, 1)
    beads = beads + 0.003 * torch.randn(beads.shape, generator=generator, dtype=torch.float64)
    return placement.relabel(placement.join(beads, y)[0])


@cache
def fitted(name: str, beads: tuple[str, ...]) -> BackmapFlow:
    """A flow whitened on such frames, with weights that are not those of a fresh one."""
    of = system(name, beads)
    flow = BackmapFlow.of_system(of, SMALL)
    flow.fit(frames(of, 200, 1), flow.view(of))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return flow.requires_grad_(False)
