"""The difference of two graphs: what is kept, replaced, added, removed, and how it is shown."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import numpy as np
import pytest

from nrt.dtypes import FP16, FP32
from nrt.ir.graph import Graph
from nrt.ir.graph_diff import GraphDiff, graph_diff
from nrt.ir.ops import Cast, Conv, Identity, Pointwise, Relu, Sigmoid, Softmax
from nrt.ir.pointwise import Builder
from nrt.ir.value import NHWC

SVG = "{http://www.w3.org/2000/svg}"


def network() -> Graph:
    """x -> conv -> relu -> same -> soft -> y."""
    rng = np.random.default_rng(11)
    graph = Graph("net")
    x = graph.add_input("x", (1, 3, 5, 7), FP32)
    w = graph.add_constant("w", rng.standard_normal((4, 3, 1, 1)).astype(np.float32))
    value = graph.add_node(Conv(), (x, w), name="conv", origin=("c",)).output
    value = graph.add_node(Relu(), (value,), name="relu", origin=("r",)).output
    value = graph.add_node(Identity(), (value,), name="same", origin=("i",)).output
    value = graph.add_node(Softmax(axis=1), (value,), name="soft", origin=("s",)).output
    graph.set_output("y", value)
    return graph


def fused() -> Graph:
    graph = network()
    conv, relu, same, soft = graph.nodes
    builder = Builder("f")
    program = builder.build(builder("max", 0, builder.const(0.0)))
    graph.replace_node(relu, Conv(epilogue=program), conv.inputs, also=(conv,), name="conv")
    graph.replace_value(same.output, graph.node("conv").output)
    graph.remove_node(graph.node("same"))
    cast = graph.add_node(Cast(FP16), (soft.output,), name="cast")
    graph.set_output("z", cast.output)
    return graph


def changes(diff: GraphDiff) -> list[tuple[str, tuple[str, ...], tuple[str, ...]]]:
    return [(c.kind, c.before, c.after) for c in diff.changes]


def test_equal_graphs() -> None:
    graph = network()
    diff = graph_diff(graph, graph.copy())
    assert {c.kind for c in diff.changes} == {"kept"}
    assert str(diff) == "before -> after: 4 nodes -> 4; 4 kept, 0 replaced by 0, 0 added, 0 removed"
    assert all(not box.mark for picture in diff.pictures for box in picture.boxes)


def test_a_fusion() -> None:
    diff = graph_diff(network(), fused(), names=("imported", "final"))
    assert changes(diff) == [
        ("replaced", ("conv", "relu"), ("conv",)),
        ("replaced", ("soft",), ("soft",)),
        ("added", (), ("cast",)),
        ("removed", ("same",), ()),
    ]
    assert str(diff) == (
        "imported -> final: 4 nodes -> 3; 0 kept, 3 replaced by 2, 1 added, 1 removed\n"
        "~ Conv 'conv' + Relu 'relu' -> Conv 'conv' # c, r\n"
        "    conv: epilogue [max(x0, 0.0)]\n"
        "~ Softmax 'soft' -> Softmax 'soft' # s\n"
        "    input 0: same -> relu\n"
        "+ Cast 'cast'\n"
        "- Identity 'same' # i"
    )


def test_marks_and_heights() -> None:
    diff = graph_diff(network(), fused(), names=("<a>", "b"))
    marks = [{b.key: b.mark for b in picture.boxes} for picture in diff.pictures]
    assert marks[0] == {
        "input:x": "",
        "node:conv": "changed",
        "node:relu": "changed",
        "node:same": "removed",
        "node:soft": "changed",
        "output:y": "",
    }
    assert marks[1]["node:cast"] == "added"
    assert dict(diff.pairs)["node:relu"] == "node:conv"
    root = ElementTree.fromstring(diff.to_svg())
    tops: dict[str, list[str]] = {}
    for group in root.iter(f"{SVG}g"):
        rect = group.find(f"{SVG}rect")
        if rect is not None:
            tops.setdefault(group.attrib["data-box"], []).append(rect.attrib["y"])
    assert tops["node:soft"][0] == tops["node:soft"][1]
    assert tops["node:relu"][0] == tops["node:conv"][1]
    assert diff._repr_svg_() == diff.to_svg()
    html = diff._repr_html_()
    assert html.startswith("<p>&lt;a&gt; -&gt; b: 4 nodes")
    assert diff.to_svg() in html


def test_json() -> None:
    diff = graph_diff(network(), fused())
    data = json.loads(diff.to_json())
    assert data == json.loads(json.dumps(diff.to_data()))
    assert (data["before"], data["after"]) == ("before", "after")
    assert data["changes"][0] == {
        "kind": "replaced",
        "before": ["conv", "relu"],
        "after": ["conv"],
        "ops_before": ["Conv", "Relu"],
        "ops_after": ["Conv"],
        "origins": ["c", "r"],
        "details": ["conv: epilogue [max(x0, 0.0)]"],
    }


def test_a_renamed_node_is_matched_by_its_output() -> None:
    after = network()
    relu = after.node("relu")
    after.replace_node(relu, Sigmoid(), relu.inputs, name="other")
    diff = graph_diff(network(), after)
    replaced = diff.of_kind("replaced")
    assert [(c.before, c.after, c.details) for c in replaced] == [
        (("relu",), ("other",), ("op: Relu -> Sigmoid",))
    ]
    assert len(diff.of_kind("kept")) == 3  # who reads it reads the same


def test_one_node_becomes_several() -> None:
    before, after = network(), network()
    relu = after.node("relu")
    first = after.add_node(Sigmoid(), relu.inputs, name="p1", origin=relu.origin)
    second = after.add_node(Sigmoid(), (first.output,), name="p2", origin=relu.origin)
    after.replace_value(relu.output, second.output)
    after.remove_node(relu)
    diff = graph_diff(before, after)
    assert changes(diff)[1:] == [
        ("replaced", ("relu",), ("p1", "p2")),
        ("kept", ("same",), ("same",)),
        ("kept", ("soft",), ("soft",)),
    ]


def test_details_name_what_changed() -> None:
    after = network()
    conv = after.node("conv")
    weights = conv.inputs[1].constant
    assert weights is not None
    after.replace_input(conv, 1, after.add_constant("w2", weights * 2))
    after.set_layout(conv.output, NHWC)
    soft = after.node("soft")
    after.replace_node(soft, Softmax(axis=3), soft.inputs)
    details = {c.after[0]: c.details for c in graph_diff(network(), after).of_kind("replaced")}
    assert details == {
        "conv": (
            "input 1: constant w fp32[4,3,1,1] -> w2 fp32[4,3,1,1]",
            "output 0: fp32[1,4,5,7] -> fp32[1,4,5,7]{nhwc}",
        ),
        "soft": ("axis: 1 -> 3",),
    }


def test_inputs_outputs_and_programs_in_details() -> None:
    def one(count: int) -> Graph:
        graph = Graph("g")
        x = graph.add_input("x", (2,), FP32)
        builder = Builder("f" * count)
        total = 0
        for i in range(1, count):
            total = builder("add", total, i)
        program = builder.build(builder("neg", total))
        node = graph.add_node(Pointwise(program, FP32), (x,) * count, name="p")
        graph.set_output("y", node.output)
        return graph

    (change,) = graph_diff(one(1), one(2)).changes
    assert change.details == (
        "body: [neg(x0)] -> [add(x0, x1); neg(r2)]",
        "inputs: (x) -> (x, x)",
    )


def test_graphs_without_anything_in_common() -> None:
    other = Graph("other")
    x = other.add_input("a", (2,), FP32)
    other.set_output("b", other.add_node(Relu(), (x,), name="elsewhere").output)
    diff = graph_diff(network(), other)
    assert len(diff.of_kind("removed")) == 4
    assert len(diff.of_kind("added")) == 1
    ElementTree.fromstring(diff.to_svg())


@pytest.mark.parametrize("swap", [False, True])
def test_nodes_that_change_places(swap: bool) -> None:
    graphs = []
    for order in (("one", "two"), ("two", "one")):
        graph = Graph("g")
        value = graph.add_input("x", (2,), FP32)
        for name in order:
            value = graph.add_node(Relu(), (value,), name=name).output
        graph.set_output("y", value)
        graphs.append(graph)
    before, after = graphs[::-1] if swap else graphs
    diff = graph_diff(before, after)
    assert len(diff.of_kind("replaced")) == 2
    ElementTree.fromstring(diff.to_svg())
