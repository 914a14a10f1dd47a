"""Reductions over axes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from nrt.errors import ShapeError
from nrt.ir.op import Array, Op, TensorType
from nrt.ir.ops.common import array_type, compute, finish, normalize_axes

__all__ = ["REDUCTIONS", "Reduce"]


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

    Global average pooling is ``Reduce("mean", (2, 3))``.

    Attributes:
        kind: a key of `REDUCTIONS`.
        axes: dimensions to reduce, negative ones counted from the end; none reduces nothing.
        keepdims: keep them with size 1.
    """

    kind: str
    axes: tuple[int, ...]
    keepdims: bool = True

    def infer(self, *inputs: TensorType) -> tuple[TensorType, ...]:
        (x,) = inputs
        if self.kind not in REDUCTIONS:
            raise ShapeError(
                f"{self.name}: kind {self.kind!r} is unknown, expected {', '.join(REDUCTIONS)}"
            )
        if x.dtype.kind == "bool" and self.kind not in ("max", "min"):
            raise ShapeError(f"{self.name}: {self.kind} of bool; insert a Cast")
        axes = normalize_axes(self.name, self.axes, x.rank)
        kept = [
            1 if i in axes else d for i, d in enumerate(x.shape) if self.keepdims or i not in axes
        ]
        return (TensorType(tuple(kept), x.dtype),)

    def reference(self, *inputs: Array) -> tuple[Array, ...]:
        (x,) = inputs
        (type_,) = self.infer(array_type(x))
        axes = normalize_axes(self.name, self.axes, x.ndim)
        wide = compute(x)
        if wide.dtype.kind in "iu" and self.kind not in ("max", "min"):
            wide = wide.astype(np.int64)
        with np.errstate(all="ignore"):
            result = REDUCTIONS[self.kind](wide, axis=axes, keepdims=self.keepdims)
        return (finish(result, type_.dtype),)
