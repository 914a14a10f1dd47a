from __future__ import annotations

import numpy as np

from nrt.dtypes import FP64, INT8, INT32
from nrt.ir.ops import (
    Add,
    Cast,
    Div,
    Erf,
    Exp,
    Greater,
    MaxPool,
    Mul,
    Neg,
    Pointwise,
    Relu,
    Sigmoid,
    Sub,
    Where,
)
from nrt.passes.fuse_pointwise import FusePointwise

from .support import Net, apply, ops, refusals, sole

FUSE = FusePointwise()


def test_a_chain_is_one_loop() -> None:
    net = Net()
    x, y = net.input(2, 3, 5), net.input(3, 1, name="v")
    z = net.op(Relu(), net.op(Mul(), net.op(Exp(), x), y))
    net.out(z)
    result = apply(net, FUSE)
    node = sole(result.graph, Pointwise)
    assert node.op.body.text() == "exp(x0); mul(r2, x1); max(r3, 0.0)"
    assert node.origin == ("/exp", "/mul", "/relu")
    assert result.notes[0].text == "took in Exp 'exp'"


def test_a_diamond_reads_its_input_once() -> None:
    net = Net()
    x = net.input(7, 3)
    y = net.op(Add(), x, net.const(np.float32(3)))
    net.out(net.op(Mul(), y, net.op(Relu(), y)))
    node = sole(apply(net, FUSE).graph, Pointwise)
    assert len(node.inputs) == 1
    assert node.op.body.text() == "add(x0, 3.0); max(r2, 0.0); mul(r2, r4)"


def test_a_decomposed_gelu() -> None:
    net = Net()
    x = net.op(MaxPool((1, 1), (1, 1), (0, 0, 0, 0)), net.input(1, 3, 5, 5))
    y = net.op(Erf(), net.op(Div(), x, net.const(np.float32(2**0.5))))
    y = net.op(Mul(), x, net.op(Add(), y, net.const(np.float32(1))))
    net.out(net.op(Mul(), y, net.const(np.full((1, 1, 1), 0.5, np.float32))))
    assert ops(apply(net, FUSE).graph) == ["MaxPool", "Pointwise"]


def test_kinds_mix_inside() -> None:
    net = Net()
    x = net.input(4, 5)
    mask = net.op(Greater(), x, net.const(np.float32(0.1)))
    count = net.op(Cast(x.dtype), net.input(5, name="n", dtype=INT32))
    net.out(net.op(Where(), mask, net.op(Neg(), x), net.op(Add(), x, count)))
    result = apply(net, FUSE)
    # The cast of [5] would be repeated per row; it stays.
    assert ops(result.graph) == ["Cast", "Pointwise"]


def test_a_scalar_alone_becomes_an_instruction() -> None:
    net = Net()
    net.out(net.op(Mul(), net.input(3, 4), net.const(np.full((1, 1), 2.5, np.float32))))
    node = sole(apply(net, FUSE).graph, Pointwise)
    assert len(node.inputs) == 1


def test_a_scalar_that_carries_the_rank_stays() -> None:
    net = Net()
    net.out(net.op(Mul(), net.input(3, 4), net.const(np.full((1, 1, 1), 2.5, np.float32))))
    assert not apply(net, FUSE).changed
    net = Net()
    y = net.op(Mul(), net.op(Exp(), net.input(1, 4)), net.const(np.full((1, 1), 2.5, np.float32)))
    net.out(net.op(Neg(), net.op(Sub(), y, net.const(np.full((1, 1), 0.5, np.float32)))))
    assert ops(apply(net, FUSE).graph) == ["Pointwise"]


def test_nothing_is_computed_twice() -> None:
    net = Net()
    x = net.input(3, 5)
    shared = net.op(Exp(), x)
    net.out(net.op(Relu(), shared))
    net.out(net.op(Neg(), shared), "z")
    result = apply(net, FUSE)
    assert not result.changed
    assert refusals(result.notes) == [
        "output 'exp' of Exp 'exp' is used elsewhere too, by Neg 'neg'",
        "output 'exp' of Exp 'exp' is used elsewhere too, by Relu 'relu'",
    ]
    net = Net()
    gate = net.op(Sigmoid(), net.input(2, 3, 1, 1))
    net.out(net.op(Mul(), gate, net.input(2, 3, 4, 4, name="v")))
    assert refusals(apply(net, FUSE).notes) == [
        "Sigmoid 'sigmoid' computes [2, 3, 1, 1], broadcast to [2, 3, 4, 4]: "
        "its elements would be computed several times"
    ]


def test_wrap_around_is_not_lost() -> None:
    net = Net()
    x = net.input(4, dtype=INT32)
    net.out(net.op(Cast(INT32), net.op(Cast(INT8), x)))
    assert refusals(apply(net, FUSE).notes) == [
        "the intermediate is int8, whose wrap-around or saturation a register does not have"
    ]


def test_double_precision_does_not_mix() -> None:
    net = Net()
    net.out(net.op(Cast(FP64), net.op(Exp(), net.input(4))))
    assert refusals(apply(net, FUSE).notes) == ["mixes fp64 with fp32"]


def test_limits() -> None:
    net = Net()
    y = net.input(3, 4)
    for index in range(4):
        y = net.op(Add(), y, net.input(3, 4, name=f"s{index}"))
    net.out(y)
    result = apply(net, FusePointwise(max_inputs=3))
    assert "the fused program would read 5 tensors, the limit is 3" in refusals(result.notes)
    assert all(len(n.inputs) <= 3 for n in result.graph.nodes)
    result = apply(net, FusePointwise(max_instructions=2))
    assert "the fused program would have 4 instructions, the limit is 2" in refusals(result.notes)
