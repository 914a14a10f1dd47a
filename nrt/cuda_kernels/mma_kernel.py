"""The ``mma.sync`` kernels: tiles of a matrix product whose rows are patches of an image.

Recipe. A block computes BM x BN outputs of ``Y[m, k] = sum_j X[m, j] W[k, j]``, where row m of X is
the patch of one output pixel (a matrix product is the 1x1 case) and both operands are read along j,
8 halves (16 bytes) at a time. Blocks are numbered in strips of rows (`mma_block.tile_position`).

Per step of BK every thread copies its pieces of both tiles with cp.async into one of STAGES shared
buffers, swizzled so that ldmatrix meets no bank conflict; out-of-image pieces are zero-filled. W is
packed (`mma_tile.packed`) as the blocks that are loaded, so that a thread's pieces lie at distances
that the instructions hold. X costs an addition and a wide multiply-add per piece; a convolution
also two additions and two comparisons, its position (r, s, c) advances without division.

A step of 32 bytes is one ldmatrix.x4 per 16 rows of either operand, then m16n8k16 over the warp's
tile. Fragments are double-buffered: those of the next step are loaded before the products of this
one, also across the barrier, which lies before the last step of a block. At 128x256 with eight
warps of 64x64 a warp issues, per BK = 64: 128 HMMA, 32 LDSM, 12 LDGSTS, 39 others, 211 in all
(a convolution 265); 230 registers. Bytes from L2 per block and step (BM + BN) * BK * 2, flops
2 * BM * BN * BK: 128x256 does 85 flops per byte, 128x128 64.

The results go through a private stretch of shared memory per warp, 16 rows at a time, so that the
epilogue sees 8 neighbouring channels and stores 16 bytes.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

from numba import cuda
from numba.cuda import types

from nrt.cuda_kernels import ptx
from nrt.cuda_kernels.codegen import pointer
from nrt.cuda_kernels.conv_common import extra_types
from nrt.cuda_kernels.epilogue import Extra, make_store
from nrt.cuda_kernels.mma_block import copies, fragments, put_rows, tile_position, warp_mma
from nrt.dtypes import BF16, FP16, FP32, DType
from nrt.ir.pointwise import Program

__all__ = ["Tile", "shared_bytes", "threads"]

u32 = types.uint32
i32 = types.int32
f32 = types.float32


class Tile(NamedTuple):
    """A configuration.

    Attributes:
        bm, bn, bk: tile of the block: rows, channels, reduction.
        wm, wn: warps along rows and channels.
        stages: shared buffers.
        split: parts of the reduction, computed by different blocks and added in a second launch.
    """

    bm: int
    bn: int
    bk: int
    wm: int
    wn: int
    stages: int
    split: int = 1


def threads(tile: Tile) -> int:
    """Threads of a block."""
    return tile.wm * tile.wn * 32


def _row_step(tile: Tile) -> int:
    """Rows between the pieces of one thread: a multiple of 8, after which the swizzle repeats."""
    return threads(tile) // (tile.bk // 8)


def _loads(tile: Tile) -> tuple[int, int]:
    """Pieces of x and of w that a thread copies per block."""
    return tile.bm // _row_step(tile), tile.bn // _row_step(tile)


def _pitch(tile: Tile) -> int:
    """Floats per row of the epilogue's staging: 8 more than a multiple of 32.

    The four rows that half a warp writes at a time then lie in different banks.
    """
    return -(-(tile.bn // tile.wn) // 32) * 32 + 8


def shared_bytes(tile: Tile) -> int:
    """Dynamic shared memory: the stages, which the epilogue's staging uses again, and alignment."""
    stages = tile.stages * (tile.bm + tile.bn) * tile.bk * 2
    return max(stages, tile.wm * tile.wn * 16 * _pitch(tile) * 4) + 128


@functools.cache
def _place(row_bytes: int) -> Any:
    """Device function: (row, 16-byte piece) -> offset in a tile of such rows, free of conflicts.

    A step deeper into the row is an exclusive or with its 32 bytes, eight rows further down are
    ``8 * row_bytes`` more: neither needs this function again.
    """
    if row_bytes == 64:
        # Two rows share 128 bytes: the piece turns with every second row.
        return cuda.jit(device=True, inline="always")(
            lambda row, piece: u32(u32(row * 64) + u32((piece ^ ((row >> u32(1)) & u32(3))) * 16))
        )
    return cuda.jit(device=True, inline="always")(
        lambda row, piece: u32(u32(row * 128) + u32((piece ^ (row & u32(7))) * 16))
    )


def _load_x(tile: Tile, pointwise: bool) -> Any:
    """Device function: this thread's pieces of the block of x at (tap r, s; channel c).

    ``base`` holds the offsets of its rows, ``h`` and ``w`` the upper left corners of their patches;
    nothing is read where ``live`` is false: zeros are written.
    """
    count, step = _loads(tile)[0], _row_step(tile)
    row_bytes = tile.bk * 2

    def load(target, x_at, base, h, w, live, c, r, s, height, width, dil_h, dil_w, x_h, x_w):
        if pointwise:
            size = u32(16) if live else u32(0)
            for i in range(count):
                place = u32(target + u32(i * step * row_bytes))
                ptx.cp_async_16(place, ptx.further_2(x_at, u32(base[i] + c)), size)
        else:
            down = u32(r * dil_h)
            right = u32(s * dil_w)
            shift = u32(u32(down * x_h) + u32(right * x_w) + c)
            # Beyond the end no row is in the image.
            below = i32(down) if live else i32(0x40000000)
            for i in range(count):
                inside = u32(h[i] + below) < height and u32(w[i] + i32(right)) < width
                place = u32(target + u32(i * step * row_bytes))
                ptx.cp_async_16(
                    place, ptx.further_2(x_at, u32(base[i] + shift)), u32(16) if inside else u32(0)
                )

    return cuda.jit(device=True, inline="always")(load)


@cuda.jit(device=True, inline="always")
def _next_position(c, r, s, step, channels, filter_w):
    """The channel and tap ``step`` elements further along j."""
    c = u32(c + step)
    while c >= channels:
        c = u32(c - channels)
        s = u32(s + u32(1))
        if s == filter_w:
            s = u32(0)
            r = u32(r + u32(1))
    return c, r, s


def _mma_kernel(
    tile: Tile,
    dtype: DType,
    out_dtype: DType,
    program: Program | None,
    extras: tuple[Extra, ...],
    width: int,
    pointwise: bool,
) -> tuple[Any, Any]:
    """The kernel; ``pointwise`` drops the filter position (a matrix product or an unpadded 1x1).

    With ``tile.split > 1`` the block of part z writes float32 sums to ``y[z, m, k]`` and the
    epilogue is left to `_reduce_kernel`.
    """
    bm, bn, bk, wm, wn, stages, split = tile
    pieces, row_step = bk // 8, _row_step(tile)
    a_loads, b_loads = _loads(tile)
    warp_m, warp_n = bm // wm, bn // wn
    mi_count, ni_count = warp_m // 16, warp_n // 8
    row_bytes = bk * 2
    a_bytes, stage_bytes = bm * row_bytes, (bm + bn) * row_bytes
    ring = stages * stage_bytes
    pitch = _pitch(tile)
    place = _place(row_bytes)
    load_x = _load_x(tile, pointwise)
    b_middle = b_loads // 2
    copies_w = copies(b_loads, row_step * row_bytes, 512, -512 * b_middle)
    fragments_a = fragments(mi_count, 16 * row_bytes)
    fragments_b = fragments(ni_count // 2, 16 * row_bytes)
    products = warp_mma({FP16: "f16", BF16: "bf16"}[dtype], mi_count, ni_count)
    put = put_rows(mi_count, ni_count, pitch)
    lanes_per_row = warp_n // width
    passes = 16 * lanes_per_row // 32
    pairs, last = row_bytes // 64 - 1, row_bytes - 32
    pending = stages - 2
    acc_size, fa_size, fb_size = mi_count * ni_count * 4, mi_count * 4, ni_count * 2
    store = make_store(
        None if split > 1 else program, () if split > 1 else extras, out_dtype, width
    )

    def kernel(
        x, w, y, e0, e1, e2, e3,
        m_count, k_count, j_count,
        height, width_in, channels, out_hw, out_w, filter_w,
        stride_h, stride_w, pad_h, pad_w, dil_h, dil_w,
        x_n, x_h, x_w, y_row, tiles, tiles_n, group, blocks_k,
    ):  # fmt: skip
        # Rows of 128 bytes start at multiples of 128, so that offsets in them are bits of their
        # own.
        raw = ptx.shared_address(cuda.shared.array(0, types.uint8))
        shared = u32(u32(raw + u32(127)) & u32(0xFFFFFF80))
        tid = u32(cuda.threadIdx.x)
        lane = u32(tid & u32(31))
        warp = u32(tid >> u32(5))
        tile_m, tile_n = tile_position(u32(cuda.blockIdx.x), tiles, tiles_n, group)
        m0 = u32(tile_m * u32(bm))
        n0 = u32(tile_n * u32(bn))
        part = u32(cuda.blockIdx.y)
        first = u32(part * blocks_k)
        total = u32((j_count + u32(bk - 1)) // u32(bk))
        count = u32(min(u32(blocks_k), u32(total - first))) if total > first else u32(0)

        # This thread's pieces: rows row + i * row_step, always the same piece of the row.
        row = u32(tid // u32(pieces))
        piece = u32(tid % u32(pieces))
        # Packed w: 32 pieces of a warp, then the next 32; in the middle, so that all are in reach.
        w_first = u32(u32(warp * u32(b_loads * 256)) + u32(lane * u32(8)) + u32(b_middle * 256))
        x_base = cuda.local.array(a_loads, types.uint32)
        x_top = cuda.local.array(a_loads, types.int32)
        x_left = cuda.local.array(a_loads, types.int32)
        for i in range(a_loads):
            # Rows past the end repeat the last one; they are never stored.
            m = u32(min(u32(m0 + row + u32(i * row_step)), u32(m_count - u32(1))))
            if pointwise:
                x_base[i] = u32(m * x_w)
            else:
                n = u32(m // out_hw)
                pq = u32(m - u32(n * out_hw))
                p = u32(pq // out_w)
                q = u32(pq - u32(p * out_w))
                x_top[i] = i32(i32(p * stride_h) - i32(pad_h))
                x_left[i] = i32(i32(q * stride_w) - i32(pad_w))
                x_base[i] = u32(u32(n * x_n) + u32(u32(x_top[i]) * x_h) + u32(u32(x_left[i]) * x_w))
        j = u32(u32(first * u32(bk)) + u32(piece * u32(8)))
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
        x_to = u32(shared + place(row, piece))
        w_to = u32(x_to + u32(a_bytes))

        acc = cuda.local.array(acc_size, types.float32)
        for i in range(acc_size):
            acc[i] = f32(0)
        fa0 = cuda.local.array(fa_size, types.uint32)
        fb0 = cuda.local.array(fb_size, types.uint32)
        fa1 = cuda.local.array(fa_size, types.uint32)
        fb1 = cuda.local.array(fb_size, types.uint32)
        warp_row = u32(u32(warp // u32(wn)) * u32(warp_m))
        warp_col = u32(u32(warp % u32(wn)) * u32(warp_n))
        a_from = u32(shared + place(u32(warp_row + (lane & u32(15))), u32(lane >> u32(4))))
        b_from = u32(
            shared
            + u32(a_bytes)
            + place(
                u32(warp_col + (lane & u32(7)) + u32(u32(lane >> u32(4)) * u32(8))),
                u32(u32(lane >> u32(3)) & u32(1)),
            )
        )

        for slot in range(stages - 1):
            to = u32(u32(slot) * u32(stage_bytes))
            live = j < j_end
            load_x(
                u32(x_to + to), x_at, x_base, x_top, x_left, live, c, r, s,
                height, width_in, dil_h, dil_w, x_h, x_w,
            )  # fmt: skip
            copies_w(u32(w_to + to), ptx.at(w_here, u32(0)), u32(16) if live else u32(0))
            ptx.cp_async_commit()
            j = u32(j + u32(bk))
            w_here = ptx.ahead(w_here, u32(bn * bk))
            if pointwise:
                c = j
            else:
                c, r, s = _next_position(c, r, s, u32(bk), channels, filter_w)
        ptx.cp_async_wait(pending)
        cuda.syncthreads()
        fragments_a(fa0, a_from)
        fragments_b(fb0, b_from)

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
                products(acc, fa0, fb0)
                fragments_a(fa0, u32(a_here ^ u32(pair * 64 + 64)))
                fragments_b(fb0, u32(b_here ^ u32(pair * 64 + 64)))
                products(acc, fa1, fb1)
            fragments_a(fa1, u32(a_here ^ u32(last)))
            fragments_b(fb1, u32(b_here ^ u32(last)))
            load_x(
                u32(x_to + writing), x_at, x_base, x_top, x_left, live, c, r, s,
                height, width_in, dil_h, dil_w, x_h, x_w,
            )  # fmt: skip
            copies_w(u32(w_to + writing), ptx.at(w_here, u32(0)), u32(16) if live else u32(0))
            ptx.cp_async_commit()
            products(acc, fa0, fb0)
            j = u32(j + u32(bk))
            w_here = ptx.ahead(w_here, u32(bn * bk))
            if pointwise:
                c = j
            else:
                c, r, s = _next_position(c, r, s, u32(bk), channels, filter_w)
            writing = reading
            reading = u32(reading + u32(stage_bytes))
            if reading == u32(ring):
                reading = u32(0)
            ptx.cp_async_wait(pending)
            cuda.syncthreads()
            fragments_a(fa0, u32(a_from + reading))
            fragments_b(fb0, u32(b_from + reading))
            products(acc, fa1, fb1)
        ptx.cp_async_wait(0)
        cuda.syncthreads()

        staging = u32(shared + u32(warp * u32(16 * pitch * 4)))
        corner = u32(
            staging + u32(u32(u32(u32(lane >> u32(2)) * u32(pitch)) + u32((lane & u32(3)) * 2)) * 4)
        )
        y_part = u32(u32(part * m_count) * k_count) if split > 1 else u32(0)
        out = cuda.local.array(8, types.float32)
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
                if m < m_count and k < k_count:
                    if width == 8:
                        out[0], out[1], out[2], out[3] = ptx.ld_shared_v4_f32(cell)
                        out[4], out[5], out[6], out[7] = ptx.ld_shared_v4_f32(u32(cell + u32(16)))
                    else:
                        for v in range(width):
                            out[v] = ptx.ld_shared_f32(u32(cell + u32(v * 4)))
                    o = u32(u32(m * y_row) + k + y_part)
                    if width == 8:
                        store(
                            out[0], out[1], out[2], out[3], out[4], out[5], out[6], out[7],
                            m, k, o, y, e0, e1, e2, e3,
                        )  # fmt: skip
                    elif width == 4:
                        store(out[0], out[1], out[2], out[3], m, k, o, y, e0, e1, e2, e3)
                    elif width == 2:
                        store(out[0], out[1], m, k, o, y, e0, e1, e2, e3)
                    else:
                        store(out[0], m, k, o, y, e0, e1, e2, e3)
            cuda.syncwarp()

    signature = types.void(
        pointer(dtype), pointer(dtype), pointer(out_dtype), *extra_types(extras), *[u32] * 23
    )
    return kernel, signature


def _reduce_kernel(
    out_dtype: DType, program: Program | None, extras: tuple[Extra, ...], width: int, split: int
) -> tuple[Any, Any]:
    """Adds ``split`` float32 partial sums ``[split, m, k]`` in order and runs the epilogue."""
    store = make_store(program, extras, out_dtype, width)

    def kernel(parts, y, e0, e1, e2, e3, m_count, k_count, y_row):
        index = u32(u32(cuda.blockIdx.x) * u32(cuda.blockDim.x) + u32(cuda.threadIdx.x))
        per_row = u32(k_count // u32(width))
        m = u32(index // per_row)
        k = u32(u32(index - m * per_row) * u32(width))
        if m < m_count:
            total = cuda.local.array(8, types.float32)
            for v in range(width):
                total[v] = f32(0)
            for z in range(split):
                base = u32(u32(u32(u32(z) * m_count) + m) * k_count + k)
                for v in range(width):
                    total[v] += parts[u32(base + u32(v))]
            o = u32(u32(m * y_row) + k)
            if width == 8:
                store(
                    total[0], total[1], total[2], total[3], total[4], total[5], total[6], total[7],
                    m, k, o, y, e0, e1, e2, e3,
                )  # fmt: skip
            elif width == 4:
                store(total[0], total[1], total[2], total[3], m, k, o, y, e0, e1, e2, e3)
            elif width == 2:
                store(total[0], total[1], m, k, o, y, e0, e1, e2, e3)
            else:
                store(total[0], m, k, o, y, e0, e1, e2, e3)

    return kernel, types.void(
        pointer(FP32), pointer(out_dtype), *extra_types(extras), u32, u32, u32
    )
