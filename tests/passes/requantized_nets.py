"""Layers that store bytes behind an epilogue with a last factor, as quantization leaves them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from nrt.dtypes import FP8E4M3, FP32, INT8, UINT8, DType
from nrt.ir.evaluate import evaluate
from nrt.ir.graph import Graph
from nrt.ir.op import Array
from nrt.ir.ops import Conv
from nrt.ir.pointwise import Builder, Program
from nrt.ir.value import Node, Value

from .quantized_nets import QuantizedNet

_RANGES = {INT8: (-128, 127), UINT8: (0, 255), FP8E4M3: (-448, 448)}


def relu6(factor: float) -> Program:
    b = Builder("fff")
    value = b("max", b("add", b("mul", 0, 1), 2), b.const(0.0))
    return b.build(b("mul", b("min", value, b.const(6.0)), b.const(factor)))


def residual(factor: float) -> Program:
    b = Builder("fffi")
    other = b("mul", b("to_f", 3), b.const(0.05))
    return b.build(b("mul", b("add", other, b("add", b("mul", 0, 1), 2)), b.const(factor)))


def biased(factor: float) -> Program:
    b = Builder("ff")
    return b.build(b("mul", b("max", b("add", 0, 1), b.const(0.0)), b.const(factor)))


def conv_of_bytes(net: QuantizedNet, program: Program, dtype: DType, **extra: Any) -> Node:
    """A 3x3 Conv, int8, whose sums are scaled to some units; 13 channels."""
    x, w = net.input(2, 5, 7, 6, dtype=INT8), net.integers(13, 5, 3, 3)
    scales = net.const((1 + net.rng.random((13, 1, 1))).astype(np.float32) * 1e-4, "scales")
    bias = net.const(net.random(13, 1, 1), "bias")
    operands = [scales, bias]
    if program.inputs[3:] == ("i",):
        operands.append(net.input(2, 13, 7, 6, name="r", dtype=INT8))
    op = Conv((1, 1), (1, 1, 1, 1), epilogue=program, out_dtype=dtype)
    return net.node(op, x, w, *operands, name="conv")


def conv_of_floats(net: QuantizedNet, program: Program, dtype: DType, *operands: Value) -> Node:
    x, w = net.input(2, 5, 7, 6), net.weight(13, 5, 3, 3)
    bias = operands or (net.const(net.random(13, 1, 1), "bias"),)
    op = Conv((1, 1), (1, 1, 1, 1), epilogue=program, out_dtype=dtype)
    return net.node(op, x, w, *bias, name="conv")


def floats(graph: Graph, data: dict[str, Array]) -> Array:
    """What the only node would store, as fp32, clipped to the range of the bytes."""
    graph = graph.copy()
    (node,) = graph.nodes
    low, high = _RANGES[node.output.dtype]
    op: Any = node.op
    graph.replace_node(node, replace(op, out_dtype=FP32), node.inputs)
    return np.clip(evaluate(graph, data)["y"], low, high)


def bytes_feed(net: QuantizedNet) -> dict[str, Array]:
    data = {}
    for value in net.graph.inputs:
        if value.dtype.is_float:
            data[value.name] = net.random(*value.shape).astype(value.dtype.numpy)
        else:
            data[value.name] = net.rng.integers(-127, 128, value.shape).astype(value.dtype.numpy)
    return data
