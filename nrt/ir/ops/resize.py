"""Interpolating resize, separable over the dimensions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from nrt.errors import ShapeError
from nrt.ir.op import Array, Op, TensorType
from nrt.ir.ops.common import array_type, check_float, compute, dims, finish, per_axis

__all__ = ["Resize"]

MODES = ("nearest", "linear", "cubic")
COORDINATES = ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel")
NEAREST: dict[str, Callable[[Array], Array]] = {
    "round_prefer_floor": lambda x: np.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: np.floor(x + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}


@dataclass(frozen=True)
class Resize(Op):
    """Resampling to ``sizes``.

    Attributes:
        sizes: the output's shape.
        scales: output size over input size as the model states it, per dimension; what the
            coordinates are computed with, and not always ``sizes / input`` exactly.
        mode: ``nearest``, ``linear`` or ``cubic``.
        coordinate: from output to input position: ``half_pixel``, ``asymmetric``,
            ``align_corners`` or ``pytorch_half_pixel``.
        nearest: rounding of mode ``nearest``: ``round_prefer_floor``, ``round_prefer_ceil``,
            ``floor`` or ``ceil``.
        cubic_a: parameter of the cubic kernel (Keys 1981).
    """

    sizes: tuple[int, ...]
    scales: tuple[float, ...]
    mode: str = "nearest"
    coordinate: str = "half_pixel"
    nearest: str = "round_prefer_floor"
    cubic_a: float = -0.75

    def infer(self, *inputs: TensorType) -> tuple[TensorType, ...]:
        (x,) = inputs
        for name, options in (
            ("mode", MODES),
            ("coordinate", COORDINATES),
            ("nearest", tuple(NEAREST)),
        ):
            if getattr(self, name) not in options:
                raise ShapeError(
                    f"{self.name}: {name} {getattr(self, name)!r} is unknown, expected "
                    + ", ".join(options)
                )
        per_axis(self.name, "sizes", self.sizes, x.rank)
        per_axis(self.name, "scales", self.scales, x.rank)
        if self.mode != "nearest":
            check_float(self.name, x.dtype)
        if any(s < 1 for s in self.sizes) or any(s <= 0 for s in self.scales) or 0 in x.shape:
            raise ShapeError(
                f"{self.name}: sizes {self.sizes} and scales {self.scales} of {dims(x.shape)} must "
                "be positive"
            )
        return (TensorType(self.sizes, x.dtype),)

    def positions(self, axis: int, size: int) -> Array:
        """Input coordinate of every output element along ``axis``, for an input of ``size``."""
        count, scale = self.sizes[axis], self.scales[axis]
        index = np.arange(count, dtype=np.float64)
        if self.coordinate == "asymmetric":
            return index / scale
        if self.coordinate == "align_corners":
            # ONNX divides by the length before rounding down, which need not be an integer.
            length = size * scale
            return index * (size - 1) / (length - 1) if count > 1 else np.zeros(count)
        if self.coordinate == "pytorch_half_pixel" and count == 1:
            return np.zeros(count)
        return (index + 0.5) / scale - 0.5

    def taps(self, axis: int, size: int) -> tuple[Array, Array]:
        """Input indices ``[taps, count]`` along ``axis``, clamped, and their weights."""
        position = self.positions(axis, size)
        if self.mode == "nearest":
            index = NEAREST[self.nearest](position)[None]
            return np.clip(index, 0, size - 1).astype(np.int64), np.ones_like(index)
        base = np.floor(position)
        part = position - base
        if self.mode == "linear":
            offsets = np.arange(2)[:, None]
            weights = np.stack([1 - part, part])
        else:
            offsets = np.arange(-1, 3)[:, None]
            weights = self._cubic(np.abs(part - offsets))
        return np.clip(base + offsets, 0, size - 1).astype(np.int64), weights

    def _cubic(self, distance: Array) -> Array:
        a, d = self.cubic_a, distance
        near = ((a + 2) * d - (a + 3)) * d * d + 1
        far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
        return np.where(d <= 1, near, np.where(d < 2, far, 0.0))

    def reference(self, *inputs: Array) -> tuple[Array, ...]:
        (x,) = inputs
        result = x if self.mode == "nearest" else compute(x)
        for axis, size in enumerate(x.shape):
            if self.sizes[axis] == size and self.scales[axis] == 1:
                continue
            indices, weights = self.taps(axis, size)
            if self.mode == "nearest":
                result = np.take(result, indices[0], axis=axis)
                continue
            shape = [-1 if a == axis else 1 for a in range(x.ndim)]
            result = sum(
                (np.take(result, i, axis=axis) * w.astype(result.dtype).reshape(shape)
                for i, w in zip(indices, weights, strict=True)),
                start=np.zeros((), result.dtype),
            )  # fmt: skip
        if result is x:
            result = x.copy()
        return (finish(result, array_type(x).dtype),)
