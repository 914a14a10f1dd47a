"""Tasks on their memory: who must wait for whom, and where in the arena everything lies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nrt.lowering import Buffer, Place, Task
from nrt.memory import Arena, Lifetime, plan_arena
from nrt.plan import BufferRef, LiveBlock, Peak
from nrt.plan_order import Access
from nrt.schedule import Schedule, needs
from nrt.strides import row_pitch

__all__ = ["Layout", "dependencies", "place_in", "plan_layout"]


@dataclass(frozen=True)
class Layout:
    """The arena of a plan.

    Attributes:
        arena: where its blocks lie.
        offsets: per buffer, in bytes.
        scratch: per task with a workspace, in bytes.
        peak: what is alive where the arena is fullest.
    """

    arena: Arena
    offsets: dict[Buffer, int]
    scratch: dict[int, int]
    peak: Peak


def place_in(place: Place, *, base: int = 0, index: int = 0, extra: int = 0) -> BufferRef:
    """What a place covers, from ``extra`` bytes behind its first element on.

    Args:
        place: in any space.
        base: of the buffer, in its space.
        index: which of the buffers that are told apart.
        extra: bytes.
    """
    width, pitch = row_pitch(place.spec)
    if extra and (not pitch or extra % pitch):
        width = pitch = 0
    nbytes = max(place.spec.nbytes - extra, 0)
    offset = base + place.offset + extra
    return BufferRef(place.buffer.space, offset, nbytes, index, width, pitch)


def dependencies(tasks: Sequence[Task]) -> list[tuple[int, ...]]:
    """Per task, the earlier ones that must have ended when it starts.

    Buffers are told apart: that two of them will share memory orders nothing here.
    """
    numbers: dict[Buffer, int] = {}
    touched: list[list[Access]] = []
    for task in tasks:
        found = []
        for places, write in ((task.inputs, False), (task.outputs, True)):
            for place in places:
                if place.buffer.space in ("arena", "output"):
                    index = numbers.setdefault(place.buffer, len(numbers))
                    found.append(Access(place_in(place, index=index), write))
        touched.append(found)
    return needs(touched)


def plan_layout(tasks: Sequence[Task], workspaces: Sequence[int], schedule: Schedule) -> Layout:
    """Lay out the arena.

    Args:
        tasks: in the order that computes the right thing.
        workspaces: per task, bytes.
        schedule: which of them are ordered.
    """
    users: dict[Buffer, list[int]] = {}
    for index, task in enumerate(tasks):
        for place in (*task.inputs, *task.outputs):
            if place.buffer.space == "arena":
                users.setdefault(place.buffer, []).append(index)
    scratch = [index for index, nbytes in enumerate(workspaces) if nbytes]
    blocks = [(b.nbytes, b.label, users[b]) for b in users]
    blocks += [(workspaces[i], f"workspace of {tasks[i].name}", [i]) for i in scratch]
    arena = plan_arena([_lifetime(n, by, schedule) for n, _, by in blocks])
    offsets = list(arena.offsets)
    alive = [blocks[i] for i in arena.peak]
    begun = (min(by, key=schedule.start.__getitem__) for _, _, by in alive)
    return Layout(
        arena=arena,
        offsets=dict(zip(users, offsets, strict=False)),
        scratch=dict(zip(scratch, offsets[len(users) :], strict=True)),
        peak=Peak(
            arena.lower_bound,
            max(begun, key=lambda task: (schedule.start[task], task), default=0),
            tuple(
                LiveBlock(name, nbytes)
                for nbytes, name, _ in sorted(alive, key=lambda b: (-b[0], b[1]))
            ),
        ),
    )


def _lifetime(nbytes: int, users: Sequence[int], schedule: Schedule) -> Lifetime:
    last = [0] * schedule.streams
    for task in users:
        stream = schedule.stream[task]
        last[stream] = max(last[stream], schedule.position[task] + 1)
    first = tuple(map(min, zip(*(schedule.before[task] for task in users), strict=True)))
    return Lifetime(nbytes, first, tuple(last))
