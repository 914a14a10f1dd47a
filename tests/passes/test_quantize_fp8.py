"""quantize for fp8: as for int8, where the two differ, and where both are there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nrt
from nrt.build_target import missing_fp8
from nrt.builder import build, build_graph, optimize
from nrt.compiled import CompiledEngine
from nrt.cuda_kernels.device import device_for_arch
from nrt.cuda_kernels.registry import variants_for
from nrt.dtypes import FP8E4M3, FP16, FP32, INT8, UINT8
from nrt.errors import BuildError
from nrt.ir.evaluate import evaluate
from nrt.ir.ops import Add, Conv, MatMul, MaxPool, Quantize, Relu, Reshape
from nrt.lowering import lower
from nrt.passes.base import run_pipeline
from nrt.passes.fold_quantization import FoldQuantization
from nrt.passes.pipeline import PipelineOptions, pipeline
from nrt.passes.quantize import QuantizeLayers

from .quantized_nets import QuantizedNet, of_type, products
from .test_quantize import images, network, refused, sqnr

Array = np.ndarray[Any, np.dtype[Any]]

LEAST_SQNR = 20.0
"""Decibels between a calibrated network of ten layers and its floats. Three bits of mantissa round
with 31.5 dB; a product of two such operands has 28.5, and along the six layers of the longest path
that adds up to 20.7 at worst. A scale that is wrong leaves less than 10."""

Q_DQ_SQNR = 25.0
"""Decibels between a target and the reference of a model that rounds to fp8 itself. They differ
where sums, of which tensor cores keep some 14 bits, lie on two sides of a half: a few numbers in a
hundred, by a step of a tenth. Four layers leave about 30; a scale that is wrong less than 10."""


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NRT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("NRT_WORKERS", "1")


@pytest.fixture(scope="module")
def net() -> nrt.Network:
    return network(np.random.default_rng(7))


@pytest.fixture(scope="module")
def ranges(net: nrt.Network, tmp_path_factory: pytest.TempPathFactory) -> nrt.Calibration:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NRT_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        return nrt.calibrate(net, images(np.random.default_rng(), 8), target="cpu")


def test_layers_between_fp8_carry_fp8(net: nrt.Network, ranges: nrt.Calibration) -> None:
    report = optimize(net, precision={"fp8", "fp16"}, calibration=ranges)
    assert refused(report) == {
        "stem": "no fp8: fp8 kernels read input channels in runs of 16, it has 3",
        "depthwise": "no fp8: fp8 kernels read input channels in runs of 16, a group has 1",
        "head": "no fp8: it gives the network's result, whose rounding nothing averages",
    }
    found = {n.name: n for n in report.graph.nodes}
    assert (found["stem"].inputs[0].dtype, found["stem"].output.dtype) == (FP16, FP8E4M3)
    assert of_type(report.graph, MaxPool, FP8E4M3) == 1
    for name in ("wide.b", "same.b"):
        assert [v.dtype for v in found[name].inputs if len(v.shape) == 4] == [FP8E4M3] * 3
    assert (FP8E4M3, FP8E4M3) in products(report.graph)
    assert found["last"].output.dtype is FP16
    texts = {n.node: n.text for n in report.notes if n.pass_name == "select-precision"}
    assert texts["wide.b"] == "fp8: stores fp8e4m3"
    assert texts["last"] == "fp8: stores fp16"


def test_little_is_lost(
    net: nrt.Network, ranges: nrt.Calibration, rng: np.random.Generator
) -> None:
    batches = images(rng, 8)[:, None]
    wanted = np.stack([evaluate(net.graph, {"image": b})["scores"] for b in batches])
    engine = nrt.compile(net, target="cpu", precision="fp8", calibration=ranges, opt_level=0)
    assert sum(layer.precision == "fp8" for layer in engine.plan.layers) >= 6
    found = np.stack([np.array(engine(b)) for b in batches])
    assert sqnr(found, wanted) >= LEAST_SQNR


def test_int8_wins_unless_a_pattern_asks(
    net: nrt.Network, ranges: nrt.Calibration, rng: np.random.Generator
) -> None:
    """Layers of both types read one tensor; what a pool gives is not of both."""
    options: dict[str, Any] = {"precision": {"int8", "fp8", "fp32"}, "calibration": ranges}
    assert FP8E4M3 not in {v.dtype for v in optimize(net, **options).graph.values}
    report = optimize(net, **options, layers={"wide.down": "fp8", "same.a": "fp8"})
    found = {n.name: n for n in report.graph.nodes if isinstance(n.op, Conv)}
    kinds = {name: found[name].inputs[0].dtype for name in ("wide.a", "wide.down", "same.a")}
    assert kinds == {"wide.a": UINT8, "wide.down": FP8E4M3, "same.a": FP8E4M3}
    assert of_type(report.graph, MaxPool, UINT8) == 1
    data = {"image": images(rng, 1)}
    wanted = evaluate(net.graph, data)["scores"]
    assert sqnr(evaluate(report.graph, data)["scores"], wanted) >= LEAST_SQNR


def test_scales_are_those_of_the_largest_magnitude(
    net: nrt.Network, ranges: nrt.Calibration
) -> None:
    graph = net.graph.copy()
    narrow = nrt.Calibration(
        ranges.model, ranges.data, ranges.rules, ranges.samples,
        {n: r for n, r in ranges.items() if n in ("pool", "wide.relu")},
    )  # fmt: skip
    fused = run_pipeline(graph, pipeline(PipelineOptions())[:-6]).graph
    result = QuantizeLayers(narrow, frozenset({"fp8"})).run(fused)
    scales = {
        n.inputs[0].name: n.inputs[1].constant
        for n in result.graph.nodes
        if isinstance(n.op, Quantize)
    }
    assert scales["wide.relu"] == np.float32(ranges["wide.relu"].amax / 448)
    for node in result.graph.nodes:
        if node.name in ("wide.b",):
            weights = node.inputs[1].producer
            assert weights is not None
            q, s = (v.constant for v in weights.inputs)
            assert q is not None
            assert s is not None
            assert q.dtype == FP8E4M3.numpy
            assert (np.abs(q.astype(np.float32)).reshape(q.shape[0], -1).max(axis=1) == 448).all()
            assert s.shape == (q.shape[0], 1, 1, 1)


@pytest.mark.parametrize("call", [optimize, build])
def test_fp8_needs_ranges(call: Any, net: nrt.Network) -> None:
    options = {} if call is optimize else {"target": "cpu"}
    with pytest.raises(BuildError, match=r"fp8 needs ranges, .*give calibration="):
        call(net, precision={"fp8", "fp16"}, **options)


@pytest.mark.parametrize("dtype", [INT8, FP8E4M3], ids=str)
def test_a_quantized_model_has_ranges_of_its_own_type(dtype: Any) -> None:
    net = QuantizedNet()
    net.out(net.qconv(net.qdq(net.input(1, 16, 5, 5), 0.25, dtype=dtype), 16, dtype=dtype))
    phases = pipeline(PipelineOptions(frozenset({"fp8", "fp16"})))
    if dtype is INT8:
        with pytest.raises(BuildError, match="fp8 needs ranges"):
            run_pipeline(net.graph, phases)
    else:
        assert products(run_pipeline(net.graph, phases).graph) == [(FP8E4M3, FP32)]


@pytest.mark.parametrize("arch", ["sm_75", "sm_80", "sm_87", "sm_89"])
def test_a_gpu_that_multiplies_no_fp8(arch: str, net: nrt.Network, ranges: nrt.Calibration) -> None:
    with pytest.raises(BuildError) as error:
        build(net, target=f"cuda:{arch}", precision={"fp8", "fp16"}, calibration=ranges)
    assert str(error.value) == (
        f"precision: fp8: {arch} has no fast fp8 kernels, sm_90a has; permit int8 or fp16 instead"
    )


def test_int8_besides_is_what_such_a_gpu_takes(net: nrt.Network, ranges: nrt.Calibration) -> None:
    why = missing_fp8(device_for_arch("sm_80"))
    assert not missing_fp8(device_for_arch("sm_90"))
    assert not missing_fp8(None)
    options = PipelineOptions(
        frozenset({"int8", "fp8", "fp16"}), {"same.a": "fp8"}, calibration=ranges, no_fp8=why
    )
    report = run_pipeline(net.graph, pipeline(options), verify=True)
    assert refused(report)["same.a"] == f"no fp8: {why}"
    assert FP8E4M3 not in {v.dtype for v in report.graph.values}
    assert (UINT8, UINT8) in products(report.graph)


def test_a_quantized_model_on_such_a_gpu_computes_in_floats() -> None:
    net = QuantizedNet()
    net.out(net.qconv(net.qdq(net.input(1, 16, 5, 5), 0.25, dtype=FP8E4M3), 16, dtype=FP8E4M3))
    options = PipelineOptions(frozenset({"fp16"}), no_fp8="sm_80 has none")
    report = run_pipeline(net.graph, pipeline(options), verify=True)
    assert products(report.graph) == [(FP16, FP32)]
    assert FoldQuantization("sm_80 has none").no_fp8 == "sm_80 has none"


def test_every_layer_has_a_kernel_of_tensor_cores(
    net: nrt.Network, ranges: nrt.Calibration
) -> None:
    report = optimize(net, precision={"fp8", "fp16"}, calibration=ranges)
    device = device_for_arch("sm_90a")
    count = 0
    for task in lower(report.graph).tasks:
        able = {v.name for v, refusal in variants_for(task.problem, device) if refusal is None}
        assert able, task.name
        if isinstance(task.problem.op, Conv) and task.problem.inputs[0].dtype is FP8E4M3:
            assert "conv_wgmma" in able
            count += 1
    assert count == 6


@pytest.mark.slow
def test_the_whole_network_compiles_for_hopper(net: nrt.Network, ranges: nrt.Calibration) -> None:
    made = build(
        net, target="cuda:sm_90a", precision={"fp8", "fp16"}, calibration=ranges, opt_level=0
    )
    found = [layer.variant for layer in made.plan.layers if layer.precision == "fp8"]
    assert found == ["pool_nhwc", *["conv_wgmma"] * 6]


@pytest.mark.gpu
def test_on_the_gpu(net: nrt.Network, ranges: nrt.Calibration, rng: np.random.Generator) -> None:
    batches = images(rng, 8)[:, None]
    wanted = np.stack([evaluate(net.graph, {"image": b})["scores"] for b in batches])
    engine = nrt.compile(
        net, target="cuda", precision={"fp8", "fp16"}, calibration=ranges, opt_level=1, streams=1
    )
    assert sum(layer.precision == "fp8" for layer in engine.plan.layers) >= 6
    found = np.stack([np.array(engine(b)) for b in batches])
    assert sqnr(found, wanted) >= LEAST_SQNR


@pytest.mark.parametrize("target", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_q_and_dq(target: str) -> None:
    """Residual, pool and product of a model of fp8, against the reference of each of its nodes."""
    net = QuantizedNet()
    x = net.qdq(net.input(2, 16, 21, 19), 0.25, dtype=FP8E4M3)
    y = net.qdq(net.op(Relu(), net.qconv(x, 32, dtype=FP8E4M3)), 0.25, dtype=FP8E4M3)
    y = net.op(Relu(), net.op(Add(), net.qconv(y, 16, 1, dtype=FP8E4M3), x))
    y = net.qdq(y, 0.25, dtype=FP8E4M3)
    y = net.qdq(net.pool(net.op(Relu(), net.qconv(y, 32, dtype=FP8E4M3))), 0.5, dtype=FP8E4M3)
    y = net.op(Reshape((2, 10 * 9 * 32)), y)
    w = net.weights(10 * 9 * 32, 24, axis=1, dtype=FP8E4M3)
    net.out(net.q(net.op(MatMul(), y, w), 4.0, dtype=FP8E4M3))
    report = run_pipeline(net.graph, pipeline(PipelineOptions(frozenset({"fp16"}))), verify=True)
    assert products(report.graph) == [(FP8E4M3, FP8E4M3)] * 4
    engine = CompiledEngine(build_graph(report.graph, target=target, opt_level=1))
    data = 3 * net.random(2, 16, 21, 19)
    found = np.asarray(engine(data)).view(FP8E4M3.numpy).astype(np.float64)
    wanted = evaluate(net.graph, {"x": data})["y"].astype(np.float64)
    assert np.abs(wanted).max() < 448
    with np.errstate(divide="ignore"):  # on the CPU nothing differs
        assert sqnr(found, wanted) >= Q_DQ_SQNR
