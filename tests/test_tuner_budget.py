"""A budget of seconds: who is measured first, what the rest get, and what the report says."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from test_tuner import WRONG, Fake, FakeBench, grid, problem, reference

from nrt.errors import BuildError
from nrt.problem import Problem
from nrt.timing_cache import Timing, TimingCache
from nrt.tuner import Candidate, tune


@dataclass
class Clocked(FakeBench):
    """Every measurement takes a second; problems of ``late`` are compiled when nothing else is."""

    now: float = 0.0
    late: tuple[Problem, ...] = ()
    order: list[Problem] = field(default_factory=list)
    asked: list[float | None] = field(default_factory=list)
    abandoned: int = 0
    never: bool = False

    def clock(self) -> float:
        return self.now

    def estimate(self, variant: Fake, problem: Problem, config: tuple[Any, ...]) -> float:
        return super().estimate(variant, problem, config) + problem.y.size

    def measure(self, variant: Fake, problem: Problem, config: tuple[Any, ...]) -> Timing:
        self.now += 1.0
        if problem not in self.order:
            self.order.append(problem)
        return super().measure(variant, problem, config)

    def next_ready(self, problems: Sequence[Problem], seconds: float | None) -> int | None:
        self.asked.append(seconds)
        if self.never:
            assert seconds is not None
            self.now += seconds
            return None
        return next((i for i, p in enumerate(problems) if p not in self.late), 0)

    def abandon(self) -> None:
        self.abandoned += 1


def pairs() -> list[Fake]:
    return [Fake("a", {(): 2.0}), Fake("b", {(): 1.0})]


def test_the_most_expensive_problems_come_first() -> None:
    bench = Clocked(pairs())
    # 3 layers of 5 elements cost more than one of 11, two of 7 more than one of 13.
    layers = [problem(11), problem(5), problem(7), problem(5), problem(13), problem(7), problem(5)]
    choices = tune(layers, bench)
    assert [p.y.size for p in bench.order] == [5, 7, 13, 11]
    assert list(choices) == list(dict.fromkeys(layers))


def test_whatever_is_compiled_is_measured_before_what_is_not() -> None:
    bench = Clocked(pairs(), late=(problem(13),))
    tune([problem(5), problem(13), problem(7)], bench)
    assert [p.y.size for p in bench.order] == [7, 5, 13]
    assert set(bench.asked) == {None}


def test_what_is_left_takes_its_best_estimate() -> None:
    bench = Clocked(pairs())
    choices = tune([problem(5), problem(7), problem(9)], bench, tuning_seconds=2, clock=bench.clock)
    timed, first, second = (choices[problem(n)] for n in (9, 7, 5))
    assert (timed.variant.name, timed.seconds, timed.reason) == ("b", 1.0, "fastest of 2 measured")
    for choice in (first, second):
        assert (choice.variant.name, choice.seconds) == ("a", None)
        assert choice.reason == "best estimate, tuning_seconds=2 spent"
        assert {c.note for c in choice.candidates} == {"not timed: tuning_seconds=2 spent"}
    assert bench.abandoned == 1
    # What was dropped and is needed after all is compiled again.
    assert bench.prepared[-2:] == [("a", ()), ("a", ())]


def test_a_budget_may_end_within_a_problem() -> None:
    bench = Clocked([grid("a", 2), grid("b", 2, 0.5)])
    choice = tune([problem()], bench, tuning_seconds=2.5, clock=bench.clock)[problem()]
    assert len(bench.measured) == 3
    assert (choice.variant.name, choice.config, choice.seconds) == ("b", (0,), 0.5)
    assert choice.reason == "fastest of 3 measured, tuning_seconds=2.5 spent"
    assert Candidate("b", "1", None, "not timed: tuning_seconds=2.5 spent") in choice.candidates


def test_wrong_candidates_do_not_stand_for_those_not_measured() -> None:
    bench = Clocked([Fake("broken", {(): WRONG}), Fake("late", {(): 1.0})])
    choice = tune([problem()], bench, tuning_seconds=1, clock=bench.clock)[problem()]
    assert (choice.variant.name, choice.reason) == ("late", "best estimate, tuning_seconds=1 spent")


def test_no_time_at_all() -> None:
    bench = Clocked([grid("a", 3), grid("b", 3, 0.1), reference()])
    choice = tune([problem()], bench, tuning_seconds=0, clock=bench.clock)[problem()]
    assert (choice.variant.name, choice.config, choice.seconds) == ("a", (0,), None)
    assert bench.measured == []
    assert bench.prepared == [("a", (0,))]


def test_a_compiler_that_takes_all_the_time_does_not_hang() -> None:
    bench = Clocked(pairs(), never=True)
    choices = tune([problem(), problem(7)], bench, tuning_seconds=30, clock=bench.clock)
    assert {c.reason for c in choices.values()} == {"best estimate, tuning_seconds=30 spent"}
    assert bench.asked == [30.0]
    assert bench.measured == []


def test_known_times_cost_nothing_and_decide(tmp_path: Path) -> None:
    layers = [problem(5), problem(7)]
    cache = TimingCache(tmp_path / "times.json")
    fakes = pairs()
    first = tune(layers, Clocked(fakes), cache=cache)
    bench = Clocked(fakes)
    again = tune(layers, bench, cache=cache, tuning_seconds=0, clock=bench.clock)
    assert bench.measured == []
    assert [c.variant.name for c in again.values()] == ["b", "b"]
    assert again == first


def test_progress_counts_to_the_end_when_time_is_up() -> None:
    calls: list[int] = []
    bench = Clocked(pairs())
    tune(
        [problem(3), problem(4), problem(5)], bench, tuning_seconds=1, clock=bench.clock,
        progress=lambda stage, done, total: calls.append(done),
    )  # fmt: skip
    assert calls == [0, 1, 2, 3]


@pytest.mark.parametrize("seconds", [-1, math.nan, math.inf, "5", True])
def test_impossible_budgets(seconds: Any) -> None:
    with pytest.raises(
        BuildError, match=r"tuning_seconds=.*: expected a number of at least 0, or None for no lim"
    ):
        tune([problem()], Clocked(pairs()), tuning_seconds=seconds)


def test_the_report_counts_what_opt_level_leaves_out() -> None:
    bench = FakeBench([grid("a", 9), Fake("b", {(): 1.0}, refusal="stride 3"), reference()])
    rows = tune([problem()], bench, opt_level=2)[problem()].candidates
    assert rows[2:] == (
        Candidate("a", "7 configuration(s)", None, "left out at opt_level=2"),
        Candidate("b", "", None, "stride 3"),
    )
    assert [r.seconds for r in rows[:2]] == [1.0, 2.0]
