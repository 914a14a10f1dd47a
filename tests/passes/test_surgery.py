"""Replacing what a pattern matches, by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

import nrt
from nrt.dtypes import FP32
from nrt.errors import GraphError, ShapeError
from nrt.ir.evaluate import evaluate
from nrt.ir.graph import Graph
from nrt.ir.ops import (
    Add,
    Concat,
    Conv,
    HardSwish,
    Identity,
    MatMul,
    Mul,
    Neg,
    Relu,
    Reshape,
    Sigmoid,
    Split,
    Tanh,
)
from nrt.ir.text import to_text
from nrt.ir.value import NHWC, Value
from nrt.ir.verify import verify
from nrt.passes.pattern import Anywhere, Const, Match, Pat, Rest, Var
from nrt.passes.surgery import Patch, replace

RNG = np.random.default_rng()
TOLERANCE = 1e-5


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def chain(*ops: object) -> Graph:
    """``x[3, 5]`` through unary ops called n0, n1, …, with origins o0, o1, …"""
    graph = Graph("chain")
    value = graph.add_input("x", (3, 5), FP32)
    for index, op in enumerate(ops):
        value = graph.add_node(op, [value], name=f"n{index}", origin=[f"o{index}"]).output
    graph.set_output("y", value)
    return graph


def run(graph: Graph, x: np.ndarray) -> np.ndarray:
    verify(graph)
    return evaluate(graph, {"x": x})["y"]


def swish(match: Match, patch: Patch) -> Value:
    x = match.values["x"]
    return patch.add(Mul(), x, patch.add(Sigmoid(), x, name="gate"))


def test_every_match_is_replaced() -> None:
    graph = chain(HardSwish(), Tanh(), HardSwish(), HardSwish())
    assert nrt.replace(graph, Pat(HardSwish, Var("x")), swish) == 3
    x = want = normal(3, 5)
    for hop in ("s", "t", "s", "s"):
        want = np.tanh(want) if hop == "t" else want / (1 + np.exp(-want))
    np.testing.assert_allclose(run(graph, x), want, rtol=TOLERANCE, atol=TOLERANCE)
    assert [n.name for n in graph.nodes] == ["gate", "n0", "n1", "gate.1", "n2", "gate.2", "n3"]
    assert graph.node("gate.1").origin == ("o2",)
    assert graph.value("n3").producer is graph.node("n3")


def test_names_that_are_given_stay() -> None:
    graph = chain(Tanh(), Neg())
    replace(graph, Pat(Tanh, Var("x")), lambda m, p: p.add(Relu(), m.values["x"], name="n0-mine"))
    assert [n.name for n in graph.nodes] == ["n0-mine", "n1"]
    assert graph.has_value("n0-mine")


def test_origins_of_a_match_are_joined_and_its_weights_go() -> None:
    graph = Graph()
    x = graph.add_input("x", (1, 3, 5, 7), FP32)
    w, b = graph.add_constant("w", normal(4, 3, 1, 1)), graph.add_constant("b", normal(4))
    idle = graph.add_constant("idle", normal(2))
    conv = graph.add_node(Conv(), [x, w, b], name="conv", origin=["m/conv"])
    graph.set_layout(conv.output, NHWC)
    relu = graph.add_node(Relu(), [conv.output], name="relu", origin=["m/relu"])
    graph.set_layout(relu.output, NHWC)
    graph.set_output("y", relu.output)
    feeds = {"x": normal(1, 3, 5, 7)}
    want = evaluate(graph, feeds)["y"]

    def double(match: Match, patch: Patch) -> Value:
        assert set(match.nodes) == {"conv"}
        assert match.rest["bias"] == (b,)
        weights = patch.constant(2 * match.array("w"), "doubled", NHWC)
        bias = patch.constant(2 * b.constant)
        return patch.add(Relu(), patch.add(Conv(), match.values["x"], weights, bias))

    inner = Pat(Conv, Var("x"), Const("w"), Rest("bias"), name="conv", only_use=True)
    assert replace(graph, Pat(Relu, inner), double) == 1
    verify(graph)
    got = evaluate(graph, feeds)["y"]
    np.testing.assert_allclose(got, 2 * want, rtol=TOLERANCE, atol=TOLERANCE)
    assert [n.origin for n in graph.nodes] == [("m/conv", "m/relu")] * 2
    assert {v.name for v in graph.constants} == {"idle", "relu.doubled", "relu.constant"}
    assert graph.value("relu.doubled").layout == NHWC
    assert graph.outputs["y"].layout == NHWC
    assert graph.has_value(idle.name)


def test_matches_do_not_share_a_node() -> None:
    graph = chain(Neg(), Neg(), Neg(), Neg(), Neg())
    double = Pat(Neg, Pat(Neg, Var("x")))
    assert replace(graph, double, lambda match, patch: match.values["x"]) == 2
    assert [n.name for n in graph.nodes] == ["n4"]
    x = normal(3, 5)
    np.testing.assert_array_equal(run(graph, x), -x)
    assert graph.node("n4").inputs == graph.inputs


def test_a_replacement_may_be_what_another_match_replaced() -> None:
    graph = chain(Identity(), Identity(), Tanh(), Identity())
    assert replace(graph, Pat(Identity, Var("x")), lambda match, patch: match.values["x"]) == 3
    assert [n.name for n in graph.nodes] == ["n2"]
    x = normal(3, 5)
    np.testing.assert_allclose(run(graph, x), np.tanh(x), rtol=TOLERANCE, atol=TOLERANCE)


def test_something_may_be_put_behind_a_node() -> None:
    graph = chain(Tanh(), Tanh())
    count = replace(graph, Pat(Tanh, Var("x")), lambda m, patch: patch.add(Neg(), m.root.output))
    assert count == 2
    x = normal(3, 5)
    want = -np.tanh(-np.tanh(x))
    np.testing.assert_allclose(run(graph, x), want, rtol=TOLERANCE, atol=TOLERANCE)
    assert [type(n.op) for n in graph.nodes] == [Tanh, Neg, Tanh, Neg]


def test_nodes_that_others_read_stay() -> None:
    graph = chain(Tanh(), Neg())
    graph.set_output("z", graph.node("n0").output)
    pattern = Pat(Neg, Pat(Tanh, Var("x")))
    assert replace(graph, pattern, lambda m, patch: patch.add(Relu(), m.values["x"])) == 1
    assert {n.name: type(n.op) for n in graph.nodes} == {"n0": Tanh, "n1": Relu}
    blocked = Pat(Neg, Pat(Tanh, Var("x"), only_use=True))
    graph = chain(Tanh(), Neg())
    graph.set_output("z", graph.node("n0").output)
    assert replace(graph, blocked, lambda m, patch: patch.add(Relu(), m.values["x"])) == 0


def test_several_outputs_and_any_slot() -> None:
    graph = Graph()
    x = graph.add_input("x", (3, 5), FP32)
    a, b = graph.add_node(Split(1, (2, 3)), [x], name="split").outputs
    graph.set_output("y", graph.add_node(Concat(1), [b, a], name="join").output)

    def negated(match: Match, patch: Patch) -> Sequence[Value]:
        return patch.add_many(Split(1, (2, 3)), patch.add(Neg(), match.values["x"]))

    assert replace(graph, Pat(Split, Var("x")), negated) == 1
    data = normal(3, 5)
    np.testing.assert_array_equal(run(graph, data), -np.roll(data, -2, axis=1))
    behind = Pat(Concat, Anywhere(Pat(Split, Var("x"), name="split")))
    assert replace(graph, behind, lambda m, patch: patch.add(Tanh(), m.values["x"])) == 1
    assert [type(n.op) for n in graph.nodes] == [Neg, Tanh]


def test_none_leaves_a_match_alone() -> None:
    graph = chain(Tanh(), Relu(), Tanh())

    def only_last(match: Match, patch: Patch) -> Value | None:
        new = patch.add(Mul(), match.values["x"], patch.constant(normal(5)))
        return new if match.root.name == "n2" else None

    assert replace(graph, Pat(Tanh, Var("x")), only_last) == 1
    assert [type(n.op) for n in graph.nodes] == [Tanh, Relu, Mul]
    assert len(graph.constants) == 1
    verify(graph)


FAILURES = {
    "dtype": (
        lambda m, p: p.add(Reshape((5, 3)), m.values["x"]),
        r"Tanh 'n2': the replacement of 'n2' is fp32\[5,3\], expected fp32\[3,5\]; insert a Cast",
    ),
    "count": (
        lambda m, p: (m.values["x"], m.values["x"]),
        "Tanh 'n2': the replacement has 2 values, expected 1, one per output",
    ),
    "later": (
        lambda m, p: p.add(Neg(), p.graph.value("n3")),
        "Tanh 'n2': the replacement reads 'n3' of Neg 'n3', which is not computed before it",
    ),
    "foreign": (
        lambda m, p: chain(Tanh()).value("x"),
        "Tanh 'n2': the replacement 'x' is no value of graph 'chain'; build it with the patch",
    ),
    "many": (
        lambda m, p: p.add(Split(0, (1, 2)), m.values["x"]),
        r"Split 'n2.1': has 2 outputs, expected 1; use Patch.add_many",
    ),
    "shape": (
        lambda m, p: p.add(MatMul(), p.add(Neg(), m.values["x"]), m.values["x"]),
        "MatMul 'n2': inner dimensions differ",
    ),
}


@pytest.mark.parametrize("kind", sorted(FAILURES))
def test_a_failure_leaves_the_graph_as_it_was(kind: str) -> None:
    graph = chain(Tanh(), Relu(), Tanh(), Neg())
    before = to_text(graph)
    bad, message = FAILURES[kind]

    def fails_at_the_second(match: Match, patch: Patch) -> object:
        if match.root.name == "n0":
            return patch.add(Add(), match.values["x"], patch.constant(normal(3, 5)))
        return bad(match, patch)

    with pytest.raises(GraphError, match=message) as caught:
        replace(graph, Pat(Tanh, Var("x")), fails_at_the_second)  # type: ignore[arg-type]
    assert isinstance(caught.value, ShapeError) == (kind == "shape")
    verify(graph)
    assert to_text(graph) == before
    assert not graph.constants


def test_an_error_of_the_function_itself_comes_through() -> None:
    graph = chain(Tanh(), Tanh())
    before = to_text(graph)

    def broken(match: Match, patch: Patch) -> Value:
        patch.add(Neg(), patch.add(Neg(), match.values["x"]))
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        replace(graph, Pat(Tanh, Var("x")), broken)
    assert to_text(graph) == before
    verify(graph)
