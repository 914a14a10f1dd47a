"""The PyTorch peer computes what the ONNX model says."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

torch = pytest.importorskip("torch")
ort = pytest.importorskip("onnxruntime")

from benchmarks.torch_model import convert  # noqa: E402 (it needs torch)
from nrt.errors import ImportModelError  # noqa: E402
from nrt.insight.compare import relative_error  # noqa: E402

TOLERANCE = 1e-5
FP16_TOLERANCE = 5e-3

Node = tuple[str, list[Any], dict[str, Any]]


def _model(nodes: list[Node], shape: tuple[int, ...], outputs: int = 1) -> onnx.ModelProto:
    """A chain: 'x' in a node's operands is the result so far, arrays become initializers."""
    built, weights, last = [], [], ["x"]
    for index, (op, operands, attributes) in enumerate(nodes):
        names = []
        for slot, operand in enumerate(operands):
            if isinstance(operand, str):
                names.append(last[0] if operand == "x" else operand)
            else:
                names.append(f"w{index}_{slot}")
                weights.append(numpy_helper.from_array(np.asarray(operand), names[-1]))
        count = outputs if index == len(nodes) - 1 else 1
        last = [f"y{index}_{i}" for i in range(count)]
        built.append(helper.make_node(op, names, last, **attributes))
    graph = helper.make_graph(
        built,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in last],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def _w(*shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng().standard_normal(shape).astype(np.float32)


def _i(*values: int) -> np.ndarray[Any, Any]:
    return np.array(values, np.int64)


IMAGE = (2, 6, 9, 7)
CASES: dict[str, tuple[list[Node], tuple[int, ...]]] = {
    "conv": (
        [("Conv", ["x", _w(5, 6, 3, 2), _w(5)], {"strides": [2, 1], "pads": [1, 0, 1, 0]})],
        IMAGE,
    ),
    "conv, uneven pads": ([("Conv", ["x", _w(5, 6, 3, 3)], {"pads": [0, 1, 2, 0]})], IMAGE),
    "conv, groups and dilations": (
        [("Conv", ["x", _w(9, 2, 3, 3), _w(9)], {"group": 3, "dilations": [2, 1]})],
        IMAGE,
    ),
    "conv transpose": (
        [("ConvTranspose", ["x", _w(6, 4, 2, 3), _w(4)], {"strides": [2, 1]})],
        IMAGE,
    ),
    "pools": (
        [
            ("MaxPool", ["x"], {"kernel_shape": [3, 2], "strides": [2, 2], "ceil_mode": 1}),
            ("AveragePool", ["x"], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
            ("GlobalAveragePool", ["x"], {}),
            ("Flatten", ["x"], {}),
        ],
        IMAGE,
    ),
    "average pool that counts its pads": (
        [
            (
                "AveragePool",
                ["x"],
                {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1},
            )
        ],
        IMAGE,
    ),
    "batch norm and clips": (
        [
            ("BatchNormalization", ["x", _w(6), _w(6), _w(6), _w(6) ** 2], {"epsilon": 1e-3}),
            ("Clip", ["x", np.float32(0), np.float32(6)], {}),
            ("Clip", ["x", np.float32(0.25)], {}),
        ],
        IMAGE,
    ),
    "gemms": (
        [
            ("Gemm", ["x", _w(11, 7), _w(11)], {"transB": 1}),
            ("Gemm", ["x", _w(11, 5), _w(5)], {}),
            ("MatMul", ["x", _w(5, 3)], {}),
        ],
        (4, 7),
    ),
    "norm and softmax": (
        [
            ("LayerNormalization", ["x", _w(7), _w(7)], {"axis": -1, "epsilon": 1e-6}),
            ("Softmax", ["x"], {"axis": 1}),
            ("ReduceMean", ["x"], {"axes": [1], "keepdims": 0}),
        ],
        (3, 5, 7),
    ),
    "pointwise": (
        [
            ("Mul", ["x", np.float32(0.5)], {}),
            ("Erf", ["x"], {}),
            ("Tanh", ["x"], {}),
            ("Pow", ["x", np.float32(3)], {}),
            ("Sub", [_w(5, 1), "x"], {}),
            ("Div", ["x", _w(1, 1, 1)], {}),
            ("Sigmoid", ["x"], {}),
            ("Sqrt", ["x"], {}),
        ],
        (3, 5, 7),
    ),
    "movement": (
        [
            ("Transpose", ["x"], {"perm": [2, 0, 1]}),
            ("Reshape", ["x", _i(0, -1)], {}),
            ("Unsqueeze", ["x", _i(0, -1)], {}),
            ("Squeeze", ["x", _i(0)], {}),
            ("Expand", ["x", _i(2, 1, 1, 3)], {}),
            ("Slice", ["x", _i(-2, 1), _i(99, -1), _i(3, 2), _i(1, 2)], {}),
            ("Concat", ["x", "x"], {"axis": -1}),
            ("Flatten", ["x"], {"axis": 2}),
        ],
        (3, 5, 7),
    ),
    "gathers": (
        [
            ("Gather", ["x", np.array([[0, 2], [1, 1]], np.int64)], {"axis": 1}),
            ("Gather", ["x", np.int64(-1)], {"axis": 0}),
            ("GatherElements", ["x", _i(1, 0, 1).reshape(1, 1, 3)], {"axis": 2}),
        ],
        (3, 5, 7),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_ops_agree_with_onnxruntime(name: str) -> None:
    nodes, shape = CASES[name]
    _assert_same(_model(nodes, shape))


def _assert_same(model: onnx.ModelProto, rank_outputs: int = 1) -> None:
    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    x = _w(*shape)
    expected = ort.InferenceSession(model.SerializeToString()).run(None, {"x": x})
    with torch.no_grad():
        results = convert(model)(torch.from_numpy(x))
    assert len(results) == len(expected) == rank_outputs
    for out, ref in zip(results, expected, strict=True):
        assert tuple(out.shape) == ref.shape
        assert relative_error(out.numpy(), ref) <= TOLERANCE


def test_split_gives_every_part() -> None:
    model = _model([("Split", ["x", _i(1, 3, 2)], {"axis": 1})], (2, 6, 3), outputs=3)
    _assert_same(model, 3)


def test_shape_arithmetic_is_done_at_conversion() -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["n"], axis=0),
        helper.make_node("Concat", ["n", "rest"], ["to"], axis=0),
        helper.make_node("Reshape", ["x", "to"], ["r"]),
        helper.make_node("ConstantOfShape", ["to2"], ["c"]),
        helper.make_node("Add", ["r", "c"], ["y"]),
    ]
    weights = [
        numpy_helper.from_array(_i(0), "zero"),
        numpy_helper.from_array(_i(-1), "rest"),
        numpy_helper.from_array(_i(35), "to2"),
    ]
    graph = helper.make_graph(
        nodes,
        "shapes",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [3, 5, 7])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    _assert_same(model)
    assert "shape" not in convert(model).source.replace("reshape", "")


def _graph(nodes: list[Any], weights: dict[str, Any], shape: tuple[int, ...]) -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node(op, i.split(), [o], **a) for op, i, o, a in nodes],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(w), name) for name, w in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


@pytest.mark.parametrize("mask_first", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_one_call(masked: bool, mask_first: bool) -> None:
    add = "mask p" if mask_first else "p mask"
    nodes = [
        ("Mul", "x two", "q", {}),
        ("Transpose", "x", "k", {"perm": [0, 1, 3, 2]}),
        ("MatMul", "q k", "m", {}),
        ("Div", "m five", "p", {}),
        *([("Add", add, "a", {})] if masked else []),
        ("Softmax", "a" if masked else "p", "s", {"axis": -1}),
        ("MatMul", "s x", "y", {}),
    ]
    weights = {"two": np.float32(2), "five": np.float32(5), "mask": _w(1, 1, 6, 6)}
    model = _graph(nodes, weights, (2, 3, 6, 5))
    _assert_same(model)
    assert "F.scaled_dot_product_attention(" in convert(model).source
    assert "softmax" not in convert(model).source


def test_products_with_a_bias_are_one_call() -> None:
    model = _graph(
        [("MatMul", "x w", "m", {}), ("Add", "b m", "y", {})],
        {"w": _w(7, 4), "b": _w(4)},
        (2, 3, 7),
    )
    _assert_same(model)
    assert "F.linear(" in convert(model).source


GELUS = {
    "erf, x first": [
        ("Div", "x r", "d", {}),
        ("Erf", "d", "e", {}),
        ("Add", "e one", "g", {}),
        ("Mul", "x g", "h", {}),
        ("Mul", "h half", "y", {}),
    ],
    "erf, half first": [
        ("Div", "x r", "d", {}),
        ("Erf", "d", "e", {}),
        ("Add", "one e", "g", {}),
        ("Mul", "half g", "h", {}),
        ("Mul", "x h", "y", {}),
    ],
    "tanh": [
        ("Mul", "x half", "hx", {}),
        ("Pow", "x three", "c", {}),
        ("Mul", "cubic c", "cc", {}),
        ("Add", "x cc", "i", {}),
        ("Mul", "i s", "j", {}),
        ("Tanh", "j", "e", {}),
        ("Add", "e one", "g", {}),
        ("Mul", "hx g", "y", {}),
    ],
}
NUMBERS = {
    "r": np.float32(2**0.5),
    "one": np.float32(1),
    "half": np.float32(0.5),
    "three": np.float32(3),
    "cubic": np.float32(0.044715),
    "s": np.float32((2 / np.pi) ** 0.5),
}


@pytest.mark.parametrize("form", GELUS)
def test_gelu_is_one_call(form: str) -> None:
    model = _graph(GELUS[form], NUMBERS, (3, 5, 7))
    _assert_same(model)
    assert convert(model).source.count(" = ") == 1
    assert f"approximate='{'tanh' if form == 'tanh' else 'none'}'" in convert(model).source


@pytest.mark.parametrize("name", ["r", "one", "half", "three", "cubic", "s"])
def test_what_only_looks_like_gelu_stays_as_it_is(name: str) -> None:
    form = "tanh" if name in ("three", "cubic", "s") else "erf, x first"
    numbers = {**NUMBERS, name: np.float32(NUMBERS[name] * 1.25)}
    if name == "three":
        numbers[name] = np.float32(2)
    model = _graph(GELUS[form], numbers, (3, 5, 7))
    _assert_same(model)
    assert "F.gelu" not in convert(model).source


def test_half_precision_and_masks_stay_finite() -> None:
    mask = np.where(np.arange(7) < 4, 0, -3.4e38).astype(np.float32)
    model = _model([("Add", ["x", mask], {}), ("Softmax", ["x"], {"axis": -1})], (3, 5, 7))
    x = _w(3, 5, 7)
    expected = ort.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0]
    with torch.no_grad():
        (out,) = convert(model, torch.float16)(torch.from_numpy(x).half())
    assert out.dtype == torch.float16
    assert relative_error(out.float().numpy(), expected) <= FP16_TOLERANCE


def test_convolution_weights_lie_channels_last() -> None:
    model = _model([("Conv", ["x", _w(5, 6, 3, 3)], {}), ("Relu", ["x"], {})], IMAGE)
    (weight,) = convert(model).parameters()
    assert weight.is_contiguous(memory_format=torch.channels_last)


def test_the_compiler_sees_one_graph() -> None:
    model = _model([("Conv", ["x", _w(5, 6, 3, 3)], {}), ("Relu", ["x"], {})], IMAGE)
    module = convert(model)
    explained = torch._dynamo.explain(module)(torch.from_numpy(_w(*IMAGE)))
    assert (explained.graph_count, explained.graph_break_count) == (1, 0)


def test_what_cannot_be_written_is_refused() -> None:
    with pytest.raises(ImportModelError, match=r"ops Hardmax are unknown; add them to benchmarks"):
        convert(_model([("Hardmax", ["x"], {})], (2, 3)))
    with pytest.raises(ImportModelError, match="MaxPool with asymmetric pads has no PyTorch"):
        convert(_model([("MaxPool", ["x"], {"kernel_shape": [2, 2], "pads": [0, 0, 1, 1]})], IMAGE))
    model = _model([("Relu", ["x"], {})], (2, 3))
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "N"
    with pytest.raises(ImportModelError, match="input 'x' has open dimensions"):
        convert(model)
