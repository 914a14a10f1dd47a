"""Tensors with gaps: a piece of a larger tensor is used where it lies.

A piece along one dimension keeps the strides of the whole. Inside that dimension it is as dense as
the whole, outside of it steps are longer than what they step over: rows have a pitch, the leading
dimension of a matrix in BLAS. Kernels take such tensors; a Reshape that would have to merge
dimensions across a gap does not, nor does an output of the graph, which is dense.
"""

from __future__ import annotations

from collections.abc import Sequence

from nrt.ir.graph import Graph
from nrt.ir.ops.movement import (
    Concat,
    Dropout,
    Identity,
    Reshape,
    Slice,
    Split,
    Transpose,
)
from nrt.ir.value import Node, Value

__all__ = ["home_concat", "join_of", "margins", "reads_pieces", "reshaped_strides"]

Strides = tuple[int, ...]


# -- strides ---------------------------------------------------------------------------------------


def reshaped_strides(
    shape: Sequence[int], strides: Sequence[int], new_shape: Sequence[int]
) -> Strides | None:
    """Strides of a tensor viewed with ``new_shape``; None where strides cannot say it.

    Dimensions that lie in memory like one are merged; each new dimension must divide what is left
    of its run. The tensor is not empty.
    """
    groups = _runs(shape, strides)
    result = [0] * len(new_shape)
    index = len(groups) - 1
    room, step = groups[index]
    for dim in range(len(new_shape) - 1, -1, -1):
        size = new_shape[dim]
        if size == 1:
            continue
        while room == 1 and index > 0:
            index -= 1
            room, step = groups[index]
        if room % size:
            return None
        result[dim] = step
        step *= size
        room //= size
    return tuple(result)


def _runs(shape: Sequence[int], strides: Sequence[int]) -> list[tuple[int, int]]:
    """(size, innermost stride) of runs of dimensions that lie in memory like one."""
    groups: list[tuple[int, int]] = []
    for size, stride in zip(shape, strides, strict=True):
        if size == 1:
            continue
        if groups and groups[-1][1] == size * stride:
            groups[-1] = (groups[-1][0] * size, stride)
        else:
            groups.append((size, stride))
    return groups or [(1, 1)]


# -- readers ---------------------------------------------------------------------------------------


def reads_pieces(graph: Graph, value: Value, axis: int) -> bool:
    """Whether nobody copies ``value`` if it is a piece, along ``axis``, of a larger tensor.

    A Concat that reads it counts as no copy: whoever asks knows where the piece lies.
    """
    if 0 in value.shape:
        return False
    whole = list(value.shape)
    whole[axis] *= 2  # any larger size has its gaps in the same places
    order = value.layout or tuple(range(len(whole)))
    strides, step = [0] * len(whole), 1
    for dim in reversed(order):
        strides[dim] = step
        step *= whole[dim]
    return _all_read(graph, value, tuple(strides))


def _all_read(graph: Graph, value: Value, strides: Strides) -> bool:
    if graph.is_output(value):
        return False
    return all(_reads(graph, node, value, strides) for node, _ in graph.consumers(value))


def _reads(graph: Graph, node: Node, value: Value, strides: Strides) -> bool:
    match node.op:
        case Reshape():
            seen = reshaped_strides(value.shape, strides, node.output.shape)
            return seen is not None and _all_read(graph, node.output, seen)
        case Transpose(perm=perm):
            return _all_read(graph, node.output, tuple(strides[p] for p in perm))
        case Identity() | Dropout() | Split():
            return all(_all_read(graph, v, strides) for v in node.outputs)
        case Slice(steps=steps):
            stepped = tuple(a * b for a, b in zip(strides, steps, strict=True))
            return min(steps, default=1) < 0 or _all_read(graph, node.output, stepped)
        case _:
            return True


# -- concatenations --------------------------------------------------------------------------------


def _axis(node: Node) -> int:
    op = node.op
    assert isinstance(op, Concat | Split)
    return op.axis % len(node.inputs[0].shape)


def _find(run: tuple[Value, ...], values: tuple[Value, ...]) -> int | None:
    """Where ``run`` stands among ``values``."""
    for start in range(len(values) - len(run) + 1):
        if values[start : start + len(run)] == run:
            return start
    return None


def home_concat(graph: Graph, node: Node) -> tuple[Node, int]:
    """The longest Concat among whose inputs those of the Concat ``node`` stand in a row.

    Its memory holds that of ``node`` too, so that every input is written once for both: the layers
    of a DenseNet block, each of which reads all before it.

    Returns:
        That Concat, ``node`` itself if there is none, and the slot where ``node``'s inputs begin.
    """
    best, at = node, 0
    for other, _ in graph.consumers(node.inputs[0]):
        if (
            isinstance(other.op, Concat)
            and len(other.inputs) > len(best.inputs)
            and _axis(other) == _axis(node)
            and other.output.layout == node.output.layout
            and not graph.is_output(other.output)
        ):
            start = _find(node.inputs, other.inputs)
            if start is not None:
                best, at = other, start
    return best, at


def join_of(graph: Graph, split: Node) -> tuple[Node, int] | None:
    """The Concat in whose memory the source of ``split`` may lie: pieces of it belong there.

    The pieces in the Concat are one end of the Split and the opposite end of the Concat, or all of
    the Split anywhere: then the others lie before or behind the Concat's own elements::

        split   [ b2 | b3 | b1 ]
        concat            [ b1 | c2 | c3 ]

    Returns:
        The Concat, and the position of the source along the axis, counted from the Concat's first
        element: negative where other pieces come before it. None where there is no such Concat.
    """
    source, axis = split.inputs[0], _axis(split)
    if graph.is_output(source) or len(graph.consumers(source)) != 1:
        return None
    for end in (split.outputs[-1], split.outputs[0]):
        for node, _ in graph.consumers(end):
            if not isinstance(node.op, Concat) or _axis(node) != axis or not _alike(source, node):
                continue
            home, _ = home_concat(graph, node)
            place = _overlap(split.outputs, home.inputs, axis)
            if place is not None and (not place[1] or _may_grow(graph, home, place[1])):
                return home, place[0]
    return None


def _alike(source: Value, concat: Node) -> bool:
    return source.layout == concat.output.layout and source.dtype == concat.output.dtype


def _overlap(
    pieces: tuple[Value, ...], inputs: tuple[Value, ...], axis: int
) -> tuple[int, int] | None:
    """(position of the pieces from the first input on, how much of them lies beside the inputs)."""

    def length(values: tuple[Value, ...]) -> int:
        return sum(v.shape[axis] for v in values)

    if len(set(inputs)) != len(inputs):
        return None
    start = _find(pieces, inputs)
    if start is not None:
        return length(inputs[:start]), 0
    for count in range(min(len(pieces) - 1, len(inputs)), 0, -1):
        if pieces[-count:] == inputs[:count]:
            return -length(pieces[:-count]), length(pieces[:-count])
        if pieces[:count] == inputs[-count:]:
            return length(inputs[:-count]), length(pieces[count:])
    return None


def _may_grow(graph: Graph, concat: Node, beside: int) -> bool:
    """Whether as much as ``beside`` may lie beside the elements of ``concat``.

    It occupies memory as long as the Concat does, though it is read before that is complete. This
    is worth a copy less, but not a buffer of more than twice the size.
    """
    axis = _axis(concat)
    return beside <= concat.output.shape[axis] and reads_pieces(graph, concat.output, axis)


def margins(graph: Graph, concat: Node) -> tuple[int, int]:
    """Elements along its axis that lie before and behind those of ``concat`` in its buffer."""
    before = after = 0
    axis = _axis(concat)
    size = concat.output.shape[axis]
    for value in (concat.inputs[0], concat.inputs[-1]):
        split = value.producer
        if split is None or not isinstance(split.op, Split) or _axis(split) != axis:
            continue
        join = join_of(graph, split)
        if join is not None and join[0] is concat:
            before = max(before, -join[1])
            after = max(after, join[1] + split.inputs[0].shape[axis] - size)
    return before, after
