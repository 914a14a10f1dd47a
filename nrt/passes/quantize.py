"""quantize: layers whose input has a known range compute in int8 or fp8.

    conv(x, w)  ≈  conv(dequantize(quantize(x, s)), dequantize(p, t))        w ≈ t · p

::

    before   %a = Conv(%x, %w)
    after    %q = Quantize(%x, s)   %d = Dequantize(%q, s)   %v = Dequantize(%p, t)
             %a = Conv(%d, %v)

fold-quantization, which follows, makes one product of few bits of that, and the epilogue of what
computes x stores them. Scales s are those of the calibration, one per tensor, or one and a zero
point per channel, where that costs nothing (`nrt.quantization.channel_grid`); weights have one per
output channel. Where it saw nothing negative, int8 means that q is uint8: twice the steps.

Everything that reads x reads the quantized numbers, so that no float copy of it is stored; so do
residuals between two such layers. Where layers of int8 and of fp8 read one tensor, it is stored as
both, and what else reads it has the type of the first.

What rounding a layer's weights adds to its results on average is subtracted from its bias, where
the calibration has the means of what the layer reads; see `nrt.quantization.bias_correction`.

Floats remain where few bits do not pay or cost too much accuracy: layers of few input channels (the
first one of a network as a rule), depthwise ones of fp8, for which there are no kernels, products
of two activations, and the layer that gives the network's result. A pattern of ``layers`` that asks
for int8 or fp8 overrules the last. Where both are permitted, int8 wins unless a pattern asks for
fp8. Where the builder chose precisions by time and accuracy, its `Assignment` stands in the place
of both rules, the first layer's and the last one's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from nrt.dtypes import FP32, INT8, DType
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
from nrt.passes.channel_grids import adapt_readers, grid_of_channels, parameters
from nrt.passes.correct_bias import add_to_sums
from nrt.passes.fold_quantized_product import LEAST_CHANNELS, dense_channels, is_first
from nrt.passes.pattern import refuse_second_result
from nrt.passes.precision_rules import (
    QUANTIZED,
    REAL,
    Assignment,
    LayerRules,
    quantized_name,
)
from nrt.quantization.bias_correction import mean_shift
from nrt.quantization.calibration import Calibration
from nrt.quantization.channel_grid import ChannelGrid
from nrt.quantization.weights import fitted_scales, quantize_weights

__all__ = ["QuantizeLayers"]

_PRODUCTS = (Conv, ConvTranspose, MatMul)
_MOVES = (MaxPool, Reshape, Transpose)
_NAMES = {dtype: name for name, dtype in QUANTIZED.items()}


def _quantized_as(node: Node) -> str | None:
    """``int8`` or ``fp8`` where the model itself multiplies such operands."""
    return quantized_name(node.inputs[0].dtype) if isinstance(node.op, _PRODUCTS) else None


@dataclass(frozen=True)
class QuantizeLayers(Pass):
    """See the module.

    Attributes:
        calibration: ranges of the fused graph's values; None for a model that is quantized already.
        permitted: names of precisions; without ``int8`` and ``fp8`` nothing happens.
        layers: name pattern -> precision, the first match counts.
        assignment: precisions of what no pattern matches; None: few bits wherever a rule allows it.
        no_fp8: why the target multiplies no fp8; empty if it does.

    Raises:
        BuildError: int8 or fp8 is permitted, there are no ranges, and the model has no Q/DQ nodes
            of that type; or fp8 without int8, and the target multiplies none.
    """

    name: ClassVar[str] = "quantize"
    calibration: Calibration | None = None
    permitted: frozenset[str] = frozenset()
    layers: Mapping[str, str] = field(default_factory=dict)
    assignment: Assignment | None = None
    no_fp8: str = ""

    @property
    def wanted(self) -> tuple[str, ...]:
        """The permitted precisions of few bits, the preferred one first."""
        return tuple(name for name in QUANTIZED if name in self.permitted)

    def required(self) -> str:
        names = " and ".join(self.wanted)
        return f"precision {names} is what it makes of layers" if names else ""

    def run(self, graph: Graph) -> PassResult:
        if not self.wanted:
            return PassResult(graph, False)
        if self.no_fp8 and self.wanted == ("fp8",):
            raise BuildError(f"precision: fp8: {self.no_fp8}; permit int8 or fp16 instead")
        if self.calibration is None:
            if not any(_quantized_as(n) in self.wanted for n in graph.nodes):
                verb = "needs" if len(self.wanted) == 1 else "need"
                raise BuildError(
                    f"precision: {' and '.join(self.wanted)} {verb} ranges, and the model has no "
                    "such layer between QuantizeLinear and DequantizeLinear; give calibration=, "
                    "what nrt.calibrate (nrt calibrate) found"
                )
            return PassResult(graph, False)
        rules = LayerRules(self.permitted, self.layers)
        notes: list[Note] = []
        chosen: dict[Node, DType] = {}
        for node in graph.nodes:
            if isinstance(node.op, _PRODUCTS) and node.inputs[0].dtype is FP32:
                found = self._choice(graph, node, rules)
                if isinstance(found, DType):
                    chosen[node] = found
                else:
                    notes.append(self.refused(node, found))
        values = self._values(graph, chosen)
        uses = {value: graph.consumers(value) for value, _ in values}
        grids = self._grids(graph, values)
        texts: dict[Node, str] = {}
        shifts: dict[Node, Array] = {}
        corrections: dict[Node, Array] = {}
        for value, of_channels in grids.items():
            for node, shift in adapt_readers(graph, value, of_channels).items():
                shifts[node] = shifts.get(node, 0) + shift
        for node, dtype in chosen.items():
            assert self.calibration is not None
            source = self._source(node.inputs[0])
            read = source if (source, dtype) in values else node.inputs[0]
            grid = grids.get(read)
            stored = self._stored(read, dtype)
            scale = self.calibration.scale(read.name, stored)
            what = f"{stored} of scale {scale:.4g}" if grid is None else str(grid)
            texts[node] = f"{_NAMES[dtype]}: its input is {what}"
            added = self._weights(graph, node, dtype, grid)
            if added is not None:
                corrections[node] = -added
                shifts[node] = shifts.get(node, 0) - added
        for value, dtype in sorted(values, key=lambda pair: (pair[0].name, pair[1].name)):
            back = self._round_trip(graph, value, dtype, grids.get(value))
            for reader, slot in uses[value]:
                if reader in chosen and slot == 0:
                    reads = chosen[reader] is dtype
                else:
                    # What an input holds is there as floats in any case.
                    reads = values[value, dtype] and value.producer is not None
                if reads:
                    graph.replace_input(reader, slot, back)
        for node in dict.fromkeys((*chosen, *shifts)):
            # Last: this may put another node in the place of this one.
            text = texts.get(node, "reads bytes around the means of channels")
            if node in shifts:
                text += self._shifted(graph, node, shifts[node], corrections.get(node))
            notes.append(self.fired(node, text))
        return PassResult(graph, bool(values), tuple(notes))

    def refusals(self, graph: Graph) -> dict[str, str | None]:
        """Product of ``graph`` -> why it is not int8, or None; ``graph`` stays as it is."""
        rules = LayerRules(self.permitted, self.layers)
        return {
            node.name: self._refusal(graph, node, "int8", rules.pattern(node))
            for node in graph.nodes
            if isinstance(node.op, _PRODUCTS) and node.inputs[0].dtype is FP32
        }

    def source(self, value: Value) -> Value:
        """The value whose integers a layer of int8 that reads ``value`` would read, or move."""
        return self._source(value)

    def _choice(self, graph: Graph, node: Node, rules: LayerRules) -> DType | str:
        """The type of the operands of ``node``, or why it stays in floats."""
        pattern = rules.pattern(node)
        chosen = self.assignment.of(node) if self.assignment is not None else None
        names = self.wanted
        if pattern is not None and self.layers[pattern] in QUANTIZED:
            names = (self.layers[pattern],)
        elif pattern is None and chosen is not None:
            if chosen[0] not in QUANTIZED:
                return chosen[1]
            names = (chosen[0],)
        reasons = []
        for name in names:
            reason = self._refusal(graph, node, name, pattern)
            if reason is None:
                return QUANTIZED[name]
            reasons.append(reason)
        return reasons[0]

    def _refusal(self, graph: Graph, node: Node, name: str, pattern: str | None) -> str | None:
        """Why ``node``, which ``pattern`` matches, does not have precision ``name``, or None."""
        if pattern is not None and self.layers[pattern] != name:
            return f"{self.layers[pattern]}: asked for by pattern {pattern!r}"
        reason = self._reason(graph, node, name, asked=pattern is not None)
        return None if reason is None else f"no {name}: {reason}"

    def _reason(self, graph: Graph, node: Node, name: str, *, asked: bool) -> str | None:
        """Why the operands of ``node`` cannot be of precision ``name``, or None."""
        op: Any = node.op
        x, w = node.inputs[:2]
        several = refuse_second_result(node)
        if several is not None:
            return several
        if name == "fp8" and self.no_fp8:
            return self.no_fp8
        if isinstance(op, ConvTranspose):
            return f"no kernel transposes a convolution of {name}"
        if not w.is_constant:
            return "it multiplies two activations"
        if not asked and self.assignment is None and _gives_result(graph, node):
            return "it gives the network's result, whose rounding nothing averages"
        if isinstance(op, Conv):
            if op.prologue is not None:
                return "its input has a prologue, which computes floats"
            refusal = dense_channels(w.shape[1], op.groups, name)
            wanted = asked or self.assignment is not None
            if refusal is not None and not (wanted and is_first(node)):
                return refusal
        elif len(w.shape) != 2 or len(x.shape) < 2 or x.shape[-1] % LEAST_CHANNELS or op.trans_a:
            return f"rows of {x.shape} times {w.shape} are no runs of {LEAST_CHANNELS}"
        assert self.calibration is not None
        if x.name not in self.calibration:
            return f"the calibration has no range of its input '{x.name}'"
        return None

    def _values(
        self, graph: Graph, chosen: Mapping[Node, DType]
    ) -> dict[tuple[Value, DType], bool]:
        """What to quantize, as what, and whether those read it that do not multiply it."""
        first: dict[Value, DType] = {}
        for node, dtype in chosen.items():
            first.setdefault(self._source(node.inputs[0]), dtype)
        values = dict.fromkeys(first.items(), True)
        for node, dtype in chosen.items():
            if first[self._source(node.inputs[0])] is not dtype:
                # What is pooled, or moved, before it is of the other type.
                values.setdefault((node.inputs[0], dtype), False)
        found = {n: _quantized_as(n) for n in graph.nodes}
        kinds = {n: QUANTIZED[name] for n, name in found.items() if name} | dict(chosen)
        for node in kinds:
            residual = self._residual(graph, node, kinds)
            if residual is not None and residual not in first:
                reader, _ = graph.consumers(residual)[0]
                values[residual, kinds[reader]] = True
        return values

    def _grids(
        self, graph: Graph, values: Mapping[tuple[Value, DType], bool]
    ) -> dict[Value, ChannelGrid]:
        """What of that is to have a scale and a zero point per channel."""
        assert self.calibration is not None
        kinds = Counter(value for value, _ in values)
        found = {}
        for (value, dtype), by_all in values.items():
            if by_all and dtype is INT8 and kinds[value] == 1:
                grid = grid_of_channels(graph, value, self.calibration)
                if grid is not None:
                    found[value] = grid
        return found

    def _source(self, value: Value) -> Value:
        """What to quantize for a layer that reads ``value``: a pooling reads few bits too.

        Then it has the scale of what it pools, and so has all else that reads that.
        """
        assert self.calibration is not None
        while value.producer is not None and isinstance(value.producer.op, _MOVES):
            before = value.producer.inputs[0]
            if before.producer is None or before.name not in self.calibration:
                break
            value = before
        return value

    def _residual(self, graph: Graph, node: Node, quantized: Mapping[Node, DType]) -> Value | None:
        """The result of ``node``, if only epilogues of quantized layers read it as a float."""
        assert self.calibration is not None
        if len(node.outputs) > 1:
            return None
        value = node.output
        uses = graph.consumers(value)
        inner = all(n in quantized and slot > 1 for n, slot in uses)
        if not uses or not inner or graph.is_output(value) or value.dtype is not FP32:
            return None
        return value if value.name in self.calibration else None

    def _stored(self, value: Value, dtype: DType) -> DType:
        """``dtype``, or uint8 where that is int8 and the calibration saw nothing negative."""
        assert self.calibration is not None
        return self.calibration[value.name].stored if dtype is INT8 else dtype

    def _round_trip(
        self, graph: Graph, value: Value, dtype: DType, grid: ChannelGrid | None
    ) -> Value:
        """``value`` quantized and dequantized; by one scale too where channels have their own."""
        assert self.calibration is not None
        stored = self._stored(value, dtype)
        origin = value.producer.origin if value.producer is not None else ()
        number = self.calibration.scale(value.name, stored) if grid is None else grid.scale
        scale = graph.add_constant(f"{value.name}.scale", np.asarray(number, np.float32))
        operands = [scale] if grid is None else parameters(graph, value, grid)
        name = f"{value.name}.{_NAMES[dtype]}"
        q = graph.add_node(Quantize(stored), [value, *operands], name=name, origin=origin)
        return graph.add_node(
            Dequantize(FP32), [q.output, scale], name=f"{value.name}{REAL}", origin=origin
        ).output

    def _weights(
        self, graph: Graph, node: Node, dtype: DType, grid: ChannelGrid | None
    ) -> Array | None:
        """Round the weights; what that adds to the mean of each output channel, where known.

        ``grid`` is that of the channels of what the node reads.
        """
        x, w = node.inputs[:2]
        assert w.constant is not None
        op: Any = node.op
        fitted = fitted_scales(op, w.constant, w.name) if dtype is INT8 else None
        found = quantize_weights(op, w.constant, fitted, w.name, dtype)
        scales = _spread(op, found.scales, w.constant)
        q = graph.add_constant(f"{w.name}.{_NAMES[dtype]}", found.values)
        scale = graph.add_constant(f"{w.name}.scale", scales)
        back = graph.add_node(
            Dequantize(FP32), [q, scale], name=f"{w.name}.real", origin=node.origin
        )
        graph.replace_input(node, 1, back.output)
        assert self.calibration is not None
        means = self.calibration[x.name].means
        if means is None:
            return None
        change = found.values.astype(np.float64) * scales - w.constant
        read = np.asarray(means) if grid is None else grid.as_read(np.asarray(means))
        return mean_shift(op, change, read.tolist(), x.shape)

    def _shifted(self, graph: Graph, node: Node, shift: Array, correction: Array | None) -> str:
        """Add ``shift`` to the bias of ``node``; how much of that is ``correction``, as text."""
        assert self.calibration is not None
        name = node.output.name
        fits = add_to_sums(graph, node, shift)
        # Zero points are given only where every reader has room for them.
        assert fits or np.array_equal(shift, correction if correction is not None else 0)
        if correction is None:
            return ""
        if not fits:
            return ", its bias is not corrected: its epilogue reads too much to take one in"
        largest = float(np.abs(correction).max(initial=0))
        if name not in self.calibration:
            return f", its bias is corrected by up to {largest:.3g}"
        steps = largest / self.calibration.scale(name)
        return f", its bias is corrected by up to {steps:.2f} steps of its result"


def _spread(op: Conv | MatMul, scales: Array, weights: Array) -> Array:
    """``scales`` of output channels in a shape that broadcasts to ``weights``."""
    if isinstance(op, Conv):
        return scales.reshape(-1, *[1] * (weights.ndim - 1))
    return scales[:, None] if op.trans_b else scales


def _gives_result(graph: Graph, node: Node) -> bool:
    """Whether an output of the graph depends on ``node`` through no other product."""
    stack, seen = [*node.outputs], set()
    while stack:
        value = stack.pop()
        if graph.is_output(value):
            return True
        for reader, _ in graph.consumers(value):
            if reader not in seen and not isinstance(reader.op, _PRODUCTS):
                seen.add(reader)
                stack.extend(reader.outputs)
    return False
