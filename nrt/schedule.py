"""Which layers run side by side: list scheduling of tasks on the streams of one GPU.

Tasks take their turn by the longest path from them to the end, measured in seconds (the upward rank
of HEFT: Topcuoglu, Hariri and Wu, *Performance-Effective and Low-Complexity Task Scheduling for
Heterogeneous Computing*, 2002), and each goes where it can start first. The streams are no
processors of their own but share one GPU: a task takes the share of it that its blocks cover, and
only tasks whose shares add up to no more than the whole run at once. A kernel that fills the GPU
therefore runs alone, and a network of such kernels gains nothing.

A schedule is a partial order. `Schedule.before` holds it as vector clocks: per task, how many tasks
of every stream are over when it begins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nrt.plan import BufferRef
from nrt.plan_order import Access, overlap

__all__ = [
    "CROSSING",
    "LEAST_GAIN",
    "Schedule",
    "Work",
    "list_schedule",
    "needs",
    "serial_schedule",
]

CROSSING = 1.2e-6
"""Seconds that a task waits for one on another stream beyond that one's end. An edge of a graph
between dependent minimal kernels costs 1.02 us on an H200; one that joins two streams is such an
edge without the overlap of programmatic dependent launch, and its kernel has more than one to wait
for."""

LEAST_GAIN = 0.02
"""Part of the serial time that streams must promise; less is within the noise of a measurement."""

_ROUNDING = 1e-9


@dataclass(frozen=True)
class Work:
    """A task as the schedule sees it.

    Attributes:
        seconds: how long it takes alone.
        share: part of the GPU that it takes, above 0, at most 1.
        needs: indices of earlier tasks that must have ended before it starts.
    """

    seconds: float
    share: float = 1.0
    needs: tuple[int, ...] = ()


@dataclass(frozen=True)
class Schedule:
    """Tasks on streams.

    Attributes:
        stream: per task.
        position: per task, how many tasks come before it on its stream.
        start: per task, when it is expected to start, in seconds.
        waits: per task, the tasks on other streams that it must wait for; what these or its own
            stream have waited for is left out.
        before: per task, how many tasks of every stream are over when it starts.
        makespan: expected seconds of all.
        serial: expected seconds one after another.
        critical_path: expected seconds of the longest chain: no schedule is shorter.
    """

    stream: tuple[int, ...]
    position: tuple[int, ...]
    start: tuple[float, ...]
    waits: tuple[tuple[int, ...], ...]
    before: tuple[tuple[int, ...], ...]
    makespan: float
    serial: float
    critical_path: float

    @property
    def streams(self) -> int:
        """How many are used; 1 for no tasks."""
        return max(self.stream, default=0) + 1

    @property
    def gain(self) -> float:
        """Part of the serial time that it is expected to save."""
        return 1 - self.makespan / self.serial if self.serial > 0 else 0.0


def needs(touched: Sequence[Sequence[Access]]) -> list[tuple[int, ...]]:
    """Per task, the earlier tasks whose memory it reads or writes, unless both only read.

    Args:
        touched: what each task touches; tasks in an order that computes the right thing.
    """
    found: list[tuple[int, ...]] = []
    history: dict[tuple[str, int], list[tuple[int, BufferRef, bool]]] = {}
    for task, accesses in enumerate(touched):
        earlier: set[int] = set()
        for access in accesses:
            past = history.setdefault((access.ref.space, access.ref.index), [])
            earlier.update(
                other
                for other, ref, write in past
                if (write or access.write) and other != task and overlap(ref, access.ref)
            )
            past.append((task, access.ref, access.write))
        found.append(tuple(sorted(earlier)))
    return found


def serial_schedule(tasks: Sequence[Work]) -> Schedule:
    """All tasks on one stream, in their order."""
    starts = [0.0]
    for task in tasks:
        starts.append(starts[-1] + task.seconds)
    count = range(len(tasks))
    total = starts.pop()
    return Schedule(
        stream=(0,) * len(count),
        position=tuple(count),
        start=tuple(starts),
        waits=((),) * len(count),
        before=tuple((i,) for i in count),
        makespan=total,
        serial=total,
        critical_path=max(_ranks(tasks), default=0.0),
    )


def list_schedule(tasks: Sequence[Work], streams: int, *, crossing: float = CROSSING) -> Schedule:
    """Tasks on at most ``streams`` streams; in their order where one is enough.

    Args:
        tasks: needs point to earlier ones.
        streams: at least 1.
        crossing: seconds that waiting for another stream costs.
    """
    rank = _ranks(tasks)
    turn = sorted(range(len(tasks)), key=lambda i: (-rank[i], i))
    placed = _place(tasks, turn, streams, crossing)
    if all(stream == 0 for stream, _ in placed):
        return serial_schedule(tasks)
    position = [0] * len(tasks)
    counts = [0] * streams
    for task in turn:
        position[task] = counts[placed[task][0]]
        counts[placed[task][0]] += 1
    used = sum(1 for count in counts if count) or 1
    stream = tuple(s for s, _ in placed)
    waits, before = _order(tasks, turn, stream, position, used)
    return Schedule(
        stream=stream,
        position=tuple(position),
        start=tuple(start for _, start in placed),
        waits=tuple(waits),
        before=tuple(before),
        makespan=max((s + t.seconds for (_, s), t in zip(placed, tasks, strict=True)), default=0.0),
        serial=sum(task.seconds for task in tasks),
        critical_path=max(rank, default=0.0),
    )


def _ranks(tasks: Sequence[Work]) -> list[float]:
    """Seconds of the longest path from a task's start to the end."""
    rank = [task.seconds for task in tasks]
    for index in range(len(tasks) - 1, -1, -1):
        for need in tasks[index].needs:
            rank[need] = max(rank[need], tasks[need].seconds + rank[index])
    return rank


def _place(
    tasks: Sequence[Work], turn: Sequence[int], streams: int, crossing: float
) -> list[tuple[int, float]]:
    """Stream and start of every task, in the order of their turns."""
    placed = [(0, 0.0)] * len(tasks)
    free: list[float] = []
    running: list[tuple[float, float, float]] = []  # start, end, share
    for task in turn:
        work = tasks[task]
        best: tuple[float, int, int] | None = None
        for stream in range(min(len(free) + 1, streams)):
            others = [n for n in work.needs if placed[n][0] != stream]
            # A stream begins with a fork.
            ready = free[stream] if stream < len(free) else (crossing if stream else 0.0)
            for need in work.needs:
                end = placed[need][1] + tasks[need].seconds
                ready = max(ready, end + (crossing if placed[need][0] != stream else 0.0))
            start = _room(running, ready, work)
            choice = (start, len(others), stream)
            if (
                best is None
                or choice[0] < best[0] - _ROUNDING * crossing
                or (abs(choice[0] - best[0]) <= _ROUNDING * crossing and choice[1:] < best[1:])
            ):
                best = choice
        assert best is not None
        start, _, stream = best
        placed[task] = (stream, start)
        end = start + work.seconds
        if stream == len(free):
            free.append(end)
        free[stream] = end
        running.append((start, end, work.share))
    return placed


def _room(running: Sequence[tuple[float, float, float]], ready: float, work: Work) -> float:
    """The first moment from ``ready`` on at which the GPU has room for ``work`` to its end."""
    later = [r for r in running if r[1] > ready]
    for start in sorted({ready, *(end for _, end, _ in later)}):
        stop = start + work.seconds
        beside = [r for r in later if r[0] < stop and r[1] > start]
        # Use only grows where something starts.
        moments = [start, *(r[0] for r in beside if r[0] > start)]
        most = max(sum(r[2] for r in beside if r[0] <= m < r[1]) for m in moments)
        if most + work.share <= 1 + _ROUNDING:
            return start
    raise AssertionError("after everything has ended there is room")


def _order(
    tasks: Sequence[Work],
    turn: Sequence[int],
    stream: Sequence[int],
    position: Sequence[int],
    streams: int,
) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """Per task, what it waits for on other streams, and its clock."""
    waits: list[tuple[int, ...]] = [()] * len(tasks)
    before: list[tuple[int, ...]] = [()] * len(tasks)
    after: list[tuple[int, ...]] = [()] * len(tasks)
    clock = [(0,) * streams for _ in range(streams)]
    for task in turn:
        own = stream[task]
        wanted = [n for n in tasks[task].needs if position[n] >= clock[own][stream[n]]]
        # What another of them has waited for needs no edge.
        kept = [
            n
            for n in wanted
            if not any(m != n and position[n] < after[m][stream[n]] for m in wanted)
        ]
        now = tuple(max(ticks) for ticks in zip(clock[own], *(after[n] for n in kept), strict=True))
        waits[task], before[task] = tuple(sorted(kept)), now
        after[task] = tuple(c + (s == own) for s, c in enumerate(now))
        clock[own] = after[task]
    return waits, before
