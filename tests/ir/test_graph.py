"""Graph: building, changing, ordering, naming."""

from __future__ import annotations

from collections.abc import Callable

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nrt.dtypes import FP16, FP32
from nrt.errors import GraphError, ShapeError
from nrt.ir import NHWC, Graph, Value
from nrt.ir.ops import Add, Concat, Conv, Identity, Mul, Relu, Sigmoid, Split
from nrt.ir.verify import verify


def diamond() -> Graph:
    """x -> relu -> (sigmoid, itself) -> mul -> output."""
    g = Graph("diamond")
    x = g.add_input("x", (2, 3), FP32)
    relu = g.add_node(Relu(), [x], origin=["/relu"]).output
    gate = g.add_node(Sigmoid(), [relu], origin=["/sigmoid"]).output
    out = g.add_node(Mul(), [relu, gate], name="mul", origin=["/mul"]).output
    g.set_output("y", out)
    return g


def test_building() -> None:
    g = diamond()
    verify(g)
    assert [n.name for n in g.nodes] == ["relu", "sigmoid", "mul"]
    assert len(g) == 3
    assert g.value("mul").shape == (2, 3)
    assert g.value("mul").dtype is FP32
    assert g.outputs == {"y": g.value("mul")}
    assert g.is_output(g.value("mul"))
    assert g.output_names(g.value("mul")) == ("y",)
    assert g.consumers(g.value("relu")) == ((g.node("sigmoid"), 0), (g.node("mul"), 0))
    assert g.single_use(g.value("sigmoid"))
    assert not g.single_use(g.value("relu"))
    assert not g.single_use(g.value("mul"))
    assert repr(g.node("mul")) == "Mul 'mul'"
    assert repr(g.value("x")) == "%x: fp32[2,3]"


def test_both_edges_of_add_x_x_are_kept() -> None:
    g = Graph()
    x = g.add_input("x", (3,), FP32)
    r = g.add_node(Relu(), [x]).output
    g.set_output("y", g.add_node(Add(), [r, r]).output)
    assert g.nx.number_of_edges("relu", "add") == 2
    assert not g.single_use(r)
    g.replace_input(g.node("add"), 1, x)
    assert g.nx.number_of_edges("relu", "add") == 1
    assert g.single_use(r)
    verify(g)


def test_nx_is_a_read_only_view() -> None:
    g = diamond()
    assert nx.dag_longest_path_length(g.nx) == 2
    assert g.nx.nodes["mul"]["node"] is g.node("mul")
    with pytest.raises(nx.NetworkXError):
        g.nx.add_edge("mul", "relu")
    with pytest.raises(nx.NetworkXError):
        g.nx.remove_node("mul")


def test_names_are_made_unique() -> None:
    g = Graph()
    x = g.add_input("x", (3,), FP32)
    names = [g.add_node(Relu(), [x], name="act").name for _ in range(3)]
    assert names == ["act", "act.1", "act.2"]
    assert g.add_constant("x", np.zeros(2)).name == "x.1"
    assert g.unique_name("act") == "act.3"
    assert g.unique_name("fresh") == "fresh"
    node = g.add_node(Split(0, (1, 2)), [x], name="halves")
    assert [v.name for v in node.outputs] == ["halves#0", "halves#1"]
    named = g.add_node(Split(0, (1, 2)), [x], output_names=["left", "act"])
    assert [v.name for v in named.outputs] == ["left", "act.3"]
    with pytest.raises(GraphError, match="has 2 outputs, expected 1"):
        _ = named.output


def test_order_is_topological_and_older_first() -> None:
    g = Graph()
    x = g.add_input("x", (3,), FP32)
    first = g.add_node(Relu(), [x], name="z")
    second = g.add_node(Relu(), [x], name="a")
    g.set_output("y", g.add_node(Add(), [second.output, first.output]).output)
    assert [n.name for n in g.nodes] == ["z", "a", "add"]
    g.replace_input(first, 0, second.output)
    assert [n.name for n in g.nodes] == ["a", "z", "add"]


def test_replace_value_moves_users_and_outputs() -> None:
    g = diamond()
    relu = g.value("relu")
    copy = g.add_node(Identity(), [relu], name="copy")
    g.replace_value(relu, copy.output, except_node=copy)
    assert g.consumers(relu) == ((copy, 0),)
    assert [n for n, _ in g.consumers(copy.output)] == [g.node("sigmoid"), g.node("mul")]
    g.replace_value(g.value("mul"), relu)
    assert g.outputs == {"y": relu}
    g.replace_value(relu, relu)
    verify(g)


def test_replace_node_keeps_names_layout_and_origins() -> None:
    g = diamond()
    mul = g.node("mul")
    g.set_layout(mul.output, (1, 0))
    new = g.replace_node(mul, Add(), mul.inputs, also=[g.node("sigmoid")])
    verify(g)
    assert new.name == "mul"
    assert new.output.name == "mul"
    assert new.output.layout == (1, 0)
    assert new.origin == ("/sigmoid", "/mul")
    assert g.outputs == {"y": new.output}
    assert g.node("mul") is new


def test_replace_node_with_several_outputs() -> None:
    g = Graph()
    x = g.add_input("x", (5, 3), FP32)
    node = g.add_node(Split(0, (2, 3)), [x], name="halves", output_names=["left", "right"])
    g.set_output("y", node.outputs[1])
    g.set_layout(node.outputs[0], (1, 0))
    new = g.replace_node(node, Split(0, (2, 3)), [g.add_node(Relu(), [x]).output])
    verify(g)
    assert [v.name for v in new.outputs] == ["left", "right"]
    assert [v.layout for v in new.outputs] == [(1, 0), None]
    assert g.outputs == {"y": new.outputs[1]}
    message = "Split 'halves': has 2 outputs, Relu in its place 1; expected as many"
    with pytest.raises(GraphError, match=message):
        g.replace_node(new, Relu(), [x])


def test_replace_node_removes_what_died() -> None:
    g = diamond()
    g.replace_node(g.node("mul"), Relu(), [g.value("x")])
    assert [n.name for n in g.nodes] == ["mul"]
    assert not g.has_value("sigmoid")
    verify(g)


def test_removing() -> None:
    g = diamond()
    with pytest.raises(GraphError, match="Relu 'relu': output 'relu' is still used"):
        g.remove_node(g.node("relu"))
    with pytest.raises(GraphError, match="Mul 'mul': output 'mul' is still used"):
        g.remove_node(g.node("mul"))
    assert g.remove_dead(g.node("relu")) == 0
    dead = g.add_node(Relu(), [g.add_node(Sigmoid(), [g.value("x")]).output])
    g.add_constant("unused", np.zeros(3))
    assert g.remove_dead(dead) == 2
    g.add_node(Relu(), [g.value("x")])
    assert g.prune() == 1
    assert not g.has_value("unused")
    assert len(g) == 3
    verify(g)


def test_copy_is_independent() -> None:
    g = diamond()
    weights = g.add_constant("w", np.ones((2, 3), np.float32))
    g.replace_input(g.node("mul"), 1, weights)
    other = g.copy()
    verify(other)
    assert [n.name for n in other.nodes] == [n.name for n in g.nodes]
    assert other.value("w") is not weights
    assert other.value("w").constant is weights.constant
    other.replace_node(other.node("mul"), Add(), other.node("mul").inputs)
    assert isinstance(g.node("mul").op, Mul)
    assert [v.name for v in other.inputs] == ["x"]
    verify(g)


def test_layouts_and_strides() -> None:
    g = Graph()
    x = g.add_input("x", (2, 3, 5, 7), FP16)
    assert x.strides() == (105, 35, 7, 1)
    assert x.nbytes == 420
    g.set_layout(x, NHWC)
    assert x.strides() == (105, 1, 21, 3)
    g.set_layout(x, (0, 1, 2, 3))
    assert x.layout is None
    with pytest.raises(GraphError, match=r"value 'x': layout \(0, 1\) does not fit rank 4"):
        g.set_layout(x, (0, 1))


def test_reinfer_takes_over_changed_inputs() -> None:
    g = diamond()
    g.replace_input(g.node("relu"), 0, g.add_input("wide", (4, 5), FP32))
    for node in g.nodes:
        g.reinfer(node)
    assert g.value("mul").shape == (4, 5)
    verify(g)


def test_errors_name_the_object() -> None:
    g = diamond()
    other = Graph("other")
    foreign = other.add_input("x", (2, 3), FP32)
    calls: list[tuple[Callable[[], object], str]] = [
        (lambda: g.node("nope"), "graph 'diamond' has no node 'nope'"),
        (lambda: g.value("nope"), "graph 'diamond' has no value 'nope'"),
        (lambda: g.add_input("x", (1,), FP32), "graph 'diamond' has a value 'x' already"),
        (
            lambda: g.add_node(Relu(), [foreign], name="r"),
            "Relu 'r': input 'x' is not a value of graph 'diamond'",
        ),
        (
            lambda: g.set_output("z", foreign),
            "output 'z': 'x' is not a value of graph 'diamond'",
        ),
        (
            lambda: g.add_node(Split(0, (1, 1)), [g.value("x")], output_names=["a"]),
            "Split 'split': 1 output names for 2 outputs",
        ),
    ]
    for call, message in calls:
        with pytest.raises(GraphError, match=message):
            call()
    with pytest.raises(ShapeError, match="Mul 'm': got 1 inputs, expected 2"):
        g.add_node(Mul(), [g.value("x")], name="m")
    w = g.add_constant("w", np.zeros((8, 64, 3, 3), np.float32))
    image = g.add_input("image", (1, 3, 8, 8), FP32)
    with pytest.raises(
        ShapeError, match=r"^Conv 'layer1\.0\.conv1': input has 3 channels, weights"
    ):
        g.add_node(Conv(), [image, w], name="layer1.0.conv1")
    verify(g)


def test_a_refused_node_leaves_no_trace() -> None:
    g = diamond()
    before = [v.name for v in g.values]
    with pytest.raises(ShapeError):
        g.add_node(Concat(5), [g.value("x")])
    with pytest.raises(GraphError):
        g.add_node(Split(0, (1, 1)), [g.value("x")], output_names=["a"])
    assert [v.name for v in g.values] == before
    assert len(g) == 3
    verify(g)


def test_cycles_are_found() -> None:
    g = diamond()
    g.replace_input(g.node("relu"), 0, g.value("mul"))
    with pytest.raises(GraphError, match="graph 'diamond' has a cycle"):
        _ = g.nodes


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_random_edits_keep_the_rules(data: st.DataObject) -> None:
    """Any sequence of edits that respects order leaves a sound graph, and so does its copy."""
    g = Graph()
    values: list[Value] = [g.add_input("x", (2, 2), FP32), g.add_input("z", (2, 2), FP32)]
    for _ in range(data.draw(st.integers(1, 12))):
        op, count = data.draw(
            st.sampled_from([(Relu(), 1), (Add(), 2), (Concat(0), 1), (Mul(), 2)])
        )
        picked = [data.draw(st.sampled_from(values)) for _ in range(count)]
        values.append(
            g.add_node(op, picked, name=data.draw(st.sampled_from(["a", "b", "a.1"]))).output
        )
    g.set_output("y", values[-1])
    for _ in range(data.draw(st.integers(0, 6))):
        if not g.nodes:
            break
        node = data.draw(st.sampled_from(g.nodes))
        edit = data.draw(st.sampled_from(["input", "replace", "prune", "value", "dead"]))
        position = values.index(node.output)
        earlier = [v for v in values[:position] if g.has_value(v.name) and g.value(v.name) is v]
        if edit == "input":
            slot = data.draw(st.integers(0, len(node.inputs) - 1))
            g.replace_input(node, slot, data.draw(st.sampled_from(earlier)))
        elif edit == "replace":
            values[position] = g.replace_node(
                node, Sigmoid(), [data.draw(st.sampled_from(earlier))]
            ).output
        elif edit == "value":
            g.replace_value(node.output, data.draw(st.sampled_from(earlier)))
        elif edit == "dead":
            g.remove_dead(node)
        else:
            g.prune()
        values = [v for v in values if g.has_value(v.name) and g.value(v.name) is v]
        verify(g)
    twin = g.copy()
    verify(twin)
    assert [n.name for n in twin.nodes] == [n.name for n in g.nodes]
    assert set(nx.topological_sort(twin.nx)) == {n.name for n in g.nodes}


def test_a_name_used_again_is_younger_than_the_others() -> None:
    g = Graph()
    x = g.add_input("x", (3,), FP32)
    old = g.add_node(Relu(), [x], name="b")
    for name in ("c", "d"):
        g.add_node(Relu(), [x], name=name)
    g.remove_node(old)
    g.add_node(Relu(), [x], name="b")
    g.add_node(Relu(), [x], name="a")
    assert [n.name for n in g.nodes] == ["c", "d", "b", "a"]


def test_inputs_of_other_graphs_are_refused() -> None:
    g = diamond()
    foreign = Graph("other").add_input("f", (2, 3), FP32)
    with pytest.raises(GraphError, match="Relu 'relu': 'f' is not a value of graph 'diamond'"):
        g.replace_input(g.node("relu"), 0, foreign)
    verify(g)
