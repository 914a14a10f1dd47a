"""Tiles of the first-layer kernel, the geometry of its input patch, and its weights' order."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np

from nrt.cuda_kernels.conv_common import ceil_div, rounded
from nrt.dtypes import UINT8, DType
from nrt.ir.op import Array

__all__ = ["Fetch", "Patch", "StemTile", "packed_weights"]


class StemTile(NamedTuple):
    """A configuration.

    Attributes:
        th, tw: output rows and columns of a tile; tw is a multiple of 16.
        bn: output channels of a block, a multiple of 32 * wn.
        mi: output rows of a warp, each of 16 pixels.
        wn: warps that share the channels of the same pixels.
        per_sm: blocks on an SM at a time that registers are left for.
    """

    th: int
    tw: int
    bn: int
    mi: int
    wn: int
    per_sm: int

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.th // self.mi * (self.tw // 16) * self.wn * 32


class Fetch(NamedTuple):
    """Lines of a kernel that bring the patch of a tile to shared memory.

    Attributes:
        setup: for what stays the same from tile to tile.
        load: from global memory to registers; tile ``item`` begins at ``top``, ``left`` of image
            ``fn``, and nothing is there to load if it is not ``live``.
        store: from registers to the patch at the shared address ``target``.
    """

    setup: list[str]
    load: list[str]
    store: list[str]


class Patch(NamedTuple):
    """The fixed geometry of a layer, and what follows from it.

    Attributes:
        channels: of the image.
        r, s: filter height and width.
        sh, sw: strides.
        planar: neighbours in memory are pixels of one channel, not channels of one pixel.
        itemsize: bytes of an element.
        words: pixels are brought four at a time, a word each (`stem_quads`).
    """

    channels: int
    r: int
    s: int
    sh: int
    sw: int
    planar: bool
    itemsize: int = 2
    words: bool = False

    @property
    def word(self) -> int:
        """Elements in 4 bytes."""
        return 4 // self.itemsize

    @property
    def piece(self) -> int:
        """Elements in 16 bytes."""
        return 16 // self.itemsize

    @property
    def cell(self) -> int:
        """Elements per pixel in shared memory, so that every output pixel starts at a word."""
        if self.words:
            return self.word
        return next(c for c in itertools.count(self.channels) if c * self.sw % self.word == 0)

    @property
    def pieces(self) -> int:
        """Pieces in a filter row."""
        return ceil_div(self.s * self.cell, self.piece)

    @property
    def steps(self) -> int:
        """Steps of two pieces in a dot product."""
        return ceil_div(self.r * self.pieces, 2)

    def largest_sum(self, dtype: DType) -> int:
        """The largest sum of products of bytes of ``dtype`` with int8 in magnitude."""
        return self.r * self.s * self.channels * (255 if dtype is UINT8 else 128) * 128

    def rows(self, tile: StemTile) -> int:
        """Input rows of a tile."""
        return (tile.th - 1) * self.sh + self.r

    def columns(self, tile: StemTile) -> int:
        """Input columns of a tile."""
        return (tile.tw - 1) * self.sw + self.s

    def pitch(self, tile: StemTile) -> int:
        """Elements per row of the buffer: all that is read, and one to write what nobody reads."""
        read = (tile.tw - 1) * self.sw * self.cell + self.pieces * self.piece
        if self.words:
            return rounded(max(read, self.quads(tile) * self.piece), self.piece)
        return rounded(max(read, self.columns(tile) * self.cell + 1), self.piece)

    def lines(self, tile: StemTile) -> tuple[int, int]:
        """(lines that warps read, elements in each): rows, or rows of one channel."""
        rows, columns = self.rows(tile), self.columns(tile)
        return (rows * self.channels, columns) if self.planar else (rows, columns * self.channels)

    def quads(self, tile: StemTile) -> int:
        """Quads of pixels in an input row of a tile."""
        return ceil_div(self.columns(tile), 4)

    def quads_of_thread(self, tile: StemTile) -> int:
        """Quads of pixels that a thread brings, or fewer."""
        return ceil_div(self.rows(tile) * self.quads(tile), tile.threads)

    def held(self, tile: StemTile) -> int:
        """Registers of a thread for the elements on their way."""
        if self.words:
            words = 2 * self.channels if self.planar else self.channels + 1
            return self.quads_of_thread(tile) * words
        lines, length = self.lines(tile)
        return ceil_div(lines, tile.threads // 32) * ceil_div(length, 32)

    def registers(self, tile: StemTile) -> int:
        """Registers of a thread for accumulators, elements on their way and pieces in use."""
        lines = (tile.mi - 1) * self.sh + 1
        return tile.mi * tile.bn // tile.wn // 2 + self.held(tile) + 2 * lines * self.pieces

    def weight_bytes(self, tile: StemTile) -> int:
        """Shared memory of the weights."""
        return self.steps * tile.bn * 32

    def patch_bytes(self, tile: StemTile) -> int:
        """Shared memory of a patch."""
        return self.rows(tile) * self.pitch(tile) * self.itemsize

    def shared_bytes(self, tile: StemTile) -> int:
        """Dynamic shared memory: weights and two patches."""
        return self.weight_bytes(tile) + 2 * self.patch_bytes(tile)


def packed_weights(array: Array, patch: Patch, bn: int) -> Array:
    """Weights in the order of the instruction's registers.

    Args:
        array: ``[K, C, R, S]``.
        patch: the layer's geometry.
        bn: channels of a block.

    Returns:
        ``[blocks, steps, bn / 16, lane g, lane t, n8 tile of the pair, piece of the step, element
        of the word]``, zero where K, a filter row or the last step ends early. Column g of n8 tile
        i is channel ``i / 4 * 32 + g / 2 * 8 + i % 4 * 2 + g % 2``.
    """
    k, c = array.shape[:2]
    blocks = ceil_div(k, bn)
    taps = np.zeros((blocks * bn, patch.r, patch.s, patch.cell), array.dtype)
    taps[:k, :, :, :c] = array.transpose(0, 2, 3, 1)
    row = patch.s * patch.cell
    length = patch.pieces * patch.piece
    pieces = np.zeros((blocks * bn, patch.r, length), array.dtype)
    pieces[:, :, :row] = taps.reshape(blocks * bn, patch.r, row)
    flat = np.zeros((blocks * bn, patch.steps * 2 * patch.piece), array.dtype)
    flat[:, : patch.r * length] = pieces.reshape(blocks * bn, -1)
    # Channel: block, group of 32, t of the output (= g / 2), tile of the group (2 x 2), g % 2.
    # Position: step, piece of the step, t, element of the word.
    split = flat.reshape(blocks, bn // 32, 4, 2, 2, 2, patch.steps, 2, 4, patch.word)
    order = split.transpose(0, 6, 1, 3, 2, 5, 8, 4, 7, 9)
    return np.ascontiguousarray(order).reshape(blocks, -1)
