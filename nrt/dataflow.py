"""Which tasks read what which others wrote."""

from __future__ import annotations

from collections.abc import Sequence

from nrt.lowering import Buffer, Place, Task

__all__ = ["overlap", "reads"]


def reads(tasks: Sequence[Task]) -> list[tuple[int, ...]]:
    """Per task: the earlier tasks that wrote elements which it reads, in order."""
    written: dict[Buffer, list[tuple[int, Place]]] = {}
    found = []
    for index, task in enumerate(tasks):
        sources = {
            writer
            for place in task.inputs
            for writer, target in written.get(place.buffer, ())
            if overlap(place, target)
        }
        found.append(tuple(sorted(sources)))
        for place in task.outputs:
            written.setdefault(place.buffer, []).append((index, place))
    return found


def overlap(a: Place, b: Place) -> bool:
    """Whether two places of one buffer may share an element.

    Exact for slices of one dense tensor, such as those that a Concat is written in; True for others
    where their bytes, from first to last, meet.
    """
    if b.offset < a.offset:
        a, b = b, a
    if a.spec.size == 0 or b.spec.size == 0 or b.offset >= a.offset + a.spec.nbytes:
        return False
    if a.spec.strides != b.spec.strides or a.spec.dtype != b.spec.dtype:
        return True
    # The distance in steps along each dimension, the longest stride first: `a` ends before `b`
    # begins along one of them, or they meet.
    distance = (b.offset - a.offset) // a.spec.dtype.itemsize
    dims = zip(a.spec.strides, a.spec.shape, b.spec.shape, strict=True)
    for stride, extent, other in sorted(dims, reverse=True):
        if stride > 0 and (extent, other) != (1, 1):
            steps, distance = divmod(distance, stride)
            if steps >= extent:
                return False
    return True
