"""Local response normalization kernels."""

from __future__ import annotations

from typing import Any

import pytest

from nrt.cuda_kernels.lrn import VARIANTS, LrnNhwc, LrnStrided
from nrt.dtypes import BF16, FP8E4M3, FP16, FP32, FP64
from nrt.ir.ops import LRN
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
    task(LRN(5, alpha=0.5), last(2, 24, 3, 4, dtype=FP16), out=last),
    task(LRN(4, 0.9, 0.6, 2.0), rows(2, 7, 3, 4, dtype=FP32)),
    task(LRN(3, 0.9), last(1, 12, 3, 4, dtype=FP32), out=last),
    task(LRN(5, 0.9), last(1, 8, 1, 1, dtype=BF16), out=last),
    task(LRN(2, 0.9, 1.0), rows(1, 3, 5, dtype=FP64)),
]
REFUSED = [
    (LrnNhwc(), TASKS[1], "input has channel stride 12, expected 1"),
    (LrnNhwc(), task(LRN(5), last(1, 8, 3, 3, dtype=FP16)), "output has channel stride 9"),
    (
        LrnNhwc(),
        task(LRN(5), last(1, 7, 3, 3, dtype=FP16), out=last),
        "no vector fits 7 channels and a window of 5",
    ),
    (LrnStrided(), task(LRN(5), rows(1, 7, 3, dtype=FP8E4M3)), "input 0 is fp8e4m3"),
]


@pytest.mark.parametrize("problem", TASKS, ids=str)
def test_emulated(problem: Problem) -> None:
    assert_emulates(VARIANTS, problem)


@pytest.mark.gpu
@pytest.mark.parametrize("problem", TASKS, ids=str)
def test_on_the_gpu(cuda_runner: Any, problem: Problem) -> None:
    assert_on_gpu(cuda_runner, VARIANTS, problem)


@pytest.mark.some(1)
@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("index", [0, 1, 2])
def test_compiles_without_spills(arch: str, index: int) -> None:
    for variant in variants_of(VARIANTS, TASKS[index]):
        for cubin in compiled(variant, TASKS[index], arch):
            assert cubin.spills == 0


@pytest.mark.parametrize(("variant", "problem", "reason"), REFUSED, ids=lambda v: str(v)[:60])
def test_refuses(variant: Any, problem: Problem, reason: str) -> None:
    assert reason in refusal(variant, problem)
