"""Tuning on a bench of invented variants: who is measured, who wins, and what the report says."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from nrt.dtypes import FP32
from nrt.errors import BuildError, TuningError
from nrt.ir.ops import Relu, Sigmoid
from nrt.problem import Problem, Refusal, TensorSpec
from nrt.timing_cache import Timing, TimingCache
from nrt.tuner import Candidate, tune

WRONG = Timing(None, "wrong result: relative error 7e-01, limit 1e-04")


@dataclass(eq=False)
class Fake:
    """A variant with a time, or a failure, per configuration."""

    name: str
    times: dict[tuple[Any, ...], float | Timing]
    rank: int = 10
    reference: bool = False
    refusal: str = ""


@dataclass
class FakeBench:
    """Records what the tuner asks for; estimates are the order of the variants."""

    fakes: list[Fake]
    can_measure: bool = True
    measured: list[tuple[str, tuple[Any, ...]]] = field(default_factory=list)
    prepared: list[tuple[str, tuple[Any, ...]]] = field(default_factory=list)
    scratch: dict[tuple[str, tuple[Any, ...]], int] = field(default_factory=dict)

    def workspace(self, variant: Fake, problem: Problem, config: tuple[Any, ...]) -> int:
        return self.scratch.get((variant.name, config), 0)

    def variants(self, problem: Problem) -> Sequence[tuple[Fake, Refusal | None]]:
        return [(f, Refusal(f.refusal) if f.refusal else None) for f in self.fakes]

    def configs(self, variant: Fake, problem: Problem) -> Sequence[tuple[Any, ...]]:
        return list(variant.times)

    def estimate(self, variant: Fake, problem: Problem, config: tuple[Any, ...]) -> float:
        return self.fakes.index(variant) + 0.01 * list(variant.times).index(config)

    def timing_key(self, variant: Fake, problem: Problem, config: tuple[Any, ...]) -> str:
        return f"{variant.name} {config} {problem.key}"

    def prepare(
        self, jobs: Iterable[tuple[Fake, Problem, tuple[Any, ...]]], *, check: bool = False
    ) -> None:
        self.prepared += [(v.name, c) for v, _, c in jobs]

    def next_ready(self, problems: Sequence[Problem], seconds: float | None) -> int | None:
        return 0

    def abandon(self) -> None:
        raise AssertionError("no budget was given")

    def measure(self, variant: Fake, problem: Problem, config: tuple[Any, ...]) -> Timing:
        self.measured.append((variant.name, config))
        time = variant.times[config]
        return time if isinstance(time, Timing) else Timing(time)


def problem(size: int = 5, op: Any = None) -> Problem:
    spec = TensorSpec.dense((size,), FP32)
    return Problem(op or Relu(), (spec,), (spec,), (False,))


def grid(name: str, count: int, seconds: float = 1.0, **options: Any) -> Fake:
    return Fake(name, {(i,): seconds + i for i in range(count)}, **options)


def reference(seconds: float | Timing = 9.0) -> Fake:
    return Fake("reference", {(): seconds}, rank=100, reference=True)


# -- what is measured ------------------------------------------------------------------------------


def test_equal_problems_are_tuned_once() -> None:
    bench = FakeBench([Fake("a", {(): 1.0}), Fake("b", {(): 2.0})])
    choices = tune([problem(), problem(7), problem(), problem(op=Sigmoid())], bench)
    assert list(choices) == [problem(), problem(7), problem(op=Sigmoid())]
    assert len(bench.measured) == 3 * 2


@pytest.mark.parametrize(
    ("opt_level", "measured"),
    [(1, (1, 1, 0)), (2, (2, 2, 0)), (3, (4, 4, 0)), (4, (8, 8, 0)), (5, (20, 20, 1))],
)
def test_opt_level_says_how_many(opt_level: int, measured: tuple[int, int, int]) -> None:
    bench = FakeBench([grid("a", 20), grid("b", 20, 30.0), reference()])
    tune([problem()], bench, opt_level=opt_level)
    names = [name for name, _ in bench.measured]
    assert tuple(names.count(n) for n in ("a", "b", "reference")) == measured


@pytest.mark.parametrize(("opt_level", "count"), [(1, 2), (2, 4), (3, 8), (4, 16)])
def test_the_best_estimates_are_measured(opt_level: int, count: int) -> None:
    fakes = [grid(f"v{i}", 1, 50.0 - i) for i in range(20)]
    bench = FakeBench(fakes[::-1])
    tune([problem()], bench, opt_level=opt_level)
    assert [n for n, _ in bench.measured] == [f.name for f in fakes[::-1][:count]]


def test_level_0_takes_the_best_estimate_without_a_clock() -> None:
    bench = FakeBench([grid("good", 3), grid("better if timed", 3, 0.1), reference()])
    choice = tune([problem()], bench, opt_level=0)[problem()]
    assert (choice.variant.name, choice.config, choice.seconds) == ("good", (0,), None)
    assert choice.reason == "the only candidate"
    assert bench.measured == []
    assert bench.prepared == [("good", (0,))]


def test_without_a_device_nothing_is_measured() -> None:
    bench = FakeBench([grid("a", 3), grid("b", 3, 0.1)], can_measure=False)
    choice = tune([problem()], bench, opt_level=3)[problem()]
    assert (choice.variant.name, choice.config, choice.seconds) == ("a", (0,), None)
    assert choice.reason == "best estimate, not timed"
    assert {c.note for c in choice.candidates} == {"not timed"}
    assert bench.measured == []
    assert bench.prepared == [("a", (0,))]


def test_all_that_is_measured_is_compiled_ahead() -> None:
    bench = FakeBench([grid("a", 2), grid("b", 2, 0.1)])
    tune([problem()], bench, opt_level=3)
    assert sorted(bench.prepared) == sorted(bench.measured)


def test_a_single_candidate_is_checked_too() -> None:
    bench = FakeBench([Fake("only", {(): WRONG}), reference()])
    choice = tune([problem()], bench)[problem()]
    assert choice.variant.name == "reference"


# -- who wins --------------------------------------------------------------------------------------


def test_the_fastest_wins() -> None:
    bench = FakeBench([grid("slow", 2, 5.0), Fake("fast", {(1, "x"): 4.0, (2, "y"): 3.0})])
    choice = tune([problem()], bench)[problem()]
    assert (choice.variant.name, choice.config, choice.seconds) == ("fast", (2, "y"), 3.0)
    assert choice.reason == "fastest of 4 measured"
    assert Candidate("fast", "2, y", 3.0) in choice.candidates
    assert Candidate("slow", "1", 6.0) in choice.candidates


@pytest.mark.parametrize(("seconds", "winner"), [(1.019, "simple"), (1.03, "clever")])
def test_ties_go_to_the_simpler_variant(seconds: float, winner: str) -> None:
    bench = FakeBench([Fake("clever", {(): 1.0}, rank=30), Fake("simple", {(): seconds}, rank=5)])
    choice = tune([problem()], bench)[problem()]
    assert choice.variant.name == winner
    if winner == "simple":
        assert choice.seconds == seconds
        assert choice.reason == "simplest of 2 within 2% of the fastest of 2"


def test_between_configurations_of_one_variant_the_faster_wins() -> None:
    bench = FakeBench([Fake("a", {(1,): 1.01, (2,): 1.0, (3,): 1.005})])
    assert tune([problem()], bench)[problem()].config == (2,)


def test_the_reference_is_used_where_nothing_else_is() -> None:
    bench = FakeBench([Fake("a", {(): 1.0}, refusal="stride 3"), reference()])
    choice = tune([problem()], bench)[problem()]
    assert choice.variant.name == "reference"
    assert choice.seconds == 9.0
    assert choice.reason == "the only candidate"


def test_the_reference_alone_is_measured_once_at_level_5() -> None:
    bench = FakeBench([reference()])
    tune([problem()], bench, opt_level=5)
    assert bench.measured == [("reference", ())]


# -- failures --------------------------------------------------------------------------------------


def test_a_wrong_candidate_is_reported_and_never_wins() -> None:
    bench = FakeBench([Fake("broken", {(4,): WRONG}), Fake("right", {(): 8.0}), reference()])
    choice = tune([problem()], bench)[problem()]
    assert choice.variant.name == "right"
    assert choice.reason == "fastest of 1 measured"
    assert Candidate("broken", "4", None, WRONG.note) in choice.candidates


def test_all_wrong_falls_back_on_the_reference_and_says_so() -> None:
    bench = FakeBench([Fake("a", {(1,): WRONG}), Fake("b", {(2,): WRONG}), reference()])
    choice = tune([problem()], bench, opt_level=3)[problem()]
    assert choice.variant.name == "reference"
    assert choice.seconds is None
    assert choice.reason == f"reference: all 2 candidates failed ({WRONG.note})"
    assert [c.note for c in choice.candidates] == [WRONG.note] * 2
    assert bench.prepared[-1] == ("reference", ())


@pytest.mark.parametrize("opt_level", [1, 5])
def test_a_wrong_reference_is_not_fallen_back_on(opt_level: int) -> None:
    fakes = [reference(WRONG)]
    if opt_level == 5:
        fakes.insert(0, Fake("a", {(1, 2): WRONG}))
    with pytest.raises(TuningError, match=r"no kernel gives a right result for Relu\(fp32\[5\]\)"):
        tune([problem()], FakeBench(fakes), opt_level=opt_level)


def test_all_wrong_without_a_reference_names_every_candidate() -> None:
    bench = FakeBench([Fake("a", {(1, 2): WRONG}), Fake("b", {(): Timing(None, "died")})])
    with pytest.raises(TuningError) as caught:
        tune([problem()], bench)
    assert f"a(1, 2): {WRONG.note}; b(): died" in str(caught.value)


def test_refusals_stay_in_the_report() -> None:
    bench = FakeBench([Fake("a", {(): 1.0}), Fake("b", {}, refusal="channels % 8 != 0")])
    choice = tune([problem()], bench, opt_level=0)[problem()]
    assert choice.candidates[-1] == Candidate("b", "", None, "channels % 8 != 0")


def test_no_kernel_is_an_error_with_all_reasons() -> None:
    fakes = [Fake("a", {}, refusal="rank 5"), Fake("b", {}, refusal="fp64")]
    with pytest.raises(
        BuildError, match=r"no kernel solves Relu\(fp32\[5\]\) -> fp32\[5\]: a: rank 5; b: fp64"
    ):
        tune([problem()], FakeBench(fakes))
    with pytest.raises(BuildError, match=r"no kernel solves .*: its op has no kernels"):
        tune([problem()], FakeBench([]))


@pytest.mark.parametrize("opt_level", [-1, 6, 2.5, 3.0, True, "3", None])
def test_opt_level_is_a_whole_number_from_0_to_5(opt_level: Any) -> None:
    bench = FakeBench([reference()])
    with pytest.raises(BuildError, match=f"opt_level={opt_level!r}: expected a whole number from"):
        tune([problem()], bench, opt_level=opt_level)


# -- cache and progress ----------------------------------------------------------------------------


def test_known_times_are_not_measured_again(tmp_path: Path) -> None:
    cache = TimingCache(tmp_path / "timings.json")
    fakes = [grid("a", 2), Fake("b", {(): 0.5}), Fake("broken", {(): WRONG})]
    first = tune([problem()], FakeBench(fakes), cache=cache)
    cache.save()
    bench = FakeBench(fakes)
    again = tune([problem()], bench, cache=TimingCache(tmp_path / "timings.json"))
    assert bench.measured == []
    assert bench.prepared == []
    assert again == first


def test_a_cached_time_decides(tmp_path: Path) -> None:
    cache = TimingCache(tmp_path / "timings.json")
    bench = FakeBench([Fake("a", {(): 1.0}), Fake("b", {(): 2.0})])
    cache[bench.timing_key(bench.fakes[1], problem(), ())] = Timing(0.25)
    choice = tune([problem()], bench, cache=cache)[problem()]
    assert (choice.variant.name, choice.seconds) == ("b", 0.25)
    assert bench.measured == [("a", ())]
    assert len(cache) == 2


def test_a_compiler_that_died_is_asked_again(tmp_path: Path) -> None:
    cache = TimingCache(tmp_path / "timings.json")
    died = Timing(None, "the process that compiled x died with exit code -9")
    tune([problem()], FakeBench([Fake("a", {(): died}), Fake("b", {(): 1.0})]), cache=cache)
    assert len(cache) == 1
    bench = FakeBench([Fake("a", {(): 0.5}), Fake("b", {(): 1.0})])
    assert tune([problem()], bench, cache=cache)[problem()].variant.name == "a"


def test_progress_counts_problems() -> None:
    calls: list[tuple[str, int, int]] = []
    bench = FakeBench([reference()])
    tune(
        [problem(3), problem(4), problem(3)],
        bench,
        progress=lambda stage, done, total: calls.append((stage, done, total)),
    )
    assert calls == [("tune", 0, 2), ("tune", 1, 2), ("tune", 2, 2)]


def test_nothing_to_tune() -> None:
    assert tune([], FakeBench([])) == {}


def test_errors_name_the_layer() -> None:
    names = {problem(): "layer1.0.act"}
    with pytest.raises(BuildError, match=r"no kernel solves layer 'layer1\.0\.act', Relu\(fp32"):
        tune([problem()], FakeBench([]), names=names)
    bench = FakeBench([reference(WRONG)])
    with pytest.raises(TuningError, match=r"right result for layer 'layer1\.0\.act', Relu\(fp32"):
        tune([problem()], bench, names=names)


# -- workspaces ------------------------------------------------------------------------------------


def test_a_workspace_that_does_not_fit_is_refused() -> None:
    bench = FakeBench([grid("split", 6), grid("plain", 2, 5.0), reference()])
    bench.scratch = {("split", (i,)): 1 << (20 + i) for i in range(4)}
    first, second = problem(5), problem(6)
    found = tune([first, second], bench, room={first: 3 << 19})
    assert (found[first].variant.name, found[first].config) == ("split", (0,))
    rows = {(c.variant, c.config): c.note for c in found[first].candidates}
    assert rows["split", "3 configuration(s)"] == (
        "needs a workspace of 2.0 MiB to 8.0 MiB, memory_limit leaves 1.5 MiB"
    )
    # What is left counts as if the others had never been there.
    assert {c for v, c in bench.measured if v == "split"} == {(i,) for i in range(6)}
    assert not any("memory_limit" in c.note for c in found[second].candidates)
    none = tune([first], FakeBench(bench.fakes, scratch=bench.scratch), room={first: 0})[first]
    assert (none.variant.name, none.config) == ("split", (4,))


def test_no_kernel_fits() -> None:
    bench = FakeBench([grid("split", 1)], scratch={("split", (0,)): 4096})
    with pytest.raises(
        BuildError,
        match=r"no kernel solves .*: split: needs a workspace of 4\.0 KiB, memory_limit leaves 1",
    ):
        tune([problem()], bench, room={problem(): 1024})
