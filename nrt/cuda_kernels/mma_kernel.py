"""The ``mma.sync`` kernels: tiles of a matrix product whose rows are patches of an image.

Recipe. A block computes BM x BN outputs of ``Y[m, k] = sum_j X[m, j] W[k, j]``, where row m of X is
the patch of one output pixel (a matrix product is the 1x1 case) and both operands are read along j,
8 halves (16 bytes) at a time. Blocks are numbered in strips of rows (`tile_order`).

Per step of BK every thread copies its pieces of both tiles with cp.async into one of STAGES shared
buffers, swizzled so that ldmatrix meets no bank conflict; out-of-image pieces are zero-filled. W is
packed (`mma_tile.packed`) as the blocks that are loaded, so that a thread's pieces lie at distances
that the instructions hold. X costs an addition and a wide multiply-add per piece; a convolution
also two additions and two comparisons, its position (r, s, c) advances without division.

A step of 32 bytes is one ldmatrix.x4 per 16 rows of either operand, then m16n8k16 over the warp's
tile. Fragments are double-buffered: those of the next step are loaded before the products of this
one, also across the barrier, which lies before the last step of a block. At 128x256 with eight
warps of 64x64 a warp issues, per BK = 64: 128 HMMA, 32 LDSM, 12 LDGSTS, 39 others, 211 in all
(a convolution 265); 237 registers. Bytes from L2 per block and step (BM + BN) * BK * 2, flops
2 * BM * BN * BK: 128x256 does 85 flops per byte, 128x128 64.

Groups of a convolution: a tile's columns belong to one group, or to several whole ones whose
weights then form a block diagonal among zeros (`mma_pack`); either way they read one run of
channels, whose start depends on the tile's column alone.

A convolution's prologue runs on the fragments of X, between ldmatrix and the products; the numbers
of its channels come from tables in shared memory, loaded as far ahead as the fragments. Each of the
warps that share rows computes it again: for scale, shift and ReLU (about 3 instructions an
element) a warp of 32x64 issues 48 more per step of 32 bytes to its 16 HMMA and 6 LDSM. That is fine
where memory is the limit, as in a 1x1 with activations before it.

Where all pixels of an image are pooled behind the convolution, a tile's rows are the pixels of one
image, the rest of them repeat the last; a lane adds up what it would have stored, and one thread a
column adds the lanes' sums in order.

The results go through a private stretch of shared memory per warp, 16 rows at a time, so that the
epilogue sees 8 neighbouring channels and stores 16 bytes.
"""

from __future__ import annotations

from typing import Any

from numba import cuda
from numba.cuda import types

from nrt.cuda_kernels import ptx
from nrt.cuda_kernels.codegen import pointer
from nrt.cuda_kernels.conv_common import acc_type, extra_types, result_type, weights_type
from nrt.cuda_kernels.epilogue import Extra, make_store
from nrt.cuda_kernels.mma_block import fragments, put_rows, warp_mma
from nrt.cuda_kernels.mma_layout import Layout, Tile, place, threads
from nrt.cuda_kernels.mma_load import load_w, load_x, next_position, put_held, w_start
from nrt.cuda_kernels.prologue import Prologue, fill_tables, fragment_prologue
from nrt.cuda_kernels.tile_order import tile_position
from nrt.dtypes import BF16, BYTES, FP16, FP32, INT8, INT32, UINT8, DType
from nrt.ir.pointwise import Program

__all__ = ["Tile", "shared_bytes", "threads"]

u32 = types.uint32
i32 = types.int32
f32 = types.float32


_KINDS = {FP16: "f16", BF16: "bf16", FP32: "tf32", INT8: "s8", UINT8: "u8"}


def shared_bytes(tile: Tile, dtype: DType, tables: int = 0) -> int:
    """Dynamic shared memory of a block for operands of ``dtype`` and ``tables`` bytes of tables."""
    layout = Layout(tile, dtype.itemsize)
    if tables == 0:
        return layout.shared_bytes
    # Room for the numbers that are taken, and not used, behind the last block's.
    return max(layout.shared_bytes, layout.ring_bytes + 128 + tables + 128)


def _value(integer: bool, result: Any) -> Any:
    """Function: the word of a sum as what the epilogue takes."""
    if not integer:
        return ptx.bits_float
    if result == i32:
        return i32
    return cuda.jit(device=True, inline="always")(lambda word: f32(i32(word)))


def _mma_kernel(
    tile: Tile,
    dtype: DType,
    out_dtype: DType,
    program: Program | None,
    extras: tuple[Extra, ...],
    width: int,
    pointwise: bool,
    asynchronous: bool = True,
    prologue: Prologue | None = None,
    pooled: str | None = None,
    halves: bool = False,
) -> tuple[Any, Any]:
    """The kernel; ``pointwise`` drops the filter position (a matrix product or an unpadded 1x1).

    A ``prologue`` needs a filter without padding. The pointers to its tables follow those of the
    epilogue's operands. The tables have the channels of one filter position where its channels are
    whole blocks, and else all of j (see `Gemm.table_length`).

    With ``tile.split > 1`` the block of part z writes its sums (``out_dtype``: float32 or int32) to
    ``y[z, m, k]`` and the epilogue is left to `_reduce_kernel`. Without ``asynchronous`` copies
    there are two stages, and a block is on its way through registers.

    With ``pooled`` (``mean`` or ``sum``) y is ``[images, channels]``, ``y_row`` apart; operands of
    the epilogue lie as if the pixels were stored one after another, channels innermost.

    With ``halves`` pixels of x start at multiples of 8 bytes, not 16, and the last 8 of each run of
    ``channels`` are zeros that are not there.
    """
    bm, bn, bk, wm, wn, stages, split = tile
    layout = Layout(tile, dtype.itemsize)
    pieces, per_piece, row_step = layout.pieces, layout.per_piece, layout.row_step
    x_loads, w_loads = layout.x_loads, layout.w_loads
    warp_m, warp_n = layout.warp_tile
    mi_count, ni_count = warp_m // 16, warp_n // 8
    row_bytes, stage_bytes, ring = layout.row_bytes, layout.stage_bytes, layout.ring_bytes
    x_bytes, pitch = layout.x_bytes, layout.pitch
    where = place(row_bytes)
    load_a = load_x(layout, pointwise, asynchronous, halves)
    load_b = load_w(layout, asynchronous)
    put_pieces = put_held(layout, asynchronous)
    # Packed w: 32 pieces of a warp, then the next 32.
    w_warp, w_middle = w_loads * 32 * per_piece, w_start(layout, asynchronous) // dtype.itemsize
    held_size = 1 if asynchronous else 4 * (x_loads + w_loads)
    kind = _KINDS[dtype] if asynchronous else "f16_k8"
    fragments_a = fragments(mi_count, 16 * row_bytes)
    fragments_b = fragments(ni_count // 2, 16 * row_bytes)
    products = warp_mma(kind, mi_count, ni_count)
    put = put_rows(mi_count, ni_count, pitch)
    lanes_per_row = warp_n // width
    passes = 16 * lanes_per_row // 32
    threads_count = threads(tile)
    columns_each = -(-bn // threads_count)
    pairs, last = row_bytes // 64 - 1, row_bytes - 32
    pending = stages - 2
    acc_size, fa_size, fb_size = mi_count * ni_count * 4, mi_count * 4, ni_count * 2
    end, operands = (None, ()) if split > 1 else (program, extras)
    sum_type, value_type = acc_type(dtype), result_type(dtype, out_dtype, end)
    value = _value(dtype in BYTES, value_type)
    pools, mean = pooled is not None, pooled == "mean"
    store = make_store(end, operands, out_dtype, width, add=pools)
    finish = make_store(None, (), out_dtype, 1)
    # Lanes of a warp that add up the same columns.
    adders = 32 // lanes_per_row
    starts = prologue is not None
    fill: Any = None
    take: Any = None
    apply: Any = None
    numbers_size = 1
    if prologue is not None:
        fill = fill_tables(len(prologue.operands), len(operands), threads(tile))
        own = fragment_prologue(prologue, dtype, mi_count, pairs=asynchronous)
        take, apply, numbers_size = own.take, own.apply, own.size
    deep = 32 // dtype.itemsize
    per_word = 4 // dtype.itemsize

    def kernel(
        x, w, y, e0, e1, e2, e3, e4, e5,
        m_count, k_count, j_count,
        height, width_in, channels, out_hw, out_w, filter_w,
        stride_h, stride_w, pad_h, pad_w, dil_h, dil_w,
        x_n, x_h, x_w, y_row, tiles, tiles_n, strip, blocks_k, group_tiles, group_c,
    ):  # fmt: skip
        # Rows of 128 bytes start at multiples of 128, so that offsets in them are bits of their
        # own.
        raw = ptx.shared_address(cuda.shared.array(0, types.uint8))
        shared = u32(u32(raw + u32(127)) & u32(0xFFFFFF80))
        tid = u32(cuda.threadIdx.x)
        lane = u32(tid & u32(31))
        warp = u32(tid >> u32(5))
        tile_m, tile_n = tile_position(u32(cuda.blockIdx.x), tiles, tiles_n, strip)
        m0 = u32(tile_m * (out_hw if pools else u32(bm)))
        m_end = u32(m0 + out_hw) if pools else m_count
        n0 = u32(tile_n * u32(bn))
        part = u32(cuda.blockIdx.y)
        first = u32(part * blocks_k)
        total = u32((j_count + u32(bk - 1)) // u32(bk))
        count = u32(min(u32(blocks_k), u32(total - first))) if total > first else u32(0)

        # Columns of a group (or of several that share a tile) read that group's channels.
        base_c = u32(u32(tile_n // group_tiles) * group_c)

        # This thread's pieces: rows row + i * row_step, always the same piece of the row.
        row = u32(tid // u32(pieces))
        piece = u32(tid % u32(pieces))
        w_first = u32(u32(warp * u32(w_warp)) + u32(lane * u32(per_piece)) + u32(w_middle))
        x_base = cuda.local.array(x_loads, types.uint32)
        x_top = cuda.local.array(x_loads, types.int32)
        x_left = cuda.local.array(x_loads, types.int32)
        for i in range(x_loads):
            # Rows past the end repeat the last one; they are never stored.
            m = u32(min(u32(m0 + row + u32(i * row_step)), u32(m_end - u32(1))))
            if pointwise:
                x_base[i] = u32(u32(m * x_w) + base_c)
            else:
                n = u32(m // out_hw)
                pq = u32(m - u32(n * out_hw))
                p = u32(pq // out_w)
                q = u32(pq - u32(p * out_w))
                x_top[i] = i32(i32(p * stride_h) - i32(pad_h))
                x_left[i] = i32(i32(q * stride_w) - i32(pad_w))
                x_base[i] = u32(
                    u32(n * x_n) + u32(u32(x_top[i]) * x_h) + u32(u32(x_left[i]) * x_w) + base_c
                )
        j = u32(u32(first * u32(bk)) + u32(piece * u32(per_piece)))
        j_end = u32(min(u32(u32(first + count) * u32(bk)), j_count))
        c = j
        r = u32(0)
        s = u32(0)
        if not pointwise:
            tap = u32(j // channels)
            c = u32(j - u32(tap * channels))
            r = u32(tap // filter_w)
            s = u32(tap - u32(r * filter_w))
        x_at = ptx.at(x, u32(0))
        w_here = ptx.ahead(w, u32(u32(tile_n * total + first) * u32(bn * bk) + w_first))
        x_to = u32(shared + where(row, piece))
        w_to = u32(x_to + u32(x_bytes))

        held = cuda.local.array(held_size, types.uint32)
        acc = cuda.local.array(acc_size, sum_type)
        for i in range(acc_size):
            acc[i] = sum_type(0)
        fa0 = cuda.local.array(fa_size, types.uint32)
        fb0 = cuda.local.array(fb_size, types.uint32)
        fa1 = cuda.local.array(fa_size, types.uint32)
        fb1 = cuda.local.array(fb_size, types.uint32)
        warp_row = u32(u32(warp // u32(wn)) * u32(warp_m))
        warp_col = u32(u32(warp % u32(wn)) * u32(warp_n))
        a_from = u32(shared + where(u32(warp_row + (lane & u32(15))), u32(lane >> u32(4))))
        b_from = u32(
            shared
            + u32(x_bytes)
            + where(
                u32(warp_col + (lane & u32(7)) + u32(u32(lane >> u32(4)) * u32(8))),
                u32(u32(lane >> u32(3)) & u32(1)),
            )
        )

        if starts:
            # The tables follow the ring; this lane's first number is at `numbers`.
            s0 = cuda.local.array(numbers_size, types.float32)
            s1 = cuda.local.array(numbers_size, types.float32)
            table = u32(shared + u32(ring))
            length = u32(total * u32(bk))
            at = u32(first * u32(bk))
            if not pointwise and channels % u32(bk) == u32(0):
                length = channels
                at = u32(at % channels)
            table_bytes = u32(length * u32(4))
            origin = u32(table + u32(u32((lane & u32(3)) * u32(per_word)) * u32(4)))
            numbers = u32(origin + u32(at * u32(4)))

        for slot in range(stages - 1):
            to = u32(u32(slot) * u32(stage_bytes))
            live = j < j_end
            load_a(
                held, u32(x_to + to), x_at, x_base, x_top, x_left, live, c, r, s,
                height, width_in, dil_h, dil_w, x_h, x_w, channels,
            )  # fmt: skip
            load_b(held, u32(w_to + to), w_here, live)
            put_pieces(held, u32(x_to + to), u32(w_to + to))
            if asynchronous:
                ptx.cp_async_commit()
            j = u32(j + u32(bk))
            w_here = ptx.ahead(w_here, u32(bn * bk))
            if pointwise:
                c = j
            else:
                c, r, s = next_position(c, r, s, u32(bk), channels, filter_w)
        if starts:
            fill(table, length, tid, e0, e1, e2, e3, e4, e5)
        if asynchronous:
            ptx.cp_async_wait(pending)
        else:
            live = j < j_end
            load_a(
                held, x_to, x_at, x_base, x_top, x_left, live, c, r, s,
                height, width_in, dil_h, dil_w, x_h, x_w, channels,
            )  # fmt: skip
            load_b(held, w_to, w_here, live)
            j = u32(j + u32(bk))
            w_here = ptx.ahead(w_here, u32(bn * bk))
            if pointwise:
                c = j
            else:
                c, r, s = next_position(c, r, s, u32(bk), channels, filter_w)
        cuda.syncthreads()
        fragments_a(fa0, a_from)
        fragments_b(fb0, b_from)
        if starts:
            take(s0, numbers, table_bytes)

        reading = u32(0)
        writing = u32(ring - stage_bytes)
        left = count
        while left > u32(0):
            left = u32(left - u32(1))
            # Invariant: the fragments of this block's first step are in fa0 and fb0, and nobody
            # reads the buffer that was multiplied last.
            a_here = u32(a_from + reading)
            b_here = u32(b_from + reading)
            live = j < j_end
            for pair in range(pairs):
                fragments_a(fa1, u32(a_here ^ u32(pair * 64 + 32)))
                fragments_b(fb1, u32(b_here ^ u32(pair * 64 + 32)))
                if starts:
                    take(s1, u32(numbers + u32(deep * 4)), table_bytes)
                    apply(fa0, s0)
                products(acc, fa0, fb0)
                fragments_a(fa0, u32(a_here ^ u32(pair * 64 + 64)))
                fragments_b(fb0, u32(b_here ^ u32(pair * 64 + 64)))
                if starts:
                    numbers = u32(numbers + u32(deep * 8))
                    take(s0, numbers, table_bytes)
                    apply(fa1, s1)
                products(acc, fa1, fb1)
            fragments_a(fa1, u32(a_here ^ u32(last)))
            fragments_b(fb1, u32(b_here ^ u32(last)))
            if starts:
                take(s1, u32(numbers + u32(deep * 4)), table_bytes)
                apply(fa0, s0)
            put_pieces(held, u32(x_to + writing), u32(w_to + writing))
            load_a(
                held, u32(x_to + writing), x_at, x_base, x_top, x_left, live, c, r, s,
                height, width_in, dil_h, dil_w, x_h, x_w, channels,
            )  # fmt: skip
            load_b(held, u32(w_to + writing), w_here, live)
            if asynchronous:
                ptx.cp_async_commit()
            products(acc, fa0, fb0)
            j = u32(j + u32(bk))
            w_here = ptx.ahead(w_here, u32(bn * bk))
            if pointwise:
                c = j
            else:
                c, r, s = next_position(c, r, s, u32(bk), channels, filter_w)
            writing = reading
            reading = u32(reading + u32(stage_bytes))
            if reading == u32(ring):
                reading = u32(0)
            if asynchronous:
                ptx.cp_async_wait(pending)
            cuda.syncthreads()
            fragments_a(fa0, u32(a_from + reading))
            fragments_b(fb0, u32(b_from + reading))
            if starts:
                # Behind the last block these are numbers of nothing, which are not used.
                numbers = u32(numbers + u32(deep * 8))
                if not pointwise and numbers == u32(origin + table_bytes):
                    numbers = origin
                take(s0, numbers, table_bytes)
                apply(fa1, s1)
            products(acc, fa1, fb1)
        if asynchronous:
            ptx.cp_async_wait(0)
        cuda.syncthreads()

        staging = u32(shared + u32(warp * u32(16 * pitch * 4)))
        corner = u32(
            staging + u32(u32(u32(u32(lane >> u32(2)) * u32(pitch)) + u32((lane & u32(3)) * 2)) * 4)
        )
        y_part = u32(u32(part * m_count) * k_count) if split > 1 else u32(0)
        words = cuda.local.array(8, types.uint32)
        out = cuda.local.array(8, value_type)
        if pools:
            into = cuda.local.array(width, types.float32)
            for v in range(width):
                into[v] = f32(0)
        else:
            into = y
        for mi in range(mi_count):
            put(acc, corner)
            cuda.syncwarp()
            for i in range(passes):
                index = u32(u32(i * 32) + lane)
                line = u32(index // u32(lanes_per_row))
                col = u32(u32(index % u32(lanes_per_row)) * u32(width))
                m = u32(m0 + warp_row + u32(mi * 16) + line)
                k = u32(n0 + warp_col + col)
                cell = u32(staging + u32((line * u32(pitch) + col) * u32(4)))
                if m < m_end and k < k_count:
                    if width == 8:
                        words[0], words[1], words[2], words[3] = ptx.ld_shared_v4(cell)
                        words[4], words[5], words[6], words[7] = ptx.ld_shared_v4(
                            u32(cell + u32(16))
                        )
                    elif width == 4:
                        words[0], words[1], words[2], words[3] = ptx.ld_shared_v4(cell)
                    else:
                        for v in range(width):
                            words[v] = ptx.ld_shared_u32(u32(cell + u32(v * 4)))
                    for v in range(width):
                        out[v] = value(words[v])
                    o = u32(u32(m * (k_count if pools else y_row)) + k + y_part)
                    if width == 8:
                        store(
                            out[0], out[1], out[2], out[3], out[4], out[5], out[6], out[7],
                            m, k, o, into, e0, e1, e2, e3, e4, e5,
                        )  # fmt: skip
                    elif width == 4:
                        store(out[0], out[1], out[2], out[3], m, k, o, into, e0, e1, e2, e3, e4, e5)
                    elif width == 2:
                        store(out[0], out[1], m, k, o, into, e0, e1, e2, e3, e4, e5)
                    else:
                        store(out[0], m, k, o, into, e0, e1, e2, e3, e4, e5)
            cuda.syncwarp()
        if pools:
            mine = u32(staging + u32(lane * u32(4 * width)))
            for v in range(width):
                ptx.st_shared_u32(u32(mine + u32(4 * v)), ptx.float_bits(into[v]))
            cuda.syncthreads()
            for i in range(columns_each):
                col = u32(tid + u32(i * threads_count))
                k = u32(n0 + col)
                if col < u32(bn) and k < k_count:
                    # A lane has `width` columns; the next `lanes_per_row` lanes have the next rows.
                    cell = u32(
                        shared
                        + u32(u32(col // u32(warp_n)) * u32(16 * pitch * 4))
                        + u32(u32(col % u32(warp_n)) * u32(4))
                    )
                    total = f32(0)
                    for above in range(wm):
                        for lanes in range(adders):
                            at = u32(above * wn * 16 * pitch * 4 + lanes * warp_n * 4)
                            total = f32(total + ptx.bits_float(ptx.ld_shared_u32(u32(cell + at))))
                    if mean:
                        total = f32(total / f32(out_hw))
                    finish(
                        total, tile_m, k, u32(u32(tile_m * y_row) + k), y, e0, e1, e2, e3, e4, e5
                    )

    signature = types.void(
        pointer(dtype), pointer(weights_type(dtype)), pointer(out_dtype), *extra_types(extras),
        *[u32] * 25,
    )  # fmt: skip
    return kernel, signature


def _reduce_kernel(
    out_dtype: DType,
    program: Program | None,
    extras: tuple[Extra, ...],
    width: int,
    split: int,
    sums: DType = FP32,
) -> tuple[Any, Any]:
    """Adds ``split`` partial sums ``[split, m, k]`` (float32 or int32), then runs the epilogue."""
    operand = INT8 if sums == INT32 else FP32
    sum_type, value_type = acc_type(operand), result_type(operand, out_dtype, program)
    value = _value(sums == INT32, sum_type)
    store = make_store(program, extras, out_dtype, width)

    def kernel(parts, y, e0, e1, e2, e3, e4, e5, m_count, k_count, y_row):
        index = u32(u32(cuda.blockIdx.x) * u32(cuda.blockDim.x) + u32(cuda.threadIdx.x))
        per_row = u32(k_count // u32(width))
        m = u32(index // per_row)
        k = u32(u32(index - m * per_row) * u32(width))
        if m < m_count:
            words = cuda.local.array(8, types.uint32)
            total = cuda.local.array(8, sum_type)
            out = cuda.local.array(8, value_type)
            for v in range(width):
                total[v] = sum_type(0)
            for z in range(split):
                base = u32(u32(u32(u32(z) * m_count) + m) * k_count + k)
                if width % 4 == 0:
                    for v in range(width // 4):
                        words[4 * v], words[4 * v + 1], words[4 * v + 2], words[4 * v + 3] = (
                            ptx.ld_global_v4(ptx.at(parts, u32(base + u32(4 * v))))
                        )
                    for v in range(width):
                        total[v] = sum_type(total[v] + value(words[v]))
                else:
                    for v in range(width):
                        total[v] = sum_type(total[v] + parts[u32(base + u32(v))])
            for v in range(width):
                out[v] = value_type(total[v])
            o = u32(u32(m * y_row) + k)
            if width == 8:
                store(
                    out[0], out[1], out[2], out[3], out[4], out[5], out[6], out[7],
                    m, k, o, y, e0, e1, e2, e3, e4, e5,
                )  # fmt: skip
            elif width == 4:
                store(out[0], out[1], out[2], out[3], m, k, o, y, e0, e1, e2, e3, e4, e5)
            elif width == 2:
                store(out[0], out[1], m, k, o, y, e0, e1, e2, e3, e4, e5)
            else:
                store(out[0], m, k, o, y, e0, e1, e2, e3, e4, e5)

    return kernel, types.void(
        pointer(sums), pointer(out_dtype), *extra_types(extras), u32, u32, u32
    )
