"""Tasks on their memory: who must wait for whom, and where in the arena everything lies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from nrt.lowering import Buffer, Place, Task
from nrt.memory import Arena, Lifetime, plan_arena
from nrt.plan import BufferRef, LiveBlock, Peak
from nrt.plan_order import Access
from nrt.schedule import Schedule, needs
from nrt.strides import row_pitch

__all__ = ["Layout", "dependencies", "live_bytes", "place_in", "plan_layout"]

ALIGNMENT = 256
"""Bytes: what cudaMalloc promises, and so of every block."""


@dataclass(frozen=True)
class Layout:
    """The arena of a plan.

    Attributes:
        arena: where its blocks lie.
        offsets: per buffer, in bytes.
        scratch: per task with a workspace, in bytes.
        overwrites: the tasks that write over one of their inputs.
        peak: what is alive where the arena is fullest.
    """

    arena: Arena
    offsets: dict[Buffer, int]
    scratch: dict[int, int]
    overwrites: frozenset[int]
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


def live_bytes(tasks: Sequence[Task]) -> list[int]:
    """Per task, the bytes of all buffers that are in use while it runs, one task after another."""
    spans: dict[Buffer, tuple[int, int]] = {}
    for index, task in enumerate(tasks):
        for place in (*task.inputs, *task.outputs):
            if place.buffer.space == "arena":
                spans[place.buffer] = (spans.get(place.buffer, (index, index))[0], index)
    changes = [0] * (len(tasks) + 1)
    for buffer, (first, last) in spans.items():
        size = -(-buffer.nbytes // ALIGNMENT) * ALIGNMENT
        changes[first] += size
        changes[last + 1] -= size
    return list(accumulate(changes))[:-1]


def plan_layout(
    tasks: Sequence[Task],
    workspaces: Sequence[int],
    schedule: Schedule,
    in_place: Sequence[Sequence[int]] = (),
) -> Layout:
    """Lay out the arena.

    Args:
        tasks: in the order that computes the right thing.
        workspaces: per task, bytes.
        schedule: which of them are ordered.
        in_place: per task, the inputs over which its kernel may write its outputs, element by
            element; none by default.
    """
    users: dict[Buffer, list[int]] = {}
    for index, task in enumerate(tasks):
        for place in (*task.inputs, *task.outputs):
            if place.buffer.space == "arena":
                users.setdefault(place.buffer, []).append(index)
    over = _overwritten(tasks, users, schedule, in_place)
    owner = {buffer: _owner(buffer, over) for buffer in users}
    shared: dict[Buffer, list[int]] = {}
    for buffer, by in users.items():
        shared.setdefault(owner[buffer], []).extend(by)
    scratch = [index for index, nbytes in enumerate(workspaces) if nbytes]
    blocks = [(b.nbytes, b.label, by) for b, by in shared.items()]
    blocks += [(workspaces[i], f"workspace of {tasks[i].name}", [i]) for i in scratch]
    arena = plan_arena([_lifetime(n, by, schedule) for n, _, by in blocks], ALIGNMENT)
    offsets = dict(zip(shared, arena.offsets, strict=False))
    alive = [blocks[i] for i in arena.peak]
    begun = (min(by, key=schedule.start.__getitem__) for _, _, by in alive)
    return Layout(
        arena=arena,
        offsets={buffer: offsets[owner[buffer]] for buffer in users},
        scratch=dict(zip(scratch, arena.offsets[len(shared) :], strict=True)),
        overwrites=frozenset(task for task, _ in over.values()),
        peak=Peak(
            arena.lower_bound,
            max(begun, key=lambda task: (schedule.start[task], task), default=0),
            tuple(
                LiveBlock(name, nbytes)
                for nbytes, name, _ in sorted(alive, key=lambda b: (-b[0], b[1]))
            ),
        ),
    )


def _owner(buffer: Buffer, over: Mapping[Buffer, tuple[int, Buffer]]) -> Buffer:
    while buffer in over:
        buffer = over[buffer][1]
    return buffer


def _overwritten(
    tasks: Sequence[Task],
    users: Mapping[Buffer, Sequence[int]],
    schedule: Schedule,
    in_place: Sequence[Sequence[int]],
) -> dict[Buffer, tuple[int, Buffer]]:
    """Per buffer that may lie over another one: the task that writes it, and that other one.

    Both lie in the arena as a whole, element on element. The task begins the one and ends the
    other: whatever else reads the input is over when it starts, and whatever else touches the
    output starts when it is over.
    """
    found: dict[Buffer, tuple[int, Buffer]] = {}
    taken: set[Buffer] = set()
    for task, slots in enumerate(in_place):
        for out in tasks[task].outputs if slots else ():
            if out.buffer.space != "arena" or not _begins(task, users[out.buffer], schedule):
                continue
            for slot in slots:
                place = tasks[task].inputs[slot]
                if (
                    out.buffer not in found
                    and place.buffer.space == "arena"
                    and place.buffer is not out.buffer
                    and place.buffer not in taken
                    and place.buffer.nbytes == out.buffer.nbytes
                    and all(
                        s in slots and (p.offset, p.spec) == (out.offset, out.spec)
                        for s, p in enumerate(tasks[task].inputs)
                        if p.buffer is place.buffer
                    )
                    and _ends(task, users[place.buffer], schedule)
                ):
                    found[out.buffer] = (task, place.buffer)
                    taken.add(place.buffer)
                    break
    return found


def _begins(task: int, users: Sequence[int], schedule: Schedule) -> bool:
    """Whether all others of ``users`` start after the end of ``task``."""
    stream, count = schedule.stream[task], schedule.position[task] + 1
    return all(u == task or schedule.before[u][stream] >= count for u in users)


def _ends(task: int, users: Sequence[int], schedule: Schedule) -> bool:
    """Whether all others of ``users`` have ended when ``task`` starts."""
    before = schedule.before[task]
    return all(u == task or before[schedule.stream[u]] > schedule.position[u] for u in users)


def _lifetime(nbytes: int, users: Sequence[int], schedule: Schedule) -> Lifetime:
    last = [0] * schedule.streams
    for task in users:
        stream = schedule.stream[task]
        last[stream] = max(last[stream], schedule.position[task] + 1)
    first = tuple(map(min, zip(*(schedule.before[task] for task in users), strict=True)))
    return Lifetime(nbytes, first, tuple(last))
