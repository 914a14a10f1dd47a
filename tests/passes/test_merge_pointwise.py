from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nrt.dtypes import FP8E4M3, FP16, FP32, FP64, INT8, INT32
from nrt.ir.ops import (
    Add,
    Cast,
    Exp,
    Max,
    Mul,
    MultiPointwise,
    Neg,
    Pointwise,
    Reduce,
    Relu,
    Reshape,
    Sigmoid,
    Slice,
    Softmax,
    Split,
    Sub,
    Tanh,
    Transpose,
)
from nrt.ir.text import node_text
from nrt.ir.value import NHWC, Value
from nrt.passes.base import Phase, run_pipeline
from nrt.passes.merge_pointwise import MergePointwise
from nrt.passes.pipeline import PipelineOptions, pipeline

from .support import FP16_TOLERANCE, Net, apply, assert_same, feeds, ops, refusals, sole

PASS = MergePointwise()


def pair(net: Net, size: int = 5) -> None:
    """Two nodes read x, one of them the other's result, which is read elsewhere too."""
    x = net.input(3, size)
    a = net.out(net.op(Add(), x, net.input(size, name="p")), "y")
    net.out(net.op(Mul(), x, a), "z")


def test_readers_of_one_tensor_and_of_each_other_are_one() -> None:
    net = Net()
    pair(net)
    (site,) = PASS.sites(net.graph)
    assert site.origins == {"/add", "/mul"}
    result = apply(net, PASS)
    node = sole(result.graph, MultiPointwise)
    assert len(result.graph) == 1
    assert node.op.attributes()["body"].text() == "add(x0, x1); mul(x0, r2) -> r2, r3"
    assert node.op.attributes()["dtypes"] == (FP32, FP32)
    assert [v.name for v in node.outputs] == ["add", "mul"]
    assert node.origin == ("/add", "/mul")
    assert [note.text for note in result.notes] == ["is Add 'add', Mul 'mul'"]
    assert node_text(node) == (
        "%add: fp32[3,5], %mul: fp32[3,5] = MultiPointwise(%x, %p; "
        "body=[add(x0, x1); mul(x0, r2) -> r2, r3], dtypes=(fp32, fp32)) # /add, /mul"
    )


def test_a_result_that_nobody_else_reads_is_not_written() -> None:
    net = Net()
    x = net.input(3, 5)
    a = net.op(Exp(), x)
    net.out(net.op(Add(), net.op(Neg(), a), net.op(Mul(), a, x)))
    result = apply(net, PASS)
    node = sole(result.graph, Pointwise)
    assert len(result.graph) == 1
    assert node.op.attributes()["body"].text() == "exp(x0); neg(r1); mul(r1, x0); add(r2, r3)"


def test_a_key_that_is_skipped_is_left_apart() -> None:
    net = Net()
    pair(net)
    (site,) = PASS.sites(net.graph)
    step = MergePointwise(skip=frozenset({site.key}))
    result = apply(net, step)
    assert not result.changed
    assert refusals(result.notes) == ["it is left apart"] * 2
    assert step.sites(net.graph) == (site,)


def test_keys_know_shapes_and_no_names() -> None:
    def key(size: int, name: str) -> str:
        net = Net()
        x = net.input(size, name=name)
        net.out(net.op(Relu(), x, name=name), "y")
        net.out(net.op(Neg(), x), "z")
        (site,) = PASS.sites(net.graph)
        return site.key

    assert key(5, "a") == key(5, "b")
    assert key(5, "a") != key(6, "a")


def gates(net: Net, hidden: int = 5) -> tuple[Value, Value]:
    """A step of an LSTM: gates from pieces of one product; both states are read later."""
    h, c = net.input(3, hidden, name="h"), net.input(3, hidden, name="c")
    i, f, o, g = net.node(Split(1, (hidden,) * 4), net.dense(h, 4 * hidden)).outputs
    kept = net.op(Mul(), net.op(Sigmoid(), f), c)
    new = net.op(Mul(), net.op(Sigmoid(), i), net.op(Tanh(), g))
    cell = net.op(Add(), kept, new)
    return cell, net.op(Mul(), net.op(Sigmoid(), o), net.op(Tanh(), cell))


def test_a_step_of_an_lstm_is_a_product_and_a_loop() -> None:
    net = Net()
    cell, state = gates(net)
    net.out(cell, "cell")
    net.out(state, "state")
    report = run_pipeline(net.graph, pipeline(), verify=True)
    assert_same(net.graph, report.graph, feeds(net))
    assert ops(report.graph) == ["MatMul", "Split", "MultiPointwise"]
    off = PipelineOptions(disabled=frozenset({"merge-pointwise"}))
    report = run_pipeline(net.graph, pipeline(off), verify=True)
    assert ops(report.graph) == ["MatMul", "Split", "Pointwise", "Pointwise"]


def test_loops_stay_where_the_passes_run_again() -> None:
    net = Net()
    cell, state = gates(net)
    net.out(cell, "cell")
    net.out(state, "state")
    once = run_pipeline(net.graph, pipeline(), verify=True).graph
    for precision in ({"fp32"}, {"fp16", "fp32"}):
        options = PipelineOptions(precision=frozenset(precision))
        again = run_pipeline(once, pipeline(options), verify=True).graph
        assert_same(net.graph, again, feeds(net), FP16_TOLERANCE)
        sole(again, MultiPointwise)


def test_what_copy_pointwise_leaves_reads_its_inputs_once() -> None:
    net = Net()
    x = net.input(3, 5)
    a = net.op(Exp(), x)
    for k, value in enumerate((net.op(Relu(), a), net.op(Sub(), a, x), net.op(Tanh(), a))):
        net.out(value, f"y{k}")
    report = run_pipeline(net.graph, pipeline(), verify=True)
    assert_same(net.graph, report.graph, feeds(net))
    (node,) = report.graph.nodes
    assert len(node.outputs) == 3
    assert node.op.attributes()["body"].text().count("exp") == 1


def test_results_of_several_types_and_one_layout() -> None:
    net = Net()
    x = net.input(2, 3, 5, 7, dtype=FP16)
    x.layout = NHWC
    y = net.op(Cast(FP32), x)
    y.layout = NHWC
    z = net.op(Relu(), x)
    z.layout = NHWC
    net.out(y, "y")
    net.out(z, "z")
    node = sole(apply(net, PASS, FP16_TOLERANCE).graph, MultiPointwise)
    assert [(v.dtype, v.layout) for v in node.outputs] == [(FP32, NHWC), (FP16, NHWC)]


def test_results_of_two_layouts_stay_apart() -> None:
    net = Net()
    x = net.input(2, 3, 5, 7)
    net.op(Relu(), x).layout = NHWC
    net.op(Neg(), x)
    for value in net.graph.values[1:]:
        net.out(value, value.name)
    assert PASS.sites(net.graph) == ()


def detour(net: Net) -> None:
    """From Relu to Mul leads a way through Softmax."""
    x = net.input(3, 5)
    a = net.op(Relu(), x)
    net.out(a, "y")
    net.out(net.op(Mul(), x, net.op(Softmax(), a)), "z")


def crossing(net: Net) -> None:
    """Either pair can be one; both would wait for each other."""
    x, z = net.input(3, 5), net.input(3, 4, name="z")
    a, b = net.op(Relu(), x, name="a"), net.op(Relu(), z, name="b")
    one = net.op(Reduce("sum", (1,)), a)
    other = net.op(Reduce("sum", (1,)), b)
    net.out(net.op(Mul(), x, other, name="c"), "c")
    net.out(net.op(Mul(), z, one, name="d"), "d")


def wide(net: Net) -> None:
    x = net.input(3, 5)
    for k in range(5):
        net.out(net.op(Add(), x, net.input(5, name=f"p{k}")), f"y{k}")


def many(net: Net) -> None:
    x = net.input(3, 5)
    for k in range(2):
        net.out(net.op(Max(), x, *(net.input(5, name=f"p{k}{i}") for i in range(4))), f"y{k}")


def rounding(net: Net) -> None:
    x = net.input(3, 5)
    net.out(net.op(Relu(), x), "y")
    net.out(net.op(Cast(INT8), x), "z")


def narrow(net: Net) -> None:
    x = net.input(3, 5, dtype=INT32)
    y = net.op(Cast(INT8), x)
    net.out(y, "y")
    net.out(net.op(Neg(), y), "z")


def double(net: Net) -> None:
    x = net.input(3, 5)
    net.out(net.op(Cast(FP64), x), "y")
    net.out(net.op(Relu(), x), "z")


def long(net: Net) -> None:
    x = net.input(3, 5, dtype=INT32)
    net.out(net.op(Neg(), x), "y")
    net.out(net.op(Cast(FP64), x), "z")


def tiny(net: Net) -> None:
    x = net.input(3, 5)
    net.out(net.op(Relu(), x), "y")
    net.out(net.op(Cast(FP8E4M3), x), "z")


@pytest.mark.parametrize(
    ("build", "loops", "reason"),
    [
        (detour, 0, "a path leads from Relu 'relu' to it through nodes outside"),
        (crossing, 1, "a path leads from Relu 'b' to it through nodes outside"),
        (wide, 1, "with Add 'add' it would write 5 tensors, the limit is 4"),
        (many, 0, "the fused program would read 9 tensors, the limit is 8"),
        (rounding, 0, "a cast of fp32 to int8 has to saturate"),
        (narrow, 0, "with Cast 'cast', the intermediate is int8"),
        (double, 0, "with Cast 'cast', mixes fp64 with fp32"),
        (long, 0, "a cast of int32 to fp64 keeps more digits than a program"),
        (tiny, 0, "no arithmetic on fp8"),
    ],
)
def test_refusals(build: Callable[[Net], None], loops: int, reason: str) -> None:
    net = Net()
    build(net)
    assert len(PASS.sites(net.graph)) == loops
    result = apply(net, PASS)
    assert any(text.startswith(reason) for text in refusals(result.notes)), result.notes


def test_strangers_of_one_shape_stay_apart() -> None:
    net = Net()
    net.out(net.op(Relu(), net.input(3, 5)), "y")
    net.out(net.op(Neg(), net.input(3, 5, name="z")), "z")
    net.out(net.op(Neg(), net.op(Reshape((5, 3)), net.graph.value("x"))), "turned")
    assert PASS.sites(net.graph) == ()


def test_two_loops_of_which_one_reads_the_other() -> None:
    net = Net()
    x = net.input(3, 5)
    a, b = net.op(Relu(), x), net.op(Neg(), x)
    p, q = net.op(Transpose((1, 0)), a), net.op(Transpose((1, 0)), b)
    net.out(net.op(Add(), p, q), "s")
    net.out(net.op(Sub(), p, q), "d")
    net.out(net.op(Slice((0, 0), (2, 5), (1, 1)), a), "piece")
    result = apply(net, PASS)
    assert ops(result.graph).count("MultiPointwise") == 2


# -- any graph -------------------------------------------------------------------------------------

STEPS = {
    "relu": lambda net, x, _: net.op(Relu(), x),
    "tanh": lambda net, x, _: net.op(Tanh(), x),
    "add": lambda net, x, other: net.op(Add(), x, other),
    "less": lambda net, x, other: net.op(Max(), other, x),
    "shift": lambda net, x, _: net.op(Sub(), x, net.const(net.random(5))),
    "half": lambda net, x, _: net.op(Cast(FP32), net.op(Cast(FP16), x)),
    "turn": lambda net, x, _: net.op(
        Transpose((1, 0)), net.op(Sigmoid(), net.op(Transpose((1, 0)), x))
    ),
    "pieces": lambda net, x, _: net.op(Mul(), *net.node(Split(0, (4, 4)), _double(net, x)).outputs),
    "softmax": lambda net, x, _: net.op(Softmax(), x),
    "sum": lambda net, x, _: net.op(Mul(), x, net.op(Reduce("mean", (1,)), x)),
}


def _double(net: Net, x: Value) -> Value:
    return net.op(
        Reshape((8, 5)), net.op(Add(), net.op(Reshape((1, 4, 5)), x), net.graph.value("pair"))
    )


recipes = st.lists(
    st.tuples(st.sampled_from(sorted(STEPS)), st.integers(0, 6), st.integers(0, 6), st.booleans()),
    min_size=2,
    max_size=14,
)


def random_net(recipe: list[tuple[str, int, int, bool]]) -> Net:
    net = Net()
    net.input(2, 1, 5, name="pair")
    values = [net.input(4, 5)]
    for name, one, two, output in recipe:
        x, other = values[-1 - one % len(values)], values[-1 - two % len(values)]
        values.append(STEPS[name](net, x, other))
        if output:
            net.out(values[-1], f"y{len(values)}")
    net.out(values[-1])
    return net


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(recipe=recipes, limit=st.integers(2, 4))
def test_any_graph_keeps_its_outputs(recipe: list[tuple[str, int, int, bool]], limit: int) -> None:
    net = random_net(recipe)
    phase = Phase("merge", (MergePointwise(max_results=limit),), "the only one")
    report = run_pipeline(net.graph, (phase,), verify=True)
    assert_same(net.graph, report.graph, feeds(net), FP16_TOLERANCE)
