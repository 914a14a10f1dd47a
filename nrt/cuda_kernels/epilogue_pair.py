"""The end of a Hopper kernel whose output leaves through the copy engine.

The epilogue runs where the accumulators are: a thread holds two neighbouring channels of two rows,
8 rows apart, and what it makes of them is two words for ``stmatrix``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nrt.cuda_kernels import ptx
from nrt.cuda_kernels.codegen import device_function, loader, program_namespace
from nrt.cuda_kernels.epilogue import MAX_EXTRAS, Extra
from nrt.dtypes import FP32, DType
from nrt.ir.pointwise import Program

__all__ = ["boxed_operand", "make_quad", "refuse_pairs"]

_HALVES = {"fp16": ("f16_lo", "f16_hi"), "bf16": ("bf16_lo", "bf16_hi")}


def boxed_operand(extras: Sequence[Extra]) -> int | None:
    """The operand of the output's own order that the copy engine may fetch; None if none."""
    boxes = ("same", "rows")
    found = [i for i, e in enumerate(extras) if e.mode in boxes and e.dtype.name in _HALVES]
    return found[0] if found else None


def refuse_pairs(extras: Sequence[Extra], dtype: DType) -> bool:
    """Whether an epilogue or its output needs another form than pairs of 16-bit channels."""
    held = boxed_operand(extras)
    plain = all(i == held or e.mode in ("scalar", "channel") for i, e in enumerate(extras))
    return dtype.name not in _HALVES or not plain


def _operand(index: int, extra: Extra, held: bool, lines: list[str]) -> tuple[list[str], list[str]]:
    """Append lines that load an operand; the variables of both rows."""
    if held:
        low, high = _HALVES[extra.dtype.name]
        rows = []
        for row in range(2):
            names = [f"r{index}_{row}0", f"r{index}_{row}1"]
            lines += [f"{names[0]} = {low}(h{row})", f"{names[1]} = {high}(h{row})"]
            rows.append(names)
        return rows[0], rows[1]
    name = f"e{index}"
    pair = [f"v{index}_0", f"v{index}_1"]
    if extra.mode == "scalar":
        lines.append(f"{pair[0]} = load{index}({name}, u32(0))")
        return [pair[0]] * 2, [pair[0]] * 2
    if extra.stride == 1 and extra.dtype == FP32:
        lines.append(f"w{index}_0, w{index}_1 = ld2(at({name}, u32(k)))")
        lines += [f"{v} = as_float(w{index}_{j})" for j, v in enumerate(pair)]
    elif extra.stride == 1 and extra.dtype.name in _HALVES:
        low, high = _HALVES[extra.dtype.name]
        lines.append(f"w{index} = ld1(at({name}, u32(k)))")
        lines += [f"{pair[0]} = {low}(w{index})", f"{pair[1]} = {high}(w{index})"]
    else:
        for j, v in enumerate(pair):
            lines.append(f"{v} = load{index}({name}, u32(u32(k + u32({j})) * u32({extra.stride})))")
    return pair, pair


def make_quad(program: Program | None, extras: tuple[Extra, ...], dtype: DType) -> Any:
    """The device function ``(a0, a1, a2, a3, k, e0, e1, e2, e3, h0, h1) -> (word, word)``.

    ``a0, a1`` are the accumulators of channels ``k, k + 1`` (``k`` even) in one row, ``a2, a3``
    those in another. ``e0 … e3`` point to the operands; of `boxed_operand`, the words ``h0`` and
    ``h1`` hold both rows' pairs already. The words are packed halves of ``dtype``, a row each.
    """
    held = boxed_operand(extras)
    params = ["a0", "a1", "a2", "a3", "k", *(f"e{i}" for i in range(MAX_EXTRAS)), "h0", "h1"]
    lines: list[str] = []
    operands = [_operand(i, e, i == held, lines) for i, e in enumerate(extras)]
    results = []
    for j in range(4):
        if program is None:
            results.append(f"a{j}")
            continue
        values = [rows[j // 2][j % 2] for rows in operands]
        body, out = program.statements([f"a{j}", *values], prefix=f"t{j}_")
        lines += body
        results.append(out[0])
    lines.append(f"return pack({results[0]}, {results[1]}), pack({results[2]}, {results[3]})")
    text = f"def quad({', '.join(params)}):\n" + "".join(f"    {line}\n" for line in lines)
    pack = {"fp16": ptx.f16x2_from_f32, "bf16": ptx.bf16x2_from_f32}[dtype.name]
    namespace = program_namespace() | {
        "at": ptx.at,
        "as_float": ptx.bits_float,
        "pack": pack,
        "f16_lo": ptx.f32_from_f16_lo,
        "f16_hi": ptx.f32_from_f16_hi,
        "bf16_lo": ptx.f32_from_bf16_lo,
        "bf16_hi": ptx.f32_from_bf16_hi,
        "ld1": ptx.ld_global_nc_u32,
        "ld2": ptx.ld_global_nc_v2,
        **{f"load{i}": loader(e.dtype) for i, e in enumerate(extras)},
    }
    return device_function(text, "quad", namespace)
