"""Interaction functions of GROMACS and their derivatives, for batches laid out as ``[3, n, B]``.

n interactions, B frames; frames come last, so every operation runs along contiguous memory. Formulas: GROMACS reference
manual 2025, "Interaction functions"; dihedral derivatives: Bekker et al., J. Comput. Chem. 16, 527 (1995),
doi:10.1002/jcc.540160502.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Kernel = tuple[Tensor, tuple[Tensor, ...]]
"""Energies ``[n, B]`` in kJ/mol and, if asked for, their derivatives ``[3, n, B]`` by each of the vectors given."""


MIN_SQUARE_NM2 = 1e-6
"""Pairs closer than 1e-3 nm have the energy of that distance, about 1e30 kJ/mol: huge, but no inf - inf."""


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
    return 0.5 * force * stretch, (_over(force, length) * delta,) if derivatives else ()


def g96_bonds(delta: Tensor, square0: Tensor, k: Tensor, derivatives: bool) -> Kernel:
    """Return k/4 (r^2 - b0^2)^2, GROMOS-96; ``square0`` = b0^2 (grompp stores the square), k in kJ/mol/nm^4."""
    excess = dot(delta, delta) - square0
    force = k * excess
    return 0.25 * force * excess, (force * delta,) if derivatives else ()


def morse_bonds(delta: Tensor, b0: Tensor, depth: Tensor, beta: Tensor, derivatives: bool) -> Kernel:
    """Return D (1 - exp(-beta (r - b0)))^2; D in kJ/mol, beta in 1/nm."""
    length = norm(delta)
    decay = torch.exp(-beta * (length - b0))
    bound = depth * (1 - decay)
    slope = 2 * beta * decay * bound
    return bound * (1 - decay), (_over(slope, length) * delta,) if derivatives else ()


def cubic_bonds(delta: Tensor, b0: Tensor, k: Tensor, cubic: Tensor, derivatives: bool) -> Kernel:
    """Return k (r - b0)^2 + k cubic (r - b0)^3 (no factor 1/2); cubic in 1/nm."""
    length = norm(delta)
    stretch = length - b0
    force = k * stretch
    energy = force * stretch * (1 + cubic * stretch)
    return energy, (_over(force * (2 + 3 * cubic * stretch), length) * delta,) if derivatives else ()


def cross_bond_bonds(first: Tensor, second: Tensor, b1: Tensor, b2: Tensor, k: Tensor, derivatives: bool) -> Kernel:
    """Return k (|r_ij| - b1) (|r_kj| - b2), k in kJ/mol/nm^2."""
    length1, length2 = norm(first), norm(second)
    stretch1, stretch2 = length1 - b1, length2 - b2
    energy = k * stretch1 * stretch2
    if not derivatives:
        return energy, ()
    return energy, (_over(k * stretch2, length1) * first, _over(k * stretch1, length2) * second)


def cross_bond_angles(
    first: Tensor, second: Tensor, ends: Tensor, b1: Tensor, b2: Tensor, b3: Tensor, k: Tensor, derivatives: bool
) -> Kernel:
    """Return k (|r_ik| - b3) (|r_ij| - b1 + |r_kj| - b2), k in kJ/mol/nm^2; ``ends`` is r_i - r_k."""
    lengths = [norm(vector) for vector in (first, second, ends)]
    bonds, opening = lengths[0] - b1 + lengths[1] - b2, lengths[2] - b3
    energy = k * opening * bonds
    if not derivatives:
        return energy, ()
    slopes = (k * opening, k * opening, k * bonds)
    parts = zip(slopes, lengths, (first, second, ends), strict=True)
    return energy, tuple(_over(slope, length) * vector for slope, length, vector in parts)


def harmonic_angles(first: Tensor, second: Tensor, theta0: Tensor, k: Tensor, derivatives: bool) -> Kernel:
    """Return k/2 (theta - theta0)^2 and its derivatives by ``first`` and ``second``.

    Args:
        first: ``[3, n, B]`` r_i - r_j in nm.
        second: ``[3, n, B]`` r_k - r_j in nm.
        theta0: ``[n, 1]`` radians.
        k: ``[n, 1]`` kJ/mol/rad^2.
        derivatives: whether to compute them.
    """
    product, sine, theta = angle(first, second)
    bend = theta - theta0
    force = k * bend
    energy = 0.5 * force * bend
    return energy, by_angle(first, second, product, sine, force) if derivatives else ()


def g96_angles(first: Tensor, second: Tensor, cosine0: Tensor, k: Tensor, derivatives: bool) -> Kernel:
    """Return k/2 (cos theta - cos theta0)^2, GROMOS-96; grompp stores the cosine of theta0."""
    square1, square2 = dot(first, first), dot(second, second)
    inverse = _root_of_inverse(square1 * square2)
    cosine = dot(first, second) * inverse
    bend = cosine - cosine0
    force = k * bend
    energy = 0.5 * force * bend
    if not derivatives:
        return energy, ()
    by_first = force * (inverse * second - _over(cosine, square1) * first)
    by_second = force * (inverse * first - _over(cosine, square2) * second)
    return energy, (by_first, by_second)


def quartic_angles(first: Tensor, second: Tensor, theta0: Tensor, *coefficients: Tensor, derivatives: bool) -> Kernel:
    """Return sum_n c_n (theta - theta0)^n, n = 0 to 4, c_n in kJ/mol/rad^n."""
    product, sine, theta = angle(first, second)
    bend = theta - theta0
    energy, slope = coefficients[-1].expand_as(bend), torch.zeros_like(bend)
    for coefficient in reversed(coefficients[:-1]):
        energy, slope = energy * bend + coefficient, slope * bend + energy
    return energy, by_angle(first, second, product, sine, slope) if derivatives else ()


def urey_bradley(
    first: Tensor,
    second: Tensor,
    ends: Tensor,
    theta0: Tensor,
    k: Tensor,
    b13: Tensor,
    k13: Tensor,
    derivatives: bool,
) -> Kernel:
    """Return k/2 (theta - theta0)^2 + k13/2 (|r_ik| - b13)^2; ``ends`` is r_i - r_k."""
    bend, by_bend = harmonic_angles(first, second, theta0, k, derivatives)
    stretch, by_stretch = harmonic_bonds(ends, b13, k13, derivatives)
    return bend + stretch, by_bend + by_stretch


def angle(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return |a||b| cos(theta), |a||b| sin(theta) and theta of two vectors ``[3, n, B]``."""
    product = dot(first, second)
    # atan2 keeps full precision for angles close to 0 and pi, where acos loses half of the digits
    sine = norm(cross(first, second))
    return product, sine, torch.atan2(sine, product)


def by_angle(first: Tensor, second: Tensor, product: Tensor, sine: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    """Return the derivatives by the vectors of a function of their angle whose derivative is ``slope``."""
    scale = _over(slope, sine)
    along = product * scale
    by_first = _over(along, dot(first, first)) * first - scale * second
    by_second = _over(along, dot(second, second)) * second - scale * first
    return by_first, by_second


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
    cosine, sine, spread = torsion(ij, kj, kl)
    energy, slope = _fourier_series(cosine, sine, cosines, sines)
    return energy, spread(slope) if derivatives else ()


def harmonic_dihedrals(ij: Tensor, kj: Tensor, kl: Tensor, phi0: Tensor, k: Tensor, derivatives: bool) -> Kernel:
    """Return k/2 (phi - phi0)^2 with the difference in [-pi, pi); phi0 in radians, k in kJ/mol/rad^2."""
    cosine, sine, spread = torsion(ij, kj, kl)
    turn = wrap(torch.atan2(sine, cosine) - phi0)
    force = k * turn
    return 0.5 * force * turn, spread(force) if derivatives else ()


Vectors = tuple[Tensor, Tensor, Tensor]


def torsion(ij: Tensor, kj: Tensor, kl: Tensor) -> tuple[Tensor, Tensor, Callable[[Tensor], Vectors]]:
    """Return cos(phi), sin(phi) and the function that turns dE/dphi into derivatives by ij, kj and kl.

    Four atoms that span no plane have neither; then cosine, sine and derivatives are 0.
    """
    normal_i, normal_l = cross(ij, kj), cross(kj, kl)
    square_i, square_l, square_kj = dot(normal_i, normal_i), dot(normal_l, normal_l), dot(kj, kj)
    length_kj = square_kj.sqrt()
    inverse = _root_of_inverse(square_i * square_l)

    def spread(slope: Tensor) -> Vectors:
        scale = slope * length_kj
        by_ij = _over(scale, square_i) * normal_i
        by_kl = _over(scale, square_l) * normal_l
        by_kj = -_over(dot(ij, kj), square_kj) * by_ij - _over(dot(kl, kj), square_kj) * by_kl
        return by_ij, by_kj, by_kl

    return dot(normal_i, normal_l) * inverse, dot(ij, normal_l) * length_kj * inverse, spread


def wrap(angles: Tensor) -> Tensor:
    """Bring angles to [-pi, pi) by whole turns."""
    return angles - 2 * math.pi * torch.floor(angles / (2 * math.pi) + 0.5)


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

    What a plain cut-off gives as long as all pairs are within it; :func:`truncated_pairs` does the rest.

    Args:
        delta: ``[3, n, B]`` r_i - r_j in nm.
        c6: ``[n, 1]`` kJ/mol nm^6.
        c12: ``[n, 1]`` kJ/mol nm^12.
        qq: ``[n, 1]`` kJ/mol nm.
        derivatives: whether to compute them.
    """
    inverse = dot(delta, delta).clamp_min_(MIN_SQUARE_NM2).rsqrt()
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


@dataclass(frozen=True)
class CutOff:
    """What a finite cut-off does to pairs within it; pairs beyond it have no energy.

    GROMACS' pair function of charges is qq (1/r + k_rf r^2 - c_rf); excluded pairs keep k_rf r^2 - c_rf, and every atom
    -c_rf/2 with itself (manual, "Coulomb interaction with reaction field"). A plain cut-off has k_rf = c_rf = 0,
    a shifted one k_rf = 0 and c_rf = 1/rc.

    Attributes:
        coulomb_nm: cut-off of the charges.
        lennard_jones_nm: cut-off of Lennard-Jones.
        k_rf: 1/nm^3.
        c_rf: 1/nm.
        shift6: what is taken from r^-6, 1/nm^6.
        shift12: what is taken from r^-12, 1/nm^12.
    """

    coulomb_nm: float
    lennard_jones_nm: float
    k_rf: float
    c_rf: float
    shift6: float
    shift12: float


def truncated_pairs(
    delta: Tensor, c6: Tensor, c12: Tensor, qq: Tensor, cutoff: CutOff, derivatives: bool
) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """Return Lennard-Jones, charges and the derivative of their sum like :func:`nonbonded_pairs`, within a cut-off."""
    true_square = dot(delta, delta)
    square = true_square.clamp_min(MIN_SQUARE_NM2)
    near_lj = (true_square < cutoff.lennard_jones_nm**2).to(square.dtype)
    near_qq = qq * (true_square < cutoff.coulomb_nm**2).to(square.dtype)
    inverse2 = 1 / square
    inverse6 = inverse2 * inverse2 * inverse2
    repulsion, attraction = near_lj * c12 * inverse6 * inverse6, near_lj * c6 * inverse6
    lennard_jones = repulsion - attraction - near_lj * (c12 * cutoff.shift12 - c6 * cutoff.shift6)
    bare = near_qq * inverse2.sqrt()
    coulomb = bare + near_qq * (cutoff.k_rf * square - cutoff.c_rf)
    if not derivatives:
        return lennard_jones, coulomb, ()
    factor = (6 * attraction - 12 * repulsion - bare) * inverse2 + 2 * cutoff.k_rf * near_qq
    return lennard_jones, coulomb, (factor * delta,)


def pairs_beyond(
    delta: Tensor, c6: Tensor, c12: Tensor, qq: Tensor, cutoff: CutOff, derivatives: bool
) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """Return minus the energies of :func:`nonbonded_pairs` for pairs beyond the cut-off, 0 for those within it."""
    square = dot(delta, delta)
    minus_lj = -(square >= cutoff.lennard_jones_nm**2).to(square.dtype)
    minus_qq = -(square >= cutoff.coulomb_nm**2).to(square.dtype)
    return nonbonded_pairs(delta, minus_lj * c6, minus_lj * c12, minus_qq * qq, derivatives)


def excluded_pairs(delta: Tensor, qq: Tensor, cutoff: CutOff, derivatives: bool) -> Kernel:
    """Return what a reaction field or shift leaves of excluded pairs: qq (k_rf r^2 - c_rf) within the cut-off."""
    square = dot(delta, delta)
    near = qq * (square < cutoff.coulomb_nm**2).to(square.dtype)
    return near * (cutoff.k_rf * square - cutoff.c_rf), (2 * cutoff.k_rf * near * delta,) if derivatives else ()


def _over(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Quotient that is 0 where the denominator is 0: there the vector it multiplies is 0, or has no direction."""
    return numerator / denominator.masked_fill(denominator == 0, torch.inf)


def _root_of_inverse(square: Tensor) -> Tensor:
    """1/sqrt, and 0 of 0."""
    return square.masked_fill(square == 0, torch.inf).rsqrt()


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
