"""The kernel of `nrt.cpu_kernels.histogram`."""

from __future__ import annotations

import numpy as np

from nrt.cpu_kernels.jit import kernel
from nrt.ir.ops.histogram import BINS, NEGATIVE, POSITIVE, ZEROS

__all__ = ["histogram"]

_SHIFT = 24 - (BINS.bit_length() - 1)


@kernel
def histogram(bits, words):
    """Count ``bits[n]``, fp32 as int32, into the zeros of ``words``; see `AbsHistogram`."""
    high = np.int32(0)
    # As integers, negative floats are below zero, the largest magnitude nearest to it.
    low = np.int32(-(2**31))
    for w in bits:
        high = max(high, w)
        low = max(low, w if w < 0 else np.int32(-(2**31)))
    words[POSITIVE] = high
    words[NEGATIVE] = np.int64(low) + 2**31
    top = max(max(words[POSITIVE], words[NEGATIVE]) >> 23, 1) + _SHIFT
    for w in bits:
        m = np.int64(w) & 0x7FFFFFFF
        exponent = m >> 23
        significand = (m & 0x7FFFFF) | ((exponent > 0) << 23)
        index = significand >> min(top - max(exponent, 1), 31)
        words[index if m else ZEROS] += 1
