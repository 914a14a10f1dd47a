"""ONNX nodes of ops and pointwise functions that a user registered."""

from __future__ import annotations

import types
import typing
from collections.abc import Callable
from dataclasses import MISSING, Field, fields
from typing import Any

from nrt.dtypes import DType, dtype_from_onnx
from nrt.errors import ImportModelError
from nrt.extensions.pointwise import PointwiseFunction
from nrt.extensions.registry import registry
from nrt.frontend.onnx_node import Converted, NodeContext
from nrt.ir.op import Op

__all__ = ["registered"]


def registered(domain: str, op_type: str) -> Callable[[NodeContext], Converted] | None:
    """The converter of what is registered for nodes of ``domain`` (canonical), or None."""
    op = registry.op(domain, op_type)
    if op is not None:
        return _op(op)
    function = registry.pointwise_function(domain, op_type)
    return _pointwise(function) if function is not None else None


def _pointwise(function: PointwiseFunction) -> Callable[[NodeContext], Converted]:
    def convert(n: NodeContext) -> Converted:
        inputs = n.inputs()
        n.only_first_output()
        op = function.op([v.dtype for v in inputs], **n.attributes)
        return n.emit(op, *inputs)

    return convert


def _op(kind: type[Op]) -> Callable[[NodeContext], Converted]:
    def convert(n: NodeContext) -> Converted:
        hints = typing.get_type_hints(kind)
        known = {field.name: field for field in fields(kind)}
        unknown = sorted(set(n.attributes) - set(known))
        if unknown:
            raise ImportModelError(
                f"{n}: attribute {unknown[0]} is unknown; {kind.registered_as} has "
                f"{', '.join(known) or 'none'}"
            )
        values = {
            name: _attribute(n, name, n.attributes[name], hints[name])
            for name, field in known.items()
            if _given(n, field)
        }
        op = kind(**values)
        if len(n.outputs) > op.output_count():
            raise ImportModelError(
                f"{n}: has {len(n.outputs)} outputs, {kind.registered_as} gives {op.output_count()}"
            )
        return n.emit_all(op, *n.inputs())

    return convert


def _given(n: NodeContext, field: Field[Any]) -> bool:
    if field.name in n.attributes:
        return True
    if field.default is MISSING and field.default_factory is MISSING:
        raise ImportModelError(f"{n}: attribute {field.name} is missing and has no default")
    return False


def _attribute(n: NodeContext, name: str, value: Any, hint: Any) -> Any:
    """An attribute of the node as the op's annotation wants it."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for option in options:
        found = _as(value, option)
        if found is not None:
            return found
    raise ImportModelError(f"{n}: attribute {name} is {value!r}, expected {hint}")


def _as(value: Any, hint: Any) -> Any:
    """``value`` as ``hint``; None where it is of another type. ONNX has no bool and no DType."""
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, list):
            return None
        items = [_as(v, typing.get_args(hint)[0]) for v in value]
        return None if None in items else tuple(items)
    if hint is bool:
        return bool(value) if isinstance(value, int) and value in (0, 1) else None
    if hint is float:
        return float(value) if isinstance(value, int | float) else None
    if hint is DType:
        return dtype_from_onnx(value) if isinstance(value, int) else None
    return value if hint in (int, str) and isinstance(value, hint) else None
