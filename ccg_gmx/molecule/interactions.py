"""Interaction functions of GROMACS and their derivatives, for batches laid out as ``[3, n, B]``.

n interactions, B frames; frames come last, so every operation runs along contiguous memory. Formulas: GROMACS reference
manual 2025, "Interaction functions"; dihedral derivatives: Bekker et al., J. Comput. Chem. 16, 527 (1995),
doi:10.1002/jcc.540160502.
"""

from __future__ import annotations

import torch
from torch import Tensor

Kernel = tuple[Tensor, tuple[Tensor, ...]]
"""Energies ``[n, B]`` in kJ/mol and, if asked for, their derivatives ``[3, n, B]`` by each of the vectors given."""


def harmonic_bonds(delta: Tensor, b0: Tensor, k: Tensor, derivatives: bool) -> Kernel:
    """Return k/2 (r - b0)^2 and its derivative by ``delta``.

    Args:
        delta: ``[3, n, B]`` r_i - r_j in nm.
        b0: ``[n, 1]`` nm.
        k: ``[n, 1]`` kJ/mol/nm^2.
        derivatives: whether to compute them.
    """
    length = norm(delta)
    stretch = length - b0
    force = k * stretch
    return 0.5 * force * stretch, ((force / length) * delta,) if derivatives else ()


def harmonic_angles(first: Tensor, second: Tensor, theta0: Tensor, k: Tensor, derivatives: bool) -> Kernel:
    """Return k/2 (theta - theta0)^2 and its derivatives by ``first`` and ``second``.

    Args:
        first: ``[3, n, B]`` r_i - r_j in nm.
        second: ``[3, n, B]`` r_k - r_j in nm.
        theta0: ``[n, 1]`` radians.
        k: ``[n, 1]`` kJ/mol/rad^2.
        derivatives: whether to compute them.
    """
    product = dot(first, second)
    # atan2 keeps full precision for angles close to 0 and pi, where acos loses half of the digits
    sine = norm(cross(first, second))
    bend = torch.atan2(sine, product) - theta0
    force = k * bend
    energy = 0.5 * force * bend
    if not derivatives:
        return energy, ()
    scale = force / sine
    along = product * scale
    by_first = (along / dot(first, first)) * first - scale * second
    by_second = (along / dot(second, second)) * second - scale * first
    return energy, (by_first, by_second)


def periodic_dihedrals(ij: Tensor, kj: Tensor, kl: Tensor, cosines: Tensor, sines: Tensor, derivatives: bool) -> Kernel:
    """Return sum_m A_m cos(m phi) + B_m sin(m phi) and its derivatives by ij, kj and kl.

    Several terms on the same four atoms are one Fourier series, so phi is computed once, as (cos, sin), and its
    multiples by the angle-addition recurrence: no inverse trigonometric function, no branch.

    Args:
        ij: ``[3, n, B]`` r_i - r_j in nm.
        kj: ``[3, n, B]`` r_k - r_j in nm.
        kl: ``[3, n, B]`` r_k - r_l in nm.
        cosines: ``[M + 1, n, 1]`` A_m in kJ/mol.
        sines: ``[M + 1, n, 1]`` B_m in kJ/mol.
        derivatives: whether to compute them.
    """
    normal_i, normal_l = cross(ij, kj), cross(kj, kl)
    square_i, square_l, square_kj = dot(normal_i, normal_i), dot(normal_l, normal_l), dot(kj, kj)
    length_kj = square_kj.sqrt()
    inverse = (square_i * square_l).rsqrt()
    cosine = dot(normal_i, normal_l) * inverse
    sine = dot(ij, normal_l) * length_kj * inverse
    energy, slope = _fourier_series(cosine, sine, cosines, sines)
    if not derivatives:
        return energy, ()
    scale = slope * length_kj
    by_ij = (scale / square_i) * normal_i
    by_kl = (scale / square_l) * normal_l
    by_kj = -(dot(ij, kj) / square_kj) * by_ij - (dot(kl, kj) / square_kj) * by_kl
    return energy, (by_ij, by_kj, by_kl)


def _fourier_series(cosine: Tensor, sine: Tensor, cosines: Tensor, sines: Tensor) -> tuple[Tensor, Tensor]:
    """Return the series and its derivative by the angle."""
    energy = cosines[0].expand_as(cosine)
    slope = torch.zeros_like(cosine)
    cos_m, sin_m = cosine, sine
    for m in range(1, len(cosines)):
        if m > 1:
            cos_m, sin_m = cos_m * cosine - sin_m * sine, sin_m * cosine + cos_m * sine
        energy = energy + cosines[m] * cos_m + sines[m] * sin_m
        slope = slope + m * (sines[m] * cos_m - cosines[m] * sin_m)
    return energy, slope


def nonbonded_pairs(
    delta: Tensor, c6: Tensor, c12: Tensor, qq: Tensor, derivatives: bool
) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """Return c12/r^12 - c6/r^6, qq/r and the derivative of their sum by ``delta``.

    A plain cut-off without modifier adds neither a shift nor a reaction field in GROMACS (k_rf = c_rf = 0), and all
    pairs of the molecule are within it (``topology.check_cutoff``), so this is exact.

    Args:
        delta: ``[3, n, B]`` r_i - r_j in nm.
        c6: ``[n, 1]`` kJ/mol nm^6.
        c12: ``[n, 1]`` kJ/mol nm^12.
        qq: ``[n, 1]`` kJ/mol nm.
        derivatives: whether to compute them.
    """
    inverse = dot(delta, delta).rsqrt()
    inverse2 = inverse * inverse
    inverse6 = inverse2 * inverse2 * inverse2
    repulsion = c12 * inverse6 * inverse6
    lennard_jones = repulsion - c6 * inverse6
    coulomb = qq * inverse
    if not derivatives:
        return lennard_jones, coulomb, ()
    # 12 repulsion - 6 attraction = 6 (lennard_jones + repulsion)
    factor = (lennard_jones + repulsion).mul_(-6).sub_(coulomb).mul_(inverse2)
    return lennard_jones, coulomb, (factor * delta,)


def dot(first: Tensor, second: Tensor) -> Tensor:
    """Scalar product along the first axis."""
    return torch.mul(first[0], second[0]).addcmul_(first[1], second[1]).addcmul_(first[2], second[2])


def cross(first: Tensor, second: Tensor) -> Tensor:
    """Cross product along the first axis; several times faster here than ``torch.linalg.cross``."""
    (a, b, c), (u, v, w) = first, second
    return torch.stack([
        torch.mul(b, w).addcmul_(c, v, value=-1),
        torch.mul(c, u).addcmul_(a, w, value=-1),
        torch.mul(a, v).addcmul_(b, u, value=-1),
    ])  # fmt: skip


def norm(vector: Tensor) -> Tensor:
    """Length along the first axis."""
    return dot(vector, vector).sqrt()
