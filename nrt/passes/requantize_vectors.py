"""Rules of fold-requantize for scales and zero points that are constant vectors.

A layer that stores its channels on grids of their own ends in ``round(m · v) + z``, m and z one
number per channel. Clamps go where every channel saturates; z goes into what is added before, m
into constants as a number does.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from nrt.dtypes import BYTES
from nrt.ir.graph import Graph
from nrt.ir.op import Array
from nrt.ir.pointwise import Builder, Program
from nrt.ir.value import Node
from nrt.passes.pattern import Match, Pat, Rest, Rule
from nrt.passes.requantize_ending import (
    Ending,
    addend,
    cost_of_operands,
    ending,
    is_factor,
    scaled_by_operand,
    trimmed,
    with_addend,
    without_clamps_before,
)
from nrt.passes.requantize_operands import (
    STORE_BYTES,
    epilogue,
    fits,
    in_range,
    known,
    operand,
    real,
    replace_constants,
    wide,
)
from nrt.passes.requantize_program import (
    Scaled,
    final_factor,
    instr_at,
    machine_cost,
    number_at,
    without_implied_clamps,
)

__all__ = ["DropClampsOfChannels", "VectorIntoConstants", "ZeroPointIntoConstants"]


def _end(node: Node) -> tuple[Program, Ending] | None:
    """An epilogue before a store that saturates, and how it ends."""
    program = epilogue(node)
    found = ending(program, known(node)) if program is not None else None
    return (program, found) if program is not None and found is not None else None


def _without_clamps(node: Node) -> Program | None:
    """The epilogue without clamps that go: before a number alone `final_factor` sees to them."""
    found = _end(node)
    if found is None:
        return None
    program, end = found
    if end.zero is None and (end.factor is None or final_factor(program) is not None):
        return None
    return without_clamps_before(program, end, node.outputs[0].dtype, real(node))


class DropClampsOfChannels(Rule):
    """``store(m · max(x, lo) + z) = store(m · x + z)``, where every channel saturates."""

    pattern = Pat(STORE_BYTES, Rest("inputs"), where=lambda node: _without_clamps(node) is not None)

    def rewrite(self, graph: Graph, match: Match) -> str:
        node = match.root
        program = _without_clamps(node)
        assert program is not None
        replace_constants(graph, node, program, {})
        return f"its store as {node.output.dtype} saturates as clamps of its epilogue do"


def _has_zero_point(node: Node) -> bool:
    found = _end(node)
    return found is not None and found[1].zero is not None and node.outputs[0].dtype in BYTES


@dataclass(frozen=True, eq=False)
class _Place:
    """Where a zero point goes.

    Attributes:
        way: to a term, from the sum that a factor multiplies; see `addend`.
        slot: the register of the operand that holds the new term; None if it is a number.
        name: of the old term.
        data: the new term in float64.
    """

    way: tuple[int, ...]
    slot: int | None
    name: str
    data: Array


def _place(node: Node, program: Program, end: Ending) -> _Place | None:
    with np.errstate(over="ignore"):
        shift = end.z / end.m
    data = known(node)
    able = [r for r, a in data.items() if program.inputs[r] == "f" and fits(a.shape, shift)]
    found = addend(program, end.value, able)
    if found is None:
        return None
    term, way = found
    number = number_at(program, term)
    if number is None:
        return _Place(way, term, f"'{operand(node, term).name}'", data[term] + shift)
    slot = None if shift.size == 1 else _slot(program, end)
    if shift.size > 1 and (slot is None or not fits(data[slot].shape, shift)):
        return None
    return _Place(way, slot, f"{number:g}", number + shift)


def _slot(program: Program, end: Ending) -> int | None:
    """The register of the operand that a zero point is, if nothing else reads it."""
    if end.zero is None:
        return None
    register = end.zero
    uses = Counter(a for instr in program.instrs for a in instr.args)
    instr = instr_at(program, register)
    if instr is not None and instr.opcode == "to_f" and uses[register] == 1:
        (register,) = instr.args
    return register if register < len(program.inputs) and uses[register] == 1 else None


class ZeroPointIntoConstants(Rule):
    """``round(m · (x + b)) + z = round(m · (x + (b + z / m)))``.

    But for what is halfway between two whole numbers, which goes to the even one, before z is added
    or after; and for the last bits of fp32.
    """

    pattern = Pat(STORE_BYTES, Rest("inputs"), where=_has_zero_point)

    def check(self, graph: Graph, match: Match) -> str | None:
        node = match.root
        program, end = _ends(node)
        place = _place(node, program, end)
        if place is None:
            none = "no constant that could take in its zero point is added before"
            return none if end.z.any() else None
        if not in_range(place.data, 1.0, real(node)):
            return f"{place.name} plus the zero point leaves the range of {real(node)}"
        return None

    def rewrite(self, graph: Graph, match: Match) -> str:
        node = match.root
        program, end = _ends(node)
        place = _place(node, program, end)
        slot = place.slot if place is not None else None
        data = {slot: place.data} if place is not None and slot is not None else {}
        # Integers of a zero point may make room for the new term.
        b = Builder(["f" if r in data else kind for r, kind in enumerate(program.inputs)])
        b.instrs = list(program.instrs)
        value = end.value
        if place is not None:
            number = float(real(node).numpy.type(place.data.reshape(-1)[0]))
            new = slot if slot is not None else b.const(number)
            value = with_addend(b, program, value, place.way, new)
        if end.factor is not None:
            value = b("mul", value, end.factor)
        replace_constants(graph, node, b.build(value), data)
        return "its constants took in the zero point"


def _ends(node: Node) -> tuple[Program, Ending]:
    found = _end(node)
    assert found is not None
    return found


def _last_vector(node: Node) -> tuple[int, int] | None:
    """What an epilogue multiplies last, and the constant operand by which it does."""
    program = epilogue(node)
    if program is None or len(program.outputs) > 1 or final_factor(program) is not None:
        return None
    instr = instr_at(program, program.outputs[0])
    if instr is None or instr.opcode != "mul":
        return None
    constants = known(node)
    for value, factor in (instr.args, instr.args[::-1]):
        # The sums themselves are multiplied where they are.
        if value and factor in constants and program.inputs[factor] == "f":
            return value, factor
    return None


class VectorIntoConstants(Rule):
    """``m · (s · x + b) = (m · s) · x + m · b``, channel by channel.

    Of numbers a 0 stays, and one other may take the place of m, which then is a vector of m times
    the number.
    """

    pattern = Pat(STORE_BYTES, Rest("inputs"), where=lambda node: _last_vector(node) is not None)

    def check(self, graph: Graph, match: Match) -> str | None:
        node = match.root
        _, factor = _factor(node)
        vector, name = known(node)[factor], f"'{operand(node, factor).name}'"
        if not is_factor(vector.astype(np.float64)):
            return f"its last factors, {name}, are not all positive numbers"
        program, _ = _ends(node)
        if sum(i.args.count(factor) for i in program.instrs) > 1:
            return f"its last factors, {name}, are read before too"
        found = _scaled(node)
        if _cost(_ended(node, found)) >= _cost(program):
            return f"multiplying by {name} earlier saves nothing"
        for number in found.numbers:
            if not in_range(np.asarray(number), vector.astype(np.float64), real(node)):
                return f"{number:g} times {name} leaves the range of {real(node)}"
        for register in sorted(found.inputs):
            value = operand(node, register)
            assert value.constant is not None
            if not in_range(value.constant, _vector(node), wide(value.dtype)):
                return f"'{value.name}' times {name} leaves the range of {wide(value.dtype)}"
        return None

    def rewrite(self, graph: Graph, match: Match) -> str:
        node = match.root
        _, factor = _factor(node)
        found, constants = _scaled(node), known(node)
        data = {r: constants[r].astype(np.float64) * _vector(node) for r in found.inputs}
        for number in found.numbers:
            data[factor] = constants[factor].astype(np.float64) * number
        name = operand(node, factor).name
        replace_constants(graph, node, _ended(node, found), data)
        return f"its constants took in the factors '{name}'"


def _factor(node: Node) -> tuple[int, int]:
    found = _last_vector(node)
    assert found is not None
    return found


def _vector(node: Node) -> Array:
    """The last factors in float64, to multiply constants by."""
    return trimmed(known(node)[_factor(node)[1]].astype(np.float64))


def _scaled(node: Node) -> Scaled:
    """The epilogue with its last factors in its constants."""
    program, _ = _ends(node)
    value, factor = _factor(node)
    vector = _vector(node)
    able = [r for r, a in known(node).items() if program.inputs[r] == "f" and fits(a.shape, vector)]
    return scaled_by_operand(program, value, factor, able)


def _ended(node: Node, found: Scaled) -> Program:
    return without_implied_clamps(found.program, node.output.dtype)


def _cost(program: Program) -> int:
    """Instructions, and vectors to load."""
    return machine_cost(program) + cost_of_operands(program)
