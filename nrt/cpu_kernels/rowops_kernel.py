"""Rows functions written by hand: softmax, normalizations, reductions.

They have the signature of generated rows functions (`nrt.cpu_kernels.codegen`) and are called over
a grid of rows by the same kernel. Here a row must be whole, and all operands are float32. Numbers
such as an epsilon come as an operand: an array that does not move from row to row.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numba
import numpy as np

from nrt.cpu_kernels.codegen import RowsFunction
from nrt.cpu_kernels.mathlib import fast_exp
from nrt.cpu_kernels.simd import bits_to_float, float_to_bits, load_f32, load_i64, store_f32

__all__ = ["row_function"]

_REASSOCIATE = {"contract", "reassoc", "nsz"}
"""Sums in vector lanes; NaN and infinities keep their meaning."""
_F = np.float32


@numba.njit(nogil=True, error_model="numpy", fastmath=_REASSOCIATE, forceinline=True)
def _row_max(p, step, cols):
    """Largest value of a row, NaN if there is one of positive sign."""
    # Floats ordered as integers: integer maxima vectorize without assumptions about NaN.
    best = np.int32(-2147483648)
    for j in range(cols):
        bits = float_to_bits(load_f32(p, j * step))
        key = bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFFFFFF))
        best = max(best, key)
    return bits_to_float(best ^ ((best >> np.int32(31)) & np.int32(0x7FFFFFFF)))


def _softmax(rows, cols, table, ld, steps):
    out_step, in_step = load_i64(steps, 0), load_i64(steps, 1)
    for i in range(rows):
        out = load_i64(table, i)
        x = load_i64(table, ld + i)
        top = _row_max(x, in_step, cols)
        total = _F(0.0)
        for j in range(cols):
            value = fast_exp(load_f32(x, j * in_step) - top)
            store_f32(out, j * out_step, value)
            total += value
        scale = _F(1.0) / total
        for j in range(cols):
            store_f32(out, j * out_step, load_f32(out, j * out_step) * scale)


def _log_softmax(rows, cols, table, ld, steps):
    out_step, in_step = load_i64(steps, 0), load_i64(steps, 1)
    for i in range(rows):
        out = load_i64(table, i)
        x = load_i64(table, ld + i)
        top = _row_max(x, in_step, cols)
        total = _F(0.0)
        for j in range(cols):
            total += fast_exp(load_f32(x, j * in_step) - top)
        shift = _F(math.log(total))
        for j in range(cols):
            store_f32(out, j * out_step, load_f32(x, j * in_step) - top - shift)


def _standardize(rows, cols, table, ld, steps):
    """Operands: out, x, [epsilon], scale, bias."""
    out_step, in_step = load_i64(steps, 0), load_i64(steps, 1)
    scale_step, bias_step = load_i64(steps, 3), load_i64(steps, 4)
    for i in range(rows):
        out = load_i64(table, i)
        x = load_i64(table, ld + i)
        epsilon = load_f32(load_i64(table, 2 * ld + i), 0)
        scale = load_i64(table, 3 * ld + i)
        bias = load_i64(table, 4 * ld + i)
        total = _F(0.0)
        for j in range(cols):
            total += load_f32(x, j * in_step)
        mean = total / _F(cols)
        squares = _F(0.0)
        for j in range(cols):
            centered = load_f32(x, j * in_step) - mean
            squares += centered * centered
        factor = _F(1.0) / _F(math.sqrt(squares / _F(cols) + epsilon))
        for j in range(cols):
            value = (load_f32(x, j * in_step) - mean) * factor
            value = value * load_f32(scale, j * scale_step) + load_f32(bias, j * bias_step)
            store_f32(out, j * out_step, value)


def _lrn(rows, cols, table, ld, steps):
    """Operands: out, x, [size, alpha / size, beta, bias]."""
    out_step, in_step = load_i64(steps, 0), load_i64(steps, 1)
    for i in range(rows):
        out = load_i64(table, i)
        x = load_i64(table, ld + i)
        numbers = load_i64(table, 2 * ld + i)
        size = int(load_f32(numbers, 0))
        alpha, beta = load_f32(numbers, 1), load_f32(numbers, 2)
        bias = load_f32(numbers, 3)
        before, after = (size - 1) // 2, size // 2
        for j in range(cols):
            total = _F(0.0)
            for c in range(max(0, j - before), min(cols, j + after + 1)):
                value = load_f32(x, c * in_step)
                total += value * value
            base = bias + alpha * total
            if beta == _F(0.75):
                root = _F(math.sqrt(base))
                power = root * _F(math.sqrt(root))
            else:
                power = base**beta
            store_f32(out, j * out_step, load_f32(x, j * in_step) / power)


def _make_reduce(kind: str) -> Any:
    maximum, minimum, product = kind == "max", kind == "min", kind == "prod"
    absolute, square = kind == "l1", kind in ("l2", "sum_square")
    mean, root = kind == "mean", kind == "l2"
    start = {"max": -math.inf, "min": math.inf, "prod": 1.0}.get(kind, 0.0)

    def reduce(rows, cols, table, ld, steps):
        step = load_i64(steps, 1)
        for i in range(rows):
            x = load_i64(table, ld + i)
            total = start
            for j in range(cols):
                value = np.float64(load_f32(x, j * step))
                if maximum:
                    total = value if value > total or value != value else total  # noqa: PLR0124
                elif minimum:
                    total = value if value < total or value != value else total  # noqa: PLR0124
                elif product:
                    total *= value
                elif absolute:
                    total += abs(value)
                elif square:
                    total += value * value
                else:
                    total += value
            if mean:
                total = total / cols
            if root:
                total = math.sqrt(total)
            store_f32(load_i64(table, i), 0, _F(total))

    return reduce


_FUNCTIONS = {
    "softmax": _softmax,
    "log_softmax": _log_softmax,
    "standardize": _standardize,
    "lrn": _lrn,
}


@functools.cache
def row_function(name: str) -> RowsFunction:
    """The compiled function: ``softmax``, ``log_softmax``, ``standardize``, ``lrn``, or the kind of
    a reduction."""
    function = _FUNCTIONS.get(name) or _make_reduce(name)
    signature = numba.types.void(*[numba.types.int64] * 5)
    owner = numba.cfunc(signature, nopython=True, error_model="numpy", fastmath=_REASSOCIATE)(
        function
    )
    return RowsFunction(int(owner.address), owner)
