"""The ``mma.sync`` kernels: tiles of a matrix product whose rows are patches of an image.

Recipe. A block computes BM x BN outputs of ``Y[m, k] = sum_j X[m, j] W[k, j]``, where row m of X is
the patch of one output pixel (a matrix product is the 1x1 case) and both operands are read along j,
8 halves (16 bytes) at a time. Per step of BK: every thread copies its 16-byte pieces of both tiles
with cp.async into one of STAGES shared buffers (out-of-image pieces are zero-filled), swizzled so
that ldmatrix meets no bank conflict; warps load fragments and issue m16n8k16. Bytes per block and
step: (BM + BN) * BK * 2; flops 2 * BM * BN * BK: at 128x128, 64 flops per byte from L2.
The position (r, s, c) of a thread's piece advances without division. The results go through a
private stretch of shared memory per warp, so that the epilogue sees 8 neighbouring channels and
stores 16 bytes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from numba import cuda
from numba.cuda import types

from nrt.cuda_kernels import ptx
from nrt.cuda_kernels.codegen import pointer
from nrt.cuda_kernels.conv_common import extra_types
from nrt.cuda_kernels.epilogue import Extra, make_store
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


def _pitch(tile: Tile) -> int:
    """Floats per row of the epilogue's staging; 4 more than needed, against bank conflicts."""
    return tile.bn // tile.wn + 4


def shared_bytes(tile: Tile) -> int:
    """Dynamic shared memory: the stages, which the epilogue's staging uses again."""
    stages = tile.stages * (tile.bm + tile.bn) * tile.bk * 2
    return max(stages, tile.wm * tile.wn * 16 * _pitch(tile) * 4)


def _swizzle(bk: int) -> Any:
    """(row, 16-byte piece) -> byte offset in a tile of rows of ``bk`` halves, free of conflicts."""
    if bk == 32:
        # Two rows share 128 bytes: the piece turns with every second row.
        return cuda.jit(device=True, inline="always")(
            lambda row, piece: u32(u32(row * 64) + u32((piece ^ ((row >> u32(1)) & u32(3))) * 16))
        )
    return cuda.jit(device=True, inline="always")(
        lambda row, piece: u32(u32(row * 128) + u32((piece ^ (row & u32(7))) * 16))
    )


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
    nt = threads(tile)
    pieces = bk // 8
    a_loads, b_loads = bm * pieces // nt, bn * pieces // nt
    row_step = nt // pieces
    mi_count, ni_count = bm // wm // 16, bn // wn // 8
    warp_m, warp_n = bm // wm, bn // wn
    a_bytes, stage_bytes = bm * bk * 2, (bm + bn) * bk * 2
    pitch = _pitch(tile)
    mma = {FP16: ptx.mma_f16, BF16: ptx.mma_bf16}[dtype]
    swizzle = _swizzle(bk)
    lanes_per_row = warp_n // width
    rows_per_pass = 32 // lanes_per_row if lanes_per_row <= 32 else 1
    passes = 16 // rows_per_pass if lanes_per_row <= 32 else 16 * lanes_per_row // 32
    steps = bk // 16
    pending = stages - 2
    acc_size, fa_size, fb_size = mi_count * ni_count * 4, mi_count * 4, ni_count * 2
    store = make_store(
        None if split > 1 else program, () if split > 1 else extras, out_dtype, width
    )

    def kernel(
        x, w, y, e0, e1, e2, e3,
        m_count, k_count, j_count, w_pitch,
        height, width_in, channels, out_hw, out_w, filter_w,
        stride_h, stride_w, pad_h, pad_w, dil_h, dil_w,
        x_n, x_h, x_w, y_row, tiles_n, blocks_k,
    ):  # fmt: skip
        shared = ptx.shared_address(cuda.shared.array(0, types.uint8))
        tid = u32(cuda.threadIdx.x)
        lane = tid & u32(31)
        warp = tid >> u32(5)
        block = u32(cuda.blockIdx.x)
        m0 = u32(u32(block // tiles_n) * u32(bm))
        n0 = u32(u32(block % tiles_n) * u32(bn))
        part = u32(cuda.blockIdx.y)
        first = u32(part * blocks_k)
        total = u32((j_count + u32(bk - 1)) // u32(bk))
        count = u32(min(u32(blocks_k), u32(total - first))) if total > first else u32(0)

        # This thread's pieces: rows row + i * row_step, always the same piece of the row.
        row = u32(tid // u32(pieces))
        piece = u32(tid % u32(pieces))
        a_base = cuda.local.array(a_loads, types.uint32)
        a_h = cuda.local.array(a_loads, types.int32)
        a_w = cuda.local.array(a_loads, types.int32)
        for i in range(a_loads):
            m = u32(m0 + row + u32(i * row_step))
            if pointwise:
                a_base[i] = u32(m * x_w)
                a_h[i] = i32(0) if m < m_count else i32(-1)
                a_w[i] = i32(0)
            else:
                n = u32(m // out_hw)
                pq = u32(m - n * out_hw)
                p = u32(pq // out_w)
                q = u32(pq - p * out_w)
                # A row past the end gets a height that no filter position brings into the image.
                h = i32(i32(p * stride_h) - i32(pad_h))
                a_h[i] = h if m < m_count else i32(-0x40000000)
                a_w[i] = i32(i32(q * stride_w) - i32(pad_w))
                a_base[i] = u32(u32(n * x_n) + u32(u32(h) * x_h) + u32(u32(a_w[i]) * x_w))
        j = u32(u32(first * u32(bk)) + u32(piece * u32(8)))
        c = j
        r = u32(0)
        s = u32(0)
        if not pointwise:
            rs = u32(j // channels)
            c = u32(j - rs * channels)
            r = u32(rs // filter_w)
            s = u32(rs - r * filter_w)
        b_base = u32(u32(n0 + row) * w_pitch)

        acc = cuda.local.array(acc_size, types.float32)
        for i in range(acc_size):
            acc[i] = f32(0)
        fa = cuda.local.array(fa_size, types.uint32)
        fb = cuda.local.array(fb_size, types.uint32)

        warp_row = u32(u32(warp // u32(wn)) * u32(warp_m))
        warp_col = u32(u32(warp % u32(wn)) * u32(warp_n))
        a_row = u32(warp_row + (lane & u32(15)))
        a_piece = u32(lane >> u32(4))
        b_row = u32(warp_col + (lane & u32(7)) + ((lane >> u32(4)) << u32(3)))
        b_piece = u32((lane >> u32(3)) & u32(1))

        for step in range(u32(count + u32(stages - 1))):
            # Load block ``step`` (if there is one), then compute block ``step - (stages - 1)``.
            if step >= u32(stages - 1):
                ptx.cp_async_wait(pending)
                cuda.syncthreads()
            if step < count:
                base = u32(shared + u32(u32(step % u32(stages)) * u32(stage_bytes)))
                live = j < j_count
                for i in range(a_loads):
                    target = u32(base + swizzle(u32(row + u32(i * row_step)), piece))
                    if pointwise:
                        ok = live and a_h[i] == i32(0)
                        offset = u32(a_base[i] + c)
                    else:
                        hh = i32(a_h[i] + i32(r * dil_h))
                        ww = i32(a_w[i] + i32(s * dil_w))
                        ok = live and u32(hh) < height and u32(ww) < width_in
                        offset = u32(
                            a_base[i] + u32(u32(r * dil_h) * x_h) + u32(u32(s * dil_w) * x_w) + c
                        )
                    size = u32(16) if ok else u32(0)
                    ptx.cp_async_16(target, ptx.at(x, offset if ok else u32(0)), size)
                for i in range(b_loads):
                    target = u32(base + u32(a_bytes) + swizzle(u32(row + u32(i * row_step)), piece))
                    ok = live and u32(n0 + row + u32(i * row_step)) < k_count
                    offset = u32(b_base + u32(u32(i * row_step) * w_pitch) + j)
                    size = u32(16) if ok else u32(0)
                    ptx.cp_async_16(target, ptx.at(w, offset if ok else u32(0)), size)
                j = u32(j + u32(bk))
                c = u32(c + u32(bk))
                if not pointwise:
                    while c >= channels:
                        c = u32(c - channels)
                        s = u32(s + u32(1))
                        if s == filter_w:
                            s = u32(0)
                            r = u32(r + u32(1))
            ptx.cp_async_commit()
            if step >= u32(stages - 1):
                done = u32(step - u32(stages - 1))
                a_tile = u32(shared + u32(u32(done % u32(stages)) * u32(stage_bytes)))
                b_tile = u32(a_tile + u32(a_bytes))
                for ks in range(steps):
                    for mi in range(mi_count):
                        (fa[4 * mi], fa[4 * mi + 1], fa[4 * mi + 2], fa[4 * mi + 3]) = (
                            ptx.ldmatrix_x4(
                                u32(
                                    a_tile
                                    + swizzle(u32(a_row + u32(mi * 16)), u32(a_piece + u32(ks * 2)))
                                )
                            )
                        )
                    for ni in range(ni_count // 2):
                        (fb[4 * ni], fb[4 * ni + 1], fb[4 * ni + 2], fb[4 * ni + 3]) = (
                            ptx.ldmatrix_x4(
                                u32(
                                    b_tile
                                    + swizzle(u32(b_row + u32(ni * 16)), u32(b_piece + u32(ks * 2)))
                                )
                            )
                        )
                    for mi in range(mi_count):
                        for ni in range(ni_count):
                            t = (mi * ni_count + ni) * 4
                            acc[t], acc[t + 1], acc[t + 2], acc[t + 3] = mma(
                                fa[4 * mi], fa[4 * mi + 1], fa[4 * mi + 2], fa[4 * mi + 3],
                                fb[2 * ni], fb[2 * ni + 1],
                                acc[t], acc[t + 1], acc[t + 2], acc[t + 3],
                            )  # fmt: skip
        ptx.cp_async_wait(0)
        cuda.syncthreads()

        staging = u32(shared + u32(warp * u32(16 * pitch * 4)))
        y_part = u32(u32(part * m_count) * k_count) if split > 1 else u32(0)
        out = cuda.local.array(8, types.float32)
        for mi in range(mi_count):
            for ni in range(ni_count):
                t = (mi * ni_count + ni) * 4
                cell = u32(
                    staging
                    + u32(((lane >> u32(2)) * u32(pitch) + (lane & u32(3)) * u32(2)) * u32(4))
                    + u32(ni * 32)
                )
                ptx.st_shared_v2_f32(cell, acc[t], acc[t + 1])
                ptx.st_shared_v2_f32(u32(cell + u32(8 * pitch * 4)), acc[t + 2], acc[t + 3])
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
        pointer(dtype), pointer(dtype), pointer(out_dtype), *extra_types(extras), *[u32] * 22
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
