"""One epilogue for several: what differs between siblings becomes a vector of channels.

Two programs of the same instructions differ at most in constants, and a constant that differs is an
operand with one value per channel. Chains, programs that do one step after another to the
accumulator, may also differ in steps: one that a sibling lacks does nothing there with the right
operand, exactly, for every number, infinity and NaN::

    max(a + b, 0)      a + c         ->    max(a + [b | c], [0 … | -inf …])
    min(max(a, 0), 6)  max(a, 0)     ->    min(max(a, 0), [6 … | inf …])
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nrt.ir.op import Array
from nrt.ir.ops.common import kind_of
from nrt.ir.pointwise import Builder, Program
from nrt.ir.value import Value

__all__ = ["Ending", "unified"]

Operand = Array | Value
"""A vector with one element per channel, or a value that is the same for all channels."""


@dataclass(frozen=True, eq=False)
class Ending:
    """The epilogue of a sibling.

    Attributes:
        program: register 0 is the accumulator.
        operands: what registers 1 and up hold.
        channels: number of output channels.
    """

    program: Program
    operands: tuple[Operand, ...]
    channels: int


def unified(endings: Sequence[Ending]) -> Ending | str:
    """The epilogue of the siblings as one, over all their channels in order; or why there is none.

    Its operands of one element per channel come as vectors.
    """
    same = _same_instructions(endings)
    return _as_chains(endings) if same is None else same


class _Writer:
    """A program under construction, with the operands that it turns out to need."""

    def __init__(self, endings: Sequence[Ending]) -> None:
        self.sizes = [e.channels for e in endings]
        self.operands: list[Operand] = []
        self.kinds = ["f"]

    def operand(self, items: Sequence[Operand | float]) -> int | None:
        """The register of an operand, given per sibling; None where it cannot be one operand."""
        if all(item is items[0] for item in items) and isinstance(items[0], Value):
            return self._input(items[0], kind_of(items[0].dtype))
        vectors = []
        for size, item in zip(self.sizes, items, strict=True):
            if isinstance(item, Value):
                return None
            vectors.append(item if isinstance(item, np.ndarray) else np.full(size, item, "f"))
        kinds = {"i" if v.dtype.kind in "iu" else v.dtype.kind for v in vectors}
        if kinds & {"i", "b"} and len(kinds) > 1:
            return None
        vector = _joined(vectors)
        return self._input(vector, kinds.pop() if kinds & {"i", "b"} else "f")

    def _input(self, operand: Operand, kind: str) -> int:
        self.operands.append(operand)
        self.kinds.append(kind)
        return len(self.kinds) - 1


def _joined(vectors: Sequence[Array]) -> Array:
    dtypes = {v.dtype for v in vectors}
    if len(dtypes) == 1:
        return np.concatenate(vectors)
    wide = np.float64 if np.dtype(np.float64) in dtypes else np.float32
    return np.concatenate([v.astype(wide) for v in vectors])


# -- equal instructions ----------------------------------------------------------------------------


def _same_instructions(endings: Sequence[Ending]) -> Ending | str | None:
    """The common epilogue of programs that differ in constants alone; None if they do not."""
    first = endings[0].program
    for ending in endings:
        program = ending.program
        if (program.inputs, program.outputs) != (first.inputs, first.outputs):
            return None
        if [(i.opcode, i.args) for i in program.instrs] != [
            (i.opcode, i.args) for i in first.instrs
        ]:
            return None
        if program.kinds != first.kinds:
            return None
    writer = _Writer(endings)
    registers: dict[int, int] = {0: 0}
    for slot in range(len(first.inputs) - 1):
        register = writer.operand([e.operands[slot] for e in endings])
        if register is None:
            return _unlike(endings[0].operands[slot], [e.operands[slot] for e in endings])
        registers[slot + 1] = register
    start = len(first.inputs)
    for index, instr in enumerate(first.instrs):
        numbers = [e.program.instrs[index].imm for e in endings]
        if instr.opcode == "const" and len({repr(n) for n in numbers}) > 1:
            floats = [n for n in numbers if isinstance(n, float)]
            register = writer.operand(floats) if len(floats) == len(numbers) else None
            if register is None:
                return f"constants {numbers} of the epilogues are no floats"
            registers[start + index] = register
    b = Builder(writer.kinds)
    for index, instr in enumerate(first.instrs):
        if start + index in registers:
            continue
        if instr.opcode == "const":
            assert instr.imm is not None
            registers[start + index] = b.const(instr.imm)
        else:
            registers[start + index] = b(instr.opcode, *(registers[a] for a in instr.args))
    return _ending(b, registers[first.outputs[0]], writer)


def _ending(b: Builder, result: int, writer: _Writer) -> Ending:
    return Ending(b.build(result), tuple(writer.operands), sum(writer.sizes))


def _unlike(operand: Operand | float, all_: Sequence[Operand | float]) -> str:
    found = next((o for o in (operand, *all_) if isinstance(o, Value)), None)
    if found is None:
        return "the operands of the epilogues have different types"
    return f"an epilogue reads '{found.name}', which the others do not"


# -- chains ----------------------------------------------------------------------------------------

_NEUTRAL: dict[tuple[str, int], float] = {
    # -0.0 is what leaves 0.0 and -0.0 as they are.
    ("add", 0): -0.0,
    ("sub", 0): 0.0,
    ("mul", 0): 1.0,
    ("div", 0): 1.0,
    ("max", 0): -math.inf,
    ("min", 0): math.inf,
}
"""Step -> the operand with which it does nothing."""

_COMMUTES = ("add", "mul", "max", "min")

Token = tuple[str, int]
"""Opcode, and the argument that is the running value."""


class _Missing:
    """Stands for the operand of a step that a sibling does not have."""


_MISSING = _Missing()
Entry = Operand | float | None | _Missing
"""Operand of a step; None of a step that has none."""


def _chain(ending: Ending) -> list[tuple[Token, Entry]] | None:
    """The steps of a program that does one after another to the accumulator."""
    program = ending.program
    constants: dict[int, float] = {}
    steps: list[tuple[Token, Entry]] = []
    running = 0
    for register, instr in enumerate(program.instrs, len(program.inputs)):
        if instr.opcode == "const":
            if not isinstance(instr.imm, float):
                return None
            constants[register] = instr.imm
            continue
        others = [a for a in instr.args if a != running]
        if len(instr.args) - len(others) != 1 or len(others) > 1:
            return None
        entry: Entry = None
        if others:
            (other,) = others
            if other in constants:
                entry = constants[other]
            elif 0 < other < len(program.inputs):
                entry = ending.operands[other - 1]
            else:
                return None
        slot = 0 if instr.opcode in _COMMUTES else instr.args.index(running)
        steps.append(((instr.opcode, slot), entry))
        running = register
    return steps if program.outputs[0] == running else None


def _as_chains(endings: Sequence[Ending]) -> Ending | str:
    texts = dict.fromkeys(e.program.text() for e in endings)
    differ = f"the epilogues differ: {' and '.join(repr(t) for t in texts)}"
    rows: list[tuple[Token, list[Entry]]] = []
    for count, ending in enumerate(endings):
        chain = _chain(ending)
        if chain is None:
            return differ
        rows = _aligned(rows, chain, count)
    writer = _Writer(endings)
    plan: list[tuple[Token, int | float | None]] = []
    for token, entries in rows:
        if any(e is _MISSING for e in entries) and token not in _NEUTRAL:
            return differ
        if all(e is None for e in entries):
            plan.append((token, None))
            continue
        items = [_NEUTRAL[token] if isinstance(e, _Missing) else e for e in entries]
        present = [e for e in items if e is not None]
        if len({repr(e) for e in present if isinstance(e, float)}) == 1 and all(
            isinstance(e, float) for e in present
        ):
            assert isinstance(present[0], float)
            plan.append((token, present[0]))
            continue
        register = writer.operand(present)
        if register is None:
            return _unlike(present[0], present)
        plan.append((token, register))
    b = Builder(writer.kinds)
    running = 0
    for (opcode, slot), source in plan:
        args = [running]
        if source is not None:
            args.insert(1 - slot, b.const(source) if isinstance(source, float) else source)
        running = b(opcode, *args)
    return _ending(b, running, writer)


def _aligned(
    rows: list[tuple[Token, list[Entry]]], chain: list[tuple[Token, Entry]], count: int
) -> list[tuple[Token, list[Entry]]]:
    """``rows`` with one more sibling's steps: the shortest sequence that holds both in order."""
    n, m = len(rows), len(chain)
    common = [[0] * (m + 1) for _ in range(n + 1)]
    for i in range(n - 1, -1, -1):
        for j in range(m - 1, -1, -1):
            common[i][j] = (
                1 + common[i + 1][j + 1]
                if rows[i][0] == chain[j][0]
                else max(common[i + 1][j], common[i][j + 1])
            )
    found: list[tuple[Token, list[Entry]]] = []
    i = j = 0
    while i < n or j < m:
        if i < n and j < m and rows[i][0] == chain[j][0]:
            found.append((rows[i][0], [*rows[i][1], chain[j][1]]))
            i, j = i + 1, j + 1
        elif j == m or (i < n and common[i + 1][j] >= common[i][j + 1]):
            found.append((rows[i][0], [*rows[i][1], _MISSING]))
            i += 1
        else:
            missing: list[Entry] = [_MISSING] * count
            found.append((chain[j][0], [*missing, chain[j][1]]))
            j += 1
    return found
