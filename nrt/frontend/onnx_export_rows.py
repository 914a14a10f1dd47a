"""Reductions and layer normalization as ONNX nodes."""

from __future__ import annotations

from typing import Any

import numpy as np

from nrt.dtypes import BOOL, FP64, INT32, INT64, DType
from nrt.frontend.onnx_export_node import Tensor, Writer, wide
from nrt.frontend.onnx_export_pointwise import write_program
from nrt.ir.op import TensorType
from nrt.ir.ops.common import normalize_axes, normalize_axis
from nrt.ir.value import Node

__all__ = ["layer_normalization", "pooled_matmul", "reduce", "spread"]

_REDUCTIONS = {
    "mean": "ReduceMean",
    "sum": "ReduceSum",
    "max": "ReduceMax",
    "min": "ReduceMin",
    "prod": "ReduceProd",
    "l1": "ReduceL1",
    "l2": "ReduceL2",
    "sum_square": "ReduceSumSquare",
}


def reduce(w: Writer, node: Node) -> None:
    """Reduce; of integers in int64, as the reference has it, since runtimes lack most of those."""
    op: Any = node.op
    x, before, after = op.parts([w.tensor(v) for v in node.inputs])
    result = w.tensor(node.output)
    axes = normalize_axes(op.name, op.axes, len(x.shape))
    if x.dtype.is_float:
        element = w.cast(x, wide(x.dtype))
        if op.prologue is not None:
            element = spread(w, write_program(w, op.prologue, [element, *before])[0], x.shape)
        total = _reduced(w, op.kind, element, axes, result)
        if op.epilogue is not None:
            (total,) = write_program(w, op.epilogue, [total, *after])
        w.finish(total, result)
    elif op.kind in ("max", "min", "sum", "prod"):
        dtype = INT32 if x.dtype is BOOL else INT64
        w.finish(_reduced(w, op.kind, w.cast(x, dtype), axes, result), result)
    else:
        _integers(w, op.kind, w.cast(x, INT64), axes, result)


def spread(w: Writer, x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """``x`` in full size: the result of a program that reads only smaller operands has theirs."""
    if x.shape == shape:
        return x
    return w.emit("Expand", [x, w.constant(shape)], TensorType(shape, x.dtype))


def _reduced(w: Writer, kind: str, x: Tensor, axes: tuple[int, ...], result: Tensor) -> Tensor:
    if not axes:
        # Without axes ONNX reduces all of them, or none and then not even squares.
        if kind in ("l1", "l2"):
            return w.emit("Abs", [x], x.type)
        return w.emit("Mul", [x, x], x.type) if kind == "sum_square" else x
    keepdims = int(len(result.shape) == len(x.shape))
    type_ = TensorType(result.shape, x.dtype)
    return w.emit(_REDUCTIONS[kind], [x, w.constant(axes)], type_, keepdims=keepdims)


def _integers(w: Writer, kind: str, x: Tensor, axes: tuple[int, ...], result: Tensor) -> None:
    if kind == "l1":
        x = w.emit("Abs", [x], x.type)
    elif kind in ("l2", "sum_square"):
        x = w.emit("Mul", [x, x], x.type)
    total = _reduced(w, "sum", x, axes, result)
    if kind == "mean":
        count = int(np.prod([x.shape[a] for a in axes], dtype=np.int64))
        total = w.emit("Div", [total, w.constant(np.asarray(count))], total.type)
    elif kind == "l2":
        root = w.emit("Sqrt", [w.cast(total, FP64)], TensorType(total.shape, FP64))
        total = w.cast(root, INT64)
    w.finish(total, result)


def pooled_matmul(w: Writer, node: Node) -> None:
    """PooledMatMul: its programs, a reduction of the spatial dimensions, and a product."""
    op: Any = node.op
    x, factor, before, after = op.parts([w.tensor(v) for v in node.inputs])
    result = w.tensor(node.output)
    dtype: DType = wide(x.dtype)
    element, matrix = w.cast(x, dtype), w.cast(factor, dtype)
    if op.prologue is not None:
        element = spread(w, write_program(w, op.prologue, [element, *before])[0], x.shape)
    pooled = all_pixels(w, op.kind, element)
    if op.trans_b:
        type_ = TensorType(factor.shape[::-1], dtype)
        matrix = w.emit("Transpose", [matrix], type_, perm=[1, 0])
    total = w.emit("MatMul", [pooled, matrix], TensorType(result.shape, dtype))
    if op.epilogue is not None:
        (total,) = write_program(w, op.epilogue, [total, *after])
    w.finish(total, result)


def all_pixels(w: Writer, kind: str, x: Tensor) -> Tensor:
    """``x[N, C, *S]`` reduced to ``[N, C]``."""
    axes = w.constant(range(2, len(x.shape)))
    return w.emit(_REDUCTIONS[kind], [x, axes], TensorType(x.shape[:2], x.dtype), keepdims=0)


def layer_normalization(w: Writer, node: Node) -> None:
    """LayerNormalization; a scale or bias of another shape than the rows is applied after it."""
    op: Any = node.op
    x, scale, *bias = (w.tensor(v) for v in node.inputs)
    result = w.tensor(node.output)
    dtype: DType = wide(x.dtype)
    axis = normalize_axis(op.name, op.axis, len(x.shape))
    row = x.shape[axis:]
    type_ = TensorType(x.shape, dtype)
    parameters = [w.cast(t, dtype) for t in (scale, *bias)]
    direct = all(t.shape == row for t in parameters)
    first = parameters if direct else [w.constant(np.ones(row), dtype)]
    y = w.emit(
        "LayerNormalization",
        [w.cast(x, dtype), *first],
        type_,
        axis=axis,
        epsilon=op.epsilon,
    )
    if not direct:
        for op_type, parameter in zip(("Mul", "Add"), parameters, strict=False):
            y = w.emit(op_type, [y, parameter], type_)
    w.finish(y, result)
