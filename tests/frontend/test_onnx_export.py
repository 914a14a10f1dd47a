"""Whole graphs as ONNX: results, names, metadata, files."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import nrt
from nrt.builder import build
from nrt.dtypes import FP32
from nrt.frontend import Network, onnx_export
from nrt.frontend.onnx_export import to_onnx
from nrt.frontend.onnx_model import import_model
from nrt.ir.evaluate import evaluate
from nrt.ir.graph import Graph
from nrt.ir.op import Array
from nrt.ir.ops import Add, Neg, Relu
from nrt.passes.base import run_pipeline
from nrt.passes.pipeline import PipelineOptions, pipeline

from .build import ints, model, node, normal

TOLERANCE = 1e-5
HALF_TOLERANCE = 5e-3


def run_ort(proto: onnx.ModelProto | str, feeds: dict) -> dict[str, Array]:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    data = proto if isinstance(proto, str) else proto.SerializeToString()
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, feeds), strict=True))


def close(got: dict[str, Array], want: dict[str, Array], tolerance: float = TOLERANCE) -> None:
    assert list(got) == list(want)
    for name, array in want.items():
        np.testing.assert_allclose(got[name], array, rtol=tolerance, atol=tolerance, err_msg=name)


def metadata(proto: onnx.NodeProto | onnx.ModelProto) -> dict[str, str]:
    return {p.key: p.value for p in proto.metadata_props}


def small(*shape: int) -> np.ndarray:
    return normal(*shape) / np.float32(np.sqrt(np.prod(shape[1:]) or 1))


def cnn() -> onnx.ModelProto:
    """A residual block, a depthwise block, an inception join, a head."""
    tensors = {
        "w1": small(8, 3, 3, 3),
        "b1": normal(8),
        "w2": small(8, 8, 3, 3),
        "s": np.abs(normal(8)) + 1,
        "h": normal(8),
        "m": normal(8),
        "v": np.abs(normal(8)) + 1,
        "wd": small(8, 1, 3, 3),
        "wp": small(5, 8, 1, 1),
        "fc": small(11, 18),
        "fb": normal(11),
        "scales": np.asarray([1, 1, 2, 2], np.float32),
        "starts": ints(1, 1),
        "ends": ints(1000, -1),
        "axes": ints(2, 3),
    }
    same = {"pads": [1, 1, 1, 1]}
    nodes = [
        node("Conv", ["x", "w1", "b1"], ["c1"], name="stem", strides=[2, 2], **same),
        node("Relu", ["c1"], ["r1"], name="stem/relu"),
        node("Conv", ["r1", "w2"], ["c2"], name="block/conv", **same),
        node("BatchNormalization", ["c2", "s", "h", "m", "v"], ["n2"], name="block/norm"),
        node("Add", ["n2", "r1"], ["a2"], name="block/add"),
        node("Relu", ["a2"], ["r2"], name="block/relu"),
        node("Conv", ["r2", "wd"], ["d"], name="depthwise", group=8, **same),
        node("HardSwish", ["d"], ["dh"], name="hard-swish"),
        node("Conv", ["dh", "wp"], ["p"], name="pointwise"),
        node("Sigmoid", ["p"], ["ps"], name="silu/sigmoid"),
        node("Mul", ["p", "ps"], ["pm"], name="silu"),
        node("MaxPool", ["r2"], ["mp"], name="pool", kernel_shape=[3, 3], **same),
        node("AveragePool", ["pm"], ["ap"], name="avg", kernel_shape=[3, 3], **same),
        node("Concat", ["pm", "mp", "ap"], ["j"], name="join", axis=1),
        node("Resize", ["j", "", "scales"], ["up"], name="up", mode="linear"),
        node("Slice", ["up", "starts", "ends", "axes"], ["cut"], name="cut"),
        node("GlobalAveragePool", ["cut"], ["g"], name="global"),
        node("Flatten", ["g"], ["f"], name="flat"),
        node("Gemm", ["f", "fc", "fb"], ["logits"], name="head", transB=1),
        node("Softmax", ["logits"], ["probabilities"], name="softmax", axis=-1),
    ]
    return model(nodes, {"x": (2, 3, 17, 19)}, ["probabilities", "logits"], tensors)


def attention() -> onnx.ModelProto:
    """One transformer layer: layer norm, two heads, a residual, GELU."""
    tensors = {
        "g": np.abs(normal(12)) + 1,
        "b": normal(12),
        **{name: small(12, 12) for name in ("q", "k", "v", "o")},
        "shape": ints(2, 7, 2, 6),
        "flat": ints(2, 7, 12),
        "scale": np.asarray(6**-0.5, np.float32),
        "up": small(12, 20),
        "ub": normal(20),
    }
    nodes = [node("LayerNormalization", ["x", "g", "b"], ["n"], name="ln", axis=-1)]
    for name in ("q", "k", "v"):
        perm = [0, 2, 3, 1] if name == "k" else [0, 2, 1, 3]
        nodes += [
            node("MatMul", ["n", name], [f"{name}1"], name=f"{name}/proj"),
            node("Reshape", [f"{name}1", "shape"], [f"{name}2"], name=f"{name}/split"),
            node("Transpose", [f"{name}2"], [f"{name}3"], name=f"{name}/heads", perm=perm),
        ]
    nodes += [
        node("MatMul", ["q3", "k3"], ["qk"], name="scores"),
        node("Mul", ["qk", "scale"], ["sc"], name="scale"),
        node("Add", ["sc", "mask"], ["ma"], name="mask"),
        node("Softmax", ["ma"], ["at"], name="softmax", axis=-1),
        node("MatMul", ["at", "v3"], ["av"], name="values"),
        node("Transpose", ["av"], ["at2"], name="merge", perm=[0, 2, 1, 3]),
        node("Reshape", ["at2", "flat"], ["m"], name="merge/flat"),
        node("MatMul", ["m", "o"], ["ao"], name="out"),
        node("Add", ["ao", "x"], ["res"], name="residual"),
        node("MatMul", ["res", "up"], ["u"], name="up"),
        node("Add", ["u", "ub"], ["u2"], name="up/bias"),
        node("Gelu", ["u2"], ["y"], name="gelu"),
    ]
    inputs = {"x": (2, 7, 12), "mask": (2, 1, 1, 7)}
    return model(nodes, inputs, ["y", "at"], tensors, opset=20)


def feeds_of(graph: Graph) -> dict[str, Array]:
    return {v.name: normal(*v.shape).astype(v.dtype.numpy) for v in graph.inputs}


@pytest.mark.parametrize("make", [cnn, attention])
@pytest.mark.parametrize("channels_last", [False, True])
def test_imported_and_optimized_models_give_their_results(make, channels_last: bool) -> None:
    proto = make()
    proto.ir_version = 9
    graph = import_model(proto)
    options = PipelineOptions(channels_last=channels_last)
    optimized = run_pipeline(graph, pipeline(options), verify=True).graph
    feeds = feeds_of(graph)
    want = run_ort(proto, feeds)
    for source in (graph, optimized):
        exported = to_onnx(source)
        onnx.checker.check_model(exported, full_check=True)
        close(run_ort(exported, feeds), want)
        back = import_model(exported)
        close(evaluate(back, feeds), want)
        close(evaluate(run_pipeline(back, pipeline()).graph, feeds), want)
        assert [v.name for v in back.inputs] == [v.name for v in graph.inputs]
        names = [n.name for n in exported.graph.node]
        assert len(set(names)) == len(names)
        assert {n.name for n in source.nodes} <= set(names)


@pytest.mark.parametrize("precision", ["fp16", "tf32"])
def test_lower_precisions(precision: str) -> None:
    proto = cnn()
    graph = import_model(proto)
    options = PipelineOptions(precision=frozenset({precision, "fp32"}))
    optimized = run_pipeline(graph, pipeline(options), verify=True).graph
    exported = to_onnx(optimized)
    onnx.checker.check_model(exported, full_check=True)
    feeds = feeds_of(optimized)
    tolerance = HALF_TOLERANCE if precision == "fp16" else TOLERANCE
    close(run_ort(exported, feeds), evaluate(optimized, feeds), tolerance)
    assert precision in {metadata(n)["nrt.precision"] for n in exported.graph.node}


def test_metadata_says_what_became_of_a_layer() -> None:
    graph = run_pipeline(import_model(cnn()), pipeline()).graph
    exported = to_onnx(graph)
    steps = [n for n in exported.graph.node if metadata(n)["nrt.node"] == "block/conv"]
    assert [n.op_type for n in steps] == ["Conv", "Add", "Add", "Max"]
    assert [n.name for n in steps][-1] == "block/conv"
    found = metadata(steps[-1])
    assert json.loads(found["nrt.origins"]) == list(graph.node("block/conv").origin)
    assert "block/relu" in json.loads(found["nrt.origins"])
    assert found["nrt.op"].startswith("Conv[add(x0, ")
    assert found["nrt.precision"] == "fp32"
    assert found["nrt.layout"] == "0 2 3 1"
    assert "nrt.variant" not in found
    assert exported.producer_name == "nrt"
    assert [(o.domain, o.version) for o in exported.opset_import] == [("", 21)]


def test_a_build_brings_the_kernels_of_its_plan(tmp_path: Path) -> None:
    proto = cnn()
    cache = tmp_path / "timings.json"
    built = build(proto, target="cpu", opt_level=0, timing_cache=cache)
    exported = nrt.to_onnx(built)
    feeds = feeds_of(built.graph)
    close(run_ort(exported, feeds), run_ort(proto, feeds))
    layer = next(la for la in built.plan.layers if la.name == "block/conv")
    by_name = {n.name: metadata(n) for n in exported.graph.node}
    assert by_name["block/conv"]["nrt.variant"] == layer.variant
    assert by_name["block/conv"]["nrt.config"] == layer.config
    assert "nrt.seconds" not in by_name["block/conv"]
    assert "nrt.variant" not in by_name["block/conv/Conv"]
    assert metadata(exported)["nrt.target"].startswith("cpu ")
    timed = dataclasses.replace(
        built.plan,
        layers=tuple(
            dataclasses.replace(la, seconds=2e-6)
            for la in (*built.plan.layers, dataclasses.replace(layer, name="block/conv#1"))
        ),
    )
    exported = to_onnx(built.graph, plan=timed)
    found = {n.name: metadata(n) for n in exported.graph.node}["block/conv"]
    assert found["nrt.seconds"] == "4e-06"
    assert found["nrt.variant"] == f"{layer.variant}; {layer.variant}"


def test_names_are_kept_and_made_unique() -> None:
    graph = Graph("names")
    x = graph.add_input("x", (3,), FP32)
    c = graph.add_constant("out", normal(3))
    first = graph.add_node(Neg(), [x], name="n", output_names=["other"]).output
    second = graph.add_node(Add(), [first, c], name="x", output_names=["n"]).output
    for name, value in {"out": second, "again": second, "c": c, "x": x, "x2": x}.items():
        graph.set_output(name, value)
    exported = to_onnx(graph)
    onnx.checker.check_model(exported, full_check=True)
    assert [o.name for o in exported.graph.output] == ["out", "again", "c", "x", "x2"]
    assert [i.name for i in exported.graph.initializer] == ["out.1"]
    feeds = {"x": normal(3)}
    close(run_ort(exported, feeds), evaluate(graph, feeds))


def test_a_network_and_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = Network("net")
    x = net.input("x", (2, 5))
    net.output(net.relu(x), "y")
    path = tmp_path / "net.onnx"
    exported = to_onnx(net, path)
    assert onnx.load(path) == exported
    graph = Graph("big")
    value = graph.add_input("x", (300,), FP32)
    weights = graph.add_constant("w", normal(300))
    graph.set_output(
        "y", graph.add_node(Relu(), [graph.add_node(Add(), [value, weights]).output]).output
    )
    monkeypatch.setattr(onnx_export, "LARGEST_FILE", 100)
    path = tmp_path / "big.onnx"
    exported = to_onnx(graph, str(path))
    assert (tmp_path / "big.onnx.data").stat().st_size >= 1200
    assert exported.graph.initializer[0].raw_data == weights.constant.tobytes()
    feeds = {"x": normal(300)}
    close(run_ort(str(path), feeds), evaluate(graph, feeds))
