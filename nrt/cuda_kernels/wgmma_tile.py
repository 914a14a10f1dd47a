"""Launches of the Hopper kernel: its tiles, which suit a problem, what they cost."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from nrt.cuda_kernels.conv_common import Epilogue, ceil_div, weights_type
from nrt.cuda_kernels.device import DeviceSpec
from nrt.cuda_kernels.epilogue import MAX_EXTRAS, Extra
from nrt.cuda_kernels.epilogue_box import (
    boxed_operand,
    boxed_second,
    fragment_order,
    refuse_boxes,
)
from nrt.cuda_kernels.prologue import Prologue
from nrt.cuda_kernels.variant import Arg, Emission, In, KernelSpec, Launch, Null, Scalar, TensorMap
from nrt.cuda_kernels.wgmma_layout import (
    ROWS,
    HopperTile,
    Layout,
    chunk_columns,
    depth,
    threads,
)
from nrt.dtypes import BF16, BYTES, FP8E4M3, FP16, FP32, DType
from nrt.ir.op import Array
from nrt.ir.ops import Conv, MatMul
from nrt.problem import Problem, Refusal

__all__ = [
    "OPERANDS",
    "HopperGemm",
    "emission",
    "estimate",
    "map_type",
    "ranked",
    "refuse_device",
    "refuse_operands",
    "store_limit",
    "weight_rows",
]

OPERANDS: tuple[DType, ...] = (FP16, BF16, FP32, *BYTES, FP8E4M3)
"""Types of x; products of fp32 are tf32."""

_SHAPES = (
    # warpgroups, columns, blocks on an SM
    (2, 256, 1),
    (2, 192, 1),
    (2, 160, 1),
    (2, 128, 1),
    (2, 96, 2),
    (2, 64, 2),
    (2, 64, 3),
    (3, 128, 1),
    (3, 96, 1),
    (3, 64, 1),
    (4, 64, 1),
    (1, 256, 1),
    (1, 192, 1),
    (1, 128, 2),
    (1, 96, 3),
    (1, 64, 1),
    (1, 64, 2),
    (1, 64, 3),
    (1, 64, 4),
    (1, 32, 1),
    (1, 32, 4),
    (2, 32, 3),
)
_STAGES = {1: 12, 2: 8, 3: 8, 4: 8}
"""Buffers of a ring at most, by warpgroups. A load takes about 1 us from L2; one warpgroup is done
with 16 KB in 0.07 us."""
_TIGHT = ((2, 256, 1), (2, 96, 2), (2, 64, 3))
"""Shapes whose threads have too few registers for a prologue: about 60 besides the sums."""


@dataclass(frozen=True)
class HopperGemm:
    """Sizes of one run, in the kernel's terms.

    Attributes:
        m, k: output rows and channels.
        channels: along the reduction, per filter position.
        taps: filter positions.
        out_dtype: of y.
        dtype: of x; w is of `conv_common.weights_type`.
        y_row: elements from one row of y to the next.
        x_map: the map of x, but for its box, which is the tile's.
        im2col: whether that map walks patches.
        epilogue: what ends the kernel.
        width: channels of its stores, see `conv_common.store_width`; `store_limit` at most.
        filter_w, out_h, out_w, stride, pad, dilation: geometry, for im2col.
        group_k: columns that share their input channels; 0: all. A tile lies inside of one.
        group_c: channels from one such set of columns to the next.
        prologue: what x goes through.
    """

    m: int
    k: int
    channels: int
    taps: int
    dtype: DType
    out_dtype: DType
    y_row: int
    x_map: TensorMap
    im2col: bool
    epilogue: Epilogue
    width: int
    filter_w: int = 1
    out_h: int = 1
    out_w: int = 1
    stride: tuple[int, int] = (1, 1)
    pad: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    group_k: int = 0
    group_c: int = 0
    prologue: Prologue | None = None

    @property
    def tables(self) -> int:
        """Bytes of the prologue's tables, which go with rows of 128 bytes.

        They hold the channels of one filter position: those of all have the same numbers.
        """
        if self.prologue is None:
            return 0
        block = 128 // self.dtype.itemsize
        return len(self.prologue.operands) * self.blocks_c(128) * block * 4

    def blocks_c(self, row: int) -> int:
        """Blocks of ``row`` bytes of channels per filter position."""
        return ceil_div(self.channels * self.dtype.itemsize, row)

    def blocks(self, row: int) -> int:
        """Blocks of ``row`` bytes along the reduction."""
        return self.blocks_c(row) * self.taps

    @property
    def rows(self) -> tuple[int, ...]:
        """Bytes of a row worth trying: less than 128 where that pads the channels less."""
        if self.prologue is not None:
            return (128,)
        padded = {row: self.blocks_c(row) * row for row in ROWS}
        found = [128]
        for row in ROWS[1:]:
            if padded[row] < padded[found[-1]] and (row == 64 or padded[128] <= 256):
                found.append(row)
        return tuple(found)

    @property
    def nbytes(self) -> int:
        """Bytes of the operands; of x about."""
        return (self.m + self.k * self.taps) * self.channels * self.dtype.itemsize

    @property
    def boxed(self) -> bool:
        """Whether the output can leave through the copy engine."""
        whole = self.width * self.out_dtype.itemsize == 16
        return whole and not refuse_boxes(self.epilogue.extras, self.out_dtype)

    @property
    def residual(self) -> bool:
        """Whether the copy engine can fetch an operand of the epilogue of the output's size."""
        return boxed_operand(self.epilogue.extras, self.out_dtype) is not None

    @property
    def twice(self) -> bool:
        """Whether the epilogue has a second result."""
        return boxed_second(self.epilogue.extras) is not None


def store_limit(dtype: DType) -> int:
    """Channels of ``dtype`` that rows of the output must be whole multiples of to leave as boxes.

    16 bytes are what the copy engine steps by; of wider types, a store takes as many.
    """
    return 16 if dtype.itemsize == 1 else 8


def weight_rows(gemm: HopperGemm, tile: HopperTile, rows: Array) -> Array:
    """Packed weights, a row per output channel, in the order that ``tile`` reads them in."""
    if not _boxed(gemm, tile) or gemm.out_dtype.itemsize != 1:
        return rows
    return np.ascontiguousarray(rows[fragment_order(len(rows))])


def refuse_device(device: DeviceSpec) -> Refusal | None:
    """None, or why the device has no such kernels."""
    if device.arch != "sm_90a":
        return Refusal(f"{device.arch} has no warpgroup products, expected sm_90a")
    return None


def refuse_operands(problem: Problem) -> Refusal | None:
    """None, or why operands of float32 must not be rounded to tf32."""
    op = problem.op
    assert isinstance(op, Conv | MatMul)
    if problem.inputs[0].dtype == FP32 and not op.tf32:
        return Refusal("operands are fp32 and may not be rounded: permit tf32")
    return None


def _part(gemm: HopperGemm, tile: HopperTile) -> int:
    return ceil_div(gemm.blocks(tile.row), tile.split)


def _tiles(gemm: HopperGemm, tile: HopperTile) -> tuple[int, int]:
    """Rows (counted in clusters) and columns of tiles."""
    rows = ceil_div(gemm.m, tile.consumers * 64 * tile.cluster)
    return rows, ceil_div(gemm.k, tile.bn)


def _boxed(gemm: HopperGemm, tile: HopperTile) -> bool:
    return gemm.boxed and tile.split == 1


def _layout(gemm: HopperGemm, tile: HopperTile) -> Layout:
    boxed = _boxed(gemm, tile)
    return Layout.of(tile, gemm.out_dtype.itemsize if boxed else 0, boxed and gemm.residual)


def _with_stages(gemm: HopperGemm, tile: HopperTile, device: DeviceSpec) -> HopperTile | None:
    """``tile`` with as many buffers as fit beside the others on its SM; None if fewer than 2."""
    limit = min(device.shared_per_block, device.shared_per_sm // tile.per_sm - 1024)
    found = None
    for stages in range(2, _STAGES[tile.consumers] + 1):
        candidate = tile._replace(stages=stages)
        if _layout(gemm, candidate).shared_bytes(gemm.tables) <= limit:
            found = candidate
    return found


def _grid(gemm: HopperGemm, tile: HopperTile, device: DeviceSpec) -> int:
    """Blocks along x: persistent ones fill the device once."""
    rows, columns = _tiles(gemm, tile)
    tiles = rows * columns
    if tile.split > 1:
        return tiles
    clusters = max(1, device.multiprocessors * tile.per_sm // tile.cluster)
    if tile.resident:
        # A block keeps its columns: the step between its tiles is a whole number of rows.
        clusters = max(1, clusters // columns) * columns
    return min(tiles, clusters) * tile.cluster


def _candidates(gemm: HopperGemm, device: DeviceSpec) -> Iterator[HopperTile]:
    for consumers, bn, per_sm in _SHAPES:
        if gemm.group_k % bn:
            continue
        if gemm.prologue is not None and (consumers, bn, per_sm) in _TIGHT:
            continue
        # With both, words that wait would leave the registers of the widest tile.
        if gemm.boxed and gemm.residual and gemm.twice and (consumers, bn) == (2, 256):
            continue
        if gemm.dtype in BYTES and bn % 16:
            continue
        for row in gemm.rows:
            yield from _forms(gemm, HopperTile(consumers, bn, 2, per_sm, row=row), device)


def _forms(gemm: HopperGemm, base: HopperTile, device: DeviceSpec) -> Iterator[HopperTile]:
    """A tile by itself, in clusters, with weights that stay, and with its reduction split."""
    rows, columns = _tiles(gemm, base)
    tiles, blocks = rows * columns, gemm.blocks(base.row)
    yield base
    # Where both operands stay in the second-level cache, reading w once for two blocks gains
    # nothing and their meeting costs 2 to 8 percent; an 8192 product gains 10.
    large = gemm.nbytes > device.l2_bytes and gemm.prologue is None
    if large and tiles >= device.multiprocessors and rows > 1:
        yield base._replace(cluster=2)
    stays = blocks * base.bn * base.row <= 1024 * 128
    if stays and tiles > device.multiprocessors * base.per_sm:
        yield base._replace(resident=blocks)
    for split in (2, 4, 8):
        few = tiles * split <= 2 * device.multiprocessors and blocks >= 2 * split
        if few and gemm.width >= 4:
            yield base._replace(split=split)


def _bare_estimate(gemm: HopperGemm, tile: HopperTile, device: DeviceSpec) -> float:
    """Seconds of the tiles: rounds of blocks, each bound by products, loads or latency.

    The numbers of `_Model` were fitted to 15118 times of 198 convolutions (ResNet-50, Inception v3
    and MobileNetV2, batch 1 to 32, every tile of each) on an H100: the best of the first four by
    this estimate is on average 0.8% slower than the best of all.
    """
    rows, columns = _tiles(gemm, tile)
    count = rows * columns * tile.split * tile.cluster
    slots = device.multiprocessors * tile.per_sm
    # The borders of the groups of SMs that a cluster must lie within leave some without one.
    room = int(_Model.CLUSTERED * slots / tile.split) * tile.split if tile.split > 1 else slots
    rounds = math.ceil(count / room)
    resident = min(tile.per_sm, ceil_div(count, device.multiprocessors))
    steps = _part(gemm, tile)
    bm = tile.consumers * 64
    rate = _Model.PRODUCTS * device.fp16_flops / device.multiprocessors
    rate *= {1: 2.0, 2: 1.0, 4: 0.5}[gemm.dtype.itemsize]
    # wgmma of few columns cannot keep the tensor cores busy.
    rate *= min(1.0, 0.5 + tile.bn / 256)
    compute = 2.0 * bm * tile.bn * depth(tile, gemm.dtype) * steps * resident / rate
    if tile.row < 128:
        compute *= _Model.NARROW
    w_bytes = 0.0 if tile.resident else float(tile.bn * tile.row)
    loads = (bm * tile.row + w_bytes / tile.cluster) * steps * min(count, slots) / _Model.L2_RATE
    if gemm.im2col:
        loads *= _Model.PATCHES  # neighbouring filter positions meet in the cache
    step = _Model.STEP
    if gemm.prologue is not None:
        # A warpgroup's program and its products wait for each other; those of others fill in.
        each = gemm.prologue.instructions
        program = bm * depth(tile, gemm.dtype) * steps * resident * each / (128 * 1.5e9)
        alone = tile.consumers * resident == 1
        compute = compute + program if alone else max(compute, program)
        step = 0.3e-6
    latency = _Model.FILL + steps * max(step, _Model.LOAD / tile.stages)
    longest = max(compute, loads, latency)
    body = longest + _Model.BESIDE * (compute + loads + latency - longest)
    seconds = rounds * (body + bm * tile.bn * resident / _epilogue_rate(gemm, tile))
    if tile.split > 1:
        seconds += _Model.MEET + bm * tile.bn * 4.0 / _Model.SUMS_RATE
    return seconds + _Model.LAUNCH


class _Model:
    """Fitted numbers of the estimate: seconds, bytes per second, elements per second, factors."""

    PRODUCTS = 1.1  # of the device's measured matrix rate: a short run is not throttled
    NARROW = 1.46  # rows of less than 128 bytes
    L2_RATE = 12.5e12  # into all SMs
    PATCHES = 0.62
    FILL = 0.59e-6
    STEP = 0.086e-6
    LOAD = 0.61e-6  # of a buffer, from L2
    BESIDE = 0.5  # what the shorter ones of products, loads and latency add
    CLUSTERED = 0.96
    MEET = 0.41e-6
    SUMS_RATE = 0.92e11
    LAUNCH = 0.96e-6
    BOXED = 1.37e10
    RESIDUAL = 0.77e10
    ROWS = 0.5e10


def _epilogue_rate(gemm: HopperGemm, tile: HopperTile) -> float:
    """Elements per second that the epilogues of an SM finish.

    Those of boxes were fitted on halves, which 132 SMs store and fetch at 3.6 to 4 TB/s, the pace
    of the memory. Bytes move at twice the rate: an epilogue of int8 with a residual has about 9
    instructions an element, which an SM issues at 2.1e10 a second, without one 6. A second result
    counts as a residual does: a box more for each.
    """
    if not _boxed(gemm, tile):
        return _Model.ROWS
    rate = _Model.RESIDUAL if gemm.residual or gemm.twice else _Model.BOXED
    if gemm.residual and gemm.twice:
        rate *= 2 / 3
    return rate * 2 / gemm.out_dtype.itemsize


def estimate(gemm: HopperGemm, tile: HopperTile, problem: Problem, device: DeviceSpec) -> float:
    """Expected seconds: those of the tiles, but at least those of moving every byte once."""
    return max(_bare_estimate(gemm, tile, device), problem.nbytes / device.bandwidth + 1.5e-6)


def ranked(gemm: HopperGemm, device: DeviceSpec) -> list[HopperTile]:
    """Tiles, best estimate first; splits only where tiles are few."""
    found = []
    for base in _candidates(gemm, device):
        tile = _with_stages(gemm, base, device)
        if tile is not None:
            found.append((_bare_estimate(gemm, tile, device), tile))
    found.sort(key=lambda item: item[0])
    return [tile for _, tile in found]


def emission(
    gemm: HopperGemm,
    tile: HopperTile,
    weights: In,
    out: Arg,
    extras: tuple[Arg, ...],
    device: DeviceSpec,
) -> Emission:
    """The launch of one run."""
    boxed = _boxed(gemm, tile)
    epilogue = gemm.epilogue
    held = boxed_operand(epilogue.extras, gemm.out_dtype) if boxed else None
    second = boxed_second(epilogue.extras) if boxed else None
    # What the copy engine fetches and stores has its pitch in the map: one binary for all.
    operands = tuple(
        Extra(e.dtype, "same", written=e.written) if i in (held, second) else e
        for i, e in enumerate(epilogue.extras)
    )
    spec = KernelSpec(
        "nrt.cuda_kernels.wgmma_kernel:_hopper_kernel",
        (
            tile, gemm.dtype, gemm.out_dtype, epilogue.program, operands,
            8 if boxed else min(8, gemm.width), gemm.im2col, boxed,
            *([] if gemm.prologue is None else [gemm.prologue]),
        ),
        threads(tile),
        tile.per_sm,
    )  # fmt: skip
    bk, blocks = depth(tile, gemm.dtype), gemm.blocks(tile.row)
    inner = blocks * bk
    kind = map_type(weights_type(gemm.dtype))
    w_map = TensorMap(
        weights, kind, (inner, gemm.k), (inner * gemm.dtype.itemsize,),
        (bk, tile.bn // tile.cluster), (1, 1), swizzle=tile.row,
    )  # fmt: skip
    y_map: Arg = Null()
    r_map: Arg = Null()
    if boxed:
        y_map = _output_map(gemm, tile, out, gemm.out_dtype, gemm.y_row)
        if held is not None:
            r_map = _extra_map(gemm, tile, extras[held], epilogue.extras[held])
        if second is not None:
            z_map = _extra_map(gemm, tile, extras[second], epilogue.extras[second])
            extras = (*extras[:second], z_map, *extras[second + 1 :])
    rows, columns = _tiles(gemm, tile)
    numbers = (
        gemm.m, gemm.k, rows * columns, columns, blocks, _part(gemm, tile),
        gemm.blocks_c(tile.row),
        gemm.filter_w, gemm.out_h * gemm.out_w, gemm.out_w, *gemm.stride, *gemm.pad,
        *gemm.dilation, gemm.y_row, 1 if tile.resident else _group(columns, tile.cluster),
        max(1, gemm.group_k // tile.bn), gemm.group_c,
    )  # fmt: skip
    assert len(extras) == MAX_EXTRAS
    launch = Launch(
        spec,
        (_grid(gemm, tile, device), tile.split, 1),
        (threads(tile), 1, 1),
        (
            _boxes(gemm.x_map, bk, tile), w_map, y_map, r_map, out, *extras,
            *(Scalar(v) for v in numbers),
        ),
        _layout(gemm, tile).shared_bytes(gemm.tables),
        (tile.cluster, tile.split, 1),
    )  # fmt: skip
    return Emission((launch,))


def map_type(dtype: DType) -> str:
    """Element type of an operand's tensor map: the copy engine rounds float32 to tf32."""
    return "tf32" if dtype == FP32 else dtype.name


def _output_map(gemm: HopperGemm, tile: HopperTile, of: Arg, dtype: DType, pitch: int) -> TensorMap:
    """Boxes of 16 rows of an operand in the output's order."""
    assert not isinstance(of, Null | Scalar | TensorMap)
    size = dtype.itemsize
    columns = chunk_columns(tile.bn, size)
    return TensorMap(
        of, dtype.name, (gemm.k, gemm.m), (pitch * size,), (columns, 16), (1, 1),
        swizzle=columns * size,
    )  # fmt: skip


def _extra_map(gemm: HopperGemm, tile: HopperTile, of: Arg, extra: Extra) -> TensorMap:
    """`_output_map` of a residual or a second result."""
    pitch = extra.row_strides[0] if extra.mode == "rows" else gemm.y_row
    return _output_map(gemm, tile, of, extra.dtype, pitch)


def _group(tiles_n: int, cluster: int) -> int:
    """Rows of tiles, counted in clusters, that are walked together: 1 walks row by row.

    A wave of 132 tiles that spans a whole row of many columns reads all of w anew for few rows of
    x; 8 x 16 tiles read the least.
    """
    return 8 // cluster if tiles_n >= 8 else 1


def _boxes(x_map: TensorMap, bk: int, tile: HopperTile) -> TensorMap:
    return replace(x_map, box=(bk, tile.consumers * 64), swizzle=tile.row)
