"""Quantized operators against ONNX Runtime, as they are imported and as they are compiled."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from nrt.builder import optimize
from nrt.dtypes import INT8, UINT8
from nrt.errors import ImportModelError, UnsupportedOpError
from nrt.frontend import import_model
from nrt.frontend.onnx_export import to_onnx
from nrt.ir.evaluate import evaluate
from nrt.ir.ops import Conv, Dequantize, MatMul, Quantize
from nrt.ir.verify import verify

Array = np.ndarray[Any, np.dtype[Any]]


def model(
    nodes: list[onnx.NodeProto],
    feeds: dict[str, Array],
    stored: dict[str, Array],
    outputs: dict[str, int],
    opset: int = 21,
    domains: tuple[str, ...] = (),
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "quantized",
        [
            helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
            for n, a in feeds.items()
        ],
        [helper.make_tensor_value_info(n, t, None) for n, t in outputs.items()],
        [numpy_helper.from_array(a, n) for n, a in stored.items()],
    )
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def reference(proto: onnx.ModelProto, feeds: dict[str, Array]) -> list[Array]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    # Without it, products of 8 bits saturate 16-bit sums on a CPU without VNNI.
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    results: list[Array] = session.run(None, feeds)
    return results


def agrees(proto: onnx.ModelProto, feeds: dict[str, Array]) -> None:
    """Integers differ by at most 1, and rarely: a sum in floats may round otherwise at a half."""
    wanted = reference(proto, feeds)
    imported = import_model(proto)
    verify(imported)
    for graph in (imported, optimize(proto).graph):
        for found, array in zip(evaluate(graph, feeds).values(), wanted, strict=True):
            assert found.dtype == array.dtype
            assert found.shape == array.shape
            if array.dtype.kind == "f":
                np.testing.assert_allclose(found, array, rtol=2e-6, atol=1e-6)
                continue
            apart = np.abs(found.astype(np.int64) - array)
            assert apart.max() <= 1
            assert (apart > 0).sum() <= max(2, 0.01 * apart.size)


SIGNS = [(np.uint8, np.uint8), (np.uint8, np.int8), (np.int8, np.int8)]


def whole(rng: np.random.Generator, dtype: Any, *shape: int) -> Array:
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max + 1, shape, dtype)


def seven_bits(rng: np.random.Generator, dtype: Any, *shape: int) -> Array:
    """Factors with which ONNX Runtime's products of uint8 and int8 do not saturate 16 bits."""
    data = whole(rng, dtype, *shape)
    return data // dtype(2) if dtype is np.int8 else data


@pytest.mark.parametrize(("x_type", "w_type"), SIGNS)
@pytest.mark.parametrize(("groups", "channels"), [(1, 16), (2, 6), (1, 5)])
def test_qlinear_conv(
    x_type: Any, w_type: Any, groups: int, channels: int, rng: np.random.Generator
) -> None:
    inner = channels // groups
    feeds = {"x": whole(rng, x_type, 2, channels, 7, 6)}
    middle = 0 if w_type is np.int8 else 128
    stored = {
        "xs": np.float32(0.02), "xz": x_type(3), "w": seven_bits(rng, w_type, 8, inner, 3, 3),
        "ws": rng.uniform(0.002, 0.004, 8).astype(np.float32), "wz": np.full(8, middle, w_type),
        "ys": np.float32(0.07), "yz": x_type(100), "b": rng.integers(-900, 900, 8, np.int32),
    }  # fmt: skip
    names = ["x", "xs", "xz", "w", "ws", "wz", "ys", "yz", "b"]
    node = helper.make_node(
        "QLinearConv", names, ["y"], group=groups, pads=[1, 0, 1, 2], strides=[2, 1]
    )
    output = {"y": helper.np_dtype_to_tensor_dtype(np.dtype(x_type))}
    agrees(model([node], feeds, stored, output), feeds)


@pytest.mark.parametrize(("a_type", "b_type"), SIGNS)
def test_qlinear_matmul(a_type: Any, b_type: Any, rng: np.random.Generator) -> None:
    feeds = {"a": whole(rng, a_type, 3, 5, 16)}
    stored = {
        "as": np.float32(0.02), "az": a_type(7), "b": seven_bits(rng, b_type, 16, 9),
        "bs": np.float32(0.01), "bz": b_type(0), "ys": np.float32(0.0613), "yz": a_type(60),
    }  # fmt: skip
    node = helper.make_node("QLinearMatMul", ["a", "as", "az", "b", "bs", "bz", "ys", "yz"], ["y"])
    output = {"y": helper.np_dtype_to_tensor_dtype(np.dtype(a_type))}
    agrees(model([node], feeds, stored, output), feeds)


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize(("x_type", "w_type"), SIGNS)
def test_integer_products(x_type: Any, w_type: Any, zeros: bool, rng: np.random.Generator) -> None:
    # ONNX Runtime has the convolution of uint8 alone.
    feeds = {"x": whole(rng, np.uint8, 1, 4, 6, 5), "a": whole(rng, x_type, 5, 8)}
    stored = {"w": whole(rng, np.uint8, 3, 4, 3, 3), "b": seven_bits(rng, w_type, 8, 6)}
    conv, product = ["x", "w"], ["a", "b"]
    if zeros:
        stored |= {"xz": np.uint8(9), "wz": np.uint8(130), "az": x_type(9), "bz": w_type(5)}
        conv, product = [*conv, "xz", "wz"], [*product, "az", "bz"]
    nodes = [
        helper.make_node("ConvInteger", conv, ["y"], pads=[1] * 4),
        helper.make_node("MatMulInteger", product, ["z"]),
    ]
    outputs = {"y": TensorProto.INT32, "z": TensorProto.INT32}
    agrees(model(nodes, feeds, stored, outputs), feeds)


@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize("kind", [np.uint8, np.int8])
def test_products_of_bytes_are_products_of_bytes(
    kind: Any, constant: bool, rng: np.random.Generator
) -> None:
    feeds, stored = {"a": whole(rng, kind, 5, 8)}, {"b": seven_bits(rng, np.int8, 8, 6)}
    if not constant:
        feeds, stored = feeds | stored, {}
    node = helper.make_node("MatMulInteger", ["a", "b"], ["z"])
    proto = model([node], feeds, stored, {"z": TensorProto.INT32})
    (found,) = optimize(proto).graph.nodes
    assert isinstance(found.op, MatMul)
    assert [v.dtype.numpy for v in found.inputs] == [kind, np.int8]
    agrees(proto, feeds)


def test_convolutions_of_uint8_by_int8(rng: np.random.Generator) -> None:
    feeds = {"x": whole(rng, np.uint8, 2, 4, 6, 5)}
    w = whole(rng, np.int8, 3, 4, 3, 3)
    node = helper.make_node("ConvInteger", ["x", "w"], ["y"], pads=[1] * 4)
    graph = import_model(model([node], feeds, {"w": w}, {"y": TensorProto.INT32}))
    assert [v.dtype for v in graph.nodes[0].inputs] == [UINT8, INT8]
    padded = np.pad(feeds["x"].astype(np.int32), ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    wanted = np.einsum("nchwrs,kcrs->nkhw", windows, w.astype(np.int32))
    np.testing.assert_array_equal(evaluate(graph, feeds)["y"], wanted)


@pytest.mark.parametrize("kind", [np.uint8, np.int8])
@pytest.mark.parametrize("w_kind", [np.uint8, np.int8])
def test_weights_that_int8_holds(kind: Any, w_kind: Any, rng: np.random.Generator) -> None:
    """The zero point of the left side may be known or not, one or one per row."""
    middle = 128 if w_kind is np.uint8 else 0
    weights = (rng.integers(-60, 61, (300, 6)) + middle).astype(w_kind)
    zeros = {"z": whole(rng, kind), "rows": whole(rng, kind, 5), "w": weights, "wz": w_kind(middle)}
    for shape in ((5, 300), (2, 5, 300)):
        feeds = {"a": whole(rng, kind, *shape), "late": np.asarray(whole(rng, kind))}
        nodes = [
            helper.make_node("MatMulInteger", ["a", "w", zero, "wz"], [f"y{index}"])
            for index, zero in enumerate(["", "z", "late"])
        ]
        outputs = {f"y{index}": TensorProto.INT32 for index in range(3)}
        proto = model(nodes, feeds, zeros, outputs)
        found = [n for n in optimize(proto).graph.nodes if isinstance(n.op, MatMul)]
        assert {n.inputs[0].dtype.numpy for n in found} == {np.dtype(kind)}
        wide = {n: a.astype(np.int64) for n, a in {**feeds, **zeros}.items()}
        for graph in (import_model(proto), optimize(proto).graph):
            results = evaluate(graph, feeds)
            for name, zero in (("y0", 0), ("y1", wide["z"]), ("y2", wide["late"])):
                wanted = (wide["a"] - zero) @ (wide["w"] - middle)
                np.testing.assert_array_equal(results[name], wanted)


def test_dynamic_quantization(rng: np.random.Generator) -> None:
    for low in (-2.0, 0.5):
        feeds = {"x": rng.uniform(low, 3, (4, 7)).astype(np.float32)}
        node = helper.make_node("DynamicQuantizeLinear", ["x"], ["y", "s", "z"])
        outputs = {"y": TensorProto.UINT8, "s": TensorProto.FLOAT, "z": TensorProto.UINT8}
        agrees(model([node], feeds, {}, outputs), feeds)


@pytest.mark.parametrize("opset", [10, 13, 19, 21, 23])
@pytest.mark.parametrize("domain", ["", "com.microsoft"])
def test_quantize_and_back(opset: int, domain: str, rng: np.random.Generator) -> None:
    feeds = {"x": (3 * rng.standard_normal((2, 5, 4))).astype(np.float32)}
    per_axis = opset >= 13
    shape = (5,) if per_axis else ()
    stored = {
        "s": rng.uniform(0.01, 0.04, shape).astype(np.float32),
        "z": rng.integers(0, 256, shape, np.uint8),
    }
    axis = {"axis": 1} if per_axis else {}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], domain=domain, **axis),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], domain=domain, **axis),
    ]
    outputs = {"q": TensorProto.UINT8, "y": TensorProto.FLOAT}
    domains = (domain,) if domain else ()
    agrees(model(nodes, feeds, stored, outputs, opset, domains), feeds)


def test_blocks(rng: np.random.Generator) -> None:
    feeds = {"x": rng.standard_normal((3, 10)).astype(np.float32)}
    stored = {"s": rng.uniform(0.01, 0.03, (3, 4)).astype(np.float32)}
    block = {"axis": 1, "block_size": 3}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s"], ["q"], output_dtype=3, **block),
        helper.make_node("DequantizeLinear", ["q", "s"], ["y"], **block),
    ]
    outputs = {"q": TensorProto.INT8, "y": TensorProto.FLOAT}
    agrees(model(nodes, feeds, stored, outputs), feeds)


@pytest.mark.parametrize(
    ("attributes", "stored", "message"),
    [
        (
            {},
            {"s": np.ones(3, np.float32)},
            r"scale1 has shape \[3\], expected one number or \[5\]",
        ),
        (
            {"block_size": 2},
            {"s": np.ones((2, 2), np.float32)},
            r"scale1 has shape \[2, 2\], expected \[2, 3\] for blocks of 2",
        ),
        ({"axis": 4}, {"s": np.ones(5, np.float32)}, "axis 4 is outside a tensor of 2 dimensions"),
    ],
)
def test_scales_that_do_not_fit(
    attributes: dict[str, int], stored: dict[str, Array], message: str
) -> None:
    feeds = {"x": np.zeros((2, 5), np.float32)}
    node = helper.make_node("QuantizeLinear", ["x", "s"], ["q"], **attributes)
    with pytest.raises(ImportModelError, match=message):
        import_model(model([node], feeds, stored, {"q": TensorProto.UINT8}))


@pytest.mark.parametrize(
    ("stored", "attributes", "message"),
    [
        ({}, {"block_size": 2}, "scales of blocks are computed at run time"),
        ({"s": np.float32(1)}, {"output_dtype": 7}, "the result is int64, expected one of int8"),
        ({"s": np.float32(1)}, {"output_dtype": 22}, "element type 22 is unknown"),
        ({"s": np.float32(1)}, {"output_dtype": 17, "saturate": 0}, "saturate is 0, expected 1"),
    ],
)
def test_forms_that_are_not_supported(
    stored: dict[str, Array], attributes: dict[str, int], message: str
) -> None:
    feeds = {"x": np.zeros((2, 5), np.float32)}
    if not stored:
        feeds["s"] = np.ones((2, 3), np.float32)
    node = helper.make_node("QuantizeLinear", ["x", "s"], ["q"], **attributes)
    with pytest.raises(UnsupportedOpError, match=message):
        import_model(model([node], feeds, stored, {"q": TensorProto.UINT8}))


def network(rng: np.random.Generator) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """As tools write it: Q and DQ around a convolution, an Add, a pooling and a Gemm."""
    stored: dict[str, Array] = {}
    nodes: list[onnx.NodeProto] = []

    def node(kind: str, *inputs: str, **attributes: Any) -> str:
        name = f"{kind.lower()}{len(nodes)}"
        nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def const(array: Any, dtype: Any = np.float32) -> str:
        name = f"c{len(stored)}"
        stored[name] = np.asarray(array, dtype)
        return name

    def grid(x: str, scale: float) -> str:
        s, z = const(scale), const(0, np.int8)
        return node("DequantizeLinear", node("QuantizeLinear", x, s, z), s, z)

    def weights(*shape: int) -> str:
        q = const(whole(rng, np.int8, *shape), np.int8)
        s = const(rng.uniform(1e-3, 2e-3, shape[0]))
        return node("DequantizeLinear", q, s, const(np.zeros(shape[0]), np.int8), axis=0)

    def bias(count: int, scale: float) -> str:
        q = const(rng.integers(-3000, 3000, count), np.int32)
        return node("DequantizeLinear", q, const(np.full(count, scale)), axis=0)

    x = grid("x", 0.02)
    y = node("Conv", x, weights(16, 16, 3, 3), bias(16, 3e-5), pads=[1] * 4)
    y = grid(node("Relu", grid(y, 0.03)), 0.03)
    y = grid(node("Conv", y, weights(16, 16, 1, 1), bias(16, 4e-5)), 0.04)
    y = grid(node("Relu", grid(node("Add", y, x), 0.05)), 0.05)
    y = grid(node("MaxPool", y, kernel_shape=[2, 2], strides=[2, 2]), 0.05)
    y = grid(node("GlobalAveragePool", y), 0.02)
    y = node("Flatten", y)
    y = grid(node("Gemm", y, weights(5, 16), bias(5, 3e-5), transB=1), 0.01)
    nodes.append(helper.make_node("Identity", [y], ["y"]))
    feeds = {"x": rng.standard_normal((2, 16, 8, 6)).astype(np.float32)}
    return model(nodes, feeds, stored, {"y": TensorProto.FLOAT}, 17), feeds


def test_a_network_of_q_and_dq(rng: np.random.Generator) -> None:
    proto, feeds = network(rng)
    graph = optimize(proto).graph
    products = [n for n in graph.nodes if isinstance(n.op, Conv | MatMul)]
    assert [n.inputs[0].dtype for n in products] == [INT8] * 3
    assert [n.output.dtype for n in products[:2]] == [INT8] * 2
    (wanted,) = reference(proto, feeds)
    quanta = np.abs(evaluate(graph, feeds)["y"] - wanted) / 0.01
    assert (quanta < 1.01).mean() >= 0.99
    assert quanta.max() < 2.01


def test_what_was_imported_is_written_as_it_was(rng: np.random.Generator) -> None:
    proto, feeds = network(rng)
    graph = import_model(proto)
    written = to_onnx(graph)
    onnx.checker.check_model(written, full_check=True)
    counts = Counter(n.op_type for n in written.graph.node)
    assert counts["QuantizeLinear"] == sum(isinstance(n.op, Quantize) for n in graph.nodes) == 9
    assert counts["DequantizeLinear"] == sum(isinstance(n.op, Dequantize) for n in graph.nodes)
    apart = []
    for _ in range(20):
        feeds = {n: rng.standard_normal(a.shape, np.float32) for n, a in feeds.items()}
        (found,), wanted = reference(written, feeds), evaluate(graph, feeds)["y"]
        np.testing.assert_allclose(found, wanted, atol=0.01001)
        apart.append(np.abs(found - wanted) > 1e-6)
    # Sums in fp32 may round a half to the other side.
    assert np.mean(apart) <= 0.1


def test_layers_of_int8_are_written_in_floats(rng: np.random.Generator) -> None:
    proto, feeds = network(rng)
    graph = optimize(proto).graph
    written = to_onnx(graph)
    onnx.checker.check_model(written, full_check=True)
    (found,) = reference(written, feeds)
    np.testing.assert_allclose(found, evaluate(graph, feeds)["y"], atol=0.01001)
