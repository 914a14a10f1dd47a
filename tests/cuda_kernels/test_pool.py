"""Max and average pooling kernels."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from nrt.cuda_kernels.device import ARCHS
from nrt.cuda_kernels.pool import VARIANTS, PoolNhwc, PoolStrided
from nrt.cuda_kernels.pool_strips import PoolStrips
from nrt.dtypes import BF16, BOOL, FP8E4M3, FP16, FP32, FP64, INT8, INT16, UINT8
from nrt.ir.ops import AveragePool, MaxPool
from nrt.ir.pointwise import Builder, Instr, Program
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
THREE = MaxPool((3, 3), (2, 2), (1, 1, 1, 1))
TASKS = [
    task(THREE, last(2, 16, 7, 9, dtype=FP16), out=last),
    task(
        MaxPool((3, 3), (2, 2), (0, 0, 1, 1), ceil_mode=True),
        last(1, 12, 6, 7, dtype=FP32),
        out=last,
    ),
    task(MaxPool((2, 3), (1, 2), (0, 2, 1, 0), (3, 2)), rows(2, 3, 9, 11, dtype=BF16)),
    task(AveragePool((3, 3), (2, 2), (1, 1, 1, 1), ceil_mode=True), rows(2, 3, 6, 8, dtype=FP32)),
    task(
        AveragePool((3, 3), (2, 2), (1, 0, 0, 1), ceil_mode=True, count_include_pad=True),
        last(1, 10, 6, 8, dtype=FP32),
        out=last,
    ),
    task(
        AveragePool((3, 2), (2, 1), (1, 0, 0, 1), (2, 1), count_include_pad=True),
        last(1, 16, 6, 8, dtype=FP16),
        out=sliced(1, 16, 2, 8, dtype=FP16, order=NHWC, more=24),
    ),
    task(MaxPool((3,), (2,), (1, 1), (1,)), rows(2, 3, 9, dtype=INT8)),
    task(MaxPool((2, 2, 2), (2, 2, 2), (0,) * 6, (1, 1, 1)), rows(1, 2, 5, 4, 4, dtype=FP32)),
    task(AveragePool((9, 9), (1, 1), (0,) * 4), last(1, 8, 10, 9, dtype=BF16), out=last),
    task(THREE, last(1, 7, 1, 1, dtype=FP16), out=last),
    task(
        MaxPool((3, 2), (1, 2), (1, 0, 1, 1), ceil_mode=True),
        sliced(2, 12, 9, 5, dtype=BF16, order=NHWC, more=4),
        out=sliced(2, 12, 9, 3, dtype=BF16, order=NHWC, more=8),
    ),
    task(AveragePool((3, 3), (1, 1), (1, 1, 1, 1)), last(2, 8, 7, 6, dtype=FP16), out=last),
    task(AveragePool((2, 2), (2, 2), (0,) * 4), last(1, 4, 7, 6, dtype=FP32), out=last),
    task(MaxPool((2, 3), (3, 1), (0, 1, 0, 1)), last(1, 4, 9, 5, dtype=FP32), out=last),
]


def _norm() -> Program:
    b = Builder("fff")
    return b.build(b("max", b("add", b("mul", 0, 1), 2), b.const(0.0)))


def _gated() -> Program:
    b = Builder("fbf")
    return b.build(b("where", 1, b("add", 0, 2), b.const(-0.5)))


NORM, GATED = _norm(), _gated()
ENDED = [
    # Operands per channel and a residual, on packed halves.
    task(
        replace(THREE, epilogue=NORM),
        last(2, 16, 7, 9, dtype=FP16),
        rows(16, 1, 1, dtype=FP32),
        last(2, 16, 4, 5, dtype=FP16),
        out=last,
    ),
    # Stored wider; a mask over pixels, one element for all.
    task(
        AveragePool((3, 3), (2, 2), (1, 0, 0, 1), ceil_mode=True, epilogue=GATED, out_dtype=FP32),
        last(2, 12, 6, 8, dtype=BF16),
        rows(2, 1, 3, 4, dtype=BOOL),
        rows(1, dtype=FP32),
        out=last,
    ),
    # Planes; only the type changes.
    task(
        MaxPool((2, 3), (1, 2), (0, 2, 1, 0), out_dtype=FP16),
        rows(2, 3, 9, 11, dtype=FP32),
    ),
    task(
        AveragePool((3,), (2,), (1, 1), (1,), epilogue=NORM),
        rows(2, 5, 9, dtype=FP32),
        rows(5, 1, dtype=FP32),
        rows(2, 1, 5, dtype=BF16),
    ),
    # A slice of the channels, whose pixels lie apart.
    task(
        AveragePool((2, 2), (2, 2), (0,) * 4, epilogue=NORM),
        last(2, 8, 6, 4, dtype=FP32),
        rows(8, 1, 1, dtype=FP32),
        rows(8, 1, 1, dtype=FP16),
        out=sliced(2, 8, 3, 2, dtype=FP32, order=NHWC, more=8),
    ),
]
STRIPS = [TASKS[k] for k in (0, 1, 4, 10, 11, 12, 13)] + [ENDED[k] for k in (0, 1, 4)]
FP8 = [
    task(THREE, last(2, 32, 7, 6, dtype=FP8E4M3), out=last),
    task(THREE, rows(1, 3, 5, 8, dtype=FP8E4M3)),
    # The mean of a float is quantized.
    task(
        AveragePool((2, 2), (2, 2), (0, 1, 1, 0), epilogue=NORM, out_dtype=FP8E4M3),
        last(2, 16, 7, 6, dtype=FP16),
        rows(16, 1, 1, dtype=FP32),
        rows(16, 1, 1, dtype=FP32),
        out=last,
    ),
]
TASKS += [*ENDED, *FP8]
STRIPS.append(FP8[2])
REFUSED = [
    (
        PoolNhwc(),
        task(THREE, rows(1, 8, 5, 5, dtype=FP16)),
        "input has channel stride 25, expected 1",
    ),
    (
        PoolNhwc(),
        task(THREE, last(1, 8, 5, 5, dtype=FP16)),
        "output has channel stride 9, expected 1",
    ),
    (PoolNhwc(), task(THREE, last(1, 7, 5, 5, dtype=FP16), out=last), "7 channels with strides"),
    (PoolStrips(), TASKS[7], "3 spatial dimensions, expected 2"),
    (PoolStrips(), task(THREE, last(1, 8, 5, 5, dtype=INT16), out=last), "elements are int16"),
    (PoolStrips(), task(THREE, last(1, 6, 5, 5, dtype=INT8), out=last), "6 channels with strides"),
    (PoolStrips(), task(THREE, rows(1, 8, 5, 5, dtype=FP16)), "input has channel stride 25"),
    (PoolStrips(), TASKS[5], "dilations (2, 1), expected none"),
    (PoolStrips(), TASKS[8], "two rows of (9, 9) windows are more than 64 loads"),
    (PoolStrips(), TASKS[9], "7 channels with strides"),
    (
        PoolStrips(),
        task(
            AveragePool((2, 2), (1, 1), (0, 0, 3, 0), count_include_pad=True),
            last(1, 8, 4, 4, dtype=FP16),
            out=last,
        ),
        "a window has nothing of the input",
    ),
    (
        PoolStrided(),
        task(replace(THREE, out_dtype=FP32), rows(1, 8, 5, 5, dtype=FP64)),
        "an epilogue computes in fp32, the pool in fp64",
    ),
    *(
        (
            variant,
            task(
                replace(THREE, epilogue=Program("ffffffff", (Instr("add", (0, 7)),), (8,))),
                *[last(1, 8, 1, 1, dtype=FP32)] * 8,
                out=last,
            ),
            "the epilogue reads 7 operands, kernels have 6",
        )
        for variant in VARIANTS
    ),
    (PoolStrided(), task(THREE, rows(2, 2**15, 2**8, 2**8, dtype=FP16)), "32-bit indices reach"),
]


@pytest.mark.parametrize("problem", TASKS, ids=str)
def test_emulated(problem: Problem) -> None:
    assert_emulates(VARIANTS, problem)


@pytest.mark.parametrize("rows_each", [1, 2, 4])
@pytest.mark.parametrize("problem", STRIPS, ids=str)
def test_strips_of_any_height(
    problem: Problem, rows_each: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small problems would get one row only; 4 rows exceed some outputs."""
    (width, _), *_ = PoolStrips().configs(problem, ARCHS["sm_80"])
    monkeypatch.setattr(PoolStrips, "configs", lambda *_: [(width, rows_each)])
    assert_emulates([VARIANTS[0], PoolStrips()], problem)


@pytest.mark.gpu
@pytest.mark.parametrize("rows_each", [1, 2, 4])
@pytest.mark.parametrize("problem", STRIPS, ids=str)
def test_strips_of_any_height_on_the_gpu(
    cuda_runner: Any, problem: Problem, rows_each: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    (width, _), *_ = PoolStrips().configs(problem, cuda_runner.device)
    monkeypatch.setattr(PoolStrips, "configs", lambda *_: [(width, rows_each)])
    assert_on_gpu(cuda_runner, [VARIANTS[0], PoolStrips()], problem)


@pytest.mark.gpu
@pytest.mark.parametrize("problem", TASKS, ids=str)
def test_on_the_gpu(cuda_runner: Any, problem: Problem) -> None:
    assert_on_gpu(cuda_runner, VARIANTS, problem)


@pytest.mark.some(3)
@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("index", [0, 2, 4, 8, 10, 11, 12, 14, 15])
def test_compiles_without_spills(arch: str, index: int) -> None:
    for variant in variants_of(VARIANTS, TASKS[index]):
        for cubin in compiled(variant, TASKS[index], arch):
            assert cubin.spills == 0


@pytest.mark.some(1)
@pytest.mark.slow
@pytest.mark.parametrize("index", [0, 1, 11])
def test_compiles_for_turing(index: int) -> None:
    for variant in variants_of(VARIANTS, TASKS[index]):
        for cubin in compiled(variant, TASKS[index], "sm_75"):
            assert cubin.spills == 0


def test_maxima_without_packed_halves() -> None:
    """Before sm_80 halves are compared in float32."""
    problem = TASKS[0]
    inputs = data(problem)
    device = ARCHS["sm_75"]
    config = PoolStrips().configs(problem, device)[0]
    (out,) = KernelEmulator(device).run(PoolStrips(), problem, config, inputs)
    np.testing.assert_array_equal(out, problem.op.reference(*inputs)[0])


INTEGERS = [
    task(THREE, last(2, 32, 7, 9, dtype=INT8), out=last),
    task(
        MaxPool((3, 2), (1, 2), (1, 0, 1, 1), ceil_mode=True),
        sliced(2, 24, 9, 5, dtype=INT8, order=NHWC, more=8),
        out=sliced(2, 24, 9, 3, dtype=INT8, order=NHWC, more=16),
    ),
    task(MaxPool((2, 2), (2, 2), (0,) * 4), last(1, 20, 5, 6, dtype=INT8), out=last),
    task(THREE, last(2, 32, 7, 9, dtype=UINT8), out=last),
    task(MaxPool((2, 2), (2, 2), (0,) * 4), last(1, 20, 5, 6, dtype=UINT8), out=last),
]


def _scaled(factor: float, more: float = 1.0) -> Program:
    """A mean of integers times ``factor``, plus ``more``."""
    b = Builder("f")
    return b.build(b("add", b("mul", 0, b.const(factor)), b.const(more)))


AVERAGES = [
    # Whole windows of 4 and 8 elements and halves of an integer: exact in float32.
    task(
        AveragePool((2, 2), (2, 2), (0,) * 4, epilogue=_scaled(2.0), out_dtype=INT8),
        last(2, 32, 6, 4, dtype=INT8),
        out=last,
    ),
    task(
        AveragePool((2, 4), (1, 2), (0,) * 4, epilogue=_scaled(0.5), out_dtype=FP16),
        sliced(2, 24, 5, 8, dtype=INT8, order=NHWC, more=8),
        out=last,
    ),
    # One element counts at a corner, two at an edge, four inside.
    task(
        AveragePool((2, 2), (1, 1), (1, 1, 1, 1), epilogue=_scaled(1.0), out_dtype=INT8),
        last(1, 12, 5, 4, dtype=INT8),
        out=last,
    ),
    task(
        AveragePool(
            (2, 2), (2, 2), (1, 0, 1, 0), (2, 1), epilogue=_scaled(1.0), out_dtype=FP32,
            count_include_pad=True,
        ),
        last(1, 16, 7, 4, dtype=INT8),
        out=last,
    ),
    # Floats that become int8.
    task(
        AveragePool((2, 2), (2, 2), (0,) * 4, epilogue=_scaled(4.0), out_dtype=INT8),
        last(2, 16, 6, 4, dtype=FP16),
        out=last,
    ),
    task(
        AveragePool((2, 2), (2, 2), (0,) * 4, epilogue=_scaled(8.0, -900.0), out_dtype=UINT8),
        last(2, 32, 6, 4, dtype=UINT8),
        out=last,
    ),
    task(
        AveragePool((2, 2), (1, 1), (1, 1, 1, 1), epilogue=_scaled(1.0), out_dtype=INT8),
        last(1, 12, 5, 4, dtype=UINT8),
        out=last,
    ),
    task(
        MaxPool((2, 2), (2, 2), (0,) * 4, epilogue=_scaled(4.0), out_dtype=UINT8),
        last(2, 16, 6, 4, dtype=FP16),
        out=last,
    ),
]  # fmt: skip


def _average_inputs(problem: Problem) -> list[np.ndarray]:
    rng = np.random.default_rng()
    (x,) = problem.inputs
    low = 0 if x.dtype is UINT8 else -128
    return [rng.integers(low, low + 256, x.shape).astype(x.dtype.numpy)]


@pytest.mark.parametrize("problem", AVERAGES, ids=str)
def test_averages_of_bytes(problem: Problem) -> None:
    inputs = _average_inputs(problem)
    (expected,) = problem.op.reference(*inputs)
    assert expected.dtype == problem.y.dtype.numpy
    if problem.y.dtype is UINT8:
        assert (expected.min(), expected.max()) == (0, 255)
    for variant in variants_of(VARIANTS, problem):
        for config in variant.configs(problem, ARCHS["sm_80"]):
            (out,) = KernelEmulator().run(variant, problem, config, inputs)
            assert np.array_equal(out, expected), (variant.name, config)


@pytest.mark.gpu
@pytest.mark.parametrize("problem", AVERAGES, ids=str)
def test_averages_of_bytes_on_the_gpu(cuda_runner: Any, problem: Problem) -> None:
    inputs = _average_inputs(problem)
    (expected,) = problem.op.reference(*inputs)
    for variant in variants_of(VARIANTS, problem):
        for config in variant.configs(problem, cuda_runner.device):
            (out,) = cuda_runner.run(variant, problem, config, inputs)
            assert np.array_equal(out, expected), (variant.name, config)


def _whole_range(problem: Problem) -> list[np.ndarray]:
    rng = np.random.default_rng()
    return [random_bytes(s, rng) for s in problem.inputs]


@pytest.mark.parametrize("rows_each", [1, 2])
@pytest.mark.parametrize("problem", INTEGERS, ids=str)
def test_maxima_of_bytes(problem: Problem, rows_each: int, monkeypatch: pytest.MonkeyPatch) -> None:
    (width, _), *_ = PoolStrips().configs(problem, ARCHS["sm_80"])
    assert width == {32: 16, 24: 8, 20: 4}[problem.y.shape[1]]
    monkeypatch.setattr(PoolStrips, "configs", lambda *_: [(width, rows_each)])
    assert_emulates([VARIANTS[0], PoolStrips()], problem, _whole_range(problem))


@pytest.mark.gpu
@pytest.mark.parametrize("problem", INTEGERS, ids=str)
def test_maxima_of_bytes_on_the_gpu(cuda_runner: Any, problem: Problem) -> None:
    inputs = _whole_range(problem)
    (expected,) = problem.op.reference(*inputs)
    for variant in variants_of(VARIANTS, problem):
        for config in variant.configs(problem, cuda_runner.device):
            (out,) = cuda_runner.run(variant, problem, config, inputs)
            assert np.array_equal(out, expected), (variant.name, config)


def test_maxima_of_bytes_move_16_at_once() -> None:
    signed, unsigned = (compiled(PoolStrips(), INTEGERS[k], "sm_90a")[0] for k in (0, 3))
    assert signed.spills == unsigned.spills == 0
    assert len(unsigned.code) < len(signed.code)
    refused = PoolStrips().supports(INTEGERS[3], ARCHS["sm_75"])
    assert refused is not None
    assert refused.reason == "sm_75 has no maximum of two halves, expected sm_80 or later"


def test_strips_are_expected_to_be_faster() -> None:
    device = ARCHS["sm_90a"]
    problem = task(THREE, last(64, 64, 56, 56, dtype=FP16), out=last)
    times = {v.name: v.estimate(problem, v.configs(problem, device)[0], device) for v in VARIANTS}
    assert times["pool_strips"] < times["pool_nhwc"] < times["pool_strided"]
    assert PoolStrips().configs(problem, device) == [(8, 2), (8, 4), (8, 1)]


@pytest.mark.parametrize(("variant", "problem", "reason"), REFUSED, ids=lambda v: str(v)[:60])
def test_refuses(variant: Any, problem: Problem, reason: str) -> None:
    assert reason in refusal(variant, problem)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.name)
def test_nan_spreads_and_padding_does_not_win(variant: Any) -> None:
    problem = task(MaxPool((3, 3), (1, 1), (1, 1, 1, 1)), last(1, 8, 5, 5, dtype=FP16), out=last)
    x = -1 - np.random.default_rng().random((1, 8, 5, 5)).astype(np.float16)
    x[0, 3, 2, 2] = np.nan
    assert_emulates([VARIANTS[0], variant], problem, [x])
