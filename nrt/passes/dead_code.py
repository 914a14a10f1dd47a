"""dead-code: what no output needs is not computed.

    outputs(graph) = outputs(graph minus everything that they do not depend on)

::

    before   %a = Relu(%x)   %b = Exp(%x)   out: %a
    after    %a = Relu(%x)                  out: %a
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from nrt.ir.graph import Graph
from nrt.passes.base import Pass, PassResult

__all__ = ["DeadCode"]


@dataclass(frozen=True)
class DeadCode(Pass):
    """See the module."""

    name: ClassVar[str] = "dead-code"

    def run(self, graph: Graph) -> PassResult:
        nodes = graph.nodes
        constants = len(graph.constants)
        removed = graph.prune()
        notes = tuple(
            self.fired(node, "no output needs it")
            for node in nodes
            if not graph.has_node(node.name)
        )
        return PassResult(graph, removed > 0 or len(graph.constants) < constants, notes)
