from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from nrt.dtypes import FP16, FP32, INT32
from nrt.ir.ops import (
    Add,
    BatchNormalization,
    Cast,
    Div,
    Exp,
    Mul,
    PooledMatMul,
    Reduce,
    Relu,
    Sigmoid,
    Sub,
)
from nrt.passes.base import run_pipeline
from nrt.passes.fuse_pointwise import FusePointwise
from nrt.passes.fuse_reduce import FuseReduce
from nrt.passes.pipeline import PipelineOptions, pipeline

from .support import (
    FP16_TOLERANCE,
    Net,
    apply,
    assert_same,
    densenet_like,
    feeds,
    launches,
    ops,
    refusals,
    sole,
)


def test_what_is_before_and_after() -> None:
    net = Net()
    x = net.input(2, 5, 4, 3)
    y = net.op(Mul(), net.const(net.random(5, 1, 1)), x)
    y = net.op(Reduce("mean", (2, 3)), net.op(Relu(), y), name="pool")
    y = net.op(Add(), net.input(2, 5, 1, 1, name="r"), y)
    net.out(net.op(Mul(), y, net.const(np.float32(0.5))))
    result = apply(net, FuseReduce())
    (node,) = result.graph.nodes
    op = node.op
    assert isinstance(op, Reduce)
    assert op.prologue is not None
    assert op.epilogue is not None
    assert op.prologue.text() == "mul(x1, x0); max(r2, 0.0)"
    assert op.epilogue.text() == "add(x1, x0); mul(r3, 0.5)"
    assert [v.shape for v in node.inputs] == [(2, 5, 4, 3), (5, 1, 1), (2, 5, 1, 1)]
    assert node.name == "pool"
    assert set(node.origin) == {"/mul", "/relu", "/pool", "/add", "/mul.1"}
    assert op.out_dtype is None
    assert {n.text for n in result.notes if n.kind == "fired"} == {
        "took in Relu 'relu' before it: max(x0, 0.0)",
        "took in Mul 'mul' before it: mul(x0, x1)",
        "took in Add 'add': add(x0, x1)",
        "took in Mul 'mul.1': mul(x0, x1)",
    }


def test_an_operand_that_is_read_twice() -> None:
    net = Net()
    x = net.input(3, 7)
    net.out(net.op(Reduce("sum", (1,)), net.op(Mul(), x, x)))
    node = sole(apply(net, FuseReduce()).graph, Reduce)
    assert len(node.inputs) == 1


def test_types_change_on_the_way() -> None:
    net = Net()
    x = net.input(3, 7, dtype=FP16)
    y = net.op(Reduce("sum", (1,)), net.op(Cast(FP32), x))
    net.out(y)
    node = sole(apply(net, FuseReduce()).graph, Reduce)
    assert node.inputs[0].dtype is FP16
    assert node.output.dtype is y.dtype is FP32


def test_operands_that_vary_along_none_of_the_reduced_dimensions_or_all() -> None:
    net = Net()
    x = net.input(2, 3, 4, 5)
    y = net.op(Sub(), x, net.input(2, 1, 4, 1, name="a"))
    y = net.op(Mul(), y, net.input(3, 1, 5, name="b"))
    net.out(net.op(Reduce("max", (1, 3), False), y))
    assert ops(apply(net, FuseReduce()).graph) == ["Reduce"]


def mean_of_exp(net: Net) -> None:
    e = net.op(Exp(), net.input(3, 7))
    net.out(net.op(Reduce("mean", (1,)), e))
    net.out(e, "kept")


def partly(net: Net) -> None:
    y = net.op(Mul(), net.input(2, 3, 4, 5), net.input(4, 1, name="b"))
    net.out(net.op(Reduce("sum", (2, 3)), y))


def image_constant(net: Net) -> None:
    y = net.op(Mul(), net.input(2, 3, 4, 5), net.const(net.random(3, 4, 5)))
    net.out(net.op(Reduce("sum", (2, 3)), y))


def larger(net: Net) -> None:
    x = net.input(2, 3, 4)
    net.out(net.op(Div(), x, net.op(Reduce("sum", (2,)), x)))


def outer_product(net: Net) -> None:
    y = net.op(Mul(), net.input(4, 1), net.input(5, name="b"))
    net.out(net.op(Reduce("sum", (1,)), y))


def integers(net: Net) -> None:
    x = net.input(4, 5, dtype=INT32)
    net.out(net.op(Reduce("sum", (1,)), net.op(Mul(), x, x)))


def integers_after(net: Net) -> None:
    y = net.op(Reduce("sum", (1,)), net.input(4, 5))
    net.out(net.op(Cast(INT32), y))


def too_many(net: Net) -> None:
    y = net.input(3, 4)
    for k in range(9):
        y = net.op(Add(), y, net.input(3, 4, name=f"a{k}"))
    net.out(net.op(Reduce("sum", (1,)), y))


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (mean_of_exp, "output 'exp' of Exp 'exp' is an output of the graph"),
        (partly, "'b' varies along some of the reduced dimensions only"),
        (image_constant, "constant 'c' varies along several dimensions of an image"),
        (larger, "broadcasting enlarges the output of Reduce 'reduce' from [2, 3, 1] to [2, 3, 4]"),
        (outer_product, "no float operand of Mul 'mul' has its shape [4, 5]"),
        (integers, "the result of Mul 'mul' is int32, a prologue computes floats"),
        (integers_after, "the result of Cast 'cast' is int32, an epilogue computes floats"),
        (too_many, "the fused program would read 9 tensors, the limit is 8"),
    ],
)
def test_refusals(build: Callable[[Net], None], reason: str) -> None:
    net = Net()
    build(net)
    assert reason in refusals(apply(net, FuseReduce()).notes)


def test_the_end_of_a_densenet_is_one_launch() -> None:
    net = densenet_like()
    options = PipelineOptions(frozenset({"fp16", "fp32"}))
    report = run_pipeline(net.graph, pipeline(options), verify=True)
    assert_same(net.graph, report.graph, feeds(net), FP16_TOLERANCE)
    node = sole(report.graph, PooledMatMul)
    assert node.inputs[0].dtype is FP16
    assert node.op.attributes()["prologue"].text() == "mul(x0, x1); add(r3, x2); max(r4, 0.0)"


def test_half_precision_keeps_what_a_prologue_cannot_overflow() -> None:
    """Squares beyond fp16 are averaged in fp32, and the epilogue saturates the result."""
    net = Net()
    x = net.input(3, 40)
    y = net.op(Mul(), net.op(Mul(), x, x), net.const(np.float32(1e6)))
    y = net.op(Reduce("mean", (1,)), y)
    net.out(net.op(Sigmoid(), net.op(Mul(), y, net.const(np.float32(1e-6)))))
    options = PipelineOptions(frozenset({"fp16"}))
    report = run_pipeline(net.graph, pipeline(options), verify=True)
    assert_same(net.graph, report.graph, feeds(net), FP16_TOLERANCE)
    node = sole(report.graph, Reduce)
    assert node.op.attributes()["epilogue"].text().endswith("max(r3, -65504.0); min(r6, 65504.0)")


def test_a_cast_of_the_result_is_stored_directly() -> None:
    net = Net()
    x = net.op(BatchNormalization(), net.input(2, 3, 4, 5), *[net.const(abs(net.random(3)))] * 4)
    net.out(net.op(Reduce("mean", (2, 3)), x))
    options = PipelineOptions(frozenset({"fp16"}))
    report = run_pipeline(net.graph, pipeline(options), verify=True)
    assert launches(report.graph).count("Reformat") == 1  # of the input


def test_it_leaves_pointwise_nodes_their_own_fusion() -> None:
    net = Net()
    x = net.input(4, 6)
    y = net.op(Relu(), net.op(Mul(), x, x))
    net.out(y)
    assert not apply(net, FuseReduce()).changed
    assert ops(apply(net, FusePointwise()).graph) == ["Pointwise"]
