"""Tiles of the ``mma.sync`` kernels and what follows from them: who copies what, where it lies."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from numba import cuda
from numba.cuda import types

__all__ = ["Layout", "Tile", "place", "threads"]

u32 = types.uint32


class Tile(NamedTuple):
    """A configuration.

    Attributes:
        bm, bn, bk: tile of the block: rows, channels, reduction (in elements).
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


@dataclass(frozen=True)
class Layout:
    """A tile of operands whose elements have ``itemsize`` bytes."""

    tile: Tile
    itemsize: int

    @property
    def row_bytes(self) -> int:
        """Bytes of a row of either operand in a buffer: 64 or 128."""
        return self.tile.bk * self.itemsize

    @property
    def pieces(self) -> int:
        """Pieces of 16 bytes in a row."""
        return self.row_bytes // 16

    @property
    def per_piece(self) -> int:
        """Elements of a piece."""
        return 16 // self.itemsize

    @property
    def row_step(self) -> int:
        """Rows between the pieces of one thread: a multiple of 8, as the swizzle repeats."""
        return threads(self.tile) // self.pieces

    @property
    def x_loads(self) -> int:
        """Pieces of x that a thread copies per block."""
        return self.tile.bm // self.row_step

    @property
    def w_loads(self) -> int:
        """Pieces of w that a thread copies per block."""
        return self.tile.bn // self.row_step

    @property
    def x_bytes(self) -> int:
        """Of the block of x in a buffer; that of w follows it."""
        return self.tile.bm * self.row_bytes

    @property
    def stage_bytes(self) -> int:
        """Of a buffer."""
        return (self.tile.bm + self.tile.bn) * self.row_bytes

    @property
    def ring_bytes(self) -> int:
        """Of all buffers."""
        return self.tile.stages * self.stage_bytes

    @cached_property
    def warp_tile(self) -> tuple[int, int]:
        """Rows and columns of a warp."""
        return self.tile.bm // self.tile.wm, self.tile.bn // self.tile.wn

    @property
    def pitch(self) -> int:
        """Words per row of the epilogue's staging: 8 more than a multiple of 32.

        The four rows that half a warp writes at a time then lie in different banks.
        """
        return -(-self.warp_tile[1] // 32) * 32 + 8

    @property
    def shared_bytes(self) -> int:
        """Dynamic shared memory: the ring, which the staging uses again, and room to align it."""
        staging = self.tile.wm * self.tile.wn * 16 * self.pitch * 4
        return max(self.ring_bytes, staging) + 128


@functools.cache
def place(row_bytes: int) -> Any:
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
