"""remove-identities: what changes nothing is not computed.

    f(x) = x    reshape(reshape(x)) = reshape(x)    transpose_q(transpose_p(x)) = transpose_pq(x)
    concat(concat(x, y), z) = concat(x, y, z)

::

    before   %a = Dropout(%x)   %b = Reshape(%a; (2, 6))   %c = Reshape(%b; (12,))   %y = Mul(%c, 1)
    after    %y = Reshape(%x; (12,))
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from nrt.ir.graph import Graph
from nrt.ir.layout import same_memory
from nrt.ir.op import Op
from nrt.ir.ops import (
    Add,
    AveragePool,
    Cast,
    Clip,
    Concat,
    Div,
    Dropout,
    Expand,
    Identity,
    Max,
    MaxPool,
    Min,
    Mul,
    Pad,
    Pointwise,
    Pow,
    Reduce,
    Reformat,
    Reshape,
    Resize,
    Slice,
    Split,
    Sub,
    Transpose,
)
from nrt.ir.value import Node, Value
from nrt.passes.pattern import Anywhere, Match, Pat, Rest, Rule, RulePass, Var

__all__ = ["RemoveIdentities"]


def _same_type(node: Node) -> bool:
    x, y = node.inputs[0], node.outputs[0]
    return len(node.outputs) == 1 and x.type == y.type and same_memory(x.shape, x.layout, y.layout)


def _unit_window(op: Any) -> bool:
    return set(op.kernel) == {1} and set(op.strides) == {1} and set(op.pads) == {0}


def _does_nothing(node: Node) -> bool:
    """Whether the node returns its only input; `_same_type` holds already."""
    op: Any = node.op
    match op:
        case Transpose():
            return tuple(op.perm) == tuple(range(len(op.perm)))
        case Slice():
            return all(s > 0 for s in op.steps)
        case Pad():
            return not any(op.pads)
        case MaxPool() | AveragePool():
            return _unit_window(op) and op.epilogue is None
        case Resize():
            return all(s == 1.0 for s in op.scales)
        case Reduce():
            # Nothing to reduce: the dimensions have one element each.
            plain = op.prologue is None and op.epilogue is None
            return plain and op.kind in ("mean", "sum", "max", "min", "prod")
        case Clip():
            return op.min is None and op.max is None
        case Pointwise():
            return not op.body.instrs
        case Concat() | Max() | Min():
            return len(node.inputs) == 1
        case _:
            return True


_SUSPECTS: tuple[type[Op], ...] = (
    Identity,
    Dropout,
    Reshape,
    Transpose,
    Slice,
    Pad,
    Expand,
    Concat,
    Split,
    Cast,
    Clip,
    Reformat,
    MaxPool,
    AveragePool,
    Resize,
    Reduce,
    Pointwise,
    Max,
    Min,
)


class _NoOperation(Rule):
    """``f(x) = x``."""

    pattern = Pat(
        _SUSPECTS, Rest("inputs"), where=lambda node: _same_type(node) and _does_nothing(node)
    )

    def rewrite(self, graph: Graph, match: Match) -> str:
        return _bypass(graph, match.root, match.rest["inputs"][0])


def _neutral_slot(node: Node) -> int | None:
    """The slot whose constant leaves the other operand as it is, if there is one."""
    op = node.op
    neutral = 0.0 if isinstance(op, (Add, Sub)) else 1.0
    slots = (1, 0) if isinstance(op, (Add, Mul)) else (1,)
    for slot in slots:
        array, other = node.inputs[slot].constant, node.inputs[1 - slot]
        if array is not None and other.type == node.output.type and np.all(array == neutral):
            return slot
    return None


class _NeutralOperand(Rule):
    """``x + 0 = x - 0 = x · 1 = x / 1 = x^1 = x``, where broadcasting does not enlarge x."""

    pattern = Pat(
        (Add, Sub, Mul, Div, Pow),
        Rest("operands"),
        where=lambda node: _neutral_slot(node) is not None,
    )

    def rewrite(self, graph: Graph, match: Match) -> str:
        slot = _neutral_slot(match.root)
        assert slot is not None
        return _bypass(graph, match.root, match.rest["operands"][1 - slot])


class _MergeReshapes(Rule):
    """``reshape(reshape(x)) = reshape(x)``; the inner one may live on for other users."""

    pattern = Pat(Reshape, Pat(Reshape, Var("x"), name="inner"))

    def rewrite(self, graph: Graph, match: Match) -> str:
        inner = match.nodes["inner"]
        graph.replace_node(match.root, match.root.op, [match.values["x"]], also=[inner])
        return f"merged with {inner} before it"


class _MergeTransposes(Rule):
    """``transpose_q(transpose_p(x)) = transpose_r(x)`` with ``r[i] = p[q[i]]``."""

    pattern = Pat(Transpose, Pat(Transpose, Var("x"), name="inner"), name="outer")

    def rewrite(self, graph: Graph, match: Match) -> str:
        inner = match.nodes["inner"]
        perm = tuple(match.op("inner").perm[i] for i in match.op("outer").perm)
        graph.replace_node(match.root, Transpose(perm), [match.values["x"]], also=[inner])
        return f"merged with {inner} before it"


def _moves_unit_dimensions(node: Node) -> bool:
    op: Any = node.op
    shape = node.inputs[0].shape
    moved = [d for d in op.perm if shape[d] != 1]
    return moved == sorted(moved) and node.output.layout is None


class _UnitTranspose(Rule):
    """A Transpose that moves only dimensions of size 1 is a Reshape, and merges as one."""

    pattern = Pat(Transpose, Var("x"), where=_moves_unit_dimensions)

    def rewrite(self, graph: Graph, match: Match) -> str:
        graph.replace_node(match.root, Reshape(match.root.output.shape), [match.values["x"]])
        return "moves only dimensions of size 1: became a Reshape"


class _MergeConcats(Rule):
    """``concat(concat(x, y), z) = concat(x, y, z)`` along one dimension: x and y are written once.

    The inner one may live on for other users: it then is a piece of the outer one's memory.
    """

    pattern = Pat(Concat, Anywhere(Pat(Concat, Rest("parts"), name="inner")))

    def check(self, graph: Graph, match: Match) -> str | None:
        outer, inner = match.root, match.nodes["inner"]
        value = inner.output
        rank = len(value.shape)
        axes = match.op("inner").axis % rank, outer.op.axis % rank  # type: ignore[attr-defined]
        if axes[0] != axes[1]:
            return f"{inner} before it joins along dimension {axes[0]}, it along {axes[1]}"
        if graph.is_output(value):
            return f"the result of {inner} is an output of the graph, with memory of its own"
        if outer.inputs.count(value) > 1:
            return f"it joins the result of {inner} with itself"
        if not same_memory(value.shape, value.layout, outer.output.layout):
            return f"{inner} before it has another layout"
        return None

    def rewrite(self, graph: Graph, match: Match) -> str:
        inner = match.nodes["inner"]
        inputs: list[Value] = []
        for value in match.root.inputs:
            inputs += inner.inputs if value is inner.output else (value,)
        graph.replace_node(match.root, match.root.op, inputs, also=[inner])
        return f"merged with {inner} before it"


def _bypass(graph: Graph, node: Node, value: Value) -> str:
    graph.replace_value(node.output, value)
    graph.remove_node(node)
    return "returns its input"


@dataclass(frozen=True)
class RemoveIdentities(RulePass):
    """See the module."""

    name: ClassVar[str] = "remove-identities"

    def rules(self) -> tuple[Rule, ...]:
        return (
            _NoOperation(),
            _NeutralOperand(),
            _MergeReshapes(),
            _MergeTransposes(),
            _MergeConcats(),
            _UnitTranspose(),
        )
