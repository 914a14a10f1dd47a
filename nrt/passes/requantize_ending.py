"""How programs end whose results are stored as bytes: ``round(m · value) + z``.

The factor m and the zero point z are numbers or constant vectors, one number per channel; either
may be missing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from nrt.dtypes import DType
from nrt.ir.op import Array
from nrt.ir.pointwise import Builder, Program
from nrt.passes.requantize_program import (
    Scaled,
    Scaling,
    instr_at,
    is_stored_as_end,
    number_at,
    without_clamps,
)

__all__ = [
    "Ending",
    "addend",
    "cost_of_operands",
    "ending",
    "is_factor",
    "scaled_by_operand",
    "trimmed",
    "with_addend",
    "without_clamps_before",
]

_MOST = 255
"""Zero points are numbers that bytes hold."""


@dataclass(frozen=True, eq=False)
class Ending:
    """The end of a program.

    Attributes:
        value: the register before it.
        factor: a register that holds m; None for 1. zero: a register that holds z; None if nothing
            is rounded and added.
        m: its data, all positive and finite. z: its data, whole numbers. Both in float64.
    """

    value: int
    factor: int | None
    zero: int | None
    m: Array
    z: Array

    def of(self, b: Builder, register: int) -> int:
        """The end behind another register."""
        if self.factor is not None:
            register = b("mul", register, self.factor)
        if self.zero is not None:
            register = b("add", b("round", register), self.zero)
        return register

    def stored(self, limit: float, real: DType) -> Array:
        """What it makes of a number, computed as a program of ``real`` does."""
        dtype = real.numpy
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            value = np.asarray(limit, dtype) * self.m.astype(dtype)
            return np.asarray(value if self.zero is None else np.rint(value) + self.z.astype(dtype))


def ending(program: Program, known: Mapping[int, Array]) -> Ending | None:
    """How ``program`` ends, if it has one result; ``known`` are the data of inputs."""
    if len(program.outputs) != 1:
        return None
    register, zero, factor = program.outputs[0], None, None
    m, z = np.ones(()), np.zeros(())
    for rounded, other in _pairs(program, register, "add"):
        instr = instr_at(program, rounded)
        data = _data(program, other, known)
        if instr is not None and instr.opcode == "round" and data is not None and _is_zero(data):
            (register,), zero, z = instr.args, other, trimmed(data)
            break
    for value, other in _pairs(program, register, "mul"):
        data = _data(program, other, known)
        if data is not None and is_factor(data):
            register, factor, m = value, other, trimmed(data)
            break
    return Ending(register, factor, zero, m, z)


def _pairs(program: Program, register: int, opcode: str) -> tuple[tuple[int, int], ...]:
    """The operands of an instruction, in both orders; none if it is another one."""
    instr = instr_at(program, register)
    if instr is None or instr.opcode != opcode:
        return ()
    left, right = instr.args
    return (left, right), (right, left)


def _data(program: Program, register: int, known: Mapping[int, Array]) -> Array | None:
    """In float64: a number, an operand, or the integers of one; None for what is computed."""
    instr = instr_at(program, register)
    if instr is not None and instr.opcode == "to_f":
        (register,) = instr.args
        instr = instr_at(program, register)
    found: Array | float | None = number_at(program, register)
    if instr is None:
        found = known.get(register)
    return None if found is None else np.asarray(found, np.float64)


def is_factor(data: Array) -> bool:
    """Whether all are positive and finite."""
    return bool((np.isfinite(data) & (data > 0)).all())


def trimmed(data: Array) -> Array:
    """Without leading dimensions of size 1, which broadcasting adds where they are needed."""
    shape = data.shape
    while shape and shape[0] == 1:
        shape = shape[1:]
    return data.reshape(shape)


def _is_zero(data: Array) -> bool:
    return bool((np.abs(data) <= _MOST).all() and (data == np.rint(data)).all())


def without_clamps_before(
    program: Program, end: Ending, dtype: DType, real: DType
) -> Program | None:
    """``program`` without clamps before its end that a store as ``dtype`` makes superfluous.

    The end never falls where its input rises, so what `without_implied_clamps` says of a limit
    holds of what the end makes of it, channel by channel. None if all clamps matter.
    """

    def implied(opcode: str, limit: float) -> bool:
        return is_stored_as_end(end.stored(limit, real), dtype, lower=opcode == "max")

    found = without_clamps(program, end.value, implied)
    return None if found is None else found[0].build(end.of(*found))


def addend(
    program: Program, value: int, constants: Collection[int]
) -> tuple[int, tuple[int, ...]] | None:
    """A term of the sum ``value`` that is known: an operand of ``constants``, or else a number.

    The sum may be one of sums; each, and the operand, is read once.

    Returns:
        Its register, and the way to it: which operand of each sum.
    """
    uses = Counter(a for instr in program.instrs for a in instr.args)
    numbers = []
    todo: list[tuple[int, tuple[int, ...]]] = [(value, ())]
    while todo:
        register, way = todo.pop()
        instr = instr_at(program, register)
        if instr is None and register in constants and uses[register] <= 1:
            return register, way
        if number_at(program, register) is not None:
            numbers.append((register, way))
        elif instr is not None and instr.opcode == "add" and uses[register] <= 1:
            todo += [(a, (*way, side)) for side, a in enumerate(instr.args)]
    return numbers[0] if numbers else None


def with_addend(b: Builder, program: Program, value: int, way: tuple[int, ...], new: int) -> int:
    """The sum ``value`` with register ``new`` at the end of ``way``."""
    instr = instr_at(program, value)
    if not way or instr is None:
        return new
    args = list(instr.args)
    args[way[0]] = with_addend(b, program, args[way[0]], way[1:], new)
    return b(instr.opcode, *args)


def scaled_by_operand(
    program: Program, value: int, factor: int, constants: Collection[int]
) -> Scaled:
    """Register ``value`` of ``program`` times the operand ``factor``, as a program.

    As `scaled`. Zeros and infinities are what they were; another number takes the place of the
    operand, whose data the caller multiplies by it: `Scaled.numbers` has it.
    """
    return _ByOperand(program, factor, constants).of(value)


class _ByOperand(Scaling):
    """The operand is used once at most."""

    def __init__(self, program: Program, factor: int, constants: Collection[int]) -> None:
        super().__init__(program, constants)
        self.factor = factor

    def _times(self, register: int) -> int:
        return self.b("mul", register, self.factor)

    def _is_free(self, number: float) -> bool:
        return number == 0 or not np.isfinite(number)

    def _number(self, register: int, number: float) -> int:
        if self._is_free(number):
            return register
        self.numbers.append(number)
        return self.factor


def cost_of_operands(program: Program) -> int:
    """How many inputs are loaded, without the accumulator."""
    read = {a for instr in program.instrs for a in instr.args} | set(program.outputs)
    return sum(0 < r < len(program.inputs) for r in read)
