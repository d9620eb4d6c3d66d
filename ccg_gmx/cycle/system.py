"""The molecule of a cycle, loaded from the folder that the ``system`` stage wrote."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ccg_gmx.cycle.store import read_json
from ccg_gmx.molecule.energy import ForceField
from ccg_gmx.molecule.implicit import ImplicitSolvent, ImplicitSolventSettings, SolvatedForceField
from ccg_gmx.molecule.mapping import bead_mapping_from_atoms
from ccg_gmx.molecule.target import ReducedTarget
from ccg_gmx.molecule.topology import Topology, parse_tpr_dump, torsion_atoms
from ccg_gmx.molecule.tree import build_tree
from ccg_gmx.molecule.zmatrix import InternalCoordinates
from ccg_gmx.records import FloatArray


@dataclass(frozen=True)
class System:
    """Topology, internal coordinates and energy of one molecule at one temperature.

    Attributes:
        topology: parameters as resolved in the .tpr.
        coordinates: the bijection r = T(s, b, y).
        temperature_K: temperature.
        structure: ``[N, 3]`` nm, the starting structure.
        beads: 0-based atom of every bead, in chain order.
        bead_names: their names.
        implicit_solvent: solvent term of the energy, None in vacuum.
    """

    topology: Topology
    coordinates: InternalCoordinates
    temperature_K: float
    structure: FloatArray
    beads: tuple[int, ...]
    bead_names: tuple[str, ...]
    implicit_solvent: ImplicitSolventSettings | None = None

    @property
    def torsion_names(self) -> tuple[str, ...]:
        """Names of the coarse variables s."""
        return self.coordinates.s_names

    @classmethod
    def load(cls, folder: Path) -> System:
        """Load what the ``system`` stage wrote."""
        facts = read_json(folder / "system.json")
        topology = parse_tpr_dump((folder / "system.dump").read_text())
        structure = np.load(folder / "structure.npy", allow_pickle=False)
        solvent = facts.get("implicit_solvent")
        return cls.build(
            topology,
            structure,
            facts["beads"],
            facts["torsions"],
            facts["temperature_K"],
            None if solvent is None else ImplicitSolventSettings(**solvent),
        )

    @classmethod
    def build(
        cls,
        topology: Topology,
        structure: FloatArray,
        beads: dict[str, int],
        torsions: dict[str, list[int]],
        temperature_K: float,
        implicit_solvent: ImplicitSolventSettings | None = None,
    ) -> System:
        """Build internal coordinates beads first.

        Args:
            topology: parameters.
            structure: ``[N, 3]`` nm.
            beads: bead name -> atom number (from 1).
            torsions: torsion name -> four atom numbers (from 1).
            temperature_K: temperature.
            implicit_solvent: solvent term of the energy, None in vacuum.

        Raises:
            TopologyError: for an atom number that does not exist or a torsion that is not one of the beads'.
        """
        mapping = bead_mapping_from_atoms(tuple(beads), tuple(beads.values()), topology.n_atoms)
        chain = tuple(int(atom) for atom in mapping.bead_atoms)
        quadruples = {name: torsion_atoms(topology, atoms) for name, atoms in torsions.items()}
        tree = build_tree(
            topology.bonds,
            topology.n_atoms,
            chain,
            masses=topology.masses,
            names=topology.names,
            reference=structure,
        )
        coordinates = InternalCoordinates(tree, quadruples)
        return cls(topology, coordinates, temperature_K, structure, chain, mapping.names, implicit_solvent)

    def energy(self, dtype: torch.dtype = torch.float64, device: str = "cpu") -> ForceField | SolvatedForceField:
        """Return the potential energy: the force field, and the solvent term where there is one.

        Raises:
            TopologyError: if an interaction is not covered or an atom has no radius.
        """
        force_field = ForceField(self.topology, dtype, device)
        if self.implicit_solvent is None:
            return force_field
        return SolvatedForceField(force_field, ImplicitSolvent(self.topology, self.implicit_solvent, dtype, device))

    def target(self, dtype: torch.dtype = torch.float64, device: str = "cpu") -> ReducedTarget:
        """Return the reduced potential u(s, b, y); float32 is for training alone, weights are float64."""
        return ReducedTarget(self.coordinates, self.energy(dtype, device), self.temperature_K)
