"""The numbers that a quantized tensor may hold: ``(q - zero) · scale``, q of a type of integers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from nrt.dtypes import DType
from nrt.ir.op import Array
from nrt.ir.ops import Dequantize, Quantize
from nrt.ir.value import Node

__all__ = ["Grid", "grid_of"]


@dataclass(frozen=True, eq=False)
class Grid:
    """The grid of a `Quantize` or `Dequantize` whose scale and zero point are constants.

    Attributes:
        dtype: of the integers.
        scale: fp32; one element, or one that broadcasts along the tensor's channels.
        zero: int64, likewise.
    """

    dtype: DType
    scale: Array
    zero: Array

    @property
    def is_uniform(self) -> bool:
        """One scale and one zero point for the whole tensor."""
        return self.scale.size == 1 and self.zero.size == 1

    @property
    def is_symmetric(self) -> bool:
        """0 is in the middle, whatever the scale."""
        return not self.zero.any()

    def same(self, other: Grid) -> bool:
        """Whether both hold the same numbers, as the same integers."""
        return (
            self.dtype is other.dtype
            and np.array_equal(self.scale, other.scale)
            and np.array_equal(self.zero, other.zero)
        )

    def scales(self, shape: tuple[int, ...], axis: int) -> Array | None:
        """fp32[K]: the scale of each channel along ``axis`` of a tensor of ``shape``, or None.

        A uniform scale gives one element; None says that it varies along another dimension.
        """
        if self.scale.size == 1:
            return self.scale.reshape(1)
        spread = (1,) * (len(shape) - self.scale.ndim) + self.scale.shape
        if spread[axis] != self.scale.size or math.prod(spread) != self.scale.size:
            return None
        return self.scale.reshape(-1)


def grid_of(node: Node | None) -> Grid | None:
    """The grid of ``node``; None if it is no `Quantize` or `Dequantize` of constant scales."""
    if node is None or not isinstance(node.op, Quantize | Dequantize):
        return None
    scale = node.inputs[1].constant
    zero = node.inputs[2].constant if len(node.inputs) == 3 else np.zeros((), np.int64)
    if scale is None or zero is None:
        return None
    integers = node.output if isinstance(node.op, Quantize) else node.inputs[0]
    return Grid(integers.dtype, scale.astype(np.float32), zero.astype(np.int64))
