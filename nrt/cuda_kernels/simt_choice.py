"""Which tile for a product on the ordinary cores: an analytic estimate, and the best few."""

from __future__ import annotations

from nrt.cuda_kernels.conv_common import ceil_div, waves
from nrt.cuda_kernels.device import DeviceSpec
from nrt.cuda_kernels.simt_tile import TILES, Tile

__all__ = ["ranked_tiles", "tile_seconds"]

MAX_SPLITS = 16


def tile_seconds(tile: Tile, m: int, n: int, k: int, batches: int, device: DeviceSpec) -> float:
    """Seconds for ``batches`` products ``m x n x k``: waves of blocks at the tile's efficiency."""
    blocks = ceil_div(m, tile.bm) * ceil_div(n, tile.bn) * batches * tile.splits
    steps = ceil_div(ceil_div(k, tile.bk), tile.splits)
    per_sm = tile.blocks_per_sm
    # Issue slots left for multiply-adds beside loads: 64 to 4 at 8x8, 16 to 2 at 4x4.
    efficiency = 0.8 if tile.tm * tile.tn >= 64 else 0.55
    rate = device.fp32_flops / device.multiprocessors * efficiency
    full = waves(blocks, per_sm, device)
    # Fewer than 8 warps on an SM leave latency uncovered.
    resident = min(per_sm, ceil_div(blocks, device.multiprocessors))
    cover = min(1.0, resident * tile.threads / 256)
    flops = 2.0 * tile.bm * tile.bn * tile.bk * steps * resident
    seconds = full * flops / (rate * max(cover, 0.1)) + 2e-6
    if tile.splits > 1:
        # Partial sums go out and come back, and there is one more launch.
        seconds += 8.0 * tile.splits * m * n * batches / device.bandwidth + 1.5e-6
    return seconds


def ranked_tiles(
    m: int, n: int, k: int, batches: int, device: DeviceSpec, count: int = 6
) -> list[Tile]:
    """The tiles and split counts expected to be fastest, best first."""
    found = []
    for tile in TILES:
        if tile.bm >= 2 * max(m, 32) or tile.bn >= 2 * max(n, 32):
            continue
        blocks = ceil_div(m, tile.bm) * ceil_div(n, tile.bn) * batches
        steps = ceil_div(k, tile.bk)
        options = [1]
        if blocks < device.multiprocessors * tile.blocks_per_sm:
            options += [s for s in (2, 4, 8, MAX_SPLITS) if steps >= 4 * s]
        found += [tile.with_splits(s) for s in options]
    found.sort(key=lambda t: tile_seconds(t, m, n, k, batches, device))
    return found[:count]
