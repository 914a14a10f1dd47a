"""Winograd's transforms and the kernel that joins them with the matrix product."""

from __future__ import annotations

import functools
from fractions import Fraction
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from nrt.cpu_kernels.jit import inlined, kernel
from nrt.cpu_kernels.product import SHAPES
from nrt.cpu_kernels.simd import LANES, call_rows, load_f32, load_i64, micro, store_f32
from nrt.cpu_kernels.winograd_matrices import INPUT, OUTPUT

__all__ = ["FIELDS", "winograd_kernel"]

_F32 = ir.FloatType()
_I64 = ir.IntType(64)

FIELDS: tuple[str, ...] = (
    "tiles", "tiles_h", "tiles_w", "block", "channels", "cols", "panels", "height", "width",
    "pad_h", "pad_w", "x_n", "x_h", "x_w", "out_h", "out_w", "operands", "results",
)  # fmt: skip
"""Parameters, one int64 each; then per operand of the rows function byte strides of image, line and
position, and the column step in elements. ``tiles`` counts those of all images; of the ``operands``
the first ``results`` are the epilogue's outputs, and the next is the accumulator."""

_OPERANDS_AT = len(FIELDS)


@intrinsic(prefer_literal=True)
def _combine(typingctx: Any, matrix: Any, src: Any, src_step: Any, dst: Any, dst_step: Any) -> Any:
    """``dst[i] = sum over j of M[i][j] * src[j]`` on vectors; steps are bytes.

    ``matrix`` (a constant) is ``m`` for the input's matrix of F(m, 3), ``-m`` for the output's.
    """
    del typingctx, src, src_step, dst, dst_step
    if not isinstance(matrix, types.IntegerLiteral):
        return None
    number = matrix.literal_value
    rows = INPUT[number] if number > 0 else OUTPUT[-number]

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        del signature
        _emit_combine(builder, args[1:], rows)
        return context.get_dummy_value()

    return types.void(matrix, *[types.int64] * 4), codegen


def _emit_combine(builder: Any, args: Any, rows: tuple[tuple[Fraction, ...], ...]) -> None:
    src, src_step, dst, dst_step = args
    vector = ir.VectorType(_F32, LANES)
    fma = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(vector, [vector] * 3), f"llvm.fmuladd.v{LANES}f32"
    )

    def at(base: Any, step: Any, index: int) -> Any:
        address = builder.add(base, builder.mul(step, ir.Constant(_I64, index)))
        return builder.inttoptr(address, vector.as_pointer())

    values = []
    for j in range(len(rows[0])):
        value = builder.load(at(src, src_step, j))
        value.align = 4
        values.append(value)
    for i, row in enumerate(rows):
        total = None
        # Ones first: they cost an addition, and only then is there a sum to fuse into.
        for factor, value in sorted(
            ((f, v) for f, v in zip(row, values, strict=True) if f), key=lambda e: abs(e[0]) != 1
        ):
            constant = ir.Constant(vector, [float(factor)] * LANES)
            if total is None:
                total = value if factor == 1 else builder.fmul(value, constant)
            elif abs(factor) == 1:
                total = builder.fadd(total, value) if factor > 0 else builder.fsub(total, value)
            else:
                total = builder.call(fma, [value, constant, total])
        builder.store(total, at(dst, dst_step, i)).align = 4


@inlined
def _copy(target, source, count):
    for c in range(count):
        store_f32(target, c, load_f32(source, c))


@functools.cache
def winograd_kernel(m: int) -> Any:
    """The kernel of F(m x m, 3 x 3); compiled when first called."""
    mr, nv = SHAPES[0]
    half = mr // 2
    nr = nv * LANES
    n = m + 2
    vector_bytes = LANES * 4
    to_output = -m

    @kernel
    def winograd(function, params, addresses, first, last):
        """Blocks of tiles ``first <= b < last``: transform, multiply, transform back, epilogue.

        ``addresses``: input, transformed weights, outputs, extras of the epilogue.
        """
        tiles, tiles_h, tiles_w = load_i64(params, 0), load_i64(params, 1), load_i64(params, 2)
        block, channels = load_i64(params, 3), load_i64(params, 4)
        cols, panels = load_i64(params, 5), load_i64(params, 6)
        height, width = load_i64(params, 7), load_i64(params, 8)
        pad_h, pad_w = load_i64(params, 9), load_i64(params, 10)
        x_n, x_h, x_w = load_i64(params, 11), load_i64(params, 12), load_i64(params, 13)
        out_h, out_w = load_i64(params, 14), load_i64(params, 15)
        operands, results = load_i64(params, 16), load_i64(params, 17)
        x, u = load_i64(addresses, 0), load_i64(addresses, 1)
        padded = panels * nr
        inputs = np.empty(n * n * block * channels, np.float32)
        sums = np.empty(n * n * block * padded, np.float32)
        patch = np.zeros(n * n * channels, np.float32)
        scratch = np.empty(n * n * LANES, np.float32)
        result = np.empty(m * m * padded, np.float32)
        table = np.empty(block, np.int64)
        rows = np.empty(operands * m * m, np.int64)
        steps = np.zeros(2 * operands, np.int64)
        for k in range(operands):
            steps[k] = load_i64(params, _OPERANDS_AT + 4 * k + 3)
        v = inputs.ctypes.data
        for t in range(block):
            table[t] = v + t * channels * 4
        for unit in range(first, last):
            start = unit * block
            count = min(block, tiles - start)
            for t in range(count):
                image = (start + t) // (tiles_h * tiles_w)
                rest = start + t - image * tiles_h * tiles_w
                top = rest // tiles_w * m - pad_h
                left = rest % tiles_w * m - pad_w
                source = x + image * x_n + top * x_h + left * x_w
                step_h, step_w = x_h, x_w
                if top < 0 or left < 0 or top + n > height or left + n > width:
                    # Over the edge: a copy with zeros around it.
                    patch[:] = np.float32(0.0)
                    for i in range(max(0, -top), min(n, height - top)):
                        for j in range(max(0, -left), min(n, width - left)):
                            _copy(
                                patch.ctypes.data + (i * n + j) * channels * 4,
                                source + i * x_h + j * x_w,
                                channels,
                            )
                    source = patch.ctypes.data
                    step_h, step_w = n * channels * 4, channels * 4
                for c in range(0, channels * 4, vector_bytes):
                    for j in range(n):
                        _combine(
                            m, source + j * step_w + c, step_h,
                            scratch.ctypes.data + j * vector_bytes, n * vector_bytes,
                        )  # fmt: skip
                    for i in range(n):
                        _combine(
                            m, scratch.ctypes.data + i * n * vector_bytes, vector_bytes,
                            v + ((i * n * block + t) * channels) * 4 + c, block * channels * 4,
                        )  # fmt: skip
            for point in range(n * n):
                for panel in range(panels):
                    b = u + (point * panels + panel) * channels * nr * 4
                    acc = sums.ctypes.data + (point * block * padded + panel * nr) * 4
                    shift = point * block * channels * 4
                    t = 0
                    while t + mr <= count:
                        micro(
                            mr, nv, table.ctypes.data + t * 8, block, 1, shift, channels,
                            b, 0, acc + t * padded * 4, padded, 0,
                        )  # fmt: skip
                        t += mr
                    if t + half <= count:
                        micro(
                            half, nv, table.ctypes.data + t * 8, block, 1, shift, channels,
                            b, 0, acc + t * padded * 4, padded, 0,
                        )  # fmt: skip
                        t += half
                    while t < count:
                        micro(
                            1, nv, table.ctypes.data + t * 8, block, 1, shift, channels,
                            b, 0, acc + t * padded * 4, padded, 0,
                        )  # fmt: skip
                        t += 1
            for t in range(count):
                for c in range(0, padded * 4, vector_bytes):
                    if c >= cols * 4:
                        break
                    for j in range(n):
                        _combine(
                            to_output,
                            sums.ctypes.data + ((j * block + t) * padded) * 4 + c,
                            n * block * padded * 4,
                            scratch.ctypes.data + j * vector_bytes, n * vector_bytes,
                        )  # fmt: skip
                    for i in range(m):
                        _combine(
                            to_output,
                            scratch.ctypes.data + i * n * vector_bytes, vector_bytes,
                            result.ctypes.data + i * m * padded * 4 + c, padded * 4,
                        )  # fmt: skip
                image = (start + t) // (tiles_h * tiles_w)
                rest = start + t - image * tiles_h * tiles_w
                top, left = rest // tiles_w * m, rest % tiles_w * m
                filled = 0
                for i in range(min(m, out_h - top)):
                    for j in range(min(m, out_w - left)):
                        for k in range(operands):
                            if k == results:
                                at = result.ctypes.data + (i * m + j) * padded * 4
                            else:
                                at = (
                                    load_i64(addresses, 2 + k - (k > results))
                                    + image * load_i64(params, _OPERANDS_AT + 4 * k)
                                    + (top + i) * load_i64(params, _OPERANDS_AT + 4 * k + 1)
                                    + (left + j) * load_i64(params, _OPERANDS_AT + 4 * k + 2)
                                )
                            rows[k * m * m + filled] = at
                        filled += 1
                call_rows(function, filled, cols, rows.ctypes.data, m * m, steps.ctypes.data)

    return winograd
