"""fp8 in e4m3: by instructions where there are such, sm_89 on, else in integer arithmetic.

Layout: a sign, four bits of exponent with bias 7, three of mantissa; no infinities, NaN is 0x7F,
the largest number 448 (Micikevicius et al. 2022, "FP8 formats for deep learning").

Each conversion is one intrinsic, which looks at its target: functions inlined for every element of
a vector would compile for many seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba.core.targetconfig import ConfigStack
from numba.cuda import types

from nrt.cuda_kernels.ptx_asm import statement, with_arity

__all__ = ["decoded", "e4m3_from_f32", "e4m3x4_from_f32", "encoded", "f32_from_e4m3"]

f32 = types.float32
u32 = types.uint32

_I32, _F32 = ir.IntType(32), ir.FloatType()
_CONVERTS = (8, 9)
"""Compute capability from which PTX converts e4m3."""


def _int(value: int) -> Any:
    return ir.Constant(_I32, value)


def decoded(builder: Any, byte: Any) -> Any:
    """LLVM code of the float of e4m3 ``byte``, an int32 of 0 to 255.

    Exponent and mantissa in their place of a float32, and the difference of the biases, 120, added.
    Subnormals have no leading 1: with one, they are 2^-6 too large.
    """
    size = builder.and_(byte, _int(0x7F))
    wide = builder.shl(size, _int(20))
    normal = builder.bitcast(builder.add(wide, _int(120 << 23)), _F32)
    with_one = builder.bitcast(builder.add(wide, _int(121 << 23)), _F32)
    small = builder.fsub(with_one, ir.Constant(_F32, 2.0**-6))
    value = builder.select(builder.icmp_unsigned("<", size, _int(8)), small, normal)
    bits = builder.bitcast(value, _I32)
    is_nan = builder.icmp_unsigned("==", size, _int(0x7F))
    bits = builder.select(is_nan, _int(0x7FC00000), bits)
    sign = builder.shl(builder.and_(byte, _int(0x80)), _int(24))
    return builder.bitcast(builder.or_(bits, sign), _F32)


def encoded(builder: Any, value: Any) -> Any:
    """LLVM code of the e4m3 bits of a float32, an int32; to nearest even, saturated, NaN stays NaN.

    Numbers below 2^-6 are multiples of 2^-9: added to 2^14, whose last bit is that, they round in
    the adder. Above, the 20 bits that go are rounded in the integer, whose carry grows the exponent
    as it should.
    """
    bits = builder.bitcast(value, _I32)
    sign = builder.and_(builder.lshr(bits, _int(24)), _int(0x80))
    size = builder.and_(bits, _int(0x7FFFFFFF))
    moved = builder.fadd(builder.bitcast(size, _F32), ir.Constant(_F32, 16384.0))
    tiny = builder.sub(builder.bitcast(moved, _I32), _int(0x46800000))
    odd = builder.and_(builder.lshr(size, _int(20)), _int(1))
    # 0x3C000000 is the difference of the biases in the exponent's place.
    rounded = builder.add(builder.sub(size, _int(0x3C000000 - 0x7FFFF)), odd)
    plain = builder.lshr(rounded, _int(20))
    found = builder.select(builder.icmp_unsigned("<", size, _int(0x3C800000)), tiny, plain)
    found = builder.select(builder.icmp_unsigned("<", size, _int(0x43E00000)), found, _int(0x7E))
    found = builder.select(builder.icmp_unsigned(">", size, _int(0x7F800000)), _int(0x7F), found)
    return builder.or_(found, sign)


def _conversion(
    name: str,
    text: Callable[[int], str],
    result: Any,
    params: Sequence[Any],
    otherwise: Callable[..., Any],
    doc: str,
    *,
    part: bool = False,
) -> Any:
    """An intrinsic that is the statement ``text``, or LLVM code where the target lacks it.

    With ``part`` a literal follows the parameters, which ``text`` and ``otherwise`` are given.
    """

    def impl(typingctx: Any, *args: Any) -> Any:
        del typingctx
        fixed = args[len(params) :]
        if any(not isinstance(a, types.IntegerLiteral) for a in fixed):
            return None
        index = fixed[0].literal_value if fixed else 0

        def codegen(context: Any, builder: Any, sig: Any, llvm_args: Any) -> Any:
            del context, sig
            operands = list(llvm_args[: len(params)])
            if tuple(ConfigStack().top().compute_capability)[:2] < _CONVERTS:
                return otherwise(builder, index, *operands)
            (found,) = statement(builder, text(index), [result], params, operands, pure=True)
            return found

        return result(*params, *fixed), codegen

    return with_arity(impl, name, len(params) + part, doc)


def _decode_text(part: int) -> str:
    return (
        "{ .reg .b16 a, b, l, h; .reg .b32 t; mov.b32 {a, b}, $1; "
        f"cvt.rn.f16x2.e4m3x2 t, {'ab'[part // 2]}; "
        f"mov.b32 {{l, h}}, t; cvt.f32.f16 $0, {'lh'[part % 2]}; }}"
    )


def _decode(builder: Any, part: int, word: Any) -> Any:
    return decoded(builder, builder.and_(builder.lshr(word, _int(8 * part)), _int(0xFF)))


def _encode_text(_: int) -> str:
    return (
        "{ .reg .b16 l, h; cvt.rn.satfinite.e4m3x2.f32 l, $2, $1; "
        "cvt.rn.satfinite.e4m3x2.f32 h, $4, $3; mov.b32 $0, {l, h}; }"
    )


def _encode(builder: Any, _: int, *values: Any) -> Any:
    word = _int(0)
    for place, value in enumerate(values):
        byte = builder.shl(encoded(builder, value), _int(8 * place))
        word = builder.or_(word, byte)
    return word


f32_from_e4m3 = _conversion(
    "f32_from_e4m3", _decode_text, f32, [u32], _decode,
    "``cvt.rn.f16x2.e4m3x2``: the float32 of a byte of a word; the literal says which, 0 to 3.",
    part=True,
)  # fmt: skip
e4m3x4_from_f32 = _conversion(
    "e4m3x4_from_f32", _encode_text, u32, [f32] * 4, _encode,
    "Two ``cvt.rn.satfinite.e4m3x2.f32``: pack four floats, the first lowest, into e4m3, to "
    "nearest even and saturated; NaN stays NaN.",
)  # fmt: skip
e4m3_from_f32 = _conversion(
    "e4m3_from_f32",
    lambda _: "{ .reg .b16 p; cvt.rn.satfinite.e4m3x2.f32 p, 0f00000000, $1; cvt.u32.u16 $0, p; }",
    u32, [f32], _encode,
    "``cvt.rn.satfinite.e4m3x2.f32``: one float as e4m3, in the lowest byte; as `e4m3x4_from_f32`.",
)  # fmt: skip
