"""Padding kernels."""

from __future__ import annotations

from typing import Any

import pytest

from nrt.cuda_kernels.pad import VARIANTS, PadItems, PadStrided
from nrt.dtypes import BF16, BOOL, FP16, FP32, FP64, INT8, INT64
from nrt.ir.ops import Pad
from nrt.problem import Problem

from .harness import compiled
from .memory_bound import (
    ARCHES,
    assert_emulates,
    assert_on_gpu,
    last,
    refusal,
    rows,
    task,
    variants_of,
)

TASKS = [
    task(Pad((0, 0, 1, 2, 0, 0, 2, 1)), last(2, 8, 3, 4, dtype=FP16), out=last),
    task(Pad((0, 0, 1, 2, 0, 1, 2, 1), "constant", -1.5), last(2, 7, 3, 4, dtype=FP32), out=last),
    task(Pad((0, 1, -1, 0, 0, 2), "constant", 3.0), rows(2, 3, 9, dtype=INT64)),
    task(Pad((0, 2, 1, 0, 1, 2), "reflect"), rows(2, 3, 4, dtype=BF16)),
    task(Pad((1, 2, 0, 0, 1, 0), "edge"), rows(2, 3, 4, dtype=INT8)),
    task(Pad((1, 2, 0, 0, 1, 0), "edge"), rows(2, 3, 8, dtype=FP64)),
    task(Pad((1, 0, 0, 0), "constant", 7.0), rows(2, 8, dtype=INT8)),
    task(Pad((0, 0, 0, 0)), rows(2, 8, dtype=FP32)),
    task(Pad((2, 0, 0, 1)), rows(0, 3, dtype=FP32)),
    task(Pad((0, 1, 0, 0)), rows(3, 4, dtype=BOOL)),
    task(Pad((3, 0), "constant", 0.1), rows(1, dtype=FP16)),
    task(Pad((0, -2, 0, 1)), rows(3, 4, dtype=FP32)),
]
REFUSED = [
    (PadItems(), TASKS[3], "the innermost dimension is padded"),
    (
        PadItems(),
        task(Pad((1, 0, 0, 0)), rows(2, 7, dtype=FP16)),
        "no wider item fits: 7 contiguous elements",
    ),
    (PadStrided(), task(Pad((1, 0)), rows(2**31, dtype=FP16)), "32-bit indices reach"),
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
@pytest.mark.parametrize("index", [0, 2, 3, 5])
def test_compiles_without_spills(arch: str, index: int) -> None:
    for variant in variants_of(VARIANTS, TASKS[index]):
        for cubin in compiled(variant, TASKS[index], arch):
            assert cubin.spills == 0


@pytest.mark.parametrize(("variant", "problem", "reason"), REFUSED, ids=lambda v: str(v)[:60])
def test_refuses(variant: Any, problem: Problem, reason: str) -> None:
    assert reason in refusal(variant, problem)
