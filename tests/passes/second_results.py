"""A pass that gives products a second result, for tests of what meets such nodes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from nrt.dtypes import FP8E4M3
from nrt.ir.graph import Graph
from nrt.ir.ops import Conv, ConvTranspose, MatMul, Pointwise
from nrt.ir.ops.conv import epilogue_slot
from nrt.ir.pointwise import Builder, identity
from nrt.ir.value import Node, Value
from nrt.passes.base import Note, Pass, PassResult

__all__ = ["SecondResults", "with_second_result"]


@dataclass(frozen=True)
class SecondResults(Pass):
    """Every product of floats gives twice its result as well; one reader of it halves that.

    The network computes what it did: nothing is rounded by a factor of two.
    """

    name: ClassVar[str] = "second-results"

    def run(self, graph: Graph) -> PassResult:
        notes: list[Note] = []
        for node in list(_products(graph)):
            reader, slot = graph.consumers(node.output)[0]
            made = with_second_result(graph, node)
            half = Builder("f")
            program = half.build(half("mul", 0, half.const(0.5)))
            first, second = made.outputs
            name = f"{made.name}.half"
            halved = graph.add_node(Pointwise(program, first.dtype), [second], name=name)
            halved.origin = made.origin
            graph.set_layout(halved.output, first.layout)
            graph.replace_input(reader, slot, halved.output)
            notes.append(self.fired(made, "has a second result"))
        return PassResult(graph, bool(notes), tuple(notes))


def _products(graph: Graph) -> Iterator[Node]:
    for node in graph.nodes:
        if isinstance(node.op, Conv | ConvTranspose | MatMul) and len(node.outputs) == 1:
            y = node.output
            if y.dtype.is_float and y.dtype is not FP8E4M3 and graph.consumers(y):
                yield node


def with_second_result(graph: Graph, node: Node) -> Node:
    """Put in the place of a product one whose second result is twice the first."""
    op: Any = node.op
    slot = epilogue_slot(op)
    program, inputs = op.epilogue, list(node.inputs)
    if program is None and len(inputs) > slot:
        inputs[slot] = _column(graph, inputs[slot], len(node.output.shape) - 2)
        plain = Builder("ff")
        program = plain.build(plain("add", 0, 1))
    program = program or identity()
    b = Builder(program.inputs)
    (y,) = b.inline(program, range(len(program.inputs)))
    double = b.build(y, b("mul", y, b.const(2.0)))
    old = node.output
    made = graph.add_node(
        replace(op, epilogue=double, second_dtype=old.dtype),
        inputs,
        name=node.name,
        origin=node.origin,
        output_names=[f"{old.name}.first", f"{old.name}.second"],
    )
    for value in made.outputs:
        graph.set_layout(value, old.layout)
    graph.replace_value(old, made.outputs[0])
    graph.remove_node(node)
    graph.rename(made, node.name)
    return made


def _column(graph: Graph, bias: Value, dimensions: int) -> Value:
    assert bias.constant is not None
    return graph.add_constant(bias.name, bias.constant.reshape(-1, *[1] * dimensions))
