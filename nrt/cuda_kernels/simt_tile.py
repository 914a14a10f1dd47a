"""Tiled matrix products on the ordinary cores: what convolution and matmul share.

Recipe: a block computes ``bm x bn`` results in steps of ``bk``. Both operands of a step lie in
shared memory as float32, depth outermost: ``A[bk][bm + 4]`` and ``B[bk][bn + 4]``, twice, so that
one barrier a step is enough. While a step is multiplied, the next one is on its way from global
memory to registers. A thread owns ``tm x tn`` results in groups of four rows and four columns; a
warp is eight threads wide and four high, so that a fragment is read by 16-byte loads without bank
conflicts. At 8x8 a thread makes 64 multiply-adds of four such loads.

Where there are too few blocks to fill the GPU, ``splits`` blocks share the depth of a tile: each
writes its partial sums to the workspace, and `simt_reduce` adds them in order and runs the
epilogue. (The scheme is that of Volkov & Demmel 2008 and CUTLASS's SIMT kernels.)

The elements of a stage are words of four bytes. With `DOT4` a word is four bytes along the depth,
and a multiply-add is ``dp4a``: a depth of four, summed in int32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from numba import cuda
from numba.cuda import types

from nrt.cuda_kernels import ptx
from nrt.cuda_kernels.codegen import device_function
from nrt.cuda_kernels.epilogue import MAX_EXTRAS, Extra, make_store
from nrt.cuda_kernels.vector import divide, row_offset
from nrt.dtypes import DType
from nrt.ir.pointwise import Program

__all__ = [
    "DOT4",
    "TILES",
    "Arithmetic",
    "Operand",
    "Tile",
    "gemm_namespace",
    "gemm_text",
    "compile_text",
    "unit_step",
]

f32 = types.float32
i32 = types.int32
u32 = types.uint32

PAD = 4  # keeps 16-byte alignment and moves transposed stores to other banks
UNROLL = 2  # depth steps per loop turn: more only lengthens compilation


PLACING = ("m = u32(row_base + m)", "keep = True")


@dataclass(frozen=True)
class Arithmetic:
    """What the words of a stage are.

    Attributes:
        multiply: expression of ``{c}`` plus the product of the words ``{a}`` and ``{b}``.
        result: expression of a result from its word ``{r}`` in shared memory.
    """

    multiply: str
    result: str


FLOATS = Arithmetic("{c} + {a} * {b}", "{r}")
DOT4 = Arithmetic("dot4({a}, {b}, {c})", "final(i32({r}))")
"""The caller's namespace has `conv_common.dot4` of its operands, and ``final``: an int32 result as
what the epilogue takes."""


class Tile(NamedTuple):
    """Sizes of a block's and a thread's share, and how many blocks share a tile's depth."""

    bm: int
    bn: int
    bk: int
    tm: int
    tn: int
    splits: int = 1

    @property
    def threads(self) -> int:
        return self.bm // self.tm * (self.bn // self.tn)

    @property
    def blocks_per_sm(self) -> int:
        """What registers allow: 128 for a thread of 8x8, 80 and fewer for smaller ones."""
        return max(1, (512 if self.tm * self.tn >= 64 else 768) // self.threads)

    @property
    def units_a(self) -> int:
        """Groups of four elements of A that a thread loads per step."""
        return self.bm * self.bk // 4 // self.threads

    @property
    def units_b(self) -> int:
        return self.bn * self.bk // 4 // self.threads

    def with_splits(self, splits: int) -> Tile:
        return self._replace(splits=splits)


TILES: tuple[Tile, ...] = (
    Tile(128, 128, 8, 8, 8),
    Tile(128, 64, 8, 8, 8),
    Tile(64, 128, 8, 8, 8),
    Tile(64, 64, 8, 8, 8),
    Tile(64, 64, 16, 4, 4),
    Tile(32, 64, 16, 4, 4),
    Tile(32, 32, 16, 4, 4),
)


@dataclass(frozen=True)
class Operand:
    """Program text that brings one operand's share of a step to registers.

    Attributes:
        along_depth: a unit is four neighbours in depth (stored transposed), else four rows of A or
            columns of B.
        setup: statements before the loop; ``first`` is the first step.
        load: statements that set ``{name}{unit}_{0..3}`` for step ``it``.
        advance: statements after each load.
        settle: statements on what was loaded, before it goes to shared memory: by then it is there.
    """

    along_depth: bool
    setup: tuple[str, ...]
    load: tuple[str, ...]
    advance: tuple[str, ...] = ()
    settle: tuple[str, ...] = ()


def _indent(lines: Sequence[str], depth: int) -> list[str]:
    return [" " * (4 * depth) + line for line in lines]


def _placement(name: str, operand: Operand, size: int, bk: int) -> list[str]:
    """Set ``{name}_row`` and ``{name}_k``: where in the tile this thread's first unit starts."""
    if operand.along_depth:
        across = bk // 4
        return [
            f"{name}_row = u32(tid // u32({across}))",
            f"{name}_k = u32(u32(tid % u32({across})) * u32(4))",
        ]
    across = size // 4
    return [
        f"{name}_row = u32(u32(tid % u32({across})) * u32(4))",
        f"{name}_k = u32(tid // u32({across}))",
    ]


def unit_step(along_depth: bool, size: int, tile: Tile) -> int:
    """Distance between a thread's units: rows if they run along depth, else depth steps."""
    return tile.threads // (tile.bk // 4) if along_depth else tile.threads // (size // 4)


def _stores(name: str, operand: Operand, size: int, tile: Tile, units: int) -> list[str]:
    """Statements that write a thread's units to the stage at ``{name}_to``."""
    pitch = size + PAD
    step = unit_step(operand.along_depth, size, tile)
    lines = []
    for unit in range(units):
        values = [f"{name}{unit}_{j}" for j in range(4)]
        if operand.along_depth:
            lines += [
                f"st_word(u32({name}_to + u32({4 * (j * pitch + unit * step)})), {v})"
                for j, v in enumerate(values)
            ]
        else:
            words = ", ".join(f"bits({v})" for v in values)
            lines.append(f"st_v4(u32({name}_to + u32({4 * unit * step * pitch})), {words})")
    return lines


def _multiply(tile: Tile, arithmetic: Arithmetic) -> list[str]:
    """Statements that multiply the stage at ``a_from``/``b_from`` into ``c{row}_{column}``."""
    pitch_a, pitch_b = tile.bm + PAD, tile.bn + PAD
    unroll = min(UNROLL, tile.bk)
    lines = [f"for kk in range({tile.bk // unroll}):"]
    lines.append(f"    fa = u32(a_from + u32(kk) * u32({4 * unroll * pitch_a}))")
    lines.append(f"    fb = u32(b_from + u32(kk) * u32({4 * unroll * pitch_b}))")
    for k in range(unroll):
        for name, count, extent, pitch in (
            ("a", tile.tm, tile.bm, pitch_a),
            ("b", tile.tn, tile.bn, pitch_b),
        ):
            for group in range(count // 4):
                values = ", ".join(f"{name}f{4 * group + j}" for j in range(4))
                offset = 4 * (k * pitch + group * (extent // (count // 4)))
                lines.append(f"    {values} = ld_v4(u32(f{name} + u32({offset})))")
        lines += [
            f"    c{i}_{j} = {arithmetic.multiply.format(c=f'c{i}_{j}', a=f'af{i}', b=f'bf{j}')}"
            for i in range(tile.tm)
            for j in range(tile.tn)
        ]
    return lines


def _results(tile: Tile, width: int, placing: Sequence[str], arithmetic: Arithmetic) -> list[str]:
    """Statements that hand results to the epilogue, ragged edges left out.

    They go through shared memory, a row group of all threads at a time: the epilogue's code stands
    there once per group instead of once per fragment, and a warp stores whole lines. ``row0`` and
    ``col0`` place the tile in the ``M x N`` matrix; ``origin`` is the matrix's offset in y,
    ``row_base`` and ``col_base`` count the rows and columns before it.
    """
    extras = ", ".join(f"e{i}" for i in range(MAX_EXTRAS))
    pitch = tile.bn + PAD
    groups = tile.tm // 4
    height = tile.bm // groups
    across = tile.bn // width
    wide = tile.bn // (tile.tn // 4)
    values = ", ".join(f"r{v}" for v in range(width))
    ends = ", ".join(arithmetic.result.format(r=f"r{v}") for v in range(width))
    read = "ld_v4" if width == 4 else "ld_word"
    lines = [f"write = u32(base + u32(my * u32({16 * pitch}) + mx * u32(16)))"]
    for group in range(groups):
        for i in range(4):
            for j in range(0, tile.tn, 4):
                words = ", ".join(f"acc_bits(c{4 * group + i}_{j + v})" for v in range(4))
                offset = 4 * (i * pitch + j // 4 * wide)
                lines.append(f"st_v4(u32(write + u32({offset})), {words})")
        lines += [
            "cuda.syncthreads()",
            "spot = tid",
            f"while spot < u32({height * across}):",
            f"    line = u32(spot // u32({across}))",
            f"    cell = u32(u32(spot % u32({across})) * u32({width}))",
            f"    spot = u32(spot + u32({tile.threads}))",
            f"    m = u32(row0 + line + u32({group * height}))",
            "    n = u32(col0 + cell)",
            "    if (m < M) & (n < N):",
            f"        place = u32(u32(line * u32({pitch}) + cell) * u32(4))",
            f"        {values} = {read}(u32(base + place))",
            *_indent(placing, 2),
            "        if keep:",
            "            n = u32(col_base + n)",
            "            o = u32(origin + row_offset(m, ypitch) + n * ycol)",
            f"            store({ends}, m, n, o, y, {extras})",
        ]
        if group + 1 < groups:
            lines.append("cuda.syncthreads()")
    return lines


def gemm_text(
    tile: Tile,
    params: Sequence[str],
    prologue: Sequence[str],
    a: Operand,
    b: Operand,
    width: int,
    placing: Sequence[str] = PLACING,
    arithmetic: Arithmetic = FLOATS,
) -> str:
    """The kernel's Python text.

    Its parameters are the pointers ``a, b, y, e0 … e5``, then ``M, N, NT, steps, ypitch, ycol``
    (sizes, tiles across N, steps per block, strides of y) and ``params``; ``width`` is 1 or 4.
    Block x counts tiles with columns innermost, so that concurrent blocks share rows of A.
    ``prologue`` reads block z and sets ``first`` and ``last`` (the block's steps), ``origin``,
    ``row_base`` and ``col_base``. ``placing`` turns the row ``m`` into the output's and says
    whether to ``keep`` it.
    """
    t = tile
    extras = ", ".join(f"e{i}" for i in range(MAX_EXTRAS))
    stage_a, stage_b = t.bk * (t.bm + PAD), t.bk * (t.bn + PAD)
    results = t.bm // (t.tm // 4) * (t.bn + PAD)
    wide = t.bn // t.tn // 8
    place_a = f"u32(a_k * u32({t.bm + PAD}) + a_row)"
    place_b = f"u32(b_k * u32({t.bn + PAD}) + b_row)"
    body = [
        f"memory = cuda.shared.array({max(2 * (stage_a + stage_b), results)}, word)",
        "base = shared_address(memory)",
        "tid = u32(cuda.threadIdx.x)",
        "tile_m, tile_n = divide(u32(cuda.blockIdx.x), NT)",
        f"row0 = u32(tile_m * u32({t.bm}))",
        f"col0 = u32(tile_n * u32({t.bn}))",
        "warp = u32(tid // u32(32))",
        "lane = u32(tid % u32(32))",
        f"mx = u32(u32(warp % u32({wide})) * u32(8) + u32(lane % u32(8)))",
        f"my = u32(u32(warp // u32({wide})) * u32(4) + u32(lane // u32(8)))",
        *prologue,
        *_placement("a", a, t.bm, t.bk),
        *_placement("b", b, t.bn, t.bk),
        f"a_to = u32(base + u32({place_a}) * u32(4))",
        f"b_to = u32(base + u32({8 * stage_a}) + u32({place_b}) * u32(4))",
        "a_from = u32(base + my * u32(16))",
        f"b_from = u32(base + u32({8 * stage_a}) + mx * u32(16))",
        *[f"c{i}_{j} = acc(0)" for i in range(t.tm) for j in range(t.tn)],
        *[f"{n}{u}_{j} = word(0)" for n, c in (("a", t.units_a), ("b", t.units_b))
          for u in range(c) for j in range(4)],
        "it = u32(first)",
        *a.setup,
        *b.setup,
        f"turn_a = u32({4 * stage_a})",
        f"turn_b = u32({4 * stage_b})",
        # Turn i loads step i and multiplies step i - 1: written so, loads stand in one place.
        "while it <= last:",
        "    if it < last:",
        *_indent([*a.load, *a.advance, *b.load, *b.advance], 2),
        "    if it > first:",
        *_indent(_multiply(t, arithmetic), 2),
        # The next stage is the other one; distances are added, as addresses wrap at 2^32.
        *[f"        {n}_{end} = u32({n}_{end} + turn_{n})" for n in "ab" for end in ("from", "to")],
        "        turn_a = u32(u32(0) - turn_a)",
        "        turn_b = u32(u32(0) - turn_b)",
        "    if it < last:",
        *_indent([*a.settle, *b.settle], 2),
        *_indent(_stores("a", a, t.bm, t, t.units_a), 2),
        *_indent(_stores("b", b, t.bn, t, t.units_b), 2),
        "    cuda.syncthreads()",
        "    it = u32(it + u32(1))",
        *_results(t, width, placing, arithmetic),
    ]  # fmt: skip
    head = f"def kernel(a, b, y, {extras}, M, N, NT, steps, ypitch, ycol, {', '.join(params)}):"
    return "\n".join([head, *_indent(body, 1)]) + "\n"


_FLOAT_NAMES: dict[str, Any] = {
    "ld_v4": ptx.ld_shared_v4_f32, "ld_word": ptx.ld_shared_f32, "st_word": ptx.st_shared_f32,
    "bits": ptx.float_bits, "acc_bits": ptx.float_bits, "word": f32, "acc": f32,
}  # fmt: skip
_INT_NAMES: dict[str, Any] = {
    "ld_v4": ptx.ld_shared_v4, "ld_word": ptx.ld_shared_u32, "st_word": ptx.st_shared_u32,
    "bits": u32, "acc_bits": u32, "word": u32, "acc": i32, "i32": i32,
}  # fmt: skip


def gemm_namespace(
    out_dtype: DType,
    program: Program | None,
    extras: tuple[Extra, ...],
    rows: tuple[tuple[int, int], ...],
    width: int,
    arithmetic: Arithmetic = FLOATS,
) -> dict[str, Any]:
    """Names that `gemm_text` uses; the caller adds those of its operands' text."""
    return {
        "cuda": cuda,
        "shared_address": ptx.shared_address,
        "st_v4": ptx.st_shared_v4,
        "u32": u32,
        **(_FLOAT_NAMES if arithmetic is FLOATS else _INT_NAMES),
        "divide": divide(),
        "row_offset": row_offset(rows),
        "store": make_store(program, extras, out_dtype, width),
    }


def compile_text(text: str, namespace: dict[str, Any]) -> Any:
    """The kernel as a plain Python function, its text kept for tracebacks."""
    return device_function(text, "kernel", namespace).py_func
