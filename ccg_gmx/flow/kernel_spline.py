# mypy: ignore-errors
"""Rational-quadratic splines compiled: the formulas of ``splines.py`` and their derivatives, one SIMD vector of samples
at a time, so that the ``[K, D, B]`` tables of knots are never written.

Arrays are flat views of ``x [D, B]`` and ``raw [R, D, B]``. The last vector of a row overlaps the one before when the
batch is no multiple of the lanes; a row of fewer samples is for the caller to pad.
"""

from __future__ import annotations

import math

import numpy as np

from ccg_gmx.molecule.kernel_lanes import compiled, inlined, load, magnitude, root, splat, store, where_less
from ccg_gmx.molecule.kernel_math import exponential, larger, logarithm

MIN_SIZE = 1e-3
"""Smallest bin width and height, as a fraction of the whole interval."""

MIN_SLOPE = 1e-3
"""Smallest derivative at a knot."""

SLOPE_OFFSET = math.log(math.expm1(1.0 - MIN_SLOPE))
"""Raw slope zero gives derivative one, so that zero parameters give the identity."""


@inlined
def _softmax(raw, at, stride, bins, scratch, place, count):
    """Write the softmax of ``bins`` rows to scratch, from ``place`` on."""
    top = load(raw, at)
    for j in range(1, bins):
        top = larger(load(raw, at + j * stride), top)
    total = splat(top, 0.0)
    for j in range(bins):
        part = exponential(load(raw, at + j * stride) - top)
        store(scratch, place + j * count, part)
        total = total + part
    scale = 1.0 / total
    for j in range(bins):
        store(scratch, place + j * count, load(scratch, place + j * count) * scale)


@inlined
def _slope(raw, at, stride, bins, circular, knot):
    """Raw slope at a knot; the ends of a spline with tails have slope one, those of a circle share one parameter."""
    if circular:
        return load(raw, at + (2 * bins + knot % bins) * stride)
    if knot == 0 or knot == bins:
        return splat(load(raw, at), 0.0)
    return load(raw, at + (2 * bins + knot - 1) * stride)


@inlined
def _bin_of(x, raw, at, stride, bins, circular, inverse, bound, scratch, count):
    """Find the bin of x: index, parts below and of the bin (widths, heights), raw slopes left and right."""
    scale, floor = 2.0 * bound * (1.0 - bins * MIN_SIZE), 2.0 * bound * MIN_SIZE
    _softmax(raw, at, stride, bins, scratch, 0, count)
    _softmax(raw, at + bins * stride, stride, bins, scratch, bins * count, count)
    zero = splat(x, 0.0)
    index, below_w, below_h = zero, zero, zero
    part_w, part_h = load(scratch, 0), load(scratch, bins * count)
    left, right = _slope(raw, at, stride, bins, circular, 0), _slope(raw, at, stride, bins, circular, 1)
    sum_w, sum_h = zero, zero
    for j in range(1, bins):
        sum_w = sum_w + load(scratch, (j - 1) * count)
        sum_h = sum_h + load(scratch, (bins + j - 1) * count)
        total = sum_h if inverse else sum_w
        knot = total * scale + (j * floor - bound)
        index = where_less(x, knot, index, splat(x, j))
        below_w = where_less(x, knot, below_w, sum_w)
        below_h = where_less(x, knot, below_h, sum_h)
        part_w = where_less(x, knot, part_w, load(scratch, j * count))
        part_h = where_less(x, knot, part_h, load(scratch, (bins + j) * count))
        left = where_less(x, knot, left, _slope(raw, at, stride, bins, circular, j))
        right = where_less(x, knot, right, _slope(raw, at, stride, bins, circular, j + 1))
    return index, below_w, part_w, below_h, part_h, left, right


@inlined
def _softplus(x):
    """Return ln(1 + e^x) without overflow."""
    zero = splat(x, 0.0)
    return larger(x, zero) + logarithm(1.0 + exponential(zero - magnitude(x)))


@inlined
def _sigmoid(x):
    """Derivative of the softplus."""
    zero = splat(x, 0.0)
    small = exponential(zero - magnitude(x))
    return where_less(x, zero, small, splat(x, 1.0)) / (1.0 + small)


@inlined
def _solve(y, height, mean, left, bend):
    """Fraction of the bin at which the spline is y above its lower knot; no cancellation (1906.04032, A.3)."""
    bend = y * bend
    a = height * (mean - left) + bend
    b = height * left - bend
    c = mean * y
    return 2.0 * c / (b + root(b * b + 4.0 * a * c))


@inlined
def _place(x, found, bins, inverse, bound):
    """Sizes and slopes of the bin in the interval's units, and the fraction t of it where x lies."""
    index, below_w, part_w, below_h, part_h, raw_left, raw_right = found
    scale, floor = 2.0 * bound * (1.0 - bins * MIN_SIZE), 2.0 * bound * MIN_SIZE
    offset = index * floor - bound
    start, width = below_w * scale + offset, part_w * scale + floor
    lower, height = below_h * scale + offset, part_h * scale + floor
    left, right = MIN_SLOPE + _softplus(raw_left + SLOPE_OFFSET), MIN_SLOPE + _softplus(raw_right + SLOPE_OFFSET)
    mean = height / width
    bend = left + right - 2.0 * mean
    t = _solve(x - lower, height, mean, left, bend) if inverse else (x - start) / width
    return start, width, lower, height, left, right, mean, bend, t


@inlined
def _forward(x, raw, at, stride, bins, circular, inverse, bound, scratch, count):
    found = _bin_of(x, raw, at, stride, bins, circular, inverse, bound, scratch, count)
    start, width, lower, height, left, right, mean, bend, t = _place(x, found, bins, inverse, bound)
    rest = 1.0 - t
    between = t * rest
    denominator = mean + bend * between
    numerator = right * t * t + 2.0 * mean * between + left * rest * rest
    ratio = mean / denominator
    log_slope = logarithm(numerator * ratio * ratio)
    by_t = 2.0 * ((right * t + mean * (rest - t) - left * rest) / numerator - bend * (rest - t) / denominator)
    curvature = by_t / width
    if inverse:
        # d(-ln S'(x)) / dy = -(d ln S' / dx) / S'
        return start + width * t, splat(x, 0.0) - log_slope, splat(x, 0.0) - curvature / (numerator * ratio * ratio)
    return lower + height * (mean * t * t + left * between) / denominator, log_slope, curvature


@compiled
def spline_forward(x, raw, y, log_slope, curvature, rows, batch, bins, circular, inverse, tails, bound, count):
    """Map ``rows x batch`` values; with tails, the identity outside of [-bound, bound].

    Writes the values, ln of the derivative, and the derivative of that by x.
    """
    scratch = np.empty(2 * bins * count, x.dtype)
    stride = rows * batch
    for row in range(rows):
        for begin in range(0, batch, count):
            at = row * batch + min(begin, batch - count)
            value = load(x, at)
            size, limit, zero = magnitude(value), splat(value, bound), splat(value, 0.0)
            inner = where_less(size, limit, value, zero) if tails else value
            mapped, log_of, bent = _forward(inner, raw, at, stride, bins, circular, inverse, bound, scratch, count)
            if tails:
                mapped, log_of = where_less(size, limit, mapped, value), where_less(size, limit, log_of, zero)
                bent = where_less(size, limit, bent, zero)
            store(y, at, mapped)
            store(log_slope, at, log_of)
            store(curvature, at, bent)


@inlined
def _partials(t, width, height, left, right, mean, bend):
    """Derivatives of q = (y - lower) / height and of ln(dy/dx) by t, mean, left and right slope, and q itself."""
    rest = 1.0 - t
    between, change = t * rest, rest - t
    denominator = mean + bend * between
    numerator = right * t * t + 2.0 * mean * between + left * rest * rest
    by_den, by_num = 1.0 / denominator, 1.0 / numerator
    q = (mean * t * t + left * between) * by_den
    spread = (1.0 - 2.0 * between) * by_den
    q_t = mean * numerator * by_den * by_den
    q_mean = t * t * by_den - q * spread
    q_left = between * (1.0 - q) * by_den
    q_right = splat(t, 0.0) - q * between * by_den
    l_t = 2.0 * ((right * t + mean * change - left * rest) * by_num - bend * change * by_den)
    l_mean = 2.0 * (between * by_num + 1.0 / mean - spread)
    common = 2.0 * between * by_den
    l_left, l_right = rest * rest * by_num - common, t * t * by_num - common
    return q, q_t, q_mean, q_left, q_right, l_t, l_mean, l_left, l_right


@inlined
def _bin_slopes(placed, grad_y, grad_log, inverse):
    """Derivatives of the loss by x and by the bin's start, width, lower knot, height, left and right slope."""
    _, width, _, height, left, right, mean, bend, t = placed
    q, q_t, q_mean, q_left, q_right, l_t, l_mean, l_left, l_right = _partials(t, width, height, left, right, mean, bend)
    zero = splat(t, 0.0)
    by_input = zero
    if inverse:
        # x = S^-1(y): dx = (dy - dS at fixed x) / S', and the logarithm of the slope of S^-1 is minus that of S.
        grad_log = zero - grad_log
        slope = mean * q_t
        by_input = (grad_y + grad_log * l_t / width) / slope
        grad_y = zero - by_input
    by_q = grad_y * height
    by_t = (by_q * q_t + grad_log * l_t) / width
    by_mean = (by_q * q_mean + grad_log * l_mean) / width
    if not inverse:
        by_input = by_t
    by_height = grad_y * q + by_mean
    by_width = zero - by_t * t - by_mean * mean
    by_left, by_right = by_q * q_left + grad_log * l_left, by_q * q_right + grad_log * l_right
    return by_input, zero - by_t, by_width, grad_y, by_height, by_left, by_right


@inlined
def _write_partition(out, at, stride, bins, scratch, place, count, axis):
    """Derivative by the raw parameters of a softmax: the knot sums the parts below the bin, the size is one part."""
    index, by_knot, by_size, below, part = axis
    mean = by_knot * below + by_size * part
    lower, same, above = by_knot - mean, by_size - mean, splat(mean, 0.0) - mean
    for j in range(bins):
        here = splat(index, j)
        slope = where_less(here, index, lower, where_less(index, here, above, same))
        store(out, at + j * stride, load(scratch, place + j * count) * slope)


@inlined
def _write_slopes(out, at, stride, bins, circular, index, by_left, by_right):
    """Derivative by the raw slopes; the bin's left slope is that of knot ``index``, its right one of the next."""
    zero = splat(index, 0.0)
    for knot in range(0 if circular else 1, bins):
        # near is 0 where the bin is the one on the knot's right, 1 where it is the one on its left
        ahead = magnitude(index - knot)
        behind = magnitude(index - (knot - 1 if knot > 0 else bins - 1))
        half = splat(index, 0.5)
        slope = where_less(ahead, half, by_left, zero) + where_less(behind, half, by_right, zero)
        store(out, at + (2 * bins + (knot if circular else knot - 1)) * stride, slope)


@compiled
def spline_backward(
    x, raw, grad_y, grad_log, grad_x, grad_raw, rows, batch, bins, circular, inverse, tails, bound, count
):
    """Derivatives of a loss by x and raw, from those by the two results of ``spline_forward``."""
    scratch = np.empty(2 * bins * count, x.dtype)
    stride = rows * batch
    scale = 2.0 * bound * (1.0 - bins * MIN_SIZE)
    for row in range(rows):
        for begin in range(0, batch, count):
            at = row * batch + min(begin, batch - count)
            value, by_y, by_log = load(x, at), load(grad_y, at), load(grad_log, at)
            size, limit, zero = magnitude(value), splat(value, bound), splat(value, 0.0)
            outer = by_y
            if tails:
                value = where_less(size, limit, value, zero)
                by_y, by_log = where_less(size, limit, by_y, zero), where_less(size, limit, by_log, zero)
            found = _bin_of(value, raw, at, stride, bins, circular, inverse, bound, scratch, count)
            placed = _place(value, found, bins, inverse, bound)
            by_x, by_start, by_width, by_lower, by_height, by_left, by_right = _bin_slopes(
                placed, by_y, by_log, inverse
            )
            store(grad_x, at, where_less(size, limit, by_x, outer) if tails else by_x)
            index, below_w, part_w, below_h, part_h, raw_left, raw_right = found
            widths = (index, by_start * scale, by_width * scale, below_w, part_w)
            heights = (index, by_lower * scale, by_height * scale, below_h, part_h)
            _write_partition(grad_raw, at, stride, bins, scratch, 0, count, widths)
            _write_partition(grad_raw, at + bins * stride, stride, bins, scratch, bins * count, count, heights)
            left, right = by_left * _sigmoid(raw_left + SLOPE_OFFSET), by_right * _sigmoid(raw_right + SLOPE_OFFSET)
            _write_slopes(grad_raw, at, stride, bins, circular, index, left, right)
