"""sink-reshape: a Reshape between a matrix product and the arithmetic on it moves behind that.

    f(reshape(a), r) = reshape(f(a, reshape⁻¹(r)))

::

    before   %a = MatMul(%x, %w)   %b = Reshape(%a)              %y = Add(%b, %r)
    after    %a = MatMul(%x, %w)   %s = Reshape(%r)   %b = Add(%a, %s)   %y = Reshape(%b)

A Reshape of row-major memory is only a view, but it stands in the way of an epilogue. The other
operands must have the full shape, one element, or only a last dimension that the Reshape keeps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from nrt.ir.graph import Graph
from nrt.ir.ops import Elementwise, MatMul, Pointwise, Reshape
from nrt.ir.value import Value
from nrt.passes.pattern import Anywhere, Match, Pat, Rest, Rule, RulePass

__all__ = ["SinkReshape"]


class _Sink(Rule):
    pattern = Pat(
        Elementwise,
        Anywhere(
            Pat(
                Reshape,
                Pat((MatMul, Pointwise), Rest("operands"), name="source", only_use=True),
                name="reshape",
                only_use=True,
            )
        ),
    )

    def check(self, graph: Graph, match: Match) -> str | None:
        before = match.nodes["source"].output.shape
        reshaped = match.nodes["reshape"].output
        after = match.root.output.shape
        if reshaped.shape != after:
            return f"broadcasting enlarges {list(reshaped.shape)} to {list(after)}"
        if len(before) == 0:
            return "a scalar has no last dimension"
        for value in match.root.inputs:
            if value is not reshaped and self._moved_shape(value, before, after) is None:
                return (
                    f"'{value.name}' of shape {list(value.shape)} does not broadcast alike to "
                    f"{list(before)} and {list(after)}"
                )
        return None

    @staticmethod
    def _moved_shape(
        value: Value, before: tuple[int, ...], after: tuple[int, ...]
    ) -> tuple[int, ...] | None:
        """The shape in which ``value`` broadcasts to ``before`` as it does to ``after`` now."""
        if value.shape == after:
            return before
        if math.prod(value.shape) == 1:
            return (1,)
        if before[-1] == after[-1] == math.prod(value.shape) == value.shape[-1]:
            return (before[-1],)
        return None

    def rewrite(self, graph: Graph, match: Match) -> str:
        outer, reshape = match.root, match.nodes["reshape"]
        source = reshape.inputs[0]
        after = outer.output.shape
        inputs = []
        for value in outer.inputs:
            if value is reshape.output:
                inputs.append(source)
                continue
            shape = self._moved_shape(value, source.shape, after)
            assert shape is not None
            inputs.append(_reshaped(graph, value, shape))
        moved = graph.add_node(outer.op, inputs, name=f"{outer.name}.flat", origin=outer.origin)
        graph.replace_node(outer, Reshape(after), [moved.output], also=[reshape], name=reshape.name)
        return f"moved before {reshape}"


def _reshaped(graph: Graph, value: Value, shape: tuple[int, ...]) -> Value:
    if value.shape == shape:
        return value
    if value.constant is not None:
        return graph.add_constant(value.name, value.constant.reshape(shape))
    return graph.add_node(Reshape(shape), [value], name=f"{value.name}.flat").output


@dataclass(frozen=True)
class SinkReshape(RulePass):
    """See the module."""

    name: ClassVar[str] = "sink-reshape"

    def rules(self) -> tuple[Rule, ...]:
        return (_Sink(),)
