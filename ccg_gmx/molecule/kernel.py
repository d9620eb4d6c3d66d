"""Energy and gradient on a processor, compiled: the fast path of :class:`~ccg_gmx.molecule.energy.ForceField`.

Frames are worked on in blocks of one SIMD vector (8 in float64, 16 in float32), frame by lane, so that every
interaction is a handful of vector instructions without a shuffle. numba compiles for the processor at hand at the first
use (some seconds) and keeps the code in its cache, one entry per processor type: in NUMBA_CACHE_DIR, by default beside
the source or, where that cannot be written, in the user's cache folder. numba: doi:10.1145/2833157.2833162.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ccg_gmx.molecule.kernel_lanes import lane_count
from ccg_gmx.molecule.kernel_terms import energies_of_frames

Table = tuple[NDArray[Any], ...]
DTYPES = {torch.float64: np.dtype(np.float64), torch.float32: np.dtype(np.float32)}
"""Float types that the kernel knows."""


@dataclass(frozen=True, eq=False)
class KernelTables:
    """Atoms and parameters of the interactions that the kernel knows, kJ/mol, nm and radians.

    Attributes:
        n_atoms: N.
        pairs: ``[n, 2]`` atoms and ``[n, 3]`` c6, c12, qq (kJ/mol nm).
        bonds: ``[n, 2]`` atoms and ``[n, 2]`` b0, k.
        angles: ``[n, 3]`` atoms and ``[n, 2]`` theta0, k.
        dihedrals: ``[n, 4]`` atoms and ``[n, M + 1, 2]`` coefficients of cos(m phi) and sin(m phi).
    """

    n_atoms: int
    pairs: tuple[NDArray[np.int64], NDArray[np.float64]]
    bonds: tuple[NDArray[np.int64], NDArray[np.float64]]
    angles: tuple[NDArray[np.int64], NDArray[np.float64]]
    dihedrals: tuple[NDArray[np.int64], NDArray[np.float64]]


@dataclass(frozen=True, eq=False)
class KernelJobs:
    """Arguments of the compiled kernels for a loop that is compiled too: it calls them over and over.

    The first three of either are the positions ``[B, N, 3]`` in nm, which it reads, and its own gradient
    ``[B, N, 3]`` in kJ/mol/nm and energies ``[B]`` in kJ/mol, which it writes.

    Attributes:
        force_field: arguments of :func:`ccg_gmx.molecule.kernel_terms.energies_of_frames`.
        solvent: arguments of :func:`ccg_gmx.molecule.kernel_solvent.solvation_of_frames`, None in vacuum.
    """

    force_field: tuple[Any, ...]
    solvent: tuple[Any, ...] | None = None


class Kernel:
    """Energy and gradient of the interactions of one molecule.

    Args:
        tables: the interactions.
        dtype: float64 or float32, of parameters, positions and results.
    """

    def __init__(self, tables: KernelTables, dtype: Any) -> None:
        self.n_atoms, self.dtype = tables.n_atoms, np.dtype(dtype)
        self._lanes = lane_count(self.dtype)
        self._tables = (
            _rows(tables.n_atoms, *tables.pairs, self.dtype),
            _listed(*tables.bonds, self.dtype),
            _listed(*tables.angles, self.dtype),
            _series(*tables.dihedrals, self.dtype),
        )

    def __call__(self, positions: NDArray[Any], gradient: NDArray[Any] | None, threads: int = 1) -> NDArray[Any]:
        """Return energies ``[B]`` in kJ/mol and write their gradient, if asked for.

        Args:
            positions: ``[B, N, 3]`` nm, contiguous.
            gradient: ``[B, N, 3]`` kJ/mol/nm to be written, or None.
            threads: how many threads share the frames.
        """
        energy = np.empty(len(positions), self.dtype)
        share = -(-len(positions) // max(threads, 1))
        share += -share % self._lanes
        jobs = []
        for start in range(0, len(positions), max(share, 1)):
            part = slice(start, start + share)
            jobs.append(self.job(positions[part], None if gradient is None else gradient[part], energy[part]))
        _run(jobs)
        return energy

    def job(self, positions: NDArray[Any], gradient: NDArray[Any] | None, energy: NDArray[Any]) -> tuple[Any, ...]:
        """Return the arguments of ``energies_of_frames`` for these arrays, with work space of their own.

        Args:
            positions: ``[B, N, 3]`` nm, contiguous.
            gradient: ``[B, N, 3]`` kJ/mol/nm to be written, or None.
            energy: ``[B]`` kJ/mol to be written.
        """
        x, forces = (np.empty(3 * self.n_atoms * self._lanes, self.dtype) for _ in range(2))
        return positions, gradient, energy, x, None if gradient is None else forces, self._lanes, self._tables


class CompiledTerms:
    """The kernel for torch: one :class:`Kernel` per float type, made when it is first needed.

    Args:
        tables: the interactions.
        threads: how many threads share the frames of a call.
    """

    def __init__(self, tables: KernelTables, threads: int = 1) -> None:
        if threads < 1:
            raise ValueError(f"threads must be at least 1, got {threads}")
        self._tables, self.threads = tables, threads
        self._kernels: dict[torch.dtype, Kernel] = {}

    @staticmethod
    def serves(positions: Tensor) -> bool:
        """Return whether these positions are on the processor and of a known float type."""
        return positions.device.type == "cpu" and positions.dtype in DTYPES

    def __call__(self, positions: Tensor, gradient: Tensor | None) -> Tensor:
        """Return energies ``[B]`` in kJ/mol and write their gradient, if asked for.

        Args:
            positions: ``[B, N, 3]`` nm.
            gradient: ``[B, N, 3]`` kJ/mol/nm to be written, contiguous, or None.
        """
        target = None if gradient is None else gradient.numpy()
        kernel = self.kernel(positions.dtype)
        return torch.from_numpy(kernel(positions.detach().contiguous().numpy(), target, self.threads))

    def kernel(self, dtype: torch.dtype) -> Kernel:
        """Return the kernel of a float type."""
        if dtype not in self._kernels:
            self._kernels[dtype] = Kernel(self._tables, DTYPES[dtype])
        return self._kernels[dtype]


def _run(jobs: list[tuple[Any, ...]]) -> None:
    """Run all jobs, the last one in this thread; compiled code holds no lock of Python."""
    others = [threading.Thread(target=energies_of_frames, args=job) for job in jobs[:-1]]
    for thread in others:
        thread.start()
    for job in jobs[-1:]:
        energies_of_frames(*job)
    for thread in others:
        thread.join()


def _rows(n_atoms: int, atoms: NDArray[np.int64], parameters: NDArray[np.float64], dtype: Any) -> Table:
    """Return the pairs sorted by their first atom: start of each atom's pairs, second atoms, parameters."""
    order = np.argsort(atoms[:, 0], kind="stable")
    rows = np.searchsorted(atoms[order, 0], np.arange(n_atoms + 1))
    return rows, np.ascontiguousarray(atoms[order, 1]), np.ascontiguousarray(parameters[order], dtype)


def _listed(atoms: NDArray[np.int64], parameters: NDArray[np.float64], dtype: Any) -> Table:
    return np.ascontiguousarray(atoms), np.ascontiguousarray(parameters, dtype)


def _series(atoms: NDArray[np.int64], table: NDArray[np.float64], dtype: Any) -> Table:
    """Return atoms, the highest m with a coefficient, and the coefficients of cosines and sines."""
    used = table.any(axis=2)
    orders = np.where(used, np.arange(table.shape[1]), 0).max(axis=1, initial=0)
    cosines, sines = (np.ascontiguousarray(table[:, :, column], dtype) for column in (0, 1))
    return np.ascontiguousarray(atoms), orders, cosines, sines
