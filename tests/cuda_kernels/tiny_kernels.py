"""Small kernels, right and wrong ones, for the tests of the compiler and its worker processes."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from numba import cuda
from numba.cuda import types

from nrt.cuda_kernels import ptx_asm
from nrt.cuda_kernels.codegen import pointer
from nrt.cuda_kernels.epilogue import make_store
from nrt.cuda_kernels.variant import KernelSpec
from nrt.dtypes import FP32, DType

u32 = types.uint32
f32 = types.float32


def spec(name: str, *params: Any, threads: int = 32) -> KernelSpec:
    """The spec of a factory of this module."""
    return KernelSpec(f"{__name__}:{name}", params, threads)


def _scale(dtype: DType, factor: float) -> tuple[Any, Any]:
    """y[i] = x[i] * factor, through a generated epilogue."""
    del factor
    store = make_store(None, (), dtype, 1)

    def kernel(x, y, n):
        i = u32(u32(cuda.blockIdx.x * cuda.blockDim.x) + cuda.threadIdx.x)
        if i < n:
            store(x[i], i, u32(0), i, y, x, x, x, x, x, x)

    return kernel, types.void(pointer(FP32), pointer(dtype), u32)


def _shared(count: int) -> tuple[Any, Any]:
    """Uses ``count`` floats of static shared memory."""

    def kernel(x):
        tile = cuda.shared.array(count, f32)
        tile[cuda.threadIdx.x] = x[cuda.threadIdx.x]
        cuda.syncthreads()
        x[cuda.threadIdx.x] = tile[u32(count - 1) - cuda.threadIdx.x]

    return kernel, types.void(pointer(FP32))


def _dynamic(count: int) -> tuple[Any, Any]:
    """Uses ``count`` floats of static shared memory and some that the launch provides."""

    def kernel(x):
        tile = cuda.shared.array(count, f32)
        more = cuda.shared.array(0, f32)
        i = u32(cuda.threadIdx.x)
        tile[i] = x[i]
        more[i] = x[u32(i + u32(32))]
        cuda.syncthreads()
        x[i] = tile[u32(u32(31) - i)] + more[u32(u32(31) - i)]

    return kernel, types.void(pointer(FP32))


def _spilling() -> tuple[Any, Any]:
    """An array that is indexed at run time lives in local memory."""

    def kernel(x, n):
        local = cuda.local.array(1024, f32)
        for i in range(n):
            local[i] = x[i]
        x[0] = local[u32(n)]

    return kernel, types.void(pointer(FP32), u32)


def _untypable(letter: str) -> tuple[Any, Any]:
    def kernel(x):
        x[0] = letter + 1

    return kernel, types.void(pointer(FP32))


def _unlinkable() -> tuple[Any, Any]:
    bad = ptx_asm.asm("bad", "no.such.instruction $0, $1;", [f32], [f32])

    def kernel(x):
        x[0] = bad(x[1])

    return kernel, types.void(pointer(FP32))


def _raising(text: str) -> tuple[Any, Any]:
    raise KeyError(text)


def _dying(code: int) -> tuple[Any, Any]:
    os._exit(code)


def _printing(text: str) -> tuple[Any, Any]:
    """Prints while it is compiled, as libraries do."""
    print(text)  # noqa: T201
    return _scale(FP32, 1.0)


def _counting(folder: str) -> tuple[Any, Any]:
    """Leaves a file for every time that it is compiled."""
    Path(folder, f"{os.getpid()}-{time.monotonic_ns()}").touch()
    return _scale(FP32, 1.0)
