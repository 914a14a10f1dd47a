"""How much noise a layer adds by its precision.

The noise-to-signal ratio of a product is about the sum of its operands': of the activation, which
calibration knows for int8, and of the weights, which are rounded here. What of it reaches the
network's results is measured by `probes`, where they are: of the activation directly; noise of the
weights is amplified as that of the layer's own result is. These numbers serve for order alone:
which layer is to be given more precision first. Whether a network is accurate enough is always
measured.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from nrt.ir.graph import Graph
from nrt.precision.costs import INT8
from nrt.precision.survey import Survey
from nrt.quantization import Calibration
from nrt.quantization.weights import channel_view, fitted_scales, quantize_weights

__all__ = ["harms", "probed_tensors", "source_of"]

_FLOATS = {"fp16": 2.0**-11, "bf16": 2.0**-8, "tf32": 2.0**-11, "fp32": 2.0**-24}
"""Largest relative error of rounding; its mean square is about a third of that squared."""


def harms(
    survey: Survey,
    calibration: Calibration | None,
    reach: Mapping[str, float] | None = None,
    finer: Mapping[str, float] | None = None,
) -> dict[str, dict[str, float]]:
    """Layer -> precision that it may have -> noise power over signal power that it adds.

    Args:
        survey: of the network.
        calibration: ranges of its tensors.
        reach: of tensors, what their rounding to int8 adds at the network's results
            (`probes.noise_at_results`); None: what layers add to their own results.
        finer: of tensors whose channels have scales of their own, how much less that noise is than
            with one (`probes.Probes`).
    """
    found: dict[str, dict[str, float]] = {}
    reach, finer = reach or {}, finer or {}
    for name, layer in survey.layers.items():
        terms = 2 if layer.is_product else 1
        node = survey.graph.node(name)
        result = node.outputs[0].name
        gain = _gain(_activation(calibration, result) * finer.get(result, 1.0), reach, result)
        found[name] = {p: terms * gain * _FLOATS[p] ** 2 / 3 for p in layer.able if p != INT8}
        if INT8 in layer.able:
            value = source_of(survey, name)
            rounding = reach.get(value, _activation(calibration, value))
            found[name][INT8] = rounding + gain * _weights(survey.graph, name)
    return found


def source_of(survey: Survey, layer: str) -> str:
    """The tensor whose integers a product of int8 reads."""
    links = (link.value.name for link in survey.shared if layer in link.readers)
    return next(links, survey.graph.node(layer).inputs[0].name)


def probed_tensors(survey: Survey) -> list[str]:
    """Tensors whose `reach` `harms` asks for: what layers of int8 read, and what they give."""
    layers = [name for name, layer in survey.layers.items() if INT8 in layer.able]
    read = [source_of(survey, name) for name in layers]
    given = [survey.graph.node(name).outputs[0].name for name in layers]
    return list(dict.fromkeys([*read, *given]))


def _gain(own: float, reach: Mapping[str, float], value: str) -> float:
    """Noise at the results over noise at ``value``, which is ``own``; 1 where it is not known."""
    return reach[value] / own if own and value in reach else 1.0


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
    found = quantize_weights(node.op, weights, fitted_scales(node.op, weights, name), name)
    wanted = channel_view(node.op, weights).astype(np.float64)
    integers = channel_view(node.op, found.values).astype(np.float64)
    signal = float(np.square(wanted).sum())
    noise = float(np.square(integers * found.scales[:, None] - wanted).sum())
    return noise / signal if signal else 0.0
