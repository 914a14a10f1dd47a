"""A registered op as one ONNX node of its own domain."""

from __future__ import annotations

import types
import typing
from typing import Any

import onnx
from onnx import helper

from nrt.dtypes import DType
from nrt.frontend.onnx_export_node import OPSET, Inexpressible, Writer
from nrt.ir.op import Op
from nrt.ir.value import Node

__all__ = ["domains", "write_registered"]

_KINDS = {
    bool: (onnx.AttributeProto.INT, onnx.AttributeProto.INTS),
    int: (onnx.AttributeProto.INT, onnx.AttributeProto.INTS),
    float: (onnx.AttributeProto.FLOAT, onnx.AttributeProto.FLOATS),
    str: (onnx.AttributeProto.STRING, onnx.AttributeProto.STRINGS),
    DType: (onnx.AttributeProto.INT, onnx.AttributeProto.INTS),
}
"""Type of an attribute -> what ONNX stores one, and several, as."""


def write_registered(w: Writer, node: Node) -> None:
    """The node with its attributes, as any runtime that knows the domain takes it."""
    key = node.op.registered_as
    assert key is not None
    domain, _, op_type = key.rpartition("::")
    if not domain and not onnx.defs.has(op_type, OPSET):
        raise Inexpressible(f"ONNX has no op {op_type}; register it in a domain of your own")
    inputs = [w.tensor(v) for v in node.inputs]
    w.emit_many(op_type, inputs, tuple(w.tensor(v) for v in node.outputs), domain=domain)
    w.nodes[-1].attribute.extend(_attributes(node.op))


def domains(nodes: list[onnx.NodeProto]) -> list[str]:
    """The domains of ``nodes`` beside ai.onnx, each once."""
    return [d for d in dict.fromkeys(n.domain for n in nodes) if d]


def _attributes(op: Op) -> list[onnx.AttributeProto]:
    hints = typing.get_type_hints(type(op))
    return [
        helper.make_attribute(name, _plain(value), attr_type=_kind(value, hints[name]))
        for name, value in op.attributes().items()
        if value is not None
    ]


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    return value.onnx if isinstance(value, DType) else value


def _kind(value: Any, hint: Any) -> int:
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    several = isinstance(value, tuple)
    for option in options:
        of = typing.get_args(option)[0] if typing.get_origin(option) is tuple else option
        if (typing.get_origin(option) is tuple) == several and of in _KINDS:
            return int(_KINDS[of][several])
    raise Inexpressible(f"attribute {value!r} does not fit its annotation {hint}")
