"""When one tensor's memory can be seen as another's: questions about strides."""

from __future__ import annotations

from nrt.problem import TensorSpec, dense_strides

__all__ = ["ALIGN", "is_aligned", "reshaped_strides", "row_pitch", "same_strides"]

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


def reshaped_strides(spec: TensorSpec, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """Strides of ``spec`` viewed with ``shape``; None where strides cannot say it.

    Dimensions that lie in memory like one are merged; each new dimension must divide what is left
    of its run.
    """
    if spec.size == 0:
        return dense_strides(shape)
    if spec.is_row_major:
        return dense_strides(shape)
    groups = _merge_groups(spec)
    strides = [0] * len(shape)
    index = len(groups) - 1
    room, step = groups[index]
    for dim in range(len(shape) - 1, -1, -1):
        size = shape[dim]
        if size == 1:
            continue
        while room == 1 and index > 0:
            index -= 1
            room, step = groups[index]
        if room % size:
            return None
        strides[dim] = step
        step *= size
        room //= size
    return tuple(strides)


def _merge_groups(spec: TensorSpec) -> list[tuple[int, int]]:
    """(size, innermost stride) of runs of dimensions that lie in memory like one."""
    groups: list[tuple[int, int]] = []
    for size, stride in zip(spec.shape, spec.strides, strict=True):
        if size == 1:
            continue
        if groups and groups[-1][1] == size * stride:
            groups[-1] = (groups[-1][0] * size, stride)
        else:
            groups.append((size, stride))
    return groups or [(1, 1)]


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
