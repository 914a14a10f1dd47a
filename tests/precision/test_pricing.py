"""From tasks to what each layer and each edge costs."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest

from nrt.fusion_choice import settle_fusions
from nrt.fusion_prices import Prices
from nrt.ir.ops import Conv, MaxPool, Pointwise, Reformat
from nrt.lowering import Lowered
from nrt.passes.base import run_pipeline
from nrt.passes.pipeline import PipelineOptions, pipeline
from nrt.passes.precision_rules import Assignment
from nrt.precision.conversions import Conversions
from nrt.precision.pricing import Meter, Pricing
from nrt.precision.survey import Survey, survey
from nrt.problem import Problem
from nrt.rewriting import Rewriter

from .networks import Bench, calibrated, network


@functools.cache
def _calibrated_options() -> PipelineOptions:
    """Made when a test runs: the calibration compiles kernels."""
    return PipelineOptions(frozenset({"int8", "fp16", "fp32"}), calibration=calibrated())


class Shop:
    """The small network, priced by invented times."""

    def __init__(self, seconds: Callable[[Problem], float]) -> None:
        self.bench = Bench(seconds)
        self.prices = Prices(self.bench, 3, None, None, None, None, time.monotonic)
        self.graph = network().graph
        given = _calibrated_options()
        phases = pipeline(given)
        first = next(k for k, p in enumerate(phases) if p.name == "quantize")
        self.survey: Survey = survey(run_pipeline(self.graph, phases[:first]).graph, given)
        self.meter = Meter(self.prices, estimates=True)
        singles = [self.survey.single(p) for p in ("fp32", "fp16", "int8")]
        outcomes = [self.lowered(labels) for labels in singles]
        self.meter.settle(outcomes)
        layouts = Conversions.layouts_of(self.graph, [k.value for k in self.survey.shared])
        self.pricing = Pricing(self.survey, self.meter, Conversions(self.survey, layouts))
        for outcome, labels in zip(outcomes, singles, strict=True):
            self.pricing.learn(outcome, labels)

    def lowered(self, labels: Mapping[str, str]) -> Lowered:
        options = replace(_calibrated_options(), assignment=Assignment(labels))
        rewriter = Rewriter(self.graph, pipeline(options))
        return settle_fusions(rewriter, self.bench, prices=self.prices).rewritten.lowered


def by_types(problem: Problem) -> float:
    """Convolutions by what they read and store, a Reformat or Pointwise 0.5 us, all else 1 us."""
    if isinstance(problem.op, Conv):
        read, stored = problem.inputs[0].dtype.itemsize, problem.outputs[0].dtype.itemsize
        return (10 * read + stored) * 1e-6
    return 0.5e-6 if isinstance(problem.op, Reformat | Pointwise) else 1e-6


def test_layers_have_their_own_time() -> None:
    shop = Shop(by_types)
    model = shop.pricing.model()
    assert shop.meter.measured
    # In floats: what it reads and stores in one type.
    assert model.times["block.a"]["fp16"] == 22_000_000
    assert model.times["block.a"]["fp32"] == 44_000_000
    # int8 was seen to store int8 only, floats to store floats: taken to be equal.
    assert model.times["block.a"]["int8"] == 11_000_000
    # An image in another type is its reader's cost: here a Quantize, in any order of memory.
    assert model.times["stem"]["int8"] == 11_000_000 + 500_000
    assert model.times["stem"]["fp16"] == 22_000_000 + 500_000
    assert shop.pricing.alone("grouped").keys() == {"fp16", "fp32"}


def test_conversions_are_tasks() -> None:
    model = Shop(by_types).pricing.model()
    nets = {net.value: net for net in model.roundings}
    assert nets["stem.relu"].dequantize == {"fp16": 500_000, "fp32": 500_000}
    assert nets["stem.relu"].quantize == 0  # the stem's epilogue rounds
    assert nets["stem.relu"].source == "stem"
    # A mean's result is quantized in a launch of its own, or in its own store.
    casts = {cast.value: cast.casts for cast in model.casts}
    assert casts["block.out"] == {("fp16", "fp32"): 500_000, ("fp32", "fp16"): 500_000}


def test_the_model_adds_up_to_the_network() -> None:
    """Single precisions cost what their tasks do, but for tasks that stand for no layer."""
    shop = Shop(by_types)
    model = shop.pricing.model()
    for precision in ("fp32", "fp16"):
        labels = shop.survey.single(precision)
        tasks = shop.meter.seconds(shop.lowered(labels).tasks)
        assert tasks is not None
        assert model.cost(labels) == pytest.approx(tasks * 1e12, rel=1e-9)


def test_what_a_mixed_network_shows_is_added() -> None:
    """block.a in fp16 reads bytes that block.down, in int8, wants: the stem stores them."""
    shop = Shop(by_types)
    labels = {**shop.survey.single("int8"), "stem": "fp16", "block.a": "fp16"}
    lowered = shop.lowered(labels)
    assert not any(isinstance(t.problem.op, MaxPool) for t in lowered.tasks)
    shop.pricing.learn(lowered, labels)
    model = shop.pricing.model()
    # The stem in fp16 was seen to store either: 22 and 21 us, and its image's Reformat.
    assert model.times["stem"]["fp16"] == 22_500_000
    (net,) = [n for n in model.roundings if n.value == "stem.relu"]
    assert net.stored["fp16"] == -1_000_000
    total = shop.meter.seconds(lowered.tasks)
    assert total is not None
    assert model.cost(labels) == pytest.approx(total * 1e12, rel=0.02)


def test_estimates_and_no_times() -> None:
    bench = Bench(by_types, can_measure=False)
    prices = Prices(bench, 3, None, None, None, None, time.monotonic)
    shop = Shop(by_types)
    tasks = shop.lowered(shop.survey.single("fp16")).tasks
    meter = Meter(prices, estimates=True)
    meter.settle([Lowered(tasks=tasks)])
    assert (meter.measured, meter.known) == (False, True)
    assert meter.seconds(tasks) == pytest.approx(sum(by_types(t.problem) for t in tasks))
    blind = Meter(prices, estimates=False)
    blind.settle([Lowered(tasks=tasks)])
    assert (blind.known, blind.seconds(tasks)) == (False, None)
