# mypy: ignore-errors
"""Compiled loops over beads: neighbours in any periodic box, geometry of bonded terms, splines, forces and virials.

Displacements are to the nearest image by rounding fractional coordinates. In a skewed box that is not the nearest
image in general, but it is wherever the nearest one is no further than half the smallest distance between two
opposite faces: its fractional components are then below one half. Cut-offs are held below that.
"""

from __future__ import annotations

import math

import numpy as np

from ccg_gmx.molecule.kernel_lanes import compiled, cross, dot, inlined
from ccg_gmx.molecule.torsion_bias_kernel import piece_slopes, piece_weights


@inlined
def _image(frame, i, j, box, inverse):
    """Return the vector from bead j to bead i, nearest image."""
    x, y, z = frame[i, 0] - frame[j, 0], frame[i, 1] - frame[j, 1], frame[i, 2] - frame[j, 2]
    a = np.rint(x * inverse[0, 0] + y * inverse[1, 0] + z * inverse[2, 0])
    b = np.rint(x * inverse[0, 1] + y * inverse[1, 1] + z * inverse[2, 1])
    c = np.rint(x * inverse[0, 2] + y * inverse[1, 2] + z * inverse[2, 2])
    return (
        x - a * box[0, 0] - b * box[1, 0] - c * box[2, 0],
        y - a * box[0, 1] - b * box[1, 1] - c * box[2, 1],
        z - a * box[0, 2] - b * box[1, 2] - c * box[2, 2],
    )


@inlined
def _excluded(i, j, starts, partners):
    found = False
    for k in range(starts[i], starts[i + 1]):
        found |= partners[k] == j
    return found


@inlined
def _keep(frame, i, j, box, inverse, square, starts, partners, count, pairs, vectors):
    """Store a pair within the cut-off that is not excluded (``i < j``); return the new count."""
    vector = _image(frame, i, j, box, inverse)
    if dot(vector, vector) >= square or _excluded(i, j, starts, partners):
        return count
    if count < len(pairs):
        pairs[count, 0], pairs[count, 1] = i, j
        vectors[count, 0], vectors[count, 1], vectors[count, 2] = vector
    return count + 1


@compiled
def all_pairs(frame, box, inverse, cutoff, starts, partners, pairs, vectors):
    """Fill pairs ``i < j`` within the cut-off and their vectors ``r_i - r_j``; return how many there are.

    Where that is more than fits, the arrays are full and the call is to be repeated with larger ones.
    """
    count = 0
    for i in range(len(frame)):
        for j in range(i + 1, len(frame)):
            count = _keep(frame, i, j, box, inverse, cutoff * cutoff, starts, partners, count, pairs, vectors)
    return count


@compiled
def sort_into_cells(frame, inverse, cells):
    """Return each bead's cell ``[n, 3]``, where each cell's beads start ``[C + 1]``, and the beads in that order."""
    n = len(frame)
    place = np.empty((n, 3), np.int64)
    starts = np.zeros(cells[0] * cells[1] * cells[2] + 1, np.int64)
    for i in range(n):
        for k in range(3):
            s = frame[i, 0] * inverse[0, k] + frame[i, 1] * inverse[1, k] + frame[i, 2] * inverse[2, k]
            place[i, k] = min(int((s - math.floor(s)) * cells[k]), cells[k] - 1)
        starts[(place[i, 0] * cells[1] + place[i, 1]) * cells[2] + place[i, 2] + 1] += 1
    starts = np.cumsum(starts)
    filled, order = starts[:-1].copy(), np.empty(n, np.int64)
    for i in range(n):
        cell = (place[i, 0] * cells[1] + place[i, 1]) * cells[2] + place[i, 2]
        order[filled[cell]] = i
        filled[cell] += 1
    return place, starts, order


@compiled
def cell_pairs(frame, box, inverse, cutoff, cells, starts, partners, pairs, vectors):
    """:func:`all_pairs` by cells, at least three along each box vector and none narrower than the cut-off."""
    place, first, order = sort_into_cells(frame, inverse, cells)
    count = 0
    for i in range(len(frame)):
        for a in range(-1, 2):
            row = ((place[i, 0] + a) % cells[0]) * cells[1]
            for b in range(-1, 2):
                column = (row + (place[i, 1] + b) % cells[1]) * cells[2]
                for c in range(-1, 2):
                    cell = column + (place[i, 2] + c) % cells[2]
                    for k in range(first[cell], first[cell + 1]):
                        j = order[k]
                        if j > i:
                            count = _keep(
                                frame, i, j, box, inverse, cutoff * cutoff, starts, partners, count, pairs, vectors
                            )
    return count


@compiled
def bond_geometry(positions, beads, boxes, inverses):
    """Lengths ``[T, m]`` and their derivatives by the beads ``[T, m, 2, 3]``."""
    values, gradients = np.empty((len(positions), len(beads))), np.empty((len(positions), len(beads), 2, 3))
    for t in range(len(positions)):
        for m in range(len(beads)):
            vector = _image(positions[t], beads[m, 0], beads[m, 1], boxes[t], inverses[t])
            length = math.sqrt(dot(vector, vector))
            values[t, m] = length
            for axis in range(3):
                gradients[t, m, 0, axis] = vector[axis] / length
                gradients[t, m, 1, axis] = -vector[axis] / length
    return values, gradients


@compiled
def angle_geometry(positions, beads, boxes, inverses):
    """Angles ``[T, m]`` in [0, pi] and their derivatives ``[T, m, 3, 3]``; at 0 and pi the derivative is cut."""
    values, gradients = np.empty((len(positions), len(beads))), np.empty((len(positions), len(beads), 3, 3))
    for t in range(len(positions)):
        for m in range(len(beads)):
            u = _image(positions[t], beads[m, 0], beads[m, 1], boxes[t], inverses[t])
            v = _image(positions[t], beads[m, 2], beads[m, 1], boxes[t], inverses[t])
            uu, vv, uv, normal = dot(u, u), dot(v, v), dot(u, v), cross(u, v)
            area = math.sqrt(dot(normal, normal))
            values[t, m] = math.atan2(area, uv)
            area = max(area, 1e-12 * math.sqrt(uu * vv))
            for axis in range(3):
                gradients[t, m, 0, axis] = (uv / uu * u[axis] - v[axis]) / area
                gradients[t, m, 2, axis] = (uv / vv * v[axis] - u[axis]) / area
                gradients[t, m, 1, axis] = -gradients[t, m, 0, axis] - gradients[t, m, 2, axis]
    return values, gradients


@compiled
def dihedral_geometry(positions, beads, boxes, inverses):
    """Dihedrals ``[T, m]`` in [-pi, pi] (IUPAC sign) and their derivatives ``[T, m, 4, 3]``."""
    values, gradients = np.empty((len(positions), len(beads))), np.empty((len(positions), len(beads), 4, 3))
    for t in range(len(positions)):
        for m in range(len(beads)):
            frame, box, inverse = positions[t], boxes[t], inverses[t]
            ij = _image(frame, beads[m, 0], beads[m, 1], box, inverse)
            kj = _image(frame, beads[m, 2], beads[m, 1], box, inverse)
            kl = _image(frame, beads[m, 2], beads[m, 3], box, inverse)
            normal_i, normal_l = cross(ij, kj), cross(kj, kl)
            square = dot(kj, kj)
            length = math.sqrt(square)
            values[t, m] = math.atan2(dot(ij, normal_l) * length, dot(normal_i, normal_l))
            on_i = length / max(dot(normal_i, normal_i), 1e-30)
            on_l = -length / max(dot(normal_l, normal_l), 1e-30)
            for axis in range(3):
                by_i, by_l = on_i * normal_i[axis], on_l * normal_l[axis]
                shared = dot(ij, kj) / square * by_i - dot(kl, kj) / square * by_l
                gradients[t, m, 0, axis] = by_i
                gradients[t, m, 1, axis] = shared - by_i
                gradients[t, m, 2, axis] = -shared - by_l
                gradients[t, m, 3, axis] = by_l
    return values, gradients


@inlined
def _curve(x, numbers, coefficients, start):
    """Value and slope of a curve that is no circle; ``numbers``: lo, hi, spacing, then both edges' Taylor terms."""
    lo, hi, spacing = numbers[0], numbers[1], numbers[2]
    if x < lo or x >= hi:
        edge = 3 if x < lo else 6
        beyond = x - (lo if x < lo else hi)
        slope = numbers[edge + 1] + numbers[edge + 2] * beyond
        return numbers[edge] + 0.5 * (numbers[edge + 1] + slope) * beyond, slope
    place = (x - lo) / spacing
    cell = int(place)
    weights, slopes = piece_weights(place - cell), piece_slopes(place - cell)
    value, slope = 0.0, 0.0
    for a in range(4):
        coefficient = coefficients[start + cell + a]
        value += weights[a] * coefficient
        slope += slopes[a] * coefficient
    return value, slope / spacing


@compiled
def curve_values(x, numbers, coefficients):
    """Values and slopes ``[M]`` of one bond or angle curve."""
    values, slopes = np.empty(len(x)), np.empty(len(x))
    for m in range(len(x)):
        values[m], slopes[m] = _curve(x[m], numbers, coefficients, 0)
    return values, slopes


@compiled
def circle_values(x, coefficients):
    """Values and slopes ``[M]`` of one dihedral curve."""
    knots = len(coefficients)
    values, slopes = np.zeros(len(x)), np.zeros(len(x))
    for m in range(len(x)):
        place = (x[m] / (2.0 * math.pi) + 0.5) * knots
        cell = math.floor(place)
        weights, derivatives = piece_weights(place - cell), piece_slopes(place - cell)
        for a in range(4):
            coefficient = coefficients[(int(cell) - 1 + a) % knots]
            values[m] += weights[a] * coefficient
            slopes[m] += derivatives[a] * coefficient * knots / (2.0 * math.pi)
    return values, slopes


@compiled
def add_pairs(pairs, vectors, types, curve_of, numbers, coefficients, starts, energy, forces, virial):
    """Add one frame's pairs to ``energy [K]`` by curve, ``forces [n, 3]`` and ``virial [3, 3]``."""
    for p in range(len(pairs)):
        i, j = pairs[p, 0], pairs[p, 1]
        k = curve_of[types[i], types[j]]
        if k < 0:
            continue
        x, y, z = vectors[p, 0], vectors[p, 1], vectors[p, 2]
        distance = math.sqrt(x * x + y * y + z * z)
        value, slope = _curve(distance, numbers[k], coefficients, starts[k])
        energy[k] += value
        for axis in range(3):
            force = -slope * vectors[p, axis] / distance
            forces[i, axis] += force
            forces[j, axis] -= force
            for other in range(3):
                virial[axis, other] += force * vectors[p, other]


@compiled
def add_bonded(positions, beads, boxes, inverses, slopes, gradients, forces, virial):
    """Add ``-slope * gradient`` of bonded terms to ``forces [T, n, 3]`` and ``virial [T, 3, 3]``.

    ``slopes [T, m]``; ``gradients [T, m, k, 3]``. Forces of a term add up to nothing, so its virial may be taken
    about its first bead; the other beads are reached along the chain, each step the nearest image.
    """
    for t in range(len(positions)):
        for m in range(len(beads)):
            x, y, z = 0.0, 0.0, 0.0
            for k in range(beads.shape[1]):
                if k > 0:
                    step = _image(positions[t], beads[m, k], beads[m, k - 1], boxes[t], inverses[t])
                    x, y, z = x + step[0], y + step[1], z + step[2]
                for axis in range(3):
                    force = -slopes[t, m] * gradients[t, m, k, axis]
                    forces[t, beads[m, k], axis] += force
                    virial[t, axis, 0] += force * x
                    virial[t, axis, 1] += force * y
                    virial[t, axis, 2] += force * z


@compiled
def add_pair_counts(pairs, vectors, types, curve_of, scale, counts):
    """Count one frame's pairs in bins of width ``1 / scale`` into ``counts [K, bins]``."""
    for p in range(len(pairs)):
        k = curve_of[types[pairs[p, 0]], types[pairs[p, 1]]]
        if k >= 0:
            square = vectors[p, 0] ** 2 + vectors[p, 1] ** 2 + vectors[p, 2] ** 2
            bin_ = int(math.sqrt(square) * scale)
            if bin_ < counts.shape[1]:
                counts[k, bin_] += 1


@inlined
def _pieces(x, numbers):
    """First coefficient that matters at x, and the weights and slopes of the four; linear in the coefficients."""
    lo, hi, spacing = numbers[0], numbers[1], numbers[2]
    inside = min(max(x, lo), hi)
    place = (inside - lo) / spacing
    cell = min(int(place), int((hi - lo) / spacing + 0.5) - 1)
    t = place - cell
    w, s = piece_weights(t), piece_slopes(t)
    beyond = (x - inside) / spacing
    c = (1.0 - t, 3.0 * t - 2.0, 1.0 - 3.0 * t, t)
    weights = (
        w[0] + beyond * (s[0] + 0.5 * beyond * c[0]),
        w[1] + beyond * (s[1] + 0.5 * beyond * c[1]),
        w[2] + beyond * (s[2] + 0.5 * beyond * c[2]),
        w[3] + beyond * (s[3] + 0.5 * beyond * c[3]),
    )
    slopes = (
        (s[0] + beyond * c[0]) / spacing,
        (s[1] + beyond * c[1]) / spacing,
        (s[2] + beyond * c[2]) / spacing,
        (s[3] + beyond * c[3]) / spacing,
    )
    return cell, weights, slopes


@compiled
def add_pair_features(pairs, vectors, types, curve_of, numbers, starts, ends, features):
    """Add the splines of one frame's pairs to ``features [P]``: the derivative of the energy by each coefficient."""
    for p in range(len(pairs)):
        k = curve_of[types[pairs[p, 0]], types[pairs[p, 1]]]
        if k < 0:
            continue
        distance = math.sqrt(vectors[p, 0] ** 2 + vectors[p, 1] ** 2 + vectors[p, 2] ** 2)
        if distance >= numbers[k, 1]:
            continue
        cell, weights, _ = _pieces(distance, numbers[k])
        for a in range(4):
            column = starts[k] + cell + a
            if column < ends[k]:
                features[column] += weights[a]


@compiled
def add_pair_design(pairs, vectors, types, curve_of, numbers, starts, ends, design):
    """Add to ``design [n, 3, P]`` the force on each bead per unit of each coefficient."""
    for p in range(len(pairs)):
        i, j = pairs[p, 0], pairs[p, 1]
        k = curve_of[types[i], types[j]]
        if k < 0:
            continue
        distance = math.sqrt(vectors[p, 0] ** 2 + vectors[p, 1] ** 2 + vectors[p, 2] ** 2)
        if distance >= numbers[k, 1]:
            continue
        cell, _, slopes = _pieces(distance, numbers[k])
        for a in range(4):
            column = starts[k] + cell + a
            if column < ends[k]:
                for axis in range(3):
                    force = -slopes[a] * vectors[p, axis] / distance
                    design[i, axis, column] += force
                    design[j, axis, column] -= force


@compiled
def add_bonded_design(beads, gradients, columns, slopes, design):
    """Add to ``design [n, 3, P]`` one frame's bonded terms: ``columns`` and ``slopes`` ``[m, w]``, one row a term."""
    for m in range(len(beads)):
        for k in range(beads.shape[1]):
            for a in range(columns.shape[1]):
                for axis in range(3):
                    design[beads[m, k], axis, columns[m, a]] -= slopes[m, a] * gradients[m, k, axis]
