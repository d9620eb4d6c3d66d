"""Systems for the tests of placement on beads: everything shipped in topologies/, a disulfide, several molecules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from molecules import cyclohexane
from torch import Tensor

from ccg_gmx.molecule.mapping import BeadMapping, bead_mapping_from_atoms, bead_mapping_from_groups
from ccg_gmx.molecule.placement.plan import build_plan
from ccg_gmx.molecule.placement.transform import Placement

TOPOLOGIES = Path(__file__).resolve().parent.parent / "topologies"


@dataclass(frozen=True, eq=False)
class Atoms:
    """Atoms, bonds (0-based) and one structure in nm."""

    names: tuple[str, ...]
    residue_names: tuple[str, ...]
    residue_ids: np.ndarray
    masses: np.ndarray
    bonds: np.ndarray
    positions: np.ndarray

    def __len__(self) -> int:
        return len(self.names)

    def find(self, *names: str) -> list[int]:
        """Atoms (0-based) with one of these names."""
        return [atom for atom, name in enumerate(self.names) if name in names]

    def at(self, beads: Sequence[int]) -> Placement:
        """Placement on beads that are atoms (0-based)."""
        names = [f"B{k}" for k in range(len(beads))]
        return self.on(bead_mapping_from_atoms(names, [bead + 1 for bead in beads], len(self)))

    def on(self, mapping: BeadMapping) -> Placement:
        """Placement on any beads."""
        arguments = {name: value for name, value in vars(self).items() if name not in ("bonds", "positions")}
        return Placement(build_plan(self.bonds, mapping, reference=self.positions, **arguments))

    def groups(self, groups: Sequence[Sequence[int]], kind: str) -> BeadMapping:
        """Centre beads of groups of atoms (0-based)."""
        names = [f"B{k}" for k in range(len(groups))]
        return bead_mapping_from_groups(names, [[a + 1 for a in group] for group in groups], self.masses, kind)

    def residue(self, number: int) -> list[int]:
        """Atoms of the residue with this number."""
        return np.flatnonzero(self.residue_ids == number).tolist()


@cache
def shipped(system: str) -> Atoms:
    """Read atoms and bonds from topol.top and positions from conf.gro of a folder in topologies/."""
    atoms = _section(system, "atoms")
    bonds = np.array([[int(words[0]) - 1, int(words[1]) - 1] for words in _section(system, "bonds")])
    lines = (TOPOLOGIES / system / "conf.gro").read_text().splitlines()[2 : 2 + len(atoms)]
    return Atoms(
        names=tuple(words[4] for words in atoms),
        residue_names=tuple(words[3] for words in atoms),
        residue_ids=np.array([int(words[2]) for words in atoms]),
        masses=np.array([float(words[7]) for words in atoms]),
        bonds=bonds,
        positions=np.array([[float(line[k : k + 8]) for k in (20, 28, 36)] for line in lines]),
    )


def _section(system: str, name: str) -> list[list[str]]:
    text = (TOPOLOGIES / system / "topol.top").read_text().split(f"[ {name} ]", 1)[1].split("[", 1)[0]
    rows = (line.split(";")[0].split() for line in text.splitlines())
    return [row for row in rows if row and row[0].isdigit()]


def merged(*systems: Atoms) -> Atoms:
    """Several systems side by side."""
    starts = np.cumsum([0, *(len(system) for system in systems)])
    last = np.cumsum([0, *(system.residue_ids.max() for system in systems)])
    return Atoms(
        names=tuple(name for system in systems for name in system.names),
        residue_names=tuple(name for system in systems for name in system.residue_names),
        residue_ids=np.concatenate([s.residue_ids + k for s, k in zip(systems, last, strict=False)]),
        masses=np.concatenate([system.masses for system in systems]),
        bonds=np.concatenate([s.bonds.reshape(-1, 2) + k for s, k in zip(systems, starts, strict=False)]),
        positions=np.concatenate([system.positions for system in systems]),
    )


def moved(system: Atoms, shift: Sequence[float]) -> Atoms:
    """The same atoms elsewhere."""
    return replace(system, positions=system.positions + np.array(shift))


def water(position: Sequence[float]) -> Atoms:
    """One water molecule."""
    positions = np.array([[0.0, 0.0, 0.0], [0.0957, 0.0, 0.0], [-0.024, 0.0927, 0.0]]) + np.array(position)
    masses = np.array([15.999, 1.008, 1.008])
    return Atoms(("OW", "HW1", "HW2"), ("SOL",) * 3, np.ones(3, int), masses, np.array([[0, 1], [0, 2]]), positions)


@cache
def ring() -> Atoms:
    """Cyclohexane."""
    molecule = cyclohexane()
    return Atoms(
        tuple(molecule.names), ("CHX",) * 18, np.ones(18, int), molecule.masses, molecule.bonds, molecule.positions
    )


@cache
def cystine() -> Atoms:
    """Two ACE-CYS-NME joined by a disulfide: alanine dipeptide with S for HB1, and its copy turned about a C2 axis."""
    half = shipped("alanine_dipeptide")
    names, masses, positions = list(half.names), half.masses.copy(), half.positions.copy()
    cb, s = half.find("CB")[0], half.find("HB1")[0]
    names[s], masses[s] = "SG", 32.06
    along = (positions[s] - positions[cb]) / np.linalg.norm(positions[s] - positions[cb])
    positions[s] = positions[cb] + 0.182 * along
    inward = np.cross(along, positions[half.find("CA")[0]] - positions[cb])
    onward = np.cos(np.radians(104)) * -along + np.sin(np.radians(104)) * inward / np.linalg.norm(inward)
    middle = positions[s] + 0.102 * onward
    axis = np.cross(onward, along)
    axis = axis / np.linalg.norm(axis) + 0.9 * np.cross(onward, axis / np.linalg.norm(axis))  # CB-SG-SG-CB near 90
    axis /= np.linalg.norm(axis)
    copy = middle + 2 * np.outer((positions - middle) @ axis, axis) - (positions - middle)
    residues = tuple("CYS" if name == "ALA" else name for name in half.residue_names)
    one = replace(half, names=tuple(names), masses=masses, positions=positions, residue_names=residues)
    both = merged(one, replace(one, positions=copy))
    return replace(both, bonds=np.vstack([both.bonds, [s, s + len(half)]]))


@cache
def placements() -> dict[str, Placement]:
    """Every system of these tests, each on its beads."""
    alanine, chignolin, butane = (shipped(s) for s in ("alanine_dipeptide", "chignolin", "n_butane"))
    tri, glycine, cys = shipped("alanine_tripeptide"), shipped("glycine_dipeptide"), cystine()
    others = merged(butane, moved(butane, [0.5, 0.3, 0.1]), water([2.5, 2.5, 2.6]), ring())
    residues = [chignolin.residue(number) for number in range(1, 11)]
    halves = [part for group in residues for part in (group[: len(group) // 2], group[len(group) // 2 :]) if part]
    return {
        "alanine": alanine.at([4, 6, 8, 14, 16]),
        "alanine, scattered beads": alanine.at([0, 10, 18, 15]),
        "tripeptide": tri.at([4, 6, 8, 14, 16, 18, 24, 26]),
        "tripeptide, sparse": tri.at([tri.find("CH3")[0], *tri.find("CA"), tri.find("CH3")[1]]),
        "glycine": glycine.at([4, 6, 8, 11, 13]),
        "butane": butane.at([0, 1, 2, 3]),
        "butane, three beads": butane.at([0, 1, 3]),
        "chignolin, backbone": chignolin.at(chignolin.find("N", "CA", "C")),
        "chignolin, C-alpha": chignolin.at(chignolin.find("CA")),
        "chignolin, residue centres of mass": chignolin.on(chignolin.groups(residues, "com")),
        "chignolin, two centres of geometry each": chignolin.on(chignolin.groups(halves, "cog")),
        "cystine, backbone": cys.at(cys.find("N", "CA", "C")),
        "cystine, C-alpha and ends": cys.at(cys.find("CA", "CH3")),
        "cyclohexane": ring().at([2, 3, 4, 5]),
        "several molecules": others.at([0, 3, 14, 17, 32, 35]),
        "centres and loose atoms": others.on(others.groups([[0, 4, 5, 6], [3, 11, 12, 13], [15, 16]], "com")),
    }


def log_determinant(placement: Placement, beads: Tensor, y: Tensor) -> float:
    """ln |det| of the whole 3N x 3N Jacobian of (beads, y) -> positions at one frame, by forward autograd."""
    inputs = torch.cat((beads.flatten(), y))

    def positions(q: Tensor) -> Tensor:
        return placement.join(q[:, : beads.numel()].reshape(-1, *beads.shape), q[:, beads.numel() :])[0]

    one_each = torch.eye(len(inputs), dtype=y.dtype)
    columns = torch.func.jvp(positions, (inputs.repeat(len(inputs), 1),), (one_each,))[1]
    return float(torch.linalg.slogdet(columns.reshape(len(inputs), -1)).logabsdet)


def frames(placement: Placement, count: int, seed: int, noise_nm: float = 0.004) -> Tensor:
    """Reference with noise on every atom, ``[count, N, 3]``."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.as_tensor(placement.plan.system.reference)
    return x + noise_nm * torch.randn(count, *x.shape, generator=generator, dtype=x.dtype)


def draws(placement: Placement, count: int, seed: int, spread: float = 1.0) -> tuple[Tensor, Tensor]:
    """Beads of the reference and y around it: bonds and angles near it, torsions over a part of their supports."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.as_tensor(placement.plan.system.reference)[None]
    x = placement.relabel(x).expand(count, -1, -1)
    y = placement.split(x)[0]
    kinds = [c.kind for c in placement.coordinates]
    noise = torch.randn(y.shape, generator=generator, dtype=y.dtype)
    width = torch.tensor([{"bond": 0.003, "angle": 0.05, "torsion": 0.0}[kind] for kind in kinds], dtype=y.dtype)
    y = y + width * noise
    torsions = 2 * placement.n_rows
    centre = torch.tensor([c.centre for c in placement.coordinates[torsions:]], dtype=y.dtype)
    half = torch.tensor([c.width / 2 for c in placement.coordinates[torsions:]], dtype=y.dtype)
    u = 2 * torch.rand(count, placement.n_rows, generator=generator, dtype=y.dtype) - 1
    y[:, torsions:] = centre + spread * half * u
    return placement.bead_positions(x), y


def bond_lengths(placement: Placement, x: Tensor) -> Tensor:
    graph = placement.plan.system.graph
    pairs = torch.tensor([(i, j) for i, around in enumerate(graph.neighbours) for j in around if i < j])
    return (x[:, pairs[:, 0]] - x[:, pairs[:, 1]]).norm(dim=2)


def rows_of(placement: Placement, residue: str, atom: str) -> list[int]:
    return [k for k, row in enumerate(placement.plan.rows) if row.key.startswith(f"{residue} {atom} ")]
