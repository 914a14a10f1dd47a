"""merge-pointwise: elementwise nodes that read the same tensors, or each other, are one loop.

    f(x, p), g(x, f(x, p)) = (f, g ∘ f)(x, p)

::

    before   %y = Add(%x, %p)     %z = Mul(%x, %y)      both read elsewhere
    after    %y, %z = MultiPointwise(%x, %p; add(x0, x1); mul(x0, r2) -> r2, r3)

The loop reads x once and writes all that somebody outside reads; a launch is saved for each node.
Nodes that read pieces of one tensor (the gates of an LSTM, slices of one product) count as readers
of it. Their results have one shape and one layout. Two nodes with a path from one to the other
through a third cannot be one (`nrt.passes.contraction`).

Nothing is computed twice, but a loop with many tensors has fewer elements in flight, and results
come alive earlier than they are read: a choice. Runs last, on types and layouts that are settled,
and after fuse-siblings, which makes pieces of one product of what was several.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from nrt.dtypes import FP8E4M3, FP32, FP64
from nrt.ir.graph import Graph
from nrt.ir.layout import normalized
from nrt.ir.ops import (
    Cast,
    Dropout,
    Elementwise,
    Identity,
    MultiPointwise,
    Pointwise,
    Reshape,
    Slice,
    Split,
    Transpose,
)
from nrt.ir.ops.common import kind_of
from nrt.ir.ops.quantize import without_round_trips
from nrt.ir.pointwise import Builder, Program
from nrt.ir.value import Layout, Node, Value
from nrt.passes.base import Note, PassResult
from nrt.passes.choice import ChoicePass, Site
from nrt.passes.contraction import Contraction
from nrt.passes.fusion import FusionLimits, own_program, too_large, unsafe_intermediate

__all__ = ["MergePointwise"]

_VIEWS = (Dropout, Identity, Reshape, Slice, Split, Transpose)
_LIMITS = FusionLimits()


@dataclass(frozen=True, eq=False)
class _Loop:
    """Nodes as one.

    Attributes:
        nodes: in the graph's order.
        results: those of them that something else reads.
        inputs: what they read of others.
        program: of the inputs; its results are those of ``results``.
    """

    nodes: tuple[Node, ...]
    results: tuple[Node, ...]
    inputs: tuple[Value, ...]
    program: Program

    @property
    def key(self) -> str:
        """See `Site`."""
        types = " ".join(f"{v.type}{v.layout or ''}" for v in self.inputs)
        results = " ".join(
            f"r{register}:{n.output.type}{n.output.layout or ''}"
            for register, n in zip(self.program.outputs, self.results, strict=True)
        )
        return f"{self.program.text()} | {types} -> {results}"


@dataclass(eq=False)
class _Group:
    """Nodes on the way to a loop, in the graph's order.

    Attributes:
        nodes: its members so far.
        sources: the tensors that they read or are pieces of, and their own results.
    """

    nodes: list[Node]
    sources: set[Value] = field(default_factory=set)


@dataclass(frozen=True)
class MergePointwise(ChoicePass):
    """See the module.

    Attributes:
        max_results: most tensors that a loop writes.
    """

    name: ClassVar[str] = "merge-pointwise"
    max_results: int = 4

    def sites(self, graph: Graph) -> tuple[Site, ...]:
        loops, _ = self._loops(graph)
        return tuple(Site(p.key, frozenset(o for n in p.nodes for o in n.origin)) for p in loops)

    def run(self, graph: Graph) -> PassResult:
        loops, notes = self._loops(graph)
        changed = False
        for loop in loops:
            if loop.key in self.skip:
                notes += [self.refused(n, "it is left apart") for n in loop.nodes]
            else:
                # Its inputs may be results of one that was merged before.
                notes.append(self._merge(graph, _loop(graph, loop.nodes)))
                changed = True
        return PassResult(graph, changed, tuple(notes))

    # -- which -----------------------------------------------------------------------------------

    def _loops(self, graph: Graph) -> tuple[list[_Loop], list[Note]]:
        """The loops of ``graph``, and why nodes that read the same are apart."""
        contraction = Contraction(graph)
        groups: dict[tuple[tuple[int, ...], Layout | None], list[_Group]] = {}
        notes: list[Note] = []
        for node in graph.nodes:
            if not isinstance(node.op, Elementwise) or not _matters(graph, node.output):
                continue
            y = node.output
            alike = groups.setdefault((y.shape, normalized(y.shape, y.layout)), [])
            sources = _sources(node)
            # The youngest first: what it reads and writes is the most likely to be in the cache.
            related = [g for g in reversed(alike) if g.sources & sources]
            reason = _unfit(node) if related else None
            for group in related if reason is None else ():
                reason = self._refusal(graph, contraction, [*group.nodes, node])
                if reason is None:
                    contraction.join(group.nodes[0], node)
                    group.nodes.append(node)
                    group.sources |= {*sources, y}
                    break
            else:
                if reason is not None:
                    notes.append(self.refused(node, reason))
                if _unfit(node) is None:
                    alike.append(_Group([node], {*sources, y}))
        found = [g for alike in groups.values() for g in alike if len(g.nodes) > 1]
        return [_loop(graph, g.nodes) for g in found], notes

    def _refusal(self, graph: Graph, contraction: Contraction, nodes: list[Node]) -> str | None:
        """Why the last of ``nodes`` cannot be one with the others."""
        first, last = nodes[0], nodes[-1]
        if not contraction.joinable(first, last):
            return f"a path leads from {first} to it through nodes outside"
        involved = [v.dtype for n in nodes for v in (*n.inputs, n.output)]
        for node in nodes:
            if any(reader in nodes for reader, _ in graph.consumers(node.output)):
                reason = unsafe_intermediate(node.output.dtype, involved, own_program(node))
            else:
                reason = unsafe_intermediate(FP32, involved)
            if reason is not None:
                return f"with {first}, {reason}"
        loop = _loop(graph, nodes)
        if len(loop.results) > self.max_results:
            return (
                f"with {first} it would write {len(loop.results)} tensors, "
                f"the limit is {self.max_results}"
            )
        return too_large(_LIMITS, loop.program, len(loop.inputs))

    # -- how -------------------------------------------------------------------------------------

    def _merge(self, graph: Graph, loop: _Loop) -> Note:
        old = [n.output for n in loop.results]
        first, *others = loop.nodes
        dtypes = tuple(v.dtype for v in old)
        op = MultiPointwise(loop.program, dtypes)
        merged = graph.add_node(
            op if len(old) > 1 else Pointwise(loop.program, dtypes[0]),
            loop.inputs,
            name=f"{first.name}+{len(others)}",
            origin=[o for n in loop.nodes for o in n.origin],
        )
        for before, after in zip(old, merged.outputs, strict=True):
            graph.set_layout(after, before.layout)
            graph.replace_value(before, after)
        names = [v.name for v in old]
        for node in reversed(loop.nodes):
            graph.remove_node(node)
        for name, value in zip(names, merged.outputs, strict=True):
            graph.rename(value, name)
        return self.fired(merged, f"is {', '.join(map(str, loop.nodes))}")


def _matters(graph: Graph, value: Value) -> bool:
    """Whether there is something to compute, and somebody reads it."""
    return 0 not in value.shape and (graph.is_output(value) or bool(graph.consumers(value)))


def _unfit(node: Node) -> str | None:
    """Why no loop of several results computes what ``node`` does."""
    dtypes = [v.dtype for v in (*node.inputs, node.output)]
    if FP8E4M3 in dtypes:
        return "no arithmetic on fp8"
    result, source = node.output.dtype, node.inputs[0].dtype
    if isinstance(node.op, Cast) and result.kind == "int" and source.is_float:
        return f"a cast of {source} to {result} has to saturate"
    if isinstance(node.op, Cast) and result is FP64 and not source.is_float:
        return f"a cast of {source} to {result} keeps more digits than a program"
    program = own_program(node)
    kind = program.kinds[program.outputs[0]]
    return None if kind == kind_of(result) else f"it stores a '{kind}' as {result}"


def _sources(node: Node) -> set[Value]:
    """The tensors that ``node`` reads, or of which it reads a piece."""
    return {_whole(v) for v in node.inputs if not v.is_constant} | {
        v for v in node.inputs if not v.is_constant
    }


def _whole(value: Value) -> Value:
    while value.producer is not None and isinstance(value.producer.op, _VIEWS):
        value = value.producer.inputs[0]
    return value


def _loop(graph: Graph, nodes: Sequence[Node]) -> _Loop:
    inside = {n.output for n in nodes}
    inputs = tuple(dict.fromkeys(v for n in nodes for v in n.inputs if v not in inside))
    b = Builder([kind_of(v.dtype) for v in inputs])
    register = {value: slot for slot, value in enumerate(inputs)}
    for node in nodes:
        program = own_program(node)
        (register[node.output],) = b.inline(program, [register[v] for v in node.inputs])
    results = tuple(
        n
        for n in nodes
        if graph.is_output(n.output) or any(r not in nodes for r, _ in graph.consumers(n.output))
    )
    program = without_round_trips(b.build(*(register[n.output] for n in results)))
    return _Loop(tuple(nodes), results, inputs, program)
