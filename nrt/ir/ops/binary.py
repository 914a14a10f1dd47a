"""Elementwise arithmetic, comparison and logic of two or more inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from nrt.dtypes import BOOL, DType
from nrt.errors import ShapeError
from nrt.ir.op import Array
from nrt.ir.ops.common import MANY
from nrt.ir.ops.elementwise import Elementwise
from nrt.ir.pointwise import Builder, Program

__all__ = [
    "Add",
    "And",
    "Div",
    "Equal",
    "Greater",
    "GreaterOrEqual",
    "Less",
    "LessOrEqual",
    "Max",
    "Mean",
    "Min",
    "Mul",
    "Or",
    "Pow",
    "Sub",
    "Sum",
    "Xor",
]


@dataclass(frozen=True)
class _Binary(Elementwise):
    """One opcode of two inputs of one dtype.

    Class attributes:
        opcode: its name in the pointwise vocabulary.
    """

    arity: ClassVar[tuple[int, int]] = (2, 2)
    opcode: ClassVar[str]

    def program(self, kinds: tuple[str, ...]) -> Program:
        b = Builder(kinds)
        return b.build(b(self.opcode, 0, 1))


@dataclass(frozen=True)
class Add(_Binary):
    """``a + b``."""

    opcode: ClassVar[str] = "add"


@dataclass(frozen=True)
class Sub(_Binary):
    """``a - b``."""

    opcode: ClassVar[str] = "sub"


@dataclass(frozen=True)
class Mul(_Binary):
    """``a * b``."""

    opcode: ClassVar[str] = "mul"


@dataclass(frozen=True)
class Div(_Binary):
    """``a / b``; of integers truncated toward zero."""

    def program(self, kinds: tuple[str, ...]) -> Program:
        b = Builder(kinds)
        return b.build(b("idiv" if kinds[0] == "i" else "div", 0, 1))


@dataclass(frozen=True)
class Pow(Elementwise):
    """``a ^ b`` in the type of ``a``; ``b`` may have another dtype."""

    arity: ClassVar[tuple[int, int]] = (2, 2)
    same: ClassVar[bool] = False

    def program(self, kinds: tuple[str, ...]) -> Program:
        b = Builder(kinds)
        if kinds == ("i", "f"):
            return b.build(b("to_i", b("pow", b("to_f", 0), 1)))
        return b.build(b("pow", 0, b("to_f", 1) if kinds == ("f", "i") else 1))

    def reference(self, *inputs: Array) -> tuple[Array, ...]:
        base, exponent = inputs
        if base.dtype.kind in "iu" and exponent.dtype.kind in "iu" and np.any(exponent < 0):
            raise ShapeError(
                f"{self.name}: an integer exponent is {exponent.min()}, expected 0 or more for an "
                "integer base; cast the base to a float type"
            )
        return super().reference(base, exponent)


@dataclass(frozen=True)
class _Variadic(Elementwise):
    """One opcode folded over one or more inputs of one dtype."""

    arity: ClassVar[tuple[int, int]] = (1, MANY)
    opcode: ClassVar[str]

    def program(self, kinds: tuple[str, ...]) -> Program:
        b = Builder(kinds)
        register = 0
        for other in range(1, len(kinds)):
            register = b(self.opcode, register, other)
        return b.build(register)


@dataclass(frozen=True)
class Min(_Variadic):
    """Smallest of the inputs; NaN if one is NaN."""

    opcode: ClassVar[str] = "min"


@dataclass(frozen=True)
class Max(_Variadic):
    """Largest of the inputs; NaN if one is NaN."""

    opcode: ClassVar[str] = "max"


@dataclass(frozen=True)
class Sum(_Variadic):
    """Sum of the inputs, from left to right."""

    opcode: ClassVar[str] = "add"


@dataclass(frozen=True)
class Mean(_Variadic):
    """Mean of the inputs."""

    accepts: ClassVar[str] = "f"

    def program(self, kinds: tuple[str, ...]) -> Program:
        b = Builder(kinds)
        (total,) = b.inline(Sum().program(kinds), range(len(kinds)))
        return b.build(b("div", total, b.const(float(len(kinds)))))


@dataclass(frozen=True)
class _Comparison(_Binary):
    """One comparing opcode; the result is bool."""

    def result_dtype(self, *dtypes: DType) -> DType:
        return BOOL


@dataclass(frozen=True)
class Equal(_Comparison):
    """``a == b``."""

    accepts: ClassVar[str] = "fib"
    opcode: ClassVar[str] = "eq"


@dataclass(frozen=True)
class Less(_Comparison):
    """``a < b``."""

    opcode: ClassVar[str] = "lt"


@dataclass(frozen=True)
class LessOrEqual(_Comparison):
    """``a <= b``."""

    opcode: ClassVar[str] = "le"


@dataclass(frozen=True)
class Greater(_Comparison):
    """``a > b``."""

    def program(self, kinds: tuple[str, ...]) -> Program:
        b = Builder(kinds)
        return b.build(b("lt", 1, 0))


@dataclass(frozen=True)
class GreaterOrEqual(_Comparison):
    """``a >= b``."""

    def program(self, kinds: tuple[str, ...]) -> Program:
        b = Builder(kinds)
        return b.build(b("le", 1, 0))


@dataclass(frozen=True)
class And(_Binary):
    """Both, of bools."""

    accepts: ClassVar[str] = "b"
    opcode: ClassVar[str] = "and"


@dataclass(frozen=True)
class Or(_Binary):
    """At least one, of bools."""

    accepts: ClassVar[str] = "b"
    opcode: ClassVar[str] = "or"


@dataclass(frozen=True)
class Xor(_Binary):
    """Exactly one, of bools."""

    accepts: ClassVar[str] = "b"
    opcode: ClassVar[str] = "xor"
