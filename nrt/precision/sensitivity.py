"""How much noise a layer adds by its precision, from statistics alone.

The noise-to-signal ratio of a product is about the sum of its operands': of the activation, which
calibration knows for int8, and of the weights, which are rounded here. What of a layer's noise
reaches the network's output is not modelled, so these numbers serve for order alone: which layer is
to be given more precision first. Whether a network is accurate enough is always measured.
"""

from __future__ import annotations

import numpy as np

from nrt.ir.graph import Graph
from nrt.precision.costs import INT8
from nrt.precision.survey import Survey
from nrt.quantization import Calibration
from nrt.quantization.weights import channel_view, quantize_weights

__all__ = ["harms"]

_FLOATS = {"fp16": 2.0**-11, "bf16": 2.0**-8, "tf32": 2.0**-11, "fp32": 2.0**-24}
"""Largest relative error of rounding; its mean square is about a third of that squared."""


def harms(survey: Survey, calibration: Calibration | None) -> dict[str, dict[str, float]]:
    """Layer -> precision that it may have -> noise power over signal power that it adds."""
    found: dict[str, dict[str, float]] = {}
    sources = {r: link.value.name for link in survey.shared for r in link.readers}
    for name, layer in survey.layers.items():
        terms = 2 if layer.is_product else 1
        found[name] = {p: terms * _FLOATS[p] ** 2 / 3 for p in layer.able if p != INT8}
        if INT8 in layer.able:
            value = sources.get(name, survey.graph.node(name).inputs[0].name)
            found[name][INT8] = _activation(calibration, value) + _weights(survey.graph, name)
    return found


def _activation(calibration: Calibration | None, value: str) -> float:
    if calibration is None or value not in calibration:
        return 0.0
    decibels = calibration[value].sqnr
    return 0.0 if decibels is None else 10 ** (-decibels / 10)


def _weights(graph: Graph, name: str) -> float:
    node = graph.node(name)
    weights = node.inputs[1].constant
    if weights is None:
        return 0.0
    found = quantize_weights(node.op, weights, name=name)
    wanted = channel_view(node.op, weights).astype(np.float64)
    integers = channel_view(node.op, found.values).astype(np.float64)
    signal = float(np.square(wanted).sum())
    noise = float(np.square(integers * found.scales[:, None] - wanted).sum())
    return noise / signal if signal else 0.0
