# mypy: ignore-errors
"""Products of shears compiled: the lower-triangular maps of ``ConditionalAffine``.

Step r adds to row ``low[r]`` the ``width[r]`` rows from ``high[r]`` on, each times its entry of the matrix, which are
numbered through; one step after the other, on one SIMD vector of samples that stays in the first-level cache. Arrays
are flat views of ``v [n, B]`` and ``matrix [E, B]``. The last vector overlaps the one before when the batch is no
multiple of the lanes; fewer samples are for the caller to pad.
"""

from __future__ import annotations

import numpy as np

from ccg_gmx.molecule.kernel_lanes import compiled, inlined, load, splat, store


@inlined
def _read(array, scratch, rows, batch, begin, count):
    for row in range(rows):
        store(scratch, row * count, load(array, row * batch + begin))


@inlined
def _write(scratch, array, rows, batch, begin, count):
    for row in range(rows):
        store(array, row * batch + begin, load(scratch, row * count))


@compiled
def shear_forward(v, matrix, out, low, high, width, rows, batch, inverse, count):
    """Apply all steps, or undo them in the opposite order."""
    scratch = np.empty(rows * count, v.dtype)
    entries = width.sum()
    for start in range(0, batch, count):
        begin = min(start, batch - count)
        _read(v, scratch, rows, batch, begin, count)
        e = entries if inverse else 0
        for step in range(len(low)):
            r = len(low) - 1 - step if inverse else step
            if inverse:
                e -= width[r]
            old = load(scratch, low[r] * count)
            total = splat(old, 0.0)
            for k in range(width[r]):
                total = total + load(matrix, (e + k) * batch + begin) * load(scratch, (high[r] + k) * count)
            store(scratch, low[r] * count, old - total if inverse else old + total)
            if not inverse:
                e += width[r]
        _write(scratch, out, rows, batch, begin, count)


@compiled
def shear_shared(v, matrix, out, low, high, width, rows, batch, group, count):
    """Apply all steps where ``group`` samples in a row, a multiple of the lanes, share a row of ``matrix [., E]``."""
    scratch = np.empty(rows * count, v.dtype)
    entries = width.sum()
    for begin in range(0, batch, count):
        _read(v, scratch, rows, batch, begin, count)
        e = begin // group * entries
        for r in range(len(low)):
            old = load(scratch, low[r] * count)
            even, odd = splat(old, 0.0), splat(old, 0.0)
            for k in range(0, width[r] - 1, 2):
                first, second = load(scratch, (high[r] + k) * count), load(scratch, (high[r] + k + 1) * count)
                even = even + splat(old, matrix[e + k]) * first
                odd = odd + splat(old, matrix[e + k + 1]) * second
            if width[r] % 2:
                last = width[r] - 1
                even = even + splat(old, matrix[e + last]) * load(scratch, (high[r] + last) * count)
            store(scratch, low[r] * count, old + (even + odd))
            e += width[r]
        _write(scratch, out, rows, batch, begin, count)


@compiled
def shear_backward(out, matrix, grad, grad_v, grad_matrix, low, high, width, rows, batch, inverse, count):
    """Derivatives by v and matrix from that by the result; the way back undoes the steps, so nothing is stored."""
    scratch, slope = np.empty(rows * count, out.dtype), np.empty(rows * count, out.dtype)
    entries = width.sum()
    for start in range(0, batch, count):
        begin = min(start, batch - count)
        _read(out, scratch, rows, batch, begin, count)
        _read(grad, slope, rows, batch, begin, count)
        e = 0 if inverse else entries
        for step in range(len(low)):
            r = step if inverse else len(low) - 1 - step
            if not inverse:
                e -= width[r]
            old, signed = load(scratch, low[r] * count), load(slope, low[r] * count)
            if inverse:
                signed = splat(old, 0.0) - signed
            total = splat(old, 0.0)
            for k in range(width[r]):
                factor, value = load(matrix, (e + k) * batch + begin), load(scratch, (high[r] + k) * count)
                total = total + factor * value
                store(slope, (high[r] + k) * count, load(slope, (high[r] + k) * count) + factor * signed)
                store(grad_matrix, (e + k) * batch + begin, value * signed)
            store(scratch, low[r] * count, old + total if inverse else old - total)
            if inverse:
                e += width[r]
        _write(slope, grad_v, rows, batch, begin, count)


@compiled
def shear_transposed(g, matrix, out, low, high, width, rows, batch, count):
    """Row vectors times the inverse of all steps: g' with g' J = g, where J is the derivative of ``shear_forward``."""
    scratch = np.empty(rows * count, g.dtype)
    for start in range(0, batch, count):
        begin = min(start, batch - count)
        _read(g, scratch, rows, batch, begin, count)
        e = 0
        for r in range(len(low)):
            by_low = load(scratch, low[r] * count)
            for k in range(width[r]):
                place = (high[r] + k) * count
                store(scratch, place, load(scratch, place) - load(matrix, (e + k) * batch + begin) * by_low)
            e += width[r]
        _write(scratch, out, rows, batch, begin, count)
