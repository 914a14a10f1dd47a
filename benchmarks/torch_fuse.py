"""What an exporter took apart, put together again for PyTorch: its own fused calls.

An ONNX file spells attention, GELU and biased products out in small steps. A PyTorch user would
have written one call for each, and PyTorch has fast kernels behind these calls; a peer that runs
the steps one by one would be slower than it need be. Each rule replaces the last node of a pattern
by a call, and what only led up to it goes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

__all__ = ["ATTENTION", "GELU", "LINEAR", "fused_nodes"]

ATTENTION, GELU, LINEAR = "nrt.Attention", "nrt.Gelu", "nrt.Linear"
"""Operators that no ONNX file has; `benchmarks.torch_ops` writes them."""

_RELATIVE = 1e-3


class _Graph:
    """Producers, readers and small constants of a graph, by value name."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.producers = {name: node for node in graph.node for name in node.output}
        self.readers = Counter(name for node in graph.node for name in node.input)
        self.readers.update(value.name for value in graph.output)
        self.constants = {t.name: t for t in graph.initializer}
        for node in graph.node:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                self.constants[node.output[0]] = node.attribute[0].t

    def made_by(self, name: str, op: str) -> onnx.NodeProto | None:
        """The node that computes ``name``, if it is an ``op`` and nobody else reads it."""
        node = self.producers.get(name)
        return node if node and node.op_type == op and self.readers[name] == 1 else None

    def number(self, name: str) -> float | None:
        """A constant of one element."""
        tensor = self.constants.get(name)
        if tensor is None or math.prod(tensor.dims) != 1:
            return None
        return float(numpy_helper.to_array(tensor).reshape(()))

    def scaled(self, node: onnx.NodeProto | None) -> tuple[str, float] | None:
        """(x, factor) of ``x * factor``, ``factor * x`` or ``x / divisor``."""
        if node is None or node.op_type not in ("Mul", "Div"):
            return None
        left, right = node.input
        factor = self.number(right)
        if factor is not None:
            return left, factor if node.op_type == "Mul" else 1 / factor
        factor = self.number(left)
        return (right, factor) if factor is not None and node.op_type == "Mul" else None


def fused_nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The model's nodes with the calls in; nodes that nobody reads any more are left out."""
    graph = _Graph(model.graph)
    nodes = []
    for node in model.graph.node:
        for rule in _RULES.get(node.op_type, ()):
            call = rule(node, graph)
            if call is not None:
                nodes.append(call)
                break
        else:
            nodes.append(node)
    return _live(nodes, [value.name for value in model.graph.output])


def _live(nodes: Sequence[onnx.NodeProto], outputs: Sequence[str]) -> list[onnx.NodeProto]:
    wanted, kept = set(outputs), []
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            wanted.update(node.input)
            kept.append(node)
    return kept[::-1]


def _attention(node: onnx.NodeProto, graph: _Graph) -> onnx.NodeProto | None:
    """``softmax(q @ k' * scale + mask) @ v``, k' being the keys with their last axes swapped."""
    softmax = graph.made_by(node.input[0], "Softmax")
    if softmax is None or _attribute(softmax, "axis", -1) not in (-1, 3):
        return None
    scores, mask, scale = softmax.input[0], "", 1.0
    add = graph.made_by(scores, "Add")
    if add is not None:
        # The scores are the operand that a product leads to.
        for own, other in (tuple(add.input), tuple(add.input)[::-1]):
            if graph.made_by(own, "MatMul") or _led_by_product(graph, own):
                scores, mask = own, other
                break
        else:
            return None
    step = graph.made_by(scores, "Mul") or graph.made_by(scores, "Div")
    scaled = graph.scaled(step)
    if scaled is not None:
        scores, scale = scaled
    product = graph.made_by(scores, "MatMul")
    if product is None:
        return None
    inputs = [*product.input, node.input[1], *([mask] if mask else [])]
    return helper.make_node(ATTENTION, inputs, node.output, name=node.name, scale=scale)


def _led_by_product(graph: _Graph, name: str) -> bool:
    scaled = graph.scaled(graph.made_by(name, "Mul") or graph.made_by(name, "Div"))
    return scaled is not None and graph.made_by(scaled[0], "MatMul") is not None


def _linear(node: onnx.NodeProto, graph: _Graph) -> onnx.NodeProto | None:
    """``x @ w + b`` with a constant matrix and a constant vector."""
    for own, other in (tuple(node.input), tuple(node.input)[::-1]):
        product, bias = graph.made_by(own, "MatMul"), graph.constants.get(other)
        if product is None or bias is None or len(bias.dims) != 1:
            continue
        weight = graph.constants.get(product.input[1])
        if weight is not None and len(weight.dims) == 2 and weight.dims[1] == bias.dims[0]:
            return helper.make_node(LINEAR, [*product.input, other], node.output, name=node.name)
    return None


def _gelu(node: onnx.NodeProto, graph: _Graph) -> onnx.NodeProto | None:
    """``0.5 x (1 + f(x))``, f being the erf or the tanh of GELU (Hendrycks and Gimpel 2016)."""
    factors: list[str] = []
    scale = 1.0
    todo = list(node.input)
    while todo:  # a product of any shape, flattened
        name = todo.pop()
        number = graph.number(name)
        inner = graph.made_by(name, "Mul")
        if number is not None:
            scale *= number
        elif inner is not None:
            todo.extend(inner.input)
        else:
            factors.append(name)
    if len(factors) != 2 or not _near(scale, 0.5):
        return None
    for x, gate in (factors, factors[::-1]):
        form = _gate(graph, gate, x)
        if form:
            return helper.make_node(GELU, [x], node.output, name=node.name, approximate=form)
    return None


def _gate(graph: _Graph, name: str, x: str) -> str:
    """``none`` for ``1 + erf(x / sqrt(2))``, ``tanh`` for the other one, else empty."""
    add = graph.made_by(name, "Add")
    if add is None:
        return ""
    for own, other in (tuple(add.input), tuple(add.input)[::-1]):
        one = graph.number(other)
        if one is None or one != 1.0:
            continue
        erf, tanh = graph.made_by(own, "Erf"), graph.made_by(own, "Tanh")
        if erf is not None:
            scaled = graph.scaled(graph.producers.get(erf.input[0]))
            if scaled is not None and scaled[0] == x and _near(scaled[1], math.sqrt(0.5)):
                return "none"
        if tanh is not None and _is_cubic(graph, tanh.input[0], x):
            return "tanh"
    return ""


def _is_cubic(graph: _Graph, name: str, x: str) -> bool:
    """``sqrt(2 / pi) (x + 0.044715 x^3)``."""
    outer = graph.scaled(graph.made_by(name, "Mul"))
    if outer is None or not _near(outer[1], math.sqrt(2 / math.pi)):
        return False
    add = graph.made_by(outer[0], "Add")
    if add is None or x not in add.input:
        return False
    (rest,) = [n for n in add.input if n != x] or [x]
    inner = graph.scaled(graph.made_by(rest, "Mul"))
    if inner is None or not _near(inner[1], 0.044715):
        return False
    power = graph.made_by(inner[0], "Pow")
    return power is not None and power.input[0] == x and graph.number(power.input[1]) == 3.0


def _near(value: float, wanted: float) -> bool:
    return bool(np.isclose(value, wanted, rtol=_RELATIVE, atol=0))


def _attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((int(a.i) for a in node.attribute if a.name == name), default)


_Rule = Callable[[onnx.NodeProto, _Graph], onnx.NodeProto | None]
_RULES: Mapping[str, Sequence[_Rule]] = {
    "MatMul": (_attention,),
    "Add": (_linear,),
    "Mul": (_gelu,),
}
"""Last operator of a pattern -> what to try."""
