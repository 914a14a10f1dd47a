"""Sliding windows over spatial dimensions, shared by convolutions and pools.

A window is (kernel, strides, pads, dilations), each over the spatial dimensions only; pads hold all
begins, then all ends, as in ONNX.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from nrt.errors import ShapeError
from nrt.ir.op import Array
from nrt.ir.ops.common import per_axis

__all__ = ["Window", "window"]


@dataclass(frozen=True)
class Window:
    """A sliding window; every field has one entry per spatial dimension."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    begins: tuple[int, ...]
    ends: tuple[int, ...]
    dilations: tuple[int, ...]

    @property
    def rank(self) -> int:
        return len(self.kernel)

    @property
    def extents(self) -> tuple[int, ...]:
        """Input elements that one window spans, per dimension."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True))

    def output(self, op: str, spatial: tuple[int, ...], *, ceil: bool = False) -> tuple[int, ...]:
        """Number of windows per dimension.

        With ``ceil`` a last, partial window counts unless it starts in the right padding (the rule
        of ONNX's pools).

        Raises:
            ShapeError: a window is larger than the padded input.
        """
        sizes = []
        for axis, size in enumerate(spatial):
            extent, stride = self.extents[axis], self.strides[axis]
            padded = size + self.begins[axis] + self.ends[axis]
            if padded < extent:
                raise ShapeError(
                    f"{op}: kernel spans {extent} in spatial dimension {axis}, "
                    f"the padded input has {padded}"
                )
            steps = padded - extent
            count = (-(-steps // stride) if ceil else steps // stride) + 1
            if ceil and (count - 1) * stride >= size + self.begins[axis]:
                count -= 1
            sizes.append(count)
        return tuple(sizes)

    def padded(self, x: Array, out: tuple[int, ...], fill: float | int) -> Array:
        """``x[N, C, *S]`` with padding ``fill``, just large enough for ``out`` windows."""
        low, high = [(0, 0), (0, 0)], []
        for axis, size in enumerate(x.shape[2:]):
            reach = (out[axis] - 1) * self.strides[axis] + self.extents[axis]
            high.append(max(0, reach - size - self.begins[axis]))
            low.append((self.begins[axis], high[-1]))
        if all(pair == (0, 0) for pair in low):
            return x
        return np.pad(x, low, constant_values=fill)

    def slices(self, out: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], tuple[slice, ...]]]:
        """(kernel position, slices of a padded ``[N, C, *S]`` that it meets)."""
        for position in np.ndindex(*self.kernel):
            cut = [slice(None), slice(None)]
            for axis, index in enumerate(position):
                start = index * self.dilations[axis]
                stop = start + (out[axis] - 1) * self.strides[axis] + 1
                cut.append(slice(start, stop, self.strides[axis]))
            yield position, tuple(cut)

    def view(self, padded: Array, out: tuple[int, ...]) -> Array:
        """Read-only view ``[N, C, *kernel, *out]`` of a padded input."""
        spatial = padded.strides[2:]
        near = tuple(s * d for s, d in zip(spatial, self.dilations, strict=True))
        far = tuple(s * t for s, t in zip(spatial, self.strides, strict=True))
        return np.lib.stride_tricks.as_strided(
            padded,
            (*padded.shape[:2], *self.kernel, *out),
            (*padded.strides[:2], *near, *far),
            writeable=False,
        )


def window(
    op: str,
    kernel: tuple[int, ...],
    strides: tuple[int, ...],
    pads: tuple[int, ...],
    dilations: tuple[int, ...],
) -> Window:
    """A checked `Window`.

    Raises:
        ShapeError: an attribute has the wrong number of entries, a kernel, stride or dilation is
            less than 1, or a pad is negative.
    """
    rank = len(kernel)
    strides = per_axis(op, "strides", strides, rank)
    dilations = per_axis(op, "dilations", dilations, rank)
    pads = per_axis(op, "pads", pads, 2 * rank)
    for name, values, least in (
        ("kernel", kernel, 1),
        ("strides", strides, 1),
        ("dilations", dilations, 1),
        ("pads", pads, 0),
    ):
        if any(v < least for v in values):
            raise ShapeError(f"{op}: {name} {tuple(values)} must be at least {least}")
    return Window(tuple(kernel), strides, pads[:rank], pads[rank:], dilations)
