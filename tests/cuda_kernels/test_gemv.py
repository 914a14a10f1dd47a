"""Products with few rows."""

from __future__ import annotations

from typing import Any

import pytest

from nrt.cuda_kernels.device import ARCHS
from nrt.cuda_kernels.gemv import Gemv, GemvConfig
from nrt.dtypes import BF16, FP16
from nrt.problem import Problem

from .harness import ELSEWHERE, assert_right, compiled
from .plain_cases import assert_emulated, matmul, refusal

LIMIT = {"fp32": 1e-5, "fp16": 5e-3, "bf16": 3e-2}

PROBLEMS = [
    matmul((1, 256), (256, 9), extras=((9,),), constant=True),
    matmul((3, 520), (520, 9), FP16, constant=True),
    matmul((5, 37), (11, 37), trans_b=True),
    matmul((16, 64), (64, 70), BF16, constant=True),
    matmul((2, 3, 4, 24), (2, 3, 24, 20)),
    matmul((2, 3, 4, 24), (2, 3, 24, 40), FP16, extras=((40,), (3, 1, 1))),
    matmul((2, 3, 1, 24), (2, 3, 20, 24), FP16, trans_b=True),
    matmul((70,), (70,)),
    matmul((2, 3, 1, 24), (2, 3, 24, 20), strides=(None, (1440, 20, 60, 1), (60, 20, 20, 1))),
    matmul((9, 1), (1, 7)),
    matmul((2, 24), (24, 19)),
    matmul((2, 24), (24, 19), strides=(None, (1, 24), None)),
]


@pytest.mark.parametrize("task", PROBLEMS, ids=str)
def test_emulated(task: Problem) -> None:
    assert_emulated(Gemv(), task, LIMIT)


@pytest.mark.some(1)
@pytest.mark.parametrize("task", [PROBLEMS[0], PROBLEMS[5]], ids=str)
def test_compiles(task: Problem) -> None:
    assert compiled(Gemv(), task, "sm_80")[0].spills == 0


@pytest.mark.slow
def test_compiles_elsewhere() -> None:
    wide = GemvConfig(1, 4, 8)
    assert compiled(Gemv(), PROBLEMS[3], ELSEWHERE, wide)[0].spills == 0
    for task in (PROBLEMS[0], PROBLEMS[1], PROBLEMS[4]):
        assert compiled(Gemv(), task, ELSEWHERE)[0].spills == 0


@pytest.mark.gpu
@pytest.mark.parametrize("task", PROBLEMS, ids=str)
def test_right_on_gpu(task: Problem, cuda_runner: Any) -> None:
    assert_right(cuda_runner, Gemv(), task, LIMIT)


def test_refusals() -> None:
    variant = Gemv()
    assert refusal(variant, matmul((17, 4), (4, 7))) == "17 rows, expected 16 or fewer"
    assert refusal(variant, matmul((7, 4), (7, 4), trans_a=True)) == (
        "depth of a has stride 4, expected 1"
    )
    loose = matmul((4, 7), (7, 4), strides=(None, (8, 2), None))
    assert refusal(variant, loose) == "b has strides (8, 2), expected 1 along depth or columns"
    many = matmul((65536, 2, 3), (65536, 3, 4))
    assert refusal(variant, many) == "65536 matrices do not fit the launch grid (65535)"


def test_loads_are_as_wide_as_rows_allow() -> None:
    device = ARCHS["sm_80"]
    vectors = [Gemv().configs(task, device)[0].vector for task in PROBLEMS]
    assert vectors == [4, 8, 1, 8, 4, 8, 8, 2, 4, 1, 1, 4]
