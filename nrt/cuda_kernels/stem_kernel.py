"""The first-layer kernel: tensor cores on an image of up to four channels, without padding them.

Recipe. Blocks are persistent: one takes tile after tile of TH x TW output pixels. It holds all
weights of its channels in shared memory, and two buffers with the input patch of a tile, pixels
adjacent as ``[row][column][channel]``, zero outside the image. While it computes one tile, the
elements of the next are on their way in registers (`stem_elements`, or `stem_quads` for bytes that
lie next to each other); they go to the other buffer afterwards, so that one barrier a tile is
enough.

The reduction runs over filter rows, and in a row over its S*C elements, which lie next to each
other in the patch whatever C is. 16 bytes of them are a *piece*, two pieces are one step of
m16n8k16, or of m16n8k32 for bytes (a row of the 7x7x3 filter has 21 halves, so 3 pieces; all 7 rows
are 10.5 steps). Lane (g, t) of a warp loads its word of a piece, bytes 4t to 4t + 3, for pixel g,
whose patch must start at a multiple of 4 bytes: where stride * C elements are no such multiple,
channels are added (one of halves; of the bytes of three channels one too). Those of halves are
zeros, and what a row's last piece reads past the filter row is masked, as it may be infinite; bytes
are multiplied by weights of 0 whatever they are. A piece serves all output rows of the warp that
see its input row, so that mi rows need (mi - 1) * stride + R lines of pieces, not mi * R.

Weights are packed in the order of the registers that the instruction takes (`packed_weights`): 16
bytes a lane and pair of n8 tiles, free of bank conflicts. Columns are dealt out so that the
accumulators of four n8 tiles are 8 neighbouring channels of a lane: results go from registers to
the epilogue's 16-byte stores, four lanes filling 64 bytes, with no way through shared memory.

Bytes: the image and the output once, the patches' overlap from L2. Shared memory per warp and tile
in cycles of 128 bytes: 2 per piece and input line, plus 4 per step and n16. At half of Hopper's
matrix peak an m16n8k16 takes 2 cycles of an SM: 1400 cycles for 8 x 16 pixels of the 7x7x3 filter
and 64 channels, beside 920 of shared memory. Bytes take 7 steps there, not 11, and 2 pieces a line.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from numba import cuda
from numba.cuda import types

from nrt.cuda_kernels import ptx
from nrt.cuda_kernels.codegen import pointer
from nrt.cuda_kernels.conv_common import (
    acc_type,
    extra_types,
    result_type,
    weights_type,
)
from nrt.cuda_kernels.epilogue import MAX_EXTRAS, Extra, make_store
from nrt.cuda_kernels.simt_tile import compile_text
from nrt.cuda_kernels.stem_elements import by_element
from nrt.cuda_kernels.stem_quads import by_quad
from nrt.cuda_kernels.stem_tile import Patch, StemTile
from nrt.dtypes import BF16, BYTES, FP16, INT8, UINT8, DType
from nrt.ir.pointwise import Program

__all__ = ["NUMBERS"]

u32 = types.uint32

_MMA = {FP16: ptx.mma_f16, BF16: ptx.mma_bf16, INT8: ptx.mma_s8, UINT8: ptx.mma_u8}

_ONE_AND_A_HALF = 0x4B400000
"""The bits of 1.5 * 2^23: those of the float that is n more are n more, up to 2^22 either way."""


@cuda.jit(device=True, inline="always")
def _from_bits(total):
    """A sum of integers that began at `_ONE_AND_A_HALF`: one addition, no conversion."""
    return ptx.bits_float(u32(total)) - types.float32(12582912.0)


NUMBERS = (
    "tiles", "per_image", "per_row", "K", "H", "W", "P", "Q", "pt", "pl",
    "xn", "xc", "xh", "xw", "yn", "yk", "yp", "yq",
)  # fmt: skip
"""The kernel's scalar parameters, after the seven pointers."""


def _origin_text(patch: Patch, tile: StemTile) -> list[str]:
    """Lines for where in which image tile ``item`` begins."""
    return [
        "fn = u32(item // per_image)",
        "rest = u32(item - u32(fn * per_image))",
        "fp = u32(rest // per_row)",
        f"top = u32(u32(fp * u32({tile.th * patch.sh})) - pt)",
        "fq = u32(rest - u32(fp * per_row))",
        f"left = u32(u32(fq * u32({tile.tw * patch.sw})) - pl)",
        "live = item < tiles",
    ]


def _setup_text(patch: Patch, tile: StemTile) -> list[str]:
    """Lines for what a thread keeps: its pixels and channels, where it reads the operands."""
    rows_of_warps, size = tile.tw // 16 * tile.wn, patch.itemsize
    text = []
    if _masked(patch):
        # Halves 2t and 2t + 1 of a filter row's last piece: which belong to the row.
        inside = patch.s * patch.cell - 8 * (patch.pieces - 1)
        text += [
            f"mask = u32(0xFFFFFFFF) if u32(t * u32(2) + u32(1)) < u32({inside}) else "
            f"(u32(0xFFFF) if u32(t * u32(2)) < u32({inside}) else u32(0))",
        ]
    text += [
        f"my_row = u32(u32(warp // u32({rows_of_warps})) * u32({tile.mi}))",
        f"my_col = u32(u32(u32(warp // u32({tile.wn})) % u32({tile.tw // 16})) * u32(16) + g)",
        f"my_n = u32(u32(warp % u32({tile.wn})) * u32({tile.bn // tile.wn}))",
        f"a_at = u32(shared + u32({patch.weight_bytes(tile)}) + "
        f"u32(my_row * u32({size * patch.sh * patch.pitch(tile)})) + "
        f"u32(my_col * u32({size * patch.sw * patch.cell})) + u32(t * u32(4)))",
        "b_at = u32(shared + u32(my_n * u32(32)) + u32(lane * u32(16)))",
    ]
    return text


def _masked(patch: Patch) -> bool:
    """Whether a filter row's last piece has halves of what follows it."""
    return patch.itemsize > 1 and patch.s * patch.cell % patch.piece != 0


def _product_text(patch: Patch, tile: StemTile) -> list[str]:
    """Lines that compute the warp's accumulators from the patch ``shift`` bytes past the first."""
    n8 = tile.bn // tile.wn // 8
    pitch = patch.itemsize * patch.pitch(tile)
    half = patch.itemsize * 8 * patch.sw * patch.cell
    ragged = _masked(patch)
    text = [
        f"for z in range({tile.mi * n8 * 4}):",
        "    acc[z] = zero",
        "a_now = u32(a_at + shift)",
    ]
    loaded: set[str] = set()

    def piece(row: int, j: int) -> tuple[str, str]:
        """Registers of pixels g and g + 8 for piece ``j`` of an input row, loaded once."""
        names = (f"a{row}_{j}_0", f"a{row}_{j}_1")
        for side, name in enumerate(names):
            if name not in loaded:
                loaded.add(name)
                value = f"ptx.ld_shared_u32(a_now + {row * pitch + 16 * j + side * half})"
                last = ragged and j == patch.pieces - 1
                text.append(f"{name} = u32({value} & mask)" if last else f"{name} = {value}")
        return names

    for step in range(patch.steps):
        products = []
        for i in range(tile.mi):
            parts: list[str] = []
            for index in (2 * step, 2 * step + 1):
                r, j = divmod(index, patch.pieces)
                parts += piece(i * patch.sh + r, j) if r < patch.r else ("u32(0)", "u32(0)")
            # Of a piece's two registers the instruction wants pixels g, then g + 8, then the next.
            for side in range(2):
                first = i * n8 * 4 + side * 4
                products += [f"    z{e} = v * 8 + {first + e}" for e in range(4)]
                products.append(
                    "    acc[z0], acc[z1], acc[z2], acc[z3] = "
                    f"mma({', '.join(parts)}, b{2 * side}, b{2 * side + 1}, "
                    "acc[z0], acc[z1], acc[z2], acc[z3])"
                )
        text += [
            f"for v in range({n8 // 2}):",
            f"    b0, b1, b2, b3 = ptx.ld_shared_v4(b_at + ({step * tile.bn * 32} + v * 512))",
            *products,
        ]
    return text


def _store_text(tile: StemTile, width: int) -> list[str]:
    """Lines that hand the accumulators of the tile (on, op, oq) to the epilogue.

    Of a tile that is whole they are one stretch without a branch: the epilogue's vectors are loaded
    once for all its pixels.
    """
    n8 = tile.bn // tile.wn // 8
    return [
        f"q0 = u32(u32(oq * u32({tile.tw})) + my_col)",
        f"p0 = u32(u32(op * u32({tile.th})) + my_row)",
        "on_y = u32(on * yn)",
        "on_p = u32(on * P)",
        f"whole = (u32(op * u32({tile.th}) + u32({tile.th})) <= P)"
        f" & (u32(oq * u32({tile.tw}) + u32({tile.tw})) <= Q) & last_k",
        "if whole:",
        *(f"    {line}" for line in _stores(n8, range(tile.mi), width)),
        "else:",
        f"    for i in range({tile.mi}):",
        "        for side in range(2):",
        "            if u32(p0 + u32(i)) < P and u32(q0 + u32(8 * side)) < Q:",
        *(f"                {line}" for line in _stores(n8, None, width)),
    ]


def _stores(n8: int, rows: Iterable[int] | None, width: int) -> list[str]:
    """Lines for all channels of the lane's pixels in ``rows``.

    None: of pixel ``i``, ``side``, as far as there are such channels.
    """
    pixels = [("i", "side")] if rows is None else [(str(i), str(s)) for i in rows for s in range(2)]
    text = []
    for i, side in pixels:
        name = "" if rows is None else f"{i}_{side}"
        text += [
            f"p = u32(p0 + u32({i}))",
            f"q = u32(q0 + u32(8 * {side}))",
            f"m{name} = u32(u32(u32(on_p + p) * Q) + q)",
            f"pixel{name} = u32(on_y + u32(p * yp) + u32(q * yq))",
        ]
    loop = ["k0 = u32(n0 + u32(b * 32))"]
    for first in range(0, 8, width):
        loop.append(f"k = u32(k0 + u32({first}))")
        if rows is None:
            loop.append("if k < K:")
        indent = "    " if rows is None else ""
        for i, side in pixels:
            name = "" if rows is None else f"{i}_{side}"
            values = ", ".join(
                f"final(acc[({i} * {n8} + b * 4 + {e // 2}) * 4 + 2 * {side} + {e % 2}])"
                for e in range(first, first + width)
            )
            place = f"u32(pixel{name} + {'k' if width > 1 else 'u32(k * yk)'})"
            loop.append(f"{indent}store({values}, m{name}, k, {place}, y, e0, e1, e2, e3, e4, e5)")
    return [*text, f"for b in range({n8 // 4}):", *(f"    {line}" for line in loop)]


def _kernel(
    tile: tuple[int, ...],
    patch: tuple[Any, ...],
    dtype: DType,
    out_dtype: DType,
    program: Program | None,
    extras: tuple[Extra, ...],
    width: int,
) -> tuple[Any, Any]:
    """The kernel; filter, stride and channels are constants, all other sizes scalars.

    Block x takes tiles x, x + gridDim.x, ... in order of (image, rows, columns); block y is the
    block of channels. A tile's number past the last fetches zeros that nobody reads.
    """
    shape, layer = StemTile(*tile), Patch(*patch)
    n8 = shape.bn // shape.wn // 8
    fetch = by_quad(layer, shape) if layer.words else by_element(layer, shape)
    weights, patches = layer.weight_bytes(shape), layer.patch_bytes(shape)
    sums, final = acc_type(dtype), result_type(dtype, out_dtype, program)
    exact = dtype in BYTES and final is types.float32 and layer.largest_sum(dtype) < 2**22
    body = [
        "shared = ptx.shared_address(cuda.shared.array(0, u8))",
        "tid = u32(cuda.threadIdx.x)",
        "lane = tid & u32(31)",
        "warp = tid >> u32(5)",
        "g = lane >> u32(2)",
        "t = lane & u32(3)",
        f"w0 = u32(u32(cuda.blockIdx.y) * u32({weights // layer.itemsize}))",
        f"for piece in range(tid, u32({weights // 16}), u32({shape.threads})):",
        "    ptx.cp_async_16(u32(shared + u32(piece * u32(16))), "
        f"ptx.at(w, u32(w0 + u32(piece * u32({layer.piece})))), u32(16))",
        "ptx.cp_async_commit()",
    ]
    if layer.cell > layer.channels and dtype not in BYTES:
        body += [
            f"for word in range(tid, u32({patches // 2}), u32({shape.threads})):",
            f"    ptx.st_shared_u32(u32(shared + u32({weights}) + u32(word * u32(4))), u32(0))",
            "cuda.syncthreads()",
        ]
    body += [
        *fetch.setup,
        *_setup_text(layer, shape),
        f"n0 = u32(u32(u32(cuda.blockIdx.y) * u32({shape.bn})) + my_n + u32(t * u32(8)))",
        f"last_k = u32(u32(u32(cuda.blockIdx.y) * u32({shape.bn})) + u32({shape.bn})) <= K",
        f"acc = cuda.local.array({shape.mi * n8 * 4}, sums)",
        "shift = u32(0)",
        "now = u32(cuda.blockIdx.x)",
        "item = now",
        "on = op = oq = u32(0)",
        "ready = False",
        "while now < tiles:",
    ]
    loop = [
        *_origin_text(layer, shape),
        *fetch.load,
        "if ready:",
        *(f"    {line}" for line in _product_text(layer, shape)),
        *(f"    {line}" for line in _store_text(shape, width)),
        "    now = item",
        "else:",
        "    ptx.cp_async_wait(0)",
        "    ready = True",
        f"shift = u32(u32({patches}) - shift)",
        f"target = u32(shared + u32({weights}) + shift)",
        *fetch.store,
        # The patch is complete, and all have read the other one.
        "cuda.syncthreads()",
        "on = fn",
        "op = fp",
        "oq = fq",
        "item = u32(now + u32(cuda.gridDim.x))",
    ]
    params = ", ".join(("x", "w", "y", *(f"e{i}" for i in range(MAX_EXTRAS)), *NUMBERS))
    text = "\n".join(
        [f"def kernel({params}):", *(f"    {s}" for s in body), *(f"        {s}" for s in loop), ""]
    )
    namespace = {
        "cuda": cuda,
        "ptx": ptx,
        "u8": types.uint8,
        "u32": u32,
        "sums": sums,
        "zero": sums(_ONE_AND_A_HALF if exact else 0),
        "final": _from_bits if exact else final,
        "mma": _MMA[dtype],
        "store": make_store(program, extras, out_dtype, width),
    }
    signature = types.void(
        pointer(dtype), pointer(weights_type(dtype)), pointer(out_dtype), *extra_types(extras),
        *[u32] * len(NUMBERS),
    )  # fmt: skip
    return compile_text(text, namespace), signature
