"""The Hopper kernel's loop over a tile's blocks where the input has a prologue.

Recipe. The ring is filled as ever: boxes of 64 channels of X and of W. A warpgroup cannot multiply
X from there, since the program has to run on it first; so each warp loads its 16 rows of the block
by four ``ldmatrix`` from the swizzled buffer, runs the program on the 16 words of a lane
(`prologue`), and the four ``wgmma m64nBN`` take their left operand from registers. Loads of later
blocks go on meanwhile; the products of a warpgroup wait for its program and it for them, so that a
second warpgroup or block on the SM has to fill the cores. A block of a warpgroup: 32 elements a
lane (about 100 instructions for scale, shift and ReLU), (64 + BN) * 128 bytes, 64 * BN * 128 flops.
The tables of the operands lie behind the barriers; consumers fill them before
``griddepcontrol.wait``, since they are constants. A filter has them once for all its positions: a
lane's numbers start again with each.

Rows behind the last one and channels behind the last one arrive as zeros: the former are never
stored, the latter meet zeros of W and operands for which the program makes no infinity of them.
"""

from __future__ import annotations

from typing import Any

from numba import cuda
from numba.cuda import types

from nrt.cuda_kernels import ptx_hopper
from nrt.cuda_kernels.mma_block import fragments
from nrt.cuda_kernels.prologue import Prologue, fragment_prologue
from nrt.cuda_kernels.wgmma_layout import HopperTile, next_slot
from nrt.dtypes import DType

__all__ = ["lane_rows", "prologue_products"]

u32 = types.uint32


@cuda.jit(device=True, inline="always")
def lane_rows(warp, lane):
    """Offset, in a warpgroup's 64 rows of 128 bytes, of the row that a lane gives to ldmatrix.

    Half of a block's first 32 bytes, its place turned by the swizzle; those of step k are at this
    exclusive or 32 k.
    """
    row = u32(u32((warp & u32(3)) * u32(16)) + (lane & u32(15)))
    return u32(u32(row * u32(128)) + u32(u32((lane >> u32(4)) ^ (lane & u32(7))) * u32(16)))


def prologue_products(
    tile: HopperTile,
    dtype: DType,
    prologue: Prologue,
    stage_bytes: int,
    w_bytes: int,
    *,
    taps: bool,
) -> Any:
    """Device function that adds all of a tile's blocks to ``acc``.

    ``(acc, rows, there, full, empty, frees, numbers, origin, pitch, slot, parity, count) -> (slot,
    parity)``: as `ptx_hopper.wgmma_loop`, but ``rows`` is this lane's address (see `lane_rows`) and
    ``empty`` one of this block. ``numbers`` is the shared address of this lane's number for the
    first block, ``origin`` that for channel 0, both in the first table; ``pitch`` are the bytes
    from one table to the next. ``taps`` says that there may be several filter positions.
    """
    own = fragment_prologue(prologue, dtype, 1)
    take, apply, size = own.take, own.apply, own.size
    load = fragments(1, 0)
    multiply = ptx_hopper.wgmma_registers(dtype.name, tile.bn)
    following = next_slot(tile.stages)
    step = 32 // dtype.itemsize * 4
    stays = tile.resident > 0
    b_step = w_bytes if stays else stage_bytes

    def products(acc, rows, there, full, empty, frees, numbers, origin, pitch, slot, parity, count):
        a0 = cuda.local.array(4, types.uint32)
        a1 = cuda.local.array(4, types.uint32)
        a2 = cuda.local.array(4, types.uint32)
        a3 = cuda.local.array(4, types.uint32)
        s0 = cuda.local.array(size, types.float32)
        s1 = cuda.local.array(size, types.float32)
        for kb in range(count):
            ptx_hopper.mbarrier_wait(u32(full + u32(slot * u32(8))), parity)
            here = u32(rows + u32(slot * u32(stage_bytes)))
            load(a0, here)
            load(a1, u32(here ^ u32(32)))
            load(a2, u32(here ^ u32(64)))
            load(a3, u32(here ^ u32(96)))
            take(s0, numbers, pitch)
            take(s1, u32(numbers + u32(step)), pitch)
            apply(a0, s0)
            take(s0, u32(numbers + u32(2 * step)), pitch)
            apply(a1, s1)
            take(s1, u32(numbers + u32(3 * step)), pitch)
            apply(a2, s0)
            apply(a3, s1)
            place = u32(kb) if stays else slot
            multiply(acc, a0, a1, a2, a3, u32(there + u32(place * u32(b_step))))
            ptx_hopper.mbarrier_arrive_if(u32(empty + u32(slot * u32(8))), frees)
            numbers = u32(numbers + u32(4 * step))
            if taps and numbers == u32(origin + pitch):
                numbers = origin
            slot, parity = following(slot, parity)
        return slot, parity

    return cuda.jit(device=True, inline="always")(products)
