"""Weights as int8 or fp8, biases as integers: symmetric, one scale per output channel.

    w[k] ≈ s[k] · q[k]        q in [-L, L]        s[k] = max|w[k]| / L        L = 127 or 448

int8 does not use -128: products of two such numbers then fit 15 bits, and -w is as exact as w. 448
is the largest number of fp8 in e4m3. A bias is an int32 in units of the accumulator, s_x · s_w[k],
to be added to the sum of products.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from nrt.dtypes import FP8E4M3, INT8, UINT8, DType
from nrt.errors import CalibrationError
from nrt.ir.op import Array, Op
from nrt.ir.ops import Conv, ConvTranspose, MatMul

__all__ = [
    "LIMIT",
    "LIMITS",
    "QuantizedWeights",
    "channel_view",
    "fitted_scales",
    "quantize_bias",
    "quantize_weights",
    "scale_of",
    "weight_scales",
]

LIMIT = 127
"""The largest magnitude of int8."""

LIMITS: Mapping[DType, int] = {INT8: LIMIT, UINT8: 255, FP8E4M3: 448}
"""By type of a quantized tensor: the largest magnitude."""

_FEW = 64
"""Weights of a channel up to which a search for its scale pays."""

_FACTORS = tuple(float(f) for f in np.linspace(0.8, 1.3, 101))

_INT32 = 2**31 - 1
_SMALLEST = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class QuantizedWeights:
    """Weights in few bits.

    Attributes:
        values: int8 or fp8, shape and axes of the weights.
        scales: fp32[K], per output channel, all above 0.
    """

    values: Array
    scales: Array


def scale_of(threshold: float, dtype: DType = INT8) -> float:
    """The fp32 scale of a range: ``threshold / 127``, 255 for uint8, 448 for fp8.

    1 for a range of zeros, never below the smallest normal fp32.
    """
    if threshold == 0:
        return 1.0
    return float(np.float32(max(threshold / LIMITS[dtype], _SMALLEST)))


def channel_view(op: Op, weights: Array) -> Array:
    """``weights`` as [K, …] with output channels first: a view that shares the data where it can.

    Args:
        op: `Conv` (any groups; ``w[K, C/groups, *R]``), `ConvTranspose` (``w[C, K/groups, *R]``,
            where channel k of group g reads only that group's rows), or `MatMul`, whose ``b`` is
            [..., D, K], or [..., K, D] with ``trans_b``; a vector has one channel.
        weights: input 1 of the op.

    Raises:
        CalibrationError: the op has no weights.
    """
    if isinstance(op, Conv):
        return weights.reshape(weights.shape[0], -1)
    if isinstance(op, ConvTranspose):
        rows, columns = weights.shape[0] // op.groups, weights.shape[1]
        grouped = weights.reshape(op.groups, rows, columns, -1).swapaxes(1, 2)
        return grouped.reshape(op.groups * columns, -1)
    if isinstance(op, MatMul):
        if weights.ndim == 1:
            return weights.reshape(1, -1)
        axis = -2 if op.trans_b else -1
        return np.moveaxis(weights, axis, 0).reshape(weights.shape[axis], -1)
    raise CalibrationError(f"{op.name} has no weights; expected Conv, ConvTranspose or MatMul")


def weight_scales(op: Op, weights: Array, name: str = "weights", dtype: DType = INT8) -> Array:
    """fp32[K]: the scale of each output channel.

    A channel of zeros takes the largest scale of the others (1 / 127 without any): its bias is then
    as exact as theirs.

    Args:
        op: as for `channel_view`.
        weights: input 1 of the op.
        name: of the weights, for errors.
        dtype: int8 or fp8.

    Raises:
        CalibrationError: the op has no weights, or they hold a NaN or an infinity.
    """
    channels = channel_view(op, weights).astype(np.float64)
    if not np.isfinite(channels).all():
        raise CalibrationError(
            f"{op.name}: {name} hold a NaN or an infinity, which has no quantized value"
        )
    largest = np.abs(channels).max(axis=1, initial=0)
    limit = LIMITS[dtype]
    scales = np.maximum(largest / limit, _SMALLEST)
    scales[largest == 0] = (largest.max(initial=0) or 1.0) / limit
    return np.asarray(np.maximum(scales, _SMALLEST), np.float32)


def fitted_scales(op: Op, weights: Array, name: str = "weights") -> Array:
    """fp32[K]: the scale of each output channel with which int8 are nearest to its weights.

    Of few weights most may happen to lie near the steps of one scale and between those of another:
    scales up to 30 % larger and 20 % smaller than `weight_scales` are tried. For more than 64
    weights none is much better, and these keep that one.

    Args:
        op: as for `channel_view`.
        weights: input 1 of the op.
        name: of the weights, for errors.

    Raises:
        CalibrationError: as for `weight_scales`.
    """
    scales = weight_scales(op, weights, name)
    channels = channel_view(op, weights).astype(np.float64)
    if not 0 < channels.shape[1] <= _FEW:
        return scales
    least = np.full(len(scales), np.inf)
    best = scales
    for factor in (1.0, *_FACTORS):
        tried = np.maximum(scales * factor, _SMALLEST).astype(np.float32)
        steps = tried[:, None].astype(np.float64)
        rounded = np.clip(np.rint(channels / steps), -LIMIT, LIMIT) * steps
        error = np.square(rounded - channels).sum(axis=1)
        best = np.where(error < least, tried, best)
        least = np.minimum(error, least)
    return np.asarray(best, np.float32)


def quantize_weights(
    op: Op,
    weights: Array,
    scales: Array | None = None,
    name: str = "weights",
    dtype: DType = INT8,
) -> QuantizedWeights:
    """Round ``weights`` to the nearest numbers of ``dtype``, half to even, up to its limit.

    Args:
        op: as for `channel_view`.
        weights: input 1 of the op, any float type; not changed.
        scales: fp32[K]; `weight_scales` by default.
        name: of the weights, for errors.
        dtype: int8 or fp8.

    Raises:
        CalibrationError: as for `weight_scales`, or ``scales`` do not fit.
    """
    found = weight_scales(op, weights, name, dtype)
    if scales is None:
        scales = found
    elif scales.shape != found.shape or not (scales > 0).all():
        raise CalibrationError(
            f"{op.name}: scales of shape {list(scales.shape)}, expected {list(found.shape)}, all "
            "above 0"
        )
    spread = _per_channel(op, scales.astype(np.float64), weights)
    values = weights.astype(np.float64) / spread
    if dtype is INT8:
        values = np.rint(values)
    values = np.clip(values, -LIMITS[dtype], LIMITS[dtype])
    return QuantizedWeights(values.astype(dtype.numpy), np.asarray(scales, np.float32))


def _per_channel(op: Op, scales: Array, weights: Array) -> Array:
    """``scales`` in a shape that broadcasts to ``weights``."""
    if isinstance(op, Conv):
        return scales.reshape(-1, *[1] * (weights.ndim - 1))
    if isinstance(op, ConvTranspose):
        rows = weights.shape[0] // op.groups
        table = np.repeat(scales.reshape(op.groups, -1), rows, axis=0)
        return table.reshape(*weights.shape[:2], *[1] * (weights.ndim - 2))
    assert isinstance(op, MatMul)
    return scales[:, None] if op.trans_b and weights.ndim > 1 else scales


def quantize_bias(
    bias: Array, input_scale: float, scales: Array, depth: int = 0, name: str = "bias"
) -> tuple[Array, Array]:
    """A bias as int32, and the weights' scales with which it fits.

    The bias of a channel is ``bias / (input_scale * scale)``. Where that, with ``depth`` products
    of 127 · 127 on top, would overflow an int32, the channel's scale is raised until it fits: its
    weights then use fewer levels, which costs little, since against such a bias they are small.

    Args:
        bias: [K], any float type.
        input_scale: of the layer's input.
        scales: fp32[K], of the weights.
        depth: products that a sum adds up, for which room is left.
        name: of the bias, for errors.

    Returns:
        int32[K] and fp32[K]; the scales are ``scales`` itself where all fit. Weights must be
        quantized with them.

    Raises:
        CalibrationError: the bias is not finite, of another length than ``scales``, or ``depth``
            products alone overflow.
    """
    values = bias.astype(np.float64)
    if values.shape != scales.shape:
        raise CalibrationError(
            f"{name} has shape {list(values.shape)}, expected {list(scales.shape)} as the scales"
        )
    if not np.isfinite(values).all():
        raise CalibrationError(f"{name} holds a NaN or an infinity, which has no quantized value")
    room = _INT32 - depth * LIMIT * LIMIT
    if room <= 0:
        raise CalibrationError(
            f"{name}: {depth} products of 127 · 127 overflow an int32 sum; at most "
            f"{_INT32 // LIMIT**2} fit"
        )
    fitting = scales.astype(np.float64)
    too_large = np.abs(values) > fitting * input_scale * room
    if too_large.any():
        raised = np.abs(values) / (input_scale * room)
        # fp32 rounds the quotient, perhaps down: the next number above holds.
        above = np.nextafter(raised.astype(np.float32), np.float32(np.inf))
        scales = np.where(too_large, above, scales).astype(np.float32)
        fitting = scales.astype(np.float64)
    return np.rint(values / (input_scale * fitting)).astype(np.int32), scales
