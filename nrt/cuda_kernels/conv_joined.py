"""Pointwise convolutions of few channels on Hopper: neighbouring pixels as one row of a product.

The copy engine wants rows at multiples of 16 bytes. A pixel of 24 bytes is none, two are:

    [y0 y1] = [x0 x1] @ [[W, 0], [0, W]]

computes two pixels at a time, on the same memory seen as half as many rows twice as long. Half of
the products are with zeros, on cores that wait for memory all the same: a block of 24 channels is
filled up to 32 anyway, one of 48 to 64. Vectors of the epilogue are repeated for each pixel.

A NaN or an infinity spreads to the pixels that it is joined with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from nrt.cuda_kernels.conv_common import ConvShape, refuse_conv
from nrt.cuda_kernels.conv_wgmma import ConvWgmma
from nrt.cuda_kernels.device import DeviceSpec
from nrt.cuda_kernels.variant import Config, Emission, Variant
from nrt.cuda_kernels.wgmma_tile import OPERANDS, refuse_device
from nrt.ir.op import Array
from nrt.ir.ops import Conv
from nrt.ir.value import NHWC
from nrt.problem import Problem, Refusal, TensorSpec

__all__ = ["VARIANTS", "ConvJoined", "joined", "joined_constant"]

_MOST = 4
"""Pixels of a row: of eight, seven of eight products would be with zeros."""


class ConvJoined(Variant):
    """`ConvWgmma` on the problem of `joined`."""

    name = "conv_joined"
    ops = (Conv,)
    rank = 5
    inner = ConvWgmma()

    def supports(self, problem: Problem, device: DeviceSpec) -> Refusal | None:
        refusal = refuse_device(device) or refuse_conv(problem, device, dtypes=OPERANDS)
        if refusal is not None:
            return refusal
        whole = joined(problem)
        return whole if isinstance(whole, Refusal) else self.inner.supports(whole, device)

    def configs(self, problem: Problem, device: DeviceSpec) -> Sequence[Config]:
        return self.inner.configs(_joined(problem), device)

    def estimate(self, problem: Problem, config: Config, device: DeviceSpec) -> float:
        return self.inner.estimate(_joined(problem), config, device)

    def emit(self, problem: Problem, config: Config, device: DeviceSpec) -> Emission:
        return self.inner.emit(_joined(problem), config, device)

    def pack(self, problem: Problem, config: Config, slot: int, array: Array) -> Array:
        return self.inner.pack(
            _joined(problem), config, slot, joined_constant(array, slot, _pixels(problem))
        )


def joined_constant(array: Array, slot: int, pixels: int) -> Array:
    """The constant ``array`` of input ``slot`` as the problem of `joined` has it.

    Weights ``[K, C, 1, 1]`` become a block diagonal, vectors are repeated, a number stays.
    """
    if slot > 1:
        return array if array.size == 1 else np.concatenate([array] * pixels)
    k, c = array.shape[:2]
    blocks = np.zeros((pixels, k, pixels, c), array.dtype)
    for pixel in range(pixels):
        blocks[pixel, :, pixel] = array.reshape(k, c)
    return blocks.reshape(pixels * k, pixels * c, 1, 1)


def _pixels(problem: Problem) -> int:
    """How many pixels are multiples of 16 bytes."""
    s = ConvShape.of(problem)
    return 16 // int(np.gcd(16, s.c * s.dtype.itemsize))


def _joined(problem: Problem) -> Problem:
    found = joined(problem)
    assert isinstance(found, Problem), found
    return found


def joined(problem: Problem) -> Problem | Refusal:
    """The same convolution with neighbouring pixels as one of more channels, or why there is none.

    ``problem`` is one that `refuse_conv` accepts. The result has one image of one row.
    """
    s, pixels = ConvShape.of(problem), _pixels(problem)
    if not s.is_pointwise or s.groups > 1:
        return Refusal("it is no plain product of pixels and weights")
    if not 1 < pixels <= _MOST:
        return Refusal(f"pixels of {s.c} {s.dtype}: it takes {pixels} to fill 16 bytes")
    if s.m % pixels:
        return Refusal(f"{s.m} pixels are no multiple of {pixels}")
    x, y = problem.inputs[0], problem.y
    whole = (x, *problem.outputs)
    if any(t.strides != TensorSpec.dense(t.shape, t.dtype, NHWC).strides for t in whole):
        return Refusal("the image or the result is a piece of a wider one, or not channels last")
    inputs = [
        _row(s.c * pixels, s.m // pixels, x),
        TensorSpec.dense((s.k * pixels, s.c * pixels, 1, 1), problem.inputs[1].dtype),
    ]
    for slot, spec in enumerate(problem.inputs[2:], 2):
        if spec.shape == y.shape and spec.strides == y.strides:
            inputs.append(_row(s.k * pixels, s.m // pixels, spec))
        elif spec.size == 1:
            inputs.append(spec)
        elif problem.constants[slot] and spec.shape in ((s.k, 1, 1), (s.k,)):
            inputs.append(TensorSpec.dense((s.k * pixels, *spec.shape[1:]), spec.dtype))
        else:
            return Refusal(f"operand {slot} of the epilogue is no vector of constants: {spec}")
    outs = tuple(_row(s.k * pixels, s.m // pixels, t) for t in problem.outputs)
    return replace(problem, inputs=tuple(inputs), outputs=outs)


def _row(channels: int, pixels: int, spec: TensorSpec) -> TensorSpec:
    return TensorSpec.dense((1, channels, 1, pixels), spec.dtype, NHWC)


VARIANTS: tuple[Variant, ...] = (ConvJoined(),)
