"""Batched tensor-core products of run-time operands, in all the orders that attention has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from sampling import some

from nrt.cuda_kernels.batched_kernel import _swizzle
from nrt.cuda_kernels.device import ARCHS
from nrt.cuda_kernels.gemm_batched import TILES, GemmBatched
from nrt.cuda_kernels.mma_kernel import Tile
from nrt.dtypes import BF16, FP16, FP32
from nrt.problem import Problem

from .harness import ELSEWHERE, assert_right, compiled
from .kernel_emulator import KernelEmulator
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
    # Odd pitches: the last pair of a line, the pair before an odd one; rows beyond the matrix.
    (matmul((3, 5, 7), (3, 7, 5), FP16), SMALL),
    (matmul((3, 71, 3), (3, 71, 35), FP16, trans_a=True), SMALL),
    (
        matmul((2, 33, 67), (2, 67, 33), BF16, strides=((3001, 71, 1), (2999, 1, 73), None)),
        Tile(64, 32, 64, 2, 1, 3),
    ),
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
    (matmul((2, 17, 24), (2, 24, 44), BF16, extras=((44,), (2, 17, 44)), out_dtype=FP32), SMALL),
    (matmul((2, 17, 24), (2, 24, 30), FP16, extras=((2, 1, 30),)), SMALL),
    # Vectors, single rows, no depth.
    (matmul((40,), (3, 40, 16), FP16), SMALL),
    (matmul((3, 9, 40), (40,), FP16), SMALL),
    (matmul((3, 9, 1), (3, 1, 24), FP16), SMALL),
    (matmul((2, 5, 0), (2, 0, 9), FP16), SMALL),
    # A constant with leading dimensions is read as it is.
    (matmul((2, 9, 24), (2, 24, 10), FP16, constant=True), SMALL),
]  # fmt: skip
SCORES, CONTEXT, UNALIGNED = (
    scores(12, 128, 64, (128, 128)),
    context(12, 128, 64),
    context(12, 197, 64),
)
TRANSPOSED = matmul((5, 264, 136), (5, 200, 264), FP16, trans_a=True, trans_b=True)
# Every tile in one case or more.
LARGE = [
    (SCORES, TILES[5]), (SCORES, TILES[8]), (CONTEXT, TILES[3]), (CONTEXT, TILES[7]),
    (scores(12, 197, 64), TILES[4]), (scores(12, 197, 64), TILES[6]),
    (UNALIGNED, TILES[5]), (UNALIGNED, TILES[10]), (UNALIGNED, TILES[2]),
    (scores(16, 197, 80, dtype=BF16), TILES[1]), (TRANSPOSED, TILES[0]), (TRANSPOSED, TILES[9]),
    (matmul((3, 300, 260), (3, 260, 136), BF16), TILES[4]),
    (matmul((2, 500, 1030), (2, 1030, 77), FP16), TILES[0]),
]  # fmt: skip


@pytest.mark.parametrize(("task", "tile"), CASES, ids=str)
def test_emulated(task: Problem, tile: Tile) -> None:
    assert_emulated(BATCHED, task, LIMIT, tile)


@pytest.mark.slow
def test_tiles_emulated(rng: np.random.Generator) -> None:
    for tile in some(TILES, 1, rng):
        assert_emulated(BATCHED, scores(2, 133, 40, (133,)), LIMIT, tile)
        assert_emulated(BATCHED, context(2, 72, 136), LIMIT, tile)
        assert_emulated(BATCHED, context(1, 75, 24), LIMIT, tile)
        transposed = matmul((130, 72), (136, 130), FP16, trans_a=True, trans_b=True)
        assert_emulated(BATCHED, transposed, LIMIT, tile)


@pytest.mark.gpu
@pytest.mark.parametrize(("task", "tile"), CASES, ids=str)
def test_right_on_gpu(task: Problem, tile: Tile, cuda_runner: Any) -> None:
    assert_right(cuda_runner, BATCHED, task, LIMIT, [tile])


@pytest.mark.gpu
@pytest.mark.parametrize(("task", "tile"), LARGE, ids=str)
def test_large_right_on_gpu(task: Problem, tile: Tile, cuda_runner: Any) -> None:
    assert_right(cuda_runner, BATCHED, task, LIMIT, [tile])


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["sm_80", ELSEWHERE])
def test_attention_compiles_without_spills(arch: str) -> None:
    for task in (SCORES, CONTEXT, UNALIGNED):
        assert all(c.spills == 0 for c in compiled(BATCHED, task, arch))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "arch"),
    [(SCORES, "sm_80"), (TRANSPOSED, "sm_87"), (UNALIGNED, "sm_90a"), (CONTEXT, "sm_90a")],
    ids=str,
)
def test_tiles_compile_without_spills(task: Problem, arch: str, rng: np.random.Generator) -> None:
    for tile in some(TILES, 2, rng):
        assert all(c.spills == 0 for c in compiled(BATCHED, task, arch, tile))


def _place(length: int, line: int, piece: int) -> int:
    """Byte offset of a piece of a swizzled tile."""
    offset: int = KernelEmulator()._value(_swizzle(length))(line, piece)
    return offset


def bank_groups(length: int, lines: Sequence[int], pieces: Sequence[int]) -> set[int]:
    """Which of the eight groups of four banks the pieces lie in."""
    return {_place(length, *spot) // 16 % 8 for spot in zip(lines, pieces, strict=True)}


@pytest.mark.parametrize("length", [16, 32, 64, 128])
def test_no_bank_conflicts(length: int) -> None:
    pieces = length // 8
    offsets = {_place(length, line, p) for line in range(64) for p in range(pieces)}
    assert offsets == set(range(0, 64 * length * 2, 16))
    for line in range(0, 64, 8):
        for piece in range(pieces):  # ldmatrix: eight lines below each other
            assert len(bank_groups(length, range(line, line + 8), [piece] * 8)) == 8
    for thread in range(0, 256, 8):  # stores: eight consecutive threads
        threads = range(thread, thread + 8)
        found = bank_groups(length, [t // pieces for t in threads], [t % pieces for t in threads])
        assert len(found) == 8


def test_configurations_fit_the_device() -> None:
    for arch in ("sm_80", "sm_87", "sm_89", "sm_90a"):
        device = ARCHS[arch]
        for task in (SCORES, CONTEXT, UNALIGNED, TRANSPOSED):
            configs = BATCHED.configs(task, device)
            assert 1 <= len(configs) == len(set(configs))
            for config in configs:
                (launch,) = BATCHED.emit(task, config, device).launches
                assert launch.shared <= device.shared_per_block
                assert BATCHED.estimate(task, config, device) >= task.nbytes / device.bandwidth


def test_pairs_are_expected_to_be_slower() -> None:
    tile, device = DEEP, ARCHS["sm_90a"]
    aligned, odd = context(48, 200, 64), context(48, 197, 64)
    assert BATCHED.estimate(odd, tile, device) > BATCHED.estimate(aligned, tile, device)


def test_large_tiles_are_for_large_batches() -> None:
    device = ARCHS["sm_90a"]
    few, many = (BATCHED.configs(scores(n, 512, 64), device)[0] for n in (1, 96))
    assert Tile(*few).bm * Tile(*few).bn < Tile(*many).bm * Tile(*many).bn


@pytest.mark.parametrize(
    ("task", "reason"),
    [
        (conv((1, 8, 3, 3), (8, 8, 1, 1), FP16), "op is Conv, expected MatMul"),
        (matmul((2, 8, 8), (2, 8, 8)), "operands are fp32, expected fp16 or bf16"),
        (
            matmul((8, 8), (8, 8), FP16, constant=True),
            "b is a constant matrix, which other kernels read packed",
        ),
        (
            matmul((65536, 8, 8), (65536, 8, 8), FP16),
            "65536 matrices do not fit the launch grid (65535)",
        ),
        (
            matmul((2, 8, 8), (2, 8, 8), FP16, strides=((256, 32, 2), None, None)),
            "a has strides (32, 2), expected 1 along rows or depth",
        ),
        (
            matmul((2, 8, 8), (2, 8, 8), FP16, strides=(None, (256, 32, 2), None)),
            "b has strides (32, 2), expected 1 along depth or columns",
        ),
        (
            matmul((2, 8, 8), (2, 8, 8), FP16, strides=(None, None, (64, 1, 8))),
            "columns of the output are not adjacent",
        ),
    ],
    ids=lambda v: str(v)[:40],
)
def test_refusals(task: Problem, reason: str) -> None:
    assert refusal(BATCHED, task) == reason


def test_old_architecture_is_refused() -> None:
    reason = refusal(BATCHED, SCORES, ARCHS["sm_75"])
    assert reason == "sm_75 has no cp.async, expected sm_80 or later"
