"""fold-requantize: the scale of a result stored as bytes disappears into the epilogue's constants.

    m · (s · x + b) = (m · s) · x + m · b           m · max(x, c) = max(m · x, m · c)        m > 0
    store(max(x, lo)) = store(min(x, hi)) = store(x)               a store saturates to [lo, hi]

::

    before   %y: uint8 = Conv(%x, %w, %s, %b; mul(x0, x1); add(r3, x2); max(r4, 0.0); min(r6, 6.0);
                              mul(r8, 109.0))
    after    %y: uint8 = Conv(%x, %w, %s', %b'; mul(x0, x1); add(r3, x2))     s' = 109 s, b' = 109 b

Of five steps one FMA is left, and layers that differed in m alone share a kernel. Where the
factor meets nothing known, such as the sums themselves, it is multiplied by there, if that saves an
instruction: before an addition it is half of an FMA, before a clamp it may make that superfluous.
Constants are multiplied in float64 and rounded once; those of less than fp32 become fp32. Stores of
fp8 saturate as those of int8 and uint8 do.

Where each channel is stored on a grid of its own, the last factor is a constant vector, and a zero
point, a number or a vector too, is added behind a rounding (`requantize_vectors`)::

    before   %y: int8 = Conv(%x, %w, %s, %b, %m, %z; mul(x0, x1); add(r5, x2); max(r6, 0.0);
                             mul(r8, x3); round(r9); to_f(x4); add(r10, r11))
    after    %y: int8 = Conv(%x, %w, %s', %b'; mul(x0, x1); add(r5, x2))
                                               s' = m s, b' = m (b + z / m), where all z are -128
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from nrt.ir.graph import Graph
from nrt.ir.pointwise import Program
from nrt.ir.value import Node
from nrt.passes.pattern import Match, Pat, Rest, Rule, RulePass
from nrt.passes.requantize_operands import (
    STORE_BYTES,
    epilogue,
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
    machine_cost,
    scaled,
    without_implied_clamps,
)
from nrt.passes.requantize_vectors import (
    DropClampsOfChannels,
    VectorIntoConstants,
    ZeroPointIntoConstants,
)

__all__ = ["FoldRequantize"]


def _has_implied_clamp(node: Node) -> bool:
    program = epilogue(node)
    if program is None:
        return False
    return without_implied_clamps(program, node.outputs[0].dtype) != program


def _ends_in_factor(node: Node) -> bool:
    program = epilogue(node)
    return program is not None and final_factor(program) is not None


class _DropClamps(Rule):
    """``store(max(x, lo)) = store(x)``."""

    pattern = Pat(STORE_BYTES, Rest("inputs"), where=_has_implied_clamp)

    def rewrite(self, graph: Graph, match: Match) -> str:
        node = match.root
        op: Any = node.op
        program = without_implied_clamps(op.epilogue, node.output.dtype)
        graph.replace_node(node, replace(op, epilogue=program), node.inputs)
        return f"its store as {node.output.dtype} saturates as clamps of its epilogue do"


class _IntoConstants(Rule):
    """``m · (s · x + b) = (m · s) · x + m · b``."""

    pattern = Pat(STORE_BYTES, Rest("inputs"), where=_ends_in_factor)

    def check(self, graph: Graph, match: Match) -> str | None:
        node = match.root
        op: Any = node.op
        factor = _factor(node)
        if not (np.isfinite(factor) and factor > 0):
            return f"its last factor is {factor:g}, not a positive number"
        found = _scaled(node)
        if machine_cost(_ended(node, found)) >= machine_cost(op.epilogue):
            return f"multiplying by {factor:g} earlier saves no instruction"
        for number in found.numbers:
            if not in_range(np.asarray(number), factor, real(node)):
                return f"{number:g} times {factor:g} leaves the range of {real(node)}"
        for register in sorted(found.inputs):
            value = operand(node, register)
            assert value.constant is not None
            if not in_range(value.constant, factor, wide(value.dtype)):
                return f"'{value.name}' times {factor:g} leaves the range of {wide(value.dtype)}"
        return None

    def rewrite(self, graph: Graph, match: Match) -> str:
        node = match.root
        factor, found, constants = _factor(node), _scaled(node), known(node)
        data = {r: constants[r].astype(np.float64) * factor for r in found.inputs}
        replace_constants(graph, node, _ended(node, found), data)
        return f"its constants took in the factor {factor:g}"


def _factor(node: Node) -> float:
    op: Any = node.op
    found = final_factor(op.epilogue)
    assert found is not None
    return found[1]


def _scaled(node: Node) -> Scaled:
    """The epilogue with its last factor in its constants."""
    op: Any = node.op
    program: Program = op.epilogue
    found = final_factor(program)
    assert found is not None
    floats = [r for r in known(node) if program.inputs[r] == "f"]
    return scaled(program, *found, floats, real(node))


def _ended(node: Node, found: Scaled) -> Program:
    return without_implied_clamps(found.program, node.output.dtype)


@dataclass(frozen=True)
class FoldRequantize(RulePass):
    """See the module."""

    name: ClassVar[str] = "fold-requantize"

    def rules(self) -> tuple[Rule, ...]:
        return (
            _DropClamps(),
            DropClampsOfChannels(),
            ZeroPointIntoConstants(),
            _IntoConstants(),
            VectorIntoConstants(),
        )
