"""A convolution and the pooling of all its pixels: what stands before a classifier."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from nrt.dtypes import FP8E4M3, FP32, FP64, DType
from nrt.errors import ShapeError
from nrt.ir.op import Array, Op, TensorType
from nrt.ir.ops.common import MANY, array_type, finish
from nrt.ir.ops.conv import Conv
from nrt.ir.ops.reduce import REDUCTIONS
from nrt.ir.pointwise import Program

__all__ = ["PooledConv"]

KINDS = ("mean", "sum")


@dataclass(frozen=True)
class PooledConv(Op):
    """``reduce(conv(x, w))`` over all pixels: ``[N, C, *S], [K, C, *R] -> [N, K]``.

    Inputs are those of the `Conv` without groups and prologue: ``x, w`` and an optional bias, or
    the extras of the epilogue, which broadcast against the convolution's result. The epilogue comes
    before the pooling. Sums are float32 or better; what is pooled is not rounded.

    Attributes:
        kind: ``mean`` or ``sum``.
        strides, pads, dilations, epilogue, tf32: of the convolution.
        out_dtype: float type of the output; that of ``x`` by default.
    """

    arity: ClassVar[tuple[int, int]] = (2, MANY)
    kind: str = "mean"
    strides: tuple[int, ...] = (1, 1)
    pads: tuple[int, ...] = (0, 0, 0, 0)
    dilations: tuple[int, ...] = (1, 1)
    epilogue: Program | None = None
    out_dtype: DType | None = None
    tf32: bool = False

    def conv(self, dtype: DType) -> Conv:
        """The convolution, on operands of ``dtype``; its result is not rounded below float32."""
        return Conv(
            self.strides,
            self.pads,
            self.dilations,
            epilogue=self.epilogue,
            out_dtype=FP64 if dtype is FP64 else FP32,
            tf32=self.tf32 and dtype is FP32,
        )

    def infer(self, *inputs: TensorType) -> tuple[TensorType, ...]:
        own = inputs[0].dtype
        dtype = self.out_dtype or own
        if self.kind not in KINDS:
            raise ShapeError(
                f"{self.name}: kind {self.kind!r} is unknown, expected {' or '.join(KINDS)}"
            )
        if not (own.is_float and dtype.is_float) or FP8E4M3 in (own, dtype):
            raise ShapeError(
                f"{self.name}: reads {own} and stores {dtype}; expected fp16, bf16, fp32 or fp64"
            )
        try:
            (whole,) = self.conv(own).infer(*inputs)
        except ShapeError as error:
            raise ShapeError(f"{self.name}: {str(error).removeprefix('Conv: ')}") from None
        return (TensorType(whole.shape[:2], dtype),)

    def reference(self, *inputs: Array) -> tuple[Array, ...]:
        (type_,) = self.infer(*map(array_type, inputs))
        (whole,) = self.conv(array_type(inputs[0]).dtype).reference(*inputs)
        axes = tuple(range(2, whole.ndim))
        with np.errstate(all="ignore"):
            pooled = REDUCTIONS[self.kind](whole, axis=axes, keepdims=False)
        return (finish(pooled, type_.dtype),)
