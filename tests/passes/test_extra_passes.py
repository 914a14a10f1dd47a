"""Passes of a user's own: when they run, what is checked after them, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest

import nrt
from nrt.builder import build, optimize
from nrt.errors import BuildError, PassError
from nrt.ir.evaluate import evaluate
from nrt.ir.graph import Graph
from nrt.ir.ops import Abs, Neg, Relu
from nrt.passes.base import PassResult
from nrt.passes.pattern import Match, Pat, Rule, RulePass, Var

RNG = np.random.default_rng()


class _AbsForRelu(Rule):
    pattern = Pat(Relu, Var("x"))

    def rewrite(self, graph: Graph, match: Match) -> str:
        graph.replace_node(match.root, Abs(), [match.values["x"]])
        return "became Abs"


@dataclass(frozen=True)
class AbsForRelu(RulePass):
    """Changes what is computed, so that it shows in the result."""

    name: ClassVar[str] = "abs-for-relu"

    def rules(self) -> tuple[Rule, ...]:
        return (_AbsForRelu(),)


@dataclass(frozen=True)
class Does(nrt.Pass):
    """Calls a function on the graph, once."""

    name: ClassVar[str] = "does"
    what: Callable[[Graph], Any] = lambda graph: None

    def run(self, graph: Graph) -> PassResult:
        self.what(graph)
        return PassResult(graph, False)


def network() -> nrt.Network:
    rng = np.random.default_rng(5)
    net = nrt.Network("net")
    x = net.input("x", (2, 3, 5, 5))
    y = net.conv2d(x, rng.standard_normal((4, 3, 3, 3)).astype(np.float32), name="conv")
    net.output(net.relu(y, name="relu"), "y")
    return net


def test_it_runs_before_fusion_and_shows_in_the_result() -> None:
    net = network()
    built = build(net, target="cpu", opt_level=0, extra_passes=[AbsForRelu()], snapshots=True)
    (layer,) = [la for la in built.plan.layers if la.op.startswith("Conv")]
    assert (layer.op, layer.origins) == ("Conv[abs(x0)]", ("conv", "relu"))
    (note,) = [n for n in built.passes.notes if n.pass_name == "abs-for-relu"]
    assert (note.node, note.text) == ("relu", "became Abs")
    assert "abs-for-relu" in built.passes.stages
    x = RNG.standard_normal((2, 3, 5, 5)).astype(np.float32)
    engine = nrt.compile(net, target="cpu", opt_level=0, extra_passes=[AbsForRelu()])
    conv = next(n for n in net.graph.nodes if n.name == "conv").output.name
    expected = np.abs(evaluate(net.graph, {"x": x}, until=[conv])[conv])
    np.testing.assert_allclose(np.asarray(engine(x)), expected, rtol=1e-4, atol=1e-5)


def test_phases_without_extra_passes_are_as_before() -> None:
    phases = {record.phase for record in optimize(network()).records}
    assert "user" not in phases
    report = optimize(network(), extra_passes=[Does()])
    order = list(dict.fromkeys(record.phase for record in report.records))
    assert order[order.index("user") - 1 : order.index("user") + 2] == [
        "fold",
        "user",
        "quantization",
    ]


def _wrong_shape(graph: Graph) -> None:
    graph.nodes[0].output.shape = (99,)


def _renames(graph: Graph) -> None:
    graph.set_output("z", graph.outputs["y"])


def _retypes(graph: Graph) -> None:
    flat = graph.add_node(nrt.ir.ops.Reshape((72,)), [graph.outputs["y"]], name="flat")
    graph.set_output("y", flat.output)


def _raises(graph: Graph) -> None:
    raise KeyError("lost")


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (_wrong_shape, "pass 'does' left a graph that does not verify"),
        (_renames, r"pass 'does' changed output 'z' from nothing to fp32\[2,4,3,3\]; inputs and"),
        (_retypes, r"pass 'does' changed output 'y' from fp32\[2,4,3,3\] to fp32\[72\]"),
        (_raises, "pass 'does' failed: KeyError: 'lost'"),
    ],
)
def test_what_it_breaks_is_found(
    what: Callable[[Graph], Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NRT_VERIFY", "0")
    with pytest.raises(PassError, match=message):
        optimize(network(), extra_passes=[Does(what)])


def test_an_unchanged_graph_passes_the_checks() -> None:
    def adds_and_removes(graph: Graph) -> None:
        node = graph.add_node(Neg(), [graph.inputs[0]], name="spare")
        graph.remove_node(node)

    optimize(network(), extra_passes=[Does(adds_and_removes)])


@dataclass(frozen=True)
class Nameless(nrt.Pass):
    def run(self, graph: Graph) -> PassResult:
        return PassResult(graph, False)


@dataclass(frozen=True)
class Dead(Nameless):
    name: ClassVar[str] = "dead-code"


@pytest.mark.parametrize(
    ("passes", "message"),
    [
        ([AbsForRelu], r"extra_passes\[0\]: got <class .*make one: AbsForRelu\(\)"),
        ([AbsForRelu(), "x"], r"extra_passes\[1\]: got 'x', expected an instance of nrt.Pass"),
        ([Nameless()], r"extra_passes\[0\]: Nameless has no name; set name: ClassVar\[str\]"),
        ([Dead()], r"extra_passes\[0\]: a pass called 'dead-code' is there already"),
        ([Does(), Does()], r"extra_passes\[1\]: a pass called 'does' is there already"),
    ],
)
def test_what_is_refused(passes: list[Any], message: str) -> None:
    with pytest.raises(BuildError, match=message):
        optimize(network(), extra_passes=passes)
