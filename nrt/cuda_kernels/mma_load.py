"""How the blocks of both operands reach shared memory: by ``cp.async``, or through registers.

Both ways have the same functions. Without ``cp.async`` (before sm_80) a load fills registers, and
`put` stores those of the block loaded before.
"""

from __future__ import annotations

from typing import Any

from numba import cuda
from numba.cuda import types

from nrt.cuda_kernels import ptx
from nrt.cuda_kernels.mma_block import copies
from nrt.cuda_kernels.mma_layout import Layout

__all__ = ["load_w", "load_x", "next_position", "put_held", "w_start"]

u32 = types.uint32
i32 = types.int32

_FURTHER = {1: ptx.further_1, 2: ptx.further_2, 4: ptx.further_4}


def _inline(function: Any) -> Any:
    return cuda.jit(device=True, inline="always")(function)


def _mover(asynchronous: bool) -> Any:
    """Device function: a piece of 16 bytes, or of zeros, to shared memory or to ``held``."""

    def move(held, index, target, address, live):
        ptx.cp_async_16(target, address, u32(16) if live else u32(0))

    def fetch(held, index, target, address, live):
        held[index], held[index + 1], held[index + 2], held[index + 3] = ptx.ld_global_nc_v4_if(
            address, u32(1) if live else u32(0)
        )

    return _inline(move if asynchronous else fetch)


def _half_mover(itemsize: int) -> Any:
    """Device function: a piece as halves of 8 bytes; the second is zeros unless ``whole``."""
    further = _FURTHER[itemsize]

    def move(target, address, live, whole):
        ptx.cp_async_8(target, address, u32(8) if live else u32(0))
        size = u32(8) if live and whole else u32(0)
        ptx.cp_async_8(u32(target + u32(8)), further(address, u32(8 // itemsize)), size)

    return _inline(move)


def load_x(layout: Layout, pointwise: bool, asynchronous: bool, halves: bool = False) -> Any:
    """Device function: this thread's pieces of the block of x at (tap r, s; channel c).

    ``base`` holds the offsets of its rows, ``h`` and ``w`` the upper left corners of their patches.
    Where ``live`` is false nothing is read and zeros are written. With ``halves`` pixels start at
    multiples of 8 bytes, and of each run of ``channels`` the last 8 bytes do not exist.
    """
    count, step = layout.x_loads, layout.row_step * layout.row_bytes
    further = _FURTHER[layout.itemsize]
    per_piece = layout.per_piece
    half = _half_mover(layout.itemsize)
    if halves:
        move = _inline(
            lambda held, index, target, address, live, whole: half(target, address, live, whole)
        )
    else:
        plain = _mover(asynchronous)
        move = _inline(
            lambda held, index, target, address, live, whole: plain(
                held, index, target, address, live
            )
        )

    def load(
        held, target, x_at, base, h, w, live, c, r, s, height, width, dil_h, dil_w, x_h, x_w,
        channels,
    ):  # fmt: skip
        whole = u32(c + u32(per_piece)) < channels
        if pointwise:
            for i in range(count):
                place = u32(target + u32(i * step))
                move(held, 4 * i, place, further(x_at, u32(base[i] + c)), live, whole)
        else:
            down = u32(r * dil_h)
            right = u32(s * dil_w)
            shift = u32(u32(down * x_h) + u32(right * x_w) + c)
            # Beyond the end no row is in the image.
            below = i32(down) if live else i32(0x40000000)
            for i in range(count):
                inside = u32(h[i] + below) < height and u32(w[i] + i32(right)) < width
                place = u32(target + u32(i * step))
                move(held, 4 * i, place, further(x_at, u32(base[i] + shift)), inside, whole)

    return _inline(load)


def w_start(layout: Layout, asynchronous: bool) -> int:
    """Bytes from a warp's first piece to what `load_w` is given: all are then in its reach."""
    return layout.w_loads // 2 * 512 if asynchronous else 0


def load_w(layout: Layout, asynchronous: bool) -> Any:
    """Device function: this thread's pieces of the packed block of w at a pointer."""
    count, step = layout.w_loads, layout.row_step * layout.row_bytes
    first, apart = 4 * layout.x_loads, 512 // layout.itemsize
    copies_w = copies(count, step, 512, -w_start(layout, True))
    move = _mover(False)

    def load(held, target, w, live):
        copies_w(target, ptx.at(w, u32(0)), u32(16) if live else u32(0))

    def fetch(held, target, w, live):
        for i in range(count):
            move(held, first + 4 * i, target, ptx.at(w, u32(i * apart)), live)

    return _inline(load if asynchronous else fetch)


def put_held(layout: Layout, asynchronous: bool) -> Any:
    """Device function: store the pieces in ``held`` to buffers of x and of w."""
    x_count, w_count = layout.x_loads, layout.w_loads
    step = layout.row_step * layout.row_bytes

    def put(held, x_to, w_to):
        for i in range(x_count):
            v = 4 * i
            ptx.st_shared_v4(
                u32(x_to + u32(i * step)), held[v], held[v + 1], held[v + 2], held[v + 3]
            )
        for i in range(w_count):
            v = 4 * (x_count + i)
            ptx.st_shared_v4(
                u32(w_to + u32(i * step)), held[v], held[v + 1], held[v + 2], held[v + 3]
            )

    def nothing(held, x_to, w_to):
        pass

    return _inline(nothing if asynchronous else put)


@_inline
def next_position(c, r, s, step, channels, filter_w):
    """The channel and tap ``step`` elements further along j."""
    c = u32(c + step)
    while c >= channels:
        c = u32(c - channels)
        s = u32(s + u32(1))
        if s == filter_w:
            s = u32(0)
            r = u32(r + u32(1))
    return c, r, s
