"""int8 convolution by dp4a."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nrt.cuda_kernels.conv_dp4a import ConvDp4a
from nrt.cuda_kernels.device import ARCHS
from nrt.cuda_kernels.simt_tile import Tile
from nrt.dtypes import BYTES, FP16, INT8, INT32, UINT8, DType
from nrt.ir.ops import Conv
from nrt.problem import Problem, TensorSpec

from .harness import compiled
from .int8_cases import assert_exact, random_bytes, requantized_conv
from .kernel_emulator import KernelEmulator
from .plain_cases import NCHW, NHWC, conv, refusal

PROBLEMS = [
    requantized_conv((1, 16, 4, 5), (36, 16, 3, 3), pads=(1, 1, 1, 1), residual=INT8),
    requantized_conv((1, 48, 6, 5), (33, 48, 1, 1), strides=(2, 1)),
    requantized_conv((1, 32, 7, 6), (40, 32, 3, 2), pads=(0, 1, 2, 0), dilations=(2, 1), out=FP16),
    requantized_conv((2, 64, 4, 4), (24, 32, 2, 2), groups=2, leading=8),
    requantized_conv((1, 16, 4, 6), (33, 16, 2, 3), pads=(1, 0, 1, 1), dtype=UINT8),
    requantized_conv((1, 32, 5, 5), (36, 32, 1, 1), dtype=UINT8, out=UINT8, residual=UINT8),
    # Pixels that start at multiples of 8 bytes.
    requantized_conv((1, 24, 4, 5), (36, 24, 3, 2), pads=(1, 1, 1, 0), dtype=UINT8),
    requantized_conv((2, 40, 5, 3), (12, 40, 1, 1), out=FP16),
]


def raw(dtype: DType) -> Problem:
    """Sums that are stored as they are."""
    x = TensorSpec.dense((1, 32, 4, 5), dtype, NHWC)
    y = TensorSpec.dense((1, 20, 2, 3), INT32, NHWC)
    return Problem(
        Conv(out_dtype=INT32), (x, TensorSpec.dense((20, 32, 3, 3), INT8)), (y,), (False, True)
    )


@pytest.mark.parametrize("task", PROBLEMS, ids=str)
def test_emulated(task: Problem) -> None:
    variant = ConvDp4a()
    assert refusal(variant, task) == ""
    assert_exact(KernelEmulator(), variant, task, variant.configs(task, ARCHS["sm_75"])[:1])


@pytest.mark.parametrize("dtype", BYTES, ids=str)
def test_sums_of_integers_emulated(dtype: DType) -> None:
    task, rng = raw(dtype), np.random.default_rng()
    inputs = [random_bytes(s, rng) for s in task.inputs]
    (expected,) = task.op.reference(*inputs)
    (out,) = KernelEmulator().run(ConvDp4a(), task, Tile(32, 32, 16, 4, 4), inputs)
    assert np.array_equal(out, expected)


@pytest.mark.parametrize("arch", ["sm_75", pytest.param("sm_87", marks=pytest.mark.slow)])
def test_compiles_without_spills(arch: str) -> None:
    for task, config in (
        (PROBLEMS[0], Tile(128, 64, 8, 8, 8)),
        (PROBLEMS[4], Tile(32, 32, 16, 4, 4)),
        (PROBLEMS[6], Tile(128, 64, 8, 8, 8)),
    ):
        (cubin,) = compiled(ConvDp4a(), task, arch, config)
        assert cubin.spills == 0


@pytest.mark.gpu
@pytest.mark.parametrize("task", PROBLEMS, ids=str)
def test_exact_on_gpu(task: Problem, cuda_runner: Any) -> None:
    variant = ConvDp4a()
    assert_exact(cuda_runner, variant, task, variant.configs(task, cuda_runner.device))


def test_refusals() -> None:
    variant = ConvDp4a()

    def reason(x: tuple[int, int, int, int], w: tuple[int, int, int, int], **more: Any) -> str:
        return refusal(variant, conv(x, w, INT8, end="none", **more))

    x, w = (1, 32, 5, 5), (32, 32, 3, 3)
    assert reason(x, w, constant=False).startswith("weights are computed at run time")
    for more in ({"x_order": NCHW}, {"groups": 4}):
        channels = 32 // more.get("groups", 1)
        assert reason(x, (32, channels, 3, 3), **more).startswith(
            f"groups of {channels} input channels and strides ("
        )
    assert reason(x, (4, 16, 3, 3), groups=2) == (
        "groups have 2 output channels, expected 4 or more"
    )
    many = (1, 16 * 65536, 1, 1), (4 * 65536, 16, 1, 1)
    assert reason(*many, groups=65536) == "65536 groups do not fit the launch grid (65535)"
    assert refusal(variant, conv(x, w, FP16)) == "operands are fp16, expected int8 or uint8"
