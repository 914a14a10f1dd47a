"""Resize kernels."""

from __future__ import annotations

from typing import Any

import pytest

from nrt.cuda_kernels.resize import VARIANTS, ResizeStrided, ResizeVector
from nrt.dtypes import BF16, FP8E4M3, FP16, FP32, FP64, INT32
from nrt.ir.ops import Resize
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


def resize(x: Any, *sizes: int, scales: Any = None, out: Any = rows, **attributes: Any) -> Problem:
    scales = scales or tuple(o / i for o, i in zip(sizes, x.shape, strict=True))
    return task(Resize(sizes, scales, **attributes), x, out=out)


TASKS = [
    resize(last(2, 8, 3, 5, dtype=FP16), 2, 8, 6, 10, out=last),
    resize(last(1, 8, 3, 5, dtype=FP16), 1, 8, 6, 10, out=last, mode="linear"),
    resize(rows(2, 3, 4, 5, dtype=FP32), 2, 3, 7, 9, mode="linear", coordinate="align_corners"),
    resize(
        rows(2, 3, 7, 9, dtype=FP32), 2, 3, 4, 1, mode="linear", coordinate="pytorch_half_pixel"
    ),
    resize(rows(1, 2, 7, 9, dtype=FP32), 1, 2, 10, 6, mode="cubic", cubic_a=-0.5),
    resize(
        last(1, 6, 5, 4, dtype=FP32), 1, 6, 8, 8, out=last, mode="cubic", coordinate="asymmetric"
    ),
    resize(rows(1, 2, 7, dtype=BF16), 1, 2, 11, mode="linear"),
    resize(rows(2, 4, 4, 5, dtype=FP32), 3, 4, 5, 7, mode="linear"),
    resize(rows(2, 2, 4, 5, dtype=FP32), 2, 2, 4, 5, mode="linear"),
    resize(rows(1, 1, 4, 5, dtype=FP64), 1, 1, 8, 10, mode="linear", scales=(1.0, 1.0, 2.05, 2.01)),
    resize(rows(1, 1, 3, 1, dtype=FP32), 1, 1, 1, 4, mode="linear", coordinate="align_corners"),
    *(
        resize(rows(1, 1, 7, 9, dtype=INT32), 1, 1, 21, 6, nearest=nearest, coordinate=coordinate)
        for nearest in ("floor", "ceil", "round_prefer_ceil", "round_prefer_floor")
        for coordinate in ("half_pixel", "asymmetric", "align_corners")
    ),
]
REFUSED = [
    (ResizeVector(), TASKS[2], "the innermost dimension is resized, or no vector fits it"),
    (
        ResizeStrided(),
        resize(rows(2, 2, 2, 2, dtype=FP32), 3, 3, 3, 3, mode="linear"),
        "4 dimensions are interpolated, at most 3",
    ),
    (
        ResizeStrided(),
        resize(rows(1, 1, 2, 2, dtype=FP8E4M3), 1, 1, 3, 3, mode="linear"),
        "input 0 is fp8e4m3",
    ),
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
@pytest.mark.parametrize("index", [0, 1, 2, 4, 5])
def test_compiles_without_spills(arch: str, index: int) -> None:
    for variant in variants_of(VARIANTS, TASKS[index]):
        for cubin in compiled(variant, TASKS[index], arch):
            assert cubin.spills == 0


@pytest.mark.parametrize(("variant", "problem", "reason"), REFUSED, ids=lambda v: str(v)[:60])
def test_refuses(variant: Any, problem: Problem, reason: str) -> None:
    assert reason in refusal(variant, problem)
