"""Which steps of a plan are ordered, what they touch, and that those that are not ordered agree.

A stream keeps its own order, forks and joins order streams. Whether one step ends before another
begins is then a matter of counting: a vector clock says, per stream, how many steps are over
(Mattern, *Virtual Time and Global States of Distributed Systems*, 1989).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from nrt.errors import PlanError
from nrt.plan import (
    BufferRef,
    CopyStep,
    ForkStep,
    HostStep,
    JoinStep,
    LaunchStep,
    SetStep,
    Step,
    TensorMapArg,
)

__all__ = ["Access", "accesses", "find_race", "overlap"]

_SHARED = ("arena", "output")
"""Spaces that steps write to: what lies in the others cannot change."""

_PAIRS = 1 << 22
"""Pairs of unordered steps that are looked at: seconds. A network has thousands."""


@dataclass(frozen=True)
class Access:
    """Bytes that a step touches; whether it may write them."""

    ref: BufferRef
    write: bool


def accesses(step: Step) -> tuple[Access, ...]:
    """What ``step`` touches in memory that may change."""
    return tuple(a for a in _touched(step) if a.ref.space in _SHARED)


def _touched(step: Step) -> Iterator[Access]:
    if isinstance(step, LaunchStep):
        for slot, arg in enumerate(step.args):
            ref = arg.ref if isinstance(arg, TensorMapArg) else arg
            if isinstance(ref, BufferRef):
                yield Access(ref, slot not in step.read_only)
    elif isinstance(step, CopyStep):
        yield from (Access(step.src, False), Access(step.dst, True))
    elif isinstance(step, SetStep):
        yield Access(step.dst, True)
    elif isinstance(step, HostStep):
        yield from (Access(t.ref, False) for t in step.inputs)
        yield from (Access(t.ref, True) for t in step.outputs)
        yield Access(step.workspace, True)


def overlap(a: BufferRef, b: BufferRef) -> bool:
    """Whether two references may share a byte.

    Rows of one pitch are compared exactly, so that slices of channels side by side do not overlap;
    otherwise the ranges decide.
    """
    if a.space != b.space or a.index != b.index:
        return False
    if a.offset >= b.offset + b.nbytes or b.offset >= a.offset + a.nbytes:
        return False
    if a.pitch != b.pitch or a.pitch == 0:
        return True
    shift = (b.offset - a.offset) % a.pitch
    return shift < a.width or a.pitch - shift < b.width


def find_race(steps: Sequence[Step], streams: int) -> tuple[int, int, str] | None:
    """Two steps without an order that touch the same bytes, one of them writing.

    Returns:
        Their indices, and what they share as text; None if there are none.

    Raises:
        PlanError: so many steps are without an order that looking takes too long.
    """
    clocks = [[0] * streams for _ in range(streams)]
    done: list[list[tuple[int, tuple[Access, ...]]]] = [[] for _ in range(streams)]
    pairs = 0
    for index, step in enumerate(steps):
        if isinstance(step, ForkStep):
            for target in step.targets:
                _wait(clocks[target], clocks[step.stream])
            continue
        if isinstance(step, JoinStep):
            for source in step.sources:
                _wait(clocks[step.stream], clocks[source])
            continue
        stream = 0 if isinstance(step, HostStep) else step.stream
        touched = accesses(step)
        for other in range(streams):
            if other == stream:
                continue
            unordered = done[other][clocks[stream][other] :]
            pairs += len(unordered)
            if pairs > _PAIRS:
                raise PlanError(
                    f"unsound plan: more than {_PAIRS} pairs of steps have no order; rebuild it "
                    "with `nrt build`"
                )
            for before, theirs in unordered:
                shared = _shared(theirs, touched)
                if shared is not None:
                    return before, index, shared
        done[stream].append((index, touched))
        clocks[stream][stream] += 1
    return None


def _wait(clock: list[int], other: list[int]) -> None:
    clock[:] = map(max, clock, other)


def _shared(ours: Sequence[Access], theirs: Sequence[Access]) -> str | None:
    for a in ours:
        for b in theirs:
            if (a.write or b.write) and overlap(a.ref, b.ref):
                low = max(a.ref.offset, b.ref.offset)
                high = min(a.ref.offset + a.ref.nbytes, b.ref.offset + b.ref.nbytes)
                return f"bytes {low} to {high} of {a.ref.space} {a.ref.index}"
    return None
