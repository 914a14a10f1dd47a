"""Noise of single tensors, measured at the network's results."""

from __future__ import annotations

import numpy as np
import pytest

import nrt
from nrt.builder import build_graph
from nrt.ir.evaluate import evaluate
from nrt.passes.base import run_pipeline
from nrt.passes.channel_grids import grid_of_channels
from nrt.passes.pipeline import PipelineOptions, pipeline
from nrt.precision.probes import insert_probes, noise_at_results
from nrt.precision.sensitivity import harms, probed_tensors, source_of
from nrt.precision.survey import Survey, survey
from nrt.precision.workshop import laid_out, runs

Array = np.ndarray


def network(rng: np.random.Generator, loud: float) -> nrt.Network:
    """Two branches of the same sizes, of which the second is ``loud`` times the first."""
    net = nrt.Network("branches")
    x = net.input("x", (8, 32))

    def branch(name: str, scale: float) -> nrt.Value:
        first = rng.standard_normal((48, 32)).astype(np.float32) / 6
        second = rng.standard_normal((16, 48)).astype(np.float32) / 7 * np.float32(scale)
        y = net.relu(net.linear(x, first, name=f"{name}.a"), name=f"{name}.relu")
        return net.linear(y, second, name=f"{name}.b")

    net.output(net.add(branch("quiet", 1.0), branch("loud", loud), name="sum"), "y")
    return net


def studied(net: nrt.Network, rng: np.random.Generator) -> tuple[Survey, nrt.Calibration, Array]:
    """The fused network, its ranges, and the data they are of: none of it is clipped."""
    data = rng.standard_normal((256, 32)).astype(np.float32)
    ranges = nrt.calibrate(net, data, target="cpu", method="minmax")
    options = PipelineOptions(frozenset({"int8", "fp16", "fp32"}), calibration=ranges)
    phases = pipeline(options)
    first = [p.name for p in phases].index("quantize")
    return survey(run_pipeline(net.graph, phases[:first]).graph, options), ranges, data


def test_noise_is_that_of_the_tensor_alone(rng: np.random.Generator) -> None:
    net = network(rng, 5.0)
    _, ranges, data = studied(net, rng)
    batch = {"x": data[:8]}
    probes = insert_probes(net.graph, ["x", "quiet.relu", "loud.relu"], ranges)
    found = noise_at_results(probes, lambda feeds: evaluate(probes.graph, feeds), [batch])

    constants = {n.name: n.inputs[-1].constant for n in net.graph.nodes}
    weights = {name: a for name, a in constants.items() if a is not None}

    def rounded(a: Array, name: str, low: int, high: int) -> Array:
        # In float32, as the probe computes: beside a tie the other neighbour is other noise.
        scale = np.float32(ranges[name].threshold / high)
        return np.clip(np.rint(a * (np.float32(1) / scale)), low, high) * scale

    def forward(x: Array, which: str = "") -> Array:
        total = np.zeros((8, 16))
        for name in ("quiet", "loud"):
            y = np.maximum(x @ weights[f"{name}.a"].T, np.float32(0))
            if which == f"{name}.relu":
                # It has no negatives: uint8.
                y = rounded(y, which, 0, 255)
            total += y.astype(np.float64) @ weights[f"{name}.b"].T.astype(np.float64)
        return total

    wanted = forward(batch["x"])
    for name, result in {
        "x": forward(rounded(batch["x"], "x", -127, 127)),
        "quiet.relu": forward(batch["x"], "quiet.relu"),
        "loud.relu": forward(batch["x"], "loud.relu"),
    }.items():
        expected = np.square(result - wanted).sum() / np.square(wanted).sum()
        assert found[name] == pytest.approx(expected, rel=1e-2), name
    assert found["loud.relu"] > 3 * found["quiet.relu"]


def test_channels_are_rounded_on_their_own_grids(rng: np.random.Generator) -> None:
    sizes = np.exp2(rng.uniform(-4, 2, 48)).astype(np.float32)
    sizes[:2] = 4, 1 / 16
    first = rng.standard_normal((48, 32)).astype(np.float32) / 6 * sizes[:, None]
    means = 3 * sizes * rng.choice(np.float32([-1, 1]), 48)
    second = rng.standard_normal((16, 48)).astype(np.float32) / 7 / sizes
    net = nrt.Network("uneven")
    net.output(net.linear(net.linear(net.input("x", (8, 32)), first, means), second), "y")
    survey, ranges, data = studied(net, rng)
    (name,) = (n.inputs[0].name for n in survey.graph.nodes if n.inputs[0].producer is not None)
    grid = grid_of_channels(survey.graph, survey.graph.value(name), ranges)
    assert grid is not None
    assert grid.zeros.any()
    probes = insert_probes(survey.graph, [name], ranges)
    batch = {"x": data[:8]}
    found = noise_at_results(probes, lambda feeds: evaluate(probes.graph, feeds), [batch])

    inner = (batch["x"] @ first.T + means).astype(np.float64)
    q = np.clip(np.rint(inner / grid.scales) + grid.zeros, -127, 127)
    wrong = ((q - grid.zeros) * grid.scales - inner) @ second.T.astype(np.float64)
    wanted = inner @ second.T.astype(np.float64)
    expected = np.square(wrong).sum() / np.square(wanted).sum()
    assert found[name] == pytest.approx(expected, rel=0.02)
    # With one scale it would be more; how much, the weights' noise is amplified by.
    plain = insert_probes(survey.graph, [name], ranges.without_extremes())
    more = noise_at_results(plain, lambda feeds: evaluate(plain.graph, feeds), [batch])
    assert more[name] > 4 * found[name]
    assert not plain.finer
    step = ranges.scale(name)
    assert probes.finer[name] == pytest.approx(np.square(grid.scales / step).mean(), rel=1e-6)
    layers = [n.name for n in survey.graph.nodes]
    assert (
        harms(survey, ranges, found, probes.finer)[layers[0]]["int8"]
        > (harms(survey, ranges, found)[layers[0]]["int8"])
    )


def test_powers_of_several_batches_add_up(rng: np.random.Generator) -> None:
    net = network(rng, 1.0)
    _, ranges, data = studied(net, rng)
    probes = insert_probes(net.graph, ["x"], ranges)
    batches = [{"x": data[:8] / 4}, {"x": data[8:16]}]

    def run(feeds: dict[str, Array]) -> dict[str, Array]:
        return evaluate(probes.graph, feeds)

    both = noise_at_results(probes, run, batches)["x"]
    signals = [float(np.square(evaluate(net.graph, b)["y"].astype(float)).sum()) for b in batches]
    each = [noise_at_results(probes, run, [b])["x"] for b in batches]
    expected = sum(n * s for n, s in zip(each, signals, strict=True)) / sum(signals)
    assert both == pytest.approx(expected, rel=1e-6)
    assert each[0] > both > each[1]


def test_switches_that_are_off_change_nothing(rng: np.random.Generator) -> None:
    net = network(rng, 1.0)
    _, ranges, data = studied(net, rng)
    before = net.graph.copy()
    probes = insert_probes(net.graph, ["x", "loud.relu", "no.such.tensor", "sum"], ranges)
    assert len(net.graph) == len(before)
    # The result's own range is known, whoever reads it; what is not there has no probe.
    assert set(probes.switches) == {"x", "loud.relu", "sum"}
    batch = {"x": data[:8]}
    off = {s: np.zeros((1, 1), np.float32) for s in probes.switches.values()}
    plain = evaluate(net.graph, batch)["y"]
    np.testing.assert_array_equal(evaluate(probes.graph, {**batch, **off})["y"], plain)
    # It compiles as any network does.
    run = runs(build_graph(laid_out(probes.graph), target="cpu", opt_level=0).plan)
    found = np.asarray(run({**batch, **off})["y"])
    np.testing.assert_allclose(found, plain, rtol=1e-4, atol=1e-5)


def test_harm_is_what_reaches_the_results(rng: np.random.Generator) -> None:
    net = network(rng, 5.0)
    found, ranges, data = studied(net, rng)
    tensors = probed_tensors(found)
    assert {"x", "quiet.relu", "loud.relu"} <= set(tensors)
    assert source_of(found, "loud.b") == "loud.relu"
    probes = insert_probes(found.graph, tensors, ranges)
    batch = {"x": data[:8]}
    reach = noise_at_results(probes, lambda feeds: evaluate(probes.graph, feeds), [batch])
    alone, measured = harms(found, ranges), harms(found, ranges, reach)
    # By themselves both branches round as well; 25 times the noise power at the result is one's.
    assert alone["loud.a"]["int8"] == pytest.approx(alone["quiet.a"]["int8"], rel=0.5)
    rounded = reach["x"]
    assert measured["loud.a"]["int8"] - rounded > 5 * (measured["quiet.a"]["int8"] - rounded) > 0
    assert reach["loud.relu"] > 5 * reach["quiet.relu"]
    assert measured["loud.b"]["int8"] > measured["quiet.b"]["int8"]
    # Floats are a thousandth of that, and keep their order.
    assert measured["loud.b"]["fp32"] < measured["loud.b"]["fp16"] < measured["loud.b"]["int8"]


def test_results_that_are_no_numbers() -> None:
    net = nrt.Network("huge")
    x = net.input("x", (1, 4))
    net.output(net.exp(net.mul(x, 1.0, name="same"), name="up"), "y")
    ranges = nrt.calibrate(net, np.full((4, 4), 88.5, np.float32), target="cpu", method="minmax")
    probes = insert_probes(net.graph, ["x"], ranges)

    def run(feeds: dict[str, Array]) -> dict[str, Array]:
        on = float(feeds[probes.switches["x"]].item())
        return {"y": np.array([[1.0, np.inf if on else 1.0, np.inf, 2.0]])}

    batch = {"x": np.zeros((1, 4), np.float32)}
    assert noise_at_results(probes, run, [batch]) == {"x": float("inf")}
