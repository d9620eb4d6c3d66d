# mypy: ignore-errors
"""Vectors of frames for numba: a few lanes of floats that the compiler keeps in one SIMD register.

Loops over arrays are vectorized only when the compiler can prove that they do not overlap, which it cannot for the
atoms of a molecule. A type of its own, ``Lanes``, leaves nothing to prove: every operation below is one vector
instruction, for whatever width the processor has. Division by zero and nan follow IEEE 754, without traps.
"""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic, models, overload, register_model

VECTOR_BYTES = 64
"""One AVX-512 register, two of AVX2, four of NEON or SSE2; the compiler splits where needed."""


class Lanes(types.Type):
    """``count`` floats of type ``element``, one for each of as many frames."""

    def __init__(self, element: types.Float) -> None:
        self.element, self.count = element, VECTOR_BYTES * 8 // element.bitwidth
        super().__init__(name=f"Lanes({element} x {self.count})")

    @property
    def llvm(self) -> ir.VectorType:
        """The type in the compiler's language."""
        return ir.VectorType(ir.DoubleType() if self.element.bitwidth == 64 else ir.FloatType(), self.count)


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Lanes) -> None:
        super().__init__(manager, kind, kind.llvm)


def lane_count(dtype: np.dtype[Any]) -> int:
    """Return how many frames one vector of this float type holds."""
    return VECTOR_BYTES // dtype.itemsize


def _pointer(context: Any, builder: Any, signature: Any, arguments: Any, kind: Lanes) -> Any:
    array = context.make_array(signature.args[0])(context, builder, arguments[0])
    element = builder.gep(array.data, [arguments[1]])
    return builder.bitcast(element, kind.llvm.as_pointer())


@intrinsic
def load(typing: Any, array: Any, index: Any) -> Any:
    """Lanes at ``array[index : index + count]`` of a contiguous array; no bounds check."""
    kind = Lanes(array.dtype)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _pointer(context, builder, signature, arguments, kind)
        return builder.load(pointer, align=kind.element.bitwidth // 8)

    return kind(array, types.intp), generate


@intrinsic
def store(typing: Any, array: Any, index: Any, value: Any) -> Any:
    """Write lanes to ``array[index : index + count]`` of a contiguous array; no bounds check."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _pointer(context, builder, signature, arguments, value)
        builder.store(arguments[2], pointer, align=value.element.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, value), generate


@intrinsic
def splat(typing: Any, like: Any, number: Any) -> Any:
    """The same number in every lane."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        scalar = context.cast(builder, arguments[1], number, like.element)
        first = builder.insert_element(ir.Constant(like.llvm, ir.Undefined), scalar, ir.Constant(ir.IntType(32), 0))
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), like.count), None)
        return builder.shuffle_vector(first, ir.Constant(like.llvm, ir.Undefined), zeros)

    return like(like, number), generate


def _binary(instruction: str) -> Any:
    @intrinsic
    def operation(typing: Any, first: Any, second: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            # contract: a product and a sum may become one fused instruction; nan and inf keep their meaning
            return getattr(builder, instruction)(*arguments, flags=("contract",))

        return first(first, first), generate

    return operation


def _function(name: str) -> Any:
    @intrinsic
    def operation(typing: Any, value: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            full_name = f"llvm.{name}.v{value.count}f{value.element.bitwidth}"
            function = cgutils.get_or_insert_function(
                builder.module, ir.FunctionType(value.llvm, [value.llvm]), full_name
            )
            return builder.call(function, arguments)

        return value(value), generate

    return operation


root = _function("sqrt")
magnitude = _function("fabs")


@intrinsic
def where_less(typing: Any, left: Any, right: Any, then: Any, otherwise: Any) -> Any:
    """``then`` in the lanes where left < right, else ``otherwise`` (also where either is nan)."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.select(builder.fcmp_ordered("<", *arguments[:2]), *arguments[2:])

    return left(left, left, left, left), generate


def _overload_operator(symbol: Any, instruction: str) -> None:
    """Let numba compute ``lanes . lanes``, ``lanes . number`` and ``number . lanes``."""
    compute = _binary(instruction)

    @overload(symbol)
    def choose(first, second):
        if isinstance(first, Lanes) and isinstance(second, Lanes):
            return lambda first, second: compute(first, second)
        if isinstance(first, Lanes) and isinstance(second, types.Number):
            return lambda first, second: compute(first, splat(first, second))
        if isinstance(first, types.Number) and isinstance(second, Lanes):
            return lambda first, second: compute(splat(second, first), second)
        return None


for _symbol, _instruction in (
    (operator.add, "fadd"),
    (operator.sub, "fsub"),
    (operator.mul, "fmul"),
    (operator.truediv, "fdiv"),
):
    _overload_operator(_symbol, _instruction)


def compiled(function):
    """Return the function compiled at its first call and kept in numba's cache, if there is a folder for one."""
    options = {"nogil": True, "error_model": "numpy"}
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError:  # neither the folder of the source nor the user's can be written
        return njit(**options)(function)


inlined = njit(forceinline=True, nogil=True, error_model="numpy")
"""Decorator of the small functions that become part of their caller."""


@inlined
def load3(array, index, count):
    """Return the three components of an atom's vectors."""
    return load(array, index), load(array, index + count), load(array, index + 2 * count)


@inlined
def add3(array, index, count, vector):
    """Add to the three components of an atom's vectors."""
    store(array, index, load(array, index) + vector[0])
    store(array, index + count, load(array, index + count) + vector[1])
    store(array, index + 2 * count, load(array, index + 2 * count) + vector[2])


@inlined
def minus(a, b):
    """Return the difference of two vectors."""
    return a[0] - b[0], a[1] - b[1], a[2] - b[2]


@inlined
def plus(a, b):
    """Return the sum of two vectors."""
    return a[0] + b[0], a[1] + b[1], a[2] + b[2]


@inlined
def times(scale, a):
    """Return a vector times a number."""
    return scale * a[0], scale * a[1], scale * a[2]


@inlined
def dot(a, b):
    """Return the scalar product."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


@inlined
def cross(a, b):
    """Return the vector product."""
    return a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]
