"""The ``mma.sync`` kernel for batched products of two run-time operands in any of their orders.

Recipe. Block (x, z) computes BM x BN outputs of matrix z of ``y[z] = a[z] b[z]``. Per step of BK
every thread copies its 16-byte pieces of both tiles with cp.async into one of STAGES shared
buffers; pieces outside the matrices are zero-filled, a piece across the edge is clipped by its byte
count. A tile lies in shared memory as its operand does in global memory: lines along K, which
ldmatrix reads as they are, or lines along rows of a or columns of b (P V of attention), which
``ldmatrix.trans`` turns. Either way the pieces of a line are swizzled so that eight lines below
each other occupy all 32 banks. Lines that do not start at multiples of 16 bytes (sequences of odd
length) are loaded in aligned pairs of elements, shifted and stored. Bytes per block and step:
(BM + BN) * BK * 2; flops 2 * BM * BN * BK. The results go through a private stretch of shared
memory per warp, so that the epilogue sees up to 8 neighbouring columns and stores 16 bytes.
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
from nrt.cuda_kernels.mma_kernel import Tile, threads
from nrt.dtypes import BF16, FP16, DType
from nrt.ir.pointwise import Program

__all__ = ["Access", "shared_bytes"]

u32 = types.uint32
u64 = types.uint64
f32 = types.float32


class Access(NamedTuple):
    """How an operand is read.

    Attributes:
        along_k: its lines run along K; otherwise along the rows of a or the columns of b.
        pairs: lines do not start at multiples of 16 bytes; pairs of elements are loaded instead.
    """

    along_k: bool
    pairs: bool


def _pitch(tile: Tile) -> int:
    """Floats per row of the epilogue's staging; 4 more than needed, against bank conflicts."""
    return tile.bn // tile.wn + 4


def shared_bytes(tile: Tile) -> int:
    """Dynamic shared memory: the stages, which the epilogue's staging uses again."""
    stages = tile.stages * (tile.bm + tile.bn) * tile.bk * 2
    return max(stages, tile.wm * tile.wn * 16 * _pitch(tile) * 4)


@functools.cache
def _swizzle(length: int) -> Any:
    """Device function: (line, 16-byte piece) -> byte offset in a tile of lines of ``length``.

    Short lines share 128 bytes: then the piece turns with every full 128 bytes.
    """
    pieces = length // 8
    shift = {2: 2, 4: 1}.get(pieces, 0)
    mask = min(pieces, 8) - 1

    def swizzle(line, piece):
        turned = u32(piece ^ ((line >> u32(shift)) & u32(mask)))
        return u32(u32(line * u32(length * 2)) + u32(turned * u32(16)))

    return cuda.jit(device=True, inline="always")(swizzle)


@functools.cache
def _copier(count: int, length: int, nt: int, pairs: bool) -> Any:
    """Device function: ``nt`` threads copy a tile of ``count`` lines of ``length`` halves.

    Its parameters: shared address of the tile, pointer, offset of the matrix, thread, first line,
    end of the lines, first position in the lines, end of the positions, elements from one line to
    the next.
    """
    pieces = length // 8
    step = nt // pieces
    loads = count // step
    held = loads * 5
    swizzle = _swizzle(length)

    def copy(target, source, matrix, tid, line, lines, position, end, pitch):
        row = u32(tid // u32(pieces))
        piece = u32(tid % u32(pieces))
        first = u32(position + u32(piece * u32(8)))
        left = u32(end - first) if first < end else u32(0)
        most = left if left < u32(8) else u32(8)
        for i in range(loads):
            mine = u32(row + u32(i * step))
            size = most if u32(line + mine) < lines else u32(0)
            offset = u32(u32(matrix + u32(u32(line + mine) * pitch)) + first)
            ptx.cp_async_16(
                u32(target + swizzle(mine, piece)),
                ptx.at(source, offset if size > u32(0) else u32(0)),
                u32(size * u32(2)),
            )

    def copy_pairs(target, source, matrix, tid, line, lines, position, end, pitch):
        row = u32(tid // u32(pieces))
        piece = u32(tid % u32(pieces))
        first = u32(position + u32(piece * u32(8)))
        left = u32(end - first) if first < end else u32(0)
        masks = cuda.local.array(4, types.uint32)
        for v in range(4):
            low = u32(0xFFFF) if u32(2 * v) < left else u32(0)
            masks[v] = u32(0xFFFFFFFF) if u32(2 * v + 1) < left else low
        # Outside, the last elements of the last line are loaded and masked: no load has a branch.
        last = u32(end - u32(1))
        inner = first if first < end else last
        raw = cuda.local.array(held, types.uint32)
        odd = cuda.local.array(loads, types.uint32)
        for i in range(loads):
            mine = u32(line + row + u32(i * step))
            base = u32(matrix + u32((mine if mine < lines else u32(lines - u32(1))) * pitch))
            odd[i] = u32(u32(base + inner) & u32(1))
            start = u32(u32(base + inner) - odd[i])
            stop = u32(u32(base + last) & u32(0xFFFFFFFE))
            for v in range(5):
                pair = u32(start + u32(2 * v))
                raw[5 * i + v] = ptx.ld_global_nc_u32(ptx.at(source, pair if pair < stop else stop))
        words = cuda.local.array(4, types.uint32)
        for i in range(loads):
            live = u32(line + row + u32(i * step)) < lines
            keep = u32(0xFFFFFFFF) if live else u32(0)
            for v in range(4):
                # An odd line's elements are the upper half of one pair, the lower of the next.
                both = u64(u64(raw[5 * i + v]) | u64(u64(raw[5 * i + v + 1]) << u64(32)))
                word = u32(u64(both >> u64(u32(odd[i] * u32(16)))))
                words[v] = u32(word & masks[v] & keep)
            ptx.st_shared_v4(
                u32(target + swizzle(u32(row + u32(i * step)), piece)),
                words[0], words[1], words[2], words[3],
            )  # fmt: skip

    return cuda.jit(device=True, inline="always")(copy_pairs if pairs else copy)


def _batched_kernel(
    tile: Tile,
    dtype: DType,
    out_dtype: DType,
    program: Program | None,
    extras: tuple[Extra, ...],
    width: int,
    a_access: Access,
    b_access: Access,
) -> tuple[Any, Any]:
    """The kernel; ``width`` neighbouring columns are stored at a time."""
    bm, bn, bk, wm, wn, stages, _ = tile
    nt = threads(tile)
    a_along, a_pairs = a_access
    b_along, b_pairs = b_access
    a_length, b_length = bk if a_along else bm, bk if b_along else bn
    copy_a = _copier(bm if a_along else bk, a_length, nt, a_pairs)
    copy_b = _copier(bn if b_along else bk, b_length, nt, b_pairs)
    swizzle_a, swizzle_b = _swizzle(a_length), _swizzle(b_length)
    warp_m, warp_n = bm // wm, bn // wn
    mi_count, ni_count = warp_m // 16, warp_n // 8
    a_bytes, stage_bytes = bm * bk * 2, (bm + bn) * bk * 2
    pitch = _pitch(tile)
    mma = {FP16: ptx.mma_f16, BF16: ptx.mma_bf16}[dtype]
    lanes_per_row = warp_n // width
    passes = 16 * lanes_per_row // 32
    steps = bk // 16
    pending = stages - 2
    acc_size, fa_size, fb_size = mi_count * ni_count * 4, mi_count * 4, ni_count * 2
    store = make_store(program, extras, out_dtype, width)

    def kernel(
        a, b, y, e0, e1, e2, e3, e4, e5,
        m_count, n_count, k_count, a_pitch, b_pitch, y_pitch, tiles_n,
        size1, size2, size3,
        as0, as1, as2, as3, bs0, bs1, bs2, bs3, ys0, ys1, ys2, ys3,
    ):  # fmt: skip
        shared = ptx.shared_address(cuda.shared.array(0, types.uint8))
        tid = u32(cuda.threadIdx.x)
        lane = tid & u32(31)
        warp = tid >> u32(5)
        block = u32(cuda.blockIdx.x)
        m0 = u32(u32(block // tiles_n) * u32(bm))
        n0 = u32(u32(block % tiles_n) * u32(bn))
        matrix = u32(cuda.blockIdx.z)
        z = u32(matrix // size3)
        z3 = u32(matrix - u32(z * size3))
        rest = u32(z // size2)
        z2 = u32(z - u32(rest * size2))
        z0 = u32(rest // size1)
        z1 = u32(rest - u32(z0 * size1))
        a_at = u32(u32(z0 * as0) + u32(z1 * as1) + u32(z2 * as2) + u32(z3 * as3))
        b_at = u32(u32(z0 * bs0) + u32(z1 * bs1) + u32(z2 * bs2) + u32(z3 * bs3))
        y_at = u32(u32(z0 * ys0) + u32(z1 * ys1) + u32(z2 * ys2) + u32(z3 * ys3))
        count = u32(u32(k_count + u32(bk - 1)) // u32(bk))

        acc = cuda.local.array(acc_size, types.float32)
        for i in range(acc_size):
            acc[i] = f32(0)
        fa = cuda.local.array(fa_size, types.uint32)
        fb = cuda.local.array(fb_size, types.uint32)

        # The line and piece of each tile whose address this lane gives to ldmatrix.
        warp_row = u32(u32(warp // u32(wn)) * u32(warp_m))
        warp_col = u32(u32(warp % u32(wn)) * u32(warp_n))
        upper = u32(lane >> u32(4))
        eight = u32(u32(lane >> u32(3)) & u32(1))
        if a_along:
            a_line = u32(warp_row + (lane & u32(15)))
            a_piece = upper
        else:
            a_line = u32((lane & u32(7)) + u32(upper * u32(8)))
            a_piece = u32(u32(warp_row // u32(8)) + eight)
        if b_along:
            b_line = u32(warp_col + (lane & u32(7)) + u32(upper * u32(8)))
            b_piece = eight
        else:
            b_line = u32(lane & u32(15))
            b_piece = u32(u32(warp_col // u32(8)) + upper)

        for turn in range(u32(count + u32(stages - 1))):
            step = u32(turn)
            # Load block ``step`` (if there is one), then compute block ``step - (stages - 1)``.
            if step >= u32(stages - 1):
                ptx.cp_async_wait(pending)
                cuda.syncthreads()
            if step < count:
                a_tile = u32(shared + u32(u32(step % u32(stages)) * u32(stage_bytes)))
                b_tile = u32(a_tile + u32(a_bytes))
                k = u32(step * u32(bk))
                if a_along:
                    copy_a(a_tile, a, a_at, tid, m0, m_count, k, k_count, a_pitch)
                else:
                    copy_a(a_tile, a, a_at, tid, k, k_count, m0, m_count, a_pitch)
                if b_along:
                    copy_b(b_tile, b, b_at, tid, n0, n_count, k, k_count, b_pitch)
                else:
                    copy_b(b_tile, b, b_at, tid, k, k_count, n0, n_count, b_pitch)
            ptx.cp_async_commit()
            if step >= u32(stages - 1):
                done = u32(step - u32(stages - 1))
                a_tile = u32(shared + u32(u32(done % u32(stages)) * u32(stage_bytes)))
                b_tile = u32(a_tile + u32(a_bytes))
                for ks in range(steps):
                    for mi in range(mi_count):
                        t = 4 * mi
                        if a_along:
                            where = swizzle_a(
                                u32(a_line + u32(mi * 16)), u32(a_piece + u32(ks * 2))
                            )
                            fa[t], fa[t + 1], fa[t + 2], fa[t + 3] = ptx.ldmatrix_x4(
                                u32(a_tile + where)
                            )
                        else:
                            where = swizzle_a(
                                u32(a_line + u32(ks * 16)), u32(a_piece + u32(mi * 2))
                            )
                            fa[t], fa[t + 1], fa[t + 2], fa[t + 3] = ptx.ldmatrix_x4_trans(
                                u32(a_tile + where)
                            )
                    for ni in range(ni_count // 2):
                        t = 4 * ni
                        if b_along:
                            where = swizzle_b(
                                u32(b_line + u32(ni * 16)), u32(b_piece + u32(ks * 2))
                            )
                            fb[t], fb[t + 1], fb[t + 2], fb[t + 3] = ptx.ldmatrix_x4(
                                u32(b_tile + where)
                            )
                        else:
                            where = swizzle_b(
                                u32(b_line + u32(ks * 16)), u32(b_piece + u32(ni * 2))
                            )
                            fb[t], fb[t + 1], fb[t + 2], fb[t + 3] = ptx.ldmatrix_x4_trans(
                                u32(b_tile + where)
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
        first_row = u32(matrix * m_count)
        out = cuda.local.array(8, types.float32)
        for mi in range(mi_count):
            for ni in range(ni_count):
                t = (mi * ni_count + ni) * 4
                cell = u32(
                    staging
                    + u32(u32(u32(lane >> u32(2)) * u32(pitch)) * u32(4))
                    + u32(u32(lane & u32(3)) * u32(8))
                    + u32(ni * 32)
                )
                ptx.st_shared_v2_f32(cell, acc[t], acc[t + 1])
                ptx.st_shared_v2_f32(u32(cell + u32(8 * pitch * 4)), acc[t + 2], acc[t + 3])
            cuda.syncwarp()
            for i in range(passes):
                index = u32(u32(i * 32) + lane)
                line = u32(index // u32(lanes_per_row))
                col = u32(u32(index % u32(lanes_per_row)) * u32(width))
                row = u32(m0 + warp_row + u32(mi * 16) + line)
                n = u32(n0 + warp_col + col)
                cell = u32(staging + u32(u32(u32(line * u32(pitch)) + col) * u32(4)))
                if row < m_count and n < n_count:
                    if width == 8:
                        out[0], out[1], out[2], out[3] = ptx.ld_shared_v4_f32(cell)
                        out[4], out[5], out[6], out[7] = ptx.ld_shared_v4_f32(u32(cell + u32(16)))
                    elif width == 4:
                        out[0], out[1], out[2], out[3] = ptx.ld_shared_v4_f32(cell)
                    else:
                        for v in range(width):
                            out[v] = ptx.ld_shared_f32(u32(cell + u32(v * 4)))
                    m = u32(first_row + row)
                    o = u32(y_at + u32(row * y_pitch) + n)
                    if width == 8:
                        store(
                            out[0], out[1], out[2], out[3], out[4], out[5], out[6], out[7],
                            m, n, o, y, e0, e1, e2, e3, e4, e5,
                        )  # fmt: skip
                    elif width == 4:
                        store(out[0], out[1], out[2], out[3], m, n, o, y, e0, e1, e2, e3, e4, e5)
                    elif width == 2:
                        store(out[0], out[1], m, n, o, y, e0, e1, e2, e3, e4, e5)
                    else:
                        store(out[0], m, n, o, y, e0, e1, e2, e3, e4, e5)
            cuda.syncwarp()

    signature = types.void(
        pointer(dtype), pointer(dtype), pointer(out_dtype), *extra_types(extras), *[u32] * 22
    )
    return kernel, signature
