"""The end of a Hopper kernel whose output leaves through the copy engine.

The epilogue runs where the accumulators are. ``stmatrix`` writes 8 rows of 16 bytes, of which a
lane gives 4: two channels of 16 bits, which are neighbours in its accumulators too, or four of 8
bits. Those four lie in two groups of 8 columns, ``2 t, 2 t + 1`` in each for lane ``t`` of a row;
so the rows of the weights are packed in such an order that they are the channels ``4 t … 4 t + 3``
of a run of 16 (`fragment_order`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numba.cuda import types

from nrt.cuda_kernels import ptx, ptx_hopper
from nrt.cuda_kernels.codegen import NAN_EXTREMA, device_function, loader, program_namespace
from nrt.cuda_kernels.epilogue import MAX_EXTRAS, Extra, float_uses, signed_byte, unsigned_byte
from nrt.cuda_kernels.fp8 import e4m3x4_from_f32
from nrt.dtypes import BYTES, FP32, DType
from nrt.ir.op import Array
from nrt.ir.pointwise import Program

__all__ = ["boxed_operand", "boxed_second", "fragment_order", "make_cell", "refuse_boxes"]

_HALVES = {"fp16": ("f16_lo", "f16_hi"), "bf16": ("bf16_lo", "bf16_hi")}
_BYTES = ("int8", "uint8", "fp8e4m3")
_PACK: dict[str, Any] = {
    "fp16": ptx.f16x2_from_f32,
    "bf16": ptx.bf16x2_from_f32,
    "int8": ptx.s8x4_from_f32,
    "uint8": ptx.u8x4_from_f32,
    "fp8e4m3": e4m3x4_from_f32,
}
"""By output type: the function that makes a word of its elements."""


def fragment_order(count: int) -> Array:
    """The channel that each row of the weights holds, for an output of 8-bit elements.

    Args:
        count: of channels, a multiple of 16.
    """
    place = np.arange(count)
    half, lane, element = place % 16 // 8, place % 8 // 2, place % 2
    return place // 16 * 16 + 4 * lane + 2 * half + element


def boxed_operand(extras: Sequence[Extra], dtype: DType) -> int | None:
    """The operand of the output's own order that the copy engine may fetch; None if none.

    Its elements are as wide as those of the output, whose type is ``dtype``.
    """
    kinds = tuple(_HALVES) if dtype.name in _HALVES else _BYTES
    found = [
        i
        for i, e in enumerate(extras)
        if e.mode in ("same", "rows") and e.dtype.name in kinds and not e.written
    ]
    return found[0] if found else None


def boxed_second(extras: Sequence[Extra]) -> int | None:
    """Where among ``extras`` the second result is; None if there is none."""
    return next((i for i, e in enumerate(extras) if e.written), None)


def refuse_boxes(extras: Sequence[Extra], dtype: DType) -> bool:
    """Whether an epilogue or an output needs another form than cells of 8 or 16 bits.

    A second result takes the cells of the first one after it: its elements are as wide.
    """
    held = boxed_operand(extras, dtype)
    plain = all(
        _boxable(e, dtype) if e.written else i == held or e.mode in ("scalar", "channel")
        for i, e in enumerate(extras)
    )
    return dtype.name not in (*_HALVES, *_BYTES) or not plain


def _boxable(extra: Extra, dtype: DType) -> bool:
    same = extra.dtype.itemsize == dtype.itemsize and extra.dtype.name in (*_HALVES, *_BYTES)
    return same and extra.mode in ("same", "rows")


def _held(index: int, extra: Extra, integers: bool, lines: list[str]) -> list[list[str]]:
    """Append lines that take the words ``h0`` and ``h1`` apart; the variables of both rows."""
    rows = []
    for row in range(2):
        count = 2 if extra.dtype.name in _HALVES else 4
        names = [f"r{index}_{row}{j}" for j in range(count)]
        if count == 2:
            low, high = _HALVES[extra.dtype.name]
            lines += [f"{names[0]} = {low}(h{row})", f"{names[1]} = {high}(h{row})"]
        elif integers:
            lines += [
                f"{v} = byte_{extra.dtype}(h{row}, u32({8 * j}))" for j, v in enumerate(names)
            ]
        else:
            lines.append(f"{', '.join(names)} = unpack_{extra.dtype}(h{row})")
        rows.append(names)
    return rows


def _channels(index: int, extra: Extra, count: int, lines: list[str]) -> list[str]:
    """Append lines that load an operand of ``count`` channels; its variables."""
    name = f"e{index}"
    values = [f"v{index}_{j}" for j in range(count)]
    if extra.mode == "scalar":
        lines.append(f"{values[0]} = load{index}({name}, u32(0))")
        return values[:1] * count
    words = count * extra.dtype.itemsize // 4
    if extra.stride == 1 and extra.dtype == FP32:
        parts = [f"w{index}_{j}" for j in range(words)]
        lines.append(f"{', '.join(parts)} = ld{words}(at({name}, u32(k)))")
        lines += [f"{v} = as_float({w})" for v, w in zip(values, parts, strict=True)]
    elif extra.stride == 1 and extra.dtype.name in _HALVES:
        low, high = _HALVES[extra.dtype.name]
        parts = [f"w{index}_{j}" for j in range(words)]
        lines.append(f"{', '.join(parts)} = ld{words}(at({name}, u32(k)))")
        lines += [f"{v} = {(low, high)[j % 2]}({parts[j // 2]})" for j, v in enumerate(values)]
    else:
        for j, v in enumerate(values):
            lines.append(f"{v} = load{index}({name}, u32(u32(k + u32({j})) * u32({extra.stride})))")
    return values


def make_cell(program: Program | None, extras: tuple[Extra, ...], dtype: DType) -> Any:
    """The device function ``(acc, i, k, e0, …, e5, h0, h1) -> (word, word, word, word)``.

    A word holds neighbouring channels from ``k`` on, of ``dtype``: two of 16 bits, made of
    ``acc[i], acc[i + 1]`` in one row and the next two accumulators in another; or four of 8 bits,
    the last two of which are made of ``acc[i + 4], acc[i + 5]`` and the next two. ``e0 … e5`` point
    to the operands; of `boxed_operand`, ``h0`` and ``h1`` hold both rows' words already. The third
    and fourth words are those of the second result, of its own type; zero where there is none.

    Args:
        program: epilogue.
        extras: its operands.
        dtype: of the output: fp16, bf16, int8, uint8 or fp8e4m3.
    """
    held = boxed_operand(extras, dtype)
    count = 4 // dtype.itemsize
    params = ["acc", "i", "k", *(f"e{i}" for i in range(MAX_EXTRAS)), "h0", "h1"]
    lines: list[str] = []
    second = boxed_second(extras)
    operands = []
    for i, e in enumerate(extras):
        if i == second:
            continue
        if i == held:
            integers = e.dtype in BYTES and not float_uses(program, i + 1)
            operands.append(_held(i, e, integers, lines))
        else:
            operands.append([_channels(i, e, count, lines)] * 2)
    words, seconds = [], []
    for row in range(2):
        results: list[str] = []
        others: list[str] = []
        for j in range(count):
            name = f"a{row}_{j}"
            lines.append(f"{name} = f32(acc[i + {j // 2 * 4 + 2 * row + j % 2}])")
            if program is not None:
                values = [rows[row][j] for rows in operands]
                body, out = program.statements([name, *values], prefix=f"t{row}{j}_")
                lines += body
                name = out[0]
                others += out[1:]
            results.append(name)
        words.append(f"pack({', '.join(results)})")
        seconds.append("u32(0)" if second is None else f"pack_second({', '.join(others)})")
    lines.append(f"return {', '.join([*words, *seconds])}")
    text = f"def cell({', '.join(params)}):\n" + "".join(f"    {line}\n" for line in lines)
    namespace = (
        program_namespace()
        | NAN_EXTREMA
        | {
            "at": ptx.at,
            "as_float": ptx.bits_float,
            "pack": _PACK[dtype.name],
            "pack_second": _PACK[dtype.name if second is None else extras[second].dtype.name],
            "f32": types.float32,
            "u32": types.uint32,
            "f16_lo": ptx.f32_from_f16_lo,
            "f16_hi": ptx.f32_from_f16_hi,
            "bf16_lo": ptx.f32_from_bf16_lo,
            "bf16_hi": ptx.f32_from_bf16_hi,
            "ld1": ptx.ld_global_nc_u32,
            "ld2": ptx.ld_global_nc_v2,
            "ld4": ptx.ld_global_nc_v4,
            "byte_int8": signed_byte,
            "byte_uint8": unsigned_byte,
            "unpack_int8": ptx.f32x4_from_s8x4,
            "unpack_uint8": ptx.f32x4_from_u8x4,
            "unpack_fp8e4m3": ptx_hopper.f32x4_from_e4m3x4,
            **{f"load{i}": loader(e.dtype) for i, e in enumerate(extras) if not e.written},
        }
    )
    return device_function(text, "cell", namespace)
