"""Lennard-Jones and Coulomb: which pairs, with which parameters, under which cut-off."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import shortest_path
from torch import Tensor, nn

from ccg_gmx.molecule.interactions import CutOff, excluded_pairs, pairs_beyond, truncated_pairs
from ccg_gmx.molecule.terms import PAIR, Term
from ccg_gmx.molecule.topology import RunInput, Topology
from ccg_gmx.units import COULOMB_KJ_MOL_NM_E2

Pairs = tuple[NDArray[np.int64], NDArray[np.float64]]
"""Atoms ``[n, 2]`` and their c6 (kJ/mol nm^6), c12 (kJ/mol nm^12), qq (kJ/mol nm) ``[n, 3]``."""
_STRETCH = 1.25
_NAMES = ("LJ (SR)", "Coulomb (SR)")


def nonbonded_table(topology: Topology) -> Pairs:
    """Return all pairs that are not excluded."""
    atoms = np.stack(np.triu_indices(topology.n_atoms, k=1), axis=1)
    excluded = _sorted_exclusions(topology)
    numbers = atoms @ [topology.n_atoms, 1]
    atoms = atoms[~np.isin(numbers, excluded @ [topology.n_atoms, 1])]
    first, second = topology.types[atoms].T
    qq = coulomb_factor(topology.run) * topology.charges[atoms].prod(axis=1)
    return atoms, np.stack([topology.c6[first, second], topology.c12[first, second], qq], axis=1)


def listed_nonbonded(topology: Topology) -> Pairs:
    """Return the pairs with own parameters that GROMACS counts among the non-bonded ones (LJC_NB), never cut off."""
    listed = topology.interactions["LJC_NB"]
    charge_i, charge_j, c6, c12 = listed.parameters.T
    return listed.atoms, np.stack([c6, c12, coulomb_factor(topology.run) * charge_i * charge_j], axis=1)


def close_pairs(topology: Topology) -> Pairs:
    """Return the 1-4 pairs: with the atoms' charges (LJ14), or with own ones (LJC14_Q); never cut off."""
    factor = coulomb_factor(topology.run)
    plain, own = topology.interactions["LJ14"], topology.interactions["LJC14_Q"]
    qq = factor * topology.fudge_qq * topology.charges[plain.atoms].prod(axis=1)
    scale, charge_i, charge_j, c6, c12 = own.parameters.T
    own_strengths = np.stack([c6, c12, factor * scale * charge_i * charge_j], axis=1)
    strengths = np.concatenate([np.column_stack([plain.parameters, qq]), own_strengths])
    return np.concatenate([plain.atoms, own.atoms]), strengths


def _sorted_exclusions(topology: Topology) -> NDArray[np.int64]:
    return np.array(sorted(topology.exclusions), dtype=np.int64).reshape(-1, 2)


def may_reach_cutoff(topology: Topology) -> bool:
    """Return whether two atoms can come as far apart as the cut-off without tearing a bond.

    No: the longest way along bonds, each stretched by a quarter, is shorter. Bonds whose length the topology does not
    tell (tabulated ones for instance) make it a yes.
    """
    found = {name: listed for name, listed in topology.interactions.items() if len(listed)}
    squared = ("G96BONDS",)
    lengths = [
        (listed.atoms, np.sqrt(listed.parameters[:, 0]) if name in squared else listed.parameters[:, 0])
        for name, listed in found.items()
        if name in ("BONDS", "G96BONDS", "MORSE", "CUBICBONDS")
    ]
    if not np.isfinite(topology.run.cutoff_nm):
        return False
    if not lengths:
        return topology.n_atoms > 1
    atoms, bonds = np.concatenate([a for a, _ in lengths]), np.concatenate([b for _, b in lengths])
    graph = coo_array((bonds, (atoms[:, 0], atoms[:, 1])), shape=(topology.n_atoms,) * 2)
    # atoms that no such bond connects are infinitely far
    widest = shortest_path(graph.tocsr(), directed=False).max()
    return bool(_STRETCH * widest >= topology.run.cutoff_nm)


def beyond_term(topology: Topology, atoms: NDArray[np.int64], strengths: NDArray[np.float64]) -> Term:
    """Return the term that takes pairs beyond a plain cut-off away from the sum over all pairs."""
    function = partial(pairs_beyond, cutoff=cut_off(topology.run))
    return Term(_NAMES, function, PAIR, atoms, strengths)


class SelfEnergy(nn.Module):
    """What a reaction field or a shift of the charges' energy leaves of every atom with itself: -c_rf/2."""

    constant: Tensor
    names = ("Coulomb (SR)",)

    def __init__(self, value: float) -> None:
        super().__init__()
        self.register_buffer("constant", torch.tensor(value, dtype=torch.float64))

    def forward(self, x: Tensor, gradient: Tensor | None) -> dict[str, Tensor]:
        """Return the constant for each frame of ``[3, N, B]``."""
        return {self.names[0]: self.constant.expand(x.shape[2])}


def cut_off(run: RunInput) -> CutOff:
    """Return what the run settings say about pairs (GROMACS' ``calc_rffac`` and ``interaction_const.cpp``)."""
    coulomb, lennard_jones = run.rcoulomb_nm or np.inf, run.rvdw_nm or np.inf
    k_rf = c_rf = 0.0
    if run.coulombtype == "Reaction-Field":
        inside, outside = run.epsilon_r, run.epsilon_rf
        conducting = outside == 0 or np.isinf(outside)
        k_rf = (0.5 if conducting else (outside - inside) / (2 * outside + inside)) / coulomb**3
        c_rf = 1 / coulomb + k_rf * coulomb**2
    elif run.coulomb_modifier == "Potential-shift":
        c_rf = 1 / coulomb
    shift = 1 / lennard_jones if run.vdw_modifier == "Potential-shift" else 0.0
    return CutOff(coulomb, lennard_jones, k_rf, c_rf, shift**6, shift**12)


def coulomb_factor(run: RunInput) -> float:
    """1 / (4 pi eps0 eps_r) in kJ/mol nm/e^2; eps_r = 0 stands for infinity."""
    return COULOMB_KJ_MOL_NM_E2 / run.epsilon_r if run.epsilon_r else 0.0


def truncated_terms(
    topology: Topology, atoms: NDArray[np.int64], strengths: NDArray[np.float64]
) -> list[Term | SelfEnergy]:
    """Return non-bonded pairs under a cut-off, and what it leaves of excluded pairs and of atoms with themselves.

    Args:
        topology: the system.
        atoms: ``[n, 2]`` pairs that are not excluded.
        strengths: ``[n, 3]`` c6, c12, qq in kJ/mol nm^6, nm^12, nm.
    """
    cutoff = cut_off(topology.run)
    pairs = partial(truncated_pairs, cutoff=cutoff)
    terms: list[Term | SelfEnergy] = [Term(_NAMES, pairs, PAIR, atoms, strengths)]
    if cutoff.c_rf or cutoff.k_rf:
        factor, q = coulomb_factor(topology.run), topology.charges
        excluded = _sorted_exclusions(topology)
        qq = factor * q[excluded[:, :1]] * q[excluded[:, 1:]]
        rest = partial(excluded_pairs, cutoff=cutoff)
        terms.append(Term(("Coulomb (SR)",), rest, PAIR, excluded, qq))
        terms.append(SelfEnergy(float(-0.5 * factor * cutoff.c_rf * (q**2).sum())))
    return terms
