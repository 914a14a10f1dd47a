"""The one pattern matcher: a rule is `pattern`, `check`, `rewrite`.

A pattern is written as the expression that it looks for, from the result backward::

    Pat(BatchNormalization, Pat(Conv, Var("x"), Const("w"), Rest("bias"), name="conv",
    only_use=True),
        Const("scale"), Const("shift"), Const("mean"), Const("var"), name="norm")

Matching starts at a node and walks to its producers. ``only_use`` states that nothing but the
matched consumer may read a node's output; where that fails the rule is refused with that reason,
rather than passed over in silence. `Anywhere` looks in every slot, ``commutative`` in both orders,
so one node may match in several ways; `Rule.preference` says which to try first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from nrt.ir.graph import Graph
from nrt.ir.op import Op
from nrt.ir.value import Node, Value
from nrt.passes.base import Note, Pass, PassResult

__all__ = [
    "Anywhere",
    "Const",
    "Match",
    "Pat",
    "Rest",
    "Rule",
    "RulePass",
    "Var",
    "matches",
    "refuse_second_result",
]


@dataclass(frozen=True)
class Var:
    """Any value; the same name twice must be the same value."""

    name: str


@dataclass(frozen=True)
class Const:
    """A value known at build time."""

    name: str


@dataclass(frozen=True)
class Rest:
    """The inputs that are left, none included; stands last."""

    name: str


@dataclass(frozen=True, init=False)
class Pat:
    """A node of one of some op classes whose inputs match ``args``.

    Attributes:
        op: the op class, or several; subclasses match too.
        args: one pattern per input slot, or a single `Anywhere`.
        name: under which a match keeps the node.
        only_use: nothing but the matched consumer may read the output (several slots of it may).
        commutative: two inputs may match in either order.
        where: what else must hold of the node for it to be the one looked for.
    """

    op: type[Op] | tuple[type[Op], ...]
    args: tuple[Operand, ...]
    name: str
    only_use: bool
    commutative: bool
    where: Callable[[Node], bool] | None

    def __init__(
        self,
        op: type[Op] | tuple[type[Op], ...],
        *args: Operand,
        name: str = "",
        only_use: bool = False,
        commutative: bool = False,
        where: Callable[[Node], bool] | None = None,
    ) -> None:
        for key, value in (
            ("op", op),
            ("args", args),
            ("name", name),
            ("only_use", only_use),
            ("commutative", commutative),
            ("where", where),
        ):
            object.__setattr__(self, key, value)


@dataclass(frozen=True)
class Anywhere:
    """Some input, whatever its slot, matches ``pattern``; the others may be anything."""

    pattern: Pat


Operand = Var | Const | Rest | Pat | Anywhere


@dataclass(frozen=True)
class Match:
    """One way in which a pattern fits.

    Attributes:
        root: the node where matching started.
        nodes: named nodes.
        values: named values.
        rest: the values that a `Rest` took, by its name.
        blocked: why ``only_use`` does not hold, or None.
    """

    root: Node
    nodes: Mapping[str, Node] = field(default_factory=dict)
    values: Mapping[str, Value] = field(default_factory=dict)
    rest: Mapping[str, tuple[Value, ...]] = field(default_factory=dict)
    blocked: str | None = None

    def op(self, name: str) -> Any:
        """The op of the node called ``name``, typed loosely: the pattern fixed its class."""
        return self.nodes[name].op

    def array(self, name: str) -> Any:
        """The data of the constant called ``name``."""
        return self.values[name].constant


def matches(graph: Graph, pattern: Pat, node: Node) -> Iterator[Match]:
    """Every way in which ``pattern`` fits at ``node``."""
    yield from _node(graph, pattern, node, Match(node))


def _node(graph: Graph, pattern: Pat, node: Node, match: Match) -> Iterator[Match]:
    if not isinstance(node.op, pattern.op) or (pattern.where and not pattern.where(node)):
        return
    if pattern.name:
        match = replace(match, nodes={**match.nodes, pattern.name: node})
    if len(pattern.args) == 1 and isinstance(pattern.args[0], Anywhere):
        inner = pattern.args[0].pattern
        for value in dict.fromkeys(node.inputs):
            yield from _operand(graph, inner, value, node, match)
        return
    yield from _slots(graph, pattern.args, node.inputs, node, match)
    if pattern.commutative and len(node.inputs) == 2 and node.inputs[0] is not node.inputs[1]:
        yield from _slots(graph, pattern.args, node.inputs[::-1], node, match)


def _slots(
    graph: Graph, args: tuple[Operand, ...], inputs: tuple[Value, ...], node: Node, match: Match
) -> Iterator[Match]:
    if not args:
        if not inputs:
            yield match
        return
    first, *others = args
    if isinstance(first, Rest):
        yield replace(match, rest={**match.rest, first.name: inputs})
        return
    if inputs:
        for found in _operand(graph, first, inputs[0], node, match):
            yield from _slots(graph, tuple(others), inputs[1:], node, found)


def _operand(
    graph: Graph, pattern: Operand, value: Value, consumer: Node, match: Match
) -> Iterator[Match]:
    if isinstance(pattern, Pat):
        producer = value.producer
        if producer is None:
            return
        if pattern.only_use and isinstance(producer.op, pattern.op):
            blocked = match.blocked or _used_elsewhere(graph, value, consumer)
            match = replace(match, blocked=blocked)
        yield from _node(graph, pattern, producer, match)
    elif isinstance(pattern, (Var, Const)):
        if isinstance(pattern, Const) and not value.is_constant:
            return
        if match.values.get(pattern.name, value) is value:
            yield replace(match, values={**match.values, pattern.name: value})


def _used_elsewhere(graph: Graph, value: Value, consumer: Node) -> str | None:
    name = f"output '{value.name}' of {value.producer}"
    if graph.is_output(value):
        return f"{name} is an output of the graph"
    for node, _ in graph.consumers(value):
        if node is not consumer:
            return f"{name} is used elsewhere too, by {node}"
    return None


def refuse_second_result(*nodes: Node) -> str | None:
    """Why no pass rewrites one of ``nodes``: a product with a second result; None if none has."""
    for node in nodes:
        if getattr(node.op, "second_dtype", None) is not None:
            return f"{node} has a second result, which a node in its place would not have"
    return None


class Rule:
    """One rewrite. Subclasses set ``pattern`` and define `rewrite`, most also `check`."""

    pattern: ClassVar[Pat]

    def check(self, graph: Graph, match: Match) -> str | None:
        """None if the rewrite is valid here, else the reason why not."""
        return None

    def preference(self, graph: Graph, match: Match) -> int:
        """Where a node matches in several ways, the greatest is tried first."""
        return 0

    def rewrite(self, graph: Graph, match: Match) -> str:
        """Change the graph; returns what was done, for the notes."""
        raise NotImplementedError(type(self).__name__)


@dataclass(frozen=True)
class RulePass(Pass):
    """A pass that applies rules wherever they fit, sweeping until none does.

    A match whose root, or another node that it names, has a second result is refused: a rule puts
    nodes of one result in the place of others.
    """

    def rules(self) -> tuple[Rule, ...]:
        """The rules, in the order in which they are tried at a node."""
        raise NotImplementedError(type(self).__name__)

    def run(self, graph: Graph) -> PassResult:
        rules = self.rules()
        fired: list[Note] = []
        while True:
            refused: list[Note] = []
            before = len(fired)
            for node in graph.nodes:
                if not (graph.has_node(node.name) and graph.node(node.name) is node):
                    continue
                for rule in rules:
                    text = self._apply(graph, rule, node, refused)
                    if text is not None:
                        fired.append(self.fired(node, text))
                        break
            if len(fired) == before:
                return PassResult(graph, bool(fired), (*fired, *refused))

    def _apply(self, graph: Graph, rule: Rule, node: Node, refused: list[Note]) -> str | None:
        found = list(matches(graph, rule.pattern, node))
        if len(found) > 1:
            found.sort(key=lambda match: -rule.preference(graph, match))
        for match in found:
            several = refuse_second_result(match.root, *match.nodes.values())
            reason = match.blocked or several or rule.check(graph, match)
            if reason is None:
                return rule.rewrite(graph, match)
            refused.append(self.refused(node, reason))
        return None
