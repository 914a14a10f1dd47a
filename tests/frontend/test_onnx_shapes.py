"""Symbolic dimensions: fixed by shapes=, or asked for by name."""

from __future__ import annotations

import pytest
from onnx import helper

from nrt.errors import ImportModelError
from nrt.frontend.onnx_model import import_model, input_shapes

from .build import model, node


def two_inputs(a, b):
    return model([node("Add", ["a", "b"], ["y"])], {"a": a, "b": b}, ["y"])


def one_input(*shape):
    return model([node("Relu", ["input"], ["y"])], {"input": shape}, ["y"])


def test_shapes_fix_symbols() -> None:
    graph = import_model(one_input("N", 3, "H", None), shapes={"input": (2, 3, 7, 9)})
    assert graph.inputs[0].shape == (2, 3, 7, 9)
    assert graph.outputs["y"].shape == (2, 3, 7, 9)


def test_a_symbol_holds_for_all_inputs() -> None:
    graph = import_model(two_inputs(("N", 5), ("N", 1)), shapes={"a": (4, 5)})
    assert [v.shape for v in graph.inputs] == [(4, 5), (4, 1)]


def test_an_input_of_unknown_rank_takes_what_is_given() -> None:
    proto = one_input(1)
    proto.graph.input[0].type.tensor_type.ClearField("shape")
    assert import_model(proto, shapes={"input": [2, 3]}).inputs[0].shape == (2, 3)
    with pytest.raises(ImportModelError, match=r"input 'input': the model does not say its shape"):
        import_model(proto)


def test_an_open_batch_is_asked_for() -> None:
    with pytest.raises(ImportModelError) as error:
        import_model(one_input("N", 3, 224, 224))
    text = str(error.value)
    assert "input 'input': dimension 0 ('N') of [N, 3, 224, 224] is open" in text
    assert 'shapes={"input": (1, 3, 224, 224)}' in text
    assert "--shapes input:1x3x224x224" in text


def test_an_open_unnamed_dimension_is_asked_for() -> None:
    with pytest.raises(
        ImportModelError, match=r"dimension 0 \(unnamed\) of \[\?\] is open.*\(1,\)"
    ):
        import_model(one_input(None))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"input": (1, 4)}, r"the model fixes dimension 1 at 3: \[N, 3\]"),
        ({"input": (1, 3, 2)}, r"the model declares 2 dimensions: \[N, 3\]"),
        ({"other": (1, 3)}, r"shapes= names 'other', which is not an input.*its inputs are input"),
        ({"input": (0, 3)}, "every dimension must be at least 1"),
        ({"input": (-1, 3)}, "every dimension must be at least 1"),
        ({"input": (1.5, 3)}, "expected whole numbers"),
        ({"input": "1x3"}, "expected whole numbers"),
        ({"input": 5}, "expected whole numbers"),
        ({"input": (2**62, 3)}, "absurdly large"),
    ],
)
def test_wrong_shapes(given, message) -> None:
    with pytest.raises(ImportModelError, match=message):
        import_model(one_input("N", 3), shapes=given)


def test_two_values_of_one_symbol() -> None:
    message = "symbol 'N' two values: 2 in input 'a' and 3 in input 'b'"
    with pytest.raises(ImportModelError, match=message):
        import_model(two_inputs(("N", 5), ("N", 5)), shapes={"a": (2, 5), "b": (3, 5)})


def test_an_input_that_is_no_tensor() -> None:
    proto = one_input(1)
    sequence = helper.make_tensor_sequence_value_info("input", 1, [2])
    proto.graph.input[0].CopyFrom(sequence)
    with pytest.raises(
        ImportModelError, match="input 'input' is a sequence_type; expected a tensor"
    ):
        import_model(proto)


def test_a_negative_dimension() -> None:
    with pytest.raises(ImportModelError, match="dimension 0 is -4, expected at least 0"):
        import_model(one_input(-4))


def test_what_the_file_says_of_its_inputs() -> None:
    proto = two_inputs(("N", 3, None), (1, 3, 5))
    assert input_shapes(proto) == {"a": ("N", 3, None), "b": (1, 3, 5)}
    proto.graph.input[1].type.tensor_type.ClearField("shape")
    assert input_shapes(proto)["b"] is None
