"""Where calibration looks: a histogram beside every activation that could be quantized.

    before   %a = Conv(%x, %w)
    after    %a = Conv(%x, %w)   %x.histogram = AbsHistogram(%x)   %a.histogram = AbsHistogram(%a)

The graph then gives nothing but histograms: what leaves the device is 32 KB a tensor, however large
the tensor is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nrt.dtypes import FP32
from nrt.errors import CalibrationError
from nrt.ir.graph import Graph
from nrt.ir.ops import (
    AbsHistogram,
    Dropout,
    Expand,
    Identity,
    Reformat,
    Reshape,
    Transpose,
)
from nrt.ir.value import Value

__all__ = ["Taps", "insert_taps"]

_SAME_RANGE = (Dropout, Expand, Identity, Reformat, Reshape, Transpose)
"""Ops whose result holds the elements of their input, all of them and no others."""


@dataclass(frozen=True)
class Taps:
    """A graph of histograms.

    Attributes:
        graph: its outputs are histograms, one per tapped value.
        outputs: name of every activation -> name of the output that holds its histogram; values
            that only move another one's elements share its.
    """

    graph: Graph
    outputs: Mapping[str, str]


def insert_taps(graph: Graph) -> Taps:
    """A graph that gives the histogram of every fp32 activation of ``graph``, inputs included.

    A histogram stands right behind the node whose result it counts, so that activations live no
    longer than they would without.

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
    return Taps(
        _with_histograms(graph, labels),
        {value.name: labels[source] for value, source in sources.items()},
    )


def _with_histograms(graph: Graph, labels: Mapping[Value, str]) -> Graph:
    """A copy of ``graph`` whose outputs are the histograms of the values in ``labels``."""
    tapped = Graph(graph.name)
    copies: dict[Value, Value] = {}

    def keep(old: Value, new: Value) -> None:
        copies[old] = new
        tapped.set_layout(new, old.layout)
        if old in labels:
            node = tapped.add_node(AbsHistogram(), [new], name=labels[old])
            tapped.set_output(labels[old], node.output)

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
