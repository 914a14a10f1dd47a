"""How the first-layer kernel brings an image of bytes to shared memory: four pixels at a time.

Element by element a pixel of three channels costs three loads, three stores and their addresses,
as much as all products and stores of a layer of 32 channels. Here a thread takes four neighbouring
pixels: ``4 * channels`` bytes in a row, wherever they begin, are the funnel shifts of the words
that hold them; byte permutes make of them four words of one pixel each, and one store of 16 bytes
takes them to the patch. Of planes, four bytes of each are transposed. Words are loaded where they
hold a byte of the image's row, pixels outside of it become zeros. What a pixel's word holds beyond
its channels meets weights of zero.
"""

from __future__ import annotations

from nrt.cuda_kernels.stem_tile import Fetch, Patch, StemTile

__all__ = ["by_quad"]


def by_quad(patch: Patch, tile: StemTile) -> Fetch:
    """Quads of pixels, numbered row by row, are dealt out to the threads of a block."""
    return Fetch(_setup(patch, tile), _load(patch, tile), _store(patch, tile))


def _setup(patch: Patch, tile: StemTile) -> list[str]:
    """Lines for the row and the column of each of a thread's quads."""
    text = []
    for i in range(patch.quads_of_thread(tile)):
        text += [
            f"quad{i} = u32(tid + u32({i * tile.threads}))",
            f"row{i} = u32(quad{i} // u32({patch.quads(tile)}))",
            f"col{i} = u32(u32(quad{i} - u32(row{i} * u32({patch.quads(tile)}))) * u32(4))",
        ]
    return text


def _load(patch: Patch, tile: StemTile) -> list[str]:
    """Lines that load words to registers ``w{quad}_{run}_{word}``.

    A run is what lies next to each other: of pixels one of all channels, of planes one of each.
    Its words begin at ``first``, which is negative where the run begins left of the image.
    """
    runs, step = (patch.channels, 1) if patch.planar else (1, patch.channels)
    text = [
        "image = u32(fn * xn)",
        f"width = u32(W * u32({step}))",
        f"begin = u32(left * u32({step}))",
    ]
    for i in range(patch.quads_of_thread(tile)):
        last = (i + 1) * tile.threads > patch.rows(tile) * patch.quads(tile)
        guard = f" & (row{i} < u32({patch.rows(tile)}))" if last else ""
        text += [
            f"h{i} = u32(top + row{i})",
            f"good{i} = u32(live & (h{i} < H){guard})",
            f"ahead{i} = u32(begin + u32(col{i} * u32({step})))",
            f"line{i}_0 = u32(image + u32(h{i} * xh))",
        ]
        for run in range(runs):
            if run:
                text.append(f"line{i}_{run} = u32(line{i}_{run - 1} + xc)")
            text += [
                f"over{i}_{run} = u32(u32(line{i}_{run} + ahead{i}) & u32(3))",
                f"first = u32(ahead{i} - over{i}_{run})",
            ]
            for word in range(step + 1):
                # Some byte of the word lies at 0 to width - 1.
                inside = f"u32(u32(first + u32({4 * word + 3})) < u32(width + u32(3)))"
                at = f"ptx.at(x, u32(u32(line{i}_{run} + first) + u32({4 * word})))"
                text.append(
                    f"w{i}_{run}_{word} = ptx.ld_global_nc_u32_if({at}, good{i} & {inside})"
                )
    return text


def _store(patch: Patch, tile: StemTile) -> list[str]:
    """Lines that make pixels of the words and store them to the patch at ``target``."""
    text = []
    for i in range(patch.quads_of_thread(tile)):
        lines = _pixels(patch, i)
        lines += [
            f"p{k} = ptx.select_below(u32(u32(left + col{i}) + u32({k})), W, p{k}, u32(0))"
            for k in range(4)
        ]
        spot = f"u32(target + u32(row{i} * u32({patch.pitch(tile)})) + u32(col{i} * u32(4)))"
        lines.append(f"ptx.st_shared_v4({spot}, p0, p1, p2, p3)")
        if (i + 1) * tile.threads > patch.rows(tile) * patch.quads(tile):
            text.append(f"if row{i} < u32({patch.rows(tile)}):")
            lines = [f"    {line}" for line in lines]
        text += lines
    return text


def _pixels(patch: Patch, i: int) -> list[str]:
    """Lines that make words ``p0`` to ``p3`` of one pixel each from the words of quad ``i``."""
    text = []
    if patch.planar:
        for run in range(patch.channels):
            shift = f"u32(over{i}_{run} * u32(8))"
            text.append(f"c{run} = ptx.funnel(w{i}_{run}_0, w{i}_{run}_1, {shift})")
        return text + _transposed(patch.channels)
    text += [
        f"c{k} = ptx.funnel(w{i}_0_{k}, w{i}_0_{k + 1}, u32(over{i}_0 * u32(8)))"
        for k in range(patch.channels)
    ]
    # Bytes of which words, the second's counted from 4 on, stand where a pixel begins.
    for k, (low, high, digits) in enumerate(_DEALT[patch.channels]):
        text.append(f"p{k} = ptx.prmt(c{low}, c{high}, 0x{digits})")
    return text


_DEALT: dict[int, tuple[tuple[int, int, str], ...]] = {
    1: ((0, 0, "3210"), (0, 0, "3211"), (0, 0, "3212"), (0, 0, "3213")),
    2: ((0, 0, "3210"), (0, 0, "3232"), (1, 1, "3210"), (1, 1, "3232")),
    3: ((0, 0, "3210"), (0, 1, "5543"), (1, 2, "5432"), (2, 2, "3321")),
    4: ((0, 0, "3210"), (1, 1, "3210"), (2, 2, "3210"), (3, 3, "3210")),
}
"""Channels -> of each pixel of a quad the two words of the run and the bytes that it takes."""


def _transposed(channels: int) -> list[str]:
    """Lines that make pixels of words of four bytes of one channel each."""
    text = ["lo = ptx.prmt(c0, c1, 0x5140)", "hi = ptx.prmt(c0, c1, 0x7362)"]
    if channels == 4:
        text += ["lo2 = ptx.prmt(c2, c3, 0x5140)", "hi2 = ptx.prmt(c2, c3, 0x7362)"]
    # Two bytes of what is paired, two of the others.
    both = {2: ("lo", "hi"), 3: ("c2", "c2"), 4: ("lo2", "hi2")}[channels]
    digits = ("5410", "5532", "6610", "7732") if channels == 3 else ("5410", "7632") * 2
    for k in range(4):
        pair = ("lo", "hi")[k // 2]
        text.append(f"p{k} = ptx.prmt({pair}, {both[k // 2]}, 0x{digits[k]})")
    return text
