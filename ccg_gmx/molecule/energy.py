"""Batched potential energy and gradient of one isolated molecule, GROMACS' terms under GROMACS' names.

Analytic gradients are computed together with the energy, in one pass, and stored for the backward pass: more than twice
as fast as autograd through the terms. Every term is tested against ``gmx mdrun -rerun``, the gradient against autograd.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ccg_gmx.molecule.interactions import harmonic_angles, harmonic_bonds, nonbonded_pairs, periodic_dihedrals
from ccg_gmx.molecule.kernel import CompiledTerms, KernelTables
from ccg_gmx.molecule.topology import Topology, require_supported
from ccg_gmx.units import COULOMB_KJ_MOL_NM_E2

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


class _Gather(nn.Module):
    """Vectors ``[3, n, B]`` between pairs of atoms."""

    head: Tensor
    tail: Tensor

    def __init__(self, head: NDArray[np.int64], tail: NDArray[np.int64]) -> None:
        super().__init__()
        self.register_buffer("head", torch.from_numpy(np.ascontiguousarray(head)))
        self.register_buffer("tail", torch.from_numpy(np.ascontiguousarray(tail)))

    def forward(self, x: Tensor) -> Tensor:
        return x.index_select(1, self.head).sub_(x.index_select(1, self.tail))


def _scatter(gathers: tuple[_Gather, ...], derivatives: tuple[Tensor, ...], gradient: Tensor | None) -> None:
    """Add derivatives by vectors to the ``[3, N, B]`` gradient by positions."""
    if gradient is None:
        return
    for gather, derivative in zip(gathers, derivatives, strict=True):
        gradient.index_add_(1, gather.head, derivative)
        gradient.index_add_(1, gather.tail, derivative, alpha=-1)


class ForceField(nn.Module):
    """Potential energy of one isolated molecule, all pairs, no cut-off.

    Args:
        topology: from :func:`ccg_gmx.molecule.topology.parse_tpr_dump`.
        dtype: float64 (weights) or float32.
        device: where the parameters live.
        chunk: frames computed at once; bounds memory, and keeps the working set in the processor's cache.
        compiled: use the compiled kernel where it can serve, on processors; else torch operations do everything.
        threads: threads of the compiled kernel (torch has its own setting).

    Raises:
        TopologyError: if the topology holds anything these energies would leave out.
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
        chunk: int = 512,
        compiled: bool = True,
        threads: int = 1,
    ) -> None:
        super().__init__()
        require_supported(topology)
        self.n_atoms, self.chunk = topology.n_atoms, chunk
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
        """One table of pairs: non-bonded first, then 1-4."""
        first, second = np.triu_indices(topology.n_atoms, k=1)
        keep = np.array(
            [pair not in topology.exclusions for pair in zip(first.tolist(), second.tolist(), strict=True)], bool
        )
        first, second = first[keep], second[keep]
        close = topology.interactions["LJ14"]
        self.n_nonbonded = len(first)
        kinds = topology.types
        head, tail = np.r_[first, close.atoms[:, 0]], np.r_[second, close.atoms[:, 1]]
        factor = COULOMB_KJ_MOL_NM_E2 / topology.run.epsilon_r
        scale = np.where(np.arange(len(head)) < self.n_nonbonded, factor, factor * topology.fudge_qq)
        self.pairs = _Gather(head, tail)
        self._columns(
            pair_c6=np.r_[topology.c6[kinds[first], kinds[second]], close.parameters[:, 0]],
            pair_c12=np.r_[topology.c12[kinds[first], kinds[second]], close.parameters[:, 1]],
            pair_qq=scale * topology.charges[head] * topology.charges[tail],
        )

    def _add_bonds(self, topology: Topology) -> None:
        bonds = topology.interactions["BONDS"]
        self.bonds = _Gather(bonds.atoms[:, 0], bonds.atoms[:, 1])
        self._columns(bond_b0=bonds.parameters[:, 0], bond_k=bonds.parameters[:, 1])

    def _add_angles(self, topology: Topology) -> None:
        angles = topology.interactions["ANGLES"]
        self.angle_first = _Gather(angles.atoms[:, 0], angles.atoms[:, 1])
        self.angle_second = _Gather(angles.atoms[:, 2], angles.atoms[:, 1])
        self._columns(angle_theta0=np.radians(angles.parameters[:, 0]), angle_k=angles.parameters[:, 1])

    def _add_dihedrals(self, topology: Topology) -> None:
        """Proper dihedrals first, then periodic impropers; one Fourier series for each four atoms."""
        tables = [_fourier_table(topology.interactions[name].atoms, topology.interactions[name].parameters)
                  for name in ("PDIHS", "PIDIHS")]  # fmt: skip
        self.n_proper = len(tables[0][0])
        order = max(table.shape[1] for _, table in tables)
        coefficients = np.concatenate([np.pad(t, ((0, 0), (0, order - t.shape[1]), (0, 0))) for _, t in tables])
        i, j, k, l = np.concatenate([atoms for atoms, _ in tables]).T  # noqa: E741
        self.dihedral_ij, self.dihedral_kj, self.dihedral_kl = _Gather(i, j), _Gather(k, j), _Gather(k, l)
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
            energy: Tensor = _EnergyWithGradient.apply(positions, self)
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

    def terms(self, positions: Tensor) -> dict[str, Tensor]:
        """Return each term of the energy under the name ``gmx energy`` gives it.

        Args:
            positions: ``[B, N, 3]`` nm.

        Returns:
            name -> ``[B]`` kJ/mol, keys :data:`TERMS`; differentiable any number of times by plain autograd.
        """
        self._check(positions)
        parts = [self._terms(frames.permute(2, 1, 0).contiguous(), None) for frames in positions.split(self.chunk)]
        return {name: torch.cat([part[name] for part in parts]) for name in TERMS}

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
        if self._compiled is not None and self._compiled.serves(positions):
            return self._compiled(positions, gradient)
        energies = [positions.new_zeros(0)]
        for start in range(0, len(positions), self.chunk):
            x = positions[start : start + self.chunk].permute(2, 1, 0).contiguous()
            by_x = None if gradient is None else torch.zeros_like(x)
            energies.append(torch.stack(list(self._terms(x, by_x).values())).sum(0))
            if gradient is not None and by_x is not None:
                gradient[start : start + self.chunk] = by_x.permute(2, 1, 0)
        return torch.cat(energies)

    def _terms(self, x: Tensor, gradient: Tensor | None) -> dict[str, Tensor]:
        """Compute all terms of ``x [3, N, B]``, adding derivatives to ``gradient [3, N, B]`` when it is given."""
        bond = self._bond_energy(x, gradient)
        angle = self._angle_energy(x, gradient)
        dihedral = self._dihedral_energy(x, gradient)
        lennard_jones, coulomb = self._pair_energy(x, gradient)
        return {
            "Bond": bond.sum(0),
            "Angle": angle.sum(0),
            "Proper Dih.": dihedral[: self.n_proper].sum(0),
            "Per. Imp. Dih.": dihedral[self.n_proper :].sum(0),
            "LJ-14": lennard_jones[self.n_nonbonded :].sum(0),
            "Coulomb-14": coulomb[self.n_nonbonded :].sum(0),
            "LJ (SR)": lennard_jones[: self.n_nonbonded].sum(0),
            "Coulomb (SR)": coulomb[: self.n_nonbonded].sum(0),
        }

    def _bond_energy(self, x: Tensor, gradient: Tensor | None) -> Tensor:
        energy, derivatives = harmonic_bonds(self.bonds(x), self.bond_b0, self.bond_k, gradient is not None)
        _scatter((self.bonds,), derivatives, gradient)
        return energy

    def _angle_energy(self, x: Tensor, gradient: Tensor | None) -> Tensor:
        gathers = (self.angle_first, self.angle_second)
        first, second = (gather(x) for gather in gathers)
        parameters = (self.angle_theta0, self.angle_k)
        energy, derivatives = harmonic_angles(first, second, *parameters, gradient is not None)
        _scatter(gathers, derivatives, gradient)
        return energy

    def _dihedral_energy(self, x: Tensor, gradient: Tensor | None) -> Tensor:
        gathers = (self.dihedral_ij, self.dihedral_kj, self.dihedral_kl)
        ij, kj, kl = (gather(x) for gather in gathers)
        series = (self.dihedral_cosines, self.dihedral_sines)
        energy, derivatives = periodic_dihedrals(ij, kj, kl, *series, gradient is not None)
        _scatter(gathers, derivatives, gradient)
        return energy

    def _pair_energy(self, x: Tensor, gradient: Tensor | None) -> tuple[Tensor, Tensor]:
        parameters = (self.pair_c6, self.pair_c12, self.pair_qq)
        lennard_jones, coulomb, derivatives = nonbonded_pairs(self.pairs(x), *parameters, gradient is not None)
        _scatter((self.pairs,), derivatives, gradient)
        return lennard_jones, coulomb

    def _check(self, positions: Tensor) -> None:
        if positions.ndim != 3 or positions.shape[1:] != (self.n_atoms, 3) or positions.dtype != self.dtype:
            raise ValueError(
                f"positions must be [B, {self.n_atoms}, 3] of {self.dtype}, "
                f"got {tuple(positions.shape)} of {positions.dtype}"
            )


class _EnergyWithGradient(torch.autograd.Function):
    """Energy whose gradient is computed in the forward pass, so that the backward pass is one product."""

    @staticmethod
    def forward(ctx, positions: Tensor, force_field: ForceField) -> Tensor:  # type: ignore[no-untyped-def]
        energy, gradient = force_field.energy_and_gradient(positions)
        ctx.save_for_backward(gradient)
        return energy

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, by_energy: Tensor) -> tuple[Tensor, None]:  # type: ignore[no-untyped-def]
        (gradient,) = ctx.saved_tensors
        return by_energy[:, None, None] * gradient, None


def _keep_freed_memory() -> None:
    """Have glibc keep freed memory instead of handing it back after every operation.

    Freeing one large block raises its threshold for doing so (mallopt(3), "dynamic mmap threshold", at most 32 MiB).
    Without it each temporary of 0.1 to 10 MB is paid for with page faults: energies were 2 to 3 times slower.
    """
    torch.empty(30 * 2**20, dtype=torch.uint8)


def _atoms(*columns: Tensor) -> NDArray[np.int64]:
    return torch.stack(columns, dim=1).numpy()


def _fourier_table(
    atoms: NDArray[np.int64], parameters: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Merge terms cp (1 + cos(m phi - phi0)) on the same four atoms.

    Args:
        atoms: ``[n, 4]``.
        parameters: ``[n, 3]`` phi0 in degrees, cp in kJ/mol, m.

    Returns:
        the different quadruples ``[q, 4]`` and their coefficients ``[q, M + 1, 2]`` of cos(m phi) and sin(m phi).
    """
    quadruples, inverse = np.unique(atoms, axis=0, return_inverse=True)
    multiplicity = parameters[:, 2].astype(np.int64)
    table = np.zeros((len(quadruples), int(multiplicity.max(initial=0)) + 1, 2))
    phase, height = np.radians(parameters[:, 0]), parameters[:, 1]
    rows = inverse.reshape(-1)
    np.add.at(table[:, 0, 0], rows, height)
    waves = np.stack([np.cos(phase), np.sin(phase)], axis=1) * height[:, None]
    np.add.at(table.reshape(-1, 2), rows * table.shape[1] + multiplicity, waves)
    return quadruples, table
