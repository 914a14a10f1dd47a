"""Medians with intervals, and measurements that take turns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from nrt.errors import InputError
from nrt.insight.paired import FEWEST, Stopwatch, estimate, interleave


@pytest.mark.parametrize(
    ("count", "rank"), [(1, 1), (5, 1), (6, 1), (8, 1), (9, 2), (20, 6), (100, 40), (1000, 469)]
)
def test_the_interval_ends_at_the_tabulated_order_statistics(count: int, rank: int) -> None:
    """Ranks of the 95 % interval as tables of the sign test give them."""
    samples = np.random.default_rng().permutation(np.arange(1, count + 1))
    found = estimate(samples)
    assert (found.low, found.high) == (rank, count + 1 - rank)
    assert found.median == (count + 1) / 2


@pytest.mark.parametrize("count", [9, 30])
def test_the_interval_holds_the_median_as_often_as_it_says(count: int) -> None:
    rng = np.random.default_rng(11)
    found = [estimate(rng.exponential(size=count)) for _ in range(2000)]
    share = np.mean([e.low <= np.log(2) <= e.high for e in found])
    assert 0.94 < share < 0.985


def test_nothing_has_no_median() -> None:
    with pytest.raises(InputError, match="no sample to take a median of"):
        estimate([])


class Scripted:
    """A context whose runs take what ``seconds`` gives, called with the number of the turn."""

    inputs = ()

    def __init__(self, log: list[str], name: str, seconds: Callable[[int], float]) -> None:
        self.log, self.name, self.seconds = log, name, seconds
        self.turns = 0

    def run(self, inputs: Any) -> dict[str, Any]:
        del inputs
        return {}

    def device_seconds(self, repeats: int) -> list[float]:
        self.turns += 1
        self.log.append(self.name)
        return [self.seconds(self.turns)] * repeats


def watch(log: list[str], name: str, seconds: Callable[[int], float]) -> Stopwatch:
    context: Any = Scripted(log, name, seconds)
    made = Stopwatch(context, warm_up=0.0)
    log.clear()
    return made


def test_what_drifts_leaves_the_difference_alone() -> None:
    """Both slow down by 50 times the difference; it is still found exactly."""
    log: list[str] = []
    first = watch(log, "a", lambda turn: 1.0 + turn)
    second = watch(log, "b", lambda turn: 1.02 + turn)
    pair = interleave(first, second, duration=200.0)
    assert pair.rounds >= FEWEST
    assert pair.difference.median == pytest.approx(0.02)
    assert (pair.difference.low, pair.difference.high) == pytest.approx((0.02, 0.02))
    assert pair.first.high - pair.first.low > 1


def test_who_comes_first_takes_turns() -> None:
    log: list[str] = []
    pair = interleave(watch(log, "a", lambda _: 1.0), watch(log, "b", lambda _: 3.0), 0.0)
    assert "".join(log[-2 * pair.rounds :]).startswith("abbaabba")
    assert (pair.rounds, pair.first.median, pair.second.median) == (FEWEST, 1.0, 3.0)
    assert pair.difference.median == 2.0


def test_a_negative_duration() -> None:
    log: list[str] = []
    pair = watch(log, "a", lambda _: 1.0), watch(log, "b", lambda _: 1.0)
    with pytest.raises(InputError, match="duration -1 s: expected 0 or more"):
        interleave(*pair, duration=-1)
