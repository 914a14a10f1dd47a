"""quantize: which layers compute in int8, why others do not, and how much is lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nrt
from nrt.build_target import reads_few_channels
from nrt.builder import build, build_graph, optimize
from nrt.compiled import CompiledEngine
from nrt.cuda_kernels.device import device_for_arch
from nrt.cuda_kernels.registry import variants_for
from nrt.dtypes import FP16, FP32, INT8, UINT8
from nrt.errors import BuildError, CalibrationError
from nrt.ir.evaluate import evaluate
from nrt.ir.ops import Add, Concat, Conv, MaxPool, Pointwise, Relu
from nrt.ir.value import NHWC
from nrt.lowering import lower
from nrt.passes.base import PipelineReport, run_pipeline
from nrt.passes.pipeline import PipelineOptions, pipeline

from .quantized_nets import QuantizedNet, of_type, products

Array = np.ndarray[Any, np.dtype[Any]]

LEAST_SQNR = 30.0
"""Decibels between a calibrated network of ten layers and its floats."""

RANDOM_SQNR = 20.0
"""The same for a few layers of fresh random weights, of which some cancel; a scale that is wrong
leaves less than 10."""


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NRT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("NRT_WORKERS", "1")


def network(rng: np.random.Generator, channels: int = 32) -> nrt.Network:
    """A stem, pooling, a block with a projection, one without, a depthwise layer, a classifier."""

    def weights(*shape: int) -> Array:
        scale = np.sqrt(2 / np.prod(shape[1:]))
        return (rng.standard_normal(shape) * scale).astype(np.float32)

    def conv(x: Any, out: int, size: int = 3, *, name: str, **options: Any) -> Any:
        inner = x.shape[1] // options.get("groups", 1)
        bias = (0.2 * rng.standard_normal(out)).astype(np.float32)
        kernel = weights(out, inner, size, size)
        return net.conv2d(x, kernel, bias, padding=size // 2, name=name, **options)

    net = nrt.Network("small")
    x = net.relu(conv(net.input("image", (1, 3, 19, 21)), 16, 5, name="stem"), name="stem.relu")
    x = net.max_pool2d(x, 2, name="pool")
    for name, out in (("wide", channels), ("same", channels)):
        y = net.relu(conv(x, out, name=f"{name}.a"), name=f"{name}.relu")
        y = conv(y, out, name=f"{name}.b")
        skip = x if x.shape[1] == out else conv(x, out, 1, name=f"{name}.down")
        x = net.relu(net.add(y, skip, name=f"{name}.sum"), name=f"{name}.out")
    x = net.relu(conv(x, channels, name="depthwise", groups=channels), name="depthwise.relu")
    x = net.relu(conv(x, 24, 1, name="last"), name="last.relu")
    x = net.global_avg_pool(x, name="mean")
    x = net.flatten(x, name="flat")
    net.output(net.linear(x, weights(10, 24), np.zeros(10, np.float32), name="head"), "scores")
    return net


def images(rng: np.random.Generator, count: int) -> Array:
    return rng.standard_normal((count, 3, 19, 21)).astype(np.float32)


@pytest.fixture
def net(rng: np.random.Generator) -> nrt.Network:
    return network(rng)


@pytest.fixture
def ranges(net: nrt.Network, rng: np.random.Generator) -> nrt.Calibration:
    return nrt.calibrate(net, images(rng, 8), target="cpu", method="minmax")


def refused(report: PipelineReport) -> dict[str, str]:
    return {
        n.node: n.text for n in report.notes if n.pass_name == "quantize" and n.kind == "refused"
    }


def sqnr(found: Array, wanted: Array) -> float:
    signal = np.square(wanted.astype(np.float64)).sum()
    return float(10 * np.log10(signal / np.square(found.astype(np.float64) - wanted).sum()))


def test_layers_between_int8_carry_int8(net: nrt.Network, ranges: nrt.Calibration) -> None:
    report = optimize(net, precision={"int8", "fp16"}, calibration=ranges)
    assert refused(report) == {
        "stem": "no int8: int8 kernels read input channels in runs of 8, it has 3",
        "head": "no int8: it gives the network's result, whose rounding nothing averages",
    }
    found = {n.name: n for n in report.graph.nodes}
    # The stem stores int8 for the pooling, which keeps it; the sums read residuals of int8.
    assert (found["stem"].inputs[0].dtype, found["stem"].output.dtype) == (FP16, UINT8)
    assert of_type(report.graph, MaxPool, UINT8) == 1
    # What a ReLU gives is uint8; a projection has both signs.
    for name, residual in (("wide.b", INT8), ("same.b", UINT8)):
        types = [v.dtype for v in found[name].inputs if len(v.shape) == 4]
        assert types == [UINT8, INT8, residual]
        assert len(found[name].inputs) == 5
    assert found["depthwise"].inputs[0].dtype is found["depthwise"].output.dtype is UINT8
    assert (UINT8, UINT8) in products(report.graph)
    assert products(report.graph)[-1] == (UINT8, FP16)
    pointwise = [n for n in report.graph.nodes if isinstance(n.op, Pointwise)]
    assert {n.inputs[0].dtype for n in pointwise} <= {INT8, UINT8}


@pytest.mark.parametrize("method", ["kl", "mse", "minmax", "percentile"])
def test_little_is_lost(rng: np.random.Generator, method: str) -> None:
    # One network, on fresh images: how well random weights can be quantized varies by 15 dB.
    net = network(np.random.default_rng(7))
    data, batches = images(rng, 16), images(rng, 8)[:, None]
    ranges = nrt.calibrate(net, data, target="cpu", method=method)
    wanted = np.stack([evaluate(net.graph, {"image": b})["scores"] for b in batches])
    engine = nrt.compile(net, target="cpu", precision="int8", calibration=ranges, opt_level=0)
    assert sum(layer.precision == "int8" for layer in engine.plan.layers) >= 6
    found = np.stack([np.array(engine(b)) for b in batches])
    assert sqnr(found, wanted) >= LEAST_SQNR


def test_a_skip_over_a_pooling_is_stored_once(rng: np.random.Generator) -> None:
    """As in a U-Net: what is pooled is joined later, and both read the same bytes."""

    def conv(x: Any, out: int, name: str) -> Any:
        w = (rng.standard_normal((out, x.shape[1], 3, 3)) / 12).astype(np.float32)
        return net.relu(net.conv2d(x, w, padding=1, name=name), name=f"{name}.relu")

    net = nrt.Network("u")
    x = conv(net.input("image", (1, 16, 12, 10)), 16, "down")
    y = conv(net.max_pool2d(x, 2, name="pool"), 32, "middle")
    up = (rng.standard_normal((32, 16, 2, 2)) / 6).astype(np.float32)
    y = net.conv_transpose2d(y, up, stride=2, name="up")
    net.output(conv(conv(net.concat([x, y], axis=1, name="join"), 16, "last"), 3, "head"), "y")
    data = rng.standard_normal((16, 16, 12, 10)).astype(np.float32)
    ranges = nrt.calibrate(net, data, target="cpu", method="minmax")
    report = optimize(net, precision={"int8", "fp16"}, calibration=ranges)
    found = {n.name: [v.dtype for v in n.outputs] for n in report.graph.nodes}
    assert found["down"] in ([UINT8], [UINT8, INT8])
    assert of_type(report.graph, MaxPool, UINT8) == of_type(report.graph, Concat, INT8) == 1
    # Where the skip's scale is not that of the Concat, its bytes are brought to it, as the
    # convolution's second result.
    steps = [n for n in report.graph.nodes if isinstance(n.op, Pointwise)]
    assert {(n.inputs[0].dtype, n.output.dtype) for n in steps[1:]} <= {(UINT8, INT8)}
    wanted = evaluate(net.graph, {"image": data[:1]})["y"]
    assert sqnr(evaluate(report.graph, {"image": data[:1]})["y"], wanted) >= RANDOM_SQNR


def test_a_file_of_ranges(net: nrt.Network, ranges: nrt.Calibration, tmp_path: Path) -> None:
    ranges.save(tmp_path / "ranges.json")
    by_file = optimize(net, precision="int8", calibration=tmp_path / "ranges.json")
    at_once = optimize(net, precision="int8", calibration=ranges)
    assert products(by_file.graph) == products(at_once.graph)


def test_patterns_narrow(net: nrt.Network, ranges: nrt.Calibration) -> None:
    layers = {"same.a": "fp16", "head": "int8", "wide.*": "fp32"}
    precision = {"int8", "fp16", "fp32"}
    report = optimize(net, precision=precision, calibration=ranges, layers=layers)
    found = {n.name: n for n in report.graph.nodes if isinstance(n.op, Conv)}
    assert found["same.a"].inputs[0].dtype is FP16
    assert found["wide.b"].inputs[0].dtype is FP32
    assert found["same.b"].inputs[0].dtype is UINT8
    reasons = refused(report)
    assert reasons["same.a"] == "fp16: asked for by pattern 'same.a'"
    # 24 features are no multiple of 16, whoever asks.
    assert reasons["head"].startswith("no int8: rows of (1, 24) times")


@pytest.mark.parametrize(("arch", "channels"), [("sm_75", 16), ("sm_80", 3), ("sm_90", 3)])
def test_the_first_layer_if_asked_for(
    net: nrt.Network, ranges: nrt.Calibration, arch: str, channels: int
) -> None:
    options = PipelineOptions(
        frozenset({"int8", "fp16"}),
        {"stem": "int8"},
        calibration=ranges,
        few_channels=reads_few_channels(device_for_arch(arch)),
    )
    report = run_pipeline(net.graph, pipeline(options))
    (stem,) = [n for n in report.graph.nodes if n.name == "stem"]
    assert [v.dtype for v in stem.inputs[:2]] == [INT8, INT8]
    assert stem.inputs[0].shape[1] == stem.inputs[1].shape[1] == channels
    # Three channels are read in the order in which they come, sixteen channels last.
    assert stem.inputs[0].layout == (NHWC if channels == 16 else None)
    image = images(np.random.default_rng(3), 1)
    wanted = evaluate(net.graph, {"image": image})["scores"]
    assert sqnr(evaluate(report.graph, {"image": image})["scores"], wanted) >= LEAST_SQNR


def test_the_last_layer_if_asked_for(rng: np.random.Generator) -> None:
    net = nrt.Network("product")
    x = net.input("x", (4, 32))
    weights = rng.standard_normal((10, 32)).astype(np.float32)
    net.output(net.linear(x, weights, name="head"), "y")
    data = rng.standard_normal((64, 32)).astype(np.float32)
    ranges = nrt.calibrate(net, data, target="cpu", method="minmax")
    assert products(optimize(net, precision="int8", calibration=ranges).graph) == [(FP32, FP32)]
    asked = optimize(net, precision="int8", calibration=ranges, layers={"head": "int8"})
    assert products(asked.graph) == [(INT8, FP32)]
    wanted = evaluate(net.graph, {"x": data[:4]})["y"]
    assert sqnr(evaluate(asked.graph, {"x": data[:4]})["y"], wanted) >= RANDOM_SQNR


def test_a_layer_without_a_range(net: nrt.Network, ranges: nrt.Calibration) -> None:
    left = {n: r for n, r in ranges.items() if n != "same.relu"}
    partial = nrt.Calibration(ranges.model, ranges.data, ranges.rules, ranges.samples, left)
    report = optimize(net, precision="int8", calibration=partial)
    assert refused(report)["same.b"] == (
        "no int8: the calibration has no range of its input 'same.relu'"
    )


@pytest.mark.parametrize("call", [optimize, build])
def test_int8_needs_ranges(call: Any, net: nrt.Network) -> None:
    options = {} if call is optimize else {"target": "cpu"}
    with pytest.raises(BuildError, match=r"int8 needs ranges, .*give calibration="):
        call(net, precision="int8", **options)


def test_a_quantized_model_has_its_ranges() -> None:
    net = QuantizedNet()
    net.out(net.qconv(net.qdq(net.input(1, 16, 5, 5), 0.25), 16))
    options = PipelineOptions(frozenset({"int8", "fp16"}))
    report = run_pipeline(net.graph, pipeline(options), verify=True)
    assert products(report.graph) == [(INT8, FP32)]


def test_ranges_of_another_model(ranges: nrt.Calibration, rng: np.random.Generator) -> None:
    with pytest.raises(CalibrationError, match="the calibration is of model"):
        optimize(network(rng), precision="int8", calibration=ranges)


def test_what_the_options_ask_for_cannot_be_left_out(
    net: nrt.Network, ranges: nrt.Calibration
) -> None:
    with pytest.raises(BuildError, match="pass 'quantize' cannot be left out"):
        optimize(net, precision="int8", calibration=ranges, disabled={"quantize"})


def test_ranges_without_int8_change_nothing(net: nrt.Network, ranges: nrt.Calibration) -> None:
    assert INT8 not in {v.dtype for v in optimize(net, calibration=ranges).graph.values}


@pytest.mark.parametrize("arch", ["sm_90a", "sm_80"])
def test_every_layer_has_a_fast_kernel(
    arch: str, net: nrt.Network, ranges: nrt.Calibration
) -> None:
    report = optimize(net, precision={"int8", "fp16"}, calibration=ranges)
    device = device_for_arch(arch)
    for task in lower(report.graph).tasks:
        able = {v.name for v, refusal in variants_for(task.problem, device) if refusal is None}
        assert able, task.name
        op = task.problem.op
        if isinstance(op, Conv) and op.groups > 1:
            assert "conv_depthwise_int8" in able
        elif isinstance(op, Conv) and task.problem.inputs[0].dtype is UINT8:
            assert "conv_mma" in able
            assert ("conv_wgmma" in able) == (arch == "sm_90a")


@pytest.mark.gpu
def test_on_the_gpu(rng: np.random.Generator) -> None:
    net = network(np.random.default_rng(7))
    ranges = nrt.calibrate(net, images(rng, 16), target="cuda", method="mse")
    batches = images(rng, 8)[:, None]
    wanted = np.stack([evaluate(net.graph, {"image": b})["scores"] for b in batches])
    for precision in ({"int8", "fp16"}, {"int8", "fp32"}):
        engine = nrt.compile(
            net, target="cuda", precision=precision, calibration=ranges, opt_level=1
        )
        assert sum(layer.precision == "int8" for layer in engine.plan.layers) >= 6
        found = np.stack([np.array(engine(b)) for b in batches])
        assert sqnr(found, wanted) >= LEAST_SQNR


@pytest.mark.gpu
@pytest.mark.parametrize("zero", [None, -7])
def test_q_and_dq_on_the_gpu(zero: int | None) -> None:
    """Scales are powers of two: the GPU's integers are the reference's, but for halves."""
    net = QuantizedNet()
    x = net.qdq(net.input(2, 16, 21, 19), 0.25, zero)
    y = net.qdq(net.op(Relu(), net.qconv(x, 32)), 0.25, zero)
    y = net.qdq(net.qconv(y, 16, 1), 0.5, zero)
    y = net.qdq(net.op(Relu(), net.op(Add(), y, x)), 0.25, zero)
    net.out(net.q(net.pool(net.op(Relu(), net.qconv(y, 32))), 0.5, zero))
    report = run_pipeline(net.graph, pipeline(PipelineOptions(frozenset({"fp16"}))), verify=True)
    assert products(report.graph) == [(INT8, INT8)] * 3
    engine = CompiledEngine(build_graph(report.graph, target="cuda", opt_level=1))
    data = 12 * net.random(2, 16, 21, 19)
    apart = np.abs(
        np.asarray(engine(data)).astype(np.int64) - evaluate(net.graph, {"x": data})["y"]
    )
    assert apart.max() <= 1
    assert (apart > 0).mean() <= 1e-3
