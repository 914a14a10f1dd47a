from __future__ import annotations

import random

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
            together = life.first_step <= other.last_step and other.first_step <= life.last_step
            apart = (
                offset + life.nbytes <= arena.offsets[b]
                or arena.offsets[b] + other.nbytes <= offset
                or 0 in (life.nbytes, other.nbytes)
            )
            assert apart or not together, (a, b)


lifetimes_ = st.lists(
    st.builds(
        lambda n, start, length: Lifetime(n, start, start + length),
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
    lifetimes = [Lifetime(100, 0, 1), Lifetime(50, 1, 2), Lifetime(70, 2, 3)]
    arena = plan_arena(lifetimes, alignment=10)
    assert arena.lower_bound == 150
    assert arena.nbytes == 150
    assert arena.offsets[2] + 70 <= 100 or arena.offsets[2] >= 50


@pytest.mark.parametrize("seed", range(5))
def test_chain_reaches_the_bound(seed: int) -> None:
    rng = random.Random(seed)
    lifetimes = [Lifetime(rng.randrange(1, 1 << 20), i, i + 1) for i in range(200)]
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
        lifetimes.append(Lifetime(size, step, step + 4))
        lifetimes += [Lifetime(size // 4, step + i, step + i + 1) for i in (1, 2)]
        lifetimes += [Lifetime(rng.randrange(1 << 16), step + i, step + i) for i in (1, 2, 3)]
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
            lifetimes.append(Lifetime(size, step + layer, step + length))
            lifetimes.append(
                Lifetime(4 * size + rng.randrange(999), step + layer, step + layer + 1)
            )
        step += length
    arena = plan_arena(lifetimes)
    assert_sound(lifetimes, arena, 256)
    assert arena.nbytes <= CLOSE * arena.lower_bound


def test_the_same_in_every_run() -> None:
    rng = random.Random(3)
    lifetimes = [
        Lifetime(rng.choice([256, 512, 4096]), s := rng.randrange(50), s + rng.randrange(9))
        for _ in range(60)
    ]
    assert plan_arena(lifetimes) == plan_arena(list(lifetimes))


def test_nothing_to_place() -> None:
    assert plan_arena([]) == Arena((), 0, 0)
    assert plan_arena([Lifetime(0, 0, 3)]) == Arena((0,), 0, 0)


@pytest.mark.parametrize("bad", [Lifetime(-1, 0, 0), Lifetime(8, 3, 2)])
def test_refuses_an_impossible_lifetime(bad: Lifetime) -> None:
    with pytest.raises(PlanError, match=r"lifetime 1: .*expected at least 0 bytes and an end"):
        plan_arena([Lifetime(1, 0, 0), bad])


def test_refuses_an_impossible_alignment() -> None:
    with pytest.raises(PlanError, match="alignment of 0 bytes: expected at least 1"):
        plan_arena([], alignment=0)
