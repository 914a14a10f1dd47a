"""Converters of quantized operators.

    QLinearConv(x, w, bias)  =  quantize(conv(dequantize(x), dequantize(w), dequantize(bias)))

Operators on integers are written with `Quantize` and `Dequantize` around plain ones; the pass
fold-quantization makes products of integers of them again, as it does of models that come so.
ConvInteger and MatMulInteger have no scales: with weights of int8 and zero points of 0 they are
products of bytes, otherwise of floats that hold every partial sum; but a MatMulInteger of constant
weights that int8 holds is always one of bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from nrt.dtypes import BYTES, FP32, FP64, INT8, INT32, UINT8, DType, dtype_from_onnx
from nrt.errors import ImportModelError, ShapeError
from nrt.frontend import onnx_ops_conv
from nrt.frontend.onnx_node import NodeContext, RefusedNodeError
from nrt.ir import ops
from nrt.ir.op import Array
from nrt.ir.value import Value

__all__ = [
    "conv_integer",
    "dequantize_linear",
    "dynamic_quantize_linear",
    "matmul_integer",
    "qlinear_conv",
    "qlinear_matmul",
    "quantize_linear",
]

_EXACT_FP32 = 2**24
"""Whole numbers up to here are exact in fp32, and so are sums that stay below."""


def quantize_linear(n: NodeContext) -> Value:
    """QuantizeLinear: all opsets; per tensor, per axis and, with constant scales, per block."""
    x = n.input(0)
    dtype = _output_dtype(n)
    if dtype is None:
        zero = n.optional(2)
        dtype = zero.dtype if zero is not None else UINT8
    if dtype.is_float and not n.attr_int("saturate", 1):
        raise RefusedNodeError("saturate is 0, expected 1: what fp8 cannot hold saturates")
    return n.emit(_op(n, ops.Quantize, dtype), x, *_parameters(n, x, 1, 2))


def dequantize_linear(n: NodeContext) -> Value:
    """DequantizeLinear: all opsets; as `quantize_linear`."""
    q = n.input(0)
    dtype = _output_dtype(n) or n.input(1).dtype
    return n.emit(_op(n, ops.Dequantize, dtype), q, *_parameters(n, q, 1, 2))


def qlinear_conv(n: NodeContext) -> Value:
    """QLinearConv: all opsets."""
    x, w = n.input(0), n.input(3)
    real_x = _real(n, x, 1, 2, "x")
    real_w = _real(n, w, 4, 5, "w", axis=0)
    bias = n.optional(8)
    if bias is not None:
        scale = n.emit(ops.Mul(), n.input(1), n.input(4), part="bias-scale", inner=True)
        flat = n.emit(ops.Reshape((math.prod(scale.shape),)), scale, part="flat", inner=True)
        bias = n.emit(ops.Dequantize(FP32), bias, flat, part="bias", inner=True)
    y = onnx_ops_conv.convolution(n, real_x, real_w, bias, part="product")
    return _quantized(n, y, 6, 7)


def qlinear_matmul(n: NodeContext) -> Value:
    """QLinearMatMul: all opsets; scales per tensor, of rows of ``a`` or of columns of ``b``."""
    a = _real(n, n.input(0), 1, 2, "a", axis=-2)
    b = _real(n, n.input(3), 4, 5, "b", axis=-1)
    return _quantized(n, n.emit(ops.MatMul(), a, b, part="product", inner=True), 6, 7)


def dynamic_quantize_linear(n: NodeContext) -> list[Value]:
    """DynamicQuantizeLinear: uint8, with the scale and zero point that ``x`` itself asks for."""
    x = n.input(0)
    axes = tuple(range(len(x.shape)))
    none = n.scalar_like(x, 0, "none")
    low, high = (
        n.emit(
            op,
            none,
            n.emit(ops.Reduce(kind, axes, False), x, part=kind, inner=True),
            part=f"{kind}-or-0",
            inner=True,
        )
        for kind, op in (("min", ops.Min()), ("max", ops.Max()))
    )
    width = n.emit(ops.Sub(), high, low, part="width", inner=True)
    levels = n.scalar_like(x, 255, "levels")
    scale = n.emit(ops.Div(), width, levels, part="scale", inner=True)
    zero = n.emit(
        ops.Quantize(UINT8),
        n.emit(ops.Neg(), low, part="lowest", inner=True),
        scale,
        part="zero",
        inner=True,
    )
    y = n.emit(ops.Quantize(UINT8), x, scale, zero, part="y", inner=True)
    return [y, scale, zero]


def conv_integer(n: NodeContext) -> Value:
    """ConvInteger: int32 sums of products of integers less their zero points."""

    def product(x: Value, w: Value) -> Value:
        return onnx_ops_conv.convolution(n, x, w, None, part="product")

    return _integer(n, math.prod(n.input(1).shape[1:]), product)


def matmul_integer(n: NodeContext) -> Value:
    """MatMulInteger: as `conv_integer`; zero points per tensor, row or column.

    With constant weights that int8 holds it multiplies bytes whatever the other side's zero point
    is: one that dynamic quantization computes takes the sum of each column along.
    """
    weights = _int8_weights(n)
    if weights is not None:
        return _shifted_product(n, weights)
    depth = n.input(0).shape[-1]
    return _integer(
        n,
        depth,
        lambda a, b: n.emit(ops.MatMul(), a, b, part="product", inner=True),
        x_axis=-2,
        w_axis=-1,
    )


def _int8_weights(n: NodeContext) -> Array | None:
    """The right operand less its zero point, if it is a matrix of constants that int8 holds."""
    w, zero = n.input(1), n.optional(3)
    if w.constant is None or w.constant.ndim != 2 or w.dtype not in (INT8, UINT8):
        return None
    if zero is not None and zero.constant is None:
        return None
    values = w.constant.astype(np.int64)
    if zero is not None and zero.constant is not None:
        values = values - zero.constant
    fits = values.size and values.min() >= -128 and values.max() <= 127
    return np.asarray(values, np.int8) if fits else None


def _shifted_product(n: NodeContext, weights: Array) -> Value:
    """``(x - z) @ w`` as ``x @ w - z · Σ w``; int32 holds every number."""
    x, zero = n.input(0), n.optional(2)
    right = n.helper(weights, "b")
    if zero is None or _is_zero(zero):
        return n.emit(ops.MatMul(), x, right)
    product = n.emit(ops.MatMul(), x, right, part="product", inner=True)
    sums = n.helper(weights.sum(axis=0, dtype=np.int32), "sums")
    spread = _spread(n, zero, x, -2, "a-zero")
    shift = n.emit(ops.Cast(INT32), spread, part="zero-wide", inner=True)
    correction = n.emit(ops.Mul(), shift, sums, part="correction", inner=True)
    return n.emit(ops.Sub(), product, correction)


def _integer(
    n: NodeContext,
    depth: int,
    product: Callable[[Value, Value], Value],
    *,
    x_axis: int = 0,
    w_axis: int = 0,
) -> Value:
    x, w = n.input(0), n.input(1)
    sides = ((x, n.optional(2), x_axis, "x"), (w, n.optional(3), w_axis, "w"))
    if x.dtype in BYTES and w.dtype is INT8 and all(_is_zero(zero) for _, zero, _, _ in sides):
        return _cast(n, product(x, w))
    dtype = FP32 if depth * 255 * 255 < _EXACT_FP32 else FP64
    real = []
    for value, zero, axis, label in sides:
        wide = n.emit(ops.Cast(dtype), value, part=f"{label}-wide", inner=True)
        if not _is_zero(zero):
            assert zero is not None
            spread = _spread(n, zero, value, axis, f"{label}-zero")
            spread = n.emit(ops.Cast(dtype), spread, part=f"{label}-zero-wide", inner=True)
            wide = n.emit(ops.Sub(), wide, spread, part=f"{label}-shifted", inner=True)
        real.append(wide)
    return _cast(n, product(*real))


def _cast(n: NodeContext, value: Value) -> Value:
    return n.emit(ops.Cast(INT32), value)


def _is_zero(zero: Value | None) -> bool:
    return zero is None or (zero.constant is not None and not np.any(zero.constant))


def _output_dtype(n: NodeContext) -> DType | None:
    number = n.attr_int("output_dtype", 0)
    if not number:
        return None
    return _dtype(number)


def _dtype(number: int) -> DType:
    try:
        return dtype_from_onnx(number)
    except ShapeError as error:
        raise RefusedNodeError(str(error)) from None


def _op(
    n: NodeContext, op: type[ops.Quantize] | type[ops.Dequantize], dtype: DType
) -> ops.Quantize | ops.Dequantize:
    """The op; refuses a node whose types it does not take."""
    made = op(dtype)
    types = [n.input(0).dtype, n.input(1).dtype]
    try:
        made.check_dtypes(*types)
    except ShapeError as error:
        raise RefusedNodeError(str(error)) from None
    return made


def _parameters(
    n: NodeContext, data: Value, scale: int, zero: int, axis: int | None = None
) -> tuple[Value, ...]:
    """Scale and zero point as they broadcast against ``data``; a zero point of 0 is left out.

    Args:
        n: the node.
        data: what is quantized. scale, zero: input slots.
        axis: of scales that are a vector; the node's attribute by default.
    """
    found = [_spread(n, n.input(scale), data, axis, f"scale{scale}")]
    offset = n.optional(zero)
    if not _is_zero(offset):
        assert offset is not None
        found.append(_spread(n, offset, data, axis, f"zero{zero}"))
    return tuple(found)


def _spread(n: NodeContext, value: Value, data: Value, axis: int | None, label: str) -> Value:
    """``value``, one number or a vector along ``axis``, in a shape that broadcasts to ``data``."""
    rank = len(data.shape)
    if math.prod(value.shape) == 1:
        return _reshaped(n, value, (), label)
    block = n.attr_int("block_size", 0) if axis is None else 0
    axis = n.axis(n.attr_int("axis", 1) if axis is None else axis, rank)
    size = data.shape[axis]
    if block:
        return _blocks(n, value, data, axis, block, label)
    if len(value.shape) == rank and value.shape[axis] == size:
        return value
    if value.shape != (size,):
        raise ImportModelError(
            f"{n}: {label} has shape {list(value.shape)}, expected one number or [{size}] for "
            f"axis {axis} of {list(data.shape)}"
        )
    return _reshaped(n, value, (size, *[1] * (rank - 1 - axis)), label)


def _blocks(n: NodeContext, value: Value, data: Value, axis: int, block: int, label: str) -> Value:
    if value.constant is None:
        raise RefusedNodeError("scales of blocks are computed at run time, expected constants")
    wanted = list(data.shape)
    wanted[axis] = -(-data.shape[axis] // block)
    if block < 0 or list(value.shape) != wanted:
        raise ImportModelError(
            f"{n}: {label} has shape {list(value.shape)}, expected {wanted} for blocks of {block}"
        )
    every = np.repeat(value.constant, block, axis=axis)
    return n.helper(np.take(every, range(data.shape[axis]), axis=axis), label)


def _reshaped(n: NodeContext, value: Value, shape: tuple[int, ...], label: str) -> Value:
    if value.shape == shape:
        return value
    if value.constant is not None:
        return n.helper(value.constant.reshape(shape), label)
    return n.emit(ops.Reshape(shape), value, part=label, inner=True)


def _real(
    n: NodeContext, q: Value, scale: int, zero: int, label: str, axis: int | None = None
) -> Value:
    rest = _parameters(n, q, scale, zero, 1 if axis is None else axis)
    return n.emit(ops.Dequantize(n.input(scale).dtype), q, *rest, part=label, inner=True)


def _quantized(n: NodeContext, y: Value, scale: int, zero: int) -> Value:
    parameters = _parameters(n, y, scale, zero, 1)
    return n.emit(ops.Quantize(n.input(zero).dtype), y, *parameters)
