"""What the kernels of reductions share: the steps of each kind, prologue and epilogue as text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from numba.cuda import types

from nrt.cuda_kernels import ptx
from nrt.cuda_kernels.codegen import pointer
from nrt.cuda_kernels.elements import kernel_namespace, uses_double
from nrt.cuda_kernels.strided import offset_text
from nrt.dtypes import DType
from nrt.ir.ops.common import kind_of
from nrt.ir.pointwise import Program

__all__ = [
    "PLAIN",
    "THREADS",
    "Ends",
    "Steps",
    "end_lines",
    "program_lines",
    "reduce_namespace",
    "reduce_steps",
    "signature",
    "wide",
]

THREADS = 256
"""Threads of a block, but of the columns' kernel."""


@dataclass(frozen=True)
class Ends:
    """What happens to an element before it is reduced and to the result; part of the compile key.

    Attributes:
        prologue: program of the element (register 0) and of operands of types ``before``.
        epilogue: program of the result (register 0) and of operands of types ``after``.
    """

    prologue: Program | None = None
    epilogue: Program | None = None
    before: tuple[DType, ...] = ()
    after: tuple[DType, ...] = ()

    @property
    def befores(self) -> list[str]:
        """The pointers of the prologue's operands."""
        return [f"b{k}" for k in range(len(self.before))]

    @property
    def afters(self) -> list[str]:
        """The pointers of the epilogue's operands."""
        return [f"e{k}" for k in range(len(self.after))]


PLAIN = Ends()
"""Nothing but the reduction."""


@dataclass(frozen=True)
class Steps:
    """Text of one kind of reduction.

    Attributes:
        start: neutral element.
        visit: expression of an element ``v`` before it is combined.
        combine: expression of accumulator ``a`` and value ``v``.
        finish: expression of the result ``a`` of ``count`` elements.
    """

    start: str
    visit: str
    combine: str
    finish: str


def reduce_steps(kind: str, register: str, double: bool) -> Steps:
    zero, one = ("F(0)", "F(1)") if register == "f" else ("I(0)", "I(1)")
    lowest = {"f": "F(-inf)", "i": "I(-9223372036854775807 - 1)", "b": "False"}[register]
    highest = {"f": "F(inf)", "i": "I(9223372036854775807)", "b": "True"}[register]
    # A division is a call of 30 instructions; the reciprocal of a count is right to a unit.
    scaled = "{a} / F({count})" if double else "{a} * rcp(F({count}))"
    mean = scaled if register == "f" else "idiv({a}, I({count}))"
    root = "sqrt_({a})" if register == "f" else "I(math_sqrt(float({a})))"
    add = "{a} + {v}"
    if register == "b":
        either = {"max": Steps(lowest, "{v}", "({a} or {v})", "{a}")}
        return (either | {"min": Steps(highest, "{v}", "({a} and {v})", "{a}")})[kind]
    return {
        "mean": Steps(zero, "{v}", add, mean),
        "sum": Steps(zero, "{v}", add, "{a}"),
        "max": Steps(lowest, "{v}", "max_({a}, {v})", "{a}"),
        "min": Steps(highest, "{v}", "min_({a}, {v})", "{a}"),
        "prod": Steps(one, "{v}", "{a} * {v}", "{a}"),
        "l1": Steps(zero, "abs_({v})", add, "{a}"),
        "l2": Steps(zero, "{v} * {v}", add, root),
        "sum_square": Steps(zero, "{v} * {v}", add, "{a}"),
    }[kind]


def reduce_namespace(*dtypes: DType) -> dict[str, Any]:
    kind = kind_of(dtypes[0])
    # Bools are combined as numbers between threads.
    cell = {"i": types.int64, "b": types.int64}.get(
        kind, types.float64 if uses_double(*dtypes) else types.float32
    )
    return kernel_namespace(*dtypes) | {"cell": cell, "math_sqrt": math.sqrt, "rcp": ptx.rcp}


def wide(name: str, dtype: DType, double: bool) -> str:
    return f"F({name})" if double and dtype.is_float else name


def program_lines(
    program: Program | None,
    value: str,
    operands: Sequence[tuple[str, DType]],
    double: bool,
    tag: str,
) -> tuple[list[str], str]:
    """Lines that run ``program`` on variable ``value`` and ``operands``, and their result."""
    if program is None:
        return [], value
    lines, names = [], [value]
    for k, (name, dtype) in enumerate(operands):
        lines.append(f"{tag}o{k} = {wide(name, dtype, double)}")
        names.append(f"{tag}o{k}")
    body, results = program.statements(names, prefix=f"{tag}r")
    return lines + body, results[0]


def end_lines(
    ends: Ends, value: str, coords: Sequence[tuple[str, Sequence[str]]], double: bool
) -> tuple[list[str], str]:
    """Lines that end one result ``value``: its epilogue.

    ``coords`` are the kept coordinates, each with the stride's name for every operand.
    """
    lines, operands = [], []
    for k, dtype in enumerate(ends.after):
        place = offset_text([(c, steps[k]) for c, steps in coords])
        lines.append(f"f{k} = load_{dtype}(e{k}, {place})")
        operands.append((f"f{k}", dtype))
    body, result = program_lines(ends.epilogue, value, operands, double, "end")
    return lines + body, result


def signature(x: DType, y: DType, ends: Ends, params: Sequence[str]) -> Any:
    pointers = [pointer(d) for d in (x, y, *ends.before, *ends.after)]
    return types.void(*pointers, *[types.uint32] * (len(params) - len(pointers)))
