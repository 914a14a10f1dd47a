"""Tensor-core convolution and matrix product by mma.sync."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from nrt.cuda_kernels.conv_mma import ConvMma
from nrt.cuda_kernels.device import ARCHS
from nrt.cuda_kernels.gemm_mma import GemmMma
from nrt.cuda_kernels.mma_kernel import Tile, threads
from nrt.cuda_kernels.mma_tile import TILES, packed
from nrt.dtypes import BF16, FP16, FP32
from nrt.ir.ops import Conv, MatMul
from nrt.ir.pointwise import Builder
from nrt.ir.value import NHWC
from nrt.problem import Problem, TensorSpec

from .harness import assert_right, compiled, problem
from .plain_cases import assert_emulated

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
    shapes = [(n, c, h, w), (k, c // op.groups, r, s), (k, 1, 1)]
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
    problem(MatMul(), [(1027, 1032), (1032, 1304)], FP16, constants=(1,)),
]


SMALL, NARROW = Tile(32, 32, 64, 1, 2, 3), Tile(32, 32, 32, 1, 1, 3)


def product(m: int, k: int, n: int, dtype: Any = FP16) -> Problem:
    return problem(MatMul(), [(m, k), (k, n)], dtype, constants=(1,))


EMULATED: list[tuple[Any, Problem, Tile]] = [
    (GemmMma(), product(33, 72, 57), SMALL),
    (GemmMma(), product(1, 8, 1), SMALL),
    (GemmMma(), problem(MatMul(trans_b=True), [(7, 72), (40, 72)], FP16, constants=(1,)), SMALL),
    (GemmMma(), product(70, 328, 130), Tile(64, 64, 64, 2, 2, 3)),
    (GemmMma(), product(67, 328, 130), Tile(64, 128, 32, 2, 2, 4)),
    (GemmMma(), product(130, 264, 260), Tile(128, 256, 64, 2, 4, 3)),
    (GemmMma(), product(9, 264, 24, BF16), Tile(32, 32, 64, 1, 2, 6, 4)),
    # Nine tiles in a row: walked in strips; the last part of the sums has fewer blocks, or none.
    (GemmMma(), product(100, 40, 260), NARROW),
    (GemmMma(), product(40, 200, 36), SMALL._replace(split=3)),
    (GemmMma(), product(40, 200, 36), SMALL._replace(split=8)),
    (ConvMma(), conv(2, 24, 9, 11, 40, 3, 3, pads=(1, 1, 1, 1), strides=(2, 2), residual=True),
     SMALL),
    (ConvMma(), conv(1, 16, 7, 6, 13, 5, 3, pads=(2, 1, 0, 1)), NARROW),
    (ConvMma(), conv(2, 32, 7, 6, 30, 3, 3, pads=(2, 2, 2, 2), dilations=(2, 2), dtype=BF16),
     Tile(64, 64, 32, 2, 2, 4)),
    (ConvMma(), conv(2, 72, 7, 7, 40, 3, 3, pads=(1, 1, 1, 1)), Tile(64, 32, 64, 2, 1, 4, 2)),
    (ConvMma(), conv(3, 64, 7, 7, 72, 1, 1, residual=True), Tile(128, 128, 64, 2, 2, 3)),
    (ConvMma(), conv(1, 16, 5, 7, 24, 3, 3, pads=(1, 1, 1, 1), leading=32), SMALL),
    (ConvMma(), conv(1, 40, 5, 5, 16, 1, 1, strides=(2, 2)), SMALL),
]  # fmt: skip


@pytest.mark.parametrize(("variant", "task", "tile"), EMULATED, ids=str)
def test_emulated(variant: Any, task: Problem, tile: Tile) -> None:
    assert_emulated(variant, task, LIMIT, tile)


@pytest.mark.slow
@pytest.mark.parametrize("tile", TILES, ids=str)
def test_every_tile_emulated(tile: Tile) -> None:
    assert_emulated(GemmMma(), product(2 * tile.bm - 3, 3 * tile.bk - 8, tile.bn + 9), LIMIT, tile)
    task = conv(1, 24, 13, 11, tile.bn + 8, 3, 3, pads=(1, 1, 1, 1), residual=True)
    assert_emulated(ConvMma(), task, LIMIT, tile)


@pytest.mark.parametrize("tile", TILES, ids=str)
def test_packed_weights_are_what_threads_copy(tile: Tile) -> None:
    k, j = tile.bn + 5, 2 * tile.bk + 8
    weights = np.random.default_rng().integers(1, 1000, (k, j)).astype(np.int16)
    pieces, nt = tile.bk // 8, threads(tile)
    loads = tile.bn * pieces // nt
    flat = packed(weights, tile).reshape(2, 3, nt // 32, loads, 32, 8)
    for _ in range(50):
        n, block, warp, load, lane = (np.random.default_rng().integers(s) for s in flat.shape[:5])
        thread = warp * 32 + lane
        row = n * tile.bn + load * (nt // pieces) + thread // pieces
        first = block * tile.bk + thread % pieces * 8
        inside = row < k and first < j
        expected = weights[row, first : first + 8] if inside else np.zeros(8, np.int16)
        assert (flat[n, block, warp, load, lane] == expected).all()


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
    for config in TILES:
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
