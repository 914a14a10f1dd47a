"""The mean of dequantized numbers is that of the integers, scaled.

    average((q - z) · s)  =  (average(q) - z) · s

The mean of bytes is a float, which the epilogue scales; what quantizes it again joins that
epilogue, so that one kernel reads bytes and stores bytes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from nrt.dtypes import BYTES
from nrt.ir.graph import Graph
from nrt.ir.ops import AveragePool, Dequantize
from nrt.ir.pointwise import Builder, identity
from nrt.passes.grid import grid_of
from nrt.passes.pattern import Match, Pat, Rest, Rule

__all__ = ["AverageOfIntegers"]


class AverageOfIntegers(Rule):
    """See the module."""

    pattern = Pat(AveragePool, Pat(Dequantize, Rest("q"), name="inner"), Rest("others"))

    def check(self, graph: Graph, match: Match) -> str | None:
        node, inner = match.root, match.nodes["inner"]
        op: Any = node.op
        grid = grid_of(inner)
        if grid is None or not grid.is_uniform:
            return f"{inner} has a scale that differs along a dimension, or is computed"
        if grid.dtype not in BYTES:
            return f"{inner} reads {grid.dtype}, kernels average int8 and uint8"
        if not grid.is_symmetric and op.count_include_pad and any(op.pads):
            return "padding counts as 0, where the integers have a zero point"
        return None

    def rewrite(self, graph: Graph, match: Match) -> str:
        node, inner = match.root, match.nodes["inner"]
        grid = grid_of(inner)
        assert grid is not None
        op: Any = node.op
        own = op.epilogue or identity()
        b = Builder(own.inputs)
        value = 0
        if not grid.is_symmetric:
            value = b("sub", value, b.const(float(grid.zero.reshape(-1)[0])))
        value = b("mul", value, b.const(float(grid.scale.reshape(-1)[0])))
        (result,) = b.inline(own, [value, *range(1, len(own.inputs))])
        new = replace(op, epilogue=b.build(result), out_dtype=node.output.dtype)
        graph.replace_node(node, new, [inner.inputs[0], *node.inputs[1:]])
        return f"averages the integers of {inner}"
