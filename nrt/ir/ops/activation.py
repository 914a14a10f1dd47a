"""Activation functions. Each program is the formula in its docstring, step by step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from nrt.errors import ShapeError
from nrt.ir.op import TensorType
from nrt.ir.ops.common import broadcast, dims
from nrt.ir.ops.elementwise import Elementwise
from nrt.ir.pointwise import Builder, Program

__all__ = [
    "Celu",
    "Clip",
    "Elu",
    "Gelu",
    "HardSigmoid",
    "HardSwish",
    "LeakyRelu",
    "Mish",
    "PRelu",
    "Relu",
    "Selu",
    "Softplus",
    "Softsign",
    "ThresholdedRelu",
]


@dataclass(frozen=True)
class Relu(Elementwise):
    """``max(x, 0)``."""

    def program(self, kinds: tuple[str, ...]) -> Program:
        b = Builder(kinds)
        return b.build(b("max", 0, b.const(0.0 if kinds[0] == "f" else 0)))


@dataclass(frozen=True)
class LeakyRelu(Elementwise):
    """``x < 0 ? alpha * x : x``.

    Attributes:
        alpha: slope below zero.
    """

    accepts: ClassVar[str] = "f"
    alpha: float = 0.01

    def program(self, kinds: tuple[str, ...]) -> Program:
        b = Builder(kinds)
        negative = b("lt", 0, b.const(0.0))
        return b.build(b("where", negative, b("mul", 0, b.const(float(self.alpha))), 0))


@dataclass(frozen=True)
class PRelu(Elementwise):
    """``x < 0 ? slope * x : x``; inputs ``x`` and ``slope``, which broadcasts to ``x``."""

    arity: ClassVar[tuple[int, int]] = (2, 2)

    def infer(self, *inputs: TensorType) -> tuple[TensorType, ...]:
        x, slope = inputs
        self.check_dtypes(x.dtype, slope.dtype)
        if broadcast(self.name, x.shape, slope.shape) != x.shape:
            raise ShapeError(
                f"{self.name}: slope has shape {dims(slope.shape)}, which does not broadcast to "
                f"the input {dims(x.shape)}"
            )
        return (x,)

    def program(self, kinds: tuple[str, ...]) -> Program:
        b = Builder(kinds)
        negative = b("lt", 0, b.const(0.0 if kinds[0] == "f" else 0))
        return b.build(b("where", negative, b("mul", 0, 1), 0))


@dataclass(frozen=True)
class Elu(Elementwise):
    """``x < 0 ? alpha * (e^x - 1) : x`` (Clevert et al. 2016).

    Attributes:
        alpha: limit below zero, as a positive number.
    """

    accepts: ClassVar[str] = "f"
    alpha: float = 1.0

    def program(self, kinds: tuple[str, ...]) -> Program:
        b = Builder(kinds)
        curve = b("mul", b.const(float(self.alpha)), b("sub", b("exp", 0), b.const(1.0)))
        return b.build(b("where", b("lt", 0, b.const(0.0)), curve, 0))


@dataclass(frozen=True)
class Selu(Elementwise):
    """``gamma * (x > 0 ? x : alpha * (e^x - 1))`` (Klambauer et al. 2017).

    Attributes:
        alpha: limit below zero, before scaling.
        gamma: scale.
    """

    accepts: ClassVar[str] = "f"
    alpha: float = 1.67326319217681884765625
    gamma: float = 1.05070102214813232421875

    def program(self, kinds: tuple[str, ...]) -> Program:
        b = Builder(kinds)
        (elu,) = b.inline(Elu(self.alpha).program(kinds), (0,))
        return b.build(b("mul", b.const(float(self.gamma)), elu))


@dataclass(frozen=True)
class Celu(Elementwise):
    """``max(x, 0) + min(0, alpha * (e^(x / alpha) - 1))`` (Barron 2017).

    Attributes:
        alpha: limit below zero, as a positive number.
    """

    accepts: ClassVar[str] = "f"
    alpha: float = 1.0

    def program(self, kinds: tuple[str, ...]) -> Program:
        b = Builder(kinds)
        alpha = b.const(float(self.alpha))
        zero = b.const(0.0)
        curve = b("mul", alpha, b("sub", b("exp", b("div", 0, alpha)), b.const(1.0)))
        return b.build(b("add", b("max", 0, zero), b("min", zero, curve)))


@dataclass(frozen=True)
class ThresholdedRelu(Elementwise):
    """``x > alpha ? x : 0``.

    Attributes:
        alpha: the threshold.
    """

    accepts: ClassVar[str] = "f"
    alpha: float = 1.0

    def program(self, kinds: tuple[str, ...]) -> Program:
        b = Builder(kinds)
        return b.build(b("where", b("lt", b.const(float(self.alpha)), 0), 0, b.const(0.0)))


@dataclass(frozen=True)
class Clip(Elementwise):
    """``min(max(x, min), max)``; a bound that is None does not bind.

    Attributes:
        min: lower bound.
        max: upper bound; wins where it is less than the lower one.
    """

    min: float | None = None
    max: float | None = None

    def program(self, kinds: tuple[str, ...]) -> Program:
        b = Builder(kinds)
        register = 0
        for opcode, bound in (("max", self.min), ("min", self.max)):
            if bound is not None:
                imm = float(bound) if kinds[0] == "f" else int(bound)
                register = b(opcode, register, b.const(imm))
        return b.build(register)


@dataclass(frozen=True)
class HardSigmoid(Elementwise):
    """``max(0, min(1, alpha * x + beta))``.

    Attributes:
        alpha: slope.
        beta: value at zero.
    """

    accepts: ClassVar[str] = "f"
    alpha: float = 0.2
    beta: float = 0.5

    def program(self, kinds: tuple[str, ...]) -> Program:
        b = Builder(kinds)
        line = b("add", b("mul", 0, b.const(float(self.alpha))), b.const(float(self.beta)))
        return b.build(b("max", b("min", line, b.const(1.0)), b.const(0.0)))


@dataclass(frozen=True)
class HardSwish(Elementwise):
    """``x * max(0, min(1, x / 6 + 0.5))`` (Howard et al. 2019)."""

    accepts: ClassVar[str] = "f"

    def program(self, kinds: tuple[str, ...]) -> Program:
        b = Builder(kinds)
        (gate,) = b.inline(HardSigmoid(1 / 6, 0.5).program(kinds), (0,))
        return b.build(b("mul", 0, gate))


@dataclass(frozen=True)
class Gelu(Elementwise):
    """``x / 2 * (1 + erf(x / √2))`` (Hendrycks and Gimpel 2016).

    Attributes:
        approximate: use ``x / 2 * (1 + tanh(√(2/π) * (x + 0.044715 * x³)))`` instead.
    """

    accepts: ClassVar[str] = "f"
    approximate: bool = False

    def program(self, kinds: tuple[str, ...]) -> Program:
        b = Builder(kinds)
        if self.approximate:
            cube = b("mul", b("mul", b("mul", 0, 0), 0), b.const(0.044715))
            inner = b("mul", b("add", 0, cube), b.const(math.sqrt(2 / math.pi)))
            curve = b("tanh", inner)
        else:
            curve = b("erf", b("mul", 0, b.const(math.sqrt(0.5))))
        half = b("mul", 0, b.const(0.5))
        return b.build(b("mul", half, b("add", curve, b.const(1.0))))


@dataclass(frozen=True)
class Softplus(Elementwise):
    """``log(1 + e^x)``, as ``max(x, 0) + log(1 + e^-|x|)``, which does not overflow."""

    accepts: ClassVar[str] = "f"

    def program(self, kinds: tuple[str, ...]) -> Program:
        b = Builder(kinds)
        tail = b("log", b("add", b("exp", b("neg", b("abs", 0))), b.const(1.0)))
        return b.build(b("add", b("max", 0, b.const(0.0)), tail))


@dataclass(frozen=True)
class Mish(Elementwise):
    """``x * tanh(log(1 + e^x))`` (Misra 2019)."""

    accepts: ClassVar[str] = "f"

    def program(self, kinds: tuple[str, ...]) -> Program:
        b = Builder(kinds)
        (softplus,) = b.inline(Softplus().program(kinds), (0,))
        return b.build(b("mul", 0, b("tanh", softplus)))


@dataclass(frozen=True)
class Softsign(Elementwise):
    """``x / (1 + |x|)``."""

    accepts: ClassVar[str] = "f"

    def program(self, kinds: tuple[str, ...]) -> Program:
        b = Builder(kinds)
        return b.build(b("div", 0, b("add", b("abs", 0), b.const(1.0))))
