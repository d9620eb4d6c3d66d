# mypy: ignore-errors
"""A stream of normal random numbers, several to an instruction: noise must not cost more than the energy.

Eight generators xoshiro256++ side by side (D. Blackman and S. Vigna, doi:10.1145/3460772), seeded by numpy's
SeedSequence, and the transform of Box and Muller (doi:10.1214/aoms/1177706645) in the vectors of
:mod:`~ccg_gmx.molecule.kernel_lanes`. A tail ends at 8.6 standard deviations, as 53 bits have it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from torch import Tensor

from ccg_gmx.molecule.kernel_lanes import Lanes, compiled, inlined, root, splat, store
from ccg_gmx.molecule.kernel_math import logarithm

_LANES, _BLOCK = 8, 16
_WORDS = 4 * _LANES
_UNIT = 2.0**-53
_SINE = tuple((-1.0) ** k / math.factorial(2 * k + 1) for k in range(8, -1, -1))
_COSINE = tuple((-1.0) ** k / math.factorial(2 * k) for k in range(8, -1, -1))


@inlined
def _series(square, coefficients):
    total = splat(square, coefficients[0])
    for power in range(1, len(coefficients)):
        total = total * square + coefficients[power]
    return total


@inlined
def _circle(turn):
    """Return cosine and sine of 2 pi turn, 0 <= turn < 1: by Taylor series of a quarter of the angle."""
    quarter = (turn - 0.5) * (0.5 * math.pi)
    square = quarter * quarter
    cosine, sine = _series(square, _COSINE), quarter * _series(square, _SINE)
    for _ in range(2):
        cosine, sine = 1.0 - 2.0 * sine * sine, 2.0 * sine * cosine
    return cosine, sine


@intrinsic
def _uniform(typing: Any, state: Any, offset: Any) -> Any:
    """Advance all generators; return (53 bits of each + offset) / 2^53 as lanes."""
    kind = Lanes(types.float64)
    words = ir.VectorType(ir.IntType(64), kind.count)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        def by(count: int) -> Any:
            return ir.Constant(words, [count] * kind.count)

        def turned(word: Any, count: int) -> Any:
            return builder.or_(builder.shl(word, by(count)), builder.lshr(word, by(64 - count)))

        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        rows = [builder.gep(data, [ir.Constant(ir.IntType(64), row * kind.count)]) for row in range(4)]
        places = [builder.bitcast(row, words.as_pointer()) for row in rows]
        s0, s1, s2, s3 = (builder.load(place, align=8) for place in places)
        word = builder.add(turned(builder.add(s0, s3), 23), s0)
        third, fourth = builder.xor(s2, s0), builder.xor(s3, s1)
        after = (builder.xor(s0, fourth), builder.xor(s1, third), builder.xor(third, builder.shl(s1, by(17))))
        for value, place in zip((*after, turned(fourth, 45)), places, strict=True):
            builder.store(value, place, align=8)
        number = builder.uitofp(builder.lshr(word, by(11)), kind.llvm)
        shift = builder.fadd(number, ir.Constant(kind.llvm, [float(offset.literal_value)] * kind.count))
        return builder.fmul(shift, ir.Constant(kind.llvm, [_UNIT] * kind.count))

    if not isinstance(offset, types.IntegerLiteral):
        return None
    return kind(state, offset), generate


@compiled
def fill_normal(state, out):
    """Fill ``out [n]``; the numbers of the last block that find no place are lost."""
    block = np.empty(_BLOCK)
    for start in range(0, len(out), _BLOCK):
        radius = root(-2.0 * logarithm(_uniform(state, 1)))
        cosine, sine = _circle(_uniform(state, 0))
        store(block, 0, radius * cosine)
        store(block, _LANES, radius * sine)
        if start + _BLOCK <= len(out):
            for index in range(_BLOCK):
                out[start + index] = block[index]
        else:
            for index in range(len(out) - start):
                out[start + index] = block[index]


class NormalNoise:
    """Normal random numbers from one stream on the processor, whose state is 32 words.

    Args:
        seed: seed of the stream, not negative.
    """

    def __init__(self, seed: int) -> None:
        self._state = np.random.SeedSequence(seed).generate_state(_WORDS, np.uint64)

    @classmethod
    def from_state(cls, state: Tensor) -> NormalNoise:
        """Go on with the stream whose :meth:`state` this was.

        Raises:
            ValueError: if it is no such state.
        """
        if state.shape != (_WORDS,) or state.dtype != torch.int64:
            raise ValueError(f"state of the noise must be {_WORDS} int64, got {tuple(state.shape)} {state.dtype}")
        noise = cls.__new__(cls)
        noise._state = state.numpy().view(np.uint64).copy()
        return noise

    @property
    def words(self) -> np.ndarray:
        """The words of the generators, ``[32]`` uint64, for compiled code to go on with."""
        return self._state

    def state(self) -> Tensor:
        """Return ``[32]`` int64, the words of the generators."""
        return torch.from_numpy(self._state.copy().view(np.int64))

    def fill(self, out: Tensor) -> Tensor:
        """Fill a contiguous tensor on the processor, float64 or float32, and return it."""
        fill_normal(self._state, out.view(-1).numpy())
        return out
