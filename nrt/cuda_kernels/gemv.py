"""Products with few rows: every weight is read once, and its 16-byte load is what takes the time.

Two kernels, by how ``b`` lies in memory. Depth adjacent (``[N, K]``, or a constant packed so): a
warp takes ``columns`` columns, its lanes stride over the depth, and shuffles add the lanes. Columns
adjacent (``[K, N]`` computed at run time): a lane takes neighbouring columns, and warps share the
depth. Partial sums of warps are added in order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numba import cuda
from numba.cuda import types

from nrt.cuda_kernels.codegen import pointer
from nrt.cuda_kernels.conv_common import ceil_div, extra_args, extra_types, waves
from nrt.cuda_kernels.device import DeviceSpec
from nrt.cuda_kernels.epilogue import MAX_EXTRAS, Extra, make_store
from nrt.cuda_kernels.matmul_common import (
    MatMulShape,
    matmul_epilogue,
    matrix_output,
    refuse_matmul,
)
from nrt.cuda_kernels.simt_tile import compile_text
from nrt.cuda_kernels.variant import Config, Emission, In, KernelSpec, Launch, Out, Scalar, Variant
from nrt.cuda_kernels.vector import (
    divide,
    masked_loader,
    output_rows,
    row_offset,
    row_params,
    vector_loader,
    widest,
)
from nrt.dtypes import BF16, FP16, FP32, DType
from nrt.ir.op import Array
from nrt.ir.ops import MatMul
from nrt.ir.pointwise import Program
from nrt.problem import Problem, Refusal

__all__ = ["VARIANTS", "Gemv", "GemvConfig"]

u32 = types.uint32
f32 = types.float32

MAX_ROWS = 16
# Accumulators of a thread: more would leave no registers for loads in flight.
MAX_ACCUMULATORS = 64
MAX_SHUFFLED = 16
WARPS = 4
MAX_BATCHES = 65535

_NUMBERS = (
    "M, N, K, ypitch, ycol, am, bstep, size1, size2, size3, as0, as1, as2, as3, bs0, bs1, bs2, bs3"
)


class GemvConfig(NamedTuple):
    """How a block of four warps divides the work.

    Attributes:
        columns: that one warp (depth adjacent) or one lane (columns adjacent) computes.
        split: warps that share the depth of the same columns.
        vector: elements per load.
    """

    columns: int
    split: int
    vector: int


def _head() -> list[str]:
    """Parameters, the matrix of this block (y), warp and lane."""
    extras = ", ".join(f"e{i}" for i in range(MAX_EXTRAS))
    return [
        f"def kernel(a, b, y, {extras}, {_NUMBERS}):",
        "    tid = u32(cuda.threadIdx.x)",
        "    warp = u32(tid // u32(32))",
        "    lane = u32(tid % u32(32))",
        "    matrix = u32(cuda.blockIdx.y)",
        "    z, z3 = divide(matrix, size3)",
        "    z, z2 = divide(z, size2)",
        "    z0, z1 = divide(z, size1)",
        "    a_at = u32(z0 * as0 + z1 * as1 + z2 * as2 + z3 * as3)",
        "    b_at = u32(z0 * bs0 + z1 * bs1 + z2 * bs2 + z3 * bs3)",
    ]


def _tail(total: int, columns: int, parts: int, pitch: int, place: str) -> list[str]:
    """Each thread adds ``parts`` partial sums, ``pitch`` apart, and ends one result.

    Result i of ``total`` is row i // columns of the block's ``columns`` from ``first``; consecutive
    threads end neighbouring columns. ``place`` is the text of its first partial sum's index.
    """
    extras = ", ".join(f"e{i}" for i in range(MAX_EXTRAS))
    return [
        "    i = tid",
        f"    while i < u32({total}):",
        f"        m = u32(i // u32({columns}))",
        f"        cell = u32(i % u32({columns}))",
        f"        i = u32(i + u32({32 * WARPS}))",
        "        n = u32(first + cell)",
        "        if n < N:",
        f"            spot = {place}",
        "            total = sums[spot]",
        *(
            [
                f"            for part in range(1, {parts}):",
                f"                total = total + sums[u32(spot + u32(part) * u32({pitch}))]",
            ]
            if parts > 1
            else []
        ),
        "            row = u32(matrix * M + m)",
        "            o = u32(row_offset(row, ypitch) + n * ycol)",
        f"            store(total, row, n, o, y, {extras})",
    ]


def _depth_text(m: int, config: GemvConfig) -> str:
    """Depth adjacent: sums[part][group][column][row] in shared memory."""
    columns, split, vector = config
    groups = WARPS // split
    block = groups * columns
    lines = [
        *_head(),
        f"    sums = cuda.shared.array({WARPS * columns * m}, f32)",
        f"    group = u32(warp // u32({split}))",
        f"    part = u32(warp % u32({split}))",
        f"    first = u32(cuda.blockIdx.x * u32({block}))",
        *[f"    c{i}_{j} = f32(0)" for i in range(m) for j in range(columns)],
    ]
    for j in range(columns):
        # Columns beyond the edge repeat the last one; their sums are dropped.
        lines += [
            f"    n = u32(first + group * u32({columns}) + u32({j}))",
            "    n = u32(n if n < N else N - u32(1))",
            f"    b{j} = u32(b_at + n * bstep)",
        ]
    lines += [
        f"    k = u32(u32(part * u32(32) + lane) * u32({vector}))",
        "    while k < K:",
    ]
    for j in range(columns):
        names = ", ".join(f"w{j}_{v}" for v in range(vector))
        lines.append(f"        {names}, = load(b, u32(b{j} + k))")
    for i in range(m):
        names = ", ".join(f"x{v}" for v in range(vector))
        lines.append(f"        {names}, = load(a, u32(a_at + u32({i}) * am + k))")
        lines += [
            f"        c{i}_{j} = c{i}_{j} + x{v} * w{j}_{v}"
            for j in range(columns)
            for v in range(vector)
        ]
    lines.append(f"        k = u32(k + u32({32 * split * vector}))")
    for distance in (16, 8, 4, 2, 1):
        lines += [
            f"    c{i}_{j} = c{i}_{j} + cuda.shfl_xor_sync(FULL, c{i}_{j}, {distance})"
            for i in range(m)
            for j in range(columns)
        ]
    lines.append("    if lane == u32(0):")
    lines.append(f"        spot = u32(u32(part * u32({groups}) + group) * u32({columns * m}))")
    lines += [
        f"        sums[u32(spot + u32({j * m + i}))] = c{i}_{j}"
        for i in range(m)
        for j in range(columns)
    ]
    lines.append("    cuda.syncthreads()")
    lines += _tail(m * block, block, split, block * m, f"u32(cell * u32({m}) + m)")
    return "\n".join(lines) + "\n"


def _column_text(m: int, config: GemvConfig) -> str:
    """Columns adjacent: warps add their sums to sums[row][column] one after the other."""
    vector = config.vector
    block = 32 * vector
    lanes = range(vector)
    weights = ", ".join(f"w{v}" for v in lanes)
    lines = [
        *_head(),
        f"    sums = cuda.shared.array({m * block}, f32)",
        f"    first = u32(cuda.blockIdx.x * u32({block}))",
        f"    n = u32(first + lane * u32({vector}))",
        *[f"    c{i}_{v} = f32(0)" for i in range(m) for v in lanes],
        "    k = warp",
        "    while k < K:",
        f"        {weights}, = load_b(b, u32(b_at + k * bstep + n), n < N)",
    ]
    for i in range(m):
        lines.append(f"        x, = load(a, u32(a_at + u32({i}) * am + k))")
        lines += [f"        c{i}_{v} = c{i}_{v} + x * w{v}" for v in lanes]
    lines.append(f"        k = u32(k + u32({WARPS}))")
    lines += [f"    for turn in range({WARPS}):", "        if warp == u32(turn):"]
    for i in range(m):
        for v in lanes:
            spot = f"u32(lane * u32({vector}) + u32({i * block + v}))"
            lines += [
                "            if turn > 0:",
                f"                c{i}_{v} = sums[{spot}] + c{i}_{v}",
                f"            sums[{spot}] = c{i}_{v}",
            ]
    lines.append("        cuda.syncthreads()")
    lines += _tail(m * block, block, 1, 0, f"u32(m * u32({block}) + cell)")
    return "\n".join(lines) + "\n"


def _kernel(
    dtype: DType,
    out_dtype: DType,
    program: Program | None,
    extras: tuple[Extra, ...],
    m: int,
    config: tuple[int, int, int],
    depth_adjacent: bool,
    rows: tuple[tuple[int, int], ...],
) -> tuple[Any, Any]:
    """A block computes all rows of some columns of one matrix (block y)."""
    shape = GemvConfig(*config)
    if depth_adjacent:
        text = _depth_text(m, shape)
        loads = {"load": vector_loader(dtype, shape.vector)}
    else:
        text = _column_text(m, shape)
        loads = {"load": vector_loader(dtype, 1), "load_b": masked_loader(dtype, shape.vector)}
    namespace: dict[str, Any] = {
        "cuda": cuda,
        "u32": u32,
        "f32": f32,
        "FULL": 0xFFFFFFFF,
        "divide": divide(),
        "row_offset": row_offset(rows),
        "store": make_store(program, extras, out_dtype, 1),
        **loads,
    }
    signature = types.void(
        pointer(dtype), pointer(dtype), pointer(out_dtype), *extra_types(extras),
        *[u32] * len(_NUMBERS.split(",")),
    )  # fmt: skip
    return compile_text(text, namespace), signature


class Gemv(Variant):
    """Few rows times a matrix that is read once."""

    name = "gemv"
    ops = (MatMul,)
    rank = 1

    def supports(self, problem: Problem, device: DeviceSpec) -> Refusal | None:
        refusal = refuse_matmul(problem, device, (FP32, FP16, BF16))
        if refusal is not None:
            return refusal
        shape = MatMulShape.of(problem)
        if shape.m > MAX_ROWS:
            return Refusal(f"{shape.m} rows, expected {MAX_ROWS} or fewer")
        if shape.batches > MAX_BATCHES:
            return Refusal(f"{shape.batches} matrices do not fit the launch grid ({MAX_BATCHES})")
        if shape.a_strides[1] != 1 and shape.k > 1:
            return Refusal(f"depth of a has stride {shape.a_strides[1]}, expected 1")
        if not _packs(problem) and 1 not in _live_b(shape):
            return Refusal(f"b has strides {shape.b_strides}, expected 1 along depth or columns")
        return None

    def configs(self, problem: Problem, device: DeviceSpec) -> Sequence[GemvConfig]:
        shape = MatMulShape.of(problem)
        if not _depth_adjacent(problem, shape):
            vector = widest(shape.dtype)
            while vector > 1 and (
                vector * shape.m > MAX_ACCUMULATORS
                or shape.n % vector
                or any(s % vector for s in (shape.b_strides[0], *(d.b for d in shape.batch)))
            ):
                vector //= 2
            return [GemvConfig(vector, WARPS, vector)]
        vector = _depth_vector(problem, shape)
        found = [
            GemvConfig(columns, split, vector)
            for columns in (4, 2, 1)
            for split in (1, 2, 4)
            if (columns == 1 or columns * shape.m <= MAX_SHUFFLED)
            and (split == 1 or shape.k >= 32 * vector * split)
        ]
        return sorted(found, key=lambda c: self.estimate(problem, c, device))[:5]

    def emit(self, problem: Problem, config: Config, device: DeviceSpec) -> Emission:
        config = GemvConfig(*config)
        shape = MatMulShape.of(problem)
        epilogue = matmul_epilogue(problem)
        y = matrix_output(problem)
        channel = len(y.shape) - 1
        rows, pitch = row_params(output_rows(y, channel))
        by_depth = _depth_adjacent(problem, shape)
        spec = KernelSpec(
            "nrt.cuda_kernels.gemv:_kernel",
            (
                shape.dtype, shape.out_dtype, epilogue.program, epilogue.extras, shape.m,
                tuple(config), by_depth, rows,
            ),
            32 * WARPS,
        )  # fmt: skip
        step = shape.k if _packs(problem) else shape.b_strides[1 if by_depth else 0]
        strides = shape.batch_numbers()[:11]
        numbers = (
            shape.m, shape.n, shape.k, pitch, y.strides[channel], shape.a_strides[0], step,
            *strides,
        )  # fmt: skip
        launch = Launch(
            spec,
            (ceil_div(shape.n, _block_columns(config, by_depth)), shape.batches, 1),
            (32 * WARPS, 1, 1),
            (In(0), In(1), Out(), *extra_args(problem), *(Scalar(v) for v in numbers)),
        )
        return Emission((launch,))

    def estimate(self, problem: Problem, config: Config, device: DeviceSpec) -> float:
        config = GemvConfig(*config)
        shape = MatMulShape.of(problem)
        by_depth = _depth_adjacent(problem, shape)
        blocks = ceil_div(shape.n, _block_columns(config, by_depth)) * shape.batches
        rounds = waves(blocks, 8, device)
        # A turn of the loop waits for memory once, about 0.6 us; 8 blocks of an SM overlap theirs.
        depth = config.split * (32 * config.vector if by_depth else 1)
        latency = rounds * (ceil_div(shape.k, depth) * 0.6e-6 + 1e-6)
        arithmetic = 4 * shape.flops / device.fp32_flops
        return max(problem.nbytes / device.bandwidth, arithmetic, latency) + 2e-6

    def pack(self, problem: Problem, config: Config, slot: int, array: Array) -> Array:
        """A constant matrix as [N, K]."""
        if slot != 1 or not _packs(problem):
            return array
        op = problem.op
        assert isinstance(op, MatMul)
        return np.ascontiguousarray(array if op.trans_b else array.T)


def _packs(problem: Problem) -> bool:
    """Whether b is a constant matrix, which `Gemv.pack` lays out as it likes."""
    return problem.constants[1] and len(problem.inputs[1].shape) == 2


def _live_b(shape: MatMulShape) -> tuple[int, int]:
    """Strides of b in depth and columns; a dimension of size 1 counts as adjacent."""
    step, across = shape.b_strides
    return (1 if shape.k == 1 else step), (1 if shape.n == 1 else across)


def _depth_adjacent(problem: Problem, shape: MatMulShape) -> bool:
    """Which of the two kernels reads b."""
    return _packs(problem) or _live_b(shape)[0] == 1


def _depth_vector(problem: Problem, shape: MatMulShape) -> int:
    """Elements of a row of a, and of a column of b, that one load takes."""
    numbers = [shape.k, *(d.a for d in shape.batch)]
    if shape.m > 1:
        numbers.append(shape.a_strides[0])
    if not _packs(problem):
        numbers += [shape.b_strides[1] if shape.n > 1 else 0, *(d.b for d in shape.batch)]
    vector = widest(shape.dtype)
    while vector > 1 and any(v % vector for v in numbers):
        vector //= 2
    return vector


def _block_columns(config: GemvConfig, by_depth: bool) -> int:
    """Columns of one block."""
    return WARPS // config.split * config.columns if by_depth else 32 * config.vector


VARIANTS: tuple[Variant, ...] = (Gemv(),)
