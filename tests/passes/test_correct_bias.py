"""Quantized layers whose results have the mean of their floats."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nrt
from nrt.builder import optimize
from nrt.dtypes import BYTES, FP8E4M3
from nrt.ir.evaluate import evaluate
from nrt.ir.graph import Graph
from nrt.ir.ops import Add, Conv, MatMul, Mul, Relu
from nrt.ir.value import Node, Value
from nrt.passes.base import PipelineReport, run_pipeline
from nrt.passes.correct_bias import add_to_sums
from nrt.passes.pipeline import PipelineOptions, pipeline
from nrt.quantization import Calibration, Histogram, MethodRules, TensorRange
from nrt.quantization.bias_correction import mean_shift
from nrt.quantization.weights import quantize_weights

from .support import Net

Array = np.ndarray[Any, np.dtype[Any]]

RULES = MethodRules("minmax")
STEP = 2.0**-5
GAINED = 3.0
"""Decibels that the correction is worth to a network of layers behind ReLUs."""


def on_the_grid(net: Net, shape: tuple[int, ...], axis: int) -> Array:
    """Two samples of whole steps that uint8 holds exactly, whose mean is constant in a channel."""
    spread = [1] * len(shape)
    spread[axis] = shape[axis]
    means = net.rng.integers(40, 120, spread[1:])
    means.flat[0] = 128
    apart = net.rng.integers(0, np.minimum(means, 255 - means) + 1, shape[1:])
    apart *= net.rng.choice([-1, 1], shape[1:])
    apart[(0,) * apart.ndim] = 127
    return (STEP * np.stack([means + apart, means - apart])).astype(np.float32)


def calibration(data: Array, axis: int, *, means: bool = True) -> Calibration:
    """Of the input alone."""
    rest = tuple(d for d in range(data.ndim) if d != axis % data.ndim)
    found = tuple(data.astype(np.float64).mean(axis=rest).tolist()) if means else None
    entry = TensorRange.of("x", Histogram.of(data), RULES, found)
    return Calibration("", "", RULES, len(data), {"x": entry})


def optimized(net: Net, ranges: Calibration, precision: str = "int8") -> PipelineReport:
    options = PipelineOptions(frozenset({precision}), {"*": precision}, calibration=ranges)
    return run_pipeline(net.graph.copy(), pipeline(options), verify=True)


def product(graph: Graph) -> Node:
    (node,) = (n for n in graph.nodes if isinstance(n.op, Conv | MatMul))
    return node


def notes(report: PipelineReport) -> list[str]:
    return [n.text for n in report.notes if n.pass_name == "quantize"]


CONVS: list[tuple[Conv, tuple[int, ...], tuple[int, ...]]] = [
    (Conv((1, 1), (1, 1, 1, 1)), (2, 16, 7, 6), (5, 16, 3, 3)),
    (Conv((2, 1), (2, 0, 1, 3), (1, 2), 2), (2, 32, 9, 11), (6, 16, 4, 3)),
    (Conv((2, 2), (2, 2, 2, 2), groups=8), (2, 8, 7, 8), (8, 1, 5, 5)),
    (Conv((1, 1), (0, 0, 0, 0)), (2, 48, 5, 3), (7, 48, 1, 1)),
]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("op", "shape", "kernel"), CONVS, ids=range(len(CONVS)))
def test_convolutions_keep_their_means(
    op: Conv, shape: tuple[int, ...], kernel: tuple[int, ...], bias: bool
) -> None:
    net = Net()
    x = net.input(*shape)
    operands = [x, net.const(net.random(*kernel), "w")]
    if bias:
        operands.append(net.const(net.random(kernel[0]), "b"))
    net.out(net.op(op, *operands))
    _means_are_kept(net, on_the_grid(net, shape, 1), 1, (0, 2, 3))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("trans_b", [False, True])
def test_matrix_products_keep_their_means(trans_b: bool, bias: bool) -> None:
    net = Net()
    x = net.input(2, 5, 32)
    y = net.op(
        MatMul(trans_b=trans_b), x, net.const(net.random(*((9, 32) if trans_b else (32, 9))))
    )
    net.out(net.op(Add(), y, net.const(net.random(9), "b")) if bias else y)
    _means_are_kept(net, on_the_grid(net, (2, 5, 32), 2), 2, (0, 1))


def _means_are_kept(net: Net, data: Array, axis: int, rest: tuple[int, ...]) -> None:
    """Only weights are rounded: x is exact in int8. Without means they shift the results'."""
    wanted = evaluate(net.graph, {"x": data})["y"].astype(np.float64).mean(axis=rest)
    apart = {}
    for means in (False, True):
        report = optimized(net, calibration(data, axis, means=means))
        node = product(report.graph)
        assert node.inputs[0].dtype in BYTES
        assert (notes(report)[0].find("its bias is corrected by up to") > 0) == means
        found = evaluate(report.graph, {"x": data})["y"].astype(np.float64).mean(axis=rest)
        apart[means] = np.abs(found - wanted).max()
    assert apart[True] <= 1e-5
    assert apart[False] >= 100 * apart[True]


@pytest.mark.parametrize("shape", [(2, 16, 5, 4), (3, 16)], ids=["conv", "matmul"])
def test_fp8_is_corrected_too(shape: tuple[int, ...]) -> None:
    net = Net()
    x = net.input(*shape)
    w = net.const(net.random(*((4, 16, 3, 3) if len(shape) == 4 else (16, 4))), "w")
    op = Conv((1, 1), (1, 1, 1, 1)) if len(shape) == 4 else MatMul()
    net.out(net.op(op, x, w))
    data = np.abs(net.random(*shape))
    results = {}
    for means in (False, True):
        ranges = calibration(data, 1, means=means)
        report = optimized(net, ranges, "fp8")
        assert product(report.graph).inputs[0].dtype is FP8E4M3
        results[means] = evaluate(report.graph, {"x": data})["y"]
    assert w.constant is not None
    rounded = quantize_weights(op, w.constant, dtype=FP8E4M3)
    scales = rounded.scales.reshape(-1, 1, 1, 1) if len(shape) == 4 else rounded.scales
    change = rounded.values.astype(np.float64) * scales - w.constant
    expected = calibration(data, 1)["x"].means
    assert expected is not None
    shift = mean_shift(op, change, expected, shape)
    assert np.abs(shift).max() > 1e-3
    added = (results[True] - results[False]).astype(np.float64)
    wanted = np.broadcast_to(-shift.reshape(-1, *[1] * (len(shape) - 2)), added.shape)
    np.testing.assert_allclose(added, wanted, atol=1e-5)


def test_a_bias_takes_the_correction_in() -> None:
    """The kernel adds one vector, as it would without; what else reads the bias keeps it."""
    net = Net()
    x = net.input(2, 16, 5, 4)
    y = net.op(Conv((1, 1), (1, 1, 1, 1)), x, net.weight(8, 16, 3, 3), net.const(net.random(8)))
    net.out(net.op(Relu(), y))
    data = on_the_grid(net, (2, 16, 5, 4), 1)
    plain, corrected = (
        product(optimized(net, calibration(data, 1, means=means)).graph) for means in (False, True)
    )
    programs: list[Any] = [node.op for node in (plain, corrected)]
    assert programs[0].epilogue == programs[1].epilogue
    assert [v.shape for v in plain.inputs] == [v.shape for v in corrected.inputs]


def _epilogue(net: Net, build: Any) -> tuple[Graph, Node]:
    """A fused convolution of 16 channels, behind which ``build`` computes."""
    x = net.input(1, 16, 3, 4)
    net.out(build(net.op(Conv((1, 1), (0,) * 4), x, net.weight(8, 16, 1, 1))))
    graph = run_pipeline(net.graph, pipeline(PipelineOptions())[:5]).graph
    return graph, product(graph)


def _column(net: Net) -> Value:
    return net.const(net.random(8, 1, 1), "column")


def _image(net: Net) -> Value:
    return net.const(net.random(1, 8, 3, 4), "image")


EPILOGUES: dict[str, tuple[Any, int]] = {
    "nothing": (lambda net, y: y, 1),
    "a vector": (lambda net, y: net.op(Relu(), net.op(Add(), y, _column(net))), 0),
    "an image": (lambda net, y: net.op(Relu(), net.op(Add(), _image(net), y)), 0),
    "a product": (lambda net, y: net.op(Add(), net.op(Mul(), y, _column(net)), _column(net)), 1),
    "twice": (lambda net, y: net.op(Mul(), net.op(Relu(), y), y), 1),
    "itself": (lambda net, y: net.op(Add(), y, y), 1),
}


@pytest.mark.parametrize("name", EPILOGUES)
def test_what_is_added_comes_first(name: str) -> None:
    """Whatever the epilogue does; one that begins with a constant needs no further operand."""
    build, more = EPILOGUES[name]
    net = Net()
    graph, node = _epilogue(net, lambda y: build(net, y))
    correction = net.rng.standard_normal(8)
    before = graph.copy()
    count = len(node.inputs)
    assert add_to_sums(graph, node, correction)
    after = product(graph)
    assert len(after.inputs) == count + more
    data = {"x": net.random(1, 16, 3, 4)}
    # The same sums from one more channel, whose weights are the correction.
    old = product(before)
    w = old.inputs[1].constant
    assert w is not None
    image = np.concatenate([data["x"], np.ones((1, 1, 3, 4), np.float32)], axis=1)
    weights = np.concatenate([w, correction.reshape(8, 1, 1, 1).astype(np.float32)], axis=1)
    constants = [v.constant for v in old.inputs[2:]]
    (wanted,) = old.op.reference(image, weights, *(c for c in constants if c is not None))
    np.testing.assert_allclose(evaluate(graph, data)["y"], wanted, rtol=1e-5, atol=1e-5)


def test_a_bias_that_no_epilogue_holds() -> None:
    for constant in (True, False):
        net = Net()
        x = net.input(1, 4, 3, 3)
        bias = net.const(net.random(5)) if constant else net.input(5, name="bias")
        net.out(net.op(Conv((1, 1), (0,) * 4), x, net.weight(5, 4, 1, 1), bias))
        data = {"x": net.random(1, 4, 3, 3), **({} if constant else {"bias": net.random(5)})}
        wanted = evaluate(net.graph, data)["y"]
        correction = net.rng.standard_normal(5)
        assert add_to_sums(net.graph, product(net.graph), correction)
        found = evaluate(net.graph, data)["y"]
        np.testing.assert_allclose(found, wanted + correction.reshape(5, 1, 1), atol=1e-5)


def test_no_room() -> None:
    """An epilogue that reads three tensors is given the weights' scales, and is full."""
    net = Net()
    graph, node = _epilogue(
        net, lambda y: net.op(Mul(), net.op(Mul(), net.op(Mul(), y, _column(net)), _image(net)),
                              net.input(1, 8, 3, 4, name="other"))
    )  # fmt: skip
    inputs = node.inputs
    assert len(inputs) == 5
    assert not add_to_sums(graph, node, np.ones(8))
    assert product(graph).inputs == inputs
    data = np.abs(net.random(1, 16, 3, 4))
    report = optimized(net, calibration(data, 1))
    assert notes(report)[0].endswith(
        "its bias is not corrected: its epilogue reads too much to take one in"
    )


def _behind_relus(rng: np.random.Generator) -> nrt.Network:
    """Six convolutions of 32 channels and ReLUs, whose weights reach far beyond most of them."""
    net = nrt.Network("behind relus")
    x = net.relu(net.input("image", (1, 32, 12, 12)))
    for k in range(6):
        w = rng.laplace(size=(32, 32, 3, 3)) / 17
        w[:, 0, 0, 0] = 1.0
        bias = rng.uniform(0, 1, 32).astype(np.float32)
        x = net.relu(net.conv2d(x, w.astype(np.float32), bias, padding=1, name=f"conv{k}"))
    net.output(x, "y")
    return net


@pytest.fixture
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NRT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("NRT_WORKERS", "1")


def _gain(target: str, build: Callable[..., Callable[[Array], Array]]) -> float:
    """Decibels that means are worth. One network: random weights differ by several."""
    rng = np.random.default_rng(11)
    net = _behind_relus(rng)
    shape = (8, 32, 12, 12)
    data, others = (2 + rng.standard_normal(shape).astype(np.float32) for _ in range(2))
    ranges = nrt.calibrate(net, data, method="mse", target=target)
    wanted = [evaluate(net.graph, {"image": x[None]})["y"] for x in others]
    noise = []
    for found in (ranges.without_channels(), ranges):
        run = build(net, precision="int8", calibration=found, layers={"*": "int8"})
        pairs = zip(others, wanted, strict=True)
        noise.append(sum(float(np.square(run(x[None]) - y).sum()) for x, y in pairs))
    return float(10 * np.log10(noise[0] / noise[1]))


@pytest.mark.usefixtures("_own_cache")
def test_a_network_gains() -> None:
    def build(net: nrt.Network, **options: Any) -> Callable[[Array], Array]:
        graph = optimize(net, **options).graph
        assert sum(n.inputs[0].dtype in BYTES for n in graph.nodes if isinstance(n.op, Conv)) == 6
        return lambda x: evaluate(graph, {"image": x})["y"]

    assert _gain("cpu", build) >= GAINED


@pytest.mark.gpu
@pytest.mark.usefixtures("_own_cache")
def test_a_network_gains_on_the_gpu() -> None:
    def build(net: nrt.Network, **options: Any) -> Callable[[Array], Array]:
        engine = nrt.compile(net, target="cuda", opt_level=0, **options)
        assert sum(layer.precision == "int8" for layer in engine.plan.layers) >= 6
        return lambda x: np.array(engine(x))

    assert _gain("cuda", build) >= GAINED
