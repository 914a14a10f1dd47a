"""What networks defined in Python refuse, and what they say."""

from __future__ import annotations

import numpy as np
import pytest

from nrt.errors import GraphError, ShapeError
from nrt.frontend.layer import Tensor
from nrt.frontend.network import Network

RNG = np.random.default_rng()


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


@pytest.fixture
def net() -> Network:
    net = Network("first")
    net.input("x", (1, 3, 6, 8))
    return net


def x_of(net: Network) -> Tensor:
    return Tensor(net, net._graph.inputs[0])


def test_no_output(net) -> None:
    with pytest.raises(
        GraphError, match=r"network 'first' has no output; call net.output\(tensor\)"
    ):
        _ = net.graph


def test_a_tensor_of_another_network(net) -> None:
    other = Network("second")
    y = other.input("y", (3,))
    message = "layer 'add': tensor 'y' belongs to network 'second', not to 'first'"
    with pytest.raises(GraphError, match=message):
        net.add(x_of(net), y)
    with pytest.raises(GraphError, match="output: tensor 'y' belongs to network 'second'"):
        net.output(y)
    with pytest.raises(GraphError, match="belongs to network 'second'"):
        _ = x_of(net) + y


def test_names_that_are_taken(net) -> None:
    net.output(net.relu(x_of(net), name="r"), "out")
    with pytest.raises(GraphError, match="has a layer or input 'r' already; choose another name"):
        net.relu(x_of(net), name="r")
    with pytest.raises(GraphError, match="has a layer or input 'x' already"):
        net.input("x", (1,))
    with pytest.raises(GraphError, match="network 'first' has an output 'out' already"):
        net.output(x_of(net), "out")


def test_operands_that_are_no_data(net) -> None:
    with pytest.raises(
        GraphError, match="layer 'add': got str, expected a Tensor, an array or numbers"
    ):
        net.add(x_of(net), "text")
    with pytest.raises(GraphError, match="layer 'add': no input comes from the network"):
        net.add(1, 2)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda n, x: n.conv2d(x, normal(4, 5, 3, 3), name="c1"), "Conv 'c1': .*channels"),
        (
            lambda n, x: n.conv2d(x, normal(4, 3, 3, 3), padding=(1, 2, 3)),
            "Conv 'conv2d': padding is",
        ),
        (
            lambda n, x: n.conv2d(x, normal(4, 3, 3, 3), stride=(1, 2, 3)),
            "Conv 'conv2d': stride is",
        ),
        (lambda n, x: n.max_pool2d(x, 99), "MaxPool 'max_pool2d': kernel spans 99"),
        (lambda n, x: n.linear(x, normal(4, 5)), "MatMul 'linear': inner dimensions differ"),
        (lambda n, x: x + normal(5), r"Add 'add': shapes .* do not broadcast"),
        (lambda n, x: n.reshape(x, (5, -1)), "Reshape 'reshape': .* does not fit"),
        (lambda n, x: n.flatten(x, 9), "Reshape 'flatten': axis 9 is outside"),
        (lambda n, x: n.squeeze(x, [1]), "Reshape 'squeeze': dimension 1 of .* is not of size 1"),
        (
            lambda n, x: n.unsqueeze(x, [0, 0]),
            "Reshape 'unsqueeze': axes .* name a dimension twice",
        ),
        (lambda n, x: n.unsqueeze(x, [9]), "layer 'unsqueeze': axis 9 is outside 5 dimensions"),
        (lambda n, x: n.slice(x, [0], [1, 2]), "Slice 'slice': .* differ in length"),
        (lambda n, x: n.slice(x, [0], [1], steps=[0]), "Slice 'slice': step 0"),
        (lambda n, x: n.adaptive_avg_pool2d(x, 5), "AveragePool 'adaptive_avg_pool2d': .*5x5"),
        (lambda n, x: n.resize(n.flatten(x), 5), r"Resize 'resize': .* expected \[N,C,H,W\]"),
        (lambda n, x: n.cast(x, "fp99"), "'fp99' is unknown"),
        (
            lambda n, x: n.input("z", (1, 0)),
            r"input 'z': shape \(1, 0\), expected positive numbers",
        ),
    ],
)
def test_wrong_shapes_name_the_layer(net, build, message) -> None:
    with pytest.raises(ShapeError, match=message):
        build(net, x_of(net))
