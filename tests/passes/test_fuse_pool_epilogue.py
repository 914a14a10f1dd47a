from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from nrt.dtypes import FP64, INT8, INT32
from nrt.ir.ops import (
    Add,
    AveragePool,
    Cast,
    Clip,
    Div,
    Exp,
    Floor,
    MaxPool,
    Mul,
    Neg,
    Relu,
    Sqrt,
    Sub,
    Tanh,
)
from nrt.ir.value import Value
from nrt.passes.base import run_pipeline
from nrt.passes.fuse_pointwise import FusePointwise
from nrt.passes.fuse_pool_epilogue import FusePoolEpilogue
from nrt.passes.pipeline import PipelineOptions, pipeline

from .support import FP16_TOLERANCE, Net, apply, assert_same, feeds, launches, ops, refusals, sole

PASS = FusePoolEpilogue()
HALVES = MaxPool((2, 2), (2, 2), (0, 0, 0, 0))
MEANS = AveragePool((3, 3), (1, 1), (1, 1, 1, 1))


@pytest.mark.parametrize("pool", [HALVES, MEANS])
def test_what_follows_a_pool(pool: MaxPool | AveragePool) -> None:
    net = Net()
    y = net.op(pool, net.input(2, 3, 6, 8), name="pool")
    y = net.op(Mul(), y, net.const(net.random(1, 3, 1, 1)))
    y = net.op(Add(), net.input(*y.shape, name="r"), y)
    net.out(net.op(Tanh(), y))
    (node,) = apply(net, PASS).graph.nodes
    assert node.op.attributes()["epilogue"].text() == "mul(x0, x1); add(x2, r3); tanh(r4)"
    assert [v.shape for v in node.inputs[1:]] == [(3, 1, 1), y.shape]
    assert node.name == "pool"
    assert node.origin == ("/pool", "/mul", "/add", "/tanh")


RISING: list[Callable[[Net, Value], Value]] = [
    lambda net, x: net.op(Relu(), x),
    lambda net, x: net.op(Clip(-0.5, 0.5), x),
    lambda net, x: net.op(Exp(), net.op(Floor(), x)),
    lambda net, x: net.op(Sub(), x, net.const(net.random(3, 1, 1))),
    lambda net, x: net.op(Mul(), net.const(abs(net.random(3, 1, 1))), x),
    lambda net, x: net.op(Div(), x, net.const(np.float32(2.5))),
    lambda net, x: net.op(Relu(), net.op(Mul(), x, net.const(np.float32(0.25)))),
]


@pytest.mark.parametrize("index", range(len(RISING)))
def test_a_rising_function_moves_behind_the_maximum(index: int) -> None:
    net = Net()
    net.out(net.op(HALVES, RISING[index](net, net.input(2, 3, 6, 8))))
    report = apply(net, FusePointwise())
    net.graph = report.graph
    result = apply(net, PASS)
    (node,) = result.graph.nodes
    assert isinstance(node.op, MaxPool)
    assert node.op.epilogue is not None
    assert node.inputs[0].shape == (2, 3, 6, 8)
    assert any("which rises with its input" in n.text for n in result.notes)


FALLING: list[tuple[Callable[[Net, Value], Value], str]] = [
    (lambda net, x: net.op(Neg(), x), "may fall where its input rises"),
    (lambda net, x: net.op(Mul(), x, x), "may fall where its input rises"),
    (lambda net, x: net.op(Sqrt(), x), "may fall where its input rises"),
    (lambda net, x: net.op(Sub(), net.const(np.ones(1, np.float32)), x), "may fall"),
    (lambda net, x: net.op(Div(), net.const(np.ones(1, np.float32)), x), "may fall"),
    (lambda net, x: net.op(Mul(), x, net.const(-np.ones((3, 1, 1), np.float32))), "may fall"),
    (
        lambda net, x: net.op(Add(), x, net.const(net.random(3, 6, 8))),
        "reads 'c', which may differ from pixel to pixel",
    ),
    (
        lambda net, x: net.op(Add(), x, net.input(3, 1, 1, name="r")),
        "reads 'r', which may differ from pixel to pixel",
    ),
]


@pytest.mark.parametrize("index", range(len(FALLING)))
def test_others_stay_before_it(index: int) -> None:
    build, reason = FALLING[index]
    net = Net()
    net.out(net.op(HALVES, build(net, net.input(2, 3, 6, 8))))
    result = apply(net, PASS)
    assert not result.changed
    assert any(reason in text for text in refusals(result.notes))


def test_a_window_in_the_padding_keeps_its_minus_infinity() -> None:
    net = Net()
    x = net.op(Relu(), net.input(1, 2, 4, 4))
    net.out(net.op(MaxPool((2, 2), (3, 3), (2, 2, 0, 0)), x))
    result = apply(net, PASS)
    assert refusals(result.notes) == ["a window may lie in the padding alone"]


def test_a_pool_of_the_same_size_gains_nothing() -> None:
    net = Net()
    net.out(net.op(MaxPool((3, 3), (1, 1), (1,) * 4), net.op(Relu(), net.input(1, 2, 4, 4))))
    assert refusals(apply(net, PASS).notes) == ["the pool does not make the image smaller"]


def test_integers_stay_apart() -> None:
    net = Net()
    y = net.op(HALVES, net.op(Relu(), net.input(1, 2, 4, 4, dtype=INT32)))
    net.out(net.op(Cast(net.input(1, name="z").dtype), y))
    found = refusals(apply(net, PASS).notes)
    assert any("no float operand of its own shape and type" in text for text in found)
    assert "the result of MaxPool 'maxpool' is int32, an epilogue computes floats" in found


def test_double_stays_apart() -> None:
    net = Net()
    net.out(net.op(Relu(), net.op(HALVES, net.input(1, 2, 4, 4, dtype=FP64))))
    (text,) = refusals(apply(net, PASS).notes)
    assert "is fp64, pool kernels end in fp32" in text


def test_four_operands_at_most() -> None:
    net = Net()
    y = net.op(HALVES, net.input(1, 2, 4, 4))
    for k in range(5):
        y = net.op(Add(), y, net.input(1, 2, 2, 2, name=f"a{k}"))
    net.out(y)
    result = apply(net, PASS)
    assert ops(result.graph) == ["MaxPool", "Add"]
    assert "the epilogue would read 5 tensors, the limit is 4" in refusals(result.notes)


def test_the_pipeline_keeps_it_channels_last_and_half() -> None:
    net = Net()
    y = net.norm(net.op(HALVES, net.op(Relu(), net.input(2, 3, 6, 8))))
    net.out(net.conv(net.op(Relu(), y), 4, 1))
    net.out(y, "kept")
    options = PipelineOptions(precision=frozenset({"fp16"}))
    report = run_pipeline(net.graph, pipeline(options), verify=True)
    assert_same(net.graph, report.graph, feeds(net), FP16_TOLERANCE)
    assert launches(report.graph).count("MaxPool") == 1
    assert sole(report.graph, MaxPool).op.attributes()["epilogue"] is not None


def test_an_int8_that_is_not_rounded_stays_outside() -> None:
    net = Net()
    net.out(net.op(Cast(INT8), net.op(MEANS, net.input(1, 2, 4, 4))))
    (text,) = refusals(apply(net, PASS).notes)
    assert "is not rounded and saturated, as stores do" in text
