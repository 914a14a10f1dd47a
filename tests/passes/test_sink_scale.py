from __future__ import annotations

import numpy as np
import pytest

from nrt.dtypes import INT32
from nrt.ir.ops import Add, Div, MatMul, Mul, Neg, Reshape, Softmax, Split, Transpose
from nrt.ir.value import Value
from nrt.passes.assign_layout import AssignLayout
from nrt.passes.base import run_pipeline
from nrt.passes.fuse_pointwise import FusePointwise
from nrt.passes.pipeline import PipelineOptions, pipeline
from nrt.passes.sink_scale import SinkScale

from .support import FP16_TOLERANCE, Net, apply, assert_same, feeds, launches, ops, refusals, sole

SINK = SinkScale()


def scaled(net: Net) -> Net:
    FusePointwise().run(net.graph)
    return net


@pytest.mark.parametrize("op", [Mul(), Div()], ids=str)
def test_factors_of_both_operands_move_behind_the_product(op: Mul | Div) -> None:
    net = Net()
    a = net.op(op, net.input(2, 4, 3), net.const(np.float32(0.25)))
    b = net.op(Mul(), net.const(np.float32(3)), net.input(2, 3, 5, name="b"))
    net.out(net.op(MatMul(), a, b))
    result = apply(scaled(net), SINK)
    assert ops(result.graph) == ["MatMul"]
    assert len(sole(result.graph, MatMul).inputs) == 2
    assert result.notes[0].text.startswith("took in Pointwise")


def test_before_an_epilogue_that_is_there() -> None:
    net = Net()
    program = Add().program(("f", "f"))
    a = net.op(Mul(), net.input(4, 3), net.const(np.float32(0.25)))
    net.out(net.op(MatMul(epilogue=program), a, net.weight(3, 5), net.const(net.random(5))))
    node = sole(apply(scaled(net), SINK).graph, MatMul)
    assert node.op.epilogue.text() == "mul(x0, 0.25); add(r3, x1)"


def test_anything_but_a_factor_stays() -> None:
    for op, first in ((Neg(), False), (Div(), True), (Add(), False)):
        net = Net()
        x, c = net.input(4, 3), net.const(np.float32(0.25))
        inputs = (x,) if isinstance(op, Neg) else (c, x) if first else (x, c)
        net.out(net.op(MatMul(), net.op(op, *inputs), net.weight(3, 5)))
        assert not apply(scaled(net), SINK).changed


def test_a_square_keeps_its_factor() -> None:
    net = Net()
    a = net.op(Mul(), net.input(3, 3), net.const(np.float32(0.25)))
    net.out(net.op(MatMul(), a, a))
    assert refusals(apply(scaled(net), SINK).notes) == [
        "Pointwise 'mul' is read as input [0, 1], not as one operand"
    ]


def test_integers_stay() -> None:
    net = Net()
    a = net.op(Mul(), net.input(3, 3, dtype=INT32), net.const(np.int32(3)))
    net.out(net.op(MatMul(), a, net.input(3, 2, name="b", dtype=INT32)))
    assert refusals(apply(scaled(net), SINK).notes) == ["the product is not of floats"]


def attention(net: Net, batch: int = 2, length: int = 7, width: int = 12, heads: int = 3) -> Value:
    x = net.input(batch, length, width)
    parts = net.node(
        Split(2, (width,) * 3), net.op(MatMul(), x, net.weight(width, 3 * width))
    ).outputs
    shape = (batch, length, heads, width // heads)
    q, k, v = (net.op(Reshape(shape), p) for p in parts)
    q = net.op(Mul(), net.op(Transpose((0, 2, 1, 3)), q), net.const(np.float32(0.5)))
    k = net.op(Transpose((0, 2, 3, 1)), k)
    scores = net.op(Softmax(), net.op(MatMul(), q, k))
    y = net.op(MatMul(), scores, net.op(Transpose((0, 2, 1, 3)), v))
    y = net.op(Reshape((batch, length, width)), net.op(Transpose((0, 2, 1, 3)), y))
    return net.out(net.op(Add(), net.op(MatMul(), y, net.weight(width, width)), x))


@pytest.mark.parametrize("half", [False, True])
def test_attention_needs_no_transpose(half: bool) -> None:
    net = Net()
    attention(net)
    permitted = frozenset({"fp16", "fp32"}) if half else frozenset({"fp32"})
    report = run_pipeline(net.graph, pipeline(PipelineOptions(permitted)), verify=True)
    assert_same(net.graph, report.graph, feeds(net), FP16_TOLERANCE if half else 1e-5)
    wanted = ["MatMul", "Split", "MatMul", "Softmax", "MatMul", "MatMul"]
    assert launches(report.graph) == ["Reformat"] * half + wanted


def test_rows_or_columns_must_be_runs() -> None:
    net = Net()
    x = net.op(Transpose((2, 1, 0)), net.op(Softmax(), net.input(4, 3, 5)))
    net.out(net.op(MatMul(), x, net.input(5, 4, 6, name="b")))
    # The batch would be innermost.
    assert launches(apply(net, AssignLayout()).graph) == ["Softmax", "Transpose", "MatMul"]
    net = Net()
    y = net.op(MatMul(), net.input(4, 3, 5), net.weight(5, 6))
    net.out(net.op(Softmax(), net.op(Transpose((0, 2, 1)), y)))
    assert launches(apply(net, AssignLayout()).graph) == ["MatMul", "Transpose", "Softmax"]
    net = Net()
    y = net.op(MatMul(), net.input(4, 3, 5), net.weight(5, 6))
    net.out(net.op(Softmax(), net.op(Transpose((1, 0, 2)), y)))
    net.out(y, "z")
    assert "Transpose" in launches(apply(net, AssignLayout()).graph)
