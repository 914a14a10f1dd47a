"""Evaluating whole graphs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from nrt.dtypes import FP16, FP32, INT64
from nrt.errors import GraphError, InputError, ShapeError
from nrt.ir import Graph, TensorType
from nrt.ir.evaluate import evaluate
from nrt.ir.op import Array, Op
from nrt.ir.ops import Add, Conv, Exp, Gather, MatMul, Reduce, Relu, Split

RTOL = 1e-5


def small_network(rng: np.random.Generator) -> tuple[Graph, dict[str, Array]]:
    """relu(conv(x)) averaged, then a matmul and two outputs."""
    g = Graph("small")
    x = g.add_input("x", (2, 3, 7, 5), FP32)
    w = g.add_constant("w", rng.standard_normal((4, 3, 3, 3)).astype(np.float32))
    m = g.add_constant("m", rng.standard_normal((4, 6)).astype(np.float32))
    conv = g.add_node(Conv(pads=(1, 1, 1, 1)), [x, w], name="conv").output
    mean = g.add_node(Reduce("mean", (2, 3), False), [g.add_node(Relu(), [conv]).output]).output
    logits = g.add_node(MatMul(), [mean, m], name="logits").output
    a, b = g.add_node(Split(1, (2, 4)), [logits], output_names=["a", "b"]).outputs
    g.set_output("first", a)
    g.set_output("last", b)
    return g, {"x": rng.standard_normal((2, 3, 7, 5)).astype(np.float32)}


def test_outputs_by_name(rng: np.random.Generator) -> None:
    g, feeds = small_network(rng)
    results = evaluate(g, feeds)
    assert list(results) == ["first", "last"]
    w, m = g.value("w").constant, g.value("m").constant
    assert w is not None
    assert m is not None
    padded = np.pad(feeds["x"].astype(float), [(0, 0), (0, 0), (1, 1), (1, 1)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))
    conv = np.einsum("nchwij,kcij->nkhw", windows, w.astype(float))
    want = np.maximum(conv, 0).mean((2, 3)) @ m.astype(float)
    got = np.concatenate([results["first"], results["last"]], axis=1)
    np.testing.assert_allclose(got, want, rtol=RTOL, atol=RTOL)


def test_until_computes_only_what_is_asked_for(rng: np.random.Generator) -> None:
    g, feeds = small_network(rng)
    everything = evaluate(g, feeds, until=["conv", "relu", "a", "x", "w"])
    assert list(everything) == ["conv", "relu", "a", "x", "w"]
    np.testing.assert_array_equal(np.maximum(everything["conv"], 0), everything["relu"])
    np.testing.assert_array_equal(everything["x"], feeds["x"])
    # The constant needs no input at all.
    assert evaluate(g, {}, until=["w"])["w"].shape == (4, 3, 3, 3)
    with pytest.raises(GraphError, match="graph 'small' has no value 'nope'"):
        evaluate(g, feeds, until=["nope"])


def test_results_own_their_memory(rng: np.random.Generator) -> None:
    g = Graph()
    x = g.add_input("x", (3,), FP32)
    w = g.add_constant("w", np.ones(3, np.float32))
    total = g.add_node(Add(), [x, w]).output
    for name, value in (("w", w), ("x", x), ("sum", total), ("again", total)):
        g.set_output(name, value)
    feed = rng.standard_normal(3).astype(np.float32)
    kept = feed.copy()
    results = evaluate(g, {"x": feed})
    for array in results.values():
        np.add(array, 1, out=array)
    np.testing.assert_array_equal(feed, kept)
    assert w.constant is not None
    assert w.constant.tolist() == [1, 1, 1]
    np.testing.assert_array_equal(results["sum"], (kept + 1) + 1)
    np.testing.assert_array_equal(results["again"], (kept + 1) + 1)


def test_values_are_rounded_to_their_dtype_after_every_node() -> None:
    g = Graph()
    x = g.add_input("x", (1,), FP16)
    y = g.add_node(Exp(), [g.add_node(Exp(), [x]).output]).output
    g.set_output("y", y)
    (result,) = evaluate(g, {"x": np.float16([1.7])}).values()
    inner = np.exp(np.float32(np.float16(1.7))).astype(np.float16)
    assert result.dtype == np.float16
    assert result[0] == np.exp(np.float32(inner)).astype(np.float16)


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({}, r"input 'x' is missing, expected fp32\[2,3,7,5\]"),
        ({"x": 0, "y": 0}, "graph 'small' has no input 'y'; its inputs are x"),
        ({"x": np.zeros((2, 3))}, r"input 'x' is fp64\[2,3\], expected fp32\[2,3,7,5\]"),
        ({"x": np.zeros(2, complex)}, r"input 'x' is complex128, expected fp32"),
    ],
)
def test_wrong_inputs_are_named(
    rng: np.random.Generator, feeds: dict[str, Any], message: str
) -> None:
    g, _ = small_network(rng)
    with pytest.raises(InputError, match=message):
        evaluate(g, feeds)


def test_errors_of_references_name_the_node() -> None:
    g = Graph()
    table = g.add_constant("table", np.zeros((4, 2), np.float32))
    ids = g.add_input("ids", (3,), INT64)
    g.set_output("y", g.add_node(Gather(), [table, ids], name="embed").output)
    with pytest.raises(ShapeError, match=r"^Gather 'embed': index 9 is out of range for"):
        evaluate(g, {"ids": np.array([0, 9, 1])})


@dataclass(frozen=True)
class Liar(Op):
    """Computes another type than it infers."""

    def infer(self, *inputs: TensorType) -> tuple[TensorType, ...]:
        return inputs

    def reference(self, *inputs: Array) -> tuple[Array, ...]:
        return (inputs[0].astype(np.float64),)


def test_references_that_disagree_with_infer_are_named() -> None:
    g = Graph()
    x = g.add_input("x", (2,), FP32)
    g.set_output("y", g.add_node(Liar(), [x]).output)
    with pytest.raises(GraphError, match=r"Liar 'liar': the reference gives fp64\[2\] for 'liar'"):
        evaluate(g, {"x": np.zeros(2, np.float32)})
