"""The kernel of `nrt.cpu_kernels.depthwise`."""

from __future__ import annotations

import numpy as np

from nrt.cpu_kernels.jit import inlined, kernel
from nrt.cpu_kernels.simd import (
    LANES,
    call_rows,
    depth_micro,
    load_f32,
    load_i64,
    store_f32,
)

__all__ = ["depthwise"]

_OPERANDS_AT = 18
"""Parameters before those of the operands."""
_HIGH = 6
"""Positions at once: with two vectors each, 12 sums hide the latency of a multiply-add."""


@inlined
def _positions(high, x, x_step, taps_h, taps_w, x_h, x_w, w, w_h, w_w, acc, channels):
    """All channels of ``high`` (1 or `_HIGH`) positions that see the same taps."""
    c = 0
    while c + 2 * LANES <= channels:
        if high == 1:
            depth_micro(
                1, 2, x + c * 4, x_step, taps_h, taps_w, x_h, x_w, w + c * 4, w_h, w_w,
                acc + c * 4, channels,
            )  # fmt: skip
        else:
            depth_micro(
                _HIGH, 2, x + c * 4, x_step, taps_h, taps_w, x_h, x_w, w + c * 4, w_h, w_w,
                acc + c * 4, channels,
            )  # fmt: skip
        c += 2 * LANES
    while c + LANES <= channels:
        if high == 1:
            depth_micro(
                1, 1, x + c * 4, x_step, taps_h, taps_w, x_h, x_w, w + c * 4, w_h, w_w,
                acc + c * 4, channels,
            )  # fmt: skip
        else:
            depth_micro(
                _HIGH, 1, x + c * 4, x_step, taps_h, taps_w, x_h, x_w, w + c * 4, w_h, w_w,
                acc + c * 4, channels,
            )  # fmt: skip
        c += LANES
    for i in range(high):
        for rest in range(c, channels):
            total = np.float32(0.0)
            for r in range(taps_h):
                for s in range(taps_w):
                    value = load_f32(x + i * x_step + r * x_h + s * x_w, rest)
                    total += value * load_f32(w + r * w_h + s * w_w, rest)
            store_f32(acc, i * channels + rest, total)


@inlined
def _first_tap(start, dilation):
    """The first tap whose position ``start + tap * dilation`` is not negative."""
    return 0 if start >= 0 else (-start + dilation - 1) // dilation


@inlined
def _last_tap(start, dilation, size, taps):
    """One past the last tap whose position is below ``size``."""
    if start >= size:
        return 0
    return min(taps, (size - start + dilation - 1) // dilation)


@kernel
def depthwise(function, params, addresses, first, last):
    """Output lines ``first <= n * P + p < last``.

    ``params``: channels, P, Q, R, S, strides, pads, dilations, H, W, byte strides of the input's
    image, line and pixel, number of operands, and of results among them, which come first, before
    the accumulator; then per operand byte strides of image, line and position, and the channel
    step in elements. ``addresses``: x, w, outputs, extras.
    """
    channels, lines = load_i64(params, 0), load_i64(params, 1)
    width_out = load_i64(params, 2)
    taps_h, taps_w = load_i64(params, 3), load_i64(params, 4)
    stride_h, stride_w = load_i64(params, 5), load_i64(params, 6)
    pad_h, pad_w = load_i64(params, 7), load_i64(params, 8)
    dilation_h, dilation_w = load_i64(params, 9), load_i64(params, 10)
    height, width = load_i64(params, 11), load_i64(params, 12)
    x_n, x_h, x_w = load_i64(params, 13), load_i64(params, 14), load_i64(params, 15)
    operands, results = load_i64(params, 16), load_i64(params, 17)
    x, w = load_i64(addresses, 0), load_i64(addresses, 1)
    sums = np.empty(width_out * channels + LANES, np.float32)
    acc = sums.ctypes.data
    table = np.empty(operands * width_out, np.int64)
    steps = np.zeros(2 * operands, np.int64)
    for k in range(operands):
        steps[k] = load_i64(params, _OPERANDS_AT + 4 * k + 3)
    for unit in range(first, last):
        n = unit // lines
        p = unit - n * lines
        top = p * stride_h - pad_h
        r0 = _first_tap(top, dilation_h)
        r1 = _last_tap(top, dilation_h, height, taps_h)
        line = x + n * x_n + (top + r0 * dilation_h) * x_h
        q = 0
        while q < width_out:
            left = q * stride_w - pad_w
            s0 = _first_tap(left, dilation_w)
            s1 = _last_tap(left, dilation_w, width, taps_w)
            at = line + (left + s0 * dilation_w) * x_w
            w_at = w + (r0 * taps_w + s0) * channels * 4
            into = acc + q * channels * 4
            if r1 <= r0 or s1 <= s0:
                for c in range(channels):
                    store_f32(into, c, np.float32(0.0))
                q += 1
                continue
            rightmost = (q + _HIGH - 1) * stride_w - pad_w + (taps_w - 1) * dilation_w
            # Positions at once must all see every tap of the line.
            if s0 == 0 and q + _HIGH <= width_out and rightmost < width:
                _positions(
                    _HIGH, at, stride_w * x_w, r1 - r0, taps_w, dilation_h * x_h, dilation_w * x_w,
                    w_at, taps_w * channels * 4, channels * 4, into, channels,
                )  # fmt: skip
                q += _HIGH
                continue
            _positions(
                1, at, stride_w * x_w, r1 - r0, s1 - s0, dilation_h * x_h, dilation_w * x_w,
                w_at, taps_w * channels * 4, channels * 4, into, channels,
            )  # fmt: skip
            q += 1
        for k in range(operands):
            at = acc
            step_n, step_p, step_q = 0, 0, channels * 4
            if k != results:
                at = load_i64(addresses, 2 + k - (k > results))
                step_n = load_i64(params, _OPERANDS_AT + 4 * k)
                step_p = load_i64(params, _OPERANDS_AT + 4 * k + 1)
                step_q = load_i64(params, _OPERANDS_AT + 4 * k + 2)
            for i in range(width_out):
                table[k * width_out + i] = at + n * step_n + p * step_p + i * step_q
        call_rows(function, width_out, channels, table.ctypes.data, width_out, steps.ctypes.data)
