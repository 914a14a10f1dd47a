"""The op that calibration puts beside a tensor: how often which magnitude occurs.

Bins are linear, their width is a power of two, and the largest magnitude lies in the upper half of
them. The bin of a number is then a shift of its significand: no rounding, no division, the same on
every machine. Histograms of two tensors of different range merge without loss, because every bin of
the finer one lies inside a bin of the coarser.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nrt.dtypes import FP32, INT64
from nrt.errors import ShapeError
from nrt.ir.op import Array, Op, TensorType

__all__ = ["BINS", "NEGATIVE", "POSITIVE", "WORDS", "ZEROS", "AbsHistogram"]

BINS = 4096
"""Bins; more than half of them lie below the largest magnitude."""

ZEROS, POSITIVE, NEGATIVE = BINS, BINS + 1, BINS + 2
"""Words behind the counts: elements that are zero, and the bits of the largest magnitude among
those of positive and of negative sign."""

WORDS = BINS + 3
"""Length of the output."""

_MAGNITUDE = 0x7FFFFFFF
# A significand has 24 bits; the one with the largest exponent keeps its upper log2(BINS).
_SHIFT = 24 - (BINS.bit_length() - 1)


@dataclass(frozen=True)
class AbsHistogram(Op):
    """Histogram of ``|x|``, as int64[`WORDS`], for fp32 of any shape.

    With the largest magnitude in [2^e, 2^(e+1)), bin i counts elements other than zero in
    [i, i+1) · 2^(e+1) / `BINS`. Below the normal numbers the range stays 2^-125. An infinity counts
    as 2^128, a NaN as more; the largest magnitude's bits, `POSITIVE` or `NEGATIVE`, show them.
    """

    def infer(self, *inputs: TensorType) -> tuple[TensorType, ...]:
        (x,) = inputs
        if x.dtype is not FP32:
            raise ShapeError(f"{self.name}: input is {x.dtype}, expected fp32")
        return (TensorType((WORDS,), INT64),)

    def reference(self, *inputs: Array) -> tuple[Array, ...]:
        (x,) = inputs
        bits = np.ascontiguousarray(x, np.float32).reshape(-1).view(np.uint32)
        words = np.zeros(WORDS, np.int64)
        if bits.size:
            # As signed integers, floats of one sign are ordered as their magnitudes.
            signed = bits.view(np.int32)
            words[POSITIVE] = max(int(signed.max()), 0)
            lowest = bits[signed < 0]
            words[NEGATIVE] = int(lowest.max()) & _MAGNITUDE if lowest.size else 0
            magnitudes = bits & np.uint32(_MAGNITUDE)
            index = _bins(magnitudes, max(int(words[POSITIVE]), int(words[NEGATIVE])))
            words[:BINS] = np.bincount(index, minlength=BINS)
            zeros = int(np.count_nonzero(magnitudes == 0))
            words[ZEROS] = zeros
            words[0] -= zeros
        return (words,)


def _bins(magnitudes: Array, largest: int) -> Array:
    """Bin of each of the ``magnitudes``, given as bits; ``largest`` is the largest one's."""
    exponent = magnitudes >> np.uint32(23)
    significand = magnitudes & np.uint32(0x7FFFFF)
    significand |= (exponent != 0).astype(np.uint32) << np.uint32(23)
    np.maximum(exponent, 1, out=exponent)  # of numbers below the normal ones
    np.subtract(np.uint32(max(largest >> 23, 1) + _SHIFT), exponent, out=exponent)
    np.minimum(exponent, 31, out=exponent)
    return np.asarray(significand >> exponent)
