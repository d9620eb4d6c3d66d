"""Alanine tripeptide ACE-ALA-ALA-NME: the smallest molecule with four coarse torsions, for the tests that need one."""

import numpy as np
from molecules import Molecule

# Minimised in vacuum (amber99sb-ildn), both residues near C7eq
POSITIONS = """
CH3 2.591 2.952 2.843  HH31 2.549 3.052 2.848  HH32 2.560 2.904 2.750  HH33 2.555 2.894 2.928  C 2.742 2.956 2.847
O 2.806 2.852 2.854  N 2.800 3.076 2.844  H 2.741 3.158 2.840  CA 2.945 3.097 2.845  HA 2.991 3.023 2.779
CB 2.974 3.236 2.785  HB1 3.082 3.252 2.780  HB2 2.933 3.242 2.684  HB3 2.929 3.314 2.847  C 3.007 3.076 2.985
O 3.051 3.171 3.050  N 3.008 2.951 3.032  H 2.964 2.880 2.975  CA 3.058 2.910 3.164  HA 3.023 2.983 3.237
CB 2.994 2.775 3.198  HB1 3.025 2.744 3.298  HB2 2.885 2.784 3.196  HB3 3.026 2.699 3.127  C 3.213 2.909 3.173
O 3.275 2.806 3.200  N 3.276 3.025 3.148  H 3.218 3.104 3.124  CH3 3.421 3.043 3.152  HH31 3.445 3.149 3.148
HH32 3.461 3.000 3.244  HH33 3.467 2.992 3.067
"""
BONDS = """
1 2  1 3  1 4  1 5  5 6  5 7  7 8  7 9  9 10  9 11  9 15  11 12  11 13  11 14  15 16  15 17  17 18  17 19  19 20
19 21  19 25  21 22  21 23  21 24  25 26  25 27  27 28  27 29  29 30  29 31  29 32
"""
BEADS = [4, 6, 8, 14, 16, 18, 24, 26]  # C N CA C N CA C N
TORSIONS = {
    "phi1": (4, 6, 8, 14),
    "psi1": (6, 8, 14, 16),
    "phi2": (14, 16, 18, 24),
    "psi2": (16, 18, 24, 26),
}
OMEGA = (8, 14, 16, 18)


def alanine_tripeptide() -> Molecule:
    """32 atoms, 31 bonds."""
    table = np.array(POSITIONS.split()).reshape(-1, 4)
    bonds = np.array(BONDS.split(), dtype=int).reshape(-1, 2) - 1
    return Molecule(table[:, 0].tolist(), table[:, 1:].astype(float), bonds)
