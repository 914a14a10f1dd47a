"""The kernels of copies that cross the grain: transposed tiles and blocks, planes to pixels."""

from __future__ import annotations

from typing import Any

from numba.cuda import types

from nrt.cuda_kernels import ptx
from nrt.cuda_kernels.codegen import pointer
from nrt.cuda_kernels.elements import (
    convert_text,
    kernel_function,
    kernel_namespace,
    load_lines,
    store_lines,
    uses_double,
)
from nrt.cuda_kernels.strided import (
    index_lines,
    offset_text,
)
from nrt.dtypes import DType
from nrt.ir.ops.common import kind_of

__all__ = ["THREADS", "TILE", "block_side"]

THREADS = 256
"""Threads of a block of both kernels."""

TILE = 32
"""Lines of a transposed tile: a warp reads or writes one."""


def _tile_kernel(source: DType, target: DType, rank: int, width: int) -> tuple[Any, Any]:
    """Transposition of a 32 x (32 ``width``) tile through shared memory.

    Dimension A is contiguous in y, dimension B in x. A block of 32 x 8 threads reads 32 ``width``
    lines of 32 elements along B (a warp reads neighbours), converts, and leaves them in shared
    memory as what y stores, A fastest; then each warp writes lines along A, ``width`` elements (4
    bytes) a thread. A line of the tile is one 4-byte word longer than it must be, so that neither
    the columns written nor the rows read share a bank more than twice. Each element is read and
    written once.

    Kernel parameters: x, y, tiles along A, tiles along B, sizes of A and B, strides of x along A,
    of y along B, then ``rank`` other dimensions: sizes, strides of y, of x.
    """
    pitch = TILE * width + max(1, 4 // target.itemsize)
    rows = TILE // 8
    namespace = kernel_namespace(source, target)
    kind = kind_of(source)
    pointers = [pointer(source), pointer(target)]
    namespace["cell"] = pointers[1].dtype
    params = ["x", "y", "na", "nb", "da", "db", "xa", "yb"]
    sizes = [f"d{r}" for r in range(rank)]
    ys, xs = [f"sy{r}" for r in range(rank)], [f"sx{r}" for r in range(rank)]
    params += [*sizes, *ys, *xs]
    coords = [f"c{r}" for r in range(rank)]
    # Loads are clamped, not guarded: all are in flight at once, and what lies outside is not
    # written.
    load, leave = ["bc = b if b < db else u32(db - u32(1))"], []
    for r in range(rows * width):
        load += [
            f"a = u32(a0 + u32(ty + u32({8 * r})))",
            "a = a if a < da else u32(da - u32(1))",
            f"g_{r} = u32(xo + u32(u32(a * xa) + bc))",
            f"v_{r} = load_{source}(x, g_{r})",
        ]
        value = f"F(v_{r})" if uses_double(source, target) and source.is_float else f"v_{r}"
        leave.append(
            f"store_{target}(tile, u32(u32(tx * u32({pitch})) + u32(ty + u32({8 * r}))), "
            f"{convert_text(value, kind, target)})"
        )
    store = [f"a = u32(a0 + u32(tx * u32({width})))"]
    for r in range(rows):
        place = f"u32(u32(u32(ty + u32({8 * r})) * u32({pitch})) + u32(tx * u32({width})))"
        store += [
            f"b = u32(b0 + u32(ty + u32({8 * r})))",
            "if a < da and b < db:",
            "    o = u32(yo + u32(u32(b * yb) + a))",
            f"    s = {place}",
        ]
        if width == 1:
            store.append("    y[o] = tile[s]")
        else:
            bits = 8 * target.itemsize
            word = f"u32(u{bits}(tile[s]))"
            for j in range(1, width):
                item = f"u32(u{bits}(tile[u32(s + u32({j}))]))"
                word = f"u32({word} | u32({item} << u32({bits * j})))"
            store += ["    if whole:", f"        st1(at(y, o), {word})", "    else:"]
            store += [
                f"        y[u32(o + u32({j}))] = tile[u32(s + u32({j}))]" for j in range(width)
            ]
    lines = [
        f"def kernel({', '.join(params)}):",
        f"    tile = cuda.shared.array({TILE * pitch}, cell)",
        "    tx = u32(cuda.threadIdx.x)",
        "    ty = u32(cuda.threadIdx.y)",
        "    block = u32(cuda.blockIdx.x)",
        "    q = u32(block // nb)",
        "    b0 = u32(u32(block - u32(q * nb)) * u32(32))",
        "    outer = u32(q // na)",
        f"    a0 = u32(u32(q - u32(outer * na)) * u32({TILE * width}))",
    ]
    if rank:
        lines += [f"    {line}" for line in index_lines(rank, "outer", "c", sizes)]
    lines += [
        f"    yo = {offset_text(list(zip(coords, ys, strict=True)))}",
        f"    xo = {offset_text(list(zip(coords, xs, strict=True)))}",
        "    b = u32(b0 + tx)",
        *(f"    {line}" for line in load + leave),
        "    cuda.syncthreads()",
        "    whole = at(y, u32(0)) & i64(3) == i64(0)",
        *(f"    {line}" for line in store),
    ]
    kernel = kernel_function("\n".join(lines) + "\n", namespace)
    return kernel, types.void(*pointers, *[types.uint32] * (len(params) - 2))


def block_side(source: DType, target: DType) -> int:
    """Side of the square that a thread of `_block_kernel` transposes; 0 where it cannot.

    Eight elements, or as many as both ends move in 16 bytes.
    """
    items = {source.itemsize, target.itemsize}
    if max(items) > 4 or (source is not target and not (source.is_float and target.is_float)):
        return 0
    return 8 if min(items) < 4 else 4


def _transposed_words(item: int) -> tuple[list[str], list[list[str]]]:
    """Lines that transpose the words ``v{row}w{k}`` of a square of ``item``-byte elements.

    Returns:
        The lines, and for each column the words of its elements in the order of rows.
    """
    if item == 4:
        return [], [[f"v{r}w{c}" for r in range(4)] for c in range(4)]
    if item == 2:
        columns = []
        for c in range(8):
            pick = "0x7632" if c % 2 else "0x5410"
            columns.append(
                [f"prmt(v{2 * k}w{c // 2}, v{2 * k + 1}w{c // 2}, {pick})" for k in range(4)]
            )
        return [], columns
    # Bytes: first two rows at a time, the low and the high columns of a word, then the pairs.
    lines, columns = [], [[""] * 2 for _ in range(8)]
    for k in range(2):
        for w in range(2):
            for pair in (0, 2):
                one, two = f"v{4 * k + pair}w{w}", f"v{4 * k + pair + 1}w{w}"
                lines.append(f"l{k}{w}{pair} = prmt({one}, {two}, 0x5140)")
                lines.append(f"h{k}{w}{pair} = prmt({one}, {two}, 0x7362)")
            for c, name in ((0, "l"), (2, "h")):
                for odd, pick in ((0, "0x5410"), (1, "0x7632")):
                    columns[4 * w + c + odd][k] = f"prmt({name}{k}{w}0, {name}{k}{w}2, {pick})"
    return lines, columns


def _block_kernel(
    source: DType, target: DType, rank: int, lanes: int, warps_a: int, warps_b: int
) -> tuple[Any, Any]:
    """Transposition in registers: a thread takes a square of 8 x 8 elements (4 x 4 of 32 bits).

    Dimension A is contiguous in y, dimension B in x. A thread loads the square's 8 lines along B,
    16 bytes of 16-bit elements each, regroups the words with ``prmt`` (one per word: 32), and
    stores 8 lines along A. A warp is ``lanes`` threads along A by ``32 / lanes`` along B, so that
    of 16-bit elements it writes 128 bytes to a line and reads 64 (8 lanes), whole sectors both
    ways; warps of a block, ``warps_a`` by ``warps_b``, read and write the rest of those lines. No
    shared memory and no barrier: 128 bytes in flight a thread, 96 KB an SM at 80 registers, where
    bandwidth times latency asks for 23 KB. Per 16 bytes, a load, a store, four ``prmt`` and two
    address additions.

    Where an address is not a multiple of 16, single elements.

    Kernel parameters: x, y, tiles along A, tiles along B, sizes of A and B, strides of x along A,
    of y along B, then ``rank`` other dimensions: sizes, strides of y, of x.
    """
    side = block_side(source, target)
    kind = kind_of(source)
    params = ["x", "y", "na", "nb", "da", "db", "xa", "yb"]
    sizes = [f"d{r}" for r in range(rank)]
    ys, xs = [f"sy{r}" for r in range(rank)], [f"sx{r}" for r in range(rank)]
    params += [*sizes, *ys, *xs]
    coords = [f"c{r}" for r in range(rank)]
    body: list[str] = []
    if source is target:
        count = side * source.itemsize // 4
        for r in range(side):
            words = ", ".join(f"v{r}w{k}" for k in range(count))
            body.append(f"{words} = ld{count}(at(x, u32(xo + u32(xa * u32({r})))))")
        lines, columns = _transposed_words(source.itemsize)
        body += lines
        for c, column in enumerate(columns):
            body.append(f"st{count}(at(y, u32(yo + u32(yb * u32({c})))), {', '.join(column)})")
    else:
        rows = []
        for r in range(side):
            body.append(f"p{r} = u32(xo + u32(xa * u32({r})))")
            lines, names = load_lines(f"v{r}", "x", f"p{r}", source, side)
            body += lines
            rows.append(names)
        for c in range(side):
            body.append(f"q{c} = u32(yo + u32(yb * u32({c})))")
            values = [convert_text(rows[r][c], kind, target) for r in range(side)]
            body += store_lines("y", f"q{c}", target, values)
    single = [
        f"for r in range({side}):",
        f"    for c in range({side}):",
        f"        v = load_{source}(x, u32(u32(xo + u32(xa * u32(r))) + u32(c)))",
        "        o = u32(u32(yo + u32(yb * u32(c))) + u32(r))",
        f"        store_{target}(y, o, {convert_text('v', kind, target)})",
    ]
    lanes_b = 32 // lanes
    lines = [
        f"def kernel({', '.join(params)}):",
        "    t = u32(cuda.threadIdx.x)",
        "    lane = u32(t % u32(32))",
        "    warp = u32(t // u32(32))",
        "    block = u32(cuda.blockIdx.x)",
        "    q = u32(block // nb)",
        f"    b = u32(u32(block - u32(q * nb)) * u32({lanes_b * warps_b}))",
        f"    b = u32(b + u32(u32(warp // u32({warps_a})) * u32({lanes_b})))",
        f"    b = u32(u32(b + u32(lane // u32({lanes}))) * u32({side}))",
        "    outer = u32(q // na)",
        f"    a = u32(u32(q - u32(outer * na)) * u32({lanes * warps_a}))",
        f"    a = u32(a + u32(u32(warp % u32({warps_a})) * u32({lanes})))",
        f"    a = u32(u32(a + u32(lane % u32({lanes}))) * u32({side}))",
        "    if a >= da or b >= db:",
        "        return",
    ]
    if rank:
        lines += [f"    {line}" for line in index_lines(rank, "outer", "c", sizes)]
    lines += [
        f"    xo = {offset_text([*zip(coords, xs, strict=True), ('a', 'xa'), ('b', '1')])}",
        f"    yo = {offset_text([*zip(coords, ys, strict=True), ('b', 'yb'), ('a', '1')])}",
        "    if ((at(x, u32(0)) & i64(15)) | (at(y, u32(0)) & i64(15))) == i64(0):",
        *(f"        {line}" for line in body),
        "    else:",
        *(f"        {line}" for line in single),
    ]
    namespace = kernel_namespace(source, target) | {"prmt": ptx.prmt}
    kernel = kernel_function("\n".join(lines) + "\n", namespace)
    return kernel, types.void(pointer(source), pointer(target), *[types.uint32] * (len(params) - 2))


def _planes_kernel(
    source: DType, target: DType, channels: int, rank: int, width: int
) -> tuple[Any, Any]:
    """Few channels interleaved: NCHW to NHWC of an image.

    A thread reads ``width`` neighbouring pixels of each of ``channels`` planes (vectors,
    coalesced), and writes its ``width * channels`` elements, which are contiguous. Each byte moves
    once.

    Kernel parameters: x, y, groups of pixels in all, groups per plane, stride of x between planes,
    then ``rank`` outer dimensions: sizes, strides of y, of x.
    """
    double = uses_double(source, target)
    kind = kind_of(source)
    sizes = [f"d{r}" for r in range(rank)]
    ys, xs = [f"sy{r}" for r in range(rank)], [f"sx{r}" for r in range(rank)]
    params = ["x", "y", "n", "groups", "plane", *sizes, *ys, *xs]
    coords = [f"c{r}" for r in range(rank)]
    body = [
        "outer = u32(i // groups)",
        f"pixel = u32(u32(i - u32(outer * groups)) * u32({width}))",
    ]
    if rank:
        body += index_lines(rank, "outer", "c", sizes)
    body.append(f"xo = {offset_text([*zip(coords, xs, strict=True), ('pixel', '1')])}")
    values: list[list[str]] = []
    fetch: list[str] = []
    for c in range(channels):
        body.append(f"p{c} = u32(xo + u32(plane * u32({c})))")
        lines, names = load_lines(f"e{c}", "x", f"p{c}", source, width)
        fetch += lines
        values.append([f"F({n})" if double and source.is_float else n for n in names])
    body.append(
        f"yo = {offset_text([*zip(coords, ys, strict=True), ('pixel', f'u32({channels})')])}"
    )
    flat = [convert_text(values[c][p], kind, target) for p in range(width) for c in range(channels)]
    single = []
    for p in range(width):
        for c in range(channels):
            value = f"load_{source}(x, u32(p{c} + u32({p})))"
            single.append(f"q = F({value})" if double and source.is_float else f"q = {value}")
            place = f"u32(yo + u32({p * channels + c}))"
            single.append(f"store_{target}(y, {place}, {convert_text('q', kind, target)})")
    body += ["if whole:", *(f"    {line}" for line in fetch)]
    body += [f"    {line}" for line in store_lines("y", "yo", target, flat)]
    body += ["else:", *(f"    {line}" for line in single)]
    text = (
        f"def kernel({', '.join(params)}):\n"
        f"    i = u32(u32(cuda.blockIdx.x * u32({THREADS})) + u32(cuda.threadIdx.x))\n"
        f"    step = u32(cuda.gridDim.x * u32({THREADS}))\n"
        "    whole = ((at(x, u32(0)) & i64(15)) | (at(y, u32(0)) & i64(15))) == i64(0)\n"
        "    while i < n:\n"
        + "".join(f"        {line}\n" for line in body)
        + "        i = u32(i + step)\n"
    )
    kernel = kernel_function(text, kernel_namespace(source, target))
    return kernel, types.void(pointer(source), pointer(target), *[types.uint32] * (len(params) - 2))
