from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from nrt.ir.graph import Graph
from nrt.ir.ops import Abs, Add, Elementwise, Exp, Mul, Neg, Relu
from nrt.passes.pattern import Anywhere, Const, Match, Pat, Rest, Rule, RulePass, Var, matches

from .support import Net, apply, ops, refusals


def test_variables_bind_values_and_must_agree() -> None:
    net = Net()
    x, y = net.input(2, 3), net.input(2, 3, name="z")
    same, other = net.node(Add(), x, x), net.node(Add(), x, y)
    twice = Pat(Add, Var("a"), Var("a"))
    (match,) = matches(net.graph, twice, same)
    assert match.values == {"a": x}
    assert match.root is same
    assert not list(matches(net.graph, twice, other))


def test_commutative_inputs_match_in_both_orders() -> None:
    net = Net()
    x, c = net.input(2, 3), net.const(net.random(3))
    for inputs in ((x, c), (c, x)):
        node = net.node(Mul(), *inputs)
        pattern = Pat(Mul, Var("x"), Const("c"), commutative=True)
        found = list(matches(net.graph, pattern, node))
        assert [(m.values["x"], m.values["c"]) for m in found] == [(x, c)]
    fixed = Pat(Mul, Var("x"), Const("c"))
    assert not list(matches(net.graph, fixed, node))


def test_nested_patterns_name_their_nodes() -> None:
    net = Net()
    inner = net.node(Exp(), net.input(3))
    outer = net.node(Relu(), inner.output)
    pattern = Pat((Relu, Abs), Pat(Exp, Var("x"), name="inner"), name="outer")
    (match,) = matches(net.graph, pattern, outer)
    assert match.nodes == {"inner": inner, "outer": outer}
    assert match.op("inner") == Exp()
    assert not list(matches(net.graph, Pat(Relu, Pat(Neg, Var("x"))), outer))
    assert not list(matches(net.graph, Pat(Relu, Pat(Exp, Var("x"))), inner))


def test_only_use_blocks_with_a_reason() -> None:
    net = Net()
    inner = net.node(Exp(), net.input(3))
    outer = net.node(Relu(), inner.output)
    pattern = Pat(Relu, Pat(Exp, Var("x"), only_use=True))
    assert [m.blocked for m in matches(net.graph, pattern, outer)] == [None]
    net.out(inner.output)
    (match,) = matches(net.graph, pattern, outer)
    assert match.blocked == "output 'exp' of Exp 'exp' is an output of the graph"
    net.graph.set_output("y", net.op(Abs(), inner.output))
    (match,) = matches(net.graph, pattern, outer)
    assert match.blocked == "output 'exp' of Exp 'exp' is used elsewhere too, by Abs 'abs'"


def test_several_slots_of_one_consumer_are_one_use() -> None:
    net = Net()
    square = net.op(Exp(), net.input(3))
    node = net.node(Mul(), square, square)
    pattern = Pat(Mul, Anywhere(Pat(Exp, Var("x"), only_use=True)))
    assert [m.blocked for m in matches(net.graph, pattern, node)] == [None]


def test_anywhere_tries_each_slot() -> None:
    net = Net()
    x = net.input(3)
    a, b = net.node(Exp(), x), net.node(Neg(), x)
    node = net.node(Add(), a.output, b.output)
    pattern = Pat(Add, Anywhere(Pat(Elementwise, Rest("inputs"), name="inner")))
    assert [m.nodes["inner"] for m in matches(net.graph, pattern, node)] == [a, b]
    assert [m.rest["inputs"] for m in matches(net.graph, pattern, node)] == [(x,), (x,)]


def test_the_number_of_inputs_counts() -> None:
    net = Net()
    x = net.input(3)
    node = net.node(Add(), x, x)
    assert not list(matches(net.graph, Pat(Add, Var("x")), node))
    assert not list(matches(net.graph, Pat(Add, Var("x"), Var("x"), Var("z")), node))
    (match,) = matches(net.graph, Pat(Add, Var("x"), Var("x"), Rest("more")), node)
    assert match.rest == {"more": ()}


def test_where_narrows_without_a_reason() -> None:
    net = Net()
    node = net.node(Relu(), net.input(3))
    assert not list(matches(net.graph, Pat(Relu, Var("x"), where=lambda n: False), node))


class _DropNeg(Rule):
    pattern = Pat(Add, Anywhere(Pat(Neg, Var("x"), name="neg", only_use=True)), name="add")

    def check(self, graph: Graph, match: Match) -> str | None:
        return "x is an input" if match.values["x"].producer is None else None

    def preference(self, graph: Graph, match: Match) -> int:
        return int(match.nodes["neg"].name.removeprefix("neg").lstrip(".") or 0)

    def rewrite(self, graph: Graph, match: Match) -> str:
        neg = match.nodes["neg"]
        slot = match.root.inputs.index(neg.output)
        keep = match.root.inputs[1 - slot]
        graph.replace_node(match.root, Relu(), [keep], also=[neg])
        return f"dropped {neg.name}"


@dataclass(frozen=True)
class _DropNegs(RulePass):
    name: ClassVar[str] = "drop-negs"

    def rules(self) -> tuple[Rule, ...]:
        return (_DropNeg(),)


def test_the_preferred_match_is_tried_first_and_refusals_stay() -> None:
    net = Net()
    x = net.input(3)
    a = net.op(Neg(), net.op(Exp(), x))
    b = net.op(Neg(), net.op(Abs(), x))
    net.out(net.op(Add(), a, b))
    result = _DropNegs().run(net.graph.copy())
    assert [n.text for n in result.notes] == ["dropped neg.1"]
    assert ops(result.graph) == ["Exp", "Neg", "Relu"]
    direct = Net()
    z = direct.input(3)
    direct.out(direct.op(Add(), direct.op(Neg(), z), z))
    result = apply(direct, _DropNegs())
    assert not result.changed
    assert refusals(result.notes) == ["x is an input"]
