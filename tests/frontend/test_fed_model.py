"""A model that takes its shapes from what it is fed."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper

import nrt
from nrt.errors import CalibrationError, ImportModelError
from nrt.frontend.fed_model import FedModel


def _model() -> ModelProto:
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"], "act")],
        "open",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 5])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def test_shapes_are_those_of_the_batch() -> None:
    fed = FedModel(_model(), None)
    assert dict(fed.shapes) == {"x": ("N", 5)}
    for batch in (1, 3):
        graph = fed.graph({"x": np.zeros((batch, 5), np.float32)})
        assert graph.outputs["y"].shape == (batch, 5)


def test_given_shapes_are_checked() -> None:
    assert dict(FedModel(_model(), {"x": (7, 5)}).shapes) == {"x": (7, 5)}
    with pytest.raises(ImportModelError, match="fixes dimension 1 at 5"):
        FedModel(_model(), {"x": (7, 6)})


def test_a_network_has_its_own() -> None:
    net = nrt.Network("own")
    net.output(net.relu(net.input("x", (2, 3))), "y")
    fed = FedModel(net, None)
    assert dict(fed.shapes) == {"x": (2, 3)}
    assert fed.graph({}) is net.graph
    with pytest.raises(CalibrationError, match="shapes= is for ONNX models with open dimensions"):
        FedModel(net, {"x": (2, 3)})
