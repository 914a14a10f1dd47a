"""Depthwise convolution."""

from __future__ import annotations

from typing import Any

import pytest

from nrt.cuda_kernels.conv_depthwise import ConvDepthwise, DepthwiseConfig
from nrt.cuda_kernels.device import ARCHS
from nrt.dtypes import BF16, FP16, FP64
from nrt.problem import Problem

from .harness import ELSEWHERE, assert_right, compiled
from .plain_cases import NCHW, assert_emulated, conv, refusal

LIMIT = {"fp32": 1e-5, "fp16": 5e-3, "bf16": 3e-2}

PROBLEMS = [
    conv((2, 8, 5, 7), (8, 1, 3, 3), groups=8, pads=(1, 1, 1, 1)),
    conv((1, 16, 6, 9), (16, 1, 3, 3), FP16, groups=16, strides=(2, 2), pads=(1, 1, 1, 1),
         end="residual"),
    conv((1, 8, 9, 8), (8, 1, 5, 3), BF16, groups=8, strides=(1, 2), pads=(4, 2, 1, 0),
         dilations=(2, 3), pitch=16),
    conv((1, 6, 5, 5), (12, 1, 3, 3), groups=6, pads=(1, 1, 1, 1), end="relu"),
    conv((1, 5, 9, 18), (5, 1, 7, 7), groups=5, pads=(3, 3, 3, 3)),
    conv((1, 12, 3, 1), (12, 1, 1, 1), FP16, groups=12, end="none"),
]  # fmt: skip


@pytest.mark.parametrize("task", PROBLEMS, ids=str)
def test_emulated(task: Problem) -> None:
    assert_emulated(ConvDepthwise(), task, LIMIT)


@pytest.mark.some(2)
@pytest.mark.parametrize("task", PROBLEMS[:4], ids=str)
def test_compiles(task: Problem) -> None:
    assert all(c.spills == 0 for c in compiled(ConvDepthwise(), task, "sm_80"))


@pytest.mark.slow
def test_compiles_elsewhere() -> None:
    config = DepthwiseConfig(4, 8)
    (cubin,) = compiled(ConvDepthwise(), PROBLEMS[1], ELSEWHERE, config)
    assert cubin.spills == 0


@pytest.mark.gpu
@pytest.mark.parametrize("task", PROBLEMS, ids=str)
def test_right_on_gpu(task: Problem, cuda_runner: Any) -> None:
    assert_right(cuda_runner, ConvDepthwise(), task, LIMIT)


def test_refusals() -> None:
    variant = ConvDepthwise()
    x, w = (1, 8, 5, 5), (8, 1, 3, 3)
    assert refusal(variant, conv(x, (8, 4, 3, 3), groups=2)) == (
        "2 groups of 8 channels, expected one each"
    )
    assert refusal(variant, conv((1, 1, 5, 5), w)) == "1 groups of 1 channels, expected one each"
    planes = conv(x, w, groups=8, x_order=NCHW)
    assert refusal(variant, planes) == "x and y must be channels-last"
    loose = conv(x, w, groups=8, constant=False)
    assert refusal(variant, loose).startswith("weights are computed at run time")
    large = conv((1, 8, 15, 15), (8, 1, 13, 13), groups=8)
    assert refusal(variant, large) == "filter 13x13 is larger than 11"
    assert "operands are fp64" in refusal(variant, conv(x, w, FP64, groups=8))


def test_channels_per_thread() -> None:
    variant, device = ConvDepthwise(), ARCHS["sm_80"]
    vectors = [variant.configs(task, device)[0].vector for task in PROBLEMS]
    assert vectors == [4, 8, 8, 1, 1, 4]
