"""What there is to choose: the layers of the fused graph, what each may compute in, who reads whom.

Layers are the nodes that `select-precision` decides about; those with products may be int8 as well.
Everything is taken from the passes' own rules: `QuantizeLayers.refusals` says what cannot be int8,
patterns of ``layers=`` leave one precision, calibration says where fp16 would overflow.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nrt.dtypes import BYTES, FP32, FP64
from nrt.ir.graph import Graph
from nrt.ir.ops import Conv, ConvTranspose, Elementwise, MatMul, PooledMatMul
from nrt.ir.value import Node, Value
from nrt.passes.pipeline import PipelineOptions
from nrt.passes.precision_rules import STORAGE, Assignment, LayerRules
from nrt.passes.quantize import QuantizeLayers
from nrt.passes.select_precision import MOVES, SelectPrecision
from nrt.precision.costs import INT8, floats_of

__all__ = ["Layer", "Link", "Survey", "survey"]

_PRODUCTS = (Conv, ConvTranspose, MatMul, PooledMatMul)


@dataclass(frozen=True)
class Layer:
    """A node of the fused graph that has a precision.

    Attributes:
        name: the node's.
        origins: the model's nodes behind it.
        is_product: whether it is a convolution or a matrix product.
        is_integer: whether the model itself multiplies int8 here: what is chosen is then the type
            of its floats.
        able: precisions that it may have, the fastest kind first.
        refusals: permitted precision that it cannot have -> why.
        work: multiplications of a product, elements of another op's result.
    """

    name: str
    origins: tuple[str, ...]
    is_product: bool
    is_integer: bool
    able: tuple[str, ...]
    refusals: Mapping[str, str]
    work: int


@dataclass(frozen=True)
class Link:
    """A value between layers.

    Attributes:
        value: in the fused graph.
        source: the layer that computes it; None where none does.
        readers: the layers that want it in their own type.
        others: layers that read it in whatever type it has.
    """

    value: Value
    source: str | None
    readers: tuple[str, ...]
    others: tuple[str, ...] = ()


@dataclass(frozen=True)
class Survey:
    """See the module.

    Attributes:
        graph: fused, before anything is quantized.
        layers: by name, in the graph's order.
        shared: values that a product may read as int8, with all products that read them.
        between: values that a layer in floats may want in another type than its source's.
        floats: permitted precisions of floats, the fastest first.
    """

    graph: Graph
    layers: Mapping[str, Layer]
    shared: tuple[Link, ...]
    between: tuple[Link, ...]
    floats: tuple[str, ...] = field(default=("fp32",))

    @property
    def home(self) -> str:
        """The type of floats around layers of int8."""
        return floats_of(self.floats[0], "")

    @property
    def precisions(self) -> tuple[str, ...]:
        """All that a layer may have, int8 first, then as they are fast."""
        found = {p for layer in self.layers.values() for p in layer.able}
        return tuple(p for p in dict.fromkeys((INT8, *self.floats, "fp32")) if p in found)

    def single(self, precision: str) -> dict[str, str]:
        """``precision`` wherever it can be; elsewhere the fastest that is at least as wide."""
        order = list(self.precisions)
        wide = order[order.index(precision) :]
        return {
            name: next((p for p in wide if p in layer.able), layer.able[-1])
            for name, layer in self.layers.items()
        }


def survey(graph: Graph, options: PipelineOptions) -> Survey:
    """Look at ``graph``.

    Args:
        graph: as the passes before ``quantize`` leave it.
        options: what is permitted, patterns, and the calibration.

    Raises:
        BuildError: a precision or a pattern does not fit.
    """
    rules = LayerRules.checked(options.precision, options.layers, graph)
    floats = tuple(p for p in STORAGE if p in options.precision) or ("fp32",)
    refusals: Mapping[str, str | None] = {}
    quantizer = QuantizeLayers(options.calibration, options.precision, options.layers, Assignment())
    if INT8 in options.precision and options.calibration is not None:
        refusals = quantizer.refusals(graph)
    selector = SelectPrecision(options.precision, options.layers, calibration=options.calibration)
    layers = {
        node.name: _layer(node, rules, floats, refusals, selector)
        for node in graph.nodes
        if _is_layer(node)
    }
    return Survey(
        graph,
        layers,
        _shared(graph, layers, quantizer) if refusals else (),
        _between(graph, layers) if len({floats_of(p, "") for p in floats}) > 1 else (),
        floats,
    )


def _is_layer(node: Node) -> bool:
    values = (*node.inputs, *node.outputs)
    return (
        not isinstance(node.op, MOVES)
        and any(v.dtype.is_float for v in node.outputs)
        and not any(v.dtype is FP64 for v in values)
    )


def _layer(
    node: Node,
    rules: LayerRules,
    floats: tuple[str, ...],
    refusals: Mapping[str, str | None],
    selector: SelectPrecision,
) -> Layer:
    able = list(floats)
    refused: dict[str, str] = {}
    pattern = rules.pattern(node)
    why = refusals.get(node.name, "")
    if why is None:
        able.insert(0, INT8)
    elif why:
        refused[INT8] = why
    if pattern is not None:
        wanted = rules.layers[pattern]
        if wanted != INT8:
            able = [wanted]
        elif INT8 in able:
            able = [INT8]
    elif node.op.precisions is not None:
        able = [p for p in able if p in node.op.precisions] or ["fp32"]
    loud = selector.overflow(node) if "fp16" in able and pattern is None else None
    if loud is not None and "fp32" in floats:
        able.remove("fp16")
        refused["fp16"] = loud
    return Layer(
        node.name,
        node.origin,
        isinstance(node.op, _PRODUCTS),
        isinstance(node.op, _PRODUCTS) and node.inputs[0].dtype in BYTES,
        tuple(able),
        refused,
        _work(node),
    )


def _work(node: Node) -> int:
    size = math.prod(node.outputs[0].shape)
    if not isinstance(node.op, _PRODUCTS):
        return size
    if isinstance(node.op, Conv):
        return size * math.prod(node.inputs[1].shape[1:])
    if isinstance(node.op, ConvTranspose):
        return math.prod(node.inputs[0].shape) * math.prod(node.inputs[1].shape[1:])
    return size * node.inputs[0].shape[-1]


def _operands(node: Node) -> list[Value]:
    """Inputs that must have the node's own type."""
    if isinstance(node.op, Elementwise):
        return []
    count = 2 if isinstance(node.op, _PRODUCTS) else 1
    found = dict.fromkeys(v for v in node.inputs[:count] if not v.is_constant and v.dtype is FP32)
    return list(found)


def _shared(
    graph: Graph, layers: Mapping[str, Layer], quantizer: QuantizeLayers
) -> tuple[Link, ...]:
    readers: dict[Value, dict[str, None]] = {}
    others: dict[Value, dict[str, None]] = {}
    for node in graph.nodes:
        if node.name not in layers:
            continue
        product = layers[node.name].is_product
        for value in _operands(node) if product else node.inputs:
            if not value.is_constant:
                group = readers if product else others
                group.setdefault(quantizer.source(value), {})[node.name] = None
    return tuple(
        Link(value, _producer(value, layers), tuple(found), tuple(others.get(value, ())))
        for value, found in readers.items()
        if value.producer is not None and any(INT8 in layers[r].able for r in found)
    )


def _between(graph: Graph, layers: Mapping[str, Layer]) -> tuple[Link, ...]:
    readers: dict[Value, dict[str, None]] = {}
    for node in graph.nodes:
        if node.name in layers:
            for value in _operands(node):
                for before in _before_moves(value):
                    readers.setdefault(before, {})[node.name] = None
    found = []
    for value, names in readers.items():
        source = _producer(value, layers)
        if source is not None:
            found.append(Link(value, source, tuple(n for n in names if n != source)))
    return tuple(link for link in found if link.readers)


def _before_moves(value: Value) -> list[Value]:
    """The values that a layer computes and moves bring to ``value``."""
    found: dict[Value, None] = {}
    stack = [value]
    while stack:
        at = stack.pop()
        node: Any = at.producer
        if node is not None and isinstance(node.op, MOVES):
            count = len(node.inputs) if node.op.name == "Concat" else 1
            stack += [v for v in node.inputs[:count] if not v.is_constant]
        else:
            found[at] = None
    return list(found)


def _producer(value: Value, layers: Mapping[str, Layer]) -> str | None:
    node = value.producer
    return node.name if node is not None and node.name in layers else None
