"""The whole choice with times that are invented: what is fastest, what a budget takes back, why."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nrt
from nrt.errors import BuildError
from nrt.fusion_choice import settle_fusions
from nrt.fusion_prices import Prices
from nrt.ir.evaluate import evaluate
from nrt.ir.ops import Conv, MatMul, PooledConv, PooledMatMul
from nrt.passes.pipeline import PipelineOptions, pipeline
from nrt.passes.precision_rules import Assignment
from nrt.precision.accuracy import AccuracyBudget
from nrt.precision.choice import Chosen, choose_precisions
from nrt.precision.workshop import Workshop
from nrt.problem import Problem
from nrt.rewriting import Rewriter
from nrt.work import precision_of

from .networks import Bench, calibrated, images, network

PRODUCTS = ("stem", "block.a", "block.b", "block.down", "grouped", "last", "head")
ALL = frozenset({"fp32", "fp16", "int8"})


@pytest.fixture(autouse=True, scope="module")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NRT_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("NRT_WORKERS", "1")
        yield


def workshop(
    seconds: Callable[[Problem], float],
    *,
    precision: frozenset[str] = ALL,
    layers: Mapping[str, str] | None = None,
    gain: float = 1.0,
    timed: bool = True,
    estimates: bool = True,
    compare: Any = lambda a, b: None,
) -> Workshop:
    net = network(gain=gain)
    options = PipelineOptions(
        precision,
        layers or {},
        calibration=calibrated(gain=gain) if "int8" in precision or gain != 1 else None,
    )
    bench = Bench(seconds, can_measure=timed)
    return Workshop(
        net.graph,
        options,
        bench,
        Prices(bench, 3, None, None, None, None, time.monotonic),
        estimates,
        lambda settled, _: lambda batch: evaluate(settled.rewritten.report.graph, batch),
        lambda: lambda batch: evaluate(net.graph, batch),
        lambda graph: lambda batch: evaluate(graph, batch),
        compare,
    )


def by_type(**microseconds: float) -> Callable[[Problem], float]:
    """Products by the type of their operands; all else takes a microsecond."""

    def seconds(problem: Problem) -> float:
        if isinstance(problem.op, Conv | MatMul | PooledConv | PooledMatMul):
            return microseconds[precision_of(problem)] * 1e-6
        return 1e-6

    return seconds


def precisions(chosen: Chosen) -> dict[str, str]:
    return {layer.name: layer.precision for layer in chosen.selection.layers}


def total(shop: Workshop, labels: Assignment) -> float:
    """Seconds of all tasks, by the passes and the bench alone."""
    options = replace(shop.options, assignment=labels)
    settled = settle_fusions(Rewriter(shop.graph, pipeline(options)), shop.bench, opt_level=3)
    times: list[float] = [shop.bench.seconds(t.problem) for t in settled.rewritten.lowered.tasks]
    return sum(times)


def budget(decibels: float, count: int = 4) -> AccuracyBudget:
    return AccuracyBudget("sqnr", at_least=decibels, data=images(count, seed=3))


# -- time ------------------------------------------------------------------------------------------


def test_int8_where_it_can_be() -> None:
    chosen = choose_precisions(workshop(by_type(int8=2, fp16=9, fp32=20)))
    assert precisions(chosen) == {
        **dict.fromkeys(PRODUCTS, "int8"),
        "grouped": "fp16",
    }
    (above,) = chosen.selection.above_int8
    assert above.reason == (
        "fp16: no int8: int8 kernels read input channels in runs of 16, a group has 2"
    )
    assert above.seconds == {"fp16": pytest.approx(9e-6), "fp32": pytest.approx(20e-6)}
    for layer in chosen.selection.layers:
        assert all(seconds >= 0 for seconds in layer.instead.values())
    (last,) = [layer for layer in chosen.selection.layers if layer.name == "last"]
    assert last.instead == {"fp16": pytest.approx(7e-6), "fp32": pytest.approx(18e-6, abs=2e-6)}


@pytest.mark.parametrize(("fast", "times"), [("fp16", (9, 2, 20)), ("fp32", (20, 9, 2))])
def test_one_precision_may_be_fastest(fast: str, times: tuple[float, ...]) -> None:
    chosen = choose_precisions(
        workshop(by_type(**dict(zip(("int8", "fp16", "fp32"), times, strict=True))))
    )
    assert precisions(chosen) == dict.fromkeys(PRODUCTS, fast)
    point = chosen.selection.frontier.points[chosen.selection.frontier.chosen]
    assert (point.name, point.single, point.measured) == (fast, True, True)


def test_a_layer_that_is_slow_in_int8() -> None:
    """Only the classifier is: what it reads is quantized for nobody else."""

    def seconds(problem: Problem) -> float:
        slow = isinstance(problem.op, MatMul) and precision_of(problem) == "int8"
        return 30e-6 if slow else by_type(int8=2, fp16=9, fp32=20)(problem)

    chosen = choose_precisions(workshop(seconds))
    assert precisions(chosen)["head"] == "fp16"
    assert set(precisions(chosen).values()) == {"int8", "fp16"}
    reason = {layer.name: layer.reason for layer in chosen.selection.layers}["head"]
    assert reason.startswith("fp16: int8 would take ")
    assert reason.endswith("us more, conversions included (measured)")
    # The reason is a note of the pass, where `explain` finds it.
    report = chosen.settled.rewritten.report
    assert reason in {n.text for n in report.notes_about("head")}


def test_a_conversion_can_cost_more_than_int8_saves() -> None:
    """block.a and block.down read one value. int8 saves 2 us of the one and costs 4 of the other,
    or a Dequantize of 3."""

    def seconds(problem: Problem) -> float:
        types = [str(t.dtype) for t in (*problem.inputs[:1], problem.outputs[0])]
        if isinstance(problem.op, Conv):
            down = problem.inputs[1].shape == (32, 16, 1, 1)
            if down:
                return {"int8": 8, "fp16": 4}.get(types[0], 50) * 1e-6
            if problem.inputs[1].shape == (32, 16, 3, 3):
                return {"int8": 5, "fp16": 7}.get(types[0], 50) * 1e-6
            return 6e-6
        if "int8" in types and len(set(types)) == 2:
            return 3e-6  # to and from integers
        return 1e-6

    found = precisions(choose_precisions(workshop(seconds, precision=frozenset({"int8", "fp16"}))))
    assert found["block.a"] == found["block.down"] == "fp16"


def random_times(seed: int) -> Callable[[Problem], float]:
    """A time per problem, from 1 to 2 us, that only the seed and the problem decide."""

    def seconds(problem: Problem) -> float:
        digest = hashlib.sha256(f"{seed} {problem.key}".encode()).digest()
        return (1 + digest[0] / 255) * 1e-6

    return seconds


@given(st.integers(0, 1 << 30), st.sampled_from([ALL, frozenset({"int8", "fp16"})]))
@settings(max_examples=12, deadline=None)
def test_never_worse_than_a_single_precision(seed: int, precision: frozenset[str]) -> None:
    shop = workshop(random_times(seed), precision=precision)
    chosen = choose_precisions(shop)
    point = chosen.selection.frontier.points[chosen.selection.frontier.chosen]
    found = total(shop, chosen.assignment)
    assert found == pytest.approx(point.seconds, rel=1e-9)
    singles = [p for p in chosen.selection.frontier.points if p.single]
    assert {p.name for p in singles} == set(precision)
    for single in singles:
        assert point.seconds is not None
        assert single.seconds is not None
        assert point.seconds <= single.seconds
    every = dict.fromkeys(chosen.assignment.layers, "fp16")
    assert found <= total(shop, Assignment(every)) * (1 + 1e-9)


def test_the_whole_plan_has_the_last_word() -> None:
    """Its tasks say int8; as a whole the fp16 network is faster."""
    seen: list[int] = []

    def compare(first: Any, second: Any) -> tuple[float, float]:
        seen.append(len(first.rewritten.lowered.tasks))
        return 50e-6, 40e-6

    def seconds(problem: Problem) -> float:
        slow = isinstance(problem.op, MatMul) and precision_of(problem) == "int8"
        return 30e-6 if slow else by_type(int8=2, fp16=9, fp32=20)(problem)

    chosen = choose_precisions(workshop(seconds, compare=compare))
    assert len(seen) == 1
    point = chosen.selection.frontier.points[chosen.selection.frontier.chosen]
    assert point.single
    assert f"whole plans: 50.0 us against 40.0 us of {point.name}" in chosen.selection.summary


def test_patterns_are_kept() -> None:
    layers = {"block.a": "fp32", "grouped*": "fp16", "last": "int8"}
    chosen = choose_precisions(workshop(by_type(int8=5, fp16=2, fp32=9), layers=layers))
    found = precisions(chosen)
    assert (found["block.a"], found["grouped"], found["last"]) == ("fp32", "fp16", "int8")
    assert found["block.b"] == "fp16"


def test_estimates_where_nothing_is_measured() -> None:
    chosen = choose_precisions(workshop(by_type(int8=9, fp16=2, fp32=20), timed=False))
    assert set(precisions(chosen).values()) == {"fp16"}
    assert "estimated" in chosen.selection.summary
    assert not any(p.measured for p in chosen.selection.frontier.points)
    assert chosen.settled.choices


def test_without_times_the_narrowest() -> None:
    shop = workshop(by_type(int8=9, fp16=2, fp32=1), timed=False, estimates=False)
    chosen = choose_precisions(shop)
    assert precisions(chosen) == {**dict.fromkeys(PRODUCTS, "int8"), "grouped": "fp16"}
    assert all(p.seconds is None for p in chosen.selection.frontier.points)
    assert "not timed" in str(chosen.selection)


# -- accuracy --------------------------------------------------------------------------------------


@pytest.mark.parametrize("timed", [True, False])
@pytest.mark.parametrize("decibels", [10.0, 32.0, 45.0, 80.0])
def test_a_budget_holds(decibels: float, timed: bool) -> None:
    shop = workshop(by_type(int8=2, fp16=9, fp32=20), timed=timed, estimates=False)
    chosen = choose_precisions(shop, budget(decibels))
    frontier = chosen.selection.frontier
    assert frontier.points[frontier.chosen].holds
    data = images(4, seed=3)[:, None]
    graph = chosen.settled.rewritten.report.graph
    wanted = np.stack([evaluate(shop.graph, {"image": x})["scores"] for x in data])
    found = np.stack([evaluate(graph, {"image": x})["scores"] for x in data])
    signal = np.square(wanted.astype(np.float64)).sum()
    noise = np.square(found.astype(np.float64) - wanted).sum()
    measured = 10 * math.log10(signal / noise) if noise else math.inf
    assert measured >= decibels
    accuracy = frontier.points[frontier.chosen].accuracy
    assert accuracy == pytest.approx(measured, rel=1e-6) or accuracy == measured
    faster = [p for p in frontier.points if p.holds and p.seconds is not None]
    if timed:
        assert frontier.points[frontier.chosen].seconds == min(p.seconds or 0 for p in faster)


def test_what_is_raised_says_so() -> None:
    shop = workshop(by_type(int8=2, fp16=9, fp32=20))
    loose = choose_precisions(shop, budget(5)).selection
    point = loose.frontier.points[loose.frontier.chosen]
    assert point.accuracy is not None
    assert not point.raised
    chosen = choose_precisions(shop, budget(point.accuracy + 3))
    point = chosen.selection.frontier.points[chosen.selection.frontier.chosen]
    assert 0 < len(point.raised) < len(PRODUCTS) - 1
    assert point.name == f"raised {len(point.raised)}"
    reasons = {layer.name: layer.reason for layer in chosen.selection.layers}
    for name in point.raised:
        assert reasons[name].startswith("fp16: raised from int8 for sqnr at least ")
    int8 = [p for p in chosen.selection.frontier.points if p.name == "int8"]
    assert [p.holds for p in int8] == [False]
    text = str(chosen.selection)
    assert f"above int8: {len(chosen.selection.above_int8)} of {len(PRODUCTS)}" in text
    assert "(beyond the budget)" in text
    # Nothing was raised at first: no tensor's noise was looked at.
    assert not loose.notes
    (note,) = chosen.selection.notes
    assert note in text
    assert note.startswith("most of the noise at the results, each alone in int8: '")
    found = [float(part.split()[-2]) for part in note.split(": ", 1)[1].split(", ")]
    assert len(found) == 3
    assert found == sorted(found)
    assert found[0] > 15


def test_nothing_meets_the_budget() -> None:
    shop = workshop(by_type(int8=2, fp16=9, fp32=20), precision=frozenset({"int8", "fp16"}))
    with pytest.raises(
        BuildError,
        match=r"no network of precision int8, fp16 has sqnr at least 200: .*fp16 \d+.*permit a "
        r"wider precision \(fp32\), or ask for less",
    ):
        choose_precisions(shop, budget(200))


def test_one_precision_is_judged_too() -> None:
    shop = workshop(by_type(fp16=9), precision=frozenset({"fp16"}))
    assert precisions(choose_precisions(shop, budget(40))) == dict.fromkeys(PRODUCTS, "fp16")
    with pytest.raises(BuildError, match="no network of precision fp16 has sqnr at least 150"):
        choose_precisions(shop, budget(150))


# -- range -----------------------------------------------------------------------------------------


def test_fp16_that_would_overflow() -> None:
    """block.a gives numbers of some hundred thousand, which block.b brings back."""
    loud = 3e5
    ranges = calibrated(gain=loud)
    amax = ranges["block.a.relu"].amax
    assert amax > 65504
    shop = workshop(by_type(fp16=2, fp32=20, int8=30), gain=loud)
    chosen = choose_precisions(shop)
    found = precisions(chosen)
    assert (found["block.a"], found["block.b"]) == ("fp32", "fp32")
    assert {p for n, p in found.items() if not n.startswith("block.")} == {"fp16"}
    reasons = {layer.name: layer.reason for layer in chosen.selection.layers}
    expected = (
        f"fp32: 'block.a.relu' reached {amax:.4g} in calibration, fp16 is trusted up to 32752"
    )
    for name in ("block.a", "block.b"):
        assert reasons[name].startswith(f"{expected}; int8 would take ")
    graph = chosen.settled.rewritten.report.graph
    assert np.isfinite(evaluate(graph, {"image": images(1)})["scores"]).all()


def test_the_rule_holds_without_a_choice() -> None:
    net, ranges = network(gain=3e5), calibrated(gain=3e5)
    report = nrt.builder.optimize(net, precision={"fp16", "fp32"}, calibration=ranges)
    (note,) = [n for n in report.notes if n.node == "block.a" and "reached" in n.text]
    assert note.kind == "refused"
    assert np.isfinite(evaluate(report.graph, {"image": images(1)})["scores"]).all()
    with pytest.raises(BuildError, match="goes beyond the range of fp16 and fp32 is not permitted"):
        nrt.builder.optimize(net, precision="fp16", calibration=ranges)


def test_nothing_is_assumed_without_a_calibration() -> None:
    report = nrt.builder.optimize(network(gain=3e5), precision={"fp16", "fp32"})
    assert not any("reached" in n.text for n in report.notes)


def test_the_frontier_in_every_form(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    chosen = choose_precisions(workshop(by_type(int8=2, fp16=9, fp32=20)), budget(40))
    frontier = chosen.selection.frontier
    table = frontier.to_pandas()
    assert isinstance(table, pandas.DataFrame)
    assert list(table["name"]) == [p.name for p in frontier.points]
    assert table["chosen"].sum() == 1
    assert table["seconds"].is_monotonic_increasing
    assert set(table["int8"]) >= {0}
    accuracies = [p.accuracy for p in frontier.pareto]
    assert accuracies == sorted(accuracies, key=lambda a: a or 0.0)
    svg = frontier.to_svg()
    assert svg.count("<circle") == sum(math.isfinite(p.accuracy or 0) for p in frontier.points)
    assert "sqnr at least 40" in svg
    assert frontier.to_data()["points"][0]["name"] == frontier.points[0].name
