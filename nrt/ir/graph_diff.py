"""What differs between two graphs of one model: nodes kept, replaced, added and removed.

Nodes are matched by name, then by the names of their outputs, then by origin: a node of the old
graph whose origins all belong to one new node was taken into it, as in a fusion; new nodes that
share the origins of one old node, which is gone, were made from it.
"""

from __future__ import annotations

import html
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

from nrt.drawing import Picture
from nrt.drawing.beside import side_by_side
from nrt.drawing.svg import in_scroll_box
from nrt.ir.graph import Graph
from nrt.ir.node_match import Match, match_nodes
from nrt.ir.op import Array
from nrt.ir.picture import graph_picture, input_key, node_key, output_key
from nrt.ir.pointwise import Program
from nrt.ir.text import layout_text
from nrt.ir.value import Node, Value

__all__ = ["GraphDiff", "NodeChange", "graph_diff"]

Kind = Literal["kept", "replaced", "added", "removed"]
_SIGNS: dict[Kind, str] = {"kept": "=", "replaced": "~", "added": "+", "removed": "-"}


@dataclass(frozen=True)
class NodeChange:
    """What became of some nodes.

    Attributes:
        kind: ``kept``, ``replaced``, ``added`` or ``removed``.
        before: names of the old graph's nodes.
        after: names of the new graph's nodes that stand for them.
        ops_before, ops_after: their ops.
        origins: names of the model's nodes behind all of them.
        details: what differs, for one that was replaced: attributes, types, inputs.
    """

    kind: Kind
    before: tuple[str, ...]
    after: tuple[str, ...]
    ops_before: tuple[str, ...]
    ops_after: tuple[str, ...]
    origins: tuple[str, ...]
    details: tuple[str, ...] = ()

    def __str__(self) -> str:
        sides = [
            " + ".join(f"{op} '{name}'" for op, name in zip(ops, names, strict=True))
            for ops, names in ((self.ops_before, self.before), (self.ops_after, self.after))
        ]
        origin = f" # {', '.join(self.origins)}" if self.origins else ""
        lines = [f"{_SIGNS[self.kind]} {' -> '.join(filter(None, sides))}{origin}"]
        return "\n".join([*lines, *(f"    {detail}" for detail in self.details)])


@dataclass(frozen=True)
class GraphDiff:
    """The difference of two graphs; ``print`` it, or let a notebook show it.

    Attributes:
        before, after: names of the two, for headings.
        changes: every node of both graphs is in one of them; in the new graph's order, with what
            was removed at the end.
        pictures: of both graphs, with marks.
        pairs: box on the left -> box on the right that stands for it.
    """

    before: str
    after: str
    changes: tuple[NodeChange, ...]
    pictures: tuple[Picture, Picture]
    pairs: tuple[tuple[str, str], ...]

    def of_kind(self, kind: Kind) -> tuple[NodeChange, ...]:
        """The changes of one kind."""
        return tuple(c for c in self.changes if c.kind == kind)

    @property
    def summary(self) -> str:
        """One line of counts."""
        old = sum(len(c.before) for c in self.changes)
        new = sum(len(c.after) for c in self.changes)
        count = Counter(c.kind for c in self.changes)
        gone = sum(len(c.before) for c in self.of_kind("replaced"))
        come = sum(len(c.after) for c in self.of_kind("replaced"))
        return (
            f"{self.before} -> {self.after}: {old} nodes -> {new}; {count['kept']} kept, "
            f"{gone} replaced by {come}, {count['added']} added, {count['removed']} removed"
        )

    def __str__(self) -> str:
        lines = [str(c) for c in self.changes if c.kind != "kept"]
        return "\n".join([self.summary, *lines])

    def to_data(self) -> dict[str, Any]:
        """Plain data: ``before``, ``after`` and ``changes`` with the fields of `NodeChange`."""
        return {
            "before": self.before,
            "after": self.after,
            "changes": [asdict(change) for change in self.changes],
        }

    def to_json(self) -> str:
        """`to_data` as JSON."""
        return json.dumps(self.to_data(), indent=2)

    def to_svg(self) -> str:
        """Both graphs side by side: red is removed, green added, amber replaced."""
        return side_by_side(*self.pictures, dict(self.pairs), (self.before, self.after))

    def _repr_svg_(self) -> str:
        return self.to_svg()

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(self.summary)}</p>{in_scroll_box(self.to_svg())}"


def graph_diff(
    before: Graph, after: Graph, *, names: tuple[str, str] = ("before", "after")
) -> GraphDiff:
    """Compare two graphs of one model, such as two stages of the pipeline.

    Args:
        before: the old graph.
        after: the new graph; nodes with names, outputs or origins of the old one's match them.
        names: what the two are called.
    """
    matches = match_nodes(before, after)
    partner = {
        old.name: match.after[-1].name
        for match in matches
        if match.before and match.after
        for old in match.before
    }
    changes = tuple(_change(match, partner) for match in matches)
    marks: tuple[dict[str, str], dict[str, str]] = ({}, {})
    for change in changes:
        if change.kind != "kept":
            mark = "changed" if change.kind == "replaced" else change.kind
            marks[0].update(dict.fromkeys(map(node_key, change.before), mark))
            marks[1].update(dict.fromkeys(map(node_key, change.after), mark))
    left, right = graph_picture(before), graph_picture(after)
    pairs = [(input_key(v.name), input_key(v.name)) for v in after.inputs]
    # The last of those that were fused computes what the new node does.
    pairs += [
        (node_key(m.before[-1].name), node_key(m.after[-1].name))
        for m in matches
        if m.before and m.after
    ]
    pairs += [(output_key(name), output_key(name)) for name in after.outputs]
    pictures = (_marked(left, marks[0]), _marked(right, marks[1]))
    return GraphDiff(*names, changes, pictures, tuple(pairs))


def _marked(picture: Picture, marks: dict[str, str]) -> Picture:
    return replace(
        picture, boxes=tuple(replace(b, mark=marks.get(b.key, "")) for b in picture.boxes)
    )


def _change(match: Match, partner: dict[str, str]) -> NodeChange:
    details: tuple[str, ...] = ()
    kind: Kind
    if not match.after:
        kind = "removed"
    elif not match.before:
        kind = "added"
    elif len(match.before) == len(match.after) == 1:
        details = tuple(_details(match.before[0], match.after[0], partner))
        kind = "replaced" if details else "kept"
    else:
        kind = "replaced"
        details = tuple(_fused_details(match))
    nodes = (*match.before, *match.after)
    return NodeChange(
        kind,
        tuple(n.name for n in match.before),
        tuple(n.name for n in match.after),
        tuple(n.op.name for n in match.before),
        tuple(n.op.name for n in match.after),
        tuple(dict.fromkeys(o for n in nodes for o in n.origin)),
        details,
    )


def _details(old: Node, new: Node, partner: dict[str, str]) -> list[str]:
    """What differs between two nodes; nothing where they do the same work on the same data."""
    found = []
    if old.op != new.op:
        if type(old.op) is not type(new.op):
            found.append(f"op: {old.op.name} -> {new.op.name}")
        else:
            then = old.op.attributes()
            found += [
                f"{name}: {_attribute(then[name])} -> {_attribute(value)}"
                for name, value in new.op.attributes().items()
                if value != then[name]
            ]
    if len(old.inputs) != len(new.inputs):
        found.append(f"inputs: {_names(old.inputs)} -> {_names(new.inputs)}")
    for slot, (a, b) in enumerate(zip(old.inputs, new.inputs, strict=False)):
        if a.constant is not None and b.constant is not None:
            if not _same_data(a.constant, b.constant) or a.layout != b.layout:
                found.append(f"input {slot}: constant {_typed(a)} -> {_typed(b)}")
        elif not _same_source(a, b, partner):
            found.append(f"input {slot}: {a.name} -> {b.name}")
    found += [
        f"output {slot}: {_type(a)} -> {_type(b)}"
        for slot, (a, b) in enumerate(zip(old.outputs, new.outputs, strict=False))
        if _type(a) != _type(b)
    ]
    if len(old.outputs) != len(new.outputs):
        found.append(f"outputs: {_names(old.outputs)} -> {_names(new.outputs)}")
    return found


def _same_data(a: Array, b: Array) -> bool:
    # The passes share arrays; two imports of one file do not.
    return a is b or (a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind == "f"))


def _same_source(a: Value, b: Value, partner: dict[str, str]) -> bool:
    if a.is_constant != b.is_constant:
        return False
    if a.producer is None or b.producer is None:
        return a.producer is b.producer and a.name == b.name
    slots = (a.producer.outputs.index(a), b.producer.outputs.index(b))
    return partner.get(a.producer.name) == b.producer.name and slots[0] == slots[1]


def _fused_details(match: Match) -> list[str]:
    programs = [
        f"{node.name}: {name} [{value.text()}]"
        for node in match.after
        for name, value in node.op.attributes().items()
        if isinstance(value, Program)
    ]
    then = [_type(v) for v in match.before[-1].outputs]
    now = [_type(v) for v in match.after[-1].outputs]
    if then != now:
        programs.append(f"output: {', '.join(then)} -> {', '.join(now)}")
    return programs


def _attribute(value: Any) -> str:
    return f"[{value.text()}]" if isinstance(value, Program) else str(value)


def _names(values: Sequence[Value]) -> str:
    return f"({', '.join(v.name for v in values)})"


def _typed(value: Value) -> str:
    return f"{value.name} {_type(value)}"


def _type(value: Value) -> str:
    return f"{value.type}{layout_text(value.layout)}"
