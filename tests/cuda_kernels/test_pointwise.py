"""Pointwise kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sampling import some

from nrt.cuda_kernels.device import ARCHS
from nrt.cuda_kernels.pointwise import VARIANTS, PointwiseStrided, PointwiseVector
from nrt.dtypes import (
    BF16,
    BOOL,
    BYTES,
    FP8E4M3,
    FP16,
    FP32,
    FP64,
    INT8,
    INT32,
    INT64,
    UINT8,
    DType,
)
from nrt.ir.ops import (
    OPS,
    Add,
    Cast,
    Dequantize,
    Elementwise,
    Gelu,
    Less,
    Max,
    Mul,
    Not,
    Pointwise,
    Quantize,
    Relu,
    Sigmoid,
    Sum,
    Where,
)
from nrt.ir.ops.quantize import byte_rounding
from nrt.ir.pointwise import Builder
from nrt.problem import Problem

from .harness import compiled
from .int8_cases import random_bytes
from .kernel_emulator import KernelEmulator
from .memory_bound import (
    ARCHES,
    assert_emulates,
    assert_on_gpu,
    data,
    last,
    refusal,
    rows,
    sliced,
    task,
    variants_of,
)

NHWC = (0, 2, 3, 1)
_b = Builder("fff")
# max(a * scale + residual, 0), the end of a residual block.
_b8 = Builder("ff")
FUSED = _b.build(_b("max", _b("add", _b("mul", 0, 1), 2), _b.const(0.0)))

# fp8 between two layers: dequantized, changed, quantized.
REQUANTIZED = _b8.build(_b8("mul", _b8("max", _b8("mul", 0, _b8.const(0.75)), 1), _b8.const(2.5)))
FP8 = [
    task(
        Pointwise(REQUANTIZED, FP8E4M3),
        last(2, 16, 3, 5, dtype=FP8E4M3),
        rows(16, 1, 1, dtype=FP32),
        out=last,
    ),
    task(Quantize(FP8E4M3), rows(3, 37, dtype=FP16), rows(dtype=FP32)),
    task(Pointwise(REQUANTIZED, FP32), rows(5, 12, dtype=FP8E4M3), rows(12, dtype=FP32)),
    task(Relu(), rows(3, 7, dtype=FP8E4M3)),
    task(Cast(FP8E4M3), rows(21, dtype=FP64)),
]
TASKS = [
    task(Relu(), rows(3, 5, 7, dtype=FP32)),
    task(Add(), last(2, 16, 3, 5, dtype=FP16), last(2, 16, 3, 5, dtype=FP16), out=last),
    task(Mul(), last(2, 16, 3, 5, dtype=FP16), last(2, 16, 1, 1, dtype=FP16), out=last),
    task(Add(), rows(3, 12, 40, dtype=BF16), rows(40, dtype=BF16)),
    task(Mul(), rows(2, 5, 4, 4, dtype=FP32), rows(5, 1, 1, dtype=FP32)),
    task(
        Sigmoid(),
        sliced(2, 8, 3, 3, dtype=FP16, order=NHWC, more=24),
        out=sliced(2, 8, 3, 3, dtype=FP16, order=NHWC, more=16),
    ),
    task(Where(), rows(7, 9, dtype=BOOL), rows(7, 9, dtype=FP32), rows(dtype=FP32)),
    task(Cast(INT8), rows(33, dtype=FP32)),
    task(Cast(FP32), rows(33, dtype=INT64)),
    task(Cast(BOOL), rows(21, dtype=FP16)),
    task(Cast(FP16), rows(21, dtype=BOOL)),
    task(Add(), rows(3, 11, dtype=INT32), rows(11, dtype=INT32)),
    task(Less(), rows(3, 11, dtype=FP64), rows(3, 1, dtype=FP64)),
    task(Not(), rows(35, dtype=BOOL)),
    task(Gelu(), rows(65, dtype=FP64)),
    task(
        Pointwise(FUSED, FP16),
        last(1, 24, 5, 3, dtype=FP16),
        rows(24, 1, 1, dtype=FP32),
        last(1, 24, 5, 3, dtype=FP16),
        out=last,
    ),
    task(Max(), *(rows(2, 3, dtype=INT64) for _ in range(8))),
    task(Add(), rows(2, 1, 3, 1, 5, 1, dtype=FP32), rows(4, 1, 2, 1, 6, dtype=FP32)),
    task(Relu(), rows(4, 0, 3, dtype=FP32)),
    task(Relu(), rows(dtype=BF16)),
    *FP8,
]
REFUSED = [
    (PointwiseVector(), TASKS[11], "no vector fits: 11 contiguous elements"),
    (
        PointwiseVector(),
        task(Relu(), rows(1, 5, 4, 4, dtype=FP32), out=last),
        "input 0 has stride 16 along the output's contiguous dimension, expected 0 or 1",
    ),
    (
        PointwiseVector(),
        task(
            Relu(), rows(4, 8, dtype=FP32), out=sliced(4, 8, 1, dtype=FP32, order=(0, 1, 2), more=1)
        ),
        "the output has no contiguous dimension",
    ),
    (PointwiseStrided(), task(Sum(), *(rows(3, dtype=FP32) for _ in range(17))), "17 inputs"),
    (PointwiseStrided(), task(Relu(), rows(2**31, dtype=FP16)), "32-bit indices reach"),
]


@pytest.mark.parametrize("problem", TASKS, ids=str)
def test_emulated(problem: Problem) -> None:
    assert_emulates(VARIANTS, problem)


@pytest.mark.gpu
@pytest.mark.parametrize("problem", TASKS, ids=str)
def test_on_the_gpu(cuda_runner: Any, problem: Problem) -> None:
    assert_on_gpu(cuda_runner, VARIANTS, problem)


@pytest.mark.some(2)
@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("index", [1, 2, 6, 7, 12, 15])
def test_compiles_without_spills(arch: str, index: int) -> None:
    for variant in variants_of(VARIANTS, TASKS[index]):
        for cubin in compiled(variant, TASKS[index], arch):
            assert cubin.spills == 0


@pytest.mark.parametrize(("variant", "problem", "reason"), REFUSED, ids=lambda v: str(v)[:60])
def test_refuses(variant: Any, problem: Problem, reason: str) -> None:
    assert reason in refusal(variant, problem)


def test_casts_to_integers_saturate() -> None:
    x = np.array([300, -300, 127.5, -128.5, np.nan, np.inf, -np.inf, 1.9, -1.9], np.float32)
    assert_emulates(VARIANTS, task(Cast(INT8), rows(9, dtype=FP32)), [x])


def _sum_of_bytes(left: DType, right: DType, dtype: DType) -> Problem:
    """``1.5 a - b / 2``; all of it exact in float32."""
    b = Builder("ii")
    value = b("add", *(b("mul", b("to_f", k), b.const(1.5 - 2 * k)) for k in (0, 1)))
    program = byte_rounding(b.build(value), dtype)
    x, y = (last(2, 32, 3, 5, dtype=d) for d in (left, right))
    return task(Pointwise(program, dtype), x, y, out=last)


def _quantized_halves(dtype: DType) -> Problem:
    b = Builder("f")
    program = byte_rounding(b.build(b("mul", 0, b.const(16.0))), dtype)
    return task(Pointwise(program, dtype), rows(3, 40, dtype=FP16))


BYTE_TASKS = [
    _sum_of_bytes(INT8, INT8, INT8),
    _sum_of_bytes(UINT8, UINT8, UINT8),
    _sum_of_bytes(UINT8, INT8, UINT8),
    _quantized_halves(INT8),
    _quantized_halves(UINT8),
    task(Quantize(UINT8), rows(3, 40, dtype=FP16), rows(dtype=FP32), rows(dtype=UINT8)),
]


def _byte_inputs(problem: Problem) -> list[np.ndarray]:
    """The whole range, halves and what is beyond; a scale of 1/16."""
    rng = np.random.default_rng()
    return [
        random_bytes(s, rng)
        if s.dtype in BYTES
        else np.full(s.shape, 1 / 16, np.float32)
        if s.dtype is FP32
        else (rng.integers(-900, 901, s.shape) / 32).astype(np.float16)
        for s in problem.inputs
    ]


@pytest.mark.parametrize("problem", BYTE_TASKS, ids=str)
def test_bytes_are_rounded_and_saturated(problem: Problem) -> None:
    inputs = _byte_inputs(problem)
    (expected,) = problem.op.reference(*inputs)
    info = np.iinfo(problem.y.dtype.numpy)
    assert (expected.min(), expected.max()) == (info.min, info.max)
    assert_emulates(VARIANTS, problem, inputs)


@pytest.mark.parametrize("dtype", BYTES, ids=str)
def test_vectors_store_nan_as_0(dtype: DType) -> None:
    problem = _quantized_halves(dtype)
    x = np.full((3, 40), np.nan, np.float16)
    x[1] = 1
    expected = np.zeros((3, 40), dtype.numpy)
    expected[1] = 16
    for config in VARIANTS[1].configs(problem, ARCHS["sm_80"]):
        (out,) = KernelEmulator().run(VARIANTS[1], problem, config, [x])
        assert np.array_equal(out, expected)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", BYTES, ids=str)
def test_vectors_store_nan_as_0_on_the_gpu(cuda_runner: Any, dtype: DType) -> None:
    problem = _quantized_halves(dtype)
    x = np.full((3, 40), np.nan, np.float16)
    x[1] = 1
    expected = np.zeros((3, 40), dtype.numpy)
    expected[1] = 16
    for config in VARIANTS[1].configs(problem, cuda_runner.device):
        (out,) = cuda_runner.run(VARIANTS[1], problem, config, [x])
        assert np.array_equal(out, expected)


@pytest.mark.gpu
@pytest.mark.parametrize("problem", BYTE_TASKS, ids=str)
def test_bytes_are_exact_on_the_gpu(cuda_runner: Any, problem: Problem) -> None:
    inputs = _byte_inputs(problem)
    (expected,) = problem.op.reference(*inputs)
    for variant in variants_of(VARIANTS, problem):
        for config in variant.configs(problem, cuda_runner.device):
            (out,) = cuda_runner.run(variant, problem, config, inputs)
            assert np.array_equal(out, expected), (variant.name, config)


@pytest.mark.parametrize("problem", BYTE_TASKS[:2], ids=str)
def test_bytes_move_16_a_thread(problem: Problem) -> None:
    device = ARCHS["sm_90a"]
    assert VARIANTS[1].configs(problem, device)[0][0] == 16
    (cubin,) = compiled(VARIANTS[1], problem, "sm_90a")
    assert cubin.spills == 0


def lone(op: type[Elementwise]) -> Problem | None:
    """A problem of ``op`` with default attributes on fp32, or on bool where it wants that."""
    if op in (Cast, Dequantize, Pointwise, Quantize, Where):
        return None
    for dtype in (FP32, BOOL):
        if "fib"[(dtype is BOOL) * 2] in op.accepts:
            spec = rows(37, dtype=dtype)
            return task(op(), *[spec] * max(1, min(op.arity[1], max(op.arity[0], 2))))
    return None


EVERY = [p for p in (lone(op) for op in OPS if issubclass(op, Elementwise)) if p is not None]


@pytest.mark.slow
def test_ops_compile(rng: np.random.Generator) -> None:
    for problem in some(EVERY, 10, rng):
        for variant in variants_of(VARIANTS, problem):
            assert compiled(variant, problem, "sm_80")


@pytest.mark.gpu
@pytest.mark.parametrize("problem", EVERY, ids=lambda p: p.op.name)
def test_every_op_on_the_gpu(cuda_runner: Any, problem: Problem) -> None:
    assert_on_gpu(cuda_runner, VARIANTS, problem, most=1)


def test_one_binary_serves_many_sizes() -> None:
    device, variant = ARCHS["sm_80"], PointwiseVector()
    kernels = {
        variant.emit(problem, (4, 1), device).launches[0].kernel
        for problem in (task(Relu(), rows(n, 16, dtype=FP32)) for n in (1, 7, 4096))
    }
    assert len(kernels) == 1
    assert data(TASKS[0])[0].shape == (3, 5, 7)
