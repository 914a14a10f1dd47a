"""Registered ops: import, folding, running, plans, export, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import nrt
from nrt.builder import build
from nrt.dtypes import FP16, DType
from nrt.errors import (
    BuildError,
    ExportError,
    ExtensionError,
    GraphError,
    ImportModelError,
    PlanError,
    ShapeError,
)
from nrt.extensions.registry import registry
from nrt.frontend import import_model
from nrt.ir.evaluate import evaluate
from nrt.ir.ops import Elementwise, Pointwise
from nrt.ir.pointwise import Builder, Program
from nrt.problem import Problem, TensorSpec

RNG = np.random.default_rng()
TOLERANCE = 1e-5


def clip6() -> Any:
    @nrt.op("my.domain", "Clip6")
    class Clip6(nrt.Op):
        high: float = 6.0

        def infer(self, x: nrt.TensorType) -> tuple[nrt.TensorType, ...]:
            return (x,)

        def reference(self, x: Any) -> tuple[Any, ...]:
            return (np.clip(x, 0, self.high).astype(x.dtype),)

    return Clip6


def sum_and_rest() -> Any:
    """Two or three inputs, two outputs, attributes of every type."""

    @nrt.op("my.domain", "SumAndRest")
    class SumAndRest(nrt.Op):
        outputs: ClassVar[int] = 2
        precisions = ("fp32", "fp16")
        axes: tuple[int, ...]
        scale: float = 1.0
        times: int = 1
        flip: bool = False
        mode: str = "plain"
        to: DType | None = None
        weights: tuple[float, ...] = ()
        names: tuple[str, ...] = ()

        def infer(
            self, x: nrt.TensorType, y: nrt.TensorType, z: nrt.TensorType | None = None
        ) -> tuple[nrt.TensorType, ...]:
            shape = tuple(1 if k in self.axes else d for k, d in enumerate(x.shape))
            return nrt.TensorType(shape, x.dtype), (y if z is None else z)

        def reference(self, x: Any, y: Any, z: Any = None) -> tuple[Any, ...]:
            total = x.sum(self.axes, keepdims=True) * self.scale * self.times
            total = total + sum(self.weights)
            return (-total if self.flip else total).astype(x.dtype), y if z is None else z

    return SumAndRest


def model(
    op_type: str, inputs: int = 1, outputs: int = 1, constant: bool = False, **attributes: Any
) -> onnx.ModelProto:
    names = [f"x{i}" for i in range(inputs)]
    results = [f"y{i}" for i in range(outputs)]
    nodes = [helper.make_node(op_type, names, results, "node7", domain="my.domain", **attributes)]
    info = helper.make_tensor_value_info
    data = [helper.make_tensor("x0", TensorProto.FLOAT, [3, 5], np.arange(-4.0, 11.0))]
    if constant:
        nodes.append(helper.make_node("Add", ["y0", "x"], ["y"], "add"))
        names, results = ["x"], ["y"]
    graph = helper.make_graph(
        nodes,
        "g",
        [info(n, TensorProto.FLOAT, [3, 5]) for n in names],
        [info(n, TensorProto.FLOAT, None) for n in results],
        data if constant else [],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("my.domain", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def arrays(count: int = 1) -> list[Any]:
    return [(RNG.standard_normal((3, 5)) * 5).astype(np.float32) for _ in range(count)]


# -- import and run --------------------------------------------------------------------------------


def test_import_with_attributes() -> None:
    op = clip6()
    (x,) = arrays()
    for given, high in (({}, 6.0), ({"high": 2.5}, 2.5), ({"high": 3}, 3.0)):
        graph = import_model(model("Clip6", **given))
        assert graph.nodes[0].op == op(high)
        np.testing.assert_array_equal(evaluate(graph, {"x0": x})["y0"], np.clip(x, 0, high))


def test_every_type_of_attribute() -> None:
    op = sum_and_rest()
    given = {
        "axes": [0], "scale": 2.5, "times": 3, "flip": 1, "mode": "fancy", "to": FP16.onnx,
        "weights": [0.5, 1.5], "names": ["a", "b"],
    }  # fmt: skip
    graph = import_model(model("SumAndRest", 3, 2, **given))
    expected = op((0,), 2.5, 3, True, "fancy", FP16, (0.5, 1.5), ("a", "b"))
    assert graph.nodes[0].op == expected
    x, y, z = arrays(3)
    out = evaluate(graph, {"x0": x, "x1": y, "x2": z})
    ref = -(x.astype(np.float64).sum(0, keepdims=True) * 7.5 + 2)
    np.testing.assert_allclose(out["y0"], ref, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(out["y1"], z)
    again = import_model(nrt.to_onnx(graph))
    assert again.nodes[0].op == expected
    (problem,) = _problems(graph)
    assert Problem.from_data(problem.to_data()) == problem


def _problems(graph: Any) -> list[Problem]:
    return [
        Problem(
            node.op,
            tuple(TensorSpec.dense(v.shape, v.dtype) for v in node.inputs),
            tuple(TensorSpec.dense(v.shape, v.dtype) for v in node.outputs),
            (False,) * len(node.inputs),
        )
        for node in graph.nodes
    ]


def test_outputs_that_the_model_leaves_out() -> None:
    sum_and_rest()
    graph = import_model(model("SumAndRest", 2, 1, axes=[1]))
    x, y = arrays(2)
    out = evaluate(graph, {"x0": x, "x1": y})["y0"]
    np.testing.assert_allclose(out, x.sum(1, keepdims=True), rtol=1e-4, atol=1e-4)


def test_it_folds_and_runs_on_the_cpu() -> None:
    clip6()
    proto = model("Clip6", constant=True)
    graph = import_model(proto)
    assert [n.op.name for n in graph.nodes] == ["Add"]
    (x,) = arrays()
    expected = x + np.clip(np.arange(-4, 11).reshape(3, 5), 0, 6)
    np.testing.assert_allclose(evaluate(graph, {"x": x})["y"], expected, rtol=1e-6)
    engine = nrt.compile(model("Clip6", high=1.5), target="cpu", opt_level=1)
    np.testing.assert_array_equal(np.asarray(engine(x)), np.clip(x, 0, 1.5))
    assert [layer.variant for layer in engine.plan.layers] == ["cpu_reference"]


def test_a_plan_needs_the_op(tmp_path: Path) -> None:
    clip6()
    path = tmp_path / "clip.nrt"
    nrt.compile(model("Clip6"), target="cpu", opt_level=0).save(path)
    (x,) = arrays()
    np.testing.assert_array_equal(np.asarray(nrt.load(path)(x)), np.clip(x, 0, 6))
    registry.clear()
    with pytest.raises(
        PlanError, match=r"op 'my.domain::Clip6' is not registered in this process.*--plugin"
    ):
        nrt.load(path)


def test_a_gpu_needs_a_kernel() -> None:
    clip6()
    with pytest.raises(
        BuildError,
        match=r"layer 'node7', .*my.domain::Clip6 brings a reference for the CPU and no kernel for "
        r"this target; register one \(nrt.variant\).*target='cpu'",
    ):
        build(model("Clip6"), target="cuda:sm_80", opt_level=0)


def test_an_op_that_was_not_registered() -> None:
    class Loose(nrt.Op):
        def infer(self, x: nrt.TensorType) -> tuple[nrt.TensorType, ...]:
            return (x,)

    net = nrt.Network("net")
    net.output(net.apply(Loose(), net.input("x", (3, 5))), "y")
    with pytest.raises(BuildError, match=r"no kernels; if it is your own, register it \(nrt.op\)"):
        build(net, target="cpu", opt_level=0)


def test_an_op_with_a_program_is_pointwise() -> None:
    @nrt.op("my.domain", "Scale")
    class Scale(Elementwise):
        by: float = 2.0

        def program(self, kinds: tuple[str, ...]) -> Program:
            b = Builder(kinds)
            return b.build(b("mul", 0, b.const(self.by)))

    (x,) = arrays()
    graph = import_model(model("Scale", by=3.0))
    np.testing.assert_allclose(evaluate(graph, {"x0": x})["y0"], 3 * x, rtol=1e-6)
    for target in ("cpu", "cuda:sm_80"):
        built = build(model("Scale", by=3.0), target=target, opt_level=0)
        assert isinstance(built.graph.nodes[0].op, Scale | Pointwise)
        assert built.plan.layers[0].op == "Pointwise[mul(x0, 3.0)]"
    engine = nrt.compile(model("Scale", by=3.0), target="cpu", opt_level=0)
    registry.clear()
    np.testing.assert_allclose(np.asarray(engine(x)), 3 * x, rtol=1e-6)


def test_precision() -> None:
    """fp16 around it: fp32 inside, unless the op says that it takes fp16."""
    clip6(), sum_and_rest()
    rng = np.random.default_rng(3)
    net = nrt.Network("net")
    x = net.input("x", (4, 6))
    w = rng.standard_normal((6, 6)).astype(np.float32)
    y = net.apply("my.domain::Clip6", net.matmul(x, w))
    s = registry.ops.get("my.domain::SumAndRest")((1,))  # type: ignore[misc]
    z, rest = net.layer_all("s", s, net.matmul(y, w), [[1.0] * 6] * 4)
    net.output(z, "z")
    net.output(rest, "rest")
    built = build(net, target="cpu", opt_level=0, precision="fp16")
    types = {
        layer.op: (layer.inputs, layer.outputs)
        for layer in built.plan.layers
        if layer.op in ("Clip6", "SumAndRest")
    }
    assert types["Clip6"] == (("fp32[4,6]",), ("fp32[4,6]",))
    assert types["SumAndRest"] == (("fp16[4,6]", "fp16[4,6]"), ("fp16[4,1]", "fp16[4,6]"))
    notes = [n.text for n in built.passes.notes_about("clip6") if n.pass_name == "select-precision"]
    assert notes == ["fp32: Clip6 computes in fp32"]
    data = RNG.standard_normal((4, 6)).astype(np.float32)
    engine = nrt.compile(net, target="cpu", opt_level=0, precision="fp16")
    ref = evaluate(net.graph, {"x": data})
    for name, out in engine.run({"x": data}).items():
        error = np.linalg.norm(np.asarray(out) - ref[name]) / np.linalg.norm(ref[name])
        assert error < 5e-3


def test_weights_beyond_fp16_keep_it_in_fp32() -> None:
    sum_and_rest()
    net = nrt.Network("net")
    op = registry.ops.get("my.domain::SumAndRest")((1,))  # type: ignore[misc]
    z, rest = net.layer_all("s", op, net.input("x", (2, 2)), np.full((2, 2), 1e6, np.float32))
    net.output(z, "z")
    net.output(rest, "rest")
    built = build(net, target="cpu", opt_level=0, precision=("fp16", "fp32"))
    (note,) = [n for n in built.passes.notes_about("s") if n.pass_name == "select-precision"]
    assert "goes beyond the range of fp16" in note.text
    with pytest.raises(BuildError, match="fp32 is not permitted"):
        build(net, target="cpu", opt_level=0, precision="fp16")


# -- export ----------------------------------------------------------------------------------------


def test_export_keeps_the_domain() -> None:
    op = clip6()
    proto = nrt.to_onnx(build(model("Clip6", high=2.5), target="cpu", opt_level=0))
    (node,) = [n for n in proto.graph.node if n.domain]
    assert (node.op_type, node.domain) == ("Clip6", "my.domain")
    assert {o.domain: o.version for o in proto.opset_import} == {"": 21, "my.domain": 1}
    onnx.checker.check_model(proto)
    assert import_model(proto).nodes[0].op == op(2.5)


def test_export_of_empty_lists() -> None:
    op = sum_and_rest()
    graph = import_model(model("SumAndRest", 2, 2, axes=[0]))
    again = import_model(nrt.to_onnx(graph))
    assert again.nodes[0].op == op((0,))


def test_an_op_of_the_standard_that_nrt_lacks() -> None:
    @nrt.op("ai.onnx", "Acos")
    class Acos(nrt.Op):
        def infer(self, x: nrt.TensorType) -> tuple[nrt.TensorType, ...]:
            return (x,)

        def reference(self, x: Any) -> tuple[Any, ...]:
            return (np.arccos(x),)

    proto = model("Clip6")
    proto.graph.node[0].op_type, proto.graph.node[0].domain = "Acos", ""
    graph = import_model(proto)
    x = RNG.uniform(-1, 1, (3, 5)).astype(np.float32)
    np.testing.assert_array_equal(evaluate(graph, {"x0": x})["y0"], np.arccos(x))
    onnx.checker.check_model(nrt.to_onnx(graph))


def test_an_op_that_no_standard_has_cannot_be_written() -> None:
    @nrt.op("", "Unheard")
    class Unheard(nrt.Op):
        def infer(self, x: nrt.TensorType) -> tuple[nrt.TensorType, ...]:
            return (x,)

        def reference(self, x: Any) -> tuple[Any, ...]:
            return (x,)

    proto = model("Clip6")
    proto.graph.node[0].op_type, proto.graph.node[0].domain = "Unheard", ""
    with pytest.raises(ExportError, match="ONNX has no op Unheard; register it in a domain"):
        nrt.to_onnx(import_model(proto))


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"high": "a"}, r"Clip6 'node7': attribute high is 'a', expected <class 'float'>"),
        ({"low": 1.0}, "Clip6 'node7': attribute low is unknown; my.domain::Clip6 has high"),
    ],
)
def test_attributes_that_do_not_fit(attributes: dict[str, Any], message: str) -> None:
    clip6()
    with pytest.raises(ImportModelError, match=message):
        import_model(model("Clip6", **attributes))


def test_nodes_that_do_not_fit() -> None:
    clip6(), sum_and_rest()
    with pytest.raises(ImportModelError, match=r"node7.*got 2 inputs, expected 1"):
        import_model(model("Clip6", 2))
    with pytest.raises(ImportModelError, match=r"node7.*got 1 inputs, expected 2 to 3"):
        import_model(model("SumAndRest", 1, 2, axes=[0]))
    with pytest.raises(ImportModelError, match="attribute axes is missing and has no default"):
        import_model(model("SumAndRest", 2, 2))
    with pytest.raises(ImportModelError, match=r"has 3 outputs, my.domain::SumAndRest gives 2"):
        import_model(model("SumAndRest", 2, 3, axes=[0]))
    with pytest.raises(ImportModelError, match="attribute axes is 1, expected"):
        import_model(model("SumAndRest", 2, 2, axes=1))


def test_a_definition_that_is_run_again_replaces_the_first() -> None:
    first, second = clip6(), clip6()
    assert first is not second
    assert type(import_model(model("Clip6")).nodes[0].op) is second
    with pytest.raises(ExtensionError, match=r"'my.domain::Clip6' is registered already"):

        @nrt.op("my.domain", "Clip6")
        class Other(nrt.Op):
            def infer(self, x: nrt.TensorType) -> tuple[nrt.TensorType, ...]:
                return (x,)

            def reference(self, x: Any) -> tuple[Any, ...]:
                return (x,)


class _Methods:
    def infer(self, x: nrt.TensorType) -> tuple[nrt.TensorType, ...]:
        return (x,)

    def reference(self, x: Any) -> tuple[Any, ...]:
        return (x,)


def _op_of(namespace: dict[str, Any], base: type = nrt.Op) -> Any:
    return type("Bad", (_Methods, base), {"__module__": __name__, **namespace})


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (lambda x: x, "expected a class that derives from nrt.Op, got <function"),
        (type("Bad", (), {}), "expected a class that derives from nrt.Op"),
        (type("Bad", (nrt.Op,), {}), r"Bad defines no infer\(\); expected infer\(\) and reference"),
        (type("Bad", (Elementwise,), {}), r"Bad defines no program\(\); expected program\(\)"),
        (_op_of({"__annotations__": {"w": np.ndarray}}), "attribute w is annotated .*a tensor is"),
        (_op_of({"__annotations__": {"w": "Unknown"}}), "an annotation cannot be resolved: name"),
        (_op_of({"precisions": ("int8",)}), r"precisions = \('int8',\), expected some of bf16"),
    ],
)
def test_what_cannot_be_registered(cls: Any, message: str) -> None:
    with pytest.raises(ExtensionError, match=rf"op my.domain::Bad: {message}"):
        nrt.op("my.domain", "Bad")(cls)
    assert registry.ops.names == ()


def test_a_name_of_nrt() -> None:
    with pytest.raises(ExtensionError, match=r"nrt imports Relu of ai.onnx itself"):
        nrt.op("ai.onnx", "Relu")
    with pytest.raises(ExtensionError, match=r"nrt imports Gelu of com.microsoft itself"):
        nrt.op("com.microsoft", "Gelu")


@pytest.mark.parametrize(
    ("infer", "message"),
    [
        (lambda self, x: x, r"infer returned TensorType.*, expected a tuple of 1 nrt.TensorType"),
        (lambda self, x: (x, x), ".*expected a tuple of 1 nrt.TensorType"),
        (lambda self, x: (x.shape,), ".*expected a tuple of 1 nrt.TensorType"),
        (lambda self, x: x.size, r"infer raised AttributeError: .*for inputs fp32\[3,5\]"),
    ],
)
def test_an_infer_that_is_wrong(infer: Any, message: str) -> None:
    op = nrt.op("my.domain", "Bad")(_op_of({"infer": infer}))
    net = nrt.Network("net")
    with pytest.raises(ShapeError, match=rf"op my.domain::Bad: {message}"):
        net.apply(op, net.input("x", (3, 5)))


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (lambda self, x: x, "reference returned ndarray, expected a tuple of 1 arrays"),
        (lambda self, x: (x, x), "reference returned 2 results, expected a tuple of 1 arrays"),
        (lambda self, x: (x.astype(np.float64),), r"reference gives float64\[3, 5\] for output 0"),
        (lambda self, x: (x[0],), r"float32\[5\] for output 0, infer says fp32\[3,5\]"),
    ],
)
def test_a_reference_that_is_wrong(reference: Any, message: str) -> None:
    op = nrt.op("my.domain", "Bad")(_op_of({"reference": reference}))
    net = nrt.Network("net")
    net.output(net.apply(op, net.input("x", (3, 5))), "y")
    with pytest.raises(GraphError, match=rf"op my.domain::Bad: .*{message}"):
        evaluate(net.graph, {"x": np.zeros((3, 5), np.float32)})
