"""Pointwise functions: attributes, import, networks, fusion, plans, export."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import nrt
from nrt.builder import build
from nrt.errors import ExtensionError, GraphError, ImportModelError, UnsupportedOpError
from nrt.extensions.registry import registry
from nrt.frontend import import_model
from nrt.ir.evaluate import evaluate
from nrt.ir.ops import Conv, MatMul, Pointwise
from nrt.plan import HostStep, LaunchStep

RNG = np.random.default_rng()
TOLERANCE = 1e-5


def relu6() -> Any:
    return nrt.pointwise("ReLU6", lambda x: min(max(x, 0), 6))


def gate() -> Any:
    return nrt.pointwise(
        "Gate", lambda x, y, alpha=0.2, twice=False: x * math.tanh(alpha * y) * (2 if twice else 1)
    )


def model(op_type: str, domain: str, inputs: int = 1, **attributes: Any) -> onnx.ModelProto:
    names = [f"x{i}" for i in range(inputs)]
    node = helper.make_node(op_type, names, ["y"], "node7", domain=domain, **attributes)
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [node],
        "g",
        [info(n, TensorProto.FLOAT, [3, 5]) for n in names],
        [info("y", TensorProto.FLOAT, [3, 5])],
    )
    opsets = [helper.make_opsetid("", 17)]
    if domain not in ("", "ai.onnx"):
        opsets.append(helper.make_opsetid(domain, 1))
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def arrays(count: int = 1) -> list[Any]:
    return [(RNG.standard_normal((3, 5)) * 5).astype(np.float32) for _ in range(count)]


def error(out: Any, ref: Any) -> float:
    return float(np.linalg.norm(np.float64(out) - ref) / np.linalg.norm(ref))


# -- import ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("domain", ["my.domain", "", "ai.onnx", "com.microsoft"])
def test_a_node_of_any_domain(domain: str) -> None:
    relu6()
    (x,) = arrays()
    graph = import_model(model("ReLU6", domain))
    (node,) = graph.nodes
    assert (type(node.op), node.name, node.origin) == (Pointwise, "node7", ("node7",))
    np.testing.assert_array_equal(evaluate(graph, {"x0": x})["y"], np.clip(x, 0, 6))


def test_a_domain_that_was_named() -> None:
    nrt.pointwise("ReLU6", lambda x: max(x, 0) * 7, domain="my.domain")
    relu6()
    (x,) = arrays()
    for domain, expected in (("my.domain", np.maximum(x, 0) * 7), ("other", np.clip(x, 0, 6))):
        graph = import_model(model("ReLU6", domain))
        np.testing.assert_array_equal(evaluate(graph, {"x0": x})["y"], expected)


def test_attributes_come_from_the_node() -> None:
    gate()
    x, y = arrays(2)
    for given, alpha, twice in (({}, 0.2, 1), ({"alpha": 3, "twice": 1}, 3.0, 2)):
        graph = import_model(model("Gate", "my.domain", 2, **given))
        out = evaluate(graph, {"x0": x, "x1": y})["y"]
        assert error(out, x * np.tanh(alpha * np.float64(y)) * twice) < TOLERANCE


@pytest.mark.parametrize(
    ("inputs", "attributes", "message"),
    [
        (1, {}, r"Gate 'node7': pointwise function 'Gate': got 1 inputs, expected 2 \(x, y\)"),
        (2, {"beta": 1.0}, "attribute beta is unknown; it has alpha, twice"),
        (2, {"alpha": "a"}, "attribute alpha is 'a', expected float as its default 0.2"),
        (2, {"twice": 2}, "attribute twice is 2, expected bool as its default False"),
    ],
)
def test_nodes_that_do_not_fit(inputs: int, attributes: dict[str, Any], message: str) -> None:
    gate()
    with pytest.raises(ImportModelError, match=message):
        import_model(model("Gate", "my.domain", inputs, **attributes))


def test_a_node_that_nobody_registered_says_the_way_out() -> None:
    for domain in ("", "my.domain"):
        with pytest.raises(UnsupportedOpError, match=r"(?s)op ReLU6.*nrt\.op, nrt\.pointwise"):
            import_model(model("ReLU6", domain))


def test_an_unknown_node_beside_a_registered_one() -> None:
    relu6()
    proto = model("ReLU6", "")
    proto.graph.node.append(helper.make_node("ReLU7", ["x0"], ["z"], "other"))
    with pytest.raises(UnsupportedOpError) as caught:
        import_model(proto)
    assert caught.value.nodes == [("other", "ReLU7", "", 17)]


def test_a_registered_function_stands_for_that_of_the_model() -> None:
    relu6()
    proto = model("ReLU6", "my.domain")
    body = [helper.make_node("Relu", ["a"], ["b"])]
    opsets = [helper.make_opsetid("", 17)]
    proto.functions.append(helper.make_function("my.domain", "ReLU6", ["a"], ["b"], body, opsets))
    (x,) = arrays()
    np.testing.assert_array_equal(evaluate(import_model(proto), {"x0": x})["y"], np.clip(x, 0, 6))
    registry.clear()
    np.testing.assert_array_equal(evaluate(import_model(proto), {"x0": x})["y"], np.maximum(x, 0))


# -- registering -----------------------------------------------------------------------------------


def test_as_a_decorator() -> None:
    @nrt.pointwise("Twice")
    def twice(x: Any) -> Any:
        return 2 * x

    (x,) = arrays()
    np.testing.assert_array_equal(twice(x), 2 * x)
    assert registry.pointwise.names == ("Twice",)


def test_the_same_definition_again_replaces_it() -> None:
    for factor in (2, 3):
        nrt.pointwise("Scaled", lambda x: factor * x)  # noqa: B023 - traced at once
    (x,) = arrays()
    graph = import_model(model("Scaled", "my.domain"))
    np.testing.assert_array_equal(evaluate(graph, {"x0": x})["y"], 3 * x)


def test_another_definition_of_the_name() -> None:
    relu6()
    with pytest.raises(
        ExtensionError,
        match=r"'ReLU6' is registered already, by .*test_pointwise.py:\d+, and now again by .*:\d+",
    ):
        nrt.pointwise("ReLU6", lambda x: x)


def _star(*x: Any) -> Any:
    return x


def _no_default(x: Any, *, alpha: float) -> Any:
    return x * alpha


@pytest.mark.parametrize(
    ("name", "function", "message"),
    [
        ("Relu", lambda x: x, "nrt imports Relu of ai.onnx itself"),
        ("F", np.exp, "expected a Python function or a lambda, got ufunc"),
        ("F", _star, r"parameter \*x takes any number of inputs"),
        ("F", _no_default, "attribute alpha has no default"),
        ("F", lambda x, a=(1, 2): x, r"attribute a has the default \(1, 2\)"),
        ("F", lambda a=1.0: a, "has no input"),
    ],
)
def test_what_cannot_be_registered(name: str, function: Any, message: str) -> None:
    with pytest.raises(ExtensionError, match=message):
        nrt.pointwise(name, function)
    assert registry.pointwise.names == ()


def test_an_op_has_the_name() -> None:
    @nrt.op("my.domain", "Thing")
    class Thing(nrt.Op):
        def infer(self, x: Any) -> Any:
            return (x,)

        def reference(self, x: Any) -> Any:
            return (x,)

    with pytest.raises(ExtensionError, match="an op is registered as that"):
        nrt.pointwise("Thing", lambda x: x, domain="my.domain")
    nrt.pointwise("Other", lambda x: x, domain="my.domain")
    with pytest.raises(ExtensionError, match="a pointwise function is registered as that"):
        nrt.op("my.domain", "Other")


# -- networks and plans ----------------------------------------------------------------------------


def network(dtype: str = "fp32") -> nrt.Network:
    """A convolution and a product, each with functions behind it."""
    rng = np.random.default_rng(7)
    net = nrt.Network("net")
    x = net.input("x", (2, 3, 7, 9), dtype)
    y = net.conv2d(x, rng.standard_normal((8, 3, 3, 3)) / 5, padding=1, name="conv")
    y = net.apply(relu6(), y, name="first")
    y = net.flatten(net.global_avg_pool(net.apply("ReLU6", net.mul(y, 3.0, name="mul"))))
    y = net.linear(y, rng.standard_normal((5, 8)), name="fc")
    net.output(net.apply(gate(), y, y, alpha=0.5, name="gate"), "y")
    return net


def test_names_of_layers_and_constants() -> None:
    relu6(), gate()
    net = nrt.Network("net")
    x = net.input("x", (3, 5))
    y = net.apply("Gate", x, [1.0, 2.0, 3.0, 4.0, 5.0], twice=True)
    assert y.value.producer is not None
    assert y.value.producer.name == "gate"
    assert net.apply("ReLU6", y).value.producer.name == "relu6"  # type: ignore[union-attr]
    net.output(y, "y")
    (a,) = arrays()
    ref = 2 * a * np.tanh(0.2 * np.arange(1.0, 6.0))
    assert error(evaluate(net.graph, {"x": a})["y"], ref) < TOLERANCE


def test_apply_refuses() -> None:
    net = nrt.Network("net")
    x = net.input("x", (3, 5))
    with pytest.raises(GraphError, match="nothing is registered as 'ReLU7'; registered: nothing"):
        net.apply("ReLU7", x)
    relu6()
    with pytest.raises(GraphError, match="nothing is registered as 'ReLU7'; registered: ReLU6"):
        net.apply("ReLU7", x)
    with pytest.raises(GraphError, match="attribute alpha is unknown; it has none"):
        net.apply("ReLU6", x, alpha=1.0)
    with pytest.raises(GraphError, match="expected a name, the result of"):
        net.apply(int, x)  # type: ignore[arg-type]
    with pytest.raises(GraphError, match="has its attributes already; leave out axis"):
        net.apply(MatMul(), x, x, axis=1)
    with pytest.raises(GraphError, match="has 2 outputs, expected 1; use layer_all"):
        net.apply(nrt.ir.ops.Split(1, (2, 3)), x)


def test_it_fuses_into_epilogues_and_runs_on_the_cpu() -> None:
    net = network()
    built = build(net, target="cpu", opt_level=1)
    ops = {type(n.op) for n in built.graph.nodes}
    assert Pointwise not in ops
    conv, fc = (
        next(n for n in built.graph.nodes if isinstance(n.op, kind)) for kind in (Conv, MatMul)
    )
    assert conv.origin == ("conv", "first", "mul", "relu6")
    assert fc.origin[:2] == ("fc", "gate")
    x = RNG.standard_normal((2, 3, 7, 9)).astype(np.float32) * 3
    out = nrt.compile(net, target="cpu", opt_level=0)(x)
    assert error(out, evaluate(net.graph, {"x": x})["y"]) < TOLERANCE


def test_a_plan_needs_no_registration(tmp_path: Path) -> None:
    engine = nrt.compile(network(), target="cpu", opt_level=0)
    x = RNG.standard_normal((2, 3, 7, 9)).astype(np.float32) * 3
    engine.save(tmp_path / "net.nrt")
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "expected.npy", np.asarray(engine(x)))
    raw = (tmp_path / "net.nrt").read_bytes()
    assert b"lambda" not in raw
    assert b"ReLU6" not in raw
    script = (
        "import numpy as np, nrt\n"
        "engine = nrt.load('net.nrt')\n"
        "assert nrt.registry.pointwise.names == ()\n"
        "y = np.asarray(engine(np.load('x.npy')))\n"
        "assert np.array_equal(y, np.load('expected.npy'))\n"
    )
    root = str(Path(nrt.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={"PYTHONPATH": root, "NRT_CACHE_DIR": str(tmp_path / "cache")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_cuda_plan_holds_only_cubins() -> None:
    net = nrt.Network("net")
    x = net.input("x", (1, 8, 5, 5))
    weight = RNG.standard_normal((8, 8, 1, 1))
    net.output(net.apply(relu6(), net.conv2d(x, weight)), "y")
    built = build(net, target="cuda:sm_90a", opt_level=0)
    conv = next(n for n in built.graph.nodes if isinstance(n.op, Conv))
    assert conv.op.epilogue is not None
    assert conv.op.epilogue.text() == "max(x0, 0.0); min(r2, 6.0)"
    assert all(isinstance(step, LaunchStep) for step in built.plan.steps)
    assert not any(isinstance(step, HostStep) for step in built.plan.steps)
    assert built.plan.cubins
    assert all(cubin.startswith(b"\x7fELF") for cubin in built.plan.cubins)


@pytest.mark.gpu
def test_on_a_gpu() -> None:
    net = network()
    x = RNG.standard_normal((2, 3, 7, 9)).astype(np.float32) * 3
    expected = evaluate(net.graph, {"x": x})["y"]
    for precision, limit in (("fp32", 1e-5), ("fp16", 5e-3)):
        engine = nrt.compile(net, target="cuda", opt_level=1, precision=precision)
        assert error(np.asarray(engine(x)), expected) < limit


# -- export ----------------------------------------------------------------------------------------


def test_export_writes_standard_ops() -> None:
    net = network()
    x = RNG.standard_normal((2, 3, 7, 9)).astype(np.float32) * 3
    expected = evaluate(net.graph, {"x": x})["y"]
    for source in (net, build(net, target="cpu", opt_level=0)):
        proto = nrt.to_onnx(source)
        assert {n.domain for n in proto.graph.node} == {""}
        onnx.checker.check_model(proto)
        registry.clear()
        assert error(evaluate(import_model(proto), {"x": x})["y"], expected) < TOLERANCE
