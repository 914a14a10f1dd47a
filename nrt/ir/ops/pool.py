"""Max and average pooling over any number of spatial dimensions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nrt.dtypes import BOOL
from nrt.errors import ShapeError
from nrt.ir.op import Array, Op, TensorType
from nrt.ir.ops.common import array_type, check_float, compute, dims, finish
from nrt.ir.ops.window import Window, window

__all__ = ["AveragePool", "MaxPool"]


@dataclass(frozen=True)
class _Pool(Op):
    """What both pools share.

    Attributes:
        kernel: window size per spatial dimension.
        strides: one per spatial dimension.
        pads: padding before each spatial dimension, then after each.
        dilations: one per spatial dimension.
        ceil_mode: a last, partial window counts too, unless it starts in the right padding.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[int, ...]
    dilations: tuple[int, ...] = (1, 1)
    ceil_mode: bool = False

    def window(self) -> Window:
        """The sliding window, checked."""
        return window(self.name, self.kernel, self.strides, self.pads, self.dilations)

    def infer(self, *inputs: TensorType) -> tuple[TensorType, ...]:
        (x,) = inputs
        if x.dtype is BOOL:
            raise ShapeError(
                f"{self.name}: input is bool, expected float or integer; insert a Cast"
            )
        if x.rank != len(self.kernel) + 2:
            raise ShapeError(
                f"{self.name}: input {dims(x.shape)} has rank {x.rank}, kernel {self.kernel} "
                f"expects {len(self.kernel) + 2}"
            )
        spatial = self.window().output(self.name, x.shape[2:], ceil=self.ceil_mode)
        return (TensorType((*x.shape[:2], *spatial), x.dtype),)


@dataclass(frozen=True)
class MaxPool(_Pool):
    """Largest element of each window; padding never wins."""

    def reference(self, *inputs: Array) -> tuple[Array, ...]:
        (x,) = inputs
        win = self.window()
        out = win.output(self.name, x.shape[2:], ceil=self.ceil_mode)
        wide = compute(x)
        lowest = -np.inf if wide.dtype.kind == "f" else np.iinfo(wide.dtype).min
        padded = win.padded(wide, out, lowest)
        result = np.full((*x.shape[:2], *out), lowest, wide.dtype)
        for _, cut in win.slices(out):
            np.maximum(result, padded[cut], out=result)
        return (result.astype(x.dtype, copy=False),)


@dataclass(frozen=True)
class AveragePool(_Pool):
    """Mean of each window.

    Attributes:
        count_include_pad: divide by all elements of the window that lie in the padded input,
            rather than by those that lie in the input.
    """

    count_include_pad: bool = False

    def infer(self, *inputs: TensorType) -> tuple[TensorType, ...]:
        check_float(self.name, inputs[0].dtype)
        return super().infer(*inputs)

    def divisors(self, spatial: tuple[int, ...]) -> Array:
        """Number of counted elements per window, ``[*S']``, for an input of size ``spatial``."""
        win = self.window()
        out = win.output(self.name, spatial, ceil=self.ceil_mode)
        counts = np.ones((), np.int64)
        for axis, size in enumerate(spatial):
            starts = np.arange(out[axis]) * win.strides[axis] - win.begins[axis]
            places = starts[:, None] + np.arange(win.kernel[axis]) * win.dilations[axis]
            low, high = 0, size
            if self.count_include_pad:
                # What a partial window of ceil_mode has beyond the padding is not counted.
                low, high = -win.begins[axis], size + win.ends[axis]
            inside = ((places >= low) & (places < high)).sum(axis=1)
            counts = np.multiply.outer(counts, inside)
        return counts

    def reference(self, *inputs: Array) -> tuple[Array, ...]:
        (x,) = inputs
        win = self.window()
        out = win.output(self.name, x.shape[2:], ceil=self.ceil_mode)
        wide = compute(x)
        padded = win.padded(wide, out, 0)
        total = np.zeros((*x.shape[:2], *out), wide.dtype)
        for _, cut in win.slices(out):
            total += padded[cut]
        with np.errstate(invalid="ignore", divide="ignore"):
            total /= self.divisors(x.shape[2:]).astype(wide.dtype)
        (type_,) = self.infer(array_type(x))
        return (finish(total, type_.dtype),)
