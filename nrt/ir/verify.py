"""Check that a graph keeps the rules of the IR."""

from __future__ import annotations

from collections.abc import Iterator

import networkx as nx

from nrt.dtypes import dtype_from_numpy
from nrt.errors import GraphError, NrtError
from nrt.ir.graph import Graph
from nrt.ir.value import Node, Value

__all__ = ["verify", "violations"]


def verify(graph: Graph) -> None:
    """Check every rule of the IR.

    The rules: values and nodes are registered under their own names; a value is an input, a
    constant, or has one producer that lists it; edges and use lists match the nodes' inputs, slot
    by slot; there is no cycle; outputs are bound to values of the graph; types are those that the
    ops infer; constants hold arrays of their type; layouts are permutations.

    Raises:
        GraphError: the graph breaks a rule; the message lists every violation.
    """
    found = violations(graph)
    if found:
        raise GraphError(
            f"graph '{graph.name}' breaks {len(found)} rule(s) of the IR:\n"
            + "\n".join(f"  {line}" for line in found)
        )


def violations(graph: Graph) -> list[str]:
    """One line per broken rule; empty for a sound graph."""
    nodes = [data["node"] for _, data in graph.nx.nodes(data=True)]
    lines = [line for value in graph.values for line in _value(graph, value)]
    lines.extend(
        line for name, value in graph.outputs.items() for line in _output(graph, name, value)
    )
    for key, node in zip(graph.nx.nodes, nodes, strict=True):
        if key != node.name:
            lines.append(f"{node}: is registered as '{key}'")
        lines.extend(_node(graph, node))
    lines.extend(_edges(graph, nodes))
    if not nx.is_directed_acyclic_graph(graph.nx):
        path = " -> ".join(edge[0] for edge in nx.find_cycle(graph.nx))
        lines.append(f"cycle: {path} -> …")
    return lines


def _belongs(graph: Graph, value: Value) -> bool:
    return graph.has_value(value.name) and graph.value(value.name) is value


def _value(graph: Graph, value: Value) -> Iterator[str]:
    label = f"value '{value.name}'"
    if not _belongs(graph, value):
        yield f"{label}: is registered under another name"
    is_input = any(value is other for other in graph.inputs)
    roles = [
        role
        for role, holds in (
            ("a graph input", is_input),
            ("a constant", value.is_constant),
            (f"an output of {value.producer}", value.producer is not None),
        )
        if holds
    ]
    if len(roles) != 1:
        yield (
            f"{label}: is {' and '.join(roles) or 'neither input, constant nor output of a node'}, "
            "expected exactly one of the three"
        )
    node = value.producer
    if node is not None and not (graph.has_node(node.name) and graph.node(node.name) is node):
        yield f"{label}: its producer {node} is not in the graph"
    elif node is not None and not any(value is other for other in node.outputs):
        yield f"{label}: its producer {node} does not list it as an output"
    if value.constant is not None:
        shape, dtype = value.constant.shape, value.constant.dtype
        if shape != value.shape or dtype_from_numpy(dtype) is not value.dtype:
            yield f"{label}: holds an array {dtype}{list(shape)}, expected {value.type}"
    if any(not isinstance(d, int) or d < 0 for d in value.shape):
        yield f"{label}: shape {value.shape} holds something else than sizes"
    if value.layout is not None and sorted(value.layout) != list(range(len(value.shape))):
        yield f"{label}: layout {value.layout} is no permutation of {len(value.shape)} dimensions"


def _output(graph: Graph, name: str, value: Value) -> Iterator[str]:
    if not _belongs(graph, value):
        yield f"output '{name}': is bound to '{value.name}', which is not a value of the graph"


def _node(graph: Graph, node: Node) -> Iterator[str]:
    for slot, value in enumerate(node.inputs):
        if not _belongs(graph, value):
            yield f"{node}: input {slot} '{value.name}' is not a value of the graph"
        elif (node, slot) not in graph.consumers(value):
            yield f"{node}: input {slot} '{value.name}' does not know this use"
    for value in node.outputs:
        if not _belongs(graph, value):
            yield f"{node}: output '{value.name}' is not a value of the graph"
        elif value.producer is not node:
            yield f"{node}: output '{value.name}' says that {value.producer} produces it"
    try:
        node.op.check_arity(len(node.inputs))
        types = node.op.infer(*(v.type for v in node.inputs))
    except NrtError as error:
        yield f"{node}: {str(error).removeprefix(f'{node.op.name}: ')}"
        return
    if len(types) != len(node.outputs):
        yield f"{node}: has {len(node.outputs)} outputs, the op gives {len(types)}"
        return
    for value, type_ in zip(node.outputs, types, strict=True):
        if value.type != type_:
            yield f"{node}: output '{value.name}' is {value.type}, the op infers {type_}"


def _edges(graph: Graph, nodes: list[Node]) -> Iterator[str]:
    expected = {
        (value.producer.name, node.name, slot): value
        for node in nodes
        for slot, value in enumerate(node.inputs)
        if value.producer is not None
    }
    found = {(u, v, slot): value for u, v, slot, value in graph.nx.edges(keys=True, data="value")}
    for edge in expected.keys() - found.keys():
        yield f"edge {edge[0]} -> {edge[1]} (slot {edge[2]}): is missing"
    for edge in found.keys() - expected.keys():
        yield f"edge {edge[0]} -> {edge[1]} (slot {edge[2]}): no input of that node asks for it"
    for edge in expected.keys() & found.keys():
        if expected[edge] is not found[edge]:
            yield (
                f"edge {edge[0]} -> {edge[1]} (slot {edge[2]}): carries '{found[edge].name}', the "
                f"node reads '{expected[edge].name}'"
            )
    for value in graph.values:
        for node, slot in graph.consumers(value):
            if slot >= len(node.inputs) or node.inputs[slot] is not value or node not in nodes:
                yield f"value '{value.name}': lists a use by {node}, slot {slot}, that is not there"
