"""Transposed convolution: the reference kernel and the one by phases."""

from __future__ import annotations

from typing import Any

import pytest

from nrt.cuda_kernels.conv_transpose import ConvTransposeDirect, ConvTransposeSimt
from nrt.cuda_kernels.simt_tile import Tile
from nrt.dtypes import BF16, FP16, FP64
from nrt.ir.ops import ConvTranspose
from nrt.problem import Problem

from .harness import ELSEWHERE, assert_right, compiled
from .plain_cases import NCHW, assert_emulated, conv, refusal

LIMIT = {"fp32": 1e-5, "fp16": 5e-3, "bf16": 3e-2, "fp64": 1e-12}

DIRECT, SIMT = ConvTransposeDirect(), ConvTransposeSimt()
SMALL = Tile(32, 32, 16, 4, 4)


def _case(*args: Any, **options: Any) -> Problem:
    return conv(*args, kind=ConvTranspose, **options)


PROBLEMS = [
    _case((1, 8, 3, 4), (8, 12, 2, 2), strides=(2, 2), end="residual"),
    _case((2, 5, 3, 4), (5, 6, 3, 3), strides=(2, 2), pads=(1, 1, 1, 1), output_padding=(1, 1)),
    _case((1, 8, 4, 3), (8, 4, 4, 4), FP16, strides=(2, 2), pads=(1, 1, 1, 1), groups=2),
    # Strides wider than the filter leave outputs that no input reaches.
    _case((1, 4, 4, 5), (4, 7, 3, 2), strides=(1, 3), pads=(0, 1, 2, 0), pitch=9),
    _case((1, 4, 3, 3), (4, 5, 1, 1), strides=(2, 2), end="none"),
    _case((1, 4, 3, 3), (4, 5, 5, 5), BF16, strides=(3, 2), pads=(2, 3, 1, 0), x_order=NCHW,
          y_order=NCHW),
    _case((1, 36, 3, 5), (36, 36, 2, 2), strides=(2, 2), end="relu"),
]  # fmt: skip
DILATED = _case((1, 4, 3, 3), (4, 5, 3, 3), FP64, strides=(2, 1), dilations=(2, 3))


@pytest.mark.parametrize("task", [*PROBLEMS, DILATED], ids=str)
def test_direct_emulated(task: Problem) -> None:
    assert_emulated(DIRECT, task, LIMIT)


@pytest.mark.parametrize("task", PROBLEMS, ids=str)
def test_phases_emulated(task: Problem) -> None:
    assert_emulated(SIMT, task, LIMIT, SMALL)


def test_compiles() -> None:
    assert compiled(DIRECT, PROBLEMS[0], "sm_80")[0].spills == 0
    assert compiled(SIMT, PROBLEMS[0], "sm_80", Tile(64, 64, 16, 4, 4))[0].spills == 0


@pytest.mark.slow
@pytest.mark.parametrize(("arch", "rows"), [("sm_75", 64), (ELSEWHERE, 128)])
def test_compiles_elsewhere(arch: str, rows: int) -> None:
    assert compiled(SIMT, PROBLEMS[0], arch, Tile(rows, 64, 8, 8, 8))[0].spills == 0


@pytest.mark.gpu
@pytest.mark.parametrize("task", [*PROBLEMS, DILATED], ids=str)
def test_direct_right_on_gpu(task: Problem, cuda_runner: Any) -> None:
    assert_right(cuda_runner, DIRECT, task, LIMIT)


@pytest.mark.gpu
@pytest.mark.parametrize("task", PROBLEMS, ids=str)
def test_phases_right_on_gpu(task: Problem, cuda_runner: Any) -> None:
    assert_right(cuda_runner, SIMT, task, LIMIT)


def test_refusals() -> None:
    assert refusal(DIRECT, conv((1, 2, 3, 3), (2, 2, 1, 1))) == "op is Conv, expected ConvTranspose"
    dilated = _case((1, 4, 3, 3), (4, 5, 3, 3), dilations=(2, 1))
    assert refusal(SIMT, dilated) == "dilation is (2, 1), expected (1, 1)"
    loose = _case((1, 4, 3, 3), (4, 5, 3, 3), constant=False)
    assert refusal(SIMT, loose).startswith("weights are computed at run time")
    thin = _case((1, 4, 3, 3), (4, 1, 3, 3), groups=4)
    assert refusal(SIMT, thin) == "groups have 1 output channels, expected 4 or more"
    far = _case((1, 4, 1, 1), (4, 4, 1, 1), strides=(300, 300))
    assert refusal(SIMT, far) == "90000 phases and groups do not fit the launch grid"
