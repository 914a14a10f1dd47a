"""Schedules as steps: waits that suffice, none too many, and results in any order of execution."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from runtime.plans import CUBIN, layer
from runtime.simulated import SimulatedDevice, view
from test_schedule import US, networks

from nrt.fork_join import issue_order, with_forks
from nrt.memory import Lifetime, plan_arena
from nrt.plan import (
    BufferRef,
    ForkStep,
    IoSpec,
    JoinStep,
    KernelRef,
    LaunchStep,
    Plan,
    ScalarArg,
    SetStep,
    Step,
    StepArg,
    Target,
)
from nrt.plan_check import check_plan
from nrt.runtime import Engine
from nrt.schedule import Schedule, Work, list_schedule

N = 5
BYTES = 4 * N


def marks(schedule: Schedule) -> list[list[Step]]:
    """A step per task, told apart by its value."""
    return [
        [SetStep(BufferRef("arena"), value, stream=stream)]
        for value, stream in enumerate(schedule.stream)
    ]


def clocks(steps: tuple[Step, ...], streams: int) -> dict[int, tuple[int, ...]]:
    """Per task, how many of every stream are over, by the steps."""
    now = [[0] * streams for _ in range(streams)]
    found = {}
    for step in steps:
        if isinstance(step, ForkStep):
            for target in step.targets:
                now[target] = list(map(max, now[target], now[step.stream]))
        elif isinstance(step, JoinStep):
            for source in step.sources:
                now[step.stream] = list(map(max, now[step.stream], now[source]))
        else:
            assert isinstance(step, SetStep)
            found[step.value] = tuple(now[step.stream])
            now[step.stream][step.stream] += 1
    # Everything is over for stream 0 at the end.
    counts = [
        sum(1 for s in steps if isinstance(s, SetStep) and s.stream == k) for k in range(streams)
    ]
    assert now[0] == counts
    return found


@settings(max_examples=200, deadline=None)
@given(networks(), st.integers(1, 4))
def test_steps_wait_for_what_the_schedule_says(tasks: list[Work], streams: int) -> None:
    schedule = list_schedule(tasks, streams)
    order = issue_order(schedule)
    assert sorted(order) == list(range(len(tasks)))
    steps = with_forks(schedule, marks(schedule))
    assert [s.value for s in steps if isinstance(s, SetStep)] == order
    found = clocks(steps, schedule.streams)
    for task, clock in found.items():
        assert all(a >= b for a, b in zip(clock, schedule.before[task], strict=True))


def test_branches_wait_for_nothing_else() -> None:
    """Ten modules of four branches of two, as in Inception: no step waits for one too many."""
    tasks: list[Work] = [Work(3 * US)]
    for module in range(10):
        root, ends = len(tasks) - 1, []
        for branch in range(4):
            tasks.append(Work((2 + (branch + module) % 3) * US, 0.25, (root,)))
            tasks.append(Work((3 + branch) * US, 0.25, (len(tasks) - 1,)))
            ends.append(len(tasks) - 1)
        tasks.append(Work(US, 0.5, tuple(ends)))
    schedule = list_schedule(tasks, 4)
    assert schedule.streams == 4
    steps = with_forks(schedule, marks(schedule))
    assert clocks(steps, 4) == dict(enumerate(schedule.before))
    # One fork and one join a module, or two where a branch goes on on another stream.
    assert 20 <= len(steps) - len(tasks) <= 40


def test_forks_and_joins_of_two_branches() -> None:
    tasks = [Work(5 * US), *(Work(20 * US, 0.3, (0,)) for _ in range(3)), Work(US, 1, (1, 2, 3))]
    schedule = list_schedule(tasks, 3)
    assert schedule.stream == (0, 0, 1, 2, 0)
    kinds = [
        step.value if isinstance(step, SetStep) else step
        for step in with_forks(schedule, marks(schedule))
    ]
    assert kinds == [0, ForkStep(0, (1, 2)), 1, 2, 3, JoinStep(0, (1, 2)), 4]


def test_a_branch_that_needs_nothing_is_forked_at_the_start() -> None:
    tasks = [Work(9 * US, 0.5), Work(8 * US, 0.5), Work(US, 1, (0, 1))]
    schedule = list_schedule(tasks, 2)
    steps = with_forks(schedule, marks(schedule))
    assert steps[0] == ForkStep(0, (1,))
    assert schedule.stream[:2] == (0, 1)


def test_one_stream_has_no_forks() -> None:
    schedule = list_schedule([Work(US), Work(US, 1, (0,))], 4)
    assert with_forks(schedule, marks(schedule)) == tuple(s for g in marks(schedule) for s in g)


# -- on a device that runs what it may in any order ------------------------------------------------


def sum_plan(tasks: list[Work], schedule: Schedule) -> Plan:
    """Task i adds i + 1 to the sum of what it needs, and to x if it needs nothing; y adds all."""
    last = len(tasks)
    needs = [*(t.needs for t in tasks), tuple(range(last))]
    lives = []
    for index in range(last):
        users = [index, *(t for t, n in enumerate(needs[:-1]) if index in n)]
        ends = [
            max((schedule.position[u] + 1 for u in users if schedule.stream[u] == s), default=0)
            for s in range(schedule.streams)
        ]
        first = tuple(map(min, zip(*(schedule.before[u] for u in users), strict=True)))
        # What nobody reads stays for the output; the others make room.
        kept = not any(index in n for n in needs[:-1])
        most = tuple(schedule.stream.count(s) + 1 for s in range(schedule.streams))
        lives.append(Lifetime(BYTES, first, most if kept else tuple(ends)))
    arena = plan_arena(lives, 32)
    refs = [BufferRef("arena", offset, BYTES) for offset in arena.offsets]
    x, y = BufferRef("input", 0, BYTES), BufferRef("output", 0, BYTES)

    def launch(sources: list[BufferRef], target: BufferRef, add: int, stream: int) -> LaunchStep:
        args: tuple[StepArg, ...] = (
            *sources,
            target,
            ScalarArg(add, "u32"),
            ScalarArg(len(sources), "u32"),
        )
        read_only = tuple(range(len(sources)))
        return LaunchStep(0, (1, 1, 1), (32, 1, 1), args, stream=stream, read_only=read_only)

    groups: list[list[Step]] = [
        [launch([refs[n] for n in needs[i]] or [x], refs[i], i + 1, schedule.stream[i])]
        for i in range(last)
    ]
    ends_ = [refs[i] for i in range(last) if not any(i in n for n in needs[:-1])]
    spec = IoSpec("x", (N,), "fp32")
    return Plan(
        name="sums",
        target=Target("cuda", "sm_90a"),
        inputs=(spec,),
        outputs=(IoSpec("y", (N,), "fp32"),),
        arena_bytes=arena.nbytes,
        weights=b"",
        cubins=(CUBIN,),
        kernels=(KernelRef(0, "sum"),),
        steps=(*with_forks(schedule, groups), launch(ends_ or [x], y, 0, 0)),
        layers=(layer(),),
        streams=schedule.streams,
    )


def sums(*values: Any) -> None:
    *pointers, add, count = values
    *sources, target = pointers
    assert len(sources) == count
    total = np.sum([view(p, N) for p in sources], axis=0, dtype=np.float32)
    view(target, N)[:] = total + np.float32(add)


@settings(max_examples=60, deadline=None)
@given(networks(), st.integers(2, 4), st.integers(0, 2**31))
def test_any_order_gives_the_same_result(tasks: list[Work], streams: int, seed: int) -> None:
    plan = sum_plan(tasks, list_schedule(tasks, streams))
    check_plan(plan)
    engine = Engine(plan, device=SimulatedDevice({"sum": sums}, seed))
    x = np.random.default_rng().integers(0, 9, N).astype(np.float32)
    found: list[Any] = []
    for index, task in enumerate(tasks):
        found.append(sum((found[n] for n in task.needs), np.float32(0)) if task.needs else x)
        found[-1] = found[-1] + index + 1
    ends = [i for i in range(len(tasks)) if not any(i in t.needs for t in tasks)]
    wanted = sum((found[i] for i in ends), np.float32(0)) if ends else x
    for _ in range(3):
        np.testing.assert_array_equal(engine(x), wanted)
