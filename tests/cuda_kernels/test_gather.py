"""Gather kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nrt.cuda_kernels.gather import VARIANTS, GatherItems, GatherStrided
from nrt.dtypes import BF16, FP8E4M3, FP16, FP32, INT8, INT32, INT64
from nrt.ir.ops import Gather, GatherElements
from nrt.problem import Problem

from .harness import compiled
from .kernel_emulator import KernelEmulator
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
    task(Gather(0), rows(13, 24, dtype=FP16), rows(2, 3, dtype=INT64)),
    task(Gather(0), rows(13, 7, dtype=FP32), rows(5, dtype=INT32)),
    task(Gather(1), rows(3, 6, 4, dtype=BF16), rows(2, 2, dtype=INT64)),
    task(Gather(-1), rows(3, 6, dtype=INT64), rows(dtype=INT64)),
    task(Gather(2), last(2, 3, 4, 8, dtype=FP32), rows(3, dtype=INT8)),
    task(GatherElements(1), rows(3, 6, 4, dtype=FP32), rows(3, 2, 4, dtype=INT64)),
    task(GatherElements(0), rows(5, 6, dtype=FP8E4M3), rows(7, 6, dtype=INT32)),
]
REFUSED = [
    (GatherItems(), TASKS[1], "no wider item fits"),
    (
        GatherStrided(),
        task(Gather(0), rows(0, 4, dtype=FP32), rows(2, dtype=INT64)),
        "the gathered dimension is empty",
    ),
    (
        GatherStrided(),
        task(Gather(0), rows(2**31, dtype=FP32), rows(2, dtype=INT64)),
        "32-bit indices reach",
    ),
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
@pytest.mark.parametrize("index", [0, 3, 5])
def test_compiles_without_spills(arch: str, index: int) -> None:
    for variant in variants_of(VARIANTS, TASKS[index]):
        for cubin in compiled(variant, TASKS[index], arch):
            assert cubin.spills == 0


@pytest.mark.parametrize(("variant", "problem", "reason"), REFUSED, ids=lambda v: str(v)[:60])
def test_refuses(variant: Any, problem: Problem, reason: str) -> None:
    assert reason in refusal(variant, problem)


def test_negative_indices_wrap_and_others_are_clamped() -> None:
    problem = task(Gather(0), rows(4, 8, dtype=FP32), rows(4, dtype=INT64))
    x = np.random.default_rng().standard_normal((4, 8)).astype(np.float32)
    for variant in variants_of(VARIANTS, problem):
        (out,) = KernelEmulator().run(variant, problem, (), [x, np.array([99, -99, -1, 2])])
        np.testing.assert_array_equal(out, x[[3, 0, 3, 2]])
