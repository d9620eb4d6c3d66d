# mypy: ignore-errors
"""The interactions of the compiled kernel: the formulas of ``interactions.py``, for one block of frames.

``x`` and ``gradient`` are flat arrays ``[atom, component, lane]`` that stay in the first-level cache, ``energy`` the
lanes summed so far; each function adds its terms to both. ``gradient`` is None where only energies are wanted, which
numba resolves when it compiles. No function calls a trigonometric one: arc tangents are a polynomial.

numba takes cached code for current as long as this file is unchanged: after an edit of kernel_lanes.py touch it too.
"""

from __future__ import annotations

import numpy as np
from numpy.polynomial import chebyshev, polynomial

from ccg_gmx.molecule.interactions import MIN_SQUARE_NM2
from ccg_gmx.molecule.kernel_lanes import (
    add3,
    compiled,
    cross,
    dot,
    inlined,
    load,
    load3,
    magnitude,
    minus,
    plus,
    root,
    splat,
    store,
    times,
    where_less,
)


def _arc_tangent_series(degree: int) -> tuple[float, ...]:
    """Return P with atan(t) = t P(t^2) for |t| <= tan(pi / 8), highest power first, P(0) = 1 exactly.

    Interpolation of (P - 1) / z, z = t^2, in Chebyshev points; there the Taylor series, 30 terms, is exact to rounding.
    """
    taylor = [(-1.0) ** k / (2 * k + 1) for k in range(1, 31)]
    domain = [0.0, np.tan(np.pi / 8) ** 2]
    z = 0.5 * domain[1] * (chebyshev.chebpts1(degree) + 1)
    series = chebyshev.Chebyshev.fit(z, polynomial.polyval(z, taylor), degree - 1, domain=domain)
    powers = series.convert(kind=polynomial.Polynomial, domain=[-1, 1], window=[-1, 1]).coef
    return (*(float(value) for value in powers[::-1]), 1.0)


_ATAN = _arc_tangent_series(11)
_TINY = 1.2e-38  # the smallest normal number of float32
_EIGHTH, _QUARTER, _HALF, _WHOLE = np.tan(np.pi / 8), np.pi / 4, np.pi / 2, np.pi


@inlined
def at_least(floor, value):
    """Return the larger one, nan where the value is nan."""
    limit = splat(value, floor)
    return where_less(value, limit, limit, value)


@inlined
def over(numerator, denominator):
    """Return the quotient by a length or a square of one, 0 where that is 0: no direction, no force."""
    return where_less(denominator, splat(denominator, _TINY), splat(denominator, 0.0), numerator / denominator)


@inlined
def angle_between(sine, cosine):
    """Return atan2(sine, cosine) for sine >= 0, to a few units of the last place of float64.

    The ratio of the smaller to the larger is within [0, 1]; a turn by pi/4 brings it within tan(pi/8), where a
    polynomial of degree 11 in its square is exact to rounding.
    """
    size = magnitude(cosine)
    small, large = where_less(size, sine, size, sine), where_less(size, sine, sine, size)
    edge = _EIGHTH * large
    ratio = over(where_less(edge, small, small - large, small), where_less(edge, small, small + large, large))
    square = ratio * ratio
    total = splat(square, _ATAN[0])
    for power in range(1, len(_ATAN)):
        total = total * square + _ATAN[power]
    zero = splat(square, 0.0)
    angle = ratio * total + where_less(edge, small, splat(square, _QUARTER), zero)
    angle = where_less(size, sine, _HALF - angle, angle)
    return where_less(cosine, zero, _WHOLE - angle, angle)


@inlined
def pairs(x, gradient, energy, count, table):
    """Add c12/r^12 - c6/r^6 + qq/r; pairs of one first atom are together, so its gradient stays in registers."""
    rows, partners, parameters = table
    stride = 3 * count
    for atom in range(len(rows) - 1):
        if rows[atom] == rows[atom + 1]:
            continue
        here = load3(x, atom * stride, count)
        nothing = splat(energy, 0.0)
        pull = (nothing, nothing, nothing)
        for index in range(rows[atom], rows[atom + 1]):
            other = partners[index] * stride
            delta = minus(here, load3(x, other, count))
            inverse = 1.0 / root(at_least(MIN_SQUARE_NM2, dot(delta, delta)))
            inverse2 = inverse * inverse
            inverse6 = inverse2 * inverse2 * inverse2
            repulsion = parameters[index, 1] * inverse6 * inverse6
            lennard_jones = repulsion - parameters[index, 0] * inverse6
            coulomb = parameters[index, 2] * inverse
            energy = energy + (lennard_jones + coulomb)
            if gradient is not None:
                push = times((6.0 * (lennard_jones + repulsion) + coulomb) * inverse2, delta)
                pull = minus(pull, push)
                add3(gradient, other, count, push)
        if gradient is not None:
            add3(gradient, atom * stride, count, pull)
    return energy


@inlined
def bonds(x, gradient, energy, count, table):
    """Add k/2 (r - b0)^2."""
    atoms, parameters = table
    stride = 3 * count
    for index in range(len(atoms)):
        i, j = atoms[index, 0] * stride, atoms[index, 1] * stride
        delta = minus(load3(x, i, count), load3(x, j, count))
        length = root(dot(delta, delta))
        stretch = length - parameters[index, 0]
        force = parameters[index, 1] * stretch
        energy = energy + 0.5 * force * stretch
        if gradient is not None:
            by_i = times(over(force, length), delta)
            add3(gradient, i, count, by_i)
            add3(gradient, j, count, times(-1.0, by_i))
    return energy


@inlined
def angles(x, gradient, energy, count, table):
    """Add k/2 (theta - theta0)^2."""
    atoms, parameters = table
    stride = 3 * count
    for index in range(len(atoms)):
        i, j, k = atoms[index, 0] * stride, atoms[index, 1] * stride, atoms[index, 2] * stride
        middle = load3(x, j, count)
        first, second = minus(load3(x, i, count), middle), minus(load3(x, k, count), middle)
        product, normal = dot(first, second), cross(first, second)
        sine = root(dot(normal, normal))
        bend = angle_between(sine, product) - parameters[index, 0]
        force = parameters[index, 1] * bend
        energy = energy + 0.5 * force * bend
        if gradient is not None:
            scale = over(force, sine)
            along = product * scale
            by_i = minus(times(over(along, dot(first, first)), first), times(scale, second))
            by_k = minus(times(over(along, dot(second, second)), second), times(scale, first))
            add3(gradient, i, count, by_i)
            add3(gradient, k, count, by_k)
            add3(gradient, j, count, times(-1.0, plus(by_i, by_k)))
    return energy


@inlined
def dihedrals(x, gradient, energy, count, table):
    """Add sum_m A_m cos(m phi) + B_m sin(m phi), one series for each four atoms, up to its own highest m."""
    atoms, orders, cosines, sines = table
    stride = 3 * count
    for index in range(len(atoms)):
        i, j = atoms[index, 0] * stride, atoms[index, 1] * stride
        k, l = atoms[index, 2] * stride, atoms[index, 3] * stride  # noqa: E741
        at_j, at_k = load3(x, j, count), load3(x, k, count)
        ij, kj, kl = minus(load3(x, i, count), at_j), minus(at_k, at_j), minus(at_k, load3(x, l, count))
        normal_i, normal_l = cross(ij, kj), cross(kj, kl)
        square_i, square_l, square_kj = dot(normal_i, normal_i), dot(normal_l, normal_l), dot(kj, kj)
        length_kj = root(square_kj)
        inverse = over(splat(energy, 1.0), root(square_i * square_l))
        cosine = dot(normal_i, normal_l) * inverse
        sine = dot(ij, normal_l) * length_kj * inverse
        total, slope = splat(energy, cosines[index, 0]), splat(energy, 0.0)
        cosine_m, sine_m = splat(energy, 1.0), splat(energy, 0.0)
        for m in range(1, orders[index] + 1):
            cosine_m, sine_m = cosine_m * cosine - sine_m * sine, sine_m * cosine + cosine_m * sine
            total = total + (cosines[index, m] * cosine_m + sines[index, m] * sine_m)
            slope = slope + m * (sines[index, m] * cosine_m - cosines[index, m] * sine_m)
        energy = energy + total
        if gradient is not None:
            by_ij = times(over(slope * length_kj, square_i), normal_i)
            by_kl = times(over(slope * length_kj, square_l), normal_l)
            shared = over(splat(energy, 1.0), square_kj)
            from_i, from_l = times(dot(ij, kj) * shared, by_ij), times(dot(kl, kj) * shared, by_kl)
            by_kj = times(-1.0, plus(from_i, from_l))
            add3(gradient, i, count, by_ij)
            add3(gradient, j, count, times(-1.0, plus(by_ij, by_kj)))
            add3(gradient, k, count, plus(by_kj, by_kl))
            add3(gradient, l, count, times(-1.0, by_kl))
    return energy


@compiled
def energies_of_frames(positions, gradient, energies, x, forces, count, tables):
    """Fill ``energies`` and ``gradient`` block by block; the last block repeats its last frame in the lanes left."""
    pairs_table, bonds_table, angles_table, dihedrals_table = tables
    n_frames, width = positions.shape[0], positions.shape[1] * 3
    flat = positions.reshape(n_frames, width)
    lanes = np.empty(count, positions.dtype)
    for start in range(0, n_frames, count):
        present = min(count, n_frames - start)
        for lane in range(count):
            frame = start + min(lane, present - 1)
            for column in range(width):
                x[column * count + lane] = flat[frame, column]
        energy = splat(load(x, 0), 0.0)
        if gradient is not None:
            forces[:] = 0.0
        energy = pairs(x, forces, energy, count, pairs_table)
        energy = bonds(x, forces, energy, count, bonds_table)
        energy = angles(x, forces, energy, count, angles_table)
        energy = dihedrals(x, forces, energy, count, dihedrals_table)
        store(lanes, 0, energy)
        energies[start : start + present] = lanes[:present]
        if gradient is not None:
            target = gradient.reshape(n_frames, width)
            for lane in range(present):
                for column in range(width):
                    target[start + lane, column] = forces[column * count + lane]
