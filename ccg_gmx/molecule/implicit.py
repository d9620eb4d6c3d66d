"""Implicit solvent: generalised Born (OBC1, OBC2) with the ACE surface term, for batches of frames, all pairs.

* Born radii: A. Onufriev, D. Bashford, D. A. Case, Proteins 55, 383 (2004), doi:10.1002/prot.20033. Models I and II of
  that paper are Amber's igb = 2 and 5.
* Pairwise descreening integral: G. D. Hawkins, C. J. Cramer, D. G. Truhlar, Chem. Phys. Lett. 246, 122 (1995),
  doi:10.1016/0009-2614(95)01082-K.
* Polarisation energy: W. C. Still et al., J. Am. Chem. Soc. 112, 6127 (1990), doi:10.1021/ja00172a038.
* Surface term: M. Schaefer, C. Bartels, M. Karplus, J. Mol. Biol. 284, 835 (1998), doi:10.1006/jmbi.1998.2172.

GROMACS dropped implicit solvent in 2019, so the test compares with OpenMM. The gradient is analytic and computed
together with the energy. As in energy.py, a compiled kernel (kernel_solvent.py) serves processors; the torch operations
here, frames along the last, contiguous axis, serve GPUs and are the kernel's test.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from ccg_gmx.molecule.energy import EnergyWithGradient, ForceField
from ccg_gmx.molecule.implicit_radii import mbondi2
from ccg_gmx.molecule.kernel import DTYPES, KernelJobs
from ccg_gmx.molecule.kernel_solvent import SolventKernel
from ccg_gmx.molecule.topology import Topology
from ccg_gmx.settings import Settings
from ccg_gmx.units import COULOMB_KJ_MOL_NM_E2

RESCALING = {"obc1": (0.8, 0.0, 2.909125), "obc2": (1.0, 0.8, 4.85)}
"""alpha, beta, gamma of tanh(alpha psi - beta psi^2 + gamma psi^3), models I and II of the paper."""

OFFSET_NM = 0.009
"""Taken off every radius before the descreening integral."""

PROBE_NM = 0.14
SURFACE_TENSION_KJ_MOL_NM2 = 4 * math.pi * 2.25936
"""Energy per (r + probe)^2 of an atom that nothing covers: 5.4 cal/mol/A^2 of solvent accessible area."""

CLOSEST_NM = 1e-4
"""Pairs nearer than this count as this far apart: coincident atoms have a finite energy here and no NaN gradient."""

_PAIR_FRAMES = 2**14
"""Pairs times frames computed at once by default: temporaries of 0.1 MB stay in the processor's cache."""


class ImplicitSolventSettings(Settings):
    """Generalised Born solvent; the fine runs then come from the package's own Langevin integrator."""

    model: Literal["obc1", "obc2"] = Field(description="Born radii: models I (igb 2) and II (igb 5) of OBC 2004")
    solvent_dielectric: float = Field(78.5, description="relative dielectric constant of the solvent", ge=1)
    solute_dielectric: float = Field(
        1.0, description="inside the molecule; enters the solvent term alone, not the force field's Coulomb", gt=0
    )
    surface_area: bool = Field(True, description="add the ACE non-polar surface term")
    radii: Literal["mbondi2"] = Field("mbondi2", description="radius set, assigned from elements and bonds")


class ImplicitSolvent(nn.Module):
    """Solvation energy of one isolated molecule, without cut-off.

    Args:
        topology: charges, elements and bonds are used.
        settings: the model and its constants.
        dtype: float64 (weights) or float32.
        device: where the parameters live.
        chunk: frames computed at once, which bounds the memory; None chooses by the number of atoms, for a processor's
            cache (a GPU wants thousands).
        compiled: use the compiled kernel where it can serve, on processors; else torch operations do everything.
        threads: threads of the compiled kernel (torch has its own setting).

    Raises:
        TopologyError: if an atom has no radius in the set.
    """

    first: Tensor
    second: Tensor
    ends: Tensor
    radius: Tensor
    offset_radius: Tensor
    self_energy: Tensor
    surface: Tensor
    pair_qq: Tensor
    pair_offset: Tensor
    pair_scaled: Tensor

    def __init__(
        self,
        topology: Topology,
        settings: ImplicitSolventSettings,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
        *,
        chunk: int | None = None,
        compiled: bool = True,
        threads: int = 1,
    ) -> None:
        super().__init__()
        self.n_atoms = topology.n_atoms
        self.alpha, self.beta, self.gamma = RESCALING[settings.model]
        first, second = np.triu_indices(topology.n_atoms, k=1)
        self.chunk = chunk or max(1, _PAIR_FRAMES // max(1, len(first)))
        self.register_buffer("first", torch.from_numpy(first))
        self.register_buffer("second", torch.from_numpy(second))
        self.register_buffer("ends", torch.cat([self.first, self.second]))
        radius, screening = mbondi2(topology)
        offset = radius - OFFSET_NM
        polarisation = COULOMB_KJ_MOL_NM_E2 * (1 / settings.solute_dielectric - 1 / settings.solvent_dielectric)
        tension = SURFACE_TENSION_KJ_MOL_NM2 if settings.surface_area else 0.0
        charges, scaled = topology.charges, screening * offset
        self_energy = -0.5 * polarisation * charges**2
        surface = tension * (radius + PROBE_NM) ** 2 * radius**6
        self._rows = (offset, scaled, radius, self_energy, surface, charges)
        self._factor, self._compiled, self._threads = -polarisation, compiled, threads
        self._kernels: dict[torch.dtype, SolventKernel] = {}
        self._columns(
            radius=radius,
            offset_radius=offset,
            self_energy=self_energy,
            surface=surface,
            pair_qq=-polarisation * charges[first] * charges[second],
            # each pair twice: the first atom descreened by the second, and the other way round
            pair_offset=np.stack([offset[first], offset[second]]),
            pair_scaled=np.stack([scaled[second], scaled[first]]),
        )
        self.to(dtype=dtype, device=device)

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the parameters; positions must have it too."""
        return self.pair_qq.dtype

    def _columns(self, **columns: NDArray[np.float64]) -> None:
        """Register parameters with a last axis of 1, to be broadcast over frames."""
        for name, values in columns.items():
            self.register_buffer(name, torch.from_numpy(np.ascontiguousarray(values)).unsqueeze(-1))

    def forward(self, positions: Tensor) -> Tensor:
        """Return the solvation energy, differentiable once by the positions.

        Args:
            positions: ``[B, N, 3]`` nm.

        Returns:
            ``[B]`` kJ/mol.
        """
        return differentiable_energy(self, positions)

    def energy_and_gradient(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return energy ``[B]`` in kJ/mol and its gradient ``[B, N, 3]`` in kJ/mol/nm (minus the force).

        Args:
            positions: ``[B, N, 3]`` nm.
        """
        self._check(positions)
        gradient = torch.empty(positions.shape, dtype=positions.dtype, device=positions.device)
        with torch.no_grad():
            return self._total(positions, gradient), gradient

    def energy(self, positions: Tensor) -> Tensor:
        """Return the energy ``[B]`` in kJ/mol of ``[B, N, 3]`` nm; with autograd on, by operations that it follows."""
        self._check(positions)
        if torch.is_grad_enabled() and positions.requires_grad:
            return self._in_chunks(positions, None)
        return self._total(positions, None)

    def _total(self, positions: Tensor, gradient: Tensor | None) -> Tensor:
        kernel = self._kernel(positions)
        if kernel is None:
            return self._in_chunks(positions, gradient)
        target = None if gradient is None else gradient.numpy()
        return torch.from_numpy(kernel(positions.detach().contiguous().numpy(), target, self._threads))

    def _kernel(self, positions: Tensor) -> SolventKernel | None:
        """Return the compiled kernel for positions of this device and type, None where there is none."""
        dtype = positions.dtype
        if not self._compiled or positions.device.type != "cpu" or dtype not in DTYPES:
            return None
        if dtype not in self._kernels:
            rescaling = (self.alpha, self.beta, self.gamma)
            self._kernels[dtype] = SolventKernel(self._rows, rescaling, self._factor, CLOSEST_NM, DTYPES[dtype])
        return self._kernels[dtype]

    def kernel_job(self, positions: Tensor) -> tuple[Any, ...] | None:
        """Return ``KernelJobs.solvent`` of positions ``[B, N, 3]`` in nm, None where one thread does not do it all."""
        kernel = self._kernel(positions)
        if kernel is None or self._threads > 1:
            return None
        x = positions.detach().numpy()
        return kernel.job(x, np.empty_like(x), np.empty(len(x), x.dtype))

    def born_radii(self, positions: Tensor) -> Tensor:
        """Return the effective Born radii ``[B, N]`` in nm.

        Args:
            positions: ``[B, N, 3]`` nm.
        """
        self._check(positions)
        parts = []
        for frames in positions.split(self.chunk):
            _, squared = self._distances(frames.permute(2, 1, 0).contiguous())
            integrals, _ = descreening(squared.sqrt(), self.pair_offset, self.pair_scaled, False)
            parts.append(self._born(self._sum_over_pairs(integrals))[0].T)
        return torch.cat(parts)

    def _in_chunks(self, positions: Tensor, gradient: Tensor | None) -> Tensor:
        energies = [positions.new_zeros(0)]
        for start in range(0, len(positions), self.chunk):
            x = positions[start : start + self.chunk].permute(2, 1, 0).contiguous()
            by_x = None if gradient is None else torch.zeros_like(x)
            energies.append(self._energy(x, by_x))
            if gradient is not None and by_x is not None:
                gradient[start : start + self.chunk] = by_x.permute(2, 1, 0)
        return torch.cat(energies)

    def _energy(self, x: Tensor, gradient: Tensor | None) -> Tensor:
        """Energy ``[B]`` of ``x [3, N, B]``, adding derivatives to ``gradient [3, N, B]`` when it is given."""
        derivatives = gradient is not None
        delta, squared = self._distances(x)
        distance = squared.sqrt()
        integrals, by_distance = descreening(distance, self.pair_offset, self.pair_scaled, derivatives)
        born, by_integral = self._born(self._sum_over_pairs(integrals))
        first, second = born.index_select(0, self.first), born.index_select(0, self.second)
        pairs, by_squared, by_product = still_pairs(squared, first * second, self.pair_qq, derivatives)
        single = self.self_energy / born
        surface = self.surface / born**6
        energy = single.sum(0) + surface.sum(0) + pairs.sum(0)
        if gradient is None:
            return energy
        by_born = self._sum_over_pairs(torch.stack([by_product * second, by_product * first]))
        by_integral *= by_born - (single + 6 * surface) / born
        by_distance *= by_integral.index_select(0, self.ends).view_as(by_distance)
        # E depends on squared distances directly and on distances through the Born radii; d(r)/d(delta) = delta / r
        force = (by_distance.sum(0) / distance).add_(by_squared, alpha=2)
        by_delta = delta.mul_(force)
        gradient.index_add_(1, self.first, by_delta)
        gradient.index_add_(1, self.second, by_delta, alpha=-1)
        return energy

    def _distances(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors ``[3, P, B]`` of all pairs and their squared lengths ``[P, B]``."""
        delta = x.index_select(1, self.first) - x.index_select(1, self.second)
        squared = torch.mul(delta[0], delta[0]).addcmul(delta[1], delta[1]).addcmul(delta[2], delta[2])
        return delta, squared.clamp_min(CLOSEST_NM**2)

    def _sum_over_pairs(self, values: Tensor) -> Tensor:
        """Sum ``[2, P, B]`` over the pairs of every atom to ``[N, B]``."""
        total = values.new_zeros(self.n_atoms, values.shape[-1])
        return total.index_add(0, self.ends, values.flatten(0, 1))

    def _born(self, integral: Tensor) -> tuple[Tensor, Tensor]:
        """Born radii ``[N, B]`` in nm and their derivatives by the descreening integrals ``[N, B]``."""
        psi = integral * self.offset_radius
        rescaled = torch.tanh(psi * (self.alpha + psi * (-self.beta + psi * self.gamma)))
        born = 1 / (1 / self.offset_radius - rescaled / self.radius)
        slope = self.alpha + psi * (-2 * self.beta + psi * 3 * self.gamma)
        by_integral = born**2 * (1 - rescaled**2) * slope * (self.offset_radius / self.radius)
        return born, by_integral

    def _check(self, positions: Tensor) -> None:
        if positions.ndim != 3 or positions.shape[1:] != (self.n_atoms, 3) or positions.dtype != self.dtype:
            raise ValueError(
                f"positions must be [B, {self.n_atoms}, 3] of {self.dtype}, "
                f"got {tuple(positions.shape)} of {positions.dtype}"
            )


class SolvatedForceField(nn.Module):
    """Force field and implicit solvent as one potential energy.

    Args:
        force_field: energy in vacuum.
        solvent: solvation energy of the same molecule.
    """

    def __init__(self, force_field: ForceField, solvent: ImplicitSolvent) -> None:
        super().__init__()
        self.force_field, self.solvent = force_field, solvent

    def forward(self, positions: Tensor) -> Tensor:
        """Return the potential energy ``[B]`` in kJ/mol of positions ``[B, N, 3]`` nm, differentiable once."""
        return differentiable_energy(self, positions)

    def energy(self, positions: Tensor) -> Tensor:
        """Return the energy ``[B]`` in kJ/mol without a gradient being prepared."""
        energy: Tensor = self.force_field(positions)
        return energy + self.solvent.energy(positions)

    def energy_and_gradient(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return energy ``[B]`` in kJ/mol and its gradient ``[B, N, 3]`` in kJ/mol/nm."""
        energy, gradient = self.force_field.energy_and_gradient(positions)
        solvation, by_positions = self.solvent.energy_and_gradient(positions)
        return energy + solvation, gradient + by_positions

    def kernel_jobs(self, positions: Tensor) -> KernelJobs | None:
        """Return what a compiled loop needs for :meth:`energy_and_gradient` at these positions as they change.

        Args:
            positions: ``[B, N, 3]`` nm, contiguous.

        Returns:
            None where the kernels alone, in one thread, are not the whole energy.
        """
        vacuum, solvent = self.force_field.kernel_jobs(positions), self.solvent.kernel_job(positions)
        return None if vacuum is None or solvent is None else replace(vacuum, solvent=solvent)


def differentiable_energy(term: ImplicitSolvent | SolvatedForceField, positions: Tensor) -> Tensor:
    """Return ``[B]`` energies; when autograd is on, the gradient is computed along and kept for the backward pass."""
    if torch.is_grad_enabled() and positions.requires_grad:
        energy: Tensor = EnergyWithGradient.apply(positions, term)
        return energy
    return term.energy(positions)


def descreening(distance: Tensor, offset: Tensor, scaled: Tensor, derivatives: bool) -> tuple[Tensor, Tensor]:
    """Return 1/(4 pi) times the integral of 1/rho^4 over the part of a neighbour's sphere that is outside the atom.

    With U = r + s and L = |r - s|, both at least the atom's own radius (a neighbour inside it then counts nothing), it
    is 1/2 (1/L - 1/U + (r - s^2/r)(1/U^2 - 1/L^2)/4 + ln(L/U)/(2 r)), plus 1/offset - 1/L for an atom wholly inside its
    neighbour. In the derivative everything that comes through U and L then cancels.

    Args:
        distance: ``[P, B]`` nm.
        offset: ``[2, P, 1]`` radius of the atom less the offset, nm, for both directions of each pair.
        scaled: ``[2, P, 1]`` screened radius of the neighbour, nm.
        derivatives: whether to compute them.

    Returns:
        the integrals ``[2, P, B]`` in 1/nm and their derivatives by the distance (empty if not asked for).
    """
    inner, outer = distance - scaled, distance + scaled
    # bonded atoms never lie wholly inside one another: look, and spare all others the work
    swallowed = distance.numel() > 0 and bool(distance.min() < (offset - scaled).abs().max())
    if swallowed:
        outer = torch.maximum(outer, offset)
    lower, upper = torch.maximum(inner.abs(), offset).reciprocal(), outer.reciprocal()
    inverse = distance.reciprocal()
    logarithm = torch.log(upper / lower) * (0.25 * inverse)
    difference, total = lower - upper, lower + upper
    square = (scaled * inverse) ** 2
    integral = ((square - 1) * (0.125 * distance) * total + 0.5) * difference + logarithm
    if swallowed:
        # 1/offset - 1/L with L = s - r where the atom lies wholly inside its neighbour, and 0 elsewhere
        integral = integral + (offset.reciprocal() - torch.maximum(-inner, offset).reciprocal())
    if not derivatives:
        return integral, distance.new_zeros(0)
    return integral, (square + 1).mul_(-0.125).mul_(total).mul_(difference).sub_(logarithm * inverse)


def still_pairs(squared: Tensor, product: Tensor, qq: Tensor, derivatives: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return qq / f with f^2 = r^2 + p exp(-r^2 / 4p), and its derivatives by r^2 and p.

    Args:
        squared: ``[P, B]`` r^2 in nm^2.
        product: ``[P, B]`` p = B_i B_j of the Born radii in nm^2.
        qq: ``[P, 1]`` kJ/mol nm.
        derivatives: whether to compute them.
    """
    ratio = squared / (4 * product)
    decay = torch.exp(-ratio)
    inverse = (squared + product * decay).rsqrt()
    energy = qq * inverse
    if not derivatives:
        return energy, energy, energy
    by_f2 = -0.5 * energy * inverse * inverse
    return energy, by_f2 * (1 - 0.25 * decay), by_f2 * decay * (1 + ratio)
