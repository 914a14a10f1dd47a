"""A graph as text: one line per constant and node, stable from run to run.

::

    graph tiny (%x: fp32[1,3,8,8]) -> (probabilities: %y)
      %w: fp32[4,3,3,3] = const
      %y: fp32[1,4,4,4]{nhwc} = Conv(%x, %w; strides=(2, 2), pads=(1, 1, 1, 1)) # /conv1/Conv

Braces show a memory layout other than row-major; attributes appear where they are not the default;
the comment names the model's own nodes.
"""

from __future__ import annotations

from dataclasses import MISSING, fields
from typing import Any

from nrt.ir.graph import Graph
from nrt.ir.op import Op
from nrt.ir.pointwise import Program
from nrt.ir.value import NHWC, Layout, Node, Value

__all__ = ["layout_text", "node_text", "op_text", "programs_text", "to_text"]


def to_text(graph: Graph) -> str:
    """The whole graph: header, constants in order of creation, nodes in topological order."""
    inputs = ", ".join(_typed(v) for v in graph.inputs)
    outputs = ", ".join(f"{name}: %{v.name}" for name, v in graph.outputs.items())
    lines = [f"graph {graph.name} ({inputs}) -> ({outputs})"]
    lines.extend(f"  {_constant(v)}" for v in graph.constants)
    lines.extend(f"  {node_text(node)}" for node in graph.nodes)
    return "\n".join(lines) + "\n"


def node_text(node: Node) -> str:
    """One node with the types of its outputs."""
    left = ", ".join(_typed(v) for v in node.outputs)
    arguments = ", ".join(f"%{v.name}" for v in node.inputs)
    attributes = _attributes(node.op)
    inner = "; ".join(part for part in (arguments, attributes) if part)
    comment = f" # {', '.join(node.origin)}" if node.origin else ""
    return f"{left} = {node.op.name}({inner}){comment}"


def op_text(op: Op) -> str:
    """An op with those attributes that are not the default: ``Conv(strides=(2, 2))``."""
    return f"{op.name}({_attributes(op)})"


def programs_text(op: Op) -> str:
    """The pointwise programs of an op, ``[max(x0, 0.0)]``; nothing if there is none.

    A prologue stands before the epilogue: ``[prologue: exp(x0) | max(x0, 0.0)]``.
    """
    shown = []
    for field in ("prologue", "epilogue", "body"):
        program = getattr(op, field, None)
        if isinstance(program, Program):
            shown.append(f"prologue: {program.text()}" if field == "prologue" else program.text())
    return f"[{' | '.join(shown)}]" if shown else ""


def _attributes(op: Op) -> str:
    shown = []
    for field in fields(op):
        value = getattr(op, field.name)
        if field.default is MISSING or value != field.default:
            shown.append(f"{field.name}={_attribute(value)}")
    return ", ".join(shown)


def _attribute(value: Any) -> str:
    if isinstance(value, Program):
        return f"[{value.text()}]"
    return str(value)


def _constant(value: Value) -> str:
    array = value.constant
    assert array is not None
    # A scalar is worth its few characters: most are the k of a multiplication.
    content = f"const {array.reshape(-1)[0]}" if array.size == 1 else "const"
    return f"{_typed(value)} = {content}"


def _typed(value: Value) -> str:
    return f"%{value.name}: {value.type}{layout_text(value.layout)}"


def layout_text(layout: Layout | None) -> str:
    """``{nhwc}``, ``{0,2,1}``; nothing for row-major."""
    if layout is None:
        return ""
    if layout == NHWC:
        return "{nhwc}"
    return "{" + ",".join(map(str, layout)) + "}"
