"""Schedules: dependencies kept, clocks exact, gain where the GPU has room and none where not."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nrt.memory import Lifetime, plan_arena
from nrt.plan import BufferRef
from nrt.plan_order import Access
from nrt.schedule import Schedule, Work, list_schedule, needs, serial_schedule

US = 1e-6


@st.composite
def networks(draw: st.DrawFn) -> list[Work]:
    """Up to 14 tasks with up to three needs each."""
    tasks = []
    for index in range(draw(st.integers(0, 14))):
        earlier = st.sets(st.integers(0, index - 1), max_size=3) if index else st.just(set())
        tasks.append(
            Work(
                draw(st.integers(1, 20)) * US,
                draw(st.sampled_from([0.1, 0.3, 0.5, 0.9, 1.0])),
                tuple(sorted(draw(earlier))),
            )
        )
    return tasks


def reach(tasks: list[Work], schedule: Schedule) -> list[set[int]]:
    """Per task, those that are over when it starts: by streams and waits alone."""
    found: list[set[int]] = [set() for _ in tasks]
    order = sorted(range(len(tasks)), key=lambda t: (schedule.start[t], schedule.position[t]))
    for task in order:
        own = {
            t for t in range(len(tasks))
            if schedule.stream[t] == schedule.stream[task]
            and schedule.position[t] < schedule.position[task]
        }  # fmt: skip
        found[task] = own.union(schedule.waits[task])
    changed = True
    while changed:
        changed = False
        for task, before in enumerate(found):
            wider = before.union(*(found[b] for b in before))
            changed |= wider != before
            found[task] = wider
    return found


@settings(max_examples=200, deadline=None)
@given(networks(), st.integers(1, 4))
def test_a_schedule_keeps_dependencies_and_its_clocks_are_right(
    tasks: list[Work], streams: int
) -> None:
    schedule = list_schedule(tasks, streams)
    assert schedule.streams <= streams
    before = reach(tasks, schedule)
    for index, task in enumerate(tasks):
        assert set(task.needs) <= before[index]
        assert index not in before[index]
        for need in task.needs:
            assert schedule.start[need] + tasks[need].seconds <= schedule.start[index] + 1e-12
        # The clock counts exactly what comes before.
        for stream in range(schedule.streams):
            assert schedule.before[index][stream] == sum(
                1 for b in before[index] if schedule.stream[b] == stream
            )


@settings(max_examples=200, deadline=None)
@given(networks(), st.integers(2, 4))
def test_the_makespan_lies_between_the_critical_path_and_the_serial_time(
    tasks: list[Work], streams: int
) -> None:
    schedule = list_schedule(tasks, streams)
    assert schedule.critical_path <= schedule.makespan + 1e-12
    assert schedule.makespan <= schedule.serial + streams * len(tasks) * 1.2e-6
    free = list_schedule(tasks, streams, crossing=0.0)
    assert free.critical_path <= free.makespan + 1e-12 <= free.serial + 2e-12
    # At no moment is more of the GPU taken than there is.
    for moment in free.start:
        running = [
            t for t, s in zip(tasks, free.start, strict=True)
            if s <= moment < s + t.seconds
        ]  # fmt: skip
        assert sum(t.share for t in running) <= 1 + 1e-6
        assert len(running) <= streams


@settings(max_examples=150, deadline=None)
@given(networks(), st.integers(2, 4))
def test_no_wait_is_one_too_many(tasks: list[Work], streams: int) -> None:
    schedule = list_schedule(tasks, streams)
    for task, sources in enumerate(schedule.waits):
        for source in sources:
            less = tuple(
                tuple(s for s in w if (t, s) != (task, source))
                for t, w in enumerate(schedule.waits)
            )
            before = reach(tasks, Schedule(**{**vars(schedule), "waits": less}))
            assert source not in before[task]


@settings(max_examples=100, deadline=None)
@given(networks(), st.integers(2, 4), st.integers(0, 2**31))
def test_no_interleaving_finds_two_owners_of_a_byte(
    tasks: list[Work], streams: int, seed: int
) -> None:
    """Every task writes a block and reads those of its needs; any order that streams allow."""
    schedule = list_schedule(tasks, streams)
    rng = random.Random(seed)
    lives = []
    for index in range(len(tasks)):
        users = [index, *(t for t, task in enumerate(tasks) if index in task.needs)]
        last = [0] * schedule.streams
        for user in users:
            last[schedule.stream[user]] = max(
                last[schedule.stream[user]], schedule.position[user] + 1
            )
        first = tuple(map(min, zip(*(schedule.before[u] for u in users), strict=True)))
        lives.append(Lifetime(rng.randrange(1, 2000), first, tuple(last)))
    arena = plan_arena(lives, 16)
    assert arena.nbytes >= arena.lower_bound
    before = reach(tasks, schedule)
    for _ in range(5):
        owner: dict[int, int] = {}
        running: set[int] = set()
        done: set[int] = set()
        while len(done) < len(tasks):
            able = [t for t in range(len(tasks)) if t not in done | running and before[t] <= done]
            if able and (not running or rng.random() < 0.7):
                task = rng.choice(able)
                running.add(task)
                for need in tasks[task].needs:
                    place = range(arena.offsets[need], arena.offsets[need] + lives[need].nbytes, 16)
                    assert all(owner[byte] == need for byte in place)
                for byte in range(
                    arena.offsets[task], arena.offsets[task] + lives[task].nbytes, 16
                ):
                    owner[byte] = task
                # Who is running still reads what it needs.
                for other in running - {task}:
                    for need in tasks[other].needs:
                        assert owner[arena.offsets[need]] == need
            else:
                task = rng.choice(sorted(running))
                running.remove(task)
                done.add(task)


# -- what is worth it ------------------------------------------------------------------------------


def test_two_branches_of_half_the_gpu_each_run_at_once() -> None:
    tasks = [Work(5 * US), *(Work(20 * US, 0.5, (0,)) for _ in range(2)), Work(5 * US, 1, (1, 2))]
    schedule = list_schedule(tasks, 4)
    assert schedule.stream == (0, 0, 1, 1)
    assert schedule.waits == ((), (), (0,), (1,))
    assert schedule.before == ((0, 0), (1, 0), (1, 0), (2, 1))
    # The second branch starts one crossing later; meanwhile the end of the first gets across.
    assert schedule.makespan == pytest.approx((5 + 1.2 + 20 + 5) * US)
    assert schedule.serial == pytest.approx(50 * US)
    assert schedule.critical_path == pytest.approx(30 * US)
    assert schedule.gain == pytest.approx(1 - 31.2 / 50)


@pytest.mark.parametrize(
    "tasks",
    [
        # Kernels that fill the GPU.
        [Work(5 * US), *(Work(20 * US, 1.0, (0,)) for _ in range(3)), Work(US, 1.0, (1, 2, 3))],
        # Too much for both.
        [Work(5 * US), *(Work(20 * US, 0.6, (0,)) for _ in range(3)), Work(US, 1.0, (1, 2, 3))],
        # A chain.
        [Work(3 * US, 0.1, (i - 1,) if i else ()) for i in range(8)],
        # Shorter than what it costs to cross.
        [Work(US, 0.1), Work(US, 0.1, (0,)), Work(US, 0.1, (0,)), Work(US, 0.1, (1, 2))],
        [],
    ],
)
def test_where_nothing_is_gained_there_is_one_stream(tasks: list[Work]) -> None:
    schedule = list_schedule(tasks, 4)
    assert schedule.streams == 1
    assert schedule.gain == pytest.approx(0.0)
    assert all(wait == () for wait in schedule.waits)


def test_the_longest_path_goes_first() -> None:
    """Of three equal branches that fit two at a time, the one with a tail starts at once."""
    branch = [Work(10 * US, 0.5, (0,)) for _ in range(3)]
    tasks = [Work(US), *branch, Work(30 * US, 0.5, (3,)), Work(US, 1.0, (1, 2, 4))]
    schedule = list_schedule(tasks, 3)
    assert schedule.start[3] == pytest.approx(US)
    assert schedule.makespan < 46 * US


def test_streams_are_as_many_as_asked_for_at_most() -> None:
    tasks = [Work(US), *(Work(20 * US, 0.1, (0,)) for _ in range(8))]
    for streams, rounds in ((1, 8), (2, 4), (4, 2), (8, 1)):
        schedule = list_schedule(tasks, streams)
        assert schedule.streams == streams
        assert schedule.makespan == pytest.approx((1 + 20 * rounds) * US, rel=0.1)


def test_one_stream_keeps_the_order() -> None:
    tasks = [Work(2 * US), Work(3 * US), Work(US, 1, (0,))]
    assert list_schedule(tasks, 1) == serial_schedule(tasks)
    schedule = serial_schedule(tasks)
    assert schedule.position == (0, 1, 2)
    assert schedule.before == ((0,), (1,), (2,))
    assert schedule.start == pytest.approx((0.0, 2 * US, 5 * US))
    assert (schedule.streams, schedule.gain) == (1, 0.0)


def test_the_same_in_every_run() -> None:
    rng = random.Random(1)
    tasks = [
        Work(
            rng.choice([1, 2, 5]) * US,
            0.25,
            tuple({rng.randrange(i) for _ in range(2)}) if i else (),
        )
        for i in range(60)
    ]
    assert list_schedule(tasks, 4) == list_schedule(tasks, 4)


# -- needs -----------------------------------------------------------------------------------------


def at(offset: int, nbytes: int, buffer: int = 0, write: bool = False, **rows: int) -> Access:
    return Access(BufferRef("arena", offset, nbytes, buffer, **rows), write)


def test_needs_are_what_was_written_and_what_must_be_read_first() -> None:
    touched = [
        [at(0, 64, write=True)],
        [at(0, 32), at(0, 8, 1, write=True)],
        [at(32, 32), at(0, 8, 2, write=True)],
        [at(0, 8, 1), at(0, 32, write=True)],  # writes what 1 has read
        [at(0, 8, 2), at(0, 8, 3)],
    ]
    assert needs(touched) == [(), (0,), (0,), (0, 1), (2,)]


def test_slices_of_one_buffer_are_written_at_once() -> None:
    """Three branches into one Concat of 10 channels, and its reader."""
    parts = [(0, 3), (3, 5), (8, 2)]
    touched = [[at(s, 70 + n, write=True, width=n, pitch=10)] for s, n in parts]
    assert needs([*touched, [at(0, 80)]]) == [(), (), (), (0, 1, 2)]
    assert needs([touched[0], [at(2, 75, write=True, width=5, pitch=10)]]) == [(), (0,)]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.lists(
            st.builds(
                lambda o, n, w: at(o, n, write=w),
                st.integers(0, 20),
                st.integers(1, 9),
                st.booleans(),
            ),
            max_size=3,
        ),
        max_size=8,
    )
)
def test_needs_are_all_pairs_that_conflict(touched: list[list[Access]]) -> None:
    found = needs(touched)
    for a, b in itertools.combinations(range(len(touched)), 2):
        conflict = any(
            (x.write or y.write)
            and x.ref.offset < y.ref.offset + y.ref.nbytes
            and y.ref.offset < x.ref.offset + x.ref.nbytes
            for x in touched[a]
            for y in touched[b]
        )
        assert (a in found[b]) == conflict
