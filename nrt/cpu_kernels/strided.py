"""The kernel that walks rows of strided operands."""

from __future__ import annotations

import numpy as np

from nrt.cpu_kernels.jit import kernel
from nrt.cpu_kernels.simd import call_rows, load_i64

__all__ = ["strided"]

_BATCH = 64


@kernel
def strided(function, params, base, first, last, col_first, col_last):
    """Rows ``first <= r < last`` and columns ``col_first <= c < col_last`` of a strided problem.

    Args:
        function: address of a rows function of ``n`` operands.
        params: ``[n, nd, column block, outer sizes (nd), byte strides (n x nd), column steps (n),
            column byte steps (n)]``.
        base: addresses of the operands (n).
    """
    n = load_i64(params, 0)
    nd = load_i64(params, 1)
    block = load_i64(params, 2)
    sizes = params + 24
    strides = sizes + 8 * nd
    column_steps = strides + 8 * n * nd
    column_bytes = column_steps + 8 * n
    table = np.empty(n * _BATCH, np.int64)
    steps = np.empty(2 * n, np.int64)
    table_at = table.ctypes.data
    steps_at = steps.ctypes.data
    for k in range(n):
        steps[k] = load_i64(column_steps, k)
    for row in range(first, last, _BATCH):
        count = min(_BATCH, last - row)
        for i in range(count):
            for k in range(n):
                table[k * _BATCH + i] = load_i64(base, k)
            rest = row + i
            for d in range(nd - 1, -1, -1):
                size = load_i64(sizes, d)
                index = rest % size
                rest = rest // size
                for k in range(n):
                    table[k * _BATCH + i] += index * load_i64(strides, k * nd + d)
        for col in range(col_first, col_last, block):
            for k in range(n):
                steps[n + k] = col * load_i64(column_bytes, k)
            call_rows(function, count, min(block, col_last - col), table_at, _BATCH, steps_at)
