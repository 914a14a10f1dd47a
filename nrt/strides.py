"""When one tensor's memory can be seen as another's: questions about strides."""

from __future__ import annotations

from nrt.ir import pitch
from nrt.problem import TensorSpec, dense_strides

__all__ = [
    "ALIGN",
    "is_aligned",
    "pitched",
    "reshaped_strides",
    "row_pitch",
    "same_strides",
]

ALIGN = 16
"""Bytes: a slice of a buffer is handed to kernels only where their widest access stays aligned."""


def is_aligned(spec: TensorSpec) -> bool:
    """Whether every step but those to the next element keeps the widest access aligned."""
    return all(
        s == 1 or s * spec.dtype.itemsize % ALIGN == 0
        for d, s in zip(spec.shape, spec.strides, strict=True)
        if d > 1
    )


def same_strides(a: TensorSpec, b: TensorSpec) -> bool:
    """Whether two specs touch the same memory in the same order."""
    return a.shape == b.shape and all(
        d == 1 or s == t for d, s, t in zip(a.shape, a.strides, b.strides, strict=True)
    )


def pitched(spec: TensorSpec, order: tuple[int, ...] | None = None) -> TensorSpec | None:
    """``spec`` if it is dense in ``order`` but for gaps between rows that keep them aligned.

    Such is a piece of a larger tensor in that order; see `nrt.ir.pitch`. Dimensions of size 1 get
    the strides that equal pieces have too, so that they are equal problems.
    """
    strides = list(spec.strides)
    room = 1
    for dim in reversed(order or range(len(spec.shape))):
        if spec.shape[dim] == 1:
            strides[dim] = room
            continue
        gap = strides[dim] != room
        if gap and (room == 1 or strides[dim] < room or strides[dim] * spec.dtype.itemsize % ALIGN):
            return None
        room = strides[dim] * spec.shape[dim]
    return TensorSpec(spec.shape, spec.dtype, tuple(strides))


def reshaped_strides(spec: TensorSpec, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """Strides of ``spec`` viewed with ``shape``; None where strides cannot say it."""
    if spec.size == 0 or spec.is_row_major:
        return dense_strides(shape)
    return pitch.reshaped_strides(spec.shape, spec.strides, shape)


def row_pitch(spec: TensorSpec) -> tuple[int, int]:
    """Width and pitch, in bytes, of the rows that ``spec`` touches; (0, 0) where it has no gaps.

    Also (0, 0) where its elements are no evenly spaced rows: the whole range is then meant.
    """
    width, pitch = 1, 0
    for stride, size in sorted((s, d) for d, s in zip(spec.shape, spec.strides, strict=True)):
        if size == 1 or stride == 0:
            continue
        if not pitch and stride == width:
            width *= size
        elif not pitch and stride > width:
            pitch = stride
        elif not pitch or stride % pitch:
            return 0, 0
    return (width * spec.dtype.itemsize, pitch * spec.dtype.itemsize) if pitch else (0, 0)
