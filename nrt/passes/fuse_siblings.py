"""fuse-siblings: convolutions or products of one input are one, of which each reader has a piece.

    [conv(x, w1; e1), conv(x, w2; e2)] = split(conv(x, [w1 | w2]; [e1 | e2]))

::

    before   %a = Conv(%x, %w1; e1)    %b = Conv(%x, %w2; e2)
    after    %s = Conv(%x, %w; e)      %a, %b = Split(%s)

Horizontal fusion: x is read once, a launch is saved, and one wide product fills a device better
than two narrow ones. Siblings agree in all but their number of channels and their epilogues, which
become one (`fuse_siblings_epilogue`); an epilogue that reads a tensor of its own, such as a
residual, stays apart. The pieces are views, and order and choice of the siblings see to that
(`fuse_siblings_order`): where nobody would save a launch because a piece had to be copied, the
sibling stays as it is.

Runs last, when types and layouts are settled: siblings of one type in the model may be kept in
different ones by name, and whether a piece can be read where it lies depends on its layout.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from nrt.ir.graph import Graph
from nrt.ir.op import Array
from nrt.ir.ops import Conv, MatMul, Split
from nrt.ir.pointwise import Builder, identity
from nrt.ir.value import Node, Value
from nrt.passes.base import Note, PassResult
from nrt.passes.choice import ChoicePass, Site
from nrt.passes.fuse_siblings_epilogue import Ending, Operand, unified
from nrt.passes.fuse_siblings_order import arrange
from nrt.passes.pattern import refuse_second_result

__all__ = ["FuseSiblings"]


@dataclass(frozen=True, eq=False)
class _Group:
    """Siblings that become one node, in the order of their channels.

    Attributes:
        nodes: the siblings.
        first: the first of them in the graph, which gives the name.
        ending: their common epilogue.
        key: see `Site`.
    """

    nodes: tuple[Node, ...]
    first: Node
    ending: Ending
    key: str


@dataclass(frozen=True)
class FuseSiblings(ChoicePass):
    """See the module.

    Attributes:
        max_extras: most tensors that the common epilogue may read; kernels have as many parameters.
    """

    name: ClassVar[str] = "fuse-siblings"
    max_extras: int = 4

    def run(self, graph: Graph) -> PassResult:
        groups, notes = self._groups(graph)
        changed = False
        for group in groups:
            if group.key in self.skip:
                notes += [self.refused(n, "measured slower as one") for n in group.nodes]
                continue
            notes.append(self._fuse(graph, group))
            changed = True
        return PassResult(graph, changed, tuple(notes))

    def sites(self, graph: Graph) -> tuple[Site, ...]:
        return tuple(
            Site(g.key, frozenset(o for n in g.nodes for o in n.origin))
            for g in self._groups(graph)[0]
        )

    # -- which -----------------------------------------------------------------------------------

    def _groups(self, graph: Graph) -> tuple[list[_Group], list[Note]]:
        families: dict[Hashable, list[Node]] = {}
        for node in graph.nodes:
            if _may_join(graph, node):
                families.setdefault(_family(node), []).append(node)
        groups: list[_Group] = []
        notes: list[Note] = []
        for nodes in families.values():
            if len(nodes) > 1:
                several = {n: reason for n in nodes if (reason := refuse_second_result(n))}
                notes += [self.refused(n, reason) for n, reason in several.items()]
                self._group(graph, [n for n in nodes if n not in several], groups, notes)
        return groups, notes

    def _group(
        self, graph: Graph, nodes: list[Node], groups: list[_Group], notes: list[Note]
    ) -> None:
        """Append the groups among siblings that agree in all but channels and epilogues."""
        left = nodes
        reasons: dict[Node, str] = {}
        while len(left) > 1:
            alike, differ = self._alike(left)
            best = arrange(graph, alike, _axis(left[0]))
            reasons.update((*differ.items(), *best.refused))
            # Those that find nobody are done with; where none is like another, so are all.
            done = alike or left
            if len(best.nodes) > 1:
                ending = self._unified(list(best.nodes))
                if isinstance(ending, Ending):
                    first = next(n for n in left if n in best.nodes)
                    key = _key(best.nodes, ending, best.where)
                    groups.append(_Group(best.nodes, first, ending, key))
                    done = list(best.nodes)
                else:  # steps may align otherwise in another order, and need more tensors
                    reasons.update(dict.fromkeys(best.nodes, ending))
            left = [n for n in left if n not in done]
        grouped = {n for g in groups for n in g.nodes}
        notes += [self.refused(n, reasons[n]) for n in nodes if n in reasons and n not in grouped]

    def _alike(self, nodes: list[Node]) -> tuple[list[Node], dict[Node, str]]:
        """The first node and those whose epilogues can be one with it; why the others cannot."""
        alike: list[Node] = []
        reasons: dict[Node, str] = {}
        for node in nodes:
            ending = self._unified([*alike, node])
            if isinstance(ending, str):
                reasons[node] = ending
            else:
                alike.append(node)
        return alike, reasons

    def _unified(self, nodes: list[Node]) -> Ending | str:
        endings = [_ending(n) for n in nodes]
        found = unified(endings)
        if isinstance(found, Ending):
            if len(found.operands) > self.max_extras:
                return (
                    f"the common epilogue would read {len(found.operands)} tensors, "
                    f"the limit is {self.max_extras}"
                )
            for operand in found.operands:
                if isinstance(operand, Value) and not _is_shared(operand, nodes[0]):
                    return f"an epilogue reads '{operand.name}', which is no vector of channels"
        return found

    # -- how -------------------------------------------------------------------------------------

    def _fuse(self, graph: Graph, group: _Group) -> Note:
        nodes, first = group.nodes, group.first
        op: Any = first.op
        value, axis = first.output, _axis(first)
        weights = graph.add_constant(
            f"{first.name}.weights",
            np.concatenate([_constant(n.inputs[1]) for n in nodes], axis=_weight_axis(op)),
            first.inputs[1].layout,
        )
        extras = [
            o if isinstance(o, Value) else graph.add_constant(f"{first.name}.extra", _column(o, op))
            for o in group.ending.operands
        ]
        origin = [o for n in nodes for o in n.origin]
        program = group.ending.program
        fused = graph.add_node(
            replace(op, epilogue=program if program.instrs else op.epilogue),
            [first.inputs[0], weights, *extras],
            name=f"{first.name}+{len(nodes) - 1}",
            origin=origin,
        )
        graph.set_layout(fused.output, value.layout)
        sizes = tuple(n.output.shape[axis] for n in nodes)
        split = graph.add_node(
            Split(axis, sizes), [fused.output], name=f"{fused.name}.split", origin=origin
        )
        for node, piece in zip(nodes, split.outputs, strict=True):
            name = node.output.name
            graph.set_layout(piece, node.output.layout)
            graph.replace_value(node.output, piece)
            graph.remove_node(node)
            graph.rename(piece, name)
        others = ", ".join(f"'{n.name}'" for n in nodes)
        return self.fired(fused, f"is {others}: channels {' + '.join(map(str, sizes))}")


def _may_join(graph: Graph, node: Node) -> bool:
    """Whether the node is a kind that this pass knows how to widen, and was not widened by it."""
    op = node.op
    if not isinstance(op, Conv | MatMul) or not node.inputs[1].is_constant:
        return False
    reads = len(op.epilogue.inputs) - 1 if op.epilogue is not None else 0
    biased = isinstance(op, Conv) and op.epilogue is None and len(node.inputs) == 3
    if len(node.inputs) - 2 != reads + biased:
        return False
    if isinstance(op, Conv) and op.groups != 1:
        return False
    y = node.outputs[0]
    if isinstance(op, MatMul) and (len(node.inputs[1].shape) != 2 or not y.shape):
        return False
    readers = graph.consumers(y)
    return not (len(readers) == 1 and isinstance(readers[0][0].op, Split))


def _family(node: Node) -> Hashable:
    """What siblings have in common."""
    op: Any = node.op
    x, w, *_ = node.inputs
    kernel = w.shape[2:] if isinstance(op, Conv) else ()
    y = node.outputs[0]
    plain = replace(op, epilogue=None, second_dtype=None)
    return (x, plain, kernel, w.dtype, w.layout, y.dtype, y.layout)


def _axis(node: Node) -> int:
    """The channels' dimension of the result."""
    return 1 if isinstance(node.op, Conv) else len(node.output.shape) - 1


def _weight_axis(op: Conv | MatMul) -> int:
    return 1 if isinstance(op, MatMul) and not op.trans_b else 0


def _constant(value: Value) -> Array:
    assert value.constant is not None
    return value.constant


def _column(vector: Array, op: Conv | MatMul) -> Array:
    """A vector of channels as an operand of the epilogue."""
    return vector.reshape(-1, *[1] * len(op.strides)) if isinstance(op, Conv) else vector


def _ending(node: Node) -> Ending:
    op: Any = node.op
    channels = node.output.shape[_axis(node)]
    extras = node.inputs[2:]
    if op.epilogue is None and extras:  # a plain bias [K]
        b = Builder("ff")
        bias = extras[0] if extras[0].constant is None else extras[0].constant
        return Ending(b.build(b("add", 0, 1)), (bias,), channels)
    operands = tuple(_operand(v, node, channels) for v in extras)
    return Ending(op.epilogue or identity(), operands, channels)


def _operand(value: Value, node: Node, channels: int) -> Operand:
    """A constant that differs between channels at most, as a vector of them; else the value."""
    rank, axis = len(node.output.shape), _axis(node)
    shape = (*[1] * (rank - len(value.shape)), *value.shape)
    if value.constant is None or any(d != 1 for i, d in enumerate(shape) if i != axis):
        return value
    return np.broadcast_to(value.constant.reshape(-1), (channels,))


def _is_shared(value: Value, node: Node) -> bool:
    """Whether an operand of the epilogue is the same for all channels."""
    axis = _axis(node) - len(node.output.shape) + len(value.shape)
    return axis < 0 or value.shape[axis] == 1


def _key(nodes: tuple[Node, ...], ending: Ending, where: str) -> str:
    first = nodes[0]
    op: Any = first.op
    x, w = first.inputs[:2]
    sizes = "+".join(str(n.output.shape[_axis(n)]) for n in nodes)
    kernel = list(w.shape[2:]) if isinstance(op, Conv) else []
    return (
        f"{replace(op, epilogue=None)} {x.type} layout {x.layout} weights {w.dtype} {kernel} "
        f"to {sizes} layout {first.output.layout} [{ending.program.text()}] {where}"
    )
