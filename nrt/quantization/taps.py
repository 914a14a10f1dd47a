"""Where calibration looks: a histogram beside every activation that could be quantized.

    before   %a = Conv(%x, %w)
    after    %a = Conv(%x, %w)   %x.histogram = AbsHistogram(%x)   %a.histogram = AbsHistogram(%a)
             %x.sums = Reduce(%x; sum)   %x.lows = Reduce(%x; min)   %x.highs = Reduce(%x; max)

Beside what a product with constant weights reads, perhaps behind a MaxPool, stand the sums and the
extremes of its channels. The graph then gives nothing but these: what leaves the device is 32 KB a
tensor, and three numbers per channel (and, for a convolution, per image), however large the tensor
is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nrt.dtypes import FP32
from nrt.errors import CalibrationError
from nrt.ir.graph import Graph
from nrt.ir.op import Op
from nrt.ir.ops import (
    AbsHistogram,
    Conv,
    Dropout,
    Expand,
    Identity,
    MatMul,
    MaxPool,
    Reduce,
    Reformat,
    Reshape,
    Transpose,
)
from nrt.ir.value import Node, Value

__all__ = ["ChannelTaps", "Taps", "insert_taps"]

_SAME_RANGE = (Dropout, Expand, Identity, Reformat, Reshape, Transpose)
"""Ops whose result holds the elements of their input, all of them and no others."""


@dataclass(frozen=True)
class ChannelTaps:
    """Where the sums and the extremes of a tensor's channels are.

    Each is an output of the graph that, reshaped to ``[-1, channels]``, holds a number of each
    channel per row, of a portion of its elements.

    Attributes:
        sums: name of the output of sums.
        lows: of the smallest elements.
        highs: of the largest elements.
        channels: how many.
        count: elements of one channel in all portions together.
    """

    sums: str
    lows: str
    highs: str
    channels: int
    count: int


@dataclass(frozen=True)
class Taps:
    """A graph of histograms, and of sums and extremes of channels.

    Attributes:
        graph: its outputs are histograms, one per tapped value, and what ``channels`` names.
        outputs: name of every activation -> name of the output that holds its histogram; values
            that only move another one's elements share its.
        channels: name of what a Conv or MatMul with constant weights reads, also behind a MaxPool,
            -> its channels' sums and extremes; not where readers disagree on the axis of channels.
    """

    graph: Graph
    outputs: Mapping[str, str]
    channels: Mapping[str, ChannelTaps]


def insert_taps(graph: Graph) -> Taps:
    """A graph that gives the histogram of every fp32 activation of ``graph``, inputs included.

    What counts, adds up or compares the elements of a result stands right behind the node that
    gives it, so that activations live no longer than they would without.

    Args:
        graph: fused and in fp32; left as it is.

    Raises:
        CalibrationError: it has no fp32 activation.
    """
    sources = {
        value: _source(value)
        for value in (*graph.inputs, *(v for node in graph.nodes for v in node.outputs))
        if value.dtype is FP32 and 0 not in value.shape
    }
    sources = {value: source for value, source in sources.items() if not source.is_constant}
    if not sources:
        raise CalibrationError(
            f"graph '{graph.name}' has no fp32 activation: there is nothing to calibrate"
        )
    labels = {s: graph.unique_name(f"{s.name}.histogram") for s in sources.values()}
    counted: dict[Value, list[tuple[str, Op]]] = {}
    for value, label in labels.items():
        counted.setdefault(value, []).append((label, AbsHistogram()))
    channels = {}
    for value in sources:
        axes = _channel_axes(graph, value)
        if axes is not None:
            found = _channel_taps(graph, value, axes)
            channels[value.name] = found
            counted.setdefault(value, []).extend(
                (label, Reduce(kind, axes))
                for label, kind in ((found.sums, "sum"), (found.lows, "min"), (found.highs, "max"))
            )
    return Taps(
        _tapped(graph, counted),
        {value.name: labels[source] for value, source in sources.items()},
        channels,
    )


def _channel_axes(graph: Graph, value: Value) -> tuple[int, ...] | None:
    """What to reduce for a number per channel that products read; None if none reads it.

    Images stay apart, since kernels reduce space alone in any layout.
    """
    rank = len(value.shape)
    found = {
        tuple(range(2, rank)) if isinstance(node.op, Conv) else tuple(range(rank - 1))
        for node in _products(graph, value)
    }
    return found.pop() if len(found) == 1 else None


def _products(graph: Graph, value: Value) -> list[Node]:
    """What multiplies ``value``, or what a MaxPool takes of it, by constant weights."""
    found = []
    for node, slot in graph.consumers(value):
        if isinstance(node.op, MaxPool):
            found += _products(graph, node.output)
        elif slot == 0 and _multiplies_constant(node):
            found.append(node)
    return found


def _multiplies_constant(node: Node) -> bool:
    op: Any = node.op
    if isinstance(op, MatMul):
        matrices = len(node.inputs[0].shape) > 1 and len(node.inputs[1].shape) == 2
        return node.inputs[1].is_constant and matrices and not op.trans_a
    return isinstance(op, Conv) and op.prologue is None and node.inputs[1].is_constant


def _channel_taps(graph: Graph, value: Value, axes: tuple[int, ...]) -> ChannelTaps:
    sums, lows, highs = (
        graph.unique_name(f"{value.name}.{what}") for what in ("sums", "lows", "highs")
    )
    channels = value.shape[1 if axes[:1] == (2,) else -1]
    return ChannelTaps(sums, lows, highs, channels, math.prod(value.shape) // channels)


def _tapped(graph: Graph, counted: Mapping[Value, Sequence[tuple[str, Op]]]) -> Graph:
    """A copy of ``graph`` whose outputs are what the ops in ``counted`` make of its values."""
    tapped = Graph(graph.name)
    copies: dict[Value, Value] = {}

    def keep(old: Value, new: Value) -> None:
        copies[old] = new
        tapped.set_layout(new, old.layout)
        for label, op in counted.get(old, ()):
            node = tapped.add_node(op, [new], name=label)
            tapped.set_output(label, node.output)

    for value in graph.constants:
        assert value.constant is not None
        keep(value, tapped.add_constant(value.name, value.constant))
    for value in graph.inputs:
        keep(value, tapped.add_input(value.name, value.shape, value.dtype))
    for node in graph.nodes:
        new = tapped.add_node(
            node.op,
            [copies[v] for v in node.inputs],
            name=node.name,
            origin=node.origin,
            output_names=[v.name for v in node.outputs],
        )
        for old, copy in zip(node.outputs, new.outputs, strict=True):
            keep(old, copy)
    tapped.prune()
    return tapped


def _source(value: Value) -> Value:
    """The value whose elements ``value`` holds."""
    while value.producer is not None and isinstance(value.producer.op, _SAME_RANGE):
        before = value.producer.inputs[0]
        if before.dtype is not FP32:
            break
        value = before
    return value
