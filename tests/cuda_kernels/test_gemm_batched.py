"""Batched tensor-core products of run-time operands, in all the orders that attention has."""

from __future__ import annotations

from typing import Any

import pytest

from nrt.cuda_kernels.device import ARCHS
from nrt.cuda_kernels.gemm_batched import TILES, GemmBatched
from nrt.cuda_kernels.mma_kernel import Tile
from nrt.dtypes import BF16, FP16, FP32
from nrt.problem import Problem

from .harness import assert_right, compiled
from .plain_cases import assert_emulated, conv, matmul, refusal

LIMIT = {"fp32": 2e-3, "fp16": 5e-3, "bf16": 3e-2}

BATCHED = GemmBatched()
SMALL, WIDE, DEEP = Tile(32, 32, 64, 1, 2, 4), Tile(64, 64, 32, 2, 2, 4), Tile(64, 64, 64, 2, 2, 3)


def scores(heads: int, rows: int, size: int, mask: tuple[int, ...] = (), **options: Any) -> Problem:
    """Q K^T, both as a linear layer wrote them: heads beside each other in a row."""
    pitch = heads * size
    return matmul(
        (heads, rows, size), (heads, size, rows), options.pop("dtype", FP16),
        extras=(mask,) if mask else (), strides=((size, pitch, 1), (size, 1, pitch), None),
        **options,
    )  # fmt: skip


def context(heads: int, rows: int, size: int, dtype: Any = FP16) -> Problem:
    """P V, whose result lies as the next linear layer reads it."""
    step = (size, heads * size, 1)
    return matmul((heads, rows, rows), (heads, rows, size), dtype, strides=(None, step, step))


# One block or few each, for the emulator.
CASES = [
    (scores(2, 40, 24, (1, 40)), SMALL),
    (scores(3, 21, 64, (3, 1, 21)), SMALL),
    (scores(2, 33, 72, dtype=BF16), WIDE),
    (context(2, 40, 24), SMALL),
    (context(2, 37, 40), WIDE),
    (context(3, 19, 24, BF16), DEEP),
    # K is no multiple of 8: the last piece of a line is clipped; b has lines along columns.
    (matmul((2, 9, 20), (2, 20, 13), FP16, strides=((300, 24, 1), (320, 16, 1), None)), SMALL),
    (matmul((2, 9, 77), (2, 77, 13), FP16), SMALL),
    (matmul((2, 9, 77), (2, 77, 13), FP16), Tile(16, 64, 64, 1, 2, 4)),
    # Both operands transposed: lines along rows of a and along K of b.
    (matmul((2, 72, 40), (2, 56, 72), FP16, trans_a=True, trans_b=True), SMALL),
    (matmul((2, 70, 40), (2, 53, 70), FP16, trans_a=True, trans_b=True), WIDE),
    (matmul((70, 13), (70, 40), BF16, trans_a=True), Tile(16, 128, 64, 1, 4, 3)),
    # Broadcast leading dimensions; three that do not merge; a result that is a slice.
    (matmul((2, 1, 17, 32), (3, 32, 24), FP16, extras=((24,), (2, 3, 17, 24))), SMALL),
    (
        matmul(
            (2, 3, 2, 9, 16), (2, 3, 2, 16, 8), FP16, extras=((2, 3, 1, 9, 1),),
            strides=((1008, 320, 160, 16, 1), (2400, 800, 400, 24, 1), (1600, 512, 240, 24, 1)),
        ),
        SMALL,
    ),
    (matmul((2, 65, 48), (2, 48, 66), FP16, out_dtype=FP32), Tile(128, 128, 32, 2, 4, 4)),
    # Vectors, single rows, no depth.
    (matmul((40,), (3, 40, 16), FP16), SMALL),
    (matmul((3, 9, 40), (40,), FP16), SMALL),
    (matmul((3, 9, 1), (3, 1, 24), FP16), SMALL),
    (matmul((2, 5, 0), (2, 0, 9), FP16), SMALL),
    # A constant with leading dimensions is read as it is.
    (matmul((2, 9, 24), (2, 24, 10), FP16, constant=True), SMALL),
]  # fmt: skip
PROBLEMS = list(dict.fromkeys(task for task, _ in CASES))
LARGE = [
    scores(12, 128, 64, (128, 128)),
    context(12, 128, 64),
    scores(12, 197, 64),
    context(12, 197, 64),
    scores(16, 197, 80, dtype=BF16),
    matmul((3, 300, 260), (3, 260, 136), BF16),
    matmul((5, 264, 136), (5, 200, 264), FP16, trans_a=True, trans_b=True),
]


@pytest.mark.parametrize(("task", "tile"), CASES, ids=str)
def test_emulated(task: Problem, tile: Tile) -> None:
    assert_emulated(BATCHED, task, LIMIT, tile)


@pytest.mark.slow
@pytest.mark.parametrize("tile", TILES, ids=str)
def test_every_tile_emulated(tile: Tile) -> None:
    assert_emulated(BATCHED, scores(2, 133, 40, (133,)), LIMIT, tile)
    assert_emulated(BATCHED, context(2, 72, 136), LIMIT, tile)
    assert_emulated(BATCHED, context(1, 75, 24), LIMIT, tile)
    transposed = matmul((130, 72), (136, 130), FP16, trans_a=True, trans_b=True)
    assert_emulated(BATCHED, transposed, LIMIT, tile)


@pytest.mark.gpu
@pytest.mark.parametrize("task", [*PROBLEMS, *LARGE], ids=str)
def test_right_on_gpu(task: Problem, cuda_runner: Any) -> None:
    assert_right(cuda_runner, BATCHED, task, LIMIT)
