"""Reductions over axes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import numpy as np

from nrt.dtypes import DType
from nrt.errors import ShapeError
from nrt.ir.op import Array, Op, TensorType
from nrt.ir.ops.common import (
    MANY,
    apply_epilogue,
    array_type,
    check_epilogue,
    check_stored,
    compute,
    finish,
    normalize_axes,
)
from nrt.ir.pointwise import Program

__all__ = ["REDUCTIONS", "Reduce"]

T = TypeVar("T")


def _lowest(x: Array) -> Any:
    if x.dtype.kind == "f":
        return -np.inf
    return False if x.dtype.kind == "b" else np.iinfo(x.dtype).min


def _highest(x: Array) -> Any:
    if x.dtype.kind == "f":
        return np.inf
    return True if x.dtype.kind == "b" else np.iinfo(x.dtype).max


def _mean(x: Array, **where: Any) -> Array:
    return np.asarray(np.mean(x, **where) if x.dtype.kind == "f" else _integer_mean(x, **where))


def _integer_mean(x: Array, axis: tuple[int, ...], keepdims: bool) -> Array:
    count = int(np.prod([x.shape[a] for a in axis], dtype=np.int64))
    total = np.sum(x, axis=axis, keepdims=keepdims, dtype=np.int64)
    return np.asarray(np.trunc(total / count))


REDUCTIONS: dict[str, Callable[..., Any]] = {
    "mean": _mean,
    "sum": np.sum,
    "max": lambda x, **where: np.max(x, initial=_lowest(x), **where),
    "min": lambda x, **where: np.min(x, initial=_highest(x), **where),
    "prod": np.prod,
    "l1": lambda x, **where: np.sum(np.abs(x), **where),
    "l2": lambda x, **where: np.sqrt(np.sum(np.square(x), **where)),
    "sum_square": lambda x, **where: np.sum(np.square(x), **where),
}
"""Kind -> NumPy function of the array, ``axis`` and ``keepdims``."""


@dataclass(frozen=True)
class Reduce(Op):
    """Reduction of the dimensions ``axes``; accumulates in float32 or better.

    Global average pooling is ``Reduce("mean", (2, 3))``. Inputs are ``x``, then the extras that
    registers 1 and up of the prologue read, each broadcasting against ``x``, then those of the
    epilogue, each broadcasting against the output. Neither program rounds what it hands on.

    Attributes:
        kind: a key of `REDUCTIONS`.
        axes: dimensions to reduce, negative ones counted from the end; none reduces nothing.
        keepdims: keep them with size 1.
        prologue: pointwise program applied to each element of ``x`` (register 0).
        epilogue: pointwise program applied to each result (register 0).
        out_dtype: float type of the output; that of ``x`` by default.
    """

    arity: ClassVar[tuple[int, int]] = (1, MANY)
    kind: str
    axes: tuple[int, ...]
    keepdims: bool = True
    prologue: Program | None = None
    epilogue: Program | None = None
    out_dtype: DType | None = None

    def parts(self, inputs: Sequence[T]) -> tuple[T, tuple[T, ...], tuple[T, ...]]:
        """``inputs`` as ``x``, the extras of the prologue and those of the epilogue."""
        stop = 1 if self.prologue is None else len(self.prologue.inputs)
        return inputs[0], tuple(inputs[1:stop]), tuple(inputs[stop:])

    def infer(self, *inputs: TensorType) -> tuple[TensorType, ...]:
        x, before, after = self.parts(inputs)
        if self.kind not in REDUCTIONS:
            raise ShapeError(
                f"{self.name}: kind {self.kind!r} is unknown, expected {', '.join(REDUCTIONS)}"
            )
        if x.dtype.kind == "bool" and self.kind not in ("max", "min"):
            raise ShapeError(f"{self.name}: {self.kind} of bool; insert a Cast")
        axes = normalize_axes(self.name, self.axes, x.rank)
        kept = tuple(
            1 if i in axes else d for i, d in enumerate(x.shape) if self.keepdims or i not in axes
        )
        programs = self.prologue is not None or self.epilogue is not None
        dtype = check_stored(self.name, x.dtype, self.out_dtype, programs)
        if self.prologue is not None:
            check_epilogue(self.name, self.prologue, x.shape, before, "prologue")
        if self.epilogue is not None:
            check_epilogue(self.name, self.epilogue, kept, after)
        elif after:
            known = len(inputs) - len(after)
            raise ShapeError(
                f"{self.name}: got {len(inputs)} inputs, expected {known} without an epilogue"
            )
        return (TensorType(kept, dtype),)

    def reference(self, *inputs: Array) -> tuple[Array, ...]:
        (type_,) = self.infer(*map(array_type, inputs))
        x, before, after = self.parts(inputs)
        axes = normalize_axes(self.name, self.axes, x.ndim)
        wide = compute(x)
        if self.prologue is not None:
            (wide,) = self.prologue.evaluate(wide, *map(compute, before))
            wide = np.broadcast_to(wide, x.shape)
        if wide.dtype.kind in "iu" and self.kind not in ("max", "min"):
            wide = wide.astype(np.int64)
        with np.errstate(all="ignore"):
            result = REDUCTIONS[self.kind](wide, axis=axes, keepdims=self.keepdims)
        if self.epilogue is not None:
            return (apply_epilogue(self.epilogue, np.asarray(result), after, type_.dtype),)
        return (finish(result, type_.dtype),)
