"""Ops that move elements: shape, order, pieces and copies."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from nrt.errors import ShapeError
from nrt.ir.op import Array, Op, TensorType
from nrt.ir.ops.common import MANY, broadcast, dims, normalize_axis, per_axis

__all__ = [
    "Concat",
    "Dropout",
    "Expand",
    "Identity",
    "Pad",
    "Reshape",
    "Slice",
    "Split",
    "Transpose",
]

PAD_MODES = ("constant", "reflect", "edge")


def _fresh(view: Array) -> Array:
    """A row-major copy: results never alias inputs, which may be constants of a graph."""
    return np.array(view, order="C", copy=True)


@dataclass(frozen=True)
class Identity(Op):
    """Its input."""

    def infer(self, *inputs: TensorType) -> tuple[TensorType, ...]:
        return (inputs[0],)

    def reference(self, *inputs: Array) -> tuple[Array, ...]:
        return (_fresh(inputs[0]),)


@dataclass(frozen=True)
class Dropout(Identity):
    """Dropout at inference: its input."""


@dataclass(frozen=True)
class Reshape(Op):
    """The same elements in row-major order under another shape.

    Attributes:
        shape: the output's shape, fully resolved (no -1 or 0 placeholders).
    """

    shape: tuple[int, ...]

    def infer(self, *inputs: TensorType) -> tuple[TensorType, ...]:
        (x,) = inputs
        if any(d < 0 for d in self.shape) or math.prod(self.shape) != math.prod(x.shape):
            raise ShapeError(
                f"{self.name}: {dims(x.shape)} with {math.prod(x.shape)} elements does not fit "
                f"shape {dims(self.shape)}"
            )
        return (TensorType(self.shape, x.dtype),)

    def reference(self, *inputs: Array) -> tuple[Array, ...]:
        return (_fresh(inputs[0].reshape(self.shape)),)


@dataclass(frozen=True)
class Transpose(Op):
    """Permuted dimensions.

    Attributes:
        perm: output dimension ``i`` is input dimension ``perm[i]``.
    """

    perm: tuple[int, ...]

    def infer(self, *inputs: TensorType) -> tuple[TensorType, ...]:
        (x,) = inputs
        if sorted(self.perm) != list(range(x.rank)):
            raise ShapeError(
                f"{self.name}: perm {self.perm} is no permutation of the {x.rank} dimensions of "
                f"{dims(x.shape)}"
            )
        return (TensorType(tuple(x.shape[p] for p in self.perm), x.dtype),)

    def reference(self, *inputs: Array) -> tuple[Array, ...]:
        return (_fresh(inputs[0].transpose(self.perm)),)


@dataclass(frozen=True)
class Slice(Op):
    """A strided piece; one entry per dimension, already clamped to it.

    Attributes:
        starts: first index, at least 0.
        ends: index before which (after which, for a negative step) to stop; -1 stops a negative
            step after index 0.
        steps: distances, not 0.
    """

    starts: tuple[int, ...]
    ends: tuple[int, ...]
    steps: tuple[int, ...]

    def infer(self, *inputs: TensorType) -> tuple[TensorType, ...]:
        (x,) = inputs
        for name in ("starts", "ends", "steps"):
            per_axis(self.name, name, getattr(self, name), x.rank)
        sizes = []
        pieces = zip(self.starts, self.ends, self.steps, x.shape, strict=True)
        for axis, (start, end, step, size) in enumerate(pieces):
            if step == 0:
                raise ShapeError(f"{self.name}: step of dimension {axis} is 0")
            low, high = (0, size) if step > 0 else (-1, size - 1)
            # An empty dimension has no index at all; from 0 back to -1 is then empty too.
            if not (0 <= start <= max(high, 0) and low <= end <= max(size, low)):
                raise ShapeError(
                    f"{self.name}: {start}:{end}:{step} lies outside dimension {axis} of {size}"
                )
            sizes.append(0 if size == 0 else max(0, -((start - end) // step)))
        return (TensorType(tuple(sizes), x.dtype),)

    def slices(self) -> tuple[slice, ...]:
        """Python slices, one per dimension."""
        return tuple(
            slice(start, None if end < 0 else end, step)
            for start, end, step in zip(self.starts, self.ends, self.steps, strict=True)
        )

    def reference(self, *inputs: Array) -> tuple[Array, ...]:
        return (_fresh(inputs[0][self.slices()]),)


@dataclass(frozen=True)
class Concat(Op):
    """Inputs joined along one dimension.

    Attributes:
        axis: that dimension.
    """

    arity: ClassVar[tuple[int, int]] = (1, MANY)
    axis: int

    def infer(self, *inputs: TensorType) -> tuple[TensorType, ...]:
        first = inputs[0]
        axis = normalize_axis(self.name, self.axis, first.rank)
        for index, other in enumerate(inputs):
            if other.dtype is not first.dtype:
                raise ShapeError(
                    f"{self.name}: input {index} is {other.dtype}, expected {first.dtype}"
                )
            same = other.rank == first.rank and all(
                a == b
                for i, (a, b) in enumerate(zip(other.shape, first.shape, strict=True))
                if i != axis
            )
            if not same:
                raise ShapeError(
                    f"{self.name}: input {index} has shape {dims(other.shape)}, expected "
                    f"{dims(first.shape)} but for dimension {axis}"
                )
        total = sum(t.shape[axis] for t in inputs)
        shape = (*first.shape[:axis], total, *first.shape[axis + 1 :])
        return (TensorType(shape, first.dtype),)

    def reference(self, *inputs: Array) -> tuple[Array, ...]:
        return (np.concatenate(inputs, axis=self.axis),)


@dataclass(frozen=True)
class Split(Op):
    """Pieces along one dimension, one output each.

    Attributes:
        axis: that dimension.
        sizes: size of each piece.
    """

    axis: int
    sizes: tuple[int, ...]

    def output_count(self) -> int:
        return len(self.sizes)

    def infer(self, *inputs: TensorType) -> tuple[TensorType, ...]:
        (x,) = inputs
        axis = normalize_axis(self.name, self.axis, x.rank)
        if not self.sizes or any(s < 0 for s in self.sizes) or sum(self.sizes) != x.shape[axis]:
            raise ShapeError(
                f"{self.name}: sizes {self.sizes} do not add up to dimension {axis} of "
                f"{dims(x.shape)}"
            )
        return tuple(
            TensorType((*x.shape[:axis], size, *x.shape[axis + 1 :]), x.dtype)
            for size in self.sizes
        )

    def reference(self, *inputs: Array) -> tuple[Array, ...]:
        (x,) = inputs
        cuts = np.cumsum(self.sizes)[:-1]
        return tuple(_fresh(piece) for piece in np.split(x, cuts, axis=self.axis))


@dataclass(frozen=True)
class Expand(Op):
    """Its input repeated along dimensions of size 1.

    Attributes:
        shape: the output's shape.
    """

    shape: tuple[int, ...]

    def infer(self, *inputs: TensorType) -> tuple[TensorType, ...]:
        (x,) = inputs
        if broadcast(self.name, x.shape, self.shape) != self.shape:
            raise ShapeError(
                f"{self.name}: {dims(x.shape)} does not broadcast to {dims(self.shape)}"
            )
        return (TensorType(self.shape, x.dtype),)

    def reference(self, *inputs: Array) -> tuple[Array, ...]:
        return (_fresh(np.broadcast_to(inputs[0], self.shape)),)


@dataclass(frozen=True)
class Pad(Op):
    """Elements added around, or for negative pads of mode ``constant`` cut off.

    Attributes:
        pads: before each dimension, then after each.
        mode: ``constant``, ``reflect`` (mirror without the edge) or ``edge`` (repeat it).
        value: what ``constant`` pads with.
    """

    pads: tuple[int, ...]
    mode: str = "constant"
    value: float = 0.0

    def infer(self, *inputs: TensorType) -> tuple[TensorType, ...]:
        (x,) = inputs
        per_axis(self.name, "pads", self.pads, 2 * x.rank)
        if self.mode not in PAD_MODES:
            raise ShapeError(
                f"{self.name}: mode {self.mode!r} is unknown, expected {', '.join(PAD_MODES)}"
            )
        sizes = []
        for axis, size in enumerate(x.shape):
            low, high = self.pads[axis], self.pads[axis + x.rank]
            if self.mode != "constant" and min(low, high) < 0:
                raise ShapeError(f"{self.name}: mode {self.mode} has negative pads {self.pads}")
            if self.mode == "reflect" and max(low, high) >= max(size, 1):
                raise ShapeError(
                    f"{self.name}: reflects {max(low, high)} elements of dimension {axis}, which "
                    f"has {size}; expected fewer than its size"
                )
            if self.mode == "edge" and size == 0 and max(low, high) > 0:
                raise ShapeError(f"{self.name}: dimension {axis} is empty and has no edge")
            if size + low + high < 0 or size + min(low, 0) + min(high, 0) < 0:
                raise ShapeError(
                    f"{self.name}: pads {low} and {high} cut more than dimension {axis} of {size}"
                )
            sizes.append(size + low + high)
        return (TensorType(tuple(sizes), x.dtype),)

    def reference(self, *inputs: Array) -> tuple[Array, ...]:
        (x,) = inputs
        pairs = list(zip(self.pads[: x.ndim], self.pads[x.ndim :], strict=True))
        cut = tuple(
            slice(max(0, -a), d - max(0, -b)) for (a, b), d in zip(pairs, x.shape, strict=True)
        )
        grow = [(max(0, a), max(0, b)) for a, b in pairs]
        if self.mode == "reflect":
            return (_fresh(np.pad(x, grow, mode="reflect")),)
        if self.mode == "edge":
            return (_fresh(np.pad(x, grow, mode="edge")),)
        fill = np.asarray(self.value).astype(x.dtype)
        return (_fresh(np.pad(x[cut], grow, constant_values=fill)),)
