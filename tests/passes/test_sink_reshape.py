from __future__ import annotations

import numpy as np

from nrt.ir.ops import Add, MatMul, Mul, Relu, Reshape, Tanh
from nrt.passes.base import run_pipeline
from nrt.passes.pipeline import pipeline
from nrt.passes.sink_reshape import SinkReshape

from .support import Net, apply, assert_same, feeds, launches, ops, refusals

SINK = SinkReshape()


def test_arithmetic_moves_before_the_reshape() -> None:
    net = Net()
    y = net.op(MatMul(), net.input(6, 5), net.weight(5, 7))
    y = net.op(Reshape((2, 3, 7)), y)
    y = net.op(Add(), y, net.const(net.random(7)))
    y = net.op(Tanh(), net.op(Mul(), y, net.const(np.float32(2))))
    net.out(net.op(Add(), net.input(2, 3, 7, name="skip"), y))
    report = run_pipeline(net.graph, pipeline(), verify=True)
    assert launches(report.graph) == ["MatMul"]
    assert_same(net.graph, report.graph, feeds(net))
    result = apply(net, SINK)
    assert ops(result.graph)[:2] == ["MatMul", "Add"]
    assert result.notes[0].text == "moved before Reshape 'reshape'"


def test_an_operand_that_the_reshape_splits() -> None:
    net = Net()
    y = net.op(Reshape((2, 3, 7)), net.op(MatMul(), net.input(6, 5), net.weight(5, 7)))
    net.out(net.op(Add(), y, net.const(net.random(3, 1))))
    result = apply(net, SINK)
    assert not result.changed
    assert refusals(result.notes) == [
        "'c' of shape [3, 1] does not broadcast alike to [6, 7] and [2, 3, 7]"
    ]


def test_a_last_dimension_that_changes() -> None:
    net = Net()
    y = net.op(Reshape((6, 7, 1)), net.op(MatMul(), net.input(6, 5), net.weight(5, 7)))
    net.out(net.op(Mul(), y, net.const(net.random(7, 1))))
    assert len(refusals(apply(net, SINK).notes)) == 1


def test_broadcasting_that_enlarges() -> None:
    net = Net()
    y = net.op(Reshape((2, 3, 7)), net.op(MatMul(), net.input(6, 5), net.weight(5, 7)))
    net.out(net.op(Add(), y, net.input(4, 1, 3, 7, name="v")))
    assert refusals(apply(net, SINK).notes) == ["broadcasting enlarges [2, 3, 7] to [4, 2, 3, 7]"]


def test_a_reshape_of_anything_else_stays() -> None:
    net = Net()
    net.out(net.op(Relu(), net.op(Reshape((6,)), net.input(2, 3))))
    assert not apply(net, SINK).changed
    shared = Net()
    y = shared.op(MatMul(), shared.input(6, 5), shared.weight(5, 7))
    shared.out(shared.op(Relu(), shared.op(Reshape((42,)), y)))
    shared.out(y, "z")
    assert refusals(apply(shared, SINK).notes) == [
        "output 'matmul' of MatMul 'matmul' is an output of the graph"
    ]
