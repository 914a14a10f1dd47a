"""Real numbers as small integers and back, with the scales beside them.

    q = clip(rint(x / scale) + zero)        x ≈ (q - zero) · scale

Scales and zero points broadcast against the data: one element, or one per channel as ``[K, 1, 1]``.
Both ops are pointwise programs like any other, so they fuse as arithmetic does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from nrt.dtypes import FP8E4M3, INT8, INT16, INT32, UINT8, UINT16, DType
from nrt.errors import ShapeError
from nrt.ir.ops.elementwise import Elementwise
from nrt.ir.pointwise import Builder, Instr, Program

__all__ = [
    "Dequantize",
    "Quantize",
    "byte_rounding",
    "saturates",
    "without_byte_rounding",
    "without_round_trips",
]

_STORED = (INT8, UINT8, INT16, UINT16, FP8E4M3)
_READ = (*_STORED, INT32)


@dataclass(frozen=True)
class Quantize(Elementwise):
    """``clip(rint(x / scale) + zero)``; inputs ``x, scale`` and an optional ``zero`` point.

    Halves go to the even neighbour, and what lies outside the range of ``dtype`` saturates. fp8 has
    no zero point, and rounds as a cast does.

    Attributes:
        dtype: element type of the result: int8, uint8, int16, uint16 or fp8e4m3.
    """

    arity: ClassVar[tuple[int, int]] = (2, 3)
    accepts: ClassVar[str] = "fi"
    same: ClassVar[bool] = False
    dtype: DType

    def check_dtypes(self, *dtypes: DType) -> None:
        if self.dtype not in _STORED:
            raise ShapeError(
                f"{self.name}: the result is {self.dtype}, expected one of "
                f"{', '.join(map(str, _STORED))}"
            )
        x, scale, *zero = dtypes
        if not (x.is_float or x is INT32) or not scale.is_float:
            raise ShapeError(
                f"{self.name}: x is {x} and the scale {scale}, expected floats (or int32 for x)"
            )
        _check_zero(self, zero, self.dtype)

    def result_dtype(self, *dtypes: DType) -> DType:
        return self.dtype

    def program(self, kinds: tuple[str, ...]) -> Program:
        b = Builder(kinds)
        value = b("div", 0 if kinds[0] == "f" else b("to_f", 0), 1)
        if self.dtype is FP8E4M3:
            return b.build(value)
        value = b("round", value)
        if len(kinds) == 3:
            value = b("add", value, b("to_f", 2))
        return b.build(_saturated(b, value, self.dtype))


@dataclass(frozen=True)
class Dequantize(Elementwise):
    """``(q - zero) · scale``; inputs ``q, scale`` and an optional ``zero`` point of q's type.

    Attributes:
        dtype: float type of the result.
    """

    arity: ClassVar[tuple[int, int]] = (2, 3)
    accepts: ClassVar[str] = "fi"
    same: ClassVar[bool] = False
    dtype: DType

    def check_dtypes(self, *dtypes: DType) -> None:
        q, scale, *zero = dtypes
        if q not in _READ or not scale.is_float or not self.dtype.is_float:
            raise ShapeError(
                f"{self.name}: q is {q}, the scale {scale} and the result {self.dtype}; expected "
                f"q to be one of {', '.join(map(str, _READ))}, the others floats"
            )
        _check_zero(self, zero, q)

    def result_dtype(self, *dtypes: DType) -> DType:
        return self.dtype

    def program(self, kinds: tuple[str, ...]) -> Program:
        b = Builder(kinds)
        # Numbers of up to 16 bits and their differences are exact as floats.
        value = 0 if kinds[0] == "f" else b("to_f", 0)
        if len(kinds) == 3:
            value = b("sub", value, 2 if kinds[2] == "f" else b("to_f", 2))
        return b.build(b("mul", value, 1))


def _check_zero(op: Elementwise, zero: list[DType], dtype: DType) -> None:
    if zero and (zero[0] is not dtype or dtype is FP8E4M3):
        wanted = "none" if dtype is FP8E4M3 else str(dtype)
        raise ShapeError(f"{op.name}: the zero point is {zero[0]}, expected {wanted}")


def _saturated(b: Builder, value: int, dtype: DType) -> int:
    info = np.iinfo(dtype.numpy)
    low, high = b.const(float(info.min)), b.const(float(info.max))
    return b("to_i", b("min", b("max", value, low), high))


def byte_rounding(program: Program, dtype: DType) -> Program:
    """``program`` and then the store of its float as int8 or uint8: rounded and saturated."""
    b = Builder(program.inputs)
    (value,) = b.inline(program, range(len(program.inputs)))
    return b.build(_saturated(b, b("round", value), dtype))


def saturates(program: Program, dtype: DType) -> bool:
    """Whether ``program`` ends as `Quantize` does: in a whole number within ``dtype``'s range."""
    return len(program.outputs) == 1 and _before_saturation(program, dtype, 0) is not None


def _before_saturation(program: Program, dtype: DType, result: int) -> int | None:
    """The register that the end of a result clips to the range of ``dtype``."""
    if dtype.kind != "int":
        return None
    info = np.iinfo(dtype.numpy)
    register = program.outputs[result]
    for opcode, bound in (("to_i", None), ("min", info.max), ("max", info.min)):
        instr = _instr(program, register)
        if instr is None or instr.opcode != opcode:
            return None
        if bound is not None:
            limit = _instr(program, instr.args[1])
            if limit is None or limit.imm != float(bound):
                return None
        register = instr.args[0]
    return register


def _instr(program: Program, register: int) -> Instr | None:
    index = register - len(program.inputs)
    return program.instrs[index] if index >= 0 else None


def without_byte_rounding(program: Program, dtype: DType, result: int = 0) -> Program | None:
    """``program`` with the float of which storing as ``dtype`` makes its ``result``, or None.

    Epilogues give floats; their stores round, halves to even, and saturate.
    """
    register = _before_saturation(program, dtype, result)
    if register is None or program.kinds[register] != "f":
        return None
    last = _instr(program, register)
    # Without a zero point the rounding is the last step; with one the sum is whole, and stays so.
    if last is not None and last.opcode == "round":
        register = last.args[0]
    outputs = (*program.outputs[:result], register, *program.outputs[result + 1 :])
    return Program(program.inputs, program.instrs, outputs).simplified()


_KEEP_WHOLE = ("round", "floor", "ceil", "min", "max", "add", "sub", "neg", "abs")
"""Opcodes that make whole numbers: the first three of any, the others of whole ones."""


def without_round_trips(program: Program) -> Program:
    """``program`` without integers that are only floats in between.

    A whole float that is clipped to the range of a small integer is what converting it there and
    back gives; a GPU takes as long for either conversion as for several additions.
    """
    b = Builder(program.inputs)
    where = list(range(len(program.inputs)))
    whole: set[int] = set()
    for instr in program.instrs:
        source = _instr(program, instr.args[0]) if instr.args else None
        if instr.opcode == "const":
            where.append(b.const(instr.imm if instr.imm is not None else 0.0))
            if float(instr.imm or 0).is_integer():
                whole.add(where[-1])
        elif instr.opcode == "to_f" and source is not None and source.opcode == "const":
            where.append(b.const(float(source.imm or 0)))
            whole.add(where[-1])
        elif (
            instr.opcode == "to_f"
            and source is not None
            and source.opcode == "to_i"
            and _is_clipped(program, source.args[0])
            and where[source.args[0]] in whole
        ):
            where.append(where[source.args[0]])
        else:
            where.append(b(instr.opcode, *(where[a] for a in instr.args)))
            made = instr.opcode in _KEEP_WHOLE[:3] or (
                instr.opcode in _KEEP_WHOLE and all(where[a] in whole for a in instr.args)
            )
            if made or (instr.opcode == "to_f" and program.kinds[instr.args[0]] == "i"):
                whole.add(where[-1])
    return b.build(*(where[r] for r in program.outputs))


def _is_clipped(program: Program, register: int) -> bool:
    """Whether a register is the smaller of a number and the larger of another and something."""
    outer = _instr(program, register)
    inner = _instr(program, outer.args[0]) if outer is not None and outer.opcode == "min" else None
    return inner is not None and inner.opcode == "max"
