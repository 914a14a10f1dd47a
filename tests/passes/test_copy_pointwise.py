from __future__ import annotations

from collections.abc import Callable

import pytest

from nrt.dtypes import FP64, INT8
from nrt.ir.ops import Add, Cast, Exp, Mul, Neg, Relu, Softmax, Sub, Tanh
from nrt.passes.base import run_pipeline
from nrt.passes.copy_pointwise import CopyPointwise
from nrt.passes.pipeline import PipelineOptions, pipeline

from .support import Net, apply, assert_same, feeds, ops, refusals

PASS = CopyPointwise()


def shared(net: Net) -> None:
    """Two nodes read Exp, one of them twice."""
    a = net.op(Exp(), net.input(3, 5))
    net.out(net.op(Add(), a, net.input(5, name="p")), "y")
    net.out(net.op(Mul(), a, a), "z")


def test_every_reader_computes_it() -> None:
    net = Net()
    shared(net)
    (site,) = PASS.sites(net.graph)
    assert site.origins == {"/exp", "/add", "/mul"}
    result = apply(net, PASS)
    assert ops(result.graph) == ["Pointwise", "Pointwise"]
    assert {n.op.attributes()["body"].text() for n in result.graph.nodes} == {
        "exp(x0); add(r2, x1)",
        "exp(x0); mul(r1, r1)",
    }
    assert {n.origin for n in result.graph.nodes} == {("/exp", "/add"), ("/exp", "/mul")}
    (note,) = result.notes
    assert note.text == "is computed in each of Add 'add', Mul 'mul'"


def test_a_key_that_is_skipped_is_left_apart() -> None:
    net = Net()
    shared(net)
    (site,) = PASS.sites(net.graph)
    step = CopyPointwise(skip=frozenset({site.key}))
    result = apply(net, step)
    assert not result.changed
    assert refusals(result.notes) == ["it is left apart"]
    assert step.sites(net.graph) == (site,)


def test_a_tree_is_copied_from_its_root_on() -> None:
    net = Net()
    a = net.op(Exp(), net.input(3, 5))
    b = net.op(Tanh(), net.op(Neg(), a))
    for k, value in enumerate((net.op(Relu(), b), net.op(Sub(), b, a), net.op(Mul(), a, a))):
        net.out(value, f"y{k}")
    apart = PipelineOptions(disabled=frozenset({"merge-pointwise"}))
    for options, found in ((apart, ["Pointwise"] * 3), (None, ["MultiPointwise"])):
        report = run_pipeline(net.graph, pipeline(options), verify=True)
        assert_same(net.graph, report.graph, feeds(net))
        assert ops(report.graph) == found


def with_softmax(net: Net) -> None:
    a = net.op(Exp(), net.input(3, 5))
    net.out(net.op(Relu(), a), "y")
    net.out(net.op(Softmax(), a), "z")


def broadcast(net: Net) -> None:
    a = net.op(Exp(), net.input(5))
    net.out(net.op(Relu(), a), "y")
    net.out(net.op(Add(), a, net.input(3, 5, name="p")), "z")


def narrow(net: Net) -> None:
    a = net.op(Cast(INT8), net.input(5))
    net.out(net.op(Neg(), a), "y")
    net.out(net.op(Mul(), a, a), "z")


def double(net: Net) -> None:
    a = net.op(Relu(), net.input(5))
    net.out(net.op(Neg(), a), "y")
    net.out(net.op(Cast(FP64), a), "z")


def wide(net: Net) -> None:
    a = net.input(5)
    for k in range(8):
        a = net.op(Add(), a, net.input(5, name=f"a{k}"))
    net.out(net.op(Neg(), a), "y")
    net.out(net.op(Relu(), a), "z")


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (with_softmax, "Softmax 'softmax' reads it too"),
        (broadcast, "Add 'add' broadcasts it to [3, 5]"),
        (narrow, "in Neg 'neg', the intermediate is int8"),
        (double, "in Cast 'cast', mixes fp64 with fp32"),
    ],
)
def test_refusals(build: Callable[[Net], None], reason: str) -> None:
    net = Net()
    build(net)
    assert PASS.sites(net.graph) == ()
    result = apply(net, PASS)
    assert not result.changed
    assert any(text.startswith(reason) for text in refusals(result.notes))


def test_a_program_that_would_grow_too_large() -> None:
    net = Net()
    wide(net)
    report = run_pipeline(net.graph, pipeline(), verify=True)
    found = [n.text for n in report.notes if n.pass_name == "copy-pointwise"]
    assert any(t.endswith("the fused program would read 9 tensors, the limit is 8") for t in found)


def test_an_output_is_computed_anyway() -> None:
    net = Net()
    a = net.out(net.op(Exp(), net.input(3, 5)), "kept")
    net.out(net.op(Relu(), a), "y")
    net.out(net.op(Neg(), a), "z")
    assert not apply(net, PASS).changed


def test_keys_know_shapes_and_no_names() -> None:
    def key(size: int, name: str) -> str:
        net = Net()
        a = net.op(Exp(), net.input(size, name=name), name=name)
        net.out(net.op(Relu(), a), "y")
        net.out(net.op(Neg(), a), "z")
        (site,) = PASS.sites(net.graph)
        return site.key

    assert key(5, "a") == key(5, "b")
    assert key(5, "a") != key(6, "a")
