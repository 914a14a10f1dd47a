"""Single nodes that nrt refuses: forms it does not support, and attributes that make no sense."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto

from nrt.errors import ImportModelError, UnsupportedOpError
from nrt.frontend.onnx_model import import_model

from .build import model, node


def ints(*values: int) -> np.ndarray:
    return np.asarray(values, np.int64)


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


@pytest.mark.parametrize(
    ("one", "tensors", "message"),
    [
        (
            node("BatchNormalization", ["x", "c", "c", "c", "c"], ["y", "m", "v"], training_mode=1),
            {"c": ones(3)},
            "training_mode is 1",
        ),
        (node("Dropout", ["x", "", "t"], ["y"]), {"t": np.asarray(True)}, "training_mode is true"),
        (
            node("Pad", ["x", "p"], ["y"], mode="wrap"),
            {"p": ints(1, 1, 1, 1, 0, 0, 0, 0)},
            "mode is 'wrap'",
        ),
        (
            node(
                "Resize", ["x", "", "s"], ["y"], coordinate_transformation_mode="tf_crop_and_resize"
            ),
            {"s": ones(4)},
            "tf_crop_and_resize",
        ),
        (
            node("Resize", ["x", "", "s"], ["y"], mode="cubic", exclude_outside=1),
            {"s": ones(4)},
            "exclude_outside is 1",
        ),
        (
            node("Resize", ["x", "", "s"], ["y"], mode="linear", antialias=1),
            {"s": np.asarray([1, 1, 0.5, 0.5], "f4")},
            "antialias is 1",
        ),
        (
            node("MaxPool", ["x"], ["y"], kernel_shape=[2, 2], storage_order=1),
            {},
            "storage_order is 1",
        ),
        (node("Cast", ["x"], ["y"], to=TensorProto.STRING), {}, "ONNX element type 8 is unknown"),
        (node("NonZero", ["x"], ["y"]), {}, "input 'X' is computed at run time"),
    ],
)
def test_unsupported_forms(one, tensors, message) -> None:
    proto = model([one], {"x": (1, 3, 4, 4)}, ["y"], tensors, opset=19)
    with pytest.raises(UnsupportedOpError, match=message):
        import_model(proto)


@pytest.mark.parametrize(
    ("one", "tensors", "message"),
    [
        (
            node("Reshape", ["x", "s"], ["y"], name="r"),
            {"s": ints(5, -1)},
            r"Reshape 'r': input of shape \[1, 3, 4, 4\] does not fit",
        ),
        (node("Reshape", ["x", "s"], ["y"]), {"s": ints(-1, -1)}, "at most one -1"),
        (node("Reshape", ["x", "s"], ["y"]), {"s": ints(7, 7)}, "Reshape_0"),
        (node("Reshape", ["x", "s"], ["y"]), {"s": ints(1, 1, 1, 1, 0)}, "copies dimension 4"),
        (node("Reshape", ["x", "s"], ["y"]), {"s": ones(2)}, "has type float32, expected int64"),
        (node("Transpose", ["x"], ["y"], perm=[0, 0, 1, 2]), {}, "Transpose_0"),
        (node("Concat", ["x", "c"], ["y"], axis=7), {"c": ones(1, 3, 4, 4)}, "axis 7 is outside"),
        (node("Softmax", ["x"], ["y"], axis=9), {}, "axis 9 is outside"),
        (node("Squeeze", ["x", "a"], ["y"]), {"a": ints(1)}, "is squeezed, expected size 1"),
        (node("Unsqueeze", ["x", "a"], ["y"]), {"a": ints(1, 1)}, "name a dimension twice"),
        (node("Slice", ["x", "a", "a"], ["y"]), {"a": ints(0, 0, 0, 0, 0)}, "axis 4 is outside"),
        (
            node("Slice", ["x", "a", "b"], ["y"]),
            {"a": ints(0), "b": ints(1, 2)},
            "differ in length",
        ),
        (node("Slice", ["x", "a", "b", "a", "a"], ["y"]), {"a": ints(0), "b": ints(3)}, "step 0"),
        (node("Split", ["x", "s"], ["y", "z"]), {"s": ints(1, 1)}, "do not divide dimension 0"),
        (node("Expand", ["x", "s"], ["y"]), {"s": ints(2, 5, 4, 4)}, "does not broadcast"),
        (node("LRN", ["x"], ["y"], size=2**62), {}, "size is .* absurdly large"),
        (node("MaxPool", ["x"], ["y"], kernel_shape=[2**40, 1]), {}, "kernel_shape is .* absurdly"),
        (
            node("AveragePool", ["x"], ["y"], kernel_shape=[9, 1], pads=[2**40, 0, 0, 0]),
            {},
            "pads is .* absurdly large",
        ),
        (
            node("Expand", ["x", "s"], ["y"]),
            {"s": ints(2**40, 3, 4, 4)},
            "its result .* is absurdly large",
        ),
        (node("Tile", ["x", "s"], ["y"]), {"s": ints(2, 5)}, "expected 4 numbers"),
        (node("Pad", ["x", "s"], ["y"]), {"s": ints(2, 5)}, "expected 8 numbers"),
        (
            node("Conv", ["x", "w"], ["y"], kernel_shape=[5, 5]),
            {"w": ones(2, 3, 3, 3)},
            "kernel_shape is",
        ),
        (node("Conv", ["x", "w"], ["y"], strides=[0, 1]), {"w": ones(2, 3, 3, 3)}, "strides is"),
        (node("Conv", ["x", "w"], ["y"], pads=[1, 1]), {"w": ones(2, 3, 3, 3)}, "pads is"),
        (
            node("Conv", ["x", "w"], ["y"], auto_pad="BEST"),
            {"w": ones(2, 3, 3, 3)},
            "auto_pad is 'BEST'",
        ),
        (node("Conv", ["x", "w"], ["y"]), {"w": ones(2, 9, 3, 3)}, "channels"),
        (node("Conv", ["x", "w"], ["y"]), {"w": ones(2, 3, 3)}, "expected 4"),
        (node("MaxPool", ["x"], ["y"], kernel_shape=[2]), {}, "expected 2 positive numbers"),
        (node("Gemm", ["x", "w"], ["y"]), {"w": ones(2, 3)}, "expected a matrix"),
        (
            node("ConstantOfShape", ["s"], ["y"]),
            {"s": ints(2**40, 2**20)},
            "asks for a constant of shape",
        ),
        (node("ConstantOfShape", ["s"], ["y"]), {"s": ints(-1)}, "asks for a constant of shape"),
        (
            node("Range", ["a", "b", "a"], ["y"]),
            {"a": np.asarray(0), "b": np.asarray(9)},
            "is not a range",
        ),
        (
            node("Range", ["a", "b", "c"], ["y"]),
            {"a": np.asarray(0), "b": np.asarray(2**60), "c": np.asarray(1)},
            "asks for a constant of shape",
        ),
        (
            node("Resize", ["x", "", "s"], ["y"]),
            {"s": np.zeros(4, "f4")},
            "expected a positive number",
        ),
        (node("Resize", ["x", "", "s"], ["y"]), {"s": ones(3)}, "has 3 scales and 0 sizes"),
        (node("Gelu", ["x"], ["y"], approximate="erf"), {}, "expected none or tanh"),
        (
            node("Add", ["x", "c"], ["y"], name="sum"),
            {"c": ones(5)},
            r"Add 'sum': shapes .*do not broadcast",
        ),
        (node("Add", ["x", "c"], ["y"]), {"c": np.zeros(4)}, "expected one dtype"),
        (
            node("Gather", ["c", "i"], ["y"]),
            {"c": ones(4), "i": ints(9)},
            "index 9 is out of range",
        ),
    ],
)
def test_nodes_that_make_no_sense(one, tensors, message) -> None:
    proto = model([one], {"x": (1, 3, 4, 4)}, ["y"], tensors, opset=20)
    with pytest.raises(ImportModelError, match=message):
        import_model(proto)
