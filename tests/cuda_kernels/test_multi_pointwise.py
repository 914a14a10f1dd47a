"""Pointwise kernels of several results."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from nrt.cuda_kernels import compiler
from nrt.cuda_kernels.device import ARCHS
from nrt.cuda_kernels.pointwise import VARIANTS, PointwiseVector
from nrt.dtypes import BF16, BOOL, FP16, FP32, FP64, INT8, INT32
from nrt.ir.ops import MultiPointwise
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


def lstm() -> Program:
    """The states of an LSTM's step, of the gates i, f, o, g and the cell."""
    b = Builder("fffff")
    kept = b("mul", b("sigmoid", 1), 4)
    cell = b("add", kept, b("mul", b("sigmoid", 0), b("tanh", 3)))
    return b.build(cell, b("mul", b("sigmoid", 2), b("tanh", cell)))


def scaled() -> Program:
    """x + p, and max((x + p) * q, 0)."""
    b = Builder("fff")
    both = b("add", 0, 1)
    return b.build(both, b("max", b("mul", both, 2), b.const(0.0)))


def mixed() -> Program:
    """Whether x < n, x as an integer, and x."""
    b = Builder("fi")
    return b.build(b("lt", 0, b("to_f", 1)), 0, 0)


def lying(problem: Problem, *outputs: TensorSpec) -> Problem:
    """The problem with its results laid out otherwise."""
    return replace(problem, outputs=outputs)


def piece(rows_: int, size: int) -> TensorSpec:
    """A quarter of a row."""
    return TensorSpec((rows_, size), FP16, (4 * size, 1))


STEP = lying(
    task(
        MultiPointwise(lstm(), (FP16, FP16)),
        *[piece(5, 24)] * 4,
        rows(5, 24, dtype=FP16),
    ),
    rows(5, 24, dtype=FP16),
    piece(5, 24),
)
SCALED = MultiPointwise(scaled(), (FP16, FP32))
TASKS = [
    STEP,
    # Dense, with a tail.
    task(SCALED, *[rows(3, 67, dtype=FP16)] * 2, rows(dtype=FP32)),
    # Numbers per channel, and one result in a slice.
    lying(
        task(
            SCALED, *[last(2, 16, 3, 5, dtype=FP16)] * 2, rows(16, 1, 1, dtype=FP32)
        ),
        last(2, 16, 3, 5, dtype=FP16),
        sliced(2, 16, 3, 5, dtype=FP32, order=NHWC, more=8),
    ),
    # Results in two orders.
    lying(
        task(SCALED, last(2, 8, 3, 5, dtype=FP32), *[rows(8, 3, 5, dtype=FP16)] * 2),
        last(2, 8, 3, 5, dtype=FP16),
        rows(2, 8, 3, 5, dtype=FP32),
    ),
    task(MultiPointwise(mixed(), (BOOL, INT8, BF16)), rows(7, 32, dtype=FP32), rows(dtype=INT32)),
    task(MultiPointwise(scaled(), (FP64, FP64)), *[rows(11, dtype=FP64)] * 3),
    task(SCALED, *[rows(4, 0, 3, dtype=FP16)] * 3),
]  # fmt: skip


@pytest.mark.parametrize("problem", TASKS, ids=str)
def test_emulated(problem: Problem) -> None:
    assert_emulates(VARIANTS, problem)


@pytest.mark.gpu
@pytest.mark.parametrize("problem", TASKS, ids=str)
def test_on_the_gpu(cuda_runner: Any, problem: Problem) -> None:
    assert_on_gpu(cuda_runner, VARIANTS, problem)


@pytest.mark.parametrize("arch", ARCHES)
def test_compiles_without_spills(arch: str) -> None:
    for variant in variants_of(VARIANTS, STEP):
        for cubin in compiled(variant, STEP, arch):
            assert cubin.spills == 0


def test_reads_once_and_moves_16_bytes() -> None:
    device = ARCHS["sm_80"]
    variant = PointwiseVector()
    assert variant.configs(STEP, device)[0] == (8, 1)
    (launch,) = variant.emit(STEP, (8, 1), device).launches
    ptx = compiler._ptx(launch.kernel, device)[0]
    assert ptx.count("ld.global.nc.v4.u32") == 5
    assert ptx.count("st.global.v4.u32") == 2


@pytest.mark.parametrize(
    ("variant", "problem", "reason"),
    [
        (
            PointwiseVector(),
            TASKS[3],
            "output 1 has stride 15 along the first output's contiguous dimension, expected 1",
        ),
        (
            PointwiseVector(),
            lying(
                task(SCALED, *[rows(4, 8, dtype=FP16)] * 3),
                rows(4, 8, dtype=FP16),
                TensorSpec((4, 8), FP32, (9, 1)),
            ),
            "no vector fits",
        ),
    ],
    ids=lambda v: str(v)[:60],
)
def test_refuses(variant: Any, problem: Problem, reason: str) -> None:
    assert reason in refusal(variant, problem)
