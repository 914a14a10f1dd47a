"""Races between streams: what overlaps, what is ordered, and what is refused."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from runtime.plans import tensor

from nrt import plan_order
from nrt.errors import PlanError
from nrt.plan import (
    BufferRef,
    CopyStep,
    ForkStep,
    HostStep,
    JoinStep,
    LaunchStep,
    ScalarArg,
    SetStep,
    Step,
    TensorMapArg,
)
from nrt.plan_order import Access, accesses, find_race, overlap

ONE = (1, 1, 1)


def arena(offset: int, nbytes: int = 64, **rows: int) -> BufferRef:
    return BufferRef("arena", offset, nbytes, **rows)


def launch(stream: int, *args: Any, read_only: tuple[int, ...] = ()) -> LaunchStep:
    return LaunchStep(0, ONE, ONE, args, stream=stream, read_only=read_only)


def writer(stream: int, offset: int) -> LaunchStep:
    return launch(stream, arena(offset))


def reader(stream: int, offset: int) -> LaunchStep:
    return launch(stream, arena(offset), read_only=(0,))


# -- what steps touch ------------------------------------------------------------------------------


def touched(ref: BufferRef) -> set[int]:
    return {
        b
        for b in range(ref.offset, ref.offset + ref.nbytes)
        if ref.pitch == 0 or (b - ref.offset) % ref.pitch < ref.width
    }


rows = st.tuples(st.integers(1, 6), st.integers(1, 6)).map(lambda r: {"width": min(r), "pitch": 6})
refs = st.builds(
    lambda offset, nbytes, row: BufferRef("arena", offset, nbytes, **row),
    st.integers(0, 30),
    st.integers(1, 30),
    st.one_of(st.just({}), rows),
)


@settings(max_examples=500, deadline=None)
@given(refs, refs)
def test_overlap_misses_no_shared_byte(a: BufferRef, b: BufferRef) -> None:
    shared = bool(touched(a) & touched(b))
    assert overlap(a, b) == overlap(b, a)
    assert overlap(a, b) or not shared
    if a.pitch == b.pitch == 0:
        assert overlap(a, b) == shared


def test_slices_of_channels_side_by_side_do_not_overlap() -> None:
    """Eight pixels of 10 channels: 0 to 3, 3 to 10, 2 to 5."""
    a, b = arena(0, 73, width=3, pitch=10), arena(3, 77, width=7, pitch=10)
    assert not overlap(a, b)
    middle = arena(2, 73, width=3, pitch=10)
    assert overlap(a, middle)
    assert overlap(b, middle)
    assert overlap(a, arena(0, 80))
    assert not overlap(a, BufferRef("output", 0, 80))
    assert not overlap(BufferRef("output", 0, 80, 0), BufferRef("output", 0, 80, 1))


def test_accesses() -> None:
    ref, out = arena(0), BufferRef("output", 0, 8)
    tensor_map = TensorMapArg(arena(256), "fp16", (8, 4), (16,), (8, 4), (1, 1))
    args = (ref, ScalarArg(1, "u32"), tensor_map, out, BufferRef("weights", 0, 8))
    assert accesses(launch(0, *args, read_only=(0,))) == (
        Access(ref, False), Access(arena(256), True), Access(out, True),
    )  # fmt: skip
    assert accesses(CopyStep(ref, out)) == (Access(ref, False), Access(out, True))
    assert accesses(SetStep(ref)) == (Access(ref, True),)
    host = HostStep("v", [], (), (tensor("arena", (3, 5), (5, 1)),), (), arena(64))
    assert accesses(host) == (Access(arena(0, 60), False), Access(arena(64), True))
    assert accesses(ForkStep(0, (1,))) == accesses(JoinStep(0, (1,))) == ()


# -- what is ordered -------------------------------------------------------------------------------

FORK, JOIN = ForkStep(0, (1,)), JoinStep(0, (1,))


@pytest.mark.parametrize(
    ("steps", "race"),
    [
        ([writer(0, 0), FORK, reader(1, 0), JOIN], None),
        ([FORK, writer(0, 0), reader(1, 0), JOIN], (1, 2)),
        ([FORK, writer(1, 0), JOIN, reader(0, 0)], None),
        ([FORK, writer(1, 0), reader(0, 0), JOIN], (1, 2)),
        ([FORK, reader(1, 0), writer(0, 0), JOIN], (1, 2)),
        ([FORK, reader(1, 0), reader(0, 0), JOIN], None),
        ([FORK, writer(1, 0), writer(0, 63), JOIN], (1, 2)),
        ([FORK, writer(1, 0), writer(0, 64), JOIN], None),
        # Only what was there when it was joined.
        ([FORK, writer(1, 0), JOIN, writer(1, 64), reader(0, 0), reader(0, 64), JOIN], (3, 5)),
        # Through a third stream.
        (
            [ForkStep(0, (1, 2)), writer(1, 0), JoinStep(2, (1,)), JoinStep(0, (2,)), reader(0, 0)],
            None,
        ),
        ([FORK, CopyStep(arena(0), arena(64), stream=1), reader(0, 64), JOIN], (1, 2)),
        ([FORK, SetStep(arena(0), stream=1), reader(0, 0), JOIN], (1, 2)),
    ],
)
def test_races(steps: list[Step], race: tuple[int, int] | None) -> None:
    found = find_race(steps, 3)
    assert (found and found[:2]) == race


def test_a_race_says_what_is_shared() -> None:
    steps = [FORK, writer(0, 0), writer(1, 48)]
    assert find_race(steps, 2) == (1, 2, "bytes 48 to 64 of arena 0")


def test_too_many_pairs_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_order, "_PAIRS", 100)
    steps = [FORK, *(reader(i % 2, 0) for i in range(40)), JOIN]
    with pytest.raises(PlanError, match="more than 100 pairs of steps have no order; rebuild"):
        find_race(steps, 2)


@st.composite
def programs(draw: st.DrawFn) -> list[Step]:
    """Up to ten steps on three streams, on four blocks."""
    steps: list[Step] = [ForkStep(0, (1, 2))]
    for _ in range(draw(st.integers(1, 10))):
        kind = draw(st.sampled_from(["write", "read", "read", "order"]))
        stream = draw(st.integers(0, 2))
        if kind == "order":
            other = (stream + draw(st.integers(1, 2))) % 3
            joins = draw(st.booleans())
            steps.append(JoinStep(stream, (other,)) if joins else ForkStep(stream, (other,)))
        else:
            offset = 64 * draw(st.integers(0, 3))
            steps.append(writer(stream, offset) if kind == "write" else reader(stream, offset))
    return steps


@settings(max_examples=300, deadline=None)
@given(programs())
def test_a_race_is_two_steps_that_no_path_orders(steps: list[Step]) -> None:
    """Against reachability in the graph of all steps, forks and joins among them."""
    after: list[set[int]] = []
    last: dict[int, int] = {}
    for index, step in enumerate(steps):
        waits, marks = {0}, {0}
        if isinstance(step, ForkStep):
            waits, marks = {step.stream}, set(step.targets)
        elif isinstance(step, JoinStep):
            waits, marks = set(step.sources), {step.stream}
        elif isinstance(step, LaunchStep):
            waits = marks = {step.stream}
        # A fork or join also stands behind what the streams that it holds up had before.
        before = {last[s] for s in waits | marks if s in last}
        after.append(set().union(*({b} | after[b] for b in before)))
        for stream in marks:
            last[stream] = index
    racing = {
        (a, b)
        for a, b in itertools.combinations(range(len(steps)), 2)
        if a not in after[b]
        and any(
            (x.write or y.write) and overlap(x.ref, y.ref)
            for x in accesses(steps[a])
            for y in accesses(steps[b])
        )
    }
    found = find_race(steps, 3)
    assert (found is not None) == bool(racing)
    assert found is None or found[:2] in racing
