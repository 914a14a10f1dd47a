"""Three ways out of the Hopper kernel's accumulators: boxes, rows, and sums of a cluster.

The accumulators of ``wgmma`` m64nN: lane ``l`` of a warp holds of each 8 columns ``g`` the elements
``4 g … 4 g + 3``: columns ``2 (l & 3)`` and the next, in rows ``l >> 2`` and 8 below.
"""

from __future__ import annotations

from typing import Any

from numba import cuda
from numba.cuda import types

from nrt.cuda_kernels import ptx, ptx_hopper
from nrt.cuda_kernels.codegen import device_function
from nrt.cuda_kernels.epilogue import MAX_EXTRAS, Extra, make_store
from nrt.cuda_kernels.epilogue_box import boxed_second, make_cell
from nrt.cuda_kernels.wgmma_layout import (
    DRAIN_COLUMNS,
    HopperTile,
    chunk_columns,
    share_bytes,
    staged_columns,
    sum_pitch,
)
from nrt.dtypes import INT32, DType
from nrt.ir.pointwise import Program

__all__ = [
    "box_drains",
    "cluster_reduce",
    "cluster_scatters",
    "cluster_send",
    "row_drains",
    "second_map",
]

u32 = types.uint32
i32 = types.int32
f32 = types.float32


def _inline(function: Any) -> Any:
    return cuda.jit(device=True, inline="always")(function)


def box_drains(
    bn: int, program: Program | None, extras: tuple[Extra, ...], dtype: DType, held: bool
) -> list[Any]:
    """Device functions that send a warp's 16 rows out as boxes of up to 128 bytes, in turn.

    Each runs the epilogue on up to `DRAIN_COLUMNS` columns, packs the results into the warp's
    staging with ``stmatrix``, swizzled as the copy engine reads them, and one lane stores the
    boxes. What the engine fetched of a residual lies in the very cells that the results replace.

    A cell is 16 bytes of a row: 8 columns of 16 bits, or 16 of 8 bits (see `epilogue_box`), of
    which a lane holds 4 bytes. One ``stmatrix`` fills two cells in 16 rows, 512 bytes, in the four
    passes that the banks of shared memory take for as many: 8 rows of one place in their rows of
    128, 64 or 32 bytes lie, swizzled, in 8 different sixteens of bytes. So 16 rows of 128 columns
    of int8 leave in 4 such instructions and one box, where rows of 128 halves take twice each.

    Of a second result the words wait in registers, which the accumulators have left, until the
    copy engine has read the first one's cells; then they take the same way (`second_map`).
    """
    size = dtype.itemsize
    chunk = chunk_columns(bn, size)
    row_bytes = chunk * size
    shift = {128: 0, 64: 1, 32: 2}[row_bytes]
    cells = row_bytes // 16
    mask = cells - 1
    # Columns of a cell, and what a lane has of it: sums of both rows, columns.
    columns, sums, own = 16 // size, 8 // size, 4 // size
    cell_words = make_cell(program, extras, dtype)
    per_drain = max(1, DRAIN_COLUMNS // chunk)
    staged = staged_columns(bn, size, held) // chunk
    twice = boxed_second(extras) is not None
    map_second = second_map(extras)

    def drain_of(base: int, count: int) -> Any:
        place = base % staged
        words = 2 * count * cells if twice else 1

        def drain(acc, staging, lane, n0, m, k_count, map_y, e0, e1, e2, e3, e4, e5):
            row = u32(lane & u32(15))
            half = u32(lane >> u32(4))
            turn = u32((row >> u32(shift)) & u32(mask))
            line = u32(staging + u32(row * u32(row_bytes)))
            first = u32(n0 + u32((lane & u32(3)) * u32(own)))
            last = u32(k_count - u32(own))
            later = cuda.local.array(words, u32)
            for c in range(count):
                for g in range(0, cells, 2):
                    cell = u32(
                        line
                        + u32((place + c) * 16 * row_bytes)
                        + u32((u32(half + u32(g)) ^ turn) << u32(4))
                    )
                    i = ((base + c) * cells + g) * sums
                    k = u32(first + u32((base + c) * chunk + g * columns))
                    # Columns past the end are not stored, but their operands must not be read.
                    k0 = u32(min(k, last))
                    k1 = u32(min(u32(k + u32(columns)), last))
                    if held:
                        h0, h1, h2, h3 = ptx.ldmatrix_x4(cell)
                    else:
                        h0, h1, h2, h3 = u32(0), u32(0), u32(0), u32(0)
                    w0, w1, z0, z1 = cell_words(acc, i, k0, e0, e1, e2, e3, e4, e5, h0, h1)
                    w2, w3, z2, z3 = cell_words(acc, i + sums, k1, e0, e1, e2, e3, e4, e5, h2, h3)
                    ptx_hopper.stmatrix_x4(cell, w0, w1, w2, w3)
                    if twice:
                        j = 2 * (c * cells + g)
                        later[j], later[j + 1], later[j + 2], later[j + 3] = z0, z1, z2, z3
            ptx_hopper.fence_async_shared()
            cuda.syncwarp()
            if lane == u32(0):
                leave(ptx.at(map_y, u32(0)), staging, n0, m, k_count)
            if twice:
                if lane == u32(0):
                    ptx_hopper.bulk_commit()
                    ptx_hopper.bulk_wait_read()
                cuda.syncwarp()
                for c in range(count):
                    for g in range(0, cells, 2):
                        cell = u32(
                            line
                            + u32((place + c) * 16 * row_bytes)
                            + u32((u32(half + u32(g)) ^ turn) << u32(4))
                        )
                        j = 2 * (c * cells + g)
                        ptx_hopper.stmatrix_x4(
                            cell, later[j], later[j + 1], later[j + 2], later[j + 3]
                        )
                ptx_hopper.fence_async_shared()
                cuda.syncwarp()
                if lane == u32(0):
                    leave(map_second(e0, e1, e2, e3, e4, e5), staging, n0, m, k_count)

        @_inline
        def leave(tensor_map, staging, n0, m, k_count):
            for c in range(count):
                k = u32(n0 + u32((base + c) * chunk))
                if k < k_count:
                    ptx_hopper.tma_store_2d(
                        tensor_map,
                        u32(staging + u32((place + c) * 16 * row_bytes)),
                        i32(k),
                        i32(m),
                    )

        return _inline(drain)

    chunks = bn // chunk
    return [drain_of(base, min(per_drain, chunks - base)) for base in range(0, chunks, per_drain)]


def second_map(extras: tuple[Extra, ...]) -> Any:
    """Device function ``(e0, …, e5) -> address`` of the tensor map of a second result.

    Where boxes carry it, the map stands for it among the operands. 0 if there is none.
    """
    second = boxed_second(extras)
    value = "zero" if second is None else f"at(e{second}, u32(0))"
    params = ", ".join(f"e{i}" for i in range(MAX_EXTRAS))
    return device_function(
        f"def second_map({params}):\n    return {value}\n",
        "second_map",
        {"at": ptx.at, "u32": u32, "zero": types.int64(0)},
    )


def row_drains(
    bn: int,
    program: Program | None,
    extras: tuple[Extra, ...],
    dtype: DType,
    width: int,
    whole: bool,
) -> list[Any]:
    """Device functions for outputs that no box describes: any width, type and operand.

    A warp passes its rows through its staging as 32-bit words, so that a lane holds ``width``
    neighbouring channels. ``whole`` accumulators (int32) that are stored as they are keep their
    bits; others become float32.
    """
    chunk = min(32, bn)
    groups, step = chunk // 8, chunk + 4
    lanes_per_row = chunk // width
    passes = max(1, 16 * lanes_per_row // 32)
    raw = whole and program is None and dtype == INT32
    store = make_store(program, extras, dtype, width)
    per_drain = max(1, DRAIN_COLUMNS // chunk)
    word, value_of = _words(raw)
    out_type = types.int32 if raw else types.float32

    def drain_of(base: int, count: int) -> Any:
        def drain(acc, staging, lane, n0, m0, m_count, k_count, y_row, y, e0, e1, e2, e3, e4, e5):
            out = cuda.local.array(8, out_type)
            cell0 = u32(
                staging + u32(((lane >> u32(2)) * u32(step) + (lane & u32(3)) * u32(2)) * u32(4))
            )
            for c in range(count):
                for g in range(groups):
                    v = ((base + c) * groups + g) * 4
                    cell = u32(cell0 + u32(g * 32))
                    ptx.st_shared_v2_f32(cell, word(acc[v]), word(acc[v + 1]))
                    ptx.st_shared_v2_f32(
                        u32(cell + u32(8 * step * 4)), word(acc[v + 2]), word(acc[v + 3])
                    )
                cuda.syncwarp()
                for i in range(passes):
                    index = u32(u32(i * 32) + lane)
                    line = u32(index // u32(lanes_per_row))
                    col = u32(u32(index % u32(lanes_per_row)) * u32(width))
                    m = u32(m0 + line)
                    k = u32(n0 + u32((base + c) * chunk) + col)
                    if line < u32(16) and m < m_count and k < k_count:
                        cell = u32(staging + u32((line * u32(step) + col) * u32(4)))
                        if width >= 4:
                            for j in range(0, width, 4):
                                v0, v1, v2, v3 = ptx.ld_shared_v4_f32(u32(cell + u32(j * 4)))
                                out[j], out[j + 1] = value_of(v0), value_of(v1)
                                out[j + 2], out[j + 3] = value_of(v2), value_of(v3)
                        else:
                            for j in range(width):
                                out[j] = value_of(ptx.ld_shared_f32(u32(cell + u32(j * 4))))
                        o = u32(u32(m * y_row) + k)
                        if width == 8:
                            store(
                                out[0], out[1], out[2], out[3],
                                out[4], out[5], out[6], out[7],
                                m, k, o, y, e0, e1, e2, e3, e4, e5,
                            )  # fmt: skip
                        elif width == 4:
                            store(
                                out[0], out[1], out[2], out[3], m, k, o, y, e0, e1, e2, e3, e4, e5
                            )
                        elif width == 2:
                            store(out[0], out[1], m, k, o, y, e0, e1, e2, e3, e4, e5)
                        else:
                            store(out[0], m, k, o, y, e0, e1, e2, e3, e4, e5)
                cuda.syncwarp()

        return _inline(drain)

    chunks = bn // chunk
    return [drain_of(base, min(per_drain, chunks - base)) for base in range(0, chunks, per_drain)]


def _words(whole: bool) -> tuple[Any, Any]:
    """Device functions from an accumulator to a word that is a float, and back.

    ``whole`` ones, int32, keep their bits; others are that float.
    """
    if whole:
        return (
            _inline(lambda value: ptx.bits_float(u32(value))),
            _inline(lambda word: i32(ptx.float_bits(word))),
        )
    return f32, f32


def cluster_scatters(bn: int, whole: bool) -> list[Any]:
    """Device functions that leave a warp's sums in this block's shared memory, as rows of words."""
    groups = bn // 8
    word, _ = _words(whole)
    step = sum_pitch(bn)
    per = DRAIN_COLUMNS // 8

    def scatter_of(base: int, count: int) -> Any:
        def scatter(acc, rows, lane):
            cell = u32(
                rows + u32(((lane >> u32(2)) * u32(step) + (lane & u32(3)) * u32(2)) * u32(4))
            )
            for g in range(count):
                v = (base + g) * 4
                where = u32(cell + u32((base + g) * 32))
                ptx.st_shared_v2_f32(where, word(acc[v]), word(acc[v + 1]))
                ptx.st_shared_v2_f32(
                    u32(where + u32(8 * step * 4)), word(acc[v + 2]), word(acc[v + 3])
                )

        return _inline(scatter)

    return [scatter_of(base, min(per, groups - base)) for base in range(0, groups, per)]


def cluster_send(tile: HopperTile) -> Any:
    """Device function: one thread sends each other block the sums of the rows that it finishes.

    The blocks' inboxes hold the others' parts in order. Copies announce themselves on the
    receiver's barrier: nobody waits for the whole cluster.
    """
    split, share = tile.split, share_bytes(tile)

    def send(sums, inbox, arrived, rank):
        for p in range(split):
            if u32(p) != rank:
                place = rank if rank < u32(p) else u32(rank - u32(1))
                ptx_hopper.bulk_copy_cluster(
                    ptx_hopper.map_to_rank(u32(inbox + u32(place * u32(share))), u32(p)),
                    u32(sums + u32(p * share)),
                    u32(share),
                    ptx_hopper.map_to_rank(arrived, u32(p)),
                )

    return _inline(send)


def cluster_reduce(
    tile: HopperTile,
    program: Program | None,
    extras: tuple[Extra, ...],
    dtype: DType,
    width: int,
    whole: bool,
) -> Any:
    """Device function that adds the parts of this block's rows, in order, and runs the epilogue.

    Every block finishes an equal share of the tile's rows; ``width`` is 4 or 8. ``whole`` sums are
    int32, and exact.
    """
    bn, split = tile.bn, tile.split
    share = tile.consumers * 64 // split
    per_row = bn // width
    count = share * per_row
    lanes = tile.consumers * 128
    step = sum_pitch(bn)
    part_bytes = share_bytes(tile)
    store = make_store(program, extras, dtype, width)
    kind = i32 if whole else f32
    _, value = _words(whole)
    ended = i32 if whole and program is None and dtype == INT32 else f32

    def reduce(sums, inbox, tid, rank, m0, n0, m_count, k_count, y_row, y, e0, e1, e2, e3, e4, e5):
        own = u32(sums + u32(rank * u32(part_bytes)))
        index = u32(tid)
        while index < u32(count):
            line = u32(index // u32(per_row))
            col = u32(u32(index % u32(per_row)) * u32(width))
            m = u32(m0 + u32(rank * u32(share)) + line)
            k = u32(n0 + col)
            if m < m_count and k < k_count:
                offset = u32((line * u32(step) + col) * u32(4))
                a0, a1, a2, a3 = kind(0), kind(0), kind(0), kind(0)
                a4, a5, a6, a7 = kind(0), kind(0), kind(0), kind(0)
                for p in range(split):
                    place = u32(p) if u32(p) < rank else u32(u32(p) - u32(1))
                    other = u32(inbox + u32(place * u32(part_bytes)))
                    cell = u32((own if u32(p) == rank else other) + offset)
                    b0, b1, b2, b3 = ptx.ld_shared_v4_f32(cell)
                    a0, a1 = kind(a0 + value(b0)), kind(a1 + value(b1))
                    a2, a3 = kind(a2 + value(b2)), kind(a3 + value(b3))
                    if width == 8:
                        b4, b5, b6, b7 = ptx.ld_shared_v4_f32(u32(cell + u32(16)))
                        a4, a5 = kind(a4 + value(b4)), kind(a5 + value(b5))
                        a6, a7 = kind(a6 + value(b6)), kind(a7 + value(b7))
                o = u32(u32(m * y_row) + k)
                if width == 8:
                    store(
                        ended(a0), ended(a1), ended(a2), ended(a3),
                        ended(a4), ended(a5), ended(a6), ended(a7),
                        m, k, o, y, e0, e1, e2, e3, e4, e5,
                    )  # fmt: skip
                else:
                    store(
                        ended(a0), ended(a1), ended(a2), ended(a3),
                        m, k, o, y, e0, e1, e2, e3, e4, e5,
                    )  # fmt: skip
            index = u32(index + u32(lanes))

    return _inline(reduce)
