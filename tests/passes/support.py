"""Graphs to rewrite, and the check that rewriting kept what they compute."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from nrt.dtypes import FP32, DType
from nrt.ir.evaluate import evaluate
from nrt.ir.graph import Graph
from nrt.ir.layout import is_view
from nrt.ir.op import Array, Op
from nrt.ir.ops import (
    Add,
    AveragePool,
    BatchNormalization,
    Clip,
    Concat,
    Conv,
    MatMul,
    MaxPool,
    Reduce,
    Relu,
    Reshape,
)
from nrt.ir.value import Node, Value
from nrt.ir.verify import verify
from nrt.passes.base import Note, Pass, PassResult

FP32_TOLERANCE = 1e-5
FP16_TOLERANCE = 5e-3
FOLDED_TOLERANCE = 3e-5
"""Where weights were rescaled, products are summed with other roundings."""


class Net:
    """A graph under construction, with fresh random weights; methods return values."""

    def __init__(self, name: str = "net") -> None:
        self.seed = secrets.randbits(32)
        self.rng = np.random.default_rng(self.seed)
        self.graph = Graph(name)

    def input(self, *shape: int, name: str = "x", dtype: DType = FP32) -> Value:
        return self.graph.add_input(name, shape, dtype)

    def random(self, *shape: int) -> Array:
        return self.rng.standard_normal(shape).astype(np.float32)

    def const(self, array: Any, name: str = "c") -> Value:
        return self.graph.add_constant(name, np.asarray(array))

    def weight(self, *shape: int, name: str = "w") -> Value:
        fan_in = int(np.prod(shape[1:])) if len(shape) > 2 else shape[0]
        return self.const(self.random(*shape) / np.float32(np.sqrt(max(fan_in, 1))), name)

    def node(self, op: Op, *inputs: Value, name: str | None = None) -> Node:
        label = name or f"{op.name.lower()}"
        node = self.graph.add_node(op, inputs, name=label)
        node.origin = (f"/{node.name}",)
        return node

    def op(self, op: Op, *inputs: Value, name: str | None = None) -> Value:
        return self.node(op, *inputs, name=name).output

    def out(self, value: Value, name: str = "y") -> Value:
        self.graph.set_output(name, value)
        return value

    def conv(
        self,
        x: Value,
        channels: int,
        kernel: int = 3,
        *,
        stride: int = 1,
        groups: int = 1,
        bias: bool = False,
        name: str = "conv",
    ) -> Value:
        pad = kernel // 2
        op = Conv((stride, stride), (pad, pad, pad, pad), groups=groups)
        inputs = [x, self.weight(channels, x.shape[1] // groups, kernel, kernel)]
        if bias:
            inputs.append(self.const(self.random(channels), "bias"))
        return self.op(op, *inputs, name=name)

    def norm(self, x: Value, name: str = "bn") -> Value:
        c = x.shape[1]
        parameters = [
            self.const(1 + 0.2 * self.random(c), f"{name}.scale"),
            self.const(0.2 * self.random(c), f"{name}.bias"),
            self.const(0.2 * self.random(c), f"{name}.mean"),
            self.const(self.rng.uniform(0.5, 2, c).astype(np.float32), f"{name}.var"),
        ]
        return self.op(BatchNormalization(1e-5), x, *parameters, name=name)

    def dense(self, x: Value, features: int, name: str = "fc") -> Value:
        y = self.op(MatMul(trans_b=True), x, self.weight(features, x.shape[1]), name=name)
        return self.op(Add(), y, self.const(self.random(features), "b"), name=f"{name}.bias")

    def pool(self, x: Value) -> Value:
        return self.op(MaxPool((2, 2), (2, 2), (0, 0, 0, 0)), x)

    def head(self, x: Value, classes: int = 11) -> None:
        y = self.op(Reduce("mean", (2, 3)), x)
        y = self.op(Reshape((x.shape[0], x.shape[1])), y)
        self.out(self.dense(y, classes))


def feeds(net: Net) -> dict[str, Array]:
    """Fresh data for every input: normal floats, small counts, coin flips."""
    data: dict[str, Array] = {}
    for value in net.graph.inputs:
        if value.dtype.is_float:
            data[value.name] = net.random(*value.shape).astype(value.dtype.numpy)
        else:
            high = 2 if value.dtype.kind == "bool" else 5
            data[value.name] = net.rng.integers(0, high, value.shape).astype(value.dtype.numpy)
    return data


def distance(found: Array, wanted: Array) -> float:
    """‖found − wanted‖ / ‖wanted‖; infinite if they are not finite in the same places."""
    a, b = found.astype(np.float64), wanted.astype(np.float64)
    if a.shape != b.shape or not np.array_equal(np.isfinite(a), np.isfinite(b)):
        return float("inf")
    keep = np.isfinite(b)
    return float(np.linalg.norm(a[keep] - b[keep]) / max(np.linalg.norm(b[keep]), 1e-30))


def assert_same(
    before: Graph, after: Graph, data: dict[str, Array], tolerance: float = FP32_TOLERANCE
) -> None:
    """Both graphs verify, have the same signature and give the same outputs."""
    verify(after)
    assert [(v.name, v.type) for v in before.inputs] == [(v.name, v.type) for v in after.inputs]
    assert {n: v.type for n, v in before.outputs.items()} == {
        n: v.type for n, v in after.outputs.items()
    }
    wanted, found = evaluate(before, data), evaluate(after, data)
    for name, array in wanted.items():
        assert distance(found[name], array) <= tolerance, f"output '{name}'"


def apply(net: Net, step: Pass, tolerance: float = FP32_TOLERANCE) -> PassResult:
    """Run ``step`` on a copy, check that nothing else changed, and that it is done after once."""
    before = net.graph
    verify(before)
    result = step.run(before.copy())
    assert_same(before, result.graph, feeds(net), tolerance)
    again = step.run(result.graph)
    assert not again.changed, f"{step.name} changes its own result: {again.notes}"
    return PassResult(again.graph, result.changed, result.notes)


def ops(graph: Graph) -> list[str]:
    """Op names in topological order."""
    return [node.op.name for node in graph.nodes]


def launches(graph: Graph) -> list[str]:
    """Op names of what is not a view."""
    return [node.op.name for node in graph.nodes if not is_view(node)]


def refusals(notes: Iterable[Note]) -> list[str]:
    return [note.text for note in notes if note.kind == "refused"]


def sole(graph: Graph, op: type[Op]) -> Node:
    """The only node with that op."""
    found = [node for node in graph.nodes if isinstance(node.op, op)]
    assert len(found) == 1, found
    return found[0]


def resnet_like(batch: int = 2, blocks: Sequence[int] = (8, 13)) -> Net:
    """Stem, max pool, bottleneck-free residual blocks of which each widens, a linear head."""
    net = Net("resnet_like")
    x = net.op(Relu(), net.norm(net.conv(net.input(batch, 3, 19, 17), 8, 5, stride=2)))
    x = net.op(MaxPool((3, 3), (2, 2), (1, 1, 1, 1)), x)
    for channels in blocks:
        for stride in (2, 1):
            skip = x
            y = net.op(Relu(), net.norm(net.conv(x, channels, 3, stride=stride)))
            y = net.norm(net.conv(y, channels, 3, name="last"))
            if stride != 1 or x.shape[1] != channels:
                skip = net.norm(net.conv(x, channels, 1, stride=stride, name="down"))
            x = net.op(Relu(), net.op(Add(), y, skip))
    net.head(x)
    return net


def densenet_like(batch: int = 2) -> Net:
    """Blocks of norm, relu, conv whose results are concatenated, with a transition in between."""
    net = Net("densenet_like")
    x = net.conv(net.input(batch, 3, 13, 11), 6, 3)
    for layer in range(3):
        if layer == 2:
            x = net.conv(net.op(Relu(), net.norm(x)), 7, 1)
            x = net.op(AveragePool((2, 2), (2, 2), (0, 0, 0, 0)), x)
        y = net.conv(net.op(Relu(), net.norm(x)), 9, 1)
        y = net.conv(net.op(Relu(), net.norm(y)), 5, 3)
        x = net.op(Concat(1), x, y)
    net.head(net.op(Relu(), net.norm(x)))
    return net


def vgg_like(batch: int = 2) -> Net:
    """Convolutions with bias, pools, and linear layers on the flattened image."""
    net = Net("vgg_like")
    x = net.input(batch, 3, 12, 16)
    for channels in (5, 7):
        x = net.op(Relu(), net.conv(x, channels, bias=True))
        x = net.op(Relu(), net.conv(x, channels, bias=True))
        x = net.pool(x)
    n, c, h, w = x.shape
    x = net.op(Reshape((n, c * h * w)), x)
    net.out(net.dense(net.op(Relu(), net.dense(x, 17)), 6))
    return net


def mobilenet_like(batch: int = 2) -> Net:
    """Inverted residuals: expand, depthwise, project without activation."""
    net = Net("mobilenet_like")
    x = net.op(Clip(0.0, 6.0), net.norm(net.conv(net.input(batch, 3, 15, 14), 8, stride=2)))
    for channels, stride in ((8, 1), (12, 2), (12, 1)):
        y = net.op(Clip(0.0, 6.0), net.norm(net.conv(x, 3 * x.shape[1], 1)))
        y = net.conv(y, y.shape[1], 3, stride=stride, groups=y.shape[1], name="depthwise")
        y = net.op(Clip(0.0, 6.0), net.norm(y))
        y = net.norm(net.conv(y, channels, 1, name="project"))
        x = net.op(Add(), x, y) if y.shape == x.shape else y
    net.head(x)
    return net
