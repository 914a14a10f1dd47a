"""Converters of sliding windows: convolutions and pools.

Convolutions and pools over one spatial dimension become two-dimensional ones of height 1, so that
the kernels need only one form.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from nrt.errors import ImportModelError
from nrt.frontend.onnx_node import NodeContext, RefusedNodeError
from nrt.ir import ops
from nrt.ir.op import Op
from nrt.ir.value import Value

__all__ = ["average_pool", "conv", "conv_transpose", "convolution", "max_pool"]

Ints = tuple[int, ...]


def conv(n: NodeContext) -> Value:
    """Conv: all opsets."""
    return convolution(n, n.input(0), n.input(1), n.optional(2))


def convolution(n: NodeContext, x: Value, w: Value, bias: Value | None, part: str = "") -> Value:
    """A convolution with the node's attributes; ``part`` names it where it is a part of it."""
    rank = _spatial(n, x)
    kernel = _kernel(n, w, rank)
    strides, dilations = _per_axis(n, "strides", rank), _per_axis(n, "dilations", rank)
    pads = _pads(n, x.shape[2:], kernel, strides, dilations)
    groups = n.attr_int("group", 1)

    def make(lift: Callable[[Ints, int], Ints]) -> Op:
        return ops.Conv(lift(strides, 1), lift(pads, 0), lift(dilations, 1), groups)

    return _windowed(n, make, x, w, bias, part)


def conv_transpose(n: NodeContext) -> Value:
    """ConvTranspose: all opsets, with ``output_shape`` and ``auto_pad`` resolved to pads."""
    x, w = n.input(0), n.input(1)
    rank = _spatial(n, x)
    kernel = _kernel(n, w, rank)
    strides, dilations = _per_axis(n, "strides", rank), _per_axis(n, "dilations", rank)
    output_padding = _per_axis(n, "output_padding", rank, 0)
    groups = n.attr_int("group", 1)
    auto_pad = n.attr_str("auto_pad", "NOTSET")
    size = x.shape[2:]
    wanted = n.attr_ints("output_shape")
    if wanted is None and auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        wanted = tuple(d * s for d, s in zip(size, strides, strict=True))
    if wanted is None:
        pads = _pads(n, size, kernel, strides, dilations)
    else:
        wanted = wanted[-rank:]  # some exporters write batch and channels too
        if len(wanted) != rank:
            raise ImportModelError(f"{n}: output_shape has {len(wanted)} entries, expected {rank}")
        begins, ends, extra = [], [], []
        for axis in range(rank):
            extent = (kernel[axis] - 1) * dilations[axis] + 1
            full = strides[axis] * (size[axis] - 1) + output_padding[axis] + extent
            total = full - wanted[axis]
            # A wanted shape beyond the full one is filled with zeros (the bias, once added).
            extra.append(output_padding[axis] + max(0, -total))
            total = max(0, total)
            small, large = total // 2, total - total // 2
            upper = auto_pad == "SAME_UPPER"
            begins.append(small if upper else large)
            ends.append(large if upper else small)
        pads, output_padding = (*begins, *ends), tuple(extra)
        n.check_window("output_shape", (*pads, *output_padding))

    def make(lift: Callable[[Ints, int], Ints]) -> Op:
        return ops.ConvTranspose(
            lift(strides, 1), lift(pads, 0), lift(dilations, 1), groups, lift(output_padding, 0)
        )

    return _windowed(n, make, x, w, n.optional(2))


def max_pool(n: NodeContext) -> Value:
    """MaxPool: all opsets; the Indices output is refused."""
    n.only_first_output()
    if n.attr_int("storage_order", 0):
        raise RefusedNodeError("attribute storage_order is 1, expected 0")
    x, kernel, strides, pads, dilations, ceil = _pool(n)

    def make(lift: Callable[[Ints, int], Ints]) -> Op:
        return ops.MaxPool(
            lift(kernel, 1), lift(strides, 1), lift(pads, 0), lift(dilations, 1), ceil
        )

    return _windowed(n, make, x)


def average_pool(n: NodeContext) -> Value:
    """AveragePool: all opsets."""
    x, kernel, strides, pads, dilations, ceil = _pool(n)
    include = bool(n.attr_int("count_include_pad", 0))

    def make(lift: Callable[[Ints, int], Ints]) -> Op:
        return ops.AveragePool(
            lift(kernel, 1), lift(strides, 1), lift(pads, 0), lift(dilations, 1), ceil, include
        )

    return _windowed(n, make, x)


def _pool(n: NodeContext) -> tuple[Value, Ints, Ints, Ints, Ints, bool]:
    x = n.input(0)
    rank = _spatial(n, x)
    kernel = n.attr_ints("kernel_shape") or ()
    if len(kernel) != rank or min(kernel) < 1:
        raise ImportModelError(
            f"{n}: kernel_shape is {kernel}, expected {rank} positive numbers for input "
            f"{list(x.shape)}"
        )
    n.check_window("kernel_shape", kernel)
    strides, dilations = _per_axis(n, "strides", rank), _per_axis(n, "dilations", rank)
    pads = _pads(n, x.shape[2:], kernel, strides, dilations)
    return x, kernel, strides, pads, dilations, bool(n.attr_int("ceil_mode", 0))


def _windowed(
    n: NodeContext,
    make: Callable[[Callable[[Ints, int], Ints]], Op],
    x: Value,
    w: Value | None = None,
    bias: Value | None = None,
    part: str = "",
) -> Value:
    """Emit the op that ``make`` builds; one spatial dimension is lifted to two around it."""
    inner = bool(part)
    rest = () if bias is None else (bias,)
    if len(x.shape) != 3:
        weights = () if w is None else (w,)
        op = make(lambda values, _fill: values)
        return n.emit(op, x, *weights, *rest, part=part, inner=inner)

    def lift(values: Ints, fill: int) -> Ints:
        half = len(values) // 2
        # Pads are begins, then ends; everything else has one entry per dimension.
        return (fill, values[0]) if half == 0 else (fill, values[0], fill, values[1])

    tall = n.emit(ops.Reshape((*x.shape[:2], 1, x.shape[2])), x, part="lift", inner=True)
    weights = () if w is None else (_lift_weights(n, w),)
    result = n.emit(make(lift), tall, *weights, *rest, part=part, inner=True)
    lower = ops.Reshape((*result.shape[:2], result.shape[3]))
    return n.emit(lower, result, part="lower", inner=inner)


def _lift_weights(n: NodeContext, w: Value) -> Value:
    shape = (*w.shape[:2], 1, w.shape[2])
    if w.constant is not None:
        return n.helper(np.reshape(w.constant, shape), "weight")
    return n.emit(ops.Reshape(shape), w, part="lift-weight", inner=True)


def _spatial(n: NodeContext, x: Value) -> int:
    rank = len(x.shape) - 2
    if rank < 1:
        raise ImportModelError(
            f"{n}: input {list(x.shape)} has {len(x.shape)} dimensions, expected at least 3"
        )
    return rank


def _kernel(n: NodeContext, w: Value, rank: int) -> Ints:
    if len(w.shape) != rank + 2:
        raise ImportModelError(
            f"{n}: weights {list(w.shape)} have {len(w.shape)} dimensions, expected {rank + 2}"
        )
    declared = n.attr_ints("kernel_shape")
    if declared is not None and declared != w.shape[2:]:
        raise ImportModelError(
            f"{n}: kernel_shape is {declared}, but the weights have shape {list(w.shape)}"
        )
    return w.shape[2:]


def _per_axis(n: NodeContext, name: str, rank: int, default: int = 1) -> Ints:
    values = n.attr_ints(name) or (default,) * rank
    if len(values) != rank or min(values) < default:
        raise ImportModelError(
            f"{n}: {name} is {values}, expected {rank} numbers of at least {default}"
        )
    n.check_window(name, values)
    return values


def _pads(n: NodeContext, size: Ints, kernel: Ints, strides: Ints, dilations: Ints) -> Ints:
    """Explicit pads, begins then ends, whatever ``auto_pad`` says."""
    rank = len(size)
    auto_pad = n.attr_str("auto_pad", "NOTSET")
    if auto_pad == "NOTSET":
        pads = n.attr_ints("pads") or (0,) * (2 * rank)
        if len(pads) != 2 * rank:
            raise ImportModelError(f"{n}: pads is {pads}, expected {2 * rank} numbers")
        n.check_window("pads", pads)
        return pads
    if auto_pad == "VALID":
        return (0,) * (2 * rank)
    if auto_pad not in ("SAME_UPPER", "SAME_LOWER"):
        raise ImportModelError(
            f"{n}: auto_pad is {auto_pad!r}, expected NOTSET, VALID, SAME_UPPER or SAME_LOWER"
        )
    begins, ends = [], []
    for axis in range(rank):
        extent = (kernel[axis] - 1) * dilations[axis] + 1
        windows = -(-size[axis] // strides[axis])
        total = max(0, (windows - 1) * strides[axis] + extent - size[axis])
        small, large = total // 2, total - total // 2
        upper = auto_pad == "SAME_UPPER"
        begins.append(small if upper else large)
        ends.append(large if upper else small)
    return (*begins, *ends)
