"""Batched potential energy and gradient of one isolated molecule, GROMACS' terms under GROMACS' names.

Analytic gradients are computed together with the energy, in one pass, and stored for the backward pass: more than twice
as fast as autograd through the terms. Every term is tested against ``gmx mdrun -rerun``, the gradient against autograd.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ccg_gmx.molecule.interactions import harmonic_angles, harmonic_bonds, nonbonded_pairs, periodic_dihedrals
from ccg_gmx.molecule.kernel import CompiledTerms, KernelJobs, KernelTables
from ccg_gmx.molecule.pairs import (
    beyond_term,
    close_pairs,
    listed_nonbonded,
    may_reach_cutoff,
    nonbonded_table,
    truncated_terms,
)
from ccg_gmx.molecule.tables import read_bonded_tables
from ccg_gmx.molecule.terms import SERIES, Gather, Term, bonded_terms, fourier_table, scatter
from ccg_gmx.molecule.topology import Topology, require_supported

TERMS = (
    "Bond",
    "Angle",
    "Proper Dih.",
    "Per. Imp. Dih.",
    "LJ-14",
    "Coulomb-14",
    "LJ (SR)",
    "Coulomb (SR)",
)


class ForceField(nn.Module):
    """Potential energy of one isolated molecule: all pairs, under the cut-off of the .tpr where it matters.

    Atoms in one place have finite energies in float64, ordinary or huge, never nan: below 1e-3 nm the energy of a pair
    stays at its value there (1e20 kJ/mol and more, so a weight of 0), and a torsion of atoms that span no plane has
    cosine and sine 0. Charges without a repulsion (polar hydrogens of some force fields) attract without bound, as in
    GROMACS. A coordinate that is nan gives nan; ``ccg energy`` refuses such frames.

    Args:
        topology: from :func:`ccg_gmx.molecule.topology.parse_tpr_dump`.
        dtype: float64 (weights) or float32.
        device: where the parameters live.
        chunk: frames computed at once by the torch operations; bounds memory. None chooses by the number of pairs so
            that the working set stays in a processor's cache; give a larger one for a GPU.
        compiled: use the compiled kernel where it can serve, on processors; else torch operations do everything.
        threads: threads of the compiled kernel (torch has its own setting).
        tables: files of tabulated bonds, angles and dihedrals, as ``mdrun -tableb`` takes them.

    Raises:
        TopologyError: if the topology holds anything these energies would leave out, or a table is missing.
    """

    pair_c6: Tensor
    pair_c12: Tensor
    pair_qq: Tensor
    bond_b0: Tensor
    bond_k: Tensor
    angle_theta0: Tensor
    angle_k: Tensor
    dihedral_cosines: Tensor
    dihedral_sines: Tensor

    def __init__(
        self,
        topology: Topology,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
        *,
        chunk: int | None = None,
        compiled: bool = True,
        threads: int = 1,
        tables: Sequence[Path] = (),
    ) -> None:
        super().__init__()
        require_supported(topology)
        self.n_atoms, self.chunk = topology.n_atoms, chunk or _cached_chunk(topology.n_atoms)
        self.others = nn.ModuleList(bonded_terms(topology, read_bonded_tables(tables)))
        self.beyond: Term | None = None
        self._add_pairs(topology)
        self._add_bonds(topology)
        self._add_angles(topology)
        self._add_dihedrals(topology)
        self._compiled = CompiledTerms(self._kernel_tables(), threads) if compiled else None
        self.to(dtype=dtype, device=device)
        _keep_freed_memory()

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the parameters; positions must have it too."""
        return self.pair_qq.dtype

    def _columns(self, **columns: NDArray[np.float64]) -> None:
        """Register parameters as ``[n, 1]``, to be broadcast over frames."""
        for name, values in columns.items():
            self.register_buffer(name, torch.from_numpy(np.ascontiguousarray(values)).unsqueeze(-1))

    def _add_pairs(self, topology: Topology) -> None:
        """One table of pairs of full strength: non-bonded first, then 1-4; pairs under a modified cut-off elsewhere."""
        pairs, strengths = nonbonded_table(topology)
        if not topology.run.plain_cutoff:
            self.others.extend(truncated_terms(topology, pairs, strengths))
            pairs, strengths = pairs[:0], strengths[:0]
        elif may_reach_cutoff(topology):
            self.beyond, self.reach = beyond_term(topology, pairs, strengths), topology.run.cutoff_nm
        listed, listed_strengths = listed_nonbonded(topology)
        close, close_strengths = close_pairs(topology)
        self.n_nonbonded = len(pairs) + len(listed)
        atoms = np.concatenate([pairs, listed, close])
        c6, c12, qq = np.concatenate([strengths, listed_strengths, close_strengths]).T
        self.pairs = Gather(atoms[:, 0], atoms[:, 1])
        self._columns(pair_c6=c6, pair_c12=c12, pair_qq=qq)

    def _add_bonds(self, topology: Topology) -> None:
        bonds = topology.interactions["BONDS"]
        self.bonds = Gather(bonds.atoms[:, 0], bonds.atoms[:, 1])
        self._columns(bond_b0=bonds.parameters[:, 0], bond_k=bonds.parameters[:, 1])

    def _add_angles(self, topology: Topology) -> None:
        angles = topology.interactions["ANGLES"]
        self.angle_first = Gather(angles.atoms[:, 0], angles.atoms[:, 1])
        self.angle_second = Gather(angles.atoms[:, 2], angles.atoms[:, 1])
        self._columns(angle_theta0=np.radians(angles.parameters[:, 0]), angle_k=angles.parameters[:, 1])

    def _add_dihedrals(self, topology: Topology) -> None:
        """All dihedrals that are Fourier series, kind after kind; one series for each four atoms of a kind."""
        tables = [fourier_table(name, topology.interactions[name]) for name in SERIES]
        self.series_sizes = [len(quadruples) for quadruples, _ in tables]
        order = max(table.shape[1] for _, table in tables)
        coefficients = np.concatenate([np.pad(t, ((0, 0), (0, order - t.shape[1]), (0, 0))) for _, t in tables])
        i, j, k, l = np.concatenate([atoms for atoms, _ in tables]).T  # noqa: E741
        self.dihedral_ij, self.dihedral_kj, self.dihedral_kl = Gather(i, j), Gather(k, j), Gather(k, l)
        self._columns(
            dihedral_cosines=np.moveaxis(coefficients[:, :, 0], 0, 1),
            dihedral_sines=np.moveaxis(coefficients[:, :, 1], 0, 1),
        )

    def forward(self, positions: Tensor) -> Tensor:
        """Return the potential energy, differentiable once by the positions.

        Args:
            positions: ``[B, N, 3]`` nm.

        Returns:
            ``[B]`` kJ/mol.
        """
        self._check(positions)
        if torch.is_grad_enabled() and positions.requires_grad:
            energy: Tensor = EnergyWithGradient.apply(positions, self)
            return energy
        return self._in_chunks(positions, None)

    def energy_and_gradient(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return energy ``[B]`` in kJ/mol and its gradient ``[B, N, 3]`` in kJ/mol/nm (minus the force).

        Args:
            positions: ``[B, N, 3]`` nm.
        """
        self._check(positions)
        gradient = torch.empty(positions.shape, dtype=positions.dtype, device=positions.device)
        with torch.no_grad():
            return self._in_chunks(positions, gradient), gradient

    def kernel_jobs(self, positions: Tensor) -> KernelJobs | None:
        """Return what a compiled loop needs for :meth:`energy_and_gradient` at these positions as they change.

        Args:
            positions: ``[B, N, 3]`` nm, contiguous.

        Returns:
            None where the kernel alone, in one thread, is not the whole energy.
        """
        kernel = self._compiled
        if kernel is None or not kernel.serves(positions) or kernel.threads > 1:
            return None
        if len(self.others) or self.beyond is not None:
            return None
        x = positions.detach().numpy()
        return KernelJobs(kernel.kernel(positions.dtype).job(x, np.empty_like(x), np.empty(len(x), x.dtype)))

    def terms(self, positions: Tensor) -> dict[str, Tensor]:
        """Return each term of the energy under the name ``gmx energy`` gives it.

        Args:
            positions: ``[B, N, 3]`` nm.

        Returns:
            name -> ``[B]`` kJ/mol, keys :data:`TERMS` (0 where absent) and whatever else the topology has;
            differentiable any number of times by plain autograd.
        """
        self._check(positions)
        parts = [self._terms(frames.permute(2, 1, 0).contiguous(), None) for frames in positions.split(self.chunk)]
        names = parts[0] if parts else TERMS
        empty = [positions.new_zeros(0)]
        return {name: torch.cat(empty + [part[name] for part in parts]) for name in names}

    def _kernel_tables(self) -> KernelTables:
        """Return the terms that the compiled kernel covers, as arrays."""

        def columns(*values: Tensor) -> NDArray[np.float64]:
            return torch.cat(values, dim=1).numpy()

        ij, kj, kl = self.dihedral_ij, self.dihedral_kj, self.dihedral_kl
        series = torch.stack([self.dihedral_cosines[..., 0].T, self.dihedral_sines[..., 0].T], dim=2)
        return KernelTables(
            n_atoms=self.n_atoms,
            pairs=(_atoms(self.pairs.head, self.pairs.tail), columns(self.pair_c6, self.pair_c12, self.pair_qq)),
            bonds=(_atoms(self.bonds.head, self.bonds.tail), columns(self.bond_b0, self.bond_k)),
            angles=(
                _atoms(self.angle_first.head, self.angle_first.tail, self.angle_second.head),
                columns(self.angle_theta0, self.angle_k),
            ),
            dihedrals=(_atoms(ij.head, ij.tail, kj.head, kl.tail), series.numpy()),
        )

    def _in_chunks(self, positions: Tensor, gradient: Tensor | None) -> Tensor:
        compiled = self._compiled is not None and self._compiled.serves(positions)
        energies = [positions.new_zeros(0)]
        if compiled and self._compiled is not None:
            energy = self._compiled(positions, gradient)
            if not len(self.others) and self.beyond is None:
                return energy
        for start in range(0, len(positions), self.chunk):
            part = slice(start, start + self.chunk)
            x = positions[part].permute(2, 1, 0).contiguous()
            by_x = None if gradient is None else torch.zeros_like(x)
            terms = self._other_terms(x, by_x) if compiled else self._terms(x, by_x)
            total = torch.stack([*terms.values(), x.new_zeros(x.shape[2])]).sum(0)
            energies.append(energy[part] + total if compiled else total)
            if gradient is not None and by_x is not None:
                added = by_x.permute(2, 1, 0)
                gradient[part] = gradient[part] + added if compiled else added
        return torch.cat(energies)

    def _terms(self, x: Tensor, gradient: Tensor | None) -> dict[str, Tensor]:
        """Compute all terms of ``x [3, N, B]``, adding derivatives to ``gradient [3, N, B]`` when it is given."""
        lennard_jones, coulomb = self._pair_energy(x, gradient)
        series = self._dihedral_energy(x, gradient).split(self.series_sizes)
        terms = {
            "Bond": self._bond_energy(x, gradient).sum(0),
            "Angle": self._angle_energy(x, gradient).sum(0),
            **{name: energy.sum(0) for name, energy in zip(SERIES.values(), series, strict=True)},
            "LJ-14": lennard_jones[self.n_nonbonded :].sum(0),
            "Coulomb-14": coulomb[self.n_nonbonded :].sum(0),
            "LJ (SR)": lennard_jones[: self.n_nonbonded].sum(0),
            "Coulomb (SR)": coulomb[: self.n_nonbonded].sum(0),
        }
        for name, energy in self._other_terms(x, gradient).items():
            terms[name] = terms[name] + energy if name in terms else energy
        sizes = dict(zip(SERIES.values(), self.series_sizes, strict=True))
        return {name: energy for name, energy in terms.items() if name in TERMS or sizes.get(name, 1)}

    def _other_terms(self, x: Tensor, gradient: Tensor | None) -> dict[str, Tensor]:
        """Compute what the compiled kernel has no function for."""
        terms: dict[str, Tensor] = {}
        for module in (*self.others, *self._cut(x)):
            for name, energy in module(x, gradient).items():
                terms[name] = terms[name] + energy if name in terms else energy
        return terms

    def _cut(self, x: Tensor) -> tuple[Term, ...]:
        """Return the term that takes pairs beyond a plain cut-off away, if any frame is wide enough to have some."""
        if self.beyond is None:
            return ()
        wide = (x.amax(1) - x.amin(1)).square().sum(0) >= self.reach**2
        return (self.beyond,) if bool(wide.any()) else ()

    def _bond_energy(self, x: Tensor, gradient: Tensor | None) -> Tensor:
        energy, derivatives = harmonic_bonds(self.bonds(x), self.bond_b0, self.bond_k, gradient is not None)
        scatter((self.bonds,), derivatives, gradient)
        return energy

    def _angle_energy(self, x: Tensor, gradient: Tensor | None) -> Tensor:
        gathers = (self.angle_first, self.angle_second)
        first, second = (gather(x) for gather in gathers)
        parameters = (self.angle_theta0, self.angle_k)
        energy, derivatives = harmonic_angles(first, second, *parameters, gradient is not None)
        scatter(gathers, derivatives, gradient)
        return energy

    def _dihedral_energy(self, x: Tensor, gradient: Tensor | None) -> Tensor:
        gathers = (self.dihedral_ij, self.dihedral_kj, self.dihedral_kl)
        ij, kj, kl = (gather(x) for gather in gathers)
        series = (self.dihedral_cosines, self.dihedral_sines)
        energy, derivatives = periodic_dihedrals(ij, kj, kl, *series, gradient is not None)
        scatter(gathers, derivatives, gradient)
        return energy

    def _pair_energy(self, x: Tensor, gradient: Tensor | None) -> tuple[Tensor, Tensor]:
        parameters = (self.pair_c6, self.pair_c12, self.pair_qq)
        lennard_jones, coulomb, derivatives = nonbonded_pairs(self.pairs(x), *parameters, gradient is not None)
        scatter((self.pairs,), derivatives, gradient)
        return lennard_jones, coulomb

    def _check(self, positions: Tensor) -> None:
        if positions.ndim != 3 or positions.shape[1:] != (self.n_atoms, 3) or positions.dtype != self.dtype:
            raise ValueError(
                f"positions must be [B, {self.n_atoms}, 3] of {self.dtype}, "
                f"got {tuple(positions.shape)} of {positions.dtype}"
            )


class HasGradient(Protocol):
    """A potential energy that knows its gradient."""

    def energy_and_gradient(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``[B]`` kJ/mol and ``[B, N, 3]`` kJ/mol/nm of ``[B, N, 3]`` nm."""


class EnergyWithGradient(torch.autograd.Function):
    """Energy whose gradient is computed in the forward pass, so that the backward pass is one product."""

    @staticmethod
    def forward(ctx, positions: Tensor, term: HasGradient) -> Tensor:  # type: ignore[no-untyped-def]
        """Return ``[B]`` energies and keep the gradient."""
        energy, gradient = term.energy_and_gradient(positions)
        ctx.save_for_backward(gradient)
        return energy

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, by_energy: Tensor) -> tuple[Tensor, None]:  # type: ignore[no-untyped-def]
        """Return the kept gradient times ``by_energy [B]``.

        A frame whose energy takes no part has no gradient, even where its own overflowed: 0 times inf is 0 here.
        """
        (gradient,) = ctx.saved_tensors
        used = (by_energy != 0)[:, None, None]
        return torch.where(used, by_energy[:, None, None] * gradient, 0.0), None


def _cached_chunk(n_atoms: int) -> int:
    """Frames whose pairs fit in the cache: beyond it, chignolin (138 atoms) runs at a third of its speed."""
    pairs = max(1, n_atoms * (n_atoms - 1) // 2)
    return int(min(512, max(8, 250_000 // pairs)))


def _keep_freed_memory() -> None:
    """Have glibc keep freed memory instead of handing it back after every operation.

    Freeing one large block raises its threshold for doing so (mallopt(3), "dynamic mmap threshold", at most 32 MiB).
    Without it each temporary of 0.1 to 10 MB is paid for with page faults: energies were 2 to 3 times slower.
    """
    torch.empty(30 * 2**20, dtype=torch.uint8)


def _atoms(*columns: Tensor) -> NDArray[np.int64]:
    return torch.stack(columns, dim=1).numpy()
