"""Which ONNX nodes each op of nrt is written as: one table, op class -> converter.

Shapes are logical (N, C, H, W), as ONNX has them, so that layouts need no Transpose. An op computes
in the type that its reference computes in, with a Cast before and after: a float smaller than fp32
is rounded where a node of the graph stores it, and nowhere else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from nrt.dtypes import BYTES, FP32, FP64, INT32, INT64, UINT8, DType
from nrt.frontend import onnx_export_rows as rows
from nrt.frontend.onnx_export_node import Inexpressible, Tensor, Writer, takes, wide
from nrt.frontend.onnx_export_pointwise import (
    elementwise,
    finish_all,
    multi_pointwise,
    write_program,
)
from nrt.frontend.onnx_export_registered import write_registered
from nrt.ir import ops
from nrt.ir.op import Op, TensorType
from nrt.ir.ops.conv import epilogue_slot
from nrt.ir.value import Node

__all__ = ["CONVERTERS", "converter"]

Converter = Callable[[Writer, Node], None]


def converter(op: Op) -> Converter | None:
    """How ``op`` is written; None if ONNX has no counterpart."""
    kind = type(op)
    if kind in CONVERTERS:
        return CONVERTERS[kind]
    if op.registered_as is not None:
        return write_registered
    return elementwise if kind in ops.OPS and isinstance(op, ops.Elementwise) else None


def moved(w: Writer, node: Node, op_type: str, *more: Tensor, **attributes: Any) -> None:
    """An op that moves elements; types that ONNX's does not take pass through fp32, unharmed."""
    x, result = w.tensor(node.inputs[0]), w.tensor(node.output)
    if takes(op_type, x.dtype):
        w.emit(op_type, [x, *more], result.type, into=result, **attributes)
        return
    type_ = TensorType(result.shape, wide(x.dtype))
    y = w.emit(op_type, [w.cast(x, wide(x.dtype)), *more], type_, **attributes)
    w.finish(y, result)


def _identity(w: Writer, node: Node) -> None:
    w.cast(w.tensor(node.inputs[0]), node.output.dtype, into=w.tensor(node.output))


def _reshape(w: Writer, node: Node) -> None:
    shape = node.output.shape
    attributes = {"allowzero": 1} if 0 in shape else {}
    moved(w, node, "Reshape", w.constant(shape), **attributes)


def _transpose(w: Writer, node: Node) -> None:
    op: Any = node.op
    moved(w, node, "Transpose", perm=list(op.perm))


def _slice(w: Writer, node: Node) -> None:
    op: Any = node.op
    shape = node.inputs[0].shape
    # To ONNX an end of -1 is the last index: what lies before index 0 is out of range.
    ends = [
        -size - 1 if step < 0 and end < 0 else end
        for end, step, size in zip(op.ends, op.steps, shape, strict=True)
    ]
    axes = range(len(shape))
    moved(w, node, "Slice", *map(w.constant, (op.starts, ends, list(axes), op.steps)))


def _expand(w: Writer, node: Node) -> None:
    moved(w, node, "Expand", w.constant(node.output.shape))


def _pad(w: Writer, node: Node) -> None:
    op: Any = node.op
    dtype = node.output.dtype if takes("Pad", node.output.dtype) else wide(node.output.dtype)
    more = [w.constant(op.pads)]
    if op.mode == "constant":
        more.append(w.constant(np.asarray(op.value), dtype))
    moved(w, node, "Pad", *more, mode=op.mode)


def _concat(w: Writer, node: Node) -> None:
    op: Any = node.op
    result = w.tensor(node.output)
    dtype = result.dtype if takes("Concat", result.dtype) else wide(result.dtype)
    args = [w.cast(w.tensor(v), dtype) for v in node.inputs]
    w.finish(w.emit("Concat", args, TensorType(result.shape, dtype), axis=op.axis), result)


def _split(w: Writer, node: Node) -> None:
    op: Any = node.op
    x = w.tensor(node.inputs[0])
    if not takes("Split", x.dtype):
        raise Inexpressible(f"ONNX has no Split of {x.dtype}")
    outputs = tuple(w.tensor(v) for v in node.outputs)
    w.emit_many("Split", [x, w.constant(op.sizes)], outputs, axis=op.axis)


def _gather(w: Writer, node: Node) -> None:
    op: Any = node.op
    indices = w.tensor(node.inputs[1])
    if indices.dtype not in (INT32, INT64):
        indices = w.cast(indices, INT64)
    moved(w, node, op.name, indices, axis=op.axis)


def _resize(w: Writer, node: Node) -> None:
    op: Any = node.op
    shape = node.inputs[0].shape
    attributes: dict[str, Any] = {
        "mode": op.mode,
        "coordinate_transformation_mode": op.coordinate,
    }
    if op.mode == "nearest":
        attributes["nearest_mode"] = op.nearest
    if op.mode == "cubic":
        attributes["cubic_coeff_a"] = op.cubic_a
    x, result = w.tensor(node.inputs[0]), w.tensor(node.output)
    exact = all(s == n / d for s, n, d in zip(op.scales, op.sizes, shape, strict=True))
    scales = np.asarray(op.scales, np.float32)
    if exact:
        more: list[Tensor | None] = [None, None, w.constant(op.sizes)]
    elif [int(np.floor(d * float(s))) for d, s in zip(shape, scales, strict=True)] == [*op.sizes]:
        more = [None, w.constant(scales, FP32)]
    else:
        raise Inexpressible(
            f"ONNX takes sizes or scales; sizes {op.sizes} of {shape} are not what the scales "
            f"{op.scales} give"
        )
    dtype = wide(x.dtype)
    type_ = TensorType(result.shape, dtype)
    w.finish(w.emit("Resize", [w.cast(x, dtype), *more], type_, **attributes), result)


def _products(w: Writer, node: Node, op_type: str, depth: int, **attributes: Any) -> None:
    """A product with its prologue before it, its bias or epilogue and the rounding behind it.

    With a second result, what both have in common is written once.
    """
    op: Any = node.op
    tensors = [w.tensor(v) for v in node.inputs]
    (x, factor), extras = tensors[:2], tensors[epilogue_slot(op) :]
    results = [w.tensor(v) for v in node.outputs]
    if isinstance(op, ops.Conv) and op.prologue is not None:
        before = tensors[2 : epilogue_slot(op)]
        (value,) = write_program(w, op.prologue, [x, *before])
        x = w.cast(value, x.dtype)
    if isinstance(op, ops.MatMul):
        x, factor = _swapped(w, x, op.trans_a), _swapped(w, factor, op.trans_b)
    dtype = _factors(op, x.dtype, depth)
    if not takes(op_type, dtype):
        raise Inexpressible(f"ONNX has no {op_type} of {x.dtype}")
    args = [w.cast(x, dtype), w.cast(factor, dtype)]
    if op.epilogue is None:
        args += [w.cast(extra, dtype) for extra in extras]
    total = w.emit(op_type, args, TensorType(results[0].shape, dtype), **attributes)
    values: tuple[Tensor, ...] = (total,)
    if op.epilogue is not None:
        if x.dtype in BYTES:
            total = w.cast(total, FP32)
        values = write_program(w, op.epilogue, [total, *extras])
    stored = [
        _quantized(w, value, result.dtype) if result.dtype in BYTES else value
        for value, result in zip(values, results, strict=True)
    ]
    finish_all(w, stored, results)


def _factors(op: Any, dtype: DType, depth: int) -> DType:
    """The type that products are computed in, where ``depth`` of them make a sum.

    Runtimes read bytes in few combinations of signs. In floats that hold every partial sum the
    result is the same; behind the epilogue of a convolution, which no runtime computes in fp64, it
    is rounded to fp32 in any case.
    """
    if dtype not in BYTES:
        return wide(dtype)
    exact = depth * (255 if dtype is UINT8 else 128) * 128 <= 2**24
    return FP32 if exact or (op.epilogue is not None and not isinstance(op, ops.MatMul)) else FP64


def _quantized(w: Writer, x: Tensor, dtype: DType) -> Tensor:
    """Rounded, to even where two are equally near, to the range of ``dtype``."""
    info = np.iinfo(dtype.numpy)
    low, high = (w.constant(np.asarray(bound), x.dtype) for bound in (info.min, info.max))
    return w.emit("Clip", [w.emit("Round", [x], x.type), low, high], x.type)


def _swapped(w: Writer, x: Tensor, swap: bool) -> Tensor:
    rank = len(x.shape)
    if not swap or rank < 2:
        return x
    perm = [*range(rank - 2), rank - 1, rank - 2]
    type_ = TensorType(tuple(x.shape[p] for p in perm), x.dtype)
    return w.emit("Transpose", [x], type_, perm=perm)


def _windowed(op: Any, kernel: Sequence[int]) -> dict[str, Any]:
    return {
        "kernel_shape": list(kernel),
        "strides": list(op.strides),
        "pads": list(op.pads),
        "dilations": list(op.dilations),
    }


def _conv(w: Writer, node: Node) -> None:
    op: Any = node.op
    attributes = _windowed(op, node.inputs[1].shape[2:])
    depth = math.prod(node.inputs[1].shape[1:])
    _products(w, node, "Conv", depth, group=op.groups, **attributes)


def _pooled_conv(w: Writer, node: Node) -> None:
    """PooledConv: the convolution with its bias or epilogue, and a reduction of the pixels."""
    op: Any = node.op
    x, factor, *extras = (w.tensor(v) for v in node.inputs)
    dtype = wide(x.dtype)
    (whole,) = op.conv(x.dtype).infer(*(v.type for v in node.inputs))
    args = [w.cast(x, dtype), w.cast(factor, dtype)]
    if op.epilogue is None:
        args += [w.cast(extra, dtype) for extra in extras]
    attributes = _windowed(op, factor.shape[2:])
    total = w.emit("Conv", args, TensorType(whole.shape, dtype), **attributes)
    if op.epilogue is not None:
        total = rows.spread(w, write_program(w, op.epilogue, [total, *extras])[0], whole.shape)
    w.finish(rows.all_pixels(w, op.kind, total), w.tensor(node.output))


def _conv_transpose(w: Writer, node: Node) -> None:
    op: Any = node.op
    shape = node.inputs[1].shape
    attributes = _windowed(op, shape[2:])
    attributes |= {"group": op.groups, "output_padding": list(op.output_padding)}
    _products(w, node, "ConvTranspose", math.prod(shape) // shape[1] // op.groups, **attributes)


def _matmul(w: Writer, node: Node) -> None:
    op: Any = node.op
    shape = node.inputs[0].shape
    depth = shape[-2] if op.trans_a and len(shape) > 1 else shape[-1]
    _products(w, node, "MatMul", depth)


def _pool(w: Writer, node: Node) -> None:
    op: Any = node.op
    attributes = {**_windowed(op, op.kernel), **_rounding(node)}
    if isinstance(op, ops.AveragePool):
        attributes["count_include_pad"] = int(op.count_include_pad)
    if op.epilogue is None:
        _computed(w, node, op.name, **attributes)
        return
    x, *extras = (w.tensor(v) for v in node.inputs)
    result = w.tensor(node.output)
    # ONNX averages floats only; a mean of bytes is one in nrt too.
    dtype = FP32 if isinstance(op, ops.AveragePool) and x.dtype in BYTES else wide(x.dtype)
    type_ = TensorType(result.shape, dtype)
    pooled = w.emit(op.name, [w.cast(x, dtype)], type_, **attributes)
    (y,) = write_program(w, op.epilogue, [pooled, *extras])
    w.finish(_quantized(w, y, result.dtype) if result.dtype in BYTES else y, result)


def _rounding(node: Node) -> dict[str, Any]:
    """``ceil_mode``, and ``pads`` where a window that starts in the right padding is left out.

    ONNX's definition leaves it out, its shape inference does not: less padding makes them agree.
    """
    op: Any = node.op
    if not op.ceil_mode:
        return {"ceil_mode": 0}
    win, counts = op.window(), node.output.shape[2:]
    spatial = node.inputs[0].shape[2:]

    def windows(pads: Sequence[int], *, ceil: bool) -> tuple[int, ...]:
        steps = (
            size + low + high - extent
            for size, low, high, extent in zip(spatial, win.begins, pads, win.extents, strict=True)
        )
        return tuple(
            (-(-n // stride) if ceil else n // stride) + 1
            for n, stride in zip(steps, win.strides, strict=True)
        )

    ends = list(win.ends)
    for axis, count in enumerate(windows(ends, ceil=True)):
        if count != counts[axis]:
            reach = (counts[axis] - 1) * win.strides[axis] + win.extents[axis]
            ends[axis] = max(0, reach - spatial[axis] - win.begins[axis])
    for ceil in (True, False):
        if windows(ends, ceil=ceil) == counts:
            return {"ceil_mode": int(ceil), "pads": [*win.begins, *ends]}
    raise Inexpressible("no padding gives these windows without one that starts in the padding")


def _computed(w: Writer, node: Node, op_type: str, **attributes: Any) -> None:
    """An op that computes its inputs in fp32 or better."""
    dtype: DType = wide(node.inputs[0].dtype)
    if not takes(op_type, dtype):
        raise Inexpressible(f"ONNX has no {op_type} of {dtype}")
    args = [w.cast(w.tensor(v), dtype) for v in node.inputs]
    result = w.tensor(node.output)
    w.finish(w.emit(op_type, args, TensorType(result.shape, dtype), **attributes), result)


def _with_axis(w: Writer, node: Node) -> None:
    op: Any = node.op
    _computed(w, node, op.name, axis=op.axis)


def _with_epsilon(w: Writer, node: Node) -> None:
    op: Any = node.op
    _computed(w, node, op.name, epsilon=op.epsilon)


def _lrn(w: Writer, node: Node) -> None:
    op: Any = node.op
    _computed(w, node, "LRN", size=op.size, alpha=op.alpha, beta=op.beta, bias=op.bias)


CONVERTERS: dict[type[Op], Converter] = {
    ops.AveragePool: _pool,
    ops.BatchNormalization: _with_epsilon,
    ops.Concat: _concat,
    ops.Conv: _conv,
    ops.ConvTranspose: _conv_transpose,
    ops.Dropout: _identity,
    ops.Expand: _expand,
    ops.Gather: _gather,
    ops.GatherElements: _gather,
    ops.Identity: _identity,
    ops.InstanceNormalization: _with_epsilon,
    ops.LRN: _lrn,
    ops.LayerNormalization: rows.layer_normalization,
    ops.LogSoftmax: _with_axis,
    ops.MatMul: _matmul,
    ops.MaxPool: _pool,
    ops.MultiPointwise: multi_pointwise,
    ops.Pad: _pad,
    ops.PooledConv: _pooled_conv,
    ops.PooledMatMul: rows.pooled_matmul,
    ops.Reduce: rows.reduce,
    ops.Reformat: _identity,
    ops.Reshape: _reshape,
    ops.Resize: _resize,
    ops.Slice: _slice,
    ops.Softmax: _with_axis,
    ops.Split: _split,
    ops.Transpose: _transpose,
}
"""Every op but the elementwise ones, which `elementwise` writes."""
