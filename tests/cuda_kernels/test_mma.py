"""Tensor-core convolution and matrix product by mma.sync."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from nrt.cuda_kernels.conv_mma import ConvMma
from nrt.cuda_kernels.device import ARCHS
from nrt.cuda_kernels.gemm_mma import GemmMma
from nrt.dtypes import BF16, FP16, FP32
from nrt.ir.ops import Conv, MatMul
from nrt.ir.pointwise import Builder
from nrt.ir.value import NHWC
from nrt.problem import Problem, TensorSpec

from .harness import assert_right, compiled, problem

LIMIT = {"fp32": 2e-3, "fp16": 5e-3, "bf16": 3e-2}

_b = Builder("fff")
RESIDUAL = _b.build(_b("max", _b("add", _b("add", 0, 1), 2), _b.const(0.0)))
_b = Builder("ff")
BIAS = _b.build(_b("max", _b("add", 0, 1), _b.const(0.0)))


def conv(
    n: int,
    c: int,
    h: int,
    w: int,
    k: int,
    r: int,
    s: int,
    leading: int = 0,
    dtype: Any = FP16,
    residual: bool = False,
    **attributes: Any,
) -> Problem:
    op = Conv(**attributes, epilogue=RESIDUAL if residual else BIAS)
    shapes = [(n, c, h, w), (k, c, r, s), (k, 1, 1)]
    if residual:
        plain = replace(op, epilogue=None).infer(
            *(TensorSpec.dense(t, dtype).type for t in shapes[:2])
        )
        shapes.append(plain[0].shape)
    return problem(
        op, shapes, dtype, order=NHWC, dtypes={2: FP32}, constants=(1, 2), leading=leading
    )


CONVS = [
    conv(1, 8, 5, 7, 8, 3, 3, pads=(1, 1, 1, 1)),
    conv(2, 24, 9, 11, 40, 3, 3, pads=(1, 1, 1, 1), strides=(2, 2), residual=True),
    conv(3, 64, 14, 13, 72, 1, 1, residual=True),
    conv(1, 256, 7, 7, 136, 1, 1, strides=(2, 2)),
    conv(1, 512, 7, 7, 96, 3, 3, pads=(1, 1, 1, 1), leading=32),
    conv(1, 16, 12, 12, 13, 5, 3, pads=(2, 1, 0, 1)),
    conv(2, 32, 15, 10, 30, 3, 3, pads=(2, 2, 2, 2), dilations=(2, 2), dtype=BF16),
    conv(2, 40, 33, 31, 64, 7, 1, pads=(3, 0, 3, 0)),
    conv(5, 128, 28, 28, 128, 3, 3, pads=(1, 1, 1, 1), residual=True),
]
MATMULS = [
    problem(
        MatMul(epilogue=BIAS, out_dtype=FP32),
        [(1, 2048), (2048, 1000), (1000,)],
        FP16,
        dtypes={2: FP32},
        constants=(1, 2),
    ),
    problem(MatMul(), [(33, 72), (72, 57)], FP16, constants=(1,)),
    problem(
        MatMul(epilogue=BIAS),
        [(2, 31, 264), (264, 136), (136,)],
        BF16,
        dtypes={2: FP32},
        constants=(1, 2),
    ),
    problem(MatMul(), [(300, 1024), (1024, 512)], FP16, constants=(1,)),
]


@pytest.mark.gpu
@pytest.mark.parametrize("task", CONVS, ids=str)
def test_convolution_on_the_gpu(cuda_runner: Any, task: Problem) -> None:
    assert_right(cuda_runner, ConvMma(), task, LIMIT)


@pytest.mark.gpu
@pytest.mark.parametrize("task", MATMULS, ids=str)
def test_matrix_product_on_the_gpu(cuda_runner: Any, task: Problem) -> None:
    assert_right(cuda_runner, GemmMma(), task, LIMIT)


@pytest.mark.parametrize("arch", ["sm_80", pytest.param("sm_87", marks=pytest.mark.slow), "sm_90a"])
@pytest.mark.parametrize("task", CONVS[1:3], ids=str)
def test_convolution_compiles_without_spills(arch: str, task: Problem) -> None:
    for cubin in compiled(ConvMma(), task, arch):
        assert cubin.spills == 0


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["sm_80", "sm_87", "sm_90a"])
def test_every_tile_compiles_without_spills(arch: str) -> None:
    variant, task = ConvMma(), CONVS[4]
    for config in variant.configs(task, ARCHS[arch]):
        for cubin in compiled(variant, task, arch, config):
            assert cubin.spills == 0, config


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_matrix_product_compiles(arch: str) -> None:
    for cubin in compiled(GemmMma(), MATMULS[0], arch):
        assert cubin.spills == 0


@pytest.mark.parametrize(
    ("task", "reason"),
    [
        (conv(1, 3, 8, 8, 8, 3, 3), "input channels (3) and strides"),
        (conv(1, 8, 8, 8, 8, 1, 1, dtype=FP32), "operands are fp32, expected fp16 or bf16"),
        (
            problem(
                Conv(groups=2), [(1, 16, 8, 8), (8, 8, 3, 3)], FP16, order=NHWC, constants=(1,)
            ),
            "groups=2, expected 1",
        ),
        (
            problem(Conv(), [(1, 16, 8, 8), (8, 16, 3, 3)], FP16, order=NHWC),
            "weights are computed at run time",
        ),
        (
            problem(Conv(), [(1, 16, 8, 8), (8, 16, 3, 3)], FP16, constants=(1,)),
            "are not multiples of 8 with channels innermost",
        ),
    ],
    ids=lambda v: str(v)[:40],
)
def test_convolution_refuses(task: Problem, reason: str) -> None:
    refusal = ConvMma().supports(task, ARCHS["sm_80"])
    assert refusal is not None
    assert reason in refusal.reason


def test_old_architecture_is_refused() -> None:
    refusal = ConvMma().supports(CONVS[0], ARCHS["sm_75"])
    assert refusal is not None
    assert "sm_75 has no cp.async" in refusal.reason
