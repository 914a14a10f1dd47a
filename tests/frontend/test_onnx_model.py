"""What an imported graph looks like: names, origins, folded shapes, functions, branches."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from nrt.errors import ImportModelError, UnsupportedOpError
from nrt.frontend.onnx_model import import_model
from nrt.frontend.onnx_table import CONVERTERS, converter
from nrt.ir.evaluate import evaluate

from .build import compare, model, node

RNG = np.random.default_rng()


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def test_names_and_origins_are_the_models() -> None:
    nodes = [
        node("Relu", ["x"], ["a"], name="first"),
        node("Gemm", ["a", "w", "b"], ["c"], name="/fc/Gemm"),
        node("Relu", ["c"], ["result"]),
        node("Neg", ["c"], ["other"], name="first"),
    ]
    tensors = {"w": normal(5, 7), "b": normal(7)}
    graph = import_model(model(nodes, {"x": (3, 5)}, ["result", "other"], tensors))
    assert [n.name for n in graph.nodes] == [
        "first",
        "/fc/Gemm",
        "/fc/Gemm/bias",
        "Relu_2",
        "first.1",
    ]
    assert [n.origin for n in graph.nodes][1:3] == [("/fc/Gemm",), ("/fc/Gemm",)]
    assert list(graph.outputs) == ["result", "other"]
    assert [v.name for v in graph.inputs] == ["x"]
    assert graph.value("c").producer is graph.node("/fc/Gemm/bias")


def test_initializers_may_also_be_inputs() -> None:
    proto = model([node("Add", ["x", "w"], ["y"])], {"x": (3,), "w": (3,)}, ["y"], {"w": normal(3)})
    graph = import_model(proto)
    assert [v.name for v in graph.inputs] == ["x"]
    with pytest.raises(ImportModelError, match=r"shapes= names 'w', which is not an input.*are x$"):
        import_model(proto, shapes={"w": (3,)})


def test_shape_arithmetic_folds_away() -> None:
    """What torch.onnx writes for ``x.view(x.size(0), -1)`` and an attention reshape."""
    nodes = [
        node("Shape", ["x"], ["shape"]),
        node("Gather", ["shape", "zero"], ["n"], axis=0),
        node("Unsqueeze", ["n", "axes"], ["n1"]),
        node("Shape", ["x"], ["tail"], start=-1),
        node("Div", ["tail", "two"], ["half"]),
        node("Cast", ["half"], ["half64"], to=TensorProto.INT64),
        node("Concat", ["n1", "minus", "half64"], ["wanted"], axis=0),
        node("Reshape", ["x", "wanted"], ["y"]),
        node("ConstantOfShape", ["wanted0"], ["zeros"]),
        node("Range", ["zero", "four", "one"], ["r"]),
        node("Size", ["x"], ["size"]),
        node("Equal", ["r", "two0"], ["e"]),
        node("NonZero", ["e"], ["where"]),
        node("EyeLike", ["eye"], ["identity"], dtype=TensorProto.FLOAT),
    ]
    i64 = np.int64
    tensors = {
        "zero": np.asarray(0, i64),
        "one": np.asarray(1, i64),
        "four": np.asarray(4, i64),
        "axes": np.asarray([0], i64),
        "two": np.asarray([2], i64),
        "two0": np.asarray(2, i64),
        "minus": np.asarray([-1], i64),
        "wanted0": np.asarray([2, 3], i64),
        "eye": np.zeros((2, 3), i64),
    }
    outputs = ["y", "zeros", "r", "size", "where", "identity"]
    types = dict.fromkeys(("r", "size", "where"), TensorProto.INT64)
    graph = compare(model(nodes, {"x": (2, 5, 6)}, outputs, tensors, dtypes=types))
    assert [n.op.name for n in graph.nodes] == ["Reshape"]
    assert graph.outputs["y"].shape == (2, 10, 3)


def test_large_float_constants_wait_for_the_pass() -> None:
    tensors = {"w": normal(70, 70), "small": normal(3, 4)}
    nodes = [
        node("Transpose", ["w"], ["wt"], perm=[1, 0], name="large"),
        node("MatMul", ["x", "wt"], ["y"]),
        node("Transpose", ["small"], ["z"], name="small-one"),
    ]
    graph = compare(model(nodes, {"x": (3, 70)}, ["y", "z"], tensors))
    assert graph.has_node("large")
    assert not graph.has_node("small-one")
    assert graph.outputs["z"].is_constant


def test_identity_of_a_weight_is_the_weight() -> None:
    nodes = [
        node("Identity", ["w"], ["v"]),
        node("MatMul", ["x", "w"], ["a"]),
        node("MatMul", ["a", "v"], ["y"]),
    ]
    graph = compare(model(nodes, {"x": (3, 80)}, ["y"], {"w": normal(80, 80)}))
    assert len(graph.constants) == 1


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({"value_float": 1.5}, np.asarray(1.5, np.float32)),
        ({"value_floats": [1.5, -2.0]}, np.asarray([1.5, -2.0], np.float32)),
        ({"value_int": 7}, np.asarray(7, np.int64)),
        ({"value_ints": [7, -1]}, np.asarray([7, -1], np.int64)),
        (
            {"value": numpy_helper.from_array(np.arange(6.0).reshape(2, 3))},
            np.arange(6.0).reshape(2, 3),
        ),
    ],
)
def test_constant_forms(attributes, expected) -> None:
    constant = node("Constant", [], ["y"], **attributes)
    graph = import_model(model([constant, node("Relu", ["x"], ["z"])], {"x": (1,)}, ["y", "z"]))
    found = graph.outputs["y"].constant
    assert found is not None
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


def test_constant_of_strings_is_refused() -> None:
    constant = node("Constant", [], ["s"], value_string="hello")
    cast = node("Cast", ["s"], ["y"], to=TensorProto.FLOAT)
    with pytest.raises(UnsupportedOpError, match="its data is in 'value_string'"):
        import_model(model([constant, cast], {"x": (1,)}, ["y"]))


def stored(name: str, dtype: int, dims: list[int], field: str, values: list) -> onnx.TensorProto:
    tensor = onnx.TensorProto(name=name, data_type=dtype, dims=dims)
    getattr(tensor, field).extend(values)
    return tensor


@pytest.mark.parametrize(
    ("tensor", "expected"),
    [
        (stored("c", TensorProto.FLOAT, [2], "float_data", [1.5, -2]), np.asarray([1.5, -2], "f4")),
        (stored("c", TensorProto.DOUBLE, [1], "double_data", [0.1]), np.asarray([0.1])),
        (stored("c", TensorProto.INT64, [2], "int64_data", [-5, 2**40]), np.asarray([-5, 2**40])),
        (stored("c", TensorProto.UINT8, [2], "int32_data", [0, 255]), np.asarray([0, 255], "u1")),
        (stored("c", TensorProto.INT8, [2], "int32_data", [-1, 127]), np.asarray([-1, 127], "i1")),
        (stored("c", TensorProto.BOOL, [2], "int32_data", [0, 1]), np.asarray([False, True])),
        (
            stored("c", TensorProto.FLOAT16, [2], "int32_data", [0x3E00, 0xC000]),
            np.asarray([1.5, -2], "f2"),
        ),
        (stored("c", TensorProto.UINT64, [1], "uint64_data", [2**63]), np.asarray([2**63], "u8")),
    ],
)
def test_typed_fields_of_tensors(tensor, expected) -> None:
    proto = model([node("Relu", ["x"], ["z"])], {"x": (1,)}, ["z", "c"])
    proto.graph.initializer.append(tensor)
    found = import_model(proto).outputs["c"].constant
    assert found is not None
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


def test_bfloat16_weights() -> None:
    proto = model([node("Relu", ["x"], ["z"])], {"x": (1,)}, ["z", "c"])
    proto.graph.initializer.append(
        stored("c", TensorProto.BFLOAT16, [2], "int32_data", [0x3FC0, 0xC000])
    )
    value = import_model(proto).outputs["c"]
    assert value.dtype.name == "bf16"
    assert value.constant.astype(np.float32).tolist() == [1.5, -2.0]


def test_local_functions_are_inlined() -> None:
    inner = helper.make_function(
        "local",
        "scale",
        ["a"],
        ["b"],
        [
            node("Constant", [], ["k"], value=numpy_helper.from_array(np.float32([3]))),
            node("Mul", ["a", "k"], ["b"], name="mul"),
        ],
        [helper.make_opsetid("", 17)],
    )
    outer = helper.make_function(
        "local",
        "leaky",
        ["a"],
        ["d"],
        [
            node("scale", ["a"], ["b"], domain="local"),
            onnx.parser.parse_node("d = LeakyRelu <alpha: float = @alpha> (b)"),
        ],
        [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)],
        attributes=["alpha"],
    )
    call = node("leaky", ["x"], ["y"], domain="local", alpha=0.25)
    proto = model([call], {"x": (3, 4)}, ["y"], domains={"local": 1}, functions=[inner, outer])
    graph = compare(proto)
    assert [n.op.name for n in graph.nodes] == ["Mul", "LeakyRelu"]


def branch(name: str, *nodes: onnx.NodeProto, tensors=()) -> onnx.GraphProto:
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, None)
    return helper.make_graph(list(nodes), name, [], [out], list(tensors))


def if_model(condition: onnx.NodeProto | None) -> onnx.ModelProto:
    two = numpy_helper.from_array(np.float32([2]), "two")
    then = branch("then", node("Mul", ["x", "two"], ["out"]), tensors=[two])
    other = branch("else", node("Neg", ["outer"], ["out"]))
    nodes = [node("Relu", ["x"], ["outer"])]
    nodes += [condition] if condition else []
    nodes.append(node("If", ["c"], ["y"], then_branch=then, else_branch=other, name="choice"))
    inputs = {"x": (2, 3)} if condition else {"x": (2, 3), "c": ()}
    return model(nodes, inputs, ["y"], dtypes={"c": TensorProto.BOOL})


@pytest.mark.parametrize(("value", "ops"), [(True, ["Mul"]), (False, ["Relu", "Neg"])])
def test_a_constant_if_takes_its_branch(value, ops) -> None:
    constant = node("Constant", [], ["c"], value=numpy_helper.from_array(np.asarray(value)))
    assert [n.op.name for n in compare(if_model(constant)).nodes] == ops


def test_an_if_of_the_data_is_refused() -> None:
    with pytest.raises(
        UnsupportedOpError, match=r"If 'choice': its condition is computed at run time"
    ):
        import_model(if_model(None))


def test_bytes_path_and_proto_give_the_same(tmp_path) -> None:
    proto = model([node("Gemm", ["x", "w"], ["y"])], {"x": (3, 5)}, ["y"], {"w": normal(5, 2)})
    path = tmp_path / "m.onnx"
    onnx.save(proto, path)
    before = proto.SerializeToString()
    x = normal(3, 5)
    results = [
        evaluate(import_model(source), {"x": x})["y"] for source in (proto, before, path, str(path))
    ]
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])
    assert proto.SerializeToString() == before


def test_an_output_may_be_an_input_or_a_constant() -> None:
    proto = model([node("Relu", ["x"], ["r"])], {"x": (3,)}, ["x", "w", "r"], {"w": normal(2)})
    x = normal(3)
    found = evaluate(import_model(proto), {"x": x})
    np.testing.assert_array_equal(found["x"], x)


def test_dead_nodes_and_unused_weights_go() -> None:
    nodes = [node("Relu", ["x"], ["y"]), node("Neg", ["x"], ["dead"])]
    graph = import_model(model(nodes, {"x": (3,)}, ["y"], {"unused": normal(9)}))
    assert [n.op.name for n in graph.nodes] == ["Relu"]
    assert graph.constants == ()


def test_both_names_of_the_domain() -> None:
    assert converter("ai.onnx", "Relu") is CONVERTERS["Relu"]
    relu = node("Relu", ["x"], ["y"], domain="ai.onnx")
    proto = model([relu], {"x": (3,)}, ["y"], domains={"ai.onnx": 17})
    del proto.opset_import[0]
    assert import_model(proto).nodes[0].op.name == "Relu"


def test_the_package_is_lazy() -> None:
    code = (
        "import sys, nrt.frontend.network, nrt.frontend as f; assert 'onnx' not in sys.modules; "
        "f.Network; assert 'onnx' not in sys.modules; f.import_model; assert 'onnx' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    import nrt.frontend

    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = nrt.frontend.nothing
