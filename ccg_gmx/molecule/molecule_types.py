"""Molecule types of a .tpr with their copies counted, not written out: what a mapping of many molecules needs.

:mod:`ccg_gmx.molecule.topology` expands every copy, because energies need every atom; a box of water is one type here.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ccg_gmx.errors import TopologyError
from ccg_gmx.molecule.topology import CHEMICAL_BONDS, CONSTRAINTS
from ccg_gmx.molecule.tpr_dump import DumpedMolecule, read_molecule_blocks
from ccg_gmx.records import FloatArray, IntArray


@dataclass(frozen=True, eq=False)
class MoleculeType:
    """One molecule type; atoms 0-based within it.

    Attributes:
        name: as in the topology.
        names: ``N`` atom names.
        residue_names: ``N`` residue name of each atom.
        residue_ids: ``N`` residue number of each atom, as in the topology.
        residue_places: ``N`` residue of each atom, counted from 1 within the molecule.
        masses: ``[N]`` amu; 0 for virtual sites.
        links: ``[n, 2]`` pairs of atoms that belong together in space: bonds, constraints, virtual sites.
        constraints: ``[n, 2]`` pairs of atoms at a fixed distance.
    """

    name: str
    names: tuple[str, ...]
    residue_names: tuple[str, ...]
    residue_ids: tuple[int, ...]
    residue_places: tuple[int, ...]
    masses: FloatArray
    links: IntArray
    constraints: IntArray

    @property
    def n_atoms(self) -> int:
        """Number of atoms N."""
        return len(self.names)

    @cached_property
    def rigid_groups(self) -> IntArray:
        """``[N]`` number of the group of each atom; atoms joined by constraints share one."""
        group = np.arange(self.n_atoms)
        for first, second in self.constraints.tolist():
            group[group == group[second]] = group[first]
        return np.unique(group, return_inverse=True)[1].astype(np.int64)

    def label(self, atom: int) -> str:
        """Name an atom for people: ``3 (CA of ALA 2)``, the number 1-based."""
        return f"{atom + 1} ({self.names[atom]} of {self.residue_names[atom]} {self.residue_ids[atom]})"


def read_molecule_types(text: str) -> tuple[tuple[MoleculeType, int], ...]:
    """Read the molecule types and their number of copies, in the order of the system.

    Args:
        text: the whole output of ``gmx dump -s topol.tpr``.

    Raises:
        TopologyError: if the text is not a complete dump.
    """
    blocks = read_molecule_blocks(text)
    if not blocks:
        raise TopologyError("the dump lists no molecules", expected="the output of gmx dump -s of GROMACS 2025")
    return tuple((_molecule_type(name, molecule), count) for name, molecule, count in blocks)


def _molecule_type(name: str, dumped: DumpedMolecule) -> MoleculeType:
    residues = [atom.residue for atom in dumped.atoms]
    place = {residue: index + 1 for index, residue in enumerate(dict.fromkeys(residues))}
    if len(dumped.names) != len(dumped.atoms):
        raise TopologyError(
            f"the dump lists {len(dumped.names)} names for the {len(dumped.atoms)} atoms of {name}",
            expected="a whole dump",
        )
    return MoleculeType(
        name=name,
        names=tuple(dumped.names),
        residue_names=tuple(dumped.residues[residue][0] for residue in residues),
        residue_ids=tuple(dumped.residues[residue][1] for residue in residues),
        residue_places=tuple(place[residue] for residue in residues),
        masses=np.array([atom.mass for atom in dumped.atoms], dtype=np.float64),
        links=_pairs(dumped, (*CHEMICAL_BONDS, "HARMONIC", "CONSTRNC")),
        constraints=_pairs(dumped, CONSTRAINTS, rigid=True),
    )


def _pairs(dumped: DumpedMolecule, kinds: tuple[str, ...], rigid: bool = False) -> IntArray:
    pairs = [np.zeros((0, 2), dtype=np.int64)]
    for kind, (atoms, _) in dumped.interactions.items():
        if kind == "SETTLE" and kind in kinds:
            pairs += [atoms[:, [0, 1]], atoms[:, [0, 2]]]
        elif kind in kinds or (kind.startswith("VSITE") and not rigid):
            pairs.append(atoms[:, :2])  # a virtual site and the first atom it is built from
    return np.unique(np.sort(np.concatenate(pairs), axis=1), axis=0)
