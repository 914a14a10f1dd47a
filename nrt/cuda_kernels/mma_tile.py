"""Launches of the ``mma.sync`` kernels: the tiles, which suit a problem, what they cost."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from nrt.cuda_kernels.conv_common import Epilogue, ceil_div, rounded
from nrt.cuda_kernels.device import DeviceSpec
from nrt.cuda_kernels.epilogue import MAX_EXTRAS
from nrt.cuda_kernels.mma_kernel import shared_bytes
from nrt.cuda_kernels.mma_layout import Tile, threads
from nrt.cuda_kernels.prologue import Prologue
from nrt.cuda_kernels.variant import Arg, Emission, KernelSpec, Launch, Null, Scalar, Work
from nrt.dtypes import BF16, BYTES, FP16, FP32, INT32, DType
from nrt.ir.ops import Conv, MatMul
from nrt.problem import Problem, Refusal

__all__ = [
    "OPERANDS",
    "PROLOGUE_TILES",
    "SYNCHRONOUS",
    "TILES",
    "Gemm",
    "emission",
    "estimate",
    "groups_of_tile",
    "is_asynchronous",
    "part_width",
    "ranked",
    "reduce_launch",
    "refuse_operands",
    "refuse_rows",
    "row_step",
    "tiles_for",
    "uniform_rows",
]

_REDUCE_THREADS = 256

MAX_CONFIGS = 16

OPERANDS: tuple[DType, ...] = (FP16, BF16, FP32, *BYTES)
"""Element types of x that tensor cores multiply here; fp32 as tf32."""

TILES: tuple[Tile, ...] = (
    Tile(128, 256, 64, 2, 4, 3),
    Tile(128, 256, 64, 2, 4, 4),
    Tile(256, 128, 64, 4, 2, 3),
    Tile(128, 128, 64, 2, 2, 3),
    Tile(128, 128, 32, 2, 2, 4),
    Tile(128, 128, 64, 2, 4, 3),
    Tile(256, 64, 32, 4, 1, 4),
    Tile(128, 64, 32, 2, 2, 4),
    Tile(128, 64, 64, 4, 2, 3),
    Tile(64, 128, 32, 2, 2, 4),
    Tile(64, 64, 32, 2, 2, 4),
    Tile(64, 64, 64, 2, 2, 4),
    Tile(128, 32, 32, 4, 1, 4),
    Tile(64, 32, 64, 2, 1, 4),
    Tile(32, 64, 64, 1, 2, 4),
    Tile(32, 32, 64, 1, 2, 6),
)
"""For elements of 2 bytes; of others a tile has as many bytes (`tiles_for`)."""

PROLOGUE_TILES: tuple[Tile, ...] = (
    Tile(128, 128, 64, 4, 2, 3),
    Tile(128, 128, 32, 4, 2, 4),
    Tile(128, 64, 64, 4, 1, 3),
    Tile(64, 128, 64, 2, 2, 3),
    Tile(64, 64, 64, 2, 1, 4),
    Tile(64, 64, 64, 4, 1, 4),
    Tile(64, 64, 32, 4, 1, 4),
    Tile(32, 128, 64, 2, 2, 4),
    Tile(32, 64, 64, 2, 1, 4),
    Tile(64, 32, 64, 4, 1, 4),
    Tile(32, 32, 64, 2, 1, 6),
)
"""With a prologue: every warp along the columns computes it again, so tiles have few of those."""

SYNCHRONOUS: tuple[Tile, ...] = (
    Tile(128, 128, 32, 2, 4, 2),
    Tile(128, 64, 32, 2, 2, 2),
    Tile(64, 64, 64, 2, 2, 2),
    Tile(64, 64, 32, 2, 2, 2),
    Tile(128, 32, 32, 4, 1, 2),
    Tile(32, 32, 64, 1, 2, 2),
)
"""Without ``cp.async``: two stages, a block held in registers."""


def tiles_for(dtype: DType, device: DeviceSpec) -> list[Tile]:
    """The tiles for operands of ``dtype`` that fit the device, largest first."""
    return _fitting(TILES, dtype, device)


def _fitting(asynchronous: Sequence[Tile], dtype: DType, device: DeviceSpec) -> list[Tile]:
    base = asynchronous if is_asynchronous(device) else SYNCHRONOUS
    tiles = [t._replace(bk=t.bk * 2 // dtype.itemsize) for t in base]
    return [t for t in tiles if shared_bytes(t, dtype) <= device.shared_per_block]


def is_asynchronous(device: DeviceSpec) -> bool:
    """Whether the device has ``cp.async``."""
    return device.cc >= (8, 0)


def refuse_operands(problem: Problem, device: DeviceSpec) -> Refusal | None:
    """None, or why the device's tensor cores do not multiply the problem's operands."""
    op, dtype = problem.op, problem.inputs[0].dtype
    assert isinstance(op, Conv | MatMul)
    if dtype == FP32 and not op.tf32:
        return Refusal("operands are fp32 and may not be rounded to tf32")
    if device.cc < (7, 5):
        return Refusal(f"{device.arch} has no ldmatrix, expected sm_75 or later")
    if device.cc < (8, 0) and dtype != FP16:
        return Refusal(f"{device.arch} multiplies fp16 only here, operands are {dtype}")
    return None


@dataclass(frozen=True)
class Gemm:
    """Sizes of one run of the tile engine, in the kernel's terms.

    Attributes:
        m, k, j: output rows, output channels, length of the sums.
        dtype, out_dtype: of x and of y; w is of `conv_common.weights_type`.
        pointwise: rows of x are read as they are; the filter's geometry is not used.
        y_row, x_w: elements from one row of y, one pixel of x, to the next.
        height, width, channels: of x.
        out_h, out_w: of y.
        filter_w: width of the filter.
        stride, pad, dilation: (vertical, horizontal).
        x_n, x_h: elements from one image, one line of x, to the next.
        groups: of a convolution; ``j`` and a group's sums are then those of one group.
        group_tiles, group_c: tiles that read the same channels, channels from one such run to the
            next (see `on`).
        prologue: what x goes through.
        pooled: how all pixels of an image become one (``mean``, ``sum``); None where they stay.
        halves: pixels of x start at multiples of 8 bytes; ``channels`` are 8 bytes more than there
            are, a multiple of 16, and w is 0 there.
    """

    m: int
    k: int
    j: int
    dtype: DType
    out_dtype: DType
    pointwise: bool
    y_row: int
    x_w: int
    height: int = 1
    width: int = 1
    channels: int = 1
    out_h: int = 1
    out_w: int = 1
    filter_w: int = 1
    stride: tuple[int, int] = (1, 1)
    pad: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    x_n: int = 0
    x_h: int = 0
    groups: int = 1
    group_tiles: int = 1
    group_c: int = 0
    prologue: Prologue | None = None
    pooled: str | None = None
    halves: bool = False

    def row_tiles(self, tile: Tile) -> int:
        """Tiles along the rows: of those that are pooled each has an image of its own."""
        if self.pooled is not None:
            return self.m // (self.out_h * self.out_w)
        return ceil_div(self.m, tile.bm)

    def table_length(self, tile: Tile) -> int:
        """Numbers in each of the prologue's tables.

        Those of one filter position's channels, where these are whole blocks; else those of all.
        """
        if not self.pointwise and self.channels % tile.bk == 0:
            return self.channels
        return rounded(self.j, tile.bk)

    def tables(self, tile: Tile) -> int:
        """Bytes of the prologue's tables."""
        count = 0 if self.prologue is None else len(self.prologue.operands)
        return count * self.table_length(tile) * 4

    def tiles(self, device: DeviceSpec) -> list[Tile]:
        """The tiles for this run that fit the device."""
        if self.pooled is not None:
            pixels = self.out_h * self.out_w
            return [t for t in tiles_for(self.dtype, device) if pixels <= t.bm < 4 * pixels]
        if self.prologue is None:
            return tiles_for(self.dtype, device)
        return [
            tile
            for tile in _fitting(PROLOGUE_TILES, self.dtype, device)
            if shared_bytes(tile, self.dtype, self.tables(tile)) <= device.shared_per_block
        ]

    def on(self, tile: Tile) -> Gemm | None:
        """What a tile sees: with groups, the length of its own sums; None if it cannot be used.

        The columns of a tile belong to one group or to several whole ones; all columns of a tile
        then read the channels of all of them.
        """
        if self.groups == 1:
            return self
        c, k = self.channels // self.groups, self.k // self.groups
        shared = groups_of_tile(self.groups, k, tile.bn)
        if shared is None or shared * c * self.dtype.itemsize % 16:
            return None
        run = shared * c
        return replace(
            self, j=self.j // c * run, channels=run, group_c=run, group_tiles=ceil_div(k, tile.bn)
        )


def groups_of_tile(groups: int, k: int, bn: int) -> int | None:
    """Groups of ``k`` output channels that ``bn`` columns belong to; None if not whole ones."""
    if k % bn == 0:
        return 1
    shared = bn // k
    return None if bn % k or groups % shared else shared


def uniform_rows(strides: tuple[int, int, int, int], sizes: tuple[int, int, int]) -> bool:
    """Whether the pixels (n, h, w) lie evenly spaced, so that their number gives the address."""
    n, h, w = sizes
    spans = [(n, strides[0]), (h, strides[2]), (w, strides[3])]
    live = [(size, step) for size, step in spans if size > 1]
    return all(
        outer == inner_size * inner for (_, outer), (inner_size, inner) in itertools.pairwise(live)
    )


def refuse_rows(problem: Problem, channel: int) -> Refusal | None:
    """None, or why the output's rows have no common pitch with channels innermost."""
    y = problem.y
    n, _, h, w = y.shape
    strides = (y.strides[0], y.strides[1], y.strides[2], y.strides[3])
    if y.strides[channel] != 1 and y.shape[channel] > 1:
        return Refusal("channels of the output are not innermost")
    if not uniform_rows(strides, (n, h, w)):
        return Refusal(f"pixels of the output are not evenly spaced: strides {y.strides}")
    return None


def part_blocks(tile: Tile, j: int) -> int:
    """Steps of BK that each part of a split reduction takes."""
    return ceil_div(ceil_div(j, tile.bk), tile.split)


def _warp_tile(tile: Tile) -> tuple[int, int]:
    return tile.bm // tile.wm, tile.bn // tile.wn


def _blocks_per_sm(tile: Tile, dtype: DType, device: DeviceSpec) -> int:
    by_shared = device.shared_per_sm // (shared_bytes(tile, dtype) + 1024)
    rows, columns = _warp_tile(tile)
    # Sums, two sets of fragments, about 50 for addresses and counters.
    registers = rows * columns // 32 + (rows + columns) // 2 + 50
    return max(1, min(by_shared, 2048 // threads(tile), 65536 // (registers * threads(tile))))


def estimate(gemm: Gemm, tile: Tile, problem: Problem, device: DeviceSpec) -> float:
    """Expected seconds: those of the tiles, but at least those of moving every byte once."""
    gemm = _seen(gemm, tile)
    return max(_bare_estimate(gemm, tile, device), problem.nbytes / device.bandwidth + 2e-6)


def _seen(gemm: Gemm, tile: Tile) -> Gemm:
    seen = gemm.on(tile)
    assert seen is not None
    return seen


def _bare_estimate(gemm: Gemm, tile: Tile, device: DeviceSpec) -> float:
    """Seconds of the tiles: waves of blocks, each bound by the tensor cores or by loads from L2.

    mma.sync does at most 0.63 of what wgmma does on Hopper, and all there is elsewhere. On an H200
    warps of 64x64 reached 482 TFLOP/s in a 4096 product, those of 64x32, with a greater share of
    ldmatrix, 0.4 of the peak. Every launch costs about 2 us.
    """
    blocks = gemm.row_tiles(tile) * ceil_div(gemm.k, tile.bn) * tile.split
    per_sm = _blocks_per_sm(tile, gemm.dtype, device)
    resident = min(per_sm, ceil_div(blocks, device.multiprocessors))
    rounds = max(1.0, blocks / (device.multiprocessors * resident))
    if rounds < 4:
        rounds = float(math.ceil(rounds))
    steps = part_blocks(tile, gemm.j)
    rows, columns = _warp_tile(tile)
    share = (0.58 if device.cc >= (9, 0) else 0.8) * min(1.0, 0.4 + rows * columns / 6800)
    size = gemm.dtype.itemsize
    rate = share * device.fp16_flops / device.multiprocessors * 2 / size
    warps = min(1.0, tile.wm * tile.wn * resident / 8)
    compute = 2.0 * tile.bm * tile.bn * tile.bk * steps * resident / (rate * max(warps, 0.25))
    # L2 to shared memory: about 64 bytes per clock and SM at 1.7 GHz.
    loads = (tile.bm + tile.bn) * tile.bk * float(size) * steps * resident / 1.1e11
    latency = 0.8e-6 + steps * 0.25e-6 / resident
    # An SM's epilogues finish 3 to 5 elements a nanosecond (1x1, 64 to 256 channels, with and
    # without a residual).
    epilogue = tile.bm * tile.bn * resident / 4e9
    prologue = 0.0
    if gemm.prologue is not None:
        # Every warp that shares the rows, on cores that start 4 x 32 instructions a clock.
        each = gemm.prologue.instructions
        prologue = tile.bm * tile.bk * tile.wn * steps * resident * each / (128 * 1.5e9)
    seconds = rounds * (max(compute, loads, latency, prologue) + epilogue) + 2e-6
    if tile.split > 1:
        seconds += 2e-6 + gemm.m * gemm.k * 4.0 * (tile.split + 1) / device.bandwidth
    return seconds


def ranked(gemm: Gemm, device: DeviceSpec) -> list[Tile]:
    """Tiles that fit the device, best estimate first; splits only where blocks are few."""
    found: list[tuple[float, Tile]] = []
    for base in gemm.tiles(device):
        seen = gemm.on(base)
        if seen is None:
            continue
        blocks = gemm.row_tiles(base) * ceil_div(gemm.k, base.bn)
        for split in (1, 2, 4, 8) if gemm.pooled is None else (1,):
            tile = base._replace(split=split)
            enough = split == 1 or (
                blocks * split <= 2 * device.multiprocessors
                and ceil_div(seen.j, base.bk) >= 4 * split
            )
            if enough:
                found.append((_bare_estimate(seen, tile, device), tile))
    found.sort(key=lambda item: item[0])
    return [tile for _, tile in found[:MAX_CONFIGS]]


def emission(
    gemm: Gemm,
    tile: Tile,
    epilogue: Epilogue,
    width: int,
    operands: tuple[Arg, Arg],
    out: Arg,
    extras: tuple[Arg, ...],
    device: DeviceSpec,
    before: tuple[Arg, ...] = (Null(),) * MAX_EXTRAS,
) -> Emission:
    """The launches of one run: the tiles, and for a split reduction the sum of its parts.

    ``extras`` are the operands of the epilogue, those of the prologue behind them; ``before`` are
    those of the prologue alone.
    """
    gemm = _seen(gemm, tile)
    split = tile.split > 1
    sums = INT32 if gemm.dtype in BYTES else FP32
    params = (
        # How many parts there are concerns the launch alone.
        tile._replace(split=min(tile.split, 2)), gemm.dtype, sums if split else gemm.out_dtype,
        None if split else epilogue.program, () if split else epilogue.extras,
        part_width(gemm.k) if split else width, gemm.pointwise,
        is_asynchronous(device), *([] if gemm.prologue is None else [gemm.prologue]),
        *([] if gemm.pooled is None else [None, gemm.pooled]),
        *([None, None, True] if gemm.halves else []),
    )  # fmt: skip
    spec = KernelSpec("nrt.cuda_kernels.mma_kernel:_mma_kernel", params, threads(tile))
    tiles_n = ceil_div(gemm.k, tile.bn)
    tiles = gemm.row_tiles(tile) * tiles_n
    numbers = (
        gemm.m, gemm.k, gemm.j,
        gemm.height, gemm.width, gemm.channels, gemm.out_h * gemm.out_w, gemm.out_w, gemm.filter_w,
        *gemm.stride, *gemm.pad, *gemm.dilation,
        gemm.x_n, gemm.x_h, gemm.x_w, gemm.k if split else gemm.y_row, tiles, tiles_n,
        _strip(tile, tiles_n), part_blocks(tile, gemm.j), gemm.group_tiles, gemm.group_c,
    )  # fmt: skip
    main = Launch(
        spec,
        (tiles, tile.split, 1),
        (threads(tile), 1, 1),
        (
            *operands, Work() if split else out, *(before if split else extras),
            *(Scalar(v) for v in numbers),
        ),
        shared_bytes(tile, gemm.dtype, gemm.tables(tile)),
    )  # fmt: skip
    if not split:
        return Emission((main,))
    reduce = reduce_launch(
        gemm.m, gemm.k, gemm.y_row, gemm.out_dtype, tile.split, epilogue, width, out, extras,
        sums,
    )  # fmt: skip
    return Emission((main, reduce), workspace=tile.split * gemm.m * gemm.k * 4)


def _strip(tile: Tile, tiles_n: int) -> int:
    """Rows of tiles that are walked together; 1 walks row by row.

    Blocks that run together should cover a near-square of about 1000 rows, so that they read the
    fewest bytes of both operands: narrow outputs are walked row by row anyway.
    """
    return max(1, 1024 // tile.bm) if tiles_n >= 8 else 1


def reduce_launch(
    m: int,
    k: int,
    y_row: int,
    out_dtype: DType,
    split: int,
    epilogue: Epilogue,
    width: int,
    out: Arg,
    extras: tuple[Arg, ...],
    sums: DType = FP32,
) -> Launch:
    """Adds the ``split`` parts ``[split, m, k]`` in the workspace, then runs the epilogue.

    The parts are float32 or int32, as ``sums`` says.
    """
    params = (out_dtype, epilogue.program, epilogue.extras, width, split, sums)
    return Launch(
        KernelSpec("nrt.cuda_kernels.mma_kernel:_reduce_kernel", params, _REDUCE_THREADS),
        (ceil_div(m * k // width, _REDUCE_THREADS), 1, 1),
        (_REDUCE_THREADS, 1, 1),
        (Work(), out, *extras, Scalar(m), Scalar(k), Scalar(y_row)),
    )


def row_step(strides: tuple[int, int, int, int], sizes: tuple[int, int, int]) -> int:
    """Elements from one pixel to the next, where pixels are evenly spaced."""
    _, h, w = sizes
    if w > 1:
        return strides[3]
    return strides[2] if h > 1 else strides[0]


def part_width(k: int) -> int:
    """Floats per store of a partial sum."""
    return 4 if k % 4 == 0 else 1
