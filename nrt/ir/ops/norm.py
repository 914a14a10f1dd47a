"""Normalizations and softmax."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from nrt.errors import ShapeError
from nrt.ir.op import Array, Op, TensorType
from nrt.ir.ops.common import (
    array_type,
    broadcast,
    check_float,
    compute,
    dims,
    finish,
    normalize_axis,
)

__all__ = [
    "LRN",
    "BatchNormalization",
    "InstanceNormalization",
    "LayerNormalization",
    "LogSoftmax",
    "Softmax",
]


def _check_per_channel(op: str, x: TensorType, **parameters: TensorType) -> None:
    check_float(op, x.dtype)
    if x.rank < 2:
        raise ShapeError(
            f"{op}: input {dims(x.shape)} has rank {x.rank}, expected at least 2 (N,C,*S)"
        )
    for name, type_ in parameters.items():
        if type_.shape != (x.shape[1],):
            raise ShapeError(
                f"{op}: {name} has shape {dims(type_.shape)}, expected {dims(x.shape[1:2])}"
            )


def _per_channel(parameter: Array, rank: int) -> Array:
    return compute(parameter).reshape(-1, *[1] * (rank - 2))


@dataclass(frozen=True)
class BatchNormalization(Op):
    """``(x - mean) / sqrt(var + epsilon) * scale + bias`` per channel, with stored statistics.

    Inputs: ``x[N, C, *S]``, ``scale[C]``, ``bias[C]``, ``mean[C]``, ``var[C]``.

    Attributes:
        epsilon: added to the variance.
    """

    arity: ClassVar[tuple[int, int]] = (5, 5)
    epsilon: float = 1e-5

    def infer(self, *inputs: TensorType) -> tuple[TensorType, ...]:
        x, scale, bias, mean, var = inputs
        _check_per_channel(self.name, x, scale=scale, bias=bias, mean=mean, var=var)
        return (x,)

    def reference(self, *inputs: Array) -> tuple[Array, ...]:
        x = inputs[0]
        scale, bias, mean, var = (_per_channel(p, x.ndim) for p in inputs[1:])
        slope = scale / np.sqrt(var + var.dtype.type(self.epsilon))
        return (finish((compute(x) - mean) * slope + bias, array_type(x).dtype),)


@dataclass(frozen=True)
class InstanceNormalization(Op):
    """Each channel of each sample normalized by its own mean and variance, then scaled.

    Inputs: ``x[N, C, *S]``, ``scale[C]``, ``bias[C]``.

    Attributes:
        epsilon: added to the variance.
    """

    arity: ClassVar[tuple[int, int]] = (3, 3)
    epsilon: float = 1e-5

    def infer(self, *inputs: TensorType) -> tuple[TensorType, ...]:
        x, scale, bias = inputs
        _check_per_channel(self.name, x, scale=scale, bias=bias)
        return (x,)

    def reference(self, *inputs: Array) -> tuple[Array, ...]:
        x = inputs[0]
        scale, bias = (_per_channel(p, x.ndim) for p in inputs[1:])
        normal = _standardize(compute(x), tuple(range(2, x.ndim)), self.epsilon)
        return (finish(normal * scale + bias, array_type(x).dtype),)


@dataclass(frozen=True)
class LayerNormalization(Op):
    """Mean 0 and variance 1 over the dimensions from ``axis`` on, then scale and bias.

    Inputs: ``x``, ``scale``, optionally ``bias``; the last two broadcast against ``x``.

    Attributes:
        axis: first dimension of those that are normalized together.
        epsilon: added to the variance.
    """

    arity: ClassVar[tuple[int, int]] = (2, 3)
    axis: int = -1
    epsilon: float = 1e-5

    def infer(self, *inputs: TensorType) -> tuple[TensorType, ...]:
        x, *parameters = inputs
        check_float(self.name, x.dtype)
        normalize_axis(self.name, self.axis, x.rank)
        for name, type_ in zip(("scale", "bias"), parameters, strict=False):
            if broadcast(self.name, type_.shape, x.shape) != x.shape:
                raise ShapeError(
                    f"{self.name}: {name} has shape {dims(type_.shape)}, which does not broadcast "
                    f"to the input {dims(x.shape)}"
                )
        return (x,)

    def reference(self, *inputs: Array) -> tuple[Array, ...]:
        x, scale, *bias = inputs
        first = normalize_axis(self.name, self.axis, x.ndim)
        result = _standardize(compute(x), tuple(range(first, x.ndim)), self.epsilon) * compute(
            scale
        )
        if bias:
            result = result + compute(bias[0])
        return (finish(result, array_type(x).dtype),)


def _standardize(x: Array, axes: tuple[int, ...], epsilon: float) -> Array:
    """Two passes: the mean first, so that a large offset does not cancel the variance."""
    centered = x - x.mean(axis=axes, keepdims=True)
    variance = np.square(centered).mean(axis=axes, keepdims=True)
    return np.asarray(centered / np.sqrt(variance + variance.dtype.type(epsilon)))


@dataclass(frozen=True)
class LRN(Op):
    """Local response normalization across channels: ``x / (bias + alpha / size * sum(x²))^beta``.

    The sum runs over ``size`` neighbouring channels (Krizhevsky et al. 2012, section 3.3; ONNX
    divides alpha by the size).

    Attributes:
        size: number of channels in a window.
        alpha: factor of the sum.
        beta: exponent.
        bias: constant of the base.
    """

    size: int
    alpha: float = 1e-4
    beta: float = 0.75
    bias: float = 1.0

    def infer(self, *inputs: TensorType) -> tuple[TensorType, ...]:
        (x,) = inputs
        _check_per_channel(self.name, x)
        if self.size < 1:
            raise ShapeError(f"{self.name}: size is {self.size}, expected at least 1")
        return (x,)

    def reference(self, *inputs: Array) -> tuple[Array, ...]:
        (x,) = inputs
        wide = compute(x)
        squares = np.square(wide)
        total = np.zeros_like(wide)
        channels = x.shape[1]
        for shift in range(-((self.size - 1) // 2), math.ceil((self.size - 1) / 2) + 1):
            low, high = max(0, -shift), min(channels, channels - shift)
            if low < high:
                total[:, low:high] += squares[:, low + shift : high + shift]
        scale = wide.dtype.type(self.bias) + wide.dtype.type(self.alpha / self.size) * total
        return (finish(wide / scale ** wide.dtype.type(self.beta), array_type(x).dtype),)


@dataclass(frozen=True)
class Softmax(Op):
    """``exp(x) / sum(exp(x))`` along one dimension.

    Attributes:
        axis: that dimension.
    """

    axis: int = -1

    def infer(self, *inputs: TensorType) -> tuple[TensorType, ...]:
        (x,) = inputs
        check_float(self.name, x.dtype)
        normalize_axis(self.name, self.axis, x.rank)
        return (x,)

    def reference(self, *inputs: Array) -> tuple[Array, ...]:
        (x,) = inputs
        exponential = np.exp(_below_maximum(compute(x), self.axis))
        exponential /= exponential.sum(axis=self.axis, keepdims=True)
        return (finish(exponential, array_type(x).dtype),)


@dataclass(frozen=True)
class LogSoftmax(Op):
    """``x - log(sum(exp(x)))`` along one dimension.

    Attributes:
        axis: that dimension.
    """

    axis: int = -1

    def infer(self, *inputs: TensorType) -> tuple[TensorType, ...]:
        (x,) = inputs
        check_float(self.name, x.dtype)
        normalize_axis(self.name, self.axis, x.rank)
        return (x,)

    def reference(self, *inputs: Array) -> tuple[Array, ...]:
        (x,) = inputs
        below = _below_maximum(compute(x), self.axis)
        total = np.exp(below).sum(axis=self.axis, keepdims=True)
        return (finish(below - np.log(total), array_type(x).dtype),)


def _below_maximum(x: Array, axis: int) -> Array:
    """``x`` minus its maximum, so that no exponential overflows."""
    with np.errstate(invalid="ignore"):
        return np.asarray(x - x.max(axis=axis, keepdims=True, initial=-np.inf))
