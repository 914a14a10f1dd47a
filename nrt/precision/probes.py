"""How much of a tensor's rounding reaches the network's results, measured.

Behind every tensor that may be stored as int8 the fused fp32 graph is given a probe,

    y = x + on · (s · clip(round(x / s)) - x)

with a switch of its own as an input of the network. One network, built once, then runs with every
probe off, and with each of them on alone: what its results differ by is the noise of that tensor,
amplified or damped by all that comes behind it. That the sum of a few such differences is the whole
network's holds as long as they are small; it is the order that is wanted.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nrt.dtypes import FP32, UINT8
from nrt.ir.graph import Graph
from nrt.ir.op import Array
from nrt.ir.ops import Pointwise
from nrt.ir.pointwise import Builder, Program
from nrt.precision.accuracy import Run
from nrt.quantization import Calibration
from nrt.quantization.data import Item

__all__ = ["Probes", "insert_probes", "noise_at_results"]


@dataclass(frozen=True)
class Probes:
    """A graph with switches.

    Attributes:
        graph: gives what the graph without probes gives, if all switches are 0.
        switches: name of a tensor -> name of the input, fp32 of one element, that is 1 to round it.
    """

    graph: Graph
    switches: Mapping[str, str]


def insert_probes(graph: Graph, names: Collection[str], calibration: Calibration) -> Probes:
    """A copy of ``graph`` with a probe behind every tensor of ``names``.

    Args:
        graph: fused and in fp32; left as it is.
        names: tensors; those without a range, of another type, or constant get none.
        calibration: the scales.
    """
    probed = graph.copy()
    switches = {}
    for name in names:
        value = probed.value(name) if probed.has_value(name) else None
        if value is None or value.is_constant or value.dtype is not FP32:
            continue
        if name not in calibration:
            continue
        stored = calibration[name].stored
        program = _program(calibration.scale(name), *((0, 255) if stored is UINT8 else (-127, 127)))
        switch = probed.add_input(probed.unique_name(f"{name}.on"), (1,) * len(value.shape), FP32)
        node = probed.add_node(Pointwise(program, FP32), [value, switch], name=f"{name}.probe")
        probed.replace_value(value, node.output, except_node=node)
        switches[name] = switch.name
    return Probes(probed, switches)


def _program(scale: float, low: int, high: int) -> Program:
    """``x + on * (scale * clip(round(x / scale)) - x)``."""
    b = Builder("ff")
    steps = b("round", b("mul", 0, b.const(1.0 / scale)))
    kept = b("min", b("max", steps, b.const(float(low))), b.const(float(high)))
    noise = b("sub", b("mul", kept, b.const(scale)), 0)
    return b.build(b("add", 0, b("mul", 1, noise)))


def noise_at_results(probes: Probes, run: Run, batches: Sequence[Item]) -> dict[str, float]:
    """Tensor -> noise power over signal power of the results with it alone rounded.

    Of several results the powers are added up as shares of their own signal. Infinite where a
    result is not a number that was one before.

    Args:
        probes: of the graph.
        run: the network of ``probes.graph``.
        batches: inputs of the network, without the switches.
    """
    shapes = {v.name: v.shape for v in probes.graph.inputs}
    off = {switch: np.zeros(shapes[switch], np.float32) for switch in probes.switches.values()}
    plain = [_results(run, {**batch, **off}) for batch in batches]
    found = {}
    for name, switch in probes.switches.items():
        feeds = {**off, switch: np.ones(shapes[switch], np.float32)}
        found[name] = _noise([_results(run, {**batch, **feeds}) for batch in batches], plain)
    return found


def _results(run: Run, feeds: Item) -> dict[str, Array]:
    return {name: np.array(a, np.float64) for name, a in run(feeds).items()}


def _noise(found: Sequence[Mapping[str, Array]], plain: Sequence[Mapping[str, Array]]) -> float:
    total = 0.0
    for name in plain[0]:
        noise = signal = 0.0
        for results, wanted in zip(found, plain, strict=True):
            finite = np.isfinite(wanted[name])
            noise += float(np.square(results[name][finite] - wanted[name][finite]).sum())
            signal += float(np.square(wanted[name][finite]).sum())
        if noise:
            total += noise / signal if signal else float("inf")
    return total if np.isfinite(total) else float("inf")
