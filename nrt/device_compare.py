"""How far a result on the device is from another: `nrt.trial.relative_error` without a download."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from nrt.cuda_kernels.compare_kernels import BLOCKS, SUMS, THREADS, compare_spec
from nrt.cuda_kernels.compiler import Cubin
from nrt.cuda_kernels.variant import KernelSpec
from nrt.problem import TensorSpec
from nrt.runtime.cuda import CudaDevice

__all__ = ["LEAST_BYTES", "device_error", "on_device"]

LEAST_BYTES = 1 << 20
"""Smaller results are compared on the host: that takes less than to compile the kernel."""

_MOST = (1 << 32) - BLOCKS * THREADS
"""Elements that an index of 32 bits reaches, its last step included."""


def on_device(spec: TensorSpec) -> bool:
    """Whether a result of ``spec`` is worth comparing there."""
    return spec.nbytes >= LEAST_BYTES and spec.span < _MOST


def device_error(
    cuda: CudaDevice,
    stream: Any,
    out: Any,
    ref: Any,
    spec: TensorSpec,
    binary: Callable[[KernelSpec], Cubin],
) -> float | None:
    """‖out − ref‖ / ‖ref‖ of two device buffers that hold ``spec``'s memory.

    What lies between the elements is to be equal too: both were filled alike before.

    Returns:
        None where the host must look closer: elements that are not finite differ, something was
        written between the elements, or the reference is zero.
    """
    cubin = binary(compare_spec(spec.dtype))
    sums = cuda.alloc(8 * SUMS * BLOCKS)
    kernel = cuda.load(cubin.code, cubin.entry)
    args = [out.ptr, ref.ptr, sums.ptr, (spec.span, "u32")]
    cuda.launch(stream, kernel, (BLOCKS, 1, 1), (THREADS, 1, 1), args, 0, (1, 1, 1), False)
    cuda.synchronize(stream)
    found = cuda.download(sums, (BLOCKS, SUMS), np.dtype(np.float64))
    difference, norm, odd = found.sum(axis=0).tolist()
    if odd > 0 or not math.isfinite(difference) or not 0 < norm < math.inf:
        return None
    return math.sqrt(difference / norm)
