"""The Hopper kernel: tiles of a matrix product by the copy engine and warpgroup products (sm_90a).

Recipe. ``Y[m, k] = sum_j X[m, j] W[k, j]``, rows of X being patches of output pixels. A block is
persistent: it walks over tiles of BM x BN (BM = 64 per consumer warpgroup). One producer thread
keeps a ring of STAGES buffers full: per block of 64 along j one box of X (tiled, or im2col: the
engine walks the pixels of the patch, padding and ragged rows arrive as zeros) and one of W, both
with 128-byte swizzle, which announce themselves on a full-barrier. Each consumer warpgroup waits,
issues four ``wgmma m64nBNk16`` from shared memory, and each of its warps frees the buffer on the
empty-barrier. Bytes per step (BM + BN) * 128, flops 2 * BM * BN * 64: 128x256 does 85 flops per
byte from L2, 128x128 64. Accumulators are BN / 2 registers a thread; with BN <= 128 two blocks
share an SM, so that one's epilogue hides behind the other's products. In the epilogue every warp
passes its 16 rows through its own stretch of shared memory, CHUNK columns at a time, so that a lane
holds 8 neighbouring channels, loads the residual with one instruction and stores 16 bytes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from numba import cuda
from numba.cuda import types

from nrt.cuda_kernels import ptx, ptx_hopper
from nrt.cuda_kernels.codegen import pointer
from nrt.cuda_kernels.conv_common import extra_types
from nrt.cuda_kernels.epilogue import Extra, held_operand, make_store
from nrt.dtypes import UINT8, DType
from nrt.ir.pointwise import Program

__all__ = ["BK", "HopperTile", "has_room", "shared_bytes", "threads"]

u16 = types.uint16
u32 = types.uint32
i32 = types.int32
i64 = types.int64

_DRAINED = 4
BK = 64
"""Depth of a block along j: 64 halves are 128 bytes, the widest swizzle."""


class HopperTile(NamedTuple):
    """A configuration.

    Attributes:
        consumers: warpgroups that multiply, 64 rows each.
        bn: columns.
        stages: buffers of the ring.
        per_sm: blocks that share an SM.
        split: parts of the reduction, added by a second launch.
    """

    consumers: int
    bn: int
    stages: int
    per_sm: int
    split: int = 1


def threads(tile: HopperTile) -> int:
    """Consumer warpgroups and one producer warp."""
    return tile.consumers * 128 + 32


def _chunk(tile: HopperTile) -> int:
    """Columns that a warp stages at a time."""
    return min(32, tile.bn)


def _pitch(tile: HopperTile) -> int:
    return _chunk(tile) + 4


def _stage_bytes(tile: HopperTile) -> int:
    return (tile.consumers * 64 + tile.bn) * BK * 2


def shared_bytes(tile: HopperTile) -> int:
    """The ring, the warps' staging, the barriers, and room to align the ring to 1024 bytes."""
    staging = tile.consumers * 4 * 16 * _pitch(tile) * 4
    return tile.stages * _stage_bytes(tile) + staging + tile.stages * 16 + 1024


def has_room(tile: HopperTile) -> bool:
    """Whether a residual's words (BN / 4 registers) fit beside the accumulators (BN / 2).

    A quarter of the SM has 16384 registers for its share of the warps; about 48 are for the rest.
    """
    warps = -(-(tile.consumers * 4 + 1) * tile.per_sm // 4)
    limit = min(255, 16384 // (warps * 32) // 8 * 8)
    return tile.bn <= 32 * _DRAINED and tile.bn // 2 + tile.bn // 4 + 48 <= limit


@cuda.jit(device=True, inline="always")
def position(t, tiles, tiles_n, group):
    """(row, column) of tile ``t``: columns of ``group`` tiles, so that a wave shares both operands.

    Blocks that run together then cover a near-square of the output, and read the fewest bytes of
    x and w from the second-level cache.
    """
    span = u32(group * tiles_n)
    strip = u32(t // span)
    first = u32(strip * group)
    rest = u32(t - u32(strip * span))
    height = u32(min(group, u32(u32(tiles // tiles_n) - first)))
    tn = u32(rest // height)
    return u32(first + u32(rest - u32(tn * height))), tn


_DESCRIPTOR = (1 << 16) | (64 << 32) | (1 << 62)
"""Of a tile in shared memory: K innermost, 128-byte swizzle, 1024 bytes from 8 rows to the next."""


@cuda.jit(device=True, inline="always")
def describe(address):
    """Matrix descriptor of a tile at a shared address."""
    return i64(_DESCRIPTOR) | i64(u32((address >> u32(4)) & u32(0x3FFF)))


def _next_slot(stages: int) -> Any:
    """Device function: the next buffer of the ring and the parity of its phase."""

    def next_slot(slot, parity):
        following = u32(slot + u32(1))
        wrapped = following == u32(stages)
        return u32(0) if wrapped else following, u32(parity ^ u32(1)) if wrapped else parity

    return cuda.jit(device=True, inline="always")(next_slot)


def _fetch(base: int, count: int, chunk: int, width: int, operand: int | None) -> Any:
    """Device function: load the residual of ``count`` chunks ahead of the products.

    Every lane asks for all its 16-byte pieces at once, before it waits for the first block: alone,
    the loads of the epilogue keep too few bytes in flight to fill the memory's bandwidth.
    """
    lanes_per_row = chunk // width
    passes = max(1, 16 * lanes_per_row // 32)

    def fetch(words, lane, m0, n0, m_count, k_count, y_row, e0, e1, e2, e3):
        if operand is not None:
            for index_n in range(count):
                for i in range(passes):
                    index = u32(u32(i * 32) + lane)
                    line = u32(index // u32(lanes_per_row))
                    m = u32(m0 + line)
                    k = u32(
                        n0
                        + u32((base + index_n) * chunk)
                        + u32(u32(index % u32(lanes_per_row)) * u32(width))
                    )
                    w = ((base + index_n) * passes + i) * 4
                    if line < u32(16) and m < m_count and k < k_count:
                        o = u32(u32(m * y_row) + k)
                        if operand == 0:
                            where = ptx.at(e0, o)
                        elif operand == 1:
                            where = ptx.at(e1, o)
                        elif operand == 2:
                            where = ptx.at(e2, o)
                        else:
                            where = ptx.at(e3, o)
                        words[w], words[w + 1], words[w + 2], words[w + 3] = ptx.ld_global_v4(where)

    return cuda.jit(device=True, inline="always")(fetch)


def _drain(base: int, count: int, chunk: int, width: int, store: Any, held: bool) -> Any:
    """Device function: run the epilogue on ``count`` chunks of a warp's accumulators from ``base``.

    At most four chunks at a time: longer loops are not unrolled, and then the accumulators, indexed
    by a variable, leave the registers (512 bytes of stack at BN = 256).
    """
    groups, pitch = chunk // 8, chunk + 4
    lanes_per_row = chunk // width
    passes = max(1, 16 * lanes_per_row // 32)

    def drain(
        acc, words, staging, cell0, lane, m0, n0, m_count, k_count, y_row, y_part,
        y, e0, e1, e2, e3,
    ):  # fmt: skip
        out = cuda.local.array(8, types.float32)
        for index_n in range(count):
            for g in range(groups):
                v = ((base + index_n) * groups + g) * 4
                cell = u32(cell0 + u32(g * 32))
                ptx.st_shared_v2_f32(cell, acc[v], acc[v + 1])
                ptx.st_shared_v2_f32(u32(cell + u32(8 * pitch * 4)), acc[v + 2], acc[v + 3])
            cuda.syncwarp()
            for i in range(passes):
                index = u32(u32(i * 32) + lane)
                line = u32(index // u32(lanes_per_row))
                col = u32(u32(index % u32(lanes_per_row)) * u32(width))
                m = u32(m0 + line)
                k = u32(n0 + u32((base + index_n) * chunk) + col)
                if line < u32(16) and m < m_count and k < k_count:
                    cell = u32(staging + u32((line * u32(pitch) + col) * u32(4)))
                    o = u32(u32(m * y_row) + k + y_part)
                    if width == 8:
                        out[0], out[1], out[2], out[3] = ptx.ld_shared_v4_f32(cell)
                        out[4], out[5], out[6], out[7] = ptx.ld_shared_v4_f32(u32(cell + u32(16)))
                        if held:
                            w = ((base + index_n) * passes + i) * 4
                            store(
                                out[0], out[1], out[2], out[3],
                                out[4], out[5], out[6], out[7],
                                m, k, o, y, e0, e1, e2, e3,
                                words[w], words[w + 1], words[w + 2], words[w + 3],
                            )  # fmt: skip
                        else:
                            store(
                                out[0], out[1], out[2], out[3],
                                out[4], out[5], out[6], out[7],
                                m, k, o, y, e0, e1, e2, e3,
                            )  # fmt: skip
                    elif width == 4:
                        out[0], out[1], out[2], out[3] = ptx.ld_shared_v4_f32(cell)
                        store(out[0], out[1], out[2], out[3], m, k, o, y, e0, e1, e2, e3)
                    elif width == 2:
                        store(
                            ptx.ld_shared_f32(cell), ptx.ld_shared_f32(u32(cell + u32(4))),
                            m, k, o, y, e0, e1, e2, e3,
                        )  # fmt: skip
                    else:
                        store(ptx.ld_shared_f32(cell), m, k, o, y, e0, e1, e2, e3)
            cuda.syncwarp()

    return cuda.jit(device=True, inline="always")(drain)


def _hopper_kernel(
    tile: HopperTile,
    dtype: DType,
    out_dtype: DType,
    program: Program | None,
    extras: tuple[Extra, ...],
    width: int,
    im2col: bool,
) -> tuple[Any, Any]:
    """The kernel; with ``tile.split > 1`` part z writes float32 sums to ``y[z, m, k]``."""
    consumers, bn, stages, _, split = tile
    bm = consumers * 64
    acc_size = bn // 2
    stage_bytes, a_bytes = _stage_bytes(tile), bm * BK * 2
    chunk, pitch = _chunk(tile), _pitch(tile)
    chunks = bn // chunk
    warp_bytes = 16 * pitch * 4
    ring_bytes = stages * stage_bytes
    staging_bytes = consumers * 4 * warp_bytes
    producer, arrivals = consumers * 4, consumers * 4
    products = ptx_hopper.wgmma_block(dtype.name, bn, BK // 16)
    next_slot = _next_slot(stages)
    operands = () if split > 1 else extras
    held = held_operand(operands, width) if has_room(tile) else None
    words_size = chunks * max(1, 16 * (chunk // width) // 32) * 4 if held is not None else 1
    store = make_store(None if split > 1 else program, operands, out_dtype, width, held)
    first_chunks, last_chunks = min(chunks, _DRAINED), max(chunks - _DRAINED, 0)
    fetch = _fetch(0, first_chunks, chunk, width, held)
    drain0 = _drain(0, first_chunks, chunk, width, store, held is not None)
    drain1 = _drain(_DRAINED, last_chunks, chunk, width, store, held is not None)

    def kernel(
        map_x, map_w, y, e0, e1, e2, e3,
        m_count, k_count, tiles, tiles_n, blocks, blocks_part, blocks_c,
        filter_w, out_hw, out_w, stride_h, stride_w, pad_h, pad_w, dil_h, dil_w, y_row, group,
    ):  # fmt: skip
        raw = ptx.shared_address(cuda.shared.array(0, types.uint8))
        ring = u32(u32(raw + u32(1023)) & u32(0xFFFFFC00))
        full = u32(ring + u32(ring_bytes + staging_bytes))
        empty = u32(full + u32(stages * 8))
        tid = u32(cuda.threadIdx.x)
        lane = u32(tid & u32(31))
        warp = u32(tid >> u32(5))
        step = u32(cuda.gridDim.x)
        part = u32(cuda.blockIdx.y)
        first = u32(part * blocks_part)
        count = u32(min(u32(blocks_part), u32(blocks - first))) if blocks > first else u32(0)
        if tid == u32(0):
            for s in range(stages):
                ptx_hopper.mbarrier_init(u32(full + u32(s * 8)), u32(1))
                ptx_hopper.mbarrier_init(u32(empty + u32(s * 8)), u32(arrivals))
            ptx_hopper.fence_barrier_init()
        cuda.syncthreads()

        if warp == u32(producer):
            if lane == u32(0):
                slot = u32(0)
                parity = u32(1)
                t = u32(cuda.blockIdx.x)
                while t < tiles:
                    tm, tn = position(t, tiles, tiles_n, group)
                    n0 = i32(u32(tn * u32(bn)))
                    m0 = u32(tm * u32(bm))
                    image = i32(0)
                    h0 = i32(0)
                    w0 = i32(0)
                    r = u32(0)
                    s = u32(0)
                    c = first
                    if im2col:
                        n = u32(m0 // out_hw)
                        pq = u32(m0 - u32(n * out_hw))
                        p = u32(pq // out_w)
                        q = u32(pq - u32(p * out_w))
                        image = i32(n)
                        h0 = i32(i32(u32(p * stride_h)) - i32(pad_h))
                        w0 = i32(i32(u32(q * stride_w)) - i32(pad_w))
                        rs = u32(first // blocks_c)
                        c = u32(first - u32(rs * blocks_c))
                        r = u32(rs // filter_w)
                        s = u32(rs - u32(r * filter_w))
                    for kb in range(count):
                        bar = u32(full + u32(slot * u32(8)))
                        ptx_hopper.mbarrier_wait(u32(empty + u32(slot * u32(8))), parity)
                        ptx_hopper.mbarrier_expect(bar, u32(stage_bytes))
                        target = u32(ring + u32(slot * u32(stage_bytes)))
                        if im2col:
                            ptx_hopper.tma_load_im2col(
                                target, ptx.at(map_x, u32(0)), bar, i32(u32(c * u32(BK))),
                                w0, h0, image, u16(u32(s * dil_w)), u16(u32(r * dil_h)),
                            )  # fmt: skip
                        else:
                            ptx_hopper.tma_load_2d(
                                target, ptx.at(map_x, u32(0)), bar, i32(u32(c * u32(BK))), i32(m0)
                            )
                        ptx_hopper.tma_load_2d(
                            u32(target + u32(a_bytes)), ptx.at(map_w, u32(0)), bar,
                            i32(u32(u32(first + u32(kb)) * u32(BK))), n0,
                        )  # fmt: skip
                        c = u32(c + u32(1))
                        if im2col and c == blocks_c:
                            c = u32(0)
                            s = u32(s + u32(1))
                            if s == filter_w:
                                s = u32(0)
                                r = u32(r + u32(1))
                        slot, parity = next_slot(slot, parity)
                    t = u32(t + step)
        else:
            # This warpgroup's rows in a buffer, and how far from there the columns are.
            rows = u32(ring + u32(u32(warp >> u32(2)) * u32(64 * BK * 2)))
            columns = u32(u32(ring + u32(a_bytes)) - rows)
            acc = cuda.local.array(acc_size, types.float32)
            words = cuda.local.array(words_size, types.uint32)
            staging = u32(ring + u32(ring_bytes) + u32(warp * u32(warp_bytes)))
            cell0 = u32(
                staging + u32(((lane >> u32(2)) * u32(pitch) + (lane & u32(3)) * u32(2)) * u32(4))
            )
            y_part = u32(u32(part * m_count) * k_count) if split > 1 else u32(0)
            slot = u32(0)
            parity = u32(0)
            t = u32(cuda.blockIdx.x)
            while t < tiles:
                tm, tn = position(t, tiles, tiles_n, group)
                n0 = u32(tn * u32(bn))
                m0 = u32(u32(tm * u32(bm)) + u32(warp * u32(16)))
                fetch(words, lane, m0, n0, m_count, k_count, y_row, e0, e1, e2, e3)
                for i in range(acc_size):
                    acc[i] = types.float32(0)
                for _ in range(count):
                    ptx_hopper.mbarrier_wait(u32(full + u32(slot * u32(8))), parity)
                    base = u32(rows + u32(slot * u32(stage_bytes)))
                    products(acc, describe(base), describe(u32(base + columns)))
                    if lane == u32(0):
                        ptx_hopper.mbarrier_arrive(u32(empty + u32(slot * u32(8))))
                    slot, parity = next_slot(slot, parity)
                drain0(
                    acc, words, staging, cell0, lane, m0, n0, m_count, k_count, y_row, y_part,
                    y, e0, e1, e2, e3,
                )  # fmt: skip
                if chunks > _DRAINED:
                    drain1(
                        acc, words, staging, cell0, lane, m0, n0, m_count, k_count, y_row, y_part,
                        y, e0, e1, e2, e3,
                    )  # fmt: skip
                t = u32(t + step)

    signature = types.void(
        pointer(UINT8), pointer(UINT8), pointer(out_dtype), *extra_types(extras), *[u32] * 18
    )
    return kernel, signature
