"""Which tasks read what which others wrote."""

from __future__ import annotations

from collections.abc import Sequence

from nrt.liveness import place_in
from nrt.lowering import Buffer, Task
from nrt.plan import BufferRef
from nrt.plan_order import overlap

__all__ = ["reads"]


def reads(tasks: Sequence[Task]) -> list[tuple[int, ...]]:
    """Per task: the earlier tasks that wrote elements which it reads, in order.

    Slices of channels side by side are told apart, see `nrt.plan_order.overlap`; where it cannot
    tell, a writer counts.
    """
    written: dict[Buffer, list[tuple[int, BufferRef]]] = {}
    found = []
    for index, task in enumerate(tasks):
        sources = {
            writer
            for place in task.inputs
            for writer, target in written.get(place.buffer, ())
            if overlap(place_in(place), target)
        }
        found.append(tuple(sorted(sources)))
        for place in task.outputs:
            written.setdefault(place.buffer, []).append((index, place_in(place)))
    return found
