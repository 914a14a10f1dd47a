"""What a warp does with a step of its tile, as intrinsics: load fragments, multiply, put down sums.

Each works on whole local arrays with constant indices, whatever the loops around it: an array that
a loop indexes by a variable leaves the registers as soon as the loop is too long to be unrolled.
A step is 32 bytes deep (16 halves, 8 floats, 32 bytes): ``ldmatrix`` moves the fragments of every
kind alike, since a lane's word is always the same four bytes of a row. An intrinsic's ``form`` is
its maker's name and arguments, for whoever emulates it.
"""

from __future__ import annotations

import functools
from typing import Any

from llvmlite import ir
from numba.cuda import types

from nrt.cuda_kernels.ptx import mma_statement
from nrt.cuda_kernels.ptx_asm import statement, with_arity

__all__ = ["change_words", "copies", "fragments", "put_rows", "warp_mma"]

u32 = types.uint32
f32 = types.float32
i64 = types.int64


_ROUND_TF32 = (
    "{ .reg .pred p; .reg .f32 a; mov.b32 a, $1; abs.f32 a, a; setp.lt.f32 p, a, 0f7F800000; "
    "mov.u32 $0, $1; @p add.u32 $0, $0, 4096; }"
)
"""Half of a tf32's last place more: the product, which drops the rest, then rounds to nearest.

``cvt.rna.tf32`` is the same and a third instruction, which clears what is dropped anyway.
"""


def _cells(context: Any, builder: Any, kind: Any, array: Any, count: int) -> list[Any]:
    """Addresses of the first ``count`` elements of a local array."""
    data = context.make_array(kind)(context, builder, array).data
    return [builder.gep(data, [ir.Constant(ir.IntType(32), k)]) for k in range(count)]


@functools.cache
def fragments(count: int, step: int) -> Any:
    """An intrinsic ``(words, address)``: ``count`` ``ldmatrix.x4`` that lie ``step`` bytes apart.

    Lane l gives the shared address of row l of the first four 8x8 matrices (of 16-bit elements);
    ``words`` is a local uint32 array of ``4 * count`` elements.
    """

    def impl(typingctx: Any, words: Any, address: Any) -> Any:
        del typingctx, address

        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            cells = _cells(context, builder, sig.args[0], args[0], 4 * count)
            for i in range(count):
                text = (
                    f"ldmatrix.sync.aligned.m8n8.x4.shared.b16 {{$0, $1, $2, $3}}, [$4+{i * step}];"
                )
                values = statement(builder, text, [u32] * 4, [u32], [args[1]])
                for cell, value in zip(cells[4 * i :], values, strict=False):
                    builder.store(value, cell)
            return context.get_dummy_value()

        return types.void(words, u32), codegen

    made = with_arity(impl, f"fragments_{count}_{step}", 2, "``ldmatrix.x4``; see `fragments`.")
    made.form = ("fragments", count, step)
    return made


@functools.cache
def copies(count: int, to_step: int, from_step: int, from_first: int = 0) -> Any:
    """An intrinsic ``(target, source, size)``: ``count`` copies of 16 bytes by ``cp.async``.

    Their shared addresses lie ``to_step`` bytes apart, their global ones ``from_step``, the first
    of these ``from_first`` after ``source``. A distance from -2048 to 2047 is part of the
    instruction; a longer one takes two additions.
    """

    def impl(typingctx: Any, target: Any, source: Any, size: Any) -> Any:
        del typingctx, target, source, size

        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            for i in range(count):
                to, start = i * to_step, from_first + i * from_step
                text = f"cp.async.cg.shared.global [$0+{to}], [$1+{start}], 16, $2;"
                statement(builder, text, [], [u32, i64, u32], args)
            return context.get_dummy_value()

        return types.void(u32, i64, u32), codegen

    made = with_arity(impl, f"copies_{count}_{to_step}", 3, "``cp.async``.")
    made.form = ("copies", count, to_step, from_step, from_first)
    return made


@functools.cache
def warp_mma(kind: str, mi_count: int, ni_count: int) -> Any:
    """An intrinsic ``(acc, a, b)``: one step of ``mma.sync`` over a warp's tile, added to ``acc``.

    ``acc`` holds four accumulators of each m16n8 block, rows outermost; ``a`` four words of each
    16 rows, ``b`` two of each 8 columns. Blocks are walked in a serpentine, so that neighbours
    share an operand.

    Args:
        kind: as `ptx.mma_statement` has it; ``f16_k8`` (sm_75) takes two products for a step;
            ``tf32`` rounds a's floats to nearest, b's have to be rounded.
        mi_count, ni_count: blocks of 16 rows and of 8 columns.
    """
    text, a_words, b_words, acc_type = mma_statement(kind)
    parts = 4 // a_words
    params = [u32] * (a_words + b_words) + [acc_type] * 4

    def impl(typingctx: Any, acc: Any, a: Any, b: Any) -> Any:
        del typingctx

        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            sizes = (4 * mi_count * ni_count, 4 * mi_count, 2 * ni_count)
            accs, a_cells, b_cells = (
                _cells(context, builder, k, v, n)
                for k, v, n in zip(sig.args, args, sizes, strict=True)
            )
            a_values = [builder.load(cell) for cell in a_cells]
            if kind == "tf32":
                a_values = [
                    statement(builder, _ROUND_TF32, [u32], [u32], [v], pure=True)[0]
                    for v in a_values
                ]
            b_values = [builder.load(cell) for cell in b_cells]
            for part in range(parts):
                for mi in range(mi_count):
                    order = range(ni_count) if mi % 2 == 0 else reversed(range(ni_count))
                    for ni in order:
                        first = 4 * mi + part * a_words
                        second = 2 * ni + part * b_words
                        mine = accs[4 * (mi * ni_count + ni) :][:4]
                        operands = [
                            *a_values[first : first + a_words],
                            *b_values[second : second + b_words],
                            *(builder.load(cell) for cell in mine),
                        ]
                        values = statement(
                            builder, text, [acc_type] * 4, params, operands,
                            pure=True, tied=(0, 1, 2, 3),
                        )  # fmt: skip
                        for cell, value in zip(mine, values, strict=True):
                            builder.store(value, cell)
            return context.get_dummy_value()

        return types.void(acc, a, b), codegen

    made = with_arity(impl, f"warp_mma_{kind}_{mi_count}x{ni_count}", 3, "``mma.sync``.")
    made.form = ("warp_mma", kind, mi_count, ni_count)
    return made


def change_words(word: Any, blocks: int, count: int, per_word: int) -> Any:
    """An intrinsic ``(words, numbers)``: a function on every word of ``blocks`` fragments of a.

    ``word`` is a Python function of a word and of ``count * per_word`` floats, those of one operand
    together; it is compiled once and inlined by LLVM, where text in each place would be typed over
    and over. ``numbers`` is a local float32 array: by operand, half of the step, element of a word.
    Equal code must mean equal results: names in it may not differ in what they stand for.
    """

    def impl(typingctx: Any, words: Any, numbers: Any) -> Any:
        del typingctx
        signature = u32(u32, *[f32] * (count * per_word))

        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            cells = _cells(context, builder, sig.args[0], args[0], 4 * blocks)
            places = _cells(context, builder, sig.args[1], args[1], 2 * count * per_word)
            values = [builder.load(place) for place in places]
            for number, cell in enumerate(cells):
                # The last two of a lane's four words lie deeper in the row.
                half = number % 4 // 2
                own = [
                    values[(2 * index + half) * per_word + element]
                    for index in range(count)
                    for element in range(per_word)
                ]
                operands = [builder.load(cell), *own]
                result = context.compile_internal(builder, word, signature, operands)
                builder.store(result, cell)
            return context.get_dummy_value()

        return types.void(words, numbers), codegen

    made = with_arity(impl, f"change_words_{blocks}", 2, "No instruction of its own.")
    made.form = ("change_words", word, blocks, count, per_word)
    return made


@functools.cache
def put_rows(mi_count: int, ni_count: int, pitch: int) -> Any:
    """An intrinsic ``(acc, address)``: put down the first 16 rows of sums, move the others up.

    A lane's address is that of row ``lane / 4``, column ``lane % 4 * 2`` of a shared float32 matrix
    of ``pitch`` floats a row; sums that are integers are put down as their bits. The next 16 rows
    are the first ones afterwards, so that a loop over rows needs no index.
    """
    size = 4 * ni_count

    def impl(typingctx: Any, acc: Any, address: Any) -> Any:
        del typingctx, address

        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            kind = sig.args[0].dtype
            cells = _cells(context, builder, sig.args[0], args[0], mi_count * size)
            values = [builder.load(cell) for cell in cells]
            letter = "f32" if kind == f32 else "u32"
            for ni in range(ni_count):
                for half in (0, 1):
                    offset = ni * 32 + half * 8 * pitch * 4
                    text = f"st.shared.v2.{letter} [$0+{offset}], {{$1, $2}};"
                    pair = values[4 * ni + 2 * half :][:2]
                    statement(builder, text, [], [u32, kind, kind], [args[1], *pair])
            for cell, value in zip(cells, values[size:], strict=False):
                builder.store(value, cell)
            return context.get_dummy_value()

        return types.void(acc, u32), codegen

    made = with_arity(impl, f"put_rows_{mi_count}x{ni_count}", 2, "``st.shared.v2``.")
    made.form = ("put_rows", mi_count, ni_count, pitch)
    return made
