"""Builds that choose precisions: on the CPU, for a GPU that is elsewhere, and on one."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nrt
from nrt.builder import BuildRequest, build, build_request, optimize
from nrt.errors import BuildError
from nrt.ir.evaluate import evaluate
from nrt.passes.precision_rules import Assignment

from .networks import calibrated, images, network

Array = np.ndarray[Any, np.dtype[Any]]

SMALL = 1e-5
"""Relative error of fp32 kernels."""


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NRT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("NRT_WORKERS", "1")


def sqnr(engine: Any, net: nrt.Network, data: Array) -> float:
    wanted = np.stack([evaluate(net.graph, {"image": x})["scores"] for x in data[:, None]])
    found = np.stack([np.array(engine(x)) for x in data[:, None]]).astype(np.float64)
    noise = np.square(found - wanted).sum()
    return 10 * math.log10(np.square(wanted.astype(np.float64)).sum() / noise)


def product_net(rng: np.random.Generator) -> tuple[nrt.Network, Array]:
    """Two products of a few numbers, whose kernels compile in a moment."""
    net = nrt.Network("two")
    x = net.input("x", (4, 32))
    for name, size in (("first", 16), ("second", 8)):
        weights = rng.standard_normal((size, x.shape[1])).astype(np.float32)
        x = net.linear(x, weights, name=name)
    net.output(x, "y")
    return net, rng.standard_normal((16, 32)).astype(np.float32)


def test_on_the_cpu() -> None:
    """Nothing is timed: what the budget needs is raised, the rest is int8."""
    net, data = network(), images(4, seed=3)
    found = nrt.compile(
        net,
        target="cpu",
        opt_level=0,
        precision="auto",
        calibration=calibrated(),
        accuracy=nrt.AccuracyBudget("sqnr", at_least=5, data=data),
    )
    assert found.frontier is not None
    least = found.frontier.points[found.frontier.chosen].accuracy
    assert least is not None
    wanted = least + 2
    engine = nrt.compile(
        net,
        target="cpu",
        opt_level=0,
        precision="auto",
        calibration=calibrated(),
        accuracy=nrt.AccuracyBudget("sqnr", at_least=wanted, data=data),
    )
    assert engine.frontier is not None
    assert engine.selection is not None
    point = engine.frontier.points[engine.frontier.chosen]
    assert sqnr(engine, net, data) == pytest.approx(point.accuracy, rel=1e-3)
    assert sqnr(engine, net, data) >= wanted
    # The plan has what the selection says, and explain says why.
    layers = {layer.name: layer.precision for layer in engine.plan.layers}
    for layer in engine.selection.layers:
        assert layers[layer.name] == layer.precision
    assert 0 < len(point.raised) < 6
    story = engine.explain(point.raised[0]).stories[0]
    assert story.precision.startswith("fp16: raised from int8 for sqnr at least ")
    assert "int8" in engine.plan.notes["precision"]
    assert f"sqnr at least {wanted:g}" in engine.plan.notes["precision"]
    # What was chosen is settled: another build of the request compares nothing.
    again = build_request(replace(engine.build.request, timing_cache=None))
    assert again.selection is None
    assert [layer.precision for layer in again.plan.layers] == [
        layer.precision for layer in engine.plan.layers
    ]


def test_measured_on_the_cpu(rng: np.random.Generator) -> None:
    net, data = product_net(rng)
    ranges = nrt.calibrate(net, data, target="cpu", method="minmax")
    budget = nrt.AccuracyBudget("relative_error", at_most=1e-3, data=data)
    engine = nrt.compile(
        net, target="cpu", opt_level=1, precision="auto", calibration=ranges, accuracy=budget
    )
    assert engine.frontier is not None
    points = {p.name: p for p in engine.frontier.points}
    assert {"int8", "fp16", "fp32"} <= set(points)
    assert all(p.measured for p in points.values())
    assert points["fp32"].accuracy == 0
    assert not points["int8"].holds
    chosen = engine.frontier.points[engine.frontier.chosen]
    holding = [p.seconds for p in points.values() if p.holds and p.seconds is not None]
    assert chosen.seconds == min(holding)
    wanted = evaluate(net.graph, {"x": data[:4]})["y"]
    error = np.linalg.norm(np.array(engine(data[:4])) - wanted) / np.linalg.norm(wanted)
    assert error <= 1e-3 + SMALL


def test_auto_without_a_calibration(rng: np.random.Generator) -> None:
    net, _ = product_net(rng)
    built = build(net, target="cpu", opt_level=1, precision="auto")
    assert built.selection is not None
    assert built.selection.notes == ("int8 left out: it needs calibration=",)
    assert "int8 left out" in built.plan.notes["precision"]
    assert {layer.precision for layer in built.selection.layers} <= {"fp16", "fp32"}


def test_a_set_of_three_is_chosen_from_and_two_are_not(rng: np.random.Generator) -> None:
    net, data = product_net(rng)
    ranges = nrt.calibrate(net, data, target="cpu", method="minmax")
    options: dict[str, Any] = {"target": "cpu", "opt_level": 0, "calibration": ranges}
    assert build(net, precision={"int8", "fp16", "fp32"}, **options).selection is not None
    assert build(net, precision={"int8", "fp16"}, **options).selection is None


def test_passes_alone_take_the_narrowest(rng: np.random.Generator) -> None:
    net, data = product_net(rng)
    ranges = nrt.calibrate(net, data, target="cpu", method="minmax")
    report = optimize(net, precision="auto", calibration=ranges)
    first = report.graph.node("first")
    assert str(first.inputs[0].dtype) == "int8"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": {"auto", "fp16"}}, "precision: auto beside fp16; it stands for a set"),
        ({"accuracy": "sqnr:20"}, "accuracy='sqnr:20': expected an nrt.AccuracyBudget, such as"),
    ],
)
def test_errors(options: dict[str, Any], message: str, rng: np.random.Generator) -> None:
    with pytest.raises(BuildError, match=message):
        build(product_net(rng)[0], target="cpu", **options)


def test_a_gpu_that_is_elsewhere_is_judged_here(rng: np.random.Generator) -> None:
    """By estimates; roundings are those of int8, computed in floats."""
    net, data = product_net(rng)
    ranges = nrt.calibrate(net, data, target="cpu", method="minmax")
    built = build(
        net,
        target="cuda:sm_80",
        opt_level=0,
        precision="auto",
        calibration=ranges,
        accuracy=nrt.AccuracyBudget("relative_error", at_most=0.5, data=data),
    )
    assert built.selection is not None
    points = {p.name: p for p in built.selection.frontier.points}
    assert not any(p.measured for p in points.values())
    exact = optimize(
        net, precision={"int8", "fp16"}, calibration=ranges, layers={"second": "int8"}
    ).graph
    rows = data.reshape(4, 4, 32)
    wanted = np.concatenate([evaluate(net.graph, {"x": x})["y"] for x in rows])
    found = np.concatenate([evaluate(exact, {"x": x})["y"] for x in rows])
    error = np.linalg.norm(found - wanted) / np.linalg.norm(wanted)
    assert points["int8"].accuracy == pytest.approx(error, rel=0.05)


def test_an_assignment_in_a_request(rng: np.random.Generator) -> None:
    net, data = product_net(rng)
    ranges = nrt.calibrate(net, data, target="cpu", method="minmax")
    request = BuildRequest(
        net.graph,
        precision=frozenset({"int8", "fp16"}),
        target="cpu",
        opt_level=0,
        calibration=ranges,
        assignment=Assignment({"first": "fp16", "second": "int8"}, {"first": "fp16: because"}),
    )
    built = build_request(request)
    precisions = {layer.name: layer.precision for layer in built.plan.layers}
    assert (precisions["first"], precisions["second"]) == ("fp16", "int8")
    assert "fp16: because" in {n.text for n in built.passes.notes_about("first")}


@pytest.mark.gpu
@pytest.mark.parametrize("decibels", [None, 38.0])
def test_on_the_gpu(decibels: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    # Kernels of three precisions compile, each for seconds.
    monkeypatch.setenv("NRT_WORKERS", "8")
    net, data = network(), images(8, seed=3)
    budget = None
    if decibels is not None:
        budget = nrt.AccuracyBudget("sqnr", at_least=decibels, data=data)
    engine = nrt.compile(
        net,
        target="cuda",
        opt_level=1,
        streams=1,
        precision="auto",
        calibration=calibrated(),
        accuracy=budget,
    )
    assert engine.frontier is not None
    assert engine.selection is not None
    points = engine.frontier.points
    chosen = points[engine.frontier.chosen]
    assert chosen.measured
    singles = [p.seconds for p in points if p.single and p.holds and p.seconds is not None]
    assert len([p for p in points if p.single]) == 3
    assert chosen.seconds is not None
    # Faster, or a single precision that was as a whole plan.
    assert chosen.seconds <= min(singles) or chosen.single
    layers = {layer.name: layer.precision for layer in engine.plan.layers}
    for layer in engine.selection.layers:
        if layer.name in layers:  # siblings are one layer
            assert layers[layer.name] == layer.precision
    if decibels is not None:
        assert sqnr(engine, net, data) >= decibels - 0.5
        assert chosen.accuracy == pytest.approx(sqnr(engine, net, data), abs=0.5)
