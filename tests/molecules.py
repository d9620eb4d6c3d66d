"""Small molecules with hand-written structures, shared by the tests of the molecule package."""

from dataclasses import dataclass

import numpy as np

from ccg_gmx.molecule.tree import Tree, build_tree

MASS = {"C": 12.011, "H": 1.008, "N": 14.007, "O": 15.999, "F": 18.998, "L": 35.453}

# ACE-ALA-NME, minimised in vacuum (amber99sb-ildn), C7eq
ALANINE = """
CH3 2.801 3.232 2.920  HH31 2.874 3.313 2.920  HH32 2.739 3.239 2.831  HH33 2.738 3.240 3.009  C 2.870 3.098 2.922
O 2.803 2.995 2.925  N 3.003 3.097 2.922  H 3.051 3.185 2.922  CA 3.085 2.976 2.924  HA 3.038 2.902 2.858
CB 3.222 3.009 2.864  HB1 3.283 2.919 2.861  HB2 3.211 3.048 2.763  HB3 3.273 3.083 2.926  C 3.091 2.911 3.064
O 3.196 2.910 3.129  N 2.978 2.859 3.112  H 2.895 2.869 3.054  CH3 2.965 2.793 3.242  HH31 2.865 2.752 3.253
HH32 3.038 2.713 3.250  HH33 2.984 2.866 3.321
"""
ALANINE_BONDS = """
1 2  1 3  1 4  1 5  5 6  5 7  7 8  7 9  9 10  9 11  9 15  11 12  11 13  11 14  15 16  15 17  17 18  17 19  19 20  19 21
19 22
"""
ALANINE_BEADS = [4, 6, 8, 14, 16]
ALANINE_TORSIONS = {"phi": (4, 6, 8, 14), "psi": (6, 8, 14, 16)}


@dataclass(frozen=True)
class Molecule:
    names: list[str]
    positions: np.ndarray
    bonds: np.ndarray

    @property
    def n_atoms(self) -> int:
        return len(self.names)

    @property
    def masses(self) -> np.ndarray:
        return np.array([MASS[name[0]] for name in self.names])

    def tree(self, beads: list[int], **changed: object) -> Tree:
        arguments = {"masses": self.masses, "names": self.names, "reference": self.positions} | changed
        return build_tree(self.bonds, self.n_atoms, beads, **arguments)


def alanine_dipeptide() -> Molecule:
    table = np.array(ALANINE.split()).reshape(-1, 4)
    bonds = np.array(ALANINE_BONDS.split(), dtype=int).reshape(-1, 2) - 1
    return Molecule(table[:, 0].tolist(), table[:, 1:].astype(float), bonds)


def butane() -> Molecule:
    """All-trans n-butane, carbons 0-3, then the hydrogens of each carbon."""
    carbons = np.array([[0.125 * k, 0.045 * (-1) ** k, 0.0] for k in range(4)])
    names, positions, bonds = ["C1", "C2", "C3", "C4"], list(carbons), [(0, 1), (1, 2), (2, 3)]
    for k, carbon in enumerate(carbons):
        up = np.array([0.0, 0.06 * (-1) ** k, 0.0])
        side = np.array([0.0, 0.0, 0.09])
        hydrogens = [up + side, up - side]
        if k in (0, 3):
            hydrogens.append(np.array([0.1 * (-1 if k == 0 else 1), -0.04 * (-1) ** k, 0.0]))
        for hydrogen in hydrogens:
            bonds.append((k, len(names)))
            names.append(f"H{len(names)}")
            positions.append(carbon + hydrogen)
    return Molecule(names, np.array(positions), np.array(bonds))


def cyclohexane() -> Molecule:
    """Chair; carbons 0-5, axial and equatorial hydrogens 6-17."""
    names, positions, bonds = [f"C{k + 1}" for k in range(6)], [], [(k, (k + 1) % 6) for k in range(6)]
    turns = np.arange(6) * np.pi / 3
    sign = (-1.0) ** np.arange(6)
    ring = np.stack((0.146 * np.cos(turns), 0.146 * np.sin(turns), 0.025 * sign), axis=1)
    positions += list(ring)
    for k in range(6):
        outward = np.array([np.cos(turns[k]), np.sin(turns[k]), 0.0])
        for step in (np.array([0, 0, 0.109 * sign[k]]), 0.103 * outward - np.array([0, 0, 0.036 * sign[k]])):
            bonds.append((k, len(names)))
            names.append(f"H{len(names) - 5}")
            positions.append(ring[k] + step)
    return Molecule(names, np.array(positions), np.array(bonds))
