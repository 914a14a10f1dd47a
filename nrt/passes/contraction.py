"""Drawing nodes of a graph together on paper, without a cycle between what results.

Two nodes can become one if no path leads from one to the other through a third: that one would
have to run after and before them. What was drawn together before counts as one node, so that
groups are checked against each other too.
"""

from __future__ import annotations

from nrt.ir.graph import Graph
from nrt.ir.value import Node

__all__ = ["Contraction"]


class Contraction:
    """The nodes of a graph, some of them joined; the graph stays as it is."""

    def __init__(self, graph: Graph) -> None:
        self._part: dict[Node, Node] = {node: node for node in graph.nodes}
        self._after: dict[Node, set[Node]] = {node: set() for node in graph.nodes}
        for node in graph.nodes:
            for value in node.inputs:
                if value.producer is not None:
                    self._after[value.producer].add(node)

    def joinable(self, a: Node, b: Node) -> bool:
        """Whether no cycle arises where ``a`` and ``b``, with what they are joined to, are one."""
        first, second = self._part[a], self._part[b]
        return not (self._detour(first, second) or self._detour(second, first))

    def join(self, a: Node, b: Node) -> None:
        """Let ``a`` and ``b`` be one."""
        first, second = self._part[a], self._part[b]
        if first is second:
            return
        for node, part in self._part.items():
            if part is second:
                self._part[node] = first
        self._after[first] |= self._after.pop(second)
        for found in self._after.values():
            if second in found:
                found.discard(second)
                found.add(first)
        self._after[first].discard(first)

    def _detour(self, start: Node, end: Node) -> bool:
        """Whether a path leads from ``start`` to ``end`` through another part."""
        stack = [n for n in self._after[start] if n is not end]
        seen = set(stack)
        while stack:
            for after in self._after[stack.pop()]:
                if after is end:
                    return True
                if after not in seen:
                    seen.add(after)
                    stack.append(after)
        return False
