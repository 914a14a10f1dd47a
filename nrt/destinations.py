"""Destinations: the memory in which a value's readers want it, before it is computed.

An output of the graph is written into the caller's binding, an input of a Concat into its slice of
the Concat's memory, and what reaches either through a Reshape or Transpose likewise, if strides can
say it. Where only some pieces of a Split belong in a Concat, the Split's source lies in the
Concat's buffer, which is longer by the other pieces (see `nrt.ir.pitch.join_of`).
"""

from __future__ import annotations

from nrt.ir.graph import Graph
from nrt.ir.op import Op
from nrt.ir.ops import (
    Concat,
    Dropout,
    Identity,
    Reformat,
    Reshape,
    Slice,
    Split,
    Transpose,
)
from nrt.ir.pitch import home_concat, join_of, margins
from nrt.ir.value import Node, Value
from nrt.places import Buffer, Place, dense_spec, settled, slice_place
from nrt.problem import TensorSpec
from nrt.strides import ALIGN, is_aligned, reshaped_strides

__all__ = ["Destinations"]

_ALIASES: tuple[type[Op], ...] = (
    Concat, Dropout, Identity, Reformat, Reshape, Slice, Split, Transpose,
)  # fmt: skip
"""Ops that may bind their output to memory that exists already."""


class Destinations:
    """Places of values that are not computed yet.

    Attributes:
        reserved: places of graph outputs and of Concats' outputs, the former filled by the caller.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.reserved: dict[Value, Place] = {}
        self._margins: dict[Node, tuple[int, int]] = {}

    def of(self, value: Value) -> Place | None:
        """Where ``value`` should be written; None where nobody waits for it."""
        if value in self.reserved:
            return self.reserved[value]
        return self._in_concat(value) or self._split(value) or self._before_view(value)

    def concat(self, node: Node) -> Place:
        """Memory of a Concat's output.

        A Concat whose inputs stand in a row in a longer Concat is a slice of that one's memory, so
        that every input is written once for all of them.
        """
        value = node.output
        if value not in self.reserved:
            home, slot = home_concat(self.graph, node)
            place = self._before_view(value)
            if home is not node:
                axis = _axis(node)
                start = sum(v.shape[axis] for v in home.inputs[:slot])
                part = slice_place(self.concat(home), value.shape, axis, start)
                place = _writable(value, part) or place
            self.reserved[value] = place or self._own(node)
        return self.reserved[value]

    def _own(self, node: Node) -> Place:
        """New memory for a Concat, with room for pieces beside it."""
        value, axis = node.output, _axis(node)
        before, after = margins(self.graph, node)
        shape = list(value.shape)
        shape[axis] += before + after
        spec = TensorSpec.dense(tuple(shape), value.dtype, value.layout)
        whole = Place(Buffer("arena", spec.nbytes, label=value.name), 0, spec)
        part = _writable(value, slice_place(whole, value.shape, axis, before))
        if before + after and part is not None:
            self._margins[node] = (before, after)
            return part
        spec = dense_spec(value)
        return Place(Buffer("arena", spec.nbytes, label=value.name), 0, spec)

    def _in_concat(self, value: Value) -> Place | None:
        """The slice of the first Concat that reads ``value``, where its kernel may write there."""
        if value.producer is None or isinstance(value.producer.op, Concat):
            return None
        for node, slot in self.graph.consumers(value):
            if not isinstance(node.op, Concat) or node.inputs.count(value) > 1:
                continue
            axis = _axis(node)
            start = sum(v.shape[axis] for v in node.inputs[:slot])
            part = _writable(value, slice_place(self.concat(node), value.shape, axis, start))
            if value.layout == node.output.layout and part is not None:
                return part
        return None

    def _split(self, value: Value) -> Place | None:
        """Where pieces of ``value`` are in a Concat's slices."""
        if value.producer is None or isinstance(value.producer.op, _ALIASES):
            return None
        for node, _ in self.graph.consumers(value):
            join = join_of(self.graph, node) if isinstance(node.op, Split) else None
            if join is None:
                continue
            home, start = join
            whole, axis = self.concat(home), _axis(home)
            before, after = self._margins.get(home, (0, 0))
            end = start + value.shape[axis]
            part = _writable(value, slice_place(whole, value.shape, axis, start))
            inside = -before <= start and end <= home.output.shape[axis] + after
            if inside and part is not None:
                return part
        return None

    def _before_view(self, value: Value) -> Place | None:
        """Where the only reader of ``value``, a view of it, is wanted."""
        uses = self.graph.consumers(value)
        if len(uses) != 1 or self.graph.is_output(value):
            return None
        node = uses[0][0]
        if not isinstance(node.op, Reshape | Transpose | Identity | Dropout):
            return None
        place = self.of(node.output)
        if place is None or not value.shape or 0 in value.shape:
            return None
        strides: tuple[int, ...] | None = place.spec.strides
        if isinstance(node.op, Reshape):
            strides = reshaped_strides(place.spec, value.shape)
        elif isinstance(node.op, Transpose):
            strides = tuple(
                place.spec.strides[node.op.perm.index(d)] for d in range(len(value.shape))
            )
        if strides is None:
            return None
        part = Place(place.buffer, place.offset, TensorSpec(value.shape, place.spec.dtype, strides))
        return settled(value, part)


def _axis(node: Node) -> int:
    op = node.op
    assert isinstance(op, Concat | Split)
    return op.axis % len(node.inputs[0].shape)


def _writable(value: Value, part: Place) -> Place | None:
    """``part``, a slice of a tensor in the value's layout, if a kernel may write there."""
    place = settled(value, part)
    if place is None and value.dtype == part.spec.dtype and part.offset % ALIGN == 0:
        place = part if is_aligned(part.spec) else None
    return place
