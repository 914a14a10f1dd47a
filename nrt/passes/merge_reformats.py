"""merge-reformats: of the Reformats that precision and layout put in, few need a launch.

    r(s(x)) = r(x)    cast(conv(x)) = conv(x; out_dtype)    cast(view(f(x))) = view(cast(f(x)))

::

    before   %a = Reformat(%x; fp16)   %b{nhwc} = Reformat(%a; fp16)
    after    %b{nhwc} = Reformat(%x; fp16)

    before   %a: fp16 = Conv(%x, %w)   %y: fp32 = Reformat(%a; fp32)
    after    %y: fp32 = Conv(%x, %w; out_dtype=fp32)

Two of one value to the same type and layout are one. Dropping the middle of fp32 -> fp16 -> fp32
leaves out a rounding that nothing in the model asked for: casts of the model itself are Cast nodes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from nrt.dtypes import FP8E4M3, DType
from nrt.ir.graph import Graph
from nrt.ir.layout import is_view, same_memory
from nrt.ir.op import Op
from nrt.ir.ops import (
    AveragePool,
    Conv,
    ConvTranspose,
    Elementwise,
    MatMul,
    MaxPool,
    Pointwise,
    PooledMatMul,
    Reduce,
    Reformat,
    Reshape,
    Transpose,
)
from nrt.ir.ops.common import product_type
from nrt.ir.value import Layout, Node, Value
from nrt.passes.base import Note, PassResult
from nrt.passes.fusion import own_program
from nrt.passes.pattern import Match, Pat, Rest, Rule, RulePass, Var

__all__ = ["MergeReformats"]

_CASTS: tuple[type[Op], ...] = (
    AveragePool,
    Conv,
    ConvTranspose,
    Elementwise,
    MatMul,
    MaxPool,
    PooledMatMul,
    Reduce,
)
"""Ops whose result may be stored as another type than they read."""


def _only_casts(node: Node) -> bool:
    x, y = node.inputs[0], node.output
    if x.dtype is FP8E4M3 and y.dtype is not FP8E4M3:
        return False  # a rounding that was asked for would go
    return x.dtype.is_float and y.dtype.is_float and same_memory(x.shape, x.layout, y.layout)


class _Chain(Rule):
    """``r(s(x)) = r(x)``, or x itself if that is as r would have it."""

    pattern = Pat(Reformat, Pat(Reformat, Var("x"), name="inner"))

    def rewrite(self, graph: Graph, match: Match) -> str:
        outer, inner, x = match.root, match.nodes["inner"], match.values["x"]
        y = outer.output
        if x.dtype is y.dtype and same_memory(x.shape, x.layout, y.layout):
            graph.replace_value(y, x)
            graph.remove_dead(outer)
            return f"undid {inner}"
        graph.replace_node(outer, outer.op, [x], also=[inner])
        return f"merged with {inner} before it"


class _IntoProducer(Rule):
    """``cast(f(x)) = f(x; out_dtype)``."""

    pattern = Pat(
        Reformat,
        Pat(_CASTS, Rest("operands"), name="producer", only_use=True),
        where=_only_casts,
    )

    def rewrite(self, graph: Graph, match: Match) -> str:
        producer, dtype = match.nodes["producer"], match.root.output.dtype
        op: Any = producer.op
        if isinstance(op, Elementwise):
            op = Pointwise(own_program(producer), dtype)
        else:
            own = product_type(op.name, producer.inputs[0].dtype, None, None)
            op = replace(op, out_dtype=None if dtype is own else dtype)
        graph.replace_node(match.root, op, producer.inputs, also=[producer], name=producer.name)
        return f"{producer} stores {dtype} itself"


class _AboveView(Rule):
    """``cast(view(f(x))) = view(cast(f(x)))``, so that f can store the type itself."""

    pattern = Pat(
        Reformat,
        Pat(
            (Reshape, Transpose),
            Pat(_CASTS, Rest("operands"), only_use=True),
            name="view",
            only_use=True,
            where=is_view,
        ),
        where=_only_casts,
    )

    def rewrite(self, graph: Graph, match: Match) -> str:
        view = match.nodes["view"]
        source = view.inputs[0]
        dtype = match.root.output.dtype
        cast = graph.add_node(
            Reformat(dtype), [source], name=match.root.name, origin=match.root.origin
        )
        graph.set_layout(cast.output, source.layout)
        graph.replace_node(match.root, view.op, [cast.output], also=[view], name=view.name)
        return f"moved before {view}, which moves no element"


@dataclass(frozen=True)
class MergeReformats(RulePass):
    """See the module."""

    name: ClassVar[str] = "merge-reformats"

    def rules(self) -> tuple[Rule, ...]:
        return (_Chain(), _IntoProducer(), _AboveView())

    def run(self, graph: Graph) -> PassResult:
        shared = self._share(graph)
        result = super().run(graph)
        return PassResult(graph, bool(shared) or result.changed, (*shared, *result.notes))

    def _share(self, graph: Graph) -> tuple[Note, ...]:
        notes = []
        first: dict[tuple[Value, DType, Layout | None], Node] = {}
        for node in graph.nodes:
            if not isinstance(node.op, Reformat):
                continue
            key = (node.inputs[0], node.output.dtype, node.output.layout)
            twin = first.setdefault(key, node)
            if twin is not node:
                notes.append(self.fired(node, f"{twin} is the same"))
                graph.replace_value(node.output, twin.output)
                graph.remove_node(node)
        return tuple(notes)
