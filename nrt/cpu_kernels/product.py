"""The matrix product under convolutions and MatMul: indirect rows, packed panels, fused epilogue.

Rows of ``A`` are runs of contiguous elements found by address: for a convolution, the channels
under one filter tap, so that no column matrix is ever built (Dukhan, "The Indirect Convolution
Algorithm", arXiv:1907.02129). ``B`` is packed in panels of as many columns as the inner kernel
keeps in registers. A block of rows times a panel is summed in a buffer that stays in the L1 cache,
block of ``k`` by block of ``k``, and then goes through the epilogue's rows function straight to its
place.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from nrt.cpu_kernels.jit import kernel
from nrt.cpu_kernels.simd import (
    LANES,
    REGISTERS,
    call_rows,
    load_f32,
    load_i32,
    load_i64,
    micro,
    store_f32,
    store_i32,
)

__all__ = ["FIELDS", "OPERAND_FIELDS", "SHAPES", "pack_panels", "product_kernel"]

SHAPES: tuple[tuple[int, int], ...] = ((6, 4), (12, 2), (14, 1)) if REGISTERS == 32 else (
    (4, 3), (6, 2), (12, 1),
)  # fmt: skip
"""Rows and vectors of the inner kernels: what the registers hold beside one row of B and one of
A.
"""

FIELDS: tuple[str, ...] = (
    "rows", "rows_n", "rows_p", "taps_w", "taps", "run", "stride_h", "stride_w", "pad_h", "pad_w",
    "dilation_h", "dilation_w", "height", "width", "x_n", "x_h", "x_w", "block_rows", "blocks",
    "cols", "panels", "panel_fastest", "block_taps", "block_run", "zeros", "operands",
    "results", "whole",
)  # fmt: skip
"""Parameters of the kernel, one int64 each, in order. ``rows`` is the number of output positions,
``rows_n`` those of an image, ``rows_p`` those of a line; ``x_*`` are byte strides; ``zeros`` is the
address of at least ``run`` zeros; of the epilogue's ``operands`` the first ``results`` are its
outputs, and the next is the accumulator; ``whole`` says that A and B hold bytes, whose sums are
int32."""

OPERAND_FIELDS = 5
"""After `FIELDS`, for each operand of the rows function: byte strides of image, line, position and
column, then the column step in elements."""

_AT = {name: index for index, name in enumerate(FIELDS)}
_ROWS, _ROWS_N, _ROWS_P = _AT["rows"], _AT["rows_n"], _AT["rows_p"]
_TAPS_W, _TAPS, _RUN = _AT["taps_w"], _AT["taps"], _AT["run"]
_STRIDE_H, _STRIDE_W, _PAD_H, _PAD_W = (_AT[n] for n in ("stride_h", "stride_w", "pad_h", "pad_w"))
_DIL_H, _DIL_W, _HEIGHT, _WIDTH = (_AT[n] for n in ("dilation_h", "dilation_w", "height", "width"))
_X_N, _X_H, _X_W = (_AT[n] for n in ("x_n", "x_h", "x_w"))
_BLOCK_ROWS, _BLOCKS, _COLS, _PANELS = (_AT[n] for n in ("block_rows", "blocks", "cols", "panels"))
_PANEL_FASTEST, _BLOCK_TAPS, _BLOCK_RUN = (
    _AT[n] for n in ("panel_fastest", "block_taps", "block_run")
)
_ZEROS, _OPERANDS, _RESULTS, _WHOLE = (_AT[n] for n in ("zeros", "operands", "results", "whole"))
_OPERAND_BASE = len(FIELDS)


@kernel
def _row_tables(params, addresses, shifts, row, count, taps_at, rows_at, ld):
    """Addresses of A's runs per tap and row, and of each operand's row."""
    rows_n = load_i64(params, _ROWS_N)
    rows_p = load_i64(params, _ROWS_P)
    taps_w = load_i64(params, _TAPS_W)
    taps = load_i64(params, _TAPS)
    height = load_i64(params, _HEIGHT)
    width = load_i64(params, _WIDTH)
    zeros = load_i64(params, _ZEROS)
    operands = load_i64(params, _OPERANDS)
    results = load_i64(params, _RESULTS)
    x = load_i64(addresses, 0) + load_i64(shifts, 0)
    x_n, x_h, x_w = load_i64(params, _X_N), load_i64(params, _X_H), load_i64(params, _X_W)
    n = row // rows_n
    p = (row - n * rows_n) // rows_p
    q = row - n * rows_n - p * rows_p
    for i in range(count):
        top = p * load_i64(params, _STRIDE_H) - load_i64(params, _PAD_H)
        left = q * load_i64(params, _STRIDE_W) - load_i64(params, _PAD_W)
        r = 0
        s = 0
        for tap in range(taps):
            h = top + r * load_i64(params, _DIL_H)
            w = left + s * load_i64(params, _DIL_W)
            inside = 0 <= h < height and 0 <= w < width
            taps_at[tap * ld + i] = x + n * x_n + h * x_h + w * x_w if inside else zeros
            s += 1
            if s == taps_w:
                s = 0
                r += 1
        for k in range(operands):
            if k == results:
                continue
            at = _OPERAND_BASE + k * OPERAND_FIELDS
            # That was the accumulator; the addresses are A, B, outputs, extras.
            slot = 2 + k - (k > results)
            rows_at[k * ld + i] = (
                load_i64(addresses, slot)
                + load_i64(shifts, slot)
                + n * load_i64(params, at)
                + p * load_i64(params, at + 1)
                + q * load_i64(params, at + 2)
            )
        q += 1
        if q == rows_p:
            q = 0
            p += 1
            if p * rows_p == rows_n:
                p = 0
                n += 1


@kernel
def add_whole(acc, total, count, add):
    """``total = acc``, or with ``add`` ``total += acc``: whole float32 as int32."""
    for i in range(count):
        value = np.int32(load_f32(acc, i))
        if add:
            value += load_i32(total, i)
        store_i32(total, i, value)


@functools.cache
def product_kernel(shape: int) -> Any:
    """The kernel whose inner kernel has ``SHAPES[shape]``; compiled when first called."""
    mr, nv = SHAPES[shape]
    half = mr // 2
    nr = nv * LANES

    @kernel
    def product(function, params, addresses, shifts, shift_count, first, last):
        """Units ``first <= u < last``; a unit is a block of rows times a panel of a group.

        Args:
            function: address of the epilogue's rows function.
            params: see `FIELDS`.
            addresses: of A, packed B, the outputs and the extras.
            shifts: per group, bytes added to each of the addresses (``shift_count`` of them).
        """
        block_rows = load_i64(params, _BLOCK_ROWS)
        blocks = load_i64(params, _BLOCKS)
        panels = load_i64(params, _PANELS)
        taps = load_i64(params, _TAPS)
        run = load_i64(params, _RUN)
        cols = load_i64(params, _COLS)
        operands = load_i64(params, _OPERANDS)
        results = load_i64(params, _RESULTS)
        block_taps = load_i64(params, _BLOCK_TAPS)
        block_run = load_i64(params, _BLOCK_RUN)
        taps_table = np.empty(taps * block_rows, np.int64)
        rows_table = np.empty(operands * block_rows, np.int64)
        steps = np.empty(2 * operands, np.int64)
        sums = np.empty(block_rows * nr + 16, np.float32)
        taps_at = taps_table.ctypes.data
        acc = (sums.ctypes.data + 63) // 64 * 64
        whole = load_i64(params, _WHOLE) != 0
        integers = np.empty(block_rows * nr + 16 if whole else 1, np.int32)
        total = (integers.ctypes.data + 63) // 64 * 64 if whole else acc
        for i in range(block_rows):
            rows_table[results * block_rows + i] = total + i * nr * 4
        for k in range(operands):
            steps[k] = load_i64(params, _OPERAND_BASE + k * OPERAND_FIELDS + 4)
        known = -1
        count = 0
        for unit in range(first, last):
            group = unit // (blocks * panels)
            rest = unit - group * blocks * panels
            if load_i64(params, _PANEL_FASTEST) != 0:
                block = rest // panels
                panel = rest - block * panels
            else:
                panel = rest // blocks
                block = rest - panel * blocks
            mine = shifts + group * shift_count * 8
            if known != group * blocks + block:
                known = group * blocks + block
                row = block * block_rows
                count = min(block_rows, load_i64(params, _ROWS) - row)
                _row_tables(params, addresses, mine, row, count, taps_table, rows_table, block_rows)
            b = load_i64(addresses, 1) + load_i64(mine, 1) + panel * taps * run * nr * 4
            more = 0
            if taps == 0:
                # A phase of a transposed convolution that no weight reaches.
                sums[:] = np.float32(0.0)
                integers[:] = 0
            for tap in range(0, taps, block_taps):
                now_taps = min(block_taps, taps - tap)
                for k in range(0, run, block_run):
                    now_run = min(block_run, run - k)
                    at = taps_at + tap * block_rows * 8
                    b_at = b + (tap * run + k) * nr * 4
                    i = 0
                    while i + mr <= count:
                        micro(
                            mr, nv, at + i * 8, block_rows, now_taps, k * 4, now_run,
                            b_at, run * nr * 4, acc + i * nr * 4, nr, more,
                        )  # fmt: skip
                        i += mr
                    if i + half <= count:
                        micro(
                            half, nv, at + i * 8, block_rows, now_taps, k * 4, now_run,
                            b_at, run * nr * 4, acc + i * nr * 4, nr, more,
                        )  # fmt: skip
                        i += half
                    while i < count:
                        micro(
                            1, nv, at + i * 8, block_rows, now_taps, k * 4, now_run,
                            b_at, run * nr * 4, acc + i * nr * 4, nr, more,
                        )  # fmt: skip
                        i += 1
                    if whole:
                        # The block is exact; the next one starts anew.
                        add_whole(acc, total, count * nr, tap + k > 0)
                    else:
                        more = 1
            for k in range(operands):
                column = load_i64(params, _OPERAND_BASE + k * OPERAND_FIELDS + 3)
                steps[operands + k] = panel * nr * column if k != results else 0
            width = min(nr, cols - panel * nr)
            call_rows(function, count, width, rows_table.ctypes.data, block_rows, steps.ctypes.data)

    return product


@kernel
def pack_panels(b, step_k, step_n, depth, cols, nr, packed, first, last):
    """Copy columns ``panel * nr ...`` of ``b[k, n]`` (float32, steps in elements) to ``packed``.

    Panels ``first <= panel < last``; columns beyond ``cols`` are zeros.
    """
    for panel in range(first, last):
        at = packed + panel * depth * nr * 4
        width = min(nr, cols - panel * nr)
        start = b + panel * nr * step_n * 4
        for k in range(depth):
            for j in range(width):
                store_f32(at, k * nr + j, load_f32(start, k * step_k + j * step_n))
            for j in range(width, nr):
                store_f32(at, k * nr + j, np.float32(0.0))
