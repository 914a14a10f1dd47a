"""Direct convolution, and the bookkeeping that all convolution kernels share."""

from __future__ import annotations

from typing import Any

import pytest

from nrt.cuda_kernels import conv_transpose
from nrt.cuda_kernels.conv_common import ConvShape, conv_epilogue, store_width
from nrt.cuda_kernels.conv_depthwise import ConvDepthwise
from nrt.cuda_kernels.conv_direct import ConvDirect
from nrt.cuda_kernels.conv_simt import ConvSimt
from nrt.cuda_kernels.conv_stem import ConvStem
from nrt.cuda_kernels.device import ARCHS
from nrt.cuda_kernels.epilogue import MAX_EXTRAS
from nrt.dtypes import BF16, FP8E4M3, FP16, FP32, FP64, INT8, INT32, UINT8
from nrt.ir.ops import Conv, ConvTranspose
from nrt.ir.pointwise import Builder
from nrt.problem import Problem, TensorSpec

from .harness import assert_right, compiled
from .plain_cases import NCHW, assert_emulated, conv, matmul, refusal

LIMIT = {
    "fp32": 1e-5,
    "fp16": 5e-3,
    "bf16": 3e-2,
    "fp64": 1e-12,
    "int8": 1e-2,
    "uint8": 1e-2,
    "fp8e4m3": 2e-2,
}

PROBLEMS = [
    conv((2, 5, 7, 9), (6, 5, 3, 3), strides=(2, 2), pads=(1, 1, 1, 1)),
    conv((1, 6, 5, 8), (4, 3, 2, 3), FP16, groups=2, dilations=(2, 1), pads=(0, 2, 1, 0)),
    conv((1, 4, 6, 5), (3, 4, 1, 1), BF16, x_order=NCHW, y_order=NCHW, end="residual"),
    conv((1, 3, 6, 5), (7, 3, 3, 1), FP64, end="none", pitch=9),
    conv((3, 1, 1, 1), (1, 1, 1, 1), end="relu"),
    conv((1, 4, 5, 5), (8, 1, 3, 3), groups=4, pads=(1, 1, 1, 1), constant=False),
]

# Sums of bytes are compared exactly where they are stored as int32.
QUANTIZED = [
    conv((2, 5, 7, 9), (6, 5, 3, 3), INT8, end="none", strides=(2, 2), pads=(1, 1, 1, 1)),
    conv((1, 6, 5, 8), (4, 3, 2, 3), INT8, end="relu", groups=2, out_dtype=INT8),
    conv((1, 4, 6, 5), (3, 4, 1, 1), INT8, end="residual", x_order=NCHW, out_dtype=FP16),
    conv((1, 3, 6, 5), (7, 3, 3, 1), INT8, end="none", pitch=9, out_dtype=BF16),
    conv((1, 4, 5, 5), (8, 1, 3, 3), INT8, end="relu", groups=4, out_dtype=FP32),
    conv((2, 5, 7, 9), (6, 5, 3, 3), UINT8, end="none", strides=(2, 2), pads=(1, 1, 1, 1)),
    conv((1, 6, 5, 8), (4, 3, 2, 3), UINT8, end="relu", groups=2, out_dtype=UINT8),
    conv((1, 5, 6, 5), (3, 5, 2, 2), FP8E4M3),
    conv((1, 5, 6, 5), (3, 5, 2, 2), FP8E4M3, end="residual", out_dtype=FP8E4M3),
    conv((1, 5, 6, 5), (3, 5, 2, 2), FP32, end="relu", tf32=True),
]


@pytest.mark.parametrize("task", QUANTIZED, ids=str)
def test_emulated_quantized(task: Problem) -> None:
    assert_emulated(ConvDirect(), task, LIMIT)


@pytest.mark.parametrize("task", PROBLEMS, ids=str)
def test_emulated(task: Problem) -> None:
    assert_emulated(ConvDirect(), task, LIMIT)


@pytest.mark.some(3)
@pytest.mark.parametrize("task", [*PROBLEMS[:4], *QUANTIZED[1:9:7], QUANTIZED[5]], ids=str)
def test_compiles(task: Problem) -> None:
    assert all(c.spills == 0 for c in compiled(ConvDirect(), task, "sm_80"))


@pytest.mark.gpu
@pytest.mark.parametrize("task", [*PROBLEMS, *QUANTIZED], ids=str)
def test_right_on_gpu(task: Problem, cuda_runner: Any) -> None:
    assert_right(cuda_runner, ConvDirect(), task, LIMIT)


def test_refusals() -> None:
    variant = ConvDirect()
    assert refusal(variant, matmul((2, 3), (3, 4))) == "op is MatMul, expected Conv"
    line = Conv((1,), (0, 0), (1,))
    specs = (TensorSpec.dense((1, 2, 5), FP32), TensorSpec.dense((3, 2, 3), FP32))
    flat = Problem(line, specs, (TensorSpec.dense((1, 3, 3), FP32),), (False, True))
    assert refusal(variant, flat) == "the input has 1 spatial dimensions, expected 2"
    whole = conv((1, 2, 3, 3), (2, 2, 1, 1), INT32)
    assert refusal(variant, whole) == (
        "operands are int32, expected fp32 or fp16 or bf16 or fp64 or int8 or uint8 or fp8e4m3"
    )
    for dtype in (INT8, UINT8, FP8E4M3):
        narrow = conv((1, 8, 8, 8), (8, 8, 3, 3), dtype, end="none", pads=(1, 1, 1, 1))
        others = (ConvSimt(), ConvDepthwise(), *([ConvStem()] if dtype is FP8E4M3 else []))
        for other in others:
            assert refusal(other, narrow).startswith(f"operands are {dtype}, expected fp")
        upwards = conv((1, 8, 8, 8), (8, 8, 3, 3), dtype, kind=ConvTranspose, end="none")
        for other in conv_transpose.VARIANTS:
            assert refusal(other, upwards).startswith(f"operands are {dtype}, expected fp")
    brain = conv((1, 2, 3, 3), (2, 2, 1, 1), BF16)
    assert "sm_75 has no bf16 conversion" in refusal(variant, brain, ARCHS["sm_75"])
    empty = conv((0, 2, 3, 3), (2, 2, 1, 1))
    assert refusal(variant, empty) == "the output is empty"
    wide = conv((1, 2, 3, 3), (2, 2, 1, 1), pitch=1 << 31)
    assert "offsets have 32 bits" in refusal(variant, wide)


def test_too_many_operands_are_refused() -> None:
    count = MAX_EXTRAS + 1
    b = Builder("f" * (count + 1))
    total = 0
    for register in range(1, count + 1):
        total = b("add", total, register)
    op = Conv(epilogue=b.build(total))
    specs = [TensorSpec.dense(s, FP32) for s in [(1, 2, 3, 3), (2, 2, 1, 1)] + [(1,)] * count]
    task = Problem(op, tuple(specs), (TensorSpec.dense((1, 2, 3, 3), FP32),), (False,) * len(specs))
    assert refusal(ConvDirect(), task) == "the epilogue reads 7 operands, kernels have 6"


def test_shape() -> None:
    task = conv((2, 6, 9, 7), (4, 3, 3, 2), groups=2, strides=(2, 1), pads=(1, 0, 2, 3))
    shape = ConvShape.of(task)
    assert (shape.n, shape.c, shape.h, shape.w, shape.k, shape.r, shape.s) == (2, 6, 9, 7, 4, 3, 2)
    assert (shape.p, shape.q, shape.m) == (5, 9, 90)
    assert (shape.cg, shape.kg, shape.crs) == (3, 2, 18)
    assert (shape.pad, shape.pad_end) == ((1, 0), (2, 3))
    assert shape.flops == 2 * 90 * 4 * 18
    assert shape.x_channels_last
    assert shape.y_channels_last
    assert not shape.is_pointwise
    assert shape.load_width(8) == 1
    assert shape.load_width_of(6, 8) == 2
    assert ConvShape.of(conv((1, 8, 3, 3), (8, 8, 1, 1))).is_pointwise


def test_bias_becomes_an_epilogue() -> None:
    task = conv((1, 2, 3, 3), (4, 2, 1, 1))
    epilogue = conv_epilogue(task)
    assert epilogue.program is not None
    assert epilogue.program.text() == "add(x0, x1)"
    assert [e.mode for e in epilogue.extras] == ["channel"]
    assert epilogue.flops == 1


def test_store_width() -> None:
    task = conv((1, 2, 3, 3), (12, 2, 1, 1))
    epilogue = conv_epilogue(task)
    assert store_width(epilogue, task.y, 1, 8) == 4
    assert store_width(epilogue, task.y, 1, 8, 6) == 2
    sliced = conv((1, 2, 3, 3), (12, 2, 1, 1), pitch=14).y
    assert store_width(epilogue, sliced, 1, 8) == 2
    assert store_width(epilogue, conv((1, 2, 3, 3), (12, 2, 1, 1), y_order=NCHW).y, 1, 8) == 1
