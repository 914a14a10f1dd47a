"""Converters of Resize and Upsample.

The two differ over the opsets in where sizes come from and in which coordinates they mean; the IR's
Resize has one form: sizes, scales, and a named coordinate formula.
"""

from __future__ import annotations

import math

from nrt.errors import ImportModelError
from nrt.frontend.onnx_node import NodeContext, RefusedNodeError
from nrt.ir import ops
from nrt.ir.value import Value

__all__ = ["resize", "upsample"]

_COORDINATES = ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel")
_NEAREST = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
_MODES = ("nearest", "linear", "cubic")


def upsample(n: NodeContext) -> Value:
    """Upsample: scales are an attribute at opset 7, an input at 9."""
    scales = n.attr_floats("scales") if n.opset < 9 else _floats(n, 1, "scales")
    mode = n.attr_str("mode", "nearest")
    mode = "linear" if mode == "bilinear" else mode
    return _legacy(n, scales, mode)


def resize(n: NodeContext) -> Value:
    """Resize: opset 10 (like Upsample), 11 with sizes and coordinates, 18 with axes, policies."""
    x = n.input(0)
    rank = len(x.shape)
    mode = n.attr_str("mode", "nearest")
    if n.opset < 11:
        return _legacy(n, _floats(n, 1, "scales"), mode)
    coordinate = n.attr_str("coordinate_transformation_mode", "half_pixel")
    nearest = n.attr_str("nearest_mode", "round_prefer_floor")
    _known("mode", mode, _MODES)
    _known("coordinate_transformation_mode", coordinate, _COORDINATES)
    _known("nearest_mode", nearest, _NEAREST)
    if mode == "cubic" and n.attr_int("exclude_outside", 0):
        raise RefusedNodeError("exclude_outside is 1, expected 0")
    axes = tuple(n.axis(a, rank) for a in n.attr_ints("axes") or range(rank))
    factors = _floats(n, 2, "scales") if n.has(2) else ()
    wanted = n.numbers(3, "sizes") if n.has(3) else ()
    scales, sizes = [1.0] * rank, list(x.shape)
    if len(factors) == len(axes):
        for axis, factor in zip(axes, factors, strict=True):
            scales[axis] = factor
            sizes[axis] = _size(n, x.shape[axis], factor)
    elif len(wanted) == len(axes):
        for axis, size, factor in zip(axes, *_fit(n, x, axes, wanted), strict=True):
            scales[axis], sizes[axis] = factor, size
    else:
        raise ImportModelError(
            f"{n}: has {len(factors)} scales and {len(wanted)} sizes, expected {len(axes)} of one"
        )
    if n.attr_int("antialias", 0) and any(s < 1 for s in scales):
        raise RefusedNodeError("antialias is 1 and the image shrinks, expected antialias 0")
    cubic = n.attr_float("cubic_coeff_a", -0.75)
    return n.emit(ops.Resize(tuple(sizes), tuple(scales), mode, coordinate, nearest, cubic), x)


def _fit(
    n: NodeContext, x: Value, axes: tuple[int, ...], wanted: tuple[int, ...]
) -> tuple[list[int], list[float]]:
    """Sizes and scales for the sizes asked for, under ``keep_aspect_ratio_policy``."""
    factors = [size / x.shape[axis] for axis, size in zip(axes, wanted, strict=True)]
    policy = n.attr_str("keep_aspect_ratio_policy", "stretch")
    if policy == "stretch":
        return list(wanted), factors
    if policy not in ("not_larger", "not_smaller"):
        raise ImportModelError(
            f"{n}: keep_aspect_ratio_policy is {policy!r}, "
            "expected stretch, not_larger or not_smaller"
        )
    factor = min(factors) if policy == "not_larger" else max(factors)
    return [math.floor(factor * x.shape[a] + 0.5) for a in axes], [factor] * len(axes)


def _legacy(n: NodeContext, scales: tuple[float, ...] | None, mode: str) -> Value:
    """Upsample and Resize of opset 10: ``x_in = x_out / scale``, nearest rounds down."""
    x = n.input(0)
    _known("mode", mode, ("nearest", "linear"))
    if scales is None or len(scales) != len(x.shape):
        raise ImportModelError(f"{n}: scales are {scales}, expected {len(x.shape)} numbers")
    sizes = tuple(_size(n, d, s) for d, s in zip(x.shape, scales, strict=True))
    return n.emit(ops.Resize(sizes, scales, mode, "asymmetric", "floor"), x)


def _size(n: NodeContext, size: int, scale: float) -> int:
    if not (math.isfinite(scale) and scale > 0):
        raise ImportModelError(f"{n}: scale {scale}, expected a positive number")
    return math.floor(size * scale)


def _floats(n: NodeContext, slot: int, what: str) -> tuple[float, ...]:
    array = n.array(slot, what)
    if array.dtype.kind != "f":
        raise ImportModelError(f"{n}: input '{what}' has type {array.dtype}, expected float32")
    return tuple(float(v) for v in array.ravel())


def _known(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise RefusedNodeError(f"{name} is {value!r}, expected {', '.join(known)}")
