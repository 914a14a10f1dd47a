"""The order in which tiles of a product are computed: one that lets neighbours share operands."""

from __future__ import annotations

from numba import cuda
from numba.cuda import types

__all__ = ["tile_position"]

u32 = types.uint32


@cuda.jit(device=True, inline="always")
def tile_position(t, tiles, tiles_n, group):
    """(row, column) of tile ``t``, walked column by column within strips of ``group`` rows.

    Blocks that run together then cover a near-square of the output, and read the fewest bytes of
    both operands from the second-level cache.
    """
    span = u32(group * tiles_n)
    strip = u32(t // span)
    first = u32(strip * group)
    rest = u32(t - u32(strip * span))
    height = u32(min(group, u32(u32(tiles // tiles_n) - first)))
    column = u32(rest // height)
    return u32(first + u32(rest - u32(column * height))), column
