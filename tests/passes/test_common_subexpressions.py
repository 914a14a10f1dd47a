from __future__ import annotations

import numpy as np

from nrt.dtypes import FP16, FP32
from nrt.ir.ops import Add, Exp, Mul, Neg, Pointwise, Reformat, Relu
from nrt.ir.pointwise import Builder
from nrt.ir.value import NHWC
from nrt.passes.common_subexpressions import CommonSubexpressions
from nrt.passes.dead_code import DeadCode

from .support import Net, apply, ops


def test_equal_chains_are_one() -> None:
    net = Net()
    x = net.input(3, 5)
    a = net.op(Relu(), net.op(Exp(), x))
    b = net.op(Relu(), net.op(Exp(), x))
    net.out(net.op(Add(), a, b))
    result = apply(net, CommonSubexpressions())
    assert ops(result.graph) == ["Exp", "Relu", "Add"]
    assert result.graph.nodes[0].origin == ("/exp", "/exp.1")
    assert result.notes[0].text == "Exp 'exp' computes the same"


def test_copies_of_small_constants_meet() -> None:
    net = Net()
    x, array = net.input(3, 5), net.random(5)
    a = net.op(Mul(), x, net.const(array.copy()))
    b = net.op(Mul(), x, net.const(array.copy()))
    net.out(net.op(Add(), a, b))
    assert ops(apply(net, CommonSubexpressions()).graph) == ["Mul", "Add"]


def test_large_constants_are_compared_by_identity() -> None:
    net = Net()
    x, array = net.input(3, 5), net.random(5)
    pair = [net.op(Mul(), x, net.const(a)) for a in (array, array, array.copy())]
    net.out(net.op(Add(), net.op(Add(), pair[0], pair[1]), pair[2]))
    result = apply(net, CommonSubexpressions(constant_limit=0))
    assert ops(result.graph).count("Mul") == 2


def test_what_differs_stays() -> None:
    net = Net()
    x = net.input(1, 2, 3, 3)
    ones = net.const(np.float32(1)), net.const(np.float32(1).astype(np.float16))
    net.out(net.op(Mul(), x, ones[0]))
    for name, op in (("exp", Exp()), ("neg", Neg())):
        net.out(net.op(op, x), name)
    first, second = net.node(Reformat(FP32), x), net.node(Reformat(FP32), x)
    net.graph.set_layout(second.output, NHWC)
    net.out(first.output, "r")
    net.out(second.output, "s")
    net.out(net.op(Reformat(FP16), x), "h")
    assert not apply(net, CommonSubexpressions()).changed


def test_an_integer_one_is_no_float_one() -> None:
    def program(imm: float | int) -> Pointwise:
        b = Builder("f")
        one = b.const(imm)
        return Pointwise(b.build(b("add", 0, b("to_f", one))), FP32)

    net = Net()
    x = net.input(3)
    net.out(net.op(program(1), x))
    net.out(net.op(program(1.0), x), "z")
    assert not apply(net, CommonSubexpressions()).changed


def test_dead_code_goes_and_live_code_stays() -> None:
    net = Net()
    x = net.input(3)
    net.op(Neg(), net.op(Exp(), x))
    net.const(net.random(4), "unused")
    net.out(net.op(Relu(), x))
    result = apply(net, DeadCode())
    assert ops(result.graph) == ["Relu"]
    assert result.graph.constants == ()
    assert sorted(n.node for n in result.notes) == ["exp", "neg"]
    assert not apply(net, DeadCode()).graph.has_value("exp")
