"""Models that nrt refuses, and what it says."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from nrt.errors import ImportModelError, UnsupportedOpError
from nrt.frontend.onnx_model import import_model

from .build import model, node


def ints(*values: int) -> np.ndarray:
    return np.asarray(values, np.int64)


def relu() -> onnx.ModelProto:
    return model([node("Relu", ["x"], ["y"], name="r")], {"x": (2, 3)}, ["y"])


def refuse(proto, match: str, **arguments) -> ImportModelError:
    with pytest.raises(ImportModelError, match=match) as error:
        import_model(proto, **arguments)
    return error.value


def test_all_unsupported_nodes_are_listed() -> None:
    nodes = [
        node("LSTM", ["x", "w", "r"], ["h"], name="lstm", hidden_size=2),
        node("Relu", ["h"], ["a"], name="after"),
        node("Det", ["x"], ["d"]),
        node("Custom", ["d"], ["c"], name="mine", domain="my.ops"),
        node("Reshape", ["x", "computed"], ["b"], name="reshape"),
        node("MaxPool", ["x4"], ["p", "indices"], name="pool", kernel_shape=[2, 2]),
    ]
    inputs = {"x": (2, 3, 4), "w": (1, 8, 4), "r": (1, 8, 2), "computed": (2,), "x4": (1, 1, 4, 4)}
    types = {"computed": TensorProto.INT64, "indices": TensorProto.INT64}
    proto = model(nodes, inputs, ["a", "c", "b", "indices"], domains={"my.ops": 3}, dtypes=types)
    with pytest.raises(UnsupportedOpError) as error:
        import_model(proto)
    assert error.value.nodes == [
        ("lstm", "LSTM", "", 17),
        ("Det_2", "Det", "", 17),
        ("mine", "Custom", "my.ops", 3),
        ("reshape", "Reshape", "", 17),
        ("pool", "MaxPool", "", 17),
    ]
    text = str(error.value)
    assert "node mine: op Custom, domain my.ops, opset 3" in text
    assert "Reshape 'reshape': input 'shape' is computed at run time, expected a constant" in text
    assert "MaxPool 'pool': its output 1 ('indices') is used" in text


def test_operators_that_onnx_does_not_know_are_listed() -> None:
    nodes = [
        node("Rilu", ["x"], ["a"], name="typo"),
        node("LSTN", ["a"], ["y"]),
        node("Det", ["y"], ["z"]),
    ]
    with pytest.raises(UnsupportedOpError) as error:
        import_model(model(nodes, {"x": (2, 2)}, ["z"]))
    assert [n[1] for n in error.value.nodes] == ["Rilu", "LSTN", "Det"]


def test_one_line() -> None:
    error = refuse(model([node("Relu", ["nowhere"], ["y"])], {"x": (1,)}, ["y"]), "not valid ONNX")
    assert "nowhere" in str(error)
    assert "\n" not in str(error)


# -- files -----------------------------------------------------------------------------------------


def test_paths(tmp_path) -> None:
    refuse(tmp_path / "missing.onnx", "missing.onnx' does not exist")
    refuse(tmp_path, "is a folder; expected the path of an ONNX file")
    empty = tmp_path / "empty.onnx"
    empty.write_bytes(b"")
    refuse(empty, "empty.onnx' is empty")
    text = tmp_path / "text.onnx"
    text.write_text("this is not a model at all, it is a text")
    refuse(text, "is not an ONNX model, or is truncated")
    refuse("a\0b", "cannot be read|does not exist")


def test_a_device_is_not_read() -> None:
    refuse("/dev/zero", "is not a regular file")


def test_bytes() -> None:
    refuse(b"", "the model is empty")
    refuse(b"\xff" * 100, "is not an ONNX model, or is truncated")
    whole = relu().SerializeToString()
    refuse(whole[: len(whole) // 2], "truncated|no graph|not valid")
    refuse(42, "expected a path, bytes or an onnx.ModelProto, got int")


def test_versions() -> None:
    proto = relu()
    proto.ir_version = 99
    refuse(proto, r"IR version 99, the installed onnx .* knows up to \d+; upgrade onnx")
    proto = relu()
    proto.ir_version = 2
    refuse(proto, "IR version 2, expected 3 or newer")
    refuse(
        model([node("Relu", ["x"], ["y"])], {"x": (1,)}, ["y"], opset=999),
        "opset 999, the installed",
    )
    old = model([node("Relu", ["x"], ["y"])], {"x": (1,)}, ["y"], opset=5)
    refuse(old, r"opset 5, expected 7 to \d+: Relu had another meaning")
    proto = relu()
    del proto.opset_import[:]
    refuse(proto, "imports no opset of the domain ai.onnx")
    refuse(onnx.ModelProto(ir_version=8), "holds no graph")


def test_no_outputs() -> None:
    proto = relu()
    del proto.graph.output[:]
    refuse(proto, "has no outputs|not valid ONNX")


def test_an_output_that_nobody_computes() -> None:
    proto = relu()
    proto.graph.output[0].name = "ghost"
    refuse(proto, "ghost")


def test_cycles_and_duplicates() -> None:
    cycle = [node("Add", ["x", "b"], ["a"]), node("Relu", ["a"], ["b"])]
    refuse(model(cycle, {"x": (1,)}, ["b"]), "not valid ONNX.*b")
    twice = [node("Relu", ["x"], ["a"]), node("Neg", ["x"], ["a"])]
    refuse(model(twice, {"x": (1,)}, ["a"]), "not valid ONNX.*a")
    proto = model([node("Relu", ["x"], ["y"])], {"x": (1,)}, ["y"], {"w": np.ones(2, "f4")})
    proto.graph.initializer.append(proto.graph.initializer[0])
    refuse(proto, "tensor 'w' is defined twice")
    proto = relu()
    proto.graph.input.append(proto.graph.input[0])
    refuse(proto, "x")


# -- tensors ---------------------------------------------------------------------------------------


def with_tensor(tensor: onnx.TensorProto) -> onnx.ModelProto:
    proto = model([node("Add", ["x", "w"], ["y"])], {"x": (2,)}, ["y"])
    proto.graph.initializer.append(tensor)
    return proto


def raw(dims, data: bytes, dtype: int = TensorProto.FLOAT, name: str = "w") -> onnx.TensorProto:
    return onnx.TensorProto(name=name, dims=dims, data_type=dtype, raw_data=data)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (raw([2], bytes(7)), r"tensor 'w': holds 7 bytes, but fp32\[2\] needs 8"),
        (raw([2**40, 2**40], bytes(8)), "holds 8 bytes"),
        (raw([-2], bytes(8)), "has a negative dimension"),
        (raw([2], bytes(8), 77), "ONNX element type 77 is unknown"),
        (raw([2], bytes(8), TensorProto.STRING), "ONNX element type 8 is unknown"),
        (raw([2], bytes(8), 0), "ONNX element type 0 is unknown"),
        (raw([2], bytes(8), name=""), "a stored tensor has no name"),
        (onnx.TensorProto(name="w", dims=[3], data_type=1, float_data=[1, 2]), "holds 2 elements"),
    ],
)
def test_broken_tensors(tensor, message) -> None:
    refuse(with_tensor(tensor), message)


def test_segments_and_sparse_tensors() -> None:
    tensor = raw([2], bytes(8))
    tensor.segment.begin = 1
    refuse(with_tensor(tensor), "is stored in segments")
    proto = with_tensor(raw([2], bytes(8)))
    values = numpy_helper.from_array(np.ones(1, "f4"), "s")
    sparse = helper.make_sparse_tensor(values, numpy_helper.from_array(ints(0)), [4])
    proto.graph.sparse_initializer.append(sparse)
    refuse(proto, "tensor 's' is sparse")


def test_a_broken_constant_node_is_named() -> None:
    constant = node("Constant", [], ["k"], value=raw([2], bytes(3), name=""))
    refuse(
        model([constant, node("Add", ["x", "k"], ["y"])], {"x": (2,)}, ["y"]), "tensor 'k': holds 3"
    )


# -- functions -------------------------------------------------------------------------------------


def function(name: str, calls: list[str]) -> onnx.FunctionProto:
    body = [
        node(c, ["a" if i == 0 else f"t{i}"], [f"t{i + 1}"], domain="f" if c != "Relu" else "")
        for i, c in enumerate(calls)
    ]
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("f", 1)]
    return helper.make_function("f", name, ["a"], [f"t{len(calls)}"], body, imports)


def test_functions_that_call_themselves() -> None:
    call = node("one", ["x"], ["y"], domain="f")
    functions = [function("one", ["two"]), function("two", ["Relu", "one"])]
    proto = model([call], {"x": (2,)}, ["y"], domains={"f": 1}, functions=functions)
    refuse(proto, "function '(one|two)' calls itself")


def test_functions_that_explode() -> None:
    functions = [function("f0", ["Relu"])]
    functions += [function(f"f{i}", [f"f{i - 1}"] * 10) for i in range(1, 12)]
    call = node("f11", ["x"], ["y"], domain="f")
    proto = model([call], {"x": (2,)}, ["y"], domains={"f": 1}, functions=functions)
    refuse(proto, "more than 1000000 nodes once its functions are inlined")


def test_names_that_are_not_text() -> None:
    data = relu().SerializeToString().replace(b"\x01r", b"\x01\xff")
    refuse(data, r"holds a name that is not UTF-8: b'\\xff'")
