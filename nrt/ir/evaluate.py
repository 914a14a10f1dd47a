"""Run a graph by its ops' references: the oracle of the whole network, and of every pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping

import numpy as np

from nrt.dtypes import dtype_from_numpy
from nrt.errors import GraphError, InputError, ShapeError
from nrt.ir.graph import Graph
from nrt.ir.op import Array, TensorType
from nrt.ir.value import Node, Value

__all__ = ["evaluate"]


def evaluate(
    graph: Graph, inputs: Mapping[str, Array], *, until: Collection[str] | None = None
) -> dict[str, Array]:
    """The graph's outputs, computed node by node with NumPy.

    Small floats are computed in float32 and rounded after every node; fp64 stays fp64. Values are
    dropped after their last use. Results own their memory: changing one changes no constant.

    Args:
        graph: a verified graph; layouts do not matter here.
        inputs: one array per graph input that is needed, of its shape and dtype.
        until: names of values to return instead of the graph's outputs; only what they need is
            computed.

    Returns:
        Output name -> array; with ``until`` value name -> array.

    Raises:
        InputError: an input is missing, unknown, or has another shape or dtype.
        ShapeError: an index is out of range; the message names the node.
        GraphError: ``until`` names no value, or a reference disagrees with its op's inference.
    """
    wanted = dict(graph.outputs) if until is None else {name: graph.value(name) for name in until}
    nodes = _needed(graph, wanted.values())
    remaining = Counter(value for node in nodes for value in node.inputs)
    remaining.update(wanted.values())
    known: dict[Value, Array] = _bind(graph, inputs, remaining)
    for node in nodes:
        for value, array in zip(node.outputs, _run(node, known), strict=True):
            if remaining[value]:
                known[value] = array
        for value in node.inputs:
            remaining[value] -= 1
            if not remaining[value] and not value.is_constant:
                known.pop(value, None)
    results: dict[str, Array] = {}
    for name, value in wanted.items():
        array = value.constant if value.constant is not None else known[value]
        shared = value.producer is None or any(array is other for other in results.values())
        results[name] = array.copy() if shared else array
    return results


def _needed(graph: Graph, wanted: Collection[Value]) -> list[Node]:
    """Nodes that the wanted values depend on, in topological order."""
    stack = [v.producer for v in wanted if v.producer is not None]
    needed: set[Node] = set()
    while stack:
        node = stack.pop()
        if node not in needed:
            needed.add(node)
            stack.extend(v.producer for v in node.inputs if v.producer is not None)
    return [node for node in graph.nodes if node in needed]


def _bind(graph: Graph, inputs: Mapping[str, Array], used: Counter[Value]) -> dict[Value, Array]:
    names = [v.name for v in graph.inputs]
    unknown = [name for name in inputs if name not in names]
    if unknown:
        raise InputError(
            f"graph '{graph.name}' has no input '{unknown[0]}'; its inputs are {', '.join(names)}"
        )
    known: dict[Value, Array] = {}
    for value in graph.inputs:
        if value.name not in inputs:
            if not used[value]:
                continue
            raise InputError(f"input '{value.name}' is missing, expected {value.type}")
        array = np.asarray(inputs[value.name])
        found = _type(array)
        if found != value.type:
            raise InputError(
                f"input '{value.name}' is {found or array.dtype}, expected {value.type}"
            )
        known[value] = array
    return known


def _type(array: Array) -> TensorType | None:
    """Its type; None when nrt has no such element type."""
    try:
        return TensorType(array.shape, dtype_from_numpy(array.dtype))
    except ShapeError:
        return None


def _run(node: Node, known: Mapping[Value, Array]) -> tuple[Array, ...]:
    arrays = [v.constant if v.constant is not None else known[v] for v in node.inputs]
    try:
        results = node.op.reference(*arrays)
    except ShapeError as error:
        detail = str(error).removeprefix(f"{node.op.name}: ")
        raise ShapeError(f"{node}: {detail}") from error
    for value, array in zip(node.outputs, results, strict=True):
        if _type(array) != value.type:
            raise GraphError(
                f"{node}: the reference gives {_type(array) or array.dtype} for '{value.name}', "
                f"the graph says {value.type}; call Graph.reinfer after changing inputs"
            )
    return results
