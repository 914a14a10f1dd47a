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
    """A copy of ``graph`` that gives the histogram of every fp32 activation, inputs included.

    Args:
        graph: fused and in fp32; left as it is.

    Raises:
        CalibrationError: it has no fp32 activation.
    """
    graph = graph.copy()
    outputs: dict[str, str] = {}
    for value in (*graph.inputs, *(v for node in graph.nodes for v in node.outputs)):
        if value.dtype is not FP32 or 0 in value.shape:
            continue
        source = _source(value)
        if source.is_constant:
            continue
        if source.name not in outputs:
            node = graph.add_node(AbsHistogram(), [source], name=f"{source.name}.histogram")
            outputs[source.name] = node.output.name
        outputs[value.name] = outputs[source.name]
    if not outputs:
        raise CalibrationError(
            f"graph '{graph.name}' has no fp32 activation: there is nothing to calibrate"
        )
    inputs = [v.name for v in graph.inputs]
    part = graph.extract(inputs, dict.fromkeys(outputs.values()))
    return Taps(part, outputs)


def _source(value: Value) -> Value:
    """The value whose elements ``value`` holds."""
    while value.producer is not None and isinstance(value.producer.op, _SAME_RANGE):
        before = value.producer.inputs[0]
        if before.dtype is not FP32:
            break
        value = before
    return value
