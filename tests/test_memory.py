from __future__ import annotations

import random
import time
from operator import add, le

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nrt.errors import PlanError
from nrt.memory import Arena, Lifetime, plan_arena

# Bytes over the lower bound that networks may cost.
CLOSE = 1.1


def assert_sound(lifetimes: list[Lifetime], arena: Arena, alignment: int) -> None:
    assert len(arena.offsets) == len(lifetimes)
    assert arena.nbytes >= arena.lower_bound
    for a, (life, offset) in enumerate(zip(lifetimes, arena.offsets, strict=True)):
        assert offset % alignment == 0
        assert 0 <= offset <= offset + life.nbytes <= arena.nbytes or life.nbytes == 0
        for b in range(a):
            other = lifetimes[b]
            over = [all(map(le, a.last, b.first)) for a, b in ((life, other), (other, life))]
            together = not any(over)
            apart = (
                offset + life.nbytes <= arena.offsets[b]
                or arena.offsets[b] + other.nbytes <= offset
                or 0 in (life.nbytes, other.nbytes)
            )
            assert apart or not together, (a, b)


lifetimes_ = st.lists(
    st.builds(
        lambda n, start, length: Lifetime.serial(n, start, start + length),
        st.integers(0, 5000),
        st.integers(0, 30),
        st.integers(0, 12),
    ),
    max_size=40,
)


@settings(max_examples=150, deadline=None)
@given(lifetimes_, st.sampled_from([1, 16, 256]))
def test_no_two_live_blocks_overlap(lifetimes: list[Lifetime], alignment: int) -> None:
    assert_sound(lifetimes, plan_arena(lifetimes, alignment), alignment)


def test_lower_bound_is_the_peak() -> None:
    lifetimes = [Lifetime.serial(100, 0, 1), Lifetime.serial(50, 1, 2), Lifetime.serial(70, 2, 3)]
    arena = plan_arena(lifetimes, alignment=10)
    assert arena.lower_bound == 150
    assert arena.nbytes == 150
    assert arena.offsets[2] + 70 <= 100 or arena.offsets[2] >= 50


@pytest.mark.parametrize("seed", range(5))
def test_chain_reaches_the_bound(seed: int) -> None:
    rng = random.Random(seed)
    lifetimes = [Lifetime.serial(rng.randrange(1, 1 << 20), i, i + 1) for i in range(200)]
    arena = plan_arena(lifetimes)
    assert_sound(lifetimes, arena, 256)
    assert arena.nbytes <= CLOSE * arena.lower_bound


@pytest.mark.parametrize("seed", range(5))
def test_residual_net_is_close_to_the_bound(seed: int) -> None:
    """Bottlenecks: a shortcut lives over three convolutions, each with its own workspace."""
    rng = random.Random(seed)
    lifetimes = []
    step, size = 0, 1 << 22
    for block in range(16):
        if block in (3, 7, 13):
            size //= 2
        lifetimes.append(Lifetime.serial(size, step, step + 4))
        lifetimes += [Lifetime.serial(size // 4, step + i, step + i + 1) for i in (1, 2)]
        lifetimes += [
            Lifetime.serial(rng.randrange(1 << 16), step + i, step + i) for i in (1, 2, 3)
        ]
        step += 4
    arena = plan_arena(lifetimes)
    assert_sound(lifetimes, arena, 256)
    assert arena.nbytes <= CLOSE * arena.lower_bound


@pytest.mark.parametrize("seed", range(3))
def test_dense_net_is_close_to_the_bound(seed: int) -> None:
    """Every layer's output lives to the end of its block."""
    rng = random.Random(seed)
    lifetimes = []
    step = 0
    for length, size in ((6, 1 << 20), (12, 1 << 18), (24, 1 << 16)):
        for layer in range(length):
            lifetimes.append(Lifetime.serial(size, step + layer, step + length))
            lifetimes.append(
                Lifetime.serial(4 * size + rng.randrange(999), step + layer, step + layer + 1)
            )
        step += length
    arena = plan_arena(lifetimes)
    assert_sound(lifetimes, arena, 256)
    assert arena.nbytes <= CLOSE * arena.lower_bound


clocks = st.lists(st.integers(0, 9), min_size=3, max_size=3).map(tuple)
parallel_lifetimes = st.lists(
    st.builds(
        lambda n, first, extra: Lifetime(n, first, tuple(map(add, first, extra))),
        st.integers(0, 5000),
        clocks,
        st.lists(st.integers(-2, 4), min_size=3, max_size=3).filter(lambda e: max(e) > 0),
    ),
    max_size=25,
)


@settings(max_examples=150, deadline=None)
@given(parallel_lifetimes)
def test_blocks_on_several_streams(lifetimes: list[Lifetime]) -> None:
    arena = plan_arena(lifetimes, 16)
    assert_sound(lifetimes, arena, 16)
    # What is said to be alive at once is, pairwise.
    for a in arena.peak:
        for b in arena.peak:
            assert a == b or not all(map(le, lifetimes[a].last, lifetimes[b].first))
    assert sum(-(-lifetimes[i].nbytes // 16) * 16 for i in arena.peak) == arena.lower_bound


def test_branches_share_no_memory_and_what_follows_them_does() -> None:
    """Step 0 of stream 0 forks; three steps follow on each stream; step 4 of stream 0 joins."""
    own = [
        Lifetime(100, (1, 0), (3, 0)),
        Lifetime(100, (2, 0), (4, 0)),
        Lifetime(100, (3, 0), (5, 0)),
    ]
    other = [
        Lifetime(100, (1, 0), (0, 2)),
        Lifetime(100, (1, 1), (0, 3)),
        Lifetime(100, (1, 2), (5, 3)),
    ]
    after = Lifetime(400, (5, 3), (6, 3))
    arena = plan_arena([*own, *other, after], 1)
    assert_sound([*own, *other, after], arena, 1)
    # In a branch two blocks meet, and of the other branch any may be alive.
    assert (arena.lower_bound, arena.nbytes) == (400, 400)
    assert plan_arena([*own, *other], 1).nbytes == 400
    assert plan_arena(own, 1).nbytes == plan_arena(other, 1).nbytes == 200


def test_the_search_goes_on_where_no_order_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    found, fixed = 0, 0
    for seed in range(6):
        rng = random.Random(seed)
        lifetimes = [
            Lifetime.serial(rng.randrange(1, 40), s := rng.randrange(40), s + rng.randrange(6))
            for _ in range(80)
        ]
        arena = plan_arena(lifetimes, 1)
        assert_sound(lifetimes, arena, 1)
        assert arena.nbytes <= CLOSE * arena.lower_bound
        found += arena.nbytes
        with monkeypatch.context() as patch:
            patch.setattr("nrt.memory._TRIES", 0)
            fixed += plan_arena(lifetimes, 1).nbytes
    assert found < fixed


def test_many_blocks_take_no_long_time() -> None:
    rng = random.Random(0)
    lifetimes = [
        Lifetime.serial(rng.randrange(1, 1 << 20), s := rng.randrange(600), s + rng.randrange(40))
        for _ in range(600)
    ]
    start = time.perf_counter()
    arena = plan_arena(lifetimes)
    assert time.perf_counter() - start < 5.0  # a second on a quiet core
    assert arena.nbytes <= CLOSE * arena.lower_bound


def test_the_same_in_every_run() -> None:
    rng = random.Random(3)
    lifetimes = [
        Lifetime.serial(rng.choice([256, 512, 4096]), s := rng.randrange(50), s + rng.randrange(9))
        for _ in range(60)
    ]
    assert plan_arena(lifetimes) == plan_arena(list(lifetimes))


def test_nothing_to_place() -> None:
    assert plan_arena([]) == Arena((), 0, 0)
    assert plan_arena([Lifetime.serial(0, 0, 3)]) == Arena((0,), 0, 0)


@pytest.mark.parametrize(
    "bad",
    [
        Lifetime.serial(-1, 0, 0),
        Lifetime.serial(8, 3, 2),
        Lifetime(8, (0, 0), (1, 1)),
        Lifetime(8, (0,), (1, 1)),
    ],
)
def test_refuses_an_impossible_lifetime(bad: Lifetime) -> None:
    with pytest.raises(
        PlanError, match=r"lifetime 1: .*expected at least 0 bytes, 1 stream\(s\), and an end not"
    ):
        plan_arena([Lifetime.serial(1, 0, 0), bad])


def test_refuses_an_impossible_alignment() -> None:
    with pytest.raises(PlanError, match="alignment of 0 bytes: expected at least 1"):
        plan_arena([], alignment=0)
