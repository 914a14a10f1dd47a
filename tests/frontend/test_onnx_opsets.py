"""Every form that an operator had over the opsets, against ONNX Runtime on random data."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto

from nrt.frontend.onnx_model import import_model
from nrt.ir.evaluate import evaluate

from .build import compare, ints, model, node, normal, unary

SLICES = [
    ([1], [4], None, None),
    ([-3, 0], [100, -1], [1, 2], None),
    ([5, 4], [-100, 0], [1, 2], [-2, -1]),
    ([-2], [2**31], [-1], [1]),
]


@pytest.mark.parametrize(("starts", "ends", "axes", "steps"), SLICES)
def test_slice_inputs(starts, ends, axes, steps) -> None:
    tensors = {"starts": ints(*starts), "ends": ints(*ends)}
    if axes:
        tensors["axes"] = ints(*axes)
    if steps:
        tensors["steps"] = ints(*steps)
    compare(unary("Slice", (6, 7, 5), 13, tensors))


@pytest.mark.parametrize(
    ("starts", "ends", "axes"), [([1], [4], None), ([-3, 0], [100, -1], [1, 2])]
)
def test_slice_attributes(starts, ends, axes) -> None:
    extra = {"axes": axes} if axes else {}
    compare(unary("Slice", (6, 7, 5), 9, starts=starts, ends=ends, **extra))


@pytest.mark.parametrize("axes", [None, [1], [-1, 1]])
def test_squeeze(axes) -> None:
    extra = {} if axes is None else {"axes": axes}
    compare(unary("Squeeze", (3, 1, 5, 1), 11, **extra))
    compare(unary("Squeeze", (3, 1, 5, 1), 13, {} if axes is None else {"axes": ints(*axes)}))


@pytest.mark.parametrize("axes", [[0], [1, 3], [-1, 0]])
def test_unsqueeze(axes) -> None:
    compare(unary("Unsqueeze", (3, 5), 11, axes=axes))
    compare(unary("Unsqueeze", (3, 5), 13, {"axes": ints(*axes)}))


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge"])
def test_pad(mode) -> None:
    pads = [0, 1, 2, 3, 0, 2, 1, 0]
    compare(unary("Pad", (2, 3, 5, 7), 10, mode=mode, pads=pads))
    compare(unary("Pad", (2, 3, 5, 7), 13, {"pads": ints(*pads)}, mode=mode))


def test_pad_value_and_axes() -> None:
    value = np.asarray(-1.5, np.float32)
    compare(unary("Pad", (2, 3), 10, mode="constant", pads=[1, 0, 0, 2], value=-1.5))
    compare(unary("Pad", (2, 3), 13, {"pads": ints(1, 0, 0, 2), "value": value}))
    some = {"pads": ints(1, 2), "value": value, "axes": ints(-2)}
    compare(unary("Pad", (3, 4, 5), 18, some))


def test_clip_forms() -> None:
    low, high = np.asarray(-0.5, np.float32), np.asarray(0.75, np.float32)
    compare(unary("Clip", (5, 7), 10, min=-0.5, max=0.75))
    compare(unary("Clip", (5, 7), 10, min=0.25))
    compare(unary("Clip", (5, 7), 13, {"low": low, "high": high}))
    only_max = node("Clip", ["x", "", "high"], ["y"])
    compare(model([only_max], {"x": (4, 3)}, ["y"], {"high": high}, opset=13))
    compare(unary("Clip", (5, 7), 13))


def test_clip_of_integers_and_computed_bounds() -> None:
    types = dict.fromkeys(("x", "y"), TensorProto.INT32)
    bounds = {"low": np.asarray(1, np.int32), "high": np.asarray(3, np.int32)}
    clip = node("Clip", ["x", "low", "high"], ["y"], name="clip")
    graph = compare(model([clip], {"x": (4, 9)}, ["y"], bounds, dtypes=types))
    assert [n.name for n in graph.nodes] == ["clip/min", "clip"]
    computed = model([clip], {"x": (4, 9), "low": (), "high": ()}, ["y"])
    compare(
        computed, {"x": normal(4, 9), "low": np.asarray(-1, "f4"), "high": np.asarray(0.5, "f4")}
    )


REDUCTIONS = ("Mean", "Sum", "Max", "Min", "Prod", "L1", "L2", "SumSquare", "LogSumExp")


@pytest.mark.parametrize("kind", REDUCTIONS)
@pytest.mark.parametrize("axes", [None, [1], [-1, 0]])
@pytest.mark.parametrize("keepdims", [0, 1])
def test_reduce(kind, axes, keepdims) -> None:
    extra = {} if axes is None else {"axes": axes}
    compare(unary(f"Reduce{kind}", (3, 5, 7), 11, keepdims=keepdims, **extra))
    tensors = {} if axes is None else {"axes": ints(*axes)}
    compare(unary(f"Reduce{kind}", (3, 5, 7), 18, tensors, keepdims=keepdims))


def test_reduce_log_sum() -> None:
    proto = unary("ReduceLogSum", (3, 5), 18, {"axes": ints(1)})
    compare(proto, {"x": np.abs(normal(3, 5)) + 1})


def test_reduce_without_axes_may_do_nothing() -> None:
    empty = {"axes": ints()}
    compare(unary("ReduceSum", (3, 5), 13, empty, noop_with_empty_axes=1))
    compare(unary("ReduceSum", (3, 5), 13, empty, noop_with_empty_axes=0))


@pytest.mark.parametrize("opset", [11, 13, 18])
def test_split(opset) -> None:
    names = ["a", "b", "c"]
    if opset < 13:
        split = node("Split", ["x"], names, axis=-1, split=[2, 1, 4])
        compare(model([split], {"x": (3, 7)}, names, opset=opset))
    else:
        split = node("Split", ["x", "sizes"], names, axis=-1)
        compare(model([split], {"x": (3, 7)}, names, {"sizes": ints(2, 1, 4)}, opset=opset))
    equal = node("Split", ["x"], names, axis=1, **({"num_outputs": 3} if opset == 18 else {}))
    compare(model([equal], {"x": (3, 6)}, names, opset=opset))


def test_split_into_unequal_parts() -> None:
    split = node("Split", ["x"], ["a", "b", "c"], axis=0, num_outputs=3)
    graph = compare(model([split], {"x": (7, 2)}, ["a", "b", "c"], opset=18))
    assert [v.shape[0] for v in graph.outputs.values()] == [3, 3, 1]


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize("axis", [None, 0, 1, 2, -1])
def test_softmax_before_and_since_13(op, axis) -> None:
    extra = {} if axis is None else {"axis": axis}
    compare(unary(op, (3, 4, 5), 11, **extra))
    compare(unary(op, (3, 4, 5), 13, **extra))


@pytest.mark.parametrize("opset", [7, 9, 14, 15])
def test_batch_normalization(opset) -> None:
    tensors = {k: normal(5) for k in ("scale", "bias", "mean")}
    tensors["var"] = np.abs(normal(5)) + 0.5
    compare(unary("BatchNormalization", (2, 5, 3, 4), opset, tensors, epsilon=1e-3))


@pytest.mark.parametrize("opset", [7, 9])
@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_upsample(opset, mode) -> None:
    scales = [1.0, 1.0, 2.0, 1.5]
    if opset == 7:
        proto = unary("Upsample", (1, 2, 3, 4), 7, mode=mode, scales=scales)
    else:
        proto = unary("Upsample", (1, 2, 3, 4), 9, {"scales": np.float32(scales)}, mode=mode)
    compare(proto)


@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_resize_of_opset_10(mode) -> None:
    scales = {"scales": np.asarray([1, 1, 2, 0.5], np.float32)}
    compare(unary("Resize", (1, 2, 3, 8), 10, scales, mode=mode))


@pytest.mark.parametrize(
    "coordinate", ["half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"]
)
@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_resize_coordinates(mode, coordinate) -> None:
    attributes = {"mode": mode, "coordinate_transformation_mode": coordinate}
    sized = node("Resize", ["x", "", "", "sizes"], ["y"], **attributes)
    sizes = {"sizes": ints(1, 2, 7, 9)}
    compare(model([sized], {"x": (1, 2, 5, 6)}, ["y"], sizes, opset=13))
    scaled = node("Resize", ["x", "", "scales"], ["y"], **attributes)
    # ONNX Runtime rounds the length that align_corners divides by; elsewhere scales may be odd.
    odd = [2.0, 0.5] if coordinate == "align_corners" else [2.5, 0.8]
    scales = {"scales": np.asarray([1, 1, *odd], np.float32)}
    compare(model([scaled], {"x": (1, 2, 5, 6)}, ["y"], scales, opset=13))


def test_resize_axes_and_policy() -> None:
    resize = node(
        "Resize",
        ["x", "", "", "sizes"],
        ["y"],
        mode="linear",
        axes=[3, 2],
        keep_aspect_ratio_policy="not_larger",
    )
    graph = import_model(
        model([resize], {"x": (1, 1, 4, 8)}, ["y"], {"sizes": ints(10, 9)}, opset=18)
    )
    assert graph.outputs["y"].shape == (1, 1, 5, 10)


@pytest.mark.parametrize(
    ("attributes", "bias"),
    [
        ({}, (7,)),
        ({"transA": 1}, (3, 7)),
        ({"transB": 1, "alpha": 0.5, "beta": 2.0}, (3, 1)),
        ({"alpha": 0.25}, None),
        ({"beta": 0.0}, (7,)),
    ],
)
def test_gemm(attributes, bias) -> None:
    tensors = {"b": normal(7, 5) if attributes.get("transB") else normal(5, 7)}
    if bias:
        tensors["c"] = normal(*bias)
    shape = (5, 3) if attributes.get("transA") else (3, 5)
    graph = compare(unary("Gemm", shape, 11, tensors, **attributes))
    assert graph.nodes[0].name == "the_node"
    assert graph.nodes[0].op.name == "MatMul"


@pytest.mark.parametrize(
    ("shape", "attributes", "result"),
    [
        ([0, -1], {}, (2, 15)),
        ([1, 0, -1], {}, (1, 3, 10)),
        ([-1], {}, (30,)),
        ([5, 0, 2, 1], {}, (5, 3, 2, 1)),
    ],
)
def test_reshape(shape, attributes, result) -> None:
    graph = compare(unary("Reshape", (2, 3, 5), 13, {"shape": ints(*shape)}, **attributes))
    assert graph.outputs["y"].shape == result


@pytest.mark.parametrize("axis", [0, 1, 2, 3, -1])
def test_flatten(axis) -> None:
    compare(unary("Flatten", (2, 3, 5), 13, axis=axis))


def test_movement() -> None:
    compare(unary("Transpose", (2, 3, 5), 13))
    compare(unary("Transpose", (2, 3, 5), 13, perm=[1, 2, 0]))
    compare(unary("Expand", (3, 1, 5), 13, {"shape": ints(2, 1, 4, 1)}))
    compare(unary("Tile", (2, 3, 1), 13, {"repeats": ints(3, 1, 4)}))
    compare(unary("Gather", (4, 5, 3), 13, {"i": ints(-1, 0, 2)}, axis=1))
    compare(unary("Gather", (4, 5, 3), 13, {"i": np.asarray(2, np.int64)}, axis=-1))
    compare(unary("GatherElements", (2, 5), 13, {"i": np.asarray([[4, -1], [0, 2]])}, axis=1))
    compare(unary("Trilu", (2, 5, 4), 14, {"k": np.asarray(-1, np.int64)}, upper=0))
    compare(unary("Trilu", (5, 4), 14))
    compare(unary("DepthToSpace", (1, 18, 2, 3), 13, blocksize=3, mode="DCR"))
    compare(unary("DepthToSpace", (1, 18, 2, 3), 13, blocksize=3, mode="CRD"))
    compare(unary("SpaceToDepth", (1, 2, 4, 6), 13, blocksize=2))
    concat = node("Concat", ["x", "c", "x"], ["y"], axis=-2)
    compare(model([concat], {"x": (2, 3, 4)}, ["y"], {"c": normal(2, 1, 4)}))


ACTIVATIONS = [
    ("Relu", {}),
    ("LeakyRelu", {"alpha": 0.2}),
    ("Elu", {"alpha": 0.7}),
    ("Selu", {}),
    ("Celu", {"alpha": 1.3}),
    ("ThresholdedRelu", {"alpha": 0.4}),
    ("Sigmoid", {}),
    ("HardSigmoid", {"alpha": 0.3, "beta": 0.4}),
    ("HardSwish", {}),
    ("Tanh", {}),
    ("Softplus", {}),
    ("Softsign", {}),
    ("Erf", {}),
    ("Exp", {}),
    ("Neg", {}),
    ("Abs", {}),
    ("Sign", {}),
    ("Floor", {}),
    ("Ceil", {}),
    ("Round", {}),
    ("Sin", {}),
    ("Cos", {}),
    ("Reciprocal", {}),
    ("Identity", {}),
    ("Dropout", {}),
]


@pytest.mark.parametrize(("op", "attributes"), ACTIVATIONS)
def test_activations(op, attributes) -> None:
    compare(unary(op, (3, 5, 2), 14, **attributes))


def test_positive_functions_and_prelu() -> None:
    positive = np.abs(normal(4, 7)) + 0.1
    for op in ("Log", "Sqrt"):
        compare(unary(op, (4, 7), 14), {"x": positive})
    compare(unary("PRelu", (2, 4, 3), 14, {"slope": normal(4, 1)}))
    compare(unary("LRN", (2, 7, 3, 3), 13, size=5, alpha=0.02, beta=0.6, bias=1.5))
    compare(unary("InstanceNormalization", (2, 3, 4, 5), 13, {"s": normal(3), "b": normal(3)}))
    compare(unary("Pow", (3, 4), 14, {"e": np.asarray(2, np.int64)}))
    compare(
        unary("LayerNormalization", (2, 3, 8), 17, {"s": normal(3, 8), "b": normal(3, 8)}, axis=1)
    )


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu(approximate) -> None:
    gelu = import_model(unary("Gelu", (3, 4), 20, approximate=approximate)).nodes[0].op
    assert gelu.approximate is (approximate == "tanh")


def test_microsoft_activations() -> None:
    for op, inputs in (
        ("Gelu", ["x"]),
        ("FastGelu", ["x", "b"]),
        ("BiasGelu", ["x", "b"]),
        ("QuickGelu", ["x"]),
    ):
        one = node(op, inputs, ["y"], domain="com.microsoft")
        tensors = {"b": normal(6)} if "b" in inputs else {}
        compare(model([one], {"x": (3, 6)}, ["y"], tensors, domains={"com.microsoft": 1}))


@pytest.mark.parametrize("op", ["Min", "Max", "Sum", "Mean"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_variadic(op, count) -> None:
    names = [f"x{i}" for i in range(count)]
    shapes = [(3, 4), (4,), (3, 1)]
    one = node(op, names, ["y"])
    compare(model([one], dict(zip(names, shapes, strict=False)), ["y"], opset=13))


def test_comparisons_and_logic() -> None:
    shapes = {"a": (3, 5), "b": (5,)}
    nodes = [
        node("Less", ["a", "b"], ["l"]),
        node("GreaterOrEqual", ["a", "b"], ["g"]),
        node("And", ["l", "g"], ["n"]),
        node("Or", ["l", "n"], ["o"]),
        node("Xor", ["o", "g"], ["e"]),
        node("Not", ["e"], ["k"]),
        node("Where", ["k", "a", "b"], ["w"]),
        node("Cast", ["o"], ["y"], to=TensorProto.INT32),
        node("CastLike", ["y", "w"], ["z"]),
    ]
    types = {"y": TensorProto.INT32}
    compare(model(nodes, shapes, ["w", "y", "z"], dtypes=types, opset=16))


def test_layer_normalization_statistics() -> None:
    one = node("LayerNormalization", ["x", "s"], ["y", "mean", "inverse"], axis=-2)
    compare(model([one], {"x": (3, 4, 5)}, ["y", "mean", "inverse"], {"s": normal(4, 5)}))


def test_dropout_mask_is_true() -> None:
    one = node("Dropout", ["x"], ["y", "mask"])
    types = {"mask": TensorProto.BOOL}
    graph = compare(model([one], {"x": (3, 4)}, ["y", "mask"], dtypes=types, opset=13))
    assert graph.outputs["mask"].constant.all()


def test_an_operator_that_never_changed_may_be_of_an_old_opset() -> None:
    types = {"x": TensorProto.BOOL, "y": TensorProto.BOOL}
    compare(model([node("Not", ["x"], ["y"])], {"x": (3,)}, ["y"], opset=1, dtypes=types))


@pytest.mark.parametrize("alpha", [None, 0.5])
def test_swish(alpha) -> None:
    graph = import_model(unary("Swish", (3, 7), 24, **({"alpha": alpha} if alpha else {})))
    x = normal(3, 7)
    expected = x / (1 + np.exp(-(alpha or 1) * x))
    np.testing.assert_allclose(evaluate(graph, {"x": x})["y"], expected, rtol=1e-5, atol=1e-6)
    assert len(graph) == (3 if alpha else 2)
