"""The end of a kernel: the pointwise program of an epilogue, and the store.

`make_store` writes the one function that ends every kernel: it takes ``width`` neighbouring results
of a row, runs the epilogue's program on each and stores them with the widest instruction. A second
result, of a program with two outputs, goes where an operand of its strides would be read from.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from numba import cuda
from numba.cuda import types

from nrt.cuda_kernels import ptx
from nrt.cuda_kernels.codegen import device_function, loader, program_namespace, storer
from nrt.cuda_kernels.fp8 import e4m3x4_from_f32, f32_from_e4m3
from nrt.dtypes import BYTES, FP32, INT8, UINT8, DType
from nrt.ir.pointwise import Program
from nrt.problem import TensorSpec

__all__ = [
    "MAX_EXTRAS",
    "Extra",
    "epilogue_extras",
    "float_uses",
    "make_store",
    "signed_byte",
    "unsigned_byte",
]

f32 = types.float32
i8 = types.int8
i32 = types.int32
u8 = types.uint8
u32 = types.uint32

MAX_EXTRAS = 6
"""Operands of a kernel's prologue and epilogue, and second results: it has as many parameters.

Passes fuse at most four operands into an epilogue; the others are for what makes a second result.
"""


@dataclass(frozen=True)
class Extra:
    """How an epilogue reads one operand.

    Attributes:
        dtype: element type.
        mode: ``scalar``; ``channel`` (index k * stride); ``same`` (the output's offset); ``rows``
            (m * row_strides[0] + k: a piece of a wider tensor, rows aligned to 16 bytes);
            ``general`` (from row and channel by ``row_dims``/``row_strides``).
        stride: of the channel dimension, in elements.
        row_dims: sizes of the output's other dimensions, outermost first.
        row_strides: strides of the operand along them.
        written: not an operand, but the program's second result, which goes there.
    """

    dtype: DType
    mode: str
    stride: int = 0
    row_dims: tuple[int, ...] = ()
    row_strides: tuple[int, ...] = ()
    written: bool = False


def epilogue_extras(
    extras: Sequence[TensorSpec],
    y: TensorSpec,
    channel: int,
    seconds: Sequence[TensorSpec] = (),
) -> tuple[Extra, ...]:
    """Classify epilogue operands against the output ``y`` whose channel dimension is ``channel``.

    Operands broadcast NumPy-style against the output; rows count the output's other dimensions in
    order. ``seconds``, of the output's shape, are a second result or nothing; they come last.
    """
    read = _classified(extras, y, channel)
    return (*read, *(replace(e, written=True) for e in _classified(seconds, y, channel)))


def _classified(extras: Sequence[TensorSpec], y: TensorSpec, channel: int) -> list[Extra]:
    rows = [d for d in range(len(y.shape)) if d != channel]
    result = []
    for spec in extras:
        pad = len(y.shape) - len(spec.shape)
        strides = [0] * pad + [
            0 if d == 1 else s for d, s in zip(spec.shape, spec.strides, strict=True)
        ]
        live = [s if d > 1 else 0 for d, s in zip(y.shape, strides, strict=True)]
        want = [s if d > 1 else 0 for d, s in zip(y.shape, y.strides, strict=True)]
        if not any(live):
            result.append(Extra(spec.dtype, "scalar"))
        elif live == want:
            result.append(Extra(spec.dtype, "same"))
        elif not any(live[d] for d in rows):
            result.append(Extra(spec.dtype, "channel", live[channel]))
        elif live[channel] == 1 and _pitch(y, rows, live) * spec.dtype.itemsize % 16 == 0:
            result.append(Extra(spec.dtype, "rows", 1, (), (_pitch(y, rows, live),)))
        else:
            result.append(
                Extra(
                    spec.dtype,
                    "general",
                    live[channel],
                    tuple(y.shape[d] for d in rows),
                    tuple(live[d] for d in rows),
                )
            )
    return result


def _pitch(y: TensorSpec, rows: Sequence[int], strides: Sequence[int]) -> int:
    """Elements from one row to the next of an operand whose rows are evenly spaced, else 1."""
    live = [(y.shape[d], strides[d]) for d in rows if y.shape[d] > 1]
    if any(a != size * b for (_, a), (size, b) in itertools.pairwise(live)):
        return 1
    return live[-1][1] or 1


def _general_index(extra: Extra) -> str:
    """Row index text: peel the dimensions off ``m`` from the innermost."""
    terms = []
    divisor = 1
    for size, stride in reversed(list(zip(extra.row_dims, extra.row_strides, strict=True))):
        if stride:
            terms.append(f"u32(u32(u32(m) // u32({divisor})) % u32({size})) * u32({stride})")
        divisor *= size
    return " + ".join([*terms, f"u32(k) * u32({extra.stride})"])


_UNPACK = {"fp16": ("f16_lo", "f16_hi"), "bf16": ("bf16_lo", "bf16_hi")}
_BYTE = {
    "int8": "signed_byte({word}, u32({shift}))",
    "uint8": "unsigned_byte({word}, u32({shift}))",
    "fp8e4m3": "fp8_byte({word}, {part})",
}
"""By type of one byte: the expression of an element of a word."""


def float_uses(program: Program | None, register: int) -> bool:
    """Whether ``program`` takes a register for nothing but its float: then it may be one."""
    if program is None or register in program.outputs:
        return False
    return all(i.opcode == "to_f" for i in program.instrs if register in i.args)


def _load_extra(index: int, extra: Extra, width: int, floats: bool, lines: list[str]) -> list[str]:
    """Append lines that load operand ``index`` for ``width`` channels; returns a variable each.

    Those of integers are floats if ``floats``.
    """
    name = f"e{index}"
    variables = [f"v{index}_{j}" for j in range(width)]
    if extra.mode == "scalar":
        lines.append(f"v{index}_0 = load{index}({name}, u32(0))")
        return [f"v{index}_0"] * width
    base, step = _address(index, extra, lines)
    if step == 1 and extra.mode != "general" and _has_words(extra.dtype, width):
        lines += _word_loads(index, f"{base}", extra.dtype, width)
        if floats and extra.dtype in BYTES:
            lines += [
                f"{', '.join(variables[j : j + 4])} = unpack_{extra.dtype}(w{index}_{j // 4})"
                for j in range(0, width, 4)
            ]
            return variables
        lines += [
            f"{v} = {_element(extra.dtype, f'w{index}_', j)}" for j, v in enumerate(variables)
        ]
        return variables
    for j, variable in enumerate(variables):
        lines.append(f"{variable} = load{index}({name}, u32({base} + u32({j * step})))")
    return variables


def _address(index: int, extra: Extra, lines: list[str]) -> tuple[str, int]:
    """Append lines that find operand ``index``: offset of the first channel, and from one to the
    next.
    """
    if extra.mode == "scalar":
        return "u32(0)", 0
    if extra.mode == "same":
        return "u32(o)", 1
    if extra.mode == "channel":
        return f"u32(u32(k) * u32({extra.stride}))", extra.stride
    if extra.mode == "rows":
        lines.append(f"g{index} = u32(u32(u32(m) * u32({extra.row_strides[0]})) + u32(k))")
        return f"g{index}", 1
    lines.append(f"g{index} = u32({_general_index(extra)})")
    return f"g{index}", extra.stride


def _has_words(dtype: DType, width: int) -> bool:
    """Whether loads of ``width`` elements are of whole words that `_element` takes apart."""
    if dtype == FP32:
        return width >= 4
    known = dtype.name in _UNPACK or dtype.name in _BYTE
    return known and width * dtype.itemsize % 4 == 0


def _word_loads(index: int, base: str, dtype: DType, width: int) -> list[str]:
    """Lines that load the words ``w{index}_0 …`` of operand ``index``, at most four at a time."""
    words, per_word = width * dtype.itemsize // 4, 4 // dtype.itemsize
    lines = []
    for first in range(0, words, 4):
        count = min(4, words - first)
        names = "".join(f"w{index}_{first + i}, " for i in range(count))
        start = f"u32({base} + u32({first * per_word}))"
        lines.append(f"{names}= ld{count}(at(e{index}, {start}))")
    return lines


def _element(dtype: DType, word: str, j: int) -> str:
    """Expression of element ``j`` of the words named ``word`` and a number."""
    if dtype == FP32:
        return f"as_float({word}{j})"
    if dtype.name in _UNPACK:
        return f"{_UNPACK[dtype.name][j % 2]}({word}{j // 2})"
    return _BYTE[dtype.name].format(word=f"{word}{j // 4}", part=j % 4, shift=j % 4 * 8)


_PACK = {
    "fp16": "pack_f16", "bf16": "pack_bf16", "fp32": "bits", "int32": "int_bits",
    "int8": "pack_s8", "uint8": "pack_u8", "fp8e4m3": "pack_e4m3",
}  # fmt: skip
"""By output type: the function that makes a word of its elements."""


def _stores(results: Sequence[str], dtype: DType) -> list[str]:
    """Lines that store neighbouring ``results``: by words, at most four at a time, if there are."""
    return _stores_at("y", "u32(o)", results, dtype) or [
        f"store(y, u32(u32(o) + u32({j})), {r})" for j, r in enumerate(results)
    ]


def _stores_at(pointer: str, base: str, results: Sequence[str], dtype: DType) -> list[str]:
    """Lines that store ``results`` by words from element ``base`` on; none if they make none."""
    width, per_word = len(results), 4 // dtype.itemsize if dtype.itemsize <= 4 else 0
    if width == 1 or dtype.name not in _PACK or width % per_word:
        return []
    words = [
        f"{_PACK[dtype.name]}({', '.join(results[i : i + per_word])})"
        for i in range(0, width, per_word)
    ]
    return [
        f"st{len(words[i : i + 4])}(at({pointer}, u32({base} + u32({i * per_word}))), "
        f"{', '.join(words[i : i + 4])})"
        for i in range(0, len(words), 4)
    ]


def _second_stores(index: int, extra: Extra, results: Sequence[str]) -> list[str]:
    """Lines that store the second results of neighbouring channels."""
    lines: list[str] = []
    base, step = _address(index, extra, lines)
    wide: list[str] = []
    if step == 1 and extra.mode != "general":
        wide = _stores_at(f"e{index}", base, results, extra.dtype)
    return lines + (
        wide
        or [
            f"store{index}(e{index}, u32({base} + u32({j * step})), {r})"
            for j, r in enumerate(results)
        ]
    )


def make_store(
    program: Program | None,
    extras: tuple[Extra, ...],
    dtype: DType,
    width: int,
    *,
    add: bool = False,
) -> Any:
    """The device function that ends a kernel.

    Its parameters are ``(a0 … a[width-1], m, k, o, y, e0, …, e5)``: accumulators of channels
    ``k … k+width-1`` in row ``m``, the offset ``o`` in elements of the first one in ``y``, the
    output pointer, and the operands' pointers. For ``width > 1`` the channels lie next to each
    other in ``y`` and in every operand of modes ``same`` and ``rows``, aligned to ``width``
    elements; those of mode ``channel`` too. Accumulators are floats; int32 ones may go to an int32
    output with no program, which stores them as they are.

    Args:
        program: epilogue; None stores the accumulators.
        extras: operands of its registers 1…; behind them, where the program has two outputs, the
            place of the second one's results.
        dtype: output element type; int8 and uint8 round to nearest even, they and fp8 saturate.
        width: 1, 2, 4, 8 or 16.
        add: store nothing; ``y`` is a local float32 array, to whose first elements the results are
            added.
    """
    accs = [f"a{j}" for j in range(width)]
    params = [*accs, "m", "k", "o", "y", *(f"e{i}" for i in range(MAX_EXTRAS))]
    lines: list[str] = []
    operands = [
        _load_extra(i, e, width, float_uses(program, i + 1), lines)
        for i, e in enumerate(extras)
        if not e.written
    ]
    results: list[str] = []
    seconds: list[str] = []
    for j in range(width):
        if program is None:
            results.append(accs[j])
            continue
        body, out = program.statements([accs[j], *(v[j] for v in operands)], prefix=f"t{j}_")
        lines += body
        results.append(out[0])
        seconds += out[1:]
    if add:
        lines += [f"y[{j}] = f32(y[{j}] + {r})" for j, r in enumerate(results)]
    else:
        lines += _stores(results, dtype)
    for i, e in enumerate(extras):
        if e.written:
            lines += _second_stores(i, e, seconds)
    text = f"def epilogue({', '.join(params)}):\n" + "".join(f"    {line}\n" for line in lines)
    namespace = program_namespace() | {
        "at": ptx.at,
        "f32": f32,
        "bits": ptx.float_bits,
        "as_float": ptx.bits_float,
        "pack_f16": ptx.f16x2_from_f32,
        "pack_bf16": ptx.bf16x2_from_f32,
        "f16_lo": ptx.f32_from_f16_lo,
        "f16_hi": ptx.f32_from_f16_hi,
        "bf16_lo": ptx.f32_from_bf16_lo,
        "bf16_hi": ptx.f32_from_bf16_hi,
        "ld1": _ld1,
        "ld2": ptx.ld_global_nc_v2,
        "ld4": ptx.ld_global_nc_v4,
        "st1": ptx.st_global_u32,
        "st2": ptx.st_global_v2,
        "st4": ptx.st_global_v4,
        "pack_s8": ptx.s8x4_from_f32,
        "pack_u8": ptx.u8x4_from_f32,
        "pack_e4m3": e4m3x4_from_f32,
        "int_bits": _int_bits,
        "signed_byte": signed_byte,
        "unsigned_byte": unsigned_byte,
        "unpack_int8": ptx.f32x4_from_s8x4,
        "unpack_uint8": ptx.f32x4_from_u8x4,
        "fp8_byte": f32_from_e4m3,
        "store": _storer(dtype),
        **{f"load{i}": loader(e.dtype) for i, e in enumerate(extras) if not e.written},
        **{f"store{i}": _storer(e.dtype) for i, e in enumerate(extras) if e.written},
    }
    return device_function(text, "epilogue", namespace)


@cuda.jit(device=True, inline="always")
def _ld1(address):
    return (ptx.ld_global_nc_u32(address),)


@cuda.jit(device=True, inline="always")
def _store_s8(p, i, value):
    """Stores the nearest integer, half to even, in [-128, 127]; NaN is 0."""
    rounded = cuda.libdevice.float2int_rn(f32(value))
    p[i] = i8(min(max(rounded, i32(-128)), i32(127)))


@cuda.jit(device=True, inline="always")
def _store_u8(p, i, value):
    """Stores the nearest integer, half to even, in [0, 255]; NaN is 0."""
    rounded = cuda.libdevice.float2int_rn(f32(value))
    p[i] = u8(min(max(rounded, i32(0)), i32(255)))


_BYTE_STORERS = {INT8: _store_s8, UINT8: _store_u8}


def _storer(dtype: DType) -> Any:
    """Device function ``(pointer, index, value)`` that stores an element."""
    return _BYTE_STORERS.get(dtype) or storer(dtype)


@cuda.jit(device=True, inline="always")
def _int_bits(value):
    return u32(i32(value))


@cuda.jit(device=True, inline="always")
def signed_byte(word, shift):
    """The int8 that begins at bit ``shift`` of a word."""
    return i32(i8(u32(word >> shift)))


@cuda.jit(device=True, inline="always")
def unsigned_byte(word, shift):
    """The uint8 that begins at bit ``shift`` of a word."""
    return i32(u8(u32(word >> shift)))
