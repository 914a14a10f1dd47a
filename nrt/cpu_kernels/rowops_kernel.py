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
            store_f32(out, j * out_step, _F(0.0))
        # One pass per neighbour along the whole row vectorizes; a window per element does not.
        for shift in range(-before, after + 1):
            for j in range(max(0, -shift), min(cols, cols - shift)):
                value = load_f32(x, (j + shift) * in_step)
                store_f32(out, j * out_step, load_f32(out, j * out_step) + value * value)
        if beta == _F(0.75):
            for j in range(cols):
                root = _F(math.sqrt(bias + alpha * load_f32(out, j * out_step)))
                power = root * _F(math.sqrt(root))
                store_f32(out, j * out_step, load_f32(x, j * in_step) / power)
        else:
            for j in range(cols):
                power = (bias + alpha * load_f32(out, j * out_step)) ** beta
                store_f32(out, j * out_step, load_f32(x, j * in_step) / power)


def _make_reduce(kind: str) -> Any:
    maximum, minimum, product = kind == "max", kind == "min", kind == "prod"
    absolute, square = kind == "l1", kind in ("l2", "sum_square")
    mean, root = kind == "mean", kind == "l2"
    start = {"max": -math.inf, "min": math.inf, "prod": 1.0}.get(kind, 0.0)

    @numba.njit(nogil=True, error_model="numpy", fastmath=_REASSOCIATE, forceinline=True)
    def join(total, value):
        if maximum:
            return value if value > total or value != value else total  # noqa: PLR0124
        if minimum:
            return value if value < total or value != value else total  # noqa: PLR0124
        if product:
            return total * value
        if absolute:
            return total + abs(value)
        return total + (value * value if square else value)

    @numba.njit(nogil=True, error_model="numpy", fastmath=_REASSOCIATE, forceinline=True)
    def close(total, cols):
        if mean:
            total = total / cols
        return _F(math.sqrt(total) if root else total)

    def reduce(rows, cols, table, ld, steps):
        step = load_i64(steps, 1)
        first = load_i64(table, ld)
        adjacent = rows > 1 and step != 1
        for i in range(rows):
            adjacent = adjacent and load_i64(table, ld + i) == first + 4 * i
        if adjacent:
            # Rows side by side, as channels are: all of them at once, element by element.
            totals = np.full(rows, start)
            for j in range(cols):
                for i in range(rows):
                    totals[i] = join(totals[i], np.float64(load_f32(first, j * step + i)))
            for i in range(rows):
                store_f32(load_i64(table, i), 0, close(totals[i], cols))
            return
        for i in range(rows):
            x = load_i64(table, ld + i)
            total = start
            for j in range(cols):
                total = join(total, np.float64(load_f32(x, j * step)))
            store_f32(load_i64(table, i), 0, close(total, cols))

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
