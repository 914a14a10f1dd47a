"""Rewrite a graph by hand: every place where a pattern fits, replaced by what a function builds.

::

    def rewrite(match, patch):
        x = match.values["x"]
        return patch.add(Mul(), x, patch.add(Sigmoid(), x))

    count = nrt.replace(graph, Pat(HardSwish, Var("x")), rewrite)

A `Pass` is for what the compiler always does; this is for what one user wants of one model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from dataclasses import replace as with_fields

import networkx as nx

from nrt.errors import GraphError
from nrt.ir.graph import Graph
from nrt.ir.op import Array, Op
from nrt.ir.value import Layout, Node, Value
from nrt.passes.pattern import Anywhere, Match, Operand, Pat, matches

__all__ = ["Patch", "replace"]

_UNNAMED = "\0"
"""Starts the names that `_labelled` gives; no pattern's own name does."""


class Patch:
    """Builds what replaces one match; `replace` makes one per match.

    Nodes go into the graph as they are added, with the origins of the whole match, and are taken
    out again if the replacement as a whole fails.
    """

    def __init__(self, graph: Graph, match: Match, origin: Sequence[str]) -> None:
        self.graph = graph
        self.nodes: list[Node] = []
        self.constants: list[Value] = []
        self.unnamed: set[Node] = set()
        self._origin = tuple(origin)
        self._name = match.root.name

    def add(self, op: Op, *inputs: Value, name: str | None = None) -> Value:
        """The output of a new node.

        Args:
            op: the operation, with one output.
            inputs: values of the match, or any that are computed before it.
            name: of the node and of its output; that of the match's root by default, numbered while
                the root is there.

        Raises:
            GraphError: an input is no value of the graph, or the op has several outputs; ShapeError
                where the inputs do not fit.
        """
        outputs = self.add_many(op, *inputs, name=name)
        if len(outputs) != 1:
            raise GraphError(
                f"{self.nodes[-1]}: has {len(outputs)} outputs, expected 1; use Patch.add_many"
            )
        return outputs[0]

    def add_many(self, op: Op, *inputs: Value, name: str | None = None) -> tuple[Value, ...]:
        """As `add`, for an op with any number of outputs."""
        node = self.graph.add_node(op, inputs, name=name or self._name, origin=self._origin)
        self.nodes.append(node)
        if name is None:
            self.unnamed.add(node)
        return node.outputs

    def constant(self, array: Array, name: str = "constant", layout: Layout | None = None) -> Value:
        """A new constant holding ``array`` (not copied), its name made unique."""
        value = self.graph.add_constant(f"{self._name}.{name}", array, layout)
        self.constants.append(value)
        return value

    def undo(self) -> None:
        """Take everything out of the graph that was added; nothing else reads it."""
        for node in reversed(self.nodes):
            self.graph.remove_node(node)
        for value in self.constants:
            self.graph.remove_constant(value)


Rewrite = Callable[[Match, Patch], Value | Sequence[Value] | None]


@dataclass(frozen=True)
class _Site:
    """One match with what replaces the outputs of its root."""

    match: Match
    patch: Patch
    values: tuple[Value, ...]


def replace(graph: Graph, pattern: Pat, fn: Rewrite) -> int:
    """Replace every match of ``pattern``, each node taking part in one match at most.

    Matches are looked for once, in topological order; where two share a node, the first one has it.
    A match whose ``only_use`` does not hold is none. What becomes unused, weights included, is
    removed; a node of the match that others read as well stays. Names of the graph's outputs stay.
    A replacement may read the output that it replaces: that puts something behind it.

    Args:
        graph: changed in place; left as it was if anything raises.
        pattern: see `nrt.passes.pattern`.
        fn: called with each match and a `Patch` to build with; returns the value that takes the
            place of the root's output (one per output, where the root has several), or None to
            leave this match alone. It changes the graph through the patch only.

    Returns:
        How many matches were replaced.

    Raises:
        GraphError: a replacement has another type than what it replaces, another number of values,
            or depends on what is computed from what it replaces.
    """
    unused = {v for v in graph.constants if _is_unused(graph, v)}
    patches: list[Patch] = []
    sites: list[_Site] = []
    done = False
    try:
        for match, origin in list(_sites(graph, pattern)):
            patch = Patch(graph, match, origin)
            patches.append(patch)
            found = fn(match, patch)
            if found is None:
                patches.pop().undo()
            else:
                sites.append(_checked(graph, match, patch, found))
        done = True
    finally:
        if not done:
            for patch in reversed(patches):
                patch.undo()
    replaced: dict[Value, Value] = {}
    for site in sites:
        _splice(graph, site, replaced)
    for site in reversed(sites):
        graph.remove_dead(site.match.root)
    for patch in patches:
        for node in reversed(patch.nodes):
            graph.remove_dead(node)
    for value in graph.constants:
        if value not in unused and _is_unused(graph, value):
            graph.remove_constant(value)
    unnamed = {node for patch in patches for node in patch.unnamed}
    for old, new in replaced.items():
        if new.producer in unnamed:
            _take_name(graph, old, new)
    return len(sites)


def _is_unused(graph: Graph, value: Value) -> bool:
    return not graph.consumers(value) and not graph.is_output(value)


def _sites(graph: Graph, pattern: Pat) -> Iterator[tuple[Match, tuple[str, ...]]]:
    """The matches, none of which shares a node with another, and the origins of their nodes."""
    labelled = _labelled(pattern, [0])
    taken: set[Node] = set()
    for node in graph.nodes:
        for match in matches(graph, labelled, node):
            nodes = set(match.nodes.values())
            if match.blocked is None and not nodes & taken:
                taken |= nodes
                named = {k: v for k, v in match.nodes.items() if not k.startswith(_UNNAMED)}
                ordered = [n for n in graph.nodes if n in nodes] if len(nodes) > 1 else [node]
                origin = tuple(dict.fromkeys(o for n in ordered for o in n.origin))
                yield with_fields(match, nodes=named), origin
                break


def _labelled(pattern: Pat, counter: list[int]) -> Pat:
    """The pattern with a name at every node, so that a match holds all of its nodes."""
    counter[0] += 1
    name = pattern.name or f"{_UNNAMED}{counter[0]}"

    def inner(operand: Operand) -> Operand:
        if isinstance(operand, Pat):
            return _labelled(operand, counter)
        if isinstance(operand, Anywhere):
            return Anywhere(_labelled(operand.pattern, counter))
        return operand

    return Pat(
        pattern.op,
        *map(inner, pattern.args),
        name=name,
        only_use=pattern.only_use,
        commutative=pattern.commutative,
        where=pattern.where,
    )


def _checked(graph: Graph, match: Match, patch: Patch, found: Value | Sequence[Value]) -> _Site:
    root = match.root
    values = (found,) if isinstance(found, Value) else tuple(found)
    if len(values) != len(root.outputs):
        raise GraphError(
            f"{root}: the replacement has {len(values)} values, expected {len(root.outputs)}, one "
            "per output"
        )
    for old, new in zip(root.outputs, values, strict=True):
        if not (graph.has_value(new.name) and graph.value(new.name) is new):
            raise GraphError(
                f"{root}: the replacement '{new.name}' is no value of graph '{graph.name}'; build "
                "it with the patch"
            )
        if new.type != old.type:
            raise GraphError(
                f"{root}: the replacement of '{old.name}' is {new.type}, expected {old.type}; "
                "insert a Cast or Reshape"
            )
    _check_order(graph, root, patch, values)
    return _Site(match, patch, values)


def _check_order(graph: Graph, root: Node, patch: Patch, values: Sequence[Value]) -> None:
    """Raises GraphError when the replacement reads something that is computed after the root."""
    own = set(patch.nodes)
    read = [*values, *(v for node in patch.nodes for v in node.inputs)]
    outside = {v.producer: v for v in read if v.producer is not None and v.producer not in own}
    before = {root.name, *nx.ancestors(graph.nx, root.name)}
    for node, value in outside.items():
        if node.name not in before:
            raise GraphError(
                f"{root}: the replacement reads '{value.name}' of {node}, which is not computed "
                "before it; use the values of the match, or what those are computed from"
            )


def _splice(graph: Graph, site: _Site, replaced: dict[Value, Value]) -> None:
    """Let every reader of the root's outputs read the replacement, which itself may read them."""
    own = set(site.patch.nodes)
    for old, built in zip(site.match.root.outputs, site.values, strict=True):
        # The replacement may be what an earlier match has replaced since.
        new = replaced.get(built, built)
        if old is new:
            continue
        replaced[old] = new
        if new.producer in own and new.layout is None:
            graph.set_layout(new, old.layout)
        for node, slot in graph.consumers(old):
            if node not in own:
                graph.replace_input(node, slot, new)
        for name in graph.output_names(old):
            graph.set_output(name, new)


def _take_name(graph: Graph, old: Value, new: Value) -> None:
    """A new value and its node get the names of what they replace, where those are free."""
    root, node = old.producer, new.producer
    if root is None or node is None or graph.has_node(root.name) or graph.has_value(old.name):
        return
    graph.rename(new, old.name)
    graph.rename(node, root.name)
