"""The map of forces that belongs to a map of positions: unbiased always, of least noise where the data say how.

Bead positions are ``R = M r``. Bead forces ``B f`` have the mean force of the bead free energy as their mean at given
``R`` for every constant ``B`` with ``B M^T = 1`` and equal columns for atoms joined by constraints (Ciccotti, Kapral,
Vanden-Eijnden, doi:10.1002/cphc.200400669; Noid et al., doi:10.1063/1.2938860, for the map without constraints). Among
these, the one with the least mean square force has the least noise (Kraemer et al., doi:10.1021/acs.jpclett.3c00444): a
quadratic programme with equality constraints, solved per molecule type from the second moments of its atoms' forces.
Forces of other molecules are not drawn upon. GROMACS writes forces without those of constraints, which would cancel
in such sums, and has spread the forces of virtual sites, whose columns are zero therefore.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy.linalg import null_space

from ccg_gmx.errors import TopologyError
from ccg_gmx.molecule.system_mapping import Floats, MoleculeMap, SystemMapping
from ccg_gmx.records import FloatArray

MAX_GROUPS = 4000
"""Second moments of more atoms than this (128 MB) are not collected."""
SAMPLES_PER_COEFFICIENT = 20
"""A fit on fewer force components per free coefficient would follow the noise of its own frames."""
_RIDGE = 1e-9
_EXACT = 1e-8


@dataclass(frozen=True, eq=False)
class ForceMap:
    """The map of forces of one molecule type.

    Attributes:
        coefficients: ``[n, N]`` B.
        kind: ``basic`` (the sum over the atoms of a bead, and atoms that constraints join to it) or ``optimal``.
        noise_ratio: ``[n]`` mean square bead force, relative to the basic map on the same frames; 1 for a basic map.
        why: why it is not an optimal one; empty where it is or was not asked for.
    """

    coefficients: FloatArray
    kind: str
    noise_ratio: FloatArray
    why: str = ""


def basic_map(molecule_map: MoleculeMap) -> ForceMap:
    """Return the sum over the atoms of a bead and over those that constraints join to it.

    Where constraints join atoms of two beads, no such sum respects them; the coefficients of the least sum of squares
    are taken instead.

    Raises:
        TopologyError: constraints join beads so that their distances are fixed; then the bead forces are undefined.
    """
    groups = _group_matrix(molecule_map)
    coefficients = _basic_groups(molecule_map, groups) @ groups.T
    return ForceMap(coefficients, "basic", np.ones(len(coefficients)))


def optimal_map(molecule_map: MoleculeMap, moments: FloatArray, samples: int) -> ForceMap:
    """Return the map of least mean square force.

    Args:
        molecule_map: the map of positions.
        moments: ``[G, G]`` mean products of the forces on the groups of :func:`group_forces`, (kJ/mol/nm)^2.
        samples: number of force components that the moments are means of.

    Raises:
        TopologyError: as :func:`basic_map`.
    """
    groups = _group_matrix(molecule_map)
    basic = _basic_groups(molecule_map, groups)
    free = null_space(molecule_map.weights @ groups)
    if free.shape[1] == 0:
        return ForceMap(basic @ groups.T, "optimal", np.ones(len(basic)))
    if samples < SAMPLES_PER_COEFFICIENT * free.shape[1]:
        why = f"{samples} force components are too few to fit {free.shape[1]} free coefficients for each bead"
        return ForceMap(basic @ groups.T, "basic", np.ones(len(basic)), why)
    curvature = free.T @ moments @ free
    curvature += _RIDGE * max(float(np.trace(curvature)), 1e-300) / len(curvature) * np.eye(len(curvature))
    best = basic - basic @ moments @ free @ np.linalg.solve(curvature, free.T)
    before, after = (np.einsum("ng,gh,nh->n", rows, moments, rows) for rows in (basic, best))
    ratio = np.divide(after, before, out=np.ones_like(after), where=before > 0)
    return ForceMap(best @ groups.T, "optimal", ratio)


def fit_force_maps(mapping: SystemMapping, chunks: Iterable[Floats]) -> dict[str, ForceMap]:
    """Fit the optimal map of every molecule type.

    Args:
        mapping: the map of positions.
        chunks: forces ``[T, N, 3]`` kJ/mol/nm, in pieces.

    Returns:
        Maps by the name of the molecule type.
    """
    groups = {entry.molecule.name: _group_matrix(entry) for entry in mapping.maps}
    moments = {
        name: np.zeros((matrix.shape[1],) * 2) for name, matrix in groups.items() if matrix.shape[1] <= MAX_GROUPS
    }
    samples = dict.fromkeys(groups, 0)
    for chunk in chunks:
        for block in mapping.blocks:
            name, size = block.map.molecule.name, block.count * block.map.molecule.n_atoms
            if name in moments:
                own = chunk[:, block.first_atom : block.first_atom + size]
                sums = group_forces(own, block.count, groups[name])
                moments[name] += sums.T @ sums
                samples[name] += len(sums)
    found = {}
    for entry in mapping.maps:
        name = entry.molecule.name
        if name in moments:
            found[name] = optimal_map(entry, moments[name] / max(samples[name], 1), samples[name])
        else:
            basic = basic_map(entry)
            why = f"{groups[name].shape[1]} atoms are too many for the second moments of their forces"
            found[name] = ForceMap(basic.coefficients, "basic", basic.noise_ratio, why)
    return found


def group_forces(forces: Floats, count: int, groups: FloatArray) -> FloatArray:
    """Return the force components ``[T count 3, G]`` on the rigid groups of molecules ``[T, count N, 3]``."""
    by_atom = forces.reshape(len(forces), count, -1, 3).transpose(0, 1, 3, 2).reshape(-1, len(groups))
    return np.asarray(by_atom.astype(np.float64) @ groups)


def _group_matrix(molecule_map: MoleculeMap) -> FloatArray:
    """``[N, G]`` one column for each rigid group, 1 for its atoms; virtual sites are in none."""
    molecule = molecule_map.molecule
    matrix = np.zeros((molecule.n_atoms, int(molecule.rigid_groups.max()) + 1))
    matrix[np.arange(molecule.n_atoms), molecule.rigid_groups] = molecule.masses > 0
    return matrix[:, matrix.any(axis=0)]


def _basic_groups(molecule_map: MoleculeMap, groups: FloatArray) -> FloatArray:
    """``[n, G]`` coefficients of the groups in each bead."""
    weights = molecule_map.weights @ groups
    touched = np.stack([(molecule_map.members == bead) @ groups > 0 for bead in range(len(weights))])
    coefficients = touched.astype(np.float64)
    if np.any(touched.sum(axis=0) > 1):
        scaled = weights / np.sqrt(groups.sum(axis=0))  # least sum of squares over atoms, not over groups
        coefficients = np.linalg.pinv(scaled).T / np.sqrt(groups.sum(axis=0))
    if np.abs(coefficients @ weights.T - np.eye(len(weights))).max() > _EXACT:
        names = molecule_map.coarse.bead_names
        joined = next(column for column in touched.T if column.sum() > 1)
        raise TopologyError(
            f"{molecule_map.molecule.name}: constraints join beads "
            f"{' and '.join(name for name, touches in zip(names, joined, strict=True) if touches)}",
            expected="beads that can move apart, else their forces are undefined",
            remedy="put atoms joined by constraints into one bead, or map without forces (--no-forces)",
        )
    return coefficients
