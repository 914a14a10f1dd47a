"""The whole way: a network in, an engine out; targets, precisions, caches and errors."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import nrt
from nrt.builder import Build, build, build_graph, build_request, optimize
from nrt.compiled import CompiledEngine
from nrt.cpu_kernels import bind
from nrt.dtypes import FP32
from nrt.errors import BuildError, DeviceError, PassError, ShapeError
from nrt.frontend.network import Network
from nrt.ir.evaluate import evaluate
from nrt.passes.bind_io import IOFormat
from nrt.passes.pipeline import pass_names
from nrt.plan import LaunchStep
from nrt.plan_check import check_plan
from nrt.plan_file import plan_from_bytes, plan_to_bytes
from nrt.runtime import Engine
from nrt.timing_cache import TimingCache
from nrt.trial import relative_error

TOLERANCE = {"fp32": 1e-5, "fp16": 5e-3}


@pytest.fixture(autouse=True)
def cache_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NRT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("NRT_TARGET", raising=False)
    monkeypatch.setenv("NRT_WORKERS", "1")
    return tmp_path / "cache"


def network(dtype: str = "fp32") -> nrt.Network:
    """Convolutions, a residual, a concatenation, pooling and a linear layer."""
    rng = np.random.default_rng(secrets.randbits(32))

    def weights(*shape: int) -> Any:
        fan = int(np.prod(shape[1:]))
        return rng.standard_normal(shape, np.float32) / np.float32(np.sqrt(fan))

    net = nrt.Network("tiny")
    x = net.input("image", (2, 3, 13, 11), dtype)
    a = net.relu(net.conv2d(x, weights(8, 3, 3, 3), weights(8), padding=1, name="stem"))
    b = net.conv2d(a, weights(8, 8, 3, 3), weights(8), padding=1, name="body")
    c = net.relu(net.add(a, b, name="sum"))
    d = net.concat([c, net.conv2d(c, weights(16, 8, 1, 1), name="side")], axis=1)
    e = net.global_avg_pool(net.max_pool2d(d, 2))
    y = net.linear(net.flatten(e), weights(5, 24), weights(5), name="head")
    net.output(net.softmax(y), "scores")
    return net


def dense_network(layers: int = 2) -> nrt.Network:
    """Layers of a DenseNet block: a norm and a ReLU before each 1x1 convolution."""
    rng = np.random.default_rng(secrets.randbits(32))

    def weights(*shape: int) -> Any:
        return rng.standard_normal(shape, np.float32) / np.float32(np.sqrt(np.prod(shape[1:])))

    net = nrt.Network("dense")
    x = net.input("image", (2, 16, 9, 7))
    for _ in range(layers):
        channel = (x.shape[1], 1, 1)
        scale, shift = weights(*channel), weights(*channel)
        y = net.relu(net.add(net.mul(x, scale), shift))
        y = net.relu(net.conv2d(y, weights(24, x.shape[1], 1, 1), weights(24)))
        x = net.concat([x, net.conv2d(y, weights(8, 24, 3, 3), padding=1)], axis=1)
    net.output(x, "scores")
    return net


def image(net: nrt.Network) -> Any:
    (value,) = net.graph.inputs
    data = np.random.default_rng(secrets.randbits(32)).standard_normal(value.shape)
    return data.astype(value.dtype.numpy)


def open_model() -> onnx.ModelProto:
    """Relu of an input with an open batch."""
    shape = ["N", 5]
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"], "act")],
        "open",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


# -- on the CPU ------------------------------------------------------------------------------------


@pytest.mark.parametrize("opt_level", [0, 1])
def test_an_engine_computes_the_network(opt_level: int) -> None:
    net = network()
    engine = nrt.compile(net, target="cpu", opt_level=opt_level)
    x = image(net)
    wanted = evaluate(net.graph, {"image": x})["scores"]
    assert relative_error(engine(x), wanted) <= TOLERANCE["fp32"]
    assert relative_error(engine.run({"image": x})["scores"], wanted) <= TOLERANCE["fp32"]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_prologues_are_computed(precision: str) -> None:
    net = dense_network()
    built = build(net, target="cpu", precision=precision, opt_level=0)
    assert not any(layer.op.startswith("Pointwise") for layer in built.plan.layers)
    engine = Engine(built.plan, bind)
    x = image(net)
    wanted = evaluate(net.graph, {"image": x})["scores"]
    assert relative_error(engine(x), wanted) <= TOLERANCE[precision]


def test_half_precision_computes_the_network() -> None:
    net = network()
    engine = nrt.compile(net, target="cpu", precision="fp16", opt_level=0)
    assert {layer.precision for layer in engine.plan.layers} >= {"fp16"}
    x = image(net)
    wanted = evaluate(net.graph, {"image": x})["scores"]
    assert relative_error(engine(x), wanted) <= TOLERANCE["fp16"]


def test_a_request_makes_the_same_plan_again(tmp_path: Path) -> None:
    asked = {"x": IOFormat("fp16")}
    options: dict[str, Any] = {
        "precision": ["fp16", "fp32"],
        "layers": {"act": "fp32"},
        "io": asked,
        "disabled": ["fold-pad"],
        "timing_cache": tmp_path / "times.json",
    }
    shapes = {"x": (3, 5)}
    made = build(open_model(), shapes=shapes, target="cpu", opt_level=0, **options)
    again = build_request(made.request)
    assert plan_to_bytes(again.plan) == plan_to_bytes(made.plan)
    assert again.request == made.request
    assert made.request.precision == {"fp16", "fp32"}
    assert made.request.disabled == {"fold-pad"}
    assert made.request.graph.value("x").dtype is FP32, "the imported graph stays as it was"
    assert made.plan.inputs[0].dtype == "fp16"


def test_passes_can_be_left_out() -> None:
    net = network()
    x = image(net)
    wanted = evaluate(net.graph, {"image": x})["scores"]
    usual = build(net, target="cpu", opt_level=0)
    fused = build(net, target="cpu", opt_level=0, disabled="fuse-conv-epilogue")
    bare = build(net, target="cpu", opt_level=0, disabled=pass_names())
    assert len(usual.plan.layers) < len(fused.plan.layers) < len(bare.plan.layers)
    for made in (fused, bare):
        assert relative_error(Engine(made.plan, bind)(x), wanted) <= TOLERANCE["fp32"]
    assert bare.passes.records == ()
    report = optimize(net, disabled=pass_names())
    assert [n.op.name for n in report.graph.nodes] == [n.op.name for n in net.graph.nodes]
    with pytest.raises(BuildError, match="pass 'bind-io' cannot be left out: io= asks for forma"):
        build(net, target="cpu", io={"image": IOFormat("fp16")}, disabled=["bind-io"])
    with pytest.raises(BuildError, match="pass 'fuse' is unknown"):
        nrt.compile(net, target="cpu", disabled=["fuse"])


def test_a_saved_plan_gives_the_same_bits(tmp_path: Path) -> None:
    net = network()
    engine = nrt.compile(net, target="cpu", opt_level=0)
    engine.save(tmp_path / "net.plan")
    x = image(net)
    assert nrt.load(tmp_path / "net.plan")(x).tobytes() == engine(x).tobytes()


def test_one_timing_cache_gives_one_plan(tmp_path: Path) -> None:
    net = network()
    first, second = (
        build(net, target="cpu", opt_level=1, timing_cache=tmp_path / "times.json")
        for _ in range(2)
    )
    assert plan_to_bytes(first.plan) == plan_to_bytes(second.plan)
    assert all(layer.seconds for layer in first.plan.layers)


def test_a_fusion_with_a_choice_is_decided_and_reported(tmp_path: Path) -> None:
    """The classifier behind the pooling: whichever is faster here, and the same once more."""
    net = network()
    first, second = (
        build(net, target="cpu", opt_level=1, timing_cache=tmp_path / "times.json")
        for _ in range(2)
    )
    (note,) = [n for n in first.passes.notes if " against " in n.text]
    assert note.pass_name == "fuse-pool-classifier"
    assert "head" in note.origin
    fused = note.kind == "fired"
    assert note.text.startswith("fused: " if fused else "left apart: ")
    assert any("PooledMatMul" in layer.op for layer in first.plan.layers) == fused
    assert first.plan.notes["fusion"].startswith(f"fuse-pool-classifier: {int(fused)} of 1 fused")
    assert second.plan.notes == first.plan.notes
    assert sum(first.plan.ops_after.values()) == len(first.graph)


def test_times_are_kept_under_the_cache_folder(cache_dir: Path) -> None:
    build(open_model(), shapes={"x": (3, 5)}, target="cpu", opt_level=1)
    assert (cache_dir / "timings-cpu.json").exists()


def test_level_0_measures_nothing(cache_dir: Path) -> None:
    plan = build(network(), target="cpu", opt_level=0).plan
    assert {layer.seconds for layer in plan.layers} == {None}
    assert not cache_dir.exists()


def test_a_build_tells_how_it_came_about() -> None:
    net = network()
    before = sorted(n.op.name for n in net.graph.nodes)
    built = build(net, target="cpu", opt_level=0)
    assert isinstance(built, Build)
    plan = built.plan
    assert (plan.name, plan.target.kind) == ("tiny", "cpu")
    assert plan.ops_before["Conv"] == 3
    assert sum(plan.ops_before.values()) == len(before)
    assert sum(plan.ops_after.values()) == len(built.graph)
    assert {"numpy", "numba"} <= set(plan.versions)
    assert set(built.choices) == {layer.name for layer in plan.layers}
    choice = next(iter(built.choices.values()))
    assert choice.candidates
    # The caller's network is as it was, and can be built again.
    assert sorted(n.op.name for n in net.graph.nodes) == before
    assert plan_to_bytes(build(net, target="cpu", opt_level=0).plan) == plan_to_bytes(plan)


def test_stages_of_a_build_are_compared() -> None:
    net = network()
    built = build(net, target="cpu", opt_level=0, snapshots=True)
    diff = built.diff()
    assert (diff.before, diff.after) == ("imported", "final")
    assert sum(len(c.before) for c in diff.changes) == len(net.graph)
    assert sum(len(c.after) for c in diff.changes) == len(built.graph)
    fused = built.diff(after="fuse-conv-epilogue").of_kind("replaced")
    assert any(c.ops_before == ("Conv", "Relu") and c.ops_after == ("Conv",) for c in fused)
    with pytest.raises(
        PassError, match=r"there is no stage 'optimized'; stages: imported, .*final"
    ):
        built.diff(after="optimized")
    with pytest.raises(PassError, match="kept no snapshots of the graph; build with snapshots=T"):
        build(net, target="cpu", opt_level=0).diff()


def test_progress_is_called_from_nothing_to_all() -> None:
    calls: list[tuple[str, int, int]] = []
    build(
        network(), target="cpu", opt_level=0,
        progress=lambda stage, done, total: calls.append((stage, done, total)),
    )  # fmt: skip
    done = [d for stage, d, _ in calls if stage == "tune"]
    totals = {t for stage, _, t in calls if stage == "tune"}
    assert len(totals) == 1
    assert done == list(range(totals.pop() + 1))


def test_open_dimensions_are_given_by_shapes() -> None:
    engine = nrt.compile(open_model(), shapes={"x": (3, 5)}, target="cpu", opt_level=0)
    assert engine.inputs[0].shape == (3, 5)
    x = np.random.default_rng().standard_normal((3, 5)).astype(np.float32)
    np.testing.assert_array_equal(engine(x), np.maximum(x, 0))


# -- errors ----------------------------------------------------------------------------------------


def test_shapes_of_a_network_are_an_error() -> None:
    with pytest.raises(BuildError, match="shapes= is for ONNX models with open dimensions; a Netw"):
        build(network(), shapes={"image": (1, 3, 8, 8)}, target="cpu")


@pytest.mark.parametrize("target", ["gpu", "cpu:x86", "cudax", "", "CPU"])
def test_unknown_targets(target: str) -> None:
    with pytest.raises(
        BuildError, match=f"^target {target!r}: expected auto, cpu, cuda or cuda:ARCH$"
    ):
        build(network(), target=target)


def test_an_unknown_target_in_the_environment_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NRT_TARGET", "tpu")
    with pytest.raises(BuildError, match=r"^NRT_TARGET='tpu': expected auto, cpu, cuda or"):
        build(network())
    monkeypatch.setenv("NRT_TARGET", "cpu")
    assert build(network(), opt_level=0).plan.target.kind == "cpu"


def test_unknown_architectures_list_those_that_are() -> None:
    with pytest.raises(BuildError, match=r"architecture 'sm_10' is unknown; .*sm_75, .*sm_90a"):
        build(network(), target="cuda:sm_10")


def test_cuda_without_a_gpu_names_the_doctor() -> None:
    code = (
        "import nrt, numpy as np\n"
        "net = nrt.Network('n')\n"
        "net.output(net.relu(net.input('x', (3,))))\n"
        "try:\n"
        "    nrt.compile(net, target='cuda')\n"
        "except nrt.DeviceError as error:\n"
        "    print(error)\n"
        "print(nrt.compile(net, target='auto', opt_level=0).plan.target.kind)\n"
    )
    hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=hidden
    )
    message, kind = done.stdout.strip().rsplit("\n", 1)
    assert "nrt doctor" in message
    assert kind == "cpu"
    assert issubclass(DeviceError, nrt.NrtError)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "fp12"}, "precision 'fp12' is unknown"),
        ({"precision": ["fp32", "half"]}, "precision 'half' is unknown"),
        ({"precision": []}, "precision: the set is empty"),
        ({"precision": "int8"}, "int8 needs ranges, and the model has no such layer"),
        ({"precision": "fp16", "layers": {"stem": "fp32"}}, "layer pattern 'stem': fp32 is not"),
        ({"precision": {"fp16", "fp32"}, "layers": {"stme": "fp32"}}, "'stme' matches none of the"),
        ({"opt_level": 6}, "opt_level=6: expected a whole number from 0 to 5"),
        ({"opt_level": -1}, "opt_level=-1"),
    ],
)
def test_impossible_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(BuildError, match=message):
        build(network(), target="cpu", **options)


def test_an_open_dimension_without_a_shape_is_an_error() -> None:
    with pytest.raises(nrt.NrtError, match=r"'x'.*shapes"):
        build(open_model(), target="cpu")


def test_a_layer_that_does_not_fit_is_named() -> None:
    net = nrt.Network("n")
    x = net.input("x", (1, 3, 8, 8))
    with pytest.raises(ShapeError, match=r"Conv 'layer1\.conv': input has 3 channels, weights exp"):
        net.conv2d(x, np.zeros((4, 5, 3, 3), np.float32), name="layer1.conv")


def test_a_layer_without_a_kernel_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nrt.tuner_cpu.variants_for", lambda problem: [])
    net = nrt.Network("n")
    net.output(net.relu(net.input("x", (3,)), name="layer1.act"))
    with pytest.raises(BuildError, match=r"no kernel solves layer 'layer1\.act', "):
        build(net, target="cpu")


def test_a_damaged_timing_cache_is_named(tmp_path: Path) -> None:
    path = tmp_path / "times.json"
    path.write_text("{")
    with pytest.raises(BuildError, match=r"timing cache .*times\.json: .*delete it"):
        build(network(), target="cpu", timing_cache=path)


# -- for a GPU that is not here --------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arch", "saved"),
    [("sm_75", "fp32"), ("sm_89", "fp16"), ("sm_90", "fp16")],
)
def test_a_plan_for_another_gpu_is_built_offline(
    arch: str, saved: str | None, tmp_path: Path
) -> None:
    built = build(network(), target=f"cuda:{arch}", precision="fp16", opt_level=0)
    plan = built.plan
    check_plan(plan)
    assert plan.target.kind == "cuda"
    assert plan.target.arch == ("sm_90a" if arch == "sm_90" else arch)
    assert all(isinstance(step, LaunchStep) for step in plan.steps)
    assert {step.layer for step in plan.steps} == set(range(len(plan.layers)))  # type: ignore[union-attr]
    assert all(code.startswith(b"\x7fELF") for code in plan.cubins)
    assert "fp16" in {layer.precision for layer in plan.layers}
    assert not any("reference" in layer.reason for layer in plan.layers)
    # Other weights, the same shapes: the same binaries.
    assert build(network(), target=f"cuda:{arch}", precision="fp16", opt_level=0).plan.cubins == (
        plan.cubins
    )
    assert plan_from_bytes(plan_to_bytes(plan)) == plan
    options = {} if saved is None else {"precision": saved}
    engine = nrt.compile(network(), target=f"cuda:{arch}", opt_level=0, **options)
    engine.save(tmp_path / "net.plan")
    assert (tmp_path / "net.plan").stat().st_size > len(engine.plan.weights)


@pytest.mark.slow
def test_a_plan_with_prologues_is_built_offline() -> None:
    plan = build(dense_network(1), target="cuda:sm_80", precision="fp16", opt_level=0).plan
    check_plan(plan)
    assert plan_from_bytes(plan_to_bytes(plan)) == plan
    kinds = [layer.op.partition("[")[0] for layer in plan.layers]
    assert (kinds.count("Conv"), kinds.count("Pointwise")) == (2, 0)


def test_a_plan_for_the_cpu_needs_its_kernels() -> None:
    plan = build(network(), target="cpu", opt_level=0).plan
    with pytest.raises(nrt.NrtError, match="host_bind"):
        Engine(plan)
    Engine(plan, bind)


def test_times_survive_a_build_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise BuildError("stopped after tuning")

    monkeypatch.setattr("nrt.builder.assemble", fail)
    net = Network("tiny")
    net.output(net.relu(net.input("x", (2, 3))), "y")
    cache = tmp_path / "timings.json"
    with pytest.raises(BuildError, match="stopped after tuning"):
        build(net, target="cpu", opt_level=1, timing_cache=cache)
    assert len(TimingCache(cache)) > 0


def test_a_graph_after_the_passes_is_built_as_it_is() -> None:
    """`build_graph` is the second half of `build`."""
    net = network()
    report = optimize(net)
    built = build_graph(report.graph, target="cpu", opt_level=0)
    assert [str(n) for n in built.graph.nodes] == [str(n) for n in report.graph.nodes]
    assert built.plan.ops_before == built.plan.ops_after
    x = np.random.default_rng(secrets.randbits(32)).standard_normal((2, 3, 13, 11), np.float32)
    found = CompiledEngine(built)(x)
    (expected,) = evaluate(net.graph, {"image": x}).values()
    assert relative_error(found, expected) <= TOLERANCE["fp32"]
