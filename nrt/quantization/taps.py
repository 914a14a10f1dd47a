"""Where calibration looks: a histogram beside every activation that could be quantized.

    before   %a = Conv(%x, %w)
    after    %a = Conv(%x, %w)   %x.histogram = AbsHistogram(%x)   %a.histogram = AbsHistogram(%a)
             %x.sums = Reduce(%x; sum)

Beside what a product with constant weights reads stand the sums of its channels. The graph then
gives nothing but these: what leaves the device is 32 KB a tensor, and a number per channel (and,
for a convolution, per image), however large the tensor is.
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
    Reduce,
    Reformat,
    Reshape,
    Transpose,
)
from nrt.ir.value import Node, Value

__all__ = ["ChannelSums", "Taps", "insert_taps"]

_SAME_RANGE = (Dropout, Expand, Identity, Reformat, Reshape, Transpose)
"""Ops whose result holds the elements of their input, all of them and no others."""


@dataclass(frozen=True)
class ChannelSums:
    """Where the sums of a tensor's channels are.

    Attributes:
        output: name of the graph's output; reshaped to ``[-1, channels]`` its rows add up to them.
        channels: how many.
        count: elements of one channel.
    """

    output: str
    channels: int
    count: int


@dataclass(frozen=True)
class Taps:
    """A graph of histograms and sums.

    Attributes:
        graph: its outputs are histograms, one per tapped value, and sums of channels.
        outputs: name of every activation -> name of the output that holds its histogram; values
            that only move another one's elements share its.
        sums: name of what a Conv or MatMul with constant weights reads -> its channels' sums; not
            where such readers disagree on the axis of the channels.
    """

    graph: Graph
    outputs: Mapping[str, str]
    sums: Mapping[str, ChannelSums]


def insert_taps(graph: Graph) -> Taps:
    """A graph that gives the histogram of every fp32 activation of ``graph``, inputs included.

    What counts or adds up a result stands right behind the node that gives it, so that activations
    live no longer than they would without.

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
    reductions = {v: axes for v in sources if (axes := _summed_axes(graph, v)) is not None}
    adders = {v: graph.unique_name(f"{v.name}.sums") for v in reductions}
    counted: dict[Value, list[tuple[str, Op]]] = {}
    for value, label in labels.items():
        counted.setdefault(value, []).append((label, AbsHistogram()))
    for value, label in adders.items():
        counted.setdefault(value, []).append((label, Reduce("sum", reductions[value])))
    return Taps(
        _tapped(graph, counted),
        {value.name: labels[source] for value, source in sources.items()},
        {value.name: _sums(value, reductions[value], label) for value, label in adders.items()},
    )


def _summed_axes(graph: Graph, value: Value) -> tuple[int, ...] | None:
    """What to add up for the sums of the channels that products read; None if none reads it.

    Images stay apart, since kernels reduce space alone in any layout.
    """
    rank = len(value.shape)
    found = {
        tuple(range(2, rank)) if isinstance(node.op, Conv) else tuple(range(rank - 1))
        for node, slot in graph.consumers(value)
        if slot == 0 and _multiplies_constant(node)
    }
    return found.pop() if len(found) == 1 else None


def _multiplies_constant(node: Node) -> bool:
    op: Any = node.op
    if isinstance(op, MatMul):
        matrices = len(node.inputs[0].shape) > 1 and len(node.inputs[1].shape) == 2
        return node.inputs[1].is_constant and matrices and not op.trans_a
    return isinstance(op, Conv) and op.prologue is None and node.inputs[1].is_constant


def _sums(value: Value, axes: tuple[int, ...], output: str) -> ChannelSums:
    channels = value.shape[1 if axes[:1] == (2,) else -1]
    return ChannelSums(output, channels, math.prod(value.shape) // channels)


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
