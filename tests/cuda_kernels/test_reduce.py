"""Reduction kernels."""

from __future__ import annotations

from typing import Any

import pytest

from nrt.cuda_kernels.reduce import VARIANTS, ReduceColumns, ReduceRows, ReduceStrided, reduction
from nrt.dtypes import BF16, BOOL, FP8E4M3, FP16, FP32, FP64, INT8, INT32, INT64, DType
from nrt.ir.ops import Reduce
from nrt.ir.pointwise import Builder, Program
from nrt.problem import Problem, TensorSpec

from .harness import compiled
from .memory_bound import (
    ARCHES,
    assert_emulates,
    assert_on_gpu,
    last,
    refusal,
    rows,
    sliced,
    task,
    variants_of,
)

NHWC = (0, 2, 3, 1)
TASKS = [
    task(Reduce("mean", (2, 3)), last(2, 24, 7, 5, dtype=FP16), out=last),
    task(Reduce("max", (2, 3), False), last(1, 11, 4, 5, dtype=FP32)),
    task(Reduce("mean", (2, 3)), rows(2, 5, 7, 7, dtype=FP32)),
    task(Reduce("sum", (-1,)), rows(3, 5, 136, dtype=BF16)),
    task(Reduce("l2", (-1,), False), rows(2, 1031, dtype=FP32)),
    task(Reduce("l1", (0, 2)), rows(3, 4, 5, dtype=FP32)),
    task(Reduce("prod", (1,)), rows(3, 4, 5, dtype=INT32)),
    task(Reduce("mean", (1,)), rows(3, 4, 5, dtype=INT64)),
    task(Reduce("max", (1,)), rows(3, 4, 5, dtype=BOOL)),
    task(Reduce("min", (1, 2)), rows(3, 4, 5, dtype=BOOL)),
    task(Reduce("sum_square", (0, 1, 2), False), rows(3, 4, 50, dtype=FP64)),
    task(Reduce("min", (0, 1, 2)), rows(3, 4, 5, dtype=INT8)),
    task(Reduce("sum", ()), rows(3, 4, 5, dtype=FP32)),
    task(Reduce("mean", (1,)), rows(3, 1, 5, dtype=FP32)),
    task(Reduce("max", (1,)), rows(3, 0, 5, dtype=FP32)),
    task(Reduce("l2", (1,)), rows(3, 4, dtype=INT32)),
    task(
        Reduce("mean", (2, 3)),
        sliced(1, 16, 3, 5, dtype=FP16, order=NHWC, more=8),
        out=sliced(1, 16, 1, 1, dtype=FP16, order=NHWC, more=8),
    ),
    task(Reduce("l2", (0, 1), False), rows(6, 13, 40, dtype=BF16)),
    task(Reduce("max", (1,)), rows(2, 19, 72, dtype=FP32)),
    task(Reduce("min", (0,)), rows(70, 33, dtype=BOOL)),
    task(Reduce("sum", (1,)), rows(1, 300, 24, dtype=INT32)),
    task(Reduce("prod", (1,)), rows(2, 9, 8, dtype=FP64)),
]


def _norm() -> Program:
    """``max(x * scale + shift, 0)``: a normalization and its Relu."""
    b = Builder("fff")
    return b.build(b("max", b("add", b("mul", 0, 1), 2), b.const(0.0)))


def _weighted() -> Program:
    b = Builder("ff")
    return b.build(b("exp", b("mul", b("mul", 0, 1), b.const(0.25))))


def _scaled() -> Program:
    b = Builder("ffb")
    return b.build(b("where", 2, b("sub", 0, 1), b.const(-2.5)))


NORM, WEIGHTED, SCALED = _norm(), _weighted(), _scaled()


def per_channel(count: int, dtype: DType = FP32) -> TensorSpec:
    return rows(count, 1, 1, dtype=dtype)


FUSED = [
    # The end of a DenseNet: normalization, Relu, mean of the pixels.
    task(
        Reduce("mean", (2, 3), prologue=NORM),
        last(2, 24, 7, 5, dtype=FP16),
        per_channel(24),
        per_channel(24),
        out=last,
    ),
    # Operands that move along with x, in another type, and one element for all.
    task(
        Reduce("sum", (2, 3), False, prologue=NORM, epilogue=SCALED, out_dtype=FP32),
        last(1, 12, 3, 6, dtype=BF16),
        last(1, 12, 3, 6, dtype=FP32),
        rows(1, dtype=FP32),
        rows(12, dtype=FP16),
        rows(1, 12, dtype=BOOL),
    ),
    # Operands along the reduced dimension alone, and along the outer one alone.
    task(
        Reduce("max", (1,), prologue=NORM, epilogue=SCALED),
        rows(3, 19, 16, dtype=FP32),
        rows(19, 1, dtype=FP32),
        rows(3, 1, 1, dtype=FP32),
        rows(3, 1, 1, dtype=FP32),
        rows(16, dtype=BOOL),
    ),
    task(
        Reduce("l2", (-1,), False, prologue=NORM, epilogue=WEIGHTED, out_dtype=FP16),
        rows(3, 5, 136, dtype=FP32),
        rows(136, dtype=FP32),
        rows(3, 5, 1, dtype=FP32),
        rows(5, dtype=FP32),
    ),
    task(
        Reduce("sum_square", (-1,), prologue=WEIGHTED),
        rows(2, 1031, dtype=BF16),
        rows(2, 1031, dtype=BF16),
    ),
    task(
        Reduce("mean", (0, 2), prologue=WEIGHTED, epilogue=WEIGHTED),
        rows(3, 4, 5, dtype=FP64),
        rows(4, 1, dtype=FP64),
        rows(1, dtype=FP64),
    ),
    task(Reduce("l1", (1, 2), out_dtype=FP32), rows(3, 40, 1, dtype=FP16)),
]
FP8 = [
    task(
        Reduce("mean", (2, 3), prologue=NORM, out_dtype=FP16),
        last(2, 32, 5, 3, dtype=FP8E4M3),
        per_channel(32),
        per_channel(32),
        out=last,
    ),
    task(
        Reduce("sum", (1,), epilogue=NORM, out_dtype=FP8E4M3),
        rows(5, 40, dtype=FP32),
        rows(1, dtype=FP32),
        rows(5, 1, dtype=FP32),
    ),
    task(Reduce("max", (0,)), rows(3, 7, dtype=FP8E4M3)),
]
TASKS += [*FUSED, *FP8]
COLUMNS = [TASKS[k] for k in (0, 1, 8, 16, 17, 18, 19, 20, 21)] + FUSED[:3]
REFUSED = [
    (ReduceColumns(), TASKS[2], "the innermost kept dimension is not contiguous"),
    (ReduceRows(), TASKS[0], "the reduced elements are not one contiguous run"),
    (ReduceRows(), TASKS[9], "bool: shuffles move numbers"),
    (
        ReduceColumns(),
        task(Reduce("sum", (0, 2)), rows(3, 4, 5, 6, dtype=FP32)),
        "2 reduced dimensions after collapsing",
    ),
    (
        ReduceColumns(),
        task(
            Reduce("mean", (2, 3), prologue=WEIGHTED),
            last(1, 8, 3, 3, dtype=FP32),
            rows(1, 8, 3, 3, dtype=FP32),
        ),
        "operand 0 of the prologue has stride 9 along the innermost kept dimension",
    ),
    (
        ReduceColumns(),
        task(
            Reduce("mean", (1,), prologue=WEIGHTED),
            rows(4, 3, 8, dtype=FP32),
            TensorSpec((8,), FP32, (2,)),
        ),
        "operand 0 of the prologue has stride 2 along the innermost kept dimension",
    ),
    (
        ReduceRows(),
        task(
            Reduce("mean", (1,), prologue=WEIGHTED),
            rows(4, 8, dtype=FP32),
            TensorSpec((8,), FP32, (3,)),
        ),
        "operand 0 of the prologue has stride 3 along the reduced dimension",
    ),
]


@pytest.mark.parametrize("problem", TASKS, ids=str)
def test_emulated(problem: Problem) -> None:
    assert_emulates(VARIANTS, problem)


SHAPES = [(64, 4, 8), (64, 32, 2), (128, 8, 4), (512, 16, 1), (1024, 1, 4)]
"""Threads, lanes and vector width of column kernels that no small problem would choose."""


def columns(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> ReduceColumns:
    """The column kernel with all of `SHAPES` that vectors fit."""
    variant, found = ReduceColumns(), reduction(problem)
    fitting = [c for c in SHAPES if c[2] <= 16 // problem.y.dtype.itemsize]
    fitting = [c for c in fitting if variant._fits(found, c[2])]
    monkeypatch.setattr(ReduceColumns, "configs", lambda *_: fitting)
    return variant


@pytest.mark.parametrize("problem", COLUMNS, ids=str)
def test_columns_of_any_block(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_emulates([ReduceStrided(), columns(problem, monkeypatch)], problem)


@pytest.mark.gpu
@pytest.mark.parametrize("problem", COLUMNS, ids=str)
def test_columns_of_any_block_on_the_gpu(
    cuda_runner: Any, problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_on_gpu(cuda_runner, [ReduceStrided(), columns(problem, monkeypatch)], problem)


@pytest.mark.gpu
@pytest.mark.parametrize("problem", TASKS, ids=str)
def test_on_the_gpu(cuda_runner: Any, problem: Problem) -> None:
    assert_on_gpu(cuda_runner, VARIANTS, problem)


@pytest.mark.some(3)
@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("index", [0, 3, 5, 10, 17, 19, 22, 23, 25])
def test_compiles_without_spills(arch: str, index: int) -> None:
    for variant in variants_of(VARIANTS, TASKS[index]):
        for cubin in compiled(variant, TASKS[index], arch):
            assert cubin.spills == 0


@pytest.mark.some(1)
@pytest.mark.slow
@pytest.mark.parametrize("index", [0, 18])
def test_compiles_for_turing(index: int) -> None:
    for variant in variants_of(VARIANTS, TASKS[index]):
        for cubin in compiled(variant, TASKS[index], "sm_75"):
            assert cubin.spills == 0


def test_takes_many_operands_but_not_any_number() -> None:
    b = Builder("f" * 17)
    total = 0
    for k in range(1, 17):
        total = b("add", total, k)
    op = Reduce("sum", (1,), prologue=b.build(total))
    wide = task(op, *[rows(3, 8, dtype=FP32)] * 17)
    assert "17 inputs, at most 16" in refusal(ReduceStrided(), wide)
    assert "17 inputs, at most 16" in refusal(ReduceRows(), wide)


@pytest.mark.parametrize(("variant", "problem", "reason"), REFUSED, ids=lambda v: str(v)[:60])
def test_refuses(variant: Any, problem: Problem, reason: str) -> None:
    assert reason in refusal(variant, problem)
