"""Layers that move data: shape, order, pieces, copies."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from nrt.errors import ShapeError
from nrt.frontend.layer import Layers, Operand, Pair, Tensor, pair
from nrt.ir import ops

__all__ = ["MovementLayers"]


class MovementLayers(Layers):
    """Reshape, transpose, concat, slice and their relatives."""

    def reshape(self, x: Tensor, shape: Sequence[int], *, name: str | None = None) -> Tensor:
        """``x`` in another shape; one entry may be -1, which takes what is left."""
        label = self.layer_name("reshape", name)
        wanted = [int(d) for d in shape]
        if wanted.count(-1) == 1:
            known, total = -math.prod(wanted), math.prod(x.shape)
            if known <= 0 or total % known:
                raise ShapeError(
                    f"Reshape '{label}': {list(x.shape)} does not fit shape {list(shape)}"
                )
            wanted[wanted.index(-1)] = total // known
        return self.layer("reshape", ops.Reshape(tuple(wanted)), x, name=label)

    def flatten(self, x: Tensor, axis: int = 1, *, name: str | None = None) -> Tensor:
        """A matrix: the dimensions before ``axis``, and the others."""
        label = self.layer_name("flatten", name)
        rank = len(x.shape)
        if not -rank <= axis <= rank:
            raise ShapeError(f"Reshape '{label}': axis {axis} is outside {list(x.shape)}")
        axis = axis + rank if axis < 0 else axis
        shape = (math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))
        return self.layer("flatten", ops.Reshape(shape), x, name=label)

    def squeeze(
        self, x: Tensor, axes: Sequence[int] | None = None, *, name: str | None = None
    ) -> Tensor:
        """``x`` without the dimensions ``axes`` (all of size 1 by default)."""
        label = self.layer_name("squeeze", name)
        rank = len(x.shape)
        every = [i for i, d in enumerate(x.shape) if d == 1]
        gone = set(every if axes is None else (_axis(label, a, rank) for a in axes))
        for axis in gone:
            if x.shape[axis] != 1:
                raise ShapeError(
                    f"Reshape '{label}': dimension {axis} of {list(x.shape)} is not of size 1"
                )
        kept = tuple(d for i, d in enumerate(x.shape) if i not in gone)
        return self.layer("squeeze", ops.Reshape(kept), x, name=label)

    def unsqueeze(self, x: Tensor, axes: Sequence[int], *, name: str | None = None) -> Tensor:
        """``x`` with dimensions of size 1 at the places ``axes`` of the result."""
        label = self.layer_name("unsqueeze", name)
        rank = len(x.shape) + len(axes)
        new = {_axis(label, a, rank) for a in axes}
        if len(new) != len(axes):
            raise ShapeError(f"Reshape '{label}': axes {list(axes)} name a dimension twice")
        old = iter(x.shape)
        shape = tuple(1 if i in new else next(old) for i in range(rank))
        return self.layer("unsqueeze", ops.Reshape(shape), x, name=label)

    def transpose(self, x: Tensor, perm: Sequence[int], *, name: str | None = None) -> Tensor:
        """``x`` with dimension ``perm[i]`` at place ``i``."""
        return self.layer("transpose", ops.Transpose(tuple(perm)), x, name=name)

    def concat(
        self, tensors: Sequence[Operand], axis: int = 1, *, name: str | None = None
    ) -> Tensor:
        """Tensors joined along ``axis`` (channels by default)."""
        return self.layer("concat", ops.Concat(axis), *tensors, name=name)

    def split(
        self, x: Tensor, sizes: Sequence[int], axis: int = 1, *, name: str | None = None
    ) -> tuple[Tensor, ...]:
        """Pieces of the given sizes along ``axis``."""
        return self.layer_all("split", ops.Split(axis, tuple(sizes)), x, name=name)

    def slice(
        self,
        x: Tensor,
        starts: Sequence[int],
        ends: Sequence[int],
        *,
        axes: Sequence[int] | None = None,
        steps: Sequence[int] | None = None,
        name: str | None = None,
    ) -> Tensor:
        """A part of ``x``, with the meaning of Python's slices along each of ``axes``."""
        label = self.layer_name("slice", name)
        where = tuple(range(len(starts))) if axes is None else tuple(axes)
        strides = (1,) * len(starts) if steps is None else tuple(steps)
        if not len(starts) == len(ends) == len(where) == len(strides):
            raise ShapeError(f"Slice '{label}': starts, ends, axes and steps differ in length")
        bounds = [(0, d, 1) for d in x.shape]
        for start, end, axis, step in zip(starts, ends, where, strides, strict=True):
            if step == 0:
                raise ShapeError(f"Slice '{label}': step 0, expected another number")
            at = _axis(label, axis, len(x.shape))
            bounds[at] = slice(start, end, step).indices(x.shape[at])
        op = ops.Slice(*(tuple(b[i] for b in bounds) for i in range(3)))
        return self.layer("slice", op, x, name=label)

    def gather(
        self, x: Tensor, indices: Operand, axis: int = 0, *, name: str | None = None
    ) -> Tensor:
        """Slices of ``x`` at ``indices`` along ``axis``."""
        if not isinstance(indices, Tensor):
            indices = np.asarray(indices)  # whole numbers stay so: they are no data of the layer
        return self.layer("gather", ops.Gather(axis), x, indices, name=name)

    def expand(self, x: Tensor, shape: Sequence[int], *, name: str | None = None) -> Tensor:
        """``x`` repeated along dimensions of size 1."""
        return self.layer("expand", ops.Expand(tuple(shape)), x, name=name)

    def pad(
        self,
        x: Tensor,
        pads: Sequence[int],
        *,
        mode: str = "constant",
        value: float = 0.0,
        name: str | None = None,
    ) -> Tensor:
        """``x`` with ``pads`` before each dimension, then after each."""
        return self.layer("pad", ops.Pad(tuple(pads), mode, value), x, name=name)

    def resize(
        self,
        x: Tensor,
        size: Pair,
        *,
        mode: str = "nearest",
        coordinate: str = "half_pixel",
        name: str | None = None,
    ) -> Tensor:
        """``x[N, C, H, W]`` resampled to ``size`` (height, width).

        Args:
            x: images.
            size: the new height and width.
            mode: ``nearest``, ``linear`` or ``cubic``.
            coordinate: ``half_pixel``, ``asymmetric``, ``align_corners`` or ``pytorch_half_pixel``.
            name: the layer's name.
        """
        label = self.layer_name("resize", name)
        if len(x.shape) != 4:
            raise ShapeError(f"Resize '{label}': input is {list(x.shape)}, expected [N,C,H,W]")
        high, wide = pair(f"Resize '{label}': size", size)
        scales = (1.0, 1.0, high / x.shape[2], wide / x.shape[3])
        op = ops.Resize((*x.shape[:2], high, wide), scales, mode, coordinate)
        return self.layer("resize", op, x, name=label)


def _axis(label: str, axis: int, rank: int) -> int:
    if not -rank <= axis < rank:
        raise ShapeError(f"layer '{label}': axis {axis} is outside {rank} dimensions")
    return axis % rank
