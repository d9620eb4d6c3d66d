"""Radii and screening factors of generalised Born models, assigned from elements and bonds.

mbondi2: A. Onufriev, D. Bashford, D. A. Case, Proteins 55, 383 (2004), doi:10.1002/prot.20033. Screening factors:
G. D. Hawkins, C. J. Cramer, D. G. Truhlar, J. Phys. Chem. 100, 19824 (1996), doi:10.1021/jp961710n, in the values that
Amber's LEaP writes for every radius set.
"""

from __future__ import annotations

import numpy as np

from ccg_gmx.errors import TopologyError
from ccg_gmx.molecule.topology import Topology
from ccg_gmx.records import FloatArray

# element -> radius in nm, screening factor; silicon and chlorine have LEaP's default factor
MBONDI2 = {
    "H": (0.12, 0.85),
    "C": (0.17, 0.72),
    "N": (0.155, 0.79),
    "O": (0.15, 0.85),
    "F": (0.15, 0.88),
    "Si": (0.21, 0.8),
    "P": (0.185, 0.86),
    "S": (0.18, 0.96),
    "Cl": (0.17, 0.8),
}
HYDROGEN_ON_NITROGEN_NM = 0.13


def mbondi2(topology: Topology) -> tuple[FloatArray, FloatArray]:
    """Return the radius in nm ``[N]`` and the screening factor ``[N]`` of every atom.

    Args:
        topology: elements and bonds are used, names are not.

    Raises:
        TopologyError: for an atom whose element is unknown or not in the set.
    """
    elements = np.array(topology.elements)
    missing = [atom for atom, element in enumerate(topology.elements) if element not in MBONDI2]
    if missing:
        atom = missing[0]
        element = f"element {elements[atom]}" if topology.atomic_numbers[atom] > 0 else "no element"
        raise TopologyError(
            f"found atom {topology.label(atom)} with {element}, and {len(missing) - 1} more without a mbondi2 radius",
            expected=f"atoms of {', '.join(MBONDI2)} only",
            remedy="give the atom types of the force field their atomic numbers, or leave implicit_solvent out",
        )
    radii, screening = (np.array(values) for values in zip(*(MBONDI2[e] for e in topology.elements), strict=True))
    bonds = np.concatenate([topology.bonds, topology.bonds[:, ::-1]])
    on_nitrogen = bonds[(elements[bonds[:, 0]] == "H") & (elements[bonds[:, 1]] == "N"), 0]
    radii[on_nitrogen] = HYDROGEN_ON_NITROGEN_NM
    return radii, screening
