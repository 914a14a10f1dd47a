"""Convolutions whose images are pooled: every kernel against the reference."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from nrt.cuda_kernels.device import ARCHS
from nrt.cuda_kernels.mma_layout import Tile
from nrt.cuda_kernels.pooled_conv import VARIANTS, PooledConvApart, PooledConvMma
from nrt.dtypes import BF16, FP16, FP32, FP64, DType
from nrt.ir.op import TensorType
from nrt.ir.ops import Conv, PooledConv
from nrt.ir.pointwise import Builder, Program
from nrt.problem import Problem, TensorSpec

from .harness import assert_right, compiled, problem
from .memory_bound import refusal
from .plain_cases import assert_emulated

NHWC = (0, 2, 3, 1)
LIMIT = {"fp32": 2e-3, "fp16": 5e-3, "bf16": 3e-2}
"""Operands are fp16, bf16 or tf32."""


def bias_relu(residual: bool) -> Program:
    b = Builder("fff" if residual else "ff")
    total = b("add", 0, 1)
    return b.build(b("max", b("add", total, 2) if residual else total, b.const(0.0)))


def pooled(
    *sizes: int, residual: bool = False, dtype: DType = FP16, beside: int = 0, **attributes: Any
) -> Problem:
    """n, c, h, w, k, r, s; the residual lies in a tensor with ``beside`` more channels."""
    n, c, h, w, k, r, s = sizes
    op = PooledConv(epilogue=bias_relu(residual), **attributes)
    shapes: list[tuple[int, ...]] = [(n, c, h, w), (k, c, r, s), (k, 1, 1)]
    if residual:
        whole = Conv(op.strides, op.pads, op.dilations)
        types = [TensorType(s, dtype) for s in shapes[:2]]
        shapes.append(whole.infer(*types)[0].shape)
    made = problem(op, shapes, dtype, order=NHWC, dtypes={2: FP32}, constants=(1, 2))
    if beside:
        last = made.inputs[3]
        wide = list(last.shape)
        wide[1] += beside
        strides = TensorSpec.dense(tuple(wide), dtype, NHWC).strides
        made = replace(made, inputs=(*made.inputs[:3], TensorSpec(last.shape, last.dtype, strides)))
    return made


CASES = [
    pooled(2, 24, 5, 7, 40, 3, 3, residual=True, pads=(1, 1, 1, 1)),
    pooled(3, 40, 7, 7, 72, 1, 1, residual=True, beside=16),
    pooled(1, 64, 7, 7, 130, 1, 1, kind="sum", out_dtype=FP32),
    pooled(2, 16, 9, 9, 36, 3, 3, strides=(2, 1), pads=(1, 0, 1, 1), dtype=BF16),
    pooled(2, 12, 6, 5, 24, 3, 3, dtype=FP32, tf32=True, pads=(1, 2, 1, 2), dilations=(1, 2)),
    problem(PooledConv(), [(2, 8, 4, 4), (8, 8, 1, 1)], FP16, order=NHWC, constants=(1,)),
    pooled(1, 16, 12, 13, 16, 1, 1),
]
"""Tiles with few and with many rows to spare, channels that no tile divides, pairs of them."""
RESNET = [
    pooled(n, 512, 7, 7, 2048, 1, 1, residual=True) for n in (1, 8)
] + [pooled(8, 320, 7, 7, 1280, 1, 1)]  # fmt: skip


@pytest.mark.parametrize(
    "task",
    [pytest.param(c, marks=pytest.mark.slow) if i in (2, 3) else c for i, c in enumerate(CASES)],
    ids=str,
)
def test_emulated(task: Problem) -> None:
    assert_emulated(PooledConvApart(), task, LIMIT, ())
    configs = PooledConvMma().configs(task, ARCHS["sm_80"])
    assert configs
    assert_emulated(PooledConvMma(), task, LIMIT, configs[0])


@pytest.mark.parametrize(
    "tile",
    [
        Tile(64, 128, 32, 2, 2, 4),
        Tile(64, 64, 64, 2, 2, 4),
        pytest.param(Tile(128, 32, 32, 4, 1, 4), marks=pytest.mark.slow),
        pytest.param(Tile(128, 128, 64, 2, 4, 3), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_tiles_emulated(tile: Tile) -> None:
    assert_emulated(PooledConvMma(), CASES[0], LIMIT, tile)
    assert_emulated(PooledConvMma(), CASES[2], LIMIT, tile)


@pytest.mark.gpu
@pytest.mark.parametrize("task", [*CASES, *RESNET], ids=str)
def test_on_the_gpu(cuda_runner: Any, task: Problem) -> None:
    for variant in VARIANTS:
        if task in RESNET and isinstance(variant, PooledConvApart):
            continue
        assert_right(cuda_runner, variant, task, LIMIT, variant.configs(task, cuda_runner.device))


@pytest.mark.parametrize(
    ("arch", "tile"),
    [
        ("sm_80", Tile(64, 128, 32, 2, 2, 4)),
        pytest.param("sm_90a", Tile(64, 64, 64, 2, 2, 4), marks=pytest.mark.slow),
        pytest.param("sm_90a", Tile(64, 32, 64, 2, 1, 4), marks=pytest.mark.slow),
    ],
)
def test_compiles_without_spills(arch: str, tile: Tile) -> None:
    for cubin in compiled(PooledConvMma(), RESNET[0], arch, tile):
        assert cubin.spills == 0


def test_a_launch_has_a_row_of_tiles_per_image() -> None:
    emission = PooledConvMma().emit(RESNET[1], Tile(64, 128, 32, 2, 2, 4), ARCHS["sm_90a"])
    (launch,) = emission.launches
    assert launch.grid == (8 * 2048 // 128, 1, 1)
    assert emission.workspace == 0


def _flat(task: Problem) -> Problem:
    return replace(task, inputs=(TensorSpec.dense(task.inputs[0].shape, FP16), *task.inputs[1:]))


@pytest.mark.parametrize(
    ("variant", "task", "reason"),
    [
        (PooledConvMma(), pooled(1, 8, 4, 4, 8, 1, 1, dtype=FP32), "may not be rounded to tf32"),
        (PooledConvMma(), pooled(1, 8, 4, 4, 7, 1, 1), "7 output channels"),
        (PooledConvMma(), pooled(1, 8, 17, 16, 8, 1, 1), "no tile holds the 272 pixels"),
        (PooledConvMma(), pooled(1, 8, 2, 2, 8, 1, 1), "no tile holds the 4 pixels"),
        (PooledConvMma(), pooled(1, 12, 4, 4, 8, 1, 1), "input channels (12)"),
        (PooledConvMma(), _flat(CASES[0]), "with channels innermost"),
        (
            PooledConvMma(),
            replace(CASES[0], constants=(False,) * 4),
            "weights are computed at run time",
        ),
        (PooledConvMma(), pooled(1, 8, 4, 4, 8, 1, 1, out_dtype=FP64), "the output is fp64"),
        (
            PooledConvMma(),
            replace(CASES[0], outputs=(TensorSpec((2, 40), FP16, (1, 2)),)),
            "channels of the output are not innermost",
        ),
        (
            PooledConvApart(),
            problem(PooledConv("mean", (1,), (0, 0), (1,)), [(1, 8, 4), (8, 8, 1)], FP16),
            "the input has 1 spatial dimensions",
        ),
    ],
    ids=lambda v: str(v)[:60],
)  # fmt: skip
def test_refuses(variant: Any, task: Problem, reason: str) -> None:
    assert reason in refusal(variant, task)
