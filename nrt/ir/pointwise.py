"""Pointwise code: one small SSA program, used everywhere.

A `Program` maps registers to registers: the first ``len(inputs)`` registers are its inputs, each
instruction defines the next one. The same program is a fused elementwise node, the epilogue of a
convolution, matmul or reduction (register 0 is then the accumulator), and a prologue. Bias,
residual, activation, scale and cast are all steps of it.

Every register has a kind, ``f`` (float), ``i`` (integer) or ``b`` (bool), which follows from the
opcode and the kinds of its arguments. `evaluate` runs a program with NumPy; `source` writes it as
Python text that Numba compiles for CPU and GPU alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from nrt.errors import GraphError
from nrt.ir.op import Array
from nrt.ir.special import erf

__all__ = ["OPCODES", "Builder", "Instr", "Opcode", "Program", "compose", "identity"]


@dataclass(frozen=True)
class Opcode:
    """One operation of the pointwise vocabulary.

    Attributes:
        name: as programs and plans store it.
        arity: number of register arguments.
        result: kind of the result, ``same`` (that of the arguments), ``f``, ``i`` or ``b``.
        numpy: the NumPy function.
        text: a Python expression over ``{0} {1} {2}`` and, where it has one, the immediate
            ``{imm}``; functions in it are names that the code generator's namespace defines.
        flops: floating-point operations, for the roofline.
    """

    name: str
    arity: int
    result: str
    numpy: Callable[..., Any]
    text: str
    flops: int = 1


def _round_half_even(x: Array) -> Array:
    return np.rint(x)


def _sigmoid(x: Array) -> Array:
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-x))


def _idiv(x: Array, y: Array) -> Array:
    """Integer division that truncates toward zero, as ONNX asks."""
    with np.errstate(divide="ignore"):
        quotient = np.floor_divide(x, y)
    return np.asarray(quotient + ((np.remainder(x, y) != 0) & ((x < 0) != (y < 0))))


_TABLE: tuple[Opcode, ...] = (
    Opcode("const", 0, "imm", lambda: None, "{imm}", 0),
    Opcode("add", 2, "same", np.add, "({0} + {1})"),
    Opcode("sub", 2, "same", np.subtract, "({0} - {1})"),
    Opcode("mul", 2, "same", np.multiply, "({0} * {1})"),
    Opcode("div", 2, "same", np.divide, "({0} / {1})", 4),
    Opcode("idiv", 2, "same", _idiv, "idiv({0}, {1})", 4),
    Opcode("pow", 2, "same", np.power, "pow_({0}, {1})", 20),
    Opcode("min", 2, "same", np.minimum, "min_({0}, {1})"),
    Opcode("max", 2, "same", np.maximum, "max_({0}, {1})"),
    Opcode("neg", 1, "same", np.negative, "(-{0})"),
    Opcode("abs", 1, "same", np.abs, "abs_({0})"),
    Opcode("sign", 1, "same", np.sign, "sign_({0})"),
    Opcode("sqrt", 1, "f", np.sqrt, "sqrt_({0})", 4),
    Opcode("exp", 1, "f", np.exp, "exp_({0})", 8),
    Opcode("log", 1, "f", np.log, "log_({0})", 8),
    Opcode("tanh", 1, "f", np.tanh, "tanh_({0})", 10),
    Opcode("sigmoid", 1, "f", _sigmoid, "sigmoid_({0})", 10),
    Opcode("erf", 1, "f", lambda x: erf(np.asarray(x)), "erf_({0})", 16),
    Opcode("sin", 1, "f", np.sin, "sin_({0})", 10),
    Opcode("cos", 1, "f", np.cos, "cos_({0})", 10),
    Opcode("floor", 1, "f", np.floor, "floor_({0})"),
    Opcode("ceil", 1, "f", np.ceil, "ceil_({0})"),
    Opcode("round", 1, "f", _round_half_even, "rint_({0})"),
    Opcode("eq", 2, "b", np.equal, "({0} == {1})"),
    Opcode("lt", 2, "b", np.less, "({0} < {1})"),
    Opcode("le", 2, "b", np.less_equal, "({0} <= {1})"),
    Opcode("and", 2, "b", np.logical_and, "({0} & {1})"),
    Opcode("or", 2, "b", np.logical_or, "({0} | {1})"),
    Opcode("xor", 2, "b", np.logical_xor, "({0} ^ {1})"),
    Opcode("not", 1, "b", np.logical_not, "(not {0})"),
    Opcode("isnan", 1, "b", np.isnan, "({0} != {0})"),
    Opcode("where", 3, "second", np.where, "({1} if {0} else {2})"),
    Opcode("to_f", 1, "f", lambda x: x, "to_f({0})", 0),
    Opcode("to_i", 1, "i", lambda x: np.trunc(x).astype(np.int64), "to_i({0})", 0),
    Opcode("to_b", 1, "b", lambda x: np.asarray(x) != 0, "({0} != 0)", 0),
    # Round through fp16: what a stored and reloaded intermediate would have been.
    Opcode("fp16", 1, "f", lambda x: x.astype(np.float16).astype(x.dtype), "round_fp16({0})", 2),
)

OPCODES: Mapping[str, Opcode] = {o.name: o for o in _TABLE}


@dataclass(frozen=True, eq=False)
class Instr:
    """One instruction: an opcode, the registers it reads, and the immediate of ``const``.

    Immediates are equal when they are written alike: 1, 1.0 and True are three constants of three
    kinds, 0.0 and -0.0 are two, and NaN is itself.
    """

    opcode: str
    args: tuple[int, ...] = ()
    imm: float | int | bool | None = None

    def __post_init__(self) -> None:
        if isinstance(self.imm, np.generic):
            # NumPy's scalars are not written as Python literals in source text.
            object.__setattr__(self, "imm", self.imm.item())

    def _key(self) -> tuple[str, tuple[int, ...], str]:
        return (self.opcode, self.args, repr(self.imm))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Instr) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())


@dataclass(frozen=True)
class Program:
    """A pointwise program.

    Attributes:
        inputs: kind of each input register, ``f``, ``i`` or ``b``.
        instrs: the instructions; instruction ``k`` defines register ``len(inputs) + k``.
        outputs: registers that are results (the first is the main one).

    Raises:
        GraphError: an unknown opcode, a register that is not defined yet, a wrong kind.
    """

    inputs: tuple[str, ...]
    instrs: tuple[Instr, ...]
    outputs: tuple[int, ...]

    def __post_init__(self) -> None:
        kinds = self.kinds
        for register in self.outputs:
            if not 0 <= register < len(kinds):
                raise GraphError(f"pointwise program: output register {register} is not defined")

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """Kind of every register."""
        kinds = list(self.inputs)
        for index, instr in enumerate(self.instrs):
            where = f"pointwise program: instruction {index}"
            op = OPCODES.get(instr.opcode)
            if op is None:
                raise GraphError(f"{where}: opcode {instr.opcode!r} is unknown")
            if len(instr.args) != op.arity:
                raise GraphError(
                    f"{where}: {op.name} has {len(instr.args)} arguments, expected {op.arity}"
                )
            if any(not 0 <= a < len(kinds) for a in instr.args):
                raise GraphError(f"{where}: reads a register that is not defined yet: {instr.args}")
            kinds.append(self._result(op, instr, [kinds[a] for a in instr.args], where))
        return tuple(kinds)

    @staticmethod
    def _result(op: Opcode, instr: Instr, args: list[str], where: str) -> str:
        if op.result == "imm":
            if isinstance(instr.imm, bool):
                return "b"
            if isinstance(instr.imm, int):
                return "i"
            if isinstance(instr.imm, float):
                return "f"
            raise GraphError(f"{where}: const needs a bool, int or float, got {instr.imm!r}")
        same = args[1:] if op.result == "second" else args
        if op.arity >= 2 and len(set(same)) != 1:
            raise GraphError(
                f"{where}: {op.name} mixes kinds {args}; convert with to_f, to_i or to_b"
            )
        return same[0] if op.result in ("same", "second") else op.result

    @property
    def flops(self) -> int:
        """Floating-point operations per element."""
        return sum(OPCODES[i.opcode].flops for i in self.instrs)

    def evaluate(self, *arrays: Array) -> tuple[Array, ...]:
        """The outputs for NumPy inputs, which broadcast.

        Floats are computed in their own precision: convert fp16 inputs to float32 or float64
        before, results after.
        """
        floats = [a.dtype for a, k in zip(arrays, self.inputs, strict=True) if k == "f"]
        ftype = np.result_type(*floats) if floats else np.dtype(np.float32)
        registers: list[Any] = list(arrays)
        with np.errstate(all="ignore"):
            for instr in self.instrs:
                if instr.opcode == "const":
                    kind = self.kinds[len(registers)]
                    dtype = {"f": ftype, "i": np.dtype(np.int64), "b": np.dtype(np.bool_)}[kind]
                    registers.append(np.asarray(instr.imm, dtype))
                    continue
                args = [registers[a] for a in instr.args]
                result = OPCODES[instr.opcode].numpy(*args)
                if instr.opcode == "to_f":
                    result = np.asarray(result).astype(ftype)
                registers.append(result)
        return tuple(np.asarray(registers[r]) for r in self.outputs)

    def source(self, name: str = "pointwise") -> str:
        """Python text of a function of the inputs that returns the output (a tuple if several).

        Literals are written ``F(0.5)`` and ``I(3)``; the namespace that compiles the text defines
        ``F``, ``I`` and the functions named in `Opcode.text`, for its own target and precision.
        """
        names = [f"x{i}" for i in range(len(self.inputs))]
        lines, results = self.statements(names)
        body = "".join(f"    {line}\n" for line in lines)
        return f"def {name}({', '.join(names)}):\n{body}    return {', '.join(results)}\n"

    def statements(
        self, inputs: Sequence[str], prefix: str = "r"
    ) -> tuple[list[str], tuple[str, ...]]:
        """The program as Python assignments, for generators that write it into their own function.

        Args:
            inputs: an expression per input register; each is used by name, so pass variables.
            prefix: of the variables that are assigned.

        Returns:
            The lines, and the variable that holds each output.
        """
        names = list(inputs)
        lines = []
        for instr in self.instrs:
            register = f"{prefix}{len(names)}"
            if instr.opcode == "const":
                text = self._literal(instr.imm)
            else:
                text = OPCODES[instr.opcode].text.format(*(names[a] for a in instr.args))
            lines.append(f"{register} = {text}")
            names.append(register)
        return lines, tuple(names[r] for r in self.outputs)

    @staticmethod
    def _literal(imm: float | int | bool | None) -> str:
        if isinstance(imm, bool):
            return repr(imm)
        if isinstance(imm, int):
            return f"I({imm})"
        assert imm is not None
        if math.isnan(imm):
            return "F(nan)"
        if math.isinf(imm):
            return "F(inf)" if imm > 0 else "F(-inf)"
        return f"F({imm!r})"

    def text(self) -> str:
        """One line for reports: ``add(x0, x1); max(r2, 0.0)``.

        Of several results it says which: ``add(x0, x1); max(r2, 0.0) -> r2, r4``.
        """
        names = [f"x{i}" for i in range(len(self.inputs))]
        steps = []
        for instr in self.instrs:
            if instr.opcode == "const":
                names.append(f"{instr.imm}")
                continue
            steps.append(f"{instr.opcode}({', '.join(names[a] for a in instr.args)})")
            names.append(f"r{len(names)}")
        line = "; ".join(steps) or "identity"
        if len(self.outputs) > 1:
            line += f" -> {', '.join(names[r] for r in self.outputs)}"
        return line

    def simplified(self) -> Program:
        """The same function without instructions that no output needs, equal ones shared."""
        count = len(self.inputs)
        needed = set(self.outputs)
        for index in range(len(self.instrs) - 1, -1, -1):
            if count + index in needed:
                needed.update(self.instrs[index].args)
        seen: dict[tuple[str, tuple[int, ...], str], int] = {}
        where = {i: i for i in range(count)}
        instrs: list[Instr] = []
        for index, instr in enumerate(self.instrs):
            if count + index not in needed:
                continue
            args = tuple(where[a] for a in instr.args)
            key = (instr.opcode, args, repr(instr.imm))
            if key not in seen:
                seen[key] = count + len(instrs)
                instrs.append(Instr(instr.opcode, args, instr.imm))
            where[count + index] = seen[key]
        return Program(self.inputs, tuple(instrs), tuple(where[r] for r in self.outputs))

    def to_data(self) -> list[Any]:
        """Plain lists for a plan file; `from_data` is the inverse."""
        return [
            list(self.inputs),
            [[i.opcode, list(i.args), i.imm] for i in self.instrs],
            list(self.outputs),
        ]

    @classmethod
    def from_data(cls, data: Any) -> Program:
        """Rebuild a program; GraphError if ``data`` is not one."""
        try:
            inputs, instrs, outputs = data
            program = cls(
                tuple(str(k) for k in inputs),
                tuple(Instr(str(o), tuple(int(a) for a in args), imm) for o, args, imm in instrs),
                tuple(int(r) for r in outputs),
            )
        except (TypeError, ValueError) as error:
            raise GraphError(f"pointwise program: malformed data ({error})") from None
        if any(k not in ("f", "i", "b") for k in program.inputs):
            raise GraphError(f"pointwise program: unknown input kinds {program.inputs}")
        return program


class Builder:
    """Writes a program step by step::

    b = Builder("ff")                      # accumulator, bias
    y = b("max", b("add", 0, 1), b.const(0.0))
    program = b.build(y)
    """

    def __init__(self, inputs: Sequence[str]) -> None:
        self.inputs = tuple(inputs)
        self.instrs: list[Instr] = []

    def __call__(self, opcode: str, *args: int) -> int:
        self.instrs.append(Instr(opcode, args))
        return len(self.inputs) + len(self.instrs) - 1

    def const(self, imm: float | int | bool) -> int:
        self.instrs.append(Instr("const", (), imm))
        return len(self.inputs) + len(self.instrs) - 1

    def inline(self, program: Program, args: Sequence[int]) -> tuple[int, ...]:
        """Append ``program`` on registers ``args``; returns its output registers here."""
        where = list(args)
        for instr in program.instrs:
            self.instrs.append(Instr(instr.opcode, tuple(where[a] for a in instr.args), instr.imm))
            where.append(len(self.inputs) + len(self.instrs) - 1)
        return tuple(where[r] for r in program.outputs)

    def build(self, *outputs: int) -> Program:
        return Program(self.inputs, tuple(self.instrs), outputs).simplified()


def identity(kind: str = "f") -> Program:
    """The program that returns its only input."""
    return Program((kind,), (), (0,))


def compose(first: Program, second: Program, slot: int) -> Program:
    """``second`` with its input ``slot`` computed by ``first`` (its main output).

    Inputs of the result: those of ``second`` before ``slot``, all of ``first``, those of ``second``
    after ``slot``.
    """
    before, after = second.inputs[:slot], second.inputs[slot + 1 :]
    b = Builder((*before, *first.inputs, *after))
    start = len(before)
    stop = start + len(first.inputs)
    middle = b.inline(first, range(start, stop))[0]
    args = [*range(start), middle, *range(stop, stop + len(after))]
    return b.build(*b.inline(second, args))
