"""Networks whose products have two results, from the passes to every instrument.

What host kernels make of them is tested with the kernels: on the CPU each product is computed by
its reference here.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from passes.second_results import SecondResults

import nrt
from nrt import cpu_kernels
from nrt.builder import build_graph, optimize
from nrt.compiled import CompiledEngine
from nrt.cpu_kernels.copies import Copies
from nrt.cpu_kernels.histogram import Histogram
from nrt.cpu_kernels.pointwise import Pointwise
from nrt.cpu_kernels.reference import Reference
from nrt.dtypes import BYTES
from nrt.ir.evaluate import evaluate
from nrt.ir.op import Array
from nrt.trial import relative_error

RNG = np.random.default_rng()
TOLERANCE = {"fp32": 1e-5, "fp16": 5e-3, "int8": 1e-1}


@pytest.fixture(autouse=True)
def _references(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = (Copies(), Histogram(), Pointwise(), Reference())
    monkeypatch.setattr(cpu_kernels, "VARIANTS", kernels)
    monkeypatch.setenv("NRT_CACHE_DIR", str(tmp_path / "cache"))


def weights(*shape: int) -> Array:
    return (RNG.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


def network() -> nrt.Network:
    """Two convolutions with a residual, and a classifier, all with a second result."""
    net = nrt.Network("twofold")
    x = net.input("image", (2, 16, 7, 5))
    y = net.conv2d(x, weights(16, 16, 3, 3), weights(16), padding=1, name="first")
    z = net.conv2d(net.relu(y, name="relu"), weights(16, 16, 3, 3), padding=1, name="second")
    z = net.flatten(net.global_avg_pool(net.add(z, y, name="sum"), name="pool"), name="flat")
    z = net.linear(z, weights(11, 16), weights(11), name="head")
    net.output(z, "logits")
    net.output(net.softmax(z, name="softmax"), "shares")
    return net


def twofold(net: nrt.Network) -> nrt.Network:
    assert SecondResults().run(net.graph).changed
    return net


def image() -> Array:
    return RNG.standard_normal((2, 16, 7, 5)).astype(np.float32)


def built(precision: str, target: str = "cpu") -> tuple[CompiledEngine, dict[str, Array], Array]:
    """A network, what it is to give, and the input."""
    net, x = network(), image()
    wanted = evaluate(net.graph, {"image": x})
    if precision == "int8":
        # Layers with a second result are not quantized; quantized layers may be given one.
        ranges = nrt.calibrate(net, [x], target=target, method="minmax")
        names = frozenset({"int8", "fp16"})
        graph = optimize(net, precision=names, calibration=ranges).graph
        assert SecondResults().run(graph).changed
        assert any(n.inputs[0].dtype in BYTES for n in graph.nodes if len(n.outputs) == 2)
        return CompiledEngine(build_graph(graph, target=target, opt_level=0)), wanted, x
    engine = nrt.compile(
        twofold(net),
        precision={"fp32", precision},
        target=target,
        opt_level=0,
        snapshots=True,
    )
    return engine, wanted, x


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_what_is_built_loaded_and_exported_computes_the_network(
    precision: str, tmp_path: Path
) -> None:
    engine, wanted, x = built(precision)
    assert len(engine.build.graph.node("first").outputs) == 2
    path = tmp_path / "plan.nrt"
    engine.save(path)
    model = engine.to_onnx()
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    exported = dict(zip(wanted, session.run(list(wanted), {"image": x}), strict=True))
    runs = (engine.run({"image": x}), nrt.load(path).run({"image": x}), exported)
    for found in runs:
        for name, array in wanted.items():
            assert relative_error(np.asarray(found[name]), array) < TOLERANCE[precision]
    metadata = [{p.key: p.value for p in node.metadata_props} for node in model.graph.node]
    chosen = {m["nrt.variant"] for m in metadata if m["nrt.node"] == "first" and "nrt.variant" in m}
    assert chosen == {"cpu_reference"}


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_a_gpu_computes_the_network(precision: str) -> None:
    engine, wanted, x = built(precision, "cuda")
    assert any(len(layer.outputs) == 2 for layer in engine.plan.layers)
    found = engine.run({"image": x})
    for name, array in wanted.items():
        assert relative_error(np.asarray(found[name]), array) < TOLERANCE[precision]


def test_instruments_show_both_results() -> None:
    engine, _, x = built("fp16")
    (layer,) = (layer for layer in engine.plan.layers if layer.name == "first")
    assert layer.outputs == ("fp16[2,16,7,5]{nhwc}",) * 2
    (story,) = engine.explain("first").stories
    assert "second_dtype=fp16" in story.node
    (launch,) = story.launches
    assert launch.partition("writes ")[2].count("arena") == 2
    text = str(engine.explain("first"))
    results = 2 * 16 * 7 * 5
    flops = results * (16 * 9 * 2 + 2)
    moved = 2 * (results + 16 * 16 * 9 + 2 * results) + 4 * 16
    assert f"{flops:,} operations, {moved:,} bytes" in text
    profile = engine.profile(x)
    (timed,) = (layer for layer in profile.layers if layer.name == "first")
    assert (timed.flops, timed.nbytes) == (flops, moved)
    for picture in (engine.plan.to_svg(), engine.build.graph.to_svg(), profile.to_svg()):
        assert "first" in picture
    assert "first" in engine.diff()._repr_html_()


def test_a_layer_with_two_results_may_be_changed() -> None:
    engine, _, _ = built("fp32")
    found = engine.what_if({"first": {"precision": "fp16"}, "head": {"variant": "cpu_reference"}})
    assert "first: fp32 cpu_reference" in str(found)


def test_both_results_have_a_range() -> None:
    """Half of the second one is what the network without it has."""
    net, x = network(), image()
    wanted = evaluate(net.graph, {"image": x}, until=["first"])["first"]
    found = nrt.calibrate(twofold(net), [x], target="cpu", method="minmax")
    largest = float(np.abs(wanted).max())
    assert found["first.first"].amax == pytest.approx(largest, rel=1e-5)
    assert found["first.second"].amax == pytest.approx(2 * largest, rel=1e-5)


def test_errors_of_both_results() -> None:
    net = twofold(network())
    found = nrt.debug_precision(net, [image()], precision="fp16", target="cpu").found
    tensors = {layer.tensor: layer for layer in found.layers}
    assert {"first.first", "first.second"} <= set(tensors)
    for layer in (tensors["first.first"], tensors["first.second"]):
        assert layer.name == "first"
        assert 0 < layer.own.error < TOLERANCE["fp16"]
