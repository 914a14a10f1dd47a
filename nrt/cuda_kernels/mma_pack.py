"""Weights as the blocks that the ``mma.sync`` kernels load."""

from __future__ import annotations

import numpy as np

from nrt.cuda_kernels.conv_common import rounded
from nrt.cuda_kernels.mma_layout import Layout, Tile
from nrt.ir.op import Array

__all__ = ["block_diagonal", "packed"]


def block_diagonal(weights: Array, groups: int, shared: int) -> Array:
    """Rows ``[k, r * s * c]`` of filters ``[k, c, r, s]``, in runs of ``shared`` groups.

    Such a run reads ``shared * c`` channels, of which a filter's own are those of its group and the
    others meet zeros. Channels are innermost.
    """
    k, c, r, s = weights.shape
    rows = weights.transpose(0, 2, 3, 1)
    if shared > 1:
        wide = np.zeros((k, r, s, shared, c), weights.dtype)
        group = np.arange(k) // (k // groups)
        wide[np.arange(k), :, :, group % shared] = rows
        rows = wide
    return rows.reshape(k, -1)


def packed(weights: Array, tile: Tile) -> Array:
    """Weights ``[k, j]`` as the kernel's blocks, zeros beyond the edges.

    Tiles of ``bn`` rows, their blocks along j, and in a block for every warp the pieces of 16 bytes
    that its lanes copy at a time (see `mma_kernel`).
    """
    k, j = weights.shape
    layout = Layout(tile, weights.dtype.itemsize)
    loads, lines, warps = layout.w_loads, 32 // layout.pieces, tile.wm * tile.wn
    if weights.dtype == np.float32:
        weights = _rounded_tf32(weights)
    whole = np.zeros((rounded(k, tile.bn), rounded(j, tile.bk)), weights.dtype)
    whole[:k, :j] = weights
    # Row of a tile: load, warp, line of the warp.
    tiles, blocks = whole.shape[0] // tile.bn, whole.shape[1] // tile.bk
    parts = whole.reshape(tiles, loads, warps, lines, blocks, tile.bk)
    return np.ascontiguousarray(parts.transpose(0, 4, 2, 1, 3, 5))


def _rounded_tf32(values: Array) -> Array:
    """To nearest, ties away from zero, as ``cvt.rna``: products drop the last 13 bits."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    nearest = np.where(np.isfinite(values), bits + np.uint32(0x1000), bits) & np.uint32(0xFFFFE000)
    return np.where(np.isnan(values), bits, nearest).view(np.float32)
