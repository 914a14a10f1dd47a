"""Launches of the Hopper kernel: its tiles, which suit a problem, what they cost."""

from __future__ import annotations

import math
from dataclasses import dataclass

from nrt.cuda_kernels.conv_common import Epilogue, ceil_div
from nrt.cuda_kernels.device import DeviceSpec
from nrt.cuda_kernels.epilogue import MAX_EXTRAS
from nrt.cuda_kernels.mma_tile import part_width, reduce_launch
from nrt.cuda_kernels.variant import (
    Arg,
    Emission,
    KernelSpec,
    Launch,
    Null,
    Scalar,
    TensorMap,
    Work,
)
from nrt.cuda_kernels.wgmma_kernel import BK, HopperTile, has_room, shared_bytes, threads
from nrt.dtypes import FP32, DType
from nrt.problem import Problem

__all__ = ["TILES", "HopperGemm", "emission", "estimate", "ranked"]

TILES: tuple[HopperTile, ...] = (
    HopperTile(2, 256, 4, 1),
    HopperTile(2, 128, 3, 2),
    HopperTile(2, 128, 5, 1),
    HopperTile(2, 64, 4, 2),
    HopperTile(1, 256, 4, 1),
    HopperTile(1, 128, 4, 2),
    HopperTile(1, 64, 6, 2),
    HopperTile(1, 64, 3, 4),
    HopperTile(1, 32, 4, 4),
)


@dataclass(frozen=True)
class HopperGemm:
    """Sizes of one run, in the kernel's terms.

    Attributes:
        m, k: output rows and channels.
        blocks_c: blocks of 64 channels per filter position.
        taps: filter positions.
        out_dtype: of y.
        dtype: of the operands.
        y_row: elements from one row of y to the next.
        x_map: the map of x, but for its box of rows, which is the tile's.
        im2col: whether that map walks patches.
        residual: whether the epilogue reads an operand of the output's size.
        filter_w, out_h, out_w, stride, pad, dilation: geometry, for im2col.
    """

    m: int
    k: int
    blocks_c: int
    taps: int
    dtype: DType
    out_dtype: DType
    y_row: int
    x_map: TensorMap
    im2col: bool
    residual: bool = False
    filter_w: int = 1
    out_h: int = 1
    out_w: int = 1
    stride: tuple[int, int] = (1, 1)
    pad: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)

    @property
    def blocks(self) -> int:
        """Blocks of 64 along the reduction."""
        return self.blocks_c * self.taps


def _part(gemm: HopperGemm, tile: HopperTile) -> int:
    return ceil_div(gemm.blocks, tile.split)


def _tiles(gemm: HopperGemm, tile: HopperTile) -> tuple[int, int]:
    return ceil_div(gemm.m, tile.consumers * 64), ceil_div(gemm.k, tile.bn)


def _bare_estimate(gemm: HopperGemm, tile: HopperTile, device: DeviceSpec) -> float:
    """Seconds of the tiles: rounds of blocks, each bound by products, loads or latency."""
    tiles_m, tiles_n = _tiles(gemm, tile)
    count = tiles_m * tiles_n * tile.split
    resident = min(tile.per_sm, ceil_div(count, device.multiprocessors))
    rounds = math.ceil(count / (device.multiprocessors * resident))
    steps = _part(gemm, tile)
    bm = tile.consumers * 64
    rate = 0.9 * device.fp16_flops / device.multiprocessors
    compute = 2.0 * bm * tile.bn * BK * steps * resident / rate
    # A lone warpgroup cannot keep the tensor cores busy; wgmma of few columns neither.
    compute /= min(1.0, 0.5 * tile.consumers * resident) * min(1.0, 0.4 + tile.bn / 200)
    loads = (bm + tile.bn) * BK * 2.0 * steps * resident / 1.1e11
    epilogue = bm * tile.bn * resident / _epilogue_rate(gemm, tile)
    latency = 1.2e-6 + steps * 0.12e-6
    seconds = rounds * (max(compute, loads, latency) + epilogue) + 2e-6
    if tile.split > 1:
        seconds += 2e-6 + gemm.m * gemm.k * 4.0 * (tile.split + 1) / device.bandwidth
    return seconds


def _epilogue_rate(gemm: HopperGemm, tile: HopperTile) -> float:
    """Elements per second that the epilogues of an SM finish.

    From a 1x1 convolution of 64 to 256 channels at 56x56, batch 32, with a residual, on an H200:
    50 us with two warpgroups a block and the residual loaded ahead, 80 with none loaded ahead, 130
    with that and four warps on the SM. That one warpgroup does better is an expectation.
    """
    rate = 5.4e9
    if not gemm.residual:
        return rate
    if not has_room(tile):
        return rate * (0.45 if tile.consumers * tile.per_sm > 1 else 0.28)
    return rate if tile.consumers == 1 else rate * 0.75


def estimate(gemm: HopperGemm, tile: HopperTile, problem: Problem, device: DeviceSpec) -> float:
    """Expected seconds: those of the tiles, but at least those of moving every byte once."""
    return max(_bare_estimate(gemm, tile, device), problem.nbytes / device.bandwidth + 2e-6)


def ranked(gemm: HopperGemm, device: DeviceSpec) -> list[HopperTile]:
    """Tiles, best estimate first; splits only where tiles are few."""
    found = []
    for base in TILES:
        tiles_m, tiles_n = _tiles(gemm, base)
        for split in (1, 2, 4, 8, 16):
            tile = base._replace(split=split)
            if split > 1 and (
                tiles_m * tiles_n * split > 2 * device.multiprocessors or gemm.blocks < 2 * split
            ):
                continue
            found.append((_bare_estimate(gemm, tile, device), tile))
    found.sort(key=lambda item: item[0])
    return [tile for _, tile in found]


def emission(
    gemm: HopperGemm,
    tile: HopperTile,
    epilogue: Epilogue,
    width: int,
    weights: Arg,
    out: Arg,
    extras: tuple[Arg, ...],
    device: DeviceSpec,
) -> Emission:
    """The launches of one run: the tiles, and for a split reduction the sum of its parts."""
    split = tile.split > 1
    spec = KernelSpec(
        "nrt.cuda_kernels.wgmma_kernel:_hopper_kernel",
        (
            tile, gemm.dtype, FP32 if split else gemm.out_dtype,
            None if split else epilogue.program, () if split else epilogue.extras,
            part_width(gemm.k) if split else width, gemm.im2col,
        ),
        threads(tile),
        tile.per_sm,
    )  # fmt: skip
    assert not isinstance(weights, Null | Scalar | TensorMap)
    depth = gemm.blocks * BK
    w_map = TensorMap(
        weights, gemm.dtype.name, (depth, gemm.k), (depth * 2,), (BK, tile.bn), (1, 1)
    )
    rows = tile.consumers * 64
    x_map = _with_rows(gemm.x_map, rows)
    tiles_m, tiles_n = _tiles(gemm, tile)
    tiles = tiles_m * tiles_n
    numbers = (
        gemm.m, gemm.k, tiles, tiles_n, gemm.blocks, _part(gemm, tile), gemm.blocks_c,
        gemm.filter_w, gemm.out_h * gemm.out_w, gemm.out_w, *gemm.stride, *gemm.pad,
        *gemm.dilation, gemm.k if split else gemm.y_row, _group(tiles_n),
    )  # fmt: skip
    none = (Null(),) * MAX_EXTRAS
    grid = min(tiles, max(1, device.multiprocessors * tile.per_sm // tile.split))
    main = Launch(
        spec,
        (grid, tile.split, 1),
        (threads(tile), 1, 1),
        (
            x_map, w_map, Work() if split else out, *(none if split else extras),
            *(Scalar(v) for v in numbers),
        ),
        shared_bytes(tile),
    )  # fmt: skip
    if not split:
        return Emission((main,))
    reduce = reduce_launch(
        gemm.m, gemm.k, gemm.y_row, gemm.out_dtype, tile.split, epilogue, width, out, extras
    )
    return Emission((main, reduce), workspace=tile.split * gemm.m * gemm.k * 4)


def _group(tiles_n: int) -> int:
    """Rows of tiles that are walked together: 1 walks row by row.

    A wave of 132 tiles that spans a whole row of many columns reads all of w anew for few rows of
    x; 8 x 16 tiles read the least.
    """
    return 8 if tiles_n >= 8 else 1


def _with_rows(x_map: TensorMap, rows: int) -> TensorMap:
    return TensorMap(
        x_map.of, x_map.dtype, x_map.dims, x_map.strides, (BK, rows), x_map.steps,
        x_map.lower, x_map.upper,
    )  # fmt: skip
