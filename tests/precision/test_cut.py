"""The cut against all assignments, enumerated."""

from __future__ import annotations

from itertools import permutations, product

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from nrt.precision.costs import Cast, CostModel, Rounding, floats_of
from nrt.precision.cut import cheapest

FLOATS = ("fp16", "fp32")
TIMES = st.integers(0, 40)


@st.composite
def models(draw: st.DrawFn, precisions: tuple[str, ...]) -> CostModel:
    """Up to six layers, any reading any earlier one's value, some without a choice."""
    names = [f"layer{k}" for k in range(draw(st.integers(1, 6)))]
    times = {}
    for name in names:
        able = draw(st.sets(st.sampled_from(precisions), min_size=1))
        times[name] = {p: draw(TIMES) for p in precisions if p in able}
    home = draw(st.sampled_from([floats_of(p, "fp16") for p in precisions if p != "int8"]))
    readers = st.lists(st.sampled_from(names), min_size=1, unique=True).map(tuple)
    roundings = []
    for k in range(draw(st.integers(0, 4))):
        source = draw(st.none() | st.sampled_from(names))
        stored = {p: draw(st.integers(-40, 20)) for p in precisions} if source else {}
        net = Rounding(
            f"v{k}",
            tuple(r for r in draw(readers) if r != source) or (names[0],),
            draw(st.integers(-20, 40)),
            {t: draw(TIMES) for t in FLOATS},
            source,
            stored,
        )
        roundings.append(net.bounded())
    casts = []
    for k in range(draw(st.integers(0, 4))):
        source = draw(st.sampled_from(names))
        others = tuple(r for r in draw(readers) if r != source)
        prices = {pair: draw(TIMES) for pair in permutations(FLOATS, 2)}
        casts.append(Cast(f"c{k}", source, others, prices))
    return CostModel(times, tuple(roundings), tuple(casts), home)


def least(model: CostModel) -> int:
    names = list(model.times)
    every = product(*(model.times[name] for name in names))
    return min(model.cost(dict(zip(names, labels, strict=True))) for labels in every)


@pytest.mark.parametrize("pair", [("int8", "fp16"), ("int8", "fp32"), ("fp16", "fp32")])
def test_two_precisions_are_exact(pair: tuple[str, str]) -> None:
    @given(models(pair))
    @settings(max_examples=150, deadline=None)
    def check(model: CostModel) -> None:
        labels = cheapest(model)
        assert all(labels[layer] in own for layer, own in model.times.items())
        assert model.cost(labels) == least(model)

    check()


@given(models(("int8", "fp16", "fp32")))
@settings(max_examples=200, deadline=None)
def test_three_are_never_beaten_by_changing_one_layer(model: CostModel) -> None:
    """Nor by one precision for all."""
    starts = [
        {layer: p if p in own else max(own) for layer, own in model.times.items()}
        for p in ("int8", "fp16", "fp32")
    ]
    labels = cheapest(model, starts)
    cost = model.cost(labels)
    assert all(labels[layer] in own for layer, own in model.times.items())
    assert cost >= least(model)
    assert all(cost <= model.cost(start) for start in starts)
    for layer, own in model.times.items():
        assert all(cost <= model.cost({**labels, layer: p}) for p in own)


def test_a_conversion_that_costs_more_than_it_saves() -> None:
    """int8 is 3 ps faster in the first layer; a Dequantize for the other reader costs 5."""
    times = {"a": {"int8": 7, "fp16": 10}, "b": {"fp16": 4}}
    net = Rounding("x", ("a", "b"), 0, {"fp16": 5, "fp32": 9})
    assert cheapest(CostModel(times, (net,), home="fp16")) == {"a": "fp16", "b": "fp16"}
    free = Rounding("x", ("a", "b"), 0, {"fp16": 2, "fp32": 9})
    assert cheapest(CostModel(times, (free,), home="fp16")) == {"a": "int8", "b": "fp16"}


def test_a_tie_goes_to_the_wider_type() -> None:
    times = {"a": {"int8": 7, "fp16": 7}, "b": {"int8": 3, "fp16": 4}}
    assert cheapest(CostModel(times, home="fp16")) == {"a": "fp16", "b": "int8"}


def test_narrowed() -> None:
    model = CostModel({"a": {"int8": 1, "fp16": 5}, "b": {"int8": 1, "fp16": 5}}, home="fp16")
    assert cheapest(model.narrowed({"a": ["fp16"]})) == {"a": "fp16", "b": "int8"}
