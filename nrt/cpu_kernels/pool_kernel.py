"""The kernel of `nrt.cpu_kernels.pooling`."""

from __future__ import annotations

import numpy as np

from nrt.cpu_kernels.jit import inlined, kernel
from nrt.cpu_kernels.simd import load_f32, load_i64, store_f32

__all__ = ["pool"]


@inlined
def _accumulate(maximum, acc, x, channels, step):
    if maximum:
        for c in range(channels):
            value = load_f32(x, c * step)
            best = load_f32(acc, c)
            store_f32(acc, c, value if value >= best or value != value else best)  # noqa: PLR0124
    else:
        for c in range(channels):
            store_f32(acc, c, load_f32(acc, c) + load_f32(x, c * step))


@kernel
def pool(params, x, y, first, last):
    """Output lines ``first <= n * P + p < last`` of a max (``params[0]`` = 1) or average pool.

    ``params``: maximum, channels, P, Q, R, S, strides, pads (top, left), dilations, H, W, byte
    strides of the input's image, line, pixel and channel, the same of the output,
    count_include_pad, the padded size (bottom and right ends of what counts).
    """
    maximum = load_i64(params, 0) != 0
    channels, lines, width_out = load_i64(params, 1), load_i64(params, 2), load_i64(params, 3)
    taps_h, taps_w = load_i64(params, 4), load_i64(params, 5)
    stride_h, stride_w = load_i64(params, 6), load_i64(params, 7)
    pad_h, pad_w = load_i64(params, 8), load_i64(params, 9)
    dilation_h, dilation_w = load_i64(params, 10), load_i64(params, 11)
    height, width = load_i64(params, 12), load_i64(params, 13)
    x_n, x_h, x_w, x_c = (
        load_i64(params, 14), load_i64(params, 15), load_i64(params, 16), load_i64(params, 17),
    )  # fmt: skip
    y_n, y_h, y_w, y_c = (
        load_i64(params, 18), load_i64(params, 19), load_i64(params, 20), load_i64(params, 21),
    )  # fmt: skip
    include = load_i64(params, 22) != 0
    end_h, end_w = load_i64(params, 23), load_i64(params, 24)
    sums = np.empty(channels, np.float32)
    acc = sums.ctypes.data
    start = np.float32(-np.inf) if maximum else np.float32(0.0)
    step_x, step_y = x_c // 4, y_c // 4
    for unit in range(first, last):
        n = unit // lines
        p = unit - n * lines
        top = p * stride_h - pad_h
        for q in range(width_out):
            left = q * stride_w - pad_w
            sums[:] = start
            count = 0
            for r in range(taps_h):
                h = top + r * dilation_h
                for s in range(taps_w):
                    w = left + s * dilation_w
                    inside = 0 <= h < height and 0 <= w < width
                    counted = h < end_h and w < end_w if include else inside
                    count += 1 if counted else 0
                    if inside:
                        at = x + n * x_n + h * x_h + w * x_w
                        if step_x == 1:
                            _accumulate(maximum, acc, at, channels, 1)
                        else:
                            _accumulate(maximum, acc, at, channels, step_x)
            out = y + n * y_n + p * y_h + q * y_w
            scale = np.float32(1.0) if maximum else np.float32(1.0) / np.float32(count)
            if not maximum and count == 0:
                # Nothing to average: 0 / 0, as the definition gives.
                scale = np.float32(np.nan)
            if step_y == 1:
                for c in range(channels):
                    store_f32(out, c, load_f32(acc, c) * scale)
            else:
                for c in range(channels):
                    store_f32(out, c * step_y, load_f32(acc, c) * scale)
