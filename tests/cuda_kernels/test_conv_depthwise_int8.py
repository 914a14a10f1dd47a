"""Depthwise convolution of int8."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sampling import some

from nrt.cuda_kernels.conv_depthwise_int8 import ConvDepthwiseInt8, DepthwiseInt8Config
from nrt.cuda_kernels.device import ARCHS
from nrt.dtypes import BYTES, FP16, FP32, INT8, INT32, UINT8, DType
from nrt.ir.ops import Conv
from nrt.problem import Problem, TensorSpec

from .harness import ELSEWHERE, compiled
from .int8_cases import assert_exact, random_bytes, requantized_conv
from .kernel_emulator import KernelEmulator
from .plain_cases import NCHW, NHWC, conv, refusal

PROBLEMS = [
    requantized_conv((2, 32, 5, 7), (32, 1, 3, 3), groups=32, pads=(1, 1, 1, 1)),
    requantized_conv((1, 48, 6, 9), (48, 1, 3, 3), groups=48, strides=(2, 2), pads=(1, 1, 1, 1),
                     residual=INT8),
    requantized_conv((1, 24, 9, 8), (24, 1, 5, 5), groups=24, pads=(4, 2, 1, 3),
                     dilations=(2, 1), out=FP16),
    requantized_conv((1, 16, 5, 11), (16, 1, 1, 7), groups=16, strides=(1, 3), pads=(0, 3, 0, 2),
                     leading=16),
    requantized_conv((1, 12, 7, 6), (12, 1, 2, 4), groups=12, strides=(1, 2), residual=FP16,
                     beside=4),
    requantized_conv((1, 32, 3, 1), (32, 1, 1, 1), groups=32, out=FP32),
    requantized_conv((1, 16, 4, 9), (16, 1, 3, 6), groups=16, pads=(1, 3, 1, 2)),
    requantized_conv((1, 32, 5, 7), (32, 1, 3, 3), dtype=UINT8, groups=32, strides=(2, 1),
                     pads=(1, 1, 1, 1), residual=INT8),
    requantized_conv((1, 24, 6, 7), (24, 1, 3, 5), dtype=UINT8, groups=24, pads=(1, 2, 0, 1),
                     out=UINT8, residual=UINT8),
]  # fmt: skip


def raw(dtype: DType) -> Problem:
    """Sums that are stored as they are."""
    op = Conv(groups=16, pads=(1, 1, 1, 1), out_dtype=INT32)
    x = TensorSpec.dense((1, 16, 4, 5), dtype, NHWC)
    y = TensorSpec.dense((1, 16, 4, 5), INT32, NHWC)
    return Problem(op, (x, TensorSpec.dense((16, 1, 3, 3), INT8)), (y,), (False, True))


@pytest.mark.parametrize("task", PROBLEMS, ids=str)
def test_emulated(task: Problem) -> None:
    variant = ConvDepthwiseInt8()
    assert refusal(variant, task) == ""
    configs = variant.configs(task, ARCHS["sm_80"])
    assert len(configs) >= 2
    assert_exact(KernelEmulator(), variant, task, configs)


@pytest.mark.parametrize("dtype", BYTES, ids=str)
def test_sums_of_integers_emulated(dtype: DType) -> None:
    task, rng = raw(dtype), np.random.default_rng()
    inputs = [random_bytes(s, rng) for s in task.inputs]
    (expected,) = task.op.reference(*inputs)
    variant = ConvDepthwiseInt8()
    for config in variant.configs(task, ARCHS["sm_80"]):
        (out,) = KernelEmulator().run(variant, task, config, inputs)
        assert np.array_equal(out, expected)


@pytest.mark.some(1)
@pytest.mark.parametrize("task", [*PROBLEMS[:2], PROBLEMS[-2]], ids=str)
def test_compiles(task: Problem) -> None:
    assert all(c.spills == 0 for c in compiled(ConvDepthwiseInt8(), task, "sm_80"))


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["sm_75", ELSEWHERE])
def test_forms_compile_without_spills(arch: str, rng: np.random.Generator) -> None:
    (task,) = some(PROBLEMS[:3], 1, rng)
    for config in some(ConvDepthwiseInt8().configs(task, ARCHS["sm_75"]), 2, rng):
        (cubin,) = compiled(ConvDepthwiseInt8(), task, arch, config)
        assert cubin.spills == 0, config


@pytest.mark.gpu
@pytest.mark.parametrize("task", PROBLEMS, ids=str)
def test_exact_on_gpu(task: Problem, cuda_runner: Any) -> None:
    variant = ConvDepthwiseInt8()
    assert_exact(cuda_runner, variant, task, variant.configs(task, cuda_runner.device))


def test_refusals() -> None:
    variant = ConvDepthwiseInt8()

    def reason(x: tuple[int, int, int, int], w: tuple[int, int, int, int], **more: Any) -> str:
        return refusal(variant, conv(x, w, INT8, end="none", **more))

    x, w = (1, 32, 9, 9), (32, 1, 3, 3)
    assert reason(x, (32, 16, 3, 3), groups=2) == (
        "2 groups of 32 to 32 channels, expected one each"
    )
    assert reason(x, (64, 1, 3, 3), groups=32) == (
        "32 groups of 32 to 64 channels, expected one each"
    )
    assert reason(x, w, groups=32, x_order=NCHW) == "x and y must be channels-last"
    assert reason(x, w, groups=32, constant=False).startswith("weights are computed at run time")
    assert reason((1, 6, 9, 9), (6, 1, 3, 3), groups=6) == (
        "6 channels with strides (486, 1, 54, 6) cannot be read 4 at a time"
    )
    assert reason((1, 32, 9, 9), (32, 1, 3, 9), groups=32) == "filter rows of 9 are longer than 7"
    assert reason(x, w, groups=32, dilations=(1, 2)) == (
        "taps lie 2 columns apart, expected neighbours"
    )
    assert refusal(variant, conv(x, w, FP16, groups=32)) == (
        "operands are fp16, expected int8 or uint8"
    )


def test_channels_per_thread() -> None:
    best = ConvDepthwiseInt8().configs(PROBLEMS[0], ARCHS["sm_90a"])
    assert {c.vector for c in best} == {16, 8, 4}
    odd = ConvDepthwiseInt8().configs(PROBLEMS[4], ARCHS["sm_90a"])
    assert {c.vector for c in odd} == {4}
    assert DepthwiseInt8Config(4, 16) in best
