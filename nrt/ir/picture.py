"""A graph as boxes and arrows: one box per node, input and output; constants stand in the boxes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nrt.drawing import Arrow, Box, Picture
from nrt.ir.graph import Graph
from nrt.ir.op import Op
from nrt.ir.ops import (
    Cast,
    Concat,
    Dropout,
    Elementwise,
    Expand,
    Gather,
    GatherElements,
    Identity,
    MultiPointwise,
    Pad,
    Reformat,
    Reshape,
    Slice,
    Split,
    Transpose,
)
from nrt.ir.pointwise import Program
from nrt.ir.text import layout_text
from nrt.ir.value import Node, Value

__all__ = ["graph_picture", "input_key", "node_box", "node_key", "output_key"]

MOST_CONSTANTS = 3
MOST_ATTRIBUTE = 400
"""Characters of an attribute in a tooltip: a fused program may be pages long."""

_VIEWS: tuple[type[Op], ...] = (Dropout, Identity, Reshape, Slice, Split, Transpose)
_MEMORY: tuple[type[Op], ...] = (Cast, Concat, Expand, Gather, GatherElements, Pad, Reformat)


def graph_picture(graph: Graph) -> Picture:
    """The picture of ``graph``."""
    boxes = [
        Box(input_key(v.name), "input", (v.name, _type(v)), "io", f"input {v.name}\n{_type(v)}")
        for v in graph.inputs
    ]
    boxes += [node_box(node) for node in graph.nodes]
    boxes += [
        Box(output_key(name), "output", _output_lines(name, v), "io", f"output {name}\n{_type(v)}")
        for name, v in graph.outputs.items()
    ]
    arrows = [
        Arrow(source, node_key(node.name), v.name, f"{v.name}: {_type(v)}")
        for node in graph.nodes
        for v in node.inputs
        if (source := _source(v))
    ]
    arrows += [
        Arrow(source, output_key(name), v.name, f"{v.name}: {_type(v)}")
        for name, v in graph.outputs.items()
        if (source := _source(v))
    ]
    return Picture(graph.name, tuple(boxes), tuple(arrows))


def node_key(name: str) -> str:
    """Key of a node's box."""
    return f"node:{name}"


def input_key(name: str) -> str:
    """Key of a graph input's box."""
    return f"input:{name}"


def output_key(name: str) -> str:
    """Key of a graph output's box."""
    return f"output:{name}"


def node_box(node: Node, mark: str = "") -> Box:
    """The box of one node."""
    lines = [node.name]
    lines += [f"→ {_type(v)}" for v in node.outputs[:2]]
    if len(node.outputs) > 2:
        lines.append(f"→ {len(node.outputs) - 2} more")
    programs = [v for v in node.op.attributes().values() if isinstance(v, Program)]
    lines += [program.text() for program in programs]
    constants = [v for v in dict.fromkeys(node.inputs) if v.is_constant]
    shown = constants if len(constants) <= MOST_CONSTANTS else constants[: MOST_CONSTANTS - 1]
    lines += [_constant(v) for v in shown]
    if len(shown) < len(constants):
        lines.append(f"{len(constants) - len(shown)} more constants")
    return Box(node_key(node.name), node.op.name, tuple(lines), kind(node.op), _tooltip(node), mark)


def kind(op: Op) -> str:
    """What an op does, for its color: ``view``, ``memory``, ``pointwise`` or ``compute``."""
    if isinstance(op, _VIEWS):
        return "view"
    if isinstance(op, _MEMORY):
        return "memory"
    return "pointwise" if isinstance(op, Elementwise | MultiPointwise) else "compute"


def _source(value: Value) -> str | None:
    """Key of the box that an arrow for ``value`` starts at; constants have none."""
    if value.producer is not None:
        return node_key(value.producer.name)
    return None if value.is_constant else input_key(value.name)


def _output_lines(name: str, value: Value) -> tuple[str, ...]:
    return (name, _constant(value) if value.is_constant else _type(value))


def _type(value: Value) -> str:
    return f"{value.type}{layout_text(value.layout)}"


def _constant(value: Value) -> str:
    array = value.constant
    if array is not None and array.size == 1:
        return f"{value.name} = {array.reshape(-1)[0]}"
    return f"{value.name}: {_type(value)}"


def _tooltip(node: Node) -> str:
    lines = [f"{node.op.name} {node.name}"]
    lines += [f"{name} = {_attribute(v)}" for name, v in node.op.attributes().items()]
    lines += [f"in {slot}: {_describe(v)}" for slot, v in enumerate(node.inputs)]
    lines += [f"out {slot}: {v.name}: {_type(v)}" for slot, v in enumerate(node.outputs)]
    return "\n".join([*lines, *_origins(node.origin)])


def _describe(value: Value) -> str:
    text = _constant(value)
    if value.is_constant:
        return f"{text} (constant)"
    return text


def _origins(origin: Sequence[str]) -> list[str]:
    return [f"from {', '.join(origin)}"] if origin else []


def _attribute(value: Any) -> str:
    text = value.text() if isinstance(value, Program) else str(value)
    return text if len(text) <= MOST_ATTRIBUTE else f"{text[:MOST_ATTRIBUTE]}…"
