"""Max and average pooling over any number of spatial dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, TypeVar

import numpy as np

from nrt.dtypes import BOOL, BYTES, FP32, DType
from nrt.errors import ShapeError
from nrt.ir.op import Array, Op, TensorType
from nrt.ir.ops.common import (
    MANY,
    apply_epilogue,
    array_type,
    check_epilogue,
    check_float,
    check_stored,
    compute,
    dims,
)
from nrt.ir.ops.window import Window, window
from nrt.ir.pointwise import Program

__all__ = ["AveragePool", "MaxPool"]

T = TypeVar("T")


@dataclass(frozen=True)
class _Pool(Op):
    """What both pools share.

    Attributes:
        kernel: window size per spatial dimension.
        strides: one per spatial dimension.
        pads: padding before each spatial dimension, then after each.
        dilations: one per spatial dimension.
        ceil_mode: a last, partial window counts too, unless it starts in the right padding.
        epilogue: pointwise program applied to each result (register 0), which it gets unrounded;
            inputs beyond the first are its other operands, each broadcasting against the output.
        out_dtype: type of the output; that of the input by default. With an epilogue it may be
            int8 or uint8, to which results are rounded, to nearest even, and saturate; otherwise
            a float type.
    """

    arity: ClassVar[tuple[int, int]] = (1, MANY)
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[int, ...]
    dilations: tuple[int, ...] = (1, 1)
    ceil_mode: bool = False
    epilogue: Program | None = field(default=None, kw_only=True)
    out_dtype: DType | None = field(default=None, kw_only=True)

    @staticmethod
    def parts(inputs: Sequence[T]) -> tuple[T, tuple[T, ...], tuple[T, ...]]:
        """``inputs`` as ``x``, nothing, and the operands of the epilogue; as of `Reduce`."""
        return inputs[0], (), tuple(inputs[1:])

    def window(self) -> Window:
        """The sliding window, checked."""
        return window(self.name, self.kernel, self.strides, self.pads, self.dilations)

    def infer(self, *inputs: TensorType) -> tuple[TensorType, ...]:
        x, *extras = inputs
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
        shape = (*x.shape[:2], *spatial)
        dtype = self.stored(x.dtype)
        if self.epilogue is not None:
            check_epilogue(self.name, self.epilogue, shape, extras)
        elif extras:
            raise ShapeError(
                f"{self.name}: got {len(inputs)} inputs, expected 1 without an epilogue"
            )
        return (TensorType(shape, dtype),)

    def stored(self, dtype: DType) -> DType:
        """Element type of the output for an input of ``dtype``."""
        ended = self.epilogue is not None
        if ended and self.out_dtype in BYTES and dtype.is_float:
            return self.out_dtype
        return check_stored(self.name, dtype, self.out_dtype, ended)

    def ended(self, result: Array, inputs: Sequence[Array]) -> tuple[Array, ...]:
        """``result``, freshly computed, behind the epilogue and in the output's type."""
        (type_,) = self.infer(*map(array_type, inputs))
        return (apply_epilogue(self.epilogue, result, inputs[1:], type_.dtype),)


@dataclass(frozen=True)
class MaxPool(_Pool):
    """Largest element of each window; padding never wins."""

    def reference(self, *inputs: Array) -> tuple[Array, ...]:
        x = inputs[0]
        win = self.window()
        out = win.output(self.name, x.shape[2:], ceil=self.ceil_mode)
        wide = compute(x)
        lowest = -np.inf if wide.dtype.kind == "f" else np.iinfo(wide.dtype).min
        padded = win.padded(wide, out, lowest)
        result = np.full((*x.shape[:2], *out), lowest, wide.dtype)
        for _, cut in win.slices(out):
            np.maximum(result, padded[cut], out=result)
        return self.ended(result, inputs)


@dataclass(frozen=True)
class AveragePool(_Pool):
    """Mean of each window; that of bytes is a float, and needs an epilogue and ``out_dtype``.

    Attributes:
        count_include_pad: divide by all elements of the window that lie in the padded input,
            rather than by those that lie in the input.
    """

    count_include_pad: bool = False

    def infer(self, *inputs: TensorType) -> tuple[TensorType, ...]:
        if inputs[0].dtype not in BYTES or self.epilogue is None or self.out_dtype is None:
            check_float(self.name, inputs[0].dtype)
        return super().infer(*inputs)

    def stored(self, dtype: DType) -> DType:
        if dtype in BYTES and self.out_dtype is not None:
            dtype = FP32
        return super().stored(dtype)

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
        x = inputs[0]
        win = self.window()
        out = win.output(self.name, x.shape[2:], ceil=self.ceil_mode)
        wide = compute(x) if x.dtype.kind == "f" or x.dtype.itemsize > 1 else x.astype(np.float32)
        padded = win.padded(wide, out, 0)
        total = np.zeros((*x.shape[:2], *out), wide.dtype)
        for _, cut in win.slices(out):
            total += padded[cut]
        with np.errstate(invalid="ignore", divide="ignore"):
            total /= self.divisors(x.shape[2:]).astype(wide.dtype)
        return self.ended(total, inputs)
