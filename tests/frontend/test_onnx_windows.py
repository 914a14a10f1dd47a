"""Convolutions and pools in all their forms, against ONNX Runtime on random data."""

from __future__ import annotations

import pytest

from .build import compare, model, node, normal, unary


@pytest.mark.parametrize("auto_pad", ["NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize("strides", [[1, 1], [2, 3]])
def test_conv_auto_pad(auto_pad, strides) -> None:
    tensors = {"w": normal(6, 2, 3, 2), "b": normal(6)}
    compare(unary("Conv", (2, 4, 9, 11), 11, tensors, group=2, strides=strides, auto_pad=auto_pad))


def test_conv_dilated_with_uneven_pads() -> None:
    tensors = {"w": normal(5, 3, 3, 2)}
    compare(unary("Conv", (1, 3, 9, 11), 11, tensors, dilations=[2, 3], pads=[1, 0, 3, 2]))


def test_windows_over_one_dimension() -> None:
    tensors = {"w": normal(6, 2, 3), "b": normal(6)}
    graph = compare(unary("Conv", (2, 4, 13), 11, tensors, group=2, strides=[2], pads=[1, 2]))
    assert [n.name for n in graph.nodes] == ["the_node/lift", "the_node", "the_node/lower"]
    compare(
        unary("ConvTranspose", (2, 4, 13), 11, {"w": normal(4, 3, 3)}, strides=[2], pads=[1, 0])
    )
    compare(unary("MaxPool", (2, 4, 13), 11, kernel_shape=[3], strides=[2], pads=[1, 1]))
    compare(unary("AveragePool", (2, 4, 13), 11, kernel_shape=[3], strides=[2], pads=[1, 1]))
    computed = node("Conv", ["x", "w"], ["y"])
    compare(model([computed], {"x": (1, 2, 9), "w": (3, 2, 4)}, ["y"], opset=11))


def test_conv_of_three_dimensions() -> None:
    compare(
        unary("Conv", (1, 2, 5, 6, 7), 11, {"w": normal(3, 2, 2, 3, 2)}, pads=[1, 0, 1, 0, 1, 0])
    )


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"strides": [2, 3], "pads": [1, 0, 0, 1], "output_padding": [1, 2]},
        {"strides": [3, 2], "output_shape": [11, 8]},
        {"strides": [3, 2], "output_shape": [14, 10]},
        {"strides": [2, 2], "auto_pad": "SAME_UPPER"},
        {"strides": [2, 2], "auto_pad": "SAME_LOWER"},
        {"strides": [2, 2], "auto_pad": "VALID"},
        {"dilations": [2, 1], "group": 2},
    ],
)
def test_conv_transpose(attributes) -> None:
    groups = attributes.get("group", 1)
    tensors = {"w": normal(4, 6 // groups, 3, 2), "b": normal(6)}
    compare(unary("ConvTranspose", (2, 4, 4, 5), 11, tensors, **attributes))


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize("ceil_mode", [0, 1])
@pytest.mark.parametrize("pads", [[0, 0, 0, 0], [1, 0, 1, 1]])
def test_pools(op, ceil_mode, pads) -> None:
    attributes = {"kernel_shape": [3, 2], "strides": [2, 2], "pads": pads, "ceil_mode": ceil_mode}
    compare(unary(op, (2, 3, 9, 10), 11, **attributes))


def test_pool_options() -> None:
    compare(unary("MaxPool", (1, 2, 9, 9), 11, kernel_shape=[2, 2], dilations=[2, 3]))
    compare(
        unary(
            "AveragePool", (1, 2, 6, 7), 11, kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=1
        )
    )
    compare(
        unary(
            "MaxPool", (1, 2, 9, 8), 7, kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER"
        )
    )


def test_global_pools() -> None:
    compare(unary("GlobalAveragePool", (2, 5, 3, 7), 11))
    compare(unary("GlobalMaxPool", (2, 5, 3, 7), 11))
