"""Converters of normalizations, softmax, and ops that only training changes."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from nrt.errors import ImportModelError
from nrt.frontend.onnx_node import NodeContext, RefusedNodeError
from nrt.ir import ops
from nrt.ir.value import Value

__all__ = [
    "batch_normalization",
    "dropout",
    "global_pool",
    "instance_normalization",
    "layer_normalization",
    "lrn",
    "softmax",
]


def batch_normalization(n: NodeContext) -> Value:
    """BatchNormalization: all opsets, inference only."""
    if n.attr_int("training_mode", 0):
        raise RefusedNodeError("training_mode is 1; export the model in inference mode")
    if n.attr_int("spatial", 1) != 1:
        raise RefusedNodeError("attribute spatial is 0, expected 1")
    n.only_first_output()
    return n.emit(
        ops.BatchNormalization(n.attr_float("epsilon", 1e-5)), *(n.input(i) for i in range(5))
    )


def instance_normalization(n: NodeContext) -> Value:
    """InstanceNormalization."""
    epsilon = n.attr_float("epsilon", 1e-5)
    return n.emit(ops.InstanceNormalization(epsilon), *(n.input(i) for i in range(3)))


def layer_normalization(n: NodeContext) -> list[Value | None]:
    """LayerNormalization of opset 17; Mean and InvStdDev are computed only when they are read."""
    x, bias = n.input(0), n.optional(2)
    axis, epsilon = n.attr_int("axis", -1), n.attr_float("epsilon", 1e-5)
    op = ops.LayerNormalization(axis, epsilon)
    outputs: list[Value | None] = [
        n.emit(op, x, n.input(1), *(() if bias is None else (bias,))),
        None,
        None,
    ]
    if n.reads(1) or n.reads(2):
        rank = len(x.shape)
        reduce = ops.Reduce("mean", tuple(range(n.axis(axis, rank), rank)), True)
        mean = outputs[1] = n.emit(reduce, x, part="mean", inner=True)
        if n.reads(2):
            centered = n.emit(ops.Sub(), x, mean, part="centered", inner=True)
            square = n.emit(ops.Mul(), centered, centered, part="square", inner=True)
            y = n.emit(reduce, square, part="variance", inner=True)
            shift = n.scalar_like(x, epsilon, "epsilon")
            y = n.emit(ops.Add(), y, shift, part="shifted", inner=True)
            y = n.emit(ops.Sqrt(), y, part="deviation", inner=True)
            outputs[2] = n.emit(ops.Reciprocal(), y, part="inverse", inner=True)
    return outputs


def lrn(n: NodeContext) -> Value:
    """LRN."""
    size = n.attr_int("size")
    n.check_window("size", (size,))
    op = ops.LRN(
        size,
        n.attr_float("alpha", 1e-4),
        n.attr_float("beta", 0.75),
        n.attr_float("bias", 1.0),
    )
    return n.emit(op, n.input(0))


def softmax(op: type[ops.Softmax] | type[ops.LogSoftmax]) -> Callable[[NodeContext], Value]:
    """Softmax and LogSoftmax; before opset 13 they see the input as a matrix split at ``axis``."""

    def convert(n: NodeContext) -> Value:
        x = n.input(0)
        rank = len(x.shape)
        if n.opset >= 13:
            return n.emit(op(n.axis(n.attr_int("axis", -1), rank)), x)
        axis = n.attr_int("axis", 1)
        if not -rank <= axis <= rank:
            raise ImportModelError(f"{n}: axis {axis} is outside a tensor of {rank} dimensions")
        axis = axis + rank if axis < 0 else axis
        if axis == rank - 1 or math.prod(x.shape[axis:]) == x.shape[-1]:
            return n.emit(op(rank - 1), x)
        matrix = (math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))
        flat = n.emit(ops.Reshape(matrix), x, part="flatten", inner=True)
        y = n.emit(op(1), flat, inner=True)
        return n.emit(ops.Reshape(x.shape), y, part="unflatten")

    return convert


def global_pool(kind: str) -> Callable[[NodeContext], Value]:
    """GlobalAveragePool and GlobalMaxPool: a reduction of all spatial dimensions."""

    def convert(n: NodeContext) -> Value:
        x = n.input(0)
        return n.emit(ops.Reduce(kind, tuple(range(2, len(x.shape))), True), x)

    return convert


def dropout(n: NodeContext) -> list[Value]:
    """Dropout: nothing at inference; a mask that is read is all true."""
    x = n.input(0)
    if n.has(2) and n.scalar(2, "training_mode"):
        raise RefusedNodeError("training_mode is true; export the model in inference mode")
    values = [x if x.is_constant else n.emit(ops.Dropout(), x)]
    if n.reads(1):
        mask = np.broadcast_to(np.True_, n.limit(x.shape))
        values.append(n.graph.add_constant(n.outputs[1], mask))
    return values
