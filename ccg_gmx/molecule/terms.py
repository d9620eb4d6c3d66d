"""Interactions as modules: which atoms, which parameters, which function, under which name GROMACS reports them.

The four kinds of amber force fields, and everything that can be written as one of them, are in
:mod:`ccg_gmx.molecule.energy`, where the compiled kernel reads them. This module holds all others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.polynomial.chebyshev import poly2cheb
from numpy.typing import NDArray
from torch import Tensor, nn

from ccg_gmx.molecule import interactions as functions
from ccg_gmx.molecule.cmap import Cmap
from ccg_gmx.molecule.tables import BondedTable, TabulatedAngles, TabulatedBonds, TabulatedDihedrals
from ccg_gmx.molecule.topology import Interactions, Topology

Function = Callable[..., tuple[Any, ...]]
Vectors = tuple[tuple[int, int], ...]
"""Each vector is r_a - r_b of two of the interaction's atoms."""

PAIR: Vectors = ((0, 1),)
BEND: Vectors = ((0, 1), (2, 1))
BEND_AND_ENDS: Vectors = (*BEND, (0, 2))
TORSION: Vectors = ((0, 1), (2, 1), (2, 3))
TWO_TORSIONS: Vectors = (*TORSION, (1, 2), (3, 2), (3, 4))


@dataclass(frozen=True)
class Kind:
    """One function type.

    Attributes:
        name: what gmx energy calls its energy.
        function: from vectors, parameters in the order of ``topology.COVERED`` and ``derivatives`` to energies.
        vectors: the vectors that the function takes.
        degrees: parameters to be turned into radians.
    """

    name: str
    function: Function
    vectors: Vectors
    degrees: tuple[int, ...] = ()


KINDS: dict[str, Kind] = {
    "G96BONDS": Kind("G96Bond", functions.g96_bonds, PAIR),
    "MORSE": Kind("Morse", functions.morse_bonds, PAIR),
    "CUBICBONDS": Kind("Cubic Bonds", functions.cubic_bonds, PAIR),
    "HARMONIC": Kind("Harmonic Pot.", functions.harmonic_bonds, PAIR),
    "G96ANGLES": Kind("G96Angle", functions.g96_angles, BEND),
    "CROSS_BOND_BOND": Kind("Bond-Cross", functions.cross_bond_bonds, BEND),
    "CROSS_BOND_ANGLE": Kind("BA-Cross", functions.cross_bond_angles, BEND_AND_ENDS),
    "UREY_BRADLEY": Kind("U-B", functions.urey_bradley, BEND_AND_ENDS, degrees=(0,)),
    "QANGLES": Kind("Quartic Angles", functions.quartic_angles, BEND, degrees=(0,)),
    "IDIHS": Kind("Improper Dih.", functions.harmonic_dihedrals, TORSION, degrees=(0,)),
}
"""Function types without data beyond their parameters."""

TABULATED: dict[str, tuple[str, type[TabulatedBonds | TabulatedAngles | TabulatedDihedrals], Vectors]] = {
    "TABBONDS": ("Tab. Bonds", TabulatedBonds, PAIR),
    "TABBONDSNC": ("Tab. Bonds NC", TabulatedBonds, PAIR),
    "TABANGLES": ("Tab. Angles", TabulatedAngles, BEND),
    "TABDIHS": ("Tab. Dih.", TabulatedDihedrals, TORSION),
}


SERIES: dict[str, str] = {
    "PDIHS": "Proper Dih.",
    "PIDIHS": "Per. Imp. Dih.",
    "RBDIHS": "Ryckaert-Bell.",
    "FOURDIHS": "Fourier Dih.",
}
"""Function types that are Fourier series in a torsion -> names of their energies."""


class Gather(nn.Module):
    """Vectors ``[3, n, B]`` between pairs of atoms."""

    head: Tensor
    tail: Tensor

    def __init__(self, head: NDArray[np.int64], tail: NDArray[np.int64]) -> None:
        super().__init__()
        self.register_buffer("head", torch.from_numpy(np.ascontiguousarray(head)))
        self.register_buffer("tail", torch.from_numpy(np.ascontiguousarray(tail)))

    def forward(self, x: Tensor) -> Tensor:
        """Vectors of positions ``[3, N, B]``."""
        return x.index_select(1, self.head).sub_(x.index_select(1, self.tail))


def scatter(gathers: tuple[Gather, ...], derivatives: tuple[Tensor, ...], gradient: Tensor | None) -> None:
    """Add derivatives by vectors to the ``[3, N, B]`` gradient by positions."""
    if gradient is None:
        return
    for gather, derivative in zip(gathers, derivatives, strict=True):
        gradient.index_add_(1, gather.head, derivative)
        gradient.index_add_(1, gather.tail, derivative, alpha=-1)


class Term(nn.Module):
    """All interactions of one kind.

    Args:
        names: what gmx energy calls the energies that the function returns.
        function: as in :class:`Kind`; a module brings its own data.
        vectors: as in :class:`Kind`.
        atoms: ``[n, k]``.
        parameters: ``[n, p]``.
    """

    columns: Tensor

    def __init__(
        self,
        names: tuple[str, ...],
        function: Function,
        vectors: Vectors,
        atoms: NDArray[np.int64],
        parameters: NDArray[np.float64],
    ) -> None:
        super().__init__()
        self.names, self.function = names, function
        self.gathers = nn.ModuleList(Gather(atoms[:, a], atoms[:, b]) for a, b in vectors)
        self.register_buffer("columns", torch.from_numpy(np.ascontiguousarray(parameters.T)).unsqueeze(-1))

    def forward(self, x: Tensor, gradient: Tensor | None) -> dict[str, Tensor]:
        """Return energies ``[B]`` of positions ``[3, N, B]``, adding derivatives to the gradient of the same shape."""
        gathers = tuple(self.gathers)
        vectors = [gather(x) for gather in gathers]
        *energies, derivatives = self.function(*vectors, *self.columns, derivatives=gradient is not None)
        scatter(gathers, derivatives, gradient)  # type: ignore[arg-type]
        return {name: energy.sum(0) for name, energy in zip(self.names, energies, strict=True)}


def bonded_terms(topology: Topology, tables: Mapping[str, BondedTable]) -> list[Term]:
    """Return the bonded interactions that are not in the tables of the compiled kernel.

    Args:
        topology: the system.
        tables: tabulated functions (:func:`ccg_gmx.molecule.tables.read_bonded_tables`).

    Raises:
        TopologyError: if a table that the topology uses is not there.
    """
    found: dict[str, Interactions] = {name: listed for name, listed in topology.interactions.items() if len(listed)}
    terms = []
    for dump_name, kind in KINDS.items():
        if dump_name in found:
            parameters = found[dump_name].parameters.copy()
            parameters[:, kind.degrees] = np.radians(parameters[:, kind.degrees])
            terms.append(Term((kind.name,), kind.function, kind.vectors, found[dump_name].atoms, parameters))
    for dump_name, (name, module, vectors) in TABULATED.items():
        if dump_name in found:
            atoms, parameters = found[dump_name].atoms, found[dump_name].parameters
            table = module(dict(tables), parameters[:, 1].astype(np.int64))
            terms.append(Term((name,), table, vectors, atoms, parameters[:, :1]))
    if "CMAP" in found:
        listed = found["CMAP"]
        correction = Cmap(topology.cmap_grids, listed.parameters[:, 0].astype(np.int64))
        terms.append(Term(("CMAP Dih.",), correction, TWO_TORSIONS, listed.atoms, listed.parameters[:, :0]))
    return terms


def fourier_table(name: str, listed: Interactions) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Write dihedrals as Fourier series, one for each four atoms.

    Args:
        name: a key of :data:`SERIES`.
        listed: the interactions.

    Returns:
        the different quadruples ``[q, 4]`` and the coefficients ``[q, M + 1, 2]`` of cos(m phi) and sin(m phi).
    """
    quadruples, inverse = np.unique(listed.atoms, axis=0, return_inverse=True)
    rows, parameters = inverse.reshape(-1), listed.parameters
    if name not in ("PDIHS", "PIDIHS"):
        matrix = ryckaert_bellemans_series() if name == "RBDIHS" else FOURIER_SERIES
        table = np.zeros((len(quadruples), matrix.shape[1], 2))
        np.add.at(table[:, :, 0], rows, parameters @ matrix)
        return quadruples, table
    multiplicity = parameters[:, 2].astype(np.int64)
    table = np.zeros((len(quadruples), int(multiplicity.max(initial=0)) + 1, 2))
    phase, height = np.radians(parameters[:, 0]), parameters[:, 1]
    np.add.at(table[:, 0, 0], rows, height)
    waves = np.stack([np.cos(phase), np.sin(phase)], axis=1) * height[:, None]
    np.add.at(table.reshape(-1, 2), rows * table.shape[1] + multiplicity, waves)
    return quadruples, table


def ryckaert_bellemans_series() -> NDArray[np.float64]:
    """Return the ``[6, 6]`` matrix from C_n of sum_n C_n cos^n(phi - pi) to the coefficients of cos(m phi)."""
    powers = np.diag((-1.0) ** np.arange(6))
    return np.stack([np.pad(poly2cheb(row), (0, 5))[:6] for row in powers])


FOURIER_SERIES = 0.5 * np.array([[1, 1, 0, 0, 0], [1, 0, -1, 0, 0], [1, 0, 0, 1, 0], [1, 0, 0, 0, -1]])
"""From F_1 to F_4 of OPLS' sum 1/2 F_m (1 -+ cos(m phi)) to the coefficients of cos(m phi)."""
