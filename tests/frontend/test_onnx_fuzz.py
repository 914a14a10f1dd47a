"""A damaged model either imports or is refused in nrt's own words."""

from __future__ import annotations

import contextlib

import numpy as np
import onnx
from hypothesis import given, settings
from hypothesis import strategies as st

from nrt.errors import NrtError
from nrt.frontend.onnx_model import import_model

from .build import model, node


def small() -> bytes:
    rng = np.random.default_rng(3)
    nodes = [
        node("Conv", ["x", "w"], ["a"], name="conv", strides=[2, 1], pads=[1, 1, 1, 1]),
        node("Relu", ["a"], ["b"], name="relu"),
        node("MaxPool", ["b"], ["c"], name="pool", kernel_shape=[2, 2], ceil_mode=1),
        node("Shape", ["c"], ["s"], start=0, end=1),
        node("Concat", ["s", "rest"], ["t"], axis=0),
        node("Reshape", ["c", "t"], ["d"]),
        node("Slice", ["d", "one", "rest", "one"], ["e"]),
        node("Softmax", ["e"], ["y"], axis=-1),
    ]
    tensors = {
        "w": rng.standard_normal((2, 1, 3, 3)).astype(np.float32),
        "rest": np.asarray([-1], np.int64),
        "one": np.asarray([1], np.int64),
    }
    return model(nodes, {"x": (1, 1, 6, 5)}, ["y"], tensors).SerializeToString()


SMALL = small()


def attempt(data: bytes) -> None:
    """Anything but an NrtError fails the test."""
    with contextlib.suppress(NrtError):
        import_model(data)


def test_the_undamaged_model_imports() -> None:
    assert import_model(SMALL).outputs["y"].shape[0] == 1


def test_every_truncation() -> None:
    for length in range(len(SMALL)):
        attempt(SMALL[:length])


@settings(max_examples=600, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, len(SMALL) - 1), st.integers(0, 255)), min_size=1, max_size=4)
)
def test_changed_bytes(changes) -> None:
    data = bytearray(SMALL)
    for place, value in changes:
        data[place] = value
    attempt(bytes(data))


@settings(max_examples=200, deadline=None)
@given(st.integers(0, len(SMALL) - 1), st.binary(max_size=12), st.integers(0, 8))
def test_inserted_bytes(place, extra, dropped) -> None:
    attempt(SMALL[:place] + extra + SMALL[place + dropped :])


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_arbitrary_bytes(data) -> None:
    attempt(data)


ODD = st.sampled_from([-(2**63), -(2**31), -3, -1, 0, 1, 2, 5, 2**20, 2**31, 2**40, 2**63 - 1])


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_odd_attributes_and_shapes(data) -> None:
    """A sound file whose numbers make no sense."""
    proto = onnx.load_from_string(SMALL)
    for one in proto.graph.node:
        for attribute in one.attribute:
            if not data.draw(st.booleans()):
                continue
            if attribute.type == onnx.AttributeProto.INT:
                attribute.i = data.draw(ODD)
            else:
                attribute.ints[:] = data.draw(st.lists(ODD, max_size=4))
    for tensor in proto.graph.initializer[1:]:
        if data.draw(st.booleans()):
            values = data.draw(st.lists(ODD, max_size=3))
            array = np.asarray(values, np.int64)
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    if data.draw(st.booleans()):
        dims = proto.graph.input[0].type.tensor_type.shape.dim
        dims[data.draw(st.integers(0, 3))].dim_value = data.draw(ODD)
    attempt(proto.SerializeToString())
