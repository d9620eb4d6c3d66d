# mypy: ignore-errors
"""Exponential, logarithm and hyperbolic tangent of :mod:`~ccg_gmx.molecule.kernel_lanes`' vectors.

Exponents of two are split off by integer operations on the bits; what is left is a short Taylor series. Both are exact
to a few units of the last place of float64. The compiled solvent spends its time here, and a call of the C library for
each lane would cost ten times as much.
"""

from __future__ import annotations

import math
from typing import Any

from llvmlite import ir
from numba.extending import intrinsic

from ccg_gmx.molecule.kernel_lanes import inlined, splat, where_less

_MANTISSA_BITS = {64: 52, 32: 23}
_BIAS = {64: 1023, 32: 127}
_LOG2_E, _LN2 = 1 / math.log(2), math.log(2)
# ln 2 in two parts; the first has 32 bits, so that its product with an exponent is exact in float64
_LN2_HIGH = math.floor(_LN2 * 2**32) / 2**32
_LN2_LOW = _LN2 - _LN2_HIGH
_EXP = tuple(1 / math.factorial(k) for k in range(13, -1, -1))
_ATANH = tuple(2 / (2 * k + 1) for k in range(10, -1, -1))
_ROOT_HALF = math.sqrt(0.5)
_LOWEST = -87.0
"""Below this an exponential is taken at this argument, 1e-38: the smallest that float32 holds, nothing beside 1."""


def _integers(kind: Any, number: int) -> Any:
    vector = ir.VectorType(ir.IntType(kind.element.bitwidth), kind.count)
    return vector, ir.Constant(vector, [number] * kind.count)


@intrinsic
def power_of_two(typing: Any, exponent: Any) -> Any:
    """2^n of lanes that hold whole numbers within the range of normal floats."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        bits = exponent.element.bitwidth
        vector, bias = _integers(exponent, _BIAS[bits])
        _, shift = _integers(exponent, _MANTISSA_BITS[bits])
        whole = builder.shl(builder.add(builder.fptosi(arguments[0], vector), bias), shift)
        return builder.bitcast(whole, exponent.llvm)

    return exponent(exponent), generate


@intrinsic
def exponent_of(typing: Any, value: Any) -> Any:
    """The power of two, as lanes, below or at positive normal numbers."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        bits = value.element.bitwidth
        vector, bias = _integers(value, _BIAS[bits])
        _, shift = _integers(value, _MANTISSA_BITS[bits])
        whole = builder.lshr(builder.bitcast(arguments[0], vector), shift)
        return builder.sitofp(builder.sub(whole, bias), value.llvm)

    return value(value), generate


@intrinsic
def mantissa_of(typing: Any, value: Any) -> Any:
    """Positive normal numbers divided by their power of two: within [1, 2)."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        bits = value.element.bitwidth
        vector, mask = _integers(value, (1 << _MANTISSA_BITS[bits]) - 1)
        _, one = _integers(value, _BIAS[bits] << _MANTISSA_BITS[bits])
        mantissa = builder.and_(builder.bitcast(arguments[0], vector), mask)
        return builder.bitcast(builder.or_(mantissa, one), value.llvm)

    return value(value), generate


@intrinsic
def floor_positive(typing: Any, value: Any) -> Any:
    """The whole part of positive lanes."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vector, _ = _integers(value, 0)
        return builder.sitofp(builder.fptosi(arguments[0], vector), value.llvm)

    return value(value), generate


@inlined
def larger(first, second):
    """Return the larger of two; ``first`` where it is nan."""
    return where_less(first, second, second, first)


@inlined
def exponential(x):
    """Return e^x for x <= 88, taken at -87 below that."""
    x = larger(x, splat(x, _LOWEST))
    # rounded half up; 128 makes it positive, where to truncate is to round down
    whole = floor_positive(x * _LOG2_E + 128.5) - 128.0
    rest = (x - whole * _LN2_HIGH) - whole * _LN2_LOW
    total = splat(x, _EXP[0])
    for power in range(1, len(_EXP)):
        total = total * rest + _EXP[power]
    return total * power_of_two(whole)


@inlined
def logarithm(x):
    """Return ln x of positive normal numbers: 2 atanh((m - 1) / (m + 1)) with m within [sqrt(1/2), sqrt(2))."""
    half, edge, exponent = 0.5 * mantissa_of(x), splat(x, _ROOT_HALF), exponent_of(x)
    mantissa = where_less(half, edge, 2.0 * half, half)
    exponent = where_less(half, edge, exponent, exponent + 1.0)
    ratio = (mantissa - 1.0) / (mantissa + 1.0)
    square = ratio * ratio
    total = splat(x, _ATANH[0])
    for power in range(1, len(_ATANH)):
        total = total * square + _ATANH[power]
    return (exponent * _LN2_HIGH + ratio * total) + exponent * _LN2_LOW


@inlined
def hyperbolic_tangent(x):
    """Return tanh x with an absolute error of the last place; exactly 1 beyond 20."""
    size = where_less(x, splat(x, 20.0), x, splat(x, 20.0))
    return 1.0 - 2.0 / (exponential(2.0 * size) + 1.0)
