"""How much of a tensor's rounding reaches the network's results, measured.

Behind every tensor that may be stored as int8 the fused fp32 graph is given a probe,

    y = x + on · (s · clip(round(x / s)) - x)        with scales of channels where it will have them

with a switch of its own as an input of the network. One network, built once, then runs with every
probe off, and with each of them on alone: what its results differ by is the noise of that tensor,
amplified or damped by all that comes behind it. That the sum of a few such differences is the whole
network's holds as long as they are small; it is the order that is wanted.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from nrt.dtypes import FP32, UINT8
from nrt.ir.graph import Graph
from nrt.ir.op import Array
from nrt.ir.ops import Pointwise
from nrt.ir.ops.common import kind_of
from nrt.ir.pointwise import Builder, Program
from nrt.passes.channel_grids import grid_of_channels, parameters
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
        finer: name of a tensor whose channels have scales of their own -> mean square of these over
            the square of the one that it would have.
    """

    graph: Graph
    switches: Mapping[str, str]
    finer: Mapping[str, float] = field(default_factory=dict)


def insert_probes(graph: Graph, names: Collection[str], calibration: Calibration) -> Probes:
    """A copy of ``graph`` with a probe behind every tensor of ``names``.

    Args:
        graph: fused and in fp32; left as it is.
        names: tensors; those without a range, of another type, or constant get none.
        calibration: the scales.
    """
    known = [n for n in names if n in calibration and graph.has_value(n)]
    grids = {n: grid_of_channels(graph, graph.value(n), calibration) for n in known}
    probed = graph.copy()
    switches, finer = {}, {}
    for name, grid in grids.items():
        value = probed.value(name)
        if value.is_constant or value.dtype is not FP32:
            continue
        low, high = (0, 255) if calibration[name].stored is UINT8 else (-127, 127)
        scale = calibration.scale(name)
        if grid is None:
            operands = [probed.add_constant(f"{name}.scale", np.asarray(scale, np.float32))]
        else:
            operands = parameters(probed, value, grid)
            finer[name] = float(np.square(grid.scales.astype(np.float64) / scale).mean())
        program = _program(low, high, [kind_of(v.dtype) for v in operands])
        switch = probed.add_input(probed.unique_name(f"{name}.on"), (1,) * len(value.shape), FP32)
        inputs = [value, switch, *operands]
        node = probed.add_node(Pointwise(program, FP32), inputs, name=f"{name}.probe")
        probed.replace_value(value, node.output, except_node=node)
        switches[name] = switch.name
    return Probes(probed, switches, finer)


def _program(low: int, high: int, operands: Sequence[str]) -> Program:
    """``x + on * (scale * (clip(round(x / scale) + zero) - zero) - x)``.

    Args:
        low, high: of the integers.
        operands: kinds of the scale and, where there is one, the zero point.
    """
    b = Builder(["f", "f", *operands])
    scale = 2
    zero = b("to_f", 3) if len(operands) > 1 else None
    steps = b("round", b("div", 0, scale))
    if zero is not None:
        steps = b("add", steps, zero)
    kept = b("min", b("max", steps, b.const(float(low))), b.const(float(high)))
    if zero is not None:
        kept = b("sub", kept, zero)
    noise = b("sub", b("mul", kept, scale), 0)
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
