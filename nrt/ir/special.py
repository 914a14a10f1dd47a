"""The error function on arrays, which NumPy lacks."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from numpy.polynomial import chebyshev

from nrt.ir.op import Array

__all__ = ["erf"]

# Both sides of this point are polynomials; beyond LAST, erf is 1 in float64.
SPLIT, LAST = 2.5, 6.0
# Interpolants of these degrees are within 2e-14, a millionth of float32's rounding.
DEGREE, TAIL_DEGREE = 18, 22
# Elements at a time: two buffers of float64 stay in the second-level cache.
CHUNK = 1 << 14


def erf(x: Array) -> Array:
    """``2/√π ∫₀ˣ e^(-t²) dt`` of each element, in the dtype of ``x``.

    float64 is computed element by element by the C library, since it serves as an oracle; narrower
    floats by two polynomials, correct to their last place.
    """
    if x.dtype == np.float64:
        exact = np.frompyfunc(math.erf, 1, 1)(x)
        return np.asarray(exact, np.float64)
    result: Array = np.empty(x.shape, x.dtype)
    source, target = np.ravel(x), result.reshape(-1)
    for start in range(0, source.size, CHUNK):
        piece = slice(start, start + CHUNK)
        target[piece] = _chunk(source[piece].astype(np.float64))
    return result


def _chunk(x: Array) -> Array:
    center, tail = _coefficients()
    result = x * _horner(center, np.minimum(np.square(x), SPLIT**2) * (2 / SPLIT**2) - 1)
    far = np.abs(x) > SPLIT
    if far.any():
        distance = np.minimum(np.abs(x[far]), LAST) - SPLIT
        complement = _horner(tail, distance * (2 / (LAST - SPLIT)) - 1)
        result[far] = np.copysign(1 - complement, x[far])
    return np.asarray(result)


@cache
def _coefficients() -> tuple[Array, Array]:
    """erf(√t) / √t on [0, SPLIT²] and 1 - erf on [SPLIT, LAST], each mapped to [-1, 1]."""

    def center(u: float) -> float:
        root = math.sqrt((u + 1) / 2) * SPLIT
        return math.erf(root) / root if root else 2 / math.sqrt(math.pi)

    def tail(u: float) -> float:
        return math.erfc(SPLIT + (u + 1) / 2 * (LAST - SPLIT))

    return (
        chebyshev.cheb2poly(chebyshev.chebinterpolate(np.vectorize(center), DEGREE)),
        chebyshev.cheb2poly(chebyshev.chebinterpolate(np.vectorize(tail), TAIL_DEGREE)),
    )


def _horner(coefficients: Array, x: Array) -> Array:
    total = np.full_like(x, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        total *= x
        total += coefficient
    return np.asarray(total)
