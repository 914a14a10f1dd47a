"""Tiles of the Hopper kernels: their configuration, and what lies where in shared memory.

A block's dynamic shared memory, from the first multiple of 1024 bytes:

====================  ==================================================================
ring                  ``stages`` buffers: rows of x, then (unless resident) rows of w
resident w            all of w's blocks for this block's columns
staging               per consumer warp, its 16 rows of the output
inbox                 of a split reduction: the other blocks' sums of this block's rows
barriers              full and empty per buffer, one for w or the inbox, one per consumer warp
tables                of a prologue's operands, float32 per channel
====================  ==================================================================

A row of an operand is 128 bytes in a buffer, whatever its type: 64 halves, 32 floats, 128 int8.
Where the channels of a filter position fill that badly it is 64 or 32 bytes, with the swizzle of
that size.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from numba import cuda
from numba.cuda import types

from nrt.dtypes import DType

__all__ = [
    "DRAIN_COLUMNS",
    "ROWS",
    "HopperTile",
    "Layout",
    "chunk_columns",
    "depth",
    "next_slot",
    "share_bytes",
    "staged_columns",
    "sum_pitch",
    "threads",
]

u32 = types.uint32

ROWS = (128, 64, 32)
"""Bytes that an operand's row may have in a buffer: the swizzles of ``wgmma``."""


DRAIN_COLUMNS = 128
"""Columns that are drained at a time: longer loops are not unrolled, and then the accumulators,
indexed by a variable, leave the registers (512 bytes of stack at 256 columns)."""


class HopperTile(NamedTuple):
    """A configuration.

    Attributes:
        consumers: warpgroups that multiply, 64 rows each.
        bn: columns.
        stages: buffers of the ring.
        per_sm: blocks that share an SM.
        split: parts of the reduction: blocks of a cluster, added through its shared memory.
        cluster: blocks that load w together, a part each, and multicast it; neighbours in rows.
        resident: number of blocks of w that stay in shared memory for all of a block's tiles; 0
            loads w anew with every tile.
        row: bytes of an operand's row in a buffer, one of `ROWS`.
    """

    consumers: int
    bn: int
    stages: int
    per_sm: int
    split: int = 1
    cluster: int = 1
    resident: int = 0
    row: int = 128


def threads(tile: HopperTile) -> int:
    """Consumer warpgroups and one producer warp."""
    return tile.consumers * 128 + 32


def depth(tile: HopperTile, dtype: DType) -> int:
    """Elements of a block along the reduction."""
    return tile.row // dtype.itemsize


def chunk_columns(bn: int, size: int) -> int:
    """Columns of the output, of ``size`` bytes, that one copy-engine box holds: 128 bytes or less.

    Its rows are as long as one of the engine's swizzles.
    """
    return next(row // size for row in ROWS if bn * size % row == 0)


def staged_columns(bn: int, size: int, held: bool) -> int:
    """Columns of its rows that a warp stages at a time, of ``size`` bytes.

    All of them where a residual is fetched ahead; else 256 bytes, half of 256 halves, which leaves
    room for a fourth buffer of 128 x 256 tiles.
    """
    return bn if held else min(bn, 2 * DRAIN_COLUMNS // size)


def sum_pitch(bn: int) -> int:
    """Floats from one row to the next where a block leaves its sums; 8 more against conflicts."""
    return bn + 8


def share_bytes(tile: HopperTile) -> int:
    """Sums of the rows that one block of a split reduction finishes."""
    return tile.consumers * 64 // tile.split * sum_pitch(tile.bn) * 4


class Layout(NamedTuple):
    """Offsets in bytes from the aligned start of shared memory; see the module's text."""

    stage: int
    a: int
    w: int
    staging: int
    warp_staging: int
    inbox: int
    full: int
    empty: int
    w_full: int
    residual: int
    total: int

    @classmethod
    def of(cls, tile: HopperTile, boxed: int, held: bool) -> Layout:
        """The layout of ``tile``.

        Args:
            tile: configuration.
            boxed: bytes of the output's elements, if it leaves through the copy engine; else 0.
            held: which fetches a residual too.
        """
        a = tile.consumers * 64 * tile.row
        w = tile.bn * tile.row
        stage = a if tile.resident else a + w
        warps = tile.consumers * 4
        if tile.split > 1:
            warp_staging = 0  # the ring serves again
        elif boxed:
            warp_staging = 16 * staged_columns(tile.bn, boxed, held) * boxed
        else:
            warp_staging = -(-16 * (min(32, tile.bn) + 4) * 4 // 128) * 128
        ring = tile.stages * stage
        if tile.split > 1:
            ring = max(ring, tile.consumers * 64 * sum_pitch(tile.bn) * 4)
        staging = ring + tile.resident * w
        inbox = staging + warps * warp_staging
        full = inbox + (tile.split - 1) * share_bytes(tile)
        empty = full + 8 * tile.stages
        w_full = empty + 8 * tile.stages
        residual = w_full + 8
        return cls(
            stage, a, ring, staging, warp_staging, inbox, full, empty, w_full, residual,
            residual + 8 * warps,
        )  # fmt: skip

    @property
    def table(self) -> int:
        """Where the tables are."""
        return -(-self.total // 128) * 128

    def shared_bytes(self, tables: int = 0) -> int:
        """Dynamic shared memory to ask for: ``tables`` bytes of them, and room to align."""
        return (self.table + tables if tables else self.total) + 1024


def next_slot(stages: int) -> Any:
    """Device function: the next buffer of the ring and the parity of its phase."""

    def following(slot, parity):
        after = u32(slot + u32(1))
        wrapped = after == u32(stages)
        return u32(0) if wrapped else after, u32(parity ^ u32(1)) if wrapped else parity

    return cuda.jit(device=True, inline="always")(following)
