"""How the first-layer kernel brings its image to shared memory: element by element.

Any strides will do. Lanes read the neighbouring elements of a line, which is a row of pixels or, of
planes, one of a channel.
"""

from __future__ import annotations

from nrt.cuda_kernels.conv_common import ceil_div
from nrt.cuda_kernels.stem_tile import Fetch, Patch, StemTile

__all__ = ["by_element"]


def by_element(patch: Patch, tile: StemTile) -> Fetch:
    """A load and a store of each element; values wait in registers ``v{line}_{group}``."""
    return Fetch(_setup(patch, tile), _load(patch, tile), _store(patch, tile))


def _setup(patch: Patch, tile: StemTile) -> list[str]:
    """Lines for what a thread keeps: its columns of a line, its places in the patch."""
    _, length = patch.lines(tile)
    text = []
    for j in range(ceil_div(length, 32)):
        text.append(f"e = u32(lane + u32({32 * j}))")
        if patch.planar:
            text += [f"col{j} = e", "c = u32(0)"]
        else:
            text += [
                f"col{j} = u32(e // u32({patch.channels}))",
                f"c = u32(e - u32(col{j} * u32({patch.channels})))",
            ]
        text += [
            f"off{j} = u32(u32(col{j} * xw) + u32(c * xc))",
            # Where nothing is to be kept, the zero goes to the place that is there for it.
            f"place = u32(u32(col{j} * u32({patch.cell})) + c)",
            f"place = place if e < u32({length}) else u32({patch.columns(tile) * patch.cell})",
            f"pos{j} = u32(place * u32({patch.itemsize}))",
        ]
    return text


def _load(patch: Patch, tile: StemTile) -> list[str]:
    """Loads are predicated, not branched around: all are in flight at once.

    (Branches would also cost Numba seconds to compile.)
    """
    lines, length = patch.lines(tile)
    warps, groups = tile.threads // 32, ceil_div(length, 32)
    load = f"ptx.ld_global_nc_u{8 * patch.itemsize}_if"
    text = ["image = u32(u32(fn * xn) + u32(left * xw))"]
    for j in range(groups):
        guard = f" & (u32(lane + u32({32 * j})) < u32({length}))" if 32 * (j + 1) > length else ""
        text.append(f"ok{j} = u32(live & (u32(left + col{j}) < W){guard})")
    for i in range(ceil_div(lines, warps)):
        row, channel = _line(patch, f"u32(warp + u32({i * warps}))")
        guard = (
            f" & (u32(warp + u32({i * warps})) < u32({lines}))" if (i + 1) * warps > lines else ""
        )
        start = f"u32(h{i} * xh)"
        if channel:
            start += f" + u32({channel} * xc)"
        text += [
            f"h{i} = u32(top + {row})",
            f"good{i} = u32((h{i} < H){guard})",
            f"start{i} = u32(image + {start})",
        ]
        for j in range(groups):
            text += [
                f"v{i}_{j} = {load}(ptx.at(x, start{i} + off{j}), good{i} & ok{j})",
            ]
    return text


def _store(patch: Patch, tile: StemTile) -> list[str]:
    """Lines that store the registers to the patch at ``target``."""
    lines, length = patch.lines(tile)
    warps, size = tile.threads // 32, patch.itemsize
    text = []
    for i in range(ceil_div(lines, warps)):
        row, channel = _line(patch, f"u32(warp + u32({i * warps}))")
        spot = f"u32(target + u32({row} * u32({size * patch.pitch(tile)}))"
        spot += f" + u32({channel} * u32({size})))" if channel else ")"
        stores = [
            f"spot{i} = {spot}",
            *(
                f"ptx.st_shared_u{8 * size}(spot{i} + pos{j}, v{i}_{j})"
                for j in range(ceil_div(length, 32))
            ),
        ]
        if (i + 1) * warps > lines:
            text.append(f"if u32(warp + u32({i * warps})) < u32({lines}):")
            stores = [f"    {line}" for line in stores]
        text += stores
    return text


def _line(patch: Patch, line: str) -> tuple[str, str]:
    """Row and channel (empty: all of them) of a line, as texts."""
    if not patch.planar:
        return line, ""
    row = f"u32({line} // u32({patch.channels}))"
    return row, f"u32({line} % u32({patch.channels}))"
