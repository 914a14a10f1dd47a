"""Verify: every rule, broken on purpose."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from nrt.dtypes import FP16, FP32
from nrt.errors import GraphError
from nrt.ir import Graph, Value
from nrt.ir.ops import Add, Conv, Relu, Split
from nrt.ir.verify import verify, violations


def network() -> Graph:
    g = Graph("net")
    x = g.add_input("x", (1, 3, 8, 8), FP32)
    w = g.add_constant("w", np.ones((4, 3, 3, 3), np.float32))
    y = g.add_node(Conv(), [x, w], name="conv").output
    a, b = g.add_node(Split(1, (2, 2)), [y], name="halves", output_names=["a", "b"]).outputs
    g.set_output("out", g.add_node(Add(), [a, b], name="sum").output)
    return g


def test_a_sound_graph_has_no_violations() -> None:
    g = network()
    assert violations(g) == []
    verify(g)
    verify(Graph())


def wrong_shape(g: Graph) -> None:
    g.value("conv").shape = (1, 4, 8, 8)


def wrong_dtype(g: Graph) -> None:
    g.value("sum").dtype = FP16


def wrong_constant(g: Graph) -> None:
    g.value("w").constant = np.ones((4, 3, 3, 3), np.float16)


def wrong_layout(g: Graph) -> None:
    g.value("conv").layout = (0, 1, 1, 2)


def wrong_name(g: Graph) -> None:
    g.value("a").name = "b"


def wrong_producer(g: Graph) -> None:
    g.value("a").producer = g.node("conv")


def constant_output(g: Graph) -> None:
    g.value("sum").constant = np.zeros((1, 2, 6, 6), np.float32)


def orphan(g: Graph) -> None:
    g.value("w").constant = None


def changed_inputs(g: Graph) -> None:
    g.node("sum").inputs = (g.value("a"), g.value("a"))


def foreign_input(g: Graph) -> None:
    g.node("sum").inputs = (g.value("a"), Value("b", (1, 2, 6, 6), FP32))


def missing_input(g: Graph) -> None:
    g.node("sum").inputs = (g.value("a"),)


def changed_op(g: Graph) -> None:
    g.node("halves").op = Relu()


def misfit(g: Graph) -> None:
    g.value("x").shape = (1, 5, 8, 8)


def cycle(g: Graph) -> None:
    g.replace_input(g.node("conv"), 0, g.value("conv"))


def foreign_output(g: Graph) -> None:
    other = Graph()
    g._outputs["z"] = other.add_input("z", (1,), FP32)


def renamed_node(g: Graph) -> None:
    g.node("sum").name = "total"


def negative_size(g: Graph) -> None:
    g.value("x").shape = (1, 3, -8, 8)


def swapped_output(g: Graph) -> None:
    node = g.node("sum")
    node.outputs = (Value("sum", (1, 2, 6, 6), FP32, producer=node),)


@pytest.mark.parametrize(
    ("damage", "lines"),
    [
        (wrong_shape, ["Conv 'conv': output 'conv' is fp32[1,4,8,8], the op infers fp32[1,4,6,6]"]),
        (wrong_dtype, ["Add 'sum': output 'sum' is fp16[1,2,6,6], the op infers fp32[1,2,6,6]"]),
        (
            wrong_constant,
            ["value 'w': holds an array float16[4, 3, 3, 3], expected fp32[4,3,3,3]"],
        ),
        (
            wrong_layout,
            ["value 'conv': layout (0, 1, 1, 2) is no permutation of 4 dimensions"],
        ),
        (wrong_name, ["value 'b': is registered under another name"]),
        (
            wrong_producer,
            [
                "value 'a': its producer Conv 'conv' does not list it as an output",
                "Split 'halves': output 'a' says that Conv 'conv' produces it",
                "edge conv -> sum (slot 0): is missing",
            ],
        ),
        (
            constant_output,
            ["value 'sum': is a constant and an output of Add 'sum', expected exactly one"],
        ),
        (
            orphan,
            ["value 'w': is neither input, constant nor output of a node, expected exactly one"],
        ),
        (
            changed_inputs,
            [
                "Add 'sum': input 1 'a' does not know this use",
                "edge halves -> sum (slot 1): carries 'b', the node reads 'a'",
                "value 'b': lists a use by Add 'sum', slot 1, that is not there",
            ],
        ),
        (foreign_input, ["Add 'sum': input 1 'b' is not a value of the graph"]),
        (
            missing_input,
            [
                "Add 'sum': got 1 inputs, expected 2",
                "edge halves -> sum (slot 1): no input of that node asks for it",
            ],
        ),
        (changed_op, ["Relu 'halves': has 2 outputs, the op gives 1"]),
        (misfit, ["Conv 'conv': input has 5 channels, weights expect 3"]),
        (cycle, ["cycle: conv -> …"]),
        (foreign_output, ["output 'z': is bound to 'z', which is not a value of the graph"]),
        (renamed_node, ["Add 'total': is registered as 'sum'"]),
        (negative_size, ["value 'x': shape (1, 3, -8, 8) holds something else than sizes"]),
        (swapped_output, ["Add 'sum': output 'sum' is not a value of the graph"]),
    ],
)
def test_damage_is_reported(damage: Callable[[Graph], None], lines: list[str]) -> None:
    g = network()
    damage(g)
    with pytest.raises(GraphError) as caught:
        verify(g)
    for line in lines:
        assert line in str(caught.value)


def test_all_violations_are_in_one_message() -> None:
    g = network()
    wrong_layout(g)
    wrong_constant(g)
    wrong_dtype(g)
    with pytest.raises(GraphError, match=r"graph 'net' breaks 3 rule\(s\) of the IR:\n  value"):
        verify(g)
