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
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from nrt.dtypes import BYTES, FP8E4M3, FP32, FP64, DType
from nrt.ir.graph import Graph
from nrt.ir.op import Array
from nrt.ir.ops import AveragePool, Conv, ConvTranspose, MatMul, MaxPool
from nrt.ir.pointwise import Program
from nrt.ir.value import Node, Value
from nrt.passes.pattern import Match, Pat, Rest, Rule, RulePass
from nrt.passes.requantize_program import (
    Scaled,
    final_factor,
    machine_cost,
    scaled,
    without_implied_clamps,
)

__all__ = ["FoldRequantize"]

_STORE_BYTES = (Conv, ConvTranspose, MatMul, AveragePool, MaxPool)
"""Ops that may end in an epilogue and a store that saturates."""


def _epilogue(node: Node) -> Program | None:
    """The program before a store that saturates."""
    op: Any = node.op
    program: Program | None = op.epilogue
    return program if node.outputs[0].dtype in (*BYTES, FP8E4M3) else None


def _has_implied_clamp(node: Node) -> bool:
    program = _epilogue(node)
    if program is None:
        return False
    return without_implied_clamps(program, node.outputs[0].dtype) != program


def _ends_in_factor(node: Node) -> bool:
    program = _epilogue(node)
    return program is not None and final_factor(program) is not None


class _DropClamps(Rule):
    """``store(max(x, lo)) = store(x)``."""

    pattern = Pat(_STORE_BYTES, Rest("inputs"), where=_has_implied_clamp)

    def rewrite(self, graph: Graph, match: Match) -> str:
        node = match.root
        op: Any = node.op
        program = without_implied_clamps(op.epilogue, node.output.dtype)
        graph.replace_node(node, replace(op, epilogue=program), node.inputs)
        return f"its store as {node.output.dtype} saturates as clamps of its epilogue do"


class _IntoConstants(Rule):
    """``m · (s · x + b) = (m · s) · x + m · b``."""

    pattern = Pat(_STORE_BYTES, Rest("inputs"), where=_ends_in_factor)

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
            if not _in_range(np.asarray(number), factor, _real(node)):
                return f"{number:g} times {factor:g} leaves the range of {_real(node)}"
        for register in sorted(found.inputs):
            value = _operand(node, register)
            assert value.constant is not None
            if not _in_range(value.constant, factor, _wide(value.dtype)):
                return f"'{value.name}' times {factor:g} leaves the range of {_wide(value.dtype)}"
        return None

    def rewrite(self, graph: Graph, match: Match) -> str:
        node = match.root
        op: Any = node.op
        factor, found = _factor(node), _scaled(node)
        inputs = list(node.inputs)
        for register in found.inputs:
            value = _operand(node, register)
            assert value.constant is not None
            data = (value.constant.astype(np.float64) * factor).astype(_wide(value.dtype).numpy)
            new = graph.add_constant(f"{value.name}.requantized", data, value.layout)
            inputs[_first(node) + register - 1] = new
        graph.replace_node(node, replace(op, epilogue=_ended(node, found)), inputs)
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
    known = [
        r
        for r, kind in enumerate(program.inputs)
        if r > 0 and kind == "f" and _operand(node, r).is_constant
    ]
    return scaled(program, *found, known, _real(node))


def _ended(node: Node, found: Scaled) -> Program:
    return without_implied_clamps(found.program, node.output.dtype)


def _first(node: Node) -> int:
    """Slot of the epilogue's first operand: its operands are the last inputs."""
    op: Any = node.op
    return len(node.inputs) - (len(op.epilogue.inputs) - 1)


def _operand(node: Node, register: int) -> Value:
    return node.inputs[_first(node) + register - 1]


def _wide(dtype: DType) -> DType:
    """The type of a scaled constant: bytes are rounded finer than fp16 rounds its numbers."""
    return dtype if dtype is FP64 else FP32


def _real(node: Node) -> DType:
    """The type that an epilogue computes in."""
    return FP64 if any(v.dtype is FP64 for v in node.inputs) else FP32


def _in_range(array: Array, factor: float, dtype: DType) -> bool:
    """Whether ``array`` times ``factor`` is finite as ``dtype``, and no normal number is lost."""
    tiny = np.finfo(dtype.numpy).tiny
    wide = np.asarray(array, np.float64)
    with np.errstate(over="ignore"):
        product = (wide * factor).astype(dtype.numpy)
    lost = (np.abs(product) < tiny) & (np.abs(wide) >= tiny)
    return bool(np.isfinite(product).all() and not lost.any())


@dataclass(frozen=True)
class FoldRequantize(RulePass):
    """See the module."""

    name: ClassVar[str] = "fold-requantize"

    def rules(self) -> tuple[Rule, ...]:
        return (_DropClamps(), _IntoConstants())
