"""Batched products of two run-time operands on tensor cores: attention's Q K^T and P V (sm_80)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from nrt.cuda_kernels.batched_kernel import Access, shared_bytes
from nrt.cuda_kernels.conv_common import ceil_div, extra_args, store_width
from nrt.cuda_kernels.device import DeviceSpec
from nrt.cuda_kernels.matmul_common import (
    MatMulShape,
    matmul_epilogue,
    matrix_output,
    refuse_matmul,
)
from nrt.cuda_kernels.mma_kernel import Tile, threads
from nrt.cuda_kernels.variant import Config, Emission, In, KernelSpec, Launch, Out, Scalar, Variant
from nrt.dtypes import BF16, FP16
from nrt.ir.ops import MatMul
from nrt.problem import Problem, Refusal

__all__ = ["TILES", "VARIANTS", "GemmBatched"]

MAX_BATCHES = 65535
"""Matrices that the launch grid's third dimension counts."""

TILES: tuple[Tile, ...] = (
    Tile(128, 128, 32, 2, 4, 4),
    Tile(128, 64, 32, 2, 2, 4),
    Tile(128, 64, 64, 4, 2, 3),
    Tile(64, 128, 32, 2, 2, 4),
    Tile(64, 64, 32, 2, 2, 4),
    Tile(64, 64, 64, 2, 2, 3),
    Tile(64, 32, 64, 2, 1, 3),
    Tile(32, 64, 64, 1, 2, 3),
    Tile(32, 32, 64, 1, 2, 4),
    Tile(16, 128, 64, 1, 4, 3),
    Tile(16, 64, 64, 1, 2, 4),
)

MAX_CONFIGS = 6


class _Lines(NamedTuple):
    """An operand as lines of adjacent elements: how it is read, elements from line to line."""

    access: Access
    pitch: int


def _lines(rows: int, k: int, row_step: int, k_step: int, batches: Sequence[int]) -> _Lines | None:
    """How ``a`` (or ``b``, columns for rows) is read; None if it has no adjacent elements.

    Args:
        rows: rows of a or columns of b.
        k: length of the dot products.
        row_step, k_step: strides of the two.
        batches: strides of the leading dimensions.
    """
    found = []
    if k_step == 1 or k == 1:
        found.append((True, row_step if rows > 1 else 0))
    if row_step == 1 or rows == 1:
        found.append((False, k_step if k > 1 else 0))
    # Where both orders are possible the aligned one wins, and lines along K among equals.
    lines = [
        _Lines(Access(along_k, any(v % 8 for v in (pitch, *batches))), pitch)
        for along_k, pitch in found
    ]
    return min(lines, key=lambda x: x.access.pairs, default=None)


def _operands(shape: MatMulShape) -> tuple[_Lines | None, _Lines | None]:
    """How a and b are read."""
    (am, ak), (bk, bn) = shape.a_strides, shape.b_strides
    return (
        _lines(shape.m, shape.k, am, ak, [d.a for d in shape.batch]),
        _lines(shape.n, shape.k, bn, bk, [d.b for d in shape.batch]),
    )


class GemmBatched(Variant):
    """Tiles of every matrix of a batch; operands as they lie in memory."""

    name = "gemm_batched"
    ops = (MatMul,)
    rank = 4

    def supports(self, problem: Problem, device: DeviceSpec) -> Refusal | None:
        if device.cc < (8, 0):
            return Refusal(f"{device.arch} has no cp.async, expected sm_80 or later")
        refusal = refuse_matmul(problem, device, (FP16, BF16))
        if refusal is not None:
            return refusal
        if problem.constants[1] and len(problem.inputs[1].shape) <= 2:
            return Refusal("b is a constant matrix, which other kernels read packed")
        shape = MatMulShape.of(problem)
        if shape.batches > MAX_BATCHES:
            return Refusal(f"{shape.batches} matrices do not fit the launch grid ({MAX_BATCHES})")
        a, b = _operands(shape)
        if a is None:
            return Refusal(f"a has strides {shape.a_strides}, expected 1 along rows or depth")
        if b is None:
            return Refusal(f"b has strides {shape.b_strides}, expected 1 along depth or columns")
        if shape.y_strides[1] != 1 and shape.n > 1:
            return Refusal("columns of the output are not adjacent")
        return None

    def configs(self, problem: Problem, device: DeviceSpec) -> Sequence[Config]:
        shape = MatMulShape.of(problem)
        # Tiles of 16 rows read b most often: they are for products with few rows.
        fitting = [
            t
            for t in TILES
            if shared_bytes(t) <= device.shared_per_block and (t.bm > 16 or shape.m <= 32)
        ]
        return sorted(fitting, key=lambda t: _seconds(shape, t, device))[:MAX_CONFIGS]

    def estimate(self, problem: Problem, config: Config, device: DeviceSpec) -> float:
        seconds = _seconds(MatMulShape.of(problem), Tile(*config), device)
        return max(problem.nbytes / device.bandwidth + 2e-6, seconds)

    def emit(self, problem: Problem, config: Config, device: DeviceSpec) -> Emission:
        tile = Tile(*config)
        shape = MatMulShape.of(problem)
        a, b = _operands(shape)
        assert a is not None
        assert b is not None
        epilogue = matmul_epilogue(problem)
        y = matrix_output(problem)
        # 16 bytes of a result; sums of 8 columns at most are at hand.
        want = min(8, 16 // y.dtype.itemsize)
        width = store_width(epilogue, y, len(y.shape) - 1, want)
        spec = KernelSpec(
            "nrt.cuda_kernels.batched_kernel:_batched_kernel",
            (
                tile, shape.dtype, shape.out_dtype, epilogue.program, epilogue.extras, width,
                a.access, b.access,
            ),
            threads(tile),
        )  # fmt: skip
        tiles_n = ceil_div(shape.n, tile.bn)
        numbers = (
            shape.m, shape.n, shape.k, a.pitch, b.pitch,
            shape.y_strides[0] if shape.m > 1 else 0, tiles_n, *shape.batch_numbers(),
        )  # fmt: skip
        launch = Launch(
            spec,
            (ceil_div(shape.m, tile.bm) * tiles_n, 1, shape.batches),
            (threads(tile), 1, 1),
            (In(0), In(1), Out(), *extra_args(problem), *(Scalar(v) for v in numbers)),
            shared_bytes(tile),
        )
        return Emission((launch,))


def _seconds(shape: MatMulShape, tile: Tile, device: DeviceSpec) -> float:
    """Expected seconds: waves of blocks, each bound by tensor cores, loads or waiting.

    The rates are those that `mma_tile` found. Operands that are loaded in pairs of elements take
    about three times as long to load, and a step waits for them before it computes.
    """
    blocks = ceil_div(shape.m, tile.bm) * ceil_div(shape.n, tile.bn) * shape.batches
    by_shared = device.shared_per_sm // (shared_bytes(tile) + 1024)
    # About 160 registers a thread.
    per_sm = max(1, min(by_shared, 65536 // (160 * threads(tile))))
    resident = min(per_sm, ceil_div(blocks, device.multiprocessors))
    rounds = max(1.0, blocks / (device.multiprocessors * resident))
    if rounds < 4:
        rounds = float(math.ceil(rounds))
    steps = ceil_div(shape.k, tile.bk)
    pairs = [x is not None and x.access.pairs for x in _operands(shape)]
    rate = 0.4 * device.fp16_flops / device.multiprocessors * (0.75 if resident == 1 else 1.0)
    warps = max(0.25, min(1.0, threads(tile) // 32 * resident / 8))
    compute = 2.0 * tile.bm * tile.bn * tile.bk * steps * resident / (rate * warps)
    lines = sum(
        size * (3 if slow else 1) for size, slow in zip((tile.bm, tile.bn), pairs, strict=True)
    )
    # L2 to shared memory: about 64 bytes per clock and SM at 1.7 GHz.
    loads = lines * tile.bk * 2.0 * steps * resident / 1.1e11
    # Pairs wait for memory before they go on to shared memory.
    wait = 0.25e-6 + 0.4e-6 * any(pairs)
    latency = 0.8e-6 + steps * wait / resident
    # An SM's epilogues finish about 4 elements a nanosecond.
    epilogue = tile.bm * tile.bn * resident / 4e9
    return rounds * (max(compute, loads, latency) + epilogue) + 2e-6


VARIANTS: tuple[Variant, ...] = (GemmBatched(),)
