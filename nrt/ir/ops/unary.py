"""Elementwise functions of one input that are one opcode of the pointwise vocabulary."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from nrt.dtypes import BOOL, DType
from nrt.ir.ops.elementwise import Elementwise
from nrt.ir.pointwise import Builder, Program

__all__ = [
    "Abs",
    "Ceil",
    "Cos",
    "Erf",
    "Exp",
    "Floor",
    "IsNaN",
    "Log",
    "Neg",
    "Not",
    "Reciprocal",
    "Round",
    "Sigmoid",
    "Sign",
    "Sin",
    "Sqrt",
    "Tanh",
]


@dataclass(frozen=True)
class _Unary(Elementwise):
    """One opcode of one float.

    Class attributes:
        opcode: its name in the pointwise vocabulary.
    """

    accepts: ClassVar[str] = "f"
    opcode: ClassVar[str]

    def program(self, kinds: tuple[str, ...]) -> Program:
        b = Builder(kinds)
        return b.build(b(self.opcode, 0))


@dataclass(frozen=True)
class Abs(_Unary):
    """``|x|``."""

    accepts: ClassVar[str] = "fi"
    opcode: ClassVar[str] = "abs"


@dataclass(frozen=True)
class Ceil(_Unary):
    """Smallest whole number that is not less."""

    opcode: ClassVar[str] = "ceil"


@dataclass(frozen=True)
class Cos(_Unary):
    """Cosine of radians."""

    opcode: ClassVar[str] = "cos"


@dataclass(frozen=True)
class Erf(_Unary):
    """Gauss error function."""

    opcode: ClassVar[str] = "erf"


@dataclass(frozen=True)
class Exp(_Unary):
    """``e^x``."""

    opcode: ClassVar[str] = "exp"


@dataclass(frozen=True)
class Floor(_Unary):
    """Largest whole number that is not greater."""

    opcode: ClassVar[str] = "floor"


@dataclass(frozen=True)
class IsNaN(_Unary):
    """Whether an element is NaN; bool."""

    opcode: ClassVar[str] = "isnan"

    def result_dtype(self, *dtypes: DType) -> DType:
        return BOOL


@dataclass(frozen=True)
class Log(_Unary):
    """Natural logarithm."""

    opcode: ClassVar[str] = "log"


@dataclass(frozen=True)
class Neg(_Unary):
    """``-x``."""

    accepts: ClassVar[str] = "fi"
    opcode: ClassVar[str] = "neg"


@dataclass(frozen=True)
class Not(_Unary):
    """Logical negation of bools."""

    accepts: ClassVar[str] = "b"
    opcode: ClassVar[str] = "not"


@dataclass(frozen=True)
class Reciprocal(_Unary):
    """``1 / x``."""

    def program(self, kinds: tuple[str, ...]) -> Program:
        b = Builder(kinds)
        return b.build(b("div", b.const(1.0), 0))


@dataclass(frozen=True)
class Round(_Unary):
    """Nearest whole number, halves to the even one."""

    opcode: ClassVar[str] = "round"


@dataclass(frozen=True)
class Sigmoid(_Unary):
    """``1 / (1 + e^-x)``."""

    opcode: ClassVar[str] = "sigmoid"


@dataclass(frozen=True)
class Sign(_Unary):
    """-1, 0 or 1."""

    accepts: ClassVar[str] = "fi"
    opcode: ClassVar[str] = "sign"


@dataclass(frozen=True)
class Sin(_Unary):
    """Sine of radians."""

    opcode: ClassVar[str] = "sin"


@dataclass(frozen=True)
class Sqrt(_Unary):
    """Square root."""

    opcode: ClassVar[str] = "sqrt"


@dataclass(frozen=True)
class Tanh(_Unary):
    """Hyperbolic tangent."""

    opcode: ClassVar[str] = "tanh"
