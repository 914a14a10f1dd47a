"""The Hopper kernel: tiles of a matrix product by the copy engine and warpgroup products (sm_90a).

Recipe. ``Y[m, k] = sum_j X[m, j] W[k, j]``, rows of X being patches of output pixels. A block is
persistent: it walks over tiles of BM x BN (BM = 64 per consumer warpgroup). One producer thread
keeps a ring of STAGES buffers full: per ROW (128) bytes along j one box of X (tiled, or im2col: the
engine walks the pixels of the patch, padding and ragged rows arrive as zeros) and one of W, both
with 128-byte swizzle, which announce themselves on a full-barrier. Each consumer warpgroup waits,
issues four ``wgmma m64nBN`` from shared memory, and once the four before are done each of its warps
frees their buffer on the empty-barrier. Bytes per step (BM + BN) * 128, of 2-byte types flops
2 * BM * BN * 64: 128x256 does 85 flops per byte from L2, 128x128 64, where an H200's L2 gives about
8.5 TB/s. Two ways to read less: the blocks of a cluster each load a part of W and multicast it, and
where all of W for a block's columns fits, it stays (``resident``).

With a prologue the left operand goes through registers: see `wgmma_prologue`.

The accumulators (BN / 2 registers a thread) leave as boxes where the output has rows of 16 or 8
bits: the epilogue runs in registers, ``stmatrix`` puts its words into the warp's staging, and the
engine stores them while the next tile is multiplied; a residual is fetched into the same staging
while this tile is. Other outputs go row by row. A split reduction is one cluster: every block
finishes a share of the rows, and is sent the others' sums of them by copies from shared memory to
shared memory.

Weights are read before ``griddepcontrol.wait``: launched programmatically, a kernel fills its ring
with them while the kernel before it ends.
"""

from __future__ import annotations

from typing import Any

from numba import cuda
from numba.cuda import types

from nrt.cuda_kernels import ptx, ptx_hopper
from nrt.cuda_kernels.codegen import pointer
from nrt.cuda_kernels.conv_common import extra_types
from nrt.cuda_kernels.epilogue import Extra
from nrt.cuda_kernels.epilogue_box import boxed_operand, boxed_second
from nrt.cuda_kernels.prologue import Prologue, fill_tables
from nrt.cuda_kernels.tile_order import tile_position
from nrt.cuda_kernels.wgmma_epilogue import (
    box_drains,
    cluster_reduce,
    cluster_scatters,
    cluster_send,
    row_drains,
    second_map,
)
from nrt.cuda_kernels.wgmma_layout import (
    HopperTile,
    Layout,
    chunk_columns,
    depth,
    next_slot,
    share_bytes,
    staged_columns,
    sum_pitch,
)
from nrt.cuda_kernels.wgmma_prologue import lane_rows, prologue_products
from nrt.dtypes import BYTES, UINT8, DType
from nrt.ir.pointwise import Program

__all__ = ["SCALARS"]

u16 = types.uint16
u32 = types.uint32
i32 = types.int32

SCALARS = 20
"""Numbers that follow the kernel's pointers."""


def _weights_loader(tile: HopperTile, bk: int) -> Any:
    """Device function: W's rows of one block along j, by this block or by all of its cluster."""
    share = tile.bn // tile.cluster
    mask = (1 << tile.cluster) - 1

    def load_w(target, map_w, bar, kb, n0, rank):
        x = i32(u32(kb * u32(bk)))
        if mask > 1:
            ptx_hopper.tma_load_2d_multicast(
                u32(target + u32(rank * u32(share * tile.row))), ptx.at(map_w, u32(0)), bar,
                x, i32(u32(n0 + u32(rank * u32(share)))), u16(mask),
            )  # fmt: skip
        else:
            ptx_hopper.tma_load_2d(target, ptx.at(map_w, u32(0)), bar, x, i32(n0))

    return cuda.jit(device=True, inline="always")(load_w)


def _residual_loader(bn: int, size: int) -> Any:
    """Device function: the residual of a warp's 16 rows, into its staging."""
    chunk = chunk_columns(bn, size)

    def load_residual(staging, map_r, bar, n0, m):
        ptx_hopper.mbarrier_expect(bar, u32(16 * bn * size))
        for c in range(bn // chunk):
            ptx_hopper.tma_load_2d(
                u32(staging + u32(c * 16 * chunk * size)), ptx.at(map_r, u32(0)), bar,
                i32(u32(n0 + u32(c * chunk))), i32(m),
            )  # fmt: skip

    return cuda.jit(device=True, inline="always")(load_residual)


def _hopper_kernel(
    tile: HopperTile,
    dtype: DType,
    out_dtype: DType,
    program: Program | None,
    extras: tuple[Extra, ...],
    width: int,
    im2col: bool,
    boxed: bool,
    prologue: Prologue | None = None,
) -> tuple[Any, Any]:
    """The kernel; see the module's text.

    Args:
        tile: configuration.
        dtype: of x; w is int8 beside uint8. fp32 is multiplied as tf32.
        out_dtype: of y.
        program: epilogue.
        extras: its operands.
        width: channels of one store, where the output leaves row by row.
        im2col: x is read as patches.
        boxed: the output leaves through the copy engine.
        prologue: what x goes through; the pointers to its tables follow those of ``extras``.
    """
    consumers, bn, stages, _, split, cluster, resident, row_bytes = tile
    size = out_dtype.itemsize
    held = boxed and boxed_operand(extras, out_dtype) is not None
    twice = boxed and boxed_second(extras) is not None
    map_second = second_map(extras)
    layout = Layout.of(tile, size if boxed else 0, held)
    bm, bk = consumers * 64, depth(tile, dtype)
    whole = dtype in BYTES
    acc_size, acc_type = bn // 2, types.int32 if whole else types.float32
    table_at = layout.table
    stage_bytes, a_bytes, w_bytes = layout.stage, layout.a, bn * row_bytes
    producer, arrivals = consumers * 4, consumers * 4 * cluster
    # Whether the second half of the columns takes the first one's place in the staging.
    again = boxed and staged_columns(bn, size, held) < bn
    products = ptx_hopper.wgmma_loop(
        dtype.name, bn, stages=stages, stage_bytes=stage_bytes,
        row=row_bytes, resident_bytes=w_bytes if resident else 0, cluster=cluster > 1,
    )  # fmt: skip
    starts = prologue is not None
    fill: Any = None
    changed: Any = None
    if prologue is not None:
        changed = prologue_products(tile, dtype, prologue, stage_bytes, w_bytes, taps=im2col)
        fill = fill_tables(len(prologue.operands), len(extras), consumers * 128)
    following = next_slot(stages)
    load_w = _weights_loader(tile, bk)
    load_residual = _residual_loader(bn, size)
    drain0: Any = None
    drain1: Any = None
    scatter0: Any = None
    scatter1: Any = None
    send: Any = None
    reduce: Any = None
    two = bn > 128
    if split > 1:
        scatters = cluster_scatters(bn, whole)
        scatter0, scatter1 = scatters[0], scatters[-1]
        send = cluster_send(tile)
        reduce = cluster_reduce(tile, program, extras, out_dtype, width, whole)
    elif boxed:
        drains = box_drains(bn, program, extras, out_dtype, held)
        drain0, drain1 = drains[0], drains[-1]
    else:
        drains = row_drains(bn, program, extras, out_dtype, width, whole)
        drain0, drain1 = drains[0], drains[-1]
    warp_sums = 16 * sum_pitch(bn) * 4
    inbox_bytes = (split - 1) * share_bytes(tile)
    meet = cluster > 1 or split > 1

    def kernel(
        map_x, map_w, map_y, map_r, y, extra0, extra1, extra2, extra3, extra4, extra5,
        m_count, k_count, tiles, tiles_n, blocks, blocks_part, blocks_c,
        filter_w, out_hw, out_w, stride_h, stride_w, pad_h, pad_w, dil_h, dil_w, y_row, group,
        group_tiles, group_c,
    ):  # fmt: skip
        raw = ptx.shared_address(cuda.shared.array(0, types.uint8))
        ring = u32(u32(raw + u32(1023)) & u32(0xFFFFFC00))
        full = u32(ring + u32(layout.full))
        empty = u32(ring + u32(layout.empty))
        w_full = u32(ring + u32(layout.w_full))
        w_base = u32(ring + u32(layout.w))
        tid = u32(cuda.threadIdx.x)
        lane = u32(tid & u32(31))
        warp = u32(tid >> u32(5))
        rank = ptx_hopper.cluster_rank() if meet else u32(0)
        mate = rank if cluster > 1 else u32(0)
        start = u32(u32(cuda.blockIdx.x) // u32(cluster))
        step = u32(u32(cuda.gridDim.x) // u32(cluster))
        first = u32(u32(cuda.blockIdx.y) * blocks_part)
        count = u32(min(u32(blocks_part), u32(blocks - first))) if blocks > first else u32(0)
        inbox = u32(ring + u32(layout.inbox))
        if tid == u32(0):
            ptx_hopper.prefetch_tensor_map(ptx.at(map_w, u32(0)))
            ptx_hopper.prefetch_tensor_map(ptx.at(map_x, u32(0)))
            if boxed:
                ptx_hopper.prefetch_tensor_map(ptx.at(map_y, u32(0)))
            if held:
                ptx_hopper.prefetch_tensor_map(ptx.at(map_r, u32(0)))
            if twice:
                ptx_hopper.prefetch_tensor_map(
                    map_second(extra0, extra1, extra2, extra3, extra4, extra5)
                )
            for s in range(stages):
                ptx_hopper.mbarrier_init(u32(full + u32(s * 8)), u32(1))
                ptx_hopper.mbarrier_init(u32(empty + u32(s * 8)), u32(arrivals))
            ptx_hopper.mbarrier_init(w_full, u32(1))
            for s in range(consumers * 4):
                ptx_hopper.mbarrier_init(u32(ring + u32(layout.residual + s * 8)), u32(1))
            if split > 1:
                ptx_hopper.mbarrier_expect(w_full, u32(inbox_bytes))
            if meet:
                ptx_hopper.fence_barrier_init()
            else:
                ptx_hopper.fence_async_shared()
        if meet:
            ptx_hopper.cluster_meet()
        else:
            cuda.syncthreads()

        if warp == u32(producer):
            if lane == u32(0):
                tm, tn = tile_position(start, tiles, tiles_n, group)
                n0 = u32(tn * u32(bn))
                ahead = u32(0)
                if resident > 0:
                    ptx_hopper.mbarrier_expect(w_full, u32(resident * w_bytes))
                    for kb in range(resident):
                        load_w(u32(w_base + u32(kb * w_bytes)), map_w, w_full, u32(kb), n0, rank)
                elif start < tiles:
                    ahead = u32(min(u32(stages), count))
                    for kb in range(ahead):
                        bar = u32(full + u32(u32(kb) * u32(8)))
                        ptx_hopper.mbarrier_expect(bar, u32(stage_bytes))
                        load_w(
                            u32(ring + u32(u32(kb) * u32(stage_bytes)) + u32(a_bytes)),
                            map_w, bar, u32(first + u32(kb)), n0, rank,
                        )  # fmt: skip
                ptx_hopper.grid_wait()
                slot = u32(0)
                parity = u32(1)
                t = start
                while t < tiles:
                    tm, tn = tile_position(t, tiles, tiles_n, group)
                    n0 = u32(tn * u32(bn))
                    m0 = u32(
                        u32(u32(tm * u32(cluster)) + (rank if cluster > 1 else u32(0))) * u32(bm)
                    )
                    base_c = u32(u32(tn // group_tiles) * group_c)
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
                        target = u32(ring + u32(slot * u32(stage_bytes)))
                        ptx_hopper.mbarrier_wait(u32(empty + u32(slot * u32(8))), parity)
                        if ahead > u32(0):
                            ahead = u32(ahead - u32(1))
                        else:
                            ptx_hopper.mbarrier_expect(bar, u32(stage_bytes))
                            if resident == 0:
                                load_w(
                                    u32(target + u32(a_bytes)), map_w, bar,
                                    u32(first + u32(kb)), n0, rank,
                                )  # fmt: skip
                        channel = i32(u32(u32(c * u32(bk)) + base_c))
                        if im2col:
                            ptx_hopper.tma_load_im2col(
                                target, ptx.at(map_x, u32(0)), bar, channel,
                                w0, h0, image, u16(u32(s * dil_w)), u16(u32(r * dil_h)),
                            )  # fmt: skip
                        else:
                            ptx_hopper.tma_load_2d(
                                target, ptx.at(map_x, u32(0)), bar, channel, i32(m0)
                            )
                        c = u32(c + u32(1))
                        if im2col and c == blocks_c:
                            c = u32(0)
                            s = u32(s + u32(1))
                            if s == filter_w:
                                s = u32(0)
                                r = u32(r + u32(1))
                        slot, parity = following(slot, parity)
                    t = u32(t + step)
        else:
            if starts:
                table = u32(ring + u32(table_at))
                fill(
                    table, u32(blocks_c * u32(bk)), tid,
                    extra0, extra1, extra2, extra3, extra4, extra5,
                )  # fmt: skip
                # A lane's first two channels; its other two are 8 further on.
                origin = u32(table + u32(u32((lane & u32(3)) * 2) * u32(4)))
                table_lane = u32(origin + u32(u32(first % blocks_c) * u32(bk * 4)))
                ptx_hopper.bar_sync(u32(1), u32(consumers * 128))
            ptx_hopper.grid_wait()
            ptx_hopper.grid_launch()
            # This warpgroup's rows in a buffer.
            rows = u32(ring + u32(u32(warp >> u32(2)) * u32(64 * row_bytes)))
            there = w_base if resident > 0 else u32(ring + u32(a_bytes))
            # A lane of each warp frees a buffer, in each block of a cluster.
            freed = ptx_hopper.map_to_rank(empty, lane) if cluster > 1 else empty
            frees = u32(1) if lane < u32(cluster) else u32(0)
            acc = cuda.local.array(acc_size, acc_type)
            staging = u32(ring + u32(layout.staging) + u32(warp * u32(layout.warp_staging)))
            e0, e1 = ptx_hopper.behind(extra0), ptx_hopper.behind(extra1)
            e2, e3 = ptx_hopper.behind(extra2), ptx_hopper.behind(extra3)
            e4, e5 = ptx_hopper.behind(extra4), ptx_hopper.behind(extra5)
            fetched = u32(ring + u32(layout.residual) + u32(warp * u32(8)))
            fetch_parity = u32(0)
            slot = u32(0)
            parity = u32(0)
            t = start
            if resident > 0:
                ptx_hopper.mbarrier_wait(w_full, u32(0))
            while t < tiles:
                tm, tn = tile_position(t, tiles, tiles_n, group)
                n0 = u32(tn * u32(bn))
                m0 = u32(u32(u32(tm * u32(cluster)) + mate) * u32(bm))
                m = u32(m0 + u32(warp * u32(16)))
                if held and lane == u32(0):
                    ptx_hopper.bulk_wait_read()
                    load_residual(staging, map_r, fetched, n0, m)
                for i in range(acc_size):
                    acc[i] = acc_type(0)
                if starts:
                    slot, parity = changed(
                        acc, u32(rows + lane_rows(warp, lane)), there, full, freed, frees,
                        table_lane, origin, u32(blocks_c * u32(bk * 4)), slot, parity, count,
                    )  # fmt: skip
                else:
                    slot, parity = products(
                        acc, rows, there, full, freed, frees, slot, parity, count
                    )
                if split > 1:
                    # The other warpgroups may still read the ring.
                    ptx_hopper.bar_sync(u32(1), u32(consumers * 128))
                    mine = u32(ring + u32(warp * u32(warp_sums)))
                    scatter0(acc, mine, lane)
                    if two:
                        scatter1(acc, mine, lane)
                    ptx_hopper.fence_async_shared()
                    ptx_hopper.bar_sync(u32(1), u32(consumers * 128))
                    if tid == u32(0):
                        send(ring, inbox, w_full, rank)
                    ptx_hopper.mbarrier_wait(w_full, u32(0))
                    reduce(
                        ring, inbox, tid, rank, m0, n0, m_count, k_count, y_row, y,
                        e0, e1, e2, e3, e4, e5,
                    )  # fmt: skip
                elif boxed:
                    if held:
                        ptx_hopper.mbarrier_wait(fetched, fetch_parity)
                        fetch_parity = u32(fetch_parity ^ u32(1))
                    else:
                        if lane == u32(0):
                            ptx_hopper.bulk_wait_read()
                        cuda.syncwarp()
                    drain0(acc, staging, lane, n0, m, k_count, map_y, e0, e1, e2, e3, e4, e5)
                    if two:
                        if again:
                            if lane == u32(0):
                                ptx_hopper.bulk_commit()
                                ptx_hopper.bulk_wait_read()
                            cuda.syncwarp()
                        drain1(acc, staging, lane, n0, m, k_count, map_y, e0, e1, e2, e3, e4, e5)
                    if lane == u32(0):
                        ptx_hopper.bulk_commit()
                else:
                    drain0(
                        acc, staging, lane, n0, m, m_count, k_count, y_row, y,
                        e0, e1, e2, e3, e4, e5,
                    )  # fmt: skip
                    if two:
                        drain1(
                            acc, staging, lane, n0, m, m_count, k_count, y_row, y,
                            e0, e1, e2, e3, e4, e5,
                        )  # fmt: skip
                t = u32(t + step)
            if boxed and lane == u32(0):
                ptx_hopper.bulk_wait_read()

        if meet:
            # No block may leave while another reads or writes its shared memory.
            ptx_hopper.cluster_meet()

    signature = types.void(
        *[pointer(UINT8)] * 4, pointer(out_dtype), *extra_types(extras), *[u32] * SCALARS
    )
    return kernel, signature
