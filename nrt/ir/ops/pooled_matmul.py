"""Pooling all of an image and a matrix product of the result: the end of a classifier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeVar

import numpy as np

from nrt.dtypes import FP8E4M3, DType
from nrt.errors import ShapeError
from nrt.ir.op import Array, Op, TensorType
from nrt.ir.ops.common import (
    MANY,
    apply_epilogue,
    array_type,
    check_epilogue,
    check_same_dtype,
    compute,
    dims,
)
from nrt.ir.ops.reduce import REDUCTIONS
from nrt.ir.pointwise import Program

__all__ = ["PooledMatMul"]

T = TypeVar("T")

_KINDS = ("mean", "sum", "max")


@dataclass(frozen=True)
class PooledMatMul(Op):
    """``reduce(x) @ w`` over all spatial dimensions of ``x``: ``[N, C, *S], [C, M] -> [N, M]``.

    Inputs are ``x, w``, then the extras that registers 1 and up of the prologue read, each
    broadcasting against ``x``, then those of the epilogue, each broadcasting against the output.
    Sums are float32 or better; the pooled values are not rounded.

    Attributes:
        kind: ``mean``, ``sum`` or ``max``.
        trans_b: ``w`` is ``[M, C]``.
        prologue: pointwise program applied to each element of ``x`` (register 0).
        epilogue: pointwise program applied to each result (register 0).
        out_dtype: float type of the output; that of ``x`` by default.
    """

    arity: ClassVar[tuple[int, int]] = (2, MANY)
    kind: str = "mean"
    trans_b: bool = False
    prologue: Program | None = None
    epilogue: Program | None = None
    out_dtype: DType | None = None

    def parts(self, inputs: Sequence[T]) -> tuple[T, T, tuple[T, ...], tuple[T, ...]]:
        """``inputs`` as ``x``, ``w``, the extras of the prologue and those of the epilogue."""
        stop = 2 if self.prologue is None else 1 + len(self.prologue.inputs)
        return inputs[0], inputs[1], tuple(inputs[2:stop]), tuple(inputs[stop:])

    def infer(self, *inputs: TensorType) -> tuple[TensorType, ...]:
        x, w, before, after = self.parts(inputs)
        if self.kind not in _KINDS:
            raise ShapeError(
                f"{self.name}: kind {self.kind!r} is unknown, expected {', '.join(_KINDS)}"
            )
        check_same_dtype(self.name, x=x, w=w)
        dtype = self.out_dtype or x.dtype
        if not (x.dtype.is_float and dtype.is_float) or FP8E4M3 in (x.dtype, dtype):
            raise ShapeError(
                f"{self.name}: reads {x.dtype} and stores {dtype}; expected fp16, bf16, fp32 or "
                "fp64"
            )
        matrix = w.shape[::-1] if self.trans_b else w.shape
        if x.rank < 3 or w.rank != 2 or x.shape[1] != matrix[0]:
            wanted = "[M,C]" if self.trans_b else "[C,M]"
            raise ShapeError(
                f"{self.name}: got {dims(x.shape)} and {dims(w.shape)}, expected [N,C,*S] and "
                f"{wanted}"
            )
        shape = (x.shape[0], matrix[1])
        if self.prologue is not None:
            check_epilogue(self.name, self.prologue, x.shape, before, "prologue")
        if self.epilogue is not None:
            check_epilogue(self.name, self.epilogue, shape, after)
        elif after:
            known = len(inputs) - len(after)
            raise ShapeError(
                f"{self.name}: got {len(inputs)} inputs, expected {known} without an epilogue"
            )
        return (TensorType(shape, dtype),)

    def reference(self, *inputs: Array) -> tuple[Array, ...]:
        (type_,) = self.infer(*map(array_type, inputs))
        x, w, before, after = self.parts(inputs)
        wide = compute(x)
        if self.prologue is not None:
            (wide,) = self.prologue.evaluate(wide, *map(compute, before))
            wide = np.broadcast_to(wide, x.shape)
        axes = tuple(range(2, x.ndim))
        with np.errstate(all="ignore"):
            pooled = REDUCTIONS[self.kind](wide, axis=axes, keepdims=False)
            product = pooled @ (compute(w).T if self.trans_b else compute(w))
        return (apply_epilogue(self.epilogue, np.asarray(product), after, type_.dtype),)
