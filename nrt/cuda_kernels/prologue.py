"""The start of a convolution: the pointwise program that runs on its input as it is loaded.

Kernels that multiply element by element call `make_prologue` on each. Those that multiply by tensor
cores run the program on a fragment, the words that ``ldmatrix`` gave a lane: `fragment_prologue`.
They keep the operands, a number per channel, as tables of float32 in shared memory
(`fill_tables`), which `channel_table` makes when the weights are packed.

Either way the result is rounded to the input's type, as if it had been stored.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numba import cuda

from nrt.cuda_kernels import ptx
from nrt.cuda_kernels.codegen import device_function, loader, program_namespace
from nrt.cuda_kernels.epilogue import MAX_EXTRAS, Extra
from nrt.cuda_kernels.mma_block import change_words
from nrt.dtypes import BF16, FP16, FP32, DType
from nrt.ir.op import Array
from nrt.ir.ops import Conv
from nrt.ir.pointwise import Program
from nrt.problem import Problem, Refusal, TensorSpec

__all__ = [
    "FragmentPrologue",
    "Prologue",
    "channel_table",
    "conv_prologue",
    "fill_tables",
    "fragment_prologue",
    "make_prologue",
    "refuse_prologue",
    "refuse_tables",
]


@dataclass(frozen=True)
class Prologue:
    """A program and the operands of its registers 1 and up: of mode ``scalar`` or ``channel``."""

    program: Program
    operands: tuple[Extra, ...]

    @property
    def instructions(self) -> float:
        """Instructions per element of a fragment, about: unpack, compute, half a pack and ReLU."""
        return 1.0 + self.program.flops

    @property
    def padding(self) -> float | None:
        """What operands may be behind the last channel, where the input is 0; None if nothing.

        Weights are zero there: whatever is finite adds nothing.
        """
        for value in (0.0, 1.0):
            operands = [np.float32(value)] * len(self.operands)
            (result,) = self.program.evaluate(*map(np.asarray, (np.float32(0.0), *operands)))
            if np.isfinite(result):
                return value
        return None


def conv_prologue(problem: Problem) -> Prologue | None:
    """The prologue of a `Conv`; None of other ops."""
    op = problem.op
    if not isinstance(op, Conv) or op.prologue is None:
        return None
    count = len(op.prologue.inputs) - 1
    rank = len(problem.inputs[0].shape)
    return Prologue(op.prologue, tuple(_operand(s, rank) for s in problem.inputs[2 : 2 + count]))


def _operand(spec: TensorSpec, rank: int) -> Extra:
    """An operand that broadcasts to ``[1, C, *1]`` of ``rank`` dimensions."""
    channel = len(spec.shape) - (rank - 1)
    if channel < 0 or spec.shape[channel] == 1:
        return Extra(spec.dtype, "scalar")
    return Extra(spec.dtype, "channel", spec.strides[channel])


def refuse_prologue(problem: Problem) -> Refusal | None:
    """None, or why a kernel that computes it on what it loads cannot take the prologue.

    Such kernels fill what lies outside of the image with zeros, which the program would change.
    Filters are no matter: operands are numbers per channel, the same at every position.
    """
    op, prologue = problem.op, conv_prologue(problem)
    if prologue is None:
        return None
    assert isinstance(op, Conv)
    if any(op.pads) or op.groups > 1:
        return Refusal("the prologue of a convolution with padding or groups, expected neither")
    return None


def refuse_tables(problem: Problem) -> Refusal | None:
    """`refuse_prologue`, or why the operands cannot be packed as tables."""
    prologue = conv_prologue(problem)
    if prologue is None:
        return None
    if not all(problem.constants[2 : 2 + len(prologue.operands)]):
        return Refusal("an operand of the prologue is computed at run time, expected a constant")
    if problem.inputs[0].dtype not in _ELEMENTS:
        return Refusal(f"the prologue computes on {problem.inputs[0].dtype}, expected floats")
    if prologue.padding is None:
        return Refusal(
            "the prologue makes no finite number of zeros, with which channels are padded"
        )
    return refuse_prologue(problem)


def channel_table(problem: Problem, array: Array, length: int, taps: int = 1) -> Array:
    """A prologue's operand as float32 ``[length]``: ``taps`` times the channels, then padding."""
    prologue = conv_prologue(problem)
    assert prologue is not None
    assert prologue.padding is not None
    count = problem.inputs[0].shape[1]
    table = np.full(length, prologue.padding, np.float32)
    table[: taps * count] = np.tile(np.broadcast_to(array.reshape(-1), count), taps)
    return table


def make_prologue(prologue: Prologue, dtype: DType, first: int) -> Any:
    """The device function ``(value, c, e0, …, e5) -> value`` for an element of channel ``c``.

    Args:
        prologue: what it computes.
        dtype: of the input, to which the result is rounded.
        first: which of the operands' pointers ``e0 … e5`` is that of register 1.
    """
    lines, names = [], []
    for index, operand in enumerate(prologue.operands):
        where = f"u32(u32(c) * u32({operand.stride}))" if operand.mode == "channel" else "u32(0)"
        lines.append(f"v{index} = load{index}(e{first + index}, {where})")
        names.append(f"v{index}")
    body, (result,) = prologue.program.statements(["x", *names], prefix="t")
    lines += [*body, f"return rounded({result})"]
    text = f"def prologue(x, c, {_pointers()}):\n" + "".join(f"    {line}\n" for line in lines)
    namespace = program_namespace() | {
        "rounded": _ROUND.get(dtype, _same),
        **{f"load{i}": loader(o.dtype) for i, o in enumerate(prologue.operands)},
    }
    return device_function(text, "prologue", namespace)


@dataclass(frozen=True)
class FragmentPrologue:
    """What a kernel needs to run a prologue on a lane's words.

    Attributes:
        take: device function ``(s, at, pitch)``: the numbers of the lane's channels into the local
            float32 array ``s`` of ``size`` elements; ``at`` is the shared address of the first
            one's in the first table, ``pitch`` the bytes from one table to the next.
        apply: device function ``(words, s)``: the program on four words per 16 rows.
        size: elements of ``s``.
        lane_channels: channels from one lane of a row to the next.
    """

    take: Any
    apply: Any
    size: int
    lane_channels: int


def fragment_prologue(
    prologue: Prologue, dtype: DType, blocks: int, *, pairs: bool = True
) -> FragmentPrologue:
    """For fragments of ``blocks`` times 16 rows and 32 bytes of channels.

    ``pairs`` says that the GPU computes on pairs of halves (sm_80).

    Lane l has the words of row ``l / 4`` at the bytes ``l % 4 * 4``, of the row 8 further down, and
    of both rows 16 bytes further on. The text is straight, so that arrays stay in registers.
    The intrinsic `change_words` runs the program.
    """
    per_word = 4 // dtype.itemsize
    get = "ld_pair" if per_word == 2 else "ld_one"
    count = len(prologue.operands)
    take = []
    for index in range(count):
        for half in range(2):
            slots = [f"s[{(2 * index + half) * per_word + e}]" for e in range(per_word)]
            place = f"u32(at + u32({16 // dtype.itemsize * 4 * half}))"
            take.append(f"{', '.join(slots)} = {get}({place})")
        if index + 1 < count:
            take.append("at = u32(at + pitch)")
    return FragmentPrologue(
        device_function(_text("take(s, at, pitch)", take), "take", _NAMES),
        change_words(_word_function(prologue, dtype, pairs), blocks, count, per_word),
        max(1, 2 * per_word * count),
        per_word,
    )


def _word_function(prologue: Prologue, dtype: DType, pairs: bool) -> Any:
    """Python function ``(word, numbers…) -> word``: the program on each element of a word.

    A ReLU at its end comes after rounding, on pairs: rounding keeps the order, and zero.
    """
    unpack, pack = _ELEMENTS[dtype]
    per_word = len(unpack)
    count = len(prologue.operands)
    program, end = prologue.program, "{}"
    if pairs and dtype in _PAIRS:
        pack, relu = _PAIRS[dtype]
        rest = _without_relu(program)
        if rest is not None:
            program, end = rest, f"{relu}({{}}, u32(0))"
    lines = [f"x{e} = {name}(word)" for e, name in enumerate(unpack)]
    results = []
    for e in range(per_word):
        operands = [f"s{i}_{e}" for i in range(count)]
        body, (result,) = program.statements([f"x{e}", *operands], prefix=f"t{e}_")
        lines += body
        results.append(result)
    lines.append("return " + end.format(f"{pack}({', '.join(results)})"))
    params = ["word", *(f"s{i}_{e}" for i in range(count) for e in range(per_word))]
    return device_function(_text(f"change({', '.join(params)})", lines), "change", _NAMES).py_func


def _without_relu(program: Program) -> Program | None:
    """What is left of ``max(…, 0.0)``; None of other programs."""
    count = len(program.inputs)
    last = program.outputs[0] - count
    if last < 0 or program.instrs[last].opcode != "max":
        return None
    value, bound = program.instrs[last].args
    if bound < count or program.instrs[bound - count].imm != 0.0:
        return None
    return replace(program, outputs=(value,)).simplified()


def fill_tables(count: int, first: int, threads: int) -> Any:
    """Device function ``(to, channels, tid, e0, …, e5)``: ``count`` tables to shared memory.

    They lie at ``to``, one behind the other; ``channels`` is a multiple of 4.
    """
    lines = ["pieces = u32(channels // u32(4))"]
    for index in range(count):
        lines += [
            "piece = u32(tid)",
            "while piece < pieces:",
            f"    a, b, c, d = ld(at(e{first + index}, u32(piece * u32(4))))",
            "    st(u32(to + u32(piece * u32(16))), a, b, c, d)",
            f"    piece = u32(piece + u32({threads}))",
            "to = u32(to + u32(channels * u32(4)))",
        ]
    text = _text(f"fill(to, channels, tid, {_pointers()})", lines)
    namespace = program_namespace() | {
        "at": ptx.at, "ld": ptx.ld_global_nc_v4, "st": ptx.st_shared_v4,
    }  # fmt: skip
    return device_function(text, "fill", namespace)


@cuda.jit(device=True, inline="always")
def _round_f16(x):
    return ptx.f32_from_f16(ptx.f16_from_f32(x))


@cuda.jit(device=True, inline="always")
def _round_bf16(x):
    return ptx.f32_from_bf16(ptx.bf16_from_f32(x))


@cuda.jit(device=True, inline="always")
def _same(x):
    return x


_ROUND: dict[DType, Any] = {FP16: _round_f16, BF16: _round_bf16}
_ELEMENTS: dict[DType, tuple[tuple[str, ...], str]] = {
    FP16: (("f16_lo", "f16_hi"), "pack_f16"),
    BF16: (("bf16_lo", "bf16_hi"), "pack_bf16"),
    FP32: (("bits_float",), "float_bits"),
}
"""Names of the functions that take a word apart to float32, and of the one that makes it again."""
_PAIRS = {FP16: ("pair_f16", "max_f16"), BF16: ("pack_bf16", "max_bf16")}
"""Names of the functions that pack, and that take the larger of pairs, in one instruction."""
_NAMES: dict[str, Any] = program_namespace() | {
    "ld_pair": ptx.ld_shared_v2_f32, "ld_one": ptx.ld_shared_f32,
    "f16_lo": ptx.f32_from_f16_lo, "f16_hi": ptx.f32_from_f16_hi, "pack_f16": ptx.f16x2_from_f32,
    "bf16_lo": ptx.f32_from_bf16_lo, "bf16_hi": ptx.f32_from_bf16_hi,
    "pack_bf16": ptx.bf16x2_from_f32,
    "pair_f16": ptx.f16x2_pair, "max_f16": ptx.max_f16x2, "max_bf16": ptx.max_bf16x2,
    "bits_float": ptx.bits_float, "float_bits": ptx.float_bits,
}  # fmt: skip


def _pointers() -> str:
    return ", ".join(f"e{i}" for i in range(MAX_EXTRAS))


def _text(head: str, lines: list[str]) -> str:
    return f"def {head}:\n" + "".join(f"    {line}\n" for line in lines or ["pass"])
