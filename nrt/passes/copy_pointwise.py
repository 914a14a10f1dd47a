"""copy-pointwise: what several elementwise nodes read is computed in each of them.

    y = f(g(x)), z = h(g(x)) = (f ∘ g)(x), (h ∘ g)(x)

::

    before   %a = Exp(%x)                 %y = Add(%a, %p)   %z = Mul(%a, %a)
    after    %y = Pointwise(%x, %p; exp(x0); add(r2, x1))   %z = Pointwise(%x; exp(x0); mul(r1, r1))

fuse-pointwise joins a node with its only reader; here the result is read again instead of x, and is
not written: a launch and a pass over memory less, for arithmetic that is done several times and, if
g reads several tensors, for their traffic. That makes it a choice.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from nrt.ir.graph import Graph
from nrt.ir.ops import Elementwise, Pointwise
from nrt.ir.pointwise import Program
from nrt.ir.value import Node, Value
from nrt.passes.base import Note, PassResult
from nrt.passes.choice import ChoicePass, Site
from nrt.passes.fusion import FusionLimits, joined, own_program, too_large, unsafe_intermediate

__all__ = ["CopyPointwise"]

_LIMITS = FusionLimits()


def _readers(graph: Graph, node: Node) -> list[Node]:
    """The distinct nodes that read the output of ``node``."""
    return list(dict.fromkeys(reader for reader, _ in graph.consumers(node.output)))


def _joined(inner: Node, outer: Node) -> tuple[Program, tuple[Value, ...]]:
    return joined(
        own_program(inner),
        inner.inputs,
        own_program(outer),
        outer.inputs,
        hole=inner.output,
        shape=outer.output.shape,
    )


def _refusal(inner: Node, readers: list[Node]) -> str | None:
    """Why ``inner`` cannot be computed in every one of its readers."""
    for outer in readers:
        if not isinstance(outer.op, Elementwise):
            return f"{outer} reads it too"
        if outer.output.shape != inner.output.shape:
            return f"{outer} broadcasts it to {list(outer.output.shape)}"
        program, inputs = _joined(inner, outer)
        involved = [v.dtype for v in (*outer.inputs, *inner.inputs, outer.output)]
        reason = unsafe_intermediate(inner.output.dtype, involved) or too_large(
            _LIMITS, program, len(inputs)
        )
        if reason is not None:
            return f"in {outer}, {reason}"
    return None


def _key(inner: Node, readers: list[Node]) -> str:
    nodes = [
        f"{own_program(n).text()} {' '.join(str(v.type) for v in (*n.inputs, *n.outputs))}"
        for n in (inner, *readers)
    ]
    return " | ".join(nodes)


@dataclass(frozen=True)
class CopyPointwise(ChoicePass):
    """See the module."""

    name: ClassVar[str] = "copy-pointwise"

    def _candidates(self, graph: Graph) -> Iterator[tuple[Node, list[Node]]]:
        for node in graph.nodes:
            if isinstance(node.op, Elementwise) and not graph.is_output(node.output):
                readers = _readers(graph, node)
                if len(readers) > 1 and any(isinstance(r.op, Elementwise) for r in readers):
                    yield node, readers

    def sites(self, graph: Graph) -> tuple[Site, ...]:
        return tuple(
            Site(_key(node, readers), frozenset(o for n in (node, *readers) for o in n.origin))
            for node, readers in self._candidates(graph)
            if _refusal(node, readers) is None
        )

    def run(self, graph: Graph) -> PassResult:
        notes: list[Note] = []
        for node, _ in list(self._candidates(graph)):
            # One copied before may have replaced this one's readers, or made this one of several.
            if not (graph.has_node(node.name) and graph.node(node.name) is node):
                continue
            readers = _readers(graph, node)
            reason = _refusal(node, readers)
            if reason is None and _key(node, readers) in self.skip:
                reason = "it is left apart"
            if reason is not None:
                notes.append(self.refused(node, reason))
                continue
            for outer in readers:
                program, inputs = _joined(node, outer)
                op = Pointwise(program, outer.output.dtype)
                graph.replace_node(outer, op, inputs, also=[node])
            names = ", ".join(map(str, readers))
            notes.append(self.fired(node, f"is computed in each of {names}"))
        return PassResult(graph, any(n.kind == "fired" for n in notes), tuple(notes))
