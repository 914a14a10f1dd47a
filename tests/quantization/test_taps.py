"""Histograms beside activations: which, under which names, and that they are right."""

from __future__ import annotations

import numpy as np
import pytest

from nrt.dtypes import FP32, INT64
from nrt.errors import CalibrationError
from nrt.ir.evaluate import evaluate
from nrt.ir.graph import Graph
from nrt.ir.op import Array
from nrt.ir.ops import (
    AbsHistogram,
    Add,
    Cast,
    Concat,
    Conv,
    MatMul,
    MaxPool,
    Reduce,
    Relu,
    Reshape,
    Transpose,
)
from nrt.ir.verify import verify
from nrt.quantization import Histogram, insert_taps
from nrt.quantization.taps import ChannelTaps


def network(rng: np.random.Generator) -> Graph:
    graph = Graph("net")
    x = graph.add_input("x", (2, 3, 5, 4), FP32)
    graph.add_input("ids", (2,), INT64)
    w = graph.add_constant("w", rng.standard_normal((4, 3, 1, 1)).astype(np.float32))
    a = graph.add_node(Conv(), [x, w], output_names=["a"]).output
    b = graph.add_node(Relu(), [a], output_names=["b"]).output
    c = graph.add_node(MaxPool((2, 2), (1, 1), (0,) * 4), [b], output_names=["c"]).output
    d = graph.add_node(Transpose((0, 2, 3, 1)), [c], output_names=["d"]).output
    e = graph.add_node(Reshape((2, 48)), [d], output_names=["e"]).output
    f = graph.add_node(Concat(1), [e, e], output_names=["f"]).output
    g = graph.add_node(Add(), [f, f], output_names=["g"]).output
    h = graph.add_node(Cast(INT64), [g], output_names=["h"]).output
    graph.set_output("out", e)
    graph.set_output("count", h)
    return graph


def test_every_activation_has_its_histogram(rng: np.random.Generator) -> None:
    graph = network(rng)
    names = [v.name for v in graph.values]
    taps = insert_taps(graph)
    verify(taps.graph)
    assert [v.name for v in graph.values] == names, "the given graph was changed"
    assert list(taps.outputs) == ["x", "a", "b", "c", "d", "e", "f", "g"]
    assert taps.outputs["c"] == taps.outputs["d"] == taps.outputs["e"]
    assert taps.channels == {"x": ChannelTaps("x.sums", "x.lows", "x.highs", 3, 2 * 5 * 4)}
    reduced = {"x.sums": "sum", "x.lows": "min", "x.highs": "max"}
    assert set(taps.graph.outputs) == {*taps.outputs.values(), *reduced}
    assert len(taps.graph.outputs) == 9
    assert all(
        v.producer.op == (Reduce(reduced[name], (2, 3)) if name in reduced else AbsHistogram())
        for name, v in taps.graph.outputs.items()
        if v.producer
    )
    assert [n.op.name.replace("AbsHistogram", "#") for n in taps.graph.nodes] == [
        "#", "Reduce", "Reduce", "Reduce", "Conv", "#", "Relu", "#", "MaxPool", "#", "Transpose",
        "Reshape", "Concat", "#", "Add", "#",
    ]  # fmt: skip

    data: dict[str, Array] = {
        "x": rng.standard_normal((2, 3, 5, 4)).astype(np.float32),
        "ids": np.zeros(2, np.int64),
    }
    known = [v.name for v in taps.graph.inputs]
    found = evaluate(taps.graph, {n: data[n] for n in known})
    wanted = evaluate(graph, data, until=list(taps.outputs))
    for name, output in taps.outputs.items():
        assert Histogram.from_words(found[output]) == Histogram.of(wanted[name]), name


def test_channels_that_products_read(rng: np.random.Generator) -> None:
    """Sums and extremes along the axis that a product sums over; none without a constant."""
    graph = Graph("products")
    image = graph.add_input("image", (2, 4, 3, 5), FP32)
    rows = graph.add_input("rows", (2, 3, 4), FP32)
    flat = graph.add_input("flat", (5, 4), FP32)
    both = graph.add_input("both", (2, 4, 4), FP32)
    columns = graph.add_input("columns", (4, 2), FP32)
    kernel = graph.add_constant("kernel", rng.standard_normal((6, 2, 1, 3)).astype(np.float32))
    line = graph.add_constant("line", rng.standard_normal((3, 4, 1)).astype(np.float32))
    w = graph.add_constant("w", rng.standard_normal((4, 6)).astype(np.float32))
    found = {
        "conv": (Conv((1, 1), (0,) * 4, groups=2), [image, kernel]),
        "again": (Conv((1, 1), (0,) * 4, groups=2), [image, kernel]),
        "dense": (MatMul(), [rows, w]),
        "single": (MatMul(), [flat, w]),
        "line.conv": (Conv((1,), (0, 0), (1,)), [both, line]),
        "line.dense": (MatMul(), [both, w]),
        "scores": (MatMul(trans_b=True), [rows, rows]),
        "turned": (MatMul(trans_a=True), [columns, w]),
        "left": (MatMul(trans_a=True), [w, columns]),
    }
    for name, (op, inputs) in found.items():
        graph.set_output(name, graph.add_node(op, inputs, name=name).output)
    taps = insert_taps(graph)
    assert taps.channels == {
        "image": ChannelTaps("image.sums", "image.lows", "image.highs", 4, 30),
        "rows": ChannelTaps("rows.sums", "rows.lows", "rows.highs", 4, 6),
        "flat": ChannelTaps("flat.sums", "flat.lows", "flat.highs", 4, 5),
    }
    data = {v.name: rng.standard_normal(v.shape).astype(np.float32) for v in graph.inputs}
    results = evaluate(taps.graph, data)
    for name, axes in (("image", (0, 2, 3)), ("rows", (0, 1)), ("flat", (0,))):
        sums = results[f"{name}.sums"].reshape(-1, 4).sum(axis=0)
        np.testing.assert_allclose(sums, data[name].sum(axis=axes), rtol=1e-5, atol=1e-5)
        lows = results[f"{name}.lows"].reshape(-1, 4).min(axis=0)
        highs = results[f"{name}.highs"].reshape(-1, 4).max(axis=0)
        np.testing.assert_array_equal(lows, data[name].min(axis=axes))
        np.testing.assert_array_equal(highs, data[name].max(axis=axes))


def test_a_graph_without_activations() -> None:
    graph = Graph("ids")
    x = graph.add_input("x", (3,), INT64)
    graph.set_output("y", graph.add_node(Add(), [x, x]).output)
    with pytest.raises(CalibrationError, match="graph 'ids' has no fp32 activation"):
        insert_taps(graph)


def test_constants_and_empty_tensors_are_left_out() -> None:
    graph = Graph("net")
    x = graph.add_input("x", (0, 3), FP32)
    c = graph.add_constant("c", np.ones((2, 3), np.float32))
    moved = graph.add_node(Reshape((3, 2)), [c], output_names=["moved"]).output
    y = graph.add_node(Relu(), [moved], output_names=["y"]).output
    graph.set_output("y", y)
    graph.set_output("x", graph.add_node(Relu(), [x]).output)
    assert list(insert_taps(graph).outputs) == ["y"]


def test_names_that_are_taken(rng: np.random.Generator) -> None:
    graph = Graph("net")
    x = graph.add_input("x", (3,), FP32)
    y = graph.add_node(Relu(), [x], name="x.histogram").output
    graph.set_output("y", y)
    rows = graph.add_input("rows", (2, 3), FP32)
    w = graph.add_constant("rows.lows", np.ones((3, 1), np.float32))
    graph.set_output("z", graph.add_node(MatMul(), [rows, w], name="rows.highs").output)
    taps = insert_taps(graph)
    assert list(taps.outputs) == ["x", "rows", "x.histogram", "rows.highs"]
    named = ChannelTaps("rows.sums", "rows.lows.1", "rows.highs.1", 3, 2)
    assert taps.channels == {"rows": named}
    data = rng.standard_normal(3).astype(np.float32)
    pair = np.stack([data, data + 1])
    found = evaluate(taps.graph, {"x": data, "rows": pair})
    assert (found[named.lows] == data).all()
    assert (found[named.highs] == data + 1).all()
    assert Histogram.from_words(found[taps.outputs["x"]]) == Histogram.of(data)
    relu = Histogram.from_words(found[taps.outputs["x.histogram"]])
    assert relu == Histogram.of(np.maximum(data, 0))
