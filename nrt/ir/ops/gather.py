"""Ops that pick elements by index tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from nrt.errors import ShapeError
from nrt.ir.op import Array, Op, TensorType
from nrt.ir.ops.common import dims, normalize_axis

__all__ = ["Gather", "GatherElements"]


def _check_integer(op: str, indices: TensorType) -> None:
    if indices.dtype.kind != "int":
        raise ShapeError(f"{op}: indices are {indices.dtype}, expected an integer type")


def _wrapped(op: str, indices: Array, size: int, axis: int) -> Array:
    """Indices counted from the front; ShapeError when one is out of range."""
    wide = indices.astype(np.int64)
    bad = (wide < -size) | (wide >= size)
    if bad.any():
        raise ShapeError(
            f"{op}: index {wide[bad].flat[0]} is out of range for dimension {axis} of {size}"
        )
    return np.where(wide < 0, wide + size, wide)


@dataclass(frozen=True)
class Gather(Op):
    """Slices of ``data`` at ``indices`` along one dimension; negative indices count from the end.

    Output shape: ``data`` with that dimension replaced by the shape of ``indices``. The reference
    raises ShapeError for an index that is out of range.

    Attributes:
        axis: the dimension of ``data``.
    """

    arity: ClassVar[tuple[int, int]] = (2, 2)
    axis: int = 0

    def infer(self, *inputs: TensorType) -> tuple[TensorType, ...]:
        data, indices = inputs
        _check_integer(self.name, indices)
        axis = normalize_axis(self.name, self.axis, data.rank)
        shape = (*data.shape[:axis], *indices.shape, *data.shape[axis + 1 :])
        return (TensorType(shape, data.dtype),)

    def reference(self, *inputs: Array) -> tuple[Array, ...]:
        data, indices = inputs
        axis = normalize_axis(self.name, self.axis, data.ndim)
        wrapped = _wrapped(self.name, indices, data.shape[axis], axis)
        return (np.asarray(np.take(data, wrapped, axis=axis)),)


@dataclass(frozen=True)
class GatherElements(Op):
    """Element ``indices[i, j, …]`` along one dimension, the other coordinates as in ``indices``.

    Output shape: that of ``indices``, which is nowhere larger than ``data`` but along ``axis``.

    Attributes:
        axis: the dimension of ``data``.
    """

    arity: ClassVar[tuple[int, int]] = (2, 2)
    axis: int = 0

    def infer(self, *inputs: TensorType) -> tuple[TensorType, ...]:
        data, indices = inputs
        _check_integer(self.name, indices)
        axis = normalize_axis(self.name, self.axis, data.rank)
        fits = indices.rank == data.rank and all(
            i <= d
            for a, (i, d) in enumerate(zip(indices.shape, data.shape, strict=True))
            if a != axis
        )
        if not fits:
            raise ShapeError(
                f"{self.name}: indices {dims(indices.shape)} do not lie in data {dims(data.shape)} "
                f"but for dimension {axis}"
            )
        return (TensorType(indices.shape, data.dtype),)

    def reference(self, *inputs: Array) -> tuple[Array, ...]:
        data, indices = inputs
        axis = normalize_axis(self.name, self.axis, data.ndim)
        wrapped = _wrapped(self.name, indices, data.shape[axis], axis)
        part = data[
            tuple(slice(None) if a == axis else slice(n) for a, n in enumerate(indices.shape))
        ]
        return (np.take_along_axis(part, wrapped, axis=axis),)
