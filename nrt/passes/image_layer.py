"""Which convolutions of bytes read an image of few channels as it is.

Tensor cores multiply 16 bytes at a time, and most kernels want them to be channels of one pixel.
Those for a network's first layer take them from a row of pixels instead, which may be planes in
memory as well (`nrt.cuda_kernels.stem_kernel`).
"""

from __future__ import annotations

from nrt.ir.ops import Conv

__all__ = ["is_image_layer"]

_CHANNELS, _FILTER, _STRIDE = 4, 11, 4
"""At most, as in `nrt.cuda_kernels.conv_stem`."""


def is_image_layer(op: Conv, weights: tuple[int, ...]) -> bool:
    """Whether kernels read the image of bytes of ``op`` as it is; ``weights``: [K, C, R, S]."""
    if len(weights) != 4 or op.groups != 1 or any(d != 1 for d in op.dilations):
        return False
    _, channels, *window = weights
    return channels <= _CHANNELS and max(window) <= _FILTER and max(op.strides) <= _STRIDE
