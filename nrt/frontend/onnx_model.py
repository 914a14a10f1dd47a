"""Import an ONNX model: file -> checked source -> graph.

The story is in `import_model`: read and check (`onnx_load`), fix the input shapes (`onnx_shapes`),
then convert node by node with the table in `onnx_table`. Nodes that cannot be converted do not stop
the walk: all of them are reported in one error.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx

from nrt.errors import ImportModelError, NrtError, UnsupportedOpError
from nrt.frontend.onnx_load import Source, load, one_line
from nrt.frontend.onnx_node import NodeContext, RefusedNodeError
from nrt.frontend.onnx_shapes import Dim, declared_shapes, input_types
from nrt.frontend.onnx_table import canonical_domain, converter
from nrt.frontend.onnx_tensor import read_tensor
from nrt.ir.graph import Graph
from nrt.ir.value import Value

__all__ = ["import_model", "input_shapes"]

# What NumPy and the ops' shape functions raise on attributes that no checker looked at.
_MALFORMED = (ArithmeticError, LookupError, MemoryError, TypeError, ValueError)


def import_model(
    model: str | os.PathLike[str] | bytes | onnx.ModelProto,
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> Graph:
    """Import an ONNX model as a graph with fixed shapes.

    Opsets 7 to the newest that the installed onnx knows. Weights become constants, shape arithmetic
    is folded away, local functions are inlined. Every node keeps the name of the model's node as
    its name and its origin; outputs keep the model's names.

    Args:
        model: path of a file, its bytes, or a loaded model (which is not changed).
        shapes: input name -> full shape, for inputs whose shape the model leaves open; a symbol
            fixed by one input holds for all.

    Returns:
        The graph, not yet rewritten by any pass.

    Raises:
        UnsupportedOpError: some nodes have no counterpart in nrt; lists all of them.
        ImportModelError: the file cannot be read, is not sound, or leaves a dimension open.
    """
    source = load(model)
    return _Importer(source).run(input_types(source.inputs, shapes))


def input_shapes(
    model: str | os.PathLike[str] | bytes | onnx.ModelProto,
) -> dict[str, tuple[Dim, ...] | None]:
    """What the model says of its inputs' shapes: numbers, symbols, None for what is not known.

    Raises:
        UnsupportedOpError, ImportModelError: as `import_model`.
    """
    return declared_shapes(load(model).inputs)


@dataclass
class _Scope:
    """Names that a graph defines; a branch of an If also sees those around it."""

    tensors: Mapping[str, onnx.TensorProto]
    outer: _Scope | None = None
    values: dict[str, Value | None] = field(default_factory=dict)


class _Importer:
    """Walks the nodes of one model; `run` is called once."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.graph = Graph(source.name)
        self.refused: list[tuple[str, str, str, int]] = []
        self.reasons: list[str] = []
        self.names: set[str] = set()
        self.used = frozenset(_used(source.nodes)) | frozenset(source.outputs)

    def run(self, types: Mapping[str, Any]) -> Graph:
        scope = _Scope(self.source.tensors)
        for name, type_ in types.items():
            scope.values[name] = self.graph.add_input(name, type_.shape, type_.dtype)
        self._nodes(self.source.nodes, scope)
        if self.refused:
            raise UnsupportedOpError(self.refused, "\n".join(self.reasons))
        if not self.source.outputs:
            raise ImportModelError("the model has no outputs")
        for name in self.source.outputs:
            value = self._value(name, scope, f"output '{name}'")
            if value is None:
                raise ImportModelError(f"output '{name}' is not computed by any node")
            self.graph.set_output(name, value)
        self.graph.prune()
        return self.graph

    def _nodes(self, nodes: Iterable[onnx.NodeProto], scope: _Scope) -> None:
        for index, node in enumerate(nodes):
            name = self._unique(node.name or f"{node.op_type}_{index}")
            self._node(node, name, scope)

    def _unique(self, name: str) -> str:
        label, count = name, 0
        while label in self.names:
            count += 1
            label = f"{name}.{count}"
        self.names.add(label)
        return label

    def _node(self, node: onnx.NodeProto, name: str, scope: _Scope) -> None:
        domain = canonical_domain(node.domain)
        where = f"{node.op_type} '{name}'"
        args = [self._value(i, scope, where) if i else None for i in node.input]
        opset = self.source.opsets.get(domain, 0)
        convert = converter(domain, node.op_type)
        branches = convert is None and domain == "" and node.op_type == "If"
        try:
            if convert is None and not branches:
                self.refused.append((name, node.op_type, node.domain, opset))
                outputs: Sequence[Value | None] = [None] * len(node.output)
            elif any(a is None and i for a, i in zip(args, node.input, strict=True)):
                # It reads what a refused node would have computed: nothing can be said about it.
                outputs = [None] * len(node.output)
            elif branches:
                outputs = self._branch(node, args, scope)
            else:
                assert convert is not None
                context = NodeContext(
                    graph=self.graph,
                    name=name,
                    op_type=node.op_type,
                    domain=domain,
                    opset=opset,
                    args=tuple(args),
                    outputs=tuple(node.output),
                    attributes=self._attributes(node, where),
                    used=self.used,
                )
                converted = convert(context)
                outputs = (converted,) if isinstance(converted, Value) else converted
        except RefusedNodeError as error:
            self.refused.append((name, node.op_type, node.domain, opset))
            self.reasons.append(f"  {where}: {error}")
            outputs = [None] * len(node.output)
        except NrtError as error:
            text = str(error)
            raise ImportModelError(text if name in text else f"{where}: {text}") from error
        except _MALFORMED as error:
            raise ImportModelError(
                f"{where}: its inputs or attributes make no sense ({one_line(error)})"
            ) from error
        for label, value in zip(node.output, outputs, strict=False):
            if label:
                scope.values[label] = value

    def _branch(
        self, node: onnx.NodeProto, args: Sequence[Value | None], scope: _Scope
    ) -> list[Value | None]:
        """The outputs of the branch of an If that a constant condition takes."""
        condition = args[0].constant if args and args[0] is not None else None
        if condition is None or condition.size != 1:
            raise RefusedNodeError("its condition is computed at run time, expected a constant")
        wanted = "then_branch" if bool(condition.reshape(())) else "else_branch"
        for attribute in node.attribute:
            if attribute.name == wanted:
                body = attribute.g
                inner = _Scope({t.name: t for t in body.initializer}, scope)
                self._nodes(body.node, inner)
                return [self._value(o.name, inner, f"branch {wanted}") for o in body.output]
        raise ImportModelError(f"If '{node.name}': has no {wanted}")

    def _value(self, name: str, scope: _Scope, where: str) -> Value | None:
        """The value called ``name``; None when a refused node would have computed it."""
        at: _Scope | None = scope
        while at is not None:
            if name in at.values:
                return at.values[name]
            if name in at.tensors:
                array = read_tensor(at.tensors[name], self.source.folder)
                value = at.values[name] = self.graph.add_constant(name, array)
                return value
            at = at.outer
        raise ImportModelError(f"{where}: '{name}' is not an input, a weight, or computed before")

    def _attributes(self, node: onnx.NodeProto, where: str) -> dict[str, Any]:
        attributes: dict[str, Any] = {}
        kinds = onnx.AttributeProto
        for a in node.attribute:
            if a.ref_attr_name:
                raise ImportModelError(
                    f"{where}: attribute {a.name} refers to a function's attribute"
                )
            if a.type == kinds.FLOAT:
                attributes[a.name] = float(a.f)
            elif a.type == kinds.INT:
                attributes[a.name] = int(a.i)
            elif a.type == kinds.STRING:
                attributes[a.name] = a.s.decode("utf-8")
            elif a.type == kinds.FLOATS:
                attributes[a.name] = [float(v) for v in a.floats]
            elif a.type == kinds.INTS:
                attributes[a.name] = [int(v) for v in a.ints]
            elif a.type == kinds.STRINGS:
                attributes[a.name] = [s.decode("utf-8") for s in a.strings]
            elif a.type == kinds.TENSOR:
                attributes[a.name] = read_tensor(a.t, self.source.folder)
            else:
                raise RefusedNodeError(
                    f"attribute {a.name} holds a graph, a type or a sparse tensor"
                )
        return attributes


def _used(nodes: Iterable[onnx.NodeProto]) -> set[str]:
    """Every name that a node reads, those of nested graphs included."""
    names: set[str] = set()
    stack = list(nodes)
    while stack:
        node = stack.pop()
        names.update(node.input)
        for attribute in node.attribute:
            stack.extend(attribute.g.node)
            names.update(o.name for o in attribute.g.output)
    names.discard("")
    return names
