"""quantize: layers whose input has a known range compute in int8.

    conv(x, w)  ≈  conv(dequantize(quantize(x, s)), dequantize(p, t))        w ≈ t · p

::

    before   %a = Conv(%x, %w)
    after    %q = Quantize(%x, s)   %d = Dequantize(%q, s)   %v = Dequantize(%p, t)
             %a = Conv(%d, %v)

fold-quantization, which follows, makes one product of integers of that, and the epilogue of what
computes x stores int8. Scales s are those of the calibration, one per tensor; weights have one per
output channel. Everything that reads x reads the integers, so that no float copy of it is stored;
so do residuals between two layers of int8.

Floats remain where int8 does not pay or costs too much accuracy: layers of few input channels (the
first one of a network as a rule), depthwise ones, for which there are no kernels, products of two
activations, and the layer that gives the network's result. A pattern of ``layers`` that asks for
int8 overrules the last. Where the builder chose precisions by time and accuracy, its `Assignment`
stands in the place of both rules, the first layer's and the last one's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from nrt.dtypes import FP32, INT8
from nrt.errors import BuildError
from nrt.ir.graph import Graph
from nrt.ir.op import Array
from nrt.ir.ops import (
    Conv,
    ConvTranspose,
    Dequantize,
    MatMul,
    MaxPool,
    Quantize,
    Reshape,
    Transpose,
)
from nrt.ir.value import Node, Value
from nrt.passes.base import Note, Pass, PassResult
from nrt.passes.fold_quantized_product import LEAST_CHANNELS, dense_channels, is_first
from nrt.passes.precision_rules import REAL, Assignment, LayerRules
from nrt.quantization.calibration import Calibration
from nrt.quantization.weights import quantize_weights

__all__ = ["QuantizeLayers"]

_PRODUCTS = (Conv, ConvTranspose, MatMul)
_MOVES = (MaxPool, Reshape, Transpose)


def _is_quantized(node: Node) -> bool:
    return isinstance(node.op, _PRODUCTS) and node.inputs[0].dtype is INT8


@dataclass(frozen=True)
class QuantizeLayers(Pass):
    """See the module.

    Attributes:
        calibration: ranges of the fused graph's values; None for a model that is quantized already.
        permitted: names of precisions; without ``int8`` nothing happens.
        layers: name pattern -> precision, the first match counts.
        assignment: precisions of what no pattern matches; None: int8 wherever a rule allows it.

    Raises:
        BuildError: int8 is permitted, there are no ranges, and the model has no Q/DQ nodes.
    """

    name: ClassVar[str] = "quantize"
    calibration: Calibration | None = None
    permitted: frozenset[str] = frozenset()
    layers: Mapping[str, str] = field(default_factory=dict)
    assignment: Assignment | None = None

    def required(self) -> str:
        return "precision int8 is what it makes of layers" if "int8" in self.permitted else ""

    def run(self, graph: Graph) -> PassResult:
        if "int8" not in self.permitted:
            return PassResult(graph, False)
        if self.calibration is None:
            if not any(_is_quantized(node) for node in graph.nodes):
                raise BuildError(
                    "precision: int8 needs ranges, and the model has no layer between "
                    "QuantizeLinear and DequantizeLinear; give calibration=, what nrt.calibrate "
                    "(nrt calibrate) found"
                )
            return PassResult(graph, False)
        rules = LayerRules(self.permitted, self.layers)
        notes: list[Note] = []
        chosen: set[Node] = set()
        for node in graph.nodes:
            if isinstance(node.op, _PRODUCTS) and node.inputs[0].dtype is FP32:
                reason = self._reason(graph, node, rules)
                if reason is None:
                    chosen.add(node)
                else:
                    notes.append(self.refused(node, reason))
        quantized = {n for n in graph.nodes if n in chosen or _is_quantized(n)}
        values = dict.fromkeys(self._source(n.inputs[0]) for n in graph.nodes if n in chosen)
        values.update(
            dict.fromkeys(v for n in quantized for v in self._residual(graph, n, quantized))
        )
        for node in graph.nodes:
            if node in chosen:
                scale = self._scale(self._source(node.inputs[0]))
                notes.append(self.fired(node, f"int8: its input has the scale {scale:.4g}"))
                self._weights(graph, node)
        for value in sorted(values, key=lambda v: v.name):
            self._activation(graph, value, chosen)
        return PassResult(graph, bool(values), tuple(notes))

    def refusals(self, graph: Graph) -> dict[str, str | None]:
        """Product of ``graph`` -> why it stays in floats, or None; ``graph`` stays as it is."""
        rules = LayerRules(self.permitted, self.layers)
        return {
            node.name: self._reason(graph, node, rules)
            for node in graph.nodes
            if isinstance(node.op, _PRODUCTS) and node.inputs[0].dtype is FP32
        }

    def source(self, value: Value) -> Value:
        """The value whose integers a layer of int8 that reads ``value`` would read, or move."""
        return self._source(value)

    def _reason(self, graph: Graph, node: Node, rules: LayerRules) -> str | None:
        """Why ``node`` stays in floats, or None."""
        op: Any = node.op
        pattern = rules.pattern(node)
        if pattern is not None and self.layers[pattern] != "int8":
            return f"{self.layers[pattern]}: asked for by pattern {pattern!r}"
        chosen = self.assignment.of(node) if self.assignment is not None else None
        if pattern is None and chosen is not None and chosen[0] != "int8":
            return chosen[1]
        x, w = node.inputs[:2]
        if isinstance(op, ConvTranspose):
            return "no int8: no kernel transposes a convolution of int8"
        if not w.is_constant:
            return "no int8: it multiplies two activations"
        if pattern is None and self.assignment is None and _gives_result(graph, node):
            return "no int8: it gives the network's result, whose rounding nothing averages"
        if isinstance(op, Conv):
            if op.prologue is not None:
                return "no int8: its input has a prologue, which computes floats"
            refusal = dense_channels(w.shape[1], op.groups)
            if refusal is not None and (self.assignment is None or not is_first(node)):
                return f"no int8: {refusal}"
        elif len(w.shape) != 2 or len(x.shape) < 2 or x.shape[-1] % LEAST_CHANNELS or op.trans_a:
            return f"no int8: rows of {x.shape} times {w.shape} are no runs of {LEAST_CHANNELS}"
        assert self.calibration is not None
        if x.name not in self.calibration:
            return f"no int8: the calibration has no range of its input '{x.name}'"
        return None

    def _source(self, value: Value) -> Value:
        """What to quantize for a layer that reads ``value``: a pooling reads integers too.

        Then it has the scale of what it pools, and so has all else that reads that.
        """
        assert self.calibration is not None
        while value.producer is not None and isinstance(value.producer.op, _MOVES):
            before = value.producer.inputs[0]
            if before.producer is None or before.name not in self.calibration:
                break
            value = before
        return value

    def _residual(self, graph: Graph, node: Node, quantized: set[Node]) -> list[Value]:
        """The result of ``node``, if only epilogues of quantized layers read it as a float."""
        assert self.calibration is not None
        value = node.output
        uses = graph.consumers(value)
        inner = all(n in quantized and slot > 1 for n, slot in uses)
        if not uses or not inner or graph.is_output(value) or value.dtype is not FP32:
            return []
        return [value] if value.name in self.calibration else []

    def _scale(self, value: Value) -> float:
        assert self.calibration is not None
        return self.calibration[value.name].scale

    def _activation(self, graph: Graph, value: Value, chosen: set[Node]) -> None:
        """Let the readers of ``value`` read its integers; those of an input only if they multiply.

        What an input holds is there as floats in any case.
        """
        uses = graph.consumers(value)
        origin = value.producer.origin if value.producer is not None else ()
        scale = graph.add_constant(
            f"{value.name}.scale", np.asarray(self._scale(value), np.float32)
        )
        q = graph.add_node(Quantize(INT8), [value, scale], name=f"{value.name}.int8", origin=origin)
        back = graph.add_node(
            Dequantize(FP32), [q.output, scale], name=f"{value.name}{REAL}", origin=origin
        )
        for reader, slot in uses:
            if value.producer is not None or (reader in chosen and slot == 0):
                graph.replace_input(reader, slot, back.output)

    @staticmethod
    def _weights(graph: Graph, node: Node) -> None:
        w = node.inputs[1]
        assert w.constant is not None
        op: Any = node.op
        found = quantize_weights(op, w.constant, name=w.name)
        q = graph.add_constant(f"{w.name}.int8", found.values)
        scale = graph.add_constant(f"{w.name}.scale", _spread(op, found.scales, w.constant))
        back = graph.add_node(
            Dequantize(FP32), [q, scale], name=f"{w.name}.real", origin=node.origin
        )
        graph.replace_input(node, 1, back.output)


def _spread(op: Conv | MatMul, scales: Array, weights: Array) -> Array:
    """``scales`` of output channels in a shape that broadcasts to ``weights``."""
    if isinstance(op, Conv):
        return scales.reshape(-1, *[1] * (weights.ndim - 1))
    return scales[:, None] if op.trans_b else scales


def _gives_result(graph: Graph, node: Node) -> bool:
    """Whether an output of the graph depends on ``node`` through no other product."""
    stack, seen = [node.output], set()
    while stack:
        value = stack.pop()
        if graph.is_output(value):
            return True
        for reader, _ in graph.consumers(value):
            if reader not in seen and not isinstance(reader.op, _PRODUCTS):
                seen.add(reader)
                stack.extend(reader.outputs)
    return False
