"""Budgets: what is asked for, what is wrong with it, and how networks are judged."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import nrt
from nrt.errors import BuildError, CalibrationError
from nrt.precision.accuracy import AccuracyBudget, Judge

from .networks import network

Array = np.ndarray[Any, np.dtype[Any]]


@pytest.fixture
def data(rng: np.random.Generator) -> Array:
    return rng.standard_normal((7, 5)).astype(np.float32)


def judge(budget: AccuracyBudget, reference: Any = None) -> Judge:
    return Judge(budget, {"x": (1, 5)}, reference or (lambda batch: {"y": batch["x"]}))


def agreement(outputs: Array, labels: Array) -> float:
    return float(np.mean(outputs.argmax(axis=1) == labels))


def test_it_is_public() -> None:
    assert nrt.AccuracyBudget is AccuracyBudget


def test_sqnr(data: Array, rng: np.random.Generator) -> None:
    noise = rng.standard_normal((7, 5)).astype(np.float32) / 8
    rows = iter(noise)
    found = judge(AccuracyBudget("sqnr", at_least=12, data=data)).score(
        lambda batch: {"y": batch["x"] + next(rows)}
    )
    signal = np.square(data.astype(np.float64)).sum()
    error = np.square(data.astype(np.float64) - (data + noise)).sum()
    assert found.value == pytest.approx(10 * math.log10(signal / error), rel=1e-9)
    assert found.holds == (found.value >= 12)


@pytest.mark.parametrize("bound", ["at_most", "max_drop"])
def test_relative_error(bound: str, data: Array) -> None:
    for limit, holds in ((0.0101, True), (0.0099, False)):
        budget = AccuracyBudget("relative_error", **{bound: limit}, data=data)
        found = judge(budget).score(lambda batch: {"y": batch["x"] * np.float32(1.01)})
        assert found.value == pytest.approx(0.01, rel=1e-5)
        assert found.holds is holds


def test_the_same_network_is_exact(data: Array) -> None:
    assert judge(AccuracyBudget("sqnr", at_least=99, data=data)).score(
        lambda batch: {"y": batch["x"]}
    ).value == math.inf  # fmt: skip
    assert AccuracyBudget("relative_error", at_most=0, data=data).limit(0.0) == 0


def test_several_outputs_count_by_the_worst(data: Array) -> None:
    def network(batch: dict[str, Array]) -> dict[str, Array]:
        return {"a": batch["x"], "b": batch["x"] + 1}

    def other(batch: dict[str, Array]) -> dict[str, Array]:
        return {"a": batch["x"] * np.float32(1.5), "b": batch["x"] + 1}

    found = judge(AccuracyBudget("relative_error", at_most=1, data=data), network).score(other)
    assert found.value == pytest.approx(0.5, rel=1e-5)


def test_a_function_of_outputs_and_labels(data: Array) -> None:
    labels = data.argmax(axis=1)
    labels[0] = (labels[0] + 1) % 5  # fp32 has one of seven wrong
    lost = AccuracyBudget(agreement, max_drop=0.2, data=data, labels=labels)
    found = judge(lost)
    assert found.reference == pytest.approx(6 / 7)

    def turned(count: int) -> Any:
        rows = iter(range(7))
        return lambda batch: {"y": -batch["x"] if 0 < next(rows) <= count else batch["x"]}

    assert found.score(turned(1)).holds
    assert found.score(turned(1)).value == pytest.approx(5 / 7)
    assert not found.score(turned(2)).holds
    absolute = AccuracyBudget(agreement, at_least=0.8, data=data, labels=labels)
    assert judge(absolute).score(turned(0)).holds
    assert not judge(absolute).score(turned(1)).holds


def test_a_function_sees_all_samples_and_several_outputs_by_name(data: Array) -> None:
    seen: list[Any] = []

    def metric(outputs: Any, labels: Any) -> float:
        seen.append((outputs, labels))
        return 1.0

    judge(AccuracyBudget(metric, at_least=0, data=data))
    judge(
        AccuracyBudget(metric, at_least=0, data=data, labels="given"),
        lambda batch: {"a": batch["x"], "b": batch["x"].astype(np.float16)},
    )
    np.testing.assert_array_equal(seen[0][0], data)
    assert seen[0][1] is None
    assert set(seen[1][0]) == {"a", "b"}
    assert seen[1][0]["b"].dtype == np.float32
    assert seen[1][1] == "given"


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("metric", ["sqnr", agreement])
def test_what_is_not_finite_never_holds(bad: float, metric: Any, data: Array) -> None:
    budget = AccuracyBudget(metric, at_least=-1e9, data=data, labels=data.argmax(axis=1))
    found = judge(budget).score(lambda batch: {"y": batch["x"] + np.float32(bad)})
    assert math.isnan(found.value)
    assert not found.holds


def test_data_may_be_an_iterator(data: Array) -> None:
    found = judge(AccuracyBudget("sqnr", at_least=1, data=iter(data)))
    assert found.score(lambda batch: {"y": batch["x"]}).holds


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"metric": "psnr", "at_least": 1},
            "metric 'psnr' is unknown; expected sqnr",
        ),
        ({"metric": "sqnr"}, "bounds of sqnr: got none; give one of at_least"),
        ({"metric": "sqnr", "max_drop": 3}, "of sqnr: got max_drop; give one of at_least"),
        (
            {"metric": "relative_error", "at_least": 3},
            "of relative_error: got at_least; give one of at_most or max_drop",
        ),
        (
            {"metric": agreement, "at_least": 3, "max_drop": 1},
            "of agreement: got at_least, max_drop; give one of max_drop or at_least",
        ),
        ({"metric": "sqnr", "at_least": "20"}, "at_least='20': expected a number$"),
        ({"metric": "sqnr", "at_least": math.inf}, "at_least=inf: expected a number$"),
        ({"metric": agreement, "max_drop": -0.1}, "max_drop=-0.1: expected a number of at least 0"),
        ({"metric": "sqnr", "at_least": True}, "at_least=True: expected a number"),
        ({"metric": "sqnr", "at_least": 20, "data": None}, "data is missing: give samples"),
    ],
)
def test_bad_budgets(arguments: dict[str, Any], message: str, data: Array) -> None:
    with pytest.raises(BuildError, match=f"accuracy: .*{message}"):
        AccuracyBudget(**{"data": data, **arguments})


def test_fp8_is_not_chosen(data: Array) -> None:
    budget = AccuracyBudget("sqnr", at_least=20, data=data)
    with pytest.raises(BuildError, match="precision: fp8 is taken as asked, not chosen for acc"):
        nrt.compile(network(), target="cpu", precision={"fp8", "fp16"}, accuracy=budget)


def test_data_that_does_not_fit() -> None:
    with pytest.raises(CalibrationError, match="input 'x' has shape"):
        judge(AccuracyBudget("sqnr", at_least=1, data=np.zeros((3, 4), np.float32)))


def test_a_metric_that_gives_no_number(data: Array) -> None:
    budget = AccuracyBudget(lambda outputs, labels: outputs, at_least=0, data=data)
    with pytest.raises(BuildError, match="accuracy: <lambda> gave ndarray, expected a number"):
        judge(budget)


def test_a_metric_that_is_not_finite_in_fp32(data: Array) -> None:
    budget = AccuracyBudget(lambda outputs, labels: math.nan, max_drop=0, data=data)
    with pytest.raises(BuildError, match="<lambda> is nan in fp32, expected a finite number"):
        judge(budget)
    with pytest.raises(BuildError, match="output 'y' is not finite in fp32, sqnr has no value"):
        judge(
            AccuracyBudget("sqnr", at_least=1, data=data),
            lambda batch: {"y": batch["x"] * np.float32(np.inf)},
        )


def test_texts(data: Array) -> None:
    assert str(AccuracyBudget("sqnr", at_least=20, data=data)) == "sqnr at least 20"
    assert str(AccuracyBudget("relative_error", max_drop=0.1, data=data)) == (
        "relative_error at most 0.1"
    )
    assert str(AccuracyBudget(agreement, max_drop=0.1, data=data)) == (
        "agreement at most 0.1 below fp32"
    )


def test_a_sample_is_of_whole_batches(data: Array) -> None:
    one = judge(AccuracyBudget("sqnr", at_least=12, data=data))
    assert [b["x"].tolist() for b in one.sample(3)] == [[row.tolist()] for row in data[:3]]
    assert len(one.sample(100)) == 7
    budget = AccuracyBudget("sqnr", at_least=12, data=list(data[:6].reshape(2, 3, 5)))
    pairs = Judge(budget, {"x": (3, 5)}, lambda batch: {"y": batch["x"]})
    assert [len(b["x"]) for b in pairs.sample(4)] == [3, 3]
    assert [len(b["x"]) for b in pairs.sample(3)] == [3]
