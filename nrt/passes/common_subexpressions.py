"""common-subexpressions: what is computed twice is computed once.

    f(x) + f(x) = y + y   with   y = f(x)

::

    before   %a = Shrink(%x)   %b = Shrink(%x)   %y = Add(%a, %b)
    after    %a = Shrink(%x)                     %y = Add(%a, %a)

Ops are values and hold no state: equal ops on the same inputs, with outputs in the same layout, are
the same. Equal small constants are shared first, so that nodes which differ only in their copies
meet.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import ClassVar

from nrt.ir.graph import Graph
from nrt.ir.value import Node, Value
from nrt.passes.base import Note, Pass, PassResult

__all__ = ["CommonSubexpressions"]


@dataclass(frozen=True)
class CommonSubexpressions(Pass):
    """See the module.

    Attributes:
        constant_limit: largest constant, in bytes, that is compared by content; larger ones are
            equal only if they are one array.
    """

    name: ClassVar[str] = "common-subexpressions"
    constant_limit: int = 1 << 16

    def run(self, graph: Graph) -> PassResult:
        changed = self._share_constants(graph)
        notes: list[Note] = []
        first: dict[Hashable, Node] = {}
        for node in graph.nodes:
            twin = first.setdefault(_key(node), node)
            if twin is node:
                continue
            notes.append(self.fired(node, f"{twin} computes the same"))
            for old, new in zip(node.outputs, twin.outputs, strict=True):
                graph.replace_value(old, new)
            twin.origin = tuple(dict.fromkeys((*twin.origin, *node.origin)))
            graph.remove_node(node)
        return PassResult(graph, changed or bool(notes), tuple(notes))

    def _share_constants(self, graph: Graph) -> bool:
        changed = False
        first: dict[Hashable, Value] = {}
        for value in graph.constants:
            array = value.constant
            assert array is not None
            content = array.tobytes() if array.nbytes <= self.constant_limit else id(array)
            twin = first.setdefault((value.shape, value.dtype, value.layout, content), value)
            # One that nothing reads is left to dead-code: replacing it would be no change.
            if twin is not value and (graph.consumers(value) or graph.is_output(value)):
                graph.replace_value(value, twin)
                changed = True
        return changed


def _key(node: Node) -> Hashable:
    # repr, since 1 == 1.0 == True would make different immediates of a program equal.
    return (
        repr(node.op),
        tuple(id(v) for v in node.inputs),
        tuple(v.layout for v in node.outputs),
    )
