"""int8 matrix products by dp4a: in the emulator, compiled, and refused with reasons."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sampling import some

from nrt.cuda_kernels.device import ARCHS
from nrt.cuda_kernels.matmul_dp4a import MatMulDp4a
from nrt.cuda_kernels.registry import variants_for
from nrt.cuda_kernels.simt_tile import TILES, Tile
from nrt.dtypes import BF16, FP16, FP32, INT8, UINT8, DType
from nrt.ir.ops import MatMul
from nrt.problem import Problem, TensorSpec

from .harness import ELSEWHERE, assert_right, compiled
from .plain_cases import BIAS_RELU, assert_emulated, conv, matmul, refusal

# int32 results are exact.
LIMIT = {"fp32": 1e-5, "fp16": 5e-3, "bf16": 3e-2, "int8": 1e-2, "uint8": 1e-2}

DP4A = MatMulDp4a()
SMALL = Tile(32, 32, 16, 4, 4)


def product(a: tuple[int, ...], b: tuple[int, ...], dtype: DType = INT8, **more: Any) -> Problem:
    return matmul(a, b, dtype, **more)


def sliced() -> Problem:
    """Rows of a are a slice of wider ones, y is one of a wider buffer."""
    a, b = TensorSpec((5, 36), INT8, (48, 1)), TensorSpec.dense((36, 12), INT8)
    bias = TensorSpec.dense((12,), FP32)
    op = MatMul(epilogue=BIAS_RELU, out_dtype=FP16)
    return Problem(op, (a, b, bias), (TensorSpec((5, 12), FP16, (20, 1)),), (False, True, True))


CASES = [
    (product((5, 64), (64, 7), constant=True), SMALL),
    (product((33, 100), (100, 36), constant=True), SMALL),
    (product((3, 5, 48), (9, 48), trans_b=True), SMALL),
    (product((2, 3, 5, 20), (2, 3, 9, 20), trans_b=True), SMALL),
    (product((2, 1, 5, 20), (3, 9, 20), trans_b=True, extras=((9,),), out_dtype=FP32), SMALL),
    (product((36, 32), (32, 40), constant=True, extras=((40,),), out_dtype=INT8), SMALL),
    (product((64,), (64, 9), constant=True), SMALL),
    (product((5, 64), (64,), constant=True), SMALL),
    (product((5, 64), (64,)), SMALL),
    (product((5, 12), (12, 8), constant=True, extras=((8,), (5, 8)), out_dtype=BF16), SMALL),
    (sliced(), SMALL),
    (product((70, 40), (40, 130), constant=True), Tile(64, 128, 8, 8, 8)),
    (product((40, 36), (36, 40), constant=True), Tile(32, 64, 16, 4, 4)),
    (product((33, 100), (100, 36), UINT8, constant=True), SMALL),
    (product((2, 3, 5, 20), (2, 3, 9, 20), UINT8, trans_b=True, out_dtype=FP16), SMALL),
    (product((5, 64), (64, 12), UINT8, constant=True, extras=((12,),), out_dtype=UINT8), SMALL),
]
PROBLEMS = [task for task, _ in CASES]
LARGE = [
    product((257, 1040), (1040, 190), constant=True),
    product((4, 12, 65, 64), (4, 12, 70, 64), trans_b=True, out_dtype=FP16),
    product((1024, 1024), (1024, 1024), constant=True),
]


@pytest.mark.parametrize(("task", "tile"), CASES, ids=str)
def test_emulated(task: Problem, tile: Tile) -> None:
    assert_emulated(DP4A, task, LIMIT, tile)


@pytest.mark.some(1)
@pytest.mark.parametrize("index", [0, 15])
def test_compiles(index: int) -> None:
    (cubin,) = compiled(DP4A, PROBLEMS[index], "sm_75")
    assert cubin.spills == 0


@pytest.mark.slow
def test_tiles_compile(rng: np.random.Generator) -> None:
    first, second = some(TILES, 2, rng)
    assert compiled(DP4A, LARGE[0], "sm_75", first)[0].spills == 0
    assert compiled(DP4A, LARGE[1], ELSEWHERE, second)[0].spills == 0


@pytest.mark.gpu
@pytest.mark.parametrize("task", [*PROBLEMS, *LARGE], ids=str)
def test_right_on_gpu(task: Problem, cuda_runner: Any) -> None:
    assert_right(cuda_runner, DP4A, task, LIMIT)


def test_configurations_suit_the_size() -> None:
    device = ARCHS["sm_75"]
    small = DP4A.configs(product((8, 64), (64, 8), constant=True), device)
    assert all(t.bm <= 64 and t.bn <= 64 for t in small)
    best = DP4A.configs(product((4096, 4096), (4096, 4096), constant=True), device)[0]
    assert (best.bm, best.bn) == (128, 128)
    assert {
        t.splits for t in DP4A.configs(product((8, 4096), (4096, 8), constant=True), device)
    } == {1}


def test_it_is_expected_to_beat_the_reference() -> None:
    task = product((512, 512), (512, 512), constant=True)
    found = [v for v, reason in variants_for(task, ARCHS["sm_75"]) if reason is None]
    times = {
        v.name: v.estimate(task, v.configs(task, ARCHS["sm_75"])[0], ARCHS["sm_75"]) for v in found
    }
    assert times["matmul_dp4a"] < times["matmul_simt_reference"] / 4


def test_refusals() -> None:
    assert refusal(DP4A, conv((1, 4, 3, 3), (4, 4, 1, 1), INT8, end="none")) == (
        "op is Conv, expected MatMul"
    )
    assert refusal(DP4A, matmul((4, 8), (8, 4), FP16)) == (
        "operands are fp16, expected int8 or uint8"
    )
    assert refusal(DP4A, product((4, 7), (7, 4), constant=True)) == (
        "the depth is 7, expected a multiple of 4"
    )
    assert refusal(DP4A, product((4, 8), (8, 4))) == (
        "b has a step of 4 along the depth, expected 1"
    )
    assert refusal(DP4A, product((8, 4), (8, 4), trans_a=True, constant=True)) == (
        "a has a step of 4 along the depth, expected 1"
    )
    odd = product((4, 8), (8, 4), strides=((9, 1), None, None), constant=True)
    assert refusal(DP4A, odd) == "a has a stride of 9 bytes, expected whole words"
    many = product((65536, 2, 4), (65536, 4, 4), trans_b=True)
    assert refusal(DP4A, many) == "65536 matrices do not fit the launch grid (65535)"
