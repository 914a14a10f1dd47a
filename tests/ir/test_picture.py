"""A graph's picture: every node and edge, constants in the boxes."""

from __future__ import annotations

import time
from xml.etree import ElementTree

import numpy as np
import pytest

from nrt.dtypes import FP32
from nrt.ir.graph import Graph
from nrt.ir.op import Op
from nrt.ir.ops import (
    OPS,
    Add,
    Concat,
    Conv,
    MatMul,
    Pad,
    Pointwise,
    Relu,
    Reshape,
    Softmax,
    Split,
)
from nrt.ir.picture import graph_picture, kind
from nrt.ir.pointwise import Builder
from nrt.ir.value import NHWC

SVG = "{http://www.w3.org/2000/svg}"


def small() -> Graph:
    rng = np.random.default_rng(3)
    graph = Graph("small")
    x = graph.add_input("x", (1, 3, 5, 7), FP32)
    weights = graph.add_constant("w", rng.standard_normal((4, 3, 3, 3)).astype(np.float32))
    bias = graph.add_constant("b", rng.standard_normal(4).astype(np.float32))
    conv = graph.add_node(
        Conv(pads=(1, 1, 1, 1)), (x, weights, bias), name="conv", origin=("c1", "bn1")
    )
    graph.set_layout(conv.output, NHWC)
    relu = graph.add_node(Relu(), (conv.output,), name="relu")
    square = graph.add_node(Add(), (relu.output, relu.output), name="twice")
    graph.set_output("y", square.output)
    return graph


def test_nodes_edges_and_constants() -> None:
    picture = small().picture()
    assert picture == graph_picture(small())
    assert [(b.key, b.title, b.kind) for b in picture.boxes] == [
        ("input:x", "input", "io"),
        ("node:conv", "Conv", "compute"),
        ("node:relu", "Relu", "pointwise"),
        ("node:twice", "Add", "pointwise"),
        ("output:y", "output", "io"),
    ]
    assert [(a.source, a.target, a.group) for a in picture.arrows] == [
        ("input:x", "node:conv", "x"),
        ("node:conv", "node:relu", "conv"),
        ("node:relu", "node:twice", "relu"),
        ("node:relu", "node:twice", "relu"),
        ("node:twice", "output:y", "twice"),
    ]
    assert picture.boxes[1].lines == (
        "conv", "→ fp32[1,4,5,7]{nhwc}", "w: fp32[4,3,3,3]", "b: fp32[4]",
    )  # fmt: skip
    tooltip = picture.boxes[1].tooltip.splitlines()
    assert tooltip[0] == "Conv conv"
    assert "pads = (1, 1, 1, 1)" in tooltip
    assert "strides = (1, 1)" in tooltip  # defaults too
    assert "in 0: x: fp32[1,3,5,7]" in tooltip
    assert "in 1: w: fp32[4,3,3,3] (constant)" in tooltip
    assert "out 0: conv: fp32[1,4,5,7]{nhwc}" in tooltip
    assert tooltip[-1] == "from c1, bn1"


def test_many_constants_and_outputs_are_counted() -> None:
    graph = Graph("g")
    x = graph.add_input("x", (2, 5), FP32)
    parts = [graph.add_constant(f"c{i}", np.ones((2, 1 + i), np.float32)) for i in range(5)]
    concat = graph.add_node(Concat(axis=1), (x, *parts), name="all")
    split = graph.add_node(Split(axis=1, sizes=(5, 1, 2, 12)), (concat.output,), name="cut")
    for i, value in enumerate(split.outputs):
        graph.set_output(f"y{i}", value)
    boxes = {b.key: b for b in graph.picture().boxes}
    assert boxes["node:all"].lines[2:] == (
        "c0: fp32[2,1]",
        "c1: fp32[2,2]",
        "3 more constants",
    )
    assert boxes["node:cut"].lines == ("cut", "→ fp32[2,5]", "→ fp32[2,1]", "→ 2 more")
    assert "in 5: c4: fp32[2,5] (constant)" in boxes["node:all"].tooltip
    assert len({a.group for a in graph.picture().arrows if a.source == "node:cut"}) == 4


def test_programs_scalars_and_constant_outputs() -> None:
    builder = Builder("ff")
    program = builder.build(builder("max", builder("mul", 0, 1), builder.const(0.0)))
    graph = Graph("g")
    x = graph.add_input("x", (3,), FP32)
    k = graph.add_constant("k", np.float32(2.5))
    graph.set_output("y", graph.add_node(Pointwise(program, FP32), (x, k), name="p").output)
    graph.set_output("z", k)
    boxes = {box.key: box for box in graph.picture().boxes}
    assert boxes["node:p"].lines[2:] == ("mul(x0, x1); max(r2, 0.0)", "k = 2.5")
    assert boxes["output:z"].lines == ("z", "k = 2.5")
    assert [a.target for a in graph.picture().arrows] == ["node:p", "output:y"]


@pytest.mark.parametrize(
    ("op", "expected"),
    [
        (Conv(), "compute"),
        (MatMul(), "compute"),
        (Softmax(), "compute"),
        (Relu(), "pointwise"),
        (Concat(axis=0), "memory"),
        (Pad(pads=(0, 1)), "memory"),
        (Reshape((1,)), "view"),
    ],
)
def test_kinds(op: Op, expected: str) -> None:
    assert kind(op) == expected
    assert type(op) in OPS


def test_names_cannot_break_out() -> None:
    name = "<script>&\"'x"
    graph = Graph(name)
    x = graph.add_input(name, (2,), FP32)
    node = graph.add_node(Relu(), (x,), name=f"{name}r", origin=(name,))
    graph.set_output(name, node.output)
    text = graph.to_svg()
    assert "<script" not in text
    assert "<script" not in graph.to_mermaid()
    root = ElementTree.fromstring(text)
    keys = [g.attrib["data-box"] for g in root.iter(f"{SVG}g") if "data-box" in g.attrib]
    assert keys == [f"input:{name}", f"node:{name}r", f"output:{name}"]


def test_six_hundred_nodes_in_time() -> None:
    """Residual blocks of three layers with branches now and then."""
    graph = Graph("deep")
    value = graph.add_input("x", (2, 8), FP32)
    rng = np.random.default_rng(8)
    while len(graph) < 600:
        start = value
        for _ in range(int(rng.integers(2, 6))):
            value = graph.add_node(Relu(), (value,)).output
        if rng.random() < 0.3:
            start = graph.add_node(Softmax(), (start,)).output
        value = graph.add_node(Add(), (start, value)).output
    graph.set_output("y", value)
    begun = time.perf_counter()
    text = graph.to_svg()
    assert time.perf_counter() - begun < 2.0
    assert graph.copy().to_svg() == text
    assert text.count("data-box=") == len(graph) + 2
    assert graph._repr_svg_() == text
    assert text in graph._repr_html_()
    assert graph.to_dot().count("->") == text.count("data-from=")
    assert graph.to_mermaid().count("-->") == text.count("data-from=")
