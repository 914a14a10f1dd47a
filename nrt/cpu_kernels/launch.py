"""From sizes and strides to a call of the matrix-product kernel (`nrt.cpu_kernels.product`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from nrt.cpu_kernels.codegen import RowsFunction, column_class, rows_function
from nrt.dtypes import BYTES, FP8E4M3, FP16, FP32, INT32, DType
from nrt.ir.ops.quantize import byte_rounding
from nrt.ir.pointwise import Builder, Program, identity

__all__ = [
    "STAGED",
    "Gather",
    "Operand",
    "Tiling",
    "bind_product",
    "epilogue_function",
    "epilogue_of",
    "panel_columns",
    "sums_type",
    "tiling",
]

_L2_WEIGHTS = 256 * 1024
"""Bytes of packed weights up to which all panels of a block of rows are done in turn: they stay
in L2.
"""
_BLOCK_ROWS = 96
"""96 rows times a 64-column panel of sums are 24 KiB, most of a 32 KiB L1."""
_BLOCK_DEPTH = 512
"""Depth of a block of B: 512 x 64 floats are 128 KiB, read from L2 for every few rows."""
_GRAIN = 1 << 20
"""Multiply-adds that are worth a thread, about 20 us of one core."""
assert _BLOCK_DEPTH * 255 * 128 < 2**24, "sums of a block of bytes are exact in fp32"
_EFFICIENCY = (1.0, 0.97, 0.8)
"""Measured on Zen 4: how close to its peak each inner kernel of `product.SHAPES` comes."""


STAGED: tuple[DType, ...] = (FP32, FP16, *BYTES, FP8E4M3)
"""Operands that are multiplied as fp32, into which a copy turns them."""


def sums_type(operands: DType) -> DType:
    """Element type of sums of products of such operands."""
    return INT32 if operands in BYTES else FP32


@dataclass(frozen=True)
class Gather:
    """Where the rows of A come from; byte strides.

    A row is an output position ``(n, p, q)`` of ``(images, lines, line)``; its run under tap ``(r,
    s)`` starts at ``x + n * x_n + h * x_h + w * x_w`` with ``h = p * stride_h - pad_h + r *
    dilation_h``, and is zeros where ``h`` or ``w`` is outside.
    """

    images: int
    lines: int
    line: int
    taps_h: int
    taps_w: int
    run: int
    height: int
    width: int
    x_n: int
    x_h: int
    x_w: int
    stride: tuple[int, int] = (1, 1)
    pad: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)

    @property
    def rows(self) -> int:
        return self.images * self.lines * self.line

    @property
    def taps(self) -> int:
        return self.taps_h * self.taps_w


@dataclass(frozen=True)
class Operand:
    """A result or an operand of the epilogue: strides in elements of image, line, position and
    column.
    """

    dtype: DType
    n: int
    p: int
    q: int
    col: int


@dataclass(frozen=True)
class Tiling:
    """How a product is cut: index into `product.SHAPES`, and rows of a block."""

    shape: int
    block_rows: int


def panel_columns(shape: int) -> int:
    """Columns of a panel of packed weights."""
    from nrt.cpu_kernels.product import SHAPES
    from nrt.cpu_kernels.simd import LANES

    return SHAPES[shape][1] * LANES


def tiling(rows: int, cols: int, groups: int) -> list[Tiling]:
    """Tilings, the one expected to be fastest first."""
    from nrt.cpu_kernels.pool import threads
    from nrt.cpu_kernels.product import SHAPES

    ranked = []
    for shape, (mr, _) in enumerate(SHAPES):
        nr = panel_columns(shape)
        panels = -(-cols // nr)
        limit = _BLOCK_ROWS
        if panels * groups * -(-rows // limit) < 4 * threads():
            limit = max(_BLOCK_ROWS // 2, mr)
        blocks = -(-rows // limit)
        even = -(-rows // blocks)
        block = -(-even // mr) * mr
        # A tail of rows costs nearly a whole tile when the tile is high.
        waste = -(-rows // mr) * mr if rows > mr else rows
        ranked.append((panels * nr * waste / _EFFICIENCY[shape], shape, Tiling(shape, block)))
    ranked.sort(key=lambda entry: entry[:2])
    return [t for cost, _, t in ranked if cost <= 1.35 * ranked[0][0]]


def epilogue_of(
    program: Program | None, bias: bool, outs: Sequence[DType], sums: DType = FP32
) -> Program:
    """The program that follows the sum: an op's epilogue, a plain bias, or nothing.

    Args:
        program: the op's epilogue, which reads a float.
        bias: whether a plain bias follows the operands instead.
        outs: element type of each result; floats that are stored as int8 or uint8 are rounded and
            saturated.
        sums: fp32, or int32 of products of bytes.
    """
    whole = sums is INT32
    if program is None and whole and outs[0] is INT32:
        return identity("i")
    b = Builder("ff")
    found = program or (b.build(b("add", 0, 1)) if bias else identity("f"))
    if whole:
        b = Builder(["i", *found.inputs[1:]])
        found = b.build(*b.inline(found, [b("to_f", 0), *range(1, len(found.inputs))]))
    b = Builder(found.inputs)
    results: list[int] = []
    for register, out in zip(found.outputs, outs, strict=True):
        one = replace(found, outputs=(register,))
        rounds = out in BYTES and found.kinds[register] == "f"
        one = byte_rounding(one, out) if rounds else one
        results += b.inline(one, range(len(found.inputs)))
    return b.build(*results)


def epilogue_function(
    epilogue: Program,
    cols: int,
    outs: Sequence[Operand],
    extras: Sequence[Operand],
    sums: DType = FP32,
) -> tuple[list[Operand], RowsFunction]:
    """The rows function of an epilogue, and its operands: results, the accumulator, extras.

    Args:
        epilogue: program of the accumulator and the extras, see `epilogue_of`.
        cols: columns of a row.
        outs: where each of its results goes.
        extras: the epilogue's other inputs.
        sums: element type of the accumulator, whose columns lie side by side.
    """
    operands = [*outs, Operand(sums, 0, 0, 0, 1), *extras]
    function = rows_function(
        epilogue,
        tuple(o.dtype for o in operands),
        tuple(column_class(o.col, cols) for o in operands),
    )
    return operands, function


def bind_product(
    gather: Gather,
    cols: int,
    tile: Tiling,
    epilogue: Program,
    outs: Sequence[Operand],
    extras: Sequence[Operand],
    shifts: Sequence[Sequence[int]],
    sums: DType = FP32,
) -> Callable[[Sequence[int]], None]:
    """Compile a grouped product; the result takes the addresses of A, packed B, outputs and
    extras.

    Args:
        gather: the rows of A of one group.
        cols: columns of B of one group.
        tile: how to cut it; B is packed for ``tile.shape`` as ``[panel][tap][run][column]``.
        epilogue: program of the accumulator and the extras.
        outs: where each result of the epilogue goes.
        extras: the epilogue's other inputs.
        shifts: per group, bytes to add to each address.
        sums: int32 where A and B hold bytes: blocks of the depth are exact in fp32 and are added as
            integers; else fp32.
    """
    from nrt.cpu_kernels.jit import precompile
    from nrt.cpu_kernels.pool import parallel, ranges
    from nrt.cpu_kernels.product import product_kernel

    nr = panel_columns(tile.shape)
    panels = -(-cols // nr)
    blocks = -(-gather.rows // tile.block_rows)
    units = len(shifts) * panels * blocks
    depth = gather.taps * gather.run
    operands, function = epilogue_function(epilogue, cols, outs, extras, sums)
    zeros = np.zeros(gather.run + 1, np.float32)
    block_run = min(gather.run, _BLOCK_DEPTH)
    fields = [
        gather.rows, gather.lines * gather.line, gather.line, gather.taps_w, gather.taps,
        gather.run, *gather.stride, *gather.pad, *gather.dilation, gather.height, gather.width,
        gather.x_n, gather.x_h, gather.x_w, tile.block_rows, blocks, cols, panels, int(panels *
        depth * nr * 4 <= _L2_WEIGHTS), max(1, _BLOCK_DEPTH // gather.run) if block_run ==
        gather.run else 1, block_run, zeros.ctypes.data, len(operands), len(outs),
        int(sums is INT32),
    ]  # fmt: skip
    for o in operands:
        size = o.dtype.itemsize
        fields += [o.n * size, o.p * size, o.q * size, o.col * size, o.col]
    params = np.array(fields, np.int64)
    table = np.array(shifts, np.int64)
    kernel = precompile(product_kernel(tile.shape))
    work_per_unit = tile.block_rows * nr * max(depth, 1)
    chunks = max(1, min(units, ranges(units * work_per_unit, _GRAIN)))
    params_at, shifts_at, count = params.ctypes.data, table.ctypes.data, table.shape[1]

    def call(addresses: Sequence[int]) -> None:
        where = np.array(addresses, np.int64)
        at = where.ctypes.data

        def work(chunk: int) -> None:
            first, last = units * chunk // chunks, units * (chunk + 1) // chunks
            kernel(function.address, params_at, at, shifts_at, count, first, last)

        parallel(work, chunks)

    keep: dict[str, Any] = call.__dict__
    keep["keep"] = (params, table, zeros, function)
    return call
