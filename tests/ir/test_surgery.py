"""Extracting a part of a graph."""

from __future__ import annotations

import numpy as np
import pytest

from nrt.dtypes import FP32
from nrt.errors import GraphError
from nrt.ir.evaluate import evaluate
from nrt.ir.graph import Graph
from nrt.ir.ops import Add, Concat, Conv, MatMul, Neg, Relu, Split
from nrt.ir.value import NHWC
from nrt.ir.verify import verify

RNG = np.random.default_rng()


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def residual() -> Graph:
    """``y = relu(x @ w + mask) @ v + x``; ``z`` is something else."""
    graph = Graph("residual")
    x = graph.add_input("x", (3, 5), FP32)
    mask = graph.add_input("mask", (3, 7), FP32)
    w = graph.add_constant("w", normal(5, 7))
    v = graph.add_constant("v", normal(7, 5))
    first = graph.add_node(MatMul(), [x, w], name="fc1", origin=["m1"], output_names=["a"])
    added = graph.add_node(Add(), [first.output, mask], name="bias", output_names=["b"])
    relu = graph.add_node(Relu(), [added.output], name="act", origin=["m2", "m3"])
    second = graph.add_node(MatMul(), [relu.output, v], name="fc2", output_names=["c"])
    graph.set_output("y", graph.add_node(Add(), [second.output, x], name="sum").output)
    graph.set_output("z", graph.add_node(Neg(), [first.output], name="other").output)
    return graph


def test_a_part_computes_what_it_did_in_the_whole() -> None:
    graph = residual()
    feeds = {"x": normal(3, 5), "mask": normal(3, 7)}
    known = evaluate(graph, feeds, until=["a", "act", "c"])
    part = graph.extract(["a", "mask"], ["c", "act"])
    verify(part)
    assert [v.name for v in part.inputs] == ["a", "mask"]
    assert list(part.outputs) == ["c", "act"]
    assert [n.name for n in part.nodes] == ["bias", "act", "fc2"]
    assert part.node("act").origin == ("m2", "m3")
    assert [v.name for v in part.constants] == ["v"]
    assert part.value("v").constant is graph.value("v").constant
    got = evaluate(part, {"a": known["a"], "mask": feeds["mask"]})
    np.testing.assert_array_equal(got["c"], known["c"])
    np.testing.assert_array_equal(got["act"], known["act"])
    verify(graph)
    assert len(graph) == 6


def test_the_whole_by_its_outputs_names() -> None:
    graph = residual()
    feeds = {"x": normal(3, 5), "mask": normal(3, 7)}
    part = graph.extract(["x", "mask"], ["z", "y"])
    verify(part)
    want, got = evaluate(graph, feeds), evaluate(part, feeds)
    assert list(got) == ["z", "y"]
    for name, array in want.items():
        np.testing.assert_array_equal(got[name], array)


def test_one_name_needs_no_list_and_unused_inputs_stay() -> None:
    part = residual().extract("x", "a")
    assert [n.name for n in part.nodes] == ["fc1"]
    part = residual().extract(["x", "mask"], "a")
    assert [v.name for v in part.inputs] == ["x", "mask"]
    part = residual().extract("act", "act")
    assert len(part) == 0
    assert part.outputs["act"] is part.inputs[0]


def test_a_constant_may_be_an_output() -> None:
    part = residual().extract([], "v")
    verify(part)
    assert part.outputs["v"].is_constant
    assert len(part) == 0


def test_layouts_are_kept() -> None:
    graph = Graph()
    x = graph.add_input("x", (1, 4, 5, 6), FP32)
    w = graph.add_constant("w", normal(3, 4, 1, 1))
    graph.set_layout(w, NHWC)
    conv = graph.add_node(Conv(), [x, w], name="conv")
    graph.set_layout(conv.output, NHWC)
    graph.set_output("y", graph.add_node(Relu(), [conv.output], name="relu").output)
    assert graph.extract("x", "conv").value("conv").layout == NHWC
    assert graph.extract("x", "conv").value("w").layout == NHWC
    assert graph.extract("conv", "relu").inputs[0].layout == NHWC


def test_one_of_two_outputs_of_a_node_is_cut_off() -> None:
    graph = Graph()
    x = graph.add_input("x", (2, 5), FP32)
    a, b = graph.add_node(Split(1, (2, 3)), [x], name="split", output_names=["a", "b"]).outputs
    graph.set_output("y", graph.add_node(Concat(1), [b, a], name="join").output)
    part = graph.extract(["a", "x"], ["y"])
    verify(part)
    feeds = {"x": normal(2, 5), "a": normal(2, 2)}
    want = np.concatenate([feeds["x"][:, 2:], feeds["a"]], axis=1)
    np.testing.assert_array_equal(evaluate(part, feeds)["y"], want)


def test_unknown_names_come_with_close_ones() -> None:
    graph = residual()
    with pytest.raises(GraphError) as caught:
        graph.extract(["maks", "fc1", "qqqqqq"], ["c"])
    text = str(caught.value)
    assert "graph 'residual': extract names 3 input(s) that are no values" in text
    assert "'maks'; did you mean 'mask'?" in text
    assert "'fc1' is a node; it computes 'a'" in text
    assert "'qqqqqq'; Graph.values lists them all" in text
    with pytest.raises(GraphError, match=r"1 output\(s\) that are no values"):
        graph.extract("x", "yy")


def test_what_else_an_output_needs_is_listed() -> None:
    with pytest.raises(GraphError) as caught:
        residual().extract(["a"], ["act", "y", "z"])
    text = str(caught.value)
    assert "'a' do not determine the outputs" in text
    assert "output 'act' also needs 'mask'\n" in text
    assert "output 'y' also needs 'x', 'mask'\n" in text
    assert "output 'z'" not in text
    assert "Name these as inputs too" in text
    with pytest.raises(GraphError, match="no inputs do not determine"):
        residual().extract([], ["x"])


def test_names_that_make_no_sense() -> None:
    graph = residual()
    with pytest.raises(GraphError, match=r"'w' as an input, which is a constant fp32\[5,7\]"):
        graph.extract(["x", "w"], ["a"])
    with pytest.raises(GraphError, match="input 'x' 2 times, expected once"):
        graph.extract(["x", "x"], ["a"])
    with pytest.raises(GraphError, match="output 'a' 2 times, expected once"):
        graph.extract(["x"], ["a", "a"])
    with pytest.raises(GraphError, match="extract names no outputs"):
        graph.extract(["x"], [])


def test_constants_are_removed_once_nothing_reads_them() -> None:
    graph = residual()
    with pytest.raises(GraphError, match="constant 'w' is still used"):
        graph.remove_constant(graph.value("w"))
    with pytest.raises(GraphError, match="has no constant 'x' to remove"):
        graph.remove_constant(graph.value("x"))
    lonely = graph.add_constant("lonely", normal(2))
    graph.remove_constant(lonely)
    assert not graph.has_value("lonely")
    verify(graph)


def test_nodes_and_values_are_renamed_unless_the_name_is_taken() -> None:
    graph = residual()
    graph.rename(graph.node("fc1"), "first")
    graph.rename(graph.value("a"), "fc1")
    verify(graph)
    assert graph.node("first").output is graph.value("fc1")
    with pytest.raises(GraphError, match="graph 'residual' has a node 'act' already"):
        graph.rename(graph.node("first"), "act")
    with pytest.raises(GraphError, match="graph 'residual' has a value 'x' already"):
        graph.rename(graph.value("fc1"), "x")
