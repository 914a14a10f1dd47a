"""Cut a part out of a graph."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from nrt.errors import GraphError
from nrt.ir.graph import Graph
from nrt.ir.value import Node, Value

__all__ = ["extract"]


def extract(graph: Graph, inputs: str | Iterable[str], outputs: str | Iterable[str]) -> Graph:
    """The part of ``graph`` that computes ``outputs`` from ``inputs``; see `Graph.extract`."""
    starts = _resolve(graph, "input", inputs)
    ends = _resolve(graph, "output", outputs)
    if not ends:
        raise GraphError(f"graph '{graph.name}': extract names no outputs, expected one or more")
    for value in starts.values():
        if value.is_constant:
            raise GraphError(
                f"graph '{graph.name}': extract names '{value.name}' as an input, which is a "
                f"constant {value.type}; constants come along by themselves, leave it out"
            )
    cut = set(starts.values())
    _check_reachable(graph, cut, ends)
    needed = _needed(cut, ends.values())
    nodes = [node for node in graph.nodes if node in needed]
    return _build(graph, starts, ends, nodes)


def _resolve(graph: Graph, what: str, names: str | Iterable[str]) -> dict[str, Value]:
    """Name -> value; an output may go by the name that the graph binds it to."""
    listed = [names] if isinstance(names, str) else list(names)
    twice = sorted({name for name in listed if listed.count(name) > 1})
    if twice:
        raise GraphError(
            f"graph '{graph.name}': extract names {what} '{twice[0]}' {listed.count(twice[0])} "
            "times, expected once"
        )
    bound = graph.outputs if what == "output" else {}
    found: dict[str, Value] = {}
    unknown = []
    for name in listed:
        if graph.has_value(name):
            found[name] = graph.value(name)
        elif name in bound:
            found[name] = bound[name]
        else:
            unknown.append(f"  '{name}'{_hint(graph, name, bound)}")
    if unknown:
        raise GraphError(
            f"graph '{graph.name}': extract names {len(unknown)} {what}(s) that are no values of "
            "the graph:\n" + "\n".join(unknown)
        )
    return found


def _hint(graph: Graph, name: str, bound: Iterable[str]) -> str:
    if graph.has_node(name):
        outputs = ", ".join(f"'{v.name}'" for v in graph.node(name).outputs)
        return f" is a node; it computes {outputs}"
    known = [v.name for v in graph.values if not v.is_constant]
    near = difflib.get_close_matches(name, dict.fromkeys([*known, *bound]), n=3)
    if near:
        return "; did you mean " + " or ".join(f"'{n}'" for n in near) + "?"
    return "; Graph.values lists them all"


def _check_reachable(graph: Graph, cut: set[Value], ends: dict[str, Value]) -> None:
    """Raises GraphError when an output needs an input of the graph that is not cut off."""
    lines = []
    for name, value in ends.items():
        missing = _missing(graph, cut, value)
        if missing:
            others = ", ".join(f"'{v.name}'" for v in missing)
            lines.append(f"  output '{name}' also needs {others}")
    if lines:
        given = ", ".join(sorted(f"'{v.name}'" for v in cut)) or "no inputs"
        raise GraphError(
            f"graph '{graph.name}': {given} do not determine the outputs:\n"
            + "\n".join(lines)
            + "\nName these as inputs too, or values between them and the output."
        )


def _missing(graph: Graph, cut: set[Value], end: Value) -> list[Value]:
    if end in cut:
        return []
    reads = {v for node in _needed(cut, [end]) for v in node.inputs} | {end}
    return [v for v in graph.inputs if v in reads and v not in cut]


def _needed(cut: set[Value], ends: Iterable[Value]) -> set[Node]:
    """The nodes behind ``ends``, back to the values in ``cut``."""
    needed: set[Node] = set()
    stack = list(ends)
    while stack:
        value = stack.pop()
        node = value.producer
        if value not in cut and node is not None and node not in needed:
            needed.add(node)
            stack.extend(node.inputs)
    return needed


def _build(
    graph: Graph, starts: dict[str, Value], ends: dict[str, Value], nodes: Sequence[Node]
) -> Graph:
    part = Graph(graph.name)
    copies: dict[Value, Value] = {}

    def keep(old: Value, new: Value) -> None:
        new.layout = old.layout
        # A Split whose one output is cut off and whose other is needed computes both again.
        copies.setdefault(old, new)

    for name, value in starts.items():
        keep(value, part.add_input(name, value.shape, value.dtype))
    read = dict.fromkeys([*(v for node in nodes for v in node.inputs), *ends.values()])
    for value in read:
        if value.constant is not None:
            keep(value, part.add_constant(value.name, value.constant))
    for node in nodes:
        new = part.add_node(
            node.op,
            [copies[v] for v in node.inputs],
            name=node.name,
            origin=node.origin,
            output_names=[v.name for v in node.outputs],
        )
        for old, copy in zip(node.outputs, new.outputs, strict=True):
            keep(old, copy)
    for name, value in ends.items():
        part.set_output(name, copies[value])
    return part
