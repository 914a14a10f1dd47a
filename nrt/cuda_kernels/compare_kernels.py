"""How far two results are apart, summed up on the device."""

from __future__ import annotations

from typing import Any

from numba import cuda
from numba.cuda import types

from nrt.cuda_kernels.codegen import loader, pointer
from nrt.cuda_kernels.variant import KernelSpec
from nrt.dtypes import FP64, DType

__all__ = ["BLOCKS", "SUMS", "THREADS", "compare_spec"]

THREADS = 256
BLOCKS = 1024
"""More than run at once on any GPU; every one leaves `SUMS` numbers."""

SUMS = 3

f64 = types.float64
u32 = types.uint32


def compare_spec(dtype: DType) -> KernelSpec:
    """The kernel for memory that holds ``dtype``: ``(a, b, sums[BLOCKS][SUMS], n)``.

    Of elements that are finite on both sides a block sums (a - b)² and b², in float64 and in an
    order that is always the same; of the others it counts those whose bits differ.
    """
    return KernelSpec("nrt.cuda_kernels.compare_kernels:_compare_kernel", (dtype,), THREADS)


def _compare_kernel(dtype: DType) -> tuple[Any, Any]:
    load = loader(dtype)

    def kernel(a, b, sums, n):
        part = cuda.shared.array(3 * 256, f64)
        t = u32(cuda.threadIdx.x)
        apart = f64(0)
        norm = f64(0)
        odd = f64(0)
        i = u32(u32(u32(cuda.blockIdx.x) * u32(256)) + t)
        step = u32(u32(cuda.gridDim.x) * u32(256))
        while i < n:
            x = f64(load(a, i))
            y = f64(load(b, i))
            # Of infinities and NaN the difference with itself is NaN.
            if x - x == f64(0) and y - y == f64(0):
                apart += (x - y) * (x - y)
                norm += y * y
            elif a[i] != b[i]:
                odd += f64(1)
            i = u32(i + step)
        part[t] = apart
        part[u32(t + u32(256))] = norm
        part[u32(t + u32(512))] = odd
        cuda.syncthreads()
        half = u32(128)
        while half > u32(0):
            if t < half:
                for k in range(3):
                    at = u32(t + u32(256 * k))
                    part[at] += part[u32(at + half)]
            cuda.syncthreads()
            half = u32(half >> u32(1))
        if t < u32(3):
            sums[u32(u32(u32(cuda.blockIdx.x) * u32(3)) + t)] = part[u32(t * u32(256))]

    cell = pointer(dtype)
    return kernel, types.void(cell, cell, pointer(FP64), types.uint32)
