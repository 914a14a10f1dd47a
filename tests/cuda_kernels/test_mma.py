"""Tensor-core convolution and matrix product by mma.sync."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sampling import some

from nrt.cuda_kernels.conv_common import weights_type
from nrt.cuda_kernels.conv_mma import ConvMma
from nrt.cuda_kernels.device import ARCHS, DeviceSpec
from nrt.cuda_kernels.gemm_mma import GemmMma
from nrt.cuda_kernels.mma_kernel import Tile, threads
from nrt.cuda_kernels.mma_pack import packed
from nrt.cuda_kernels.mma_tile import SYNCHRONOUS, TILES, tiles_for
from nrt.cuda_kernels.variant import Emission
from nrt.dtypes import BF16, FP16, FP32, FP64, INT8, UINT8
from nrt.ir.ops import Conv, MatMul
from nrt.ir.pointwise import Builder
from nrt.ir.value import NHWC
from nrt.problem import Problem, TensorSpec

from .harness import assert_right, compiled, problem
from .int8_cases import assert_exact, requantized_conv, requantized_product
from .kernel_emulator import KernelEmulator
from .plain_cases import assert_emulated

# Stored bytes differ where a sum lies half-way between two integers; int32 sums are exact.
LIMIT = {"fp32": 2e-3, "fp16": 5e-3, "bf16": 3e-2, "int8": 1e-3, "uint8": 1e-3}
TF32 = {"fp32": 1e-3, "fp16": 5e-3}

_b = Builder("fff")
RESIDUAL = _b.build(_b("max", _b("add", _b("add", 0, 1), 2), _b.const(0.0)))
_b = Builder("ff")
BIAS = _b.build(_b("max", _b("add", 0, 1), _b.const(0.0)))


def _beside(dtype: Any) -> dict[int, Any]:
    """Types of the weights and the bias."""
    return {1: weights_type(dtype), 2: FP32}


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
    beside: int = 0,
    **attributes: Any,
) -> Problem:
    """A convolution whose residual, if any, lies in a tensor with ``beside`` more channels."""
    op = Conv(**attributes, epilogue=RESIDUAL if residual else BIAS)
    shapes = [(n, c, h, w), (k, c // op.groups, r, s), (k, 1, 1)]
    if residual:
        plain = replace(op, epilogue=None).infer(
            *(
                TensorSpec.dense(t, d).type
                for t, d in zip(shapes, (dtype, weights_type(dtype)), strict=False)
            )
        )
        shapes.append(plain[0].shape)
    task = problem(
        op, shapes, dtype, order=NHWC, dtypes=_beside(dtype), constants=(1, 2), leading=leading
    )
    if beside:
        *_, last = task.inputs
        wide = (last.shape[0], last.shape[1] + beside, *last.shape[2:])
        piece = replace(last, strides=TensorSpec.dense(wide, last.dtype, NHWC).strides)
        task = replace(task, inputs=(*task.inputs[:-1], piece))
    return task


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
    conv(2, 24, 9, 11, 40, 1, 1, residual=True, beside=16),
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


def product(m: int, k: int, n: int, dtype: Any = FP16, bias: bool = False, **more: Any) -> Problem:
    """A matrix product; with ``bias`` also a ReLU."""
    op = MatMul(epilogue=BIAS if bias else None, **more)
    shapes: list[tuple[int, ...]] = [(m, k), (k, n), (n,)]
    return problem(op, shapes[: 2 + bias], dtype, dtypes=_beside(dtype), constants=(1, 2))


def plain_conv(dtype: Any, *args: int, bias: bool = True, **attributes: Any) -> Problem:
    """A convolution of n, c, h, w, k, r, s; with ``bias`` also a ReLU."""
    n, c, h, w, k, r, s = args
    op = Conv(epilogue=BIAS if bias else None, **attributes)
    shapes: list[tuple[int, ...]] = [(n, c, h, w), (k, c // op.groups, r, s), (k, 1, 1)]
    return problem(
        op, shapes[: 2 + bias], dtype, order=NHWC, dtypes=_beside(dtype), constants=(1, 2)
    )


TF32_MATMULS = [
    product(300, 1024, 520, FP32, tf32=True),
    product(1, 2048, 1000, FP32, bias=True, tf32=True),
    product(133, 76, 57, FP32, bias=True, tf32=True, out_dtype=FP16),
]
TF32_CONVS = [
    plain_conv(FP32, 2, 12, 9, 7, 30, 3, 3, pads=(1, 1, 1, 1), tf32=True),
    plain_conv(FP32, 3, 128, 14, 14, 136, 3, 3, pads=(1, 1, 1, 1), strides=(2, 2), tf32=True),
]
BYTE_MATMULS = [
    product(300, 1024, 520, INT8),
    product(67, 4096, 130, INT8),
    product(1, 2048, 1000, INT8, bias=True, out_dtype=FP16),
    product(133, 80, 57, INT8, bias=True, out_dtype=FP32),
    product(133, 80, 56, INT8, bias=True, out_dtype=INT8),
    product(35, 48, 56, INT8, out_dtype=BF16),
    product(67, 4096, 130, UINT8),
    product(133, 80, 56, UINT8, bias=True, out_dtype=FP16),
    product(133, 80, 57, UINT8, bias=True, out_dtype=UINT8),
]
BYTE_CONVS = [
    plain_conv(INT8, 2, 16, 9, 7, 30, 3, 3, pads=(1, 1, 1, 1), bias=False),
    plain_conv(INT8, 3, 128, 14, 14, 136, 3, 3, pads=(1, 1, 1, 1), out_dtype=FP16),
    plain_conv(INT8, 1, 48, 9, 9, 40, 1, 1, strides=(2, 2), out_dtype=INT8),
    plain_conv(UINT8, 2, 16, 9, 7, 30, 3, 3, pads=(1, 1, 1, 1), bias=False),
    plain_conv(UINT8, 3, 128, 14, 14, 136, 3, 3, pads=(1, 1, 1, 1), out_dtype=FP16),
    # Pixels that start at multiples of 8 bytes.
    plain_conv(UINT8, 2, 24, 9, 7, 30, 3, 3, pads=(1, 1, 1, 1), strides=(2, 1), out_dtype=FP16),
    plain_conv(INT8, 1, 8, 7, 9, 16, 5, 3, pads=(2, 1, 2, 1), bias=False),
    plain_conv(UINT8, 3, 72, 5, 9, 40, 1, 1, out_dtype=UINT8),
    plain_conv(INT8, 1, 168, 6, 5, 24, 1, 1, strides=(2, 2), out_dtype=INT8),
]


SMALL, NARROW = Tile(32, 32, 64, 1, 2, 3), Tile(32, 32, 32, 1, 1, 3)
WIDE = Tile(128, 32, 32, 4, 1, 4)


REQUANTIZED = [
    requantized_conv((1, 32, 7, 5), (40, 32, 3, 3), residual=INT8, pads=(1, 1, 1, 1)),
    requantized_conv((1, 16, 6, 6), (36, 16, 1, 1), residual=INT8, out=FP16),
    requantized_product(35, 80, 56, residual=INT8),
    requantized_product(33, 48, 57),
    requantized_conv((1, 32, 7, 5), (40, 32, 3, 3), dtype=UINT8, residual=INT8, pads=(1, 1, 1, 1)),
    requantized_product(35, 80, 56, dtype=UINT8, out=UINT8, residual=UINT8),
]
GROUPED = [
    plain_conv(FP16, 2, 64, 7, 6, 64, 3, 3, pads=(1, 1, 1, 1), groups=16),
    plain_conv(FP16, 2, 64, 9, 7, 64, 3, 3, pads=(1, 1, 1, 1), strides=(2, 2), groups=8),
    plain_conv(BF16, 1, 64, 5, 6, 128, 3, 3, pads=(1, 1, 1, 1), groups=4),
    plain_conv(FP16, 1, 96, 5, 6, 192, 3, 3, pads=(1, 1, 1, 1), groups=3),
    plain_conv(FP16, 3, 64, 5, 7, 64, 1, 1, groups=4),
    plain_conv(FP16, 1, 80, 5, 6, 128, 3, 3, pads=(1, 1, 1, 1), groups=4),
    plain_conv(INT8, 1, 32, 5, 6, 64, 3, 3, bias=False, pads=(1, 1, 1, 1), groups=8),
    plain_conv(FP32, 1, 32, 5, 6, 64, 3, 3, pads=(1, 1, 1, 1), groups=8, tf32=True),
    # ResNeXt-50 32x4d: its four widths.
    *(
        plain_conv(FP16, 2, c, size, size, c, 3, 3, pads=(1, 1, 1, 1), groups=32)
        for c, size in ((128, 56), (256, 28), (512, 14), (1024, 7))
    ),
]
EMULATED: list[tuple[Any, Problem, Tile]] = [
    (GemmMma(), product(33, 72, 57), SMALL),
    (GemmMma(), product(1, 8, 1), SMALL),
    (GemmMma(), product(5, 0, 9), SMALL),
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
    (ConvMma(), conv(2, 24, 9, 11, 40, 1, 1, residual=True, beside=16), SMALL),
    (ConvMma(), conv(2, 24, 9, 11, 40, 1, 1, residual=True, leading=8), SMALL._replace(split=2)),
    (ConvMma(), conv(1, 40, 5, 5, 16, 1, 1, strides=(2, 2)), SMALL),
    # Rows of a tile have 64 or 128 bytes whatever the elements.
    (GemmMma(), product(33, 76, 57, FP32, tf32=True), Tile(32, 32, 32, 1, 2, 3)),
    (GemmMma(), product(33, 76, 56, FP32, bias=True, tf32=True), Tile(32, 32, 32, 1, 2, 3, 2)),
    (ConvMma(), TF32_CONVS[0], Tile(64, 64, 16, 2, 2, 4)),
    (GemmMma(), product(33, 400, 57, INT8), Tile(32, 32, 128, 1, 2, 3)),
    (GemmMma(), product(33, 400, 56, INT8), Tile(32, 32, 128, 1, 2, 3, 2)),
    (GemmMma(), product(33, 400, 56, INT8, bias=True, out_dtype=FP16),
     Tile(32, 32, 128, 1, 2, 3, 2)),
    (GemmMma(), product(33, 80, 56, INT8, bias=True, out_dtype=INT8), Tile(32, 32, 128, 1, 2, 3)),
    (GemmMma(), product(33, 80, 57, INT8, out_dtype=FP32), Tile(32, 32, 128, 1, 2, 3)),
    (ConvMma(), BYTE_CONVS[0], Tile(64, 64, 64, 2, 2, 4)),
    (ConvMma(), BYTE_CONVS[2], Tile(64, 64, 64, 2, 2, 4)),
    (ConvMma(), BYTE_CONVS[3], Tile(64, 64, 64, 2, 2, 4)),
    (GemmMma(), product(33, 400, 56, UINT8), Tile(32, 32, 128, 1, 2, 3, 2)),
    (GemmMma(), product(33, 400, 56, UINT8, bias=True, out_dtype=FP16),
     Tile(32, 32, 128, 1, 2, 3, 2)),
    (GemmMma(), product(33, 80, 57, UINT8, out_dtype=FP32), Tile(32, 32, 128, 1, 2, 3)),
    # Several groups in a tile; a group in several tiles; one in one.
    (ConvMma(), GROUPED[0], SMALL),
    (ConvMma(), GROUPED[0], WIDE),
    (ConvMma(), GROUPED[1], WIDE),
    (ConvMma(), GROUPED[2], WIDE._replace(split=2)),
    (ConvMma(), GROUPED[3], WIDE),
    (ConvMma(), GROUPED[3], Tile(64, 64, 32, 2, 2, 4)),
    (ConvMma(), GROUPED[4], SMALL),
    (ConvMma(), GROUPED[5], Tile(64, 64, 64, 2, 2, 3, 2)),
    (ConvMma(), GROUPED[6], Tile(64, 32, 128, 2, 1, 4)),
    (ConvMma(), GROUPED[7], Tile(64, 32, 32, 2, 1, 4)),
]  # fmt: skip


def synchronous(kind: Any) -> Any:
    """The variant as it is built for GPUs without ``cp.async``, for any GPU."""
    old = ARCHS["sm_75"]

    class Synchronous(kind):  # type: ignore[misc]
        def configs(self, problem: Problem, device: DeviceSpec) -> Sequence[Any]:
            found: Sequence[Any] = super().configs(problem, old)
            return found

        def emit(self, problem: Problem, config: Any, device: DeviceSpec) -> Emission:
            emission: Emission = super().emit(problem, config, old)
            return emission

    return Synchronous()


@pytest.mark.parametrize("tile", [SYNCHRONOUS[-1], SYNCHRONOUS[-1]._replace(split=2)], ids=str)
def test_without_cp_async_emulated(tile: Tile) -> None:
    for kind, task in (
        (GemmMma, product(33, 72, 57)),
        (GemmMma, product(3, 8, 7)),
        (GemmMma, product(40, 328, 56, bias=True)),
        (ConvMma, conv(2, 24, 9, 11, 40, 3, 3, pads=(1, 1, 1, 1), strides=(2, 2), residual=True)),
    ):
        assert_emulated(synchronous(kind), task, LIMIT, tile)


@pytest.mark.slow
def test_more_tiles_without_cp_async_emulated(rng: np.random.Generator) -> None:
    for tile in some(SYNCHRONOUS, 2, rng):
        task = product(2 * tile.bm - 3, 3 * tile.bk - 8, tile.bn + 9)
        assert_emulated(synchronous(GemmMma), task, LIMIT, tile)


@pytest.mark.parametrize(("variant", "task", "tile"), EMULATED, ids=str)
def test_emulated(variant: Any, task: Problem, tile: Tile) -> None:
    assert_emulated(variant, task, LIMIT, tile)


@pytest.mark.slow
@pytest.mark.parametrize("half", [0, 1])
def test_more_tiles_emulated(half: int, rng: np.random.Generator) -> None:
    for tile in some(TILES[half::2], 2, rng):
        rows, depth, columns = 2 * tile.bm - 3, 3 * tile.bk - 8, tile.bn + 9
        assert_emulated(GemmMma(), product(rows, depth, columns), LIMIT, tile)
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


def assert_few_right(
    runner: Any, variant: Any, task: Problem, limit: dict[str, float] = LIMIT
) -> None:
    """The tile tried first, one that splits the sums, the smallest and the largest are right.

    A tile takes seconds to compile for every combination of types, epilogue and store width; that
    each tile is right is tested where nothing else varies.
    """
    tiles = variant.configs(task, runner.device)
    split = [t for t in tiles if t.split > 1][:1]
    whole = sorted((t for t in tiles if t.split == 1), key=lambda t: t.bm * t.bn)
    few = dict.fromkeys([tiles[0], *split, *whole[:1], *whole[-1:]])
    assert_right(runner, variant, task, limit, list(few))


@pytest.mark.gpu
@pytest.mark.parametrize("task", CONVS, ids=str)
def test_convolution_on_the_gpu(cuda_runner: Any, task: Problem) -> None:
    assert_few_right(cuda_runner, ConvMma(), task)


@pytest.mark.gpu
@pytest.mark.parametrize("tile", TILES, ids=str)
def test_every_tile_convolves_on_the_gpu(cuda_runner: Any, tile: Tile) -> None:
    assert_right(cuda_runner, ConvMma(), CONVS[1], LIMIT, [tile])


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("dtype", "tile"),
    [(FP16, tile) for tile in TILES]
    + [(dtype, tile) for dtype in (BF16, FP32, INT8) for tile in TILES[::3]]
    + [(UINT8, tile) for tile in TILES[::5]],
    ids=str,
)
def test_every_tile_on_the_gpu(cuda_runner: Any, tile: Tile, dtype: Any) -> None:
    task = product(1027, 1040, 1304, dtype, tf32=dtype is FP32)
    sized = tile._replace(bk=tile.bk * 2 // dtype.itemsize)
    limit = TF32 if dtype is FP32 else LIMIT
    assert_right(cuda_runner, GemmMma(), task, limit, [sized])


@pytest.mark.gpu
@pytest.mark.parametrize("task", [*TF32_MATMULS, *TF32_CONVS], ids=str)
def test_tf32_on_the_gpu(cuda_runner: Any, task: Problem) -> None:
    assert_few_right(cuda_runner, ConvMma() if task in TF32_CONVS else GemmMma(), task, TF32)


@pytest.mark.gpu
@pytest.mark.parametrize("task", GROUPED, ids=str)
def test_groups_on_the_gpu(cuda_runner: Any, task: Problem) -> None:
    assert_few_right(cuda_runner, ConvMma(), task, TF32 if task == GROUPED[7] else LIMIT)


@pytest.mark.gpu
@pytest.mark.parametrize("task", [*BYTE_MATMULS, *BYTE_CONVS], ids=str)
def test_bytes_on_the_gpu(cuda_runner: Any, task: Problem) -> None:
    assert_few_right(cuda_runner, ConvMma() if task in BYTE_CONVS else GemmMma(), task)


@pytest.mark.gpu
@pytest.mark.parametrize("task", REQUANTIZED, ids=str)
def test_requantization_is_exact_on_the_gpu(cuda_runner: Any, task: Problem) -> None:
    variant: Any = ConvMma() if isinstance(task.op, Conv) else GemmMma()
    assert_exact(cuda_runner, variant, task, variant.configs(task, cuda_runner.device)[:3])


@pytest.mark.parametrize("task", REQUANTIZED, ids=str)
def test_requantization_is_exact_emulated(task: Problem) -> None:
    variant: Any = ConvMma() if isinstance(task.op, Conv) else GemmMma()
    tile = Tile(32, 32, 128, 1, 2, 3) if variant.name == "gemm_mma" else Tile(64, 64, 64, 2, 2, 4)
    assert_exact(KernelEmulator(), variant, task, [tile])


@pytest.mark.gpu
@pytest.mark.parametrize("task", [MATMULS[0], MATMULS[1], MATMULS[3], *CONVS[:6]], ids=str)
def test_without_cp_async_on_the_gpu(cuda_runner: Any, task: Problem) -> None:
    assert_few_right(cuda_runner, synchronous(ConvMma if task in CONVS else GemmMma), task)


@pytest.mark.gpu
@pytest.mark.parametrize("tile", SYNCHRONOUS, ids=str)
def test_every_tile_without_cp_async_on_the_gpu(cuda_runner: Any, tile: Tile) -> None:
    assert_right(cuda_runner, synchronous(ConvMma), CONVS[1], LIMIT, [tile])


@pytest.mark.gpu
@pytest.mark.parametrize("task", MATMULS, ids=str)
def test_matrix_product_on_the_gpu(cuda_runner: Any, task: Problem) -> None:
    assert_few_right(cuda_runner, GemmMma(), task)


@pytest.mark.some(2)
@pytest.mark.parametrize("arch", ["sm_80", pytest.param("sm_87", marks=pytest.mark.slow), "sm_90a"])
@pytest.mark.parametrize("task", [*CONVS[1:3], GROUPED[-4]], ids=str)
def test_convolution_compiles_without_spills(arch: str, task: Problem) -> None:
    for cubin in compiled(ConvMma(), task, arch):
        assert cubin.spills == 0


@pytest.mark.some(5)
@pytest.mark.slow
@pytest.mark.parametrize(
    ("arch", "task", "count"),
    [
        ("sm_80", CONVS[4], 5), ("sm_75", CONVS[4], 3),
        ("sm_80", TF32_CONVS[1], 2), ("sm_80", BYTE_CONVS[1], 2),
        ("sm_87", CONVS[4], 1), ("sm_87", TF32_CONVS[1], 1), ("sm_87", BYTE_CONVS[1], 1),
        ("sm_90a", CONVS[4], 1), ("sm_90a", TF32_CONVS[1], 1), ("sm_90a", BYTE_CONVS[1], 1),
        ("sm_80", BYTE_CONVS[4], 1), ("sm_87", BYTE_CONVS[4], 1),
    ],
    ids=str,
)  # fmt: skip
def test_tiles_compile_without_spills(
    arch: str, task: Problem, count: int, rng: np.random.Generator
) -> None:
    for tile in some(tiles_for(task.inputs[0].dtype, ARCHS[arch]), count, rng):
        for cubin in compiled(ConvMma(), task, arch, tile):
            assert cubin.spills == 0, tile


@pytest.mark.some(2)
@pytest.mark.parametrize(
    ("arch", "task"),
    [
        ("sm_80", MATMULS[0]), ("sm_90a", MATMULS[0]), ("sm_75", MATMULS[3]),
        ("sm_80", TF32_MATMULS[0]), ("sm_80", BYTE_MATMULS[0]),
        pytest.param("sm_90a", TF32_MATMULS[0], marks=pytest.mark.slow),
        pytest.param("sm_90a", BYTE_MATMULS[1], marks=pytest.mark.slow),
        pytest.param("sm_87", BYTE_MATMULS[2], marks=pytest.mark.slow),
        ("sm_90a", BYTE_MATMULS[7]),
    ],
    ids=str,
)  # fmt: skip
def test_matrix_product_compiles(arch: str, task: Problem) -> None:
    for cubin in compiled(GemmMma(), task, arch):
        assert cubin.spills == 0


@pytest.mark.parametrize(
    ("task", "reason"),
    [
        (conv(1, 3, 8, 8, 8, 3, 3), "input channels (3) and strides"),
        (
            conv(1, 8, 8, 8, 8, 1, 1, dtype=FP32),
            "operands are fp32 and may not be rounded to tf32",
        ),
        (
            conv(1, 8, 8, 8, 8, 1, 1, dtype=FP64),
            "operands are fp64, expected fp16 or bf16 or fp32 or int8 or uint8",
        ),
        (plain_conv(INT8, 1, 12, 8, 8, 8, 1, 1, bias=False), "are not multiples of 16 with"),
        (plain_conv(FP32, 1, 6, 8, 8, 8, 1, 1, tf32=True), "are not multiples of 4 with"),
        (
            plain_conv(FP16, 1, 32, 8, 8, 32, 3, 3, groups=32),
            "groups of 1 input channels leave tensor cores idle, expected 4 or more",
        ),
        (
            plain_conv(FP16, 1, 24, 8, 8, 18, 3, 3, groups=3),
            "3 groups of 8 to 6 channels: no tile's columns are whole groups whose channels are "
            "multiples of 16 bytes",
        ),
        (
            plain_conv(FP16, 1, 24, 8, 8, 192, 3, 3, groups=2),
            "2 groups of 12 to 96 channels: no tile's columns",
        ),
        (plain_conv(FP16, 1, 36, 8, 8, 64, 3, 3, groups=4), "are not multiples of 8 with"),
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


@pytest.mark.parametrize("dtype", [BF16, INT8, UINT8])
def test_old_architecture_multiplies_fp16_only(dtype: Any) -> None:
    refusal = GemmMma().supports(product(8, 32, 8, dtype), ARCHS["sm_75"])
    assert refusal is not None
    expected = {
        BF16: "sm_75 has no bf16 conversion, expected sm_80 or later",
        INT8: "sm_75 multiplies fp16 only here, operands are int8",
        UINT8: "sm_75 multiplies fp16 only here, operands are uint8",
    }
    assert refusal.reason == expected[dtype]


def test_older_architectures_are_refused() -> None:
    volta = replace(ARCHS["sm_75"], arch="sm_70", cc=(7, 0))
    refusal = GemmMma().supports(product(8, 32, 8), volta)
    assert refusal is not None
    assert refusal.reason == "sm_70 has no ldmatrix, expected sm_75 or later"


@pytest.mark.parametrize(
    ("task", "reason"),
    [
        (product(8, 36, 8), "rows of a (36 long, strides (36, 1)) cannot be read 8 at a time"),
        (
            product(8, 24, 8, INT8),
            "rows of a (24 long, strides (24, 1)) cannot be read 16 at a time",
        ),
        (product(8, 32, 8, FP32), "operands are fp32 and may not be rounded to tf32"),
        (
            problem(MatMul(), [(8, 32), (32, 8)], FP16),
            "b is not a constant matrix, expected one to pack",
        ),
    ],
    ids=lambda v: str(v)[:40],
)
def test_matrix_product_refuses(task: Problem, reason: str) -> None:
    refusal = GemmMma().supports(task, ARCHS["sm_80"])
    assert refusal is not None
    assert refusal.reason == reason
