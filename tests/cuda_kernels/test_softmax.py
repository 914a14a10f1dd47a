"""Softmax kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nrt.cuda_kernels.device import ARCHS
from nrt.cuda_kernels.softmax import VARIANTS, SoftmaxResident, SoftmaxStrided
from nrt.dtypes import BF16, FP8E4M3, FP16, FP32, FP64
from nrt.ir.ops import LogSoftmax, Softmax
from nrt.problem import Problem

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

TASKS = [
    task(Softmax(), rows(3, 5, 17, dtype=FP32)),
    task(Softmax(), rows(2, 3, 128, dtype=FP16)),
    task(LogSoftmax(), rows(5, 1000, dtype=BF16)),
    task(Softmax(1), last(2, 10, 3, 3, dtype=FP16), out=last),
    task(Softmax(1), rows(2, 10, 3, 3, dtype=FP32)),
    task(LogSoftmax(), rows(1, 2000, dtype=FP32)),
    task(Softmax(), sliced(2, 3, 20, dtype=FP32, order=(0, 1, 2), more=12)),
    task(Softmax(), rows(2, 9, dtype=FP64)),
    task(Softmax(0), rows(1, 7, dtype=FP32)),
]
LONG = task(Softmax(), rows(2, 40000, dtype=FP32))
REFUSED = [
    (SoftmaxResident(), TASKS[4], "the rows are not contiguous in input and output"),
    (SoftmaxResident(), LONG, "rows of 40000 elements in vectors of 4 do not fit 32 registers"),
    (SoftmaxStrided(), task(Softmax(), rows(3, dtype=FP8E4M3)), "input 0 is fp8e4m3"),
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
@pytest.mark.parametrize("index", [1, 2, 5])
def test_compiles_without_spills(arch: str, index: int) -> None:
    for variant in variants_of(VARIANTS, TASKS[index]):
        for cubin in compiled(variant, TASKS[index], arch):
            assert cubin.spills == 0


@pytest.mark.parametrize(("variant", "problem", "reason"), REFUSED, ids=lambda v: str(v)[:60])
def test_refuses(variant: Any, problem: Problem, reason: str) -> None:
    assert reason in refusal(variant, problem)


@pytest.mark.gpu
def test_long_rows_on_the_gpu(cuda_runner: Any) -> None:
    assert_on_gpu(cuda_runner, VARIANTS, LONG)


@pytest.mark.parametrize(("length", "threads"), [(8, 1), (24, 4), (64, 8), (128, 16), (136, 32)])
def test_short_rows_share_a_warp(length: int, threads: int) -> None:
    problem = task(Softmax(), rows(37, length, dtype=FP16))
    variant = SoftmaxResident()
    config = variant.configs(problem, ARCHS["sm_80"])[0]
    assert config == (threads, 1, 8)
    (launch,) = variant.emit(problem, config, ARCHS["sm_80"]).launches
    assert launch.grid[0] * (256 // threads) - 37 in range(256 // threads)
    assert_emulates(VARIANTS, problem)


@pytest.mark.parametrize(
    ("problem", "width"),
    [
        (TASKS[5], 4),
        (task(Softmax(), rows(1, 1, 1000, dtype=FP16)), 8),
        (task(Softmax(), rows(1000, dtype=BF16)), 8),
        (task(Softmax(), rows(1, 1001, dtype=FP16)), 1),
        # Two rows: the second starts at a multiple of 2 elements, and not of 4.
        (task(Softmax(), sliced(2, 200, dtype=FP32, order=(0, 1), more=2)), 2),
    ],
    ids=str,
)
def test_vectors_of_a_single_row(problem: Problem, width: int) -> None:
    configs = SoftmaxResident().configs(problem, ARCHS["sm_80"])
    assert {config[2] for config in configs} == {width}


def test_infinities() -> None:
    x = np.random.default_rng().standard_normal((3, 40)).astype(np.float32)
    x[0, 3:] = -np.inf
    x[1] = -1e30
    assert_emulates(VARIANTS, task(Softmax(), rows(3, 40, dtype=FP32)), [x])
