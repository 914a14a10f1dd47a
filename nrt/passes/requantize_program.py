"""Programs whose result is stored as bytes: a factor at the end moves in, implied clamps go.

A store of int8, uint8 or fp8 rounds and saturates to the range [lo, hi]; it never falls where its
input rises. NaN it stores as 0 (fp8 as NaN), and min and max let NaN through to it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np

from nrt.dtypes import DType
from nrt.ir.op import Array
from nrt.ir.ops.common import apply_epilogue
from nrt.ir.pointwise import Builder, Instr, Program

__all__ = [
    "Scaled",
    "Scaling",
    "final_factor",
    "instr_at",
    "is_stored_as_end",
    "machine_cost",
    "number_at",
    "scaled",
    "without_clamps",
    "without_implied_clamps",
]

_LINEAR = ("add", "sub", "max", "min", "neg")
"""``m · f(a, b) = f(m · a, m · b)`` for m > 0."""


def instr_at(program: Program, register: int) -> Instr | None:
    """The instruction that defines ``register``; None for an input."""
    index = register - len(program.inputs)
    return program.instrs[index] if index >= 0 else None


def number_at(program: Program, register: int) -> float | None:
    """The value of a register that holds a float constant."""
    instr = instr_at(program, register)
    number = instr.imm if instr is not None and instr.opcode == "const" else None
    return number if isinstance(number, float) else None


def _with_number(program: Program, register: int, *opcodes: str) -> tuple[int, float] | None:
    """The other operand and the number of an instruction of two operands, one a constant."""
    instr = instr_at(program, register)
    if instr is None or instr.opcode not in opcodes:
        return None
    for value, limit in (instr.args, instr.args[::-1]):
        number = number_at(program, limit)
        if number is not None:
            return value, number
    return None


def final_factor(program: Program) -> tuple[int, float] | None:
    """The register and the number whose product is the program's only result."""
    return _with_number(program, program.outputs[0], "mul") if len(program.outputs) == 1 else None


def machine_cost(program: Program) -> int:
    """Instructions of a GPU: constants are operands, a product that is only added is one FMA."""
    uses = Counter(a for instr in program.instrs for a in instr.args)
    uses.update(program.outputs)

    def fused(instr: Instr) -> bool:
        terms = [instr_at(program, a) for a in instr.args if uses[a] == 1]
        return any(t is not None and t.opcode == "mul" for t in terms)

    steps = [i for i in program.instrs if i.opcode != "const"]
    return len(steps) - sum(i.opcode in ("add", "sub") and fused(i) for i in steps)


def without_clamps(
    program: Program, register: int, implied: Callable[[str, float], bool]
) -> tuple[Builder, int] | None:
    """The run of minima and maxima by numbers that makes ``register``, without those not needed.

    Args:
        implied: says of a clamp, ``min`` or ``max`` and its limit, that it is not needed.

    Returns:
        A program under construction, and the register in the place of that one; None if all are.
    """
    clamps: list[tuple[str, float]] = []
    while (found := _with_number(program, register, "min", "max")) is not None:
        instr = instr_at(program, register)
        assert instr is not None
        register, limit = found
        clamps.append((instr.opcode, limit))
    kept = [clamp for clamp in clamps if not implied(*clamp)]
    if len(kept) == len(clamps):
        return None
    b = Builder(program.inputs)
    b.instrs = list(program.instrs)
    for opcode, limit in reversed(kept):
        register = b(opcode, register, b.const(limit))
    return b, register


def without_implied_clamps(program: Program, dtype: DType) -> Program:
    """``program`` without minima and maxima at its end that a store as ``dtype`` makes superfluous.

    A run of clamps is one clamp, g. Let c be a lower limit that is stored as lo. For v < c, g(v) is
    g(c), or g(c) <= c; then both are stored as lo, whatever the limits of g. The same from above.
    """

    def implied(opcode: str, limit: float) -> bool:
        return is_stored_as_end(np.asarray(limit, np.float32), dtype, lower=opcode == "max")

    found = without_clamps(program, program.outputs[0], implied)
    return program if found is None else found[0].build(found[1])


def is_stored_as_end(limit: Array, dtype: DType, *, lower: bool) -> bool:
    """Whether a store makes of every ``limit`` what it makes of all that is lower, or higher."""
    end = np.asarray([-np.inf if lower else np.inf], limit.dtype)
    stored = apply_epilogue(None, np.append(end, limit), (), dtype)
    return not np.isnan(limit).any() and bool((stored == stored[0]).all())


@dataclass(frozen=True)
class Scaled:
    """A program that computes ``factor`` times what another does.

    Attributes:
        program: of the same inputs.
        inputs: those whose data the caller multiplies by the factor.
        numbers: constants of the old program that were multiplied.
    """

    program: Program
    inputs: frozenset[int]
    numbers: tuple[float, ...]


def scaled(
    program: Program, value: int, factor: float, constants: Collection[int], dtype: DType
) -> Scaled:
    """Register ``value`` of ``program`` times ``factor``, as a program.

    The factor goes into numbers and into the data of inputs, through sums, minima, maxima, and one
    side of products; it is multiplied by, once at most, where it gets to nothing known.

    Args:
        program: of floats at ``value``, and nothing but its final product reads that.
        value: a register. factor: above 0.
        constants: inputs whose data are known; those that are read twice are left alone.
        dtype: to which new numbers are rounded, once.
    """
    return _ByNumber(program, factor, constants, dtype).of(value)


class Scaling(ABC):
    """The program under construction: the old instructions, and behind them the scaled ones.

    Subclasses say what the factor is: `_times` multiplies by it, and `_is_free` and `_number` are
    about numbers that take it in.
    """

    def __init__(self, program: Program, constants: Collection[int]) -> None:
        self.program = program
        self.uses = Counter(a for instr in program.instrs for a in instr.args)
        self.free = {c for c in constants if self.uses[c] <= 1}
        self.b = Builder(program.inputs)
        self.b.instrs = list(program.instrs)
        self.inputs: set[int] = set()
        self.numbers: list[float] = []

    def of(self, value: int) -> Scaled:
        result = self._scaled(value)
        return Scaled(self.b.build(result), frozenset(self.inputs), tuple(self.numbers))

    @abstractmethod
    def _times(self, register: int) -> int:
        """A register multiplied by the factor."""

    @abstractmethod
    def _is_free(self, number: float) -> bool:
        """Whether a number takes the factor in without a place where the factor is used."""

    @abstractmethod
    def _number(self, register: int, number: float) -> int:
        """A register with the number times the factor."""

    def _products(self, register: int) -> int:
        """Multiplications that it takes to scale a register: 0, or 1, by which it itself is."""
        instr = instr_at(self.program, register)
        if instr is None:
            return int(register not in self.free)
        if instr.opcode == "const":
            number = number_at(self.program, register)
            return int(number is None or not self._is_free(number))
        if self.uses[register] > 1:
            return 1
        inner = [self._products(a) for a in instr.args]
        if instr.opcode == "mul":
            return min(inner)
        return min(1, sum(inner)) if instr.opcode in _LINEAR else 1

    def _scaled(self, register: int) -> int:
        instr = instr_at(self.program, register)
        number = number_at(self.program, register)
        if number is not None:
            return self._number(register, number)
        if instr is None and register in self.free:
            self.inputs.add(register)
            return register
        if instr is not None and self.uses[register] <= 1:
            costs = [self._products(a) for a in instr.args]
            if instr.opcode == "mul" and (side := self._side(instr.args)) is not None:
                args = list(instr.args)
                args[side] = self._scaled(args[side])
                return self.b("mul", *args)
            if instr.opcode in _LINEAR and sum(costs) <= 1:
                return self.b(instr.opcode, *map(self._scaled, instr.args))
        return self._times(register)

    def _side(self, args: tuple[int, ...]) -> int | None:
        """Which operand of a product takes the factor: a number, else data, else a program.

        A number that is not free does so where nothing is: it is no step more. None: neither.
        """
        numbers = [k for k, a in enumerate(args) if number_at(self.program, a) is not None]
        free = [k for k, a in enumerate(args) if self._products(a) == 0] or numbers
        inputs = len(self.program.inputs)
        return min(free, key=lambda k: (k not in numbers, args[k] >= inputs), default=None)


class _ByNumber(Scaling):
    """Any number takes a number in."""

    def __init__(
        self, program: Program, factor: float, constants: Collection[int], dtype: DType
    ) -> None:
        super().__init__(program, constants)
        self.factor, self.dtype = factor, dtype

    def _times(self, register: int) -> int:
        return self.b("mul", register, self.b.const(self.factor))

    def _is_free(self, number: float) -> bool:
        return True

    def _number(self, register: int, number: float) -> int:
        self.numbers.append(number)
        with np.errstate(over="ignore"):
            return self.b.const(float(self.dtype.numpy.type(number * self.factor)))
