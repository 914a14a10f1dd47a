"""Matrix products without tensor cores: bookkeeping, the reference, tiles."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sampling import some

from nrt.cuda_kernels.device import ARCHS
from nrt.cuda_kernels.gemv import Gemv
from nrt.cuda_kernels.matmul_common import BatchDim, MatMulShape
from nrt.cuda_kernels.matmul_simt import MatMulSimtReference
from nrt.cuda_kernels.matmul_tiled import MatMulSimt
from nrt.cuda_kernels.registry import variants_for
from nrt.cuda_kernels.simt_tile import TILES, Tile
from nrt.cuda_kernels.variant import Variant
from nrt.dtypes import BF16, FP8E4M3, FP16, FP32, FP64, INT8, INT32, UINT8
from nrt.problem import Problem

from .harness import ELSEWHERE, assert_right, compiled
from .plain_cases import assert_emulated, conv, matmul, refusal

LIMIT = {
    "fp32": 1e-5,
    "fp16": 5e-3,
    "bf16": 3e-2,
    "fp64": 1e-12,
    "int8": 1e-2,
    "uint8": 1e-2,
    "fp8e4m3": 2e-2,
}

REFERENCE, TILED = MatMulSimtReference(), MatMulSimt()
SMALL, SPLIT = Tile(32, 32, 16, 4, 4), Tile(64, 64, 16, 4, 4, 2)

# Heads beside rows in memory, as attention reads them.
HEADS = matmul(
    (2, 3, 5, 8), (2, 3, 8, 4), strides=((120, 8, 24, 1), (96, 4, 12, 1), (60, 4, 12, 1))
)
CASES = [
    (matmul((5, 7), (7, 3)), SMALL),
    (matmul((2, 3, 36, 20), (2, 3, 20, 4), FP16), SMALL),
    (matmul((2, 3, 5, 40), (40, 9)), SPLIT),
    (matmul((7,), (7, 9)), SMALL),
    (matmul((4, 5, 70), (70,)), SPLIT),
    (matmul((7,), (7,)), SMALL),
    (matmul((40, 36), (12, 40), trans_a=True, trans_b=True), SMALL),
    (matmul((2, 1, 5, 40), (3, 40, 4), BF16), SPLIT),
    (matmul((2, 3, 5, 7), (7, 9), extras=((9,), (2, 3, 5, 9))), SMALL),
    (matmul((2, 3, 5, 7), (7, 36), extras=((36,), (3, 1, 1))), SPLIT),
    (matmul((7,), (2, 7, 9), extras=((9,),)), SMALL),
    (HEADS, SPLIT),
    (matmul((4, 5, 7), (7,), extras=((4, 5),)), SMALL),
    (matmul((24, 132), (68, 24), trans_a=True, trans_b=True), Tile(128, 128, 8, 8, 8, 2)),
    (matmul((1, 64), (64, 200), extras=((200,),), constant=True), Tile(32, 64, 16, 4, 4, 4)),
    (matmul((130, 24), (24, 68)), Tile(128, 64, 8, 8, 8)),
    (matmul((5, 40), (40, 12), FP16, extras=((12,),), out_dtype=INT8), SMALL),
    (matmul((5, 40), (40, 9), FP16, extras=((9,),), out_dtype=FP8E4M3), SPLIT),
]
PROBLEMS = [task for task, _ in CASES]
# Sums of bytes are compared exactly where they are stored as int32.
QUANTIZED = [
    matmul((5, 67), (67, 9), INT8),
    matmul((2, 1, 5, 40), (3, 40, 4), INT8),
    matmul((7, 3), (9, 7), INT8, trans_a=True, trans_b=True, out_dtype=FP32),
    matmul((3, 5, 70), (70, 9), INT8, extras=((9,),), out_dtype=FP16),
    matmul((5, 7), (7, 9), INT8, extras=((9,), (5, 9)), out_dtype=BF16),
    matmul((5, 7), (7, 9), INT8, extras=((9,),), out_dtype=INT8),
    matmul((7,), (7, 9), INT8, out_dtype=INT8),
    matmul((2, 1, 5, 40), (3, 40, 4), UINT8),
    matmul((5, 7), (7, 9), UINT8, extras=((9,),), out_dtype=UINT8),
    matmul((5, 67), (67, 9), FP8E4M3),
    matmul((2, 5, 40), (9, 40), FP8E4M3, trans_b=True, extras=((9,),), out_dtype=FP32),
    matmul((5, 40), (40, 9), FP8E4M3, extras=((9,), (5, 9)), out_dtype=FP8E4M3),
    matmul((5, 40), (40, 9), FP16, extras=((9,),), out_dtype=INT8),
    matmul((5, 40), (40, 9), tf32=True),
]
LARGE = [
    matmul((257, 129), (129, 190), extras=((190,),)),
    matmul((4, 12, 65, 64), (4, 12, 65, 64), FP16, trans_b=True),
]


@pytest.mark.parametrize("task", PROBLEMS[:13], ids=str)
def test_reference_emulated(task: Problem) -> None:
    assert_emulated(REFERENCE, task, LIMIT)


@pytest.mark.parametrize("task", QUANTIZED, ids=str)
def test_reference_emulated_quantized(task: Problem) -> None:
    assert_emulated(REFERENCE, task, LIMIT)


def test_other_kernels_multiply_floats_only() -> None:
    for dtype in (INT8, UINT8, FP8E4M3):
        task = matmul((32, 64), (64, 32), dtype, constant=True)
        taking = [v.name for v, reason in variants_for(task, ARCHS["sm_75"]) if reason is None]
        assert REFERENCE.name in taking
        assert refusal(TILED, task) == f"operands are {dtype}, expected fp32 or fp16 or bf16"
        assert refusal(Gemv(), task).startswith(f"operands are {dtype}, expected fp32")


def test_reference_emulated_in_double() -> None:
    assert_emulated(REFERENCE, matmul((3, 70), (70, 5), FP64), LIMIT)


@pytest.mark.parametrize(("task", "tile"), CASES, ids=str)
def test_tiles_emulated(task: Problem, tile: Tile) -> None:
    assert_emulated(TILED, task, LIMIT, tile)


def test_empty_sums() -> None:
    task = matmul((3, 0), (0, 5))
    assert_emulated(REFERENCE, task, LIMIT)
    assert_emulated(TILED, task, LIMIT, SMALL)


@pytest.mark.some(3)
@pytest.mark.parametrize(
    ("variant", "task", "arch", "tile"),
    [
        (REFERENCE, HEADS, "sm_80", None),
        (TILED, PROBLEMS[8], "sm_80", SPLIT),
        (TILED, PROBLEMS[6], "sm_80", TILES[0]),
        (REFERENCE, QUANTIZED[0], "sm_75", None),
        (REFERENCE, QUANTIZED[5], "sm_75", None),
        (REFERENCE, QUANTIZED[9], "sm_75", None),
    ],
    ids=str,
)
def test_compiles(variant: Variant, task: Problem, arch: str, tile: Tile | None) -> None:
    assert all(cubin.spills == 0 for cubin in compiled(variant, task, arch, tile))


@pytest.mark.slow
def test_compiles_elsewhere(rng: np.random.Generator) -> None:
    first, second = some(TILES[:3], 2, rng)
    assert compiled(TILED, LARGE[0], "sm_75", first)[0].spills == 0
    assert compiled(TILED, LARGE[1], ELSEWHERE, second)[0].spills == 0


@pytest.mark.gpu
@pytest.mark.parametrize("task", [*PROBLEMS, *LARGE, *QUANTIZED], ids=str)
def test_reference_right_on_gpu(task: Problem, cuda_runner: Any) -> None:
    assert_right(cuda_runner, REFERENCE, task, LIMIT)


@pytest.mark.gpu
@pytest.mark.parametrize("task", [*PROBLEMS, *LARGE], ids=str)
def test_tiles_right_on_gpu(task: Problem, cuda_runner: Any) -> None:
    assert_right(cuda_runner, TILED, task, LIMIT)


def test_rows_of_a_batch_are_one_matrix() -> None:
    shape = MatMulShape.of(matmul((2, 3, 5, 7), (7, 9)))
    assert shape.batch == ()
    assert (shape.m, shape.n, shape.k) == (30, 9, 7)
    assert shape.b_is_shared


def test_regular_leading_dimensions_merge() -> None:
    shape = MatMulShape.of(matmul((2, 3, 5, 7), (2, 3, 7, 4)))
    assert shape.batch == (BatchDim(6, 35, 28, 20),)
    assert shape.batches == 6
    assert shape.batch_numbers() == (1, 1, 6, 0, 0, 0, 35, 0, 0, 0, 28, 0, 0, 0, 20)
    assert not shape.b_is_shared
    assert len(MatMulShape.of(HEADS).batch) == 2


def test_vectors_are_matrices() -> None:
    row = MatMulShape.of(matmul((7,), (7, 9)))
    column = MatMulShape.of(matmul((5, 7), (7,)))
    assert (row.m, row.n, row.k) == (1, 9, 7)
    assert (column.m, column.n, column.y_strides) == (5, 1, (1, 0))


def test_refusals() -> None:
    assert refusal(TILED, conv((1, 2, 3, 3), (2, 2, 1, 1))) == "op is Conv, expected MatMul"
    assert "operands are int32" in refusal(REFERENCE, matmul((2, 3), (3, 4), INT32))
    assert "operands are fp64" in refusal(TILED, matmul((2, 3), (3, 4), FP64))
    many = matmul((4096, 2, 3), (4096, 3, 4))
    assert refusal(TILED, many) == "4096 matrices do not fit the launch grid (4095)"
    # Every second element of five dimensions: no two of them merge.
    shape = (2, 2, 2, 2, 2, 2, 3)
    steps = (3 * 4**6, 3 * 4**5, 3 * 4**4, 3 * 4**3, 3 * 4**2, 3, 1)
    loose = matmul(shape, (*shape[:-2], 3, 4), strides=(steps, None, None))
    assert refusal(REFERENCE, loose) == (
        "5 leading dimensions do not merge, kernels step through 4"
    )
    assert "sm_75 has no bf16" in refusal(TILED, matmul((2, 3), (3, 4), BF16), ARCHS["sm_75"])
