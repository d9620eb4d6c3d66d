"""An OpenMM system made from our own topology record, to time and check OpenMM on the very same energy function.

OpenMM 8: Eastman et al., doi:10.1021/acs.jpcb.3c06662. The package openmm is needed by tests and benchmarks only.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ccg_gmx.molecule.topology import Topology
from ccg_gmx.records import FloatArray


def build_system(topology: Topology) -> Any:
    """Return an ``openmm.System`` with the energies of an isolated molecule, all pairs included.

    Harmonic bonds and angles, periodic dihedrals, and pairs whose Lennard-Jones parameters follow Lorentz-Berthelot;
    anything else would show as a difference of energies, which the benchmark checks.

    Args:
        topology: a system with bonds, angles, periodic dihedrals and 1-4 pairs.
    """
    import openmm

    system = openmm.System()
    for mass in topology.masses.tolist():
        system.addParticle(mass)
    bonds, angles, torsions = openmm.HarmonicBondForce(), openmm.HarmonicAngleForce(), openmm.PeriodicTorsionForce()
    for atoms, (b0, k) in _rows(topology, "BONDS"):
        bonds.addBond(*atoms, b0, k)
    for atoms, (theta0, k) in _rows(topology, "ANGLES"):
        angles.addAngle(*atoms, np.radians(theta0), k)
    for name in ("PDIHS", "PIDIHS"):
        for atoms, (phi0, k, multiplicity) in _rows(topology, name):
            torsions.addTorsion(*atoms, int(multiplicity), np.radians(phi0), k)
    for force in (bonds, angles, torsions, _nonbonded(topology)):
        system.addForce(force)
    return system


def _rows(topology: Topology, name: str) -> list[tuple[list[int], list[float]]]:
    table = topology.interactions[name]
    return list(zip(table.atoms.tolist(), table.parameters.tolist(), strict=True))


def _nonbonded(topology: Topology) -> Any:
    import openmm

    force = openmm.NonbondedForce()
    force.setNonbondedMethod(openmm.NonbondedForce.NoCutoff)
    charges = topology.charges / np.sqrt(topology.run.epsilon_r)
    for charge, kind in zip(charges.tolist(), topology.types.tolist(), strict=True):
        force.addParticle(charge, *_sigma_epsilon(topology.c6[kind, kind], topology.c12[kind, kind]))
    for i, j in sorted(topology.exclusions):
        force.addException(i, j, 0.0, 1.0, 0.0)
    for (i, j), (c6, c12) in _rows(topology, "LJ14"):
        force.addException(i, j, topology.fudge_qq * charges[i] * charges[j], *_sigma_epsilon(c6, c12), True)
    return force


def _sigma_epsilon(c6: float, c12: float) -> tuple[float, float]:
    if c6 <= 0 or c12 <= 0:
        return 1.0, 0.0
    return float((c12 / c6) ** (1 / 6)), float(c6**2 / (4 * c12))


class OpenMMEnergies:
    """Energies and forces of single frames on one OpenMM platform.

    Args:
        topology: the system.
        platform: ``CPU`` or ``Reference``.
        threads: threads of the CPU platform.
    """

    def __init__(self, topology: Topology, platform: str, threads: int = 1) -> None:
        import openmm

        properties = {"Threads": str(threads)} if platform == "CPU" else {}
        chosen = openmm.Platform.getPlatformByName(platform)
        self._integrator = openmm.VerletIntegrator(0.001)
        self._context = openmm.Context(build_system(topology), self._integrator, chosen, properties)

    def __call__(self, positions: FloatArray, forces: bool) -> FloatArray:
        """Return energies ``[B]`` in kJ/mol.

        One frame after the other: set positions (numpy arrays, the fastest form), compute the energy (and the forces,
        left in OpenMM's own memory), read the energy.

        Args:
            positions: ``[B, N, 3]`` nm.
            forces: whether to compute them too.
        """
        energies = np.empty(len(positions))
        context = self._context
        for index, frame in enumerate(positions):
            context.setPositions(frame)
            energies[index] = context.getState(energy=True, forces=forces).getPotentialEnergy()._value
        return energies
