# mypy: ignore-errors
"""Compiled loops of :mod:`~ccg_gmx.molecule.torsion_bias`: dihedral geometry, B-spline maps, forces on atoms.

Maps lie one after the other in flat arrays: ``axes [n, 2]`` the torsions of each (-1 where there is no second),
``shapes [n, 2]`` its grid, ``starts [n + 1]`` and ``coefficients`` its B-spline coefficients, row by row.
"""

from __future__ import annotations

import math

import numpy as np

from ccg_gmx.molecule.kernel_lanes import compiled, cross, dot, inlined, minus

_TURN = 2 * math.pi


@inlined
def _atom(frame, index):
    return frame[index, 0], frame[index, 1], frame[index, 2]


@inlined
def _geometry(frame, atoms):
    """Return bonds i-j, k-j, k-l, the normals of both planes and the angle (IUPAC sign)."""
    at_j, at_k = _atom(frame, atoms[1]), _atom(frame, atoms[2])
    ij, kj, kl = minus(_atom(frame, atoms[0]), at_j), minus(at_k, at_j), minus(at_k, _atom(frame, atoms[3]))
    normal_i, normal_l = cross(ij, kj), cross(kj, kl)
    angle = math.atan2(dot(ij, normal_l) * math.sqrt(dot(kj, kj)), dot(normal_i, normal_l))
    return ij, kj, kl, normal_i, normal_l, angle


@inlined
def _cell(angle, n):
    """Return the first of four grid points that matter and the place between the middle two, in [0, 1]."""
    place = (angle / _TURN + 0.5) * n
    below = math.floor(place)
    return int(below) - 1, place - below


@inlined
def piece_weights(t):
    """Return the four cubic B-splines at t."""
    left = 1 - t
    return (
        left * left * left / 6,
        (3 * t * t * t - 6 * t * t + 4) / 6,
        (3 * left * left * left - 6 * left * left + 4) / 6,
        t * t * t / 6,
    )


@inlined
def piece_slopes(t):
    """Return their derivatives."""
    left = 1 - t
    return -0.5 * left * left, 1.5 * t * t - 2 * t, -1.5 * left * left + 2 * left, 0.5 * t * t


@inlined
def _map(s, first, second, n, m, start, coefficients):
    """Return the value of one map at torsions ``s`` and its derivatives by the first and second one."""
    i, t = _cell(s[first], n)
    weights, slopes = piece_weights(t), piece_slopes(t)
    value, by_first, by_second = 0.0, 0.0, 0.0
    if second < 0:
        for a in range(4):
            coefficient = coefficients[start + (i + a) % n]
            value += weights[a] * coefficient
            by_first += slopes[a] * coefficient
        return value, by_first * n / _TURN, 0.0
    j, u = _cell(s[second], m)
    column_weights, column_slopes = piece_weights(u), piece_slopes(u)
    for a in range(4):
        row = start + ((i + a) % n) * m
        along, across = 0.0, 0.0
        for b in range(4):
            coefficient = coefficients[row + (j + b) % m]
            along += column_weights[b] * coefficient
            across += column_slopes[b] * coefficient
        value += weights[a] * along
        by_first += slopes[a] * along
        by_second += weights[a] * across
    return value, by_first * n / _TURN, by_second * m / _TURN


@inlined
def _add_forces(frame, gradient, atoms, slope):
    """Add ``slope`` times the derivative of a torsion by its four atoms."""
    ij, kj, kl, normal_i, normal_l, _ = _geometry(frame, atoms)
    length = math.sqrt(dot(kj, kj))
    on_i, on_l = slope * length / dot(normal_i, normal_i), -slope * length / dot(normal_l, normal_l)
    along_i, along_l = dot(ij, kj) / (length * length), dot(kl, kj) / (length * length)
    for axis in range(3):
        by_i, by_l = on_i * normal_i[axis], on_l * normal_l[axis]
        shared = along_i * by_i - along_l * by_l
        gradient[atoms[0], axis] += by_i
        gradient[atoms[1], axis] += shared - by_i
        gradient[atoms[2], axis] -= shared + by_l
        gradient[atoms[3], axis] += by_l


@compiled
def torsion_angles(positions, quadruples):
    """Return the torsions ``[B, n_s]`` in radians."""
    angles = np.empty((len(positions), len(quadruples)))
    for frame in range(len(positions)):
        for torsion in range(len(quadruples)):
            angles[frame, torsion] = _geometry(positions[frame], quadruples[torsion])[5]
    return angles


@compiled
def map_values(s, axes, shapes, starts, coefficients):
    """Return V ``[B]`` at torsions ``[B, n_s]``."""
    values = np.zeros(len(s))
    for frame in range(len(s)):
        for index in range(len(axes)):
            values[frame] += _map(
                s[frame],
                axes[index, 0],
                axes[index, 1],
                shapes[index, 0],
                shapes[index, 1],
                starts[index],
                coefficients,
            )[0]
    return values


@compiled
def add_bias(positions, energy, gradient, quadruples, axes, shapes, starts, coefficients):
    """Add V to ``energy [B]`` and dV/dr to ``gradient [B, N, 3]``."""
    s, slopes = np.empty(len(quadruples)), np.empty(len(quadruples))
    for frame in range(len(positions)):
        for torsion in range(len(quadruples)):
            s[torsion] = _geometry(positions[frame], quadruples[torsion])[5]
            slopes[torsion] = 0.0
        for index in range(len(axes)):
            first, second = axes[index, 0], axes[index, 1]
            value, by_first, by_second = _map(
                s, first, second, shapes[index, 0], shapes[index, 1], starts[index], coefficients
            )
            energy[frame] += value
            slopes[first] += by_first
            if second >= 0:
                slopes[second] += by_second
        for torsion in range(len(quadruples)):
            _add_forces(positions[frame], gradient[frame], quadruples[torsion], slopes[torsion])
