"""Converters of ops that are constants once all shapes are known."""

from __future__ import annotations

import math

import numpy as np

from nrt.dtypes import dtype_from_onnx
from nrt.errors import ImportModelError
from nrt.frontend.onnx_node import NodeContext, RefusedNodeError
from nrt.ir.op import Array
from nrt.ir.value import Value

__all__ = ["constant", "constant_of_shape", "eye_like", "non_zero", "range_", "shape", "size"]

_FORMS = {
    "value_float": np.float32,
    "value_floats": np.float32,
    "value_int": np.int64,
    "value_ints": np.int64,
}


def constant(n: NodeContext) -> Value:
    """Constant: a tensor, a number or a list of numbers."""
    if len(n.attributes) != 1:
        raise ImportModelError(
            f"{n}: has {len(n.attributes)} attributes, expected one of value, {', '.join(_FORMS)}"
        )
    ((name, value),) = n.attributes.items()
    if name == "value" and isinstance(value, np.ndarray):
        return n.constant(value)
    if name not in _FORMS:
        raise RefusedNodeError(f"its data is in '{name}', expected value, {', '.join(_FORMS)}")
    return n.constant(np.asarray(value, _FORMS[name]))


def constant_of_shape(n: NodeContext) -> Value:
    """ConstantOfShape."""
    wanted = n.limit(n.numbers(0, "shape"))
    value = n.attributes.get("value", np.zeros(1, np.float32))
    if not isinstance(value, np.ndarray) or value.size != 1:
        raise ImportModelError(
            f"{n}: attribute value is {value!r}, expected a tensor of one element"
        )
    return n.constant(np.full(wanted, value.reshape(()), value.dtype))


def shape(n: NodeContext) -> Value:
    """Shape, with start and end of opset 15."""
    dims = n.input(0).shape
    start, end = n.attr_int("start", 0), n.attr_int("end", len(dims))
    return n.constant(np.asarray(dims[start:end], np.int64))


def size(n: NodeContext) -> Value:
    """Size."""
    return n.constant(np.asarray(math.prod(n.input(0).shape), np.int64))


def range_(n: NodeContext) -> Value:
    """Range of constants."""
    start, limit, step = (n.scalar(i, what) for i, what in enumerate(("start", "limit", "delta")))
    if step == 0 or not all(math.isfinite(v) for v in (start, limit, step)):
        raise ImportModelError(f"{n}: from {start} to {limit} in steps of {step} is not a range")
    count = max(0, math.ceil((limit - start) / step))
    n.limit((count,))
    numbers: Array = np.arange(count, dtype=np.int64 if isinstance(start, int) else np.float64)
    return n.constant((start + numbers * step).astype(n.input(0).dtype.numpy))


def non_zero(n: NodeContext) -> Value:
    """NonZero of a constant; otherwise its shape would depend on the data."""
    return n.constant(np.asarray(np.nonzero(n.array(0, "X")), np.int64))


def eye_like(n: NodeContext) -> Value:
    """EyeLike: only the shape of its input matters."""
    x = n.input(0)
    if len(x.shape) != 2:
        raise ImportModelError(f"{n}: input {list(x.shape)}, expected a matrix")
    dtype = dtype_from_onnx(n.attr_int("dtype")) if "dtype" in n.attributes else x.dtype
    rows, columns = n.limit(x.shape)
    return n.constant(np.eye(rows, columns, n.attr_int("k", 0)).astype(dtype.numpy))
