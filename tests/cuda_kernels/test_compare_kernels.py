"""Two results are compared on the device as the host compares them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nrt.cuda_kernels.compare_kernels import SUMS, THREADS, _compare_kernel, compare_spec
from nrt.cuda_kernels.compiler import compile_kernel
from nrt.cuda_kernels.device import ARCHS
from nrt.cuda_kernels.variant import Launch
from nrt.device_compare import device_error
from nrt.dtypes import BF16, BOOL, FP8E4M3, FP16, FP32, FP64, INT8, INT32, UINT8, DType
from nrt.problem import TensorSpec
from nrt.trial import relative_error

from .kernel_emulator import KernelEmulator, Pointer

TYPES = [FP32, FP16, BF16, FP64, INT8, UINT8, INT32, BOOL, FP8E4M3]
EXACT = 1e-12
"""Both sum squares in float64, in another order."""


def pair(dtype: DType, size: int, rng: np.random.Generator) -> tuple[Any, Any]:
    if dtype.is_float:
        a = rng.standard_normal(size)
        return a.astype(dtype.numpy), (a * 1.25).astype(dtype.numpy)
    return tuple(rng.integers(0, 2, size).astype(dtype.numpy) for _ in range(2))


def test_emulated(rng: np.random.Generator) -> None:
    size, blocks = 700, 2
    a, b = pair(FP32, size, rng)
    a[5] = b[5] = np.inf  # alike: no difference, and not in the norm
    a[6], b[7] = np.nan, -np.inf
    sums = np.zeros(SUMS * blocks)
    kernel, _ = _compare_kernel(FP32)
    launch = Launch(compare_spec(FP32), (blocks, 1, 1), (THREADS, 1, 1), ())
    emulator = KernelEmulator()
    memory = [Pointer(data, name) for data, name in ((a, "a"), (b, "b"), (sums, "sums"))]
    emulator._launch(emulator._kernel(kernel), launch, [*memory, size])
    found = sums.reshape(blocks, SUMS).sum(axis=0)
    good = np.isfinite(a) & np.isfinite(b)
    x, y = a[good].astype(np.float64), b[good].astype(np.float64)
    np.testing.assert_allclose(found, [np.sum((x - y) ** 2), np.sum(y**2), 2], rtol=EXACT)


@pytest.mark.some(2)
@pytest.mark.parametrize("arch", ["sm_75", "sm_90a"])
@pytest.mark.parametrize("dtype", [FP16, FP8E4M3, FP64], ids=str)
def test_compiles(arch: str, dtype: DType) -> None:
    cubin = compile_kernel(compare_spec(dtype), ARCHS[arch])
    assert cubin.spills == 0
    assert cubin.shared == 3 * THREADS * 8


@pytest.mark.gpu
@pytest.mark.parametrize("size", [1, 257, 1_000_003])
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_on_the_gpu(cuda_runner: Any, rng: np.random.Generator, dtype: DType, size: int) -> None:
    cuda = cuda_runner.cuda
    spec = TensorSpec.dense((size,), dtype)
    a, b = pair(dtype, size, rng)
    b[0] = 1

    def error(x: Any, y: Any) -> float | None:
        found, wanted = (cuda_runner.output_of(data, spec) for data in (x, y))

        def binary(spec: Any) -> Any:
            return compile_kernel(spec, cuda_runner.device)

        return device_error(cuda, cuda_runner.stream, found, wanted, spec, binary)

    assert error(a, b) == pytest.approx(relative_error(a, b), rel=EXACT)
    assert error(b, b) == 0.0
    if dtype.is_float:
        a[size // 2] = np.nan
        assert error(a, b) is None
        assert error(b, a) is None
